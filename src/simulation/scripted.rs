//! Schedules written by hand: for each of some rules the one that a protocol without it does not
//! survive, and that a seed hardly ever gives.
//!
//! They run as [`steps`](super::steps) does, round by round, with some links slower than others:
//! what is *held* between two actors is delivered once it is *let go*.

use super::clients::Outcome;
use super::lists::{
    APPEND, APPEND_ALONE, APPEND_IF_EVEN, EXPIRE, READ, READ_AND_APPEND, TO_LIVE_MS,
};
use super::network::{Actor, Message};
use super::steps::{BYSTANDER, COORDINATOR, REST_MS, Run};
use super::world::{DATA, Kind, PARTITIONS, node_id};
use crate::batch::OpCode;
use crate::ids::{Millis, PartitionId};
use crate::partition::{Partition, RESOLVE_AFTER_MS};
use crate::txn::protocol::{Knowledge, ToPartition};
use std::collections::VecDeque;

/// One in each partition.
const ALL: [usize; 3] = [0, 1, 2];

/// Long enough for all that takes no timeout.
const SOON_MS: u64 = 1_000;

/// A leader whose disk hangs has given up by then, and another one leads.
const HANG_MS: u64 = 3_000;

/// No participant asks for an outcome so soon.
const MOMENT_MS: u64 = 200;

/// The two keys of most schedules, each in the partition of its number.
const BOTH: [usize; 2] = [0, 1];

impl Run {
    /// Takes steps until something holds.
    fn until(&mut self, limit_ms: u64, holds: impl Fn(&Run) -> bool) -> Result<(), String> {
        let until = self.world.now + limit_ms;
        while !holds(self) {
            if self.world.now > until {
                return Err(format!("what was waited for did not come: {}", self.world.unrest()));
            }
            self.step();
        }
        Ok(())
    }

    fn pass_time(&mut self, ms: u64) {
        let until = self.world.now + ms;
        while self.world.now < until {
            self.step();
        }
    }

    fn hold(&mut self, from: Actor, to: Actor) {
        self.world.slow.insert((from, to), u64::MAX);
    }

    /// Holds what a node is told of leaders.
    fn hold_announcements(&mut self, to: usize) {
        (0..DATA).for_each(|from| self.hold(Actor::Bucket(from, 0), Actor::Book(to)));
    }

    fn let_go(&mut self) {
        self.world.slow.clear();
    }

    /// A client asks a node; which request it is.
    fn ask(&mut self, keys: &[usize], code: OpCode, node: usize) -> usize {
        self.world.ask_for(keys, code, node, &[]);
        self.world.requests.len() - 1
    }

    fn is_done(&self, request: usize) -> bool {
        self.world.requests[request].outcome == Outcome::Done
    }

    /// Whether the transaction under way holds something in a partition, which is led at `node`.
    fn is_locked(&self, node: usize, id: PartitionId) -> bool {
        self.world.partition(node, id).is_some_and(|one| !one.is_at_rest())
    }

    fn leads(&self, node: usize, id: PartitionId) -> bool {
        self.world.partition(node, id).is_some_and(Partition::is_led_here)
    }

    /// Leadership is handed to another node.
    fn elect(&mut self, node: usize, id: PartitionId) -> Result<(), String> {
        for other in 0..DATA {
            self.world.with_bucket(other, |bucket, _, _| {
                bucket.prefer(id, node_id(node));
            });
        }
        self.until(SOON_MS, |run| run.leads(node, id))
    }

    /// All that is left to do is done, and looked at from outside.
    fn ends_well(&mut self) -> Result<(), String> {
        self.let_go();
        self.settle(REST_MS)?;
        self.world.check()
    }
}

impl Run {
    /// Asks one of the keys for its list; how long that is.
    fn length(&mut self, key: usize, node: usize) -> Result<usize, String> {
        self.asked(&[key], READ, node, key)
    }

    /// Asks for something and waits until it is done; the length of a key's list after it.
    fn asked(
        &mut self,
        keys: &[usize],
        code: OpCode,
        node: usize,
        key: usize,
    ) -> Result<usize, String> {
        let request = self.ask(keys, code, node);
        self.until(SOON_MS, |run| run.is_done(request))?;
        Ok(self.world.requests[request].seen[&key].len())
    }

