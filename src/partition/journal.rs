//! How a replicated partition changes: what is proposed goes into one entry of its group's log a turn,
//! and what is to follow each mutation waits for that entry to be applied.
//!
//! A *turn* is what the Bucket gives every partition that has something to do once its mailbox is
//! empty: hand the open entry over, drive the group, apply what was committed. The proposer of a
//! mutation hears of it when the entry comes out of the log under the term it went in. If another
//! leader's entry stands in its place, it was surely not executed. If neither is known for too
//! long, its outcome is unknown.

use super::snapshots::ToArchive;
use super::{Partition, PartitionEffect};
use crate::batch::Part;
use crate::batch::machine::Machine;
use crate::consensus::Confirmation;
use crate::consensus::ReplicaId;
use crate::consensus::{Envelope, Group, Output, Persist, Position, Role, TimeTold};
use crate::ids::Term;
use crate::ids::{Millis, NodeId, Now, PartitionId, TxnId};
use crate::partition::bucket::Parked;
use crate::partition::record::EntryWriter;
use crate::partition::replica::{Applied, AppliedAnswers, Mutation};
use crate::rules::{Rule, kept};
use crate::txn::protocol::Decide;
use std::collections::VecDeque;

/// How long a deposed leader waits to learn what became of its entries before it says that it
/// cannot tell.
pub const UNKNOWN_AFTER_MS: u64 = 3_000;

/// Stamps that go on so much later than they ended are worth a line in the log.
const LEAP_TOLD_MS: u64 = 3_600_000;

/// A lease with less left than this is renewed by a read under it.
const RENEW_BELOW_MS: u64 = 150;

/// One operation of a parked batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpWaiter {
    /// The batch.
    pub parked: Parked,
    /// The operation's place in it.
    pub index: u32,
}

/// What follows a mutation once it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Nothing: a message that matters is repeated.
    Nothing,
    /// The reply of a single operation.
    Reply(OpWaiter),
    /// The vote on a prepared share.
    Vote(TxnId),
    /// Whether locks are granted: looked at again then.
    Grant(TxnId),
    /// The answer to a decision.
    Decide(Decide),
    /// The decision that stands, for a participant that asked.
    Tell {
        /// The transaction.
        txn: TxnId,
        /// The participant that asked.
        asker: PartitionId,
    },
    /// The same, among participants whose primary is gone.
    Know {
        /// The transaction.
        txn: TxnId,
        /// The participant that asked.
        asker: PartitionId,
    },
}

/// An entry on its way.
#[derive(Debug)]
pub(super) struct ProposedEntry {
    pub(super) position: Position,
    since: u64,
    pub(super) completions: Vec<Completion>,
}

/// What became of an operation that was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// It ran; its reply is this one of [`Turn::replies`].
    Replied(u32),
    /// It only reads, and was not executed, for there are many replies already.
    Left,
    /// It was not even proposed: it may be asked of the leader.
    NotLeader,
    /// It was proposed, and another leader's entry took its place: it was not executed.
    Deposed,
    /// It was proposed, and what became of it cannot be told.
    Unknown,
}

/// What a turn brought.
#[derive(Debug, Default)]
pub struct Turn {
    /// Messages of the group for other nodes.
    pub messages: Vec<Envelope>,
    /// What the log has to keep, in order.
    pub persists: Vec<Persist>,
    /// Operations that are answered.
    pub outcomes: Vec<(OpWaiter, OpOutcome)>,
    /// What was applied last, with its replies.
    answers: AppliedAnswers,
    /// Replies of operations, one after the other.
    pub replies: crate::batch::Replies,
    /// The leader and its term, if that has changed.
    pub leader: Option<(NodeId, Term)>,
    /// Whether this node's office here began or ended.
    pub office: Option<bool>,
    /// What the archive is asked.
    pub orders: Vec<ToArchive>,
    /// The replicas in the group, if that has changed.
    pub members: Vec<ReplicaId>,
    output: Output,
}

/// What makes sure that no other replica leads now.
pub(super) enum Certainty {
    /// A lease.
    Lease,
    /// This confirmation, once it has come.
    Asked(Confirmation),
    /// Nothing: this one does not lead, or does not serve yet.
    None,
}

