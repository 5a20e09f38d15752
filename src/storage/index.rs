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
    /// The entries from `first` on, without a hole.
    entries: VecDeque<Place>,
    /// Entries that do not adjoin those. There are some only while the log is being read: one that
    /// was copied forward stands behind those that follow it. Where they lie a record alone says, so
    /// they take room by their number and not by their indexes.
    apart: BTreeMap<u64, Place>,
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

    /// The log has been read whole, and no group has a [`Group::hole`]: what is there now is all
    /// there is.
    pub(super) fn settle(&mut self) {
        self.groups.values_mut().for_each(Group::join);
    }

    /// All places in this segment that still count, in no particular order.
    pub(super) fn needed_in(&self, segment: u32) -> impl Iterator<Item = (PartitionId, Place)> {
        self.groups().flat_map(move |(id, group)| {
            let entries = group.needed().map(|(_, place)| place);
            let places = group.state.into_iter().chain(group.mark).chain(entries);
            places.filter(move |place| place.segment == segment).map(move |place| (id, place))
        })
    }

    /// Forgets the entries of a segment that is dropped. None of them is needed.
    pub(super) fn forget(&mut self, segment: u32) {
        for group in self.groups.values_mut() {
            let covered = group.covered_entries();
            let mut gone = group.entries.iter().take(covered);
            let gone = gone.rposition(|place| place.segment <= segment);
            group.forget_first(gone.map_or(0, |n| n + 1));
        }
    }
}

impl Group {
    /// The entries that are not covered, and where they are.
    pub(super) fn needed(&self) -> impl Iterator<Item = (u64, Place)> {
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
        let mut expected = self.covered + 1;
        let joined = self.first..self.first + self.entries.len() as u64;
        let mut apart = self.apart.range(expected..).map(|(index, _)| *index).peekable();
        loop {
            if joined.contains(&expected) {
                expected = joined.end;
            } else if apart.next_if_eq(&expected).is_some() {
                expected += 1;
            } else {
                let more = joined.start.max(expected) < joined.end || apart.peek().is_some();
                return more.then_some(expected);
            }
        }
    }

