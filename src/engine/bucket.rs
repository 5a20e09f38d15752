//! The partitions placed on one arbiter, and the batches that wait there.
//!
//! A batch runs in three passes: prefetch the slots, prefetch the items, execute. The misses of
//! a batch overlap instead of following one another, which is the largest single gain of the hot
//! path. An operation on a contended key leaves a hole in its batch's replies; the batch is
//! answered once all holes are filled.

use crate::engine::batch::{Batch, Op, OpHead, Replies};
use crate::engine::machine::Machine;
use crate::engine::partition::{Effect, Neighbours, Partition};
use crate::engine::protocol::{Refusal, Ticket, ToCoordinator, ToPartition};
use crate::engine::tables::{KeyHasher, Tables};
use crate::ids::{Incarnation, Millis, NodeId, PartitionId};
use std::collections::BTreeMap;

/// Replies of one batch stop growing past this: the rest is executed when it is asked for again.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// A single reply that is longer is not given: it would fit no frame, and its end no offset.
pub const ONE_REPLY_BYTES_MAX: usize = 1 << 29;
/// Steps of active expiry that a tick takes in each partition at most.
const EXPIRE_STEPS_MAX: usize = 16;

/// A step that removes at least so many items is followed by another one: as in Redis, the work
/// grows with what there is to do, up to a bound.
const EXPIRE_MORE: usize = 64;

/// Names a batch that waits for a contended key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parked(pub u64);

/// How a batch came out.
#[derive(Debug)]
pub enum Executed {
    /// All of it, or a first part (as many operations as there are replies), is answered.
    Done(Batch, Replies),
    /// It waits; [`Bucket::granted`] or [`Bucket::tick`] will finish it.
    Parked(Parked),
}

#[derive(Debug)]
struct Waiting {
    batch: Batch,
    /// Replies written so far; a hole is empty here.
    replies: Replies,
    /// Late replies by operation.
    filled: BTreeMap<usize, Vec<u8>>,
    holes: usize,
}

/// What a Bucket counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations executed.
    pub operations: u64,
    /// Batches executed.
    pub batches: u64,
    /// Operations that waited for a contended key.
    pub waits: u64,
    /// Items removed because their time had come.
    pub expired: u64,
    /// Keys that reads found.
    pub hits: u64,
    /// Keys that reads did not find.
    pub misses: u64,
}

/// The state of one Bucket.
#[derive(Debug)]
pub struct Bucket<M> {
    life: Incarnation,
    /// Indexed by partition; `None` where the partition is placed elsewhere.
    partitions: Vec<Option<Partition<M>>>,
    neighbours: Neighbours,
    parked: BTreeMap<Parked, Waiting>,
    /// Operations that wait: their batch, their place in it, and until when.
    tickets: BTreeMap<Ticket, (Parked, usize, PartitionId, Millis)>,
    next: u64,
    lock_wait_ms: u64,
    /// Operations that need more memory are refused.
    full: bool,
    /// Expired items are removed by themselves, not only when they are met.
    expires_actively: bool,
    counts: Counts,
}

impl<M: Machine> Bucket<M> {
    /// A Bucket that owns the partitions `owned`. Tickets are counted from `first_ticket`, so that
    /// the Buckets of a node do not share any.
    pub fn new(
        node: NodeId,
        life: Incarnation,
        homes: Vec<NodeId>,
        owned: &[PartitionId],
        hasher: KeyHasher,
        first_ticket: u64,
        lock_wait_ms: u64,
    ) -> Bucket<M> {
        let mut partitions: Vec<Option<Partition<M>>> = homes.iter().map(|_| None).collect();
        for &id in owned {
            partitions[id.index()] = Some(Partition::new(id, node, life, hasher));
        }
        Bucket {
            life,
            partitions,
            neighbours: Neighbours::new(homes),
            parked: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next: first_ticket,
            lock_wait_ms,
            full: false,
            expires_actively: true,
            counts: Counts::default(),
        }
    }

