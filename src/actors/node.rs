//! A node: its actors, placed and wired, and its listening sockets; and how it stops.

mod doors;
mod start;

pub use self::start::start;

use crate::actors::book::Book;
use crate::actors::bucket;
use crate::actors::failpoint::Failpoint;
use crate::actors::log::{self as disk, Log, Stop};
use crate::ids::{Millis, Now};
use crate::metrics::Usage;
use actix::Addr;
use actix_rt::ArbiterHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// How long a stopping node waits for its clients' last replies to be taken.
const RETIRE_MAX: Duration = Duration::from_secs(5);

/// How long a stopping node tries to hand over what it leads, and how often it looks.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
const HAND_OVER_LOOK: Duration = Duration::from_millis(5);

/// Streams to the port for other nodes that have not said yet who they are.
pub const STRANGERS_MAX: usize = 16;

/// Where a node's actors live.
#[derive(Clone, Debug)]
pub enum Arbiters {
    /// All on the current arbiter.
    Here,
    /// A Bucket on each of these; Log and Archive on one of their own; everything else on the
    /// current one, which is the first of the Buckets'.
    On {
        /// For the Buckets.
        buckets: Vec<ArbiterHandle>,
        /// For the Log.
        log: ArbiterHandle,
        /// For the Archive.
        archive: ArbiterHandle,
    },
}

/// What a node is born with, beside its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// The wall clock and the monotonic one.
    pub clock: fn() -> Now,
    /// What the process takes of the machine, where that can be told.
    pub usage: fn() -> Option<Usage>,
    /// When it was born.
    pub started: Millis,
    /// Which boot of the machine this is.
    pub boot: fn() -> String,
    /// Stops the process because the node cannot go on, for a reason.
    pub stop: Stop,
    /// Where a test has it die.
    pub failpoint: Failpoint,
}

impl Arbiters {
    fn count(&self) -> usize {
        match self {
            Arbiters::Here => 1,
            Arbiters::On { buckets, .. } => buckets.len(),
        }
    }
}

/// A node that runs.
#[derive(Debug)]
pub struct Node {
    book: Arc<Book>,
    connected: Arc<AtomicUsize>,
    clients: JoinHandle<()>,
    log: Option<Addr<Log>>,
    formed: Option<oneshot::Receiver<()>>,
}

impl Node {
    /// Tells once the node serves. To be taken once.
    pub fn take_formed(&mut self) -> Option<oneshot::Receiver<()>> {
        self.formed.take()
    }

    /// Stops: takes no more clients, hands over what it leads if other nodes go on, lets every
    /// Session answer what it has read, closes.
    ///
    /// Its peers may dial it to the end: a port without a listener tells them that the process is gone.
    pub async fn stop(self, others_go_on: bool) {
        self.clients.abort();
        if others_go_on {
            self.hand_over().await;
        }
        self.book.buckets.iter().for_each(|bucket| bucket.do_send(bucket::Retire));
        let begun = Instant::now();
        while self.connected.load(Ordering::Relaxed) > 0 && begun.elapsed() < RETIRE_MAX {
            sleep(Duration::from_millis(5)).await;
        }
        if let Some(log) = &self.log {
            // An actor that is gone has nothing to write.
            let _ = log.send(disk::Finish).await;
        }
    }

    /// Has the partitions led here led elsewhere, as far as that takes no longer than
    /// [`HAND_OVER_MAX`].
    async fn hand_over(&self) {
        let begun = Instant::now();
        let mut first = None;
        loop {
            let mut left = 0;
            for bucket in &self.book.buckets {
                left += bucket.send(bucket::HandOver).await.unwrap_or_default();
            }
            let first = *first.get_or_insert(left);
            if left == 0 || begun.elapsed() >= HAND_OVER_MAX {
                if first > 0 {
                    let (moved, took) = (first - left.min(first), begun.elapsed().as_millis());
                    log::info!(target: "node", "handed over {moved} of {first} partitions in {took} ms");
                }
                return;
            }
            sleep(HAND_OVER_LOOK).await;
        }
    }
}
