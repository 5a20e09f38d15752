use super::*;
use crate::command::Redis;
use crate::ids::TableIndex;
use crate::partition::replica::AppliedAnswers;
use crate::partition::replica::tests::{ID, Story, hasher, replica};
use bytes::Bytes;

/// No stream here is longer.
const LENGTH: u64 = 1 << 30;

fn restore(stream: &[u8], story: &mut Story) -> Result<Replica<Redis>, Damaged> {
    let mut restorer = Restorer::new(ID, hasher(), LENGTH);
    let longest = [2, 20, 1_000, 100_000][story.roll(4) as usize];
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(story.roll(longest) as usize));
        restorer.push(piece)?;
        rest = later;
    }
    assert_eq!(restorer.bytes(), stream.len() as u64);
    restorer.finish()
}

fn apply(replica: &mut Replica<Redis>, entry: &Bytes) {
    replica.apply_entry(entry, false, &mut AppliedAnswers::default()).unwrap();
}

/// A whole snapshot with nothing in between.
fn snapshot(replica: &mut Replica<Redis>) -> Vec<u8> {
    let mut stream = Vec::new();
    replica.begin_snapshot(&mut stream);
    while replica.snapshot_step(&mut stream, 1000) {}
    stream
}

/// A replica with a history, and the story that goes on with it.
fn begun(seed: u64, keys: u64) -> (Story, Replica<Redis>) {
    let mut story = Story::new(seed, keys);
    let mut replica = replica();
    let bulk = story.roll(keys);
    apply(&mut replica, &story.bulk(bulk));
    for _ in 0..story.roll(100) {
        let entry = story.entry();
        apply(&mut replica, &entry);
    }
    (story, replica)
}

#[test]
fn a_snapshot_is_the_replica_as_it_was_and_the_log_leads_on() {
    for seed in 0..60 {
        let keys = [10, 300, 8_000][seed as usize % 3];
        let (mut story, mut replica) = begun(seed, keys);
        let mut stream = Vec::new();
        if story.roll(3) == 0 {
            // One that was given up leaves nothing behind.
            replica.begin_snapshot(&mut stream);
            for _ in 0..story.roll(5) {
                replica.snapshot_step(&mut stream, 5_000);
                let entry = story.entry();
                apply(&mut replica, &entry);
            }
            if story.roll(2) == 0 {
                replica.abandon_snapshot();
                assert_eq!(replica.tables().snapshot_backlog(), 0);
            }
            stream.clear();
        }
        let (dump, digest) = (replica.dump(), replica.digest());
        replica.begin_snapshot(&mut stream);
        let mut since = Vec::new();
        let budget = 1 + story.roll(30_000) as usize;
        let most = story.roll(8);
        loop {
            for _ in 0..story.roll(1 + most) {
                let grow = story.roll(50) == 0;
                let entry = if grow { story.bulk(keys) } else { story.entry() };
                apply(&mut replica, &entry);
                since.push(entry);
            }
            if !replica.snapshot_step(&mut stream, budget) {
                break;
            }
        }
        assert!(!replica.is_in_snapshot() && replica.tables().snapshot_backlog() == 0);
        let mut restored = restore(&stream, &mut story).unwrap();
        assert!(restored.dump() == dump, "seed {seed}");
        assert_eq!(restored.digest(), digest);
        for entry in &since {
            apply(&mut restored, entry);
        }
        assert!(restored.dump() == replica.dump(), "seed {seed}, {} entries later", since.len());
        // And so on: the snapshot of what was restored.
        let again = snapshot(&mut restored);
        assert!(restore(&again, &mut story).unwrap().dump() == replica.dump());
    }
}

#[test]
fn a_new_leader_votes_as_the_old_one_did() {
    let (mut story, mut old) = begun(2, 300);
    while old.intents().len() < 3 {
        let entry = story.entry();
        apply(&mut old, &entry);
    }
    let new = restore(&snapshot(&mut old), &mut story).unwrap();
    assert!(old.intents().keys().eq(new.intents().keys()));
    assert_eq!(format!("{:?}", old.intents()), format!("{:?}", new.intents()), "with replies");
}

