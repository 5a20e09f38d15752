//! What a node keeps on disk: one log for all its consensus groups, snapshots, an identity.
//!
//! ```text
//! DIR/lock               held while a process uses the directory
//! DIR/identity           whose directory this is, in readable text
//! DIR/synced             how far the log was synced last
//! DIR/log/0000000007.log segments of the log, in order of their numbers
//! DIR/reserve            room for a start on a full disk
//! DIR/snapshots/...      a partition up to an index, one file each
//! ```
//!
//! The promise is one sentence: **what was synced before a power cut is there after it, and what is
//! not there is told apart from what was damaged.** A node that finds damage refuses to start with
//! the file and the byte named: serving less than was acknowledged would be worse, and its peers
//! have copies.
//!
//! All of it is plain synchronous code over the [`Disk`] trait. The real disk is
//! [`disk::RealDisk`]; tests run the same code on a disk in memory that loses, tears and flips
//! under a seed. What the bytes of a record or a snapshot mean is for `store` and `partition` to know.

pub mod directory;
pub mod disk;
#[cfg(test)]
pub mod faulty;
mod frame;
mod index;
pub mod log;
pub mod record;
mod recovery;
pub mod reserve;
mod segment;
pub mod snapshot;
mod synced;
#[cfg(test)]
mod tests;

pub use directory::{Directory, Identity};
pub use disk::{Disk, RealDisk};
pub use log::{Options, SegmentLog};
pub use record::Records;
pub use recovery::{GroupLog, Recovered, Torn};
pub use snapshot::{Snapshot, SnapshotReader, SnapshotReceiver, SnapshotWriter, Snapshots};
