//! Snapshots: a partition up to an index of its log, one file each.
//!
//! ```text
//! header: magic | crc | format | partition | length of meta | index | meta
//! chunk:  length | crc | bytes          as many as there are
//! footer: 0 | crc | chunks | crc of everything before the footer | magic
//! ```
//! What the chunks and `meta` mean is the core's business. A snapshot is written aside, synced,
//! given its name, and its name synced: a file under its name is whole, and what is found aside
//! when a node starts is rubbish. The log forgets what a snapshot covers only after that.
//!
//! The same bytes go to a follower that is too far behind: [`SnapshotReader::read_at`] at any
//! offset, so that a transfer goes on where it was cut; [`SnapshotReceiver`] believes nothing
//! before all of it is there and verified.

use super::disk::{Disk, File, RealDisk, failed, no_room};
use super::record::array;
use super::recovery::corrupt;
use crate::error::{Error, Result};
use crate::ids::PartitionId;
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// The most bytes of one chunk.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;

/// While a snapshot is written it is synced each time this much has been added. Its pages stand
/// before the log's in the disk's queue, and so much is what a sync of the log may have to wait for.
const SYNC_EVERY: u64 = 1 << 20;

const HEADER: usize = 32;
const CHUNK_HEADER: usize = 8;
const FOOTER: usize = 32;
const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"QUORSNP\n";
const END_MAGIC: [u8; 8] = *b"\nSNPEND\n";

/// A snapshot that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose.
    pub partition: PartitionId,
    /// The last entry of the partition's log that it holds.
    pub index: u64,
    /// The file's length.
    pub bytes: u64,
}

/// The snapshots of a node.
#[derive(Clone, Debug)]
pub struct Snapshots<D: Disk = RealDisk> {
    disk: D,
    dir: PathBuf,
}

