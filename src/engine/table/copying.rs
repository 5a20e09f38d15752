//! Copying a table as it is at one moment, while it goes on changing.
//!
//! The copy goes from segment to segment, a few at a step. Whoever is about to change a segment
//! whose turn has not come copies it first, so what is copied is what the segment held when the
//! copy began: *copy before write*, as a fork does it by pages, but without the fork's pause for
//! the page tables and only for what is changed. While no copy is under way this costs a change
//! one comparison.
//!
//! - A segment tells by its **lap** whether it was copied: the table's lap is turned when a copy
//!   begins, and a segment's when it is copied. Parts of a split segment, like everything that is
//!   made meanwhile, are in the new lap from birth.
//! - **Large items** are not copied with their segment, so that no change waits for more than some
//!   hundred kilobytes beside what it is about. They are noted by key, and copied when their turn
//!   comes or just before they are changed.
//! - The moment of an item's last use is that of the copying, not of the beginning: it is the one
//!   thing in which replicas may differ anyway.

use super::{SPLIT_AHEAD, Table, prefetch};
use crate::engine::item::ItemRef;
use crate::engine::snapshot::ItemsWriter;
use crate::ids::TableIndex;
use std::collections::{BTreeSet, VecDeque};

/// Items of more bytes are copied by themselves.
const LARGE_BYTES: usize = 2048;

/// A copy under way.
pub(super) struct Copying {
    /// Which table it was when the copy began; tables may change places.
    label: TableIndex,
    /// Segments before this one are copied.
    next: usize,
    /// What was copied before its turn: blocks of a snapshot's stream, to be handed out first.
    ahead: VecDeque<Vec<u8>>,
    ahead_bytes: usize,
    /// Keys of large items that are to be copied; their segments are.
    large: BTreeSet<Vec<u8>>,
}

impl Table {
    /// Begins a copy of the table as it is now. There must be none under way.
    pub fn begin_copy(&mut self, label: TableIndex) {
        assert!(self.copying.is_none(), "a table is copied once at a time");
        self.lap = !self.lap;
        self.copying = Some(Box::new(Copying {
            label,
            next: 0,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            large: BTreeSet::new(),
        }));
    }

    /// Gives up the copy, if there is one under way.
    pub fn abandon_copy(&mut self) {
        if self.copying.take().is_some() {
            self.segments.iter_mut().for_each(|segment| segment.lap = self.lap);
        }
    }

    /// Whether a copy is under way.
    pub fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    /// Bytes that were copied before their turn and not handed out yet.
    pub fn copied_ahead(&self) -> usize {
        self.copying.as_ref().map_or(0, |copying| copying.ahead_bytes)
    }

    /// Appends blocks of items to `out` until it is at least `full` bytes long; false once the
    /// copy is complete. It goes past `full` by no more than a segment without its large items,
    /// or by one large item.
    pub fn copy_some(
        &mut self,
        out: &mut Vec<u8>,
        full: usize,
        rehash: impl Fn(&[u8]) -> u64,
    ) -> bool {
        let Some(mut copying) = self.copying.take() else { return false };
        while out.len() < full {
            if let Some(block) = copying.ahead.pop_front() {
                copying.ahead_bytes -= block.len();
                out.extend_from_slice(&block);
            } else if let Some(key) = copying.large.pop_first() {
                let place = self.find(rehash(&key), &key);
                assert!(place.is_some(), "a large item is copied before it goes");
                if let Some(place) = place {
                    copying.write_item(self.at(place), out);
                }
            } else if copying.next < self.segments.len() {
                let index = copying.next;
                copying.next += 1;
                self.copy_segment(index, &mut copying, out);
            } else {
                return false;
            }
        }
        self.copying = Some(copying);
        true
    }

    /// Copies a segment, and an item of it, before they are changed.
    #[cold]
    pub(super) fn copy_first(&mut self, segment: usize, cell: Option<usize>) {
        let Some(mut copying) = self.copying.take() else { return };
        let mut block = Vec::new();
        self.copy_segment(segment, &mut copying, &mut block);
        let item = cell.and_then(|cell| self.segments[segment].at(cell).item());
        if let Some(item) = item.filter(is_large)
            && copying.large.remove(item.key())
        {
            copying.write_item(item, &mut block);
        }
        if !block.is_empty() {
            copying.ahead_bytes += block.len();
            copying.ahead.push_back(block);
        }
        self.copying = Some(copying);
    }

    /// Copies a segment unless it is copied.
    fn copy_segment(&mut self, index: usize, copying: &mut Copying, out: &mut Vec<u8>) {
        let segment = &mut self.segments[index];
        if segment.lap == self.lap {
            return;
        }
        segment.lap = self.lap;
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
                items.put(&item);
            }
        }
        items.end();
    }
}

impl Copying {
    fn write_item(&self, item: ItemRef<'_>, out: &mut Vec<u8>) {
        let mut items = ItemsWriter::begin(out, self.label);
        items.put(&item);
        items.end();
    }
}

fn is_large(item: &ItemRef<'_>) -> bool {
    item.bytes() > LARGE_BYTES
}
