//! The messages of the commit protocol: between Coordinators, partitions and lock managers.
//!
//! They are the same types in a mailbox, on the wire and in the simulator. Every one of them may
//! come late or never, and after a reconnection it may come twice: each names its transaction by
//! [`TxnId`], and the first decision logged stands. The rules they follow are told in
//! [`crate::rules`].

use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Replies};
use crate::ids::{Age, Incarnation, Millis, PartitionId, TableIndex, Term, TxnId};
use crate::rules::{Rule, kept};
use crate::store::key_state::KeyState;
use crate::store::tables::Access;
use serde::{Deserialize, Serialize};

/// A key that a transaction claims.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// What is claimed.
    pub granule: Granule,
    /// For reading or for writing.
    pub access: Access,
}

/// What a lock covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Granule {
    /// Every key of every table of the partition.
    Whole,
    /// One key of one table.
    Key(TableIndex, #[serde(with = "serde_bytes")] Vec<u8>),
}

/// What one partition does for a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Operations whose keys all lie in the partition. Of a [`Mode::Gather`] only those on the
    /// whole of it: the script has them too, for the keys that it names.
    pub batch: Batch,
    /// Keys claimed beyond those of the operations (all keys of a [`Mode::Gather`]).
    pub claims: Vec<Claim>,
    /// Keys that must not have changed since their watcher was told these versions.
    pub watched: Vec<Watched>,
}

/// A watched key and the version its watcher knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// The table.
    pub table: TableIndex,
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// The version ([`crate::store::watches`]).
    pub version: u64,
}

/// How a transaction over several partitions is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Reads only: locks, reads, confirms; logs nothing.
    Read,
    /// Every operation is evaluated where its keys lie: prepare, decide.
    Write,
    /// A result depends on keys of another partition: locks and reads everywhere, evaluates the
    /// script on a scratch table at the Coordinator, prepares the outcome.
    Gather,
}

/// A transaction as a Session asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// How it is served.
    pub mode: Mode,
    /// Each participant's share, ordered by partition, each partition once.
    pub shares: Vec<(PartitionId, Share)>,
    /// What the Coordinator evaluates in [`Mode::Gather`]; empty otherwise.
    pub script: Batch,
}

/// How a transaction ended, as its Session hears it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Committed (or read); the replies of each share, in the order of [`Work::shares`]. A
    /// gathered transaction has the one entry of its script.
    Done(Vec<Replies>),
    /// It was not executed because a watched key has changed.
    Changed,
    /// It was surely not executed.
    Refused(Refusal),
    /// The partition that holds the decision was lost with the decision in flight.
    Unknown(Refusal),
}

/// What a partition is asked by Coordinators and by other partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToPartition {
    /// Lock the share's keys, evaluate its reads, answer [`ToCoordinator::Granted`].
    Lock(Box<Lock>),
    /// Lock what is not locked yet, log the intent, answer [`ToCoordinator::Voted`].
    Prepare(#[serde(with = "crate::txn::wire")] Box<Prepare>),
    /// The transaction's outcome (to the primary: the decision itself).
    Decide(Decide),
    /// Are these unlogged locks still held? They are given up either way; answered with
    /// [`ToCoordinator::Confirmed`].
    Confirm {
        /// The transaction that holds them.
        txn: TxnId,
        /// The term that granted them.
        term: Term,
    },
    /// To the primary, from a participant with an old intent: what became of it? Without a
    /// decision the primary logs an abort. Answered with [`ToPartition::Decide`] or
    /// [`ToPartition::Lost`].
    Resolve {
        /// The transaction.
        txn: TxnId,
        /// The participant that asks.
        asker: PartitionId,
        /// The life of the primary's node in which the transaction prepared.
        primary_life: Incarnation,
    },
    /// From the primary: it has lost its memory since, so it cannot tell.
    Lost {
        /// The transaction.
        txn: TxnId,
    },
    /// From a participant whose primary is gone, to the other participants.
    Inquire {
        /// The transaction.
        txn: TxnId,
        /// The participant that asks.
        asker: PartitionId,
    },
    /// A participant's answer to [`ToPartition::Inquire`].
    Knows {
        /// The transaction.
        txn: TxnId,
        /// The partition that answers.
        from: PartitionId,
        /// What it knows.
        knowledge: Knowledge,
    },
    /// The Coordinator's answer to [`ToCoordinator::Inquire`].
    CoordinatorKnows {
        /// The transaction.
        txn: TxnId,
        /// What it knows.
        knowledge: Knowledge,
    },
    /// From a participant to the primary: these commits are applied here.
    Applied {
        /// The transactions.
        txns: Vec<TxnId>,
        /// The participant that has applied them.
        from: PartitionId,
    },
}

