//! Which transactions are over, and may not prepare any more.
//!
//! Attempts that ended here are remembered until their Coordinator says that everything below a
//! sequence is over; of its earlier lives everything is over always. How it went with the last ones
//! of the life before is remembered even so: where a Coordinator and a primary without copies die
//! together, another participant may still ask whoever has heard of the commit.

use crate::engine::protocol::Verdict;
use crate::ids::{Incarnation, NodeId, TxnId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Transactions that may not prepare any more, by the node of their Coordinator.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) of: BTreeMap<NodeId, Finished>,
    /// How many sequences longer attempts that are over are remembered, for participants whose
    /// primary and Coordinator die together: the log of a replicated primary remembers better.
    linger: u64,
}

/// A Coordinator's transactions that may not prepare any more.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) incarnation: Incarnation,
    /// Every sequence below is over.
    pub(super) below: u64,
    /// Attempts at or above `below`, or lingering there, that are over, and how they ended here.
    pub(super) ended: BTreeMap<(u64, u32), Verdict>,
    /// The life before, and its attempts that were committed here.
    pub(super) before: (Incarnation, BTreeSet<(u64, u32)>),
}

impl Finished {
    /// Begins another life.
    fn begin(&mut self, incarnation: Incarnation) {
        let commits = self.ended.iter().filter(|(_, verdict)| **verdict == Verdict::Commit);
        let commits = commits.map(|(attempt, _)| *attempt).collect();
        let before = (self.incarnation, commits);
        *self = Finished { incarnation, before, ..Finished::default() };
    }
}

impl Ends {
    /// Remembers so many sequences longer from now on.
    pub(super) fn linger(&mut self, sequences: u64) {
        self.linger = sequences;
    }

    /// Whether this attempt may not prepare any more.
    pub(super) fn is_over(&self, txn: TxnId) -> bool {
        self.of.get(&txn.node).is_some_and(|finished| {
            txn.incarnation < finished.incarnation
                || txn.incarnation == finished.incarnation
                    && (txn.sequence < finished.below
                        || finished.ended.contains_key(&(txn.sequence, txn.attempt)))
        })
    }

    /// How an attempt ended, as far as it is remembered.
    pub(super) fn ended(&self, txn: TxnId) -> Option<Verdict> {
        let finished = self.of.get(&txn.node)?;
        let attempt = (txn.sequence, txn.attempt);
        if finished.incarnation == txn.incarnation {
            return finished.ended.get(&attempt).copied();
        }
        let (before, commits) = &finished.before;
        (*before == txn.incarnation && commits.contains(&attempt)).then_some(Verdict::Commit)
    }

    /// Learns that a Coordinator has ended everything below a sequence.
    pub(super) fn done_below(&mut self, node: NodeId, incarnation: Incarnation, below: u64) {
        let finished = self.of.entry(node).or_default();
        if incarnation > finished.incarnation {
            finished.begin(incarnation);
        }
        if incarnation == finished.incarnation && below > finished.below {
            finished.below = below;
            let forgotten = below.saturating_sub(self.linger);
            finished.ended = finished.ended.split_off(&(forgotten, 0));
        }
    }

    /// Learns how an attempt has ended.
    pub(super) fn finish(&mut self, txn: TxnId, verdict: Verdict) {
        let finished = self.of.entry(txn.node).or_default();
        if txn.incarnation > finished.incarnation {
            finished.begin(txn.incarnation);
        }
        let attempt = (txn.sequence, txn.attempt);
        let remembered = finished.below.saturating_sub(self.linger);
        if txn.incarnation == finished.incarnation && txn.sequence >= remembered {
            finished.ended.insert(attempt, verdict);
        }
        let (before, commits) = &mut finished.before;
        if txn.incarnation < finished.incarnation && verdict == Verdict::Commit {
            if txn.incarnation > *before {
                (*before, *commits) = (txn.incarnation, BTreeSet::new());
            }
            if txn.incarnation == *before {
                commits.insert(attempt);
            }
        }
    }
}
