//! Commands that a client has sent together: as many under way at once as may be, and answered in
//! their order.
//!
//! Operations of one destination (a *lane*) travel in one batch at a time. If there are only
//! operations, all of them may leave at once: what one lane is asked has nothing in common with what
//! another one is asked. If there are transactions among them, a [`Pipeline`] tells which may start,
//! and operations that may do so while their lane's batch is away leave with the next one.
//!
//! What a destination left is asked for again. While much waits for replies before it, only that
//! goes on which all wait for.
//!
//! ```text
//!  op, own, spread ──▶ Flight ── start ──▶ transactions to begin ── end ──▶ Flight
//!                        │  ── send ──▶ a batch a lane ── take_back ──▶ Flight
//!                        └─ collect ──▶ replies, in order
//! ```
//!
//! Whoever drives it collects before it starts: what may start depends on what has left.

use super::machine::{Machine, Scope};
use super::pipeline::Pipeline;
use super::{Batch, Op, OpHead, Part, Replies};
use crate::ids::TableIndex;
use crate::store::tables::KeyHasher;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// In [`Flight::order`]: its reply was known at once.
const OWN: u16 = MUTE - 1;

/// In [`Flight::order`]: a transaction.
const SPREAD: u16 = MUTE - 2;

/// In [`Flight::order`], as a bit: the client does not want the reply.
const MUTE: u16 = 1 << 15;

/// A buffer of a connection that has grown beyond this is given back.
pub const KEEP_BYTES_MAX: usize = 1 << 20;

/// A key as a [`Pipeline`] knows it.
pub fn known_as(hasher: KeyHasher, table: TableIndex, key: &[u8]) -> u64 {
    hasher.hash(key).wrapping_add(table.index() as u64)
}

/// The keys that an operation names.
pub fn op_keys<M: Machine>(op: &Op<'_>, hasher: KeyHasher, keys: &mut Vec<u64>) {
    M::keys(op, &mut |table, key| keys.push(known_as(hasher, table, key)));
}

/// Commands sent together. It is used again and keeps its buffers.
#[derive(Debug, Default)]
pub struct Flight {
    /// Where each command's reply comes from: a lane, [`SPREAD`] or [`OWN`].
    order: Vec<u16>,
    lanes: Vec<FlightLane>,
    own: Replies,
    /// The places of the transactions in the order.
    spreads: Vec<u32>,
    /// Which of the commands may start, where not all of them may.
    gate: Option<Box<Gate>>,
    /// The command whose reply is the next to leave, and which of the own replies and transactions
    /// is the next.
    turn: usize,
    own_turn: usize,
    spread_turn: u32,
    /// Replies to transactions that wait for those before them.
    ended: BTreeMap<u32, Vec<u8>>,
    /// Bytes of replies that have come and have not left.
    held: usize,
    held_max: usize,
    has_mute: bool,
}

/// Order among commands of which some are transactions.
#[derive(Debug, Default)]
struct Gate {
    pipeline: Pipeline,
    /// Which of its lane's operations, or which of the transactions, each command is.
    numbers: Vec<u32>,
}

/// What one destination does of it. Operations are known by their number in the lane.
#[derive(Debug, Default)]
struct FlightLane {
    batch: Batch,
    /// Their places in the order, where a [`Gate`] asks for them.
    places: Vec<u32>,
    /// Operations that may leave. All of them leave as one if `is_fresh`.
    queue: BTreeSet<u32>,
    is_fresh: bool,
    /// Those that are away or whose replies came last. All of them if `is_whole`.
    sent: Vec<u32>,
    is_whole: bool,
    is_away: bool,
    /// The replies that came last, and the first of them that may be the next to leave.
    landed: Replies,
    cursor: usize,
    /// Replies that came before those.
    parked: BTreeMap<u32, SmallVec<[u8; 24]>>,
    /// The first operation whose reply has not left.
    next: u32,
}

impl Flight {
    /// No commands yet, for so many destinations. While more than `held_max` bytes of replies wait,
    /// only the command that they wait for goes on.
    pub fn new(lanes: usize, held_max: usize) -> Flight {
        debug_assert!(lanes < usize::from(SPREAD));
        let lanes = (0..lanes).map(|_| FlightLane::default()).collect();
        Flight { lanes, held_max, ..Flight::default() }
    }

