//! What decides: plain synchronous code without sockets, files, clocks, threads or dice.
//!
//! An engine takes its input as arguments, `now` included, and pushes effects; an actor carries
//! them out. So a seed is a run: the simulators drive the same code as the binary.

pub mod barrier;
pub mod batch;
pub mod bucket;
pub mod consensus;
pub mod doubt;
pub mod item;
pub mod link;
pub mod locks;
pub mod machine;
pub mod marks;
pub mod partition;
pub mod protocol;
pub mod record;
pub mod replica;
pub mod round;
pub mod rules;
pub mod slots;
pub mod snapshot;
pub mod stamps;
pub mod table;
pub mod tables;
pub mod txn;
pub mod watches;

#[cfg(test)]
mod script;
#[cfg(test)]
mod simulation;
