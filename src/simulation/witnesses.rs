//! Each rule of the protocol, broken: its witness has to notice.

use super::dice::hunt;
use super::world::Kind;
use super::{staged, steps};
use crate::consensus::rules::GroupRule;
use crate::rules::{Rule, broken};

/// What notices that a rule is broken. The cores' own assertions find violations too.
enum Witness {
    /// The dice, with one of these seeds.
    Dice(Kind, std::ops::Range<u64>),
    /// A transaction, struck at some step.
    Struck(steps::Story),
    /// A schedule written for it.
    Staged(fn() -> Result<(), String>),
}

/// Every rule has a witness, so that a new one asks for its own.
fn witness(rule: Rule) -> Witness {
    use Witness::{Dice, Staged, Struck};
    match rule {
        Rule::MarksAreAuthoritative
        | Rule::WoundThroughCoordinator
        | Rule::DecisionIgnoresWounds
        | Rule::ReadsWaitOnIntents
        | Rule::FirstDecisionStands
        | Rule::PrimaryDrives
        | Rule::OldIntentsAsk => Dice(Kind::Single, 0..100),
        Rule::ExecutedIsAnswered => Dice(Kind::Single, 0..100),
        Rule::CommitNeedsIntent => Dice(Kind::Single, 0..1000),
        Rule::TurnedAwayInOrder => Staged(staged::a_pipeline_waits_through_a_vain_transfer),
        Rule::LivesAreCounted => Staged(staged::a_coordinator_comes_back_an_hour_behind),
        Rule::UnloggedLocksGoWithCoordinator => Struck(steps::GATHERED),
        Rule::OthersTellTheTime => Staged(staged::two_of_three_restart_with_wrong_clocks),
        Rule::OutcomesAreRelayed => Staged(staged::a_commit_goes_by_way_of_a_third_node),
        Rule::OldLocksAsk => Staged(staged::a_lock_comes_when_its_attempt_is_over),
        Rule::LeadersApplyFirst => Dice(Kind::Replicated, 0..400),
        Rule::GrantsWaitForFiled => Struck(steps::OVERTAKEN),
        Rule::OlderWounds => Staged(staged::an_older_transaction_goes_first),
        Rule::PrepareCarriesGrant => Staged(staged::a_prepare_for_locks_of_an_earlier_term),
        Rule::ReadKeysArePrepared => Staged(staged::a_key_read_changes_before_the_rest_is_written),
        Rule::ReadsAreConfirmed => Staged(staged::a_read_over_a_change_of_leaders),
        Rule::OutcomesAreRemembered => {
            Staged(staged::a_participant_asks_after_the_next_transaction)
        }
        Rule::CommitsAreRemembered => {
            Staged(staged::a_commit_is_asked_for_after_the_next_transaction)
        }
        Rule::UndecidedIsLast => Staged(staged::a_commit_comes_after_the_question),
        Rule::LossesReopenInquiries => Staged(staged::a_commit_is_told_to_one_of_two),
        Rule::LatePreparesAreRefused => Staged(staged::a_prepare_comes_after_the_end),
        Rule::ReadsNeedLease => Staged(staged::a_deposed_leader_is_asked),
        Rule::StampsKeepPace => Staged(staged::a_time_to_live_outlives_a_fast_leader),
        Rule::StampJumpsAreBounded => Staged(staged::a_clock_jumps_by_a_year),
        Rule::IntentsAgeHere => Staged(staged::an_intent_of_a_fast_leader),
        Rule::LeadersDecideExpiry => Staged(staged::a_coordinator_is_ahead_of_the_leaders),
    }
}

/// The rules of a group whose absence shows among several nodes too: with disks that take their time,
/// and with machines that stop.
fn group_witnesses() -> [(GroupRule, Witness); 3] {
    use Witness::{Dice, Staged};
    [
        (GroupRule::AcknowledgeAfterSync, Dice(Kind::Replicated, 0..400)),
        (GroupRule::LeaseWatchesBothClocks, Staged(staged::a_leader_in_a_paused_machine_is_asked)),
        (GroupRule::HungDisksYield, Staged(staged::a_disk_of_a_leader_hangs)),
    ]
}

impl Witness {
    fn sees(&self) -> Result<(), String> {
        match self {
            Witness::Dice(kind, seeds) => hunt(seeds.clone(), *kind)
                .map_err(|(seed, violation)| format!("{kind:?}, seed {seed}: {violation}")),
            Witness::Struck(story) => steps::strike_everywhere(*story).map(|_| ()),
            Witness::Staged(schedule) => schedule(),
        }
    }
}

/// What a witness says when a rule is broken.
fn missed<R: std::fmt::Debug + Copy + std::panic::RefUnwindSafe + 'static>(
    rule: R,
    witness: &Witness,
) -> bool {
    let seen = std::panic::catch_unwind(|| broken(rule, || witness.sees()));
    let seen = seen.unwrap_or_else(|_| Err("an assertion failed".into()));
    if let Err(violation) = &seen {
        println!("{rule:?}: {violation}");
    }
    seen.is_err()
}

#[test]
fn every_rule_is_missed_when_it_is_broken() {
    let unmissed: Vec<Rule> =
        Rule::ALL.into_iter().filter(|rule| !missed(*rule, &witness(*rule))).collect();
    assert!(unmissed.is_empty(), "nothing noticed the absence of {unmissed:?}");
}

#[test]
fn rules_of_a_group_are_missed_when_they_are_broken() {
    let witnesses = group_witnesses();
    let unmissed = witnesses.iter().filter(|(rule, witness)| !missed(*rule, witness));
    let unmissed: Vec<GroupRule> = unmissed.map(|(rule, _)| *rule).collect();
    assert!(unmissed.is_empty(), "nothing noticed the absence of {unmissed:?}");
}

#[test]
fn what_is_staged_ends_well_by_the_rules() {
    let of_group = group_witnesses().into_iter().map(|(rule, one)| (format!("{rule:?}"), one));
    let all = Rule::ALL.into_iter().map(|rule| (format!("{rule:?}"), witness(rule)));
    for (rule, witness) in all.chain(of_group) {
        if let Witness::Staged(schedule) = witness
            && let Err(violation) = schedule()
        {
            panic!("{rule}: {violation}");
        }
    }
}
