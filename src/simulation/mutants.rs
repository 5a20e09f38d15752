//! Each rule of the protocol, broken: a mutant, which has to be caught.

use super::schedule::hunt;
use super::world::Kind;
use super::{scripted, steps};
use crate::consensus::rules::GroupRule;
use crate::rules::{Rule, broken};

/// What notices that a rule is broken. The cores' own assertions find violations too.
enum CaughtBy {
    /// A drawn schedule, with one of these seeds.
    Seeds(Kind, std::ops::Range<u64>),
    /// A transaction, struck at some step.
    Struck(steps::Story),
    /// A schedule written for it.
    Scripted(fn() -> Result<(), String>),
}

/// Every rule has a schedule that catches its mutant, so that a new rule asks for its own.
fn caught_by(rule: Rule) -> CaughtBy {
    use CaughtBy::{Scripted, Seeds, Struck};
    match rule {
        Rule::LocksAreAuthoritative
        | Rule::WoundThroughCoordinator
        | Rule::DecisionIgnoresWounds
        | Rule::ReadsWaitOnIntents
        | Rule::FirstDecisionStands
        | Rule::PrimaryDrives
        | Rule::OldIntentsAsk => Seeds(Kind::Single, 0..100),
        Rule::ExecutedIsAnswered | Rule::PipelinesKeepOrder => Seeds(Kind::Single, 0..100),
        Rule::CommitNeedsIntent => Seeds(Kind::Single, 0..1000),
        Rule::TurnedAwayInOrder => Scripted(scripted::a_pipeline_waits_through_a_vain_transfer),
        Rule::LivesAreCounted => Scripted(scripted::a_coordinator_comes_back_an_hour_behind),
        Rule::UnloggedLocksGoWithCoordinator => Struck(steps::GATHERED),
        Rule::OthersTellTheTime => Scripted(scripted::two_of_three_restart_with_wrong_clocks),
        Rule::OutcomesAreRelayed => Scripted(scripted::a_commit_goes_by_way_of_a_third_node),
        Rule::OldLocksAsk => Scripted(scripted::a_lock_comes_when_its_attempt_is_over),
        Rule::LeadersApplyFirst => Seeds(Kind::Replicated, 0..400),
        Rule::GrantsWaitForProposed => Struck(steps::OVERTAKEN),
        Rule::OlderWounds => Scripted(scripted::an_older_transaction_goes_first),
        Rule::PrepareCarriesGrant => Scripted(scripted::a_prepare_for_locks_of_an_earlier_term),
        Rule::ReadKeysArePrepared => {
            Scripted(scripted::a_key_read_changes_before_the_rest_is_written)
        }
        Rule::ReadsAreConfirmed => Scripted(scripted::a_read_over_a_change_of_leaders),
        Rule::OutcomesAreRemembered => {
            Scripted(scripted::a_participant_asks_after_the_next_transaction)
        }
        Rule::CommitsAreRemembered => {
            Scripted(scripted::a_commit_is_asked_for_after_the_next_transaction)
        }
        Rule::UndecidedIsLast => Scripted(scripted::a_commit_comes_after_the_question),
        Rule::LossesReopenInquiries => Scripted(scripted::a_commit_is_told_to_one_of_two),
        Rule::LatePreparesAreRefused => Scripted(scripted::a_prepare_comes_after_the_end),
        Rule::ReadsNeedLease => Scripted(scripted::a_deposed_leader_is_asked),
        Rule::StampsKeepPace => Scripted(scripted::a_time_to_live_outlives_a_fast_leader),
        Rule::StampJumpsAreBounded => Scripted(scripted::a_clock_jumps_by_a_year),
        Rule::IntentsAgeHere => Scripted(scripted::an_intent_of_a_fast_leader),
        Rule::LeadersDecideExpiry => Scripted(scripted::a_coordinator_is_ahead_of_the_leaders),
    }
}

/// The rules of a group whose absence shows among several nodes too: with disks that take their time,
/// and with machines that stop.
fn group_mutants() -> [(GroupRule, CaughtBy); 3] {
    use CaughtBy::{Scripted, Seeds};
    [
        (GroupRule::AcknowledgeAfterSync, Seeds(Kind::Replicated, 0..400)),
        (
            GroupRule::LeaseWatchesBothClocks,
            Scripted(scripted::a_leader_in_a_paused_machine_is_asked),
        ),
        (GroupRule::HungDisksYield, Scripted(scripted::a_disk_of_a_leader_hangs)),
    ]
}

impl CaughtBy {
    fn sees(&self) -> Result<(), String> {
        match self {
            CaughtBy::Seeds(kind, seeds) => hunt(seeds.clone(), *kind)
                .map_err(|(seed, violation)| format!("{kind:?}, seed {seed}: {violation}")),
            CaughtBy::Struck(story) => steps::strike_everywhere(*story).map(|_| ()),
            CaughtBy::Scripted(schedule) => schedule(),
        }
    }
}

/// What is said when a rule is broken.
fn missed<R: std::fmt::Debug + Copy + std::panic::RefUnwindSafe + 'static>(
    rule: R,
    catcher: &CaughtBy,
) -> bool {
    let seen = std::panic::catch_unwind(|| broken(rule, || catcher.sees()));
    let seen = seen.unwrap_or_else(|_| Err("an assertion failed".into()));
    if let Err(violation) = &seen {
        println!("{rule:?}: {violation}");
    }
    seen.is_err()
}

#[test]
fn every_rule_is_missed_when_it_is_broken() {
    let unmissed: Vec<Rule> =
        Rule::ALL.into_iter().filter(|rule| !missed(*rule, &caught_by(*rule))).collect();
    assert!(unmissed.is_empty(), "nothing noticed the absence of {unmissed:?}");
}

#[test]
fn rules_of_a_group_are_missed_when_they_are_broken() {
    let mutants = group_mutants();
    let unmissed = mutants.iter().filter(|(rule, catcher)| !missed(*rule, catcher));
    let unmissed: Vec<GroupRule> = unmissed.map(|(rule, _)| *rule).collect();
    assert!(unmissed.is_empty(), "nothing noticed the absence of {unmissed:?}");
}

#[test]
fn what_is_scripted_ends_well_by_the_rules() {
    let of_group = group_mutants().into_iter().map(|(rule, one)| (format!("{rule:?}"), one));
    let all = Rule::ALL.into_iter().map(|rule| (format!("{rule:?}"), caught_by(rule)));
    for (rule, catcher) in all.chain(of_group) {
        if let CaughtBy::Scripted(schedule) = catcher
            && let Err(violation) = schedule()
        {
            panic!("{rule}: {violation}");
        }
    }
}
