//! The Coordinator's side of transactions over several partitions: two-phase locking and
//! two-phase commit, as messages in and effects out.
//!
//! ```text
//!  Read    Lock everywhere ─ all Granted ─▶ Confirm everywhere ─ all held ─▶ reply
//!  Write   Prepare everywhere ─ all Voted ─▶ Decide at the primary ─ Decided ─▶ reply, Decide to the rest
//!  Gather  Lock everywhere ─ all Granted ─▶ evaluate the script here ─▶ Prepare with the outcome, as Write
//! ```
//!
//! How long something has waited is counted by this node's monotonic clock. The leader of its
//! partition says what time it is for a key, and so whether it has expired: its stamp comes with
//! the grant, and a script runs each operation at the stamp of its keys.
//!
//! A wound, a refused vote or a lost lock aborts the attempt and begins another with the same age:
//! a transaction only grows older against its rivals, so it gets through. Once the decision was
//! sent to the primary the attempt can no longer be taken back, and if the primary is lost then,
//! the client is told that the outcome is unknown.

use crate::batch::machine::{AnswerBytes, Effort, Machine, Scope, effort_of};
use crate::batch::refusal::Refusal;
use crate::batch::{Op, Replies};
use crate::cluster::topology::Topology;
use crate::ids::Term;
use crate::ids::{Age, Incarnation, Millis, NodeId, Now, PartitionId, TableIndex, TxnId};
use crate::rules::{Rule, kept};
use crate::store::key_state::KeyState;
use crate::store::tables::Access;
use crate::store::tables::{KeyHasher, Tables};
use crate::txn::claims::share_claims;
use crate::txn::protocol::{
    Decide, Ended, Granule, Knowledge, Lock, Mode, Prepare, Prepared, Share, ToCoordinator,
    ToPartition, Verdict, Work,
};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::marker::PhantomData;

/// Attempts that may fail for other reasons than a wound before the client is refused.
const FAILURES_MAX: u32 = 16;

/// How soon an attempt is repeated that found a partition without its leader.
const PAUSE_MS: u64 = 20;

/// How often a decision is asked for again while its primary's leader changes, and for how long.
const REDECIDE_AFTER_MS: u64 = 300;
const DECIDE_MAX_MS: u64 = 6_000;

/// Keys that a Coordinator evaluates a command on at most: it does so in one turn of the thread that
/// carries the node's links, about a tenth of a second for so many.
pub const GATHERED_KEYS_MAX: usize = 32_768;

/// Commits remembered for participants whose primary died before it could tell them.
const COMMITS_REMEMBERED: usize = 1 << 16;

/// Names a client's request to the Coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// What a Coordinator wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum TxnEffect {
    /// Tell a partition.
    Partition(PartitionId, ToPartition),
    /// Tell the client how its request ended.
    Reply(ClientId, Ended),
}

/// What the Coordinator counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxnCounts {
    /// Transactions committed, read-only ones among them.
    pub commits: u64,
    /// Attempts aborted.
    pub aborts: u64,
    /// Wounds obeyed.
    pub wounds: u64,
}

/// The transactions begun on a node.
#[derive(Debug)]
pub struct Transactions<M> {
    node: NodeId,
    life: Incarnation,
    /// Who leads what: a view that hears news in their turn among the other messages.
    topology: Topology,
    /// How strongly each partition keeps what it is given.
    strengths: Vec<Strength>,
    /// Lives of the nodes that can be reached, this one among them.
    reachable: BTreeMap<NodeId, Incarnation>,
    /// Those of them that do not answer.
    suspected: BTreeSet<NodeId>,
    hasher: KeyHasher,
    /// Lamport's clock.
    clock: u64,
    next: u64,
    active: BTreeMap<u64, Box<Txn>>,
    /// The latest commits, oldest first, for [`ToCoordinator::Inquire`].
    committed: VecDeque<TxnId>,
    wait_ms: u64,
    counts: TxnCounts,
    machine: PhantomData<M>,
}

/// How strongly a partition keeps what it is given; the strongest is the greatest.
///
/// Copies come before what they survive: where any participant's writes survive power, the steps of
/// the transaction are synced by all that have a log, so what is left to choose a primary by is how
/// many nodes know the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strength {
    /// How many nodes have it.
    pub copies: u8,
    /// What the copies survive.
    pub survives: Survives,
}

/// What an acknowledged write survives on a node that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    /// Nothing: it is in the memory of its process.
    Nothing,
    /// The process: it is in a log.
    Process,
    /// A loss of power: it is on disk.
    Power,
}

impl Strength {
    /// One copy, in memory.
    pub const WEAKEST: Strength = Strength { copies: 1, survives: Survives::Nothing };

    /// Whether there is a log: when its leader is lost another one will come, if only the same
    /// node's next life.
    pub fn is_logged(self) -> bool {
        self.survives > Survives::Nothing
    }
}

#[derive(Debug)]
struct Txn {
    id: TxnId,
    age: Age,
    client: ClientId,
    work: Work,
    primary: PartitionId,
    failures: u32,
    /// What this attempt's participants have answered, and what is gathered of their keys.
    answers: AnswerBytes,
    gathered: Effort,
    /// When patience ends.
    until: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Between two attempts, until a partition has its leader back.
    Pausing {
        until: u64,
        lacking: PartitionId,
    },
    Locking {
        waiting: Awaiting,
        grants: BTreeMap<PartitionId, Grant>,
    },
    Confirming {
        waiting: Awaiting,
        held: bool,
        replies: Vec<Replies>,
    },
    Preparing {
        waiting: Awaiting,
        /// In the order in which they came.
        replies: SmallVec<[(PartitionId, Replies); 2]>,
    },
    /// `since` the decision was first asked for, `asked` again last.
    Deciding {
        replies: Vec<Replies>,
        since: u64,
        asked: u64,
    },
}