#[test]
fn every_step_is_bounded() {
    let mut story = Story::new(1, 20_000);
    let mut replica = replica();
    apply(&mut replica, &story.bulk(20_000));
    let mut stream = Vec::new();
    replica.begin_snapshot(&mut stream);
    let mut steps = 0;
    loop {
        let before = stream.len();
        let more = replica.snapshot_step(&mut stream, 10_000);
        // A segment's small items, or a large one.
        assert!(stream.len() - before < 10_000 + 820 * 2_100, "{}", stream.len() - before);
        let entry = story.entry();
        apply(&mut replica, &entry);
        steps += 1;
        if !more {
            break;
        }
    }
    assert!(steps > 100, "{steps}");
}

#[test]
fn expiries_and_uses_are_kept() {
    let mut replica = replica();
    let mut story = Story::new(9, 1_000);
    for _ in 0..400 {
        let entry = story.entry();
        apply(&mut replica, &entry);
    }
    let restored = restore(&snapshot(&mut replica), &mut story).unwrap();
    let used = |replica: &Replica<Redis>| {
        let mut used = Vec::new();
        for table in TableIndex::all() {
            replica.tables().for_each(table, &mut |item| {
                used.push((table, item.key().to_vec(), item.used(), item.expires()));
            });
        }
        used.sort_unstable();
        used
    };
    assert_eq!(used(&restored), used(&replica));
    let volatile = |replica: &Replica<Redis>| replica.tables().volatile(TableIndex::default());
    assert!(volatile(&restored) > 0 && volatile(&restored) == volatile(&replica));
}

#[test]
fn any_damage_is_found_and_named() {
    let (mut story, mut replica) = begun(8, 10);
    while replica.intents().is_empty() || replica.outcomes().is_empty() {
        let entry = story.entry();
        apply(&mut replica, &entry);
    }
    let stream = snapshot(&mut replica);
    assert!(restore(&stream, &mut story).is_ok());
    for at in (0..stream.len()).filter(|at| *at < 3_000 || at % 97 == 0) {
        let mut damaged = stream.clone();
        damaged[at] ^= 1 << story.roll(8);
        let error = restore(&damaged, &mut story).err();
        assert!(error.is_some_and(|error| error.at <= stream.len() as u64), "flipped at {at}");
        let error = restore(&stream[..at], &mut story).err().unwrap();
        assert_eq!((error.at, &*error.what), (at as u64, "a snapshot that breaks off"));
    }
    let longer = [&stream[..], &stream[5..]].concat();
    let error = restore(&longer, &mut story).err().unwrap();
    assert_eq!((error.at, &*error.what), (stream.len() as u64, "a block after the end"));
}

#[test]
fn what_is_not_its_snapshot_is_refused() {
    let (_, mut replica) = begun(8, 10);
    let stream = snapshot(&mut replica);
    let other = PartitionId(ID.0 + 1);
    let mut restorer = Restorer::<Redis>::new(other, hasher(), LENGTH);
    let error = restorer.push(&stream).unwrap_err();
    assert_eq!(error.to_string(), "damaged at byte 5: a snapshot of partition 3, not 4");
    assert_eq!(restorer.push(b"").unwrap_err(), error, "and stays refused");
    assert_eq!(restorer.finish().err(), Some(error));
    let mut later = stream.clone();
    later[4] = 3;
    let error = Restorer::<Redis>::new(ID, hasher(), LENGTH).push(&later).unwrap_err();
    assert_eq!(error.to_string(), "damaged at byte 0: snapshot version 3, not 2");
    let error = Restorer::<Redis>::new(ID, hasher(), LENGTH).push(b"*1\r\n$4\r\n").unwrap_err();
    assert_eq!(error.to_string(), "damaged at byte 0: no snapshot");
    // A length that no block has is not waited for.
    let mut long = stream.clone();
    long[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = Restorer::<Redis>::new(ID, hasher(), LENGTH).push(&long).unwrap_err();
    assert_eq!(error.to_string(), "damaged at byte 5: a block longer than there can be");
}

/// A checksum vouches for a head, but not for its sense.
#[test]
fn items_that_the_bytes_cannot_hold_take_no_room() {
    for (first, length, fits) in [(10, 120, true), (11, 120, false), (u64::MAX, LENGTH, false)] {
        let mut items = [0; TABLES];
        (items[0], items[1]) = (first - 1, 1);
        let head = SnapshotHead { partition: ID, stamp: Millis(1), items };
        let mut stream = Vec::new();
        put_head(&mut stream, &head);
        let taken = Restorer::<Redis>::new(ID, hasher(), length).push(&stream);
        assert_eq!(taken.is_ok(), fits, "{first} items: {taken:?}");
    }
}
