//! Commands on strings.

use super::float::{Float, is_infinite};
use super::spec::{
    ANSWERS_VALUES, CommandGroup, DENYOOM, Doc, FAST, KEY, KEYS, Merge, PAIRS, READONLY, STRETCHES,
    Spec, Split, WRITE, data,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX, VALUE_BYTES_MAX};
use crate::batch::Args;
use crate::batch::refusal::Refusal;
use crate::ids::Millis;
use crate::store::number::parse_int;
use crate::store::tables::{Encoding, Expires, ItemRef};

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::String, since, complexity, summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "append", arity: 3, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(1, append, Split::Single),
        doc: doc("2.0.0", "O(1)", "Appends to a key's string, which begins empty.", "key value") },
    Spec { name: "decr", arity: 2, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(2, decr, Split::Single),
        doc: doc("1.0.0", "O(1)", "Takes one from a key's integer, which begins at 0.", "key") },
    Spec { name: "decrby", arity: 3, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(3, decrby, Split::Single),
        doc: doc("1.0.0", "O(1)", "Takes a number from a key's integer, which begins at 0.", "key decrement") },
    Spec { name: "get", arity: 2, flags: READONLY | FAST | ANSWERS_VALUES, keys: KEY, run: data(4, get, Split::Single),
        doc: doc("1.0.0", "O(1)", "Reads a key's string.", "key") },
    Spec { name: "getdel", arity: 2, flags: WRITE | FAST | ANSWERS_VALUES, keys: KEY, run: data(5, getdel, Split::Single),
        doc: doc("6.2.0", "O(1)", "Reads a key's string and deletes the key.", "key") },
    Spec { name: "getex", arity: -2, flags: WRITE | FAST | ANSWERS_VALUES, keys: KEY, run: data(6, getex, Split::Single),
        doc: doc("6.2.0", "O(1)", "Reads a key's string and sets or clears its expiry.",
            "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]") },
    Spec { name: "getrange", arity: 4, flags: READONLY | ANSWERS_VALUES, keys: KEY, run: data(7, getrange, Split::Single),
        doc: doc("2.4.0", "O(N) with N the length read", "Reads a part of a key's string.", "key start end") },
    Spec { name: "getset", arity: 3, flags: WRITE | DENYOOM | FAST | ANSWERS_VALUES, keys: KEY, run: data(8, getset, Split::Single),
        doc: doc("1.0.0", "O(1)", "Replaces a key's string and reads the one before it.", "key value") },
    Spec { name: "incr", arity: 2, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(9, incr, Split::Single),
        doc: doc("1.0.0", "O(1)", "Adds one to a key's integer, which begins at 0.", "key") },
    Spec { name: "incrby", arity: 3, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(10, incrby, Split::Single),
        doc: doc("1.0.0", "O(1)", "Adds a number to a key's integer, which begins at 0.", "key increment") },
    Spec { name: "incrbyfloat", arity: 3, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(11, incrbyfloat, Split::Single),
        doc: doc("2.6.0", "O(1)", "Adds a floating-point number to a key's number, which begins at 0.", "key increment") },
    Spec { name: "mget", arity: -2, flags: READONLY | FAST | ANSWERS_VALUES, keys: KEYS, run: data(12, mget, Split::PerKey(Merge::Array)),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Reads the strings of several keys at one moment.", "key [key ...]") },
    Spec { name: "mset", arity: -3, flags: WRITE | DENYOOM, keys: PAIRS, run: data(13, mset, Split::PerKey(Merge::Status)),
        doc: doc("1.0.1", "O(N) with N the number of keys", "Sets several keys at one moment.", "key value [key value ...]") },
    Spec { name: "msetnx", arity: -3, flags: WRITE | DENYOOM, keys: PAIRS, run: data(14, msetnx, Split::Gather),
        doc: doc("1.0.1", "O(N) with N the number of keys", "Sets several keys at one moment if none of them exists.", "key value [key value ...]") },
    Spec { name: "psetex", arity: 4, flags: WRITE | DENYOOM, keys: KEY, run: data(15, psetex, Split::Single),
        doc: doc("2.6.0", "O(1)", "Sets a key that expires after milliseconds.", "key milliseconds value") },
    Spec { name: "set", arity: -3, flags: WRITE | DENYOOM | ANSWERS_VALUES, keys: KEY, run: data(16, set, Split::Single),
        doc: doc("1.0.0", "O(1)", "Sets a key to a string, whatever it held.",
            "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]") },
    Spec { name: "setex", arity: 4, flags: WRITE | DENYOOM, keys: KEY, run: data(17, setex, Split::Single),
        doc: doc("2.0.0", "O(1)", "Sets a key that expires after seconds.", "key seconds value") },
    Spec { name: "setnx", arity: 3, flags: WRITE | DENYOOM | FAST, keys: KEY, run: data(18, setnx, Split::Single),
        doc: doc("1.0.0", "O(1)", "Sets a key if it does not exist.", "key value") },
    Spec { name: "setrange", arity: 4, flags: WRITE | DENYOOM | STRETCHES, keys: KEY, run: data(19, setrange, Split::Single),
        doc: doc("2.2.0", "O(N) with N the length written", "Overwrites a part of a key's string, filling up with zero bytes.", "key offset value") },
    Spec { name: "strlen", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(20, strlen, Split::Single),
        doc: doc("2.2.0", "O(1)", "Tells the length of a key's string.", "key") },
    Spec { name: "substr", arity: 4, flags: READONLY | ANSWERS_VALUES, keys: KEY, run: data(21, getrange, Split::Single),
        doc: doc("1.0.0", "O(N) with N the length read", "Reads a part of a key's string.", "key start end") },
];

