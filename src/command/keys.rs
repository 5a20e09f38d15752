//! Commands on keys, whatever they hold.

use super::spec::{CommandGroup, Doc, FAST, KEY, KEYS, Merge, READONLY, Spec, Split, WRITE, data};
use super::{Call, NOT_AN_INTEGER};
use crate::ids::Millis;
use crate::store::number::parse_int;

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::Generic, since, complexity, summary, syntax }
}

/// The code of `EXISTS`, by which a transaction counts its own keys.
pub(super) const EXISTS: u16 = 41;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "del", arity: -2, flags: WRITE, keys: KEYS, run: data(40, del, Split::PerKey(Merge::Sum)),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Deletes keys and counts those that existed.", "key [key ...]") },
    Spec { name: "exists", arity: -2, flags: READONLY | FAST, keys: KEYS, run: data(EXISTS, exists, Split::PerKey(Merge::Sum)),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Counts the keys that exist; one named twice counts twice.", "key [key ...]") },
    Spec { name: "expire", arity: -3, flags: WRITE | FAST, keys: KEY, run: data(42, expire, Split::Single),
        doc: doc("1.0.0", "O(1)", "Lets a key expire after seconds.", "key seconds [NX | XX | GT | LT]") },
    Spec { name: "expireat", arity: -3, flags: WRITE | FAST, keys: KEY, run: data(43, expireat, Split::Single),
        doc: doc("1.2.0", "O(1)", "Lets a key expire at a Unix time in seconds.", "key unix-time-seconds [NX | XX | GT | LT]") },
    Spec { name: "expiretime", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(44, expiretime, Split::Single),
        doc: doc("7.0.0", "O(1)", "Tells when a key expires, as a Unix time in seconds.", "key") },
    Spec { name: "persist", arity: 2, flags: WRITE | FAST, keys: KEY, run: data(45, persist, Split::Single),
        doc: doc("2.2.0", "O(1)", "Takes a key's expiry away.", "key") },
    Spec { name: "pexpire", arity: -3, flags: WRITE | FAST, keys: KEY, run: data(46, pexpire, Split::Single),
        doc: doc("2.6.0", "O(1)", "Lets a key expire after milliseconds.", "key milliseconds [NX | XX | GT | LT]") },
    Spec { name: "pexpireat", arity: -3, flags: WRITE | FAST, keys: KEY, run: data(47, pexpireat, Split::Single),
        doc: doc("2.6.0", "O(1)", "Lets a key expire at a Unix time in milliseconds.", "key unix-time-milliseconds [NX | XX | GT | LT]") },
    Spec { name: "pexpiretime", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(48, pexpiretime, Split::Single),
        doc: doc("7.0.0", "O(1)", "Tells when a key expires, as a Unix time in milliseconds.", "key") },
    Spec { name: "pttl", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(49, pttl, Split::Single),
        doc: doc("2.6.0", "O(1)", "Tells how many milliseconds a key has left.", "key") },
    Spec { name: "touch", arity: -2, flags: READONLY | FAST, keys: KEYS, run: data(50, touch, Split::PerKey(Merge::Sum)),
        doc: doc("3.2.1", "O(N) with N the number of keys", "Looks keys up and counts those that exist.", "key [key ...]") },
    Spec { name: "ttl", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(51, ttl, Split::Single),
        doc: doc("1.0.0", "O(1)", "Tells how many seconds a key has left.", "key") },
    Spec { name: "type", arity: 2, flags: READONLY | FAST, keys: KEY, run: data(52, type_of, Split::Single),
        doc: doc("1.0.0", "O(1)", "Tells what type of value a key holds.", "key") },
    Spec { name: "unlink", arity: -2, flags: WRITE | FAST, keys: KEYS, run: data(53, del, Split::PerKey(Merge::Sum)),
        doc: doc("4.0.0", "O(N) with N the number of keys", "Deletes keys and counts those that existed.", "key [key ...]") },
];

fn del(call: &mut Call<'_>) {
    let args = call.args;
    let mut removed = 0;
    for (index, key) in args.iter().enumerate() {
        let hash = call.hash_of(index);
        removed += i64::from(call.tables.remove(call.table, hash, key));
    }
    call.reply.int(removed);
}

fn exists(call: &mut Call<'_>) {
    let args = call.args;
    let mut found = 0;
    for (index, key) in args.iter().enumerate() {
        let hash = call.hash_of(index);
        found += i64::from(call.tables.peek(call.table, hash, key).is_some());
    }
    call.reply.int(found);
}

fn touch(call: &mut Call<'_>) {
    let args = call.args;
    let mut found = 0;
    for (index, key) in args.iter().enumerate() {
        let hash = call.hash_of(index);
        found += i64::from(call.tables.get(call.table, hash, key).is_some());
    }
    call.reply.int(found);
}

