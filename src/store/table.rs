//! A table: the items of one key space of one partition, found by key.
//!
//! It is an extendible hash table (Fagin et al. 1979) whose buckets are small hash tables:
//!
//! ```text
//!             depth top bits                low 16 bits, the tag: the top bits of it are the
//!   hash =  | 0 1 1 ..       ..       | .. ..  home in the segment, the whole lies in the cell
//!               |
//!   directory   v          segments
//!   | . | . | . | . | ..   | cells: [tag|*][    ][tag|*][tag|*][    ] .. up to 1024 |
//!     |   \___|___________ | ..            |
//!     |___________________ | ..            v
//!                                          item: key, value, expiry in one allocation
//! ```
//!
//! - **No pause for growth**: a full segment doubles from 16 cells to 1024, then splits in two by
//!   the next bit of the hash. Doubling needs only the tags; splitting hashes the 800 keys of one
//!   segment. The directory doubles by copying four bytes a segment.
//! - **Few misses**: directory and segment heads stay in the cache, so a lookup costs one miss for
//!   the cell and one for the item. The tag tells all but one in a hundred wrong items off
//!   without looking at them. Both misses can be overlapped over a batch: first
//!   [`Table::prefetch_slot`] for all keys, then [`Table::prefetch_item`], then the operations.
//! - **Little memory**: eight bytes a cell, a half to four fifths of the cells used.
//! - **Floods**: keys made to collide in the top bits would double the directory for ever. So it
//!   may not outgrow the segments ([`DIRECTORY_SLACK`]); when it would, the segment grows past
//!   1024 cells instead. Keys with one hash altogether are slow to find, but no worse. (The seed
//!   of the hash is there to keep clients from making such keys.)
//!
//! # Scanning
//!
//! A cursor is a place in the order of (top 31 bits of the hash, tag), in which segments are
//! intervals. It names a segment by the prefix that its items' hashes share, and a tag: what lies
//! in segments before that one has been visited, and in that one each item with a lesser tag. It
//! survives every change of the table. Suppose an item is there throughout the scan.
//!
//! 1. A segment is scanned in the order of tags, whatever its capacity at each call
//!    ([`Segment::scan`]), so doubling and halving between calls lose nothing.
//! 2. When the segment at whose tag *t* the cursor stands is split, the scan goes on at tag *t*
//!    of the left part and visits the right part from its beginning. What is visited twice has a
//!    tag less than *t*; nothing is left out.
//! 3. Segments are never merged (only made small, down to 16 cells), and after a `clear` no item
//!    was there throughout.
//! 4. Another replica may have split less. There a cursor's prefix, whose length it tells, can be
//!    longer than that of the segment around it: "each item with a lesser tag" is then known of a
//!    part of the segment only, so the segment is visited from its beginning.
//!
//! # Copying
//!
//! A table can be copied as it is at one moment while it goes on changing: see [`copying`].

mod cell;
mod copying;
mod segment;

use crate::store::item::{Item, ItemRef};
use cell::Cell;
use copying::Copying;
pub use copying::Purpose;
use segment::{CELLS_SPLIT, Segment};

/// A scan's cursor is less than two to this power: the bits above are the caller's.
pub const CURSOR_BITS: u32 = PREFIX_BITS + 1 + TAG_BITS;

/// Bits of the hash that the directory may use at most.
pub(super) const PREFIX_BITS: u32 = 31;
/// Bits of the hash that a cell keeps.
pub(super) const TAG_BITS: u32 = 16;

/// The directory has at most so many entries for each segment. With a good hash segments fill at
/// nearly the same time and two would do.
const DIRECTORY_SLACK: usize = 8;

/// Items of a segment of a table that is made for many: four fifths of what fits into 1024 cells,
/// so that hardly any segment is split while it fills.
const SEGMENT_ITEMS: usize = 650;

/// A table is not made for more items than two to this power: what it was told may be wrong.
const RESERVED_BITS: u32 = 28;

/// How many cells a pick looks at between two looks at what it has.
const PICK_CELLS: usize = 16;

/// How far ahead of the key that is hashed a split prefetches.
const SPLIT_AHEAD: usize = 8;

/// Where an item lies; valid until the table is changed.
#[derive(Clone, Copy, Debug)]
pub struct CellPlace {
    segment: u32,
    cell: u32,
}

