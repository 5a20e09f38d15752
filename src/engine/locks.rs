//! The queues of contended keys: two-phase locking with wound-wait.
//!
//! A Bucket's mark on a key is the lock itself; whoever finds the key free sets the mark without
//! asking anybody. Only who finds it marked, or waited for, comes here. So the lock table knows
//! contended granules alone, and its knowledge is exact: from a granule's first [`Acquire`] to its
//! [`ToLocks::Uncontended`] the Bucket sends every newcomer and every release of it, in order, and
//! sets no mark on it without a grant.
//!
//! ```text
//!  Bucket: conflict ── Acquire ──▶ queue by age ── all claims free ──▶ Grant ──▶ Bucket marks, runs
//!  Bucket: mark gone ── Released ──▶ look at the granule's queue again
//!  waiter older than a holder ──▶ Wound ──▶ the holder's Coordinator aborts and retries
//! ```
//!
//! A request waits for all of its claims and holds none meanwhile; but it keeps its place in every
//! queue, so nobody younger overtakes it. Every edge of the waits-for graph therefore leads from
//! a younger request to an older one, or is being wounded: no cycle can last (Rosenkrantz, Stearns
//! and Lewis 1978).

use crate::engine::machine::Access;
use crate::engine::protocol::{Acquire, Claim, Granule, Holder, Ticket, ToLocks};
use crate::engine::rules::{Rule, kept};
use crate::ids::{Age, PartitionId, TxnId};
use std::collections::{BTreeMap, BTreeSet};

/// What the lock table wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request has its turn: the Bucket marks its keys and runs it.
    Grant {
        /// Where.
        partition: PartitionId,
        /// Which request.
        ticket: Ticket,
    },
    /// An older request waits for this transaction: tell its Coordinator.
    Wound {
        /// Who is in the way.
        txn: TxnId,
    },
}

/// The lock manager's state.
#[derive(Debug, Default)]
pub struct LockTable {
    partitions: BTreeMap<PartitionId, Queues>,
}

/// One partition's contended granules.
#[derive(Debug, Default)]
struct Queues {
    granules: BTreeMap<Granule, Contended>,
    waiting: BTreeMap<Ticket, Waiter>,
    /// Tickets granted to transactions that still hold, so that a late cancellation finds them.
    granted: BTreeMap<Ticket, TxnId>,
}

#[derive(Debug)]
struct Waiter {
    age: Age,
    owner: Option<TxnId>,
    claims: Vec<Claim>,
}

#[derive(Debug, Default)]
struct Contended {
    holders: Vec<Holder>,
    queue: BTreeSet<(Age, Ticket)>,
}

impl LockTable {
    /// An empty lock table.
    pub fn new() -> LockTable {
        LockTable::default()
    }

    /// Takes one message from a Bucket.
    pub fn handle(&mut self, message: ToLocks, effects: &mut Vec<Effect>) {
        match message {
            ToLocks::Acquire(acquire) => self.acquire(acquire, effects),
            ToLocks::Cancel { ticket, partition } => self.cancel(partition, ticket, effects),
            ToLocks::Released { partition, granule, txn } => {
                let Some(queues) = self.partitions.get_mut(&partition) else { return };
                queues.release(&granule, txn);
                queues.advance(partition, vec![granule], effects);
            }
            ToLocks::Uncontended { partition, granule } => self.forget(partition, &granule),
        }
    }

    /// Sends every wound that is still due again: a wound may have been lost on its way.
    pub fn tick(&self, effects: &mut Vec<Effect>) {
        for queues in self.partitions.values() {
            for waiter in queues.waiting.values() {
                queues.wound(waiter, effects);
            }
        }
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.partitions.values().map(|queues| queues.waiting.len()).sum()
    }

