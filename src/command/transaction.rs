//! `MULTI`, `EXEC` and `WATCH`: commands that take effect together.
//!
//! Between `MULTI` and `EXEC` the session queues what is asked ([`Queue`]). `EXEC` makes one piece
//! of work of it ([`Queue::plan`]), whatever partitions its keys lie in:
//! - Commands that can be evaluated where their keys lie become operations of their partitions'
//!   shares, in the order they were queued.
//! - If the result of any needs keys of several partitions (RENAME, say), the whole transaction is
//!   gathered: all keys are locked and read, and its commands evaluated in order in one place.
//! - Commands that need no data are answered when `EXEC` comes, in their places.
//!
//! Watched keys are part of the work: their partitions compare versions once all is locked.

use super::client::Client;
use super::facts::Facts;
use super::plan::{Layout, Piece, Place, Plan, plan};
use super::reply::Reply;
use super::spec::{
    ALLOW_BUSY, Control, Data, Doc, FAST, Group, KEYS, LOADING, Merge, NO_KEYS, NOSCRIPT, Run,
    STALE, Spec, Split,
};
use super::words::{Phrase, Words};
use super::{Call, Redis};
use crate::engine::batch::{Batch, OpCode, Replies};
use crate::engine::machine::{Machine, Scope};
use crate::engine::protocol::{Claim, Granule, Mode, Share, Watched, Work};
use crate::ids::PartitionId;
use std::collections::BTreeMap;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: Group::Transactions, since, complexity: "O(1)", summary, syntax }
}

const CONTROL: u32 = NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY;

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "discard", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Discard),
        doc: doc("2.0.0", "Forgets the queued commands.", "") },
    Spec { name: "exec", arity: 1, flags: NOSCRIPT | LOADING | STALE, keys: NO_KEYS, run: Run::Control(Control::Exec),
        doc: doc("1.2.0", "Executes the queued commands, all or none.", "") },
    Spec { name: "multi", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Multi),
        doc: doc("1.2.0", "Queues the commands that follow.", "") },
    Spec { name: "unwatch", arity: 1, flags: CONTROL, keys: NO_KEYS, run: Run::Control(Control::Unwatch),
        doc: doc("2.2.0", "Forgets the watched keys.", "") },
    Spec { name: "watch", arity: -2, flags: CONTROL, keys: KEYS,
        run: Run::Control(Control::Watch(Data { code: OpCode(400), run: versions, split: Split::PerKey(Merge::Array), reach: None })),
        doc: doc("2.2.0", "Lets the next EXEC fail if one of the keys has changed by then.", "key [key ...]") },
];

