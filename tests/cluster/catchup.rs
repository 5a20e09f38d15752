//! Snapshots: what is left of a log that grew long, and how a node that was away catches up.

use crate::harness::{Client, Cluster, PARTITIONS, PATIENCE, eventually};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for what writes and reads many megabytes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// What a node's log may take before snapshots are made: as little as the file allows.
const SNAPSHOT_AFTER: u64 = 3 << 20;

/// The length of the values written.
const VALUE: usize = 2_000;

/// Three nodes whose partitions have three synced copies, and whose logs stay short.
fn replicated() -> Cluster {
    let cluster = Cluster::new(3);
    let text = cluster.yaml(cluster.name(), PARTITIONS);
    let text: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("replication:"))
        .map(|line| match line.starts_with("defaults:") {
            true => "defaults: { mode: strong, replicas: 3, durability: sync }".into(),
            false => line.to_owned(),
        })
        .collect();
    let text =
        text.join("\n") + "\nreplication: { segment: 1MiB, snapshot_after: 3MiB, retain: 1MiB }\n";
    cluster.write("cluster.yaml", &text);
    cluster
}

fn start(cluster: &mut Cluster, ids: impl IntoIterator<Item = u16>) {
    let ids: Vec<u16> = ids.into_iter().collect();
    ids.iter().for_each(|id| cluster.spawn(*id));
    ids.iter().for_each(|id| cluster.wait_ready(*id));
}

/// Where a node keeps its data.
fn data(cluster: &Cluster, id: u16) -> PathBuf {
    // Writing a file is how the harness tells its folder.
    let probe = cluster.write("probe", "");
    let folder = probe.parent().expect("a folder").join("data");
    let entries = fs::read_dir(&folder).expect("the data directory");
    let mut all = entries.map(|entry| entry.expect("an entry").path());
    let own = |path: &PathBuf| {
        let identity = fs::read_to_string(path.join("identity")).unwrap_or_default();
        identity.lines().any(|line| line == format!("node: {id}"))
    };
    all.find(own).expect("a folder of the node")
}

/// The files in a folder, with their lengths.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(folder).expect("a folder");
    // A file that is renamed meanwhile is not there any more.
    let lengths = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.path(), entry.metadata().ok()?.len()))
    });
    lengths.collect()
}

fn log_bytes(cluster: &Cluster, id: u16) -> u64 {
    files(&data(cluster, id).join("log")).iter().map(|(_, length)| length).sum()
}

fn snapshots(cluster: &Cluster, id: u16) -> Vec<PathBuf> {
    let all = files(&data(cluster, id).join("snapshots")).into_iter();
    all.map(|(path, _)| path).filter(|path| path.extension() == Some("snapshot".as_ref())).collect()
}

fn value(number: usize, round: usize) -> String {
    format!("{number}:{round}:").repeat(VALUE / 4)[..VALUE].to_owned()
}

/// Writes `keys` keys, all acknowledged before it returns.
fn write(client: &mut Client, keys: usize, round: usize) {
    let numbers: Vec<usize> = (0..keys).collect();
    for numbers in numbers.chunks(50) {
        let set = |number: &usize| format!("SET key:{number} {}", value(*number, round));
        let mut waiting: Vec<String> = numbers.iter().map(set).collect();
        eventually("writes are acknowledged", LONG, || {
            let replies = client.pipeline(&waiting);
            let mut refused = replies.iter().map(|reply| reply != "OK");
            waiting.retain(|_| refused.next() == Some(true));
            waiting.is_empty().then_some(())
        });
    }
}

/// Every key has the value of this round, read at this node.
fn check(client: &mut Client, keys: usize, round: usize) {
    let numbers: Vec<usize> = (0..keys).collect();
    for numbers in numbers.chunks(50) {
        let words: Vec<String> = numbers.iter().map(|number| format!("key:{number}")).collect();
        let values = eventually("reads are answered", LONG, || client.mget(&words).ok());
        for (number, found) in numbers.iter().zip(values) {
            assert!(found.as_deref() == Some(&value(*number, round)), "key:{number}: {found:?}");
        }
    }
}

#[test]
fn writing_for_long_leaves_a_short_log_and_a_restart_finds_everything() {
    const KEYS: usize = 600;
    const ROUNDS: usize = 25;
    let mut cluster = replicated();
    start(&mut cluster, 1..=3);
    let mut client = cluster.connect(1);
    for round in 0..ROUNDS {
        write(&mut client, KEYS, round);
    }
    let written = (KEYS * ROUNDS * VALUE) as u64;
    assert!(written > 8 * SNAPSHOT_AFTER);
    for id in cluster.ids() {
        eventually("the log is collected", LONG, || {
            (log_bytes(&cluster, id) < 3 * SNAPSHOT_AFTER).then_some(())
        });
        assert!(!snapshots(&cluster, id).is_empty());
        assert!(snapshots(&cluster, id).len() <= 2 * usize::from(PARTITIONS));
    }
    // All of it at once, in the middle of whatever it does.
    cluster.ids().for_each(|id| cluster.kill(id));
    start(&mut cluster, 1..=3);
    for id in cluster.ids() {
        cluster.wait_log(id, &["recovered", "items of 12 partitions"]);
        check(&mut cluster.connect(id), KEYS, ROUNDS - 1);
    }
}

