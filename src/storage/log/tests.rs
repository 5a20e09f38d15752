//! The log at work: one idle group, a full disk, a failed sync, entries read back.

use super::*;
use crate::ids::NodeId;
use crate::storage::faulty::FaultyDisk;

const DIR: &str = "/data/log";
const BUSY: PartitionId = PartitionId(1);
const IDLE: PartitionId = PartitionId(2);

fn owner() -> Identity {
    Identity { cluster: "test".into(), node: NodeId(1) }
}

fn options() -> Options {
    let segment_bytes = 16 << 10;
    Options {
        segment_bytes,
        step_bytes: 4 << 10,
        retain_bytes: 3 * segment_bytes,
        ..Options::new(owner())
    }
}

fn open(disk: &FaultyDisk) -> Result<(SegmentLog<FaultyDisk>, Recovered)> {
    SegmentLog::open(disk.clone(), Path::new(DIR), options())
}

fn entry(group: PartitionId, index: u64, payload: &[u8]) -> Records {
    let mut records = Records::default();
    records.entry(group, index, &[payload]);
    records
}

/// Drops what can be dropped, and says how many segments that were.
fn collect_all(log: &mut SegmentLog<FaultyDisk>, disk: &FaultyDisk) -> usize {
    let mut dropped = 0;
    loop {
        let collected = log.collect().expect("collected");
        if let Some(left) = &collected.left {
            remove_dropped(disk, left).expect("removed");
        }
        if !collected.dropped {
            return dropped;
        }
        dropped += 1;
    }
}

/// What came back of a group: `(covered, entries)`.
fn group(recovered: &Recovered, group: PartitionId) -> (u64, Vec<u64>) {
    let log = recovered.groups.get(&group).cloned().unwrap_or_default();
    (log.covered, log.entries.iter().map(|(index, _)| *index).collect())
}

#[test]
fn a_log_on_the_machines_own_disk_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let options = Options::new(owner());
    let (mut log, recovered) =
        SegmentLog::open(RealDisk, &path, options.clone()).expect("a new log");
    assert_eq!(recovered.records, 0);
    let mut records = Records::default();
    records.state(BUSY, b"term 1");
    records.entry(BUSY, 1, &[b"first ", b"entry"]);
    records.entry(BUSY, 2, &[b"second"]);
    log.write(&records).expect("written");
    log.sync().expect("synced");
    drop(log);

    let (log, recovered) = SegmentLog::open(RealDisk, &path, options).expect("the same log");
    assert_eq!((recovered.torn, recovered.records), (None, 3));
    let busy = &recovered.groups[&BUSY];
    assert_eq!(busy.state.as_deref(), Some(&b"term 1"[..]));
    let entries: Vec<(u64, &[u8])> = busy.entries.iter().map(|(n, e)| (*n, &e[..])).collect();
    assert_eq!(entries, [(1, &b"first entry"[..]), (2, b"second")]);
    assert_eq!(log.read_entries(BUSY, 2, 9, 1 << 20).expect("read"), busy.entries[1..]);
}

#[test]
fn past_the_page_cache_the_same_bytes_are_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let written = [true, false].map(|direct| {
        let path = dir.path().join(direct.to_string());
        let options = Options { segment_bytes: 256 << 10, direct, ..Options::new(owner()) };
        let (mut log, _) = SegmentLog::open(RealDisk, &path, options).expect("a new log");
        assert!(direct || log.direct.is_none(), "not asked for");
        for index in 1..=200 {
            let payload = vec![index as u8; (index as usize * 97) % 10_000];
            log.write(&entry(BUSY, index, &payload)).expect("written");
            if index % 7 == 0 {
                log.sync().expect("synced");
            }
            // Read while it is written to: what went past the cache is seen through it.
            let read = log.read_entries(BUSY, index, index + 1, 1).expect("read");
            assert_eq!(read, [(index, Bytes::from(payload))]);
        }
        log.sync().expect("synced");
        let number = log.segments.keys();
        let files = number.map(|number| std::fs::read(segment::path(&path, *number)));
        files.collect::<io::Result<Vec<Vec<u8>>>>().expect("read")
    });
    assert!(written[0].len() > 2, "several segments");
    assert!(written[0] == written[1], "the same files");
}

