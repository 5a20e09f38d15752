//! What an operator sees and does: `--role admin`, `/status`, `INFO`, `CLUSTER`.

use crate::harness::{Client, Cluster, PATIENCE, Process, StopAtEnd, eventually, http, run};
use redis::Value;
use serde_json::Value as Json;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

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
    for (command, reply) in [
        ("SET raw ab", "OK"),
        ("APPEND raw c", "3"),
        ("SET float 1.5", "OK"),
        ("INCRBYFLOAT float 1.5", "\"3\""),
        ("SETRANGE long 900000 end", "900003"),
    ] {
        assert_eq!(client.say(command), reply, "{command}");
    }
    assert_eq!(client.say("SELECT 3"), "OK");
    assert_eq!(client.say("SET third y"), "OK");
}

fn check(cluster: &Cluster) {
    let mut client = cluster.connect(1);
    assert_eq!(client.say("DBSIZE"), "304");
    // Values are what they were, also in how they are encoded.
    for (command, reply) in [
        ("GET raw", "\"abc\""),
        ("OBJECT ENCODING raw", "\"raw\""),
        ("GET float", "\"3\""),
        ("OBJECT ENCODING float", "\"embstr\""),
        ("OBJECT ENCODING volatile", "\"embstr\""),
        ("STRLEN long", "900003"),
        ("GETRANGE long 899998 900002", r#""\x00\x00end""#),
    ] {
        assert_eq!(client.say(command), reply, "{command}");
    }
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
    assert!(out.starts_with("backed up 305 keys"), "{out}");
    let (code, _, err) = admin(&cluster, &["backup", path(&dir)]);
    assert!(code == Some(1) && err.contains("is not empty"), "{err}");

    let mut other = Cluster::new(1);
    other.start_all();
    let out = done(&other, &["restore", path(&dir)]);
    assert!(out.starts_with("restored 305 keys"), "{out}");
    check(&other);

    let mut client = other.connect(1);
    assert_eq!(client.say("SET later z"), "OK");
    let (code, _, err) = admin(&other, &["restore", path(&dir)]);
    assert!(code == Some(1) && err.contains("holds 306 keys: --force"), "{err}");
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

/// Ready is who can serve: whatever partition it is asked for.
#[test]
fn health_names_the_partitions_that_are_out_of_reach() {
    let mut cluster = Cluster::start();
    let port = cluster.ports(1).http;
    let health = || http(port, "/health").expect("an answer");
    cluster.kill(2);
    // Whatever node 2 has led is led by others soon.
    eventually("the majority is ready", PATIENCE, || (health().0 == 200).then_some(()));
    cluster.kill(3);
    let body = eventually("nothing is served without a majority", PATIENCE, || {
        let (code, body) = health();
        let body: Json = serde_json::from_str(&body).expect("JSON");
        let all = body["partitions"].as_array().is_some_and(|lacking| lacking.len() == 12);
        (code == 503 && all).then_some(body)
    });
    assert_eq!(body["status"], "unserved", "{body}");
    for lacking in body["partitions"].as_array().expect("partitions") {
        assert!(lacking["why"].as_str().is_some_and(|why| !why.is_empty()), "{lacking}");
    }
    // As are those who ask for any of it.
    cluster.start_all();
}

/// Accounts, of every node, and what is in all of them together.
const ACCOUNTS: usize = 30;
const SUM: i64 = 100 * ACCOUNTS as i64;

fn account(number: usize) -> String {
    format!("account:{number}")
}

/// Moves money between accounts by transactions over nodes until it is told to stop.
fn transfer_money(client: &mut Client, mut number: usize, stop: &AtomicBool, moved: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        number = number * 7 + 11;
        let (from, to) = (account(number % ACCOUNTS), account(number / 3 % ACCOUNTS));
        let transfer =
            ["MULTI".into(), format!("DECRBY {from} 3"), format!("INCRBY {to} 3"), "EXEC".into()];
        // A transfer whose outcome is not known moved the money or did not.
        if client.try_pipeline(&transfer).is_ok_and(|replies| replies.iter().all(Result::is_ok)) {
            moved.fetch_add(1, Ordering::Relaxed);
        }
        number %= 10_000;
    }
}

fn sum(client: &mut Client) -> i64 {
    let accounts: Vec<String> = (0..ACCOUNTS).map(account).collect();
    let balances = client.mget(&accounts).expect("balances");
    balances.into_iter().map(|one| one.expect("an account").parse::<i64>().expect("money")).sum()
}

/// Values of so many bytes under so many keys.
fn fill_with(cluster: &Cluster, keys: usize, bytes: usize) {
    let mut client = cluster.connect(1);
    let numbers: Vec<usize> = (0..keys).collect();
    for some in numbers.chunks(500) {
        let set = |n: &usize| format!("SET filler:{n} {n:0bytes$}");
        let lines: Vec<String> = some.iter().map(set).collect();
        assert!(client.pipeline(&lines).iter().all(|reply| reply == "OK"));
    }
}

/// More than one command may answer with, while money moves; into a cluster of another size.
#[test]
fn a_backup_under_writes_is_of_one_moment() {
    let cluster = Cluster::start_with("limits: { output_buffer: 1MiB }\n");
    fill_with(&cluster, 6_000, 1_000);
    let mut client = cluster.connect(2);
    for number in 0..ACCOUNTS {
        assert_eq!(client.say(&format!("SET {} 100", account(number))), "OK");
    }
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let dirs = ["first", "second"].map(|name| folder.path().join(name));
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for node in cluster.ids() {
            let (mut client, stop, moved) = (cluster.connect(node), &stop, &moved);
            scope.spawn(move || transfer_money(&mut client, node.into(), stop, moved));
        }
        let stop = StopAtEnd(&stop);
        for dir in &dirs {
            let before = moved.load(Ordering::Relaxed);
            let (code, out, err) = admin(&cluster, &["backup", path(dir)]);
            assert_eq!(code, Some(0), "{out}{err}");
            assert!(out.starts_with("backed up 6030 keys"), "{out}");
            assert!(err.contains("backing up 6030 keys of 12 partitions"), "{err}");
            eventually("money moves on", PATIENCE, || {
                (moved.load(Ordering::Relaxed) > before).then_some(())
            });
        }
        drop(stop);
    });
    assert_eq!(sum(&mut client), SUM);

    let mut other = Cluster::new(1);
    let text = other.yaml(other.name(), 5);
    other.write("cluster.yaml", &text);
    other.start_all();
    for dir in &dirs {
        done(&other, &["restore", path(dir), "--force"]);
        let mut client = other.connect(1);
        assert_eq!((sum(&mut client), client.say("DBSIZE")), (SUM, "6030".into()));
        assert_eq!(client.say("GET filler:77"), format!("\"{:01000}\"", 77));
    }
}

