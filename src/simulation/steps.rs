//! Single transactions, struck at every step.
//!
//! A step is a message delivered or a disk synced. Nothing is left to chance here: messages go round
//! by round, a round takes a millisecond and ends with a sync of every disk that has something to
//! sync. So a run without faults tells how many steps there are, and the same run is repeated for
//! every step, node and fault: before the first step, between each two, and after the last. What
//! is struck between two steps is struck just after the one and just before the other.
//!
//! Whatever is done to one node, the following holds: a transaction is whole, as its client was
//! told; the replicas are alike; no lock, intent or outcome is left, and the next transaction over
//! the same keys gets through. And whenever a Coordinator dies, its locks are gone as soon as the
//! participants have asked their primary, which they do [`RESOLVE_AFTER_MS`] later.

use super::clients::Outcome;
use super::lists::{APPEND, APPEND_REST_IF_EVEN, READ, WATCH, batch};
use super::network::Actor;
use super::world::{DATA, Kind, NODES, World, partition_of};
use crate::batch::OpCode;
use crate::ids::PartitionId;
use crate::partition::{Partition, RESOLVE_AFTER_MS};
use crate::rules::{Rule, broken};
use std::collections::VecDeque;

/// Partitions 0, 1 and 2, led by the nodes of the same numbers.
const PLACED: u16 = 3;
/// Neither of them has partitions.
pub(super) const COORDINATOR: usize = 3;
pub(super) const BYSTANDER: usize = 4;

/// As in the actors: groups and Coordinators are woken by every beat, the others by every fourth.
const BEAT_MS: u64 = 25;
/// When a peer is suspected that does not answer.
const SUSPECT_MS: u64 = 600;
/// So long after that the locks of a suspected Coordinator are gone: its participants have asked
/// their primary, which is led by others.
const RELEASE_MS: u64 = 1_000;
/// When a peer counts as lost that says nothing.
const SILENCE_MS: u64 = 3_000;
const AWAY_MS: u64 = 5_000;
/// A pause that no peer takes for a loss, though it is suspected and groups elect others meanwhile.
const PAUSE_MS: u64 = 2_500;
/// A pause past every timeout.
const LONG_PAUSE_MS: u64 = 8_000;
/// The longest a group takes to elect a leader: a follower's timeout, twice.
const ELECTION_MS: u64 = 2_000;
/// Whatever happened, a run has come to rest so long after it.
pub(super) const REST_MS: u64 = 30_000;

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Killed and started again. `heard`: what it had sent still arrives; `kept`: what it had
    /// written is on its disk, though the sync did not return.
    Killed { heard: bool, kept: bool, away: bool },
    /// It and the others lose each other for [`AWAY_MS`].
    CutOff,
    /// It does nothing for so long; what it was sent meanwhile it gets then.
    Paused { ms: u64 },
}

const FAULTS: [Fault; 6] = [
    Fault::Killed { heard: false, kept: false, away: false },
    Fault::Killed { heard: true, kept: true, away: false },
    Fault::Killed { heard: true, kept: false, away: true },
    Fault::CutOff,
    Fault::Paused { ms: PAUSE_MS },
    Fault::Paused { ms: LONG_PAUSE_MS },
];

/// A transaction over all partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Story {
    code: OpCode,
    /// The node that coordinates it.
    at: usize,
    /// Whether its first key is watched.
    watched: bool,
    rival: Rival,
}

/// What else is asked at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rival {
    None,
    /// An append to the first key.
    Append,
    /// A transaction that appends to all keys, coordinated by the other node without partitions.
    Transaction,
}

const PLAIN: Story = Story { code: APPEND, at: COORDINATOR, watched: false, rival: Rival::None };

pub(super) const GATHERED: Story = Story { code: APPEND_REST_IF_EVEN, ..PLAIN };
const READING: Story = Story { code: READ, rival: Rival::Transaction, ..PLAIN };
const WATCHED: Story = Story { watched: true, ..PLAIN };
pub(super) const OVERTAKEN: Story = Story { rival: Rival::Append, ..WATCHED };

