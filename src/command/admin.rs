//! Commands for operators: a node's clock, its memory, its scripts, what its clients do.

use super::argv::{Argv, ArgvBuf};
use super::client::{Client, Then};
use super::facts::Facts;
use super::node_query::{NodeQuery, Question, Show};
use super::reply::Reply;
use super::spec::{
    ADMIN, ADMINISTRATION, CONNECTION, CommandGroup, Doc, FAST, Keys, LOADING, NO_KEYS, NOSCRIPT,
    READONLY, Run, SCRIPTING, STALE, Spec, Split, WRITE, data,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX};
use crate::store::number::parse_int;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Server, since, complexity: "O(1)", summary, syntax }
}

const SECOND: Keys = Keys { first: 2, last: 2, step: 1 };

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "debug", arity: -2, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Node(debug),
        doc: doc("1.0.0", "Tries things out: SLEEP holds the connection up, SET-ACTIVE-EXPIRE says whether expired keys are removed by themselves.",
            "SLEEP seconds | SET-ACTIVE-EXPIRE 0 | 1") },
    Spec { name: "function", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: FUNCTION, bare: None },
        doc: doc("7.0.0", "Holds the commands on functions, of which there are none.", "") },
    Spec { name: "lastsave", arity: 1, flags: LOADING | STALE | FAST | ADMINISTRATION, keys: NO_KEYS, run: Run::Session(lastsave),
        doc: doc("1.0.0", "Tells when the node started: nothing is saved.", "") },
    Spec { name: "memory", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: MEMORY, bare: None },
        doc: doc("4.0.0", "Holds the commands on memory.", "") },
    Spec { name: "monitor", arity: 1, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Node(monitor),
        doc: doc("1.0.0", "Shows what all clients of the node ask from now on.", "") },
    Spec { name: "script", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: SCRIPT, bare: None },
        doc: doc("2.6.0", "Holds the commands on scripts, of which there are none.", "") },
    Spec { name: "time", arity: 1, flags: LOADING | STALE | FAST, keys: NO_KEYS, run: Run::Session(time),
        doc: doc("2.6.0", "Tells the node's clock.", "") },
    Spec { name: "wait", arity: 3, flags: NOSCRIPT | CONNECTION, keys: NO_KEYS, run: Run::Session(wait),
        doc: doc("3.0.0", "Tells how many followers hold the writes acknowledged so far at least.", "numreplicas timeout") },
    Spec { name: "waitaof", arity: 4, flags: NOSCRIPT | CONNECTION, keys: NO_KEYS, run: Run::Session(wait_aof),
        doc: doc("7.2.0", "Tells on how many disks the writes acknowledged so far are at least: the leader's or another's, and more.", "numlocal numreplicas timeout") },
];

#[rustfmt::skip]
const FUNCTION: &[Spec] = &[
    Spec { name: "flush", arity: -2, flags: WRITE | NOSCRIPT | SCRIPTING, keys: NO_KEYS, run: Run::Session(flush),
        doc: doc("7.0.0", "Forgets all functions: there are none.", "[ASYNC | SYNC]") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE | SCRIPTING, keys: NO_KEYS, run: Run::Session(function_help),
        doc: doc("7.0.0", "Lists the subcommands.", "") },
];

#[rustfmt::skip]
const SCRIPT: &[Spec] = &[
    Spec { name: "flush", arity: -2, flags: NOSCRIPT | SCRIPTING, keys: NO_KEYS, run: Run::Session(flush),
        doc: doc("2.6.0", "Forgets all scripts: there are none.", "[ASYNC | SYNC]") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE | SCRIPTING, keys: NO_KEYS, run: Run::Session(script_help),
        doc: doc("5.0.0", "Lists the subcommands.", "") },
];

