//! When replicas elect, and how much log they keep.

use std::time::Duration;

/// How many heartbeats an election timeout spans at least: a few may be late or lost and no replica
/// calls an election.
pub const HEARTBEATS_PER_ELECTION: u32 = 4;

/// When replicas elect, and how much log they keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// How long a follower hears nothing from its leader before it stands for election: 600 ms.
    ///
    /// The leader's lease is counted by it too, so the nodes of a cluster must agree on it.
    pub election_timeout: Duration,
    /// How often a leader without anything to say makes itself heard: 100 ms.
    pub heartbeat: Duration,
    /// Bytes of one file of the log, which is allocated in steps: 64 MiB.
    pub segment: u64,
    /// Bytes that a node's log grows by until snapshots are made and the log behind them is
    /// collected: 256 MiB.
    pub snapshot_after: u64,
    /// Bytes of log that stay in memory though every replica has them (followers keep four times
    /// that), so that one which was away for a moment catches up by log: 16 MiB.
    pub retain: u64,
}

impl Default for Replication {
    fn default() -> Replication {
        Replication {
            election_timeout: Duration::from_millis(600),
            heartbeat: Duration::from_millis(100),
            segment: 64 << 20,
            snapshot_after: 256 << 20,
            retain: 16 << 20,
        }
    }
}
