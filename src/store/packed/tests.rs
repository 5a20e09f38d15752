//! The packed form against plain models, and against bytes that are none.

use super::intset::{IntSet, IntSetMut};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn packed(elements: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut packed = PackedMut::new(&mut bytes);
    for element in elements {
        packed.push_back(Element::new(element)).unwrap();
    }
    bytes
}

fn hash(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in pairs {
        PackedMut::new(&mut bytes).set_pair(Element::new(key), Element::new(value)).unwrap();
    }
    bytes
}

fn sorted_set(members: &[(&[u8], f64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(member, score) in members {
        PackedMut::new(&mut bytes).set_score(Element::new(member), score).unwrap();
    }
    bytes
}

fn int_set(integers: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &integer in integers {
        IntSetMut::new(&mut bytes).insert(integer);
    }
    bytes
}

/// The entries as bytes, read forwards.
fn contents(bytes: &[u8]) -> Vec<Vec<u8>> {
    Packed::new(bytes).iter().map(Element::to_vec).collect()
}

/// What an entry takes, worked out from the description of the form and not by its code.
fn entry_bytes(element: &[u8]) -> usize {
    let text = std::str::from_utf8(element).unwrap_or("");
    let integer = text.parse::<i64>().ok().filter(|integer| integer.to_string() == text);
    match (integer, element.len()) {
        (Some(0..=99), _) | (_, 0) => 1,
        (Some(integer), _) => {
            let fits = |width: &u32| {
                let half = 1i128 << (8 * width - 1);
                (-half..half).contains(&i128::from(integer))
            };
            2 + (1..=8).find(fits).unwrap() as usize
        }
        (None, len @ ..0x80) => len + 2,
        (None, len @ ..0x100) => len + 4,
        (None, len @ ..0x1_0000) => len + 6,
        (None, len @ ..0x100_0000) => len + 8,
        (None, len) => len + 10,
    }
}

/// Bytes that hold these elements and are read alike by every reader.
fn assert_holds(bytes: &[u8], model: &[Vec<u8>]) {
    assert_eq!(check(bytes), Ok(()));
    let packed = Packed::new(bytes);
    assert_eq!(packed.len(), model.len());
    assert_eq!(contents(bytes), model);
    let mut backwards: Vec<_> = packed.iter().rev().map(Element::to_vec).collect();
    backwards.reverse();
    assert_eq!(backwards, model);
    for (index, element) in model.iter().enumerate() {
        let found = packed.get(index).unwrap();
        assert_eq!(found, Element::new(element));
        assert_eq!(found.byte_len(), element.len());
        let first = model.iter().position(|other| other == element);
        assert_eq!(packed.find(Element::new(element)), first);
    }
    assert_eq!(packed.get(model.len()), None);
    assert_eq!(packed.find(Element::new(b"no such element")), None);
    let expected = 2 + model.iter().map(|element| entry_bytes(element)).sum::<usize>();
    assert_eq!(bytes.len(), expected, "{model:?}");
}

/// Elements of every kind, the limits of kinds among them. Few enough of the short ones that two
/// are often equal.
fn element() -> BoxedStrategy<Vec<u8>> {
    let limits = (0u32..64, -2i64..3)
        .prop_map(|(bit, more)| (1i64 << bit).wrapping_add(more).to_string().into_bytes());
    let negative = (0u32..64, -2i64..3)
        .prop_map(|(bit, more)| (1i64 << bit).wrapping_neg().wrapping_add(more).to_string());
    const NEAR: &[&str] =
        &["", "-", "-0", "00", "007", "+1", " 1", "1.5", "9223372036854775808", "0x7f"];
    prop_oneof![
        4 => "[a-c]{0,3}".prop_map(String::into_bytes),
        2 => (-12i64..112).prop_map(|integer| integer.to_string().into_bytes()),
        1 => any::<i64>().prop_map(|integer| integer.to_string().into_bytes()),
        2 => limits,
        1 => negative.prop_map(String::into_bytes),
        1 => proptest::sample::select(NEAR).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
        1 => (120usize..140, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        1 => (250usize..260, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
    .boxed()
}

#[derive(Clone, Debug)]
enum Edit {
    PushBack(Vec<u8>),
    PushFront(Vec<u8>),
    Insert(usize, Vec<u8>),
    InsertTwo(usize, Vec<u8>, Vec<u8>),
    Replace(usize, Vec<u8>),
    Remove(usize),
    RemoveRange(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    // A place among however many elements there are, by remainder.
    let place = || 0usize..1000;
    prop_oneof![
        3 => element().prop_map(Edit::PushBack),
        2 => element().prop_map(Edit::PushFront),
        3 => (place(), element()).prop_map(|(at, element)| Edit::Insert(at, element)),
        1 => (place(), element(), element()).prop_map(|(at, a, b)| Edit::InsertTwo(at, a, b)),
        3 => (place(), element()).prop_map(|(at, element)| Edit::Replace(at, element)),
        2 => place().prop_map(Edit::Remove),
        1 => (place(), 0usize..5).prop_map(|(at, len)| Edit::RemoveRange(at, len)),
    ]
}

fn score() -> BoxedStrategy<f64> {
    const CHOSEN: &[f64] =
        &[0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, 0.1, -1.5, 9007199254740992.0];
    prop_oneof![
        2 => proptest::sample::select(CHOSEN),
        2 => (-3i32..120).prop_map(f64::from),
        1 => any::<i64>().prop_map(|integer| integer as f64),
        1 => any::<f64>().prop_filter("a score is a number", |score| !score.is_nan()),
    ]
    .boxed()
}

fn integer() -> BoxedStrategy<i64> {
    prop_oneof![
        6 => -40i64..40,
        2 => any::<i16>().prop_map(i64::from),
        1 => any::<i32>().prop_map(i64::from),
        1 => any::<i64>(),
        1 => proptest::sample::select(&[
            32767, 32768, -32768, -32769, 2147483647, 2147483648, -2147483648, -2147483649,
            i64::MIN, i64::MAX,
        ]),
    ]
    .boxed()
}

/// Entries, and what is nearly one.
const NEAR_ENTRIES: &[&[u8]] = &[
    &[0],
    &[1, b'a', 1],
    &[1, b'7', 1],
    &[0x85],
    &[0xf0, 3, 7, 7, 7, 3, 0xf0],
    &[0xf4, 100, 0xf4],
    &[0xf4, 99, 0xf4],
    &[0xf5, 0, 1, 0xf5],
    &[0xf5, 1, 0, 0xf5],
    &[0xfc, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0xfc],
    &[0xfc, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0xfc],
    &[0xf4, 1, 1],
    &[1, 1, 0xf4],
    &[0xe4],
];

proptest! {
    #[test]
    fn edits_do_to_a_list_what_they_do_to_a_vector(edits in vec(edit(), 0..60)) {
        let (mut bytes, mut model) = (Vec::new(), Vec::<Vec<u8>>::new());
        PackedMut::new(&mut bytes);
        for edit in edits {
            let mut packed = PackedMut::new(&mut bytes);
            let len = model.len();
            match edit {
                Edit::PushBack(element) => {
                    packed.push_back(Element::new(&element)).unwrap();
                    model.push(element);
                }
                Edit::PushFront(element) => {
                    packed.push_front(Element::new(&element)).unwrap();
                    model.insert(0, element);
                }
                Edit::Insert(at, element) => {
                    packed.insert(at % (len + 1), Element::new(&element)).unwrap();
                    model.insert(at % (len + 1), element);
                }
                Edit::InsertTwo(at, first, second) => {
                    let at = at % (len + 1);
                    packed.insert_all(at, &[Element::new(&first), Element::new(&second)]).unwrap();
                    model.splice(at..at, [first, second]);
                }
                Edit::Replace(at, element) if len > 0 => {
                    packed.replace(at % len, Element::new(&element)).unwrap();
                    model[at % len] = element;
                }
                Edit::Remove(at) if len > 0 => {
                    packed.remove(at % len);
                    model.remove(at % len);
                }
                Edit::RemoveRange(at, number) => {
                    let start = at % (len + 1);
                    let range = start..len.min(start + number);
                    packed.remove_range(range.clone());
                    model.drain(range);
                }
                Edit::Replace(..) | Edit::Remove(_) => {}
            }
            assert_holds(&bytes, &model);
        }
    }

    #[test]
    fn a_range_is_that_of_a_vector(
        model in vec(element(), 0..20),
        (start, end) in (0usize..25, 0usize..25),
        turns in vec(any::<bool>(), 25),
    ) {
        let bytes = packed(&model.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let clamped = start.min(end).min(model.len())..end.min(model.len());
        let mut expected = model[clamped].iter();
        let mut found = Packed::new(&bytes).range(start..end);
        if start > end {
            expected = [].iter();
        }
        // From both ends, in turns as they come, until they meet and once more.
        for forwards in turns {
            let (one, other) = match forwards {
                true => (found.next(), expected.next()),
                false => (found.next_back(), expected.next_back()),
            };
            assert_eq!(one.map(Element::to_vec).as_ref(), other);
        }
        assert!(found.next().is_none() && found.next_back().is_none());
    }

    #[test]
    fn edits_do_to_a_hash_what_they_do_to_a_map(
        edits in vec((element(), proptest::option::weighted(0.7, element())), 0..80)
    ) {
        let (mut bytes, mut model) = (Vec::new(), BTreeMap::new());
        PackedMut::new(&mut bytes);
        for (key, value) in edits {
            let mut packed = PackedMut::new(&mut bytes);
            match value {
                Some(value) => {
                    let new = packed.set_pair(Element::new(&key), Element::new(&value)).unwrap();
                    assert_eq!(new, model.insert(key, value).is_none());
                }
                None => {
                    assert_eq!(packed.remove_pair(Element::new(&key)), model.remove(&key).is_some())
                }
            }
            assert_eq!(check_pairs(&bytes), Ok(()));
            let packed = Packed::new(&bytes);
            let pairs = packed.pairs().map(|(key, value)| (key.to_vec(), value.to_vec()));
            let backwards = packed.pairs().rev().map(|(key, value)| (key.to_vec(), value.to_vec()));
            assert_eq!(pairs.collect::<BTreeMap<_, _>>(), model);
            assert_eq!(backwards.collect::<BTreeMap<_, _>>(), model);
            assert_eq!(packed.len(), 2 * model.len());
            for (key, value) in &model {
                let (index, found) = packed.find_pair(Element::new(key)).unwrap();
                assert_eq!(&found.to_vec(), value);
                assert_eq!(&packed.get(index).unwrap().to_vec(), key);
                assert_eq!(packed.get(index + 1), Some(found));
            }
        }
    }

    #[test]
    fn edits_do_to_a_sorted_set_what_they_do_to_a_map(
        edits in vec((element(), proptest::option::weighted(0.8, score())), 0..80)
    ) {
        let (mut bytes, mut model) = (Vec::new(), BTreeMap::<Vec<u8>, f64>::new());
        PackedMut::new(&mut bytes);
        for (member, score) in edits {
            let mut packed = PackedMut::new(&mut bytes);
            match score {
                Some(score) => {
                    let old = packed.set_score(Element::new(&member), score).unwrap();
                    let expected = model.insert(member, score);
                    assert_eq!(old.map(f64::to_bits), expected.map(f64::to_bits));
                }
                None => {
                    let there = packed.remove_pair(Element::new(&member));
                    assert_eq!(there, model.remove(&member).is_some());
                }
            }
            assert_eq!(check_scores(&bytes), Ok(()));
            let mut sorted: Vec<_> = model.iter().map(|(member, score)| (member, *score)).collect();
            // The map has the members in order, and the sort is stable.
            sorted.sort_by(|(_, one), (_, other)| one.partial_cmp(other).unwrap());
            let sorted: Vec<_> =
                sorted.iter().map(|(member, score)| (member.to_vec(), score.to_bits())).collect();
            let packed = Packed::new(&bytes);
            let found = |(member, score): (Element<'_>, f64)| (member.to_vec(), score.to_bits());
            assert_eq!(packed.scores().map(found).collect::<Vec<_>>(), sorted);
            let mut backwards: Vec<_> = packed.scores().rev().map(found).collect();
            backwards.reverse();
            assert_eq!(backwards, sorted);
            let half = packed.range(sorted.len() / 2 * 2..packed.len()).scores();
            assert_eq!(half.map(found).collect::<Vec<_>>(), sorted[sorted.len() / 2..]);
            for (rank, (member, score)) in sorted.iter().enumerate() {
                let (index, found) = packed.find_pair(Element::new(member)).unwrap();
                assert_eq!((index, found.score().map(f64::to_bits)), (2 * rank, Some(*score)));
                assert_eq!(packed.place(f64::from_bits(*score), Element::new(member)), 2 * rank);
            }
        }
    }

    #[test]
    fn edits_do_to_an_intset_what_they_do_to_a_set(
        edits in vec((integer(), any::<bool>()), 0..120)
    ) {
        let (mut bytes, mut model) = (Vec::new(), BTreeSet::new());
        let mut widest = 2;
        IntSetMut::new(&mut bytes);
        for (integer, insert) in edits {
            let mut set = IntSetMut::new(&mut bytes);
            if insert {
                assert_eq!(set.insert(integer), model.insert(integer));
                widest = widest.max(match integer {
                    -0x8000..0x8000 => 2,
                    -0x8000_0000..0x8000_0000 => 4,
                    _ => 8,
                });
            } else {
                assert_eq!(set.remove(integer), model.remove(&integer));
            }
            assert_eq!(intset::check(&bytes), Ok(()));
            assert_eq!(bytes.len(), 1 + widest * model.len());
            let set = IntSet::new(&bytes);
            let (sorted, backwards) = (model.iter().copied(), model.iter().copied().rev());
            assert!(set.iter().eq(sorted.clone()) && set.iter().rev().eq(backwards));
            assert_eq!((set.len(), set.width()), (model.len(), widest));
            for (index, integer) in sorted.enumerate() {
                assert_eq!((set.find(integer), set.get(index)), (Ok(index), Some(integer)));
                if integer < i64::MAX && !model.contains(&(integer + 1)) {
                    assert_eq!(set.find(integer + 1), Err(index + 1));
                }
            }
            assert_eq!(set.get(model.len()), None);
        }
    }

    #[test]
    fn elements_are_equal_and_ordered_as_their_bytes_are(one in element(), other in element()) {
        let (first, second) = (Element::new(&one), Element::new(&other));
        assert_eq!(first == second, one == other);
        assert_eq!(first.cmp_bytes(second), one.cmp(&other));
        assert_eq!((first.to_vec(), first.byte_len()), (one.clone(), one.len()));
        let mut out = other.clone();
        first.append_to(&mut out);
        assert_eq!(out, [other, one].concat());
    }

    #[test]
    fn integers_come_back_as_the_same_text(integer: i64) {
        assert_eq!(Element::from_integer(integer).to_vec(), integer.to_string().into_bytes());
        let text = integer.to_string();
        assert_eq!(Element::new(text.as_bytes()).integer(), Some(integer));
    }

    #[test]
    fn scores_come_back_with_all_their_bits(score in score()) {
        let bytes = sorted_set(&[(b"m", score)]);
        let (_, found) = Packed::new(&bytes).scores().next().unwrap();
        assert_eq!(found.to_bits(), score.to_bits());
    }

    #[test]
    fn any_bytes_are_refused_or_the_one_form(bytes in vec(any::<u8>(), 0..40)) {
        assert_refused_or_sound(&bytes);
    }

    /// Bytes that look more like a collection than any do.
    #[test]
    fn near_bytes_are_refused_or_the_one_form(
        entries in vec(
            proptest::sample::select(NEAR_ENTRIES),
            0..6,
        ),
        more in 0usize..8,
    ) {
        let number = (entries.len() + more / 6) as u16;
        assert_refused_or_sound(&[&number.to_le_bytes()[..], &entries.concat()].concat());
    }
}

/// Reads and edits these bytes in every way, whatever they are.
fn exercise(bytes: &[u8]) {
    let packed = Packed::new(bytes);
    let count = packed.iter().count();
    assert!(count <= packed.len() && count <= bytes.len());
    assert!(packed.iter().rev().count() <= packed.len());
    let mut ends = packed.iter();
    while ends.next().is_some() && ends.next_back().is_some() {}
    for index in [0, 1, packed.len() / 2, packed.len().saturating_sub(1), packed.len(), usize::MAX]
    {
        packed.get(index).map(Element::to_vec);
        packed.range(index / 2..index).for_each(drop);
        packed.range(0..index).rev().for_each(drop);
        packed.range(index..1).for_each(drop);
    }
    packed.find(Element::new(b"a"));
    packed.find_pair(Element::new(b"7"));
    packed.place(1.5, Element::new(b"a"));
    assert!(packed.pairs().rev().count() <= bytes.len());
    assert!(packed.scores().rev().count() <= bytes.len());
    let edits: &[fn(&mut PackedMut<'_>) -> bool] = &[
        |packed| packed.push_back(Element::new(b"7")).is_ok(),
        |packed| packed.push_front(Element::new(b"a")).is_ok(),
        |packed| packed.insert(packed.as_ref().len() / 2, Element::new(b"a")).is_ok(),
        |packed| packed.insert(packed.as_ref().len(), Element::new(b"a")).is_ok(),
        |packed| packed.set_pair(Element::new(b"a"), Element::new(b"a")).is_ok(),
        |packed| packed.set_score(Element::new(b"a"), 0.5).is_ok(),
        |packed| packed.remove_pair(Element::new(b"a")),
        |packed| {
            let last = packed.as_ref().len().saturating_sub(1);
            packed.remove_range(last..packed.as_ref().len());
            true
        },
        |packed| {
            packed.remove_range(packed.as_ref().len() / 3..packed.as_ref().len());
            true
        },
        |packed| {
            packed.remove_range(0..packed.as_ref().len() / 2);
            true
        },
    ];
    for edit in edits {
        let mut bytes = bytes.to_vec();
        let mut packed = PackedMut::new(&mut bytes);
        edit(&mut packed);
        if let Some(last) = packed.as_ref().len().checked_sub(1) {
            packed.replace(last, Element::new(b"1000")).unwrap();
            packed.remove(0);
        }
        edit(&mut packed);
    }

    let set = IntSet::new(bytes);
    assert!(set.iter().count() <= bytes.len());
    for index in [0, set.len() / 2, set.len(), usize::MAX] {
        assert_eq!(set.get(index).is_some(), index < set.len());
    }
    for integer in [0, -1, 1 << 20, i64::MIN] {
        assert!(set.find(integer).unwrap_or_else(|index| index) <= set.len());
        let mut bytes = bytes.to_vec();
        let mut set = IntSetMut::new(&mut bytes);
        set.insert(integer);
        set.remove(integer);
        set.remove_range(0..set.as_ref().len() / 2);
        let width = set.as_ref().width();
        assert!((bytes.len() - 1).is_multiple_of(width));
    }
}

/// Bytes that are accepted are those that edits would have made, and read alike from both ends.
fn assert_refused_or_sound(bytes: &[u8]) {
    exercise(bytes);
    let packed = Packed::new(bytes);
    let read = |elements: Vec<Element<'_>>| {
        let mut rebuilt = Vec::new();
        PackedMut::new(&mut rebuilt).insert_all(0, &elements).unwrap();
        rebuilt
    };
    if check(bytes).is_ok() {
        let elements = contents(bytes);
        assert_holds(bytes, &elements);
        assert_eq!(read(elements.iter().map(|element| Element::new(element)).collect()), bytes);
        let distinct = elements.iter().collect::<BTreeSet<_>>().len() == elements.len();
        assert_eq!(check_set(bytes).is_ok(), distinct);
        let keys: BTreeSet<_> = elements.iter().step_by(2).collect();
        assert_eq!(check_pairs(bytes).is_ok(), 2 * keys.len() == elements.len());
    } else {
        assert!(check_set(bytes).is_err() && check_pairs(bytes).is_err());
    }
    if check_scores(bytes).is_ok() {
        let members: Vec<_> =
            packed.scores().map(|(member, score)| (member.to_vec(), score)).collect();
        let pairs = members
            .iter()
            .flat_map(|(member, score)| [Element::new(member), Element::from_score(*score)]);
        assert_eq!(read(pairs.collect()), bytes);
        let mut sorted = members.clone();
        sorted.sort_by(|one, other| {
            one.1.partial_cmp(&other.1).unwrap().then_with(|| one.0.cmp(&other.0))
        });
        assert_eq!(members, sorted);
        let distinct: BTreeSet<_> = members.iter().map(|(member, _)| member).collect();
        assert_eq!(distinct.len(), members.len());
    }
    if intset::check(bytes).is_ok() {
        let set = IntSet::new(bytes);
        let integers: BTreeSet<_> = set.iter().collect();
        assert!(set.iter().eq(integers));
        assert_eq!(bytes.len(), 1 + set.len() * set.width());
    }
}

#[test]
fn every_change_of_a_byte_is_refused_or_sound() {
    let long = [b'x'; 140];
    let samples = [
        packed(&[b"", b"a", b"7", b"100", b"-1", b"hello", &long, b"-9000000000", b"1.5"]),
        packed(&[&b"a"[..]; 5]),
        packed(&[&[b'y'; 300], b"z"]),
        hash(&[(b"name", b"Ada"), (b"born", b"1815"), (b"", b""), (b"99", b"-129")]),
        sorted_set(&[(b"a", 1.5), (b"b", 1.5), (b"10", -0.0), (b"9", 0.0), (b"c", f64::INFINITY)]),
        int_set(&[1, 2, 300, -5]),
        int_set(&[1, 70_000, -5]),
        int_set(&[1, i64::MAX]),
    ];
    let mut refused = 0;
    let mut changed = 0;
    for sample in &samples {
        assert_refused_or_sound(sample);
        for at in 0..sample.len() {
            for change in 1..=u8::MAX {
                let mut bytes = sample.clone();
                bytes[at] ^= change;
                assert_refused_or_sound(&bytes);
                // The number of entries is told twice, by itself and by the end.
                assert!(at >= 2 || check(sample).is_err() || check(&bytes).is_err());
                changed += 1;
                refused += usize::from(check(&bytes).is_err());
            }
            assert_refused_or_sound(&sample[..at]);
            assert!(check(&sample[..at]).is_err() || intset::check(sample).is_ok());
            let longer = [&sample[..at], &[0], &sample[at..]].concat();
            assert_refused_or_sound(&longer);
        }
    }
    // Bytes of texts and integers are as good as others; all else is told.
    assert!(refused > 0 && refused < changed);
}

#[test]
fn a_reader_of_nonsense_comes_to_an_end() {
    // Five entries are said, two are there: each is read once, whichever way.
    let mut ends = Packed::new(&[5, 0, 0x80, 0x81]).iter();
    assert_eq!(ends.next(), Some(Element::from_integer(0)));
    assert_eq!(ends.next_back(), Some(Element::from_integer(1)));
    assert_eq!((ends.next(), ends.next_back()), (None, None));
    let mut ends = Packed::new(&[5, 0, 0x80, 0x81]).iter();
    assert_eq!((ends.by_ref().rev().count(), ends.next()), (2, None));
    // The number of entries looks like one.
    let packed = Packed::new(&[3, 0]);
    assert_eq!((packed.get(2), packed.range(2..3).next()), (None, None));
    assert_eq!(packed.iter().next_back(), None);
    exercise(&[3, 0]);
    // A length that differs at the end, and whose entry would begin at a byte that is its mark.
    let bytes = [&[1, 0, 0xf0, 0xf0][..], &[b'x'; 0xf0], &[0xef, 0xf0]].concat();
    assert_eq!(Packed::new(&bytes).iter().next_back(), None);
    // Read from the front, the second entry begins after the place at which the fourth does, read
    // from the back.
    let mut bytes = vec![4, 0, 2, 0x80, 0x80, 0x80];
    assert_eq!(Packed::new(&bytes).range(1..3).next(), None);
    PackedMut::new(&mut bytes).remove_range(1..3);
    assert_eq!(bytes, [4, 0, 2, 0x80, 0x80, 0x80]);

    assert!(IntSet::new(&[]).is_empty() && IntSet::new(&[4, 1]).is_empty());
    assert!(IntSet::new(&[0, 1, 0]).is_empty());
    assert_eq!(IntSet::new(&[4, 1, 0, 0, 0, 1]).iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn each_rule_of_the_form_is_checked() {
    let float = |score: f64| [&[0xfc][..], &score.to_le_bytes(), &[0xfc]].concat();
    let entries =
        |number: u16, entries: &[&[u8]]| [&number.to_le_bytes()[..], &entries.concat()].concat();
    let lists: &[(Vec<u8>, &str)] = &[
        (vec![], "no number of entries"),
        (vec![0], "no number of entries"),
        (entries(1, &[]), "fewer entries than their number says"),
        (entries(2, &[&[0x80]]), "fewer entries than their number says"),
        (entries(0, &[&[0x80]]), "bytes after the last entry"),
        (entries(1, &[&[0x80], &[0]]), "bytes after the last entry"),
        (entries(1, &[&[2, b'a', b'b']]), "an entry goes on beyond the end"),
        (entries(1, &[&[3, b'a', b'b', 3]]), "an entry goes on beyond the end"),
        (entries(1, &[&[0xf3, 255, 255, 255, 255, 0]]), "an entry goes on beyond the end"),
        (entries(1, &[&[0xfb, 1, 2]]), "an entry goes on beyond the end"),
        (entries(1, &[&[0xe4]]), "a mark that means nothing"),
        (entries(1, &[&[0xef]]), "a mark that means nothing"),
        (entries(1, &[&[0xff]]), "a mark that means nothing"),
        (entries(1, &[&[1, b'a', 2]]), "an entry whose ends differ"),
        (entries(1, &[&[1, b'a', 0xf4]]), "an entry whose ends differ"),
        (entries(1, &[&[0xf4, 100, 1]]), "an entry whose ends differ"),
        (entries(1, &[&[0xf0, 128], &[b'x'; 128], &[127, 0xf0]]), "an entry whose ends differ"),
        (entries(1, &[&[0xf4, 99, 0xf4]]), "a number in more bytes than it needs"),
        (entries(1, &[&[0xf4, 0, 0xf4]]), "a number in more bytes than it needs"),
        (entries(1, &[&[0xf5, 100, 0, 0xf5]]), "a number in more bytes than it needs"),
        (entries(1, &[&[0xf5, 255, 255, 0xf5]]), "a number in more bytes than it needs"),
        (entries(1, &[&[0xf0, 1, b'a', 1, 0xf0]]), "a number in more bytes than it needs"),
        (
            entries(1, &[&[0xf1, 200, 0], &[b'x'; 200], &[200, 0, 0xf1]]),
            "a number in more bytes than it needs",
        ),
        (entries(1, &[&[1, b'7', 1]]), "an integer as text"),
        (entries(1, &[&[2, b'-', b'1', 2]]), "an integer as text"),
        (entries(1, &[&float(1.5)]), "a score among elements"),
    ];
    for (bytes, why) in lists {
        assert_eq!(check(bytes), Err(*why), "{bytes:x?}");
        assert_refused_or_sound(bytes);
    }
    assert_eq!(check_pairs(&entries(1, &[&[0x80]])), Err("half a pair"));
    let twice = entries(4, &[&[0x80], &[0x81], &[0x80], &[0x82]]);
    assert_eq!(check(&twice), Ok(()));
    assert_eq!(check_set(&twice), Err("an element that is there twice"));
    assert_eq!(check_pairs(&twice), Err("an element that is there twice"));
    let once = entries(4, &[&[0x80], &[0x82], &[0x81], &[0x82]]);
    assert_eq!(check_pairs(&once), Ok(()));

    let sets: &[(Vec<u8>, &str)] = &[
        (entries(1, &[&[0x80]]), "half a pair"),
        (entries(2, &[&float(1.5), &float(1.5)]), "a score among elements"),
        (entries(2, &[&[1, b'7', 1], &float(1.5)]), "an integer as text"),
        (entries(2, &[&[0x80], &[1, b'a', 1]]), "bytes in place of a score"),
        (entries(2, &[&[0x80], &float(f64::NAN)]), "a score that is not a number"),
        (entries(2, &[&[0x80], &float(2.0)]), "a score in the form of another"),
        (
            entries(2, &[&[0x80], &[0xfa, 1, 0, 0, 0, 0, 0, 0x20, 0xfa]]),
            "a score in the form of another",
        ),
        (entries(4, &[&[0x80], &[0x82], &[0x81], &[0x81]]), "members out of order"),
        (entries(4, &[&[0x81], &[0x81], &[0x80], &[0x81]]), "members out of order"),
        (entries(4, &[&[0x80], &[0x81], &[0x80], &[0x81]]), "an element that is there twice"),
        (entries(4, &[&[0x80], &[0x81], &[0x80], &[0x82]]), "an element that is there twice"),
        (
            entries(2, &[&[0x80], &[0xfa, 2, 0, 0, 0, 0, 0, 0x20, 0xfa]]),
            "a score in the form of another",
        ),
        // 0.0 and -0.0 are one score.
        (entries(4, &[&[0x81], &float(-0.0), &[0x80], &[0x80]]), "members out of order"),
    ];
    for (bytes, why) in sets {
        assert_eq!(check_scores(bytes), Err(*why), "{bytes:x?}");
        assert_refused_or_sound(bytes);
    }

    let int_sets: &[(&[u8], &str)] = &[
        (&[], "no width"),
        (&[0], "a width that is none"),
        (&[3, 1, 1, 1], "a width that is none"),
        (&[16], "a width that is none"),
        (&[4, 1, 0, 0, 0, 1], "an integer that goes on beyond the end"),
        (&[2, 1, 0, 1, 0], "integers out of order"),
        (&[2, 1, 0, 255, 255], "integers out of order"),
    ];
    for (bytes, why) in int_sets {
        assert_eq!(intset::check(bytes), Err(*why), "{bytes:x?}");
        assert_refused_or_sound(bytes);
    }
    assert_eq!(intset::check(&[8]), Ok(()));
}

/// The form as it stands on disks and goes to peers: it may not change.
#[test]
fn the_form_is_as_described() {
    assert_eq!(packed(&[]), [0, 0]);
    assert_eq!(
        packed(&[b"", b"ab", b"0", b"99", b"100", b"-1", b"1000", b"007"]),
        [
            8, 0, // entries
            0, 2, b'a', b'b', 2, 0x80, 0xe3, 0xf4, 100, 0xf4, 0xf4, 0xff, 0xf4, 0xf5, 0xe8, 3,
            0xf5, 3, b'0', b'0', b'7', 3,
        ]
    );
    let long = packed(&[&[b'x'; 200]]);
    assert_eq!(long, [&[1, 0, 0xf0, 200][..], &[b'x'; 200], &[200, 0xf0]].concat());
    assert_eq!(
        sorted_set(&[(b"a", 1.5), (b"b", 1.0)]),
        [4, 0, 1, b'b', 1, 0x81, 1, b'a', 1, 0xfc, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0xfc]
    );
    let limit = 9007199254740992.0;
    assert_eq!(
        sorted_set(&[(b"", limit), (b"", -limit), (b"a", limit + 2.0)]),
        [
            4, 0, 0, 0xfa, 0, 0, 0, 0, 0, 0, 0xe0, 0xfa, //
            1, b'a', 1, 0xfc, 1, 0, 0, 0, 0, 0, 0x40, 0x43, 0xfc
        ]
    );
    assert_eq!(int_set(&[1, -2]), [2, 0xfe, 0xff, 1, 0]);
    assert_eq!(int_set(&[1, 65536]), [4, 1, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn the_overhead_is_two_bytes_an_element() {
    let names: Vec<String> = (0..128).map(|n| format!("{n:-^16}")).collect();
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    // A list or set of 128 elements.
    for len in [1, 16, 63, 64, 127] {
        let elements = vec![vec![b'x'; len]; 128];
        let elements: Vec<_> = elements.iter().map(Vec::as_slice).collect();
        assert_eq!(packed(&elements).len() - 128 * len, 2 + 128 * 2);
    }
    // A hash of 64 fields of 16 bytes with values of 32.
    let pairs: Vec<(&[u8], &[u8])> =
        names[..64].iter().map(|&key| (key, &[b'v'; 32][..])).collect();
    assert_eq!(hash(&pairs).len() - 64 * (16 + 32), 2 + 64 * 4);
    // A sorted set: with the score, but for one that is small, whole, a time in ms, or a fraction.
    for (score, bytes) in [(7.0, 3), (1000.0, 6), (1.7e12, 10), (0.5, 12), (-0.0, 12)] {
        let members: Vec<_> = names.iter().map(|&member| (member, score)).collect();
        assert_eq!(sorted_set(&members).len() - 128 * 16, 2 + 128 * bytes);
    }
    // Integers, all of it.
    for (text, bytes) in
        [("0", 1), ("99", 1), ("100", 3), ("-1", 3), ("12345", 4), ("1700000000000", 8)]
    {
        assert_eq!(packed(&vec![text.as_bytes(); 128]).len(), 2 + 128 * bytes, "{text}");
    }
    assert_eq!(packed(&[b"9223372036854775807"]).len(), 2 + 10);
    // A set of integers.
    assert_eq!(int_set(&(0..512).collect::<Vec<_>>()).len(), 1 + 512 * 2);
    assert_eq!(int_set(&(0..512).map(|n| n << 20).collect::<Vec<_>>()).len(), 1 + 512 * 4);
}

#[test]
fn a_collection_is_full_at_a_stated_limit() {
    let mut bytes = Vec::new();
    let mut packed = PackedMut::new(&mut bytes);
    for n in 0..ENTRIES_MAX as i64 {
        packed.push_back(Element::from_integer(n * 7)).unwrap();
    }
    let element = Element::new(b"one more");
    assert_eq!(packed.push_back(element), Err(Full));
    assert_eq!(packed.push_front(element), Err(Full));
    assert_eq!(packed.insert(77, element), Err(Full));
    assert_eq!(packed.set_pair(element, element), Err(Full));
    assert_eq!(packed.as_ref().len(), ENTRIES_MAX);
    packed.replace(40_000, element).unwrap();
    assert_eq!(packed.as_ref().find(element), Some(40_000));
    assert_eq!(packed.as_ref().get(65_534), Some(Element::from_integer(65_534 * 7)));
    assert_eq!(packed.as_ref().get(9), Some(Element::from_integer(63)));
    packed.remove_range(0..2);
    assert_eq!(packed.insert_all(0, &[element; 3]), Err(Full));
    packed.insert_all(0, &[element; 2]).unwrap();
    assert_eq!(check(&bytes), Ok(()));

    // Never read, so its memory is not there either.
    let long = vec![0; ELEMENT_BYTES_MAX + 1];
    let before = bytes.clone();
    let mut packed = PackedMut::new(&mut bytes);
    assert_eq!(packed.replace(0, Element::new(&long)), Err(Full));
    assert_eq!(bytes, before);
}

#[test]
fn lengths_are_kept_up_to_the_longest_element_in_use() {
    let lengths = [0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 24) - 1, 1 << 24];
    let elements: Vec<_> = lengths.iter().map(|&len| vec![b'x'; len]).collect();
    let bytes = packed(&elements.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_holds(&bytes, &elements);
}

#[test]
fn an_edit_within_the_capacity_does_not_allocate() {
    let mut bytes = Vec::with_capacity(4096);
    let start = bytes.as_ptr();
    let mut packed = PackedMut::new(&mut bytes);
    for n in 0..64 {
        packed.push_front(Element::from_integer(n)).unwrap();
        packed.insert(n as usize, Element::new(b"between")).unwrap();
        packed.replace(n as usize / 2, Element::new(b"a longer one")).unwrap();
        packed.remove(n as usize / 3);
        packed.set_pair(Element::from_integer(n), Element::new(b"value")).unwrap();
    }
    assert_eq!((bytes.as_ptr(), bytes.capacity()), (start, 4096));
}

#[test]
#[should_panic(expected = "entries 3..4 of 3")]
fn an_edit_beyond_the_end_is_a_mistake() {
    let mut bytes = packed(&[b"a", b"b", b"c"]);
    PackedMut::new(&mut bytes).remove(3);
}

#[test]
#[should_panic(expected = "a score is a number")]
fn a_score_is_a_number() {
    Element::from_score(f64::NAN);
}

#[test]
fn an_intset_widens_and_stays_wide() {
    let mut bytes = int_set(&[3, 1, 2]);
    let mut set = IntSetMut::new(&mut bytes);
    assert!(set.insert(-40_000) && !set.insert(-40_000) && !set.insert(3));
    assert_eq!(set.as_ref().iter().collect::<Vec<_>>(), [-40_000, 1, 2, 3]);
    assert_eq!(set.as_ref().width(), 4);
    assert!(set.insert(1 << 40));
    assert_eq!(set.as_ref().iter().collect::<Vec<_>>(), [-40_000, 1, 2, 3, 1 << 40]);
    assert!(set.remove(1 << 40) && set.remove(-40_000) && !set.remove(1 << 50));
    assert_eq!((set.as_ref().width(), bytes.len()), (8, 1 + 3 * 8));
}
