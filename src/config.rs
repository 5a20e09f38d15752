//! `cluster.yaml` as a [`Config`] that is already valid.
//!
//! One file describes the whole cluster and is the same on every node; which of the nodes a
//! process is, it is told on the command line. Whatever could be wrong is found while the file is
//! read, with its line, so nothing behind this module checks a setting again.
//!
//! Some fields form the cluster (ids, addresses, partitions, classes of tables, the election
//! timeout): nodes that disagree about them would place keys differently or break each other's
//! leases, so [`Config::digest`] sums them up and nodes compare it when they meet. Fewer of them
//! are settled for as long as there is data ([`Config::layout`]): a node may move to another host.
//! The others (data folder, limits, logging, arbiters, bind address) each node may have its own
//! way.

mod limits;
mod placement;
mod read;
mod replication;
mod table;
mod yaml;

pub use limits::Limits;
pub use replication::{HEARTBEATS_PER_ELECTION, Replication};
pub use table::{Class, Durability, Mode, REPLICAS, Table};

use crate::error::{Error, Result};
use crate::ids::{NodeId, TABLES, TableIndex};
use log::LevelFilter;
use placement::Classes;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where nodes keep their data when the file does not say.
pub const DATA: &str = "./data";
/// How many partitions a cluster has when its file does not say.
pub const PARTITIONS: u16 = 12;
/// How many partitions a cluster may have in each storage class.
pub const PARTITIONS_MAX: u16 = 4096;

/// A longer file is not read: every node there may be takes a small part of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How many nodes a cluster may have.
pub const NODES_MAX: usize = 64;
/// How many arbiters a node may have.
pub const ARBITERS_MAX: usize = 256;