const OVERFLOW: &str = "ERR increment or decrement would overflow";
const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

fn get(call: &mut Call<'_>) {
    let item = call.tables.get(call.table, call.hash, call.args.get(0));
    call.reply.bulk_or_nil(item.map(|item| item.value().string()));
}

fn strlen(call: &mut Call<'_>) {
    let length = call.get().map_or(0, |item| item.value().string().len());
    call.reply.count(length);
}

fn getrange(call: &mut Call<'_>) {
    let (start, end) = (parse_int(call.args.get(1)), parse_int(call.args.get(2)));
    let (Some(start), Some(end)) = (start, end) else { return call.reply.error(NOT_AN_INTEGER) };
    let item = call.tables.get(call.table, call.hash, call.args.get(0));
    let value = item.map_or(&[][..], |item| item.value().string());
    call.reply.bulk(range(value, start, end));
}

/// The bytes from `start` to `end`, both included; negative positions count from the end.
fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let length = value.len() as i64;
    let from_start = |at: i64| if at < 0 { at.saturating_add(length).max(0) } else { at };
    let (start, end) = (from_start(start), from_start(end).min(length - 1));
    if start > end { &[] } else { &value[start as usize..=end as usize] }
}

/// Bytes of one partition's part of a reply to `MGET`, unless it is a single value: it is written
/// in one turn, and travels as one message.
const MGET_BYTES_MAX: usize = 128 << 20;

fn mget(call: &mut Call<'_>) {
    let args = call.args;
    let begun = call.reply.bytes();
    call.reply.array(args.len());
    for (index, key) in args.iter().enumerate() {
        let hash = call.hash_of(index);
        let item = call.tables.get(call.table, hash, key);
        call.reply.bulk_or_nil(item.map(|item| item.value().string()));
        if index > 0 && call.reply.bytes() - begun > MGET_BYTES_MAX {
            call.reply.rewind(begun);
            return call.reply.error(&super::refusal_text(&Refusal::TooLong));
        }
    }
}

/// The options of `SET` and `GETEX`.
#[derive(Default)]
struct SetOptions<'a> {
    when: When,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<(Unit, &'a [u8])>,
}

/// On what condition a key is set.
#[derive(Default, PartialEq)]
enum When {
    #[default]
    Always,
    Absent,
    Present,
}

/// How the number behind an expiry is meant.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

impl Unit {
    /// The moment that `number` names, in Redis's order of checks, or nothing if it is none.
    fn moment(self, number: i64, now: Millis) -> Option<Millis> {
        let scaled = match self {
            Unit::Seconds | Unit::UnixSeconds => number.checked_mul(1000)?,
            Unit::Milliseconds | Unit::UnixMilliseconds => number,
        };
        let moment = match self {
            Unit::Seconds | Unit::Milliseconds => scaled.checked_add_unsigned(now.0)?,
            Unit::UnixSeconds | Unit::UnixMilliseconds => scaled,
        };
        (number > 0).then_some(Millis(moment as u64))
    }

    fn is_absolute(self) -> bool {
        matches!(self, Unit::UnixSeconds | Unit::UnixMilliseconds)
    }
}

