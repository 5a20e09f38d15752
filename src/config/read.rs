//! From the tree of `cluster.yaml` to a [`Config`], with everything checked on the way.

use super::placement::Classes;
use super::yaml::{Fault, Field, Section, Tree};
use super::{
    ARBITERS_MAX, Class, Config, DATA, Durability, HEARTBEATS_PER_ELECTION, Limits, Mode,
    NODES_MAX, Node, PARTITIONS, PARTITIONS_MAX, Replication, Service, Table, tables_of,
};
use crate::ids::{NodeId, TABLES, TableIndex};
use log::LevelFilter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// The longest that a connection may be left alone: 24 days, in seconds.
const INT_SECONDS: u64 = 24 * 86_400;

/// Letters of a name: of a cluster, of a table.
const NAME_MAX: usize = 64;

/// Reads the whole file.
pub(super) fn config(text: &str) -> Result<Config, Fault> {
    let tree = Tree::parse(text)?;
    let root = Section::root(
        &tree,
        &[
            "cluster",
            "nodes",
            "data",
            "partitions",
            "defaults",
            "tables",
            "replication",
            "limits",
            "arbiters",
            "bind",
            "log",
        ],
    )?;
    let cluster = root.need("cluster", "give the cluster a name")?;
    let cluster = name(&cluster)?;
    let nodes = nodes(&root.need("nodes", "list at least one node")?)?;
    let data = match root.get("data") {
        Some(field) => data(&field)?,
        None => PathBuf::from(DATA),
    };
    let partitions = match root.get("partitions") {
        Some(field) => field.number(1..=PARTITIONS_MAX)?,
        None => PARTITIONS,
    };
    let mut defaults = Class::by_default(nodes.len());
    if let Some(field) = root.get("defaults") {
        let section = field.section(&["mode", "replicas", "durability"])?;
        defaults = class(&section, defaults, nodes.len())?;
    }
    let tables = tables(root.get("tables"), defaults, nodes.len())?;
    let replication = match root.get("replication") {
        Some(field) => replication(field)?,
        None => Replication::default(),
    };
    let limits = match root.get("limits") {
        Some(field) => limits(field)?,
        None => Limits::default(),
    };
    let arbiters = match root.get("arbiters") {
        Some(field) => field.number(1..=ARBITERS_MAX)?,
        None => super::arbiters_by_default(),
    };
    let bind = match root.get("bind") {
        Some(field) => {
            let bind = field.text()?;
            if bind.parse::<IpAddr>().is_err() {
                return Err(field.fault(format!(
                    "{bind:?} is no address; write one of this machine's, or 0.0.0.0 for all"
                )));
            }
            Some(bind.to_owned())
        }
        None => None,
    };
    let log_level = match root.get("log") {
        Some(field) => match field.section(&["level"])?.get("level") {
            Some(field) => field.word(&LEVELS)?,
            None => LevelFilter::Info,
        },
        None => LevelFilter::Info,
    };
    Ok(Config {
        cluster,
        nodes,
        partitions,
        classes: Classes::of(&tables),
        tables,
        data,
        replication,
        bind,
        arbiters,
        limits,
        log_level,
        file: None,
    })
}

fn nodes(list: &Field<'_>) -> Result<Vec<Node>, Fault> {
    let entries = list.list()?;
    if entries.is_empty() {
        return Err(list.fault("is empty; list at least one node"));
    }
    if entries.len() > NODES_MAX {
        return Err(list.fault(format!(
            "{} nodes are too many; there may be 1 to {NODES_MAX}",
            entries.len()
        )));
    }
    let mut nodes: Vec<Node> = Vec::with_capacity(entries.len());
    for entry in entries {
        let section = entry.section(&["id", "host", "client", "peer", "http"])?;
        let node = node(&section, &nodes)?;
        nodes.push(node);
    }
    nodes.sort_by_key(|node| node.id);
    Ok(nodes)
}

/// Reads one node; `earlier` are those listed before it.
fn node(section: &Section<'_>, earlier: &[Node]) -> Result<Node, Fault> {
    let field = section.need("id", "give the node a number of its own, from 1")?;
    let id = NodeId(field.number(1..=u16::MAX)?);
    if earlier.iter().any(|node| node.id == id) {
        return Err(field.fault(format!("id {id} is already used; give each node its own")));
    }
    let host = host(&section.need("host", "write the name or address others reach it at")?)?;
    let mut ports = [0; 3];
    for (index, service) in Service::ALL.into_iter().enumerate() {
        let field = section.need(service.name(), "write the port it listens on")?;
        let port = field.number(1..=u16::MAX)?;
        let here = earlier.iter().filter(|node| node.host == host);
        let mut used = here.flat_map(|node| Service::ALL.map(|other| (node.id, node.port(other))));
        if let Some((user, _)) = used.find(|(_, used)| *used == port) {
            return Err(field.fault(format!(
                "port {port} is already used by node {user}; give each node ports of its own"
            )));
        }
        if ports[..index].contains(&port) {
            return Err(field.fault(format!(
                "port {port} is already used by node {id}; give each service a port of its own"
            )));
        }
        ports[index] = port;
    }
    let [client, peer, http] = ports;
    Ok(Node { id, host, client, peer, http })
}

