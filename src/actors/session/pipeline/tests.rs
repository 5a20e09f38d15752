use super::*;
use proptest::prelude::*;

/// A command as its client sees it.
#[derive(Clone, Debug)]
struct Said {
    lane: Option<u16>,
    /// Nothing if it goes alone.
    claims: Option<Vec<(u64, Access)>>,
}

fn overlap(one: &Said, other: &Said) -> bool {
    let (Some(one), Some(other)) = (&one.claims, &other.claims) else { return true };
    let meet = |a: &(u64, Access)| {
        other.iter().any(|b| a.0 == b.0 && (a.1 == Access::Write || b.1 == Access::Write))
    };
    one.iter().any(meet)
}

fn push(pipeline: &mut Pipeline, said: &Said) -> u32 {
    match &said.claims {
        Some(claims) => pipeline.push(said.lane, claims.iter().copied()),
        None => pipeline.push_alone(said.lane),
    }
}

fn said() -> impl Strategy<Value = Said> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let claims = prop::collection::vec((0..6u64, access), 0..4);
    let claims = prop_oneof![9 => claims.prop_map(Some), 1 => Just(None)];
    (prop::option::of(0..2u16), claims).prop_map(|(lane, claims)| Said { lane, claims })
}

/// Whether a command may start while an earlier one has got so far.
fn lets_through(earlier: &Said, later: &Said, progress: Progress) -> bool {
    match progress {
        Progress::Done => true,
        _ if !overlap(earlier, later) => true,
        Progress::Started => earlier.lane.is_some() && earlier.lane == later.lane,
        Progress::Waiting => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever ends when: nothing starts before what it overlaps with, nothing waits without cause,
    /// and all of it is served.
    #[test]
    fn each_waits_for_exactly_what_it_overlaps_with(
        all in prop::collection::vec(said(), 1..24),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 200),
        pushed_first in 0..24usize,
    ) {
        let mut pipeline = Pipeline::default();
        let mut progress = vec![Progress::Waiting; all.len()];
        let mut choices = choices.into_iter();
        let mut pushed = 0;
        while progress.iter().any(|progress| *progress != Progress::Done) {
            let push_now = pushed < all.len() && (pushed <= pushed_first || pipeline.next().is_none());
            if push_now {
                prop_assert_eq!(push(&mut pipeline, &all[pushed]), pushed as u32);
                pushed += 1;
            }
            for later in 0..pushed {
                let free = (0..later).all(|earlier| {
                    lets_through(&all[earlier], &all[later], progress[earlier])
                });
                let may = pipeline.ready.contains(&(later as u32));
                prop_assert_eq!(may, progress[later] == Progress::Waiting && free, "{}", later);
            }
            // A lane ends what it was given in order.
            let is_first = |number: &u32| {
                let lane = all[*number as usize].lane;
                lane.is_none() || !(0..*number as usize).any(|earlier| {
                    all[earlier].lane == lane && progress[earlier] == Progress::Started
                })
            };
            let started: Vec<u32> = (0..pushed as u32)
                .filter(|number| progress[*number as usize] == Progress::Started)
                .filter(is_first)
                .collect();
            let choice = choices.next().map_or(0, |choice| choice.index(started.len() + 1));
            match (pipeline.next(), started.get(choice).or(started.first())) {
                (Some(next), ended) if choice == started.len() || ended.is_none() => {
                    pipeline.start(next);
                    progress[next as usize] = Progress::Started;
                }
                (_, Some(&ended)) => {
                    pipeline.end(ended);
                    progress[ended as usize] = Progress::Done;
                }
                _ => prop_assert!(pushed < all.len(), "nothing can go on"),
            }
        }
    }
}

#[test]
fn transactions_that_share_no_key_start_together() {
    let mut pipeline = Pipeline::default();
    pipeline.push(None, [(1, Access::Write), (2, Access::Write)]);
    pipeline.push(None, [(3, Access::Write), (4, Access::Write)]);
    pipeline.push(None, [(2, Access::Write), (3, Access::Write)]);
    pipeline.start(0);
    pipeline.start(1);
    assert_eq!(pipeline.next(), None);
    pipeline.end(0);
    assert_eq!(pipeline.next(), None);
    pipeline.end(1);
    assert_eq!(pipeline.next(), Some(2));
}

#[test]
fn operations_of_a_lane_follow_each_other_at_once() {
    let mut pipeline = Pipeline::default();
    for _ in 0..3 {
        pipeline.push(Some(7), [(1, Access::Write)]);
    }
    let other = pipeline.push(Some(8), [(1, Access::Read)]);
    for number in 0..3 {
        assert_eq!(pipeline.next(), Some(number));
        pipeline.start(number);
    }
    assert_eq!(pipeline.next(), None, "another lane does not keep order with this one");
    (0..3).for_each(|number| pipeline.end(number));
    assert_eq!(pipeline.next(), Some(other));
}
