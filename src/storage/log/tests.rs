//! Tests of the log.

use super::*;
use crate::ids::NodeId;

fn owner() -> Identity {
    Identity { cluster: "test".into(), node: NodeId(1) }
}

#[test]
fn a_log_on_the_machines_own_disk_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let (mut log, recovered) =
        SegmentLog::open(RealDisk, &path, Options::new(owner())).expect("a new log");
    assert_eq!(recovered.records, 0);
    let mut records = Records::default();
    records.state(PartitionId(3), b"term 1");
    records.entry(PartitionId(3), 1, &[b"first ", b"entry"]);
    records.entry(PartitionId(3), 2, &[b"second"]);
    log.write(&records).expect("written");
    log.sync().expect("synced");
    drop(log);
    let (log, recovered) =
        SegmentLog::open(RealDisk, &path, Options::new(owner())).expect("the same log");
    assert_eq!(recovered.torn, None);
    let group = &recovered.groups[&PartitionId(3)];
    assert_eq!(group.state.as_deref(), Some(&b"term 1"[..]));
    let entries: Vec<(u64, &[u8])> = group.entries.iter().map(|(n, e)| (*n, &e[..])).collect();
    assert_eq!(entries, [(1, &b"first entry"[..]), (2, b"second")]);
    let read = log.read_entries(PartitionId(3), 2, 9, 1 << 20).expect("read");
    assert_eq!(read, group.entries[1..]);
}
