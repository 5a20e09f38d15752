//! The command table: one row of data a command.
//!
//! A row says everything that there is to know of a command: how many words it takes, which of them
//! are keys, what it does to them, how it is served when they lie in several partitions, and what
//! `COMMAND DOCS` tells of it. The rows lie beside the functions they name, a file a group; this
//! file ties them together and finds a row by name or by code. Both indexes are built by the
//! compiler, so a name or a code that is given twice does not compile.

use super::Call;
use super::argv::Argv;
use super::client::{Client, Then};
use super::facts::Facts;
use super::node_query::NodeQuery;
use super::reply::Reply;
use super::{
    admin, bits, cluster, connection, dump, keys, latency, lcs, object, rename, scan, server, sort,
    strings, transaction,
};
use crate::batch::machine::Scope;
use crate::batch::{Args, OpCode};
use crate::ids::TableIndex;
use crate::store::tables::Access;

/// All rows, a slice a group.
const GROUPS: [&[Spec]; 15] = [
    connection::COMMANDS,
    server::COMMANDS,
    admin::COMMANDS,
    cluster::COMMANDS,
    latency::COMMANDS,
    keys::COMMANDS,
    scan::COMMANDS,
    rename::COMMANDS,
    object::COMMANDS,
    dump::COMMANDS,
    sort::COMMANDS,
    strings::COMMANDS,
    lcs::COMMANDS,
    bits::COMMANDS,
    transaction::COMMANDS,
];

/// A command's row.
#[derive(Debug)]
pub struct Spec {
    /// Its name in small letters; a subcommand's without its container's.
    pub name: &'static str,
    /// How many words it takes, its name included; negative for "at least so many".
    pub arity: i16,
    /// What it does, as bits.
    pub flags: Flags,
    /// Which of its words are keys.
    pub keys: Keys,
    /// How it runs.
    pub run: Run,
    /// What people are told of it.
    pub doc: Doc,
}

/// What `COMMAND DOCS` tells.
#[derive(Clone, Copy, Debug)]
pub struct Doc {
    /// The chapter it belongs to.
    pub group: CommandGroup,
    /// The version of Redis that had it first.
    pub since: &'static str,
    /// How long it takes.
    pub complexity: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// What follows its name, as one would type it.
    pub syntax: &'static str,
}

/// A command's bits: see the constants of this module.
pub type Flags = u32;

/// May change data.
pub const WRITE: Flags = 1 << 0;
/// Looks at data only.
pub const READONLY: Flags = 1 << 1;
/// May need memory.
pub const DENYOOM: Flags = 1 << 2;
/// For administrators.
pub const ADMIN: Flags = 1 << 3;
/// Not inside scripts.
pub const NOSCRIPT: Flags = 1 << 4;
/// Answered while the node is not ready yet.
pub const LOADING: Flags = 1 << 5;
/// Answered by replicas with stale data.
pub const STALE: Flags = 1 << 6;
/// Takes constant or logarithmic time.
pub const FAST: Flags = 1 << 7;
/// Needs no authentication.
pub const NO_AUTH: Flags = 1 << 8;
/// Answered while a script runs too long.
pub const ALLOW_BUSY: Flags = 1 << 9;
/// Not inside transactions.
pub const NO_MULTI: Flags = 1 << 10;
/// In the access category of dangerous commands without being for administrators. Not shown as a
/// flag.
pub const DANGEROUS: Flags = 1 << 11;
/// In the access category of the key space without being of the group. Not shown as a flag.
pub const KEYSPACE: Flags = 1 << 12;
/// In the access category of connections without being of the group. Not shown as a flag.
pub const CONNECTION: Flags = 1 << 13;

