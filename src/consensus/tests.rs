//! Groups whose messages arrive at once and in order, for what is easier told than simulated.

use super::rules::broken;
use super::*;
use crate::ids::{Millis, NodeId, Now};
use protobuf::Message as _;
use raft::eraftpb::{Entry, MessageType};
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
    confirmed: Option<Confirmation>,
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

/// A moment at which both clocks of a node say the same.
fn at(mono: u64) -> Now {
    Now { wall: Millis(mono), mono }
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
    wants_snapshot: Vec<ReplicaId>,
    /// Whether messages may be refused.
    is_damaged: bool,
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
            wants_snapshot: Vec::new(),
            is_damaged: false,
        };
        for node in 1..=nodes {
            let voters = (1..=nodes).map(replica_id).collect();
            cluster.add(node, Setup::new(replica_id(node), voters, 7));
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
        replica.group.drive(at(mono), &mut out);
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
        self.wants_snapshot.append(&mut out.wants_snapshot);
        self.snapshots.extend(out.snapshots.drain(..).map(|snapshot| (node, snapshot)));
    }

    /// Carries out all that one replica wants done.
    fn drive_all(&mut self, node: u16) {
        while self[node].has_output() {
            self.drive(node);
        }
    }

    /// Carries out everything until nothing moves any more.
    fn settle(&mut self) {
        self.settle_until(|_| false);
    }

    /// The same, and stops between two messages if `until` says so.
    fn settle_until(&mut self, until: impl Fn(&Cluster) -> bool) {
        loop {
            let nodes: Vec<u16> = self.replicas.keys().copied().collect();
            for node in nodes {
                self.drive_all(node);
            }
            if until(self) {
                break;
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
            let stepped = replica.group.step(&envelope.bytes, at(mono));
            assert!(self.is_damaged || stepped.is_ok(), "{stepped:?}");
        }
    }

    /// Lets time pass in steps of 10 ms, as far as `until` allows.
    fn run_until(&mut self, ms: u64, mut until: impl FnMut(&Cluster) -> bool) -> bool {
        let end = self.mono + ms;
        while self.mono < end && !until(self) {
            self.mono += 10;
            let mono = self.mono;
            for replica in self.replicas.values_mut() {
                replica.group.tick(at(mono));
            }
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

fn write(cluster: &mut Cluster, node: u16, data: &'static [u8]) -> Position {
    let position = cluster[node].propose(Bytes::from_static(data)).unwrap();
    cluster.settle();
    position
}

/// The message that replica `from` sends to `to` in `term`.
fn message(kind: MessageType, from: u16, to: u16, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.from = replica_id(from).0;
    message.to = replica_id(to).0;
    message.term = term;
    message
}

fn step(cluster: &mut Cluster, to: u16, message: &Message) -> Result<(), String> {
    let mono = cluster.mono;
    cluster[to].step(&message.write_to_bytes().unwrap().into(), at(mono))
}

fn types(cluster: &Cluster) -> Vec<MessageType> {
    let parsed = |bytes: &Bytes| Message::parse_from_bytes(bytes).unwrap().msg_type;
    cluster.sent.iter().map(|(_, envelope)| parsed(&envelope.bytes)).collect()
}

#[test]
fn appends_leave_beside_the_sync_and_acknowledgements_after_it() {
    let mut cluster = Cluster::led(3);
    (1..=3).for_each(|node| cluster.replica(node).holds_disk = true);
    cluster[1].propose(Bytes::from_static(b"a")).unwrap();
    cluster.drive(1);
    assert_eq!(types(&cluster), [MessageType::MsgAppend; 2]);
    cluster.settle();
    assert!(cluster.sent.is_empty());
    // The followers are a majority without the leader's own disk.
    cluster.replica(2).sync();
    cluster.settle();
    assert!(cluster.data(1).is_empty());
    cluster.replica(3).sync();
    cluster.settle();
    // Neither can the leader apply what its disk may lose.
    assert!(cluster.data(1).is_empty());
    cluster.replica(1).sync();
    cluster.settle();
    assert_eq!(cluster.data(1), [b"a"]);
}

#[test]
fn what_needs_no_disk_waits_for_none() {
    let mut cluster = Cluster::led(3);
    cluster.run(300);
    (1..=3).for_each(|node| cluster.replica(node).holds_disk = true);
    let mono = cluster.mono;
    let ticket = cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(ticket.is_some() && cluster.replicas[&1].confirmed == ticket);
}

#[test]
fn a_write_survives_its_leader() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    cluster.isolate(1);
    assert!(cluster.run_until(3_000, |c| c.leader().is_some_and(|leader| leader != 1)));
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.data(leader), [b"a"]);
    write(&mut cluster, leader, b"b");
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.data(1), [&b"a"[..], b"b"]);
    assert_eq!(cluster[1].leader(), Some(replica_id(leader)));
}

#[test]
fn a_lost_leader_is_replaced_within_a_second_or_so() {
    let mut gaps = Vec::new();
    for seed in 0..60 {
        let mut cluster = Cluster::new(3);
        for node in 1..=3 {
            let mut setup = cluster.replicas[&node].setup.clone();
            setup.seed = seed;
            cluster.add(node, setup);
        }
        cluster[1].campaign();
        cluster.run(1_000 + seed * 7);
        let lost = cluster.mono;
        cluster.isolate(1);
        let replaced = |c: &Cluster| (2..=3).any(|node| c[node].is_serving());
        assert!(cluster.run_until(3_000, replaced), "seed {seed}");
        gaps.push(cluster.mono - lost);
    }
    gaps.sort_unstable();
    println!("gaps: median {} ms, longest {} ms", gaps[30], gaps[59]);
    assert!(gaps[30] < 900, "{gaps:?}");
}

#[test]
fn a_pause_is_one_tick() {
    let mut ticks = Ticks::new(50, 0);
    assert!(!ticks.due(49));
    assert!(ticks.due(53));
    // The beat is kept.
    assert!(ticks.due(100));
    assert!(ticks.due(5_000));
    assert!(!ticks.due(5_049));
    // So a leader that slept is still one that was not heard for long, and asks before it serves.
    let mut cluster = Cluster::led(3);
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(cluster[1].holds_lease(at(mono)));
    assert!(!cluster[1].holds_lease(at(mono + 60_000)));
    cluster[2].tick(at(mono + 60_000));
    assert_eq!(cluster[2].role(), Role::Follower);
}

