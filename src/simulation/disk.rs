//! Disks: what is on them, what is being synced, and how long that takes.
//!
//! A sync takes all that was written before it began, as a node's log does. What it keeps is told to
//! each Bucket by a message, which may come late like any other.

use super::network::{Actor, Message};
use super::schedule::Rng;
use super::world::{DATA, World};
use crate::consensus::Persist;
use crate::ids::PartitionId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// The longest that a schedule lets a disk hang: longer than any election timeout.
const HANG_MS: usize = 2_500;

/// What a node's disk is asked to keep: by which Bucket, and of which partition's log.
pub(super) type Write = (usize, PartitionId, Persist);

/// What a node's disk holds of a partition's log.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    pub(super) state: Option<Bytes>,
    pub(super) entries: BTreeMap<u64, Bytes>,
}

impl Stored {
    fn keep(&mut self, persist: &Persist) {
        if let Some(state) = &persist.state {
            self.state = Some(Bytes::copy_from_slice(state));
        }
        for entry in &persist.entries {
            self.entries.split_off(&entry.index);
            let payload = [&entry.head[..], &entry.data].concat();
            self.entries.insert(entry.index, payload.into());
        }
    }
}

/// A data node's disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    stored: BTreeMap<PartitionId, Stored>,
    /// Written, and part of the sync under way, which ends then.
    syncing: Option<(u64, Vec<Write>)>,
    /// Written since that began.
    pub(super) unsynced: VecDeque<Write>,
}

impl Disk {
    /// What is kept of a partition's log.
    pub(super) fn stored(&self, id: PartitionId) -> Stored {
        self.stored.get(&id).cloned().unwrap_or_default()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.syncing.is_none() && self.unsynced.is_empty()
    }

    /// Whether a sync may begin.
    pub(super) fn wants_sync(&self) -> bool {
        self.syncing.is_none() && !self.unsynced.is_empty()
    }

    /// A sync begins, which ends then.
    pub(super) fn begin_sync(&mut self, until: u64) {
        self.syncing = Some((until, self.unsynced.drain(..).collect()));
    }

    /// Ends the sync under way if its time has come. What it has kept.
    fn end_sync(&mut self, now: u64) -> Vec<Write> {
        let ended = self.syncing.take_if(|(until, _)| *until <= now);
        let kept = ended.map(|(_, writes)| writes).unwrap_or_default();
        kept.iter().for_each(|(_, id, persist)| self.keep(*id, persist));
        kept
    }

    fn keep(&mut self, id: PartitionId, persist: &Persist) {
        self.stored.entry(id).or_default().keep(persist);
    }

    /// The node dies. Of what was not synced so many writes are kept all the same, in order.
    pub(super) fn crash(&mut self, reached: impl FnOnce(usize) -> usize) {
        let under_way = self.syncing.take().map(|(_, writes)| writes).unwrap_or_default();
        let unsynced: Vec<Write> = under_way.into_iter().chain(self.unsynced.drain(..)).collect();
        for (_, id, persist) in unsynced.iter().take(reached(unsynced.len())) {
            self.keep(*id, persist);
        }
    }
}

/// How long a sync takes: mostly no time, sometimes as long as a disk may hang.
pub(super) fn sync_ms(rng: &mut Rng) -> u64 {
    match rng.roll(300) {
        0 => rng.roll(HANG_MS) as u64,
        1..30 => rng.roll(60) as u64,
        _ => 0,
    }
}

impl World {
    /// Ends the syncs whose time has come, and sends word of it.
    pub(super) fn end_syncs(&mut self) {
        for node in 0..DATA {
            if !self.goes(Some(node)) {
                continue;
            }
            let kept = self.disks[node].end_sync(self.now);
            let mut numbers: BTreeMap<usize, Vec<(PartitionId, u64)>> = BTreeMap::new();
            for (bucket, id, persist) in &kept {
                numbers.entry(*bucket).or_default().push((*id, persist.number));
            }
            for (bucket, numbers) in numbers {
                let to = Actor::Bucket(node, bucket);
                self.send(Actor::Disk(node), to, Message::Persisted(numbers));
            }
        }
    }

    /// Syncs all that was written, and tells of it at once.
    pub(super) fn sync_at(&mut self, node: usize) {
        self.disks[node].begin_sync(0);
        let kept = self.disks[node].end_sync(self.now);
        self.with_bucket(node, |bucket, _, _| {
            kept.iter().for_each(|(_, id, persist)| bucket.persisted(*id, persist.number));
        });
    }
}
