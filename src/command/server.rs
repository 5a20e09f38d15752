//! Commands on the server: what it can do, what it knows of itself, its tables as a whole.

use super::argv::{Argv, ArgvBuf};
use super::client::{Client, Then};
use super::describe::{describe, getkeys, getkeysandflags};
use super::facts::Facts;
use super::node_query::{NodeQuery, Question, Show};
use super::reply::Reply;
use super::spec::{
    self, ADMIN, CONNECTION, CommandGroup, DANGEROUS, Doc, FAST, KEYSPACE, LOADING, Merge, NO_KEYS,
    NOSCRIPT, Over, READONLY, Run, STALE, Spec, Split, WRITE, data,
};
use super::{Call, SYNTAX, glob, info};
use crate::ids::TableIndex;

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::Server, since, complexity, summary, syntax }
}

const GLANCE: Split = Split::Everywhere { over: Over::Table, merge: Merge::Sum, locked: false };
const FLUSH: Split = Split::Everywhere { over: Over::Table, merge: Merge::Status, locked: true };
const FLUSH_ALL: Split =
    Split::Everywhere { over: Over::AllTables, merge: Merge::Status, locked: true };

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "command", arity: -1, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS,
        run: Run::Container { subcommands: COMMAND, bare: Some(command) },
        doc: doc("2.8.13", "O(N) with N the number of commands", "Describes the commands; holds the commands on commands.", "") },
    Spec { name: "config", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: CONFIG, bare: None },
        doc: doc("2.0.0", "O(1)", "Holds the commands on the configuration.", "") },
    Spec { name: "dbsize", arity: 1, flags: READONLY | FAST | KEYSPACE, keys: NO_KEYS, run: data(80, dbsize, GLANCE),
        doc: doc("1.0.0", "O(1)", "Counts the keys of the table.", "") },
    Spec { name: "flushall", arity: -1, flags: WRITE | KEYSPACE | DANGEROUS, keys: NO_KEYS, run: data(81, flushall, FLUSH_ALL),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Deletes the keys of all tables at one moment.", "[ASYNC | SYNC]") },
    Spec { name: "flushdb", arity: -1, flags: WRITE | KEYSPACE | DANGEROUS, keys: NO_KEYS, run: data(82, flushdb, FLUSH),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Deletes the keys of the table at one moment.", "[ASYNC | SYNC]") },
    Spec { name: "info", arity: -1, flags: LOADING | STALE | DANGEROUS, keys: NO_KEYS, run: Run::Node(info),
        doc: doc("1.0.0", "O(1)", "Tells the node's figures.", "[section [section ...]]") },
];

#[rustfmt::skip]
const COMMAND: &[Spec] = &[
    Spec { name: "count", arity: 2, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(command_count),
        doc: doc("2.8.13", "O(1)", "Counts the commands.", "") },
    Spec { name: "docs", arity: -2, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(command_docs),
        doc: doc("7.0.0", "O(N) with N the number of commands", "Documents commands.", "[command-name [command-name ...]]") },
    Spec { name: "getkeys", arity: -4, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(getkeys),
        doc: doc("2.8.13", "O(N) with N the number of arguments", "Picks the keys out of a command.", "command [arg [arg ...]]") },
    Spec { name: "getkeysandflags", arity: -4, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(getkeysandflags),
        doc: doc("7.0.0", "O(N) with N the number of arguments", "Picks the keys out of a command, with what is done to them.", "command [arg [arg ...]]") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(command_help),
        doc: doc("5.0.0", "O(1)", "Lists the subcommands.", "") },
    Spec { name: "info", arity: -2, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(command_info),
        doc: doc("2.8.13", "O(N) with N the number of commands", "Describes commands.", "[command-name [command-name ...]]") },
    Spec { name: "list", arity: -2, flags: LOADING | STALE | CONNECTION, keys: NO_KEYS, run: Run::Session(command_list),
        doc: doc("7.0.0", "O(N) with N the number of commands", "Lists the commands' names.", "[FILTERBY MODULE module-name | ACLCAT category | PATTERN pattern]") },
];

#[rustfmt::skip]
const CONFIG: &[Spec] = &[
    Spec { name: "get", arity: -3, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Session(config_get),
        doc: doc("2.0.0", "O(N) with N the number of settings", "Reads settings whose names match patterns.", "parameter [parameter ...]") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(config_help),
        doc: doc("5.0.0", "O(1)", "Lists the subcommands.", "") },
    Spec { name: "resetstat", arity: 2, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Node(config_resetstat),
        doc: doc("2.0.0", "O(1)", "Begins the figures of INFO anew.", "") },
    Spec { name: "rewrite", arity: 2, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Session(config_rewrite),
        doc: doc("2.8.0", "O(1)", "Is refused: all nodes share one file.", "") },
    Spec { name: "set", arity: -4, flags: ADMIN | NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Node(config_set),
        doc: doc("2.0.0", "O(N) with N the number of settings", "Changes settings of this node until it stops.", "parameter value [parameter value ...]") },
];

fn dbsize(call: &mut Call<'_>) {
    call.reply.count(call.tables.len(call.table));
}

fn flushdb(call: &mut Call<'_>) {
    if flush_options_are_right(call) {
        call.tables.clear(call.table);
        call.reply.ok();
    }
}

fn flushall(call: &mut Call<'_>) {
    if flush_options_are_right(call) {
        for table in TableIndex::all() {
            call.tables.clear(table);
        }
        call.reply.ok();
    }
}

/// `ASYNC` and `SYNC` say how Redis frees the memory; here there is one way.
fn flush_options_are_right(call: &mut Call<'_>) -> bool {
    let right = is_flush(call.args.len(), call.args.get(0));
    if !right {
        call.reply.error(SYNTAX);
    }
    right
}

fn is_flush(options: usize, option: &[u8]) -> bool {
    let known = option.eq_ignore_ascii_case(b"async") || option.eq_ignore_ascii_case(b"sync");
    options == 0 || options == 1 && known
}

/// Whether a request of `FLUSHDB` or `FLUSHALL` is one that empties tables.
pub(super) fn flushes(argv: Argv<'_>) -> bool {
    is_flush(argv.len() - 1, argv.get(1))
}

fn info(_: &Client, _: &Facts, argv: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Look(show_info, argv.from(1).collect::<ArgvBuf>()))
}

