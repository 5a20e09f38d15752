//! `cluster.yaml` as a [`Config`] that is already valid.
//!
//! One file describes the whole cluster and is the same on every node; which of the nodes a
//! process is, it is told on the command line. Whatever could be wrong is found while the file is
//! read, with its line, so nothing behind this module checks a setting again.
//!
//! Some fields form the cluster (ids, addresses, partitions, classes of tables): nodes that
//! disagree about them would place keys differently, so [`Config::digest`] sums them up and nodes
//! compare it when they meet. The others (limits, logging, arbiters, bind address) each node may
//! have its own way.

mod read;
mod yaml;

use crate::error::{Error, Result};
use crate::ids::{NodeId, PartitionId, TABLES, TableIndex};
use log::LevelFilter;
use std::fmt;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// How many partitions a cluster has when its file does not say.
pub const PARTITIONS: u16 = 12;
/// How many partitions a cluster may have.
pub const PARTITIONS_MAX: u16 = 4096;
/// How many nodes a cluster may have.
pub const NODES_MAX: usize = 64;
/// How many arbiters a node may have.
pub const ARBITERS_MAX: usize = 256;

/// A cluster's settings.
///
/// What forms the cluster can only be read; what each node decides for itself can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    cluster: String,
    /// By id.
    nodes: Vec<Node>,
    partitions: u16,
    /// By index, all [`TABLES`] of them.
    tables: Vec<Table>,
    /// The address that listeners bind to, where it is not the node's host.
    pub bind: Option<String>,
    /// Threads that serve keys, on each node.
    pub arbiters: usize,
    /// The greatest of everything that clients can make great.
    pub limits: Limits,
    /// What is logged.
    pub log_level: LevelFilter,
}

/// One node's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// The name or address at which clients and peers reach it.
    pub host: String,
    /// Its port for Redis clients.
    pub client: u16,
    /// Its port for the other nodes.
    pub peer: u16,
    /// Its port for HTTP.
    pub http: u16,
}

/// One of a node's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Redis clients.
    Client,
    /// The other nodes.
    Peer,
    /// Health, status, metrics.
    Http,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What `SELECT` chooses it by.
    pub index: TableIndex,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// How its keys are kept.
    pub class: Class,
}

/// A storage class. Tables of one class share partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Which guarantee its commands have.
    pub mode: Mode,
    /// How many nodes hold each key.
    pub replicas: u8,
    /// What an acknowledged write has survived.
    pub durability: Durability,
}

/// A table's guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Strict serialisability.
    Strong,
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: it is in memory.
    None,
}

/// The greatest of everything that clients can make great.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a key: 64 KiB.
    pub key: usize,
    /// Bytes of a value, and of any one argument: 512 MiB.
    pub value: usize,
    /// Arguments of a command: 1,048,576.
    pub arguments: usize,
    /// Bytes of a command that is typed rather than encoded: 64 KiB.
    pub inline: usize,
    /// Bytes that a client has sent and that are not served yet, and so of one command: 1 GiB.
    pub query_buffer: usize,
    /// Bytes of replies that one command, or what is served with it, may make: 1 GiB.
    pub output_buffer: usize,
    /// Commands of one connection that are served together; more wait unread: 4,096.
    pub pipeline: usize,
    /// Bytes of a command, or of a transaction's commands, that concerns several partitions:
    /// 512 MiB.
    pub transaction: usize,
    /// Bytes of a node's tables: 0, which is no limit.
    pub memory: usize,
    /// Client connections of a node: 10,000.
    pub connections: usize,
    /// How long a connection may be quiet: 0 s, which is for ever.
    pub idle: Duration,
    /// How long a client may leave its replies unread: 300 s.
    pub unread: Duration,
    /// How long a request waits for keys that a transaction holds: 5 s.
    pub lock_wait: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            key: 64 << 10,
            value: 512 << 20,
            arguments: 1 << 20,
            inline: 64 << 10,
            query_buffer: 1 << 30,
            output_buffer: 1 << 30,
            pipeline: 4096,
            transaction: 512 << 20,
            memory: 0,
            connections: 10_000,
            idle: Duration::ZERO,
            unread: Duration::from_secs(300),
            lock_wait: Duration::from_secs(5),
        }
    }
}