    /// How many commands there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many of them are transactions.
    #[inline]
    pub fn spreads(&self) -> usize {
        self.spreads.len()
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The next command is this operation of a lane.
    #[inline]
    pub fn op<'b>(&mut self, lane: u16, head: OpHead, args: impl IntoIterator<Item = &'b [u8]>) {
        self.lanes[usize::from(lane)].batch.push(head, args);
        self.order.push(lane);
    }

    /// The next commands are these operations of a lane.
    pub fn ops(&mut self, lane: u16, batch: &Batch) {
        for op in batch.iter() {
            self.lanes[usize::from(lane)].batch.push_op(&op);
            self.order.push(lane);
        }
    }

    /// Where the reply to the next command is written if it is known at once: behind what is there.
    #[inline]
    pub fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own.bytes
    }

    /// The next command has the reply that was written to [`Flight::own`], and here is.
    #[inline]
    pub fn end_own(&mut self) -> &[u8] {
        self.own.end();
        self.order.push(OWN);
        self.own.get(self.own.len() - 1)
    }

    /// Forgets what was written to [`Flight::own`] since a reply ended.
    pub fn retract_own(&mut self) {
        self.own.retract();
    }

    /// The next command is a transaction. They are numbered from 0.
    pub fn spread(&mut self) {
        self.spreads.push(self.order.len() as u32);
        self.order.push(SPREAD);
    }

    /// The client does not want the reply to the last command.
    #[inline]
    pub fn mute_last(&mut self) {
        if let Some(last) = self.order.last_mut() {
            *last |= MUTE;
            self.has_mute = true;
        }
    }

    /// All commands are there. `keys` appends those that a transaction names, by its number.
    pub fn seal<M: Machine>(&mut self, hasher: KeyHasher, keys: impl Fn(usize, &mut Vec<u64>)) {
        if self.spreads.is_empty() {
            let with_ops = self.lanes.iter_mut().filter(|lane| !lane.batch.is_empty());
            with_ops.for_each(|lane| lane.is_fresh = true);
            return;
        }
        let mut gate = Box::<Gate>::default();
        let (mut spreads, mut named) = (0, Vec::new());
        for (place, turn) in self.order.iter().enumerate() {
            match turn & !MUTE {
                OWN => {
                    gate.pipeline.push(None, []);
                    gate.numbers.push(0);
                }
                SPREAD => {
                    keys(spreads, &mut named);
                    gate.pipeline.push(None, named.drain(..));
                    gate.numbers.push(spreads as u32);
                    spreads += 1;
                }
                lane => {
                    let of = &mut self.lanes[usize::from(lane)];
                    let number = of.places.len();
                    let op = of.batch.op(number);
                    match M::scope(op.head.code) {
                        Scope::Keys => {
                            op_keys::<M>(&op, hasher, &mut named);
                            gate.pipeline.push(Some(lane), named.drain(..));
                        }
                        Scope::Partition | Scope::Glance => {
                            gate.pipeline.push_alone(Some(lane));
                        }
                    }
                    of.places.push(place as u32);
                    gate.numbers.push(number as u32);
                }
            }
        }
        self.gate = Some(gate);
    }

    /// Starts all that may start. Returns the transactions that are to be begun, by their numbers.
    pub fn start(&mut self) -> Vec<u32> {
        let mut begun = Vec::new();
        let is_full = self.is_full();
        let Some(gate) = &mut self.gate else { return begun };
        while let Some(command) = gate.pipeline.next() {
            let turn = self.order[command as usize] & !MUTE;
            // A reply that was known at once costs nothing more, and may have left already.
            if is_full && turn != OWN && command as usize != self.turn {
                break;
            }
            gate.pipeline.start(command);
            let number = gate.numbers[command as usize];
            match turn {
                OWN => gate.pipeline.end(command),
                SPREAD => begun.push(number),
                lane => {
                    self.lanes[usize::from(lane)].queue.insert(number);
                }
            }
        }
        begun
    }

    /// Too much waits for what is before it.
    fn is_full(&self) -> bool {
        self.held > self.held_max
    }

    /// The next batch for a lane, with an empty buffer for its replies; nothing while one is away, or
    /// if there is nothing to be asked.
    #[inline]
    pub fn send(&mut self, lane: usize) -> Option<(Batch, Replies)> {
        let of = &mut self.lanes[lane];
        if of.is_fresh {
            of.is_fresh = false;
            (of.is_whole, of.is_away) = (true, true);
            return Some((std::mem::take(&mut of.batch), std::mem::take(&mut of.landed)));
        }
        if of.is_away || of.queue.is_empty() {
            return None;
        }
        self.send_some(lane)
    }

    fn send_some(&mut self, lane: usize) -> Option<(Batch, Replies)> {
        let is_full = self.is_full();
        let of = &mut self.lanes[lane];
        of.park();
        if is_full {
            let awaited = self.order[self.turn..].iter();
            let awaited = awaited.take_while(|turn| usize::from(**turn & !MUTE) == lane).count();
            for number in of.next..of.next + awaited as u32 {
                if !of.queue.remove(&number) {
                    break;
                }
                of.sent.push(number);
            }
        } else {
            of.sent.extend(&of.queue);
            of.queue.clear();
        }
        if of.sent.is_empty() {
            return None;
        }
        of.is_away = true;
        let mut batch = Batch::new();
        of.sent.iter().for_each(|number| batch.push_op(&of.batch.op(*number as usize)));
        Some((batch, std::mem::take(&mut of.landed)))
    }

    /// Whether a batch is away of a lane.
    #[inline]
    pub fn is_away(&self, lane: usize) -> bool {
        self.lanes[lane].is_away
    }

    /// The lane without whose answer nothing can go on. None if any answer lets something go on.
    #[inline]
    pub fn awaited(&self) -> Option<usize> {
        match (&self.gate, self.order.get(self.turn)) {
            (None, Some(turn)) => Some(usize::from(turn & !MUTE)),
            _ => None,
        }
    }

    /// Takes the batch back that is away of a lane, with the replies to it. True if something was
    /// left; it is asked for again.
    #[inline]
    pub fn take_back(&mut self, lane: usize, batch: Batch, replies: Replies) -> bool {
        let of = &mut self.lanes[lane];
        of.is_away = false;
        self.held += replies.bytes.len();
        let asked = batch.len();
        if of.is_whole {
            of.batch = batch;
        }
        (of.landed, of.cursor) = (replies, 0);
        let is_answered = of.landed.len() == asked
            && of.landed.left.is_empty()
            && of.landed.not_leader.is_empty();
        if !is_answered || self.gate.is_some() {
            self.look_through(lane, asked);
        }
        !is_answered
    }

    /// Takes note of what was answered, and of what was left.
    fn look_through(&mut self, lane: usize, asked: usize) {
        let of = &mut self.lanes[lane];
        for index in 0..asked {
            let number = if of.is_whole { index as u32 } else { of.sent[index] };
            match of.landed.part(index) {
                Part::Answered(_) => {
                    if let Some(gate) = &mut self.gate {
                        gate.pipeline.end(of.places[number as usize]);
                    }
                }
                Part::NotLeader | Part::Left => {
                    of.queue.insert(number);
                }
            }
        }
    }

    /// A transaction that was begun has this reply.
    pub fn end(&mut self, number: u32, reply: Vec<u8>) {
        self.held += reply.len();
        if let Some(gate) = &mut self.gate {
            gate.pipeline.end(self.spreads[number as usize]);
        }
        self.ended.insert(number, reply);
    }

    /// Hands out the replies whose turn it is, each with its place in the order and whether the
    /// client wants it.
    pub fn collect(&mut self, mut give: impl FnMut(usize, &[u8], bool)) {
        while let Some(&turn) = self.order.get(self.turn) {
            let (place, is_wanted) = (self.turn, turn & MUTE == 0);
            match turn & !MUTE {
                OWN => {
                    give(place, self.own.get(self.own_turn), is_wanted);
                    self.own_turn += 1;
                }
                SPREAD => {
                    let Some(reply) = self.ended.remove(&self.spread_turn) else { return };
                    give(place, &reply, is_wanted);
                    self.held -= reply.len();
                    self.spread_turn += 1;
                }
                lane => {
                    let lane = &mut self.lanes[usize::from(lane)];
                    match lane.take_next(|reply| give(place, reply, is_wanted)) {
                        Some(bytes) => self.held -= bytes,
                        None => return,
                    }
                }
            }
            self.turn += 1;
        }
    }

    /// Appends the replies whose turn it is, as far as the client wants them.
    #[inline]
    pub fn collect_into(&mut self, out: &mut Vec<u8>) {
        if out.is_empty() && self.swap_whole(out) {
            return;
        }
        self.collect(|_, reply, is_wanted| {
            if is_wanted {
                out.extend_from_slice(reply);
            }
        });
    }

    /// If one lane's replies are all there are: takes them as they lie.
    #[inline]
    fn swap_whole(&mut self, out: &mut Vec<u8>) -> bool {
        if self.turn > 0 || self.has_mute {
            return false;
        }
        let Some(of) = self.order.first().and_then(|lane| self.lanes.get_mut(usize::from(*lane)))
        else {
            return false;
        };
        if of.landed.len() != self.order.len()
            || !of.landed.left.is_empty()
            || !of.landed.not_leader.is_empty()
        {
            return false;
        }
        std::mem::swap(out, &mut of.landed.bytes);
        (self.turn, self.held) = (self.order.len(), 0);
        true
    }

    /// Whether every reply was handed out.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.turn == self.order.len()
    }

    /// Forgets the commands.
    #[inline]
    pub fn clear(&mut self) {
        self.order.clear();
        if !self.own.is_empty() {
            self.own.clear();
            if self.own.bytes.capacity() > KEEP_BYTES_MAX {
                self.own = Replies::default();
            }
        }
        for lane in &mut self.lanes {
            if !lane.batch.is_empty() {
                lane.clear();
            }
        }
        (self.turn, self.own_turn, self.spread_turn, self.held) = (0, 0, 0, 0);
        self.has_mute = false;
        if self.gate.take().is_some() {
            self.ended.clear();
            self.spreads.clear();
        }
    }
}

