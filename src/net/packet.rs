//! What nodes say to each other, in MessagePack.
//!
//! Most packets are messages of the cores as they are. Which of the two streams of a link carries
//! what, [`crate::actors::peer`] says.

use crate::batch::{Batch, Replies};
use crate::cluster::barrier::Hello;
use crate::cluster::topology::Placement;
use crate::ids::Term;
use crate::ids::{NodeId, PartitionId};
use crate::txn::protocol::{ToCoordinator, ToPartition};
use serde::{Deserialize, Serialize};

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packet {
    /// The first packet either way.
    Hello(Hello),
    /// The other side is not accepted. Why is said in this node's log, and to no stranger. The
    /// stream ends with it.
    Refused,
    /// The nonce of the receiver's dial, on the stream that the sender dialled. Is it yours?
    Claim(u64),
    /// The answer to a `Claim`.
    Yours(u64, bool),
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
    /// A message of the commit protocol for a node that the sender does not reach. The receiver
    /// passes it on if it does, as if it were its own.
    Relay(NodeId, Relayed),
    /// Messages between replicas, opaque here, each for its partition.
    Raft(Vec<(PartitionId, serde_bytes::ByteBuf)>),
    /// The node leads the partition, in this term.
    Leads(PartitionId, NodeId, Term),
    /// A word about a snapshot that is streamed.
    Transfer(Transfer),
    /// The node's replicas of these partitions are of these generations: those of earlier ones have
    /// lost what they acknowledged.
    Replicas(Vec<(PartitionId, u32)>),
    /// The node's replicas of these partitions can verify what they acknowledged, as they could
    /// not before.
    Verified(Vec<PartitionId>),
    /// Are you there? Sent regularly.
    Ping {
        /// Counts the pings of a link.
        number: u64,
        /// The number of the last pong that came.
        seen: u64,
    },
    /// The answer, with the same number.
    Pong(u64),
}

/// What is passed on for another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relayed {
    /// For a partition that the receiver leads.
    Partition(PartitionId, ToPartition),
    /// For its Coordinator.
    Coordinator(ToCoordinator),
}

impl Relayed {
    /// What to ask others to pass on of a packet: nothing, unless it is a message that may go by way
    /// of a third node.
    pub fn of(packet: &Packet, is_replicated: impl Fn(PartitionId) -> bool) -> Option<Relayed> {
        match packet {
            Packet::Partition(to, message) if message.may_be_relayed(*to, is_replicated) => {
                Some(Relayed::Partition(*to, message.clone()))
            }
            Packet::Coordinator(message) if message.may_be_relayed() => {
                Some(Relayed::Coordinator(message.clone()))
            }
            _ => None,
        }
    }
}

impl From<Relayed> for Packet {
    fn from(relayed: Relayed) -> Packet {
        match relayed {
            Relayed::Partition(to, message) => Packet::Partition(to, message),
            Relayed::Coordinator(message) => Packet::Coordinator(message),
        }
    }
}

/// No group comes to so many terms: one a millisecond for 34 years.
const TERM_MAX: u64 = 1 << 40;

/// No Lamport clock comes so far: a tick a nanosecond for 146 years. What follows is counted on.
const TIME_MAX: u64 = 1 << 62;

/// What a node knows of its cluster, to check what another node says.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// Who sends.
    pub from: NodeId,
    /// The nodes that hold each partition.
    pub placement: &'a Placement,
    /// The nodes, in order.
    pub nodes: &'a [NodeId],
}

