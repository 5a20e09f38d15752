//! What a connection is, apart from its socket.

use super::words::Words;
use crate::ids::{Millis, TableIndex};

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
    /// The client's end of the connection.
    pub address: String,
    /// The node's end.
    pub local_address: String,
    /// When it connected.
    pub connected_at: Millis,
    /// When its last request came.
    pub active_at: Millis,
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
            address,
            local_address,
            connected_at: now,
            active_at: now,
        }
    }

    /// Forgets what the connection chose (`RESET`). Its library stays what it is.
    pub(super) fn reset(&mut self) {
        self.name.clear();
        self.table = TableIndex::default();
        self.resp3 = false;
    }

    /// Its line in `CLIENT LIST`: the fields of Redis's that a session knows.
    pub fn describe(&self, now: Millis) -> String {
        let seconds_since = |then: Millis| now.0.saturating_sub(then.0) / 1000;
        format!(
            "id={} addr={} laddr={} name={} age={} idle={} flags=N db={} user=default resp={} \
             lib-name={} lib-ver={}\n",
            self.id,
            self.address,
            self.local_address,
            self.name,
            seconds_since(self.connected_at),
            seconds_since(self.active_at),
            self.table,
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
pub(super) fn text(words: Words<'_>, index: usize) -> String {
    String::from_utf8_lossy(words.get(index)).into_owned()
}
