//! What a partition runs, as far as the partition cares.
//!
//! The engines order, lock, log and commit operations without knowing what they mean; a
//! [`Machine`] gives them their meaning. The Redis commands are one (`command::Redis`), the
//! registers of the engine tests another. A machine must be deterministic: a replica that runs the
//! same operations at the same stamps holds the same tables.

use crate::engine::batch::{Op, OpCode, OpHead, Replies};
use crate::engine::protocol::Refusal;
use crate::engine::tables::Tables;
use crate::ids::{Millis, TableIndex};
use serde::{Deserialize, Serialize};

/// Whether an operation may change what it touches. `Write` is the greater claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Looks only.
    Read,
    /// May change.
    Write,
}

/// How much of a partition an operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The keys it names.
    Keys,
    /// The whole partition, under a lock of its own when it writes.
    Partition,
    /// The whole partition, looked at by itself: each partition at its own moment, but none
    /// before what was acknowledged.
    Glance,
}

/// The meaning of operations.
pub trait Machine: 'static {
    /// Whether the machine has such an operation: asked of everything that comes from a peer.
    fn knows(code: OpCode) -> bool;

    /// Whether it has all of these.
    fn knows_all(mut heads: impl Iterator<Item = OpHead>) -> bool {
        heads.all(|head| Self::knows(head.code))
    }

    /// What the operation may do to what it touches.
    fn access(code: OpCode) -> Access;

    /// Whether the operation may need more memory: refused while there is none to have.
    fn grows(_: OpCode) -> bool {
        false
    }

    /// How much the operation touches.
    fn scope(code: OpCode) -> Scope;

    /// Visits the keys the operation names, each with its table (a few commands name keys of a
    /// table other than their own), in order; duplicates are visited again.
    fn keys(op: &Op<'_>, visit: &mut dyn FnMut(TableIndex, &[u8]));

    /// About how many bytes the operation's reply takes beyond a few; `values` tells how many its
    /// keys hold, and is not asked where the reply is short whatever they are.
    fn reply_bytes(_: &Op<'_>, _values: &mut dyn FnMut() -> usize) -> usize {
        0
    }

    /// About how many bytes the operation goes through beyond those that it takes and replies with;
    /// `values` tells how many its keys hold, and is not asked where it goes through few.
    fn effort(_: &Op<'_>, _values: &mut dyn FnMut() -> usize) -> usize {
        0
    }

    /// By how many bytes the operation may make a value longer, if that is more than its arguments
    /// have; [`usize::MAX`] if it depends on what the tables hold.
    fn stretches(_: &Op<'_>) -> usize {
        0
    }

    /// How many bytes the operation may add to those that its keys hold, beyond its own arguments;
    /// `values` tells how many those are. Asked of operations on one partition that stretch.
    fn growth(_: &Op<'_>, _values: &mut dyn FnMut() -> usize) -> usize {
        0
    }

    /// Runs the operation as of `now` and appends its reply.
    ///
    /// Never fails: an operation that cannot be carried out changes nothing and replies with an
    /// error. Expired items are as good as absent ([`Tables::get`] hides them).
    fn run(op: &Op<'_>, tables: &mut Tables, now: Millis, reply: &mut Vec<u8>);

    /// Appends the operation's reply if it is the same whatever the tables hold; else nothing, and
    /// false.
    fn foretell(_: &Op<'_>, _: &mut Vec<u8>) -> bool {
        false
    }

    /// Appends the error that tells a client why its operation was not served.
    fn refuse(refusal: &Refusal, reply: &mut Vec<u8>);
}

/// Replies of a transaction's share stop growing past this: they are made in one turn, and travel
/// together.
const SHARE_REPLY_BYTES_MAX: usize = 128 << 20;

/// A reply that is no longer is always given: an integer, an error.
const SHORT_REPLY_BYTES: usize = 1 << 10;

/// The first of them may be as long as a value, and they fit one frame.
const FIRST_REPLY_BYTES_MAX: usize = (1 << 29) + (1 << 20);

/// Notes that the reply of an operation of a transaction's share has been written. If the share's
/// replies are too long with it, an error takes its place.
pub fn end_reply<M: Machine>(head: OpHead, replies: &mut Replies) {
    let max = if replies.is_empty() { FIRST_REPLY_BYTES_MAX } else { SHARE_REPLY_BYTES_MAX };
    let begun = replies.start(replies.len());
    // One that comes behind a first that is longer may still be short.
    if replies.bytes.len() > max.max(begun + SHORT_REPLY_BYTES) {
        replies.bytes.truncate(begun);
        M::refuse(&too_long::<M>(head), &mut replies.bytes);
    }
    replies.end();
}

/// Why an operation is not given its reply, which is too long.
pub fn too_long<M: Machine>(head: OpHead) -> Refusal {
    match M::access(head.code) {
        Access::Read => Refusal::TooLong,
        Access::Write => Refusal::Untold,
    }
}
