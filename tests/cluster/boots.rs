//! The machine goes down under a node: what was acknowledged before it was synced may be gone from
//! there, and the node has to know it.
//!
//! A process cannot take its machine along. So the folder of a node that was killed is put back to
//! what it was at a moment before, as if nothing after that had reached the disk, and says that it
//! was used in another boot of the machine.

use crate::harness::{Client, Cluster, PARTITIONS, PATIENCE, eventually};
use std::fs;
use std::path::{Path, PathBuf};

/// Table 0 is synced; table 2 acknowledges first.
const TABLES: &str =
    "limits: { failover_wait: 300ms }\ntables:\n  - { index: 2, durability: interval }\n";

/// The keys written.
const KEYS: usize = 120;

fn on_table(cluster: &Cluster, id: u16, table: u8) -> Client {
    let mut client = cluster.connect(id);
    assert_eq!(client.say(&format!("SELECT {table}")), "OK");
    client
}

/// Waits until every partition of the table answers the node's questions.
fn wait_led(cluster: &Cluster, id: u16, table: u8) {
    let mut client = on_table(cluster, id, table);
    eventually("every partition is led", PATIENCE, || client.say("DBSIZE").parse::<u64>().ok());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => assert!(fs::copy(&path, &target).is_ok(), "{path:?}"),
        }
    }
}

/// A copy of a node's folder as it is now.
fn remember(cluster: &Cluster, id: u16) -> PathBuf {
    let aside = cluster.data(id).with_extension("then");
    copy(&cluster.data(id), &aside);
    aside
}

/// The node, which does not run, was last used in another boot of the machine.
fn reboot(cluster: &Cluster, id: u16) {
    cluster.edit_identity(id, "boot", "another");
}

#[track_caller]
fn check(client: &mut Client, value: &str) {
    for key in 0..KEYS {
        assert_eq!(client.say(&format!("GET key:{key}")), format!("\"{value}\""), "key:{key}");
    }
}

#[track_caller]
fn write(client: &mut Client, value: &str) {
    for key in 0..KEYS {
        // Leaders may be on the move.
        eventually("it is acknowledged", PATIENCE, || {
            (client.say(&format!("SET key:{key} {value}")) == "OK").then_some(())
        });
    }
}

#[test]
fn what_a_machine_took_along_is_learned_again() {
    let mut cluster = Cluster::start_with(TABLES);
    cluster.ids().for_each(|id| wait_led(&cluster, id, 2));
    write(&mut on_table(&cluster, 2, 2), "old");
    cluster.kill(3);
    wait_led(&cluster, 2, 2);
    wait_led(&cluster, 2, 0);
    let then = remember(&cluster, 1);
    // Nodes 1 and 2 acknowledge it, and then 1 forgets it.
    write(&mut on_table(&cluster, 2, 2), "new");
    cluster.kill(1);
    cluster.kill(2);
    fs::remove_dir_all(cluster.data(1)).expect("the folder");
    fs::rename(then, cluster.data(1)).expect("the folder of before");
    reboot(&cluster, 1);

    cluster.spawn(1);
    cluster.spawn(3);
    cluster.wait_log(1, &["the machine went down", &format!("{PARTITIONS} partitions")]);
    // They are two of three, and still no majority for what one of them may have forgotten.
    wait_led(&cluster, 3, 0);
    assert_eq!(cluster.connect(3).say("SET synced 1"), "OK");
    let refused = on_table(&cluster, 3, 2).say("GET key:1");
    assert!(refused.starts_with("-CLUSTERDOWN"), "{refused}");

    cluster.spawn(2);
    cluster.wait_log(1, &[&format!("rejoining {PARTITIONS} partitions with new replicas")]);
    cluster.ids().for_each(|id| wait_led(&cluster, id, 2));
    cluster.ids().for_each(|id| check(&mut on_table(&cluster, id, 2), "new"));
    eventually("every group has replaced the replica", PATIENCE, || {
        let voted = |line: &&str| {
            line.contains("replicas 1.")
                && line.contains(", 2.1, 3.1 vote")
                && !line.contains("1.1,")
        };
        let replaced = |id| cluster.log(id).lines().filter(voted).count();
        cluster.ids().all(|id| replaced(id) >= usize::from(PARTITIONS)).then_some(())
    });
    // From now on it counts: with either of the others, and after a restart, by what the logs say.
    cluster.kill(2);
    wait_led(&cluster, 3, 2);
    write(&mut on_table(&cluster, 3, 2), "newer");
    cluster.kill(1);
    cluster.kill(3);
    [1, 2].into_iter().for_each(|id| cluster.spawn(id));
    [1, 2].into_iter().for_each(|id| cluster.wait_ready(id));
    wait_led(&cluster, 2, 2);
    check(&mut on_table(&cluster, 2, 2), "newer");
}

