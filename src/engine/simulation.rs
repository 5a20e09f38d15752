//! The commit protocol under a seed: every engine of a small cluster, a shuffled message
//! schedule, Coordinators that die, links that break, and checkers that look on from outside.
//!
//! Messages between two actors keep their order, as a mailbox and a stream do; everything else is
//! up to the dice. Transactions append their tag to lists, so that the lists tell who came after
//! whom, and a cycle in that order (real time included) is a violation of strict serialisability,
//! as in Elle (Kingsbury and Alvaro 2020).
//!
//! There are four worlds: partitions with one copy on nodes that do not die, the same on nodes
//! that do ([`Kind::Lossy`]: what they held is gone), partitions replicated on all data nodes,
//! each with a disk that syncs when the dice say so and forgets what it did not sync, and some of
//! either sort ([`Kind::Mixed`]). In the last two nothing acknowledged by replicated partitions may
//! be missing, whoever dies.
//!
//! [`steps`] runs single transactions without dice, and strikes at each of their steps; [`staged`]
//! has schedules written by hand, for what dice hardly ever throw.

mod staged;
mod steps;

use crate::engine::batch::{Batch, Op, OpCode, OpHead, Replies};
use crate::engine::bucket::{Bucket, Executed, Outbox, Parked};
use crate::engine::consensus::{Group, Persist, Recovered, ReplicaId, Setup};
use crate::engine::locks::{self, LockTable};
use crate::engine::machine::{Access, Machine, Scope};
use crate::engine::partition::{Effect, Partition};
use crate::engine::protocol::{
    Claim, Decide, Ended, Granule, Mode, Refusal, Share, Term, Ticket, ToCoordinator, ToLocks,
    ToPartition, Verdict, Watched, Work,
};
use crate::engine::replica::Replica;
use crate::engine::rules::{Rule, broken, kept};
use crate::engine::tables::{KeyHasher, Tables};
use crate::engine::txn::{self, ClientId, Strength, Survives, Transactions};
use crate::ids::{Incarnation, Millis, NodeId, Now, PartitionId, TableIndex, TxnId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const READ: OpCode = OpCode(0);
const APPEND: OpCode = OpCode(1);
/// Appends if the keys' lists are of even length in all: its outcome needs every key.
const APPEND_IF_EVEN: OpCode = OpCode(2);
/// The same, but the first key is only read.
const APPEND_REST_IF_EVEN: OpCode = OpCode(3);
/// Answers with the version of a key that is watched from now on.
const WATCH: OpCode = OpCode(4);
/// Reads the first key and appends to the others, whatever they hold. A request only: its operations
/// are [`READ`] and [`APPEND`].
const READ_AND_APPEND: OpCode = OpCode(5);

/// Lists of tags: what the simulator's partitions run.
#[derive(Debug)]
pub struct Lists;

impl Machine for Lists {
    fn knows(code: OpCode) -> bool {
        code.0 <= 4
    }
    fn access(code: OpCode) -> Access {
        if matches!(code, READ | WATCH) { Access::Read } else { Access::Write }
    }
    fn scope(_: OpCode) -> Scope {
        Scope::Keys
    }
    fn keys(op: &Op<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
        let tags = usize::from(Self::access(op.head.code) == Access::Write);
        let keys = op.args.len() - tags;
        op.args.iter().take(keys).for_each(|key| visit(op.head.table, key));
    }
    fn run(op: &Op<'_>, tables: &mut Tables, now: Millis, reply: &mut Vec<u8>) {
        let table = op.head.table;
        let mut keys = Vec::new();
        Self::keys(op, &mut |_, key| keys.push(key.to_vec()));
        if op.head.code == WATCH {
            let version = tables.watches_mut().watch(table, &keys[0], now);
            reply.extend_from_slice(&version.to_le_bytes());
            return;
        }
        let hashes: Vec<u64> = keys.iter().map(|key| tables.hasher().hash(key)).collect();
        let list = |tables: &mut Tables, index: usize| {
            let item = tables.get(table, hashes[index], &keys[index]);
            item.map(|item| item.value().to_vec()).unwrap_or_default()
        };
        let length: usize = (0..keys.len()).map(|index| list(tables, index).len() / 4).sum();
        let append = match op.head.code {
            READ => false,
            APPEND => true,
            _ => length.is_multiple_of(2),
        };
        for index in 0..keys.len() {
            if append && !(index == 0 && op.head.code == APPEND_REST_IF_EVEN) {
                let tag = op.args.get(op.args.len() - 1);
                tables.append(table, hashes[index], &keys[index], tag);
            }
            let list = list(tables, index);
            reply.extend_from_slice(&(list.len() as u32 / 4).to_le_bytes());
            reply.extend_from_slice(&list);
        }
    }
    fn refuse(refusal: &Refusal, reply: &mut Vec<u8>) {
        match refusal {
            Refusal::Unknown(_) => reply.extend_from_slice(b"unknown"),
            _ => reply.extend_from_slice(b"refused"),
        }
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// Nodes 0 to 2 hold the partitions, 3 and 4 only coordinate: their death loses no data.
const DATA: usize = 3;
const NODES: usize = 5;
const PARTITIONS: usize = 6;
const KEYS: usize = 8;

/// The most that dice delay a message: a link that is slower is taken for broken.
const SLOW_MS: usize = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Actor {
    Bucket(usize),
    Locks(usize),
    Coordinator(usize),
    /// Who leads what, as a node was told. Leaders announce themselves on another stream than the
    /// one on which they answer, so either may overtake the other.
    Book(usize),
    Client(usize),
}

impl Actor {
    fn node(self) -> Option<usize> {
        match self {
            Actor::Bucket(node)
            | Actor::Locks(node)
            | Actor::Coordinator(node)
            | Actor::Book(node) => Some(node),
            Actor::Client(_) => None,
        }
    }
}

/// What the partitions of a world are, and what its nodes suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
    fn replicates(self) -> bool {
        matches!(self, Kind::Replicated | Kind::Mixed)
    }

    /// Whether a partition is replicated.
    fn is_replicated(self, id: PartitionId) -> bool {
        match self {
            Kind::Single | Kind::Lossy => false,
            Kind::Replicated => true,
            Kind::Mixed => id.index().is_multiple_of(2),
        }
    }
}

/// What a node's disk holds of a partition's log.
#[derive(Clone, Debug, Default)]
struct Stored {
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

#[derive(Debug)]
enum Message {
    Raft(PartitionId, Bytes),
    Leads(PartitionId, NodeId, Term),
    Partition(PartitionId, ToPartition),
    Coordinator(ToCoordinator),
    Locks(ToLocks),
    Grant(PartitionId, Ticket),
    Execute(usize, Batch),
    Begin(usize, Work),
    Replied(usize, Replies),
    Ended(usize, Ended),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Done,
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Request {
    tag: u32,
    keys: Vec<usize>,
    code: OpCode,
    begun: usize,
    ended: usize,
    outcome: Outcome,
    /// What it saw of each key.
    seen: BTreeMap<usize, Vec<u32>>,
    /// Which node was asked.
    node: usize,
    turned_away: usize,
}

struct World {
    dice: Dice,
    now: u64,
    step: usize,
    lives: [u64; NODES],
    /// How many of the partitions are placed at all.
    placed: u16,
    buckets: Vec<Option<Bucket<Lists>>>,
    locks: Vec<LockTable>,
    coordinators: Vec<Transactions<Lists>>,
    queues: BTreeMap<(Actor, Actor), VecDeque<Message>>,
    /// What is delivered late: nothing of it before that time.
    slow: BTreeMap<(Actor, Actor), u64>,
    /// Pairs (smaller first) that cannot reach each other.
    cut: BTreeSet<(usize, usize)>,
    /// Nodes that have not noticed yet that another one is out of reach.
    unnoticed: BTreeSet<(usize, usize)>,
    parked: BTreeMap<(usize, Parked), usize>,
    early: BTreeMap<(usize, Parked), Replies>,
    requests: Vec<Request>,
    kind: Kind,
    /// By data node: what is synced, and what is not yet.
    disks: Vec<BTreeMap<PartitionId, Stored>>,
    unsynced: Vec<VecDeque<(PartitionId, Persist)>>,
    /// By node: who it thinks leads each partition.
    leaders: Vec<Vec<(Term, usize)>>,
    lost: BTreeSet<usize>,
}

fn node_id(node: usize) -> NodeId {
    NodeId(node as u16 + 1)
}

fn homes() -> Vec<NodeId> {
    (0..PARTITIONS).map(|partition| node_id(partition % DATA)).collect()
}

fn partition_of(key: usize) -> PartitionId {
    PartitionId((key % PARTITIONS) as u16)
}

fn key_name(key: usize) -> Vec<u8> {
    format!("k{key}").into_bytes()
}

fn hasher() -> KeyHasher {
    KeyHasher::new(1)
}

impl World {
    fn new(seed: u64, kind: Kind) -> World {
        World::placed(seed, kind, PARTITIONS as u16)
    }

    /// A world of the first partitions only.
    fn placed(seed: u64, kind: Kind, placed: u16) -> World {
        let mut world = World {
            dice: Dice(seed),
            now: 1_000,
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
    fn with_bucket(
        &mut self,
        node: usize,
        work: impl FnOnce(&mut Bucket<Lists>, Now, &mut Outbox),
    ) {
        let now = self.now();
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
            let group = Group::new(&setup, recovered, self.now).unwrap();
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

    fn now(&self) -> Now {
        Now { wall: Millis(self.now), mono: self.now }
    }

    fn send(&mut self, from: Actor, to: Actor, message: Message) {
        if let (Some(one), Some(other)) = (from.node(), to.node())
            && self.cut.contains(&(one.min(other), one.max(other)))
        {
            return;
        }
        self.queues.entry((from, to)).or_default().push_back(message);
    }

    /// The node that `node` takes for a partition's leader.
    fn leader(&self, node: usize, partition: PartitionId) -> usize {
        self.leaders[node][partition.index()].1
    }

    fn learn(&mut self, node: usize, partition: PartitionId, leader: NodeId, term: Term) {
        let known = &mut self.leaders[node][partition.index()];
        if known.0 >= term {
            return;
        }
        *known = (term, usize::from(leader.0) - 1);
        let mut effects = Vec::new();
        let now = self.now().wall;
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

    fn txn_effects(&mut self, node: usize, effects: Vec<txn::Effect>) {
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

    fn deliver(&mut self, to: Actor, message: Message) {
        let now = self.now();
        match (to, message) {
            (Actor::Bucket(node), message) => self.deliver_to_bucket(node, message),
            (Actor::Locks(node), Message::Locks(message)) => {
                let mut effects = Vec::new();
                self.locks[node].handle(message, &mut effects);
                self.lock_effects(node, effects);
            }
            (Actor::Book(node), Message::Leads(partition, leader, term)) => {
                self.learn(node, partition, leader, term);
            }
            (Actor::Coordinator(node), Message::Coordinator(message)) => {
                let mut effects = Vec::new();
                self.coordinators[node].handle(message, now.wall, &mut effects);
                self.txn_effects(node, effects);
            }
            (Actor::Coordinator(node), Message::Begin(request, work)) => {
                let mut effects = Vec::new();
                let client = ClientId(request as u64);
                self.coordinators[node].begin(client, work, now.wall, &mut effects);
                self.txn_effects(node, effects);
            }
            (Actor::Client(_), Message::Replied(request, replies)) => {
                if !replies.misplaced.is_empty() {
                    self.ask_again(request);
                } else if replies.get(0) == b"refused" {
                    self.end(request, Outcome::Refused);
                } else if replies.get(0) == b"unknown" {
                    self.end(request, Outcome::Unknown);
                } else {
                    self.saw(request, &[replies]);
                    self.end(request, Outcome::Done);
                }
            }
            (Actor::Client(_), Message::Ended(request, ended)) => match ended {
                Ended::Done(replies) => {
                    self.saw(request, &replies);
                    self.end(request, Outcome::Done);
                }
                Ended::Refused(_) | Ended::Changed => self.end(request, Outcome::Refused),
                Ended::Unknown(_) => self.end(request, Outcome::Unknown),
            },
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

    fn end(&mut self, request: usize, outcome: Outcome) {
        let step = self.step;
        let request = &mut self.requests[request];
        if request.outcome == Outcome::Open {
            request.outcome = outcome;
            request.ended = step;
        }
    }

    /// Notes what a request's replies say of its keys. Shares come by partition, keys within one
    /// in the order asked.
    fn saw(&mut self, request: usize, replies: &[Replies]) {
        let request = &mut self.requests[request];
        let mut keys = request.keys.clone();
        if !matches!(request.code, APPEND_IF_EVEN | APPEND_REST_IF_EVEN) {
            keys.sort_by_key(|key| partition_of(*key));
        }
        let bytes: Vec<u8> = replies.iter().flat_map(|replies| replies.bytes.clone()).collect();
        let mut words = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        for key in keys {
            let length = words.next().unwrap();
            let list = words.by_ref().take(length as usize).collect();
            request.seen.insert(key, list);
        }
    }

    fn ask(&mut self) {
        let count = [1, 2, 2, 3, 4][self.dice.roll(5)];
        let mut keys = BTreeSet::new();
        while keys.len() < count {
            keys.insert(self.dice.roll(KEYS));
        }
        let mut keys: Vec<usize> = keys.into_iter().collect();
        let turn = self.dice.roll(keys.len());
        keys.rotate_left(turn);
        let codes = [READ, APPEND, APPEND, READ_AND_APPEND, APPEND_IF_EVEN, APPEND_REST_IF_EVEN];
        let alone = keys.iter().all(|key| partition_of(*key) == partition_of(keys[0]));
        let code = match codes[self.dice.roll(codes.len())] {
            READ_AND_APPEND if alone => READ,
            APPEND_REST_IF_EVEN if keys.len() == 1 => READ,
            code => code,
        };
        let node = self.dice.roll(NODES);
        self.ask_for(&keys, code, node, &[]);
    }

    /// A client asks a node.
    fn ask_for(&mut self, keys: &[usize], code: OpCode, node: usize, watched: &[(usize, u64)]) {
        let tag = self.requests.len() as u32;
        let partitions: BTreeSet<PartitionId> = keys.iter().map(|key| partition_of(*key)).collect();
        let request = tag as usize;
        let alone = partitions.len() == 1;
        self.requests.push(Request {
            tag,
            keys: keys.to_vec(),
            code,
            begun: self.step,
            ended: usize::MAX,
            outcome: Outcome::Open,
            seen: BTreeMap::new(),
            node,
            turned_away: 0,
        });
        if alone {
            self.ask_alone(request, self.leader(node, partition_of(keys[0])));
            return;
        }
        let mode = match code {
            READ => Mode::Read,
            APPEND | READ_AND_APPEND => Mode::Write,
            _ => Mode::Gather,
        };
        let shares = partitions.into_iter().map(|id| {
            let own: Vec<usize> =
                keys.iter().copied().filter(|key| partition_of(*key) == id).collect();
            if mode == Mode::Gather {
                let claims = own.iter().map(|key| Claim {
                    granule: Granule::Key(TableIndex::default(), key_name(*key)),
                    access: match code == APPEND_REST_IF_EVEN && *key == keys[0] {
                        true => Access::Read,
                        false => Access::Write,
                    },
                });
                return (id, Share { claims: claims.collect(), ..Share::default() });
            }
            let mine = watched.iter().filter(|(key, _)| partition_of(*key) == id);
            let watched = mine.map(|&(key, version)| Watched {
                table: TableIndex::default(),
                key: key_name(key),
                version,
            });
            let batch = match code {
                READ_AND_APPEND => read_and_append(id, keys[0], &own, tag),
                code => batch(code, id, &own, tag),
            };
            (id, Share { watched: watched.collect(), ..Share::from(batch) })
        });
        let shares = shares.collect();
        let script = match mode {
            Mode::Gather => batch(code, PartitionId(0), keys, tag),
            _ => Batch::new(),
        };
        let work = Work { mode, shares, script };
        let to = Actor::Coordinator(node);
        self.send(Actor::Client(request), to, Message::Begin(request, work));
    }

    /// Asks a node for a request on one partition.
    fn ask_alone(&mut self, request: usize, node: usize) {
        let Request { code, keys, tag, .. } = &self.requests[request];
        let batch = batch(*code, partition_of(keys[0]), keys, *tag);
        self.requests[request].node = node;
        let execute = Message::Execute(request, batch);
        self.send(Actor::Client(request), Actor::Bucket(node), execute);
    }

    /// A node does not lead the partition: another one may.
    fn ask_again(&mut self, request: usize) {
        self.requests[request].turned_away += 1;
        if self.requests[request].turned_away > 200 {
            self.end(request, Outcome::Refused);
            return;
        }
        let node = self.dice.roll(DATA);
        self.ask_alone(request, node);
    }

    fn node_up(&mut self, node: usize, other: usize) {
        let life = Incarnation(self.lives[other]);
        self.with_bucket(node, |bucket, _, out| bucket.node_up(node_id(other), life, out));
        for partition in 0..PARTITIONS {
            let (term, leader) = self.leaders[node][partition];
            if leader == node {
                let leads = Message::Leads(PartitionId(partition as u16), node_id(node), term);
                self.send(Actor::Bucket(node), Actor::Book(other), leads);
            }
        }
        let now = self.now().wall;
        let mut effects = Vec::new();
        self.coordinators[node].node_up(node_id(other), life, now, &mut effects);
        self.txn_effects(node, effects);
    }

    fn node_down(&mut self, node: usize, other: usize, ended: Option<Incarnation>) {
        self.with_bucket(node, |bucket, _, out| bucket.node_down(node_id(other), ended, out));
        let now = self.now().wall;
        let mut effects = Vec::new();
        self.coordinators[node].node_down(node_id(other), now, &mut effects);
        self.txn_effects(node, effects);
    }

    fn drop_between(&mut self, one: usize, other: usize) {
        self.queues.retain(|(from, to), _| match (from.node(), to.node()) {
            (Some(from), Some(to)) => {
                (from.min(to), from.max(to)) != (one.min(other), one.max(other))
            }
            _ => true,
        });
    }

    fn cut(&mut self, one: usize, other: usize) {
        if self.cut.insert((one.min(other), one.max(other))) {
            self.drop_between(one, other);
            self.unnoticed.extend([(one, other), (other, one)]);
        }
    }

    /// A node notices that another one is out of reach: each in its own time.
    fn notice(&mut self, node: usize, other: usize) {
        if self.unnoticed.remove(&(node, other)) {
            self.node_down(node, other, None);
        }
    }

    fn heal(&mut self, one: usize, other: usize) {
        if self.cut.remove(&(one.min(other), one.max(other))) {
            // A new link stands on both sides once the old one is gone on both.
            self.notice(one, other);
            self.notice(other, one);
            self.node_up(one, other);
            self.node_up(other, one);
        }
    }

    fn kill(&mut self, node: usize) {
        let late = self.dice.one_in(2) && !to_clients(&self.queues, node);
        self.crash(node, late, None);
    }

    /// A node dies and is started again. What it had sent still arrives if it is `late`; of what
    /// was not synced so many writes have `reached` the disk, in order, or as the dice say.
    fn crash(&mut self, node: usize, late: bool, reached: Option<usize>) {
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

    /// Delivers all that is under way from one node to another.
    fn flush_between(&mut self, from: usize, to: usize) {
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

    fn tick(&mut self, node: usize) {
        let now = self.now();
        self.with_bucket(node, |bucket, now, out| bucket.tick(now, out));
        let mut effects = Vec::new();
        self.locks[node].tick(&mut effects);
        self.lock_effects(node, effects);
        let mut effects = Vec::new();
        self.coordinators[node].tick(now.wall, &mut effects);
        self.txn_effects(node, effects);
    }

    fn step(&mut self) {
        self.step += 1;
        // Groups talk much: their messages must not take longer than their leases last.
        self.now += self.dice.roll(if self.kind.replicates() { 2 } else { 8 }) as u64;
        let ready: Vec<(Actor, Actor)> = self
            .queues
            .iter()
            .filter(|(pair, queue)| !queue.is_empty() && !self.is_slow(**pair))
            .map(|(pair, _)| *pair)
            .collect();
        let unsynced = (0..DATA).any(|node| !self.unsynced[node].is_empty());
        if unsynced && (ready.is_empty() || self.dice.one_in(4)) {
            self.sync();
            return;
        }
        if ready.is_empty() || self.dice.one_in(12) {
            let node = self.dice.roll(NODES);
            self.now += if self.kind.replicates() { 10 } else { 40 };
            for node in 0..DATA {
                self.with_bucket(node, |bucket, now, _| bucket.beat(now));
            }
            self.tick(node);
            return;
        }
        let pair = ready[self.dice.roll(ready.len())];
        if let Some(message) = self.queues.get_mut(&pair).and_then(VecDeque::pop_front) {
            self.deliver(pair.1, message);
        }
    }

    fn is_slow(&self, pair: (Actor, Actor)) -> bool {
        self.slow.get(&pair).is_some_and(|until| self.now < *until)
    }

    /// Some node's disk syncs all that was written to it.
    fn sync(&mut self) {
        let busy: Vec<usize> = (0..DATA).filter(|node| !self.unsynced[*node].is_empty()).collect();
        let node = busy[self.dice.roll(busy.len())];
        self.sync_at(node);
    }

    fn sync_at(&mut self, node: usize) {
        let synced = std::mem::take(&mut self.unsynced[node]);
        for (id, persist) in &synced {
            self.disks[node].entry(*id).or_default().keep(persist);
        }
        self.with_bucket(node, |bucket, _, _| {
            synced.iter().for_each(|(id, persist)| bucket.persisted(*id, persist.number));
        });
    }

    fn faults(&mut self) {
        if self.dice.one_in(60) {
            let one = self.dice.roll(NODES);
            let other = (one + 1 + self.dice.roll(NODES - 1)) % NODES;
            self.cut(one, other);
        }
        if self.dice.one_in(10) {
            let waiting: Vec<(usize, usize)> = self.unnoticed.iter().copied().collect();
            if !waiting.is_empty() {
                let (node, other) = waiting[self.dice.roll(waiting.len())];
                self.notice(node, other);
            }
        }
        if self.dice.one_in(30) {
            let cut: Vec<(usize, usize)> = self.cut.iter().copied().collect();
            if !cut.is_empty() {
                let (one, other) = cut[self.dice.roll(cut.len())];
                self.heal(one, other);
            }
        }
        if self.dice.one_in(40) {
            let used: Vec<(Actor, Actor)> = self.queues.keys().copied().collect();
            if !used.is_empty() {
                let pair = used[self.dice.roll(used.len())];
                let until = self.now + self.dice.roll(SLOW_MS) as u64;
                self.slow.insert(pair, until);
            }
        }
        if self.dice.one_in(150) {
            let node = match self.kind {
                Kind::Single => DATA + self.dice.roll(2),
                Kind::Lossy => self.dice.roll(DATA),
                Kind::Replicated | Kind::Mixed => self.dice.roll(NODES),
            };
            self.kill(node);
        }
    }

    fn run(&mut self, requests: usize) -> Result<(), String> {
        while self.requests.len() < requests {
            let open = self.requests.iter().filter(|r| r.outcome == Outcome::Open).count();
            if open < 8 && self.dice.one_in(6) {
                self.ask();
            }
            self.faults();
            self.step();
        }
        for (one, other) in std::mem::take(&mut self.cut) {
            self.cut.insert((one, other));
            self.heal(one, other);
        }
        for _ in 0..60_000 {
            self.step();
            if self.is_at_rest() {
                return self.check();
            }
        }
        Err(self.unrest())
    }

    fn is_at_rest(&self) -> bool {
        self.queues.values().all(VecDeque::is_empty)
            && self.requests.iter().all(|request| request.outcome != Outcome::Open)
            && self.buckets.iter().flatten().all(Bucket::is_at_rest)
            && self.locks.iter().all(LockTable::is_empty)
            && self.coordinators.iter().all(|coordinator| coordinator.active() == 0)
            && self.unsynced.iter().all(VecDeque::is_empty)
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

    fn unrest(&self) -> String {
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
        let Some(partition) = self.buckets[node].as_mut().and_then(|b| b.partition_mut(id)) else {
            return Vec::new();
        };
        let batch = batch(READ, id, &[key], 0);
        let mut reply = Vec::new();
        partition.peek(&batch.op(0), &mut reply);
        reply[4..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn final_list(&mut self, key: usize) -> Vec<u32> {
        self.list_at(partition_of(key).index() % DATA, key)
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

    fn check(&mut self) -> Result<(), String> {
        let lists: Vec<Vec<u32>> = (0..KEYS).map(|key| self.final_list(key)).collect();
        self.check_alike()?;
        self.check_whole(&lists)?;
        if self.kind == Kind::Lossy { Ok(()) } else { self.check_order(&lists) }
    }

    /// Whether all that was acknowledged of a key is to be there. A node that lost its memory says
    /// nothing about what it held.
    fn is_kept(&self, key: usize) -> bool {
        let id = partition_of(key);
        self.kind.is_replicated(id) || !self.lost.contains(&(id.index() % DATA))
    }

    /// Whether the decision on a request was in nobody's memory but that of a node that was lost:
    /// without copies, a node that decided a commit it coordinated itself and died before it told
    /// anybody takes the decision with it.
    fn may_be_taken_along(&self, request: &Request) -> bool {
        let mut ids = request.keys.iter().map(|key| partition_of(*key));
        self.lost.contains(&request.node) && !ids.any(|id| self.kind.is_replicated(id))
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

fn to_clients(queues: &BTreeMap<(Actor, Actor), VecDeque<Message>>, node: usize) -> bool {
    queues.keys().any(|(from, to)| from.node() == Some(node) && to.node().is_none())
}

fn batch(code: OpCode, partition: PartitionId, keys: &[usize], tag: u32) -> Batch {
    let names: Vec<Vec<u8>> = keys.iter().map(|key| key_name(*key)).collect();
    let tag = tag.to_le_bytes();
    let hash = hasher().hash(&names[0]);
    let head = OpHead { code, partition, table: TableIndex::default(), resp3: false, hash };
    let mut args: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    if Lists::access(code) == Access::Write {
        args.push(&tag);
    }
    let mut batch = Batch::new();
    batch.push(head, args);
    batch
}

fn read_and_append(id: PartitionId, read: usize, keys: &[usize], tag: u32) -> Batch {
    let (read, appended): (Vec<usize>, Vec<usize>) = keys.iter().partition(|key| **key == read);
    let mut ops = Batch::new();
    for (code, keys) in [(READ, read), (APPEND, appended)] {
        if !keys.is_empty() {
            batch(code, id, &keys, tag).iter().for_each(|op| ops.push_op(&op));
        }
    }
    ops
}

const SEEDS: u64 = 400;
const REPLICATED_SEEDS: u64 = 100;

/// The first so many, or others as `QUORATE_SEEDS=400..2000` says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("QUORATE_SEEDS").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    asked.unwrap_or(0..count)
}

fn hunt(seeds: std::ops::Range<u64>, kind: Kind) -> Result<(), (u64, String)> {
    for seed in seeds {
        World::new(seed, kind).run(60).map_err(|violation| (seed, violation))?;
    }
    Ok(())
}

#[test]
fn every_schedule_is_strictly_serialisable_and_comes_to_rest() {
    if let Err((seed, violation)) = hunt(seeds(SEEDS), Kind::Single) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn lost_partitions_leave_no_lock_and_no_half() {
    if let Err((seed, violation)) = hunt(seeds(SEEDS), Kind::Lossy) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn replicated_partitions_lose_nothing_whoever_dies() {
    if let Err((seed, violation)) = hunt(seeds(REPLICATED_SEEDS), Kind::Replicated) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn transactions_of_caches_and_replicated_partitions_are_whole_in_the_latter() {
    if let Err((seed, violation)) = hunt(seeds(REPLICATED_SEEDS), Kind::Mixed) {
        panic!("seed {seed}: {violation}");
    }
}

/// What notices that a rule is broken. The engines' own assertions find violations too.
enum Witness {
    /// The dice, with one of these seeds.
    Dice(Kind, std::ops::Range<u64>),
    /// A transaction, struck at some step.
    Struck(steps::Story),
    /// A schedule written for it.
    Staged(fn() -> Result<(), String>),
}

/// Every rule has a witness, so that a new one asks for its own.
fn witness(rule: Rule) -> Witness {
    use Witness::{Dice, Staged, Struck};
    match rule {
        Rule::MarksAreAuthoritative
        | Rule::WoundThroughCoordinator
        | Rule::DecisionIgnoresWounds
        | Rule::UnloggedLocksGoWithCoordinator
        | Rule::ReadsWaitOnIntents
        | Rule::CommitNeedsIntent
        | Rule::FirstDecisionStands
        | Rule::PrimaryDrives
        | Rule::OldIntentsAsk => Dice(Kind::Single, 0..100),
        Rule::LeadersApplyFirst => Dice(Kind::Replicated, 0..400),
        Rule::GrantsWaitForFiled => Struck(steps::OVERTAKEN),
        Rule::OlderWounds => Staged(staged::an_older_transaction_goes_first),
        Rule::PrepareCarriesGrant => Staged(staged::a_prepare_for_locks_of_an_earlier_term),
        Rule::ReadKeysArePrepared => Staged(staged::a_key_read_changes_before_the_rest_is_written),
        Rule::ReadsAreConfirmed => Staged(staged::a_read_over_a_change_of_leaders),
        Rule::OutcomesAreRemembered => {
            Staged(staged::a_participant_asks_after_the_next_transaction)
        }
        Rule::LatePreparesAreRefused => Staged(staged::a_prepare_comes_after_the_end),
        Rule::ReadsNeedLease => Staged(staged::a_deposed_leader_is_asked),
    }
}

impl Witness {
    fn sees(&self) -> Result<(), String> {
        match self {
            Witness::Dice(kind, seeds) => hunt(seeds.clone(), *kind)
                .map_err(|(seed, violation)| format!("{kind:?}, seed {seed}: {violation}")),
            Witness::Struck(story) => steps::strike_everywhere(*story).map(|_| ()),
            Witness::Staged(schedule) => schedule(),
        }
    }
}

#[test]
fn every_rule_is_missed_when_it_is_broken() {
    let mut unmissed = Vec::new();
    for rule in Rule::ALL {
        let witness = witness(rule);
        let seen = std::panic::catch_unwind(|| broken(rule, || witness.sees()));
        let seen = seen.unwrap_or_else(|_| Err("an assertion failed".into()));
        match seen {
            Ok(()) => unmissed.push(rule),
            Err(violation) => println!("{rule:?}: {violation}"),
        }
    }
    assert!(unmissed.is_empty(), "nothing noticed the absence of {unmissed:?}");
}

#[test]
fn what_is_staged_ends_well_by_the_rules() {
    for rule in Rule::ALL {
        if let Witness::Staged(schedule) = witness(rule)
            && let Err(violation) = schedule()
        {
            panic!("{rule:?}: {violation}");
        }
    }
}