/// In the access category of administrators without the flag. Not shown as a flag.
pub const ADMINISTRATION: Flags = 1 << 14;
/// In the access category of scripts. Not shown as a flag.
pub const SCRIPTING: Flags = 1 << 15;
/// In the access categories of what can be sorted, instead of its group's. Not shown as a flag.
pub const SORTS: Flags = 1 << 16;
/// Which words are keys depends on the others.
pub const MOVABLE_KEYS: Flags = 1 << 17;
/// Not in the slow log.
pub const SKIP_SLOWLOG: Flags = 1 << 18;

/// Its reply may be as long as the values of its keys. Not shown as a flag.
pub const ANSWERS_VALUES: Flags = 1 << 19;
/// May make a value longer by more than its own arguments. Not shown as a flag.
pub const STRETCHES: Flags = 1 << 20;

/// Goes through all that its keys hold, however short its reply is. Not shown as a flag.
pub const GOES_THROUGH: Flags = 1 << 21;

/// The flags that `COMMAND` shows, in its order.
const FLAG_NAMES: [(Flags, &str); 13] = [
    (WRITE, "write"),
    (READONLY, "readonly"),
    (DENYOOM, "denyoom"),
    (ADMIN, "admin"),
    (NOSCRIPT, "noscript"),
    (LOADING, "loading"),
    (STALE, "stale"),
    (SKIP_SLOWLOG, "skip_slowlog"),
    (FAST, "fast"),
    (NO_AUTH, "no_auth"),
    (ALLOW_BUSY, "allow_busy"),
    (NO_MULTI, "no_multi"),
    (MOVABLE_KEYS, "movablekeys"),
];

/// The chapters of the command reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandGroup {
    /// Keys of any type.
    Generic,
    /// Strings.
    String,
    /// Strings as arrays of bits.
    Bitmap,
    /// The connection itself.
    Connection,
    /// The server itself.
    Server,
    /// `MULTI` and what belongs to it.
    Transactions,
    /// The cluster.
    Cluster,
}

impl CommandGroup {
    /// Its name in `COMMAND DOCS`.
    pub fn name(self) -> &'static str {
        match self {
            CommandGroup::Generic => "generic",
            CommandGroup::String => "string",
            CommandGroup::Bitmap => "bitmap",
            CommandGroup::Connection => "connection",
            CommandGroup::Server => "server",
            CommandGroup::Transactions => "transactions",
            CommandGroup::Cluster => "cluster",
        }
    }
}

/// Which words of a command are keys, as Redis counts: the command's name is word 0, and a
/// negative `last` counts from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The first key, 0 when there is none.
    pub first: i16,
    /// The last key.
    pub last: i16,
    /// From one key to the next.
    pub step: i16,
}

/// No keys.
pub const NO_KEYS: Keys = Keys { first: 0, last: 0, step: 0 };
/// One key, the first argument.
pub const KEY: Keys = Keys { first: 1, last: 1, step: 1 };
/// Every argument is a key.
pub const KEYS: Keys = Keys { first: 1, last: -1, step: 1 };
/// Every other argument is a key.
pub const PAIRS: Keys = Keys { first: 1, last: -1, step: 2 };

impl Keys {
    /// The words that are keys in a request of `len` words.
    #[inline]
    pub fn positions(self, len: usize) -> impl Iterator<Item = usize> {
        let last = match self.last {
            last if last < 0 => len as i64 + i64::from(last),
            last => i64::from(last).min(len as i64 - 1),
        };
        let first = i64::from(self.first);
        let end = if first == 0 { 0 } else { last + 1 };
        (first..end.max(first)).step_by(self.step.max(1) as usize).map(|at| at as usize)
    }

    /// How many keys a request of `len` words has.
    #[inline]
    pub fn count(self, len: usize) -> usize {
        match self {
            KEY => usize::from(len > 1),
            keys => keys.positions(len).count(),
        }
    }
}

