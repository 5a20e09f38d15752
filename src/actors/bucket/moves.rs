//! Changes of leaders as a Bucket saw them: for the log, a line for many, and for `/status`.

use crate::command::facts;
use crate::ids::Term;
use crate::ids::{Millis, NodeId, PartitionId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Changes that are remembered.
const MOVES_KEPT: usize = 32;

/// A change of leader.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Move {
    /// When this node learned of it.
    pub at_ms: u64,
    /// Which partition.
    pub partition: u16,
    /// Who leads it from then on.
    pub leader: u16,
    /// In which term.
    pub term: u64,
}

/// The latest changes.
#[derive(Debug, Default)]
pub struct Moves {
    led: BTreeSet<PartitionId>,
    won: BTreeSet<PartitionId>,
    lost: BTreeMap<NodeId, BTreeSet<PartitionId>>,
    latest: VecDeque<Move>,
}

impl Moves {
    /// On node `own` it is learned that `leader` leads the partition from now on.
    pub fn note(&mut self, own: NodeId, id: PartitionId, leader: NodeId, term: Term, now: Millis) {
        if leader == own && self.led.insert(id) {
            self.won.insert(id);
        } else if leader != own && self.led.remove(&id) && !self.won.remove(&id) {
            self.lost.entry(leader).or_default().insert(id);
        }
        let (partition, leader, term) = (id.0, leader.0, term.0);
        self.latest.push_back(Move { at_ms: now.0, partition, leader, term });
        if self.latest.len() > MOVES_KEPT {
            self.latest.pop_front();
        }
    }

    /// Tells the log what has changed since it was told last.
    pub fn tell(&mut self) {
        if !self.won.is_empty() {
            let won = std::mem::take(&mut self.won);
            log::info!(target: "raft", "leads {} more: {}", facts::counted(won.len()), runs(&won));
        }
        for (leader, lost) in std::mem::take(&mut self.lost) {
            let which = runs(&lost);
            let count = facts::counted(lost.len());
            log::info!(target: "raft", "node {leader} now leads {count} led here: {which}");
        }
    }

    /// The latest changes, oldest first.
    pub fn latest(&self) -> impl Iterator<Item = Move> + '_ {
        self.latest.iter().copied()
    }
}

fn runs(set: &BTreeSet<PartitionId>) -> String {
    facts::runs(set.iter().map(|id| id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[u16]) -> BTreeSet<PartitionId> {
        list.iter().map(|id| PartitionId(*id)).collect()
    }

    #[test]
    fn neighbours_are_told_as_runs() {
        assert_eq!(runs(&ids(&[0, 1, 2, 3, 7, 9, 10])), "0-3, 7, 9-10");
        assert_eq!(runs(&ids(&[])), "");
    }

    #[test]
    fn what_comes_and_goes_between_two_lines_is_not_told() {
        let mut moves = Moves::default();
        let own = NodeId(1);
        let mut note = |id, leader, term| {
            moves.note(own, PartitionId(id), NodeId(leader), Term(term), Millis(5));
        };
        note(4, 1, 2);
        note(4, 3, 3);
        note(5, 2, 3);
        assert!(moves.won.is_empty() && moves.lost.is_empty());
        moves.note(own, PartitionId(4), own, Term(4), Millis(6));
        moves.tell();
        moves.note(own, PartitionId(4), NodeId(2), Term(5), Millis(7));
        assert_eq!(moves.lost[&NodeId(2)], ids(&[4]));
        assert_eq!(moves.latest().count(), 5);
    }
}