    /// The partitions owned.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition<M>> {
        self.partitions.iter().flatten()
    }

    /// What it counted.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        for tables in self.partitions().map(|partition| partition.replica().tables()) {
            counts.expired += tables.expirations();
            counts.hits += tables.hits();
            counts.misses += tables.misses();
        }
        counts
    }

    /// Whether operations that need more memory are refused from now on.
    pub fn refuse_growth(&mut self, full: bool) {
        self.full = full;
    }

    /// Whether expired items are removed by themselves from now on.
    pub fn expire_actively(&mut self, active: bool) {
        self.expires_actively = active;
    }

    /// Bytes of its tables.
    pub fn bytes(&self) -> usize {
        self.partitions().map(|partition| partition.replica().tables().bytes()).sum()
    }

    /// What it knows of the nodes.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Runs a batch. `replies` is a recycled buffer, empty.
    pub fn execute(
        &mut self,
        batch: Batch,
        mut replies: Replies,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Executed {
        if batch.len() > 1 {
            self.prefetch(std::iter::once(&batch));
        }
        self.counts.batches += 1;
        let mut holes = Vec::new();
        for (index, op) in batch.iter().enumerate() {
            match self.partitions.get_mut(op.head.partition.index()) {
                Some(Some(_)) if self.full && M::grows(op.head.code) => {
                    M::refuse(&Refusal::Full, &mut replies.bytes);
                }
                Some(Some(partition)) => {
                    if let Err(claims) = partition.execute(&op, now, &mut replies.bytes) {
                        holes.push((index, op.head.partition, claims));
                    }
                }
                _ => M::refuse(&Refusal::Misplaced, &mut replies.bytes),
            }
            if replies.bytes.len() > REPLY_BYTES_MAX {
                let start = replies.ends.last().map_or(0, |end| *end as usize);
                if replies.bytes.len() - start > ONE_REPLY_BYTES_MAX + REPLY_BYTES_MAX {
                    replies.bytes.truncate(start);
                    M::refuse(&Refusal::TooLong, &mut replies.bytes);
                }
                replies.end();
                break;
            }
            replies.end();
        }
        self.counts.operations += replies.len() as u64;
        if holes.is_empty() {
            return Executed::Done(batch, replies);
        }
        let parked = Parked(self.next());
        self.counts.waits += holes.len() as u64;
        let waiting = Waiting { batch, replies, filled: BTreeMap::new(), holes: holes.len() };
        self.parked.insert(parked, waiting);
        for (index, id, claims) in holes {
            let ticket = Ticket(self.next());
            let until = Millis(now.0.saturating_add(self.lock_wait_ms));
            self.tickets.insert(ticket, (parked, index, id, until));
            if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
                partition.wait(ticket, claims, effects);
            }
        }
        Executed::Parked(parked)
    }

    /// Starts the loads of what the batches will touch.
    pub fn prefetch<'a>(&self, batches: impl Iterator<Item = &'a Batch> + Clone) {
        for batch in batches.clone() {
            self.each_keyed(batch, |tables, head| tables.prefetch_slot(head.table, head.hash));
        }
        for batch in batches {
            self.each_keyed(batch, |tables, head| tables.prefetch_item(head.table, head.hash));
        }
    }

    #[inline]
    fn each_keyed(&self, batch: &Batch, visit: impl Fn(&Tables, OpHead)) {
        for head in batch.heads().filter(|head| head.hash != 0) {
            if let Some(Some(partition)) = self.partitions.get(head.partition.index()) {
                visit(partition.replica().tables(), head);
            }
        }
    }

    /// Takes a message for one of the partitions.
    pub fn handle(
        &mut self,
        to: PartitionId,
        message: ToPartition,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let ticket = Ticket(self.next());
        if let Some(Some(partition)) = self.partitions.get_mut(to.index()) {
            if self.full
                && let Some(txn) = partition.needs_memory(&message, now)
            {
                effects.push(Effect::Coordinator(txn.node, ToCoordinator::Full { txn }));
                return;
            }
            partition.handle(message, ticket, now, &self.neighbours, effects);
        }
    }

    /// The lock manager grants a request. Returns the batch that it completed, if it did.
    pub fn granted(
        &mut self,
        id: PartitionId,
        ticket: Ticket,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Option<(Parked, Batch, Replies)> {
        let Some(Some(partition)) = self.partitions.get_mut(id.index()) else { return None };
        let mut reply = Vec::new();
        let Some((parked, index, ..)) = self.tickets.remove(&ticket) else {
            partition.granted(ticket, None, now, &mut reply, effects);
            return None;
        };
        let waiting = self.parked.get(&parked)?;
        let op: Op<'_> = waiting.batch.op(index);
        partition.granted(ticket, Some(&op), now, &mut reply, effects);
        self.fill(parked, index, reply)
    }

    fn fill(
        &mut self,
        parked: Parked,
        index: usize,
        reply: Vec<u8>,
    ) -> Option<(Parked, Batch, Replies)> {
        let waiting = self.parked.get_mut(&parked)?;
        waiting.filled.insert(index, reply);
        waiting.holes -= 1;
        if waiting.holes > 0 {
            return None;
        }
        let Waiting { batch, replies, filled, .. } = self.parked.remove(&parked)?;
        let mut whole = Replies::default();
        for index in 0..replies.len() {
            whole.push(filled.get(&index).map_or(replies.get(index), Vec::as_slice));
        }
        Some((parked, batch, whole))
    }

    /// Regular upkeep: repeats what is unanswered, and gives up operations that waited too long.
    /// Returns the batches that this completed.
    pub fn tick(
        &mut self,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Vec<(Parked, Batch, Replies)> {
        for partition in self.partitions.iter_mut().flatten() {
            partition.tick(now, &self.neighbours, effects);
        }
        self.expire(now);
        let late = |(ticket, (_, _, _, until)): (&Ticket, &(_, _, _, Millis))| {
            (*until <= now).then_some(*ticket)
        };
        let late: Vec<Ticket> = self.tickets.iter().filter_map(late).collect();
        let mut completed = Vec::new();
        for ticket in late {
            let Some((parked, index, id, _)) = self.tickets.remove(&ticket) else { continue };
            if let Some(Some(partition)) = self.partitions.get_mut(id.index()) {
                partition.cancel(ticket, effects);
            }
            let mut reply = Vec::new();
            M::refuse(&Refusal::Locked, &mut reply);
            completed.extend(self.fill(parked, index, reply));
        }
        completed
    }

    /// A cycle of active expiry. The steps go round the partitions, so that none waits for the
    /// others' backlog.
    fn expire(&mut self, now: Millis) {
        if !self.expires_actively {
            return;
        }
        let mut busy: Vec<&mut Partition<M>> = self.partitions.iter_mut().flatten().collect();
        for _ in 0..EXPIRE_STEPS_MAX {
            busy.retain_mut(|partition| {
                partition.expire_some(now).is_some_and(|removed| removed >= EXPIRE_MORE)
            });
            if busy.is_empty() {
                break;
            }
        }
    }

    /// A node lives and can be reached.
    pub fn node_up(&mut self, node: NodeId, life: Incarnation, effects: &mut Vec<Effect>) {
        let known = self.neighbours.lives.get(&node).copied();
        self.neighbours.alive(node, life);
        for partition in self.partitions.iter_mut().flatten() {
            if known.is_some_and(|known| known < life) {
                partition.coordinator_lost(node, effects);
            }
            partition.coordinator_began(node, life);
        }
    }

    /// A node cannot be reached; `ended` if that life of it is known to be over.
    pub fn node_down(
        &mut self,
        node: NodeId,
        ended: Option<Incarnation>,
        effects: &mut Vec<Effect>,
    ) {
        self.neighbours.unreachable.insert(node);
        if let Some(life) = ended {
            self.neighbours.gone(node, life);
        }
        for partition in self.partitions.iter_mut().flatten() {
            partition.coordinator_lost(node, effects);
        }
    }

    /// Whether nothing waits and nothing is locked.
    pub fn is_at_rest(&self) -> bool {
        self.parked.is_empty()
            && self.tickets.is_empty()
            && self.partitions().all(Partition::is_at_rest)
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The life of the node it runs on.
    pub fn life(&self) -> Incarnation {
        self.life
    }
}

/// Whether an operation of a peer may be given to a Bucket at all.
pub fn is_sound<M: Machine>(batch: &Batch) -> bool {
    batch.heads().all(|head| M::knows(head.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Redis;
    use crate::engine::batch::{OpCode, OpHead};
    use crate::ids::TableIndex;

    const SET: OpCode = OpCode(16);
    const GET: OpCode = OpCode(4);

    fn bucket() -> (Bucket<Redis>, KeyHasher) {
        let hasher = KeyHasher::new(7);
        let node = NodeId(1);
        let owned = [PartitionId(0), PartitionId(1)];
        (Bucket::new(node, Incarnation(1), vec![node; 2], &owned, hasher, 0, 1000), hasher)
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
        let executed = bucket.execute(batch, Replies::default(), Millis(now), &mut Vec::new());
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
        let mut effects = Vec::new();
        bucket.tick(Millis(1004), &mut effects);
        assert_eq!((held(&bucket), bucket.counts().expired), (KEYS + KEYS / 10, 0));
        let mut ticks = 0;
        let mut before = held(&bucket);
        while bucket.counts().expired < KEYS as u64 {
            bucket.tick(Millis(1005 + ticks), &mut effects);
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
        bucket.tick(Millis(100), &mut Vec::new());
        assert_eq!((held(&bucket), bucket.counts().expired), (1, 2));
    }
}