    /// A key has been given its time to live at `since`: it lives for so long, give or take the
    /// tenth by which stamps may be fast or slow and what a change of leaders takes.
    fn expires(&mut self, key: usize, since: u64, node: usize) -> Result<(), String> {
        let lives = |length: usize, expected: bool, now: u64| match (length > 0) == expected {
            true => Ok(()),
            false => Err(format!("{} ms after EXPIRE its list is {length} long", now - since)),
        };
        let length = self.length(key, node)?;
        let early = self.world.now < since + TO_LIVE_MS * 8 / 10;
        if early {
            lives(length, true, self.world.now)?;
        }
        while self.world.now < since + TO_LIVE_MS * 13 / 10 + MOMENT_MS {
            self.step();
        }
        let length = self.length(key, node)?;
        lives(length, false, self.world.now)
    }
}

/// The leader's wall clock is half a minute ahead of those of its successors. What it gave half a
/// second to live is gone after half a second.
pub(super) fn a_time_to_live_outlives_a_fast_leader() -> Result<(), String> {
    let mut run = Run::with_clocks([0, 30_000, 0, 0, 0])?;
    run.asked(&[1], EXPIRE, 1, 1)?;
    let since = run.world.now;
    run.elect(2, PartitionId(1))?;
    run.expires(1, since, 2)
}

/// The leader's wall clock is set forward by a year, then back by two.
pub(super) fn a_clock_jumps_by_a_year() -> Result<(), String> {
    const YEAR_MS: i64 = 31_536_000_000;
    let mut run = Run::with_clocks([0; 5])?;
    for ahead in [YEAR_MS, -YEAR_MS] {
        run.asked(&[1], APPEND, 1, 1)?;
        run.asked(&[1], EXPIRE, 1, 1)?;
        let since = run.world.now;
        run.world.clocks[1].ahead = ahead;
        run.expires(1, since, 1)?;
    }
    Ok(())
}

/// Two of three replicas restart, with wall clocks that are a year ahead, and here or there one of
/// them leads next. The third has counted on.
pub(super) fn two_of_three_restart_with_wrong_clocks() -> Result<(), String> {
    const YEAR_MS: i64 = 31_536_000_000;
    for right in 0..DATA {
        let mut run = Run::with_clocks([0; 5])?;
        for node in (0..DATA).filter(|node| *node != right) {
            run.world.clocks[node].ahead += YEAR_MS;
            run.world.crash(node, false, None);
        }
        for id in (0..DATA as u16).map(PartitionId) {
            let leader = |run: &Run| (0..DATA).find(|node| run.leads(*node, id));
            run.until(REST_MS, |run| leader(run).is_some())?;
            let key = id.index();
            run.asked(&[key], APPEND, BYSTANDER, key)?;
            let partition = leader(&run).and_then(|node| run.world.partition(node, id));
            let stamp = partition.map_or(Millis(0), |one| one.replica().stamped());
            let ahead = stamp.0.saturating_sub(run.world.now(right).wall.0);
            if ahead > SOON_MS {
                return Err(format!("stamps of partition {} are {ahead} ms ahead", id.0));
            }
        }
        run.ends_well()?;
    }
    Ok(())
}

/// The Coordinator's wall clock is half a minute ahead. It rewrites a key that has half a second to
/// live, which thereby lives neither shorter nor longer.
pub(super) fn a_coordinator_is_ahead_of_the_leaders() -> Result<(), String> {
    let mut run = Run::with_clocks([0, 700, -700, 30_000, 30_000])?;
    run.asked(&[1], EXPIRE, 1, 1)?;
    let since = run.world.now;
    let length = run.asked(&BOTH, APPEND_IF_EVEN, COORDINATOR, 1)?;
    if length != 3 {
        return Err(format!("a list of two was {length} long once one was appended"));
    }
    run.expires(1, since, COORDINATOR)
}

/// A participant's leader is half a minute ahead as it prepares. Its successor asks for the outcome
/// as soon as any, for the Coordinator is dead.
pub(super) fn an_intent_of_a_fast_leader() -> Result<(), String> {
    let id = PartitionId(1);
    let mut run = Run::with_clocks([0, 30_000, 0, 0, 0])?;
    run.hold(Actor::Bucket(0, 0), Actor::Coordinator(COORDINATOR));
    run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, id))?;
    run.pass_time(MOMENT_MS);
    run.elect(2, id)?;
    run.world.crash(COORDINATOR, false, None);
    run.until(RESOLVE_AFTER_MS, |run| !run.is_locked(2, id))?;
    run.ends_well()
}

