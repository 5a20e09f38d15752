//! Commands on strings as arrays of bits. Bit 0 is the highest of the first byte.

use super::spec::{
    CommandGroup, DENYOOM, Doc, FAST, GOES_THROUGH, KEY, Keys, READONLY, STRETCHES, Spec, Split,
    WRITE, data,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX, VALUE_BYTES_MAX};
use crate::batch::Args;
use crate::store::number::parse_int;
use crate::store::tables::{Encoding, Expires};

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::Bitmap, since, complexity, summary, syntax }
}

/// The keys of `BITOP`: all words behind the operation.
const BEHIND_OPERATION: Keys = Keys { first: 2, last: -1, step: 1 };

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "bitcount", arity: -2, flags: READONLY | GOES_THROUGH, keys: KEY, run: data(23, bitcount, Split::Single),
        doc: doc("2.6.0", "O(N) with N the length counted", "Counts the bits that are set in a string or a part of it.", "key [start end [BYTE | BIT]]") },
    Spec { name: "bitfield", arity: -2, flags: WRITE | DENYOOM | STRETCHES, keys: KEY, run: data(24, bitfield, Split::Single),
        doc: doc("3.2.0", "O(N) with N the number of subcommands", "Reads and writes integers of any width anywhere in a string.",
            "key [GET encoding offset | [OVERFLOW WRAP | SAT | FAIL] SET encoding offset value | INCRBY encoding offset increment ...]") },
    Spec { name: "bitfield_ro", arity: -2, flags: READONLY | FAST, keys: KEY, run: data(25, bitfield_ro, Split::Single),
        doc: doc("6.0.0", "O(N) with N the number of subcommands", "Reads integers of any width anywhere in a string.", "key [GET encoding offset ...]") },
    Spec { name: "bitop", arity: -4, flags: WRITE | DENYOOM | STRETCHES | GOES_THROUGH, keys: BEHIND_OPERATION, run: data(26, bitop, Split::Gather),
        doc: doc("2.6.0", "O(N) with N the length of the strings", "Combines strings bit by bit and stores the result.", "AND | OR | XOR | NOT destkey key [key ...]") },
    Spec { name: "bitpos", arity: -3, flags: READONLY | GOES_THROUGH, keys: KEY, run: data(27, bitpos, Split::Single),
        doc: doc("2.8.7", "O(N) with N the length searched", "Finds the first bit that is set, or clear.", "key bit [start [end [BYTE | BIT]]]") },
    Spec { name: "getbit", arity: 3, flags: READONLY | FAST, keys: KEY, run: data(28, getbit, Split::Single),
        doc: doc("2.2.0", "O(1)", "Reads one bit of a string.", "key offset") },
    Spec { name: "setbit", arity: 4, flags: WRITE | DENYOOM | STRETCHES, keys: KEY, run: data(29, setbit, Split::Single),
        doc: doc("2.2.0", "O(1)", "Sets or clears one bit of a string, filling up with zero bytes.", "key offset value") },
];

const BAD_OFFSET: &str = "ERR bit offset is not an integer or out of range";
const BAD_BIT: &str = "ERR bit is not an integer or out of range";
const BAD_TYPE: &str = "ERR Invalid bitfield type. Use something like i16 u8. \
                        Note that u64 is not supported but i64 is.";

/// A bit's number. With a width, `#3` is the fourth integer of that width.
fn offset(word: &[u8], width: Option<u32>) -> Option<u64> {
    let (number, unit) = match (word, width) {
        ([b'#', number @ ..], Some(width)) => (number, i64::from(width)),
        _ => (word, 1),
    };
    let bit = u64::try_from(parse_int(number)?.checked_mul(unit)?).ok()?;
    (bit / 8 < VALUE_BYTES_MAX as u64).then_some(bit)
}

fn bit_of(value: &[u8], bit: u64) -> bool {
    value.get((bit / 8) as usize).is_some_and(|byte| byte >> (7 - bit % 8) & 1 == 1)
}

fn put_bit(value: &mut [u8], bit: u64, set: bool) {
    let mask = 1 << (7 - bit % 8);
    let byte = &mut value[(bit / 8) as usize];
    *byte = if set { *byte | mask } else { *byte & !mask };
}

fn getbit(call: &mut Call<'_>) {
    let Some(bit) = offset(call.args.get(1), None) else { return call.reply.error(BAD_OFFSET) };
    let set = call.get().is_some_and(|item| bit_of(item.value().string(), bit));
    call.reply.int(i64::from(set));
}

/// How long `SETBIT` or `BITFIELD` makes its key's value at least; 0 if that is not to be.
pub(super) fn reach(args: Args<'_>) -> usize {
    if args.len() == 3
        && let Some(bit) = offset(args.get(1), None)
    {
        return (bit / 8) as usize + 1;
    }
    fields(args).map_or(0, |fields| reach_of(&fields))
}