/// Watches the keys and tells their versions: what a session asks when its client says `WATCH`.
fn versions(call: &mut Call<'_>) {
    call.reply.array(call.args.len());
    for key in call.args.iter() {
        let now = call.now;
        let version = call.tables.watches_mut().watch(call.table, key, now);
        // Versions count from a time in milliseconds shifted by 20 bits, which leaves room.
        call.reply.int(version.cast_signed());
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
    commands: Vec<(&'static Spec, Phrase)>,
    bytes: usize,
    broken: bool,
}

/// What `EXEC` comes to.
#[derive(Debug)]
pub enum Exec {
    /// This work; its replies are put together by the script.
    Work(Work, Script),
    /// No data and no watched key is concerned: only the script.
    Script(Script),
    /// Not to be executed, and why.
    Refused(String),
}

/// How the replies of an `EXEC` become one.
#[derive(Debug)]
pub struct Script {
    steps: Vec<Step>,
    /// The connection's state after its own commands among the queued ones.
    pub client: Client,
}

#[derive(Debug)]
enum Step {
    /// Answered already.
    Own(Vec<u8>),
    /// Answered by partitions.
    Data(Layout),
}

impl Queue {
    /// Queues a command.
    ///
    /// # Errors
    /// When the transaction would grow beyond `bytes_max`.
    pub fn push(
        &mut self,
        spec: &'static Spec,
        words: Words<'_>,
        bytes_max: usize,
    ) -> Result<(), String> {
        self.bytes += words.bytes();
        if self.bytes > bytes_max {
            return Err(format!("ERR the transaction is longer than {bytes_max} bytes"));
        }
        self.commands.push((spec, words.from(0).collect()));
        Ok(())
    }

    /// Notes that a command could not be queued, so that `EXEC` will refuse.
    pub fn spoil(&mut self) {
        self.broken = true;
    }

    /// Makes one piece of work of the queue and the watched keys.
    pub fn plan(
        &self,
        client: &Client,
        facts: &Facts,
        watched: &[(PartitionId, Watched)],
        place: &Place<'_>,
    ) -> Exec {
        if self.broken {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Exec::Refused(text.into());
        }
        let mut client = client.clone();
        let mut draft = Draft::default();
        for (spec, phrase) in &self.commands {
            let words = phrase.words();
            let place = Place { table: client.table, resp3: client.resp3, ..*place };
            if spec.run_is_unwatch() {
                // EXEC forgets the watched keys; by then it is too late to say so.
                draft.steps.push(Drafted::Own(b"+OK\r\n".to_vec()));
            } else if let Some(run) = spec.session() {
                let mut own = Vec::new();
                run(&mut client, facts, words, &mut Reply::new(&mut own, place.resp3));
                draft.steps.push(Drafted::Own(own));
            } else if let Err(refused) = draft.add(spec, words, &place) {
                return Exec::Refused(refused);
            }
        }
        draft.finish(client, watched)
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
    /// A command that touches whole partitions.
    whole: Option<&'static str>,
}

enum Drafted {
    Own(Vec<u8>),
    /// Where its replies are: by partition and place in its share.
    Data(Merge, Vec<(PartitionId, u32)>),
}

impl Draft {
    fn add(
        &mut self,
        spec: &'static Spec,
        words: Words<'_>,
        place: &Place<'_>,
    ) -> Result<(), String> {
        let Some(data) = spec.data() else { return Err("ERR syntax error".into()) };
        self.writes |= spec.flags & super::spec::WRITE != 0;
        if spec.scope() != Scope::Keys {
            self.whole = Some(spec.name);
        }
        self.script.push(place.head(&data, words.get(1)), words.from(1));
        let op = self.script.op(self.script.len() - 1);
        let claims = &mut self.claims;
        Redis::keys(&op, &mut |table, key| {
            let granule = Granule::Key(table, key.to_vec());
            let claims = claims.entry(place.atlas.partition_of_key(table, key)).or_default();
            claims.push(Claim { granule, access: spec.access() });
        });
        let (merge, pieces) = match plan(spec, words, place) {
            Plan::One(head) => {
                let batch = &mut self.shares.entry(head.partition).or_default().batch;
                batch.push(head, words.from(1));
                (Merge::Status, vec![(head.partition, batch.len() as u32 - 1)])
            }
            Plan::Spread { work, .. } if work.mode == Mode::Gather => {
                self.gathers = true;
                (Merge::Status, Vec::new())
            }
            Plan::Spread { work, layout } => {
                let shares = work.shares.into_iter().map(|(id, share)| (id, share.batch));
                self.take(shares.collect(), layout)
            }
            Plan::Each { batches, layout } => self.take(batches, layout),
            Plan::Walk(_) | Plan::Node(_) => {
                let name = spec.name.to_uppercase();
                return Err(format!("ERR {name} is not possible inside a transaction"));
            }
            Plan::Session(_) => return Err("ERR syntax error".into()),
            Plan::Refused(refused) => return Err(refused),
        };
        self.steps.push(Drafted::Data(merge, pieces));
        Ok(())
    }

    /// Adds one command's batches to the shares.
    fn take(
        &mut self,
        batches: Vec<(PartitionId, Batch)>,
        layout: Layout,
    ) -> (Merge, Vec<(PartitionId, u32)>) {
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
        (layout.merge, layout.pieces.iter().map(place).collect())
    }

    fn finish(mut self, client: Client, watched: &[(PartitionId, Watched)]) -> Exec {
        if let Some(name) = self.whole.filter(|_| self.gathers) {
            let name = name.to_uppercase();
            return Exec::Refused(format!(
                "ERR {name} cannot be executed together with a command whose result needs keys of \
                 several partitions"
            ));
        }
        if self.gathers {
            self.shares.clear();
            for (id, mut claims) in std::mem::take(&mut self.claims) {
                claims.sort_unstable();
                claims.dedup();
                self.shares.insert(id, Share { claims, ..Share::default() });
            }
        }
        for (id, key) in watched {
            self.shares.entry(*id).or_default().watched.push(key.clone());
        }
        let order: BTreeMap<PartitionId, u32> = self.shares.keys().copied().zip(0..).collect();
        let mut next = 0..;
        let step = |step: Drafted| match step {
            Drafted::Own(own) => Step::Own(own),
            Drafted::Data(..) if self.gathers => {
                let op = next.next().unwrap_or_default();
                Step::Data(Layout { merge: Merge::Status, pieces: vec![Piece { share: 0, op }] })
            }
            Drafted::Data(merge, pieces) => {
                let piece = |(id, op): (PartitionId, u32)| Piece { share: order[&id], op };
                Step::Data(Layout { merge, pieces: pieces.into_iter().map(piece).collect() })
            }
        };
        let steps = std::mem::take(&mut self.steps).into_iter().map(step).collect();
        let script = Script { steps, client };
        if self.shares.is_empty() {
            return Exec::Script(script);
        }
        let mode = match (self.gathers, self.writes) {
            (true, _) => Mode::Gather,
            (false, true) => Mode::Write,
            (false, false) => Mode::Read,
        };
        let evaluated = if self.gathers { self.script } else { Batch::new() };
        let work = Work { mode, shares: self.shares.into_iter().collect(), script: evaluated };
        Exec::Work(work, script)
    }
}

impl Script {
    /// Makes the array of the commands' replies.
    pub fn merge(&self, replies: &[Replies], reply: &mut Reply<'_>) {
        reply.array(self.steps.len());
        for step in &self.steps {
            match step {
                Step::Own(own) => reply.raw(own),
                Step::Data(layout) => layout.merge(replies, reply),
            }
        }
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
