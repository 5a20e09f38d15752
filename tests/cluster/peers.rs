//! What comes to a node's port for other nodes, and what does not leave it.

use crate::harness::{Client, Cluster, PATIENCE, Protocol, dial, eventually, read_on, read_to_end};
use quorate::cluster::barrier::Hello;
use quorate::ids::Term;
use quorate::ids::{Incarnation, NodeId, PartitionId};
use quorate::net::frame;
use quorate::net::packet::Packet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

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
        let read = read_on(stream, &mut piece).expect("more of it");
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

/// How the other two introduce themselves: overheard where a node that is away would listen.
fn overheard(cluster: &mut Cluster, away: u16) -> Vec<Hello> {
    cluster.kill(away);
    let listener = TcpListener::bind(("127.0.0.1", cluster.ports(away).peer)).expect("a free port");
    let mut hellos: Vec<Hello> = Vec::new();
    while hellos.len() < 2 {
        let (hello, _stream) = introduction(&listener);
        if hellos.iter().all(|known| known.node != hello.node) {
            hellos.push(hello);
        }
    }
    drop(listener);
    cluster.spawn(away);
    cluster.ids().for_each(|id| cluster.wait_ready(id));
    cluster.ids().for_each(|id| cluster.wait_led(id));
    hellos
}

/// What somebody says to a node's port for other nodes who knows all that can be overheard.
fn forgeries(known: &Hello, claimed: NodeId) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let packets = [
        Packet::Leads(PartitionId(0), NodeId(u16::MAX), Term(1 << 40)),
        Packet::Leads(PartitionId(0), claimed, Term(u64::MAX >> 16)),
        Packet::Leads(PartitionId(u16::MAX), claimed, Term(1)),
        Packet::Raft(Vec::new()),
        Packet::Verified(vec![PartitionId(u16::MAX)]),
        Packet::Claim(known.nonce),
        Packet::Yours(known.nonce, true),
        Packet::Ping { number: u64::MAX, seen: u64::MAX },
        Packet::Pong(u64::MAX),
        Packet::Ready,
        Packet::Refused,
    ];
    let words: Vec<Vec<u8>> = packets.iter().map(framed).collect();
    for life in [0, known.life.0, known.life.0 + 1, u64::MAX] {
        for nonce in [0, known.nonce] {
            let hello = Hello { node: claimed, life: Incarnation(life), nonce, ..known.clone() };
            let hello = framed(&Packet::Hello(hello));
            all.push([&hello[..], &words.concat()].concat());
            all.push(hello[..hello.len() - 3].to_vec());
            all.extend(words.iter().map(|word| [&hello[..], word].concat()));
            all.extend(words.iter().map(|word| [&hello[..], &word[..word.len() - 1]].concat()));
        }
    }
    let mut noise = 1_u64;
    for length in [1, 5, 64, 4_000] {
        let byte = |_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        };
        all.push((0..length).map(byte).collect());
    }
    all
}

#[test]
fn a_stranger_disturbs_no_link_and_learns_nothing() {
    let mut cluster = Cluster::start();
    let hellos = overheard(&mut cluster, 3);
    let lost = |cluster: &Cluster| -> usize {
        cluster.ids().map(|id| cluster.log(id).matches("lost node").count()).sum()
    };
    let lost_before = lost(&cluster);
    let keys = cluster.keys_everywhere("stranger", 1);
    let ports: Vec<u16> = cluster.ids().map(|id| cluster.ports(id).peer).collect();
    let said = AtomicUsize::new(0);
    let all: usize = std::thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            let mut all = 0;
            for (id, port) in (1..).zip(&ports) {
                let Some(known) = hellos.iter().find(|hello| hello.node.0 != id) else { continue };
                let mut open = Vec::new();
                for bytes in forgeries(known, known.node) {
                    let mut stream = dial(*port);
                    // It may be shown the door before it has said all.
                    let _ = stream.write_all(&bytes);
                    open.push(stream);
                    all += 1;
                    said.store(all, Ordering::Relaxed);
                }
            }
            all
        });
        let mut client = cluster.connect(1);
        let mut count = 0;
        while !stranger.is_finished() || count < 50 {
            count += 1;
            for key in &keys {
                assert_eq!(client.say(&format!("INCR {key}")), count.to_string());
            }
        }
        stranger.join().expect("the stranger has said everything")
    });
    assert_eq!(lost(&cluster), lost_before, "{all} forgeries cost a link");
    for id in cluster.ids() {
        assert!(cluster.process(id).ended().is_none(), "node {id} runs");
    }
    // Whatever is wrong with an introduction: one word.
    let known = &hellos[0];
    let target = cluster.ports(hellos[1].node.0).peer;
    for hello in [
        Hello { cluster: "other".into(), ..known.clone() },
        Hello { digest: known.digest + 1, ..known.clone() },
        Hello { version: known.version + 1, ..known.clone() },
        Hello { node: NodeId(9), ..known.clone() },
        Hello { node: hellos[1].node, ..known.clone() },
    ] {
        let mut stream = dial(target);
        stream.write_all(&framed(&Packet::Hello(hello.clone()))).expect("it is listened to");
        let mut told = Vec::new();
        stream.read_to_end(&mut told).expect("an answer");
        assert_eq!(told, framed(&Packet::Refused), "{hello:?}");
    }
}

/// Streams on which nothing is said take no place from nodes.
#[test]
fn silent_strangers_keep_no_node_out() {
    let mut cluster = Cluster::start();
    let ports: Vec<u16> = cluster.ids().map(|id| cluster.ports(id).peer).collect();
    cluster.kill(3);
    let silent: Vec<TcpStream> =
        (0..200).flat_map(|_| &ports[..2]).map(|port| dial(*port)).collect();
    cluster.spawn(3);
    cluster.wait_ready(3);
    drop(silent);
}

#[test]
fn a_node_that_does_not_read_is_cut_off_and_memory_stays_bounded() {
    const VALUE: usize = 1 << 20;
    const AT_ONCE: usize = 64;
    // The clients' requests, their copies for the other node and the kernel's buffers.
    const GROWTH_MAX: u64 = 320 << 20;
    let mut cluster = Cluster::start_in_memory_with(
        "limits: { peer_queue: 16MiB, value: 4MiB, transaction: 8MiB }\n",
    );
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
