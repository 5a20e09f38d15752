//! Messages of the commit protocol on their way out: what one turn of an actor has to tell leaves
//! as one message to each who is told.
//!
//! A message across arbiters costs more than what most of them ask for, and what arrives together
//! is logged together.

use crate::actors::book::Book;
use crate::actors::bucket::ForPartitions;
use crate::actors::coordinator::ForCoordinator;
use crate::actors::peer::ConveyAll;
use crate::ids::{NodeId, PartitionId};
use crate::net::packet::Packet;
use crate::txn::protocol::{ToCoordinator, ToPartition};
use std::collections::BTreeMap;

/// Messages by who is told. What one of them is told keeps its order.
#[derive(Debug, Default)]
pub struct Dispatch {
    buckets: BTreeMap<usize, Vec<(PartitionId, ToPartition)>>,
    coordinator: Vec<ToCoordinator>,
    peers: BTreeMap<NodeId, Vec<Packet>>,
}

impl Dispatch {
    /// For a partition, wherever it is led.
    pub fn to_partition(&mut self, book: &Book, to: PartitionId, message: ToPartition) {
        if to.index() >= book.topology.placement().len() {
            return;
        }
        match book.leader(to) {
            node if node == book.node => self.to_partition_here(book, to, message),
            node => self.peers.entry(node).or_default().push(Packet::Partition(to, message)),
        }
    }

    /// For this node's replica of a partition: what was sent here goes no further.
    pub fn to_partition_here(&mut self, book: &Book, to: PartitionId, message: ToPartition) {
        if let Some(bucket) = book.placed.get(to.index()).copied().flatten() {
            self.buckets.entry(bucket).or_default().push((to, message));
        }
    }

    /// For a node's Coordinator.
    pub fn to_coordinator(&mut self, book: &Book, to: NodeId, message: ToCoordinator) {
        match to == book.node {
            true => self.coordinator.push(message),
            false => self.peers.entry(to).or_default().push(Packet::Coordinator(message)),
        }
    }

    /// Sends all of it.
    pub fn send(&mut self, book: &Book) {
        while let Some((bucket, messages)) = self.buckets.pop_first() {
            book.buckets[bucket].do_send(ForPartitions(messages));
        }
        if !self.coordinator.is_empty() {
            book.coordinator.do_send(ForCoordinator(std::mem::take(&mut self.coordinator)));
        }
        while let Some((node, packets)) = self.peers.pop_first() {
            if let Some(peer) = book.peers.get(&node) {
                peer.do_send(ConveyAll(packets));
            }
        }
    }
}
