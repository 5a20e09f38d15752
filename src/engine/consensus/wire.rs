//! A peer's message, from bytes to what may be stepped.
//!
//! The raft crate trusts its peers: a commit index beyond the log, a gap between entries or an
//! empty proposal stop the process. Peers are nodes of the same cluster, but a node may run another
//! version, have lost its disk or be mistaken for another, so what the crate would die of is
//! checked before and refused with a reason.

use super::{Members, ReplicaId};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

/// Terms and indexes of peers stay below this: no sum of them overflows.
const NUMBER_MAX: u64 = 1 << 56;

/// What the receiver knows of itself.
pub struct Receiver {
    pub id: ReplicaId,
    pub term: u64,
    pub last_index: u64,
    pub leads: bool,
}

/// The message in `bytes`, if this receiver can step it; none if it is meant for a replica that this
/// one took the place of, of which its sender has not heard yet. Nothing of an entry is copied.
pub fn read(bytes: &Bytes, receiver: &Receiver) -> Result<Option<Message>, String> {
    let message = Message::parse_from_carllerche_bytes(bytes)
        .map_err(|e| format!("a message of {} bytes is none of raft's: {e}", bytes.len()))?;
    let to = ReplicaId(message.to);
    if to.node() == receiver.id.node() && to < receiver.id {
        return Ok(None);
    }
    check(&message, receiver).map_err(|why| {
        format!("{:?} of replica {}: {why}", message.msg_type, ReplicaId(message.from))
    })?;
    Ok(Some(message))
}

fn check(message: &Message, receiver: &Receiver) -> Result<(), String> {
    if message.to != receiver.id.0 {
        return Err(format!("is for replica {}", ReplicaId(message.to)));
    }
    if message.from == 0 || message.from == receiver.id.0 {
        return Err("comes from nobody else".into());
    }
    // The raft crate takes term 0 for a message of its own.
    if message.term == 0 {
        return Err("has no term".into());
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    if numbers.iter().any(|number| *number >= NUMBER_MAX) {
        return Err("has a number that no group reaches".into());
    }
    if message.request_snapshot != 0 {
        return Err("requests a snapshot, which replicas never do".into());
    }
    match message.msg_type {
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgHeartbeat => check_heartbeat(message, receiver),
        MessageType::MsgSnapshot => check_snapshot(message, receiver),
        MessageType::MsgAppendResponse => check_append_response(message, receiver),
        MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        // Proposals and reads are never forwarded, and the rest is what a group tells itself.
        _ => Err("does not travel".into()),
    }
}

fn check_append(message: &Message) -> Result<(), String> {
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in message.entries.iter() {
        if entry.index != index + 1 || entry.term < term || entry.term > message.term {
            return Err(format!(
                "entry {} of term {} cannot follow {index} of term {term}",
                entry.index, entry.term
            ));
        }
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

fn check_heartbeat(message: &Message, receiver: &Receiver) -> Result<(), String> {
    // A leader tells a follower no commit index beyond what the follower acknowledged.
    if message.term >= receiver.term && message.commit > receiver.last_index {
        return Err(format!(
            "commits {} where the log ends at {}: acknowledged entries were lost here",
            message.commit, receiver.last_index
        ));
    }
    Ok(())
}

fn check_append_response(message: &Message, receiver: &Receiver) -> Result<(), String> {
    let ours = receiver.leads && message.term == receiver.term;
    if ours && !message.reject && message.index > receiver.last_index {
        return Err(format!(
            "acknowledges {} where the log ends at {}",
            message.index, receiver.last_index
        ));
    }
    Ok(())
}

fn check_snapshot(message: &Message, receiver: &Receiver) -> Result<(), String> {
    let metadata = message.get_snapshot().get_metadata();
    if metadata.index == 0 || metadata.index >= NUMBER_MAX {
        return Err(format!("holds a snapshot of index {}", metadata.index));
    }
    if metadata.term == 0 || metadata.term > message.term {
        return Err(format!("of term {} holds one of {}", message.term, metadata.term));
    }
    let members = Members::try_from(metadata.get_conf_state())?;
    if !members.contains(receiver.id) {
        return Err("holds a snapshot of a group without the receiver".into());
    }
    Ok(())
}
