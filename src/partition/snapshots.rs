//! A replicated partition's snapshots: made while it serves, offered to followers that need one,
//! installed when it is the follower.
//!
//! The node's archive has the files and says whose turn it is, for one snapshot is made at a time.
//! In between the two go orders ([`ToArchive`]) and news ([`FromArchive`]):
//!
//! ```text
//!  here      ── Due ──▶                     ── Begin, Piece, Piece ──▶      ── End ──▶
//!  archive              ◀── Begin (turn) ──         ◀── Written, .. ──                ◀── Durable
//! ```
//!
//! A piece is copied for each one that was written, so a request to the partition waits for one
//! piece at most, and what is copied and not yet written is bounded. Once the snapshot is durable
//! the log behind it may go, in memory and on disk.

use super::Partition;
use super::journal::{OpOutcome, Turn, lose};
use crate::batch::machine::Machine;
use crate::consensus::{Incoming, Outgoing, ReplicaId, SnapshotMeta};
use crate::ids::Now;
use crate::partition::replica::Replica;
use bytes::Bytes;

/// Bytes of one piece, more or less: copied in a fraction of a millisecond.
pub const PIECE_BYTES: usize = 256 << 10;

/// Pieces that are copied and not written.
pub const PIECES_MAX: u32 = 3;

/// A snapshot is worth making once the log behind it has this part of the last one's length, however
/// little log is allowed: a large partition is not written anew for every small change.
const WORTH_PART: u64 = 4;

/// A log that weighs so many times what is alive, and so many bytes at least, is not worth keeping
/// however much log is allowed: a snapshot is made, no more often than this.
const IDLE_LOG_PART: u64 = 4;
const IDLE_LOG_MIN: u64 = 1 << 20;
const IDLE_LOG_EVERY_MS: u64 = 15_000;

/// What an entry takes beside its bytes, in memory as on disk.
const ENTRY_OVERHEAD: u64 = 48;

/// After a snapshot that could not be written, the next one waits for so long.
const RETRY_AFTER_MS: u64 = 10_000;

/// What a partition asks of its node's archive.
#[derive(Debug)]
pub enum ToArchive {
    /// A snapshot is due. [`FromArchive::Begin`] says when it is its turn.
    Due,
    /// The snapshot begins.
    Begin {
        /// The last entry it holds.
        index: u64,
        /// What it says about itself ([`SnapshotMeta::to_bytes`]).
        meta: Vec<u8>,
    },
    /// Its next piece, to be answered by [`FromArchive::Written`].
    Piece(Vec<u8>),
    /// It is complete, to be answered by [`FromArchive::Durable`].
    End,
    /// It is given up, or there is nothing to begin.
    Abandon,
    /// Stream a snapshot to a follower, to be answered by [`FromArchive::Sent`].
    Send(Outgoing),
}

/// What a partition hears of its node's archive.
#[derive(Debug)]
pub enum FromArchive<M> {
    /// It is the partition's turn to make a snapshot.
    Begin,
    /// A piece is written.
    Written,
    /// The snapshot survives a power cut.
    Durable {
        /// The length of its file.
        bytes: u64,
    },
    /// It could not be written.
    Failed,
    /// A snapshot has reached a follower, or will not.
    Sent {
        /// The follower.
        to: ReplicaId,
        /// Whether it has.
        arrived: bool,
    },
    /// A snapshot has come from the leader and is durable here.
    Arrived(Box<Arrived<M>>),
}

/// A snapshot from the leader.
#[derive(Debug)]
pub struct Arrived<M> {
    /// What it says about itself.
    pub meta: SnapshotMeta,
    /// The replica made of it.
    pub replica: Replica<M>,
    /// The leader's message that goes with it.
    pub message: Bytes,
    /// The length of its file.
    pub bytes: u64,
}

/// A snapshot that is being made.
#[derive(Debug)]
struct Making {
    meta: SnapshotMeta,
    /// Pieces that are not written yet.
    unwritten: u32,
    /// All of it is copied.
    copied: bool,
    /// The log since the last snapshot, when this one began.
    since: u64,
}

