//! Nodes and their replicas: which nodes can be reached, which replicas here take part, and which of
//! other nodes may still be there.

use super::{Bucket, Outbox};
use crate::batch::machine::Machine;
use crate::consensus::{ReplicaId, Setup};
use crate::ids::{Incarnation, NodeId, Now, PartitionId};
use crate::partition::Partition;
use crate::partition::journal::Journal;
use std::collections::BTreeMap;

impl<M: Machine> Bucket<M> {
    /// Places a replicated partition here.
    pub fn place(&mut self, partition: Partition<M>) {
        let id = partition.id();
        if !votes(&partition) {
            self.unsound.insert(id);
        }
        self.partitions[id.index()] = Some(partition);
        self.touch(id);
    }

    /// The replica of a partition may have lost what it acknowledged. It takes no part before
    /// [`Bucket::settle`].
    pub fn suspect(&mut self, id: PartitionId) {
        self.suspects.insert(id);
        self.unsound.insert(id);
    }

    /// Partitions whose replica here cannot verify what it acknowledged: it is suspect or still
    /// learns. [`Outbox::sound`] says what becomes of them.
    pub fn unsound(&self) -> impl Iterator<Item = PartitionId> {
        self.unsound.iter().copied()
    }

    /// The suspicion of a partition's replica is settled: it goes on as the replica of `setup`, or as
    /// itself.
    ///
    /// # Errors
    /// In words, if the replica cannot go on.
    pub fn settle(&mut self, id: PartitionId, setup: Option<&Setup>) -> Result<(), String> {
        let known = self.partitions.get_mut(id.index()).and_then(Option::as_mut);
        let Some(journal) = known.and_then(Partition::journal_mut) else { return Ok(()) };
        if self.suspects.contains(&id)
            && let Some(setup) = setup
        {
            journal.group_mut().rename(setup)?;
        }
        self.suspects.remove(&id);
        self.touch(id);
        Ok(())
    }

    /// The groups take no part until the cluster is formed: with a disk that holds nothing, this
    /// node cannot know yet whether its replicas have promised anything.
    pub fn sleep(&mut self) {
        self.asleep = Some(Vec::new());
    }

    /// The cluster is formed: the first leaders of new groups stand for election.
    pub fn form(&mut self, now: Now) {
        for (partition, message) in self.asleep.take().into_iter().flatten() {
            // A reborn replica is told what was meant for the one before it.
            let _ = self.raft(partition, &message, now);
        }
        for index in 0..self.partitions.len() {
            let Some(partition) = &mut self.partitions[index] else { continue };
            if self.suspects.contains(&partition.id()) {
                continue;
            }
            let preferred = self.neighbours.topology.placement().preferred(partition.id());
            let first = preferred == Some(partition.node());
            if let Some(journal) = partition.journal_mut()
                && (first && journal.group().term() == 0 || journal.group().members().is_sole())
            {
                journal.group_mut().campaign();
                self.touch(PartitionId(index as u16));
            }
        }
    }

    /// A node tells the generations of its replicas: earlier ones have lost what they promised.
    pub fn reborn(&mut self, node: NodeId, generations: &[(PartitionId, u32)]) {
        for &(partition, generation) in generations {
            let known = self.generations.entry((partition, node)).or_insert(generation);
            *known = generation.max(*known);
        }
    }

    /// Whether a replica of a partition may still be there.
    pub(super) fn lives(&self, partition: PartitionId, id: ReplicaId) -> bool {
        may_live(&self.generations, partition, id)
    }

    /// Tells of the replicas that have come to vote.
    pub(super) fn verify(&mut self, out: &mut Outbox) {
        let (partitions, suspects) = (&self.partitions, &self.suspects);
        let verified = |id: &PartitionId| {
            let partition = partitions.get(id.index()).and_then(Option::as_ref);
            !suspects.contains(id) && partition.is_some_and(votes)
        };
        out.sound.extend(self.unsound.extract_if(.., verified));
    }

    /// The node goes on in a later life, before it has served in the one that it began in.
    pub fn relive(&mut self, life: Incarnation) {
        self.life = life;
        self.partitions.iter_mut().flatten().for_each(|partition| partition.relive(life));
    }

    /// A node lives and can be reached.
    pub fn node_up(&mut self, node: NodeId, life: Incarnation, out: &mut Outbox) {
        let known = self.neighbours.lives.get(&node).copied();
        self.neighbours.alive(node, life);
        for index in 0..self.partitions.len() {
            let Some(partition) = &mut self.partitions[index] else { continue };
            if known.is_some_and(|known| known < life) {
                partition.coordinator_lost(node, &mut out.effects);
            }
            partition.coordinator_began(node, life);
            self.touch(PartitionId(index as u16));
        }
    }

    /// A node cannot be reached; `ended` if that life of it is known to be over.
    pub fn node_down(&mut self, node: NodeId, ended: Option<Incarnation>, out: &mut Outbox) {
        self.neighbours.unreachable.insert(node);
        self.neighbours.suspected.remove(&node);
        if let Some(life) = ended {
            self.neighbours.gone(node, life);
        }
        for index in 0..self.partitions.len() {
            let Some(partition) = &mut self.partitions[index] else { continue };
            partition.coordinator_lost(node, &mut out.effects);
            if let Some(journal) = partition.journal_mut() {
                // What was on its way to it is lost: a leader sends it again.
                let there = journal.group().members().of_node(node);
                there.into_iter().for_each(|id| journal.group_mut().unreachable(id));
                self.touch(PartitionId(index as u16));
            }
        }
    }

    /// A linked node does not answer. What its transactions hold here without a log is given up, and
    /// the partitions that it leads are succeeded to as soon as the promises to it end.
    pub fn node_suspected(&mut self, node: NodeId, now: Now, out: &mut Outbox) {
        self.neighbours.suspected.insert(node);
        for partition in self.partitions.iter_mut().flatten() {
            partition.coordinator_lost(node, &mut out.effects);
        }
        self.leader_suspected(node, now);
    }

    /// A node that was suspected answers again.
    pub fn node_trusted(&mut self, node: NodeId) {
        self.neighbours.suspected.remove(&node);
        self.leader_trusted(node);
    }
}

/// Whether a replica of a partition may still be there, by what its node said last.
pub(super) fn may_live(
    generations: &BTreeMap<(PartitionId, NodeId), u32>,
    partition: PartitionId,
    id: ReplicaId,
) -> bool {
    let known = generations.get(&(partition, id.node()));
    known.is_none_or(|generation| id.generation() >= *generation)
}

/// Whether the replica of a partition here is one of those without which nothing is decided.
fn votes<M: Machine>(partition: &Partition<M>) -> bool {
    let group = partition.journal().map(Journal::group);
    group.is_none_or(|group| group.members().votes(group.id()))
}
