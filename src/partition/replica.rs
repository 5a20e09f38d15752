//! What every replica of a partition holds alike: its tables, intents and outcomes.
//!
//! A replica changes by the entries of its log alone ([`Replica::apply_entry`], and
//! [`Replica::apply`] for a single mutation), in their order and at the moments stamped into them,
//! so the same log gives the same replica. What only a leader has (locks, queues, parked requests)
//! is in [`crate::partition`].
//!
//! Two things here are a leader's memory all the same, because the tables and the ends are here. No
//! mutation's outcome depends on them, and no snapshot holds them: the watched keys, and what a
//! leader has heard of transactions that are over ([`Replica::done_below`]). The last may only make
//! the leader refuse what it would otherwise propose.

mod ends;
mod locked;
mod rehearsal;
mod state;

use crate::batch::machine::{AnswerBytes, Machine, Scope, TooMuch, may_answer_too_much, too_long};
use crate::batch::refusal::Refusal;
use crate::batch::runs::Runs;
use crate::batch::{Batch, Laid, Layout, Op, Replies};
use crate::ids::{Age, Incarnation, Millis, NodeId, PartitionId, TableIndex, TxnId};
use crate::partition::record::{Entry, Section};
use crate::rules::{Rule, kept};
use crate::store::key_state::KeyState;
use crate::store::pages::Damaged;
use crate::store::tables::Access;
use crate::store::tables::{KeyHasher, Tables};
use crate::store::watches::Watches;
use crate::txn::protocol::{Claim, Granule, Prepare, Prepared, Verdict, Watched};
use crate::txn::share::{ClaimRef, Claims, PackedClaims, PrepareHead};
use ends::Ends;
use locked::Locked;
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

/// One change of a replica, as the log holds it.
#[derive(Debug)]
pub enum Mutation<'a> {
    /// A single operation.
    Run(Op<'a>),
    /// An item whose time has come is removed.
    Expire(TableIndex, &'a [u8]),
    /// A transaction's share becomes an intent.
    Prepare(Box<Prepare>, &'a [Claim]),
    /// A transaction ends here.
    Decide(TxnId, Verdict),
    /// A participant has applied commits that were decided here.
    Applied(Vec<TxnId>, PartitionId),
    /// A node began a life: nothing of its earlier ones may prepare any more.
    Began(NodeId, Incarnation),
}

/// What an applied mutation came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// Done.
    Done,
    /// A prepared share's replies.
    Voted(Replies),
    /// Refused: the transaction is over, or an intent of another one is in the way.
    Refused,
    /// A prepared share whose replies are too long: it is not to be committed.
    TooMuch,
    /// The transaction's outcome as it stands: this decision or an earlier one.
    Stands(Verdict),
}

/// What an applied entry answers, in recycled buffers.
#[derive(Debug, Default)]
pub struct AppliedAnswers {
    /// One reply for each operation of the entry, in order; none at all where no client waits. Some
    /// that only read may be left.
    pub replies: Replies,
    /// Bytes of replies that wait already, of entries before.
    pub waiting: usize,
    /// What each other mutation came to, in order.
    pub applied: Vec<Applied>,
    layout: Layout,
}

impl AppliedAnswers {
    /// Forgets the answers and keeps the buffers.
    pub fn clear(&mut self) {
        self.replies.clear();
        self.replies.bytes.shrink_to(ANSWERS_BYTES_KEPT);
        self.applied.clear();
    }
}

/// Operations of an entry whose items are prefetched together: enough for their misses to
/// overlap, few enough for all of it to be in the cache still when it is their turn.
const PREFETCHED_OPS: usize = 128;

/// While so many bytes of replies wait that were given at once, further operations that only read
/// are left: their clients' Sessions ask for them again.
const READS_BYTES_MAX: usize = 64 << 20;

/// Replies given at once stop growing past this, where the offsets of their ends would not do any
/// more: what goes beyond is replaced by an error.
const REPLIES_BYTES_MAX: usize = 1 << 31;

/// Bytes of buffers that are kept for the next entry's replies.
pub const ANSWERS_BYTES_KEPT: usize = 1 << 20;

/// An uncommitted write of a prepared transaction, and the keys it keeps locked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Its age, for the locks of a new leader.
    pub age: Age,
    /// Where the decision is logged.
    pub primary: PartitionId,
    /// All participants, in order.
    pub participants: Vec<PartitionId>,
    /// The life of the primary's node in which it prepared.
    pub primary_life: Incarnation,
    /// A participant's writes survive a loss of power, so this intent and its end do.
    pub synced: bool,
    /// When it was prepared.
    pub since: Millis,
    /// The keys locked, those only read among them.
    claims: PackedClaims,
    writes: Writes,
}

