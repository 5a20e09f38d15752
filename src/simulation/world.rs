//! A small cluster: the cores of five nodes, wired as the actors wire them.

use super::clients::Request;
use super::clocks::Clock;
use super::disk::Disk;
use super::faults::Stop;
use super::lists::{Lists, hasher};
use super::network::{Actor, Message};
use super::pipelines::{Asker, Pipeline, Split};
use super::schedule::Rng;
use crate::batch::{Batch, Replies};
use crate::cluster::topology::{Placement, Topology};
use crate::consensus::{Group, Recovered, ReplicaId, Setup};
use crate::ids::Term;
use crate::ids::{Incarnation, NodeId, Now, PartitionId, TxnId};
use crate::partition::bucket::{Bucket, Executed, Outbox, Parked};
use crate::partition::replica::Replica;
use crate::partition::{Partition, PartitionEffect};
use crate::rules::{Rule, kept};
use crate::txn::coordinator::{self, ClientId, Strength, Survives, Transactions};
use crate::txn::lock_queue::{self, LockQueue};
use crate::txn::protocol::{Decide, ToCoordinator, ToPartition, Verdict};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Nodes 0 to 2 hold the partitions, 3 and 4 only coordinate: their death loses no data.
pub(super) const DATA: usize = 3;
pub(super) const NODES: usize = 5;
pub(super) const PARTITIONS: usize = 6;
pub(super) const KEYS: usize = 8;

pub(super) fn node_id(node: usize) -> NodeId {
    NodeId(node as u16 + 1)
}

/// Bytes of replies after which a Bucket leaves the rest of a batch, where a node has one, two or
/// three: long batches that wait find other faults than short ones that are cut.
const REPLY_BYTES: [usize; 3] = [256, 24, 8];

/// The nodes of each partition: one, or all that have data.
fn placement(kind: Kind) -> Placement {
    let copies = |id: usize| if kind.is_replicated(PartitionId(id as u16)) { DATA } else { 1 };
    let nodes = |id: usize| (0..copies(id)).map(move |copy| node_id((id + copy) % DATA));
    Placement::new((0..PARTITIONS).map(|id| nodes(id).collect()).collect())
}

pub(super) fn partition_of(key: usize) -> PartitionId {
    PartitionId((key % PARTITIONS) as u16)
}

/// What the partitions of a world are, and what its nodes suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One copy each; only nodes without partitions die.
    Single,
    /// One copy each, lost with its node.
    Lossy,
    /// A replica on every data node, all of which may die.
    Replicated,
    /// Every other partition is replicated, the others have one copy, lost with its node.
    Mixed,
}

impl Kind {
    /// Whether there are groups.
    pub(super) fn replicates(self) -> bool {
        matches!(self, Kind::Replicated | Kind::Mixed)
    }

    /// Whether a partition is replicated.
    pub(super) fn is_replicated(self, id: PartitionId) -> bool {
        match self {
            Kind::Single | Kind::Lossy => false,
            Kind::Replicated => true,
            Kind::Mixed => id.index().is_multiple_of(2),
        }
    }
}

