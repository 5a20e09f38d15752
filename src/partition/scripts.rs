//! Golden scripts of a replica, of a partition and of a Bucket: what they share.
//!
//! A script says what happens and shows what comes of it, both in words that need no knowledge of
//! the code. Operations are Redis commands, `SET a 1`. Transactions are named by their sequence:
//! `t7` is the first attempt of the seventh transaction of node 2's Coordinator in its life 1,
//! `t7/2` its second attempt, `t7@3` is of node 3, `t7@3.2` of node 3 in its life 2.

mod nodes;
mod replica;

use super::PartitionEffect;
use super::replica::Replica;
use super::replica::tests::code;
use crate::batch::machine::{Machine, Scope};
use crate::batch::{Batch, Op, OpHead, Part, Replies};
use crate::command::Redis;
use crate::ids::Term;
use crate::ids::{Age, Incarnation, NodeId, PartitionId, TableIndex, TxnId};
use crate::script::{Args, run_all};
use crate::store::key_state::{HeldValue, KeyState};
use crate::store::tables::{Access, KeyHasher};
use crate::store::value::ValueBuf;
use crate::txn::claims::share_claims;
use crate::txn::protocol::{
    Claim, Decide, Granule, Knowledge, Prepare, Prepared, Share, ToCoordinator, ToLocks,
    ToPartition, Verdict, Watched,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::str::FromStr;

/// What a step of a script may fail with.
type Failure = Box<dyn Error>;

/// The versions of watched keys, as their watcher was told.
type Versions = BTreeMap<String, u64>;

#[test]
fn scripts_of_a_replica() {
    run_all("tests/scripts/replica", replica::Script::new);
}

#[test]
fn scripts_of_a_partition() {
    run_all("tests/scripts/partition", nodes::Script::new);
}

#[test]
fn scripts_of_a_bucket() {
    run_all("tests/scripts/bucket", nodes::Script::new);
}

/// A transaction as a script names it.
struct Named(TxnId);

impl FromStr for Named {
    type Err = Failure;
    fn from_str(word: &str) -> Result<Named, Failure> {
        let name = word.strip_prefix('t').ok_or("a transaction is t1, t1/2, t1@3 or t1@3.2")?;
        let (name, of) = name.split_once('@').unwrap_or((name, "2"));
        let (sequence, attempt) = name.split_once('/').unwrap_or((name, "1"));
        let (node, life) = of.split_once('.').unwrap_or((of, "1"));
        Ok(Named(TxnId {
            node: NodeId(node.parse()?),
            incarnation: Incarnation(life.parse()?),
            sequence: sequence.parse()?,
            attempt: attempt.parse()?,
        }))
    }
}

/// A transaction's name.
fn name(txn: TxnId) -> String {
    let TxnId { node, incarnation, sequence, attempt } = txn;
    let attempt = if attempt == 1 { String::new() } else { format!("/{attempt}") };
    let of = match (node.0, incarnation.0) {
        (2, 1) => String::new(),
        (node, 1) => format!("@{node}"),
        (node, life) => format!("@{node}.{life}"),
    };
    format!("t{sequence}{attempt}{of}")
}

fn names(txns: &[TxnId]) -> String {
    list(txns.iter().map(|txn| name(*txn)))
}

/// Things one after the other, or the word for none.
fn list(things: impl Iterator<Item = String>) -> String {
    let things: Vec<String> = things.collect();
    if things.is_empty() { "nothing".to_owned() } else { things.join(", ") }
}

/// A verdict as a script says it.
struct Said(Verdict);

impl FromStr for Said {
    type Err = Failure;
    fn from_str(word: &str) -> Result<Said, Failure> {
        match word {
            "commit" => Ok(Said(Verdict::Commit)),
            "abort" => Ok(Said(Verdict::Abort)),
            _ => Err("a verdict is commit or abort".into()),
        }
    }
}

fn ended(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Commit => "committed",
        Verdict::Abort => "aborted",
    }
}

/// What is known of an outcome, as a script says it.
struct Heard(Knowledge);

impl FromStr for Heard {
    type Err = Failure;
    fn from_str(word: &str) -> Result<Heard, Failure> {
        match word {
            "committed" => Ok(Heard(Knowledge::Committed)),
            "aborted" => Ok(Heard(Knowledge::Aborted)),
            "undecided" => Ok(Heard(Knowledge::Undecided)),
            _ => Err("known is committed, aborted or undecided".into()),
        }
    }
}