const TXN_KEYS: [usize; 3] = [0, 1, 2];

/// The transactions that come before the one that is struck: each list holds as many tags.
const BEFORE: usize = 2;

/// What is next in a round.
enum Turn {
    Deliver(Actor, Actor),
    Sync(usize),
}

pub(super) struct Run {
    pub(super) world: World,
    round: VecDeque<Turn>,
    beats: u64,
    next_beat: u64,
    taken: usize,
    paused: Option<usize>,
    /// Whose disk answers nothing.
    pub(super) hung: Option<usize>,
    /// How the struck node gets back, and when; a silence to be noticed before that.
    back: Option<(u64, usize)>,
    silent: Option<(u64, usize)>,
    suspicious: Option<(u64, usize)>,
}

impl Run {
    /// A cluster at rest, in which some transactions have been.
    pub(super) fn new() -> Result<Run, String> {
        Run::of(Kind::Replicated)
    }

    pub(super) fn of(kind: Kind) -> Result<Run, String> {
        Run::placed(kind, PLACED)
    }

    /// A run with so many partitions.
    pub(super) fn placed(kind: Kind, placed: u16) -> Result<Run, String> {
        Run::in_world(World::placed(1, kind, placed, 1))
    }

    /// A run of replicated partitions, with wall clocks that are so far ahead.
    pub(super) fn with_clocks(ahead: [i64; NODES]) -> Result<Run, String> {
        let mut world = World::placed(1, Kind::Replicated, PLACED, 1);
        for (clock, ahead) in world.clocks.iter_mut().zip(ahead) {
            clock.ahead = ahead;
        }
        Run::in_world(world)
    }

    fn in_world(world: World) -> Result<Run, String> {
        let mut run = Run {
            next_beat: world.now,
            world,
            round: VecDeque::new(),
            beats: 0,
            taken: 0,
            paused: None,
            hung: None,
            back: None,
            silent: None,
            suspicious: None,
        };
        run.settle(REST_MS)?;
        for _ in 0..BEFORE {
            run.world.ask_for(&TXN_KEYS, APPEND, BYSTANDER, &[]);
            run.settle(REST_MS)?;
        }
        Ok(run)
    }

    /// Asks for a story's transaction, and for its rival.
    fn begin(&mut self, story: Story) {
        let first = TXN_KEYS[0];
        let id = partition_of(first);
        let leader = self.world.leader(story.at, id);
        let mut watched = Vec::new();
        if story.watched {
            let mut reply = Vec::new();
            self.world.with_bucket(leader, |bucket, _, _| {
                let watch = batch(WATCH, id, &[first], 0);
                if let Some(partition) = bucket.partition_mut(id) {
                    partition.peek(&watch.op(0), &mut reply);
                }
            });
            watched.push((first, u64::from_le_bytes(reply[..].try_into().unwrap())));
        }
        self.world.ask_for(&TXN_KEYS, story.code, story.at, &watched);
        match story.rival {
            Rival::None => {}
            Rival::Append => self.world.ask_for(&[first], APPEND, leader, &[]),
            Rival::Transaction => self.world.ask_for(&TXN_KEYS, APPEND, BYSTANDER, &[]),
        }
        self.taken = 0;
    }

    /// Takes the next step, and whatever time brings before it.
    pub(super) fn step(&mut self) {
        let until = self.world.now + SILENCE_MS;
        // Where there are no groups, there may be no message.
        while self.world.now < until {
            if self.world.now >= self.next_beat {
                self.beat();
                continue;
            }
            match self.round.pop_front() {
                Some(Turn::Deliver(from, to)) if to.node().is_none_or(|to| self.runs(to)) => {
                    let queue = self.world.queues.get_mut(&(from, to));
                    let Some(message) = queue.and_then(VecDeque::pop_front) else { continue };
                    self.world.deliver(to, message);
                    break;
                }
                Some(Turn::Sync(node)) if self.runs(node) => {
                    if self.world.disks[node].unsynced.is_empty() {
                        continue;
                    }
                    self.world.sync_at(node);
                    break;
                }
                Some(_) => {}
                None => self.next_round(),
            }
        }
        self.taken += 1;
        self.world.step += 1;
    }

