//! The rules that a group's safety hangs on beside raft's own, and a switch to break each in tests.
//!
//! A test runs with each rule broken once and must find a violation, the simulation or one that
//! stages the case: a rule whose absence nothing notices is not tested yet. In a build that is not a
//! test [`kept`] is the constant `true`.

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What depends on the disk is sent after the sync.
    AcknowledgeAfterSync,
    /// A voter that heard its leader votes for nobody for a while.
    VotersKeepPromises,
    /// A voter that restarts keeps the promise that it may have given.
    RestartedVotersKeepPromises,
    /// A lease runs from when its confirmation was asked for, not from when it came.
    LeaseRunsFromAsking,
    /// Who hands leadership over has no lease any more.
    HandingOverEndsLease,
    /// A confirmation counts for reads that came before it was asked for.
    ConfirmationsAreLaterThanReads,
    /// A leader serves once it has applied an entry of its own term.
    LeadersServeTheirTerm,
    /// Entries found on disk belong to the log only if each follows from the one before.
    EntriesAreChained,
    /// A replica that forgot what is committed takes all changes of members but the last for it.
    MembersAreRecovered,
}

/// Whether the rule is kept: always, outside the tests that break it.
#[cfg(not(test))]
#[inline(always)]
pub const fn kept(_rule: Rule) -> bool {
    true
}

#[cfg(test)]
pub use sabotage::{broken, kept};

#[cfg(test)]
mod sabotage {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// A test with a broken rule is meant to panic: the next one finds all rules in place.
    struct Mended;

    impl Drop for Mended {
        fn drop(&mut self) {
            BROKEN.set(None);
        }
    }

    /// Whether the rule is kept on this thread.
    pub fn kept(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    /// Runs `test` with the rule broken.
    pub fn broken<T>(rule: Rule, test: impl FnOnce() -> T) -> T {
        BROKEN.set(Some(rule));
        BROKEN.set(Some(rule));
        let mended = Mended;
        let result = test();
        drop(mended);
        result
    }
}
