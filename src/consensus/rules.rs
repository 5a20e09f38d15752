//! The rules that a group's safety hangs on beside raft's own.
//!
//! A test runs with each rule broken once and must find a violation, the simulation or one that
//! stages the case: a rule whose absence nothing notices is not tested yet.

#[cfg(test)]
pub use crate::rules::broken;
pub use crate::rules::kept;

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRule {
    /// What depends on the disk is sent after the sync.
    AcknowledgeAfterSync,
    /// A voter that heard its leader votes for no other replica for a while.
    VotersKeepPromises,
    /// A voter that restarts keeps the promise that it may have given.
    RestartedVotersKeepPromises,
    /// A lease runs from when its confirmation was asked for, not from when it came.
    LeaseRunsFromAsking,
    /// A lease counts only while the wall clock and the monotonic clock agree on how long it has
    /// run.
    LeaseWatchesBothClocks,
    /// A leader that hands over has no lease any more.
    HandingOverEndsLease,
    /// A confirmation counts for reads that came before it was asked for.
    ConfirmationsAreLaterThanReads,
    /// A leader serves once it has applied an entry of its own term.
    LeadersServeTheirTerm,
    /// Entries found on disk belong to the log only if each follows from the one before.
    EntriesAreChained,
    /// A replica that forgot what is committed takes all changes of members but the last for it.
    MembersAreRecovered,
    /// A replica takes another one's place in one change, not as one voter more.
    ReplacedInOneChange,
    /// A change of voters is followed by one of nothing, so that it counts after a restart.
    ChangesAreConcluded,
    /// A leader whose disk hangs while the others' do not leads no more.
    HungDisksYield,
}