fn show_info(facts: &Facts, sections: Argv<'_>, reply: &mut Reply<'_>) {
    reply.verbatim("txt", info::report(facts, sections).as_bytes());
}

fn config_get(_: &mut Client, facts: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let patterns: Vec<&[u8]> = argv.from(2).collect();
    let settings = facts.settings.matching(patterns.into_iter());
    reply.map(settings.len());
    for (name, value) in settings {
        reply.bulk(name);
        reply.bulk(value.as_bytes());
    }
    Then::Continue
}

fn config_set(
    _: &Client,
    facts: &Facts,
    argv: Argv<'_>,
    reply: &mut Reply<'_>,
) -> Option<NodeQuery> {
    if !argv.len().is_multiple_of(2) {
        reply.error(SYNTAX);
        return None;
    }
    let pairs: Vec<(&[u8], &[u8])> =
        (2..argv.len()).step_by(2).map(|at| (argv.get(at), argv.get(at + 1))).collect();
    match facts.settings.judge(&pairs) {
        Ok(approved) => Some(NodeQuery::Ask(Question::Configure(approved), Show::Ok)),
        Err(error) => {
            reply.error_bytes(&error);
            None
        }
    }
}

fn config_resetstat(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::ForgetCounts, Show::Ok))
}

fn config_rewrite(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.error("ERR Rewriting config file: cluster.yaml is the same on all nodes; edit it there");
    Then::Continue
}

fn config_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("CONFIG", CONFIG, reply);
    Then::Continue
}

fn command(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.array(spec::all().count());
    for spec in spec::all() {
        describe(spec, spec.name, reply);
    }
    Then::Continue
}

fn command_count(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.count(spec::all().count());
    Then::Continue
}

fn command_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("COMMAND", COMMAND, reply);
    Then::Continue
}

