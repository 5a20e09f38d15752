//! The tests choose the hashes: a key begins with its own.

use super::segment::CELLS_MIN;
use super::*;
use crate::ids::Millis;
use goldenscript::{ArgumentConsumer, Context};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

/// A key of this hash.
fn key(hash: u64, serial: u32) -> Vec<u8> {
    [&hash.to_be_bytes()[..], &serial.to_be_bytes()].concat()
}

fn rehash(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[..8].try_into().unwrap())
}

fn put(table: &mut Table, key: &[u8]) {
    if table.find(rehash(key), key).is_none() {
        let place = table.insert(rehash(key), Item::new(key, b"value", None), rehash);
        assert_eq!(table.at(place).key(), key);
    }
}

fn remove(table: &mut Table, key: &[u8]) -> bool {
    let found = table.find(rehash(key), key);
    found.map(|place| table.remove(place)).is_some()
}

impl Table {
    /// Asserts what must hold of a table whose keys begin with their hash.
    fn check(&self) {
        let (mut items, mut bytes, mut volatile, mut cells) = (0, 0, 0, 0);
        assert_eq!(self.directory.len(), 1 << self.depth);
        for (index, segment) in self.segments.iter().enumerate() {
            let depth = u32::from(segment.depth);
            let mut prefixes = BTreeSet::new();
            items += segment.check(|tag, item| {
                let hash = rehash(item.key());
                assert_eq!(tag, hash as u16);
                assert_eq!(self.route(hash), index, "an item in a segment of others");
                bytes += item.bytes();
                volatile += usize::from(item.expires().is_some());
                prefixes.insert(hash >> 1 >> (63 - depth));
            });
            assert!(prefixes.len() <= 1);
            cells += segment.capacity();
            let run = self.directory.iter().filter(|entry| **entry == index as u32).count();
            assert_eq!(run, 1 << (self.depth - depth));
        }
        assert!(self.directory.len() <= self.segments.len() * DIRECTORY_SLACK);
        assert_eq!(
            (items, bytes, volatile, cells),
            (self.len, self.item_bytes, self.volatile, self.cells)
        );
    }

    fn keys(&self, budget: usize) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut cursor = 0;
        loop {
            cursor = self.scan(cursor, budget, &mut |item| keys.push(item.key().to_vec()));
            if cursor == 0 {
                return keys;
            }
            assert!(cursor < 1 << CURSOR_BITS);
        }
    }
}

/// Hashes that are good, and hashes as an enemy would choose them.
fn hash(kind: usize, random: u64) -> u64 {
    match kind {
        // Good ones.
        0 => random,
        // All the same.
        1 => 0xdead_beef_0bad_cafe,
        // The same top bits: one segment that cannot be split.
        2 => 0xaaaa_aaaa_0000_0000 | random >> 32,
        // The same tag: one home in each segment.
        3 => random | 0xffff,
        // A run of homes around the end of each segment.
        4 => random << 32 | 0xffc0 | random >> 58 & 0x3f,
        // Few in all.
        5 => random & 0x8000_0000_0000_8001,
        _ => unreachable!(),
    }
}
const KINDS: usize = 6;

fn steps(many: usize) -> usize {
    if cfg!(miri) { many / 50 } else { many }
}

#[test]
fn behaves_as_a_set_whatever_the_hashes() {
    for kind in 0..KINDS {
        let mut rng = ChaCha8Rng::seed_from_u64(kind as u64);
        let mut table = Table::new();
        let mut model = BTreeSet::new();
        // Colliding keys are slow to find, so fewer of them.
        let most = if matches!(kind, 1 | 3 | 5) { 1500 } else { 6000 };
        for step in 0..steps(most * 6) {
            // Growing, then shrinking.
            let growing = step < steps(most * 6) / 2;
            let fresh = key(hash(kind, rng.next_u64()), rng.next_u32() % 4000);
            if rng.next_u32() % 10 < if growing { 8 } else { 1 } {
                put(&mut table, &fresh);
                model.insert(fresh);
            } else {
                // The one at or after a random one; sometimes none.
                let old = model.range(fresh.clone()..).next().cloned().unwrap_or(fresh);
                assert_eq!(remove(&mut table, &old), model.remove(&old));
            }
            if step % 997 == 0 {
                table.check();
            }
        }
        table.check();
        assert_eq!(table.len(), model.len());
        for key in &model {
            assert!(table.find(rehash(key), key).is_some());
        }
        for budget in [1, 100, usize::MAX] {
            let keys = table.keys(budget);
            assert_eq!(keys.len(), model.len(), "nothing changes, so nothing is met twice");
            assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), model);
        }
        for key in &model {
            assert!(remove(&mut table, key));
        }
        table.check();
        assert!(table.is_empty());
        assert!(table.cells <= table.segments.len() * CELLS_MIN * 2);
    }
}

