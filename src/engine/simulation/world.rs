//! A small cluster: the engines of five nodes, wired as the actors wire them.

use super::clients::{Outcome, Request};
use super::dice::Dice;
use super::lists::{Lists, hasher};
use super::network::{Actor, Message};
use crate::engine::batch::{Batch, Replies};
use crate::engine::bucket::{Bucket, Executed, Outbox, Parked};
use crate::engine::consensus::{Group, Persist, Recovered, ReplicaId, Setup};
use crate::engine::locks::{self, LockTable};
use crate::engine::partition::{Effect, Partition};
use crate::engine::protocol::{Decide, Term, ToCoordinator, ToPartition, Verdict};
use crate::engine::replica::Replica;
use crate::engine::rules::{Rule, kept};
use crate::engine::txn::{self, ClientId, Strength, Survives, Transactions};
use crate::ids::{Incarnation, Millis, NodeId, Now, PartitionId, TxnId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Nodes 0 to 2 hold the partitions, 3 and 4 only coordinate: their death loses no data.
pub(super) const DATA: usize = 3;
pub(super) const NODES: usize = 5;
pub(super) const PARTITIONS: usize = 6;
pub(super) const KEYS: usize = 8;

pub(super) fn node_id(node: usize) -> NodeId {
    NodeId(node as u16 + 1)
}

fn homes() -> Vec<NodeId> {
    (0..PARTITIONS).map(|partition| node_id(partition % DATA)).collect()
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

/// What the clocks of a node say, which nobody has set right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// By how many ms its wall clock is ahead.
    pub(super) ahead: i64,
    /// What its monotonic clock says as the world begins.
    begins: u64,
    /// Parts in a thousand that both run fast.
    fast: i64,
}

/// Wall clocks begin about here.
const EPOCH: i64 = 1_700_000_000_000;

impl Clock {
    fn drawn(dice: &mut Dice) -> Clock {
        let ahead = [0, 40, 30_000, 3_600_000][dice.roll(4)] - dice.roll(60_000) as i64;
        Clock { ahead, begins: dice.roll(1 << 40) as u64, fast: dice.roll(21) as i64 - 10 }
    }

    /// What it says once so many ms have passed.
    fn at(self, passed: u64) -> Now {
        let passed = passed as i64 * (1_000 + self.fast) / 1_000;
        let wall = EPOCH + passed + self.ahead;
        Now { wall: Millis(wall as u64), mono: self.begins + passed as u64 }
    }

    /// Somebody sets the wall clock: by a second, by a minute, by a year.
    pub(super) fn set(&mut self, dice: &mut Dice) {
        let most = [1_000, 60_000, 31_536_000_000][dice.roll(3)];
        self.ahead = dice.roll(2 * most) as i64 - most as i64;
    }
}

/// What a node's disk holds of a partition's log.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    state: Option<Bytes>,
    entries: BTreeMap<u64, Bytes>,
}

impl Stored {
    fn keep(&mut self, persist: &Persist) {
        if let Some(state) = &persist.state {
            self.state = Some(Bytes::copy_from_slice(state));
        }
        for entry in &persist.entries {
            self.entries.split_off(&entry.index);
            let payload = [&entry.head[..], &entry.data].concat();
            self.entries.insert(entry.index, payload.into());
        }
    }
}

/// A cluster, its clients and what is under way between them.
pub(super) struct World {
    pub(super) dice: Dice,
    /// Real time, which no node knows.
    pub(super) now: u64,
    pub(super) clocks: [Clock; NODES],
    /// Of their own, so that clocks change no schedule.
    pub(super) clock_dice: Dice,
    pub(super) step: usize,
    pub(super) lives: [u64; NODES],
    /// How many of the partitions are placed at all.
    pub(super) placed: u16,
    pub(super) buckets: Vec<Option<Bucket<Lists>>>,
    pub(super) locks: Vec<LockTable>,
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
    pub(super) parked: BTreeMap<(usize, Parked), usize>,
    pub(super) early: BTreeMap<(usize, Parked), Replies>,
    pub(super) requests: Vec<Request>,
    pub(super) kind: Kind,
    /// By data node: what is synced, and what is not yet.
    pub(super) disks: Vec<BTreeMap<PartitionId, Stored>>,
    pub(super) unsynced: Vec<VecDeque<(PartitionId, Persist)>>,
    /// By node: who it thinks leads each partition.
    pub(super) leaders: Vec<Vec<(Term, usize)>>,
    /// Nodes that have lost what they held of partitions without copies.
    pub(super) lost: BTreeSet<usize>,
}

