//! What a share replies, worked out on copies of its keys before anything is changed.

use super::Replica;
use crate::batch::machine::{AnswerBytes, Machine, Scope, TooMuch, may_answer_too_much};
use crate::batch::{Laid, Op, Replies};
use crate::ids::{Millis, TableIndex};
use crate::store::tables::Access;
use crate::store::watches::Watches;
use std::collections::BTreeSet;

impl<M: Machine> Replica<M> {
    /// What a share replies, without changing the tables: where that depends on its keys, they are
    /// copied to the scratch tables, and the operations run there.
    pub(super) fn evaluate(&mut self, ops: Laid<'_>, stamp: Millis) -> Result<Replies, TooMuch> {
        let mut replies = Replies::default();
        let mut foretold = ops.iter();
        if foretold.all(|op| M::foretell(&op, &mut replies.bytes).then(|| replies.end()).is_some())
        {
            return Ok(replies);
        }
        replies.clear();
        let tables = &self.tables;
        let value = |table, key: &[u8]| tables.value_bytes(table, tables.hasher().hash(key), key);
        if may_answer_too_much::<M>(ops.iter(), value) {
            self.rehearse(ops, stamp, false, &mut replies)?;
        }
        self.rehearse(ops, stamp, true, &mut replies)?;
        Ok(replies)
    }

    /// Runs operations on copies of their keys, and keeps their replies or only measures them. No
    /// further key is copied once they are too long.
    fn rehearse(
        &mut self,
        ops: Laid<'_>,
        stamp: Millis,
        keeps: bool,
        replies: &mut Replies,
    ) -> Result<(), TooMuch> {
        let mut copied = BTreeSet::new();
        let whole = ops.heads(0, ops.len()).any(|head| M::scope(head.code) == Scope::Partition);
        if whole {
            // Keys that are copied later would not have met an operation on everything.
            ops.iter().for_each(|op| self.copy_keys(&op, stamp, whole, &mut copied));
        }
        let mut answered = AnswerBytes::default();
        let mut fits = Ok(());
        for op in ops.iter() {
            self.copy_keys(&op, stamp, whole, &mut copied);
            // What looks at a whole partition finds nothing in scratch tables.
            let glance = M::scope(op.head.code) == Scope::Glance;
            let tables = if glance { &mut self.tables } else { &mut self.scratch };
            tables.begin(stamp, M::access(op.head.code));
            M::run(&op, tables, stamp, &mut replies.bytes);
            fits = match keeps {
                true => answered.end(replies),
                false => answered.add(replies.bytes.len()),
            };
            if !keeps {
                replies.bytes.clear();
            }
            if fits.is_err() {
                break;
            }
        }
        self.scratch.begin(stamp, Access::Write);
        for (table, key) in copied {
            let hash = self.scratch.hasher().hash(&key);
            self.scratch.remove(table, hash, &key);
        }
        if whole {
            // Keys may have changed places under an operation on everything.
            TableIndex::all().for_each(|table| self.scratch.clear(table));
        }
        self.scratch.take_expired();
        *self.scratch.watches_mut() = Watches::default();
        fits
    }

    /// Copies the keys of an operation to the scratch tables that are not `copied` yet.
    fn copy_keys(
        &mut self,
        op: &Op<'_>,
        stamp: Millis,
        whole: bool,
        copied: &mut BTreeSet<(TableIndex, Vec<u8>)>,
    ) {
        M::keys(op, &mut |table, key| {
            if !copied.insert((table, key.to_vec())) {
                return;
            }
            self.tables.begin(stamp, Access::Read);
            self.scratch.begin(stamp, Access::Write);
            // Where tables may change places, the key of another one may come here.
            for from in TableIndex::all().filter(|from| whole || *from == table) {
                self.scratch.install(self.tables.image(from, key));
            }
        });
    }
}
