//! Is a history linearizable?
//!
//! Wing and Gong's search (*Testing and Verifying Concurrent Objects*, 1993) with Lowe's memory
//! (*Testing for Linearizability*, 2017): calls and returns lie in one list; a call that no return
//! precedes may be taken next if the model then answers as the client was answered; a return that
//! comes up means the choices so far were wrong. A configuration - which operations are taken, and
//! the state they led to - is searched once. Without that memory the search is exponential in what
//! overlaps, as it is in the published tester that ours is compared with here.
//!
//! An operation whose outcome is unknown has a call and no return: it may be taken at any time
//! from its call on, or never. Keys that no operation ties together are judged apart
//! (linearizability is local), which keeps the configurations few.

use crate::dice::Dice;
use crate::model::{Key, Op, Ret, Store};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::collections::{BTreeMap, HashSet};

/// How many configurations are searched before a history counts as too hard.
const CONFIGURATIONS_MAX: usize = 4_000_000;

/// One operation as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who asked. After an unknown outcome a client goes on under another number.
    pub client: u64,
    pub op: Op,
    /// Moments in the order of all calls and returns; no two are the same.
    pub called: u64,
    /// When it was answered and how, unless that is unknown.
    pub returned: Option<(u64, Ret)>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An order in which it can have happened, as indices of the calls.
    Linearizable(Vec<usize>),
    /// There is none; the longest attempt took these.
    Impossible(Vec<usize>),
    /// The search was given up.
    TooHard,
}

/// Judges a history part by part, each part a set of keys that operations tie together.
///
/// # Panics
/// When a part is not linearizable, with what can be shown of it.
#[track_caller]
pub fn assert_linearizable(what: &str, history: &[Call]) {
    for part in independent(history) {
        match check(&part) {
            Verdict::Linearizable(_) => {}
            Verdict::Impossible(longest) => panic!(
                "{what}: not linearizable; {} of {} operations fit, those that do not:\n{}",
                longest.len(),
                part.len(),
                stuck(&part, &longest)
            ),
            Verdict::TooHard => panic!("{what}: {} operations are too hard to judge", part.len()),
        }
    }
}

/// What surrounds the place where the longest attempt ended.
fn stuck(part: &[Call], longest: &[usize]) -> String {
    const SHOWN: usize = 24;
    let mut rest: Vec<&Call> = part.iter().collect();
    let mut taken: Vec<usize> = longest.to_vec();
    taken.sort_unstable();
    for index in taken.iter().rev() {
        rest.remove(*index);
    }
    rest.sort_by_key(|call| call.called);
    let before = longest.iter().rev().take(SHOWN / 2).rev();
    let before = before.map(|index| format!("  fits   {:?}", part[*index]));
    let after = rest.iter().take(SHOWN).map(|call| format!("  STUCK  {call:?}"));
    before.chain(after).collect::<Vec<_>>().join("\n")
}

/// The parts of a history that share no key.
pub fn independent(history: &[Call]) -> Vec<Vec<Call>> {
    let mut group: BTreeMap<Key, Key> = BTreeMap::new();
    fn root(group: &BTreeMap<Key, Key>, mut key: Key) -> Key {
        while let Some(up) = group.get(&key).copied().filter(|up| *up != key) {
            key = up;
        }
        key
    }
    for call in history {
        let keys = call.op.keys();
        for key in &keys {
            group.entry(*key).or_insert(*key);
            let (one, other) = (root(&group, keys[0]), root(&group, *key));
            group.insert(other, one);
        }
    }
    let mut parts: BTreeMap<Key, Vec<Call>> = BTreeMap::new();
    for call in history {
        if let Some(key) = call.op.keys().first() {
            parts.entry(root(&group, *key)).or_default().push(call.clone());
        }
    }
    parts.into_values().collect()
}

