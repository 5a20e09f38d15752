//! File descriptors: how many the process may open, and how they are dealt out.
//!
//! Clients are the only ones that can take any number, so they get what is left: the log, the
//! snapshots, the other nodes and HTTP have theirs set aside. A full table then refuses clients and
//! starves nothing else.

use crate::config::{Config, Limits};
use crate::error::{Error, Result};
use std::io;

/// What the process has open beside its nodes: its three streams and one for log lines, what hears
/// signals, the main thread's runtime; and what libraries open for a moment.
const PROCESS: usize = 24;

/// The runtime of one thread.
const THREAD: usize = 5;

/// The threads of a node that serve no keys: those of its log and its snapshots.
const DISK_THREADS: usize = 2;

/// A node's listeners and their spare ones, the lock of its directory, the log's present segment
/// twice and the next one, the snapshot being made, directories while they are read and synced.
const NODE: usize = 20;

/// For each other node: both streams, also while they are made anew; snapshots that wait to be sent
/// to it, and one that comes.
const PEER: usize = 10;

/// Streams to the port for other nodes that have not said yet who they are.
const STRANGERS: usize = crate::actors::node::STRANGERS_MAX + 1;

/// Connections over HTTP: a part of what is left, within these bounds.
const HTTP_PART: usize = 8;
const HTTP_MIN: usize = 4;
const HTTP_MAX: usize = crate::net::http::CONNECTIONS_MAX;

/// A node for fewer clients is not worth starting.
const CLIENTS_MIN: usize = 8;

/// More than this is not asked of the machine.
const WANTED_MAX: u64 = 1 << 20;

/// Raises the process's soft limit, and fits the limits of the nodes that run here to it.
///
/// # Errors
/// When there are too few for the nodes, with the number that would do.
pub fn fit(config: &mut Config, nodes: usize) -> Result<()> {
    let Some(allowed) = raise() else { return Ok(()) };
    let share = share(config, nodes, allowed).map_err(|needed| {
        let problem = format!(
            "this process may open {allowed} files and needs {needed} at least; raise the limit \
             (ulimit -n {needed})"
        );
        Error::Io("cannot start".into(), io::Error::other(problem))
    })?;
    let Limits { connections, connections_max, http_connections, .. } = &mut config.limits;
    if share.clients < *connections {
        // An operator that asked for more should know. A default that does not fit is no reason to
        // warn.
        let asked_for = *connections != Limits::default().connections;
        let level = if asked_for { log::Level::Warn } else { log::Level::Info };
        log::log!(
            target: "node",
            level,
            "limits.connections is {connections}, and {allowed} open files leave room for {} \
             clients a node (ulimit -n)",
            share.clients
        );
        *connections = share.clients;
    }
    *connections_max = share.clients.min(*connections_max);
    *http_connections = share.http.min(*http_connections);
    Ok(())
}

/// What a node may give to those that connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    clients: usize,
    http: usize,
}

/// Each node's share of so many descriptors, or how many it takes at least.
fn share(config: &Config, nodes: usize, allowed: usize) -> Result<Share, usize> {
    let threads = config.arbiters + DISK_THREADS;
    let own = threads * THREAD + NODE + (config.nodes().len() - 1) * PEER + STRANGERS;
    let needed = PROCESS + nodes * (own + HTTP_MIN + CLIENTS_MIN);
    if allowed < needed {
        return Err(needed);
    }
    let left = (allowed - PROCESS) / nodes.max(1) - own;
    let http = (left / HTTP_PART).clamp(HTTP_MIN, HTTP_MAX);
    Ok(Share { clients: left - http, http })
}

/// Raises the soft limit as far as it may go, and tells it; none where that is not known.
fn raise() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills in the structure, which outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(WANTED_MAX), ..limit };
    if raised.rlim_cur > limit.rlim_cur {
        // SAFETY: the kernel reads the structure, which outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            limit = raised;
        }
    }
    Some(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_left() {
        let mut config = Config::local(3, 7000).unwrap();
        config.arbiters = 2;
        let own = 4 * THREAD + NODE + 2 * PEER + STRANGERS;
        let least = PROCESS + own + HTTP_MIN + CLIENTS_MIN;
        assert_eq!(share(&config, 1, least - 1), Err(least));
        assert_eq!(share(&config, 1, least), Ok(Share { clients: 8, http: 4 }));
        let share_of = |nodes, allowed| share(&config, nodes, allowed).unwrap();
        assert!(share_of(1, 256).clients > 100, "{:?}", share_of(1, 256));
        assert!(share_of(1, 1024).clients > 700, "{:?}", share_of(1, 1024));
        assert_eq!(share_of(1, 1 << 20).http, HTTP_MAX);
        // Three nodes in a process have a third each.
        let all = 3 * (share_of(3, 1024).clients + share_of(3, 1024).http + own) + PROCESS;
        assert!((1020..=1024).contains(&all), "{all}");
    }
}
