//! The Log: the one actor of a node that writes to its disk, on an arbiter of its own.
//!
//! Buckets hand it what their groups must keep. While one sync is under way the next Buckets'
//! records gather in its mailbox; once the mailbox is empty, all of them are one write and one sync
//! (group commit), and each Bucket hears what of its is kept now. What need not be synced (tables with
//! `durability: interval`) it hears of before the sync, which comes by itself within the second.
//!
//! A disk that refuses stops the node: what could not be written or synced was not acknowledged, and
//! nothing after it will be.

use crate::actors::archive::{self, Archive};
use crate::actors::bucket::{self, Bucket};
use crate::actors::failpoint::{Failpoint, Point};
use crate::config::Durability;
use crate::consensus::Persist;
use crate::error::{Error, Result};
use crate::ids::{Incarnation, LastSeen, NodeId, PartitionId};
use crate::memory::{self, Calm};
use crate::metrics::LogCounts;
use crate::partition::record::must_sync;
use crate::storage::{Directory, Records, SegmentLog};
use actix::fut::ActorFuture;
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult};
use smallvec::SmallVec;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// How often what no client waits for is synced: the durability `interval` promises a second.
const SYNC_EVERY: Duration = Duration::from_millis(900);

/// How often old segments are looked through.
const COLLECT_EVERY: Duration = Duration::from_secs(2);

/// A segment is dropped so long after the one before: a snapshot sets many free at once, and each
/// takes a sync or two for which writes wait.
const DROP_EVERY: Duration = Duration::from_millis(50);

/// Records that may wait in a mailbox, in messages: a Bucket has at most a few under way.
const MAILBOX: usize = 1 << 16;

/// Bytes of records that are written and synced together. A Bucket hands over no more at a time,
/// but for a single entry that is longer.
const RECORDS_BYTES_MAX: usize = 32 << 20;

/// Buffers for records that a Bucket keeps: while one is written, the next ones fill.
const SPARES_MAX: usize = 4;

/// Stops the node, for this reason.
pub type Stop = fn(&str);

/// The actor.
pub struct Log {
    log: SegmentLog,
    directory: Directory,
    buckets: Vec<Addr<Bucket>>,
    archive: Option<Addr<Archive>>,
    records: Records,
    /// What is kept with the next write and what with the next sync, by Bucket.
    waiting: Vec<Waiting>,
    /// Whether a Bucket waits for that sync.
    urgent: bool,
    /// The directory says that everything is synced: nothing is written any more.
    finished: bool,
    /// A log that is longer asks for snapshots of what keeps it from being collected.
    bytes_max: u64,
    counts: Arc<LogCounts>,
    calm: Calm,
    epoch: Instant,
    stop: Stop,
    failpoint: Failpoint,
}

/// What a Bucket's groups asked for, up to which number each, in order.
#[derive(Clone, Debug, Default)]
struct Waiting {
    /// Empty buffers to give back, for the next records: allocated by one thread and freed by the
    /// other, their pages would be cleared by the kernel again and again.
    spares: Vec<Records>,
    written: Vec<(PartitionId, u64)>,
    synced: Vec<(PartitionId, u64)>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.written.is_empty() && self.synced.is_empty()
    }

    fn add(&mut self, partition: PartitionId, number: u64, sync: bool) {
        // A later number stands for the earlier ones too, so behind one that waits for the sync the
        // same partition's others wait with it.
        let waits = |(other, _): &(PartitionId, u64)| *other == partition;
        match sync || self.synced.iter().any(waits) {
            true => self.synced.push((partition, number)),
            false => self.written.push((partition, number)),
        }
    }
}

/// Keep these records.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Append {
    /// Which Bucket asks.
    bucket: usize,
    records: Records,
    /// What its groups asked for, up to which number each, and whether that is to be synced before
    /// it counts as kept.
    numbers: Vec<(PartitionId, u64, bool)>,
    /// Whether anything is to be synced.
    sync: bool,
}

/// What the groups of these partitions asked for, up to these numbers, is kept.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Persisted {
    /// Each partition once.
    pub numbers: Vec<(PartitionId, u64)>,
    /// Empty buffers, for the next records.
    pub spares: Vec<Records>,
}

