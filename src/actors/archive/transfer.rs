//! Streaming a snapshot to a node whose replica is too far behind for the log.
//!
//! The receiver pulls: it says from which byte on it wants more, and one piece at a time is on its
//! way to each node, no faster than [`RATE`]. So other packets of the link wait for one piece at
//! most, neither side holds more than that in memory, and after a broken link the receiver says
//! where to go on. Argv may be lost, so the sender offers again what it hears nothing of.
//!
//! ```text
//!  sender    ── Offer ──▶          ── Piece ──▶          ── Piece ──▶
//!  receiver               ◀── Want             ◀── Want               ◀── Ended
//! ```
//!
//! What has come whole is verified, made durable under its name and restored here, beside the
//! Bucket, which goes on serving; the Bucket only exchanges the replica. The snapshot before it stays
//! until then: what cannot be restored is removed, and a restart needs one that can be.

use super::{Archive, tell_error};
use crate::actors::peer::Convey;
use crate::command::Redis;
use crate::consensus::{Outgoing, ReplicaId, SnapshotMeta};
use crate::error::Error;
use crate::ids::{NodeId, PartitionId};
use crate::net::packet::{Packet, Transfer};
use crate::partition::snapshot::Restorer;
use crate::partition::snapshots::{Arrived, FromArchive};
use crate::storage::{Snapshot, SnapshotReader, SnapshotReceiver};
use actix::{AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 << 10;

/// Bytes a second to one node at most: a partition of a gigabyte takes a quarter of a minute, and
/// the link is free most of the time.
const RATE: u64 = 64 << 20;

/// A transfer of which nothing is heard is offered again after this time.
const QUIET: Duration = Duration::from_secs(1);

/// And given up after this time: a node that is back later gets the snapshot of then.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// After a transfer that failed, the next one waits for so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The transfers of a node.
#[derive(Default)]
pub(super) struct Transfers {
    /// By receiver; the first of each is under way.
    sending: BTreeMap<NodeId, VecDeque<Sending>>,
    receiving: BTreeMap<PartitionId, Receiving>,
}

struct Sending {
    to: ReplicaId,
    snapshot: Snapshot,
    message: Bytes,
    reader: SnapshotReader,
    heard: Instant,
    offered: Instant,
    /// When the next piece may leave.
    free: Instant,
}

struct Receiving {
    from: NodeId,
    index: u64,
    bytes: u64,
    message: Bytes,
    heard: Instant,
    stage: Stage,
}

enum Stage {
    Coming(SnapshotReceiver),
    /// All of it is here.
    Restoring {
        reader: SnapshotReader,
        meta: SnapshotMeta,
        restorer: Box<Restorer<Redis>>,
    },
}

/// A word about a transfer has come from another node.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Carried(pub NodeId, pub Transfer);

/// The next piece for this node may leave.
#[derive(Message)]
#[rtype(result = "()")]
struct Release {
    to: NodeId,
    partition: PartitionId,
    index: u64,
    offset: u64,
}

/// Go on restoring.
#[derive(Message)]
#[rtype(result = "()")]
struct Restore(PartitionId);

impl Transfers {
    /// Whether a partition's replica is about to be replaced.
    pub(super) fn receives(&self, partition: PartitionId) -> bool {
        self.receiving.contains_key(&partition)
    }

    /// What is under way to a node, if it is this.
    fn under_way(
        &mut self,
        to: NodeId,
        partition: PartitionId,
        index: u64,
    ) -> Option<&mut Sending> {
        let sending = self.sending.get_mut(&to)?.front_mut()?;
        let it = (sending.snapshot.partition, sending.snapshot.index);
        (it == (partition, index)).then_some(sending)
    }
}

impl Sending {
    fn offer(&mut self) -> Transfer {
        self.offered = Instant::now();
        let Snapshot { partition, index, bytes } = self.snapshot;
        Transfer::Offer { partition, index, bytes, message: ByteBuf::from(self.message.to_vec()) }
    }
}

impl Archive {
    fn convey(&self, to: NodeId, transfer: Transfer) {
        if let Some(peer) = self.book.as_ref().and_then(|book| book.peers.get(&to)) {
            peer.do_send(Convey(Packet::Transfer(transfer)));
        }
    }

    /// Queues a snapshot for a follower; what was queued for the same partition there is obsolete.
    pub(super) fn send(&mut self, partition: PartitionId, outgoing: Outgoing) {
        let Outgoing { to, index, message, .. } = outgoing;
        let latest = self.snapshots.latest(partition);
        let latest = latest.map(|latest| latest.filter(|snapshot| snapshot.index == index));
        let opened = match latest {
            Ok(Some(snapshot)) => self.snapshots.read(&snapshot).map(|read| Some((snapshot, read))),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let (snapshot, reader) = match opened {
            Ok(Some(opened)) => opened,
            outcome => {
                tell_error("a snapshot cannot be sent", outcome);
                self.due.push_back(partition);
                return self.tell(partition, FromArchive::Sent { to, arrived: false });
            }
        };
        let now = Instant::now();
        let sending =
            Sending { to, snapshot, message, reader, heard: now, offered: now, free: now };
        let queue = self.transfers.sending.entry(to.node()).or_default();
        queue.retain(|other| other.snapshot.partition != partition);
        queue.push_back(sending);
        let bytes = snapshot.bytes;
        log::info!(
            target: "archive",
            "node {} needs partition {partition} by snapshot: entry {index}, {bytes} bytes",
            to.node()
        );
        self.offer_next(to.node());
    }

    fn offer_next(&mut self, to: NodeId) {
        let front = self.transfers.sending.get_mut(&to).and_then(VecDeque::front_mut);
        if let Some(sending) = front {
            let offer = sending.offer();
            self.convey(to, offer);
        }
    }

    /// A transfer has ended, however it did.
    fn ended(&mut self, to: NodeId, partition: PartitionId, index: u64, arrived: bool) {
        if self.transfers.under_way(to, partition, index).is_none() {
            return;
        }
        let queue = self.transfers.sending.get_mut(&to);
        let Some(sending) = queue.and_then(VecDeque::pop_front) else { return };
        if !arrived && let Err(error) = sending.reader.verify() {
            // It is not sent again, and no restart should need it.
            log::error!(target: "archive", "partition {partition} is copied anew: {error}");
            self.due.push_back(partition);
        }
        let verdict = if arrived { "has" } else { "does not take" };
        log::info!(target: "archive", "node {to} {verdict} the snapshot of partition {partition}");
        self.tell(partition, FromArchive::Sent { to: sending.to, arrived });
        self.offer_next(to);
    }

    pub(super) fn look_after_transfers(&mut self) {
        let mut offers = Vec::new();
        let mut given_up = Vec::new();
        for (to, queue) in &mut self.transfers.sending {
            let Some(sending) = queue.front_mut() else { continue };
            if sending.heard.elapsed() > GIVE_UP_AFTER {
                given_up.push((*to, sending.snapshot));
            } else if sending.heard.elapsed() > QUIET && sending.offered.elapsed() > QUIET {
                offers.push((*to, sending.offer()));
            }
        }
        offers.into_iter().for_each(|(to, offer)| self.convey(to, offer));
        for (to, Snapshot { partition, index, .. }) in given_up {
            self.ended(to, partition, index, false);
        }
        let gone = |_: &PartitionId, receiving: &mut Receiving| {
            let coming = matches!(receiving.stage, Stage::Coming(_));
            coming && receiving.heard.elapsed() > 2 * GIVE_UP_AFTER
        };
        let gone: Vec<Receiving> =
            self.transfers.receiving.extract_if(.., gone).map(|(_, gone)| gone).collect();
        gone.into_iter().for_each(drop_file);
    }

    fn on_offer(
        &mut self,
        from: NodeId,
        snapshot: Snapshot,
        message: Bytes,
        ctx: &mut Context<Self>,
    ) {
        let Snapshot { partition, index, bytes } = snapshot;
        let placed = |book: &std::sync::Arc<crate::actors::book::Book>| {
            book.placed.get(partition.index()).copied().flatten().is_some()
        };
        if !self.book.as_ref().is_some_and(placed) {
            return self.convey(from, Transfer::Ended { partition, index, arrived: false });
        }
        if self.turn.as_ref().is_some_and(|turn| turn.partition == partition) {
            // It is offered again soon.
            return;
        }
        if let Some(receiving) = self.transfers.receiving.get_mut(&partition) {
            if (receiving.from, receiving.index, receiving.bytes) == (from, index, bytes) {
                receiving.message = message;
                receiving.heard = Instant::now();
                let offset = match &receiving.stage {
                    Stage::Coming(file) => file.offset(),
                    Stage::Restoring { .. } => bytes,
                };
                return self.convey(from, Transfer::Want { partition, index, offset });
            }
            let quiet = receiving.heard.elapsed() > 5 * QUIET;
            let restores = matches!(receiving.stage, Stage::Restoring { .. });
            if restores || index <= receiving.index && !quiet {
                return;
            }
        }
        if let Some(older) = self.transfers.receiving.remove(&partition) {
            drop_file(older);
        }
        let mut receiving = |stage| {
            let heard = Instant::now();
            let receiving =
                Receiving { from, index, bytes, message: message.clone(), heard, stage };
            self.transfers.receiving.insert(partition, receiving);
        };
        // It may have come before, and the word of it was lost.
        if let Ok(Some(here)) = self.snapshots.latest(partition)
            && here == snapshot
        {
            match self
                .snapshots
                .read(&here)
                .and_then(|reader| restoring(reader, partition, self.hasher))
            {
                Ok(stage) => {
                    receiving(stage);
                    ctx.notify(Restore(partition));
                }
                Err(error) => self.unusable(from, snapshot, &error),
            }
            return;
        }
        match self.snapshots.receive(partition, index) {
            Ok(file) => {
                receiving(Stage::Coming(file));
                log::info!(
                    target: "archive",
                    "receiving partition {partition} at entry {index} from node {from}: {bytes} bytes"
                );
                self.convey(from, Transfer::Want { partition, index, offset: 0 });
            }
            Err(error) => self.refuse(from, snapshot, &error),
        }
    }

    /// Says that a snapshot cannot be taken.
    fn refuse(&mut self, from: NodeId, snapshot: Snapshot, error: &Error) {
        let Snapshot { partition, index, .. } = snapshot;
        log::warn!(target: "archive", "partition {partition} from node {from}: {error}");
        if !matches!(error, Error::Corrupt(_)) {
            self.judge(error);
        }
        self.convey(from, Transfer::Ended { partition, index, arrived: false });
        self.next_turn();
    }

    fn on_piece(
        &mut self,
        from: NodeId,
        (partition, index, offset): (PartitionId, u64, u64),
        piece: &[u8],
        ctx: &mut Context<Self>,
    ) {
        let Some(receiving) = self.transfers.receiving.get_mut(&partition) else { return };
        if (receiving.from, receiving.index) != (from, index) {
            return;
        }
        let Stage::Coming(file) = &mut receiving.stage else { return };
        let snapshot = Snapshot { partition, index, bytes: receiving.bytes };
        let offset = match file.append(offset, piece) {
            Ok(true) => file.offset(),
            // Sent twice: what follows it was asked for then.
            Ok(false) => return,
            Err(error) => {
                if let Some(receiving) = self.transfers.receiving.remove(&partition) {
                    drop_file(receiving);
                }
                return self.refuse(from, snapshot, &error);
            }
        };
        receiving.heard = Instant::now();
        if offset < receiving.bytes {
            return self.convey(from, Transfer::Want { partition, index, offset });
        }
        let Some(whole) = self.transfers.receiving.remove(&partition) else { return };
        let Receiving { message, bytes, heard, stage: Stage::Coming(file), .. } = whole else {
            return;
        };
        let here = match file.finish() {
            Ok(here) => here,
            Err(error) => return self.refuse(from, snapshot, &error),
        };
        let reader = self.snapshots.read(&here);
        match reader.and_then(|reader| restoring(reader, partition, self.hasher)) {
            Ok(stage) => {
                let receiving = Receiving { from, index, bytes, message, heard, stage };
                self.transfers.receiving.insert(partition, receiving);
                ctx.notify(Restore(partition));
            }
            Err(error) => self.unusable(from, snapshot, &error),
        }
    }

    /// Restores one chunk more; true once there are no more.
    fn restore_some(&mut self, partition: PartitionId) -> Option<Result<bool, Error>> {
        let receiving = self.transfers.receiving.get_mut(&partition)?;
        let Stage::Restoring { reader, restorer, .. } = &mut receiving.stage else { return None };
        receiving.heard = Instant::now();
        Some(match reader.next_chunk() {
            Ok(None) => Ok(true),
            Ok(Some(chunk)) => {
                let taken = restorer.push(&chunk);
                taken.map(|()| false).map_err(|damaged| reader.damaged(&damaged.to_string()))
            }
            Err(error) => Err(error),
        })
    }

    fn restored(&mut self, partition: PartitionId) {
        let Some(receiving) = self.transfers.receiving.remove(&partition) else { return };
        let Receiving { from, index, bytes, message, stage, .. } = receiving;
        let Stage::Restoring { reader, meta, restorer } = stage else { return };
        match restorer.finish().map_err(|damaged| reader.damaged(&damaged.to_string())) {
            Ok(replica) => {
                self.remove_older(partition, index);
                let arrived = Arrived { meta, replica, message, bytes };
                self.tell(partition, FromArchive::Arrived(Box::new(arrived)));
                self.convey(from, Transfer::Ended { partition, index, arrived: true });
                self.next_turn();
            }
            Err(error) => self.unusable(from, Snapshot { partition, index, bytes }, &error),
        }
    }

    /// What has come is whole and means nothing to this version: a restart must not meet it.
    fn unusable(&mut self, from: NodeId, snapshot: Snapshot, error: &Error) {
        self.transfers.receiving.remove(&snapshot.partition);
        if matches!(error, Error::Corrupt(_))
            && let Err(error) = self.snapshots.remove(&snapshot)
        {
            self.judge(&error);
        }
        self.refuse(from, snapshot, error);
    }
}

fn restoring(
    reader: SnapshotReader,
    partition: PartitionId,
    hasher: crate::store::tables::KeyHasher,
) -> Result<Stage, Error> {
    let meta = SnapshotMeta::from_bytes(reader.meta());
    let meta = meta.ok_or_else(|| reader.damaged("what it says about itself makes no sense"))?;
    let restorer = Box::new(Restorer::new(partition, hasher, reader.snapshot().bytes));
    Ok(Stage::Restoring { reader, meta, restorer })
}

fn drop_file(receiving: Receiving) {
    if let Stage::Coming(file) = receiving.stage {
        // What stays is removed at the next start.
        tell_error("an unfinished snapshot stays", file.abandon());
    }
}

impl Handler<Carried> for Archive {
    type Result = ();

    fn handle(&mut self, Carried(from, transfer): Carried, ctx: &mut Context<Self>) {
        match transfer {
            Transfer::Offer { partition, index, bytes, message } => {
                let snapshot = Snapshot { partition, index, bytes };
                self.on_offer(from, snapshot, message.into_vec().into(), ctx);
            }
            Transfer::Want { partition, index, offset } => {
                let Some(sending) = self.transfers.under_way(from, partition, index) else {
                    return;
                };
                let now = Instant::now();
                sending.heard = now;
                if offset < sending.snapshot.bytes {
                    let wait = sending.free.saturating_duration_since(now);
                    let release = Release { to: from, partition, index, offset };
                    match wait.is_zero() {
                        true => ctx.notify(release),
                        false => drop(ctx.notify_later(release, wait)),
                    }
                }
            }
            Transfer::Piece { partition, index, offset, bytes } => {
                self.on_piece(from, (partition, index, offset), &bytes, ctx);
            }
            Transfer::Ended { partition, index, arrived: true } => {
                self.ended(from, partition, index, true);
            }
            Transfer::Ended { partition, index, arrived: false } => {
                ctx.run_later(RETRY_AFTER, move |archive, _| {
                    archive.ended(from, partition, index, false);
                });
            }
        }
    }
}

impl Handler<Release> for Archive {
    type Result = ();

    fn handle(&mut self, release: Release, _: &mut Context<Self>) {
        let Release { to, partition, index, offset } = release;
        let Some(sending) = self.transfers.under_way(to, partition, index) else { return };
        match sending.reader.read_at(offset, PIECE_BYTES) {
            Ok(piece) => {
                let pause = Duration::from_micros(piece.len() as u64 * 1_000_000 / RATE);
                sending.free = Instant::now() + pause;
                let bytes = ByteBuf::from(piece);
                self.convey(to, Transfer::Piece { partition, index, offset, bytes });
            }
            Err(error) => {
                log::error!(target: "archive", "a snapshot cannot be sent: {error}");
                self.ended(to, partition, index, false);
            }
        }
    }
}

impl Handler<Restore> for Archive {
    type Result = ();

    fn handle(&mut self, Restore(partition): Restore, ctx: &mut Context<Self>) {
        match self.restore_some(partition) {
            None => {}
            Some(Ok(false)) => ctx.notify(Restore(partition)),
            Some(Ok(true)) => self.restored(partition),
            Some(Err(error)) => {
                let Some(receiving) = self.transfers.receiving.get(&partition) else { return };
                let Receiving { from, index, bytes, .. } = *receiving;
                self.unusable(from, Snapshot { partition, index, bytes }, &error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::failpoint::Failpoint;
    use crate::consensus::Members;
    use crate::storage::{RealDisk, Snapshots};
    use crate::store::tables::KeyHasher;

    const P: PartitionId = PartitionId(1);

    fn snapshot(at: &std::path::Path, index: u64, meta: &[u8]) -> (Snapshots, Vec<u8>) {
        let snapshots = Snapshots::open(RealDisk, at).expect("a folder");
        let mut writer = snapshots.create(P, index, meta).expect("a file");
        writer.append(b"no piece of a replica").expect("written");
        let made = writer.finish().expect("a snapshot");
        let reader = snapshots.read(&made).expect("readable");
        let bytes = reader.read_at(0, made.bytes as usize).expect("all of it");
        (snapshots, bytes)
    }

    /// What has come whole and cannot be restored leaves the snapshot before it in its place.
    #[test]
    fn what_cannot_be_restored_replaces_nothing() {
        let meta = SnapshotMeta { index: 9, term: 1, members: Members::default() };
        for meta in [meta.to_bytes(), b"no meta".to_vec()] {
            let [here, there] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
            let (snapshots, _) = snapshot(here.path(), 5, &meta);
            let (_, bytes) = snapshot(there.path(), 9, &meta);
            let hasher = KeyHasher::new(1);
            let stop = |why: &str| panic!("{why}");
            let mut archive = Archive::new(snapshots, hasher, stop, Failpoint::default());
            let receiving = Receiving {
                from: NodeId(2),
                index: 9,
                bytes: bytes.len() as u64,
                message: Bytes::new(),
                heard: Instant::now(),
                stage: Stage::Coming(archive.snapshots.receive(P, 9).expect("a file")),
            };
            archive.transfers.receiving.insert(P, receiving);
            let mut ctx = Context::new();
            archive.on_piece(NodeId(2), (P, 9, 0), &bytes, &mut ctx);
            while archive.transfers.receives(P) {
                archive.handle(Restore(P), &mut ctx);
            }
            let left = archive.snapshots.all().expect("listed");
            let left: Vec<u64> = left.into_iter().map(|snapshot| snapshot.index).collect();
            assert_eq!(left, [5]);
        }
    }
}
