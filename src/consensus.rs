//! One partition's raft group, as one of its replicas sees it.
//!
//! [`Group`] is a state machine around the raft crate's, and this file and those below it are the
//! only ones that meet that crate. Messages of peers, proposals, time and the news that something
//! is durable or applied go in; [`Group::drive`] brings out what is to be done: messages to send
//! now, entries to log and sync, entries to apply. Nothing here knows a socket, a file or a clock.
//!
//! ```text
//!              step  propose  tick  confirm
//!                 \     |      |     /
//!                  v    v      v    v
//!   persisted ---> [      Group      ] <--- applied
//!                           |
//!                         drive
//!          .--------------.-+-----------.--------------.
//!          v              v             v              v
//!       messages       persist      committed      confirmed
//!     (send at once)  (log, sync)  (apply, in     (reads that
//!                                    order)          waited)
//! ```
//!
//! **The order of duties.** A leader's appends leave at once, beside its own sync and not after it;
//! a follower's acknowledgement, and whatever else depends on its disk, is held here until
//! [`Group::persisted`] says that what it depends on is durable. So the caller sends all that it is
//! given. What needs no disk does not wait for it, unless something before it does: readies are
//! persisted in order.
//!
//! **What is logged.** Term and vote when they change, and entries; never the commit index, which is
//! found again by the next leader. One thing hangs on it: a configuration takes effect once it is
//! committed, and a replica that forgot two of them could elect with a majority that shares no
//! replica with the present one. So on recovery every change of members but the last one in the log
//! counts as committed: a leader proposes a change only after the one before is applied. Behind a
//! change of voters it proposes one that changes nothing, so that replicas that restart do not go
//! on asking those that have left ([`Group::conclude`]).
//!
//! **Reads** are answered under a lease ([`Group::holds_lease`]) or, while there is none, after a
//! confirmation asked for later than they came ([`Group::confirm`]). See [`lease`].
//!
//! **Snapshots** travel outside raft: the leader's caller makes one and offers it
//! ([`Group::offer_snapshot`]); what [`Output::snapshots`] then says is stream the bulk to that
//! replica and hand it the message once the bulk has arrived.
//!
//! The raft crate's traps are named where they are avoided.

mod bridge;
mod lease;
mod log;
mod members;
mod output;
mod pace;
mod replace;
pub(super) mod rules;
mod setup;
mod survivor;
mod time;
mod wire;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use self::lease::Confirmation;
pub use self::log::{HEAD_BYTES, LogHead};
pub use self::members::{MemberChange, Members, ReplicaId};
pub use self::output::{
    Committed, Envelope, Incoming, Logged, Outgoing, Output, Persist, STATE_BYTES, SnapshotMeta,
};
pub use self::setup::{Recovered, Setup};
pub use self::survivor::{Survivor, survive};
pub use self::time::TimeTold;
pub use self::wire::is_beat;

use self::lease::{Lease, Promise};
use self::log::Log;
use self::pace::{Ticks, Timeouts};
use self::rules::{GroupRule, kept};
use self::time::Hearsay;
use crate::ids::{Millis, NodeId, Now};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, RawNode, Ready, SnapshotStatus, StateRole};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The longest message that is stepped.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A follower keeps so many times the bytes of entries that a leader does: it does not know what
/// the other followers lack, and may lead them next.
const FOLLOWERS_RETAIN: u64 = 4;

/// The longest proposal: with its message around it, it still fits.
pub const PROPOSAL_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// Where a proposal stands in the log. Only if the entry that is applied at `index` is of `term` was
/// it this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The term of the leader that appended it.
    pub term: u64,
    /// The place in the log, from 1.
    pub index: u64,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
}

impl From<StateRole> for Role {
    fn from(role: StateRole) -> Role {
        match role {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate | StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

/// The leader, as far as this replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its own part.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// The leader of that term, if known.
    pub leader: Option<ReplicaId>,
}

/// How far a replica is, as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The replica.
    pub id: ReplicaId,
    /// The last entry it is known to hold.
    pub matched: u64,
    /// Whether it was heard within the last election timeout.
    pub is_active: bool,
    /// Whether it waits for a snapshot that is under way.
    pub awaits_snapshot: bool,
}

/// A ready whose messages wait for the disk.
struct HeldReady {
    number: u64,
    /// When it was given to the disk, in ticks.
    since: usize,
    /// Bytes of its entries.
    bytes: u64,
    /// Whether there is anything of its own to wait for; if not, it only keeps its place.
    on_disk: bool,
    messages: Vec<Message>,
    /// The index of the snapshot that it installs.
    snapshot: Option<u64>,
}

/// One replica of a partition's group.
pub struct Group {
    id: ReplicaId,
    raw: RawNode<Log>,
    ticks: Ticks,
    timeouts: Timeouts,
    promise: Promise,
    lease: Lease,
    retain_bytes: u64,
    election_ticks: usize,
    window_bytes: u64,
    appends_max: usize,
    /// The appends that may be under way to a follower now.
    window: usize,
    unsynced_bytes_max: u64,
    /// Bytes of entries that the disk has not got yet.
    unsynced_bytes: u64,
    /// Leadership was offered to another because of the disk.
    yields: bool,
    /// The latest moment that was told.
    now: Now,
    held: VecDeque<HeldReady>,
    /// Messages whose time has come since the last drive.
    released: Vec<Message>,
    /// The configuration as of what is applied, and those committed since, by index.
    members: Members,
    members_ahead: VecDeque<(u64, Members)>,
    /// The latest change that is committed changed the voters.
    is_open: bool,
    /// Term and role that lease and timeouts are for.
    standing: (u64, StateRole),
    /// What the voters know of the group's time.
    hearsay: Hearsay,
    /// What was told last.
    told: Change,
}

impl Group {
    /// The replica as its disk has it, at `mono` (ms of the node's monotonic clock).
    ///
    /// Fails on what no log of a replica looks like; that is for the operator.
    pub fn new(setup: &Setup, recovered: Recovered, mono: u64) -> Result<Group, String> {
        Group::recover(setup, recovered, mono, false)
    }