#[test]
fn a_disk_that_takes_no_such_blocks_is_written_to_through_the_cache() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    assert!(log.direct.is_some(), "it has a way");
    log.write(&entry(BUSY, 1, b"past the cache")).expect("written");
    disk.refuse_blocks();
    for index in 2..=20 {
        log.write(&entry(BUSY, index, &[7; 3000])).expect("written");
        assert!(index > 2 || log.direct.is_none(), "not tried for each write");
    }
    log.sync().expect("synced");
    disk.cut_power();
    let (_, recovered) = open(&disk).expect("the same log");
    assert_eq!(group(&recovered, BUSY), (0, (1..=20).collect()));
}

#[test]
fn one_idle_group_pins_nothing() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    let mut records = Records::default();
    records.state(IDLE, b"term 1");
    for index in 1..=5 {
        records.entry(IDLE, index, &[b"old"]);
    }
    records.covered(IDLE, 2);
    log.write(&records).expect("written");
    let mut dropped = 0;
    for index in 1..=2_000 {
        log.write(&entry(BUSY, index, &[7; 200])).expect("written");
        if index % 50 == 0 {
            let mut covered = Records::default();
            covered.covered(BUSY, index - 10);
            log.write(&covered).expect("written");
            log.sync().expect("synced");
            // What an earlier use of a file left behind is neither read nor taken for a torn batch.
            let (_, recovered) = open(&disk.copy(index)).expect("a log");
            assert_eq!(recovered.torn, None, "after {index} entries");
            dropped += collect_all(&mut log, &disk);
        }
    }
    let usage = log.usage();
    assert!(dropped > 20, "{dropped} segments were dropped");
    assert!(usage.written <= 4 * options().segment_bytes, "{usage:?}");
    // Little is copied where much is dropped, and files are used again.
    assert!(usage.copied * 10 < usage.appended, "{usage:?}");
    assert!(usage.preallocated * 3 < usage.appended, "{usage:?}");

    disk.cut_power();
    let (log, recovered) = open(&disk).expect("a log");
    assert_eq!(group(&recovered, IDLE), (2, vec![3, 4, 5]));
    assert_eq!(recovered.groups[&IDLE].state.as_deref(), Some(&b"term 1"[..]));
    assert_eq!(group(&recovered, BUSY), (1_990, (1_991..=2_000).collect()));
    let read = log.read_entries(IDLE, 3, 6, usize::MAX).expect("read");
    assert_eq!(read, recovered.groups[&IDLE].entries);
    // The new segment is made of a dropped one, and nothing has been written to it.
    let (_, again) = open(&disk).expect("a log");
    assert_eq!((again.torn, again.groups), (None, recovered.groups));
}

#[test]
fn a_group_that_needs_much_of_an_old_segment_is_named() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    log.write(&entry(IDLE, 1, b"small")).expect("written");
    for index in 1..=400 {
        log.write(&entry(BUSY, index, &[7; 200])).expect("written");
    }
    let collected = log.collect().expect("collected");
    assert!(!collected.dropped);
    let names: Vec<PartitionId> = collected.held_by.iter().map(|(group, _)| *group).collect();
    assert_eq!(names, [BUSY, IDLE]);

    let mut covered = Records::default();
    covered.covered(BUSY, 400);
    log.write(&covered).expect("written");
    let collected = log.collect().expect("collected");
    assert!(collected.dropped && collected.copied == 1, "{collected:?}");
    assert_eq!(collected.held_by, []);
}

#[test]
fn entries_can_be_read_until_their_segment_goes() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    for index in 1..=100 {
        log.write(&entry(BUSY, index, &[index as u8; 500])).expect("written");
    }
    let indexes = |read: Vec<(u64, Bytes)>| read.iter().map(|(n, _)| *n).collect::<Vec<u64>>();
    let read = |log: &SegmentLog<FaultyDisk>, low, high, bytes| {
        indexes(log.read_entries(BUSY, low, high, bytes).expect("read"))
    };
    assert_eq!(read(&log, 10, 13, usize::MAX), [10, 11, 12]);
    assert_eq!(read(&log, 10, 100, 1), [10]);
    assert_eq!(read(&log, 99, 200, usize::MAX), [99, 100]);
    assert_eq!(read(&log, 101, 200, usize::MAX), [0; 0]);
    let large = entry(BUSY, 101, &[9; 50_000]);
    log.write(&large).expect("larger than a segment");
    assert_eq!(log.read_entries(BUSY, 101, 102, 1).expect("read")[0].1.len(), 50_000);

    let mut covered = Records::default();
    covered.covered(BUSY, 90);
    log.write(&covered).expect("written");
    assert_eq!(read(&log, 10, 13, usize::MAX), [10, 11, 12]);
    collect_all(&mut log, &disk);
    let first = log.first_index(BUSY);
    assert!(first > 10 && first <= 91, "{first}");
    assert_eq!(read(&log, first - 1, first + 2, usize::MAX), [0; 0]);
    assert_eq!(read(&log, first, first + 2, usize::MAX), [first, first + 1]);
    assert_eq!(log.next_index(BUSY), 102);
}

