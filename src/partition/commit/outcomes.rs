//! How transactions end: the first decision logged stands, the primary answers for it, and the
//! participants confirm that they have applied it.

use crate::batch::machine::Machine;
use crate::ids::{Incarnation, Now, PartitionId, TxnId};
use crate::partition::journal::Completion;
use crate::partition::replica::{Applied, Mutation};
use crate::partition::{Neighbours, Partition, PartitionEffect};
use crate::txn::protocol::{Decide, Knowledge, ToPartition, Verdict};

/// Confirmations for one primary that are held back at most.
const CONFIRMATIONS_MAX: usize = 256;

impl<M: Machine> Partition<M> {
    pub(super) fn on_decide(
        &mut self,
        decide: Decide,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let txn = decide.txn;
        let logged = self.replica.intents().contains_key(&txn)
            || self.held.get(&txn).is_some_and(|held| held.unlogged.is_none());
        if self.journal.is_none() || logged || decide.deciding {
            self.propose(
                Mutation::Decide(txn, decide.verdict),
                Completion::Decide(decide),
                now,
                effects,
            );
            return;
        }
        // The log knows nothing of it, or has its end already: it needs no further entry.
        self.release(txn, effects);
        self.confirm_commit(&decide, effects);
    }

    /// Ends a transaction here by the first decision logged.
    pub(in crate::partition) fn end(
        &mut self,
        txn: TxnId,
        verdict: Verdict,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let (primary, deciding) = (self.id, false);
        let completion = Completion::Decide(Decide { txn, verdict, primary, deciding });
        self.propose(Mutation::Decide(txn, verdict), completion, now, effects);
    }

    pub(super) fn on_resolve(
        &mut self,
        txn: TxnId,
        asker: PartitionId,
        primary_life: Incarnation,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let known = self.replica.outcomes().contains_key(&txn)
            || self.replica.intents().contains_key(&txn)
            || self.replica.ended(txn).is_some();
        if !known && self.journal.is_none() && primary_life != self.life {
            effects.push(PartitionEffect::Partition(asker, ToPartition::Lost { txn }));
            return;
        }
        let completion = Completion::Tell { txn, asker };
        self.propose(Mutation::Decide(txn, Verdict::Abort), completion, now, effects);
    }

    pub(super) fn tell(
        &self,
        txn: TxnId,
        verdict: Verdict,
        participant: PartitionId,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let decide = Decide { txn, verdict, primary: self.id, deciding: false };
        effects.push(PartitionEffect::Partition(participant, ToPartition::Decide(decide)));
    }

    /// Tells what this participant knows of an outcome. The asker counts on the answer. So a share
    /// that is not prepared yet is refused from now on, and this participant says that it knows no
    /// outcome only once none will come any more. Until then the question is repeated.
    pub(super) fn on_inquire(
        &mut self,
        txn: TxnId,
        asker: PartitionId,
        now: Now,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let knowledge = if self.replica.outcomes().contains_key(&txn) {
            Knowledge::Committed
        } else if self.replica.intents().contains_key(&txn) {
            if !self.has_heard_the_last(txn, neighbours, effects) {
                return;
            }
            Knowledge::Undecided
        } else {
            match self.replica.ended(txn) {
                Some(verdict) => verdict.into(),
                None => {
                    let completion = Completion::Know { txn, asker };
                    self.propose(Mutation::Decide(txn, Verdict::Abort), completion, now, effects);
                    return;
                }
            }
        };
        self.know(txn, asker, knowledge, effects);
    }

    pub(super) fn know(
        &self,
        txn: TxnId,
        asker: PartitionId,
        knowledge: Knowledge,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let answer = ToPartition::Knows { txn, from: self.id, knowledge };
        effects.push(PartitionEffect::Partition(asker, answer));
    }

    /// Participants have applied commits that were decided here.
    pub(super) fn on_applied(
        &mut self,
        mut txns: Vec<TxnId>,
        from: PartitionId,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let outcomes = self.replica.outcomes();
        let is_open =
            |txn: &TxnId| outcomes.get(txn).is_some_and(|o| o.unconfirmed.contains(&from));
        txns.retain(is_open);
        if !txns.is_empty() {
            self.propose(Mutation::Applied(txns, from), Completion::Nothing, now, effects);
        }
    }

    /// Has the primary told that its commit is applied here. No client waits for that, so many
    /// commits are confirmed by one message and one mutation of the primary's, some time before it
    /// would repeat its decisions.
    pub(super) fn confirm_commit(&mut self, decide: &Decide, effects: &mut Vec<PartitionEffect>) {
        if decide.verdict == Verdict::Abort || decide.primary == self.id {
            return;
        }
        let txns = self.confirmations.entry(decide.primary).or_default();
        txns.push(decide.txn);
        if txns.len() >= CONFIRMATIONS_MAX || self.journal.is_none() {
            let applied = ToPartition::Applied { txns: std::mem::take(txns), from: self.id };
            effects.push(PartitionEffect::Partition(decide.primary, applied));
        }
    }

    /// Sends the confirmations that were held back.
    pub(super) fn confirm_commits(&mut self, effects: &mut Vec<PartitionEffect>) {
        while let Some((primary, txns)) = self.confirmations.pop_first() {
            if !txns.is_empty() {
                let applied = ToPartition::Applied { txns, from: self.id };
                effects.push(PartitionEffect::Partition(primary, applied));
            }
        }
    }

    /// A transaction has ended here: tells how, and gives up what it held.
    pub(super) fn ended(
        &mut self,
        txn: TxnId,
        applied: Applied,
        effects: &mut Vec<PartitionEffect>,
    ) -> Verdict {
        self.inquiries.remove(&txn);
        self.release(txn, effects);
        match applied {
            Applied::Stands(verdict) => verdict,
            _ => Verdict::Abort,
        }
    }
}

impl From<Verdict> for Knowledge {
    fn from(verdict: Verdict) -> Knowledge {
        match verdict {
            Verdict::Commit => Knowledge::Committed,
            Verdict::Abort => Knowledge::Aborted,
        }
    }
}
