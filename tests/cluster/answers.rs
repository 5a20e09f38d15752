//! What was executed is answered, once: every reply of deep pipelines against a model.

use crate::harness::{
    Cluster, IN_MEMORY, PARTITIONS, PATIENCE, REPLICATED, StopAtEnd, dial, eventually, partition_of,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// Connections to each node, rounds of each connection, and commands of a round.
const CONNECTIONS: u64 = 2;
const ROUNDS: u64 = 3;
const COMMANDS: usize = 150;

/// Keys of a connection: with small values in every partition, with large values in some.
const LARGE: u64 = 3;

/// Bytes of a large value: some alone are more than the replies of one batch may take.
const LARGE_BYTES: (u64, u64) = (100 << 10, 1200 << 10);

/// The next of a fixed sequence of numbers (xorshift64*), below a bound.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
}

/// A command as it is sent.
fn encoded(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(bulk(word));
    }
    bytes
}

fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

fn bulk_or_nil(value: Option<&Vec<u8>>) -> Vec<u8> {
    value.map_or_else(|| b"$-1\r\n".to_vec(), |value| bulk(value))
}

/// A key in a partition.
fn key_in(partition: u16, prefix: &str) -> String {
    let mut keys = (0..).map(|n| format!("{prefix}:{n}"));
    keys.find(|key| partition_of(key) == partition).expect("there are enough numbers")
}

/// The keys of one connection as they should be: no other connection names them.
struct Model {
    small: Vec<String>,
    large: Vec<String>,
    values: BTreeMap<String, Vec<u8>>,
    state: u64,
}

impl Model {
    fn new(number: u64) -> Model {
        let mut state = number + 1;
        let keys = |count: u64, name: &str, partition: &mut dyn FnMut(u64) -> u16| {
            let keys = (0..count).map(|n| key_in(partition(n), &format!("{name}:{number}:{n}")));
            keys.collect()
        };
        let small = keys(2 * u64::from(PARTITIONS), "small", &mut |n| n as u16 % PARTITIONS);
        let anywhere = &mut |_| draw(&mut state, PARTITIONS.into()) as u16;
        let large = keys(LARGE, "large", anywhere);
        Model { small, large, values: BTreeMap::new(), state }
    }

    fn draw(&mut self, below: u64) -> u64 {
        draw(&mut self.state, below)
    }

    fn small(&mut self) -> String {
        let at = self.draw(self.small.len() as u64);
        self.small[at as usize].clone()
    }

    fn large(&mut self) -> String {
        let at = self.draw(LARGE);
        self.large[at as usize].clone()
    }