#[test]
fn a_lease_runs_from_the_asking() {
    let mut cluster = Cluster::led(3);
    let asked = cluster.mono;
    assert_eq!(cluster[1].lease_until(at(asked)), 0);
    assert_eq!(cluster[2].confirm(at(1_000)), None);
    cluster[1].confirm(at(asked));
    cluster.mono += 30;
    cluster.settle();
    let length = cluster.replicas[&1].setup.lease_ms();
    assert_eq!(cluster[1].lease_until(at(asked)), asked + length);
    assert!(cluster[1].holds_lease(at(asked + length - 1)));
    assert!(!cluster[1].holds_lease(at(asked + length)));
    // Alone it gets none.
    cluster.isolate(1);
    cluster.mono += 100;
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert_eq!(cluster[1].lease_until(at(asked)), asked + length);
}

/// A leader whose virtual machine was paused for three seconds, by clocks that were not. What its
/// monotonic clock does not see its wall clock tells, once it is corrected; and a wall clock that
/// is set costs a lease and no more.
#[test]
fn a_lease_ends_with_either_clock() {
    let paused = |ahead: i64| {
        let mut cluster = Cluster::led(3);
        let asked = at(cluster.mono);
        cluster[1].confirm(asked);
        cluster.settle();
        assert!(cluster[1].holds_lease(asked));
        let wall = Millis((asked.wall.0 as i64 + ahead) as u64);
        let held = cluster[1].holds_lease(Now { wall, ..asked });
        // The next one is counted from here.
        cluster.mono += 20;
        let now = Now { wall, mono: cluster.mono };
        cluster[1].confirm(now);
        cluster.settle();
        assert!(cluster[1].holds_lease(now));
        held
    };
    let bound = Cluster::new(3).replicas[&1].setup.lease_drift_ms() as i64;
    assert!(paused(bound) && !paused(bound + 1) && !paused(3_000) && !paused(-900));
    assert!(broken(GroupRule::LeaseWatchesBothClocks, || paused(3_000)));
}

#[test]
fn a_read_is_confirmed_by_what_was_asked_after_it() {
    let later = || {
        let mut lease = Lease::new(100, 10);
        let (first, sent) = lease.ask(at(1_000));
        assert!(sent);
        let (second, sent) = lease.ask(at(1_001));
        assert!(!sent);
        assert_eq!(lease.ask(at(1_002)), (second, false));
        assert_eq!(lease.ask_again(at(1_003)), None);
        assert_eq!(lease.confirm(first, at(1_004), false), Some(first));
        let again = lease.ask_again(at(1_004));
        second > first && again == Some(second)
    };
    assert!(later());
    assert!(!broken(GroupRule::ConfirmationsAreLaterThanReads, later));
}

#[test]
fn reads_that_wait_are_asked_for_again_when_members_change() {
    let mut lease = Lease::new(100, 10);
    let (first, _) = lease.ask(at(1_000));
    lease.give_up();
    assert_eq!(lease.confirm(first, at(1_001), false), None);
    let again = lease.ask_again(at(1_001)).unwrap();
    assert!(again > first && lease.confirm(again, at(1_002), false) == Some(again));
    assert_eq!(lease.until(at(1_002)), 1_101);
    // With the term, the reads that wait are sent away.
    lease.ask(at(1_003));
    lease.reset();
    assert_eq!((lease.until(at(1_002)), lease.ask_again(at(1_020))), (0, None));
}

#[test]
fn handing_over_is_quick_and_ends_the_lease() {
    let mut cluster = Cluster::led(3);
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(cluster[1].holds_lease(at(mono)));
    assert!(!cluster[1].transfer(replica_id(1)) && !cluster[1].transfer(replica_id(9)));
    assert!(cluster[1].transfer(replica_id(2)));
    assert!(!cluster[1].holds_lease(at(mono)));
    assert_eq!(cluster[1].propose(Bytes::from_static(b"a")), None);
    cluster.settle();
    // Whatever the voters promised, without a tick.
    assert_eq!(cluster.leader(), Some(2));
    assert!(!cluster[1].is_serving());
}

#[test]
fn a_term_that_told_a_successor_has_no_lease() {
    let mut cluster = Cluster::led(3);
    cluster.cut.insert((1, 2));
    let term = cluster[1].term();
    assert!(cluster[1].transfer(replica_id(2)));
    cluster.settle();
    cluster.heal();
    cluster.run(700);
    assert!(!cluster[1].is_transferring() && cluster[1].term() == term);
    let mono = cluster.mono;
    let ticket = cluster[1].confirm(at(mono));
    cluster.settle();
    // Reads are confirmed one by one, for the word may still arrive.
    assert!(ticket.is_some() && cluster.replicas[&1].confirmed == ticket);
    assert!(!cluster[1].holds_lease(at(mono)));
}

#[test]
fn a_successor_that_was_not_told_takes_no_lease_away() {
    let mut cluster = Cluster::led(3);
    cluster.isolate(2);
    write(&mut cluster, 1, b"a");
    assert!(cluster[1].transfer(replica_id(2)));
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(!cluster[1].holds_lease(at(mono)));
    cluster.run(700);
    assert!(!cluster[1].is_transferring());
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(cluster[1].holds_lease(at(mono)));
}

/// Whether replica 2 keeps its promise to the leader although a stray message of a later term made
/// it forget the leader.
#[test]
fn a_voter_keeps_its_promise_over_terms() {
    let keeps = || {
        let mut cluster = Cluster::led(3);
        let mono = cluster.mono;
        cluster[1].confirm(at(mono));
        cluster.settle();
        step(&mut cluster, 2, &message(MessageType::MsgRequestVoteResponse, 3, 2, 5)).unwrap();
        let mut vote = message(MessageType::MsgRequestVote, 3, 2, 6);
        (vote.index, vote.log_term) = (99, 5);
        step(&mut cluster, 2, &vote).unwrap();
        cluster.drive_all(2);
        assert!(cluster[1].holds_lease(at(mono)));
        types(&cluster).is_empty()
    };
    assert!(keeps());
    assert!(!broken(GroupRule::VotersKeepPromises, keeps));
}

