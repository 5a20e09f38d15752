//! The Archive: the snapshots of a node, on an arbiter of its own.
//!
//! It writes what the partitions copy of themselves, one partition at a time, and streams what it
//! has to nodes whose replicas are too far behind ([`transfer`]). No actor waits for it: a Bucket
//! copies as fast as pieces are written, and goes on serving in between.
//!
//! What others wait for is what it uses: the processors, and the disk behind which the log's syncs
//! queue. So it rests after each piece, longer than the piece took ([`Pace`]): a busy disk or a busy
//! machine makes it slower of itself. While the log is too long it does not rest.

mod transfer;

use crate::actors::book::Book;
use crate::actors::bucket::{self, Bucket};
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::log::Stop;
use crate::command::Redis;
use crate::error::{Error, Result};
use crate::ids::PartitionId;
use crate::memory;
use crate::partition::snapshots::{FromArchive, ToArchive};
use crate::storage::log::remove_dropped;
use crate::storage::snapshot::CHUNK_BYTES_MAX;
use crate::storage::{RealDisk, SnapshotWriter, Snapshots};
use crate::store::tables::KeyHasher;
use actix::{Actor, AsyncContext, Context, Handler, Message};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
pub use transfer::Carried;
use transfer::Transfers;

/// The actor.
pub struct Archive {
    snapshots: Snapshots,
    hasher: KeyHasher,
    stop: Stop,
    book: Option<Arc<Book>>,
    /// Partitions whose turn comes, in the order in which they asked.
    due: VecDeque<PartitionId>,
    /// Whose turn it is.
    turn: Option<Turn>,
    pace: Pace,
    transfers: Transfers,
    failpoint: Failpoint,
}

/// How the archive keeps to its part of the machine.
#[derive(Debug)]
struct Pace {
    /// Until then it rests.
    free: Instant,
    /// There is no time to rest.
    hurries: bool,
}

impl Pace {
    /// Has the archive rest for the work that it began then and has just done. Tells for how long it
    /// does from now on.
    fn rest(&mut self, begun: Instant) -> Duration {
        let now = Instant::now();
        self.free = self.free.max(now);
        if !self.hurries {
            self.free += ((now - begun) * REST).min(REST_MAX);
        }
        self.free - now
    }
}

/// A snapshot that is being made.
struct Turn {
    partition: PartitionId,
    begun: Instant,
    /// None before its Bucket began, and after a piece could not be written.
    writer: Option<SnapshotWriter>,
    index: u64,
}

/// The address book is ready.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Arc<Book>);

/// The node's Log has looked at its oldest segment.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Collected {
    /// A file that it has no use for: to be removed.
    pub left: Option<PathBuf>,
    /// Whether the log is longer than it should be, so that snapshots are urgent.
    pub is_long: bool,
}

/// A partition of this node asks.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ordered(pub PartitionId, pub ToArchive);

/// How often transfers that go nowhere are looked at.
const TICK: Duration = Duration::from_secs(1);

/// The archive rests so many times as long as it has worked on snapshots.
const REST: u32 = 3;

/// It rests no longer than this for a single piece of work.
const REST_MAX: Duration = Duration::from_millis(200);

impl Archive {
    /// An archive of these snapshots.
    pub fn new(
        snapshots: Snapshots,
        hasher: KeyHasher,
        stop: Stop,
        failpoint: Failpoint,
    ) -> Archive {
        Archive {
            snapshots,
            hasher,
            stop,
            book: None,
            due: VecDeque::new(),
            turn: None,
            pace: Pace { free: Instant::now(), hurries: false },
            transfers: Transfers::default(),
            failpoint,
        }
    }

    fn tell(&self, partition: PartitionId, news: FromArchive<Redis>) {
        let bucket = |book: &Arc<Book>| {
            let placed = book.placed.get(partition.index()).copied().flatten()?;
            book.buckets.get(placed).cloned()
        };
        if let Some(bucket) = self.book.as_ref().and_then(bucket) {
            let bucket: actix::Addr<Bucket> = bucket;
            bucket.do_send(bucket::Archived(partition, news));
        }
    }

    /// Gives the next partition its turn.
    fn next_turn(&mut self) {
        if self.turn.is_some() {
            return;
        }
        // A replica that is being replaced has nothing to copy.
        let ready = |partition: &PartitionId| !self.transfers.receives(*partition);
        let Some(place) = self.due.iter().position(ready) else { return };
        let Some(partition) = self.due.remove(place) else { return };
        self.turn = Some(Turn { partition, begun: Instant::now(), writer: None, index: 0 });
        self.tell(partition, FromArchive::Begin);
    }

