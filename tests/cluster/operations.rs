//! What an operator sees and does: `--role admin`, `/status`, `INFO`, `CLUSTER`.

use crate::harness::{Cluster, PATIENCE, eventually, run};
use serde_json::Value as Json;
use std::path::Path;

/// Runs the admin role on a cluster's file.
fn admin(cluster: &Cluster, words: &[&str]) -> (Option<i32>, String, String) {
    let file = cluster.write("admin-reads.txt", "").with_file_name("cluster.yaml");
    let file = file.to_str().expect("a path in UTF-8").to_owned();
    run(&[&["--role", "admin", "--config", &file], words].concat())
}

#[track_caller]
fn done(cluster: &Cluster, words: &[&str]) -> String {
    let (code, out, err) = admin(cluster, words);
    assert_eq!(code, Some(0), "{words:?}: {out}{err}");
    out
}

/// A partition as its leader on `node` reports it.
fn led(cluster: &Cluster, node: u16, partition: u16) -> Option<Json> {
    let status = cluster.status(node)?;
    let mut replicas = status["replicas"].as_array()?.iter();
    replicas.find(|one| one["id"] == partition && one["role"] == "leader").cloned()
}

#[test]
fn the_status_tells_who_leads_and_who_lags() {
    let mut cluster = Cluster::start();
    let mut client = cluster.connect(1);
    (0..100).for_each(|n| assert_eq!(client.say(&format!("SET key{n} {n}")), "OK"));

    let out = done(&cluster, &["status"]);
    assert!(out.contains("3 nodes, 12 partitions"), "{out}");
    assert!(out.contains("3 replicas, sync"), "{out}");
    let json: Json = serde_json::from_str(&done(&cluster, &["status", "--json"])).expect("JSON");
    let nodes = json["nodes"].as_array().expect("nodes");
    for node in nodes {
        let status = &node["status"];
        let replicas = status["replicas"].as_array().expect("replicas");
        assert_eq!(replicas.len(), 12);
        assert!(status["log"]["syncs"].as_u64() > Some(0), "{}", status["log"]);
        for one in replicas {
            assert_eq!(one["voters"].as_array().map(Vec::len), Some(3), "{one}");
            let followers = if one["role"] == "leader" { 2 } else { 0 };
            assert_eq!(one["followers"].as_array().map(Vec::len), Some(followers), "{one}");
        }
        assert!(!status["moves"].as_array().expect("moves").is_empty());
    }

    cluster.kill(3);
    eventually("the status tells of the lost node", PATIENCE, || {
        let (code, out, err) = admin(&cluster, &["status"]);
        (code == Some(1) && out.contains("silent") && err.contains("no answer from nodes 3"))
            .then_some(())
    });
}

#[test]
fn a_leader_moves_when_it_is_told_to_and_stays() {
    let cluster = Cluster::start();
    let from = (1..=3).find(|node| led(&cluster, *node, 0).is_some()).expect("a leader");
    let to = from % 3 + 1;
    let out = done(&cluster, &["transfer-leader", "0", &to.to_string()]);
    assert!(out.starts_with(&format!("node {to} leads partition 0")), "{out}");
    // A wish that every node knows: nobody gives it back.
    for node in cluster.ids() {
        let status = cluster.status(node).expect("a status");
        let replicas = status["replicas"].as_array().expect("replicas");
        assert_eq!(replicas[0]["preferred"], to, "at node {node}");
    }
    assert!(led(&cluster, to, 0).is_some());

    let mut client = cluster.connect(to);
    let refused = client.say("CLUSTER TRANSFER 0 9");
    assert_eq!(refused, "-ERR there is no node 9");
    let refused = client.say("CLUSTER TRANSFER x 1");
    assert_eq!(refused, "-ERR value is not an integer or out of range");
    let refused = client.say("CLUSTER TRANSFER 12 1");
    assert_eq!(refused, "-ERR there is no partition 12: the last is 11");
    for (partition, node, why) in [
        ("0", "9", "there is no node 9: the nodes are 1, 2, 3"),
        ("12", "1", "there is no partition 12: the last is 11"),
        ("65535", "1", "there is no partition 65535: the last is 11"),
    ] {
        let (code, _, err) = admin(&cluster, &["transfer-leader", partition, node]);
        assert_eq!((code, err), (Some(1), format!("quorate: {why}\n")));
    }
    let (code, _, err) = run(&["--role", "admin", "--port", "65500", "status"]);
    assert!(code == Some(1) && err.contains("--port 65500"), "{err}");
}