    /// Whether nothing is contended.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    fn acquire(&mut self, acquire: Acquire, effects: &mut Vec<Effect>) {
        let Acquire { ticket, partition, age, owner, claims, holders } = acquire;
        let queues = self.partitions.entry(partition).or_default();
        for (granule, holder) in holders {
            let holders = &mut queues.granules.entry(granule).or_default().holders;
            if holders.iter().all(|known| known.txn != holder.txn) {
                holders.push(holder);
            }
        }
        for claim in &claims {
            let contended = queues.granules.entry(claim.granule.clone()).or_default();
            contended.queue.insert((age, ticket));
        }
        let waiter = Waiter { age, owner, claims };
        queues.wound(&waiter, effects);
        let granules = waiter.claims.iter().map(|claim| claim.granule.clone()).collect();
        let replaced = queues.waiting.insert(ticket, waiter);
        assert!(replaced.is_none(), "a ticket is used once");
        queues.advance(partition, granules, effects);
    }

    fn cancel(&mut self, partition: PartitionId, ticket: Ticket, effects: &mut Vec<Effect>) {
        let Some(queues) = self.partitions.get_mut(&partition) else { return };
        if let Some(waiter) = queues.remove(ticket) {
            let granules = waiter.claims.into_iter().map(|claim| claim.granule).collect();
            queues.advance(partition, granules, effects);
        } else if let Some(txn) = queues.granted.remove(&ticket) {
            // The grant crossed the cancellation: the Bucket never set the marks.
            let held: Vec<Granule> = queues.held_by(txn);
            held.iter().for_each(|granule| queues.release(granule, txn));
            queues.advance(partition, held, effects);
        }
        if queues.is_idle() {
            self.partitions.remove(&partition);
        }
    }

    fn forget(&mut self, partition: PartitionId, granule: &Granule) {
        let Some(queues) = self.partitions.get_mut(&partition) else { return };
        if let Some(contended) = queues.granules.remove(granule) {
            assert!(contended.queue.is_empty(), "a granule somebody waits for is contended");
            for holder in contended.holders {
                if queues.held_by(holder.txn).is_empty() {
                    queues.granted.retain(|_, txn| *txn != holder.txn);
                }
            }
        }
        if queues.is_idle() {
            self.partitions.remove(&partition);
        }
    }
}

impl Queues {
    fn is_idle(&self) -> bool {
        self.granules.is_empty() && self.waiting.is_empty()
    }

    fn held_by(&self, txn: TxnId) -> Vec<Granule> {
        let holds = |contended: &Contended| contended.holders.iter().any(|held| held.txn == txn);
        let held = self.granules.iter().filter(|(_, contended)| holds(contended));
        held.map(|(granule, _)| granule.clone()).collect()
    }

    fn release(&mut self, granule: &Granule, txn: TxnId) {
        if let Some(contended) = self.granules.get_mut(granule) {
            contended.holders.retain(|holder| holder.txn != txn);
        }
        self.granted.retain(|_, granted| *granted != txn);
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiting.remove(&ticket)?;
        for claim in &waiter.claims {
            if let Some(contended) = self.granules.get_mut(&claim.granule) {
                contended.queue.remove(&(waiter.age, ticket));
            }
        }
        Some(waiter)
    }

    /// Grants whatever the change of these granules made possible, oldest first.
    fn advance(
        &mut self,
        partition: PartitionId,
        changed: Vec<Granule>,
        effects: &mut Vec<Effect>,
    ) {
        let mut changed: BTreeSet<Granule> = changed.into_iter().collect();
        while let Some(granule) = changed.pop_first() {
            for (age, ticket) in self.candidates(&granule) {
                let Some(waiter) = self.waiting.get(&ticket) else { continue };
                if !self.grantable(waiter, age, ticket) {
                    continue;
                }
                let Some(waiter) = self.remove(ticket) else { continue };
                effects.push(Effect::Grant { partition, ticket });
                self.hold(ticket, &waiter);
                // Its place in other queues is free now, and so are those who waited behind it.
                changed.extend(waiter.claims.into_iter().map(|claim| claim.granule));
            }
        }
    }

    /// Who might be granted once the granule changed, in order of age. Whoever waits behind a
    /// writer of the same key need not be looked at.
    fn candidates(&self, granule: &Granule) -> Vec<(Age, Ticket)> {
        if *granule == Granule::Whole {
            let mut all: Vec<(Age, Ticket)> =
                self.waiting.iter().map(|(ticket, waiter)| (waiter.age, *ticket)).collect();
            all.sort_unstable();
            return all;
        }
        let mut found = Vec::new();
        if let Some(contended) = self.granules.get(granule) {
            for &(age, ticket) in &contended.queue {
                found.push((age, ticket));
                let Some(waiter) = self.waiting.get(&ticket) else { continue };
                let single = waiter.owner.is_none();
                if !single && waiter.access(granule) == Some(Access::Write) {
                    break;
                }
            }
        }
        if let Some(whole) = self.granules.get(&Granule::Whole) {
            found.extend(whole.queue.iter().copied());
        }
        found
    }

    fn grantable(&self, waiter: &Waiter, age: Age, ticket: Ticket) -> bool {
        let mut claims = waiter.claims.iter();
        claims.all(|claim| {
            let free = !self.holders(&claim.granule).any(|holder| {
                Some(holder.txn) != waiter.owner && conflict(claim.access, holder.access)
            });
            free && !self.overtakes(claim, age, ticket)
        })
    }

