//! What a node knows of itself, as its sessions report it.

use super::client::Client;
use crate::ids::Millis;

/// The version of Redis whose commands and replies these are.
pub const REDIS_VERSION: &str = "7.0.15";

/// A node's figures. Its actors fill them in, about every second; the sessions only read.
///
/// A field that nobody fills is absent (`None`) rather than zero, and absent from `INFO` too:
/// what is reported is what is measured.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The moment of these figures.
    pub now: Millis,
    /// When the node started.
    pub started_at: Millis,
    /// Forty hexadecimal digits that name this life of the node.
    pub run_id: String,
    /// The node's number in the cluster.
    pub node: u16,
    /// How many nodes the cluster has.
    pub nodes: usize,
    /// The operating system, its release and the machine: `Linux 6.1 x86_64`.
    pub os: String,
    /// The node's process.
    pub process_id: u32,
    /// The port clients connect to.
    pub port: u16,
    /// The configuration file, if there is one.
    pub config_file: String,
    /// The most clients that may be connected at a time.
    pub clients_max: u64,
    /// Clients connected now.
    pub clients_connected: u64,
    /// All connections; filled when the node keeps a list of them, for `CLIENT LIST`.
    pub clients: Vec<Client>,
    /// Bytes that keys and values take.
    pub memory_tables: u64,
    /// Bytes of memory of the whole process, resident.
    pub memory_resident: Option<u64>,
    /// Seconds of processor time that the process spent in the kernel and in its own code.
    pub cpu_seconds: Option<(f64, f64)>,
    /// Connections accepted since the start.
    pub connections_total: u64,
    /// Connections refused since the start.
    pub connections_rejected: u64,
    /// Commands processed since the start.
    pub commands_total: u64,
    /// Commands processed a second, of late.
    pub commands_per_second: u64,
    /// Bytes read from clients since the start.
    pub input_bytes: Option<u64>,
    /// Bytes written to clients since the start.
    pub output_bytes: Option<u64>,
    /// Error replies since the start.
    pub errors_total: Option<u64>,
    /// Keys removed because they expired, since the start.
    pub expired_total: Option<u64>,
    /// Reads that found their key, since the start.
    pub hits_total: Option<u64>,
    /// Reads that did not.
    pub misses_total: Option<u64>,
    /// Each table's keys as far as this node holds them; empty tables may be left out.
    pub tables: Vec<TableFacts>,
    /// What `CONFIG GET` shows, beside what every node has.
    pub config: Vec<(String, String)>,
}

/// A table's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Its index.
    pub index: u8,
    /// Keys held.
    pub keys: u64,
    /// Those with an expiry.
    pub volatile: u64,
}
