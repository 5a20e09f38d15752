//! The register of an arbiter's clients: what each shows of itself, and when its Session is to end.

use super::Local;
use crate::actors::bucket;
use crate::actors::submission::Slot;
use crate::command::client::{Client, ClientInfo};
use crate::command::node_query::Selection;
use crate::ids::Millis;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

/// Its clients, by id.
#[derive(Debug, Default)]
pub(super) struct Clients {
    entries: RefCell<BTreeMap<u64, Rc<Entry>>>,
    /// Every Session is to end.
    retiring: Cell<bool>,
}

/// A client in the register.
#[derive(Debug)]
pub struct Entry {
    /// What the client shows of itself.
    pub info: RefCell<ClientInfo>,
    /// Since when it has left replies unread.
    pub unread_since: Cell<Option<Millis>>,
    /// Whether its Session waits for it, rather than it for its replies.
    pub is_awaited: Cell<bool>,
    /// Raised when its Session is to end.
    pub signal: Signal,
    /// Where its Bucket's replies come.
    pub slot: Rc<Slot>,
}

/// Wakes a Session that waits for its client.
#[derive(Debug, Default)]
pub struct Signal {
    raised: Cell<bool>,
    killed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A Session's place among those of its arbiter, given up when it ends.
#[derive(Debug)]
pub struct Place {
    local: Rc<Local>,
    client: u64,
    /// What the others see of it.
    pub entry: Rc<Entry>,
}

impl Clients {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.entries.borrow().len()
    }

    /// What those show of themselves that live.
    pub(super) fn shown(&self) -> Vec<ClientInfo> {
        let clients = self.entries.borrow();
        let living = clients.values().filter(|entry| !entry.signal.is_killed());
        living.map(|entry| entry.info.borrow().clone()).collect()
    }

    /// Ends the Sessions of those that are meant, and tells how many.
    pub(super) fn kill(&self, selection: &Selection) -> u64 {
        // Whom a command before this one killed is gone, though the Session may not know yet.
        let clients = self.entries.borrow();
        let living = clients.values().filter(|entry| !entry.signal.is_killed());
        let meant = living.filter(|entry| selection.takes(&entry.info.borrow()));
        meant.map(|entry| entry.signal.kill()).count() as u64
    }

    /// Lets clients go that are quiet for longer than `idle` ms or leave replies unread for longer
    /// than `unread` ms.
    pub(super) fn let_go(&self, now: Millis, idle: u64, unread: u64) {
        // When a client was last active is known to a tick.
        let idle_max = idle + bucket::TICK.as_millis() as u64;
        let since = |then: Millis| now.0.saturating_sub(then.0);
        for entry in self.entries.borrow().values() {
            let info = entry.info.borrow();
            if entry.unread_since.get().is_some_and(|then| since(then) > unread) {
                log::warn!(
                    target: "session",
                    "closing client {} at {}: it has left replies unread for {unread} ms",
                    info.id, info.address
                );
                entry.signal.kill();
            } else if idle > 0
                && !info.monitor
                && entry.is_awaited.get()
                && entry.unread_since.get().is_none()
                && since(info.active_at) > idle_max
            {
                log::debug!(target: "session", "closing client {}: it is idle", info.id);
                entry.signal.kill();
            }
        }
    }
}

impl Local {
    /// Gives a new Session its place.
    pub fn enter(self: &Rc<Local>, client: &Client) -> Place {
        let entry = Rc::new(Entry {
            info: RefCell::new(client.info()),
            unread_since: Cell::new(None),
            is_awaited: Cell::new(false),
            signal: Signal::default(),
            slot: Rc::default(),
        });
        if self.clients.retiring.get() {
            entry.signal.raise();
        }
        self.clients.entries.borrow_mut().insert(client.id, entry.clone());
        Place { local: self.clone(), client: client.id, entry }
    }

    /// Lets every Session end once it has answered what it has read.
    pub fn retire(&self) {
        self.clients.retiring.set(true);
        self.pauses.end();
        self.clients.entries.borrow().values().for_each(|entry| entry.signal.raise());
    }
}

impl Signal {
    /// Raises the signal, once and for good: the Session ends once it has answered what it has
    /// read.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The Session ends at once, whatever it is doing.
    pub fn kill(&self) {
        self.killed.set(true);
        self.raise();
    }

    /// Whether the Session is to end at once.
    #[inline]
    pub fn is_killed(&self) -> bool {
        self.killed.get()
    }

    /// Whether it is raised; if not, `context` is woken when it is.
    #[inline]
    pub fn poll(&self, context: &Context<'_>) -> bool {
        if self.raised.get() {
            return true;
        }
        self.wake_on_raise(context);
        false
    }

    /// Whether the Session is to end at once; if not, `context` is woken when it is.
    #[inline]
    pub fn poll_kill(&self, context: &Context<'_>) -> bool {
        if self.killed.get() {
            return true;
        }
        self.wake_on_raise(context);
        false
    }

    fn wake_on_raise(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.local.clients.entries.borrow_mut().remove(&self.client);
        self.local.monitors.forget(self.client);
        self.local.setup.connected.fetch_sub(1, Ordering::Relaxed);
    }
}
