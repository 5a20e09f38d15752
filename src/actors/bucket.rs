//! The Bucket: the partitions placed on one arbiter, and the clients connected there.
//!
//! Sessions are tasks on the Bucket's own arbiter, so a command for a key that lies here crosses
//! no thread. The Bucket also gives its Sessions what they share ([`Local`]).

mod messages;
mod moves;
mod report;

pub use self::messages::{
    Answer, Archived, Ask, Connect, Execute, Failure, ForPartitions, Granted, HandOver, Inform,
    Meet, NodeDown, NodeSuspected, NodeUp, Observe, Outcome, Raft, Reborn, Rejoin, Relive, Retire,
    Serve, Settle, Snapshot, Stand, Watch, Wire,
};
pub use self::moves::Move;
pub use self::report::{PartitionReport, Report};

use self::moves::Moves;
use crate::actors::book::Book;
use crate::actors::coordinator;
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::local::{Local, Setup};
use crate::actors::log::{Link, Persisted};
use crate::actors::peer::{self, Convey};
use crate::actors::session;
use crate::actors::submission::{Served, Slot, Submitted};
use crate::batch::{Batch, Replies};
use crate::cluster::barrier::Standing;
use crate::command::Redis;
use crate::command::node_query::{NodeAnswer, Question};
use crate::ids::{NodeId, Now, PartitionId};
use crate::memory::{self, Calm};
use crate::net::listen::TcpStream;
use crate::net::packet::Packet;
use crate::partition::bucket::{self as core, Executed, Outbox, Parked};
use actix::fut::ActorFuture;
use actix::{Actor, AsyncContext, Context, Handler, MessageResult};
use bytes::Bytes;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// How often unanswered questions are repeated and late operations given up; so old is the time of
/// [`Local::now`] at most.
pub const TICK: Duration = Duration::from_millis(100);

/// How often the groups' clocks are looked at.
const BEAT: Duration = Duration::from_millis(25);

/// The actor around the [`core::Bucket`].
#[derive(Debug)]
pub struct Bucket {
    core: core::Bucket<Redis>,
    /// Who waits for a batch that waits, by its place among those.
    parked: Vec<Option<Asker>>,
    out: Outbox,
    /// An empty queue, for its buffer.
    submissions: Vec<Submitted>,
    clock: fn() -> Now,
    /// Where its monotonic clock begins.
    epoch: u64,
    log: Option<Link>,
    setup: Setup,
    /// Bytes of the core's tables, as they are counted into those of the node.
    counted: usize,
    local: Option<Rc<Local>>,
    moves: Moves,
    calm: Calm,
    failpoint: Failpoint,
}

/// Who waits for a batch.
#[derive(Debug)]
enum Asker {
    /// A Session of this arbiter, since then.
    Here(Rc<Slot>, Instant),
    /// Another one.
    Elsewhere(Answer),
}

impl Asker {
    fn give(self, batch: Batch, replies: Replies) {
        match self {
            Asker::Here(slot, begun) => slot.give(Served { batch, replies, took: begun.elapsed() }),
            Asker::Elsewhere(answer) => answer.give(batch, replies),
        }
    }
}

impl Bucket {
    /// A Bucket around its core.
    pub fn new(
        core: core::Bucket<Redis>,
        clock: fn() -> Now,
        setup: Setup,
        failpoint: Failpoint,
    ) -> Bucket {
        Bucket {
            core,
            parked: Vec::new(),
            submissions: Vec::new(),
            out: Outbox::default(),
            clock,
            epoch: clock().mono,
            log: None,
            setup,
            counted: 0,
            local: None,
            moves: Moves::default(),
            calm: Calm::default(),
            failpoint,
        }
    }

    /// Remembers who waits for a batch.
    fn park(&mut self, parked: Parked, asker: Asker) {
        let place = parked.place as usize;
        if self.parked.len() <= place {
            self.parked.resize_with(place + 1, || None);
        }
        let earlier = self.parked[place].replace(asker);
        assert!(earlier.is_none(), "a place is free once its batch was answered");
    }

    fn now(&self) -> Now {
        let Now { wall, mono } = (self.clock)();
        Now { wall, mono: mono.saturating_sub(self.epoch) }
    }

    /// Counts the tables' bytes into those of the node.
    fn measure(&mut self) {
        let bytes = self.core.bytes();
        let all = &self.setup.table_bytes;
        all.fetch_add(bytes, Ordering::Relaxed);
        all.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = bytes;
    }

