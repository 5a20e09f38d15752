//! A snapshot of a replica, as a stream of bytes.
//!
//! A snapshot is what a log's beginning is replaced by: the replica as it was after some entry,
//! written without stopping it ([`crate::engine::table`] tells how) and read back in pieces of any
//! size ([`Restorer`]). What decides about transactions is in it beside the items: intents with
//! the keys they lock, votes, outcomes that are not confirmed everywhere, and what is over.
//!
//! ```text
//! | "QRSN" | version | head | intent | .. | outcome | .. | ends | .. | items | .. | end |
//!
//! block: | kind, 1 | bytes, 4 | checksum, 4 | content |      numbers are little-endian
//! items: | table, 1 | item | item | ..
//!  item: | key, 3; flags, 1 | value, 4 | used, 4 | expiry, 8, if flagged | key | value |
//! ```
//!
//! The head says how many items each table has, so that they are given their room at once, and
//! the end says how many there were, so that a stream which breaks off is not taken for a whole
//! one. Every block has a checksum over its kind and content: a snapshot crosses disks and
//! networks, and lies about for long. What is damaged is an error that names the byte at which its
//! block begins.

mod image;

use crate::engine::item::{ItemRef, KEY_BYTES_MAX, Origin, VALUE_BYTES_MAX};
use crate::engine::machine::Machine;
use crate::engine::record::Damaged;
use crate::engine::replica::Replica;
use crate::engine::tables::{KeyHasher, Tables};
use crate::ids::{Millis, PartitionId, TABLES, TableIndex};
use serde::{Deserialize, Serialize};

pub(in crate::engine) use image::put_image_prefix;
pub use image::{IMAGE_BLOCK_BYTES, IMAGE_PREFIX_BYTES, Image, ImageItem};

const MAGIC: [u8; 4] = *b"QRSN";
const VERSION: u8 = 1;
/// Bytes before the first block.
const PREFIX_BYTES: usize = 5;
/// Bytes of a block before its content.
const BLOCK_BYTES: usize = 9;
/// A block of items that is longer is followed by another one. One item may be longer by itself.
const ITEMS_BYTES: usize = 1 << 20;
/// No block is longer: it holds one item of the greatest size and what fits beside it, or what
/// one transaction prepared.
const BLOCK_BYTES_MAX: usize = 1 << 31;
/// Bytes of an item before its expiry and key.
const ITEM_BYTES: usize = 12;
/// The flag of an item that expires; the two above are its [`Origin`].
const EXPIRES: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Head = 1,
    Intent = 2,
    Outcome = 3,
    Ends = 4,
    Items = 5,
    End = 6,
}

impl Kind {
    fn read(byte: u8) -> Option<Kind> {
        let kinds = [Kind::Head, Kind::Intent, Kind::Outcome, Kind::Ends, Kind::Items, Kind::End];
        kinds.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What a snapshot begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The partition it is of.
    pub partition: PartitionId,
    /// The stamp of the latest mutation in it.
    pub stamp: Millis,
    /// How many items each table holds.
    pub items: [u64; TABLES],
}

/// Begins a stream.
pub(in crate::engine) fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    put_value(out, Kind::Head, head);
}

/// Writes an intent, with its transaction.
pub(in crate::engine) fn put_intent(out: &mut Vec<u8>, intent: &impl Serialize) {
    put_value(out, Kind::Intent, intent);
}

/// Writes an outcome, with its transaction.
pub(in crate::engine) fn put_outcome(out: &mut Vec<u8>, outcome: &impl Serialize) {
    put_value(out, Kind::Outcome, outcome);
}

/// Writes what is over of a node's transactions.
pub(in crate::engine) fn put_ends(out: &mut Vec<u8>, ends: &impl Serialize) {
    put_value(out, Kind::Ends, ends);
}

/// Ends a stream of so many items.
pub(in crate::engine) fn put_end(out: &mut Vec<u8>, items: u64) {
    put_value(out, Kind::End, &items);
}

fn put_value(out: &mut Vec<u8>, kind: Kind, value: &impl Serialize) {
    let start = begin_block(out, kind);
    let written = rmp_serde::encode::write(out, value);
    assert!(written.is_ok(), "a replica is of types that can be written, to memory");
    end_block(out, start);
}