/// Reads the options from the argument at `first` on, or nothing if they make no sense together.
/// `SET` and `GETEX` know different ones.
fn options<'a>(call: &Call<'a>, first: usize, getex: bool) -> Option<SetOptions<'a>> {
    let args = call.args;
    let mut options = SetOptions::default();
    let mut at = first;
    while at < args.len() {
        let word = args.get(at);
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let unit = match () {
            () if is("ex") => Some(Unit::Seconds),
            () if is("px") => Some(Unit::Milliseconds),
            () if is("exat") => Some(Unit::UnixSeconds),
            () if is("pxat") => Some(Unit::UnixMilliseconds),
            () => None,
        };
        let settled = options.keep_ttl || options.persist;
        if let Some(unit) = unit {
            // The same unit twice is accepted, as Redis does: the last one counts.
            let other = options.expiry.is_some_and(|(before, _)| before != unit);
            if settled || other || at + 1 == args.len() {
                return None;
            }
            options.expiry = Some((unit, args.get(at + 1)));
            at += 2;
            continue;
        }
        let free = options.expiry.is_none();
        match getex {
            true if is("persist") && free => options.persist = true,
            false if is("nx") && options.when != When::Present => options.when = When::Absent,
            false if is("xx") && options.when != When::Absent => options.when = When::Present,
            false if is("get") => options.get = true,
            false if is("keepttl") && free => options.keep_ttl = true,
            _ => return None,
        }
        at += 1;
    }
    Some(options)
}

/// The moment an expiry names; a number that is none, or no such moment, is answered.
fn expiry(call: &mut Call<'_>, command: &str, unit: Unit, number: &[u8]) -> Option<Millis> {
    let Some(number) = parse_int(number) else {
        call.reply.error(NOT_AN_INTEGER);
        return None;
    };
    let moment = unit.moment(number, call.now);
    if moment.is_none() {
        call.reply.error(&format!("ERR invalid expire time in '{command}' command"));
    }
    moment
}

/// Puts a value that expires; what has expired already is as good as removed. Either way the key
/// was written, also if it held nothing before.
fn put_until(call: &mut Call<'_>, value: &[u8], moment: Millis) {
    if moment <= call.now {
        call.tables.touch(call.table, call.hash);
        call.remove();
    } else {
        call.put(value, Expires::At(moment));
    }
}

fn set(call: &mut Call<'_>) {
    let value = call.args.get(1);
    if call.args.len() == 2 {
        call.put(value, Expires::Never);
        return call.reply.ok();
    }
    let Some(options) = options(call, 2, false) else { return call.reply.error(SYNTAX) };
    let moment = match options.expiry {
        None => None,
        Some((unit, number)) => match expiry(call, "set", unit, number) {
            None => return,
            moment => moment,
        },
    };
    let found = match options.get {
        true => {
            let item = call.tables.get(call.table, call.hash, call.args.get(0));
            call.reply.bulk_or_nil(item.map(|item| item.value().string()));
            item.is_some()
        }
        false => options.when != When::Always && call.get().is_some(),
    };
    let refused = match options.when {
        When::Always => false,
        When::Absent => found,
        When::Present => !found,
    };
    if refused {
        if !options.get {
            call.reply.nil();
        }
        return;
    }
    match moment {
        Some(moment) => put_until(call, value, moment),
        None if options.keep_ttl => call.put(value, Expires::Keep),
        None => call.put(value, Expires::Never),
    }
    if !options.get {
        call.reply.ok();
    }
}

fn setnx(call: &mut Call<'_>) {
    let absent = call.get().is_none();
    if absent {
        call.put(call.args.get(1), Expires::Never);
    }
    call.reply.int(i64::from(absent));
}

fn setex(call: &mut Call<'_>) {
    set_expiring(call, "setex", Unit::Seconds);
}

fn psetex(call: &mut Call<'_>) {
    set_expiring(call, "psetex", Unit::Milliseconds);
}

fn set_expiring(call: &mut Call<'_>, command: &str, unit: Unit) {
    let Some(moment) = expiry(call, command, unit, call.args.get(1)) else { return };
    put_until(call, call.args.get(2), moment);
    call.reply.ok();
}

fn getset(call: &mut Call<'_>) {
    get(call);
    call.put(call.args.get(1), Expires::Never);
}

fn getdel(call: &mut Call<'_>) {
    get(call);
    call.remove();
}

fn getex(call: &mut Call<'_>) {
    let Some(options) = options(call, 1, true) else { return call.reply.error(SYNTAX) };
    let Some(item) = call.get() else { return call.reply.nil() };
    let volatile = item.expires().is_some();
    let moment = match options.expiry {
        None => None,
        Some((unit, number)) => match expiry(call, "getex", unit, number) {
            None => return,
            moment => moment,
        },
    };
    get(call);
    let past = |moment| moment <= call.now && options.expiry.is_some_and(|e| e.0.is_absolute());
    match moment {
        Some(moment) if past(moment) => {
            call.remove();
        }
        Some(_) => {
            call.tables.set_expiry(call.table, call.hash, call.args.get(0), moment);
        }
        None if options.persist && volatile => {
            call.tables.set_expiry(call.table, call.hash, call.args.get(0), None);
        }
        None => {}
    }
}

