//! Batches that a node asks the other one to execute, and their replies: what is asked here, what is
//! asked from there, and what is answered while the other node is suspected or after it was lost.
//!
//! A batch is answered once. One whose link was lost is *adrift*: the node may still execute it, until
//! the link says that it is final.

use super::Peer;
use super::inbound::UNKNOWN_OPERATIONS;
use crate::actors::book::Book;
use crate::actors::bucket::{Answer, Execute, Failure};
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::round;
use crate::batch::{Batch, Op, OpCode, Replies};
use crate::command::Redis;
use crate::ids::NodeId;
use crate::net::packet::Packet;
use crate::store::tables::Access;
use actix::{AsyncContext, Context, Handler, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A Bucket answers what the other node asked.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Answered {
    /// The stream that asked.
    pub stream: u64,
    /// The request's id there.
    pub id: u64,
    /// The operations, for their buffers.
    pub batch: Batch,
    /// Their replies.
    pub replies: Replies,
}

impl Peer {
    /// Gives up what need not wait for the node any more, while that is suspected or lost.
    pub(super) fn give_up(&mut self) {
        let Some(book) = self.book.clone() else { return };
        let other = self.other;
        let settled = |batch: &Batch| is_settled(batch, other, &book);
        for (_, (batch, answer)) in self.pending.extract_if(.., |_, (batch, _)| settled(batch)) {
            fail(answer, batch, Failure::Unknown(other));
        }
        // Of writes it is known when they are final, and that is soon.
        let only_reads = |batch: &Batch| batch.heads().all(|head| reads(head.code));
        let settled = |batch: &Batch| only_reads(batch) && settled(batch);
        for (batch, answer) in self.adrift.extract_if(.., |(batch, _)| settled(batch)) {
            fail(answer, batch, Failure::Unknown(other));
        }
    }

    /// The replies to operations that cannot even be sent: another node may lead a partition with
    /// copies soon.
    fn unreachable(&self, batch: &Batch) -> Replies {
        let mut replies = Replies::default();
        for (index, head) in batch.heads().enumerate() {
            match self.book.as_ref().is_some_and(|book| book.is_replicated(head.partition)) {
                true => replies.not_leader.push(index as u32),
                false => {
                    let refusal = Refusal::Unreachable(self.other);
                    Redis::refuse(&refusal, &mut replies.bytes);
                }
            }
            replies.end();
        }
        replies
    }

    /// Answers a request that it was not executed.
    fn turn_away(&mut self, id: u64, count: usize, ctx: &mut Context<Self>) {
        let mut replies = Replies { not_leader: (0..count as u32).collect(), ..Replies::default() };
        (0..count).for_each(|_| replies.end());
        self.queue(&Packet::Executed { id, replies }, ctx);
    }

    pub(super) fn on_execute(
        &mut self,
        stream: u64,
        id: u64,
        batch: Batch,
        book: &Arc<Book>,
        ctx: &mut Context<Self>,
    ) {
        if !Redis::knows_all(batch.heads()) {
            self.close(stream, UNKNOWN_OPERATIONS, ctx);
            return;
        }
        let placed =
            |head: crate::batch::OpHead| book.placed.get(head.partition.index()).copied().flatten();
        let first = batch.heads().next().and_then(placed);
        let together = batch.heads().all(|head| placed(head) == first);
        let now = (self.clock)();
        let left_ms = self.link.serves_until().saturating_sub(self.elapsed.at(now));
        if left_ms == 0 {
            // The other node may have given it up: it is not executed, and so may be asked again.
            return self.turn_away(id, batch.len(), ctx);
        }
        let answer = Answer::Peer { peer: ctx.address(), stream, id, until: now.plus(left_ms) };
        if together {
            let bucket = &book.buckets[first.unwrap_or(0)];
            bucket.do_send(Execute { batch, replies: Replies::default(), answer });
        } else {
            actix_rt::spawn(split(batch, answer, book.clone()));
        }
    }
}

impl Handler<Execute> for Peer {
    type Result = ();

    fn handle(&mut self, execute: Execute, ctx: &mut Context<Self>) {
        let Execute { batch, answer, .. } = execute;
        let replicated =
            |book: &Arc<Book>| batch.heads().all(|head| book.is_replicated(head.partition));
        let is_up = self.link.is_up();
        if !is_up || self.link.is_suspected() && self.book.as_ref().is_some_and(replicated) {
            let replies = self.unreachable(&batch);
            give(answer, batch, replies);
            return;
        }
        self.next_request += 1;
        let id = self.next_request;
        let packet = Packet::Execute { id, batch };
        let queued = self.queue(&packet, ctx);
        let Packet::Execute { batch, .. } = packet else { return };
        if !queued {
            fail(answer, batch, Failure::Refused(Refusal::TooLong));
        } else if self.link.is_up() {
            self.pending.insert(id, (batch, answer));
        } else {
            // Cut off by this very packet, which may have left in part: not whole, so not executed.
            let replies = self.unreachable(&batch);
            give(answer, batch, replies);
        }
    }
}

impl Handler<Answered> for Peer {
    type Result = ();

    fn handle(&mut self, answered: Answered, ctx: &mut Context<Self>) {
        let Answered { stream, id, replies, .. } = answered;
        // What cannot be told was executed all the same: the other node must not take it for refused.
        if self.link.has(stream) && !self.queue(&Packet::Executed { id, replies }, ctx) {
            self.close(stream, "its replies are too long to be told", ctx);
        }
    }
}

/// Whether a batch that node `other` was asked for need not wait for it any more: whatever it writes
/// is led elsewhere by now, so what `other` proposed of it before is in the log of its successors or
/// nowhere. A partition without copies has no other node to ask.
fn is_settled(batch: &Batch, other: NodeId, book: &Book) -> bool {
    batch.heads().all(|head| {
        let elsewhere = book.leader(head.partition) != other;
        book.is_replicated(head.partition) && (reads(head.code) || elsewhere)
    })
}

fn reads(code: OpCode) -> bool {
    Redis::access(code) == Access::Read
}

/// Serves a batch whose partitions lie with several Buckets of this node.
async fn split(batch: Batch, answer: Answer, book: Arc<Book>) {
    let place =
        |op: &Op<'_>| book.placed.get(op.head.partition.index()).copied().flatten().unwrap_or(0);
    let mut waiting = Vec::new();
    for (bucket, share) in round::spread(&batch, place) {
        let (told, outcome) = oneshot::channel();
        let answer = Answer::Session(told);
        book.buckets[bucket].do_send(Execute { batch: share, replies: Replies::default(), answer });
        waiting.push((bucket, outcome));
    }
    let mut done: BTreeMap<usize, Replies> = BTreeMap::new();
    for (bucket, outcome) in waiting {
        // Without an answer the node is stopping, and its stream with it.
        let Ok(Ok((_, replies))) = outcome.await else { return };
        done.insert(bucket, replies);
    }
    let replies = round::gather::<Redis>(&batch, place, &done);
    give(answer, batch, replies);
}

pub(super) fn give(answer: Answer, batch: Batch, replies: Replies) {
    match answer {
        // A Session that is gone needs no answer.
        Answer::Session(session) => drop(session.send(Ok((batch, replies)))),
        Answer::Peer { peer, stream, id, .. } => {
            peer.do_send(Answered { stream, id, batch, replies });
        }
    }
}

pub(super) fn fail(answer: Answer, batch: Batch, failure: Failure) {
    if let Answer::Session(session) = answer {
        drop(session.send(Err((batch, failure))));
    }
}
