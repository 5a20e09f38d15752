//! The address book: who serves what, as addresses.
//!
//! Made once when a node starts and handed to all of its actors. A request finds its way by the
//! partition alone; whether that leads to a Bucket of this node or to the Peer of another one,
//! who asks does not know. Who holds and who leads a partition is the [`Topology`]'s to know: the one
//! thing in the book that changes.

use crate::actors::archive::{self, Archive};
use crate::actors::bucket::{Bucket, Execute};
use crate::actors::coordinator::{self, Coordinator};
use crate::actors::dispatch::Dispatch;
use crate::actors::lock_manager::{self, LockManager};
use crate::actors::peer::Peer;
use crate::cluster::topology::Topology;
use crate::ids::Term;
use crate::ids::{NodeId, PartitionId};
use crate::partition::PartitionEffect;
use crate::partition::snapshots::ToArchive;
use crate::txn::protocol::ToLocks;
use actix::{Addr, Recipient};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An address book.
#[derive(Debug)]
pub struct Book {
    /// The node whose book it is.
    pub node: NodeId,
    /// Who holds and who leads each partition.
    pub topology: Arc<Topology>,
    /// This node's Buckets.
    pub buckets: Vec<Addr<Bucket>>,
    /// Which of them holds a partition, for those that this node holds.
    pub placed: Vec<Option<usize>>,
    /// The other nodes.
    pub peers: BTreeMap<NodeId, Addr<Peer>>,
    /// This node's Coordinator.
    pub coordinator: Addr<Coordinator>,
    /// This node's lock manager.
    pub locks: Addr<LockManager>,
    /// This node's snapshots, if it keeps any.
    pub archive: Option<Addr<Archive>>,
    /// The destination of each other node, by its id.
    of_node: Vec<usize>,
    destinations: Vec<Recipient<Execute>>,
}

impl Book {
    /// Puts the book together.
    #[allow(clippy::too_many_arguments, reason = "one for each kind of address in it")]
    pub fn new(
        node: NodeId,
        topology: Arc<Topology>,
        buckets: Vec<Addr<Bucket>>,
        placed: Vec<Option<usize>>,
        peers: BTreeMap<NodeId, Addr<Peer>>,
        coordinator: Addr<Coordinator>,
        locks: Addr<LockManager>,
        archive: Option<Addr<Archive>>,
    ) -> Arc<Book> {
        let mut destinations: Vec<Recipient<Execute>> =
            buckets.iter().map(|bucket| bucket.clone().recipient()).collect();
        let last = peers.keys().max().map_or(0, |node| usize::from(node.0));
        let mut of_node = vec![0; last.max(usize::from(node.0)) + 1];
        for (id, peer) in &peers {
            of_node[usize::from(id.0)] = destinations.len();
            destinations.push(peer.clone().recipient());
        }
        Arc::new(Book {
            node,
            topology,
            buckets,
            placed,
            peers,
            coordinator,
            locks,
            archive,
            of_node,
            destinations,
        })
    }

    /// Who leads a partition, as far as is known here.
    #[inline]
    pub fn leader(&self, partition: PartitionId) -> NodeId {
        self.topology.leader(partition).unwrap_or(self.node)
    }

    /// Whether a partition has copies, so that another leader will come if one is lost.
    pub fn is_replicated(&self, partition: PartitionId) -> bool {
        self.topology.placement().is_replicated(partition)
    }

    /// How many destinations operations can have.
    pub fn destinations(&self) -> usize {
        self.destinations.len()
    }

    /// The destinations of all partitions' operations.
    pub fn routes(&self) -> impl Iterator<Item = u16> {
        self.topology.placement().partitions().map(|id| self.route(id) as u16)
    }

    /// The destination of a partition's operations, as an index.
    #[inline]
    pub fn route(&self, partition: PartitionId) -> usize {
        let leader = self.leader(partition);
        match self.placed[partition.index()] {
            Some(bucket) if leader == self.node => bucket,
            _ => self.of_node[usize::from(leader.0)],
        }
    }

    /// Sends operations to a destination. The bound of its mailbox is kept by the Sessions: each
    /// has at most one batch at a destination.
    #[inline]
    pub fn execute(&self, destination: usize, execute: Execute) {
        self.destinations[destination].do_send(execute);
    }

    /// A node has said who leads a partition.
    pub fn hear_of_leader(&self, partition: PartitionId, node: NodeId, term: Term) {
        if self.topology.learn(partition, node, term) {
            self.coordinator.do_send(coordinator::Led(partition, node, term));
        }
    }

    /// Tells this node's lock manager.
    pub fn tell_locks(&self, message: ToLocks) {
        self.locks.do_send(lock_manager::ForLocks(message));
    }

    /// Asks this node's archive on behalf of a partition.
    pub fn tell_archive(&self, partition: PartitionId, order: ToArchive) {
        if let Some(archive) = &self.archive {
            archive.do_send(archive::Ordered(partition, order));
        }
    }

    /// Carries out what partitions want done.
    pub fn carry(&self, effects: &mut Vec<PartitionEffect>) {
        if effects.is_empty() {
            return;
        }
        let mut dispatch = Dispatch::default();
        for effect in effects.drain(..) {
            match effect {
                PartitionEffect::Coordinator(to, message) => {
                    dispatch.to_coordinator(self, to, message)
                }
                PartitionEffect::Partition(to, message) => dispatch.to_partition(self, to, message),
                PartitionEffect::Locks(message) => self.tell_locks(message),
            }
        }
        dispatch.send(self);
    }
}
