//! The partitions placed on one arbiter, and the batches that wait there.
//!
//! A batch runs in three passes: prefetch the slots, prefetch the items, execute. The misses of
//! a batch overlap instead of following one another, which is the largest single gain of the hot
//! path. An operation on a contended key, or one that has to go through a log, leaves a hole in its
//! batch's replies; the batch is answered once all holes are filled.
//!
//! Once the mailbox is empty, [`Bucket::flush`] gives every partition that has something to do its
//! turn: whatever arrived together is proposed together, logged together and sent together.

mod leadership;
mod nodes;
mod parking;

pub use self::leadership::DRIFT_AFTER_MS;
pub use self::parking::Parked;

use self::leadership::Wishes;
use self::parking::{ParkedBatch, Parking};
use crate::batch::machine::{Machine, too_long};
use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Op, OpHead, Replies};
use crate::cluster::topology::Topology;
use crate::consensus::{Persist, ReplicaId};
use crate::ids::Term;
use crate::ids::{Incarnation, NodeId, Now, PartitionId};
use crate::partition::journal::{OpOutcome, OpWaiter, Turn};
use crate::partition::replica::ANSWERS_BYTES_KEPT;
use crate::partition::snapshots::{FromArchive, ToArchive};
use crate::partition::{Foresight, Neighbours, Partition, PartitionEffect, Took};
use crate::store::tables::Access;
use crate::store::tables::{KeyHasher, Tables};
use crate::txn::protocol::{Claim, Ticket, ToCoordinator, ToPartition};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Replies of one batch stop growing past this: the rest is executed when it is asked for again.
/// Those of operations that wait for a log or a lock are foreseen.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// A batch whose operations go through more bytes than this is stopped like one with long replies:
/// some ten milliseconds in which no other client is served.
const EFFORT_MAX: usize = 1 << 24;

/// A single reply that is longer is not given: it would fit no frame, and its end no offset.
pub const ONE_REPLY_BYTES_MAX: usize = 1 << 29;

/// Steps of active expiry that a tick takes in each partition at most.
const EXPIRE_STEPS_MAX: usize = 16;

/// A step that removes at least so many items is followed by another one: as in Redis, the work
/// grows with what there is to do, up to a bound.
const EXPIRE_MORE: usize = 64;

/// Messages of groups that are kept while theirs take no part yet.
const TOLD_ASLEEP_MAX: usize = 4096;

/// Turns that one flush gives, for each partition there is. A few do: a turn does all that it can.
const TURNS_EACH_MAX: usize = 64;

/// How a batch came out.
#[derive(Debug)]
pub enum Executed {
    /// All of it, or a first part (as many operations as there are replies), is answered.
    Done(Batch, Replies),
    /// It waits; [`Outbox::completed`] will have it.
    Parked(Parked),
}

/// What a Bucket wants done.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Messages of the commit protocol.
    pub effects: Vec<PartitionEffect>,
    /// Messages between the replicas of a partition.
    pub raft: Vec<(NodeId, PartitionId, Bytes)>,
    /// What the node's log has to keep; [`Bucket::persisted`] says that it does.
    pub persists: Vec<(PartitionId, Persist)>,
    /// Batches that no longer wait.
    pub completed: Vec<(Parked, Batch, Replies)>,
    /// The leader of a partition from now on, and its term.
    pub leaders: Vec<(PartitionId, NodeId, Term)>,
    /// What the node's archive of snapshots is asked; [`Bucket::archived`] takes its news.
    pub archive: Vec<(PartitionId, ToArchive)>,
    /// Durable snapshots hold everything up to these entries: the log need not.
    pub covered: Vec<(PartitionId, u64)>,
    /// Partitions whose replica here can verify what it acknowledged from now on.
    pub sound: Vec<PartitionId>,
    /// Replicas of other nodes that have come into a group.
    pub members: Vec<ReplicaId>,
    /// Why the node has to stop: what its log holds cannot be read.
    pub fatal: Option<String>,
}

/// What a Bucket counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// Operations executed.
    pub operations: u64,
    /// Batches executed.
    pub batches: u64,
    /// Operations that waited for a contended key.
    pub waits: u64,
    /// Items removed because their time had come.
    pub expired: u64,
    /// Keys that reads found.
    pub hits: u64,
    /// Keys that reads did not find.
    pub misses: u64,
}

