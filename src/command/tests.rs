//! Commands from the client's words to the reply's bytes, over several partitions without
//! anything in between: what the golden scripts in `tests/scripts/plan` and the tests here ask.
//!
//! The replies in the scripts are those of redis-server 7.0.15.

use super::argv::ArgvBuf;
use super::client::{Client, Then};
use super::facts::Facts;
use super::node_query::{NodeAnswer, NodeQuery, Question};
use super::plan::{PieceLayout, Placing, Plan, plan, route_one};
use super::reply::Reply;
use super::transaction::{Exec, Queue, Watching};
use super::{Redis, resolve, spec};
use crate::batch::machine::Machine;
use crate::batch::{Batch, OpHead, Replies};
use crate::cluster::slots::{Atlas, Ring};
use crate::ids::{Millis, PartitionId};
use crate::store::tables::{KeyHasher, Tables};
use crate::txn::protocol::{Granule, Mode, Work};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;

/// A cluster reduced to its partitions and one client.
pub(super) struct Cluster {
    atlas: Atlas,
    hasher: KeyHasher,
    partitions: Vec<Tables>,
    pub(super) client: Client,
    facts: Facts,
    pub(super) now: Millis,
}

impl Cluster {
    pub(super) fn new(partitions: u16) -> Cluster {
        Cluster::of(Atlas::new(Ring::new(partitions), |_| 0))
    }

    fn of(atlas: Atlas) -> Cluster {
        let hasher = KeyHasher::new(7);
        let now = Millis(1_700_000_000_000);
        Cluster {
            partitions: atlas.all().iter().map(|_| Tables::new(hasher)).collect(),
            atlas,
            hasher,
            client: Client::new(9, "127.0.0.1:5000".into(), "127.0.0.1:7001".into(), now),
            facts: Facts { now, ..Facts::default() },
            now,
        }
    }

    /// The reply to a request, and how it was served.
    pub(super) fn ask<W: AsRef<[u8]>>(&mut self, argv: &[W]) -> (Vec<u8>, String) {
        let argv_buf: ArgvBuf = argv.iter().collect();
        let argv = argv_buf.argv();
        let mut out = Vec::new();
        let mut reply = Reply::new(&mut out, self.client.resp3);
        let Some(spec) = resolve(argv, &mut reply) else { return (out, "refused".into()) };
        let place = Placing {
            key_bytes_max: super::KEY_BYTES_MAX,
            atlas: &self.atlas,
            hasher: self.hasher,
            table: self.client.table,
            resp3: self.client.resp3,
        };
        let planned = plan(spec, argv, &place);
        if let Some(head) = route_one(spec, argv, &place) {
            let Plan::One(planned) = planned else { panic!("a single key is planned as one") };
            assert_eq!(planned, head);
        }
        let mut way = String::new();
        match planned {
            Plan::Refused(error) => {
                reply.error(&error);
                way.push_str("refused");
            }
            Plan::Session(run) => {
                let then = run(&mut self.client, &self.facts, argv, &mut reply);
                way.push_str("session");
                if then != Then::Continue {
                    write!(way, ", then {then:?}").unwrap();
                }
            }
            Plan::Node(run) => {
                way.push_str("node");
                match run(&self.client, &self.facts, argv, &mut reply) {
                    Some(NodeQuery::Ask(question, show)) => {
                        let told = match question {
                            Question::Clients => NodeAnswer::Clients(vec![self.client.info()]),
                            Question::Configure(approved) => {
                                self.facts.settings.take(&approved);
                                NodeAnswer::Done
                            }
                            _ => NodeAnswer::Done,
                        };
                        show.reply(vec![told], self.now, 128, &mut reply);
                    }
                    Some(NodeQuery::Look(show, argv)) => show(&self.facts, argv.argv(), &mut reply),
                    Some(query) => write!(way, ", {query:?}").unwrap(),
                    None => {}
                }
            }
            Plan::One(head) => {
                let mut batch = Batch::new();
                batch.push(head, argv.from(1));
                let replies = self.run(head.partition, &batch);
                reply.raw(replies.get(0));
                write!(way, "one {}", head.partition).unwrap();
            }
            Plan::Each { batches, layout } => {
                way.push_str("each");
                let replies: Vec<Replies> = batches
                    .iter()
                    .map(|(partition, batch)| {
                        write!(way, " {partition}: {}", show(batch)).unwrap();
                        self.run(*partition, batch)
                    })
                    .collect();
                layout.merge(&replies, &mut reply);
            }
            Plan::Walk(mut walk) => {
                way.push_str("walk");
                let mut batch = Batch::new();
                while let Some(partition) = walk.step(&mut batch) {
                    walk.take(self.run(partition, &batch).get(0));
                    batch.clear();
                }
                walk.finish(&mut reply);
            }
            Plan::Spread { work, layout } => {
                self.spread(&work, &layout, &mut reply, &mut way);
            }
        }
        (out, way)
    }

