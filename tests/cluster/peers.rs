//! What comes to a node's port for other nodes, and what does not leave it.

use crate::harness::{Client, Cluster, PATIENCE, Protocol, dial, eventually, read_to_end};
use quorate::engine::barrier::Hello;
use quorate::ids::{Incarnation, NodeId};
use quorate::net::frame;
use quorate::net::packet::Packet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn framed(packet: &Packet) -> Vec<u8> {
    let mut out = Vec::new();
    frame::push(packet, &mut out).expect("a packet");
    out
}

/// The first packet of a stream.
fn first(stream: &mut TcpStream) -> Packet {
    let mut buffer = Vec::new();
    loop {
        if let Some(packet) = frame::first(&mut buffer).expect("a packet") {
            return packet;
        }
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).expect("more of it");
        assert!(read > 0, "the stream ended");
        buffer.extend_from_slice(&piece[..read]);
    }
}

/// A node's introduction, to one who listens in place of another.
fn introduction(listener: &TcpListener) -> (Hello, TcpStream) {
    let (mut stream, _) = listener.accept().expect("the node dials");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    match first(&mut stream) {
        Packet::Hello(hello) => (hello, stream),
        other => panic!("no introduction: {other:?}"),
    }
}

#[test]
fn whatever_is_cut_off_before_the_link_stands_is_told_with_its_reason() {
    let mut cluster = Cluster::new(2);
    let port = cluster.ports(1).peer;
    let listener = TcpListener::bind(("127.0.0.1", cluster.ports(2).peer)).expect("a free port");
    cluster.spawn(1);
    let (own, mut dialled) = introduction(&listener);
    // It dialled somebody who is no node.
    let _ = dialled.write_all(b"\x05\0\0\0hello");
    let here = listener.local_addr().expect("an address").to_string();
    cluster.wait_log(1, &["cut off", &here, "for node 2", "a frame that is no packet"]);

    let hello = Hello { node: NodeId(2), life: Incarnation(7), ..own };
    let good = framed(&Packet::Hello(hello.clone()));
    let newer = framed(&Packet::Hello(Hello { version: hello.version + 1, ..hello.clone() }));
    let stranger = framed(&Packet::Hello(Hello { node: NodeId(9), ..hello }));
    let giant = u32::MAX.to_le_bytes().to_vec();
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("garbage", b"\x03\0\0\0abc".to_vec(), &["refused", "a frame that is no packet"]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), &["refused", "introduction is too long"]),
        ("too much", giant.clone(), &["refused", "introduction is too long"]),
        ("no introduction", framed(&Packet::Ready), &["refused", "does not introduce itself"]),
        ("a stranger", stranger, &["refused", "node 9 is not in the cluster file"]),
        ("another version", newer, &["refused node 2 at 127.0.0.1", "speaks protocol version"]),
        (
            "garbage later",
            [&good[..], b"\x03\0\0\0xyz"].concat(),
            &["cut off", "for node 2", "a frame that is no packet"],
        ),
        (
            "too much later",
            [&good[..], &giant].concat(),
            &["cut off", "for node 2", "a frame of 4294967295 bytes"],
        ),
        ("twice", [&good[..], &good].concat(), &["cut off", "for node 2", "itself twice"]),
    ];
    for (what, bytes, told) in cases {
        let mut stream = dial(port);
        let from = stream.local_addr().expect("an address").to_string();
        stream.write_all(&bytes).expect("it is listened to");
        // It is shown the door.
        read_to_end(&mut stream);
        // Another version of a node comes again and again, each time from another port.
        let from = if what == "another version" { "127.0.0.1" } else { &from };
        cluster.wait_log(1, &[told, &[from]].concat());
    }
    // None of it has kept the node from meeting the real one.
    drop((listener, dialled));
    cluster.spawn(2);
    cluster.wait_ready(1);
    cluster.wait_log(1, &["linked with node 2"]);
}

#[test]
fn a_node_that_does_not_read_is_cut_off_and_memory_stays_bounded() {
    const VALUE: usize = 1 << 20;
    const AT_ONCE: usize = 64;
    // The clients' requests, their copies for the other node and the kernel's buffers.
    const GROWTH_MAX: u64 = 320 << 20;
    let mut cluster = Cluster::start_in_memory_with("limits: { peer_queue: 16MiB }\n");
    let key = cluster.key_on(2, "unread");
    let port = cluster.ports(1).client;
    assert_eq!(cluster.connect(1).say(&format!("SET {key} 1")), "OK");
    let before = cluster.process(1).memory();
    cluster.pause(2);
    // Well before three seconds of silence are over.
    let value = "v".repeat(VALUE);
    let request = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE}\r\n{value}\r\n", key.len());
    let mut streams: Vec<TcpStream> = (0..AT_ONCE).map(|_| dial(port)).collect();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).expect("the node reads");
    }
    let line = cluster.wait_log(1, &["lost node 2", "it does not read", "limits.peer_queue"]);
    let waited: usize = line
        .split("it does not read: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no figure in {line:?}"));
    assert!((16 << 20..(16 << 20) + 2 * VALUE).contains(&waited), "{line}");
    // From here on whoever asks is refused at once, and nothing piles up.
    let mut client = Client::connect(port, Protocol::Resp2).expect("a node that serves");
    for _ in 0..200 {
        let refused = client.say(&format!("SET {key} {value}"));
        assert!(refused.contains("CLUSTERDOWN"), "{refused}");
    }
    let held = cluster.process(1).memory();
    assert!(held < before + GROWTH_MAX, "from {before} to {held} bytes");
    cluster.resume(2);
    eventually("the nodes are linked again", PATIENCE, || {
        (client.say(&format!("SET {key} 2")) == "OK").then_some(())
    });
}