fn setbit(call: &mut Call<'_>) {
    let Some(bit) = offset(call.args.get(1), None) else { return call.reply.error(BAD_OFFSET) };
    let set = match call.args.get(2) {
        b"0" => false,
        b"1" => true,
        _ => return call.reply.error(BAD_BIT),
    };
    let length =
        call.get().map_or(0, |item| item.value().string().len()).max((bit / 8) as usize + 1);
    let value = call.tables.value_mut(call.table, call.hash, call.args.get(0), length);
    let before = bit_of(value, bit);
    put_bit(value, bit, set);
    call.reply.int(i64::from(before));
}

/// Whether positions count bits rather than bytes; nothing if the word says neither.
fn counts_bits(word: &[u8]) -> Option<bool> {
    match () {
        () if word.eq_ignore_ascii_case(b"bit") => Some(true),
        () if word.eq_ignore_ascii_case(b"byte") => Some(false),
        () => None,
    }
}

/// The bits from `start` to `end` (both included, negative ones counted from the end) of `length`
/// bytes, as a half-open range.
fn bits_between(length: usize, start: i64, end: i64, bits: bool) -> std::ops::Range<u64> {
    let (total, unit) = if bits { (length as i64 * 8, 1) } else { (length as i64, 8) };
    let from_start = |at: i64| if at < 0 { at.saturating_add(total).max(0) } else { at };
    let (start, end) = (from_start(start), from_start(end).min(total - 1));
    if start > end { 0..0 } else { start as u64 * unit..(end as u64 + 1) * unit }
}

/// Bytes of the value with the bits outside of `range` replaced by those of `filler`, and the
/// first byte's place.
fn masked(
    value: &[u8],
    range: std::ops::Range<u64>,
    filler: u8,
) -> impl Iterator<Item = (usize, u8)> {
    let (first, end) = ((range.start / 8) as usize, range.end.div_ceil(8) as usize);
    let bytes = value.get(first..end).unwrap_or_default();
    bytes.iter().enumerate().map(move |(index, &byte)| {
        let at = (first + index) as u64 * 8;
        let before = range.start.saturating_sub(at).min(8) as u32;
        let after = (at + 8).saturating_sub(range.end).min(8) as u32;
        let inside =
            0xffu8.checked_shr(before).unwrap_or(0) & 0xffu8.checked_shl(after).unwrap_or(0);
        (first + index, byte & inside | filler & !inside)
    })
}

fn bitcount(call: &mut Call<'_>) {
    let args = call.args;
    let Some(item) = call.tables.get(call.table, call.hash, args.get(0)) else {
        return call.reply.int(0);
    };
    let value = item.value().string();
    let range = match args.len() {
        1 => 0..value.len() as u64 * 8,
        3 | 4 => {
            let (Some(start), Some(end)) = (parse_int(args.get(1)), parse_int(args.get(2))) else {
                return call.reply.error(NOT_AN_INTEGER);
            };
            if start < 0 && end < 0 && start > end {
                return call.reply.int(0);
            }
            let bits = if args.len() == 4 { counts_bits(args.get(3)) } else { Some(false) };
            let Some(bits) = bits else { return call.reply.error(SYNTAX) };
            bits_between(value.len(), start, end, bits)
        }
        _ => return call.reply.error(SYNTAX),
    };
    let set: i64 = match range.start.is_multiple_of(8) && range.end.is_multiple_of(8) {
        true => {
            let whole = value.get(range.start as usize / 8..range.end as usize / 8);
            let (argv, rest) = whole.unwrap_or_default().as_chunks::<8>();
            let argv = argv.iter().map(|word| i64::from(u64::from_ne_bytes(*word).count_ones()));
            argv.sum::<i64>() + rest.iter().map(|byte| i64::from(byte.count_ones())).sum::<i64>()
        }
        false => masked(value, range, 0).map(|(_, byte)| i64::from(byte.count_ones())).sum(),
    };
    call.reply.int(set);
}