#[test]
fn a_voter_keeps_a_promise_that_it_forgot() {
    let keeps = || {
        let mut cluster = Cluster::led(3);
        let mono = cluster.mono;
        cluster[1].confirm(at(mono));
        cluster.settle();
        cluster.restart(2);
        cluster[2].campaign();
        let mut vote = message(MessageType::MsgRequestVote, 3, 2, 6);
        (vote.index, vote.log_term) = (99, 5);
        step(&mut cluster, 2, &vote).unwrap();
        cluster.drive_all(2);
        assert!(cluster[1].holds_lease(at(mono)));
        types(&cluster).is_empty()
    };
    assert!(keeps());
    assert!(!broken(GroupRule::RestartedVotersKeepPromises, keeps));
}

#[test]
fn a_sole_replica_serves_as_soon_as_it_restarts() {
    let mut cluster = Cluster::led(1);
    write(&mut cluster, 1, b"a");
    cluster.restart(1);
    cluster[1].campaign();
    cluster.settle();
    assert!(cluster[1].is_serving());
    assert_eq!(cluster.data(1), [b"a"]);
}

#[test]
fn a_vote_is_remembered() {
    let mut cluster = Cluster::new(3);
    let mut vote = message(MessageType::MsgRequestVote, 3, 2, 1);
    step(&mut cluster, 2, &vote).unwrap();
    cluster.drive_all(2);
    cluster.restart(2);
    cluster.run(450);
    assert_eq!(cluster[2].term(), 1);
    vote.from = replica_id(1).0;
    step(&mut cluster, 2, &vote).unwrap();
    cluster.drive_all(2);
    let answer = Message::parse_from_bytes(&cluster.sent.back().unwrap().1.bytes).unwrap();
    assert_eq!((answer.msg_type, answer.reject), (MessageType::MsgRequestVoteResponse, true));
}

#[test]
fn everybody_restarts_and_nothing_is_lost() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    write(&mut cluster, 1, b"b");
    (1..=3).for_each(|node| cluster.restart(node));
    assert!(cluster.run_until(3_000, |c| c.leader().is_some()));
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.data(leader), [b"a", b"b"]);
}

/// Replica 3 is cut off until the leader has nothing but a snapshot for it.
fn behind() -> Cluster {
    let mut cluster = Cluster::led(3);
    cluster.isolate(3);
    write(&mut cluster, 1, b"a");
    write(&mut cluster, 1, b"b");
    let meta = cluster[1].snapshot_meta().unwrap();
    assert!(cluster[1].log_bytes() > 0);
    cluster[1].retain_bytes = 0;
    cluster[1].compact(meta.index, u64::MAX);
    assert_eq!(cluster[1].log_bytes(), 0);
    cluster.heal();
    cluster.run(300);
    assert!(cluster.wants_snapshot.contains(&replica_id(3)) && cluster.snapshots.is_empty());
    cluster[1].offer_snapshot(meta, Bytes::from_static(b"the bulk"));
    cluster.run(300);
    assert_eq!(cluster.snapshots.len(), 1);
    cluster
}

#[test]
fn what_everybody_has_leaves_memory() {
    let mut cluster = Cluster::led(3);
    (1..=3).for_each(|node| cluster[node].retain_bytes = 256);
    let write_some = |cluster: &mut Cluster| {
        for _ in 0..100 {
            write(cluster, 1, &[7; 64]);
        }
        cluster.run(100);
    };
    write_some(&mut cluster);
    assert!(cluster[1].log_bytes() <= 256 && cluster[2].log_bytes() <= 4 * 256);
    assert!(cluster[2].log_bytes() > 256, "followers keep more");
    // A leader keeps what a follower lacks, for as long as no snapshot holds it.
    cluster.isolate(3);
    write_some(&mut cluster);
    assert!(cluster[1].log_bytes() > 100 * 64);
    cluster.heal();
    cluster.run(500);
    assert!(cluster.wants_snapshot.is_empty() && cluster.snapshots.is_empty());
    assert_eq!(cluster.data(3), cluster.data(1));
    write_some(&mut cluster);
    assert!(cluster[1].log_bytes() <= 256);
    // Nor is anything lost to a restart.
    (1..=3).for_each(|node| cluster.restart(node));
    assert!(cluster.run_until(3_000, |c| c.leader().is_some()));
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.data(leader).len(), 300);
}

#[test]
fn who_lacks_entries_gets_a_snapshot() {
    let mut cluster = behind();
    let (_, outgoing) = cluster.snapshots.pop().unwrap();
    assert_eq!((outgoing.to, &outgoing.token[..]), (replica_id(3), &b"the bulk"[..]));
    // The first time the bulk does not arrive.
    cluster[1].report_snapshot(outgoing.to, false);
    cluster.run(300);
    let (_, outgoing) = cluster.snapshots.pop().unwrap();
    let mono = cluster.mono;
    cluster[3].step(&outgoing.message, at(mono)).unwrap();
    cluster[1].report_snapshot(outgoing.to, true);
    cluster.settle();
    let installed = cluster.replicas[&3].snapshot.clone().unwrap();
    assert_eq!(installed.index, outgoing.index);
    assert_eq!(cluster[3].applied_index(), outgoing.index);
    write(&mut cluster, 1, b"c");
    cluster.run(300);
    assert_eq!(cluster.data(3), [b"c"]);
    // And from its disk.
    cluster.restart(3);
    cluster.run(300);
    assert_eq!(cluster[3].applied_index(), cluster[1].applied_index());
}

