//! Operations that met a node which does not lead their partition (any more, or yet).
//!
//! They were not executed, so they may be asked of whoever leads; while nobody does they wait,
//! bounded by [`Limits::failover_wait`](crate::config::Limits). Operations on one partition go
//! together and in order, as they came.

use super::round::{landed, refuse_long};
use crate::actors::bucket::{Answer, Execute, Outcome};
use crate::actors::local::Local;
use crate::command::Redis;
use crate::engine::batch::{Batch, Part, Replies};
use crate::engine::machine::Machine;
use crate::engine::protocol::Refusal;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// How long nobody is asked after somebody was who does not lead.
const PAUSE: Duration = Duration::from_millis(5);

/// Has misplaced operations executed by whoever leads. Returns the batch's replies without any that
/// are misplaced; what its leaders left is left.
///
/// # Errors
/// When the node is stopping.
pub(super) async fn settle(
    batch: &Batch,
    mut replies: Replies,
    local: &Local,
) -> io::Result<Replies> {
    let begun = Instant::now();
    let mut late: BTreeMap<u32, Late> = BTreeMap::new();
    let mut open = std::mem::take(&mut replies.misplaced);
    let mut pause = Duration::ZERO;
    while !open.is_empty() {
        if begun.elapsed() >= local.setup.limits.failover_wait {
            for index in open.drain(..) {
                let partition = batch.head(index as usize).partition;
                let mut reply = Vec::new();
                Redis::refuse(&Refusal::NoLeader(partition), &mut reply);
                late.insert(index, Late::Answered(reply));
            }
            break;
        }
        sleep(pause).await;
        pause = PAUSE;
        let mut shares: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for index in open.drain(..) {
            let partition = batch.head(index as usize).partition;
            shares.entry(local.book.route(partition)).or_default().push(index);
        }
        let mut asked = Vec::new();
        for (destination, indices) in shares {
            let mut share = Batch::new();
            indices.iter().for_each(|index| share.push_op(&batch.op(*index as usize)));
            let (answer, outcome) = oneshot::channel();
            let answer = Answer::Session(answer);
            let execute = Execute { batch: share, replies: Replies::default(), answer };
            local.book.execute(destination, execute);
            asked.push((indices, outcome));
        }
        for (indices, outcome) in asked {
            take(&indices, outcome.await, &mut late, &mut open)?;
        }
        open.sort_unstable();
    }
    let parts = (0..replies.len()).map(|index| match late.get(&(index as u32)) {
        Some(Late::Answered(reply)) => Part::Answered(reply),
        Some(Late::Left) => Part::Left,
        None => replies.part(index),
    });
    Ok(Replies::gather(parts, |index, reply| refuse_long(batch.head(index), reply)))
}

/// What a leader made of an operation that was misplaced.
enum Late {
    Answered(Vec<u8>),
    Left,
}

/// Takes what one destination answered; what it turned away stays open.
fn take(
    indices: &[u32],
    outcome: Result<Outcome, oneshot::error::RecvError>,
    late: &mut BTreeMap<u32, Late>,
    open: &mut Vec<u32>,
) -> io::Result<()> {
    let (_, replies) = landed(outcome)?;
    for (place, index) in indices.iter().enumerate() {
        match replies.part(place) {
            Part::Answered(reply) => drop(late.insert(*index, Late::Answered(reply.to_vec()))),
            // It has a leader: the Session asks that one once it has taken what is answered.
            Part::Left => drop(late.insert(*index, Late::Left)),
            Part::Misplaced => open.push(*index),
        }
    }
    Ok(())
}
