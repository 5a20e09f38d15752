//! Reading a log again: what is there, what was torn, what is damaged.
//!
//! # A torn tail or damage?
//! Only the last segment may hold anything that was not synced: the log moves to a new segment only
//! once the one before is synced to its end, and the new one's header says where that is. So
//! anything unreadable before that end is **damage**.
//!
//! In the last segment, writes that no sync had confirmed may be there, be missing or be torn, each
//! by itself: a power cut leaves holes. Every batch says up to which byte its segment had been
//! synced when the batch was written. So let `bad` be the first place where no whole batch is, and
//! search everything behind it for whole batches:
//! - One of them says that its segment was synced beyond `bad`: what is missing had been promised.
//!   That is **damage**, and the log is refused with the file and the byte named.
//! - None says so: nothing at or behind `bad` was ever confirmed. It is the **tail**, it is cut
//!   there, whole batches behind a hole included, and the cut is told.
//!
//! For the very last batches, with no later batch to vouch for them, there is a note beside the log
//! of how far it was synced (`synced`). It is not synced itself. So what this cannot see is damage to
//! a batch that was synced last before the machine went down, if the kernel had not written the note
//! by then: that reads as a tail. A stop that is not a crash ends with an empty batch
//! ([`SegmentLog::finish`]).
//!
//! A folder that is empty, or ends before the segment that was written to last, has lost something:
//! the data directory remembers that segment's number ([`super::log::Options::newest`]).
//!
//! # Nothing is appended to a segment that was read
//! Whole batches behind a hole would come to life again once the hole is filled to just the right
//! byte. So a log that is opened goes on in a new segment, whose header says where the last one was
//! cut; what lies behind the cut is never looked at again.
//!
//! # Nothing is believed because it could be read
//! Bytes can be read that are on no disk: when the process died but the machine did not, or after a
//! sync failed (the kernel then forgets that it still owes the write). What no later batch vouches
//! for is written again, in place and as it was, and synced, before any node is told of it.

use super::directory::Identity;
use super::disk::{Disk, File, failed};
use super::index::{Index, Place};
use super::log::Options;
#[cfg(doc)]
use super::log::SegmentLog;
use super::record::{self, Kind, Record};
use super::segment::{self, BATCH_HEADER, BadHeader, Batch, FIRST_BATCH, Header};
use super::synced::SyncedTo;
use crate::error::{Corrupt, Error, Result};
use crate::ids::PartitionId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every group that ever wrote.
    pub groups: BTreeMap<PartitionId, GroupLog>,
    /// The tail that was cut, if there was one.
    pub torn: Option<Torn>,
    /// How many records were read, those that no longer count included.
    pub records: u64,
    /// How many bytes were read.
    pub bytes: u64,
    /// How many segments were read.
    pub segments: usize,
}

/// One group's part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLog {
    /// The last term and vote.
    pub state: Option<Vec<u8>>,
    /// A snapshot holds everything up to here.
    pub covered: u64,
    /// The entries behind `covered`, without a gap.
    pub entries: Vec<(u64, Bytes)>,
}

/// The end of a log that was being written when the power went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub file: PathBuf,
    /// Where it was cut.
    pub offset: u64,
    /// How many bytes of batches, whole or not, were found behind the cut.
    pub bytes: u64,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log tail torn at byte {} of {}, cut", self.offset, self.file.display())
    }
}

/// A log that was read: where it is, and how far each segment counts.
pub(super) struct Reading<F> {
    pub(super) recovered: Recovered,
    pub(super) index: Index,
    pub(super) segments: BTreeMap<u32, Segment<F>>,
}

/// A segment of the log.
pub(super) struct Segment<F> {
    /// Open only where it is written to: there may be more segments than descriptors.
    pub(super) file: Option<F>,
    /// Where its last batch ends.
    pub(super) end: u64,
    /// The file's length.
    pub(super) length: u64,
}