#[test]
fn who_installs_a_snapshot_stands_for_nothing() {
    let mut cluster = behind();
    let (_, outgoing) = cluster.snapshots.pop().unwrap();
    cluster.replica(3).holds_disk = true;
    let mono = cluster.mono;
    cluster[3].step(&outgoing.message, at(mono)).unwrap();
    cluster.drive(3);
    let term = cluster[3].term();
    step(&mut cluster, 3, &message(MessageType::MsgTimeoutNow, 1, 3, term)).unwrap();
    cluster.isolate(3);
    cluster.run(5_000);
    assert_eq!((cluster[3].role(), cluster[3].term()), (Role::Follower, term));
    cluster.replica(3).sync();
    cluster.heal();
    cluster.run(2_000);
    assert_eq!(cluster[3].applied_index(), cluster[1].applied_index());
}

#[test]
fn a_member_learns_votes_and_leaves() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    let voters = (1..=3).map(replica_id).collect();
    let newcomer = ReplicaId::new(NodeId(4), 2);
    cluster.add(4, Setup::new(newcomer, voters, 1));
    assert_eq!(cluster[1].change(MemberChange::Promote(newcomer)), None);
    assert_eq!(cluster[1].change(MemberChange::Remove(replica_id(1))), None);
    let mono = cluster.mono;
    cluster[1].confirm(at(mono));
    cluster.settle();
    assert!(cluster[1].change(MemberChange::AddLearner(newcomer)).is_some());
    // One at a time.
    assert_eq!(cluster[1].change(MemberChange::Remove(replica_id(3))), None);
    cluster.settle();
    assert!(!cluster[1].holds_lease(at(mono)), "the lease was given by others");
    cluster.run(300);
    assert_eq!(cluster.data(4), [b"a"]);
    assert!(cluster[1].change(MemberChange::Promote(newcomer)).is_some());
    cluster.run(300);
    assert!(cluster[1].change(MemberChange::Remove(replica_id(3))).is_some());
    cluster.run(300);
    let members = Members::of([replica_id(1), replica_id(2), newcomer]);
    assert_eq!((cluster[1].members(), cluster[4].members()), (&members, &members));
    assert_eq!(cluster[1].snapshot_meta().unwrap().members, members);
    assert_eq!(cluster[1].progress().len(), 3);
    // A replica that left cannot disturb.
    let term = cluster[1].term();
    cluster.run(3_000);
    assert_eq!((cluster.leader(), cluster[1].term()), (Some(1), term));
}

/// Has the leader take all steps towards a group with these replicas. Tells whether it got there.
fn renew(cluster: &mut Cluster, ids: &[ReplicaId]) -> bool {
    let is_renewed = |members: &Members| {
        let replaced = |id: &ReplicaId| members.of_node(id.node()) == [*id] && members.votes(*id);
        !members.is_joint() && ids.iter().all(replaced)
    };
    // Four steps each, and some for a leader to be found.
    for _ in 0..10 * ids.len() {
        cluster.run(300);
        let Some(leader) = cluster.leader() else { continue };
        if is_renewed(cluster[leader].members()) {
            cluster.run(300);
            return true;
        }
        renew_once(cluster, leader, ids);
    }
    false
}

fn renew_once(cluster: &mut Cluster, leader: u16, ids: &[ReplicaId]) {
    let change = ids.iter().find_map(|id| cluster[leader].replacement(*id));
    change.and_then(|change| cluster[leader].change(change));
}

/// What a node comes back with that lost its disk: a replica with nothing, under the next id.
fn lose_disk(cluster: &mut Cluster, node: u16) -> ReplicaId {
    let old = cluster.replicas[&node].setup.clone();
    let new = ReplicaId::new(NodeId(node), old.id.generation() + 1);
    cluster.sent.retain(|(from, envelope)| *from != node && envelope.to.node().0 != node);
    cluster.add(node, Setup { id: new, ..old });
    new
}

/// A minority loses its disks, and loses them again twice after so many steps of the renewal. Tells
/// whether the group goes on and has every replica replaced.
fn outlives_disks_lost_again(replicas: u16, steps: usize) -> bool {
    let mut cluster = Cluster::led(replicas);
    write(&mut cluster, 1, b"a");
    let nodes: Vec<u16> = (replicas / 2 + 2..=replicas).collect();
    let lose = |cluster: &mut Cluster| -> Vec<ReplicaId> {
        nodes.iter().map(|node| lose_disk(cluster, *node)).collect()
    };
    let mut ids = lose(&mut cluster);
    for _ in 0..steps {
        renew_once(&mut cluster, 1, &ids);
        cluster.run(100);
    }
    ids = lose(&mut cluster);
    renew_once(&mut cluster, 1, &ids);
    cluster.run(100);
    ids = lose(&mut cluster);
    if cluster[1].propose(Bytes::from_static(b"b")).is_none() || !renew(&mut cluster, &ids) {
        return false;
    }
    for node in 1..=replicas {
        assert_eq!(cluster.data(node), [b"a", b"b"], "{replicas} replicas, {steps} steps");
        let first = replica_id(node);
        let id = ids.iter().copied().find(|id| id.node() == first.node()).unwrap_or(first);
        assert_eq!((cluster[node].id(), cluster[node].members().votes(id)), (id, true));
    }
    assert_eq!(cluster[1].members().all().len(), usize::from(replicas));
    true
}

#[test]
fn disks_lost_again_at_any_step_leave_a_group_that_serves() {
    for replicas in [3, 5, 7] {
        let all = 4 * usize::from(replicas / 2) + 1;
        for steps in 0..all {
            assert!(
                outlives_disks_lost_again(replicas, steps),
                "{replicas} replicas, {steps} steps"
            );
        }
    }
    // As one voter more first: three of four are asked for, and two are there.
    assert!(!broken(GroupRule::ReplacedInOneChange, || outlives_disks_lost_again(3, 2)));
}

