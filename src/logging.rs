//! Log lines: when, how grave, which node, which part, what.
//!
//! The logger is the one thing of a process that all of its nodes share, so a line says whose it
//! is: each arbiter belongs to one node and remembers which.

use crate::ids::NodeId;
use log::LevelFilter;
use std::cell::Cell;
use std::fmt;

thread_local! {
    static NODE: Cell<Option<NodeId>> = const { Cell::new(None) };
}

/// Says that this thread's lines are the node's.
pub fn set_node(node: NodeId) {
    NODE.set(Some(node));
}

/// Begins to log to the standard error stream.
///
/// # Errors
/// When the process has a logger already.
pub fn init(level: LevelFilter, clock: fn() -> crate::ids::Millis) -> Result<(), String> {
    fern::Dispatch::new()
        .format(move |out, message, record| {
            let line = line(clock().0, record.level(), NODE.get(), record.target(), message);
            out.finish(format_args!("{line}"));
        })
        .level(level)
        .chain(std::io::stderr())
        .apply()
        .map_err(|error| error.to_string())
}

/// One line. What clients and peers sent may be part of the message and must not be able to forge
/// another line or to move the cursor of who reads it, so control characters are written out.
fn line(
    millis: u64,
    level: log::Level,
    node: Option<NodeId>,
    part: &str,
    message: &fmt::Arguments<'_>,
) -> String {
    let node = node.map(|node| format!("node {node} ")).unwrap_or_default();
    let mut line = format!("{} {level:5} {node}{part}: ", timestamp(millis));
    for c in message.to_string().chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Milliseconds since the Unix epoch as RFC 3339 has them, in UTC.
fn timestamp(millis: u64) -> String {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// A day since the Unix epoch as year, month and day. After Hinnant's `civil_from_days`: years
/// begin in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(timestamp(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(timestamp(951_868_800_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(timestamp(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_line_names_its_node_and_cannot_be_forged() {
        let warn = log::Level::Warn;
        assert_eq!(
            line(7, warn, Some(NodeId(2)), "peer", &format_args!("peer 3 lost, retrying")),
            "1970-01-01T00:00:00.007Z WARN  node 2 peer: peer 3 lost, retrying"
        );
        assert_eq!(
            line(7, warn, None, "peer", &format_args!("hello from '{}'", "x\nERROR\u{1b}[0m é")),
            "1970-01-01T00:00:00.007Z WARN  peer: hello from 'x\\nERROR\\u{1b}[0m é'"
        );
    }
}
