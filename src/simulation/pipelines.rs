//! Clients that send many commands at once, each on one key, to any node.
//!
//! The node's Session asks its own Buckets, and each other node once for all of that node's Buckets,
//! which divide the batch among them. Replies are short of room, so that much is left and asked for
//! again. What is put together where is decided by [`crate::batch::round`], as in the actors.

use super::clients::{Outcome, Request};
use super::lists::{Lists, batch};
use super::network::{Actor, Message};
use super::world::{DATA, World, partition_of};
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::round::{self, Among, Redirect};
use crate::batch::{Batch, Op, OpCode, Part, Replies};
use crate::ids::PartitionId;
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

/// What a Session asks of one destination.
#[derive(Debug, Default)]
struct Share {
    batch: Batch,
    replies: Replies,
    taken: usize,
    among: Option<Among>,
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
    /// The destination of each request.
    order: Vec<usize>,
    answered: usize,
    waiting: BTreeMap<Exchange, Asked>,
}

impl World {
    /// A client sends a node these commands at once.
    pub(super) fn ask_together(&mut self, node: usize, asked: &[(usize, OpCode)]) {
        let destinations = NODES_AND_BUCKETS;
        let mut pipeline = Pipeline {
            node,
            requests: Vec::new(),
            shares: (0..destinations).map(|_| Share::default()).collect(),
            order: Vec::new(),
            answered: 0,
            waiting: BTreeMap::new(),
        };
        for &(key, code) in asked {
            let tag = self.requests.len();
            self.requests.push(Request::begun(tag as u32, vec![key], code, self.step, node));
            let destination = self.route(node, partition_of(key));
            let op = batch(code, partition_of(key), &[key], tag as u32);
            pipeline.shares[destination].batch.push_op(&op.op(0));
            pipeline.order.push(destination);
            pipeline.requests.push(tag);
        }
        self.pipelines.push(pipeline);
        self.go_through(self.pipelines.len() - 1);
    }

    /// Where a node's Sessions send what is asked of a partition: one of its Buckets, or a node.
    fn route(&self, node: usize, id: PartitionId) -> usize {
        match (self.leader(node, id), self.home(node, id)) {
            (leader, Actor::Bucket(_, bucket)) if leader == node => DATA + bucket,
            (leader, _) => leader,
        }
    }

    /// Takes what is answered, and asks for what is next.
    fn go_through(&mut self, number: usize) {
        loop {
            let pipeline = &mut self.pipelines[number];
            pipeline.shares.iter_mut().for_each(Share::put_back);
            let mut replies = Vec::new();
            while let Some(&destination) = pipeline.order.get(pipeline.answered) {
                let share = &mut pipeline.shares[destination];
                let Part::Answered(reply) = share.replies.part(share.taken) else { break };
                replies.push((pipeline.requests[pipeline.answered], reply.to_vec()));
                share.taken += 1;
                pipeline.answered += 1;
            }
            let is_over = pipeline.answered == pipeline.order.len();
            for (request, reply) in replies {
                self.on_reply(request, &reply);
            }
            if is_over {
                return;
            }
            self.ask_shares(number);
            if !self.pipelines[number].waiting.is_empty() {
                return;
            }
        }
    }

    /// Asks every destination whose next operation is unanswered.
    fn ask_shares(&mut self, number: usize) {
        for destination in 0..self.pipelines[number].shares.len() {
            let room = self.reply_bytes();
            let share = &mut self.pipelines[number].shares[destination];
            let is_next = matches!(share.replies.part(share.taken), Part::Answered(_));
            if share.taken == share.batch.len() || is_next {
                continue;
            }
            if !share.replies.is_empty() {
                self.counts[0] += 1;
                let from = std::mem::take(&mut share.taken);
                let (batch, replies) = (&mut share.batch, &mut share.replies);
                share.among = Among::ask_again(batch, replies, from, room);
            }
            share.taken = 0;
            let batch = share.batch.clone();
            self.ask_destination(number, destination, destination, batch, None);
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
        if pipeline.waiting.is_empty() {
            self.settle_redirect(number);
            if self.pipelines[number].waiting.is_empty() {
                self.go_through(number);
            }
        }
    }

    /// Asks again for what was asked of a node that does not lead it.
    fn settle_redirect(&mut self, number: usize) {
        let node = self.pipelines[number].node;
        for destination in 0..self.pipelines[number].shares.len() {
            let share = &mut self.pipelines[number].shares[destination];
            if share.redirect.is_none() && !share.replies.not_leader.is_empty() {
                share.redirect = Some(Redirect::of(&mut share.replies));
                share.turns = 0;
            }
            let Some(mut redirect) = share.redirect.take() else { continue };
            share.turns += 1;
            if share.turns > TURNS_MAX {
                redirect.give_up(&share.batch, |id, reply| {
                    Lists::refuse(&Refusal::NoLeader(id), reply);
                });
            }
            if redirect.is_over() {
                share.replies = redirect.finish::<Lists>(&share.batch, &share.replies);
                continue;
            }
            let batch = share.batch.clone();
            let shares = redirect.shares(&batch, |id| self.route(node, id));
            self.pipelines[number].shares[destination].redirect = Some(redirect);
            for (to, (indices, batch)) in shares {
                self.ask_destination(number, destination, to, batch, Some(indices));
            }
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
            if pipeline.node != node || pipeline.answered == pipeline.order.len() {
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

impl Share {
    /// Puts what was asked for again back to where it was left.
    fn put_back(&mut self) {
        if let Some(among) = self.among.take() {
            among.put_back::<Lists>(&mut self.batch, &mut self.replies);
        }
    }
}