    /// Whether granting the claim would overtake an older request that conflicts with it.
    fn overtakes(&self, claim: &Claim, age: Age, ticket: Ticket) -> bool {
        let older = |granule: &Granule| {
            let queue = self.granules.get(granule).map(|contended| &contended.queue);
            queue.into_iter().flatten().take_while(move |place| **place < (age, ticket))
        };
        match &claim.granule {
            Granule::Whole => {
                self.waiting.iter().any(|(other, waiter)| (waiter.age, *other) < (age, ticket))
            }
            granule => {
                let conflicts = |place: &(Age, Ticket)| {
                    let waiter = self.waiting.get(&place.1);
                    let access = waiter.and_then(|waiter| waiter.access(granule));
                    access.is_some_and(|access| conflict(claim.access, access))
                };
                older(granule).any(conflicts) || older(&Granule::Whole).next().is_some()
            }
        }
    }

    /// Everybody whose hold a claim of the granule may conflict with. A whole partition meets the
    /// holders of all of its keys, a key those of the whole partition.
    fn holders<'a>(&'a self, granule: &'a Granule) -> impl Iterator<Item = &'a Holder> {
        let whole = *granule == Granule::Whole;
        let own = self.granules.get(granule).filter(|_| !whole);
        let partition = self.granules.get(&Granule::Whole).filter(|_| !whole);
        let every = whole.then(|| self.granules.values()).into_iter().flatten();
        own.into_iter().chain(partition).chain(every).flat_map(|contended| &contended.holders)
    }

    fn hold(&mut self, ticket: Ticket, waiter: &Waiter) {
        let Some(txn) = waiter.owner else { return };
        self.granted.insert(ticket, txn);
        for claim in &waiter.claims {
            let holder = Holder { txn, age: waiter.age, access: claim.access };
            self.granules.entry(claim.granule.clone()).or_default().holders.push(holder);
        }
    }

    fn wound(&self, waiter: &Waiter, effects: &mut Vec<Effect>) {
        if !kept(Rule::OlderWounds) {
            return;
        }
        let mut wounded = BTreeSet::new();
        for claim in &waiter.claims {
            for holder in self.holders(&claim.granule) {
                let own = Some(holder.txn) == waiter.owner;
                if !own && waiter.age < holder.age && conflict(claim.access, holder.access) {
                    wounded.insert(holder.txn);
                }
            }
        }
        effects.extend(wounded.into_iter().map(|txn| Effect::Wound { txn }));
    }
}

impl Waiter {
    fn access(&self, granule: &Granule) -> Option<Access> {
        let mut claims = self.claims.iter();
        claims.find(|claim| claim.granule == *granule).map(|claim| claim.access)
    }
}

fn conflict(one: Access, other: Access) -> bool {
    one == Access::Write || other == Access::Write
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::script::Args;
    use crate::ids::{Incarnation, NodeId, TableIndex};
    use std::error::Error;
    use std::fmt::Write;

    /// Scripts of one partition's queues. Transactions go by their age: `t5` is of age 5.
    #[derive(Default)]
    struct Script(LockTable);

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
                    self.0.handle(ToLocks::Acquire(acquire), &mut effects);
                }
                "release" => {
                    let txn = txn(args.next()?);
                    for word in args.words() {
                        let granule = claim(word)?.granule;
                        let released = ToLocks::Released { partition: PARTITION, granule, txn };
                        self.0.handle(released, &mut effects);
                    }
                }
                "cancel" => {
                    let ticket = Ticket(args.next()?);
                    let cancel = ToLocks::Cancel { ticket, partition: PARTITION };
                    self.0.handle(cancel, &mut effects);
                }
                "forget" => {
                    for word in args.words() {
                        let granule = claim(word)?.granule;
                        let calm = ToLocks::Uncontended { partition: PARTITION, granule };
                        self.0.handle(calm, &mut effects);
                    }
                }
                "tick" => self.0.tick(&mut effects),
                name => return Err(format!("no command {name}").into()),
            }
            args.end()?;
            let mut told = String::new();
            for effect in effects {
                match effect {
                    Effect::Grant { ticket, .. } => writeln!(told, "grant {}", ticket.0)?,
                    Effect::Wound { txn } => writeln!(told, "wound {}", txn.sequence)?,
                }
            }
            let empty = if self.0.is_empty() { ", nothing contended" } else { "" };
            writeln!(told, "{} waiting{empty}", self.0.waiting())?;
            Ok(told)
        }
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
