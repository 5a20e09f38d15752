//! Where Quorate answers differently from redis-server on purpose, each with its reason.
//!
//! An entry makes replies comparable again with as little as possible: what is not named here must
//! be the same bytes.

/// How the replies to a command are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Integers may lie this far apart.
    Within(i64),
    /// Only the type of the reply and whether it is an error.
    Shape,
    /// The same pairs of elements, in any order.
    Pairs,
    /// The same elements, in any order.
    AnyOrder,
    /// Descriptions of commands, but for their tips and subcommands.
    Tips,
    /// Not at all.
    Nothing,
}

/// A difference: the command, the words it begins with, and why.
pub struct Difference {
    /// Words that the request begins with, in any case.
    pub words: &'static [&'static str],
    /// How it is compared instead.
    pub compare: Compare,
    /// Why it differs.
    #[allow(dead_code)]
    pub reason: &'static str,
}

const fn row(words: &'static [&'static str], compare: Compare, reason: &'static str) -> Difference {
    Difference { words, compare, reason }
}

/// Behind the last word of a request.
const END: &str = "$";

/// The two servers are asked a moment apart.
const CLOCK: &str = "the two servers are asked a moment apart";
/// The order of hash tables is nobody's promise.
const ORDER: &str = "the order of a hash table is nobody's promise";
/// About the server itself.
const SELF: &str = "each server tells of itself";

/// The list. The first entry that fits a request counts.
pub const DIFFERENCES: &[Difference] = &[
    row(&["ttl"], Compare::Within(1), CLOCK),
    row(&["pttl"], Compare::Within(2000), CLOCK),
    row(&["expiretime"], Compare::Within(1), CLOCK),
    row(&["pexpiretime"], Compare::Within(2000), CLOCK),
    row(
        &["object", "idletime"],
        Compare::Shape,
        "the small integers that Redis shares between keys share one clock too",
    ),
    row(
        &["object", "refcount"],
        Compare::Shape,
        "what COPY makes of one of the small integers that Redis shares is not shared there",
    ),
    row(&["time"], Compare::Shape, CLOCK),
    row(&["wait"], Compare::Shape, "an acknowledged write is on followers already"),
    row(&["lastsave"], Compare::Shape, SELF),
    row(&["keys"], Compare::AnyOrder, ORDER),
    row(&["command", "info", END], Compare::Shape, "Redis has commands that Quorate has not"),
    row(
        &["command", "info"],
        Compare::Tips,
        "any node answers for all, so no tip has a proxy ask several and add up what they say; \
         subcommands are those there are",
    ),
    row(&["command", END], Compare::Shape, "Redis has commands that Quorate has not"),
    row(&["command", "list"], Compare::Shape, "Redis has commands that Quorate has not"),
    row(&["command", "count"], Compare::Shape, "Redis has commands that Quorate has not"),
    row(&["command", "help"], Compare::Shape, SELF),
    row(&["client", "help"], Compare::Shape, SELF),
    row(&["config", "help"], Compare::Shape, SELF),
    row(&["object", "help"], Compare::Shape, SELF),
    row(&["command", "docs"], Compare::Shape, "summaries are in words of our own"),
    row(&["client", "id"], Compare::Shape, "ids are given by each node"),
    row(&["hello"], Compare::Shape, "it names the server, its version and the connection"),
    row(&["scan"], Compare::Shape, "cursors are each server's own"),
    row(&["randomkey"], Compare::Shape, "it is random"),
    row(&["dump"], Compare::Shape, "payloads have a format of our own"),
    row(&["memory", "stats"], Compare::Shape, SELF),
    row(&["memory", "doctor"], Compare::Shape, SELF),
    row(&["latency", "doctor"], Compare::Shape, SELF),
    row(&["slowlog", "get"], Compare::Shape, SELF),
    row(&["slowlog", "len"], Compare::Shape, SELF),
    row(&["latency", "latest"], Compare::Shape, SELF),
    row(&["latency", "reset"], Compare::Shape, SELF),
    row(&["memory", "usage"], Compare::Shape, "items are laid out otherwise"),
    row(&["config", "get"], Compare::Pairs, ORDER),
    row(&["info"], Compare::Shape, SELF),
];

/// What differs for those inside `EXEC` only.
const IN_EXEC: &[Difference] = &[
    row(&["keys"], Compare::Nothing, LATER),
    row(&["randomkey"], Compare::Nothing, LATER),
    row(&["scan"], Compare::Nothing, LATER),
];

/// Walks through whole tables lock nothing.
const LATER: &str = "served when the rest of the transaction is committed";

/// Commands whose result needs all of their keys together. If these lie in several partitions, the
/// whole transaction is evaluated where it began, and a table is counted when it is committed.
const GATHERING: &[&str] =
    &["rename", "renamenx", "copy", "msetnx", "bitop", "lcs", "sort", "swapdb"];

/// How the replies to this request are compared inside an `EXEC` of these.
pub fn in_exec(request: &[Vec<u8>], queued: &[Vec<Vec<u8>>]) -> Option<Compare> {
    let is = |request: &[Vec<u8>], name: &str| request[0].eq_ignore_ascii_case(name.as_bytes());
    let gathers = |request: &Vec<Vec<u8>>| GATHERING.iter().any(|name| is(request, name));
    if is(request, "dbsize") && queued.iter().any(gathers) {
        return Some(Compare::Shape);
    }
    find(IN_EXEC, request).or_else(|| of(request))
}

/// How the replies to this request are compared; nothing if byte by byte.
pub fn of(request: &[Vec<u8>]) -> Option<Compare> {
    find(DIFFERENCES, request)
}

fn find(list: &[Difference], request: &[Vec<u8>]) -> Option<Compare> {
    let fits = |difference: &&Difference| {
        difference.words.iter().enumerate().all(|(at, word)| match request.get(at) {
            Some(got) => got.eq_ignore_ascii_case(word.as_bytes()),
            None => *word == END,
        })
    };
    list.iter().find(fits).map(|difference| difference.compare)
}
