//! Micro-benchmarks of the store and of what turns requests, entries and pages into bytes and back:
//! `cargo bench --bench micro`.
//!
//! They tell what a change does to one function, by the ratio of two runs on one machine. What a
//! client gets of it is for the scripts beside this file to tell.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use quorate::batch::{Batch, Layout, OpHead};
use quorate::command::spec;
use quorate::ids::{Millis, PartitionId, TableIndex};
use quorate::net::resp::{Limits, Requests, encode_request};
use quorate::partition::record::{Entry, EntryWriter, Section};
use quorate::store::item::Item;
use quorate::store::pages::{BLOCK_BYTES, ItemsWriter, PagedItem, PagesReader};
use quorate::store::tables::{Access, Expires, KeyHasher, Tables};

/// Items of a table that is looked into: more than the caches of a core hold.
const ITEMS: usize = 200_000;
/// What one sample does, where a single operation is too short to be timed.
const ROUND: usize = 1_000;
/// Operations of a pipeline, a batch and an entry.
const OPS: usize = 16;
/// Bytes that a step of a snapshot is asked for.
const STEP_BYTES: usize = 64 << 10;

const VALUE: [u8; 64] = [b'v'; 64];
const TABLE: fn() -> TableIndex = TableIndex::default;

fn main() {
    divan::main();
}

fn key(number: usize) -> Vec<u8> {
    format!("key:{number:012}").into_bytes()
}

/// Tables with so many items in one of them.
fn tables(items: usize) -> Tables {
    let mut tables = Tables::new(KeyHasher::new(5));
    tables.begin(Millis(1), Access::Write);
    for (hash, key) in keys(&tables, 0..items) {
        tables.put(TABLE(), hash, &key, &VALUE, Expires::Never);
    }
    tables
}

/// Keys with their hashes.
fn keys(tables: &Tables, numbers: impl Iterator<Item = usize>) -> Vec<(u64, Vec<u8>)> {
    let hasher = tables.hasher();
    numbers.map(key).map(|key| (hasher.hash(&key), key)).collect()
}

/// All keys, scattered over the table: each round takes others, so that none is in a cache still.
fn scattered(tables: &Tables) -> Vec<(u64, Vec<u8>)> {
    keys(tables, (0..ITEMS).map(|number| number * 7_919 % ITEMS))
}

#[divan::bench]
fn tables_get(bencher: Bencher<'_, '_>) {
    let mut tables = tables(ITEMS);
    let keys = scattered(&tables);
    let mut rounds = keys.chunks(ROUND).cycle();
    tables.begin(Millis(2), Access::Read);
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| {
        for (hash, key) in rounds.next().unwrap() {
            black_box(tables.get(TABLE(), *hash, key).unwrap().content());
        }
    });
}

#[divan::bench]
fn tables_put_over(bencher: Bencher<'_, '_>) {
    let mut tables = tables(ITEMS);
    let keys = scattered(&tables);
    let mut rounds = keys.chunks(ROUND).cycle();
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| {
        for (hash, key) in rounds.next().unwrap() {
            tables.put(TABLE(), *hash, key, black_box(&VALUE), Expires::Never);
        }
    });
}

#[divan::bench]
fn tables_put_new(bencher: Bencher<'_, '_>) {
    let keys = keys(&tables(0), 0..ROUND);
    let bencher = bencher.counter(ItemsCount::new(ROUND));
    bencher.with_inputs(|| tables(0)).bench_local_refs(|tables| {
        for (hash, key) in &keys {
            tables.put(TABLE(), *hash, key, black_box(&VALUE), Expires::Never);
        }
    });
}

#[divan::bench]
fn tables_append(bencher: Bencher<'_, '_>) {
    let keys = keys(&tables(0), 0..ROUND);
    let bencher = bencher.counter(ItemsCount::new(ROUND));
    bencher.with_inputs(|| tables(ROUND)).bench_local_refs(|tables| {
        for (hash, key) in &keys {
            black_box(tables.append(TABLE(), *hash, key, b"eight by"));
        }
    });
}