/// Partitions whose answers are still to come.
type Awaiting = SmallVec<[PartitionId; 4]>;

/// Takes a partition's answer; false if it was not waited for.
fn heard(waiting: &mut Awaiting, partition: PartitionId) -> bool {
    let place = waiting.iter().position(|id| *id == partition);
    place.map(|place| waiting.swap_remove(place)).is_some()
}

#[derive(Debug)]
struct Grant {
    term: Term,
    /// The moment of the images, by the partition's leader.
    stamp: Millis,
    replies: Replies,
    images: Vec<KeyState>,
}

impl<M: Machine> Transactions<M> {
    /// No transactions yet. Only this node can be reached.
    pub fn new(
        node: NodeId,
        life: Incarnation,
        topology: Topology,
        hasher: KeyHasher,
        wait_ms: u64,
    ) -> Transactions<M> {
        let strengths = vec![Strength::WEAKEST; topology.placement().len()];
        Transactions {
            node,
            life,
            topology,
            strengths,
            reachable: BTreeMap::from([(node, life)]),
            suspected: BTreeSet::new(),
            hasher,
            clock: 0,
            next: 1,
            active: BTreeMap::new(),
            committed: VecDeque::new(),
            wait_ms,
            counts: TxnCounts::default(),
            machine: PhantomData,
        }
    }

    /// The node goes on in a later life, before it has begun any.
    pub fn relive(&mut self, life: Incarnation) {
        self.life = life;
        self.reachable.insert(self.node, life);
    }

    /// What it counted.
    pub fn counts(&self) -> TxnCounts {
        self.counts
    }

    /// Transactions that have not ended.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Says how strongly a partition keeps what it is given: [`Strength::WEAKEST`] unless said.
    pub fn keep(&mut self, id: PartitionId, strength: Strength) {
        if let Some(kept) = self.strengths.get_mut(id.index()) {
            *kept = strength;
        }
    }

    /// Begins a transaction; its end is a [`TxnEffect::Reply`] to `client`.
    pub fn begin(&mut self, client: ClientId, work: Work, now: Now, effects: &mut Vec<TxnEffect>) {
        if let Some(refusal) = self.hopeless(&work) {
            effects.push(TxnEffect::Reply(client, Ended::Refused(refusal)));
            return;
        }
        let Some(primary) = self.primary(&work) else {
            effects.push(TxnEffect::Reply(client, Ended::Done(Vec::new())));
            return;
        };
        self.clock += 1;
        let sequence = self.next;
        self.next += 1;
        let id = TxnId { node: self.node, incarnation: self.life, sequence, attempt: 0 };
        let age = Age { time: self.clock, node: self.node, tie: sequence };
        let until = now.mono.saturating_add(self.wait_ms);
        let phase = Phase::Pausing { until: now.mono, lacking: primary };
        let (answers, gathered) = (AnswerBytes::default(), Effort::default());
        let txn =
            Txn { id, age, client, work, primary, failures: 0, answers, gathered, until, phase };
        self.active.insert(sequence, Box::new(txn));
        self.attempt(sequence, now, effects);
    }

    /// A node leads a partition from a term on.
    pub fn led(
        &mut self,
        id: PartitionId,
        node: NodeId,
        term: Term,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        if !self.topology.learn(id, node, term) {
            return;
        }
        let touches = |txn: &&Txn| txn.work.shares.iter().any(|(share, _)| *share == id);
        let active = self.active.values().map(Box::as_ref);
        let hit: Vec<u64> = active.filter(touches).map(|txn| txn.id.sequence).collect();
        for sequence in hit {
            self.on_leader_lost(sequence, id, now, effects);
        }
    }

    /// The leader of a partition leads no more: its unlogged locks are gone, and what was on its
    /// way to it may be lost.
    fn on_leader_lost(
        &mut self,
        sequence: u64,
        partition: PartitionId,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.active.get_mut(&sequence) else { return };
        match &mut txn.phase {
            Phase::Pausing { .. } => {}
            // The first decision stands, so asking again is harmless; at the next tick, as the new
            // leader may not be known yet.
            Phase::Deciding { asked, .. } if txn.primary == partition => *asked = 0,
            Phase::Deciding { .. } => {}
            Phase::Locking { .. } | Phase::Preparing { .. } | Phase::Confirming { .. } => {
                self.abort(sequence, effects);
                self.pause(sequence, partition, now);
            }
        }
    }

    fn pause(&mut self, sequence: u64, lacking: PartitionId, now: Now) {
        if let Some(txn) = self.active.get_mut(&sequence) {
            txn.phase = Phase::Pausing { until: now.mono + PAUSE_MS, lacking };
        }
    }

    /// Takes one message.
    pub fn handle(&mut self, message: ToCoordinator, now: Now, effects: &mut Vec<TxnEffect>) {
        match message {
            ToCoordinator::Granted { txn, partition, term, time, stamp, replies, images } => {
                self.clock = self.clock.max(time);
                let grant = Grant { term, stamp, replies, images };
                self.on_granted(txn, partition, grant, now, effects);
            }
            ToCoordinator::Voted { txn, partition, time, vote } => {
                self.clock = self.clock.max(time);
                self.on_voted(txn, partition, vote, now, effects);
            }
            ToCoordinator::Changed { txn } => self.on_obstacle(txn, Ended::Changed, effects),
            ToCoordinator::Full { txn } => {
                self.on_obstacle(txn, Ended::Refused(Refusal::Full), effects);
            }
            ToCoordinator::TooMuch { txn } => {
                self.on_obstacle(txn, Ended::Refused(Refusal::TooMuch), effects);
            }
            ToCoordinator::Decided { txn, verdict } => self.on_decided(txn, verdict, now, effects),
            ToCoordinator::NotLed { txn, partition } => {
                if self.current(txn).is_some() {
                    self.on_leader_lost(txn.sequence, partition, now, effects);
                }
            }
            ToCoordinator::Confirmed { txn, partition, held } => {
                self.on_confirmed(txn, partition, held, now, effects);
            }
            ToCoordinator::Wound { txn } => self.on_wound(txn, now, effects),
            ToCoordinator::Inquire { txn, asker } => {
                let knowledge = self.knowledge(txn);
                let answer = ToPartition::CoordinatorKnows { txn, knowledge };
                effects.push(TxnEffect::Partition(asker, answer));
            }
        }
    }

