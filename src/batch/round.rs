//! One batch, executed in parts: by several Buckets, by several leaders, at several times.
//!
//! What was executed is answered and never asked for again. Three places put replies together:
//!
//! - A node whose Buckets share a batch of another node gathers their replies: [`spread`], [`gather`].
//! - A Session asks other leaders for what met a node that does not lead: [`Redirect`].
//! - A Session asks for what was left once more: [`Flight`](super::flight::Flight).

use crate::batch::machine::{Machine, too_long};
use crate::batch::{Batch, Op, OpHead, Part, Replies};
use crate::ids::PartitionId;
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use std::collections::BTreeMap;

/// Divides a batch over Buckets; `place` says which one executes an operation.
pub fn spread(batch: &Batch, place: impl Fn(&Op<'_>) -> usize) -> BTreeMap<usize, Batch> {
    let mut shares: BTreeMap<usize, Batch> = BTreeMap::new();
    for op in batch.iter() {
        shares.entry(place(&op)).or_default().push_op(&op);
    }
    shares
}

/// Puts the replies of the Buckets together that [`spread`] has chosen. What one Bucket left is left,
/// whatever another one has executed after it.
pub fn gather<M: Machine>(
    batch: &Batch,
    place: impl Fn(&Op<'_>) -> usize,
    done: &BTreeMap<usize, Replies>,
) -> Replies {
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let mut is_cut = false;
    let parts = batch.iter().map(|op| {
        let bucket = place(&op);
        let next = next.entry(bucket).or_default();
        *next += 1;
        let part = done.get(&bucket).map_or(Part::Left, |replies| replies.part(*next - 1));
        is_cut |= part == Part::Left;
        if is_cut && !kept(Rule::ExecutedIsAnswered) { Part::Left } else { part }
    });
    Replies::gather(parts, |index, reply| refuse_long::<M>(batch.head(index), reply))
}

/// Answers an operation whose reply is too long to be given.
pub fn refuse_long<M: Machine>(head: OpHead, reply: &mut Vec<u8>) {
    M::refuse(&too_long::<M>(head), reply);
}

/// What a leader made of an operation that met a node that does not lead.
#[derive(Debug)]
enum Late {
    Answered(Vec<u8>),
    Left,
}

/// Operations of a batch that met a node which does not lead their partition, and what other nodes
/// made of them. They were not executed, so they may be asked of the leader.
#[derive(Debug)]
pub struct Redirect {
    late: BTreeMap<u32, Late>,
    /// By place in the batch, in order.
    open: Vec<u32>,
}

impl Redirect {
    /// Takes what met a node that does not lead, among these replies.
    pub fn of(replies: &mut Replies) -> Redirect {
        Redirect { late: BTreeMap::new(), open: std::mem::take(&mut replies.not_leader) }
    }

    /// Whether nothing is to be asked.
    pub fn is_over(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes what is to be asked, by destination: which operations, and these as a batch.
    pub fn shares(
        &mut self,
        batch: &Batch,
        route: impl Fn(PartitionId) -> usize,
    ) -> BTreeMap<usize, (Vec<u32>, Batch)> {
        let mut shares: BTreeMap<usize, (Vec<u32>, Batch)> = BTreeMap::new();
        for index in self.open.drain(..) {
            let op = batch.op(index as usize);
            let (indices, share) = shares.entry(route(op.head.partition)).or_default();
            indices.push(index);
            share.push_op(&op);
        }
        shares
    }

    /// Takes what one destination answered; what it turned away is asked again.
    pub fn take(&mut self, indices: &[u32], replies: &Replies) {
        for (place, index) in indices.iter().enumerate() {
            match replies.part(place) {
                Part::Answered(reply) => {
                    self.late.insert(*index, Late::Answered(reply.to_vec()));
                }
                // It has a leader: the Session asks that one once it has taken what is answered.
                Part::Left => drop(self.late.insert(*index, Late::Left)),
                Part::NotLeader => self.open.push(*index),
            }
        }
        self.open.sort_unstable();
    }

    /// Asks no node any more; `refuse` answers what is left over.
    pub fn give_up(&mut self, batch: &Batch, refuse: impl Fn(PartitionId, &mut Vec<u8>)) {
        for index in self.open.drain(..) {
            let mut reply = Vec::new();
            refuse(batch.head(index as usize).partition, &mut reply);
            self.late.insert(index, Late::Answered(reply));
        }
    }

    /// The batch's replies without any from a node that does not lead; what its leaders left is left.
    pub fn finish<M: Machine>(self, batch: &Batch, replies: &Replies) -> Replies {
        let parts = (0..replies.len()).map(|index| match self.late.get(&(index as u32)) {
            Some(Late::Answered(reply)) => Part::Answered(reply),
            Some(Late::Left) => Part::Left,
            None => replies.part(index),
        });
        Replies::gather(parts, |index, reply| refuse_long::<M>(batch.head(index), reply))
    }
}

/// The replies to operations of a node that was lost. Reads may be asked of others, unless a write of
/// the same batch comes after them: it may have been executed. `unknown` answers the rest.
pub fn lost<M: Machine>(batch: &Batch, unknown: impl Fn(Access, &mut Vec<u8>)) -> Replies {
    let mut replies = Replies::default();
    let writes = |head: OpHead| M::access(head.code) == Access::Write;
    let after_writes = (0..batch.len()).rfind(|index| writes(batch.head(*index)));
    let after_writes = after_writes.map_or(0, |last| last + 1);
    for (index, head) in batch.heads().enumerate() {
        match index >= after_writes {
            true => replies.not_leader.push(index as u32),
            false => unknown(M::access(head.code), &mut replies.bytes),
        }
        replies.end();
    }
    replies
}