    /// Gives back memory that a burst took, at a calm moment.
    fn give_back(&mut self, mono: u64) {
        let scarce = self.core.is_full();
        if self.calm.is_due(mono, scarce) {
            let counts = self.core.counts();
            if self.calm.look(mono, counts.operations + counts.expired, scarce) {
                memory::give_back();
            }
        }
    }

    /// Looks at the clock, and whether the node has room: its other Buckets may have filled it.
    fn look(&mut self) -> Now {
        let room = self.local.as_ref().map_or(usize::MAX, |local| local.room());
        self.core.allow_growth(room);
        self.now()
    }

    /// Gives the partitions their turn and carries out what they want done: once a turn of the
    /// mailbox, so that what came together is logged, sent and answered together.
    fn flush(&mut self) {
        let now = self.now();
        self.core.flush(now, &mut self.out);
        let Some(local) = &self.local else { return };
        let book = local.book.clone();
        let out = &mut self.out;
        if let Some(why) = out.fatal.take() {
            match &self.log {
                Some(log) => log.stop(&why),
                None => log::error!(target: "raft", "{why}"),
            }
        }
        if let Some(log) = &mut self.log {
            log.append(&mut out.persists);
            log.cover(&mut out.covered);
        }
        for (partition, order) in out.archive.drain(..) {
            book.tell_archive(partition, order);
        }
        carry_raft(&book, &mut out.raft);
        for member in out.members.drain(..) {
            if let Some(peer) = book.peers.get(&member.node()) {
                peer.do_send(peer::Seen(member.generation()));
            }
        }
        if !out.sound.is_empty() {
            book.coordinator.do_send(coordinator::Sound(std::mem::take(&mut out.sound)));
        }
        for (partition, node, term) in out.leaders.drain(..) {
            book.hear_of_leader(partition, node, term);
            self.moves.note(book.node, partition, node, term, now.wall);
            if node == book.node {
                let leads = Packet::Leads(partition, node, term);
                book.peers.values().for_each(|peer| peer.do_send(Convey(leads.clone())));
            }
        }
        self.failpoint.pass_all(&out.effects, Point::done_by_partition);
        book.carry(&mut out.effects);
        self.answer();
    }

    /// Answers the batches that no longer wait. The next one that waits may take a place of theirs,
    /// so whatever completes batches does this before anything else is executed.
    fn answer(&mut self) {
        for (parked, batch, replies) in self.out.completed.drain(..) {
            if let Some(asker) = self.parked.get_mut(parked.place as usize).and_then(Option::take) {
                asker.give(batch, replies);
            }
        }
    }
}

/// Sends each node what the groups have for it in one packet, in the order in which it was said.
fn carry_raft(book: &Book, messages: &mut Vec<(NodeId, PartitionId, Bytes)>) {
    let mut counts: Vec<(NodeId, usize)> = Vec::new();
    for (to, ..) in messages.iter() {
        match counts.iter_mut().find(|(node, _)| node == to) {
            Some((_, count)) => *count += 1,
            None => counts.push((*to, 1)),
        }
    }
    let shares = counts.into_iter().map(|(node, count)| (node, Vec::with_capacity(count)));
    let mut shares: Vec<_> = shares.collect();
    for (to, partition, message) in messages.drain(..) {
        if let Some((_, share)) = shares.iter_mut().find(|(node, _)| *node == to) {
            share.push((partition, serde_bytes::ByteBuf::from(message)));
        }
    }
    for (node, share) in shares {
        if let Some(peer) = book.peers.get(&node) {
            peer.do_send(Convey(Packet::Raft(share)));
        }
    }
}

/// Polled by the context once the mailbox is empty.
struct Drained;

impl ActorFuture<Bucket> for Drained {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        bucket: &mut Bucket,
        _: &mut Context<Bucket>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<()> {
        bucket.flush();
        Poll::Pending
    }
}

impl Actor for Bucket {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |bucket, _| {
            let now = bucket.now();
            bucket.core.tick(now, &mut bucket.out);
            bucket.answer();
            bucket.moves.tell();
            bucket.measure();
            bucket.give_back(now.mono);
            if let Some(local) = &bucket.local {
                local.tick(now.wall);
            }
        });
        ctx.run_interval(BEAT, |bucket, _| bucket.core.beat(bucket.now()));
        // Last: what the intervals brought is flushed with the rest.
        ctx.spawn(Drained);
    }
}

impl Handler<Execute> for Bucket {
    type Result = ();