#[test]
fn a_cluster_whose_machines_all_went_down_goes_on() {
    let mut cluster = Cluster::start_with(TABLES);
    cluster.ids().for_each(|id| wait_led(&cluster, id, 2));
    write(&mut on_table(&cluster, 2, 2), "old");
    cluster.ids().for_each(|id| cluster.kill(id));
    cluster.ids().for_each(|id| reboot(&cluster, id));
    cluster.start_all();
    cluster.ids().for_each(|id| wait_led(&cluster, id, 2));
    cluster.ids().for_each(|id| check(&mut on_table(&cluster, id, 2), "old"));
    cluster.wait_log(1, &["a majority of replicas on machines that went down"]);
    // That is settled: a machine that goes down alone from now on is one of three.
    cluster.kill(2);
    reboot(&cluster, 2);
    write(&mut on_table(&cluster, 3, 2), "new");
    cluster.spawn(2);
    cluster.wait_log(2, &[&format!("rejoining {PARTITIONS} partitions with new replicas")]);
    wait_led(&cluster, 2, 2);
    check(&mut on_table(&cluster, 2, 2), "new");
}

/// A node that lost its disk is killed before it has met anybody, and has a folder by then.
#[test]
fn a_lost_disk_is_remembered_until_the_node_has_rejoined() {
    let mut cluster = Cluster::start_with(TABLES);
    write(&mut cluster.connect(1), "old");
    cluster.ids().for_each(|id| cluster.kill(id));
    fs::remove_dir_all(cluster.data(3)).expect("the disk is lost");
    cluster.spawn(3);
    cluster.wait_log(3, &["waiting for nodes 1, 2"]);
    cluster.kill(3);
    cluster.start_all();
    cluster.wait_log(3, &["rejoining with replicas of generation"]);
    cluster.ids().for_each(|id| check(&mut cluster.connect(id), "old"));
}

/// Far ahead of any clock that a test machine has: as if its clock had been set back since.
const AHEAD: u64 = 99_999_999_999_999;

/// The clocks of all nodes are behind what they were.
#[test]
fn nodes_whose_clocks_are_behind_serve() {
    let mut cluster = Cluster::start();
    for round in 0..2 {
        cluster.ids().for_each(|id| cluster.kill(id));
        if round == 0 {
            cluster.ids().for_each(|id| cluster.edit_identity(id, "life", &AHEAD.to_string()));
            // Nobody has seen them yet.
        }
        cluster.start_all();
        for id in cluster.ids() {
            let keys = cluster.keys_everywhere("clock", 2);
            cluster.connect(id).mset_all(&keys, "x").expect("a transaction over all nodes");
        }
    }
    // One alone is let in, and commits.
    cluster.kill(3);
    cluster.spawn(3);
    cluster.wait_ready(3);
    cluster.wait_led(3);
    let keys = cluster.keys_everywhere("clock", 2);
    cluster.connect(3).mset_all(&keys, "y").expect("a transaction over all nodes");
}

/// A node whose disk is lost and whose clock is behind: the others know what it was.
#[test]
fn a_lost_disk_behind_a_wrong_clock_gets_names_that_are_new() {
    let mut cluster = Cluster::start();
    write(&mut cluster.connect(1), "old");
    cluster.ids().for_each(|id| cluster.kill(id));
    let seen = format!("3={AHEAD}/4000000000");
    cluster.edit_identity(1, "seen", &format!("2=1/1 {seen}"));
    cluster.edit_identity(2, "seen", &format!("1=1/1 {seen}"));
    fs::remove_dir_all(cluster.data(3)).expect("the disk is lost");
    cluster.start_all();
    cluster.wait_log(3, &["going on as life", &(AHEAD + 1).to_string()]);
    cluster.wait_log(3, &["rejoining with replicas of generation 4000000001"]);
    let keys = cluster.keys_everywhere("clock", 2);
    cluster.connect(3).mset_all(&keys, "x").expect("a transaction over all nodes");
    cluster.ids().for_each(|id| check(&mut cluster.connect(id), "old"));
}

/// An earlier copy of a node's folder lacks what was acknowledged since.
#[test]
fn an_earlier_copy_of_a_data_directory_is_refused() {
    let mut cluster = Cluster::start();
    let then = remember(&cluster, 3);
    cluster.kill(3);
    cluster.spawn(3);
    cluster.wait_ready(3);
    cluster.wait_led(3);
    cluster.kill(3);
    fs::remove_dir_all(cluster.data(3)).expect("the folder");
    fs::rename(then, cluster.data(3)).expect("the folder of before");
    cluster.spawn(3);
    let status = cluster.process(3).wait();
    assert_eq!(status.code(), Some(1), "{status}");
    cluster.wait_log(3, &["is older than what node", "Move it away"]);
}

/// Of another number of partitions, or nodes, keys would be looked for where they are not.
#[test]
fn another_layout_over_data_is_refused() {
    let mut cluster = Cluster::start();
    write(&mut cluster.connect(1), "old");
    cluster.ids().for_each(|id| cluster.kill(id));
    let text = cluster.yaml(cluster.name(), 6);
    let other = cluster.write("other.yaml", &text);
    for id in cluster.ids() {
        cluster.spawn_with(id, &other);
        let status = cluster.process(id).wait();
        assert_eq!(status.code(), Some(2), "{status}");
        cluster.wait_log(id, &["partitions was 12 when it was made, and cluster.yaml says 6"]);
        cluster.kill(id);
    }
    cluster.start_all();
    cluster.ids().for_each(|id| check(&mut cluster.connect(id), "old"));
}