/// Items by key.
pub struct Table {
    /// For each value of the hash's top `depth` bits the segment of its items.
    directory: Vec<u32>,
    depth: u32,
    segments: Vec<Segment>,
    /// Cells of all segments.
    cells: usize,
    len: usize,
    /// Items with an expiry.
    volatile: usize,
    /// What the items' allocations take.
    item_bytes: usize,
    /// The copies of the table that are under way, one of each purpose at most.
    copies: Vec<Copying>,
    /// The laps of segments that need not be copied any more, a bit a purpose; that of all
    /// segments when no copy of the purpose is under way.
    laps: u8,
}

impl Default for Table {
    fn default() -> Table {
        Table::new()
    }
}

impl Table {
    /// A table without items.
    pub fn new() -> Table {
        Table::with_room(0)
    }

    /// A table without items that will hardly have to grow for so many.
    pub fn with_room(items: usize) -> Table {
        let items = items.min(1 << RESERVED_BITS);
        let depth = items.div_ceil(SEGMENT_ITEMS).next_power_of_two().ilog2();
        // Segments do not fill evenly: an eighth is more than four times the deviation to expect.
        let room = (items >> depth) + (items >> depth) / 8;
        let segment = || Segment::with_room(room, depth as u8);
        let segments: Vec<Segment> = std::iter::repeat_with(segment).take(1 << depth).collect();
        Table {
            directory: (0..1 << depth).collect(),
            depth,
            cells: segments.iter().map(Segment::capacity).sum(),
            segments,
            len: 0,
            volatile: 0,
            item_bytes: 0,
            copies: Vec::new(),
            laps: 0,
        }
    }

    /// How many items there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many items have an expiry.
    #[inline]
    pub fn volatile(&self) -> usize {
        self.volatile
    }

    /// The memory held: items, cells, segments, directory.
    #[inline]
    pub fn bytes(&self) -> usize {
        size_of::<Table>()
            + self.item_bytes
            + self.cells * size_of::<Cell>()
            + self.segments.capacity() * size_of::<Segment>()
            + self.directory.capacity() * size_of::<u32>()
            + self.all_copied_ahead()
    }

    /// The directory's entry for the hash.
    #[inline]
    fn entry(&self, hash: u64) -> usize {
        // In two steps, since none of 64 bits cannot be had by one shift.
        ((hash >> (64 - PREFIX_BITS)) >> (PREFIX_BITS - self.depth)) as usize
    }

    /// The number of the segment that holds items of the hash.
    #[inline]
    fn route(&self, hash: u64) -> usize {
        self.directory[self.entry(hash)] as usize
    }

