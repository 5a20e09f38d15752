//! One partition on one node: its replica, and while this node leads it, the locks, the waiting
//! requests and the participant's and primary's side of the commit protocol.
//!
//! A single operation on unlocked keys runs at once. Everything else comes as a [`ToPartition`]
//! and leaves as an [`PartitionEffect`]:
//!
//! ```text
//!  Lock    ── locks, reads ─────────────▶ Granted      unlogged: goes with Coordinator and term
//!  Prepare ── locks, logs the intent ───▶ Voted        from here only a decision ends it
//!  Decide  ── at the primary: logs it ──▶ Decided      the commit point
//!          ── elsewhere: applies it ────▶ Applied      confirmed to the primary
//! ```
//!
//! A change of the replica is *proposed* together with what is to follow it ([`Completion`]). A
//! partition without copies applies it on the spot; a replicated one hands it to its [`journal`]
//! and goes on when the group has it for good. What the leader alone knows (locks, queues, unlogged
//! locks) is made anew from the replica's intents by the next leader.

pub mod backups;
pub mod bucket;
mod commit;
mod foresight;
mod inquiry;
pub mod journal;
pub mod record;
mod replace;
pub mod replica;
pub mod snapshot;
pub mod snapshots;
pub mod stamps;

pub use self::foresight::Foresight;

use crate::batch::Op;
use crate::batch::machine::{Machine, Scope};
use crate::cluster::topology::Topology;
use crate::consensus::Group;
use crate::ids::Term;
use crate::ids::{Age, Incarnation, Millis, NodeId, Now, PartitionId, TableIndex, TxnId};
use crate::partition::replica::{Applied, Mutation, Replica};
use crate::partition::stamps::Stamps;
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use crate::store::tables::{EXPIRED_NOTED_MAX, KeyHasher};
use crate::txn::claims::claims_of;
use crate::txn::lock_table::{LockTable, Released};
use crate::txn::protocol::{
    Acquire, Claim, Granule, Lock, Prepare, Ticket, ToCoordinator, ToLocks, ToPartition, Watched,
};
use commit::Deferred;
use inquiry::Inquiry;
use journal::{Completion, Journal, OpWaiter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long an intent waits for its decision before it asks the primary, while its Coordinator
/// seems well. Long against a busy queue, short against a person's patience.
pub const RESOLVE_AFTER_MS: u64 = 3_000;

/// The same where an earlier leader has proposed the intent: its Coordinator may have told the
/// outcome to that one. Sooner than anything is repeated.
pub const RESOLVE_INHERITED_AFTER_MS: u64 = 200;

/// How often a question or a decision that is not answered is repeated.
pub const REPEAT_AFTER_MS: u64 = 300;
const _: () = assert!(RESOLVE_INHERITED_AFTER_MS < REPEAT_AFTER_MS);

/// For how many of a Coordinator's transactions a partition without copies remembers how each of
/// them ended, whatever the Coordinator says: about a second of one that is busy.
const LINGER: u64 = 1 << 12;

/// Cells that a step of active expiry looks at. No more expired items than cells are found, so
/// none is forgotten for lack of room.
const EXPIRE_CELLS: usize = 1024;
const _: () = assert!(EXPIRE_CELLS <= EXPIRED_NOTED_MAX);

/// Active expiry proposes nothing more while so many mutations wait for the log.
const EXPIRE_BACKLOG_MAX: u64 = 4096;

/// Where active expiry goes on next.
#[derive(Clone, Copy, Debug, Default)]
struct Sweep {
    table: TableIndex,
    cursor: u64,
}

/// What a partition wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum PartitionEffect {
    /// Tell a node's Coordinator.
    Coordinator(NodeId, ToCoordinator),
    /// Tell another partition (or this one), at its leader.
    Partition(PartitionId, ToPartition),
    /// Tell the lock manager of this node.
    Locks(ToLocks),
}

