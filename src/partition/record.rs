//! One entry of a partition's log, in bytes.
//!
//! An entry is a stamp and mutations in order: whatever a leader had to propose when it proposed,
//! applied as a whole and at one moment. Numbers are little-endian.
//!
//! ```text
//! | version | stamp  | section | section | ..
//! | 1 byte  | 8      |
//!
//!   version: seven bits, above them whether the entry is to be synced whatever its table says
//!
//!   section: | kind, 1 | bytes, 4 | what the kind says |
//!      runs: | arguments, 4 | operations, 4 | ends | heads | argument bytes |
//! ```
//!
//! Nearly everything in a log is single operations, so consecutive ones are one section, laid out
//! as a [`crate::batch::Batch`] is: it is read back by copying the ends and the heads, and
//! the arguments are used where they lie. Any other mutation is a section of its own.
//!
//! What is read is not believed: an entry that was damaged, or written by a version that knows
//! more than this one, is an error and never a panic. It says nothing about *where* a log may be
//! cut; that is the log's business, which has checksums.

use crate::batch::runs::{RUNS_BYTES, Runs};
use crate::batch::{END_BYTES, HEAD_BYTES, Op, put_end, put_head};
use crate::ids::{Incarnation, Millis, NodeId, PartitionId, TableIndex, TxnId};
use crate::store::pages::Damaged;
use crate::txn::protocol::{Claim, Prepare, Prepared, Verdict};
use crate::txn::share::{self, PreparedShare, TXN_BYTES, put_txn, read_txn};
use bytes::Bytes;

/// The format of an entry, its first byte.
const VERSION: u8 = 2;
/// In the first byte: the entry counts only once it is synced ([`must_sync`]).
const SYNCED: u8 = 1 << 7;
/// Bytes before the first section.
const PREFIX_BYTES: usize = 9;
/// Bytes of a section before its content.
const SECTION_BYTES: usize = 5;

/// What a section holds.
#[derive(Clone, Copy)]
enum SectionKind {
    Runs = 1,
    Expire = 2,
    Prepare = 3,
    Decide = 4,
    Applied = 5,
    Began = 6,
    Share = 7,
}

/// Gathers mutations for the next entry. Recycled: [`EntryWriter::take`] leaves it empty, with its
/// buffers.
#[derive(Debug, Default)]
pub struct EntryWriter {
    /// Sections that are complete.
    sections: Vec<u8>,
    /// The section of runs that is open: argument bytes, ends and heads as they are written.
    data: Vec<u8>,
    ends: Vec<u8>,
    heads: Vec<u8>,
    mutations: usize,
    synced: bool,
}

/// Whether an entry is to be synced before it counts, also where its table would not ask for that:
/// it holds a step of a transaction that changes tables which do.
pub fn must_sync(entry: &[u8]) -> bool {
    entry.first().is_some_and(|version| version & SYNCED != 0)
}

/// Bytes of each buffer that a writer keeps for its next entry.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

impl EntryWriter {
    /// A writer that holds nothing.
    pub fn new() -> EntryWriter {
        EntryWriter::default()
    }

