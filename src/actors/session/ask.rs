//! Asking partitions on behalf of one command: each at its own moment, one after the other, or one.

use super::Session;
use super::flight::Sink;
use crate::batch::{Batch, OpHead, Replies};
use crate::command::plan::PieceLayout;
use crate::command::reply::Reply;
use crate::command::scan::Walk;
use crate::ids::PartitionId;
use std::io;

impl Session {
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

    /// Has every partition execute its operation, and appends the reply that they make together.
    pub(super) async fn ask_each(
        &mut self,
        batches: Vec<(PartitionId, Batch)>,
        layout: PieceLayout,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut owners = Vec::new();
        for (owner, (partition, batch)) in batches.iter().enumerate() {
            let lane = self.local.book.route(*partition) as u16;
            self.gathered.flight.ops(lane, batch);
            owners.extend(std::iter::repeat_n(owner, batch.len()));
        }
        let mut replies: Vec<Replies> = batches.iter().map(|_| Replies::default()).collect();
        let mut keep = |place: usize, reply: &[u8]| replies[owners[place]].push(reply);
        self.fly(Sink::Kept(&mut keep)).await?;
        layout.merge(&replies, &mut Reply::new(out, self.state.client.resp3));
        Ok(())
    }

    /// Has the leader of its partition execute one operation, and appends the reply.
    pub(super) async fn ask_one<'a>(
        &mut self,
        head: OpHead,
        args: impl IntoIterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        // Another node may lead since routes were last looked up.
        let lane = self.local.book.route(head.partition) as u16;
        self.gathered.flight.op(lane, head, args);
        self.fly(Sink::Kept(&mut |_, reply| out.extend_from_slice(reply))).await
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
            let lane = self.local.book.route(partition) as u16;
            self.gathered.flight.ops(lane, &batch);
            batch.clear();
            self.fly(Sink::Kept(&mut |_, reply| walk.take(reply))).await?;
            // Tasks that keep waking each other are run dozens of times before the arbiter looks at
            // the sockets; one that yields waits for that look.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
