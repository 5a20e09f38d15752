//! Two replicas of one log are alike, whatever each of them is asked beside it.

use super::*;
use crate::batch::{Batch, OpCode, OpHead, Part};
use crate::command::Redis;
use crate::partition::record::EntryWriter;
use crate::txn::protocol::{Lock, Mode, Share, ToPartition};
use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

pub(in crate::partition) const ID: PartitionId = PartitionId(3);

pub(in crate::partition) fn hasher() -> KeyHasher {
    KeyHasher::new(11)
}

pub(in crate::partition) fn replica() -> Replica<Redis> {
    Replica::new(ID, hasher())
}

pub(in crate::partition) fn code(name: &str) -> OpCode {
    let codes = include_str!("../../command/codes.txt");
    let found = codes.lines().find_map(|line| {
        let (code, known) = line.split_once(' ')?;
        (known == name).then(|| OpCode(code.parse().unwrap()))
    });
    found.unwrap_or_else(|| panic!("no command {name}"))
}

/// A log that is made up as it goes: entries of everything there is, from one seed.
pub(in crate::partition) struct Story {
    pub dice: ChaCha8Rng,
    writer: EntryWriter,
    stamp: Millis,
    sequence: u64,
    open: Vec<TxnId>,
    keys: u64,
}

impl Story {
    pub fn new(seed: u64, keys: u64) -> Story {
        Story {
            dice: ChaCha8Rng::seed_from_u64(seed),
            writer: EntryWriter::new(),
            stamp: Millis(1_000_000),
            sequence: 0,
            open: Vec::new(),
            keys,
        }
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.dice.next_u64() % sides
    }

    fn key(&mut self) -> Vec<u8> {
        format!("key:{}", self.roll(self.keys)).into_bytes()
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.roll(50) {
            0 => 2_000 + self.roll(200),
            1 => 5_000 + self.roll(50_000),
            _ => self.roll(100),
        };
        vec![self.roll(256) as u8; len as usize]
    }

    fn table(&mut self) -> TableIndex {
        TableIndex::new(u8::from(self.roll(4) == 0)).unwrap()
    }

    fn push(&mut self, batch: &mut Batch, name: &str, args: &[&[u8]]) {
        let hash = if name.ends_with("db") || name.ends_with("all") || args.is_empty() {
            0
        } else {
            hasher().hash(args[0])
        };
        let table = self.table();
        let head = OpHead { code: code(name), partition: ID, table, resp3: false, hash };
        batch.push(head, args.iter().copied());
    }

    /// One operation on a key or, seldom, on everything.
    pub fn op(&mut self) -> Batch {
        let (key, value) = (self.key(), self.value());
        let number = |number: u64| number.to_string().into_bytes();
        let later = number(1 + self.roll(3_000));
        let (offset, digit) = (number(self.roll(200)), number(self.roll(9)));
        let mut batch = Batch::new();
        let (name, args): (&str, Vec<&[u8]>) = match self.roll(1_000) {
            0 => ("flushdb", vec![]),
            1..3 => ("swapdb", vec![b"0", b"1"]),
            3 => ("flushall", vec![]),
            4..60 => ("get", vec![&key]),
            60..100 => ("set", vec![&key, &value, b"PX", &later]),
            100..150 => ("append", vec![&key, &value]),
            150..200 => ("setrange", vec![&key, &offset, &value]),
            200..400 => ("del", vec![&key]),
            400..440 => ("pexpire", vec![&key, &later]),
            440..460 => ("persist", vec![&key]),
            460..480 => ("getdel", vec![&key]),
            480..500 => ("incrby", vec![&key, &digit]),
            500..520 => ("dbsize", vec![]),
            520..540 => ("setbit", vec![&key, &offset, b"1"]),
            _ => ("set", vec![&key, &value]),
        };
        self.push(&mut batch, name, &args);
        batch
    }

