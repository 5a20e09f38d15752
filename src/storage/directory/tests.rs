//! Which node may open a directory, and what it remembers.

use super::*;
use crate::storage::faulty::FaultyDisk;

const DIR: &str = "/var/quorate/node-2";

fn owner(cluster: &str, node: u16) -> Identity {
    Identity { cluster: cluster.into(), node: NodeId(node) }
}

fn open(disk: &FaultyDisk) -> Result<Directory<FaultyDisk>> {
    Directory::open(disk.clone(), Path::new(DIR), owner("shop", 2), &layout("12"))
}

fn layout(partitions: &str) -> Vec<(&'static str, String)> {
    vec![("partitions", partitions.to_owned()), ("nodes", "1 2 3".to_owned())]
}

fn refusal<D: Disk>(outcome: Result<Directory<D>>) -> String {
    outcome.err().expect("refused").to_string()
}

#[test]
fn what_it_is_told_it_remembers() {
    let disk = FaultyDisk::new(1);
    let mut directory = open(&disk).expect("a new directory");
    assert!(directory.is_new() && !directory.is_formed());
    assert_eq!(directory.replica_of(PartitionId(3)), 1);
    directory.mark_running("boot-1\n", Millis(5), []).expect("marked");
    directory.mark_ready().expect("marked");
    directory.mark_formed().expect("marked");
    drop(directory);

    disk.cut_power();
    let mut directory = open(&disk).expect("the directory");
    assert!(!directory.is_new() && directory.is_ready() && directory.is_formed());
    assert_eq!(directory.begin_anew(1_700_000_000, 9).expect("anew"), 1_700_000_000);
    directory.mark_running("boot-2", Millis(5), []).expect("marked");
    directory.mark_clean().expect("marked");
    drop(directory);

    disk.cut_power();
    let directory = open(&disk).expect("the directory");
    assert!(directory.is_formed());
    assert_eq!(directory.replica_of(PartitionId(3)), 1_700_000_000);
    let text = disk.bytes_of(&Path::new(DIR).join("identity")).expect("an identity");
    let text = String::from_utf8(text).expect("readable");
    let (fields, _) = text.split_once("crc: ").expect("a checksum");
    assert_eq!(
        fields,
        "# Whose data this directory holds. Kept by the node; do not edit.\nformat: 3\n\
         cluster: shop\nnode: 2\nlayout.partitions: 12\nlayout.nodes: 1 2 3\nlife: 6\n\
         replica: 1700000000\nready: yes\nformed: yes\n\
         boot: boot-2\nstopped: cleanly\n"
    );
}

#[test]
fn the_note_of_the_last_sync_is_missed_once_it_was_there() {
    let disk = FaultyDisk::new(7);
    let mut directory = open(&disk).expect("a new directory");
    let note = directory.synced_file();
    directory.mark_running("boot-1", Millis(5), []).expect("marked");
    drop(directory);

    // There was none: an earlier version made the directory.
    let mut directory = open(&disk).expect("the directory");
    disk.create(&note).expect("a note");
    directory.mark_running("boot-1", Millis(5), []).expect("marked");
    drop(directory);

    disk.cut_power();
    drop(open(&disk).expect("the note outlives what speaks of it"));
    disk.remove(&note).expect("removed");
    let told = refusal(open(&disk));
    assert!(told.contains("synced") && told.contains("the file is missing"), "{told}");
}

#[test]
fn what_was_not_synced_is_suspect_once_the_machine_went_down() {
    let disk = FaultyDisk::new(1);
    let unsynced = [PartitionId(4), PartitionId(9)];
    let run = |boot: &str, then: &dyn Fn(&mut Directory<FaultyDisk>) -> Result<()>| {
        let mut directory = open(&disk).expect("the directory");
        directory.mark_running(boot, Millis(5), unsynced).expect("marked");
        let suspects: Vec<u16> = directory.suspects().iter().map(|id| id.0).collect();
        then(&mut directory).expect("changed");
        (suspects, unsynced.map(|id| directory.replica_of(id)))
    };
    let nothing = |_: &mut Directory<FaultyDisk>| Ok(());
    run("boot-1", &nothing);
    // Before the cluster was formed nothing was said.
    assert_eq!(run("boot-2", &Directory::mark_formed).0, Vec::<u16>::new());
    // The process alone died.
    assert_eq!(run("boot-2", &Directory::mark_clean).0, Vec::<u16>::new());
    // It had stopped before.
    assert_eq!(run("boot-3", &nothing).0, Vec::<u16>::new());
    assert_eq!(run("boot-4", &nothing).0, [4, 9]);
    // It was not settled.
    let [replaced, trusted] = unsynced.map(|id| [id]);
    assert_eq!(run("boot-4", &|one| one.settle(&replaced, &[], 100)), (vec![4, 9], [100, 1]));
    assert_eq!(run("boot-4", &|one| one.settle(&[], &trusted, 100)), (vec![9], [100, 1]));
    // A clock that stands still gives no number twice.
    assert_eq!(run("boot-4", &|one| one.settle(&replaced, &[], 100)), (vec![], [101, 1]));
    // All is lost: the next number is later than any that was given.
    let anew = |one: &mut Directory<FaultyDisk>| one.begin_anew(50, 0).map(drop);
    assert_eq!(run("boot-5", &anew), (vec![4, 9], [102, 102]));
    assert_eq!(run("boot-5", &nothing), (vec![], [102, 102]));
}