impl ToPartition {
    /// Whether the machine has all operations in it: what is logged must be known to every replica.
    pub fn is_known<M: Machine>(&self) -> bool {
        match self {
            ToPartition::Lock(lock) => M::knows_all(lock.share.batch.heads()),
            ToPartition::Prepare(prepare) => prepare.work.is_known::<M>(),
            _ => true,
        }
    }

    /// Whether it may also go by way of a third node while the link to its receiver is down: it then
    /// arrives after that link is known to be lost, and perhaps twice.
    ///
    /// That is so of outcomes and of questions about them, where the decision is in a log: there is
    /// one answer, whenever it comes. A participant that asks about a decision in a primary's lost
    /// memory counts on hearing nothing more once a link is lost
    /// ([`crate::rules::Rule::UndecidedIsLast`]).
    pub fn may_be_relayed(
        &self,
        to: PartitionId,
        is_replicated: impl Fn(PartitionId) -> bool,
    ) -> bool {
        kept(Rule::OutcomesAreRelayed)
            && match self {
                ToPartition::Decide(decide) => is_replicated(decide.primary),
                // These go to the primary.
                ToPartition::Resolve { .. } | ToPartition::Applied { .. } => is_replicated(to),
                ToPartition::Lock(_)
                | ToPartition::Prepare(_)
                | ToPartition::Confirm { .. }
                | ToPartition::Lost { .. }
                | ToPartition::Inquire { .. }
                | ToPartition::Knows { .. }
                | ToPartition::CoordinatorKnows { .. } => false,
            }
    }
}

impl ToCoordinator {
    /// The same of what a Coordinator is told: it has asked for the decision, or has given the
    /// attempt up and ignores it.
    pub fn may_be_relayed(&self) -> bool {
        kept(Rule::OutcomesAreRelayed) && matches!(self, ToCoordinator::Decided { .. })
    }
}

/// What a participant or a Coordinator knows of a transaction's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Knowledge {
    /// It committed.
    Committed,
    /// It did not and will not commit here: aborted, or never prepared and refused from now on.
    Aborted,
    /// Prepared and waiting.
    Undecided,
}

/// Lock a share's keys without logging anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The transaction.
    pub txn: TxnId,
    /// Its age.
    pub age: Age,
    /// [`Mode::Read`]: evaluate the operations. [`Mode::Gather`]: answer the keys' images.
    pub mode: Mode,
    /// What is locked.
    pub share: Share,
    /// The Coordinator's transactions with smaller sequences have ended.
    pub done_below: u64,
}

/// Log a share's intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The transaction.
    pub txn: TxnId,
    /// Its age.
    pub age: Age,
    /// Where the decision is logged.
    pub primary: PartitionId,
    /// The life of the primary's node that the Coordinator knows: a primary without a disk
    /// cannot tell outcomes of an earlier one.
    pub primary_life: Incarnation,
    /// All participants, the primary among them, in order.
    pub participants: Vec<PartitionId>,
    /// A participant's writes survive a loss of power: wherever there is a log, this and the
    /// decision are synced before they count, however weak the participant itself is.
    pub synced: bool,
    /// The term that granted the locks, when they were taken beforehand by [`Lock`].
    pub term: Option<Term>,
    /// What is to be done.
    pub work: Prepared,
    /// The Coordinator's transactions with smaller sequences have ended.
    pub done_below: u64,
}

/// What a [`Prepare`] carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prepared {
    /// Operations, evaluated where they are prepared.
    Share(Share),
    /// The outcome of a script that the Coordinator evaluated: the keys it changed.
    Images(Vec<KeyState>),
    /// The same of a script that also changed whole partitions: first these operations, which do
    /// what it did to the keys that it does not name, then the keys that it names and changed.
    Whole(Batch, Vec<KeyState>),
}

impl Prepared {
    /// Whether the machine has all operations in it.
    pub fn is_known<M: Machine>(&self) -> bool {
        match self {
            Prepared::Share(Share { batch, .. }) | Prepared::Whole(batch, _) => {
                M::knows_all(batch.heads())
            }
            Prepared::Images(_) => true,
        }
    }
}

/// A transaction's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Apply the intents.
    Commit,
    /// Drop them.
    Abort,
}