    fn handle(&mut self, execute: Execute, _: &mut Context<Self>) {
        let Execute { batch, mut replies, answer } = execute;
        if answer.is_late((self.clock)()) {
            replies.not_leader = (0..batch.len() as u32).collect();
            (0..batch.len()).for_each(|_| replies.end());
            return answer.give(batch, replies);
        }
        let now = self.look();
        match self.core.execute(batch, replies, now, &mut self.out) {
            Executed::Done(batch, replies) => answer.give(batch, replies),
            Executed::Parked(parked) => {
                self.park(parked, Asker::Elsewhere(answer));
            }
        }
    }
}

impl Handler<Serve> for Bucket {
    type Result = ();

    fn handle(&mut self, _: Serve, _: &mut Context<Self>) {
        let Some(local) = self.local.clone() else { return };
        let now = self.look();
        local.look_at(self.setup.steady_at(self.epoch + now.mono));
        let mut submissions = local.submissions.swap(std::mem::take(&mut self.submissions));
        // Longer batches overlap their own misses.
        let lone =
            submissions.iter().map(|submitted| &submitted.batch).filter(|batch| batch.len() == 1);
        self.core.prefetch(lone);
        // Where one batch ends the next one begins: a look at the clock each.
        let mut begun = Instant::now();
        for Submitted { batch, replies, slot } in submissions.drain(..) {
            match self.core.execute(batch, replies, now, &mut self.out) {
                Executed::Done(batch, replies) => {
                    let ended = Instant::now();
                    slot.give(Served { batch, replies, took: ended - begun });
                    begun = ended;
                }
                Executed::Parked(parked) => {
                    self.park(parked, Asker::Here(slot, begun));
                }
            }
        }
        self.submissions = submissions;
    }
}

impl Handler<ForPartitions> for Bucket {
    type Result = ();

    fn handle(&mut self, ForPartitions(messages): ForPartitions, _: &mut Context<Self>) {
        let now = self.look();
        for (to, message) in messages {
            self.failpoint.pass(|| Point::heard_by_partition(&message));
            self.core.handle(to, message, now, &mut self.out);
        }
    }
}

impl Handler<Raft> for Bucket {
    type Result = ();

    fn handle(&mut self, raft: Raft, _: &mut Context<Self>) {
        let now = self.now();
        for (partition, message) in &raft.messages {
            if let Err(why) = self.core.raft(*partition, message, now) {
                let from = raft.from;
                log::error!(target: "raft", "partition {partition}, from node {from}: {why}");
            }
        }
    }
}

impl Handler<Persisted> for Bucket {
    type Result = ();

    fn handle(&mut self, persisted: Persisted, _: &mut Context<Self>) {
        let Persisted { numbers, spares } = persisted;
        if let Some(log) = &mut self.log {
            log.recycle(spares);
        }
        for (partition, number) in numbers {
            self.core.persisted(partition, number);
        }
    }
}

impl Handler<Archived> for Bucket {
    type Result = ();

    fn handle(&mut self, Archived(partition, news): Archived, _: &mut Context<Self>) {
        let now = self.now();
        self.core.archived(partition, news, now, &mut self.out);
    }
}

impl Handler<Reborn> for Bucket {
    type Result = ();

    fn handle(&mut self, Reborn(node, generations): Reborn, _: &mut Context<Self>) {
        self.core.reborn(node, &generations);
    }
}

impl Handler<Relive> for Bucket {
    type Result = ();

    fn handle(&mut self, Relive(life): Relive, _: &mut Context<Self>) {
        self.core.relive(life);
    }
}

impl Handler<Rejoin> for Bucket {
    type Result = ();

    fn handle(&mut self, Rejoin(partitions): Rejoin, _: &mut Context<Self>) {
        partitions.into_iter().for_each(|partition| self.core.place(partition));
    }
}

impl Handler<Settle> for Bucket {
    type Result = ();

    fn handle(&mut self, Settle(settled): Settle, _: &mut Context<Self>) {
        for (partition, setup) in settled {
            if let Err(why) = self.core.settle(partition, setup.as_ref()) {
                self.out.fatal = Some(why);
            }
        }
    }
}

impl Handler<Snapshot> for Bucket {
    type Result = ();

    fn handle(&mut self, Snapshot(partition): Snapshot, _: &mut Context<Self>) {
        self.core.snapshot(partition, &mut self.out);
    }
}

impl Handler<Granted> for Bucket {
    type Result = ();

