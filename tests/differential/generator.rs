//! What is asked: a table of commands with patterns of arguments, and dice.
//!
//! A new command is a row of [`ROWS`]. A pattern's words stand for arguments drawn at random; what
//! a pattern promises is broken now and then (a word more, a word less, a word of another kind),
//! for errors are answers too.

use std::collections::BTreeSet;

/// Connections to each side.
pub const CONNECTIONS: usize = 6;

/// A command: how often it is drawn, its name, and patterns of what may follow.
///
/// In a pattern `k` is a key, `v` a value, `i` an integer, `f` a float, `s` a small position or
/// offset, `t` seconds or milliseconds to live, `T` an absolute time in seconds, `M` one in
/// milliseconds, `U` and `N` those without the past, `I` an integer that is no short time, `d` a table, `b` a bit's value, `g` a glob, `n` a command's name, `c` a setting's, `y` a bitfield's
/// type. A word in capitals or digits is itself. `x?` is drawn or not, `x*` up to four times,
/// `A|B` one of them.
pub const ROWS: &[(u32, &str, &[&str])] = &[
    // Strings
    (20, "get", &["k"]),
    (
        30,
        "set",
        &[
            "k v",
            "k v",
            "k i",
            "k v NX|XX|GET|KEEPTTL",
            "k v EX|PX t",
            "k v EXAT U",
            "k v PXAT N",
            "k v NX|XX? GET? EX|PX|KEEPTTL? t?",
            "k v EX t PX t",
            "k v NX XX",
            "k v GET NX|XX",
        ],
    ),
    (4, "setnx", &["k v"]),
    (4, "setex", &["k t v", "k I v"]),
    (4, "psetex", &["k t v", "k I v"]),
    (4, "getset", &["k v"]),
    (4, "getdel", &["k"]),
    (
        8,
        "getex",
        &["k", "k EX|PX t", "k EXAT T", "k PXAT M", "k PERSIST", "k PERSIST EX t", "k EX"],
    ),
    (10, "mget", &["k k*"]),
    (10, "mset", &["k v", "k v k v", "k v k v k i", "k v k"]),
    (6, "msetnx", &["k v", "k v k v", "k v k v k i", "k v k"]),
    (8, "incr", &["k"]),
    (8, "incrby", &["k i"]),
    (8, "incrbyfloat", &["k f", "k f", "k d"]),
    (4, "decr", &["k"]),
    (4, "decrby", &["k i"]),
    (8, "append", &["k v", "k i"]),
    (4, "strlen", &["k"]),
    (8, "getrange", &["k s s", "k i i"]),
    (4, "substr", &["k s s"]),
    (8, "setrange", &["k s v", "k 3 v"]),
    (
        4,
        "lcs",
        &["k k", "k k LEN", "k k IDX", "k k IDX MINMATCHLEN s WITHMATCHLEN?", "k k LEN IDX"],
    ),
    (6, "setbit", &["k s b", "k s v"]),
    (6, "getbit", &["k s"]),
    (6, "bitcount", &["k", "k s s", "k s s BYTE|BIT", "k s"]),
    (6, "bitpos", &["k b", "k b s", "k b s s", "k b s s BYTE|BIT"]),
    (6, "bitop", &["AND|OR|XOR k k k*", "NOT k k", "NOT k k k", "NAND k k"]),
    (
        8,
        "bitfield",
        &[
            "k",
            "k GET y s",
            "k SET y s i",
            "k INCRBY y s i",
            "k OVERFLOW WRAP|SAT|FAIL INCRBY y s i",
            "k GET y s SET y s i INCRBY y s i",
        ],
    ),
    (3, "bitfield_ro", &["k GET y s", "k SET y s i", "k"]),
    // Keys
    (10, "del", &["k k*"]),
    (4, "unlink", &["k k*"]),
    (6, "exists", &["k k*"]),
    (3, "touch", &["k k*"]),
    (4, "type", &["k"]),
    (3, "keys", &["g"]),
    (1, "scan", &["0", "v", "0 MATCH g", "0 COUNT i", "0 TYPE string"]),
    (1, "randomkey", &[""]),
    (3, "dbsize", &[""]),
    (5, "rename", &["k k"]),
    (5, "renamenx", &["k k"]),
    (5, "copy", &["k k", "k k REPLACE", "k k DB d", "k k DB d REPLACE?"]),
    (3, "move", &["k d"]),
    (1, "swapdb", &["d d"]),
    // GT and LT only with times that the clock does not move: a millisecond decides otherwise.
    (6, "expire", &["k t", "k t NX|XX", "k I", "k t NX XX", "k t GT LT"]),
    (6, "pexpire", &["k t", "k t NX|XX", "k I"]),
    (4, "expireat", &["k T", "k T NX|XX|GT|LT", "k i"]),
    (4, "pexpireat", &["k M", "k M NX|XX|GT|LT", "k i"]),
    (4, "expiretime", &["k"]),
    (4, "pexpiretime", &["k"]),
    (6, "ttl", &["k"]),
    (6, "pttl", &["k"]),
    (4, "persist", &["k"]),
    (1, "flushdb", &["", "SYNC|ASYNC", "v"]),
    (1, "flushall", &["", "SYNC|ASYNC", "v"]),
    (6, "object", &["IDLETIME|FREQ k", "ENCODING|REFCOUNT k", "v k", "ENCODING"]),
    (2, "dump", &["k"]),
    (2, "restore", &["k t v", "k 0 v REPLACE"]),
    (3, "sort", &["k", "k ALPHA|DESC|ASC", "k LIMIT s s"]),
    (1, "sort_ro", &["k"]),
    // Transactions
    // Whole transactions are drawn apart: see Generator::transaction.
    (3, "multi", &[""]),
    (9, "exec", &[""]),
    (3, "discard", &[""]),
    (5, "watch", &["k k*"]),
    (2, "unwatch", &[""]),
    // The connection and the server
    (2, "ping", &["", "v", "v v"]),
    (2, "echo", &["v"]),
    (8, "select", &["d", "d", "v"]),
    (2, "hello", &["", "2|3|3|4", "v", "3 SETNAME v"]),
    (1, "reset", &[""]),
    (
        6,
        "client",
        &[
            "GETNAME",
            "SETNAME v",
            "ID",
            "INFO v",
            "GETREDIR",
            "TRACKINGINFO",
            "NO-EVICT ON|OFF|MAYBE",
            "REPLY ON|MAYBE",
            "LIST TYPE MASTER|PUBSUB|REPLICA|NORMALS",
            "LIST ID 0|-1|x|999999",
            "LIST v",
            "LIST TYPE",
            "KILL v",
            "KILL 1.2.3.4:5",
            "KILL ID 0|-1|x|999999",
            "KILL TYPE MASTER|PUBSUB|REPLICA|NORMALS",
            "KILL TYPE MASTER SKIPME YES|NO|MAYBE",
            "KILL USER NOBODY",
            "KILL ADDR|LADDR 1.2.3.4:5",
            "KILL v v",
            "KILL ID",
            "PAUSE 0|-1|x ALL|WRITE|NONE?",
            "PAUSE 0 ALL v",
            "UNPAUSE",
            "UNBLOCK 0|999999|x TIMEOUT|ERROR|NEVER?",
            "v",
            "",
        ],
    ),
    (
        6,
        "command",
        &[
            "INFO n",
            "INFO n n",
            "INFO n",
            "COUNT",
            "GETKEYS n k v k v",
            "GETKEYS n k",
            "GETKEYSANDFLAGS n k v k v",
            "GETKEYSANDFLAGS n k",
            "GETKEYSANDFLAGS SET k v GET|NX",
            "GETKEYSANDFLAGS BITFIELD k GET|SET y s v",
            "GETKEYS SORT k STORE k STORE k",
            "DOCS n",
            "LIST",
            "LIST FILTERBY MODULE|ACLCAT v",
            "LIST FILTERBY PATTERN nothing",
            "LIST FILTERBY v",
            "LIST v",
            "v",
        ],
    ),
    (
        8,
        "config",
        &[
            "GET c",
            "GET c c",
            "GET nonsense",
            "SET nonsense v",
            "SET c nonsense",
            "SET c nonsense",
            "SET c -1",
            "SET c x nonsense v",
            "SET c x c",
            "SET HZ 10 TIMEOUT 0",
            "SET HZ 10 HZ 10",
            "RESETSTAT",
            "RESETSTAT v",
            "REWRITE v",
            "v",
            "GET",
            "",
        ],
    ),
    (2, "slowlog", &["GET -1|-2|x|0", "GET 1 v", "LEN", "LEN v", "RESET", "v", "", "RESET v"]),
    (
        2,
        "latency",
        &[
            "LATEST",
            "HISTORY v",
            "HISTORY",
            "GRAPH nothing",
            "RESET v",
            "RESET",
            "DOCTOR v",
            "v",
            "",
        ],
    ),
    (
        3,
        "memory",
        &[
            "USAGE k",
            "USAGE k SAMPLES i",
            "USAGE k SAMPLES",
            "USAGE k v v",
            "USAGE k SAMPLES 1 SAMPLES i",
            "PURGE",
            "PURGE v",
            "DOCTOR v",
            "STATS v",
            "v",
            "",
        ],
    ),
    (
        2,
        "debug",
        &["SLEEP 0", "SLEEP", "SLEEP 0 v", "SET-ACTIVE-EXPIRE 1", "SET-ACTIVE-EXPIRE", "v", ""],
    ),
    (1, "script", &["FLUSH", "FLUSH SYNC|ASYNC|NEVER", "FLUSH SYNC v", "v", ""]),
    (1, "function", &["FLUSH", "FLUSH SYNC|ASYNC|NEVER", "FLUSH SYNC v", "v", ""]),
    (1, "time", &["", "v"]),
    (1, "lastsave", &["", "v"]),
    (2, "wait", &["0 0", "0 x", "x 0", "0|-1 i", "0 0 0"]),
    (2, "auth", &["v", "v v", "default v", "v v v", ""]),
    (1, "monitor", &["v"]),
    (1, "info", &["nonsense"]),
    (1, "nonsense", &["", "v", "v v v"]),
    (1, "", &["", "v"]),
];

