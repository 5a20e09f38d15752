//! What a Bucket is told and asked, and where the outcome of what it executes goes.

use super::Report;
use crate::actors::book::Book;
use crate::actors::local::Feed;
use crate::actors::log::Link;
use crate::actors::metrics::Metrics;
use crate::actors::peer::{self, Peer};
use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Replies};
use crate::cluster::barrier::{Hello, Standing};
use crate::command::Redis;
use crate::command::facts::Facts;
use crate::command::node_query::{NodeAnswer, Question};
use crate::consensus;
use crate::ids::{Incarnation, NodeId, Now, PartitionId};
use crate::net::listen::LooseStream;
use crate::partition::Partition;
use crate::partition::snapshots::FromArchive;
use crate::txn::protocol::{Ticket, ToPartition};
use actix::{Addr, Message};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Operations to be executed, from a Session here or elsewhere.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Execute {
    /// The operations.
    pub batch: Batch,
    /// An empty buffer for their replies.
    pub replies: Replies,
    /// Where the replies go.
    pub answer: Answer,
}

/// What became of an [`Execute`]: the batch comes back for its buffers, with as many replies as
/// were reached before they grew too large, or with the reason for none.
pub type Outcome = Result<(Batch, Replies), (Batch, Failure)>;

/// Why operations have no replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// They were surely not executed.
    Refused(Refusal),
    /// The node was lost while they were under way.
    Unknown(NodeId),
}

/// Where an outcome goes.
#[derive(Debug)]
pub enum Answer {
    /// To a task of this node.
    Session(oneshot::Sender<Outcome>),
    /// To another node, through its Peer.
    Peer {
        /// The Peer.
        peer: Addr<Peer>,
        /// Which of its streams asked.
        stream: u64,
        /// The request's id on that stream.
        id: u64,
        /// The other node may have given it up from then on: it is not executed any more.
        until: Now,
    },
}

impl Answer {
    /// Whether who asked may have given up.
    pub(super) fn is_late(&self, now: Now) -> bool {
        matches!(self, Answer::Peer { until, .. } if now.may_be_past(*until))
    }

    pub(super) fn give(self, batch: Batch, replies: Replies) {
        match self {
            // A Session that is gone needs no answer.
            Answer::Session(session) => drop(session.send(Ok((batch, replies)))),
            Answer::Peer { peer, stream, id, .. } => {
                peer.do_send(peer::Answered { stream, id, batch, replies });
            }
        }
    }
}

/// Batches of this arbiter's Sessions lie in the submission queue.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Serve;

/// Messages of the commit protocol, each for one of the partitions, in the order sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ForPartitions(pub Vec<(PartitionId, ToPartition)>);

/// Messages of partitions' groups, from their replicas on another node.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Raft {
    /// The other node.
    pub from: NodeId,
    /// Each with its partition, in the order sent.
    pub messages: Vec<(PartitionId, Bytes)>,
}

/// The lock manager grants a request.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Granted {
    /// Where.
    pub partition: PartitionId,
    /// Which request.
    pub ticket: Ticket,
}

/// The node's archive of snapshots has news for a partition.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Archived(pub PartitionId, pub FromArchive<Redis>);

/// A node's replicas of these partitions are of these generations.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reborn(pub NodeId, pub Vec<(PartitionId, u32)>);

/// The node goes on in a later life than the one it began in, and has not served in that.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Relive(pub Incarnation);

/// These take the place of the partitions as they were found: this node begins with nothing.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Rejoin(pub Vec<Partition<Redis>>);

/// The suspicion of these partitions is settled: with a setup, the replica goes on as that one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle(pub Vec<(PartitionId, Option<consensus::Setup>)>);

/// Have a snapshot made of this partition, if it is here.
#[derive(Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Snapshot(pub PartitionId);

/// The address book is ready.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Arc<Book>, pub Option<Link>);

/// Whether the node may serve has changed, or whom it waits for.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stand(pub Standing);

/// A node is linked both ways.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeUp(pub Hello);

/// A node cannot be reached; its life may be known to be over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeDown {
    /// The node.
    pub node: NodeId,
    /// The life that no process listens for any more.
    pub ended: Option<Incarnation>,
    /// Whether the process closed its streams before: it is dead, beyond what a firewall can feign.
    pub dead: bool,
}

/// A linked node does not answer, or answers again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeSuspected {
    /// The node.
    pub node: NodeId,
    /// Whether it is suspected from now on.
    pub suspected: bool,
}

/// The node stops: hand over what is led here. Answers how many partitions are still led here that
/// another node could lead.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct HandOver;

/// A client has connected.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Connect {
    /// Its socket, on no arbiter yet.
    pub stream: LooseStream,
    /// Its id, unique on the node.
    pub client: u64,
}

/// A client asks about all clients of the node.
#[derive(Message)]
#[rtype(result = "NodeAnswer")]
pub struct Ask(pub Question);

/// A client wants to be told what all clients of the node ask.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Watch {
    /// Its id.
    pub client: u64,
    /// Where it is told.
    pub feed: Feed,
}

/// The node's Metrics are there.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Meet(pub Addr<Metrics>);

/// What the node knows to report has changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Inform(pub Arc<Facts>);

/// Let the Sessions finish what they are doing, then close them.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Retire;

/// What has the Bucket counted, and what does it hold?
#[derive(Message)]
#[rtype(result = "Report")]
pub struct Observe;