#[test]
fn clients_are_told_of_leaders_followers_and_what_is_in_force() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    eventually("the facts are there", PATIENCE, || {
        let info = client.say("INFO persistence");
        info.contains("quorate_log_syncs:").then_some(())
    });
    let info = client.say("INFO replication");
    assert!(info.contains("quorate_replicas:3"), "{info}");
    assert!(info.contains("quorate_partitions_held:12"), "{info}");
    let info = client.say("INFO persistence");
    assert!(info.contains("aof_enabled:1") && info.contains("quorate_durability:sync"), "{info}");
    assert_eq!(client.say("WAIT 1 0"), "1");
    assert_eq!(client.say("WAIT 2 100"), "1");
    assert_eq!(client.say("WAITAOF 1 1 0"), "[1 1]");
    for (words, error) in [
        ("x 0 0", "ERR value is not an integer or out of range"),
        ("2 0 0", "ERR value is out of range, value must between 0 and 1"),
        ("0 -1 0", "ERR value is out of range, must be positive"),
        ("0 0 -1", "ERR timeout is negative"),
    ] {
        assert_eq!(client.say(&format!("WAITAOF {words}")), format!("-{error}"));
    }

    let slots = client.say("CLUSTER SLOTS");
    for node in cluster.ids() {
        let port = cluster.ports(node).client.to_string();
        assert_eq!(slots.matches(&port).count(), 3, "node {node} in every run: {slots}");
    }
    let shards = client.say("CLUSTER SHARDS");
    let roles = ["\"master\"", "\"replica\""].map(|role| shards.matches(role).count());
    assert_eq!(roles, [3, 6], "{shards}");
}

fn fill(cluster: &Cluster) {
    let mut client = cluster.connect(1);
    for n in 0..300 {
        assert_eq!(client.say(&format!("SET key{n} value{n}")), "OK");
    }
    assert_eq!(client.say("SET volatile x PX 100000000"), "OK");
    assert_eq!(client.say("SELECT 3"), "OK");
    assert_eq!(client.say("SET third y"), "OK");
}

fn check(cluster: &Cluster) {
    let mut client = cluster.connect(1);
    assert_eq!(client.say("DBSIZE"), "301");
    for n in 0..300 {
        assert_eq!(client.say(&format!("GET key{n}")), format!("\"value{n}\""));
    }
    let left: u64 = client.say("PTTL volatile").parse().expect("milliseconds");
    assert!((90_000_000..=100_000_000).contains(&left), "{left}");
    assert_eq!(client.say("SELECT 3"), "OK");
    assert_eq!((client.say("GET third"), client.say("DBSIZE")), ("\"y\"".into(), "1".into()));
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_backup_fits_a_cluster_of_another_size() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let dir = folder.path().join("backup");
    let cluster = Cluster::start();
    fill(&cluster);
    let out = done(&cluster, &["backup", path(&dir)]);
    assert!(out.starts_with("backed up 302 keys"), "{out}");
    let (code, _, err) = admin(&cluster, &["backup", path(&dir)]);
    assert!(code == Some(1) && err.contains("is not empty"), "{err}");

    let mut other = Cluster::new(1);
    other.start_all();
    let out = done(&other, &["restore", path(&dir)]);
    assert!(out.starts_with("restored 302 keys"), "{out}");
    check(&other);

    let mut client = other.connect(1);
    assert_eq!(client.say("SET later z"), "OK");
    let (code, _, err) = admin(&other, &["restore", path(&dir)]);
    assert!(code == Some(1) && err.contains("holds 303 keys: --force"), "{err}");
    done(&other, &["restore", path(&dir), "--force"]);
    check(&other);

    let image = dir.join("partition-0003.image");
    let mut bytes = std::fs::read(&image).expect("an image");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&image, bytes).expect("a damaged image");
    let (code, _, err) = admin(&other, &["restore", path(&dir), "--force"]);
    assert!(code == Some(1) && err.contains("partition-0003.image is damaged"), "{err}");
    check(&other);
}

#[test]
fn snapshots_are_made_when_asked_for() {
    let cluster = Cluster::start();
    fill(&cluster);
    let out = done(&cluster, &["snapshot"]);
    assert_eq!(out.lines().count(), 3, "{out}");
    eventually("every replica has a snapshot", PATIENCE, || {
        let made = |node: u16| {
            let files = std::fs::read_dir(cluster.data(node).join("snapshots")).into_iter();
            let names = files.flatten().flatten().map(|file| file.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".snapshot")).count()
        };
        cluster.ids().all(|node| made(node) >= 12).then_some(())
    });
}