impl<D: Disk + Clone> Snapshots<D> {
    /// Opens the directory, makes it if there is none, and removes what was never finished.
    pub fn open(disk: D, dir: &Path) -> Result<Snapshots<D>> {
        disk.make_dir(dir).map_err(no_room(dir, 0))?;
        for name in disk.list(dir).map_err(failed("list", dir))? {
            if name.ends_with(ASIDE) {
                let path = dir.join(name);
                disk.remove(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(Snapshots { disk, dir: dir.to_owned() })
    }

    /// The newest snapshot of a partition.
    pub fn latest(&self, partition: PartitionId) -> Result<Option<Snapshot>> {
        let all = self.all()?;
        Ok(all.into_iter().rfind(|snapshot| snapshot.partition == partition))
    }

    /// All snapshots by partition, then from old to new.
    pub fn all(&self) -> Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        for name in self.disk.list(&self.dir).map_err(failed("list", &self.dir))? {
            let Some((partition, index)) = parse_name(&name) else { continue };
            let path = self.dir.join(name);
            let bytes = self.disk.open(&path).and_then(|file| file.length());
            let bytes = bytes.map_err(failed("open", &path))?;
            all.push(Snapshot { partition, index, bytes });
        }
        all.sort_by_key(|snapshot| (snapshot.partition, snapshot.index));
        Ok(all)
    }

    /// Starts a snapshot of a partition up to `index`. `meta` is the core's: what a reader needs
    /// before the first chunk.
    pub fn create(
        &self,
        partition: PartitionId,
        index: u64,
        meta: &[u8],
    ) -> Result<SnapshotWriter<D>> {
        assert!(meta.len() <= CHUNK_BYTES_MAX, "what stands before the chunks is small");
        let mut writer = SnapshotWriter { aside: self.aside(partition, index)?, chunks: 0 };
        let mut header = Vec::with_capacity(HEADER + meta.len());
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&FORMAT.to_le_bytes());
        header.extend_from_slice(&u32::from(partition.0).to_le_bytes());
        header.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        header.extend_from_slice(&index.to_le_bytes());
        header.extend_from_slice(meta);
        let crc = crc32fast::hash(&header[12..]);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
        writer.aside.append(&header)?;
        Ok(writer)
    }

    /// Starts to take in a snapshot from elsewhere.
    pub fn receive(&self, partition: PartitionId, index: u64) -> Result<SnapshotReceiver<D>> {
        Ok(SnapshotReceiver { aside: self.aside(partition, index)? })
    }

    /// Opens a snapshot for reading.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when its header or footer is damaged; a chunk is verified when it is
    /// read.
    pub fn read(&self, snapshot: &Snapshot) -> Result<SnapshotReader<D>> {
        let path = self.dir.join(name(snapshot.partition, snapshot.index));
        let reader = SnapshotReader::open(&self.disk, &path)?;
        reader.must_be(snapshot.partition, snapshot.index)?;
        Ok(reader)
    }

    /// Removes the snapshots of a partition that are older than `index`. A removal that a power cut
    /// undoes does no harm.
    pub fn remove_older(&self, partition: PartitionId, index: u64) -> Result<usize> {
        let mut all = self.all()?;
        all.retain(|snapshot| snapshot.partition == partition && snapshot.index < index);
        for snapshot in &all {
            let path = self.dir.join(name(partition, snapshot.index));
            self.disk.remove(&path).map_err(failed("remove", &path))?;
        }
        Ok(all.len())
    }

    /// Removes one snapshot.
    pub fn remove(&self, snapshot: &Snapshot) -> Result<()> {
        let path = self.dir.join(name(snapshot.partition, snapshot.index));
        self.disk.remove(&path).map_err(failed("remove", &path))
    }

    fn aside(&self, partition: PartitionId, index: u64) -> Result<Aside<D>> {
        let place = self.dir.join(name(partition, index));
        let path = self.dir.join(name(partition, index) + ASIDE);
        let file = self.disk.create(&path).map_err(no_room(&path, 0))?;
        Ok(Aside {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            file,
            path,
            place,
            snapshot: Snapshot { partition, index, bytes: 0 },
            crc: crc32fast::Hasher::new(),
            synced: 0,
        })
    }
}

/// What a file is called until it is finished.
const ASIDE: &str = ".part";

fn name(partition: PartitionId, index: u64) -> String {
    format!("{:05}-{index:020}.snapshot", partition.0)
}

fn parse_name(found: &str) -> Option<(PartitionId, u64)> {
    let (partition, index) = found.strip_suffix(".snapshot")?.split_once('-')?;
    let (partition, index) = (PartitionId(partition.parse().ok()?), index.parse().ok()?);
    (found == name(partition, index)).then_some((partition, index))
}

/// A file that has not got its name yet.
struct Aside<D: Disk> {
    disk: D,
    dir: PathBuf,
    file: D::File,
    path: PathBuf,
    place: PathBuf,
    snapshot: Snapshot,
    crc: crc32fast::Hasher,
    synced: u64,
}

impl<D: Disk> Aside<D> {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.snapshot.bytes;
        self.file.write_at(bytes, at).map_err(no_room(&self.path, bytes.len() as u64))?;
        self.crc.update(bytes);
        self.snapshot.bytes += bytes.len() as u64;
        if self.snapshot.bytes >= self.synced + SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.synced = self.snapshot.bytes;
        self.file.sync_data().map_err(failed("sync", &self.path))
    }

    fn put_in_place(mut self) -> Result<Snapshot> {
        self.sync()?;
        self.name()
    }

    /// Gives a synced file its name.
    fn name(self) -> Result<Snapshot> {
        self.disk.rename(&self.path, &self.place).map_err(failed("name", &self.place))?;
        self.disk.sync_dir(&self.dir).map_err(failed("sync", &self.dir))?;
        Ok(self.snapshot)
    }

    fn abandon(self) -> Result<()> {
        self.disk.remove(&self.path).map_err(failed("remove", &self.path))
    }
}

/// A snapshot that is being written. It counts for nothing before [`SnapshotWriter::finish`].
pub struct SnapshotWriter<D: Disk = RealDisk> {
    aside: Aside<D>,
    chunks: u64,
}

impl<D: Disk> SnapshotWriter<D> {
    /// Adds a chunk: not empty, at most [`CHUNK_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`Error::Full`]. A snapshot that failed is abandoned; nothing depends on it.
    pub fn append(&mut self, chunk: &[u8]) -> Result<()> {
        assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES_MAX, "chunks are cut to size");
        let mut header = [0; CHUNK_HEADER];
        header[..4].copy_from_slice(&(chunk.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&chunk_crc(self.chunks, chunk).to_le_bytes());
        self.aside.append(&header)?;
        self.aside.append(chunk)?;
        self.chunks += 1;
        Ok(())
    }

