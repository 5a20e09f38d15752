//! The lock queue: the requests that wait for contended keys, two-phase locking with wound-wait.
//!
//! The lock itself is in its Bucket's lock table; a request that finds the key free sets it there
//! and sends no message. Only a request that finds it locked, or waited for, comes here. So the
//! lock queue knows contended granules alone, and its knowledge is exact: from a granule's first
//! [`Acquire`] to its [`ToLocks::Uncontended`] the Bucket sends every newcomer and every release of
//! it, in order, and sets no lock on it without a grant.
//!
//! ```text
//!  Bucket: conflict ── Acquire ──▶ queue by age ── all claims free ──▶ Grant ──▶ Bucket locks, runs
//!  Bucket: lock gone ── Released ──▶ look at the granule's watchers
//!  waiter older than a holder ──▶ Wound ──▶ the holder's Coordinator aborts and retries
//! ```
//!
//! A request waits for all of its claims and holds none meanwhile; but it keeps its place in every
//! queue, so no younger request overtakes it. Every edge of the waits-for graph therefore leads
//! from a younger request to an older one, or is being wounded: no cycle can last (Rosenkrantz,
//! Stearns and Lewis 1978).
//!
//! **Costs.** A request may have a million claims. It *watches* one of them, one that is not free,
//! and is looked at again only when that granule changes; then it goes on to its next claim that is
//! not free, round and round (the watched literals of SAT solvers, Moskewicz et al. 2001). So
//! a request and the release of its locks cost a step a claim, however many granules change one
//! after the other. [`LockQueue::work`] takes as many steps as it is allowed and is called again:
//! the thread that carries the node's links never waits for a long request.

use crate::ids::{Age, PartitionId, TxnId};
use crate::rules::{Rule, kept};
use crate::store::tables::Access;
use crate::txn::protocol::{Acquire, Granule, Holder, Ticket, ToLocks};
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// The whole partition's number.
const WHOLE: Number = Number(0);

/// Places for messages that are kept while there are none.
const INBOX_KEPT: usize = 64;

/// What the lock queue wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockEffect {
    /// The request has its turn: the Bucket locks its keys and runs it.
    Grant {
        /// Where.
        partition: PartitionId,
        /// Which request.
        ticket: Ticket,
    },
    /// An older request waits for this transaction: tell its Coordinator.
    Wound {
        /// The transaction in the way.
        txn: TxnId,
    },
}

/// The lock manager's state.
#[derive(Debug, Default)]
pub struct LockQueue {
    /// What the Buckets said and was not dealt with yet. The front may be half done: what was dealt
    /// with is gone from it.
    inbox: VecDeque<ToLocks>,
    /// Where what was said last may have made something possible.
    changed: Option<PartitionId>,
    partitions: BTreeMap<PartitionId, Queues>,
}

/// One partition's contended granules.
#[derive(Debug)]
struct Queues {
    /// Looked up by granule only: no order of it is ever seen.
    numbers: HashMap<Granule, Number, foldhash::fast::FixedState>,
    /// By [`Number`]; the whole partition is the first.
    granules: Vec<Contended>,
    /// Numbers that are not in use.
    free: Vec<Number>,
    waiting: BTreeMap<Ticket, LockWaiter>,
    /// The waiters, oldest first.
    order: BTreeSet<QueuePlace>,
    /// The waiters that watch the whole partition. Not all of them claim it.
    watch_whole: BTreeSet<QueuePlace>,
    /// Transactions that hold something, as far as is known here.
    holding: BTreeMap<TxnId, Holding>,
    /// What was granted to transactions whose Bucket may not know yet.
    granted: BTreeMap<Ticket, Granted>,
    /// Granules that changed, and whose watchers were not looked at yet.
    changed: VecDeque<Number>,
}

/// A contended granule, within its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number(u32);

/// A waiter's place in a queue: the older comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct QueuePlace {
    age: Age,
    ticket: Ticket,
}