/// A cluster, its clients and what is under way between them.
pub(super) struct World {
    pub(super) rng: Rng,
    /// Real time, which no node knows.
    pub(super) now: u64,
    pub(super) clocks: [Clock; NODES],
    /// Of their own, so that clocks change no schedule.
    pub(super) clock_rng: Rng,
    pub(super) step: usize,
    pub(super) lives: [Incarnation; NODES],
    /// How often each node has died.
    pub(super) deaths: [u32; NODES],
    /// How many of the partitions are placed at all.
    pub(super) placed: u16,
    /// How many Buckets a data node has.
    pub(super) arbiters: usize,
    /// By node: which of its Buckets holds each partition.
    placement: Vec<Vec<Option<usize>>>,
    /// By node; none where there are no partitions.
    pub(super) buckets: Vec<Vec<Bucket<Lists>>>,
    pub(super) locks: Vec<LockQueue>,
    pub(super) coordinators: Vec<Transactions<Lists>>,
    pub(super) queues: BTreeMap<(Actor, Actor), VecDeque<Message>>,
    /// What is delivered late: nothing of it before that time.
    pub(super) slow: BTreeMap<(Actor, Actor), u64>,
    /// Pairs (smaller first) that cannot reach each other.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Nodes that have not noticed yet that another one is out of reach.
    pub(super) unnoticed: BTreeSet<(usize, usize)>,
    /// Nodes that suspect another one.
    pub(super) suspected: BTreeSet<(usize, usize)>,
    pub(super) parked: BTreeMap<(usize, usize, Parked), Asker>,
    pub(super) early: BTreeMap<(usize, usize, Parked), Replies>,
    pub(super) requests: Vec<Request>,
    pub(super) pipelines: Vec<Pipeline>,
    /// Batches that several Buckets of a node execute.
    pub(super) splits: BTreeMap<u64, Split>,
    /// Names of exchanges between nodes, and of splits.
    pub(super) names: u64,
    /// What a client was told that is no answer to what it asked.
    pub(super) strange: Option<String>,
    /// How often something was left and asked for again, a disk hung, a machine stopped.
    pub(super) counts: [u64; 3],
    /// The node that does nothing, with its whole machine.
    pub(super) stopped: Option<Stop>,
    pub(super) kind: Kind,
    /// By data node.
    pub(super) disks: Vec<Disk>,
    /// By node: who leads each partition, as far as it knows.
    pub(super) topologies: Vec<Arc<Topology>>,
    /// Nodes that have lost what they held of partitions without copies.
    pub(super) lost: BTreeSet<usize>,
}

impl World {
    /// A world of the first partitions only, with so many Buckets a node.
    pub(super) fn placed(seed: u64, kind: Kind, placed: u16, arbiters: usize) -> World {
        let mut clock_rng = Rng(seed ^ 0x0063_6c6f_636b);
        let clocks: [Clock; NODES] = std::array::from_fn(|_| Clock::drawn(&mut clock_rng));
        let mut world = World {
            rng: Rng(seed),
            now: 1_000,
            clocks,
            clock_rng,
            step: 0,
            lives: clocks.map(|clock| Incarnation::default().next(clock.at(1_000).wall)),
            deaths: [0; NODES],
            placed,
            arbiters,
            placement: (0..NODES)
                .map(|node| placement(kind).over_buckets(node_id(node), arbiters))
                .collect(),
            buckets: Vec::new(),
            locks: Vec::new(),
            coordinators: Vec::new(),
            queues: BTreeMap::new(),
            slow: BTreeMap::new(),
            cut: BTreeSet::new(),
            unnoticed: BTreeSet::new(),
            suspected: BTreeSet::new(),
            parked: BTreeMap::new(),
            early: BTreeMap::new(),
            requests: Vec::new(),
            pipelines: Vec::new(),
            splits: BTreeMap::new(),
            names: 0,
            strange: None,
            counts: [0; 3],
            stopped: None,
            kind,
            disks: (0..DATA).map(|_| Disk::default()).collect(),
            topologies: (0..NODES)
                .map(|_| Arc::new(Topology::new(Arc::new(placement(kind)))))
                .collect(),
            lost: BTreeSet::new(),
        };
        for node in 0..NODES {
            let buckets = world.start_buckets(node);
            world.buckets.push(buckets);
            world.locks.push(LockQueue::new());
            world.coordinators.push(world.coordinator(node));
        }
        for node in 0..NODES {
            for other in (0..NODES).filter(|other| *other != node) {
                world.node_up(node, other);
            }
        }
        for node in 0..DATA {
            world.with_bucket(node, |bucket, now, _| bucket.form(now));
        }
        world
    }