fn begin_block(out: &mut Vec<u8>, kind: Kind) -> usize {
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

fn checksum(kind: u8, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(content);
    hasher.finalize()
}

/// Writes blocks of items.
pub(in crate::engine) struct ItemsWriter<'a> {
    out: &'a mut Vec<u8>,
    table: TableIndex,
    /// Where the open block begins.
    start: usize,
}

impl<'a> ItemsWriter<'a> {
    /// Begins a block with items of a table.
    pub(in crate::engine) fn begin(out: &'a mut Vec<u8>, table: TableIndex) -> ItemsWriter<'a> {
        let start = begin_block(out, Kind::Items);
        out.push(table.into());
        ItemsWriter { out, table, start }
    }

    /// Writes an item.
    #[inline]
    pub(in crate::engine) fn put(&mut self, item: &ItemRef<'_>) {
        let (key, value, expires) = (item.key(), item.value(), item.expires());
        let held = self.out.len() - self.start;
        if held > ITEMS_BYTES || held > BLOCK_BYTES + 1 && value.len() > ITEMS_BYTES {
            end_block(self.out, self.start);
            self.start = begin_block(self.out, Kind::Items);
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
    pub(in crate::engine) fn end(self) {
        if self.out.len() == self.start + BLOCK_BYTES + 1 {
            self.out.truncate(self.start);
        } else {
            end_block(self.out, self.start);
        }
    }
}

/// An item as a snapshot holds it.
struct Stored<'a> {
    key: &'a [u8],
    value: &'a [u8],
    expires: Option<Millis>,
    origin: Origin,
    used: u32,
}

impl<'a> Stored<'a> {
    /// The first item and what follows it.
    #[inline]
    fn read(bytes: &'a [u8]) -> Option<(Stored<'a>, &'a [u8])> {
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

/// Makes a replica of a stream that comes in pieces of any size.
#[derive(Debug)]
pub struct Restorer<M> {
    id: PartitionId,
    hasher: KeyHasher,
    /// The beginning of what is not whole yet.
    rest: Vec<u8>,
    /// How many bytes of the stream come before `rest`.
    at: u64,
    replica: Option<Replica<M>>,
    head: Option<Head>,
    restored: [u64; TABLES],
    ended: bool,
    /// What was found wrong: nothing after it is believed.
    damaged: Option<Damaged>,
}

impl<M: Machine> Restorer<M> {
    /// Waits for the snapshot of a partition.
    pub fn new(id: PartitionId, hasher: KeyHasher) -> Restorer<M> {
        Restorer {
            id,
            hasher,
            rest: Vec::new(),
            at: 0,
            replica: None,
            head: None,
            restored: [0; TABLES],
            ended: false,
            damaged: None,
        }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.at + self.rest.len() as u64
    }

    /// Takes the next piece. After an error every piece is refused.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Damaged> {
        if let Some(damaged) = &self.damaged {
            return Err(damaged.clone());
        }
        let taken = self.take(piece);
        if let Err(damaged) = &taken {
            self.damaged = Some(damaged.clone());
        }
        taken
    }

    /// The replica, once the whole stream was taken.
    pub fn finish(self) -> Result<Replica<M>, Damaged> {
        let end = self.bytes();
        match self {
            Restorer { damaged: Some(damaged), .. } => Err(damaged),
            Restorer { ended: true, replica: Some(replica), .. } => Ok(replica),
            _ => Err(Damaged { at: end, what: "a snapshot that breaks off".into() }),
        }
    }

    fn take(&mut self, mut piece: &[u8]) -> Result<(), Damaged> {
        // What began in earlier pieces is completed first; from then on nothing is copied.
        while !self.rest.is_empty() {
            let missing = self.missing(&self.rest)?;
            let (more, later) = piece.split_at(missing.min(piece.len()));
            self.rest.extend_from_slice(more);
            piece = later;
            if more.len() < missing {
                return Ok(());
            }
            if self.missing(&self.rest)? == 0 {
                let rest = std::mem::take(&mut self.rest);
                self.unit(&rest)?;
                self.at += rest.len() as u64;
            }
        }
        while !piece.is_empty() {
            let unit = piece.len().min(self.unit_bytes(piece)?);
            if self.missing(piece)? > 0 {
                self.rest.extend_from_slice(piece);
                return Ok(());
            }
            let (unit, later) = piece.split_at(unit);
            self.unit(unit)?;
            self.at += unit.len() as u64;
            piece = later;
        }
        Ok(())
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Damaged> {
        Err(Damaged { at: self.at, what: what.into() })
    }

    /// How many bytes at least the prefix or block that begins here has.
    fn unit_bytes(&self, bytes: &[u8]) -> Result<usize, Damaged> {
        if self.at == 0 {
            return Ok(PREFIX_BYTES);
        }
        let Some((&[_, ref length @ .., _, _, _, _], _)) = bytes.split_first_chunk::<BLOCK_BYTES>()
        else {
            return Ok(BLOCK_BYTES);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > BLOCK_BYTES_MAX {
            return self.wrong("a block longer than there can be");
        }
        Ok(BLOCK_BYTES + length)
    }

    /// How many bytes at least are missing of it.
    fn missing(&self, bytes: &[u8]) -> Result<usize, Damaged> {
        Ok(self.unit_bytes(bytes)?.saturating_sub(bytes.len()))
    }

    /// Takes the prefix, or a whole block.
    fn unit(&mut self, unit: &[u8]) -> Result<(), Damaged> {
        if self.at == 0 {
            return match unit.split_first_chunk() {
                Some((&MAGIC, [VERSION])) => Ok(()),
                Some((&MAGIC, [version])) => {
                    self.wrong(format!("snapshot version {version}, not {VERSION}"))
                }
                _ => self.wrong("no snapshot"),
            };
        }
        let Some((&[kind, _, _, _, _, ref sum @ ..], content)) =
            unit.split_first_chunk::<BLOCK_BYTES>()
        else {
            return self.wrong("a block cut short");
        };
        if checksum(kind, content) != u32::from_le_bytes(*sum) {
            return self.wrong("a block whose checksum is wrong");
        }
        if self.ended {
            return self.wrong("a block after the end");
        }
        let Some(kind) = Kind::read(kind) else {
            return self.wrong(format!("a block of unknown kind {kind}"));
        };
        if (kind == Kind::Head) != self.head.is_none() {
            return self.wrong("a head in the wrong place");
        }
        let understood = match kind {
            Kind::Head => self.on_head(content),
            Kind::End => self.on_end(content),
            Kind::Items => self.on_items(content),
            Kind::Intent => self.on_state(|replica| replica.restore_intent(content)),
            Kind::Outcome => self.on_state(|replica| replica.restore_outcome(content)),
            Kind::Ends => self.on_state(|replica| replica.restore_ends(content)),
        };
        understood.map_or_else(|what| self.wrong(what), Ok)
    }

    fn on_head(&mut self, content: &[u8]) -> Result<(), String> {
        let head: Head = read_value(content)?;
        if head.partition != self.id {
            return Err(format!("a snapshot of partition {}, not {}", head.partition, self.id));
        }
        let mut replica = Replica::new(self.id, self.hasher);
        replica.restore_head(&head);
        (self.replica, self.head) = (Some(replica), Some(head));
        Ok(())
    }

    fn on_state(
        &mut self,
        restore: impl FnOnce(&mut Replica<M>) -> Result<(), String>,
    ) -> Result<(), String> {
        self.replica.as_mut().map_or(Ok(()), restore)
    }

    fn on_items(&mut self, content: &[u8]) -> Result<(), String> {
        let Some((&table, mut items)) = content.split_first() else {
            return Err("items of no table".into());
        };
        let table = TableIndex::try_from(table)?;
        let Some(replica) = &mut self.replica else { return Ok(()) };
        let tables: &mut Tables = replica.tables_to_restore();
        while !items.is_empty() {
            let Some((item, rest)) = Stored::read(items) else {
                return Err("an item without sense".into());
            };
            let Stored { key, value, expires, origin, used } = item;
            if !tables.restore(table, key, value, (expires, origin), used) {
                return Err("an item that was there before".into());
            }
            self.restored[table.index()] += 1;
            items = rest;
        }
        Ok(())
    }

    fn on_end(&mut self, content: &[u8]) -> Result<(), String> {
        let items: u64 = read_value(content)?;
        let (wanted, restored) = (self.head.as_ref().map(|head| head.items), self.restored);
        let count: u64 = restored.iter().sum();
        if wanted != Some(restored) || count != items {
            return Err(format!("{count} items of {items}"));
        }
        self.ended = true;
        Ok(())
    }
}

/// Reads what a block of state holds.
pub(in crate::engine) fn read_value<'a, T: Deserialize<'a>>(
    content: &'a [u8],
) -> Result<T, String> {
    rmp_serde::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
