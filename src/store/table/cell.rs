//! A cell of a segment: one word with an item's pointer and sixteen bits of its key's hash.

use crate::store::item::{Item, ItemRef};
use std::ptr::{self, NonNull};

/// Where the tag begins: user-space pointers are no longer than 47 or 48 bits on the 64-bit
/// machines we run on (asserted for every item).
const TAG_SHIFT: u32 = 48;
const ADDRESS: usize = (1 << TAG_SHIFT) - 1;

const _: () = assert!(usize::BITS == 64, "a cell packs a tag beside a pointer into 64 bits");

/// Nothing, or an item with its tag. Owns the item.
///
/// The tag lies in the top bits of the pointer itself, put in and taken out by `map_addr`, so the
/// pointer keeps its provenance.
#[derive(Default)]
pub(super) struct Cell(Option<NonNull<u8>>);

// SAFETY: a cell owns its item, and items are Send.
unsafe impl Send for Cell {}

const _: () = assert!(size_of::<Cell>() == size_of::<u64>());

impl Cell {
    /// A cell that holds the item.
    #[inline]
    pub(super) fn new(tag: u16, item: Item) -> Cell {
        let raw = item.into_raw();
        assert!(raw.addr().get() <= ADDRESS, "an item at an address of more than 48 bits");
        Cell(Some(raw.map_addr(|address| address | (usize::from(tag) << TAG_SHIFT))))
    }

    /// The item's pointer without its tag.
    #[inline]
    fn raw(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.pointer().map_addr(|address| address & ADDRESS))
    }

    #[inline]
    fn pointer(&self) -> *mut u8 {
        self.0.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Whether the cell holds nothing.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The tag of the item, 0 when there is none.
    #[inline]
    pub(super) fn tag(&self) -> u16 {
        (self.pointer().addr() >> TAG_SHIFT) as u16
    }

    /// Where the item lies, for a prefetch; null when there is none.
    #[inline]
    pub(super) fn address(&self) -> *const u8 {
        self.pointer().map_addr(|address| address & ADDRESS)
    }

    /// The item.
    #[inline]
    pub(super) fn item(&self) -> Option<ItemRef<'_>> {
        // SAFETY: the cell owns the live item that the pointer without its tag came from, and is
        // borrowed for as long.
        self.raw().map(|raw| unsafe { ItemRef::from_raw(raw) })
    }

    /// Empties the cell.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Item> {
        let raw = self.raw()?;
        self.0 = None;
        // SAFETY: the pointer came from `into_raw`, and the cell has just forgotten it.
        Some(unsafe { Item::from_raw(raw) })
    }

    /// Changes the item, which may move. An empty cell stays empty.
    #[inline]
    pub(super) fn edit<R>(&mut self, change: impl FnOnce(&mut Item) -> R) -> Option<R> {
        let tag = self.tag();
        let mut item = self.take()?;
        let result = change(&mut item);
        *self = Cell::new(tag, item);
        Some(result)
    }

    /// Sets the second in which the item was last used.
    #[inline]
    pub(super) fn use_at(&mut self, second: u32) {
        if let Some(raw) = self.raw() {
            // SAFETY: the cell owns the item and is borrowed alone.
            unsafe { Item::use_at(raw, second) }
        }
    }

    /// The item's value, to be written to; nothing when the cell is empty.
    #[inline]
    pub(super) fn value_mut(&mut self) -> &mut [u8] {
        match self.raw() {
            // SAFETY: the cell owns the item and is borrowed alone for as long as the value is.
            Some(raw) => unsafe { Item::value_of(raw) },
            None => &mut [],
        }
    }
}

impl Drop for Cell {
    #[inline]
    fn drop(&mut self) {
        drop(self.take());
    }
}