    /// How many bytes the file has so far.
    pub fn bytes(&self) -> u64 {
        self.aside.snapshot.bytes
    }

    /// Makes it a snapshot that survives a power cut.
    pub fn finish(self) -> Result<Snapshot> {
        self.seal()?.name()
    }

    /// Writes the end and syncs the file: what is left to do is to name it.
    pub fn seal(mut self) -> Result<Sealed<D>> {
        let whole = self.aside.crc.clone().finalize();
        let mut footer = [0; FOOTER];
        footer[8..16].copy_from_slice(&self.chunks.to_le_bytes());
        footer[16..20].copy_from_slice(&whole.to_le_bytes());
        footer[24..].copy_from_slice(&END_MAGIC);
        let crc = crc32fast::hash(&footer[8..]);
        footer[4..8].copy_from_slice(&crc.to_le_bytes());
        self.aside.append(&footer)?;
        self.aside.sync()?;
        Ok(Sealed(self.aside))
    }

    /// Gives it up.
    pub fn abandon(self) -> Result<()> {
        self.aside.abandon()
    }
}

/// A snapshot that is whole and durable and has no name yet: what a crash leaves of it is removed.
pub struct Sealed<D: Disk = RealDisk>(Aside<D>);

impl<D: Disk> Sealed<D> {
    /// Makes it a snapshot that survives a power cut.
    pub fn name(self) -> Result<Snapshot> {
        self.0.name()
    }
}

/// A chunk's checksum covers its number, so that chunks that change places are noticed.
fn chunk_crc(number: u64, chunk: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(chunk);
    crc.finalize()
}

/// A snapshot that comes from another node, in pieces.
pub struct SnapshotReceiver<D: Disk = RealDisk> {
    aside: Aside<D>,
}

impl<D: Disk + Clone> SnapshotReceiver<D> {
    /// How much has arrived: where the next piece must start.
    pub fn offset(&self) -> u64 {
        self.aside.snapshot.bytes
    }

    /// Takes a piece that starts at `offset`. One that does not start at
    /// [`SnapshotReceiver::offset`] (a repetition, or after a loss) is left alone, and the answer is
    /// `false`.
    pub fn append(&mut self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let fits = offset == self.offset();
        if fits {
            self.aside.append(bytes)?;
        }
        Ok(fits)
    }

    /// All has arrived: verifies it and makes it a snapshot that survives a power cut.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not what it should be. It is removed then, to be sent again.
    pub fn finish(self) -> Result<Snapshot> {
        let Snapshot { partition, index, .. } = self.aside.snapshot;
        let verdict = SnapshotReader::open(&self.aside.disk, &self.aside.path)
            .and_then(|reader| reader.must_be(partition, index).and_then(|()| reader.verify()));
        match verdict {
            Ok(()) => self.aside.put_in_place(),
            Err(error) => {
                // What cannot be removed now is removed at the next start.
                let _ = self.aside.abandon();
                Err(error)
            }
        }
    }

    /// Gives it up.
    pub fn abandon(self) -> Result<()> {
        self.aside.abandon()
    }
}

/// A snapshot that is being read.
pub struct SnapshotReader<D: Disk = RealDisk> {
    file: D::File,
    path: PathBuf,
    snapshot: Snapshot,
    meta: Bytes,
    chunks: u64,
    /// The checksum of everything before the footer.
    whole: u32,
    /// Where the next chunk starts, and its number.
    next: (u64, u64),
}

impl<D: Disk> SnapshotReader<D> {
    fn open(disk: &D, path: &Path) -> Result<SnapshotReader<D>> {
        let file = disk.open(path).map_err(failed("open", path))?;
        let bytes = file.length().map_err(failed("read", path))?;
        let read = |from, to| file.read_range(from, to).map_err(failed("read", path));

        let header = read(0, HEADER as u64)?;
        if header.len() < HEADER || header[..8] != MAGIC {
            return Err(corrupt(path, 0, "it does not start as a snapshot does"));
        }
        let meta_length = u32::from_le_bytes(array(&header, 20)) as usize;
        let first = (HEADER + meta_length.min(CHUNK_BYTES_MAX)) as u64;
        let meta = Bytes::from(read(HEADER as u64, first)?);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[12..]);
        crc.update(&meta);
        if crc.finalize() != u32::from_le_bytes(array(&header, 8)) {
            return Err(corrupt(path, 0, "the checksum of its header is wrong"));
        }
        let format = u32::from_le_bytes(array(&header, 12));
        if format != FORMAT {
            let problem = format!("{} is of format {format}, which is not known", path.display());
            return Err(Error::Directory(problem));
        }
        let Ok(partition) = u16::try_from(u32::from_le_bytes(array(&header, 16))) else {
            return Err(corrupt(path, 16, "there is no such partition"));
        };