/// A host name or an address at which others can reach a node.
fn host(field: &Field<'_>) -> Result<String, Fault> {
    let host = field.text()?;
    if let Ok(address) = host.parse::<IpAddr>() {
        if address.is_unspecified() || address.is_multicast() {
            return Err(field.fault(format!(
                "{host} cannot be connected to; write the name or address others reach the node \
                 at (and `bind: {host}` to listen on all addresses)"
            )));
        }
        return Ok(host.to_owned());
    }
    let label = |label: &str| {
        let letters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&label.len()) && letters && !label.starts_with('-')
    };
    // What looks like an address and is none (127.0.0.256) is no name either.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if host.len() > 253 || numeric || !host.split('.').all(label) {
        return Err(field.fault(format!("{host:?} is neither a host name nor an address")));
    }
    Ok(host.to_ascii_lowercase())
}

/// Where nodes keep their data.
fn data(field: &Field<'_>) -> Result<PathBuf, Fault> {
    let path = field.text()?;
    if path.is_empty() || path.contains('\0') {
        return Err(field.fault(format!("{path:?} is no path; name a folder, such as {DATA}")));
    }
    // A shell would have made it the user's home; here it would be a folder of that name.
    if path.starts_with('~') {
        return Err(field.fault(format!("{path:?} is taken as it is; write the whole path")));
    }
    Ok(PathBuf::from(path))
}

fn tables(list: Option<Field<'_>>, defaults: Class, nodes: usize) -> Result<Vec<Table>, Fault> {
    let mut tables = tables_of(defaults);
    let mut listed: Vec<TableIndex> = Vec::new();
    for entry in list.map_or(Ok(Vec::new()), |list| list.list())? {
        let section =
            entry.section(&["index", "name", "mode", "replicas", "durability", "conflict"])?;
        let field = section.need("index", "say which of the tables 0 to 15 it is")?;
        let number = field.number(0..=TABLES as u8 - 1)?;
        let index = TableIndex::new(number).ok_or_else(|| field.fault("there is no such table"))?;
        if listed.contains(&index) {
            return Err(field.fault(format!("table {index} is already listed; list each once")));
        }
        listed.push(index);
        let name = match section.get("name") {
            Some(field) => {
                let name = name(&field)?;
                let same = |table: &&Table| table.name.as_ref() == Some(&name);
                if let Some(Table { index, .. }) = tables.iter().find(same) {
                    return Err(field.fault(format!(
                        "the name \"{name}\" is already used by table {index}; give each its own"
                    )));
                }
                Some(name)
            }
            None => None,
        };
        let class = class(&section, defaults, nodes)?;
        section.refuse("conflict", "only eventual tables have it, and they are not built yet")?;
        tables[index.index()] = Table { index, name, class };
    }
    Ok(tables)
}

/// What a table is made of, in the words of the file. Some are known but not built yet.
fn class(section: &Section<'_>, defaults: Class, nodes: usize) -> Result<Class, Fault> {
    let mut class = defaults;
    if let Some(field) = section.get("mode") {
        class.mode = field
            .word(&[("strong", Some(Mode::Strong)), ("eventual", None)])?
            .ok_or_else(|| field.fault("eventual tables are not built yet; use strong"))?;
    }
    let (replicas, durability) = (section.get("replicas"), section.get("durability"));
    if let Some(field) = &replicas {
        let number = field.number(i128::MIN..=i128::MAX)?;
        class.replicas =
            Class::check_replicas(number, nodes).map_err(|problem| field.fault(problem))?;
    }
    if let Some(field) = &durability {
        class.durability = field.word(&Durability::ALL.map(|word| (word.name(), word)))?;
    }
    match (class.check(), durability.or(replicas)) {
        (Err(problem), Some(field)) => Err(field.fault(problem)),
        // Without a field of its own it is as the defaults are, which were checked.
        _ => Ok(class),
    }
}

