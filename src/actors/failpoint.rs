//! Failpoints: named steps at which a test has a node die, as if it were killed there.
//!
//! They are compiled with the feature `failpoints` only. Without it a [`Failpoint`] has no size, its
//! methods are empty and what is carried is not looked at.
//!
//! The cores know nothing of them: whatever a step needs leaves or enters a core as a message
//! or an effect, and the actors around the cores know these. So a point lies
//! - where a message that a core made has not gone anywhere (`.begun`);
//! - where it has been written to the socket of another node (`.sent`);
//! - where it has come, and the core has not seen it (`.heard`);
//! - where what it asked for is kept by a majority and no node was told (`.logged`, `.applied`).
//!
//! Each actor counts on its own how often it comes by the point, so that no thread waits for
//! another and a value that is copied at birth is all there is.

use crate::net::packet::Packet;
use crate::partition;
use crate::txn::coordinator;
use crate::txn::protocol::{Decide, ToCoordinator, ToPartition, Verdict};

/// Declares the points with the names by which a test knows them.
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A step, seen from just before or just after it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All points.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// What a test calls it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// The Coordinator has not asked any partition to prepare.
    PrepareBegun = "prepare.begun",
    /// Another node was asked to prepare.
    PrepareSent = "prepare.sent",
    /// A participant is asked to prepare, and nothing is logged.
    PrepareHeard = "prepare.heard",
    /// A participant's intent is durable, and it has not voted.
    PrepareLogged = "prepare.logged",
    /// A vote has gone to the Coordinator on another node.
    VoteSent = "vote.sent",
    /// All votes are in, and the primary was not asked to decide.
    DecideBegun = "decide.begun",
    /// The primary on another node was asked to decide.
    DecideSent = "decide.sent",
    /// The primary is asked to decide, and nothing is logged.
    DecideHeard = "decide.heard",
    /// The primary's decision is durable, and no other partition knows.
    DecideLogged = "decide.logged",
    /// The Coordinator on another node was told of the decision.
    DecidedSent = "decided.sent",
    /// The Coordinator has the decision, and has told neither client nor participants.
    DecidedHeard = "decided.heard",
    /// The primary is about to tell a participant that has asked or not confirmed.
    OutcomeBegun = "outcome.begun",
    /// A participant on another node was told the outcome.
    OutcomeSent = "outcome.sent",
    /// A participant is told to commit, and has not logged it.
    OutcomeHeard = "outcome.heard",
    /// A participant has committed, and has not confirmed it.
    OutcomeApplied = "outcome.applied",
    /// A participant has confirmed to the primary on another node.
    AppliedSent = "applied.sent",
    /// The primary hears that a participant has committed, and has not logged it.
    AppliedHeard = "applied.heard",
    /// A batch of the log is written and not synced.
    LogWritten = "log.written",
    /// A batch of the log is synced, and no Bucket was told.
    LogSynced = "log.synced",
    /// A snapshot is whole and synced, and has no name.
    SnapshotWritten = "snapshot.written",
    /// A snapshot has its name, and the log that it covers is all there.
    SnapshotNamed = "snapshot.named",
    /// The disk says that the node is ready for the formation, and no other node was told.
    ReadyMarked = "ready.marked",
    /// Another node was told that this one is ready.
    ReadySent = "ready.sent",
    /// All nodes are ready, and the disk does not say that the cluster is formed.
    FormBegun = "form.begun",
    /// The disk says that the cluster is formed, and nothing is served.
    FormMarked = "form.marked",
}

impl Point {
    /// Where a message to a partition that leads here is before the partition sees it.
    pub fn heard_by_partition(message: &ToPartition) -> Option<Point> {
        match message {
            ToPartition::Prepare(_) => Some(Point::PrepareHeard),
            ToPartition::Decide(Decide { verdict: Verdict::Commit, deciding, .. }) => {
                Some(if *deciding { Point::DecideHeard } else { Point::OutcomeHeard })
            }
            ToPartition::Applied { .. } => Some(Point::AppliedHeard),
            _ => None,
        }
    }

    /// Where a message to the Coordinator is before it sees it.
    pub fn heard_by_coordinator(message: &ToCoordinator) -> Option<Point> {
        let commit = matches!(message, ToCoordinator::Decided { verdict: Verdict::Commit, .. });
        commit.then_some(Point::DecidedHeard)
    }

    /// What a partition has done when it wants this, before any other node is told.
    pub fn done_by_partition(effect: &partition::PartitionEffect) -> Option<Point> {
        match effect {
            partition::PartitionEffect::Coordinator(
                _,
                ToCoordinator::Voted { vote: Some(_), .. },
            ) => Some(Point::PrepareLogged),
            partition::PartitionEffect::Coordinator(
                _,
                ToCoordinator::Decided { verdict: Verdict::Commit, .. },
            ) => Some(Point::DecideLogged),
            partition::PartitionEffect::Partition(_, ToPartition::Decide(decide))
                if decide.verdict == Verdict::Commit =>
            {
                Some(Point::OutcomeBegun)
            }
            partition::PartitionEffect::Partition(_, ToPartition::Applied { .. }) => {
                Some(Point::OutcomeApplied)
            }
            _ => None,
        }
    }