        let end = bytes.saturating_sub(FOOTER as u64);
        let footer = read(end, bytes)?;
        let whole_footer = end >= first
            && footer.len() == FOOTER
            && footer[24..] == END_MAGIC
            && footer[..4] == [0; 4]
            && crc32fast::hash(&footer[8..]) == u32::from_le_bytes(array(&footer, 4));
        if !whole_footer {
            return Err(corrupt(path, end, "it does not end as a snapshot does"));
        }
        let index = u64::from_le_bytes(array(&header, 24));
        Ok(SnapshotReader {
            file,
            path: path.to_owned(),
            snapshot: Snapshot { partition: PartitionId(partition), index, bytes },
            meta,
            chunks: u64::from_le_bytes(array(&footer, 8)),
            whole: u32::from_le_bytes(array(&footer, 16)),
            next: (first, 0),
        })
    }

    fn must_be(&self, partition: PartitionId, index: u64) -> Result<()> {
        let found = &self.snapshot;
        if (found.partition, found.index) == (partition, index) {
            return Ok(());
        }
        let (partition, index) = (found.partition, found.index);
        let problem = format!("it is of partition {partition} up to {index}, by its header");
        Err(corrupt(&self.path, 16, &problem))
    }

    /// What it is a snapshot of.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// What the core put before the chunks.
    pub fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// The next chunk, verified; `None` after the last one.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let (at, number) = self.next;
        if number == self.chunks {
            return match at == self.end() {
                true => Ok(None),
                false => Err(corrupt(&self.path, at, "there is more than there should be")),
            };
        }
        let wrong = |problem| corrupt(&self.path, at, problem);
        let header = self.range(at, at + CHUNK_HEADER as u64)?;
        if header.len() < CHUNK_HEADER {
            return Err(wrong("a chunk is missing"));
        }
        let length = u32::from_le_bytes(array(&header, 0)) as usize;
        if length == 0 || length > CHUNK_BYTES_MAX {
            return Err(wrong("a chunk's length makes no sense"));
        }
        let from = at + CHUNK_HEADER as u64;
        let chunk = self.range(from, from + length as u64)?;
        let crc = u32::from_le_bytes(array(&header, 4));
        if chunk.len() < length || chunk_crc(number, &chunk) != crc {
            return Err(wrong("the checksum of a chunk is wrong"));
        }
        self.next = (from + length as u64, number + 1);
        Ok(Some(chunk))
    }

    /// What the core found wrong in a chunk that its checksum vouches for: an error that names
    /// the file, and where its next chunk would begin.
    pub fn damaged(&self, problem: &str) -> Error {
        corrupt(&self.path, self.next.0, problem)
    }

    /// The file's bytes from `offset` on, at most `length`: to be sent elsewhere as they are.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let end = self.snapshot.bytes.min(offset.saturating_add(length as u64));
        self.file.read_range(offset, end).map_err(failed("read", &self.path))
    }

    /// Reads all of it and compares with the checksum.
    pub fn verify(&self) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        while at < self.end() {
            let bytes = self.range(at, at + (1 << 20))?;
            if bytes.is_empty() {
                break;
            }
            crc.update(&bytes);
            at += bytes.len() as u64;
        }
        if at == self.end() && crc.finalize() == self.whole {
            return Ok(());
        }
        Err(corrupt(&self.path, 0, "the checksum of the whole file is wrong"))
    }

    /// Where the footer starts.
    fn end(&self) -> u64 {
        self.snapshot.bytes - FOOTER as u64
    }

    /// Bytes before the footer.
    fn range(&self, from: u64, to: u64) -> Result<Vec<u8>> {
        self.file.read_range(from, to.min(self.end())).map_err(failed("read", &self.path))
    }
}

#[cfg(test)]
mod tests;
