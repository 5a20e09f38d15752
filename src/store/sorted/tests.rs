//! Sorted sets beside a model, with nodes so small that everything splits and merges.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

// With less than 8 children no node is small enough to be merged.
const SMALL: TreeShape = TreeShape { leaf_bytes: 96, fanout: 8, cells_split: 24 };

fn small() -> SortedSet {
    SortedSet::with_shape(KeyHasher::new(7), SMALL)
}

/// Members with scores, in no other form.
#[derive(Default)]
struct Model {
    scores: BTreeMap<Vec<u8>, f64>,
}

impl Model {
    fn order(&self) -> Vec<(Vec<u8>, f64)> {
        let mut order: Vec<_> = self.scores.iter().map(|(m, s)| (m.clone(), *s)).collect();
        order.sort_by(|a, b| a.1.partial_cmp(&b.1).unwrap().then_with(|| a.0.cmp(&b.0)));
        order
    }

    fn insert(&mut self, member: &[u8], score: f64) -> Option<f64> {
        let old = self.scores.get(member).copied();
        if old != Some(score) {
            self.scores.insert(member.to_vec(), score);
        }
        old
    }
}

fn bits(score: Option<f64>) -> Option<u64> {
    score.map(f64::to_bits)
}

fn owned(entry: ScoredMember<'_>) -> (Vec<u8>, u64) {
    (entry.member.to_vec(), entry.score.to_bits())
}

fn exact(entries: &[(Vec<u8>, f64)]) -> Vec<(Vec<u8>, u64)> {
    entries.iter().map(|(member, score)| (member.clone(), score.to_bits())).collect()
}

/// Asserts that the set is the model, whatever way one looks.
fn same(set: &SortedSet, model: &Model) {
    set.check();
    let order = model.order();
    assert_eq!(set.len(), order.len());
    assert_eq!(set.iter().map(owned).collect::<Vec<_>>(), exact(&order));
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(Vec<u8>, f64),
    Many(u16, u8, f64),
    Remove(Vec<u8>),
    RemoveAt(u16),
    Look(Vec<u8>),
    ByScore(Bound<f64>, Bound<f64>, u8, u8),
    ByMember(Bound<Vec<u8>>, Bound<Vec<u8>>),
    PopMin,
    PopMax,
    RemoveRanks(u16, u16, u8),
    Level,
    Scan(u8),
}

fn member() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (0..400u16).prop_map(|n| format!("m{n}").into_bytes()),
        2 => proptest::collection::vec(0..3u8, 0..4),
        1 => (0..30u8, 230..280usize).prop_map(|(n, len)| vec![n; len]),
    ]
}

fn score() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (0..20i32).prop_map(f64::from),
        2 => -1e3..1e3f64,
        1 => prop_oneof![Just(0.0), Just(-0.0), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ]
}