    fn prepare(&mut self) {
        self.sequence += 1;
        let node = NodeId(1 + self.roll(3) as u16);
        let txn = TxnId { node, incarnation: Incarnation(1), sequence: self.sequence, attempt: 1 };
        let mut batch = Batch::new();
        for _ in 0..1 + self.roll(3) {
            let op = self.op();
            op.iter().for_each(|op| batch.push_op(&op));
        }
        let mut claims = Vec::new();
        for op in batch.iter() {
            let access = Redis::access(op.head.code);
            if Redis::scope(op.head.code) != Scope::Keys {
                claims.push(Claim { granule: Granule::Whole, access });
            }
            Redis::keys(&op, &mut |table, key| {
                claims.push(Claim { granule: Granule::Key(table, key.to_vec()), access });
            });
        }
        let primary = PartitionId(ID.0 + self.roll(2) as u16);
        let prepare = Prepare {
            txn,
            age: Age { time: self.sequence, node, tie: 0 },
            primary,
            primary_life: Incarnation(1),
            participants: vec![ID, PartitionId(ID.0 + 1)],
            synced: false,
            term: None,
            work: Prepared::Share(Share { batch, ..Share::default() }),
            done_below: self.sequence.saturating_sub(20 + self.roll(20)),
        };
        self.writer.prepare(&prepare, &claims);
        self.open.push(txn);
    }

    /// The next entry of the log.
    pub fn entry(&mut self) -> Bytes {
        self.stamp.0 += self.roll(20);
        for _ in 0..1 + self.roll(12) {
            let open = (!self.open.is_empty()).then(|| self.roll(self.open.len() as u64) as usize);
            match (self.roll(40), open) {
                (0, _) => {
                    let (table, key) = (self.table(), self.key());
                    self.writer.expire(table, &key);
                }
                (1, _) if self.open.len() < 6 => self.prepare(),
                (2..5, Some(open)) => {
                    let verdict = if self.roll(4) == 0 { Verdict::Abort } else { Verdict::Commit };
                    self.writer.decide(self.open[open], verdict);
                    if self.roll(3) > 0 {
                        self.open.swap_remove(open);
                    }
                }
                (5, Some(open)) => {
                    self.writer.applied(&[self.open[open]], PartitionId(ID.0 + 1));
                }
                (6, _) if self.roll(30) == 0 => self.writer.began(NodeId(3), Incarnation(2)),
                _ => self.op().iter().for_each(|op| self.writer.run(&op)),
            }
        }
        self.writer.take(self.stamp)
    }

    /// An entry that gives `many` keys a value.
    pub fn bulk(&mut self, many: u64) -> Bytes {
        for number in 0..many {
            let (key, value) = (format!("key:{number}").into_bytes(), self.value());
            let mut batch = Batch::new();
            self.push(&mut batch, "set", &[&key, &value]);
            self.writer.run(&batch.op(0));
        }
        self.writer.take(self.stamp)
    }

    /// What only a leader does, between entries.
    pub fn local(&mut self, replica: &mut Replica<Redis>) {
        let stamp = Millis(replica.stamped().0.max(self.stamp.0) + self.roll(5_000));
        for _ in 0..self.roll(6) {
            let op = self.op();
            if Redis::access(op.head(0).code) == Access::Read {
                replica.read(&op.op(0), stamp, &mut Vec::new());
            }
            let (table, key) = (self.table(), self.key());
            let granule = Granule::Key(table, key);
            replica.images(&[Claim { granule, access: Access::Read }], stamp);
        }
        replica.sweep(TableIndex::default(), 0, 100, stamp);
        replica.expired();
        replica.done_below(NodeId(1 + self.roll(3) as u16), Incarnation(1), self.sequence);
        replica.watch_from(Incarnation(self.roll(9)));
    }
}

#[test]
fn replicas_of_one_log_are_alike_whatever_they_are_asked() {
    for seed in 0..30 {
        let mut story = Story::new(seed, 300);
        let (mut leader, mut follower) = (replica(), replica());
        let (mut led, mut followed) = (AppliedAnswers::default(), AppliedAnswers::default());
        for _ in 0..300 {
            let entry = story.entry();
            story.local(&mut leader);
            leader.apply_entry(&entry, true, &mut led).unwrap();
            follower.apply_entry(&entry, false, &mut followed).unwrap();
            assert!(followed.replies.is_empty());
            assert_eq!(led.applied.len(), followed.applied.len());
        }
        assert_eq!(leader.dump(), follower.dump(), "seed {seed}");
        assert_eq!(leader.digest(), follower.digest());
        assert_eq!(leader.locked, follower.locked);
        assert_eq!(leader.stamped(), follower.stamped());
    }
}

