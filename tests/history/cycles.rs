//! Searches histories of growing lists for cycles, as Elle does (Kingsbury and Alvaro, *Elle:
//! Inferring Isolation Anomalies from Experimental Observations*, 2020).
//!
//! A list that only grows shows in each read the order of all writes before it. From the reads
//! follow the order in which values were appended, and with it who must have come before whom:
//! the appender of a value before the appender of the next (ww), before whoever read it (wr), and
//! whoever did not read it yet before its appender (rw); whoever had returned before whoever was
//! called later (rt). Strict serialisability forbids every cycle of these. The search is linear in
//! the history, so histories may be long and transactions over any keys.

use crate::dice::Dice;
use std::collections::{BTreeMap, BTreeSet};

/// A list, as an index.
pub type List = usize;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends a value; each is appended once in a history.
    Append(List, u64),
    /// Reads the list; what it held if the answer came.
    Read(List, Vec<u64>),
}

/// A transaction, or a command, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub steps: Vec<Step>,
    pub called: u64,
    /// When it was answered; without, its reads mean nothing and its appends may not have happened.
    pub returned: Option<u64>,
}

/// Finds what strict serialisability forbids; `Ok` is the number of edges that were drawn.
pub fn judge(history: &[Txn]) -> Result<usize, String> {
    let appenders = appenders(history)?;
    let orders = orders(history, &appenders)?;
    whole_reads(history, &appenders)?;
    nothing_lost(history, &orders)?;
    let graph = Graph::draw(history, &appenders, &orders);
    match graph.cycle() {
        None => Ok(graph.edges.iter().map(Vec::len).sum()),
        Some(cycle) => Err(format!("a cycle:\n{}", graph.tell(history, &cycle))),
    }
}

/// Who appended each value.
fn appenders(history: &[Txn]) -> Result<BTreeMap<(List, u64), usize>, String> {
    let mut appenders = BTreeMap::new();
    for (index, txn) in history.iter().enumerate() {
        for step in &txn.steps {
            if let Step::Append(list, value) = step
                && appenders.insert((*list, *value), index).is_some()
            {
                return Err(format!("value {value} is appended twice: the history says nothing"));
            }
        }
    }
    Ok(appenders)
}

/// The reads of transactions that were answered.
fn reads(history: &[Txn]) -> impl Iterator<Item = (usize, List, &[u64])> {
    let answered = history.iter().enumerate().filter(|(_, txn)| txn.returned.is_some());
    answered.flat_map(|(index, txn)| {
        txn.steps.iter().filter_map(move |step| match step {
            Step::Read(list, values) => Some((index, *list, values.as_slice())),
            Step::Append(..) => None,
        })
    })
}

/// The order of each list's values: its longest read, of which every other must be a beginning.
fn orders(
    history: &[Txn],
    appenders: &BTreeMap<(List, u64), usize>,
) -> Result<BTreeMap<List, Vec<u64>>, String> {
    let mut orders: BTreeMap<List, Vec<u64>> = BTreeMap::new();
    for (_, list, values) in reads(history) {
        let longest = orders.entry(list).or_default();
        let shared = longest.len().min(values.len());
        if longest[..shared] != values[..shared] {
            return Err(format!("list {list} was read as {longest:?} and as {values:?}"));
        }
        if values.len() > longest.len() {
            *longest = values.to_vec();
        }
    }
    for (list, values) in &orders {
        let mut once = BTreeSet::new();
        for value in values {
            if !appenders.contains_key(&(*list, *value)) {
                return Err(format!("list {list} holds {value}, which was refused or never asked"));
            }
            if !once.insert(value) {
                return Err(format!("list {list} holds {value} twice"));
            }
        }
    }
    Ok(orders)
}