/// What a commit does.
#[derive(Debug, Serialize, Deserialize)]
enum Writes {
    /// A share, as the log has it, run as of the moment of its prepare: its keys do not change in
    /// between, so it does what it would have done then. Only the replica that replies evaluates it
    /// twice.
    Share(#[serde(with = "serde_bytes")] Box<[u8]>),
    /// The outcome of a script.
    Outcome(Vec<Write>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Write {
    State(KeyState),
    /// An operation on the whole partition, run at the commit: its outcome is not a few keys.
    Run(Box<Batch>),
}

/// A commit that was decided here and is not applied everywhere yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Participants that have not confirmed.
    pub unconfirmed: BTreeSet<PartitionId>,
    /// When it was decided.
    pub since: Millis,
}

/// A replica of one partition.
#[derive(Debug)]
pub struct Replica<M> {
    id: PartitionId,
    tables: Tables,
    /// Where shares are evaluated before they are intents. Empty between uses.
    scratch: Tables,
    /// Boxed, as a map moves what it holds about.
    intents: BTreeMap<TxnId, Box<Intent>>,
    /// What the intents lock.
    locked: Locked,
    outcomes: BTreeMap<TxnId, Outcome>,
    /// Transactions that are over, by the log.
    finished: Ends,
    /// The stamp of the latest mutation.
    stamp: Millis,
    /// Leader's memory: transactions that are over as far as it was told.
    heard: Ends,
    /// The items of a snapshot that is being taken.
    snapshot: Option<u64>,
    /// Recycled.
    layout: Layout,
    machine: PhantomData<M>,
}

impl<M: Machine> Replica<M> {
    /// A replica that holds nothing.
    pub fn new(id: PartitionId, hasher: KeyHasher) -> Replica<M> {
        Replica {
            id,
            tables: Tables::new(hasher),
            scratch: Tables::new(hasher),
            intents: BTreeMap::new(),
            locked: Locked::default(),
            outcomes: BTreeMap::new(),
            finished: Ends::default(),
            stamp: Millis(0),
            heard: Ends::default(),
            snapshot: None,
            layout: Layout::default(),
            machine: PhantomData,
        }
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Intents by transaction.
    pub fn intents(&self) -> &BTreeMap<TxnId, Box<Intent>> {
        &self.intents
    }

    /// Commits that are not confirmed by all participants.
    pub fn outcomes(&self) -> &BTreeMap<TxnId, Outcome> {
        &self.outcomes
    }

    /// The stamp of the latest mutation that was applied.
    pub fn stamped(&self) -> Millis {
        self.stamp
    }

    /// Looks without changing: runs an operation that only reads. Expired items are noted for
    /// [`Replica::expired`].
    #[inline]
    pub fn read(&mut self, op: &Op<'_>, stamp: Millis, reply: &mut Vec<u8>) {
        self.tables.begin(stamp, Access::Read);
        M::run(op, &mut self.tables, stamp, reply);
    }

    /// Runs a single operation that may write: the short form of applying [`Mutation::Run`].
    #[inline]
    pub fn run(&mut self, op: &Op<'_>, stamp: Millis, reply: &mut Vec<u8>) {
        self.stamp = stamp;
        self.tables.begin(stamp, Access::Write);
        M::run(op, &mut self.tables, stamp, reply);
    }

    /// Begins a look, after which [`Replica::expired`] has what this one found. What others found
    /// before is in the log with what they replied, or was told to no client.
    #[inline]
    pub fn look(&mut self) {
        self.tables.forget_expired();
    }

    /// Items that reads found expired and whose expiry is to be logged, since [`Replica::look`].
    #[inline]
    pub fn expired(&mut self) -> Option<Vec<(TableIndex, Vec<u8>)>> {
        self.tables.has_expired().then(|| self.tables.take_expired())
    }

    /// Whether the log says of an item that it has expired: it had by the log's latest stamp, before
    /// which no later leader goes on.
    pub fn knows_expired(&self, table: TableIndex, key: &[u8]) -> bool {
        self.tables.was_expired(table, key, self.stamp)
    }

    /// Looks for expired items and notes them for [`Replica::expired`]: [`Tables::sweep`].
    pub fn sweep(&mut self, table: TableIndex, cursor: u64, cells: usize, stamp: Millis) -> u64 {
        self.tables.begin(stamp, Access::Read);
        self.tables.sweep(table, cursor, cells)
    }

    /// What operations reply that only read, one after the other.
    ///
    /// # Errors
    /// When the replies are too long.
    pub fn read_all(&mut self, batch: &Batch, stamp: Millis) -> Result<Replies, TooMuch> {
        let mut replies = Replies::default();
        let tables = &self.tables;
        let value = |table, key: &[u8]| tables.value_bytes(table, tables.hasher().hash(key), key);
        if may_answer_too_much::<M>(batch.iter(), value) {
            let mut answered = AnswerBytes::default();
            for op in batch.iter() {
                self.read(&op, stamp, &mut replies.bytes);
                answered.add(replies.bytes.len())?;
                replies.clear();
            }
        }
        let mut answered = AnswerBytes::default();
        for op in batch.iter() {
            self.read(&op, stamp, &mut replies.bytes);
            answered.end(&mut replies)?;
        }
        Ok(replies)
    }

    /// The images of keys as of `stamp`.
    pub fn images(&mut self, claims: &[Claim], stamp: Millis) -> Vec<KeyState> {
        self.tables.begin(stamp, Access::Read);
        let keys = claims.iter().filter_map(|claim| match &claim.granule {
            Granule::Key(table, key) => Some((*table, key)),
            Granule::Whole => None,
        });
        keys.map(|(table, key)| self.tables.image(table, key)).collect()
    }

    /// Whether none of the watched keys has changed since its watcher was told its version. One
    /// that has expired by `stamp` has, though nothing has removed it yet.
    pub fn is_unchanged(&self, watched: &[Watched], stamp: Millis) -> bool {
        let tables = &self.tables;
        watched.iter().all(|key| tables.is_unchanged((key.table, &key.key), key.version, stamp))
    }

    /// Whether any of the watched keys has expired by `stamp`.
    pub fn has_expired_unseen(&self, watched: &[Watched], stamp: Millis) -> bool {
        watched.iter().any(|key| self.tables.has_expired_unseen((key.table, &key.key), stamp))
    }

    /// Begins the watches of a life of the node, and forgets old ones.
    pub fn watch_from(&mut self, life: Incarnation) {
        *self.tables.watches_mut() = Watches::new(life);
        self.tables.backups_from(life);
    }

    /// Forgets keys that have not been watched for long.
    pub fn forget_watches(&mut self, now: Millis) {
        self.tables.watches_mut().expire(now);
    }

    /// Whether this attempt may not prepare any more, as far as the leader has heard: reason
    /// enough not to propose it.
    pub fn is_over(&self, txn: TxnId) -> bool {
        self.finished.is_over(txn) || self.heard.is_over(txn)
    }

    /// The latest life of a node that the log knows of.
    pub fn life_of(&self, node: NodeId) -> Option<Incarnation> {
        self.finished.of.get(&node).map(|finished| finished.incarnation)
    }

    /// How an attempt ended here, as far as it is remembered.
    pub fn ended(&self, txn: TxnId) -> Option<Verdict> {
        self.finished.ended(txn)
    }

    /// Has how attempts ended remembered for so many sequences more than their Coordinators ask.
    pub fn linger(&mut self, sequences: u64) {
        self.finished.linger(sequences);
    }

    /// Hears that a Coordinator has ended everything below a sequence. This is a leader's memory,
    /// which lives no longer than the replica's process: applying a [`Mutation::Prepare`] learns
    /// the same from the log. It makes [`Replica::is_over`] true sooner and [`Replica::ended`]
    /// forget nothing.
    pub fn done_below(&mut self, node: NodeId, incarnation: Incarnation, below: u64) {
        self.heard.done_below(node, incarnation, below);
    }

    /// Applies an entry of the log.
    ///
    /// `leads`: whether a client here waits for the replies. Where none does, operations that only
    /// read are passed over. An operation that an intent of another transaction is in the way of
    /// changes nothing and has an error for its reply.
    ///
    /// An error says that the entry is not what was proposed, or was proposed by a version that
    /// knows more. Some of it may have been applied, so the replica has to be given up.
    pub fn apply_entry(
        &mut self,
        entry: &[u8],
        leads: bool,
        answers: &mut AppliedAnswers,
    ) -> Result<(), Damaged> {
        answers.clear();
        let mut entry = Entry::read(entry)?;
        let stamp = entry.stamp();
        loop {
            let at = entry.at();
            let Some(section) = entry.next_section()? else { return Ok(()) };
            let mutation = match section {
                Section::Runs(runs) => {
                    let AppliedAnswers { replies, layout, waiting, .. } = answers;
                    let ops = runs.lay_out(layout)?;
                    if !M::knows_all(ops.heads(0, ops.len())) {
                        return Err(Damaged::new(at, "an operation that is not known"));
                    }
                    self.run_all(ops, stamp, leads.then_some(*waiting), replies);
                    continue;
                }
                Section::Expire(table, key) => Mutation::Expire(table, key),
                Section::Share(share) => {
                    let ops = share.ops.lay_out(&mut answers.layout)?;
                    if !M::knows_all(ops.heads(0, ops.len())) {
                        return Err(Damaged::new(at, "an operation that is not known"));
                    }
                    self.stamp = self.stamp.max(stamp);
                    let applied = self.prepare_share(
                        share.head,
                        share.participants(),
                        share.claims,
                        (ops, share.ops_bytes),
                        leads,
                    );
                    answers.applied.push(applied);
                    continue;
                }
                Section::Prepare(prepare, claims) => {
                    if !prepare.work.is_known::<M>() {
                        return Err(Damaged::new(at, "an operation that is not known"));
                    }
                    self.stamp = self.stamp.max(stamp);
                    answers.applied.push(self.prepare(*prepare, &claims));
                    continue;
                }
                Section::Decide(txn, verdict) => Mutation::Decide(txn, verdict),
                Section::Applied(txns, from) => Mutation::Applied(txns, from),
                Section::Began(node, life) => Mutation::Began(node, life),
            };
            answers.applied.push(self.apply(mutation, stamp, &mut Vec::new()));
        }
    }

    /// Runs operations in three passes, so that their cache misses overlap: the slots, the items,
    /// the operations. `waiting`: bytes of replies that wait already, where a client waits for
    /// these.
    fn run_all(
        &mut self,
        ops: Laid<'_>,
        stamp: Millis,
        waiting: Option<usize>,
        replies: &mut Replies,
    ) {
        let leads = waiting.is_some();
        let waiting = waiting.unwrap_or(0);
        self.stamp = self.stamp.max(stamp);
        let stamp = self.stamp;
        for from in (0..ops.len()).step_by(PREFETCHED_OPS) {
            let to = ops.len().min(from + PREFETCHED_OPS);
            if to - from > 1 {
                let keyed = || ops.heads(from, to).filter(|head| head.hash != 0);
                keyed().for_each(|head| self.tables.prefetch_slot(head.table, head.hash));
                keyed().for_each(|head| self.tables.prefetch_item(head.table, head.hash));
            }
            for index in from..to {
                let op = ops.op(index);
                if !leads {
                    replies.bytes.clear();
                    self.run_one(&op, stamp, leads, &mut replies.bytes);
                    continue;
                }
                let start = replies.bytes.len();
                let reads = || M::access(op.head.code) == Access::Read;
                if waiting + start > READS_BYTES_MAX && reads() {
                    replies.left.push(replies.len() as u32);
                    replies.end();
                    continue;
                }
                self.run_one(&op, stamp, leads, &mut replies.bytes);
                if waiting + replies.bytes.len() > REPLIES_BYTES_MAX {
                    replies.bytes.truncate(start);
                    M::refuse(&too_long::<M>(op.head), &mut replies.bytes);
                }
                replies.end();
            }
        }
        if !leads {
            replies.bytes.clear();
        }
    }

    #[inline]
    fn run_one(&mut self, op: &Op<'_>, stamp: Millis, leads: bool, reply: &mut Vec<u8>) {
        match M::access(op.head.code) {
            Access::Read if !leads => {}
            Access::Read => self.read(op, stamp, reply),
            Access::Write if self.locked_by_another(op) => M::refuse(&Refusal::Locked, reply),
            Access::Write => self.run(op, stamp, reply),
        }
    }

    /// Applies a logged mutation. `reply` takes the reply of a [`Mutation::Run`].
    ///
    /// Stamps never decrease: a stamp before that of an earlier mutation stands for that one.
    pub fn apply(&mut self, mutation: Mutation<'_>, stamp: Millis, reply: &mut Vec<u8>) -> Applied {
        self.stamp = self.stamp.max(stamp);
        let stamp = self.stamp;
        match mutation {
            Mutation::Run(op) => {
                if self.locked_by_another(&op) {
                    return Applied::Refused;
                }
                self.run(&op, stamp, reply);
                Applied::Done
            }
            Mutation::Expire(table, key) => {
                if self.locks_key(table, key) {
                    return Applied::Refused;
                }
                self.tables.expire(table, key, stamp);
                Applied::Done
            }
            Mutation::Prepare(prepare, claims) => self.prepare(*prepare, claims),
            Mutation::Decide(txn, verdict) => self.decide(txn, verdict, stamp),
            Mutation::Applied(txns, from) => {
                for txn in txns {
                    if let Place::Occupied(mut outcome) = self.outcomes.entry(txn) {
                        outcome.get_mut().unconfirmed.remove(&from);
                        if outcome.get().unconfirmed.is_empty() {
                            outcome.remove();
                        }
                    }
                }
                Applied::Done
            }
            Mutation::Began(node, life) => {
                self.finished.done_below(node, life, 0);
                Applied::Done
            }
        }
    }

    fn locked_by_another(&self, op: &Op<'_>) -> bool {
        let writes = M::access(op.head.code) == Access::Write;
        if self.intents.is_empty() || !writes {
            return false;
        }
        let mut locked = M::scope(op.head.code) == Scope::Partition;
        M::keys(op, &mut |table, key| locked |= self.locks_key(table, key));
        locked
    }

    /// Whether an intent locks the key, if only for reading.
    fn locks_key(&self, table: TableIndex, key: &[u8]) -> bool {
        self.locked.may_lock(self.tables.hasher().hash(key))
            && self.intents.values().any(|intent| intent.claims_key((table, key)))
    }

    /// Whether an intent locks what is claimed, in a way that cannot be shared.
    fn locks(&self, claim: ClaimRef<'_>) -> bool {
        let hasher = self.tables.hasher();
        let may = claim.key.is_none_or(|(_, key)| self.locked.may_lock(hasher.hash(key)));
        let locked = || self.intents.values().flat_map(|intent| intent.claims.borrow().iter());
        may && locked().any(|other| {
            let meet = other.key == claim.key || other.key.is_none() || claim.key.is_none();
            meet && other.access.max(claim.access) == Access::Write
        })
    }

    fn add_intent(&mut self, txn: TxnId, intent: Box<Intent>) {
        self.locked.lock(intent.claims.borrow(), self.tables.hasher());
        let replaced = self.intents.insert(txn, intent);
        assert!(replaced.is_none(), "a transaction prepares here once");
    }

    fn take_intent(&mut self, txn: TxnId) -> Option<Box<Intent>> {
        let intent = self.intents.remove(&txn)?;
        self.locked.unlock(intent.claims.borrow(), self.tables.hasher());
        Some(intent)
    }

    /// Makes a prepare an intent, stamped as the latest mutation is.
    fn prepare(&mut self, prepare: Prepare, claims: &[Claim]) -> Applied {
        let head = PrepareHead::from(&prepare);
        let claims = PackedClaims::of(claims);
        let writes = match prepare.work {
            Prepared::Share(share) => {
                let mut bytes = Vec::new();
                share.batch.write_down(&mut bytes);
                let participants = prepare.participants.into_iter();
                let ops = (share.batch.laid(), &bytes[..]);
                return self.prepare_share(head, participants, claims.borrow(), ops, true);
            }
            Prepared::Images(images) => images.into_iter().map(Write::State).collect(),
            Prepared::Whole(batch, images) => {
                let whole = Write::Run(Box::new(batch));
                let images = images.into_iter().map(Write::State);
                std::iter::once(whole).chain(images).collect()
            }
        };
        if self.intents.contains_key(&head.txn) {
            return Applied::Voted(Replies::default());
        }
        if !self.may_prepare(head, claims.borrow()) {
            return Applied::Refused;
        }
        self.intend(head, prepare.participants, claims, Writes::Outcome(writes));
        Applied::Voted(Replies::default())
    }

    /// The same of a share of operations, which come laid out and as they are written. `replies`:
    /// whether a client waits for theirs.
    fn prepare_share(
        &mut self,
        head: PrepareHead,
        participants: impl Iterator<Item = PartitionId>,
        claims: Claims<'_>,
        (ops, bytes): (Laid<'_>, &[u8]),
        replies: bool,
    ) -> Applied {
        if let Some(intent) = self.intents.get(&head.txn) {
            // Its keys are locked since, so it still replies what it did.
            let since = intent.since;
            return Applied::vote(self.evaluate(ops, since));
        }
        if !self.may_prepare(head, claims) {
            return Applied::Refused;
        }
        let replies = match replies {
            true => self.evaluate(ops, self.stamp),
            false => Ok(Replies::default()),
        };
        self.intend(head, participants.collect(), claims.into(), Writes::Share(bytes.into()));
        Applied::vote(replies)
    }

    fn may_prepare(&mut self, head: PrepareHead, claims: Claims<'_>) -> bool {
        let PrepareHead { txn, done_below, .. } = head;
        self.finished.done_below(txn.node, txn.incarnation, done_below);
        if kept(Rule::LatePreparesAreRefused) && self.finished.is_over(txn) {
            return false;
        }
        !kept(Rule::LocksAreAuthoritative) || !claims.iter().any(|claim| self.locks(claim))
    }

    fn intend(
        &mut self,
        head: PrepareHead,
        participants: Vec<PartitionId>,
        claims: PackedClaims,
        writes: Writes,
    ) {
        let PrepareHead { txn, age, primary, primary_life, synced, .. } = head;
        let since = self.stamp;
        let intent =
            Intent { age, primary, participants, primary_life, synced, claims, since, writes };
        self.add_intent(txn, Box::new(intent));
    }

    fn decide(&mut self, txn: TxnId, verdict: Verdict, stamp: Millis) -> Applied {
        if verdict == Verdict::Commit && !kept(Rule::CommitNeedsIntent) {
            if let Some(intent) = self.take_intent(txn) {
                self.commit(txn, *intent, stamp);
            }
            self.finished.finish(txn, Verdict::Commit);
            return Applied::Stands(Verdict::Commit);
        }
        if kept(Rule::FirstDecisionStands) {
            if self.outcomes.contains_key(&txn) {
                return Applied::Stands(Verdict::Commit);
            }
            if let Some(ended) = self.ended(txn) {
                return Applied::Stands(ended);
            }
        }
        let intent = self.take_intent(txn);
        let verdict = match intent {
            Some(intent) if verdict == Verdict::Commit => {
                self.commit(txn, *intent, stamp);
                Verdict::Commit
            }
            _ => Verdict::Abort,
        };
        self.finished.finish(txn, verdict);
        Applied::Stands(verdict)
    }

    /// Runs what operations write, their replies long given.
    fn run_writes(&mut self, ops: Laid<'_>, stamp: Millis) {
        let mut reply = Vec::new();
        for op in ops.iter().filter(|op| M::access(op.head.code) == Access::Write) {
            self.tables.begin(stamp, Access::Write);
            M::run(&op, &mut self.tables, stamp, &mut reply);
            reply.clear();
        }
    }

    fn commit(&mut self, txn: TxnId, intent: Intent, stamp: Millis) {
        let stamp = stamp.max(intent.since);
        match intent.writes {
            Writes::Share(bytes) => {
                let mut layout = std::mem::take(&mut self.layout);
                let ops = Runs::read(&bytes, 0).and_then(|runs| runs.lay_out(&mut layout).ok());
                assert!(ops.is_some(), "an intent holds what was read when it was prepared");
                if let Some(ops) = ops {
                    let mut heads = ops.heads(0, ops.len());
                    let whole = heads.any(|head| M::scope(head.code) == Scope::Partition);
                    self.run_writes(ops, if whole { stamp } else { intent.since });
                }
                self.layout = layout;
            }
            Writes::Outcome(writes) => {
                for write in writes {
                    match write {
                        Write::State(image) => {
                            self.tables.begin(stamp, Access::Write);
                            self.tables.install(image);
                        }
                        Write::Run(batch) => self.run_writes(batch.laid(), stamp),
                    }
                }
            }
        }
        if intent.primary == self.id && kept(Rule::OutcomesAreRemembered) {
            let mut unconfirmed: BTreeSet<PartitionId> = intent.participants.into_iter().collect();
            unconfirmed.remove(&self.id);
            if !unconfirmed.is_empty() {
                self.outcomes.insert(txn, Outcome { unconfirmed, since: stamp });
            }
        }
    }
}

impl Applied {
    fn vote(replies: Result<Replies, TooMuch>) -> Applied {
        replies.map_or(Applied::TooMuch, Applied::Voted)
    }
}

impl Intent {
    /// The keys locked, those only read among them.
    pub fn claims(&self) -> Vec<Claim> {
        self.claims.borrow().iter().map(Claim::from).collect()
    }

    fn claims_key(&self, (table, key): (TableIndex, &[u8])) -> bool {
        self.claims
            .borrow()
            .iter()
            .any(|claim| claim.key.is_none_or(|claimed| claimed == (table, key)))
    }
}

#[cfg(test)]
pub(in crate::partition) mod tests;
