//! What a destination made of a batch, and what is said in the place of one that did not answer.

use crate::actors::bucket::{Failure, Outcome};
use crate::batch::machine::Machine;
use crate::batch::round;
use crate::batch::{Batch, Replies};
use crate::command::Redis;
use crate::command::reply::Reply;
use crate::ids::NodeId;
use crate::store::tables::Access;
use std::io;
use tokio::sync::oneshot;

/// What a destination made of a batch, or what is to be said in its place.
///
/// # Errors
/// When the node is stopping.
pub(super) fn landed(
    outcome: Result<Outcome, oneshot::error::RecvError>,
) -> io::Result<(Batch, Replies)> {
    match outcome {
        Ok(Ok(answered)) => Ok(answered),
        Ok(Err((batch, failure))) => {
            let replies = failed(&batch, &failure);
            Ok((batch, replies))
        }
        Err(_) => Err(stopping()),
    }
}

/// Why nothing is answered any more.
pub(super) fn stopping() -> io::Error {
    io::Error::other("the node is stopping")
}

/// The replies to operations that a destination did not answer.
fn failed(batch: &Batch, failure: &Failure) -> Replies {
    match failure {
        Failure::Unknown(node) => {
            round::lost::<Redis>(batch, |access, reply| unknown(Some((*node, access)), reply))
        }
        Failure::Refused(refusal) => {
            let mut replies = Replies::default();
            for _ in 0..batch.len() {
                Redis::refuse(refusal, &mut replies.bytes);
                replies.end();
            }
            replies
        }
    }
}

/// Says what can be said of operations that were under way when a node was lost.
pub(super) fn unknown(lost: Option<(NodeId, Access)>, out: &mut Vec<u8>) {
    let mut reply = Reply::new(out, false);
    match lost {
        Some((node, Access::Read)) => {
            reply.error(&format!("TRYAGAIN node {node} was lost before it answered"));
        }
        Some((node, Access::Write)) => reply.error(&format!(
            "UNKNOWN node {node} was lost with the write under way: it may have been applied"
        )),
        None => reply.error(
            "UNKNOWN a node was lost with the transaction under way: it was applied whole or not \
             at all",
        ),
    }
}
