//! A node stops, hangs or dies in the middle of a load.
//!
//! Whatever happens to a minority, nobody sees half an MSET, no key stays locked, and with copies
//! nothing that was acknowledged is missing. Without copies a dead node takes its keys along; the
//! others serve theirs.

use crate::harness::{Client, Cluster, PATIENCE, StopAtEnd, dial, eventually, expect};
use crate::load::{EXCUSES, Load, Progress};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Every key takes a write again, asked of every node. Refusals are retried until the deadline.
pub fn all_writable(cluster: &Cluster, nodes: &[u16], keys: &[String]) {
    for node in nodes {
        let mut client = cluster.connect(*node);
        for key in keys {
            eventually(&format!("{key} is writable at node {node}"), PATIENCE, || {
                written(&mut client, key).then_some(())
            });
        }
    }
}

/// Whether a SET was answered with OK; it may only be refused as a fault excuses.
fn written(client: &mut Client, key: &str) -> bool {
    let reply = client.say(&format!("SET {key} x"));
    let code = reply.trim_start_matches('-').split(' ').next().unwrap_or_default();
    assert!(reply == "OK" || EXCUSES.contains(&code), "SET {key}: {reply}");
    reply == "OK"
}

/// Waits for so many more writes and checks of a load.
pub fn more(progress: &Progress, writes: u64, checks: u64) {
    let before = progress.count();
    eventually("the load goes on", PATIENCE, || {
        let now = progress.count();
        (now.0 >= before.0 + writes && now.1 >= before.1 + checks).then_some(())
    });
}

#[test]
fn a_paused_node_mixes_nothing_and_stops_nobody_else() {
    const PAUSE: Duration = Duration::from_secs(3);
    const SERVED: usize = 100;
    let mut cluster = Cluster::start();
    let keys = cluster.keys_everywhere("paused", 2);
    let elsewhere = [cluster.key_on(1, "elsewhere"), cluster.key_on(2, "elsewhere")];
    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &keys, mortal: None };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        more(&progress, 50, 50);

        let mut clients = [cluster.connect(1), cluster.connect(2)];
        cluster.pause(3);
        let paused = Instant::now();
        // On a busy machine a partition may change its leader meanwhile, and refuse some.
        let mut served = 0;
        while paused.elapsed() < PAUSE || served < SERVED {
            assert!(paused.elapsed() < PATIENCE, "{served} commands served elsewhere");
            for client in &mut clients {
                served += elsewhere.iter().filter(|key| written(client, key)).count();
            }
        }
        cluster.resume(3);

        more(&progress, 50, 50);
        load.settle();
    });
    all_writable(&cluster, &[1, 2, 3], &keys);
}

/// Nodes 2 and 3 do not reach each other any more, node 1 reaches both. What the two had under way
/// between them is settled by way of node 1, and no key stays locked while the cut lasts.
#[test]
fn a_link_lost_between_two_nodes_locks_nothing_for_a_third() {
    const WRITERS: usize = 8;
    let cluster = Cluster::start_networked();
    for (round, both_ways) in [false, true].into_iter().enumerate() {
        let pairs: Vec<[String; 2]> = (0..WRITERS)
            .map(|n| [2, 3].map(|node| cluster.key_led_by(node, &format!("{round}:{n}:"))))
            .collect();
        let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for (n, pair) in pairs.iter().enumerate() {
                let mut client = cluster.connect(2 + (n % 2) as u16);
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if client.mset_all(pair, "x").is_ok() {
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            eventually("the writers write", PATIENCE, || {
                (written.load(Ordering::Relaxed) > 20 * WRITERS).then_some(())
            });
            cluster.network().cut(2, 3, true);
            cluster.network().cut(3, 2, both_ways);
            let mut third = cluster.connect(1);
            for pair in &pairs {
                eventually(&format!("{pair:?} are written at node 1"), PATIENCE, || {
                    third.mset_all(pair, "y").ok()
                });
            }
        });
        cluster.network().heal();
        let all = pairs.concat();
        eventually("everything is read at node 2", PATIENCE, || cluster.connect(2).mget(&all).ok());
    }
    cluster.wait_at_rest();
}

