//! A segment: a small hash table with linear probing, placed by the tag alone.
//!
//! An item's *home* is the top bits of its tag, as many as the capacity has: `tag >> 6` among 1024
//! cells. It lies there or in the run of occupied cells that begins there, wrapped round at the
//! end. Since the tag lies in the cell, doubling, halving and removing (by shifting back what
//! follows, Knuth 6.4 algorithm R) touch the cells only and never an item.
//!
//! Homes are ordered as tags are, whatever the capacity: this is what makes a scan survive
//! resizing (see [`Segment::scan`]). Past 2^16 cells the homes lie apart, every second, fourth ..
//! cell, with the same order.
//!
//! At least a fifth of the cells is empty, so every probe ends.

use super::cell::Cell;
use super::prefetch;
use crate::store::item::{Item, ItemRef};

/// Cells of the smallest segment.
pub(super) const CELLS_MIN: usize = 16;
/// Cells of a segment that had rather split than grow.
pub(super) const CELLS_SPLIT: usize = 1024;

pub(super) struct Segment {
    cells: Box<[Cell]>,
    /// How many cells hold an item.
    len: u32,
    /// 32 minus the number of bits of a home.
    shift: u8,
    /// How many of the hash's top bits all items here share.
    pub(super) depth: u8,
    /// Which copies of the table have been here, a bit a purpose ([`super::copying`]).
    pub(super) laps: u8,
}

// Segment heads are to stay in the cache.
const _: () = assert!(size_of::<Segment>() == 24);

impl Segment {
    /// An empty segment with room for `len` items.
    pub(super) fn with_room(len: usize, depth: u8) -> Segment {
        let capacity = (len + len / 4 + 1).next_power_of_two().max(CELLS_MIN);
        let mut segment = Segment { cells: Box::default(), len: 0, shift: 32, depth, laps: 0 };
        segment.set_capacity(capacity);
        segment
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.cells.len()
    }

    #[inline]
    fn home(&self, tag: u16) -> usize {
        ((u32::from(tag) << 16) >> self.shift) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    /// Whether an item more would take the last of the empty cells that probing needs.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        (self.len as usize + 1) * 5 > self.cells.len() * 4
    }

    /// Whether half the cells would do with ease.
    #[inline]
    pub(super) fn is_sparse(&self) -> bool {
        self.cells.len() > CELLS_MIN && (self.len as usize) * 8 < self.cells.len()
    }

