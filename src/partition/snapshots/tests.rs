//! Snapshots of a replicated partition, made, sent and installed.

use super::{Arrived, FromArchive, PIECES_MAX, ToArchive};
use crate::batch::{Batch, OpCode, OpHead, Replies};
use crate::cluster::topology::Topology;
use crate::command::Redis;
use crate::consensus::{Group, Members, Outgoing, Recovered, ReplicaId, Setup, SnapshotMeta};
use crate::ids::{Incarnation, Millis, NodeId, Now, PartitionId, TableIndex};
use crate::partition::Partition;
use crate::partition::bucket::{Bucket, Executed, Outbox};
use crate::partition::replica::Replica;
use crate::partition::snapshot::Restorer;
use crate::store::tables::KeyHasher;
use std::collections::VecDeque;

const SET: OpCode = OpCode(16);
const PARTITION: PartitionId = PartitionId(0);

/// A node with the one partition, whose disk is as fast as its memory.
struct Node {
    bucket: Bucket<Redis>,
    out: Outbox,
    orders: VecDeque<ToArchive>,
    covered: Vec<u64>,
    installed: usize,
}

struct Nodes {
    nodes: Vec<Node>,
    hasher: KeyHasher,
    mono: u64,
    /// These hear nothing and are not heard.
    cut_off: Vec<usize>,
}

impl Nodes {
    fn new(count: u16) -> Nodes {
        let hasher = KeyHasher::new(7);
        let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let voters: Vec<ReplicaId> = ids.iter().map(|id| ReplicaId::new(*id, 1)).collect();
        let node = |id: &NodeId| {
            let mut setup = Setup::new(ReplicaId::new(*id, 1), voters.clone(), 7);
            setup.retain_bytes = 0;
            let group = Group::new(&setup, Recovered::default(), 0).expect("a new group");
            let life = Incarnation(1);
            let replica = Replica::new(PARTITION, hasher);
            let mut bucket =
                Bucket::new(*id, life, Topology::of_leaders([NodeId(1)]), &[], hasher, 0, 1000);
            bucket.place(Partition::replicated(PARTITION, *id, life, replica, group));
            let (out, orders) = (Outbox::default(), VecDeque::new());
            Node { bucket, out, orders, covered: Vec::new(), installed: 0 }
        };
        let mut nodes =
            Nodes { nodes: ids.iter().map(node).collect(), hasher, mono: 0, cut_off: Vec::new() };
        let now = nodes.now();
        nodes.nodes[0].bucket.form(now);
        nodes.settle();
        assert!(nodes.partition(0).is_led_here());
        nodes
    }

    fn now(&self) -> Now {
        Now { wall: Millis(self.mono), mono: self.mono }
    }

    fn partition(&self, node: usize) -> &Partition<Redis> {
        self.nodes[node].bucket.partition(PARTITION).expect("it is placed there")
    }

    fn members(&self, node: usize) -> Members {
        let journal = self.partition(node).journal().expect("it is replicated");
        journal.group().members().clone()
    }

    /// Lets all replicas do what is to be done, until nothing is left.
    fn settle(&mut self) {
        let now = self.now();
        loop {
            let mut letters = Vec::new();
            let mut persisted = false;
            for (at, node) in self.nodes.iter_mut().enumerate() {
                node.bucket.flush(now, &mut node.out);
                assert_eq!(node.out.fatal, None);
                node.orders.extend(node.out.archive.drain(..).map(|(_, order)| order));
                node.covered.extend(node.out.covered.drain(..).map(|(_, index)| index));
                for (id, persist) in std::mem::take(&mut node.out.persists) {
                    node.installed += usize::from(persist.snapshot.is_some());
                    node.bucket.persisted(id, persist.number);
                    persisted = true;
                }
                let said = node.out.raft.drain(..);
                letters.extend(said.map(|(to, id, bytes)| (at, usize::from(to.0) - 1, id, bytes)));
            }
            letters.retain(|(from, to, ..)| {
                ![from, to].iter().any(|node| self.cut_off.contains(node))
            });
            if letters.is_empty() && !persisted {
                return;
            }
            for (_, to, id, bytes) in letters {
                self.nodes[to].bucket.raft(id, &bytes, now).expect("a message of a replica");
            }
        }
    }