#[test]
fn a_scan_meets_whatever_is_there_throughout() {
    for seed in 0..steps(150).max(3) as u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kind = rng.next_u64() as usize % KINDS;
        let slow = matches!(kind, 1 | 3 | 5);
        let bulk = steps(if slow { 300 } else { 3000 }).max(1) as u64;
        let mut table = Table::new();
        let fresh = |rng: &mut ChaCha8Rng| key(hash(kind, rng.next_u64()), rng.next_u32());
        // How full the table is when the scan begins decides what growth it meets.
        let mut stay = BTreeSet::new();
        for _ in 0..rng.next_u64() % bulk + 1 {
            stay.insert(fresh(&mut rng));
        }
        stay.iter().for_each(|key| put(&mut table, key));
        let mut others: Vec<Vec<u8>> = Vec::new();
        let mut met = BTreeSet::new();
        let mut cursor = 0;
        loop {
            let budget = 1 << (rng.next_u32() % 11);
            cursor = table.scan(cursor, budget, &mut |item| {
                met.insert(item.key().to_vec());
            });
            if cursor == 0 {
                break;
            }
            match rng.next_u32() % 8 {
                0 => {
                    for _ in 0..rng.next_u64() % bulk {
                        let key = fresh(&mut rng);
                        if !stay.contains(&key) {
                            put(&mut table, &key);
                            others.push(key);
                        }
                    }
                }
                1 => {
                    for key in others.drain(..) {
                        remove(&mut table, &key);
                    }
                }
                2 => {
                    for _ in 0..others.len() / 2 {
                        let at = rng.next_u64() as usize % others.len();
                        remove(&mut table, &others.swap_remove(at));
                    }
                }
                _ => {}
            }
        }
        table.check();
        let missed = stay.difference(&met).count();
        assert_eq!(missed, 0, "seed {seed}, hashes of kind {kind}: {missed} of {}", stay.len());
    }
}

#[test]
fn a_cursor_holds_on_a_replica_that_has_split_otherwise() {
    for seed in 0..steps(60).max(2) as u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let many = steps(rng.next_u64() as usize % 8000 + 1);
        let keys: BTreeSet<_> =
            (0..many).map(|_| key(hash(0, rng.next_u64()), rng.next_u32())).collect();
        // One has been greater before; both hold the same.
        let (mut lean, mut split) = (Table::new(), Table::new());
        let passing: Vec<_> =
            (0..steps(20_000)).map(|_| key(hash(0, rng.next_u64()), rng.next_u32())).collect();
        passing.iter().for_each(|key| put(&mut split, key));
        keys.iter().for_each(|key| put(&mut lean, key));
        keys.iter().rev().for_each(|key| put(&mut split, key));
        for key in &passing {
            remove(&mut split, key);
        }
        let replicas = [lean, split];

        let mut met = BTreeSet::new();
        let (mut cursor, mut leader, mut changes) = (0, 0, 0);
        loop {
            let budget = rng.next_u32() as usize % 300 + 1;
            cursor = replicas[leader].scan(cursor, budget, &mut |item| {
                met.insert(item.key().to_vec());
            });
            if cursor == 0 {
                break;
            }
            // A leader that changes at every call could send the scan back at every call.
            if changes < 20 && rng.next_u32().is_multiple_of(4) {
                (leader, changes) = (1 - leader, changes + 1);
            }
        }
        assert_eq!(met, keys, "seed {seed}");
    }
}

#[test]
fn any_cursor_is_as_good_as_another() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut table = Table::new();
    for _ in 0..steps(5000) {
        put(&mut table, &key(rng.next_u64(), 0));
    }
    for step in 0..steps(20_000) {
        let cursor = match step % 4 {
            0 => rng.next_u64(),
            1 => rng.next_u64() >> 16,
            2 => rng.next_u64() & 0xffff,
            _ => u64::MAX << (rng.next_u32() % 64),
        };
        assert!(table.scan(cursor, 1, &mut |_| {}) < 1 << CURSOR_BITS);
        let Cursor { prefix, depth, .. } = Cursor::decode(cursor);
        assert!(depth <= PREFIX_BITS && prefix < 1 << PREFIX_BITS);
        let back = Cursor::decode(cursor).encode();
        assert_eq!(Cursor::decode(back), Cursor::decode(cursor));
    }
}

#[test]
fn a_pick_is_fair_and_finds_the_only_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut table = Table::new();
    assert!(table.pick(rng.next_u64(), |_| true).is_none());
    let keys: Vec<_> = (0..steps(2000)).map(|_| key(rng.next_u64(), 0)).collect();
    keys.iter().for_each(|key| put(&mut table, key));
    for dice in (0..30).map(|_| rng.next_u64()) {
        let only = table.pick(dice, |item| item.key() == keys[3]);
        assert_eq!(only.map(|item| item.key().to_vec()), Some(keys[3].clone()));
        assert!(table.pick(dice, |_| false).is_none());
    }
    let mut picked = BTreeMap::new();
    for _ in 0..keys.len() * 20 {
        let item = table.pick(rng.next_u64(), |_| true).unwrap();
        *picked.entry(item.key().to_vec()).or_insert(0) += 1;
    }
    // Twenty each on average, in proportion to the empty cells before an item.
    assert!(picked.len() > keys.len() * 8 / 10, "{} of {}", picked.len(), keys.len());
    assert!(picked.values().all(|times| *times < 400), "{:?}", picked.values().max());
}