/// How a cluster is placed is what its data directories say, not what a new one would be given.
#[test]
fn a_cluster_goes_on_as_it_was_placed() {
    let mut cluster = Cluster::start();
    write(&mut cluster.connect(1), "old");
    cluster.ids().for_each(|id| cluster.kill(id));
    let identity = fs::read_to_string(cluster.data(1).join("identity")).expect("an identity");
    let placed = identity.lines().find_map(|line| line.strip_prefix("layout.placement: "));
    let placed = placed.expect("a placement");
    let moved = placed.replacen("1,2,3", "2,3,1", 1);
    assert_ne!(placed, moved);
    // Nodes that are placed differently are of no one cluster.
    cluster.edit_identity(1, "layout.placement", &moved);
    [1, 2].into_iter().for_each(|id| cluster.spawn(id));
    cluster.wait_log(1, &["refused"]);
    cluster.wait_log(2, &["refused"]);
    [1, 2].into_iter().for_each(|id| cluster.kill(id));
    [2, 3].into_iter().for_each(|id| cluster.edit_identity(id, "layout.placement", &moved));
    cluster.start_all();
    eventually("node 2 leads partition 0", PATIENCE, || {
        let leads = cluster.status(1)?["nodes"][1]["leads"].clone();
        leads.as_array()?.contains(&0.into()).then_some(())
    });
    cluster.ids().for_each(|id| check(&mut cluster.connect(id), "old"));
    // One that makes no sense is refused in words.
    cluster.kill(3);
    cluster.edit_identity(3, "layout.placement", &moved.replacen("3", "9", 1));
    cluster.spawn(3);
    assert_eq!(cluster.process(3).wait().code(), Some(2));
    cluster.wait_log(3, &["it names node 9, which cluster.yaml does not"]);
}

/// The files of a folder of a node's data, by name.
fn files(cluster: &Cluster, id: u16, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.data(id).join(folder)).expect("a folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// A log that is gone, or has lost its end, is no log that was never written to.
#[test]
fn a_log_or_a_snapshot_that_is_lost_is_noticed() {
    let mut cluster = Cluster::start();
    cluster.kill(2);
    wait_led(&cluster, 1, 0);
    write(&mut cluster.connect(1), "new");
    cluster.connect(3).ask(&["CLUSTER", "SNAPSHOT"]).expect("made");
    cluster.wait_log(3, &["snapshot of partition"]);
    [1, 3].into_iter().for_each(|id| cluster.kill(id));
    let newest = files(&cluster, 3, "log")
        .into_iter()
        .rfind(|path| path.extension().is_some_and(|extension| extension == "log"));
    let newest = newest.expect("a segment");
    let losses = [cluster.data(3).join("log"), newest, cluster.data(3).join("snapshots")];
    for lost in losses {
        let aside = cluster.data(3).with_extension("lost");
        fs::rename(&lost, &aside).expect("lost");
        cluster.spawn(3);
        let status = cluster.process(3).wait();
        assert_eq!(status.code(), Some(1), "{lost:?}: {status}");
        cluster.wait_log(3, &["missing", "move the node's data directory away"]);
        cluster.kill(3);
        if lost.is_dir() {
            fs::remove_dir_all(&lost).expect("an empty folder");
        }
        fs::rename(&aside, &lost).expect("found again");
    }
    // Nothing was made of it: with the others all is there.
    [2, 3].into_iter().for_each(|id| cluster.spawn(id));
    [2, 3].into_iter().for_each(|id| cluster.wait_ready(id));
    wait_led(&cluster, 2, 0);
    check(&mut cluster.connect(2), "new");
}

/// A snapshot that came from another node and cannot be restored has not replaced the one before.
#[test]
fn a_snapshot_that_cannot_be_restored_is_not_needed() {
    let mut cluster = Cluster::start();
    write(&mut cluster.connect(1), "old");
    cluster.connect(3).ask(&["CLUSTER", "SNAPSHOT"]).expect("made");
    eventually("snapshots are there", PATIENCE, || {
        let made = files(&cluster, 3, "snapshots").into_iter();
        let made = made.filter(|path| path.extension().is_some_and(|end| end == "snapshot"));
        (made.count() == usize::from(PARTITIONS)).then_some(())
    });
    cluster.kill(3);
    let later = cluster.data(3).join("snapshots/00000-00000000000000999999.snapshot");
    fs::write(&later, b"came from elsewhere").expect("written");
    cluster.spawn(3);
    cluster.wait_ready(3);
    cluster.wait_log(3, &["the snapshot before it is taken"]);
    wait_led(&cluster, 3, 0);
    check(&mut cluster.connect(3), "old");
    assert!(!later.exists(), "no restart meets it again");
}
