//! Which node should lead: handing over before a stop, drifting back after a failure, and
//! succeeding a leader that is known to be dead.
//!
//! Raft sees to it that there is a leader; which node that is, it leaves to chance. Three wishes
//! are added here, and none of them is more than a wish: each ends in a transfer or an election
//! that raft may refuse.
//!
//! - A node that stops hands over what it leads, to the reachable replica that lags least.
//! - Every partition has a *preferred* leader, so that the load is spread. A leader in its place
//!   hands over once that node has been linked for a while and has caught up, one partition of a
//!   Bucket at a time.
//! - When a leader's process is known to be dead, no election timeout is waited for: the replicas
//!   take turns in standing at once, in an order that all of them know. Where it does not answer
//!   they do so as soon as their promises to it end.

use super::Bucket;
use super::nodes::may_live;
use crate::batch::machine::Machine;
use crate::cluster::topology::Placement;
use crate::consensus::{Group, Progress, Role};
use crate::ids::{Incarnation, NodeId, Now, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// For how long the preferred leader must have been linked before it is given the lead back, in ms.
pub const DRIFT_AFTER_MS: u64 = 5_000;

/// A lead that the preferred leader was given, and that is back within so many ms though it is well,
/// is not wanted there: nodes that were told different things would hand it to and fro.
const RETURNED_MS: u64 = 5_000;

/// For how long it is not given to that life of the node again, in ms.
const DECLINED_MS: u64 = 600_000;

/// Entries that the preferred leader may lack and still count as caught up: they leave with the
/// transfer, during which nothing is proposed.
const DRIFT_LAG_MAX: u64 = 256;

/// How long a replica's turn to succeed a dead leader is, in ms. Long enough for a round of votes
/// and its sync; a replica that lacks entries which another has loses it, and the next one stands.
const TURN_MS: u64 = 75;

/// After so long the election timeouts of the groups have seen to it.
const SUCCESSION_MS: u64 = 2_000;

/// What a Bucket knows beside raft of which node should lead.
#[derive(Debug)]
pub struct Wishes {
    placement: Arc<Placement>,
    /// Partitions that another node is to lead than the one that the placement prefers.
    moved: BTreeMap<PartitionId, NodeId>,
    /// Since when each life of a node has been linked, in ms of the monotonic clock.
    linked: BTreeMap<NodeId, (Incarnation, u64)>,
    /// Partitions whose leader is dead or suspected: which node led, and since when that is known.
    orphans: BTreeMap<PartitionId, (NodeId, u64)>,
    /// The leaders, at the last tick, of what this node did not lead.
    followed: BTreeMap<PartitionId, NodeId>,
    /// When this node gave a partition to its preferred leader.
    given: BTreeMap<PartitionId, u64>,
    /// Partitions that their preferred leader returned: its life then, and when.
    declined: BTreeMap<PartitionId, (Incarnation, u64)>,
    /// The node stops: it leads as little as it can.
    retires: bool,
}

impl Wishes {
    /// Each partition is to be led by the node that the placement prefers.
    pub fn new(placement: Arc<Placement>) -> Wishes {
        Wishes {
            placement,
            moved: BTreeMap::new(),
            linked: BTreeMap::new(),
            orphans: BTreeMap::new(),
            followed: BTreeMap::new(),
            given: BTreeMap::new(),
            declined: BTreeMap::new(),
            retires: false,
        }
    }

    /// The node that is to lead a partition.
    fn preferred(&self, id: PartitionId) -> Option<NodeId> {
        self.moved.get(&id).copied().or_else(|| self.placement.preferred(id))
    }
}

impl<M: Machine> Bucket<M> {
    /// The node stops: hands over every partition led here to the reachable replica that lags
    /// least. Returns how many are still led here that another node could lead. To be called until
    /// that is none, or patience ends.
    pub fn hand_over(&mut self) -> usize {
        self.wishes.retires = true;
        let mut left = 0;
        for index in 0..self.partitions.len() {
            let id = PartitionId(index as u16);
            let (neighbours, generations) = (&self.neighbours, &self.generations);
            let Some(partition) = &mut self.partitions[index] else { continue };
            let Some(journal) = partition.journal_mut() else { continue };
            let group = journal.group_mut();
            let reachable = |one: &Progress| {
                let is_away = neighbours.is_away(one.id.node());
                one.is_active && !is_away && may_live(generations, id, one.id)
            };
            let Some(heir) = heir(group, reachable) else { continue };
            left += 1;
            if !group.is_transferring() {
                group.transfer(heir.id);
            }
            self.touch(id);
        }
        left
    }

    /// From now on `node` is to lead the partition, until the process ends. If this node leads it,
    /// it hands over now. Tells whether it begins to.
    pub fn prefer(&mut self, id: PartitionId, node: NodeId) -> bool {
        if self.wishes.placement.replicas(id).is_empty() {
            return false;
        }
        self.wishes.moved.insert(id, node);
        self.wishes.declined.remove(&id);
        let Some(Some(partition)) = self.partitions.get_mut(id.index()) else { return false };
        let Some(journal) = partition.journal_mut() else { return false };
        let group = journal.group_mut();
        // Not to a replica that learns, nor to one that is lost.
        let generations = &self.generations;
        let begun = heir(group, |one| one.id.node() == node && may_live(generations, id, one.id))
            .is_some_and(|heir| group.transfer(heir.id));
        self.touch(id);
        begun
    }

    /// The node that is to lead a partition.
    pub fn preferred(&self, id: PartitionId) -> Option<NodeId> {
        self.wishes.preferred(id)
    }

    /// Gives a partition back to the leader it is meant to have, one at a time.
    pub(super) fn drift_back(&mut self, now: Now) {
        self.note_links(now.mono);
        self.note_leaders(now.mono);
        let transfers = |one: &super::Partition<M>| {
            one.journal().is_some_and(|journal| journal.group().is_transferring())
        };
        if self.wishes.retires || self.partitions().any(transfers) {
            return;
        }
        for id in self.wishes.placement.partitions() {
            let (index, Some(preferred)) = (id.index(), self.wishes.preferred(id)) else {
                continue;
            };
            let steady = self
                .wishes
                .linked
                .get(&preferred)
                .is_some_and(|(_, since)| since.saturating_add(DRIFT_AFTER_MS) <= now.mono);
            let life = self.neighbours.lives.get(&preferred).copied();
            let declined = self.wishes.declined.get(&id).is_some_and(|(then, since)| {
                life == Some(*then) && now.mono < since.saturating_add(DECLINED_MS)
            });
            let may = steady && !declined;
            let Some(Some(partition)) = self.partitions.get_mut(index).filter(|_| may) else {
                continue;
            };
            let Some(journal) = partition.journal_mut().filter(|journal| journal.leads()) else {
                continue;
            };
            let group = journal.group_mut();
            let (last, generations) = (group.last_index(), &self.generations);
            let caught_up = |one: &Progress| {
                one.id.node() == preferred
                    && may_live(generations, id, one.id)
                    && one.is_active
                    && one.matched.saturating_add(DRIFT_LAG_MAX) >= last
            };
            if heir(group, caught_up).is_some_and(|heir| group.transfer(heir.id)) {
                self.wishes.given.insert(id, now.mono);
                self.touch(id);
                return;
            }
        }
    }

    /// Notes since when each node has been linked, as far as ticks tell.
    fn note_links(&mut self, mono: u64) {
        let (lives, neighbours) = (&self.neighbours.lives, &self.neighbours);
        let linked = &mut self.wishes.linked;
        linked
            .retain(|node, (life, _)| !neighbours.is_away(*node) && lives.get(node) == Some(life));
        for (node, life) in lives.iter().filter(|(node, _)| !neighbours.is_away(**node)) {
            linked.entry(*node).or_insert((*life, mono));
        }
    }

    /// Notes what is led here again, soon after it was given to its preferred leader, which is well.
    fn note_leaders(&mut self, mono: u64) {
        let Wishes { placement, moved, followed, given, declined, .. } = &mut self.wishes;
        let preferred = |id| moved.get(&id).copied().or_else(|| placement.preferred(id));
        given.retain(|_, since| mono < since.saturating_add(RETURNED_MS));
        for (index, partition) in self.partitions.iter().enumerate() {
            let Some(journal) = partition.as_ref().and_then(|one| one.journal()) else { continue };
            let id = PartitionId(index as u16);
            if !journal.leads() {
                let leader = journal.group().leader();
                leader.and_then(|leader| followed.insert(id, leader.node()));
                continue;
            }
            let Some(former) = followed.remove(&id) else { continue };
            let life = self.neighbours.lives.get(&former).copied();
            if let Some(life) = life.filter(|_| !self.neighbours.is_away(former))
                && preferred(id) == Some(former)
                && given.remove(&id).is_some()
            {
                declined.insert(id, (life, mono));
            }
        }
    }

    /// The process on `node` is dead: no promise made to it binds any more, and its partitions are
    /// succeeded to without waiting for a timeout. See [`Group::leader_is_dead`] for the evidence
    /// that this takes.
    pub fn leader_died(&mut self, node: NodeId, now: Now) {
        for index in 0..self.partitions.len() {
            let Some(partition) = &mut self.partitions[index] else { continue };
            let Some(journal) = partition.journal_mut() else { continue };
            if journal.group_mut().leader_is_dead(node) {
                self.wishes.orphans.insert(PartitionId(index as u16), (node, now.mono));
            }
        }
        self.succeed(now);
    }

    /// The node does not answer. Promises to it bind as long as they do; its partitions are succeeded
    /// to as soon as that is over, in turns rather than at random times. Where a majority does not
    /// answer this node leads no more.
    pub(super) fn leader_suspected(&mut self, node: NodeId, now: Now) {
        for index in 0..self.partitions.len() {
            let neighbours = &self.neighbours;
            let Some(partition) = &mut self.partitions[index] else { continue };
            let Some(journal) = partition.journal_mut() else { continue };
            let voters = &journal.group().members().voters;
            let near = voters.iter().filter(|voter| !neighbours.is_away(voter.node())).count();
            if near <= voters.len() / 2 && journal.group_mut().resign() {
                self.touch(PartitionId(index as u16));
            } else if journal.group().leader().is_some_and(|leader| leader.node() == node) {
                self.wishes.orphans.insert(PartitionId(index as u16), (node, now.mono));
            }
        }
        self.succeed(now);
    }

    /// The node answers again: its partitions are its own.
    pub(super) fn leader_trusted(&mut self, node: NodeId) {
        self.wishes.orphans.retain(|_, (leader, _)| *leader != node);
    }

    /// Stands for election where a leader is known to be dead, or does not answer, and it is this
    /// node's turn.
    pub(super) fn succeed(&mut self, now: Now) {
        let orphans: Vec<_> = self.wishes.orphans.iter().map(|(id, one)| (*id, *one)).collect();
        for (id, (dead, since)) in orphans {
            let passed = now.mono.saturating_sub(since);
            let Some(Some(partition)) = self.partitions.get_mut(id.index()) else { continue };
            let node = partition.node();
            let Some(journal) = partition.journal_mut() else { continue };
            let group = journal.group_mut();
            let led = group.leader().is_some_and(|leader| leader.node() != dead);
            if led || passed > SUCCESSION_MS {
                self.wishes.orphans.remove(&id);
                continue;
            }
            let voters = group.members().voters.iter().map(|voter| voter.node());
            let left: Vec<NodeId> = voters.filter(|voter| *voter != dead).collect();
            let turn = id.index() + (passed / TURN_MS) as usize;
            if !self.wishes.retires && left.get(turn % left.len().max(1)) == Some(&node) {
                group.campaign();
                self.touch(id);
            }
        }
    }
}

/// Of the other voters that `fits`, the one that lags least; none where this replica does not lead.
fn heir(group: &Group, fits: impl Fn(&Progress) -> bool) -> Option<Progress> {
    if group.role() != Role::Leader {
        return None;
    }
    let other = |one: &Progress| one.id != group.id() && group.members().voters.contains(&one.id);
    let others = group.progress().into_iter().filter(|one| other(one) && fits(one));
    // The first of those that lag equally.
    others.rev().max_by_key(|one| (!one.awaits_snapshot, one.matched))
}

#[cfg(test)]
mod tests;
