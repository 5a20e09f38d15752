//! Groups whose messages arrive at once and in order, for what is easier told than simulated.

use super::*;
use crate::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// A replica with its disk, which is as durable as the test says.
struct Replica {
    group: Group,
    setup: Setup,
    /// In the order logged.
    entries: Vec<(u64, Bytes)>,
    state: Option<Bytes>,
    snapshot: Option<SnapshotMeta>,
    applied: Vec<Committed>,
    confirmed: Option<Ticket>,
    /// What waits for `sync`, while the disk is held.
    unsynced: Vec<Persist>,
    holds_disk: bool,
}

impl Replica {
    fn sync(&mut self) {
        for persist in std::mem::take(&mut self.unsynced) {
            let number = persist.number;
            if let Some(incoming) = persist.snapshot {
                self.snapshot = Some(incoming.meta);
            }
            if let Some(state) = persist.state {
                self.state = Some(Bytes::copy_from_slice(&state));
            }
            self.entries.extend(persist.entries.iter().map(payload));
            self.group.persisted(number);
        }
    }

    fn recovered(&self) -> Recovered {
        let (state, entries) = (self.state.clone(), self.entries.clone());
        Recovered { state, snapshot: self.snapshot.clone(), entries }
    }
}

/// An entry as a disk gives it back.
pub fn payload(logged: &Logged) -> (u64, Bytes) {
    (logged.index, Bytes::from([&logged.head[..], &logged.data].concat()))
}

/// Replicas on nodes 1, 2, 3, ... of one cluster, and the links between them.
struct Cluster {
    mono: u64,
    replicas: BTreeMap<u16, Replica>,
    /// Links that lose everything.
    cut: BTreeSet<(u16, u16)>,
    /// Messages under way, oldest first.
    sent: VecDeque<(u16, Envelope)>,
    snapshots: Vec<(u16, Outgoing)>,
}

fn replica_id(node: u16) -> ReplicaId {
    ReplicaId::new(NodeId(node), 0)
}

impl Cluster {
    fn new(nodes: u16) -> Cluster {
        let mut cluster = Cluster {
            mono: 1_000,
            replicas: BTreeMap::new(),
            cut: BTreeSet::new(),
            sent: VecDeque::new(),
            snapshots: Vec::new(),
        };
        for node in 1..=nodes {
            let mut setup = Setup::new(replica_id(node), (1..=nodes).map(replica_id).collect(), 7);
            setup.retain_bytes = 0;
            cluster.add(node, setup);
        }
        cluster
    }

    /// A new cluster that node 1 leads.
    fn led(nodes: u16) -> Cluster {
        let mut cluster = Cluster::new(nodes);
        cluster[1].campaign();
        cluster.settle();
        assert!(cluster[1].is_serving());
        cluster
    }

    fn add(&mut self, node: u16, setup: Setup) {
        let group = Group::new(&setup, Recovered::default(), self.mono).unwrap();
        let replica = Replica {
            group,
            setup,
            entries: Vec::new(),
            state: None,
            snapshot: None,
            applied: Vec::new(),
            confirmed: None,
            unsynced: Vec::new(),
            holds_disk: false,
        };
        self.replicas.insert(node, replica);
    }

    fn replica(&mut self, node: u16) -> &mut Replica {
        self.replicas.get_mut(&node).unwrap()
    }

    /// Stops a replica and starts it again with what is on its disk.
    fn restart(&mut self, node: u16) {
        let mono = self.mono;
        let replica = self.replica(node);
        replica.group = Group::new(&replica.setup, replica.recovered(), mono).unwrap();
        replica.unsynced.clear();
        replica.applied.clear();
        self.sent.retain(|(from, envelope)| *from != node && envelope.to.node().0 != node);
    }

    /// Carries out what one replica wants done.
    fn drive(&mut self, node: u16) {
        let mono = self.mono;
        let replica = self.replicas.get_mut(&node).unwrap();
        let mut out = Output::default();
        replica.group.drive(mono, &mut out);
        replica.unsynced.append(&mut out.persist);
        if !replica.holds_disk {
            replica.sync();
        }
        replica.confirmed = out.confirmed.max(replica.confirmed);
        if let Some(last) = out.committed.last() {
            replica.group.applied(last.index);
        }
        replica.applied.append(&mut out.committed);
        self.sent.extend(out.messages.drain(..).map(|envelope| (node, envelope)));
        self.snapshots.extend(out.snapshots.drain(..).map(|snapshot| (node, snapshot)));
    }