/// Settings that begin with the same values on both sides and say alike what they are not.
const SETTINGS: &[&str] = &[
    "activerehashing",
    "busy-reply-threshold",
    "databases",
    "dynamic-hz",
    "hash-max-listpack-entries",
    "hash-max-listpack-value",
    "hash-max-ziplist-value",
    "hll-sparse-max-bytes",
    "hz",
    "io-threads",
    "latency-monitor-threshold",
    "lazyfree-lazy-expire",
    "lazyfree-lazy-user-del",
    "lfu-decay-time",
    "lfu-log-factor",
    "list-compress-depth",
    "lua-time-limit",
    "maxclients",
    "maxmemory",
    "maxmemory-policy",
    "maxmemory-samples",
    "proto-max-bulk-len",
    "set-max-intset-entries",
    "slowlog-max-len",
    "stream-node-max-bytes",
    "timeout",
    "zset-max-listpack-entries",
];

/// Commands whose second word names the command proper.
const CONTAINERS: &[&str] = &[
    "client", "command", "config", "function", "latency", "memory", "object", "script", "slowlog",
];

/// Commands that are asked for as they stand: with another word they would pause a server, or make
/// it another one for all that follows.
const SENSITIVE: &[&str] = &["client", "config", "debug", "monitor", "wait"];