/// Keys of the dead node are led by others soon, with all that was acknowledged.
#[test]
fn a_killed_node_leaves_no_lock_and_nothing_is_missing() {
    let mut cluster = Cluster::start();
    let keys = cluster.keys_everywhere("killed", 2);
    let kept = cluster.keys_everywhere("kept", 2);
    let mut one = cluster.connect(1);
    let mut two = cluster.connect(2);
    one.mset_all(&kept, "kept").unwrap();

    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &keys, mortal: Some(3) };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        more(&progress, 50, 50);
        for round in 0..2 {
            cluster.kill(3);
            for client in [&mut one, &mut two] {
                let values = eventually("everything is read without node 3", PATIENCE, || {
                    client.mget(&kept).ok()
                });
                assert!(values.iter().all(|v| v.as_deref() == Some("kept")), "{values:?}");
            }
            all_writable(&cluster, &[1, 2], &kept);
            eventually("MSET", PATIENCE, || one.mset_all(&kept, "kept").ok());
            more(&progress, 50, 50);
            cluster.spawn(3);
            cluster.wait_ready(3);
            more(&progress, 50, 50);
            println!("round {round}: {:?} writes and checks", progress.count());
        }
        load.settle();
    });
    all_writable(&cluster, &[1, 2, 3], &keys);
    for node in cluster.ids() {
        cluster.connect(node).mset_all(&keys, &format!("again {node}")).unwrap();
        let values = cluster.connect(node % 3 + 1).mget(&keys).unwrap();
        assert!(values.iter().all(|value| value.as_ref() == Some(&format!("again {node}"))));
    }
    cluster.wait_at_rest();
}

#[test]
fn a_killed_node_without_copies_leaves_no_lock_and_comes_back_empty() {
    let mut cluster = Cluster::start_in_memory();
    let keys = cluster.keys_everywhere("killed", 2);
    let survivors: Vec<String> =
        [cluster.keys_on(1, "killed", 2), cluster.keys_on(2, "killed", 2)].concat();
    let lost = cluster.key_on(3, "lost");
    let kept = [cluster.key_on(1, "kept"), cluster.key_on(2, "kept")];
    let mut one = cluster.connect(1);
    let mut two = cluster.connect(2);
    assert_eq!(one.say(&format!("SET {lost} x")), "OK");
    one.mset_all(&kept, "kept").unwrap();

    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &survivors, mortal: Some(3) };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        more(&progress, 50, 50);

        cluster.kill(3);
        for client in [&mut one, &mut two] {
            eventually("the dead node's keys are refused", PATIENCE, || {
                client.say(&format!("GET {lost}")).starts_with("-CLUSTERDOWN").then_some(())
            });
            let reply = client.say(&format!("SET {lost} y"));
            assert!(reply.starts_with("-CLUSTERDOWN"), "{reply}");
            let reply = client.say(&format!("MSET {lost} y {} y", kept[0]));
            assert!(reply.starts_with("-CLUSTERDOWN"), "{reply}");
            // Nothing of the refused MSET is there.
            let values = client.mget(&kept).unwrap();
            assert!(values.iter().all(|value| value.as_deref() == Some("kept")), "{values:?}");
        }
        // Nor does anybody wait for what the dead node had locked or prepared.
        more(&progress, 0, 50);
        load.settle();
    });
    all_writable(&cluster, &[1, 2], &survivors);
    one.mset_all(&survivors, "without 3").unwrap();
    let values = two.mget(&survivors).unwrap();
    assert!(values.iter().all(|value| value.as_deref() == Some("without 3")), "{values:?}");

    let started = Instant::now();
    cluster.spawn(3);
    cluster.wait_ready(3);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "admitted after {took:?}");
    for client in [&mut one, &mut two, &mut cluster.connect(3)] {
        eventually("the new life of node 3 is reached", PATIENCE, || {
            (client.say(&format!("GET {lost}")) == "nil").then_some(())
        });
        let values = client.mget(&kept).unwrap();
        assert!(values.iter().all(|value| value.as_deref() == Some("kept")), "{values:?}");
    }
    all_writable(&cluster, &[1, 2, 3], &keys);
    for node in cluster.ids() {
        cluster.connect(node).mset_all(&keys, &format!("again {node}")).unwrap();
        let values = cluster.connect(node % 3 + 1).mget(&keys).unwrap();
        assert!(values.iter().all(|value| value.as_ref() == Some(&format!("again {node}"))));
    }
}

