//! Mailboxes around the cores: what carries messages between cores, sockets and clocks.
//!
//! Every actor is the same few lines: take a message, hand it to the core, drain the core's
//! effects, send each where it belongs. Decisions are in the pure rooms; where something goes is in the
//! [`book::Book`].

pub mod archive;
pub mod book;
pub mod bucket;
pub mod coordinator;
pub mod dispatch;
pub mod failpoint;
pub mod local;
pub mod lock_manager;
pub mod log;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod recovery;
pub mod session;
pub mod submission;
