//! Which nodes answer and what they lead, and what that means for the transactions under way: which
//! of them end, wait, or begin another attempt.

use super::{GATHERED_KEYS_MAX, Phase, Transactions, Txn, TxnEffect};
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::ids::{Incarnation, NodeId, Now, PartitionId, Term};
use crate::txn::protocol::{Ended, Mode, Work};

impl<M: Machine> Transactions<M> {
    /// A node leads a partition from a term on.
    pub fn led(
        &mut self,
        id: PartitionId,
        node: NodeId,
        term: Term,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        if !self.topology.learn(id, node, term) {
            return;
        }
        let touches = |txn: &&Txn| txn.work.shares.iter().any(|(share, _)| *share == id);
        let active = self.active.values().map(Box::as_ref);
        let hit: Vec<u64> = active.filter(touches).map(|txn| txn.id.sequence).collect();
        for sequence in hit {
            self.on_leader_lost(sequence, id, now, effects);
        }
    }

    /// The leader of a partition leads no more: its unlogged locks are gone, and what was on its
    /// way to it may be lost.
    pub(super) fn on_leader_lost(
        &mut self,
        sequence: u64,
        partition: PartitionId,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let Some(txn) = self.active.get_mut(&sequence) else { return };
        match &mut txn.phase {
            Phase::Pausing { .. } => {}
            // The first decision stands, so asking again is harmless; at the next tick, as the new
            // leader may not be known yet.
            Phase::Deciding { asked, .. } if txn.primary == partition => *asked = 0,
            Phase::Deciding { .. } => {}
            Phase::Locking { .. } | Phase::Preparing { .. } | Phase::Confirming { .. } => {
                self.abort(sequence, effects);
                self.pause(sequence, partition, now);
            }
        }
    }

    /// A node can be reached, in this life.
    pub fn node_up(
        &mut self,
        node: NodeId,
        life: Incarnation,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        if self.reachable.get(&node).is_some_and(|known| *known != life) {
            self.node_down(node, now, effects);
        }
        self.reachable.insert(node, life);
        self.suspected.remove(&node);
    }

    /// A node can be reached and does not answer. Attempts that need it are aborted, so that they
    /// lock nothing elsewhere meanwhile, and begin again once it answers or others lead what it led.
    /// Decisions under way are waited for.
    pub fn node_suspected(&mut self, node: NodeId, now: Now, effects: &mut Vec<TxnEffect>) {
        if node == self.node {
            return;
        }
        self.suspected.insert(node);
        let led_there = |txn: &Txn| {
            let mut ids = txn.work.shares.iter().map(|(id, _)| *id);
            Some((txn.id.sequence, ids.find(|id| self.leader(*id) == Some(node))?))
        };
        let active = self.active.values().map(AsRef::as_ref);
        let hit: Vec<(u64, PartitionId)> = active.filter_map(led_there).collect();
        for (sequence, partition) in hit {
            self.on_leader_lost(sequence, partition, now, effects);
        }
    }

    /// A node that was suspected answers again.
    pub fn node_trusted(&mut self, node: NodeId) {
        self.suspected.remove(&node);
    }

    /// A node cannot be reached any more: transactions that need it end, or wait for another leader
    /// of what it led.
    pub fn node_down(&mut self, node: NodeId, now: Now, effects: &mut Vec<TxnEffect>) {
        if node == self.node {
            return;
        }
        self.reachable.remove(&node);
        self.suspected.remove(&node);
        let hit: Vec<(u64, PartitionId)> = self
            .active
            .values()
            .filter_map(|txn| {
                let mut ids = txn.work.shares.iter().map(|(id, _)| *id);
                let led = ids.find(|id| self.leader(*id) == Some(node))?;
                Some((txn.id.sequence, led))
            })
            .collect();
        for (sequence, partition) in hit {
            let Some(txn) = self.active.get(&sequence) else { continue };
            let deciding = matches!(txn.phase, Phase::Deciding { .. });
            let primary_lost = self.leader(txn.primary) == Some(node);
            if deciding && primary_lost && self.is_replicated(txn.primary) {
                let primary = txn.primary;
                self.on_leader_lost(sequence, primary, now, effects);
            } else if deciding && primary_lost {
                // The participants ask the primary, or each other, by themselves.
                let unknown = Ended::Unknown(Refusal::Unreachable(node));
                self.give_up(sequence, unknown, effects);
            } else if !deciding && let Some(refusal) = self.hopeless(&txn.work) {
                self.refuse(sequence, refusal, effects);
            } else if !deciding {
                self.on_leader_lost(sequence, partition, now, effects);
            }
        }
    }

    pub(super) fn leader(&self, id: PartitionId) -> Option<NodeId> {
        self.topology.leader(id)
    }

    /// The first of the work's partitions whose leader cannot be reached, among the replicated ones
    /// or the others.
    pub(super) fn lacking(&self, work: &Work, replicated: bool) -> Option<PartitionId> {
        let mut ids = work.shares.iter().map(|(id, _)| *id);
        ids.find(|id| {
            let leader = self.leader(*id);
            self.is_replicated(*id) == replicated
                && leader.is_some_and(|leader| !self.reachable.contains_key(&leader))
        })
    }

    /// The first of the work's partitions whose leader does not answer.
    pub(super) fn silent(&self, work: &Work) -> Option<PartitionId> {
        let mut ids = work.shares.iter().map(|(id, _)| *id);
        ids.find(|id| self.leader(*id).is_some_and(|leader| self.suspected.contains(&leader)))
    }

    /// Why work cannot be done: a partition without copies is out of reach.
    pub(super) fn hopeless(&self, work: &Work) -> Option<Refusal> {
        let gathered: usize = work.shares.iter().map(|(_, share)| share.claims.len()).sum();
        if work.mode == Mode::Gather && gathered > GATHERED_KEYS_MAX {
            return Some(Refusal::Gathers(gathered.try_into().unwrap_or(u32::MAX)));
        }
        let lacking = self.lacking(work, false)?;
        self.leader(lacking).map(Refusal::Unreachable)
    }
}