#[test]
fn a_joint_configuration_is_left_by_whoever_leads() {
    for restarts in [false, true] {
        let mut cluster = Cluster::led(3);
        write(&mut cluster, 1, b"a");
        let new = lose_disk(&mut cluster, 3);
        renew_once(&mut cluster, 1, &[new]);
        cluster.run(300);
        renew_once(&mut cluster, 1, &[new]);
        cluster.settle_until(|cluster| cluster[1].members().is_joint());
        let joint = cluster[1].members().clone();
        assert_eq!(joint.outgoing, (1..=3).map(replica_id).collect::<Vec<ReplicaId>>());
        assert_eq!(joint.voters, [replica_id(1), replica_id(2), new]);
        assert_eq!(joint.of_node(NodeId(3)), [replica_id(3), new]);
        // No change fits, and the leader does not hand over to the replica that leaves.
        assert_eq!(cluster[1].change(MemberChange::AddLearner(replica_id(9))), None);
        assert!(!cluster[1].transfer(replica_id(3)));
        // What it says to others is lost, and then the new replica again.
        cluster.isolate(1);
        cluster.settle();
        let newer = lose_disk(&mut cluster, 3);
        cluster.run(2_000);
        if restarts {
            (1..=2).for_each(|node| cluster.restart(node));
        }
        cluster.heal();
        assert!(renew(&mut cluster, &[newer]), "restarts: {restarts}");
        let members = Members::of([replica_id(1), replica_id(2), newer]);
        assert_eq!(cluster[3].members(), &members);
        assert_eq!(cluster.data(3), [b"a"]);
    }
}

/// A replica was replaced, and those that know are restarted: they must not go on asking the one that
/// has left, for another disk may be lost then.
#[test]
fn voters_that_left_are_not_asked_after_a_restart() {
    let serves = || {
        let mut cluster = Cluster::led(3);
        write(&mut cluster, 1, b"a");
        let new = lose_disk(&mut cluster, 2);
        assert!(renew(&mut cluster, &[new]));
        (1..=2).for_each(|node| cluster.restart(node));
        let other = lose_disk(&mut cluster, 3);
        renew(&mut cluster, &[other]) && cluster.data(3) == [b"a"]
    };
    assert!(serves());
    assert!(!broken(GroupRule::ChangesAreConcluded, serves));
}

/// Two of three disks are lost for good, and the operator lets the third replica go on alone.
#[test]
fn a_survivor_of_a_lost_majority_goes_on_alone() {
    for is_joint in [false, true] {
        let mut cluster = Cluster::led(3);
        write(&mut cluster, 1, b"a");
        let mut others = [replica_id(2), replica_id(3)];
        if is_joint {
            others[1] = lose_disk(&mut cluster, 3);
            renew_once(&mut cluster, 1, &others[1..]);
            cluster.run(300);
            renew_once(&mut cluster, 1, &others[1..]);
            cluster.settle_until(|cluster| cluster[1].members().is_joint());
            cluster.sent.clear();
        }
        let ids = [lose_disk(&mut cluster, 2), lose_disk(&mut cluster, 3)];
        let lost = [NodeId(2), NodeId(3)];
        let replica = cluster.replica(1);
        if is_joint {
            // That it was to be left did not get to the disk.
            replica.entries.pop();
        }
        // With one other node a majority is there, and nothing is to be done.
        assert!(survive(&replica.setup, replica.recovered(), &lost[..1]).unwrap().is_none());
        let survivor = survive(&replica.setup, replica.recovered(), &lost).unwrap().unwrap();
        assert_eq!(
            (&survivor.others[..], survivor.entries.len()),
            (&others[..], 2 + usize::from(is_joint))
        );
        assert_eq!(Some(survivor.last.0), replica.entries.last().map(|(index, _)| *index));
        replica.entries.extend(survivor.entries.iter().map(payload));
        replica.state = Some(Bytes::copy_from_slice(&survivor.state));
        cluster.restart(1);
        assert!(cluster.run_until(3_000, |c| c.leader() == Some(1)), "it leads alone");
        assert_eq!(cluster[1].members().voters, [replica_id(1)]);
        assert_eq!(cluster.data(1), [b"a"]);
        write(&mut cluster, 1, b"b");
        // The others come back as after any lost disk, and it is a group again.
        assert!(renew(&mut cluster, &ids));
        assert_eq!(cluster.data(3), [b"a", b"b"]);
        cluster.isolate(1);
        assert!(cluster.run_until(5_000, |c| c.leader().is_some_and(|leader| leader != 1)));
    }
}

#[test]
fn a_majority_that_is_lost_is_not_replaced() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    let ids = [lose_disk(&mut cluster, 2), lose_disk(&mut cluster, 3)];
    let (known, members) = (cluster[1].commit_index(), cluster[1].members().clone());
    assert!(!renew(&mut cluster, &ids));
    assert_eq!((cluster[1].commit_index(), cluster[1].members()), (known, &members));
    assert_eq!((cluster[2].last_index(), cluster[3].last_index()), (0, 0));
}

#[test]
fn a_group_asks_for_what_it_lacks_only() {
    let mut cluster = Cluster::led(3);
    cluster.run(300);
    cluster.isolate(3);
    let of = |node, generation| ReplicaId::new(NodeId(node), generation);
    // Nothing to do, a node without a part, an id of before.
    assert_eq!(cluster[1].replacement(replica_id(3)), None);
    assert_eq!(cluster[1].replacement(of(4, 1)), None);
    assert_eq!(cluster[1].replacement(of(3, 2)), Some(MemberChange::AddLearner(of(3, 2))));
    assert!(cluster[1].change(MemberChange::AddLearner(of(3, 2))).is_some());
    cluster.run(300);
    assert_eq!(cluster[1].replacement(of(3, 1)), None);
    // It is not there, so it does not catch up and is given no vote, nor the lead.
    assert_eq!(cluster[1].replacement(of(3, 2)), None);
    assert!(!cluster[1].transfer(of(3, 2)) && !cluster[1].is_transferring());
    // The next one learns in its place.
    assert_eq!(cluster[1].replacement(of(3, 5)), Some(MemberChange::AddLearner(of(3, 5))));
    assert!(cluster[1].change(MemberChange::AddLearner(of(3, 5))).is_some());
    cluster.run(300);
    assert_eq!(cluster[1].replacement(of(3, 5)), Some(MemberChange::Remove(of(3, 2))));
    // A leader does not take part in its own removal.
    let own = MemberChange::Replace { old: replica_id(1), new: of(3, 5) };
    assert_eq!(cluster[1].change(own), None);
}

