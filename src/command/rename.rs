//! Commands that give a value another name or another table.

use super::argv::Argv;
use super::spec::{
    CommandGroup, DANGEROUS, DENYOOM, Doc, FAST, GOES_THROUGH, KEY, KEYSPACE, Keys, Merge, NO_KEYS,
    Over, STRETCHES, Spec, Split, WRITE, data, reaching,
};
use super::{Call, NOT_AN_INTEGER, SYNTAX};
use crate::batch::Args;
use crate::ids::TableIndex;
use crate::store::number::parse_int;
use crate::store::tables::{Encoding, Expires};

const fn doc(
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    syntax: &'static str,
) -> Doc {
    Doc { group: CommandGroup::Generic, since, complexity, summary, syntax }
}

const TWO_KEYS: Keys = Keys { first: 1, last: 2, step: 1 };
const EVERYWHERE: Split = Split::Everywhere { over: Over::Two, merge: Merge::Status, locked: true };

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "copy", arity: -3, flags: WRITE | DENYOOM | STRETCHES | GOES_THROUGH, keys: TWO_KEYS, run: reaching(57, copy, Split::Gather, copy_reach),
        doc: doc("6.2.0", "O(N) with N the length of the value", "Copies a key's value and expiry to another key.",
            "source destination [DB destination-db] [REPLACE]") },
    Spec { name: "move", arity: 3, flags: WRITE | FAST | STRETCHES, keys: KEY, run: reaching(58, move_to, Split::Gather, move_reach),
        doc: doc("1.0.0", "O(1)", "Moves a key to another table.", "key db") },
    Spec { name: "rename", arity: 3, flags: WRITE | STRETCHES, keys: TWO_KEYS, run: data(59, rename, Split::Gather),
        doc: doc("1.0.0", "O(N) with N the length of the value", "Renames a key, whatever the new name held.", "key newkey") },
    Spec { name: "renamenx", arity: 3, flags: WRITE | FAST | STRETCHES, keys: TWO_KEYS, run: data(60, renamenx, Split::Gather),
        doc: doc("1.0.0", "O(N) with N the length of the value", "Renames a key if the new name is free.", "key newkey") },
    Spec { name: "swapdb", arity: 3, flags: WRITE | FAST | KEYSPACE | DANGEROUS, keys: NO_KEYS, run: data(61, swapdb, EVERYWHERE),
        doc: doc("4.0.0", "O(N) with N the number of partitions", "Exchanges the keys of two tables at one moment.", "index1 index2") },
];

const NO_TABLE: &str = "ERR DB index is out of range";
const SAME: &str = "ERR source and destination objects are the same";

/// The number of a table as C's `int` takes it, or why it is none.
fn table_index(word: &[u8]) -> Result<TableIndex, &'static str> {
    let number = parse_int(word).ok_or(NOT_AN_INTEGER)?;
    if i32::try_from(number).is_err() {
        return Err("ERR value is out of range, value must between -2147483648 and 2147483647");
    }
    u8::try_from(number).ok().and_then(TableIndex::new).ok_or(NO_TABLE)
}

impl Call<'_> {
    /// Gives a key the value and expiry of another; whether that one exists.
    fn copy_item(&mut self, from: (TableIndex, &[u8]), to: (TableIndex, &[u8])) -> bool {
        let hasher = self.tables.hasher();
        let Some(item) = self.tables.get(from.0, hasher.hash(from.1), from.1) else { return false };
        let (value, expires, encoding) =
            (item.value().string().to_vec(), item.expires(), item.encoding());
        let expires = expires.map_or(Expires::Never, Expires::At);
        let hash = hasher.hash(to.1);
        self.tables.put(to.0, hash, to.1, &value, expires);
        if encoding != Encoding::Plain {
            self.tables.set_encoding(to.0, hash, to.1, encoding);
        }
        true
    }

    fn exists(&mut self, table: TableIndex, key: &[u8]) -> bool {
        let hash = self.tables.hasher().hash(key);
        self.tables.get(table, hash, key).is_some()
    }
}

fn rename(call: &mut Call<'_>) {
    let (from, to) = (call.args.get(0), call.args.get(1));
    if !call.exists(call.table, from) {
        return call.reply.error("ERR no such key");
    }
    if from != to {
        call.copy_item((call.table, from), (call.table, to));
        call.remove();
    }
    call.reply.ok();
}

fn renamenx(call: &mut Call<'_>) {
    let (from, to) = (call.args.get(0), call.args.get(1));
    if !call.exists(call.table, from) {
        return call.reply.error("ERR no such key");
    }
    let free = !call.exists(call.table, to);
    if free {
        call.copy_item((call.table, from), (call.table, to));
        call.remove();
    }
    call.reply.int(i64::from(free));
}

/// Where `COPY` copies to, and whether it replaces what is there.
fn copy_options(table: TableIndex, args: Args<'_>) -> Result<(TableIndex, bool), &'static str> {
    let (mut table, mut replace) = (table, false);
    let mut at = 2;
    while at < args.len() {
        let word = args.get(at);
        if word.eq_ignore_ascii_case(b"replace") {
            replace = true;
        } else if word.eq_ignore_ascii_case(b"db") && at + 1 < args.len() {
            table = table_index(args.get(at + 1))?;
            at += 1;
        } else {
            return Err(SYNTAX);
        }
        at += 1;
    }
    Ok((table, replace))
}

fn copy_reach(table: TableIndex, args: Args<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
    visit(table, args.get(0));
    if let Ok((destination, _)) = copy_options(table, args) {
        visit(destination, args.get(1));
    }
}

fn copy(call: &mut Call<'_>) {
    let (from, to) = (call.args.get(0), call.args.get(1));
    let (table, replace) = match copy_options(call.table, call.args) {
        Ok(options) => options,
        Err(error) => return call.reply.error(error),
    };
    if table == call.table && from == to {
        return call.reply.error(SAME);
    }
    let copied =
        (replace || !call.exists(table, to)) && call.copy_item((call.table, from), (table, to));
    call.reply.int(i64::from(copied));
}

fn move_reach(table: TableIndex, args: Args<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
    visit(table, args.get(0));
    if let Ok(destination) = table_index(args.get(1)) {
        visit(destination, args.get(0));
    }
}

fn move_to(call: &mut Call<'_>) {
    let key = call.args.get(0);
    let table = match table_index(call.args.get(1)) {
        Ok(table) if table == call.table => return call.reply.error(SAME),
        Ok(table) => table,
        Err(error) => return call.reply.error(error),
    };
    let moved = !call.exists(table, key) && call.copy_item((call.table, key), (table, key));
    if moved {
        call.remove();
    }
    call.reply.int(i64::from(moved));
}

/// The tables that a `SWAPDB` names, if both are tables.
pub(super) fn swapped(argv: Argv<'_>) -> Option<(TableIndex, TableIndex)> {
    Some((table_index(argv.get(1)).ok()?, table_index(argv.get(2)).ok()?))
}

fn swapdb(call: &mut Call<'_>) {
    let tables = [0, 1].map(|index| table_index(call.args.get(index)));
    // Both have to be numbers before either has to be one of a table.
    for (table, which) in tables.iter().zip(["first", "second"]) {
        if table.is_err_and(|error| error != NO_TABLE) {
            return call.reply.error(&format!("ERR invalid {which} DB index"));
        }
    }
    let [Ok(one), Ok(other)] = tables else { return call.reply.error(NO_TABLE) };
    call.tables.swap(one, other);
    call.reply.ok();
}