/// A claim of a granule that is known here.
#[derive(Clone, Copy, Debug)]
struct Want {
    number: Number,
    access: Access,
}

#[derive(Debug)]
struct LockWaiter {
    place: QueuePlace,
    owner: Option<TxnId>,
    wants: Vec<Want>,
    /// A claim that is not free, and the granule that keeps it from being so: the request need not
    /// be looked at until that changes.
    watched: usize,
    watching: Option<Number>,
}

/// A transaction's locks in the partition, summed up.
#[derive(Debug)]
struct Holding {
    age: Age,
    /// Granules held, and how many of them to write.
    granules: usize,
    written: usize,
    /// The request that was granted them, until its Bucket is known to have heard.
    ticket: Option<Ticket>,
}

#[derive(Debug)]
struct Granted {
    txn: TxnId,
    wants: Vec<Want>,
}

#[derive(Debug, Default)]
struct Contended {
    holders: SmallVec<[Holder; 1]>,
    /// In order of their places.
    queue: VecDeque<QueueEntry>,
}

#[derive(Clone, Copy, Debug)]
struct QueueEntry {
    place: QueuePlace,
    access: Access,
    /// Whether the request watches this granule.
    watching: bool,
}

impl LockQueue {
    /// An empty lock queue.
    pub fn new() -> LockQueue {
        LockQueue::default()
    }

    /// Takes one message from a Bucket. It is dealt with by [`LockQueue::work`].
    pub fn push(&mut self, message: ToLocks) {
        self.inbox.push_back(message);
    }

    /// Deals with what the Buckets said, in about so many steps, and counts them down; a step is
    /// a claim looked at. Tells whether that was all.
    pub fn work(&mut self, steps: &mut usize, effects: &mut Vec<LockEffect>) -> bool {
        loop {
            if let Some(partition) = self.changed {
                if let Some(queues) = self.partitions.get_mut(&partition) {
                    if !queues.advance(partition, steps, effects) {
                        return false;
                    }
                    if queues.is_idle() {
                        self.partitions.remove(&partition);
                    }
                }
                self.changed = None;
            }
            let Some(message) = self.inbox.front_mut() else { break };
            let partition = message.partition();
            let queues = self.partitions.entry(partition).or_default();
            if *steps == 0 || !queues.take(message, steps, effects) {
                return false;
            }
            self.inbox.pop_front();
            self.changed = Some(partition);
        }
        self.inbox.shrink_to(INBOX_KEPT);
        true
    }

    /// Sends every wound that is still due again, for what each request watches: a wound may have
    /// been lost on its way.
    pub fn tick(&self, effects: &mut Vec<LockEffect>) {
        for queues in self.partitions.values() {
            let mut wounded = BTreeSet::new();
            for waiter in queues.waiting.values() {
                if let Some(watched) = waiter.wants.get(waiter.watched) {
                    queues.wound(waiter, *watched, &mut wounded);
                }
            }
            effects.extend(wounded.into_iter().map(|txn| LockEffect::Wound { txn }));
        }
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.partitions.values().map(|queues| queues.waiting.len()).sum()
    }

    /// Whether nothing is contended.
    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty() && self.partitions.is_empty()
    }
}

impl Default for Queues {
    fn default() -> Queues {
        Queues {
            numbers: HashMap::default(),
            granules: vec![Contended::default()],
            free: Vec::new(),
            waiting: BTreeMap::new(),
            order: BTreeSet::new(),
            watch_whole: BTreeSet::new(),
            holding: BTreeMap::new(),
            granted: BTreeMap::new(),
            changed: VecDeque::new(),
        }
    }
}