#[test]
fn a_node_that_was_away_for_long_catches_up_by_snapshot() {
    const KEYS: usize = 600;
    let mut cluster = replicated();
    start(&mut cluster, 1..=3);
    let mut client = cluster.connect(1);
    write(&mut client, KEYS, 0);
    cluster.kill(3);
    for round in 1..12 {
        write(&mut client, KEYS, round);
    }
    start(&mut cluster, [3]);
    cluster.wait_log(3, &["goes on from a snapshot"]);
    check(&mut cluster.connect(3), KEYS, 11);
    // What it has now is enough for a majority with either of the others.
    eventually("the last word has come", PATIENCE, || {
        let log = cluster.log(3);
        (log.matches("receiving partition").count() <= log.matches("goes on from").count())
            .then_some(())
    });
    cluster.kill(1);
    let mut client = cluster.connect(3);
    check(&mut client, KEYS, 11);
    write(&mut client, KEYS, 12);
    start(&mut cluster, [1]);
    cluster.kill(2);
    check(&mut cluster.connect(1), KEYS, 12);
}

#[test]
fn a_node_that_dies_while_it_makes_snapshots_loses_nothing() {
    const KEYS: usize = 400;
    const KILLS: usize = 4;
    let mut cluster = replicated();
    start(&mut cluster, 1..=3);
    let mut client = cluster.connect(1);
    let mut round = 0;
    for kill in 1..=KILLS {
        // Each of its snapshots is told of; it dies at the next one or close to it.
        let told = |cluster: &Cluster| cluster.log(2).matches("snapshot of partition").count();
        let before = told(&cluster);
        while told(&cluster) < before + kill {
            write(&mut client, KEYS, round);
            round += 1;
        }
        cluster.kill(2);
        write(&mut client, KEYS, round);
        start(&mut cluster, [2]);
        check(&mut cluster.connect(2), KEYS, round);
        round += 1;
    }
    let unfinished = files(&data(&cluster, 2).join("snapshots")).into_iter();
    let unfinished = unfinished.filter(|(path, _)| path.extension() == Some("part".as_ref()));
    assert!(unfinished.count() <= 1, "what was not finished was removed");
    // Its copies are whole: with any one other node it has to serve everything.
    cluster.kill(1);
    check(&mut cluster.connect(2), KEYS, round - 1);
}

#[test]
fn a_node_that_dies_while_it_receives_snapshots_catches_up_later() {
    const KEYS: usize = 600;
    let mut cluster = replicated();
    start(&mut cluster, 1..=3);
    let mut client = cluster.connect(1);
    write(&mut client, KEYS, 0);
    let mut round = 0;
    for _ in 0..3 {
        cluster.kill(3);
        for _ in 0..8 {
            round += 1;
            write(&mut client, KEYS, round);
        }
        let receiving = |cluster: &Cluster| cluster.log(3).matches("receiving partition").count();
        let before = receiving(&cluster);
        cluster.spawn(3);
        eventually("a snapshot comes", LONG, || (receiving(&cluster) > before).then_some(()));
    }
    cluster.kill(3);
    start(&mut cluster, [3]);
    cluster.kill(2);
    let mut client = cluster.connect(3);
    check(&mut client, KEYS, round);
    write(&mut client, KEYS, round + 1);
    check(&mut cluster.connect(1), KEYS, round + 1);
}

#[test]
fn a_node_that_lost_its_disk_rejoins_under_another_name() {
    const KEYS: usize = 600;
    let mut cluster = replicated();
    start(&mut cluster, 1..=3);
    let mut client = cluster.connect(1);
    // Long enough that some logs begin behind a snapshot, and some do not.
    (0..4).for_each(|round| write(&mut client, KEYS, round));
    let disk = data(&cluster, 3);
    cluster.kill(3);
    write(&mut client, KEYS, 4);
    fs::remove_dir_all(&disk).expect("the disk is lost");
    start(&mut cluster, [3]);
    let line = cluster.wait_log(3, &["rejoining with replicas of generation"]);
    let generation = line.rsplit(' ').next().expect("a number").to_owned();
    eventually("every group has replaced the replica", LONG, || {
        // Each node has to know it: who does not would ask the lost one for its vote.
        let vote = format!("replicas 1.1, 2.1, 3.{generation} vote");
        let replaced = |id| cluster.log(id).matches(&vote).count();
        cluster.ids().all(|id| replaced(id) >= usize::from(PARTITIONS)).then_some(())
    });
    // It makes a majority with either of the others, now and after a restart.
    cluster.kill(1);
    check(&mut cluster.connect(3), KEYS, 4);
    write(&mut cluster.connect(3), KEYS, 5);
    cluster.kill(2);
    cluster.kill(3);
    start(&mut cluster, 1..=3);
    check(&mut cluster.connect(2), KEYS, 5);
    cluster.kill(2);
    check(&mut cluster.connect(3), KEYS, 5);
    write(&mut cluster.connect(1), KEYS, 6);
    let rejoined = cluster.log(3).matches("rejoining").count();
    assert_eq!(rejoined, 1, "once is enough");
}
