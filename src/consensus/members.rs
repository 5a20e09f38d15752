//! The members of a group: replicas by id, voters and learners.

use crate::ids::NodeId;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
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

/// A group's configuration. The lists are sorted, and no learner votes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The replicas that elect and acknowledge.
    pub voters: Vec<ReplicaId>,
    /// The replicas that only follow.
    pub learners: Vec<ReplicaId>,
    /// While the configuration is joint, the voters before it: a majority of them is needed as
    /// well. Empty otherwise.
    pub outgoing: Vec<ReplicaId>,
}

impl Members {
    /// A group of these voters.
    pub fn of(voters: impl IntoIterator<Item = ReplicaId>) -> Members {
        let mut voters: Vec<ReplicaId> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Members { voters, learners: Vec::new(), outgoing: Vec::new() }
    }

    /// Whether two lists of voters have to agree.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether one replica decides alone.
    pub fn is_sole(&self) -> bool {
        self.voters.len() == 1 && !self.is_joint()
    }

    /// Whether the same majorities decide here as there.
    pub(super) fn votes_like(&self, other: &Members) -> bool {
        (&self.voters, &self.outgoing) == (&other.voters, &other.outgoing)
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<ReplicaId> {
        let mut all = [&self.voters[..], &self.learners, &self.outgoing].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether the replica votes or learns here.
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.votes(id) || self.learners.contains(&id)
    }

    /// The replicas on a node, the latest one last: more than one while it comes back under another
    /// id.
    pub fn of_node(&self, node: NodeId) -> Vec<ReplicaId> {
        let mut all = self.all();
        all.retain(|id| id.node() == node);
        all
    }

    /// Whether the replica votes here, if only until a joint configuration is left.
    pub fn votes(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Appends the configuration as bytes: counted lists of ids, the last one only if it is joint.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let lists = [&self.voters, &self.learners, &self.outgoing];
        for list in &lists[..if self.is_joint() { 3 } else { 2 }] {
            out.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|id| out.extend_from_slice(&id.0.to_le_bytes()));
        }
    }

    /// Reads all of what [`Members::write`] wrote.
    pub(super) fn read(bytes: &[u8]) -> Option<Members> {
        let (voters, rest) = read_list(bytes)?;
        let (learners, rest) = read_list(rest)?;
        let outgoing = match rest.is_empty() {
            true => Vec::new(),
            false => {
                let (outgoing, rest) = read_list(rest)?;
                (rest.is_empty() && !outgoing.is_empty()).then_some(outgoing)?
            }
        };
        Some(Members { voters, learners, outgoing })
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
        let mut state = ConfState::from((ids(&members.voters), ids(&members.learners)));
        state.voters_outgoing = ids(&members.outgoing);
        state
    }
}

impl TryFrom<&ConfState> for Members {
    type Error = String;

    /// Fails on what our changes never lead to: a group without voters, a replica named twice, a
    /// voter that is to learn, a joint configuration that is left by itself.
    fn try_from(state: &ConfState) -> Result<Members, String> {
        if !state.learners_next.is_empty() || state.auto_leave {
            return Err("a joint configuration of another kind".into());
        }
        let sorted = |list: &[u64]| {
            let mut list: Vec<ReplicaId> = list.iter().map(|id| ReplicaId(*id)).collect();
            list.sort_unstable();
            list
        };
        let members = Members {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            outgoing: sorted(&state.voters_outgoing),
        };
        let is_set = |voters: &[ReplicaId]| {
            let mut all = [voters, &members.learners].concat();
            all.sort_unstable();
            all.iter().all(|id| id.0 != 0) && all.windows(2).all(|two| two[0] != two[1])
        };
        if members.voters.is_empty() || !is_set(&members.voters) || !is_set(&members.outgoing) {
            let Members { voters, learners, outgoing } = members;
            return Err(format!("a configuration of {voters:?}, {learners:?}, {outgoing:?}"));
        }
        Ok(members)
    }
}

/// A change of members. Every majority before it shares a replica with every majority after it,
/// with the next one proposed once it is applied: it moves one voter (Ongaro 2014, 4.1), or goes
/// through a joint configuration, which leaders leave by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A replica begins to follow.
    AddLearner(ReplicaId),
    /// A learner that has caught up begins to vote.
    Promote(ReplicaId),
    /// A replica leaves.
    Remove(ReplicaId),
    /// A learner that has caught up votes in the place of another replica, which leaves.
    Replace {
        /// The voter that leaves.
        old: ReplicaId,
        /// The learner that votes.
        new: ReplicaId,
    },
}

impl MemberChange {
    /// Whether the change means anything in this configuration.
    pub(super) fn fits(self, members: &Members) -> bool {
        // The raft crate would turn it into an entry that says nothing.
        if members.is_joint() {
            return false;
        }
        match self {
            MemberChange::AddLearner(id) => !members.contains(id),
            MemberChange::Promote(id) => members.learners.contains(&id),
            MemberChange::Remove(id) => {
                members.contains(id) && members.voters.iter().any(|voter| *voter != id)
            }
            MemberChange::Replace { old, new } => {
                members.voters.contains(&old) && members.learners.contains(&new)
            }
        }
    }

    /// The replica that leaves.
    pub(super) fn leaving(self) -> Option<ReplicaId> {
        match self {
            MemberChange::Remove(id) | MemberChange::Replace { old: id, .. } => Some(id),
            MemberChange::AddLearner(_) | MemberChange::Promote(_) => None,
        }
    }
}

impl From<MemberChange> for ConfChangeV2 {
    fn from(change: MemberChange) -> ConfChangeV2 {
        let one = |kind, id: ReplicaId| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id.0;
            single
        };
        let mut all = ConfChangeV2::default();
        match change {
            MemberChange::AddLearner(id) => {
                all.mut_changes().push(one(ConfChangeType::AddLearnerNode, id));
            }
            MemberChange::Promote(id) => all.mut_changes().push(one(ConfChangeType::AddNode, id)),
            MemberChange::Remove(id) => all.mut_changes().push(one(ConfChangeType::RemoveNode, id)),
            MemberChange::Replace { old, new } => {
                all.mut_changes().push(one(ConfChangeType::RemoveNode, old));
                all.mut_changes().push(one(ConfChangeType::AddNode, new));
                // Left to itself, the raft crate leaves it only under the leader that entered it.
                all.set_transition(ConfChangeTransition::Explicit);
            }
        }
        all
    }
}

/// Whether a logged change is one that [`MemberChange`] stands for, or leaves a joint configuration.
pub(super) fn is_known(change: &ConfChangeV2) -> bool {
    let transition = change.get_transition();
    match change.changes.len() {
        0 | 1 => transition == ConfChangeTransition::Auto,
        2 => transition == ConfChangeTransition::Explicit,
        _ => false,
    }
}

/// A change that changes nothing.
pub(super) fn no_change() -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    // The raft crate takes the id 0 for a change that was decided against.
    change.mut_changes().push(ConfChangeSingle::default());
    change
}
