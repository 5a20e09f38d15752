//! Which transactions are over, and may not prepare any more.
//!
//! Attempts that ended here are remembered until their Coordinator says that everything below a
//! sequence is over; of its earlier lives everything is over always. What was committed of those
//! is remembered even so, and where there are no copies what ended just below that sequence too:
//! where a Coordinator and a primary die together, another participant may still ask one that has
//! heard of the commit, and by then the Coordinator may have gone on, or begun several lives.

use crate::ids::{Incarnation, NodeId, TxnId};
use crate::rules::{Rule, kept};
use crate::txn::protocol::Verdict;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Commits remembered of all earlier lives of a Coordinator: the latest.
const EARLIER_MAX: usize = 1 << 12;

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
    /// Attempts of earlier lives that were committed here, [`EARLIER_MAX`] at most.
    pub(super) earlier: BTreeSet<(Incarnation, u64, u32)>,
}

impl Finished {
    /// Begins another life.
    fn begin(&mut self, incarnation: Incarnation) {
        for ((sequence, attempt), verdict) in std::mem::take(&mut self.ended) {
            if verdict == Verdict::Commit {
                self.remember((self.incarnation, sequence, attempt));
            }
        }
        (self.incarnation, self.below) = (incarnation, 0);
    }

    /// Remembers a commit of an earlier life.
    fn remember(&mut self, commit: (Incarnation, u64, u32)) {
        self.earlier.insert(commit);
        if self.earlier.len() > EARLIER_MAX {
            self.earlier.pop_first();
        }
    }
}

impl Ends {
    /// Remembers so many sequences longer from now on.
    pub(super) fn linger(&mut self, sequences: u64) {
        self.linger = sequences;
    }

    fn lingers(&self) -> u64 {
        if kept(Rule::CommitsAreRemembered) { self.linger } else { 0 }
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
        let commit = (txn.incarnation, txn.sequence, txn.attempt);
        finished.earlier.contains(&commit).then_some(Verdict::Commit)
    }

    /// Learns that a Coordinator has ended everything below a sequence.
    pub(super) fn done_below(&mut self, node: NodeId, incarnation: Incarnation, below: u64) {
        let linger = self.lingers();
        let finished = self.of.entry(node).or_default();
        if incarnation > finished.incarnation {
            finished.begin(incarnation);
        }
        if incarnation == finished.incarnation && below > finished.below {
            finished.below = below;
            let forgotten = below.saturating_sub(linger);
            // One at a time: a few are forgotten and many stay, which a split would count.
            while let Some(first) = finished.ended.first_entry()
                && first.key().0 < forgotten
            {
                first.remove();
            }
        }
    }

    /// Learns how an attempt has ended.
    pub(super) fn finish(&mut self, txn: TxnId, verdict: Verdict) {
        let linger = self.lingers();
        let finished = self.of.entry(txn.node).or_default();
        if txn.incarnation > finished.incarnation {
            finished.begin(txn.incarnation);
        }
        let attempt = (txn.sequence, txn.attempt);
        let remembered = finished.below.saturating_sub(linger);
        if txn.incarnation == finished.incarnation && txn.sequence >= remembered {
            finished.ended.insert(attempt, verdict);
        }
        if txn.incarnation < finished.incarnation && verdict == Verdict::Commit {
            finished.remember((txn.incarnation, txn.sequence, txn.attempt));
        }
    }
}
