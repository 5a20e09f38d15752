//! An image: the items of a partition as a stream of bytes, to leave the cluster in a backup.
//!
//! ```text
//! | "QRIM" | version | items, pages | .. | end |      blocks of pages
//! ```
//!
//! It has no head and no transactions: a restore puts the items back by ordinary writes, wherever they
//! belong there. Images of version 1 are read too.

use super::pages::{
    BLOCK_BYTES, BLOCK_BYTES_MAX, BlockKind, PagedItem, PagesReader, checksum, read_value,
};

const MAGIC: [u8; 4] = *b"QRIM";
const VERSION: u8 = 2;

/// Bytes before the first block.
pub const IMAGE_PREFIX_BYTES: usize = 5;
/// Bytes of a block before its content.
pub const IMAGE_BLOCK_BYTES: usize = BLOCK_BYTES;

/// Begins an image.
pub(super) fn put_image_prefix(out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
}

/// What is known of an image while it is read, block by block. Errors say what is wrong with it.
#[derive(Debug, Default)]
pub struct ImageReader {
    pages: PagesReader,
    items: u64,
    ended: bool,
}

impl ImageReader {
    /// Begins to read an image, by its prefix.
    ///
    /// # Errors
    /// When it is of something else, or of a version that is not known.
    pub fn read(prefix: [u8; IMAGE_PREFIX_BYTES]) -> Result<ImageReader, String> {
        match prefix.split_first_chunk() {
            Some((&MAGIC, &[version @ (1 | VERSION)])) => {
                let pages = PagesReader::of_version(version == 1);
                Ok(ImageReader { pages, ..ImageReader::default() })
            }
            Some((&MAGIC, [version])) => Err(format!("image version {version}, not {VERSION}")),
            _ => Err("no image".into()),
        }
    }

    /// How many bytes of content follow a block's first bytes.
    ///
    /// # Errors
    /// When they are more than there can be.
    pub fn content_bytes(head: [u8; IMAGE_BLOCK_BYTES]) -> Result<usize, String> {
        let [_, length @ .., _, _, _, _] = head;
        match u32::from_le_bytes(length) as usize {
            length if length > BLOCK_BYTES_MAX => Err("a block longer than there can be".into()),
            length => Ok(length),
        }
    }

    /// Takes a block, and passes its items on.
    ///
    /// # Errors
    /// When it is damaged, or does not belong there. Nothing of a block with a wrong checksum is
    /// passed on.
    pub fn take(
        &mut self,
        head: [u8; IMAGE_BLOCK_BYTES],
        content: &[u8],
        put: &mut dyn FnMut(PagedItem<'_>),
    ) -> Result<(), String> {
        let [kind, _, _, _, _, sum @ ..] = head;
        if checksum(kind, content) != u32::from_le_bytes(sum) {
            return Err("a block whose checksum is wrong".into());
        }
        match BlockKind::read(kind) {
            _ if self.ended => Err("a block after the end".into()),
            Some(kind @ (BlockKind::Items | BlockKind::Page)) => {
                let count = |item: PagedItem<'_>| {
                    self.items += 1;
                    put(item);
                    Ok(())
                };
                match kind {
                    BlockKind::Items => self.pages.items(content, count),
                    _ => self.pages.page(content, count),
                }
            }
            Some(BlockKind::End) => {
                let items: u64 = read_value(content)?;
                if items != self.items || !self.pages.is_whole() {
                    return Err(format!("{} items of {items}", self.items));
                }
                self.ended = true;
                Ok(())
            }
            _ => Err(format!("a block of kind {kind}, which images do not have")),
        }
    }

    /// How many items it has.
    ///
    /// # Errors
    /// When its end has not come.
    pub fn finish(self) -> Result<u64, String> {
        if self.ended { Ok(self.items) } else { Err("an image that breaks off".into()) }
    }
}
