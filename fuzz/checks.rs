//! What must hold of any bytes that a stranger may send, or a disk may give back: nothing panics,
//! and how a stream is cut into reads changes nothing. Shared by the fuzz targets and by the test of
//! their corpus.
//!
//! A fuzzer does not guess checksums. Where bytes have them, each input is read twice: as it is, and
//! with the checksums put right, to see what is made of nonsense that a checksum vouches for.

use quorate::batch::Layout;
use quorate::command::Redis;
use quorate::ids::{Millis, NodeId, PartitionId, TxnId};
use quorate::net::frame;
use quorate::net::packet::Packet;
use quorate::net::resp::{Limits, ReplyReader, Requests, Value};
use quorate::partition::record::{Entry, Section};
use quorate::partition::replica::{AppliedAnswers, Mutation, Replica};
use quorate::partition::snapshot::Restorer;
use quorate::storage::disk::File;
use quorate::storage::{Disk, Identity, Options, Recovered, SegmentLog};
use quorate::store::image::{IMAGE_BLOCK_BYTES, IMAGE_PREFIX_BYTES, ImageReader};
use quorate::store::packed::intset::{self, IntSet};
use quorate::store::packed::{self, Element, Packed, PackedMut};
use quorate::store::pages::{BLOCK_BYTES, BlockKind, Damaged, checksum};
use quorate::store::tables::KeyHasher;
use quorate::txn::protocol::Verdict;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;

/// Limits that a fuzzer's inputs can reach.
const LIMITS: Limits = Limits { word_bytes: 4096, argv: 64, line_bytes: 256, request_bytes: 16384 };

/// Lengths of reads, in turn.
const READS: [usize; 6] = [1, 2, 3, 7, 1, 61];

/// The input in reads of different lengths.
fn reads(data: &[u8]) -> Vec<&[u8]> {
    let mut rest = data;
    let mut pieces = Vec::new();
    for length in READS.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Requests, and the error that ends them.
type Asked = (Vec<Vec<Vec<u8>>>, Option<Vec<u8>>);

fn ask(pieces: &[&[u8]]) -> Asked {
    let (mut requests, mut buffer, mut asked) = (Requests::new(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match requests.next(&buffer, &LIMITS) {
                Ok(Some(words)) => asked.push(words.from(0).map(<[u8]>::to_vec).collect()),
                Ok(None) => break,
                Err(error) => return (asked, Some(error.reply_text())),
            }
        }
        assert!(requests.needs(buffer.len()) > buffer.len(), "it waits for what it has");
        let done = requests.done();
        buffer.drain(..done);
        requests.dropped(done);
    }
    (asked, None)
}

/// A client's bytes.
pub fn requests(data: &[u8]) {
    let whole = ask(&[data]);
    let cut = ask(&reads(data));
    // A length that is too long may be refused before its line has come, but what went before is
    // the same.
    assert_eq!(whole.0, cut.0);
    assert_eq!(whole.1.is_some(), cut.1.is_some());
}

/// A server's bytes.
pub fn replies(data: &[u8]) {
    let (mut at, mut lengths) = (0, Vec::new());
    while let Ok(Some(length)) = ReplyReader::new().next(&data[at..]) {
        if let Ok(parsed) = Value::parse(&data[at..]) {
            assert_eq!(parsed.map(|(_, length)| length), Some(length));
        }
        assert!(length > 0, "a reply has bytes");
        at += length;
        lengths.push(length);
    }
    let (mut reader, mut buffer, mut cut) = (ReplyReader::new(), Vec::new(), Vec::new());
    'reads: for piece in reads(data) {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&buffer) {
                Ok(Some(length)) => {
                    buffer.drain(..length);
                    cut.push(length);
                }
                Ok(None) => break,
                Err(_) => break 'reads,
            }
        }
    }
    assert_eq!(lengths, cut);
}

