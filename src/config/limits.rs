//! What clients may ask for at most.

use std::time::Duration;

/// The greatest of everything that clients can make great.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a key: 64 KiB.
    pub key: usize,
    /// Bytes of a value, and of any one argument: 64 MiB.
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
    /// 128 MiB.
    pub transaction: usize,
    /// Bytes of a node's tables: 0, which is no limit.
    pub memory: usize,
    /// Client connections of a node: 10,000.
    pub connections: usize,
    /// What a client may raise that to (`CONFIG SET maxclients`): what the machine has room for.
    pub connections_max: usize,
    /// Connections over HTTP.
    pub http_connections: usize,
    /// How long a connection may be quiet: 0 s, which is for ever.
    pub idle: Duration,
    /// Bytes that may wait for another node that does not read, beside one message, before it is
    /// taken for lost: 1 GiB.
    pub peer_queue: usize,
    /// Bytes that a backup may hold in a node's memory, of what has changed since its moment: 1 GiB.
    pub backup: usize,
    /// How long a client may leave its replies unread: 300 s.
    pub unread: Duration,
    /// How long a request waits for keys that a transaction holds: 5 s.
    pub lock_wait: Duration,
    /// How long a request waits for a partition that has no leader: 5 s; with 0 it is refused at
    /// once.
    pub failover_wait: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            key: 64 << 10,
            value: 64 << 20,
            arguments: 1 << 20,
            inline: 64 << 10,
            query_buffer: 1 << 30,
            output_buffer: 1 << 30,
            pipeline: 4096,
            transaction: 128 << 20,
            memory: 0,
            connections: 10_000,
            connections_max: 1_000_000,
            http_connections: 256,
            peer_queue: 1 << 30,
            backup: 1 << 30,
            idle: Duration::ZERO,
            unread: Duration::from_secs(300),
            lock_wait: Duration::from_secs(5),
            failover_wait: Duration::from_secs(5),
        }
    }
}