    /// Carries out everything until nothing moves any more.
    fn settle(&mut self) {
        loop {
            let nodes: Vec<u16> = self.replicas.keys().copied().collect();
            for node in nodes {
                while self.replicas[&node].group.has_output() {
                    self.drive(node);
                }
            }
            let Some((from, envelope)) = self.sent.pop_front() else { break };
            self.deliver(from, &envelope);
        }
    }

    fn deliver(&mut self, from: u16, envelope: &Envelope) {
        let to = envelope.to.node().0;
        if self.cut.contains(&(from, to)) {
            return;
        }
        let mono = self.mono;
        if let Some(replica) = self.replicas.get_mut(&to) {
            replica.group.step(&envelope.bytes, mono).unwrap();
        }
    }

    /// Lets time pass in steps of 10 ms, as far as `until` allows.
    fn run_until(&mut self, ms: u64, mut until: impl FnMut(&Cluster) -> bool) -> bool {
        let end = self.mono + ms;
        while self.mono < end && !until(self) {
            self.mono += 10;
            let mono = self.mono;
            self.replicas.values_mut().for_each(|replica| replica.group.tick(mono));
            self.settle();
        }
        until(self)
    }

    fn run(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    fn leader(&self) -> Option<u16> {
        let leads = |(node, replica): (&u16, &Replica)| replica.group.is_serving().then_some(*node);
        self.replicas.iter().filter_map(leads).last()
    }

    fn isolate(&mut self, node: u16) {
        for other in self.replicas.keys().filter(|other| **other != node) {
            self.cut.extend([(node, *other), (*other, node)]);
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
    }

    /// What a replica has applied, without the group's own entries.
    fn data(&self, node: u16) -> Vec<&[u8]> {
        let applied = self.replicas[&node].applied.iter();
        applied.map(|entry| &entry.data[..]).filter(|data| !data.is_empty()).collect()
    }
}

impl std::ops::Index<u16> for Cluster {
    type Output = Group;
    fn index(&self, node: u16) -> &Group {
        &self.replicas[&node].group
    }
}

impl std::ops::IndexMut<u16> for Cluster {
    fn index_mut(&mut self, node: u16) -> &mut Group {
        &mut self.replicas.get_mut(&node).unwrap().group
    }
}

#[test]
fn a_single_replica_commits_what_its_disk_has() {
    let mut cluster = Cluster::led(1);
    cluster.replica(1).holds_disk = true;
    let position = cluster[1].propose(Bytes::from_static(b"a")).unwrap();
    cluster.settle();
    assert!(cluster.data(1).is_empty());
    cluster.replica(1).sync();
    cluster.settle();
    assert_eq!(cluster.data(1), [b"a"]);
    let last = cluster.replicas[&1].applied.last().unwrap();
    assert_eq!(Position { term: last.term, index: last.index }, position);
}

#[test]
fn three_replicas_agree() {
    let mut cluster = Cluster::led(3);
    assert_eq!(cluster[2].leader(), Some(replica_id(1)));
    assert_eq!(cluster[2].propose(Bytes::from_static(b"b")), None);
    cluster[1].propose(Bytes::from_static(b"a")).unwrap();
    cluster.settle();
    assert_eq!(cluster.data(1), [b"a"]);
    // Followers hear what is committed with the next heartbeat.
    cluster.run(200);
    assert_eq!(cluster.data(2), [b"a"]);
    assert_eq!(cluster.data(3), [b"a"]);
}

#[test]
fn a_dead_leader_is_succeeded_at_once() {
    let mut cluster = Cluster::led(3);
    cluster.run(200);
    cluster.isolate(1);
    // A promise binds whoever has no evidence of its own.
    assert!(cluster[2].leader_is_dead(NodeId(1)));
    cluster[2].campaign();
    cluster.settle();
    assert_eq!(cluster[2].role(), Role::Candidate);
    assert!(cluster[3].leader_is_dead(NodeId(1)));
    cluster[2].campaign();
    cluster.settle();
    assert!(cluster[2].is_serving());
    assert_eq!(cluster[3].leader(), Some(replica_id(2)));
}

#[test]
fn a_death_concerns_who_was_led_by_the_dead() {
    let mut cluster = Cluster::led(3);
    cluster.run(200);
    assert!(!cluster[1].leader_is_dead(NodeId(1)), "a leader knows better");
    assert!(!cluster[3].leader_is_dead(NodeId(2)), "a follower died");
    cluster.isolate(3);
    cluster[3].campaign();
    cluster.settle();
    assert_eq!(cluster[3].role(), Role::Follower, "the promise binds");
    assert!(cluster[3].leader_is_dead(NodeId(1)));
    assert!(!cluster[3].leader_is_dead(NodeId(1)), "once");
}