/// The node's Buckets and its Archive.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Vec<Addr<Bucket>>, pub Option<Addr<Archive>>);

/// The node is ready for the cluster's formation. The answer comes once that is durable; no: the node
/// has to stop.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Ready;

/// The cluster is formed: from now on a majority starts without waiting for everybody. The answer
/// comes once that is durable, for who acknowledges anything before would be taken for a new node;
/// no: the node has to stop.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Formed;

/// The cluster was formed before, and what this node acknowledged is lost: its replicas are of the
/// generation that is the answer; none: the node has to stop.
#[derive(Message)]
#[rtype(result = "Option<u32>")]
pub struct BeginAnew {
    /// The wall clock's.
    pub second: u64,
    /// The latest generation that other nodes have seen.
    pub seen: u32,
}

/// This was seen of another node. What comes of it is logged by a later message.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Seen(pub NodeId, pub LastSeen);

/// A node has seen this one in a later life. The answer is the life that it goes on in; none: the
/// node has to stop.
#[derive(Message)]
#[rtype(result = "Option<Incarnation>")]
pub struct Outlived(pub NodeId, pub LastSeen);

/// The suspicion of these partitions is settled. The answer are the generations of those that are
/// replaced; none: the node has to stop.
#[derive(Message)]
#[rtype(result = "Option<Vec<(PartitionId, u32)>>")]
pub struct Settle {
    /// The node comes back as another replica of these.
    pub replaced: Vec<PartitionId>,
    /// It goes on as the replica that it was of these.
    pub trusted: Vec<PartitionId>,
    /// The wall clock's.
    pub second: u64,
}

/// Write everything, and note that the node stops cleanly.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish;

impl Log {
    /// The log and the directory around it, as they were opened. Once it is longer than
    /// `bytes_max`, it asks for a snapshot of the partition that needs most of its beginning.
    pub fn new(
        log: SegmentLog,
        directory: Directory,
        bytes_max: u64,
        counts: Arc<LogCounts>,
        stop: Stop,
        failpoint: Failpoint,
    ) -> Log {
        let (buckets, waiting) = (Vec::new(), Vec::new());
        let records = Records::default();
        let urgent = false;
        Log {
            log,
            directory,
            buckets,
            archive: None,
            records,
            waiting,
            urgent,
            finished: false,
            bytes_max,
            counts,
            calm: Calm::default(),
            epoch: Instant::now(),
            stop,
            failpoint,
        }
    }

    /// Tells what was counted.
    fn count(&self) {
        let usage = self.log.usage();
        let LogCounts { segments, length, written, syncs, batches, bytes, copied } = &*self.counts;
        segments.store(usage.segments as u64, Ordering::Relaxed);
        length.store(usage.bytes, Ordering::Relaxed);
        written.store(usage.written, Ordering::Relaxed);
        syncs.store(usage.syncs, Ordering::Relaxed);
        batches.store(usage.batches, Ordering::Relaxed);
        bytes.store(usage.appended, Ordering::Relaxed);
        copied.store(usage.copied, Ordering::Relaxed);
    }

    /// One write and one sync for all that has come, and word of it to all who asked.
    fn flush(&mut self) {
        if self.records.is_empty() && self.waiting.iter().all(Waiting::is_empty) {
            return;
        }
        if let Err(error) = self.log.write(&self.records).and_then(|()| self.note_segment()) {
            return (self.stop)(&error.to_string());
        }
        self.records.clear();
        self.tell(|waiting| &mut waiting.written);
        if std::mem::take(&mut self.urgent) {
            self.failpoint.pass(|| Some(Point::LogWritten));
            if let Err(error) = self.log.sync() {
                return (self.stop)(&error.to_string());
            }
            self.failpoint.pass(|| Some(Point::LogSynced));
        }
        self.count();
        self.tell(|waiting| &mut waiting.synced);
    }

    /// Has the directory know the segment that is written to, before anything in it counts.
    fn note_segment(&mut self) -> Result<()> {
        let newest = self.log.newest();
        match newest == self.directory.segment() {
            true => Ok(()),
            false => self.directory.mark_segment(newest),
        }
    }

