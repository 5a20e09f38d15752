//! The search for an outcome whose primary lost its memory: only partitions without copies can.
//!
//! The participants ask each other and the Coordinator (cooperative termination, Bernstein,
//! Hadzilacos and Goodman 1987, section 7.4). Whoever answers counts on it: a share that is not
//! prepared yet is refused from then on.

use super::{Effect, Neighbours, Partition};
use crate::engine::machine::Machine;
use crate::engine::protocol::{Knowledge, ToCoordinator, ToPartition, Verdict};
use crate::ids::{Millis, PartitionId, TxnId};
use std::collections::BTreeMap;

/// The answers so far.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    answers: BTreeMap<PartitionId, Knowledge>,
    coordinator: Option<Knowledge>,
}

impl<M: Machine> Partition<M> {
    pub(super) fn on_known(
        &mut self,
        txn: TxnId,
        from: Option<PartitionId>,
        knowledge: Knowledge,
        now: Millis,
        neighbours: &Neighbours,
        effects: &mut Vec<Effect>,
    ) {
        let Some(inquiry) = self.inquiries.get_mut(&txn) else { return };
        match from {
            Some(partition) => drop(inquiry.answers.insert(partition, knowledge)),
            None => inquiry.coordinator = Some(knowledge),
        }
        self.conclude(txn, now, neighbours, effects);
    }

    /// Asks all who may know the outcome of a transaction whose primary lost its memory.
    pub(super) fn inquire(
        &mut self,
        txn: TxnId,
        neighbours: &Neighbours,
        effects: &mut Vec<Effect>,
    ) {
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
    pub(super) fn conclude(
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
}
