use super::*;
use crate::command::Redis;
use crate::engine::batch::{OpCode, OpHead};
use crate::engine::consensus::{Group, Recovered, Setup};
use crate::engine::locks::{self, LockTable};
use crate::engine::protocol::{Decide, Granule, Lock, Mode, Share, Verdict};
use crate::engine::replica::Replica;
use crate::ids::{Age, TableIndex, TxnId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::VecDeque;

const SET: OpCode = OpCode(16);
const GET: OpCode = OpCode(4);
const MSET: OpCode = OpCode(13);
const TOUCH: OpCode = OpCode(50);
const UNLINK: OpCode = OpCode(53);

fn bucket() -> (Bucket<Redis>, KeyHasher) {
    let hasher = KeyHasher::new(7);
    let node = NodeId(1);
    let owned = [PartitionId(0), PartitionId(1)];
    (Bucket::new(node, Incarnation(1), vec![node; 2], &owned, hasher, 0, 1000), hasher)
}

fn at(ms: u64) -> Now {
    Now { wall: Millis(ms), mono: ms }
}

fn run(bucket: &mut Bucket<Redis>, hasher: KeyHasher, code: OpCode, words: &[&str], now: u64) {
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
    assert!(matches!(executed, Executed::Done(..)));
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
/// sends and syncs arrives when the dice say so.
struct Alone {
    bucket: Bucket<Redis>,
    hasher: KeyHasher,
    locks: LockTable,
    dice: ChaCha8Rng,
    mono: u64,
    grants: VecDeque<Ticket>,
    unsynced: VecDeque<Persist>,
    answered: Vec<(Batch, Replies)>,
}

const ALONE: PartitionId = PartitionId(0);
const KEYS: [&str; 3] = ["a", "b", "c"];

impl Alone {
    fn new(seed: u64, logged: bool) -> Alone {
        let hasher = KeyHasher::new(7);
        let (node, life) = (NodeId(1), Incarnation(1));
        let owned: &[PartitionId] = if logged { &[] } else { &[ALONE] };
        let mut bucket = Bucket::new(node, life, vec![node], owned, hasher, 0, 60_000);
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
            locks: LockTable::new(),
            dice: ChaCha8Rng::seed_from_u64(seed),
            mono: 0,
            grants: VecDeque::new(),
            unsynced: VecDeque::new(),
            answered: Vec::new(),
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
        (self.dice.next_u32() as usize) % sides
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
            if let Effect::Locks(message) = effect {
                self.locks.handle(message, &mut told);
            }
        }
        self.grants.extend(told.into_iter().filter_map(|effect| match effect {
            locks::Effect::Grant { ticket, .. } => Some(ticket),
            locks::Effect::Wound { .. } => None,
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
    use crate::engine::partition::backups::BACKUP_PATIENCE_MS;

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
