//! Clients that send many commands at once, to any node.
//!
//! Their Session's [`Flight`] has as many under way at once as may be: all, if each is on one key.
//!
//! The node's Session asks its own Buckets, and each other node once for all of that node's Buckets,
//! which divide the batch among them. Replies are short of room, so that much is left and asked for
//! again. What is put together where is decided by [`crate::batch::round`], as in the actors.

use super::clients::{Outcome, Request, work_of};
use super::lists::{APPEND, Lists, batch, hasher, key_name};
use super::network::{Actor, Message};
use super::world::{DATA, World, partition_of};
use crate::batch::flight::{Flight, known_as};
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::round::{self, Redirect};
use crate::batch::{Batch, Op, OpCode, Replies};
use crate::ids::{PartitionId, TableIndex};
use crate::store::tables::Access;
use std::collections::{BTreeMap, BTreeSet};

/// How often a Session looks for the leader before it gives up.
const TURNS_MAX: usize = 200;

/// What waits for a Bucket's answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A client with a single request.
    Client(usize),
    /// A Session of the same node.
    Session(Exchange),
    /// A batch of another node, which several Buckets execute.
    Split(u64),
}

/// A question of a Session, and which node asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Exchange {
    node: usize,
    name: u64,
}

/// A batch that several Buckets of a node execute.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) node: usize,
    exchange: Exchange,
    batch: Batch,
    waiting: BTreeSet<usize>,
    done: BTreeMap<usize, Replies>,
}

/// What is away of one destination.
#[derive(Debug, Default)]
struct Share {
    batch: Batch,
    replies: Replies,
    redirect: Option<Redirect>,
    turns: usize,
}

#[derive(Debug)]
struct Asked {
    destination: usize,
    /// The node that is asked.
    at: usize,
    batch: Batch,
    /// The operations that met a node that does not lead and are asked of this one.
    redirected: Option<Vec<u32>>,
}

/// What a client has sent at once, and the Session that serves it.
#[derive(Debug)]
pub(super) struct Pipeline {
    node: usize,
    pub(super) requests: Vec<usize>,
    shares: Vec<Share>,
    /// The places of the transactions.
    spreads: Vec<usize>,
    waiting: BTreeMap<Exchange, Asked>,
    /// None once all is answered, or its node has died.
    flight: Option<Flight>,
}

impl World {
    /// A client sends a node these commands at once.
    pub(super) fn ask_together(&mut self, node: usize, asked: &[(Vec<usize>, OpCode)]) {
        let mut flight = Flight::new(NODES_AND_BUCKETS, self.reply_bytes());
        let (mut requests, mut spreads) = (Vec::new(), Vec::new());
        for (place, (keys, code)) in asked.iter().enumerate() {
            let tag = self.requests.len();
            self.requests.push(Request::begun(tag as u32, keys.clone(), *code, self.step, node));
            requests.push(tag);
            if keys.len() > 1 {
                flight.spread();
                spreads.push(place);
                continue;
            }
            let lane = self.route(node, partition_of(keys[0]));
            flight.ops(lane as u16, &batch(*code, partition_of(keys[0]), keys, tag as u32));
        }
        flight.seal::<Lists>(hasher(), |number, named| {
            let (keys, _) = &asked[spreads[number]];
            let known = |key: &usize| known_as(hasher(), TableIndex::default(), &key_name(*key));
            named.extend(keys.iter().map(known));
        });
        let shares = (0..NODES_AND_BUCKETS).map(|_| Share::default()).collect();
        let (flight, waiting) = (Some(flight), BTreeMap::new());
        self.pipelines.push(Pipeline { node, requests, shares, spreads, waiting, flight });
        self.fly(self.pipelines.len() - 1);
    }

    /// Starts what may start, and takes the replies whose turn it is, until nothing is left to be done
    /// before an answer comes.
    fn fly(&mut self, number: usize) {
        loop {
            let pipeline = &mut self.pipelines[number];
            let Some(flight) = &mut pipeline.flight else { return };
            let mut replies = Vec::new();
            flight.collect(|place, reply, _| replies.push((place, reply.to_vec())));
            let begun = flight.start();
            let batches = (0..flight.lanes()).filter_map(|lane| Some((lane, flight.send(lane)?.0)));
            let batches: Vec<_> = batches.collect();
            let is_idle = replies.is_empty() && begun.is_empty() && batches.is_empty();
            let is_over = flight.is_over();
            for (place, reply) in replies {
                // A transaction's client was told when it ended.
                if !self.pipelines[number].spreads.contains(&place) {
                    let request = self.pipelines[number].requests[place];
                    self.on_reply(request, &reply);
                }
            }
            for spread in begun {
                let place = self.pipelines[number].spreads[spread as usize];
                let request = self.pipelines[number].requests[place];
                let Request { keys, code, tag, node, .. } = &self.requests[request];
                let (work, node) = (work_of(keys, *code, *tag, &[]), *node);
                let begin = Message::Begin(request, work);
                self.send(Actor::Client(request), Actor::Coordinator(node), begin);
            }
            for (lane, batch) in batches {
                self.pipelines[number].shares[lane].batch = batch.clone();
                self.ask_destination(number, lane, lane, batch, None);
            }
            if is_over {
                self.pipelines[number].flight = None;
                self.look_at_order(number);
            }
            if is_idle {
                return;
            }
        }
    }

