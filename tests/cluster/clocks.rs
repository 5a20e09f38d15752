//! Clocks that are wrong: ahead, behind, set while a node runs, and standing still while its machine
//! does.
//!
//! A small library in C stands between a node and its clocks (`clock.c`). Where no C compiler is
//! there to make it, these tests say so and pass.

use crate::faults::{all_writable, more};
use crate::harness::{Clock, Cluster, PATIENCE, dial, eventually, read_some};
use crate::load::{Load, Progress};
use std::io::Write;
use std::time::Instant;

const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// A time to live that no test waits for.
const LONG_MS: u64 = 600_000;

/// Clocks may make so much of a time to live: a tenth, and what calls and elections take.
fn lived_about(left: u64, begun: Instant, slack_ms: u64) {
    let passed = begun.elapsed().as_millis() as u64;
    let lived = LONG_MS - left;
    assert!(lived + slack_ms >= passed * 9 / 10, "it lived {lived} ms in {passed} ms");
    assert!(lived <= passed * 11 / 10 + slack_ms, "it lived {lived} ms in {passed} ms");
}

/// A leader is stopped until others have written what it led. It goes on with clocks that have not
/// seen the time in between, and finds reads waiting: it has the lease that it had, by those.
fn frozen(stands_still: impl Fn(i64) -> Clock) {
    let Some(mut cluster) = Cluster::start_with_clocks([0, 0, 0]) else { return };
    let keys = cluster.keys_on(1, "frozen", 8);
    let (mut one, mut two) = (cluster.connect(1), cluster.connect(2));
    for key in &keys {
        assert_eq!(one.say(&format!("SET {key} old")), "OK");
    }
    let mut readers: Vec<_> = (0..8).map(|_| dial(cluster.ports(1).client)).collect();
    // Leases are fresh, and the last bytes before the stop are reads.
    for key in keys.iter().cycle().take(100) {
        assert_eq!(one.say(&format!("GET {key}")), "\"old\"");
    }
    cluster.pause(1);
    // What comes now is answered by what goes on later, and by nothing before.
    let node = cluster.process(1);
    eventually("every thread has stopped", PATIENCE, || node.is_stopped().then_some(()));
    let stopped = Instant::now();
    for (reader, key) in readers.iter_mut().zip(&keys) {
        writeln!(reader, "GET {key}\r").expect("a request is buffered");
    }
    for key in &keys {
        eventually(&format!("{key} has another leader"), PATIENCE, || {
            (two.say(&format!("SET {key} new")) == "OK").then_some(())
        });
    }
    // Less than it was stopped for, so that no clock goes back.
    cluster.set_clock(1, stands_still(-(stopped.elapsed().as_millis() as i64)));
    cluster.resume(1);
    for (reader, key) in readers.iter_mut().zip(&keys) {
        let reply = read_some(reader);
        assert!(!reply.contains("old"), "{key}: {reply:?} long after it was written");
    }
}

#[test]
fn a_lease_counts_the_time_in_which_the_machine_was_suspended() {
    frozen(|ms| Clock { monotonic: ms, ..Clock::default() });
}

#[test]
fn a_lease_does_not_outlive_the_pause_of_a_virtual_machine() {
    frozen(|ms| Clock { monotonic: ms, boottime: ms, ..Clock::default() });
}

