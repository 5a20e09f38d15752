//! The commit protocol under a seed: every core of a small cluster, a schedule of its messages,
//! Coordinators that die, links that break, and a checker that looks on from outside.
//!
//! ```text
//!  clients ── requests ──▶ world: Buckets, LockQueues, Coordinators ──▶ checker: whole? in order? at rest?
//!     ▲                        │            ▲
//!     └─────── replies ── network: what is delivered next, and what is lost
//!                              ▲
//!                   schedule  or  steps  or  scripted
//! ```
//!
//! The cores are those of the binary, and [`world`] does with their effects what the actors do.
//! Messages between two actors keep their order, as a mailbox and a stream do; everything else is
//! up to the schedule:
//!
//! - [`schedule`] draws it: hundreds of short ones, each repeatable by its seed. This finds cases
//!   that were not thought of.
//! - [`steps`] runs single transactions without chance, and strikes a node at each of their steps. This
//!   leaves no step out.
//! - [`scripted`] has schedules written by hand, for what a seed hardly ever gives.
//!
//! Each node has clocks of its own ([`clocks`]), each data node one to three Buckets and a [`disk`] that
//! takes its time. Clients ask for one thing at a time, or for many at once ([`pipelines`]), whose
//! replies are cut and gathered by the code that the actors use.
//!
//! Transactions append their tags to [`lists`], so that the lists tell the order of transactions,
//! and the [`checker`] finds a cycle in that order if there is one.
//!
//! There are four [kinds](world::Kind) of worlds: partitions with one copy on nodes that do not die,
//! the same on nodes that do, partitions replicated on all data nodes, each with a disk that syncs
//! when the schedule says so and forgets what it did not sync, and some of either sort. In the last
//! two nothing acknowledged by replicated partitions may be missing, whichever node dies.
//!
//! A check that never fails may check nothing. So each rule of the protocol is broken once, which
//! makes a [mutant](mutants): one of these schedules has to find a violation then.

mod checker;
mod clients;
mod clocks;
mod disk;
mod faults;
mod lists;
mod mutants;
mod network;
mod pipelines;
mod schedule;
mod scripted;
mod steps;
mod world;

pub use lists::Lists;