    /// Does something with each of a node's Buckets and carries out what comes of it, as its actor
    /// does.
    pub(super) fn with_bucket(
        &mut self,
        node: usize,
        mut work: impl FnMut(&mut Bucket<Lists>, Now, &mut Outbox),
    ) {
        for index in 0..self.buckets[node].len() {
            self.with_bucket_at(node, index, &mut work);
        }
    }

    /// The same with one of them.
    pub(super) fn with_bucket_at(
        &mut self,
        node: usize,
        index: usize,
        work: impl FnOnce(&mut Bucket<Lists>, Now, &mut Outbox),
    ) {
        let now = self.now(node);
        let mut out = Outbox::default();
        let Some(bucket) = self.buckets[node].get_mut(index) else { return };
        work(bucket, now, &mut out);
        bucket.flush(now, &mut out);
        self.carry(node, index, out);
    }

    /// The Bucket of a node that is told what goes to a partition.
    pub(super) fn home(&self, node: usize, id: PartitionId) -> Actor {
        Actor::Bucket(node, self.placement[node][id.index()].unwrap_or(0))
    }

    /// Bytes of replies after which a Bucket leaves the rest of a batch.
    pub(super) fn reply_bytes(&self) -> usize {
        REPLY_BYTES[self.arbiters - 1]
    }

    /// A node's replica of a partition.
    pub(super) fn partition(&self, node: usize, id: PartitionId) -> Option<&Partition<Lists>> {
        self.buckets[node].iter().find_map(|bucket| bucket.partition(id))
    }

    pub(super) fn start_buckets(&mut self, node: usize) -> Vec<Bucket<Lists>> {
        let count = if node < DATA { self.arbiters } else { 0 };
        (0..count).map(|index| self.start_bucket(node, index)).collect()
    }

    /// What a process knows when it starts.
    pub(super) fn topology(&self) -> Arc<Topology> {
        Arc::new(Topology::new(Arc::new(placement(self.kind))))
    }

    fn start_bucket(&mut self, node: usize, index: usize) -> Bucket<Lists> {
        let life = self.lives[node];
        let (placed, places) = (self.placed, self.placement[node].clone());
        let here = |id: &PartitionId| places[id.index()] == Some(index);
        let ids = || (0..placed).map(PartitionId).filter(here);
        let own = ids().filter(|id| !self.kind.is_replicated(*id));
        let own: Vec<PartitionId> = own.collect();
        let tickets = (index as u64) << 48;
        let mut bucket = Bucket::new(
            node_id(node),
            life,
            self.topologies[node].clone(),
            &own,
            hasher(),
            tickets,
            20_000,
        );
        bucket.reply_bytes_max(self.reply_bytes());
        for id in ids().filter(|id| self.kind.is_replicated(*id)).collect::<Vec<_>>() {
            let voters = (0..DATA).map(|node| ReplicaId::new(node_id(node), 1)).collect();
            let seed = self.rng.roll(1 << 30) as u64;
            let setup = Setup::new(ReplicaId::new(node_id(node), 1), voters, seed);
            let stored = self.disks[node].stored(id);
            let entries = stored.entries.into_iter().collect();
            let recovered = Recovered { state: stored.state, snapshot: None, entries };
            let group = Group::new(&setup, recovered, self.now(node).mono).unwrap();
            let replica = Replica::new(id, hasher());
            bucket.place(Partition::replicated(id, node_id(node), life, replica, group));
        }
        bucket
    }

    pub(super) fn coordinator(&self, node: usize) -> Transactions<Lists> {
        let life = self.lives[node];
        let mut coordinator =
            Transactions::new(node_id(node), life, self.topologies[node].view(), hasher(), 20_000);
        let strength = Strength { copies: DATA as u8, survives: Survives::Power };
        for id in (0..PARTITIONS as u16).map(PartitionId) {
            if self.kind.is_replicated(id) {
                coordinator.keep(id, strength);
            }
        }
        coordinator
    }