fn type_of(call: &mut Call<'_>) {
    let name = call.peek().map_or("none", |item| item.encoding().value_type().name());
    call.reply.simple(name);
}

fn persist(call: &mut Call<'_>) {
    let volatile = call.get().is_some_and(|item| item.expires().is_some());
    if volatile {
        call.tables.set_expiry(call.table, call.hash, call.args.get(0), None);
    }
    call.reply.int(i64::from(volatile));
}

/// What a command tells of a key's expiry.
enum Tell {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

fn ttl(call: &mut Call<'_>) {
    tell_expiry(call, Tell::Seconds);
}

fn pttl(call: &mut Call<'_>) {
    tell_expiry(call, Tell::Milliseconds);
}

fn expiretime(call: &mut Call<'_>) {
    tell_expiry(call, Tell::UnixSeconds);
}

fn pexpiretime(call: &mut Call<'_>) {
    tell_expiry(call, Tell::UnixMilliseconds);
}

fn tell_expiry(call: &mut Call<'_>, tell: Tell) {
    let now = call.now;
    let expires = call.peek().map(|item| item.expires());
    // Seconds are rounded, not cut: a key that was just given 10 seconds has 10 left.
    let seconds = |ms: u64| ms.saturating_add(500) / 1000;
    let told = match expires {
        None => return call.reply.int(-2),
        Some(None) => return call.reply.int(-1),
        Some(Some(Millis(at))) => match tell {
            Tell::Seconds => seconds(at.saturating_sub(now.0)),
            Tell::Milliseconds => at.saturating_sub(now.0),
            Tell::UnixSeconds => seconds(at),
            Tell::UnixMilliseconds => at,
        },
    };
    call.reply.int(told as i64);
}

fn expire(call: &mut Call<'_>) {
    set_expiry(call, "expire", 1000, true);
}

fn pexpire(call: &mut Call<'_>) {
    set_expiry(call, "pexpire", 1, true);
}

fn expireat(call: &mut Call<'_>) {
    set_expiry(call, "expireat", 1000, false);
}

fn pexpireat(call: &mut Call<'_>) {
    set_expiry(call, "pexpireat", 1, false);
}

/// On what condition an expiry is set.
#[derive(Default)]
struct Conditions {
    /// The key has none.
    absent: bool,
    /// The key has one.
    present: bool,
    /// It is later than the one before; none at all is later than any.
    later: bool,
    /// It is earlier.
    earlier: bool,
}

fn conditions(call: &mut Call<'_>) -> Option<Conditions> {
    let mut conditions = Conditions::default();
    for word in call.args.iter().skip(2) {
        let condition = match () {
            () if word.eq_ignore_ascii_case(b"nx") => &mut conditions.absent,
            () if word.eq_ignore_ascii_case(b"xx") => &mut conditions.present,
            () if word.eq_ignore_ascii_case(b"gt") => &mut conditions.later,
            () if word.eq_ignore_ascii_case(b"lt") => &mut conditions.earlier,
            () => {
                // Redis formats it as C does: a NUL ends the text.
                let word = word.split(|byte| *byte == 0).next().unwrap_or_default();
                call.reply.error_bytes(&[b"ERR Unsupported option ", word].concat());
                return None;
            }
        };
        *condition = true;
    }
    let Conditions { absent, present, later, earlier } = conditions;
    if absent && (present || later || earlier) {
        let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
        call.reply.error(text);
        return None;
    }
    if later && earlier {
        call.reply.error("ERR GT and LT options at the same time are not compatible");
        return None;
    }
    Some(conditions)
}

fn set_expiry(call: &mut Call<'_>, command: &str, unit: i64, relative: bool) {
    let Some(conditions) = conditions(call) else { return };
    let Some(number) = parse_int(call.args.get(1)) else {
        return call.reply.error(NOT_AN_INTEGER);
    };
    let base = if relative { call.now.0 } else { 0 };
    let moment = number.checked_mul(unit).and_then(|number| number.checked_add_unsigned(base));
    let Some(moment) = moment else {
        return call.reply.error(&format!("ERR invalid expire time in '{command}' command"));
    };
    let Some(before) = call.get().map(|item| item.expires()) else { return call.reply.int(0) };
    let refused = match before {
        None => conditions.present || conditions.later,
        Some(Millis(before)) => {
            // A moment before 1970 is earlier than any that a key holds.
            let order = u64::try_from(moment).map_or(std::cmp::Ordering::Less, |m| m.cmp(&before));
            conditions.absent
                || conditions.later && order.is_le()
                || conditions.earlier && order.is_ge()
        }
    };
    if refused {
        return call.reply.int(0);
    }
    let moment = u64::try_from(moment).unwrap_or(0);
    if moment <= call.now.0 {
        call.remove();
    } else {
        call.tables.set_expiry(call.table, call.hash, call.args.get(0), Some(Millis(moment)));
    }
    call.reply.int(1);
}
