//! Batches that wait: where they are kept, and what fills the holes in their replies.

use super::{Bucket, Outbox};
use crate::batch::machine::{Machine, too_long};
use crate::batch::refusal::Refusal;
use crate::batch::{Batch, Replies};
use crate::ids::PartitionId;
use crate::partition::journal::OpWaiter;
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use crate::txn::protocol::Ticket;

/// Names a batch that waits: its place among those that do, and how often that place was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parked {
    /// The place: small, and used again.
    pub place: u32,
    generation: u32,
}

/// A batch that waits.
#[derive(Debug)]
pub(super) struct ParkedBatch {
    pub(super) batch: Batch,
    /// Replies written so far; a hole is empty here.
    replies: Replies,
    /// Late replies, and where each operation's lies in them.
    late: Vec<u8>,
    places: Vec<(u32, u32)>,
    holes: usize,
}

impl ParkedBatch {
    /// A batch of which so many operations have no reply yet.
    pub(super) fn new(batch: Batch, replies: Replies, holes: usize) -> ParkedBatch {
        let places = vec![PROMPT; replies.len()];
        ParkedBatch { batch, replies, late: Vec::new(), places, holes }
    }
}

/// In [`ParkedBatch::places`]: the operation has no late reply.
const PROMPT: (u32, u32) = (u32::MAX, u32::MAX);

/// Late replies of one batch stop growing past this, should they be longer than was foreseen: the
/// offsets of their ends would not do any more.
const LATE_BYTES_MAX: usize = 1 << 31;

/// The batches that wait, in places that are used again.
#[derive(Debug, Default)]
pub(super) struct Parking {
    places: Vec<(u32, Option<ParkedBatch>)>,
    free: Vec<u32>,
}

impl Parking {
    /// The name that the next batch will have.
    pub(super) fn next(&self) -> Parked {
        match self.free.last() {
            Some(&place) => Parked { place, generation: self.places[place as usize].0 },
            None => Parked { place: self.places.len() as u32, generation: 0 },
        }
    }

    pub(super) fn put(&mut self, parked: Parked, waiting: ParkedBatch) {
        match self.free.pop() {
            Some(place) => self.places[place as usize].1 = Some(waiting),
            None => self.places.push((parked.generation, Some(waiting))),
        }
    }

    pub(super) fn get_mut(&mut self, parked: Parked) -> Option<&mut ParkedBatch> {
        let (generation, waiting) = self.places.get_mut(parked.place as usize)?;
        waiting.as_mut().filter(|_| *generation == parked.generation)
    }

    pub(super) fn take(&mut self, parked: Parked) -> Option<ParkedBatch> {
        let (generation, waiting) = self.places.get_mut(parked.place as usize)?;
        let taken = waiting.take_if(|_| *generation == parked.generation)?;
        *generation = generation.wrapping_add(1);
        self.free.push(parked.place);
        Some(taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }
}

impl<M: Machine> Bucket<M> {
    /// Gives a waiting operation its reply.
    pub(super) fn fill(&mut self, waiter: OpWaiter, reply: &[u8], out: &mut Outbox) {
        let Some(waiting) = self.parking.get_mut(waiter.parked) else { return };
        let Some(place) = waiting.places.get_mut(waiter.index as usize) else { return };
        if *place != PROMPT {
            return;
        }
        let start = waiting.late.len() as u32;
        match waiting.late.len() + reply.len() > LATE_BYTES_MAX {
            false => waiting.late.extend_from_slice(reply),
            true => {
                let head = waiting.batch.head(waiter.index as usize);
                M::refuse(&too_long::<M>(head), &mut waiting.late);
            }
        }
        *place = (start, waiting.late.len() as u32);
        self.close(waiter.parked, out);
    }

    /// One hole less: a batch without holes is complete.
    fn close(&mut self, parked: Parked, out: &mut Outbox) {
        let Some(waiting) = self.parking.get_mut(parked) else { return };
        waiting.holes -= 1;
        if waiting.holes > 0 {
            return;
        }
        let Some(waiting) = self.parking.take(parked) else { return };
        let ParkedBatch { batch, mut replies, late, places, .. } = waiting;
        let mut whole = Replies::default();
        whole.bytes.reserve(replies.bytes.len() + late.len());
        for (index, place) in places.into_iter().enumerate() {
            match place {
                PROMPT => whole.push(replies.get(index)),
                (start, end) => whole.push(&late[start as usize..end as usize]),
            }
        }
        replies.not_leader.sort_unstable();
        replies.left.sort_unstable();
        (whole.not_leader, whole.left) = (replies.not_leader, replies.left);
        out.completed.push((parked, batch, whole));
    }

    /// Has a waiting operation asked of another node, and with it those of its batch that come
    /// after it and wait for contended keys of the same partition: executed before it is asked
    /// again, they would overtake it.
    pub(super) fn turn_away(&mut self, waiter: OpWaiter, out: &mut Outbox) {
        let Some(waiting) = self.parking.get_mut(waiter.parked) else { return };
        let partition = waiting.batch.head(waiter.index as usize).partition;
        // Most wait alone, and all that wait are many when a leader goes.
        if waiting.holes == 1 {
            return self.give_back(waiter, out);
        }
        let follows = |later: &OpWaiter, at: PartitionId| {
            later.parked == waiter.parked
                && later.index > waiter.index
                && at == partition
                && kept(Rule::TurnedAwayInOrder)
        };
        let late = self.tickets.iter().filter(|(_, (later, at, _))| follows(later, *at));
        let late: Vec<(Ticket, OpWaiter)> =
            late.map(|(ticket, (later, ..))| (*ticket, *later)).collect();
        self.give_back(waiter, out);
        for (ticket, later) in late {
            self.tickets.remove(&ticket);
            if let Some(Some(partition)) = self.partitions.get_mut(partition.index()) {
                partition.cancel(ticket, &mut out.effects);
            }
            self.give_back(later, out);
        }
    }

    /// Has one waiting operation asked of another node.
    fn give_back(&mut self, waiter: OpWaiter, out: &mut Outbox) {
        let Some(waiting) = self.parking.get_mut(waiter.parked) else { return };
        waiting.replies.not_leader.push(waiter.index);
        self.close(waiter.parked, out);
    }

    /// Leaves a waiting operation that reads, to be asked for again.
    pub(super) fn leave(&mut self, waiter: OpWaiter, out: &mut Outbox) {
        let Some(waiting) = self.parking.get_mut(waiter.parked) else { return };
        let index = waiter.index as usize;
        let head = waiting.batch.head(index);
        // Asked again it would see what its client wrote after it.
        let is_followed =
            (index + 1..waiting.replies.len()).map(|later| waiting.batch.head(later)).any(
                |later| later.partition == head.partition && M::access(later.code) == Access::Write,
            );
        if is_followed {
            return self.refuse(waiter, &Refusal::Crowded, out);
        }
        waiting.replies.left.push(waiter.index);
        self.close(waiter.parked, out);
    }

    pub(super) fn refuse(&mut self, waiter: OpWaiter, refusal: &Refusal, out: &mut Outbox) {
        let mut reply = Vec::new();
        M::refuse(refusal, &mut reply);
        self.fill(waiter, &reply, out);
    }
}