/// Two transactions wait for each other, and neither limit of a wait has to end that.
pub(super) fn an_older_transaction_goes_first() -> Result<(), String> {
    let mut run = Run::new()?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold(Actor::Coordinator(BYSTANDER), Actor::Bucket(0, 0));
    let one = run.ask(&BOTH, APPEND, COORDINATOR);
    let other = run.ask(&BOTH, APPEND, BYSTANDER);
    run.until(SOON_MS, |run| run.is_locked(0, PartitionId(0)) && run.is_locked(1, PartitionId(1)))?;
    run.let_go();
    run.until(SOON_MS, |run| run.is_done(one) && run.is_done(other))?;
    run.ends_well()
}

/// The locks of a transaction went with an office that its leader has lost and won again, and its
/// Coordinator has heard of neither.
pub(super) fn a_prepare_for_locks_of_an_earlier_term() -> Result<(), String> {
    let id = PartitionId(1);
    let mut run = Run::new()?;
    let gathered = run.ask(&BOTH, APPEND_IF_EVEN, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(0, PartitionId(0)) && run.is_locked(1, id))?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(0, 0));
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold_announcements(COORDINATOR);
    run.pass_time(MOMENT_MS);
    run.elect(2, id)?;
    run.elect(1, id)?;
    let single = run.ask(&[1], APPEND, 1);
    run.until(SOON_MS, |run| run.is_done(single))?;
    run.world.slow.retain(|(from, _), _| *from != Actor::Coordinator(COORDINATOR));
    run.until(SOON_MS, |run| run.is_done(gathered)).ok();
    run.ends_well()
}

/// A transaction reads one key and writes another, and is still on its way to that one when another
/// client writes what it read. A client that reads the second key after that write comes before and
/// after the transaction.
pub(super) fn a_key_read_changes_before_the_rest_is_written() -> Result<(), String> {
    let mut run = Run::new()?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.ask(&BOTH, READ_AND_APPEND, COORDINATOR);
    run.pass_time(MOMENT_MS);
    run.ask(&BOTH[..1], APPEND, 0);
    run.pass_time(MOMENT_MS);
    let reading = run.ask(&BOTH[1..], READ, 1);
    run.until(SOON_MS, |run| run.is_done(reading))?;
    run.ends_well()
}

/// A read has one partition's locks, and is on its way to the other when the first gets another
/// leader, which knows nothing of them.
pub(super) fn a_read_over_a_change_of_leaders() -> Result<(), String> {
    let mut run = Run::new()?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold_announcements(COORDINATOR);
    run.ask(&BOTH, READ, COORDINATOR);
    run.pass_time(MOMENT_MS);
    run.elect(2, PartitionId(0))?;
    let writing = run.ask(&BOTH, APPEND, BYSTANDER);
    run.until(SOON_MS, |run| run.is_done(writing))?;
    run.world.slow.retain(|(from, _), _| *from != Actor::Coordinator(COORDINATOR));
    run.pass_time(MOMENT_MS);
    run.ends_well()
}

/// A lock is late: its attempt is over, which was told to another leader, and the one that it was
/// sent to leads again.
pub(super) fn a_lock_comes_when_its_attempt_is_over() -> Result<(), String> {
    let id = PartitionId(0);
    let mut run = Run::new()?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(0, 0));
    let reading = run.ask(&BOTH, READ, COORDINATOR);
    run.pass_time(MOMENT_MS);
    run.elect(1, id)?;
    run.until(SOON_MS, |run| run.is_done(reading))?;
    run.elect(0, id)?;
    run.ends_well()
}

/// A participant has not heard of the commit. Its Coordinator has begun another transaction since,
/// which tells the primary that those before are over.
pub(super) fn a_participant_asks_after_the_next_transaction() -> Result<(), String> {
    let id = PartitionId(2);
    let mut run = Run::new()?;
    let writing = run.ask(&[0, 1, 2], APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(2, id))?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(2, 0));
    // Its primary repeats the decision too, unless it has forgotten it.
    run.hold(Actor::Bucket(0, 0), Actor::Bucket(2, 0));
    run.until(SOON_MS, |run| run.is_done(writing))?;
    let next = run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_done(next))?;
    run.world.slow.remove(&(Actor::Bucket(0, 0), Actor::Bucket(2, 0)));
    run.until(REST_MS, |run| !run.is_locked(2, id))?;
    run.ends_well()
}

