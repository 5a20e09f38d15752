//! Actors, messages, and the links between nodes, which are slow, break and come back.
//!
//! What one actor sends to another arrives in that order or, once their link breaks, not at all. Of
//! what different actors send nothing is promised. What may be relayed comes by way of every third
//! node, in any order with the rest, once its sender takes the receiver for lost or suspects it.

use super::pipelines::{Asker, Exchange};
use super::world::{NODES, PARTITIONS, World, node_id};
use crate::batch::{Batch, Replies};
use crate::ids::Term;
use crate::ids::{Incarnation, NodeId, PartitionId};
use crate::txn::protocol::{Ended, Ticket, ToCoordinator, ToLocks, ToPartition, Work};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Actor {
    /// Of a node, which of its Buckets.
    Bucket(usize, usize),
    Locks(usize),
    Coordinator(usize),
    /// The leaders, as a node was told. Leaders announce themselves on another stream than the one
    /// on which they answer, so either may overtake the other.
    Book(usize),
    Client(usize),
    /// The Sessions of a node.
    Session(usize),
    /// What a node has asked of another's Buckets.
    Peer(usize),
    Disk(usize),
}

impl Actor {
    pub(super) fn node(self) -> Option<usize> {
        match self {
            Actor::Bucket(node, _)
            | Actor::Session(node)
            | Actor::Peer(node)
            | Actor::Disk(node)
            | Actor::Locks(node)
            | Actor::Coordinator(node)
            | Actor::Book(node) => Some(node),
            Actor::Client(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Message {
    Raft(PartitionId, Bytes),
    Leads(PartitionId, NodeId, Term),
    Partition(PartitionId, ToPartition),
    Coordinator(ToCoordinator),
    Locks(ToLocks),
    Grant(PartitionId, Ticket),
    Execute(Asker, Batch),
    /// A Session asks another node, and is answered.
    Asked(Exchange, Batch),
    Landed(Exchange, Replies),
    Persisted(Vec<(PartitionId, u64)>),
    Begin(usize, Work),
    Replied(usize, Replies),
    Ended(usize, Ended),
    /// To be passed on.
    Relay(Actor, Box<Message>),
}

pub(super) fn to_clients(
    queues: &BTreeMap<(Actor, Actor), VecDeque<Message>>,
    node: usize,
) -> bool {
    queues.keys().any(|(from, to)| from.node() == Some(node) && to.node().is_none())
}

impl World {
    pub(super) fn send(&mut self, from: Actor, to: Actor, message: Message) {
        if let (Some(one), Some(other)) = (from.node(), to.node()) {
            if self.is_down(one, other) || self.suspected.contains(&(one, other)) {
                self.relay(from, to, &message);
            }
            if self.is_cut(one, other) {
                return;
            }
        }
        self.queues.entry((from, to)).or_default().push_back(message);
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    /// Has all other nodes pass a message on, if it is one of those.
    fn relay(&mut self, from: Actor, to: Actor, message: &Message) {
        let copy = || match message {
            Message::Partition(id, message) => message
                .may_be_relayed(*id, |id| self.kind.is_replicated(id))
                .then(|| Message::Partition(*id, message.clone())),
            Message::Coordinator(message) => {
                message.may_be_relayed().then(|| Message::Coordinator(message.clone()))
            }
            _ => None,
        };
        let passed: Vec<_> = (0..NODES)
            .filter(|third| Some(*third) != to.node() && Some(*third) != from.node())
            .filter(|third| from.node().is_some_and(|node| !self.is_cut(node, *third)))
            .filter_map(|third| Some((third, copy()?)))
            .collect();
        for (third, copy) in passed {
            let copy = Message::Relay(to, Box::new(copy));
            self.queues.entry((from, Actor::Peer(third))).or_default().push_back(copy);
        }
    }

    /// Passes a message on, unless its node is out of reach here too.
    pub(super) fn pass_on(&mut self, node: usize, to: Actor, message: Message) {
        if to.node().is_some_and(|other| !self.is_cut(node, other)) {
            self.queues.entry((Actor::Peer(node), to)).or_default().push_back(message);
        }
    }

    pub(super) fn is_slow(&self, pair: (Actor, Actor)) -> bool {
        self.slow.get(&pair).is_some_and(|until| self.now < *until)
    }

    pub(super) fn drop_between(&mut self, one: usize, other: usize) {
        self.queues.retain(|(from, to), _| match (from.node(), to.node()) {
            (Some(from), Some(to)) => {
                (from.min(to), from.max(to)) != (one.min(other), one.max(other))
            }
            _ => true,
        });
    }

    /// Delivers all that is under way from one node to another.
    pub(super) fn flush_between(&mut self, from: usize, to: usize) {
        let pairs: Vec<(Actor, Actor)> = self.queues.keys().copied().collect();
        for pair in pairs {
            if pair.0.node() != Some(from) || pair.1.node() != Some(to) {
                continue;
            }
            while let Some(message) = self.queues.get_mut(&pair).and_then(VecDeque::pop_front) {
                self.deliver(pair.1, message);
            }
        }
    }

    pub(super) fn cut(&mut self, one: usize, other: usize) {
        if self.cut.insert((one.min(other), one.max(other))) {
            self.drop_between(one, other);
            self.unnoticed.extend([(one, other), (other, one)]);
        }
    }

    /// A node notices that another one is out of reach: each in its own time.
    pub(super) fn notice(&mut self, node: usize, other: usize) {
        if self.unnoticed.remove(&(node, other)) {
            self.node_down(node, other, None);
        }
    }

    pub(super) fn heal(&mut self, one: usize, other: usize) {
        if self.cut.remove(&(one.min(other), one.max(other))) {
            // A new link stands on both sides once the old one is gone on both.
            self.notice(one, other);
            self.notice(other, one);
            self.node_up(one, other);
            self.node_up(other, one);
        }
    }

    /// Whether a node knows that another one is out of reach.
    pub(super) fn is_down(&self, node: usize, other: usize) -> bool {
        self.cut.contains(&(node.min(other), node.max(other)))
            && !self.unnoticed.contains(&(node, other))
    }

    /// A node suspects another one, to which it is linked. It may be wrong.
    pub(super) fn suspect(&mut self, node: usize, other: usize) {
        if self.is_down(node, other) || !self.suspected.insert((node, other)) {
            return;
        }
        self.with_bucket(node, |bucket, now, out| {
            bucket.node_suspected(node_id(other), now, out);
        });
        let now = self.now(node);
        let mut effects = Vec::new();
        self.coordinators[node].node_suspected(node_id(other), now, &mut effects);
        self.txn_effects(node, effects);
    }

    pub(super) fn trust(&mut self, node: usize, other: usize) {
        if self.suspected.remove(&(node, other)) {
            self.with_bucket(node, |bucket, _, _| bucket.node_trusted(node_id(other)));
            self.coordinators[node].node_trusted(node_id(other));
        }
    }

    pub(super) fn node_up(&mut self, node: usize, other: usize) {
        self.suspected.remove(&(node, other));
        let life = self.lives[other];
        self.with_bucket(node, |bucket, _, out| bucket.node_up(node_id(other), life, out));
        for partition in 0..PARTITIONS {
            let id = PartitionId(partition as u16);
            if self.leader(node, id) == node {
                let term = self.topologies[node].term(id);
                let leads = Message::Leads(id, node_id(node), term);
                let from = self.home(node, id);
                self.send(from, Actor::Book(other), leads);
            }
        }
        let now = self.now(node);
        let mut effects = Vec::new();
        self.coordinators[node].node_up(node_id(other), life, now, &mut effects);
        self.txn_effects(node, effects);
    }

    pub(super) fn node_down(&mut self, node: usize, other: usize, ended: Option<Incarnation>) {
        self.suspected.remove(&(node, other));
        self.with_bucket(node, |bucket, _, out| bucket.node_down(node_id(other), ended, out));
        let now = self.now(node);
        let mut effects = Vec::new();
        self.coordinators[node].node_down(node_id(other), now, &mut effects);
        self.txn_effects(node, effects);
        self.lose_exchanges(node, other);
    }
}
