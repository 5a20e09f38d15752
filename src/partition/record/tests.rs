use super::*;
use crate::batch::Layout;
use crate::batch::{Batch, OpCode, OpHead};
use crate::ids::Age;
use crate::store::key_state::KeyState;
use crate::store::tables::Access;
use crate::txn::protocol::{Granule, Prepared, Share};
use crate::txn::share::PrepareHead;

fn head(code: u16) -> OpHead {
    let table = TableIndex::new(3).unwrap();
    OpHead { code: OpCode(code), partition: PartitionId(7), table, resp3: true, hash: code.into() }
}

fn batch() -> Batch {
    let mut batch = Batch::new();
    batch.push(head(1), [b"key".as_slice(), b"", b"value"]);
    batch.push(head(2), []);
    batch.push(head(3), [b"x".as_slice()]);
    batch
}

fn txn(sequence: u64) -> TxnId {
    TxnId { node: NodeId(2), incarnation: Incarnation(9), sequence, attempt: 3 }
}

/// A prepare of operations, or of a script's outcome.
fn prepare(work: Prepared) -> (Prepare, Vec<Claim>) {
    let granule = Granule::Key(TableIndex::default(), b"key".to_vec());
    let prepare = Prepare {
        txn: txn(4),
        age: Age { time: 1, node: NodeId(2), tie: 3 },
        primary: PartitionId(1),
        primary_life: Incarnation(5),
        participants: vec![PartitionId(1), PartitionId(7)],
        synced: false,
        term: None,
        work,
        done_below: 2,
    };
    let whole = Claim { granule: Granule::Whole, access: Access::Read };
    (prepare, vec![Claim { granule, access: Access::Write }, whole])
}

fn share() -> Prepared {
    Prepared::Share(Share { batch: batch(), ..Share::default() })
}

fn images() -> Prepared {
    let image = KeyState { table: TableIndex::default(), key: b"key".to_vec(), held: None };
    Prepared::Images(vec![image])
}

/// An entry with a section of every kind, and one section more of runs at each end.
fn sample(writer: &mut EntryWriter) -> Bytes {
    let batch = batch();
    batch.iter().for_each(|op| writer.run(&op));
    writer.expire(TableIndex::default(), b"old");
    for work in [share(), images()] {
        let (prepare, claims) = prepare(work);
        writer.prepare(&prepare, &claims);
    }
    writer.decide(txn(1), Verdict::Abort);
    writer.decide(txn(2), Verdict::Commit);
    writer.applied(&[txn(3), txn(5)], PartitionId(6));
    writer.began(NodeId(3), Incarnation(8));
    writer.run(&batch.op(1));
    writer.take(Millis(77))
}

/// What an entry holds, one line a mutation; an error where it is damaged.
fn told(entry: &[u8]) -> Result<Vec<String>, Damaged> {
    let mut entry = Entry::read(entry)?;
    let mut layout = Layout::default();
    let mut told = vec![format!("at {}", entry.stamp().0)];
    while let Some(section) = entry.next_section()? {
        let runs = match section {
            Section::Runs(runs) => runs,
            Section::Share(share) => {
                let participants: Vec<PartitionId> = share.participants().collect();
                let claims: Vec<Claim> = share.claims.iter().map(Claim::from).collect();
                told.push(format!("{:?} {participants:?} {claims:?}", share.head));
                assert_eq!(
                    Runs::read(share.ops_bytes, 0).map(|ops| ops.len()),
                    Some(share.ops.len())
                );
                share.ops
            }
            section => {
                told.push(format!("{section:?}"));
                continue;
            }
        };
        let ops = runs.lay_out(&mut layout)?;
        assert_eq!(ops.len(), runs.len());
        for op in (0..ops.len()).map(|index| ops.op(index)) {
            let args: Vec<_> = op.args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
            told.push(format!("{:?} {args:?}", op.head));
        }
    }
    Ok(told)
}