    /// Tells the Buckets what is kept now.
    fn tell(&mut self, kept: fn(&mut Waiting) -> &mut Vec<(PartitionId, u64)>) {
        for (bucket, waiting) in self.buckets.iter().zip(&mut self.waiting) {
            let numbers = std::mem::take(kept(waiting));
            if !numbers.is_empty() {
                let spares = std::mem::take(&mut waiting.spares);
                bucket.do_send(Persisted { numbers, spares });
            }
        }
    }

    /// Drops the oldest segment if no group needs it, else has a snapshot made of those that do once
    /// the log is too long.
    fn collect(&mut self, ctx: &mut Context<Self>) {
        if self.finished {
            return;
        }
        let noted =
            self.log.collect().and_then(|collected| self.note_segment().map(|()| collected));
        let collected = match noted {
            Ok(collected) => collected,
            Err(error) => return (self.stop)(&error.to_string()),
        };
        let is_long = self.log.usage().written > self.bytes_max;
        if let Some((holder, _)) = collected.held_by.first()
            && is_long
        {
            let snapshot = bucket::Snapshot(*holder);
            self.buckets.iter().for_each(|bucket| bucket.do_send(snapshot));
        }
        if let Some(archive) = &self.archive {
            archive.do_send(archive::Collected { left: collected.left, is_long });
        }
        self.count();
        let mono = self.epoch.elapsed().as_millis() as u64;
        let busy = |log: &Log| log.log.usage().batches;
        if self.calm.is_due(mono, false) && self.calm.look(mono, busy(self), false) {
            memory::give_back();
        }
        let pause = if collected.dropped { DROP_EVERY } else { COLLECT_EVERY };
        ctx.run_later(pause, Log::collect);
    }

    fn sync(&mut self) {
        self.flush();
        if let Err(error) = self.log.sync() {
            (self.stop)(&error.to_string());
        }
        self.count();
    }
}

impl Actor for Log {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.count();
        ctx.run_interval(SYNC_EVERY, |log, _| log.sync());
        ctx.run_later(COLLECT_EVERY, Log::collect);
        ctx.spawn(Drained);
    }
}

/// Polled by the context once the mailbox is empty.
struct Drained;

impl ActorFuture<Log> for Drained {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        log: &mut Log,
        _: &mut Context<Log>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<()> {
        log.flush();
        Poll::Pending
    }
}

impl Handler<Append> for Log {
    type Result = ();

    fn handle(&mut self, append: Append, _: &mut Context<Self>) {
        if self.finished {
            return;
        }
        let Append { bucket, mut records, numbers, sync } = append;
        if self.records.bytes() + records.bytes() > RECORDS_BYTES_MAX {
            self.flush();
        }
        if self.records.is_empty() {
            std::mem::swap(&mut self.records, &mut records);
        } else {
            self.records.append(&records);
            records.clear();
        }
        self.urgent |= sync;
        if let Some(waiting) = self.waiting.get_mut(bucket) {
            if waiting.spares.len() < SPARES_MAX {
                waiting.spares.push(records);
            }
            numbers.into_iter().for_each(|(id, number, sync)| waiting.add(id, number, sync));
        }
    }
}

impl Handler<Wire> for Log {
    type Result = ();

    fn handle(&mut self, Wire(buckets, archive): Wire, _: &mut Context<Self>) {
        self.waiting = vec![Waiting::default(); buckets.len()];
        (self.buckets, self.archive) = (buckets, archive);
    }
}

impl Handler<Ready> for Log {
    type Result = bool;

    fn handle(&mut self, _: Ready, _: &mut Context<Self>) -> bool {
        let marked = self.directory.mark_ready();
        marked.map_err(|error| (self.stop)(&error.to_string())).is_ok()
    }
}

impl Handler<Formed> for Log {
    type Result = bool;

    fn handle(&mut self, _: Formed, _: &mut Context<Self>) -> bool {
        let marked = self.directory.mark_formed();
        marked.map_err(|error| (self.stop)(&error.to_string())).is_ok()
    }
}

impl Handler<BeginAnew> for Log {
    type Result = MessageResult<BeginAnew>;

