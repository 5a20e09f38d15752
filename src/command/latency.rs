//! What was slow: the slow log, the latency monitor, and the commands on them.
//!
//! What is measured is what a command took from its turn on: on keys of its own arbiter only its
//! execution, as in Redis, and the wait for a lock if there was one; otherwise from being sent to
//! other arbiters and nodes until all is answered. Commands that a client sends without waiting for
//! their replies travel in one batch to each place, and it is the batch that is timed. A slow one is
//! told under its first command, with the number of those that travelled with it. Each arbiter
//! keeps its own log; their entries are numbered by the node.

use super::argv::Argv;
use super::client::{Client, Then};
use super::facts::Facts;
use super::node_query::{NodeQuery, Question, Show};
use super::reply::Reply;
use super::spec::{ADMIN, CommandGroup, Doc, LOADING, NO_KEYS, NOSCRIPT, Run, STALE, Spec};
use crate::ids::Millis;
use crate::store::number::parse_int;
use std::collections::{BTreeMap, VecDeque};

/// Argv of a command that the slow log keeps, and bytes of each.
const WORDS_MAX: usize = 32;
const WORD_BYTES_MAX: usize = 128;

/// Samples of an event that are kept.
const SAMPLES_MAX: usize = 160;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    let complexity = "O(N) with N the number of entries";
    Doc { group: CommandGroup::Server, since, complexity, summary, syntax }
}

const FLAGS: u32 = ADMIN | LOADING | STALE;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "latency", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: LATENCY, bare: None },
        doc: doc("2.8.13", "Holds the commands on the latency monitor.", "") },
    Spec { name: "slowlog", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: SLOWLOG, bare: None },
        doc: doc("2.2.12", "Holds the commands on the slow log.", "") },
];

#[rustfmt::skip]
const LATENCY: &[Spec] = &[
    Spec { name: "doctor", arity: 2, flags: FLAGS | NOSCRIPT, keys: NO_KEYS, run: Run::Node(latency_doctor),
        doc: doc("2.8.13", "Says what to make of the samples.", "") },
    Spec { name: "graph", arity: 3, flags: FLAGS | NOSCRIPT, keys: NO_KEYS, run: Run::Node(latency_graph),
        doc: doc("2.8.13", "Draws an event's samples.", "event") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(latency_help),
        doc: doc("2.8.13", "Lists the subcommands.", "") },
    Spec { name: "history", arity: 3, flags: FLAGS | NOSCRIPT, keys: NO_KEYS, run: Run::Node(latency_history),
        doc: doc("2.8.13", "Tells an event's samples.", "event") },
    Spec { name: "latest", arity: 2, flags: FLAGS | NOSCRIPT, keys: NO_KEYS, run: Run::Node(latency_latest),
        doc: doc("2.8.13", "Tells the newest sample of every event.", "") },
    Spec { name: "reset", arity: -2, flags: FLAGS | NOSCRIPT, keys: NO_KEYS, run: Run::Node(latency_reset),
        doc: doc("2.8.13", "Forgets the samples of events.", "[event [event ...]]") },
];

#[rustfmt::skip]
const SLOWLOG: &[Spec] = &[
    Spec { name: "get", arity: -2, flags: FLAGS, keys: NO_KEYS, run: Run::Node(slowlog_get),
        doc: doc("2.2.12", "Tells the newest entries of the slow log.", "[count]") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(slowlog_help),
        doc: doc("6.2.0", "Lists the subcommands.", "") },
    Spec { name: "len", arity: 2, flags: FLAGS, keys: NO_KEYS, run: Run::Node(slowlog_len),
        doc: doc("2.2.12", "Counts the entries of the slow log.", "") },
    Spec { name: "reset", arity: 2, flags: FLAGS, keys: NO_KEYS, run: Run::Node(slowlog_reset),
        doc: doc("2.2.12", "Empties the slow log.", "") },
];

/// An entry of the slow log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Counted by the node.
    pub id: u64,
    /// When it had been served.
    pub at: Millis,
    /// How long it took.
    pub micros: u64,
    /// The command, clipped.
    pub argv: Vec<Vec<u8>>,
    /// The client's end of its connection.
    pub address: String,
    /// What the client called itself.
    pub name: String,
}

/// A command's words as the slow log keeps them, with Redis's marks where some are left out.
pub fn clip<'w>(argv: impl ExactSizeIterator<Item = &'w [u8]>) -> Vec<Vec<u8>> {
    let count = argv.len();
    let kept = if count > WORDS_MAX { WORDS_MAX - 1 } else { count };
    let clip = |word: &[u8]| match word.split_at_checked(WORD_BYTES_MAX) {
        Some((begin, rest)) if !rest.is_empty() => {
            [begin, format!("... ({} more bytes)", rest.len()).as_bytes()].concat()
        }
        _ => word.to_vec(),
    };
    let mut clipped: Vec<Vec<u8>> = argv.take(kept).map(clip).collect();
    if count > kept {
        clipped.push(format!("... ({} more arguments)", count - kept).into_bytes());
    }
    clipped
}

