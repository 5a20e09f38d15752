//! What a leader appends: entries, and changes of members, one at a time and each concluded.

use super::members;
use super::rules::{GroupRule, kept};
use super::{Group, MESSAGE_BYTES_MAX, MemberChange, Position};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};

/// The longest proposal: with its message around it, it still fits.
pub const PROPOSAL_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

impl Group {
    /// Appends `data` as one entry and says where, if this replica leads and serves. If it does not,
    /// hands over, or has too much uncommitted, nothing happened and nothing will: a raft follower
    /// would forward a proposal, and this replica would not learn what became of it.
    pub fn propose(&mut self, data: Bytes) -> Option<Position> {
        if !self.is_serving() || data.is_empty() || data.len() > PROPOSAL_BYTES_MAX {
            return None;
        }
        self.append(Entry { data, ..Entry::default() })
    }

    /// Proposes a change of members, as a serving leader with no other change under way. A leader
    /// does not remove itself: it hands over first.
    pub fn change(&mut self, change: MemberChange) -> Option<Position> {
        let itself = change.leaving() == Some(self.id);
        if itself || !self.may_change() || !change.fits(self.latest_members()) {
            return None;
        }
        self.append_change(Bytes::from(ConfChangeV2::from(change).write_to_bytes().ok()?))
    }

    /// Concludes a change that is applied here, and tells whether there was one. The present leader
    /// does that, for the proposer may be gone. A joint configuration is left. Where it was left,
    /// or the voters changed otherwise, follows a change of nothing: all but the last change in a
    /// log count as committed after a restart, so this one makes the other count.
    pub(super) fn conclude(&mut self) -> bool {
        let is_joint = self.latest_members().is_joint();
        let concludes = is_joint || self.is_open && kept(GroupRule::ChangesAreConcluded);
        if !concludes || !self.may_change() {
            return false;
        }
        let change = if is_joint { ConfChangeV2::default() } else { members::no_change() };
        let data = change.write_to_bytes().map(Bytes::from);
        data.is_ok_and(|data| self.append_change(data).is_some())
    }

    pub(super) fn may_change(&self) -> bool {
        self.is_serving() && !self.raw.raft.has_pending_conf()
    }

    fn append_change(&mut self, data: Bytes) -> Option<Position> {
        self.append(Entry { entry_type: EntryType::EntryConfChangeV2, data, ..Entry::default() })
    }

    fn append(&mut self, entry: Entry) -> Option<Position> {
        self.fit_window(entry.data.len());
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id.0;
        message.mut_entries().push(entry);
        let appended = self.raw.raft.step(message);
        self.settle();
        appended.ok()?;
        let raft = &self.raw.raft;
        Some(Position { term: raft.term, index: raft.raft_log.last_index() })
    }

    /// Has no more appends under way to a follower than the window's bytes, if all entries were as
    /// long as the one to come.
    fn fit_window(&mut self, entry_bytes: usize) {
        let fits = self.window_bytes / (entry_bytes as u64).max(1);
        let window = usize::try_from(fits).unwrap_or(usize::MAX).clamp(1, self.appends_max);
        if window != std::mem::replace(&mut self.window, window) {
            let raft = &mut self.raw.raft;
            let ids: Vec<u64> = raft.prs().iter().map(|(id, _)| *id).collect();
            ids.into_iter().for_each(|id| raft.adjust_max_inflight_msgs(id, window));
        }
    }
}