/// The tokens of the copies that `CLUSTER BACKUP` has begun.
fn begin_backup(client: &mut Client, name: &str) -> Result<Vec<String>, String> {
    let begun = match client.ask(&["CLUSTER", "BACKUP", name]) {
        Ok(Value::Array(begun)) => begun,
        other => return Err(crate::harness::show(&other)),
    };
    let token = |copy: Value| match copy {
        Value::Array(copy) => match &copy[..] {
            [Value::BulkString(token), Value::Int(_)] => {
                String::from_utf8_lossy(token).into_owned()
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    Ok(begun.into_iter().map(token).collect())
}

#[test]
fn a_copy_is_for_whoever_began_it_and_gone_with_its_leader() {
    const NAMES: [&str; 2] = ["00000000000000a1", "00000000000000a2"];
    let cluster = Cluster::start();
    fill(&cluster);
    let mut client = cluster.connect(1);
    let tokens = begin_backup(&mut client, NAMES[0]).expect("copies");
    assert_eq!(tokens.len(), 12);
    let mut others = cluster.connect(2);
    let busy = begin_backup(&mut others, NAMES[1]).expect_err("one at a time");
    assert!(busy.starts_with("-TRYAGAIN another backup is under way"), "{busy}");

    let pull = |client: &mut Client, token: &str, position: u64| {
        client.say(&format!("CLUSTER IMAGE 0 {token} {position}"))
    };
    let piece = pull(&mut client, &tokens[0], 0);
    assert!(piece.starts_with("\"QRIM"), "{piece}");
    assert_eq!(pull(&mut others, &tokens[0], 0), piece, "through any node, and again");
    let other = "ffffffffffffffff";
    assert!(pull(&mut client, other, 0).starts_with("-NOCOPY partition 0"), "no such token");
    assert!(pull(&mut client, &tokens[0], 1 << 40).starts_with("-NOCOPY partition 0"));
    for (words, error) in [
        ("IMAGE 12 00 0", "ERR there is no such partition: they are 0 to 11"),
        ("IMAGE x 00 0", "ERR there is no such partition: they are 0 to 11"),
        ("IMAGE 0 what 0", "ERR value is not an integer or out of range"),
        ("BACKUP x", "ERR a backup's name is sixteen hexadecimal digits"),
    ] {
        assert_eq!(client.say(&format!("CLUSTER {words}")), format!("-{error}"));
    }
    assert_eq!(client.say("MULTI"), "OK");
    for words in ["BACKUP 00000000000000a1", "IMAGE 0 00 0", "RELEASE 00000000000000a1"] {
        let refused = client.say(&format!("CLUSTER {words}"));
        assert_eq!(refused, "-ERR Command not allowed inside a transaction");
    }
    assert_eq!(client.say("DISCARD"), "OK");

    let from = (1..=3).find(|node| led(&cluster, *node, 0).is_some()).expect("a leader");
    done(&cluster, &["transfer-leader", "0", &(from % 3 + 1).to_string()]);
    eventually("the copy is gone", PATIENCE, || {
        pull(&mut client, &tokens[0], 0).starts_with("-NOCOPY partition 0").then_some(())
    });
    // Nobody else need wait for the rest of it.
    assert_eq!(client.say(&format!("CLUSTER RELEASE {}", NAMES[0])), "OK");
    let tokens = begin_backup(&mut others, NAMES[1]).expect("copies");
    assert!(pull(&mut client, &tokens[0], 0).starts_with("\"QRIM"));
    // The same one, begun anew: its copies are of another moment.
    let anew = begin_backup(&mut others, NAMES[1]).expect("copies");
    assert!(pull(&mut client, &tokens[0], 0).starts_with("-NOCOPY partition 0"));
    assert!(pull(&mut client, &anew[0], 0).starts_with("\"QRIM"));
}

#[test]
fn a_backup_that_was_not_finished_is_none() {
    let cluster = Cluster::start();
    fill(&cluster);
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let dir = folder.path().join("backup");
    done(&cluster, &["backup", path(&dir)]);
    let manifest = dir.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");

    fs::remove_file(&manifest).expect("a manifest");
    let (code, _, err) = admin(&cluster, &["restore", path(&dir), "--force"]);
    assert!(code == Some(1) && err.contains("not a finished backup"), "{err}");
    let (code, _, err) = admin(&cluster, &["backup", path(&dir)]);
    assert!(code == Some(1) && err.contains("a backup that was not finished"), "{err}");

    let mut json: Json = serde_json::from_str(&text).expect("JSON");
    json["backup"]["images"].as_array_mut().expect("images").pop();
    fs::write(&manifest, json.to_string()).expect("a manifest");
    let (code, _, err) = admin(&cluster, &["restore", path(&dir), "--force"]);
    assert!(code == Some(1) && err.contains("its checksum differs"), "{err}");
    check(&cluster);
}

/// The node that a restore talks to is lost, and the others go on.
#[test]
fn a_restore_outlives_a_node() {
    const KEYS: usize = 20_000;
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let dir = folder.path().join("backup");
    let mut first = Cluster::new(1);
    first.start_all();
    fill_with(&first, KEYS, 100);
    done(&first, &["backup", path(&dir)]);

    let mut cluster = Cluster::start();
    let file = cluster.write("admin-reads.txt", "").with_file_name("cluster.yaml");
    let [out, err] = ["out", "err"].map(|name| folder.path().join(name));
    let args = ["--role", "admin", "--config", path(&file), "restore", path(&dir)];
    let mut restore = Process::start_with_outputs(
        &args,
        File::create(&out).expect("a file"),
        File::create(&err).expect("a file"),
    );
    let mut client = cluster.connect(2);
    eventually("keys arrive", PATIENCE, || {
        client.say("DBSIZE").parse().ok().filter(|keys: &usize| *keys > 0)
    });
    cluster.kill(1);
    let status = restore.wait();
    let [out, err] = [out, err].map(|file| fs::read_to_string(file).expect("text"));
    assert!(status.success(), "{status}: {out}{err}");
    assert!(out.starts_with(&format!("restored {KEYS} keys")), "{out}");
    eventually("every partition is led", PATIENCE, || {
        (client.say("DBSIZE") == KEYS.to_string()).then_some(())
    });
}
