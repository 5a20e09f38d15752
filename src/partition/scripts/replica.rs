//! Scripts of a replica that applies entries, and of another one that follows it: the same entries,
//! with nobody who waits for replies. After each entry both must be alike.

use super::{
    Failure, Named, Said, Versions, answers, contents, ended, is_operation, name, names,
    prepare_from, push, reply, words_of,
};
use crate::batch::{Batch, OpCode, OpHead};
use crate::command::Redis;
use crate::command::transaction::read_versions;
use crate::ids::{Incarnation, Millis, NodeId, PartitionId, TableIndex};
use crate::partition::record::EntryWriter;
use crate::partition::replica::tests::{ID, hasher, replica};
use crate::partition::replica::{Applied, AppliedAnswers, Replica};
use crate::partition::snapshot::Restorer;
use crate::script::Args;
use crate::txn::protocol::Watched;
use bytes::Bytes;
use std::fmt::Write;

/// What a snapshot step copies at most, in bytes: a piece of a few items.
const PIECE_BYTES: usize = 64;

/// Something in an entry.
enum Logged {
    Operation(String),
    Mutation(String),
}

pub struct Script {
    leader: Replica<Redis>,
    follower: Replica<Redis>,
    writer: EntryWriter,
    /// What the next entry holds.
    logged: Vec<Logged>,
    versions: Versions,
    /// The stream of a snapshot, and the digest of what it is of.
    snapshot: Vec<u8>,
    digest: u64,
    /// The entries since it began.
    since: Vec<Bytes>,
}