    /// A transaction has ended; it may be one of a client that has sent others with it.
    pub(super) fn on_flown(&mut self, request: usize) {
        let spread = |pipeline: &Pipeline| {
            pipeline.spreads.iter().position(|place| pipeline.requests[*place] == request)
        };
        let found = self.pipelines.iter().enumerate().find_map(|(n, one)| Some((n, spread(one)?)));
        let Some((number, spread)) = found else { return };
        if let Some(flight) = &mut self.pipelines[number].flight {
            flight.end(spread as u32, Vec::new());
            self.fly(number);
        }
    }

    /// What was sent first has its effect first, as far as any of them can tell.
    fn look_at_order(&mut self, number: usize) {
        let requests = &self.pipelines[number].requests;
        for (place, first) in requests.iter().enumerate() {
            for second in &requests[place + 1..] {
                let (first, second) = (&self.requests[*first], &self.requests[*second]);
                if first.outcome != Outcome::Done || second.outcome != Outcome::Done {
                    continue;
                }
                for (key, seen) in &second.seen {
                    let Some(before) = first.seen.get(key) else { continue };
                    // What a lost node held is no longer seen.
                    let is_missed =
                        first.code == APPEND && self.lost.is_empty() && !seen.contains(&first.tag);
                    if is_missed || before.contains(&second.tag) {
                        self.strange = Some(format!("out of order: {first:?} before {second:?}"));
                        return;
                    }
                }
            }
        }
    }

    /// Where a node's Sessions send what is asked of a partition: one of its Buckets, or a node.
    fn route(&self, node: usize, id: PartitionId) -> usize {
        match (self.leader(node, id), self.home(node, id)) {
            (leader, Actor::Bucket(_, bucket)) if leader == node => DATA + bucket,
            (leader, _) => leader,
        }
    }

    fn ask_destination(
        &mut self,
        number: usize,
        destination: usize,
        to: usize,
        batch: Batch,
        redirected: Option<Vec<u32>>,
    ) {
        let node = self.pipelines[number].node;
        self.names += 1;
        let exchange = Exchange { node, name: self.names };
        let at = if to < DATA { to } else { node };
        let asked = Asked { destination, at, batch: batch.clone(), redirected };
        self.pipelines[number].waiting.insert(exchange, asked);
        let from = Actor::Session(node);
        if to >= DATA {
            let execute = Message::Execute(Asker::Session(exchange), batch);
            self.send(from, Actor::Bucket(node, to - DATA), execute);
        } else if self.is_down(node, to) {
            let replies = self.unreachable(&batch);
            self.send(from, from, Message::Landed(exchange, replies));
        } else {
            self.send(from, Actor::Peer(to), Message::Asked(exchange, batch));
        }
    }

    /// The replies to operations that cannot be sent.
    fn unreachable(&self, batch: &Batch) -> Replies {
        let mut replies = Replies::default();
        for (index, head) in batch.heads().enumerate() {
            match self.kind.is_replicated(head.partition) {
                true => replies.not_leader.push(index as u32),
                false => Lists::refuse(&Refusal::NoLeader(head.partition), &mut replies.bytes),
            }
            replies.end();
        }
        replies
    }

    /// A node is asked by another one.
    pub(super) fn on_asked(&mut self, node: usize, exchange: Exchange, batch: Batch) {
        self.names += 1;
        let name = self.names;
        let shares = round::spread(&batch, |op| self.bucket_of(node, op));
        let waiting = shares.keys().copied().collect();
        let split = Split { node, exchange, batch, waiting, done: BTreeMap::new() };
        self.splits.insert(name, split);
        for (bucket, share) in shares {
            let execute = Message::Execute(Asker::Split(name), share);
            self.send(Actor::Peer(node), Actor::Bucket(node, bucket), execute);
        }
    }

    fn bucket_of(&self, node: usize, op: &Op<'_>) -> usize {
        match self.home(node, op.head.partition) {
            Actor::Bucket(_, bucket) => bucket,
            _ => 0,
        }
    }