/// A machine went down and took the end of a log along, acknowledged entries among it.
#[test]
fn who_lost_the_end_of_its_log_comes_back_under_another_name() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    cluster.isolate(3);
    write(&mut cluster, 1, b"b");
    let lost = cluster.replica(2).entries.pop().unwrap();
    cluster.restart(2);
    assert_eq!(cluster[2].last_index() + 1, lost.0, "b is acknowledged by what forgot it");

    let renamed = ReplicaId::new(NodeId(2), 5);
    let setup = Setup { id: renamed, ..cluster.replica(2).setup.clone() };
    cluster[2].rename(&setup).unwrap();
    cluster.replica(2).setup = setup;
    assert_eq!(cluster[2].id(), renamed);
    // Alone with the one that missed the end, it elects no leader: the acknowledged entry is at 1
    // only.
    cluster.heal();
    cluster.isolate(1);
    let term = cluster[3].term();
    cluster.run(5_000);
    assert_eq!((cluster.leader(), cluster[2].term(), cluster[3].term()), (None, term, term));

    cluster.heal();
    cluster.run(3_000);
    let leader = cluster.leader().unwrap();
    assert_ne!(leader, 2);
    assert!(renew(&mut cluster, &[renamed]));
    assert_eq!(cluster.data(2), [b"a", b"b"]);
    let members = Members::of([replica_id(1), renamed, replica_id(3)]);
    assert_eq!((cluster[leader].members(), cluster[2].members()), (&members, &members));
    // It votes and acknowledges like any other.
    cluster.isolate(leader);
    cluster.run(5_000);
    let next = [1, 3].into_iter().find(|node| *node != leader).unwrap();
    assert!([2, next].iter().any(|node| cluster[*node].is_serving()));
}

/// A majority lost the end of its log at once, and went on without what this replica committed.
#[test]
fn a_history_that_contradicts_what_is_committed_is_refused() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    write(&mut cluster, 1, b"b");
    cluster.run(300);
    let (term, end) = (cluster[2].term(), cluster[2].commit_index());
    let mut append = message(MessageType::MsgAppend, 1, 2, term + 1);
    (append.index, append.log_term) = (end - 1, term);
    let entry = Entry { index: end, term: term + 1, ..Entry::default() };
    append.mut_entries().push(entry);
    let why = step(&mut cluster, 2, &append).unwrap_err();
    assert!(why.contains(&format!("lost entry {end}")), "{why}");
    let mut probe = message(MessageType::MsgAppend, 1, 2, term + 1);
    (probe.index, probe.log_term) = (end, term + 1);
    assert!(step(&mut cluster, 2, &probe).unwrap_err().contains("lost entry"));
    // What is known is not in the way.
    probe.log_term = term;
    assert_eq!(step(&mut cluster, 2, &probe), Ok(()));
}

/// A leader that was cut off comes back with a tail that the group replaced. The appends that take
/// the tail away and commit what stands in its place may arrive before the group is driven.
#[test]
fn a_replaced_tail_is_no_lost_entry() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    cluster.run(300);
    cluster.isolate(1);
    write(&mut cluster, 1, b"never committed");
    write(&mut cluster, 1, b"nor this");
    let (term, end) = (cluster[1].term(), cluster[1].commit_index());
    assert!(cluster[1].last_index() == end + 2);

    let of_next_term = |index, term| Entry { index, term, ..Entry::default() };
    let mut first = message(MessageType::MsgAppend, 2, 1, term + 1);
    (first.index, first.log_term, first.commit) = (end, term, end + 2);
    first.mut_entries().extend([end + 1, end + 2].map(|index| of_next_term(index, term + 1)));
    let mut second = message(MessageType::MsgAppend, 2, 1, term + 1);
    (second.index, second.log_term, second.commit) = (end + 2, term + 1, end + 2);
    second.mut_entries().push(of_next_term(end + 3, term + 1));
    assert_eq!(step(&mut cluster, 1, &first), Ok(()));
    assert_eq!(step(&mut cluster, 1, &second), Ok(()), "the group was not driven in between");
    // Before and after it is driven, an entry that is truly lost is noticed.
    let mut lost = message(MessageType::MsgAppend, 2, 1, term + 2);
    (lost.index, lost.log_term) = (end + 1, term + 1);
    lost.mut_entries().push(of_next_term(end + 2, term + 2));
    assert!(step(&mut cluster, 1, &lost).unwrap_err().contains(&format!("entry {}", end + 2)));
    cluster.drive_all(1);
    assert_eq!((cluster[1].commit_index(), cluster[1].last_index()), (end + 2, end + 3));
    assert!(step(&mut cluster, 1, &lost).unwrap_err().contains(&format!("entry {}", end + 2)));
}

#[test]
fn who_leads_while_removed_steps_down() {
    let mut cluster = Cluster::led(3);
    cluster.run(300);
    // The removal reaches all replicas, but none hears that it is committed.
    cluster.cut.extend([(2, 1), (3, 1)]);
    assert!(cluster[1].change(MemberChange::Remove(replica_id(2))).is_some());
    cluster.settle();
    cluster.isolate(1);
    // Time passes for replica 2, and for 3 until it votes: so 2 leads, and commits its removal.
    let term = cluster[2].term();
    for tick in 1..=40 {
        cluster.mono += 50;
        let mono = cluster.mono;
        cluster[2].tick(at(mono));
        if tick <= 10 {
            cluster[3].tick(at(mono));
        }
        cluster.settle();
    }
    assert!(cluster[2].term() > term && !cluster[2].members().votes(replica_id(2)));
    assert_eq!(cluster[2].role(), Role::Follower);
    cluster.heal();
    cluster.run(3_000);
    assert_eq!(cluster[1].members(), &Members::of([replica_id(1), replica_id(3)]));
    assert!(cluster.leader().is_some_and(|leader| leader != 2));
}