fn known(knowledge: Knowledge) -> &'static str {
    match knowledge {
        Knowledge::Committed => "committed",
        Knowledge::Aborted => "aborted",
        Knowledge::Undecided => "undecided",
    }
}

/// Appends an operation to a batch. The word `x@300` stands for so many bytes of x.
fn push(
    batch: &mut Batch,
    hasher: KeyHasher,
    partition: PartitionId,
    words: &[&str],
) -> Result<(), Failure> {
    let (command, args) = words.split_first().ok_or("an operation is a command and its words")?;
    let code = code(&command.to_lowercase());
    let args: Vec<Vec<u8>> = args.iter().map(|word| bytes_of(word)).collect::<Result<_, _>>()?;
    let hash = match args.first() {
        Some(key) if Redis::scope(code) == Scope::Keys => hasher.hash(key),
        _ => 0,
    };
    let head = OpHead { code, partition, table: TableIndex::default(), resp3: false, hash };
    batch.push(head, args.iter().map(Vec::as_slice));
    Ok(())
}

fn bytes_of(word: &str) -> Result<Vec<u8>, Failure> {
    match word.split_once('@') {
        Some((byte, count)) => Ok(byte.repeat(count.parse()?).into_bytes()),
        None => Ok(word.as_bytes().to_vec()),
    }
}

/// Whether the command of a script is one of Redis.
fn is_operation(command: &str) -> bool {
    command.chars().all(|letter| letter.is_ascii_uppercase())
}

/// An operation's words, long ones by their length.
fn words_of(op: &Op<'_>) -> String {
    let codes = include_str!("../command/codes.txt");
    let is_it = |(code, _): &(&str, &str)| *code == op.head.code.0.to_string();
    let row = codes.lines().filter_map(|line| line.split_once(' ')).find(is_it);
    let command = row.map_or("?".to_owned(), |(_, command)| command.to_uppercase());
    let words = op.args.iter().map(text);
    std::iter::once(command).chain(words).collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    match bytes.len() {
        0..=40 => bytes.escape_ascii().to_string(),
        long => format!("<{long} bytes>"),
    }
}

/// A reply as a client shows it.
fn reply(bytes: &[u8]) -> String {
    read_reply(bytes).map_or_else(|| text(bytes), |(shown, _)| shown)
}

fn read_reply(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (kind, line) = line.split_first()?;
    let line = String::from_utf8_lossy(line).into_owned();
    match kind {
        b'-' => Some((format!("-{line}"), rest)),
        b'$' if line == "-1" => Some(("nil".to_owned(), rest)),
        b'$' => {
            let len: usize = line.parse().ok()?;
            Some((text(rest.get(..len)?), rest.get(len + 2..)?))
        }
        b'*' => {
            let (mut items, mut rest) = (Vec::new(), rest);
            for _ in 0..line.parse().ok()? {
                let (item, behind) = read_reply(rest)?;
                items.push(item);
                rest = behind;
            }
            Some((format!("[{}]", items.join(", ")), rest))
        }
        _ => Some((line, rest)),
    }
}

fn part(part: Part<'_>) -> String {
    match part {
        Part::Answered(bytes) => reply(bytes),
        Part::NotLeader => "not led here".to_owned(),
        Part::Left => "left, to be asked again".to_owned(),
    }
}

fn answers(replies: &Replies) -> String {
    list((0..replies.len()).map(|index| part(replies.part(index))))
}

/// Keys claimed: `w.a` for writing, `r.a` for reading, `w.whole` for the whole partition.
fn claims_from(words: &str) -> Result<Vec<Claim>, Failure> {
    let claim = |word: &str| -> Result<Claim, Failure> {
        let (access, key) = word.split_once('.').ok_or("a claim is r.KEY or w.KEY")?;
        let access = if access == "w" { Access::Write } else { Access::Read };
        let granule = match key {
            "whole" => Granule::Whole,
            key => Granule::Key(TableIndex::default(), key.into()),
        };
        Ok(Claim { granule, access })
    };
    words.split_whitespace().map(claim).collect()
}

fn granule(granule: &Granule) -> String {
    match granule {
        Granule::Whole => "the whole partition".to_owned(),
        Granule::Key(_, key) => text(key),
    }
}

fn claim(claim: &Claim) -> String {
    let access = if claim.access == Access::Write { "write" } else { "read" };
    format!("{} to {access}", granule(&claim.granule))
}

fn claims(claims: &[Claim]) -> String {
    list(claims.iter().map(claim))
}

