//! Suspect replicas: what they acknowledged may have gone down with the machine.
//!
//! Where writes are acknowledged before they are synced, a process may die and lose nothing, for
//! the kernel has the writes. When the machine goes down, the end of the log is gone, and with it
//! promises: others count on this replica to hold what it acknowledged. Until it is known how many
//! share that fate, such a replica keeps silent. Then one of two things is right:
//!
//! - Enough other replicas to elect a leader can **verify** what they hold: this one is
//!   *replaced*, it comes back as a new member that has promised nothing and learns from them.
//! - A majority cannot verify: what only they held is lost, as the durability of the table says it
//!   may be, and waiting would bring nothing back. This one is *trusted*, it goes on with what it
//!   has.
//!
//! While neither is known, because too few nodes are there, the partition has no majority anyway.
//! A replica that was replaced cannot verify before it votes: until then the name that it had is one
//! of those without which no leader is elected.

use crate::ids::{NodeId, PartitionId};
use std::collections::{BTreeMap, BTreeSet};

/// What is to become of a suspect replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspectVerdict {
    /// It comes back as a new member.
    Replace,
    /// It goes on as it is.
    Trust,
}

/// The suspect replicas of one node.
#[derive(Debug, Default)]
pub struct Suspects {
    /// The other nodes that have a copy of each suspect partition.
    open: BTreeMap<PartitionId, Vec<NodeId>>,
    /// The partitions that each node in reach cannot verify; `None`: for none at all.
    known: BTreeMap<NodeId, Option<BTreeSet<PartitionId>>>,
}

impl Suspects {
    /// The node's suspect partitions, each with the other nodes that have a copy.
    pub fn new(open: impl IntoIterator<Item = (PartitionId, Vec<NodeId>)>) -> Suspects {
        Suspects { open: open.into_iter().collect(), known: BTreeMap::new() }
    }

    /// A node is in reach and cannot verify these partitions; `None`: for none at all, because it
    /// begins with nothing.
    pub fn met(&mut self, node: NodeId, unsound: Option<&[PartitionId]>) {
        self.known.insert(node, unsound.map(|list| list.iter().copied().collect()));
    }

    /// A node in reach can verify these partitions from now on.
    pub fn verified(&mut self, node: NodeId, partitions: &[PartitionId]) {
        if let Some(Some(unsound)) = self.known.get_mut(&node) {
            unsound.retain(|partition| !partitions.contains(partition));
        }
    }

    /// A node is out of reach: what it said is worth nothing any more.
    pub fn lost(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    /// Takes out what can be decided by now.
    pub fn decide(&mut self) -> Vec<(PartitionId, SuspectVerdict)> {
        let known = &self.known;
        let decided: Vec<_> = self
            .open
            .iter()
            .filter_map(|(&id, others)| Some((id, verdict(id, others, known)?)))
            .collect();
        for (id, _) in &decided {
            self.open.remove(id);
        }
        decided
    }
}

fn verdict(
    id: PartitionId,
    others: &[NodeId],
    known: &BTreeMap<NodeId, Option<BTreeSet<PartitionId>>>,
) -> Option<SuspectVerdict> {
    let majority = others.len().div_ceil(2) + 1;
    let met = others.iter().filter_map(|node| known.get(node));
    let sound = met.clone().filter(|list| list.as_ref().is_some_and(|list| !list.contains(&id)));
    let sound = sound.count();
    // This one as well.
    let unsound = met.count() - sound + 1;
    if sound >= majority {
        Some(SuspectVerdict::Replace)
    } else if unsound >= majority {
        Some(SuspectVerdict::Trust)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(7);

    fn suspects(others: &[u16]) -> Suspects {
        Suspects::new([(P, others.iter().map(|node| NodeId(*node)).collect())])
    }

    #[test]
    fn a_majority_that_verifies_replaces() {
        let mut suspects = suspects(&[2, 3]);
        assert_eq!(suspects.decide(), []);
        suspects.met(NodeId(2), Some(&[]));
        assert_eq!(suspects.decide(), [], "one of three elects nobody");
        suspects.met(NodeId(9), Some(&[]));
        assert_eq!(suspects.decide(), [], "no replica of the partition");
        suspects.met(NodeId(3), Some(&[PartitionId(1)]));
        assert_eq!(suspects.decide(), [(P, SuspectVerdict::Replace)]);
        assert_eq!(suspects.decide(), [], "once is enough");
    }

    #[test]
    fn a_suspect_majority_goes_on() {
        for unsound in [Some(&[P][..]), None] {
            let mut suspects = suspects(&[2, 3]);
            suspects.met(NodeId(2), unsound);
            assert_eq!(suspects.decide(), [(P, SuspectVerdict::Trust)]);
        }
    }

    #[test]
    fn who_learns_vouches_once_it_votes_and_who_is_gone_does_not() {
        let mut suspects = suspects(&[2, 3, 4, 5]);
        suspects.met(NodeId(2), Some(&[P]));
        suspects.met(NodeId(3), Some(&[]));
        suspects.met(NodeId(4), Some(&[]));
        assert_eq!(suspects.decide(), [], "two of five elect nobody, and two suspects are too few");
        suspects.lost(NodeId(4));
        suspects.verified(NodeId(2), &[P]);
        assert_eq!(suspects.decide(), []);
        suspects.met(NodeId(5), Some(&[]));
        assert_eq!(suspects.decide(), [(P, SuspectVerdict::Replace)]);
    }
}