    fn handle(&mut self, granted: Granted, _: &mut Context<Self>) {
        let now = self.now();
        let Granted { partition, ticket } = granted;
        self.core.granted(partition, ticket, now, &mut self.out);
        self.answer();
    }
}

impl Handler<Wire> for Bucket {
    type Result = ();

    fn handle(&mut self, wire: Wire, ctx: &mut Context<Self>) {
        self.local = Some(Local::new(wire.0, ctx.address(), self.setup.clone()));
        self.log = wire.1;
    }
}

impl Handler<Stand> for Bucket {
    type Result = ();

    fn handle(&mut self, stand: Stand, _: &mut Context<Self>) {
        if stand.0 == Standing::Formed {
            self.core.form(self.now());
        }
        if let Some(local) = &self.local {
            local.stand(stand.0);
        }
    }
}

impl Handler<NodeUp> for Bucket {
    type Result = ();

    fn handle(&mut self, NodeUp(hello): NodeUp, _: &mut Context<Self>) {
        self.core.node_up(hello.node, hello.life, &mut self.out);
        // It may have been away when these were elected.
        let Some(peer) = self.local.as_ref().and_then(|local| local.book.peers.get(&hello.node))
        else {
            return;
        };
        for led in self.core.partitions().filter(|one| one.journal().is_some()) {
            if led.is_led_here() {
                peer.do_send(Convey(Packet::Leads(led.id(), led.node(), led.term())));
            }
        }
    }
}

impl Handler<NodeDown> for Bucket {
    type Result = ();

    fn handle(&mut self, down: NodeDown, _: &mut Context<Self>) {
        let now = self.now();
        self.core.node_down(down.node, down.ended, &mut self.out);
        if down.dead {
            self.core.leader_died(down.node, now);
        }
    }
}

impl Handler<NodeSuspected> for Bucket {
    type Result = ();

    fn handle(&mut self, told: NodeSuspected, _: &mut Context<Self>) {
        let now = self.now();
        match told.suspected {
            true => self.core.node_suspected(told.node, now, &mut self.out),
            false => self.core.node_trusted(told.node),
        }
    }
}

impl Handler<HandOver> for Bucket {
    type Result = usize;

    fn handle(&mut self, _: HandOver, _: &mut Context<Self>) -> usize {
        self.core.hand_over()
    }
}

impl Handler<Connect> for Bucket {
    type Result = ();

    fn handle(&mut self, connect: Connect, _: &mut Context<Self>) {
        let Some(local) = &self.local else { return };
        match TcpStream::from_std(connect.stream) {
            Ok(stream) => {
                actix_rt::spawn(session::serve(stream, connect.client, local.clone()));
            }
            Err(error) => log::warn!(target: "session", "a socket cannot be taken over: {error}"),
        }
    }
}

impl Handler<Inform> for Bucket {
    type Result = ();

    fn handle(&mut self, inform: Inform, _: &mut Context<Self>) {
        if let Some(local) = &self.local {
            local.inform(&inform.0);
        }
    }
}

impl Handler<Ask> for Bucket {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, Ask(question): Ask, ctx: &mut Context<Self>) -> MessageResult<Ask> {
        match question {
            Question::Expire(active) => self.core.expire_actively(active),
            Question::Lead(partition, node) => {
                return MessageResult(NodeAnswer::Count(self.core.prefer(partition, node).into()));
            }
            Question::Snapshot => {
                let here: Vec<PartitionId> = self.core.partitions().map(|one| one.id()).collect();
                here.iter().for_each(|id| ctx.notify(Snapshot(*id)));
                return MessageResult(NodeAnswer::Count(here.len() as u64));
            }
            _ => {}
        }
        let told = self.local.as_ref().map_or(NodeAnswer::Done, |local| local.ask(question));
        // A limit may have changed.
        self.measure();
        MessageResult(told)
    }
}

impl Handler<Watch> for Bucket {
    type Result = ();

    fn handle(&mut self, watch: Watch, _: &mut Context<Self>) {
        if let Some(local) = &self.local {
            local.watch(watch.client, watch.feed);
        }
    }
}

impl Handler<Meet> for Bucket {
    type Result = ();

    fn handle(&mut self, Meet(metrics): Meet, _: &mut Context<Self>) {
        if let Some(local) = &self.local {
            local.metrics.replace(Some(metrics));
        }
    }
}

impl Handler<Retire> for Bucket {
    type Result = ();

    fn handle(&mut self, _: Retire, _: &mut Context<Self>) {
        if let Some(local) = &self.local {
            local.retire();
        }
    }
}
