//! Quorate: a distributed hash table that speaks the Redis protocol.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod command;
pub mod engine;
pub mod ids;
pub mod net;
