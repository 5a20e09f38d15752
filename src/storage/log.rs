//! The durable log of a node: one file to append to and one sync for all its groups.
//!
//! Every write is waited for until [`SegmentLog::sync`] returns, so the log is built around it:
//! - All that has arrived is **one batch and one sync** (group commit).
//! - A segment is **preallocated with zeros**, a step at a time, and dropped segments are used
//!   again. A sync then finds nothing to write but the data: no new length, no new extents.
//! - Where each batch is synced it goes **past the page cache** (`O_DIRECT`), in whole blocks
//!   (`frame`): a sync then only has to empty the disk's own cache. A log is read again only after
//!   a crash, so it is of no use in memory.
//! - Room is made *before* a batch is written. A full disk is met there, with nothing half done:
//!   [`Error::Full`] leaves the log as it was.
//!
//! [`SegmentLog::collect`] drops the oldest segment once nothing in it counts. A group that wrote
//! little a long time ago would pin it for ever, so the few records that still count are copied to
//! the log's end; where there are many, the caller is told whose they are, and a snapshot of that
//! group sets the segment free. A dropped segment only changes its name: giving a large file's
//! blocks back takes the file system longer than ten syncs, so that is left to a thread that has
//! time ([`remove_dropped`]).
//!
//! How it is read again is in `recovery`, the bytes are in `segment` and `record`.

use super::directory::Identity;
use super::disk::{BLOCK, Disk, File, RealDisk, failed, no_room};
use super::frame::Frame;
use super::index::{Index, Place};
use super::record::{self, Kind, RECORD_HEADER, Records};
use super::recovery::{self, Recovered, Segment, corrupt};
use super::segment::{
    self, BATCH_BYTES_MAX, BATCH_BYTES_WANTED, BATCH_HEADER, Batch, END, FIRST_BATCH, Header,
};
use super::synced::{SyncedFile, SyncedTo};
use crate::error::{Error, Result};
use crate::ids::PartitionId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose log it is: another's is refused.
    pub owner: Identity,
    /// When a segment is full. One batch that is larger gets a larger segment.
    pub segment_bytes: u64,
    /// By how much a segment is preallocated at a time.
    pub step_bytes: u64,
    /// How many bytes of segments are kept though nothing needs them, for followers that fell
    /// behind. (The files' lengths, not what was written to them: restarts leave short segments.)
    pub retain_bytes: u64,
    /// Whether batches go past the page cache, where the file system has a way: cheaper where each
    /// is synced, dearer where many are written between two syncs.
    pub direct: bool,
    /// The newest segment that was written to, by what is remembered elsewhere; 0 if none was. A log
    /// that has lost it is refused.
    pub newest: u32,
    /// Where it is noted how far the log is synced, if anywhere: outside its folder.
    pub synced: Option<PathBuf>,
}

impl Options {
    /// What suits most machines: segments of 64 MiB, of which the last three are kept.
    pub fn new(owner: Identity) -> Options {
        let segment_bytes = 64 << 20;
        let retain_bytes = 3 * segment_bytes;
        let (step_bytes, direct) = (4 << 20, true);
        Options { owner, segment_bytes, step_bytes, retain_bytes, direct, newest: 0, synced: None }
    }
}

/// What a log takes and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many segments there are.
    pub segments: usize,
    /// Bytes of all their files.
    pub bytes: u64,
    /// Bytes in them that were ever written to: batches, needed or not.
    pub written: u64,
    /// Syncs since the log was opened, of data and of names.
    pub syncs: u64,
    /// Batches written since the log was opened.
    pub batches: u64,
    /// Bytes of batches written since the log was opened.
    pub appended: u64,
    /// Bytes of zeros written to preallocate.
    pub preallocated: u64,
    /// Bytes of records copied forward.
    pub copied: u64,
}

/// What a collection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Whether a segment was dropped: there may be more to drop.
    pub dropped: bool,
    /// How many records were copied to the log's end.
    pub copied: usize,
    /// What the dropped segment has become, unless it is used again: for [`remove_dropped`].
    pub left: Option<PathBuf>,
    /// The groups that keep the oldest segment from being dropped, each with how many records it
    /// needs of it: most first. A snapshot of the first of them helps.
    pub held_by: Vec<(PartitionId, usize)>,
}

