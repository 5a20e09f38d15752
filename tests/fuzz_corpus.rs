//! The fuzz targets' corpus, and every cut and every broken byte of it, without a fuzzer.
//!
//! Samples of what this program writes to disks are made by it ([`samples_are_what_is_written_today`]).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/checks.rs"]
mod checks;

use checks::{HASHER, HEADER_BYTES, MemoryDisk, PARTITION};
use quorate::batch::{Batch, OpHead};
use quorate::command::{Redis, spec};
use quorate::ids::{Age, Incarnation, Millis, NodeId, PartitionId, TableIndex, TxnId};
use quorate::partition::record::EntryWriter;
use quorate::partition::replica::{AppliedAnswers, Replica};
use quorate::storage::Records;
use quorate::store::key_state::{HeldValue, KeyState};
use quorate::store::packed::intset::IntSetMut;
use quorate::store::packed::{Element, PackedMut};
use quorate::store::tables::{Access, ValueBuf};
use quorate::txn::protocol::{Claim, Granule, Prepare, Prepared, Share, Verdict};
use std::fs;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).expect("the target's corpus");
    let inputs = files.map(|file| fs::read(file.expect("a file").path()).expect("an input"));
    let inputs: Vec<Vec<u8>> = inputs.collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Runs a check over the corpus, over each input cut short anywhere, and with each byte changed.
fn run(target: &str, check: fn(&[u8])) {
    for input in corpus(target) {
        for end in 0..=input.len() {
            check(&input[..end]);
        }
        for at in 0..input.len() {
            for change in [0x01, 0x20, 0x80, 0xff] {
                let mut broken = input.clone();
                broken[at] ^= change;
                check(&broken);
            }
        }
    }
}

#[test]
fn requests_hold() {
    run("requests", checks::requests);
}

#[test]
fn replies_hold() {
    run("replies", checks::replies);
}

#[test]
fn frames_hold() {
    run("frames", checks::frames);
}

#[test]
fn entries_hold() {
    run("entries", checks::entries);
}

#[test]
fn records_hold() {
    run("records", checks::records);
}

#[test]
fn snapshots_hold() {
    run("snapshots", checks::snapshots);
}

#[test]
fn packed_hold() {
    run("packed", checks::packed);
}

/// A target's input with its name.
type Sample = (&'static str, &'static str, Vec<u8>);

/// The commands of a client, a line each, as operations of the partition.
fn batch(commands: &str) -> Batch {
    let mut batch = Batch::new();
    for command in commands.lines() {
        let words: Vec<&[u8]> = command.split_whitespace().map(str::as_bytes).collect();
        let spec = spec::lookup(words[0]).expect("a command");
        let code = spec.operation().expect("a command on data").code;
        let key = spec.keys.positions(words.len()).next().and_then(|at| words.get(at));
        let hash = key.map_or(0, |key| HASHER.hash(key));
        let table = TableIndex::default();
        let head = OpHead { code, partition: PARTITION, table, resp3: false, hash };
        batch.push(head, words[1..].iter().copied());
    }
    batch
}

/// An entry of these commands.
fn entry(commands: &str) -> Vec<u8> {
    let mut writer = EntryWriter::new();
    batch(commands).iter().for_each(|op| writer.run(&op));
    writer.take(Millis(1_000)).to_vec()
}

fn txn(sequence: u64) -> TxnId {
    TxnId { node: NodeId(2), incarnation: Incarnation(9), sequence, attempt: 3 }
}

fn prepare(writer: &mut EntryWriter, sequence: u64, key: &str, work: Prepared) {
    let prepare = Prepare {
        txn: txn(sequence),
        age: Age { time: 1, node: NodeId(2), tie: 3 },
        primary: PARTITION,
        primary_life: Incarnation(5),
        participants: vec![PARTITION, PartitionId(8)],
        synced: false,
        term: None,
        work,
        done_below: 2,
    };
    let granule = Granule::Key(TableIndex::default(), key.into());
    writer.prepare(&prepare, &[Claim { granule, access: Access::Write }]);
}

fn share(commands: &str) -> Prepared {
    Prepared::Share(Share { batch: batch(commands), ..Share::default() })
}

fn image(key: &str) -> KeyState {
    let held = HeldValue { value: ValueBuf::string("image"), expires: Some(Millis(5_000)) };
    KeyState { table: TableIndex::default(), key: key.into(), held: Some(held) }
}

/// An entry with a section of every kind.
fn sections() -> Vec<u8> {
    let mut writer = EntryWriter::new();
    batch("set a 1").iter().for_each(|op| writer.run(&op));
    writer.expire(TableIndex::default(), b"old");
    prepare(&mut writer, 4, "b", share("append b x\nget b"));
    prepare(&mut writer, 5, "c", Prepared::Images(vec![image("c")]));
    writer.decide(txn(4), Verdict::Commit);
    writer.decide(txn(5), Verdict::Abort);
    writer.applied(&[txn(4)], PartitionId(8));
    writer.began(NodeId(3), Incarnation(8));
    writer.take(Millis(2_000)).to_vec()
}

/// An entry that leaves intents and an outcome behind.
fn open_ends() -> Vec<u8> {
    let mut writer = EntryWriter::new();
    prepare(&mut writer, 4, "a", share("set a 2"));
    writer.decide(txn(4), Verdict::Commit);
    prepare(&mut writer, 5, "b", share("incr b\nstrlen b"));
    prepare(&mut writer, 6, "c", Prepared::Images(vec![image("c")]));
    prepare(&mut writer, 7, "d", Prepared::Whole(batch("flushdb"), vec![image("d")]));
    writer.take(Millis(2_000)).to_vec()
}