/// An entry of `term` after one of `before`, as a disk gives it back.
fn on_disk(index: u64, term: u64, before: u64) -> (u64, Bytes) {
    let entry = Entry { term, ..Entry::default() };
    (index, Bytes::from([&log::head(&entry, before)[..], b"data"].concat()))
}

fn recover(snapshot: Option<(u64, u64)>, entries: &[(u64, Bytes)]) -> (Vec<(u64, u64)>, u64) {
    let members = Members::of([replica_id(1)]);
    let meta = snapshot.map(|(index, term)| SnapshotMeta { index, term, members });
    let (log, _) = Log::recover(Members::default(), meta.as_ref(), entries).unwrap();
    (log.since(0).map(|entry| (entry.index, entry.term)).collect(), log.last())
}

#[test]
fn a_log_is_a_chain() {
    let log = [on_disk(1, 1, 0), on_disk(2, 1, 1), on_disk(3, 2, 1)];
    assert_eq!(recover(None, &log), (vec![(1, 1), (2, 1), (3, 2)], 3));
    // A later entry replaces those from its index on.
    let replaced = [&log[..], &[on_disk(2, 3, 1)]].concat();
    assert_eq!(recover(None, &replaced), (vec![(1, 1), (2, 3)], 2));
    // What leads up to a snapshot is kept for others, what follows it is the log.
    assert_eq!(recover(Some((2, 1)), &log), (vec![(1, 1), (2, 1), (3, 2)], 3));
    assert_eq!(recover(Some((2, 1)), &log[2..]), (vec![(3, 2)], 3));
    assert_eq!(recover(Some((7, 5)), &log), (vec![], 7));
    assert_eq!(recover(Some((7, 5)), &[&log[..], &[on_disk(8, 5, 5)]].concat()), (vec![(8, 5)], 8));
}

#[test]
fn remains_of_a_replaced_log_are_left_out() {
    let remains = || recover(Some((2, 5)), &[on_disk(1, 1, 0), on_disk(2, 6, 1), on_disk(3, 6, 6)]);
    assert_eq!(remains(), (vec![], 2));
    assert_ne!(broken(GroupRule::EntriesAreChained, remains), (vec![], 2));
}

#[test]
fn a_damaged_log_is_refused() {
    let recover = |state: Option<&'static [u8]>, entry: &'static [u8]| {
        let setup = Setup::new(replica_id(1), vec![replica_id(1)], 1);
        let entries = vec![(1, Bytes::from_static(entry))];
        let recovered = Recovered { state: state.map(Bytes::from_static), snapshot: None, entries };
        Group::new(&setup, recovered, 0).err().unwrap()
    };
    assert_eq!(recover(None, b"short"), "entry 1 is logged with 5 bytes");
    assert_eq!(recover(None, &[9; 20]), "entry 1 is logged with the unknown kind 9");
    assert_eq!(recover(None, &[0; 20]), "entry 1 is logged with term 0 after term 0");
    let entry: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(recover(Some(b"odd"), entry), "a state of 3 bytes");
}

#[test]
fn entries_may_outlive_the_state_logged_with_them() {
    let setup = Setup::new(replica_id(1), (1..=3).map(replica_id).collect(), 1);
    let state = Bytes::from([3u64.to_le_bytes(), replica_id(2).0.to_le_bytes()].concat());
    let entries = vec![on_disk(1, 4, 0)];
    let recovered = Recovered { state: Some(state), snapshot: None, entries };
    let group = Group::new(&setup, recovered, 0).unwrap();
    assert_eq!((group.term(), group.raw.raft.vote), (4, 0));
}

#[test]
fn a_meta_is_read_as_written() {
    let mut members = Members::of((1..=3).map(replica_id));
    members.learners.push(ReplicaId::new(NodeId(7), 3));
    let plain = SnapshotMeta { index: 9, term: 4, members };
    let mut joint = plain.clone();
    joint.members.outgoing = (2..=4).map(replica_id).collect();
    let plain_bytes = plain.to_bytes().len();
    for meta in [plain, joint] {
        let bytes = meta.to_bytes();
        assert_eq!(SnapshotMeta::from_bytes(&bytes), Some(meta));
        let ends = (0..bytes.len()).filter(|end| *end != plain_bytes);
        for end in ends {
            assert_eq!(SnapshotMeta::from_bytes(&bytes[..end]), None);
        }
    }
    assert_eq!(ReplicaId::new(NodeId(7), 3).to_string(), "7.3");
    assert_eq!((replica_id(7).node(), replica_id(7).to_string()), (NodeId(7), "7".into()));
}

#[test]
fn what_raft_would_die_of_is_refused() {
    let mut cluster = Cluster::led(3);
    let mut refused = |kind, change: fn(&mut Message)| {
        let mut sent = message(kind, 1, 2, 1);
        change(&mut sent);
        step(&mut cluster, 2, &sent).unwrap_err()
    };
    assert!(refused(MessageType::MsgAppend, |m| m.to = 9).contains("is for replica"));
    assert!(refused(MessageType::MsgAppend, |m| m.from = m.to).contains("nobody else"));
    assert!(refused(MessageType::MsgAppend, |m| m.term = 0).contains("no term"));
    assert!(refused(MessageType::MsgAppend, |m| m.index = u64::MAX).contains("no group reaches"));
    assert!(refused(MessageType::MsgAppend, |m| m.request_snapshot = 1).contains("requests"));
    assert!(refused(MessageType::MsgHeartbeat, |m| m.commit = 99).contains("were lost here"));
    assert!(
        refused(MessageType::MsgAppend, |m| m.mut_entries().push(Entry::default()))
            .contains("cannot follow")
    );
    for kind in [MessageType::MsgPropose, MessageType::MsgReadIndex, MessageType::MsgHup] {
        assert!(refused(kind, |_| {}).contains("does not travel"));
    }
    assert!(refused(MessageType::MsgSnapshot, |_| {}).contains("of index 0"));
    assert!(
        refused(MessageType::MsgSnapshot, |m| {
            m.mut_snapshot().mut_metadata().index = 5;
            m.mut_snapshot().mut_metadata().term = 1;
        })
        .contains("a configuration of []")
    );
    let mono = cluster.mono;
    assert!(
        cluster[2]
            .step(&Bytes::from_static(b"\xff\xff garbage"), at(mono))
            .unwrap_err()
            .contains("none of raft's")
    );
}

