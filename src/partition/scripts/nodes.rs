//! Scripts of the Buckets of one node, or of three with a copy of each partition. What a Bucket asks
//! for is done at once unless the script holds it back: messages of the groups arrive, disks sync,
//! the lock manager works. What goes to Coordinators and other partitions is shown; the script plays
//! them.

use super::{
    Failure, Heard, Named, Said, Versions, age, contents, effect, is_operation, name, part,
    prepare_from, push, share, words_of,
};
use crate::batch::{Batch, Replies};
use crate::cluster::topology::{Placement, Topology};
use crate::command::Redis;
use crate::command::transaction::read_versions;
use crate::consensus::{Group, Recovered, ReplicaId, Setup};
use crate::ids::Term;
use crate::ids::{Incarnation, Millis, NodeId, Now, PartitionId};
use crate::partition::bucket::{Bucket, Executed, Outbox, Parked};
use crate::partition::replica::Replica;
use crate::partition::{Partition, PartitionEffect};
use crate::script::Args;
use crate::store::tables::KeyHasher;
use crate::txn::lock_queue::{LockEffect, LockQueue};
use crate::txn::protocol::{Decide, Lock, Mode, ToPartition};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

/// How often the groups' clocks are looked at, in ms.
const BEAT_MS: u64 = 25;

/// When every script begins, in ms: the partitions are led by then.
const BEGIN_MS: u64 = 1_000;

/// A node: its Bucket and its lock manager, and what it is kept from.
struct Node {
    bucket: Bucket<Redis>,
    locks: LockQueue,
    /// Batches that wait, as the script knows them.
    waiting: BTreeMap<Parked, String>,
    unsynced: VecDeque<(PartitionId, u64)>,
    disk_held: bool,
    locks_held: bool,
    /// It hears no other node and is not heard.
    cut_off: bool,
    /// Its process stands still.
    stopped: bool,
}

pub struct Script {
    hasher: KeyHasher,
    mono: u64,
    /// By how much each node's wall clock is ahead, in ms.
    ahead: BTreeMap<NodeId, u64>,
    nodes: BTreeMap<NodeId, Node>,
    versions: Versions,
    batches: usize,
    told: String,
}

impl Script {
    pub fn new() -> Script {
        Script {
            hasher: KeyHasher::new(7),
            mono: 0,
            ahead: BTreeMap::new(),
            nodes: BTreeMap::new(),
            versions: Versions::new(),
            batches: 0,
            told: String::new(),
        }
    }

    /// `nodes` with `partitions`, each of them in memory at its home, or with a copy at every node.
    fn start(&mut self, nodes: u16, partitions: u16, logged: bool) -> Result<(), Failure> {
        let life = Incarnation(1);
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let partitions: Vec<PartitionId> = (0..partitions).map(PartitionId).collect();
        let home = |id: &PartitionId| ids[id.index() % ids.len()];
        let holders = |id: &PartitionId| {
            let mut nodes = ids.clone();
            nodes.rotate_left(id.index() % ids.len());
            nodes.truncate(if logged { ids.len() } else { 1 });
            nodes
        };
        let placement = Arc::new(Placement::new(partitions.iter().map(holders).collect()));
        for &node in &ids {
            let owned = partitions.iter().copied().filter(|id| !logged && home(id) == node);
            let owned: Vec<PartitionId> = owned.collect();
            let topology = Arc::new(Topology::new(placement.clone()));
            let mut bucket = Bucket::new(node, life, topology, &owned, self.hasher, 0, 1_000);
            for &id in partitions.iter().filter(|_| logged) {
                let voters = ids.iter().map(|node| ReplicaId::new(*node, 1)).collect();
                let setup = Setup::new(ReplicaId::new(node, 1), voters, u64::from(id.0));
                let group = Group::new(&setup, Recovered::default(), 0)?;
                let replica = Replica::new(id, self.hasher);
                bucket.place(Partition::replicated(id, node, life, replica, group));
            }
            let (waiting, unsynced) = (BTreeMap::new(), VecDeque::new());
            let (disk_held, locks_held, cut_off, stopped) = (false, false, false, false);
            let locks = LockQueue::new();
            let one =
                Node { bucket, locks, waiting, unsynced, disk_held, locks_held, cut_off, stopped };
            self.nodes.insert(node, one);
        }
        for &one in &ids {
            let now = self.now(one);
            let node = self.node(one)?;
            for &other in ids.iter().filter(|other| **other != one) {
                node.bucket.node_up(other, life, &mut Outbox::default());
            }
            node.bucket.form(now);
        }
        self.pass_until(BEGIN_MS)
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node, Failure> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no node {id}").into())
    }