#[test]
fn an_entry_that_rots_is_not_served() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    log.write(&entry(BUSY, 1, b"payload")).expect("written");
    log.sync().expect("synced");
    let path = segment::path(Path::new(DIR), 1);
    let file = disk.open(&path).expect("a segment");
    let at = FIRST_BATCH + (BATCH_HEADER + RECORD_HEADER) as u64;
    file.write_at(b"q", at).expect("flipped");
    let error = log.read_entries(BUSY, 1, 2, usize::MAX).expect_err("damage");
    assert!(matches!(error, Error::Corrupt(corrupt) if corrupt.file == path), "file and place");
}

#[test]
fn a_full_disk_is_told_and_harms_nothing() {
    // However much room there is: what was synced before the disk was full is there, nothing of
    // what was refused is, and with room the same log goes on.
    for room in (0..40_000).step_by(509) {
        for restart in [false, true] {
            let disk = FaultyDisk::new(room);
            disk.limit(room);
            let (mut log, mut written) = match open(&disk) {
                Ok((log, _)) => (Some(log), 0),
                Err(error) => (assert_full(&error), 0),
            };
            while let Some(open) = &mut log {
                match open.write(&entry(BUSY, written + 1, &[1; 300])) {
                    Ok(()) => written += 1,
                    Err(error) => {
                        assert_full(&error);
                        break;
                    }
                }
                open.sync().expect("synced");
            }
            if restart || log.is_none() {
                disk.cut_power();
                disk.limit(u64::MAX);
                let (again, recovered) = open(&disk).expect("there is room");
                assert_eq!(group(&recovered, BUSY), (0, (1..=written).collect()));
                assert_eq!(recovered.torn, None);
                log = Some(again);
            }
            disk.limit(u64::MAX);
            let mut log = log.expect("a log");
            log.write(&entry(BUSY, written + 1, b"there is room")).expect("written");
            log.sync().expect("synced");
            disk.cut_power();
            let (_, recovered) = open(&disk).expect("a log");
            assert_eq!(group(&recovered, BUSY), (0, (1..=written + 1).collect()));
        }
    }
}

/// The error names the file that could not grow and by how much.
fn assert_full(error: &Error) -> Option<SegmentLog<FaultyDisk>> {
    let Error::Full(full) = error else { panic!("{error}") };
    assert!(full.file.starts_with(DIR) && full.needed > 0, "{error}");
    assert!(error.to_string().starts_with("no room for "), "{error}");
    None
}

#[test]
fn many_restarts_leave_few_segments() {
    let disk = FaultyDisk::new(1);
    for index in 1..=60 {
        let (mut log, _) = open(&disk).expect("a log");
        log.write(&entry(IDLE, index, b"once a life")).expect("written");
        collect_all(&mut log, &disk);
        assert!(log.usage().bytes <= options().retain_bytes, "{:?}", log.usage());
        log.finish().expect("finished");
    }
    let (_, recovered) = open(&disk).expect("a log");
    assert_eq!(group(&recovered, IDLE), (0, (1..=60).collect()));
    assert!(disk.bytes() <= 2 * options().retain_bytes, "{} bytes", disk.bytes());
}