#[test]
fn an_entry_holds_what_was_written_in_order() {
    let mut writer = EntryWriter::new();
    assert!(writer.is_empty());
    let entry = sample(&mut writer);
    let told = told(&entry).unwrap();
    let (one, its_claims) = prepare(share());
    let (prepare, claims) = prepare(images());
    let ops: Vec<String> = batch()
        .iter()
        .map(|op| {
            let args: Vec<_> = op.args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
            format!("{:?} {args:?}", op.head)
        })
        .collect();
    let expected = [
        "at 77".to_string(),
        ops[0].clone(),
        ops[1].clone(),
        ops[2].clone(),
        format!("{:?}", Section::Expire(TableIndex::default(), b"old")),
        format!("{:?} {:?} {its_claims:?}", PrepareHead::from(&one), one.participants),
        ops[0].clone(),
        ops[1].clone(),
        ops[2].clone(),
        format!("{:?}", Section::Prepare(Box::new(prepare), claims)),
        format!("{:?}", Section::Decide(txn(1), Verdict::Abort)),
        format!("{:?}", Section::Decide(txn(2), Verdict::Commit)),
        format!("{:?}", Section::Applied(vec![txn(3), txn(5)], PartitionId(6))),
        format!("{:?}", Section::Began(NodeId(3), Incarnation(8))),
        ops[1].clone(),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_writer_starts_anew_and_knows_its_size() {
    let mut writer = EntryWriter::new();
    let first = sample(&mut writer);
    assert!(writer.is_empty());
    assert_eq!(told(&writer.take(Millis(5))).unwrap(), ["at 5"]);
    assert_eq!(sample(&mut writer), first);
    let batch = batch();
    for count in 1..=3 {
        writer.run(&batch.op(count - 1));
        assert_eq!(writer.mutations(), count);
    }
    writer.decide(txn(1), Verdict::Abort);
    writer.run(&batch.op(0));
    let bytes = writer.bytes();
    assert_eq!((writer.mutations(), bytes), (5, writer.take(Millis(1)).len()));
}

#[test]
fn operations_of_several_batches_are_one_section() {
    let mut writer = EntryWriter::new();
    let batch = batch();
    for index in [2, 0, 1, 0] {
        writer.run(&batch.op(index));
    }
    let entry = writer.take(Millis(1));
    let mut entry = Entry::read(&entry).unwrap();
    let Some(Section::Runs(runs)) = entry.next_section().unwrap() else { unreachable!() };
    let mut layout = Layout::default();
    let ops = runs.lay_out(&mut layout).unwrap();
    for (at, index) in [2, 0, 1, 0].into_iter().enumerate() {
        let (one, other) = (ops.op(at), batch.op(index));
        assert_eq!(one.head, other.head);
        assert!(one.args.iter().eq(other.args.iter()));
    }
    assert!(entry.next_section().unwrap().is_none());
}

#[test]
fn damaged_entries_are_refused_or_safe_to_read() {
    let whole = sample(&mut EntryWriter::new());
    let mut refused = 0;
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.to_vec();
            damaged[at] ^= flip;
            if let Err(error) = told(&damaged) {
                assert!(error.at <= whole.len() as u64, "{error}, flipped at {at}");
                refused += 1;
            }
        }
    }
    assert!(refused > whole.len());
    let boundaries: Vec<usize> =
        (0..=whole.len()).filter(|len| told(&whole[..*len]).is_ok()).collect();
    assert_eq!(boundaries.len(), 10, "an entry may end after its prefix and each section");
    assert_eq!(told(b"").unwrap_err().to_string(), "damaged at byte 0: an entry cut short");
}

#[test]
fn an_entry_says_whether_it_is_to_be_synced() {
    let mut writer = EntryWriter::new();
    let plain = sample(&mut writer);
    writer.sync();
    let synced = sample(&mut writer);
    let next = sample(&mut writer);
    assert_eq!([&plain, &synced, &next].map(|entry| must_sync(entry)), [false, true, false]);
    assert!(!must_sync(b""));
    assert_eq!(told(&synced), told(&plain));
    assert_eq!(plain, next);
}
