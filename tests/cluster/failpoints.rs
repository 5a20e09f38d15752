//! A node dies at each step of the commit protocol, of the log and of a snapshot.
//!
//! The simulation strikes the cores at every step (`src/simulation/steps.rs`); here the
//! whole process dies, with its mailboxes, sockets and files as they are at that moment. The node
//! is told by `QUORATE_FAILPOINT` where (`src/actors/failpoint.rs` has the points), and transactions
//! over three partitions go through all nodes until it gets there: it coordinates some, leads
//! participants of others and the primaries of yet others. Then must hold:
//! - what was acknowledged is there, what was refused is not, what is unknown is whole or not there;
//! - all of its keys take writes again from the others, as soon as a lost Coordinator or leader
//!   permits: no lock outlives that;
//! - back again, it and the others come to rest, and every replica holds the same.

use crate::harness::{
    Client, Cluster, PATIENCE, Protocol, StopAtEnd, eventually, partition_of, show,
};
use crate::load::EXCUSES;
use quorate::actors::failpoint::Point;
use redis::{RedisResult, Value};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The node that dies.
const STRUCK: u16 = 2;

/// How long a dead node may be in the way of others: until its silence is noticed and others are
/// elected or its intents have asked (three seconds, at most), with as much again for a busy
/// machine.
const IN_THE_WAY_MAX: Duration = Duration::from_secs(8);

/// The nodes that lead the keys of a transaction. A Coordinator prefers a primary of its own node,
/// else takes the lowest: so some have theirs on node 2 though another node coordinates, and some
/// that node 2 coordinates have theirs elsewhere.
const HOMES: [[u16; 3]; 4] = [[1, 2, 3], [2, 2, 3], [1, 2, 2], [1, 3, 3]];

/// Keys that are written together.
struct Family {
    /// All set to the number of the transaction.
    set: Vec<String>,
    /// The number is appended to each.
    appended: Vec<String>,
    tale: Tale,
}

/// What became of a family's transactions, by number.
#[derive(Debug, Default)]
struct Tale {
    next: u64,
    done: Vec<u64>,
    unknown: Vec<u64>,
}

enum Fate {
    Done,
    Refused,
    Unknown,
    /// Unknown, and the connection is gone.
    Broken,
}

impl Family {
    fn new(writer: u16, homes: [u16; 3]) -> Family {
        let keys = |what: &str| {
            let mut keys: Vec<String> = Vec::new();
            for home in homes {
                let fits = |key: &String| {
                    let partition = partition_of(key);
                    partition / 4 + 1 == home
                        && keys.iter().all(|other| partition_of(other) != partition)
                };
                let [a, b, c] = homes;
                let mut named = (0..).map(|n| format!("{what}:{writer}:{a}{b}{c}:{n}"));
                keys.push(named.find(fits).expect("every partition has keys"));
            }
            keys
        };
        Family { set: keys("set"), appended: keys("appended"), tale: Tale::default() }
    }

    /// The next transaction: by turns an MSET and an EXEC.
    fn write(&mut self, client: &mut Client) -> Fate {
        let number = self.tale.next;
        self.tale.next += 1;
        let reply = match number % 2 {
            0 => client.mset_all(&self.set, &number.to_string()),
            _ => append(client, &self.appended, number),
        };
        let fate = match &reply {
            Ok(()) => Fate::Done,
            Err(error) if error.code().is_none() => Fate::Broken,
            Err(error) if error.code() == Some("UNKNOWN") => Fate::Unknown,
            Err(error) => {
                let code = error.code().unwrap_or_default();
                assert!(EXCUSES.contains(&code) || code == "EXECABORT", "{}", show_unit(&reply));
                Fate::Refused
            }
        };
        match fate {
            Fate::Done => self.tale.done.push(number),
            Fate::Unknown | Fate::Broken => self.tale.unknown.push(number),
            Fate::Refused => {}
        }
        fate
    }

