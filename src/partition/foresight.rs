//! What operations are about to take, before anything is done: memory, effort, and the length of their
//! replies.

use super::Partition;
use crate::batch::Op;
use crate::batch::machine::{Machine, foresee_effort};
use crate::ids::{Now, TableIndex, TxnId};
use crate::store::key_state::KeyState;
use crate::store::tables::Access;
use crate::txn::protocol::{Claim, Granule, Prepared, Share, ToPartition};
use std::collections::BTreeMap;

/// Values that a batch is about to write are noted from this size on; smaller ones, at most as many
/// as a batch has operations, make no long replies.
const GROWN_BYTES: usize = 4 << 10;

/// What the operations of a batch that wait will have done to the values that later ones answer
/// with.
#[derive(Debug, Default)]
pub struct Foresight {
    /// Bytes by which keys may grow.
    grown: BTreeMap<(TableIndex, u64), usize>,
    /// Some value may grow by more than is written.
    stretched: bool,
}

impl<M: Machine> Partition<M> {
    /// About how many bytes an operation goes through beyond those that it takes and replies with.
    #[inline]
    pub fn effort(&self, op: &Op<'_>) -> usize {
        let tables = self.replica.tables();
        M::effort(op, &mut || {
            let mut bytes = 0;
            M::keys(op, &mut |table, key| {
                bytes += tables.value_bytes(table, tables.hasher().hash(key), key);
            });
            bytes
        })
    }

    /// How many bytes an operation that stretches values may add to those that are there, beyond its
    /// own.
    pub fn growth(&self, op: &Op<'_>) -> usize {
        let tables = self.replica.tables();
        M::growth(op, &mut || {
            let mut bytes = 0;
            M::keys(op, &mut |table, key| {
                bytes += tables.value_bytes(table, tables.hasher().hash(key), key);
            });
            bytes
        })
    }

    /// About how many bytes the reply takes of an operation that waits, behind what else `waits`
    /// that its client sent before it. The operation waits from now on.
    #[inline]
    pub fn foresee(&self, op: &Op<'_>, waits: &mut Foresight) -> usize {
        let tables = self.replica.tables();
        let stretched = waits.stretched;
        let grown = &mut waits.grown;
        let bytes = M::reply_bytes(op, &mut || {
            let mut bytes = if stretched { usize::MAX } else { 0 };
            M::keys(op, &mut |table, key| {
                let hash = tables.hasher().hash(key);
                let more = grown.get(&(table, hash)).copied().unwrap_or(0);
                let held = tables.value_bytes(table, hash, key);
                bytes = bytes.saturating_add(held).saturating_add(more);
            });
            bytes
        });
        let written = op.args.bytes().len().max(M::stretches(op));
        if written == usize::MAX {
            waits.stretched = true;
        } else if written >= GROWN_BYTES && M::access(op.head.code) == Access::Write {
            M::keys(op, &mut |table, key| {
                let more = grown.entry((table, tables.hasher().hash(key))).or_default();
                *more = more.saturating_add(written);
            });
        }
        bytes
    }

    /// How many bytes of the `room` for tables to grow a message takes here: for operations that
    /// stretch values, as far as that can be foreseen.
    ///
    /// # Errors
    /// The transaction that the message begins or goes on with, if it is going to need more than
    /// there is: for its operations, or for images that are longer than what they replace. Nothing is
    /// noted. Its Coordinator ends it for good unless the decision is under way, which no share that
    /// is refused so allows.
    pub fn needs_memory(
        &mut self,
        message: &ToPartition,
        room: usize,
        now: Now,
    ) -> Result<usize, TxnId> {
        let grows = |share: &Share, txn: TxnId| {
            let stretching = share.batch.iter().filter(|op| M::stretches(op) > 0);
            let bytes = stretching.map(|op| self.growth(&op)).fold(0, usize::saturating_add);
            let lacks = room == 0 && share.batch.heads().any(|head| M::grows(head.code));
            if lacks || bytes > room { Err(txn) } else { Ok(bytes) }
        };
        match message {
            ToPartition::Lock(lock) => grows(&lock.share, lock.txn),
            ToPartition::Prepare(prepare) => {
                let images = match &prepare.work {
                    Prepared::Share(share) => return grows(share, prepare.txn),
                    Prepared::Images(images) | Prepared::Whole(_, images) => images,
                };
                let bytes = |images: &[KeyState]| -> usize {
                    let held = images.iter().filter_map(|image| image.held.as_ref());
                    held.map(|held| held.value.content.len()).sum()
                };
                if bytes(images) <= room {
                    return Ok(0);
                }
                let claim = |image: &KeyState| Claim {
                    granule: Granule::Key(image.table, image.key.clone()),
                    access: Access::Read,
                };
                let claims: Vec<Claim> = images.iter().map(claim).collect();
                let stamp = self.stamp(now);
                let before = self.replica.images(&claims, stamp);
                match bytes(images).saturating_sub(bytes(&before)) > room {
                    true => Err(prepare.txn),
                    false => Ok(0),
                }
            }
            _ => Ok(0),
        }
    }

    /// The transaction that a message begins or goes on with, if what it asks for here goes through
    /// more than one turn allows.
    ///
    /// Nothing is noted, as with [`Partition::needs_memory`].
    pub fn asks_too_much(&self, message: &ToPartition) -> Option<TxnId> {
        let (txn, share) = match message {
            ToPartition::Lock(lock) => (lock.txn, &lock.share),
            ToPartition::Prepare(prepare) => match &prepare.work {
                Prepared::Share(share) => (prepare.txn, share),
                Prepared::Images(_) | Prepared::Whole(..) => return None,
            },
            _ => return None,
        };
        let tables = self.replica.tables();
        let foreseen = foresee_effort::<M>(&share.batch, |table, key| {
            tables.value_bytes(table, tables.hasher().hash(key), key)
        });
        foreseen.is_err().then_some(txn)
    }
}