    /// Whether it holds no mutation.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.mutations == 0
    }

    /// How many mutations it holds.
    #[inline]
    pub fn mutations(&self) -> usize {
        self.mutations
    }

    /// Bytes of the entry that [`EntryWriter::take`] would make now.
    #[inline]
    pub fn bytes(&self) -> usize {
        let open = match self.heads.len() {
            0 => 0,
            heads => SECTION_BYTES + RUNS_BYTES + self.data.len() + self.ends.len() + heads,
        };
        PREFIX_BYTES + self.sections.len() + open
    }

    /// A single operation.
    #[inline]
    pub fn run(&mut self, op: &Op<'_>) {
        let start = self.data.len() as u32;
        self.data.extend_from_slice(op.args.bytes());
        op.args.ends().for_each(|end| put_end(&mut self.ends, start + end));
        put_head(&mut self.heads, op.head, (self.ends.len() / END_BYTES) as u32);
        self.mutations += 1;
    }

    /// An item whose time has come is to be removed.
    pub fn expire(&mut self, table: TableIndex, key: &[u8]) {
        self.section(SectionKind::Expire, |out| {
            out.push(table.into());
            out.extend_from_slice(key);
        });
    }

    /// A transaction's share becomes an intent that keeps the claims locked.
    pub fn prepare(&mut self, prepare: &Prepare, claims: &[Claim]) {
        if let Prepared::Share(share) = &prepare.work {
            // Watched keys are among the claims; whether they have changed was asked before.
            self.section(SectionKind::Share, |out| share::put(out, prepare, &share.batch, claims));
            return;
        }
        self.section(SectionKind::Prepare, |out| {
            let written = rmp_serde::encode::write(out, &(prepare, claims));
            assert!(written.is_ok(), "a prepare is of types that can be written, to memory");
        });
    }

    /// A transaction ends.
    pub fn decide(&mut self, txn: TxnId, verdict: Verdict) {
        self.section(SectionKind::Decide, |out| {
            put_txn(out, txn);
            out.push(u8::from(verdict == Verdict::Commit));
        });
    }

    /// A participant has applied commits that were decided here.
    pub fn applied(&mut self, txns: &[TxnId], from: PartitionId) {
        self.section(SectionKind::Applied, |out| {
            txns.iter().for_each(|txn| put_txn(out, *txn));
            out.extend_from_slice(&from.0.to_le_bytes());
        });
    }

    /// A node began a life: nothing of its earlier ones may prepare any more.
    pub fn began(&mut self, node: NodeId, life: Incarnation) {
        self.section(SectionKind::Began, |out| {
            out.extend_from_slice(&node.0.to_le_bytes());
            out.extend_from_slice(&life.0.to_le_bytes());
        });
    }

    /// The entry under way is to be synced before it counts.
    pub fn sync(&mut self) {
        self.synced = true;
    }

    /// The entry of all mutations since the last one, to be applied at `stamp`.
    pub fn take(&mut self, stamp: Millis) -> Bytes {
        let mut entry = Vec::with_capacity(self.bytes());
        let synced = if std::mem::take(&mut self.synced) { SYNCED } else { 0 };
        entry.push(VERSION | synced);
        entry.extend_from_slice(&stamp.0.to_le_bytes());
        entry.extend_from_slice(&self.sections);
        self.sections.clear();
        self.sections.shrink_to(BUFFER_BYTES_KEPT);
        self.close_runs_into(&mut entry);
        self.mutations = 0;
        Bytes::from(entry)
    }

    fn section(&mut self, kind: SectionKind, content: impl FnOnce(&mut Vec<u8>)) {
        let mut sections = std::mem::take(&mut self.sections);
        self.close_runs_into(&mut sections);
        sections.push(kind as u8);
        let at = sections.len();
        sections.extend_from_slice(&[0; 4]);
        content(&mut sections);
        let bytes = (sections.len() - at - 4) as u32;
        sections[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
        self.sections = sections;
        self.mutations += 1;
    }

    /// Ends the open section of runs, if there is one.
    fn close_runs_into(&mut self, out: &mut Vec<u8>) {
        if self.heads.is_empty() {
            return;
        }
        let bytes = RUNS_BYTES + self.data.len() + self.ends.len() + self.heads.len();
        out.push(SectionKind::Runs as u8);
        out.extend_from_slice(&(bytes as u32).to_le_bytes());
        out.extend_from_slice(&((self.ends.len() / END_BYTES) as u32).to_le_bytes());
        out.extend_from_slice(&((self.heads.len() / HEAD_BYTES) as u32).to_le_bytes());
        for part in [&mut self.ends, &mut self.heads, &mut self.data] {
            out.extend_from_slice(part);
            part.clear();
            part.shrink_to(BUFFER_BYTES_KEPT);
        }
    }
}

/// An entry being read.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    entry: &'a [u8],
    at: usize,
    stamp: Millis,
}

