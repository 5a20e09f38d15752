//! `LCS`: the longest common subsequence of two strings, by the textbook's table of lengths
//! (Cormen et al., section 15.4) and a walk back through it.

use super::spec::{
    ANSWERS_VALUES, CommandGroup, Doc, GOES_THROUGH, Keys, READONLY, Spec, Split, data,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX};
use crate::store::number::parse_int;

/// Entries that the table of lengths may have: 128 MiB, about a tenth of a second.
const CELLS_MAX: usize = 32 << 20;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "lcs", arity: -3, flags: READONLY | ANSWERS_VALUES | GOES_THROUGH, keys: Keys { first: 1, last: 2, step: 1 }, run: data(22, lcs, Split::Gather),
        doc: Doc { group: CommandGroup::String, since: "7.0.0", complexity: "O(N*M) with N and M the lengths of the strings",
            summary: "Finds the longest common subsequence of two strings.",
            syntax: "key1 key2 [LEN] [IDX] [MINMATCHLEN min-match-len] [WITHMATCHLEN]" } },
];

/// What is asked of the subsequence.
#[derive(Default)]
struct LcsOptions {
    length: bool,
    matches: bool,
    match_lengths: bool,
    match_length_min: i64,
}

fn options(call: &Call<'_>) -> Result<LcsOptions, &'static str> {
    let args = call.args;
    let mut options = LcsOptions::default();
    let mut at = 2;
    while at < args.len() {
        let is = |name: &[u8]| args.get(at).eq_ignore_ascii_case(name);
        match () {
            () if is(b"idx") => options.matches = true,
            () if is(b"len") => options.length = true,
            () if is(b"withmatchlen") => options.match_lengths = true,
            () if is(b"minmatchlen") && at + 1 < args.len() => {
                let min = parse_int(args.get(at + 1)).ok_or(NOT_AN_INTEGER)?;
                options.match_length_min = min.max(0);
                at += 1;
            }
            () => return Err(SYNTAX),
        }
        at += 1;
    }
    if options.matches && options.length {
        return Err("ERR If you want both the length and indexes, please just use IDX.");
    }
    Ok(options)
}

/// The lengths of the longest common subsequences of all pairs of beginnings.
struct Lengths {
    cells: Vec<u32>,
    columns: usize,
}

impl Lengths {
    fn new(a: &[u8], b: &[u8]) -> Lengths {
        let columns = b.len() + 1;
        let mut cells = vec![0; (a.len() + 1) * columns];
        for (i, byte) in a.iter().enumerate() {
            let (above, row) = cells[i * columns..].split_at_mut(columns);
            for (j, other) in b.iter().enumerate() {
                row[j + 1] = if byte == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
            }
        }
        Lengths { cells, columns }
    }

    fn at(&self, i: usize, j: usize) -> u32 {
        self.cells[i * self.columns + j]
    }
}

/// Bytes that the strings have in common one after the other: from where in each, and how many.
struct Match {
    a: usize,
    b: usize,
    length: usize,
}

fn lcs(call: &mut Call<'_>) {
    let options = match options(call) {
        Ok(options) => options,
        Err(error) => return call.reply.error(error),
    };
    let args = call.args;
    let mut strings = [Vec::new(), Vec::new()];
    for (index, string) in strings.iter_mut().enumerate() {
        let hash = call.hash_of(index);
        if let Some(item) = call.tables.get(call.table, hash, args.get(index)) {
            string.extend_from_slice(item.value().string());
        }
    }
    let [a, b] = &strings;
    if (a.len() + 1).saturating_mul(b.len() + 1) > CELLS_MAX {
        let text = "ERR Insufficient memory, failed allocating transient memory for LCS";
        return call.reply.error(text);
    }
    let lengths = Lengths::new(a, b);
    let length = lengths.at(a.len(), b.len());
    if options.length {
        return call.reply.int(i64::from(length));
    }
    let (common, matches) = walk(a, b, &lengths);
    if !options.matches {
        return call.reply.bulk(&common);
    }
    let min = options.match_length_min as usize;
    let shown: Vec<Match> = matches.into_iter().filter(|found| found.length >= min).collect();
    let reply = &mut call.reply;
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(shown.len());
    for Match { a, b, length } in shown {
        reply.array(2 + usize::from(options.match_lengths));
        for start in [a, b] {
            reply.array(2);
            reply.count(start);
            reply.count(start + length - 1);
        }
        if options.match_lengths {
            reply.count(length);
        }
    }
    reply.bulk(b"len");
    reply.int(i64::from(length));
}

/// The subsequence, and the runs it is made of from the last to the first.
fn walk(a: &[u8], b: &[u8], lengths: &Lengths) -> (Vec<u8>, Vec<Match>) {
    let (mut i, mut j) = (a.len(), b.len());
    let mut common = Vec::new();
    let mut matches: Vec<Match> = Vec::new();
    let mut within = false;
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            common.push(a[i]);
            match matches.last_mut() {
                Some(last) if within => *last = Match { a: i, b: j, length: last.length + 1 },
                _ => matches.push(Match { a: i, b: j, length: 1 }),
            }
            within = true;
        } else {
            within = false;
            match lengths.at(i - 1, j) > lengths.at(i, j - 1) {
                true => i -= 1,
                false => j -= 1,
            }
        }
    }
    common.reverse();
    (common, matches)
}