/// Searches for an order of the whole history.
pub fn check(history: &[Call]) -> Verdict {
    let mut search = Search::new(history);
    let mut seen: HashSet<(Vec<u64>, Store)> = HashSet::new();
    let mut taken = vec![0u64; history.len().div_ceil(64)];
    let mut state = Store::default();
    // What was taken, and the state before it was.
    let mut path: Vec<(usize, Store)> = Vec::new();
    let mut longest: Vec<usize> = Vec::new();
    let mut at = search.first();
    loop {
        if search.owed == 0 {
            return Verdict::Linearizable(path.into_iter().map(|(index, _)| index).collect());
        }
        let call = match at {
            Some(Event::Call(index)) => index,
            // A return, or only calls of unknown outcome are left and none helped: go back.
            Some(Event::Return(_)) | None => {
                if path.len() > longest.len() {
                    longest = path.iter().map(|(index, _)| *index).collect();
                }
                let Some((index, before)) = path.pop() else { return Verdict::Impossible(longest) };
                state = before;
                taken[index / 64] &= !(1 << (index % 64));
                search.put_back(index);
                at = search.after(Event::Call(index));
                continue;
            }
        };
        let mut next = state.clone();
        let fits = match &history[call].returned {
            Some((_, ret)) => next.is_valid_step(&history[call].op, ret),
            None => {
                next.invoke(&history[call].op);
                true
            }
        };
        if fits {
            taken[call / 64] |= 1 << (call % 64);
            if seen.insert((taken.clone(), next.clone())) {
                if seen.len() > CONFIGURATIONS_MAX {
                    return Verdict::TooHard;
                }
                path.push((call, std::mem::replace(&mut state, next)));
                search.take(call);
                at = search.first();
                continue;
            }
            taken[call / 64] &= !(1 << (call % 64));
        }
        at = search.after(Event::Call(call));
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Call(usize),
    Return(usize),
}

/// The list of calls and returns by time. What is taken out is put back last first, so links that
/// were left in the nodes taken out still hold then.
struct Search {
    /// Two nodes a call: its call at `2 * index`, its return after it. One more at the end, the
    /// head, ties the ends together.
    next: Vec<usize>,
    previous: Vec<usize>,
    returns: Vec<bool>,
    /// Answered operations that are not taken yet.
    owed: usize,
}

impl Search {
    fn new(history: &[Call]) -> Search {
        let mut events: Vec<(u64, usize)> = Vec::new();
        for (index, call) in history.iter().enumerate() {
            events.push((call.called, 2 * index));
            if let Some((time, _)) = call.returned {
                assert!(call.called < time, "answered before it was asked: {call:?}");
                events.push((time, 2 * index + 1));
            }
        }
        events.sort_unstable();
        let head = 2 * history.len();
        let mut search = Search {
            next: vec![head; head + 1],
            previous: vec![head; head + 1],
            returns: history.iter().map(|call| call.returned.is_some()).collect(),
            owed: history.iter().filter(|call| call.returned.is_some()).count(),
        };
        let mut last = head;
        for (_, node) in events {
            search.next[last] = node;
            search.previous[node] = last;
            last = node;
        }
        search.next[last] = head;
        search.previous[head] = last;
        search
    }

    fn head(&self) -> usize {
        self.next.len() - 1
    }

    fn event(&self, node: usize) -> Option<Event> {
        match node {
            _ if node == self.head() => None,
            _ if node.is_multiple_of(2) => Some(Event::Call(node / 2)),
            _ => Some(Event::Return(node / 2)),
        }
    }

    fn first(&self) -> Option<Event> {
        self.event(self.next[self.head()])
    }

    fn after(&self, event: Event) -> Option<Event> {
        let node = match event {
            Event::Call(index) => 2 * index,
            Event::Return(index) => 2 * index + 1,
        };
        self.event(self.next[node])
    }

    fn take(&mut self, index: usize) {
        self.unlink(2 * index);
        if self.returns[index] {
            self.unlink(2 * index + 1);
            self.owed -= 1;
        }
    }

    fn put_back(&mut self, index: usize) {
        if self.returns[index] {
            self.link(2 * index + 1);
            self.owed += 1;
        }
        self.link(2 * index);
    }

    fn unlink(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn link(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = node;
        self.previous[after] = node;
    }
}

/// What the published tester says of the same history. It remembers nothing of its search, so the
/// history must be short.
pub fn published_says(history: &[Call]) -> bool {
    let mut events: Vec<(u64, &Call, Option<&Ret>)> = Vec::new();
    for call in history {
        events.push((call.called, call, None));
        if let Some((time, ret)) = &call.returned {
            events.push((*time, call, Some(ret)));
        }
    }
    events.sort_by_key(|(time, ..)| *time);
    let mut tester = LinearizabilityTester::new(Store::default());
    for (_, call, ret) in events {
        let told = match ret {
            None => tester.on_invoke(call.client, call.op.clone()),
            Some(ret) => tester.on_return(call.client, ret.clone()),
        };
        told.expect("a client has one operation at a time");
    }
    tester.is_consistent()
}

/// A short history that really happened, in one of the ways in which such things happen: each
/// operation takes effect at one moment between its call and its return. Some get no answer, and
/// of those some take no effect.
fn happened(dice: &mut Dice) -> Vec<Call> {
    const KEYS: [Key; 3] = [0, 1, 2];
    let clients = 2 + dice.below(3) as u64;
    let operations = 4 + dice.below(5);
    let mut store = Store::default();
    let mut history: Vec<Call> = Vec::new();
    // Per client: the call under way and its reply once it took effect.
    let mut open: BTreeMap<u64, (usize, Option<Ret>)> = BTreeMap::new();
    let mut names: Vec<u64> = (0..clients).collect();
    let mut time = 0;
    while history.len() < operations || !open.is_empty() {
        time += 1;
        let at = dice.below(names.len());
        let client = names[at];
        match open.remove(&client) {
            None if history.len() < operations => {
                let op = some_op(dice, &KEYS, time as i64);
                open.insert(client, (history.len(), None));
                history.push(Call { client, op, called: time, returned: None });
            }
            None => {}
            Some((index, None)) => {
                if dice.one_in(12) {
                    // It never takes effect, and nobody will know.
                    names[at] += 100;
                    continue;
                }
                let ret = store.invoke(&history[index].op);
                open.insert(client, (index, Some(ret)));
            }
            Some((_, Some(_))) if dice.one_in(12) => names[at] += 100,
            Some((index, Some(ret))) => history[index].returned = Some((time, ret)),
        }
    }
    history
}

fn some_op(dice: &mut Dice, keys: &[Key], value: i64) -> Op {
    let count = 1 + dice.below(keys.len());
    let some = dice.some(keys, count);
    let pairs = || some.iter().map(|key| (*key, value)).collect();
    match dice.below(10) {
        0 | 1 => Op::Get(some[0]),
        2 => Op::Set(some[0], value),
        3 => Op::Incr(some[0]),
        4 => Op::Del(some),
        5 => Op::Mget(some),
        6 => Op::Mset(pairs()),
        7 => Op::Msetnx(pairs()),
        8 => Op::Rename(some[0], *some.last().expect("at least one")),
        _ => Op::Exec {
            watched: if dice.one_in(2) { vec![(some[0], None)] } else { Vec::new() },
            body: vec![Op::Mget(keys.to_vec()), Op::Incr(some[0])],
        },
    }
}

/// Changes something in a history; it may be possible all the same.
fn corrupt(dice: &mut Dice, history: &mut [Call]) {
    let answered: Vec<usize> =
        (0..history.len()).filter(|at| history[*at].returned.is_some()).collect();
    if answered.is_empty() {
        return;
    }
    let at = *dice.pick(&answered);
    let other = *dice.pick(&answered);
    match dice.below(3) {
        // Another's reply.
        0 => {
            let stolen = history[other].returned.clone().expect("it is answered").1;
            history[at].returned.as_mut().expect("it is answered").1 = stolen;
        }
        // Another number.
        1 => {
            let (_, ret) = history[at].returned.as_mut().expect("it is answered");
            match ret {
                Ret::Int(number) => *number += 1,
                Ret::Value(value) => *value = value.map_or(Some(1), |_| None),
                Ret::Values(values) => {
                    values[0] = values[0].map_or(Some(1), |value| Some(value - 1))
                }
                Ret::Ok => *ret = Ret::Int(1),
                Ret::NoSuchKey => *ret = Ret::Ok,
                Ret::Aborted => *ret = Ret::Each(Vec::new()),
                Ret::Each(_) => *ret = Ret::Aborted,
            }
        }
        // Two operations are exchanged in time.
        _ => {
            let (one, another) = (history[at].op.clone(), history[other].op.clone());
            history[at].op = another;
            history[other].op = one;
        }
    }
}

#[test]
fn both_checkers_agree_on_generated_histories() {
    let (mut possible, mut impossible) = (0, 0);
    for seed in 0..6_000 {
        let mut dice = Dice::new(seed);
        let mut history = happened(&mut dice);
        let straight = seed % 3 == 0;
        if !straight {
            for _ in 0..1 + dice.below(2) {
                corrupt(&mut dice, &mut history);
            }
        }
        let whole = check(&history);
        let by_parts = independent(&history)
            .iter()
            .all(|part| matches!(check(part), Verdict::Linearizable(_)));
        let published = published_says(&history);
        let ours = matches!(whole, Verdict::Linearizable(_));
        assert_eq!(ours, published, "seed {seed}: {whole:?}\n{history:#?}");
        assert_eq!(ours, by_parts, "seed {seed}: whole and in parts\n{history:#?}");
        assert!(ours || !straight, "seed {seed}: it did happen\n{history:#?}");
        if let Verdict::Linearizable(order) = &whole {
            assert_witness(&history, order);
        }
        *(if ours { &mut possible } else { &mut impossible }) += 1;
    }
    println!("{possible} possible, {impossible} impossible");
    assert!(possible > 2_500 && impossible > 1_500, "{possible} possible, {impossible} impossible");
}

/// The order found is one: the model answers so, and nothing is taken after something that was
/// called only when it had returned.
#[track_caller]
fn assert_witness(history: &[Call], order: &[usize]) {
    let mut store = Store::default();
    let mut latest = 0;
    for index in order {
        let Call { op, called, returned, .. } = &history[*index];
        match returned {
            Some((time, ret)) => {
                assert!(store.is_valid_step(op, ret), "{op:?} does not answer {ret:?}");
                assert!(*time > latest, "{op:?} is taken after what was called later");
            }
            None => drop(store.invoke(op)),
        }
        latest = latest.max(*called);
    }
    let answered = history.iter().filter(|call| call.returned.is_some());
    let taken = order.iter().filter(|index| history[**index].returned.is_some());
    assert_eq!(answered.count(), taken.count(), "an answered operation is missing");
}

/// Calls given as client, call, return (0: never), operation, reply.
fn story(lines: &[(u64, u64, u64, Op, Ret)]) -> Vec<Call> {
    let calls = lines.iter().cloned();
    calls
        .map(|(client, called, returned, op, ret)| Call {
            client,
            op,
            called,
            returned: (returned != 0).then_some((returned, ret)),
        })
        .collect()
}

#[track_caller]
fn both_say(expected: bool, lines: &[(u64, u64, u64, Op, Ret)]) {
    let history = story(lines);
    assert_eq!(published_says(&history), expected, "the published tester");
    let verdict = check(&history);
    assert_eq!(matches!(verdict, Verdict::Linearizable(_)), expected, "{verdict:?}");
}

#[test]
fn a_stale_read_is_impossible() {
    let reads = |value| Ret::Value(value);
    both_say(true, &[(1, 1, 4, Op::Set(0, 7), Ret::Ok), (2, 2, 3, Op::Get(0), reads(None))]);
    both_say(true, &[(1, 1, 4, Op::Set(0, 7), Ret::Ok), (2, 2, 3, Op::Get(0), reads(Some(7)))]);
    both_say(false, &[(1, 1, 2, Op::Set(0, 7), Ret::Ok), (2, 3, 4, Op::Get(0), reads(None))]);
    // Once seen by one it has happened for all.
    both_say(
        false,
        &[
            (1, 1, 9, Op::Set(0, 7), Ret::Ok),
            (2, 2, 3, Op::Get(0), reads(Some(7))),
            (3, 4, 5, Op::Get(0), reads(None)),
        ],
    );
}

#[test]
fn an_mset_in_two_halves_is_impossible() {
    let mset = Op::Mset(vec![(0, 7), (1, 7)]);
    let sees = |values: [Option<i64>; 2]| Ret::Values(values.to_vec());
    let lines = |one, other| {
        [
            (1, 1, 9, mset.clone(), Ret::Ok),
            (2, 2, 3, Op::Mget(vec![0, 1]), sees(one)),
            (3, 4, 5, Op::Mget(vec![0, 1]), sees(other)),
        ]
    };
    both_say(true, &lines([None, None], [Some(7), Some(7)]));
    both_say(false, &lines([Some(7), None], [Some(7), Some(7)]));
    both_say(false, &lines([Some(7), Some(7)], [None, None]));
}

#[test]
fn an_unknown_write_may_come_late_or_never_but_once() {
    let incr = |returned, number| (1, 1, returned, Op::Incr(0), Ret::Int(number));
    let get = |client, called, value| (client, called, called + 1, Op::Get(0), Ret::Value(value));
    both_say(true, &[incr(0, 0), get(2, 2, None), get(2, 4, Some(1))]);
    both_say(true, &[incr(0, 0), get(2, 2, None), get(2, 4, None)]);
    both_say(false, &[incr(0, 0), get(2, 2, Some(1)), get(2, 4, None)]);
    both_say(false, &[incr(0, 0), get(2, 2, Some(1)), get(2, 4, Some(2))]);
}

#[test]
fn two_msetnx_of_one_key_cannot_both_win() {
    let one = Op::Msetnx(vec![(0, 1), (1, 1)]);
    let other = Op::Msetnx(vec![(1, 2), (2, 2)]);
    let race = |a, b| [(1, 1, 3, one.clone(), Ret::Int(a)), (2, 2, 4, other.clone(), Ret::Int(b))];
    both_say(true, &race(1, 0));
    both_say(true, &race(0, 1));
    both_say(false, &race(1, 1));
    both_say(false, &race(0, 0));
}

#[test]
fn a_transaction_that_overwrote_what_it_watched_is_impossible() {
    let exec = Op::Exec { watched: vec![(0, Some(1))], body: vec![Op::Set(0, 3)] };
    let done = Ret::Each(vec![Ret::Ok]);
    let set = |called, value| (1, called, called + 1, Op::Set(0, value), Ret::Ok);
    both_say(true, &[set(1, 1), (2, 3, 6, exec.clone(), done.clone())]);
    both_say(false, &[set(1, 1), set(3, 2), (2, 5, 6, exec.clone(), done)]);
    both_say(true, &[set(1, 1), set(3, 2), (2, 5, 6, exec, Ret::Aborted)]);
}
