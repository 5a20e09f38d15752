//! Pages: the one way in which items leave a table as bytes.
//!
//! Snapshots of replicas, backups and what is streamed between nodes are blocks, one after the
//! other. Each has a checksum over its kind and content: such streams cross disks and networks, and
//! are kept for long.
//!
//! ```text
//! block: | kind, 1 | bytes, 4 | checksum, 4 | content |      numbers are little-endian
//! items: | table, 1 | item | item | ..
//!  item: | key, 3 | flags, 1 | value, 4 | used, 4 | expiry, 8 | metadata, 2 and so many | key | value |
//!  page: | table, 1 | some more of the value |
//! ```
//!
//! Flags say which of the optional parts there are, and above them stands the value's
//! [`Encoding`]. A value of more than [`PAGE_BYTES`] is not in its item: it follows in pages. Of each
//! table one such value is under way at a time, so its pages belong to the last item of the table
//! that has some to come. In between there may be blocks of any sort. So a value of any length is
//! copied, sent and written in pieces, and none of them is long.
//!
//! Metadata is room for what items of other tables will carry. This version has none, and refuses an
//! item that does.

use crate::ids::{Millis, TableIndex};
use crate::store::item::{ItemRef, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::store::value::Encoding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes that are not what was written, or were written by a version that knows more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where in the entry or stream, in bytes from its start.
    pub at: u64,
    /// What is wrong there.
    pub what: String,
}