    fn begin(&mut self, partition: PartitionId, index: u64, meta: &[u8]) {
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.partition == partition) else {
            return;
        };
        turn.index = index;
        match self.snapshots.create(partition, index, meta) {
            Ok(writer) => turn.writer = Some(writer),
            Err(error) => self.fail(partition, &error),
        }
    }

    fn write(&mut self, partition: PartitionId, piece: &[u8], ctx: &mut Context<Self>) {
        let begun = Instant::now();
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.partition == partition) else {
            return;
        };
        // What comes after a failure was on its way when it happened.
        let Some(writer) = &mut turn.writer else { return };
        // Almost always one: only a single huge item makes a longer piece.
        let written = piece.chunks(CHUNK_BYTES_MAX).try_for_each(|chunk| writer.append(chunk));
        match written {
            Ok(()) => {
                let rest = self.pace.rest(begun);
                ctx.run_later(rest, move |archive, _| {
                    // If it was given up meanwhile, what comes of the word is one piece more ahead.
                    archive.tell(partition, FromArchive::Written);
                });
            }
            Err(error) => self.fail(partition, &error),
        }
    }

    fn finish(&mut self, partition: PartitionId, ctx: &mut Context<Self>) {
        let began = Instant::now();
        if self.turn.as_ref().is_none_or(|turn| turn.partition != partition) {
            return;
        }
        let Some(Turn { writer: Some(writer), begun, index, .. }) = self.turn.take() else {
            return self.next_turn();
        };
        let named = writer.seal().and_then(|sealed| {
            self.failpoint.pass(|| Some(Point::SnapshotWritten));
            sealed.name()
        });
        match named {
            Ok(snapshot) => {
                self.failpoint.pass(|| Some(Point::SnapshotNamed));
                self.tell(partition, FromArchive::Durable { bytes: snapshot.bytes });
                self.remove_older(partition, index);
                let (bytes, ms) = (snapshot.bytes, begun.elapsed().as_millis());
                log::info!(
                    target: "archive",
                    "snapshot of partition {partition} at entry {index}: {bytes} bytes in {ms} ms"
                );
            }
            Err(error) => self.fail(partition, &error),
        }
        memory::give_back();
        ctx.run_later(self.pace.rest(began), |archive, _| archive.next_turn());
    }

    fn remove_older(&self, partition: PartitionId, index: u64) {
        if let Err(error) = self.snapshots.remove_older(partition, index) {
            // They are looked for again after the next snapshot.
            log::warn!(target: "archive", "an old snapshot of partition {partition} stays: {error}");
        }
    }

    /// Gives up the snapshot being made. A disk that is full may have room again; one that fails
    /// otherwise is not trusted with anything more.
    fn fail(&mut self, partition: PartitionId, error: &Error) {
        self.judge(error);
        log::warn!(target: "archive", "no snapshot of partition {partition}: {error}");
        self.abandon(partition);
        self.tell(partition, FromArchive::Failed);
    }

    /// Stops the node after errors that say that its disk cannot be trusted.
    fn judge(&self, error: &Error) {
        if !matches!(error, Error::Full(_)) {
            (self.stop)(&error.to_string());
        }
    }

    fn abandon(&mut self, partition: PartitionId) {
        self.due.retain(|due| *due != partition);
        if let Some(turn) = self.turn.take_if(|turn| turn.partition == partition)
            && let Some(Err(error)) = turn.writer.map(SnapshotWriter::abandon)
        {
            // It is removed at the next start.
            log::debug!(target: "archive", "an unfinished snapshot stays: {error}");
        }
        self.next_turn();
    }
}

impl Actor for Archive {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |archive, _| {
            archive.look_after_transfers();
            archive.next_turn();
        });
    }
}

impl Handler<Wire> for Archive {
    type Result = ();

    fn handle(&mut self, Wire(book): Wire, _: &mut Context<Self>) {
        self.book = Some(book);
    }
}

impl Handler<Collected> for Archive {
    type Result = ();

    fn handle(&mut self, collected: Collected, _: &mut Context<Self>) {
        let begun = Instant::now();
        self.pace.hurries = collected.is_long;
        if let Some(left) = collected.left {
            // What stays is removed at the next start.
            tell_error("a dropped segment of the log stays", remove_dropped(&RealDisk, &left));
            self.pace.rest(begun);
        }
    }
}

impl Handler<Ordered> for Archive {
    type Result = ();

    fn handle(&mut self, Ordered(partition, order): Ordered, ctx: &mut Context<Self>) {
        match order {
            ToArchive::Due => {
                if !self.due.contains(&partition) {
                    self.due.push_back(partition);
                }
                self.next_turn();
            }
            ToArchive::Begin { index, meta } => self.begin(partition, index, &meta),
            ToArchive::Piece(piece) => self.write(partition, &piece, ctx),
            ToArchive::End => self.finish(partition, ctx),
            ToArchive::Abandon => self.abandon(partition),
            ToArchive::Send(outgoing) => self.send(partition, outgoing),
        }
    }
}

/// Lets an outcome pass for which nothing is to be done but to say so.
fn tell_error<T>(what: &str, outcome: Result<T>) -> Option<T> {
    outcome.inspect_err(|error| log::warn!(target: "archive", "{what}: {error}")).ok()
}
