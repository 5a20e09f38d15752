//! One partition as its leader serves it: marks, waiting requests and the participant's and
//! primary's side of the commit protocol, around a [`Replica`].
//!
//! A single operation on unmarked keys runs at once. Everything else comes as a [`ToPartition`]
//! and leaves as an [`Effect`]:
//!
//! ```text
//!  Lock    ── marks, reads ─────────────▶ Granted      unlogged: goes with Coordinator and term
//!  Prepare ── marks, logs the intent ───▶ Voted        from here only a decision ends it
//!  Decide  ── at the primary: logs it ──▶ Decided      the commit point
//!          ── elsewhere: applies it ────▶ Applied      confirmed to the primary
//! ```
//!
//! The log does nothing yet: a mutation is applied where it would be proposed.

use crate::engine::batch::{Op, Replies};
use crate::engine::machine::{Access, Machine, Scope};
use crate::engine::marks::{Marks, Released};
use crate::engine::protocol::{
    Acquire, Claim, Decide, Granule, Image, Knowledge, Lock, Mode, Prepare, Prepared, Share, Term,
    Ticket, ToCoordinator, ToLocks, ToPartition, Verdict,
};
use crate::engine::replica::{Applied, Mutation, Replica};
use crate::engine::rules::{Rule, kept};
use crate::engine::tables::{EXPIRED_NOTED_MAX, KeyHasher};
use crate::ids::{Age, Incarnation, Millis, NodeId, PartitionId, TableIndex, TxnId};
use std::collections::{BTreeMap, BTreeSet};

/// How long an intent waits for its decision before it asks the primary, while its Coordinator
/// seems well. Long against a busy queue, short against a person's patience.
pub const RESOLVE_AFTER_MS: u64 = 3_000;

/// How often a question or a decision that is not answered is repeated.
pub const REPEAT_AFTER_MS: u64 = 300;

/// Cells that a step of active expiry looks at. No more expired items than cells are found, so
/// none is forgotten for lack of room.
const EXPIRE_CELLS: usize = 1024;
const _: () = assert!(EXPIRE_CELLS <= EXPIRED_NOTED_MAX);

/// Where active expiry goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Sweep {
    table: TableIndex,
    cursor: u64,
}

/// What a partition wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell a node's Coordinator.
    Coordinator(NodeId, ToCoordinator),
    /// Tell another partition (or this one).
    Partition(PartitionId, ToPartition),
    /// Tell the lock manager of this node.
    Locks(ToLocks),
}

/// What a partition knows of the nodes around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// Which node serves each partition.
    pub homes: Vec<NodeId>,
    /// The latest life seen of each node.
    pub lives: BTreeMap<NodeId, Incarnation>,
    /// Nodes that cannot be reached now.
    pub unreachable: BTreeSet<NodeId>,
    /// Lives that are known to have ended.
    pub ended: BTreeSet<(NodeId, Incarnation)>,
}