/// What a partition knows of the nodes around it.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Who holds and who leads each partition: the node's.
    pub topology: Arc<Topology>,
    /// The latest life seen of each node.
    pub lives: BTreeMap<NodeId, Incarnation>,
    /// Nodes that cannot be reached now.
    pub unreachable: BTreeSet<NodeId>,
    /// Nodes that are linked and do not answer. That says nothing about their lives.
    pub suspected: BTreeSet<NodeId>,
    /// Lives that are known to have ended.
    pub ended: BTreeSet<(NodeId, Incarnation)>,
}

impl Neighbours {
    /// Neighbours of which nothing is known but what the topology says.
    pub fn new(topology: Arc<Topology>) -> Neighbours {
        Neighbours {
            topology,
            lives: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            suspected: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    /// The node that serves a partition.
    pub fn home(&self, partition: PartitionId) -> Option<NodeId> {
        self.topology.leader(partition)
    }

    /// Learns of a node's life: earlier ones have ended.
    pub fn alive(&mut self, node: NodeId, incarnation: Incarnation) {
        let known = self.lives.entry(node).or_insert(incarnation);
        *known = incarnation.max(*known);
        self.unreachable.remove(&node);
        self.suspected.remove(&node);
    }

    /// Whether a node cannot be reached, or does not answer.
    pub fn is_away(&self, node: NodeId) -> bool {
        self.unreachable.contains(&node) || self.suspected.contains(&node)
    }

    /// Learns that a node's life ended.
    pub fn gone(&mut self, node: NodeId, incarnation: Incarnation) {
        self.unreachable.insert(node);
        self.ended.insert((node, incarnation));
        // Only the latest matters: an earlier one is known by being smaller.
        self.ended.retain(|(other, life)| *other != node || *life >= incarnation);
    }

    /// Whether that life of the node is known to be over.
    pub fn is_over(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.lives.get(&node).is_some_and(|life| *life > incarnation)
            || self.ended.contains(&(node, incarnation))
    }

    /// Whether a partition's decisions of that life of its node went with it.
    fn has_lost(&self, primary: PartitionId, primary_life: Incarnation) -> bool {
        primary_life != Incarnation::OUTLIVED
            && self.home(primary).is_some_and(|home| self.is_over(home, primary_life))
    }
}

/// What became of a single operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Took {
    /// It ran, and its reply is appended.
    Done,
    /// It is proposed: its reply comes to its [`OpWaiter`].
    Filed,
    /// Nothing happened: one of these is locked or waited for.
    Blocked(Vec<Claim>),
    /// Nothing happened: another node leads the partition, or none does.
    NotLeader,
}

/// What waits for its turn on contended keys.
#[derive(Debug)]
enum WaitingRequest {
    /// A single operation; the Bucket holds it.
    Op,
    Lock(Box<Lock>),
    Prepare(Box<Prepare>),
}

/// A request at the lock manager.
#[derive(Debug)]
struct QueuedRequest {
    claims: Vec<Claim>,
    waiting: WaitingRequest,
}

/// A transaction that holds locks here.
#[derive(Debug)]
struct LockOwner {
    claims: Vec<Claim>,
    /// The term of unlogged locks; `None` once they are logged, or on their way to the log, as an
    /// intent.
    unlogged: Option<Term>,
    /// When unlogged locks were set, or last asked about, in ms of the monotonic clock.
    since: u64,
    /// Keys that must still be as they were when the intent is applied.
    watched: Vec<Watched>,
}

/// For how long a transaction has been open here, in ms of this leader's monotonic clock: what an
/// earlier leader stamped says nothing about that.
#[derive(Clone, Copy, Debug)]
struct Aged {
    /// Since when this leader knows of it.
    since: u64,
    /// When its outcome is next asked for or repeated, if it is to be.
    next: u64,
}

/// A partition and what its leader knows.
#[derive(Debug)]
pub struct Partition<M> {
    id: PartitionId,
    node: NodeId,
    life: Incarnation,
    term: Term,
    /// Lamport's clock: what comes here moves it, what leaves for a Coordinator tells it.
    clock: u64,
    replica: Replica<M>,
    /// Its log; none if there is one copy only, in memory.
    journal: Option<Box<Journal>>,
    locks: LockTable,
    held: BTreeMap<TxnId, LockOwner>,
    queued: BTreeMap<Ticket, QueuedRequest>,
    /// The ticket under which a transaction waits.
    tickets: BTreeMap<TxnId, Ticket>,
    /// What waits for earlier mutations to be applied, or for a lease.
    deferred: Vec<Deferred>,
    inquiries: BTreeMap<TxnId, Inquiry>,
    /// Commits that are applied here, for each primary that is to hear of them.
    confirmations: BTreeMap<PartitionId, Vec<TxnId>>,
    /// Intents that were there when this leader took office.
    inherited: BTreeSet<TxnId>,
    /// Intents and outcomes that were there at this leader's last tick.
    aged: BTreeMap<TxnId, Aged>,
    /// Leader's memory, and a follower's for when it leads.
    stamps: Stamps,
    sweep: Sweep,
    snapshots: snapshots::Snapshots<M>,
    /// When a backup's copy was last seen to be pulled from, by the monotonic clock.
    backup_pulled: u64,
}

impl<M: Machine> Partition<M> {
    /// Its node goes on in a later life, before it has served in the one that it began in.
    pub fn relive(&mut self, life: Incarnation) {
        self.life = life;
        if self.journal.is_none() {
            self.term = Term(life.0);
            self.replica.watch_from(life);
        }
    }