    /// What a node takes for the present moment.
    pub(super) fn now(&self, node: usize) -> Now {
        self.clocks[node].at(self.now)
    }

    /// The node that `node` takes for a partition's leader.
    pub(super) fn leader(&self, node: usize, partition: PartitionId) -> usize {
        self.topologies[node].leader(partition).map_or(0, |leader| usize::from(leader.0) - 1)
    }

    fn learn(&mut self, node: usize, partition: PartitionId, leader: NodeId, term: Term) {
        if !self.topologies[node].learn(partition, leader, term) {
            return;
        }
        let mut effects = Vec::new();
        let now = self.now(node);
        self.coordinators[node].led(partition, leader, term, now, &mut effects);
        self.txn_effects(node, effects);
    }

    /// Carries out what a Bucket wants done.
    fn carry(&mut self, node: usize, index: usize, out: Outbox) {
        assert!(out.fatal.is_none(), "{:?}", out.fatal);
        self.complete(node, index, out.completed);
        let from = Actor::Bucket(node, index);
        for (to, partition, message) in out.raft {
            let to = self.home(usize::from(to.0) - 1, partition);
            self.send(from, to, Message::Raft(partition, message));
        }
        if node < DATA {
            let writes = out.persists.into_iter().map(|(id, persist)| (index, id, persist));
            self.disks[node].unsynced.extend(writes);
        }
        for (partition, leader, term) in out.leaders {
            self.learn(node, partition, leader, term);
            if leader == node_id(node) {
                for other in (0..NODES).filter(|other| *other != node) {
                    let leads = Message::Leads(partition, leader, term);
                    self.send(from, Actor::Book(other), leads);
                }
            }
        }
        for effect in out.effects {
            match effect {
                PartitionEffect::Coordinator(to, message) => {
                    let to = Actor::Coordinator(usize::from(to.0) - 1);
                    self.send(from, to, Message::Coordinator(message));
                }
                PartitionEffect::Partition(id, message) => {
                    let to = self.home(self.leader(node, id), id);
                    self.send(from, to, Message::Partition(id, message));
                }
                PartitionEffect::Locks(message) => {
                    self.send(from, Actor::Locks(node), Message::Locks(message));
                }
            }
        }
    }

    fn lock_effects(&mut self, node: usize, effects: Vec<lock_queue::LockEffect>) {
        let from = Actor::Locks(node);
        for effect in effects {
            match effect {
                lock_queue::LockEffect::Grant { partition, ticket } => {
                    self.send(from, self.home(node, partition), Message::Grant(partition, ticket));
                }
                lock_queue::LockEffect::Wound { txn } if kept(Rule::WoundThroughCoordinator) => {
                    let to = Actor::Coordinator(usize::from(txn.node.0) - 1);
                    self.send(from, to, Message::Coordinator(ToCoordinator::Wound { txn }));
                }
                lock_queue::LockEffect::Wound { txn } => self.snatch(node, txn),
            }
        }
    }

    /// What a wound must not do: take the locks from under a transaction.
    fn snatch(&mut self, node: usize, txn: TxnId) {
        for id in (0..PARTITIONS).filter(|id| id % DATA == node) {
            let id = PartitionId(id as u16);
            let verdict = Verdict::Abort;
            let decide = Decide { txn, verdict, primary: id, deciding: false };
            let message = Message::Partition(id, ToPartition::Decide(decide));
            self.send(Actor::Locks(node), self.home(node, id), message);
        }
    }

    pub(super) fn txn_effects(&mut self, node: usize, effects: Vec<coordinator::TxnEffect>) {
        let from = Actor::Coordinator(node);
        for effect in effects {
            match effect {
                coordinator::TxnEffect::Partition(id, message) => {
                    let to = self.home(self.leader(node, id), id);
                    self.send(from, to, Message::Partition(id, message));
                }
                coordinator::TxnEffect::Reply(ClientId(request), ended) => {
                    let request = request as usize;
                    self.send(from, Actor::Client(request), Message::Ended(request, ended));
                }
            }
        }
    }