impl Neighbours {
    /// Neighbours of which nothing but their homes is known.
    pub fn new(homes: Vec<NodeId>) -> Neighbours {
        Neighbours {
            homes,
            lives: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    /// The node that serves a partition.
    pub fn home(&self, partition: PartitionId) -> Option<NodeId> {
        self.homes.get(partition.index()).copied()
    }

    /// Learns of a node's life: earlier ones have ended.
    pub fn alive(&mut self, node: NodeId, incarnation: Incarnation) {
        let known = self.lives.entry(node).or_insert(incarnation);
        *known = incarnation.max(*known);
        self.unreachable.remove(&node);
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
}

/// What waits for its turn on contended keys.
#[derive(Debug)]
enum Waiting {
    /// A single operation; the Bucket holds it.
    Op,
    Lock(Lock),
    Prepare(Prepare),
}

/// A request at the lock manager.
#[derive(Debug)]
struct Queued {
    claims: Vec<Claim>,
    waiting: Waiting,
}

/// A transaction that holds marks here.
#[derive(Debug)]
struct Held {
    claims: Vec<Claim>,
    /// The term of unlogged locks; `None` once they are logged as an intent.
    unlogged: Option<Term>,
}

/// The search for an outcome whose primary lost its memory.
#[derive(Debug, Default)]
struct Inquiry {
    answers: BTreeMap<PartitionId, Knowledge>,
    coordinator: Option<Knowledge>,
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
    marks: Marks,
    held: BTreeMap<TxnId, Held>,
    queued: BTreeMap<Ticket, Queued>,
    /// The ticket under which a transaction waits.
    tickets: BTreeMap<TxnId, Ticket>,
    inquiries: BTreeMap<TxnId, Inquiry>,
    /// When an intent or an outcome was last asked for or repeated.
    repeated: BTreeMap<TxnId, Millis>,
    sweep: Sweep,
}

impl<M: Machine> Partition<M> {
    /// An empty partition served by `node` in its life `life`.
    pub fn new(
        id: PartitionId,
        node: NodeId,
        life: Incarnation,
        hasher: KeyHasher,
    ) -> Partition<M> {
        let mut replica = Replica::new(id, hasher);
        replica.watch_from(life);
        Partition {
            id,
            node,
            life,
            // Without a log a partition is led by its node for all of the node's life.
            term: Term(life.0),
            clock: 0,
            replica,
            marks: Marks::default(),
            held: BTreeMap::new(),
            queued: BTreeMap::new(),
            tickets: BTreeMap::new(),
            inquiries: BTreeMap::new(),
            repeated: BTreeMap::new(),
            sweep: Sweep::default(),
        }
    }

    /// The replica.
    pub fn replica(&self) -> &Replica<M> {
        &self.replica
    }

    /// Whether no lock, intent, outcome or waiting request is left.
    pub fn is_at_rest(&self) -> bool {
        self.marks.is_empty()
            && self.held.is_empty()
            && self.queued.is_empty()
            && self.tickets.is_empty()
            && self.inquiries.is_empty()
            && self.replica.intents().is_empty()
            && self.replica.outcomes().is_empty()
    }

    /// Runs a single operation and appends its reply, unless one of its keys is marked or waited
    /// for: then nothing happens and the claims to wait for are returned.
    #[inline]
    pub fn execute(
        &mut self,
        op: &Op<'_>,
        now: Millis,
        reply: &mut Vec<u8>,
    ) -> Result<(), Vec<Claim>> {
        if !self.marks.is_empty() && self.blocks(op) {
            return Err(claims_of::<M>(std::iter::once(*op)));
        }
        self.run(op, now, reply);
        Ok(())
    }

    #[inline]
    fn run(&mut self, op: &Op<'_>, now: Millis, reply: &mut Vec<u8>) {
        let stamp = self.replica.stamp(now);
        match M::access(op.head.code) {
            Access::Read => self.replica.read(op, stamp, reply),
            Access::Write => self.replica.run(op, stamp, reply),
        }
        if let Some(expired) = self.replica.expired() {
            for (table, key) in expired {
                self.replica.apply(Mutation::Expire(table, &key), stamp, &mut Vec::new());
            }
        }
    }

    /// A step of active expiry: looks at about [`EXPIRE_CELLS`] cells of a table in which something
    /// may expire, and removes what has. Tells how many that was and whether the partition holds
    /// anything that may expire at all. Keys under a lock are left to their transaction.
    pub fn expire_some(&mut self, now: Millis) -> Option<usize> {
        let volatile = |table: &TableIndex| self.replica.tables().volatile(*table) > 0;
        if !volatile(&self.sweep.table) || self.sweep.cursor == 0 {
            let next = self.sweep.table.index() + 1;
            let table = TableIndex::all().chain(TableIndex::all()).skip(next).find(volatile)?;
            self.sweep = Sweep { table, cursor: 0 };
        }
        let stamp = self.replica.stamp(now);
        let Sweep { table, cursor } = self.sweep;
        self.sweep.cursor = self.replica.sweep(table, cursor, EXPIRE_CELLS, stamp);
        let mut removed = 0;
        for (table, key) in self.replica.expired().into_iter().flatten() {
            if !self.marks.is_empty() && self.marks.blocks(table, &key, Access::Write) {
                continue;
            }
            let applied = self.replica.apply(Mutation::Expire(table, &key), stamp, &mut Vec::new());
            removed += usize::from(applied == Applied::Done);
        }
        Some(removed)
    }

    #[cold]
    fn blocks(&self, op: &Op<'_>) -> bool {
        let access = M::access(op.head.code);
        if access == Access::Read && !kept(Rule::ReadsWaitOnIntents)
            || !kept(Rule::MarksAreAuthoritative)
        {
            return false;
        }
        match M::scope(op.head.code) {
            // What was acknowledged may still be an intent here, so even a glance waits for those.
            Scope::Glance | Scope::Partition => {
                self.marks.conflicts(None, &Claim { granule: Granule::Whole, access })
            }
            Scope::Keys => {
                let mut blocked = false;
                M::keys(op, &mut |table, key| {
                    blocked |= self.marks.blocks(table, key, access);
                });
                blocked
            }
        }
    }

    /// Queues a single operation that [`Partition::execute`] refused. The Bucket keeps it and runs
    /// it by [`Partition::granted`].
    pub fn wait(&mut self, ticket: Ticket, claims: Vec<Claim>, effects: &mut Vec<Effect>) {
        self.clock += 1;
        // A tie that no Coordinator's sequence takes, so that no two ages are equal.
        let age = Age { time: self.clock, node: self.node, tie: (1 << 63) | ticket.0 };
        self.queue(ticket, age, None, claims, Waiting::Op, effects);
    }

    /// The lock manager says that the request has its turn. For a single operation `op` gives it;
    /// tells whether the operation ran.
    pub fn granted(
        &mut self,
        ticket: Ticket,
        op: Option<&Op<'_>>,
        now: Millis,
        reply: &mut Vec<u8>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        // A request cancelled meanwhile has told the lock manager so.
        let Some(queued) = self.queued.remove(&ticket) else { return false };
        let calm = self.marks.waited(&queued.claims);
        let ran = match queued.waiting {
            Waiting::Op => {
                if let Some(op) = op {
                    self.run(op, now, reply);
                }
                op.is_some()
            }
            Waiting::Lock(lock) => {
                self.tickets.remove(&lock.txn);
                self.lock(lock, queued.claims, now, effects);
                false
            }
            Waiting::Prepare(prepare) => {
                self.tickets.remove(&prepare.txn);
                self.hold(prepare.txn, prepare.age, queued.claims, None);
                self.prepare(prepare, now, effects);
                false
            }
        };
        self.forget(calm, effects);
        ran
    }

    /// Gives up a waiting single operation.
    pub fn cancel(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let Some(queued) = self.queued.remove(&ticket) else { return };
        let calm = self.marks.waited(&queued.claims);
        effects.push(Effect::Locks(ToLocks::Cancel { ticket, partition: self.id }));
        self.forget(calm, effects);
    }

    /// Takes one message. `ticket` is used up if the request has to wait.
    pub fn handle(
        &mut self,
        message: ToPartition,
        ticket: Ticket,
        now: Millis,
        neighbours: &Neighbours,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            ToPartition::Lock(lock) => self.on_lock(lock, ticket, now, effects),
            ToPartition::Prepare(prepare) => {
                self.on_prepare(prepare, ticket, now, effects);
            }
            ToPartition::Decide(decide) => self.on_decide(decide, now, effects),
            ToPartition::Confirm { txn, term } => self.on_confirm(txn, term, effects),
            ToPartition::Resolve { txn, asker, primary_life } => {
                self.on_resolve(txn, asker, primary_life, now, effects);
            }
            ToPartition::Lost { txn } => {
                if self.replica.intents().contains_key(&txn) {
                    self.inquire(txn, neighbours, effects);
                }
            }
            ToPartition::Inquire { txn, asker } => {
                let knowledge = self.knowledge(txn, now, effects);
                let answer = ToPartition::Knows { txn, from: self.id, knowledge };
                effects.push(Effect::Partition(asker, answer));
            }
            ToPartition::Knows { txn, from, knowledge } => {
                if let Some(inquiry) = self.inquiries.get_mut(&txn) {
                    inquiry.answers.insert(from, knowledge);
                    self.conclude(txn, now, neighbours, effects);
                }
            }
            ToPartition::CoordinatorKnows { txn, knowledge } => {
                if let Some(inquiry) = self.inquiries.get_mut(&txn) {
                    inquiry.coordinator = Some(knowledge);
                    self.conclude(txn, now, neighbours, effects);
                }
            }
            ToPartition::Applied { txn, from } => {
                self.propose(Mutation::Applied(txn, from), now);
                if !self.replica.outcomes().contains_key(&txn) {
                    self.repeated.remove(&txn);
                }
            }
        }
    }

    /// A node began a life: nothing of its earlier ones may prepare any more.
    pub fn coordinator_began(&mut self, node: NodeId, life: Incarnation) {
        self.replica.done_below(node, life, 0);
    }

    /// A node cannot be reached any more, or began another life: unlogged locks of its
    /// transactions are given up, their confirmations will fail.
    pub fn coordinator_lost(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        if !kept(Rule::UnloggedLocksGoWithCoordinator) {
            return;
        }
        let lost = |txn: &TxnId| txn.node == node;
        let unlogged =
            |(txn, held): (&TxnId, &Held)| (lost(txn) && held.unlogged.is_some()).then_some(*txn);
        let held: Vec<TxnId> = self.held.iter().filter_map(unlogged).collect();
        let waiting: Vec<TxnId> = self.tickets.keys().copied().filter(lost).collect();
        for txn in held.into_iter().chain(waiting) {
            self.release(txn, effects);
        }
    }

    /// Repeats what is not answered: questions of old intents, decisions not confirmed.
    pub fn tick(&mut self, now: Millis, neighbours: &Neighbours, effects: &mut Vec<Effect>) {
        self.replica.forget_watches(now);
        if self.replica.intents().is_empty() && self.replica.outcomes().is_empty() {
            return;
        }
        let due = |txn: &TxnId, since: Millis, repeated: &BTreeMap<TxnId, Millis>| {
            let last = repeated.get(txn).copied().unwrap_or(since);
            now.0 >= last.0.saturating_add(REPEAT_AFTER_MS)
        };
        let mut drive = Vec::new();
        for (txn, outcome) in self.replica.outcomes() {
            if kept(Rule::PrimaryDrives) && due(txn, outcome.since, &self.repeated) {
                drive.push((*txn, outcome.unconfirmed.clone()));
            }
        }
        for (txn, unconfirmed) in drive {
            self.repeated.insert(txn, now);
            for partition in unconfirmed {
                self.tell(txn, Verdict::Commit, partition, effects);
            }
        }
        let mut ask = Vec::new();
        for (txn, intent) in self.replica.intents() {
            let coordinator_lost = neighbours.unreachable.contains(&txn.node)
                || neighbours.is_over(txn.node, txn.incarnation);
            let old = now.0 >= intent.since.0.saturating_add(RESOLVE_AFTER_MS);
            if (old || coordinator_lost)
                && kept(Rule::OldIntentsAsk)
                && due(txn, intent.since, &self.repeated)
            {
                ask.push((*txn, intent.primary, intent.primary_life));
            }
        }
        for (txn, primary, primary_life) in ask {
            self.repeated.insert(txn, now);
            let home = neighbours.home(primary);
            let gone = home.is_some_and(|home| neighbours.is_over(home, primary_life));
            if primary == self.id {
                self.end(txn, Verdict::Abort, now, effects);
            } else if gone {
                self.inquire(txn, neighbours, effects);
                self.conclude(txn, now, neighbours, effects);
            } else {
                let ask = ToPartition::Resolve { txn, asker: self.id, primary_life };
                effects.push(Effect::Partition(primary, ask));
            }
        }
    }

    /// The transaction that a message begins or goes on with, if it is going to need more memory
    /// here: operations that may, or images that are longer than what they replace.
    ///
    /// Nothing is noted. Its Coordinator ends it for good unless the decision is under way, which
    /// no share that is refused so allows.
    pub fn needs_memory(&mut self, message: &ToPartition, now: Millis) -> Option<TxnId> {
        let grows = |share: &Share| share.batch.heads().any(|head| M::grows(head.code));
        match message {
            ToPartition::Lock(lock) => grows(&lock.share).then_some(lock.txn),
            ToPartition::Prepare(Prepare { txn, work: Prepared::Share(share), .. }) => {
                grows(share).then_some(*txn)
            }
            ToPartition::Prepare(Prepare { txn, work: Prepared::Images(images), .. }) => {
                let bytes = |images: &[Image]| -> usize {
                    let held = images.iter().filter_map(|image| image.held.as_ref());
                    held.map(|held| held.value.len()).sum()
                };
                let claim = |image: &Image| Claim {
                    granule: Granule::Key(image.table, image.key.clone()),
                    access: Access::Read,
                };
                let claims: Vec<Claim> = images.iter().map(claim).collect();
                let stamp = self.replica.stamp(now);
                let before = self.replica.images(&claims, stamp);
                (bytes(images) > bytes(&before)).then_some(*txn)
            }
            _ => None,
        }
    }

    fn on_lock(&mut self, lock: Lock, ticket: Ticket, now: Millis, effects: &mut Vec<Effect>) {
        let txn = lock.txn;
        self.clock = self.clock.max(lock.age.time);
        self.replica.done_below(txn.node, txn.incarnation, lock.done_below);
        let known = self.held.contains_key(&txn) || self.tickets.contains_key(&txn);
        if known || self.replica.is_over(txn) {
            return;
        }
        let claims = share_claims::<M>(&lock.share);
        if self.conflict(txn, &claims) {
            self.queue(ticket, lock.age, Some(txn), claims, Waiting::Lock(lock), effects);
            return;
        }
        self.lock(lock, claims, now, effects);
    }

    fn lock(&mut self, lock: Lock, claims: Vec<Claim>, now: Millis, effects: &mut Vec<Effect>) {
        if !self.replica.is_unchanged(&lock.share.watched) {
            self.changed(lock.txn, claims, effects);
            return;
        }
        let stamp = self.replica.stamp(now);
        let images = match lock.mode {
            Mode::Gather => self.replica.images(&claims, stamp),
            Mode::Read | Mode::Write => Vec::new(),
        };
        self.hold(lock.txn, lock.age, claims, Some(self.term));
        let mut replies = Replies::default();
        if lock.mode == Mode::Read {
            for op in lock.share.batch.iter() {
                self.run(&op, now, &mut replies.bytes);
                replies.end();
            }
        }
        let granted = ToCoordinator::Granted {
            txn: lock.txn,
            partition: self.id,
            term: self.term,
            time: self.clock,
            replies,
            images,
        };
        effects.push(Effect::Coordinator(lock.txn.node, granted));
    }

    /// Says that a watched key has changed. Claims that were waited for are given back.
    fn changed(&mut self, txn: TxnId, claims: Vec<Claim>, effects: &mut Vec<Effect>) {
        for claim in claims {
            self.unmark(&claim.granule, txn, effects);
        }
        effects.push(Effect::Coordinator(txn.node, ToCoordinator::Changed { txn }));
    }

    fn on_prepare(
        &mut self,
        prepare: Prepare,
        ticket: Ticket,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let txn = prepare.txn;
        self.clock = self.clock.max(prepare.age.time);
        self.replica.done_below(txn.node, txn.incarnation, prepare.done_below);
        if self.tickets.contains_key(&txn) {
            return;
        }
        if kept(Rule::LatePreparesAreRefused) && self.replica.is_over(txn) {
            self.vote(txn, None, effects);
            return;
        }
        if let Some(term) = prepare.term {
            let held = self.held.get(&txn);
            let granted = held.is_some_and(|held| held.unlogged == Some(term));
            if granted && term == self.term || !kept(Rule::PrepareCarriesGrant) {
                self.prepare(prepare, now, effects);
            } else {
                self.vote(txn, None, effects);
            }
            return;
        }
        if self.held.contains_key(&txn) {
            self.prepare(prepare, now, effects);
            return;
        }
        let claims = match &prepare.work {
            Prepared::Share(share) => share_claims::<M>(share),
            // Images come after a lock only.
            Prepared::Images(_) => {
                self.vote(txn, None, effects);
                return;
            }
        };
        if self.conflict(txn, &claims) {
            self.queue(ticket, prepare.age, Some(txn), claims, Waiting::Prepare(prepare), effects);
            return;
        }
        self.hold(txn, prepare.age, claims, None);
        self.prepare(prepare, now, effects);
    }

    /// Logs the intent of a transaction that holds its marks, and votes.
    fn prepare(&mut self, prepare: Prepare, now: Millis, effects: &mut Vec<Effect>) {
        let txn = prepare.txn;
        if let Prepared::Share(share) = &prepare.work
            && !self.replica.is_unchanged(&share.watched)
        {
            self.release(txn, effects);
            effects.push(Effect::Coordinator(txn.node, ToCoordinator::Changed { txn }));
            return;
        }
        let mut claims = Vec::new();
        if let Some(held) = self.held.get_mut(&txn) {
            held.unlogged = None;
            claims = held.claims.clone();
        }
        let mut released = Vec::new();
        if !kept(Rule::ReadKeysArePrepared) {
            released = claims.extract_if(.., |claim| claim.access == Access::Read).collect();
        }
        match self.propose(Mutation::Prepare(&prepare, claims), now) {
            Applied::Voted(replies) => self.vote(txn, Some(replies), effects),
            _ => {
                self.release(txn, effects);
                self.vote(txn, None, effects);
            }
        }
        for claim in released {
            self.unmark(&claim.granule, txn, effects);
        }
    }

    fn vote(&self, txn: TxnId, vote: Option<Replies>, effects: &mut Vec<Effect>) {
        let voted = ToCoordinator::Voted { txn, partition: self.id, time: self.clock, vote };
        effects.push(Effect::Coordinator(txn.node, voted));
    }

    fn on_decide(&mut self, decide: Decide, now: Millis, effects: &mut Vec<Effect>) {
        let Decide { txn, verdict, primary, deciding } = decide;
        let stands = self.end(txn, verdict, now, effects);
        if deciding {
            let decided = ToCoordinator::Decided { txn, verdict: stands };
            effects.push(Effect::Coordinator(txn.node, decided));
        } else if verdict == Verdict::Commit && primary != self.id {
            let applied = ToPartition::Applied { txn, from: self.id };
            effects.push(Effect::Partition(primary, applied));
        }
    }

    /// Ends a transaction here by the first decision logged, which is returned.
    fn end(
        &mut self,
        txn: TxnId,
        verdict: Verdict,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Verdict {
        let applied = self.propose(Mutation::Decide(txn, verdict), now);
        self.inquiries.remove(&txn);
        if !self.replica.outcomes().contains_key(&txn) {
            self.repeated.remove(&txn);
        }
        self.release(txn, effects);
        match applied {
            Applied::Stands(verdict) => verdict,
            _ => Verdict::Abort,
        }
    }

    fn on_confirm(&mut self, txn: TxnId, term: Term, effects: &mut Vec<Effect>) {
        let unlogged = self.held.get(&txn).and_then(|held| held.unlogged);
        let held = unlogged == Some(term) && term == self.term;
        if unlogged.is_some() {
            self.release(txn, effects);
        }
        let confirmed = ToCoordinator::Confirmed { txn, partition: self.id, held };
        effects.push(Effect::Coordinator(txn.node, confirmed));
    }

    fn on_resolve(
        &mut self,
        txn: TxnId,
        asker: PartitionId,
        primary_life: Incarnation,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.replica.outcomes().contains_key(&txn)
            || self.replica.intents().contains_key(&txn)
            || self.replica.ended(txn).is_some();
        if !known && primary_life != self.life {
            effects.push(Effect::Partition(asker, ToPartition::Lost { txn }));
            return;
        }
        let stands = self.end(txn, Verdict::Abort, now, effects);
        self.tell(txn, stands, asker, effects);
    }

    fn tell(
        &self,
        txn: TxnId,
        verdict: Verdict,
        participant: PartitionId,
        effects: &mut Vec<Effect>,
    ) {
        let decide = Decide { txn, verdict, primary: self.id, deciding: false };
        effects.push(Effect::Partition(participant, ToPartition::Decide(decide)));
    }

    /// What this participant knows of an outcome. Whoever asks counts on the answer, so a share
    /// that is not prepared yet is refused from now on.
    fn knowledge(&mut self, txn: TxnId, now: Millis, effects: &mut Vec<Effect>) -> Knowledge {
        if self.replica.outcomes().contains_key(&txn) {
            return Knowledge::Committed;
        }
        if self.replica.intents().contains_key(&txn) {
            return Knowledge::Undecided;
        }
        match self.replica.ended(txn) {
            Some(Verdict::Commit) => Knowledge::Committed,
            Some(Verdict::Abort) => Knowledge::Aborted,
            None => {
                self.end(txn, Verdict::Abort, now, effects);
                Knowledge::Aborted
            }
        }
    }

    /// Asks all who may know the outcome of a transaction whose primary lost its memory.
    fn inquire(&mut self, txn: TxnId, neighbours: &Neighbours, effects: &mut Vec<Effect>) {
        let Some(intent) = self.replica.intents().get(&txn) else { return };
        let inquiry = self.inquiries.entry(txn).or_default();
        for &participant in &intent.participants {
            let asked = participant != self.id && participant != intent.primary;
            if asked && !inquiry.answers.contains_key(&participant) {
                let ask = ToPartition::Inquire { txn, asker: self.id };
                effects.push(Effect::Partition(participant, ask));
            }
        }
        if inquiry.coordinator.is_none() && !neighbours.is_over(txn.node, txn.incarnation) {
            let ask = ToCoordinator::Inquire { txn, asker: self.id };
            effects.push(Effect::Coordinator(txn.node, ask));
        }
    }

    /// Ends a transaction whose primary is gone, once everybody who may know has answered or is
    /// gone too: committed if anybody says so.
    fn conclude(
        &mut self,
        txn: TxnId,
        now: Millis,
        neighbours: &Neighbours,
        effects: &mut Vec<Effect>,
    ) {
        let Some(inquiry) = self.inquiries.get(&txn) else { return };
        let Some(intent) = self.replica.intents().get(&txn) else { return };
        let committed = inquiry.coordinator == Some(Knowledge::Committed)
            || inquiry.answers.values().any(|answer| *answer == Knowledge::Committed);
        let coordinator = inquiry.coordinator.is_some_and(|told| told != Knowledge::Undecided)
            || neighbours.is_over(txn.node, txn.incarnation);
        let answered = intent.participants.iter().all(|participant| {
            *participant == self.id
                || *participant == intent.primary
                || inquiry.answers.contains_key(participant)
                || neighbours.home(*participant).is_some_and(|home| {
                    let life = neighbours.lives.get(&home).copied().unwrap_or_default();
                    neighbours.is_over(home, life)
                })
        });
        if committed {
            self.end(txn, Verdict::Commit, now, effects);
        } else if coordinator && answered {
            self.end(txn, Verdict::Abort, now, effects);
        }
    }

    /// Where a mutation will be handed to the log. There is none yet, so it is applied.
    fn propose(&mut self, mutation: Mutation<'_>, now: Millis) -> Applied {
        let stamp = self.replica.stamp(now);
        self.replica.apply(mutation, stamp, &mut Vec::new())
    }

    fn conflict(&self, txn: TxnId, claims: &[Claim]) -> bool {
        kept(Rule::MarksAreAuthoritative)
            && claims.iter().any(|claim| self.marks.conflicts(Some(txn), claim))
    }

    fn hold(&mut self, txn: TxnId, age: Age, claims: Vec<Claim>, unlogged: Option<Term>) {
        for claim in &claims {
            self.marks.hold(claim, txn, age);
        }
        let replaced = self.held.insert(txn, Held { claims, unlogged });
        assert!(replaced.is_none(), "a transaction locks a partition once");
    }

    fn queue(
        &mut self,
        ticket: Ticket,
        age: Age,
        owner: Option<TxnId>,
        claims: Vec<Claim>,
        waiting: Waiting,
        effects: &mut Vec<Effect>,
    ) {
        let holders = self.marks.wait(&claims);
        if let Some(txn) = owner {
            self.tickets.insert(txn, ticket);
        }
        let acquire =
            Acquire { ticket, partition: self.id, age, owner, claims: claims.clone(), holders };
        self.queued.insert(ticket, Queued { claims, waiting });
        effects.push(Effect::Locks(ToLocks::Acquire(acquire)));
    }

    /// Gives up all that a transaction holds or waits for here.
    fn release(&mut self, txn: TxnId, effects: &mut Vec<Effect>) {
        if let Some(ticket) = self.tickets.remove(&txn) {
            self.cancel(ticket, effects);
        }
        if let Some(held) = self.held.remove(&txn) {
            for claim in held.claims {
                self.unmark(&claim.granule, txn, effects);
            }
        }
    }

    fn unmark(&mut self, granule: &Granule, txn: TxnId, effects: &mut Vec<Effect>) {
        let released = self.marks.release(granule, txn);
        if released != Released::Quietly {
            let (partition, granule) = (self.id, granule.clone());
            effects.push(Effect::Locks(ToLocks::Released { partition, granule, txn }));
        }
        if released == Released::LastOfContended {
            self.forget(vec![granule.clone()], effects);
        }
    }

    fn forget(&self, calm: Vec<Granule>, effects: &mut Vec<Effect>) {
        let partition = self.id;
        let calm = calm.into_iter().map(|granule| ToLocks::Uncontended { partition, granule });
        effects.extend(calm.map(Effect::Locks));
    }

    /// The node that serves the partition.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

/// What a share claims: the keys of its operations and those named beside them, each once, by
/// order of key.
pub fn share_claims<M: Machine>(share: &Share) -> Vec<Claim> {
    let mut claims = claims_of::<M>(share.batch.iter());
    claims.extend(share.claims.iter().cloned());
    claims.extend(share.watched.iter().map(|watched| Claim {
        granule: Granule::Key(watched.table, watched.key.clone()),
        access: Access::Read,
    }));
    merge(claims)
}

fn claims_of<'a, M: Machine>(ops: impl Iterator<Item = Op<'a>>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for op in ops {
        let access = M::access(op.head.code);
        match M::scope(op.head.code) {
            Scope::Glance | Scope::Partition => {
                claims.push(Claim { granule: Granule::Whole, access })
            }
            Scope::Keys => M::keys(&op, &mut |table, key| {
                let granule = Granule::Key(table, key.to_vec());
                claims.push(Claim { granule, access });
            }),
        }
    }
    merge(claims)
}

fn merge(mut claims: Vec<Claim>) -> Vec<Claim> {
    // The greater access comes first, so that it is the one kept.
    claims.sort_unstable_by(|one, other| {
        one.granule.cmp(&other.granule).then(other.access.cmp(&one.access))
    });
    claims.dedup_by(|later, kept| later.granule == kept.granule);
    claims
}