/// The log side of a replicated partition.
pub struct Journal {
    group: Group,
    writer: EntryWriter,
    /// What follows the mutations in `writer`, in their order.
    completions: Vec<Completion>,
    pub(super) flights: VecDeque<ProposedEntry>,
    proposed: u64,
    settled: u64,
    /// This node leads, and everything of earlier terms is applied.
    leads: bool,
    /// The latest confirmation of its leadership.
    confirmed: Option<Confirmation>,
    /// The batch that proposed last: its later reads have to come after what it proposed.
    batch: Option<Parked>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("term", &self.group.term())
            .field("leads", &self.leads)
            .field("applied", &self.group.applied_index())
            .field("flights", &self.flights)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// The journal of a group.
    pub fn new(group: Group) -> Journal {
        Journal {
            group,
            writer: EntryWriter::new(),
            completions: Vec::new(),
            flights: VecDeque::new(),
            proposed: 0,
            settled: 0,
            leads: false,
            confirmed: None,
            batch: None,
        }
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The same, for messages, ticks and syncs.
    pub fn group_mut(&mut self) -> &mut Group {
        &mut self.group
    }

    /// Whether this node leads and serves.
    #[inline]
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// How many mutations were proposed so far.
    pub fn proposed(&self) -> u64 {
        self.proposed
    }

    /// How many of them are not applied yet.
    pub fn backlog(&self) -> u64 {
        self.proposed - self.settled
    }

    /// Whether the first `proposed` of them are.
    pub fn has_settled(&self, proposed: u64) -> bool {
        self.settled >= proposed
    }

    /// Whether nothing is on its way.
    pub fn is_calm(&self) -> bool {
        self.writer.is_empty() && self.flights.is_empty()
    }

    /// The entry that takes the next mutation is to be synced, whatever the partition's table says.
    pub fn sync(&mut self) {
        self.writer.sync();
    }

    /// Takes a mutation for the next entry.
    pub fn propose(&mut self, mutation: Mutation<'_>, completion: Completion) {
        if let Completion::Reply(waiter) = &completion {
            self.batch = Some(waiter.parked);
        }
        self.proposed += 1;
        match mutation {
            Mutation::Run(op) => self.writer.run(&op),
            Mutation::Expire(table, key) => self.writer.expire(table, key),
            Mutation::Prepare(prepare, claims) => self.writer.prepare(&prepare, claims),
            Mutation::Decide(txn, verdict) => self.writer.decide(txn, verdict),
            Mutation::Applied(txns, from) => self.writer.applied(&txns, from),
            Mutation::Began(node, life) => self.writer.began(node, life),
        }
        self.completions.push(completion);
    }

    /// Whether an operation may read what is applied: under a lease, and not behind what its own
    /// batch has proposed.
    #[inline]
    pub fn may_read(&mut self, now: Now, waiter: OpWaiter) -> bool {
        self.batch != Some(waiter.parked) && self.has_lease(now)
    }

    /// Whether no other replica can lead now. Asks for a lease if there is none, or not for long.
    #[inline]
    pub fn has_lease(&mut self, now: Now) -> bool {
        // A read that waits looks again at the next turn.
        matches!(self.certainty(now), Certainty::Lease)
    }

    /// The same, and what there is to wait for where there is no lease.
    #[inline]
    pub(super) fn certainty(&mut self, now: Now) -> Certainty {
        let until = self.group.lease_until(now);
        let asks = until < now.mono + RENEW_BELOW_MS;
        let asked = asks.then(|| self.group.confirm(now)).flatten();
        match self.group.holds_lease(now) || !kept(Rule::ReadsNeedLease) {
            true => Certainty::Lease,
            false => asked.map_or(Certainty::None, Certainty::Asked),
        }
    }

    /// Whether a majority has confirmed this leader since it asked.
    pub fn is_confirmed(&self, asked: Confirmation) -> bool {
        self.confirmed >= Some(asked)
    }

    /// Hands the open entry to the group. What it does not take comes back.
    fn propose_entry(&mut self, stamp: crate::ids::Millis, mono: u64) -> Vec<Completion> {
        if self.writer.is_empty() {
            return Vec::new();
        }
        let entry = self.writer.take(stamp);
        let completions = std::mem::take(&mut self.completions);
        self.batch = None;
        match self.leads.then(|| self.group.propose(entry)).flatten() {
            Some(position) => {
                self.flights.push_back(ProposedEntry { position, since: mono, completions });
                Vec::new()
            }
            None => completions,
        }
    }
}

impl<M: Machine> Partition<M> {
    /// Gives a replicated partition its turn.
    ///
    /// # Errors
    /// In words, when a committed entry cannot be read: the node must stop.
    pub fn turn(
        &mut self,
        now: Now,
        effects: &mut Vec<PartitionEffect>,
        turn: &mut Turn,
    ) -> Result<(), String> {
        let stamp = match self.is_led_here() {
            true => {
                self.tell_leap(now);
                self.stamp(now)
            }
            // Nothing is proposed.
            false => self.replica.stamped(),
        };
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let unproposed = journal.propose_entry(stamp, now.mono);
        self.give_back(unproposed, effects, turn);
        let mut output = std::mem::take(&mut turn.output);
        let result = self.drive(now, &mut output, effects, turn);
        turn.output = output;
        self.run_deferred(now, effects);
        result
    }