#[test]
fn a_digest_tells_replicas_apart() {
    let mut story = Story::new(1, 300);
    let mut replica = replica();
    let mut answers = AppliedAnswers::default();
    let mut digests = BTreeSet::new();
    for _ in 0..100 {
        replica.apply_entry(&story.bulk(1), false, &mut answers).unwrap();
        digests.insert(replica.digest());
    }
    assert!(digests.len() > 90, "{}", digests.len());
}

fn single(name: &str, args: &[&str]) -> Batch {
    let mut batch = Batch::new();
    let hash = args.first().map_or(0, |key| hasher().hash(key.as_bytes()));
    let head = OpHead {
        code: code(name),
        partition: ID,
        table: TableIndex::default(),
        resp3: false,
        hash,
    };
    batch.push(head, args.iter().map(|arg| arg.as_bytes()));
    batch
}

fn share(batch: Batch, sequence: u64, done_below: u64) -> (Prepare, Vec<Claim>) {
    let mut claims = Vec::new();
    for op in batch.iter() {
        Redis::keys(&op, &mut |table, key| {
            let granule = Granule::Key(table, key.to_vec());
            claims.push(Claim { granule, access: Redis::access(op.head.code) });
        });
    }
    let txn = TxnId { node: NodeId(1), incarnation: Incarnation(5), sequence, attempt: 1 };
    let prepare = Prepare {
        txn,
        age: Age { time: sequence, node: NodeId(1), tie: 0 },
        primary: ID,
        primary_life: Incarnation(1),
        participants: vec![ID, PartitionId(9)],
        synced: false,
        term: None,
        work: Prepared::Share(Share { batch, ..Share::default() }),
        done_below,
    };
    (prepare, claims)
}

/// An error says that nothing was executed only where nothing was.
#[test]
fn a_write_whose_reply_is_too_long_is_not_taken_for_refused() {
    let mut replica = replica();
    let mut writer = EntryWriter::new();
    for (name, args) in [("set", &["a", "1"][..]), ("get", &["a"]), ("getset", &["a", "2"])] {
        writer.run(&single(name, args).op(0));
    }
    let mut answers = AppliedAnswers { waiting: REPLIES_BYTES_MAX, ..AppliedAnswers::default() };
    replica.apply_entry(&writer.take(Millis(5)), true, &mut answers).unwrap();
    let untold = "-UNKNOWN the write was applied, and its reply is too long to be given\r\n";
    assert_eq!(answers.replies.get(0), untold.as_bytes());
    assert_eq!(answers.replies.part(1), Part::Left, "a read may be asked for again");
    assert_eq!(answers.replies.get(2), untold.as_bytes());
    let mut value = Vec::new();
    replica.read(&single("get", &["a"]).op(0), Millis(6), &mut value);
    assert_eq!(value, b"$1\r\n2\r\n");
}

/// A small transaction may ask for much more than can be carried: its vote says so, and the abort that
/// follows leaves nothing.
#[test]
fn replies_of_a_share_are_bounded() {
    const BYTES: usize = 16 << 20;
    const READS: usize = 10;
    let mut replica = replica();
    let mut writer = EntryWriter::new();
    writer.run(&single("set", &["a", &"v".repeat(BYTES)]).op(0));
    let mut batch = single("incr", &["b"]);
    (0..READS).for_each(|_| batch.push_op(&single("get", &["a"]).op(0)));
    batch.push_op(&single("incr", &["b"]).op(0));
    let (prepare, claims) = share(batch, 7, 0);
    writer.prepare(&prepare, &claims);
    let mut answers = AppliedAnswers::default();
    replica.apply_entry(&writer.take(Millis(5)), true, &mut answers).unwrap();
    assert_eq!(answers.applied, [Applied::TooMuch]);
    writer.decide(prepare.txn, Verdict::Abort);
    replica.apply_entry(&writer.take(Millis(6)), true, &mut answers).unwrap();
    assert_eq!(answers.applied, [Applied::Stands(Verdict::Abort)]);
    assert!(replica.intents().is_empty());
    let mut value = Vec::new();
    replica.read(&single("get", &["b"]).op(0), Millis(7), &mut value);
    assert_eq!(value, b"$-1\r\n");
}