#[test]
fn all_partitions_of_the_largest_cluster_are_remembered() {
    let disk = FaultyDisk::new(1);
    let all: Vec<PartitionId> = (0..u16::MAX).map(PartitionId).collect();
    let mut directory = open(&disk).expect("a new directory");
    directory.mark_formed().expect("marked");
    directory.settle(&all, &[], u64::from(u32::MAX)).expect("settled");
    directory.mark_running("boot-1", Millis(5), []).expect("marked");
    directory.mark_running("boot-2", Millis(5), all.iter().copied()).expect("marked");
    drop(directory);
    let directory = open(&disk).expect("the directory");
    assert_eq!(directory.suspects().len(), all.len());
    assert!(all.iter().all(|id| directory.replica_of(*id) == SECOND_MAX as u32));
}

#[test]
fn a_clock_of_the_far_future_leaves_names_for_later() {
    let once = later(1, u64::MAX);
    assert!(once < u32::MAX / 4 * 3);
    assert_eq!(later(once, u64::MAX), once + 1);
    assert_eq!(later(once + 1, 1_700_000_000), once + 2);
}

#[test]
fn anothers_directory_is_refused() {
    let disk = FaultyDisk::new(1);
    drop(open(&disk).expect("a directory"));
    for other in [owner("shop", 3), owner("stall", 2)] {
        let expected =
            format!("data directory {DIR} belongs to node 2 of cluster shop, not to {other}");
        assert_eq!(
            refusal(Directory::open(disk.clone(), Path::new(DIR), other, &layout("12"))),
            expected
        );
    }
    open(&disk).expect("and left as it was");
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Directory::open(RealDisk, &dir.path().join("node-2"), owner("shop", 2), &[]);
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
    let expected = format!("{DIR}/log holds data, but {DIR} does not say whose: its file identity");
    let text = refusal(open(&disk));
    assert!(text.starts_with(&expected) && text.contains("Put that back"), "{text}");
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
    let newer = String::from_utf8(whole).expect("text").replace("format: 3", "format: 4");
    let (fields, _) = newer.split_once("crc: ").expect("a checksum");
    let crc = crc32fast::hash(fields.as_bytes());
    disk.put(&path, format!("{fields}crc: {crc:08x}\n").as_bytes());
    let expected = format!("{DIR}/identity is of format 4, which is not known");
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
                directory.mark_running("boot-1", Millis(5), [PartitionId(1)])?;
                directory.mark_formed()
            });
            disk.cut_power();
            let directory = open(&disk).expect("a whole identity");
            assert!(directory.is_formed() || marked.is_err(), "seed {seed}, {steps} steps");
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

#[test]
fn an_identity_of_an_earlier_format_is_refused_in_words() {
    let disk = FaultyDisk::new(1);
    drop(open(&disk).expect("a directory"));
    for format in ["1", "2"] {
        let text = format!(
            "# Whose data this directory holds. Kept by the node; do not edit.\nformat: {format}\n\
             cluster: shop\nnode: 2\nreplica: 7\nformed: yes\nboot: boot-1\nstopped: cleanly\n"
        );
        let crc = crc32fast::hash(text.as_bytes());
        disk.put(&Path::new(DIR).join("identity"), format!("{text}crc: {crc:08x}\n").as_bytes());
        let refused = refusal(open(&disk));
        for words in [format!("is of format {format}"), "--role admin backup".to_owned()] {
            assert!(refused.contains(&words), "{refused}");
        }
    }
}

#[test]
fn a_placement_is_kept_whatever_a_new_one_would_be() {
    let disk = FaultyDisk::new(1);
    let opened = |placement: &str| {
        let layout = [("partitions", "2".to_owned()), (PLACEMENT, placement.to_owned())];
        let owner = Identity { cluster: "shop".into(), node: NodeId(2) };
        let directory = Directory::open(disk.clone(), Path::new(DIR), owner, &layout);
        let mut directory = directory.expect("the directory");
        directory.mark_formed().expect("marked");
        directory.placement().map(str::to_owned)
    };
    assert_eq!(opened("1,2 2,1").as_deref(), Some("1,2 2,1"));
    assert_eq!(opened("2,1 1,2").as_deref(), Some("1,2 2,1"));
    assert_eq!(opened("2,1 1,2").as_deref(), Some("1,2 2,1"), "and after it was written again");
}