/// A peer's bytes.
pub fn frames(data: &[u8]) {
    let mut buffer = data.to_vec();
    let mut whole: Vec<Packet> = Vec::new();
    let sound = frame::take(&mut buffer, &mut whole).is_ok();
    let (mut buffer, mut cut) = (Vec::new(), Vec::new());
    let cut_sound = reads(data).into_iter().all(|piece| {
        buffer.extend_from_slice(piece);
        frame::take(&mut buffer, &mut cut).is_ok()
    });
    assert_eq!((sound, &whole), (cut_sound, &cut));
    // What was understood can be said again.
    for packet in whole {
        let mut again = Vec::new();
        frame::push(&packet, &mut again).expect("a packet that came fits a frame");
        let mut packets = Vec::new();
        frame::take(&mut again, &mut packets).expect("our own frame");
        assert_eq!(packets, [packet]);
    }
}

/// The partition that entries and snapshots are of.
pub const PARTITION: PartitionId = PartitionId(7);

/// Made once: its words are never given back.
pub static HASHER: LazyLock<KeyHasher> = LazyLock::new(|| KeyHasher::new(5));

/// Later than the samples.
const LATER: Millis = Millis(1 << 41);

/// Walks all sections of an entry, and lays out its operations.
fn walk(data: &[u8]) -> Result<(), Damaged> {
    let mut entry = Entry::read(data)?;
    let mut layout = Layout::default();
    while let Some(section) = entry.next_section()? {
        let runs = match section {
            Section::Runs(runs) => runs,
            Section::Share(share) => {
                share.participants().for_each(drop);
                share.claims.iter().for_each(drop);
                share.ops
            }
            _ => continue,
        };
        let laid = runs.lay_out(&mut layout)?;
        assert_eq!(laid.len(), runs.len());
        for op in laid.iter() {
            assert_eq!(op.args.iter().map(<[u8]>::len).sum::<usize>(), op.args.bytes().len());
        }
    }
    Ok(())
}

/// Commits every intent, so that what was prepared is run.
fn commit_all(replica: &mut Replica<Redis>) {
    let txns: Vec<TxnId> = replica.intents().keys().copied().collect();
    for txn in txns {
        replica.apply(Mutation::Decide(txn, Verdict::Commit), LATER, &mut Vec::new());
    }
}

/// An entry of a partition's log.
pub fn entries(data: &[u8]) {
    let walked = walk(data);
    let mut digests = [true, false].map(|leads| {
        let mut replica = Replica::<Redis>::new(PARTITION, *HASHER);
        let mut answers = AppliedAnswers::default();
        // Twice: an entry may find what it did itself.
        for _ in 0..2 {
            let applied = replica.apply_entry(data, leads, &mut answers);
            if walked.is_err() {
                assert!(applied.is_err(), "what cannot be walked is not applied");
            }
            if applied.is_err() {
                return None;
            }
        }
        commit_all(&mut replica);
        assert!(replica.intents().is_empty(), "what has prepared is not over");
        Some(replica.digest())
    });
    // Whether clients wait for the replies changes nothing.
    let [leader, follower] = &mut digests;
    assert_eq!(leader, follower);
}

/// Small collections: readers come to an end on any bytes, and what is taken is what edits make.
pub fn packed(data: &[u8]) {
    let read = Packed::new(data);
    let forward: Vec<Vec<u8>> = read.iter().map(Element::to_vec).collect();
    let mut backward: Vec<Vec<u8>> = read.iter().rev().map(Element::to_vec).collect();
    backward.reverse();
    read.pairs().for_each(drop);
    read.scores().for_each(drop);
    let mut built = Vec::new();
    if packed::check(data).is_ok() && !forward.is_empty() {
        assert_eq!(forward, backward);
        let mut edit = PackedMut::new(&mut built);
        for element in &forward {
            edit.push_back(Element::new(element)).expect("as many fit as there were");
        }
        assert_eq!(built, data, "equal elements are equal bytes");
    }
    built.clear();
    if packed::check_scores(data).is_ok() && !read.is_empty() {
        let mut edit = PackedMut::new(&mut built);
        for (member, score) in read.scores().rev() {
            edit.set_score(member, score).expect("as many fit as there were");
        }
        assert_eq!(built, data, "members and scores have one order");
    }
    let integers: Vec<i64> = IntSet::new(data).iter().collect();
    if intset::check(data).is_ok() {
        assert!(integers.is_sorted_by(|one, next| one < next));
        assert!(integers.iter().all(|integer| IntSet::new(data).contains(*integer)));
    }
}