/// A function that runs where the data lies.
pub type DataFn = fn(&mut Call<'_>);

/// A function that runs in the session.
pub type SessionFn = fn(&mut Client, &Facts, Argv<'_>, &mut Reply<'_>) -> Then;

/// A function that runs in the session and says what it asks of the whole node; nothing if it has
/// answered by itself.
pub type NodeFn = fn(&Client, &Facts, Argv<'_>, &mut Reply<'_>) -> Option<NodeQuery>;

/// How a command runs.
#[derive(Debug)]
pub enum Run {
    /// Inside the partitions that hold its keys.
    Data(Data),
    /// In the session: it needs no data.
    Session(SessionFn),
    /// In the session: it begins or ends a transaction.
    Control(Control),
    /// In the session, which asks the other arbiters of its node.
    Node(NodeFn),
    /// Its second word names the command proper.
    Container {
        /// The commands it holds.
        subcommands: &'static [Spec],
        /// What it does without a second word, if it takes none.
        bare: Option<SessionFn>,
    },
}

/// What a command does to the connection's transaction.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    /// Commands are queued from now on.
    Multi,
    /// The queued commands are executed.
    Exec,
    /// They are forgotten.
    Discard,
    /// The next transaction depends on keys: an operation reads their versions.
    Watch(Data),
    /// It depends on none any more: an operation says so to their partitions.
    Unwatch(Data),
}

/// A command that works on data.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// Its number in batches and logs: never changed, never given again.
    pub code: OpCode,
    /// What it does inside one partition.
    pub run: DataFn,
    /// How it is served when its keys lie in several.
    pub split: Split,
    /// The keys it touches, where its row's positions do not tell them all.
    pub reach: Option<ReachFn>,
}

/// Visits the keys that an operation on a table touches, each with its own table.
pub type ReachFn = fn(TableIndex, Args<'_>, &mut dyn FnMut(TableIndex, &[u8]));

/// How a command is served when its keys lie in several partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// It has one key.
    Single,
    /// One operation a key (with the words up to the next key), whose replies are merged.
    PerKey(Merge),
    /// Its result needs all of its keys together: they are locked and read where they lie, and
    /// the command is evaluated in one place.
    Gather,
    /// Its cursor tells which partition goes on: one a call.
    Scan,
    /// It has no keys and goes from partition to partition, a bounded step at a time.
    Walk,
    /// It has no keys and asks the partition of the slot that its third word names.
    Slot,
    /// It has no keys and asks the partition that its third word names, in no order with what
    /// others do to its keys.
    Partition,
    /// It has no keys and asks every partition of some tables.
    Everywhere {
        /// Of which tables.
        over: Over,
        /// What becomes of the replies.
        merge: Merge,
        /// All partitions at one moment, or each at its own.
        locked: bool,
    },
}

/// The tables whose partitions a command asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The one that the connection works on.
    Table,
    /// All of them.
    AllTables,
    /// The two that it names.
    Two,
}

/// How the replies of a split command become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Each is an array of one: their elements in the order of the keys.
    Array,
    /// Each is an integer: their sum.
    Sum,
    /// They are the same: the first.
    Status,
}

/// A row's [`Run`] for a command on data.
pub(super) const fn data(code: u16, run: DataFn, split: Split) -> Run {
    Run::Data(Data { code: OpCode(code), run, split, reach: None })
}

/// As [`data`], for a command that touches more than the keys its row tells.
pub(super) const fn reaching(code: u16, run: DataFn, split: Split, reach: ReachFn) -> Run {
    Run::Data(Data { code: OpCode(code), run, split, reach: Some(reach) })
}

impl Spec {
    /// Whether its arity admits a request of `len` words.
    #[inline]
    pub fn admits(&self, len: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { len >= arity } else { len == arity }
    }

    /// Whether a request of `len` words has whole pairs, if the command takes pairs. Redis looks at
    /// that only when it executes a command: an odd MSET can be queued.
    #[inline]
    pub fn pairs_up(&self, len: usize) -> bool {
        self.keys.step <= 1 || (len - 1).is_multiple_of(self.keys.step as usize)
    }

    /// What it may do to the data.
    #[inline]
    pub fn access(&self) -> Access {
        if self.flags & WRITE != 0 { Access::Write } else { Access::Read }
    }

