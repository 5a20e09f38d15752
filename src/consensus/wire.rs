//! A peer's message, from bytes to what may be stepped.
//!
//! The raft crate trusts its peers: a commit index beyond the log, a gap between entries or an
//! empty proposal stop the process. Peers are nodes of the same cluster, but a node may run another
//! version, have lost its disk or be taken for another. So what would stop the crate is checked
//! before and refused with a reason.
//!
//! Almost all that idle groups say are heartbeats and the answers to them, thousands a second. Those
//! without anything in particular are written in a form of their own, [`Beat`], at a fraction of
//! what protobuf takes; its first byte begins no message of protobuf's.

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

/// A heartbeat or the answer to one, and nothing beside it:
///
/// ```text
/// 0 | 1: asks, 2: answers | to | from | term | commit
/// ```
struct Beat([u8; BEAT_BYTES]);

const BEAT_BYTES: usize = 2 + 4 * 8;

/// No field of protobuf's has the number 0.
const BEAT: u8 = 0;
const ASKS: u8 = 1;
const ANSWERS: u8 = 2;

impl Beat {
    /// The message as a beat, if it is no more than that.
    fn of(message: &Message) -> Option<Beat> {
        let kind = match message.msg_type {
            MessageType::MsgHeartbeat => ASKS,
            MessageType::MsgHeartbeatResponse => ANSWERS,
            _ => return None,
        };
        let plain = message.context.is_empty()
            && message.entries.is_empty()
            && !message.has_snapshot()
            && !message.reject
            && message.priority == 0
            && [
                message.log_term,
                message.index,
                message.commit_term,
                message.reject_hint,
                message.request_snapshot,
                message.deprecated_priority,
            ] == [0; 6];
        if !plain {
            return None;
        }
        let mut bytes = [0; BEAT_BYTES];
        bytes[..2].copy_from_slice(&[BEAT, kind]);
        let numbers = [message.to, message.from, message.term, message.commit];
        for (place, number) in bytes[2..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        Some(Beat(bytes))
    }

    /// The message that these bytes stand for, if they are a beat.
    fn read(bytes: &[u8]) -> Option<Message> {
        let bytes: &[u8; BEAT_BYTES] = bytes.try_into().ok()?;
        let msg_type = match bytes[..2] {
            [BEAT, ASKS] => MessageType::MsgHeartbeat,
            [BEAT, ANSWERS] => MessageType::MsgHeartbeatResponse,
            _ => return None,
        };
        let number = |place: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[2 + 8 * place..][..8]);
            u64::from_le_bytes(number)
        };
        let [to, from, term, commit] = [0, 1, 2, 3].map(number);
        Some(Message { msg_type, to, from, term, commit, ..Message::default() })
    }
}

/// The message in bytes.
pub fn write(message: &Message) -> Result<Bytes, String> {
    match Beat::of(message) {
        Some(Beat(bytes)) => Ok(Bytes::copy_from_slice(&bytes)),
        None => message.write_to_bytes().map(Bytes::from).map_err(|e| e.to_string()),
    }
}

/// Whether the message is no more than a heartbeat or the answer to one: it may overtake others.
pub fn is_beat(bytes: &[u8]) -> bool {
    bytes.len() == BEAT_BYTES && bytes[0] == BEAT
}

/// The message in `bytes`, if this receiver can step it; none if it is meant for a replica that this
/// one took the place of, of which its sender has not heard yet. Nothing of an entry is copied.
pub fn read(bytes: &Bytes, receiver: &Receiver) -> Result<Option<Message>, String> {
    let message = match Beat::read(bytes) {
        Some(message) => message,
        None => Message::parse_from_carllerche_bytes(bytes)
            .map_err(|e| format!("a message of {} bytes is none of raft's: {e}", bytes.len()))?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(msg_type: MessageType) -> Message {
        Message { msg_type, to: 7, from: 9, term: 3, commit: 1 << 40, ..Message::default() }
    }

    #[test]
    fn a_beat_is_read_as_it_was_written() {
        let receiver = Receiver { id: ReplicaId(7), term: 3, last_index: 1 << 41, leads: false };
        for msg_type in [MessageType::MsgHeartbeat, MessageType::MsgHeartbeatResponse] {
            let message = beat(msg_type);
            let bytes = write(&message).unwrap();
            assert_eq!(bytes.len(), BEAT_BYTES);
            assert!(Message::parse_from_bytes(&bytes).is_err(), "it is no message of protobuf's");
            assert_eq!(read(&bytes, &receiver), Ok(Some(message)));
            assert!(read(&bytes.slice(..BEAT_BYTES - 1), &receiver).is_err());
            assert!(read(&[&bytes[..], &[0]].concat().into(), &receiver).is_err());
        }
        let mut unknown = write(&beat(MessageType::MsgHeartbeat)).unwrap().to_vec();
        unknown[1] = 3;
        assert!(read(&unknown.into(), &receiver).is_err());
    }

    #[test]
    fn what_is_more_than_a_beat_loses_nothing() {
        let changes: [fn(&mut Message); 12] = [
            |message| message.msg_type = MessageType::MsgAppendResponse,
            |message| message.context = Bytes::from_static(b"ticket"),
            |message| message.mut_entries().push(Default::default()),
            |message| message.mut_snapshot().data = Bytes::from_static(b"token"),
            |message| message.reject = true,
            |message| message.priority = -1,
            |message| message.log_term = 1,
            |message| message.index = 1,
            |message| message.commit_term = 1,
            |message| message.reject_hint = 1,
            |message| message.request_snapshot = 1,
            |message| message.deprecated_priority = 1,
        ];
        for change in changes {
            let mut message = beat(MessageType::MsgHeartbeatResponse);
            change(&mut message);
            let bytes = write(&message).unwrap();
            let again = Message::parse_from_bytes(&bytes).unwrap();
            assert_eq!(format!("{again:?}"), format!("{message:?}"));
        }
    }
}