/// The states of keys: `a=5` and `b` for one that is absent.
fn images_from(words: &str) -> Vec<KeyState> {
    let image = |word: &str| {
        let (key, value) =
            word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        let held = value.map(|value| HeldValue { value: ValueBuf::string(value), expires: None });
        KeyState { table: TableIndex::default(), key: key.into(), held }
    };
    words.split_whitespace().map(image).collect()
}

fn image(image: &KeyState) -> String {
    let key = text(&image.key);
    match &image.held {
        Some(held) => match held.expires {
            Some(at) => format!("{key} = {} until {}", text(&held.value.content), at.0),
            None => format!("{key} = {}", text(&held.value.content)),
        },
        None => format!("{key} is absent"),
    }
}

fn age(txn: TxnId, time: u64) -> Age {
    Age { time, node: txn.node, tie: txn.sequence }
}

fn partitions_from(words: &str) -> Result<Vec<PartitionId>, Failure> {
    words.split_whitespace().map(|word| Ok(PartitionId(word.parse()?))).collect()
}

fn share(
    args: &mut Args<'_>,
    own: PartitionId,
    hasher: KeyHasher,
    versions: &Versions,
) -> Result<Share, Failure> {
    let claims = claims_from(&args.key("claims", String::new())?)?;
    let mut watched = Vec::new();
    for key in args.key("watched", String::new())?.split_whitespace() {
        let version = *versions.get(key).ok_or("it is not watched")?;
        watched.push(Watched { table: TableIndex::default(), key: key.into(), version });
    }
    let mut batch = Batch::new();
    for line in args.words() {
        let words: Vec<&str> = line.split_whitespace().collect();
        push(&mut batch, hasher, own, &words)?;
    }
    Ok(Share { batch, claims, watched })
}

/// `TXN "OPERATION".. [primary=ID] [with="ID.."] [life=LIFE] [term=TERM] [age=TIME] [below=SEQUENCE]
/// [images="KEY=VALUE.."] [claims="w.KEY.."] [watched="KEY.."] [synced=true]`, and what it claims.
fn prepare_from(
    args: &mut Args<'_>,
    own: PartitionId,
    hasher: KeyHasher,
    versions: &Versions,
) -> Result<(Prepare, Vec<Claim>), Failure> {
    let Named(txn) = args.next()?;
    let primary = PartitionId(args.key("primary", own.0)?);
    let mut participants = partitions_from(&args.key("with", String::new())?)?;
    participants.extend([own, primary]);
    participants.sort_unstable();
    participants.dedup();
    let time = args.key("age", txn.sequence)?;
    let term: u64 = args.key("term", 0)?;
    let images = images_from(&args.key("images", String::new())?);
    let (primary_life, done_below) = (Incarnation(args.key("life", 1)?), args.key("below", 0)?);
    let synced = args.key("synced", false)?;
    let mut share = share(args, own, hasher, versions)?;
    share.claims.extend(images.iter().map(|image| Claim {
        granule: Granule::Key(image.table, image.key.clone()),
        access: Access::Write,
    }));
    let claims = share_claims::<Redis>(&share);
    let work = match (images.is_empty(), share.batch.is_empty()) {
        (true, _) => Prepared::Share(share),
        (false, true) => Prepared::Images(images),
        (false, false) => Prepared::Whole(share.batch, images),
    };
    let prepare = Prepare {
        txn,
        age: age(txn, time),
        primary,
        primary_life,
        participants,
        synced,
        term: (term > 0).then_some(Term(term)),
        work,
        done_below,
    };
    Ok((prepare, claims))
}

/// What a replica holds, a line for each thing.
fn contents(replica: &Replica<Redis>) -> Vec<String> {
    let mut lines = Vec::new();
    for table in TableIndex::all() {
        replica.tables().for_each(table, &mut |item| {
            let expires = item.expires().map_or(String::new(), |at| format!(" until {}", at.0));
            let place =
                if table.index() == 0 { String::new() } else { format!(" in table {table}") };
            lines.push(format!("{} = {}{expires}{place}", text(item.key()), text(item.content())));
        });
    }
    lines.sort_unstable();
    if lines.is_empty() {
        lines.push("no keys".to_owned());
    }
    for (txn, intent) in replica.intents() {
        lines.push(format!(
            "intent of {}, prepared at {}, primary p{}: {}",
            name(*txn),
            intent.since.0,
            intent.primary,
            claims(&intent.claims())
        ));
    }
    for (txn, outcome) in replica.outcomes() {
        let waits = list(outcome.unconfirmed.iter().map(|id| format!("p{id}")));
        lines.push(format!("commit of {}, not confirmed by {waits}", name(*txn)));
    }
    lines
}