    /// A node does nothing until it is resumed.
    pub(super) fn pause(&mut self, node: usize) {
        self.paused = Some(node);
    }

    pub(super) fn resume(&mut self) {
        self.paused = None;
    }

    fn runs(&self, node: usize) -> bool {
        self.paused != Some(node)
    }

    fn next_round(&mut self) {
        self.world.queues.retain(|_, queue| !queue.is_empty());
        let pairs: Vec<(Actor, Actor)> = self.world.queues.keys().copied().collect();
        for (from, to) in pairs {
            if to.node().is_none_or(|to| self.runs(to)) && !self.world.is_slow((from, to)) {
                self.round.push_back(Turn::Deliver(from, to));
            }
        }
        for (node, disk) in self.world.disks.iter().enumerate() {
            if self.paused != Some(node) && self.hung != Some(node) && disk.wants_sync() {
                self.round.push_back(Turn::Sync(node));
            }
        }
        self.world.now = if self.round.is_empty() { self.next_beat } else { self.world.now + 1 };
    }

    fn beat(&mut self) {
        self.next_beat = self.world.now + BEAT_MS;
        self.beats += 1;
        self.pass();
        for node in (0..NODES).filter(|node| self.paused != Some(*node)) {
            self.world.with_bucket(node, |bucket, now, _| bucket.beat(now));
            if self.beats.is_multiple_of(4) {
                self.world.tick(node);
                continue;
            }
            let mut effects = Vec::new();
            let now = self.world.now(node);
            self.world.coordinators[node].tick(now, &mut effects);
            self.world.txn_effects(node, effects);
        }
    }

    /// Does what is due with a node that was struck.
    fn pass(&mut self) {
        let now = self.world.now;
        let due = |(at, _): &mut (u64, usize)| *at <= now;
        if let Some((_, node)) = self.suspicious.take_if(due) {
            for other in others(node) {
                self.world.suspect(other, node);
                if self.runs(node) {
                    self.world.suspect(node, other);
                }
            }
        }
        if let Some((_, node)) = self.silent.take_if(due) {
            for other in others(node) {
                // What a paused node was sent is in its sockets' buffers; what it sends is not heard.
                self.world.cut.insert((node.min(other), node.max(other)));
                self.world.unnoticed.extend([(node, other), (other, node)]);
                self.world.notice(other, node);
                if self.runs(node) {
                    self.world.notice(node, other);
                }
            }
        }
        if let Some((_, node)) = self.back.take_if(due) {
            if self.paused.take().is_some() && !self.world.cut.is_empty() {
                for other in others(node) {
                    self.world.flush_between(other, node);
                }
            }
            for other in others(node) {
                self.world.heal(node, other);
                self.world.trust(other, node);
            }
        }
    }

    fn strike(&mut self, node: usize, fault: Fault) {
        let now = self.world.now;
        match fault {
            Fault::Killed { heard, kept, away } => {
                if heard {
                    self.answer_clients(node);
                }
                self.world.crash(node, heard, Some(if kept { usize::MAX } else { 0 }));
                if away {
                    for other in others(node) {
                        self.world.cut(node, other);
                        self.world.notice(node, other);
                        self.world.notice(other, node);
                    }
                    self.back = Some((now + AWAY_MS, node));
                }
            }
            Fault::CutOff => {
                for other in others(node) {
                    self.world.drop_between(node, other);
                    self.world.cut.insert((node.min(other), node.max(other)));
                    self.world.unnoticed.extend([(node, other), (other, node)]);
                }
                self.suspicious = Some((now + SUSPECT_MS, node));
                self.silent = Some((now + SILENCE_MS, node));
                self.back = Some((now + AWAY_MS, node));
            }
            Fault::Paused { ms } => {
                self.suspicious = Some((now + SUSPECT_MS, node));
                self.paused = Some(node);
                self.back = Some((now + ms, node));
                self.silent = (ms > SILENCE_MS).then_some((now + SILENCE_MS, node));
            }
        }
    }