/// The stream of a replica's snapshot.
pub fn snapshot(replica: &mut Replica<Redis>) -> Vec<u8> {
    let mut stream = Vec::new();
    replica.begin_snapshot(&mut stream);
    while replica.snapshot_step(&mut stream, 1000) {}
    stream
}

fn restore(pieces: &[&[u8]]) -> Result<Replica<Redis>, Damaged> {
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut restorer = Restorer::new(PARTITION, *HASHER, length);
    for piece in pieces {
        if let Err(damaged) = restorer.push(piece) {
            assert_eq!(restorer.push(b"more"), Err(damaged.clone()), "it stays refused");
            return Err(damaged);
        }
    }
    restorer.finish()
}

/// How many items an image has.
fn read_image(stream: &[u8]) -> Result<u64, String> {
    let cut = || "cut short".to_string();
    let (prefix, mut rest) = stream.split_first_chunk::<IMAGE_PREFIX_BYTES>().ok_or_else(cut)?;
    let (mut reader, mut items) = (ImageReader::read(*prefix)?, 0);
    while let Some((head, behind)) = rest.split_first_chunk::<IMAGE_BLOCK_BYTES>() {
        let bytes = ImageReader::content_bytes(*head)?;
        let (content, behind) = behind.split_at_checked(bytes).ok_or_else(cut)?;
        reader.take(*head, content, &mut |_| items += 1)?;
        rest = behind;
    }
    let told = reader.finish()?;
    assert_eq!(told, items, "it passes on as many items as it counts");
    Ok(told)
}

/// The stream with the checksums of its blocks put right, but for a head's: for how many items it
/// makes room is believed.
fn with_block_checksums(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut at = IMAGE_PREFIX_BYTES;
    while let Some(head) = stream.get(at..at + BLOCK_BYTES) {
        let bytes = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (kind, content) = (head[0], at + BLOCK_BYTES);
        let Some(sum) = stream.get(content..content + bytes).map(|block| checksum(kind, block))
        else {
            break;
        };
        if kind != BlockKind::Head as u8 {
            stream[at + 5..content].copy_from_slice(&sum.to_le_bytes());
        }
        at = content + bytes;
    }
    stream
}

/// A snapshot of a replica, or an image of its items.
pub fn snapshots(data: &[u8]) {
    for stream in [data, &with_block_checksums(data)] {
        let whole = restore(&[stream]).map(|replica| replica.digest());
        let cut = restore(&reads(stream));
        assert_eq!(whole, cut.as_ref().map(Replica::digest).map_err(Clone::clone));
        if let Ok(mut replica) = cut {
            // What was understood can be said again.
            let again = restore(&[&snapshot(&mut replica)]).map(|replica| replica.digest());
            assert_eq!(again, whole);
            commit_all(&mut replica);
        }
        let _ = read_image(stream);
    }
}

/// The files of a log, in memory.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    files: Rc<RefCell<BTreeMap<PathBuf, MemoryFile>>>,
}

/// One of them.
#[derive(Clone, Default)]
pub struct MemoryFile(Rc<RefCell<Vec<u8>>>);

impl Disk for MemoryDisk {
    type File = MemoryFile;
    type Lock = ();