    /// A node can be reached, in this life.
    pub fn node_up(
        &mut self,
        node: NodeId,
        life: Incarnation,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        if self.reachable.get(&node).is_some_and(|known| *known != life) {
            self.node_down(node, now, effects);
        }
        self.reachable.insert(node, life);
        self.suspected.remove(&node);
    }

    /// A node can be reached and does not answer. Attempts that need it are aborted, so that they
    /// lock nothing elsewhere meanwhile, and begin again once it answers or others lead what it led.
    /// Decisions under way are waited for.
    pub fn node_suspected(&mut self, node: NodeId, now: Now, effects: &mut Vec<TxnEffect>) {
        if node == self.node {
            return;
        }
        self.suspected.insert(node);
        let led_there = |txn: &Txn| {
            let mut ids = txn.work.shares.iter().map(|(id, _)| *id);
            Some((txn.id.sequence, ids.find(|id| self.leader(*id) == Some(node))?))
        };
        let active = self.active.values().map(AsRef::as_ref);
        let hit: Vec<(u64, PartitionId)> = active.filter_map(led_there).collect();
        for (sequence, partition) in hit {
            self.on_leader_lost(sequence, partition, now, effects);
        }
    }

    /// A node that was suspected answers again.
    pub fn node_trusted(&mut self, node: NodeId) {
        self.suspected.remove(&node);
    }

    /// A node cannot be reached any more: transactions that need it end, or wait for another leader
    /// of what it led.
    pub fn node_down(&mut self, node: NodeId, now: Now, effects: &mut Vec<TxnEffect>) {
        if node == self.node {
            return;
        }
        self.reachable.remove(&node);
        self.suspected.remove(&node);
        let hit: Vec<(u64, PartitionId)> = self
            .active
            .values()
            .filter_map(|txn| {
                let mut ids = txn.work.shares.iter().map(|(id, _)| *id);
                let led = ids.find(|id| self.leader(*id) == Some(node))?;
                Some((txn.id.sequence, led))
            })
            .collect();
        for (sequence, partition) in hit {
            let Some(txn) = self.active.get(&sequence) else { continue };
            let deciding = matches!(txn.phase, Phase::Deciding { .. });
            let primary_lost = self.leader(txn.primary) == Some(node);
            if deciding && primary_lost && self.is_replicated(txn.primary) {
                let primary = txn.primary;
                self.on_leader_lost(sequence, primary, now, effects);
            } else if deciding && primary_lost {
                // The participants ask the primary, or each other, by themselves.
                let unknown = Ended::Unknown(Refusal::Unreachable(node));
                self.give_up(sequence, unknown, effects);
            } else if !deciding && let Some(refusal) = self.hopeless(&txn.work) {
                self.refuse(sequence, refusal, effects);
            } else if !deciding {
                self.on_leader_lost(sequence, partition, now, effects);
            }
        }
    }

    /// Regular upkeep: goes on with what paused, asks again for decisions, gives up what waited too
    /// long.
    pub fn tick(&mut self, now: Now, effects: &mut Vec<TxnEffect>) {
        let sequences: Vec<u64> = self.active.keys().copied().collect();
        for sequence in sequences {
            let Some(txn) = self.active.get_mut(&sequence) else { continue };
            let (id, primary) = (txn.id, txn.primary);
            match &mut txn.phase {
                Phase::Deciding { since, .. } if *since + DECIDE_MAX_MS <= now.mono => {
                    let unknown = Ended::Unknown(Refusal::Unknown(primary));
                    self.give_up(sequence, unknown, effects);
                }
                Phase::Deciding { asked, .. } if *asked + REDECIDE_AFTER_MS <= now.mono => {
                    *asked = now.mono;
                    self.ask_decision(id, primary, effects);
                }
                Phase::Deciding { .. } => {}
                Phase::Pausing { lacking, .. } if txn.until <= now.mono => {
                    let refusal = Refusal::NoLeader(*lacking);
                    self.refuse(sequence, refusal, effects);
                }
                Phase::Pausing { until, .. } if *until <= now.mono => {
                    self.attempt(sequence, now, effects);
                }
                Phase::Pausing { .. } => {}
                _ if txn.until <= now.mono => self.refuse(sequence, Refusal::Locked, effects),
                _ => {}
            }
        }
    }

    fn give_up(&mut self, sequence: u64, ended: Ended, effects: &mut Vec<TxnEffect>) {
        if let Some(txn) = self.active.remove(&sequence) {
            effects.push(TxnEffect::Reply(txn.client, ended));
        }
    }

    fn ask_decision(&self, txn: TxnId, primary: PartitionId, effects: &mut Vec<TxnEffect>) {
        let decide = Decide { txn, verdict: Verdict::Commit, primary, deciding: true };
        effects.push(TxnEffect::Partition(primary, ToPartition::Decide(decide)));
    }

    fn leader(&self, id: PartitionId) -> Option<NodeId> {
        self.topology.leader(id)
    }

    fn strength(&self, id: PartitionId) -> Strength {
        self.strengths.get(id.index()).copied().unwrap_or(Strength::WEAKEST)
    }

    fn is_replicated(&self, id: PartitionId) -> bool {
        self.strength(id).is_logged()
    }