    fn spread(
        &mut self,
        work: &Work,
        layout: &PieceLayout,
        reply: &mut Reply<'_>,
        way: &mut String,
    ) {
        write!(way, "{:?}", work.mode).unwrap();
        for (partition, share) in &work.shares {
            write!(way, " {partition}: {}", show(&share.batch)).unwrap();
            for claim in &share.claims {
                let Granule::Key(_, key) = &claim.granule else { panic!("commands claim keys") };
                write!(way, "[{:?} {}]", claim.access, key.escape_ascii()).unwrap();
            }
        }
        if work.mode != Mode::Gather {
            let shares = work.shares.iter();
            let replies: Vec<Replies> =
                shares.map(|(partition, share)| self.run(*partition, &share.batch)).collect();
            return layout.merge(&replies, reply);
        }
        write!(way, " script {}", show(&work.script)).unwrap();
        let access = Redis::access(work.script.head(0).code);
        let mut scratch = Tables::new(self.hasher);
        scratch.begin(self.now, access);
        let mut claimed = Vec::new();
        for (partition, share) in &work.shares {
            let tables = &mut self.partitions[partition.index()];
            tables.begin(self.now, access);
            for claim in &share.claims {
                let Granule::Key(table, key) = &claim.granule else { continue };
                scratch.install(tables.image(*table, key));
                claimed.push((*partition, *table, key));
            }
        }
        let mut replies = Replies::default();
        Redis::run(&work.script.op(0), &mut scratch, self.now, &mut replies.bytes);
        replies.end();
        for (partition, table, key) in claimed {
            self.partitions[partition.index()].install(scratch.image(table, key));
        }
        layout.merge(&[replies], reply);
    }

    fn run(&mut self, partition: PartitionId, batch: &Batch) -> Replies {
        let tables = &mut self.partitions[partition.index()];
        let mut replies = Replies::default();
        for op in batch.iter() {
            assert_eq!(op.head.partition, partition);
            assert!(Redis::knows(op.head.code));
            Redis::keys(&op, &mut |table, key| {
                assert_eq!(self.atlas.partition_of_key(table, key), partition);
            });
            tables.begin(self.now, Redis::access(op.head.code));
            Redis::run(&op, tables, self.now, &mut replies.bytes);
            replies.end();
        }
        replies
    }
}

/// A batch's operations as commands.
fn show(batch: &Batch) -> String {
    let ops = batch.iter().map(|op| {
        let (spec, _) = spec::by_code(op.head.code).unwrap();
        let args = op.args.iter().map(|arg| format!(" {}", arg.escape_ascii()));
        format!("{}{}", spec.name, args.collect::<String>())
    });
    ops.collect::<Vec<_>>().join(", ")
}

impl goldenscript::Runner for Cluster {
    type Command = goldenscript::Command;

