//! Messages of the other replicas: which of them count, given what this one has promised and what
//! its disk can take.

use super::rules::{GroupRule, kept};
use super::{Group, MESSAGE_BYTES_MAX, ReplicaId, wire};
use crate::ids::Now;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, StateRole};

impl Group {
    /// Takes a peer's message, received at `now`. What cannot be one is refused with a reason. Its
    /// entries go on using the message's bytes.
    pub fn step(&mut self, message: &Bytes, now: Now) -> Result<(), String> {
        self.pass(now);
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(format!("a message of {} bytes is too long", message.len()));
        }
        let receiver = wire::Receiver {
            id: self.id,
            term: self.raw.raft.term,
            last_index: self.raw.raft.raft_log.last_index(),
            leads: self.raw.raft.state == StateRole::Leader,
        };
        let Some(mut message) = wire::read(message, &receiver)? else { return Ok(()) };
        if message.msg_type == MessageType::MsgAppend
            && !message.entries.is_empty()
            && self.unsynced_bytes > self.unsynced_bytes_max
        {
            // As if it were lost: the leader finds out, and sends no more than is acknowledged.
            return Ok(());
        }
        if message.msg_type == MessageType::MsgAppend && message.term >= receiver.term {
            self.check_history(&message)?;
        }
        match message.msg_type {
            // A vote that the leader asked for itself breaks no promise.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.promise.binds(self.now.mono) && message.context != CAMPAIGN_TRANSFER =>
            {
                return Ok(());
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
                if message.term >= receiver.term && kept(GroupRule::VotersKeepPromises) =>
            {
                self.promise.renew(self.now.mono);
            }
            MessageType::MsgTimeoutNow if !self.log_is_whole() || self.disk_hangs() => {
                return Ok(());
            }
            _ => {}
        }
        let from = ReplicaId(message.from);
        let (kind, of_term) = (message.msg_type, message.term);
        // In other messages the field is the raft crate's.
        let context = match kind {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => {
                std::mem::take(&mut message.context)
            }
            _ => Bytes::new(),
        };
        let stepped = self.raw.step(message);
        self.settle();
        // Not before: the message may have begun a term.
        match kind {
            MessageType::MsgAppend => self.hearsay.asked(from, &context),
            MessageType::MsgAppendResponse
                if self.raw.raft.state == StateRole::Leader
                    && of_term == self.raw.raft.term
                    && self.latest_members().votes(from) =>
            {
                self.hearsay.told(from, &context);
            }
            _ => {}
        }
        match stepped {
            // An answer of a replica that has left.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(e) => Err(format!("a message of replica {from}: {e}")),
        }
    }

    /// Refuses a leader whose log contradicts what is committed here: the raft crate would take its
    /// entries for known ones and acknowledge them. It comes to that only after a majority has lost
    /// the end of its log at once, as it may where nothing is synced before it is acknowledged.
    ///
    /// Terms and commit index are both those of the raft crate's log. The store lags behind it
    /// until the group is driven: it may still hold a tail that an earlier append replaced.
    fn check_history(&self, append: &Message) -> Result<(), String> {
        let before = (append.index, append.log_term);
        let entries = append.entries.iter().map(|entry| (entry.index, entry.term));
        let log = &self.raw.raft.raft_log;
        let differs = |(index, term): &(u64, u64)| {
            // The crate's term 0 is that of an entry which it does not have.
            let ours = log.term(*index).unwrap_or_default();
            *index <= log.committed && ours != 0 && ours != *term
        };
        match std::iter::once(before).chain(entries).find(differs) {
            None => Ok(()),
            Some((index, _)) => Err(format!(
                "its group has lost entry {index}, which is committed here: stop this node, move \
                 its data directory away and start it, so that it begins anew from the others"
            )),
        }
    }
}
