//! The participant's and the primary's side of the commit protocol: what each message means, what is
//! proposed for it, and what follows once that is applied.

mod outcomes;
mod upkeep;
mod votes;

use super::{Neighbours, Partition, PartitionEffect};
use crate::batch::machine::Machine;
use crate::consensus::Confirmation;
use crate::ids::Term;
use crate::ids::{Now, TxnId};
use crate::partition::journal::Completion;
use crate::partition::replica::{Applied, Mutation};
use crate::rules::{Rule, kept};
use crate::txn::protocol::{Decide, Knowledge, Lock, Prepare, Ticket, ToCoordinator, ToPartition};

/// What waits until the mutations proposed before it are applied, or for a lease.
#[derive(Debug)]
pub(super) enum Deferred {
    /// A `Lock` whose keys are locked: reads and images show what was proposed before them.
    Grant(Box<Lock>, u64),
    /// A `Prepare` whose keys are locked: whether its watched keys have changed shows then.
    Prepare(Box<Prepare>, u64),
    /// Unlogged locks count as held only at a leader that certainly still leads: under a lease, or
    /// once a majority has confirmed it after it was asked.
    Confirm(TxnId, Term, Confirmation),
}

impl Deferred {
    pub(super) fn txn(&self) -> TxnId {
        match self {
            Deferred::Grant(lock, _) => lock.txn,
            Deferred::Prepare(prepare, _) => prepare.txn,
            Deferred::Confirm(txn, ..) => *txn,
        }
    }
}

impl<M: Machine> Partition<M> {
    /// Takes one message. `ticket` is used up if the request has to wait.
    pub fn handle(
        &mut self,
        message: ToPartition,
        ticket: Ticket,
        now: Now,
        neighbours: &Neighbours,
        effects: &mut Vec<PartitionEffect>,
    ) {
        if !self.is_led_here() {
            return self.turn_away(&message, effects);
        }
        let begins = match &message {
            ToPartition::Lock(lock) => Some(lock.txn),
            ToPartition::Prepare(prepare) => Some(prepare.txn),
            _ => None,
        };
        // Had it come before the suspicion, its locks would have been given up.
        if let Some(txn) = begins.filter(|txn| neighbours.suspected.contains(&txn.node)) {
            return self.refuse(txn, effects);
        }
        match message {
            ToPartition::Lock(lock) => self.on_lock(lock, ticket, now, effects),
            ToPartition::Prepare(prepare) => self.on_prepare(prepare, ticket, now, effects),
            ToPartition::Decide(decide) => self.on_decide(decide, now, effects),
            ToPartition::Confirm { txn, term } => self.on_confirm(txn, term, now, effects),
            ToPartition::Resolve { txn, asker, primary_life } => {
                self.on_resolve(txn, asker, primary_life, now, effects);
            }
            ToPartition::Lost { txn } => {
                if self.replica.intents().contains_key(&txn) {
                    self.inquire(txn, neighbours, effects);
                }
            }
            ToPartition::Inquire { txn, asker } => {
                self.on_inquire(txn, asker, now, neighbours, effects);
            }
            ToPartition::Knows { txn, from, knowledge } => {
                self.on_known(txn, Some(from), knowledge, now, neighbours, effects);
            }
            ToPartition::CoordinatorKnows { txn, knowledge } => {
                let unlogged = self.held.get(&txn).is_some_and(|held| held.unlogged.is_some());
                if unlogged && knowledge != Knowledge::Undecided {
                    self.release(txn, effects);
                }
                self.on_known(txn, None, knowledge, now, neighbours, effects);
            }
            ToPartition::Applied { txns, from } => self.on_applied(txns, from, now, effects),
        }
    }

    /// Answers what was meant for the leader. Participants and primaries ask again by themselves.
    fn turn_away(&self, message: &ToPartition, effects: &mut Vec<PartitionEffect>) {
        match message {
            ToPartition::Lock(lock) => self.refuse(lock.txn, effects),
            ToPartition::Prepare(prepare) => self.refuse(prepare.txn, effects),
            ToPartition::Confirm { txn, .. }
            | ToPartition::Decide(Decide { txn, deciding: true, .. }) => {
                self.refuse(*txn, effects);
            }
            _ => {}
        }
    }

