//! What a node does when its machine has no more to give: a log that nobody reads, no descriptors, a
//! disk that hangs.

use crate::harness::{Cluster, PATIENCE, binary, dial, eventually, free_port, http, read_to_end};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// One of a node's figures, as Prometheus is told it.
fn figure(cluster: &Cluster, id: u16, name: &str) -> Option<u64> {
    let (_, text) = http(cluster.ports(id).http, "/metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}

#[test]
fn a_log_that_is_closed_or_not_read_stops_no_node() {
    const DROPPED: &str = "quorate_log_lines_dropped_total";
    let mut cluster = Cluster::new(3);
    let file = cluster.yaml(cluster.name(), crate::harness::PARTITIONS);
    // A line for each message: more than any pipe holds.
    cluster.write("cluster.yaml", &(file + "log: { level: trace }\n"));
    cluster.spawn_by(1, |command| {
        command.stderr(Stdio::piped());
    });
    cluster.spawn_by(2, |command| {
        command.stderr(Stdio::piped());
    });
    // Nobody reads the first node's, and the second's reader is gone.
    drop(cluster.process(2).take_stderr());
    cluster.start_all();

    cluster.kill(3);
    let mut clients = [1, 2].map(|id| cluster.connect(id));
    for id in [1, 2] {
        eventually(&format!("node {id} has dropped lines"), PATIENCE, || {
            clients.iter_mut().for_each(|client| assert!(!client.say("PING").is_empty()));
            let ended = cluster.process(id).ended();
            assert!(ended.is_none(), "node {id} ended: {ended:?}");
            figure(&cluster, id, DROPPED).filter(|dropped| *dropped > 0)
        });
    }
    let key = cluster.key_on(3, "key");
    for client in &mut clients {
        eventually("it serves", PATIENCE, || {
            (client.say(&format!("SET {key} 1")) == "OK").then_some(())
        });
    }
}

#[test]
fn clients_take_no_descriptor_that_the_node_needs() {
    const FILES: u64 = 256;
    let mut cluster = Cluster::new(3);
    cluster.spawn_by(1, |command| {
        let limit = libc::rlimit { rlim_cur: FILES / 2, rlim_max: FILES };
        // SAFETY: between fork and exec there is only a system call.
        unsafe {
            command.pre_exec(move || {
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    });
    cluster.start_all();
    let mut client = cluster.connect(1);
    let most: usize = {
        let told = client.say("CONFIG GET maxclients");
        told.split('"').nth(3).and_then(|number| number.parse().ok()).expect("a number")
    };
    // The soft limit was raised, and it is not all for clients.
    assert!((FILES as usize / 2..FILES as usize).contains(&most), "{most} clients");
    cluster.wait_log(1, &["limits.connections is 10000", &format!("room for {most} clients")]);
    assert!(client.say("INFO clients").contains(&format!("maxclients:{most}")));
    let refused = client.say("CONFIG SET maxclients 5000");
    assert!(refused.ends_with(&format!("try with {most}")), "{refused}");

    let mut idle: Vec<_> = (0..FILES).map(|_| dial(cluster.ports(1).client)).collect();
    let mut late = idle.pop().expect("a connection");
    let full = "-ERR max number of clients reached\r\n";
    assert_eq!(read_to_end(&mut late), full);

    // New segments of the log, another node that comes back, HTTP: nothing is in want.
    let key = cluster.key_on(1, "key");
    let mut other = cluster.connect(2);
    let value = "x".repeat(1 << 20);
    for _ in 0..10 {
        assert_eq!(other.say(&format!("SET {key} {value}")), "OK");
    }
    cluster.kill(3);
    cluster.spawn(3);
    cluster.wait_ready(3);
    eventually("node 3 is linked to node 1", PATIENCE, || {
        let status = cluster.status(1)?;
        status["unreachable"].as_array()?.is_empty().then_some(())
    });
    cluster.wait_ready(1);
    assert_eq!(client.say("PING"), "PONG".to_owned());
    drop(idle);
    eventually("there is room again", PATIENCE, || {
        let mut stream = dial(cluster.ports(1).client);
        stream.write_all(b"PING\r\n").ok()?;
        let mut answer = [0; 7];
        std::io::Read::read_exact(&mut stream, &mut answer).ok()?;
        (&answer == b"+PONG\r\n").then_some(())
    });
}

#[test]
fn too_few_descriptors_are_a_plain_error() {
    let base = free_port();
    let run = format!("ulimit -n 16; exec \"$0\" --role local --port {base}");
    let output = Command::new("sh").args(["-c", &run]).arg(binary()).output().expect("a shell");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("quorate: cannot start: this process may open 16 files"), "{told}");
    assert!(told.contains("ulimit -n"), "{told}");
}

/// Holds back every sync of a process while a file is there.
const HANGING_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_while_it_hangs(void) {
    const char *path = getenv("HANGS_WHILE");
    while (path && access(path, F_OK) == 0) usleep(5000);
}

int fdatasync(int fd) {
    wait_while_it_hangs();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    wait_while_it_hangs();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"#;

#[test]
fn a_node_whose_disk_hangs_leads_nothing() {
    let mut cluster = Cluster::new(3);
    let source = cluster.write("disk.c", HANGING_DISK);
    let (library, hangs) = (source.with_extension("so"), source.with_file_name("hangs"));
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .expect("a C compiler");
    assert!(built.success(), "{built}");
    cluster.spawn_by(1, |command| {
        command.env("LD_PRELOAD", &library).env("HANGS_WHILE", &hangs);
    });
    cluster.start_all();
    let key = cluster.key_on(1, "key");
    let mut client = cluster.connect(2);
    assert_eq!(client.say(&format!("SET {key} before")), "OK");

    cluster.write("hangs", "");
    eventually("another node leads", PATIENCE, || {
        (client.say(&format!("SET {key} meanwhile")) == "OK").then_some(())
    });
    assert_ne!(cluster.leader_now(&key, 2), Some(1));
    assert_eq!(client.say(&format!("GET {key}")), "\"meanwhile\"");
    // What does not concern the disk goes on, through the node itself too.
    assert_eq!(cluster.connect(1).say(&format!("GET {key}")), "\"meanwhile\"");
    cluster.wait_ready(1);

    std::fs::remove_file(&hangs).expect("the disk goes on");
    eventually("it leads again", PATIENCE, || {
        let is_back = cluster.leader_now(&key, 1) == Some(1);
        (is_back && client.say(&format!("SET {key} after")) == "OK").then_some(())
    });
    assert_eq!(cluster.connect(3).say(&format!("GET {key}")), "\"after\"");
}
