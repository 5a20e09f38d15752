use super::*;
use proptest::prelude::*;

/// A command as its client sees it.
#[derive(Clone, Debug)]
struct Said {
    lane: Option<u16>,
    /// None if it goes alone.
    keys: Option<Vec<u64>>,
}

fn overlap(one: &Said, other: &Said) -> bool {
    let (Some(one), Some(other)) = (&one.keys, &other.keys) else { return true };
    one.iter().any(|key| other.contains(key))
}

fn push(pipeline: &mut Pipeline, said: &Said) -> u32 {
    match &said.keys {
        Some(keys) => pipeline.push(said.lane, keys.iter().copied()),
        None => pipeline.push_alone(said.lane),
    }
}

fn said() -> impl Strategy<Value = Said> {
    let keys = prop::collection::vec(0..6u64, 0..4);
    let keys = prop_oneof![9 => keys.prop_map(Some), 1 => Just(None)];
    (prop::option::of(0..2u16), keys).prop_map(|(lane, keys)| Said { lane, keys })
}

/// Whether a command may start while an earlier one has got so far.
fn lets_through(earlier: &Said, later: &Said, progress: CommandProgress) -> bool {
    match progress {
        CommandProgress::Done => true,
        _ if !overlap(earlier, later) => true,
        CommandProgress::Started => earlier.lane.is_some() && earlier.lane == later.lane,
        CommandProgress::Waiting => false,
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
        let mut progress = vec![CommandProgress::Waiting; all.len()];
        let mut choices = choices.into_iter();
        let mut pushed = 0;
        while progress.iter().any(|progress| *progress != CommandProgress::Done) {
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
                prop_assert_eq!(may, progress[later] == CommandProgress::Waiting && free, "{}", later);
            }
            // A lane ends what it was given in order.
            let is_first = |number: &u32| {
                let lane = all[*number as usize].lane;
                lane.is_none() || !(0..*number as usize).any(|earlier| {
                    all[earlier].lane == lane && progress[earlier] == CommandProgress::Started
                })
            };
            let started: Vec<u32> = (0..pushed as u32)
                .filter(|number| progress[*number as usize] == CommandProgress::Started)
                .filter(is_first)
                .collect();
            let choice = choices.next().map_or(0, |choice| choice.index(started.len() + 1));
            match (pipeline.next(), started.get(choice).or(started.first())) {
                (Some(next), ended) if choice == started.len() || ended.is_none() => {
                    pipeline.start(next);
                    progress[next as usize] = CommandProgress::Started;
                }
                (_, Some(&ended)) => {
                    pipeline.end(ended);
                    progress[ended as usize] = CommandProgress::Done;
                }
                _ => prop_assert!(pushed < all.len(), "nothing can go on"),
            }
        }
    }
}

#[test]
fn transactions_that_share_no_key_start_together() {
    let mut pipeline = Pipeline::default();
    pipeline.push(None, [1, 2]);
    pipeline.push(None, [3, 4]);
    pipeline.push(None, [2, 3]);
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
        pipeline.push(Some(7), [1]);
    }
    let other = pipeline.push(Some(8), [1]);
    for number in 0..3 {
        assert_eq!(pipeline.next(), Some(number));
        pipeline.start(number);
    }
    assert_eq!(pipeline.next(), None, "another lane does not keep order with this one");
    (0..3).for_each(|number| pipeline.end(number));
    assert_eq!(pipeline.next(), Some(other));
}
