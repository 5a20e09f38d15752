//! A prepared share in bytes: in an entry of the log, and in the intent that it becomes.
//!
//! Every replica reads one for each partition that a transaction changes, so it is laid out by
//! hand and read without an allocation: claims one after the other, operations as a section of runs
//! has them. What is read is checked once, by [`PreparedShare::read`].
//!
//! ```text
//! | txn, 22 | age, 18 | primary, 2 | its life, 8 | done below, 8 | synced, 1 |
//! | participants, 2 | each 2 .. | bytes of claims, 4 | claims .. | operations .. |
//!
//!   claim: | access, 1 | table or all of the partition, 1 | bytes of the key, 4 | key |
//! ```

use crate::batch::Batch;
use crate::batch::runs::Runs;
use crate::ids::{Age, Incarnation, NodeId, PartitionId, TableIndex, TxnId};
use crate::store::tables::Access;
use crate::txn::protocol::{Claim, Granule, Prepare};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes of a transaction's name.
pub const TXN_BYTES: usize = 22;

/// In the place of a claim's table: all of the partition.
const WHOLE: u8 = u8::MAX;

/// Bytes of a claim before its key.
const CLAIM_BYTES: usize = 6;

/// What a prepare says beside its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrepareHead {
    /// The transaction.
    pub txn: TxnId,
    /// Its age.
    pub age: Age,
    /// Where the decision is logged.
    pub primary: PartitionId,
    /// The life of the primary's node in which it prepared.
    pub primary_life: Incarnation,
    /// The Coordinator's transactions with smaller sequences have ended.
    pub done_below: u64,
    /// A participant's writes survive a loss of power.
    pub synced: bool,
}

impl From<&Prepare> for PrepareHead {
    fn from(prepare: &Prepare) -> PrepareHead {
        let &Prepare { txn, age, primary, primary_life, done_below, synced, .. } = prepare;
        PrepareHead { txn, age, primary, primary_life, done_below, synced }
    }
}

/// A prepared share as an entry holds it.
#[derive(Clone, Copy, Debug)]
pub struct PreparedShare<'a> {
    /// What it is for.
    pub head: PrepareHead,
    participants: &'a [u8],
    /// What it keeps locked.
    pub claims: Claims<'a>,
    /// What it does.
    pub ops: Runs<'a>,
    /// The same, as they are written.
    pub ops_bytes: &'a [u8],
}

impl<'a> PreparedShare<'a> {
    /// All participants, in order.
    pub fn participants(&self) -> impl Iterator<Item = PartitionId> + use<'a> {
        let (ids, _) = self.participants.as_chunks::<2>();
        ids.iter().map(|id| PartitionId(u16::from_le_bytes(*id)))
    }

    /// Reads one that begins at `at` of its entry. The operations are checked once they are laid
    /// out.
    pub fn read(content: &'a [u8], at: usize) -> Option<PreparedShare<'a>> {
        let (txn, rest) = read_txn(content)?;
        let (time, rest) = rest.split_first_chunk()?;
        let (node, rest) = rest.split_first_chunk()?;
        let (tie, rest) = rest.split_first_chunk()?;
        let (primary, rest) = rest.split_first_chunk()?;
        let (life, rest) = rest.split_first_chunk()?;
        let (below, rest) = rest.split_first_chunk()?;
        let (&[synced], rest) = rest.split_first_chunk()?;
        let (participants, rest) = rest.split_first_chunk()?;
        let participants = usize::from(u16::from_le_bytes(*participants)) * 2;
        let (participants, rest) = rest.split_at_checked(participants)?;
        let (claims, rest) = rest.split_first_chunk()?;
        let (claims, ops) = rest.split_at_checked(u32::from_le_bytes(*claims) as usize)?;
        let head = PrepareHead {
            txn,
            age: Age {
                time: u64::from_le_bytes(*time),
                node: NodeId(u16::from_le_bytes(*node)),
                tie: u64::from_le_bytes(*tie),
            },
            primary: PartitionId(u16::from_le_bytes(*primary)),
            primary_life: Incarnation(u64::from_le_bytes(*life)),
            done_below: u64::from_le_bytes(*below),
            synced: synced != 0,
        };
        let runs = Runs::read(ops, at)?;
        let claims = Claims::read(claims)?;
        Some(PreparedShare { head, participants, claims, ops: runs, ops_bytes: ops })
    }
}