fn mset(call: &mut Call<'_>) {
    put_pairs(call);
    call.reply.ok();
}

fn msetnx(call: &mut Call<'_>) {
    let args = call.args;
    for index in (0..args.len()).step_by(2) {
        let hash = call.hash_of(index);
        if call.tables.get(call.table, hash, args.get(index)).is_some() {
            return call.reply.int(0);
        }
    }
    put_pairs(call);
    call.reply.int(1);
}

fn put_pairs(call: &mut Call<'_>) {
    let args = call.args;
    for index in (0..args.len()).step_by(2) {
        let hash = call.hash_of(index);
        let (key, value) = (args.get(index), args.get(index + 1));
        call.tables.put(call.table, hash, key, value, Expires::Never);
    }
}

fn append(call: &mut Call<'_>) {
    let suffix = call.args.get(1);
    let length = call.get().map_or(0, |item| item.value().string().len());
    if length + suffix.len() > VALUE_BYTES_MAX {
        return call.reply.error(TOO_LONG);
    }
    let length = call.tables.append(call.table, call.hash, call.args.get(0), suffix);
    call.reply.count(length);
}

fn setrange(call: &mut Call<'_>) {
    let Some(offset) = parse_int(call.args.get(1)) else {
        return call.reply.error(NOT_AN_INTEGER);
    };
    let Ok(offset) = usize::try_from(offset) else {
        return call.reply.error("ERR offset is out of range");
    };
    let value = call.args.get(2);
    let length = call.get().map_or(0, |item| item.value().string().len());
    if value.is_empty() {
        return call.reply.count(length);
    }
    let end = offset.saturating_add(value.len());
    if end > VALUE_BYTES_MAX {
        return call.reply.error(TOO_LONG);
    }
    let length = length.max(end);
    let bytes = call.tables.value_mut(call.table, call.hash, call.args.get(0), length);
    bytes[offset..end].copy_from_slice(value);
    call.reply.count(length);
}

/// How long `SETRANGE` makes its key's value at least; 0 if that is not to be.
pub(super) fn reach(args: Args<'_>) -> usize {
    let offset = parse_int(args.get(1)).and_then(|offset| usize::try_from(offset).ok());
    let end = offset.unwrap_or(0).saturating_add(args.get(2).len());
    if end > VALUE_BYTES_MAX { 0 } else { end }
}

fn incr(call: &mut Call<'_>) {
    add(call, 1);
}

fn decr(call: &mut Call<'_>) {
    add(call, -1);
}

fn incrby(call: &mut Call<'_>) {
    match parse_int(call.args.get(1)) {
        Some(increment) => add(call, increment),
        None => call.reply.error(NOT_AN_INTEGER),
    }
}

fn decrby(call: &mut Call<'_>) {
    match parse_int(call.args.get(1)) {
        Some(i64::MIN) => call.reply.error("ERR decrement would overflow"),
        Some(decrement) => add(call, -decrement),
        None => call.reply.error(NOT_AN_INTEGER),
    }
}

fn incrbyfloat(call: &mut Call<'_>) {
    const NOT_A_FLOAT: &str = "ERR value is not a valid float";
    let increment = call.args.get(1);
    let before = call.get().map_or(&b"0"[..], |item| item.value().string());
    let numbers = [before, increment].map(Float::parse);
    let known = |(text, number): (&[u8], &Option<Float>)| number.is_some() || is_infinite(text);
    if ![before, increment].into_iter().zip(&numbers).all(known) {
        return call.reply.error(NOT_A_FLOAT);
    }
    let [before, increment] = numbers;
    let after = before.zip(increment).and_then(|(before, increment)| before.add(&increment));
    let Some(after) = after else {
        return call.reply.error("ERR increment would produce NaN or Infinity");
    };
    let text = after.text();
    call.put(text.as_bytes(), Expires::Keep);
    call.tables.set_encoding(call.table, call.hash, call.args.get(0), Encoding::Float);
    call.reply.bulk(text.as_bytes());
}

fn add(call: &mut Call<'_>, increment: i64) {
    let number = |item: ItemRef<'_>| parse_int(item.value().string());
    let Some(before) = call.get().map_or(Some(0), number) else {
        return call.reply.error(NOT_AN_INTEGER);
    };
    let Some(after) = before.checked_add(increment) else { return call.reply.error(OVERFLOW) };
    call.put(itoa::Buffer::new().format(after).as_bytes(), Expires::Keep);
    call.reply.int(after);
}
