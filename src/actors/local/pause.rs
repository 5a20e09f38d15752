//! Pauses: which commands wait, until when, and which Sessions to wake then.

use super::Local;
use crate::command::spec::{Spec, WRITE};
use crate::command::transaction::Queue;
use crate::ids::Millis;
use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// What commands wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) until: Millis,
    pub(super) writes_only: bool,
}

impl Pause {
    /// Both pauses: until the later end, and as strict as the stricter of them.
    fn and(self, other: Pause) -> Pause {
        Pause {
            until: self.until.max(other.until),
            writes_only: self.writes_only && other.writes_only,
        }
    }
}

/// The pause of an arbiter, and the Sessions that it holds back.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    pause: Cell<Option<Pause>>,
    paused: RefCell<Vec<Waker>>,
    /// How many Sessions it holds back.
    blocked: Cell<u64>,
}

impl Pauses {
    /// How many Sessions are held back.
    pub(super) fn blocked(&self) -> u64 {
        self.blocked.get()
    }

    /// A pause begins beside the one that there may be.
    pub(super) fn begin(&self, pause: Pause, now: Millis) {
        let before = self.pause.get().filter(|pause| pause.until > now);
        self.pause.set(Some(before.map_or(pause, |before| before.and(pause))));
    }

    /// It ends.
    pub(super) fn end(&self) {
        self.pause.set(None);
        self.paused.take().into_iter().for_each(Waker::wake);
    }

    /// It ends if its time has come.
    pub(super) fn pass(&self, now: Millis) {
        if self.pause.get().is_some_and(|pause| pause.until <= now) {
            self.end();
        }
    }
}

impl Local {
    /// Whether a command has to wait until a pause is over.
    #[inline]
    pub fn holds(&self, spec: &Spec, queue: Option<&Queue>) -> bool {
        self.pauses.pause.get().is_some_and(|pause| {
            let writes =
                spec.flags & WRITE != 0 || spec.executes() && queue.is_some_and(Queue::writes);
            writes || !pause.writes_only
        })
    }

    /// A pause holds a Session back, or does no more.
    pub fn block(&self, blocked: bool) {
        let count = self.pauses.blocked.get();
        self.pauses.blocked.set(if blocked { count + 1 } else { count.saturating_sub(1) });
    }

    /// Whether a pause goes on; if so, `context` is woken when it ends.
    pub fn poll_pause(&self, context: &Context<'_>) -> bool {
        let paused = self.pauses.pause.get().is_some();
        if paused {
            self.pauses.paused.borrow_mut().push(context.waker().clone());
        }
        paused
    }
}
