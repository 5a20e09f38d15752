//! What a group wants done: its messages, what is logged, what is committed and confirmed, in the
//! order in which the disk allows it.

use super::members;
use super::output::{Committed, Envelope, Incoming, Outgoing, Output, Persist, SnapshotMeta};
use super::recover::write_state;
use super::rules::{GroupRule, kept};
use super::{Change, Confirmation, Group, Members, ReplicaId, wire};
use crate::ids::Now;
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Ready, StateRole};

/// A ready whose messages wait for the disk.
pub(super) struct HeldReady {
    pub(super) number: u64,
    /// When it was given to the disk, in ticks.
    pub(super) since: usize,
    /// Bytes of its entries.
    pub(super) bytes: u64,
    /// Whether there is anything of its own to wait for; if not, it only keeps its place.
    pub(super) on_disk: bool,
    pub(super) messages: Vec<Message>,
    /// The index of the snapshot that it installs.
    pub(super) snapshot: Option<u64>,
}

impl Group {
    /// Brings out what is to be done at `now`. To be called after anything else here was; what it
    /// puts into `out` is added to what is there.
    pub fn drive(&mut self, now: Now, out: &mut Output) {
        self.pass(now);
        self.ask_again();
        self.send_released(out);
        while self.raw.has_ready() {
            let ready = self.raw.ready();
            self.handle(ready, out);
        }
        out.wants_snapshot.extend(self.raw.mut_store().take_wanted().into_iter().map(ReplicaId));
        let change = Change { role: self.role(), term: self.term(), leader: self.leader() };
        if change != self.told {
            self.told = change;
            out.changed = Some(change);
        }
    }

    /// Whether [`Group::drive`] has anything to bring out.
    pub fn has_output(&self) -> bool {
        !self.released.is_empty() || self.raw.store().has_wanted() || self.raw.has_ready()
    }

