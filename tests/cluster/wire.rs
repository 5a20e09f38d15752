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
    let mut cluster = Cluster::start_with("limits: { output_buffer: 64MiB }\n");
    let key = cluster.key_on(2, "burden");
    let mut bystander = cluster.connect(1);
    assert_eq!(bystander.say(&format!("SET {key} {}", "x".repeat(100_000))), "OK");
    let mut stream = dial(cluster.ports(1).client);
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Replies of 1.6 GB. It is closed once as many wait for it as may.
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

/// A web page can have a browser send any body to any port. As in Redis, a line of HTTP ends the
/// connection before anything behind it is executed.
#[test]
fn http_ends_the_connection_before_anything_is_executed() {
    let cluster = Cluster::start_in_memory();
    for request in [
        "POST / HTTP/1.1\r\nSET web 1\r\n",
        "post\r\nSET web 1\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\nSET web 1\r\n",
        "OPTIONS / HTTP/1.1\r\nHOST:\r\nSET web 1\r\n",
        "MULTI\r\nSET web 1\r\nhost: x\r\nEXEC\r\n",
        "*1\r\n$4\r\nPOST\r\nSET web 1\r\n",
        "CLIENT REPLY OFF\r\nPOST x\r\nSET web 1\r\n",
    ] {
        let mut stream = dial(cluster.ports(1).client);
        stream.write_all(request.as_bytes()).unwrap();
        let said = read_to_end(&mut stream);
        assert!(!said.to_lowercase().contains("post") && !said.contains("host"), "{said}");
        assert_eq!(cluster.connect(2).say("EXISTS web"), "0", "{request:?}");
    }
    let log = cluster.wait_log(1, &["it sent a line of an HTTP request"]);
    let warned = log.matches("it sent a line of an HTTP request").count();
    assert!(warned <= 2, "once an arbiter in a minute, and not {warned} times");
}

/// Many a client library writes a whole pipeline before it reads the first reply.
#[test]
fn a_client_that_writes_everything_before_it_reads_is_served() {
    let cluster = Cluster::start_in_memory_with("limits: { unread: 20s }\n");
    for node in [1, 3] {
        let key = cluster.key_on(1, "pipeline");
        let large = "x".repeat(8 << 20);
        let set = |value: &str| {
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len())
        };
        let mut stream = dial(cluster.ports(node).client);
        stream.set_write_timeout(stream.read_timeout().unwrap()).unwrap();
        stream.write_all(set(&large).as_bytes()).unwrap();
        expect(&mut stream, "+OK\r\n");
        // Each reply is as long as the next request.
        let request = format!("GET {key}\r\n{}", set(&large));
        stream.write_all(request.repeat(4).as_bytes()).unwrap();
        let reply = format!("${}\r\n{large}\r\n+OK\r\n", large.len());
        expect(&mut stream, &reply.repeat(4));

        let value = "x".repeat(1000);
        let short = format!("SET {key} {value}\r\n");
        stream.write_all(short.as_bytes()).unwrap();
        expect(&mut stream, "+OK\r\n");
        stream.write_all(format!("GET {key}\r\n").repeat(60_000).as_bytes()).unwrap();
        let reply = format!("$1000\r\n{value}\r\n");
        for _ in 0..60 {
            expect(&mut stream, &reply.repeat(1000));
        }
        // What it asked last is answered though it says that it will ask no more.
        stream.write_all(format!("GET {key}\r\n").repeat(20_000).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stream).len(), reply.len() * 20_000);
    }
}

/// What a client does not read is kept for it up to a limit, whatever it goes on to ask.
#[test]
fn a_client_that_never_reads_is_closed_at_its_limit() {
    let cluster = Cluster::start_in_memory_with("limits: { output_buffer: 12MiB }\n");
    let key = cluster.key_on(1, "deaf");
    let mut client = cluster.connect(1);
    client.say(&format!("SET {key} {}", "x".repeat(100_000)));
    let mut deaf = dial(cluster.ports(1).client);
    deaf.set_write_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let gets = format!("GET {key}\r\n").repeat(10_000);
    let written = (0..200).map(|_| deaf.write_all(gets.as_bytes())).find(Result::is_err);
    let error = written.expect("it is closed at last").unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
    cluster.wait_log(1, &["closing client", "where 12582912 are allowed"]);
    assert_eq!(client.say("PING"), "PONG");
}
