//! Replicas that lost what they promised are replaced by their nodes' next ones.
//!
//! A node tells the *generation* of its replicas. Where this node leads, it has the group take one
//! step at a time towards the latest of them: see [`Group::replacement`].
//!
//! [`Group::replacement`]: crate::consensus::Group::replacement

use super::Partition;
use crate::batch::machine::Machine;
use crate::consensus::{MemberChange, ReplicaId};
use crate::ids::NodeId;

impl<M: Machine> Partition<M> {
    /// Takes the next step towards a group of the replicas that there are, if this node leads.
    pub fn replace_members(&mut self, mut generations: impl Iterator<Item = (NodeId, u32)>) {
        let id = self.id;
        let Some(journal) = self.journal.as_mut().filter(|journal| journal.leads()) else { return };
        let group = journal.group_mut();
        let next = generations
            .find_map(|(node, generation)| group.replacement(ReplicaId::new(node, generation)));
        let Some(change) = next else { return };
        // One at a time: what cannot be changed now is tried again.
        if group.change(change).is_none() {
            return;
        }
        match change {
            MemberChange::AddLearner(new) => {
                log::info!(target: "raft", "partition {id}: replica {new} begins to learn");
            }
            MemberChange::Replace { old, new } => {
                log::info!(target: "raft", "partition {id}: replica {new} replaces {old}");
            }
            MemberChange::Promote(_) | MemberChange::Remove(_) => {}
        }
    }
}
