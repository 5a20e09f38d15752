//! The part of a group's log that is in memory, and how an entry looks on disk.
//!
//! The log is contiguous: it begins after a base, whose index and term are remembered so that
//! appends can be matched against it, and grows at its end. The tail that followers may still
//! need is kept by bytes, not by entries: a thousand entries are nothing when they are small and a
//! flood when they are not.
//!
//! On disk an entry is a [`LogHead`] and its data. The head names the term of the entry before: a
//! chain. When a snapshot replaced a diverging log, the remains of that log may still be found
//! behind the snapshot after a crash, and index and term alone cannot tell them from entries that
//! belong there. The chain can: the remains do not follow from the snapshot's last term.

use super::rules::{GroupRule, kept};
use super::{Incoming, Logged, Members, SnapshotMeta};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// What an entry costs in memory beside its data, for the bounds in bytes.
const ENTRY_OVERHEAD: u64 = 48;

/// The bytes of a [`LogHead`]: kind, term, term of the entry before.
pub const HEAD_BYTES: usize = 17;

/// An entry's head on disk.
pub type LogHead = [u8; HEAD_BYTES];

/// The first byte of a head. Written to disk: never renumber.
const KIND_NORMAL: u8 = 0;
const KIND_MEMBERS: u8 = 1;
/// A change of members that an operator forced: it counts as committed, and so does all before it.
const KIND_FORCED: u8 = 2;

/// The head of `entry`, when the entry before it is of term `before`.
pub fn head(entry: &Entry, before: u64) -> LogHead {
    let mut head = [0; HEAD_BYTES];
    head[0] = match entry.entry_type {
        EntryType::EntryNormal => KIND_NORMAL,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => KIND_MEMBERS,
    };
    head[1..9].copy_from_slice(&entry.term.to_le_bytes());
    head[9..17].copy_from_slice(&before.to_le_bytes());
    head
}

/// The same for a change of members that is forced.
pub fn forced_head(entry: &Entry, before: u64) -> LogHead {
    let mut head = head(entry, before);
    head[0] = KIND_FORCED;
    head
}

/// The entry that was logged as `payload` (head and data), and the term of the entry before it.
pub fn read_entry(index: u64, payload: &Bytes) -> Result<(Entry, u64), String> {
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(payload.get(at..at + 8)?.try_into().ok()?))
    };
    let (Some(kind), Some(term), Some(before)) = (payload.first(), number(1), number(9)) else {
        return Err(format!("entry {index} is logged with {} bytes", payload.len()));
    };
    let entry_type = match *kind {
        KIND_NORMAL => EntryType::EntryNormal,
        KIND_MEMBERS | KIND_FORCED => EntryType::EntryConfChangeV2,
        other => return Err(format!("entry {index} is logged with the unknown kind {other}")),
    };
    let data = payload.slice(HEAD_BYTES..);
    let entry = Entry { entry_type, index, term, data, ..Entry::default() };
    if term == 0 || before > term {
        return Err(format!("entry {index} is logged with term {term} after term {before}"));
    }
    Ok((entry, before))
}

/// A snapshot to give to followers whose next entries are gone.
#[derive(Clone)]
struct Offer {
    meta: SnapshotMeta,
    token: Bytes,
}

/// A group's log in memory: what the raft crate reads.
#[derive(Clone)]
pub struct Log {
    state: HardState,
    /// The configuration to start from; later ones live in the raft crate.
    members: Members,
    /// The index and term right before the first entry.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// What `entries` weigh, by [`weight`].
    bytes: u64,
    /// The last forced change that was found on disk, or 0.
    forced: u64,
    offer: Option<Offer>,
    /// The replicas that asked for a snapshot and got none. The raft crate asks through a shared
    /// reference.
    wanted: RefCell<BTreeSet<u64>>,
}

fn weight(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD
}

impl Log {
    /// A log of nothing.
    pub fn new(members: Members) -> Log {
        Log {
            state: HardState::default(),
            members,
            base: (0, 0),
            entries: VecDeque::new(),
            bytes: 0,
            forced: 0,
            offer: None,
            wanted: RefCell::default(),
        }
    }

