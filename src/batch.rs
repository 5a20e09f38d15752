//! A batch of operations: what one read of a client's socket asks of one Bucket.
//!
//! All arguments lie end to end in one buffer, so a batch costs no allocation an operation and
//! its buffers are recycled from request to reply and back. The same type is a transaction's share
//! of work, and a log's entry holds operations in the same layout, so there is one way in which an
//! operation is written down: in memory, between nodes and in the log.

pub mod flight;
pub mod machine;
pub mod pipeline;
pub mod refusal;
pub mod round;
pub mod runs;

use crate::ids::{PartitionId, TableIndex};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeTuple};

/// The number of an operation in its machine's table of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpCode(pub u16);

/// What an operation is, beside its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpHead {
    /// What to do.
    pub code: OpCode,
    /// The partition that holds all of its keys.
    pub partition: PartitionId,
    /// The table it works on.
    pub table: TableIndex,
    /// Whether its reply is written in RESP3.
    pub resp3: bool,
    /// The placing hash of its first key ([`crate::store::tables::KeyHasher::hash`]); 0 if it has none.
    pub hash: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    head: OpHead,
    /// Where its arguments end in `Batch::ends`; they begin where the one before it ended.
    args_end: u32,
}

/// Operations in order, with their arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    data: Vec<u8>,
    /// Where each argument ends in `data`.
    ends: Vec<u32>,
    ops: Vec<Placed>,
}

/// One operation of a batch, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Op<'a> {
    /// What it is.
    pub head: OpHead,
    /// Its arguments, without the command's name.
    pub args: Args<'a>,
}

/// An operation's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    data: &'a [u8],
    /// Where the first argument begins.
    start: u32,
    ends: &'a [u32],
}

impl<'a> Args<'a> {
    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The argument at `index`, from 0; empty past the last one.
    #[inline]
    pub fn get(&self, index: usize) -> &'a [u8] {
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = match index {
            0 => self.start,
            _ => self.ends[index - 1],
        };
        &self.data[start as usize..end as usize]
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let args = *self;
        (0..args.len()).map(move |index| args.get(index))
    }

    /// All arguments, end to end.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        let end = self.ends.last().copied().unwrap_or(self.start);
        &self.data[self.start as usize..end as usize]
    }

    /// Where each argument ends in [`Args::bytes`].
    #[inline]
    pub fn ends(&self) -> impl Iterator<Item = u32> + use<'a> {
        let start = self.start;
        self.ends.iter().map(move |end| end - start)
    }
}

impl Batch {
    /// A batch without operations.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// How many operations it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it holds none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of arguments held.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Bytes of arguments that it can hold without growing.
    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Forgets the operations and keeps the buffers.
    pub fn clear(&mut self) {
        self.data.clear();
        self.ends.clear();
        self.ops.clear();
    }

    /// Appends an operation.
    #[inline]
    pub fn push<'b>(&mut self, head: OpHead, args: impl IntoIterator<Item = &'b [u8]>) {
        for arg in args {
            self.data.extend_from_slice(arg);
            self.ends.push(self.data.len() as u32);
        }
        self.ops.push(Placed { head, args_end: self.ends.len() as u32 });
    }

    /// Appends a copy of another batch's operation.
    pub fn push_op(&mut self, op: &Op<'_>) {
        let start = self.data.len() as u32;
        self.data.extend_from_slice(op.args.bytes());
        self.ends.extend(op.args.ends().map(|end| start + end));
        self.ops.push(Placed { head: op.head, args_end: self.ends.len() as u32 });
    }

    /// The operations with the arguments `data`, as [`Batch::write_down`] writes them.
    ///
    /// # Errors
    /// In a few words: what could not be walked safely is refused.
    pub fn read(data: &[u8], ends: &[u8], heads: &[u8]) -> Result<Batch, &'static str> {
        let mut batch = Batch { data: data.to_vec(), ends: Vec::new(), ops: Vec::new() };
        read_ends(ends, batch.data.len(), &mut batch.ends)?;
        read_heads(heads, batch.ends.len(), &mut batch.ops)?;
        Ok(batch)
    }

    /// Writes the operations down as an entry of a log has them: how many arguments and operations,
    /// their ends, the heads, the arguments.
    pub fn write_down(&self, out: &mut Vec<u8>) {
        let (ends, heads) = (self.ends.len() * END_BYTES, self.ops.len() * HEAD_BYTES);
        out.reserve(8 + ends + heads + self.data.len());
        out.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.ops.len() as u32).to_le_bytes());
        self.ends.iter().for_each(|end| put_end(out, *end));
        self.ops.iter().for_each(|op| put_head(out, op.head, op.args_end));
        out.extend_from_slice(&self.data);
    }

    /// The operations, borrowed.
    #[inline]
    pub fn laid(&self) -> Laid<'_> {
        Laid { data: &self.data, ends: &self.ends, ops: &self.ops }
    }

    /// What the operation at `index` is.
    #[inline]
    pub fn head(&self, index: usize) -> OpHead {
        self.ops[index].head
    }

    /// The heads in order.
    #[inline]
    pub fn heads(&self) -> impl Iterator<Item = OpHead> + '_ {
        self.ops.iter().map(|op| op.head)
    }

    /// The operation at `index`.
    #[inline]
    pub fn op(&self, index: usize) -> Op<'_> {
        self.laid().op(index)
    }

    /// The operations in order.
    pub fn iter(&self) -> impl Iterator<Item = Op<'_>> {
        (0..self.len()).map(|index| self.op(index))
    }
}