#[rustfmt::skip]
const MEMORY: &[Spec] = &[
    Spec { name: "doctor", arity: 2, flags: 0, keys: NO_KEYS, run: Run::Node(memory_doctor),
        doc: doc("4.0.0", "Says what to make of the memory in use.", "") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(memory_help),
        doc: doc("4.0.0", "Lists the subcommands.", "") },
    Spec { name: "malloc-stats", arity: 2, flags: 0, keys: NO_KEYS, run: Run::Session(malloc_stats),
        doc: doc("4.0.0", "Tells that the allocator keeps no figures.", "") },
    Spec { name: "purge", arity: 2, flags: 0, keys: NO_KEYS, run: Run::Session(purge),
        doc: doc("4.0.0", "Does nothing: memory is given back as it gets free.", "") },
    Spec { name: "stats", arity: 2, flags: 0, keys: NO_KEYS, run: Run::Node(memory_stats),
        doc: doc("4.0.0", "Tells what memory the node's tables take.", "") },
    Spec { name: "usage", arity: -3, flags: READONLY, keys: SECOND, run: data(90, memory_usage, Split::Single),
        doc: doc("4.0.0", "Tells what memory a key and its value take.", "key [SAMPLES count]") },
];

fn lastsave(_: &mut Client, facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int((facts.started_at.0 / 1000) as i64);
    Then::Continue
}

fn time(client: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.array(2);
    reply.bulk_int((client.micros / 1_000_000) as i64);
    reply.bulk_int((client.micros % 1_000_000) as i64);
    Then::Continue
}

/// An acknowledged write is on a majority already, its leader among them: waiting adds nothing that
/// a client could be told of, so the answer comes at once.
fn wait(_: &mut Client, facts: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    match (parse_int(argv.get(1)), timeout(argv.get(2))) {
        (None, _) => reply.error(NOT_AN_INTEGER),
        (_, Err(error)) => reply.error(error),
        (Some(_), Ok(())) => {
            let sure = facts.classes.iter().map(|class| class.replicas / 2).min();
            reply.count(sure.unwrap_or_default());
        }
    }
    Then::Continue
}

fn timeout(word: &[u8]) -> Result<(), &'static str> {
    match parse_int(word) {
        None => Err("ERR timeout is not an integer or out of range"),
        Some(..0) => Err("ERR timeout is negative"),
        Some(0..) => Ok(()),
    }
}

/// What is synced before it is acknowledged is on the disks of a majority: on one, and on half of
/// the others. Nothing else is certain at any one moment.
fn wait_aof(_: &mut Client, facts: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let logged = facts.classes.first().is_some_and(|class| class.durability != "none");
    let asked = [parse_int(argv.get(1)), parse_int(argv.get(2))];
    match (asked, timeout(argv.get(3))) {
        ([None, _], _) => reply.error(NOT_AN_INTEGER),
        ([Some(local), _], _) if !(0..=1).contains(&local) => {
            reply.error("ERR value is out of range, value must between 0 and 1");
        }
        ([_, None], _) => reply.error(NOT_AN_INTEGER),
        ([_, Some(..0)], _) => reply.error("ERR value is out of range, must be positive"),
        (_, Err(error)) => reply.error(error),
        ([Some(1), _], _) if !logged => reply
            .error("ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled."),
        (_, Ok(())) => {
            let synced = facts.classes.iter().map(|class| match class.durability {
                "sync" => (1, class.replicas / 2),
                _ => (0, 0),
            });
            let (local, others) = synced.min().unwrap_or_default();
            reply.array(2);
            reply.int(local);
            reply.count(others);
        }
    }
    Then::Continue
}

fn monitor(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Monitor)
}

fn flush(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let word = argv.get(2);
    let known = word.eq_ignore_ascii_case(b"async") || word.eq_ignore_ascii_case(b"sync");
    match argv.len() == 2 || argv.len() == 3 && known {
        true => reply.ok(),
        false if argv.name().eq_ignore_ascii_case(b"function") && argv.len() > 3 => {
            super::wrong_subcommand("function", argv.get(1), reply);
        }
        false if argv.name().eq_ignore_ascii_case(b"function") => {
            reply.error("ERR FUNCTION FLUSH only supports SYNC|ASYNC option");
        }
        false => reply.error("ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
    }
    Then::Continue
}

fn function_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("FUNCTION", FUNCTION, reply);
    Then::Continue
}

fn script_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("SCRIPT", SCRIPT, reply);
    Then::Continue
}

/// The longest that `DEBUG SLEEP` sleeps, in seconds.
const SLEEP_SECONDS_MAX: f64 = 3600.0;

