//! `MULTI`, `EXEC` and `WATCH`: commands that take effect together.
//!
//! Between `MULTI` and `EXEC` the session queues what is asked ([`Queue`]); as in Redis, nothing is
//! looked at before `EXEC` but the command's name and its number of words. `EXEC` makes one piece
//! of work of it ([`Queue::plan`]), whatever partitions its keys lie in:
//! - Commands that can be evaluated where their keys lie become operations of their partitions'
//!   shares, in the order they were queued.
//! - If the result of any needs keys of several partitions (RENAME, say), the whole transaction is
//!   gathered: all keys are locked and read, and its commands evaluated in order in one place.
//!   Commands on whole tables (FLUSHALL, SWAPDB) beside it are evaluated there for the keys that
//!   the transaction names, and run where the other keys lie.
//! - `DBSIZE` counts what the transaction sees: each partition's keys as they are found, corrected
//!   by those that the transaction's own commands have made or removed by then ([`Census`]). The
//!   partitions count once, and each further `DBSIZE` asks only for the keys touched since the one
//!   before it, so that no transaction comes to more operations than it names keys, twice over.
//! - Commands about the connection, the node or a walk through a table are served when the rest is
//!   committed, in order, each in its place of the reply.
//! - What cannot be carried out as it was asked fails in its place; the others still commit.
//!
//! Watched keys are part of the work: their partitions compare versions once all is locked.

use super::argv::{Argv, ArgvBuf};
use super::client::Client;
use super::facts::Facts;
use super::keys::EXISTS;
use super::plan::{DAMAGED, Piece, PieceLayout, Placing, Plan, integer, plan};
use super::reply::Reply;
use super::server::flushes;
use super::spec::{
    ALLOW_BUSY, CommandGroup, Control, Data, Doc, FAST, KEYS, LOADING, Merge, NO_KEYS, NOSCRIPT,
    Over, Run, SKIP_SLOWLOG, STALE, Spec, Split,
};
use super::{Call, KEY_BYTES_MAX, Redis};
use crate::batch::machine::{Machine, Scope};
use crate::batch::{Batch, OpCode, OpHead, Replies};
use crate::cluster::slots::Atlas;
use crate::ids::{PartitionId, TableIndex};
use crate::store::tables::Access;
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{Claim, Granule, Mode, Share, Watched, Work};
use std::collections::{BTreeMap, BTreeSet};

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Transactions, since, complexity: "O(1)", summary, syntax }
}

const CONTROL: u32 = NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "discard", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Discard),
        doc: doc("2.0.0", "Forgets the queued commands.", "") },
    Spec { name: "exec", arity: 1, flags: NOSCRIPT | LOADING | STALE | SKIP_SLOWLOG, keys: NO_KEYS, run: Run::Control(Control::Exec),
        doc: doc("1.2.0", "Executes the queued commands, all or none.", "") },
    Spec { name: "multi", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Multi),
        doc: doc("1.2.0", "Queues the commands that follow.", "") },
    Spec { name: "unwatch", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Unwatch(Data { code: UNWATCH, run: unwatch, split: Split::Slot, reach: None })),
        doc: doc("2.2.0", "Forgets the watched keys.", "") },
    Spec { name: "watch", arity: -2, flags: CONTROL, keys: KEYS,
        run: Run::Control(Control::Watch(Data { code: OpCode(400), run: versions, split: Split::PerKey(Merge::Array), reach: None })),
        doc: doc("2.2.0", "Lets the next EXEC fail if one of the keys has changed by then.", "key [key ...]") },
];

/// The operation by which a watcher of keys leaves them.
const UNWATCH: OpCode = OpCode(401);

/// Keys that one client can watch, and their bytes: any single key can be watched.
const CLIENT_WATCHED_MAX: usize = 1 << 14;
const CLIENT_WATCHED_BYTES_MAX: usize = KEY_BYTES_MAX;

/// Watches the keys and tells their versions: what a session asks when its client says `WATCH`.
fn versions(call: &mut Call<'_>) {
    let args = call.args;
    let mut told = Vec::with_capacity(args.len());
    for (index, key) in args.iter().enumerate() {
        let hash = call.hash_of(index);
        let Some(version) = call.tables.watch(call.table, hash, key) else {
            for (hash, version) in told {
                call.tables.watches_mut().unwatch(call.table, hash, version);
            }
            return call.reply.error("ERR too many keys are watched");
        };
        told.push((hash, version));
    }
    call.reply.array(told.len());
    for (_, version) in told {
        // Versions count from a time in milliseconds shifted by 20 bits, which leaves room.
        call.reply.int(version.cast_signed());
    }
}

