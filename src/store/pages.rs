//! Pages: the one way in which items leave a table as bytes.
//!
//! Snapshots of replicas, backups and streams between nodes are blocks, one after the other. Each
//! has a checksum over its kind and content: such streams cross disks and networks, and lie about
//! for long.
//!
//! ```text
//! block: | kind, 1 | bytes, 4 | checksum, 4 | content |      numbers are little-endian
//! items: | table, 1 | item | item | ..
//!  item: | key, 3; flags, 1 | value, 4 | used, 4 | expiry, 8, if flagged | key | value |
//! ```

use crate::ids::{Millis, TableIndex};
use crate::store::item::{ItemRef, KEY_BYTES_MAX, Origin, VALUE_BYTES_MAX};
use serde::{Deserialize, Serialize};
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
/// A block of items that is longer is followed by another one. One item may be longer by itself.
const ITEMS_BYTES: usize = 1 << 20;
/// No block is longer: it holds one item of the greatest size and what fits beside it, or what
/// one transaction prepared.
pub const BLOCK_BYTES_MAX: usize = 1 << 31;
/// Bytes of an item before its expiry and key.
const ITEM_BYTES: usize = 12;
/// The flag of an item that expires; the two above are its [`Origin`].
const EXPIRES: u8 = 1;

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

    /// Writes an item.
    #[inline]
    pub fn put(&mut self, item: &ItemRef<'_>) {
        let (key, value, expires) = (item.key(), item.value(), item.expires());
        let held = self.out.len() - self.start;
        if held > ITEMS_BYTES || held > BLOCK_BYTES + 1 && value.len() > ITEMS_BYTES {
            end_block(self.out, self.start);
            self.start = begin_block(self.out, BlockKind::Items);
            self.out.push(self.table.into());
        }
        let flags = u8::from(expires.is_some()) | item.origin().bits() << 1;
        let mut head = [0; ITEM_BYTES];
        head[0..4].copy_from_slice(&(key.len() as u32).to_le_bytes());
        head[3] = flags;
        head[4..8].copy_from_slice(&(value.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&item.used().to_le_bytes());
        self.out.extend_from_slice(&head);
        if let Some(Millis(expires)) = expires {
            self.out.extend_from_slice(&expires.to_le_bytes());
        }
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(value);
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

/// An item as a snapshot holds it.
pub struct Stored<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// When it expires, if it does.
    pub expires: Option<Millis>,
    /// How its value came to be.
    pub origin: Origin,
    /// The second in which it was last used.
    pub used: u32,
}

impl<'a> Stored<'a> {
    /// The first item and what follows it.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Option<(Stored<'a>, &'a [u8])> {
        let (&[k0, k1, k2, flags, v0, v1, v2, v3, u0, u1, u2, u3], rest) =
            bytes.split_first_chunk::<ITEM_BYTES>()?;
        let origin = Origin::from_bits(flags >> 1)?;
        let (expires, rest) = match flags & EXPIRES {
            0 => (None, rest),
            _ => {
                let (expires, rest) = rest.split_first_chunk()?;
                (Some(Millis(u64::from_le_bytes(*expires))), rest)
            }
        };
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes([k0, k1, k2, 0]) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes([v0, v1, v2, v3]) as usize)?;
        if value.len() > VALUE_BYTES_MAX {
            return None;
        }
        let used = u32::from_le_bytes([u0, u1, u2, u3]);
        Some((Stored { key, value, expires, origin, used }, rest))
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