/// The names of all commands of the table, subcommands as `container|name`.
pub fn names() -> impl Iterator<Item = String> {
    ROWS.iter().flat_map(|(_, name, patterns)| {
        let inner = patterns.iter().flat_map(move |pattern| subcommands(name, pattern));
        std::iter::once((*name).to_owned()).chain(inner)
    })
}

/// The subcommands that a pattern may draw.
fn subcommands(name: &str, pattern: &str) -> Vec<String> {
    let first = pattern.split(' ').next().unwrap_or_default();
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase());
    let named = first.split('|').filter(is_name);
    let named = named.filter(|_| CONTAINERS.contains(&name));
    named.map(|word| format!("{name}|{}", word.to_ascii_lowercase())).collect()
}

/// Rows that are no commands: both sides shall say so in the same words.
fn is_no_command(name: &str) -> bool {
    matches!(name, "nonsense" | "")
}

/// Requests that are sent in one write, over one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub connection: usize,
    pub requests: Vec<Vec<Vec<u8>>>,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Draws what is asked.
pub struct Generator {
    dice: Dice,
    rows: Vec<(u32, &'static str, Vec<&'static str>)>,
    weight: u32,
}

impl Generator {
    /// Draws from the commands that are known.
    pub fn new(seed: u64, known: &BTreeSet<String>) -> Generator {
        let row = |(weight, name, patterns): &(u32, &'static str, &[&'static str])| {
            let whole = |pattern: &&str| {
                subcommands(name, pattern).iter().all(|inner| known.contains(inner))
            };
            let patterns: Vec<&str> = patterns.iter().copied().filter(whole).collect();
            let drawn = known.contains(*name) || is_no_command(name);
            (drawn && !patterns.is_empty()).then_some((*weight, *name, patterns))
        };
        let rows: Vec<_> = ROWS.iter().filter_map(row).collect();
        let weight = rows.iter().map(|row| row.0).sum();
        Generator { dice: Dice(seed), rows, weight }
    }

    /// Steps of about so many commands together.
    pub fn round(&mut self, commands: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut count = 0;
        while count < commands {
            let before = steps.len();
            if self.dice.once_in(25) {
                self.transaction(&mut steps);
            } else {
                let length = if self.dice.once_in(4) { 1 + self.dice.below(12) } else { 1 };
                let requests = (0..length).map(|_| self.request()).collect();
                steps.push(Step { connection: self.dice.below(CONNECTIONS), requests });
            }
            count += steps[before..].iter().map(|step| step.requests.len()).sum::<usize>();
        }
        steps
    }

    /// A transaction of one connection, in one write or several, with others in between: perhaps
    /// one that changes what is watched.
    fn transaction(&mut self, steps: &mut Vec<Step>) {
        let connection = self.dice.below(CONNECTIONS);
        let say = |word: &str| vec![word.as_bytes().to_vec()];
        let mut requests = Vec::new();
        if self.dice.once_in(2) {
            let mut watch = say("WATCH");
            (0..1 + self.dice.below(2)).for_each(|_| watch.push(self.key()));
            requests.push(watch);
        }
        requests.push(say("MULTI"));
        (0..self.dice.below(8)).for_each(|_| requests.push(self.request()));
        requests.push(say(if self.dice.once_in(12) { "DISCARD" } else { "EXEC" }));
        if self.dice.once_in(2) {
            return steps.push(Step { connection, requests });
        }
        for request in requests {
            steps.push(Step { connection, requests: vec![request] });
            if self.dice.once_in(4) {
                let other = self.dice.below(CONNECTIONS);
                steps.push(Step { connection: other, requests: vec![self.request()] });
            }
        }
    }

    fn request(&mut self) -> Vec<Vec<u8>> {
        let mut at = self.dice.below(self.weight as usize) as u32;
        let mut rows = self.rows.iter();
        let row = rows.find(|row| {
            let here = at < row.0;
            at = at.saturating_sub(row.0);
            here
        });
        let (_, name, patterns) = row.expect("weights add up");
        let (name, pattern) = (*name, self.dice.pick(patterns));
        let mut words = vec![self.cased(name)];
        for symbol in pattern.split_whitespace() {
            self.draw(symbol, &mut words);
        }
        if SENSITIVE.contains(&name) {
            return words;
        }
        // Promises are broken now and then.
        match self.dice.below(60) {
            0 => words.push(self.value()),
            1 if words.len() > 1 => drop(words.pop()),
            2 if words.len() > 1 => {
                let at = 1 + self.dice.below(words.len() - 1);
                words[at] = self.odd();
            }
            _ => {}
        }
        words
    }

    fn cased(&mut self, word: &str) -> Vec<u8> {
        match self.dice.below(4) {
            0 => word.to_ascii_uppercase().into_bytes(),
            1 => word
                .bytes()
                .map(|b| if self.dice.once_in(2) { b } else { b.to_ascii_uppercase() })
                .collect(),
            _ => word.to_owned().into_bytes(),
        }
    }

    fn draw(&mut self, symbol: &str, words: &mut Vec<Vec<u8>>) {
        if let Some(symbol) = symbol.strip_suffix('?') {
            if self.dice.once_in(2) {
                self.draw(symbol, words);
            }
            return;
        }
        if let Some(symbol) = symbol.strip_suffix('*') {
            for _ in 0..self.dice.below(5) {
                self.draw(symbol, words);
            }
            return;
        }
        if symbol.contains('|') {
            let choices: Vec<&str> = symbol.split('|').collect();
            let chosen = self.dice.pick(&choices);
            return words.push(self.cased(chosen));
        }
        let word = match symbol {
            "k" => self.key(),
            "v" => self.value(),
            "i" => self.integer(),
            "f" => self.float(),
            "s" => self
                .dice
                .pick(&["0", "1", "2", "7", "8", "15", "-1", "-2", "-9", "100", "1023"])
                .into(),
            // Long enough that nothing expires while two servers are asked in turn.
            "t" => {
                self.dice.pick(&["100000", "500000", "900000", "9000000", "0", "-1", "x"]).into()
            }
            "T" => self.dice.pick(&["4000000000", "4100000000", "1000000000", "0", "-5"]).into(),
            "U" => self.dice.pick(&["4000000000", "4100000000", "0", "-5"]).into(),
            "N" => self.dice.pick(&["4000000000000", "4100000000123", "0"]).into(),
            "I" => self.odd(),
            "M" => self.dice.pick(&["4000000000000", "4100000000123", "1000000000000", "0"]).into(),
            "d" => self.dice.pick(&["0", "0", "0", "1", "2", "15", "16", "-1", "x"]).into(),
            "b" => self.dice.pick(&["0", "1", "1", "2"]).into(),
            "g" => {
                self.dice.pick(&["*", "k*", "?1", "[a-k]*", "k[^1]", "k\\*", "", "nothing"]).into()
            }
            "n" => {
                let at = self.dice.below(ROWS.len() + 1);
                ROWS.get(at).map_or("nonsense", |row| row.1).into()
            }
            "c" => {
                let name = self.dice.pick(SETTINGS);
                self.cased(name)
            }
            "y" => self
                .dice
                .pick(&["u1", "i8", "u8", "i16", "u31", "u63", "i64", "u64", "i65", "u0", "x8"])
                .into(),
            itself => return words.push(self.cased(itself)),
        };
        words.push(word);
    }

    /// Few keys, so that they meet; some share a slot, some are odd.
    fn key(&mut self) -> Vec<u8> {
        match self.dice.below(24) {
            0 => self.dice.pick(&[&b""[..], b"\x00\xff\r\n", b"{", b"{}k", b" ", b"k*"]).to_vec(),
            1..=5 => format!("{{tag}}{}", self.dice.below(3)).into_bytes(),
            _ => format!("k{}", self.dice.below(8)).into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.dice.below(8) {
            0 => Vec::new(),
            1 => (0..self.dice.below(40)).map(|_| self.dice.next() as u8).collect(),
            2 => vec![b'x'; self.dice.pick(&[43, 44, 45, 100, 5000])],
            3 => self.integer(),
            4 => self.float(),
            _ => self
                .dice
                .pick(&["a", "hello", "foobar", "ohmytext", "mynewtext", "A b", "0"])
                .into(),
        }
    }

    fn integer(&mut self) -> Vec<u8> {
        match self.dice.below(12) {
            0 => self
                .dice
                .pick(&[
                    "9223372036854775807",
                    "-9223372036854775808",
                    "9223372036854775808",
                    "-9223372036854775809",
                    "4611686018427387904",
                    "9999999999999999",
                ])
                .into(),
            1 => self
                .dice
                .pick(&["", " 1", "1 ", "+1", "01", "-0", "1.0", "1e3", "0x10", "abc", "--1"])
                .into(),
            _ => (self.dice.below(200) as i64 - 100).to_string().into_bytes(),
        }
    }

    fn float(&mut self) -> Vec<u8> {
        match self.dice.below(6) {
            0 => self
                .dice
                .pick(&[
                    "inf", "-inf", "nan", "1e400", "1e-400", "", " 1.5", "1.5 ", "0x1p3", "1e17",
                    "5.0e3",
                ])
                .into(),
            _ => self
                .dice
                .pick(&["0.1", "-0.1", "3.25", "10.5", "1e2", "-5", "200", "0.000001", "3.0"])
                .into(),
        }
    }

    /// Anything but a time so short that it may pass between one server's turn and the other's.
    fn odd(&mut self) -> Vec<u8> {
        loop {
            let word = match self.dice.below(3) {
                0 => self.integer(),
                1 => self.float(),
                _ => self.value(),
            };
            let time = std::str::from_utf8(&word).ok().and_then(|text| text.parse().ok());
            if !time.is_some_and(|time: i64| (1..100_000).contains(&time)) {
                return word;
            }
        }
    }
}