fn effect(effect: &PartitionEffect) -> String {
    match effect {
        PartitionEffect::Coordinator(node, message) => {
            format!("to node {node}: {}", to_coordinator(message))
        }
        PartitionEffect::Partition(id, message) => format!("to p{id}: {}", to_partition(message)),
        PartitionEffect::Locks(message) => format!("to the lock manager: {}", to_locks(message)),
    }
}

fn to_coordinator(message: &ToCoordinator) -> String {
    match message {
        ToCoordinator::Granted { txn, term, stamp, replies, images, .. } => {
            let mut line = format!("{} locked in term {} at {}", name(*txn), term.0, stamp.0);
            if !replies.is_empty() {
                line += &format!(", reads {}", answers(replies));
            }
            if !images.is_empty() {
                line += &format!(", {}", list(images.iter().map(image)));
            }
            line
        }
        ToCoordinator::Voted { txn, vote: Some(replies), .. } => {
            format!("{} votes yes, replies {}", name(*txn), answers(replies))
        }
        ToCoordinator::Voted { txn, vote: None, .. } => format!("{} votes no", name(*txn)),
        ToCoordinator::Changed { txn } => format!("{} has lost a watched key", name(*txn)),
        ToCoordinator::Full { txn } => format!("{} needs memory that there is not", name(*txn)),
        ToCoordinator::TooMuch { txn } => format!("{} asks for too much", name(*txn)),
        ToCoordinator::Decided { txn, verdict } => {
            format!("{} is decided: {}", name(*txn), ended(*verdict))
        }
        ToCoordinator::NotLed { txn, partition } => {
            format!("{} was not taken by p{partition}", name(*txn))
        }
        ToCoordinator::Confirmed { txn, held: true, .. } => {
            format!("{} held its locks", name(*txn))
        }
        ToCoordinator::Confirmed { txn, held: false, .. } => {
            format!("{} did not hold its locks", name(*txn))
        }
        ToCoordinator::Wound { txn } => format!("{} is wounded", name(*txn)),
        ToCoordinator::Inquire { txn, asker } => {
            format!("p{asker} asks what became of {}", name(*txn))
        }
    }
}

fn to_partition(message: &ToPartition) -> String {
    match message {
        ToPartition::Decide(Decide { txn, verdict, primary, .. }) => {
            format!("{} {} at p{primary}", name(*txn), ended(*verdict))
        }
        ToPartition::Resolve { txn, asker, primary_life } => {
            let life = match *primary_life {
                Incarnation::OUTLIVED => String::new(),
                Incarnation(life) => format!(" in life {life} of your node"),
            };
            format!("p{asker} asks its primary what became of {}{life}", name(*txn))
        }
        ToPartition::Lost { txn } => format!("the outcome of {} was lost", name(*txn)),
        ToPartition::Inquire { txn, asker } => {
            format!("p{asker} asks a participant what it knows of {}", name(*txn))
        }
        ToPartition::Knows { txn, from, knowledge } => {
            format!("p{from} knows of {}: {}", name(*txn), known(*knowledge))
        }
        ToPartition::Applied { txns, from } => format!("p{from} has applied {}", names(txns)),
        ToPartition::Lock(lock) => format!("lock {}", name(lock.txn)),
        ToPartition::Prepare(prepare) => format!("prepare {}", name(prepare.txn)),
        ToPartition::Confirm { txn, .. } => format!("confirm {}", name(*txn)),
        ToPartition::CoordinatorKnows { txn, knowledge } => {
            format!("the Coordinator knows of {}: {}", name(*txn), known(*knowledge))
        }
    }
}

fn to_locks(message: &ToLocks) -> String {
    match message {
        ToLocks::Acquire(acquire) => {
            let who = acquire.owner.map_or("an operation".to_owned(), name);
            let held = match acquire.holders.is_empty() {
                true => String::new(),
                false => {
                    let holders = acquire.holders.iter();
                    let held = holders
                        .map(|(what, held)| format!("{} by {}", granule(what), name(held.txn)));
                    format!("; held: {}", list(held))
                }
            };
            format!("request {}, {who} wants {}{held}", acquire.ticket.0, claims(&acquire.claims))
        }
        ToLocks::Cancel { ticket, .. } => format!("request {} is given up", ticket.0),
        ToLocks::Released { granules, txn, .. } => {
            format!("{} releases {}", name(*txn), list(granules.iter().map(granule)))
        }
        ToLocks::Uncontended { granules, .. } => {
            format!("nothing waits for {}", list(granules.iter().map(granule)))
        }
    }
}
