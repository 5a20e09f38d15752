//! What the simulator's partitions hold: lists of tags, one for each key.
//!
//! Every request that writes appends its own tag, so that a list tells the order of requests, and a
//! reply that shows a list tells what its request has seen.

use crate::batch::machine::{Machine, Scope};
use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Op, OpCode, OpHead};
use crate::ids::{Millis, PartitionId, TableIndex};
use crate::store::tables::Access;
use crate::store::tables::{KeyHasher, Tables};

pub(super) const READ: OpCode = OpCode(0);
pub(super) const APPEND: OpCode = OpCode(1);
/// Appends if the keys' lists are of even length in all: its outcome needs every key.
pub(super) const APPEND_IF_EVEN: OpCode = OpCode(2);
/// The same, but the first key is only read.
pub(super) const APPEND_REST_IF_EVEN: OpCode = OpCode(3);
/// Answers with the version of a key that is watched from now on.
pub(super) const WATCH: OpCode = OpCode(4);
/// Reads the first key and appends to the others, whatever they hold. A request only: its operations
/// are [`READ`] and [`APPEND`].
pub(super) const READ_AND_APPEND: OpCode = OpCode(5);
/// Appends, and has the whole of each partition to itself. A request over several partitions only: its
/// operations are [`APPEND`].
pub(super) const APPEND_ALONE: OpCode = OpCode(7);
/// Gives a key [`TO_LIVE_MS`] to live. For schedules that are written for it: what has expired is
/// missing in the order of the others.
pub(super) const EXPIRE: OpCode = OpCode(6);
pub(super) const TO_LIVE_MS: u64 = 500;

/// Lists of tags: what the simulator's partitions run.
#[derive(Debug)]
pub struct Lists;

impl Machine for Lists {
    fn knows(code: OpCode) -> bool {
        code.0 <= 4 || code == EXPIRE
    }
    fn access(code: OpCode) -> Access {
        if matches!(code, READ | WATCH) { Access::Read } else { Access::Write }
    }
    fn scope(_: OpCode) -> Scope {
        Scope::Keys
    }
    fn keys(op: &Op<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
        let tags = usize::from(Self::access(op.head.code) == Access::Write);
        let keys = op.args.len() - tags;
        op.args.iter().take(keys).for_each(|key| visit(op.head.table, key));
    }
    fn run(op: &Op<'_>, tables: &mut Tables, now: Millis, reply: &mut Vec<u8>) {
        let table = op.head.table;
        let mut keys = Vec::new();
        Self::keys(op, &mut |_, key| keys.push(key.to_vec()));
        if op.head.code == WATCH {
            let hash = tables.hasher().hash(&keys[0]);
            let version = tables.watch(table, hash, &keys[0]).unwrap_or_default();
            reply.extend_from_slice(&version.to_le_bytes());
            return;
        }
        let hashes: Vec<u64> = keys.iter().map(|key| tables.hasher().hash(key)).collect();
        let list = |tables: &mut Tables, index: usize| {
            let item = tables.get(table, hashes[index], &keys[index]);
            item.map(|item| item.value().string().to_vec()).unwrap_or_default()
        };
        let length: usize = (0..keys.len()).map(|index| list(tables, index).len() / 4).sum();
        if op.head.code == EXPIRE {
            let at = Millis(now.0 + TO_LIVE_MS);
            tables.set_expiry(table, hashes[0], &keys[0], Some(at));
        }
        let append = match op.head.code {
            READ | EXPIRE => false,
            APPEND => true,
            _ => length.is_multiple_of(2),
        };
        for index in 0..keys.len() {
            if append && !(index == 0 && op.head.code == APPEND_REST_IF_EVEN) {
                let tag = op.args.get(op.args.len() - 1);
                tables.append(table, hashes[index], &keys[index], tag);
            }
            let list = list(tables, index);
            reply.extend_from_slice(&(hashes[index] as u32).to_le_bytes());
            reply.extend_from_slice(&(list.len() as u32 / 4).to_le_bytes());
            reply.extend_from_slice(&list);
        }
    }
    fn reply_bytes(_: &Op<'_>, values: &mut dyn FnMut() -> usize) -> usize {
        values()
    }
    fn refuse(refusal: &Refusal, reply: &mut Vec<u8>) {
        match refusal {
            Refusal::Unknown(_) => reply.extend_from_slice(b"unknown"),
            _ => reply.extend_from_slice(b"refused"),
        }
    }
}

pub(super) fn key_name(key: usize) -> Vec<u8> {
    format!("k{key}").into_bytes()
}

pub(super) fn hasher() -> KeyHasher {
    KeyHasher::new(1)
}

/// What a reply tells a key by.
pub(super) fn key_word(key: usize) -> u32 {
    hasher().hash(&key_name(key)) as u32
}

/// One operation on some keys of a partition.
pub(super) fn batch(code: OpCode, partition: PartitionId, keys: &[usize], tag: u32) -> Batch {
    let names: Vec<Vec<u8>> = keys.iter().map(|key| key_name(*key)).collect();
    let tag = tag.to_le_bytes();
    let hash = hasher().hash(&names[0]);
    let head = OpHead { code, partition, table: TableIndex::default(), resp3: false, hash };
    let mut args: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    if Lists::access(code) == Access::Write {
        args.push(&tag);
    }
    let mut batch = Batch::new();
    batch.push(head, args);
    batch
}

/// The share of a partition in a [`READ_AND_APPEND`].
pub(super) fn read_and_append(id: PartitionId, read: usize, keys: &[usize], tag: u32) -> Batch {
    let (read, appended): (Vec<usize>, Vec<usize>) = keys.iter().partition(|key| **key == read);
    let mut ops = Batch::new();
    for (code, keys) in [(READ, read), (APPEND, appended)] {
        if !keys.is_empty() {
            batch(code, id, &keys, tag).iter().for_each(|op| ops.push_op(&op));
        }
    }
    ops
}
