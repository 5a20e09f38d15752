//! Where everything that still counts lies in the log.
//!
//! One [`Place`] of eight bytes for each entry. It answers two questions: what must be copied before
//! a segment may go, and where a follower that fell behind finds its entries. What it does with a
//! record is what recovery does with it: both end in the same few lines.

use super::record::{Kind, Record};
use crate::ids::PartitionId;
use std::collections::{BTreeMap, VecDeque};

/// Where a record starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// All groups of a node's log.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    groups: BTreeMap<PartitionId, Group>,
}

/// One group's part.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// The last record of term and vote.
    state: Option<Place>,
    /// Entries up to this one are not needed.
    covered: u64,
    /// The record that said so.
    mark: Option<Place>,
    /// The index of the first of `entries`. It may be covered: an entry can be read for as long as
    /// its segment stays.
    first: u64,
    /// The entries from `first` on. A hole exists only while the log is being read: an entry that
    /// was copied forward stands behind those that follow it.
    entries: VecDeque<Option<Place>>,
}

impl Index {
    pub(super) fn group(&self, group: PartitionId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (PartitionId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    /// Takes in a record that is about to be written at `place`. One that the log could not be read
    /// with again is a broken invariant of the caller's, and must not reach the disk.
    pub(super) fn admit(&mut self, record: &Record<'_>, place: Place) {
        let group = self.groups.entry(record.group).or_default();
        let (index, covered, next) = (record.index, group.covered, group.next());
        assert!(
            record.kind != Kind::Entry || (covered < index && index <= next),
            "entry {index} of partition {} neither follows {covered} nor precedes {next}",
            record.group
        );
        group.apply(record, place);
    }

    /// Takes in a record that was read at `place`.
    pub(super) fn apply(&mut self, record: &Record<'_>, place: Place) {
        self.groups.entry(record.group).or_default().apply(record, place);
    }

    /// The log has been read whole: what is there now is all there is.
    pub(super) fn settle(&mut self) {
        for group in self.groups.values_mut() {
            group.forget_behind_holes();
        }
    }

    /// All places in this segment that still count, in no particular order.
    pub(super) fn needed_in(&self, segment: u32) -> impl Iterator<Item = (PartitionId, Place)> {
        self.groups().flat_map(move |(id, group)| {
            let entries = group.needed().filter_map(|(_, place)| place);
            let places = group.state.into_iter().chain(group.mark).chain(entries);
            places.filter(move |place| place.segment == segment).map(move |place| (id, place))
        })
    }

    /// Forgets the entries of a segment that is dropped. None of them is needed.
    pub(super) fn forget(&mut self, segment: u32) {
        for group in self.groups.values_mut() {
            let covered = group.covered_entries();
            let mut gone = group.entries.iter().take(covered);
            let gone = gone.rposition(|place| place.is_some_and(|place| place.segment <= segment));
            group.forget_first(gone.map_or(0, |n| n + 1));
        }
    }
}

impl Group {
    /// The entries that are not covered, and where they are.
    pub(super) fn needed(&self) -> impl Iterator<Item = (u64, Option<Place>)> {
        let covered = self.covered_entries();
        let first = self.first + covered as u64;
        (first..).zip(self.entries.range(covered..).copied())
    }

    /// Term and vote.
    pub(super) fn state(&self) -> Option<Place> {
        self.state
    }

    /// The first entry that should be there and is not.
    pub(super) fn hole(&self) -> Option<u64> {
        for (expected, (index, place)) in (self.covered + 1..).zip(self.needed()) {
            if index != expected || place.is_none() {
                return Some(expected);
            }
        }
        None
    }

    /// Forgets covered entries that cannot be reached from the needed ones: the end of reading.
    fn forget_behind_holes(&mut self) {
        let covered = self.covered_entries();
        let hole = self.entries.iter().take(covered).rposition(Option::is_none);
        self.forget_first(hole.map_or(0, |n| n + 1));
    }

    fn forget_first(&mut self, count: usize) {
        self.entries.drain(..count);
        self.first += count as u64;
    }

    /// The index of the entry that comes next.
    pub(super) fn next(&self) -> u64 {
        if self.entries.is_empty() {
            self.covered + 1
        } else {
            self.first + self.entries.len() as u64
        }
    }

    pub(super) fn covered(&self) -> u64 {
        self.covered
    }

    /// The index of the first entry that can be read.
    pub(super) fn first(&self) -> u64 {
        if self.entries.is_empty() { self.next() } else { self.first }
    }

    /// Where the entry at `index` is.
    pub(super) fn entry(&self, index: u64) -> Option<Place> {
        let n = index.checked_sub(self.first)?;
        self.entries.get(usize::try_from(n).ok()?).copied().flatten()
    }

    /// How many of `entries` are covered.
    fn covered_entries(&self) -> usize {
        ((self.covered + 1).saturating_sub(self.first) as usize).min(self.entries.len())
    }

    fn apply(&mut self, record: &Record<'_>, place: Place) {
        let index = record.index;
        match record.kind {
            Kind::Entry => {
                self.truncate(index);
                self.put(index, place);
            }
            Kind::Kept => self.put(index, place),
            Kind::State => self.state = Some(place),
            Kind::Covered if index >= self.covered => {
                if index >= self.next() {
                    self.entries.clear();
                }
                (self.covered, self.mark) = (index, Some(place));
            }
            Kind::Covered => {}
            Kind::Reset => {
                self.entries.clear();
                (self.covered, self.mark) = (index, Some(place));
            }
        }
    }

    /// Removes every entry at or above `index`.
    fn truncate(&mut self, index: u64) {
        let keep = index.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.truncate(keep as usize);
    }

    fn put(&mut self, index: u64, place: Place) {
        if self.entries.is_empty() {
            self.first = index;
        }
        while index < self.first {
            self.entries.push_front(None);
            self.first -= 1;
        }
        let n = (index - self.first) as usize;
        while self.entries.len() <= n {
            self.entries.push_back(None);
        }
        self.entries[n] = Some(place);
    }
}
