//! Why a leader may answer reads without asking: promises and leases.
//!
//! A voter that hears its leader promises, by its own monotonic clock, to vote for no other replica
//! for a while. So a leader whose heartbeat a majority has confirmed knows that no other leads
//! until that while has passed since it *sent* the heartbeat. It takes a margin off for clocks that
//! run at different speed, and until then answers reads from what it applied. The bound on the
//! clocks is that margin: a leader's clock that runs slower than a voter's by more than one part in
//! ten is not provided for.
//!
//! What would break it, and what is done about it:
//! - A voter that restarts has forgotten its promise: it keeps one from its start.
//! - A leader that hands over allows its successor to be elected at once, promise or not: it gives
//!   its lease up before, and takes none in that term any more once the word has left.
//! - A change of configuration brings in voters that promised nothing: the lease ends with it.
//! - A confirmation is tied to the term that asked for it.
//! - A machine is suspended: the monotonic clock counts that time, or the lease would outlive it.
//! - A virtual machine is paused, and no clock in it counts that time. Once its wall clock is
//!   corrected the two clocks differ by it, so a lease holds only while they have not drifted apart
//!   since its asking by more than half of the margin. Until the correction nothing in the machine
//!   can tell, so what corrects the clock has to do so before the node is asked anything.
//! - A promise is given back early only when the process it was made to is dead: it answers no
//!   read, whatever its lease said, and the process that comes after it begins without one.

use super::rules::{GroupRule, kept};
use crate::ids::Now;
use std::collections::VecDeque;

/// Confirmations asked for in the meantime wait at least this long for the one under way.
const ASK_EVERY_MS: u64 = 10;

/// A voter's promise to its leader.
pub struct Promise {
    length: u64,
    until: u64,
}

impl Promise {
    /// No promise yet; every one will be for `length` ms.
    pub fn new(length: u64) -> Promise {
        Promise { length, until: 0 }
    }

    /// The leader was heard at `mono`, or may have been heard before a restart at `mono`.
    pub fn renew(&mut self, mono: u64) {
        self.until = self.until.max(mono + self.length);
    }

    /// The process that it was made to is dead.
    pub fn release(&mut self) {
        self.until = 0;
    }

    /// Whether a vote at `mono` would break it.
    pub fn binds(&self, mono: u64) -> bool {
        mono < self.until
    }
}

/// What a read that waits for a confirmation holds on to: it may be answered once a confirmation of
/// this number or a later one has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confirmation(pub u64);

/// A leader's lease, and the confirmations that renew it.
pub struct Lease {
    length: u64,
    /// By how much the two clocks may drift apart before it counts for nothing.
    drift: u64,
    until: u64,
    /// When it was asked for.
    since: Now,
    /// Confirmations under way, and when each was asked for.
    asked: VecDeque<(Confirmation, Now)>,
    last: Confirmation,
    /// A read holds the ticket after `last`.
    wanted: bool,
    /// In this term leadership was handed over, so a successor may be elected at any moment.
    handed_over: bool,
}

impl Lease {
    /// No lease yet; every one will be for `length` ms from the asking, while the two clocks do not
    /// drift apart by more than `drift` ms.
    pub fn new(length: u64, drift: u64) -> Lease {
        Lease {
            length,
            drift,
            until: 0,
            since: Now::default(),
            asked: VecDeque::new(),
            last: Confirmation(0),
            wanted: false,
            handed_over: false,
        }
    }

    /// Another term or role: nothing of before counts.
    pub fn reset(&mut self) {
        self.give_up();
        self.wanted = false;
        self.handed_over = false;
    }

    /// The lease ends, and confirmations under way renew nothing: they are asked for again, since
    /// reads wait for them.
    pub fn give_up(&mut self) {
        self.until = 0;
        self.wanted |= !self.asked.is_empty();
        self.asked.clear();
    }

    /// A successor is being prepared: the lease ends, for now.
    pub fn pause(&mut self) {
        self.until = 0;
    }

    /// The message that makes another replica stand for election leaves: no lease in this term any
    /// more, for it may arrive at any moment.
    pub fn hand_over(&mut self) {
        self.until = 0;
        self.handed_over = true;
    }

    /// Until when the lease runs, as far as can be told at `now`; 0 for never.
    #[inline]
    pub fn until(&self, now: Now) -> u64 {
        let counts =
            now.drift_since(self.since) <= self.drift || !kept(GroupRule::LeaseWatchesBothClocks);
        if counts { self.until } else { 0 }
    }

    /// The ticket for a read at `now`, and whether its confirmation is to be sent now.
    pub fn ask(&mut self, now: Now) -> (Confirmation, bool) {
        if self.can_ask(now) {
            return (self.take(now), true);
        }
        self.wanted = true;
        if !kept(GroupRule::ConfirmationsAreLaterThanReads) {
            return (self.last, false);
        }
        (Confirmation(self.last.0 + 1), false)
    }

    /// The confirmation that was put off, once it is to be sent.
    pub fn ask_again(&mut self, now: Now) -> Option<Confirmation> {
        (self.wanted && self.can_ask(now)).then(|| self.take(now))
    }

    fn can_ask(&self, now: Now) -> bool {
        self.asked.back().is_none_or(|(_, at)| now.mono >= at.mono + ASK_EVERY_MS)
    }

    fn take(&mut self, now: Now) -> Confirmation {
        self.last.0 += 1;
        self.wanted = false;
        self.asked.push_back((self.last, now));
        self.last
    }

    /// A majority has confirmed, by `now`, what was asked with this ticket. Returns it unless it is
    /// void; the lease runs again unless a successor is being prepared.
    pub fn confirm(
        &mut self,
        ticket: Confirmation,
        now: Now,
        transferring: bool,
    ) -> Option<Confirmation> {
        let at = self.asked.iter().position(|(asked, _)| *asked == ticket)?;
        let (_, asked_at) = self.asked[at];
        self.asked.drain(..=at);
        let asked_at = if kept(GroupRule::LeaseRunsFromAsking) { asked_at } else { now };
        if !self.handed_over && !transferring {
            self.until = self.until.max(asked_at.mono + self.length);
            self.since = asked_at;
        }
        Some(ticket)
    }
}