    /// Where the decision is logged: at one of the strongest participants, for another one may ask
    /// for it long after. Among those one led here saves a message.
    fn primary(&self, work: &Work) -> Option<PartitionId> {
        let ids = || work.shares.iter().map(|(id, _)| *id);
        let strongest = ids().map(|id| self.strength(id)).max();
        let fits = |id: &PartitionId| Some(self.strength(*id)) == strongest;
        let here = |id: &PartitionId| self.leader(*id) == Some(self.node);
        ids().filter(fits).find(here).or_else(|| ids().find(fits))
    }

    /// Whether any of the work's writes are to survive a loss of power: then all of its steps have
    /// to.
    fn survives_power(&self, work: &Work) -> bool {
        let mut ids = work.shares.iter().map(|(id, _)| *id);
        ids.any(|id| self.strength(id).survives == Survives::Power)
    }

    /// The first of the work's partitions whose leader cannot be reached, among the replicated ones
    /// or the others.
    fn lacking(&self, work: &Work, replicated: bool) -> Option<PartitionId> {
        let mut ids = work.shares.iter().map(|(id, _)| *id);
        ids.find(|id| {
            let leader = self.leader(*id);
            self.is_replicated(*id) == replicated
                && leader.is_some_and(|leader| !self.reachable.contains_key(&leader))
        })
    }

    /// The first of the work's partitions whose leader does not answer.
    fn silent(&self, work: &Work) -> Option<PartitionId> {
        let mut ids = work.shares.iter().map(|(id, _)| *id);
        ids.find(|id| self.leader(*id).is_some_and(|leader| self.suspected.contains(&leader)))
    }

    /// Why work cannot be done: a partition without copies is out of reach.
    fn hopeless(&self, work: &Work) -> Option<Refusal> {
        let gathered: usize = work.shares.iter().map(|(_, share)| share.claims.len()).sum();
        if work.mode == Mode::Gather && gathered > GATHERED_KEYS_MAX {
            return Some(Refusal::Gathers(gathered.try_into().unwrap_or(u32::MAX)));
        }
        let lacking = self.lacking(work, false)?;
        self.leader(lacking).map(Refusal::Unreachable)
    }

    /// Every transaction with a smaller sequence has ended.
    fn done_below(&self) -> u64 {
        self.active.first_key_value().map_or(self.next, |(sequence, _)| *sequence)
    }

    fn attempt(&mut self, sequence: u64, now: Now, effects: &mut Vec<TxnEffect>) {
        let done_below = self.done_below();
        let Some(txn) = self.active.get(&sequence) else { return };
        if let Some(lacking) = self.lacking(&txn.work, true).or_else(|| self.silent(&txn.work)) {
            self.pause(sequence, lacking, now);
            return;
        }
        let Some(txn) = self.active.get_mut(&sequence) else { return };
        txn.id.attempt += 1;
        (txn.answers, txn.gathered) = (AnswerBytes::default(), Effort::default());
        let waiting: Awaiting = txn.work.shares.iter().map(|(id, _)| *id).collect();
        if txn.work.mode == Mode::Write {
            txn.phase = Phase::Preparing { waiting, replies: SmallVec::new() };
            let shares = txn.work.shares.clone();
            self.prepare(
                sequence,
                shares.into_iter().map(|(id, share)| (id, None, Prepared::Share(share))),
                effects,
            );
            return;
        }
        for (id, share) in &txn.work.shares {
            let lock = Lock {
                txn: txn.id,
                age: txn.age,
                mode: txn.work.mode,
                share: share.clone(),
                done_below,
            };
            effects.push(TxnEffect::Partition(*id, ToPartition::Lock(Box::new(lock))));
        }
        txn.phase = Phase::Locking { waiting, grants: BTreeMap::new() };
    }

    fn prepare(
        &self,
        sequence: u64,
        work: impl Iterator<Item = (PartitionId, Option<Term>, Prepared)>,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.active.get(&sequence) else { return };
        let primary_life = match self.is_replicated(txn.primary) {
            true => Incarnation::OUTLIVED,
            false => {
                let home = self.leader(txn.primary);
                home.and_then(|home| self.reachable.get(&home)).copied().unwrap_or_default()
            }
        };
        let participants: Vec<PartitionId> = txn.work.shares.iter().map(|(id, _)| *id).collect();
        let synced = self.survives_power(&txn.work);
        for (id, term, work) in work {
            let prepare = Prepare {
                txn: txn.id,
                age: txn.age,
                primary: txn.primary,
                primary_life,
                participants: participants.clone(),
                synced,
                term,
                work,
                done_below: self.done_below(),
            };
            effects.push(TxnEffect::Partition(id, ToPartition::Prepare(Box::new(prepare))));
        }
    }

    /// The transaction, if this attempt of it is the one under way.
    fn current(&mut self, id: TxnId) -> Option<&mut Txn> {
        self.active.get_mut(&id.sequence).map(Box::as_mut).filter(|txn| txn.id == id)
    }

    fn on_granted(
        &mut self,
        id: TxnId,
        partition: PartitionId,
        grant: Grant,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.current(id) else { return };
        let Phase::Locking { waiting, grants } = &mut txn.phase else { return };
        if !heard(waiting, partition) {
            return;
        }
        let mut held = grant.images.iter().filter_map(|image| image.held.as_ref());
        if txn.answers.join(&grant.replies).is_err()
            || held.any(|held| txn.gathered.add(held.value.content.len()).is_err())
        {
            return self.on_obstacle(id, Ended::Refused(Refusal::TooMuch), effects);
        }
        grants.insert(partition, grant);
        if !waiting.is_empty() {
            return;
        }
        let grants = std::mem::take(grants);
        match txn.work.mode {
            Mode::Read | Mode::Write => self.confirm(id, grants, None, effects),
            Mode::Gather => self.evaluate(id, grants, now, effects),
        }
    }

