//! The Coordinator: the startup barrier, and the transactions begun on this node.

mod replicas;

pub use self::replicas::{Kept, Makers, Replicas};

use self::replicas::Decided;
use crate::actors::book::Book;
use crate::actors::bucket;
use crate::actors::dispatch::Dispatch;
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::log::{self as disk, Log, Stop};
use crate::actors::peer::{self, Convey};
use crate::cluster::barrier::{self, Barrier, Hello, Standing};
use crate::command::facts;
use crate::ids::Term;
use crate::ids::{Incarnation, LastSeen, NodeId, Now, PartitionId};
use crate::net::packet::Packet;
use crate::storage::Directory;
use crate::txn::coordinator::{self, ClientId, Transactions};
use crate::txn::protocol::{Ended, ToCoordinator, Work};
use actix::fut::{ActorFuture, ActorFutureExt, WrapFuture};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How often transactions that wait are looked after.
const TICK: Duration = Duration::from_millis(20);

/// The wall clock is worth a line in the log when it drifts so far from the monotonic one within a
/// tick, in ms.
const DRIFT_TOLD_MS: u64 = 1_000;

/// How long a node that has lost its disk looks for other nodes before it names its new replicas:
/// what they have seen of it is not named again.
const ASK_AROUND: Duration = Duration::from_secs(1);

/// How often the log names the nodes that the barrier waits for.
const REMIND_AFTER: Duration = Duration::from_secs(3);

/// The actor around [`Barrier`] and [`Transactions`].
pub struct Coordinator {
    barrier: Barrier,
    transactions: Transactions<crate::command::Redis>,
    clients: BTreeMap<ClientId, oneshot::Sender<Ended>>,
    next_client: u64,
    effects: Vec<coordinator::TxnEffect>,
    dispatch: Dispatch,
    clock: fn() -> Now,
    /// What the clocks said at the last tick.
    looked: Now,
    book: Option<Arc<Book>>,
    log: Option<Addr<Log>>,
    reminded: Instant,
    formed: Option<oneshot::Sender<()>>,
    replicas: Replicas,
    /// What the barrier decided is being written down.
    joining: bool,
    /// New replicas will be named.
    asking: bool,
    /// The latest generation of this node's replicas that other nodes have seen.
    seen: u32,
    /// The data directory where nothing is logged: it knows the node's life.
    record: Option<Directory>,
    stop: Stop,
    failpoint: Failpoint,
}

/// The address book is ready: the barrier may begin.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Arc<Book>, pub Option<Addr<Log>>);

/// Messages of the commit protocol, in the order sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ForCoordinator(pub Vec<ToCoordinator>);

/// A Session begins transactions.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Begin(pub Vec<Start>);

/// A transaction to begin.
#[derive(Debug)]
pub struct Start {
    /// What is to be done.
    pub work: Work,
    /// Where the end is told.
    pub ended: oneshot::Sender<Ended>,
}

/// A node is linked both ways.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeUp(pub Hello);

/// A node cannot be reached.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeDown(pub NodeId);

/// A linked node does not answer, or answers again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeSuspected {
    /// The node.
    pub node: NodeId,
    /// Whether it is suspected from now on.
    pub suspected: bool,
}

/// A node has met all others.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeReady(pub NodeId, pub Incarnation);

/// A node leads a partition from a term on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Led(pub PartitionId, pub NodeId, pub Term);

/// A node can verify its replicas of these partitions, as it could not before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Verified(pub NodeId, pub Vec<PartitionId>);

/// This node can verify its replicas of these partitions, as it could not before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Sound(pub Vec<PartitionId>);

/// A node has seen this one in a later life.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Outlived(pub NodeId, pub LastSeen);

/// What the Coordinator is doing.
#[derive(Message)]
#[rtype(result = "Report")]
pub struct Observe;

/// The answer to [`Observe`].
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether the node serves.
    pub standing: Standing,
    /// Transactions under way.
    pub active: usize,
    /// Totals.
    pub counts: coordinator::TxnCounts,
}

impl Coordinator {
    /// A Coordinator that tells `formed` once the node may serve.
    #[allow(clippy::too_many_arguments, reason = "one for each part of it")]
    pub fn new(
        barrier: Barrier,
        transactions: Transactions<crate::command::Redis>,
        clock: fn() -> Now,
        formed: oneshot::Sender<()>,
        replicas: Replicas,
        record: Option<Directory>,
        stop: Stop,
        failpoint: Failpoint,
    ) -> Coordinator {
        Coordinator {
            barrier,
            transactions,
            clients: BTreeMap::new(),
            next_client: 0,
            effects: Vec::new(),
            dispatch: Dispatch::default(),
            clock,
            looked: clock(),
            book: None,
            log: None,
            reminded: Instant::now(),
            formed: Some(formed),
            replicas,
            joining: false,
            asking: false,
            seen: 0,
            record,
            stop,
            failpoint,
        }
    }