impl Queues {
    /// Deals with a message as far as the steps go. Tells whether that was all of it.
    fn take(
        &mut self,
        message: &mut ToLocks,
        steps: &mut usize,
        effects: &mut Vec<LockEffect>,
    ) -> bool {
        match message {
            ToLocks::Acquire(acquire) => self.acquire(acquire, steps, effects),
            ToLocks::Cancel { ticket, .. } => {
                *steps = steps.saturating_sub(self.cancel(*ticket));
                true
            }
            ToLocks::Released { granules, txn, .. } => each(granules, steps, |granule| {
                if let Some(number) = self.numbers.get(&granule) {
                    self.release(*number, *txn);
                }
            }),
            ToLocks::Uncontended { granules, .. } => {
                each(granules, steps, |granule| self.forget(&granule))
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.numbers.is_empty() && self.waiting.is_empty()
    }

    fn acquire(
        &mut self,
        acquire: &mut Acquire,
        steps: &mut usize,
        effects: &mut Vec<LockEffect>,
    ) -> bool {
        let Acquire { ticket, age, owner, claims, holders, .. } = acquire;
        let place = QueuePlace { age: *age, ticket: *ticket };
        let told = each(holders, steps, |(granule, holder)| {
            let number = self.number(granule);
            self.hold(number, holder);
        });
        if !told {
            return false;
        }
        let mut entering = self.waiting.remove(ticket).unwrap_or_else(|| LockWaiter {
            place,
            owner: *owner,
            wants: Vec::with_capacity(claims.len()),
            watched: 0,
            watching: None,
        });
        let mut wounded = BTreeSet::new();
        let entered = each(claims, steps, |claim| {
            let number = self.number(claim.granule);
            let want = Want { number, access: claim.access };
            self.granules[number.index()].enter(place, claim.access);
            self.wound(&entering, want, &mut wounded);
            entering.wants.push(want);
        });
        effects.extend(wounded.into_iter().map(|txn| LockEffect::Wound { txn }));
        self.waiting.insert(*ticket, entering);
        if entered {
            let new = self.order.insert(place);
            assert!(new, "a ticket is used once");
            *steps = steps.saturating_sub(self.consider(place, acquire.partition, effects));
        }
        entered
    }

    /// The number of a granule, which is contended from now on.
    fn number(&mut self, granule: Granule) -> Number {
        if granule == Granule::Whole {
            return *self.numbers.entry(granule).or_insert(WHOLE);
        }
        *self.numbers.entry(granule).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.granules.push(Contended::default());
                Number(self.granules.len() as u32 - 1)
            })
        })
    }

    /// Notes a lock, unless it is known.
    fn hold(&mut self, number: Number, holder: Holder) {
        let holders = &mut self.granules[number.index()].holders;
        if holders.iter().any(|known| known.txn == holder.txn) {
            return;
        }
        holders.push(holder);
        let holding = self.holding.entry(holder.txn).or_insert(Holding {
            age: holder.age,
            granules: 0,
            written: 0,
            ticket: None,
        });
        holding.granules += 1;
        holding.written += usize::from(holder.access == Access::Write);
    }

    /// A transaction holds the granule no more.
    fn release(&mut self, number: Number, txn: TxnId) {
        let Contended { holders, queue } = &mut self.granules[number.index()];
        let Some(found) = holders.iter().position(|holder| holder.txn == txn) else { return };
        let holder = holders.remove(found);
        if !queue.is_empty() {
            self.changed.push_back(number);
        }
        self.holds_less(holder);
    }

    /// What is left of a transaction's locks without this one.
    fn holds_less(&mut self, holder: Holder) {
        let Some(holding) = self.holding.get_mut(&holder.txn) else { return };
        holding.granules -= 1;
        let written = holder.access == Access::Write;
        holding.written -= usize::from(written);
        let (none, unwritten) = (holding.granules == 0, written && holding.written == 0);
        // The Bucket has heard of the grant, for it gives up what it was granted.
        if let Some(ticket) = holding.ticket.take() {
            self.granted.remove(&ticket);
        }
        if none {
            self.holding.remove(&holder.txn);
        }
        if none || unwritten {
            self.whole_changed();
        }
    }

    fn whole_changed(&mut self) {
        if !self.watch_whole.is_empty() && self.changed.back() != Some(&WHOLE) {
            self.changed.push_back(WHOLE);
        }
    }

    /// Gives up a request, waiting or just granted. Returns the steps that took.
    fn cancel(&mut self, ticket: Ticket) -> usize {
        if self.waiting.contains_key(&ticket) {
            let waiter = self.leave(ticket);
            let wants = waiter.map_or_else(Vec::new, |waiter| waiter.wants);
            self.changed.extend(wants.iter().map(|want| want.number));
            return wants.len();
        }
        // The grant crossed the cancellation: the Bucket never set the locks.
        let Some(Granted { txn, wants }) = self.granted.remove(&ticket) else { return 1 };
        for want in &wants {
            self.release(want.number, txn);
        }
        wants.len()
    }

    fn forget(&mut self, granule: &Granule) {
        let Some(number) = self.numbers.remove(granule) else { return };
        let contended = std::mem::take(&mut self.granules[number.index()]);
        assert!(contended.queue.is_empty(), "a granule that a request waits for is contended");
        for holder in contended.holders {
            self.holds_less(holder);
        }
        if number != WHOLE {
            self.free.push(number);
        }
    }

    /// Takes a request out of all queues.
    fn leave(&mut self, ticket: Ticket) -> Option<LockWaiter> {
        let waiter = self.waiting.remove(&ticket)?;
        for want in &waiter.wants {
            self.granules[want.number.index()].leave(waiter.place);
        }
        let oldest = self.order.first() == Some(&waiter.place);
        self.order.remove(&waiter.place);
        self.watch_whole.remove(&waiter.place);
        // A claim of the whole partition waits for all older requests.
        let whole = waiter.wants.iter().any(|want| want.number == WHOLE);
        if oldest || whole {
            self.whole_changed();
        }
        Some(waiter)
    }

    /// Grants what the changed granules have made possible, oldest first.
    fn advance(
        &mut self,
        partition: PartitionId,
        steps: &mut usize,
        effects: &mut Vec<LockEffect>,
    ) -> bool {
        while let Some(number) = self.changed.pop_front() {
            let mut after = None;
            while let Some(next) = self.watcher(number, after) {
                *steps = steps.saturating_sub(self.consider(next, partition, effects));
                // No younger request can have what an older one waits for to write.
                let stays = self.granules[number.index()].access(next);
                let held_up = match number {
                    WHOLE => stays.is_some(),
                    _ => stays == Some(Access::Write),
                };
                if held_up {
                    break;
                }
                after = Some(next);
            }
            *steps = steps.saturating_sub(1);
            if *steps == 0 && !self.changed.is_empty() {
                return false;
            }
        }
        true
    }

    /// The oldest request that watches the granule, or the next one after that: none behind one
    /// that waits for it to write and watches something else.
    fn watcher(&self, number: Number, after: Option<QueuePlace>) -> Option<QueuePlace> {
        if number == WHOLE {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            return self.watch_whole.range((from, Bound::Unbounded)).next().copied();
        }
        let queue = &self.granules[number.index()].queue;
        let from = after.map_or(0, |after| queue.partition_point(|queued| queued.place <= after));
        let mut rest = queue.range(from..);
        let next = rest.find(|queued| queued.watching || queued.access == Access::Write)?;
        next.watching.then_some(next.place)
    }

    /// Looks at a request again: grants it, or has it watch a claim that is not free. Returns the
    /// steps that took.
    fn consider(
        &mut self,
        place: QueuePlace,
        partition: PartitionId,
        effects: &mut Vec<LockEffect>,
    ) -> usize {
        let Some(waiter) = self.waiting.get(&place.ticket) else { return 1 };
        let count = waiter.wants.len();
        let round = (0..count).map(|step| (step, (waiter.watched + step) % count));
        let obstacle = |(step, at): (usize, usize)| {
            self.obstacle(waiter, waiter.wants[at]).map(|number| (step, at, number))
        };
        let Some((step, at, number)) = round.into_iter().find_map(obstacle) else {
            self.grant(place.ticket, partition, effects);
            return 2 * count + 1;
        };
        self.watch(place, at, number);
        step + 1
    }

    /// What keeps a claim from being free: a lock on the granule or on the whole partition, or an
    /// older request for either.
    fn obstacle(&self, waiter: &LockWaiter, want: Want) -> Option<Number> {
        let foreign = |txn: TxnId| Some(txn) != waiter.owner;
        let holds = |holder: &Holder| foreign(holder.txn) && conflict(want.access, holder.access);
        let older = |place: QueuePlace| place < waiter.place;
        if want.number == WHOLE {
            let held = self
                .holding
                .iter()
                .any(|(txn, holding)| foreign(*txn) && conflict(want.access, holding.access()));
            return (held || self.order.first().copied().is_some_and(older)).then_some(WHOLE);
        }
        let whole = &self.granules[WHOLE.index()];
        let first = whole.queue.front().map(|queued| queued.place);
        if whole.holders.iter().any(holds) || first.is_some_and(older) {
            return Some(WHOLE);
        }
        let own = &self.granules[want.number.index()];
        let mut before = own.queue.iter().take_while(|queued| older(queued.place));
        let taken = own.holders.iter().any(holds)
            || before.any(|queued| conflict(want.access, queued.access));
        taken.then_some(want.number)
    }

    /// From now on the request waits for this granule to change.
    fn watch(&mut self, place: QueuePlace, at: usize, number: Number) {
        let Some(waiter) = self.waiting.get_mut(&place.ticket) else { return };
        waiter.watched = at;
        let before = waiter.watching.replace(number);
        if before == Some(number) {
            return;
        }
        for (number, watching) in
            before.map(|before| (before, false)).into_iter().chain([(number, true)])
        {
            match number {
                WHOLE if watching => drop(self.watch_whole.insert(place)),
                WHOLE => drop(self.watch_whole.remove(&place)),
                _ => self.granules[number.index()].watch(place, watching),
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, partition: PartitionId, effects: &mut Vec<LockEffect>) {
        let Some(waiter) = self.leave(ticket) else { return };
        effects.push(LockEffect::Grant { partition, ticket });
        let Some(txn) = waiter.owner else {
            // It holds nothing beyond its own execution: those behind it may go on.
            self.changed.extend(waiter.wants.iter().map(|want| want.number));
            return;
        };
        for want in &waiter.wants {
            let holder = Holder { txn, age: waiter.place.age, access: want.access };
            self.hold(want.number, holder);
        }
        if let Some(holding) = self.holding.get_mut(&txn) {
            holding.ticket = Some(ticket);
        }
        self.granted.insert(ticket, Granted { txn, wants: waiter.wants });
    }

    /// Adds the younger transactions that hold what the request wants.
    fn wound(&self, waiter: &LockWaiter, want: Want, wounded: &mut BTreeSet<TxnId>) {
        if !kept(Rule::OlderWounds) {
            return;
        }
        let is_wounded = |txn: TxnId, age: Age, access: Access| {
            let own = Some(txn) == waiter.owner;
            !own && waiter.place.age < age && conflict(want.access, access)
        };
        if want.number == WHOLE {
            let holding = self.holding.iter();
            let all = holding.filter(|(txn, held)| is_wounded(**txn, held.age, held.access()));
            wounded.extend(all.map(|(txn, _)| *txn));
            return;
        }
        let own = &self.granules[want.number.index()].holders;
        for holder in own.iter().chain(&self.granules[WHOLE.index()].holders) {
            if is_wounded(holder.txn, holder.age, holder.access) {
                wounded.insert(holder.txn);
            }
        }
    }
}

impl Contended {
    fn find(&self, place: QueuePlace) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&place, |queued| queued.place)
    }

    fn enter(&mut self, place: QueuePlace, access: Access) {
        if let Err(at) = self.find(place) {
            self.queue.insert(at, QueueEntry { place, access, watching: false });
        }
    }

    fn leave(&mut self, place: QueuePlace) {
        if let Ok(at) = self.find(place) {
            self.queue.remove(at);
        }
    }

    fn watch(&mut self, place: QueuePlace, watching: bool) {
        if let Ok(at) = self.find(place) {
            self.queue[at].watching = watching;
        }
    }

    /// How a request wants the granule, while it waits.
    fn access(&self, place: QueuePlace) -> Option<Access> {
        self.find(place).ok().map(|at| self.queue[at].access)
    }
}