    /// The next command, and its reply.
    fn step(&mut self) -> (Vec<u8>, Vec<u8>) {
        let kind = self.draw(100);
        let text = self.draw(1000).to_string().into_bytes();
        let (name, key): (&str, String) = match kind {
            0..40 => ("INCR", self.small()),
            40..50 => ("APPEND", self.small()),
            50..58 => ("SET NX", self.small()),
            58..63 => ("DEL", self.small()),
            63..68 => ("GET", self.small()),
            68..72 => ("GETSET", self.small()),
            72..78 => ("MSET", self.small()),
            78..82 => ("MGET", self.large()),
            82..94 => ("GET", self.large()),
            94..96 => ("GETEX", self.large()),
            96..98 => ("SETRANGE", self.large()),
            _ => ("SET", self.large()),
        };
        let held = self.values.get(&key).cloned();
        let number = || {
            let text = std::str::from_utf8(held.as_deref().unwrap_or(b"0")).ok()?;
            text.parse::<i64>().ok()?.checked_add(1)
        };
        match name {
            "INCR" => {
                let reply = match number() {
                    Some(next) => {
                        self.values.insert(key.clone(), next.to_string().into_bytes());
                        format!(":{next}\r\n")
                    }
                    None => "-ERR value is not an integer or out of range\r\n".into(),
                };
                (encoded(&[b"INCR", key.as_bytes()]), reply.into_bytes())
            }
            "APPEND" => {
                let value = self.values.entry(key.clone()).or_default();
                value.extend(&text);
                let reply = format!(":{}\r\n", value.len());
                // It grows beyond a number now and then, and is one again.
                (encoded(&[b"APPEND", key.as_bytes(), &text]), reply.into_bytes())
            }
            "SET NX" => {
                let reply: &[u8] = if held.is_some() { b"$-1\r\n" } else { b"+OK\r\n" };
                self.values.entry(key.clone()).or_insert_with(|| text.clone());
                (encoded(&[b"SET", key.as_bytes(), &text, b"NX"]), reply.to_vec())
            }
            "DEL" => {
                let reply = format!(":{}\r\n", u8::from(self.values.remove(&key).is_some()));
                (encoded(&[b"DEL", key.as_bytes()]), reply.into_bytes())
            }
            "GETSET" => {
                self.values.insert(key.clone(), text.clone());
                (encoded(&[b"GETSET", key.as_bytes(), &text]), bulk_or_nil(held.as_ref()))
            }
            "MSET" => {
                let other = self.small();
                self.values.insert(key.clone(), text.clone());
                self.values.insert(other.clone(), text.clone());
                let words = [b"MSET", key.as_bytes(), &text, other.as_bytes(), &text];
                (encoded(&words), b"+OK\r\n".to_vec())
            }
            "MGET" => {
                let other = self.small();
                let reply = [
                    b"*2\r\n".to_vec(),
                    bulk_or_nil(held.as_ref()),
                    bulk_or_nil(self.values.get(&other)),
                ];
                (encoded(&[b"MGET", key.as_bytes(), other.as_bytes()]), reply.concat())
            }
            "SETRANGE" => {
                let at = held.as_ref().map_or(0, Vec::len) + 5;
                let value = self.values.entry(key.clone()).or_default();
                value.resize(at, 0);
                value.extend(&text);
                let reply = format!(":{}\r\n", value.len());
                let at = at.to_string();
                let words = [b"SETRANGE", key.as_bytes(), at.as_bytes(), &text];
                (encoded(&words), reply.into_bytes())
            }
            "SET" => {
                let bytes = LARGE_BYTES.0 + self.draw(LARGE_BYTES.1 - LARGE_BYTES.0);
                let value = vec![b'a' + self.draw(26) as u8; bytes as usize];
                self.values.insert(key.clone(), value.clone());
                (encoded(&[b"SET", key.as_bytes(), &value]), b"+OK\r\n".to_vec())
            }
            reads => {
                let words = [reads.as_bytes(), key.as_bytes()];
                (encoded(&words), bulk_or_nil(held.as_ref()))
            }
        }
    }
}

/// What is worth showing of a command or reply.
fn shown(bytes: &[u8]) -> String {
    format!("{} ({} bytes)", bytes[..bytes.len().min(80)].escape_ascii(), bytes.len())
}

/// Sends all commands and compares their replies, reading while it writes.
fn check(stream: &mut TcpStream, steps: &[(Vec<u8>, Vec<u8>)], what: &str) {
    let mut writer = stream.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let all: Vec<u8> = steps.iter().flat_map(|(command, _)| command.clone()).collect();
            writer.write_all(&all).expect("the node reads");
        });
        let mut reader = BufReader::new(&*stream);
        for (place, (command, reply)) in steps.iter().enumerate() {
            let mut got = vec![0; reply.len()];
            // A reply that is shorter shows in its first bytes: never wait for more than is there.
            let mut read = 0;
            while read < got.len() && reply.starts_with(&got[..read]) {
                match reader.read(&mut got[read..]) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    more => read += more.expect("a reply"),
                }
            }
            if got == *reply {
                continue;
            }
            got.truncate(read);
            let mut rest = Vec::new();
            if !got.contains(&b'\n') {
                let _ = reader.read_until(b'\n', &mut rest);
            }
            got.extend(rest);
            panic!(
                "{what}: {} at {place} of {}: {} in place of {}",
                shown(command),
                steps.len(),
                shown(&got),
                shown(reply)
            );
        }
    });
}

/// A cluster whose tables are kept so, of nodes with so many arbiters.
fn start(class: &str, arbiters: u16) -> Cluster {
    let mut cluster = Cluster::new(3);
    let text = cluster
        .yaml(cluster.name(), PARTITIONS)
        .replace("arbiters: 2", &format!("arbiters: {arbiters}"))
        .replace(REPLICATED, class);
    cluster.write("cluster.yaml", &text);
    cluster.start_all();
    cluster
}