/// Operations whose arguments lie in another one's buffer: [`Batch`] without owning.
#[derive(Clone, Copy, Debug)]
pub struct Laid<'a> {
    data: &'a [u8],
    ends: &'a [u32],
    ops: &'a [Placed],
}

impl<'a> Laid<'a> {
    /// How many operations there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The heads from operation `from` up to `to`.
    #[inline]
    pub fn heads(&self, from: usize, to: usize) -> impl Iterator<Item = OpHead> + use<'a> {
        self.ops[from..to].iter().map(|op| op.head)
    }

    /// The operations in order.
    pub fn iter(&self) -> impl Iterator<Item = Op<'a>> + use<'a> {
        let laid = *self;
        (0..laid.len()).map(move |index| laid.op(index))
    }

    /// The operation at `index`.
    #[inline]
    pub fn op(&self, index: usize) -> Op<'a> {
        let op = &self.ops[index];
        let first = match index {
            0 => 0,
            _ => self.ops[index - 1].args_end as usize,
        };
        let start = match first {
            0 => 0,
            _ => self.ends[first - 1],
        };
        let ends = &self.ends[first..op.args_end as usize];
        Op { head: op.head, args: Args { data: self.data, start, ends } }
    }
}

/// Where arguments end and what the operations are, read from bytes into recycled buffers; the
/// arguments stay where they are.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    ends: Vec<u32>,
    ops: Vec<Placed>,
}

impl Layout {
    /// Reads the layout of operations with the arguments `data`, as [`put_end`] and [`put_head`]
    /// have written it. Refuses, in a few words, whatever [`Laid::op`] could not walk safely.
    pub fn read<'a>(
        &'a mut self,
        data: &'a [u8],
        ends: &[u8],
        heads: &[u8],
    ) -> Result<Laid<'a>, &'static str> {
        self.ends.clear();
        self.ops.clear();
        read_ends(ends, data.len(), &mut self.ends)?;
        read_heads(heads, self.ends.len(), &mut self.ops)?;
        Ok(Laid { data, ends: &self.ends, ops: &self.ops })
    }
}

/// Bytes of an argument's end, and of an operation's head, when written down (little-endian).
pub const END_BYTES: usize = 4;
/// See [`END_BYTES`].
pub const HEAD_BYTES: usize = 18;

/// Writes down where an argument ends.
#[inline]
pub fn put_end(out: &mut Vec<u8>, end: u32) {
    out.extend_from_slice(&end.to_le_bytes());
}

/// Writes down an operation, the last of whose arguments is the one before `args_end`.
#[inline]
pub fn put_head(out: &mut Vec<u8>, head: OpHead, args_end: u32) {
    let mut bytes = [0; HEAD_BYTES];
    bytes[0..2].copy_from_slice(&head.code.0.to_le_bytes());
    bytes[2..4].copy_from_slice(&head.partition.0.to_le_bytes());
    bytes[4] = u8::from(head.table);
    bytes[5] = u8::from(head.resp3);
    bytes[6..14].copy_from_slice(&head.hash.to_le_bytes());
    bytes[14..18].copy_from_slice(&args_end.to_le_bytes());
    out.extend_from_slice(&bytes);
}

fn read_ends(bytes: &[u8], data: usize, ends: &mut Vec<u32>) -> Result<(), &'static str> {
    let (bytes, rest) = bytes.as_chunks::<END_BYTES>();
    if !rest.is_empty() {
        return Err("argument ends cut short");
    }
    ends.reserve_exact(bytes.len());
    ends.extend(bytes.iter().map(|end| u32::from_le_bytes(*end)));
    if !ends.is_sorted() || ends.last().map_or(0, |end| *end as usize) != data {
        return Err("argument ends do not fit the data");
    }
    Ok(())
}