    /// Carries out what the transactions want done: once a turn of the mailbox, so that those that
    /// came together stay together.
    fn flush(&mut self) {
        if self.effects.is_empty() {
            return;
        }
        let Some(book) = &self.book else { return };
        self.failpoint.pass_all(&self.effects, Point::begun_by_coordinator);
        for effect in self.effects.drain(..) {
            match effect {
                coordinator::TxnEffect::Partition(to, message) => {
                    self.dispatch.to_partition(book, to, message)
                }
                coordinator::TxnEffect::Reply(client, ended) => {
                    if let Some(waiting) = self.clients.remove(&client) {
                        // A Session that is gone needs no answer.
                        let _ = waiting.send(ended);
                    }
                }
            }
        }
        self.dispatch.send(book);
    }

    fn carry_barrier(&mut self, effects: Vec<barrier::BarrierEffect>, ctx: &mut Context<Self>) {
        let Some(book) = self.book.clone() else { return };
        for effect in effects {
            match effect {
                barrier::BarrierEffect::SayReady => self.say_ready(&book, ctx),
                barrier::BarrierEffect::Form => self.form(ctx),
                barrier::BarrierEffect::Join => self.begin_anew(ctx),
            }
        }
        if self.joining {
            return;
        }
        let standing = self.barrier.standing();
        for bucket in &book.buckets {
            bucket.do_send(bucket::Stand(standing.clone()));
        }
    }

    /// Tells the other nodes that this one has met all, once its disk has the note.
    fn say_ready(&mut self, book: &Arc<Book>, ctx: &mut Context<Self>) {
        let say = |book: &Book| {
            book.peers.values().for_each(|peer| peer.do_send(Convey(Packet::Ready)));
        };
        let Some(log) = &self.log else { return say(book) };
        let marked = log.send(disk::Ready).into_actor(self);
        let book = book.clone();
        ctx.spawn(marked.map(move |marked, coordinator, _| {
            // A node that was lost meanwhile is told once it is back.
            if marked.unwrap_or(false) && coordinator.barrier.says_ready() {
                coordinator.failpoint.pass(|| Some(Point::ReadyMarked));
                say(&book);
            }
        }));
    }

    /// All nodes were ready, this one among them.
    fn form(&mut self, ctx: &mut Context<Self>) {
        let Some(log) = self.log.clone() else {
            log::info!(target: "barrier", "all nodes are ready, serving");
            return self.serve();
        };
        self.joining = true;
        self.failpoint.pass(|| Some(Point::FormBegun));
        let marked = log.send(disk::Formed).into_actor(self);
        ctx.spawn(marked.map(|marked, coordinator, ctx| {
            // A Log that cannot write has stopped the node.
            if marked.unwrap_or(false) {
                coordinator.failpoint.pass(|| Some(Point::FormMarked));
                log::info!(target: "barrier", "all nodes are ready, serving");
                coordinator.join(ctx);
            }
        }));
    }

    /// The cluster was formed without this node as it is now: what it promised is lost, so its
    /// replicas come under another name.
    fn begin_anew(&mut self, ctx: &mut Context<Self>) {
        if self.log.is_none() {
            log::info!(target: "barrier", "the cluster is formed, serving");
            return self.serve();
        }
        self.joining = true;
        self.asking = true;
        ctx.run_later(ASK_AROUND, Self::name_replicas);
        if self.barrier.has_met_all() {
            self.name_replicas(ctx);
        }
    }

    /// Names the replicas of a node that has lost its disk.
    fn name_replicas(&mut self, ctx: &mut Context<Self>) {
        let Some(log) = self.log.clone().filter(|_| std::mem::take(&mut self.asking)) else {
            return;
        };
        let anew = disk::BeginAnew { second: (self.clock)().wall.0 / 1000, seen: self.seen };
        let begun = log.send(anew).into_actor(self);
        ctx.spawn(begun.map(|generation, coordinator, ctx| {
            let (Ok(Some(generation)), Some(book)) = (generation, coordinator.book.clone()) else {
                return;
            };
            log::warn!(
                target: "barrier",
                "the cluster was formed before and the data directory is new: rejoining with \
                 replicas of generation {generation}"
            );
            coordinator.replicas.begin_anew(generation, &book);
            coordinator.join(ctx);
        }));
    }

