//! Three Buckets with replicas of the same partitions, whose messages and syncs are prompt.

use super::*;
use crate::cluster::topology::Topology;
use crate::command::Redis;
use crate::consensus::{Recovered, ReplicaId, Setup};
use crate::ids::Millis;
use crate::partition::Partition;
use crate::partition::bucket::Outbox;
use crate::partition::replica::Replica;
use crate::store::tables::KeyHasher;

const PARTITIONS: u16 = 6;

struct Cluster {
    mono: u64,
    /// It hears no other node.
    deaf: Option<NodeId>,
    buckets: BTreeMap<NodeId, Bucket<Redis>>,
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (1..=3).map(NodeId)
}

/// Partitions 0 and 1 are to be led by node 1, and so on.
fn preferred() -> Vec<NodeId> {
    (0..PARTITIONS).map(|id| NodeId(id / 2 + 1)).collect()
}

fn bucket(node: NodeId, life: Incarnation, mono: u64) -> Bucket<Redis> {
    let hasher = KeyHasher::new(7);
    let mut bucket =
        Bucket::new(node, life, Topology::of_leaders(preferred()), &[], hasher, 0, 1000);
    for id in (0..PARTITIONS).map(PartitionId) {
        let voters = nodes().map(|node| ReplicaId::new(node, 1)).collect();
        let setup = Setup::new(ReplicaId::new(node, 1), voters, u64::from(id.0));
        let group = Group::new(&setup, Recovered::default(), mono).unwrap();
        bucket.place(Partition::replicated(id, node, life, Replica::new(id, hasher), group));
    }
    bucket
}

impl Cluster {
    fn formed() -> Cluster {
        let start = |node| (node, bucket(node, Incarnation(1), 0));
        let mut cluster = Cluster { mono: 0, deaf: None, buckets: nodes().map(start).collect() };
        for one in nodes() {
            nodes().filter(|other| *other != one).for_each(|other| cluster.link(one, other));
        }
        let now = Now { wall: Millis(cluster.mono), mono: cluster.mono };
        cluster.buckets.values_mut().for_each(|bucket| bucket.form(now));
        cluster.run(500);
        assert_eq!(cluster.led(), [2, 2, 2]);
        cluster
    }

    fn link(&mut self, one: NodeId, other: NodeId) {
        let Some(life) = self.buckets.get(&other).map(Bucket::life) else { return };
        if let Some(bucket) = self.buckets.get_mut(&one) {
            bucket.node_up(other, life, &mut Outbox::default());
        }
    }

    fn now(&self) -> Now {
        Now { wall: Millis(self.mono), mono: self.mono }
    }

    /// How many partitions each node leads.
    fn led(&self) -> [usize; 3] {
        [1, 2, 3].map(|node| {
            let bucket = self.buckets.get(&NodeId(node));
            let led = |one: &&Partition<Redis>| one.is_led_here();
            bucket.map_or(0, |bucket| bucket.partitions().filter(led).count())
        })
    }