#[test]
fn lives_and_generations_are_later_than_any_before_whatever_the_clock_says() {
    let disk = FaultyDisk::new(1);
    let life = |clock| {
        let mut directory = open(&disk).expect("the directory");
        directory.mark_running("boot-1", Millis(clock), []).expect("marked").0
    };
    assert_eq!([1_000, 2_000, 1_500, 0, 3_000].map(life), [1_000, 2_000, 2_001, 2_002, 3_000]);
    let mut directory = open(&disk).expect("the directory");
    // Others remember what a lost directory had.
    assert_eq!(directory.begin_anew(100, 7_000).expect("anew"), 7_001);
    assert_eq!(directory.begin_anew(100, 0).expect("anew"), 7_002);
    assert_eq!(directory.begin_anew(8_000, 0).expect("anew"), 8_000);
}

#[test]
fn a_lost_directory_learns_of_its_lives_and_an_earlier_copy_is_refused() {
    let disk = FaultyDisk::new(1);
    let seen = |life, generation| LastSeen { life: Incarnation(life), generation };
    let mut directory = open(&disk).expect("a new directory");
    directory.mark_running("boot-1", Millis(10), []).expect("marked");
    assert_eq!(directory.last_life(), None);
    assert_eq!(directory.outlived(NodeId(1), seen(500, 3)).expect("raised"), Incarnation(501));
    directory.mark_seen(NodeId(1), seen(40, 1)).expect("noted");
    directory.mark_seen(NodeId(1), seen(30, 2)).expect("noted");
    assert_eq!(directory.begin_anew(1, 3).expect("anew"), 4);
    // Not all others had been asked.
    assert_eq!(directory.outlived(NodeId(3), seen(100, 8)).expect("raised"), Incarnation(502));
    assert_eq!(directory.replica_of(PartitionId(0)), 9);
    drop(directory);

    let mut directory = open(&disk).expect("the directory");
    assert_eq!(directory.last_seen(NodeId(1)), seen(40, 2));
    assert_eq!(directory.last_seen(NodeId(3)), seen(0, 0));
    assert_eq!(directory.last_life(), Some(Incarnation(502)));
    assert_eq!(directory.mark_running("boot-1", Millis(10), []).expect("life"), Incarnation(503));
    let refused = directory.outlived(NodeId(1), seen(600, 9)).expect_err("an earlier copy");
    let text = refused.to_string();
    assert!(text.contains("is older than what node 1 has seen") && text.contains("600"), "{text}");
}

#[test]
fn another_layout_is_refused_by_name() {
    let disk = FaultyDisk::new(1);
    let open_as = |layout: &[(&'static str, String)]| {
        Directory::open(disk.clone(), Path::new(DIR), owner("shop", 2), layout)
    };
    // Nothing is kept as long as no table is on disk.
    let mut directory = open_as(&[]).expect("a new directory");
    directory.mark_running("boot-1", Millis(5), []).expect("marked");
    drop(directory);
    let mut directory = open_as(&layout("12")).expect("it held nothing");
    directory.mark_running("boot-1", Millis(5), []).expect("marked");
    drop(directory);
    let text = refusal(open_as(&layout("6")));
    assert!(text.contains("partitions was 12") && text.contains("cluster.yaml says 6"), "{text}");
    let mut more = layout("12");
    more[1].1 += " 4 5";
    let text = refusal(open_as(&more));
    assert!(text.contains("nodes was 1 2 3") && text.contains("says 1 2 3 4 5"), "{text}");
    assert!(refusal(open_as(&[])).contains("says nothing"));
    let of = |classes: &str, tables: &str| told_moved("classes", classes, tables);
    assert_eq!(
        of("strong,3,disk strong,1,memory", "strong,2,disk"),
        "in how many ways tables are kept (mode, replicas, durability) was 2 (strong with replicas: 3 \
         and a log (sync or interval); strong with replicas: 1 and none) when it was made, and \
         cluster.yaml says 1 (strong with replicas: 2 and a log (sync or interval))"
    );
    assert_eq!(
        told_moved("tables", "0 1 0", "0 0 0"),
        "which tables are kept alike was 0 2 | 1 when it was made, and cluster.yaml says 0 1 2"
    );
    drop(open_as(&layout("12")).expect("and left as it was"));
}

#[test]
fn a_boot_that_cannot_be_told_is_another_one() {
    let disk = FaultyDisk::new(1);
    let suspects = |boot: &str, clean: bool| {
        let mut directory = open(&disk).expect("the directory");
        directory.mark_formed().expect("marked");
        directory.mark_running(boot, Millis(5), [PartitionId(4)]).expect("marked");
        let suspects = directory.suspects().len();
        directory.settle(&[], &[PartitionId(4)], 1).expect("settled");
        if clean {
            directory.mark_clean().expect("marked");
        }
        suspects
    };
    assert_eq!(suspects("", true), 0, "it never ran");
    assert_eq!(suspects("", false), 0, "it had stopped");
    assert_eq!(suspects("", false), 1);
    assert_eq!(suspects("boot-1", false), 1);
    assert_eq!(suspects("boot-1", false), 0);
    assert_eq!(suspects("", false), 1);
}