/// A participant has lost patience and asked the primary, which is asked to prepare only then.
pub(super) fn a_prepare_comes_after_the_end() -> Result<(), String> {
    let mut run = Run::new()?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(0, 0));
    run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, PartitionId(1)))?;
    run.until(REST_MS, |run| !run.is_locked(1, PartitionId(1)))?;
    run.ends_well()
}

/// A leader that was paused does not know yet that there is another one.
pub(super) fn a_deposed_leader_is_asked() -> Result<(), String> {
    let mut run = Run::new()?;
    run.pause(0);
    run.until(REST_MS, |run| (1..DATA).any(|node| run.leads(node, PartitionId(0))))?;
    run.pass_time(MOMENT_MS);
    let writing = run.ask(&[0], APPEND, BYSTANDER);
    run.until(SOON_MS, |run| run.is_done(writing))?;
    let reading = run.ask(&[0], READ, 0);
    let asked = (Actor::Client(reading), Actor::Bucket(0, 0));
    let execute = run.world.queues.get_mut(&asked).and_then(VecDeque::pop_front);
    execute.into_iter().for_each(|execute| run.world.deliver(Actor::Bucket(0, 0), execute));
    run.resume();
    run.ends_well()
}

/// A leader's virtual machine is paused, and no clock in it counts that. The wall clock is right
/// again when it goes on, and it does not know yet that there is another leader.
pub(super) fn a_leader_in_a_paused_machine_is_asked() -> Result<(), String> {
    let mut run = Run::new()?;
    // Which takes a lease.
    let before = run.ask(&[0], READ, 0);
    run.until(SOON_MS, |run| run.is_done(before))?;
    let since = run.world.now;
    run.pause(0);
    run.until(REST_MS, |run| (1..DATA).any(|node| run.leads(node, PartitionId(0))))?;
    run.pass_time(MOMENT_MS);
    let writing = run.ask(&[0], APPEND, BYSTANDER);
    run.until(SOON_MS, |run| run.is_done(writing))?;
    run.world.clocks[0].stood += run.world.now - since;
    let reading = run.ask(&[0], READ, 0);
    let asked = (Actor::Client(reading), Actor::Bucket(0, 0));
    let execute = run.world.queues.get_mut(&asked).and_then(VecDeque::pop_front);
    execute.into_iter().for_each(|execute| run.world.deliver(Actor::Bucket(0, 0), execute));
    run.resume();
    run.ends_well()
}

/// A leader's disk answers no more, those of the others do.
pub(super) fn a_disk_of_a_leader_hangs() -> Result<(), String> {
    let mut run = Run::new()?;
    run.hung = Some(0);
    run.ask(&[0], APPEND, 0);
    run.until(HANG_MS, |run| (1..DATA).any(|node| run.leads(node, PartitionId(0))))?;
    run.pass_time(MOMENT_MS);
    let writing = run.ask(&[0], APPEND, BYSTANDER);
    run.until(SOON_MS, |run| run.is_done(writing))?;
    run.hung = None;
    run.ends_well()
}

/// The Coordinator and primary of a transaction does not reach its other participant any more when it
/// has committed. Others reach both of them.
pub(super) fn a_commit_goes_by_way_of_a_third_node() -> Result<(), String> {
    let mut run = Run::new()?;
    let writing = run.ask(&BOTH, APPEND, 0);
    run.until(SOON_MS, |run| run.is_locked(1, PartitionId(1)))?;
    run.hold(Actor::Coordinator(0), Actor::Bucket(1, 0));
    run.hold(Actor::Bucket(0, 0), Actor::Bucket(1, 0));
    run.until(SOON_MS, |run| run.is_done(writing))?;
    run.world.cut(0, 1);
    run.world.notice(0, 1);
    run.world.notice(1, 0);
    let reading = run.ask(&[1], READ, BYSTANDER);
    run.until(SOON_MS, |run| run.is_done(reading))?;
    run.world.heal(0, 1);
    run.ends_well()
}

