//! Schedules by a seed: which message is delivered next, which link breaks, which node dies.

use super::clients::Outcome;
use super::disk::sync_ms;
use super::lists::{
    APPEND, APPEND_ALONE, APPEND_IF_EVEN, APPEND_REST_IF_EVEN, READ, READ_AND_APPEND,
};
use super::network::{Actor, to_clients};
use super::world::{DATA, KEYS, Kind, NODES, PARTITIONS, World, partition_of};
use std::collections::{BTreeSet, VecDeque};

/// The most that a schedule delays a message: a link that is slower is taken for broken.
const SLOW_MS: usize = 3_000;

/// A disk that takes longer hangs: an election timeout.
const HUNG_MS: u64 = 500;

/// The most that a schedule stops a machine: longer than any election timeout.
const STOP_MS: usize = 2_000;

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    pub(super) fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

impl World {
    fn new(seed: u64, kind: Kind) -> World {
        let arbiters = 1 + (seed % 3) as usize;
        World::placed(seed, kind, PARTITIONS as u16, arbiters)
    }

    /// Asks for so many requests, heals all links and looks at what has come of it.
    fn run(&mut self, requests: usize) -> Result<(), String> {
        while self.requests.len() < requests {
            let open = self.requests.iter().filter(|r| r.outcome == Outcome::Open).count();
            if open < 8 && self.rng.one_in(6) {
                match self.rng.one_in(4) {
                    true => self.ask_many(),
                    false => self.ask(),
                }
            }
            self.faults();
            self.step();
        }
        for (one, other) in std::mem::take(&mut self.cut) {
            self.cut.insert((one, other));
            self.heal(one, other);
        }
        for (one, other) in self.suspected.clone() {
            self.trust(one, other);
        }
        for _ in 0..60_000 {
            self.step();
            if self.is_at_rest() {
                return self.check();
            }
        }
        Err(self.unrest())
    }

    fn step(&mut self) {
        self.step += 1;
        // Groups talk much: their messages must not take longer than their leases last.
        self.now += self.rng.roll(if self.kind.replicates() { 2 } else { 8 }) as u64;
        self.go_on();
        self.end_syncs();
        let ready: Vec<(Actor, Actor)> = self
            .queues
            .iter()
            .filter(|(pair, queue)| !queue.is_empty() && !self.is_slow(**pair))
            .filter(|(pair, _)| self.goes(pair.1.node()))
            .map(|(pair, _)| *pair)
            .collect();
        let busy: Vec<usize> = (0..DATA)
            .filter(|node| self.disks[*node].wants_sync() && self.goes(Some(*node)))
            .collect();
        if !busy.is_empty() && (ready.is_empty() || self.rng.one_in(4)) {
            // Some node's disk begins to sync all that was written to it.
            let node = busy[self.rng.roll(busy.len())];
            let until = self.now + sync_ms(&mut self.clock_rng);
            self.counts[1] += u64::from(until > self.now + HUNG_MS);
            self.disks[node].begin_sync(until);
            return;
        }
        if ready.is_empty() || self.rng.one_in(12) {
            let node = self.rng.roll(NODES);
            self.now += if self.kind.replicates() { 10 } else { 40 };
            for node in (0..DATA).filter(|node| self.goes(Some(*node))).collect::<Vec<_>>() {
                self.with_bucket(node, |bucket, now, _| bucket.beat(now));
            }
            if self.goes(Some(node)) {
                self.tick(node);
            }
            return;
        }
        let pair = ready[self.rng.roll(ready.len())];
        if let Some(message) = self.queues.get_mut(&pair).and_then(VecDeque::pop_front) {
            self.deliver(pair.1, message);
        }
    }

    /// Breaks links, mends them, slows them down, suspects and kills nodes; mostly nothing.
    fn faults(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        if self.kind == Kind::Replicated && self.clock_rng.one_in(1_000) {
            let node = self.clock_rng.roll(NODES);
            let ms = self.clock_rng.roll(STOP_MS) as u64;
            let is_virtual = self.clock_rng.one_in(2);
            self.stop(node, ms, is_virtual);
            return;
        }
        if self.rng.one_in(60) {
            let one = self.rng.roll(NODES);
            let other = (one + 1 + self.rng.roll(NODES - 1)) % NODES;
            self.cut(one, other);
        }
        if self.rng.one_in(10) {
            let waiting: Vec<(usize, usize)> = self.unnoticed.iter().copied().collect();
            if !waiting.is_empty() {
                let (node, other) = waiting[self.rng.roll(waiting.len())];
                self.notice(node, other);
            }
        }
        if self.rng.one_in(30) {
            let cut: Vec<(usize, usize)> = self.cut.iter().copied().collect();
            if !cut.is_empty() {
                let (one, other) = cut[self.rng.roll(cut.len())];
                self.heal(one, other);
            }
        }
        if self.rng.one_in(80) {
            let one = self.rng.roll(NODES);
            let other = (one + 1 + self.rng.roll(NODES - 1)) % NODES;
            self.suspect(one, other);
        }
        if self.rng.one_in(20) {
            let suspected: Vec<(usize, usize)> = self.suspected.iter().copied().collect();
            if !suspected.is_empty() {
                let (one, other) = suspected[self.rng.roll(suspected.len())];
                self.trust(one, other);
            }
        }
        if self.rng.one_in(40) {
            let used: Vec<(Actor, Actor)> = self.queues.keys().copied().collect();
            if !used.is_empty() {
                let pair = used[self.rng.roll(used.len())];
                let until = self.now + self.rng.roll(SLOW_MS) as u64;
                self.slow.insert(pair, until);
            }
        }
        if self.clock_rng.one_in(100) {
            let node = self.clock_rng.roll(NODES);
            self.clocks[node].set(&mut self.clock_rng);
        }
        if self.rng.one_in(150) {
            let node = match self.kind {
                Kind::Single => DATA + self.rng.roll(2),
                Kind::Lossy => self.rng.roll(DATA),
                Kind::Replicated | Kind::Mixed => self.rng.roll(NODES),
            };
            self.kill(node);
        }
    }