    /// What the keys hold, against what was said of their transactions.
    fn check(&self, client: &mut Client) -> RedisResult<()> {
        let tale = &self.tale;
        let set = client.mget(&self.set)?;
        assert!(set.windows(2).all(|two| two[0] == two[1]), "in part: {:?} {set:?}", self.set);
        let set: Option<u64> = set[0].as_ref().map(|number| number.parse().expect("a number"));
        let last = tale.done.iter().rev().find(|number| *number % 2 == 0);
        let fits = set == last.copied()
            || set.is_some_and(|set| tale.unknown.contains(&set) && Some(&set) > last);
        assert!(fits, "{:?} hold {set:?}, and {last:?} was the last of {tale:?}", self.set);

        let appended = client.mget(&self.appended)?;
        let whole = appended.windows(2).all(|two| two[0] == two[1]);
        assert!(whole, "in part: {:?} {appended:?}", self.appended);
        let list = appended[0].as_deref().unwrap_or_default();
        let held: Vec<u64> =
            list.split_terminator(',').map(|number| number.parse().expect("a number")).collect();
        assert!(held.is_sorted_by(|a, b| a < b), "twice, or out of order: {held:?}");
        let known = |number: &u64| tale.done.contains(number) || tale.unknown.contains(number);
        let refused: Vec<&u64> = held.iter().filter(|number| !known(number)).collect();
        assert!(refused.is_empty(), "{refused:?} were refused, and are there");
        let done = tale.done.iter().filter(|number| *number % 2 == 1);
        let lost: Vec<&u64> = done.filter(|number| !held.contains(number)).collect();
        assert!(lost.is_empty(), "{lost:?} were acknowledged, and are not in {held:?}");
        Ok(())
    }
}

/// MULTI, three times APPEND, EXEC.
fn append(client: &mut Client, keys: &[String], number: u64) -> RedisResult<()> {
    let appends = keys.iter().map(|key| format!("APPEND {key} {number},"));
    let lines = std::iter::once("MULTI".to_owned()).chain(appends).chain(["EXEC".to_owned()]);
    let mut replies = client.try_pipeline(&lines.collect::<Vec<_>>())?;
    match replies.pop().expect("a reply of EXEC") {
        Ok(Value::Array(lengths)) => {
            assert!(lengths.iter().all(|length| matches!(length, Value::Int(_))), "{lengths:?}");
            Ok(())
        }
        Ok(other) => panic!("EXEC answers {other:?}"),
        Err(error) => Err(error),
    }
}

fn show_unit(reply: &RedisResult<()>) -> String {
    show(&reply.clone().map(|()| Value::Okay))
}