/// Reads the log in `dir`, which was synced at least to `synced`.
pub(super) fn read<D: Disk>(
    disk: &D,
    dir: &Path,
    options: &Options,
    synced: Option<SyncedTo>,
) -> Result<Reading<D::File>> {
    let mut reading = Reading {
        recovered: Recovered::default(),
        index: Index::default(),
        segments: find_segments(disk, dir, &options.owner)?,
    };
    let mut oldest = 0;
    let last = reading.segments.keys().next_back().copied();
    let newest = synced.map_or(0, |synced| synced.segment).max(options.newest);
    if last.unwrap_or_default() < newest {
        let missing = segment::path(dir, newest);
        return Err(corrupt(&missing, 0, "the file is missing, and it was written to"));
    }
    for (&number, segment) in &mut reading.segments {
        let path = segment::path(dir, number);
        if Some(number) == last {
            // Looked at below, with the bytes at hand.
            segment.end = segment.length;
        }
        let file = disk.open(&path).map_err(failed("open", &path))?;
        let bytes = file.read_range(0, segment.end).map_err(failed("read", &path))?;
        let mut at = FIRST_BATCH;
        let mut vouched = FIRST_BATCH;
        while let Some(batch) = Batch::decode(&bytes, number, at) {
            apply(&batch, &path, &mut reading.index)?;
            at += batch.bytes();
            vouched = vouched.max(batch.synced);
            oldest = oldest.max(batch.oldest);
            reading.recovered.records += u64::from(batch.count);
            if at == segment.end {
                break;
            }
        }
        if Some(number) == last {
            let promised = synced.filter(|synced| synced.segment == number);
            if promised.is_some_and(|synced| synced.end > at) {
                return Err(corrupt(&path, at, "no whole batch is there, and it was synced"));
            }
            reading.recovered.torn = cut(&bytes, number, at, &path)?;
            segment.end = at;
            confirm(&file, &bytes[..at as usize], vouched.min(at))
                .map_err(failed("write", &path))?;
        } else if at != segment.end {
            return Err(corrupt(&path, at, "no whole batch is there, and it was synced"));
        }
        reading.recovered.bytes += at;
        reading.recovered.segments += 1;
    }
    if let Some(first) = reading.segments.keys().next().filter(|first| **first > oldest.max(1)) {
        let missing = segment::path(dir, first - 1);
        return Err(corrupt(&missing, 0, "the file is missing, and it was still needed"));
    }
    if let Some((group, log)) = reading.index.groups().find(|(_, log)| log.hole().is_some()) {
        let index = log.hole().unwrap_or_default();
        let problem = format!("entry {index} of partition {group} is missing");
        return Err(corrupt(dir, 0, &problem));
    }
    reading.index.settle();
    collect_groups(&mut reading, disk, dir)?;
    Ok(reading)
}

/// Finds the segments in `dir` and says of all but the last where they end.
fn find_segments<D: Disk>(
    disk: &D,
    dir: &Path,
    owner: &Identity,
) -> Result<BTreeMap<u32, Segment<D::File>>> {
    let names = disk.list(dir).map_err(failed("list", dir))?;
    let mut segments: BTreeMap<u32, Segment<D::File>> = BTreeMap::new();
    for number in names.iter().filter_map(|name| segment::number(name)) {
        let path = segment::path(dir, number);
        let file = disk.open(&path).map_err(failed("open", &path))?;
        let block = file.read_range(0, FIRST_BATCH).map_err(failed("read", &path))?;
        let header = Header::decode(&block).map_err(|bad| match bad {
            BadHeader::Damaged(problem) => corrupt(&path, 0, problem),
            BadHeader::Format(format) => Error::Directory(format!(
                "{} is of format {format}, which this version does not know",
                path.display()
            )),
        })?;
        let found = Identity { cluster: header.cluster, node: header.node };
        if found != *owner {
            let path = path.display();
            return Err(Error::Directory(format!("{path} belongs to {found}, not to {owner}")));
        }
        if header.number != number {
            let problem = format!("it is segment {}, under another's name", header.number);
            return Err(corrupt(&path, 0, &problem));
        }
        if let Some((&previous, segment)) = segments.iter_mut().next_back() {
            if previous + 1 != number {
                let missing = segment::path(dir, previous + 1);
                return Err(corrupt(&missing, 0, "the file is missing"));
            }
            segment.end = header.previous_end;
        }
        let length = file.length().map_err(failed("read", &path))?;
        segments.insert(number, Segment { file: None, end: 0, length });
    }
    Ok(segments)
}

