//! A real cluster: processes of the built binary on loopback, real clients, real signals.
//!
//! What the simulators cannot see is tested here: the command line, the listeners, the framing
//! between processes, the client library's view, what `kill -9` leaves behind. Each test starts a
//! cluster of its own on free ports, so tests run side by side.
//!
//! `QUORATE_BINARY` names another binary to test than the one cargo has just built.

// Tests measure time and wait in threads of their own; a failing test may panic anywhere.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cluster/answers.rs"]
mod answers;
#[path = "cluster/atomicity.rs"]
mod atomicity;
#[path = "cluster/binary.rs"]
mod binary;
#[path = "cluster/boots.rs"]
mod boots;
#[path = "cluster/catchup.rs"]
mod catchup;
#[path = "cluster/classes.rs"]
mod classes;
#[path = "cluster/client.rs"]
mod client;
#[path = "cluster/clocks.rs"]
mod clocks;
#[path = "cluster/commands.rs"]
mod commands;
#[path = "cluster/count.rs"]
mod count;
#[path = "cluster/disks.rs"]
mod disks;
#[path = "cluster/durability.rs"]
mod durability;
#[path = "cluster/failover.rs"]
mod failover;
#[cfg(feature = "failpoints")]
#[path = "cluster/failpoints.rs"]
mod failpoints;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/figures.rs"]
mod figures;
#[path = "cluster/formation.rs"]
mod formation;
#[path = "cluster/harness.rs"]
mod harness;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/operations.rs"]
mod operations;
#[path = "cluster/peers.rs"]
mod peers;
#[path = "cluster/pipelines.rs"]
mod pipelines;
#[path = "cluster/resources.rs"]
mod resources;
#[path = "cluster/server.rs"]
mod server;
#[path = "cluster/transactions.rs"]
mod transactions;
#[path = "cluster/wire.rs"]
mod wire;

/// Stands in the list of tests for those that are not there.
#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "compiled with --features failpoints only"]
fn failpoints() {}
