//! What a replica begins with: the setup of its group, and what its disk gave back.

use super::pace::Timeouts;
use super::{Members, ReplicaId, SnapshotMeta};
use bytes::Bytes;

/// Clocks are trusted to run at the same speed but for one part in so many.
const CLOCK_DRIFT_PART: u64 = 10;

/// What a replica is born with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Itself.
    pub id: ReplicaId,
    /// The voters of the group's first configuration: the same at every replica, for ever. Later
    /// ones are in the log and in snapshots.
    pub voters: Vec<ReplicaId>,
    /// Where its dice come from.
    pub seed: u64,
    /// The time of a tick, in ms.
    pub tick_ms: u64,
    /// A follower stands for election after this many to twice as many ticks without a leader. At
    /// least 4, and more than `heartbeat_ticks`.
    pub election_ticks: usize,
    /// A leader is heard every so many ticks.
    pub heartbeat_ticks: usize,
    /// The entries of one append are cut after this many bytes; one entry may be longer.
    pub append_bytes_max: u64,
    /// The appends under way to one follower.
    pub appends_max: usize,
    /// The bytes of appends under way to one follower, where single entries are long.
    pub window_bytes: u64,
    /// What a leader appends beyond what is committed; more is refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries that a follower takes while its disk has not got earlier ones; more is not
    /// taken, and comes again.
    pub unsynced_bytes_max: u64,
    /// How many bytes of entries that are in a snapshot stay in memory for slow followers.
    pub retain_bytes: u64,
}

impl Setup {
    /// The defaults: a leader is missed after half a second to a second.
    pub fn new(id: ReplicaId, voters: Vec<ReplicaId>, seed: u64) -> Setup {
        Setup {
            id,
            voters,
            seed,
            tick_ms: 50,
            election_ticks: 10,
            heartbeat_ticks: 2,
            append_bytes_max: 256 << 10,
            appends_max: 64,
            window_bytes: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            unsynced_bytes_max: 32 << 20,
            retain_bytes: 4 << 20,
        }
    }

    /// For how long a voter that heard its leader votes for no other replica, in ms.
    ///
    /// Two ticks less than the shortest election timeout: so much may be lost at the ends of ticks,
    /// and a promise must not outlive the time after which others may stand.
    pub fn promise_ms(&self) -> u64 {
        (self.election_ticks as u64).saturating_sub(2) * self.tick_ms
    }

    /// For how long a confirmed leader answers reads, in ms from the asking.
    pub fn lease_ms(&self) -> u64 {
        self.promise_ms() - self.promise_ms() / CLOCK_DRIFT_PART
    }

    /// By how much a leader's two clocks may drift apart while a lease runs, in ms: half of what the
    /// lease is shorter than the promise, at least one for the reading of both.
    pub fn lease_drift_ms(&self) -> u64 {
        ((self.promise_ms() - self.lease_ms()) / 2).max(1)
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let first = Members::of(self.voters.iter().copied()).voters;
        // A later replica takes any place: its timeout may equal another's, no more.
        let place = first.iter().position(|id| *id == self.id).unwrap_or(self.id.0 as usize);
        let seed = self.seed ^ self.id.0.rotate_left(17);
        Timeouts::new(seed, self.election_ticks, place, first.len())
    }

    pub(super) fn config(&self, applied: u64) -> raft::Config {
        raft::Config {
            id: self.id.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.append_bytes_max,
            max_inflight_msgs: self.appends_max,
            max_uncommitted_size: self.uncommitted_bytes_max,
            check_quorum: true,
            pre_vote: true,
            // Followers learn what is committed from the next append or heartbeat: half the
            // messages, and only the leader answers clients.
            skip_bcast_commit: true,
            // `LeaseBased` would check no clock.
            read_only_option: raft::ReadOnlyOption::Safe,
            // With links that lose messages, batched appends committed diverging logs.
            batch_append: false,
            ..raft::Config::default()
        }
    }
}

/// What a replica's disk gave back. Everything empty: a replica that begins.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The latest [`Persist::state`](super::Persist::state).
    pub state: Option<Bytes>,
    /// What the state was recovered from.
    pub snapshot: Option<SnapshotMeta>,
    /// Index and payload ([`Logged`](super::Logged): head, then data) of the entries, in the
    /// order logged.
    pub entries: Vec<(u64, Bytes)>,
}

impl Recovered {
    pub(super) fn is_empty(&self) -> bool {
        self.state.is_none() && self.snapshot.is_none() && self.entries.is_empty()
    }
}