    /// The same; `all_counts` takes everything in the log for committed.
    fn recover(
        setup: &Setup,
        recovered: Recovered,
        mono: u64,
        all_counts: bool,
    ) -> Result<Group, String> {
        if setup.election_ticks < 4 || setup.tick_ms == 0 {
            return Err("an election timeout is at least 4 ticks, and a tick 1 ms".into());
        }
        let restarts = !recovered.is_empty();
        let first = Members::of(setup.voters.iter().copied());
        let snapshot = recovered.snapshot.as_ref();
        let (mut log, left_out) = Log::recover(first, snapshot, &recovered.entries)?;
        if let Some(index) = left_out {
            ::log::info!("replica {}: entries from {index} on were replaced, left out", setup.id);
        }
        let applied = snapshot.map_or(0, |meta| meta.index);
        let changes = changes_of_members(&log, applied);
        let committed = if all_counts { log.last() } else { changes.known_committed };
        log.set_state(read_state(&recovered, &log, committed.max(applied))?);
        log.compact(applied, setup.retain_bytes);
        let members = log.members().clone();
        // A sole voter that was never anything else has made no promise.
        let alone = members.is_sole() && members.votes(setup.id) && !changes.any;

        let raw = RawNode::new(&setup.config(applied), log, &bridge::logger())
            .map_err(|e| format!("replica {}: {e}", setup.id))?;
        let mut group = Group {
            id: setup.id,
            ticks: Ticks::new(setup.tick_ms, mono),
            timeouts: setup.timeouts(),
            promise: Promise::new(setup.promise_ms()),
            lease: Lease::new(setup.lease_ms(), setup.lease_drift_ms()),
            retain_bytes: setup.retain_bytes,
            election_ticks: setup.election_ticks,
            window_bytes: setup.window_bytes,
            appends_max: setup.appends_max,
            window: setup.appends_max,
            unsynced_bytes_max: setup.unsynced_bytes_max,
            unsynced_bytes: 0,
            yields: false,
            now: Now { mono, ..Now::default() },
            held: VecDeque::new(),
            released: Vec::new(),
            members,
            members_ahead: VecDeque::new(),
            is_open: false,
            standing: (raw.raft.term, raw.raft.state),
            hearsay: Hearsay::default(),
            told: Change { role: Role::Follower, term: raw.raft.term, leader: None },
            raw,
        };
        if restarts && !alone && kept(GroupRule::RestartedVotersKeepPromises) {
            group.promise.renew(mono);
        }
        group.settle();
        Ok(group)
    }

    /// Goes on under the id of `setup`, with the log as it is. For a replica that may have lost the
    /// end of its log and has said nothing since: what it acknowledged binds its old name, and the
    /// new one, a stranger to the group, is bound by nothing. What is left of the log are entries
    /// that the group appended, so the leader finds the place up to which they agree as it does for
    /// any follower.
    ///
    /// Fails where raft would not begin with what is there; nothing has changed then.
    pub fn rename(&mut self, setup: &Setup) -> Result<(), String> {
        assert!(self.held.is_empty() && self.released.is_empty(), "a replica that spoke is bound");
        let log = self.raw.store().clone();
        self.raw = RawNode::new(&setup.config(self.applied_index()), log, &bridge::logger())
            .map_err(|e| format!("replica {}: {e}", setup.id))?;
        self.id = setup.id;
        self.timeouts = setup.timeouts();
        self.standing = (self.raw.raft.term, self.raw.raft.state);
        self.settle();
        Ok(())
    }

