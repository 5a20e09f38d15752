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

/// A cluster of three nodes, five lines long, and more.
fn three(more: &str) -> String {
    let node = |id| format!("  - {{ id: {id}, host: h{id}, client: 1, peer: 2, http: 3 }}\n");
    format!("cluster: quorate\nnodes:\n{}{more}", (1..=3).map(node).collect::<String>())
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
            "c.yaml:5:1: zzz: unknown field; known here: cluster, nodes, data, partitions, defaults, tables, replication, limits, arbiters, bind, log",
        ),
        (
            with("limits: { zzz: 1GiB }"),
            "c.yaml:5:11: limits.zzz: unknown field; known here: key, value, arguments, inline, query_buffer, output_buffer, pipeline, transaction, memory, connections, peer_queue, backup, idle, unread, lock_wait, failover_wait",
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
        (with("partitions: 1.5"), "c.yaml:5:13: partitions: expected a whole number, found 1.5"),
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
        (second("{ id: 0 }"), "c.yaml:4:11: nodes[1].id: 0 is out of range; it may be 1 to 65535"),
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
        (with("partitions: 0"), "c.yaml:5:13: partitions: 0 is out of range; it may be 1 to 4096"),
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
        (
            with("limits: { failover_wait: 2h }"),
            "c.yaml:5:26: limits.failover_wait: 7200000 ms is out of range; it may be 0 to 3600000 ms",
        ),
        (
            with("limits:\n  peer_queue: 1MiB"),
            "c.yaml:6:15: limits.peer_queue: 1048576 bytes are out of range; it may be 16777216 to 1099511627776 bytes",
        ),
        (
            with("limits:\n  peer_queue: 16MiB\n  value: 8MiB\n  transaction: 1MiB"),
            "c.yaml:6:15: limits.peer_queue: 16777216 bytes are too few with limits.value at 8388608 and limits.transaction at 1048576; make it 33554432 bytes or more, four values and two transactions",
        ),
        (with("data: [ a ]"), "c.yaml:5:7: data: expected text, found a list"),
        (with("data: \"\""), "c.yaml:5:7: data: \"\" is no path; name a folder, such as ./data"),
        (
            with("data: ~/data"),
            "c.yaml:5:7: data: \"~/data\" is taken as it is; write the whole path",
        ),
        // Replicas and durability.
        (
            with("defaults: { replicas: 3 }"),
            "c.yaml:5:23: defaults.replicas: 3 is out of range; in a cluster of 1 node it may be 1",
        ),
        (
            three("defaults: { replicas: 0 }"),
            "c.yaml:6:23: defaults.replicas: 0 is out of range; in a cluster of 3 nodes it may be 1 or 3",
        ),
        (
            three("defaults: { replicas: 2 }"),
            "c.yaml:6:23: defaults.replicas: 2 is out of range; in a cluster of 3 nodes it may be 1 or 3",
        ),
        (
            three("defaults: { replicas: 300 }"),
            "c.yaml:6:23: defaults.replicas: 300 is out of range; in a cluster of 3 nodes it may be 1 or 3",
        ),
        (
            three("tables: [ { index: 2, replicas: 5 } ]"),
            "c.yaml:6:33: tables[0].replicas: 5 is out of range; in a cluster of 3 nodes it may be 1 or 3",
        ),
        (
            three("defaults: { replicas: all }"),
            "c.yaml:6:23: defaults.replicas: expected a whole number, found \"all\"",
        ),
        (
            three("defaults: { durability: always }"),
            "c.yaml:6:25: defaults.durability: expected one of none, interval, sync, found \"always\"",
        ),
        (
            three("defaults: { durability: none }"),
            "c.yaml:6:25: defaults.durability: durability none keeps no log, and acknowledged writes of replicated tables need one; use sync or interval, or 1 replica",
        ),
        (
            three("tables: [ { index: 2, durability: none, replicas: 3 } ]"),
            "c.yaml:6:35: tables[0].durability: durability none keeps no log, and acknowledged writes of replicated tables need one; use sync or interval, or 1 replica",
        ),
        // The durability is the defaults' own, so what is wrong is the field that is written.
        (
            three(
                "defaults: { replicas: 1, durability: none }\ntables: [ { index: 2, replicas: 3 } ]",
            ),
            "c.yaml:7:33: tables[0].replicas: durability none keeps no log, and acknowledged writes of replicated tables need one; use sync or interval, or 1 replica",
        ),
        // Replication.
        (
            with("replication: { hearbeat: 1s }"),
            "c.yaml:5:16: replication.hearbeat: unknown field; did you mean \"heartbeat\"?",
        ),
        (
            with("replication: { heartbeat: 5 }"),
            "c.yaml:5:27: replication.heartbeat: 5 ms is out of range; it may be 10 to 10000 ms",
        ),
        (
            with("replication: { election_timeout: 2m }"),
            "c.yaml:5:34: replication.election_timeout: 120000 ms is out of range; it may be 40 to 60000 ms",
        ),
        (
            with("replication: { election_timeout: 399ms }"),
            "c.yaml:5:34: replication.election_timeout: an election timeout of 399 ms is too short for heartbeats every 100 ms; make it 400 ms or more",
        ),
        (
            with("replication: { heartbeat: 151ms }"),
            "c.yaml:5:27: replication.heartbeat: an election timeout of 600 ms is too short for heartbeats every 151 ms; make it 604 ms or more",
        ),
        (
            with("replication: { segment: 64mb }"),
            "c.yaml:5:25: replication.segment: expected a size such as 65536, 64KiB or 512MiB, found \"64mb\"",
        ),
        (
            with("replication: { segment: 1KiB }"),
            "c.yaml:5:25: replication.segment: 1024 bytes are out of range; it may be 1048576 to 1073741824 bytes",
        ),
        (
            with("replication: { snapshot_after: 79MiB }"),
            "c.yaml:5:32: replication.snapshot_after: snapshots after 82837504 bytes of log cannot be, with 16777216 retained and segments of 67108864; make snapshot_after 83886080 bytes or more",
        ),
        (
            with("replication: { retain: 193MiB }"),
            "c.yaml:5:24: replication.retain: snapshots after 268435456 bytes of log cannot be, with 202375168 retained and segments of 67108864; make snapshot_after 269484032 bytes or more",
        ),
        // Known, and not built yet.
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
    ];
    let wrong: Vec<_> = cases
        .iter()
        .map(|(text, message)| (text, message, problem(text)))
        .filter(|(_, message, found)| found != *message)
        .map(|(text, message, found)| format!("--- {text}\nexpected {message}\n   found {found}"))
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
    assert!(config.tables.iter().all(|table| table.class.to_string() == "strong,1,sync"));
    assert_eq!(config.replication, Replication::default());
    assert_eq!(config.data_of(NodeId(7)).to_str(), Some("./data/node-7"));
    // An empty section is as good as none: all of its lines may be comments.
    let empty = super::config(&with("data:\ntables:\nreplication:\nlimits:\nlog:\nbind:\n"));
    assert_eq!(empty, Ok(config));
}