/// A node is stopped with writes in its sockets that another one gives up, and reads that come after
/// that. It goes on with clocks that have not seen the time in between: what its reads do not show it
/// does not do later.
fn given_up(stands_still: impl Fn(i64) -> Clock) {
    let Some(mut cluster) = Cluster::start_in_memory_with_clocks([0, 0, 0]) else { return };
    let keys = cluster.keys_on(2, "late", 40);
    let mut one = cluster.connect(1);
    assert_eq!(one.say(&format!("APPEND {} x", keys[0])), "1");
    assert_eq!(one.say(&format!("DEL {}", keys[0])), "1");
    let mut readers: Vec<_> = keys.iter().map(|_| dial(cluster.ports(2).client)).collect();
    cluster.pause(2);
    let node = cluster.process(2);
    eventually("every thread has stopped", PATIENCE, || node.is_stopped().then_some(()));
    let stopped = Instant::now();
    let writes: Vec<String> = keys.iter().map(|key| format!("APPEND {key} x")).collect();
    let written = one.pipeline(&writes);
    assert!(written.iter().all(|reply| reply.starts_with("-UNKNOWN")), "{written:?}");
    for (reader, key) in readers.iter_mut().zip(&keys) {
        writeln!(reader, "GET {key}\r").expect("a request is buffered");
    }
    cluster.set_clock(2, stands_still(-(stopped.elapsed().as_millis() as i64)));
    cluster.resume(2);
    let read: Vec<String> = readers.iter_mut().map(read_some).collect();
    // Whatever lay in the sockets has been read by now, or was dropped with the old link.
    cluster.wait_ready(2);
    eventually("node 2 is asked again", PATIENCE, || {
        (one.say(&format!("EXISTS {}", keys[0])).len() == 1).then_some(())
    });
    let mut two = cluster.connect(2);
    for (key, read) in keys.iter().zip(&read) {
        let later = two.say(&format!("GET {key}"));
        assert!(read != "$-1\r\n" || later == "nil", "{key} was read as {read:?}, then as {later}");
    }
}

#[test]
fn what_was_given_up_while_a_machine_was_suspended_is_not_done() {
    given_up(|ms| Clock { monotonic: ms, ..Clock::default() });
}

#[test]
fn what_was_given_up_while_a_virtual_machine_was_paused_is_not_done() {
    given_up(|ms| Clock { monotonic: ms, boottime: ms, ..Clock::default() });
}

/// Whoever leads next has a clock that is a minute behind.
#[test]
fn times_to_live_go_on_after_a_leader_that_was_ahead() {
    let Some(mut cluster) = Cluster::start_with_clocks([60_000, 0, 0]) else { return };
    let (long, short) = (cluster.key_on(1, "long"), cluster.key_on(1, "short"));
    let (mut one, mut two) = (cluster.connect(1), cluster.connect(2));
    assert_eq!(one.say(&format!("SET {long} x PX {LONG_MS}")), "OK");
    let begun = Instant::now();
    // It may outlive its leader, and no more than that.
    assert_eq!(one.say(&format!("SET {short} x PX 3000")), "OK");
    cluster.kill(1);
    let left = eventually("it has another leader", PATIENCE, || {
        two.say(&format!("PTTL {long}")).parse::<u64>().ok()
    });
    lived_about(left, begun, 3_000);
    eventually("it expires", PATIENCE, || {
        (two.say(&format!("GET {short}")) == "nil").then_some(())
    });
    let left = two.say(&format!("PTTL {long}")).parse().expect("it lives");
    lived_about(left, begun, 3_000);
}

/// Two nodes of three restart, one of them with a clock that is a year ahead: it leads, with the third,
/// which has counted on.
#[test]
fn a_node_that_restarts_with_a_wrong_clock_expires_nothing() {
    let Some(mut cluster) = Cluster::start_with_clocks([0, 0, 0]) else { return };
    let keys = cluster.keys_everywhere("kept", 10);
    let mut one = cluster.connect(1);
    for key in &keys {
        assert_eq!(one.say(&format!("SET {key} x PX {LONG_MS}")), "OK");
    }
    let begun = Instant::now();
    cluster.kill(2);
    cluster.kill(3);
    cluster.set_clock(2, Clock { wall: YEAR_MS, ..Clock::default() });
    cluster.spawn(2);
    for node in [2, 3] {
        for key in &keys {
            let left = eventually("somebody leads", PATIENCE, || {
                let left = one.say(&format!("PTTL {key}"));
                assert_ne!(left, "-2", "{key} has expired");
                left.parse().ok()
            });
            lived_about(left, begun, 3_000);
        }
        if node == 2 {
            cluster.spawn(3);
            cluster.wait_ready(3);
        }
    }
}

