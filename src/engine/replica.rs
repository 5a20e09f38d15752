//! What every replica of a partition holds alike: its tables, intents and outcomes.
//!
//! A replica changes by [`Replica::apply`] alone, in the order of the log and with the time
//! stamped into each [`Mutation`], so the same log gives the same replica. What only a leader has
//! (marks, queues, parked requests) is in [`crate::engine::partition`].

use crate::engine::batch::{Op, Replies};
use crate::engine::machine::{Access, Machine, Scope};
use crate::engine::protocol::{Claim, Granule, Image, Prepare, Prepared, Share, Verdict, Watched};
use crate::engine::rules::{Rule, kept};
use crate::engine::tables::{KeyHasher, Tables};
use crate::engine::watches::Watches;
use crate::ids::{Age, Incarnation, Millis, NodeId, PartitionId, TableIndex, TxnId};
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
    Prepare(&'a Prepare, Vec<Claim>),
    /// A transaction ends here.
    Decide(TxnId, Verdict),
    /// A participant has applied a commit that was decided here.
    Applied(TxnId, PartitionId),
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
    /// The transaction's outcome as it stands, be it this decision or an earlier one.
    Stands(Verdict),
}

/// An uncommitted write of a prepared transaction, and the keys it keeps locked.
#[derive(Debug)]
pub struct Intent {
    /// Its age, for the marks of a new leader.
    pub age: Age,
    /// Where the decision is logged.
    pub primary: PartitionId,
    /// All participants, in order.
    pub participants: Vec<PartitionId>,
    /// The life of the primary's node in which it prepared.
    pub primary_life: Incarnation,
    /// The keys locked, those only read among them.
    pub claims: Vec<Claim>,
    /// When it was prepared.
    pub since: Millis,
    writes: Vec<Write>,
    replies: Replies,
}

#[derive(Debug)]
enum Write {
    Image(Image),
    /// An operation on the whole partition, run at the commit: its outcome is not a few keys.
    Run(Box<crate::engine::batch::Batch>),
}

/// A commit that was decided here and is not applied everywhere yet.
#[derive(Debug)]
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
    intents: BTreeMap<TxnId, Intent>,
    outcomes: BTreeMap<TxnId, Outcome>,
    finished: BTreeMap<NodeId, Finished>,
    stamp: Millis,
    machine: PhantomData<M>,
}

/// A Coordinator's transactions that may not prepare any more.
#[derive(Debug, Default)]
struct Finished {
    incarnation: Incarnation,
    /// Every sequence below is over.
    below: u64,
    /// Attempts at or above `below` that are over, and how they ended here.
    ended: BTreeMap<(u64, u32), Verdict>,
}