    /// How much of a partition it touches.
    #[inline]
    pub fn scope(&self) -> Scope {
        match &self.run {
            Run::Data(Data { split: Split::Everywhere { locked: true, .. }, .. }) => {
                Scope::Partition
            }
            Run::Data(Data {
                split:
                    Split::Everywhere { locked: false, .. } | Split::Scan | Split::Walk | Split::Slot,
                ..
            }) => Scope::Glance,
            _ => Scope::Keys,
        }
    }

    /// What it does with data, if anything.
    #[inline]
    pub const fn data(&self) -> Option<Data> {
        match self.run {
            Run::Data(data) | Run::Control(Control::Watch(data)) => Some(data),
            _ => None,
        }
    }

    /// The operation that it sends to partitions, if any.
    pub const fn operation(&self) -> Option<Data> {
        match self.run {
            Run::Control(Control::Unwatch(data)) => Some(data),
            _ => self.data(),
        }
    }

    /// Its subcommands.
    pub fn subcommands(&self) -> &'static [Spec] {
        match self.run {
            Run::Container { subcommands, .. } => subcommands,
            _ => &[],
        }
    }

    /// What it does in the session, if it needs no data.
    #[inline]
    pub fn session(&self) -> Option<SessionFn> {
        match self.run {
            Run::Session(run) => Some(run),
            Run::Container { bare, .. } => bare,
            Run::Data(_) | Run::Control(_) | Run::Node(_) => None,
        }
    }

    /// Whether it ends what the connection is in the midst of, so that `MULTI` does not queue it.
    pub fn ends_all(&self) -> bool {
        self.doc.group == CommandGroup::Connection && matches!(self.name, "quit" | "reset")
    }

    /// Whether it is `EXEC`.
    pub fn executes(&self) -> bool {
        matches!(self.run, Run::Control(Control::Exec))
    }

    /// Whether it is `UNWATCH`, which has no effect inside a transaction.
    pub fn run_is_unwatch(&self) -> bool {
        matches!(self.run, Run::Control(Control::Unwatch(_)))
    }

    /// The names of its flags, as `COMMAND` shows them.
    pub fn flag_names(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.flags;
        FLAG_NAMES.iter().filter(move |(flag, _)| flags & flag != 0).map(|(_, name)| *name)
    }

    /// Its access categories, as `COMMAND` shows them.
    pub fn categories(&self) -> impl Iterator<Item = &'static str> {
        let has = |flag| self.flags & flag != 0;
        // A container without work of its own is in no category but that of its speed.
        let works = !matches!(self.run, Run::Container { bare: None, .. });
        let group = |group| works && self.doc.group == group;
        let keyspace = group(CommandGroup::Generic) && !has(SORTS) || has(KEYSPACE);
        let all = [
            (keyspace, "@keyspace"),
            (has(READONLY), "@read"),
            (has(WRITE), "@write"),
            (has(SORTS), "@set"),
            (has(SORTS), "@sortedset"),
            (has(SORTS), "@list"),
            (group(CommandGroup::String), "@string"),
            (group(CommandGroup::Bitmap), "@bitmap"),
            (has(ADMIN) || has(ADMINISTRATION), "@admin"),
            (has(FAST), "@fast"),
            (!has(FAST), "@slow"),
            (has(ADMIN) || has(ADMINISTRATION) || has(DANGEROUS), "@dangerous"),
            (group(CommandGroup::Connection) || has(CONNECTION), "@connection"),
            (group(CommandGroup::Transactions), "@transaction"),
            (has(SCRIPTING), "@scripting"),
        ];
        all.into_iter().filter(|(within, _)| *within).map(|(_, name)| name)
    }
}

/// All commands, the groups end to end.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    ROWS.iter().copied()
}

/// The command with this name in letters of any size.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    let mut place = place_of(name);
    loop {
        let spec = ROWS[usize::from(BY_NAME[place]).checked_sub(1)?];
        if spec.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(spec);
        }
        place = (place + 1) % PLACES;
    }
}

