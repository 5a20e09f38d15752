//! Histories of real clients against a real cluster, judged by checkers that know nothing of it.
//!
//! Threads talk to three processes through all nodes and write down what they asked, when, and
//! what they were told. Whether that can have happened one command after the other, each at some
//! moment between its call and its return, is then a question about the record alone:
//!
//! - `registers`: values, counters, multi-key commands and transactions, judged by a published
//!   checker and by one of our own (`checker`) that also manages long histories;
//! - `appends`: lists that only grow, judged by a search for cycles (`cycles`), as Elle does;
//! - `bank`: a sum that must not change; `contention`: who waits how long for eight keys.
//!
//! Nodes are paused, resumed and killed meanwhile. Where tables have one copy in memory a killed
//! node takes its keys along, so there the record is about the keys of the others.

// Tests measure time and wait in threads of their own; a failing test may panic anywhere.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "history/appends.rs"]
mod appends;
#[path = "history/bank.rs"]
mod bank;
#[path = "history/checker.rs"]
mod checker;
#[path = "history/contention.rs"]
mod contention;
#[path = "history/cycles.rs"]
mod cycles;
#[path = "history/dice.rs"]
mod dice;
// It serves the tests of the cluster first; not all of it is of use here.
#[allow(dead_code)]
#[path = "cluster/harness.rs"]
mod harness;
#[path = "history/model.rs"]
mod model;
#[path = "history/nemesis.rs"]
mod nemesis;
#[path = "history/recorder.rs"]
mod recorder;
#[path = "history/registers.rs"]
mod registers;