impl FlightLane {
    /// Hands out the reply to the lane's next operation if it has come. Returns its length.
    #[inline]
    fn take_next(&mut self, give: impl FnOnce(&[u8])) -> Option<usize> {
        if self.landed.is_empty() && self.parked.is_empty() {
            return None;
        }
        if !self.is_whole {
            while self.sent.get(self.cursor).is_some_and(|number| *number < self.next) {
                self.cursor += 1;
            }
        }
        let is_here = match self.is_whole {
            true => true,
            false => self.sent.get(self.cursor) == Some(&self.next),
        };
        let bytes = match self.landed.part(self.cursor) {
            Part::Answered(reply) if is_here => {
                give(reply);
                self.cursor += 1;
                reply.len()
            }
            _ => {
                let reply = self.parked.remove(&self.next)?;
                give(&reply);
                reply.len()
            }
        };
        self.next += 1;
        Some(bytes)
    }

    /// Puts the replies aside whose turn has not come: others are asked for.
    fn park(&mut self) {
        for index in self.cursor..self.landed.len() {
            let number = if self.is_whole { index as u32 } else { self.sent[index] };
            if let Part::Answered(reply) = self.landed.part(index)
                && number >= self.next
            {
                self.parked.insert(number, SmallVec::from_slice(reply));
            }
        }
        self.landed.clear();
        self.sent.clear();
        (self.is_whole, self.cursor) = (false, 0);
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.landed.clear();
        if self.batch.capacity() > KEEP_BYTES_MAX {
            self.batch = Batch::new();
        }
        if self.landed.bytes.capacity() > KEEP_BYTES_MAX {
            self.landed = Replies::default();
        }
        if !self.is_whole || !self.places.is_empty() {
            self.places.clear();
            self.queue.clear();
            self.sent.clear();
            self.parked.clear();
        }
        (self.is_fresh, self.is_whole, self.is_away) = (false, false, false);
        (self.cursor, self.next) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
