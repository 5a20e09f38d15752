//! What this node's replicas are called, and whether others may rely on them.
//!
//! Two things end a replica's name. The data directory is new and the cluster is not: everything
//! that the node acknowledged is gone. Or the machine went down, and the end of what was
//! acknowledged before it was synced went with it ([`Suspects`]). Either way the new name is durable
//! before anything is said under it, the other nodes hear of it whenever they are linked, and the
//! leaders of the partitions see to the rest.

use crate::actors::book::Book;
use crate::actors::bucket;
use crate::actors::peer::{Convey, Restate};
use crate::cluster::barrier::Hello;
use crate::cluster::suspects::{SuspectVerdict, Suspects};
use crate::command::Redis;
use crate::consensus::Setup;
use crate::ids::{NodeId, PartitionId};
use crate::net::packet::Packet;
use crate::partition::Partition;
use std::collections::{BTreeMap, BTreeSet};

/// A partition of this node that is logged.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The partition.
    pub id: PartitionId,
    /// The number of its Bucket.
    pub bucket: usize,
    /// The generation of its replica here.
    pub generation: u32,
    /// The other nodes with a replica.
    pub others: Vec<NodeId>,
    /// Whether its replica may have lost what it acknowledged.
    pub suspects: bool,
}

/// Makes what a replica of another generation begins with.
pub struct Makers {
    /// A partition that holds nothing; none if the node has to stop.
    pub newborn: Box<dyn Fn(PartitionId, u32) -> Option<Partition<Redis>>>,
    /// The setup of a replica that goes on with what it holds.
    pub setup: Box<dyn Fn(PartitionId, u32) -> Setup>,
}

/// The replicas of this node.
pub struct Replicas {
    kept: BTreeMap<PartitionId, Kept>,
    unsound: BTreeSet<PartitionId>,
    suspects: Suspects,
    makers: Makers,
}

/// What was decided about suspect replicas.
#[derive(Debug, Default)]
pub struct Decided {
    /// They come back as others.
    pub replaced: Vec<PartitionId>,
    /// They go on as they are.
    pub trusted: Vec<PartitionId>,
}

impl Replicas {
    /// The replicas as the disk has them; those of `unsound` cannot verify what they hold.
    pub fn new(kept: Vec<Kept>, unsound: BTreeSet<PartitionId>, makers: Makers) -> Replicas {
        let suspects = kept.iter().filter(|kept| kept.suspects);
        let suspects = Suspects::new(suspects.map(|kept| (kept.id, kept.others.clone())));
        let kept = kept.into_iter().map(|kept| (kept.id, kept)).collect();
        Replicas { kept, unsound, suspects, makers }
    }

    /// Everything is lost: the replicas begin with nothing, in this generation.
    pub fn begin_anew(&mut self, generation: u32, book: &Book) {
        let mut all: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for kept in self.kept.values_mut() {
            kept.generation = generation;
            let newborn = (self.makers.newborn)(kept.id, generation);
            all.entry(kept.bucket).or_default().extend(newborn);
        }
        let shared = self.kept.values().filter(|kept| !kept.others.is_empty());
        self.unsound = shared.map(|kept| kept.id).collect();
        for (bucket, partitions) in all {
            book.buckets[bucket].do_send(bucket::Rejoin(partitions));
        }
        self.tell_all(book);
    }

    /// Whether another node has seen a replica here of this generation, and there is none yet.
    pub fn is_outlived_by(&self, seen: u32) -> bool {
        let latest = self.kept.values().map(|kept| kept.generation).max();
        latest.is_some_and(|latest| latest < seen)
    }

    /// What can be decided by now about suspect replicas.
    pub fn decide(&mut self) -> Option<Decided> {
        let mut decided = Decided::default();
        for (id, verdict) in self.suspects.decide() {
            match verdict {
                SuspectVerdict::Replace => decided.replaced.push(id),
                SuspectVerdict::Trust => decided.trusted.push(id),
            }
        }
        let any = !decided.replaced.is_empty() || !decided.trusted.is_empty();
        any.then_some(decided)
    }

    /// What was decided is durable: the replaced have these generations.
    pub fn settle(
        &mut self,
        replaced: &[(PartitionId, u32)],
        trusted: &[PartitionId],
        book: &Book,
    ) {
        let mut all: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for &(id, generation) in replaced {
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            kept.generation = generation;
            let setup = (self.makers.setup)(id, generation);
            all.entry(kept.bucket).or_default().push((id, Some(setup)));
        }
        for id in trusted {
            let Some(kept) = self.kept.get(id) else { continue };
            all.entry(kept.bucket).or_default().push((*id, None));
        }
        for (bucket, settled) in all {
            book.buckets[bucket].do_send(bucket::Settle(settled));
        }
        self.tell_all(book);
    }

    /// Replicas of these partitions have come to vote.
    pub fn sound(&mut self, partitions: &[PartitionId], book: &Book) {
        partitions.iter().for_each(|id| {
            self.unsound.remove(id);
        });
        self.restate(book);
        let verified = Packet::Verified(partitions.to_vec());
        book.peers.values().for_each(|peer| peer.do_send(Convey(verified.clone())));
    }

    /// Says in introductions from now on that the node is formed, and what it cannot verify.
    pub fn restate(&self, book: &Book) {
        let unsound: Vec<PartitionId> = self.unsound.iter().copied().collect();
        book.peers.values().for_each(|peer| peer.do_send(Restate(unsound.clone())));
    }

    /// A node is linked.
    pub fn met(&mut self, hello: &Hello, book: &Book) {
        self.suspects.met(hello.node, hello.formed.then_some(hello.unsound.as_slice()));
        self.tell(hello.node, book);
    }

    /// A node can verify its replicas of these partitions.
    pub fn verified(&mut self, node: NodeId, partitions: &[PartitionId]) {
        self.suspects.verified(node, partitions);
    }

    /// A node is out of reach.
    pub fn lost(&mut self, node: NodeId) {
        self.suspects.lost(node);
    }

    /// Tells a node the names of the replicas that are not the first ones.
    fn tell(&self, node: NodeId, book: &Book) {
        let replaced: Vec<_> = self
            .kept
            .values()
            .filter(|kept| kept.generation > 1 && kept.others.contains(&node))
            .map(|kept| (kept.id, kept.generation))
            .collect();
        if let Some(peer) = book.peers.get(&node).filter(|_| !replaced.is_empty()) {
            peer.do_send(Convey(Packet::Replicas(replaced)));
        }
    }

    fn tell_all(&self, book: &Book) {
        book.peers.keys().for_each(|node| self.tell(*node, book));
    }
}