fn read_heads(bytes: &[u8], ends: usize, ops: &mut Vec<Placed>) -> Result<(), &'static str> {
    let (bytes, rest) = bytes.as_chunks::<HEAD_BYTES>();
    if !rest.is_empty() {
        return Err("heads cut short");
    }
    ops.reserve(bytes.len());
    let mut last = 0;
    for &[c0, c1, p0, p1, table, resp3, h0, h1, h2, h3, h4, h5, h6, h7, a0, a1, a2, a3] in bytes {
        let args_end = u32::from_le_bytes([a0, a1, a2, a3]);
        let table = TableIndex::new(table).ok_or("a table there is none of")?;
        if args_end < last {
            return Err("heads do not fit the arguments");
        }
        last = args_end;
        let head = OpHead {
            code: OpCode(u16::from_le_bytes([c0, c1])),
            partition: PartitionId(u16::from_le_bytes([p0, p1])),
            table,
            resp3: resp3 != 0,
            hash: u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7]),
        };
        ops.push(Placed { head, args_end });
    }
    // Ends never decrease, so none lies beyond the last one.
    if last as usize != ends {
        return Err("heads do not fit the arguments");
    }
    Ok(())
}

/// A batch travels as three byte strings, so that MessagePack meets three values instead of one
/// a number: the argument bytes, the ends, the heads.
impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut ends = Vec::with_capacity(self.ends.len() * END_BYTES);
        self.ends.iter().for_each(|end| put_end(&mut ends, *end));
        let mut heads = Vec::with_capacity(self.ops.len() * HEAD_BYTES);
        self.ops.iter().for_each(|op| put_head(&mut heads, op.head, op.args_end));
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(serde_bytes::Bytes::new(&self.data))?;
        tuple.serialize_element(serde_bytes::Bytes::new(&ends))?;
        tuple.serialize_element(serde_bytes::Bytes::new(&heads))?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Batch {
    /// Refuses whatever [`Batch::op`] could not walk safely.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (data, ends, heads): (&serde_bytes::Bytes, &serde_bytes::Bytes, &serde_bytes::Bytes) =
            Deserialize::deserialize(deserializer)?;
        Batch::read(data, ends, heads).map_err(|what| de::Error::custom(format!("batch: {what}")))
    }
}

/// Replies in the order of their operations, encoded for the client.
///
/// Each operation of a batch was executed, or another node leads its partition, or it was left
/// ([`Part`]). Operations past the last reply were left. An operation of a partition is never
/// executed after an earlier one of that partition that was left and shares a key with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The encoded replies, end to end.
    pub bytes: Vec<u8>,
    /// Where each ends in `bytes`.
    pub ends: Vec<u32>,
    /// Operations, by place and in order, that were not executed because another node leads their
    /// partition: they may be asked of that one. Their replies are empty.
    pub not_leader: Vec<u32>,
    /// Operations, by place and in order, that were left before others of the batch were executed.
    /// Their replies are empty.
    pub left: Vec<u32>,
}

/// Bytes of replies that are gathered at most: the offsets of longer ones would not do.
const GATHERED_BYTES_MAX: usize = 1 << 31;

/// What became of one operation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// It was executed, or refused for good: this is its reply.
    Answered(&'a [u8]),
    /// It was not executed: another node leads its partition.
    NotLeader,
    /// It was not begun, for the replies before it are long: it may be asked for again.
    Left,
}

impl Replies {
    /// The replies of an operation after the other. Operations left at the end get none.
    /// `refuse` answers an operation by place whose reply does not fit in with the others.
    pub fn gather<'a>(
        parts: impl IntoIterator<Item = Part<'a>>,
        refuse: impl Fn(usize, &mut Vec<u8>),
    ) -> Replies {
        let mut replies = Replies::default();
        for part in parts {
            let place = replies.len() as u32;
            match part {
                Part::Answered(reply) if replies.bytes.len() + reply.len() > GATHERED_BYTES_MAX => {
                    refuse(place as usize, &mut replies.bytes);
                }
                Part::Answered(reply) => replies.bytes.extend_from_slice(reply),
                Part::NotLeader => replies.not_leader.push(place),
                Part::Left => replies.left.push(place),
            }
            replies.end();
        }
        while let Some(last) = replies.left.last()
            && *last as usize + 1 == replies.len()
        {
            replies.left.pop();
            replies.ends.pop();
        }
        replies
    }

    /// What became of the operation at `index`.
    #[inline]
    pub fn part(&self, index: usize) -> Part<'_> {
        let is_in =
            |places: &[u32]| !places.is_empty() && places.binary_search(&(index as u32)).is_ok();
        if index >= self.len() || is_in(&self.left) {
            Part::Left
        } else if is_in(&self.not_leader) {
            Part::NotLeader
        } else {
            Part::Answered(self.get(index))
        }
    }

    /// How many replies there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Notes that a reply has been written up to the end of `bytes`.
    #[inline]
    pub fn end(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }

    /// Takes back what was written since the last reply ended.
    pub fn retract(&mut self) {
        self.bytes.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// Appends a whole reply.
    pub fn push(&mut self, reply: &[u8]) {
        self.bytes.extend_from_slice(reply);
        self.end();
    }

    /// Where the reply at `index` begins in `bytes`.
    #[inline]
    pub fn start(&self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        }
    }

    /// The reply at `index`.
    #[inline]
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index] as usize]
    }

    /// Forgets the replies and keeps the buffers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.not_leader.clear();
        self.left.clear();
    }
}