/// Takes a watcher off keys: their hashes and the versions that it was told, 8 bytes each.
fn unwatch(call: &mut Call<'_>) {
    for pair in call.args.iter().flat_map(|arg| arg.as_chunks::<8>().0.as_chunks::<2>().0) {
        let [hash, version] = pair.map(u64::from_le_bytes);
        call.tables.watches_mut().unwatch(call.table, hash, version);
    }
    call.reply.ok();
}

/// The keys that a client watches.
#[derive(Debug, Default)]
pub struct Watching {
    /// Where each lies, and the version that its partition told.
    keys: BTreeMap<(TableIndex, Vec<u8>), (PartitionId, u64)>,
    bytes: usize,
}

impl Watching {
    /// Whether it watches none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys it watches.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The words of a `WATCH` of keys that are not watched yet, each once.
    ///
    /// # Errors
    /// When it would watch too many.
    pub fn lacks(&self, argv: Argv<'_>, table: TableIndex) -> Result<ArgvBuf, String> {
        let keys: BTreeSet<&[u8]> = argv.from(1).collect();
        let is_new = |key: &&[u8]| !self.keys.contains_key(&(table, key.to_vec()));
        let new: Vec<&[u8]> = keys.into_iter().filter(is_new).collect();
        let bytes = self.bytes + new.iter().map(|key| key.len()).sum::<usize>();
        if self.keys.len() + new.len() > CLIENT_WATCHED_MAX || bytes > CLIENT_WATCHED_BYTES_MAX {
            return Err(format!(
                "ERR a client can watch {CLIENT_WATCHED_MAX} keys of {CLIENT_WATCHED_BYTES_MAX} \
                 bytes together"
            ));
        }
        Ok(std::iter::once(argv.name()).chain(new).collect())
    }

    /// A key is watched from now on.
    pub fn watch(&mut self, table: TableIndex, key: &[u8], partition: PartitionId, version: u64) {
        self.bytes += key.len();
        self.keys.insert((table, key.to_vec()), (partition, version));
    }

    /// What each partition compares when the transaction is executed.
    fn watched(&self) -> impl Iterator<Item = (PartitionId, Watched)> {
        self.keys.iter().map(|((table, key), (partition, version))| {
            (*partition, Watched { table: *table, key: key.clone(), version: *version })
        })
    }

    /// Forgets the keys. Tells the operations by which their partitions do.
    pub fn clear(&mut self, hasher: KeyHasher) -> Vec<(PartitionId, Batch)> {
        self.bytes = 0;
        let mut leaves: BTreeMap<(PartitionId, TableIndex), Vec<u8>> = BTreeMap::new();
        for ((table, key), (partition, version)) in std::mem::take(&mut self.keys) {
            let leaves = leaves.entry((partition, table)).or_default();
            leaves.extend_from_slice(&hasher.hash(&key).to_le_bytes());
            leaves.extend_from_slice(&version.to_le_bytes());
        }
        let batch = |((partition, table), arg): ((PartitionId, TableIndex), Vec<u8>)| {
            let mut batch = Batch::new();
            batch.push(
                OpHead { code: UNWATCH, partition, table, resp3: false, hash: 0 },
                [&arg[..]],
            );
            (partition, batch)
        };
        leaves.into_iter().map(batch).collect()
    }
}

/// Reads the versions that [`versions`] told.
pub fn read_versions(reply: &[u8]) -> Option<Vec<u64>> {
    let text = std::str::from_utf8(reply).ok()?;
    let mut lines = text.strip_prefix('*')?.split_terminator("\r\n");
    let count: usize = lines.next()?.parse().ok()?;
    let version = |line: &str| line.strip_prefix(':')?.parse::<i64>().ok().map(i64::cast_unsigned);
    let versions: Vec<u64> = lines.map(version).collect::<Option<_>>()?;
    (versions.len() == count).then_some(versions)
}