    /// The log as it was on disk: behind `snapshot` the longest chain of `entries`, a later entry
    /// of an index replacing an earlier one and all that followed it.
    ///
    /// Entries that do not follow are left out: they were replaced by the snapshot or never
    /// acknowledged. The index from which on they were left out is the second result.
    pub fn recover(
        members: Members,
        snapshot: Option<&SnapshotMeta>,
        entries: &[(u64, Bytes)],
    ) -> Result<(Log, Option<u64>), String> {
        let mut log = Log::new(members);
        let floor = snapshot.map_or((0, 0), |meta| (meta.index, meta.term));
        if let Some(meta) = snapshot {
            log.members = meta.members.clone();
        }
        log.base = floor;
        let mut left_out = None;
        for (index, payload) in entries {
            let (entry, before) = read_entry(*index, payload)?;
            let begins = log.entries.is_empty();
            if begins && *index <= floor.0 {
                // Entries from before the snapshot serve slow followers, if they lead up to it.
                log.base = (*index - 1, before);
            }
            if *index <= log.base.0 || !log.is_followed_by(*index, before) {
                left_out = Some(left_out.map_or(*index, |first: u64| first.min(*index)));
                continue;
            }
            log.push(entry);
        }
        if log.term_at(floor.0) != Some(floor.1) {
            // They do not lead up to the snapshot; what follows it was chained to them.
            log.reset(floor.0, floor.1);
            for (index, payload) in entries.iter().filter(|(index, _)| *index > floor.0) {
                let (entry, before) = read_entry(*index, payload)?;
                if log.is_followed_by(*index, before) {
                    log.push(entry);
                }
            }
        }
        let left_out = left_out.filter(|first| *first > log.last());
        let forced = entries.iter().filter(|(_, payload)| payload.first() == Some(&KIND_FORCED));
        log.forced = forced.map(|(index, _)| *index).max().unwrap_or(0).min(log.last());
        Ok((log, left_out))
    }

    /// Whether an entry at `index`, after one of term `before`, has its place here.
    fn is_followed_by(&self, index: u64, before: u64) -> bool {
        let known = self.term_at(index - 1);
        known == Some(before) || (known.is_some() && !kept(GroupRule::EntriesAreChained))
    }

    /// Sets term, vote and commit index as read from disk.
    pub fn set_state(&mut self, state: HardState) {
        self.state = state;
    }

    /// Whether term or vote are others than those set last.
    pub fn state_differs(&self, state: &HardState) -> bool {
        (self.state.term, self.state.vote) != (state.term, state.vote)
    }

    /// The configuration that the log starts from.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The index of the last entry, or of the base.
    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// The entry up to which everything counts as committed because an operator said so.
    pub fn forced(&self) -> u64 {
        self.forced
    }

    /// The bytes that the entries in memory take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The term of the entry at `index`, the base included.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let at = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?).map(|entry| entry.term)
    }

    /// The entries from `index` on.
    pub fn since(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let at = index.saturating_sub(self.base.0 + 1);
        self.entries.iter().skip(usize::try_from(at).unwrap_or(usize::MAX))
    }

    /// Appends what the raft crate wants stored, and says how each entry is logged.
    pub fn append(&mut self, entries: Vec<Entry>, logged: &mut Vec<Logged>) {
        for entry in entries {
            let before = self.term_at(entry.index - 1);
            assert!(before.is_some(), "entry {} follows {}", entry.index, self.last());
            let head = head(&entry, before.unwrap_or_default());
            logged.push(Logged { index: entry.index, head, data: entry.data.clone() });
            self.push(entry);
        }
    }

    /// Puts one entry in its place; what was there and behind goes.
    fn push(&mut self, entry: Entry) {
        while self.last() >= entry.index {
            let Some(gone) = self.entries.pop_back() else { break };
            self.bytes -= weight(&gone);
        }
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    /// Starts anew behind a snapshot.
    pub fn restore(&mut self, snapshot: &Incoming) {
        self.reset(snapshot.meta.index, snapshot.meta.term);
        self.offer = None;
    }

    fn reset(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.base = (index, term);
    }

    /// Lets go of the oldest entries up to `to` until the rest weighs at most `retain` bytes.
    pub fn compact(&mut self, to: u64, retain: u64) {
        while self.base.0 < to && self.bytes > retain {
            let Some(gone) = self.entries.pop_front() else { break };
            self.bytes -= weight(&gone);
            self.base = (gone.index, gone.term);
        }
    }

    /// From now on followers that lack entries get this snapshot.
    pub fn offer(&mut self, meta: SnapshotMeta, token: Bytes) {
        self.offer = Some(Offer { meta, token });
    }

    /// No snapshot is on offer any more.
    pub fn withdraw(&mut self) {
        self.offer = None;
    }

    /// Whether [`Log::take_wanted`] has anything to tell.
    pub fn has_wanted(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    /// The replicas that asked for a snapshot in vain since the last call.
    pub fn take_wanted(&mut self) -> BTreeSet<u64> {
        std::mem::take(self.wanted.get_mut())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.state.clone(), conf_state: ConfState::from(&self.members) })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let most = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let fits = |entry: &&Entry| {
            let first = size == 0;
            size += weight(entry);
            first || size <= most
        };
        let count = usize::try_from(high - low).unwrap_or(usize::MAX);
        Ok(self.since(low).take(count).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or(raft::Error::Store(if index < self.base.0 {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A snapshot that the log no longer continues would be followed by the next one.
        let usable =
            |offer: &&Offer| offer.meta.index >= request_index && offer.meta.index >= self.base.0;
        let Some(offer) = self.offer.as_ref().filter(usable) else {
            self.wanted.borrow_mut().insert(to);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot { data: offer.token.clone(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = offer.meta.index;
        metadata.term = offer.meta.term;
        metadata.set_conf_state(ConfState::from(&offer.meta.members));
        Ok(snapshot)
    }
}