impl Serialize for Replies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut ends = Vec::with_capacity(self.ends.len() * END_BYTES);
        self.ends.iter().for_each(|end| put_end(&mut ends, *end));
        let mut tuple = serializer.serialize_tuple(4)?;
        tuple.serialize_element(serde_bytes::Bytes::new(&self.bytes))?;
        tuple.serialize_element(serde_bytes::Bytes::new(&ends))?;
        tuple.serialize_element(&self.not_leader)?;
        tuple.serialize_element(&self.left)?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Replies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Parts<'de> = (serde_bytes::ByteBuf, &'de serde_bytes::Bytes, Vec<u32>, Vec<u32>);
        let (bytes, ends, not_leader, left): Parts<'de> = Deserialize::deserialize(deserializer)?;
        let bytes = bytes.into_vec();
        let (ends, rest) = ends.as_chunks::<4>();
        let ends: Vec<u32> = ends.iter().map(|end| u32::from_le_bytes(*end)).collect();
        let fits = |places: &[u32]| {
            places.last().is_none_or(|last| (*last as usize) < ends.len())
                && places.is_sorted_by(|one, next| one < next)
        };
        if !fits(&not_leader) || !fits(&left) {
            return Err(de::Error::custom("replies: places of operations that there are not"));
        }
        let whole = ends.last().map_or(0, |end| *end as usize) == bytes.len();
        if !rest.is_empty() || !ends.is_sorted() || !whole {
            return Err(de::Error::custom("replies: ends do not fit the bytes"));
        }
        Ok(Replies { bytes, ends, not_leader, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(code: u16, hash: u64) -> OpHead {
        let table = TableIndex::new(3).unwrap();
        OpHead { code: OpCode(code), partition: PartitionId(7), table, resp3: true, hash }
    }

    fn sample() -> Batch {
        let mut batch = Batch::new();
        batch.push(head(1, 9), [b"key".as_slice(), b"", b"value"]);
        batch.push(head(2, 0), []);
        batch.push(head(3, u64::MAX), [b"x".as_slice()]);
        batch
    }

    #[test]
    fn operations_come_back_as_pushed() {
        let batch = sample();
        let args = |index: usize| batch.op(index).args.iter().map(<[u8]>::to_vec).collect();
        let all: Vec<Vec<Vec<u8>>> = (0..3).map(args).collect();
        assert_eq!(all[0], [b"key".to_vec(), b"".to_vec(), b"value".to_vec()]);
        assert!(all[1].is_empty());
        assert_eq!(all[2], [b"x".to_vec()]);
        assert_eq!(batch.op(2).head, head(3, u64::MAX));
    }

    #[test]
    fn the_wire_keeps_a_batch_and_its_replies() {
        let batch = sample();
        let bytes = rmp_serde::to_vec(&batch).unwrap();
        assert_eq!(rmp_serde::from_slice::<Batch>(&bytes).unwrap(), batch);
        let mut replies = Replies::default();
        replies.push(b"+OK\r\n");
        replies.push(b"");
        replies.push(b"");
        (replies.not_leader, replies.left) = (vec![1], vec![2]);
        let bytes = rmp_serde::to_vec(&replies).unwrap();
        assert_eq!(rmp_serde::from_slice::<Replies>(&bytes).unwrap(), replies);
    }

    #[test]
    fn damaged_batches_are_refused_or_safe_to_walk() {
        let bytes = rmp_serde::to_vec(&sample()).unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                if let Ok(batch) = rmp_serde::from_slice::<Batch>(&damaged) {
                    assert!(batch.iter().all(|op| op.args.iter().count() == op.args.len()));
                }
            }
        }
    }

    #[test]
    fn replies_are_gathered_by_what_became_of_each_operation() {
        use Part::{Answered, Left, NotLeader};
        let parts = [Left, Answered(b"one"), NotLeader, Left, Answered(b""), Left, Left];
        let replies = Replies::gather(parts, |_, _| {});
        assert_eq!((replies.len(), &replies.left[..]), (5, &[0, 3][..]));
        let told: Vec<Part<'_>> = (0..parts.len()).map(|index| replies.part(index)).collect();
        assert_eq!(told, parts, "what is left at the end is told by the lack of a reply");
        assert_eq!(Replies::gather([Left, Left], |_, _| {}), Replies::default());
    }
}
