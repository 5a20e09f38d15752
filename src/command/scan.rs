//! Commands that go through all keys of a table: `SCAN`, `KEYS`, `RANDOMKEY`.
//!
//! None of them locks anything, and none holds a partition up for longer than [`CELLS_MAX`] cells
//! take. A cursor of `SCAN` names the partition that goes on, plus one, in its upper sixteen bits,
//! and a place in that partition's table below ([`crate::store::table`] tells why it survives
//! growth); a scan goes from the last partition of the table to the first, so that a partition
//! names the next one without knowing how many there are. Partition 0 knows that none follows. The
//! first one of a later storage class does not: it names the last one of the class before, and a
//! cursor that leads out of the table is the end of its scan. `KEYS` is a scan that the session
//! drives to its end ([`Walk`]), `RANDOMKEY` a question to one partition after the other until one
//! has a key.

use super::argv::Argv;
use super::glob;
use super::reply::Reply;
use super::spec::{CommandGroup, DANGEROUS, Doc, NO_KEYS, READONLY, Spec, Split, data};
use super::{Call, NOT_AN_INTEGER, SYNTAX};
use crate::batch::{Batch, OpCode, OpHead};
use crate::cluster::slots::Partitions;
use crate::ids::{PartitionId, TableIndex};
use crate::store::number::parse_int;
use crate::store::table::CURSOR_BITS;
use crate::store::tables::KeyHasher;
use hashbrown::HashTable;

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::Generic, since, complexity, summary, syntax }
}

const KEYS: u16 = 54;
const RANDOMKEY: u16 = 55;
const SCAN: u16 = 56;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "keys", arity: 2, flags: READONLY | DANGEROUS, keys: NO_KEYS, run: data(KEYS, keys, Split::Walk),
        doc: doc("1.0.0", "O(N) with N the number of keys", "Lists the keys whose names match a pattern.", "pattern") },
    Spec { name: "randomkey", arity: 1, flags: READONLY, keys: NO_KEYS, run: data(RANDOMKEY, randomkey, Split::Walk),
        doc: doc("1.0.0", "O(1)", "Names some key.", "") },
    Spec { name: "scan", arity: -2, flags: READONLY, keys: NO_KEYS, run: data(SCAN, scan, Split::Scan),
        doc: doc("2.8.0", "O(1) a call, O(N) a whole scan with N the number of keys", "Lists the keys a few at a time.",
            "cursor [MATCH pattern] [COUNT count] [TYPE type]") },
];

/// Cells that a step visits at most, whatever `COUNT` says: about a millisecond.
const CELLS_MAX: usize = 16 << 10;
/// Cells that are visited before the time they took is looked at.
const CELLS_AT_ONCE: usize = 64;
/// Bytes of patterns and keys that a step compares, about: some milliseconds. The last
/// [`CELLS_AT_ONCE`] cells may make it more.
const COMPARED_MAX: usize = 4 << 20;
/// The longest pattern: one key's name is compared with it as a whole, whatever that takes.
const PATTERN_BYTES_MAX: usize = 1 << 10;
const LONG_PATTERN: &str = "ERR the pattern is longer than 1024 bytes";
/// Cells that a step visits when nothing is said.
const COUNT_USUAL: usize = 10;

/// A place in the scan of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ScanCursor {
    /// The partition's number plus one; 0 before the first one is known.
    turn: u64,
    /// The place in its table.
    place: u64,
}

impl ScanCursor {
    fn of(partition: PartitionId, place: u64) -> ScanCursor {
        ScanCursor { turn: u64::from(partition.0) + 1, place }
    }

    /// Where to go on when a partition's table says `place`: in the table, in the partition before
    /// this one, or nowhere.
    fn after(partition: PartitionId, place: u64) -> ScanCursor {
        match place {
            0 => ScanCursor { turn: u64::from(partition.0), place },
            place => ScanCursor::of(partition, place),
        }
    }