/// How many storage classes there can be: of one replica with each durability, of more with the
/// two that have a log.
const CLASSES_MAX: usize = Durability::ALL.len() + (REPLICAS.len() - 1) * 2;

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
    classes: Classes,
    /// Where nodes keep their data, each in a folder of its own below it
    /// ([`Config::data_of`]). A relative path starts at the process's working directory.
    pub data: PathBuf,
    /// When replicas elect, and how much log they keep.
    pub replication: Replication,
    /// The address that listeners bind to, where it is not the node's host.
    pub bind: Option<String>,
    /// Threads that serve keys, on each node.
    pub arbiters: usize,
    /// The greatest of everything that clients can make great.
    pub limits: Limits,
    /// What is logged.
    pub log_level: LevelFilter,
    /// The file that says so; none where there is none.
    pub file: Option<PathBuf>,
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
        let unreadable = |why: &dyn fmt::Display| {
            Error::Config(format!("cannot read {}: {why}", path.display()))
        };
        let mut bytes = Vec::new();
        // A device never ends, whatever it says its length is.
        let read = File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|cause| unreadable(&cause))?;
        if read as u64 > FILE_BYTES_MAX {
            let kilobytes = FILE_BYTES_MAX >> 10;
            return Err(unreadable(&format!(
                "it has more than {kilobytes} KiB, no cluster.yaml has"
            )));
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable(&"it is not text in UTF-8"))?;
        let config = Config::parse(&path.display().to_string(), &text)?;
        // Redis tells the whole path.
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Config { file: Some(file), ..config })
    }

    /// Reads a file's text; `source` is what messages call it.
    pub fn parse(source: &str, text: &str) -> Result<Config> {
        read::config(text).map_err(|fault| Error::Config(fault.render(source)))
    }

    /// A cluster on loopback of nodes 1 to `nodes`, with one arbiter each: node `i` has the ports
    /// `base + i` for clients, 100 more for peers and 200 more for HTTP. All tables are of the
    /// default class.
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
        let tables = tables_of(Class::by_default(usize::from(nodes)));
        Ok(Config {
            cluster: "local".to_owned(),
            nodes: (1..=nodes).map(node).collect(),
            partitions: PARTITIONS,
            classes: Classes::of(&tables),
            tables,
            data: PathBuf::from(DATA),
            replication: Replication::default(),
            bind: None,
            arbiters: 1,
            limits: Limits::default(),
            log_level: LevelFilter::Info,
            file: None,
        })
    }

    /// Gives all tables so many replicas and this durability, where they are given, as the command
    /// line asks for.
    pub fn with_class(
        mut self,
        replicas: Option<u8>,
        durability: Option<Durability>,
    ) -> Result<Config> {
        let mut class = Class::by_default(self.nodes.len());
        if let Some(replicas) = replicas {
            class.replicas = Class::check_replicas(replicas.into(), self.nodes.len())
                .map_err(|problem| Error::Arguments(format!("--replicas: {problem}")))?;
        }
        class.durability = durability.unwrap_or(class.durability);
        let class = class
            .check()
            .map_err(|problem| Error::Arguments(format!("--durability: {problem}")))?;
        self.tables = tables_of(class);
        self.classes = Classes::of(&self.tables);
        Ok(self)
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

    /// The folder that is a node's own, of everything it writes.
    pub fn data_of(&self, node: NodeId) -> PathBuf {
        self.data.join(format!("node-{node}"))
    }

    /// Seeds the hash that places a key within its table.
    pub fn hash_seed(&self) -> u64 {
        fnv1a(format!("hash seed of {}", self.cluster).as_bytes())
    }

    /// Sums up what nodes must agree on to form a cluster.
    ///
    /// Part of the protocol between nodes, so it hashes a text that is written out here rather than
    /// whatever a derive makes of the types.
    /// `placement` is the text of which nodes hold what.
    pub fn digest(&self, placement: &str) -> u64 {
        let mut text = format!("partitions={}\nplacement={placement}\n", self.partitions);
        for Node { id, host, client, peer, http } in &self.nodes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "node={id},{host},{client},{peer},{http}");
        }
        for Table { index, class, .. } in &self.tables {
            let _ = writeln!(text, "table={index},{class}");
        }
        let _ = writeln!(text, "election={}", self.replication.election_timeout.as_millis());
        fnv1a(text.as_bytes())
    }

    /// What must stay as it is for a node to find its data again, by name: which keys are in which
    /// partition, and which nodes hold that. Hosts and ports may change, and so may the durability
    /// of a class as a whole, but for `none`. Empty if nothing is kept on disk.
    ///
    /// It is written to disk, so its words are written out here.
    pub fn layout(&self) -> Vec<(&'static str, String)> {
        let kept = |class: &Class| class.durability != Durability::None;
        if !self.classes().iter().any(kept) {
            return Vec::new();
        }
        let nodes = self.nodes.iter().map(|node| node.id.to_string());
        let classes = self.classes().iter().map(|class| {
            let place = if kept(class) { "disk" } else { "memory" };
            format!("{},{},{place}", class.mode.name(), class.replicas)
        });
        let tables = TableIndex::all().map(|index| self.class_of_table(index).to_string());
        let words = |words: Vec<String>| words.join(" ");
        vec![
            ("partitions", self.partitions.to_string()),
            ("nodes", words(nodes.collect())),
            ("classes", words(classes.collect())),
            ("tables", words(tables.collect())),
        ]
    }
}

/// All tables, without names and of one class.
fn tables_of(class: Class) -> Vec<Table> {
    TableIndex::all().map(|index| Table { index, name: None, class }).collect()
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

/// Threads that serve keys when the file does not say how many: one core is left to everything
/// else.
fn arbiters_by_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    (cores - 1).clamp(1, ARBITERS_MAX)
}

const _: () = assert!(TABLES == 16, "messages say that tables are 0 to 15");
const _: () = assert!(
    CLASSES_MAX * (PARTITIONS_MAX as usize) <= u16::MAX as usize,
    "the partitions of all classes have a number each"
);

#[cfg(test)]
mod tests;