/// The load goes on while the node is away and after it is back.
#[test]
fn a_load_outlives_a_restart() {
    let mut cluster = Cluster::start();
    let keys = cluster.keys_everywhere("restart", 2);
    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &keys, mortal: Some(2) };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        for _ in 0..3 {
            more(&progress, 30, 30);
            cluster.kill(2);
            more(&progress, 30, 30);
            cluster.spawn(2);
            cluster.wait_ready(2);
        }
        more(&progress, 30, 30);
        load.settle();
    });
    all_writable(&cluster, &[1, 2, 3], &keys);
    cluster.connect(2).mset_all(&keys, "the end").unwrap();
    let values = cluster.connect(1).mget(&keys).unwrap();
    assert!(values.iter().all(|value| value.as_deref() == Some("the end")), "{values:?}");
}

/// The pause is shorter than any timeout: what was sent meanwhile is late, not refused.
#[test]
fn a_short_pause_is_only_a_delay() {
    let mut cluster = Cluster::start();
    let [a, b, c] = [1, 2, 3].map(|id| cluster.key_on(id, "delay"));
    let mut stream = dial(cluster.ports(1).client);
    for _ in 0..5 {
        cluster.pause(2);
        write!(stream, "MSET {a} 1 {b} 1 {c} 1\r\nINCR {b}\r\nGET {c}\r\n").unwrap();
        cluster.resume(2);
        expect(&mut stream, "+OK\r\n:2\r\n$1\r\n1\r\n");
    }
}

/// What a frozen coordinator had locked at healthy leaders is free once the others suspect it: long
/// before its links are given up.
#[test]
fn a_frozen_coordinator_keeps_no_keys_of_healthy_leaders() {
    const ROUNDS: usize = 4;
    const CLIENTS: usize = 8;
    let mut cluster = Cluster::start();
    let mut sooner = 0;
    for round in 0..ROUNDS {
        // The coordinator leads partitions too, but none of these keys.
        let keys = [1, 2].map(|id| cluster.key_led_by(id, &format!("frozen{round}")));
        let coordinators: Vec<Client> = (0..CLIENTS).map(|_| cluster.connect(3)).collect();
        let lost = |cluster: &Cluster| -> usize {
            [1, 2].iter().map(|id| cluster.log(*id).matches("lost node 3").count()).sum()
        };
        let before = lost(&cluster);
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let at_end = StopAtEnd(&stop);
            for mut client in coordinators {
                let (keys, stop, done) = (&keys, &stop, &done);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) && client.mset_all(keys, "x").is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            eventually("MSETs are under way", PATIENCE, || {
                (done.load(Ordering::Relaxed) > 20 * CLIENTS).then_some(())
            });
            cluster.pause(3);
            all_writable(&cluster, &[1, 2], &keys);
            sooner += usize::from(lost(&cluster) == before);
            drop(at_end);
            cluster.resume(3);
        });
        cluster.wait_ready(3);
    }
    assert!(sooner > 0, "the keys of {ROUNDS} rounds were free only after the link was given up");
}