/// Tells an outcome, or (to the primary, from the Coordinator) makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decide {
    /// The transaction.
    pub txn: TxnId,
    /// Its outcome.
    pub verdict: Verdict,
    /// Where the decision is logged, and a commit confirmed.
    pub primary: PartitionId,
    /// Whether the receiver is to decide (it is the primary) and answer
    /// [`ToCoordinator::Decided`].
    pub deciding: bool,
}

/// What a Coordinator is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// The locks are held.
    Granted {
        /// The transaction.
        txn: TxnId,
        /// The partition that grants.
        partition: PartitionId,
        /// The term the locks end with.
        term: Term,
        /// The partition's Lamport time.
        time: u64,
        /// The stamp as of which the images are: what had expired by then they do not hold.
        stamp: Millis,
        /// What the operations replied.
        replies: Replies,
        /// What the claimed keys hold.
        images: Vec<KeyState>,
    },
    /// A participant's vote on a [`Prepare`].
    Voted {
        /// The transaction.
        txn: TxnId,
        /// The participant that votes.
        partition: PartitionId,
        /// The partition's Lamport time.
        time: u64,
        /// The replies when it is prepared, `None` when it refused.
        vote: Option<Replies>,
    },
    /// A watched key has changed: the transaction is not to be executed.
    Changed {
        /// Which.
        txn: TxnId,
    },
    /// The transaction needs memory where there is none to have: it is not to be executed.
    Full {
        /// Which.
        txn: TxnId,
    },
    /// The transaction goes through, or answers with, more than is allowed: it is not to be executed.
    TooMuch {
        /// Which.
        txn: TxnId,
    },
    /// The primary's decision: the first one logged, whatever was asked.
    Decided {
        /// The transaction.
        txn: TxnId,
        /// Its outcome.
        verdict: Verdict,
    },
    /// The partition is not led by the node that was asked: the request was not taken.
    NotLed {
        /// The transaction.
        txn: TxnId,
        /// Which partition.
        partition: PartitionId,
    },
    /// Whether unlogged locks were still held.
    Confirmed {
        /// The transaction that holds them.
        txn: TxnId,
        /// The partition that answers.
        partition: PartitionId,
        /// Whether they were held throughout.
        held: bool,
    },
    /// An older transaction waits: abort and retry unless the decision is under way.
    Wound {
        /// The transaction in the way.
        txn: TxnId,
    },
    /// From a participant whose primary is gone: what do you know? Answered with
    /// [`ToPartition::CoordinatorKnows`].
    Inquire {
        /// The transaction.
        txn: TxnId,
        /// The participant that asks.
        asker: PartitionId,
    },
}

/// Identifies a request that waits at a lock manager; unique within a Bucket's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request for contended keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// Names the request.
    pub ticket: Ticket,
    /// Where its keys lie.
    pub partition: PartitionId,
    /// Its age.
    pub age: Age,
    /// The transaction that will hold the locks, or `None` for a single operation, which holds
    /// nothing beyond its own execution.
    pub owner: Option<TxnId>,
    /// What it claims, each granule once.
    pub claims: Vec<Claim>,
    /// The holders of claimed granules that the lock manager was not told of before.
    pub holders: Vec<(Granule, Holder)>,
}

/// A transaction that holds a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The transaction.
    pub txn: TxnId,
    /// Its age.
    pub age: Age,
    /// How it holds it.
    pub access: Access,
}

/// What a lock manager is told by the Buckets of its node. The order from one Bucket is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToLocks {
    /// Queue this request.
    Acquire(Acquire),
    /// The request no longer waits (or gives up what it was just granted).
    Cancel {
        /// The request.
        ticket: Ticket,
        /// Its partition.
        partition: PartitionId,
    },
    /// A holder of contended granules is gone.
    Released {
        /// Where.
        partition: PartitionId,
        /// What, each once.
        granules: Vec<Granule>,
        /// The transaction that held it.
        txn: TxnId,
    },
    /// No request waits for these granules any more: forget them.
    Uncontended {
        /// Where.
        partition: PartitionId,
        /// What, each once.
        granules: Vec<Granule>,
    },
}

impl ToLocks {
    /// The partition it is about.
    pub fn partition(&self) -> PartitionId {
        match self {
            ToLocks::Acquire(Acquire { partition, .. })
            | ToLocks::Cancel { partition, .. }
            | ToLocks::Released { partition, .. }
            | ToLocks::Uncontended { partition, .. } => *partition,
        }
    }
}
