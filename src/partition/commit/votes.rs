//! The participant's side up to its vote: locks and what they show, intents, and whether unlogged
//! locks are still held.

use super::Deferred;
use crate::batch::Replies;
use crate::batch::machine::{Effort, Machine};
use crate::ids::{Now, Term, TxnId};
use crate::partition::journal::{Certainty, Completion};
use crate::partition::replica::Mutation;
use crate::partition::{Partition, PartitionEffect, WaitingRequest};
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use crate::txn::claims::share_claims;
use crate::txn::protocol::{Claim, Granule, Lock, Mode, Prepare, Prepared, Ticket, ToCoordinator};

impl<M: Machine> Partition<M> {
    pub(super) fn on_lock(
        &mut self,
        lock: Box<Lock>,
        ticket: Ticket,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let txn = lock.txn;
        self.clock = self.clock.max(lock.age.time);
        self.replica.done_below(txn.node, txn.incarnation, lock.done_below);
        let known = self.held.contains_key(&txn) || self.tickets.contains_key(&txn);
        if known || self.replica.is_over(txn) {
            return;
        }
        let claims = share_claims::<M>(&lock.share);
        if self.conflict(txn, &claims) {
            self.queue(ticket, lock.age, Some(txn), claims, WaitingRequest::Lock(lock), effects);
            return;
        }
        self.hold(txn, lock.age, claims, Some(self.term), now.mono);
        self.lock(lock, now, effects);
    }

    /// Goes on with a `Lock` whose keys are locked. No other request changes the keys from here on,
    /// so what they hold is known as soon as what was proposed before is applied.
    pub(in crate::partition) fn lock(
        &mut self,
        lock: Box<Lock>,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        self.when_applied(Deferred::Grant, lock, now, effects);
    }

    /// Whether what the claimed keys hold is more than is gathered at one node.
    fn holds_too_much(&self, claims: &[Claim]) -> bool {
        let tables = self.replica.tables();
        let mut effort = Effort::default();
        let mut keys = claims.iter().filter_map(|claim| match &claim.granule {
            Granule::Key(table, key) => Some((*table, key)),
            _ => None,
        });
        keys.any(|(table, key)| {
            effort.add(tables.value_bytes(table, tables.hasher().hash(key), key)).is_err()
        })
    }

    pub(super) fn grant(&mut self, lock: Box<Lock>, now: Now, effects: &mut Vec<PartitionEffect>) {
        let stamp = self.stamp(now);
        if !self.replica.is_unchanged(&lock.share.watched, stamp) {
            self.changed(lock.txn, effects);
            return;
        }
        self.replica.look();
        let claims = self.held.get(&lock.txn).map_or(&[][..], |held| &held.claims);
        if lock.mode == Mode::Gather && self.holds_too_much(claims) {
            return self.too_much(lock.txn, effects);
        }
        let images = match lock.mode {
            Mode::Gather => self.replica.images(claims, stamp),
            Mode::Read | Mode::Write => Vec::new(),
        };
        let replies = match lock.mode {
            Mode::Read => self.replica.read_all(&lock.share.batch, stamp),
            Mode::Gather | Mode::Write => Ok(Replies::default()),
        };
        let Ok(replies) = replies else { return self.too_much(lock.txn, effects) };
        if let Some(mut expired) = self.replica.expired() {
            // What another transaction has prepared to read stays there until that ends.
            let is_logged = self.journal.is_some();
            expired.retain(|(table, key)| !is_logged || !self.replica.knows_expired(*table, key));
            for (table, key) in &expired {
                let completion = match is_logged {
                    true => Completion::Grant(lock.txn),
                    false => Completion::Nothing,
                };
                self.propose(Mutation::Expire(*table, key), completion, now, effects);
            }
            if is_logged && !expired.is_empty() {
                // The log must say that it expired before any client hears so.
                self.when_applied(Deferred::Grant, lock, now, effects);
                return;
            }
        }
        let granted = ToCoordinator::Granted {
            txn: lock.txn,
            partition: self.id,
            term: self.term,
            time: self.clock,
            stamp,
            replies,
            images,
        };
        effects.push(PartitionEffect::Coordinator(lock.txn.node, granted));
    }

    /// Says that a transaction asks for more here than one may. Its Coordinator aborts it.
    pub(super) fn too_much(&self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        effects.push(PartitionEffect::Coordinator(txn.node, ToCoordinator::TooMuch { txn }));
    }

    /// Says that a watched key has changed.
    fn changed(&mut self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        self.release(txn, effects);
        effects.push(PartitionEffect::Coordinator(txn.node, ToCoordinator::Changed { txn }));
    }

