//! What a node knows of itself, as its sessions report it.

use super::settings::Settings;
use crate::ids::Millis;

/// The version of Redis whose commands and replies these are.
pub const REDIS_VERSION: &str = "7.0.15";

/// A node's figures. Its actors fill them in, about every second; the sessions only read.
///
/// A field that no actor fills is absent (`None`) rather than zero, and absent from `INFO` too:
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
    /// The whole path of the configuration file; empty if there is none.
    pub config_file: String,
    /// Clients connected now.
    pub clients_connected: u64,
    /// Keys that clients of all nodes watch and this node leads.
    pub keys_watched: u64,
    /// Bytes that keys and values take, and the registers of watched keys.
    pub memory_tables: u64,
    /// The most they ever took, as far as it was seen.
    pub memory_peak: u64,
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
    /// What `CONFIG` shows and sets. Each arbiter has its own copy.
    pub settings: Settings,
    /// The nodes, by number.
    pub cluster: Vec<NodeFacts>,
    /// The partitions of table 0, by number.
    pub partitions: Vec<PartitionFacts>,
    /// What is promised to which tables: table 0's first.
    pub classes: Vec<ClassFacts>,
    /// The node's log, if it has one.
    pub log: Option<LogFacts>,
    /// Partitions of all tables that the node leads, and that it holds.
    pub led_and_held: (usize, usize),
    /// What became of each command's requests, by its whole name.
    pub calls: Vec<(String, Calls)>,
    /// Error replies by their first word.
    pub errors: Vec<(String, u64)>,
    /// Clients whose command a pause holds back.
    pub clients_blocked: u64,
    /// Bytes read from and written to clients a second, of late.
    pub bytes_per_second: (u64, u64),
    /// Transactions committed, attempts aborted and wounds obeyed, since the start.
    pub transactions: (u64, u64, u64),
    /// Requests that wait for a key that a transaction holds.
    pub lock_waiting: u64,
}

/// What became of a command's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// How often it was served.
    pub calls: u64,
    /// How long that took, in nanoseconds.
    pub nanos: u64,
    /// How often it was not begun: a wrong number of arguments, a node that does not serve yet.
    pub rejected: u64,
    /// How often it was answered with an error.
    pub failed: u64,
}

impl Calls {
    /// Adds another arbiter's.
    pub fn add(&mut self, other: &Calls) {
        self.calls += other.calls;
        self.nanos += other.nanos;
        self.rejected += other.rejected;
        self.failed += other.failed;
    }
}

/// What is known of a node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its number.
    pub node: u16,
    /// Forty hexadecimal digits: the same on all nodes.
    pub name: String,
    /// Where clients reach it.
    pub host: String,
    /// Its port for clients.
    pub port: u16,
    /// Its port for the other nodes.
    pub peer_port: u16,
    /// Whether it can be reached.
    pub linked: bool,
    /// Runs of slots that it leads: the first and the last of each.
    pub slots: Vec<(u16, u16)>,
}

/// The nodes that serve a run of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// The first slot and the last.
    pub slots: (u16, u16),
    /// The node that leads it, as far as is known.
    pub leader: u16,
    /// The other nodes that hold it.
    pub followers: Vec<u16>,
}

/// What is promised to the tables of one storage class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassFacts {
    /// The tables.
    pub tables: Vec<u8>,
    /// How many nodes hold each partition.
    pub replicas: usize,
    /// What an acknowledged write has survived: `sync`, `interval` or `none`.
    pub durability: &'static str,
}

/// So many partitions, in words.
pub fn counted(count: usize) -> String {
    match count {
        1 => "1 partition".into(),
        count => format!("{count} partitions"),
    }
}

/// Numbers in order, neighbours as a run: `0-3, 7`.
pub fn runs(numbers: impl IntoIterator<Item = u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let show = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// What a node's log takes, and has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// Its segments.
    pub segments: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Batches written.
    pub batches: u64,
    /// Bytes written.
    pub appended: u64,
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