fn replication(field: Field<'_>) -> Result<Replication, Fault> {
    const MS: fn(u64) -> Duration = Duration::from_millis;
    let section =
        field.section(&["election_timeout", "heartbeat", "segment", "snapshot_after", "retain"])?;
    let mut replication = Replication::default();
    let heartbeat = section.get("heartbeat");
    if let Some(field) = &heartbeat {
        replication.heartbeat = field.duration(MS(10)..=MS(10_000))?;
    }
    let election_timeout = section.get("election_timeout");
    if let Some(field) = &election_timeout {
        replication.election_timeout = field.duration(MS(40)..=MS(60_000))?;
    }
    let segment = section.get("segment");
    if let Some(field) = &segment {
        replication.segment = field.bytes(1 << 20..=1 << 30)?;
    }
    let retain = section.get("retain");
    if let Some(field) = &retain {
        replication.retain = field.bytes(0..=1 << 40)?;
    }
    let snapshot_after = section.get("snapshot_after");
    if let Some(field) = &snapshot_after {
        replication.snapshot_after = field.bytes(1 << 20..=1 << 40)?;
    }

    // What must fit together is told of a field that was written, not of a default.
    let shortest = replication.heartbeat * HEARTBEATS_PER_ELECTION;
    if let Some(field) = election_timeout.or(heartbeat)
        && replication.election_timeout < shortest
    {
        return Err(field.fault(format!(
            "an election timeout of {} ms is too short for heartbeats every {} ms; make it {} ms \
             or more",
            replication.election_timeout.as_millis(),
            replication.heartbeat.as_millis(),
            shortest.as_millis()
        )));
    }
    // The log is collected by whole segments. With less between them nothing could be collected
    // once a snapshot is made, and the next one would be due at once.
    let least = replication.retain + replication.segment;
    if let Some(field) = snapshot_after.or(retain).or(segment)
        && replication.snapshot_after < least
    {
        return Err(field.fault(format!(
            "snapshots after {} bytes of log cannot be, with {} retained and segments of {}; make \
             snapshot_after {least} bytes or more",
            replication.snapshot_after, replication.retain, replication.segment
        )));
    }
    Ok(replication)
}

fn limits(field: Field<'_>) -> Result<Limits, Fault> {
    let section = field.section(&[
        "key",
        "value",
        "arguments",
        "inline",
        "query_buffer",
        "output_buffer",
        "pipeline",
        "transaction",
        "memory",
        "connections",
        "peer_queue",
        "backup",
        "idle",
        "unread",
        "lock_wait",
        "failover_wait",
    ])?;
    let mut limits = Limits::default();
    // The protocol's own bounds: a length on the wire has 32 bits at most.
    if let Some(field) = section.get("key") {
        limits.key = field.bytes(1..=512 << 20)?;
    }
    if let Some(field) = section.get("value") {
        limits.value = field.bytes(1..=512 << 20)?;
    }
    if let Some(field) = section.get("arguments") {
        limits.arguments = field.number(1..=1 << 20)?;
    }
    if let Some(field) = section.get("inline") {
        limits.inline = field.bytes(64..=1 << 20)?;
    }
    if let Some(field) = section.get("query_buffer") {
        limits.query_buffer = field.bytes(1 << 10..=1 << 30)?;
    }
    if let Some(field) = section.get("output_buffer") {
        limits.output_buffer = field.bytes(1 << 10..=1 << 32)?;
    }
    if let Some(field) = section.get("pipeline") {
        limits.pipeline = field.number(1..=1 << 20)?;
    }
    if let Some(field) = section.get("transaction") {
        limits.transaction = field.bytes(1 << 10..=1 << 30)?;
    }
    if let Some(field) = section.get("memory") {
        limits.memory = field.bytes(0..=1 << 50)?;
    }
    if let Some(field) = section.get("idle") {
        limits.idle = field.duration(Duration::ZERO..=Duration::from_secs(INT_SECONDS))?;
    }
    if let Some(field) = section.get("unread") {
        limits.unread =
            field.duration(Duration::from_millis(1)..=Duration::from_secs(INT_SECONDS))?;
    }
    if let Some(field) = section.get("connections") {
        limits.connections = field.number(1..=1_000_000)?;
    }
    // What several clients send at a time must fit, and what followers are sent ahead of their answers
    // by far: a node that reads is not to be taken for a hung one.
    let least = (4 * limits.value).max(2 * limits.transaction);
    match section.get("peer_queue") {
        Some(field) => {
            limits.peer_queue = field.bytes(16 << 20..=1 << 40)?;
            if limits.peer_queue < least {
                return Err(field.fault(format!(
                    "{} bytes are too few with limits.value at {} and limits.transaction at {}; \
                     make it {least} bytes or more, four values and two transactions",
                    limits.peer_queue, limits.value, limits.transaction
                )));
            }
        }
        None => limits.peer_queue = limits.peer_queue.max(least),
    }
    if let Some(field) = section.get("backup") {
        // The pieces of all partitions must fit by far.
        limits.backup = field.bytes(16 << 20..=1 << 40)?;
    }
    if let Some(field) = section.get("lock_wait") {
        limits.lock_wait = field.duration(Duration::from_millis(1)..=Duration::from_secs(3600))?;
    }
    if let Some(field) = section.get("failover_wait") {
        limits.failover_wait = field.duration(Duration::ZERO..=Duration::from_secs(3600))?;
    }
    Ok(limits)
}

/// A name of letters, digits, `-`, `_` and `.` that begins with a letter.
fn name(field: &Field<'_>) -> Result<String, Fault> {
    let name = field.text()?;
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(rest);
    if !good || name.len() > NAME_MAX {
        return Err(field.fault(format!(
            "{name:?} is no name; begin with a letter and go on with letters, digits, -, _ or ., \
             {NAME_MAX} at most"
        )));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests;
