//! Multi-key commands over nodes: seen whole or not at all, and in the order they were sent.

use crate::harness::{Cluster, PATIENCE, StopAtEnd, eventually};
use crate::load::{Load, Progress};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn an_mset_is_never_seen_in_part() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("whole", 2);
    let progress = Progress::default();
    let load = Load { progress: &progress, written: &keys, read: &keys, mortal: None };
    std::thread::scope(|scope| {
        let load = load.start(scope, &cluster);
        eventually("writes and checks", PATIENCE, || {
            let (writes, checks) = progress.count();
            (writes >= 300 && checks >= 300 || load.has_failed()).then_some(())
        });
        load.settle();
    });
    let (writes, checks) = progress.count();
    assert!(writes >= 300 && checks >= 300, "{writes} writes, {checks} checks");
}

/// Money moves between two accounts on different nodes, one writer a pair; whoever looks finds
/// the same sum, in every pair and in all of them together.
#[test]
fn the_sum_of_all_accounts_never_changes() {
    const PAIRS: usize = 4;
    const START: i64 = 100;
    const TRANSFERS: u64 = 150;

    let cluster = Cluster::start();
    let accounts = cluster.keys_everywhere("account", PAIRS.next_multiple_of(3));
    // Neighbours are led by different nodes.
    let pairs: Vec<&[String]> = accounts.chunks_exact(2).take(PAIRS).collect();
    let all: Vec<&String> = pairs.iter().copied().flatten().collect();
    cluster.connect(1).mset_all(&all, &START.to_string()).unwrap();

    let (done, checks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        let writers: Vec<_> = (0u16..)
            .zip(&pairs)
            .map(|(n, pair)| {
                let mut client = cluster.connect(n % 3 + 1);
                scope.spawn(move || {
                    for step in 1..=TRANSFERS {
                        let moved = (step * 7 % 90) as i64;
                        let (a, b) = (START - moved, START + moved);
                        let reply = client.say(&format!("MSET {} {a} {} {b}", pair[0], pair[1]));
                        assert_eq!(reply, "OK");
                    }
                })
            })
            .collect();
        for node in cluster.ids() {
            let mut client = cluster.connect(node);
            let (all, done, checks) = (&all, &done, &checks);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let values = client.mget(all).expect("MGET");
                    let held: Vec<i64> =
                        values.into_iter().map(|value| value.unwrap().parse().unwrap()).collect();
                    for pair in held.chunks(2) {
                        assert_eq!(pair[0] + pair[1], 2 * START, "{held:?}");
                    }
                    checks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        drop(at_end);
        assert!(results.iter().all(Result::is_ok), "a writer failed");
    });
    assert!(checks.load(Ordering::Relaxed) > 10, "readers looked on");
}