/// The state of one Bucket.
#[derive(Debug)]
pub struct Bucket<M> {
    life: Incarnation,
    /// Indexed by partition; `None` where the partition is placed elsewhere.
    partitions: Vec<Option<Partition<M>>>,
    neighbours: Neighbours,
    parking: Parking,
    /// Operations that wait for a contended key: which, where, and until when, in ms of the
    /// monotonic clock.
    tickets: BTreeMap<Ticket, (OpWaiter, PartitionId, u64)>,
    next: u64,
    lock_wait_ms: u64,
    reply_bytes_max: usize,
    /// Bytes that the node's tables may grow by. Operations that need more memory are refused where
    /// there are none, and those that stretch a value by more.
    room: usize,
    /// Expired items are removed by themselves, not only when they are met.
    expires_actively: bool,
    counts: BucketCounts,
    /// Partitions that want a turn, each once.
    dirty: Vec<PartitionId>,
    is_dirty: Vec<bool>,
    /// Taken out while it is filled, and boxed for that: it is large.
    turn: Option<Box<Turn>>,
    wishes: Wishes,
    /// The log that a partition may write between two snapshots.
    snapshot_after: u64,
    backup_bytes_max: usize,
    orders: Vec<ToArchive>,
    /// The generation of each other node's replicas, where it said one.
    generations: BTreeMap<(PartitionId, NodeId), u32>,
    /// Partitions that take no part before the suspicion of their replica is settled.
    suspects: BTreeSet<PartitionId>,
    /// Partitions whose replica is suspect or does not vote yet.
    unsound: BTreeSet<PartitionId>,
    /// What the groups were told while they take no part.
    asleep: Option<Vec<(PartitionId, Bytes)>>,
}

impl<M: Machine> Bucket<M> {
    /// A Bucket that owns the partitions `owned`, which have no other copies. Tickets are counted
    /// from `first_ticket`, so that the Buckets of a node do not share any.
    pub fn new(
        node: NodeId,
        life: Incarnation,
        topology: Arc<Topology>,
        owned: &[PartitionId],
        hasher: KeyHasher,
        first_ticket: u64,
        lock_wait_ms: u64,
    ) -> Bucket<M> {
        let mut partitions: Vec<Option<Partition<M>>> =
            topology.placement().partitions().map(|_| None).collect();
        for &id in owned {
            partitions[id.index()] = Some(Partition::new(id, node, life, hasher));
        }
        Bucket {
            life,
            is_dirty: vec![false; partitions.len()],
            partitions,
            wishes: Wishes::new(topology.placement().clone()),
            neighbours: Neighbours::new(topology),
            parking: Parking::default(),
            tickets: BTreeMap::new(),
            next: first_ticket,
            lock_wait_ms,
            reply_bytes_max: REPLY_BYTES_MAX,
            room: usize::MAX,
            expires_actively: true,
            counts: BucketCounts::default(),
            dirty: Vec::new(),
            turn: None,
            snapshot_after: u64::MAX,
            backup_bytes_max: usize::MAX,
            orders: Vec::new(),
            generations: BTreeMap::new(),
            suspects: BTreeSet::new(),
            unsound: BTreeSet::new(),
            asleep: None,
        }
    }

