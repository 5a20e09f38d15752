//! Quorate: a distributed hash table that speaks the Redis protocol and commits across nodes.
//!
//! Decisions are in [`engine`] and [`command`], plain synchronous code; mailboxes in [`actors`];
//! bytes in [`net`] and [`storage`]. ARCHITECTURE.md is the map.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod actors;
pub mod cli;
pub mod command;
pub mod config;
pub mod engine;
pub mod error;
pub mod ids;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod storage;