    /// A node has seen later names of this one than those it has.
    fn outlived(&mut self, by: NodeId, seen: LastSeen, ctx: &mut Context<Self>) {
        if let Some(log) = &self.log {
            let raised = log.send(disk::Outlived(by, seen)).into_actor(self);
            ctx.spawn(raised.map(move |life, coordinator, _| {
                if let Ok(Some(life)) = life {
                    coordinator.relive(life, by);
                }
            }));
        } else if let Some(record) = &mut self.record {
            match record.outlived(by, seen) {
                Ok(life) => self.relive(life, by),
                Err(error) => (self.stop)(&error.to_string()),
            }
        }
    }

    /// Goes on in a later life than the one begun with.
    fn relive(&mut self, life: Incarnation, by: NodeId) {
        let Some(book) = &self.book else { return };
        if life == self.barrier.hello().life {
            return;
        }
        if self.formed.is_none() {
            // It is noted, and what runs in this life cannot be changed.
            (self.stop)(&format!("node {by} has seen a later life of this node: start it again"));
            return;
        }
        log::warn!(
            target: "barrier",
            "node {by} has seen a later life of this node than this one: going on as life {}", life.0
        );
        self.barrier.relive(life);
        self.transactions.relive(life);
        book.buckets.iter().for_each(|bucket| bucket.do_send(bucket::Relive(life)));
        book.peers.values().for_each(|peer| peer.do_send(peer::Relive(life)));
    }

    fn join(&mut self, ctx: &mut Context<Self>) {
        self.joining = false;
        self.serve();
        self.carry_barrier(Vec::new(), ctx);
    }

    /// The cluster is formed, for good.
    fn serve(&mut self) {
        let Some(book) = &self.book else { return };
        self.replicas.restate(book);
        if let Some(formed) = self.formed.take() {
            // Who starts the node may have stopped waiting.
            let _ = formed.send(());
        }
    }

    /// Decides what can be decided about suspect replicas.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        let Some(Decided { replaced, trusted }) = self.replicas.decide() else { return };
        let Some(log) = &self.log else { return };
        let second = (self.clock)().wall.0 / 1000;
        let settle = disk::Settle { replaced, trusted: trusted.clone(), second };
        let settled = log.send(settle).into_actor(self);
        ctx.spawn(settled.map(move |replaced, coordinator, _| {
            let (Ok(Some(replaced)), Some(book)) = (replaced, coordinator.book.clone()) else {
                return;
            };
            if !replaced.is_empty() {
                log::warn!(
                    target: "barrier",
                    "rejoining {} with new replicas: other nodes have what was acknowledged and \
                     may not have been synced here",
                    facts::counted(replaced.len())
                );
            }
            if !trusted.is_empty() {
                log::error!(
                    target: "barrier",
                    "{} had a majority of replicas on machines that went down: what was \
                     acknowledged less than a second before may be lost",
                    facts::counted(trusted.len())
                );
            }
            coordinator.replicas.settle(&replaced, &trusted, &book);
        }));
    }

    /// Says when the wall clock has been set: expiry goes by stamps, which do not follow it at once.
    fn watch_clocks(&mut self, now: Now) {
        let drift = now.drift_since(self.looked);
        self.looked = now;
        if drift >= DRIFT_TOLD_MS {
            log::warn!(
                target: "clock",
                "the wall clock was set by {drift} ms, or this machine was paused: expiry \
                 follows it by a tenth of the time that passes"
            );
        }
    }

    fn remind(&mut self) {
        if self.reminded.elapsed() < REMIND_AFTER {
            return;
        }
        self.reminded = Instant::now();
        if let Standing::Waiting(missing) = self.barrier.standing() {
            let missing: Vec<String> = missing.iter().map(NodeId::to_string).collect();
            log::warn!(target: "barrier", "waiting for nodes {}", missing.join(", "));
        }
    }
}

/// Polled by the context once the mailbox is empty.
struct Drained;

impl ActorFuture<Coordinator> for Drained {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        coordinator: &mut Coordinator,
        _: &mut Context<Coordinator>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<()> {
        coordinator.flush();
        Poll::Pending
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |coordinator, _| {
            let now = (coordinator.clock)();
            coordinator.watch_clocks(now);
            coordinator.transactions.tick(now, &mut coordinator.effects);
            coordinator.remind();
        });
        // Last: what the interval brought is flushed with the rest.
        ctx.spawn(Drained);
    }
}