    /// Lets time pass. However late it is called, it is one tick at most. Tells whether there may be
    /// something to bring out because of it.
    pub fn tick(&mut self, now: Now) -> bool {
        self.pass(now);
        let asked = self.ask_again();
        if !self.ticks.due(self.now.mono) {
            return asked;
        }
        if self.yield_to_a_faster_disk() {
            return true;
        }
        let raft = &self.raw.raft;
        let stands = raft.state != StateRole::Leader
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        let beats = raft.state == StateRole::Leader
            && raft.heartbeat_elapsed() + 1 >= raft.heartbeat_timeout();
        // The groups of a node beat together, for the sake of fewer packets: a new leader's beats
        // are moved by less than the time between two, once.
        let is_early = beats && !self.ticks.count().is_multiple_of(raft.heartbeat_timeout());
        if stands && !self.may_stand() || is_early {
            return asked;
        }
        let ticked = self.raw.tick();
        self.settle();
        let concluded = self.conclude();
        asked || ticked || concluded
    }

    /// Stands for election at once: for the designated first leader of a new group, and for the
    /// only voter of one. Does nothing where a promise forbids it, and lets votes under way come in.
    pub fn campaign(&mut self) {
        if matches!(self.raw.raft.state, StateRole::Leader | StateRole::Candidate)
            || !self.raw.raft.promotable()
            || !self.may_stand()
        {
            return;
        }
        if let Err(e) = self.raw.campaign() {
            ::log::debug!("replica {} cannot stand for election: {e}", self.id);
        }
        self.settle();
    }

    /// The process on `node` is known to be dead. If its replica leads the present term as far as
    /// this one knows, it is not waited for: this replica votes for any candidate, and may stand
    /// itself. Tells whether that is so.
    ///
    /// **Why that is safe.** A promise protects reads that a leader answers under its lease. Votes
    /// given while it binds do harm only if the process that it was made to still answers. So it
    /// takes certainty that the process does not: its own side closed its streams here, after
    /// everything on them was read, and after that no process listened where it listens for as long
    /// as it lives. Silence, a reset or a timeout are no such evidence, and neither is a refusal
    /// alone: a firewall refuses in the name of a process that lives. Each voter needs evidence of
    /// its own, for the others keep their promises. Promises to leaders before this one need no
    /// keeping: that it was elected shows their leases to be over. And a later process of the node
    /// has to be elected before it has a lease.
    pub fn leader_is_dead(&mut self, node: NodeId) -> bool {
        let leader = self.leader().filter(|leader| leader.node() == node && *leader != self.id);
        if leader.is_none() || self.raw.raft.state != StateRole::Follower {
            return false;
        }
        self.promise.release();
        // The raft crate refuses votes as well while it has heard a leader lately.
        self.raw.raft.leader_id = 0;
        true
    }

    /// Takes a peer's message, received at `now`. What cannot be one is refused with a reason. Its
    /// entries go on using the message's bytes.
    pub fn step(&mut self, message: &Bytes, now: Now) -> Result<(), String> {
        self.pass(now);
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(format!("a message of {} bytes is too long", message.len()));
        }
        let receiver = wire::Receiver {
            id: self.id,
            term: self.raw.raft.term,
            last_index: self.raw.raft.raft_log.last_index(),
            leads: self.raw.raft.state == StateRole::Leader,
        };
        let Some(mut message) = wire::read(message, &receiver)? else { return Ok(()) };
        if message.msg_type == MessageType::MsgAppend
            && !message.entries.is_empty()
            && self.unsynced_bytes > self.unsynced_bytes_max
        {
            // As if it were lost: the leader finds out, and sends no more than is acknowledged.
            return Ok(());
        }
        if message.msg_type == MessageType::MsgAppend && message.term >= receiver.term {
            self.check_history(&message)?;
        }
        match message.msg_type {
            // A vote that the leader asked for itself breaks no promise.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.promise.binds(self.now.mono) && message.context != CAMPAIGN_TRANSFER =>
            {
                return Ok(());
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
                if message.term >= receiver.term && kept(GroupRule::VotersKeepPromises) =>
            {
                self.promise.renew(self.now.mono);
            }
            MessageType::MsgTimeoutNow if !self.log_is_whole() || self.disk_hangs() => {
                return Ok(());
            }
            _ => {}
        }
        let from = ReplicaId(message.from);
        let (kind, of_term) = (message.msg_type, message.term);
        // In other messages the field is the raft crate's.
        let context = match kind {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => {
                std::mem::take(&mut message.context)
            }
            _ => Bytes::new(),
        };
        let stepped = self.raw.step(message);
        self.settle();
        // Not before: the message may have begun a term.
        match kind {
            MessageType::MsgAppend => self.hearsay.asked(from, &context),
            MessageType::MsgAppendResponse
                if self.raw.raft.state == StateRole::Leader
                    && of_term == self.raw.raft.term
                    && self.latest_members().votes(from) =>
            {
                self.hearsay.told(from, &context);
            }
            _ => {}
        }
        match stepped {
            // An answer of a replica that has left.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(e) => Err(format!("a message of replica {from}: {e}")),
        }
    }