fn command_info(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    if argv.len() == 2 {
        reply.array(spec::all().count());
        for spec in spec::all() {
            describe(spec, spec.name, reply);
        }
        return Then::Continue;
    }
    reply.array(argv.len() - 2);
    for name in argv.from(2) {
        match named(name) {
            Some((spec, full)) => describe(spec, &full, reply),
            None => reply.nil(),
        }
    }
    Then::Continue
}

/// The row that `command` or `container|subcommand` names, and its whole name.
fn named(name: &[u8]) -> Option<(&'static Spec, String)> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let spec = spec::lookup(parts.next()?)?;
    let Some(second) = parts.next() else { return Some((spec, spec.name.to_string())) };
    let mut subcommands = spec.subcommands().iter();
    let sub = subcommands.find(|sub| sub.name.as_bytes().eq_ignore_ascii_case(second))?;
    Some((sub, format!("{}|{}", spec.name, sub.name)))
}

fn command_docs(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let specs: Vec<(&Spec, String)> = match argv.len() {
        2 => spec::all().map(|spec| (spec, spec.name.to_string())).collect(),
        _ => argv.from(2).filter_map(named).collect(),
    };
    reply.map(specs.len());
    for (spec, name) in specs {
        document(spec, &name, reply);
    }
    Then::Continue
}

fn document(spec: &Spec, name: &str, reply: &mut Reply<'_>) {
    let Doc { group, since, complexity, summary, syntax } = spec.doc;
    let subcommands = spec.subcommands();
    reply.bulk(name.as_bytes());
    reply.map(4 + usize::from(!syntax.is_empty()) + usize::from(!subcommands.is_empty()));
    let facts = [
        ("summary", summary),
        ("since", since),
        ("group", group.name()),
        ("complexity", complexity),
    ];
    for (label, text) in facts {
        reply.bulk(label.as_bytes());
        reply.bulk(text.as_bytes());
    }
    if !syntax.is_empty() {
        // One argument that reads as all of them together: clients show it as their hint.
        reply.bulk(b"arguments");
        reply.array(1);
        reply.map(2);
        reply.bulk(b"name");
        reply.bulk(syntax.as_bytes());
        reply.bulk(b"type");
        reply.bulk(b"string");
    }
    if !subcommands.is_empty() {
        reply.bulk(b"subcommands");
        reply.map(subcommands.len());
        for sub in subcommands {
            document(sub, &format!("{}|{}", spec.name, sub.name), reply);
        }
    }
}

/// Which commands `COMMAND LIST` lists.
enum Filter<'a> {
    All,
    /// Of a module: there are none.
    Module,
    Category(&'a [u8]),
    Pattern(&'a [u8]),
}

impl Filter<'_> {
    fn admits(&self, spec: &Spec, name: &str) -> bool {
        match self {
            Filter::All => true,
            Filter::Module => false,
            Filter::Category(category) => {
                spec.categories().any(|name| name.as_bytes()[1..].eq_ignore_ascii_case(category))
            }
            Filter::Pattern(pattern) => glob::matches(pattern, name.as_bytes(), true),
        }
    }
}

fn command_list(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let by = |kind: &str| {
        argv.get(2).eq_ignore_ascii_case(b"filterby")
            && argv.get(3).eq_ignore_ascii_case(kind.as_bytes())
    };
    let filter = match argv.len() {
        2 => Filter::All,
        5 if by("module") => Filter::Module,
        5 if by("aclcat") => Filter::Category(argv.get(4)),
        5 if by("pattern") => Filter::Pattern(argv.get(4)),
        _ => {
            reply.error(SYNTAX);
            return Then::Continue;
        }
    };
    let mut names = Vec::new();
    for spec in spec::all() {
        let full = |sub: &Spec| format!("{}|{}", spec.name, sub.name);
        let subcommands = spec.subcommands().iter().map(|sub| (sub, full(sub)));
        for (row, name) in std::iter::once((spec, spec.name.to_string())).chain(subcommands) {
            if filter.admits(row, &name) {
                names.push(name);
            }
        }
    }
    reply.array(names.len());
    for name in names {
        reply.bulk(name.as_bytes());
    }
    Then::Continue
}