    /// Where the key lies, if it is there.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<CellPlace> {
        let segment = self.route(hash);
        let cell = self.segments[segment].find(hash, key)?;
        Some(CellPlace { segment: segment as u32, cell: cell as u32 })
    }

    /// Whether there is an item of this hash whose key `is_it`.
    pub fn holds(&self, hash: u64, is_it: impl Fn(&[u8]) -> bool) -> bool {
        self.segments[self.route(hash)].holds(hash, is_it)
    }

    /// The item at a place just found.
    #[inline]
    pub fn at(&self, place: CellPlace) -> ItemRef<'_> {
        match self.segments[place.segment as usize].at(place.cell as usize).item() {
            Some(item) => item,
            None => stale(place),
        }
    }

    /// Changes the item at a place just found. The place stays valid.
    #[inline]
    pub fn edit<R>(&mut self, place: CellPlace, change: impl FnOnce(&mut Item) -> R) -> R {
        self.about_to_change(place);
        let cell = self.segments[place.segment as usize].at_mut(place.cell as usize);
        let edited = cell.edit(|item| {
            let before = (item.bytes(), item.as_ref().expires().is_some());
            let result = change(item);
            (result, before, (item.bytes(), item.as_ref().expires().is_some()))
        });
        let Some((result, before, after)) = edited else { stale(place) };
        self.item_bytes = self.item_bytes - before.0 + after.0;
        self.volatile = self.volatile - usize::from(before.1) + usize::from(after.1);
        result
    }

    /// Sets the second in which the item at a place just found was last used.
    #[inline]
    pub fn use_at(&mut self, place: CellPlace, second: u32) {
        self.segments[place.segment as usize].at_mut(place.cell as usize).use_at(second);
    }

    /// The value at a place just found, to be written to.
    #[inline]
    pub fn value_mut(&mut self, place: CellPlace) -> &mut [u8] {
        self.about_to_change(place);
        self.segments[place.segment as usize].at_mut(place.cell as usize).value_mut()
    }

    /// Puts an item whose key is not there. `rehash` gives the hash of any key, this one's too.
    #[inline]
    pub fn insert(&mut self, hash: u64, item: Item, rehash: impl Fn(&[u8]) -> u64) -> CellPlace {
        debug_assert!(self.find(hash, item.as_ref().key()).is_none());
        let mut segment = self.route(hash);
        if !self.copies.is_empty() {
            self.copy_first(segment, None);
        }
        // A split may leave everything in one part, hence a loop. It ends: splits are bounded by
        // the directory's slack, and doubling makes room.
        while self.segments[segment].is_full() {
            self.make_room(hash, &rehash);
            segment = self.route(hash);
        }
        self.len += 1;
        self.item_bytes += item.bytes();
        self.volatile += usize::from(item.as_ref().expires().is_some());
        let cell = self.segments[segment].insert(Cell::new(hash as u16, item));
        CellPlace { segment: segment as u32, cell: cell as u32 }
    }

    /// Takes the item at a place just found out. No place stays valid.
    pub fn remove(&mut self, place: CellPlace) -> Item {
        self.about_to_change(place);
        let segment = &mut self.segments[place.segment as usize];
        let Some(item) = segment.remove(place.cell as usize) else { stale(place) };
        self.len -= 1;
        self.item_bytes -= item.bytes();
        self.volatile -= usize::from(item.as_ref().expires().is_some());
        if segment.is_sparse() {
            self.cells -= segment.capacity() / 2;
            segment.set_capacity(segment.capacity() / 2);
        }
        item
    }

    /// To be called before an item changes.
    #[inline]
    fn about_to_change(&mut self, place: CellPlace) {
        if !self.copies.is_empty() {
            self.copy_first(place.segment as usize, Some(place.cell as usize));
        }
    }

    /// Doubles the full segment of the hash, or splits it.
    #[cold]
    fn make_room(&mut self, hash: u64, rehash: &impl Fn(&[u8]) -> u64) {
        let index = self.route(hash);
        let depth = u32::from(self.segments[index].depth);
        let may_split = depth < self.depth
            || depth < PREFIX_BITS
                && self.directory.len() * 2 <= self.segments.len() * DIRECTORY_SLACK;
        let segment = &mut self.segments[index];
        if segment.capacity() >= CELLS_SPLIT && may_split {
            self.split(hash, rehash);
        } else {
            self.cells += segment.capacity();
            segment.set_capacity(segment.capacity() * 2);
        }
    }

    /// Splits the segment of the hash by the next bit, doubling the directory if need be.
    fn split(&mut self, hash: u64, rehash: &impl Fn(&[u8]) -> u64) {
        let left = self.route(hash);
        debug_assert!(self.segments[left].laps == self.laps, "what changes is copied first");
        let right = self.segments.len();
        let depth = u32::from(self.segments[left].depth);
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|&segment| [segment; 2]).collect();
            self.depth += 1;
        }
        // The segment has a run of the directory's entries; its right half changes hands.
        let run = 1 << (self.depth - depth);
        let first = self.entry(hash) & !(run - 1);
        self.directory[first + run / 2..first + run].fill(right as u32);

        let segment = std::mem::replace(&mut self.segments[left], Segment::with_room(0, 0));
        self.cells -= segment.capacity();
        let cells = segment.into_cells();
        let (mut lefts, mut rights) = (Vec::new(), Vec::new());
        let bit = 1 << (63 - depth);
        let mut ahead: Vec<*const u8> = cells.iter().map(Cell::address).collect();
        ahead.extend([std::ptr::null(); SPLIT_AHEAD]);
        for (cell, ahead) in cells.into_iter().zip(&ahead[SPLIT_AHEAD..]) {
            prefetch(*ahead);
            match cell.item().map(|item| rehash(item.key()) & bit) {
                None => {}
                Some(0) => lefts.push(cell),
                Some(_) => rights.push(cell),
            }
        }
        let depth = depth as u8 + 1;
        let [left_part, right_part] = [lefts, rights].map(|cells| {
            let mut segment = Segment::with_room(cells.len(), depth);
            segment.laps = self.laps;
            self.cells += segment.capacity();
            for cell in cells {
                segment.insert(cell);
            }
            segment
        });
        self.segments[left] = left_part;
        self.segments.push(right_part);
    }

    /// The segment around a prefix of [`PREFIX_BITS`], with the first of its prefixes and their
    /// number.
    fn interval(&self, prefix: u64) -> (&Segment, u64, u64) {
        let segment = &self.segments[self.route(prefix << (64 - PREFIX_BITS))];
        let width = 1 << (PREFIX_BITS - u32::from(segment.depth));
        (segment, prefix & !(width - 1), width)
    }

    /// Visits items from `cursor` (0 = start) until at least `budget` cells were examined; returns
    /// the next cursor, 0 at the end. See the module's documentation for what it guarantees.
    ///
    /// Any number will do as a cursor; one that was never returned starts somewhere.
    pub fn scan<'a>(
        &'a self,
        cursor: u64,
        budget: usize,
        visit: &mut dyn FnMut(ItemRef<'a>),
    ) -> u64 {
        let mut left = budget.max(1);
        let Cursor { mut prefix, mut depth, mut tag } = Cursor::decode(cursor);
        loop {
            let (segment, start, width) = self.interval(prefix);
            if u32::from(segment.depth) < depth {
                tag = 0;
            }
            let (examined, next) = segment.scan(tag, left, visit);
            if let Some(tag) = next {
                return Cursor { prefix: start, depth: segment.depth.into(), tag }.encode();
            }
            // Nothing is known of the next segment, as of one that was split off a segment with
            // the longest prefix there can be.
            (prefix, depth, tag) = (start + width, PREFIX_BITS, 0);
            if prefix == 1 << PREFIX_BITS {
                return 0;
            }
            left = left.saturating_sub(examined);
            if left == 0 {
                return Cursor { prefix, depth, tag }.encode();
            }
        }
    }

    /// Some item that `wanted` agrees to, chosen by `dice`, each about as likely as the others;
    /// `None` when there is no such item.
    pub fn pick(&self, dice: u64, wanted: impl Fn(ItemRef<'_>) -> bool) -> Option<ItemRef<'_>> {
        let (segment, prefix, _) = self.interval(dice >> (64 - PREFIX_BITS));
        let mut cursor = Cursor { prefix, depth: segment.depth.into(), tag: dice as u16 }.encode();
        let mut picked = None;
        let mut ends = 0;
        // From there to the end, then once more from the start.
        while picked.is_none() && ends < 2 {
            cursor = self.scan(cursor, PICK_CELLS, &mut |item| {
                if picked.is_none() && wanted(item) {
                    picked = Some(item);
                }
            });
            ends += usize::from(cursor == 0);
        }
        picked
    }

    /// Prefetches where a search for the hash begins.
    #[inline]
    pub fn prefetch_slot(&self, hash: u64) {
        self.segments[self.route(hash)].prefetch_home(hash);
    }

    /// Prefetches the item that the hash most likely stands for.
    #[inline]
    pub fn prefetch_item(&self, hash: u64) {
        self.segments[self.route(hash)].prefetch_item(hash);
    }
}

/// Where a scan goes on, as in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The top bits that the segment's items share, followed by zeros.
    pub(super) prefix: u64,
    /// How many bits they share.
    pub(super) depth: u32,
    pub(super) tag: u16,
}

impl Cursor {
    /// The prefix, closed by a one so that its length can be told; then the tag.
    pub(super) fn encode(self) -> u64 {
        let close = 1 << (PREFIX_BITS - self.depth);
        (self.prefix << 1 | close) << TAG_BITS | u64::from(self.tag)
    }

    pub(super) fn decode(cursor: u64) -> Cursor {
        let closed = cursor >> TAG_BITS & ((1 << (PREFIX_BITS + 1)) - 1);
        if closed == 0 {
            return Cursor { prefix: 0, depth: 0, tag: 0 };
        }
        let close = closed.trailing_zeros();
        let prefix = (closed ^ (1 << close)) >> 1;
        Cursor { prefix, depth: PREFIX_BITS - close, tag: cursor as u16 }
    }
}

/// A place is used up by the next change of the table; one used later is a broken invariant of
/// ours, which stops the node.
#[cold]
fn stale(place: CellPlace) -> ! {
    unreachable!("no item at {place:?}");
}

/// Asks for a cache line that is about to be read.
#[inline]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing the program can see and does not fault, whatever the
    // address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

#[cfg(test)]
mod tests;