/// Each connection owns its keys, so its model is exact.
fn compare(class: &str, arbiters: u16) {
    let cluster = start(class, arbiters);
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS * 3 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut model = Model::new(number);
                let node = (number % 3 + 1) as u16;
                let mut stream = dial(cluster.ports(node).client);
                let large = model.large.clone();
                for key in large {
                    let value = vec![b'v'; LARGE_BYTES.1 as usize];
                    let set = encoded(&[b"SET", key.as_bytes(), &value]);
                    check(&mut stream, &[(set, b"+OK\r\n".to_vec())], "at first");
                    model.values.insert(key, value);
                }
                for round in 0..ROUNDS {
                    let steps: Vec<_> = (0..COMMANDS).map(|_| model.step()).collect();
                    let what = format!("connection {number} at node {node}, round {round}");
                    check(&mut stream, &steps, &what);
                }
            });
        }
    });
}

#[test]
fn every_reply_is_the_models_with_copies_and_two_arbiters() {
    compare(REPLICATED, 2);
}

#[test]
fn every_reply_is_the_models_in_memory_with_three_arbiters() {
    compare(IN_MEMORY, 3);
}

/// Long replies of one arbiter end its part of a batch; what the others executed stays executed.
#[test]
fn what_one_arbiter_executed_is_not_asked_again_for_what_another_left() {
    for (class, arbiters) in [(REPLICATED, 2), (IN_MEMORY, 3)] {
        let cluster = start(class, arbiters);
        let mut stream = dial(cluster.ports(1).client);
        // Partitions 4 to 7 are led by node 2.
        let led = 4..8;
        for partition in led.clone() {
            let big = key_in(partition, "big");
            let value = vec![b'v'; LARGE_BYTES.1 as usize];
            let set = encoded(&[b"SET", big.as_bytes(), &value]);
            let mut steps = vec![
                (encoded(&[b"GET", big.as_bytes()]), bulk(&value)),
                (encoded(&[b"GET", key_in(partition, "no").as_bytes()]), b"$-1\r\n".to_vec()),
            ];
            for other in led.clone() {
                let [count, once] = ["count", "once"]
                    .map(|name| key_in(other, &format!("{name}:{partition}")).into_bytes());
                steps.extend(
                    (1..=8)
                        .map(|n| (encoded(&[b"INCR", &count]), format!(":{n}\r\n").into_bytes())),
                );
                steps.push((encoded(&[b"SET", &once, b"1", b"NX"]), b"+OK\r\n".to_vec()));
            }
            steps.push((encoded(&[b"GET", big.as_bytes()]), bulk(&value)));
            check(&mut stream, &[(set, b"+OK\r\n".to_vec())], "at first");
            check(&mut stream, &steps, &format!("big in partition {partition}"));
        }
    }
}

/// Bytes of a value of which a node is asked many times over.
const ASKED_BYTES: usize = 1 << 20;

/// Asks for a long value so often that its node would be silenced, and its memory filled, if all
/// replies left at once. Whether they come from memory or from the log is the lease's affair and
/// that of what is written before them.
#[test]
fn many_long_replies_cost_a_node_neither_its_links_nor_memory() {
    const CLIENTS: usize = 3;
    const READS: usize = 150;
    const GROWTH_MAX: u64 = 192 << 20;
    let mut cluster = Cluster::start();
    let (key, beside) = ("{b}asked", "{b}beside");
    let leader = (partition_of(key) / (PARTITIONS / 3) + 1) as usize;
    let other = (leader % 3 + 1) as u16;
    let value = vec![b'v'; ASKED_BYTES];
    let set = encoded(&[b"SET", key.as_bytes(), &value]);
    check(&mut dial(cluster.ports(other).client), &[(set, b"+OK\r\n".to_vec())], "at first");
    let before: Vec<u64> = cluster.ids().map(|id| cluster.process(id).memory()).collect();
    let reads = |first: &[&[u8]], reply: &[u8], name: &[u8]| {
        let mut steps = vec![(encoded(first), reply.to_vec())];
        let read = (encoded(&[name, key.as_bytes()]), bulk(&value));
        steps.extend(std::iter::repeat_n(read, READS));
        steps
    };
    let rounds = [
        ("behind a write", reads(&[b"SET", beside.as_bytes(), b"1"], b"+OK\r\n", b"GET")),
        ("by themselves", reads(&[b"GET", b"{b}nothing"], b"$-1\r\n", b"GET")),
        ("through the log", reads(&[b"SET", beside.as_bytes(), b"1"], b"+OK\r\n", b"GETEX")),
    ];
    for (what, steps) in &rounds {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| check(&mut dial(cluster.ports(other).client), steps, what));
            }
        });
    }
    for id in cluster.ids() {
        let log = cluster.log(id);
        assert!(!log.contains("lost node"), "node {id} lost another:\n{log}");
        let (held, before) = (cluster.process(id).memory(), before[usize::from(id) - 1]);
        assert!(held < before + GROWTH_MAX, "node {id}: from {before} to {held} bytes");
    }
}

