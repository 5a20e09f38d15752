//! Tables of several storage classes in one cluster: who finds what where, what crosses classes, and
//! what is synced when.

use crate::count::{Said, said};
use crate::harness::{Client, Cluster, PATIENCE, StopAtEnd, eventually};
use std::sync::atomic::{AtomicBool, Ordering};

/// Table 0 is kept by three nodes and synced, as all that are not named; table 1 is a cache; tables
/// 2 and 3 are synced within the second.
const CLASSES: &str = "tables:
  - { index: 1, name: cache, replicas: 1, durability: none }
  - { index: 2, durability: interval }
  - { index: 3, durability: interval }
";

fn start() -> Cluster {
    let cluster = Cluster::start_with(CLASSES);
    cluster.ids().for_each(|id| wait_led(&cluster, id));
    cluster
}

/// Waits until every partition of every class answers a node's questions.
#[track_caller]
fn wait_led(cluster: &Cluster, id: u16) {
    for table in 0..=3 {
        let mut client = on(cluster, id, table);
        eventually(&format!("table {table} is led"), PATIENCE, || {
            client.say("DBSIZE").parse::<u64>().ok()
        });
    }
}

/// A connection to a node that works on a table.
#[track_caller]
fn on(cluster: &Cluster, id: u16, table: u8) -> Client {
    let mut client = cluster.connect(id);
    assert_eq!(client.say(&format!("SELECT {table}")), "OK");
    client
}

fn words(reply: &str) -> Vec<String> {
    let mut words: Vec<String> = reply.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    words.sort();
    words
}

#[test]
fn every_table_is_found_where_it_lies() {
    let cluster = start();
    let keys = cluster.keys_everywhere("found", 2);
    for table in 0..=3 {
        let mut client = on(&cluster, 1, table);
        client.mset_all(&keys, &format!("of-{table}")).expect("MSET");
        assert_eq!(client.say("SET own x"), "OK");
    }
    for id in cluster.ids() {
        for table in 0..=3 {
            let mut client = on(&cluster, id, table);
            let value = Some(format!("of-{table}"));
            assert!(client.mget(&keys).expect("MGET").iter().all(|held| *held == value));
            assert_eq!(client.say(&format!("GET {}", keys[1])), format!("\"of-{table}\""));
            assert_eq!(client.say("DBSIZE"), "7");
            let mut all = keys.clone();
            all.push("own".to_owned());
            all.sort();
            assert_eq!(words(&client.say("KEYS *")), all);
            let (mut cursor, mut scanned) = ("0".to_owned(), Vec::new());
            loop {
                let page = client.say(&format!("SCAN {cursor} COUNT 100"));
                let mut texts = page.split('"').skip(1).step_by(2).map(str::to_owned);
                cursor = texts.next().expect("a cursor");
                scanned.extend(texts);
                if cursor == "0" {
                    break;
                }
            }
            scanned.sort();
            assert_eq!(scanned, all, "node {id}, table {table}");
            assert!(all.contains(&words(&client.say("RANDOMKEY"))[0]));
        }
    }
    // Each class is emptied by itself, and all of them together.
    let mut cache = on(&cluster, 2, 1);
    assert_eq!(cache.say("FLUSHDB"), "OK");
    assert_eq!((cache.say("DBSIZE"), on(&cluster, 3, 2).say("DBSIZE")), ("0".into(), "7".into()));
    assert_eq!(cache.say("FLUSHALL"), "OK");
    for table in 0..=3 {
        assert_eq!(on(&cluster, 3, table).say("DBSIZE"), "0");
    }
    cluster.wait_at_rest();
}

