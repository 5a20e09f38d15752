//! A log is torn at every byte, flipped at every bit, and cut by the power at every step; what
//! comes back is compared with a model that knows what was promised.

use super::*;
use crate::ids::NodeId;
use crate::storage::faulty::FaultyDisk;
use crate::storage::log::{Options, SegmentLog, remove_dropped};
use crate::storage::record::Records;
use crate::storage::segment::END;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

type Groups = BTreeMap<PartitionId, GroupLog>;
type Log = SegmentLog<FaultyDisk>;

const DIR: &str = "/data/log";
const SYNCED: &str = "/data/synced";
const A: PartitionId = PartitionId(1);
const B: PartitionId = PartitionId(2);

/// Segments hold a few kilobytes here, so that there are several.
fn options() -> Options {
    let owner = Identity { cluster: "test".into(), node: NodeId(1) };
    Options {
        segment_bytes: 12 << 10,
        step_bytes: 3 << 10,
        retain_bytes: 20 << 10,
        ..Options::new(owner)
    }
}

fn open(disk: &FaultyDisk) -> Result<(Log, Recovered)> {
    SegmentLog::open(disk.clone(), Path::new(DIR), options())
}

/// The same, with what a data directory remembers of the log.
fn open_remembered(disk: &FaultyDisk, newest: u32) -> Result<(Log, Recovered)> {
    let synced = Some(PathBuf::from(SYNCED));
    SegmentLog::open(disk.clone(), Path::new(DIR), Options { newest, synced, ..options() })
}

fn path(number: u32) -> PathBuf {
    segment::path(Path::new(DIR), number)
}

/// What the model thinks of a record.
fn apply_to_model(groups: &mut Groups, record: &Record<'_>) {
    let log = groups.entry(record.group).or_default();
    let index = record.index;
    match record.kind {
        Kind::Entry => {
            log.entries.retain(|(n, _)| *n < index);
            log.entries.push((index, Bytes::copy_from_slice(record.payload)));
        }
        Kind::State => log.state = Some(record.payload.to_vec()),
        Kind::Covered => {
            log.covered = log.covered.max(index);
            log.entries.retain(|(n, _)| *n > index);
        }
        Kind::Reset => {
            log.entries.clear();
            log.covered = index;
        }
        Kind::Kept => unreachable!("only the log keeps"),
    }
}

fn model(batches: &[Records]) -> Groups {
    let mut groups = Groups::new();
    for batch in batches {
        for record in record::records(batch.as_bytes()) {
            apply_to_model(&mut groups, &record.expect("a record"));
        }
    }
    groups
}

fn entries(group: PartitionId, indexes: std::ops::Range<u64>, payload: &[u8]) -> Records {
    let mut records = Records::default();
    for index in indexes {
        records.entry(group, index, &[payload]);
    }
    records
}

/// Three batches, of which the first `synced` are synced; and where each of them starts.
fn three_batches(synced: usize) -> (FaultyDisk, Vec<Records>, Vec<u64>) {
    let disk = FaultyDisk::new(0);
    let (mut log, _) = open(&disk).expect("a log");
    let mut last = entries(B, 1..3, b"to be torn");
    last.state(A, b"term 2");
    let batches = vec![entries(A, 1..4, b"safe"), entries(A, 3..6, b"replaced"), last];
    let mut starts = vec![FIRST_BATCH];
    for (n, batch) in batches.iter().enumerate() {
        log.write(batch).expect("written");
        if n < synced {
            log.sync().expect("synced");
        }
        starts.push(starts[n] + (BATCH_HEADER + batch.bytes()) as u64);
    }
    (disk, batches, starts)
}

#[test]
fn a_batch_torn_at_any_byte_is_cut_and_told() {
    let (disk, batches, starts) = three_batches(2);
    let whole = disk.bytes_of(&path(1)).expect("a segment");
    for at in starts[2]..starts[3] {
        for truncated in [false, true] {
            let mut torn = whole.clone();
            torn[at as usize..].fill(0);
            if truncated {
                torn.truncate(at as usize);
            }
            let disk = disk.copy(1);
            disk.put(&path(1), &torn);
            let (_, recovered) = open(&disk).expect("a torn tail is no damage");
            // The last bytes of a batch may be zeros.
            let is_whole = torn.get(..starts[3] as usize) == whole.get(..starts[3] as usize);
            let left = if is_whole { 3 } else { 2 };
            assert_eq!(recovered.groups, model(&batches[..left]), "torn at {at}");
            let told = recovered.torn.map(|torn| (torn.file, torn.offset));
            let expected = (at > starts[2] && !is_whole).then(|| (path(1), starts[2]));
            assert_eq!(told, expected, "torn at {at}");
        }
    }
}