    pub(super) fn on_prepare(
        &mut self,
        prepare: Box<Prepare>,
        ticket: Ticket,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let txn = prepare.txn;
        self.clock = self.clock.max(prepare.age.time);
        self.replica.done_below(txn.node, txn.incarnation, prepare.done_below);
        if self.tickets.contains_key(&txn) {
            return;
        }
        if kept(Rule::LatePreparesAreRefused) && self.replica.is_over(txn) {
            self.vote(txn, None, effects);
            return;
        }
        if let Some(term) = prepare.term {
            let held = self.held.get(&txn);
            let granted = held.is_some_and(|held| held.unlogged == Some(term));
            if granted && term == self.term || !kept(Rule::PrepareCarriesGrant) {
                self.prepare(prepare, now, effects);
            } else {
                self.vote(txn, None, effects);
            }
            return;
        }
        if self.held.contains_key(&txn) {
            self.prepare(prepare, now, effects);
            return;
        }
        let claims = match &prepare.work {
            Prepared::Share(share) => share_claims::<M>(share),
            // Images come after a lock only.
            Prepared::Images(_) | Prepared::Whole(..) => {
                self.vote(txn, None, effects);
                return;
            }
        };
        if self.conflict(txn, &claims) {
            self.queue(
                ticket,
                prepare.age,
                Some(txn),
                claims,
                WaitingRequest::Prepare(prepare),
                effects,
            );
            return;
        }
        self.hold(txn, prepare.age, claims, None, now.mono);
        self.prepare(prepare, now, effects);
    }

    /// Logs the intent of a transaction that holds its locks.
    pub(in crate::partition) fn prepare(
        &mut self,
        prepare: Box<Prepare>,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let watches = matches!(&prepare.work, Prepared::Share(share) if !share.watched.is_empty());
        match watches {
            true => self.when_applied(Deferred::Prepare, prepare, now, effects),
            false => self.log_intent(prepare, now, effects),
        }
    }

    pub(super) fn log_intent(
        &mut self,
        prepare: Box<Prepare>,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let txn = prepare.txn;
        // It may have ended while it waited.
        if kept(Rule::LatePreparesAreRefused) && self.replica.is_over(txn) {
            self.release(txn, effects);
            self.vote(txn, None, effects);
            return;
        }
        let stamp = self.stamp(now);
        let mut watched = Vec::new();
        if let Prepared::Share(share) = &prepare.work
            && !share.watched.is_empty()
        {
            if !self.replica.is_unchanged(&share.watched, stamp) {
                self.changed(txn, effects);
                return;
            }
            watched.clone_from(&share.watched);
        }
        let mut claims = Vec::new();
        if let Some(held) = self.held.get_mut(&txn) {
            held.unlogged = None;
            held.watched = watched;
            // Lent to the entry. Where it is applied at once, what is held may be given up there.
            claims = match self.journal {
                Some(_) => std::mem::take(&mut held.claims),
                None => held.claims.clone(),
            };
        }
        let mut released = Vec::new();
        if !kept(Rule::ReadKeysArePrepared) {
            released = claims.extract_if(.., |claim| claim.access == Access::Read).collect();
        }
        self.propose(Mutation::Prepare(prepare, &claims), Completion::Vote(txn), now, effects);
        if let (Some(_), Some(held)) = (&self.journal, self.held.get_mut(&txn)) {
            held.claims = claims;
        }
        self.unmark(released, txn, effects);
    }

    pub(super) fn vote(
        &self,
        txn: TxnId,
        vote: Option<Replies>,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let voted = ToCoordinator::Voted { txn, partition: self.id, time: self.clock, vote };
        effects.push(PartitionEffect::Coordinator(txn.node, voted));
    }

    pub(super) fn on_confirm(
        &mut self,
        txn: TxnId,
        term: Term,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
    ) {
        let Some(journal) = &mut self.journal else { return self.confirm(txn, term, effects) };
        match journal.certainty(now) {
            Certainty::Lease => self.confirm(txn, term, effects),
            Certainty::Asked(asked) => self.deferred.push(Deferred::Confirm(txn, term, asked)),
            Certainty::None => self.refuse(txn, effects),
        }
    }

    pub(super) fn confirm(&mut self, txn: TxnId, term: Term, effects: &mut Vec<PartitionEffect>) {
        let unlogged = self.held.get(&txn).and_then(|held| held.unlogged);
        let held = unlogged == Some(term) && term == self.term;
        if unlogged.is_some() {
            self.release(txn, effects);
        }
        let confirmed = ToCoordinator::Confirmed { txn, partition: self.id, held };
        effects.push(PartitionEffect::Coordinator(txn.node, confirmed));
    }

    /// Whether a watched key of a transaction that has just been prepared had expired by then.
    pub(super) fn has_lost_watched(&self, txn: TxnId) -> bool {
        let (held, intent) = (self.held.get(&txn), self.replica.intents().get(&txn));
        held.zip(intent).is_some_and(|(held, intent)| {
            self.replica.has_expired_unseen(&held.watched, intent.since)
        })
    }
}