/// Messages of a lively group, each with a few bytes changed.
#[test]
fn damaged_messages_kill_nobody() {
    let mut dice = 1u64;
    let mut below = |end: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % end
    };
    let mut refused = 0;
    for _ in 0..300 {
        let mut cluster = Cluster::led(3);
        cluster.is_damaged = true;
        write(&mut cluster, 1, b"a");
        cluster[1].propose(Bytes::from_static(b"b")).unwrap();
        for round in 0..20 {
            (1..=3).for_each(|node| cluster.drive(node));
            let Some((_, envelope)) = cluster.sent.pop_front() else {
                cluster.run(50);
                continue;
            };
            // An answer to a sender whose name was damaged.
            let Some(to) = cluster.replicas.get_mut(&envelope.to.node().0) else { continue };
            let mut bytes = envelope.bytes.to_vec();
            for _ in 0..below(3) + 1 {
                let at = below(bytes.len());
                bytes[at] ^= 1 << below(8);
            }
            let mono = cluster.mono + round;
            refused += usize::from(to.group.step(&bytes.into(), at(mono)).is_err());
            if below(4) == 0 {
                let _ = to.group.step(&envelope.bytes, at(mono));
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn a_dead_leader_is_succeeded_at_once() {
    let mut cluster = Cluster::led(3);
    cluster.run(200);
    cluster.isolate(1);
    // A promise binds a voter that has no evidence of its own.
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

#[test]
fn a_leader_whose_disk_hangs_is_succeeded_and_does_not_stand_again() {
    let mut cluster = Cluster::led(3);
    write(&mut cluster, 1, b"a");
    cluster.replica(1).holds_disk = true;
    write(&mut cluster, 1, b"b");
    // It is not for a moment's delay.
    cluster.run(400);
    assert_eq!(cluster.leader(), Some(1));
    assert!(cluster.run_until(1_000, |c| c.leader().is_some_and(|leader| leader != 1)));
    assert!(!cluster[1].is_serving() && !cluster[1].holds_lease(at(cluster.mono)));
    let leader = cluster.leader().unwrap();
    write(&mut cluster, leader, b"c");
    cluster.run(200);
    assert_eq!(cluster.data(leader), [b"a", b"b", b"c"]);

    // With the new leader gone, the one that is left waits for the other's disk.
    cluster.isolate(leader);
    let other = 5 - leader;
    assert!(!cluster.run_until(5_000, |c| c[1].is_serving() || c[other].is_serving()));
    cluster.replica(1).holds_disk = false;
    cluster.replica(1).sync();
    assert!(cluster.run_until(5_000, |c| c[1].is_serving() || c[other].is_serving()));
}

#[test]
fn a_leader_whose_disk_is_no_slower_than_the_others_goes_on() {
    // Without its disk or that of the third there is no majority under any leader.
    let mut cluster = Cluster::led(3);
    cluster.replica(1).holds_disk = true;
    cluster.replica(3).holds_disk = true;
    write(&mut cluster, 1, b"a");
    assert!(!cluster.run_until(5_000, |c| !c[1].is_serving()));
    cluster.replica(1).sync();
    cluster.settle();
    assert_eq!(cluster.data(1), [b"a"]);

    // A pause of the process is no hanging disk.
    cluster.replica(3).holds_disk = false;
    cluster.replica(3).sync();
    write(&mut cluster, 1, b"b");
    cluster.mono += 60_000;
    let mono = cluster.mono;
    cluster[1].tick(at(mono));
    assert_eq!(cluster[1].role(), Role::Leader);
}

#[test]
fn a_follower_takes_no_more_than_its_disk_keeps_up_with() {
    const PIECE: &[u8] = &[7; 10_000];
    let mut cluster = Cluster::new(3);
    for node in 1..=3 {
        let mut setup = cluster.replica(node).setup.clone();
        (setup.unsynced_bytes_max, setup.window_bytes) = (100_000, 50_000);
        cluster.add(node, setup);
    }
    cluster[1].campaign();
    cluster.settle();
    cluster.replica(3).holds_disk = true;
    for _ in 0..100 {
        write(&mut cluster, 1, PIECE);
        cluster.run(50);
    }
    let bytes = |c: &Cluster| {
        let entries = c.replicas[&3].unsynced.iter().flat_map(|persist| &persist.entries);
        entries.map(|entry| entry.data.len()).sum::<usize>()
    };
    assert!(bytes(&cluster) > 0);
    assert!(bytes(&cluster) <= 110_000, "{} bytes wait for the disk", bytes(&cluster));
    assert_eq!(cluster.data(1).len(), 100);

    cluster.replica(3).holds_disk = false;
    cluster.replica(3).sync();
    cluster.settle();
    assert!(cluster.run_until(10_000, |c| c.data(3).len() == 100), "{}", cluster.data(3).len());
}

#[test]
fn no_more_log_stays_in_memory_than_a_snapshot_of_it_weighs() {
    let mut cluster = Cluster::led(3);
    for _ in 0..100 {
        write(&mut cluster, 1, &[7; 64]);
    }
    cluster.run(200);
    // What a follower lacks stays, as far as is allowed.
    cluster.isolate(3);
    for _ in 0..100 {
        write(&mut cluster, 1, &[7; 64]);
    }
    cluster.run(200);
    for node in 1..=2 {
        let index = cluster[node].applied_index();
        cluster[node].compact(index, 200);
    }
    assert!((100 * 64..=110 * (64 + 48)).contains(&cluster[1].log_bytes()));
    assert!(cluster[2].log_bytes() <= 200);
    cluster.heal();
    cluster.run(1_000);
    assert!(cluster.wants_snapshot.is_empty() && cluster.snapshots.is_empty());
    assert_eq!(cluster.data(3), cluster.data(1));
    let index = cluster[1].applied_index();
    cluster[1].compact(index, 200);
    assert!(cluster[1].log_bytes() <= 200);
}