/// The command on data with this code.
#[inline]
pub fn by_code(code: OpCode) -> Option<(&'static Spec, Data)> {
    let spec = (*BY_CODE.get(usize::from(code.0))?)?;
    Some((spec, spec.operation()?))
}

/// A command's whole name: a subcommand's begins with its container's.
pub fn full_name(spec: &Spec) -> String {
    let within = |row: &&&Spec| row.subcommands().iter().any(|sub| std::ptr::eq(sub, spec));
    match ROWS.iter().find(within) {
        Some(container) => format!("{}|{}", container.name, spec.name),
        None => spec.name.to_owned(),
    }
}

const ROWS_LEN: usize = {
    let (mut group, mut len) = (0, 0);
    while group < GROUPS.len() {
        len += GROUPS[group].len();
        group += 1;
    }
    len
};

static ROWS: [&Spec; ROWS_LEN] = ROWS_CONST;

const ROWS_CONST: [&Spec; ROWS_LEN] = {
    let mut rows = [&GROUPS[0][0]; ROWS_LEN];
    let (mut group, mut at) = (0, 0);
    while group < GROUPS.len() {
        let mut row = 0;
        while row < GROUPS[group].len() {
            rows[at] = &GROUPS[group][row];
            row += 1;
            at += 1;
        }
        group += 1;
    }
    rows
};

/// Places in the index of names: several a name, so that most names, and most words that are no
/// names, are decided at the first place.
const PLACES: usize = 1024;

/// The row of each name, plus one, in open addressing.
static BY_NAME: [u16; PLACES] = {
    assert!(ROWS_LEN * 4 <= PLACES, "the index of names is too full: enlarge PLACES");
    let mut index = [0; PLACES];
    let mut row = 0;
    while row < ROWS_LEN {
        let name = ROWS_CONST[row].name.as_bytes();
        let mut place = place_of(name);
        while index[place] != 0 {
            let other = ROWS_CONST[index[place] as usize - 1].name.as_bytes();
            assert!(!same(name, other), "a command's name is given twice");
            place = (place + 1) % PLACES;
        }
        index[place] = row as u16 + 1;
        row += 1;
    }
    index
};

/// Codes are below this.
pub const CODES: usize = 512;

/// The row of each code, those of subcommands among them.
static BY_CODE: [Option<&Spec>; CODES] = {
    let mut index = [None; CODES];
    let mut row = 0;
    while row < ROWS_LEN {
        index_code(&mut index, ROWS_CONST[row]);
        if let Run::Container { subcommands, .. } = &ROWS_CONST[row].run {
            let mut sub = 0;
            while sub < subcommands.len() {
                index_code(&mut index, &subcommands[sub]);
                sub += 1;
            }
        }
        row += 1;
    }
    index
};