impl Extent<'_> {
    fn partition(&self, id: PartitionId) -> Result<(), String> {
        match id.index() < self.placement.len() {
            true => Ok(()),
            false => Err(format!("it names partition {}, which does not exist", id.0)),
        }
    }

    fn partitions<'p>(&self, ids: impl IntoIterator<Item = &'p PartitionId>) -> Result<(), String> {
        ids.into_iter().try_for_each(|id| self.partition(*id))
    }

    fn node(&self, node: NodeId) -> Result<(), String> {
        match self.nodes.binary_search(&node) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("it names node {node}, which does not exist")),
        }
    }

    fn holds(&self, id: PartitionId, node: NodeId) -> Result<(), String> {
        self.partition(id)?;
        match self.placement.replicas(id).contains(&node) {
            true => Ok(()),
            false => Err(format!("node {node} holds no replica of partition {}", id.0)),
        }
    }

    fn term(term: Term) -> Result<(), String> {
        match term.0 < TERM_MAX {
            true => Ok(()),
            false => Err(format!("it names term {}", term.0)),
        }
    }

    fn time(time: u64) -> Result<(), String> {
        match time < TIME_MAX {
            true => Ok(()),
            false => Err(format!("its clock is at {time}")),
        }
    }

    fn relayed(&self, relayed: &Relayed) -> Result<(), String> {
        let is_replicated = |id: PartitionId| self.placement.is_replicated(id);
        let may_be = match relayed {
            Relayed::Partition(id, message) => {
                self.partition(*id)?;
                self.message_to_partition(message)?;
                message.may_be_relayed(*id, is_replicated)
            }
            Relayed::Coordinator(message) => {
                self.message_to_coordinator(message)?;
                message.may_be_relayed()
            }
        };
        match may_be {
            true => Ok(()),
            false => Err("it wants something passed on that is not".to_owned()),
        }
    }

    fn message_to_partition(&self, message: &ToPartition) -> Result<(), String> {
        let txn = match message {
            ToPartition::Lock(lock) => {
                self.node(lock.age.node)?;
                Extent::time(lock.age.time)?;
                lock.txn
            }
            ToPartition::Prepare(prepare) => {
                self.node(prepare.age.node)?;
                Extent::time(prepare.age.time)?;
                self.partition(prepare.primary)?;
                self.partitions(&prepare.participants)?;
                prepare.txn
            }
            ToPartition::Decide(decide) => {
                self.partition(decide.primary)?;
                decide.txn
            }
            ToPartition::Resolve { txn, asker, .. } | ToPartition::Inquire { txn, asker } => {
                self.partition(*asker)?;
                *txn
            }
            ToPartition::Knows { txn, from, .. } => {
                self.partition(*from)?;
                *txn
            }
            ToPartition::Applied { txns, from } => {
                self.partition(*from)?;
                return txns.iter().try_for_each(|txn| self.node(txn.node));
            }
            ToPartition::Confirm { txn, .. }
            | ToPartition::Lost { txn }
            | ToPartition::CoordinatorKnows { txn, .. } => *txn,
        };
        self.node(txn.node)
    }

    fn message_to_coordinator(&self, message: &ToCoordinator) -> Result<(), String> {
        match message {
            ToCoordinator::Granted { partition, time, .. }
            | ToCoordinator::Voted { partition, time, .. } => {
                Extent::time(*time)?;
                self.partition(*partition)
            }
            ToCoordinator::NotLed { partition, .. }
            | ToCoordinator::Confirmed { partition, .. }
            | ToCoordinator::Inquire { asker: partition, .. } => self.partition(*partition),
            ToCoordinator::Changed { .. }
            | ToCoordinator::Full { .. }
            | ToCoordinator::Decided { .. }
            | ToCoordinator::TooMuch { .. }
            | ToCoordinator::Wound { .. } => Ok(()),
        }
    }
}