#[test]
fn a_failed_sync_is_final() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    log.write(&entry(BUSY, 1, b"safe")).expect("written");
    log.sync().expect("synced");
    log.write(&entry(BUSY, 2, b"not safe")).expect("written");
    disk.fail_sync(0);
    let error = log.sync().expect_err("the disk fails");
    assert_eq!(error.to_string(), "cannot sync /data/log/0000000001.log: input/output error");
    // The disk would do as if nothing had happened.
    for outcome in [log.sync(), log.write(&entry(BUSY, 3, b"more")), log.collect().map(|_| ())] {
        let error = outcome.expect_err("out of use").to_string();
        assert!(error.starts_with("the log in /data/log is out of use: cannot sync"), "{error}");
    }
}

#[test]
fn a_batch_is_one_write_and_one_sync_once_room_is_made() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    let mut all = Records::default();
    for index in 1..=20 {
        all.append(&entry(BUSY, index, b"entry"));
    }
    log.write(&all).expect("written");
    log.sync().expect("synced");
    let before = disk.operations();
    log.write(&entry(BUSY, 21, b"entry")).expect("written");
    log.sync().expect("synced");
    log.sync().expect("nothing to do");
    assert_eq!(disk.operations() - before, 2);
}

#[test]
fn a_dropped_segment_that_was_not_removed_is_removed_by_the_next_life() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a log");
    for index in 1..=400 {
        log.write(&entry(BUSY, index, &[7; 200])).expect("written");
    }
    let mut covered = Records::default();
    covered.covered(BUSY, 400);
    log.write(&covered).expect("written");
    let spare = log.collect().expect("collected");
    assert!(spare.dropped && spare.left.is_none(), "{spare:?}");
    let left = log.collect().expect("collected").left.expect("there is a spare already");
    assert!(disk.files().contains(&left));

    disk.cut_power();
    let (_, recovered) = open(&disk).expect("a log");
    assert_eq!(group(&recovered, BUSY), (400, vec![]));
    assert!(!disk.files().contains(&left));
}

#[test]
fn what_has_gathered_is_written_in_batches_of_a_bounded_length() {
    let disk = FaultyDisk::new(1);
    let (mut log, _) = open(&disk).expect("a new log");
    let mut records = Records::default();
    let payload = vec![3; BATCH_BYTES_WANTED / 4];
    for index in 1..=10 {
        records.entry(BUSY, index, &[&payload]);
    }
    let before = log.usage().batches;
    log.write(&records).expect("written");
    log.sync().expect("synced");
    assert_eq!(log.usage().batches - before, 3);
    assert!(log.frame.capacity() <= 4 << 20, "what a long batch took is given back");
    // The next one starts where the last one ended.
    log.write(&entry(BUSY, 11, b"more")).expect("written");
    log.sync().expect("synced");
    drop(log);
    let (_, recovered) = open(&disk).expect("the same log");
    assert_eq!(group(&recovered, BUSY), (0, (1..=11).collect()));
}

#[test]
fn a_log_at_rest_is_short() {
    let disk = FaultyDisk::new(1);
    let options = Options { retain_bytes: 0, ..options() };
    let open = || SegmentLog::open(disk.clone(), Path::new(DIR), options.clone());
    let (mut log, _) = open().expect("a new log");
    for index in 1..=20 {
        log.write(&entry(BUSY, index, &[1; 1000])).expect("written");
        if index == 1 {
            log.write(&entry(IDLE, 1, b"needed")).expect("written");
        }
        if index == 20 {
            // More than a segment: the first one has become the spare.
            let mut records = Records::default();
            records.covered(BUSY, 13);
            log.write(&records).expect("written");
        }
        log.sync().expect("synced");
    }
    assert!(log.collect().expect("collected").dropped);
    assert!(disk.files().iter().any(|path| path.ends_with(SPARE)));
    let long = disk.bytes();
    assert_eq!(collect_all(&mut log, &disk), 0, "what is written to is needed");

    let mut records = Records::default();
    records.covered(BUSY, 20);
    log.write(&records).expect("written");
    log.sync().expect("synced");
    assert_eq!(collect_all(&mut log, &disk), 1);
    assert!(disk.bytes() * 2 < long, "{} bytes of {long} are left", disk.bytes());
    log.write(&entry(BUSY, 21, b"more")).expect("written");
    log.sync().expect("synced");
    drop(log);
    let (_, recovered) = open().expect("the same log");
    assert_eq!(group(&recovered, BUSY), (20, vec![21]));
    assert_eq!(group(&recovered, IDLE), (0, vec![1]));
}