    /// What the Coordinator has not done yet when it wants this.
    pub fn begun_by_coordinator(effect: &coordinator::TxnEffect) -> Option<Point> {
        match effect {
            coordinator::TxnEffect::Partition(_, ToPartition::Prepare(_)) => {
                Some(Point::PrepareBegun)
            }
            coordinator::TxnEffect::Partition(
                _,
                ToPartition::Decide(Decide { deciding: true, .. }),
            ) => Some(Point::DecideBegun),
            _ => None,
        }
    }

    /// What was done once this packet is with the kernel.
    pub fn sent(packet: &Packet) -> Option<Point> {
        match packet {
            Packet::Partition(_, ToPartition::Prepare(_)) => Some(Point::PrepareSent),
            Packet::Partition(_, ToPartition::Decide(decide)) => {
                let commits = decide.verdict == Verdict::Commit;
                let point = if decide.deciding { Point::DecideSent } else { Point::OutcomeSent };
                commits.then_some(point)
            }
            Packet::Partition(_, ToPartition::Applied { .. }) => Some(Point::AppliedSent),
            Packet::Ready => Some(Point::ReadySent),
            Packet::Coordinator(ToCoordinator::Voted { vote: Some(_), .. }) => {
                Some(Point::VoteSent)
            }
            Packet::Coordinator(ToCoordinator::Decided { verdict: Verdict::Commit, .. }) => {
                Some(Point::DecidedSent)
            }
            _ => None,
        }
    }
}

/// Where the node is to die, if anywhere, as one actor holds it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failpoint {
    #[cfg(feature = "failpoints")]
    armed: Option<Armed>,
}

#[cfg(feature = "failpoints")]
#[derive(Clone, Copy, Debug)]
struct Armed {
    point: Point,
    /// How often it is passed before.
    passes: u64,
    /// It was reached, and waits for [`Failpoint::strike`].
    reached: bool,
    die: fn() -> !,
}

#[cfg(not(feature = "failpoints"))]
impl Failpoint {
    /// Comes by a point, if it is one.
    #[inline(always)]
    pub fn pass(&mut self, _: impl FnOnce() -> Option<Point>) {}

    /// Comes by the points of all these.
    #[inline(always)]
    pub fn pass_all<T>(&mut self, _: &[T], _: fn(&T) -> Option<Point>) {}

    /// Comes by a point that counts at the next [`Failpoint::strike`].
    #[inline(always)]
    pub fn mark(&mut self, _: impl FnOnce() -> Option<Point>) {}

    /// Dies if a point was reached that was marked.
    #[inline(always)]
    pub fn strike(&self) {}
}

#[cfg(feature = "failpoints")]
impl Failpoint {
    /// Has the node die by `die` at a point: `prepare.logged`, or `prepare.logged:3` for the third
    /// time that one of its actors comes by it.
    ///
    /// # Errors
    /// In words, when there is no such point.
    pub fn armed(text: &str, die: fn() -> !) -> Result<Failpoint, String> {
        let (name, turn) = text.split_once(':').unwrap_or((text, "1"));
        let point = Point::ALL.iter().copied().find(|point| point.name() == name);
        let turn = turn.parse::<u64>().ok().filter(|turn| *turn > 0);
        let (Some(point), Some(turn)) = (point, turn) else {
            let known: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
            let known = known.join(", ");
            return Err(format!("there is no failpoint '{text}'; NAME or NAME:TIMES of {known}"));
        };
        Ok(Failpoint { armed: Some(Armed { point, passes: turn - 1, reached: false, die }) })
    }

    /// Comes by a point, if it is one.
    pub fn pass(&mut self, point: impl FnOnce() -> Option<Point>) {
        self.mark(point);
        self.strike();
    }

    /// Comes by the points of all these.
    pub fn pass_all<T>(&mut self, all: &[T], point: fn(&T) -> Option<Point>) {
        all.iter().for_each(|one| self.pass(|| point(one)));
    }

    /// Comes by a point that counts at the next [`Failpoint::strike`].
    pub fn mark(&mut self, point: impl FnOnce() -> Option<Point>) {
        if let Some(armed) = &mut self.armed
            && point() == Some(armed.point)
        {
            armed.reached |= armed.passes == 0;
            armed.passes = armed.passes.saturating_sub(1);
        }
    }

    /// Dies if a point was reached that was marked.
    pub fn strike(&self) {
        if let Some(armed) = self.armed
            && armed.reached
        {
            (armed.die)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_points() {
        let mut names: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[cfg(not(feature = "failpoints"))]
    #[test]
    fn without_the_feature_nothing_is_kept() {
        assert_eq!(size_of::<Failpoint>(), 0);
    }
}
