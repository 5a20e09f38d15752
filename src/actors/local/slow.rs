//! The slow log and the latency events of an arbiter.

use super::Local;
use crate::command::client::Client;
use crate::command::latency::{Events, Slow, SlowLog, Spike};
use crate::command::spec::{FAST, Spec};
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What took long.
#[derive(Debug, Default)]
pub(super) struct SlowRounds {
    /// Rounds, with what was asked in them.
    pub(super) rounds: RefCell<SlowLog>,
    /// How long the longest took, by the second.
    pub(super) events: RefCell<Events>,
}

impl Local {
    /// Notes how long a command took, or a batch of them that this one began, if it was long.
    #[inline]
    pub fn note_round(
        &self,
        took: Duration,
        spec: Option<&Spec>,
        client: &Client,
        said: impl FnOnce() -> Vec<Vec<u8>>,
    ) {
        let thresholds = self.thresholds.get();
        let micros = took.as_micros() as u64;
        let reaches = |threshold: Option<u64>| threshold.is_some_and(|least| micros >= least);
        if !reaches(thresholds.slow) && !reaches(thresholds.spike) {
            return;
        }
        let now = (self.setup.clock)().wall;
        if reaches(thresholds.spike) {
            let fast = spec.is_some_and(|spec| spec.flags & FAST != 0);
            let event = if fast { "fast-command" } else { "command" };
            let spike = Spike { second: now.0 / 1000, ms: micros / 1000 };
            self.slow.events.borrow_mut().note(event, spike);
        }
        if reaches(thresholds.slow) && thresholds.slow_len > 0 {
            let entry = Slow {
                id: self.setup.slow.fetch_add(1, Ordering::Relaxed),
                at: now,
                micros,
                argv: said(),
                address: client.address.to_string(),
                name: client.name.clone(),
            };
            self.slow.rounds.borrow_mut().push(entry, thresholds.slow_len);
        }
    }
}
