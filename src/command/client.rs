//! What a connection is, apart from its socket.

use super::argv::Argv;
use super::spec::{self, Spec};
use crate::ids::{Millis, TableIndex};
use std::sync::Arc;

/// A connection's state, as its own commands see and change it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Counted by the node, never given twice.
    pub id: u64,
    /// What `CLIENT SETNAME` called it; empty at first.
    pub name: String,
    /// The client library's name, from `CLIENT SETINFO`.
    pub lib_name: String,
    /// The client library's version, from `CLIENT SETINFO`.
    pub lib_ver: String,
    /// The table that `SELECT` chose.
    pub table: TableIndex,
    /// Whether it chose RESP3 with `HELLO`.
    pub resp3: bool,
    /// Which of its commands are answered.
    pub answers: ReplyMode,
    /// Whether it watches what all clients do.
    pub monitor: bool,
    /// The client's end of the connection.
    pub address: Arc<str>,
    /// The node's end.
    pub local_address: Arc<str>,
    /// When it connected.
    pub connected_at: Millis,
    /// When its last request came.
    pub active_at: Millis,
    /// The wall clock as a command of its own begins, in microseconds since the Unix epoch.
    pub micros: u64,
    /// Its last command.
    pub last: Option<&'static Spec>,
    /// Bytes it has sent that are not served yet.
    pub query_bytes: usize,
    /// Room for more of them.
    pub query_free: usize,
    /// Bytes of replies that wait for it to read.
    pub output_bytes: usize,
}

/// Which of a client's commands are answered (`CLIENT REPLY`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// All.
    #[default]
    On,
    /// None.
    Off,
    /// All but the next one.
    SkipNext,
    /// All but the one that is being served.
    Skipping,
}

impl Client {
    /// A connection that has just been made.
    pub fn new(id: u64, address: String, local_address: String, now: Millis) -> Client {
        Client {
            id,
            name: String::new(),
            lib_name: String::new(),
            lib_ver: String::new(),
            table: TableIndex::default(),
            resp3: false,
            answers: ReplyMode::On,
            monitor: false,
            address: address.into(),
            local_address: local_address.into(),
            connected_at: now,
            active_at: now,
            micros: now.0.saturating_mul(1000),
            last: None,
            query_bytes: 0,
            query_free: 0,
            output_bytes: 0,
        }
    }

    /// Forgets what the connection chose (`RESET`). Its library stays what it is.
    pub(super) fn reset(&mut self) {
        self.name.clear();
        self.table = TableIndex::default();
        self.resp3 = false;
        // What it said of the next answer holds for this one.
        if self.answers != ReplyMode::Skipping {
            self.answers = ReplyMode::On;
        }
        self.monitor = false;
    }

    /// Before a command is served: whether its answer is to be held back, as far as can be told.
    #[inline]
    pub fn begin_answer(&mut self) {
        if self.answers == ReplyMode::SkipNext {
            self.answers = ReplyMode::Skipping;
        }
    }

    /// After a command is served: whether its answer is held back.
    #[inline]
    pub fn holds_answer(&mut self) -> bool {
        match self.answers {
            ReplyMode::On | ReplyMode::SkipNext => false,
            ReplyMode::Off => true,
            ReplyMode::Skipping => {
                self.answers = ReplyMode::On;
                true
            }
        }
    }

    /// What others may know of it.
    pub fn info(&self) -> ClientInfo {
        ClientInfo {
            id: self.id,
            name: self.name.clone(),
            lib_name: self.lib_name.clone(),
            lib_ver: self.lib_ver.clone(),
            table: self.table,
            resp3: self.resp3,
            monitor: self.monitor,
            address: self.address.clone(),
            local_address: self.local_address.clone(),
            connected_at: self.connected_at,
            active_at: self.active_at,
            last: self.last,
            query_bytes: self.query_bytes,
            query_free: self.query_free,
            output_bytes: self.output_bytes,
        }
    }
}

/// What a connection shows of itself to others.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Counted by the node, never given twice.
    pub id: u64,
    /// What `CLIENT SETNAME` called it.
    pub name: String,
    /// The client library's name.
    pub lib_name: String,
    /// The client library's version.
    pub lib_ver: String,
    /// The table it works on.
    pub table: TableIndex,
    /// Whether it speaks RESP3.
    pub resp3: bool,
    /// Whether it watches what all clients do.
    pub monitor: bool,
    /// The client's end of the connection.
    pub address: Arc<str>,
    /// The node's end.
    pub local_address: Arc<str>,
    /// When it connected.
    pub connected_at: Millis,
    /// When its last request came.
    pub active_at: Millis,
    /// Its last command.
    pub last: Option<&'static Spec>,
    /// Bytes it has sent that are not served yet.
    pub query_bytes: usize,
    /// Room for more of them.
    pub query_free: usize,
    /// Bytes of replies that wait for it to read.
    pub output_bytes: usize,
}

impl ClientInfo {
    /// Takes over what changes with every request.
    #[inline]
    pub fn follow(&mut self, client: &Client) {
        self.active_at = client.active_at;
        self.last = client.last;
        self.query_bytes = client.query_bytes;
        self.query_free = client.query_free;
        self.output_bytes = client.output_bytes;
    }

    /// Its line in `CLIENT LIST`: the fields of Redis's that a session knows.
    pub fn describe(&self, now: Millis) -> String {
        let seconds_since = |then: Millis| now.0.saturating_sub(then.0) / 1000;
        format!(
            "id={} addr={} laddr={} name={} age={} idle={} flags={} db={} qbuf={} qbuf-free={} \
             omem={} tot-mem={} cmd={} user=default resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.address,
            self.local_address,
            self.name,
            seconds_since(self.connected_at),
            seconds_since(self.active_at),
            if self.monitor { 'O' } else { 'N' },
            self.table,
            self.query_bytes,
            self.query_free,
            self.output_bytes,
            self.query_bytes + self.query_free + self.output_bytes,
            self.last.map_or_else(|| "NULL".into(), spec::full_name),
            if self.resp3 { 3 } else { 2 },
            self.lib_name,
            self.lib_ver,
        )
    }
}

/// What a session does after a command of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Goes on.
    Continue,
    /// Forgets its queued transaction and its watched keys, and goes on.
    Reset,
    /// Closes the connection once the replies are written.
    Close,
}

/// Whether a name may stand in a line of `CLIENT LIST`: no spaces, no control characters.
pub(super) fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

/// A word as text; bytes that are none become question marks.
pub(super) fn text(argv: Argv<'_>, index: usize) -> String {
    String::from_utf8_lossy(argv.get(index)).into_owned()
}
