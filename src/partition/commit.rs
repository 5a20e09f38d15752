//! The participant's and the primary's side of the commit protocol.

use super::{
    Aged, Neighbours, Partition, PartitionEffect, REPEAT_AFTER_MS, RESOLVE_AFTER_MS,
    RESOLVE_INHERITED_AFTER_MS, WaitingRequest,
};
use crate::batch::Replies;
use crate::batch::machine::{Effort, Machine};
use crate::consensus::Confirmation;
use crate::ids::Term;
use crate::ids::{Incarnation, Millis, NodeId, Now, PartitionId, TxnId};
use crate::partition::journal::Completion;
use crate::partition::replica::{Applied, Mutation};
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use crate::txn::claims::share_claims;
use crate::txn::protocol::{
    Claim, Decide, Granule, Knowledge, Lock, Mode, Prepare, Prepared, Ticket, ToCoordinator,
    ToPartition, Verdict,
};

/// Confirmations for one primary that are held back at most.
const CONFIRMATIONS_MAX: usize = 256;

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
        // How old it is, and whether what is said about it is to be repeated.
        let mut due = |txn: &TxnId, stamped: Millis| {
            let since = match kept(Rule::IntentsAgeHere) {
                true => now.mono,
                false => (now.mono + stamped.0).saturating_sub(now.wall.0),
            };
            let Aged { since, repeated } =
                *aged.entry(*txn).or_insert(Aged { since, repeated: since });
            let due = now.mono >= repeated.saturating_add(REPEAT_AFTER_MS);
            (now.mono.saturating_sub(since), due)
        };
        let mut drive = Vec::new();
        for (txn, outcome) in self.replica.outcomes() {
            let (_, due) = due(txn, outcome.since);
            if due && kept(Rule::PrimaryDrives) {
                drive.push((*txn, outcome.unconfirmed.clone()));
            }
        }
        let mut ask = Vec::new();
        for (txn, intent) in self.replica.intents() {
            let coordinator_lost =
                neighbours.is_away(txn.node) || neighbours.is_over(txn.node, txn.incarnation);
            let (age, due) = due(txn, intent.since);
            let patience = match self.inherited.contains(txn) {
                true => RESOLVE_INHERITED_AFTER_MS,
                false => RESOLVE_AFTER_MS,
            };
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
            aged.repeated = mono;
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

    fn on_lock(
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
    pub(super) fn lock(&mut self, lock: Box<Lock>, now: Now, effects: &mut Vec<PartitionEffect>) {
        self.when_applied(Deferred::Grant, lock, now, effects);
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

    fn grant(&mut self, lock: Box<Lock>, now: Now, effects: &mut Vec<PartitionEffect>) {
        let stamp = self.stamp(now);
        if !self.replica.is_unchanged(&lock.share.watched, stamp) {
            self.changed(lock.txn, effects);
            return;
        }
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
        if let Some(expired) = self.replica.expired() {
            for (table, key) in expired {
                self.propose(Mutation::Expire(table, &key), Completion::Nothing, now, effects);
            }
            if self.journal.is_some() {
                // What expired must be gone in the log before any client hears that it is.
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
    fn too_much(&self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        effects.push(PartitionEffect::Coordinator(txn.node, ToCoordinator::TooMuch { txn }));
    }

    /// Says that a watched key has changed.
    fn changed(&mut self, txn: TxnId, effects: &mut Vec<PartitionEffect>) {
        self.release(txn, effects);
        effects.push(PartitionEffect::Coordinator(txn.node, ToCoordinator::Changed { txn }));
    }

    fn on_prepare(
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
    pub(super) fn prepare(
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

    fn log_intent(&mut self, prepare: Box<Prepare>, now: Now, effects: &mut Vec<PartitionEffect>) {
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

    fn vote(&self, txn: TxnId, vote: Option<Replies>, effects: &mut Vec<PartitionEffect>) {
        let voted = ToCoordinator::Voted { txn, partition: self.id, time: self.clock, vote };
        effects.push(PartitionEffect::Coordinator(txn.node, voted));
    }

    fn on_decide(&mut self, decide: Decide, now: Now, effects: &mut Vec<PartitionEffect>) {
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
    pub(super) fn end(
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

    fn on_confirm(&mut self, txn: TxnId, term: Term, now: Now, effects: &mut Vec<PartitionEffect>) {
        let Some(journal) = &mut self.journal else { return self.confirm(txn, term, effects) };
        if journal.has_lease(now) {
            return self.confirm(txn, term, effects);
        }
        match journal.group_mut().confirm(now) {
            Some(asked) => self.deferred.push(Deferred::Confirm(txn, term, asked)),
            None => self.refuse(txn, effects),
        }
    }

    fn confirm(&mut self, txn: TxnId, term: Term, effects: &mut Vec<PartitionEffect>) {
        let unlogged = self.held.get(&txn).and_then(|held| held.unlogged);
        let held = unlogged == Some(term) && term == self.term;
        if unlogged.is_some() {
            self.release(txn, effects);
        }
        let confirmed = ToCoordinator::Confirmed { txn, partition: self.id, held };
        effects.push(PartitionEffect::Coordinator(txn.node, confirmed));
    }

    fn on_resolve(
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

    fn tell(
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
    fn on_inquire(
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

    fn know(
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
    fn on_applied(
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
    fn confirm_commit(&mut self, decide: &Decide, effects: &mut Vec<PartitionEffect>) {
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
    fn confirm_commits(&mut self, effects: &mut Vec<PartitionEffect>) {
        while let Some((primary, txns)) = self.confirmations.pop_first() {
            if !txns.is_empty() {
                let applied = ToPartition::Applied { txns, from: self.id };
                effects.push(PartitionEffect::Partition(primary, applied));
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

    /// Whether a watched key of a transaction that has just been prepared had expired by then.
    fn has_lost_watched(&self, txn: TxnId) -> bool {
        let (held, intent) = (self.held.get(&txn), self.replica.intents().get(&txn));
        held.zip(intent).is_some_and(|(held, intent)| {
            self.replica.has_expired_unseen(&held.watched, intent.since)
        })
    }

    /// Does what follows an applied mutation.
    pub(super) fn settle(
        &mut self,
        completion: Completion,
        applied: Applied,
        effects: &mut Vec<PartitionEffect>,
    ) {
        match completion {
            Completion::Nothing | Completion::Reply(_) => {}
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

    /// A transaction has ended here: tells how, and gives up what it held.
    fn ended(
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