    /// Delivers what a node has sent to clients.
    fn answer_clients(&mut self, node: usize) {
        let pairs: Vec<(Actor, Actor)> = self.world.queues.keys().copied().collect();
        for (from, to) in pairs {
            if from.node() != Some(node) || to.node().is_some() {
                continue;
            }
            while let Some(message) =
                self.world.queues.get_mut(&(from, to)).and_then(VecDeque::pop_front)
            {
                self.world.deliver(to, message);
            }
        }
    }

    /// Goes on until nothing is left to do, at most for so long.
    pub(super) fn settle(&mut self, limit_ms: u64) -> Result<(), String> {
        let until = self.world.now + limit_ms;
        while self.world.now < until {
            if self.is_at_rest() {
                return Ok(());
            }
            self.step();
        }
        Err(self.world.unrest())
    }

    fn is_at_rest(&self) -> bool {
        // Between two rounds is often enough to ask.
        self.round.is_empty() && self.back.is_none() && self.world.is_at_rest()
    }

    /// The same for a run whose Coordinator is dead or hangs: its locks must go in time.
    fn settle_orphans(&mut self, within_ms: u64) -> Result<(), String> {
        let until = self.world.now + within_ms;
        while !self.is_free() {
            if self.world.now > until {
                return Err(format!("locked too long: {}", self.world.unrest()));
            }
            self.step();
        }
        self.settle(REST_MS)
    }

    /// Every partition is led, and its leader holds no lock.
    fn is_free(&self) -> bool {
        (0..self.world.placed).map(PartitionId).all(|id| {
            let replicas = self.world.buckets.iter().flatten().filter_map(|b| b.partition(id));
            let mut led = replicas.filter(|partition| partition.is_led_here());
            led.any(Partition::is_at_rest)
        })
    }

    /// Looks on from outside, at a cluster at rest.
    fn check(&mut self, story: Story) -> Result<(), String> {
        // Whatever was left behind would be in the way of the next transaction.
        let last = self.world.requests.len();
        self.world.ask_for(&TXN_KEYS, APPEND, BYSTANDER, &[]);
        self.settle(SILENCE_MS)?;
        if self.world.requests[last].outcome != Outcome::Done {
            return Err(format!("nothing gets through: {:?}", self.world.requests[last]));
        }
        let struck = &self.world.requests[BEFORE];
        if story.watched && struck.outcome == Outcome::Done {
            let seen = &struck.seen[&TXN_KEYS[0]];
            if seen.len() != BEFORE + 1 {
                return Err(format!("done though what it watched has changed: {struck:?}"));
            }
        }
        self.world.check()
    }
}

fn others(node: usize) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |other| *other != node)
}

/// How the runs of a story ended.
#[derive(Debug, Default)]
pub(super) struct Tally {
    steps: usize,
    cases: usize,
    done: usize,
    refused: usize,
    unknown: usize,
    longest_ms: u64,
}

/// A run without faults: how many steps it takes.
fn count(story: Story) -> Result<(usize, Outcome), String> {
    let mut run = Run::new()?;
    run.begin(story);
    run.settle(REST_MS)?;
    let steps = run.taken;
    run.check(story)?;
    Ok((steps, run.world.requests[BEFORE].outcome.clone()))
}