    /// Refuses a leader whose log contradicts what is committed here: the raft crate would take its
    /// entries for known ones and acknowledge them. It comes to that only after a majority has lost
    /// the end of its log at once, as it may where nothing is synced before it is acknowledged.
    ///
    /// Terms and commit index are both those of the raft crate's log. The store lags behind it
    /// until the group is driven: it may still hold a tail that an earlier append replaced.
    fn check_history(&self, append: &Message) -> Result<(), String> {
        let before = (append.index, append.log_term);
        let entries = append.entries.iter().map(|entry| (entry.index, entry.term));
        let log = &self.raw.raft.raft_log;
        let differs = |(index, term): &(u64, u64)| {
            // The crate's term 0 is that of an entry which it does not have.
            let ours = log.term(*index).unwrap_or_default();
            *index <= log.committed && ours != 0 && ours != *term
        };
        match std::iter::once(before).chain(entries).find(differs) {
            None => Ok(()),
            Some((index, _)) => Err(format!(
                "its group has lost entry {index}, which is committed here: stop this node, move \
                 its data directory away and start it, so that it begins anew from the others"
            )),
        }
    }

    /// Appends `data` as one entry and says where, if this replica leads and serves. If it does not,
    /// hands over, or has too much uncommitted, nothing happened and nothing will: a raft follower
    /// would forward a proposal, and this replica would not learn what became of it.
    pub fn propose(&mut self, data: Bytes) -> Option<Position> {
        if !self.is_serving() || data.is_empty() || data.len() > PROPOSAL_BYTES_MAX {
            return None;
        }
        self.append(Entry { data, ..Entry::default() })
    }

    /// Proposes a change of members, as a serving leader with no other change under way. A leader
    /// does not remove itself: it hands over first.
    pub fn change(&mut self, change: MemberChange) -> Option<Position> {
        let itself = change.leaving() == Some(self.id);
        if itself || !self.may_change() || !change.fits(self.latest_members()) {
            return None;
        }
        self.append_change(Bytes::from(ConfChangeV2::from(change).write_to_bytes().ok()?))
    }

    /// Concludes a change that is applied here, and tells whether there was one. The present leader
    /// does that, for the proposer may be gone. A joint configuration is left. Where it was left,
    /// or the voters changed otherwise, follows a change of nothing: all but the last change in a
    /// log count as committed after a restart, so this one makes the other count.
    fn conclude(&mut self) -> bool {
        let is_joint = self.latest_members().is_joint();
        let concludes = is_joint || self.is_open && kept(GroupRule::ChangesAreConcluded);
        if !concludes || !self.may_change() {
            return false;
        }
        let change = if is_joint { ConfChangeV2::default() } else { members::no_change() };
        let data = change.write_to_bytes().map(Bytes::from);
        data.is_ok_and(|data| self.append_change(data).is_some())
    }

    fn may_change(&self) -> bool {
        self.is_serving() && !self.raw.raft.has_pending_conf()
    }

    fn append_change(&mut self, data: Bytes) -> Option<Position> {
        self.append(Entry { entry_type: EntryType::EntryConfChangeV2, data, ..Entry::default() })
    }

    fn append(&mut self, entry: Entry) -> Option<Position> {
        self.fit_window(entry.data.len());
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id.0;
        message.mut_entries().push(entry);
        let appended = self.raw.raft.step(message);
        self.settle();
        appended.ok()?;
        let raft = &self.raw.raft;
        Some(Position { term: raft.term, index: raft.raft_log.last_index() })
    }

    /// Has no more appends under way to a follower than the window's bytes, if all entries were as
    /// long as the one to come.
    fn fit_window(&mut self, entry_bytes: usize) {
        let fits = self.window_bytes / (entry_bytes as u64).max(1);
        let window = usize::try_from(fits).unwrap_or(usize::MAX).clamp(1, self.appends_max);
        if window != std::mem::replace(&mut self.window, window) {
            let raft = &mut self.raw.raft;
            let ids: Vec<u64> = raft.prs().iter().map(|(id, _)| *id).collect();
            ids.into_iter().for_each(|id| raft.adjust_max_inflight_msgs(id, window));
        }
    }

    /// Whether the disk has not answered for an election timeout. Counted in ticks, so that a pause
    /// of the process is no hanging disk.
    pub fn disk_hangs(&self) -> bool {
        let oldest = self.held.iter().find(|held| held.on_disk);
        oldest
            .is_some_and(|held| self.ticks.count().wrapping_sub(held.since) >= self.election_ticks)
    }