#[test]
fn replicas_and_durability_have_defaults_by_the_number_of_nodes() {
    let classes = |text: &str| {
        let config = config(text).expect("valid");
        config.classes().iter().map(Class::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        classes(&second("{ id: 2, host: b, client: 1, peer: 2, http: 3 }")),
        ["strong,1,sync"]
    );
    assert_eq!(classes(&three("")), ["strong,3,sync"]);
    assert_eq!(classes(&three("defaults: { replicas: 1 }")), ["strong,1,sync"]);
    assert_eq!(
        classes(&three(
            "tables:\n  - { index: 3, replicas: 1, durability: none }\n  - { index: 1 }"
        )),
        ["strong,3,sync", "strong,1,none"]
    );
}

#[test]
fn what_is_written_is_read() {
    let config = config(
        "cluster: shop
nodes:
  - { id: 3, host: ::1, client: 1, peer: 2, http: 3 }
  - { id: 1, host: Db-1.Example, client: 1, peer: 2, http: 3 }
data: /var/lib/quorate
partitions: 7
arbiters: 2
bind: 0.0.0.0
log: { level: off }
tables:
  - { index: 5, name: carts, mode: strong, replicas: 1, durability: none }
replication: { election_timeout: 2s, heartbeat: 500, segment: 1MiB, snapshot_after: 3MiB, retain: 0 }
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
  peer_queue: 16MiB
  backup: 32MiB
  idle: 1m
  unread: 1500
  lock_wait: 2m
  failover_wait: 0
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
        peer_queue: 16 << 20,
        backup: 32 << 20,
        idle: Duration::from_secs(60),
        unread: Duration::from_millis(1500),
        lock_wait: Duration::from_secs(120),
        failover_wait: Duration::ZERO,
        ..Limits::default()
    };
    assert_eq!(config.limits, limits);
    let replication = Replication {
        election_timeout: Duration::from_secs(2),
        heartbeat: Duration::from_millis(500),
        segment: 1 << 20,
        snapshot_after: 3 << 20,
        retain: 0,
    };
    assert_eq!(config.replication, replication);
    assert_eq!(config.data_of(NodeId(3)).to_str(), Some("/var/lib/quorate/node-3"));
    let classes: Vec<_> = config.classes().iter().map(Class::to_string).collect();
    assert_eq!(classes, ["strong,1,sync", "strong,1,none"]);
}