/// A replica after these entries.
fn replica(entries: &[Vec<u8>]) -> Replica<Redis> {
    let mut replica = Replica::new(PARTITION, *HASHER);
    for entry in entries {
        replica.apply_entry(entry, false, &mut AppliedAnswers::default()).expect("our own entry");
    }
    replica
}

const ITEMS: &str = "set a 1\nset b two px 90000\nappend c raw\nincrbyfloat d 1.5";

fn image_of(replica: &mut Replica<Redis>) -> Vec<u8> {
    let stream = checks::snapshot(replica);
    // An image is a snapshot without its head: the block behind a prefix of five bytes.
    let head = 5 + 9 + u32::from_le_bytes(*stream[6..].first_chunk().expect("a block")) as usize;
    [b"QRIM\x02", &stream[head..]].concat()
}

/// What lies behind the header of a segment to which these were written one after the other.
fn batches(all: &[Records]) -> Vec<u8> {
    let disk = MemoryDisk::default();
    let (mut log, _) = disk.log().expect("a log in memory");
    for records in all {
        log.write(records).expect("room in memory");
        log.sync().expect("memory");
    }
    let mut batches = disk.segment().split_off(HEADER_BYTES);
    let end = batches.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    batches.truncate(end);
    batches
}

fn written() -> [Records; 3] {
    let group = PARTITION;
    let mut all: [Records; 3] = Default::default();
    all[0].state(group, b"term and vote");
    all[0].entry(group, 1, &[b"one"]);
    all[0].entry(group, 2, &[b"", b"two"]);
    all[1].entry(group, 2, &[b"another two"]);
    all[1].covered(group, 1);
    all[1].reset(PartitionId(8), 40);
    all[2].entry(PartitionId(8), 41, &[b"after the reset"]);
    all
}

fn samples() -> Vec<Sample> {
    let list = |elements: &[&[u8]]| {
        let mut bytes = Vec::new();
        let mut list = PackedMut::new(&mut bytes);
        elements.iter().for_each(|element| list.push_back(Element::new(element)).unwrap());
        bytes
    };
    let sorted = || {
        let mut bytes = Vec::new();
        let mut sorted = PackedMut::new(&mut bytes);
        for (member, score) in [("a", 1.0), ("17", -0.0), ("c", 2.5), ("d", f64::INFINITY)] {
            sorted.set_score(Element::new(member.as_bytes()), score).unwrap();
        }
        bytes
    };
    let integers = |integers: &[i64]| {
        let mut bytes = Vec::new();
        let mut set = IntSetMut::new(&mut bytes);
        assert!(integers.iter().all(|integer| set.insert(*integer)), "each is new");
        bytes
    };
    let torn = |mut bytes: Vec<u8>| {
        // A hole in the second batch, with a whole one behind it.
        let at = bytes.len() / 2;
        bytes[at..at + 8].fill(0);
        bytes
    };
    let mut newer = entry("set a 1");
    newer[0] += 1;
    let mut unknown = entry("set a 1");
    unknown[9] = 99;
    let header = {
        let disk = MemoryDisk::default();
        disk.log().expect("a log in memory");
        disk.segment()[..44].to_vec()
    };
    let shorter = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() * 2 / 3);
        bytes
    };
    let twice = |stream: Vec<u8>| [&stream[..], &stream[5..]].concat();
    vec![
        ("packed", "list", list(&[b"", b"one", b"99", b"100", b"-70000", &[b'x'; 130], b"01"])),
        ("packed", "sorted", sorted()),
        ("packed", "integers", integers(&[5, -3, 70_000, 1 << 40])),
        ("entries", "runs", entry("set a 1\nget a\nappend a 2\nmset b 1 c 2\ndel b nothing")),
        ("entries", "bits", entry("setbit a 7 1\nbitfield b set u8 0 9\nbitop or c a b\nsort a")),
        ("entries", "expiries", entry("set a 1 px 90\ngetex a persist\nexpire a 5 nx\nttl a")),
        ("entries", "whole", entry("set a 1\ndbsize\nscan 0\nkeys *\nrandomkey\nflushall")),
        ("entries", "sections", sections()),
        ("entries", "open_ends", open_ends()),
        ("entries", "newer", newer),
        ("entries", "unknown_section", unknown),
        ("entries", "too_few_arguments", entry("set\nget\nmset a\nbitfield a get\ngetrange a 1")),
        ("records", "batches", batches(&written())),
        ("records", "hole", torn(batches(&written()))),
        ("records", "torn", shorter(batches(&written()))),
        ("records", "header", header),
        ("snapshots", "items", checks::snapshot(&mut replica(&[entry(ITEMS)]))),
        ("snapshots", "open_ends", checks::snapshot(&mut replica(&[entry(ITEMS), open_ends()]))),
        ("snapshots", "nothing", checks::snapshot(&mut replica(&[]))),
        ("snapshots", "cut", shorter(checks::snapshot(&mut replica(&[entry(ITEMS)])))),
        ("snapshots", "twice", twice(checks::snapshot(&mut replica(&[entry("set a 1")])))),
        ("snapshots", "image", image_of(&mut replica(&[entry(ITEMS)]))),
    ]
}

/// A format that has changed needs samples of its own: `QUORATE_WRITE_CORPUS=1` writes them. What a
/// fuzzer has found, and samples of formats that are read still, stay beside them.
#[test]
fn samples_are_what_is_written_today() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, name, bytes) in samples() {
        let path = corpus.join(target).join(name);
        if std::env::var_os("QUORATE_WRITE_CORPUS").is_some() {
            fs::create_dir_all(corpus.join(target)).expect("a folder");
            fs::write(&path, &bytes).expect("a file");
        }
        assert!(fs::read(&path).is_ok_and(|found| found == bytes), "{target}/{name} is another");
    }
}