    /// The partitions owned.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition<M>> {
        self.partitions.iter().flatten()
    }

    /// One of the partitions.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition<M>> {
        self.partitions.get(id.index())?.as_ref()
    }

    /// One of the partitions, to be given a turn at the next [`Bucket::flush`].
    pub fn partition_mut(&mut self, id: PartitionId) -> Option<&mut Partition<M>> {
        self.touch(id);
        self.partitions.get_mut(id.index())?.as_mut()
    }

    /// What it counted.
    pub fn counts(&self) -> BucketCounts {
        let mut counts = self.counts;
        for tables in self.partitions().map(|partition| partition.replica().tables()) {
            counts.expired += tables.expirations();
            counts.hits += tables.hits();
            counts.misses += tables.misses();
        }
        counts
    }

    /// By how many bytes the node's tables may grow from now on.
    pub fn allow_growth(&mut self, room: usize) {
        self.room = room;
    }

    /// Replies of one batch stop growing past this, in place of [`REPLY_BYTES_MAX`].
    pub fn reply_bytes_max(&mut self, bytes: usize) {
        self.reply_bytes_max = bytes;
    }

    /// Whether expired items are removed by themselves from now on.
    pub fn expire_actively(&mut self, active: bool) {
        self.expires_actively = active;
    }

    /// Whether memory is scarce: operations that need more of it are refused.
    pub fn is_full(&self) -> bool {
        self.room == 0
    }

    /// A partition is copied to a snapshot when its log has grown by so many bytes.
    pub fn snapshot_after(&mut self, bytes: u64) {
        self.snapshot_after = bytes;
    }

    /// How many bytes the copies of a backup may hold here.
    pub fn backup_bytes_max(&mut self, bytes: usize) {
        self.backup_bytes_max = bytes;
    }

    /// Gives up copies of a backup that no client pulls from, or all of them if they hold too much:
    /// the writes are faster than the client that pulls.
    fn tend_backups(&mut self, now: Now) {
        let partitions = self.partitions.iter_mut().flatten();
        let held: usize = partitions.map(|partition| partition.tend_backup(now.mono)).sum();
        if held > self.backup_bytes_max {
            let max = self.backup_bytes_max;
            log::warn!(target: "backup", "the copies hold {held} bytes of {max}: given up");
            self.partitions.iter_mut().flatten().for_each(Partition::abandon_backup);
        }
    }

    /// Bytes of its tables.
    pub fn bytes(&self) -> usize {
        self.partitions().map(|partition| partition.replica().tables().bytes()).sum()
    }

    /// What it knows of the nodes.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Has a partition given a turn.
    #[inline]
    fn touch(&mut self, id: PartitionId) {
        if let Some(dirty) = self.is_dirty.get_mut(id.index())
            && !std::mem::replace(dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Runs a batch. `replies` is a recycled buffer, empty.
    pub fn execute(
        &mut self,
        batch: Batch,
        mut replies: Replies,
        now: Now,
        out: &mut Outbox,
    ) -> Executed {
        if batch.len() > 1 {
            self.prefetch(std::iter::once(&batch));
        }
        self.counts.batches += 1;
        let parked = self.parking.next();
        let mut holes = 0;
        let (mut late, mut waits) = (0_usize, Foresight::default());
        let mut effort = 0_usize;
        for (index, op) in batch.iter().enumerate() {
            let id = op.head.partition;
            let waiter = OpWaiter { parked, index: index as u32 };
            match self.partitions.get_mut(id.index()) {
                Some(Some(partition))
                    if self.room < usize::MAX
                        && M::grows(op.head.code)
                        && partition.is_led_here()
                        && !is_room_for(&mut self.room, partition, &op) =>
                {
                    M::refuse(&Refusal::Full, &mut replies.bytes);
                }
                Some(Some(partition)) => {
                    effort = effort.saturating_add(partition.effort(&op));
                    let took = partition.execute(&op, now, waiter, &mut replies.bytes);
                    let touched = partition.wants_turn();
                    match took {
                        Took::Done => {}
                        Took::Filed => {
                            holes += 1;
                            late = late.saturating_add(partition.foresee(&op, &mut waits));
                        }
                        Took::Blocked(claims) => {
                            holes += 1;
                            late = late.saturating_add(partition.foresee(&op, &mut waits));
                            self.wait(waiter, id, claims, now, out);
                        }
                        Took::NotLeader => replies.not_leader.push(waiter.index),
                    }
                    if touched {
                        self.touch(id);
                    }
                }
                _ => replies.not_leader.push(waiter.index),
            }
            if replies.bytes.len().saturating_add(late) > self.reply_bytes_max {
                let start = replies.ends.last().map_or(0, |end| *end as usize);
                if replies.bytes.len() - start > ONE_REPLY_BYTES_MAX + REPLY_BYTES_MAX {
                    replies.bytes.truncate(start);
                    M::refuse(&too_long::<M>(op.head), &mut replies.bytes);
                }
                replies.end();
                break;
            }
            replies.end();
            if effort > EFFORT_MAX {
                break;
            }
        }
        self.counts.operations += replies.len() as u64;
        if holes == 0 {
            return Executed::Done(batch, replies);
        }
        self.parking.put(parked, ParkedBatch::new(batch, replies, holes));
        Executed::Parked(parked)
    }

    /// Has an operation wait at the lock manager. At once: what its batch asks of the same keys
    /// next must find it waiting.
    fn wait(
        &mut self,
        waiter: OpWaiter,
        id: PartitionId,
        claims: Vec<Claim>,
        now: Now,
        out: &mut Outbox,
    ) {
        self.counts.waits += 1;
        let ticket = Ticket(self.next());
        let until = now.mono.saturating_add(self.lock_wait_ms);
        self.tickets.insert(ticket, (waiter, id, until));
        if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
            partition.wait(ticket, claims, &mut out.effects);
        }
    }

    /// Starts the loads of what the batches will touch.
    pub fn prefetch<'a>(&self, batches: impl Iterator<Item = &'a Batch> + Clone) {
        for batch in batches.clone() {
            self.each_keyed(batch, |tables, head| tables.prefetch_slot(head.table, head.hash));
        }
        for batch in batches {
            self.each_keyed(batch, |tables, head| tables.prefetch_item(head.table, head.hash));
        }
    }

    #[inline]
    fn each_keyed(&self, batch: &Batch, visit: impl Fn(&Tables, OpHead)) {
        for head in batch.heads().filter(|head| head.hash != 0) {
            if let Some(Some(partition)) = self.partitions.get(head.partition.index()) {
                visit(partition.replica().tables(), head);
            }
        }
    }

    /// Takes a message for one of the partitions.
    pub fn handle(&mut self, to: PartitionId, message: ToPartition, now: Now, out: &mut Outbox) {
        let ticket = Ticket(self.next());
        if let Some(Some(partition)) = self.partitions.get_mut(to.index()) {
            if partition.is_led_here()
                && let Some(txn) = partition.asks_too_much(&message)
            {
                out.effects
                    .push(PartitionEffect::Coordinator(txn.node, ToCoordinator::TooMuch { txn }));
                return;
            }
            if self.room < usize::MAX && partition.is_led_here() {
                match partition.needs_memory(&message, self.room, now) {
                    // Until it is measured, other operations do not have what it takes. One left is
                    // not yet none.
                    Ok(0) => {}
                    Ok(bytes) => self.room = (self.room - bytes).max(1),
                    Err(txn) => {
                        let full = ToCoordinator::Full { txn };
                        out.effects.push(PartitionEffect::Coordinator(txn.node, full));
                        return;
                    }
                }
            }
            partition.handle(message, ticket, now, &self.neighbours, &mut out.effects);
            self.touch(to);
        }
    }

    /// Takes a message of a partition's group from another node.
    ///
    /// # Errors
    /// In words, when it is no such message: the sender is not what it should be.
    pub fn raft(&mut self, to: PartitionId, message: &Bytes, now: Now) -> Result<(), String> {
        if let Some(told) = &mut self.asleep {
            // What does not fit is said again.
            if told.len() < TOLD_ASLEEP_MAX {
                told.push((to, message.clone()));
            }
            return Ok(());
        }
        if self.suspects.contains(&to) {
            return Ok(());
        }
        let Some(Some(partition)) = self.partitions.get_mut(to.index()) else { return Ok(()) };
        let Some(journal) = partition.journal_mut() else { return Ok(()) };
        journal.group_mut().step(message, now)?;
        // Most answers to heartbeats change nothing but what the leader knows of the follower.
        if partition.is_stirred() {
            self.touch(to);
        }
        Ok(())
    }

    /// The log keeps what a partition's group asked it to, up to this number.
    pub fn persisted(&mut self, id: PartitionId, number: u64) {
        if let Some(Some(partition)) = self.partitions.get_mut(id.index())
            && let Some(journal) = partition.journal_mut()
        {
            journal.group_mut().persisted(number);
            self.touch(id);
        }
    }

    /// Has a snapshot of a partition made, however little it is due.
    pub fn snapshot(&mut self, id: PartitionId, out: &mut Outbox) {
        if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
            partition.ask_for_snapshot(&mut self.orders);
            out.archive.extend(self.orders.drain(..).map(|order| (id, order)));
        }
    }

    /// Takes news of the node's archive for a partition.
    pub fn archived(&mut self, id: PartitionId, news: FromArchive<M>, now: Now, out: &mut Outbox) {
        if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
            let covered = partition.archived(news, now, &mut self.orders);
            out.archive.extend(self.orders.drain(..).map(|order| (id, order)));
            out.covered.extend(covered.map(|index| (id, index)));
            self.touch(id);
        }
    }

    /// The lock manager grants a request.
    pub fn granted(&mut self, id: PartitionId, ticket: Ticket, now: Now, out: &mut Outbox) {
        let Some(Some(partition)) = self.partitions.get_mut(id.index()) else { return };
        let mut reply = Vec::new();
        let mut took = None;
        let known = self.tickets.remove(&ticket);
        match known.map(|(waiter, ..)| (waiter, self.parking.get_mut(waiter.parked))) {
            Some((waiter, Some(waiting))) => {
                let op: Op<'_> = waiting.batch.op(waiter.index as usize);
                let op = Some((&op, waiter));
                took = partition.granted(ticket, op, now, &mut reply, &mut out.effects);
            }
            _ => drop(partition.granted(ticket, None, now, &mut reply, &mut out.effects)),
        }
        self.touch(id);
        if let (Some((waiter, ..)), Some(Took::Done)) = (known, took) {
            self.fill(waiter, &reply, out);
        }
    }

    /// Gives every partition that has something to do its turn, until none has, or others have to be
    /// heard first: what is left goes on with the next flush.
    pub fn flush(&mut self, now: Now, out: &mut Outbox) {
        for _ in 0..TURNS_EACH_MAX * self.partitions.len() {
            let Some(id) = self.dirty.pop() else { return };
            self.is_dirty[id.index()] = false;
            let Some(Some(partition)) = self.partitions.get_mut(id.index()) else { continue };
            if partition.journal().is_none() {
                continue;
            }
            let mut turn = self.turn.take().unwrap_or_default();
            if let Err(why) = partition.turn(now, &mut out.effects, &mut turn) {
                out.fatal = Some(why);
                return;
            }
            if partition.wants_turn() {
                self.touch(id);
            }
            self.finish(id, &mut turn, out);
            self.turn = Some(turn);
        }
    }

    /// Passes on what a turn brought.
    fn finish(&mut self, id: PartitionId, turn: &mut Turn, out: &mut Outbox) {
        turn.messages.retain(|message| self.lives(id, message.to));
        turn.orders.retain(|order| match order {
            ToArchive::Send(outgoing) => self.lives(id, outgoing.to),
            _ => true,
        });
        out.raft
            .extend(turn.messages.drain(..).map(|message| (message.to.node(), id, message.bytes)));
        out.persists.extend(turn.persists.drain(..).map(|persist| (id, persist)));
        out.archive.extend(turn.orders.drain(..).map(|order| (id, order)));
        let outcomes = std::mem::take(&mut turn.outcomes);
        for &(waiter, outcome) in &outcomes {
            match outcome {
                OpOutcome::Replied(reply) => {
                    self.fill(waiter, turn.replies.get(reply as usize), out)
                }
                OpOutcome::Left => self.leave(waiter, out),
                OpOutcome::NotLeader => self.turn_away(waiter, out),
                OpOutcome::Deposed => self.refuse(waiter, &Refusal::Deposed(id), out),
                OpOutcome::Unknown => {
                    let waiting = self.parking.get_mut(waiter.parked);
                    let head = waiting.map(|waiting| waiting.batch.head(waiter.index as usize));
                    let reads = head.is_some_and(|head| M::access(head.code) == Access::Read);
                    let refusal = match reads {
                        true => Refusal::Deposed(id),
                        false => Refusal::Unknown(id),
                    };
                    self.refuse(waiter, &refusal, out);
                }
            }
        }
        turn.outcomes = outcomes;
        turn.outcomes.clear();
        turn.replies.clear();
        turn.replies.bytes.shrink_to(ANSWERS_BYTES_KEPT);
        match turn.office.take() {
            Some(true) => {
                let lives: Vec<_> = self.neighbours.lives.iter().map(|(n, l)| (*n, *l)).collect();
                if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
                    lives.iter().for_each(|(node, life)| partition.coordinator_began(*node, *life));
                }
                self.touch(id);
            }
            Some(false) => {
                let here = self.tickets.extract_if(.., |_, (_, at, _)| *at == id);
                let waiters: Vec<OpWaiter> = here.map(|(_, (waiter, ..))| waiter).collect();
                waiters.into_iter().for_each(|waiter| self.turn_away(waiter, out));
            }
            None => {}
        }
        out.members.append(&mut turn.members);
        if let Some((node, term)) = turn.leader.take() {
            out.leaders.push((id, node, term));
        }
    }

    /// A step of the groups' clocks: elections and heartbeats. To be called often, at any pace.
    pub fn beat(&mut self, now: Now) {
        if self.asleep.is_some() {
            return;
        }
        self.succeed(now);
        for index in 0..self.partitions.len() {
            if self.suspects.contains(&PartitionId(index as u16)) {
                continue;
            }
            let Some(partition) = &mut self.partitions[index] else { continue };
            let Some(journal) = partition.journal_mut() else { continue };
            let ticked = journal.group_mut().tick(now);
            // A deposed leader's entries grow old by themselves.
            if ticked && journal.group().has_output() || !journal.leads() && !journal.is_calm() {
                self.touch(PartitionId(index as u16));
            }
        }
    }

    /// Regular upkeep: repeats what is unanswered, and gives up operations that waited too long.
    pub fn tick(&mut self, now: Now, out: &mut Outbox) {
        for index in 0..self.partitions.len() {
            let Some(partition) = &mut self.partitions[index] else { continue };
            partition.tick(now, &self.neighbours, &mut out.effects);
            let id = partition.id();
            let of_it = (id, NodeId(0))..=(id, NodeId(u16::MAX));
            let generations = self.generations.range(of_it);
            partition.replace_members(generations.map(|((_, node), number)| (*node, *number)));
            if partition.snapshot_is_due(self.snapshot_after, now.mono, self.room == 0) {
                partition.ask_for_snapshot(&mut self.orders);
                let orders = self.orders.drain(..);
                out.archive.extend(orders.map(|order| (PartitionId(index as u16), order)));
            }
        }
        self.tend_backups(now);
        self.verify(out);
        self.drift_back(now);
        self.expire(now);
        // Not all of them: a thousand partitions at rest would have ten thousand turns a second.
        for index in 0..self.partitions.len() {
            if self.partitions[index].as_ref().is_some_and(Partition::wants_turn) {
                self.touch(PartitionId(index as u16));
            }
        }
        let late = |(ticket, (_, _, until)): (&Ticket, &(OpWaiter, PartitionId, u64))| {
            (*until <= now.mono).then_some(*ticket)
        };
        let late: Vec<Ticket> = self.tickets.iter().filter_map(late).collect();
        for ticket in late {
            let Some((waiter, id, _)) = self.tickets.remove(&ticket) else { continue };
            if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
                partition.cancel(ticket, &mut out.effects);
            }
            self.refuse(waiter, &Refusal::Locked, out);
        }
    }

    /// A cycle of active expiry. The steps go round the partitions, so that none waits for the
    /// others' backlog.
    fn expire(&mut self, now: Now) {
        if !self.expires_actively {
            return;
        }
        let mut busy: Vec<&mut Partition<M>> = self.partitions.iter_mut().flatten().collect();
        for _ in 0..EXPIRE_STEPS_MAX {
            busy.retain_mut(|partition| {
                partition.expire_some(now).is_some_and(|removed| removed >= EXPIRE_MORE)
            });
            if busy.is_empty() {
                break;
            }
        }
    }

    /// Whether nothing waits and nothing is locked.
    pub fn is_at_rest(&self) -> bool {
        self.parking.is_empty()
            && self.tickets.is_empty()
            && self.partitions().all(Partition::is_at_rest)
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The life of the node it runs on.
    pub fn life(&self) -> Incarnation {
        self.life
    }
}

/// Whether there is room for what the operation asks for; takes it if so. What operations add that
/// ask for no more than their own bytes is measured, ten times a second.
fn is_room_for<M: Machine>(room: &mut usize, partition: &Partition<M>, op: &Op<'_>) -> bool {
    if *room > 0 && M::stretches(op) > 0 {
        let growth = partition.growth(op);
        if growth > *room {
            return false;
        }
        // One left is not yet none.
        *room = (*room - growth).max(1);
    }
    *room > 0
}

#[cfg(test)]
mod tests;