impl Holding {
    fn access(&self) -> Access {
        match self.written {
            0 => Access::Read,
            _ => Access::Write,
        }
    }
}

impl Number {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Takes things from the end as far as the steps go; tells whether that was all.
fn each<T>(things: &mut Vec<T>, steps: &mut usize, mut take: impl FnMut(T)) -> bool {
    while *steps > 0 {
        let Some(thing) = things.pop() else { return true };
        *steps -= 1;
        take(thing);
    }
    things.is_empty()
}

fn conflict(one: Access, other: Access) -> bool {
    one == Access::Write || other == Access::Write
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, NodeId, TableIndex};
    use crate::script::Args;
    use crate::txn::protocol::Claim;
    use std::error::Error;
    use std::fmt::Write;

    /// Scripts of one partition's queues. Transactions go by their age: `t5` is of age 5.
    #[derive(Default)]
    struct Script(LockQueue);

    const PARTITION: PartitionId = PartitionId(0);

    fn txn(age: u64) -> TxnId {
        TxnId { node: NodeId(1), incarnation: Incarnation(1), sequence: age, attempt: 1 }
    }

    fn age(time: u64) -> Age {
        Age { time, node: NodeId(1), tie: time }
    }

    fn claim(word: &str) -> Result<Claim, Box<dyn Error>> {
        let (access, name) = word.split_once('.').ok_or("a claim is r.KEY or w.KEY")?;
        let access = if access == "w" { Access::Write } else { Access::Read };
        let granule = match name {
            "whole" => Granule::Whole,
            name => Granule::Key(TableIndex::default(), name.into()),
        };
        Ok(Claim { granule, access })
    }