    /// Lets time pass, beat by beat.
    fn pass(&mut self, ms: u64) {
        let until = self.mono + ms;
        while self.mono < until {
            self.mono += 25;
            let now = self.now();
            self.nodes.iter_mut().for_each(|node| node.bucket.beat(now));
            self.settle();
        }
    }

    fn set(&mut self, number: usize, value: &str) {
        let key = format!("key:{number}");
        let mut batch = Batch::new();
        let head = OpHead {
            code: SET,
            partition: PARTITION,
            table: TableIndex::default(),
            resp3: false,
            hash: self.hasher.hash(key.as_bytes()),
        };
        batch.push(head, [key.as_bytes(), value.as_bytes()]);
        let now = self.now();
        let node = &mut self.nodes[0];
        let executed = node.bucket.execute(batch, Replies::default(), now, &mut node.out);
        assert!(matches!(executed, Executed::Parked(_)), "a write waits for its entry");
        self.settle();
        let completed = std::mem::take(&mut self.nodes[0].out.completed);
        assert_eq!(completed.len(), 1);
        assert_eq!(completed[0].2.get(0), b"+OK\r\n");
    }

    fn news(&mut self, node: usize, news: FromArchive<Redis>) {
        let now = self.now();
        let Node { bucket, out, .. } = &mut self.nodes[node];
        bucket.archived(PARTITION, news, now, out);
        self.settle();
    }

    /// Plays the archive of a node whose partition is due, until its snapshot is durable: what it
    /// says about itself, and the replica that can be made of it. `between` happens after every
    /// piece.
    fn make(
        &mut self,
        node: usize,
        mut between: impl FnMut(&mut Nodes),
    ) -> (SnapshotMeta, Vec<u8>) {
        let due = self.nodes[node].orders.pop_front();
        assert!(matches!(due, Some(ToArchive::Due)), "{due:?}");
        self.news(node, FromArchive::Begin);
        let Some(ToArchive::Begin { meta, index }) = self.nodes[node].orders.pop_front() else {
            panic!("nothing begins");
        };
        let meta = SnapshotMeta::from_bytes(&meta).expect("what it says about itself");
        assert_eq!(meta.index, index);
        let mut bytes = Vec::new();
        loop {
            let waiting = self.nodes[node].orders.len();
            assert!(waiting <= PIECES_MAX as usize + 1, "{waiting} pieces wait");
            match self.nodes[node].orders.pop_front() {
                Some(ToArchive::Piece(piece)) => {
                    assert!(piece.len() < 1 << 20, "a piece of {} bytes", piece.len());
                    bytes.extend(piece);
                    self.news(node, FromArchive::Written);
                }
                Some(ToArchive::End) => break,
                other => panic!("{other:?}"),
            }
            between(self);
        }
        self.news(node, FromArchive::Durable { bytes: bytes.len() as u64 });
        assert_eq!(self.nodes[node].covered.last(), Some(&index));
        (meta, bytes)
    }

    fn restore(&self, bytes: &[u8]) -> Replica<Redis> {
        let mut restorer = Restorer::new(PARTITION, self.hasher, bytes.len() as u64);
        restorer.push(bytes).expect("a whole snapshot");
        restorer.finish().expect("a whole snapshot")
    }

    /// The snapshot that the leader wants streamed, once time has passed enough for it to notice.
    fn outgoing(&mut self) -> Outgoing {
        for _ in 0..100 {
            if let Some(ToArchive::Send(outgoing)) = self.nodes[0].orders.pop_front() {
                return outgoing;
            }
            self.pass(25);
        }
        panic!("nothing is sent");
    }
}