fn bound<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Bound<T>> {
    (value, 0..5u8).prop_map(|(value, kind)| match kind {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Included(value),
        _ => Bound::Excluded(value),
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => (member(), score()).prop_map(|(m, s)| Operation::Insert(m, s)),
        3 => (0..400u16, 0..60u8, score()).prop_map(|(m, n, s)| Operation::Many(m, n, s)),
        3 => member().prop_map(Operation::Remove),
        4 => any::<u16>().prop_map(Operation::RemoveAt),
        4 => member().prop_map(Operation::Look),
        4 => (bound(score()), bound(score()), 0..9u8, 0..9u8)
            .prop_map(|(a, b, o, l)| Operation::ByScore(a, b, o, l)),
        3 => (bound(member()), bound(member())).prop_map(|(a, b)| Operation::ByMember(a, b)),
        1 => Just(Operation::PopMin),
        1 => Just(Operation::PopMax),
        2 => (any::<u16>(), 0..300u16, 0..120u8)
            .prop_map(|(a, n, m)| Operation::RemoveRanks(a, n, m)),
        1 => Just(Operation::Level),
        2 => (1..20u8).prop_map(Operation::Scan),
    ]
}

fn apply(set: &mut SortedSet, model: &mut Model, operation: Operation) {
    match operation {
        Operation::Insert(member, score) => {
            assert_eq!(bits(set.insert(&member, score)), bits(model.insert(&member, score)));
        }
        Operation::Many(first, count, score) => {
            for n in 0..u16::from(count) {
                let member = format!("m{}", first + n).into_bytes();
                let score = score + f64::from(n % 7);
                assert_eq!(bits(set.insert(&member, score)), bits(model.insert(&member, score)));
            }
        }
        Operation::Remove(member) => {
            assert_eq!(bits(set.remove(&member)), bits(model.scores.remove(&member)));
        }
        Operation::RemoveAt(rank) => {
            let order = model.order();
            let Some((member, score)) = order.get(usize::from(rank) % order.len().max(1)) else {
                return;
            };
            assert_eq!(bits(set.remove(member)), bits(Some(*score)));
            model.scores.remove(member);
        }
        Operation::Look(member) => {
            let order = model.order();
            let rank = order.iter().position(|(other, _)| *other == member);
            assert_eq!(bits(set.score(&member)), bits(model.scores.get(&member).copied()));
            assert_eq!(set.rank(&member).map(|(rank, _)| rank), rank);
            assert_eq!(
                set.reverse_rank(&member).map(|(rank, _)| rank),
                rank.map(|rank| order.len() - 1 - rank)
            );
            for (rank, (member, score)) in order.iter().enumerate().step_by(17) {
                assert_eq!(set.rank(member), Some((rank, *score)));
                assert_eq!(set.select(rank), Some(ScoredMember { member, score: *score }));
            }
            assert_eq!(set.select(order.len()), None);
        }
        Operation::ByScore(min, max, offset, limit) => {
            let within: Vec<_> = model
                .order()
                .into_iter()
                .filter(|(_, score)| {
                    (match min {
                        Bound::Unbounded => true,
                        Bound::Included(min) => *score >= min,
                        Bound::Excluded(min) => *score > min,
                    }) && match max {
                        Bound::Unbounded => true,
                        Bound::Included(max) => *score <= max,
                        Bound::Excluded(max) => *score < max,
                    }
                })
                .collect();
            let ranks = set.ranks_by_score(min, max);
            assert_eq!(ranks.len(), within.len());
            assert_eq!(set.range(ranks.clone()).map(owned).collect::<Vec<_>>(), exact(&within));
            let (offset, limit) = (usize::from(offset), usize::from(limit));
            let mut backward = within.clone();
            backward.reverse();
            let page = |entries: &[(Vec<u8>, f64)]| {
                exact(&entries.iter().skip(offset).take(limit).cloned().collect::<Vec<_>>())
            };
            let range = || set.range(ranks.clone());
            assert_eq!(
                range().skip(offset).take(limit).map(owned).collect::<Vec<_>>(),
                page(&within)
            );
            assert_eq!(
                range().rev().skip(offset).take(limit).map(owned).collect::<Vec<_>>(),
                page(&backward)
            );
            // From both ends by turns.
            let (mut range, mut left) = (range(), &within[..]);
            while let Some((first, rest)) = left.split_first() {
                assert_eq!(range.len(), left.len());
                assert_eq!(range.next().map(owned).unwrap(), exact(std::slice::from_ref(first))[0]);
                left = rest;
                if let Some((last, rest)) = left.split_last() {
                    assert_eq!(
                        range.next_back().map(owned).unwrap(),
                        exact(std::slice::from_ref(last))[0]
                    );
                    left = rest;
                }
            }
            assert!(range.next().is_none() && range.next_back().is_none());
        }
        Operation::ByMember(min, max) => {
            let slice = |bound: &Bound<Vec<u8>>| bound.clone();
            let (low, high) = (slice(&min), slice(&max));
            let low = low.as_ref().map(Vec::as_slice);
            let high = high.as_ref().map(Vec::as_slice);
            let ranks = set.ranks_by_member(low, high);
            let found: Vec<_> = set.range(ranks).map(|entry| entry.member.to_vec()).collect();
            let order = model.order();
            if order.first().map(|(_, score)| *score) != order.last().map(|(_, score)| *score) {
                return;
            }
            let within = order.into_iter().map(|(member, _)| member).filter(|member| {
                (match &min {
                    Bound::Unbounded => true,
                    Bound::Included(min) => member >= min,
                    Bound::Excluded(min) => member > min,
                }) && match &max {
                    Bound::Unbounded => true,
                    Bound::Included(max) => member <= max,
                    Bound::Excluded(max) => member < max,
                }
            });
            assert_eq!(found, within.collect::<Vec<_>>());
        }
        Operation::PopMin | Operation::PopMax => {
            let order = model.order();
            let (popped, wanted) = match operation {
                Operation::PopMin => (set.pop_min(), order.first()),
                _ => (set.pop_max(), order.last()),
            };
            assert_eq!(popped.as_ref(), wanted);
            if let Some((member, _)) = popped {
                model.scores.remove(&member);
            }
        }
        Operation::RemoveRanks(start, len, most) => {
            let order = model.order();
            let start = usize::from(start) % (order.len() + 2);
            let ranks = start..start + usize::from(len);
            let mut removed = Vec::new();
            let count =
                set.remove_ranks(ranks.clone(), most.into(), |entry| removed.push(owned(entry)));
            let wanted: Vec<_> =
                order.into_iter().skip(start).take(ranks.len().min(most.into())).collect();
            assert_eq!((count, &removed), (wanted.len(), &exact(&wanted)));
            for (member, _) in wanted {
                model.scores.remove(&member);
            }
        }
        Operation::Level => {
            // All scores the same, for ranges by member.
            for (member, score) in model.order() {
                let _ = (set.insert(&member, 5.0), model.insert(&member, 5.0), score);
            }
        }
        Operation::Scan(budget) => {
            let (mut cursor, mut found, mut calls) = (0, Vec::new(), 0);
            loop {
                cursor = set.scan(cursor, budget.into(), |entry| found.push(owned(entry)));
                calls += 1;
                assert!(calls < 10_000 && cursor < 1 << 48);
                if cursor == 0 {
                    break;
                }
            }
            found.sort_unstable();
            let mut wanted = exact(&model.order());
            wanted.sort_unstable();
            // Without changes between calls none is visited twice.
            assert_eq!(found, wanted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_set_is_its_model(operations in proptest::collection::vec(operation(), 1..120)) {
        let (mut set, mut model) = (small(), Model::default());
        for operation in operations {
            apply(&mut set, &mut model, operation);
            same(&set, &model);
        }
    }

    #[test]
    fn a_scan_meets_all_that_is_there_throughout(
        size in 0..600u16,
        changes in proptest::collection::vec((0..4u8, 0..900u16, 0..80u16), 0..200),
        budget in 1..12usize,
    ) {
        let mut set = small();
        let name = |n: u16| format!("m{n}").into_bytes();
        let mut throughout: BTreeMap<u16, bool> = (0..size).map(|n| (n, false)).collect();
        for n in 0..size {
            set.insert(&name(n), f64::from(n % 50));
        }
        let mut changes = changes.into_iter();
        let mut cursor = 0;
        let mut calls = 0;
        loop {
            cursor = set.scan(cursor, budget, |entry| {
                let n = std::str::from_utf8(&entry.member[1..]).unwrap().parse().unwrap();
                throughout.entry(n).and_modify(|seen| *seen = true);
            });
            calls += 1;
            prop_assert!(calls < 10_000);
            if cursor == 0 {
                break;
            }
            let Some((kind, first, count)) = changes.next() else { continue };
            for n in first..first + count {
                match kind {
                    0 => {
                        set.remove(&name(n));
                        throughout.remove(&n);
                    }
                    // Moves through the order, or comes and may leave again.
                    1 => drop(set.insert(&name(n), -f64::from(n))),
                    2 => drop(set.insert(&name(n + 1000), f64::from(n))),
                    _ => drop(set.remove(&name(n + 1000))),
                }
            }
            set.check();
        }
        prop_assert!(throughout.values().all(|seen| *seen));
    }
}

#[test]
fn a_scan_goes_on_where_segments_were_split_or_merged() {
    let name = |n: usize| format!("m{n}").into_bytes();
    for (few, many) in [(30, 600), (60, 400), (200, 2000)] {
        for stop in 0..80 {
            for grows in [false, true] {
                // Those that stay throughout are few; the others come or go when the scan stops.
                let mut set = small();
                let stays = |n: usize| n % (many / few) == stop % 7;
                for n in (0..many).filter(|&n| stays(n) || !grows) {
                    set.insert(&name(n), 1.0);
                }
                let (mut seen, mut cursor) = (Vec::new(), 0);
                for call in 0.. {
                    if call == stop {
                        for n in (0..many).filter(|&n| !stays(n)) {
                            let _ = if grows {
                                set.insert(&name(n), 1.0)
                            } else {
                                set.remove(&name(n))
                            };
                        }
                    }
                    cursor = set.scan(cursor, 2, |entry| seen.push(entry.member.to_vec()));
                    if cursor == 0 {
                        break;
                    }
                }
                let missing = (0..many).filter(|&n| stays(n) && !seen.contains(&name(n))).count();
                assert_eq!(missing, 0, "{few} of {many}, stopped at {stop}, grows: {grows}");
            }
        }
    }
}

#[test]
fn minus_zero_equals_zero_and_keeps_its_sign() {
    let mut set = small();
    assert_eq!(set.insert(b"m", -0.0), None);
    assert_eq!(bits(set.score(b"m")), bits(Some(-0.0)));
    assert_eq!(bits(set.insert(b"m", 0.0)), bits(Some(-0.0)));
    assert_eq!(bits(set.score(b"m")), bits(Some(-0.0)));
    set.insert(b"a", 0.0);
    set.insert(b"z", 0.0);
    let order: Vec<_> = set.iter().map(|entry| entry.member).collect();
    assert_eq!(order, [b"a", b"m", b"z"]);
    assert_eq!(set.ranks_by_score(Bound::Included(0.0), Bound::Included(-0.0)), 0..3);
    assert_eq!(set.ranks_by_score(Bound::Excluded(-0.0), Bound::Unbounded), 3..3);
}

#[test]
fn an_empty_set_answers() {
    let mut set = small();
    assert_eq!((set.len(), set.iter().count(), set.select(0)), (0, 0, None));
    assert_eq!((set.pop_min(), set.pop_max(), set.remove(b"m")), (None, None, None));
    assert_eq!(set.ranks_by_score(Bound::Unbounded, Bound::Included(1.0)), 0..0);
    assert_eq!(set.ranks_by_member(Bound::Unbounded, Bound::Unbounded), 0..0);
    assert_eq!(set.scan(0, 10, |_| unreachable!()), 0);
    assert_eq!(set.range(3..usize::MAX).count(), 0);
    assert_eq!(set.remove_ranks(0..usize::MAX, usize::MAX, |_| ()), 0);
    assert!(set.dismantle().shrink_by(100));
}

#[test]
fn any_number_is_a_cursor() {
    let mut set = small();
    for n in 0..500 {
        set.insert(format!("m{n}").as_bytes(), 1.0);
    }
    for n in 0..64 {
        for cursor in [1 << n, u64::MAX << n, u64::MAX >> n, 0x9e37_79b9_7f4a_7c15 << n] {
            set.scan(cursor, 10, |_| ());
        }
    }
}

#[test]
fn a_set_filled_in_order_has_full_leaves() {
    for backward in [false, true] {
        let mut set = SortedSet::new(KeyHasher::new(7));
        for n in 0..20_000 {
            let n = if backward { 20_000 - n } else { n };
            set.insert(format!("member:{n:09}").as_bytes(), f64::from(n));
        }
        set.check();
        let each = set.bytes() as f64 / 20_000.0 - 16.0;
        assert!(each < 17.5, "{each} bytes a member");
    }
}

#[test]
fn a_set_that_shrank_gives_memory_back() {
    let mut set = SortedSet::new(KeyHasher::new(7));
    for n in 0..200_000u32 {
        set.insert(&n.wrapping_mul(0x9e37_79b1).to_le_bytes(), f64::from(n % 1000));
    }
    let full = set.bytes();
    let mut ranks = 1000..set.len() - 1000;
    while !ranks.is_empty() {
        ranks.end -= set.remove_ranks(ranks.clone(), 1000, |_| ());
    }
    set.check();
    assert_eq!(set.len(), 2000);
    assert!(set.bytes() < full / 25, "{} of {full}", set.bytes());
}

#[test]
fn a_set_is_freed_in_steps() {
    let mut set = small();
    for n in 0..5000 {
        set.insert(&vec![b'm'; n % 300], 1.0);
        set.insert(format!("m{n}").as_bytes(), n as f64);
    }
    let mut remains = set.dismantle();
    let mut last = remains.bytes();
    let mut calls = 0;
    while !remains.shrink_by(50) {
        assert!(remains.bytes() <= last && last - remains.bytes() < 100 * 400);
        last = remains.bytes();
        calls += 1;
    }
    assert!(calls > 100, "{calls}");
    assert_eq!(remains.bytes(), size_of::<Remains>());
}

#[test]
fn leaf_numbers_take_bits_from_tags() {
    // Few leaves and few bits: many cells are equal.
    for leaf_bytes in [96, 4096] {
        let shape = TreeShape { leaf_bytes, ..SMALL };
        let mut set = SortedSet::with_shape(KeyHasher::new(7), shape);
        for n in 0..1000 {
            set.insert(format!("m{n}").as_bytes(), f64::from(n % 100));
        }
        set.index.narrow_tags(if leaf_bytes == 96 { 8 } else { 4 });
        same_after_narrowing(&set);
        for n in 0..4000 {
            set.insert(format!("m{n}").as_bytes(), f64::from(n % 77));
            if n % 3 == 0 {
                set.remove(format!("m{}", n / 2).as_bytes());
            }
        }
        same_after_narrowing(&set);
    }
}

#[test]
fn entries_are_skipped_from_both_ends() {
    let mut set = small();
    for n in 0..200u32 {
        set.insert(&n.to_be_bytes(), 1.0);
    }
    let number = |entry: Option<ScoredMember<'_>>| {
        entry.and_then(|entry| entry.member.try_into().ok()).map(u32::from_be_bytes)
    };
    let mut entries = set.iter();
    assert_eq!([number(entries.next()), number(entries.next_back())], [Some(0), Some(199)]);
    assert_eq!([number(entries.nth(40)), number(entries.nth_back(40))], [Some(41), Some(158)]);
    assert_eq!([number(entries.next()), number(entries.next_back())], [Some(42), Some(157)]);
    assert_eq!(entries.len(), 157 - 43);
    assert_eq!(number(entries.nth(usize::MAX)), None);
    assert_eq!((entries.len(), number(entries.next_back())), (0, None));
}

fn same_after_narrowing(set: &SortedSet) {
    set.check();
    let (mut found, mut cursor) = (0, 0);
    loop {
        cursor = set.scan(cursor, 7, |_| found += 1);
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(found, set.len());
}