#[test]
fn every_operation_has_its_reply_be_it_a_refusal() {
    let mut replica = replica();
    let mut answers = AppliedAnswers::default();
    let mut writer = EntryWriter::new();
    let (prepare, claims) = share(single("set", &["a", "2"]), 7, 0);
    let run = |writer: &mut EntryWriter, name, args: &[&str]| {
        writer.run(&single(name, args).op(0));
    };
    run(&mut writer, "set", &["a", "1"]);
    run(&mut writer, "incr", &["b"]);
    writer.prepare(&prepare, &claims);
    run(&mut writer, "incr", &["a"]);
    run(&mut writer, "incr", &["b"]);
    writer.expire(TableIndex::default(), b"a");
    writer.decide(prepare.txn, Verdict::Commit);
    run(&mut writer, "get", &["a"]);
    run(&mut writer, "get", &["nothing"]);
    replica.apply_entry(&writer.take(Millis(5)), true, &mut answers).unwrap();
    let replies: Vec<String> = (0..answers.replies.len())
        .map(|index| answers.replies.get(index).escape_ascii().to_string())
        .collect();
    let locked = r"-TRYAGAIN a transaction holds the key for too long\r\n";
    assert_eq!(replies, [r"+OK\r\n", r":1\r\n", locked, r":2\r\n", r"$1\r\n2\r\n", r"$-1\r\n"]);
    let mut vote = Replies::default();
    vote.push(b"+OK\r\n");
    let applied = [Applied::Voted(vote), Applied::Refused, Applied::Stands(Verdict::Commit)];
    assert_eq!(answers.applied, applied);
    assert_eq!(replica.locked, Locked::default());
    assert_eq!(replica.outcomes().len(), 1, "the other participant has to confirm");
}

#[test]
fn a_prepare_over_another_intent_is_refused() {
    let mut replica = replica();
    let mut apply = |batch: Batch, sequence| {
        let (prepare, claims) = share(batch, sequence, 0);
        replica.apply(Mutation::Prepare(Box::new(prepare), &claims), Millis(1), &mut Vec::new())
    };
    assert!(matches!(apply(single("get", &["a"]), 1), Applied::Voted(_)));
    assert!(matches!(apply(single("get", &["a"]), 2), Applied::Voted(_)), "reads share a key");
    assert_eq!(apply(single("set", &["a", "1"]), 3), Applied::Refused);
    assert!(matches!(apply(single("set", &["b", "1"]), 4), Applied::Voted(_)));
    assert_eq!(apply(single("get", &["b"]), 5), Applied::Refused);
}

#[test]
fn what_is_over_follows_from_the_log_alone() {
    let (mut one, mut other) = (replica(), replica());
    let apply = |replica: &mut Replica<Redis>, mutation: Mutation<'_>| {
        replica.apply(mutation, Millis(1), &mut Vec::new())
    };
    // Heard by one of them only: reason not to propose, no reason to refuse what was.
    let (late, claims) = share(single("set", &["a", "1"]), 3, 0);
    one.done_below(NodeId(1), Incarnation(5), 10);
    assert!(one.is_over(late.txn) && !other.is_over(late.txn));
    for replica in [&mut one, &mut other] {
        let applied = apply(replica, Mutation::Prepare(Box::new(late.clone()), &claims));
        assert!(matches!(applied, Applied::Voted(_)));
        apply(replica, Mutation::Decide(late.txn, Verdict::Abort));
    }
    // Logged: both know.
    let (next, next_claims) = share(single("set", &["b", "1"]), 12, 11);
    let (later, later_claims) = share(single("set", &["c", "1"]), 10, 0);
    for replica in [&mut one, &mut other] {
        apply(replica, Mutation::Prepare(Box::new(next.clone()), &next_claims));
        assert!(replica.is_over(later.txn));
        let refused = apply(replica, Mutation::Prepare(Box::new(later.clone()), &later_claims));
        assert_eq!(refused, Applied::Refused);
        apply(replica, Mutation::Began(NodeId(1), Incarnation(6)));
        let (old, claims) = share(single("set", &["d", "1"]), 99, 0);
        assert_eq!(
            apply(replica, Mutation::Prepare(Box::new(old.clone()), &claims)),
            Applied::Refused
        );
    }
    assert_eq!(one.dump(), other.dump());
}