/// The commands queued since `MULTI`.
#[derive(Debug, Default)]
pub struct Queue {
    commands: Vec<(&'static Spec, ArgvBuf)>,
    bytes: usize,
    broken: bool,
}

/// What `EXEC` comes to.
#[derive(Debug)]
pub enum Exec {
    /// This work, which may be none; its replies are put together by the script.
    Work(Work, Script),
    /// Not to be executed, and why.
    Refused(String),
}

/// How the replies of an `EXEC` become one: an element for each step.
#[derive(Debug)]
pub struct Script {
    /// In the order of the queue.
    pub steps: Vec<Step>,
}

/// Where a queued command's reply comes from.
#[derive(Debug)]
pub enum Step {
    /// It is known already.
    Answered(Vec<u8>),
    /// From the partitions' replies.
    Data(PieceLayout),
    /// The same, counted.
    Census(Census),
    /// From the session, once the work is committed.
    Later(&'static Spec, ArgvBuf),
}

/// How many keys a table has in the midst of a transaction: the count before it, corrected.
#[derive(Debug)]
pub struct Census {
    table: TableIndex,
    /// Counted anew, by these partitions: by none if the transaction has emptied the table.
    anew: Option<Vec<Piece>>,
    /// The keys touched since the count before this one, as far as they exist by now.
    plus: Vec<Piece>,
    /// The same keys, as far as the count before this one has them.
    minus: Vec<Piece>,
}

/// What was last counted of each table while the replies of a transaction are put together; none
/// where a reply was damaged.
pub type Counts = BTreeMap<TableIndex, Option<i64>>;

impl Queue {
    /// Queues a command.
    ///
    /// # Errors
    /// When the transaction would grow beyond `bytes_max`.
    pub fn push(
        &mut self,
        spec: &'static Spec,
        argv: Argv<'_>,
        bytes_max: usize,
    ) -> Result<(), String> {
        self.bytes += argv.bytes();
        if self.bytes > bytes_max {
            return Err(format!("ERR the transaction is longer than {bytes_max} bytes"));
        }
        self.commands.push((spec, argv.from(0).collect()));
        Ok(())
    }

    /// Whether any of its commands writes.
    pub fn writes(&self) -> bool {
        self.commands.iter().any(|(spec, _)| spec.access() == Access::Write)
    }

    /// Notes that a command could not be queued, so that `EXEC` will refuse.
    pub fn spoil(&mut self) {
        self.broken = true;
    }