/// The durable log of a node.
///
/// **Errors are final**, but for [`Error::Full`]: what could not be written or synced is in an
/// unknown state, so every later call fails too, and the node stops.
pub struct SegmentLog<D: Disk = RealDisk> {
    disk: D,
    dir: PathBuf,
    options: Options,
    /// All segments; the last one is written to.
    segments: BTreeMap<u32, Segment<D::File>>,
    /// The number of the last one.
    current: u32,
    /// How far the current segment is synced.
    synced: u64,
    /// Where that is noted.
    noted: Option<SyncedFile<D::File>>,
    /// Segments below this one are not needed.
    oldest: u32,
    /// The groups that keep the oldest segment, as long as nothing more of it is covered: looking
    /// through it again would come to the same.
    held_by: Option<Vec<(PartitionId, usize)>>,
    index: Index,
    /// The current segment once more, to be written to past the page cache.
    direct: Option<D::File>,
    /// The bytes of the batch being written.
    frame: Frame,
    /// Why nothing more is written.
    broken: Option<String>,
    usage: Usage,
}

/// The segment that is written to is looked through once this part of it is full.
const CURRENT_PART: u64 = 4;

/// A dropped segment, or one in the making: what the next segment is made of.
const SPARE: &str = "spare";

/// What a dropped segment that is not used again is called until it is removed.
const DROPPED: &str = ".dropped";

/// Removes a file that a log has [left](Collected::left). Nothing depends on it: what a power cut
/// brings back is removed when the log is opened.
pub fn remove_dropped<D: Disk>(disk: &D, left: &Path) -> Result<()> {
    disk.remove(left).map_err(failed("remove", left))
}

impl<D: Disk> SegmentLog<D> {
    /// Opens the log in `dir`, making both if there is none, and reads it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names file and byte of what was damaged; [`Error::Directory`] says whose
    /// log it is; [`Error::Full`] when there is no room for a new segment.
    pub fn open(disk: D, dir: &Path, options: Options) -> Result<(SegmentLog<D>, Recovered)> {
        assert!(options.segment_bytes <= BATCH_BYTES_MAX as u64, "a place in a segment is a u32");
        disk.make_dir(dir).map_err(failed("make", dir))?;
        for name in disk.list(dir).map_err(failed("list", dir))? {
            if name.ends_with(DROPPED) {
                remove_dropped(&disk, &dir.join(name))?;
            }
        }
        let opened = options.synced.as_ref().map(|path| SyncedFile::open(&disk, path));
        let (noted, synced) = opened.transpose()?.unzip();
        let reading = recovery::read(&disk, dir, &options, synced.flatten())?;
        let last = reading.segments.iter().next_back();
        let (current, previous_end) = last.map_or((0, 0), |(number, last)| (*number, last.end));
        let first = reading.segments.keys().next();
        let mut log = SegmentLog {
            disk,
            dir: dir.to_owned(),
            oldest: first.copied().unwrap_or(1),
            held_by: None,
            options,
            segments: reading.segments,
            current,
            synced: 0,
            noted,
            index: reading.index,
            direct: None,
            frame: Frame::default(),
            broken: None,
            usage: Usage::default(),
        };
        log.start_segment(previous_end)?;
        Ok((log, reading.recovered))
    }

    /// Appends the records: a batch, which will be read back whole or not at all, or several where
    /// they are many bytes. They are safe after the next [`SegmentLog::sync`].
    ///
    /// # Errors
    /// [`Error::Full`]: the records from some point on were not written; all may be tried again once
    /// there is room.
    pub fn write(&mut self, records: &Records) -> Result<()> {
        self.usable()?;
        records.runs(BATCH_BYTES_WANTED).try_for_each(|(body, count)| self.append(body, count))
    }

