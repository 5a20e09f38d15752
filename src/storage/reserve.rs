//! Room that is set aside while there is some: a file that holds nothing. A node that finds its disk
//! full when it starts gives it up, and starts.

use super::disk::{Disk, File, failed, no_room};
use crate::error::Result;
use std::path::Path;

/// What a start takes: the first step of a segment, and the directory's own files.
pub const RESERVE_BYTES: u64 = 6 << 20;

/// The file's name in the node's directory.
const NAME: &str = "reserve";

/// Sets the room aside, unless it is.
///
/// # Errors
/// [`Error::Full`](crate::error::Error::Full) when there is none; nothing is taken then.
pub fn keep<D: Disk>(disk: &D, dir: &Path) -> Result<()> {
    let path = dir.join(NAME);
    let there = disk.open(&path).and_then(|file| file.length()).unwrap_or(0);
    if there >= RESERVE_BYTES {
        return Ok(());
    }
    let file = disk.create(&path).map_err(no_room(&path, RESERVE_BYTES))?;
    if let Err(error) = file.preallocate(0, RESERVE_BYTES) {
        drop(file);
        disk.remove(&path).map_err(failed("remove", &path))?;
        return Err(no_room(&path, RESERVE_BYTES)(error));
    }
    Ok(())
}

/// Gives the room up. Tells whether there was any.
pub fn give_up<D: Disk>(disk: &D, dir: &Path) -> bool {
    disk.remove(&dir.join(NAME)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyDisk;

    #[test]
    fn room_is_there_when_there_is_none() {
        let (disk, dir) = (FaultyDisk::new(1), Path::new("/data"));
        disk.make_dir(dir).unwrap();
        keep(&disk, dir).unwrap();
        disk.limit(disk.bytes());
        let file = disk.create(&dir.join("more")).unwrap();
        assert!(file.preallocate(0, 1000).is_err(), "the disk is full");
        assert!(give_up(&disk, dir));
        file.preallocate(0, RESERVE_BYTES).unwrap();
        assert!(!give_up(&disk, dir), "it is given up once");

        // What does not fit is not taken by half.
        disk.limit(disk.bytes() + RESERVE_BYTES - 1);
        let before = disk.bytes();
        assert!(keep(&disk, dir).is_err());
        assert_eq!(disk.bytes(), before);
    }
}