    /// Where it leads, if it is not the beginning.
    fn partition(self) -> Option<PartitionId> {
        // A turn has sixteen bits.
        self.turn.checked_sub(1).map(|partition| PartitionId(partition as u16))
    }

    fn encode(self) -> u64 {
        self.turn << CURSOR_BITS | self.place
    }

    /// Reads a cursor as C's `strtoul` does: up to a zero byte, and nothing at all is 0.
    fn parse(word: &[u8]) -> Option<ScanCursor> {
        let word = word.split(|byte| *byte == 0).next().unwrap_or_default();
        let (negative, digits) = match word {
            [b'-' | b'+'] => return None,
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        let mut number = 0u64;
        for digit in digits {
            let digit = u64::from(char::from(*digit).to_digit(10)?);
            number = number.checked_mul(10)?.checked_add(digit)?;
        }
        let number = if negative { number.wrapping_neg() } else { number };
        Some(ScanCursor { turn: number >> CURSOR_BITS, place: number & ((1 << CURSOR_BITS) - 1) })
    }
}

/// The partition of these that a `SCAN` goes on in. A cursor that leads to none of them, or none at
/// all, is sent somewhere, to be answered there.
pub(super) fn route(argv: Argv<'_>, partitions: Partitions) -> PartitionId {
    let cursor = ScanCursor::parse(argv.get(1)).unwrap_or(ScanCursor { turn: 0, place: 0 });
    match cursor.partition() {
        None => partitions.last(),
        Some(partition) if partitions.contains(partition) => partition,
        Some(_) => partitions.first(),
    }
}

/// The options of `SCAN`.
struct ScanOptions<'a> {
    pattern: Option<&'a [u8]>,
    count: usize,
    /// Whether keys of the type asked for exist at all.
    strings: bool,
}

fn options<'a>(call: &Call<'a>) -> Result<ScanOptions<'a>, &'static str> {
    let args = call.args;
    let mut options = ScanOptions { pattern: None, count: COUNT_USUAL, strings: true };
    for at in (1..args.len()).step_by(2) {
        let is = |name: &[u8]| args.get(at).eq_ignore_ascii_case(name) && at + 1 < args.len();
        let word = args.get(at + 1);
        match () {
            () if is(b"count") => {
                let count = parse_int(word).ok_or(NOT_AN_INTEGER)?;
                options.count =
                    usize::try_from(count).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            }
            () if is(b"match") => options.pattern = Some(pattern(word)?),
            () if is(b"type") => options.strings = word.eq_ignore_ascii_case(b"string"),
            () => return Err(SYNTAX),
        }
    }
    Ok(options)
}

fn pattern(word: &[u8]) -> Result<&[u8], &'static str> {
    if word.len() > PATTERN_BYTES_MAX { Err(LONG_PATTERN) } else { Ok(word) }
}

fn scan(call: &mut Call<'_>) {
    let Some(cursor) = ScanCursor::parse(call.args.get(0)) else {
        return call.reply.error("ERR invalid cursor");
    };
    let options = match options(call) {
        Ok(options) => options,
        Err(error) => return call.reply.error(error),
    };
    if cursor.partition().is_some_and(|partition| partition != call.partition) {
        call.reply.array(2);
        call.reply.bulk(b"0");
        return call.reply.array(0);
    }
    let mut found = 0;
    let mut elements = Vec::new();
    let mut element = Reply::new(&mut elements, false);
    let (mut place, mut cells) = (cursor.place, options.count.min(CELLS_MAX));
    let mut compared = 0;
    loop {
        let few = cells.min(CELLS_AT_ONCE);
        place = call.tables.scan(call.table, place, few, &mut |item| {
            let wanted = options.pattern.is_none_or(|pattern| {
                glob::matches_counted(pattern, item.key(), false, &mut compared)
            });
            if wanted && options.strings {
                element.bulk(item.key());
                found += 1;
            }
        });
        cells -= few;
        if place == 0 || cells == 0 || compared > COMPARED_MAX {
            break;
        }
    }
    let next = ScanCursor::after(call.partition, place).encode();
    call.reply.array(2);
    call.reply.bulk(next.to_string().as_bytes());
    call.reply.array(found);
    call.reply.raw(&elements);
}