/// Nobody else reads between two appends of a transaction to one list, and itself it reads them.
fn whole_reads(history: &[Txn], appenders: &BTreeMap<(List, u64), usize>) -> Result<(), String> {
    for (index, list, values) in reads(history) {
        let Some(last) = values.last() else { continue };
        let appender = appenders[&(list, *last)];
        let mut of_appender = history[appender].steps.iter().filter_map(|step| match step {
            Step::Append(to, value) if *to == list => Some(*value),
            _ => None,
        });
        let final_value = of_appender.next_back().expect("it appended the last one read");
        if appender != index && final_value != *last {
            return Err(format!(
                "{:?} reads into the middle of {:?}",
                history[index], history[appender]
            ));
        }
    }
    for txn in history.iter().filter(|txn| txn.returned.is_some()) {
        let mut own: BTreeMap<List, Vec<u64>> = BTreeMap::new();
        for step in &txn.steps {
            match step {
                Step::Append(list, value) => own.entry(*list).or_default().push(*value),
                Step::Read(list, values) => {
                    let own = own.get(list).map_or(&[][..], Vec::as_slice);
                    if !values.ends_with(own) {
                        return Err(format!("{txn:?} does not read what it appended"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// What was acknowledged is there. The history ends with a read of every list.
fn nothing_lost(history: &[Txn], orders: &BTreeMap<List, Vec<u64>>) -> Result<(), String> {
    let there: BTreeSet<(List, u64)> = orders
        .iter()
        .flat_map(|(list, values)| values.iter().map(|value| (*list, *value)))
        .collect();
    for txn in history {
        let appends = txn.steps.iter().filter_map(|step| match step {
            Step::Append(list, value) => Some((*list, *value)),
            Step::Read(..) => None,
        });
        let (found, missing): (Vec<_>, Vec<_>) = appends.partition(|append| there.contains(append));
        if !missing.is_empty() && (txn.returned.is_some() || !found.is_empty()) {
            return Err(format!("{txn:?} was acknowledged or seen, but lost {missing:?}"));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Appended the value before.
    Ww,
    /// Appended what the other read.
    Wr,
    /// Read before the other appended.
    Rw,
    /// Returned before the other was called.
    Rt,
}

/// Transactions by index, then one moment a return: a transaction leads to the moment of its
/// return, each moment to the next, and the last moment before a call to that call. So there are
/// as many edges of time as transactions and not their square.
struct Graph {
    edges: Vec<Vec<(usize, Why)>>,
}

impl Graph {
    fn draw(
        history: &[Txn],
        appenders: &BTreeMap<(List, u64), usize>,
        orders: &BTreeMap<List, Vec<u64>>,
    ) -> Graph {
        let mut returns: Vec<(u64, usize)> = history
            .iter()
            .enumerate()
            .filter_map(|(index, txn)| Some((txn.returned?, index)))
            .collect();
        returns.sort_unstable();
        let mut graph = Graph { edges: vec![Vec::new(); history.len() + returns.len()] };
        for (moment, (_, index)) in returns.iter().enumerate() {
            graph.add(*index, history.len() + moment, Why::Rt);
            if moment > 0 {
                graph.add(history.len() + moment - 1, history.len() + moment, Why::Rt);
            }
        }
        for (index, txn) in history.iter().enumerate() {
            let before = returns.partition_point(|(time, _)| *time < txn.called);
            if before > 0 {
                graph.add(history.len() + before - 1, index, Why::Rt);
            }
        }
        for (list, values) in orders {
            for pair in values.windows(2) {
                graph.add(appenders[&(*list, pair[0])], appenders[&(*list, pair[1])], Why::Ww);
            }
        }
        for (reader, list, values) in reads(history) {
            if let Some(last) = values.last() {
                graph.add(appenders[&(list, *last)], reader, Why::Wr);
            }
            if let Some(next) = orders[&list].get(values.len()) {
                graph.add(reader, appenders[&(list, *next)], Why::Rw);
            }
        }
        graph
    }

    fn add(&mut self, from: usize, to: usize, why: Why) {
        if from != to {
            self.edges[from].push((to, why));
        }
    }

    /// Some cycle, if there is one: a depth-first search that meets its own path.
    fn cycle(&self) -> Option<Vec<usize>> {
        let (mut entered, mut left) =
            (vec![false; self.edges.len()], vec![false; self.edges.len()]);
        for start in 0..self.edges.len() {
            if entered[start] {
                continue;
            }
            entered[start] = true;
            // Who is on the path, and which of its edges comes next.
            let mut path = vec![(start, 0)];
            while let Some((node, edge)) = path.last_mut() {
                let node = *node;
                let Some((to, _)) = self.edges[node].get(*edge).copied() else {
                    left[node] = true;
                    path.pop();
                    continue;
                };
                *edge += 1;
                if !entered[to] {
                    entered[to] = true;
                    path.push((to, 0));
                } else if !left[to] {
                    let nodes = path.iter().map(|(node, _)| *node);
                    return Some(self.shortest(nodes.skip_while(|node| *node != to).collect()));
                }
            }
        }
        None
    }

    /// The shortest cycle through any one node of a cycle: it reads better.
    fn shortest(&self, cycle: Vec<usize>) -> Vec<usize> {
        let mut best = cycle.clone();
        for start in cycle {
            let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
            let mut queue = std::collections::VecDeque::from([start]);
            'search: while let Some(node) = queue.pop_front() {
                for (to, _) in &self.edges[node] {
                    if *to == start {
                        let mut found = vec![node];
                        while *found.last().expect("it has a node") != start {
                            found.push(came_from[found.last().expect("it has a node")]);
                        }
                        found.reverse();
                        if found.len() < best.len() {
                            best = found;
                        }
                        break 'search;
                    }
                    if *to != start && !came_from.contains_key(to) {
                        came_from.insert(*to, node);
                        queue.push_back(*to);
                    }
                }
            }
        }
        best
    }

    fn tell(&self, history: &[Txn], cycle: &[usize]) -> String {
        let lines = (0..cycle.len()).filter_map(|at| {
            let (from, to) = (cycle[at], cycle[(at + 1) % cycle.len()]);
            let (_, why) = self.edges[from].iter().find(|(other, _)| *other == to)?;
            let txn = history.get(from)?;
            Some(format!("  {txn:?}\n    before, by {why:?},"))
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A history that happened one transaction after the other, with calls and returns around it.
fn happened(dice: &mut Dice) -> Vec<Txn> {
    const LISTS: usize = 3;
    let mut lists: BTreeMap<List, Vec<u64>> = BTreeMap::new();
    let mut history = Vec::new();
    for n in 1..=30u64 {
        let mut steps = Vec::new();
        for part in 0..1 + dice.below(3) as u64 {
            let list = dice.below(LISTS);
            if dice.one_in(2) {
                lists.entry(list).or_default().push(n * 10 + part);
                steps.push(Step::Append(list, n * 10 + part));
            } else {
                steps.push(Step::Read(list, lists.get(&list).cloned().unwrap_or_default()));
            }
        }
        let at = n * 100;
        let called = at - dice.below(180).min(at as usize - 1) as u64;
        let returned = (!dice.one_in(10)).then(|| at + dice.below(180) as u64);
        history.push(Txn { steps, called, returned });
    }
    let steps = (0..LISTS)
        .map(|list| Step::Read(list, lists.get(&list).cloned().unwrap_or_default()))
        .collect();
    history.push(Txn { steps, called: 10_000, returned: Some(10_001) });
    history
}

#[test]
fn what_happened_has_no_cycle_and_what_was_changed_mostly_has() {
    let mut found = 0;
    const SEEDS: u64 = 1_000;
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let mut history = happened(&mut dice);
        judge(&history).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        // A read that misses the newest value although it had returned to somebody.
        let reads: Vec<(usize, usize)> = (0..history.len() - 1)
            .filter(|at| history[*at].returned.is_some())
            .flat_map(|at| (0..history[at].steps.len()).map(move |step| (at, step)))
            .filter(|(at, step)| {
                matches!(&history[*at].steps[*step], Step::Read(_, values) if values.len() > 1)
            })
            .collect();
        if let Some((at, step)) = (!reads.is_empty()).then(|| *dice.pick(&reads)) {
            let Step::Read(_, values) = &mut history[at].steps[step] else { unreachable!() };
            values.truncate(values.len() / 2);
            found += u64::from(judge(&history).is_err());
        }
    }
    println!("{found} of {SEEDS} changed histories are impossible");
    assert!(found > SEEDS * 8 / 10, "{found} of {SEEDS}");
}

/// Transactions in the order of their calls, all open at once unless they say when they returned.
fn open(all: &[&[Step]]) -> Vec<Txn> {
    let count = all.len() as u64;
    let txns = (1..).zip(all);
    txns.map(|(n, steps)| Txn { steps: steps.to_vec(), called: n, returned: Some(count + n) })
        .collect()
}

/// Adds the read of everything that every history ends with.
fn ended(mut history: Vec<Txn>, lists: &[&[u64]]) -> Result<usize, String> {
    let steps = lists.iter().enumerate().map(|(list, values)| Step::Read(list, values.to_vec()));
    history.push(Txn { steps: steps.collect(), called: 1_000, returned: Some(1_001) });
    judge(&history)
}

#[test]
fn the_anomalies_of_the_book_are_found() {
    use Step::{Append as A, Read as R};
    let complaint = |result: Result<usize, String>| result.expect_err("it is impossible");

    // Dirty write: two transactions interleave.
    let g0 = open(&[&[A(0, 1), A(1, 1)], &[A(0, 2), A(1, 2)]]);
    assert!(complaint(ended(g0.clone(), &[&[1, 2], &[2, 1]])).contains("Ww"));
    assert!(ended(g0, &[&[1, 2], &[1, 2]]).is_ok());

    // Circular information flow: each reads the other.
    let g1c = open(&[&[A(0, 1), R(1, vec![1])], &[A(1, 1), R(0, vec![1])]]);
    assert!(complaint(ended(g1c, &[&[1], &[1]])).contains("Wr"));

    // Read skew: one of two appends is seen.
    let skew = open(&[&[A(0, 1), A(1, 1)], &[R(0, vec![1]), R(1, vec![])]]);
    assert!(complaint(ended(skew, &[&[1], &[1]])).contains("Rw"));

    // Write skew: neither saw the other.
    let g2 = open(&[&[R(0, vec![]), A(1, 1)], &[R(1, vec![]), A(0, 1)]]);
    assert!(complaint(ended(g2, &[&[1], &[1]])).contains("Rw"));

    // A stale read: serialisable, but not in the order of time.
    let mut stale = open(&[&[A(0, 1)], &[R(0, vec![])]]);
    assert!(ended(stale.clone(), &[&[1]]).is_ok());
    (stale[1].called, stale[1].returned) = (10, Some(11));
    assert!(complaint(ended(stale, &[&[1]])).contains("Rt"));

    // Half a transaction is read.
    let half = open(&[&[A(0, 1), A(0, 2)], &[R(0, vec![1])]]);
    assert!(complaint(ended(half, &[&[1, 2]])).contains("middle"));

    // A list that forgot, one that was written over, one that doubles, one from nowhere.
    assert!(complaint(ended(open(&[&[A(0, 1)], &[A(0, 2)]]), &[&[2]])).contains("lost"));
    let fork = open(&[&[A(0, 1)], &[A(0, 2)], &[R(0, vec![2])]]);
    assert!(complaint(ended(fork, &[&[1, 2]])).contains("was read as"));
    assert!(complaint(ended(open(&[&[A(0, 1)]]), &[&[1, 1]])).contains("twice"));
    assert!(complaint(ended(open(&[&[A(0, 1)]]), &[&[1, 2]])).contains("never asked"));

    // What it appended itself it must read.
    let own = open(&[&[A(0, 1), R(0, vec![])]]);
    assert!(complaint(ended(own, &[&[1]])).contains("does not read"));

    // An outcome that is unknown may be either, but not half.
    let mut unknown = open(&[&[A(0, 1), A(1, 1)]]);
    unknown[0].returned = None;
    assert!(ended(unknown.clone(), &[&[1], &[1]]).is_ok());
    assert!(ended(unknown.clone(), &[&[], &[]]).is_ok());
    assert!(complaint(ended(unknown, &[&[1], &[]])).contains("lost"));
}
