//! What the raft crate has to say goes to our log, under the target `raft`.
//!
//! It speaks through slog and is talkative: an election is five lines of `info`. So its levels are
//! one down in ours. The events of a node, such as a new leader, are logged by the code that owns
//! them.

use slog::{Drain, KV, OwnedKVList, Record, Serializer};
use std::fmt::{self, Write};

/// The target of the lines.
const TARGET: &str = "raft";

/// A logger for one replica.
pub fn logger() -> slog::Logger {
    slog::Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        let level = level(record.level());
        if log::log_enabled!(target: TARGET, level) {
            let mut pairs = Pairs(String::new());
            // Writing to a string does not fail, and a value that cannot be shown is left out.
            let _ = record.kv().serialize(record, &mut pairs);
            let _ = values.serialize(record, &mut pairs);
            log::log!(target: TARGET, level, "{}{}", record.msg(), pairs.0);
        }
        Ok(())
    }
}

fn level(level: slog::Level) -> log::Level {
    match level {
        slog::Level::Critical => log::Level::Error,
        slog::Level::Error => log::Level::Warn,
        slog::Level::Warning => log::Level::Info,
        slog::Level::Info => log::Level::Debug,
        slog::Level::Debug | slog::Level::Trace => log::Level::Trace,
    }
}

/// `, key value` for each pair.
struct Pairs(String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key} {value}").map_err(slog::Error::from)
    }
}