/// An arbiter's slow log.
#[derive(Clone, Debug, Default)]
pub struct SlowLog(VecDeque<Slow>);

impl SlowLog {
    /// Takes an entry, and forgets the oldest beyond `max`.
    pub fn push(&mut self, entry: Slow, max: usize) {
        self.0.push_back(entry);
        while self.0.len() > max {
            self.0.pop_front();
        }
    }

    /// The entries, the oldest first.
    pub fn entries(&self) -> Vec<Slow> {
        self.0.iter().cloned().collect()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Shows entries as `SLOWLOG GET` does.
pub(super) fn show_slow(entries: &[Slow], reply: &mut Reply<'_>) {
    reply.array(entries.len());
    for Slow { id, at, micros, argv, address, name } in entries {
        reply.array(6);
        reply.int(*id as i64);
        reply.int((at.0 / 1000) as i64);
        reply.int(*micros as i64);
        reply.array(argv.len());
        argv.iter().for_each(|word| reply.bulk(word));
        reply.bulk(address.as_bytes());
        reply.bulk(name.as_bytes());
    }
}

/// The greatest latency of one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spike {
    /// Which second, since the Unix epoch.
    pub second: u64,
    /// Milliseconds.
    pub ms: u64,
}

/// What the latency monitor saw, by event.
#[derive(Clone, Debug, Default)]
pub struct Events(BTreeMap<&'static str, (VecDeque<Spike>, u64)>);

impl Events {
    /// Notes a latency that reached the threshold.
    pub fn note(&mut self, event: &'static str, spike: Spike) {
        let (samples, max) = self.0.entry(event).or_default();
        *max = spike.ms.max(*max);
        match samples.back_mut() {
            Some(last) if last.second == spike.second => last.ms = last.ms.max(spike.ms),
            _ => samples.push_back(spike),
        }
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// Everything, to be merged with what others saw.
    pub fn all(&self) -> Vec<(&'static str, Vec<Spike>, u64)> {
        let events = self.0.iter();
        events
            .map(|(event, (samples, max))| (*event, samples.iter().copied().collect(), *max))
            .collect()
    }

    /// Forgets the events named, or all when none is. Returns how many there were.
    pub fn forget(&mut self, named: &[Vec<u8>]) -> u64 {
        let before = self.0.len();
        let meant = |event: &str| {
            named.is_empty() || named.iter().any(|name| name.eq_ignore_ascii_case(event.as_bytes()))
        };
        self.0.retain(|event, _| !meant(event));
        (before - self.0.len()) as u64
    }

    pub(super) fn merge(&mut self, more: Vec<(&'static str, Vec<Spike>, u64)>) {
        for (event, samples, greatest) in more {
            let (known, max) = self.0.entry(event).or_default();
            let mut all: Vec<Spike> = known.iter().copied().chain(samples).collect();
            // Of a second that several arbiters saw, the greatest counts.
            all.sort_unstable_by_key(|spike| (spike.second, std::cmp::Reverse(spike.ms)));
            all.dedup_by_key(|spike| spike.second);
            *known = all.into();
            *max = greatest.max(*max);
        }
    }

    fn of(&self, event: &[u8]) -> Option<&(VecDeque<Spike>, u64)> {
        let mut events = self.0.iter();
        events.find(|(name, _)| event.eq_ignore_ascii_case(name.as_bytes())).map(|(_, seen)| seen)
    }

    pub(super) fn latest(&self, reply: &mut Reply<'_>) {
        reply.array(self.0.len());
        for (event, (samples, max)) in &self.0 {
            let last = samples.back().copied().unwrap_or(Spike { second: 0, ms: 0 });
            reply.array(4);
            reply.bulk(event.as_bytes());
            reply.int(last.second as i64);
            reply.int(last.ms as i64);
            reply.int(*max as i64);
        }
    }

    pub(super) fn history(&self, event: &[u8], reply: &mut Reply<'_>) {
        let samples = self.of(event).map(|(samples, _)| samples);
        reply.array(samples.map_or(0, VecDeque::len));
        for spike in samples.into_iter().flatten() {
            reply.array(2);
            reply.int(spike.second as i64);
            reply.int(spike.ms as i64);
        }
    }

    pub(super) fn graph(&self, event: &[u8], now: Millis, reply: &mut Reply<'_>) {
        let Some((samples, max)) = self.of(event) else {
            let shown = super::clip(event, WORD_BYTES_MAX);
            let text = [b"ERR No samples available for event '".as_slice(), shown, b"'"].concat();
            return reply.error_bytes(&text);
        };
        let low = samples.iter().map(|spike| spike.ms).min().unwrap_or(0);
        let high = samples.iter().map(|spike| spike.ms).max().unwrap_or(0);
        let name = event.escape_ascii();
        let mut text = format!("{name} - high {high} ms, low {low} ms (all time high {max} ms)\n");
        text.push_str(&"-".repeat(80));
        text.push('\n');
        for spike in samples {
            let ago = (now.0 / 1000).saturating_sub(spike.second);
            let bar = "#".repeat((spike.ms * 60 / high.max(1)) as usize);
            text.push_str(&format!("{ago:>8}s ago {bar} {} ms\n", spike.ms));
        }
        reply.verbatim("txt", text.as_bytes());
    }

    pub(super) fn doctor(&self, reply: &mut Reply<'_>) {
        let mut text = String::new();
        for (event, (samples, max)) in &self.0 {
            let sum: u64 = samples.iter().map(|spike| spike.ms).sum();
            let mean = sum / (samples.len() as u64).max(1);
            text.push_str(&format!(
                "{event}: {} seconds with spikes, {mean} ms on average, {max} ms at worst. SLOWLOG \
                 GET names the commands.\n",
                samples.len()
            ));
        }
        if text.is_empty() {
            text.push_str(
                "No latency spike was seen. The monitor looks for those of \
                 latency-monitor-threshold milliseconds and more; 0 turns it off.\n",
            );
        }
        reply.verbatim("txt", text.as_bytes());
    }
}

fn slowlog_get(_: &Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<NodeQuery> {
    let count = match argv.len() {
        2 => Some(10),
        3 => parse_int(argv.get(2)),
        _ => {
            super::wrong_subcommand("slowlog", argv.get(1), reply);
            return None;
        }
    };
    match count {
        Some(-1) => Some(NodeQuery::Ask(Question::Slow, Show::Slow(usize::MAX))),
        Some(count @ 0..) => Some(NodeQuery::Ask(Question::Slow, Show::Slow(count as usize))),
        _ => {
            reply.error("ERR count should be greater than or equal to -1");
            None
        }
    }
}

fn slowlog_len(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Slow, Show::SlowLen))
}

fn slowlog_reset(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::ForgetSlow, Show::Ok))
}

fn slowlog_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("SLOWLOG", SLOWLOG, reply);
    Then::Continue
}