#[divan::bench]
fn tables_scan(bencher: Bencher<'_, '_>) {
    let tables = tables(ITEMS);
    let mut cursor = 0;
    // Cells, of which a half to four fifths hold an item.
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| {
        cursor = tables.scan(TABLE(), cursor, ROUND, &mut |item| {
            black_box(item.key());
        });
    });
}

#[divan::bench]
fn tables_snapshot_step(bencher: Bencher<'_, '_>) {
    let mut tables = tables(ITEMS);
    tables.begin_snapshot();
    let mut out = Vec::new();
    bencher.counter(BytesCount::new(STEP_BYTES)).bench_local(|| {
        out.clear();
        if !tables.snapshot_step(&mut out, STEP_BYTES) {
            tables.begin_snapshot();
        }
        black_box(out.len())
    });
}

/// SETs of different keys.
fn sets() -> Batch {
    let mut batch = Batch::new();
    let code = spec::lookup(b"set").and_then(|spec| spec.operation()).expect("a command").code;
    for (hash, key) in keys(&tables(0), 0..OPS) {
        let head = OpHead { code, partition: PartitionId(7), table: TABLE(), resp3: false, hash };
        batch.push(head, [&key[..], &VALUE]);
    }
    batch
}

#[divan::bench]
fn entry_write(bencher: Bencher<'_, '_>) {
    let batch = sets();
    let mut writer = EntryWriter::new();
    bencher.counter(ItemsCount::new(OPS)).bench_local(|| {
        batch.iter().for_each(|op| writer.run(&op));
        writer.take(Millis(1))
    });
}

#[divan::bench]
fn entry_read(bencher: Bencher<'_, '_>) {
    let mut writer = EntryWriter::new();
    sets().iter().for_each(|op| writer.run(&op));
    let bytes = writer.take(Millis(1));
    let mut layout = Layout::default();
    bencher.counter(ItemsCount::new(OPS)).bench_local(|| {
        let mut entry = Entry::read(black_box(&bytes)).unwrap();
        let Some(Section::Runs(runs)) = entry.next_section().unwrap() else { return 0 };
        runs.lay_out(&mut layout).unwrap().iter().map(|op| op.args.bytes().len()).sum()
    });
}

#[divan::bench]
fn batch_encode(bencher: Bencher<'_, '_>) {
    let batch = sets();
    bencher
        .counter(ItemsCount::new(OPS))
        .bench_local(|| rmp_serde::to_vec(black_box(&batch)).unwrap());
}

#[divan::bench]
fn batch_decode(bencher: Bencher<'_, '_>) {
    let bytes = rmp_serde::to_vec(&sets()).unwrap();
    bencher
        .counter(ItemsCount::new(OPS))
        .bench_local(|| rmp_serde::from_slice::<Batch>(black_box(&bytes)).unwrap());
}

#[divan::bench]
fn requests_parse(bencher: Bencher<'_, '_>) {
    let mut pipeline = Vec::new();
    for number in 0..OPS {
        encode_request(&[b"SET", &key(number)[..], &VALUE], &mut pipeline);
    }
    let (mut requests, limits) = (Requests::new(), Limits::default());
    bencher.counter(ItemsCount::new(OPS)).bench_local(|| {
        while let Some(words) = requests.next(black_box(&pipeline), &limits).unwrap() {
            black_box(words.name());
        }
        let done = requests.done();
        requests.dropped(done);
    });
}

/// A block of items.
fn page(items: &[Item], out: &mut Vec<u8>) {
    let mut writer = ItemsWriter::begin(out, TABLE());
    for item in items {
        writer.put(&item.as_ref());
    }
    writer.end();
}

fn items() -> Vec<Item> {
    (0..ROUND).map(|number| Item::new(&key(number), &VALUE, None)).collect()
}

#[divan::bench]
fn page_write(bencher: Bencher<'_, '_>) {
    let items = items();
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| {
        out.clear();
        page(black_box(&items), &mut out);
    });
}

#[divan::bench]
fn page_read(bencher: Bencher<'_, '_>) {
    let mut block = Vec::new();
    page(&items(), &mut block);
    let mut reader = PagesReader::default();
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| {
        let put = |item: PagedItem<'_>| {
            black_box(item);
            Ok(())
        };
        reader.items(black_box(&block[BLOCK_BYTES..]), put).unwrap();
    });
}