#[test]
fn a_change_of_members_asks_for_no_snapshot() {
    let mut nodes = Nodes::new(3);
    nodes.set(1, "one");
    // Its new replica is not there yet.
    nodes.cut_off = vec![1];
    nodes.nodes[0].bucket.reborn(NodeId(2), &[(PARTITION, 2)]);
    let before = nodes.members(2);
    for _ in 0..5 {
        let now = nodes.now();
        for node in [0, 2] {
            let Node { bucket, out, .. } = &mut nodes.nodes[node];
            bucket.tick(now, out);
        }
        nodes.pass(100);
    }
    assert_ne!(nodes.members(2), before, "the new replica learns");
    for node in [0, 2] {
        let orders = &nodes.nodes[node].orders;
        assert!(orders.is_empty(), "node {}: {orders:?}", node + 1);
    }
}

#[test]
fn a_snapshot_with_the_members_of_before_is_not_offered() {
    let mut nodes = Nodes::new(5);
    nodes.set(0, "before");
    nodes.cut_off = vec![4];
    for number in 0..500 {
        nodes.set(number, "while it was away");
    }
    let now = nodes.now();
    let Node { bucket, out, .. } = &mut nodes.nodes[0];
    bucket.snapshot(PARTITION, out);
    nodes.settle();
    let (before, _) = nodes.make(0, |nodes| {
        // The new replica is not there yet.
        nodes.cut_off = vec![2, 4];
        let Node { bucket, out, .. } = &mut nodes.nodes[0];
        bucket.reborn(NodeId(3), &[(PARTITION, 2)]);
        bucket.tick(now, out);
        nodes.settle();
    });
    assert_ne!(before.members, nodes.members(0));

    // A follower that needs one is given the next.
    nodes.cut_off = vec![2];
    nodes.pass(300);
    let (after, _) = nodes.make(0, |_| ());
    assert_eq!(after.members, nodes.members(0));
    let outgoing = nodes.outgoing();
    assert_eq!((outgoing.to, outgoing.index), (ReplicaId::new(NodeId(5), 1), after.index));
}

#[test]
fn a_snapshot_is_as_of_its_beginning_and_the_log_behind_it_goes() {
    let mut nodes = Nodes::new(1);
    for number in 0..6_000 {
        nodes.set(number, &"x".repeat(300));
    }
    let logged = nodes.partition(0).log_since_snapshot();
    assert!(logged > 6_000 * 300, "{logged}");
    nodes.nodes[0].bucket.snapshot_after(logged + 1);
    let now = nodes.now();
    let Node { bucket, out, .. } = &mut nodes.nodes[0];
    bucket.tick(now, out);
    nodes.settle();
    assert!(nodes.nodes[0].orders.is_empty(), "it is not due yet");

    let Node { bucket, out, .. } = &mut nodes.nodes[0];
    bucket.snapshot_after(logged);
    bucket.tick(now, out);
    bucket.tick(now, out);
    nodes.settle();
    let before = nodes.partition(0).replica().digest();
    let mut next = 0;
    let (meta, bytes) = nodes.make(0, |nodes| {
        // Changed, removed and new, while it is copied.
        for _ in 0..200 {
            nodes.set(next * 7, "changed");
            next += 1;
        }
    });
    assert!(next > 600, "the snapshot took some pieces");
    let restored = nodes.restore(&bytes);
    assert_eq!(restored.digest(), before, "a snapshot is of one moment");
    let partition = nodes.partition(0);
    assert_ne!(partition.replica().digest(), before);
    let group = partition.journal().expect("it is replicated").group();
    let since = group.applied_index() - meta.index;
    assert_eq!(since, next as u64);
    assert!(group.log_bytes() < since * 200, "{} bytes stay in memory", group.log_bytes());
    assert!(partition.log_since_snapshot() < since * 200);
    assert!(nodes.nodes[0].orders.is_empty(), "and no other one is due");
}

