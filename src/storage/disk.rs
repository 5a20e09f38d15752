//! What storage asks of a disk, and the real one.
//!
//! The rules that everything above is built on, which are those of POSIX and of no file system in
//! particular:
//! - What was written is safe after [`File::sync_data`], and only then. Before it, every block may
//!   be old, new, or torn somewhere between, each by itself.
//! - A name is safe after [`Disk::sync_dir`]: syncing a file does not save its name.
//! - Bytes that are written again with the values they had do not change, however the write is cut.
//!   (Blocks of synced records are written again when the next batch starts in the same block.)
//! - A failed sync says nothing about any later one: the kernel may have dropped the pages (see
//!   Rebello et al. 2020, "Can Applications Recover from fsync Failures?"). It is never retried.

use crate::error::{Error, Full};
use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Bytes of a block: what a disk takes past the page cache, and no less. Most disks' are smaller.
pub const BLOCK: usize = 4096;

/// Zeros are written this many bytes at a time.
static ZEROS: Blocks = Blocks([0; 256 << 10]);

/// Blocks where a block may be in memory.
#[repr(align(4096))]
struct Blocks([u8; 256 << 10]);

/// A place for files.
pub trait Disk {
    /// An open file.
    type File: File;
    /// A lock that is held until it is dropped or the process ends, however it ends.
    type Lock;

    /// Makes an empty file, or empties the one that is there, and opens it.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens a file for writing past the kernel's page cache, if the file system has a way: blocks
    /// of [`BLOCK`] bytes, at multiples of that, from memory that starts at one.
    fn open_direct(&self, _: &Path) -> Option<Self::File> {
        None
    }
    /// Gives a file another name, in place of any file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it; one that is there is left alone.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in a directory survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock that a file stands for, making the file if needed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Self::Lock>;
}

/// An open file. Reads and writes say where; there is no position.
pub trait File {
    /// Reads what is there at `offset`: fewer bytes than asked for only at the file's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`. After an error any part of them may be there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all that was written survive a power cut. A failure is final.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Grows the file with zeros, so that writing there later allocates nothing and cannot find
    /// the disk full. (Written zeros rather than `fallocate`: the first write into an unwritten
    /// extent changes the file's metadata, which a sync must then write too.)
    fn preallocate(&self, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let step = ZEROS.0.len().min((to - at) as usize);
            self.write_at(&ZEROS.0[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    /// The bytes from `from` to `to`, or as far as the file goes.
    fn read_range(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let wanted = to.min(self.length()?).saturating_sub(from);
        let mut bytes = vec![0; wanted as usize];
        let read = self.read_at(&mut bytes, from)?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

/// How long it is tried to open a file while the process, or the machine, has too many open: others
/// close theirs, and a node must not end for a moment's want.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is tried.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Opens something, and tries again while there is no file descriptor for it.
fn patiently<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let tries = PATIENCE.as_millis() / TRY_EVERY.as_millis();
    for number in 0..tries {
        match open() {
            Err(error) if is_exhausted(&error) => {
                if number == 0 {
                    ::log::warn!(target: "disk", "waiting for a file descriptor: {error}");
                }
                thread::sleep(TRY_EVERY);
            }
            opened => return opened,
        }
    }
    open()
}

/// Whether an error says that the process or the machine has no file descriptor left.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    type File = fs::File;
    type Lock = fs::File;

    fn create(&self, path: &Path) -> io::Result<fs::File> {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(true);
        patiently(|| options.open(path))
    }

    fn open(&self, path: &Path) -> io::Result<fs::File> {
        patiently(|| fs::File::options().read(true).write(true).open(path))
    }

    #[cfg(target_os = "linux")]
    fn open_direct(&self, path: &Path) -> Option<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = fs::File::options();
        options.write(true).custom_flags(libc::O_DIRECT);
        let opened = patiently(|| options.open(path));
        // It was opened just now without the flag: what is refused is the flag.
        opened.ok()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in patiently(|| fs::read_dir(dir))? {
            // Our names are text.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        patiently(|| fs::File::open(dir))?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<fs::File> {
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(false);
        let file = patiently(|| options.open(path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match FileExt::read_at(self, &mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// The error for something that could not be done to a file: `cannot read FILE: ...`.
pub(super) fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let tried = format!("cannot {what} {}", path.display());
    move |cause| Error::Io(tried, cause)
}

/// The error for a file that could not grow by `needed` bytes.
pub(super) fn no_room(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Error {
    let file = path.to_owned();
    move |cause| match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Full(Full { file, needed, cause })
        }
        _ => Error::Io(format!("cannot write {}", file.display()), cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_want_of_descriptors_is_waited_out() {
        for exhausted in [libc::EMFILE, libc::ENFILE] {
            let tries = Cell::new(0);
            let opened = patiently(|| {
                tries.set(tries.get() + 1);
                if tries.get() < 3 { Err(io::Error::from_raw_os_error(exhausted)) } else { Ok(7) }
            });
            assert_eq!((opened.ok(), tries.get()), (Some(7), 3));
        }
        let refused = patiently(|| Err::<(), _>(io::ErrorKind::NotFound.into()));
        assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }
}
