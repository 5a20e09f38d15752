//! Who belongs to a group: replicas by id, voters and learners.

use crate::ids::NodeId;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A replica's id in its group: a node and a generation.
///
/// A replica that may have lost what it acknowledged must not come back under the name that
/// acknowledged it: it comes back in the next generation, as a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    /// The replica on `node` in this generation.
    pub fn new(node: NodeId, generation: u32) -> ReplicaId {
        ReplicaId(u64::from(node.0) << 32 | u64::from(generation))
    }

    /// The node it lives on.
    pub fn node(self) -> NodeId {
        NodeId((self.0 >> 32) as u16)
    }

    /// How often the node's replica began with nothing before this one.
    pub fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation() {
            0 => self.node().fmt(f),
            generation => write!(f, "{}.{generation}", self.node()),
        }
    }
}

/// A group's configuration. Both lists are sorted, and nobody is in both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Those who elect and acknowledge.
    pub voters: Vec<ReplicaId>,
    /// Those who only follow.
    pub learners: Vec<ReplicaId>,
}

impl Members {
    /// A group of these voters.
    pub fn of(voters: impl IntoIterator<Item = ReplicaId>) -> Members {
        let mut voters: Vec<ReplicaId> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Members { voters, learners: Vec::new() }
    }

    /// Whether the replica votes or learns here.
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.votes(id) || self.learners.contains(&id)
    }

    /// The replicas on a node: more than one while it comes back under another id.
    pub fn of_node(&self, node: NodeId) -> Vec<ReplicaId> {
        let all = self.voters.iter().chain(&self.learners);
        all.copied().filter(|id| id.node() == node).collect()
    }

    /// Whether the replica votes here.
    pub fn votes(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id)
    }

    /// Appends the configuration as bytes: two counted lists of ids.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for list in [&self.voters, &self.learners] {
            out.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|id| out.extend_from_slice(&id.0.to_le_bytes()));
        }
    }

    /// Reads what [`Members::write`] wrote; the second result is what follows it.
    pub(super) fn read(bytes: &[u8]) -> Option<(Members, &[u8])> {
        let (voters, rest) = read_list(bytes)?;
        let (learners, rest) = read_list(rest)?;
        Some((Members { voters, learners }, rest))
    }
}

fn read_list(bytes: &[u8]) -> Option<(Vec<ReplicaId>, &[u8])> {
    let (count, mut rest) = bytes.split_first_chunk::<4>()?;
    let mut list = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (id, after) = rest.split_first_chunk::<8>()?;
        list.push(ReplicaId(u64::from_le_bytes(*id)));
        rest = after;
    }
    Some((list, rest))
}

impl From<&Members> for ConfState {
    fn from(members: &Members) -> ConfState {
        let ids = |list: &[ReplicaId]| list.iter().map(|id| id.0).collect::<Vec<u64>>();
        ConfState::from((ids(&members.voters), ids(&members.learners)))
    }
}

impl TryFrom<&ConfState> for Members {
    type Error = String;

    /// Fails on what one change at a time never leads to: joint configurations, a group without
    /// voters, a replica named twice.
    fn try_from(state: &ConfState) -> Result<Members, String> {
        if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave
        {
            return Err("a joint configuration".into());
        }
        let sorted = |list: &[u64]| {
            let mut list: Vec<ReplicaId> = list.iter().map(|id| ReplicaId(*id)).collect();
            list.sort_unstable();
            list
        };
        let members = Members { voters: sorted(&state.voters), learners: sorted(&state.learners) };
        let mut all = [members.voters.as_slice(), members.learners.as_slice()].concat();
        all.sort_unstable();
        if members.voters.is_empty() || all[0].0 == 0 || all.windows(2).any(|two| two[0] == two[1])
        {
            return Err(format!("a configuration of {all:?}"));
        }
        Ok(members)
    }
}

/// A change of one member. Changing one at a time keeps every majority in touch with the next
/// (Ongaro 2014, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A replica begins to follow.
    AddLearner(ReplicaId),
    /// A learner that has caught up begins to vote.
    Promote(ReplicaId),
    /// A replica leaves.
    Remove(ReplicaId),
}

impl MemberChange {
    /// Whether the change means anything in this configuration.
    pub(super) fn fits(self, members: &Members) -> bool {
        match self {
            MemberChange::AddLearner(id) => !members.contains(id),
            MemberChange::Promote(id) => members.learners.contains(&id),
            MemberChange::Remove(id) => {
                members.contains(id) && members.voters.iter().any(|voter| *voter != id)
            }
        }
    }
}

impl From<MemberChange> for ConfChangeV2 {
    fn from(change: MemberChange) -> ConfChangeV2 {
        let (kind, id) = match change {
            MemberChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            MemberChange::Promote(id) => (ConfChangeType::AddNode, id),
            MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = id.0;
        let mut all = ConfChangeV2::default();
        all.mut_changes().push(single);
        all
    }
}