#[test]
fn a_follower_far_behind_goes_on_from_a_snapshot() {
    let mut nodes = Nodes::new(3);
    nodes.set(0, "before");
    nodes.cut_off = vec![2];
    for number in 0..500 {
        nodes.set(number, "while it was away");
    }
    // Nothing is on offer: the leader finds out when it would send the first entries.
    let Node { bucket, out, .. } = &mut nodes.nodes[0];
    bucket.snapshot(PARTITION, out);
    nodes.settle();
    let (meta, bytes) = nodes.make(0, |_| ());
    for number in 0..10 {
        nodes.set(number, "after the snapshot");
    }
    nodes.cut_off = Vec::new();
    let outgoing = nodes.outgoing();
    assert_eq!((outgoing.to, outgoing.index), (ReplicaId::new(NodeId(3), 1), meta.index));

    // It fails, and is tried again.
    nodes.news(0, FromArchive::Sent { to: outgoing.to, arrived: false });
    let outgoing = nodes.outgoing();
    let arrived = |nodes: &Nodes| {
        let (message, replica) = (outgoing.message.clone(), nodes.restore(&bytes));
        let arrived = Arrived { meta: meta.clone(), replica, message, bytes: bytes.len() as u64 };
        FromArchive::Arrived(Box::new(arrived))
    };
    let news = arrived(&nodes);
    nodes.news(2, news);
    nodes.news(0, FromArchive::Sent { to: outgoing.to, arrived: true });
    nodes.pass(500);
    assert_eq!(nodes.nodes[2].installed, 1);
    let digests = [0, 1, 2].map(|node| nodes.partition(node).replica().digest());
    assert_eq!(digests, [digests[0]; 3], "the rest came by log");

    // Come twice it changes nothing.
    nodes.set(1, "later");
    let news = arrived(&nodes);
    nodes.news(2, news);
    nodes.pass(500);
    assert_eq!(nodes.nodes[2].installed, 1);
    let digests = [0, 1, 2].map(|node| nodes.partition(node).replica().digest());
    assert_eq!(digests, [digests[0]; 3]);
}

#[test]
fn a_snapshot_that_cannot_be_written_is_tried_again_later() {
    let mut nodes = Nodes::new(1);
    for number in 0..5_000 {
        nodes.set(number, &"x".repeat(300));
    }
    let tick = |nodes: &mut Nodes| {
        let now = nodes.now();
        let Node { bucket, out, .. } = &mut nodes.nodes[0];
        bucket.tick(now, out);
        nodes.settle();
    };
    nodes.nodes[0].bucket.snapshot_after(1);
    tick(&mut nodes);
    assert!(matches!(nodes.nodes[0].orders.pop_front(), Some(ToArchive::Due)));
    nodes.news(0, FromArchive::Begin);
    nodes.news(0, FromArchive::Failed);
    nodes.nodes[0].orders.clear();
    tick(&mut nodes);
    assert!(nodes.nodes[0].orders.is_empty(), "not at once");
    nodes.pass(super::RETRY_AFTER_MS);
    tick(&mut nodes);
    let before = nodes.partition(0).replica().digest();
    let (_, bytes) = nodes.make(0, |_| ());
    assert_eq!(nodes.restore(&bytes).digest(), before);
}

#[test]
fn a_log_that_is_little_but_history_is_not_kept() {
    let mut nodes = Nodes::new(1);
    nodes.nodes[0].bucket.snapshot_after(u64::MAX);
    let due = |nodes: &mut Nodes| {
        let now = nodes.now();
        let Node { bucket, out, .. } = &mut nodes.nodes[0];
        bucket.tick(now, out);
        nodes.settle();
        matches!(nodes.nodes[0].orders.front(), Some(ToArchive::Due))
    };
    let fill = |nodes: &mut Nodes| {
        (0..4_000).for_each(|number| nodes.set(number, &"x".repeat(300)));
    };
    // All of it is alive.
    fill(&mut nodes);
    nodes.pass(60_000);
    assert!(!due(&mut nodes));
    // Written over and over, it is not.
    (0..4).for_each(|_| fill(&mut nodes));
    assert!(due(&mut nodes));
    nodes.make(0, |_| {});
    assert!(nodes.partition(0).log_since_snapshot() < 1_000);

    // No more often than it helps, unless memory is scarce.
    (0..5).for_each(|_| fill(&mut nodes));
    assert!(!due(&mut nodes));
    nodes.nodes[0].bucket.allow_growth(0);
    assert!(due(&mut nodes));
    nodes.make(0, |_| {});
    nodes.nodes[0].bucket.allow_growth(usize::MAX);
    (0..5).for_each(|_| fill(&mut nodes));
    assert!(!due(&mut nodes));
    nodes.pass(15_000);
    assert!(due(&mut nodes));
}