    /// Gives leadership up where nothing but this replica's disk holds the group up: the others have
    /// an entry that is not safe here after an election timeout. The most advanced of them is asked
    /// to lead; if it does not within a further election timeout, this replica stops leading, and
    /// the others elect. Where their disks are no faster, another leader would be no better. Tells
    /// whether there is anything to bring out.
    fn yield_to_a_faster_disk(&mut self) -> bool {
        let log = &self.raw.raft.raft_log;
        let leads = self.raw.raft.state == StateRole::Leader;
        let hangs = self.disk_hangs() && kept(GroupRule::HungDisksYield);
        if !leads || log.committed <= log.persisted || !hangs {
            self.yields = false;
            return false;
        }
        if self.is_transferring() {
            return false;
        }
        let others = self.progress().into_iter().filter(|one| one.id != self.id && one.is_active);
        let voters = others.filter(|one| self.latest_members().votes(one.id));
        let best = voters.max_by_key(|one| one.matched).map(|one| one.id);
        if !std::mem::replace(&mut self.yields, true)
            && let Some(to) = best
            && self.transfer(to)
        {
            ::log::warn!("replica {}: its disk hangs, replica {to} is asked to lead", self.id);
            return true;
        }
        ::log::warn!("replica {}: its disk hangs, it stops leading", self.id);
        self.lease.give_up();
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, 0);
        self.settle();
        true
    }

    /// Brings out what is to be done at `now`. To be called after anything else here was; what it
    /// puts into `out` is added to what is there.
    pub fn drive(&mut self, now: Now, out: &mut Output) {
        self.pass(now);
        self.ask_again();
        self.send_released(out);
        while self.raw.has_ready() {
            let ready = self.raw.ready();
            self.handle(ready, out);
        }
        out.wants_snapshot.extend(self.raw.mut_store().take_wanted().into_iter().map(ReplicaId));
        let change = Change { role: self.role(), term: self.term(), leader: self.leader() };
        if change != self.told {
            self.told = change;
            out.changed = Some(change);
        }
    }

    /// Whether [`Group::drive`] has anything to bring out.
    pub fn has_output(&self) -> bool {
        !self.released.is_empty() || self.raw.store().has_wanted() || self.raw.has_ready()
    }

