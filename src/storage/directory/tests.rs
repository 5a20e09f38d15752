//! Who may open a directory, and what it remembers.

use super::*;
use crate::storage::faulty::FaultyDisk;

const DIR: &str = "/var/quorate/node-2";

fn owner(cluster: &str, node: u16) -> Identity {
    Identity { cluster: cluster.into(), node: NodeId(node) }
}

fn open(disk: &FaultyDisk) -> Result<Directory<FaultyDisk>> {
    Directory::open(disk.clone(), Path::new(DIR), owner("shop", 2))
}

fn refusal<D: Disk>(outcome: Result<Directory<D>>) -> String {
    outcome.err().expect("refused").to_string()
}

#[test]
fn what_it_is_told_it_remembers() {
    let disk = FaultyDisk::new(1);
    let mut directory = open(&disk).expect("a new directory");
    assert!(directory.is_new() && !directory.is_formed() && directory.was_clean());
    assert_eq!((directory.last_boot(), directory.replica()), (None, 1));
    directory.mark_running("boot-1\n").expect("marked");
    directory.mark_formed().expect("marked");
    assert!(directory.was_clean(), "as it was found");
    drop(directory);

    disk.cut_power();
    let mut directory = open(&disk).expect("the directory");
    assert!(!directory.is_new() && directory.is_formed() && !directory.was_clean());
    assert_eq!(directory.last_boot(), Some("boot-1"));
    assert_eq!(directory.raise_replica().expect("raised"), 2);
    directory.mark_running("boot-2").expect("marked");
    directory.mark_clean().expect("marked");
    drop(directory);

    disk.cut_power();
    let directory = open(&disk).expect("the directory");
    assert!(directory.is_formed() && directory.was_clean());
    assert_eq!((directory.last_boot(), directory.replica()), (Some("boot-2"), 2));
    let text = disk.bytes_of(&Path::new(DIR).join("identity")).expect("an identity");
    let text = String::from_utf8(text).expect("readable");
    let (fields, _) = text.split_once("crc: ").expect("a checksum");
    assert_eq!(
        fields,
        "# Whose data this directory holds. Kept by the node; do not edit.\nformat: 1\n\
         cluster: shop\nnode: 2\nreplica: 2\nformed: yes\nboot: boot-2\nstopped: cleanly\n"
    );
}

#[test]
fn anothers_directory_is_refused() {
    let disk = FaultyDisk::new(1);
    drop(open(&disk).expect("a directory"));
    for other in [owner("shop", 3), owner("stall", 2)] {
        let expected =
            format!("data directory {DIR} belongs to node 2 of cluster shop, not to {other}");
        assert_eq!(refusal(Directory::open(disk.clone(), Path::new(DIR), other)), expected);
    }
    open(&disk).expect("and left as it was");
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Directory::open(RealDisk, &dir.path().join("node-2"), owner("shop", 2));
    let first = open().expect("a new directory");
    let path = dir.path().join("node-2");
    let expected = format!(
        "data directory {} is in use by another process (wanted by node 2 of cluster shop)",
        path.display()
    );
    assert_eq!(refusal(open()), expected);
    assert!(first.log_dir().is_dir() && first.snapshots_dir().is_dir());
    drop(first);
    open().expect("free again");
}

#[test]
fn data_without_an_identity_is_refused() {
    let disk = FaultyDisk::new(1);
    disk.make_dir(&Path::new(DIR).join("log")).expect("made");
    disk.put(&Path::new(DIR).join("log/0000000001.log"), b"whose?");
    let expected = format!("{DIR}/log holds data, but {DIR} does not say whose");
    assert_eq!(refusal(open(&disk)), expected);
}

#[test]
fn a_damaged_identity_is_refused() {
    let disk = FaultyDisk::new(1);
    drop(open(&disk).expect("a directory"));
    let path = Path::new(DIR).join("identity");
    let whole = disk.bytes_of(&path).expect("an identity");
    for bit in 0..whole.len() as u64 * 8 {
        let disk = disk.copy(bit);
        disk.flip(&path, bit);
        let error = open(&disk).err().expect("refused");
        assert!(matches!(error, Error::Corrupt(_)), "bit {bit}: {error}");
    }
    for length in 0..whole.len() {
        disk.put(&path, &whole[..length]);
        let error = open(&disk).err().expect("refused");
        assert!(matches!(error, Error::Corrupt(_)), "{length} bytes: {error}");
    }
    let newer = String::from_utf8(whole).expect("text").replace("format: 1", "format: 2");
    let (fields, _) = newer.split_once("crc: ").expect("a checksum");
    let crc = crc32fast::hash(fields.as_bytes());
    disk.put(&path, format!("{fields}crc: {crc:08x}\n").as_bytes());
    let expected = format!("{DIR}/identity is of format 2, which is not known");
    assert_eq!(refusal(open(&disk)), expected);
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_or_the_new() {
    for seed in 0..20 {
        for steps in 0..20 {
            let disk = FaultyDisk::new(seed);
            drop(open(&disk).expect("a directory"));
            disk.fuse(steps);
            let marked = open(&disk).and_then(|mut directory| {
                directory.mark_running("boot-1")?;
                directory.mark_formed()
            });
            disk.cut_power();
            let directory = open(&disk).expect("a whole identity");
            assert!(directory.is_formed() || marked.is_err(), "seed {seed}, {steps} steps");
            assert!(directory.last_boot().is_some() || !directory.is_formed());
        }
        for steps in 0..8 {
            let disk = FaultyDisk::new(seed);
            disk.fuse(steps);
            let made = open(&disk).is_ok();
            disk.cut_power();
            let directory = open(&disk).expect("none, or a whole one");
            assert!(!made || !directory.is_new(), "seed {seed}, {steps} steps");
        }
    }
}