/// Leaders that are moved.
const MOVES: u16 = 12;

/// Operations that meet a node which does not lead any more, among others that were executed or left:
/// each takes effect once.
#[test]
fn counters_grow_once_while_leaders_move_and_replies_are_long() {
    let cluster = start(REPLICATED, 2);
    let big: Vec<String> = (0..PARTITIONS).map(|partition| key_in(partition, "big")).collect();
    let mut client = cluster.connect(1);
    for key in &big {
        let length = client.say(&format!("SETRANGE {key} {} v", LARGE_BYTES.1 - 1));
        assert_eq!(length, LARGE_BYTES.1.to_string());
    }
    let moved = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&moved);
        for node in cluster.ids() {
            let (cluster, big, moved) = (&cluster, &big, &moved);
            scope.spawn(move || {
                let mut client = cluster.connect(node);
                let count = |partition| key_in(partition, &format!("count:{node}"));
                let counters: Vec<String> = (0..PARTITIONS).map(count).collect();
                // What each counter holds at least, and how often it may have grown beside.
                let mut known = vec![(0, 0); counters.len()];
                let mut round = 0;
                while !moved.load(Ordering::Relaxed) || round < 2 {
                    let mut lines = Vec::new();
                    let mut asked = Vec::new();
                    for (at, counter) in counters.iter().enumerate() {
                        let long = (at + round) % 4 == 0;
                        for line in [format!("GET {}", big[at]), format!("INCR {counter}")] {
                            if long || line.starts_with("INCR") {
                                asked.push(line.starts_with("INCR").then_some(at));
                                lines.push(line);
                            }
                        }
                    }
                    let replies = client.try_pipeline(&lines).expect("a pipeline is answered");
                    for (at, reply) in asked.iter().zip(replies) {
                        let Some((low, unsure)) = at.map(|at| &mut known[at]) else { continue };
                        match reply {
                            Ok(redis::Value::Int(value)) => {
                                let grown = *low + 1..=*low + 1 + *unsure;
                                assert!(grown.contains(&value), "{value} in place of {grown:?}");
                                (*low, *unsure) = (value, 0);
                            }
                            Ok(other) => panic!("{other:?}"),
                            Err(error) if error.code() == Some("UNKNOWN") => *unsure += 1,
                            Err(error) => {
                                let refusals = [Some("TRYAGAIN"), Some("CLUSTERDOWN")];
                                assert!(refusals.contains(&error.code()), "{error}");
                            }
                        }
                    }
                    round += 1;
                }
            });
        }
        let mover = scope.spawn(|| {
            for turn in 0..MOVES {
                let (partition, to) = (turn % PARTITIONS, turn % 3 + 1);
                // Whoever leads it hands it over.
                for node in cluster.ids() {
                    cluster.connect(node).say(&format!("CLUSTER TRANSFER {partition} {to}"));
                }
                eventually("the leader has moved", PATIENCE, || {
                    let status = cluster.status(to)?;
                    let mut replicas = status["replicas"].as_array()?.iter();
                    replicas
                        .any(|one| one["id"] == partition && one["role"] == "leader")
                        .then_some(())
                });
            }
        });
        let done = mover.join();
        drop(at_end);
        assert!(done.is_ok(), "every leader was moved");
    });
}