/// What a partition knows of its snapshots.
#[derive(Debug)]
pub(super) struct Snapshots<M> {
    /// Bytes of log applied since the last snapshot.
    since: u64,
    /// The length of the last snapshot.
    bytes: u64,
    /// The archive was asked for a turn.
    asked: bool,
    /// None is made before.
    not_before: u64,
    /// When the last one was made, or its failure told.
    made: u64,
    making: Option<Making>,
    /// What has come and is not installed.
    arrived: Option<Box<Arrived<M>>>,
}

impl<M> Default for Snapshots<M> {
    fn default() -> Snapshots<M> {
        Snapshots {
            since: 0,
            bytes: 0,
            asked: false,
            not_before: 0,
            made: 0,
            making: None,
            arrived: None,
        }
    }
}

impl<M> Snapshots<M> {
    /// An entry of so many bytes was applied.
    pub(super) fn applied(&mut self, bytes: usize) {
        self.since += bytes as u64 + ENTRY_OVERHEAD;
    }
}

/// A snapshot's name between the group and the archive.
fn token(meta: &SnapshotMeta) -> Bytes {
    Bytes::copy_from_slice(&meta.index.to_le_bytes())
}

impl<M: Machine> Partition<M> {
    /// The partition was recovered from this snapshot, of so many bytes, and its log.
    pub fn recovered_from(&mut self, meta: SnapshotMeta, bytes: u64) {
        self.snapshots.bytes = bytes;
        if let Some(journal) = &mut self.journal {
            let token = token(&meta);
            journal.group_mut().offer_snapshot(meta, token);
        }
    }

    /// Bytes of log that a restart would have to apply, as far as they are applied now.
    pub fn log_since_snapshot(&self) -> u64 {
        self.snapshots.since
    }

    /// Whether the log has grown by so many bytes, or by as many as are worth a snapshot, since the
    /// last one; or is little but history. Where memory is scarce history does not wait.
    pub fn snapshot_is_due(&self, after: u64, mono: u64, scarce: bool) -> bool {
        let worth = self.snapshots.bytes / WORTH_PART;
        self.journal.is_some()
            && (self.snapshots.since >= after.max(worth).max(1)
                || self.log_is_history(mono, scarce))
            && self.snapshots.not_before <= mono
    }

    /// Whether the log since the last snapshot is much longer than what is alive, and has been left
    /// alone for long enough.
    fn log_is_history(&self, mono: u64, scarce: bool) -> bool {
        let Snapshots { since, made, .. } = self.snapshots;
        since >= IDLE_LOG_MIN
            && (scarce || mono >= made + IDLE_LOG_EVERY_MS)
            && since / IDLE_LOG_PART >= self.replica.tables().bytes() as u64
    }

    /// Asks for a snapshot, unless one is asked for or being made.
    pub fn ask_for_snapshot(&mut self, orders: &mut Vec<ToArchive>) {
        if self.journal.is_some() && !self.snapshots.asked && self.snapshots.making.is_none() {
            self.snapshots.asked = true;
            orders.push(ToArchive::Due);
        }
    }

    /// Takes the archive's news. A number says that a durable snapshot holds everything up to that
    /// entry, so that the log need not.
    pub fn archived(
        &mut self,
        news: FromArchive<M>,
        now: Now,
        orders: &mut Vec<ToArchive>,
    ) -> Option<u64> {
        match news {
            FromArchive::Begin => self.begin_snapshot(orders),
            FromArchive::Written => {
                if let Some(making) = &mut self.snapshots.making {
                    making.unwritten = making.unwritten.saturating_sub(1);
                }
                self.copy_some(orders);
            }
            FromArchive::Durable { bytes } => return self.snapshot_is_durable(bytes, now.mono),
            FromArchive::Failed => {
                self.replica.abandon_snapshot();
                self.snapshots.making = None;
                self.snapshots.asked = false;
                self.snapshots.not_before = now.mono + RETRY_AFTER_MS;
            }
            FromArchive::Sent { to, arrived } => {
                if let Some(journal) = &mut self.journal {
                    journal.group_mut().report_snapshot(to, arrived);
                }
            }
            FromArchive::Arrived(arrived) => self.snapshot_arrived(arrived, now),
        }
        None
    }