#[test]
fn stamps_never_decrease_and_only_the_log_counts() {
    let (mut one, mut other) = (replica(), replica());
    let mut writer = EntryWriter::new();
    let mut answers = AppliedAnswers::default();
    for (stamp, name, args) in [
        (500, "set", vec!["a", "1", "PX", "100"]),
        // An earlier stamp stands for the one before it: the key is as it was at 500.
        (100, "append", vec!["a", "2"]),
        (600, "append", vec!["a", "3"]),
    ] {
        writer.run(&single(name, &args).op(0));
        let entry = writer.take(Millis(stamp));
        for replica in [&mut one, &mut other] {
            replica.apply_entry(&entry, true, &mut answers).unwrap();
        }
    }
    assert_eq!(one.dump(), other.dump());
    assert_eq!((one.stamped(), other.stamped()), (Millis(600), Millis(600)));
    let mut reply = Vec::new();
    one.read(&single("get", &["a"]).op(0), Millis(600), &mut reply);
    assert_eq!(reply, b"$1\r\n3\r\n", "it expired at 600, and began anew");
}

#[test]
fn damaged_entries_never_panic() {
    let mut story = Story::new(5, 50);
    for _ in 0..60 {
        let entry = story.entry();
        let mut damaged = entry.to_vec();
        let at = story.roll(entry.len() as u64) as usize;
        for flip in [0x01, 0x80, 0xff] {
            damaged[at] = entry[at] ^ flip;
            let mut replica = replica();
            // It is told, or is an entry of something else.
            let _ = replica.apply_entry(&damaged, true, &mut AppliedAnswers::default());
        }
        assert!(
            replica()
                .apply_entry(&entry[..entry.len() - 1], true, &mut AppliedAnswers::default())
                .is_err()
        );
    }
}

#[test]
fn an_unknown_operation_is_not_passed_over() {
    let mut batch = single("set", &["a", "1"]);
    let head = OpHead { code: OpCode(9_999), ..batch.head(0) };
    batch.push(head, []);
    let mut writer = EntryWriter::new();
    batch.iter().for_each(|op| writer.run(&op));
    let mut replica = replica();
    let applied =
        replica.apply_entry(&writer.take(Millis(1)), true, &mut AppliedAnswers::default());
    assert_eq!(applied.unwrap_err().what, "an operation that is not known");
    assert_eq!(replica.tables().len(TableIndex::default()), 0, "nothing of the section was run");
}

#[test]
fn an_unknown_operation_of_a_peer_is_seen_before_it_is_logged() {
    let known = single("set", &["a", "1"]);
    let mut unknown = known.clone();
    unknown.push(OpHead { code: OpCode(9_999), ..known.head(0) }, []);
    for (batch, expected) in [(known, true), (unknown, false)] {
        let (prepare, _) = share(batch.clone(), 1, 0);
        let whole = Prepare { work: Prepared::Whole(batch.clone(), vec![]), ..prepare.clone() };
        let lock = Lock {
            txn: prepare.txn,
            age: prepare.age,
            mode: Mode::Read,
            share: Share { batch, ..Share::default() },
            done_below: 0,
        };
        for message in [
            ToPartition::Prepare(Box::new(prepare)),
            ToPartition::Prepare(Box::new(whole)),
            ToPartition::Lock(Box::new(lock)),
        ] {
            assert_eq!(message.is_known::<Redis>(), expected, "{message:?}");
        }
    }
}