/// A part of an entry.
#[derive(Debug)]
pub enum Section<'a> {
    /// Single operations, to be laid out by [`Runs::read`].
    Runs(Runs<'a>),
    /// An item whose time has come.
    Expire(TableIndex, &'a [u8]),
    /// A transaction's share of operations, and what it keeps locked.
    Share(PreparedShare<'a>),
    /// One that is not of operations alone.
    Prepare(Box<Prepare>, Vec<Claim>),
    /// A transaction's end.
    Decide(TxnId, Verdict),
    /// A participant's confirmations.
    Applied(Vec<TxnId>, PartitionId),
    /// A node's new life.
    Began(NodeId, Incarnation),
}

impl<'a> Entry<'a> {
    /// Begins to read an entry.
    pub fn read(entry: &'a [u8]) -> Result<Entry<'a>, Damaged> {
        let Some((&[version, ref stamp @ ..], _)) = entry.split_first_chunk::<PREFIX_BYTES>()
        else {
            return Err(Damaged::new(0, "an entry cut short"));
        };
        let version = version & !SYNCED;
        if version != VERSION {
            return Err(Damaged::new(0, format!("entry version {version}, not {VERSION}")));
        }
        Ok(Entry { entry, at: PREFIX_BYTES, stamp: Millis(u64::from_le_bytes(*stamp)) })
    }

    /// The moment at which its mutations are applied.
    pub fn stamp(&self) -> Millis {
        self.stamp
    }

    /// Where the next section begins.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next section, `None` at the end.
    pub fn next_section(&mut self) -> Result<Option<Section<'a>>, Damaged> {
        let at = self.at;
        let rest = &self.entry[at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let damaged = |what: &str| Damaged::new(at, what);
        let Some((&[kind, ref bytes @ ..], rest)) = rest.split_first_chunk::<SECTION_BYTES>()
        else {
            return Err(damaged("a section cut short"));
        };
        let bytes = u32::from_le_bytes(*bytes) as usize;
        let content = rest.get(..bytes).ok_or_else(|| damaged("a section past the end"))?;
        self.at = at + SECTION_BYTES + bytes;
        let section = match kind {
            kind if kind == SectionKind::Runs as u8 => Runs::read(content, at).map(Section::Runs),
            kind if kind == SectionKind::Expire as u8 => read_expire(content),
            kind if kind == SectionKind::Prepare as u8 => read_prepare(content),
            kind if kind == SectionKind::Decide as u8 => read_decide(content),
            kind if kind == SectionKind::Applied as u8 => read_applied(content),
            kind if kind == SectionKind::Began as u8 => read_began(content),
            kind if kind == SectionKind::Share as u8 => {
                PreparedShare::read(content, at).map(Section::Share)
            }
            kind => return Err(damaged(&format!("a section of unknown kind {kind}"))),
        };
        section.map(Some).ok_or_else(|| damaged(&format!("a section of kind {kind} without sense")))
    }
}

fn read_expire(content: &[u8]) -> Option<Section<'_>> {
    let (table, key) = content.split_first()?;
    Some(Section::Expire(TableIndex::new(*table)?, key))
}

fn read_prepare(content: &[u8]) -> Option<Section<'_>> {
    let (prepare, claims): (Prepare, Vec<Claim>) = rmp_serde::from_slice(content).ok()?;
    Some(Section::Prepare(Box::new(prepare), claims))
}

fn read_decide(content: &[u8]) -> Option<Section<'_>> {
    let (txn, rest) = read_txn(content)?;
    let verdict = match rest {
        [0] => Verdict::Abort,
        [1] => Verdict::Commit,
        _ => return None,
    };
    Some(Section::Decide(txn, verdict))
}

fn read_applied(content: &[u8]) -> Option<Section<'_>> {
    let (mut rest, from) = content.split_last_chunk::<2>()?;
    let mut txns = Vec::with_capacity(rest.len() / TXN_BYTES);
    while !rest.is_empty() {
        let (txn, behind) = read_txn(rest)?;
        txns.push(txn);
        rest = behind;
    }
    Some(Section::Applied(txns, PartitionId(u16::from_le_bytes(*from))))
}

fn read_began(content: &[u8]) -> Option<Section<'_>> {
    let (node, life) = content.split_first_chunk::<2>()?;
    let life = Incarnation(u64::from_le_bytes(life.try_into().ok()?));
    Some(Section::Began(NodeId(u16::from_le_bytes(*node)), life))
}

#[cfg(test)]
mod tests;
