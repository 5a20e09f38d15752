//! The LockManager: the queues of contended keys of all partitions led by this node.

use crate::actors::book::Book;
use crate::actors::bucket;
use crate::actors::dispatch::Dispatch;
use crate::txn::lock_queue::{LockEffect, LockQueue};
use crate::txn::protocol::{ToCoordinator, ToLocks};
use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, WrapFuture,
};
use std::sync::Arc;
use std::time::Duration;

/// How often wounds that were not answered are sent again.
const TICK: Duration = Duration::from_millis(100);

/// Claims looked at before the thread's other actors have their turn: about a millisecond's work.
const STEPS_A_TURN: usize = 8_192;

/// The actor around a [`LockQueue`].
#[derive(Debug, Default)]
pub struct LockManager {
    table: LockQueue,
    effects: Vec<LockEffect>,
    /// There is more to do than one turn may take.
    working: bool,
    book: Option<Arc<Book>>,
}

/// A Bucket's message.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ForLocks(pub ToLocks);

/// The address book is ready.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Arc<Book>);

/// How many requests wait?
#[derive(Message)]
#[rtype(result = "usize")]
pub struct CountWaiting;

impl Actor for LockManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |manager, _| {
            manager.table.tick(&mut manager.effects);
            manager.carry();
        });
    }
}

impl Handler<Wire> for LockManager {
    type Result = ();

    fn handle(&mut self, wire: Wire, _: &mut Context<Self>) {
        self.book = Some(wire.0);
    }
}

impl Handler<ForLocks> for LockManager {
    type Result = ();

    fn handle(&mut self, message: ForLocks, ctx: &mut Context<Self>) {
        self.table.push(message.0);
        if !self.working {
            self.work(ctx);
        }
    }
}

impl Handler<CountWaiting> for LockManager {
    type Result = MessageResult<CountWaiting>;

    fn handle(&mut self, _: CountWaiting, _: &mut Context<Self>) -> MessageResult<CountWaiting> {
        MessageResult(self.table.waiting())
    }
}

impl LockManager {
    /// Does what a turn may take, and goes on in another one once the thread's other actors have
    /// had theirs.
    fn work(&mut self, ctx: &mut Context<Self>) {
        let mut steps = STEPS_A_TURN;
        self.working = !self.table.work(&mut steps, &mut self.effects);
        self.carry();
        if self.working {
            let others = tokio::task::yield_now().into_actor(self);
            ctx.spawn(others.map(|(), manager, ctx| manager.work(ctx)));
        }
    }

    fn carry(&mut self) {
        let Some(book) = &self.book else { return };
        let mut dispatch = Dispatch::default();
        for effect in self.effects.drain(..) {
            match effect {
                LockEffect::Grant { partition, ticket } => {
                    if let Some(Some(placed)) = book.placed.get(partition.index()) {
                        book.buckets[*placed].do_send(bucket::Granted { partition, ticket });
                    }
                }
                LockEffect::Wound { txn } => {
                    dispatch.to_coordinator(book, txn.node, ToCoordinator::Wound { txn });
                }
            }
        }
        dispatch.send(book);
    }
}