    fn handle(&mut self, mut ready: Ready, out: &mut Output) {
        let number = ready.number();
        self.send(ready.take_messages(), out);
        let mut messages = ready.take_persisted_messages();
        let mut persist = Persist { number, snapshot: None, state: None, entries: Vec::new() };
        if !ready.snapshot().is_empty() {
            persist.snapshot = self.restore(ready.snapshot());
        }
        if let Some(state) = ready.hs() {
            if self.raw.store().state_differs(state) {
                persist.state = Some(write_state(state));
            }
            self.raw.mut_store().set_state(state.clone());
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(entries, &mut persist.entries);
        let committed = ready.take_committed_entries();
        let reads = ready.take_read_states();
        self.raw.advance_append_async(ready);

        if !kept(GroupRule::AcknowledgeAfterSync) {
            self.send(std::mem::take(&mut messages), out);
        }
        let on_disk =
            persist.snapshot.is_some() || persist.state.is_some() || !persist.entries.is_empty();
        if !on_disk && self.held.is_empty() {
            self.raw.on_persist_ready(number);
            self.send(std::mem::take(&mut messages), out);
        } else {
            let snapshot = persist.snapshot.as_ref().map(|incoming| incoming.meta.index);
            let bytes = persist.entries.iter().map(|entry| entry.data.len() as u64).sum();
            self.unsynced_bytes += bytes;
            let since = self.ticks.count();
            self.held.push_back(HeldReady { number, since, bytes, on_disk, messages, snapshot });
            if on_disk {
                out.persist.push(persist);
            }
        }
        for read in reads {
            let ticket = read.request_ctx.as_slice().try_into().map(u64::from_le_bytes);
            let Ok(ticket) = ticket else { continue };
            let transferring = self.is_transferring() && kept(GroupRule::HandingOverEndsLease);
            let confirmed = self.lease.confirm(Confirmation(ticket), self.now, transferring);
            out.confirmed = confirmed.max(out.confirmed);
        }
        for entry in committed {
            self.commit(entry, out);
        }
        self.settle();
    }

    fn restore(&mut self, snapshot: &raft::eraftpb::Snapshot) -> Option<Incoming> {
        let metadata = snapshot.get_metadata();
        let members = Members::try_from(metadata.get_conf_state());
        // Checked when its message came.
        assert!(members.is_ok(), "the group accepted a snapshot of {members:?}");
        let members = members.ok()?;
        self.is_open = false;
        self.members_ahead.push_back((metadata.index, members.clone()));
        let meta = SnapshotMeta { index: metadata.index, term: metadata.term, members };
        let incoming = Incoming { meta, token: snapshot.data.clone() };
        self.raw.mut_store().restore(&incoming);
        Some(incoming)
    }

    fn commit(&mut self, entry: Entry, out: &mut Output) {
        let (index, term) = (entry.index, entry.term);
        if entry.entry_type == EntryType::EntryNormal {
            out.committed.push(Committed { index, term, data: entry.data });
            return;
        }
        out.committed.push(Committed { index, term, data: Bytes::new() });
        self.change_members(&entry, out);
    }

    /// A change that cannot be made is none, at every replica alike: it depends on the log alone.
    fn change_members(&mut self, entry: &Entry, out: &mut Output) {
        let change = ConfChangeV2::parse_from_bytes(&entry.data).ok();
        let Some(change) = change.filter(members::is_known) else {
            ::log::error!("replica {}: entry {} is no change of members", self.id, entry.index);
            return;
        };
        let members = match self.raw.apply_conf_change(&change) {
            Ok(state) => Members::try_from(&state),
            Err(e) => Err(e.to_string()),
        };
        let members = match members {
            Ok(members) => members,
            Err(e) => {
                ::log::error!("replica {}: no change of members at {}: {e}", self.id, entry.index);
                return;
            }
        };
        let before = self.latest_members();
        let (voters_changed, changed) = (!members.votes_like(before), members != *before);
        self.is_open = voters_changed && !members.is_joint();
        if !changed {
            return;
        }
        // The replicas that confirmed the lease may be no majority any more.
        self.lease.give_up();
        if self.raw.raft.state == StateRole::Leader && !members.votes(self.id) {
            // The raft crate leads on, and dies of looking for itself among the members.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        self.members_ahead.push_back((entry.index, members.clone()));
        out.members = Some(members);
    }

    /// What [`Output::persist`] asked for up to this number is durable, and a snapshot among it is
    /// installed.
    pub fn persisted(&mut self, number: u64) {
        let mut last = None;
        let mut installed = None;
        while self.held.front().is_some_and(|held| held.number <= number || !held.on_disk) {
            let Some(held) = self.held.pop_front() else { break };
            last = Some(held.number);
            self.unsynced_bytes -= held.bytes;
            installed = held.snapshot.or(installed);
            self.released.extend(held.messages);
        }
        if let Some(last) = last {
            self.raw.on_persist_ready(last);
        }
        if let Some(index) = installed {
            self.applied(index);
        }
        self.settle();
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: u64) {
        if index <= self.applied_index() {
            return;
        }
        self.raw.advance_apply_to(index);
        while self.members_ahead.front().is_some_and(|(at, _)| *at <= index) {
            let Some((_, members)) = self.members_ahead.pop_front() else { break };
            self.members = members;
        }
        self.let_go();
        self.settle();
        self.conclude();
    }

    /// Lets go of entries that no replica is going to ask for: all others of a leader's group have
    /// them, and a later leader has kept the newest for those that lag a little. They stay on disk
    /// until a snapshot holds them.
    fn let_go(&mut self) {
        let leads = self.raw.raft.state == StateRole::Leader;
        let retain = if leads { self.retain_bytes } else { self.retain_bytes * FOLLOWERS_RETAIN };
        if self.raw.store().bytes() <= retain {
            return;
        }
        self.keep(self.applied_index().min(self.known_everywhere()), retain);
    }

    /// Its part.
    pub fn role(&self) -> Role {
        self.raw.raft.state.into()
    }

    /// The leader of the present term, if known.
    pub fn leader(&self) -> Option<ReplicaId> {
        Some(ReplicaId(self.raw.raft.leader_id)).filter(|id| id.0 != 0)
    }

    /// Itself.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// What is known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The end of the log.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// What is applied.
    pub fn applied_index(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// The bytes of the entries in memory.
    pub fn log_bytes(&self) -> u64 {
        self.raw.store().bytes()
    }

    /// Whether it leads and has applied an entry of its own term, and with it all that was committed
    /// before it led. Only then may it serve, lock and propose.
    pub fn is_serving(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
            && (self.raw.raft.apply_to_current_term() || !kept(GroupRule::LeadersServeTheirTerm))
    }

    /// What this replica knows of the group's time: what it was at a moment of the monotonic clock.
    /// As long as it does not, it asks those that it leads.
    pub fn note_time(&mut self, time: Option<(Millis, u64)>) {
        self.hearsay.note(time);
    }

    /// What they have answered since it leads.
    pub fn time_told(&self) -> TimeTold {
        let members = self.latest_members();
        let others = self.progress().into_iter().map(|one| one.id);
        let others = others.filter(|id| *id != self.id && members.votes(*id));
        self.hearsay.comes_to(others, self.ticks.count(), self.election_ticks)
    }

    /// Whether reads that came before the clocks said `now` may be answered from what is applied.
    pub fn holds_lease(&self, now: Now) -> bool {
        now.mono < self.lease_until(now) && self.is_serving()
    }

    /// When the lease ends, in ms of the monotonic clock, as far as can be told at `now`; 0: there
    /// is none.
    pub fn lease_until(&self, now: Now) -> u64 {
        self.lease.until(now)
    }

    /// Asks a majority at `now` whether this replica still leads. Reads that came before may be
    /// answered once [`Output::confirmed`] reaches the ticket; a lease runs from the asking, unless
    /// leadership was handed over in this term. No ticket: it does not lead or not serve yet.
    ///
    /// Cheap to call often: while one confirmation is under way, the next is sent after it.
    pub fn confirm(&mut self, now: Now) -> Option<Confirmation> {
        self.pass(now);
        if !self.is_serving() {
            return None;
        }
        let (ticket, now) = self.lease.ask(self.now);
        if now {
            self.ask(ticket);
        }
        Some(ticket)
    }

    fn ask_again(&mut self) -> bool {
        let ticket = self.lease.ask_again(self.now);
        if let Some(ticket) = ticket {
            self.ask(ticket);
        }
        ticket.is_some()
    }

    fn ask(&mut self, ticket: Confirmation) {
        self.raw.read_index(ticket.0.to_le_bytes().to_vec());
        self.settle();
    }

    /// Hands leadership over to a voter as soon as that has the whole log; says whether it was
    /// begun. Until then, or until an election timeout has passed, nothing is proposed and there is
    /// no lease; once the successor was told, there is none in this term any more.
    pub fn transfer(&mut self, to: ReplicaId) -> bool {
        let leads = self.raw.raft.state == StateRole::Leader;
        // Not to one that leaves with a joint configuration: it is gone.
        if !leads || to == self.id || !self.latest_members().voters.contains(&to) {
            return false;
        }
        if kept(GroupRule::HandingOverEndsLease) {
            self.lease.pause();
        }
        self.raw.transfer_leader(to.0);
        self.settle();
        true
    }

    /// Leads no more because a majority does not answer: reads could not be confirmed nor writes
    /// committed, and replicas that hear this leader would go on promising it their votes. The
    /// replica that lags least, as far as is known, may stand for election at once. Tells whether
    /// this replica led.
    ///
    /// The lease ends here, so that a vote against the promise breaks nothing.
    pub fn resign(&mut self) -> bool {
        if self.raw.raft.state != StateRole::Leader {
            return false;
        }
        if kept(GroupRule::HandingOverEndsLease) {
            self.lease.hand_over();
        }
        let others = self.progress().into_iter().filter(|one| one.id != self.id);
        let heir = others.filter(|one| self.latest_members().votes(one.id));
        let heir = heir.max_by_key(|one| (!one.awaits_snapshot, one.matched));
        let raft = &mut self.raw.raft;
        if let Some(heir) = heir {
            raft.send_timeout_now(heir.id.0);
        }
        raft.become_follower(raft.term, 0);
        self.settle();
        true
    }

    /// Whether leadership is being handed over.
    pub fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Entries up to `to` are in a durable snapshot of so many bytes. The newest of them stay in
    /// memory, up to the bytes that the setup says. Where no replica is known to lack them, no more
    /// stay than the snapshot has bytes: it is the shorter way to a replica that does.
    pub fn compact(&mut self, to: u64, snapshot_bytes: u64) {
        let to = to.min(self.applied_index());
        self.keep(to, self.retain_bytes);
        self.keep(to.min(self.known_everywhere()), self.retain_bytes.min(snapshot_bytes));
    }

    /// The last entry that no replica is known to lack.
    fn known_everywhere(&self) -> u64 {
        let leads = self.raw.raft.state == StateRole::Leader;
        let matched = self.raw.raft.prs().iter().map(|(_, progress)| progress.matched);
        if leads { matched.min().unwrap_or(0) } else { u64::MAX }
    }

    /// Lets go of the oldest entries up to `to`, but for the newest that weigh `retain` bytes. The
    /// raft crate still looks at what is not persisted here.
    fn keep(&mut self, to: u64, retain: u64) {
        let to = to.min(self.raw.raft.raft_log.persisted);
        self.raw.mut_store().compact(to, retain);
    }

    /// What a snapshot of the state as applied now says about itself. `None` before anything is
    /// applied, and while a snapshot is being installed.
    pub fn snapshot_meta(&self) -> Option<SnapshotMeta> {
        let index = self.applied_index();
        let term = self.raw.store().term_at(index).filter(|term| *term > 0)?;
        Some(SnapshotMeta { index, term, members: self.members.clone() })
    }

    /// From now on, replicas that lack entries are given this snapshot. `token` is the caller's name
    /// for it.
    pub fn offer_snapshot(&mut self, meta: SnapshotMeta, token: Bytes) {
        self.raw.mut_store().offer(meta, token);
    }

    /// The snapshot on offer is gone.
    pub fn withdraw_snapshot(&mut self) {
        self.raw.mut_store().withdraw();
    }

    /// A snapshot has reached its replica, with the message that goes with it, or will not.
    pub fn report_snapshot(&mut self, to: ReplicaId, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to.0, status);
        self.settle();
    }

    /// The link to this replica broke: what was sent may be lost.
    pub fn unreachable(&mut self, to: ReplicaId) {
        self.raw.report_unreachable(to.0);
        self.settle();
    }

    /// The configuration in force.
    pub fn members(&self) -> &Members {
        self.latest_members()
    }

    /// How far the members are, by id; nothing where this replica does not lead.
    pub fn progress(&self) -> Vec<Progress> {
        if self.raw.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let progress = |id: ReplicaId| {
            let known = self.raw.raft.prs().get(id.0)?;
            Some(Progress {
                id,
                matched: known.matched,
                is_active: known.recent_active || id == self.id,
                awaits_snapshot: known.state == raft::ProgressState::Snapshot,
            })
        };
        self.latest_members().all().into_iter().filter_map(progress).collect()
    }

    fn latest_members(&self) -> &Members {
        self.members_ahead.back().map_or(&self.members, |(_, members)| members)
    }

    fn pass(&mut self, now: Now) {
        self.now = Now { wall: now.wall, mono: self.now.mono.max(now.mono) };
    }

    /// Whether it may stand for election without being asked to: no promise is broken by its own
    /// vote, its log is whole, and its disk answers.
    fn may_stand(&self) -> bool {
        !self.promise.binds(self.now.mono) && self.log_is_whole() && !self.disk_hangs()
    }

    /// Whether the log can be stood on. While a snapshot is being installed, the raft crate dies of
    /// looking through the entries that it replaces. And a sole voter wins at once, before the disk
    /// has what its log ends with, which the crate takes for impossible.
    fn log_is_whole(&self) -> bool {
        let installs = self.held.iter().any(|held| held.snapshot.is_some());
        !installs && (!self.latest_members().is_sole() || self.held.is_empty())
    }

    /// To be called after every call into the raft crate: puts our election timeout in place of the
    /// crate's, and ends what belonged to another term or role.
    fn settle(&mut self) {
        let raft = &mut self.raw.raft;
        let standing = (raft.term, raft.state);
        raft.set_randomized_election_timeout(self.timeouts.at(standing));
        if standing != self.standing {
            self.standing = standing;
            self.lease.reset();
            self.hearsay.reset(self.ticks.count());
        }
    }

    fn send_released(&mut self, out: &mut Output) {
        let released = std::mem::take(&mut self.released);
        self.send(released, out);
    }

    fn send(&mut self, messages: Vec<Message>, out: &mut Output) {
        for mut message in messages {
            let to = ReplicaId(message.to);
            match message.msg_type {
                MessageType::MsgAppend => message.context = self.hearsay.question(),
                MessageType::MsgAppendResponse => {
                    message.context = self.hearsay.answer(to, self.now.mono);
                }
                _ => {}
            }
            let hands_over = message.msg_type == MessageType::MsgTimeoutNow;
            if hands_over && kept(GroupRule::HandingOverEndsLease) {
                self.lease.hand_over();
            }
            let bytes = match wire::write(&message) {
                Ok(bytes) => bytes,
                Err(e) => {
                    ::log::error!("replica {}: no message to {to}: {e}", self.id);
                    continue;
                }
            };
            if message.msg_type == MessageType::MsgSnapshot {
                let snapshot = message.get_snapshot();
                let (index, token) = (snapshot.get_metadata().index, snapshot.data.clone());
                out.snapshots.push(Outgoing { to, index, token, message: bytes });
            } else {
                out.messages.push(Envelope { to, bytes });
            }
        }
    }
}

/// What the log says about changes of members after `applied`.
struct Changes {
    any: bool,
    /// All but the last are committed, or the last could not have been proposed.
    known_committed: u64,
}

fn changes_of_members(log: &Log, applied: u64) -> Changes {
    let changes = log.since(applied + 1).filter(|entry| entry.entry_type != EntryType::EntryNormal);
    let indexes: Vec<u64> = changes.map(|entry| entry.index).collect();
    let known = indexes.iter().rev().nth(1).filter(|_| kept(GroupRule::MembersAreRecovered));
    let known_committed = known.copied().unwrap_or(0).max(log.forced());
    Changes { any: !indexes.is_empty(), known_committed }
}

fn write_state(state: &HardState) -> [u8; STATE_BYTES] {
    let mut bytes = [0; STATE_BYTES];
    bytes[..8].copy_from_slice(&state.term.to_le_bytes());
    bytes[8..].copy_from_slice(&state.vote.to_le_bytes());
    bytes
}

/// Term and vote as logged, no earlier than what the log shows, with this commit index.
fn read_state(recovered: &Recovered, log: &Log, commit: u64) -> Result<HardState, String> {
    let mut state = HardState::default();
    if let Some(bytes) = &recovered.state {
        let Some((term, vote)) = bytes.split_first_chunk::<8>() else {
            return Err(format!("a state of {} bytes", bytes.len()));
        };
        let Ok(vote) = <[u8; 8]>::try_from(vote) else {
            return Err(format!("a state of {} bytes", bytes.len()));
        };
        state.term = u64::from_le_bytes(*term);
        state.vote = u64::from_le_bytes(vote);
    }
    // Entries may have reached the disk before the state that was logged with them. No node has
    // heard of a vote in their term then: it would have waited for the sync.
    let shown = log.term_at(log.last()).unwrap_or_default();
    if state.term < shown {
        state.term = shown;
        state.vote = 0;
    }
    state.commit = commit;
    Ok(state)
}