    fn kill(&mut self, node: usize) {
        let late = self.rng.one_in(2) && !to_clients(&self.queues, node);
        self.crash(node, late, None);
    }

    /// A client sends a node some commands at once, most of them on one key.
    fn ask_many(&mut self) {
        let node = self.rng.roll(NODES);
        let count = 2 + self.rng.roll(11);
        let has_spreads = self.clock_rng.one_in(2);
        let asked = (0..count).map(|_| {
            let code = [READ, APPEND, APPEND, APPEND_IF_EVEN][self.rng.roll(4)];
            let mut keys = vec![self.rng.roll(KEYS)];
            if has_spreads && code != APPEND_IF_EVEN && self.clock_rng.one_in(4) {
                keys.push((keys[0] + 1 + self.clock_rng.roll(KEYS - 1)) % KEYS);
            }
            (keys, code)
        });
        let asked: Vec<_> = asked.collect();
        self.ask_together(node, &asked);
    }

    fn ask(&mut self) {
        let count = [1, 2, 2, 3, 4][self.rng.roll(5)];
        let mut keys = BTreeSet::new();
        while keys.len() < count {
            keys.insert(self.rng.roll(KEYS));
        }
        let mut keys: Vec<usize> = keys.into_iter().collect();
        let turn = self.rng.roll(keys.len());
        keys.rotate_left(turn);
        let codes = [READ, APPEND, APPEND, READ_AND_APPEND, APPEND_IF_EVEN, APPEND_REST_IF_EVEN];
        let alone = keys.iter().all(|key| partition_of(*key) == partition_of(keys[0]));
        let code = match codes[self.rng.roll(codes.len())] {
            READ_AND_APPEND if alone => READ,
            APPEND_REST_IF_EVEN if keys.len() == 1 => READ,
            APPEND if !alone && self.clock_rng.one_in(4) => APPEND_ALONE,
            code => code,
        };
        let node = self.rng.roll(NODES);
        self.ask_for(&keys, code, node, &[]);
    }
}

const SEEDS: u64 = 400;
const REPLICATED_SEEDS: u64 = 100;

/// The first so many, or others as `QUORATE_SEEDS=400..2000` says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("QUORATE_SEEDS").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    asked.unwrap_or(0..count)
}

pub(super) fn hunt(seeds: std::ops::Range<u64>, kind: Kind) -> Result<(), (u64, String)> {
    for seed in seeds {
        World::new(seed, kind).run(60).map_err(|violation| (seed, violation))?;
    }
    Ok(())
}

#[test]
fn every_schedule_is_strictly_serialisable_and_comes_to_rest() {
    if let Err((seed, violation)) = hunt(seeds(SEEDS), Kind::Single) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn lost_partitions_leave_no_lock_and_no_half() {
    if let Err((seed, violation)) = hunt(seeds(SEEDS), Kind::Lossy) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn replicated_partitions_lose_nothing_whoever_dies() {
    if let Err((seed, violation)) = hunt(seeds(REPLICATED_SEEDS), Kind::Replicated) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn transactions_of_caches_and_replicated_partitions_are_whole_in_the_latter() {
    if let Err((seed, violation)) = hunt(seeds(REPLICATED_SEEDS), Kind::Mixed) {
        panic!("seed {seed}: {violation}");
    }
}

/// A simulation in which nothing happens finds nothing.
#[test]
fn replies_are_cut_disks_hang_and_machines_stop() {
    let mut counts = [0; 3];
    for seed in 0..REPLICATED_SEEDS {
        let mut world = World::new(seed, Kind::Replicated);
        world.run(60).unwrap();
        counts.iter_mut().zip(world.counts).for_each(|(count, more)| *count += more);
    }
    assert!(counts.iter().zip([20, 40, 100]).all(|(count, least)| *count >= least), "{counts:?}");
}