    /// Asks every partition whether its locks were held while the last one was granted. `result`
    /// replaces the partitions' own replies.
    fn confirm(
        &mut self,
        id: TxnId,
        grants: BTreeMap<PartitionId, Grant>,
        result: Option<Replies>,
        effects: &mut Vec<TxnEffect>,
    ) {
        let waiting: Awaiting = grants.keys().copied().collect();
        let terms: Vec<(PartitionId, Term)> =
            grants.iter().map(|(partition, grant)| (*partition, grant.term)).collect();
        for (partition, term) in terms {
            let confirm = ToPartition::Confirm { txn: id, term };
            effects.push(TxnEffect::Partition(partition, confirm));
        }
        let replies = match result {
            Some(result) => vec![result],
            None => grants.into_values().map(|grant| grant.replies).collect(),
        };
        let Some(txn) = self.current(id) else { return };
        if kept(Rule::ReadsAreConfirmed) {
            txn.phase = Phase::Confirming { waiting, held: true, replies };
        } else {
            self.done(id, replies, effects);
        }
    }

    /// Runs the script of a gathered transaction on a scratch table and prepares what it changed.
    fn evaluate(
        &mut self,
        id: TxnId,
        grants: BTreeMap<PartitionId, Grant>,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let mut scratch = Tables::new(self.hasher);
        let mut versions = BTreeMap::new();
        let mut moments = Moments::default();
        for Grant { stamp, images, .. } in grants.values() {
            let stamp = if kept(Rule::LeadersDecideExpiry) { *stamp } else { now.wall };
            moments.latest = moments.latest.max(stamp);
            scratch.begin(stamp, Access::Write);
            for image in images {
                scratch.install(image.clone());
                let hash = scratch.hasher().hash(&image.key);
                let version = scratch.watches_mut().watch(image.table, hash, false, stamp);
                versions.insert((image.table, &image.key), version);
                moments.of.insert((image.table, &image.key), stamp);
            }
        }
        let Some(txn) = self.current(id) else { return };
        let mut replies = Replies::default();
        let (mut effort, mut answers) = (Effort::default(), AnswerBytes::default());
        let too_much = txn.work.script.iter().any(|op| {
            let bytes = effort_of::<M>(&op, |table, key| {
                scratch.value_bytes(table, scratch.hasher().hash(key), key)
            });
            if effort.add(bytes).is_err() {
                return true;
            }
            moments.run::<M>(&op, &mut scratch, &mut replies.bytes);
            answers.end(&mut replies).is_err()
        });
        if too_much {
            self.on_obstacle(id, Ended::Refused(Refusal::TooMuch), effects);
            return;
        }
        let mut bare = bare::<M>(scratch.hasher(), &txn.work, &grants, moments.latest);
        let mut outcome: BTreeMap<PartitionId, Vec<KeyState>> = BTreeMap::new();
        let mut changed = false;
        for (partition, share) in &txn.work.shares {
            let images = outcome.entry(*partition).or_default();
            changed |= !share.batch.is_empty();
            for claim in share_claims::<M>(share) {
                let Granule::Key(table, key) = &claim.granule else { continue };
                // A key that gets the value that it had is written all the same.
                let version = scratch.watches().version(*table, scratch.hasher().hash(key));
                let mut written = version.as_ref() != versions.get(&(*table, key));
                let moment = moments.at(*table, key);
                scratch.begin(moment, Access::Write);
                if let Some(bare) = &mut bare {
                    bare.begin(moment, Access::Write);
                    written |= bare.image(*table, key) != scratch.image(*table, key);
                }
                if claim.access == Access::Write && written {
                    images.push(scratch.image(*table, key));
                }
            }
            changed |= !images.is_empty();
        }
        if !changed {
            self.confirm(id, grants, Some(replies), effects);
            return;
        }
        let waiting = grants.keys().copied().collect();
        let replies = SmallVec::from_iter([(txn.primary, replies)]);
        txn.phase = Phase::Preparing { waiting, replies };
        let shares = txn.work.shares.iter().map(|(partition, share)| {
            let images = outcome.remove(partition).unwrap_or_default();
            let term = grants.get(partition).map(|grant| grant.term);
            match share.batch.is_empty() {
                true => (*partition, term, Prepared::Images(images)),
                false => (*partition, term, Prepared::Whole(share.batch.clone(), images)),
            }
        });
        let work: Vec<_> = shares.collect();
        self.prepare(id.sequence, work.into_iter(), effects);
    }

    fn on_voted(
        &mut self,
        id: TxnId,
        partition: PartitionId,
        vote: Option<Replies>,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.current(id) else { return };
        let Phase::Preparing { waiting, replies } = &mut txn.phase else { return };
        let Some(vote) = vote else {
            self.fail(id, now, effects);
            return;
        };
        if !heard(waiting, partition) {
            return;
        }
        if txn.work.mode == Mode::Write {
            if txn.answers.join(&vote).is_err() {
                return self.on_obstacle(id, Ended::Refused(Refusal::TooMuch), effects);
            }
            replies.push((partition, vote));
        }
        if !waiting.is_empty() {
            return;
        }
        replies.sort_unstable_by_key(|(partition, _)| *partition);
        let replies = std::mem::take(replies).into_iter().map(|(_, replies)| replies).collect();
        txn.phase = Phase::Deciding { replies, since: now.mono, asked: now.mono };
        let primary = txn.primary;
        self.ask_decision(id, primary, effects);
    }