    impl goldenscript::Runner for Script {
        type Command = goldenscript::Command;

        fn run(
            &mut self,
            command: &goldenscript::Command,
            _: &goldenscript::Context,
        ) -> Result<String, Box<dyn Error>> {
            let mut args = Args::new(command);
            let mut effects = Vec::new();
            match command.name.as_str() {
                // acquire AGE CLAIM... [held=AGE.CLAIM] [single=true]
                "acquire" => {
                    let time: u64 = args.next()?;
                    let single: bool = args.key("single", false)?;
                    let mut holders = Vec::new();
                    if let Some((held, word)) = args.key("held", String::new())?.split_once('.') {
                        let held: u64 = held.parse()?;
                        let Claim { granule, access } = claim(word)?;
                        holders.push((granule, Holder { txn: txn(held), age: age(held), access }));
                    }
                    let claims = args.words().into_iter().map(claim).collect::<Result<_, _>>()?;
                    let acquire = Acquire {
                        ticket: Ticket(time),
                        partition: PARTITION,
                        age: age(time),
                        owner: (!single).then(|| txn(time)),
                        claims,
                        holders,
                    };
                    self.0.push(ToLocks::Acquire(acquire));
                }
                "release" => {
                    let txn = txn(args.next()?);
                    for word in args.words() {
                        let granules = vec![claim(word)?.granule];
                        let released = ToLocks::Released { partition: PARTITION, granules, txn };
                        self.0.push(released);
                    }
                }
                "cancel" => {
                    let ticket = Ticket(args.next()?);
                    let cancel = ToLocks::Cancel { ticket, partition: PARTITION };
                    self.0.push(cancel);
                }
                "forget" => {
                    for word in args.words() {
                        let granules = vec![claim(word)?.granule];
                        self.0.push(ToLocks::Uncontended { partition: PARTITION, granules });
                    }
                }
                "tick" => self.0.tick(&mut effects),
                name => return Err(format!("no command {name}").into()),
            }
            args.end()?;
            // A step at a time: where the work is cut changes nothing.
            while !self.0.work(&mut 1, &mut effects) {}
            let mut told = String::new();
            for effect in effects {
                match effect {
                    LockEffect::Grant { ticket, .. } => writeln!(told, "grant {}", ticket.0)?,
                    LockEffect::Wound { txn } => writeln!(told, "wound {}", txn.sequence)?,
                }
            }
            let empty = if self.0.is_empty() { ", nothing contended" } else { "" };
            writeln!(told, "{} waiting{empty}", self.0.waiting())?;
            Ok(told)
        }
    }