#[test]
fn keys_move_between_classes_or_it_is_said_why_not() {
    let cluster = start();
    let mut client = cluster.connect(1);
    let key = cluster.key_on(3, "moved");
    assert_eq!(client.say(&format!("SET {key} 1 EX 1000")), "OK");
    assert_eq!(client.say(&format!("MOVE {key} 1")), "1");
    assert_eq!(client.say(&format!("EXISTS {key}")), "0");
    let mut cache = on(&cluster, 2, 1);
    assert_eq!(cache.say(&format!("GET {key}")), "\"1\"");
    assert_ne!(cache.say(&format!("TTL {key}")), "-1");
    assert_eq!(cache.say(&format!("COPY {key} {key} DB 2")), "1");
    assert_eq!(cache.say(&format!("COPY {key} {key} DB 2")), "0");
    let mut interval = on(&cluster, 3, 2);
    assert_eq!(interval.say(&format!("GET {key}")), "\"1\"");
    // Tables of one class change places, those of two do not.
    assert_eq!(interval.say("SWAPDB 2 3"), "OK");
    assert_eq!(interval.say("DBSIZE"), "0");
    assert_eq!(on(&cluster, 1, 3).say(&format!("GET {key}")), "\"1\"");
    // Whoever wrote to a table that is not synced cannot be sure of any disk.
    assert_eq!(client.say("WAITAOF 0 1 0"), "[0 0]");
    let refused = client.say("SWAPDB 0 2");
    assert!(refused.starts_with("-ERR") && refused.contains("storage classes"), "{refused}");
    // A transaction may touch all of them, and watch one while it changes another.
    assert_eq!(cache.say(&format!("WATCH {key}")), "OK");
    for line in ["MULTI", "SELECT 0", &format!("INCR {key}"), "SELECT 3", &format!("INCR {key}")] {
        let reply = cache.say(line);
        assert!(["OK", "QUEUED"].contains(&reply.as_str()), "{line}: {reply}");
    }
    assert_eq!(on(&cluster, 3, 1).say(&format!("SET {key} 5")), "OK");
    assert_eq!(cache.say("EXEC"), "nil");
    assert_eq!(client.say(&format!("GET {key}")), "nil");
    cluster.wait_at_rest();
}

/// Three keys of two synced partitions and a cache are set to one number by each transaction, while
/// the node of the cache's partition is killed and started again and again. The cache may forget;
/// the others agree, lose nothing, and nothing is left open.
#[test]
fn a_cache_node_restarted_amid_mixed_transactions_leaves_nothing_behind() {
    const RESTARTS: usize = 3;
    let mut cluster = start();
    let keys: Vec<String> = (1..=3).map(|id| cluster.key_on(id, "mixed")).collect();
    let stop = AtomicBool::new(false);
    let ports: Vec<u16> = cluster.ids().map(|id| cluster.ports(id).client).collect();
    let write = |client: &mut Client, n: u64| -> Said {
        let [a, b, cached] = &keys[..] else { panic!("three keys") };
        for line in [
            "SELECT 0".to_owned(),
            "MULTI".to_owned(),
            format!("SET {a} {n}"),
            format!("SET {b} {n}"),
            "SELECT 1".to_owned(),
            format!("SET {cached} {n}"),
        ] {
            let reply = client.say(&line);
            if !["OK", "QUEUED"].contains(&reply.as_str()) {
                client.say("DISCARD");
                return Said::Refused;
            }
        }
        said("EXEC", client.ask(&["EXEC"]))
    };
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&stop);
        let writer = scope.spawn(|| {
            let mut client = Client::connect(ports[0], crate::harness::Protocol::Resp2).unwrap();
            let (mut n, mut done, mut unknown) = (0, 0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                match write(&mut client, n) {
                    Said::Done(_) => (done, unknown) = (n, Vec::new()),
                    Said::Refused => {}
                    Said::Unknown => unknown.push(n),
                }
            }
            (done, unknown)
        });
        let mut reader = cluster.connect(2);
        for _ in 0..RESTARTS {
            let before = reader.say(&format!("GET {}", keys[0]));
            eventually("the writer goes on", PATIENCE, || {
                (reader.say(&format!("GET {}", keys[0])) != before).then_some(())
            });
            cluster.kill(3);
            // Whoever looks while the cache is away or empty sees the others agree.
            for _ in 0..20 {
                if let Ok(held) = reader.mget(&keys[..2]) {
                    assert_eq!(held[0], held[1]);
                }
            }
            cluster.spawn(3);
            cluster.wait_ready(3);
            wait_led(&cluster, 3);
        }
        drop(at_end);
        let (done, unknown) = writer.join().expect("the writer");
        assert!(done > 0, "nothing was ever acknowledged");
        let held = reader.mget(&keys[..2]).expect("MGET");
        assert_eq!(held[0], held[1]);
        let n: u64 = held[0].as_ref().expect("a value").parse().expect("a number");
        assert!(
            n == done || unknown.contains(&n),
            "{n}, where {done} was acknowledged, {unknown:?} unknown"
        );
        let cached = on(&cluster, 1, 1).say(&format!("GET {}", keys[2]));
        assert!(cached == "nil" || cached == format!("\"{n}\""), "{cached}, not {n}");
        assert!(matches!(write(&mut cluster.connect(3), n + 1), Said::Done(_)));
    });
    cluster.wait_at_rest();
}