#[test]
fn of_racing_msetnx_exactly_one_wins() {
    const ROUNDS: usize = 30;
    let cluster = Cluster::start();
    let mut judge = cluster.connect(2);
    let mut clients: Vec<_> = (0u16..6).map(|n| cluster.connect(n % 3 + 1)).collect();
    for round in 0..ROUNDS {
        let keys = cluster.keys_everywhere(&format!("race:{round}"), 2);
        let replies: Vec<String> = std::thread::scope(|scope| {
            let racers: Vec<_> = clients
                .iter_mut()
                .enumerate()
                .map(|(n, client)| {
                    let keys = &keys;
                    scope.spawn(move || {
                        // Each names the keys in an order of its own, all overlap in some.
                        let mine = (0..4).map(|at| &keys[(n + at) % keys.len()]);
                        let pairs: Vec<String> = mine.map(|key| format!("{key} {n}")).collect();
                        client.say(&format!("MSETNX {}", pairs.join(" ")))
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().expect("a racer")).collect()
        });
        let winners: Vec<usize> = (0..replies.len()).filter(|n| replies[*n] == "1").collect();
        assert_eq!(winners.len(), 1, "round {round}: {replies:?}");
        assert_eq!(replies.iter().filter(|reply| *reply == "0").count(), 5, "{replies:?}");
        // All four keys are the winner's, and the two that it did not name are nobody's.
        let winner = winners[0].to_string();
        let values = judge.mget(&keys).unwrap();
        assert_eq!(values.iter().filter(|held| held.as_ref() == Some(&winner)).count(), 4);
        assert_eq!(values.iter().filter(|held| held.is_none()).count(), 2);
    }
}

#[test]
fn a_pipeline_takes_effect_and_is_answered_in_order() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("order", 2);
    let [a, b, c] = [&keys[0], &keys[1], &keys[2]];
    for node in cluster.ids() {
        let mut client = cluster.connect(node);
        let mut lines = Vec::new();
        let mut expected = Vec::new();
        for n in 0..100 {
            for (line, reply) in [
                (format!("SET {a} {n}"), "OK".to_owned()),
                (format!("INCR {b}:{node}:counter"), (2 * n + 1).to_string()),
                (format!("MSET {a} {n}! {b} {n}! {c} {n}!"), "OK".to_owned()),
                (format!("GET {a}"), format!("\"{n}!\"")),
                (format!("GET {c}"), format!("\"{n}!\"")),
                (format!("SET {c} {n}?"), "OK".to_owned()),
                (format!("MGET {c} {b} {a}"), format!("[\"{n}?\" \"{n}!\" \"{n}!\"]")),
                (format!("DEL {a} {b}"), "2".to_owned()),
                (format!("EXISTS {a} {b} {c}"), "1".to_owned()),
                (format!("ECHO {n}"), format!("\"{n}\"")),
                (format!("INCR {b}:{node}:counter"), (2 * n + 2).to_string()),
                (format!("LPUSHX {n}"), "-".to_owned()),
            ] {
                lines.push(line);
                expected.push(reply);
            }
        }
        let replies = client.pipeline(&lines);
        assert_eq!(replies.len(), lines.len());
        for ((line, reply), expected) in lines.iter().zip(&replies).zip(&expected) {
            if expected == "-" {
                assert!(reply.starts_with("-ERR"), "{line}: {reply}");
            } else {
                assert_eq!(reply, expected, "{line} at node {node}");
            }
        }
    }
}

#[test]
fn increments_through_all_nodes_add_up() {
    const EACH: usize = 400;
    let cluster = Cluster::start();
    let counters = cluster.keys_everywhere("counter", 1);
    std::thread::scope(|scope| {
        for node in cluster.ids() {
            let (cluster, counters) = (&cluster, &counters);
            scope.spawn(move || {
                let mut client = cluster.connect(node);
                for chunk in 0..EACH / 20 {
                    let lines: Vec<String> = (0..20)
                        .map(|n| format!("INCR {}", counters[(chunk + n) % counters.len()]))
                        .collect();
                    let replies = client.pipeline(&lines);
                    assert!(replies.iter().all(|reply| reply.parse::<i64>().is_ok()));
                }
            });
        }
    });
    let values = cluster.connect(3).mget(&counters).unwrap();
    let sum: usize = values.iter().flatten().map(|value| value.parse::<usize>().unwrap()).sum();
    assert_eq!(sum, 3 * EACH, "{values:?}");
}

/// Increments of a key that MSETs keep locking: none is lost and none is applied twice.
#[test]
fn increments_survive_transactions_on_their_key() {
    const EACH: i64 = 150;
    let cluster = Cluster::start();
    let counter = cluster.key_on(1, "busy");
    let others = cluster.keys_everywhere("others", 1);
    cluster.connect(1).say(&format!("SET {counter} 0"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        // Readers lock the counter together with keys elsewhere.
        let reader = {
            let (cluster, counter, others, done) = (&cluster, &counter, &others, &done);
            scope.spawn(move || {
                let mut client = cluster.connect(2);
                let keys: Vec<&String> = std::iter::once(counter).chain(others).collect();
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let values = client.mget(&keys).expect("MGET");
                    let now: i64 = values[0].as_ref().unwrap().parse().unwrap();
                    assert!(now >= last, "the counter went from {last} to {now}");
                    last = now;
                }
            })
        };
        // MSETNX over an existing key locks all and changes nothing.
        let locker = {
            let (cluster, counter, others, done) = (&cluster, &counter, &others, &done);
            scope.spawn(move || {
                let mut client = cluster.connect(3);
                let line = format!("MSETNX {counter} no {} no {} no", others[1], others[2]);
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(client.say(&line), "0");
                }
            })
        };
        let writers: Vec<_> = cluster
            .ids()
            .map(|node| {
                let mut client = cluster.connect(node);
                let line = format!("INCR {counter}");
                scope.spawn(move || {
                    for _ in 0..EACH {
                        let reply = client.say(&line);
                        assert!(reply.parse::<i64>().is_ok(), "{reply}");
                    }
                })
            })
            .collect();
        let writers: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        drop(at_end);
        assert!(writers.iter().all(Result::is_ok) && reader.join().is_ok());
        assert!(locker.join().is_ok());
    });
    let sum = cluster.connect(2).say(&format!("GET {counter}"));
    assert_eq!(sum, format!("\"{}\"", 3 * EACH));
}
