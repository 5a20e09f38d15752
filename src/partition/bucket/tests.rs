use super::*;
use crate::batch::Part;
use crate::batch::{OpCode, OpHead};
use crate::command::Redis;
use crate::consensus::{Group, Recovered, Setup};
use crate::ids::{Age, Millis, TableIndex, TxnId};
use crate::partition::replica::Replica;
use crate::txn::lock_queue::{self, LockQueue};
use crate::txn::protocol::{
    Decide, Granule, Lock, Mode, Prepare, Prepared, Share, ToCoordinator, Verdict, Watched,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::VecDeque;

const SET: OpCode = OpCode(16);
const GET: OpCode = OpCode(4);
const MSET: OpCode = OpCode(13);
const TOUCH: OpCode = OpCode(50);
const UNLINK: OpCode = OpCode(53);
const GETEX: OpCode = OpCode(6);
const SETRANGE: OpCode = OpCode(19);
const SETBIT: OpCode = OpCode(29);
const COPY: OpCode = OpCode(57);
const LCS: OpCode = OpCode(22);
const WATCH: OpCode = OpCode(400);

fn bucket() -> (Bucket<Redis>, KeyHasher) {
    let hasher = KeyHasher::new(7);
    let node = NodeId(1);
    let owned = [PartitionId(0), PartitionId(1)];
    (
        Bucket::new(node, Incarnation(1), Topology::of_leaders([node; 2]), &owned, hasher, 0, 1000),
        hasher,
    )
}

fn at(ms: u64) -> Now {
    Now { wall: Millis(ms), mono: ms }
}

fn run(
    bucket: &mut Bucket<Redis>,
    hasher: KeyHasher,
    code: OpCode,
    words: &[&str],
    now: u64,
) -> String {
    let mut batch = Batch::new();
    let head = OpHead {
        code,
        partition: PartitionId(words[0].len() as u16 % 2),
        table: TableIndex::default(),
        resp3: false,
        hash: hasher.hash(words[0].as_bytes()),
    };
    batch.push(head, words.iter().map(|word| word.as_bytes()));
    let executed = bucket.execute(batch, Replies::default(), at(now), &mut Outbox::default());
    let Executed::Done(_, replies) = executed else { panic!("no other holds a lock") };
    String::from_utf8_lossy(replies.get(0)).into_owned()
}

fn held(bucket: &Bucket<Redis>) -> usize {
    let table = TableIndex::default();
    bucket.partitions().map(|partition| partition.replica().tables().len(table)).sum()
}

#[test]
fn what_nobody_asks_for_expires_a_bounded_number_at_a_time() {
    const KEYS: usize = 100_000;
    let (mut bucket, hasher) = bucket();
    for number in 0..KEYS {
        let key = format!("key{number}");
        run(&mut bucket, hasher, SET, &[&key, "value", "PX", "1000"], 5);
        if number % 10 == 0 {
            run(&mut bucket, hasher, SET, &[&format!("stays{number}"), "value"], 5);
        }
    }
    let mut effects = Outbox::default();
    bucket.tick(at(1004), &mut effects);
    assert_eq!((held(&bucket), bucket.counts().expired), (KEYS + KEYS / 10, 0));
    let mut ticks = 0;
    let mut before = held(&bucket);
    while bucket.counts().expired < KEYS as u64 {
        bucket.tick(at(1005 + ticks), &mut effects);
        let removed = before - held(&bucket);
        assert!(removed > 0, "every tick comes nearer");
        assert!(removed <= 2 * EXPIRE_STEPS_MAX * 1024, "and none does too much: {removed}");
        before = held(&bucket);
        ticks += 1;
    }
    assert!(ticks > 2, "the work was spread over {ticks} ticks");
    assert_eq!(held(&bucket), KEYS / 10);
}

#[test]
fn what_is_met_late_is_counted_once() {
    let (mut bucket, hasher) = bucket();
    run(&mut bucket, hasher, SET, &["key", "value", "PX", "10"], 5);
    run(&mut bucket, hasher, GET, &["key"], 20);
    assert_eq!((held(&bucket), bucket.counts().expired), (0, 1));
    run(&mut bucket, hasher, SET, &["key", "value", "PX", "10"], 30);
    run(&mut bucket, hasher, SET, &["key", "other"], 50);
    assert_eq!((held(&bucket), bucket.counts().expired), (1, 2));
    bucket.tick(at(100), &mut Outbox::default());
    assert_eq!((held(&bucket), bucket.counts().expired), (1, 2));
}

/// A Bucket with one partition, in memory or with a log of its own, and its lock manager; what it
/// sends and syncs arrives when the rng say so.
struct Alone {
    bucket: Bucket<Redis>,
    hasher: KeyHasher,
    locks: LockQueue,
    rng: ChaCha8Rng,
    mono: u64,
    grants: VecDeque<Ticket>,
    unsynced: VecDeque<Persist>,
    answered: Vec<(Batch, Replies)>,
    coordinators: Vec<ToCoordinator>,
}

const ALONE: PartitionId = PartitionId(0);
const KEYS: [&str; 3] = ["a", "b", "c"];

impl Alone {
    fn new(seed: u64, logged: bool) -> Alone {
        let hasher = KeyHasher::new(7);
        let (node, life) = (NodeId(1), Incarnation(1));
        let owned: &[PartitionId] = if logged { &[] } else { &[ALONE] };
        let mut bucket =
            Bucket::new(node, life, Topology::of_leaders([node]), owned, hasher, 0, 60_000);
        if logged {
            let own = ReplicaId::new(node, 1);
            let setup = Setup::new(own, [own].into(), 7);
            let group = Group::new(&setup, Recovered::default(), 0).unwrap();
            let replica = Replica::new(ALONE, hasher);
            bucket.place(Partition::replicated(ALONE, node, life, replica, group));
            bucket.form(at(0));
        }
        let mut alone = Alone {
            bucket,
            hasher,
            locks: LockQueue::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            mono: 0,
            grants: VecDeque::new(),
            unsynced: VecDeque::new(),
            answered: Vec::new(),
            coordinators: Vec::new(),
        };
        while !alone.bucket.partitions().all(Partition::is_led_here) {
            alone.mono += 25;
            alone.bucket.beat(at(alone.mono));
            alone.turn();
            while alone.sync() {
                alone.turn();
            }
        }
        alone
    }

    fn roll(&mut self, sides: usize) -> usize {
        (self.rng.next_u32() as usize) % sides
    }

    fn op(&self, batch: &mut Batch, code: OpCode, words: &[&str]) {
        let hash = self.hasher.hash(words[0].as_bytes());
        let table = TableIndex::default();
        let head = OpHead { code, partition: ALONE, table, resp3: false, hash };
        batch.push(head, words.iter().map(|word| word.as_bytes()));
    }

    /// Some operations, over some keys each.
    fn pipeline(&mut self) -> Batch {
        let mut batch = Batch::new();
        for number in 0..2 + self.roll(6) {
            let (one, other) = (KEYS[self.roll(3)], KEYS[self.roll(3)]);
            let value = number.to_string();
            match self.roll(5) {
                0 => self.op(&mut batch, SET, &[one, &value]),
                1 => self.op(&mut batch, MSET, &[one, &value, other, &value]),
                2 => self.op(&mut batch, UNLINK, &[one]),
                3 => self.op(&mut batch, TOUCH, &[one, other]),
                _ => self.op(&mut batch, GET, &[one]),
            }
        }
        batch
    }

    fn take(&mut self, out: Outbox) {
        self.unsynced.extend(out.persists.into_iter().map(|(_, persist)| persist));
        self.answered.extend(out.completed.into_iter().map(|(_, batch, replies)| (batch, replies)));
        let mut told = Vec::new();
        for effect in out.effects {
            match effect {
                PartitionEffect::Locks(message) => {
                    self.locks.push(message);
                    self.locks.work(&mut { usize::MAX }, &mut told);
                }
                PartitionEffect::Coordinator(_, message) => self.coordinators.push(message),
                PartitionEffect::Partition(..) => {}
            }
        }
        self.grants.extend(told.into_iter().filter_map(|effect| match effect {
            lock_queue::LockEffect::Grant { ticket, .. } => Some(ticket),
            lock_queue::LockEffect::Wound { .. } => None,
        }));
    }

    fn turn(&mut self) {
        let mut out = Outbox::default();
        self.bucket.flush(at(self.mono), &mut out);
        self.take(out);
    }

    fn sync(&mut self) -> bool {
        let Some(persist) = self.unsynced.pop_front() else { return false };
        self.bucket.persisted(ALONE, persist.number);
        true
    }

    fn grant(&mut self) -> bool {
        let Some(ticket) = self.grants.pop_front() else { return false };
        let mut out = Outbox::default();
        self.bucket.granted(ALONE, ticket, at(self.mono), &mut out);
        self.take(out);
        true
    }

    fn execute(&mut self, batch: Batch) {
        let mut out = Outbox::default();
        match self.bucket.execute(batch, Replies::default(), at(self.mono), &mut out) {
            Executed::Done(batch, replies) => self.answered.push((batch, replies)),
            Executed::Parked(_) => {}
        }
        self.take(out);
    }

    fn tell(&mut self, message: ToPartition) {
        let mut out = Outbox::default();
        self.bucket.handle(ALONE, message, at(self.mono), &mut out);
        self.take(out);
    }

    /// Another node's transaction locks a key.
    fn lock(&mut self, sequence: u64) -> TxnId {
        let txn = TxnId { node: NodeId(2), incarnation: Incarnation(1), sequence, attempt: 0 };
        let key = KEYS[self.roll(3)].as_bytes().to_vec();
        let access = if self.roll(2) == 0 { Access::Read } else { Access::Write };
        let claim = Claim { granule: Granule::Key(TableIndex::default(), key), access };
        let share = Share { batch: Batch::new(), claims: vec![claim], watched: Vec::new() };
        let age = Age { time: 0, node: NodeId(2), tie: sequence };
        let lock = Lock { txn, age, mode: Mode::Gather, share, done_below: 0 };
        self.tell(ToPartition::Lock(Box::new(lock)));
        txn
    }

    fn unlock(&mut self, txn: TxnId) {
        let decide = Decide { txn, verdict: Verdict::Abort, primary: ALONE, deciding: false };
        self.tell(ToPartition::Decide(decide));
    }
}

/// A connection's operations take effect in the order it sent them, though some of them wait for
/// keys and some do not, and though what waited is granted turns apart.
#[test]
fn a_batch_takes_effect_in_its_order_whatever_waits() {
    for (seed, logged) in (0..4_000).map(|seed| (seed / 2, seed % 2 == 0)) {
        let mut alone = Alone::new(seed, logged);
        let batch = alone.pipeline();
        let mut model = Alone::new(seed, false);
        model.execute(batch.clone());
        let expected: Vec<Vec<u8>> =
            (0..batch.len()).map(|index| model.answered[0].1.get(index).to_vec()).collect();

        let mut held: Vec<TxnId> = (0..1 + seed % 3).map(|number| alone.lock(number)).collect();
        alone.execute(batch.clone());
        while alone.answered.is_empty() {
            match alone.roll(6) {
                0 if !held.is_empty() => {
                    let one = alone.roll(held.len());
                    let txn = held.swap_remove(one);
                    alone.unlock(txn);
                }
                1 => drop(alone.sync()),
                2 => alone.turn(),
                _ => drop(alone.grant()),
            }
        }
        let (_, replies) = &alone.answered[0];
        let replies: Vec<Vec<u8>> =
            (0..batch.len()).map(|index| replies.get(index).to_vec()).collect();
        assert_eq!(replies, expected, "seed {seed}, logged {logged}: {batch:?}");
    }
}

/// A transaction's watched keys are looked at before it is logged, and its operations run at the
/// stamp of the entry that it is logged with.
#[test]
fn a_watched_key_that_expires_while_its_transaction_is_logged_has_changed() {
    const LIFE: u64 = 50;
    for (late, logged) in [(0, true), (1, true), (LIFE, true), (LIFE, false), (0, false)] {
        let mut alone = Alone::new(1, logged);
        let born = alone.mono;
        for (code, words) in [(SET, &["a", "1", "PX", "50"][..]), (WATCH, &["a"])] {
            let mut batch = Batch::new();
            alone.op(&mut batch, code, words);
            alone.execute(batch);
            while alone.answered.len() < 1 + usize::from(code == WATCH) {
                alone.turn();
                alone.sync();
            }
        }
        let versions = crate::command::transaction::read_versions(alone.answered[1].1.get(0));
        let table = TableIndex::default();
        let watched = vec![Watched { table, key: b"a".to_vec(), version: versions.unwrap()[0] }];
        let mut batch = Batch::new();
        alone.op(&mut batch, SET, &["b", "x"]);
        let txn = TxnId { node: NodeId(2), incarnation: Incarnation(1), sequence: 1, attempt: 0 };
        alone.mono = born + LIFE - 1;
        alone.tell(ToPartition::Prepare(Box::new(Prepare {
            txn,
            age: Age { time: 0, node: NodeId(2), tie: 1 },
            primary: PartitionId(1),
            primary_life: Incarnation(1),
            participants: vec![ALONE, PartitionId(1)],
            synced: false,
            term: None,
            work: Prepared::Share(Share { batch, claims: Vec::new(), watched }),
            done_below: 0,
        })));
        alone.mono += late;
        for _ in 0..4 {
            alone.turn();
            alone.sync();
        }
        let changed = matches!(alone.coordinators[..], [ToCoordinator::Changed { .. }]);
        let voted = matches!(alone.coordinators[..], [ToCoordinator::Voted { vote: Some(_), .. }]);
        assert!(changed || voted, "{:?}", alone.coordinators);
        assert_eq!(changed, logged && late > 0, "{late} ms late, logged {logged}");
    }
}

const IMAGE: OpCode = OpCode(93);
const BACKUP: OpCode = OpCode(94);
const RELEASE: OpCode = OpCode(95);

/// The reply of an operation without a key to each partition, at a moment.
fn ask_all(bucket: &mut Bucket<Redis>, code: OpCode, words: &[&str], now: u64) -> [String; 2] {
    [0, 1].map(|partition| {
        let partition = PartitionId(partition);
        let head = OpHead { code, partition, table: TableIndex::default(), resp3: false, hash: 0 };
        let mut batch = Batch::new();
        batch.push(head, words.iter().map(|word| word.as_bytes()));
        match bucket.execute(batch, Replies::default(), at(now), &mut Outbox::default()) {
            Executed::Done(_, replies) => String::from_utf8_lossy(replies.get(0)).into_owned(),
            Executed::Parked(_) => panic!("nobody holds a lock"),
        }
    })
}

/// A backup of both partitions: the token of each.
fn begin_backup(bucket: &mut Bucket<Redis>, name: &str, now: u64) -> [String; 2] {
    ask_all(bucket, BACKUP, &["backup", name], now).map(|reply| {
        let token = reply.split("\r\n").nth(3).unwrap_or_default();
        assert_eq!(token.len(), 16, "{reply}");
        token.to_owned()
    })
}

/// Whether both partitions still have the copies.
fn has_copies(bucket: &mut Bucket<Redis>, tokens: &[String; 2], now: u64) -> bool {
    let have = [0, 1].map(|index| {
        let words = ["image", &index.to_string(), &tokens[index], "0"];
        ask_all(bucket, IMAGE, &words, now)[index].starts_with('$')
    });
    assert_eq!(have[0], have[1]);
    have[0]
}

const NAMES: [&str; 2] = ["00000000000000a1", "00000000000000a2"];

#[test]
fn a_backup_that_nobody_pulls_is_given_up() {
    use crate::partition::backups::BACKUP_PATIENCE_MS;

    let (mut bucket, hasher) = bucket();
    for number in 0..100 {
        run(&mut bucket, hasher, SET, &[&format!("key{number}"), "value"], 5);
    }
    let mut out = Outbox::default();
    let tokens = begin_backup(&mut bucket, NAMES[0], 5);
    bucket.tick(at(10), &mut out);
    bucket.tick(at(5 + BACKUP_PATIENCE_MS), &mut out);
    assert!(has_copies(&mut bucket, &tokens, 5), "not long enough");
    bucket.tick(at(6 + BACKUP_PATIENCE_MS), &mut out);
    bucket.tick(at(9 + BACKUP_PATIENCE_MS), &mut out);
    let others = ask_all(&mut bucket, BACKUP, &["backup", NAMES[1]], 5);
    assert!(others[0].starts_with("-TRYAGAIN another backup"), "{others:?}");
    bucket.tick(at(6 + 2 * BACKUP_PATIENCE_MS), &mut out);
    assert!(!has_copies(&mut bucket, &tokens, 5));

    // The other one may begin now; and it ends at once when it is told to.
    let tokens = begin_backup(&mut bucket, NAMES[1], 5);
    assert!(has_copies(&mut bucket, &tokens, 5));
    assert_eq!(ask_all(&mut bucket, RELEASE, &["release", NAMES[0]], 5)[0], "+OK\r\n");
    assert!(has_copies(&mut bucket, &tokens, 5), "not that one");
    assert_eq!(ask_all(&mut bucket, RELEASE, &["release", NAMES[1]], 5)[0], "+OK\r\n");
    assert!(!has_copies(&mut bucket, &tokens, 5));
}

#[test]
fn a_backup_that_holds_too_much_is_given_up() {
    const KEYS: usize = 5_000;
    let (mut bucket, hasher) = bucket();
    bucket.backup_bytes_max(KEYS * 50);
    let value = "v".repeat(100);
    let set_all = |bucket: &mut Bucket<Redis>, keys: usize| {
        for number in 0..keys {
            run(bucket, hasher, SET, &[&format!("key{number}"), &value], 5);
        }
    };
    set_all(&mut bucket, KEYS);
    let mut out = Outbox::default();
    let tokens = begin_backup(&mut bucket, NAMES[0], 5);
    bucket.tick(at(10), &mut out);
    assert!(has_copies(&mut bucket, &tokens, 5));
    set_all(&mut bucket, KEYS);
    bucket.tick(at(20), &mut out);
    assert!(!has_copies(&mut bucket, &tokens, 5));
}

/// An operation and its words.
type Line<'a> = (OpCode, &'a [&'a str]);

impl Alone {
    fn run(&mut self, lines: &[Line<'_>]) -> (Batch, Replies) {
        let mut batch = Batch::new();
        lines.iter().for_each(|(code, words)| self.op(&mut batch, *code, words));
        self.answer(batch)
    }

    /// Executes a batch and goes on until it is answered.
    fn answer(&mut self, batch: Batch) -> (Batch, Replies) {
        self.execute(batch);
        self.settle(1);
        self.answered.remove(0)
    }

    /// Goes on until so many batches are answered.
    fn settle(&mut self, batches: usize) {
        while self.answered.len() < batches {
            let goes_on = [self.grant(), self.sync()].contains(&true);
            self.turn();
            assert!(goes_on || self.answered.len() == batches || !self.unsynced.is_empty());
        }
    }

    /// Asks again for what is left, until nothing is. Returns the parts of the replies.
    fn answer_all(&mut self, mut batch: Batch) -> Vec<Replies> {
        let mut parts = Vec::new();
        loop {
            let (asked, replies) = self.answer(batch);
            let left = |index: &usize| replies.part(*index) == Part::Left;
            let mut rest = Batch::new();
            (0..asked.len()).filter(left).for_each(|index| rest.push_op(&asked.op(index)));
            parts.push(replies);
            if rest.is_empty() {
                return parts;
            }
            batch = rest;
        }
    }
}

/// What a batch of operations that wait is answered with is as bounded as what is answered at once.
#[test]
fn late_replies_of_a_batch_are_bounded_as_prompt_ones_are() {
    const READS: usize = 40;
    const BYTES: usize = 300 << 10;
    let long = "v".repeat(BYTES);
    let offset = (BYTES - 1).to_string();
    let cases: [(&str, &[Line<'_>], OpCode, &str); 6] = [
        ("behind a write", &[(SET, &["a", "1"])], GET, "b"),
        ("writes that answer with values", &[], GETEX, "b"),
        ("behind the write of a long value", &[(SET, &["a", &long])], GET, "a"),
        ("behind one that makes it long", &[(SETRANGE, &["a", &offset, "v"])], GET, "a"),
        ("behind a copy", &[(COPY, &["b", "c"])], GET, "c"),
        ("behind a lock", &[], GET, "b"),
    ];
    for (what, first, code, key) in cases {
        let mut alone = Alone::new(1, true);
        alone.run(&[(SET, &["a", "0"]), (SET, &["b", &long])]);
        let txn = TxnId { node: NodeId(2), incarnation: Incarnation(1), sequence: 1, attempt: 0 };
        if what == "behind a lock" {
            let granule = Granule::Key(TableIndex::default(), b"b".to_vec());
            let claim = Claim { granule, access: Access::Write };
            let share = Share { batch: Batch::new(), claims: vec![claim], watched: Vec::new() };
            let age = Age { time: 0, node: NodeId(2), tie: 1 };
            let lock = Lock { txn, age, mode: Mode::Gather, share, done_below: 0 };
            alone.tell(ToPartition::Lock(Box::new(lock)));
        }
        let mut batch = Batch::new();
        first.iter().for_each(|(code, words)| alone.op(&mut batch, *code, words));
        (0..READS).for_each(|_| alone.op(&mut batch, code, &[key]));
        if what == "behind a lock" {
            alone.execute(batch.clone());
            alone.unlock(txn);
            alone.settle(1);
            let (_, replies) = alone.answered.remove(0);
            let bytes = replies.bytes.len();
            assert!((BYTES..REPLY_BYTES_MAX + BYTES + 64).contains(&bytes), "{what}: {bytes}");
            continue;
        }
        let parts = alone.answer_all(batch);
        let answered: usize = parts.iter().map(|part| part.len() - part.left.len()).sum();
        assert_eq!(answered, first.len() + READS, "{what}");
        let longest = parts.iter().map(|part| part.bytes.len()).max().unwrap();
        assert!(longest < REPLY_BYTES_MAX + BYTES + 64, "{what}: {longest}");
        let all: usize = parts.iter().map(|part| part.bytes.len()).sum();
        assert!(all >= READS * BYTES, "{what}: {all} bytes of replies");
    }
}

/// Values may have grown between the moment at which a batch is admitted and that at which it is
/// applied. Reads of many batches are left then, unless their client wrote after them.
#[test]
fn replies_that_nobody_foresaw_are_bounded() {
    const BATCHES: usize = 40;
    let offset = ((4 << 20) - 1).to_string();
    let mut alone = Alone::new(1, true);
    alone.run(&[(SET, &["a", "0"])]);
    let mut grow = Batch::new();
    alone.op(&mut grow, SETRANGE, &["a", &offset, "v"]);
    alone.execute(grow);
    for number in 0..BATCHES {
        let mut batch = Batch::new();
        alone.op(&mut batch, SET, &["b", "1"]);
        alone.op(&mut batch, GET, &["a"]);
        if number % 2 == 0 {
            alone.op(&mut batch, SET, &["c", "1"]);
        }
        alone.execute(batch);
    }
    alone.settle(1 + BATCHES);
    let answered = std::mem::take(&mut alone.answered);
    let bytes: usize = answered.iter().map(|(_, replies)| replies.bytes.len()).sum();
    assert!((64 << 20..70 << 20).contains(&bytes), "{bytes} bytes of replies");
    let mut counts = [0; 3];
    for (batch, replies) in answered.iter().skip(1) {
        let long = replies.bytes.len() > 4 << 20;
        let refused = !long && replies.bytes.windows(9).any(|words| words == b"-TRYAGAIN");
        counts[usize::from(refused) + 2 * usize::from(!long && !refused)] += 1;
        // A write is answered, and a read that its client wrote after is not asked for again.
        assert_eq!(replies.left.is_empty(), long || batch.len() == 3, "{replies:?}");
        assert!((0..batch.len()).step_by(2).all(|at| replies.get(at) == b"+OK\r\n"));
    }
    assert_eq!(counts, [16, 12, 12], "given, refused, left");
    // All of it is given when it is asked for again.
    let (_, replies) = alone.run(&[(GET, &["a"])]);
    assert!(replies.bytes.len() > 4 << 20);
}

/// One client's long commands are served one at a time, and others between them.
#[test]
fn a_batch_of_long_commands_ends_early() {
    let long = "v".repeat(5000);
    for logged in [false, true] {
        let mut alone = Alone::new(1, logged);
        alone.run(&[(SET, &["a", &long]), (SET, &["b", &long])]);
        let mut batch = Batch::new();
        alone.op(&mut batch, SET, &["c", "1"]);
        (0..3).for_each(|_| alone.op(&mut batch, LCS, &["a", "b", "LEN"]));
        alone.op(&mut batch, SET, &["c", "2"]);
        let parts = alone.answer_all(batch);
        let begun: Vec<usize> = parts.iter().map(Replies::len).collect();
        assert_eq!(begun, [2, 1, 1, 1], "logged {logged}");
        assert!(parts[1..3].iter().all(|part| part.bytes == b":5000\r\n"), "logged {logged}");
    }
}

/// Each operation that stretches a value takes of the room that there is, until it is measured again.
#[test]
fn what_a_batch_asks_for_is_added_up() {
    let (mut bucket, hasher) = bucket();
    bucket.allow_growth(5 << 19);
    let set = |bucket: &mut Bucket<Redis>, key: &str| {
        run(bucket, hasher, SETBIT, &[key, "8000000", "1"], 5)
    };
    assert_eq!(set(&mut bucket, "a"), ":0\r\n");
    assert_eq!(set(&mut bucket, "b"), ":0\r\n");
    assert!(set(&mut bucket, "c").starts_with("-OOM"), "a third megabyte");
    assert_eq!(set(&mut bucket, "a"), ":1\r\n", "it is there");
    assert_eq!(run(&mut bucket, hasher, SET, &["d", "1"], 5), "+OK\r\n");
    bucket.allow_growth(1 << 20);
    assert_eq!(set(&mut bucket, "c"), ":0\r\n");
}