    fn now(&self, node: NodeId) -> Now {
        let ahead = self.ahead.get(&node).copied().unwrap_or(0);
        Now { wall: Millis(self.mono + ahead), mono: self.mono }
    }

    fn tell(&mut self, node: NodeId, line: &str) -> Result<(), Failure> {
        match self.nodes.len() {
            1 => writeln!(self.told, "{line}")?,
            _ => writeln!(self.told, "n{node}: {line}")?,
        }
        Ok(())
    }

    /// Does what a Bucket asks for, as far as it may be done. Tells whether that was anything.
    fn carry(&mut self, id: NodeId, out: Outbox) -> Result<bool, Failure> {
        let now = self.now(id);
        let mut goes_on = false;
        for (of, node, term) in &out.leaders {
            self.node(id)?.bucket.neighbours().topology.learn(*of, *node, *term);
            if *node == id {
                self.tell(id, &format!("leads p{of} from term {}", term.0))?;
            }
        }
        for (parked, batch, replies) in out.completed {
            let waiting = self.node(id)?.waiting.remove(&parked).ok_or("it did not wait")?;
            self.answered(id, &waiting, &batch, &replies)?;
        }
        for one in out.effects {
            self.tell(id, &effect(&one))?;
            if let PartitionEffect::Locks(message) = one {
                self.node(id)?.locks.push(message);
                goes_on = true;
            }
        }
        for (to, of, message) in out.raft {
            let cut_off = self.node(id)?.cut_off;
            let Some(there) = self.nodes.get_mut(&to) else { continue };
            if !cut_off && !there.cut_off && !there.stopped {
                there.bucket.raft(of, &message, now)?;
            }
            goes_on = true;
        }
        let node = self.node(id)?;
        node.unsynced.extend(out.persists.into_iter().map(|(of, persist)| (of, persist.number)));
        goes_on |= node.sync() | self.work(id)?;
        if let Some(why) = out.fatal {
            self.tell(id, &format!("stops: {why}"))?;
        }
        Ok(goes_on)
    }

    /// Lets a node's lock manager work, and passes on what it grants.
    fn work(&mut self, id: NodeId) -> Result<bool, Failure> {
        let node = self.node(id)?;
        if node.locks_held {
            return Ok(false);
        }
        let mut effects = Vec::new();
        node.locks.work(&mut { usize::MAX }, &mut effects);
        self.granted(id, effects)
    }

    fn granted(&mut self, id: NodeId, effects: Vec<LockEffect>) -> Result<bool, Failure> {
        let any = !effects.is_empty();
        for effect in effects {
            match effect {
                LockEffect::Wound { txn } => {
                    self.tell(id, &format!("the lock manager wounds {}", name(txn)))?;
                }
                LockEffect::Grant { partition, ticket } => {
                    self.tell(id, &format!("the lock manager grants request {}", ticket.0))?;
                    let (now, mut out) = (self.now(id), Outbox::default());
                    self.node(id)?.bucket.granted(partition, ticket, now, &mut out);
                    self.carry(id, out)?;
                }
            }
        }
        Ok(any)
    }