    /// Where the key lies.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let tag = hash as u16;
        let mut at = self.home(tag);
        loop {
            let cell = &self.cells[at];
            let item = cell.item()?;
            if cell.tag() == tag && item.key() == key {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    /// Whether there is an item of this hash whose key `is_it`.
    pub(super) fn holds(&self, hash: u64, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let tag = hash as u16;
        let mut at = self.home(tag);
        while let Some(item) = self.cells[at].item() {
            if self.cells[at].tag() == tag && is_it(item.key()) {
                return true;
            }
            at = self.after(at);
        }
        false
    }

    /// The item at `at`.
    #[inline]
    pub(super) fn at(&self, at: usize) -> &Cell {
        &self.cells[at]
    }

    /// The item at `at`, to be changed.
    #[inline]
    pub(super) fn at_mut(&mut self, at: usize) -> &mut Cell {
        &mut self.cells[at]
    }

    /// Puts an item, whose key is not here, into a segment that is not full; returns where.
    #[inline]
    pub(super) fn insert(&mut self, cell: Cell) -> usize {
        debug_assert!(!self.is_full() && !cell.is_empty());
        let mut at = self.home(cell.tag());
        while !self.cells[at].is_empty() {
            at = self.after(at);
        }
        self.cells[at] = cell;
        self.len += 1;
        at
    }

    /// Takes the item at `at` out.
    pub(super) fn remove(&mut self, at: usize) -> Option<Item> {
        let item = self.cells[at].take()?;
        self.len -= 1;
        // Each following item of the run moves into the hole unless its home lies behind it.
        let mask = self.cells.len() - 1;
        let mut hole = at;
        let mut next = self.after(at);
        while !self.cells[next].is_empty() {
            let home = self.home(self.cells[next].tag());
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.cells.swap(hole, next);
                hole = next;
            }
            next = self.after(next);
        }
        Some(item)
    }

    /// Moves all items to as many cells, a power of two with room for them.
    pub(super) fn set_capacity(&mut self, capacity: usize) {
        assert!(capacity.is_power_of_two() && capacity <= 1 << 32);
        let fresh = std::iter::repeat_with(Cell::default).take(capacity).collect();
        let cells = std::mem::replace(&mut self.cells, fresh);
        self.shift = 32 - capacity.ilog2() as u8;
        self.len = 0;
        for cell in cells {
            if !cell.is_empty() {
                self.insert(cell);
            }
        }
    }

    /// All cells, empty ones too.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// All cells, empty ones too.
    pub(super) fn into_cells(self) -> Box<[Cell]> {
        self.cells
    }

    /// Visits the items with a tag from `from` on whose homes are the next `budget`; returns the
    /// number of cells examined and the tag from which to go on, `None` at the end.
    ///
    /// Whatever the capacity is at each call, a scan from tag 0 that goes on from the tag returned
    /// meets every item that is there throughout: a call visits exactly the items with tags from
    /// `from` up to the tag returned, wherever displacement has put them, and resizing does not
    /// change a tag.
    pub(super) fn scan<'a>(
        &'a self,
        from: u16,
        budget: usize,
        visit: &mut dyn FnMut(ItemRef<'a>),
    ) -> (usize, Option<u16>) {
        let capacity = self.cells.len();
        let mask = capacity - 1;
        let start = self.home(from);
        // A page ends where the items of a tag begin.
        let tag_step = (capacity >> 16).max(1);
        let end = start.saturating_add(budget).next_multiple_of(tag_step).min(capacity);
        let mut at = start;
        loop {
            let cell = &self.cells[at & mask];
            match cell.item() {
                // Each item with its home before `end` lies in a run that has ended by here.
                None if at >= end => break,
                None => {}
                Some(item) => {
                    // Counted from `start` on, `at` passes the capacity where a run wraps round.
                    // The wrapped items of the last run, met at the first cells, have a home of
                    // less than 0 by this count: they are met again behind the end.
                    let displaced = at.wrapping_sub(self.home(cell.tag())) & mask;
                    let due =
                        at.checked_sub(displaced).is_some_and(|home| (start..end).contains(&home));
                    if due && cell.tag() >= from {
                        visit(item);
                    }
                }
            }
            at += 1;
        }
        let next = (end < capacity).then(|| (((end as u64) << self.shift) >> 16) as u16);
        (at - start, next)
    }

    /// Prefetches the cell at which a search for the hash begins.
    #[inline]
    pub(super) fn prefetch_home(&self, hash: u64) {
        prefetch((&raw const self.cells[self.home(hash as u16)]).cast());
    }

    /// Prefetches the first item that has the hash's tag.
    #[inline]
    pub(super) fn prefetch_item(&self, hash: u64) {
        let tag = hash as u16;
        let mut at = self.home(tag);
        while !self.cells[at].is_empty() {
            let cell = &self.cells[at];
            if cell.tag() == tag {
                prefetch(cell.address());
                prefetch(cell.address().wrapping_add(64));
                return;
            }
            at = self.after(at);
        }
    }

    /// Asserts what must hold; returns the number of items.
    #[cfg(test)]
    pub(super) fn check(&self, mut each: impl FnMut(u16, ItemRef<'_>)) -> usize {
        let mut len = 0;
        for (at, cell) in self.cells.iter().enumerate() {
            let Some(item) = cell.item() else { continue };
            len += 1;
            let mut way = self.home(cell.tag());
            while way != at {
                assert!(!self.cells[way].is_empty(), "a gap between an item and its home");
                way = self.after(way);
            }
            each(cell.tag(), item);
        }
        assert_eq!(len, self.len as usize);
        assert!(len * 5 <= self.cells.len() * 4, "overfull: {len} of {}", self.cells.len());
        len
    }
}
