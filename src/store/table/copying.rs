//! Copying a table as it is at one moment, while it goes on changing.
//!
//! The copy goes from segment to segment, a few at a step. A change of a segment
//! whose turn has not come copies it first, so what is copied is what the segment held when the
//! copy began: *copy before write*, as a fork does it by pages, but without the fork's pause for
//! the page tables and only for what is changed. While no copy is under way this costs a change
//! one comparison.
//!
//! - A segment tells by its **lap** whether it was copied: the table's lap is turned when a copy
//!   begins, and a segment's when it is copied. Parts of a split segment, like everything that is
//!   made meanwhile, are in the new lap from birth.
//! - There is a lap for each [`Purpose`], so a backup need not wait for a snapshot, nor the other
//!   way round.
//! - **Large items** are not copied with their segment, so that no change waits for more than some
//!   hundred kilobytes beside what it is about. They are noted by key, and copied when their turn
//!   comes or just before they are changed. A value that is longer than a page is copied page by
//!   page; if it is changed meanwhile, the rest of it is copied first.
//! - The moment of an item's last use is that of the copying, not of the beginning: it is the one
//!   thing in which replicas may differ anyway.

use super::{SPLIT_AHEAD, Table, prefetch};
use crate::ids::TableIndex;
use crate::store::item::ItemRef;
use crate::store::pages::{ItemsWriter, PAGE_BYTES, put_page};
use std::collections::{BTreeSet, VecDeque};

/// Items of more bytes are copied by themselves.
const LARGE_BYTES: usize = 2048;

const _: () = assert!(LARGE_BYTES < PAGE_BYTES, "what has pages is copied by itself");

/// What a copy is for. Copies of different purposes are independent: each has its own moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A snapshot, which replaces the beginning of the log.
    Snapshot,
    /// A backup, which leaves the cluster.
    Backup,
}

impl Purpose {
    /// Its bit among the laps of tables and segments.
    fn bit(self) -> u8 {
        match self {
            Purpose::Snapshot => 1,
            Purpose::Backup => 2,
        }
    }
}

/// A copy under way.
pub(super) struct Copying {
    purpose: Purpose,
    /// Which table it was when the copy began; tables may change places.
    label: TableIndex,
    /// Segments before this one are copied.
    next: usize,
    /// What was copied before its turn: blocks of a snapshot's stream, to be handed out first.
    ahead: VecDeque<Vec<u8>>,
    ahead_bytes: usize,
    /// Keys of large items that are to be copied; their segments are.
    large: BTreeSet<Vec<u8>>,
    /// The item whose value is copied page by page, and where the next page begins.
    open: Option<(Vec<u8>, usize)>,
}

impl Table {
    /// Begins a copy of the table as it is now. There must be none of this purpose under way.
    pub fn begin_copy(&mut self, purpose: Purpose, label: TableIndex) {
        assert!(!self.is_copying(purpose), "a table is copied once at a time for one purpose");
        self.laps ^= purpose.bit();
        self.copies.push(Copying {
            purpose,
            label,
            next: 0,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            large: BTreeSet::new(),
            open: None,
        });
    }

    /// Gives up the copy of this purpose, if there is one under way.
    pub fn abandon_copy(&mut self, purpose: Purpose) {
        if self.take_copy(purpose).is_some() {
            let (bit, laps) = (purpose.bit(), self.laps);
            for segment in &mut self.segments {
                segment.laps = segment.laps & !bit | laps & bit;
            }
        }
    }

    fn take_copy(&mut self, purpose: Purpose) -> Option<Copying> {
        let at = self.copies.iter().position(|copying| copying.purpose == purpose)?;
        Some(self.copies.remove(at))
    }

    /// Whether a copy of this purpose is under way.
    pub fn is_copying(&self, purpose: Purpose) -> bool {
        self.copies.iter().any(|copying| copying.purpose == purpose)
    }