    /// A command as a client would type it; `clock MS` moves the clock to so many milliseconds
    /// after the script's beginning.
    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut argv = vec![command.name.as_str()];
        for argument in &command.args {
            let goldenscript::Argument::Positional(word) = argument else {
                return Err("commands have no named arguments".into());
            };
            argv.push(word);
        }
        if let ["clock", ms] = argv[..] {
            self.now = Millis(1_700_000_000_000 + ms.parse::<u64>()?);
            return Ok(format!("{command}\n"));
        }
        let (reply, way) = self.ask(&argv);
        let reply = reply.escape_ascii().to_string().replace("\\'", "'");
        Ok(format!("{command} ({way})\n    {reply}\n"))
    }
}

fn script(name: &str) {
    script_of(&mut Cluster::new(4), name);
}

fn script_of(cluster: &mut Cluster, name: &str) {
    let path = format!("{}/tests/scripts/plan/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(cluster, path).unwrap();
}

/// Three storage classes of four partitions: tables 1 and 2 are of the second, table 3 of the third,
/// all others of the first.
fn of_three_classes() -> Cluster {
    Cluster::of(Atlas::new(Ring::new(4), |table| match table.index() {
        1 | 2 => 1,
        3 => 2,
        _ => 0,
    }))
}

#[test]
fn classes() {
    script_of(&mut of_three_classes(), "classes");
}

#[test]
fn a_scan_stays_in_its_table() {
    for table in 0..4 {
        let mut cluster = of_three_classes();
        for other in 0..4 {
            reply_of(&mut cluster, &format!("select {other}"));
            for n in 0..50 {
                reply_of(&mut cluster, &format!("set {other}:{n} x"));
            }
        }
        reply_of(&mut cluster, &format!("select {table}"));
        let mut names: Vec<String> = (0..50).map(|n| format!("{table}:{n}")).collect();
        names.sort();
        let mut keys = scanned(&mut cluster, " COUNT 7", |_| {});
        keys.sort();
        assert_eq!(keys, names, "SCAN of table {table}");
        let listed = reply_of(&mut cluster, "keys *");
        assert!(names.iter().all(|name| listed.contains(&format!("{name}\r\n"))), "{listed}");
        assert!(listed.starts_with("*50\r\n"), "{listed}");
        let some = reply_of(&mut cluster, "randomkey");
        assert!(some.contains(&format!("\r\n{table}:")), "{some}");
    }
}

#[test]
fn strings() {
    script("strings");
}

#[test]
fn expiry() {
    script("expiry");
}

#[test]
fn several_keys() {
    script("several_keys");
}

#[test]
fn bits() {
    script("bits");
}

#[test]
fn values() {
    script("values");
}

#[test]
fn names() {
    script("names");
}

/// The keys that a whole scan meets, a call at a time; after each call `meanwhile` may do more.
fn scanned(
    cluster: &mut Cluster,
    options: &str,
    mut meanwhile: impl FnMut(&mut Cluster),
) -> Vec<String> {
    let mut cursor = "0".to_string();
    let mut keys = Vec::new();
    loop {
        let reply = reply_of(cluster, &format!("scan {cursor}{options}"));
        let mut lines = reply.split("\r\n").filter(|line| !line.starts_with(['*', '$']));
        cursor = lines.next().unwrap().to_string();
        keys.extend(lines.filter(|line| !line.is_empty()).map(str::to_string));
        if cursor == "0" {
            return keys;
        }
        meanwhile(cluster);
    }
}

#[test]
fn a_scan_meets_what_is_there_throughout() {
    let mut cluster = Cluster::new(5);
    for number in 0..2000 {
        reply_of(&mut cluster, &format!("set stays{number} 1"));
    }
    let mut fresh = 0;
    let mut keys = scanned(&mut cluster, " COUNT 7", |cluster| {
        // First the tables grow, then they shrink.
        for _ in 0..40 {
            let change = if fresh < 20_000 { "set" } else { "del" };
            let value = if change == "set" { " 1" } else { "" };
            reply_of(cluster, &format!("{change} fresh{}{value}", fresh % 20_000));
            fresh += 1;
        }
    });
    keys.sort_unstable();
    keys.dedup();
    let stayed = keys.iter().filter(|key| key.starts_with("stays")).count();
    assert_eq!(stayed, 2000);
    assert!(fresh > 20_000, "the tables grew and shrank: {fresh}");
}

#[test]
fn a_scan_is_told_what_to_pass_over() {
    let mut cluster = Cluster::new(3);
    for number in 0..100 {
        reply_of(&mut cluster, &format!("set key{number} 1"));
    }
    let nothing = |_: &mut Cluster| {};
    assert_eq!(scanned(&mut cluster, "", nothing).len(), 100);
    assert_eq!(scanned(&mut cluster, " MATCH key7* COUNT 1000", nothing).len(), 11);
    assert_eq!(scanned(&mut cluster, " TYPE STRING", nothing).len(), 100);
    assert_eq!(scanned(&mut cluster, " TYPE list", nothing).len(), 0);
    assert_eq!(reply_of(&mut cluster, "keys key*").matches("\r\nkey").count(), 100);
    let cursors = ["1", "281474976710656", "18446744073709551615", "-1"];
    for cursor in cursors {
        let reply = reply_of(&mut cluster, &format!("scan {cursor}"));
        assert!(reply.starts_with("*2\r\n"), "any number is a cursor: {reply}");
    }
}

#[test]
fn idle_time_passes_until_a_key_is_used() {
    let mut cluster = Cluster::new(2);
    reply_of(&mut cluster, "set a 1");
    cluster.now = Millis(cluster.now.0 + 7000);
    for looks in ["exists a", "ttl a", "type a", "object encoding a"] {
        reply_of(&mut cluster, looks);
    }
    assert_eq!(reply_of(&mut cluster, "object idletime a"), ":7\r\n");
    reply_of(&mut cluster, "touch a");
    assert_eq!(reply_of(&mut cluster, "object idletime a"), ":0\r\n");
    reply_of(&mut cluster, "set b 12");
    let payload = cluster.ask(&["dump", "b"]).0;
    let payload = &payload[payload.iter().position(|byte| *byte == b'\n').unwrap() + 1..];
    let payload = &payload[..payload.len() - 2];
    let argv: [&[u8]; 6] = [b"restore", b"c", b"0", payload, b"idletime", b"40"];
    assert_eq!(cluster.ask(&argv).0, b"+OK\r\n");
    assert_eq!(reply_of(&mut cluster, "object idletime c"), ":40\r\n");
    assert_eq!(reply_of(&mut cluster, "get c"), "$2\r\n12\r\n");
    let latest = i64::MAX.to_string();
    let argv: [&[u8]; 4] = [b"restore", b"d", latest.as_bytes(), payload];
    assert_eq!(cluster.ask(&argv).0, b"-ERR invalid expire time in 'restore' command\r\n");
    let argv: [&[u8]; 5] = [b"restore", b"d", latest.as_bytes(), payload, b"absttl"];
    assert_eq!(cluster.ask(&argv).0, b"+OK\r\n");
    assert_eq!(reply_of(&mut cluster, "pexpiretime d"), format!(":{latest}\r\n"));
}

#[test]
fn an_encoding_tells_how_a_value_was_made() {
    // Copies and renames within a partition and between two go different ways.
    for partitions in [1, 64] {
        let mut cluster = Cluster::new(partitions);
        let mut expect = |line: &str, encoding: &str| {
            let key = line.split(' ').nth(if line.starts_with("bitop") { 2 } else { 1 });
            let reply = reply_of(&mut cluster, line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
            let told = reply_of(&mut cluster, &format!("object encoding {}", key.unwrap()));
            assert!(told.contains(encoding), "{line} of {partitions}: {told}");
        };
        expect("set a 1", "int");
        expect("append a 2", "raw");
        expect("pexpire a 100000", "raw");
        expect("persist a", "raw");
        expect("incr a", "int");
        expect("append fresh 12", "int");
        expect("append new abc", "embstr");
        expect("setrange a 0 7", "raw");
        expect("set a 1", "int");
        expect("setbit a 1 1", "raw");
        expect("set a 1 KEEPTTL", "int");
        expect("bitfield a GET u8 0", "int");
        expect("bitfield a SET u8 0 49", "raw");
        for to in ["b", "c", "d", "e", "f"] {
            reply_of(&mut cluster, &format!("copy a {to}"));
            let copy = reply_of(&mut cluster, &format!("object encoding {to}"));
            assert_eq!(copy, "$3\r\nraw\r\n", "{to} of {partitions}");
            reply_of(&mut cluster, &format!("rename {to} {to}2"));
            let renamed = reply_of(&mut cluster, &format!("object encoding {to}2"));
            assert_eq!(renamed, "$3\r\nraw\r\n", "{to} of {partitions}");
        }
        assert_eq!(reply_of(&mut cluster, "object refcount b2"), ":1\r\n");
        assert_eq!(reply_of(&mut cluster, "move a 3"), ":1\r\n");
        reply_of(&mut cluster, "select 3");
        assert_eq!(reply_of(&mut cluster, "object encoding a"), "$3\r\nraw\r\n");
        let mut expect = |line: &str, key: &str, encoding: &str| {
            reply_of(&mut cluster, line);
            let told = reply_of(&mut cluster, &format!("object encoding {key}"));
            assert!(told.contains(encoding), "{line} of {partitions}: {told}");
        };
        expect("getset a 1", "a", "int");
        expect("bitop or z a", "z", "raw");
        // A float is never taken for an integer, whatever it reads as.
        expect("incrbyfloat a 1", "a", "embstr");
        expect("copy a g", "g", "embstr");
        expect("incr a", "a", "int");
        expect("mset a 1 g 2", "g", "int");
    }
}

#[test]
fn session() {
    script("session");
}

fn reply_of(cluster: &mut Cluster, line: &str) -> String {
    let argv: Vec<&str> = line.split(' ').collect();
    String::from_utf8(cluster.ask(&argv).0).unwrap()
}

#[test]
fn one_partition_and_many_answer_alike() {
    let (mut one, mut many) = (Cluster::new(1), Cluster::new(64));
    let lines = [
        "mset a 1 b 2 c 3 a 4",
        "mget a b nosuch c a",
        "exists a a b nosuch",
        "msetnx d 1 e 2 d 3",
        "msetnx f 1 a 2",
        "mget d e f",
        "dbsize",
        "touch a b x",
        "del a a b nosuch",
        "unlink c d",
        "dbsize",
        "flushall",
        "dbsize",
    ];
    for line in lines {
        assert_eq!(reply_of(&mut one, line), reply_of(&mut many, line), "{line}");
    }
}

#[test]
fn merging_survives_peers_that_answer_nonsense() {
    let mut cluster = Cluster::new(8);
    let place = Placing {
        key_bytes_max: super::KEY_BYTES_MAX,
        atlas: &cluster.atlas,
        hasher: cluster.hasher,
        table: cluster.client.table,
        resp3: false,
    };
    for line in ["mget a b c d", "del a b c d"] {
        let argv_buf: ArgvBuf = line.split(' ').collect();
        let spec = spec::lookup(argv_buf.argv().name()).unwrap();
        let Plan::Spread { work, layout } = plan(spec, argv_buf.argv(), &place) else {
            panic!("{line} is spread")
        };
        let answer = |bytes: &[u8]| {
            let mut replies = Replies::default();
            replies.push(bytes);
            replies.push(bytes);
            replies
        };
        let shares = work.shares.len();
        let lots: [Vec<Replies>; 4] = [
            Vec::new(),
            vec![Replies::default(); shares],
            vec![answer(b"+what?\r\n"); shares],
            vec![answer(b":9223372036854775807\r\n"); shares],
        ];
        for replies in lots {
            let mut out = Vec::new();
            layout.merge(&replies, &mut Reply::new(&mut out, false));
            assert_eq!(out[0], b'-', "{line}: {}", out.escape_ascii());
        }
        // One partition's error is the whole command's reply.
        let mut replies = vec![answer(b":1\r\n"); shares];
        replies[1] = answer(b"-UNKNOWN outcome\r\n");
        let mut out = Vec::new();
        layout.merge(&replies, &mut Reply::new(&mut out, false));
        assert_eq!(out, b"-UNKNOWN outcome\r\n");
    }
    assert_eq!(reply_of(&mut cluster, "dbsize"), ":0\r\n");
}

#[test]
fn operations_with_too_few_arguments_do_no_harm() {
    let hasher = KeyHasher::new(7);
    let mut tables = Tables::new(hasher);
    for spec in spec::all() {
        let spec::Run::Data(data) = spec.run else { continue };
        for len in 0..4 {
            let head = OpHead {
                code: data.code,
                partition: PartitionId(0),
                table: Default::default(),
                resp3: true,
                hash: if len == 0 { hasher.hash(b"") } else { hasher.hash(b"1") },
            };
            let mut batch = Batch::new();
            batch.push(head, [b"1".as_slice(); 3].into_iter().take(len));
            tables.begin(Millis(5), Redis::access(data.code));
            let mut reply = Vec::new();
            Redis::run(&batch.op(0), &mut tables, Millis(5), &mut reply);
            assert!(reply.ends_with(b"\r\n"), "{} replies", spec.name);
        }
    }
}

/// Every command of Redis 7.0 and whether it is here, as a page.
fn reference() -> String {
    let mut ours = BTreeMap::new();
    for spec in spec::all() {
        ours.insert(spec.name.to_owned(), spec);
        for sub in spec.subcommands() {
            ours.insert(format!("{} {}", spec.name, sub.name), sub);
        }
    }
    let mut groups: BTreeMap<&str, (Vec<String>, Vec<String>)> = BTreeMap::new();
    let mut theirs = Vec::new();
    for line in include_str!("../../docs/redis-7.0-commands.txt").lines() {
        let (group, name) = line.split_once(' ').unwrap();
        theirs.push(name.to_owned());
        let (have, lack) = groups.entry(group).or_default();
        let shown = format!("`{}`", name.to_uppercase());
        match ours.get(name) {
            Some(spec) => have.push(format!("| {shown} | {} |", spec.doc.summary)),
            None => lack.push(shown),
        }
    }
    let mut page = String::from(
        "# Commands\n\nEvery command of Redis 7.0, and whether Quorate has it. This page is made \
         from the command table\n(`UPDATE_GOLDENFILES=1 cargo test --lib the_commands_page`).\n",
    );
    for (group, (have, lack)) in groups {
        page += &format!("\n## {group}\n");
        if !have.is_empty() {
            page += &format!("\n| command | what it does |\n| --- | --- |\n{}\n", have.join("\n"));
        }
        if !lack.is_empty() {
            page += &format!("\nNot there: {}\n", lack.join(", "));
        }
    }
    let more: Vec<String> = ours
        .keys()
        .filter(|name| !theirs.contains(name))
        .map(|name| format!("`{}`", name.to_uppercase()))
        .collect();
    if !more.is_empty() {
        page += &format!("\n## Beyond Redis 7.0\n\n{}\n", more.join(", "));
    }
    page
}

#[test]
fn the_commands_page_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
    let page = reference();
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, page, "docs/commands.md is made from the table: make it anew");
}