    fn create(&self, path: &Path) -> io::Result<MemoryFile> {
        let file = MemoryFile::default();
        self.files.borrow_mut().insert(path.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<MemoryFile> {
        let file = self.files.borrow().get(path).cloned();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.files.borrow_mut().remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = self.files.borrow();
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.borrow();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, written: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        let (from, to) = (offset as usize, offset as usize + written.len());
        let longer = bytes.len().max(to);
        bytes.resize(longer, 0);
        bytes[from..to].copy_from_slice(written);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }
}

impl MemoryDisk {
    /// One with a log of this one segment.
    fn with_segment(bytes: &[u8]) -> MemoryDisk {
        let disk = MemoryDisk::default();
        let file = MemoryFile(Rc::new(RefCell::new(bytes.to_vec())));
        disk.files.borrow_mut().insert(SEGMENT.into(), file);
        disk
    }

    /// Opens its log.
    pub fn log(&self) -> quorate::error::Result<(SegmentLog<MemoryDisk>, Recovered)> {
        let options = Options {
            segment_bytes: 64 << 10,
            step_bytes: 4096,
            retain_bytes: 0,
            direct: false,
            ..Options::new(Identity { cluster: "fuzzed".into(), node: NodeId(2) })
        };
        SegmentLog::open(self.clone(), Path::new("log"), options)
    }

    /// The bytes of its log's first segment.
    pub fn segment(&self) -> Vec<u8> {
        self.files.borrow()[Path::new(SEGMENT)].0.borrow().clone()
    }
}

/// The first segment of a log.
const SEGMENT: &str = "log/0000000001.log";

/// Bytes before a segment's first batch.
pub const HEADER_BYTES: usize = 4096;

/// The header of a log's first segment.
static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let disk = MemoryDisk::default();
    disk.log().expect("a log in memory");
    disk.segment()[..HEADER_BYTES].to_vec()
});

/// Batches with their checksums, and those of their records, put right. Indexes are made small:
/// for the gap up to one that a checksum vouches for room is made.
fn with_record_checksums(batches: &[u8]) -> Vec<u8> {
    const BATCH: usize = 48;
    const RECORD: usize = 20;
    let length = |bytes: &[u8], at: usize| {
        let length = bytes.get(at..at + 4)?.first_chunk()?;
        Some(u32::from_le_bytes(*length) as usize)
    };
    let mut batches = batches.to_vec();
    let mut rest = &mut batches[..];
    while let Some(body) = length(rest, 12)
        && let Some((batch, behind)) = rest.split_at_mut_checked(BATCH + body)
    {
        let mut records = &mut batch[BATCH..];
        while let Some(payload) = length(records, 4)
            && let Some((record, behind)) = records.split_at_mut_checked(RECORD + payload)
        {
            record[14..RECORD].fill(0);
            let sum = crc32fast::hash(&record[4..]);
            record[..4].copy_from_slice(&sum.to_le_bytes());
            records = behind;
        }
        let sum = crc32fast::hash(&batch[8..]);
        batch[4..8].copy_from_slice(&sum.to_le_bytes());
        rest = behind;
    }
    batches
}

/// Reads a log, which is refused or reads the same again.
fn recover(segment: &[u8]) {
    let disk = MemoryDisk::with_segment(segment);
    let Ok((log, recovered)) = disk.log() else { return };
    for (group, found) in &recovered.groups {
        let (from, to) = (found.covered + 1, log.next_index(*group));
        let entries = log.read_entries(*group, from, to, usize::MAX).expect("what was recovered");
        assert_eq!(entries, found.entries, "an entry is where it was found");
    }
    let (_, again) = disk.log().expect("a log that was read can be read again");
    assert_eq!(again.groups, recovered.groups);
}

/// The batches of a log's segment, or its header.
pub fn records(data: &[u8]) {
    for batches in [data, &with_record_checksums(data)] {
        recover(&[&HEADER, batches].concat());
    }
    // A header that does not even begin as one is refused at once.
    if data.starts_with(&HEADER[..4]) {
        let mut segment = data.to_vec();
        segment.resize(segment.len().max(HEADER_BYTES), 0);
        recover(&segment);
        let sum = crc32fast::hash(&segment[12..HEADER_BYTES]);
        segment[8..12].copy_from_slice(&sum.to_le_bytes());
        recover(&segment);
    }
}
