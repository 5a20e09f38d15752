//! `CLUSTER`: which node leads which slots, for clients that like to ask the right one at once.
//!
//! To clients the cluster is one server and no request is ever sent elsewhere, so `INFO` and
//! `HELLO` do not speak of a cluster; but who asks is told the truth.

use super::client::{Client, Then};
use super::facts::{Facts, NodeFacts};
use super::number::parse_int;
use super::reply::Reply;
use super::spec::{Doc, Group, LOADING, NO_KEYS, READONLY, Run, STALE, Spec, Split, data};
use super::words::Words;
use super::{Call, NOT_AN_INTEGER};
use crate::engine::slots::slot_of;
use crate::ids::Slot;
use std::fmt::Write as _;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: Group::Cluster, since, complexity: "O(N)", summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "cluster", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: CLUSTER, bare: None },
        doc: doc("3.0.0", "Holds the commands on the cluster.", "") },
];

#[rustfmt::skip]
const CLUSTER: &[Spec] = &[
    Spec { name: "countkeysinslot", arity: 3, flags: READONLY | STALE, keys: NO_KEYS, run: data(91, count_keys, Split::Slot),
        doc: doc("3.0.0", "Counts the table's keys in a slot.", "slot") },
    Spec { name: "getkeysinslot", arity: 4, flags: READONLY | STALE, keys: NO_KEYS, run: data(92, get_keys, Split::Slot),
        doc: doc("3.0.0", "Names some of the table's keys in a slot.", "slot count") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(help),
        doc: doc("5.0.0", "Lists the subcommands.", "") },
    Spec { name: "info", arity: 2, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(info),
        doc: doc("3.0.0", "Tells how the cluster is.", "") },
    Spec { name: "keyslot", arity: 3, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(keyslot),
        doc: doc("3.0.0", "Tells a key's slot.", "key") },
    Spec { name: "myid", arity: 2, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(myid),
        doc: doc("3.0.0", "Tells the node's name.", "") },
    Spec { name: "nodes", arity: 2, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(nodes),
        doc: doc("3.0.0", "Tells about the nodes, a line each.", "") },
    Spec { name: "shards", arity: 2, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(shards),
        doc: doc("7.0.0", "Tells which node leads which slots, by node.", "") },
    Spec { name: "slots", arity: 2, flags: STALE | LOADING, keys: NO_KEYS, run: Run::Session(slots),
        doc: doc("3.0.0", "Tells which node leads which slots, by slot.", "") },
];

/// Cells looked at in one step of a walk through a table.
const STEP: usize = 1024;

/// Visits the table's keys in the slot, `max` at most.
fn visit(call: &Call<'_>, slot: Slot, max: usize, visit: &mut dyn FnMut(&[u8])) {
    let (mut cursor, mut seen) = (0, 0);
    loop {
        cursor = call.tables.scan(call.table, cursor, STEP, &mut |item| {
            if seen < max && slot_of(item.key()) == slot {
                seen += 1;
                visit(item.key());
            }
        });
        if cursor == 0 || seen == max {
            return;
        }
    }
}

fn slot_named(call: &Call<'_>) -> Option<Slot> {
    parse_int(call.args.get(1)).and_then(|slot| u16::try_from(slot).ok()).map(Slot)
}

fn count_keys(call: &mut Call<'_>) {
    let Some(slot) = slot_named(call) else { return call.reply.error("ERR Invalid slot") };
    let mut count = 0;
    visit(call, slot, usize::MAX, &mut |_| count += 1);
    call.reply.count(count);
}

fn get_keys(call: &mut Call<'_>) {
    let Some(max) = parse_int(call.args.get(2)) else { return call.reply.error(NOT_AN_INTEGER) };
    let (Some(slot), Ok(max)) = (slot_named(call), usize::try_from(max)) else {
        return call.reply.error("ERR Invalid slot or number of keys");
    };
    let mut keys: Vec<Vec<u8>> = Vec::new();
    visit(call, slot, max, &mut |key| keys.push(key.to_vec()));
    call.reply.array(keys.len());
    keys.iter().for_each(|key| call.reply.bulk(key));
}

