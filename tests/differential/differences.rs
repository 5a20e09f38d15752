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
    /// The same elements, in any order.
    AnyOrder,
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
    row(&["object", "idletime"], Compare::Within(2), CLOCK),
    row(&["time"], Compare::Shape, CLOCK),
    row(&["lastsave"], Compare::Shape, SELF),
    row(
        &["dbsize"],
        Compare::Shape,
        "each partition is counted at its own moment: one that has still to hear of a commit that \
         was answered already counts what was there before",
    ),
    row(&["keys"], Compare::AnyOrder, ORDER),
    row(
        &["command", "info"],
        Compare::Shape,
        "tips and the finer key flags are advice to proxies, which nobody needs in front of nodes \
         that route themselves",
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
    row(&["memory"], Compare::Shape, SELF),
    row(&["info"], Compare::Shape, SELF),
];

/// How the replies to this request are compared; nothing if byte by byte.
pub fn of(request: &[Vec<u8>]) -> Option<Compare> {
    let fits = |difference: &&Difference| {
        difference.words.iter().enumerate().all(|(at, word)| match request.get(at) {
            Some(got) => got.eq_ignore_ascii_case(word.as_bytes()),
            None => *word == END,
        })
    };
    DIFFERENCES.iter().find(fits).map(|difference| difference.compare)
}
