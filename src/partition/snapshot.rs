//! A snapshot of a replica, as a stream of bytes.
//!
//! A snapshot is what a log's beginning is replaced by: the replica as it was after some entry,
//! written without stopping it ([`crate::store::table`] tells how) and read back in pieces of any
//! size ([`Restorer`]). What decides about transactions is in it beside the items: intents with
//! the keys they lock, votes, outcomes that are not confirmed everywhere, and what is over.
//!
//! ```text
//! | "QRSN" | version | head | intent | .. | outcome | .. | ends | .. | items, pages | .. | end |
//! ```
//!
//! Each of these parts is a block of [`pages`].
//! The head says how many items each table has, so that they are given their room at once, and
//! the end says how many there were, so that a stream which breaks off is not taken for a whole
//! one. Every block has a checksum over its kind and content: a snapshot crosses disks and
//! networks, and lies about for long. What is damaged is an error that names the byte at which its
//! block begins.

use crate::batch::machine::Machine;
use crate::ids::{Millis, PartitionId, TABLES};
use crate::partition::replica::Replica;
use crate::store::pages::{
    self, BLOCK_BYTES, BLOCK_BYTES_MAX, BlockKind, Damaged, ITEM_BYTES, PagedItem, PagesReader,
    put_value, read_value,
};
use crate::store::tables::{KeyHasher, Tables};
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"QRSN";
const VERSION: u8 = 2;
/// Bytes before the first block.
const PREFIX_BYTES: usize = 5;
/// What a snapshot begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The partition it is of.
    pub partition: PartitionId,
    /// The stamp of the latest mutation in it.
    pub stamp: Millis,
    /// How many items each table holds.
    pub items: [u64; TABLES],
}

/// Begins a stream.
pub(super) fn put_head(out: &mut Vec<u8>, head: &SnapshotHead) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    put_value(out, BlockKind::Head, head);
}

/// Writes an intent, with its transaction.
pub(super) fn put_intent(out: &mut Vec<u8>, intent: &impl Serialize) {
    put_value(out, BlockKind::Intent, intent);
}

/// Writes an outcome, with its transaction.
pub(super) fn put_outcome(out: &mut Vec<u8>, outcome: &impl Serialize) {
    put_value(out, BlockKind::Outcome, outcome);
}

/// Writes what is over of a node's transactions.
pub(super) fn put_ends(out: &mut Vec<u8>, ends: &impl Serialize) {
    put_value(out, BlockKind::Ends, ends);
}

/// Makes a replica of a stream that comes in pieces of any size.
#[derive(Debug)]
pub struct Restorer<M> {
    id: PartitionId,
    hasher: KeyHasher,
    /// How long the stream is at most.
    length: u64,
    /// The beginning of what is not whole yet.
    rest: Vec<u8>,
    /// How many bytes of the stream come before `rest`.
    at: u64,
    replica: Option<Replica<M>>,
    head: Option<SnapshotHead>,
    /// Values that come in pages.
    pages: PagesReader,
    restored: [u64; TABLES],
    ended: bool,
    /// What was found wrong: nothing after it is believed.
    damaged: Option<Damaged>,
}

impl<M: Machine> Restorer<M> {
    /// Waits for the snapshot of a partition, of no more than `length` bytes.
    pub fn new(id: PartitionId, hasher: KeyHasher, length: u64) -> Restorer<M> {
        Restorer {
            id,
            hasher,
            length,
            rest: Vec::new(),
            at: 0,
            replica: None,
            head: None,
            pages: PagesReader::default(),
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
        if pages::checksum(kind, content) != u32::from_le_bytes(*sum) {
            return self.wrong("a block whose checksum is wrong");
        }
        if self.ended {
            return self.wrong("a block after the end");
        }
        let Some(kind) = BlockKind::read(kind) else {
            return self.wrong(format!("a block of unknown kind {kind}"));
        };
        if (kind == BlockKind::Head) != self.head.is_none() {
            return self.wrong("a head in the wrong place");
        }
        let understood = match kind {
            BlockKind::Head => self.on_head(content),
            BlockKind::End => self.on_end(content),
            BlockKind::Items => self.on_items(content),
            BlockKind::Page => self.on_page(content),
            BlockKind::Intent => self.on_state(|replica| replica.restore_intent(content)),
            BlockKind::Outcome => self.on_state(|replica| replica.restore_outcome(content)),
            BlockKind::Ends => self.on_state(|replica| replica.restore_ends(content)),
        };
        understood.map_or_else(|what| self.wrong(what), Ok)
    }

    fn on_head(&mut self, content: &[u8]) -> Result<(), String> {
        let head: SnapshotHead = read_value(content)?;
        if head.partition != self.id {
            return Err(format!("a snapshot of partition {}, not {}", head.partition, self.id));
        }
        // They are given their room at once, so their number is not believed alone.
        let items = head.items.iter().fold(0, |sum: u64, items| sum.saturating_add(*items));
        if items > self.length / ITEM_BYTES as u64 {
            return Err(format!("{items} items in {} bytes", self.length));
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
        let Some(replica) = &mut self.replica else { return Ok(()) };
        self.pages.items(content, restore_into(replica.tables_to_restore(), &mut self.restored))
    }

    fn on_page(&mut self, content: &[u8]) -> Result<(), String> {
        let Some(replica) = &mut self.replica else { return Ok(()) };
        self.pages.page(content, restore_into(replica.tables_to_restore(), &mut self.restored))
    }

    fn on_end(&mut self, content: &[u8]) -> Result<(), String> {
        let items: u64 = read_value(content)?;
        let (wanted, restored) = (self.head.as_ref().map(|head| head.items), self.restored);
        let count: u64 = restored.iter().sum();
        if wanted != Some(restored) || count != items || !self.pages.is_whole() {
            return Err(format!("{count} items of {items}"));
        }
        self.ended = true;
        Ok(())
    }
}

/// Puts items into tables, and counts them.
fn restore_into<'a>(
    tables: &'a mut Tables,
    restored: &'a mut [u64; TABLES],
) -> impl FnMut(PagedItem<'_>) -> Result<(), String> + 'a {
    |item| {
        if !tables.restore(&item) {
            return Err("an item that was there before".into());
        }
        restored[item.table.index()] += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