/// Writes a prepare of operations, as [`PreparedShare::read`] reads it.
pub fn put(out: &mut Vec<u8>, prepare: &Prepare, batch: &Batch, claims: &[Claim]) {
    let head = PrepareHead::from(prepare);
    put_txn(out, head.txn);
    out.extend_from_slice(&head.age.time.to_le_bytes());
    out.extend_from_slice(&head.age.node.0.to_le_bytes());
    out.extend_from_slice(&head.age.tie.to_le_bytes());
    out.extend_from_slice(&head.primary.0.to_le_bytes());
    out.extend_from_slice(&head.primary_life.0.to_le_bytes());
    out.extend_from_slice(&head.done_below.to_le_bytes());
    out.push(u8::from(head.synced));
    out.extend_from_slice(&(prepare.participants.len() as u16).to_le_bytes());
    for participant in &prepare.participants {
        out.extend_from_slice(&participant.0.to_le_bytes());
    }
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    put_claims(out, claims);
    let bytes = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
    batch.write_down(out);
}

fn put_claims(out: &mut Vec<u8>, claims: &[Claim]) {
    for claim in claims {
        let (table, key) = match &claim.granule {
            Granule::Whole => (WHOLE, &[][..]),
            Granule::Key(table, key) => (u8::from(*table), key.as_slice()),
        };
        out.extend_from_slice(&[u8::from(claim.access == Access::Write), table]);
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
    }
}

/// Claims in bytes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims<'a>(&'a [u8]);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRef<'a> {
    /// For reading or for writing.
    pub access: Access,
    /// The table and the key, or all of the partition.
    pub key: Option<(TableIndex, &'a [u8])>,
}

impl<'a> Claims<'a> {
    fn read(bytes: &'a [u8]) -> Option<Claims<'a>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, rest) = ClaimRef::read(rest)?;
        }
        Some(Claims(bytes))
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = ClaimRef<'a>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (claim, behind) = ClaimRef::read(rest)?;
            rest = behind;
            Some(claim)
        })
    }
}

impl<'a> ClaimRef<'a> {
    fn read(bytes: &'a [u8]) -> Option<(ClaimRef<'a>, &'a [u8])> {
        let (&[access, table, ref len @ ..], rest) = bytes.split_first_chunk::<CLAIM_BYTES>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let access = if access == 0 { Access::Read } else { Access::Write };
        let key = match table {
            WHOLE => None,
            table => Some((TableIndex::new(table)?, key)),
        };
        Some((ClaimRef { access, key }, rest))
    }
}

impl From<ClaimRef<'_>> for Claim {
    fn from(claim: ClaimRef<'_>) -> Claim {
        let granule = match claim.key {
            None => Granule::Whole,
            Some((table, key)) => Granule::Key(table, key.to_vec()),
        };
        Claim { granule, access: claim.access }
    }
}

/// Claims in bytes, owned.
#[derive(PartialEq, Eq)]
pub struct PackedClaims(Box<[u8]>);

impl PackedClaims {
    /// The same in bytes.
    pub fn of(claims: &[Claim]) -> PackedClaims {
        let mut bytes = Vec::new();
        put_claims(&mut bytes, claims);
        PackedClaims(bytes.into_boxed_slice())
    }

    /// The claims.
    pub fn borrow(&self) -> Claims<'_> {
        Claims(&self.0)
    }
}

impl From<Claims<'_>> for PackedClaims {
    fn from(claims: Claims<'_>) -> PackedClaims {
        PackedClaims(claims.0.into())
    }
}

impl std::fmt::Debug for PackedClaims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.borrow().iter().map(Claim::from)).finish()
    }
}

impl Serialize for PackedClaims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackedClaims {
    /// Refuses what [`Claims::iter`] could not walk to the end.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: &serde_bytes::Bytes = Deserialize::deserialize(deserializer)?;
        let claims = Claims::read(bytes).ok_or_else(|| de::Error::custom("claims cut short"))?;
        Ok(PackedClaims::from(claims))
    }
}

/// Writes a transaction's name, as [`read_txn`] reads it.
pub fn put_txn(out: &mut Vec<u8>, txn: TxnId) {
    let TxnId { node, incarnation, sequence, attempt } = txn;
    out.extend_from_slice(&node.0.to_le_bytes());
    out.extend_from_slice(&incarnation.0.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&attempt.to_le_bytes());
}

/// A transaction's name, and what follows it.
pub fn read_txn(bytes: &[u8]) -> Option<(TxnId, &[u8])> {
    let (node, rest) = bytes.split_first_chunk()?;
    let (incarnation, rest) = rest.split_first_chunk()?;
    let (sequence, rest) = rest.split_first_chunk()?;
    let (attempt, rest) = rest.split_first_chunk()?;
    let txn = TxnId {
        node: NodeId(u16::from_le_bytes(*node)),
        incarnation: Incarnation(u64::from_le_bytes(*incarnation)),
        sequence: u64::from_le_bytes(*sequence),
        attempt: u32::from_le_bytes(*attempt),
    };
    Some((txn, rest))
}
