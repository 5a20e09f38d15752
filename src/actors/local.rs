//! What the Sessions of one arbiter share with its Bucket: plain values of one thread.

use crate::actors::book::Book;
use crate::command::facts::Facts;
use crate::config::Limits;
use crate::engine::barrier::Standing;
use crate::engine::slots::Ring;
use crate::engine::tables::KeyHasher;
use crate::metrics::Counters;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

/// What a node's arbiters are given to set themselves up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where slots lie.
    pub ring: Ring,
    /// What places keys in their tables.
    pub hasher: KeyHasher,
    /// What clients may do.
    pub limits: Limits,
    /// Clients connected to the node.
    pub connected: Arc<AtomicUsize>,
}

/// The shared values of one arbiter.
#[derive(Debug)]
pub struct Local {
    /// Who serves what.
    pub book: Arc<Book>,
    /// What it was set up with.
    pub setup: Setup,
    /// What its Sessions counted.
    pub counters: RefCell<Counters>,
    standing: RefCell<Standing>,
    facts: RefCell<Arc<Facts>>,
    retiring: Cell<bool>,
    signals: RefCell<BTreeMap<u64, Rc<Signal>>>,
}

/// Wakes a Session that waits for its client.
#[derive(Debug, Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A Session's place among those of its arbiter, given up when it ends.
#[derive(Debug)]
pub struct Place {
    local: Rc<Local>,
    client: u64,
    /// Raised when the Session is to end.
    pub signal: Rc<Signal>,
}

impl Local {
    /// The shared values of an arbiter whose node waits for the others.
    pub fn new(book: Arc<Book>, setup: Setup) -> Rc<Local> {
        let missing = book.peers.keys().copied().collect();
        Rc::new(Local {
            book,
            setup,
            counters: RefCell::default(),
            standing: RefCell::new(Standing::Waiting(missing)),
            facts: RefCell::default(),
            retiring: Cell::new(false),
            signals: RefCell::default(),
        })
    }

    /// Whether the node serves.
    #[inline]
    pub fn serves(&self) -> bool {
        *self.standing.borrow() == Standing::Formed
    }

    /// Whether the node serves, and whom it waits for.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Learns whether the node may serve.
    pub fn stand(&self, standing: Standing) {
        self.standing.replace(standing);
    }

    /// What the node knows to report.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// Learns what the node knows to report.
    pub fn inform(&self, facts: Arc<Facts>) {
        self.facts.replace(facts);
    }

    /// Sessions that live on this arbiter.
    pub fn sessions(&self) -> usize {
        self.signals.borrow().len()
    }

    /// Gives a new Session its place.
    pub fn enter(self: &Rc<Local>, client: u64) -> Place {
        let signal = Rc::new(Signal::default());
        if self.retiring.get() {
            signal.raise();
        }
        self.signals.borrow_mut().insert(client, signal.clone());
        Place { local: self.clone(), client, signal }
    }

    /// Lets every Session end once it has answered what it has read.
    pub fn retire(&self) {
        self.retiring.set(true);
        self.signals.borrow().values().for_each(|signal| signal.raise());
    }
}

impl Signal {
    /// Raises the signal, once and for good.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether it is raised; if not, `context` is woken when it is.
    #[inline]
    pub fn poll(&self, context: &Context<'_>) -> bool {
        if self.raised.get() {
            return true;
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.local.signals.borrow_mut().remove(&self.client);
        self.local.setup.connected.fetch_sub(1, Ordering::Relaxed);
    }
}
