//! What `COMMAND INFO`, `GETKEYS` and `GETKEYSANDFLAGS` tell of a command: its row, and what it
//! does with each of its keys in the words of Redis 7's key specifications.
//!
//! Proxies and clients route and authorise by these, so they are Redis's to the letter. The tips are
//! too, but for those that would have a proxy ask every node and add up the answers: any node answers
//! for all here.

use super::argv::Argv;
use super::client::{Client, Then};
use super::facts::Facts;
use super::reply::Reply;
use super::spec::{self, Keys, NO_KEYS, READONLY, Spec};

/// What is done with a run of keys.
#[derive(Clone, Copy)]
struct KeySpec {
    /// What Redis's documentation adds.
    note: &'static str,
    flags: &'static [&'static str],
    /// Where the keys are; nothing if only the command itself can tell.
    place: Option<Keys>,
}

// What is done with a key, from looking whether it is there to what the arguments say.
const LOOK: &[&str] = &["RO"];
const READ: &[&str] = &["RO", "access"];
const ALTER: &[&str] = &["RW", "update"];
const EXTEND: &[&str] = &["RW", "insert"];
const CHANGE: &[&str] = &["RW", "access", "update"];
const TAKE: &[&str] = &["RW", "access", "delete"];
const REMOVE: &[&str] = &["RM", "delete"];
const REPLACE: &[&str] = &["OW", "update"];
const CREATE: &[&str] = &["OW", "insert"];
const VARIES: &[&str] = &["RW", "access", "update", "variable_flags"];

const BY_OR_GET: &str = "For the optional BY/GET keyword. It is marked 'unknown' because the key \
                         names derive from the content of the key we sort";
const STORE: &str = "For the optional STORE keyword. It is marked 'unknown' because the keyword can \
                     appear anywhere in the argument array";

/// What a command does with its keys, run by run.
fn key_specs(spec: &Spec) -> Vec<KeySpec> {
    let all = |flags| KeySpec { note: "", flags, place: Some(spec.keys) };
    let noted = |note, flags| vec![KeySpec { note, ..all(flags) }];
    let at = |flags, first: i16, last: i16| {
        let place = Some(Keys { first, last, step: 1 });
        KeySpec { note: "", flags, place }
    };
    let unknown = |note, flags| KeySpec { note, flags, place: None };
    match spec.name {
        _ if spec.keys == NO_KEYS => Vec::new(),
        "exists" | "touch" | "type" | "strlen" | "watch" | "usage" | "encoding" | "freq"
        | "idletime" | "refcount" => vec![all(LOOK)],
        "del" | "unlink" => vec![all(REMOVE)],
        "append" => vec![all(EXTEND)],
        "move" | "incr" | "incrby" | "incrbyfloat" | "decr" | "decrby" | "getset" | "setbit" => {
            vec![all(CHANGE)]
        }
        "getdel" => vec![all(TAKE)],
        "mset" | "setex" | "psetex" | "restore" => vec![all(REPLACE)],
        "msetnx" | "setnx" => vec![all(CREATE)],
        "getex" => noted("RW and UPDATE because it changes the TTL", CHANGE),
        "set" => noted("RW and ACCESS due to the optional `GET` argument", VARIES),
        "bitfield" => noted("This command allows both access and modification of the key", VARIES),
        "copy" => vec![at(READ, 1, 1), at(REPLACE, 2, 2)],
        "rename" => vec![at(TAKE, 1, 1), at(REPLACE, 2, 2)],
        "renamenx" => vec![at(TAKE, 1, 1), at(CREATE, 2, 2)],
        "bitop" => vec![at(REPLACE, 2, 2), at(READ, 3, -1)],
        "sort" => vec![at(READ, 1, 1), unknown(BY_OR_GET, READ), unknown(STORE, REPLACE)],
        "sort_ro" => vec![at(READ, 1, 1), unknown(BY_OR_GET, READ)],
        _ if spec.flags & READONLY != 0 => vec![all(READ)],
        _ => vec![all(ALTER)],
    }
}

const VARYING: &[&str] = &["nondeterministic_output"];
const UNORDERED: &[&str] = &["nondeterministic_output_order"];
const EACH_NODE_OK: &[&str] = &["request_policy:all_nodes", "response_policy:all_succeeded"];
const EACH_NODE: &[&str] =
    &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"];

/// What proxies and clients may want to know besides.
fn tips(full_name: &str) -> &'static [&'static str] {
    match full_name {
        "client|info"
        | "client|list"
        | "cluster|getkeysinslot"
        | "cluster|info"
        | "cluster|nodes"
        | "cluster|shards"
        | "cluster|slots"
        | "dump"
        | "info"
        | "lastsave"
        | "memory|doctor"
        | "memory|malloc-stats"
        | "memory|stats"
        | "object|encoding"
        | "object|freq"
        | "object|idletime"
        | "object|refcount"
        | "pttl"
        | "randomkey"
        | "scan"
        | "time"
        | "ttl" => VARYING,
        "command" | "command|docs" | "command|info" | "command|list" | "keys" => UNORDERED,
        "config|set" | "latency|reset" | "slowlog|reset" => EACH_NODE_OK,
        "latency|doctor" | "latency|graph" | "latency|history" | "latency|latest" => EACH_NODE,
        "slowlog|get" => &["request_policy:all_nodes", "nondeterministic_output"],
        "slowlog|len" => {
            &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"]
        }
        _ => &[],
    }
}

