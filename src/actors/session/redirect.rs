//! Operations that met a node which does not lead their partition (any more, or yet).
//!
//! They were not executed, so they may be asked of the leader; while there is none they wait,
//! bounded by [`Limits::failover_wait`](crate::config::Limits). Operations on one partition go
//! together and in order, as they came.

use super::outcome::landed;
use crate::actors::bucket::{Answer, Execute};
use crate::actors::local::Local;
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::round::Redirect;
use crate::batch::{Batch, Replies};
use crate::command::Redis;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// How long to wait after a node was asked that does not lead.
const PAUSE: Duration = Duration::from_millis(5);

/// Has operations that met a node that does not lead executed by the leader. Returns the batch and its
/// replies without any from a node that does not lead; what its leaders left is left.
///
/// # Errors
/// When the node is stopping.
pub(super) async fn settle(
    batch: Batch,
    mut replies: Replies,
    local: Rc<Local>,
) -> io::Result<(Batch, Replies)> {
    let begun = Instant::now();
    let mut redirect = Redirect::of(&mut replies);
    let mut pause = Duration::ZERO;
    while !redirect.is_over() {
        if begun.elapsed() >= local.setup.limits.failover_wait {
            redirect.give_up(&batch, |partition, reply| {
                Redis::refuse(&Refusal::NoLeader(partition), reply);
            });
            break;
        }
        sleep(pause).await;
        pause = PAUSE;
        let mut asked = Vec::new();
        for (destination, (indices, share)) in
            redirect.shares(&batch, |partition| local.book.route(partition))
        {
            let (answer, outcome) = oneshot::channel();
            let answer = Answer::Session(answer);
            let execute = Execute { batch: share, replies: Replies::default(), answer };
            local.book.execute(destination, execute);
            asked.push((indices, outcome));
        }
        for (indices, outcome) in asked {
            let (_, replies) = landed(outcome.await)?;
            redirect.take(&indices, &replies);
        }
    }
    let replies = redirect.finish::<Redis>(&batch, &replies);
    Ok((batch, replies))
}
