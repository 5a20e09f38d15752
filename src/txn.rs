//! Transactions over several partitions: locks, the commit protocol, and its Coordinator.
//!
//! [`protocol`] has the messages, [`coordinator`] what the node does where a transaction began. A
//! participant locks keys in its [`lock_table`]; requests that wait are queued in [`lock_queue`].
//! What it does with its log is decided in [`crate::partition`]. The rules that all of them follow
//! are in [`crate::rules`].

pub mod claims;
pub mod coordinator;
pub mod lock_queue;
pub mod lock_table;
pub mod protocol;
pub mod share;
pub mod wire;