impl Default for Class {
    fn default() -> Class {
        Class { mode: Mode::Strong, replicas: 1, durability: Durability::None }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Class { mode: Mode::Strong, replicas, durability: Durability::None } = self;
        write!(f, "strong,{replicas},none")
    }
}

impl Service {
    /// Its name in `cluster.yaml`.
    pub fn name(self) -> &'static str {
        match self {
            Service::Client => "client",
            Service::Peer => "peer",
            Service::Http => "http",
        }
    }

    /// All of them.
    pub const ALL: [Service; 3] = [Service::Client, Service::Peer, Service::Http];
}

impl Node {
    /// The port of one of its listeners.
    pub fn port(&self, service: Service) -> u16 {
        match service {
            Service::Client => self.client,
            Service::Peer => self.peer,
            Service::Http => self.http,
        }
    }

    /// Where others reach one of its listeners, as `host:port`.
    pub fn address(&self, service: Service) -> String {
        host_and_port(&self.host, self.port(service))
    }
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| Error::Config(format!("cannot read {}: {cause}", path.display())))?;
        Config::parse(&path.display().to_string(), &text)
    }

    /// Reads a file's text; `source` is what messages call it.
    pub fn parse(source: &str, text: &str) -> Result<Config> {
        read::config(text).map_err(|fault| Error::Config(fault.render(source)))
    }

    /// A cluster on loopback of nodes 1 to `nodes`, with one arbiter each: node `i` has the ports
    /// `base + i` for clients, 100 more for peers and 200 more for HTTP.
    pub fn local(nodes: u16, base: u16) -> Result<Config> {
        if nodes == 0 || usize::from(nodes) > NODES_MAX {
            return Err(Error::Arguments(format!(
                "--nodes {nodes} is out of range; it may be 1 to {NODES_MAX}"
            )));
        }
        let highest = u32::from(base) + 200 + u32::from(nodes);
        if highest > u32::from(u16::MAX) {
            return Err(Error::Arguments(format!(
                "--port {base} is too high: {nodes} nodes use ports up to {highest}; it may be up \
                 to {}",
                u16::MAX - 200 - nodes
            )));
        }
        let node = |i| Node {
            id: NodeId(i),
            host: "127.0.0.1".to_owned(),
            client: base + i,
            peer: base + 100 + i,
            http: base + 200 + i,
        };
        let class = Class::default();
        Ok(Config {
            cluster: "local".to_owned(),
            nodes: (1..=nodes).map(node).collect(),
            partitions: PARTITIONS,
            tables: TableIndex::all().map(|index| Table { index, name: None, class }).collect(),
            bind: None,
            arbiters: 1,
            limits: Limits::default(),
            log_level: LevelFilter::Info,
        })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this id, if there is one.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How many partitions the slots are dealt to.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// All tables, by index.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// One table.
    pub fn table(&self, index: TableIndex) -> &Table {
        &self.tables[index.index()]
    }

    /// The address that a node's listener binds to, and its port.
    pub fn bind(&self, node: &Node, service: Service) -> (String, u16) {
        (self.bind.clone().unwrap_or_else(|| node.host.clone()), node.port(service))
    }

    /// The node that leads a partition: they are dealt in turn to the nodes in order of id.
    pub fn leader_of(&self, partition: PartitionId) -> NodeId {
        self.nodes[partition.index() % self.nodes.len()].id
    }

    /// Seeds the hash that places a key within its table.
    pub fn hash_seed(&self) -> u64 {
        fnv1a(format!("hash seed of {}", self.cluster).as_bytes())
    }

    /// Sums up what nodes must agree on to form a cluster.
    ///
    /// Part of the protocol between nodes, so it hashes a text that is written out here rather than
    /// whatever a derive makes of the types.
    pub fn digest(&self) -> u64 {
        let mut text = format!("partitions={}\n", self.partitions);
        for Node { id, host, client, peer, http } in &self.nodes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "node={id},{host},{client},{peer},{http}");
        }
        for Table { index, class, .. } in &self.tables {
            let _ = writeln!(text, "table={index},{class}");
        }
        fnv1a(text.as_bytes())
    }
}

