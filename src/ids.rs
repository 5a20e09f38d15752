//! The names things go by: nodes, tables, slots, partitions, transactions, moments.
//!
//! Each is a type of its own, so that a partition cannot be passed for a slot. All of them are
//! plain numbers on the wire.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A node's number in `cluster.yaml`, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many tables a cluster has: what `SELECT` accepts is `0..TABLES`.
pub const TABLES: usize = 16;

/// A table's index, `0..TABLES`: what `SELECT n` chooses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
pub struct TableIndex(u8);

impl TableIndex {
    /// The table with this index, or `None` when there is no such table.
    pub fn new(index: u8) -> Option<TableIndex> {
        (usize::from(index) < TABLES).then_some(TableIndex(index))
    }

    /// The index as a place in an array of [`TABLES`].
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// All tables in order.
    pub fn all() -> impl Iterator<Item = TableIndex> {
        (0..TABLES as u8).map(TableIndex)
    }
}

impl TryFrom<u8> for TableIndex {
    type Error = String;
    fn try_from(index: u8) -> Result<Self, String> {
        TableIndex::new(index).ok_or_else(|| format!("no table {index}: tables are 0 to 15"))
    }
}

impl From<TableIndex> for u8 {
    fn from(table: TableIndex) -> u8 {
        table.0
    }
}

impl fmt::Display for TableIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the 16384 hash slots of Redis Cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u16);

/// The life of a partition's leadership: a lock that is not logged ends with the term that granted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term(pub u64);

/// A run of slots that is replicated together, `0..partitions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// The number as a place in an array.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall-clock time in milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Millis(pub u64);

impl Millis {
    /// The latest moment that clients can be told: they count with a sign.
    pub const LATEST: Millis = Millis(i64::MAX as u64);

    /// This moment and `ms` milliseconds more, or `None` past the end of time.
    pub fn checked_add(self, ms: u64) -> Option<Millis> {
        self.0.checked_add(ms).map(Millis)
    }
}

/// The time that may have passed, in ms: as much as either clock has gone on, from look to look. Where
/// it is better to take too much time for passed than too little.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed {
    last: Now,
    ms: u64,
}

impl Elapsed {
    /// None, at `now`.
    pub fn since(now: Now) -> Elapsed {
        Elapsed { last: now, ms: 0 }
    }

    /// How much at `now`.
    pub fn at(&mut self, now: Now) -> u64 {
        let mono = now.mono.saturating_sub(self.last.mono);
        let wall = now.wall.0.saturating_sub(self.last.wall.0);
        self.ms = self.ms.saturating_add(mono.max(wall));
        self.last = Now { wall: now.wall, mono: now.mono.max(self.last.mono) };
        self.ms
    }
}

/// The moment something is done at, by both clocks of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall time: what stamps approach. It may be wrong, and may be set forward and back.
    pub wall: Millis,
    /// Milliseconds of a clock that only goes forward, at one pace, from any beginning: what every
    /// duration is counted by. It goes on while the process is stopped and while the machine is
    /// suspended. It says nothing to another node or another process.
    pub mono: u64,
}

impl Now {
    /// So many milliseconds later, by both clocks.
    pub fn plus(self, ms: u64) -> Now {
        Now { wall: Millis(self.wall.0.saturating_add(ms)), mono: self.mono.saturating_add(ms) }
    }

    /// Whether it may be as late as `deadline`: by either clock. The pause of a virtual machine is
    /// seen by the wall clock only. A wall clock that is set forward makes deadlines pass early.
    pub fn may_be_past(self, deadline: Now) -> bool {
        self.mono >= deadline.mono || self.wall >= deadline.wall
    }

    /// By how many milliseconds the two clocks have drifted apart since `earlier`. They do when the
    /// wall clock is set, and when a virtual machine was paused: the monotonic clock does not see
    /// the pause, and the wall clock is corrected afterwards.
    pub fn drift_since(self, earlier: Now) -> u64 {
        let skew = |now: Now| i128::from(now.wall.0) - i128::from(now.mono);
        u64::try_from(skew(self).abs_diff(skew(earlier))).unwrap_or(u64::MAX)
    }
}

/// Which life of a node: greater at every start of its process. It is the larger of the last one and
/// one, and the wall clock's milliseconds, and in the data directory before it is used.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// In the place of a life: what is meant is replicated, and outlives its nodes.
    pub const OUTLIVED: Incarnation = Incarnation(0);

    /// The life after this one, of a process that begins at that time of the wall clock.
    #[must_use]
    pub fn next(self, wall: Millis) -> Incarnation {
        Incarnation(self.0.saturating_add(1).max(wall.0))
    }
}

/// What was seen of a node: it may not come back as anything that is not later.
///
/// A node remembers its lives and its replicas in its data directory. Where that is lost, the other
/// nodes remember them, and a clock is no help: it may be behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// Its latest life.
    pub life: Incarnation,
    /// The latest generation of any of its replicas.
    pub generation: u32,
}

impl LastSeen {
    /// What two memories say together.
    #[must_use]
    pub fn and(self, other: LastSeen) -> LastSeen {
        LastSeen {
            life: self.life.max(other.life),
            generation: self.generation.max(other.generation),
        }
    }
}

/// A transaction's attempt. A retry keeps the sequence and raises the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// The node whose Coordinator runs it.
    pub node: NodeId,
    /// That node's life: a Coordinator's transactions end with it.
    pub incarnation: Incarnation,
    /// Counted by the Coordinator from 1.
    pub sequence: u64,
    /// Counted from 1 within the sequence.
    pub attempt: u32,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TxnId { node, incarnation, sequence, attempt } = self;
        write!(f, "{node}.{}.{sequence}.{attempt}", incarnation.0)
    }
}

/// How old a request is: smaller is older, and older wins a contended key.
///
/// `time` is a Lamport time (Lamport 1978) taken at the first attempt and kept over retries;
/// `node` and `tie` only break ties, so that no two requests are of one age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Age {
    /// Lamport time of the first attempt.
    pub time: u64,
    /// The node that took the time.
    pub node: NodeId,
    /// Distinguishes requests of one node at one time.
    pub tie: u64,
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{}", self.time, self.node, self.tie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, mono: u64) -> Now {
        Now { wall: Millis(wall), mono }
    }

    #[test]
    fn elapsed_is_what_either_clock_has_seen() {
        let mut elapsed = Elapsed::since(at(1_000, 10));
        assert_eq!(elapsed.at(at(1_005, 15)), 5);
        // A paused virtual machine, whose wall clock is right again.
        assert_eq!(elapsed.at(at(4_005, 16)), 3_005);
        // A wall clock that is set back hides nothing.
        assert_eq!(elapsed.at(at(5, 20)), 3_009);
        assert_eq!(elapsed.at(at(9, 20)), 3_013);
    }

    #[test]
    fn a_deadline_may_be_past_by_either_clock() {
        let deadline = at(1_000, 10).plus(100);
        assert!(!at(1_099, 109).may_be_past(deadline));
        assert!(at(1_100, 50).may_be_past(deadline));
        assert!(at(0, 110).may_be_past(deadline));
    }
}
