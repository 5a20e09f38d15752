//! Looks on from outside: whether all is at rest, whole, alike, and in an order.
//!
//! Each list gives an order of the requests that appended, each reply places its request between
//! two of them, and a request that ended before another began comes before it. A cycle in that
//! order is a violation of strict serialisability, as in Elle (Kingsbury and Alvaro 2020).

use super::clients::{Outcome, Request};
use super::disk::Disk;
use super::lists::{APPEND_REST_IF_EVEN, READ, READ_AND_APPEND, batch};
use super::world::{DATA, KEYS, Kind, World, partition_of};
use crate::ids::PartitionId;
use crate::partition::Partition;
use crate::partition::bucket::Bucket;
use crate::txn::lock_queue::LockQueue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

impl World {
    pub(super) fn is_at_rest(&self) -> bool {
        self.queues.values().all(VecDeque::is_empty)
            && self.requests.iter().all(|request| request.outcome != Outcome::Open)
            && self.buckets.iter().flatten().all(Bucket::is_at_rest)
            && self.locks.iter().all(LockQueue::is_empty)
            && self.coordinators.iter().all(|coordinator| coordinator.active() == 0)
            && self.disks.iter().all(Disk::is_at_rest)
            && self.stopped.is_none()
            && (0..self.placed).all(|id| self.is_even(PartitionId(id)))
    }

    /// All replicas of a partition have applied the same, and one leads.
    fn is_even(&self, id: PartitionId) -> bool {
        let replicas = || self.buckets.iter().flatten().filter_map(|bucket| bucket.partition(id));
        let applied: BTreeSet<u64> = replicas()
            .filter_map(|partition| partition.journal())
            .map(|journal| journal.group().applied_index())
            .collect();
        applied.len() <= 1 && replicas().any(Partition::is_led_here)
    }

    pub(super) fn unrest(&self) -> String {
        let open = self.requests.iter().filter(|request| request.outcome == Outcome::Open).count();
        let mut told = format!("not at rest: {open} requests open");
        for partition in self.buckets.iter().flatten().flat_map(Bucket::partitions) {
            if !partition.is_at_rest() {
                told += &format!("\n{partition:?}");
            }
        }
        told += &format!("\n{:?}", self.locks.iter().filter(|l| !l.is_empty()).collect::<Vec<_>>());
        told
    }

