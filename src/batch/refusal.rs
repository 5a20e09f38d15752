//! Why a request was not served, as its client is told.

use crate::ids::{NodeId, PartitionId};
use serde::{Deserialize, Serialize};

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The node that serves the partition cannot be reached.
    Unreachable(NodeId),
    /// The partition is not served by the node that was asked.
    NotLeader,
    /// No node leads the partition: a majority of its replicas cannot be reached.
    NoLeader(PartitionId),
    /// The leader lost its office with the request under way, and what became of it is not known.
    Unknown(PartitionId),
    /// The leader lost its office before the request was logged for good: it was not executed.
    Deposed(PartitionId),
    /// What is asked, or would be answered to a read, is longer than can be carried: nothing was
    /// executed.
    TooLong,
    /// The request waited too long for a key that a transaction holds.
    Locked,
    /// It lost its locks too many times in a row.
    Contention,
    /// The node's tables have reached their limit.
    Full,
    /// The node is stopping.
    Stopping,
    /// The write was applied, and its reply is longer than can be carried.
    Untold,
    /// The read was not executed, for the replies of what was logged with it are long.
    Crowded,
    /// So many keys are not gathered at one node.
    Gathers(u32),
    /// The operations of a transaction go through, or answer with, too many bytes of values together:
    /// nothing was executed.
    TooMuch,
}
