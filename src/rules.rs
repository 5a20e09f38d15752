//! The rules of the commit protocol, and a switch to break a rule in tests: one of these, or of those
//! of [a group](crate::consensus).
//!
//! Every rule answers a schedule that breaks a simpler protocol. The simulator runs with each rule
//! broken once and must find a violation: a rule whose absence nothing notices is not tested yet.
//! In a build that is not a test [`kept`] is the constant `true` and costs nothing.

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A request that meets a locked key waits; a lock is never overlooked.
    LocksAreAuthoritative,
    /// A wound goes through the owner's Coordinator; a lock is never snatched from its owner.
    WoundThroughCoordinator,
    /// An older request wounds younger owners in its way.
    OlderWounds,
    /// A Coordinator whose decision is under way ignores wounds.
    DecisionIgnoresWounds,
    /// Locks that are not logged go with their Coordinator.
    UnloggedLocksGoWithCoordinator,
    /// A prepare after a lock carries the term of its grant, and is refused without the grant.
    PrepareCarriesGrant,
    /// The keys that a writing transaction only read stay locked to its decision.
    ReadKeysArePrepared,
    /// A read-only transaction is answered only once every partition confirmed its locks.
    ReadsAreConfirmed,
    /// Reads wait on intents.
    ReadsWaitOnIntents,
    /// A commit counts only over the primary's own live intent.
    CommitNeedsIntent,
    /// The first decision logged stands.
    FirstDecisionStands,
    /// A commit is remembered until every participant has applied it.
    OutcomesAreRemembered,
    /// The primary's leader repeats a decision until it is confirmed.
    PrimaryDrives,
    /// A participant with an old intent asks the primary.
    OldIntentsAsk,
    /// A participant with old locks that are not logged asks their Coordinator.
    OldLocksAsk,
    /// A participant without copies remembers how an attempt ended, for others that may ask, when
    /// its Coordinator does not any more.
    CommitsAreRemembered,
    /// A participant that says that it does not know an outcome can hear of none any more.
    UndecidedIsLast,
    /// Once a participant is lost, those that did not know an outcome are asked again.
    LossesReopenInquiries,
    /// Prepares of finished attempts and of older incarnations are refused.
    LatePreparesAreRefused,
    /// What a lock shows waits for everything that was proposed on its keys before.
    GrantsWaitForProposed,
    /// A leader reads what is applied under a lease only.
    ReadsNeedLease,
    /// A new leader serves once it applied an entry of its own term.
    LeadersApplyFirst,
    /// Stamps go on with real time, however far ahead of the leader's wall clock they are.
    StampsKeepPace,
    /// A wall clock that is ahead draws stamps along by a part of real time only.
    StampJumpsAreBounded,
    /// The age of an intent is counted by the clock of the present leader, since it leads.
    IntentsAgeHere,
    /// What has expired is what the leader of the key says: a Coordinator does not look at its own
    /// clock.
    LeadersDecideExpiry,
    /// What was executed is answered, and never asked for again.
    ExecutedIsAnswered,
    /// A node's next life is later than its last one, whatever its wall clock says.
    LivesAreCounted,
    /// What follows a turned away operation of its batch, in the same partition, does not go ahead.
    TurnedAwayInOrder,
    /// A new leader that cannot know what time it is goes on from what the others have counted.
    OthersTellTheTime,
    /// Outcomes, and questions about them, go by way of a third node where two do not reach each
    /// other.
    OutcomesAreRelayed,
    /// A command waits for those that its client has sent before and that it overlaps with.
    PipelinesKeepOrder,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 32] = [
        Rule::LocksAreAuthoritative,
        Rule::WoundThroughCoordinator,
        Rule::OlderWounds,
        Rule::DecisionIgnoresWounds,
        Rule::UnloggedLocksGoWithCoordinator,
        Rule::PrepareCarriesGrant,
        Rule::ReadKeysArePrepared,
        Rule::ReadsAreConfirmed,
        Rule::ReadsWaitOnIntents,
        Rule::CommitNeedsIntent,
        Rule::FirstDecisionStands,
        Rule::OutcomesAreRemembered,
        Rule::PrimaryDrives,
        Rule::OldIntentsAsk,
        Rule::OldLocksAsk,
        Rule::CommitsAreRemembered,
        Rule::UndecidedIsLast,
        Rule::LossesReopenInquiries,
        Rule::LatePreparesAreRefused,
        Rule::GrantsWaitForProposed,
        Rule::ReadsNeedLease,
        Rule::LeadersApplyFirst,
        Rule::StampsKeepPace,
        Rule::StampJumpsAreBounded,
        Rule::IntentsAgeHere,
        Rule::LeadersDecideExpiry,
        Rule::ExecutedIsAnswered,
        Rule::LivesAreCounted,
        Rule::TurnedAwayInOrder,
        Rule::OthersTellTheTime,
        Rule::OutcomesAreRelayed,
        Rule::PipelinesKeepOrder,
    ];
}

/// Whether the rule is kept: always, outside the tests that break it.
#[cfg(not(test))]
#[inline(always)]
pub const fn kept<R: Copy>(_rule: R) -> bool {
    true
}

#[cfg(test)]
pub use sabotage::{broken, kept};

#[cfg(test)]
mod sabotage {
    use std::any::Any;
    use std::cell::RefCell;

    thread_local! {
        static BROKEN: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
    }

    /// A broken rule may end in a panic: the next test on the thread finds all rules in place.
    struct Mended;

    impl Drop for Mended {
        fn drop(&mut self) {
            BROKEN.set(None);
        }
    }

    /// Whether the rule is kept on this thread.
    pub fn kept<R: PartialEq + 'static>(rule: R) -> bool {
        BROKEN.with_borrow(|broken| {
            let broken = broken.as_ref().and_then(|broken| broken.downcast_ref::<R>());
            broken != Some(&rule)
        })
    }

    /// Runs `test` with the rule broken.
    pub fn broken<R: 'static, T>(rule: R, test: impl FnOnce() -> T) -> T {
        BROKEN.set(Some(Box::new(rule)));
        let _mended = Mended;
        test()
    }
}