/// A host and a port as one address; a bare IPv6 address gets its brackets.
pub fn host_and_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// FNV-1a, 64 bits: fixed for good, unlike the hashers that may improve.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Threads that serve keys when nobody says how many: one core is left to everything else.
fn arbiters_by_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    (cores - 1).clamp(1, ARBITERS_MAX)
}

const _: () = assert!(TABLES == 16, "messages say that tables are 0 to 15");

#[cfg(test)]
mod tests {
    use super::*;

    fn local(nodes: u16) -> Config {
        Config::local(nodes, 7000).expect("valid")
    }

    #[test]
    fn the_sample_is_valid_and_the_local_cluster_in_a_file() {
        let sample = Config::parse("cluster.yaml", include_str!("../cluster.yaml")).expect("valid");
        assert_eq!(sample.nodes, local(3).nodes);
        assert_eq!(sample.cluster, "quorate");
        assert_eq!(sample.digest(), local(3).digest());
    }

    #[test]
    fn a_local_cluster_has_the_ports_of_its_base() {
        let config = local(3);
        let node = config.node(NodeId(2)).expect("listed");
        assert_eq!((node.client, node.peer, node.http), (7002, 7102, 7202));
        assert!(config.node(NodeId(4)).is_none());
        let refused = |nodes, base| Config::local(nodes, base).expect_err("refused").to_string();
        assert_eq!(refused(0, 7000), "--nodes 0 is out of range; it may be 1 to 64");
        assert_eq!(refused(65, 7000), "--nodes 65 is out of range; it may be 1 to 64");
        assert_eq!(
            refused(3, 65333),
            "--port 65333 is too high: 3 nodes use ports up to 65536; it may be up to 65332"
        );
        assert!(Config::local(3, 65332).is_ok());
    }

    #[test]
    fn partitions_are_dealt_in_turn() {
        let config = local(3);
        let leaders: Vec<u16> = (0..7).map(|p| config.leader_of(PartitionId(p)).0).collect();
        assert_eq!(leaders, [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn the_digest_is_of_what_forms_the_cluster_and_nothing_else() {
        let digest = local(3).digest();
        // Nodes of different builds compare it: this number may change with the protocol only.
        assert_eq!(digest, 7_133_102_325_899_164_776);

        let same = Config {
            bind: Some("0.0.0.0".to_owned()),
            arbiters: 9,
            limits: Limits { key: 1, ..Limits::default() },
            log_level: LevelFilter::Trace,
            ..local(3)
        };
        assert_eq!(same.digest(), digest);

        assert_ne!(local(2).digest(), digest);
        assert_ne!(Config { partitions: 13, ..local(3) }.digest(), digest);
        for change in [
            |node: &mut Node| node.id = NodeId(9),
            |node: &mut Node| node.host = "b".to_owned(),
            |node: &mut Node| node.client = 1,
            |node: &mut Node| node.peer = 1,
            |node: &mut Node| node.http = 1,
        ] {
            let mut other = local(3);
            change(&mut other.nodes[2]);
            assert_ne!(other.digest(), digest);
        }
        let mut other = local(3);
        other.tables[3].class.replicas = 3;
        assert_ne!(other.digest(), digest);
    }

    #[test]
    fn clusters_of_different_names_place_keys_differently() {
        let other = Config { cluster: "other".to_owned(), ..local(3) };
        assert_ne!(other.hash_seed(), local(3).hash_seed());
        assert_eq!(local(3).hash_seed(), local(5).hash_seed());
    }

    #[test]
    fn fnv1a_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = Config::load(Path::new("/nowhere/cluster.yaml")).expect_err("missing");
        let text = error.to_string();
        assert!(text.starts_with("cannot read /nowhere/cluster.yaml: "), "{text}");
        assert_eq!(error.exit_code(), 2);
    }
}
