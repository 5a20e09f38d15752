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
mod duties;
mod lease;
mod log;
mod members;
mod office;
mod output;
mod pace;
mod propose;
mod recover;
mod replace;
pub(super) mod rules;
mod setup;
mod step;
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
pub use self::propose::PROPOSAL_BYTES_MAX;
pub use self::setup::{Recovered, Setup};
pub use self::survivor::{Survivor, survive};
pub use self::time::TimeTold;
pub use self::wire::is_beat;

use self::duties::HeldReady;
use self::lease::{Lease, Promise};
use self::log::Log;
use self::pace::{Ticks, Timeouts};
use self::rules::{GroupRule, kept};
use self::time::Hearsay;
use crate::ids::{Millis, Now};
use bytes::Bytes;
use raft::eraftpb::Message;
use raft::{RawNode, SnapshotStatus, StateRole};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The longest message that is stepped.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A follower keeps so many times the bytes of entries that a leader does: it does not know what
/// the other followers lack, and may lead them next.
const FOLLOWERS_RETAIN: u64 = 4;

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
}
