//! The address book: who serves what, as addresses.
//!
//! Made once when a node starts and handed to all of its actors. A request finds its way by the
//! partition alone; whether that leads to a Bucket of this node or to the Peer of another one,
//! who asks does not know.

use crate::actors::bucket::{self, Bucket, Execute};
use crate::actors::coordinator::{self, Coordinator};
use crate::actors::lock_manager::{self, LockManager};
use crate::actors::peer::{Convey, Peer};
use crate::engine::partition::Effect;
use crate::engine::protocol::{ToCoordinator, ToLocks, ToPartition};
use crate::ids::{NodeId, PartitionId};
use crate::net::packet::Packet;
use actix::{Addr, Recipient};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An address book.
#[derive(Debug)]
pub struct Book {
    /// The node whose book it is.
    pub node: NodeId,
    /// Which node serves each partition.
    pub homes: Vec<NodeId>,
    /// This node's Buckets.
    pub buckets: Vec<Addr<Bucket>>,
    /// Which of them serves a partition, for those served here.
    pub placed: Vec<Option<usize>>,
    /// The other nodes.
    pub peers: BTreeMap<NodeId, Addr<Peer>>,
    /// This node's Coordinator.
    pub coordinator: Addr<Coordinator>,
    /// This node's lock manager.
    pub locks: Addr<LockManager>,
    routes: Vec<usize>,
    destinations: Vec<Recipient<Execute>>,
}

impl Book {
    /// Puts the book together.
    pub fn new(
        node: NodeId,
        homes: Vec<NodeId>,
        buckets: Vec<Addr<Bucket>>,
        placed: Vec<Option<usize>>,
        peers: BTreeMap<NodeId, Addr<Peer>>,
        coordinator: Addr<Coordinator>,
        locks: Addr<LockManager>,
    ) -> Arc<Book> {
        let mut destinations: Vec<Recipient<Execute>> =
            buckets.iter().map(|bucket| bucket.clone().recipient()).collect();
        let mut of_peer = BTreeMap::new();
        for (id, peer) in &peers {
            of_peer.insert(*id, destinations.len());
            destinations.push(peer.clone().recipient());
        }
        let route = |(index, home): (usize, &NodeId)| match placed[index] {
            Some(bucket) => bucket,
            None => of_peer[home],
        };
        let routes = homes.iter().enumerate().map(route).collect();
        Arc::new(Book {
            node,
            homes,
            buckets,
            placed,
            peers,
            coordinator,
            locks,
            routes,
            destinations,
        })
    }

    /// How many destinations operations can have.
    pub fn destinations(&self) -> usize {
        self.destinations.len()
    }

    /// The destination of a partition's operations, as an index.
    #[inline]
    pub fn route(&self, partition: PartitionId) -> usize {
        self.routes[partition.index()]
    }

    /// Sends operations to a destination. The bound of its mailbox is kept by the Sessions: each
    /// has at most one batch at a destination.
    #[inline]
    pub fn execute(&self, destination: usize, execute: Execute) {
        self.destinations[destination].do_send(execute);
    }

    /// Tells a partition, wherever it is served.
    pub fn tell_partition(&self, to: PartitionId, message: ToPartition) {
        match self.placed.get(to.index()).copied().flatten() {
            Some(bucket) => self.buckets[bucket].do_send(bucket::ForPartition { to, message }),
            None => {
                let home = self.homes.get(to.index());
                if let Some(peer) = home.and_then(|home| self.peers.get(home)) {
                    peer.do_send(Convey(Packet::Partition(to, message)));
                }
            }
        }
    }

    /// Tells a node's Coordinator.
    pub fn tell_coordinator(&self, to: NodeId, message: ToCoordinator) {
        if to == self.node {
            self.coordinator.do_send(coordinator::ForCoordinator(message));
        } else if let Some(peer) = self.peers.get(&to) {
            peer.do_send(Convey(Packet::Coordinator(message)));
        }
    }

    /// Tells this node's lock manager.
    pub fn tell_locks(&self, message: ToLocks) {
        self.locks.do_send(lock_manager::ForLocks(message));
    }

    /// Carries out what a partition wants done.
    pub fn carry(&self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Coordinator(to, message) => self.tell_coordinator(to, message),
                Effect::Partition(to, message) => self.tell_partition(to, message),
                Effect::Locks(message) => self.tell_locks(message),
            }
        }
    }
}
