//! `CLUSTER`: which node leads which slots, for clients that like to ask the right one at once.
//!
//! To clients the cluster is one server and no request is ever sent elsewhere, so `INFO` and
//! `HELLO` do not speak of a cluster; but a client that asks is told the truth.

use super::argv::Argv;
use super::client::{Client, Then};
use super::facts::{Facts, NodeFacts, PartitionFacts};
use super::node_query::{NodeQuery, Question, Show};
use super::reply::Reply;
use super::spec::{
    ADMIN, CommandGroup, DANGEROUS, Doc, LOADING, Merge, NO_KEYS, NO_MULTI, Over, READONLY, Run,
    STALE, Spec, Split, data,
};
use super::{Call, NOT_AN_INTEGER};
use crate::cluster::slots::slot_of;
use crate::ids::{NodeId, PartitionId, Slot};
use crate::store::number::parse_int;
use std::fmt::Write as _;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Cluster, since, complexity: "O(N)", summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "cluster", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: CLUSTER, bare: None },
        doc: doc("3.0.0", "Holds the commands on the cluster.", "") },
];

/// What is for backups: there is no access control yet that would keep other clients from it.
const BACKUP: u32 = READONLY | ADMIN | DANGEROUS | NO_MULTI;

#[rustfmt::skip]
const CLUSTER: &[Spec] = &[
    Spec { name: "countkeysinslot", arity: 3, flags: READONLY | STALE, keys: NO_KEYS, run: data(91, count_keys, Split::Slot),
        doc: doc("3.0.0", "Counts the table's keys in a slot.", "slot") },
    Spec { name: "getkeysinslot", arity: 4, flags: READONLY | STALE, keys: NO_KEYS, run: data(92, get_keys, Split::Slot),
        doc: doc("3.0.0", "Names some of the table's keys in a slot.", "slot count") },
    Spec { name: "backup", arity: 3, flags: BACKUP, keys: NO_KEYS, run: data(94, begin_backup, Split::Everywhere { merge: Merge::Array, locked: true, over: Over::AllTables }),
        doc: doc("7.0.0", "Begins a copy of all keys as they are at one moment; for each partition, tells the copy's token and how many keys it has.", "name") },
    Spec { name: "image", arity: 5, flags: BACKUP, keys: NO_KEYS, run: data(93, image, Split::Partition),
        doc: doc("7.0.0", "Gives the piece of a partition's copy that begins at a position; an empty one at its end.", "partition token position") },
    Spec { name: "release", arity: 3, flags: BACKUP, keys: NO_KEYS, run: data(95, release_backup, Split::Everywhere { merge: Merge::Status, locked: false, over: Over::AllTables }),
        doc: doc("7.0.0", "Gives up the copies that a backup of this name began.", "name") },
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
    Spec { name: "snapshot", arity: 2, flags: ADMIN | DANGEROUS, keys: NO_KEYS, run: Run::Node(snapshot),
        doc: doc("7.0.0", "Has the node make snapshots of the partitions it holds, and counts them.", "") },
    Spec { name: "transfer", arity: 4, flags: ADMIN | DANGEROUS, keys: NO_KEYS, run: Run::Node(transfer),
        doc: doc("7.0.0", "Has a partition led by a node, and tells whether this node handed it over.", "partition node") },
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

/// A number without a meaning: sixteen hexadecimal digits.
fn name(word: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(word).ok().filter(|word| word.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

const NO_NAME: &str = "ERR a backup's name is sixteen hexadecimal digits";

fn begin_backup(call: &mut Call<'_>) {
    let Some(name) = name(call.args.get(1)) else { return call.reply.error(NO_NAME) };
    match call.tables.begin_backup(name) {
        Some(begun) => {
            call.reply.array(1);
            call.reply.array(2);
            call.reply.bulk(format!("{:016x}", begun.token).as_bytes());
            call.reply.int(begun.items as i64);
        }
        None => call.reply.error(&format!(
            "TRYAGAIN another backup is under way in partition {}",
            call.partition
        )),
    }
}

fn image(call: &mut Call<'_>) {
    let position = parse_int(call.args.get(3)).and_then(|position| u64::try_from(position).ok());
    let (Some(token), Some(position)) = (name(call.args.get(2)), position) else {
        return call.reply.error(NOT_AN_INTEGER);
    };
    match call.tables.backup_piece(token, position) {
        Some(piece) => call.reply.bulk(piece),
        None => call.reply.error(&format!(
            "NOCOPY partition {} has not this copy of the backup any more: its leader changed, \
             the copy was left alone for too long, or it held more than limits.backup",
            call.partition
        )),
    }
}

fn release_backup(call: &mut Call<'_>) {
    let Some(name) = name(call.args.get(1)) else { return call.reply.error(NO_NAME) };
    call.tables.release_backup(name);
    call.reply.ok();
}

fn transfer(_: &Client, facts: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<NodeQuery> {
    let number = |at| parse_int(argv.get(at)).and_then(|number| u16::try_from(number).ok());
    let (Some(partition), Some(node)) = (number(2), number(3)) else {
        reply.error(NOT_AN_INTEGER);
        return None;
    };
    if !facts.cluster.iter().any(|one| one.node == node) {
        reply.error(&format!("ERR there is no node {node}"));
        return None;
    }
    // Each class has its own. There are no facts in a node's first second.
    let count = facts.partitions.len() * facts.classes.len();
    if count > 0 && usize::from(partition) >= count {
        reply.error(&format!("ERR there is no partition {partition}: the last is {}", count - 1));
        return None;
    }
    // Partitions of other tables' classes follow those of table 0.
    let held = facts.partitions.get(usize::from(partition));
    if held.is_some_and(|held| held.leader != node && !held.followers.contains(&node)) {
        reply.error(&format!("ERR node {node} holds no copy of partition {partition}"));
        return None;
    }
    Some(NodeQuery::Ask(Question::Lead(PartitionId(partition), NodeId(node)), Show::Sum))
}

fn snapshot(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Snapshot, Show::Sum))
}

fn help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("CLUSTER", CLUSTER, reply);
    Then::Continue
}

fn keyslot(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int(slot_of(argv.get(2)).0.into());
    Then::Continue
}

fn myid(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let own = facts.cluster.iter().find(|node| node.node == facts.node);
    reply.bulk(own.map_or("", |node| &node.name).as_bytes());
    Then::Continue
}

fn info(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
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

fn nodes(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
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

/// Neighbouring runs of slots that the same nodes serve, as one.
fn runs(facts: &Facts) -> Vec<PartitionFacts> {
    let mut runs: Vec<PartitionFacts> = Vec::new();
    for one in &facts.partitions {
        match runs.last_mut() {
            Some(last) if last.leader == one.leader && last.followers == one.followers => {
                last.slots.1 = one.slots.1;
            }
            _ => runs.push(one.clone()),
        }
    }
    runs
}

/// The nodes of a run, its leader first.
fn holders<'a>(facts: &'a Facts, run: &PartitionFacts) -> Vec<&'a NodeFacts> {
    let ids = std::iter::once(&run.leader).chain(&run.followers);
    ids.filter_map(|id| facts.cluster.iter().find(|node| node.node == *id)).collect()
}

fn slots(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let runs = runs(facts);
    reply.array(runs.len());
    for run in &runs {
        let nodes = holders(facts, run);
        reply.array(2 + nodes.len());
        reply.int(run.slots.0.into());
        reply.int(run.slots.1.into());
        for node in nodes {
            reply.array(4);
            reply.bulk(node.host.as_bytes());
            reply.int(node.port.into());
            reply.bulk(node.name.as_bytes());
            reply.array(0);
        }
    }
    Then::Continue
}

/// A shard is what the same nodes hold and the same of them leads: a node is in several.
fn shards(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let mut shards: Vec<(PartitionFacts, Vec<(u16, u16)>)> = Vec::new();
    for run in runs(facts) {
        let same = |shard: &&mut (PartitionFacts, Vec<_>)| {
            shard.0.leader == run.leader && shard.0.followers == run.followers
        };
        match shards.iter_mut().find(same) {
            Some((_, slots)) => slots.push(run.slots),
            None => shards.push((run.clone(), vec![run.slots])),
        }
    }
    reply.array(shards.len());
    for (run, slots) in &shards {
        reply.map(2);
        reply.bulk(b"slots");
        reply.array(slots.len() * 2);
        for (first, last) in slots {
            reply.int((*first).into());
            reply.int((*last).into());
        }
        reply.bulk(b"nodes");
        let nodes = holders(facts, run);
        reply.array(nodes.len());
        for node in nodes {
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
            reply.bulk(if node.node == run.leader { b"master" } else { b"replica" });
            reply.bulk(b"replication-offset");
            reply.int(0);
            reply.bulk(b"health");
            reply.bulk(if node.linked { b"online" } else { b"fail" });
        }
    }
    Then::Continue
}