impl Damaged {
    /// Bytes at `at` are wrong.
    pub fn new(at: usize, what: impl Into<String>) -> Damaged {
        Damaged { at: at as u64, what: what.into() }
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged at byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for Damaged {}

/// Bytes of a block before its content.
pub const BLOCK_BYTES: usize = 9;
/// A block of items that is longer is followed by another one.
const ITEMS_BYTES: usize = 1 << 20;
/// A longer value leaves its table in pages, none of which is longer.
pub const PAGE_BYTES: usize = 256 << 10;
/// No block is longer: it holds what one transaction prepared.
pub const BLOCK_BYTES_MAX: usize = 1 << 31;
/// Bytes of an item before its expiry and key: none has fewer.
pub const ITEM_BYTES: usize = 12;
/// Flag: the item expires.
const EXPIRES: u8 = 1;
/// Flag: the item has metadata.
const METADATA: u8 = 1 << 1;
/// Flag: the item's value follows in pages.
const PAGED: u8 = 1 << 2;
/// Where the number of the value's encoding begins.
const ENCODING_SHIFT: u32 = 3;
/// The same in version 1 of images, which knew neither metadata nor pages.
const ENCODING_SHIFT_1: u32 = 1;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// What the stream is of.
    Head = 1,
    /// A prepared transaction.
    Intent = 2,
    /// An outcome that is not confirmed everywhere.
    Outcome = 3,
    /// What is over of a node's transactions.
    Ends = 4,
    /// Items of a table.
    Items = 5,
    /// The stream's end, and how many items it had.
    End = 6,
    /// Some more of a value that is long.
    Page = 7,
}

impl BlockKind {
    /// The kind of a block, by its first byte.
    pub fn read(byte: u8) -> Option<BlockKind> {
        let kinds = [
            BlockKind::Head,
            BlockKind::Intent,
            BlockKind::Outcome,
            BlockKind::Ends,
            BlockKind::Items,
            BlockKind::End,
            BlockKind::Page,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Writes a block of state.
pub fn put_value(out: &mut Vec<u8>, kind: BlockKind, value: &impl Serialize) {
    let start = begin_block(out, kind);
    let written = rmp_serde::encode::write(out, value);
    assert!(written.is_ok(), "a replica is of types that can be written, to memory");
    end_block(out, start);
}

fn begin_block(out: &mut Vec<u8>, kind: BlockKind) -> usize {
    let start = out.len();
    out.push(kind as u8);
    out.extend_from_slice(&[0; BLOCK_BYTES - 1]);
    start
}

fn end_block(out: &mut [u8], start: usize) {
    let content = start + BLOCK_BYTES;
    let bytes = out.len() - content;
    assert!(bytes <= BLOCK_BYTES_MAX, "a block holds no more than its length can say");
    let checksum = checksum(out[start], &out[content..]);
    out[start + 1..start + 5].copy_from_slice(&(bytes as u32).to_le_bytes());
    out[start + 5..content].copy_from_slice(&checksum.to_le_bytes());
}

/// The checksum of a block.
pub fn checksum(kind: u8, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(content);
    hasher.finalize()
}

/// Writes blocks of items.
pub struct ItemsWriter<'a> {
    out: &'a mut Vec<u8>,
    table: TableIndex,
    /// Where the open block begins.
    start: usize,
}

impl<'a> ItemsWriter<'a> {
    /// Begins a block with items of a table.
    pub fn begin(out: &'a mut Vec<u8>, table: TableIndex) -> ItemsWriter<'a> {
        let start = begin_block(out, BlockKind::Items);
        out.push(table.into());
        ItemsWriter { out, table, start }
    }

    /// Writes an item. True: its value is long and left out; its pages are to follow.
    #[inline]
    pub fn put(&mut self, item: &ItemRef<'_>) -> bool {
        let (key, value, expires) = (item.key(), item.content(), item.expires());
        if self.out.len() - self.start > ITEMS_BYTES {
            end_block(self.out, self.start);
            self.start = begin_block(self.out, BlockKind::Items);
            self.out.push(self.table.into());
        }
        let paged = value.len() > PAGE_BYTES;
        let flags = if expires.is_some() { EXPIRES } else { 0 } | if paged { PAGED } else { 0 };
        let mut head = [0; ITEM_BYTES];
        head[0..4].copy_from_slice(&(key.len() as u32).to_le_bytes());
        head[3] = flags | item.encoding().number() << ENCODING_SHIFT;
        head[4..8].copy_from_slice(&(value.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&item.used().to_le_bytes());
        self.out.extend_from_slice(&head);
        if let Some(Millis(expires)) = expires {
            self.out.extend_from_slice(&expires.to_le_bytes());
        }
        self.out.extend_from_slice(key);
        if !paged {
            self.out.extend_from_slice(value);
        }
        paged
    }

    /// Ends the block; one without items was never there.
    pub fn end(self) {
        if self.out.len() == self.start + BLOCK_BYTES + 1 {
            self.out.truncate(self.start);
        } else {
            end_block(self.out, self.start);
        }
    }
}

/// Writes one page: so many bytes from `at` on of a long value. Returns where the next one begins.
pub fn put_page(out: &mut Vec<u8>, table: TableIndex, item: &ItemRef<'_>, at: usize) -> usize {
    let value = item.content();
    let end = value.len().min(at + PAGE_BYTES);
    let start = begin_block(out, BlockKind::Page);
    out.push(table.into());
    out.extend_from_slice(&value[at..end]);
    end_block(out, start);
    end
}

/// An item as it comes out of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedItem<'a> {
    /// Its table.
    pub table: TableIndex,
    /// Its key.
    pub key: &'a [u8],
    /// Its value's type and encoding.
    pub encoding: Encoding,
    /// Its value's content.
    pub content: &'a [u8],
    /// When it expires, if it does.
    pub expires: Option<Millis>,
    /// The second in which it was last used.
    pub used: u32,
}

/// What an item says of itself before its key.
#[derive(Clone, Copy, Debug)]
struct ItemHead {
    key: usize,
    value: usize,
    paged: bool,
    encoding: Encoding,
    expires: Option<Millis>,
    used: u32,
}

impl ItemHead {
    /// The first item's, and what follows it.
    #[inline]
    fn read(bytes: &[u8], is_version_1: bool) -> Result<(ItemHead, &[u8]), &'static str> {
        const SENSELESS: &str = "an item without sense";
        let (&[k0, k1, k2, flags, v0, v1, v2, v3, u0, u1, u2, u3], mut rest) =
            bytes.split_first_chunk::<ITEM_BYTES>().ok_or(SENSELESS)?;
        let shift = if is_version_1 { ENCODING_SHIFT_1 } else { ENCODING_SHIFT };
        let encoding = Encoding::from_number(flags >> shift)
            .ok_or("a value whose encoding this version does not know")?;
        let mut expires = None;
        if flags & EXPIRES != 0 {
            let (moment, behind) = rest.split_first_chunk().ok_or(SENSELESS)?;
            expires = Some(Millis(u64::from_le_bytes(*moment)));
            rest = behind;
        }
        if !is_version_1 && flags & METADATA != 0 {
            return Err("an item with metadata, which this version does not know");
        }
        let value = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        if value > VALUE_BYTES_MAX {
            return Err("a value longer than there can be");
        }
        let head = ItemHead {
            key: u32::from_le_bytes([k0, k1, k2, 0]) as usize,
            value,
            paged: !is_version_1 && flags & PAGED != 0,
            encoding,
            expires,
            used: u32::from_le_bytes([u0, u1, u2, u3]),
        };
        Ok((head, rest))
    }

    fn item<'a>(self, table: TableIndex, key: &'a [u8], content: &'a [u8]) -> PagedItem<'a> {
        let ItemHead { encoding, expires, used, .. } = self;
        PagedItem { table, key, encoding, content, expires, used }
    }
}

/// Puts items together again from blocks of items and of pages. Errors say what is wrong.
#[derive(Debug, Default)]
pub struct PagesReader {
    /// Of each table the long value that is under way.
    open: BTreeMap<TableIndex, OpenItem>,
    is_version_1: bool,
}

#[derive(Debug)]
struct OpenItem {
    head: ItemHead,
    key: Vec<u8>,
    content: Vec<u8>,
}

impl PagesReader {
    /// Reads blocks of the present version, or of version 1.
    pub fn of_version(is_version_1: bool) -> PagesReader {
        PagesReader { open: BTreeMap::new(), is_version_1 }
    }

    /// Takes the content of a block of items, and passes on those that are whole.
    ///
    /// # Errors
    /// When it is not what was written, or `put` says so.
    pub fn items(
        &mut self,
        content: &[u8],
        mut put: impl FnMut(PagedItem<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let (&table, mut rest) = content.split_first().ok_or("items of no table")?;
        let table = TableIndex::try_from(table)?;
        while !rest.is_empty() {
            let (head, behind) = ItemHead::read(rest, self.is_version_1)?;
            let cut = "an item without sense";
            let (key, behind) = behind.split_at_checked(head.key).ok_or(cut)?;
            if head.paged {
                let open = OpenItem { head, key: key.to_vec(), content: Vec::new() };
                if self.open.insert(table, open).is_some() {
                    return Err("a value whose pages are missing".into());
                }
                rest = behind;
                continue;
            }
            let (value, behind) = behind.split_at_checked(head.value).ok_or(cut)?;
            put(head.item(table, key, value))?;
            rest = behind;
        }
        Ok(())
    }

    /// Takes the content of a page, and passes on the item that it completes.
    ///
    /// # Errors
    /// As [`PagesReader::items`].
    pub fn page(
        &mut self,
        content: &[u8],
        mut put: impl FnMut(PagedItem<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let (&table, page) = content.split_first().ok_or("a page of no table")?;
        let table = TableIndex::try_from(table)?;
        let open = self.open.get_mut(&table).ok_or("a page of no item")?;
        if page.is_empty() || open.content.len() + page.len() > open.head.value {
            return Err("a page that does not belong there".into());
        }
        open.content.extend_from_slice(page);
        if open.content.len() < open.head.value {
            return Ok(());
        }
        match self.open.remove(&table) {
            Some(OpenItem { head, key, content }) => put(head.item(table, &key, &content)),
            None => Ok(()),
        }
    }

    /// Whether no value is waiting for pages.
    pub fn is_whole(&self) -> bool {
        self.open.is_empty()
    }
}

const _: () = assert!(KEY_BYTES_MAX < 1 << 24, "a key's length takes three bytes");

/// Ends a stream of so many items.
pub fn put_end(out: &mut Vec<u8>, items: u64) {
    put_value(out, BlockKind::End, &items);
}

/// Reads what a block of state holds.
pub fn read_value<'a, T: Deserialize<'a>>(content: &'a [u8]) -> Result<T, String> {
    rmp_serde::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::image::{IMAGE_BLOCK_BYTES, IMAGE_PREFIX_BYTES, ImageReader};
    use crate::store::tables::{Access, Expires, KeyHasher, Tables};

    type Held = BTreeMap<Vec<u8>, (Encoding, Vec<u8>)>;

    fn value(number: usize, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7 + number) as u8).collect()
    }

    fn put(tables: &mut Tables, key: &str, value: &[u8]) {
        tables.begin(Millis(1), Access::Write);
        let hash = tables.hasher().hash(key.as_bytes());
        tables.put(TableIndex::default(), hash, key.as_bytes(), value, Expires::Never);
    }

    fn append(tables: &mut Tables, key: &str, suffix: &[u8]) {
        tables.begin(Millis(1), Access::Write);
        let hash = tables.hasher().hash(key.as_bytes());
        tables.append(TableIndex::default(), hash, key.as_bytes(), suffix);
    }

    fn held(tables: &Tables) -> Held {
        let mut held = Held::new();
        tables.scan(TableIndex::default(), 0, usize::MAX, &mut |item| {
            held.insert(item.key().to_vec(), (item.encoding(), item.content().to_vec()));
        });
        held
    }

    /// The items of blocks, and the longest block.
    fn read(blocks: &[u8], version: u8) -> Result<(Held, usize), String> {
        let mut prefix = *b"QRIM\0";
        prefix[IMAGE_PREFIX_BYTES - 1] = version;
        let (mut reader, mut rest) = (ImageReader::read(prefix)?, blocks);
        let (mut held, mut longest) = (Held::new(), 0);
        while let Some((head, behind)) = rest.split_first_chunk::<IMAGE_BLOCK_BYTES>() {
            let (content, behind) = behind.split_at(ImageReader::content_bytes(*head)?);
            longest = longest.max(content.len());
            reader.take(*head, content, &mut |item| {
                let twice = held.insert(item.key.to_vec(), (item.encoding, item.content.to_vec()));
                assert!(twice.is_none(), "an item comes once");
            })?;
            rest = behind;
        }
        reader.finish()?;
        Ok((held, longest))
    }

    const LENGTHS: [usize; 6] =
        [3, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 2 * PAGE_BYTES, 5 * PAGE_BYTES + 9];

    fn tables() -> Tables {
        let mut tables = Tables::new(KeyHasher::new(5));
        for (number, bytes) in LENGTHS.into_iter().enumerate() {
            put(&mut tables, &format!("key{number}"), &value(number, bytes));
        }
        append(&mut tables, "key5", b"and more");
        tables
    }

    #[test]
    fn long_values_leave_in_pages_whatever_becomes_of_them() {
        // Each key is changed after each step in turn, so some are changed between two of their pages.
        for changed_at in 0..24 {
            for changed in 0..LENGTHS.len() {
                let mut tables = tables();
                let before = held(&tables);
                tables.begin_snapshot();
                let (mut blocks, mut steps) = (Vec::new(), 0);
                loop {
                    let copied = blocks.len();
                    let more = tables.snapshot_step(&mut blocks, 1);
                    if steps != changed_at + 1 {
                        let step = blocks.len() - copied;
                        assert!(step <= 2 * PAGE_BYTES + 100, "a step of {step} bytes");
                    }
                    if steps == changed_at {
                        match changed_at % 3 {
                            0 => put(&mut tables, &format!("key{changed}"), b"new"),
                            1 => append(&mut tables, &format!("key{changed}"), b"new"),
                            _ => tables.clear(TableIndex::default()),
                        }
                    }
                    steps += 1;
                    if !more {
                        break;
                    }
                }
                put_end(&mut blocks, before.len() as u64);
                let (read, longest) = read(&blocks, 2).unwrap();
                assert!(read == before, "key{changed} changed after step {changed_at}");
                assert!(longest <= PAGE_BYTES + 64, "a block of {longest} bytes");
                assert_eq!(tables.snapshot_backlog(), 0);
            }
        }
    }

    /// Blocks of an item whose value has two pages, and of one whose value has one byte.
    fn blocks() -> (Vec<Vec<u8>>, u64) {
        let mut tables = Tables::new(KeyHasher::new(5));
        put(&mut tables, "long", &value(1, PAGE_BYTES + 1));
        put(&mut tables, "short", b"1");
        tables.begin_snapshot();
        let mut blocks = Vec::new();
        loop {
            let mut block = Vec::new();
            let more = tables.snapshot_step(&mut block, 1);
            if !block.is_empty() {
                blocks.push(block);
            }
            if !more {
                return (blocks, 2);
            }
        }
    }

    #[test]
    fn pages_that_are_missing_or_do_not_belong_are_refused() {
        let (blocks, items) = blocks();
        assert_eq!(blocks.len(), 4, "short items, the long one, its pages");
        let mut end = Vec::new();
        put_end(&mut end, items);
        let told = |order: &[usize]| {
            let chosen: Vec<&[u8]> = order.iter().map(|at| blocks[*at].as_slice()).collect();
            read(&[chosen.concat(), end.clone()].concat(), 2).map(|(held, _)| held.len())
        };
        assert_eq!(told(&[0, 1, 2, 3]), Ok(2));
        assert_eq!(told(&[1, 2, 0, 3]), Ok(2), "others may come in between");
        assert!(told(&[0, 1, 2]).unwrap_err().contains("1 items of 2"));
        assert!(told(&[0, 2, 3]).unwrap_err().contains("a page of no item"));
        assert!(told(&[0, 1, 1, 2, 3]).unwrap_err().contains("pages are missing"));
        assert!(told(&[0, 1, 2, 2]).unwrap_err().contains("does not belong"));
        assert!(told(&[0, 1, 2, 3, 3]).unwrap_err().contains("a page of no item"));
    }

    #[test]
    fn what_is_not_known_is_refused_in_words() {
        let block = |flags: u8| {
            let mut out = Vec::new();
            let start = begin_block(&mut out, BlockKind::Items);
            out.push(0);
            out.extend_from_slice(&[1, 0, 0, flags, 1, 0, 0, 0, 0, 0, 0, 0, b'k', b'v']);
            end_block(&mut out, start);
            put_end(&mut out, 1);
            out
        };
        assert!(read(&block(0), 2).is_ok());
        assert!(read(&block(METADATA), 2).unwrap_err().contains("metadata"));
        assert!(read(&block(31 << ENCODING_SHIFT), 2).unwrap_err().contains("encoding"));
        assert!(read(&block(0), 3).unwrap_err().contains("image version 3, not 2"));
        // Version 1 had the encoding where flags are now.
        for encoding in Encoding::ALL {
            let (held, _) = read(&block(encoding.number() << ENCODING_SHIFT_1), 1).unwrap();
            assert_eq!(held[&b"k"[..]], (encoding, b"v".to_vec()));
        }
    }
}