/// Two operations of a pipeline wait for one key. Its leader hands its office over, in vain, as the
/// first of them has its turn, and leads on as the second has.
pub(super) fn a_pipeline_waits_through_a_vain_transfer() -> Result<(), String> {
    let (id, leader) = (PartitionId(1), Actor::Bucket(1, 0));
    let grants = (Actor::Locks(1), leader);
    let mut run = Run::new()?;
    run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, id))?;
    run.hold(Actor::Coordinator(COORDINATOR), leader);
    run.world.ask_together(1, &[(vec![1], APPEND), (vec![1], APPEND)]);
    run.pass_time(MOMENT_MS);
    run.hold(grants.0, grants.1);
    run.world.slow.remove(&(Actor::Coordinator(COORDINATOR), leader));
    let granted = |run: &Run| run.world.queues.get(&grants).is_some_and(|all| !all.is_empty());
    run.until(SOON_MS, granted)?;
    // The successor does not hear of it.
    run.hold(leader, Actor::Bucket(2, 0));
    run.world.with_bucket(1, |bucket, _, _| {
        bucket.prefer(id, node_id(2));
    });
    let transfers = |run: &Run| {
        let journal = run.world.partition(1, id).and_then(Partition::journal);
        journal.is_some_and(|journal| journal.group().is_transferring())
    };
    run.until(SOON_MS, transfers)?;
    run.world.with_bucket(1, |bucket, _, _| {
        bucket.prefer(id, node_id(1));
    });
    let first = run.world.queues.get_mut(&grants).and_then(VecDeque::pop_front);
    first.into_iter().for_each(|grant| run.world.deliver(leader, grant));
    run.until(REST_MS, |run| !transfers(run))?;
    run.ends_well()
}

/// A Coordinator is killed with a transaction under way, and begins anew with a wall clock that is an
/// hour behind. What it coordinates from then on gets through.
pub(super) fn a_coordinator_comes_back_an_hour_behind() -> Result<(), String> {
    let mut run = Run::new()?;
    let before = run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_done(before))?;
    run.world.clocks[COORDINATOR].ahead -= 3_600_000;
    run.world.crash(COORDINATOR, false, None);
    let writing = run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(REST_MS, |run| run.is_done(writing))?;
    run.ends_well()
}

/// A commit has reached one of two participants without copies, and its Coordinator has gone on to
/// the next transaction. Then the Coordinator dies, and the primary with it.
pub(super) fn a_commit_is_asked_for_after_the_next_transaction() -> Result<(), String> {
    let mut run = Run::of(Kind::Lossy)?;
    let writing = run.ask(&ALL, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, PartitionId(1)) && run.is_locked(2, PartitionId(2)))?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold(Actor::Bucket(0, 0), Actor::Bucket(1, 0));
    run.until(SOON_MS, |run| run.is_done(writing) && !run.is_locked(2, PartitionId(2)))?;
    let next = run.ask(&[0, 2], APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_done(next))?;
    run.world.crash(0, false, None);
    run.world.crash(COORDINATOR, false, None);
    run.ends_well()
}

/// The primary of two participants without copies is dead, and one has said that it knows of no
/// outcome, when the Coordinator's last word comes: to the other.
pub(super) fn a_commit_comes_after_the_question() -> Result<(), String> {
    let mut run = Run::of(Kind::Lossy)?;
    let writing = run.ask(&ALL, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, PartitionId(1)) && run.is_locked(2, PartitionId(2)))?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(2, 0));
    run.until(SOON_MS, |run| run.is_done(writing))?;
    run.world.crash(0, false, None);
    run.pass_time(2 * RESOLVE_AFTER_MS);
    // Of what it had sent, only one of them gets anything.
    run.world.queues.remove(&(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0)));
    run.world.crash(COORDINATOR, true, None);
    run.ends_well()
}

/// Of three participants without copies two share a node. The primary and the Coordinator are gone;
/// the third knows of the commit, tells one of the two, and dies before it tells the other. That
/// one has been told by its neighbour before that nothing was known there.
pub(super) fn a_commit_is_told_to_one_of_two() -> Result<(), String> {
    let (asker, told) = (PartitionId(1), PartitionId(4));
    let mut run = Run::placed(Kind::Lossy, PARTITIONS as u16)?;
    let writing = run.ask(&[0, 1, 2, 4], APPEND, COORDINATOR);
    run.until(SOON_MS, |run| {
        [(1, asker), (1, told), (2, PartitionId(2))].iter().all(|(at, id)| run.is_locked(*at, *id))
    })?;
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(1, 0));
    run.hold(Actor::Bucket(0, 0), Actor::Bucket(1, 0));
    run.until(SOON_MS, |run| run.is_done(writing) && !run.is_locked(2, PartitionId(2)))?;
    let answers = (Actor::Bucket(2, 0), Actor::Bucket(1, 0));
    run.hold(answers.0, answers.1);
    run.world.crash(0, false, None);
    run.world.crash(COORDINATOR, false, None);
    let tells = |message: &Message| {
        let Message::Partition(to, ToPartition::Knows { knowledge, .. }) = message else {
            return false;
        };
        *to == told && *knowledge == Knowledge::Committed
    };
    let sent = |run: &Run| run.world.queues.get(&answers).is_some_and(|all| all.iter().any(tells));
    run.until(REST_MS, sent)?;
    run.pass_time(2 * RESOLVE_AFTER_MS);
    let queue = run.world.queues.remove(&answers).unwrap_or_default();
    if let Some(message) = queue.into_iter().find(tells) {
        run.world.deliver(Actor::Bucket(1, 0), message);
    }
    run.world.crash(2, false, None);
    run.ends_well()
}