    /// Many claims in common: all requests wait for one holder, and then for each other.
    #[test]
    fn a_claim_costs_a_few_steps_however_many_there_are() {
        const CLAIMS: u32 = 20_000;
        const REQUESTS: u64 = 6;
        const STEPS_A_CLAIM: usize = 10;
        let key = |number: u32| Granule::Key(TableIndex::default(), number.to_be_bytes().to_vec());
        let granules: Vec<Granule> = (0..CLAIMS).map(key).collect();
        let write = |granule: &Granule| Claim { granule: granule.clone(), access: Access::Write };
        let mut table = LockQueue::new();
        let (mut steps, mut effects) = (usize::MAX, Vec::new());
        let acquire = |time, owner, claims, holders| {
            let (ticket, partition, age) = (Ticket(time), PARTITION, age(time));
            ToLocks::Acquire(Acquire { ticket, partition, age, owner, claims, holders })
        };
        let held = Holder { txn: txn(1), age: age(1), access: Access::Write };
        for time in 2..2 + REQUESTS {
            let holders = granules.iter().filter(|_| time == 2);
            let holders = holders.map(|granule| (granule.clone(), held)).collect();
            let claims = granules.iter().map(write).collect();
            table.push(acquire(time, Some(txn(time)), claims, holders));
        }
        // Single operations and one that wants everything come behind them.
        let (single, whole) = (2 + REQUESTS, 3 + REQUESTS);
        table.push(acquire(single, None, vec![write(&granules[0])], Vec::new()));
        table.push(acquire(whole, Some(txn(whole)), vec![write(&Granule::Whole)], Vec::new()));
        let mut holder = 1;
        // One granule at a time, which is the worst way to hear of it.
        while holder <= 1 + REQUESTS {
            for granule in granules.iter().rev() {
                let (granules, txn) = (vec![granule.clone()], txn(holder));
                table.push(ToLocks::Released { partition: PARTITION, granules, txn });
            }
            assert!(table.work(&mut steps, &mut effects));
            holder += 1;
        }
        let granted: Vec<LockEffect> = effects
            .into_iter()
            .filter(|effect| matches!(effect, LockEffect::Grant { .. }))
            .collect();
        let expected = (2..=whole)
            .map(|time| LockEffect::Grant { partition: PARTITION, ticket: Ticket(time) });
        assert_eq!(granted, expected.collect::<Vec<_>>());
        let (used, claims) = (usize::MAX - steps, CLAIMS as usize * REQUESTS as usize);
        assert!(used <= STEPS_A_CLAIM * claims, "{used} steps for {claims} claims");
    }

    #[test]
    fn scripts() {
        for name in [
            "older_wounds_younger",
            "younger_waits",
            "readers_share",
            "groups_hold_nothing",
            "singles_pass_in_order",
            "cancelled",
            "whole_partition",
        ] {
            let path = format!("tests/scripts/locks/{name}");
            goldenscript::run(&mut Script::default(), path).unwrap();
        }
    }
}