    fn begin_snapshot(&mut self, orders: &mut Vec<ToArchive>) {
        self.snapshots.asked = false;
        let meta = self.journal.as_ref().and_then(|journal| journal.group().snapshot_meta());
        let Some(meta) = meta else { return orders.push(ToArchive::Abandon) };
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        self.replica.begin_snapshot(&mut piece);
        orders.push(ToArchive::Begin { index: meta.index, meta: meta.to_bytes() });
        orders.push(ToArchive::Piece(piece));
        let since = self.snapshots.since;
        self.snapshots.making = Some(Making { meta, unwritten: 1, copied: false, since });
    }

    /// Copies one more piece, unless enough of them wait to be written.
    fn copy_some(&mut self, orders: &mut Vec<ToArchive>) {
        let Some(making) = &mut self.snapshots.making else { return };
        // The first pieces are small: the pipe fills with the first word of them.
        while !making.copied && making.unwritten < PIECES_MAX {
            let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
            making.copied = !self.replica.snapshot_step(&mut piece, PIECE_BYTES);
            if !piece.is_empty() {
                making.unwritten += 1;
                orders.push(ToArchive::Piece(piece));
            }
            if making.copied {
                orders.push(ToArchive::End);
            }
        }
    }

    fn snapshot_is_durable(&mut self, bytes: u64, mono: u64) -> Option<u64> {
        let Making { meta, since, .. } = self.snapshots.making.take()?;
        (self.snapshots.bytes, self.snapshots.made) = (bytes, mono);
        self.snapshots.since = self.snapshots.since.saturating_sub(since);
        let index = meta.index;
        let group = self.journal.as_mut()?.group_mut();
        group.compact(index, bytes);
        // One that says of members what was before is of use to the log alone.
        if meta.members == *group.members() {
            let token = token(&meta);
            group.offer_snapshot(meta, token);
        }
        Some(index)
    }

    /// Gives up the snapshot that is being made.
    fn stop_making(&mut self, orders: &mut Vec<ToArchive>) {
        if self.snapshots.making.take().is_some() {
            self.replica.abandon_snapshot();
            orders.push(ToArchive::Abandon);
        }
    }

    /// Has the group step the leader's message; [`Partition::install`] follows if it agrees.
    fn snapshot_arrived(&mut self, arrived: Box<Arrived<M>>, now: Now) {
        let id = self.id;
        let Some(journal) = &mut self.journal else { return };
        match journal.group_mut().step(&arrived.message, now) {
            Ok(()) => self.snapshots.arrived = Some(arrived),
            Err(why) => log::warn!(target: "raft", "partition {id}: {why}"),
        }
    }

    /// The group goes on from a snapshot that has arrived: so does the replica.
    ///
    /// # Errors
    /// When it has not: the message was stepped alone.
    pub(super) fn install(&mut self, incoming: &Incoming, turn: &mut Turn) -> Result<(), String> {
        let index = incoming.meta.index;
        let arrived = self.snapshots.arrived.take().filter(|arrived| arrived.meta.index == index);
        let Some(arrived) = arrived else {
            return Err(format!("partition {}: snapshot {index} has not arrived", self.id));
        };
        self.stop_making(&mut turn.orders);
        let Arrived { meta, replica, bytes, .. } = *arrived;
        self.replica = replica;
        (self.snapshots.since, self.snapshots.bytes) = (0, bytes);
        log::info!(target: "raft", "partition {} goes on from a snapshot of entry {index}", self.id);
        let Some(journal) = &mut self.journal else { return Ok(()) };
        // Whether entries of an earlier office are in it cannot be told.
        while journal.flights.front().is_some_and(|flight| flight.position.index <= index) {
            let Some(flight) = journal.flights.pop_front() else { break };
            lose(flight.completions, OpOutcome::Unknown, turn);
        }
        let token = token(&meta);
        journal.group_mut().offer_snapshot(meta, token);
        Ok(())
    }

    /// What has arrived and was not installed by now is of no use: the group had got that far by
    /// itself.
    pub(super) fn drop_arrived(&mut self) {
        self.snapshots.arrived = None;
    }
}

#[cfg(test)]
mod tests;