    fn on_decided(&mut self, id: TxnId, verdict: Verdict, now: Now, effects: &mut Vec<TxnEffect>) {
        let Some(txn) = self.current(id) else { return };
        let Phase::Deciding { replies, .. } = &mut txn.phase else { return };
        if verdict == Verdict::Abort {
            // A participant asked first, and the primary logged an abort.
            self.fail(id, now, effects);
            return;
        }
        let replies = std::mem::take(replies);
        let primary = txn.primary;
        let others = txn.work.shares.iter().map(|(id, _)| *id).filter(|id| *id != primary);
        for partition in others {
            let decide = Decide { txn: id, verdict, primary, deciding: false };
            effects.push(TxnEffect::Partition(partition, ToPartition::Decide(decide)));
        }
        if self.committed.len() >= COMMITS_REMEMBERED {
            self.committed.pop_front();
        }
        self.committed.push_back(id);
        self.done(id, replies, effects);
    }

    fn on_confirmed(
        &mut self,
        id: TxnId,
        partition: PartitionId,
        held_there: bool,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.current(id) else { return };
        let Phase::Confirming { waiting, held, replies } = &mut txn.phase else { return };
        if !heard(waiting, partition) {
            return;
        }
        *held &= held_there;
        if !waiting.is_empty() {
            return;
        }
        if *held {
            let replies = std::mem::take(replies);
            self.done(id, replies, effects);
        } else {
            self.fail(id, now, effects);
        }
    }

    /// A participant says why the transaction must not be executed.
    fn on_obstacle(&mut self, id: TxnId, ended: Ended, effects: &mut Vec<TxnEffect>) {
        let Some(txn) = self.current(id) else { return };
        if matches!(txn.phase, Phase::Locking { .. } | Phase::Preparing { .. }) {
            self.end(id.sequence, ended, effects);
        }
    }

    fn on_wound(&mut self, id: TxnId, now: Now, effects: &mut Vec<TxnEffect>) {
        let Some(txn) = self.current(id) else { return };
        let wounded = match txn.phase {
            Phase::Locking { .. } | Phase::Preparing { .. } => true,
            // Its locks are being given up already.
            Phase::Confirming { .. } | Phase::Pausing { .. } => false,
            Phase::Deciding { .. } => !kept(Rule::DecisionIgnoresWounds),
        };
        if wounded {
            self.counts.wounds += 1;
            self.abort(id.sequence, effects);
            self.attempt(id.sequence, now, effects);
        }
    }

    fn knowledge(&self, id: TxnId) -> Knowledge {
        if self.committed.contains(&id) {
            return Knowledge::Committed;
        }
        match self.active.get(&id.sequence) {
            Some(txn) if txn.id == id => Knowledge::Undecided,
            // No commit of it will be sent any more.
            _ => Knowledge::Aborted,
        }
    }

    /// Ends an attempt that failed through no wound, and begins another, a bounded number of
    /// times.
    fn fail(&mut self, id: TxnId, now: Now, effects: &mut Vec<TxnEffect>) {
        let Some(txn) = self.current(id) else { return };
        txn.failures += 1;
        if txn.failures > FAILURES_MAX {
            self.refuse(id.sequence, Refusal::Contention, effects);
            return;
        }
        self.abort(id.sequence, effects);
        if let Some(txn) = self.active.get(&id.sequence)
            && let Some(refusal) = self.hopeless(&txn.work)
        {
            self.refuse(id.sequence, refusal, effects);
            return;
        }
        self.attempt(id.sequence, now, effects);
    }

    fn refuse(&mut self, sequence: u64, refusal: Refusal, effects: &mut Vec<TxnEffect>) {
        self.end(sequence, Ended::Refused(refusal), effects);
    }

    /// Aborts a transaction for good.
    fn end(&mut self, sequence: u64, ended: Ended, effects: &mut Vec<TxnEffect>) {
        self.abort(sequence, effects);
        if let Some(txn) = self.active.remove(&sequence) {
            effects.push(TxnEffect::Reply(txn.client, ended));
        }
    }

    fn abort(&mut self, sequence: u64, effects: &mut Vec<TxnEffect>) {
        let Some(txn) = self.active.get(&sequence) else { return };
        self.counts.aborts += 1;
        for (partition, _) in &txn.work.shares {
            let decide = Decide {
                txn: txn.id,
                verdict: Verdict::Abort,
                primary: txn.primary,
                deciding: false,
            };
            effects.push(TxnEffect::Partition(*partition, ToPartition::Decide(decide)));
        }
    }

    fn done(&mut self, id: TxnId, replies: Vec<Replies>, effects: &mut Vec<TxnEffect>) {
        if let Some(txn) = self.active.remove(&id.sequence) {
            self.counts.commits += 1;
            effects.push(TxnEffect::Reply(txn.client, Ended::Done(replies)));
        }
    }
}

/// What time it is for the keys of a script: for each of them the stamp of its partition's leader,
/// as of which nothing that the leader has shown is expired.
#[derive(Default)]
struct Moments<'a> {
    of: BTreeMap<(TableIndex, &'a Vec<u8>), Millis>,
    latest: Millis,
}

impl Moments<'_> {
    fn at(&self, table: TableIndex, key: &Vec<u8>) -> Millis {
        self.of.get(&(table, key)).copied().unwrap_or(self.latest)
    }

    /// Runs an operation at the moment of its keys. Those of several partitions, whose leaders'
    /// clocks differ, are brought to the latest of their moments with what is left of their times to
    /// live, and back: what is moved from one to the other lives on for as long as it would have.
    fn run<M: Machine>(&self, op: &Op<'_>, scratch: &mut Tables, reply: &mut Vec<u8>) {
        let mut keys = Vec::new();
        M::keys(op, &mut |table, key| keys.push((table, key.to_vec())));
        keys.sort_unstable();
        keys.dedup();
        let of_keys = || keys.iter().map(|(table, key)| self.at(*table, key));
        let now = of_keys().max().unwrap_or(self.latest);
        let differ = of_keys().any(|moment| moment != now);
        let rebase = |scratch: &mut Tables, there: bool| {
            for (table, key) in keys.iter().filter(|_| differ) {
                let own = self.at(*table, key);
                let (from, to) = if there { (own, now) } else { (now, own) };
                scratch.rebase(*table, key, from, to);
            }
        };
        rebase(scratch, true);
        scratch.begin(now, M::access(op.head.code));
        M::run(op, scratch, now, reply);
        rebase(scratch, false);
    }
}