#[test]
fn a_hole_in_what_was_never_synced_is_a_tail_and_in_what_was_is_damage() {
    // Nothing was synced when the last batch was written: whatever is left of the others is a tail.
    let (disk, batches, starts) = three_batches(0);
    disk.flip(&path(1), (starts[1] + 60) * 8);
    let (_, recovered) = open(&disk).expect("a tail");
    assert_eq!(recovered.groups, model(&batches[..1]));
    let torn = recovered.torn.expect("told");
    assert_eq!((torn.offset, torn.bytes), (starts[1], starts[3] - starts[1]));
    let line = format!("log tail torn at byte {} of {}, cut", starts[1], path(1).display());
    assert_eq!(torn.to_string(), line);

    // The last batch says that the others had been synced.
    let (disk, ..) = three_batches(2);
    disk.flip(&path(1), (starts[1] + 60) * 8);
    let error = open(&disk).err().expect("damage");
    let Error::Corrupt(corrupt) = error else { panic!("{error}") };
    assert_eq!((corrupt.file, corrupt.offset), (path(1), starts[1]));
}

#[test]
fn a_batch_behind_a_cut_does_not_come_back() {
    let (disk, batches, starts) = three_batches(0);
    disk.flip(&path(1), (starts[1] + 60) * 8);
    let (mut log, _) = open(&disk).expect("a tail");
    // Just as long as what was cut: appended in its place it would lead to the batch behind it.
    log.write(&batches[1]).expect("written");
    log.sync().expect("synced");
    drop(log);
    let (_, recovered) = open(&disk).expect("a log");
    assert_eq!(recovered.groups, model(&batches[..2]));
}

/// Two segments whose every batch is vouched for.
fn finished() -> (FaultyDisk, Groups) {
    let disk = FaultyDisk::new(0);
    let mut batches = Vec::new();
    for life in 0..2 {
        let (mut log, _) = open(&disk).expect("a log");
        for index in 1..4 {
            let mut batch = entries(A, life * 3 + index..life * 3 + index + 1, b"payload");
            batch.state(B, b"state");
            log.write(&batch).expect("written");
            log.sync().expect("synced");
            batches.push(batch);
        }
        log.finish().expect("finished");
    }
    (disk, model(&batches))
}

#[test]
fn every_flipped_bit_is_found_or_harmless() {
    let (disk, groups) = finished();
    let mut found = 0;
    for number in [1, 2] {
        let bytes = disk.bytes_of(&path(number)).expect("a segment");
        let batches: Vec<(u64, u64)> = segment::search(&bytes, number, FIRST_BATCH)
            .map(|batch| (batch.offset, batch.bytes()))
            .collect();
        let (last, length) = *batches.last().expect("batches");
        let end = last + length;
        // The header is mostly padding: not every bit of it, but each of its bytes.
        let header = (0..FIRST_BATCH).map(|byte| byte * 8 + byte % 8);
        let rest = FIRST_BATCH * 8..(end + 2 * END as u64) * 8;
        for bit in header.chain(rest) {
            let disk = disk.copy(bit);
            disk.flip(&path(number), bit);
            let byte = bit / 8;
            match open(&disk) {
                Err(Error::Corrupt(corrupt)) => {
                    assert_eq!(corrupt.file, path(number), "bit {bit}");
                    assert!(corrupt.offset <= byte, "bit {bit}: {corrupt:?}");
                    let limit = if number == 2 { last } else { end };
                    assert!(byte < limit, "bit {bit}: {corrupt:?}");
                    found += 1;
                }
                Err(error) => panic!("bit {bit}: {error}"),
                Ok((_, recovered)) => {
                    assert_eq!(recovered.groups, groups, "bit {bit} of segment {number}");
                    match recovered.torn {
                        // The empty batch that vouches for the others, or the zeros behind it.
                        Some(torn) => assert!(number == 2 && torn.offset <= byte, "bit {bit}"),
                        None => assert!(byte >= end, "bit {bit} of segment {number}"),
                    }
                }
            }
        }
    }
    assert!(found > 10_000, "{found} were found");
}

#[test]
fn a_segment_that_is_missing_is_noticed() {
    let (disk, _) = finished();
    open(&disk).expect("three segments now");
    for gone in [1, 2] {
        let disk = disk.copy(gone);
        disk.remove(&path(gone as u32)).expect("removed");
        let error = open(&disk).err().expect("a segment is missing");
        assert!(matches!(&error, Error::Corrupt(c) if c.file == path(gone as u32)), "{error}");
    }
}

