//! Reading an image, a block at a time: what is in memory is one block.

use crate::store::image::{IMAGE_BLOCK_BYTES, IMAGE_PREFIX_BYTES, ImageReader};
use crate::store::pages::PagedItem;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes that are read from the disk at a time.
const READ_BYTES: usize = 256 << 10;

/// What an image was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) bytes: u64,
    pub(super) keys: u64,
    pub(super) crc32: u32,
}

/// An image that is read.
pub(super) struct ImageFile {
    path: PathBuf,
    file: BufReader<File>,
    image: ImageReader,
    /// Bytes that are not read yet.
    left: u64,
    bytes: u64,
    checksum: crc32fast::Hasher,
    content: Vec<u8>,
}

impl ImageFile {
    /// Opens an image.
    pub(super) fn open(path: &Path) -> Result<ImageFile, String> {
        let problem = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(problem)?;
        let bytes = file.metadata().map_err(problem)?.len();
        let mut reader = ImageFile {
            path: path.to_owned(),
            file: BufReader::with_capacity(READ_BYTES, file),
            image: ImageReader::default(),
            left: bytes,
            bytes,
            checksum: crc32fast::Hasher::new(),
            content: Vec::new(),
        };
        let prefix = reader.read::<IMAGE_PREFIX_BYTES>()?;
        reader.image = ImageReader::read(prefix).map_err(|why| reader.damaged(&why))?;
        Ok(reader)
    }

    fn damaged(&self, why: &str) -> String {
        format!("{} is damaged: {why}", self.path.display())
    }

    /// Fills `bytes` with what comes next.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(self.damaged("it breaks off"));
        };
        let read = self.file.read_exact(bytes);
        read.map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.left = left;
        self.checksum.update(bytes);
        Ok(())
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the next block and passes its items on; false at the end of the file.
    pub(super) fn next(&mut self, put: &mut dyn FnMut(PagedItem<'_>)) -> Result<bool, String> {
        if self.left == 0 {
            return Ok(false);
        }
        let head = self.read::<IMAGE_BLOCK_BYTES>()?;
        let length = ImageReader::content_bytes(head).map_err(|why| self.damaged(&why))?;
        // A length that is damaged takes no memory.
        if length as u64 > self.left {
            return Err(self.damaged("it breaks off"));
        }
        let mut content = std::mem::take(&mut self.content);
        content.resize(length, 0);
        self.fill(&mut content)?;
        let taken = self.image.take(head, &content, put);
        self.content = content;
        taken.map_err(|why| self.damaged(&why))?;
        Ok(true)
    }

    /// What the image holds, once all of it was read.
    pub(super) fn finish(self) -> Result<Found, String> {
        let ImageFile { path, image, bytes, checksum, .. } = self;
        let keys = image.finish().map_err(|why| format!("{} is damaged: {why}", path.display()))?;
        Ok(Found { bytes, keys, crc32: checksum.finalize() })
    }
}

/// Reads a whole image, for what it holds.
pub(super) fn inspect(path: &Path) -> Result<Found, String> {
    let mut reader = ImageFile::open(path)?;
    while reader.next(&mut |_| ())? {}
    reader.finish()
}