    /// Says that stamps are about to go on much later than they ended: either there was no leader
    /// for so long, or the wall clock of this node is wrong.
    fn tell_leap(&self, now: Now) {
        let leap = self.stamps.leap(now, self.replica.stamped()).unwrap_or(0);
        if leap >= LEAP_TOLD_MS {
            log::warn!(
                target: "clock",
                "partition {}: by this node's clock nobody led for {} s, keys expire accordingly",
                self.id,
                leap / 1_000
            );
        }
    }

    /// Whether there is more to do than the last turn did.
    pub fn wants_turn(&self) -> bool {
        self.journal
            .as_ref()
            .is_some_and(|journal| !journal.writer.is_empty() || journal.group.has_output())
    }

    /// Whether a turn would come to anything after the group was told something.
    pub fn is_stirred(&self) -> bool {
        self.wants_turn() || !self.deferred.is_empty()
    }

    fn drive(
        &mut self,
        now: Now,
        output: &mut Output,
        effects: &mut Vec<PartitionEffect>,
        turn: &mut Turn,
    ) -> Result<(), String> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        journal.group.note_time(self.stamps.known());
        journal.group.drive(now, output);
        turn.messages.append(&mut output.messages);
        journal.confirmed = journal.confirmed.max(output.confirmed);
        if let Some(members) = &output.members {
            // The next change tells of a joint configuration's end.
            if !members.is_joint() {
                let voters: Vec<String> = members.voters.iter().map(ToString::to_string).collect();
                let voters = voters.join(", ");
                log::info!(target: "raft", "partition {}: replicas {voters} vote", self.id);
            }
            turn.members.extend(members.voters.iter().chain(&members.learners));
            // The one on offer has the members of before: a replica that is not among them would
            // refuse it, and the others would not learn of that one. A replica that needs one asks
            // for another; for the log's sake none is due, a restart finds the changes in it.
            journal.group.withdraw_snapshot();
        }
        turn.orders.extend(output.snapshots.drain(..).map(ToArchive::Send));
        if !output.wants_snapshot.is_empty() {
            self.ask_for_snapshot(&mut turn.orders);
        }
        for incoming in output.persist.iter().filter_map(|persist| persist.snapshot.as_ref()) {
            self.install(incoming, turn)?;
        }
        self.drop_arrived();
        turn.persists.append(&mut output.persist);
        let committed = std::mem::take(&mut output.committed);
        for entry in &committed {
            self.apply(entry.index, entry.term, &entry.data, effects, turn)?;
        }
        if let (Some(last), Some(journal)) = (committed.last(), &mut self.journal) {
            journal.group.applied(last.index);
            // A leader has said that this life began: what it stamps since is of this time.
            if !journal.leads && self.replica.life_of(self.node) >= Some(self.life) {
                self.stamps.follow(self.replica.stamped(), now.mono);
            }
        }
        output.committed = committed;
        output.clear();
        self.see_leadership(now, effects, turn);
        self.give_up_old(now.mono, turn);
        Ok(())
    }

