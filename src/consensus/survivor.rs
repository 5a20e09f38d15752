//! A way out of a lost majority: one replica goes on alone.
//!
//! A group whose majority is lost for good elects no leader and changes no members: both take a
//! majority. Its operator may decide that one of the copies that are left is to count from now on.
//! That is done to a replica that does not run: changes are put behind its log that leave it the
//! only voter, and are marked as *forced*. When it starts, they and all before them count as
//! committed. The other voters become learners, so that the replicas that their nodes come back
//! with have something to replace ([`Group::replacement`]).
//!
//! **What it costs.** What the lost majority acknowledged and this replica does not hold is lost.
//! What this replica holds and no majority acknowledged is kept. If the lost replicas come back with
//! their disks after all, there are two groups.

use super::log::forced_head;
use super::recover::write_state;
use super::{Group, Logged, MemberChange, Output, Recovered, ReplicaId, STATE_BYTES, Setup};
use crate::ids::{NodeId, Now};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState};

/// What a replica that goes on alone has to log before it starts.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The last entry that it holds, and its term: of several copies, the one with the latest term
    /// and then the latest entry has the most.
    pub last: (u64, u64),
    /// The voters that are lost, or are not to count.
    pub others: Vec<ReplicaId>,
    /// Term and vote.
    pub state: [u8; STATE_BYTES],
    /// The forced changes.
    pub entries: Vec<Logged>,
}

/// What the replica of `setup`, stopped and with this disk, has to log to go on without the replicas
/// on the `lost` nodes. None where the others are a majority.
///
/// # Errors
/// Where its disk cannot be a replica's, or it does not vote.
pub fn survive(
    setup: &Setup,
    recovered: Recovered,
    lost: &[NodeId],
) -> Result<Option<Survivor>, String> {
    let mut group = Group::recover(setup, recovered, 0, true)?;
    group.drive(Now::default(), &mut Output::default());
    let members = group.members().clone();
    let is_there = |id: &&ReplicaId| !lost.contains(&id.node());
    let decides = |list: &[ReplicaId]| list.iter().filter(is_there).count() * 2 > list.len();
    if decides(&members.voters) && (!members.is_joint() || decides(&members.outgoing)) {
        return Ok(None);
    }
    if !members.voters.contains(&setup.id) {
        return Err(format!("replica {} does not vote", setup.id));
    }
    let mut others = members.voters.clone();
    others.retain(|id| *id != setup.id);
    let mut changes = Vec::new();
    if members.is_joint() {
        changes.push(ConfChangeV2::default());
    }
    // A voter that is added as a learner votes no more.
    changes.extend(others.iter().map(|id| ConfChangeV2::from(MemberChange::AddLearner(*id))));

    let index = group.last_index();
    let mut before = group.raw.store().term_at(index).unwrap_or_default();
    let last = (index, before);
    let term = group.term().max(before) + 1;
    let mut entries = Vec::new();
    for (index, change) in (index + 1..).zip(changes) {
        let data = Bytes::from(change.write_to_bytes().map_err(|e| e.to_string())?);
        let entry_type = EntryType::EntryConfChangeV2;
        let entry = Entry { entry_type, index, term, data: data.clone(), ..Entry::default() };
        entries.push(Logged { index, head: forced_head(&entry, before), data });
        before = term;
    }
    let state = write_state(&HardState { term, ..HardState::default() });
    Ok(Some(Survivor { last, others, state, entries }))
}
