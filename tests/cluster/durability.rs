//! What lies on the disks: whose it is, what damage is refused and what is not, and what happens
//! when there is no room.

use crate::count::{audit, counted};
use crate::harness::{Cluster, PATIENCE, eventually};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Waits until a node has ended by itself, and returns what it said last.
#[track_caller]
fn end(cluster: &mut Cluster, id: u16) -> String {
    let status = cluster.process(id).wait();
    let log = cluster.log(id);
    assert!(matches!(status.code(), Some(1..)), "{status}: {log}");
    cluster.kill(id);
    log.lines().last().unwrap_or_default().to_owned()
}

/// The files of a node's log, the oldest first.
fn segments(cluster: &Cluster, id: u16) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.data(id).join("log")).expect("a log");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Where what was written to a file ends: it is allocated whole.
fn written(path: &Path) -> usize {
    let bytes = fs::read(path).expect("a segment");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a segment");
    change(&mut bytes);
    fs::write(path, bytes).expect("a segment");
}

/// Three nodes that have written something, all of them killed.
fn written_and_killed(keys: &[String]) -> Cluster {
    let mut cluster = Cluster::start();
    let mut client = cluster.connect(1);
    for n in 0..20 {
        client.mset_all(keys, &format!("value {n} {}", "x".repeat(200))).expect("MSET");
    }
    client.mset_all(keys, "last").expect("MSET");
    cluster.ids().for_each(|id| cluster.kill(id));
    cluster
}

fn keys() -> Vec<String> {
    (0..20).map(|n| format!("durable:{n}")).collect()
}

#[track_caller]
fn assert_whole(cluster: &Cluster, keys: &[String]) {
    for id in cluster.ids() {
        let held =
            eventually("everything is read", PATIENCE, || cluster.connect(id).mget(keys).ok());
        assert!(held.iter().all(|value| value.as_deref() == Some("last")), "node {id}: {held:?}");
    }
}

#[test]
fn a_second_process_on_a_directory_is_refused() {
    let mut cluster = Cluster::start();
    let other = Cluster::new(3);
    // Other ports, the same cluster, the same place.
    let name = cluster.name().to_owned();
    let own = other.data(1).parent().expect("a folder").to_owned();
    let text = other.yaml(&name, 12);
    let place = cluster.data(1).parent().expect("a folder").to_owned();
    let text = text.replace(own.to_str().expect("UTF-8"), place.to_str().expect("UTF-8"));
    let file = other.write("cluster.yaml", &text);
    let args = ["--role", "node", "--id", "1", "--config", file.to_str().expect("UTF-8")];
    let (code, _, error) = crate::harness::run(&args);
    assert!(matches!(code, Some(1..)), "{code:?}: {error}");
    let path = cluster.data(1);
    for words in ["in use by another process", path.to_str().expect("UTF-8")] {
        assert!(error.contains(words), "{words} in {error}");
    }
    // The first one took no harm.
    assert_eq!(cluster.connect(1).say("SET a b"), "OK");
    assert!(cluster.process(1).ended().is_none());
}

#[test]
fn another_clusters_or_nodes_directory_is_refused() {
    let keys = keys();
    let mut cluster = written_and_killed(&keys);
    let (mine, name) = (cluster.data(1), cluster.name().to_owned());

    let text = cluster.yaml("someone-elses", 12);
    let file = cluster.write("other.yaml", &text);
    cluster.spawn_with(1, &file);
    let line = end(&mut cluster, 1);
    for words in [mine.to_str().expect("UTF-8"), name.as_str(), "someone-elses"] {
        assert!(line.contains(words), "{words} in {line}");
    }

    let (theirs, aside) = (cluster.data(2), cluster.data(9));
    for (from, to) in [(&mine, &aside), (&theirs, &mine), (&aside, &theirs)] {
        fs::rename(from, to).expect("a directory that nobody uses");
    }
    cluster.spawn(1);
    let line = end(&mut cluster, 1);
    assert!(line.contains("belongs to node 2") && line.contains("node 1"), "{line}");

    for (from, to) in [(&theirs, &aside), (&mine, &theirs), (&aside, &mine)] {
        fs::rename(from, to).expect("a directory that nobody uses");
    }
    cluster.start_all();
    assert_whole(&cluster, &keys);
}

#[test]
fn a_flipped_bit_within_a_log_is_refused_and_the_file_named() {
    let keys = keys();
    let mut cluster = written_and_killed(&keys);
    let path = segments(&cluster, 2).remove(0);
    let place = written(&path) / 2;
    change(&path, |bytes| bytes[place] ^= 0x10);
    cluster.spawn(2);
    let line = end(&mut cluster, 2);
    assert!(line.contains(path.to_str().expect("UTF-8")), "{path:?} in {line}");
    let offset = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    let near = |offset: usize| offset <= place && place < offset + 10_000;
    assert!(offset.clone().any(near), "a byte about {place} in {line}");

    // The others have everything, and serve it without node 2.
    for id in [1, 3] {
        cluster.spawn(id);
    }
    for id in [1, 3] {
        cluster.wait_ready(id);
        let held =
            eventually("a majority serves", PATIENCE, || cluster.connect(id).mget(&keys).ok());
        assert!(held.iter().all(|value| value.as_deref() == Some("last")), "node {id}: {held:?}");
    }
    // Healed, it goes on where it was.
    change(&path, |bytes| bytes[place] ^= 0x10);
    cluster.start_all();
    assert_whole(&cluster, &keys);
}