/// Syncs of all nodes' logs so far.
fn syncs(cluster: &Cluster) -> u64 {
    let of =
        |id| eventually("a status", PATIENCE, || cluster.status(id)?["now"]["log_syncs"].as_u64());
    cluster.ids().map(of).sum()
}

#[test]
fn interval_writes_wait_for_no_sync_unless_a_transaction_needs_it() {
    const WRITES: u64 = 300;
    let cluster = start();
    let during = |work: &mut dyn FnMut()| {
        let before = syncs(&cluster);
        work();
        syncs(&cluster) - before
    };
    let mut synced = cluster.connect(1);
    let mut interval = on(&cluster, 1, 2);
    let key = cluster.key_on(1, "syncs");
    let other = cluster.key_on(2, "syncs");
    let relaxed = during(&mut || {
        for n in 0..WRITES {
            assert_eq!(interval.say(&format!("SET {key} {n}")), "OK");
        }
    });
    let transactions = during(&mut || {
        for n in 0..WRITES / 3 {
            assert_eq!(interval.say(&format!("MSET {key} {n} {other} {n}")), "OK");
        }
    });
    let strict = during(&mut || {
        for n in 0..WRITES {
            assert_eq!(synced.say(&format!("SET {key} {n}")), "OK");
        }
    });
    let mixed = during(&mut || {
        for n in 0..WRITES / 3 {
            for line in ["MULTI", &format!("SET {key} {n}"), "SELECT 0", &format!("SET {key} {n}")]
            {
                assert!(!interval.say(line).starts_with('-'), "{line}");
            }
            assert!(interval.say("EXEC").contains("OK"));
            assert_eq!(interval.say("SELECT 2"), "OK");
        }
    });
    println!(
        "syncs: {relaxed} of {WRITES} interval writes, {transactions} of {} interval \
              transactions, {strict} of {WRITES} synced writes, {mixed} of {} mixed transactions",
        WRITES / 3,
        WRITES / 3
    );
    // At least the leader and one follower.
    assert!(strict >= 2 * WRITES, "{strict}");
    assert!(relaxed < WRITES / 2, "{relaxed}");
    assert!(transactions < WRITES / 2, "{transactions}");
    // An intent and a decision in each class, each on two nodes, some of them together.
    assert!(mixed >= 2 * WRITES / 3, "{mixed}");
    // What was written last is synced all the same.
    let before = syncs(&cluster);
    assert_eq!(interval.say(&format!("SET {key} last")), "OK");
    eventually("a sync within the second, or two", PATIENCE, || {
        (syncs(&cluster) >= before + 2).then_some(())
    });
}