impl Script {
    pub fn new() -> Script {
        Script {
            leader: replica(),
            follower: replica(),
            writer: EntryWriter::new(),
            logged: Vec::new(),
            versions: Versions::new(),
            snapshot: Vec::new(),
            digest: 0,
            since: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        self.logged.push(Logged::Mutation(what));
    }

    /// Applies the entry at both, and tells what each thing in it came to.
    fn apply(&mut self, entry: &[u8], told: &mut String) -> Result<(), Failure> {
        let (mut led, mut followed) = (AppliedAnswers::default(), AppliedAnswers::default());
        let logged = std::mem::take(&mut self.logged);
        if let Err(damaged) = self.leader.apply_entry(entry, true, &mut led) {
            *self = Script::new();
            writeln!(told, "{damaged}; the replica is given up")?;
            return Ok(());
        }
        self.follower.apply_entry(entry, false, &mut followed)?;
        let (mut run, mut applied) = (0, led.applied.iter());
        for one in logged {
            match one {
                Logged::Operation(words) => {
                    writeln!(told, "{words}: {}", super::part(led.replies.part(run)))?;
                    run += 1;
                }
                Logged::Mutation(what) => {
                    let came_to = match applied.next().ok_or("it came to nothing")? {
                        Applied::Done => "done".to_owned(),
                        Applied::Voted(replies) => {
                            format!("prepared, replies {}", answers(replies))
                        }
                        Applied::Refused => "refused".to_owned(),
                        Applied::TooMuch => "asks for too much".to_owned(),
                        Applied::Stands(verdict) => ended(*verdict).to_owned(),
                    };
                    writeln!(told, "{what}: {came_to}")?;
                }
            }
        }
        if self.leader.digest() != self.follower.digest() {
            writeln!(told, "the follower is not like the leader")?;
        }
        Ok(())
    }

    fn single(words: &[&str]) -> Result<Batch, Failure> {
        let mut batch = Batch::new();
        push(&mut batch, hasher(), ID, words)?;
        Ok(batch)
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Failure> {
        let mut args = Args::new(command);
        let mut told = String::new();
        match command.name.as_str() {
            // The next entry: operations, and what else a log holds.
            operation if is_operation(operation) => {
                let mut words = vec![operation];
                words.extend(args.words());
                let batch = Script::single(&words)?;
                self.writer.run(&batch.op(0));
                self.logged.push(Logged::Operation(words_of(&batch.op(0))));
            }
            "unknown" => {
                let table = TableIndex::default();
                let head =
                    OpHead { code: OpCode(9_999), partition: ID, table, resp3: false, hash: 0 };
                let mut batch = Batch::new();
                batch.push(head, []);
                self.writer.run(&batch.op(0));
            }
            "expire" => {
                let key: String = args.next()?;
                self.writer.expire(TableIndex::default(), key.as_bytes());
                self.note(format!("expire {key}"));
            }
            "prepare" => {
                let (prepare, claims) = prepare_from(&mut args, ID, hasher(), &self.versions)?;
                self.writer.prepare(&prepare, &claims);
                self.note(format!("prepare {}", name(prepare.txn)));
            }
            "decide" => {
                let (Named(txn), Said(verdict)) = (args.next()?, args.next()?);
                self.writer.decide(txn, verdict);
                self.note(format!("decide {}", name(txn)));
            }
            "applied" => {
                let from = PartitionId(args.key("from", 9)?);
                let mut txns = Vec::new();
                for word in args.words() {
                    txns.push(word.parse::<Named>()?.0);
                }
                self.writer.applied(&txns, from);
                self.note(format!("p{from} has applied {}", names(&txns)));
            }
            "began" => {
                let (node, life) = (NodeId(args.next()?), Incarnation(args.next()?));
                self.writer.began(node, life);
                self.note(format!("node {node} began life {}", life.0));
            }
            // apply STAMP [cut=BYTES]: the entry is applied, or its beginning only.
            "apply" => {
                let stamp = Millis(args.next()?);
                let cut: usize = args.key("cut", 0)?;
                let entry = self.writer.take(stamp);
                self.since.push(entry.clone());
                self.apply(&entry[..entry.len().saturating_sub(cut)], &mut told)?;
            }
            // What is asked of the leader's replica beside its log.
            "look" => {
                let stamp = Millis(args.key("at", 0)?);
                let words = args.words();
                let batch = Script::single(&words)?;
                let mut bytes = Vec::new();
                self.leader.read(&batch.op(0), stamp, &mut bytes);
                writeln!(told, "{}: {}", words_of(&batch.op(0)), reply(&bytes))?;
                if words[0] == "WATCH" {
                    let versions = read_versions(&bytes).ok_or("no version")?;
                    self.versions.insert(words[1].to_owned(), versions[0]);
                    told = format!("{} is watched\n", words[1]);
                }
                for (_, key) in self.leader.expired().into_iter().flatten() {
                    writeln!(told, "{} has expired", super::text(&key))?;
                }
            }
            "unchanged" => {
                let stamp = Millis(args.key("at", 0)?);
                for key in args.words() {
                    let version = *self.versions.get(key).ok_or("it is not watched")?;
                    let (table, bytes) = (TableIndex::default(), key.as_bytes().to_vec());
                    let watched = [Watched { table, key: bytes, version }];
                    let is = self.leader.is_unchanged(&watched, stamp);
                    writeln!(told, "{key}: {}", if is { "unchanged" } else { "changed" })?;
                }
            }
            "heard" => {
                let (node, life) =
                    (NodeId(args.key("node", 2)?), Incarnation(args.key("life", 1)?));
                self.leader.done_below(node, life, args.key("below", 0)?);
            }
            "linger" => {
                let sequences = args.next()?;
                self.leader.linger(sequences);
                self.follower.linger(sequences);
            }
            "over" => {
                for word in args.words() {
                    let Named(txn) = word.parse()?;
                    let over = match (self.leader.is_over(txn), self.leader.ended(txn)) {
                        (true, Some(verdict)) => format!("over, {}", ended(verdict)),
                        (true, None) => "over, its end is not remembered".to_owned(),
                        (false, _) => "may prepare".to_owned(),
                    };
                    let follower = match self.follower.is_over(txn) == self.leader.is_over(txn) {
                        true => "",
                        false => "; the follower has not heard of it",
                    };
                    writeln!(told, "{word}: {over}{follower}")?;
                }
            }
            "show" => {
                for line in contents(&self.leader) {
                    writeln!(told, "{line}")?;
                }
            }
            // A snapshot: begun, copied piece by piece, and made a replica of again.
            "snapshot" => {
                self.snapshot.clear();
                self.since.clear();
                self.digest = self.leader.digest();
                self.leader.begin_snapshot(&mut self.snapshot);
                writeln!(told, "a snapshot begins as of {}", self.leader.stamped().0)?;
            }
            "copy" => {
                let pieces: usize = args.key("pieces", usize::MAX)?;
                let step = |_: &usize| self.leader.snapshot_step(&mut self.snapshot, PIECE_BYTES);
                let copied = (0..pieces).take_while(step).count();
                let how = if copied < pieces { "to its end" } else { "in part" };
                writeln!(told, "copied {how}")?;
            }
            // restore [cut=BYTES] [flip=BYTE]: from the stream, or from one that was damaged.
            "restore" => {
                let (cut, flip): (usize, usize) = (args.key("cut", 0)?, args.key("flip", 0)?);
                let mut stream = self.snapshot[..self.snapshot.len().saturating_sub(cut)].to_vec();
                if flip > 0 {
                    stream[flip] ^= 0x10;
                }
                let length = self.snapshot.len() as u64;
                let mut restorer = Restorer::<Redis>::new(ID, hasher(), length);
                let restored = restorer.push(&stream).and_then(|()| restorer.finish());
                match restored {
                    Err(damaged) => writeln!(told, "{damaged}")?,
                    Ok(replica) => {
                        let same = |yes| if yes { "like" } else { "not like" };
                        let (then, now) = (self.digest, self.leader.digest());
                        let then = same(replica.digest() == then);
                        let now = same(replica.digest() == now);
                        let stamp = replica.stamped().0;
                        writeln!(told, "restored as of {stamp}")?;
                        writeln!(told, "{then} the replica when the snapshot began")?;
                        writeln!(told, "{now} the replica as it is")?;
                        self.follower = replica;
                    }
                }
            }
            // The restored replica applies the entries since the snapshot began.
            "catch_up" => {
                for entry in &self.since {
                    self.follower.apply_entry(entry, false, &mut AppliedAnswers::default())?;
                }
                let same = self.follower.digest() == self.leader.digest();
                let same = if same { "like" } else { "not like" };
                writeln!(told, "{} entries later it is {same} the replica", self.since.len())?;
            }
            other => return Err(format!("no command {other}").into()),
        }
        args.end()?;
        Ok(told)
    }
}