#[test]
fn a_torn_tail_is_told_and_served() {
    let keys = keys();
    let mut cluster = written_and_killed(&keys);
    let path = segments(&cluster, 3).pop().expect("a segment");
    let end = written(&path);
    // As if the last write had not been whole when the power went, nor synced.
    change(&path, |bytes| bytes[end - 3..end].fill(0));
    fs::write(cluster.data(3).join("synced"), [0; 24]).expect("the note of the last sync");
    cluster.start_all();
    cluster.wait_log(3, &["log tail torn at byte", path.to_str().expect("UTF-8"), "cut"]);
    assert_whole(&cluster, &keys);
    let mut client = cluster.connect(3);
    client.mset_all(&keys, "last").expect("MSET");
    cluster.ids().for_each(|id| cluster.kill(id));
    cluster.start_all();
    assert_whole(&cluster, &keys);
}

/// Without the note of the last sync, a log that was cut looks as after a power cut.
#[test]
fn a_log_without_the_note_of_its_last_sync_is_refused() {
    let keys = keys();
    let mut cluster = written_and_killed(&keys);
    let note = cluster.data(3).join("synced");
    let kept = fs::read(&note).expect("the note of the last sync");
    fs::remove_file(&note).expect("it is lost");
    cluster.spawn(3);
    let line = end(&mut cluster, 3);
    let path = note.to_str().expect("UTF-8");
    assert!(line.contains(path) && line.contains("the file is missing"), "{line}");
    fs::write(&note, kept).expect("it is put back");
    cluster.start_all();
    assert_whole(&cluster, &keys);
}

/// The last write was synced and acknowledged, and nothing behind it says so.
#[test]
fn damage_to_the_last_synced_write_is_refused() {
    let keys = keys();
    let mut cluster = written_and_killed(&keys);
    let path = segments(&cluster, 3).pop().expect("a segment");
    // Where the note says that the sync ended; what the kill left behind that may be anything.
    let note = fs::read(cluster.data(3).join("synced")).expect("the note of the last sync");
    let end = note[12..20].try_into().map(u64::from_le_bytes).expect("eight bytes") as usize;
    change(&path, |bytes| {
        bytes[end - 1] ^= 1;
        bytes.truncate(end);
    });
    cluster.spawn(3);
    let status = cluster.process(3).wait();
    assert_eq!(status.code(), Some(1), "{status}");
    cluster
        .wait_log(3, &["damaged at byte", "it was synced", "move the node's data directory away"]);
}

/// A file system of its own with so little room, where that is allowed.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Small> {
        fs::create_dir_all(at).expect("a folder");
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Small(at.to_owned()))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(status.expect("mount").success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: the nodes may still be dying.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// All nodes run out of room, one after the other: each stops and says why, nothing acknowledged is
/// lost, and with room they go on.
#[test]
fn a_full_disk_stops_a_node_and_loses_nothing() {
    let mut cluster = Cluster::new(3);
    let mut mounted = Vec::new();
    for (id, size) in cluster.ids().zip(["14m", "20m", "26m"]) {
        match Small::mount(&cluster.data(id), size) {
            Some(small) => mounted.push(small),
            None => {
                eprintln!("SKIPPED: this user may not mount a small file system");
                return;
            }
        }
    }
    cluster.start_all();
    let accounts = counted(&mut cluster, "full", |cluster, count| {
        count.more(100);
        let value = "x".repeat(100_000);
        for id in [1, 2] {
            // Through the node that has room for longest.
            let mut client = cluster.connect(3);
            eventually(&format!("node {id} is full"), PATIENCE, || {
                let reply = client.say(&format!("SET filler {value}"));
                assert!(reply == "OK" || reply.starts_with('-'), "{reply}");
                cluster.process(id).ended()
            });
            let line = end(cluster, id);
            for words in ["no room", "stopping"] {
                assert!(line.contains(words), "{words} in {line}");
            }
            if id == 1 {
                count.more(100);
            }
        }
        mounted.iter().for_each(|small| small.grow("64m"));
        cluster.start_all();
        count.more(100);
    });
    cluster.ids().for_each(|id| cluster.kill(id));
    cluster.start_all();
    audit(&cluster, &accounts);
    cluster.wait_at_rest();
}

/// A node whose disk is full starts with the room set aside, and the next time waits for some; it
/// comes back by itself.
#[test]
fn a_node_starts_on_a_full_disk_or_waits_for_room() {
    let mut cluster = Cluster::new(3);
    let Some(small) = Small::mount(&cluster.data(1), "20m") else {
        eprintln!("SKIPPED: this user may not mount a small file system");
        return;
    };
    cluster.start_all();
    let value = "x".repeat(100_000);
    let fill = |cluster: &mut Cluster| {
        let mut client = cluster.connect(3);
        eventually("node 1 is full", PATIENCE, || {
            let reply = client.say(&format!("SET filler {value}"));
            assert!(reply == "OK" || reply.starts_with('-'), "{reply}");
            cluster.process(1).ended()
        });
        let line = end(cluster, 1);
        assert!(line.contains("no room") && line.contains("stopping"), "{line}");
    };
    fill(&mut cluster);
    cluster.spawn(1);
    cluster.wait_ready(1);
    cluster.wait_log(1, &["no room", "the room set aside is used to start"]);
    fill(&mut cluster);

    cluster.spawn(1);
    cluster.wait_log(1, &["no room", "waiting for room"]);
    // It can be stopped meanwhile, and whoever starts it again need do no more.
    cluster.process(1).signal("TERM");
    assert!(cluster.process(1).wait().success());
    cluster.kill(1);
    cluster.spawn(1);
    small.grow("64m");
    cluster.wait_ready(1);
    let mut client = cluster.connect(1);
    let value = eventually("what was written is there", PATIENCE, || {
        Some(client.say("STRLEN filler")).filter(|length| !length.starts_with('-'))
    });
    assert_eq!(value, "100000");
}