fn latency_latest(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Spikes, Show::Latest))
}

fn latency_history(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Spikes, Show::History(argv.get(2).to_vec())))
}

fn latency_graph(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Spikes, Show::Graph(argv.get(2).to_vec())))
}

fn latency_doctor(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Spikes, Show::Doctor))
}

fn latency_reset(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    let events = argv.from(2).map(<[u8]>::to_vec).collect();
    Some(NodeQuery::Ask(Question::ForgetSpikes(events), Show::Sum))
}

fn latency_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("LATENCY", LATENCY, reply);
    Then::Continue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_clipped_as_redis_clips_them() {
        let argv: Vec<Vec<u8>> = (0..40).map(|n| vec![b'x'; 100 + n]).collect();
        let clipped = clip(argv.iter().map(Vec::as_slice));
        assert_eq!(clipped.len(), 32);
        assert_eq!(clipped[28], argv[28]);
        assert!(clipped[29].ends_with(b"x... (1 more bytes)"));
        assert_eq!(clipped[31], b"... (9 more arguments)");
    }

    #[test]
    fn the_log_forgets_the_oldest() {
        let mut log = SlowLog::default();
        for id in 0..5 {
            let (argv, address, name) = (Vec::new(), String::new(), String::new());
            log.push(Slow { id, at: Millis(0), micros: 1, argv, address, name }, 3);
        }
        let ids: Vec<u64> = log.entries().iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [2, 3, 4]);
    }

    #[test]
    fn what_arbiters_saw_becomes_one() {
        let mut events = [Events::default(), Events::default()];
        events[0].note("command", Spike { second: 1, ms: 5 });
        events[0].note("command", Spike { second: 1, ms: 3 });
        events[0].note("command", Spike { second: 4, ms: 2 });
        events[1].note("command", Spike { second: 1, ms: 9 });
        let mut all = Events::default();
        events.iter().for_each(|events| all.merge(events.all()));
        let mut out = Vec::new();
        all.history(b"COMMAND", &mut Reply::new(&mut out, false));
        assert_eq!(out, b"*2\r\n*2\r\n:1\r\n:9\r\n*2\r\n:4\r\n:2\r\n");
        out.clear();
        all.latest(&mut Reply::new(&mut out, false));
        assert_eq!(out, b"*1\r\n*4\r\n$7\r\ncommand\r\n:4\r\n:2\r\n:9\r\n");
        assert_eq!((all.forget(&[b"other".to_vec()]), all.forget(&[])), (0, 1));
    }
}