fn bitpos(call: &mut Call<'_>) {
    let args = call.args;
    let set = match parse_int(args.get(1)) {
        Some(0) => false,
        Some(1) => true,
        Some(_) => return call.reply.error("ERR The bit argument must be 1 or 0."),
        None => return call.reply.error(NOT_AN_INTEGER),
    };
    // An absent key is an endless row of zeros.
    let Some(item) = call.tables.get(call.table, call.hash, args.get(0)) else {
        return call.reply.int(if set { -1 } else { 0 });
    };
    let value = item.value().string();
    let range = match args.len() {
        2 => 0..value.len() as u64 * 8,
        3..=5 => {
            let Some(start) = parse_int(args.get(2)) else {
                return call.reply.error(NOT_AN_INTEGER);
            };
            let bits = if args.len() == 5 { counts_bits(args.get(4)) } else { Some(false) };
            let Some(bits) = bits else { return call.reply.error(SYNTAX) };
            let end = if args.len() > 3 { parse_int(args.get(3)) } else { Some(-1) };
            let Some(end) = end else { return call.reply.error(NOT_AN_INTEGER) };
            bits_between(value.len(), start, end, bits)
        }
        _ => return call.reply.error(SYNTAX),
    };
    if range.is_empty() {
        return call.reply.int(-1);
    }
    let end_given = args.len() > 3;
    // Bits outside are made such as are not looked for.
    let dull = if set { 0x00 } else { 0xff };
    let found = masked(value, range, dull).find(|(_, byte)| *byte != dull);
    let position = match found {
        Some((at, byte)) => at as i64 * 8 + i64::from((byte ^ dull).leading_zeros()),
        // Behind an open end there are zeros.
        None if !set && !end_given => value.len() as i64 * 8,
        None => -1,
    };
    call.reply.int(position);
}

/// The ways to combine strings.
#[derive(Clone, Copy, PartialEq)]
enum Combine {
    And,
    Or,
    Xor,
    Not,
}

fn bitop(call: &mut Call<'_>) {
    let args = call.args;
    let is = |name: &[u8]| args.get(0).eq_ignore_ascii_case(name);
    let combine = match () {
        () if is(b"and") => Combine::And,
        () if is(b"or") => Combine::Or,
        () if is(b"xor") => Combine::Xor,
        () if is(b"not") => Combine::Not,
        () => return call.reply.error(SYNTAX),
    };
    if combine == Combine::Not && args.len() != 3 {
        return call.reply.error("ERR BITOP NOT must be called with a single source key.");
    }
    let mut result: Vec<u8> = Vec::new();
    for index in 2..args.len() {
        let hash = call.tables.hasher().hash(args.get(index));
        let item = call.tables.get(call.table, hash, args.get(index));
        let value = item.map_or(&[][..], |item| item.value().string());
        if index == 2 {
            result.extend_from_slice(value);
            continue;
        }
        // The shorter one goes on in zeros.
        if result.len() < value.len() {
            result.resize(value.len(), 0);
        }
        let (common, rest) = result.split_at_mut(value.len());
        let pairs = common.iter_mut().zip(value);
        match combine {
            Combine::And => {
                pairs.for_each(|(byte, other)| *byte &= other);
                rest.fill(0);
            }
            Combine::Or => pairs.for_each(|(byte, other)| *byte |= other),
            Combine::Xor | Combine::Not => pairs.for_each(|(byte, other)| *byte ^= other),
        }
    }
    if combine == Combine::Not {
        result.iter_mut().for_each(|byte| *byte = !*byte);
    }
    let destination = args.get(1);
    let hash = call.tables.hasher().hash(destination);
    match result.is_empty() {
        true => drop(call.tables.remove(call.table, hash, destination)),
        false => {
            call.tables.put(call.table, hash, destination, &result, Expires::Never);
            call.tables.set_encoding(call.table, hash, destination, Encoding::Raw);
        }
    }
    call.reply.count(result.len());
}

/// An integer's width, up to 64 bits if it has a sign, to 63 if it has none.
#[derive(Clone, Copy)]
struct Width {
    signed: bool,
    bits: u32,
}

impl Width {
    fn parse(word: &[u8]) -> Option<Width> {
        let (signed, bits) = match word {
            [b'i', bits @ ..] => (true, bits),
            [b'u', bits @ ..] => (false, bits),
            _ => return None,
        };
        let bits = u32::try_from(parse_int(bits)?).ok()?;
        (1..=if signed { 64 } else { 63 }).contains(&bits).then_some(Width { signed, bits })
    }

    fn min(self) -> i128 {
        if self.signed { -(1 << (self.bits - 1)) } else { 0 }
    }

    fn max(self) -> i128 {
        if self.signed { (1 << (self.bits - 1)) - 1 } else { (1 << self.bits) - 1 }
    }

    /// The integer at a bit.
    fn read(self, value: &[u8], at: u64) -> i64 {
        let mut number = 0u64;
        for bit in at..at + u64::from(self.bits) {
            number = number << 1 | u64::from(bit_of(value, bit));
        }
        let unused = 64 - self.bits;
        if self.signed { (number << unused) as i64 >> unused } else { number as i64 }
    }

    fn write(self, value: &mut [u8], at: u64, number: i64) {
        for bit in 0..u64::from(self.bits) {
            put_bit(value, at + bit, number >> (u64::from(self.bits) - 1 - bit) & 1 == 1);
        }
    }

