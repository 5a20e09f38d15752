//! What became of the requests of an arbiter's clients: calls by command, errors by kind.

use super::Local;
use crate::batch::{Batch, OpCode, Replies};
use crate::command::facts::Calls;
use crate::command::spec::{self, Spec};
use crate::metrics::Counters;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// Kinds of errors that are told apart; the others are only counted.
const ERROR_KINDS_MAX: usize = 128;

/// What the Sessions of an arbiter counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Since the node started.
    pub counters: Counters,
    /// The same, since the figures were last to be forgotten.
    pub counted: Counters,
    /// What became of each command's requests since then.
    pub calls: Vec<(&'static Spec, Calls)>,
    /// Error replies since then, by their first word.
    pub errors: BTreeMap<String, u64>,
    /// Sessions that live.
    pub sessions: usize,
    /// Sessions that a pause holds back.
    pub blocked: u64,
}

/// What is counted beside the counters.
#[derive(Debug)]
pub(super) struct Tallies {
    /// What the counters were when they were last to be forgotten.
    forgotten: Cell<Counters>,
    /// What became of commands on data, by code, and of all others.
    data_calls: RefCell<Vec<Calls>>,
    calls: RefCell<BTreeMap<Named, Calls>>,
    /// Error replies by their first word.
    errors: RefCell<BTreeMap<String, u64>>,
}

impl Default for Tallies {
    fn default() -> Tallies {
        Tallies {
            forgotten: Cell::default(),
            data_calls: RefCell::new(vec![Calls::default(); spec::CODES]),
            calls: RefCell::default(),
            errors: RefCell::default(),
        }
    }
}

impl Tallies {
    /// Counts from here on, where the counters are at `counters`.
    pub(super) fn forget(&self, counters: Counters) {
        self.forgotten.set(counters);
        self.data_calls.borrow_mut().fill(Calls::default());
        self.calls.borrow_mut().clear();
        self.errors.borrow_mut().clear();
    }
}

/// A row of the command table, told from others by its place.
#[derive(Clone, Copy, Debug)]
struct Named(&'static Spec);

impl Named {
    fn place(self) -> usize {
        std::ptr::from_ref(self.0).addr()
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Named) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Named {}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Named) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Named {
    fn cmp(&self, other: &Named) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

impl Local {
    /// What its Sessions counted.
    pub fn tally(&self) -> Tally {
        let counters = *self.counters.borrow();
        let known = |calls: &Calls| *calls != Calls::default();
        let data = self.tallies.data_calls.borrow();
        let data = (0..).zip(data.iter()).filter(|(_, calls)| known(calls));
        let data = data.filter_map(|(code, calls)| Some((spec::by_code(OpCode(code))?.0, *calls)));
        let others = self.tallies.calls.borrow();
        Tally {
            counters,
            counted: counters.since(&self.tallies.forgotten.get()),
            calls: data.chain(others.iter().map(|(named, calls)| (named.0, *calls))).collect(),
            errors: self.tallies.errors.borrow().clone(),
            sessions: self.clients.count(),
            blocked: self.pauses.blocked(),
        }
    }

    /// Notes something of a command.
    #[inline]
    fn note(&self, spec: &'static Spec, note: impl Fn(&mut Calls)) {
        let code = spec.data().map(|data| usize::from(data.code.0));
        match code.and_then(|code| self.tallies.data_calls.borrow_mut().get_mut(code).map(&note)) {
            Some(()) => {}
            None => note(self.tallies.calls.borrow_mut().entry(Named(spec)).or_default()),
        }
    }

    /// A command is served.
    #[inline]
    pub fn count_call(&self, spec: &'static Spec) {
        self.note(spec, |calls| calls.calls += 1);
    }

    /// A command is not begun.
    pub fn reject(&self, spec: &'static Spec) {
        self.note(spec, |calls| calls.rejected += 1);
    }

    /// A command took so long.
    pub fn spend(&self, spec: &'static Spec, took: Duration) {
        self.note(spec, |calls| calls.nanos += took.as_nanos() as u64);
    }

    /// Counts a reply if it is an error; that of the command, if it came to one.
    #[inline]
    pub fn note_reply(&self, spec: Option<&'static Spec>, reply: &[u8]) {
        if reply.first() == Some(&b'-') {
            self.note_error(reply);
            if let Some(spec) = spec {
                self.note(spec, |calls| calls.failed += 1);
            }
        }
    }

    #[cold]
    fn note_error(&self, reply: &[u8]) {
        self.counters.borrow_mut().errors += 1;
        let kind = reply[1..].split(|byte| matches!(byte, b' ' | b'\r')).next();
        let kind = String::from_utf8_lossy(kind.unwrap_or_default());
        let mut errors = self.tallies.errors.borrow_mut();
        if let Some(count) = errors.get_mut(kind.as_ref()) {
            *count += 1;
        } else if errors.len() < ERROR_KINDS_MAX {
            errors.insert(kind.into_owned(), 1);
        }
    }

    /// Notes what became of a batch, as far as it is answered. Its time is shared out evenly among
    /// its operations: a look at the clock for each would cost more than many of them.
    pub fn note_batch(&self, took: Duration, batch: &Batch, replies: &Replies) {
        let each = took.as_nanos() as u64 / replies.len().max(1) as u64;
        let mut start = 0;
        let mut calls = self.tallies.data_calls.borrow_mut();
        for (head, &end) in batch.heads().zip(&replies.ends) {
            if let Some(calls) = calls.get_mut(usize::from(head.code.0)) {
                calls.nanos += each;
                let reply = replies.bytes.get(start..end as usize).unwrap_or_default();
                if reply.first() == Some(&b'-') {
                    calls.failed += 1;
                    self.note_error(reply);
                }
            }
            start = end as usize;
        }
    }
}