/// All matching keys of one partition.
fn keys(call: &mut Call<'_>) {
    let pattern = match pattern(call.args.get(0)) {
        Ok(pattern) => pattern,
        Err(error) => return call.reply.error(error),
    };
    let (mut found, mut elements, mut place) = (0, Vec::new(), 0);
    let mut element = Reply::new(&mut elements, false);
    loop {
        place = call.tables.scan(call.table, place, usize::MAX, &mut |item| {
            if glob::matches(pattern, item.key(), false) {
                element.bulk(item.key());
                found += 1;
            }
        });
        if place == 0 {
            break;
        }
    }
    call.reply.array(found);
    call.reply.raw(&elements);
}

/// Some key of one partition, by the 64 random bits that the session threw for it.
fn randomkey(call: &mut Call<'_>) {
    let dice = parse_int(call.args.get(0)).unwrap_or_default() as u64;
    let picked = call.tables.pick(call.table, dice);
    call.reply.bulk_or_nil(picked.map(|item| item.key()));
}

/// A command that goes from partition to partition, a step at a time. Between two steps its driver
/// may serve others.
#[derive(Debug)]
pub struct Walk {
    table: TableIndex,
    partitions: Partitions,
    errand: Errand,
}

#[derive(Debug)]
enum Errand {
    /// `KEYS`: a scan through all partitions.
    Keys {
        pattern: Vec<u8>,
        next: Option<ScanCursor>,
        /// The encoded keys found so far, a page a step: in one piece they would be copied whenever
        /// it grows, and at the end.
        pages: Vec<Vec<u8>>,
        count: usize,
        /// The first page of the partition under way, and what is known of its keys.
        first: usize,
        met: Met,
        failed: Option<Vec<u8>>,
    },
    /// `RANDOMKEY`: partitions from a random one on.
    Random { dice: u64, asked: u16, answer: Option<Vec<u8>> },
}

impl Walk {
    /// A walk for a request whose row says [`Split::Walk`].
    pub(super) fn new(
        code: OpCode,
        argv: Argv<'_>,
        table: TableIndex,
        partitions: Partitions,
        hasher: KeyHasher,
    ) -> Walk {
        let errand = match code.0 {
            RANDOMKEY => Errand::Random { dice: 0, asked: 0, answer: None },
            _ => Errand::Keys {
                pattern: argv.get(1).to_vec(),
                next: Some(ScanCursor::of(partitions.last(), 0)),
                pages: Vec::new(),
                count: 0,
                first: 0,
                met: Met::new(hasher),
                failed: None,
            },
        };
        Walk { table, partitions, errand }
    }

    /// Throws the dice, for those walks that need them: 64 random bits.
    pub fn throw(&mut self, bits: u64) {
        if let Errand::Random { dice, .. } = &mut self.errand {
            *dice = bits;
        }
    }

    /// The operation of the next step, onto a batch; nothing when the walk is at its end.
    pub fn step(&self, batch: &mut Batch) -> Option<PartitionId> {
        let head = |code: u16, partition: PartitionId| OpHead {
            code: OpCode(code),
            partition,
            table: self.table,
            resp3: false,
            hash: 0,
        };
        match &self.errand {
            Errand::Keys { pattern, next, .. } => {
                let cursor = (*next)?;
                let partition = cursor.partition()?;
                let (at, cells) = (cursor.encode().to_string(), CELLS_MAX.to_string());
                let args = [at.as_bytes(), b"MATCH", pattern, b"COUNT", cells.as_bytes()];
                batch.push(head(SCAN, partition), args);
                Some(partition)
            }
            Errand::Random { dice, asked, answer } => {
                let count = self.partitions.count();
                if answer.is_some() || *asked == count {
                    return None;
                }
                let partition = self.partitions.at(dice % u64::from(count) + u64::from(*asked));
                let args = [(*dice as i64).to_string()];
                batch.push(head(RANDOMKEY, partition), args.iter().map(String::as_bytes));
                Some(partition)
            }
        }
    }