    /// Makes everything written so far survive a power cut.
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        let segment = &self.segments[&self.current];
        if self.synced == segment.end {
            return Ok(());
        }
        let end = segment.end;
        let outcome = self.file().sync_data();
        let outcome = outcome.map_err(|error| failed("sync", &self.current_path())(error));
        self.usage.syncs += 1;
        self.or_break(outcome)?;
        self.synced = end;
        let noted = self.noted.as_ref().map(|file| {
            let to = SyncedTo { segment: self.current, end };
            file.note(to)
        });
        self.or_break(noted.transpose()).map(drop)
    }

    /// The number of the segment that is written to. It is to be remembered before anything in the
    /// segment counts.
    pub fn newest(&self) -> u32 {
        self.current
    }

    /// Syncs, and vouches for what was synced: after a stop with this call a torn tail is damage.
    /// A full disk that has no room for the vouching takes nothing back.
    pub fn finish(&mut self) -> Result<()> {
        self.sync()?;
        self.append(&[], 0)?;
        self.sync()
    }

    /// Drops the oldest segment if nothing needs it and the log is longer than
    /// [`Options::retain_bytes`]. Records in it that still count are copied forward if they are few
    /// (a sixteenth of a segment at most). The segment that is written to is no exception once a
    /// part of it is full of what is not needed: a log at rest is short.
    ///
    /// One segment a call: writes wait for this too.
    pub fn collect(&mut self) -> Result<Collected> {
        self.usable()?;
        let mut collected = Collected::default();
        let Some((&number, oldest)) = self.segments.first_key_value() else { return Ok(collected) };
        let is_current = number == self.current;
        let is_short = oldest.end - FIRST_BATCH < self.options.segment_bytes / CURRENT_PART;
        if is_current && is_short || self.usage().bytes <= self.options.retain_bytes {
            return Ok(collected);
        }
        if let Some(holders) = &self.held_by {
            collected.held_by.clone_from(holders);
            return Ok(collected);
        }
        let Some(records) = self.still_needed(number)? else {
            collected.held_by = self.holders(number);
            self.held_by = Some(collected.held_by.clone());
            return Ok(collected);
        };
        if is_current {
            self.leave_current()?;
        }
        // The batch goes first: it says that the segment is not needed, so that a segment that is
        // missing for any other reason is noticed.
        self.oldest = number + 1;
        self.append(records.as_bytes(), records.len() as u32)?;
        self.sync()?;
        let outcome = self.drop_segment(number, !is_current);
        collected.left = self.or_break(outcome)?;
        collected.dropped = true;
        collected.copied = records.len();
        self.usage.copied += records.bytes() as u64;
        Ok(collected)
    }

    /// The index of the first entry of a group that can still be read: older ones went with their
    /// segments.
    pub fn first_index(&self, group: PartitionId) -> u64 {
        self.index.group(group).map_or(1, |log| log.first())
    }

    /// The index of the entry that a group will write next.
    pub fn next_index(&self, group: PartitionId) -> u64 {
        self.index.group(group).map_or(1, |log| log.next())
    }

    /// Reads a group's entries from `low` up to and without `high`, as far as they are there, for
    /// followers that need what has left memory. Stops after the entry that reaches `bytes_max`:
    /// there is at least one unless `low` is gone or not yet written.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an entry's checksum is wrong.
    pub fn read_entries(
        &self,
        group: PartitionId,
        low: u64,
        high: u64,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let Some(log) = self.index.group(group) else { return Ok(entries) };
        for index in low..high.min(log.next()) {
            let Some(place) = log.entry(index) else { break };
            if bytes >= bytes_max {
                break;
            }
            let file = self.open_segment(place.segment)?;
            let record = self.read_record(&file, place)?;
            bytes += record.len();
            entries.push((index, Bytes::from(record).slice(RECORD_HEADER..)));
        }
        Ok(entries)
    }

    /// What the log takes and has done.
    pub fn usage(&self) -> Usage {
        Usage {
            segments: self.segments.len(),
            bytes: self.segments.values().map(|segment| segment.length).sum(),
            written: self.segments.values().map(|segment| segment.end).sum(),
            ..self.usage
        }
    }

    fn usable(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Error::Io(
                format!("the log in {} is out of use", self.dir.display()),
                io::Error::other(why.clone()),
            )),
        }
    }

    /// Lets an outcome pass, and takes the log out of use if it is an error.
    fn or_break<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|error| self.broken = Some(error.to_string()))
    }

    /// Appends so many records as one batch.
    fn append(&mut self, body: &[u8], count: u32) -> Result<()> {
        let bytes = (BATCH_HEADER + body.len()) as u64;
        if bytes > BATCH_BYTES_MAX as u64 {
            let problem = format!("a record of {} bytes, {BATCH_BYTES_MAX} at most", body.len());
            let outcome = Err(io::Error::other(problem));
            return self.or_break(outcome.map_err(failed("write", &self.current_path())));
        }
        let end = self.segments[&self.current].end;
        if end + bytes > self.options.segment_bytes && end > FIRST_BATCH {
            self.sync()?;
            self.start_segment(end)?;
        }
        self.make_room(bytes + END as u64)?;

        let offset = self.segments[&self.current].end;
        let batch = Batch {
            segment: self.current,
            offset,
            count,
            synced: self.synced,
            oldest: self.oldest,
            body,
        };
        batch.encode(self.frame.begin(offset, bytes as usize + END));
        for record in record::records(body) {
            let Ok(record) = record else {
                unreachable!("records are read as they were written");
            };
            if matches!(record.kind, Kind::Covered | Kind::Reset) {
                self.held_by = None;
            }
            let offset = offset as u32 + (BATCH_HEADER + record.at) as u32;
            self.index.admit(&record, Place { segment: self.current, offset });
        }
        let outcome = self.write_frame(offset - offset % BLOCK as u64);
        let outcome = outcome.map_err(|error| no_room(&self.current_path(), bytes)(error));
        self.or_break(outcome)?;
        self.frame.shrink();
        self.current_mut().end += bytes;
        self.usage.batches += 1;
        self.usage.appended += bytes;
        Ok(())
    }

    /// Writes the frame, whose first block has this offset in the current segment.
    fn write_frame(&mut self, offset: u64) -> io::Result<()> {
        let blocks = self.frame.end(END);
        let file = open_file(&self.segments[&self.current]);
        past_cache(&mut self.direct, file, |file| file.write_at(blocks, offset))
    }

    fn current_path(&self) -> PathBuf {
        segment::path(&self.dir, self.current)
    }

    fn current_mut(&mut self) -> &mut Segment<D::File> {
        let Some(segment) = self.segments.get_mut(&self.current) else {
            unreachable!("the current segment is never dropped");
        };
        segment
    }

    /// Preallocates the current segment for `bytes` more.
    fn make_room(&mut self, bytes: u64) -> Result<()> {
        let Segment { end, length, .. } = &self.segments[&self.current];
        let (needed, length) = (end + bytes, *length);
        if needed <= length {
            return Ok(());
        }
        let to = self.preallocated_length(needed);
        let path = segment::path(&self.dir, self.current);
        let file = open_file(&self.segments[&self.current]);
        past_cache(&mut self.direct, file, |file| file.preallocate(length, to))
            .map_err(no_room(&path, to - length))?;
        self.current_mut().length = to;
        self.usage.preallocated += to - length;
        Ok(())
    }

    /// How long a file is made that must hold `needed` bytes.
    fn preallocated_length(&self, needed: u64) -> u64 {
        // In whole blocks, since no less is written.
        needed.next_multiple_of(self.options.step_bytes.max(1)).next_multiple_of(BLOCK as u64)
    }

    /// Starts the next segment; the current one is synced up to `previous_end`. It gets its number
    /// only once its header is safe: under a number there is always a whole segment.
    fn start_segment(&mut self, previous_end: u64) -> Result<()> {
        let number = self.current + 1;
        let Identity { cluster, node } = self.options.owner.clone();
        let header = Header { number, previous_end, node, cluster };
        let mut block = header.encode();
        block.resize(block.len() + END, 0);

        let spare = self.dir.join(SPARE);
        let names = self.disk.list(&self.dir).map_err(failed("list", &self.dir))?;
        let file = if names.iter().any(|name| name == SPARE) {
            self.disk.open(&spare)
        } else {
            self.disk.create(&spare)
        };
        let file = file.map_err(no_room(&spare, block.len() as u64))?;
        let length = file.length().map_err(failed("read", &spare))?;
        // A file that met a full disk may end anywhere.
        let to = self.preallocated_length(block.len() as u64).max(length);
        let to = to.next_multiple_of(BLOCK as u64);
        file.preallocate(length, to).map_err(no_room(&spare, to - length))?;
        file.write_at(&block, 0).map_err(no_room(&spare, block.len() as u64))?;

        let path = segment::path(&self.dir, number);
        let outcome = file.sync_data().map_err(failed("sync", &spare)).and_then(|()| {
            self.disk.rename(&spare, &path).map_err(failed("name", &path))?;
            self.disk.sync_dir(&self.dir).map_err(failed("sync", &self.dir))
        });
        self.usage.syncs += 2;
        self.usage.preallocated += to - length;
        self.or_break(outcome)?;
        self.direct = if self.options.direct { self.disk.open_direct(&path) } else { None };
        if let Some(before) = self.segments.get_mut(&self.current) {
            before.file = None;
        }
        self.segments.insert(number, Segment { file: Some(file), end: FIRST_BATCH, length: to });
        self.current = number;
        self.synced = FIRST_BATCH;
        Ok(())
    }

    /// Starts a segment that takes no more room than it needs.
    fn leave_current(&mut self) -> Result<()> {
        self.sync()?;
        let spare = self.dir.join(SPARE);
        let names = self.disk.list(&self.dir).map_err(failed("list", &self.dir))?;
        if names.iter().any(|name| name == SPARE) {
            self.disk.remove(&spare).map_err(failed("remove", &spare))?;
        }
        let end = self.segments[&self.current].end;
        self.start_segment(end)
    }

    /// The records of a segment that still count, to be written again; `None` if they are too many.
    fn still_needed(&self, number: u32) -> Result<Option<Records>> {
        let mut needed: Vec<(Place, PartitionId)> =
            self.index.needed_in(number).map(|(group, place)| (place, group)).collect();
        let bytes_max = (self.options.segment_bytes / 16) as usize;
        if needed.len() * RECORD_HEADER > bytes_max {
            return Ok(None);
        }
        needed.sort_unstable();
        let mut records = Records::default();
        let file = self.open_segment(number)?;
        for (place, group) in needed {
            let bytes = self.read_record(&file, place)?;
            let Some(record) = record::read(&bytes) else {
                unreachable!("a record that was read is whole");
            };
            debug_assert_eq!(record.group, group);
            records.keep(&record);
            if records.bytes() > bytes_max {
                return Ok(None);
            }
        }
        Ok(Some(records))
    }

    /// The groups that need entries of a segment, most first.
    fn holders(&self, number: u32) -> Vec<(PartitionId, usize)> {
        let mut counts: BTreeMap<PartitionId, usize> = BTreeMap::new();
        for (group, _) in self.index.needed_in(number) {
            *counts.entry(group).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(group, count)| (std::cmp::Reverse(*count), *group));
        counts
    }

    /// Drops the oldest segment: it becomes the spare if one is to be kept, there is none and it is
    /// no larger than others. One at a time and synced, so that what is left is always a run of numbers.
    fn drop_segment(&mut self, number: u32, keep_spare: bool) -> Result<Option<PathBuf>> {
        let path = segment::path(&self.dir, number);
        let spare = self.dir.join(SPARE);
        let names = self.disk.list(&self.dir).map_err(failed("list", &self.dir))?;
        let length = self.segments.remove(&number).map_or(0, |segment| segment.length);
        let usual = length <= self.preallocated_length(self.options.segment_bytes + END as u64);
        let is_spare = keep_spare && usual && !names.iter().any(|name| name == SPARE);
        let to = if is_spare { spare } else { path.with_extension(&DROPPED[1..]) };
        self.disk.rename(&path, &to).map_err(failed("rename", &path))?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync", &self.dir))?;
        self.usage.syncs += 1;
        self.index.forget(number);
        Ok((!is_spare).then_some(to))
    }

    /// The file of the current segment.
    fn file(&self) -> &D::File {
        open_file(&self.segments[&self.current])
    }

    /// Opens a segment to read in it.
    fn open_segment(&self, number: u32) -> Result<D::File> {
        let path = segment::path(&self.dir, number);
        self.disk.open(&path).map_err(failed("open", &path))
    }

    /// The bytes of the record at `place`, header included, its checksum verified.
    fn read_record(&self, file: &D::File, place: Place) -> Result<Vec<u8>> {
        let path = segment::path(&self.dir, place.segment);
        let offset = u64::from(place.offset);
        // Most records are small: one read gets header and payload.
        let mut bytes = vec![0; READ_AHEAD];
        let read = file.read_at(&mut bytes, offset).map_err(failed("read", &path))?;
        bytes.truncate(read);
        let length = RECORD_HEADER + record::payload_length(&bytes).unwrap_or_default();
        if length > READ_AHEAD {
            let end = offset + length as u64;
            bytes = file.read_range(offset, end).map_err(failed("read", &path))?;
        }
        bytes.truncate(length);
        match record::read(&bytes) {
            Some(_) => Ok(bytes),
            None => Err(corrupt(&path, offset, "the checksum of a record is wrong")),
        }
    }
}

/// The file of a segment that is written to.
fn open_file<F>(segment: &Segment<F>) -> &F {
    let Some(file) = &segment.file else { unreachable!("the current segment is open") };
    file
}

/// How much is read at once where a record starts.
const READ_AHEAD: usize = 1024;

/// Writes past the page cache, if there is a way: a disk with larger blocks, or a file system that
/// thinks better of it, is written to through the cache for the rest of the segment.
fn past_cache<F: File>(
    direct: &mut Option<F>,
    cached: &F,
    write: impl Fn(&F) -> io::Result<()>,
) -> io::Result<()> {
    if let Some(file) = direct {
        match write(file) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => *direct = None,
            outcome => return outcome,
        }
    }
    write(cached)
}

#[cfg(test)]
mod tests;
