//! What a group wants done.

use super::{Change, Confirmation, LogHead, Members, ReplicaId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The bytes of a logged state: term and vote.
pub const STATE_BYTES: usize = 16;

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The last entry it contains.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The configuration at that entry.
    pub members: Members,
}

impl SnapshotMeta {
    /// As bytes, for callers that keep it and need not understand it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.index.to_le_bytes());
        bytes.extend_from_slice(&self.term.to_le_bytes());
        self.members.write(&mut bytes);
        bytes
    }

    /// Reads what [`SnapshotMeta::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<SnapshotMeta> {
        let (index, rest) = bytes.split_first_chunk::<8>()?;
        let (term, rest) = rest.split_first_chunk::<8>()?;
        let members = Members::read(rest)?;
        let (index, term) = (u64::from_le_bytes(*index), u64::from_le_bytes(*term));
        Some(SnapshotMeta { index, term, members })
    }
}

/// A message for a peer: its bytes go into [`Group::step`](super::Group::step) there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The receiver.
    pub to: ReplicaId,
    /// What it says.
    pub bytes: Bytes,
}

/// What is to be made durable, and then told to [`Group::persisted`](super::Group::persisted): in the
/// order given, and with one sync for as many as have come together.
#[derive(Clone, Debug)]
pub struct Persist {
    /// Counts upwards, with gaps.
    pub number: u64,
    /// The replica's whole state is replaced by this snapshot, its log starts anew behind it. The
    /// bulk arrived before the message that led here: install it before anything that follows.
    pub snapshot: Option<Incoming>,
    /// Term and vote, when they changed.
    pub state: Option<[u8; STATE_BYTES]>,
    /// Entries. One whose index is in the log already replaces it and all that follow it.
    pub entries: Vec<Logged>,
}

/// An entry as it is logged: the payload is `head` followed by `data`.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its place in the log.
    pub index: u64,
    /// What consensus must know to take it back.
    pub head: LogHead,
    /// What was proposed.
    pub data: Bytes,
}

/// A snapshot that replaces a replica's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What it says about itself.
    pub meta: SnapshotMeta,
    /// Its name, given when it was offered.
    pub token: Bytes,
}

/// A snapshot to stream to a follower.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The follower.
    pub to: ReplicaId,
    /// The index of the snapshot that was on offer.
    pub index: u64,
    /// Its token.
    pub token: Bytes,
    /// The message to step there once the bulk has arrived. If it never does,
    /// [`Group::report_snapshot`](super::Group::report_snapshot) lets the group try again.
    pub message: Bytes,
}

/// An entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// The term of the leader that appended it.
    pub term: u64,
    /// What was proposed; empty for the group's own entries, at which there is nothing to apply but
    /// the index.
    pub data: Bytes,
}

/// What is to be done. Kept and cleared by the caller, so that its buffers are used again.
#[derive(Debug, Default)]
pub struct Output {
    /// To send now, in this order for each receiver.
    pub messages: Vec<Envelope>,
    /// To make durable.
    pub persist: Vec<Persist>,
    /// To apply, in order.
    pub committed: Vec<Committed>,
    /// Reads that hold this ticket or an earlier one may be answered.
    pub confirmed: Option<Confirmation>,
    /// The leader, when that changed. Tickets of before are void.
    pub changed: Option<Change>,
    /// The configuration, when it changed.
    pub members: Option<Members>,
    /// Snapshots to stream.
    pub snapshots: Vec<Outgoing>,
    /// Replicas that need a snapshot newer than the one on offer, if any was.
    pub wants_snapshot: Vec<ReplicaId>,
}

impl Output {
    /// Empties it, and keeps the buffers.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.persist.clear();
        self.committed.clear();
        self.confirmed = None;
        self.changed = None;
        self.members = None;
        self.snapshots.clear();
        self.wants_snapshot.clear();
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.persist.is_empty()
            && self.committed.is_empty()
            && self.confirmed.is_none()
            && self.changed.is_none()
            && self.members.is_none()
            && self.snapshots.is_empty()
            && self.wants_snapshot.is_empty()
    }
}
