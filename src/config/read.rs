//! From the tree of `cluster.yaml` to a [`Config`], with everything checked on the way.

use super::yaml::{Fault, Field, Section, Tree};
use super::{
    ARBITERS_MAX, Class, Config, Durability, Limits, Mode, NODES_MAX, Node, PARTITIONS,
    PARTITIONS_MAX, Service, Table,
};
use crate::ids::{NodeId, TableIndex};
use log::LevelFilter;
use std::net::IpAddr;
use std::time::Duration;

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

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
            "limits",
            "arbiters",
            "bind",
            "log",
        ],
    )?;
    let cluster = root.need("cluster", "give the cluster a name")?;
    let cluster = name(&cluster)?;
    let nodes = nodes(&root.need("nodes", "list at least one node")?)?;
    root.refuse("data", "nothing is written to disk yet; leave it out")?;
    let partitions = match root.get("partitions") {
        Some(field) => field.number(1..=PARTITIONS_MAX)?,
        None => PARTITIONS,
    };
    let class = match root.get("defaults") {
        Some(field) => {
            class(&field.section(&["mode", "replicas", "durability"])?, Class::default())?
        }
        None => Class::default(),
    };
    let tables = tables(root.get("tables"), class)?;
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
                    "\"{bind}\" is no address; write one of this machine's, or 0.0.0.0 for all"
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
    Ok(Config { cluster, nodes, partitions, tables, bind, arbiters, limits, log_level })
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
        let taken = used.find(|(_, used)| *used == port).map(|(node, _)| node);
        let own = ports[..index].contains(&port).then_some(id);
        if let Some(user) = taken.or(own) {
            return Err(field.fault(format!(
                "port {port} is already used by node {user}; give each node ports of its own"
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
        return Err(field.fault(format!("\"{host}\" is neither a host name nor an address")));
    }
    Ok(host.to_ascii_lowercase())
}

fn tables(list: Option<Field<'_>>, defaults: Class) -> Result<Vec<Table>, Fault> {
    let table = |index| Table { index, name: None, class: defaults };
    let mut tables: Vec<Table> = TableIndex::all().map(table).collect();
    let mut listed: Vec<TableIndex> = Vec::new();
    for entry in list.map_or(Ok(Vec::new()), |list| list.list())? {
        let section =
            entry.section(&["index", "name", "mode", "replicas", "durability", "conflict"])?;
        let field = section.need("index", "say which of the tables 0 to 15 it is")?;
        let number = field.number(0..=u8::MAX)?;
        let Some(index) = TableIndex::new(number) else {
            return Err(field.fault(format!("no table {number}: tables are 0 to 15")));
        };
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
        let class = class(&section, defaults)?;
        section.refuse("conflict", "only eventual tables have it, and they are not built yet")?;
        tables[index.index()] = Table { index, name, class };
    }
    Ok(tables)
}

/// What a table is made of, in the words of the file. Some are known but not built yet.
fn class(section: &Section<'_>, defaults: Class) -> Result<Class, Fault> {
    let mut class = defaults;
    if let Some(field) = section.get("mode") {
        class.mode = field
            .word(&[("strong", Some(Mode::Strong)), ("eventual", None)])?
            .ok_or_else(|| field.fault("eventual tables are not built yet; use strong"))?;
    }
    if let Some(field) = section.get("replicas") {
        class.replicas = field.number(1..=7)?;
        if class.replicas > 1 {
            return Err(field.fault("replication is not built yet; use 1"));
        }
    }
    if let Some(field) = section.get("durability") {
        class.durability = field
            .word(&[("none", Some(Durability::None)), ("sync", None), ("interval", None)])?
            .ok_or_else(|| field.fault("nothing is written to disk yet; use none"))?;
    }
    Ok(class)
}

fn limits(field: Field<'_>) -> Result<Limits, Fault> {
    let section =
        field.section(&["key", "value", "arguments", "inline", "connections", "lock_wait"])?;
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
    if let Some(field) = section.get("connections") {
        limits.connections = field.number(1..=1_000_000)?;
    }
    if let Some(field) = section.get("lock_wait") {
        limits.lock_wait = field.duration(Duration::from_millis(1)..=Duration::from_secs(3600))?;
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
            "\"{name}\" is no name; begin with a letter and go on with letters, digits, -, _ or ., \
             {NAME_MAX} at most"
        )));
    }
    Ok(name.to_owned())
}
