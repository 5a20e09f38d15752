//! Quorate: a distributed hash table that speaks the Redis protocol.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod config;
pub mod engine;
pub mod error;
pub mod ids;
