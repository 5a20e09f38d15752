//! The submission queue between an arbiter's Sessions and its Bucket.
//!
//! A client that does not pipeline has one command under way, so its Session has a batch of one.
//! But in one turn of the arbiter many Sessions read, and what they read can be served together:
//! each submits its batch, the first one rings, and the Bucket takes the whole queue with
//! one message. That saves a message and a channel a command, and the cache misses of fifty
//! lone commands overlap as those of one long batch do.
//!
//! All of it is plain values of one thread. Batches for other arbiters and nodes travel as
//! [`Execute`](crate::actors::bucket::Execute).

use crate::batch::{Batch, Replies};
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Batches that wait for the Bucket of their arbiter.
#[derive(Debug, Default)]
pub struct SubmissionQueue {
    submitted: RefCell<Vec<Submitted>>,
}

/// A batch in the queue.
#[derive(Debug)]
pub struct Submitted {
    /// The operations.
    pub batch: Batch,
    /// An empty buffer for their replies.
    pub replies: Replies,
    /// Where what becomes of them is put.
    pub slot: Rc<Slot>,
}

/// A batch served.
#[derive(Debug)]
pub struct Served {
    /// The operations, for their buffers.
    pub batch: Batch,
    /// As many replies as were reached before they grew too large.
    pub replies: Replies,
    /// How long it took, from its turn on.
    pub took: Duration,
}

/// A Session's place in the queue: it has at most one batch there.
#[derive(Debug, Default)]
pub struct Slot {
    served: RefCell<Option<Served>>,
    waker: RefCell<Option<Waker>>,
}

impl SubmissionQueue {
    /// Lays a batch down. True for the first one: its Session rings for the Bucket.
    #[inline]
    pub fn submit(&self, submitted: Submitted) -> bool {
        let mut all = self.submitted.borrow_mut();
        all.push(submitted);
        all.len() == 1
    }

    /// Takes all that was submitted down, and leaves `empty` in its place.
    pub fn swap(&self, empty: Vec<Submitted>) -> Vec<Submitted> {
        debug_assert!(empty.is_empty());
        self.submitted.replace(empty)
    }
}

impl Slot {
    /// Gives the Session what it waits for.
    #[inline]
    pub fn give(&self, served: Served) {
        let before = self.served.replace(Some(served));
        debug_assert!(before.is_none(), "a Session has one batch in the submission queue");
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Takes it; if it is not there yet, `context` is woken when it is.
    #[inline]
    pub fn poll(&self, context: &Context<'_>) -> Poll<Served> {
        if let Some(served) = self.served.take() {
            return Poll::Ready(served);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_one_rings() {
        let submissions = SubmissionQueue::default();
        let slot = Rc::new(Slot::default());
        let submit = || {
            let (batch, replies) = (Batch::new(), Replies::default());
            submissions.submit(Submitted { batch, replies, slot: slot.clone() })
        };
        assert_eq!([submit(), submit(), submit()], [true, false, false]);
        assert_eq!(submissions.swap(Vec::new()).len(), 3);
        assert!(submit(), "an empty queue is rung for again");
    }

    #[test]
    fn a_slot_gives_once() {
        let slot = Slot::default();
        let context = Context::from_waker(Waker::noop());
        assert!(slot.poll(&context).is_pending());
        let (batch, replies) = (Batch::new(), Replies::default());
        slot.give(Served { batch, replies, took: Duration::from_micros(3) });
        match slot.poll(&context) {
            Poll::Ready(served) => assert_eq!(served.took, Duration::from_micros(3)),
            Poll::Pending => panic!("it was given"),
        }
        assert!(slot.poll(&context).is_pending());
    }
}