/// A hard pattern makes a step's page shorter, and no key is passed over for it.
#[test]
fn a_step_ends_when_it_has_compared_much() {
    let mut cluster = Cluster::new(1);
    let name = |number: usize| format!("{}{number:04}", "a".repeat(20_000));
    let names: Vec<String> = (0..300).map(name).collect();
    names.iter().for_each(|name| drop(reply_of(&mut cluster, &format!("set {name} x"))));
    let hard = format!("*[{}a]*0*[{}9]", "b".repeat(400), "b".repeat(400));
    let first = reply_of(&mut cluster, &format!("scan 0 match {hard} count 10000"));
    assert!(!first.starts_with("*2\r\n$1\r\n0\r\n"), "all keys in one step");
    let listed = reply_of(&mut cluster, &format!("keys {hard}"));
    let nines = names.iter().filter(|name| name.ends_with('9'));
    assert!(listed.starts_with(&format!("*{}\r\n", nines.count())), "{}", &listed[..40]);
    let long = "a".repeat(1025);
    let refused = "-ERR the pattern is longer than 1024 bytes\r\n";
    assert_eq!(reply_of(&mut cluster, &format!("scan 0 match {long}")), refused);
    assert_eq!(reply_of(&mut cluster, &format!("keys {long}")), refused);
}

