//! What nodes say to each other, in MessagePack.
//!
//! Most packets are messages of the engines as they are. Requests go out on the stream that the
//! asking node dialled; answers come back on it.

use crate::engine::barrier::Hello;
use crate::engine::batch::{Batch, Replies};
use crate::engine::protocol::{Term, ToCoordinator, ToPartition};
use crate::ids::{NodeId, PartitionId};
use serde::{Deserialize, Serialize};

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packet {
    /// The first packet either way.
    Hello(Hello),
    /// The other side is not accepted, and why. The stream ends with it.
    Refused(String),
    /// The sender has met all nodes.
    Ready,
    /// Operations for partitions that the receiver serves.
    Execute {
        /// Names the request on this stream.
        id: u64,
        /// The operations.
        batch: Batch,
    },
    /// The answer to an `Execute`.
    Executed {
        /// Its id.
        id: u64,
        /// The replies: fewer than operations if they grew too large.
        replies: Replies,
    },
    /// A piece of an `Execute` or `Executed` that is long. Pieces of one packet come in order, and
    /// anything else may come between them.
    Piece {
        /// Names the packet on this stream.
        number: u64,
        /// Its next bytes.
        bytes: serde_bytes::ByteBuf,
        /// Whether they are the last.
        last: bool,
    },
    /// A message of the commit protocol for a partition.
    Partition(PartitionId, ToPartition),
    /// A message of the commit protocol for the Coordinator.
    Coordinator(ToCoordinator),
    /// Messages between replicas, opaque here, each for its partition.
    Raft(Vec<(PartitionId, serde_bytes::ByteBuf)>),
    /// The node leads the partition, in this term.
    Leads(PartitionId, NodeId, Term),
    /// A word about a snapshot that is streamed.
    Transfer(Transfer),
    /// The node's replicas of these partitions are of these generations: those of earlier ones have
    /// lost what they acknowledged.
    Replicas(Vec<(PartitionId, u32)>),
    /// The node's replicas of these partitions can vouch for what they acknowledged, as they could
    /// not before.
    Vouch(Vec<PartitionId>),
    /// Are you there? Sent regularly.
    Ping(u64),
    /// The answer, with the same number.
    Pong(u64),
}

/// The words of streaming a snapshot. Each names what it is about; any of them may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// There is a snapshot that the receiver needs. It says from where on it wants it.
    Offer {
        /// Of which partition.
        partition: PartitionId,
        /// Up to which entry.
        index: u64,
        /// The length of its file.
        bytes: u64,
        /// The group's message that goes with it, opaque here.
        message: serde_bytes::ByteBuf,
    },
    /// The receiver has what lies before this offset.
    Want {
        /// Of which partition.
        partition: PartitionId,
        /// Up to which entry.
        index: u64,
        /// How much of the file is there.
        offset: u64,
    },
    /// A piece of the file.
    Piece {
        /// Of which partition.
        partition: PartitionId,
        /// Up to which entry.
        index: u64,
        /// Where in the file it lies.
        offset: u64,
        /// The piece.
        bytes: serde_bytes::ByteBuf,
    },
    /// The receiver has all of it, or does not take it.
    Ended {
        /// Of which partition.
        partition: PartitionId,
        /// Up to which entry.
        index: u64,
        /// Whether it has.
        arrived: bool,
    },
}

/// Appends a packet's encoding.
///
/// # Errors
/// In words, when a part of it cannot be encoded.
pub fn encode(packet: &Packet, out: &mut Vec<u8>) -> Result<(), String> {
    rmp_serde::encode::write(out, packet).map_err(|error| error.to_string())
}

/// Decodes one packet.
///
/// # Errors
/// In words, when the bytes are no packet.
pub fn decode(bytes: &[u8]) -> Result<Packet, String> {
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}