    /// Joins what is apart, and forgets what cannot be reached from the last entry: covered ones.
    /// The end of reading.
    fn join(&mut self) {
        if self.apart.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.apart);
        all.extend((self.first..).zip(std::mem::take(&mut self.entries)));
        while let Some((index, place)) = all.pop_last()
            && (self.entries.is_empty() || index + 1 == self.first)
        {
            self.entries.push_front(place);
            self.first = index;
        }
    }

    fn forget_first(&mut self, count: usize) {
        self.entries.drain(..count);
        self.first += count as u64;
    }

    /// The index of the entry that comes next.
    pub(super) fn next(&self) -> u64 {
        let apart = self.apart.last_key_value().map(|(index, _)| index + 1);
        match (self.entries.len(), apart) {
            (0, apart) => apart.unwrap_or(self.covered + 1),
            (joined, apart) => (self.first + joined as u64).max(apart.unwrap_or(0)),
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
        self.entries.get(usize::try_from(n).ok()?).copied()
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
                    self.clear();
                }
                (self.covered, self.mark) = (index, Some(place));
            }
            Kind::Covered => {}
            Kind::Reset => {
                self.clear();
                (self.covered, self.mark) = (index, Some(place));
            }
        }
    }

    /// Removes every entry at or above `index`.
    fn truncate(&mut self, index: u64) {
        let keep = index.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.truncate(keep as usize);
        self.apart.split_off(&index);
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.apart.clear();
    }

    fn put(&mut self, index: u64, place: Place) {
        self.apart.remove(&index);
        if self.entries.is_empty() {
            self.first = index;
        }
        let next = self.first + self.entries.len() as u64;
        if index == next {
            self.entries.push_back(place);
        } else if self.first <= index && index < next {
            self.entries[(index - self.first) as usize] = place;
        } else if index + 1 == self.first {
            self.entries.push_front(place);
            self.first = index;
        } else {
            self.apart.insert(index, place);
        }
        self.adjoin();
    }

    /// Joins what adjoins by now.
    fn adjoin(&mut self) {
        if self.apart.is_empty() {
            return;
        }
        while let Some(place) = self.apart.remove(&(self.first + self.entries.len() as u64)) {
            self.entries.push_back(place);
        }
        while let Some(before) = self.first.checked_sub(1)
            && let Some(place) = self.apart.remove(&before)
        {
            self.entries.push_front(place);
            self.first = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::{self, INDEX_MAX, Records};

    fn record(kind: Kind, index: u64) -> Record<'static> {
        Record { kind, group: PartitionId(0), index, payload: &[], at: 0 }
    }

    /// A group of which these records were read, each at a place of its own.
    fn read(records: &[(Kind, u64)]) -> Group {
        let mut group = Group::default();
        for (at, (kind, index)) in records.iter().enumerate() {
            let place = Place { segment: 1, offset: at as u32 };
            group.apply(&record(*kind, *index), place);
        }
        group
    }

    fn needed(group: &Group) -> Vec<(u64, u32)> {
        group.needed().map(|(index, place)| (index, place.offset)).collect()
    }

    #[test]
    fn entries_copied_forward_come_before_those_that_stand_before_them() {
        use Kind::{Covered, Entry, Kept};
        let mut group = read(&[(Entry, 4), (Entry, 5), (Kept, 1), (Kept, 2), (Kept, 3)]);
        assert_eq!((group.hole(), group.apart.len()), (None, 0));
        group.join();
        assert_eq!(needed(&group), [(1, 2), (2, 3), (3, 4), (4, 0), (5, 1)]);

        // The entries between were covered, and their segments are gone.
        let records = [(Kept, 1), (Kept, 2), (Entry, 9), (Covered, 7), (Kept, 8)];
        let mut group = read(&records);
        assert_eq!((group.hole(), group.next()), (None, 10));
        group.join();
        assert_eq!(needed(&group), [(8, 4), (9, 2)]);
        assert_eq!((group.first(), group.next()), (8, 10));
    }

    #[test]
    fn entries_that_are_missing_are_named() {
        use Kind::{Covered, Entry, Kept};
        assert_eq!(read(&[(Entry, 2)]).hole(), Some(1));
        assert_eq!(read(&[(Entry, 1), (Entry, 3)]).hole(), Some(2));
        assert_eq!(read(&[(Entry, 4), (Kept, 1), (Kept, 2)]).hole(), Some(3));
        assert_eq!(read(&[(Entry, 1), (Entry, 5), (Covered, 3)]).hole(), Some(4));
        assert_eq!(read(&[(Entry, 1), (Entry, 5), (Covered, 4)]).hole(), None);
        // What was there is overwritten from its place on.
        assert_eq!(read(&[(Entry, 1), (Entry, 5), (Entry, 2)]).hole(), None);
        assert_eq!(read(&[(Entry, 1), (Entry, 5), (Entry, 2)]).next(), 3);
    }

    /// A checksum vouches for a record, but not for its sense.
    #[test]
    fn an_index_beyond_all_logs_is_no_record() {
        for (index, is_one) in [(INDEX_MAX, true), (INDEX_MAX + 1, false), (u64::MAX, false)] {
            let mut records = Records::default();
            records.covered(PartitionId(0), index);
            let read = record::read(records.as_bytes());
            assert_eq!(read.is_some(), is_one, "{index}");
            let Some(read) = read else { continue };
            let mut group = Group::default();
            group.apply(&read, Place { segment: 1, offset: 0 });
            assert_eq!((group.hole(), group.next()), (None, index + 1));
        }
    }

    #[test]
    fn an_index_takes_no_room() {
        for kind in [Kind::Entry, Kind::Kept] {
            let far = read(&[(Kind::Entry, 1), (kind, 1 << 20)]);
            assert_eq!(far.hole(), Some(2));
            assert!(far.entries.capacity() + far.apart.len() < 100, "{kind:?}");
            let back = read(&[(Kind::Entry, 1 << 20), (Kind::Kept, 1)]);
            assert_eq!(back.hole(), Some(2));
            assert!(back.entries.capacity() + back.apart.len() < 100, "{kind:?}");
        }
    }
}
