//! Commands that a client has sent together, transactions among them: as many under way at once as
//! may be, and answered in their order.
//!
//! A [`Pipeline`] tells which may start. Operations of one destination (a *lane*) travel in one batch at a
//! time; those that may start while it is away leave with the next one. What a destination left is
//! asked for again. While much waits for replies before it, only the command that all wait for goes on.
//!
//! ```text
//!  own, op, spread ──▶ Flight ── start ──▶ transactions to begin ── answer ──▶ Flight
//!                        │  ── send ──▶ a batch a lane ── take_back ──▶ Flight
//!                        └─ collect ──▶ replies, in order
//! ```

use super::machine::{Machine, Scope};
use super::pipeline::Pipeline;
use super::{Batch, Op, Part, Replies};
use crate::ids::TableIndex;
use crate::store::tables::KeyHasher;
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// A key as a [`Pipeline`] knows it.
pub fn known_as(hasher: KeyHasher, table: TableIndex, key: &[u8]) -> u64 {
    hasher.hash(key).wrapping_add(table.index() as u64)
}

/// The keys that an operation names.
pub fn op_keys<M: Machine>(op: &Op<'_>, hasher: KeyHasher, keys: &mut Vec<u64>) {
    M::keys(op, &mut |table, key| keys.push(known_as(hasher, table, key)));
}

/// What one destination does of it.
#[derive(Debug, Default)]
struct FlightLane {
    gathered: Batch,
    /// How many of its operations are known.
    known: u32,
    /// Commands that may leave, in their order.
    queue: BTreeSet<u32>,
    /// Those that are away.
    sent: Vec<u32>,
    is_away: bool,
}

/// One command, by its place in the order.
#[derive(Debug)]
struct Flown {
    source: Source,
    mute: bool,
    reply: Option<SmallVec<[u8; 24]>>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Its reply is known.
    Own,
    /// A lane, and which of its operations.
    Op(u16, u32),
    /// A transaction.
    Spread,
}

/// Commands sent together.
#[derive(Debug)]
pub struct Flight {
    pipeline: Pipeline,
    commands: Vec<Flown>,
    lanes: Vec<FlightLane>,
    /// The command whose reply is the next to leave.
    turn: usize,
    /// Bytes of replies that wait for those before them.
    held: usize,
    held_max: usize,
}

impl Flight {
    /// No commands yet. `lanes` are the operations that each destination is to execute; while more than
    /// `held_max` bytes of replies wait, only the command that they wait for goes on.
    pub fn new(lanes: impl IntoIterator<Item = Batch>, held_max: usize) -> Flight {
        let lane = |gathered| FlightLane { gathered, ..FlightLane::default() };
        Flight {
            pipeline: Pipeline::default(),
            commands: Vec::new(),
            lanes: lanes.into_iter().map(lane).collect(),
            turn: 0,
            held: 0,
            held_max,
        }
    }

    fn add(&mut self, source: Source, mute: bool, reply: Option<&[u8]>) {
        let reply = reply.map(SmallVec::from_slice);
        self.commands.push(Flown { source, mute, reply });
    }

    /// The next command has this reply. A `mute` one's client does not want it.
    pub fn own(&mut self, reply: &[u8], mute: bool) {
        self.pipeline.push(None, []);
        self.add(Source::Own, mute, Some(reply));
    }

    /// The next command is the next operation of a lane.
    pub fn op<M: Machine>(&mut self, lane: u16, hasher: KeyHasher, mute: bool) {
        let of = &mut self.lanes[usize::from(lane)];
        let (place, op) = (of.known, of.gathered.op(of.known as usize));
        match M::scope(op.head.code) {
            Scope::Keys => {
                let mut keys = Vec::new();
                op_keys::<M>(&op, hasher, &mut keys);
                self.pipeline.push(Some(lane), keys);
            }
            Scope::Partition | Scope::Glance => {
                self.pipeline.push_alone(Some(lane));
            }
        }
        of.known += 1;
        self.add(Source::Op(lane, place), mute, None);
    }

    /// The next command is a transaction that names these keys.
    pub fn spread(&mut self, keys: impl IntoIterator<Item = u64>, mute: bool) {
        self.pipeline.push(None, keys);
        self.add(Source::Spread, mute, None);
    }

    /// Starts all that may start. Returns the transactions that are to be begun, by their places in the
    /// order.
    pub fn start(&mut self) -> Vec<u32> {
        let mut spreads = Vec::new();
        while let Some(command) = self.pipeline.next() {
            if self.is_full() && command as usize != self.turn {
                break;
            }
            self.pipeline.start(command);
            match self.commands[command as usize].source {
                Source::Own => self.pipeline.end(command),
                Source::Op(lane, _) => {
                    self.lanes[usize::from(lane)].queue.insert(command);
                }
                Source::Spread => spreads.push(command),
            }
        }
        spreads
    }

    /// Too much waits for what is before it.
    fn is_full(&self) -> bool {
        self.held > self.held_max
    }

    /// The next batch for a lane; nothing while one is away, or if there is nothing to be asked.
    pub fn send(&mut self, lane: usize) -> Option<Batch> {
        let is_full = self.is_full();
        let lane = &mut self.lanes[lane];
        if lane.is_away || lane.queue.is_empty() {
            return None;
        }
        lane.sent.clear();
        if !is_full {
            lane.sent.extend(&lane.queue);
            lane.queue.clear();
        } else if lane.queue.remove(&(self.turn as u32)) {
            lane.sent.push(self.turn as u32);
        } else {
            return None;
        }
        let mut batch = Batch::new();
        for command in &lane.sent {
            if let Source::Op(_, op) = self.commands[*command as usize].source {
                batch.push_op(&lane.gathered.op(op as usize));
            }
        }
        lane.is_away = true;
        Some(batch)
    }

    /// Takes the replies to the batch that is away of a lane; what was left is asked for again.
    pub fn take_back(&mut self, lane: usize, replies: &Replies) {
        self.lanes[lane].is_away = false;
        let sent = std::mem::take(&mut self.lanes[lane].sent);
        for (index, command) in sent.iter().enumerate() {
            match replies.part(index) {
                Part::Answered(reply) => self.answer(*command, reply),
                Part::NotLeader | Part::Left => {
                    self.lanes[lane].queue.insert(*command);
                }
            }
        }
        self.lanes[lane].sent = sent;
    }

    /// A command that was started has its reply.
    pub fn answer(&mut self, command: u32, reply: &[u8]) {
        self.held += reply.len();
        self.commands[command as usize].reply = Some(SmallVec::from_slice(reply));
        self.pipeline.end(command);
    }

    /// Hands out the replies whose turn it is, each with its place in the order and whether its client
    /// wants it.
    pub fn collect(&mut self, mut give: impl FnMut(usize, &[u8], bool)) {
        while let Some(command) = self.commands.get_mut(self.turn) {
            let Some(reply) = command.reply.take() else { return };
            if !matches!(command.source, Source::Own) {
                self.held -= reply.len();
            }
            give(self.turn, &reply, !command.mute);
            self.turn += 1;
        }
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Whether every reply was handed out.
    pub fn is_over(&self) -> bool {
        self.turn == self.commands.len()
    }
}