    /// What a key holds in the end, at a node.
    fn list_at(&mut self, node: usize, key: usize) -> Vec<u32> {
        let id = partition_of(key);
        let mut buckets = self.buckets[node].iter_mut();
        let Some(partition) = buckets.find_map(|bucket| bucket.partition_mut(id)) else {
            return Vec::new();
        };
        let batch = batch(READ, id, &[key], 0);
        let mut reply = Vec::new();
        partition.peek(&batch.op(0), &mut reply);
        reply[8..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn final_list(&mut self, key: usize) -> Vec<u32> {
        self.list_at(partition_of(key).index() % DATA, key)
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        let lists: Vec<Vec<u32>> = (0..KEYS).map(|key| self.final_list(key)).collect();
        if let Some(strange) = self.strange.take() {
            return Err(strange);
        }
        self.check_alike()?;
        self.check_whole(&lists)?;
        if self.kind == Kind::Lossy { Ok(()) } else { self.check_order(&lists) }
    }

    /// All replicas hold the same.
    fn check_alike(&mut self) -> Result<(), String> {
        let kind = self.kind;
        for key in (0..KEYS).filter(|key| kind.is_replicated(partition_of(*key))) {
            let lists: Vec<Vec<u32>> = (0..DATA).map(|node| self.list_at(node, key)).collect();
            if lists.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(format!("replicas differ in key {key}: {lists:?}"));
            }
        }
        Ok(())
    }

    /// Whether all that was acknowledged of a key is to be there. A node that lost its memory says
    /// nothing about what it held.
    fn is_kept(&self, key: usize) -> bool {
        let id = partition_of(key);
        self.kind.is_replicated(id) || !self.lost.contains(&(id.index() % DATA))
    }

    /// Whether the decision on a request may have been in the memory of lost nodes only. Without
    /// copies, its primary and its Coordinator alone know it until they have told another
    /// participant. They may be one node or two, lost before that.
    fn may_be_taken_along(&self, request: &Request) -> bool {
        let ids = || request.keys.iter().map(|key| partition_of(*key));
        self.deaths[request.node] > 0
            && ids().any(|id| self.lost.contains(&(id.index() % DATA)))
            && !ids().any(|id| self.kind.is_replicated(id))
    }

    /// Every append is in all of its lists or in none, as its client was told.
    fn check_whole(&self, lists: &[Vec<u32>]) -> Result<(), String> {
        for request in self.requests.iter().filter(|request| request.code != READ) {
            let reads_first = matches!(request.code, READ_AND_APPEND | APPEND_REST_IF_EVEN);
            let first = usize::from(reads_first);
            let written = request.keys.iter().skip(first);
            let keys: Vec<usize> = written.copied().filter(|key| self.is_kept(*key)).collect();
            let times = |key: &usize| lists[*key].iter().filter(|tag| **tag == request.tag).count();
            let counts: Vec<usize> = keys.iter().map(times).collect();
            if counts.iter().any(|count| *count > 1) {
                return Err(format!("applied twice: {request:?}"));
            }
            if counts.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(format!("half applied: {request:?} {counts:?}"));
            }
            let Some(&applied) = counts.first() else { continue };
            let claimed = request.seen.values().any(|list| list.last() == Some(&request.tag));
            match request.outcome {
                Outcome::Done if applied == 0 && claimed && !self.may_be_taken_along(request) => {
                    return Err(format!("acknowledged and lost: {request:?}"));
                }
                Outcome::Done if applied == 1 && !claimed => {
                    return Err(format!("applied unseen: {request:?}"));
                }
                Outcome::Refused if applied == 1 => {
                    return Err(format!("refused and applied: {request:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The order that the lists and real time give has no cycle.
    fn check_order(&self, lists: &[Vec<u32>]) -> Result<(), String> {
        let mut after: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut edge = |one: u32, other: u32| {
            if one != other {
                after.entry(one).or_default().insert(other);
            }
        };
        for list in (0..KEYS).filter(|key| self.is_kept(*key)).map(|key| &lists[key]) {
            list.windows(2).for_each(|pair| edge(pair[0], pair[1]));
        }
        // What was lost has no place in the order; whether it may be is known from `check_whole`.
        let is_lost = |request: &Request| {
            self.may_be_taken_along(request)
                && request.seen.iter().any(|(key, seen)| {
                    let own = seen.last() == Some(&request.tag);
                    own && self.is_kept(*key) && !lists[*key].contains(&request.tag)
                })
        };
        let done = || self.requests.iter().filter(|r| r.outcome == Outcome::Done && !is_lost(r));
        for request in done() {
            for (&key, seen) in request.seen.iter().filter(|(key, _)| self.is_kept(**key)) {
                if !lists[key].starts_with(seen) {
                    return Err(format!("saw what never was: {request:?} of {:?}", lists[key]));
                }
                if let Some(last) = seen.last() {
                    edge(*last, request.tag);
                }
                if let Some(next) = lists[key].get(seen.len()) {
                    edge(request.tag, *next);
                }
            }
            for later in done().filter(|later| later.begun > request.ended) {
                edge(request.tag, later.tag);
            }
        }
        // To a client its commands on a key take effect as it has sent them.
        for pipeline in &self.pipelines {
            let asked = pipeline.requests.iter().map(|request| &self.requests[*request]);
            let asked: Vec<&Request> =
                asked.filter(|r| r.outcome == Outcome::Done && !is_lost(r)).collect();
            for (index, one) in asked.iter().enumerate() {
                for later in &asked[index + 1..] {
                    let is_kept = |key: &usize| later.keys.contains(key) && self.is_kept(*key);
                    if one.keys.iter().any(is_kept) {
                        edge(one.tag, later.tag);
                    }
                }
            }
        }
        let mut entering: BTreeMap<u32, usize> = BTreeMap::new();
        for (one, others) in &after {
            entering.entry(*one).or_default();
            for other in others {
                *entering.entry(*other).or_default() += 1;
            }
        }
        let mut free: Vec<u32> =
            entering.iter().filter(|(_, count)| **count == 0).map(|(tag, _)| *tag).collect();
        while let Some(tag) = free.pop() {
            entering.remove(&tag);
            for other in after.get(&tag).into_iter().flatten() {
                let count = entering.get_mut(other).unwrap();
                *count -= 1;
                if *count == 0 {
                    free.push(*other);
                }
            }
        }
        if entering.is_empty() {
            return Ok(());
        }
        let cycle: Vec<&Request> =
            entering.keys().map(|tag| &self.requests[*tag as usize]).collect();
        Err(format!("no serial order: {cycle:?} of {lists:?}"))
    }
}
