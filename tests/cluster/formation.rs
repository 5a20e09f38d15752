//! How nodes find together, refuse each other, and leave.

use crate::harness::{
    Cluster, PARTITIONS, PATIENCE, dial, eventually, expect, health, http, is_free, read_to_end,
};
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Waits until a port of a starting node accepts connections.
fn wait_listening(cluster: &mut Cluster, id: u16, port: u16) {
    eventually(&format!("node {id} listens on {port}"), PATIENCE, || {
        let ended = cluster.process(id).ended();
        assert!(ended.is_none(), "node {id} ended: {ended:?}");
        (!is_free(port)).then_some(())
    });
}

#[test]
fn nobody_serves_before_all_are_there() {
    let mut cluster = Cluster::new(3);
    cluster.spawn(1);
    let ports = cluster.ports(1);
    wait_listening(&mut cluster, 1, ports.client);
    let mut early = dial(ports.client);
    early.write_all(b"GET x\r\n").unwrap();
    expect(&mut early, "-LOADING waiting for nodes 2, 3\r\n");
    wait_listening(&mut cluster, 1, ports.http);
    let (status, body) = http(ports.http, "/health").expect("an answer");
    assert_eq!(status, 503, "{body}");
    let told: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(told["for"], serde_json::json!([2, 3]), "{body}");
    cluster.wait_log(1, &["waiting for nodes 2, 3"]);

    cluster.spawn(2);
    // Both see each other, and wait for the third only.
    for id in [1, 2] {
        let http_port = cluster.ports(id).http;
        eventually(&format!("node {id} waits for node 3 only"), PATIENCE, || {
            let (status, body) = http(http_port, "/health")?;
            assert_eq!(status, 503, "node {id} serves without node 3: {body}");
            let told: serde_json::Value = serde_json::from_str(&body).ok()?;
            (told["for"] == serde_json::json!([3])).then_some(())
        });
    }
    early.write_all(b"MSET a 1 b 2 c 3\r\n").unwrap();
    expect(&mut early, "-LOADING waiting for node");

    let started = Instant::now();
    cluster.spawn(3);
    for id in cluster.ids() {
        cluster.wait_ready(id);
    }
    let took = started.elapsed();
    // Well under a second on a quiet machine.
    assert!(took < Duration::from_secs(3), "ready {took:?} after the last node was started");
    for id in cluster.ids() {
        let reply = cluster.connect(id).say("MSET a 1 b 2 c 3");
        assert_eq!(reply, "OK", "at node {id}");
    }
    // A connection that came too early is served now.
    let mut early = dial(ports.client);
    early.write_all(b"GET b\r\n").unwrap();
    expect(&mut early, "$1\r\n2\r\n");
}

#[test]
fn the_last_to_start_finds_the_others_at_once() {
    // In every order of starting.
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let mut cluster = Cluster::new(3);
        for id in order {
            if id == order[2] {
                for earlier in &order[..2] {
                    let peer = cluster.ports(*earlier).peer;
                    wait_listening(&mut cluster, *earlier, peer);
                }
            }
            cluster.spawn(id);
        }
        let started = Instant::now();
        for id in order {
            cluster.wait_ready(id);
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(3), "{order:?}: ready after {took:?}");
    }
}

/// The power goes when some nodes know that the cluster is formed and others do not yet: those have
/// said that they are ready, have promised nothing, and are the replicas that they were.
#[test]
fn a_power_cut_during_the_formation_is_no_lost_disk() {
    for unformed in [&[2, 3][..], &[1], &[1, 2, 3]] {
        let mut cluster = Cluster::start();
        assert_eq!(cluster.connect(1).say("MSET a 1 b 2 c 3"), "OK");
        cluster.ids().for_each(|id| cluster.kill(id));
        unformed.iter().for_each(|id| cluster.edit_identity(*id, "formed", "no"));
        cluster.start_all();
        for id in cluster.ids() {
            assert_eq!(cluster.connect(id).say("MGET a b c"), "[\"1\" \"2\" \"3\"]");
            let log = cluster.log(id);
            assert!(!log.contains("rejoining"), "node {id} takes its disk for a new one: {log}");
        }
    }
}

#[test]
fn a_cluster_of_one_waits_for_nobody() {
    let mut cluster = Cluster::new(1);
    cluster.spawn(1);
    cluster.wait_ready(1);
    assert_eq!(cluster.connect(1).say("MSET a 1 b 2 c 3"), "OK");
    assert_eq!(cluster.connect(1).say("MGET a b c"), "[\"1\" \"2\" \"3\"]");
}