    /// An empty partition without copies, served by `node` in its life `life`.
    pub fn new(
        id: PartitionId,
        node: NodeId,
        life: Incarnation,
        hasher: KeyHasher,
    ) -> Partition<M> {
        let mut replica = Replica::new(id, hasher);
        replica.watch_from(life);
        replica.linger(LINGER);
        Partition::around(id, node, life, replica, None)
    }

    /// A replicated partition as it was recovered: followed until its group elects this node.
    pub fn replicated(
        id: PartitionId,
        node: NodeId,
        life: Incarnation,
        replica: Replica<M>,
        group: Group,
    ) -> Partition<M> {
        Partition::around(id, node, life, replica, Some(Box::new(Journal::new(group))))
    }

    fn around(
        id: PartitionId,
        node: NodeId,
        life: Incarnation,
        replica: Replica<M>,
        journal: Option<Box<Journal>>,
    ) -> Partition<M> {
        Partition {
            id,
            node,
            life,
            // Without a log a partition is led by its node for all of the node's life.
            term: Term(life.0),
            clock: 0,
            replica,
            journal,
            locks: LockTable::default(),
            held: BTreeMap::new(),
            queued: BTreeMap::new(),
            tickets: BTreeMap::new(),
            deferred: Vec::new(),
            inquiries: BTreeMap::new(),
            confirmations: BTreeMap::new(),
            inherited: BTreeSet::new(),
            aged: BTreeMap::new(),
            stamps: Stamps::default(),
            sweep: Sweep::default(),
            snapshots: snapshots::Snapshots::default(),
            backup_pulled: 0,
        }
    }

    /// Which partition it is.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The node it is on.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The replica.
    pub fn replica(&self) -> &Replica<M> {
        &self.replica
    }

    /// Its log and group, if it is replicated.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref()
    }

    /// The same, for the caller that drives it.
    pub fn journal_mut(&mut self) -> Option<&mut Journal> {
        self.journal.as_deref_mut()
    }