/// Writes through a node until told to stop; its connections may break if it is to die.
fn write(port: u16, mortal: bool, families: &mut [Family], stop: &AtomicBool, done: &AtomicU64) {
    let mut client = None;
    for family in (0..families.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if client.is_none() {
            client = Client::connect(port, Protocol::Resp2).ok();
        }
        let Some(connected) = &mut client else {
            assert!(mortal, "a node that was not to die is gone");
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        match families[family].write(connected) {
            Fate::Done => drop(done.fetch_add(1, Ordering::Relaxed)),
            Fate::Refused | Fate::Unknown => {}
            Fate::Broken => {
                assert!(mortal, "a node that was not to die has closed a connection");
                client = None;
            }
        }
    }
}

/// Has nodes die at points, with the transactions of these homes under way, and checks.
#[track_caller]
fn strike(armed: &[(u16, &str)], homes: &[[u16; 3]], snapshots: bool) {
    let mut cluster = Cluster::new(3);
    for (node, point) in armed {
        cluster.arm(*node, point);
    }
    cluster.start_all();
    let dies = |node: u16| armed.iter().any(|(dead, _)| *dead == node);
    let mut families: Vec<Vec<Family>> = cluster
        .ids()
        .map(|writer| homes.iter().map(|homes| Family::new(writer, *homes)).collect())
        .collect();

    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut died = std::thread::scope(|scope| {
        let at_end = StopAtEnd(&stop);
        let mut writers = Vec::new();
        for (node, families) in cluster.ids().zip(&mut families) {
            let (port, mortal) = (cluster.ports(node).client, dies(node));
            let (stop, done) = (&stop, &done);
            writers.push(scope.spawn(move || write(port, mortal, families, stop, done)));
        }
        if snapshots {
            let enough = || (done.load(Ordering::Relaxed) >= 50).then_some(());
            eventually("transactions are done", PATIENCE, enough);
            // It may be dead before it answers.
            let _ = cluster.connect(STRUCK).ask(&["CLUSTER", "SNAPSHOT"]);
        }
        for (node, point) in armed {
            let what = format!("node {node} gets to {point}");
            let status = eventually(&what, PATIENCE, || cluster.process(*node).ended());
            assert_eq!(status.signal(), Some(9), "node {node} at {point}: {status}");
        }
        let died = Instant::now();
        drop(at_end);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        died
    });
    for (node, _) in armed {
        cluster.kill(*node);
    }
    // A majority has to be there.
    for (node, _) in armed.iter().filter(|(node, _)| *node != STRUCK) {
        cluster.spawn(*node);
        cluster.wait_ready(*node);
        died = Instant::now();
    }

    // What the dead node had locked is read and written by the others.
    for node in cluster.ids().filter(|node| *node != STRUCK) {
        let mut client = cluster.connect(node);
        for family in families.iter_mut().flatten() {
            let left = || IN_THE_WAY_MAX.saturating_sub(died.elapsed());
            eventually("its keys are read", left(), || family.check(&mut client).ok());
            for _ in 0..2 {
                eventually("its keys are written", left(), || {
                    matches!(family.write(&mut client), Fate::Done).then_some(())
                });
            }
        }
    }
    let free = died.elapsed();

    cluster.spawn(STRUCK);
    cluster.wait_ready(STRUCK);
    cluster.wait_led(STRUCK);
    cluster.wait_at_rest();
    check_replicas(&cluster, &families);
    let tales = || families.iter().flatten().map(|family| &family.tale);
    let done: usize = tales().map(|tale| tale.done.len()).sum();
    let unknown: usize = tales().map(|tale| tale.unknown.len()).sum();
    println!("{armed:?}: {done} done, {unknown} unknown, all free after {free:?}");
}

/// Everything is the same whoever leads; every replica has applied the same.
fn check_replicas(cluster: &Cluster, families: &[Vec<Family>]) {
    eventually("all replicas have applied the same", PATIENCE, || {
        let mut nodes = cluster.ids().map(|node| applied(cluster, node));
        let first = nodes.next()??;
        nodes.all(|other| other.as_ref() == Some(&first)).then_some(())
    });
    let keys =
        || families.iter().flatten().flat_map(|family| family.set.iter().chain(&family.appended));
    let mut partitions: Vec<u16> = keys().map(|key| partition_of(key)).collect();
    partitions.sort_unstable();
    partitions.dedup();
    for leader in cluster.ids() {
        for node in cluster.ids() {
            let mut client = cluster.connect(node);
            for partition in &partitions {
                let order = format!("CLUSTER TRANSFER {partition} {leader}");
                assert!(!client.say(&order).starts_with('-'), "{order}");
            }
        }
        eventually(&format!("node {leader} leads"), PATIENCE, || {
            keys().all(|key| cluster.leader_now(key, leader) == Some(leader)).then_some(())
        });
        let mut client = cluster.connect(leader);
        for family in families.iter().flatten() {
            eventually("an answer", PATIENCE, || family.check(&mut client).ok());
        }
    }
}

/// Each partition of a node: the last entry applied, and how many items it has.
fn applied(cluster: &Cluster, node: u16) -> Option<Vec<[u64; 3]>> {
    let status = cluster.status(node)?;
    let replicas = status["replicas"].as_array()?;
    let mut rows: Vec<[u64; 3]> = replicas
        .iter()
        .map(|one| ["id", "applied", "items"].map(|figure| one[figure].as_u64().unwrap_or(0)))
        .collect();
    rows.sort_unstable();
    Some(rows)
}

/// A test for each point.
macro_rules! at {
    ($($test:ident: $point:literal,)*) => {
        const STRUCK_AT: &[&str] = &[$($point,)*];

        $(#[test]
        fn $test() {
            strike(&[(STRUCK, $point)], &HOMES, $point.starts_with("snapshot"));
        })*
    };
}

at! {
    before_prepares_leave: "prepare.begun:9",
    after_a_prepare_has_left: "prepare.sent:9",
    before_an_intent_is_logged: "prepare.heard:9",
    after_an_intent_is_logged: "prepare.logged:9",
    after_a_vote_has_left: "vote.sent:9",
    after_all_votes: "decide.begun:9",
    after_a_primary_was_asked: "decide.sent:9",
    before_a_decision_is_logged: "decide.heard:9",
    after_a_decision_is_logged: "decide.logged:9",
    after_a_decision_was_told: "decided.sent:9",
    before_the_client_is_answered: "decided.heard:9",
    after_a_participant_was_told: "outcome.sent:9",
    before_an_outcome_is_logged: "outcome.heard:9",
    after_an_outcome_is_applied: "outcome.applied:9",
    after_an_outcome_was_confirmed: "applied.sent:9",
    before_a_confirmation_is_logged: "applied.heard:9",
    between_write_and_sync: "log.written:200",
    after_a_sync: "log.synced:200",
    before_a_snapshot_has_its_name: "snapshot.written:2",
    before_the_log_behind_a_snapshot_goes: "snapshot.named:2",
}

/// A primary tells its participants only if the Coordinator does not: that one dies first, on node
/// 1, with its decision unheard; then the primary, about to answer the participants that ask.
#[test]
fn before_the_primary_tells_in_place_of_a_dead_coordinator() {
    strike(&[(1, "decided.heard:9"), (STRUCK, LONE)], &[[2, 2, 3]], false);
}

/// The point of the test above.
const LONE: &str = "outcome.begun";

/// Steps of the first formation.
const FORMATION: [&str; 4] = ["ready.marked", "ready.sent", "form.begun", "form.marked"];

/// A node dies at a step of the first formation, and the power of the others goes with it.
#[test]
fn at_every_step_of_the_formation() {
    for point in FORMATION {
        let mut cluster = Cluster::new(3);
        cluster.arm(STRUCK, point);
        cluster.ids().for_each(|id| cluster.spawn(id));
        let what = format!("node {STRUCK} gets to {point}");
        eventually(&what, PATIENCE, || cluster.process(STRUCK).ended());
        cluster.ids().for_each(|id| cluster.kill(id));
        cluster.start_all();
        for id in cluster.ids() {
            assert_eq!(cluster.connect(id).say("MSET a 1 b 2 c 3"), "OK", "{point}");
            let log = cluster.log(id);
            assert!(!log.contains("rejoining"), "{point}, node {id}: {log}");
        }
    }
}

#[test]
fn every_point_has_a_test() {
    let name = |point: &&'static str| point.split(':').next().unwrap_or_default();
    let mut tested: Vec<&str> =
        STRUCK_AT.iter().chain([&LONE]).chain(&FORMATION).map(name).collect();
    let mut all: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    tested.sort_unstable();
    all.sort_unstable();
    assert_eq!(tested, all);
}

#[test]
fn what_is_no_point_is_refused() {
    for text in ["nowhere", "log.synced:", "log.synced:0", "log.synced:1:2", ""] {
        let mut cluster = Cluster::new(3);
        cluster.arm(STRUCK, text);
        cluster.spawn(STRUCK);
        let status = cluster.process(STRUCK).wait();
        assert_eq!(status.code(), Some(2), "{text}: {status}");
        let log = cluster.log(STRUCK);
        assert!(log.contains(&format!("there is no failpoint '{text}'")), "{log}");
        assert!(log.contains("prepare.logged"), "it says what there is: {log}");
    }
}