/// An operation comes while the lock on its whole partition is on the way to a transaction.
#[test]
fn what_waits_for_the_whole_partition_waits_for_its_next_holder() {
    let (leader, grants) = (Actor::Bucket(0, 0), (Actor::Locks(0), Actor::Bucket(0, 0)));
    let mut run = Run::new().unwrap();
    run.hold(leader, Actor::Coordinator(COORDINATOR));
    let first = run.ask(&BOTH, APPEND_ALONE, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(0, PartitionId(0))).unwrap();
    let second = run.ask(&BOTH, APPEND_ALONE, BYSTANDER);
    run.pass_time(MOMENT_MS);
    run.let_go();
    run.hold(grants.0, grants.1);
    run.hold(leader, Actor::Coordinator(BYSTANDER));
    run.until(SOON_MS, |run| run.is_done(first)).unwrap();
    let granted = |run: &Run| run.world.queues.get(&grants).is_some_and(|all| !all.is_empty());
    run.until(SOON_MS, granted).unwrap();
    // Neither transaction names its key.
    let single = run.ask(&[PARTITIONS], APPEND, 0);
    run.pass_time(MOMENT_MS);
    run.world.slow.remove(&grants);
    run.pass_time(MOMENT_MS);
    assert_eq!(run.world.requests[single].outcome, Outcome::Open);
    run.let_go();
    run.until(SOON_MS, |run| run.is_done(second) && run.is_done(single)).unwrap();
    run.ends_well().unwrap();
}

/// Its Coordinator has aborted the attempt, and said so to the leader that hangs.
#[test]
fn a_new_leader_asks_soon_about_what_it_inherits() {
    let id = PartitionId(1);
    let mut run = Run::new().unwrap();
    run.hold(Actor::Coordinator(COORDINATOR), Actor::Bucket(0, 0));
    let writing = run.ask(&BOTH, APPEND, COORDINATOR);
    run.until(SOON_MS, |run| run.is_locked(1, id)).unwrap();
    run.pass_time(MOMENT_MS);
    run.pause(1);
    run.until(REST_MS, |run| [0, 2].iter().any(|node| run.leads(*node, id))).unwrap();
    run.let_go();
    run.until(SOON_MS, |run| run.is_done(writing)).unwrap();
    run.resume();
    run.ends_well().unwrap();
}

#[test]
fn a_commit_is_asked_for_after_several_lives() {
    let mut run = Run::of(Kind::Lossy).unwrap();
    let writing = run.ask(&ALL, APPEND, 0);
    let locked = |run: &Run| run.is_locked(1, PartitionId(1)) && run.is_locked(2, PartitionId(2));
    run.until(SOON_MS, locked).unwrap();
    run.hold(Actor::Coordinator(0), Actor::Bucket(1, 0));
    run.hold(Actor::Bucket(0, 0), Actor::Bucket(1, 0));
    run.until(SOON_MS, |run| run.is_done(writing) && !run.is_locked(2, PartitionId(2))).unwrap();
    for _ in 0..3 {
        run.world.crash(0, false, None);
    }
    run.ends_well().unwrap();
}

#[test]
fn a_log_that_is_never_as_long_again_is_given_up() {
    let id = PartitionId(0);
    let mut run = Run::new().unwrap();
    run.elect(2, id).unwrap();
    // No node gives it back to the one whose log is too long.
    for node in 0..2 {
        run.world.with_bucket(node, |bucket, _, _| {
            bucket.prefer(id, node_id(node));
        });
    }
    (0..2).for_each(|node| run.hold(Actor::Bucket(2, 0), Actor::Bucket(node, 0)));
    for _ in 0..4 {
        run.ask(&[0], APPEND, 2);
        run.pass_time(MOMENT_MS / 4);
    }
    run.until(REST_MS, |run| (0..2).any(|node| run.leads(node, id))).unwrap();
    run.ends_well().unwrap();
}
