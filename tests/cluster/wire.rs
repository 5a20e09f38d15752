//! What clients may send that no client library would.

use crate::harness::{Cluster, dial, expect, read_to_end};
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn a_malformed_request_ends_its_own_connection_only() {
    let cluster = Cluster::start();
    let port = cluster.ports(1).client;
    let mut bystander = cluster.connect(1);
    for (request, reply) in [
        ("*1\r\n$abc\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("*2\r\n:1\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
        ("*1\r\n$-5\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*9999999999\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("GET \"open\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
    ] {
        let mut stream = dial(port);
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_to_end(&mut stream), reply, "{request:?}");
        assert_eq!(bystander.say("PING"), "PONG", "after {request:?}");
    }
}

#[test]
fn commands_before_a_malformed_one_are_answered() {
    let cluster = Cluster::start();
    let [a, b, c] = [1, 2, 3].map(|id| cluster.key_on(id, "before"));
    let mut stream = dial(cluster.ports(2).client);
    let request = format!("MSET {a} 1 {b} 2 {c} 3\r\nMGET {a} {b} {c}\r\nPING\r\n*1\r\n$x\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(
        read_to_end(&mut stream),
        "+OK\r\n*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n+PONG\r\n\
         -ERR Protocol error: invalid bulk length\r\n"
    );
}

#[test]
fn requests_may_come_in_any_pieces() {
    let cluster = Cluster::start();
    let key = cluster.key_on(3, "pieces");
    let len = key.len();
    let request = format!(
        "*3\r\n$3\r\nSET\r\n${len}\r\n{key}\r\n$5\r\nhello\r\n*2\r\n$3\r\nGET\r\n${len}\r\n{key}\r\n"
    );
    for split in 1..request.len() {
        let mut stream = dial(cluster.ports(1).client);
        let (first, second) = request.as_bytes().split_at(split);
        stream.write_all(first).unwrap();
        stream.flush().unwrap();
        stream.write_all(second).unwrap();
        expect(&mut stream, "+OK\r\n$5\r\nhello\r\n");
    }
}

#[test]
fn inline_commands_and_empty_lines_are_understood() {
    let cluster = Cluster::start();
    let key = cluster.key_on(2, "inline");
    let mut stream = dial(cluster.ports(1).client);
    let request = format!("\r\nset {key} \"two words\"\r\n*0\r\nget {key}\r\nPING\n");
    stream.write_all(request.as_bytes()).unwrap();
    expect(&mut stream, "+OK\r\n$9\r\ntwo words\r\n+PONG\r\n");
}

#[test]
fn quit_answers_and_closes() {
    let cluster = Cluster::start();
    let mut stream = dial(cluster.ports(1).client);
    stream.write_all(b"PING\r\nQUIT\r\nPING\r\n").unwrap();
    assert_eq!(read_to_end(&mut stream), "+PONG\r\n+OK\r\n");
}

/// A client that sends and never reads is not read from either: its replies must not pile up.
#[test]
fn a_client_that_does_not_read_is_no_burden() {
    const FOR: Duration = Duration::from_secs(2);
    const MEMORY_MAX: u64 = 400 << 20;
    let mut cluster = Cluster::start();
    let key = cluster.key_on(2, "burden");
    let mut bystander = cluster.connect(1);
    assert_eq!(bystander.say(&format!("SET {key} {}", "x".repeat(100_000))), "OK");
    let mut stream = dial(cluster.ports(1).client);
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Replies of 1.6 GB. A write that times out has been pushed back, which is as it should be.
    let request = format!("GET {key}\r\n").repeat(1_000);
    let _ = (0..16).try_for_each(|_| stream.write_all(request.as_bytes()));
    let begun = Instant::now();
    while begun.elapsed() < FOR {
        assert_eq!(bystander.say(&format!("STRLEN {key}")), "100000");
    }
    for id in [1, 2] {
        let held = cluster.process(id).memory();
        assert!(held < MEMORY_MAX, "node {id} holds {} MiB", held >> 20);
    }
    drop(stream);
    assert_eq!(bystander.say("PING"), "PONG");
}