    fn run(&mut self, ms: u64) {
        let end = self.mono + ms;
        while self.mono < end {
            self.mono += 25;
            let now = self.now();
            for bucket in self.buckets.values_mut() {
                bucket.beat(now);
                if self.mono.is_multiple_of(100) {
                    bucket.tick(now, &mut Outbox::default());
                }
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        let now = self.now();
        loop {
            let mut sent = Vec::new();
            for bucket in self.buckets.values_mut() {
                let mut out = Outbox::default();
                bucket.flush(now, &mut out);
                assert_eq!(out.fatal, None);
                let persisted = out.persists.len();
                for (id, persist) in out.persists {
                    bucket.persisted(id, persist.number);
                }
                sent.push((out.raft, persisted));
            }
            if sent.iter().all(|(raft, persisted)| raft.is_empty() && *persisted == 0) {
                return;
            }
            for (to, id, message) in sent.into_iter().flat_map(|(raft, _)| raft) {
                if let Some(bucket) = self.buckets.get_mut(&to).filter(|_| self.deaf != Some(to)) {
                    bucket.raft(id, &message, now).unwrap();
                }
            }
        }
    }

    /// A process dies; the others have evidence of it, or lose it from sight.
    fn kill(&mut self, node: NodeId, evident: bool) -> Option<Bucket<Redis>> {
        let dead = self.buckets.remove(&node);
        let now = self.now();
        for bucket in self.buckets.values_mut() {
            bucket.node_down(node, None, &mut Outbox::default());
            if evident {
                bucket.leader_died(node, now);
            }
        }
        self.settle();
        dead
    }

    /// A node does not answer another one.
    fn suspect(&mut self, one: NodeId, other: NodeId) {
        let now = self.now();
        if let Some(bucket) = self.buckets.get_mut(&one) {
            bucket.node_suspected(other, now, &mut Outbox::default());
        }
    }

    /// It was not dead after all.
    fn resume(&mut self, node: NodeId, bucket: Option<Bucket<Redis>>) {
        self.buckets.extend(bucket.map(|bucket| (node, bucket)));
        for other in nodes().filter(|other| *other != node) {
            self.link(node, other);
            self.link(other, node);
        }
    }
}

#[test]
fn a_node_that_stops_leads_nothing_any_more() {
    let mut cluster = Cluster::formed();
    let stops = NodeId(2);
    assert_eq!(cluster.buckets.get_mut(&stops).unwrap().hand_over(), 2);
    cluster.settle();
    assert_eq!(cluster.buckets.get_mut(&stops).unwrap().hand_over(), 0);
    let led = cluster.led();
    assert_eq!((led[1], led[0] + led[2]), (0, 6));
    cluster.run(DRIFT_AFTER_MS + 1_000);
    // It cannot refuse the lead, and the others wish it to have it; it is gone by then.
    cluster.kill(stops, false);
    cluster.run(3_000);
    assert_eq!(cluster.led().iter().sum::<usize>(), 6);
}

#[test]
fn nobody_is_handed_anything_who_cannot_be_reached() {
    let mut cluster = Cluster::formed();
    let one = cluster.buckets.get_mut(&NodeId(1)).unwrap();
    one.node_down(NodeId(2), None, &mut Outbox::default());
    one.node_down(NodeId(3), None, &mut Outbox::default());
    assert_eq!(one.hand_over(), 0);
    cluster.settle();
    assert_eq!(cluster.led(), [2, 2, 2]);
}

#[test]
fn a_leader_known_to_be_dead_is_not_waited_for() {
    let mut cluster = Cluster::formed();
    cluster.kill(NodeId(1), true);
    cluster.run(2 * TURN_MS);
    assert_eq!(cluster.led(), [0, 3, 3], "evenly, without an election timeout");

    let mut cluster = Cluster::formed();
    cluster.kill(NodeId(1), false);
    cluster.run(2 * TURN_MS);
    assert_eq!(cluster.led(), [0, 2, 2], "silence is no evidence");
    cluster.run(2_000);
    assert_eq!(cluster.led().iter().sum::<usize>(), 6);
}

#[test]
fn the_lead_drifts_back_to_who_is_to_have_it() {
    let mut cluster = Cluster::formed();
    let paused = cluster.kill(NodeId(3), false);
    cluster.run(3_000);
    assert_eq!(cluster.led().iter().sum::<usize>(), 6);
    cluster.resume(NodeId(3), paused);
    cluster.run(500);
    assert_eq!(cluster.led()[2], 0);
    cluster.run(DRIFT_AFTER_MS - 1_000);
    assert_eq!(cluster.led()[2], 0, "not before it has been there for a while");
    cluster.run(2_500);
    assert_eq!(cluster.led(), [2, 2, 2]);
}

#[test]
fn an_operators_choice_lasts() {
    let mut cluster = Cluster::formed();
    let (id, chosen) = (PartitionId(0), NodeId(3));
    let begun: Vec<bool> =
        cluster.buckets.values_mut().map(|bucket| bucket.prefer(id, chosen)).collect();
    assert_eq!(begun, [true, false, false], "the leader hands over");
    cluster.settle();
    assert_eq!(cluster.led(), [1, 2, 3]);
    cluster.run(DRIFT_AFTER_MS + 2_000);
    assert_eq!(cluster.led(), [1, 2, 3]);
    assert!(!cluster.buckets.get_mut(&NodeId(1)).unwrap().prefer(PartitionId(99), chosen));
}

#[test]
fn nodes_that_were_told_different_things_do_not_hand_the_lead_to_and_fro() {
    let mut cluster = Cluster::formed();
    cluster.run(DRIFT_AFTER_MS + 1_000);
    // The others go by the placement.
    assert!(cluster.buckets.get_mut(&NodeId(1)).unwrap().prefer(PartitionId(0), NodeId(2)));
    let (mut before, mut changes) = (cluster.led(), 0);
    for _ in 0..1_000 {
        cluster.run(10);
        let led = cluster.led();
        changes += usize::from(std::mem::replace(&mut before, led) != led);
    }
    // It is given back once, and returned.
    assert!(changes <= 4, "{changes} changes");
    assert_eq!(cluster.led(), [1, 3, 2]);
}

#[test]
fn a_replica_that_lost_its_disk_is_handed_nothing() {
    let mut cluster = Cluster::formed();
    let generations: Vec<_> = (0..PARTITIONS).map(|id| (PartitionId(id), 2)).collect();
    let one = cluster.buckets.get_mut(&NodeId(1)).unwrap();
    one.reborn(NodeId(2), &generations);
    // Its old replicas were heard a moment ago, and the new ones do not vote yet.
    assert!(!one.prefer(PartitionId(0), NodeId(2)));
    assert_eq!(one.hand_over(), 2);
    cluster.settle();
    assert_eq!(cluster.led(), [0, 2, 4]);
}

#[test]
fn a_leader_that_does_not_answer_is_succeeded_once_the_promises_to_it_end() {
    let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
    let mut cluster = Cluster::formed();
    // Suspected without a reason: it is heard, so nothing comes of it.
    cluster.suspect(two, one);
    cluster.suspect(three, one);
    cluster.run(1_000);
    assert_eq!(cluster.led(), [2, 2, 2]);
    for node in [two, three] {
        cluster.buckets.get_mut(&node).unwrap().node_trusted(one);
    }

    let hangs = cluster.buckets.remove(&one);
    cluster.run(500);
    cluster.suspect(two, one);
    cluster.suspect(three, one);
    cluster.run(2 * TURN_MS + 50);
    assert_eq!(cluster.led(), [0, 3, 3], "in turns, not at random");
    // What it proposes from here on is nowhere.
    cluster.resume(one, hangs);
    cluster.run(500);
    assert_eq!(cluster.led(), [0, 3, 3]);
}

#[test]
fn a_leader_that_hears_nobody_resigns() {
    let mut cluster = Cluster::formed();
    let one = NodeId(1);
    cluster.deaf = Some(one);
    cluster.run(500);
    assert_eq!(cluster.led()[0], 2, "it is heard");
    for other in [NodeId(2), NodeId(3)] {
        cluster.suspect(other, one);
        cluster.suspect(one, other);
    }
    cluster.run(2 * TURN_MS);
    let led = cluster.led();
    assert_eq!((led[0], led[1] + led[2]), (0, 6), "who hears it keeps no promise to it");
}