impl Packet {
    /// Checks every partition, node, term and time that a packet names.
    ///
    /// # Errors
    /// What there is not, in words for this node's log: the sender is to be cut off.
    pub fn check(&self, extent: &Extent<'_>) -> Result<(), String> {
        match self {
            Packet::Execute { batch, .. } => {
                batch.heads().try_for_each(|head| extent.partition(head.partition))
            }
            Packet::Partition(id, message) => {
                extent.partition(*id)?;
                extent.message_to_partition(message)
            }
            Packet::Coordinator(message) => extent.message_to_coordinator(message),
            Packet::Relay(to, relayed) => {
                extent.node(*to)?;
                extent.relayed(relayed)
            }
            Packet::Raft(messages) => extent.partitions(messages.iter().map(|(id, _)| id)),
            Packet::Leads(id, node, term) => {
                if *node != extent.from {
                    return Err(format!("it says that node {node} leads"));
                }
                extent.holds(*id, *node)?;
                Extent::term(*term)
            }
            Packet::Transfer(transfer) => extent.partition(transfer.partition()),
            Packet::Replicas(generations) => {
                generations.iter().try_for_each(|(id, _)| extent.holds(*id, extent.from))
            }
            Packet::Verified(ids) => ids.iter().try_for_each(|id| extent.holds(*id, extent.from)),
            Packet::Hello(_)
            | Packet::Refused
            | Packet::Claim(_)
            | Packet::Yours(..)
            | Packet::Ready
            // What it is a piece of is checked when it is whole.
            | Packet::Piece { .. }
            | Packet::Executed { .. }
            | Packet::Ping { .. }
            | Packet::Pong(_) => Ok(()),
        }
    }
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

impl Transfer {
    /// The partition that it is about.
    pub fn partition(&self) -> PartitionId {
        match self {
            Transfer::Offer { partition, .. }
            | Transfer::Want { partition, .. }
            | Transfer::Piece { partition, .. }
            | Transfer::Ended { partition, .. } => *partition,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, TxnId};
    use crate::txn::protocol::{Decide, Knowledge, Verdict};

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn check(packet: &Packet) -> Result<(), String> {
        // Partition 1 has one copy, on node 3.
        let placement = Placement::new(vec![NODES.to_vec(), vec![NodeId(3)]]);
        packet.check(&Extent { from: NodeId(2), placement: &placement, nodes: &NODES })
    }

    fn txn(node: u16) -> TxnId {
        TxnId { node: NodeId(node), incarnation: Incarnation(1), sequence: 1, attempt: 1 }
    }

    fn decide(node: u16, primary: u16) -> ToPartition {
        let primary = PartitionId(primary);
        let (verdict, deciding) = (Verdict::Commit, false);
        ToPartition::Decide(Decide { txn: txn(node), verdict, primary, deciding })
    }

    #[test]
    fn what_exists_is_accepted() {
        let knows = ToPartition::Knows {
            txn: txn(3),
            from: PartitionId(1),
            knowledge: Knowledge::Committed,
        };
        for packet in [
            Packet::Leads(PartitionId(0), NodeId(2), Term(7)),
            Packet::Partition(PartitionId(1), decide(1, 0)),
            Packet::Partition(PartitionId(0), knows),
            Packet::Verified(vec![PartitionId(0)]),
            Packet::Replicas(vec![(PartitionId(0), 2)]),
            Packet::Raft(vec![(PartitionId(0), serde_bytes::ByteBuf::new())]),
            Packet::Relay(NodeId(3), Relayed::Partition(PartitionId(1), decide(1, 0))),
        ] {
            assert_eq!(check(&packet), Ok(()), "{packet:?}");
        }
    }

    #[test]
    fn nodes_partitions_terms_and_times_that_there_are_not_are_refused() {
        let (some, none) = (PartitionId(0), PartitionId(2));
        let voted = |partition, time| {
            Packet::Coordinator(ToCoordinator::Voted { txn: txn(1), partition, time, vote: None })
        };
        let applied = ToPartition::Applied { txns: vec![txn(1), txn(4)], from: some };
        let inquire = ToPartition::Inquire { txn: txn(1), asker: none };
        let relay = |to, id, message| Packet::Relay(NodeId(to), Relayed::Partition(id, message));
        let ask = ToPartition::Inquire { txn: txn(1), asker: some };
        for packet in [
            Packet::Leads(some, NodeId(u16::MAX), Term(1)),
            // Only a leader says so, and only of what it holds.
            Packet::Leads(some, NodeId(1), Term(1)),
            Packet::Leads(PartitionId(1), NodeId(2), Term(1)),
            Packet::Leads(none, NodeId(2), Term(1)),
            Packet::Leads(some, NodeId(2), Term(TERM_MAX)),
            Packet::Leads(some, NodeId(2), Term(u64::MAX)),
            Packet::Partition(none, decide(1, 0)),
            Packet::Partition(some, decide(9, 0)),
            Packet::Partition(some, decide(1, 2)),
            Packet::Partition(some, applied),
            Packet::Partition(some, inquire),
            relay(4, some, decide(1, 0)),
            relay(3, none, decide(1, 0)),
            relay(3, some, decide(9, 0)),
            // Its primary has one copy.
            relay(3, some, decide(1, 1)),
            relay(3, some, ask),
            Packet::Verified(vec![some, none]),
            Packet::Verified(vec![PartitionId(1)]),
            Packet::Replicas(vec![(none, 1)]),
            Packet::Raft(vec![(none, serde_bytes::ByteBuf::new())]),
            voted(none, 1),
            voted(some, u64::MAX),
            Packet::Transfer(Transfer::Want { partition: none, index: 1, offset: 0 }),
        ] {
            assert!(check(&packet).is_err(), "{packet:?}");
        }
    }
}