#[test]
fn a_log_of_another_node_is_refused() {
    let (disk, _) = finished();
    let owner = Identity { cluster: "test".into(), node: NodeId(2) };
    let error = SegmentLog::open(disk, Path::new(DIR), Options { owner, ..options() });
    let error = error.err().expect("refused").to_string();
    let path = path(1);
    let expected = format!(
        "{} belongs to node 1 of cluster test, not to node 2 of cluster test",
        path.display()
    );
    assert_eq!(error, expected);
}

/// The last batch that was synced, with nothing behind it that says so.
#[test]
fn damage_to_what_was_synced_last_is_no_torn_tail() {
    let disk = FaultyDisk::new(0);
    let (mut log, _) = open_remembered(&disk, 0).expect("a log");
    let batches = [entries(A, 1..4, b"safe"), entries(A, 4..6, b"last"), entries(A, 6..7, b"torn")];
    let mut starts = vec![FIRST_BATCH];
    for (n, batch) in batches.iter().enumerate() {
        log.write(batch).expect("written");
        if n < 2 {
            log.sync().expect("synced");
        }
        starts.push(starts[n] + (BATCH_HEADER + batch.bytes()) as u64);
    }
    drop(log);
    // What is left of the third has no say.
    disk.flip(&path(1), (starts[2] + 20) * 8);
    for bit in starts[1] * 8..starts[2] * 8 {
        let disk = disk.copy(bit);
        disk.flip(&path(1), bit);
        let error = open_remembered(&disk, 1).err().expect("damage");
        let Error::Corrupt(corrupt) = error else { panic!("bit {bit}: {error}") };
        assert_eq!((corrupt.file, corrupt.offset), (path(1), starts[1]), "bit {bit}");
    }
    let (_, recovered) = open_remembered(&disk.copy(1), 1).expect("a tail");
    assert_eq!(recovered.groups, model(&batches[..2]));
    // A note that is torn itself proves nothing.
    let other = disk.copy(2);
    other.flip(Path::new(SYNCED), 8 * 12);
    other.flip(&path(1), (starts[1] + 20) * 8);
    let (_, recovered) = open_remembered(&other, 1).expect("what seems a tail");
    assert_eq!(recovered.groups, model(&batches[..1]));
}

#[test]
fn a_log_without_the_segment_written_to_last_is_refused() {
    let disk = FaultyDisk::new(0);
    let (mut log, _) = open_remembered(&disk, 0).expect("a log");
    for index in 1..40 {
        log.write(&entries(A, index..index + 1, &[7; 1000])).expect("written");
        log.sync().expect("synced");
    }
    let newest = log.newest();
    assert!(newest > 2, "several segments");
    drop(log);
    let names = disk.files().into_iter().filter(|path| path.starts_with(DIR));
    let names: Vec<PathBuf> = names.collect();
    for gone in [vec![path(newest)], names] {
        // The data directory's word for it, and the note's: either will do.
        for remembered in [newest, 0] {
            let disk = disk.copy(1);
            gone.iter().for_each(|path| disk.remove(path).expect("removed"));
            if remembered > 0 {
                disk.remove(Path::new(SYNCED)).expect("removed");
            }
            let error = open_remembered(&disk, remembered).err().expect("refused");
            assert!(matches!(&error, Error::Corrupt(c) if c.file == path(newest)), "{error}");
        }
    }
    open_remembered(&disk, newest).expect("all of it is there");
}

/// A log, and what was promised about it.
struct Story {
    seed: u64,
    dice: ChaCha8Rng,
    disk: FaultyDisk,
    log: Log,
    /// The newest segment, as a data directory remembers it.
    newest: u32,
    /// What the log may hold, by how many batches of this life are in it.
    states: Vec<Groups>,
    /// How many of them it must hold.
    promised: usize,
    cuts: usize,
    dropped: usize,
    torn: usize,
}

impl Story {
    fn new(seed: u64) -> Story {
        let disk = FaultyDisk::new(seed);
        let (log, _) = open_remembered(&disk, 0).expect("a log");
        let newest = log.newest();
        let dice = ChaCha8Rng::seed_from_u64(!seed);
        let (states, promised) = (vec![Groups::new()], 0);
        Story { seed, dice, disk, log, newest, states, promised, cuts: 0, dropped: 0, torn: 0 }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice.next_u64() % sides
    }

    fn now(&self) -> &Groups {
        self.states.last().expect("there is always a state")
    }