impl Handler<Wire> for Coordinator {
    type Result = ();

    fn handle(&mut self, wire: Wire, ctx: &mut Context<Self>) {
        (self.book, self.log) = (Some(wire.0), wire.1);
        let mut effects = Vec::new();
        self.barrier.start(&mut effects);
        if self.barrier.standing() == Standing::Formed && effects.is_empty() {
            // It was before this process.
            self.serve();
        }
        self.carry_barrier(effects, ctx);
    }
}

impl Handler<Begin> for Coordinator {
    type Result = ();

    fn handle(&mut self, Begin(starts): Begin, _: &mut Context<Self>) {
        let now = (self.clock)();
        for Start { work, ended } in starts {
            self.next_client += 1;
            let client = ClientId(self.next_client);
            self.clients.insert(client, ended);
            self.transactions.begin(client, work, now, &mut self.effects);
        }
    }
}

impl Handler<ForCoordinator> for Coordinator {
    type Result = ();

    fn handle(&mut self, ForCoordinator(messages): ForCoordinator, _: &mut Context<Self>) {
        let now = (self.clock)();
        for message in messages {
            self.failpoint.pass(|| Point::heard_by_coordinator(&message));
            self.transactions.handle(message, now, &mut self.effects);
        }
    }
}

impl Handler<NodeUp> for Coordinator {
    type Result = ();

    fn handle(&mut self, NodeUp(hello): NodeUp, ctx: &mut Context<Self>) {
        let now = (self.clock)();
        self.transactions.node_up(hello.node, hello.life, now, &mut self.effects);
        if let Some(book) = &self.book {
            self.replicas.met(&hello, book);
        }
        self.seen = self.seen.max(hello.seen.generation);
        let mut effects = Vec::new();
        self.barrier.met(&hello, &mut effects);
        self.carry_barrier(effects, ctx);
        if self.asking && self.barrier.has_met_all() {
            self.name_replicas(ctx);
        }
        if self.formed.is_none() && self.replicas.is_outlived_by(self.seen) {
            self.outlived(hello.node, hello.seen, ctx);
        }
        self.settle(ctx);
    }
}

impl Handler<NodeDown> for Coordinator {
    type Result = ();

    fn handle(&mut self, NodeDown(node): NodeDown, ctx: &mut Context<Self>) {
        let now = (self.clock)();
        self.transactions.node_down(node, now, &mut self.effects);
        self.barrier.lost(node);
        self.replicas.lost(node);
        self.carry_barrier(Vec::new(), ctx);
    }
}

impl Handler<Outlived> for Coordinator {
    type Result = ();

    fn handle(&mut self, Outlived(by, seen): Outlived, ctx: &mut Context<Self>) {
        self.outlived(by, seen, ctx);
    }
}

impl Handler<NodeSuspected> for Coordinator {
    type Result = ();

    fn handle(&mut self, told: NodeSuspected, _: &mut Context<Self>) {
        let now = (self.clock)();
        match told.suspected {
            true => self.transactions.node_suspected(told.node, now, &mut self.effects),
            false => self.transactions.node_trusted(told.node),
        }
    }
}

impl Handler<Verified> for Coordinator {
    type Result = ();

    fn handle(&mut self, Verified(node, partitions): Verified, ctx: &mut Context<Self>) {
        self.replicas.verified(node, &partitions);
        self.settle(ctx);
    }
}

impl Handler<Sound> for Coordinator {
    type Result = ();

    fn handle(&mut self, Sound(partitions): Sound, _: &mut Context<Self>) {
        if let Some(book) = &self.book {
            self.replicas.sound(&partitions, book);
        }
    }
}

impl Handler<Led> for Coordinator {
    type Result = ();

    fn handle(&mut self, Led(partition, node, term): Led, _: &mut Context<Self>) {
        let now = (self.clock)();
        self.transactions.led(partition, node, term, now, &mut self.effects);
    }
}

impl Handler<NodeReady> for Coordinator {
    type Result = ();

    fn handle(&mut self, NodeReady(node, life): NodeReady, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.barrier.ready(node, life, &mut effects);
        self.carry_barrier(effects, ctx);
    }
}

impl Handler<Observe> for Coordinator {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> MessageResult<Observe> {
        MessageResult(Report {
            standing: self.barrier.standing(),
            active: self.transactions.active(),
            counts: self.transactions.counts(),
        })
    }
}
