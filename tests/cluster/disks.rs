//! Disks that are lost, and lost again before their replicas have been replaced.

use crate::count::{Count, audit, counted};
use crate::harness::{Cluster, PARTITIONS, PATIENCE, eventually, run};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time for a dozen partitions to be copied on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// The generations under which a node has rejoined so far.
fn generations(cluster: &Cluster, id: u16) -> Vec<u64> {
    let log = cluster.log(id);
    let rejoined = log.lines().filter(|line| line.contains("rejoining with replicas"));
    rejoined.filter_map(|line| line.rsplit(' ').next()?.trim().parse().ok()).collect()
}

/// A node dies, its disk is lost, and it is started; it knows by then that the disk was lost.
fn lose_disk(cluster: &mut Cluster, id: u16) -> u64 {
    let before = generations(cluster, id);
    cluster.kill(id);
    fs::remove_dir_all(cluster.data(id)).expect("the disk is lost");
    // Where a generation is the second it begins in, another one begins in another second.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    eventually("a second has passed", LONG, || (before.last() != Some(&second())).then_some(()));
    cluster.spawn(id);
    eventually("the node rejoins", LONG, || {
        let known = generations(cluster, id);
        known.last().copied().filter(|_| known.len() > before.len())
    })
}

/// Whether a node has said this.
fn has_said(cluster: &Cluster, words: &str) -> bool {
    cluster.ids().any(|id| cluster.log(id).contains(words))
}

/// Waits until the node votes in every partition under its latest generation, and nobody learns.
fn wait_replaced(cluster: &Cluster, id: u16, generation: u64) {
    let replaced = format!("{id}.{generation}");
    eventually("every group has replaced the replica", LONG, || {
        let of_partition = |line: &str| {
            let (_, rest) = line.split_once("partition ")?;
            let (partition, rest) = rest.split_once(": replicas ")?;
            let (replicas, _) = rest.split_once(" vote")?;
            replicas.split(", ").any(|id| id == replaced).then(|| partition.to_owned())
        };
        let replaced = |id| {
            let log = cluster.log(id);
            log.lines().filter_map(of_partition).collect::<BTreeSet<String>>().len()
        };
        cluster.ids().all(|id| replaced(id) == usize::from(PARTITIONS)).then_some(())
    });
}

/// Two copies are untouched all the while, and that is a majority, whatever the third is at.
#[test]
fn a_disk_lost_again_and_again_leaves_every_partition_a_leader() {
    let mut cluster = Cluster::start();
    counted(&mut cluster, "disks", |cluster: &mut Cluster, count: &Count| {
        count.more(200);
        // It is lost again when nothing, something or much of its replacement is done.
        let mut generation = 0;
        for told in ["", "begins to learn", "vote", "vote"] {
            let lost = lose_disk(cluster, 3);
            if !told.is_empty() {
                let words = format!("3.{lost} {told}");
                eventually(&words, LONG, || has_said(cluster, &words).then_some(()));
            }
            generation = lose_disk(cluster, 3);
            count.more(100);
        }
        wait_replaced(cluster, 3, generation);
        cluster.ids().for_each(|id| cluster.wait_led(id));
        // What came last is a majority with any other, also after all have been started again.
        cluster.kill(1);
        count.more(100);
        cluster.kill(2);
        cluster.kill(3);
        cluster.start_all();
        count.more(100);
    });
}

/// The disks of two of three nodes are lost for good: an operator lets the third go on alone.
#[test]
fn a_lost_majority_is_recovered_from_one_copy() {
    let mut cluster = Cluster::start();
    let accounts = counted(&mut cluster, "alone", |_: &mut Cluster, count: &Count| count.more(300));
    let file = cluster.write("probe", "").with_file_name("cluster.yaml");
    let file = file.to_str().expect("UTF-8").to_owned();
    let recover = |more: &[&str]| {
        let args = ["--role", "admin", "recover", "--config", &file, "--node", "1"];
        run(&[&args[..], more].concat())
    };
    // All three have all of it, once they stand still.
    eventually("the followers have caught up", PATIENCE, || {
        let status = cluster.status(1)?;
        let replicas = status["replicas"].as_array()?;
        let lags = |one: &serde_json::Value| one["lag"].as_u64() != Some(0);
        let behind = replicas.iter().flat_map(|one| one["followers"].as_array()).flatten();
        (behind.filter(|one| lags(one)).count() == 0).then_some(())
    });
    let (code, _, error) = recover(&["--lost", "2,3"]);
    assert!(code == Some(1) && error.contains("in use by another process"), "{code:?} {error}");
    cluster.ids().for_each(|id| cluster.kill(id));
    [2, 3].iter().for_each(|id| fs::remove_dir_all(cluster.data(*id)).expect("a lost disk"));

    let (code, told, _) = recover(&["--lost", "2"]);
    assert!(code == Some(0) && told.contains("nothing to do"), "{code:?} {told}");
    let (code, told, error) = recover(&["--lost", "2,3"]);
    assert!(code == Some(1) && error.contains("--accept-loss"), "{code:?} {error}");
    assert_eq!(told.matches("vote no more").count(), usize::from(PARTITIONS), "{told}");
    assert!(told.contains("lost for good"), "{told}");
    let (code, told, error) = recover(&["--lost", "2,3", "--accept-loss"]);
    assert!(code == Some(0) && told.contains("goes on alone"), "{code:?} {told} {error}");
    let (code, told, _) = recover(&["--lost", "2,3", "--accept-loss"]);
    assert!(code == Some(0) && told.contains("nothing to do"), "{code:?} {told}");

    // It serves by itself, and the others are its copies again.
    cluster.spawn(1);
    cluster.wait_ready(1);
    cluster.wait_led(1);
    [2, 3].into_iter().for_each(|id| cluster.spawn(id));
    for id in [2, 3] {
        let generation =
            eventually("the node rejoins", LONG, || generations(&cluster, id).last().copied());
        wait_replaced(&cluster, id, generation);
    }
    cluster.ids().for_each(|id| cluster.wait_led(id));
    audit(&cluster, &accounts);
    cluster.kill(1);
    counted_by_survivors(&cluster);
}

/// Nodes 2 and 3 take a write for every partition.
fn counted_by_survivors(cluster: &Cluster) {
    let keys = cluster.keys_everywhere("after", 8);
    let mut client = cluster.connect(2);
    eventually("all partitions take writes", LONG, || client.mset_all(&keys, "after").ok());
    let found = cluster.connect(3).mget(&keys).expect("MGET");
    assert!(found.iter().all(|value| value.as_deref() == Some("after")), "{found:?}");
}