#[test]
fn growth_is_by_small_steps_and_memory_follows_the_items() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut table = Table::new();
    for n in 0..steps(200_000) {
        put(&mut table, &key(rng.next_u64(), 0));
        if n % 20_000 == 19_999 {
            let load = table.len as f64 / table.cells as f64;
            assert!((0.45..0.8).contains(&load), "load {load} with {n} items");
        }
    }
    table.check();
    assert!(table.segments.iter().all(|segment| segment.capacity() <= CELLS_SPLIT));
    assert!(table.directory.len() <= table.segments.len() * 3);
}

#[test]
fn a_flood_of_one_prefix_grows_a_segment_past_all_tags() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut table = Table::new();
    let keys: BTreeSet<_> =
        (0..steps(60_000)).map(|_| key(hash(2, rng.next_u64()), rng.next_u32())).collect();
    keys.iter().for_each(|key| put(&mut table, key));
    table.check();
    if !cfg!(miri) {
        assert!(table.segments.iter().any(|segment| segment.capacity() > 1 << TAG_BITS));
    }
    assert!(table.directory.len() <= 64, "the directory must not follow a flood");
    assert_eq!(table.keys(10).into_iter().collect::<BTreeSet<_>>(), keys);
    keys.iter().for_each(|key| assert!(remove(&mut table, key)));
    table.check();
    assert!(table.cells < 4096);
}

/// `insert [N] [top=BITS] [hash=HEX] [len=BYTES] [expires=MS]` inserts items whose hashes begin
/// with these bits, the tags spread evenly, or that all have this hash. `remove [N]` removes those
/// inserted last. `shape` tells the directory and its segments; `scan [cursor=C] [budget=B]` a
/// page of the scan.
#[derive(Default)]
struct Runner {
    table: Table,
    keys: Vec<Vec<u8>>,
    spread: u64,
    cursor: u64,
}

fn number<T: FromStr>(
    args: &mut ArgumentConsumer<'_>,
    name: &str,
    default: T,
) -> Result<T, Box<dyn Error>>
where
    T::Err: Error + 'static,
{
    Ok(args.take_key(name).map(T::from_str).transpose()?.unwrap_or(default))
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        let mut args = command.consume_args();
        match command.name.as_str() {
            "insert" => {
                let top = args.take_key("top").unwrap_or("");
                let given = args.take_key("hash");
                let len = number(&mut args, "len", 5)?;
                let expires = args.take_key("expires").map(u64::from_str).transpose()?;
                for _ in 0..args.next_pos().map_or(Ok(1), usize::from_str)? {
                    // Fibonacci's multiplier spreads consecutive numbers.
                    self.spread = self.spread.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let mut hash = self.spread & 0xffff_ffff | self.spread.swap_bytes() << 32;
                    for (bit, one) in top.bytes().enumerate() {
                        let mask = 1 << (63 - bit);
                        hash = if one == b'1' { hash | mask } else { hash & !mask };
                    }
                    if let Some(given) = given {
                        hash = u64::from_str_radix(given, 16)?;
                    }
                    let key = key(hash, self.keys.len() as u32);
                    let item = Item::new(&key, &vec![b'v'; len], expires.map(Millis));
                    self.table.insert(hash, item, rehash);
                    self.keys.push(key);
                }
            }
            "remove" => {
                for _ in 0..args.next_pos().map_or(Ok(1), usize::from_str)? {
                    let key = self.keys.pop().ok_or("nothing left to remove")?;
                    assert!(remove(&mut self.table, &key));
                }
            }
            "shape" => {
                let table = &self.table;
                writeln!(
                    out,
                    "{} items, {} volatile, {} bytes in items, {} cells",
                    table.len, table.volatile, table.item_bytes, table.cells
                )?;
                writeln!(out, "directory {:?}", table.directory)?;
                for (index, segment) in table.segments.iter().enumerate() {
                    let (len, cells) = (segment.check(|_, _| {}), segment.capacity());
                    let depth = segment.depth;
                    writeln!(out, "segment {index}: depth {depth}, {len} items in {cells} cells")?;
                }
            }
            "scan" => {
                let cursor = number(&mut args, "cursor", self.cursor)?;
                let budget = number(&mut args, "budget", usize::MAX)?;
                let mut met = 0;
                self.cursor = self.table.scan(cursor, budget, &mut |_| met += 1);
                match self.cursor {
                    0 => writeln!(out, "{met} items, the end")?,
                    cursor => {
                        let Cursor { prefix, depth, tag } = Cursor::decode(cursor);
                        let bits = format!("{prefix:031b}");
                        let bits = &bits[..depth as usize];
                        writeln!(out, "{met} items, next prefix {bits:?} tag {tag:#06x}")?;
                    }
                }
            }
            name => return Err(format!("no command {name}").into()),
        }
        args.reject_next()?;
        self.table.check();
        Ok(out)
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn scripts() {
    for script in ["growth", "flood", "scan"] {
        let path = format!("tests/scripts/table/{script}");
        goldenscript::run(&mut Runner::default(), path).unwrap();
    }
}
