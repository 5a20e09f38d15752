//! From the tree of `cluster.yaml` to a [`Config`], with everything checked on the way.

use super::yaml::{Fault, Field, Section, Tree};
use super::{
    ARBITERS_MAX, Class, Config, Durability, Limits, Mode, NODES_MAX, Node, PARTITIONS,
    PARTITIONS_MAX, Service, Table,
};
use crate::ids::{NodeId, TABLES, TableIndex};
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

fn tables(list: Option<Field<'_>>, defaults: Class) -> Result<Vec<Table>, Fault> {
    let table = |index| Table { index, name: None, class: defaults };
    let mut tables: Vec<Table> = TableIndex::all().map(table).collect();
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
        "idle",
        "unread",
        "lock_wait",
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
            "{name:?} is no name; begin with a letter and go on with letters, digits, -, _ or ., \
             {NAME_MAX} at most"
        )));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn problem(text: &str) -> String {
        Config::parse("c.yaml", text).expect_err("must be refused").to_string()
    }

    /// A cluster of one node, four lines long, and more.
    fn with(more: &str) -> String {
        format!(
            "cluster: quorate\nnodes:\n  - {{ id: 1, host: a.example, client: 7001, peer: 7101, \
             http: 7201 }}\n\n{more}"
        )
    }

    /// A cluster of one good node and another, on the same host unless it says otherwise.
    fn second(node: &str) -> String {
        format!(
            "cluster: quorate\nnodes:\n  - {{ id: 1, host: a.example, client: 7001, peer: 7101, \
             http: 7201 }}\n  - {node}\n"
        )
    }

    #[test]
    fn mistakes_are_named_with_their_place_and_what_would_be_right() {
        let cases: &[(String, &str)] = &[
            // No YAML, or not one document of fields.
            ("".into(), "c.yaml:1:1: expected fields of the form `name: value`, found nothing"),
            (
                "quorate".into(),
                "c.yaml:1:1: expected fields of the form `name: value`, found \"quorate\"",
            ),
            ("cluster: [".into(), "c.yaml:1:10: unclosed bracket '['"),
            (
                "cluster: x\ncluster: y".into(),
                "c.yaml:2:1: duplicate mapping key: cluster not allowed here",
            ),
            (
                "cluster: x\n---\ncluster: y".into(),
                "c.yaml:3:1: only single YAML document expected but multiple found",
            ),
            // Fields that are unknown or missing.
            (
                with("partition: 12"),
                "c.yaml:5:1: partition: unknown field; did you mean \"partitions\"?",
            ),
            (
                with("zzz: 12"),
                "c.yaml:5:1: zzz: unknown field; known here: cluster, nodes, data, partitions, defaults, tables, limits, arbiters, bind, log",
            ),
            (
                with("limits: { zzz: 1GiB }"),
                "c.yaml:5:11: limits.zzz: unknown field; known here: key, value, arguments, inline, query_buffer, output_buffer, pipeline, transaction, memory, connections, idle, unread, lock_wait",
            ),
            (
                with("limits:\n  conections: 3"),
                "c.yaml:6:3: limits.conections: unknown field; did you mean \"connections\"?",
            ),
            (
                with("log: { levle: info }"),
                "c.yaml:5:8: log.levle: unknown field; did you mean \"level\"?",
            ),
            (
                second("{ id: 2, hots: b }"),
                "c.yaml:4:14: nodes[1].hots: unknown field; did you mean \"host\"?",
            ),
            ("nodes: []".into(), "c.yaml:1:1: cluster: is missing; give the cluster a name"),
            ("cluster: x".into(), "c.yaml:1:1: nodes: is missing; list at least one node"),
            ("cluster: x\nnodes:".into(), "c.yaml:1:1: nodes: is missing; list at least one node"),
            (
                second("{ host: b }"),
                "c.yaml:4:5: nodes[1].id: is missing; give the node a number of its own, from 1",
            ),
            (
                second("{ id: 2 }"),
                "c.yaml:4:5: nodes[1].host: is missing; write the name or address others reach it at",
            ),
            (
                second("{ id: 2, host: b, client: 1, peer: 2 }"),
                "c.yaml:4:5: nodes[1].http: is missing; write the port it listens on",
            ),
            (
                with("tables: [ { name: cache } ]"),
                "c.yaml:5:11: tables[0].index: is missing; say which of the tables 0 to 15 it is",
            ),
            // Values of the wrong kind.
            (
                "cluster: 7".into(),
                "c.yaml:1:10: cluster: expected text, found 7; quote it if that is meant",
            ),
            ("cluster: [ x ]".into(), "c.yaml:1:10: cluster: expected text, found a list"),
            (
                "cluster: x\nnodes: { id: 1 }".into(),
                "c.yaml:2:8: nodes: expected a list, found a group of fields",
            ),
            (
                "cluster: x\nnodes: [ 1 ]".into(),
                "c.yaml:2:10: nodes[0]: expected fields of the form `name: value`, found 1",
            ),
            (
                with("partitions: many"),
                "c.yaml:5:13: partitions: expected a whole number, found \"many\"",
            ),
            (
                with("partitions: 1.5"),
                "c.yaml:5:13: partitions: expected a whole number, found 1.5",
            ),
            (
                with("limits: { key: 64KB }"),
                "c.yaml:5:16: limits.key: expected a size such as 65536, 64KiB or 512MiB, found \"64KB\"",
            ),
            (
                with("limits: { key: -1 }"),
                "c.yaml:5:16: limits.key: expected a size such as 65536, 64KiB or 512MiB, found -1",
            ),
            (
                with("limits: { key: 99999999999999999GiB }"),
                "c.yaml:5:16: limits.key: expected a size such as 65536, 64KiB or 512MiB, found \"99999999999999999GiB\"",
            ),
            (
                with("limits: { lock_wait: soon }"),
                "c.yaml:5:22: limits.lock_wait: expected a time such as 5000 (milliseconds), 500ms, 5s or 2m, found \"soon\"",
            ),
            (
                with("log: { level: loud }"),
                "c.yaml:5:15: log.level: expected one of off, error, warn, info, debug, trace, found \"loud\"",
            ),
            // Names, hosts and addresses.
            (
                "cluster: my cluster".into(),
                "c.yaml:1:10: cluster: \"my cluster\" is no name; begin with a letter and go on with letters, digits, -, _ or ., 64 at most",
            ),
            (
                second("{ id: 2, host: 127.0.0.256 }"),
                "c.yaml:4:20: nodes[1].host: \"127.0.0.256\" is neither a host name nor an address",
            ),
            (
                second("{ id: 2, host: \"a b\" }"),
                "c.yaml:4:20: nodes[1].host: \"a b\" is neither a host name nor an address",
            ),
            (
                second("{ id: 2, host: \"a:7001\" }"),
                "c.yaml:4:20: nodes[1].host: \"a:7001\" is neither a host name nor an address",
            ),
            (
                second("{ id: 2, host: 0.0.0.0 }"),
                "c.yaml:4:20: nodes[1].host: 0.0.0.0 cannot be connected to; write the name or address others reach the node at (and `bind: 0.0.0.0` to listen on all addresses)",
            ),
            (
                with("bind: everywhere"),
                "c.yaml:5:7: bind: \"everywhere\" is no address; write one of this machine's, or 0.0.0.0 for all",
            ),
            // Numbers out of range.
            ("cluster: x\nnodes: []".into(), "c.yaml:2:8: nodes: is empty; list at least one node"),
            (
                second("{ id: 0 }"),
                "c.yaml:4:11: nodes[1].id: 0 is out of range; it may be 1 to 65535",
            ),
            (
                second("{ id: 65536 }"),
                "c.yaml:4:11: nodes[1].id: 65536 is out of range; it may be 1 to 65535",
            ),
            (
                second("{ id: 2, host: b, client: 0 }"),
                "c.yaml:4:31: nodes[1].client: 0 is out of range; it may be 1 to 65535",
            ),
            (
                second("{ id: 2, host: b, client: 70001 }"),
                "c.yaml:4:31: nodes[1].client: 70001 is out of range; it may be 1 to 65535",
            ),
            (
                with("partitions: 0"),
                "c.yaml:5:13: partitions: 0 is out of range; it may be 1 to 4096",
            ),
            (
                with("partitions: 16384"),
                "c.yaml:5:13: partitions: 16384 is out of range; it may be 1 to 4096",
            ),
            (with("arbiters: 0"), "c.yaml:5:11: arbiters: 0 is out of range; it may be 1 to 256"),
            (
                with("limits: { key: 1GiB }"),
                "c.yaml:5:16: limits.key: 1073741824 bytes are out of range; it may be 1 to 536870912 bytes",
            ),
            (
                with("limits: { connections: -5 }"),
                "c.yaml:5:24: limits.connections: -5 is out of range; it may be 1 to 1000000",
            ),
            (
                with("limits: { lock_wait: 0 }"),
                "c.yaml:5:22: limits.lock_wait: 0 ms is out of range; it may be 1 to 3600000 ms",
            ),
            (
                with("tables: [ { index: 16 } ]"),
                "c.yaml:5:20: tables[0].index: 16 is out of range; it may be 0 to 15",
            ),
            // The same thing twice.
            (
                second("{ id: 1 }"),
                "c.yaml:4:11: nodes[1].id: id 1 is already used; give each node its own",
            ),
            (
                second("{ id: 2, host: a.example, client: 7001 }"),
                "c.yaml:4:39: nodes[1].client: port 7001 is already used by node 1; give each node ports of its own",
            ),
            (
                second("{ id: 2, host: A.example, client: 7101 }"),
                "c.yaml:4:39: nodes[1].client: port 7101 is already used by node 1; give each node ports of its own",
            ),
            (
                second("{ id: 2, host: b, client: 7002, peer: 7002 }"),
                "c.yaml:4:43: nodes[1].peer: port 7002 is already used by node 2; give each service a port of its own",
            ),
            (
                with("tables:\n  - { index: 1 }\n  - { index: 1 }"),
                "c.yaml:7:14: tables[1].index: table 1 is already listed; list each once",
            ),
            (
                with("tables:\n  - { index: 1, name: x }\n  - { index: 2, name: x }"),
                "c.yaml:7:23: tables[1].name: the name \"x\" is already used by table 1; give each its own",
            ),
            // Known, and not built yet.
            (
                with("data: ./data"),
                "c.yaml:5:7: data: nothing is written to disk yet; leave it out",
            ),
            (
                with("defaults: { replicas: 3 }"),
                "c.yaml:5:23: defaults.replicas: replication is not built yet; use 1",
            ),
            (
                with("defaults: { replicas: 0 }"),
                "c.yaml:5:23: defaults.replicas: 0 is out of range; it may be 1 to 7",
            ),
            (
                with("defaults: { durability: sync }"),
                "c.yaml:5:25: defaults.durability: nothing is written to disk yet; use none",
            ),
            (
                with("defaults: { durability: interval }"),
                "c.yaml:5:25: defaults.durability: nothing is written to disk yet; use none",
            ),
            (
                with("defaults: { mode: eventual }"),
                "c.yaml:5:19: defaults.mode: eventual tables are not built yet; use strong",
            ),
            (
                with("tables: [ { index: 2, mode: eventual } ]"),
                "c.yaml:5:29: tables[0].mode: eventual tables are not built yet; use strong",
            ),
            (
                with("tables: [ { index: 2, conflict: siblings } ]"),
                "c.yaml:5:33: tables[0].conflict: only eventual tables have it, and they are not built yet",
            ),
            (
                with("tables: [ { index: 2, replicas: 3 } ]"),
                "c.yaml:5:33: tables[0].replicas: replication is not built yet; use 1",
            ),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .map(|(text, message)| (text, message, problem(text)))
            .filter(|(_, message, found)| found != *message)
            .map(|(text, message, found)| {
                format!("--- {text}\nexpected {message}\n   found {found}")
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn too_many_nodes_are_refused() {
        let node = |i| format!("  - {{ id: {i}, host: h{i}, client: 1, peer: 2, http: 3 }}\n");
        let cluster = |n| format!("cluster: x\nnodes:\n{}", (1..=n).map(node).collect::<String>());
        assert_eq!(config(&cluster(NODES_MAX)).map(|config| config.nodes.len()), Ok(NODES_MAX));
        assert_eq!(
            problem(&cluster(NODES_MAX + 1)),
            "c.yaml:3:3: nodes: 65 nodes are too many; there may be 1 to 64"
        );
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = config(&with("")).expect("valid");
        assert_eq!(config.partitions, 12);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.log_level, LevelFilter::Info);
        assert_eq!(config.bind, None);
        assert!(config.arbiters >= 1);
        assert_eq!(config.tables.len(), 16);
        assert!(config.tables.iter().all(|table| table.class.to_string() == "strong,1,none"));
        // An empty section is as good as none: all of its lines may be comments.
        let empty = super::config(&with("tables:\nlimits:\nlog:\nbind:\n"));
        assert_eq!(empty, Ok(config));
    }

    #[test]
    fn what_is_written_is_read() {
        let config = config(
            "cluster: shop
nodes:
  - { id: 3, host: ::1, client: 1, peer: 2, http: 3 }
  - { id: 1, host: Db-1.Example, client: 1, peer: 2, http: 3 }
partitions: 7
arbiters: 2
bind: 0.0.0.0
log: { level: off }
tables:
  - { index: 5, name: carts, mode: strong, replicas: 1, durability: none }
limits:
  key: 1KiB
  value: 2 MiB
  arguments: 9
  inline: 4096
  query_buffer: 4KiB
  output_buffer: 8KiB
  pipeline: 16
  transaction: 2KiB
  memory: 3GiB
  connections: 8
  idle: 1m
  unread: 1500
  lock_wait: 2m
",
        )
        .expect("valid");
        assert_eq!(config.cluster, "shop");
        let hosts: Vec<_> = config.nodes.iter().map(|n| (n.id.0, n.host.as_str())).collect();
        assert_eq!(hosts, [(1, "db-1.example"), (3, "::1")], "in order of id");
        assert_eq!(config.nodes[1].address(Service::Peer), "[::1]:2");
        assert_eq!(config.bind(&config.nodes[1], Service::Http), ("0.0.0.0".to_owned(), 3));
        assert_eq!((config.partitions, config.arbiters), (7, 2));
        assert_eq!(config.log_level, LevelFilter::Off);
        assert_eq!(config.tables[5].name.as_deref(), Some("carts"));
        let limits = Limits {
            key: 1024,
            value: 2 << 20,
            arguments: 9,
            inline: 4096,
            query_buffer: 4 << 10,
            output_buffer: 8 << 10,
            pipeline: 16,
            transaction: 2 << 10,
            memory: 3 << 30,
            connections: 8,
            idle: Duration::from_secs(60),
            unread: Duration::from_millis(1500),
            lock_wait: Duration::from_secs(120),
        };
        assert_eq!(config.limits, limits);
    }
}
