//! How far the log was synced last: a few bytes beside the log's folder.
//!
//! Damage to the last batch that was synced looks like a write that the power cut off, unless
//! something else remembers that it was synced. So each sync is followed by a note of where it ended.
//! The note itself is not synced, for the next write would wait for that: it is exact where the
//! process alone died, and where the machine went down it is as old as the kernel let it become. An
//! old note proves less, and nothing wrong.

use super::disk::{Disk, File, failed, no_room};
use super::record::array;
use crate::error::Result;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"QUORSYN\n";
const BYTES: usize = 24;

/// A place in the log up to which all of it was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyncedTo {
    pub(super) segment: u32,
    pub(super) end: u64,
}

/// The file.
pub(super) struct SyncedFile<F> {
    file: F,
    path: PathBuf,
}

impl SyncedTo {
    fn encode(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.end.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The place, unless the bytes are torn or were never written.
    fn decode(bytes: &[u8]) -> Option<SyncedTo> {
        let whole = bytes.len() == BYTES
            && bytes[..8] == MAGIC
            && crc32fast::hash(&bytes[..20]) == u32::from_le_bytes(array(bytes, 20));
        whole.then(|| SyncedTo {
            segment: u32::from_le_bytes(array(bytes, 8)),
            end: u64::from_le_bytes(array(bytes, 12)),
        })
    }
}

impl<F: File> SyncedFile<F> {
    /// Opens the file, making it if there is none, and reads what it says.
    pub(super) fn open<D: Disk<File = F>>(
        disk: &D,
        path: &Path,
    ) -> Result<(SyncedFile<F>, Option<SyncedTo>)> {
        // One that cannot be opened counts as missing.
        let file = match disk.open(path) {
            Ok(file) => file,
            Err(_) => disk.create(path).map_err(no_room(path, BYTES as u64))?,
        };
        let bytes = file.read_range(0, BYTES as u64).map_err(failed("read", path))?;
        Ok((SyncedFile { file, path: path.to_owned() }, SyncedTo::decode(&bytes)))
    }

    /// Notes how far the log is synced.
    pub(super) fn note(&self, to: SyncedTo) -> Result<()> {
        self.file.write_at(&to.encode(), 0).map_err(no_room(&self.path, BYTES as u64))
    }
}
