//! `OBJECT`: how a value is held.

use super::Call;
use super::argv::Argv;
use super::client::{Client, Then};
use super::facts::Facts;
use super::reply::Reply;
use super::spec::{
    CommandGroup, Doc, Keys, LOADING, NO_KEYS, READONLY, Run, STALE, Spec, Split, data,
};
use crate::store::number::parse_int;
use crate::store::tables::Encoding;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Generic, since, complexity: "O(1)", summary, syntax }
}

/// The key is the word behind the subcommand.
const BEHIND_SUBCOMMAND: Keys = Keys { first: 2, last: 2, step: 1 };

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "object", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: OBJECT, bare: None },
        doc: doc("2.2.3", "Holds the commands on how values are held.", "") },
];

#[rustfmt::skip]
const OBJECT: &[Spec] = &[
    Spec { name: "encoding", arity: 3, flags: READONLY, keys: BEHIND_SUBCOMMAND, run: data(62, encoding, Split::Single),
        doc: doc("2.2.3", "Tells what a value would be encoded as by Redis.", "key") },
    Spec { name: "freq", arity: 3, flags: READONLY, keys: BEHIND_SUBCOMMAND, run: data(63, freq, Split::Single),
        doc: doc("4.0.0", "Tells how often a key is used, which is not counted.", "key") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(help),
        doc: doc("6.2.0", "Lists the subcommands.", "") },
    Spec { name: "idletime", arity: 3, flags: READONLY, keys: BEHIND_SUBCOMMAND, run: data(64, idletime, Split::Single),
        doc: doc("2.2.3", "Tells how many seconds ago a key was last used.", "key") },
    Spec { name: "refcount", arity: 3, flags: READONLY, keys: BEHIND_SUBCOMMAND, run: data(65, refcount, Split::Single),
        doc: doc("2.2.3", "Tells how many keys would share a value in Redis.", "key") },
];

/// The longest string that Redis puts into one allocation with its header.
pub const EMBEDDED_BYTES_MAX: usize = 44;

/// Redis's names for its ways to hold a string, by what the string looks like and how it was made.
fn encoding(call: &mut Call<'_>) {
    let Some(item) = call.tables.peek(call.table, call.hash, call.args.get(1)) else {
        return call.reply.nil();
    };
    let name: &[u8] = match (item.encoding(), item.value().string()) {
        (Encoding::Raw, _) => b"raw",
        (Encoding::Plain, value) if parse_int(value).is_some() => b"int",
        (_, value) if value.len() <= EMBEDDED_BYTES_MAX => b"embstr",
        _ => b"raw",
    };
    call.reply.bulk(name);
}

/// Integers below this are shared by all keys in Redis, which tells of endless references.
const SHARED_INTEGERS: i64 = 10_000;

fn refcount(call: &mut Call<'_>) {
    match call.tables.peek(call.table, call.hash, call.args.get(1)) {
        Some(item) => {
            match parse_int(item.value().string()).filter(|_| item.encoding() == Encoding::Plain) {
                Some(0..SHARED_INTEGERS) => call.reply.int(i32::MAX.into()),
                _ => call.reply.int(1),
            }
        }
        None => call.reply.nil(),
    }
}

fn idletime(call: &mut Call<'_>) {
    let seconds = (call.now.0 / 1000) as u32;
    match call.tables.peek(call.table, call.hash, call.args.get(1)) {
        Some(item) => call.reply.int(i64::from(seconds.saturating_sub(item.used()))),
        None => call.reply.nil(),
    }
}

fn freq(call: &mut Call<'_>) {
    match call.tables.peek(call.table, call.hash, call.args.get(1)) {
        Some(_) => call.reply.error(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please \
             note that when switching between policies at runtime LRU and LFU data will take some \
             time to adjust.",
        ),
        None => call.reply.nil(),
    }
}

/// Redis's own words: clients compare them.
const HELP: [&str; 13] = [
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
];

fn help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.array(HELP.len() + 2);
    HELP.iter().for_each(|line| reply.simple(line));
    reply.simple("HELP");
    reply.simple("    Prints this help.");
    Then::Continue
}