/// The run with a node struck after so many steps.
fn case(story: Story, step: usize, node: usize, fault: Fault) -> Result<(Outcome, u64), String> {
    let mut run = Run::new()?;
    run.begin(story);
    while run.taken < step {
        run.step();
    }
    run.strike(node, fault);
    let struck = run.world.now;
    match fault {
        Fault::Killed { .. } if node == story.at => {
            run.settle_orphans(RESOLVE_AFTER_MS + ELECTION_MS)?;
        }
        // It leads nothing, so no leader has to be elected for it.
        Fault::Paused { .. } | Fault::CutOff if node == story.at && node >= DATA => {
            run.settle_orphans(SUSPECT_MS + RELEASE_MS)?;
        }
        _ => run.settle(REST_MS)?,
    }
    let took = run.world.now - struck;
    run.check(story)?;
    Ok((run.world.requests[BEFORE].outcome.clone(), took))
}

pub(super) fn strike_everywhere(story: Story) -> Result<Tally, String> {
    let (steps, _) = count(story).map_err(|violation| format!("without faults: {violation}"))?;
    let mut tally = Tally { steps, ..Tally::default() };
    let coordinates =
        |node: usize| node == story.at || node == BYSTANDER && story.rival == Rival::Transaction;
    for step in 0..=steps {
        for node in (0..NODES).filter(|node| *node < DATA || coordinates(*node)) {
            for fault in FAULTS {
                // The cores' own assertions find violations too.
                let ran = std::panic::catch_unwind(|| case(story, step, node, fault));
                let ran = ran.unwrap_or_else(|_| Err("an assertion failed".into()));
                let (outcome, took) = ran.map_err(|violation| {
                    format!("{fault:?} node {node} after step {step} of {steps}: {violation}")
                })?;
                tally.cases += 1;
                tally.longest_ms = tally.longest_ms.max(took);
                match outcome {
                    Outcome::Done => tally.done += 1,
                    Outcome::Refused => tally.refused += 1,
                    Outcome::Unknown => tally.unknown += 1,
                    Outcome::Open => {}
                }
            }
        }
    }
    Ok(tally)
}

#[track_caller]
fn survives(story: Story) -> Tally {
    match strike_everywhere(story) {
        Ok(tally) => {
            let Tally { steps, cases, done, refused, unknown, longest_ms } = tally;
            println!("{story:?}: {cases} cases (step, node, fault) of {steps} steps");
            println!("    {done} done, {refused} refused, {unknown} unknown");
            println!("    at rest after {longest_ms} ms at most");
            tally
        }
        Err(violation) => panic!("{story:?}: {violation}"),
    }
}

#[test]
fn a_write_struck_at_any_step_is_whole() {
    let tally = survives(PLAIN);
    assert!(tally.done > 0 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn a_write_coordinated_where_its_primary_is_led_is_whole() {
    survives(Story { at: 0, ..PLAIN });
}

#[test]
fn a_gathered_write_struck_at_any_step_is_whole() {
    survives(GATHERED);
}

#[test]
fn a_read_beside_a_write_sees_all_of_it_or_nothing() {
    survives(READING);
}

#[test]
fn a_watched_write_struck_at_any_step_is_whole() {
    survives(WATCHED);
}

#[test]
fn a_write_is_not_executed_over_a_change_of_what_it_watches() {
    survives(OVERTAKEN);
}

#[test]
fn the_rules_that_guard_against_strikes_are_missed() {
    let guards = [
        (Rule::LocksAreAuthoritative, READING),
        (Rule::UnloggedLocksGoWithCoordinator, GATHERED),
        (Rule::CommitNeedsIntent, PLAIN),
        (Rule::FirstDecisionStands, PLAIN),
        (Rule::PrimaryDrives, PLAIN),
        (Rule::OldIntentsAsk, PLAIN),
        (Rule::GrantsWaitForProposed, OVERTAKEN),
    ];
    for (rule, story) in guards {
        let struck = broken(rule, || strike_everywhere(story));
        assert!(struck.is_err(), "nothing noticed the absence of {rule:?}");
    }
}