/// A command's entry in `COMMAND`: ten fields since Redis 7.0.
pub(super) fn describe(spec: &Spec, name: &str, reply: &mut Reply<'_>) {
    let Keys { first, last, step } = spec.keys;
    reply.array(10);
    reply.bulk(name.as_bytes());
    reply.int(spec.arity.into());
    simple_set(spec.flag_names(), reply);
    reply.int(first.into());
    reply.int(last.into());
    reply.int(step.into());
    simple_set(spec.categories(), reply);
    let tips = tips(name);
    reply.set(tips.len());
    tips.iter().for_each(|tip| reply.bulk(tip.as_bytes()));
    let keys = key_specs(spec);
    reply.set(keys.len());
    keys.iter().for_each(|keys| describe_keys(keys, reply));
    reply.set(spec.subcommands().len());
    for sub in spec.subcommands() {
        describe(sub, &format!("{}|{}", spec.name, sub.name), reply);
    }
}

fn simple_set(names: impl Iterator<Item = &'static str>, reply: &mut Reply<'_>) {
    let names: Vec<&str> = names.collect();
    reply.set(names.len());
    for name in names {
        reply.simple(name);
    }
}

fn describe_keys(spec: &KeySpec, reply: &mut Reply<'_>) {
    let noted = !spec.note.is_empty();
    reply.map(3 + usize::from(noted));
    if noted {
        reply.bulk(b"notes");
        reply.bulk(spec.note.as_bytes());
    }
    reply.bulk(b"flags");
    simple_set(spec.flags.iter().copied(), reply);
    let Some(Keys { first, last, step }) = spec.place else {
        for label in [&b"begin_search"[..], b"find_keys"] {
            reply.bulk(label);
            reply.map(2);
            reply.bulk(b"type");
            reply.bulk(b"unknown");
            reply.bulk(b"spec");
            reply.map(0);
        }
        return;
    };
    reply.bulk(b"begin_search");
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(b"index");
    reply.bulk(b"spec");
    reply.map(1);
    reply.bulk(b"index");
    reply.int(first.into());
    reply.bulk(b"find_keys");
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(b"range");
    reply.bulk(b"spec");
    reply.map(3);
    reply.bulk(b"lastkey");
    // Counted from the first key, unless it counts from the end.
    reply.int(if last < 0 { last } else { last - first }.into());
    reply.bulk(b"keystep");
    reply.int(step.into());
    reply.bulk(b"limit");
    reply.int(0);
}

/// Whether a `BITFIELD` has operations that only read and no others; what is none counts as other.
fn only_gets(argv: Argv<'_>) -> bool {
    let mut at = 2;
    while at < argv.len() {
        let (is, left) =
            (|name: &[u8]| argv.get(at).eq_ignore_ascii_case(name), argv.len() - at - 1);
        at += match () {
            () if is(b"get") && left >= 2 => 3,
            () if is(b"overflow") && left >= 1 => 2,
            () => return false,
        };
    }
    true
}

/// The keys of a request and what is done with each.
fn keys_of<'a>(spec: &Spec, argv: Argv<'a>) -> Vec<(&'a [u8], &'static [&'static str])> {
    let flags = |flags| match spec.name {
        "set" if argv.from(3).any(|word| word.eq_ignore_ascii_case(b"get")) => CHANGE,
        "set" => REPLACE,
        "bitfield" if only_gets(argv) => READ,
        "bitfield" => CHANGE,
        _ => flags,
    };
    let mut keys = Vec::new();
    for run in key_specs(spec) {
        match run.place {
            Some(place) => {
                let argv = place.positions(argv.len()).map(|at| argv.get(at));
                keys.extend(argv.map(|key| (key, flags(run.flags))));
            }
            // The last of several STOREs counts.
            None if run.note == STORE => {
                let mut stores = (2..argv.len().saturating_sub(1))
                    .filter(|at| argv.get(*at).eq_ignore_ascii_case(b"store"));
                keys.extend(stores.next_back().map(|at| (argv.get(at + 1), run.flags)));
            }
            None => {}
        }
    }
    keys
}

pub(super) fn getkeys(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let argv = argv.tail(2);
    if let Some(spec) = with_keys(argv, reply) {
        let keys = keys_of(spec, argv);
        reply.array(keys.len());
        keys.iter().for_each(|(key, _)| reply.bulk(key));
    }
    Then::Continue
}

pub(super) fn getkeysandflags(
    _: &mut Client,
    _: &Facts,
    argv: Argv<'_>,
    reply: &mut Reply<'_>,
) -> Then {
    let argv = argv.tail(2);
    if let Some(spec) = with_keys(argv, reply) {
        let keys = keys_of(spec, argv);
        reply.array(keys.len());
        for (key, flags) in keys {
            reply.array(2);
            reply.bulk(key);
            simple_set(flags.iter().copied(), reply);
        }
    }
    Then::Continue
}

/// The row of a request that has keys; what is none is answered.
fn with_keys(argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<&'static Spec> {
    let resolved = spec::lookup(argv.name()).and_then(|spec| {
        let mut subcommands = spec.subcommands().iter();
        match spec.subcommands().is_empty() {
            true => Some(spec),
            false => subcommands.find(|s| s.name.as_bytes().eq_ignore_ascii_case(argv.get(1))),
        }
    });
    match resolved {
        None => reply.error("ERR Invalid command specified"),
        Some(spec) if spec.keys == NO_KEYS => {
            reply.error("ERR The command has no key arguments");
        }
        Some(spec) if !spec.admits(argv.len()) => {
            reply.error("ERR Invalid number of arguments specified for command");
        }
        Some(spec) => return Some(spec),
    }
    None
}
