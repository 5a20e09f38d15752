//! A snapshot is whole or not there, on this node and on the next.

use super::*;
use crate::storage::faulty::FaultyDisk;

const DIR: &str = "/data/snapshots";
const P: PartitionId = PartitionId(7);

fn open(disk: &FaultyDisk) -> Snapshots<FaultyDisk> {
    Snapshots::open(disk.clone(), Path::new(DIR)).expect("a directory")
}

fn write(snapshots: &Snapshots<FaultyDisk>, index: u64, chunks: &[Vec<u8>]) -> Result<Snapshot> {
    let mut writer = snapshots.create(P, index, b"meta")?;
    for chunk in chunks {
        writer.append(chunk)?;
    }
    writer.finish()
}

fn chunks() -> Vec<Vec<u8>> {
    vec![vec![1; 700], vec![2; 1], vec![3; 2_000]]
}

/// All of a snapshot, every chunk verified.
fn read(snapshots: &Snapshots<FaultyDisk>, snapshot: &Snapshot) -> Result<Vec<Vec<u8>>> {
    let mut reader = snapshots.read(snapshot)?;
    assert_eq!(&reader.meta()[..], b"meta");
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

#[test]
fn what_was_written_is_read() {
    let disk = FaultyDisk::new(1);
    let snapshots = open(&disk);
    assert_eq!(snapshots.latest(P).expect("listed"), None);
    for index in [3, 20, 100] {
        write(&snapshots, index, &chunks()).expect("written");
    }
    write(&snapshots, 50, &[]).expect("written");
    disk.cut_power();
    let latest = snapshots.latest(P).expect("listed").expect("there is one");
    assert_eq!((latest.partition, latest.index), (P, 100));
    assert_eq!(read(&snapshots, &latest).expect("read"), chunks());
    snapshots.read(&latest).expect("opened").verify().expect("whole");
    assert_eq!(snapshots.latest(PartitionId(8)).expect("listed"), None);
    assert_eq!(snapshots.remove_older(P, 100).expect("removed"), 3);
    assert_eq!(snapshots.all().expect("listed"), [latest]);
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_or_the_new() {
    let mut finished = 0;
    for seed in 0..30 {
        for steps in 0..20 {
            let disk = FaultyDisk::new(seed);
            let snapshots = open(&disk);
            write(&snapshots, 1, &[vec![9; 10]]).expect("written");
            disk.fuse(steps);
            let done = write(&snapshots, 2, &chunks()).is_ok();
            finished += u64::from(done);
            disk.cut_power();
            let snapshots = open(&disk);
            let latest = snapshots.latest(P).expect("listed").expect("there is one");
            let found = read(&snapshots, &latest).expect("whole");
            match latest.index {
                2 => assert_eq!(found, chunks()),
                _ => assert!(!done && found == [vec![9; 10]], "seed {seed}, {steps} steps"),
            }
            let left = disk.files().iter().any(|path| path.to_string_lossy().ends_with(ASIDE));
            assert!(!left, "what was not finished is removed");
        }
    }
    assert!((30..600).contains(&finished), "{finished}");
}

#[test]
fn every_flipped_bit_is_found() {
    let disk = FaultyDisk::new(1);
    let snapshots = open(&disk);
    let snapshot = write(&snapshots, 5, &chunks()).expect("written");
    let path = Path::new(DIR).join(name(P, 5));
    for bit in 0..snapshot.bytes * 8 {
        disk.flip(&path, bit);
        let verdict = snapshots.read(&snapshot).and_then(|reader| reader.verify());
        assert!(matches!(verdict, Err(Error::Corrupt(_))), "bit {bit}");
        // By chunks too, but for padding in the header and the footer's own checksum of the whole.
        let chunks_end = snapshot.bytes - FOOTER as u64;
        if bit / 8 < chunks_end {
            let error = read(&snapshots, &snapshot).expect_err("damage");
            assert!(matches!(error, Error::Corrupt(c) if c.file == path), "bit {bit}");
        }
        disk.flip(&path, bit);
    }
    let whole = disk.bytes_of(&path).expect("a snapshot");
    for length in 0..whole.len() {
        disk.put(&path, &whole[..length]);
        let error = read(&snapshots, &snapshot).expect_err("truncated");
        assert!(matches!(error, Error::Corrupt(_)), "{length} bytes: {error}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let disk = FaultyDisk::new(1);
    let snapshots = open(&disk);
    disk.limit(1_000);
    let error = write(&snapshots, 5, &chunks()).expect_err("there is no room");
    assert!(matches!(&error, Error::Full(full) if full.needed == 2_000), "{error}");
    disk.limit(u64::MAX);
    assert_eq!(snapshots.latest(P).expect("listed"), None);
    write(&snapshots, 5, &chunks()).expect("there is room");
}

#[test]
fn a_snapshot_goes_to_another_node_in_pieces() {
    let (here, there) = (FaultyDisk::new(1), FaultyDisk::new(2));
    let (from, to) = (open(&here), open(&there));
    let snapshot = write(&from, 9, &chunks()).expect("written");
    let reader = from.read(&snapshot).expect("opened");
    let mut receiver = to.receive(P, 9).expect("started");
    while receiver.offset() < snapshot.bytes {
        let at = receiver.offset();
        let piece = reader.read_at(at, 333).expect("read");
        assert!(receiver.append(at, &piece).expect("taken"));
        assert!(!receiver.append(at, &piece).expect("left alone"), "a repetition");
    }
    assert_eq!(to.latest(P).expect("listed"), None);
    assert_eq!(receiver.finish().expect("whole"), snapshot);
    there.cut_power();
    assert_eq!(read(&to, &snapshot).expect("read"), chunks());
}

#[test]
fn a_transfer_that_came_out_wrong_is_thrown_away() {
    let disk = FaultyDisk::new(1);
    let snapshots = open(&disk);
    let snapshot = write(&snapshots, 9, &chunks()).expect("written");
    let whole = disk.bytes_of(&Path::new(DIR).join(name(P, 9))).expect("a snapshot");
    let mut flipped = whole.clone();
    flipped[1_000] ^= 1;
    let other_index = (10, &whole[..]);
    for (index, bytes) in [(9, &flipped[..]), (9, &whole[..whole.len() - 1]), (9, &[]), other_index]
    {
        let disk = FaultyDisk::new(2);
        let snapshots = open(&disk);
        let mut receiver = snapshots.receive(P, index).expect("started");
        receiver.append(0, bytes).expect("taken");
        let error = receiver.finish().expect_err("wrong");
        assert!(matches!(error, Error::Corrupt(_)), "{error}");
        assert_eq!(disk.files(), Vec::<PathBuf>::new());
    }
    assert_eq!(read(&snapshots, &snapshot).expect("read"), chunks());
}
