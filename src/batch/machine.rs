//! What a partition runs, as far as the partition cares.
//!
//! The cores order, lock, log and commit operations without knowing what they mean; a
//! [`Machine`] gives them their meaning. The Redis commands are one (`command::Redis`), the
//! registers of the tests another. A machine must be deterministic: a replica that runs the
//! same operations at the same stamps holds the same tables.

use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Op, OpCode, OpHead, Replies};
use crate::ids::{Millis, TableIndex};
use crate::store::tables::{Access, Tables};
use std::collections::BTreeMap;

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

/// How many bytes of values the operations of a transaction may go through, and make, beside those of
/// the greatest of them: all of it is done in one turn of each node that has a part in it.
pub const EFFORT_TOGETHER_MAX: usize = 128 << 20;

/// What operations that are run together go through and make, in bytes of values.
#[derive(Debug, Default)]
pub struct Effort {
    total: usize,
    greatest: usize,
}

impl Effort {
    /// One more of them, or of the values that they need.
    ///
    /// # Errors
    /// When it is more than a turn allows.
    pub fn add(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.total = self.total.saturating_add(bytes);
        self.greatest = self.greatest.max(bytes);
        match self.total - self.greatest > EFFORT_TOGETHER_MAX {
            true => Err(TooMuch),
            false => Ok(()),
        }
    }
}

/// Operations go through more than [`EFFORT_TOGETHER_MAX`], or answer more than
/// [`ANSWERS_TOGETHER_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// How many bytes of values the operation goes through and makes where a key holds what `value`
/// tells.
pub fn effort_of<M: Machine>(op: &Op<'_>, value: impl Fn(TableIndex, &[u8]) -> usize) -> usize {
    let mut held = || {
        let mut bytes = 0;
        M::keys(op, &mut |table, key| bytes += value(table, key));
        bytes
    };
    let grown = if M::stretches(op) > 0 { M::growth(op, &mut held) } else { 0 };
    M::effort(op, &mut held).saturating_add(grown)
}

/// Adds up what the operations go through, run one after the other on what `value` tells that the
/// keys hold now.
///
/// What an earlier operation may have written is taken to be as long as anything it was given.
///
/// # Errors
/// When it is more than a turn allows.
pub fn foresee_effort<M: Machine>(
    batch: &Batch,
    value: impl Fn(TableIndex, &[u8]) -> usize,
) -> Result<(), TooMuch> {
    let toils = |op: Op<'_>| M::stretches(&op) > 0 || M::effort(&op, &mut || 1) > 0;
    if !batch.iter().any(toils) {
        return Ok(());
    }
    let mut effort = Effort::default();
    let mut made: BTreeMap<(TableIndex, Vec<u8>), usize> = BTreeMap::new();
    for op in batch.iter() {
        let held = |table: TableIndex, key: &[u8]| {
            let made = made.get(&(table, key.to_vec())).copied().unwrap_or(0);
            made.max(value(table, key))
        };
        let bytes = effort_of::<M>(&op, held);
        effort.add(bytes)?;
        if M::access(op.head.code) == Access::Write {
            let mut longest = op.args.iter().map(<[u8]>::len).sum::<usize>();
            M::keys(&op, &mut |table, key| longest = longest.max(held(table, key)));
            if M::stretches(&op) > 0 {
                longest = longest.max(M::growth(&op, &mut || 0));
            }
            let mut written = Vec::new();
            M::keys(&op, &mut |table, key| written.push((table, key.to_vec())));
            made.extend(written.into_iter().map(|key| (key, longest)));
        }
    }
    Ok(())
}

/// How many bytes the replies of a transaction may have, beside the longest of them: they are made in
/// one turn of each node that has a part in it, travel together, and meet at one node.
pub const ANSWERS_TOGETHER_MAX: usize = 128 << 20;

/// The longest of them may be as long as a value, and fits one frame.
const LONGEST_ANSWER_MAX: usize = (1 << 29) + (1 << 20);

/// Whether the replies are likely to be longer than a transaction's may be, where keys hold what
/// `value` tells: an estimate, which may be too high. They are measured before they are kept then.
pub fn may_answer_too_much<'a, M: Machine>(
    mut ops: impl Iterator<Item = Op<'a>>,
    value: impl Fn(TableIndex, &[u8]) -> usize,
) -> bool {
    let mut total: usize = 0;
    ops.any(|op| {
        let bytes = M::reply_bytes(&op, &mut || {
            let mut bytes = 0;
            M::keys(&op, &mut |table, key| bytes += value(table, key));
            bytes
        });
        total = total.saturating_add(bytes);
        total > ANSWERS_TOGETHER_MAX
    })
}

/// How long the replies of a transaction are, as far as they are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerBytes {
    total: usize,
    longest: usize,
}

impl AnswerBytes {
    /// One more reply has been written, up to the end of `replies`.
    ///
    /// # Errors
    /// When they are too long with it: the transaction is not to be executed.
    pub fn end(&mut self, replies: &mut Replies) -> Result<(), TooMuch> {
        let begun = replies.start(replies.len());
        replies.end();
        self.add(replies.bytes.len() - begun)
    }

    /// The replies of another share have come.
    ///
    /// # Errors
    /// As [`AnswerBytes::end`].
    pub fn join(&mut self, replies: &Replies) -> Result<(), TooMuch> {
        (0..replies.len()).try_for_each(|index| self.add(replies.get(index).len()))
    }

    /// One more reply has so many bytes.
    ///
    /// # Errors
    /// As [`AnswerBytes::end`].
    pub fn add(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.total = self.total.saturating_add(bytes);
        self.longest = self.longest.max(bytes);
        let fits =
            self.longest <= LONGEST_ANSWER_MAX && self.total - self.longest <= ANSWERS_TOGETHER_MAX;
        if fits { Ok(()) } else { Err(TooMuch) }
    }
}

/// Why an operation is not given its reply, which is too long.
pub fn too_long<M: Machine>(head: OpHead) -> Refusal {
    match M::access(head.code) {
        Access::Read => Refusal::TooLong,
        Access::Write => Refusal::Untold,
    }
}
