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

mod gather;
mod reach;

use crate::batch::Replies;
use crate::batch::machine::{AnswerBytes, Effort, Machine};
use crate::batch::refusal::Refusal;
use crate::cluster::topology::Topology;
use crate::ids::Term;
use crate::ids::{Age, Incarnation, Millis, NodeId, Now, PartitionId, TxnId};
use crate::rules::{Rule, kept};
use crate::store::key_state::KeyState;
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{
    Decide, Ended, Knowledge, Lock, Mode, Prepare, Prepared, Share, ToCoordinator, ToPartition,
    Verdict, Work,
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

/// A share of operations only.
impl From<crate::batch::Batch> for Share {
    fn from(batch: crate::batch::Batch) -> Share {
        Share { batch, ..Share::default() }
    }
}

#[cfg(test)]
mod tests;