    /// Goes on at once, or once everything proposed so far is applied.
    fn when_applied<T>(
        &mut self,
        defer: fn(T, u64) -> Deferred,
        what: T,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let fence = self.journal.as_ref().map_or(0, |journal| journal.proposed());
        let deferred = defer(what, fence);
        match self.journal.as_ref().is_some_and(|journal| !journal.has_settled(fence)) {
            true if kept(Rule::GrantsWaitForProposed) => self.deferred.push(deferred),
            _ => self.proceed(deferred, now, effects),
        }
    }

    fn proceed(&mut self, deferred: Deferred, now: Now, effects: &mut Vec<PartitionEffect>) {
        // The transaction may have been given up while it waited.
        match deferred {
            Deferred::Grant(lock, _) => {
                let held = self.held.get(&lock.txn);
                if held.is_some_and(|held| held.unlogged == Some(self.term)) {
                    self.grant(lock, now, effects);
                }
            }
            Deferred::Prepare(prepare, _) => {
                if self.held.contains_key(&prepare.txn) {
                    self.log_intent(prepare, now, effects);
                }
            }
            Deferred::Confirm(txn, term, _) => self.confirm(txn, term, effects),
        }
    }

    /// Goes on with what waited, as far as it may.
    pub(super) fn run_deferred(&mut self, now: Now, effects: &mut Vec<PartitionEffect>) {
        if self.deferred.is_empty() {
            return;
        }
        for deferred in std::mem::take(&mut self.deferred) {
            let ready = self.journal.as_mut().is_none_or(|journal| match &deferred {
                Deferred::Grant(_, fence) | Deferred::Prepare(_, fence) => {
                    journal.has_settled(*fence)
                }
                Deferred::Confirm(_, _, asked) => journal.is_confirmed(*asked),
            });
            match ready {
                true => self.proceed(deferred, now, effects),
                false => self.deferred.push(deferred),
            }
        }
    }

    /// Changes the replica by way of its log, if it has one; `after` follows once it is applied.
    pub(super) fn propose(
        &mut self,
        mutation: Mutation<'_>,
        completion: Completion,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let synced = self.must_sync(&mutation);
        match &mut self.journal {
            Some(journal) => {
                if synced {
                    journal.sync();
                }
                journal.propose(mutation, completion);
            }
            None => {
                let stamp = self.stamp(now);
                let applied = self.replica.apply(mutation, stamp, &mut Vec::new());
                self.settle(completion, applied, effects);
            }
        }
    }

    /// Whether a mutation is a step of a transaction that is to survive power. A transaction that
    /// is not known here may be one.
    fn must_sync(&self, mutation: &Mutation<'_>) -> bool {
        match mutation {
            Mutation::Prepare(prepare, _) => prepare.synced,
            Mutation::Decide(txn, _) => {
                self.replica.intents().get(txn).is_none_or(|intent| intent.synced)
            }
            _ => false,
        }
    }

    /// Does what follows an applied mutation.
    pub(super) fn settle(
        &mut self,
        completion: Completion,
        applied: Applied,
        effects: &mut Vec<PartitionEffect>,
    ) {
        match completion {
            // Who waits for a grant is deferred until all of it is applied.
            Completion::Nothing | Completion::Reply(_) | Completion::Grant(_) => {}
            Completion::Vote(txn) => match applied {
                // Its operations ran at the entry's stamp, which is later than that of the check.
                Applied::Voted(_) if self.has_lost_watched(txn) => {
                    effects.push(PartitionEffect::Coordinator(
                        txn.node,
                        ToCoordinator::Changed { txn },
                    ));
                }
                Applied::Voted(replies) => self.vote(txn, Some(replies), effects),
                Applied::TooMuch => self.too_much(txn, effects),
                _ => {
                    self.release(txn, effects);
                    self.vote(txn, None, effects);
                }
            },
            Completion::Decide(decide) => {
                let verdict = self.ended(decide.txn, applied, effects);
                if decide.deciding {
                    let decided = ToCoordinator::Decided { txn: decide.txn, verdict };
                    effects.push(PartitionEffect::Coordinator(decide.txn.node, decided));
                } else {
                    self.confirm_commit(&decide, effects);
                }
            }
            Completion::Tell { txn, asker } => {
                let stands = self.ended(txn, applied, effects);
                self.tell(txn, stands, asker, effects);
            }
            Completion::Know { txn, asker } => {
                let stands = self.ended(txn, applied, effects);
                self.know(txn, asker, stands.into(), effects);
            }
        }
    }
}