const fn index_code(index: &mut [Option<&'static Spec>; CODES], spec: &'static Spec) {
    if let Some(data) = spec.operation() {
        let code = data.code.0 as usize;
        assert!(code > 0 && code < CODES, "a command's code is out of range");
        assert!(index[code].is_none(), "a command's code is given twice");
        index[code] = Some(spec);
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Where the search for a name begins. Its first and last eight bytes decide, with the bit set
/// that tells small letters from capitals: words that differ in nothing else meet, and the
/// comparison parts those that are not the same.
#[inline]
const fn place_of(name: &[u8]) -> usize {
    const SMALL: u64 = 0x2020_2020_2020_2020;
    let (head, tail) = match *name {
        [a, b, c, d, e, f, g, h, ..] => {
            let head = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let [.., a, b, c, d, e, f, g, h] = *name else { unreachable!() };
            (head, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
        }
        [a, b, c, d, ..] => {
            let head = u32::from_le_bytes([a, b, c, d]) as u64;
            let [.., a, b, c, d] = *name else { unreachable!() };
            (head, u32::from_le_bytes([a, b, c, d]) as u64)
        }
        [a, b, c] => (u32::from_le_bytes([a, b, c, 0]) as u64, 0),
        [a, b] => (u32::from_le_bytes([a, b, 0, 0]) as u64, 0),
        [a] => (a as u64, 0),
        [] => (0, 0),
    };
    let word = (head | SMALL) ^ (tail | SMALL).rotate_left(29) ^ ((name.len() as u64) << 58);
    // Fibonacci hashing (Knuth, volume 3, section 6.4): the product's upper bits are the mixed
    // ones.
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_name_and_code() {
        for spec in all() {
            let capitals = spec.name.to_ascii_uppercase();
            for name in [spec.name, &capitals] {
                assert!(std::ptr::eq(lookup(name.as_bytes()).unwrap(), spec), "{name}");
            }
            if let Some(data) = spec.data() {
                assert!(std::ptr::eq(by_code(data.code).unwrap().0, spec), "{}", spec.name);
            }
        }
        // The last three become names when their bit for small letters is set.
        for name in ["", "g", "gett", "get ", "mse\u{14}", "nosuchcommand", "\u{07}et", "G\u{05}T"]
        {
            assert!(lookup(name.as_bytes()).is_none(), "{name}");
        }
        assert!(by_code(OpCode(0)).is_none());
        assert!(by_code(OpCode(u16::MAX)).is_none());
    }

    #[test]
    fn rows_agree_with_themselves() {
        for spec in all().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands())) {
            let name = spec.name;
            assert!(!spec.doc.summary.is_empty() && spec.doc.summary.ends_with('.'), "{name}");
            assert!(!spec.doc.since.is_empty() && !spec.doc.complexity.is_empty(), "{name}");
            assert_eq!(name, name.to_ascii_lowercase());
            assert_ne!(spec.arity, 0, "{name}");
            let Some(data) = spec.data() else {
                assert_eq!(spec.keys, NO_KEYS, "{name} has keys and no data");
                continue;
            };
            assert_eq!(
                (spec.flags & WRITE != 0) as u8 + (spec.flags & READONLY != 0) as u8,
                u8::from(name != "watch"),
                "{name} reads or writes"
            );
            match data.split {
                Split::Single => assert_eq!(spec.keys.count(9), 1, "{name}"),
                Split::PerKey(_) => assert_eq!(spec.keys.last, -1, "{name}"),
                Split::Gather => assert!(spec.keys.count(9) > 0, "{name}"),
                Split::Slot
                | Split::Partition
                | Split::Scan
                | Split::Walk
                | Split::Everywhere { .. } => {
                    assert_eq!(spec.keys, NO_KEYS, "{name}");
                }
            }
        }
    }

    #[test]
    fn codes_stay_what_logs_hold() {
        let mut codes: Vec<(u16, String)> = Vec::new();
        for spec in all().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands())) {
            if let Some(data) = spec.operation() {
                codes.push((data.code.0, full_name(spec)));
            }
        }
        codes.sort_unstable();
        let known = include_str!("codes.txt");
        let now: String = codes.iter().map(|(code, name)| format!("{code} {name}\n")).collect();
        assert_eq!(now, known, "codes.txt lists the codes that batches and logs hold: append only");
    }

    #[test]
    fn key_positions_count_as_redis_counts() {
        let positions = |keys: Keys, len| keys.positions(len).collect::<Vec<_>>();
        assert!(positions(NO_KEYS, 3).is_empty());
        assert_eq!(positions(KEY, 3), [1]);
        assert!(positions(KEY, 1).is_empty());
        assert_eq!(positions(KEYS, 4), [1, 2, 3]);
        assert!(positions(KEYS, 1).is_empty());
        assert_eq!(positions(PAIRS, 5), [1, 3]);
        assert_eq!(positions(Keys { first: 2, last: -2, step: 1 }, 5), [2, 3]);
    }
}