/// Redis's `DEBUG` looks at its own words, and so at what was queued only inside `EXEC`.
fn debug(_: &Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<NodeQuery> {
    let (name, value) = (argv.get(1), argv.get(2));
    let is = |word: &str, len| name.eq_ignore_ascii_case(word.as_bytes()) && argv.len() == len;
    match () {
        () if is("help", 2) => debug_help(reply),
        () if is("sleep", 3) => match seconds(value) {
            Some(seconds) => return Some(NodeQuery::Sleep((seconds * 1000.0) as u64)),
            None => reply.error("ERR value is not a valid float or out of range"),
        },
        () if is("set-active-expire", 3) => match parse_int(value) {
            Some(on) => return Some(NodeQuery::Ask(Question::Expire(on != 0), Show::Ok)),
            None => reply.error(NOT_AN_INTEGER),
        },
        () => super::wrong_subcommand("debug", name, reply),
    }
    None
}

fn seconds(word: &[u8]) -> Option<f64> {
    let seconds = std::str::from_utf8(word).ok()?.parse::<f64>().ok()?;
    (0.0..=SLEEP_SECONDS_MAX).contains(&seconds).then_some(seconds)
}

fn debug_help(reply: &mut Reply<'_>) {
    let lines = [
        "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "SET-ACTIVE-EXPIRE <0|1>",
        "    Says whether expired keys are removed by themselves.",
        "SLEEP <seconds>",
        "    Holds the connection up for so long.",
        "HELP",
        "    Prints this help.",
    ];
    reply.array(lines.len());
    lines.iter().for_each(|line| reply.simple(line));
}

fn memory_usage(call: &mut Call<'_>) {
    let args = call.args;
    // A string is one piece: there is nothing to take samples of.
    for at in (2..args.len()).step_by(2) {
        let samples = args.get(at).eq_ignore_ascii_case(b"samples") && at + 1 < args.len();
        match parse_int(args.get(at + 1)) {
            _ if !samples => return call.reply.error(SYNTAX),
            None => return call.reply.error(NOT_AN_INTEGER),
            Some(..0) => return call.reply.error(SYNTAX),
            Some(0..) => {}
        }
    }
    let bytes = call.tables.get(call.table, call.hash, args.get(1)).map(|item| item.bytes());
    match bytes {
        Some(bytes) => call.reply.count(bytes + SLOT_BYTES),
        None => call.reply.nil(),
    }
}

/// What a key takes in its table, beside its item.
const SLOT_BYTES: usize = 8;

fn memory_stats(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Look(show_memory_stats, argv.from(0).collect::<ArgvBuf>()))
}

fn show_memory_stats(facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) {
    let keys: u64 = facts.tables.iter().map(|table| table.keys).sum();
    let figures = [
        ("peak.allocated", facts.memory_peak),
        ("total.allocated", facts.memory_tables),
        ("keys.count", keys),
        ("keys.bytes-per-key", facts.memory_tables.checked_div(keys).unwrap_or(0)),
        ("dataset.bytes", facts.memory_tables),
    ];
    reply.map(figures.len());
    for (name, figure) in figures {
        reply.bulk(name.as_bytes());
        reply.int(figure as i64);
    }
}

fn memory_doctor(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Look(show_memory_doctor, argv.from(0).collect::<ArgvBuf>()))
}

fn show_memory_doctor(facts: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) {
    let keys: u64 = facts.tables.iter().map(|table| table.keys).sum();
    let (now, peak, max) =
        (facts.memory_tables, facts.memory_peak, facts.settings.number("maxmemory"));
    let mut text = format!("{keys} keys take {now} bytes; the most there ever were is {peak}.\n");
    if max > 0 && now > max as u64 / 10 * 9 {
        text.push_str(&format!(
            "That is more than nine tenths of maxmemory ({max}): writes that need memory are, or \
             will soon be, refused.\n"
        ));
    }
    reply.verbatim("txt", text.as_bytes());
}

fn malloc_stats(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.verbatim("txt", b"Stats not supported for the current allocator");
    Then::Continue
}

fn purge(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.ok();
    Then::Continue
}

fn memory_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("MEMORY", MEMORY, reply);
    Then::Continue
}
