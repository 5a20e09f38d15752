//! Transactions in a pipeline: several are under way at once, and nobody can tell from what they do.

use crate::harness::{Client, Cluster, PATIENCE, dial, eventually, expect};
use std::io::{BufRead, BufReader, Write};

/// Pipelines of one node, and keys that they share.
const ROUNDS: u64 = 25;
const COMMANDS: usize = 40;
const KEYS: u64 = 5;

/// The next of a fixed sequence of numbers (xorshift64*), below a bound.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
}

/// A command, or a transaction, on keys that are written as `@1`.
fn said(state: &mut u64) -> Vec<String> {
    let n = draw(state, 1000);
    let mut key = || format!("@{}", draw(state, KEYS));
    let [a, b, c] = [key(), key(), key()];
    let line = match n % 18 {
        0..3 => format!("MSET {a} {n} {b} {n}"),
        3..5 => format!("MSET {a} {n} {b} {n} {c} {n}"),
        5..7 => format!("INCR {a}"),
        7 => format!("GET {a}"),
        8 => format!("SET {a} {n}"),
        9 | 10 => format!("MGET {a} {b} {c}"),
        11 => format!("DEL {a} {b}"),
        12 => format!("MSETNX {a} {n} {b} {n}"),
        13 => format!("RENAME {a} {b}"),
        14 => format!("EXISTS {a} {b} {c}"),
        15 => format!("APPEND {a} {}", n % 10),
        16 => {
            let lines =
                ["MULTI".into(), format!("INCR {a}"), format!("MGET {b} {c}"), "EXEC".into()];
            return lines.into();
        }
        _ => {
            let lines = [
                format!("WATCH {a}"),
                format!("APPEND {b} 0"),
                "MULTI".into(),
                format!("SET {c} {n}"),
                format!("GET {a}"),
                "EXEC".into(),
            ];
            return lines.into();
        }
    };
    vec![line]
}

/// Each node's pipelines, and the same commands one after the other on keys of their own.
#[test]
fn a_pipeline_of_transactions_replies_as_one_after_the_other() {
    let cluster = Cluster::start();
    std::thread::scope(|scope| {
        for node in cluster.ids() {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut piped = cluster.connect(node);
                let mut stepwise: Client = cluster.connect(node % 3 + 1);
                for round in 0..ROUNDS {
                    let mut state = (u64::from(node) << 32) + round + 1;
                    let lines: Vec<String> = std::iter::repeat_with(|| said(&mut state))
                        .flatten()
                        .take(COMMANDS)
                        .collect();
                    // Whatever was cut off, the next round begins outside of a transaction.
                    let lines: Vec<String> =
                        lines.into_iter().chain(["DISCARD".into(), "UNWATCH".into()]).collect();
                    let on = |way: &str| -> Vec<String> {
                        let prefix = format!("{way}:{node}:{}:", round / 5);
                        lines.iter().map(|line| line.replace('@', &prefix)).collect()
                    };
                    let together = piped.pipeline(&on("together"));
                    let in_turn: Vec<String> =
                        on("in-turn").iter().map(|line| stepwise.say(line)).collect();
                    for (place, line) in lines.iter().enumerate() {
                        let (got, expected) = (&together[place], &in_turn[place]);
                        let before = || -> String {
                            let said = lines.iter().zip(together.iter().zip(&in_turn)).take(place);
                            said.map(|(line, (got, other))| format!("{line}: {got} / {other}\n"))
                                .collect()
                        };
                        assert!(
                            got == expected,
                            "{line} at {place} of node {node}, round {round}: {got} / {expected}, after\n{}",
                            before()
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn a_transaction_that_waits_holds_back_only_what_shares_its_keys() {
    let mut cluster = Cluster::start_in_memory();
    let [mine, other, fourth] = &cluster.keys_on(1, "here", 3)[..] else { panic!("three keys") };
    let there = &cluster.keys_on(2, "there", 3);
    let stopped = cluster.key_on(3, "stopped");
    let mut witness = cluster.connect(2);
    let mut stream = dial(cluster.ports(1).client);
    // Everything is linked and warm before a node stops.
    let warm = format!("MSET {stopped} 0 {mine} 0 {}\r\n", format_args!("{} 0", there[0]));
    stream.write_all(warm.as_bytes()).unwrap();
    expect(&mut stream, "+OK\r\n");
    cluster.pause(3);
    let lines = [
        format!("MSET {stopped} 1 {mine} 1"),
        format!("MSET {other} 1 {} 1", there[0]),
        format!("SET {} 1", there[1]),
        format!("MSET {mine} 2 {} 2", there[2]),
        format!("SET {fourth} 1"),
    ];
    stream.write_all((lines.join("\r\n") + "\r\n").as_bytes()).unwrap();
    for key in [&there[0], &there[1], fourth] {
        eventually(&format!("{key} is set"), PATIENCE, || {
            (witness.say(&format!("GET {key}")) == "\"1\"").then_some(())
        });
    }
    assert_eq!(witness.say(&format!("GET {}", there[2])), "nil", "it shares a key with the first");
    cluster.resume(3);
    let mut replies = BufReader::new(stream).lines().map(|line| line.unwrap());
    // A node that was away for long is taken for lost, and the first one with it.
    let first = replies.next().unwrap();
    assert!(first == "+OK" || first.starts_with('-'), "{first}");
    let rest: Vec<String> = replies.take(4).collect();
    assert_eq!(rest, ["+OK"; 4]);
    assert_eq!(witness.mget(&[mine, &there[2]]).unwrap(), [Some("2".into()), Some("2".into())]);
}
