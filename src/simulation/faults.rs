//! What happens to a whole node: it dies and is started again, or its machine stops for a while.

use super::clients::{Outcome, Request};
use super::world::{DATA, Kind, NODES, World};
use crate::ids::Incarnation;
use crate::rules::{Rule, kept};
use crate::txn::lock_queue::LockQueue;

/// A machine that does nothing until then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    pub(super) node: usize,
    since: u64,
    pub(super) until: u64,
    /// Its monotonic clock stands still meanwhile; its wall clock is right again afterwards.
    is_virtual: bool,
}

impl World {
    /// A node's machine does nothing for so long.
    pub(super) fn stop(&mut self, node: usize, ms: u64, is_virtual: bool) {
        let (since, until) = (self.now, self.now + ms);
        self.counts[2] += 1;
        self.stopped = Some(Stop { node, since, until, is_virtual });
    }

    /// A machine that did nothing goes on, if its time has come.
    pub(super) fn go_on(&mut self) {
        if let Some(stop) = self.stopped.take_if(|stop| stop.until <= self.now)
            && stop.is_virtual
        {
            self.clocks[stop.node].stood += self.now - stop.since;
        }
    }

    /// Whether a node's machine does something.
    pub(super) fn goes(&self, node: Option<usize>) -> bool {
        self.stopped.is_none_or(|stop| Some(stop.node) != node)
    }

    /// A node dies and is started again. What it had sent still arrives if it is `late`; of what
    /// was not synced so many writes have `reached` the disk, in order, or as the seed says.
    pub(super) fn crash(&mut self, node: usize, late: bool, reached: Option<usize>) {
        let ended = self.lives[node];
        let wall = self.now(node).wall;
        self.lives[node] = match kept(Rule::LivesAreCounted) {
            true => ended.next(wall),
            false => Incarnation(wall.0),
        };
        self.deaths[node] += 1;
        let others: Vec<usize> = (0..NODES).filter(|other| *other != node).collect();
        self.queues.retain(|(from, to), _| {
            let from_dead = from.node() == Some(node);
            let to_dead = to.node() == Some(node);
            // What it had sent may still arrive, from its last life: a stream is read to its end.
            !(to_dead || from_dead && to.node() == Some(node))
        });
        for &other in &others {
            self.suspected.remove(&(node, other));
            self.unnoticed.remove(&(node, other));
            self.unnoticed.remove(&(other, node));
            if !late {
                self.drop_between(node, other);
            }
            self.flush_between(node, other);
            self.node_down(other, node, Some(ended));
        }
        let unanswered =
            |request: &Request| request.outcome == Outcome::Open && request.node == node;
        let open: Vec<usize> =
            (0..self.requests.len()).filter(|index| unanswered(&self.requests[*index])).collect();
        for request in open {
            self.end(request, Outcome::Unknown);
        }
        self.parked.retain(|(at, ..), _| *at != node);
        self.early.retain(|(at, ..), _| *at != node);
        self.splits.retain(|_, split| split.node != node);
        self.end_sessions(node);
        self.topologies[node] = self.topology();
        if node < DATA {
            let rng = &mut self.rng;
            self.disks[node].crash(|count| reached.unwrap_or_else(|| rng.roll(count + 1)));
            self.buckets[node] = self.start_buckets(node);
            if self.kind != Kind::Replicated {
                self.lost.insert(node);
            }
        }
        self.locks[node] = LockQueue::new();
        self.coordinators[node] = self.coordinator(node);
        for other in others {
            if !self.cut.contains(&(node.min(other), node.max(other))) {
                self.node_up(node, other);
                self.node_up(other, node);
            }
        }
    }
}