    /// Gives every node its turns, until there is nothing to do.
    fn settle(&mut self) -> Result<(), Failure> {
        loop {
            let mut goes_on = false;
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            for id in ids {
                let now = self.now(id);
                let node = self.node(id)?;
                if node.stopped {
                    continue;
                }
                let mut out = Outbox::default();
                node.bucket.flush(now, &mut out);
                goes_on |= self.carry(id, out)?;
            }
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn pass_until(&mut self, until: u64) -> Result<(), Failure> {
        while self.mono < until {
            self.mono = until.min(self.mono + BEAT_MS);
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            for id in ids {
                let now = self.now(id);
                let node = self.node(id)?;
                if !node.stopped {
                    node.bucket.beat(now);
                }
            }
            self.settle()?;
        }
        Ok(())
    }

    fn execute(&mut self, id: NodeId, what: String, batch: Batch) -> Result<(), Failure> {
        let (now, mut out) = (self.now(id), Outbox::default());
        match self.node(id)?.bucket.execute(batch, Replies::default(), now, &mut out) {
            Executed::Done(batch, replies) => self.answered(id, &what, &batch, &replies)?,
            Executed::Parked(parked) => {
                self.tell(id, &format!("{what}: waits"))?;
                self.node(id)?.waiting.insert(parked, what);
            }
        }
        self.carry(id, out)?;
        Ok(())
    }

    fn answered(
        &mut self,
        id: NodeId,
        what: &str,
        batch: &Batch,
        replies: &Replies,
    ) -> Result<(), Failure> {
        if batch.len() == 1 {
            return self.tell(id, &format!("{what}: {}", part(replies.part(0))));
        }
        self.tell(id, &format!("{what}: answered"))?;
        for (index, op) in batch.iter().enumerate() {
            let reply = part(replies.part(index));
            self.tell(id, &format!("  {}: {reply}", words_of(&op)))?;
        }
        Ok(())
    }

    fn message(
        &mut self,
        command: &str,
        args: &mut Args<'_>,
        to: PartitionId,
    ) -> Result<ToPartition, Failure> {
        let (hasher, versions) = (self.hasher, &self.versions);
        if command == "prepare" {
            let (prepare, _) = prepare_from(args, to, hasher, versions)?;
            return Ok(ToPartition::Prepare(Box::new(prepare)));
        }
        if command == "applied" {
            let from = PartitionId(args.key("from", 1)?);
            let txns = args.words().into_iter().map(|word| Ok(word.parse::<Named>()?.0));
            return Ok(ToPartition::Applied { txns: txns.collect::<Result<_, Failure>>()?, from });
        }
        let Named(txn) = args.next()?;
        let asker = PartitionId(args.key("asker", 1)?);
        Ok(match command {
            "lock" => {
                let mode = match args.key("mode", "read".to_owned())?.as_str() {
                    "read" => Mode::Read,
                    "write" => Mode::Write,
                    "gather" => Mode::Gather,
                    _ => return Err("a mode is read, write or gather".into()),
                };
                let time = args.key("age", txn.sequence)?;
                let done_below = args.key("below", 0)?;
                let share = share(args, to, hasher, versions)?;
                ToPartition::Lock(Box::new(Lock {
                    txn,
                    age: age(txn, time),
                    mode,
                    share,
                    done_below,
                }))
            }
            // To the primary, which is to decide; and to a participant, which hears of it.
            "decide" | "told" => {
                let deciding = command == "decide";
                let own = if deciding { to.0 } else { 1 };
                let primary = PartitionId(args.key("primary", own)?);
                let Said(verdict) = args.next()?;
                ToPartition::Decide(Decide { txn, verdict, primary, deciding })
            }
            "confirm" => ToPartition::Confirm { txn, term: Term(args.key("term", 1)?) },
            "resolve" => {
                let primary_life = Incarnation(args.key("life", 0)?);
                ToPartition::Resolve { txn, asker, primary_life }
            }
            "lost" => ToPartition::Lost { txn },
            "inquire" => ToPartition::Inquire { txn, asker },
            "knows" => {
                let Heard(knowledge) = args.next()?;
                ToPartition::Knows { txn, from: PartitionId(args.key("from", 2)?), knowledge }
            }
            "coordinator" => {
                let Heard(knowledge) = args.next()?;
                ToPartition::CoordinatorKnows { txn, knowledge }
            }
            other => return Err(format!("no command {other}").into()),
        })
    }

    /// What a script says of the nodes, as node `on` learns it.
    fn news(&mut self, command: &str, args: &mut Args<'_>, on: NodeId) -> Result<(), Failure> {
        let other = NodeId(args.next()?);
        let life: u64 = args.key("life", 1)?;
        let ended: u64 = args.key("ended", 0)?;
        let now = self.now(on);
        let mut out = Outbox::default();
        let bucket = &mut self.node(on)?.bucket;
        match command {
            "up" => bucket.node_up(other, Incarnation(life), &mut out),
            "down" => {
                let ended = (ended > 0).then_some(Incarnation(ended));
                bucket.node_down(other, ended, &mut out);
            }
            "suspect" => bucket.node_suspected(other, now, &mut out),
            "trust" => bucket.node_trusted(other),
            "died" => bucket.leader_died(other, now),
            _ => return Err(format!("no command {command}").into()),
        }
        self.carry(on, out)?;
        Ok(())
    }

    /// What is held back at a node, or no more.
    fn hold(&mut self, args: &mut Args<'_>, on: NodeId, held: bool) -> Result<(), Failure> {
        let what: String = args.next()?;
        let node = self.node(on)?;
        match what.as_str() {
            "disk" => node.disk_held = held,
            "locks" => node.locks_held = held,
            "messages" => node.cut_off = held,
            "process" => node.stopped = held,
            other => return Err(format!("{other} cannot be held").into()),
        }
        node.sync();
        self.work(on)?;
        Ok(())
    }
}

impl Node {
    fn sync(&mut self) -> bool {
        if self.disk_held {
            return false;
        }
        let any = !self.unsynced.is_empty();
        for (of, number) in self.unsynced.drain(..) {
            self.bucket.persisted(of, number);
        }
        any
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
        let on = NodeId(args.key("on", 1)?);
        let to = PartitionId(args.key("p", 0)?);
        let now = self.now(on);
        match command.name.as_str() {
            // memory [partitions=N]: one node, each partition in memory without other copies.
            // log: one node, whose log is the only copy. copies: three nodes, a copy at each.
            "memory" => self.start(1, args.key("partitions", 1)?, false)?,
            "log" => self.start(1, args.key("partitions", 1)?, true)?,
            "copies" => self.start(3, args.key("partitions", 1)?, true)?,
            operation if is_operation(operation) => {
                let mut words = vec![operation];
                words.extend(args.words());
                let mut batch = Batch::new();
                push(&mut batch, self.hasher, to, &words)?;
                let what = words_of(&batch.op(0));
                self.execute(on, what, batch)?;
            }
            // pipeline "SET a 1" "p1 GET b"..: commands sent together, of partition 0 or another.
            "pipeline" => {
                let mut batch = Batch::new();
                for line in args.words() {
                    let mut words: Vec<&str> = line.split_whitespace().collect();
                    let at = words[0].strip_prefix('p').and_then(|id| id.parse().ok());
                    if at.is_some() {
                        words.remove(0);
                    }
                    let at = PartitionId(at.unwrap_or(to.0));
                    push(&mut batch, self.hasher, at, &words)?;
                }
                self.batches += 1;
                let what = format!("batch {}", self.batches);
                self.execute(on, what, batch)?;
            }
            // watch KEY: remembers the version that its watcher is told.
            "watch" => {
                let key: String = args.next()?;
                let mut batch = Batch::new();
                push(&mut batch, self.hasher, to, &["WATCH", &key])?;
                let mut out = Outbox::default();
                let bucket = &mut self.node(on)?.bucket;
                let executed = bucket.execute(batch, Replies::default(), now, &mut out);
                let Executed::Done(_, replies) = executed else {
                    return Err("it waits".into());
                };
                let versions = read_versions(replies.get(0)).ok_or("no version")?;
                self.versions.insert(key, versions[0]);
                self.carry(on, out)?;
            }
            "up" | "down" | "suspect" | "trust" | "died" => {
                self.news(&command.name, &mut args, on)?;
            }
            "hold" => self.hold(&mut args, on, true)?,
            "release" => self.hold(&mut args, on, false)?,
            "pass" => {
                let ms: u64 = args.next()?;
                self.pass_until(self.mono + ms)?;
            }
            // ahead MS: the node's wall clock shows so much more than the others'.
            "ahead" => {
                let ms = args.next()?;
                self.ahead.insert(on, ms);
            }
            "tick" => {
                let mut out = Outbox::default();
                let node = self.node(on)?;
                node.bucket.tick(now, &mut out);
                let mut effects = Vec::new();
                node.locks.tick(&mut effects);
                self.carry(on, out)?;
                self.granted(on, effects)?;
            }
            "hand_over" => {
                let left = self.node(on)?.bucket.hand_over();
                self.tell(on, &format!("{left} to hand over"))?;
            }
            "prefer" => {
                let node = NodeId(args.next()?);
                let begins = self.node(on)?.bucket.prefer(to, node);
                self.tell(on, if begins { "hands over" } else { "does not lead it" })?;
            }
            "room" => {
                let bytes = args.next()?;
                self.node(on)?.bucket.allow_growth(bytes);
            }
            "replies" => {
                let bytes = args.next()?;
                self.node(on)?.bucket.reply_bytes_max(bytes);
            }
            "led" => {
                let mut lines = Vec::new();
                for (id, node) in &self.nodes {
                    if node.stopped {
                        lines.push(format!("node {id} stands still"));
                        continue;
                    }
                    let led = node.bucket.partitions().filter(|one| one.is_led_here());
                    let led = led.map(|one| format!("p{} in term {}", one.id(), one.term().0));
                    lines.push(format!("node {id} leads {}", super::list(led)));
                }
                lines.iter().try_for_each(|line| writeln!(self.told, "{line}"))?;
            }
            // show [p=ID] [on=NODE]: what the replica there holds.
            "show" => {
                let bucket = &self.node(on)?.bucket;
                let partition = bucket.partition(to).ok_or("it is not here")?;
                let lines = contents(partition.replica());
                let rest = bucket.is_at_rest();
                for line in lines {
                    self.tell(on, &line)?;
                }
                if !rest {
                    self.tell(on, "not at rest")?;
                }
            }
            other => {
                let message = self.message(other, &mut args, to)?;
                let mut out = Outbox::default();
                self.node(on)?.bucket.handle(to, message, now, &mut out);
                self.carry(on, out)?;
            }
        }
        args.end()?;
        self.settle()?;
        Ok(std::mem::take(&mut self.told))
    }
}