    /// Takes the reply to a step.
    pub fn take(&mut self, reply: &[u8]) {
        match &mut self.errand {
            Errand::Random { asked, answer, .. } => {
                *asked += 1;
                if reply != b"$-1\r\n" {
                    *answer = Some(reply.to_vec());
                }
            }
            Errand::Keys { next, pages, count, first, met, failed, .. } => {
                let Some((cursor, more, elements)) = page(reply) else {
                    *next = None;
                    *failed = Some(match reply {
                        [b'-', ..] => reply.to_vec(),
                        _ => b"-ERR a partition's reply is missing or damaged\r\n".to_vec(),
                    });
                    return;
                };
                let turn = next.map_or(0, |cursor| cursor.turn);
                // A cursor only ever goes down: whatever a peer answers, the walk ends.
                let last = u64::from(self.partitions.first().0);
                *next = Some(cursor).filter(|next| next.turn > last && next.turn <= turn);
                let goes_on = cursor.turn == turn;
                if goes_on || pages.len() > *first {
                    *count += met.add_page(pages, elements);
                } else {
                    pages.push(elements.to_vec());
                    *count += more;
                }
                if !goes_on {
                    *first = pages.len();
                    met.clear();
                }
            }
        }
    }

    /// Takes out what follows the reply of [`Walk::finish`], in pages that may be written one by
    /// one.
    pub fn take_pages(&mut self) -> Vec<Vec<u8>> {
        match &mut self.errand {
            Errand::Keys { pages, failed: None, .. } => std::mem::take(pages),
            _ => Vec::new(),
        }
    }

    /// Answers the request, but for pages that were taken out.
    pub fn finish(self, reply: &mut Reply<'_>) {
        match self.errand {
            Errand::Random { answer: Some(answer), .. } => reply.raw(&answer),
            Errand::Random { answer: None, .. } => reply.nil(),
            Errand::Keys { failed: Some(failed), .. } => reply.raw(&failed),
            Errand::Keys { pages, count, .. } => {
                reply.array(count);
                pages.iter().for_each(|page| reply.raw(page));
            }
        }
    }
}

/// The parts of a reply to `SCAN`: cursor, number of keys, encoded keys.
fn page(reply: &[u8]) -> Option<(ScanCursor, usize, &[u8])> {
    let (cursor, rest) = bulk(reply.strip_prefix(b"*2\r\n")?)?;
    let rest = rest.strip_prefix(b"*")?;
    let end = memchr::memchr(b'\r', rest)?;
    let count = usize::try_from(parse_int(&rest[..end])?).ok()?;
    Some((ScanCursor::parse(cursor)?, count, rest.get(end + 2..)?))
}

/// An encoded string and what follows it.
fn bulk(reply: &[u8]) -> Option<(&[u8], &[u8])> {
    let reply = reply.strip_prefix(b"$")?;
    let end = memchr::memchr(b'\r', reply)?;
    let length = usize::try_from(parse_int(&reply[..end])?).ok()?;
    let value = reply.get(end + 2..)?.get(..length)?;
    Some((value, reply.get(end + 4 + length..)?))
}

/// How many parts [`Met`] has: each is moved by itself when it grows, so that no step takes long.
const PARTS: usize = 64;

/// The keys of the partition that a walk is in. A scan of several steps may meet a key twice when
/// the table grows in between; all are compared as they come, for sorting them at the end would
/// hold up the other clients that are served here.
#[derive(Debug)]
struct Met {
    hasher: KeyHasher,
    /// By hash: the page and the place in it.
    parts: Vec<HashTable<(u64, u32, u32)>>,
}

impl Met {
    fn new(hasher: KeyHasher) -> Met {
        Met { hasher, parts: Vec::new() }
    }