    /// One record that may come next, as the groups are now.
    fn any_record(&mut self, groups: &Groups, records: &mut Records) {
        // Group 0 writes once and then no more.
        let idle = groups.get(&PartitionId(0)).is_some_and(|log| log.entries.len() > 2);
        let group = if idle { PartitionId(1 + self.roll(3) as u16) } else { PartitionId(0) };
        let log = groups.get(&group).cloned().unwrap_or_default();
        let next = log.entries.last().map_or(log.covered, |(index, _)| *index) + 1;
        match if idle { self.roll(20) } else { 0 } {
            0..12 => {
                let payload = vec![self.roll(256) as u8; self.roll(300) as usize];
                records.entry(group, next, &[&payload]);
            }
            12..14 => {
                records.entry(group, log.covered + 1 + self.roll(next - log.covered), &[b"other"])
            }
            14..16 => records.state(group, &self.dice.next_u64().to_le_bytes()),
            16..19 => records.covered(group, log.covered + self.roll(next - log.covered)),
            _ if self.roll(2) == 0 => records.covered(group, next + self.roll(4)),
            _ => records.reset(group, next + self.roll(9)),
        }
    }

    fn step(&mut self) {
        match self.roll(40) {
            0 => self.disk.fuse(self.dice.next_u64() % 12),
            1 => self.disk.fail_sync(self.dice.next_u64() % 3),
            _ => {}
        }
        let outcome = match self.roll(10) {
            0..6 => self.write(),
            6..8 => self.sync(),
            8 => self.collect(),
            _ => return self.check_reading(),
        };
        if outcome.is_err() || self.roll(60) == 0 {
            self.crash();
        }
    }

    fn write(&mut self) -> Result<()> {
        let mut groups = self.now().clone();
        let mut records = Records::default();
        for _ in 0..=self.roll(5) {
            let mut one = Records::default();
            self.any_record(&groups, &mut one);
            for record in record::records(one.as_bytes()) {
                apply_to_model(&mut groups, &record.expect("a record"));
            }
            records.append(&one);
        }
        self.states.push(groups);
        self.log.write(&records)?;
        self.newest = self.log.newest();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.log.sync()?;
        self.promised = self.states.len() - 1;
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        loop {
            let collected = self.log.collect()?;
            self.newest = self.log.newest();
            self.dropped += usize::from(collected.dropped);
            // Now, later, or never.
            if let Some(left) = collected.left.filter(|_| self.roll(2) == 0) {
                remove_dropped(&self.disk, &left)?;
            }
            if !collected.dropped {
                return Ok(());
            }
        }
    }

    fn check_reading(&mut self) {
        for (group, log) in self.now() {
            let read = self.log.read_entries(*group, log.covered + 1, u64::MAX, usize::MAX);
            let seed = self.seed;
            match read {
                Ok(read) => assert_eq!(read, log.entries, "seed {seed}, partition {group}"),
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }

    /// The process dies, and the machine with it or not, and once more while it starts.
    fn crash(&mut self) {
        let power = self.roll(3) > 0;
        loop {
            self.cuts += 1;
            if power {
                self.disk.cut_power()
            } else {
                self.disk.kill()
            }
            let interrupted = self.roll(3) == 0;
            if interrupted {
                self.disk.fuse(self.dice.next_u64() % 8);
            }
            match open_remembered(&self.disk, self.newest) {
                Ok((log, recovered)) => {
                    self.judge(recovered);
                    self.newest = log.newest();
                    self.log = log;
                    break;
                }
                Err(error) => assert!(interrupted, "seed {}: {error}", self.seed),
            }
        }
        self.disk.unfuse();
    }

    fn judge(&mut self, recovered: Recovered) {
        let seed = self.seed;
        let found = self.states.iter().rposition(|groups| *groups == recovered.groups);
        let Some(found) = found else {
            panic!("seed {seed}: {:#?}\nis none of what was written", recovered.groups)
        };
        assert!(found >= self.promised, "seed {seed}: {found} of {} promised", self.promised);
        self.torn += usize::from(recovered.torn.is_some());
        // The caller acts on it: from now on it is promised.
        self.states = vec![recovered.groups];
        self.promised = 0;
    }
}

#[test]
fn what_was_synced_is_there_whatever_happens() {
    let (mut cuts, mut dropped, mut torn) = (0, 0, 0);
    for seed in 0..400 {
        let mut story = Story::new(seed);
        for _ in 0..200 {
            story.step();
        }
        story.crash();
        cuts += story.cuts;
        dropped += story.dropped;
        torn += story.torn;
    }
    // The story is worth nothing if nothing happens in it.
    assert!(cuts > 2_000 && dropped > 1_000 && torn > 200, "{cuts} {dropped} {torn}");
}