impl World {
    /// A world of the first partitions only.
    pub(super) fn placed(seed: u64, kind: Kind, placed: u16) -> World {
        let mut clock_dice = Dice(seed ^ 0x0063_6c6f_636b);
        let mut world = World {
            dice: Dice(seed),
            now: 1_000,
            clocks: std::array::from_fn(|_| Clock::drawn(&mut clock_dice)),
            clock_dice,
            step: 0,
            lives: [1; NODES],
            placed,
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
            kind,
            disks: vec![BTreeMap::new(); DATA],
            unsynced: (0..DATA).map(|_| VecDeque::new()).collect(),
            leaders: vec![(0..PARTITIONS).map(|id| (Term(0), id % DATA)).collect(); NODES],
            lost: BTreeSet::new(),
        };
        for node in 0..NODES {
            let bucket = (node < DATA).then(|| world.bucket(node));
            world.buckets.push(bucket);
            world.locks.push(LockTable::new());
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

    /// Does something with a node's Bucket and carries out what comes of it, as its actor does.
    pub(super) fn with_bucket(
        &mut self,
        node: usize,
        work: impl FnOnce(&mut Bucket<Lists>, Now, &mut Outbox),
    ) {
        let now = self.now(node);
        let mut out = Outbox::default();
        let Some(Some(bucket)) = self.buckets.get_mut(node) else { return };
        work(bucket, now, &mut out);
        bucket.flush(now, &mut out);
        self.carry(node, out);
    }

    fn bucket(&mut self, node: usize) -> Bucket<Lists> {
        let life = Incarnation(self.lives[node]);
        let placed = self.placed;
        let ids = || (0..placed).map(PartitionId);
        let own = ids().filter(|id| !self.kind.is_replicated(*id) && id.index() % DATA == node);
        let own: Vec<PartitionId> = own.collect();
        let mut bucket = Bucket::new(node_id(node), life, homes(), &own, hasher(), 0, 20_000);
        for id in ids().filter(|id| self.kind.is_replicated(*id)).collect::<Vec<_>>() {
            let voters = (0..DATA).map(|node| ReplicaId::new(node_id(node), 1)).collect();
            let seed = self.dice.roll(1 << 30) as u64;
            let setup = Setup::new(ReplicaId::new(node_id(node), 1), voters, seed);
            let stored = self.disks[node].get(&id).cloned().unwrap_or_default();
            let entries = stored.entries.into_iter().collect();
            let recovered = Recovered { state: stored.state, snapshot: None, entries };
            let group = Group::new(&setup, recovered, self.now(node).mono).unwrap();
            let replica = Replica::new(id, hasher());
            bucket.place(Partition::replicated(id, node_id(node), life, replica, group));
        }
        bucket
    }

    fn coordinator(&self, node: usize) -> Transactions<Lists> {
        let life = Incarnation(self.lives[node]);
        let mut coordinator = Transactions::new(node_id(node), life, homes(), hasher(), 20_000);
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
        self.leaders[node][partition.index()].1
    }

    fn learn(&mut self, node: usize, partition: PartitionId, leader: NodeId, term: Term) {
        let known = &mut self.leaders[node][partition.index()];
        if known.0 >= term {
            return;
        }
        *known = (term, usize::from(leader.0) - 1);
        let mut effects = Vec::new();
        let now = self.now(node);
        self.coordinators[node].led(partition, leader, term, now, &mut effects);
        self.txn_effects(node, effects);
    }

    /// Carries out what a Bucket wants done.
    fn carry(&mut self, node: usize, out: Outbox) {
        assert!(out.fatal.is_none(), "{:?}", out.fatal);
        self.complete(node, out.completed);
        let from = Actor::Bucket(node);
        for (to, partition, message) in out.raft {
            let to = Actor::Bucket(usize::from(to.0) - 1);
            self.send(from, to, Message::Raft(partition, message));
        }
        if node < DATA {
            self.unsynced[node].extend(out.persists);
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
                Effect::Coordinator(to, message) => {
                    let to = Actor::Coordinator(usize::from(to.0) - 1);
                    self.send(from, to, Message::Coordinator(message));
                }
                Effect::Partition(id, message) => {
                    let to = Actor::Bucket(self.leader(node, id));
                    self.send(from, to, Message::Partition(id, message));
                }
                Effect::Locks(message) => {
                    self.send(from, Actor::Locks(node), Message::Locks(message));
                }
            }
        }
    }

    fn lock_effects(&mut self, node: usize, effects: Vec<locks::Effect>) {
        let from = Actor::Locks(node);
        for effect in effects {
            match effect {
                locks::Effect::Grant { partition, ticket } => {
                    self.send(from, Actor::Bucket(node), Message::Grant(partition, ticket));
                }
                locks::Effect::Wound { txn } if kept(Rule::WoundThroughCoordinator) => {
                    let to = Actor::Coordinator(usize::from(txn.node.0) - 1);
                    self.send(from, to, Message::Coordinator(ToCoordinator::Wound { txn }));
                }
                locks::Effect::Wound { txn } => self.snatch(node, txn),
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
            self.send(Actor::Locks(node), Actor::Bucket(node), message);
        }
    }

    pub(super) fn txn_effects(&mut self, node: usize, effects: Vec<txn::Effect>) {
        let from = Actor::Coordinator(node);
        for effect in effects {
            match effect {
                txn::Effect::Partition(id, message) => {
                    let to = Actor::Bucket(self.leader(node, id));
                    self.send(from, to, Message::Partition(id, message));
                }
                txn::Effect::Reply(ClientId(request), ended) => {
                    let request = request as usize;
                    self.send(from, Actor::Client(request), Message::Ended(request, ended));
                }
            }
        }
    }

    pub(super) fn deliver(&mut self, to: Actor, message: Message) {
        match (to, message) {
            (Actor::Bucket(node), message) => self.deliver_to_bucket(node, message),
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

    fn deliver_to_bucket(&mut self, node: usize, message: Message) {
        let mut answered = None;
        let mut parking = None;
        self.with_bucket(node, |bucket, now, out| match message {
            Message::Partition(id, message) => bucket.handle(id, message, now, out),
            Message::Raft(id, message) => bucket.raft(id, &message, now).unwrap(),
            Message::Grant(id, ticket) => bucket.granted(id, ticket, now, out),
            Message::Execute(request, batch) => {
                match bucket.execute(batch, Replies::default(), now, out) {
                    Executed::Done(_, replies) => answered = Some((request, replies)),
                    Executed::Parked(parked) => parking = Some((request, parked)),
                }
            }
            message => panic!("{message:?} for a Bucket"),
        });
        if let Some((request, parked)) = parking {
            self.parked.insert((node, parked), request);
            if let Some(replies) = self.early.remove(&(node, parked)) {
                self.complete(node, vec![(parked, Batch::new(), replies)]);
            }
        }
        if let Some((request, replies)) = answered {
            let to = Actor::Client(request);
            self.send(Actor::Bucket(node), to, Message::Replied(request, replies));
        }
    }

    fn complete(&mut self, node: usize, completed: Vec<(Parked, Batch, Replies)>) {
        for (parked, _, replies) in completed {
            match self.parked.remove(&(node, parked)) {
                Some(request) => {
                    let to = Actor::Client(request);
                    self.send(Actor::Bucket(node), to, Message::Replied(request, replies));
                }
                // Answered in the turn it came in.
                None => drop(self.early.insert((node, parked), replies)),
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

    pub(super) fn sync_at(&mut self, node: usize) {
        let synced = std::mem::take(&mut self.unsynced[node]);
        for (id, persist) in &synced {
            self.disks[node].entry(*id).or_default().keep(persist);
        }
        self.with_bucket(node, |bucket, _, _| {
            synced.iter().for_each(|(id, persist)| bucket.persisted(*id, persist.number));
        });
    }

    /// A node dies and is started again. What it had sent still arrives if it is `late`; of what
    /// was not synced so many writes have `reached` the disk, in order, or as the dice say.
    pub(super) fn crash(&mut self, node: usize, late: bool, reached: Option<usize>) {
        let ended = Incarnation(self.lives[node]);
        self.lives[node] += 1;
        let others: Vec<usize> = (0..NODES).filter(|other| *other != node).collect();
        self.queues.retain(|(from, to), _| {
            let from_dead = from.node() == Some(node);
            let to_dead = to.node() == Some(node);
            // What it had sent may still arrive, from its last life: a stream is read to its end.
            !(to_dead || from_dead && to.node() == Some(node))
        });
        for &other in &others {
            self.suspected.remove(&(node, other));
            self.unnoticed.remove(&(node, other));
            self.unnoticed.remove(&(other, node));
            if !late {
                self.drop_between(node, other);
            }
            self.flush_between(node, other);
            self.node_down(other, node, Some(ended));
        }
        let unanswered =
            |request: &Request| request.outcome == Outcome::Open && request.node == node;
        let open: Vec<usize> =
            (0..self.requests.len()).filter(|index| unanswered(&self.requests[*index])).collect();
        for request in open {
            self.end(request, Outcome::Unknown);
        }
        self.parked.retain(|(at, _), _| *at != node);
        self.early.retain(|(at, _), _| *at != node);
        if node < DATA {
            let unsynced = std::mem::take(&mut self.unsynced[node]);
            let reached = reached.unwrap_or_else(|| self.dice.roll(unsynced.len() + 1));
            for (id, persist) in unsynced.iter().take(reached) {
                self.disks[node].entry(*id).or_default().keep(persist);
            }
            self.buckets[node] = Some(self.bucket(node));
            if self.kind != Kind::Replicated {
                self.lost.insert(node);
            }
        }
        self.locks[node] = LockTable::new();
        self.coordinators[node] = self.coordinator(node);
        for other in others {
            if !self.cut.contains(&(node.min(other), node.max(other))) {
                self.node_up(node, other);
                self.node_up(other, node);
            }
        }
    }
}