    fn clear(&mut self) {
        self.parts.iter_mut().for_each(HashTable::clear);
    }

    /// Adds those of a step's keys that were not met before, as a page; returns how many.
    fn add_page(&mut self, pages: &mut Vec<Vec<u8>>, elements: &[u8]) -> usize {
        self.parts.resize_with(PARTS, HashTable::new);
        let (mut page, mut count, number) = (Vec::with_capacity(elements.len()), 0, pages.len());
        let mut rest = elements;
        while let Some((key, behind)) = bulk(rest) {
            let element = &rest[..rest.len() - behind.len()];
            rest = behind;
            let hash = self.hasher.hash(key);
            let part = &mut self.parts[(hash >> 32) as usize % PARTS];
            let same = |(other, page_of, at): &(u64, u32, u32)| {
                let held = pages.get(*page_of as usize).unwrap_or(&page);
                *other == hash && held[*at as usize..].starts_with(element)
            };
            if part.find(hash, same).is_none() {
                let entry = (hash, number as u32, page.len() as u32);
                part.insert_unique(hash, entry, |(hash, ..)| *hash);
                page.extend_from_slice(element);
                count += 1;
            }
        }
        pages.push(page);
        count
    }
}

const _: () = assert!(CURSOR_BITS == 48, "a partition's number fits above a table's cursor");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::slots::{Atlas, Ring};
    use crate::command::argv::ArgvBuf;

    #[test]
    fn cursors_are_read_as_redis_reads_them() {
        let read = |word: &[u8]| ScanCursor::parse(word).map(ScanCursor::encode);
        for (word, cursor) in [(&b"0"[..], 0), (b"17", 17), (b"+5", 5), (b"-0", 0), (b"", 0)] {
            assert_eq!(read(word), Some(cursor), "{}", word.escape_ascii());
        }
        assert_eq!(read(b"-1"), Some(u64::MAX));
        assert_eq!(read(b"\0rubbish"), Some(0));
        assert_eq!(read(b"12\0rubbish"), Some(12));
        for word in [&b"+"[..], b"-", b"+-5", b" 5", b"5 ", b"0x10", b"x", b"18446744073709551616"]
        {
            assert_eq!(read(word), None, "{}", word.escape_ascii());
        }
    }

    /// The reply to a step that found these keys.
    fn found(next: ScanCursor, keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reply = Reply::new(&mut out, false);
        reply.array(2);
        reply.bulk(next.encode().to_string().as_bytes());
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key.as_bytes()));
        out
    }

    #[test]
    fn a_key_that_several_steps_meet_is_named_once() {
        let atlas = Atlas::new(Ring::new(2), |_| 0);
        let table = TableIndex::default();
        let partitions = atlas.partitions_of(table);
        let argv_buf: ArgvBuf = ["keys", "*"].iter().collect();
        let hasher = KeyHasher::new(3);
        let mut walk = Walk::new(OpCode(KEYS), argv_buf.argv(), table, partitions, hasher);
        let steps = [
            (1, 5, &["a", "b", "$1"][..]),
            (1, 9, &["b", "c"]),
            (1, 0, &["a", "", "c", "ab", "d"]),
            (0, 3, &["a", "e"]),
            (0, 0, &["e", "f"]),
        ];
        for (partition, place, keys) in steps {
            let mut batch = Batch::new();
            assert_eq!(walk.step(&mut batch), Some(PartitionId(partition)));
            walk.take(&found(ScanCursor::after(PartitionId(partition), place), keys));
        }
        assert_eq!(walk.step(&mut Batch::new()), None);
        let pages = walk.take_pages();
        let mut out = Vec::new();
        walk.finish(&mut Reply::new(&mut out, false));
        pages.iter().for_each(|page| out.extend_from_slice(page));
        let mut expected = Vec::new();
        let mut reply = Reply::new(&mut expected, false);
        let keys = ["a", "b", "$1", "c", "", "ab", "d", "a", "e", "f"];
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key.as_bytes()));
        assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}