/// Takes in the records of a batch.
fn apply(batch: &Batch<'_>, path: &Path, index: &mut Index) -> Result<()> {
    let body = batch.offset + BATCH_HEADER as u64;
    for record in record::records(batch.body) {
        let record = record.map_err(|at| {
            corrupt(path, body + at as u64, "a record makes no sense, in a batch that does")
        })?;
        let offset = (body + record.at as u64) as u32;
        index.apply(&record, Place { segment: batch.segment, offset });
    }
    Ok(())
}

/// The last segment has no whole batch at `at`: nothing more, a torn tail, or damage.
fn cut(bytes: &[u8], number: u32, at: u64, path: &Path) -> Result<Option<Torn>> {
    let mut end = at + segment::remains(bytes, number, at);
    for batch in segment::search(bytes, number, at) {
        if batch.synced > at {
            let problem =
                format!("no whole batch is there, and byte {} says it was synced", batch.offset);
            return Err(corrupt(path, at, &problem));
        }
        end = end.max(batch.offset + batch.bytes());
    }
    let torn = Torn { file: path.to_owned(), offset: at, bytes: end - at };
    Ok((torn.bytes > 0).then_some(torn))
}

/// Writes again what no later batch vouches for, and syncs.
fn confirm<F: File>(file: &F, bytes: &[u8], vouched: u64) -> std::io::Result<()> {
    file.write_at(&bytes[vouched as usize..], vouched)?;
    file.sync_data()
}

/// Reads the entries that count, one segment at a time so as not to hold the whole log in memory.
fn collect_groups<D: Disk>(reading: &mut Reading<D::File>, disk: &D, dir: &Path) -> Result<()> {
    let mut needed: BTreeMap<u32, Vec<(Place, PartitionId)>> = BTreeMap::new();
    for (id, group) in reading.index.groups() {
        let log = GroupLog { covered: group.covered(), ..GroupLog::default() };
        reading.recovered.groups.insert(id, log);
        let entries = group.needed().map(|(_, place)| place);
        for place in entries.chain(group.state()) {
            needed.entry(place.segment).or_default().push((place, id));
        }
    }
    for (number, mut places) in needed {
        places.sort_unstable();
        let path = segment::path(dir, number);
        let segment = &reading.segments[&number];
        let file = disk.open(&path).map_err(failed("open", &path))?;
        let bytes = file.read_range(0, segment.end).map_err(failed("read", &path))?;
        for (place, id) in places {
            let offset = u64::from(place.offset);
            let record = bytes.get(place.offset as usize..).and_then(record::read);
            let Some(Record { kind, index, payload, .. }) = record else {
                return Err(corrupt(&path, offset, "a record that was there is not"));
            };
            let log = reading.recovered.groups.entry(id).or_default();
            match kind {
                Kind::State => log.state = Some(payload.to_vec()),
                _ => log.entries.push((index, Bytes::copy_from_slice(payload))),
            }
        }
    }
    for log in reading.recovered.groups.values_mut() {
        // Entries that were copied forward come out of turn.
        log.entries.sort_by_key(|(index, _)| *index);
    }
    Ok(())
}

pub(super) fn corrupt(file: &Path, offset: u64, problem: &str) -> Error {
    Error::Corrupt(Corrupt { file: file.to_owned(), offset, problem: problem.to_owned() })
}

#[cfg(test)]
mod tests;
