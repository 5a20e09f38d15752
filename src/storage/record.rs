//! Records: what the groups of a node write to its log, as bytes.
//!
//! ```text
//! crc 4 | length 4 | kind 1 | 0 | group 2 | index 8 | payload
//! ```
//! Numbers are little-endian. The checksum covers all that follows it, so that one entry can be read
//! back by itself. It says nothing about *where* the record is; the batch around it does.

use crate::ids::PartitionId;

/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER: usize = 20;

/// No log gets that far. What is said of a later entry makes no sense, and could not be counted on.
pub(super) const INDEX_MAX: u64 = u64::MAX >> 1;

/// A recycled buffer that has grown larger is cut down to this.
const RECYCLED_MAX: usize = 4 << 20;

/// A run of encoded records: what a Bucket hands to the Log, and what the Log writes as one batch.
///
/// It is made to be recycled: [`Records::clear`] keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    count: u32,
}

/// What a record does to its group when the log is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The entry at `index`. Every entry of the group at or above it is removed first.
    Entry = 1,
    /// The entry at `index`, copied from a segment about to be dropped. It removes nothing: the
    /// entries that follow it stand earlier in the log.
    Kept = 2,
    /// Term and vote; the last one stands.
    State = 3,
    /// A durable snapshot holds everything up to `index`.
    Covered = 4,
    /// A snapshot from elsewhere took the place of the group's log, which goes on after `index`.
    Reset = 5,
}

/// A record as it lies in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) group: PartitionId,
    pub(super) index: u64,
    pub(super) payload: &'a [u8],
    /// Where the record starts in its batch's body.
    pub(super) at: usize,
}

impl Records {
    /// An entry of a group's consensus log, the payload in parts. It takes the place of every entry
    /// of the group at or above `index`, which must follow an entry that is there, or what a
    /// snapshot covers.
    pub fn entry(&mut self, group: PartitionId, index: u64, payload: &[&[u8]]) {
        self.push(Kind::Entry, group, index, payload);
    }

    /// A group's term and vote, opaque. The last one stands.
    pub fn state(&mut self, group: PartitionId, payload: &[u8]) {
        self.push(Kind::State, group, 0, &[payload]);
    }

    /// A durable snapshot holds all that the group's log did up to `index`: entries at or below it
    /// are not needed any more. It may lie past the log's end (a leader may apply, and snapshot,
    /// what its majority has synced and it has not); the log then goes on after it.
    pub fn covered(&mut self, group: PartitionId, index: u64) {
        self.push(Kind::Covered, group, index, &[]);
    }

    /// A snapshot from elsewhere was installed: all entries of the group are forgotten, and its log
    /// goes on after `index`.
    pub fn reset(&mut self, group: PartitionId, index: u64) {
        self.push(Kind::Reset, group, index, &[]);
    }

    /// A record that still counts, copied forward from a segment about to be dropped.
    pub(super) fn keep(&mut self, record: &Record<'_>) {
        let kind = match record.kind {
            Kind::Entry | Kind::Kept => Kind::Kept,
            Kind::State => Kind::State,
            // What a reset removed went before it; that nothing up to its index is needed remains.
            Kind::Covered | Kind::Reset => Kind::Covered,
        };
        self.push(kind, record.group, record.index, &[record.payload]);
    }

    /// Adds all records of another buffer after those that are here.
    pub fn append(&mut self, other: &Records) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
    }

    /// Makes room at once for so many records with so many bytes of payload in all.
    pub fn reserve(&mut self, (count, bytes): (usize, usize)) {
        self.bytes.reserve(count * RECORD_HEADER + bytes);
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// How many bytes they take in the log.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets the records and keeps the memory, unless it is a lot.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(RECYCLED_MAX);
        self.count = 0;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The records in runs, in order: each ends with the record that takes it to `bytes_max` bytes.
    pub(super) fn runs(&self, bytes_max: usize) -> impl Iterator<Item = (&[u8], u32)> {
        let mut left = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (mut length, mut count) = (0, 0);
            while length < bytes_max
                && let Some(payload) = payload_length(&left[length..])
            {
                length += RECORD_HEADER + payload;
                count += 1;
            }
            let (run, rest) = left.split_at(length);
            left = rest;
            (count > 0).then_some((run, count))
        })
    }

    fn push(&mut self, kind: Kind, group: PartitionId, index: u64, payload: &[&[u8]]) {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        assert!(u32::try_from(length).is_ok(), "an entry is far smaller than 4 GiB");
        let start = self.bytes.len();
        self.bytes.reserve(RECORD_HEADER + length);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[kind as u8, 0]);
        self.bytes.extend_from_slice(&group.0.to_le_bytes());
        self.bytes.extend_from_slice(&index.to_le_bytes());
        for part in payload {
            self.bytes.extend_from_slice(part);
        }
        let crc = crc32fast::hash(&self.bytes[start + 4..]);
        self.bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        self.count += 1;
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Entry, Kind::Kept, Kind::State, Kind::Covered, Kind::Reset]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The records of a batch's body, in order. Ends early, with an `Err` that says where, at one that
/// does not hold together.
pub(super) fn records(body: &[u8]) -> impl Iterator<Item = Result<Record<'_>, usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= body.len() {
            return None;
        }
        let found = read(&body[at..]).map(|record| Record { at, ..record });
        let start = at;
        at = found.as_ref().map_or(body.len(), |r| at + RECORD_HEADER + r.payload.len());
        Some(found.ok_or(start))
    })
}

/// The record at the start of `bytes`, if a whole and undamaged one is there.
pub(super) fn read(bytes: &[u8]) -> Option<Record<'_>> {
    let length = payload_length(bytes)?;
    let end = RECORD_HEADER.checked_add(length)?;
    let record = bytes.get(..end)?;
    let crc = u32::from_le_bytes(array(record, 0));
    (crc32fast::hash(&record[4..]) == crc).then_some(())?;
    let index = u64::from_le_bytes(array(record, 12));
    (index <= INDEX_MAX).then_some(())?;
    Some(Record {
        kind: Kind::from_byte(record[8])?,
        group: PartitionId(u16::from_le_bytes(array(record, 10))),
        index,
        payload: &record[RECORD_HEADER..],
        at: 0,
    })
}

/// How long the payload says it is, of the record whose header starts `bytes`.
pub(super) fn payload_length(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= RECORD_HEADER).then(|| u32::from_le_bytes(array(bytes, 4)) as usize)
}

/// `N` bytes at `at`, which the caller knows to be there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
