//! `SORT` on what exists. There are no lists, sets or sorted sets: an absent key sorts to nothing,
//! and a string is of the wrong type.

use super::spec::{
    CommandGroup, DANGEROUS, DENYOOM, Doc, KEY, MOVABLE_KEYS, READONLY, SORTS, Spec, Split, WRITE,
    data, reaching,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX, WRONG_TYPE};
use crate::batch::Args;
use crate::ids::TableIndex;
use crate::store::number::parse_int;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Generic, since, complexity: "O(1)", summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "sort", arity: -2, flags: WRITE | DENYOOM | DANGEROUS | MOVABLE_KEYS | SORTS, keys: KEY, run: reaching(66, sort, Split::Gather, reach),
        doc: doc("1.0.0", "Sorts a list, a set or a sorted set.",
            "key [BY pattern] [LIMIT offset count] [GET pattern [GET pattern ...]] [ASC | DESC] [ALPHA] [STORE destination]") },
    Spec { name: "sort_ro", arity: -2, flags: READONLY | DANGEROUS | MOVABLE_KEYS | SORTS, keys: KEY, run: data(67, sort_ro, Split::Single),
        doc: doc("7.0.0", "Sorts a list, a set or a sorted set.",
            "key [BY pattern] [LIMIT offset count] [GET pattern [GET pattern ...]] [ASC | DESC] [ALPHA]") },
];

/// The key to store under, if there is one; or what is wrong with the options.
fn destination<'a>(args: Args<'a>, store: bool) -> Result<Option<&'a [u8]>, &'static str> {
    let mut destination = None;
    let mut at = 1;
    while at < args.len() {
        let is = |name: &[u8]| args.get(at).eq_ignore_ascii_case(name);
        let left = args.len() - at - 1;
        at += match () {
            () if is(b"asc") || is(b"desc") || is(b"alpha") => 1,
            () if is(b"limit") && left >= 2 => {
                let limits = (parse_int(args.get(at + 1)), parse_int(args.get(at + 2)));
                let (Some(_), Some(_)) = limits else { return Err(NOT_AN_INTEGER) };
                3
            }
            () if store && is(b"store") && left >= 1 => {
                destination = Some(args.get(at + 1));
                2
            }
            () if (is(b"by") || is(b"get")) && left >= 1 => 2,
            () => return Err(SYNTAX),
        };
    }
    Ok(destination)
}

fn reach(table: TableIndex, args: Args<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
    visit(table, args.get(0));
    if let Ok(Some(destination)) = destination(args, true) {
        visit(table, destination);
    }
}

fn sort(call: &mut Call<'_>) {
    sort_into(call, true);
}

fn sort_ro(call: &mut Call<'_>) {
    sort_into(call, false);
}

fn sort_into(call: &mut Call<'_>, store: bool) {
    let destination = match destination(call.args, store) {
        Ok(destination) => destination,
        Err(error) => return call.reply.error(error),
    };
    if call.get().is_some() {
        return call.reply.error(WRONG_TYPE);
    }
    let Some(destination) = destination else { return call.reply.array(0) };
    let hash = call.tables.hasher().hash(destination);
    call.tables.remove(call.table, hash, destination);
    call.reply.int(0);
}
