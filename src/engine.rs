//! What decides: plain synchronous code without sockets, files, clocks, threads or dice.
//!
//! An engine takes its input as arguments, `now` included, and pushes effects; an actor carries
//! them out. So a seed is a run: the simulators drive the same code as the binary.

pub mod batch;
pub mod item;
pub mod machine;
pub mod protocol;
pub mod slots;
pub mod table;
pub mod tables;