    /// The number as the width holds it, or nothing if it does not fit and is to fail then.
    fn fit(self, number: i128, overflow: Overflow) -> Option<i64> {
        if (self.min()..=self.max()).contains(&number) {
            return Some(number as i64);
        }
        let unused = 128 - self.bits;
        match overflow {
            Overflow::Wrap if self.signed => Some((number << unused >> unused) as i64),
            Overflow::Wrap => Some((number & self.max()) as i64),
            Overflow::Saturate => Some(number.clamp(self.min(), self.max()) as i64),
            Overflow::Fail => None,
        }
    }
}

/// What becomes of a number that does not fit.
#[derive(Clone, Copy, PartialEq)]
enum Overflow {
    Wrap,
    Saturate,
    Fail,
}

/// What a subcommand of `BITFIELD` does with the integer.
#[derive(Clone, Copy)]
enum Action {
    Get,
    Set(i64, Overflow),
    Add(i64, Overflow),
}

type Field = (Width, u64, Action);

fn fields(args: Args<'_>) -> Result<Vec<Field>, &'static str> {
    let mut fields = Vec::new();
    let mut overflow = Overflow::Wrap;
    let mut at = 1;
    while at < args.len() {
        let word = args.get(at);
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        let left = args.len() - at - 1;
        if is(b"overflow") && left >= 1 {
            let word = args.get(at + 1);
            overflow = match () {
                () if word.eq_ignore_ascii_case(b"wrap") => Overflow::Wrap,
                () if word.eq_ignore_ascii_case(b"sat") => Overflow::Saturate,
                () if word.eq_ignore_ascii_case(b"fail") => Overflow::Fail,
                () => return Err("ERR Invalid OVERFLOW type specified"),
            };
            at += 2;
            continue;
        }
        let (get, set, add) = (is(b"get"), is(b"set"), is(b"incrby"));
        if !(get && left >= 2 || (set || add) && left >= 3) {
            return Err(SYNTAX);
        }
        let width = Width::parse(args.get(at + 1)).ok_or(BAD_TYPE)?;
        let bit = offset(args.get(at + 2), Some(width.bits)).ok_or(BAD_OFFSET)?;
        if get {
            fields.push((width, bit, Action::Get));
            at += 3;
            continue;
        }
        let number = parse_int(args.get(at + 3)).ok_or(NOT_AN_INTEGER)?;
        let action =
            if set { Action::Set(number, overflow) } else { Action::Add(number, overflow) };
        fields.push((width, bit, action));
        at += 4;
    }
    Ok(fields)
}

fn bitfield_ro(call: &mut Call<'_>) {
    let fields = match fields(call.args) {
        Ok(fields) => fields,
        Err(error) => return call.reply.error(error),
    };
    if fields.iter().any(|(.., action)| !matches!(action, Action::Get)) {
        return call.reply.error("ERR BITFIELD_RO only supports the GET subcommand");
    }
    let item = call.tables.get(call.table, call.hash, call.args.get(0));
    let value = item.map_or(&[][..], |item| item.value().string());
    call.reply.array(fields.len());
    for (width, bit, _) in fields {
        call.reply.int(width.read(value, bit));
    }
}

/// The bytes up to the last bit that is written; 0 if none is.
fn reach_of(fields: &[Field]) -> usize {
    let writes = fields.iter().filter(|(.., action)| !matches!(action, Action::Get));
    let ends = writes.map(|(width, bit, _)| (bit + u64::from(width.bits)).div_ceil(8));
    ends.max().unwrap_or(0) as usize
}

fn bitfield(call: &mut Call<'_>) {
    let fields = match fields(call.args) {
        Ok(fields) => fields,
        Err(error) => return call.reply.error(error),
    };
    let reach = reach_of(&fields);
    if reach == 0 {
        return bitfield_ro(call);
    }
    let length = call.get().map_or(0, |item| item.value().string().len()).max(reach);
    let value = call.tables.value_mut(call.table, call.hash, call.args.get(0), length);
    call.reply.array(fields.len());
    for (width, bit, action) in fields {
        let before = width.read(value, bit);
        let (wanted, overflow) = match action {
            Action::Get => {
                call.reply.int(before);
                continue;
            }
            // An unsigned integer takes a negative number as its 64 bits.
            Action::Set(number, overflow) if !width.signed => (i128::from(number as u64), overflow),
            Action::Set(number, overflow) => (i128::from(number), overflow),
            Action::Add(number, overflow) => (i128::from(before) + i128::from(number), overflow),
        };
        let Some(after) = width.fit(wanted, overflow) else {
            call.reply.nil();
            continue;
        };
        width.write(value, bit, after);
        call.reply.int(if matches!(action, Action::Set(..)) { before } else { after });
    }
}
