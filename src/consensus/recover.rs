//! A replica as its disk has it: what its log says of the group's members, which of its entries
//! count as committed, and what it has promised.

use super::bridge;
use super::lease::{Lease, Promise};
use super::log::Log;
use super::pace::Ticks;
use super::rules::{GroupRule, kept};
use super::time::Hearsay;
use super::{Change, Group, Members, Recovered, Role, STATE_BYTES, Setup};
use crate::ids::Now;
use raft::RawNode;
use raft::eraftpb::{EntryType, HardState};
use std::collections::VecDeque;

impl Group {
    /// The replica as its disk has it, at `mono` (ms of the node's monotonic clock).
    ///
    /// Fails on what no log of a replica looks like; that is for the operator.
    pub fn new(setup: &Setup, recovered: Recovered, mono: u64) -> Result<Group, String> {
        Group::recover(setup, recovered, mono, false)
    }

    /// The same; `all_counts` takes everything in the log for committed.
    pub(super) fn recover(
        setup: &Setup,
        recovered: Recovered,
        mono: u64,
        all_counts: bool,
    ) -> Result<Group, String> {
        if setup.election_ticks < 4 || setup.tick_ms == 0 {
            return Err("an election timeout is at least 4 ticks, and a tick 1 ms".into());
        }
        let restarts = !recovered.is_empty();
        let first = Members::of(setup.voters.iter().copied());
        let snapshot = recovered.snapshot.as_ref();
        let (mut log, left_out) = Log::recover(first, snapshot, &recovered.entries)?;
        if let Some(index) = left_out {
            ::log::info!("replica {}: entries from {index} on were replaced, left out", setup.id);
        }
        let applied = snapshot.map_or(0, |meta| meta.index);
        let changes = changes_of_members(&log, applied);
        let committed = if all_counts { log.last() } else { changes.known_committed };
        log.set_state(read_state(&recovered, &log, committed.max(applied))?);
        log.compact(applied, setup.retain_bytes);
        let members = log.members().clone();
        // A sole voter that was never anything else has made no promise.
        let alone = members.is_sole() && members.votes(setup.id) && !changes.any;

        let raw = RawNode::new(&setup.config(applied), log, &bridge::logger())
            .map_err(|e| format!("replica {}: {e}", setup.id))?;
        let mut group = Group {
            id: setup.id,
            ticks: Ticks::new(setup.tick_ms, mono),
            timeouts: setup.timeouts(),
            promise: Promise::new(setup.promise_ms()),
            lease: Lease::new(setup.lease_ms(), setup.lease_drift_ms()),
            retain_bytes: setup.retain_bytes,
            election_ticks: setup.election_ticks,
            window_bytes: setup.window_bytes,
            appends_max: setup.appends_max,
            window: setup.appends_max,
            unsynced_bytes_max: setup.unsynced_bytes_max,
            unsynced_bytes: 0,
            yields: false,
            now: Now { mono, ..Now::default() },
            held: VecDeque::new(),
            released: Vec::new(),
            members,
            members_ahead: VecDeque::new(),
            is_open: false,
            standing: (raw.raft.term, raw.raft.state),
            hearsay: Hearsay::default(),
            told: Change { role: Role::Follower, term: raw.raft.term, leader: None },
            raw,
        };
        if restarts && !alone && kept(GroupRule::RestartedVotersKeepPromises) {
            group.promise.renew(mono);
        }
        group.settle();
        Ok(group)
    }

    /// Goes on under the id of `setup`, with the log as it is. For a replica that may have lost the
    /// end of its log and has said nothing since: what it acknowledged binds its old name, and the
    /// new one, a stranger to the group, is bound by nothing. What is left of the log are entries
    /// that the group appended, so the leader finds the place up to which they agree as it does for
    /// any follower.
    ///
    /// Fails where raft would not begin with what is there; nothing has changed then.
    pub fn rename(&mut self, setup: &Setup) -> Result<(), String> {
        assert!(self.held.is_empty() && self.released.is_empty(), "a replica that spoke is bound");
        let log = self.raw.store().clone();
        self.raw = RawNode::new(&setup.config(self.applied_index()), log, &bridge::logger())
            .map_err(|e| format!("replica {}: {e}", setup.id))?;
        self.id = setup.id;
        self.timeouts = setup.timeouts();
        self.standing = (self.raw.raft.term, self.raw.raft.state);
        self.settle();
        Ok(())
    }
}

/// What the log says about changes of members after `applied`.
struct Changes {
    any: bool,
    /// All but the last are committed, or the last could not have been proposed.
    known_committed: u64,
}

fn changes_of_members(log: &Log, applied: u64) -> Changes {
    let changes = log.since(applied + 1).filter(|entry| entry.entry_type != EntryType::EntryNormal);
    let indexes: Vec<u64> = changes.map(|entry| entry.index).collect();
    let known = indexes.iter().rev().nth(1).filter(|_| kept(GroupRule::MembersAreRecovered));
    let known_committed = known.copied().unwrap_or(0).max(log.forced());
    Changes { any: !indexes.is_empty(), known_committed }
}

/// Term and vote as they are logged.
pub(super) fn write_state(state: &HardState) -> [u8; STATE_BYTES] {
    let mut bytes = [0; STATE_BYTES];
    bytes[..8].copy_from_slice(&state.term.to_le_bytes());
    bytes[8..].copy_from_slice(&state.vote.to_le_bytes());
    bytes
}

/// Term and vote as logged, no earlier than what the log shows, with this commit index.
fn read_state(recovered: &Recovered, log: &Log, commit: u64) -> Result<HardState, String> {
    let mut state = HardState::default();
    if let Some(bytes) = &recovered.state {
        let Some((term, vote)) = bytes.split_first_chunk::<8>() else {
            return Err(format!("a state of {} bytes", bytes.len()));
        };
        let Ok(vote) = <[u8; 8]>::try_from(vote) else {
            return Err(format!("a state of {} bytes", bytes.len()));
        };
        state.term = u64::from_le_bytes(*term);
        state.vote = u64::from_le_bytes(vote);
    }
    // Entries may have reached the disk before the state that was logged with them. No node has
    // heard of a vote in their term then: it would have waited for the sync.
    let shown = log.term_at(log.last()).unwrap_or_default();
    if state.term < shown {
        state.term = shown;
        state.vote = 0;
    }
    state.commit = commit;
    Ok(state)
}