impl<M: Machine> Replica<M> {
    /// A replica that holds nothing.
    pub fn new(id: PartitionId, hasher: KeyHasher) -> Replica<M> {
        Replica {
            id,
            tables: Tables::new(hasher),
            scratch: Tables::new(hasher),
            intents: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            finished: BTreeMap::new(),
            stamp: Millis(0),
            machine: PhantomData,
        }
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Intents by transaction.
    pub fn intents(&self) -> &BTreeMap<TxnId, Intent> {
        &self.intents
    }

    /// Commits that are not confirmed by all participants.
    pub fn outcomes(&self) -> &BTreeMap<TxnId, Outcome> {
        &self.outcomes
    }

    /// The stamp for a mutation at wall time `now`: stamps never decrease, whatever clocks do.
    pub fn stamp(&mut self, now: Millis) -> Millis {
        self.stamp = self.stamp.max(now);
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
        self.tables.begin(stamp, Access::Write);
        M::run(op, &mut self.tables, stamp, reply);
    }

    /// Items that reads found expired and whose expiry is to be logged.
    #[inline]
    pub fn expired(&mut self) -> Option<Vec<(TableIndex, Vec<u8>)>> {
        self.tables.has_expired().then(|| self.tables.take_expired())
    }

    /// Looks for expired items and notes them for [`Replica::expired`]: [`Tables::sweep`].
    pub fn sweep(&mut self, table: TableIndex, cursor: u64, cells: usize, stamp: Millis) -> u64 {
        self.tables.begin(stamp, Access::Read);
        self.tables.sweep(table, cursor, cells)
    }

    /// The images of keys as of `stamp`.
    pub fn images(&mut self, claims: &[Claim], stamp: Millis) -> Vec<Image> {
        self.tables.begin(stamp, Access::Read);
        let keys = claims.iter().filter_map(|claim| match &claim.granule {
            Granule::Key(table, key) => Some((*table, key)),
            Granule::Whole => None,
        });
        keys.map(|(table, key)| self.tables.image(table, key)).collect()
    }

    /// Whether none of the watched keys has changed since its watcher was told its version.
    pub fn is_unchanged(&mut self, watched: &[Watched]) -> bool {
        let watches = self.tables.watches_mut();
        watched.iter().all(|key| watches.version(key.table, &key.key) == Some(key.version))
    }

    /// Begins the watches of a life of the node, and forgets old ones.
    pub fn watch_from(&mut self, life: Incarnation) {
        *self.tables.watches_mut() = Watches::new(life);
    }

    /// Forgets keys that have not been watched for long.
    pub fn forget_watches(&mut self, now: Millis) {
        self.tables.watches_mut().expire(now);
    }

    /// Whether this attempt may not prepare any more.
    pub fn is_over(&self, txn: TxnId) -> bool {
        self.finished.get(&txn.node).is_some_and(|finished| {
            txn.incarnation < finished.incarnation
                || txn.incarnation == finished.incarnation
                    && (txn.sequence < finished.below
                        || finished.ended.contains_key(&(txn.sequence, txn.attempt)))
        })
    }

    /// How an attempt ended here, as far as it is remembered.
    pub fn ended(&self, txn: TxnId) -> Option<Verdict> {
        let finished = self.finished.get(&txn.node)?;
        if finished.incarnation != txn.incarnation {
            return None;
        }
        finished.ended.get(&(txn.sequence, txn.attempt)).copied()
    }

    /// Learns that a Coordinator has ended everything below a sequence.
    pub fn done_below(&mut self, node: NodeId, incarnation: Incarnation, below: u64) {
        let finished = self.finished.entry(node).or_default();
        if incarnation > finished.incarnation {
            *finished = Finished { incarnation, ..Finished::default() };
        }
        if incarnation == finished.incarnation && below > finished.below {
            finished.below = below;
            finished.ended = finished.ended.split_off(&(below, 0));
        }
    }

    /// Applies a logged mutation. `reply` takes the reply of a [`Mutation::Run`].
    pub fn apply(&mut self, mutation: Mutation<'_>, stamp: Millis, reply: &mut Vec<u8>) -> Applied {
        match mutation {
            Mutation::Run(op) => {
                if self.locked_by_another(&op) {
                    return Applied::Refused;
                }
                self.run(&op, stamp, reply);
                Applied::Done
            }
            Mutation::Expire(table, key) => {
                let claim = (table, key);
                if self.intents.values().any(|intent| intent.claims_key(claim)) {
                    return Applied::Refused;
                }
                self.tables.expire(table, key, stamp);
                Applied::Done
            }
            Mutation::Prepare(prepare, claims) => self.prepare(prepare, claims, stamp),
            Mutation::Decide(txn, verdict) => self.decide(txn, verdict, stamp),
            Mutation::Applied(txn, from) => {
                if let Some(outcome) = self.outcomes.get_mut(&txn) {
                    outcome.unconfirmed.remove(&from);
                    if outcome.unconfirmed.is_empty() {
                        self.outcomes.remove(&txn);
                    }
                }
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
        M::keys(op, &mut |table, key| {
            let claim = (table, key);
            locked |= self.intents.values().any(|intent| intent.claims_key(claim));
        });
        locked
    }

    fn prepare(&mut self, prepare: &Prepare, claims: Vec<Claim>, stamp: Millis) -> Applied {
        if let Some(intent) = self.intents.get(&prepare.txn) {
            return Applied::Voted(intent.replies.clone());
        }
        if kept(Rule::LatePreparesAreRefused) && self.is_over(prepare.txn) {
            return Applied::Refused;
        }
        let (writes, replies) = match &prepare.work {
            Prepared::Share(share) => self.evaluate(share, stamp),
            Prepared::Images(images) => {
                (images.iter().cloned().map(Write::Image).collect(), Replies::default())
            }
        };
        let intent = Intent {
            age: prepare.age,
            primary: prepare.primary,
            participants: prepare.participants.clone(),
            primary_life: prepare.primary_life,
            claims,
            since: stamp,
            writes,
            replies: replies.clone(),
        };
        self.intents.insert(prepare.txn, intent);
        Applied::Voted(replies)
    }

    /// Evaluates a share without changing the tables: its keys are copied to the scratch tables,
    /// the operations run there, and what they leave of the keys they may write is the intent.
    fn evaluate(&mut self, share: &Share, stamp: Millis) -> (Vec<Write>, Replies) {
        let mut replies = Replies::default();
        let mut writes = Vec::new();
        let mut copied = BTreeMap::new();
        let whole = share.batch.heads().any(|head| M::scope(head.code) == Scope::Partition);
        for op in share.batch.iter() {
            let access = M::access(op.head.code);
            M::keys(&op, &mut |table, key| {
                let place = (table, key.to_vec());
                let (claimed, _) = copied.entry(place).or_insert_with_key(|(table, key)| {
                    self.tables.begin(stamp, Access::Read);
                    self.scratch.begin(stamp, Access::Write);
                    // Where tables may change places, the key of another one may come here.
                    for from in TableIndex::all().filter(|from| whole || from == table) {
                        self.scratch.install(self.tables.image(from, key));
                    }
                    // A key that gets the value that it had is written all the same.
                    (Access::Read, self.scratch.watches_mut().watch(*table, key, stamp))
                });
                *claimed = access.max(*claimed);
            });
        }
        for op in share.batch.iter() {
            // What looks at a whole partition finds nothing in scratch tables.
            let glance = M::scope(op.head.code) == Scope::Glance;
            let tables = if glance { &mut self.tables } else { &mut self.scratch };
            tables.begin(stamp, M::access(op.head.code));
            M::run(&op, tables, stamp, &mut replies.bytes);
            replies.end();
        }
        if whole {
            writes.push(Write::Run(Box::new(share.batch.clone())));
        }
        for ((table, key), (access, version)) in copied {
            self.scratch.begin(stamp, Access::Write);
            let written = self.scratch.watches_mut().version(table, &key) != Some(version);
            if access == Access::Write && written && !whole {
                writes.push(Write::Image(self.scratch.image(table, &key)));
            }
            let hash = self.scratch.hasher().hash(&key);
            self.scratch.remove(table, hash, &key);
        }
        if whole {
            // Keys may have changed places under an operation on everything.
            TableIndex::all().for_each(|table| self.scratch.clear(table));
        }
        self.scratch.take_expired();
        *self.scratch.watches_mut() = Watches::default();
        (writes, replies)
    }

    fn decide(&mut self, txn: TxnId, verdict: Verdict, stamp: Millis) -> Applied {
        if verdict == Verdict::Commit && !kept(Rule::CommitNeedsIntent) {
            if let Some(intent) = self.intents.remove(&txn) {
                self.commit(txn, intent, stamp);
            }
            self.finish(txn, Verdict::Commit);
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
        let intent = self.intents.remove(&txn);
        let verdict = match intent {
            Some(intent) if verdict == Verdict::Commit => {
                self.commit(txn, intent, stamp);
                Verdict::Commit
            }
            _ => Verdict::Abort,
        };
        self.finish(txn, verdict);
        Applied::Stands(verdict)
    }

    fn commit(&mut self, txn: TxnId, intent: Intent, stamp: Millis) {
        let stamp = stamp.max(intent.since);
        for write in intent.writes {
            self.tables.begin(stamp, Access::Write);
            match write {
                Write::Image(image) => self.tables.install(image),
                Write::Run(batch) => {
                    for op in batch.iter() {
                        M::run(&op, &mut self.tables, stamp, &mut Vec::new());
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

    fn finish(&mut self, txn: TxnId, verdict: Verdict) {
        let finished = self.finished.entry(txn.node).or_default();
        if txn.incarnation > finished.incarnation {
            *finished = Finished { incarnation: txn.incarnation, ..Finished::default() };
        }
        if txn.incarnation == finished.incarnation && txn.sequence >= finished.below {
            finished.ended.insert((txn.sequence, txn.attempt), verdict);
        }
    }
}

impl Intent {
    fn claims_key(&self, (table, key): (TableIndex, &[u8])) -> bool {
        self.claims.iter().any(|claim| match &claim.granule {
            Granule::Whole => true,
            Granule::Key(claimed, name) => *claimed == table && **name == *key,
        })
    }
}