#[test]
fn a_clock_that_is_set_expires_nothing_at_once_and_freezes_nothing() {
    let Some(cluster) = Cluster::start_with_clocks([0, 0, 0]) else { return };
    let (long, short) = (cluster.key_on(1, "long"), cluster.key_on(1, "short"));
    let mut two = cluster.connect(2);
    assert_eq!(two.say(&format!("SET {long} x PX {LONG_MS}")), "OK");
    let begun = Instant::now();
    for wall in [YEAR_MS, -YEAR_MS, 0] {
        cluster.set_clock(1, Clock { wall, ..Clock::default() });
        assert_eq!(two.say(&format!("SET {short} x PX 500")), "OK");
        let written = Instant::now();
        let lives = two.say(&format!("GET {short}")) == "\"x\"";
        assert!(lives || written.elapsed().as_millis() > 400, "it is gone after a moment");
        eventually("it expires", PATIENCE, || {
            (two.say(&format!("GET {short}")) == "nil").then_some(())
        });
        let left = two.say(&format!("PTTL {long}")).parse().expect("it lives");
        lived_about(left, begun, 1_000);
    }
    cluster.wait_log(1, &["WARN", "wall clock", "was set"]);
}

/// The node that coordinates is half an hour ahead of those that lead the keys.
#[test]
fn expiry_is_decided_where_a_key_is_led() {
    const AHEAD_MS: i64 = 1_800_000;
    let Some(cluster) = Cluster::start_with_clocks([AHEAD_MS, 0, 0]) else { return };
    let [kept, from, to] = [(2, "kept"), (2, "from"), (3, "to")].map(|(n, p)| cluster.key_on(n, p));
    let (mut one, mut two) = (cluster.connect(1), cluster.connect(2));
    let begun = Instant::now();
    for key in [&kept, &from] {
        assert_eq!(two.say(&format!("SET {key} x PX {LONG_MS}")), "OK");
    }
    assert_eq!(one.say("MULTI"), "OK");
    for line in [format!("GET {kept}"), format!("PTTL {kept}"), format!("RENAME {from} {to}")] {
        assert_eq!(one.say(&line), "QUEUED");
    }
    let ended = one.say("EXEC");
    assert!(ended.starts_with("[\"x\" ") && ended.ends_with(" OK]"), "{ended}");
    let left = ended.split(' ').nth(1).and_then(|left| left.parse().ok()).expect("a time");
    lived_about(left, begun, 1_000);
    // What is moved to another leader lives on for as long as it would have.
    let left = two.say(&format!("PTTL {to}")).parse().expect("it lives");
    lived_about(left, begun, 1_000);
    assert_eq!(one.say(&format!("MSETNX {kept} y {from} y")), "0");
    assert_eq!(two.say(&format!("GET {kept}")), "\"x\"");
    // And a time that a coordinator sets is one of the key's leader.
    assert_eq!(one.say("MULTI"), "OK");
    for line in [format!("PEXPIRE {kept} {LONG_MS}"), format!("RENAME {to} {from}")] {
        assert_eq!(one.say(&line), "QUEUED");
    }
    let begun = Instant::now();
    assert_eq!(one.say("EXEC"), "[1 OK]");
    let left = two.say(&format!("PTTL {kept}")).parse().expect("it lives");
    lived_about(left, begun, 1_000);
}

/// The dead node was half an hour ahead, and led and coordinated what was under way.
#[test]
fn no_key_stays_locked_after_a_node_that_was_ahead() {
    const AHEAD_MS: i64 = 1_800_000;
    let Some(mut cluster) = Cluster::start_with_clocks([0, 0, AHEAD_MS]) else { return };
    let keys = cluster.keys_everywhere("ahead", 2);
    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &keys, mortal: Some(3) };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        more(&progress, 50, 50);
        cluster.kill(3);
        load.settle();
    });
    all_writable(&cluster, &[1, 2], &keys);
}

/// A machine without a clock of its own boots an hour behind, or comes back a minute behind.
#[test]
fn a_node_that_comes_back_with_its_clock_behind_serves() {
    let Some(mut cluster) = Cluster::start_with_clocks([0, 0, 0]) else { return };
    for wall in [-60_000, -3_600_000] {
        cluster.kill(3);
        cluster.set_clock(3, Clock { wall, ..Clock::default() });
        cluster.spawn(3);
        cluster.wait_ready(3);
        all_writable(&cluster, &[3], &cluster.keys_everywhere("behind", 1));
    }
}
