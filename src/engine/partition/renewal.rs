//! Replicas that lost what they promised are replaced by those that their node comes back with.
//!
//! What acknowledged an entry or a vote and forgot it must not be asked again under the same name.
//! Its node comes back with a *generation* raised, and whoever leads a partition sees to the rest,
//! a change at a time: the new replica learns until it has what the others have, then it votes, and
//! then the old name leaves the group. The old one counts until the end: a group that forgot it
//! before would need one promise less than was given.

use super::Partition;
use crate::engine::consensus::{Group, MemberChange, ReplicaId};
use crate::engine::machine::Machine;
use crate::ids::NodeId;

/// A learner that is so many entries behind at most has caught up.
const CAUGHT_UP_ENTRIES: u64 = 256;

impl<M: Machine> Partition<M> {
    /// Takes the next step towards a group of the replicas that there are, if this node leads.
    pub fn renew_members(&mut self, mut generations: impl Iterator<Item = (NodeId, u32)>) {
        let id = self.id;
        let Some(journal) = self.journal.as_mut().filter(|journal| journal.leads()) else { return };
        let group = journal.group_mut();
        let next = generations.find_map(|(node, generation)| {
            next_change(group, node, ReplicaId::new(node, generation))
        });
        let Some(change) = next else { return };
        // One at a time: what cannot be changed now is tried again.
        if group.change(change).is_some()
            && let MemberChange::AddLearner(new) = change
        {
            log::info!(target: "raft", "partition {id}: replica {new} begins to learn");
        }
    }
}

/// What is to be changed so that `new` is the one replica of its node.
fn next_change(group: &Group, node: NodeId, new: ReplicaId) -> Option<MemberChange> {
    let members = group.members();
    let all = members.voters.iter().chain(&members.learners);
    let old = all.copied().find(|id| id.node() == node && *id < new);
    if !members.contains(new) {
        // Where the node has no part there is nothing to replace.
        return old.map(|_| MemberChange::AddLearner(new));
    }
    if members.votes(new) {
        return old.map(MemberChange::Remove);
    }
    let progress = group.progress().into_iter().find(|progress| progress.id == new)?;
    let behind = group.last_index().saturating_sub(progress.matched);
    let caught_up = progress.is_active && !progress.awaits_snapshot && progress.matched > 0;
    (caught_up && behind <= CAUGHT_UP_ENTRIES).then_some(MemberChange::Promote(new))
}
