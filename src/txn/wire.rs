//! A prepare between nodes: of operations it is laid out as the log has it, for it would take longer
//! to read than to carry out; anything else is MessagePack field by field.
//!
//! ```text
//! | term, 8 | watched keys, 4 | table, 1 | version, 8 | bytes, 4 | key | .. | prepared share |
//! ```

use super::share::{self, PreparedShare};
use crate::ids::TableIndex;
use crate::ids::Term;
use crate::txn::protocol::{Claim, Prepare, Prepared, Share, Watched};
use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// In the place of a term: none.
const NO_TERM: u64 = u64::MAX;

/// Writes a prepare.
///
/// # Errors
/// Those of the serializer.
#[expect(clippy::borrowed_box, reason = "what a field's module is given")]
pub fn serialize<S: Serializer>(prepare: &Box<Prepare>, serializer: S) -> Result<S::Ok, S::Error> {
    let Prepared::Share(share) = &prepare.work else { return prepare.serialize(serializer) };
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&prepare.term.map_or(NO_TERM, |term| term.0).to_le_bytes());
    out.extend_from_slice(&(share.watched.len() as u32).to_le_bytes());
    for Watched { table, key, version } in &share.watched {
        out.push(u8::from(*table));
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
    }
    share::put(&mut out, prepare, &share.batch, &share.claims);
    serializer.serialize_bytes(&out)
}

/// Reads a prepare.
///
/// # Errors
/// When it is not what was written.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<Prepare>, D::Error> {
    deserializer.deserialize_any(Either)
}

struct Either;

impl<'de> de::Visitor<'de> for Either {
    type Value = Box<Prepare>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prepare")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Box<Prepare>, E> {
        read(bytes).map(Box::new).ok_or_else(|| E::custom("a prepare without sense"))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, fields: A) -> Result<Box<Prepare>, A::Error> {
        Prepare::deserialize(SeqAccessDeserializer::new(fields)).map(Box::new)
    }
}

fn read(bytes: &[u8]) -> Option<Prepare> {
    let (term, rest) = bytes.split_first_chunk()?;
    let (watched, mut rest) = rest.split_first_chunk()?;
    let term = u64::from_le_bytes(*term);
    let mut share = Share::default();
    for _ in 0..u32::from_le_bytes(*watched) {
        let (&[table], behind) = rest.split_first_chunk()?;
        let (version, behind) = behind.split_first_chunk()?;
        let (len, behind) = behind.split_first_chunk()?;
        let (key, behind) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        share.watched.push(Watched {
            table: TableIndex::new(table)?,
            key: key.to_vec(),
            version: u64::from_le_bytes(*version),
        });
        rest = behind;
    }
    let prepared = PreparedShare::read(rest, bytes.len() - rest.len())?;
    let head = prepared.head;
    share.claims = prepared.claims.iter().map(Claim::from).collect();
    share.batch = prepared.ops.to_batch().ok()?;
    Some(Prepare {
        txn: head.txn,
        age: head.age,
        primary: head.primary,
        primary_life: head.primary_life,
        participants: prepared.participants().collect(),
        synced: head.synced,
        term: (term != NO_TERM).then_some(Term(term)),
        work: Prepared::Share(share),
        done_below: head.done_below,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, OpCode, OpHead};
    use crate::ids::{Age, Incarnation, NodeId, PartitionId, TxnId};
    use crate::store::key_state::KeyState;
    use crate::store::tables::Access;
    use crate::txn::protocol::{Granule, ToPartition};

    fn prepare(work: Prepared, term: Option<Term>) -> ToPartition {
        let txn = TxnId { node: NodeId(2), incarnation: Incarnation(9), sequence: 4, attempt: 3 };
        ToPartition::Prepare(Box::new(Prepare {
            txn,
            age: Age { time: 1, node: NodeId(2), tie: 3 },
            primary: PartitionId(1),
            primary_life: Incarnation(5),
            participants: vec![PartitionId(1), PartitionId(7)],
            synced: true,
            term,
            work,
            done_below: 2,
        }))
    }

    fn share() -> Share {
        let (table, key) = (TableIndex::new(3).unwrap(), b"key".to_vec());
        let (code, partition) = (OpCode(1), PartitionId(7));
        let mut batch = Batch::new();
        batch.push(OpHead { code, partition, table, resp3: true, hash: 9 }, [&key[..], b"value"]);
        let granule = Granule::Key(table, b"beside".to_vec());
        let claims = vec![Claim { granule, access: Access::Read }];
        Share { batch, claims, watched: vec![Watched { table, key, version: 77 }] }
    }

    #[test]
    fn a_prepare_arrives_as_it_was_sent() {
        let image = KeyState { table: TableIndex::default(), key: b"key".to_vec(), held: None };
        for sent in [
            prepare(Prepared::Share(share()), None),
            prepare(Prepared::Share(Share::default()), Some(Term(8))),
            prepare(Prepared::Images(vec![image.clone()]), Some(Term(8))),
            prepare(Prepared::Whole(share().batch, vec![image]), None),
        ] {
            let bytes = rmp_serde::to_vec(&sent).unwrap();
            assert_eq!(rmp_serde::from_slice::<ToPartition>(&bytes).unwrap(), sent);
        }
    }

    #[test]
    fn a_damaged_prepare_is_refused_or_safe_to_read() {
        let bytes = rmp_serde::to_vec(&prepare(Prepared::Share(share()), None)).unwrap();
        for at in 0..bytes.len() {
            assert!(rmp_serde::from_slice::<ToPartition>(&bytes[..at]).is_err());
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let Ok(ToPartition::Prepare(prepare)) = rmp_serde::from_slice(&damaged) else {
                    continue;
                };
                if let Prepared::Share(share) = &prepare.work {
                    share.batch.iter().for_each(|op| {
                        assert!(op.args.iter().all(|arg| arg.len() <= bytes.len()));
                    });
                }
            }
        }
    }
}