fn help(_: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("CLUSTER", CLUSTER, reply);
    Then::Continue
}

fn keyslot(_: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int(slot_of(words.get(2)).0.into());
    Then::Continue
}

fn myid(_: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let own = facts.cluster.iter().find(|node| node.node == facts.node);
    reply.bulk(own.map_or("", |node| &node.name).as_bytes());
    Then::Continue
}

fn info(_: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let slots = |node: &NodeFacts| -> usize {
        node.slots.iter().map(|(first, last)| usize::from(last - first) + 1).sum()
    };
    let assigned: usize = facts.cluster.iter().map(slots).sum();
    let served: usize = facts.cluster.iter().filter(|node| node.linked).map(slots).sum();
    let text = format!(
        "cluster_state:{}\r\ncluster_slots_assigned:{assigned}\r\ncluster_slots_ok:{served}\r\n\
         cluster_slots_fail:{}\r\ncluster_known_nodes:{}\r\ncluster_size:{}\r\n",
        if served == assigned { "ok" } else { "fail" },
        assigned - served,
        facts.cluster.len(),
        facts.cluster.iter().filter(|node| !node.slots.is_empty()).count(),
    );
    reply.verbatim("txt", text.as_bytes());
    Then::Continue
}

fn nodes(_: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let mut text = String::new();
    for node in &facts.cluster {
        let flags = match (node.node == facts.node, node.linked) {
            (true, _) => "myself,master",
            (false, true) => "master",
            (false, false) => "master,fail",
        };
        let link = if node.linked { "connected" } else { "disconnected" };
        let NodeFacts { name, host, port, peer_port, .. } = node;
        // Writing to a string does not fail.
        let _ = write!(text, "{name} {host}:{port}@{peer_port} {flags} - 0 0 0 {link}");
        for (first, last) in &node.slots {
            let _ = match first == last {
                true => write!(text, " {first}"),
                false => write!(text, " {first}-{last}"),
            };
        }
        text.push('\n');
    }
    reply.verbatim("txt", text.as_bytes());
    Then::Continue
}

fn slots(_: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let of = |node| std::iter::repeat(node);
    let mut runs: Vec<(&(u16, u16), &NodeFacts)> =
        facts.cluster.iter().flat_map(|node| node.slots.iter().zip(of(node))).collect();
    runs.sort_unstable_by_key(|(run, _)| **run);
    reply.array(runs.len());
    for ((first, last), node) in runs {
        reply.array(3);
        reply.int((*first).into());
        reply.int((*last).into());
        reply.array(4);
        reply.bulk(node.host.as_bytes());
        reply.int(node.port.into());
        reply.bulk(node.name.as_bytes());
        reply.array(0);
    }
    Then::Continue
}

fn shards(_: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.array(facts.cluster.len());
    for node in &facts.cluster {
        reply.map(2);
        reply.bulk(b"slots");
        reply.array(node.slots.len() * 2);
        for (first, last) in &node.slots {
            reply.int((*first).into());
            reply.int((*last).into());
        }
        reply.bulk(b"nodes");
        reply.array(1);
        reply.map(7);
        reply.bulk(b"id");
        reply.bulk(node.name.as_bytes());
        reply.bulk(b"port");
        reply.int(node.port.into());
        reply.bulk(b"ip");
        reply.bulk(node.host.as_bytes());
        reply.bulk(b"endpoint");
        reply.bulk(node.host.as_bytes());
        reply.bulk(b"role");
        reply.bulk(b"master");
        reply.bulk(b"replication-offset");
        reply.int(0);
        reply.bulk(b"health");
        reply.bulk(if node.linked { b"online" } else { b"fail" });
    }
    Then::Continue
}