/// Nodes 1 and 2 have the cluster's file; node 3 comes with another.
fn strangers_are_refused(
    other: impl FnOnce(&Cluster) -> String,
    at_one: &[&str],
    at_three: &[&str],
) {
    let mut cluster = Cluster::new(3);
    // Whatever it leaves on its disk is another's.
    let text = other(&cluster).replace("/data\"", "/other-data\"");
    let file = cluster.write("other.yaml", &text);
    cluster.spawn(1);
    cluster.spawn(2);
    cluster.spawn_with(3, &file);
    cluster.wait_log(1, at_one);
    cluster.wait_log(3, at_three);
    for id in [1, 2] {
        let status = health(cluster.ports(id).http);
        assert_ne!(status, Some(200), "node {id} serves with a stranger in the cluster");
    }

    // With the right file it is let in, and nobody else has to be started again.
    cluster.kill(3);
    cluster.spawn(3);
    for id in cluster.ids() {
        cluster.wait_ready(id);
    }
    assert_eq!(cluster.connect(1).say("MSET a 1 b 2 c 3"), "OK");
}

#[test]
fn a_node_of_another_cluster_is_refused_and_both_say_why() {
    strangers_are_refused(
        |cluster| cluster.yaml("someone-elses", PARTITIONS),
        &["refuse", "someone-elses"],
        &["refuse", "someone-elses"],
    );
}

#[test]
fn a_node_with_other_partitions_is_refused_and_both_say_why() {
    strangers_are_refused(
        |cluster| cluster.yaml(cluster.name(), 24),
        &["refuse", "cluster.yaml"],
        &["refuse", "cluster.yaml"],
    );
}

#[test]
fn sigterm_finishes_replies_and_ends_with_zero() {
    let mut cluster = Cluster::start_with("limits: { failover_wait: 300ms }\n");
    for (id, signal) in [(2, "TERM"), (1, "INT")] {
        let mut stream = dial(cluster.ports(id).client);
        let key = cluster.key_on(id, "last");
        let request = format!("INCR {key}\r\n").repeat(200);
        stream.write_all(request.as_bytes()).unwrap();
        expect(&mut stream, ":1\r\n");
        cluster.process(id).signal(signal);
        let replies = read_to_end(&mut stream);
        let expected: String = (2..=200).map(|n| format!(":{n}\r\n")).collect();
        assert_eq!(replies, expected, "replies of node {id} after SIG{signal}");
        let status = cluster.process(id).wait();
        assert_eq!(status.code(), Some(0), "node {id} after SIG{signal}: {status}");
    }
    // One of three is no majority.
    let mut third = cluster.connect(3);
    for key in [cluster.key_on(3, "near"), cluster.key_on(1, "far")] {
        eventually("a minority serves nothing", PATIENCE, || {
            third.say(&format!("GET {key}")).starts_with("-CLUSTERDOWN").then_some(())
        });
        let reply = third.say(&format!("SET {key} x"));
        assert!(reply.starts_with("-CLUSTERDOWN"), "{reply}");
    }
}

#[test]
fn a_node_that_waits_can_be_stopped() {
    let mut cluster = Cluster::new(3);
    cluster.spawn(2);
    let client = cluster.ports(2).client;
    wait_listening(&mut cluster, 2, client);
    cluster.process(2).signal("TERM");
    let status = cluster.process(2).wait();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn a_taken_port_is_named() {
    for which in 0..3 {
        let mut cluster = Cluster::new(3);
        let ports = cluster.ports(1);
        let port = [ports.client, ports.peer, ports.http][which];
        let _taken = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        cluster.spawn(1);
        let status = cluster.process(1).wait();
        let log = cluster.log(1);
        assert!(matches!(status.code(), Some(1..)), "{status}: {log}");
        assert!(log.contains(&port.to_string()), "port {port} in {log}");
    }
}

#[test]
fn http_tells_health_status_metrics_and_throughput() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("http", 2);
    for id in cluster.ids() {
        cluster.connect(id).mset_all(&keys, "x").unwrap();
        let port = cluster.ports(id).http;
        let json = |path: &str| -> serde_json::Value {
            let (status, body) = http(port, path).expect("an answer");
            assert_eq!(status, 200, "{path}: {body}");
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
        };
        assert_eq!(json("/health")["status"], "ready");
        assert!(json("/status").is_object());
        assert!(json("/series").is_array() || json("/series").is_object());
        let (status, metrics) = http(port, "/metrics").expect("an answer");
        assert_eq!(status, 200);
        assert!(metrics.contains("# TYPE quorate_"), "{metrics}");
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            assert!(value.is_some(), "a sample line ends with its value: {line}");
        }
        let (status, body) = http(port, "/nosuchpage").expect("an answer");
        assert_eq!(status, 404, "{body}");
    }
}