/// The keys that a script names, after its operations on whole partitions, if it has any. What the
/// script itself makes of them comes on top.
fn bare<M: Machine>(
    hasher: KeyHasher,
    work: &Work,
    grants: &BTreeMap<PartitionId, Grant>,
    now: Millis,
) -> Option<Tables> {
    let whole = |op: &Op<'_>| M::scope(op.head.code) == Scope::Partition;
    if !work.script.iter().any(|op| whole(&op)) {
        return None;
    }
    let mut bare = Tables::new(hasher);
    bare.begin(now, Access::Write);
    for image in grants.values().flat_map(|grant| &grant.images) {
        bare.install(image.clone());
    }
    for op in work.script.iter().filter(whole) {
        M::run(&op, &mut bare, now, &mut Vec::new());
    }
    Some(bare)
}

/// A share of operations only.
impl From<crate::batch::Batch> for Share {
    fn from(batch: crate::batch::Batch) -> Share {
        Share { batch, ..Share::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, OpCode, OpHead};
    use crate::ids::TableIndex;
    use crate::script::Args;
    use crate::simulation::Lists;
    use crate::store::key_state::HeldValue;
    use crate::store::value::ValueBuf;
    use crate::txn::protocol::Claim;
    use std::error::Error;
    use std::fmt::Write;

    /// Scripts of one Coordinator, on node 1 of three; partition 0 is node 1's, and so on.
    struct Script(Transactions<Lists>);

    fn head(code: u16, partition: PartitionId) -> OpHead {
        let table = TableIndex::default();
        OpHead { code: OpCode(code), partition, table, resp3: false, hash: 0 }
    }

    fn key(partition: PartitionId) -> Vec<u8> {
        format!("k{partition}").into_bytes()
    }

    fn work(mode: Mode, partitions: &[PartitionId]) -> Work {
        let share = |id: &PartitionId| {
            let mut share = Share::default();
            let granule = Granule::Key(TableIndex::default(), key(*id));
            match mode {
                Mode::Read => share.batch.push(head(0, *id), [key(*id).as_slice()]),
                Mode::Write => share.batch.push(head(1, *id), [key(*id).as_slice(), b"tag1"]),
                Mode::Gather => share.claims.push(Claim { granule, access: Access::Write }),
            }
            (*id, share)
        };
        let mut script = Batch::new();
        if mode == Mode::Gather {
            let keys: Vec<Vec<u8>> = partitions.iter().copied().map(key).collect();
            let args = keys.iter().map(Vec::as_slice).chain([b"tag1".as_slice()]);
            script.push(head(2, PartitionId(0)), args);
        }
        Work { mode, shares: partitions.iter().map(share).collect(), script }
    }

    fn tell(effect: &TxnEffect) -> String {
        match effect {
            TxnEffect::Partition(to, ToPartition::Lock(lock)) => {
                format!("p{to} lock attempt={} age={}", lock.txn.attempt, lock.age.time)
            }
            TxnEffect::Partition(to, ToPartition::Prepare(prepare)) => {
                let work = match &prepare.work {
                    Prepared::Share(_) => "its share".to_owned(),
                    Prepared::Images(images) => format!("{} images", images.len()),
                    Prepared::Whole(batch, images) => {
                        format!("{} operations, {} images", batch.len(), images.len())
                    }
                };
                let Prepare { txn, primary, age, .. } = &**prepare;
                let age = age.time;
                let synced = if prepare.synced { " synced" } else { "" };
                format!(
                    "p{to} prepare {work} attempt={} age={age} primary=p{primary}{synced}",
                    txn.attempt
                )
            }
            TxnEffect::Partition(to, ToPartition::Decide(decide)) => {
                let what = if decide.deciding { "decide" } else { "told" };
                format!("p{to} {what} {:?} attempt={}", decide.verdict, decide.txn.attempt)
            }
            TxnEffect::Partition(to, ToPartition::Confirm { txn, .. }) => {
                format!("p{to} confirm attempt={}", txn.attempt)
            }
            TxnEffect::Partition(to, message) => format!("p{to} {message:?}"),
            TxnEffect::Reply(client, Ended::Done(replies)) => {
                format!("client {} done, {} replies", client.0, replies.len())
            }
            TxnEffect::Reply(client, ended) => format!("client {} {ended:?}", client.0),
        }
    }

    impl goldenscript::Runner for Script {
        type Command = goldenscript::Command;

        fn run(
            &mut self,
            command: &goldenscript::Command,
            _: &goldenscript::Context,
        ) -> Result<String, Box<dyn Error>> {
            let mut args = Args::new(command);
            let mut effects = Vec::new();
            let sequence: u64 = args.key("txn", 1)?;
            let attempt: u32 = args.key("attempt", 1)?;
            let (node, incarnation) = (NodeId(1), Incarnation(1));
            let txn = TxnId { node, incarnation, sequence, attempt };
            let at: u64 = args.key("at", 0)?;
            let now = Now { wall: Millis(at), mono: at };
            let handle = |transactions: &mut Transactions<Lists>, message, effects: &mut Vec<_>| {
                transactions.handle(message, now, effects);
            };
            match command.name.as_str() {
                "begin" => {
                    let mode = match args.next::<String>()?.as_str() {
                        "read" => Mode::Read,
                        "write" => Mode::Write,
                        _ => Mode::Gather,
                    };
                    let client = ClientId(args.key("client", 1)?);
                    let ids = args.words().into_iter().map(|word| word.parse().map(PartitionId));
                    let ids = ids.collect::<Result<Vec<_>, _>>()?;
                    self.0.begin(client, work(mode, &ids), now, &mut effects);
                }
                "granted" => {
                    let length: usize = args.key("length", 0)?;
                    for word in args.words() {
                        let partition = PartitionId(word.parse()?);
                        let value = b"tag0".repeat(length);
                        let held = HeldValue { value: ValueBuf::string(value), expires: None };
                        let image = KeyState {
                            table: TableIndex::default(),
                            key: key(partition),
                            held: (length > 0).then_some(held),
                        };
                        let granted = ToCoordinator::Granted {
                            txn,
                            partition,
                            term: Term(1),
                            time: 0,
                            stamp: Millis(0),
                            replies: Replies::default(),
                            images: vec![image],
                        };
                        handle(&mut self.0, granted, &mut effects);
                    }
                }
                "voted" => {
                    let vote = args.key("yes", true)?.then(Replies::default);
                    for word in args.words() {
                        let (partition, vote) = (PartitionId(word.parse()?), vote.clone());
                        let voted = ToCoordinator::Voted { txn, partition, time: 0, vote };
                        handle(&mut self.0, voted, &mut effects);
                    }
                }
                "confirmed" => {
                    let held = args.key("held", true)?;
                    for word in args.words() {
                        let partition = PartitionId(word.parse()?);
                        let confirmed = ToCoordinator::Confirmed { txn, partition, held };
                        handle(&mut self.0, confirmed, &mut effects);
                    }
                }
                "decided" => {
                    let commit = args.key("commit", true)?;
                    let verdict = if commit { Verdict::Commit } else { Verdict::Abort };
                    handle(&mut self.0, ToCoordinator::Decided { txn, verdict }, &mut effects);
                }
                "wound" => handle(&mut self.0, ToCoordinator::Wound { txn }, &mut effects),
                "inquire" => {
                    let inquire = ToCoordinator::Inquire { txn, asker: PartitionId(2) };
                    handle(&mut self.0, inquire, &mut effects);
                }
                "class" => {
                    let survives = match args.key("survives", "power".to_owned())?.as_str() {
                        "nothing" => Survives::Nothing,
                        "process" => Survives::Process,
                        _ => Survives::Power,
                    };
                    let strength = Strength { copies: args.key("copies", 1)?, survives };
                    self.0.keep(PartitionId(args.next()?), strength);
                }
                "up" => self.0.node_up(NodeId(args.next()?), Incarnation(1), now, &mut effects),
                "down" => self.0.node_down(NodeId(args.next()?), now, &mut effects),
                "tick" => self.0.tick(now, &mut effects),
                name => return Err(format!("no command {name}").into()),
            }
            args.end()?;
            let mut told = String::new();
            for effect in &effects {
                writeln!(told, "{}", tell(effect))?;
            }
            if effects.is_empty() {
                writeln!(told, "nothing")?;
            }
            Ok(told)
        }
    }

    /// Three partitions, none of which sends too much, do so together: in a transaction of each mode.
    #[test]
    fn what_partitions_send_is_added_up() {
        let mebibytes = |count: usize| vec![0; count << 20];
        for mode in [Mode::Read, Mode::Write, Mode::Gather] {
            for (each, too_much) in [(60, false), (70, true)] {
                let homes = Topology::of_leaders([NodeId(1); 3]).view();
                let (node, incarnation) = (NodeId(1), Incarnation(1));
                let mut transactions: Transactions<Lists> =
                    Transactions::new(node, incarnation, homes, KeyHasher::new(0), 100);
                let (now, mut effects) = (Now::default(), Vec::new());
                let ids = [0, 1, 2].map(PartitionId);
                transactions.begin(ClientId(1), work(mode, &ids), now, &mut effects);
                let txn = TxnId { node, incarnation, sequence: 1, attempt: 1 };
                for partition in ids {
                    let mut replies = Replies::default();
                    let mut images = Vec::new();
                    if mode == Mode::Gather {
                        let value = mebibytes(each);
                        let held = HeldValue { value: ValueBuf::string(value), expires: None };
                        let table = TableIndex::default();
                        images.push(KeyState { table, key: key(partition), held: Some(held) });
                    } else {
                        replies.bytes = mebibytes(each);
                        replies.end();
                    }
                    let message = match mode {
                        Mode::Write => {
                            ToCoordinator::Voted { txn, partition, time: 0, vote: Some(replies) }
                        }
                        Mode::Read | Mode::Gather => ToCoordinator::Granted {
                            txn,
                            partition,
                            term: Term(1),
                            time: 0,
                            stamp: Millis(0),
                            replies,
                            images,
                        },
                    };
                    // The last one completes what is answered, and is not needed to see it refused.
                    if mode != Mode::Gather || partition != ids[2] || too_much {
                        transactions.handle(message, now, &mut effects);
                    }
                }
                let refused = TxnEffect::Reply(ClientId(1), Ended::Refused(Refusal::TooMuch));
                assert_eq!(effects.contains(&refused), too_much, "{mode:?}");
                assert_eq!(transactions.active(), usize::from(!too_much), "{mode:?}");
            }
        }
    }

    #[test]
    fn scripts() {
        let scripts = [
            "write",
            "read",
            "gather",
            "wounds",
            "votes_against",
            "lost_nodes",
            "patience",
            "classes",
        ];
        for name in scripts {
            let homes = Topology::of_leaders([NodeId(1), NodeId(2), NodeId(3)]).view();
            let hasher = KeyHasher::new(0);
            let mut script =
                Script(Transactions::new(NodeId(1), Incarnation(1), homes, hasher, 100));
            script.0.node_up(NodeId(2), Incarnation(1), Now::default(), &mut Vec::new());
            script.0.node_up(NodeId(3), Incarnation(1), Now::default(), &mut Vec::new());
            goldenscript::run(&mut script, format!("tests/scripts/txn/{name}")).unwrap();
        }
    }
}