    fn handle(&mut self, anew: BeginAnew, _: &mut Context<Self>) -> Self::Result {
        let generation = self.directory.begin_anew(anew.second, anew.seen);
        MessageResult(generation.map_err(|error| (self.stop)(&error.to_string())).ok())
    }
}

impl Handler<Seen> for Log {
    type Result = ();

    fn handle(&mut self, Seen(node, seen): Seen, _: &mut Context<Self>) {
        match self.directory.mark_seen(node, seen) {
            Ok(()) => {}
            // Whether the log has room for what comes of it shows when it is written.
            Err(error @ Error::Full(_)) => log::warn!(target: "log", "node {node}: {error}"),
            Err(error) => (self.stop)(&error.to_string()),
        }
    }
}

impl Handler<Outlived> for Log {
    type Result = MessageResult<Outlived>;

    fn handle(&mut self, Outlived(by, seen): Outlived, _: &mut Context<Self>) -> Self::Result {
        let life = self.directory.outlived(by, seen);
        MessageResult(life.map_err(|error| (self.stop)(&error.to_string())).ok())
    }
}

impl Handler<Settle> for Log {
    type Result = MessageResult<Settle>;

    fn handle(&mut self, settle: Settle, _: &mut Context<Self>) -> Self::Result {
        let Settle { replaced, trusted, second } = settle;
        let settled = self.directory.settle(&replaced, &trusted, second);
        let settled = settled.map_err(|error| (self.stop)(&error.to_string())).ok();
        let generation = |id| (id, self.directory.replica_of(id));
        MessageResult(settled.map(|()| replaced.into_iter().map(generation).collect()))
    }
}

impl Handler<Finish> for Log {
    type Result = ();

    fn handle(&mut self, _: Finish, _: &mut Context<Self>) {
        self.flush();
        // What comes from now on is neither written nor acknowledged.
        self.finished = true;
        let finished = self.log.finish().and_then(|()| self.note_segment());
        if let Err(error) = finished.and_then(|()| self.directory.mark_clean()) {
            log::error!(target: "log", "not stopped cleanly: {error}");
        }
    }
}

/// A Bucket's way to the log.
#[derive(Debug)]
pub struct Link {
    log: Addr<Log>,
    bucket: usize,
    /// What an acknowledged write of each partition has survived.
    durability: Vec<Durability>,
    /// Empty buffers that the log has given back.
    spares: Vec<Records>,
    stop: Stop,
}

impl Link {
    /// The way to `log` for the Bucket of this number.
    pub fn new(log: Addr<Log>, bucket: usize, durability: Vec<Durability>, stop: Stop) -> Link {
        Link { log, bucket, durability, spares: Vec::new(), stop }
    }

    /// Keeps buffers for the next records.
    pub fn recycle(&mut self, spares: Vec<Records>) {
        let room = SPARES_MAX.saturating_sub(self.spares.len());
        self.spares.extend(spares.into_iter().take(room));
    }

    /// Hands over what the groups must keep, in messages of a bounded length.
    pub fn append(&mut self, persists: &mut Vec<(PartitionId, Persist)>) {
        let bytes = |persist: &Persist| {
            let entries = persist.entries.iter();
            entries.map(|entry| entry.head.len() + entry.data.len()).sum::<usize>()
        };
        let mut left = persists.drain(..).peekable();
        while left.peek().is_some() {
            let (mut taken, mut length) = (SmallVec::<[_; 4]>::new(), 0);
            while length < RECORDS_BYTES_MAX
                && let Some((partition, persist)) = left.next()
            {
                length += bytes(&persist);
                taken.push((partition, persist));
            }
            self.hand_over(&taken, length);
        }
    }

