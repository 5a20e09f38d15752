//! Clients that are told what the others ask.

use super::Local;
use crate::actors::bucket::Ask;
use crate::command::argv::Argv;
use crate::command::client::Client;
use crate::command::node_query::{Question, Selection};
use std::cell::RefCell;
use std::sync::Arc;
use tokio::sync::mpsc::{self, error::TrySendError};

/// Commands that a monitor may be behind before it is given up.
pub const MONITOR_QUEUE: usize = 16 << 10;

/// What a monitor is told: a line a command.
pub type Feed = mpsc::Sender<Arc<[u8]>>;

/// The monitors, by the clients' ids.
#[derive(Debug, Default)]
pub(super) struct Monitors(RefCell<Vec<(u64, Feed)>>);

impl Monitors {
    /// A client is gone.
    pub(super) fn forget(&self, gone: u64) {
        self.0.borrow_mut().retain(|(client, _)| *client != gone);
    }
}

impl Local {
    /// From now on `feed` is told what clients ask, until its receiver is gone.
    pub fn watch(&self, client: u64, feed: Feed) {
        self.monitors.0.borrow_mut().push((client, feed));
    }

    /// Whether a client wants to be told what the others ask.
    #[inline]
    pub fn is_watched(&self) -> bool {
        !self.monitors.0.borrow().is_empty()
    }

    /// Tells the monitors. One that does not keep up is given up.
    pub fn show(&self, client: &Client, argv: Argv<'_>) {
        let now = (self.setup.clock)().wall;
        let (secs, millis) = (now.0 / 1000, now.0 % 1000);
        let begin = format!("+{secs}.{millis:03}000 [{} {}]", client.table, client.address);
        let mut line = begin.into_bytes();
        for word in argv.from(0) {
            line.extend_from_slice(b" \"");
            for &byte in word {
                match byte {
                    b'\\' | b'"' => line.extend_from_slice(&[b'\\', byte]),
                    b'\n' => line.extend_from_slice(b"\\n"),
                    b'\r' => line.extend_from_slice(b"\\r"),
                    b'\t' => line.extend_from_slice(b"\\t"),
                    7 => line.extend_from_slice(b"\\a"),
                    8 => line.extend_from_slice(b"\\b"),
                    b' '..=b'~' => line.push(byte),
                    _ => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                }
            }
            line.push(b'"');
        }
        line.extend_from_slice(b"\r\n");
        let line: Arc<[u8]> = line.into();
        self.monitors.0.borrow_mut().retain(|(client, feed)| match feed.try_send(line.clone()) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                log::warn!(target: "session", "closing client {client}: it monitors and does not read");
                let selection = Selection { ids: Some(vec![*client]), ..Selection::default() };
                for bucket in &self.book.buckets {
                    bucket.do_send(Ask(Question::Kill(selection.clone())));
                }
                false
            }
        });
    }
}