    /// Whether any copy is under way.
    pub fn is_copied(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Bytes that were copied before their turn for this purpose and not handed out yet.
    pub fn copied_ahead(&self, purpose: Purpose) -> usize {
        let copies = self.copies.iter().filter(|copying| copying.purpose == purpose);
        copies.map(|copying| copying.ahead_bytes).sum()
    }

    /// The same for all purposes.
    pub(super) fn all_copied_ahead(&self) -> usize {
        self.copies.iter().map(|copying| copying.ahead_bytes).sum()
    }

    /// Appends blocks of items to `out` until it is at least `full` bytes long; false once the
    /// copy is complete. It goes past `full` by no more than a segment without its large items,
    /// or by a page.
    pub fn copy_some(
        &mut self,
        purpose: Purpose,
        out: &mut Vec<u8>,
        full: usize,
        rehash: impl Fn(&[u8]) -> u64,
    ) -> bool {
        let Some(mut copying) = self.take_copy(purpose) else { return false };
        while out.len() < full {
            if let Some((key, at)) = copying.open.take() {
                // Nothing else comes in between: the reader has one such value of a table.
                if let Some(item) = self.large_item(&key, &rehash) {
                    let next = put_page(out, copying.label, &item, at);
                    copying.open = (next < item.content().len()).then_some((key, next));
                }
            } else if let Some(block) = copying.ahead.pop_front() {
                copying.ahead_bytes -= block.len();
                out.extend_from_slice(&block);
            } else if let Some(key) = copying.large.pop_first() {
                if let Some(item) = self.large_item(&key, &rehash)
                    && copying.write_item(item, out)
                {
                    copying.open = Some((key, 0));
                }
            } else if copying.next < self.segments.len() {
                let index = copying.next;
                copying.next += 1;
                self.copy_segment(index, &mut copying, out);
            } else {
                return false;
            }
        }
        self.copies.push(copying);
        true
    }

    /// An item that is still to be copied.
    fn large_item(&self, key: &[u8], rehash: impl Fn(&[u8]) -> u64) -> Option<ItemRef<'_>> {
        let place = self.find(rehash(key), key);
        assert!(place.is_some(), "a large item is copied before it goes");
        place.map(|place| self.at(place))
    }

    /// Copies a segment, and an item of it, before they are changed: for each copy under way.
    #[cold]
    pub(super) fn copy_first(&mut self, segment: usize, cell: Option<usize>) {
        let mut copies = std::mem::take(&mut self.copies);
        for copying in &mut copies {
            let mut block = Vec::new();
            self.copy_segment(segment, copying, &mut block);
            let item = cell.and_then(|cell| self.segments[segment].at(cell).item());
            let mut pages = VecDeque::new();
            if let Some(item) = item.filter(is_large) {
                // What is missing of the value under way goes first, before any other block.
                if let Some((_, at)) = copying.open.take_if(|(key, _)| key == item.key()) {
                    copying.pages(item, at).into_iter().rev().for_each(|page| {
                        copying.ahead_bytes += page.len();
                        copying.ahead.push_front(page);
                    });
                }
                if copying.large.remove(item.key()) && copying.write_item(item, &mut block) {
                    pages = copying.pages(item, 0);
                }
            }
            for block in std::iter::once(block).chain(pages).filter(|block| !block.is_empty()) {
                copying.ahead_bytes += block.len();
                copying.ahead.push_back(block);
            }
        }
        self.copies = copies;
    }

    /// Copies a segment unless it is copied.
    fn copy_segment(&mut self, index: usize, copying: &mut Copying, out: &mut Vec<u8>) {
        let segment = &mut self.segments[index];
        let bit = copying.purpose.bit();
        if (segment.laps ^ self.laps) & bit == 0 {
            return;
        }
        segment.laps ^= bit;
        let mut items = ItemsWriter::begin(out, copying.label);
        let cells = segment.cells();
        for (at, cell) in cells.iter().enumerate() {
            if let Some(ahead) = cells.get(at + SPLIT_AHEAD) {
                prefetch(ahead.address());
            }
            let Some(item) = cell.item() else { continue };
            if is_large(&item) {
                copying.large.insert(item.key().to_vec());
            } else {
                let paged = items.put(&item);
                debug_assert!(!paged, "what has pages is large");
            }
        }
        items.end();
    }
}

impl Copying {
    /// Writes an item by itself. True: its pages are to follow.
    fn write_item(&self, item: ItemRef<'_>, out: &mut Vec<u8>) -> bool {
        let mut items = ItemsWriter::begin(out, self.label);
        let paged = items.put(&item);
        items.end();
        paged
    }

    /// All pages of an item from `at` on, each by itself.
    fn pages(&self, item: ItemRef<'_>, mut at: usize) -> VecDeque<Vec<u8>> {
        let mut pages = VecDeque::new();
        while at < item.content().len() {
            let mut page = Vec::with_capacity(PAGE_BYTES + 16);
            at = put_page(&mut page, self.label, &item, at);
            pages.push_back(page);
        }
        pages
    }
}

fn is_large(item: &ItemRef<'_>) -> bool {
    item.bytes() > LARGE_BYTES
}