    /// Whether this node leads the partition and may serve it.
    #[inline]
    pub fn is_led_here(&self) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.leads())
    }

    /// The term it is led in, as far as this node knows.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether no lock, intent, outcome or waiting request is left.
    pub fn is_at_rest(&self) -> bool {
        self.locks.is_empty()
            && self.held.is_empty()
            && self.queued.is_empty()
            && self.tickets.is_empty()
            && self.deferred.is_empty()
            && self.inquiries.is_empty()
            && self.confirmations.is_empty()
            && self.aged.is_empty()
            && self.replica.intents().is_empty()
            && self.replica.outcomes().is_empty()
            && self.journal.as_ref().is_none_or(|journal| journal.is_calm())
    }

    /// Runs a single operation, or proposes it for its `waiter`, unless one of its keys is locked or
    /// waited for.
    #[inline]
    pub fn execute(
        &mut self,
        op: &Op<'_>,
        now: Now,
        waiter: OpWaiter,
        reply: &mut Vec<u8>,
    ) -> Took {
        if !self.is_led_here() {
            return Took::NotLeader;
        }
        if !self.locks.is_empty() && self.blocks(op) {
            return Took::Blocked(claims_of::<M>(std::iter::once(*op)));
        }
        self.run(op, now, waiter, true, reply)
    }

    /// Whether a read `may_overtake` what is proposed already: not one that waited, since operations
    /// that its client sent before it may have been proposed in turns long past.
    #[inline]
    fn run(
        &mut self,
        op: &Op<'_>,
        now: Now,
        waiter: OpWaiter,
        may_overtake: bool,
        reply: &mut Vec<u8>,
    ) -> Took {
        let reads = M::access(op.head.code) == Access::Read;
        let stamp = self.stamp(now);
        let Some(journal) = &mut self.journal else {
            match reads {
                true => self.replica.read(op, stamp, reply),
                false => self.replica.run(op, stamp, reply),
            }
            if let Some(expired) = self.replica.expired() {
                for (table, key) in expired {
                    self.replica.apply(Mutation::Expire(table, &key), stamp, &mut Vec::new());
                }
            }
            return Took::Done;
        };
        if reads && (may_overtake || journal.backlog() == 0) && journal.may_read(now, waiter) {
            let start = reply.len();
            self.replica.look();
            self.replica.read(op, stamp, reply);
            if self.replica.expired().is_none() {
                return Took::Done;
            }
            // A later leader's stamps may be behind: what this one took for expired must be so in
            // the log before any client hears of it.
            reply.truncate(start);
        }
        journal.propose(Mutation::Run(*op), Completion::Reply(waiter));
        Took::Filed
    }

    /// The stamp for what happens at `now`, where this node leads.
    #[inline]
    fn stamp(&mut self, now: Now) -> Millis {
        self.stamps.next(now, self.replica.stamped())
    }

    /// Reads what is applied here, under any leader: for checks that look on from outside.
    pub fn peek(&mut self, op: &Op<'_>, reply: &mut Vec<u8>) {
        let stamp = self.replica.stamped();
        self.replica.read(op, stamp, reply);
    }

    /// A step of active expiry: looks at about [`EXPIRE_CELLS`] cells of a table in which something
    /// may expire, and removes what has. Tells how many that was and whether the partition holds
    /// anything that may expire at all. Keys under a lock are left to their transaction.
    pub fn expire_some(&mut self, now: Now) -> Option<usize> {
        if let Some(journal) = &self.journal
            && (!journal.leads() || journal.backlog() > EXPIRE_BACKLOG_MAX)
        {
            return None;
        }
        let volatile = |table: &TableIndex| self.replica.tables().volatile(*table) > 0;
        if !volatile(&self.sweep.table) || self.sweep.cursor == 0 {
            let next = self.sweep.table.index() + 1;
            let table = TableIndex::all().chain(TableIndex::all()).skip(next).find(volatile)?;
            self.sweep = Sweep { table, cursor: 0 };
        }
        let stamp = self.stamp(now);
        let Sweep { table, cursor } = self.sweep;
        self.replica.look();
        self.sweep.cursor = self.replica.sweep(table, cursor, EXPIRE_CELLS, stamp);
        let mut removed = 0;
        for (table, key) in self.replica.expired().into_iter().flatten() {
            if !self.locks.is_empty() && self.locks.blocks(table, &key, Access::Write) {
                continue;
            }
            let mutation = Mutation::Expire(table, &key);
            removed += usize::from(match &mut self.journal {
                Some(journal) => {
                    journal.propose(mutation, Completion::Nothing);
                    true
                }
                None => self.replica.apply(mutation, stamp, &mut Vec::new()) == Applied::Done,
            });
        }
        Some(removed)
    }

    #[cold]
    fn blocks(&self, op: &Op<'_>) -> bool {
        let access = M::access(op.head.code);
        if access == Access::Read && !kept(Rule::ReadsWaitOnIntents)
            || !kept(Rule::LocksAreAuthoritative)
        {
            return false;
        }
        match M::scope(op.head.code) {
            // What was acknowledged may still be an intent here, so even a glance waits for those.
            Scope::Glance | Scope::Partition => {
                self.locks.conflicts(None, &Claim { granule: Granule::Whole, access })
            }
            Scope::Keys => {
                let mut blocked = false;
                M::keys(op, &mut |table, key| {
                    blocked |= self.locks.blocks(table, key, access);
                });
                blocked
            }
        }
    }

    /// Queues a single operation that [`Partition::execute`] refused. The Bucket keeps it and runs
    /// it by [`Partition::granted`].
    pub fn wait(&mut self, ticket: Ticket, claims: Vec<Claim>, effects: &mut Vec<PartitionEffect>) {
        self.clock += 1;
        // A tie that no Coordinator's sequence takes, so that no two ages are equal.
        let age = Age { time: self.clock, node: self.node, tie: (1 << 63) | ticket.0 };
        self.queue(ticket, age, None, claims, WaitingRequest::Op, effects);
    }

    /// The lock manager says that the request has its turn. For a single operation `op` gives it
    /// and its waiter; tells what became of that.
    pub fn granted(
        &mut self,
        ticket: Ticket,
        op: Option<(&Op<'_>, OpWaiter)>,
        now: Now,
        reply: &mut Vec<u8>,
        effects: &mut Vec<PartitionEffect>,
    ) -> Option<Took> {
        // A request cancelled meanwhile has told the lock manager so.
        let QueuedRequest { claims, waiting } = self.queued.remove(&ticket)?;
        let mut took = None;
        match waiting {
            WaitingRequest::Op => {
                let calm = self.locks.waited(&claims);
                took = op.map(|(op, waiter)| self.run(op, now, waiter, false, reply));
                self.forget(calm, effects);
            }
            WaitingRequest::Lock(lock) => {
                self.hold_granted(lock.txn, lock.age, claims, Some(self.term), now, effects);
                self.lock(lock, now, effects);
            }
            WaitingRequest::Prepare(prepare) => {
                self.hold_granted(prepare.txn, prepare.age, claims, None, now, effects);
                self.prepare(prepare, now, effects);
            }
        }
        took
    }

    /// Sets the locks of a transaction that has waited for them. Before it is noted that it waits
    /// no more: a request that came meanwhile, and waits for the whole partition by waiting for a
    /// key, goes on waiting for this holder of it, so the lock manager must not forget that.
    fn hold_granted(
        &mut self,
        txn: TxnId,
        age: Age,
        claims: Vec<Claim>,
        unlogged: Option<Term>,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        self.tickets.remove(&txn);
        self.hold(txn, age, claims, unlogged, now.mono);
        let claims = self.held.get(&txn).map_or(&[][..], |held| &held.claims);
        let calm = self.locks.waited(claims);
        self.forget(calm, effects);
    }

    /// Gives up a waiting single operation.
    pub fn cancel(&mut self, ticket: Ticket, effects: &mut Vec<PartitionEffect>) {
        let Some(queued) = self.queued.remove(&ticket) else { return };
        let calm = self.locks.waited(&queued.claims);
        effects.push(PartitionEffect::Locks(ToLocks::Cancel { ticket, partition: self.id }));
        self.forget(calm, effects);
    }

    /// This node leads the partition from now on, in `term`: what is locked is what the log says.
    fn take_office(&mut self, term: Term) {
        self.term = term;
        // Versions of one term are never those of another.
        self.replica.watch_from(Incarnation(term.0 << 12));
        let locked: Vec<(TxnId, Age, Vec<Claim>)> = self
            .replica
            .intents()
            .iter()
            .map(|(txn, intent)| (*txn, intent.age, intent.claims()))
            .collect();
        self.inherited = locked.iter().map(|(txn, ..)| *txn).collect();
        for (txn, age, claims) in locked {
            self.clock = self.clock.max(age.time);
            self.hold(txn, age, claims, None, 0);
        }
    }

    /// This node leads the partition no more: everything that only a leader knows is given up.
    fn leave_office(&mut self, effects: &mut Vec<PartitionEffect>) {
        let waiting: Vec<Ticket> = self.queued.keys().copied().collect();
        for ticket in waiting {
            self.cancel(ticket, effects);
        }
        let holding: Vec<TxnId> = self.held.keys().copied().collect();
        for txn in holding {
            self.release(txn, effects);
        }
        self.replica.abandon_backup();
        self.tickets.clear();
        self.inquiries.clear();
        self.confirmations.clear();
        self.inherited.clear();
        self.aged.clear();
        for deferred in std::mem::take(&mut self.deferred) {
            self.refuse(deferred.txn(), effects);
        }
    }

    /// Tells a Coordinator that its request was not taken.
    fn refuse(&self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        let refused = ToCoordinator::NotLed { txn, partition: self.id };
        effects.push(PartitionEffect::Coordinator(txn.node, refused));
    }

    fn conflict(&self, txn: TxnId, claims: &[Claim]) -> bool {
        kept(Rule::LocksAreAuthoritative)
            && claims.iter().any(|claim| self.locks.conflicts(Some(txn), claim))
    }

    fn hold(
        &mut self,
        txn: TxnId,
        age: Age,
        claims: Vec<Claim>,
        unlogged: Option<Term>,
        since: u64,
    ) {
        for claim in &claims {
            self.locks.hold(claim, txn, age);
        }
        let replaced =
            self.held.insert(txn, LockOwner { claims, unlogged, since, watched: Vec::new() });
        assert!(replaced.is_none(), "a transaction locks a partition once");
    }

    fn queue(
        &mut self,
        ticket: Ticket,
        age: Age,
        owner: Option<TxnId>,
        claims: Vec<Claim>,
        waiting: WaitingRequest,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let holders = self.locks.wait(&claims);
        if let Some(txn) = owner {
            self.tickets.insert(txn, ticket);
        }
        let acquire =
            Acquire { ticket, partition: self.id, age, owner, claims: claims.clone(), holders };
        self.queued.insert(ticket, QueuedRequest { claims, waiting });
        effects.push(PartitionEffect::Locks(ToLocks::Acquire(acquire)));
    }

    /// Gives up all that a transaction holds or waits for here.
    fn release(&mut self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        if let Some(ticket) = self.tickets.remove(&txn) {
            self.cancel(ticket, effects);
        }
        if let Some(held) = self.held.remove(&txn) {
            self.unmark(held.claims, txn, effects);
        }
    }

    fn unmark(&mut self, claims: Vec<Claim>, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        let (mut contended, mut calm) = (Vec::new(), Vec::new());
        for Claim { granule, .. } in claims {
            match self.locks.release(&granule, txn) {
                Released::Quietly => {}
                Released::Contended => contended.push(granule),
                Released::LastOfContended => {
                    contended.push(granule.clone());
                    calm.push(granule);
                }
            }
        }
        if !contended.is_empty() {
            let (partition, granules) = (self.id, contended);
            effects.push(PartitionEffect::Locks(ToLocks::Released { partition, granules, txn }));
        }
        self.forget(calm, effects);
    }

    fn forget(&self, calm: Vec<Granule>, effects: &mut Vec<PartitionEffect>) {
        if !calm.is_empty() {
            let (partition, granules) = (self.id, calm);
            effects.push(PartitionEffect::Locks(ToLocks::Uncontended { partition, granules }));
        }
    }
}

#[cfg(test)]
mod scripts;
