//! The command line: roles, help, exit codes, and the cluster in one process.

use crate::harness::{
    Client, Cluster, IN_MEMORY, PATIENCE, Process, Protocol, REPLICATED, eventually, health,
    is_free, run,
};
use std::fs;
use std::fs::File;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use tempfile::TempDir;

/// A base for `--port` whose client, peer and HTTP ports are free.
fn free_base() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports that `harness::free_port` hands out.
    let offset = (std::process::id() % 40) as u16;
    for _ in 0..40 {
        let base = 10_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 40 * 220;
        let taken = |port: &u16| !is_free(*port);
        if ![1, 2, 3, 101, 102, 103, 201, 202, 203].map(|n| base + n).iter().any(taken) {
            return base;
        }
    }
    panic!("no free ports for a local cluster");
}

/// As by Ctrl-Z and `fg`, while the server has not answered yet.
#[test]
fn the_bench_role_goes_on_after_it_was_stopped() {
    let mut cluster = Cluster::start();
    cluster.pause(1);
    let (port, log) = (cluster.ports(1).client.to_string(), cluster.write("bench.log", ""));
    let args = ["--role", "bench", "--port", &port, "--requests", "1000", "--keys", "100"];
    let mut bench = Process::start(&args, &log);
    eventually("it is connected", PATIENCE, || bench.has_socket().then_some(()));
    for _ in 0..10 {
        bench.signal("STOP");
        eventually("it is stopped", PATIENCE, || bench.is_stopped().then_some(()));
        bench.signal("CONT");
    }
    cluster.resume(1);
    let status = bench.wait();
    assert!(status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
}

#[test]
fn the_local_role_is_a_whole_cluster() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("local.log");
    let base = free_base();
    let mut process = Process::start(&["--role", "local", "--port", &base.to_string()], &log);
    for n in 1..=3 {
        eventually("the local cluster is ready", PATIENCE, || {
            if let Some(status) = process.ended() {
                panic!("ended: {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            (health(base + 200 + n) == Some(200)).then_some(())
        });
    }
    let connect = |n: u16| Client::connect(base + n, Protocol::Resp2).expect("served");
    assert_eq!(connect(2).say("MSET a 1 b 2 c 3 d 4"), "OK");
    assert_eq!(connect(3).say("MGET a b c d"), "[\"1\" \"2\" \"3\" \"4\"]");
    assert_eq!(connect(1).say("DEL a b c d"), "4");

    let banner = eventually("a banner with all ports", PATIENCE, || {
        let text = fs::read_to_string(&log).ok()?;
        (1..=3).all(|n| text.contains(&(base + n).to_string())).then_some(text)
    });
    for word in ["redis-cli", "Ctrl"] {
        assert!(banner.contains(word), "{word} in {banner}");
    }

    process.signal("INT");
    let status = process.wait();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn the_local_role_takes_a_number_of_nodes() {
    let folder = TempDir::new().unwrap();
    let base = free_base();
    let args = ["local", "--nodes", "1", "--port", &base.to_string()];
    let _process = Process::start(&args, &folder.path().join("local.log"));
    eventually("one node is ready", PATIENCE, || (health(base + 201) == Some(200)).then_some(()));
    let mut client = Client::connect(base + 1, Protocol::Resp3).expect("served");
    assert_eq!(client.say("MSET a 1 b 2 c 3"), "OK");
    assert!(is_free(base + 2), "there is no second node");
}

/// A cluster that was formed before says that it serves, as a new one does.
#[test]
fn the_local_role_says_that_it_is_ready_each_time() {
    let folder = TempDir::new().unwrap();
    let (base, data) = (free_base(), folder.path().join("data"));
    let data = data.to_str().expect("a path in UTF-8");
    let args = ["--role", "local", "--port", &base.to_string(), "--data", data];
    for log in ["first.log", "second.log"] {
        let log = folder.path().join(log);
        let mut process = Process::start(&args, &log);
        eventually(&format!("{log:?} says so"), PATIENCE, || {
            fs::read_to_string(&log).ok()?.contains("3 nodes ready").then_some(())
        });
        process.signal("TERM");
        assert_eq!(process.wait().code(), Some(0));
    }
}

/// As under `quorate | head -1`: the banner finds nobody who reads it.
#[test]
fn the_local_role_serves_though_nobody_reads_its_banner() {
    let base = free_base();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let args = ["local", "--nodes", "1", "--port", &base.to_string()];
    let mut process = Process::start_with_output(&args, writer);
    eventually("one node is ready", PATIENCE, || (health(base + 201) == Some(200)).then_some(()));
    let mut client = Client::connect(base + 1, Protocol::Resp2).expect("served");
    for _ in 0..100 {
        assert_eq!(client.say("PING"), "PONG");
    }
    // A panic takes its time to end the process, so ask how it ended rather than whether it lives.
    process.signal("INT");
    let status = process.wait();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn a_port_taken_from_the_local_role_names_the_flag() {
    let base = free_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 2)).expect("a free port");
    let (code, _, error) = run(&["--role", "local", "--port", &base.to_string()]);
    assert!(matches!(code, Some(1..)), "{code:?}: {error}");
    assert!(error.contains(&(base + 2).to_string()), "{error}");
    assert!(error.contains("--port"), "{error}");
}

#[test]
fn check_reads_the_file_and_starts_nothing() {
    let cluster = Cluster::new(3);
    let file = cluster.write("checked.yaml", &cluster.yaml("checked", 12));
    let file = file.to_str().unwrap();
    let (code, _, error) = run(&["--role", "node", "--id", "2", "--config", file, "--check"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(is_free(cluster.ports(2).client));

    let (code, _, error) = run(&["--role", "node", "--id", "9", "--config", file, "--check"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains('9'), "{error}");
}

/// What is wrong, and words that the error has to contain.
#[test]
fn a_bad_file_is_refused_with_line_and_field() {
    let cluster = Cluster::new(3);
    let good = cluster.yaml("bad", 12).replace(REPLICATED, IN_MEMORY);
    let ports = cluster.ports(1);
    let second = cluster.ports(2);
    let mistakes: &[(&str, String, &[&str])] = &[
        ("an unknown field", good.replace("partitions", "partions"), &[":6:", "partions"]),
        ("no partitions", good.replace("partitions: 12", "partitions: 0"), &[":6:", "partitions"]),
        ("a duplicate id", good.replace("id: 2", "id: 1"), &[":4:", "id"]),
        (
            "a duplicate port",
            good.replace(&second.client.to_string(), &ports.client.to_string()),
            &[":4:", "client"],
        ),
        ("a port out of range", good.replace(&ports.http.to_string(), "70000"), &[":3:"]),
        ("no majority", good.replace("replicas: 1", "replicas: 2"), &[":7:", "replicas"]),
        ("more than nodes", good.replace("replicas: 1", "replicas: 5"), &[":7:", "replicas"]),
        ("no log", good.replace("replicas: 1", "replicas: 3"), &[":7:", "durability"]),
        ("eventual", good.replace("mode: strong", "mode: eventual"), &[":7:", "mode"]),
        ("not YAML", "cluster: [".to_owned(), &["bad.yaml"]),
        ("no nodes", "cluster: x\nnodes: []\n".to_owned(), &["nodes"]),
    ];
    for (what, text, words) in mistakes {
        assert_ne!(*text, good, "{what} is a mistake");
        let file = cluster.write("bad.yaml", text);
        for check in [&["--check"][..], &[]] {
            let file = file.to_str().unwrap();
            let args = [&["--role", "node", "--id", "1", "--config", file], check].concat();
            let (code, _, error) = run(&args);
            assert_eq!(code, Some(2), "{what}: {error}");
            for word in *words {
                assert!(error.contains(word), "{what}: {word} in {error}");
            }
        }
    }
    let (code, _, error) = run(&["--role", "node", "--id", "1", "--config", "/nosuch.yaml"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("/nosuch.yaml"), "{error}");
}

#[test]
fn help_shows_the_options_of_the_role_asked_for() {
    for args in [&["--role", "node", "--help"], &["node", "--help"][..]] {
        let (code, out, _) = run(args);
        assert_eq!(code, Some(0));
        for word in ["quorate --role node", "--id", "--config", "--check"] {
            assert!(out.contains(word), "{word} in {out}");
        }
        assert!(!out.contains("--nodes"), "{out}");
    }
    let (code, out, _) = run(&["--role", "local", "--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("--nodes") && out.contains("--port") && !out.contains("--id"), "{out}");

    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for role in ["local", "node", "bench"] {
        assert!(out.contains(role), "{role} in {out}");
    }
    let (code, out, _) = run(&["--version"]);
    assert_eq!(code, Some(0));
    assert!(out.contains(env!("CARGO_PKG_VERSION")), "{out}");
}

#[test]
fn a_wrong_argument_ends_with_two() {
    for args in [
        &["--role", "nosuch"][..],
        &["--role", "node", "--nosuch"],
        &["--role", "node"],
        &["--role", "local", "--nodes", "0"],
        &["--role", "local", "--port", "70000"],
        &["--role", "local", "--replicas", "5"],
        &["--role", "local", "--durability", "none"],
    ] {
        let (code, _, error) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {error}");
        assert!(!error.is_empty(), "{args:?}");
    }
}

/// Runs the binary to its end with this standard output: exit code and standard error.
fn run_into(args: &[&str], out: impl Into<Stdio>) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("err");
    let mut process = Process::start_with_outputs(args, out, File::create(&path).unwrap());
    let status = process.wait();
    (status.code(), fs::read_to_string(path).unwrap())
}

/// What each role that prints something is asked for, and its exit code if all goes well.
fn printing_roles(cluster: &Cluster) -> Vec<Vec<String>> {
    let file = cluster.write("sound.yaml", &cluster.yaml("sound", 12));
    let file = file.to_str().expect("a path in UTF-8").to_owned();
    let (first, file) = (cluster.ports(1).client.to_string(), file.as_str());
    let load = ["bench", "--port", &first, "--clients", "1", "--keys", "10"];
    [
        &["--help"][..],
        &["--role", "admin", "--version"],
        &["--role", "node", "--config", file, "--check"],
        &["--role", "admin", "--config", file, "status"],
        &["--role", "admin", "--config", file, "status", "--json"],
        &["--role", "admin", "--config", file, "snapshot"],
        &[&load[..], &["--requests", "10"]].concat(),
        &[&load[..], &["--requests", "10", "--json"]].concat(),
        &[&load[..], &["--duration", "1000s", "--csv", "-"]].concat(),
    ]
    .iter()
    .map(|args| args.iter().map(|arg| (*arg).to_owned()).collect())
    .collect()
}

/// As under `quorate --role admin status | head -1`.
#[test]
fn a_role_whose_reader_has_gone_ends_quietly() {
    let cluster = Cluster::start();
    for args in printing_roles(&cluster) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (code, err) = run_into(&args, writer);
        // A load tells its summary where its rows do not go.
        let told = if err.starts_with("10 operations") { "" } else { &err };
        assert_eq!((code, told), (Some(0), ""), "{args:?}");
    }
    let port = cluster.ports(1).client.to_string();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let (code, err) = run_into(&["--role", "client", "-p", &port, "PING"], writer);
    assert_eq!((code, err.as_str()), (Some(1), ""));
}

#[test]
fn a_role_whose_output_is_full_says_so() {
    let cluster = Cluster::start();
    let mut asked = printing_roles(&cluster);
    let port = cluster.ports(1).client.to_string();
    asked.push(["--role", "client", "-p", &port, "PING"].map(str::to_owned).to_vec());
    for args in asked {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let (code, err) = run_into(&args, full);
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.contains("cannot write") && err.contains("No space left"), "{args:?}: {err}");
    }
}

/// A file that never ends, one that is too long, and one that is no text.
#[test]
fn what_cannot_be_a_configuration_is_not_read() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (long, binary) = (path("long.yaml"), path("binary.yaml"));
    fs::write(&long, "# a comment\n".repeat(100_000)).unwrap();
    fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    for (file, word) in [("/dev/zero", "more than"), (&long, "more than"), (&binary, "UTF-8")] {
        for args in [
            &["--role", "node", "--id", "1", "--config", file, "--check"][..],
            &["--role", "admin", "--config", file, "status"],
        ] {
            let (code, _, error) = run(args);
            assert!(matches!(code, Some(1 | 2)), "{args:?}: {error}");
            assert!(error.contains(file) && error.contains(word), "{args:?}: {error}");
        }
    }
}