    fn handle(&mut self, mut ready: Ready, out: &mut Output) {
        let number = ready.number();
        self.send(ready.take_messages(), out);
        let mut messages = ready.take_persisted_messages();
        let mut persist = Persist { number, snapshot: None, state: None, entries: Vec::new() };
        if !ready.snapshot().is_empty() {
            persist.snapshot = self.restore(ready.snapshot());
        }
        if let Some(state) = ready.hs() {
            if self.raw.store().state_differs(state) {
                persist.state = Some(write_state(state));
            }
            self.raw.mut_store().set_state(state.clone());
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(entries, &mut persist.entries);
        let committed = ready.take_committed_entries();
        let reads = ready.take_read_states();
        self.raw.advance_append_async(ready);

        if !kept(GroupRule::AcknowledgeAfterSync) {
            self.send(std::mem::take(&mut messages), out);
        }
        let on_disk =
            persist.snapshot.is_some() || persist.state.is_some() || !persist.entries.is_empty();
        if !on_disk && self.held.is_empty() {
            self.raw.on_persist_ready(number);
            self.send(std::mem::take(&mut messages), out);
        } else {
            let snapshot = persist.snapshot.as_ref().map(|incoming| incoming.meta.index);
            let bytes = persist.entries.iter().map(|entry| entry.data.len() as u64).sum();
            self.unsynced_bytes += bytes;
            let since = self.ticks.count();
            self.held.push_back(HeldReady { number, since, bytes, on_disk, messages, snapshot });
            if on_disk {
                out.persist.push(persist);
            }
        }
        for read in reads {
            let ticket = read.request_ctx.as_slice().try_into().map(u64::from_le_bytes);
            let Ok(ticket) = ticket else { continue };
            let transferring = self.is_transferring() && kept(GroupRule::HandingOverEndsLease);
            let confirmed = self.lease.confirm(Confirmation(ticket), self.now, transferring);
            out.confirmed = confirmed.max(out.confirmed);
        }
        for entry in committed {
            self.commit(entry, out);
        }
        self.settle();
    }

    fn restore(&mut self, snapshot: &raft::eraftpb::Snapshot) -> Option<Incoming> {
        let metadata = snapshot.get_metadata();
        let members = Members::try_from(metadata.get_conf_state());
        // Checked when its message came.
        assert!(members.is_ok(), "the group accepted a snapshot of {members:?}");
        let members = members.ok()?;
        self.is_open = false;
        self.members_ahead.push_back((metadata.index, members.clone()));
        let meta = SnapshotMeta { index: metadata.index, term: metadata.term, members };
        let incoming = Incoming { meta, token: snapshot.data.clone() };
        self.raw.mut_store().restore(&incoming);
        Some(incoming)
    }

    fn commit(&mut self, entry: Entry, out: &mut Output) {
        let (index, term) = (entry.index, entry.term);
        if entry.entry_type == EntryType::EntryNormal {
            out.committed.push(Committed { index, term, data: entry.data });
            return;
        }
        out.committed.push(Committed { index, term, data: Bytes::new() });
        self.change_members(&entry, out);
    }

    /// A change that cannot be made is none, at every replica alike: it depends on the log alone.
    fn change_members(&mut self, entry: &Entry, out: &mut Output) {
        let change = ConfChangeV2::parse_from_bytes(&entry.data).ok();
        let Some(change) = change.filter(members::is_known) else {
            ::log::error!("replica {}: entry {} is no change of members", self.id, entry.index);
            return;
        };
        let members = match self.raw.apply_conf_change(&change) {
            Ok(state) => Members::try_from(&state),
            Err(e) => Err(e.to_string()),
        };
        let members = match members {
            Ok(members) => members,
            Err(e) => {
                ::log::error!("replica {}: no change of members at {}: {e}", self.id, entry.index);
                return;
            }
        };
        let before = self.latest_members();
        let (voters_changed, changed) = (!members.votes_like(before), members != *before);
        self.is_open = voters_changed && !members.is_joint();
        if !changed {
            return;
        }
        // The replicas that confirmed the lease may be no majority any more.
        self.lease.give_up();
        if self.raw.raft.state == StateRole::Leader && !members.votes(self.id) {
            // The raft crate leads on, and dies of looking for itself among the members.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        self.members_ahead.push_back((entry.index, members.clone()));
        out.members = Some(members);
    }

    /// What [`Output::persist`] asked for up to this number is durable, and a snapshot among it is
    /// installed.
    pub fn persisted(&mut self, number: u64) {
        let mut last = None;
        let mut installed = None;
        while self.held.front().is_some_and(|held| held.number <= number || !held.on_disk) {
            let Some(held) = self.held.pop_front() else { break };
            last = Some(held.number);
            self.unsynced_bytes -= held.bytes;
            installed = held.snapshot.or(installed);
            self.released.extend(held.messages);
        }
        if let Some(last) = last {
            self.raw.on_persist_ready(last);
        }
        if let Some(index) = installed {
            self.applied(index);
        }
        self.settle();
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: u64) {
        if index <= self.applied_index() {
            return;
        }
        self.raw.advance_apply_to(index);
        while self.members_ahead.front().is_some_and(|(at, _)| *at <= index) {
            let Some((_, members)) = self.members_ahead.pop_front() else { break };
            self.members = members;
        }
        self.let_go();
        self.settle();
        self.conclude();
    }

    fn send_released(&mut self, out: &mut Output) {
        let released = std::mem::take(&mut self.released);
        self.send(released, out);
    }

    fn send(&mut self, messages: Vec<Message>, out: &mut Output) {
        for mut message in messages {
            let to = ReplicaId(message.to);
            match message.msg_type {
                MessageType::MsgAppend => message.context = self.hearsay.question(),
                MessageType::MsgAppendResponse => {
                    message.context = self.hearsay.answer(to, self.now.mono);
                }
                _ => {}
            }
            let hands_over = message.msg_type == MessageType::MsgTimeoutNow;
            if hands_over && kept(GroupRule::HandingOverEndsLease) {
                self.lease.hand_over();
            }
            let bytes = match wire::write(&message) {
                Ok(bytes) => bytes,
                Err(e) => {
                    ::log::error!("replica {}: no message to {to}: {e}", self.id);
                    continue;
                }
            };
            if message.msg_type == MessageType::MsgSnapshot {
                let snapshot = message.get_snapshot();
                let (index, token) = (snapshot.get_metadata().index, snapshot.data.clone());
                out.snapshots.push(Outgoing { to, index, token, message: bytes });
            } else {
                out.messages.push(Envelope { to, bytes });
            }
        }
    }
}