    fn apply(
        &mut self,
        index: u64,
        term: u64,
        entry: &[u8],
        effects: &mut Vec<PartitionEffect>,
        turn: &mut Turn,
    ) -> Result<(), String> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let mut own = None;
        while let Some(flight) = journal.flights.front()
            && flight.position.index <= index
        {
            let Some(flight) = journal.flights.pop_front() else { break };
            if flight.position == (Position { term, index }) {
                own = Some(flight.completions);
            } else {
                journal.settled += flight.completions.len() as u64;
                lose(flight.completions, OpOutcome::Deposed, turn);
            }
        }
        self.snapshots.applied(entry.len());
        if entry.is_empty() {
            return Ok(());
        }
        let mut answers = std::mem::take(&mut turn.answers);
        answers.waiting = turn.replies.bytes.len();
        let applied = self.replica.apply_entry(entry, own.is_some(), &mut answers);
        if let Err(damaged) = applied {
            return Err(format!("partition {}, entry {index}: {damaged}", self.id));
        }
        let (mut run, mut others) = (0, answers.applied.drain(..));
        let mut settled = 0;
        for completion in own.into_iter().flatten() {
            settled += 1;
            match completion {
                Completion::Reply(waiter) => {
                    let outcome = match answers.replies.part(run) {
                        Part::Answered(reply) => {
                            turn.replies.push(reply);
                            OpOutcome::Replied(turn.replies.len() as u32 - 1)
                        }
                        Part::Left | Part::NotLeader => OpOutcome::Left,
                    };
                    turn.outcomes.push((waiter, outcome));
                    run += 1;
                }
                completion => {
                    let applied = others.next().unwrap_or(Applied::Refused);
                    self.settle(completion, applied, effects);
                }
            }
        }
        drop(others);
        answers.clear();
        turn.answers = answers;
        if let Some(journal) = &mut self.journal {
            journal.settled += settled;
        }
        Ok(())
    }

    /// Takes or leaves office as the group says.
    fn see_leadership(&mut self, now: Now, effects: &mut Vec<PartitionEffect>, turn: &mut Turn) {
        let Some(journal) = &mut self.journal else { return };
        let term = Term(journal.group.term());
        let may_serve = journal.group.is_serving()
            || !kept(Rule::LeadersApplyFirst) && journal.group.role() == Role::Leader;
        let leads = journal.leads;
        let serves = may_serve && (leads || self.learns_the_time(now));
        let Some(journal) = &mut self.journal else { return };
        let deposed = journal.leads && (!serves || term != self.term);
        if deposed {
            journal.leads = false;
            let unproposed = std::mem::take(&mut journal.completions);
            journal.writer = EntryWriter::new();
            turn.office = Some(false);
            self.leave_office(effects);
            self.give_back(unproposed, effects, turn);
        }
        let Some(journal) = &mut self.journal else { return };
        if serves && !journal.leads {
            journal.leads = true;
            // What an earlier office proposed is applied by now, or is in no log that counts:
            // entries of this term will take its places.
            for flight in journal.flights.drain(..) {
                lose(flight.completions, OpOutcome::Deposed, turn);
            }
            (journal.proposed, journal.settled) = (0, 0);
            journal.confirmed = None;
            turn.office = Some(true);
            turn.leader = Some((self.node, term));
            self.take_office(term);
        } else if !serves
            && let Some(leader) = journal.group.leader()
            && leader.node() != self.node
            && term > self.term
        {
            self.term = term;
            turn.leader = Some((leader.node(), term));
        }
    }

    /// Whether stamps can go on, once this node leads: by what it knows, by what it is told, or
    /// because no voter can tell it.
    fn learns_the_time(&mut self, now: Now) -> bool {
        let Some(journal) = &self.journal else { return true };
        let nothing_stamped = self.replica.stamped() == Millis(0);
        if self.stamps.known().is_some() || nothing_stamped || !kept(Rule::OthersTellTheTime) {
            return true;
        }
        match journal.group.time_told() {
            TimeTold::Time(stamp) => {
                self.stamps.follow(stamp.max(self.replica.stamped()), now.mono);
                true
            }
            TimeTold::Nothing => true,
            TimeTold::Waiting => false,
        }
    }

    /// Turns back what was not proposed.
    fn give_back(
        &mut self,
        completions: Vec<Completion>,
        effects: &mut Vec<PartitionEffect>,
        turn: &mut Turn,
    ) {
        if let Some(journal) = &mut self.journal {
            journal.settled += completions.len() as u64;
        }
        for completion in completions {
            match completion {
                Completion::Reply(waiter) => turn.outcomes.push((waiter, OpOutcome::NotLeader)),
                Completion::Vote(txn) => {
                    self.release(txn, effects);
                    self.refuse(txn, effects);
                }
                // Not again here: what is given back would be so until another node leads.
                Completion::Grant(txn) => {
                    let deferred = self.deferred.len();
                    self.deferred.retain(|deferred| deferred.txn() != txn);
                    if self.deferred.len() < deferred {
                        self.release(txn, effects);
                        self.refuse(txn, effects);
                    }
                }
                Completion::Decide(Decide { txn, deciding: true, .. }) => self.refuse(txn, effects),
                // What waits for these asks again.
                Completion::Decide(_)
                | Completion::Tell { .. }
                | Completion::Know { .. }
                | Completion::Nothing => {}
            }
        }
    }

    /// Says of entries of a lost office that their outcome is unknown.
    fn give_up_old(&mut self, mono: u64, turn: &mut Turn) {
        let Some(journal) = &mut self.journal else { return };
        if journal.leads {
            return;
        }
        // The group may commit nothing for long, or never anything at the entry's place.
        while let Some(flight) = journal.flights.front()
            && flight.since.saturating_add(UNKNOWN_AFTER_MS) <= mono
            && let Some(flight) = journal.flights.pop_front()
        {
            journal.settled += flight.completions.len() as u64;
            lose(flight.completions, OpOutcome::Unknown, turn);
        }
    }
}

pub(super) fn lose(completions: Vec<Completion>, outcome: OpOutcome, turn: &mut Turn) {
    for completion in completions {
        if let Completion::Reply(waiter) = completion {
            turn.outcomes.push((waiter, outcome));
        }
    }
}