    /// A Bucket answers its asker.
    pub(super) fn answer(&mut self, node: usize, index: usize, asker: Asker, replies: Replies) {
        let from = Actor::Bucket(node, index);
        match asker {
            Asker::Client(request) => {
                self.send(from, Actor::Client(request), Message::Replied(request, replies));
            }
            Asker::Session(exchange) => {
                self.send(from, Actor::Session(node), Message::Landed(exchange, replies));
            }
            Asker::Split(name) => {
                let Some(split) = self.splits.get_mut(&name) else { return };
                split.waiting.remove(&index);
                split.done.insert(index, replies);
                if !split.waiting.is_empty() {
                    return;
                }
                let Some(split) = self.splits.remove(&name) else { return };
                let place = |op: &Op<'_>| self.bucket_of(node, op);
                let replies = round::gather::<Lists>(&split.batch, place, &split.done);
                let to = Actor::Session(split.exchange.node);
                self.send(Actor::Peer(node), to, Message::Landed(split.exchange, replies));
            }
        }
    }

    /// A Session has an answer.
    pub(super) fn on_landed(&mut self, exchange: Exchange, replies: Replies) {
        let waits = |pipeline: &Pipeline| pipeline.waiting.contains_key(&exchange);
        let Some(number) = self.pipelines.iter().position(waits) else { return };
        let pipeline = &mut self.pipelines[number];
        let Some(asked) = pipeline.waiting.remove(&exchange) else { return };
        let share = &mut pipeline.shares[asked.destination];
        match (asked.redirected, &mut share.redirect) {
            (Some(indices), Some(redirect)) => redirect.take(&indices, &replies),
            _ => share.replies = replies,
        }
        let destination = asked.destination;
        let is_awaited = |asked: &Asked| asked.destination == destination;
        if !pipeline.waiting.values().any(is_awaited) {
            self.land(number, destination);
        }
    }

    /// All answers to the batch of a lane are there.
    fn land(&mut self, number: usize, lane: usize) {
        self.settle_share(number, lane);
        let pipeline = &mut self.pipelines[number];
        if pipeline.waiting.values().any(|asked| asked.destination == lane) {
            return;
        }
        let share = &mut pipeline.shares[lane];
        let (batch, replies) =
            (std::mem::take(&mut share.batch), std::mem::take(&mut share.replies));
        if let Some(flight) = &mut pipeline.flight {
            let is_left = flight.take_back(lane, batch, replies);
            self.counts[0] += u64::from(is_left);
            self.fly(number);
        }
    }

    /// Asks again for what was asked of a node that does not lead it.
    fn settle_share(&mut self, number: usize, destination: usize) {
        let node = self.pipelines[number].node;
        let share = &mut self.pipelines[number].shares[destination];
        if share.redirect.is_none() && !share.replies.not_leader.is_empty() {
            share.redirect = Some(Redirect::of(&mut share.replies));
            share.turns = 0;
        }
        let Some(mut redirect) = share.redirect.take() else { return };
        share.turns += 1;
        if share.turns > TURNS_MAX {
            redirect.give_up(&share.batch, |id, reply| {
                Lists::refuse(&Refusal::NoLeader(id), reply);
            });
        }
        if redirect.is_over() {
            share.replies = redirect.finish::<Lists>(&share.batch, &share.replies);
            return;
        }
        let batch = share.batch.clone();
        let shares = redirect.shares(&batch, |id| self.route(node, id));
        self.pipelines[number].shares[destination].redirect = Some(redirect);
        for (to, (indices, batch)) in shares {
            self.ask_destination(number, destination, to, batch, Some(indices));
        }
    }

    /// What a node has asked of another one, which it has lost, is not answered any more.
    pub(super) fn lose_exchanges(&mut self, node: usize, other: usize) {
        let mut lost = Vec::new();
        for pipeline in self.pipelines.iter().filter(|pipeline| pipeline.node == node) {
            let there = pipeline.waiting.iter().filter(|(_, asked)| asked.at == other);
            lost.extend(there.map(|(exchange, asked)| (*exchange, asked.batch.clone())));
        }
        for (exchange, batch) in lost {
            let unknown = |access: Access, reply: &mut Vec<u8>| {
                reply.extend_from_slice(match access {
                    Access::Read => b"refused",
                    Access::Write => b"unknown",
                });
            };
            let replies = round::lost::<Lists>(&batch, unknown);
            self.on_landed(exchange, replies);
        }
    }

    /// A node has died, and its Sessions with it.
    pub(super) fn end_sessions(&mut self, node: usize) {
        for number in 0..self.pipelines.len() {
            let pipeline = &mut self.pipelines[number];
            if pipeline.node != node || pipeline.flight.take().is_none() {
                continue;
            }
            pipeline.waiting.clear();
            for request in self.pipelines[number].requests.clone() {
                self.end(request, Outcome::Unknown);
            }
        }
    }
}

/// Destinations: the nodes with partitions, then the Buckets of the Session's own node.
const NODES_AND_BUCKETS: usize = DATA + 3;
