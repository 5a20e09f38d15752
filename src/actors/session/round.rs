//! A round of operations that each lie in one partition: one message to each destination, one
//! write of the replies.

use super::flight::HELD_BYTES_MAX;
use super::{KEEP_BYTES_MAX, MUTE, OWN, READ_BYTES, Session, Share, redirect};
use crate::actors::bucket::{Answer, Execute, Failure, Outcome, Serve};
use crate::actors::submission::{Served, Submitted};
use crate::batch::machine::Machine;
use crate::batch::round::{self, Among};
use crate::batch::{Batch, Part, Replies};
use crate::command::Redis;
use crate::command::plan::PieceLayout;
use crate::command::reply::Reply;
use crate::command::scan::Walk;
use crate::ids::{NodeId, PartitionId};
use crate::store::tables::Access;
use smallvec::SmallVec;
use std::future::poll_fn;
use std::io;
use tokio::sync::oneshot;
use tokio::time::Instant;

impl Session {
    /// Serves what was gathered: one message to each destination, one write of the replies.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.gathered.order.is_empty() {
            return Ok(());
        }
        if !self.gathered.spreads.is_empty() {
            return self.fly().await;
        }
        let (mut place, mut own) = (0, 0);
        while place < self.gathered.order.len() {
            self.ask().await?;
            self.note_batches();
            self.put_back();
            if self.one_share_answers_all() {
                let share = usize::from(self.gathered.order[0]);
                let replies = std::mem::take(&mut self.gathered.shares[share].replies);
                self.write(&replies.bytes).await?;
                self.gathered.shares[share].replies = replies;
                break;
            }
            while let Some(&turn) = self.gathered.order.get(place) {
                let wanted = turn & MUTE == 0;
                if turn & !MUTE == OWN {
                    if wanted {
                        self.out.extend_from_slice(self.gathered.own.get(own));
                    }
                    own += 1;
                } else {
                    let share = &mut self.gathered.shares[usize::from(turn & !MUTE)];
                    let Some(reply) = share.next_reply() else { break };
                    if wanted {
                        self.out.extend_from_slice(reply);
                    }
                    share.taken += 1;
                }
                place += 1;
            }
            let out = std::mem::take(&mut self.out);
            self.write(&out).await?;
            self.out = out;
            self.out.clear();
            if place < self.gathered.order.len() {
                // Something was left because it takes long: the sockets are looked at first.
                tokio::task::yield_now().await;
            }
        }
        self.recycle();
        Ok(())
    }

    /// Sends every share whose next operation is unanswered, and takes the answers.
    async fn ask(&mut self) -> io::Result<()> {
        let mut laid = None;
        let mut waiting: SmallVec<[(usize, oneshot::Receiver<Outcome>); 4]> = SmallVec::new();
        for (destination, share) in self.gathered.shares.iter_mut().enumerate() {
            if share.taken == share.batch.len() || share.next_reply().is_some() {
                continue;
            }
            if !share.replies.is_empty() {
                share.ask_again();
            }
            let batch = std::mem::take(&mut share.batch);
            let replies = std::mem::take(&mut share.replies);
            if self.local.is_own(destination) {
                laid = Some(destination);
                let slot = self.entry.slot.clone();
                if self.local.submissions.submit(Submitted { batch, replies, slot }) {
                    self.local.bucket.do_send(Serve);
                }
                continue;
            }
            let (answer, outcome) = oneshot::channel();
            let answer = Answer::Session(answer);
            self.local.book.execute(destination, Execute { batch, replies, answer });
            waiting.push((destination, outcome));
        }
        if !waiting.is_empty() {
            self.take(waiting).await?;
        }
        if let Some(destination) = laid {
            let slot = &self.entry.slot;
            let served: Served = poll_fn(|context| slot.poll(context)).await;
            let share = &mut self.gathered.shares[destination];
            (share.batch, share.replies) = (served.batch, served.replies);
            share.took = Some(served.took);
        }
        self.settle().await
    }

    /// Asks again for what was asked of a node that does not lead it.
    async fn settle(&mut self) -> io::Result<()> {
        for share in &mut self.gathered.shares {
            if !share.replies.not_leader.is_empty() {
                let replies = std::mem::take(&mut share.replies);
                share.replies = redirect::settle(&share.batch, replies, &self.local).await?;
            }
        }
        Ok(())
    }

    /// Takes the answers of other arbiters and nodes.
    async fn take(
        &mut self,
        waiting: SmallVec<[(usize, oneshot::Receiver<Outcome>); 4]>,
    ) -> io::Result<()> {
        let begun = Instant::now();
        for (destination, outcome) in waiting {
            let share = &mut self.gathered.shares[destination];
            (share.batch, share.replies) = landed(outcome.await)?;
            share.took = Some(begun.elapsed());
        }
        Ok(())
    }

    /// Puts what was asked for again back to where it was left.
    fn put_back(&mut self) {
        self.gathered.shares.iter_mut().for_each(Share::put_back);
    }

    /// Has a destination execute its share, which is one operation, and returns the reply.
    pub(super) async fn ask_one(&mut self, destination: usize) -> io::Result<&[u8]> {
        while self.gathered.shares[destination].next_reply().is_none() {
            self.ask().await?;
            self.put_back();
        }
        Ok(self.gathered.shares[destination].next_reply().unwrap_or_default())
    }

    fn one_share_answers_all(&self) -> bool {
        let first = self.gathered.order[0];
        first != OWN
            && self.gathered.own.is_empty()
            && self.gathered.order.iter().all(|turn| turn & MUTE == 0)
            && self.gathered.shares[usize::from(first)].taken == 0
            && self.gathered.shares[usize::from(first)].replies.left.is_empty()
            && self.gathered.shares[usize::from(first)].replies.len() == self.gathered.order.len()
    }

    pub(super) fn recycle(&mut self) {
        self.gathered.order.clear();
        self.gathered.own.clear();
        for share in &mut self.gathered.shares {
            (share.taken, share.among, share.took) = (0, None, None);
            share.batch.clear();
            share.replies.clear();
            if share.replies.bytes.capacity() > KEEP_BYTES_MAX {
                share.replies = Replies::default();
            }
            if share.batch.capacity() > KEEP_BYTES_MAX {
                share.batch = Batch::new();
            }
        }
        if self.out.capacity() > KEEP_BYTES_MAX {
            self.out = Vec::new();
        }
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES_MAX {
            self.input = Vec::with_capacity(READ_BYTES);
        }
    }

    /// Runs a command that looks at every partition, each at its own moment.
    pub(super) async fn each(
        &mut self,
        batches: Vec<(PartitionId, Batch)>,
        layout: PieceLayout,
    ) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        self.ask_each(batches, layout, &mut out).await?;
        self.out = out;
        self.write_out().await
    }

    pub(super) async fn ask_each(
        &mut self,
        batches: Vec<(PartitionId, Batch)>,
        layout: PieceLayout,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let destinations: Vec<usize> =
            batches.iter().map(|(partition, _)| self.local.book.route(*partition)).collect();
        for ((_, batch), &destination) in batches.iter().zip(&destinations) {
            batch.iter().for_each(|op| self.gathered.shares[destination].batch.push_op(&op));
        }
        let mut replies: Vec<Replies> = batches.iter().map(|_| Replies::default()).collect();
        let mut place = 0;
        while place < batches.len() {
            self.ask().await?;
            self.put_back();
            while place < batches.len() {
                let share = &mut self.gathered.shares[destinations[place]];
                let Some(reply) = share.next_reply() else { break };
                replies[place].push(reply);
                share.taken += 1;
                place += 1;
            }
        }
        layout.merge(&replies, &mut Reply::new(out, self.state.client.resp3));
        self.recycle();
        Ok(())
    }

    /// Runs a command that goes from one partition to the other.
    pub(super) async fn walk(&mut self, mut walk: Walk) -> io::Result<()> {
        self.go_through(&mut walk).await?;
        let pages = walk.take_pages();
        let mut out = std::mem::take(&mut self.out);
        walk.finish(&mut Reply::new(&mut out, self.state.client.resp3));
        self.admit(out.len() + pages.iter().map(Vec::len).sum::<usize>())?;
        self.out = out;
        self.write_out().await?;
        let mute = self.mute;
        for page in pages.into_iter().filter(|_| !mute) {
            self.write(&page).await?;
            // A reader that keeps up must not keep this thread from everybody else.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Runs a command that goes from one partition to the other, inside an `EXEC`.
    pub(super) async fn ask_in_turn(
        &mut self,
        mut walk: Walk,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.go_through(&mut walk).await?;
        walk.finish(&mut Reply::new(out, self.state.client.resp3));
        Ok(())
    }

    /// Asks one partition after the other. Others are served between two steps.
    async fn go_through(&mut self, walk: &mut Walk) -> io::Result<()> {
        self.walks += 1;
        let seed =
            [self.local.facts().now.0, self.state.client.id, self.walks].map(u64::to_le_bytes);
        walk.throw(self.local.setup.hasher.hash(seed.as_flattened()));
        let mut batch = Batch::new();
        while let Some(partition) = walk.step(&mut batch) {
            let destination = self.local.book.route(partition);
            batch.iter().for_each(|op| self.gathered.shares[destination].batch.push_op(&op));
            batch.clear();
            walk.take(self.ask_one(destination).await?);
            self.recycle();
            // Tasks that keep waking each other are run dozens of times before the arbiter looks at
            // the sockets; one that yields waits for that look.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

impl Share {
    /// The reply to the first operation whose reply is not taken, unless that one was left.
    #[inline]
    fn next_reply(&self) -> Option<&[u8]> {
        match self.replies.part(self.taken) {
            Part::Answered(reply) => Some(reply),
            Part::NotLeader | Part::Left => None,
        }
    }

    /// Makes a batch of the operations that were left.
    fn ask_again(&mut self) {
        let from = std::mem::take(&mut self.taken);
        self.among = Among::ask_again(&mut self.batch, &mut self.replies, from, HELD_BYTES_MAX);
    }

    /// Puts what was asked for again back to where it was left.
    fn put_back(&mut self) {
        if let Some(among) = self.among.take() {
            among.put_back::<Redis>(&mut self.batch, &mut self.replies);
        }
    }
}

/// What a destination made of a batch, or what is to be said in its place.
///
/// # Errors
/// When the node is stopping.
pub(super) fn landed(
    outcome: Result<Outcome, oneshot::error::RecvError>,
) -> io::Result<(Batch, Replies)> {
    match outcome {
        Ok(Ok(answered)) => Ok(answered),
        Ok(Err((batch, failure))) => {
            let replies = failed(&batch, &failure);
            Ok((batch, replies))
        }
        Err(_) => Err(io::Error::other("the node is stopping")),
    }
}

/// The replies to operations that a destination did not answer.
fn failed(batch: &Batch, failure: &Failure) -> Replies {
    match failure {
        Failure::Unknown(node) => {
            round::lost::<Redis>(batch, |access, reply| unknown(Some((*node, access)), reply))
        }
        Failure::Refused(refusal) => {
            let mut replies = Replies::default();
            for _ in 0..batch.len() {
                Redis::refuse(refusal, &mut replies.bytes);
                replies.end();
            }
            replies
        }
    }
}

/// Says what can be said of operations that were under way when a node was lost.
pub(super) fn unknown(lost: Option<(NodeId, Access)>, out: &mut Vec<u8>) {
    let mut reply = Reply::new(out, false);
    match lost {
        Some((node, Access::Read)) => {
            reply.error(&format!("TRYAGAIN node {node} was lost before it answered"));
        }
        Some((node, Access::Write)) => reply.error(&format!(
            "UNKNOWN node {node} was lost with the write under way: it may have been applied"
        )),
        None => reply.error(
            "UNKNOWN a node was lost with the transaction under way: it was applied whole or not \
             at all",
        ),
    }
}