/// However its commands repeat themselves, a transaction comes to operations in proportion to what
/// its client said.
#[test]
fn a_transaction_plans_in_proportion_to_its_commands() {
    let cluster = Cluster::new(12);
    let planned = |times: usize, commands: &[&str]| -> usize {
        let mut queue = Queue::default();
        for number in 0..times {
            for command in commands {
                let line = command.replace('#', &number.to_string());
                let argv_buf: ArgvBuf = line.split(' ').collect();
                let spec = resolve(argv_buf.argv(), &mut Reply::new(&mut Vec::new(), false));
                queue.push(spec.unwrap(), argv_buf.argv(), usize::MAX).unwrap();
            }
        }
        let place = Placing {
            key_bytes_max: super::KEY_BYTES_MAX,
            atlas: &cluster.atlas,
            hasher: cluster.hasher,
            table: cluster.client.table,
            resp3: false,
        };
        let watching = Watching::default();
        let Exec::Work(work, _) = queue.plan(&cluster.client, &cluster.facts, &watching, &place)
        else {
            panic!("it is planned");
        };
        let claims = work.shares.iter().map(|(_, share)| share.batch.len() + share.claims.len());
        claims.sum::<usize>() + work.script.len()
    };
    for commands in [
        &["SET k# v", "DBSIZE"][..],
        &["SET k# v", "DBSIZE", "SELECT 1", "SET k# v", "DBSIZE", "SELECT 0"],
        &["SET k# v", "DBSIZE", "FLUSHDB", "DBSIZE"],
        &["SET k# v", "FLUSHALL", "DBSIZE", "DEL k# k#"],
        &["MSET k# v other v", "DBSIZE", "GET k#"],
        &["RENAME k# other", "DBSIZE", "COPY other k#"],
        &["MSETNX k# v other v", "FLUSHDB"],
        &["SWAPDB 0 1", "DBSIZE", "SET k# v"],
        &["SET k# v", "KEYS *", "SCAN 0", "RANDOMKEY"],
        &["MGET k# k# other other", "EXISTS k# k#"],
    ] {
        let (once, twice) = (planned(100, commands), planned(200, commands));
        let each = (twice - once) / 100;
        assert!(twice <= once * 2 && each <= 16 * commands.len(), "{commands:?}: {once}, {twice}");
    }
}

#[test]
fn a_bitfield_may_reach_behind_the_last_bit_of_a_string() {
    let mut cluster = Cluster::new(1);
    let mut say = |line: &str| {
        let (reply, _) = cluster.ask(&line.split(' ').collect::<Vec<_>>());
        String::from_utf8_lossy(&reply).into_owned()
    };
    let refused = "-ERR bit offset is not an integer or out of range\r\n";
    assert_eq!(say("BITFIELD b SET u8 4294967295 255"), "*1\r\n:0\r\n");
    assert_eq!(say("STRLEN b"), ":536870913\r\n");
    assert_eq!(
        say("BITFIELD b GET u8 4294967295 INCRBY i64 4294967295 0"),
        "*2\r\n:255\r\n:-72057594037927936\r\n"
    );
    assert_eq!(say("BITFIELD b SET u8 4294967296 1"), refused);
    assert_eq!(say("BITFIELD b GET u8 #536870912"), refused);
    assert_eq!(say("GETBIT b 4294967296"), refused);
    assert_eq!(
        say("APPEND b x"),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    );
}
