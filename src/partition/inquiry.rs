//! The search for an outcome whose primary lost its memory: only partitions without copies can.
//!
//! The participants ask each other and the Coordinator (cooperative termination, Bernstein,
//! Hadzilacos and Goodman 1987, section 7.4). The asker counts on the answers: a share that is not
//! prepared yet is refused from then on. A participant's answer that it is undecided counts only if
//! it can hear of no commit any more. So it answers once it knows for itself that the primary is
//! gone, and that the Coordinator is gone too or has nothing to tell. Until then what they had sent
//! may be on its way.

use super::{Neighbours, Partition, PartitionEffect};
use crate::batch::machine::Machine;
use crate::ids::{Incarnation, Now, PartitionId, TxnId};
use crate::partition::replica::Intent;
use crate::rules::{Rule, kept};
use crate::txn::protocol::{Knowledge, ToCoordinator, ToPartition, Verdict};
use std::collections::BTreeMap;

/// The answers so far.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    answers: BTreeMap<PartitionId, Knowledge>,
    /// The lives of the participants' nodes as of these answers, and whether they are over.
    lives: Vec<(Incarnation, bool)>,
    coordinator: Option<Knowledge>,
}

impl Inquiry {
    /// A participant that is lost may have told another one of a commit just before: those that
    /// were undecided until then are asked again.
    fn refresh(&mut self, intent: &Intent, neighbours: &Neighbours) {
        let life = |participant: &PartitionId| {
            let home = neighbours.home(*participant)?;
            let life = neighbours.lives.get(&home).copied().unwrap_or_default();
            Some((life, neighbours.is_over(home, life)))
        };
        let lives = intent.participants.iter().map(|one| life(one).unwrap_or_default()).collect();
        if self.lives != lives && kept(Rule::LossesReopenInquiries) {
            self.answers.retain(|_, answer| *answer != Knowledge::Undecided);
            self.lives = lives;
        }
    }

    /// Whether the Coordinator has said that it will not tell any participant of a commit.
    fn is_dismissed(&self) -> bool {
        self.coordinator.is_some_and(|told| told != Knowledge::Undecided)
    }
}

impl<M: Machine> Partition<M> {
    /// Whether no outcome that is not known here will be told any more. Asks the Coordinator if
    /// only its answer is lacking.
    pub(super) fn has_heard_the_last(
        &mut self,
        txn: TxnId,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) -> bool {
        if !kept(Rule::UndecidedIsLast) {
            return true;
        }
        let Some(intent) = self.replica.intents().get(&txn) else { return true };
        if !neighbours.has_lost(intent.primary, intent.primary_life) {
            return false;
        }
        match self.inquiries.get(&txn) {
            Some(inquiry) if inquiry.is_dismissed() => true,
            _ if neighbours.is_over(txn.node, txn.incarnation) => true,
            Some(_) => false,
            None => {
                self.inquire(txn, neighbours, effects);
                false
            }
        }
    }

    pub(super) fn on_known(
        &mut self,
        txn: TxnId,
        from: Option<PartitionId>,
        knowledge: Knowledge,
        now: Now,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let Some(inquiry) = self.inquiries.get_mut(&txn) else { return };
        match from {
            Some(partition) => drop(inquiry.answers.insert(partition, knowledge)),
            None => inquiry.coordinator = Some(knowledge),
        }
        self.conclude(txn, now, neighbours, effects);
    }

    /// Asks the other participants and the Coordinator for the outcome of a transaction whose
    /// primary lost its memory.
    pub(super) fn inquire(
        &mut self,
        txn: TxnId,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let Some(intent) = self.replica.intents().get(&txn) else { return };
        let inquiry = self.inquiries.entry(txn).or_default();
        inquiry.refresh(intent, neighbours);
        for &participant in &intent.participants {
            let asked = participant != self.id && participant != intent.primary;
            if asked && !inquiry.answers.contains_key(&participant) {
                let ask = ToPartition::Inquire { txn, asker: self.id };
                effects.push(PartitionEffect::Partition(participant, ask));
            }
        }
        if !inquiry.is_dismissed() && !neighbours.is_over(txn.node, txn.incarnation) {
            let ask = ToCoordinator::Inquire { txn, asker: self.id };
            effects.push(PartitionEffect::Coordinator(txn.node, ask));
        }
    }

    /// Ends a transaction whose primary is gone, once the Coordinator and every participant have
    /// answered or are gone too: committed if any of them says so.
    pub(super) fn conclude(
        &mut self,
        txn: TxnId,
        now: Now,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let Some(inquiry) = self.inquiries.get_mut(&txn) else { return };
        let Some(intent) = self.replica.intents().get(&txn) else { return };
        inquiry.refresh(intent, neighbours);
        let committed = inquiry.coordinator == Some(Knowledge::Committed)
            || inquiry.answers.values().any(|answer| *answer == Knowledge::Committed);
        let coordinator = inquiry.is_dismissed() || neighbours.is_over(txn.node, txn.incarnation);
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