    /// Hands over what these groups must keep, with entries of so many bytes.
    fn hand_over(&mut self, persists: &[(PartitionId, Persist)], bytes: usize) {
        let mut records = self.spares.pop().unwrap_or_default();
        let count = persists.iter().map(|(_, persist)| persist.entries.len()).sum();
        records.reserve((count, bytes));
        let mut numbers: Vec<(PartitionId, u64, bool)> = Vec::with_capacity(persists.len());
        for (partition, persist) in persists {
            let partition = *partition;
            let mut sync = false;
            if let Some(snapshot) = &persist.snapshot {
                records.reset(partition, snapshot.meta.index);
                sync = true;
            }
            if let Some(state) = &persist.state {
                records.state(partition, state);
                sync = true;
            }
            for entry in &persist.entries {
                records.entry(partition, entry.index, &[&entry.head[..], &entry.data]);
            }
            let relaxed = self.durability.get(partition.index()) == Some(&Durability::Interval);
            sync |= persist.entries.iter().any(|entry| !relaxed || must_sync(&entry.data));
            match numbers.last_mut() {
                Some((last, number, synced)) if *last == partition => {
                    *number = persist.number;
                    *synced |= sync;
                }
                _ => numbers.push((partition, persist.number, sync)),
            }
        }
        let sync = numbers.iter().any(|(_, _, sync)| *sync);
        self.log.do_send(Append { bucket: self.bucket, records, numbers, sync });
    }

    /// Notes that durable snapshots hold everything up to these entries. No actor waits for it.
    pub fn cover(&self, covered: &mut Vec<(PartitionId, u64)>) {
        if covered.is_empty() {
            return;
        }
        let mut records = Records::default();
        covered.drain(..).for_each(|(partition, index)| records.covered(partition, index));
        let append = Append { bucket: self.bucket, records, numbers: Vec::new(), sync: false };
        self.log.do_send(append);
    }

    /// Stops the node.
    pub fn stop(&self, why: &str) {
        (self.stop)(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Millis;
    use crate::storage::{Identity, Options, RealDisk};

    #[test]
    fn nothing_is_written_or_acknowledged_once_the_directory_is_clean() {
        let dir = tempfile::tempdir().expect("a directory");
        let owner = Identity { cluster: "test".into(), node: NodeId(1) };
        let mut directory =
            Directory::open(RealDisk, &dir.path().join("node-1"), owner.clone(), &[])
                .expect("a directory");
        let options =
            Options { segment_bytes: 1 << 20, step_bytes: 1 << 20, ..Options::new(owner) };
        let (log, _) = SegmentLog::open(RealDisk, &directory.log_dir(), options).expect("a log");
        directory.mark_running("boot", Millis(1), []).expect("marked");
        let stop: Stop = |why| panic!("{why}");
        let mut log =
            Log::new(log, directory, u64::MAX, Arc::default(), stop, Failpoint::default());
        log.waiting = vec![Waiting::default()];
        let mut ctx = Context::new();
        let append = |number| {
            let mut records = Records::default();
            records.entry(PartitionId(1), number, &[b"x"]);
            Append {
                bucket: 0,
                records,
                numbers: vec![(PartitionId(1), number, false)],
                sync: false,
            }
        };
        log.handle(append(1), &mut ctx);
        log.flush();
        let before = log.log.usage().batches;
        log.handle(append(2), &mut ctx);
        log.handle(Finish, &mut ctx);
        let finished = log.log.usage().batches;
        assert_eq!(finished, before + 2, "what had come, and the word that all is synced");
        // No actor is there to be told.
        let asked = log.waiting[0].written.len();
        log.handle(append(3), &mut ctx);
        assert!(log.records.is_empty() && log.waiting[0].written.len() == asked);
        log.sync();
        assert_eq!(log.log.usage().batches, finished);
    }

    #[test]
    fn nothing_counts_before_what_its_partition_asked_for_earlier() {
        let mut waiting = Waiting::default();
        for (partition, number, sync) in
            [(1, 1, false), (2, 1, true), (1, 2, false), (2, 2, false), (1, 3, true), (1, 4, false)]
        {
            waiting.add(PartitionId(partition), number, sync);
        }
        let of = |numbers: &[(PartitionId, u64)]| -> Vec<(u16, u64)> {
            numbers.iter().map(|(partition, number)| (partition.0, *number)).collect()
        };
        assert_eq!(of(&waiting.written), [(1, 1), (1, 2)]);
        assert_eq!(of(&waiting.synced), [(2, 1), (2, 2), (1, 3), (1, 4)]);
    }
}
