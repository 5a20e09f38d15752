//! What is open for too long: intents whose decision does not come, decisions that are not confirmed,
//! and locks whose Coordinator is lost or silent.

use crate::batch::machine::Machine;
use crate::ids::{Incarnation, Millis, NodeId, Now, TxnId};
use crate::partition::journal::Completion;
use crate::partition::replica::Mutation;
use crate::partition::{
    Aged, Neighbours, Partition, PartitionEffect, REPEAT_AFTER_MS, RESOLVE_AFTER_MS,
    RESOLVE_INHERITED_AFTER_MS,
};
use crate::rules::{Rule, kept};
use crate::txn::protocol::{ToCoordinator, ToPartition, Verdict};

impl<M: Machine> Partition<M> {
    /// A node began a life: nothing of its earlier ones may prepare any more.
    pub fn coordinator_began(&mut self, node: NodeId, life: Incarnation) {
        if !self.is_led_here() || self.replica.life_of(node) >= Some(life) {
            return;
        }
        let mutation = Mutation::Began(node, life);
        match &mut self.journal {
            Some(journal) => journal.propose(mutation, Completion::Nothing),
            None => {
                let stamp = self.replica.stamped();
                self.replica.apply(mutation, stamp, &mut Vec::new());
            }
        }
    }

    /// A node cannot be reached any more, does not answer, or began another life: unlogged locks of
    /// its transactions are given up, their confirmations will fail. Requests that wait are
    /// refused, for the node may come back.
    pub fn coordinator_lost(&mut self, node: NodeId, effects: &mut Vec<PartitionEffect>) {
        if !kept(Rule::UnloggedLocksGoWithCoordinator) {
            return;
        }
        let lost = |txn: &TxnId| txn.node == node;
        let held = self.held.iter().filter(|(txn, held)| lost(txn) && held.unlogged.is_some());
        let held: Vec<TxnId> = held.map(|(txn, _)| *txn).collect();
        let waiting: Vec<TxnId> = self.tickets.keys().copied().filter(lost).collect();
        for txn in held {
            self.release(txn, effects);
        }
        for txn in waiting {
            self.release(txn, effects);
            self.refuse(txn, effects);
        }
    }

    /// Repeats what is not answered: questions of old intents, decisions not confirmed.
    pub fn tick(&mut self, now: Now, neighbours: &Neighbours, effects: &mut Vec<PartitionEffect>) {
        self.confirm_commits(effects);
        let (intents, outcomes) = (self.replica.intents(), self.replica.outcomes());
        self.aged.retain(|txn, _| intents.contains_key(txn) || outcomes.contains_key(txn));
        self.inherited.retain(|txn| intents.contains_key(txn));
        if !self.is_led_here() {
            self.replica.forget_watches(self.replica.stamped());
            return;
        }
        let stamp = self.stamp(now);
        self.replica.forget_watches(stamp);
        self.ask_for_forgotten(now, effects);
        let aged = &mut self.aged;
        // How old it is, and whether anything is to be said about it: `first` ms after it was first
        // seen, and from then on as often as is repeated.
        let mut due = |txn: &TxnId, stamped: Millis, first: u64| {
            let since = match kept(Rule::IntentsAgeHere) {
                true => now.mono,
                false => (now.mono + stamped.0).saturating_sub(now.wall.0),
            };
            let fresh = Aged { since, next: since.saturating_add(first) };
            let Aged { since, next } = *aged.entry(*txn).or_insert(fresh);
            (now.mono.saturating_sub(since), now.mono >= next)
        };
        let mut drive = Vec::new();
        for (txn, outcome) in self.replica.outcomes() {
            let (_, due) = due(txn, outcome.since, REPEAT_AFTER_MS);
            if due && kept(Rule::PrimaryDrives) {
                drive.push((*txn, outcome.unconfirmed.clone()));
            }
        }
        let mut ask = Vec::new();
        for (txn, intent) in self.replica.intents() {
            let coordinator_lost =
                neighbours.is_away(txn.node) || neighbours.is_over(txn.node, txn.incarnation);
            let (patience, first) = match self.inherited.contains(txn) {
                true => (RESOLVE_INHERITED_AFTER_MS, RESOLVE_INHERITED_AFTER_MS),
                false => (RESOLVE_AFTER_MS, REPEAT_AFTER_MS),
            };
            let (age, due) = due(txn, intent.since, first);
            let old = age >= patience;
            if (old || coordinator_lost) && due && kept(Rule::OldIntentsAsk) {
                ask.push((*txn, intent.primary, intent.primary_life));
            }
        }
        for (txn, unconfirmed) in drive {
            self.repeat(txn, now.mono);
            for partition in unconfirmed {
                self.tell(txn, Verdict::Commit, partition, effects);
            }
        }
        for (txn, primary, primary_life) in ask {
            self.repeat(txn, now.mono);
            if primary == self.id {
                self.end(txn, Verdict::Abort, now, effects);
            } else if neighbours.has_lost(primary, primary_life) {
                self.inquire(txn, neighbours, effects);
                self.conclude(txn, now, neighbours, effects);
            } else {
                let ask = ToPartition::Resolve { txn, asker: self.id, primary_life };
                effects.push(PartitionEffect::Partition(primary, ask));
            }
        }
    }

    fn repeat(&mut self, txn: TxnId, mono: u64) {
        if let Some(aged) = self.aged.get_mut(&txn) {
            aged.next = mono.saturating_add(REPEAT_AFTER_MS);
        }
    }

    /// Asks after locks that have not become an intent for long. A late lock may have reached a
    /// leader that never hears that its attempt is over: that was told to the leader before it.
    fn ask_for_forgotten(&mut self, now: Now, effects: &mut Vec<PartitionEffect>) {
        for (txn, held) in &mut self.held {
            let old = now.mono >= held.since.saturating_add(RESOLVE_AFTER_MS);
            if held.unlogged.is_some() && old && kept(Rule::OldLocksAsk) {
                held.since = now.mono;
                let ask = ToCoordinator::Inquire { txn: *txn, asker: self.id };
                effects.push(PartitionEffect::Coordinator(txn.node, ask));
            }
        }
    }
}