    /// Makes one piece of work of the queue and the watched keys.
    pub fn plan(
        self,
        client: &Client,
        facts: &Facts,
        watching: &Watching,
        place: &Placing<'_>,
    ) -> Exec {
        if self.broken {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Exec::Refused(text.into());
        }
        // The connection's own commands are carried out when the data is committed. What they make
        // of the connection is foreseen here, for the commands behind them: SELECT chooses a table.
        let mut client = client.clone();
        let mut draft = Draft::default();
        for (spec, argv_buf) in self.commands {
            let place = Placing { table: client.table, resp3: client.resp3, ..*place };
            if let Some(run) = spec.session() {
                run(&mut client, facts, argv_buf.argv(), &mut Reply::new(&mut Vec::new(), false));
            }
            draft.add(spec, argv_buf, &place);
        }
        draft.finish(watching, place.atlas)
    }
}

/// A transaction while it is put together.
#[derive(Default)]
struct Draft {
    shares: BTreeMap<PartitionId, Share>,
    /// The same commands as they were asked, for the case that one of them has to be gathered.
    script: Batch,
    claims: BTreeMap<PartitionId, Vec<Claim>>,
    steps: Vec<Drafted>,
    writes: bool,
    gathers: bool,
    /// The operations on whole partitions among them, once more.
    whole: BTreeMap<PartitionId, Batch>,
    touched: Touched,
}

/// What a transaction's own commands may have done to the number of a table's keys.
#[derive(Default)]
struct Touched {
    /// Keys that may have been written, and where it was last asked whether they exist.
    keys: BTreeMap<(TableIndex, Vec<u8>), Asked>,
    /// Those of them that may have been written since their table was last counted.
    since: BTreeMap<TableIndex, BTreeSet<Vec<u8>>>,
    /// Questions that come before all commands.
    before: BTreeMap<PartitionId, Batch>,
    /// How often a command has emptied each table.
    emptied: BTreeMap<TableIndex, u32>,
    /// Tables that were counted since they were last emptied.
    counted: BTreeSet<TableIndex>,
    /// Whether tables have changed places.
    swapped: bool,
}

/// Where it is asked whether a key exists.
#[derive(Clone, Copy)]
struct Asked {
    /// In [`Touched::before`], or else in the partition's share.
    before: bool,
    partition: PartitionId,
    place: u32,
    /// How often the key's table was emptied by then: since it was once more, it has no key.
    emptied: u32,
}

enum Drafted {
    Answered(Vec<u8>),
    Later(&'static Spec, ArgvBuf),
    /// Where its replies are: by partition and place in its share.
    Data(Merge, Vec<(PartitionId, u32)>),
    /// The same for a count; and the command itself, for the case that it cannot be counted where
    /// the keys lie.
    Census {
        table: TableIndex,
        anew: Option<Vec<(PartitionId, u32)>>,
        plus: Vec<(PartitionId, u32)>,
        minus: Vec<Asked>,
        late: (&'static Spec, ArgvBuf),
    },
}

/// A command that counts the keys of a table.
const COUNTS: Split = Split::Everywhere { over: Over::Table, merge: Merge::Sum, locked: false };

impl Draft {
    fn add(&mut self, spec: &'static Spec, argv_buf: ArgvBuf, place: &Placing<'_>) {
        let step = self.draft(spec, argv_buf, place);
        self.steps.push(step);
    }

    fn draft(&mut self, spec: &'static Spec, argv_buf: ArgvBuf, place: &Placing<'_>) -> Drafted {
        if spec.run_is_unwatch() {
            // EXEC forgets the watched keys; by then it is too late to say so.
            return Drafted::Answered(b"+OK\r\n".to_vec());
        }
        let argv = argv_buf.argv();
        let planned = plan(spec, argv, place);
        if let Plan::Refused(error) = &planned {
            let mut refused = Vec::new();
            Reply::new(&mut refused, place.resp3).error(error);
            return Drafted::Answered(refused);
        }
        let Some(data) = spec.data() else { return Drafted::Later(spec, argv_buf) };
        if spec.scope() == Scope::Glance {
            return match data.split == COUNTS && !self.touched.swapped {
                true => self.count(spec, data, argv_buf, place),
                false => Drafted::Later(spec, argv_buf),
            };
        }
        self.writes |= spec.access() == Access::Write;
        if spec.scope() == Scope::Partition {
            self.take_whole(&planned, argv);
            self.touched.touch_tables(spec, argv, place.table);
        }
        let first = argv.get(spec.keys.first as usize);
        self.script.push(place.head(&data, first), argv.from(1));
        let op = self.script.op(self.script.len() - 1);
        let (claims, touched) = (&mut self.claims, &mut self.touched);
        Redis::keys(&op, &mut |table, key| {
            let partition = place.atlas.partition_of_key(table, key);
            let granule = Granule::Key(table, key.to_vec());
            claims.entry(partition).or_default().push(Claim { granule, access: spec.access() });
            if spec.access() == Access::Write {
                touched.touch(exists(table, key, place), key);
            }
        });
        match planned {
            Plan::One(head) => {
                let batch = &mut self.shares.entry(head.partition).or_default().batch;
                batch.push(head, argv.from(1));
                Drafted::Data(Merge::Status, vec![(head.partition, batch.len() as u32 - 1)])
            }
            Plan::Spread { work, .. } if work.mode == Mode::Gather => {
                self.gathers = true;
                Drafted::Data(Merge::Status, Vec::new())
            }
            Plan::Spread { work, layout } => {
                let shares = work.shares.into_iter().map(|(id, share)| (id, share.batch));
                self.take(shares.collect(), layout)
            }
            Plan::Each { batches, layout } => self.take(batches, layout),
            Plan::Session(_) | Plan::Node(_) | Plan::Walk(_) | Plan::Refused(_) => {
                Drafted::Later(spec, argv_buf)
            }
        }
    }

    /// Counts the keys of a table where they lie, and those that the transaction has touched.
    fn count(
        &mut self,
        spec: &'static Spec,
        data: Data,
        argv_buf: ArgvBuf,
        place: &Placing<'_>,
    ) -> Drafted {
        let (table, touched) = (place.table, &mut self.touched);
        let mut ask = |head: OpHead, key: Option<&[u8]>| {
            let batch = &mut self.shares.entry(head.partition).or_default().batch;
            batch.push(head, key);
            (head.partition, batch.len() as u32 - 1)
        };
        let emptied = touched.emptied.get(&table).copied().unwrap_or_default();
        let anew = touched.counted.insert(table).then(|| {
            let partitions = place.partitions();
            let partitions = partitions.iter().filter(|_| emptied == 0);
            let count = |partition| OpHead { partition, hash: 0, ..place.head(&data, b"") };
            partitions.map(|partition| ask(count(partition), None)).collect()
        });
        let (mut plus, mut minus) = (Vec::new(), Vec::new());
        for key in touched.take_since(table) {
            let (partition, at) = ask(exists(table, &key, place), Some(&key));
            plus.push((partition, at));
            let asked = Asked { before: false, partition, place: at, emptied };
            let last = touched.keys.insert((table, key), asked);
            minus.extend(last.filter(|last| last.emptied == emptied));
        }
        Drafted::Census { table, anew, plus, minus, late: (spec, argv_buf) }
    }

    /// Notes an operation on whole partitions.
    fn take_whole(&mut self, planned: &Plan, argv: Argv<'_>) {
        match planned {
            Plan::One(head) => {
                self.whole.entry(head.partition).or_default().push(*head, argv.from(1));
            }
            Plan::Spread { work, .. } => {
                for (id, share) in &work.shares {
                    let batch = self.whole.entry(*id).or_default();
                    share.batch.iter().for_each(|op| batch.push_op(&op));
                }
            }
            _ => {}
        }
    }

    /// What each partition claims and does for a transaction that is gathered.
    fn gathered(&mut self, atlas: &Atlas) -> BTreeMap<PartitionId, Share> {
        let mut shares: BTreeMap<PartitionId, Share> = BTreeMap::new();
        for (id, mut claims) in std::mem::take(&mut self.claims) {
            if self.touched.swapped {
                // Where tables change places, the key of another one may come here.
                claims = claims.iter().flat_map(|claim| in_all_tables(claim, atlas)).collect();
            }
            claims.sort_unstable();
            claims.dedup();
            shares.insert(id, Share { claims, ..Share::default() });
        }
        for (id, batch) in std::mem::take(&mut self.whole) {
            shares.entry(id).or_default().batch = batch;
        }
        shares
    }

    /// Adds one command's batches to the shares.
    fn take(&mut self, batches: Vec<(PartitionId, Batch)>, layout: PieceLayout) -> Drafted {
        let mut places = Vec::with_capacity(batches.len());
        for (id, batch) in batches {
            let share = &mut self.shares.entry(id).or_default().batch;
            places.push((id, share.len() as u32));
            batch.iter().for_each(|op| share.push_op(&op));
        }
        let place = |piece: &Piece| {
            let (id, first) = places[piece.share as usize];
            (id, first + piece.op)
        };
        Drafted::Data(layout.merge, layout.pieces.iter().map(place).collect())
    }

    fn finish(mut self, watching: &Watching, atlas: &Atlas) -> Exec {
        let counts = self.steps.iter().any(|step| matches!(step, Drafted::Census { .. }));
        let mut before = BTreeMap::new();
        if self.gathers {
            self.shares = self.gathered(atlas);
        } else if counts {
            for (id, mut batch) in std::mem::take(&mut self.touched.before) {
                let share = self.shares.entry(id).or_default();
                before.insert(id, batch.len() as u32);
                share.batch.iter().for_each(|op| batch.push_op(&op));
                share.batch = batch;
            }
        }
        for (id, watched) in watching.watched() {
            self.shares.entry(id).or_default().watched.push(watched);
        }
        let order: BTreeMap<PartitionId, u32> = self.shares.keys().copied().zip(0..).collect();
        let first = |(id, op): (PartitionId, u32)| Piece { share: order[&id], op };
        let piece = |(id, op): (PartitionId, u32)| {
            first((id, op + before.get(&id).copied().unwrap_or_default()))
        };
        let mut next = 0..;
        let step = |step: Drafted| match step {
            Drafted::Answered(answer) => Step::Answered(answer),
            Drafted::Later(spec, argv_buf) => Step::Later(spec, argv_buf),
            Drafted::Data(..) if self.gathers => {
                let op = next.next().unwrap_or_default();
                Step::Data(PieceLayout {
                    merge: Merge::Status,
                    pieces: vec![Piece { share: 0, op }],
                })
            }
            Drafted::Data(merge, pieces) => {
                Step::Data(PieceLayout { merge, pieces: pieces.into_iter().map(piece).collect() })
            }
            Drafted::Census { late: (spec, argv_buf), .. } if self.gathers => {
                Step::Later(spec, argv_buf)
            }
            Drafted::Census { table, anew, plus, minus, .. } => {
                let asked = |asked: Asked| match asked.before {
                    true => first((asked.partition, asked.place)),
                    false => piece((asked.partition, asked.place)),
                };
                Step::Census(Census {
                    table,
                    anew: anew.map(|counts| counts.into_iter().map(piece).collect()),
                    plus: plus.into_iter().map(piece).collect(),
                    minus: minus.into_iter().map(asked).collect(),
                })
            }
        };
        let steps = std::mem::take(&mut self.steps).into_iter().map(step).collect();
        let mode = match (self.gathers, self.writes) {
            (true, _) => Mode::Gather,
            (false, true) => Mode::Write,
            (false, false) => Mode::Read,
        };
        let evaluated = if self.gathers { self.script } else { Batch::new() };
        let work = Work { mode, shares: self.shares.into_iter().collect(), script: evaluated };
        Exec::Work(work, Script { steps })
    }
}

/// The claimed key of every table that lies where its own does, to be written.
fn in_all_tables(claim: &Claim, atlas: &Atlas) -> Vec<Claim> {
    let Granule::Key(own, key) = &claim.granule else { return Vec::new() };
    let tables = TableIndex::all().filter(|table| atlas.lie_together(*own, *table));
    let claim = |table| Claim { granule: Granule::Key(table, key.clone()), access: Access::Write };
    tables.map(claim).collect()
}

/// Whether a key exists, as an operation without its argument.
fn exists(table: TableIndex, key: &[u8], place: &Placing<'_>) -> OpHead {
    let partition = place.atlas.partition_of_key(table, key);
    let hash = place.hasher.hash(key);
    OpHead { code: OpCode(EXISTS), partition, table, resp3: false, hash }
}

impl Touched {
    /// A key may be written from here on.
    fn touch(&mut self, asks: OpHead, key: &[u8]) {
        let Touched { keys, before, since, .. } = self;
        let (table, partition) = (asks.table, asks.partition);
        if !since.entry(table).or_default().insert(key.to_vec()) {
            return;
        }
        keys.entry((table, key.to_vec())).or_insert_with(|| {
            let batch = before.entry(partition).or_default();
            batch.push(asks, [key]);
            Asked { before: true, partition, place: batch.len() as u32 - 1, emptied: 0 }
        });
    }

    /// A table's keys that may have been written since it was last counted, which it is now.
    fn take_since(&mut self, table: TableIndex) -> BTreeSet<Vec<u8>> {
        self.since.remove(&table).unwrap_or_default()
    }

    /// A command empties a table: no key of it exists.
    fn empty(&mut self, table: TableIndex) {
        *self.emptied.entry(table).or_default() += 1;
        self.counted.remove(&table);
        self.take_since(table);
    }

    /// Tables may be emptied or change places from here on.
    fn touch_tables(&mut self, spec: &Spec, argv: Argv<'_>, table: TableIndex) {
        match spec.name {
            "flushdb" if flushes(argv) => self.empty(table),
            "flushall" if flushes(argv) => TableIndex::all().for_each(|table| self.empty(table)),
            "flushdb" | "flushall" => {}
            _ => self.swapped = true,
        }
    }
}

impl Step {
    /// Appends the step's element, unless the session has to serve it. `counts`: those of the steps
    /// before it.
    pub fn merge(&self, replies: &[Replies], counts: &mut Counts, reply: &mut Reply<'_>) {
        match self {
            Step::Answered(answer) => reply.raw(answer),
            Step::Data(layout) => layout.merge(replies, reply),
            Step::Census(census) => match census.count(replies, counts) {
                Some(count) => reply.int(count),
                None => reply.error(DAMAGED),
            },
            Step::Later(..) => {}
        }
    }
}

impl Census {
    fn count(&self, replies: &[Replies], counts: &mut Counts) -> Option<i64> {
        let sum = |pieces: &[Piece]| {
            pieces
                .iter()
                .try_fold(0i64, |sum, piece| sum.checked_add(integer(piece.reply(replies)?)?))
        };
        let before = match &self.anew {
            Some(counted) => sum(counted),
            None => counts.get(&self.table).copied().flatten(),
        };
        let change = || sum(&self.plus)?.checked_sub(sum(&self.minus)?);
        let count = before.and_then(|before| before.checked_add(change()?));
        counts.insert(self.table, count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_back() {
        let mut out = Vec::new();
        let mut reply = Reply::new(&mut out, true);
        reply.array(2);
        reply.int(7);
        reply.int((u64::MAX >> 1) as i64);
        assert_eq!(read_versions(&out), Some(vec![7, u64::MAX >> 1]));
        for damaged in [&b"-ERR x\r\n"[..], b"*2\r\n:1\r\n", b"*1\r\n$1\r\na\r\n", b"", b"*\r\n"] {
            assert_eq!(read_versions(damaged), None, "{damaged:?}");
        }
    }
}