    pub(super) fn deliver(&mut self, to: Actor, message: Message) {
        match (to, message) {
            (Actor::Bucket(node, index), message) => self.deliver_to_bucket(node, index, message),
            (Actor::Peer(node), Message::Asked(exchange, batch)) => {
                self.on_asked(node, exchange, batch);
            }
            (Actor::Peer(node), Message::Relay(to, message)) => self.pass_on(node, to, *message),
            (Actor::Session(_), Message::Landed(exchange, replies)) => {
                self.on_landed(exchange, replies);
            }
            (Actor::Locks(node), Message::Locks(message)) => {
                let mut effects = Vec::new();
                self.locks[node].push(message);
                self.locks[node].work(&mut { usize::MAX }, &mut effects);
                self.lock_effects(node, effects);
            }
            (Actor::Book(node), Message::Leads(partition, leader, term)) => {
                self.learn(node, partition, leader, term);
            }
            (Actor::Coordinator(node), Message::Coordinator(message)) => {
                let mut effects = Vec::new();
                let now = self.now(node);
                self.coordinators[node].handle(message, now, &mut effects);
                self.txn_effects(node, effects);
            }
            (Actor::Coordinator(node), Message::Begin(request, work)) => {
                let mut effects = Vec::new();
                let client = ClientId(request as u64);
                let now = self.now(node);
                self.coordinators[node].begin(client, work, now, &mut effects);
                self.txn_effects(node, effects);
            }
            (Actor::Client(_), Message::Replied(request, replies)) => {
                self.on_replied(request, replies);
            }
            (Actor::Client(_), Message::Ended(request, ended)) => self.on_ended(request, ended),
            (to, message) => panic!("{message:?} for {to:?}"),
        }
    }

    fn deliver_to_bucket(&mut self, node: usize, index: usize, message: Message) {
        let mut answered = None;
        let mut parking = None;
        self.with_bucket_at(node, index, |bucket, now, out| match message {
            Message::Partition(id, message) => bucket.handle(id, message, now, out),
            Message::Raft(id, message) => bucket.raft(id, &message, now).unwrap(),
            Message::Grant(id, ticket) => bucket.granted(id, ticket, now, out),
            Message::Persisted(numbers) => {
                numbers.into_iter().for_each(|(id, number)| bucket.persisted(id, number));
            }
            Message::Execute(asker, batch) => {
                match bucket.execute(batch, Replies::default(), now, out) {
                    Executed::Done(_, replies) => answered = Some((asker, replies)),
                    Executed::Parked(parked) => parking = Some((asker, parked)),
                }
            }
            message => panic!("{message:?} for a Bucket"),
        });
        if let Some((asker, parked)) = parking {
            match self.early.remove(&(node, index, parked)) {
                Some(replies) => answered = Some((asker, replies)),
                None => drop(self.parked.insert((node, index, parked), asker)),
            }
        }
        if let Some((asker, replies)) = answered {
            self.answer(node, index, asker, replies);
        }
    }

    fn complete(&mut self, node: usize, index: usize, completed: Vec<(Parked, Batch, Replies)>) {
        for (parked, _, replies) in completed {
            match self.parked.remove(&(node, index, parked)) {
                Some(asker) => self.answer(node, index, asker, replies),
                // Answered in the turn it came in.
                None => drop(self.early.insert((node, index, parked), replies)),
            }
        }
    }

    pub(super) fn tick(&mut self, node: usize) {
        let now = self.now(node);
        self.with_bucket(node, |bucket, now, out| bucket.tick(now, out));
        let mut effects = Vec::new();
        self.locks[node].tick(&mut effects);
        self.lock_effects(node, effects);
        let mut effects = Vec::new();
        self.coordinators[node].tick(now, &mut effects);
        self.txn_effects(node, effects);
    }
}
