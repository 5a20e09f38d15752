//! A Peer: the pair of streams to one other node.
//!
//! What becomes of the link is decided in [`crate::cluster::link`]; the Peer carries. Each node dials
//! every other. All that two nodes have to say to each other goes over the stream that the one with
//! the smaller id has dialled: what one turn of the mailbox brought, requests, answers and messages
//! of groups alike, leaves in one write, and the other node wakes up once for it. Snapshots, pings and
//! pongs go over the other stream: nothing waits behind the pieces of a snapshot, and a ping waits
//! behind no batch. When either stream breaks, both are dropped with all that was queued: what a new
//! link carries was said after the old one broke, and nothing said before is repeated.

mod handshake;
mod inbound;
mod requests;
mod stream;

use crate::actors::book::Book;
use crate::actors::bucket::{self, Answer, Failure};
use crate::actors::coordinator;
use crate::actors::dispatch::Dispatch;
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::log::{self as disk, Log};
use crate::batch::Batch;
use crate::cluster::barrier::Hello;
use crate::cluster::link::{self, DialFailure, Link, LinkEffect, StreamId, Word};
use crate::ids::{Elapsed, Incarnation, LastSeen, NodeId, Now, PartitionId};
use crate::net::frame::{Incoming, Outgoing};
use crate::net::listen::TcpStream;
use crate::net::packet::{Packet, Relayed};
use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, SpawnHandle};
use handshake::{introduce, nonce};
use requests::fail;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::{CLOSED_THERE, Stream, read};
use tokio::sync::oneshot;

pub use handshake::accept;
pub use requests::Answered;

/// Where a node listens for its peers.
#[derive(Clone, Debug)]
pub struct Address {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The actor.
#[derive(Debug)]
pub struct Peer {
    node: NodeId,
    other: NodeId,
    address: Address,
    link: Link,
    /// What the link wants done.
    effects: Vec<LinkEffect>,
    clock: fn() -> Now,
    /// Since it began: a machine that was suspended, or a virtual one that was paused, has not served
    /// meanwhile, and others have taken back what they had asked.
    elapsed: Elapsed,
    /// Bytes that may wait for a node that does not read before it is taken for lost.
    queue_max: usize,
    book: Option<Arc<Book>>,
    log: Option<Addr<Log>>,
    /// The nodes of the cluster, in order.
    nodes: Vec<NodeId>,
    /// Those of the link, and those that may become part of it.
    streams: SmallVec<[Stream; 2]>,
    next_stream: StreamId,
    next_request: u64,
    /// Asked over the link that stands.
    pending: BTreeMap<u64, (Batch, Answer)>,
    /// Asked over links that are lost: the node may still execute it.
    adrift: Vec<(Batch, Answer)>,
    /// Received, and not passed on yet.
    dispatch: Dispatch,
    flushing: bool,
    /// The attempt to dial that is under way.
    attempt: Option<SpawnHandle>,
    failpoint: Failpoint,
}

/// The address book is ready: dial.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Arc<Book>, pub Option<Addr<Log>>);

/// A replica of the other node, of this generation, is in a group.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Seen(pub u32);

/// This node goes on in a later life: what was linked with the one before is linked anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Relive(pub Incarnation);

/// Send this packet, if the node can be reached.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Convey(pub Packet);

/// Send these packets, in this order. What may go by way of other nodes does so too while this one
/// does not answer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConveyAll(pub Vec<Packet>);

/// This node is formed and cannot verify its replicas of these partitions: introductions say so
/// from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Restate(pub Vec<PartitionId>);

/// The other node has dialled and introduced itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Introduced {
    /// Its introduction.
    pub hello: Hello,
    /// From where it has dialled.
    pub from: String,
    /// The stream, and what was read of it beyond the introduction.
    pub stream: TcpStream,
    /// Bytes after the introduction.
    pub rest: Vec<u8>,
}

/// A stream has ended.
#[derive(Message)]
#[rtype(result = "()")]
struct Closed {
    stream: u64,
    why: String,
}

/// Write what was queued since the mailbox was last empty.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

impl Peer {
    /// The Peer of node `other` on `node`, over this link.
    pub fn new(
        node: NodeId,
        other: NodeId,
        address: Address,
        link: Link,
        queue_max: usize,
        clock: fn() -> Now,
        failpoint: Failpoint,
    ) -> Peer {
        Peer {
            node,
            other,
            address,
            link,
            effects: Vec::new(),
            clock,
            elapsed: Elapsed::since(clock()),
            queue_max,
            book: None,
            log: None,
            nodes: Vec::new(),
            streams: SmallVec::new(),
            next_stream: 0,
            next_request: 0,
            pending: BTreeMap::new(),
            adrift: Vec::new(),
            dispatch: Dispatch::default(),
            flushing: false,
            attempt: None,
            failpoint,
        }
    }

    fn now_ms(&mut self) -> u64 {
        self.elapsed.at((self.clock)())
    }

    /// A stream has ended, or ends because of what came on it.
    fn close(&mut self, stream: StreamId, why: &str, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        self.link.closed(stream, why, why == CLOSED_THERE, now, &mut self.effects);
        self.carry(ctx);
    }

    fn dial(&mut self, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        let Some(hello) = self.link.dial(nonce(), now) else { return };
        let attempt = introduce(self.address.clone(), hello).into_actor(self);
        self.attempt = Some(ctx.spawn(attempt.map(|result, peer, ctx| {
            let now = peer.now_ms();
            match result {
                Ok((stream, hello, rest)) => {
                    let id = peer.open(stream, rest, ctx);
                    peer.link.answered(id, hello, now, &mut peer.effects);
                }
                Err(failure) => {
                    if let DialFailure::Unreachable(why) = &failure {
                        log::debug!(target: "peer", "node {}: {why}", peer.other);
                    }
                    peer.link.dial_failed(failure, now, &mut peer.effects);
                }
            }
            peer.carry(ctx);
        })));
    }

    /// Takes a stream and reads it. Returns its name.
    fn open(&mut self, stream: TcpStream, rest: Vec<u8>, ctx: &mut Context<Self>) -> StreamId {
        self.next_stream += 1;
        let id = self.next_stream;
        let (reader, writer) = stream.into_split();
        let (open, opened) = oneshot::channel();
        actix_rt::spawn(read(reader, rest, id, opened, ctx.address()));
        self.streams.push(Stream {
            id,
            writer: Rc::new(writer),
            open: Some(open),
            out: Vec::new(),
            written: 0,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            blocked: false,
        });
        id
    }

    /// Does what the link wants done.
    fn carry(&mut self, ctx: &mut Context<Self>) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_one(effect, ctx);
            }
        }
    }

    fn carry_one(&mut self, effect: LinkEffect, ctx: &mut Context<Self>) {
        let other = self.other;
        match effect {
            LinkEffect::Dial => self.dial(ctx),
            LinkEffect::Retry(after_ms) => {
                ctx.run_later(Duration::from_millis(after_ms), |peer, ctx| peer.tick(ctx));
            }
            LinkEffect::HangUp => {
                log::debug!(target: "peer", "node {other}: timed out");
                if let Some(attempt) = self.attempt.take() {
                    ctx.cancel_future(attempt);
                }
            }
            LinkEffect::Say(stream, word) => {
                let packet = match word {
                    Word::Claim(nonce) => Packet::Claim(nonce),
                    Word::Yours(nonce, yours) => Packet::Yours(nonce, yours),
                    Word::Ping { number, seen } => Packet::Ping { number, seen },
                    Word::Pong(number) => Packet::Pong(number),
                };
                self.queue_on(stream, &packet, ctx);
            }
            LinkEffect::Close(stream) => self.streams.retain(|one| one.id != stream),
            LinkEffect::Up(hello) => {
                for stream in &mut self.streams {
                    let of_link = [self.link.dialled_stream(), self.link.accepted_stream()];
                    if of_link.contains(&Some(stream.id))
                        && let Some(open) = stream.open.take()
                    {
                        // A reader that has ended says so itself.
                        let _ = open.send(());
                    }
                }
                log::info!(target: "peer", "linked with node {other}");
                if let Some(book) = &self.book {
                    for bucket in &book.buckets {
                        bucket.do_send(bucket::NodeUp(hello.clone()));
                    }
                    book.coordinator.do_send(coordinator::NodeUp(hello));
                }
            }
            LinkEffect::Suspect => {
                log::warn!(target: "peer", "node {other} does not answer, suspected");
                self.tell_suspected(true);
                self.give_up();
            }
            LinkEffect::Trust => {
                log::info!(target: "peer", "node {other} answers again");
                self.tell_suspected(false);
            }
            LinkEffect::Down(why) => {
                log::warn!(target: "peer", "lost node {other}: {why}");
                self.adrift.extend(std::mem::take(&mut self.pending).into_values());
                self.give_up();
                self.tell_down(None, false);
            }
            LinkEffect::Final => {
                for (batch, answer) in std::mem::take(&mut self.adrift) {
                    fail(answer, batch, Failure::Unknown(other));
                }
            }
            LinkEffect::Ended { life, dead } => self.tell_down(Some(life), dead),
            LinkEffect::Seen(seen) => {
                if let Some(log) = &self.log {
                    log.do_send(disk::Seen(other, seen));
                }
            }
            LinkEffect::Outlived(seen) => {
                if let Some(book) = &self.book {
                    book.coordinator.do_send(coordinator::Outlived(other, seen));
                }
            }
            LinkEffect::Complain(complaint) => log::warn!(target: "peer", "{complaint}"),
        }
    }

    /// Remembers a generation of the other node's replicas.
    fn see(&mut self, generation: u32, ctx: &mut Context<Self>) {
        self.link.see(LastSeen { generation, ..LastSeen::default() }, &mut self.effects);
        self.carry(ctx);
    }

    fn tell_suspected(&self, suspected: bool) {
        if let Some(book) = &self.book {
            for bucket in &book.buckets {
                bucket.do_send(bucket::NodeSuspected { node: self.other, suspected });
            }
            let told = coordinator::NodeSuspected { node: self.other, suspected };
            book.coordinator.do_send(told);
        }
    }

    fn tell_down(&self, ended: Option<Incarnation>, dead: bool) {
        if let Some(book) = &self.book {
            for bucket in &book.buckets {
                bucket.do_send(bucket::NodeDown { node: self.other, ended, dead });
            }
            book.coordinator.do_send(coordinator::NodeDown(self.other));
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        self.link.tick(now, &mut self.effects);
        self.carry(ctx);
        if self.link.is_suspected() {
            self.give_up();
        }
    }

    /// Queues a packet on one of the streams. False when it fits no frame; a packet for a node that
    /// is not there is as good as sent.
    fn queue(&mut self, packet: &Packet, ctx: &mut Context<Self>) -> bool {
        if !self.link.is_up() {
            return true;
        }
        let aside = matches!(packet, Packet::Transfer(_));
        let stream = match (self.node < self.other) != aside {
            true => self.link.dialled_stream(),
            false => self.link.accepted_stream(),
        };
        stream.is_none_or(|stream| self.queue_on(stream, packet, ctx))
    }

    fn queue_on(&mut self, stream: StreamId, packet: &Packet, ctx: &mut Context<Self>) -> bool {
        let Some(stream) = self.streams.iter_mut().find(|one| one.id == stream) else {
            return true;
        };
        // A single packet may always wait, however long it is.
        let waiting = stream.out.len() - stream.written + stream.outgoing.waiting();
        if let Err(error) = stream.push(packet) {
            log::error!(target: "peer", "cannot tell node {}: {error}", self.other);
            return false;
        }
        self.failpoint.mark(|| Point::sent(packet));
        if waiting > self.queue_max {
            let (id, max) = (stream.id, self.queue_max);
            let why = format!(
                "it does not read: {waiting} bytes wait for it, where limits.peer_queue is {max}"
            );
            self.close(id, &why, ctx);
        } else if !self.flushing {
            self.flushing = true;
            ctx.address().do_send(Flush);
        }
        true
    }

    /// Asks all other nodes to pass a packet on, if it is one of those. Which of them reach the node
    /// is not known here, and whatever comes several times counts once.
    fn relay(&self, packet: &Packet) {
        let Some(book) = &self.book else { return };
        let Some(relayed) = Relayed::of(packet, |id| book.is_replicated(id)) else { return };
        for (_, peer) in book.peers.iter().filter(|(id, _)| **id != self.other) {
            peer.do_send(Convey(Packet::Relay(self.other, relayed.clone())));
        }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        let (mut full, mut ended) = (SmallVec::<[_; 2]>::new(), SmallVec::<[_; 2]>::new());
        for stream in self.streams.iter_mut().filter(|stream| !stream.blocked) {
            match stream.write() {
                Ok(true) => {}
                Ok(false) => {
                    stream.blocked = true;
                    full.push((stream.id, stream.writer.clone()));
                }
                Err(error) => ended.push((stream.id, error.to_string())),
            }
        }
        for (id, writer) in full {
            let writable = async move {
                // There may be room: the arbiter's other tasks go first all the same.
                tokio::task::yield_now().await;
                writer.writable().await
            };
            let writable = writable.into_actor(self);
            ctx.spawn(writable.map(move |result, peer, ctx| match result {
                Ok(()) => peer.unblock(id, ctx),
                Err(error) => peer.close(id, &error.to_string(), ctx),
            }));
        }
        for (id, why) in ended {
            self.close(id, &why, ctx);
        }
        self.failpoint.strike();
    }

    fn unblock(&mut self, id: u64, ctx: &mut Context<Self>) {
        for stream in &mut self.streams {
            stream.blocked &= stream.id != id;
        }
        self.flush(ctx);
    }

    fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|known| known.id == id)
    }
}

impl Actor for Peer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(Duration::from_millis(link::TICK_MS), |peer, ctx| peer.tick(ctx));
    }
}

impl Handler<Wire> for Peer {
    type Result = ();

    fn handle(&mut self, wire: Wire, ctx: &mut Context<Self>) {
        self.nodes = wire.0.peers.keys().copied().chain([self.node]).collect();
        self.nodes.sort_unstable();
        (self.book, self.log) = (Some(wire.0), wire.1);
        self.link.begin(&mut self.effects);
        self.carry(ctx);
    }
}

impl Handler<Seen> for Peer {
    type Result = ();

    fn handle(&mut self, Seen(generation): Seen, ctx: &mut Context<Self>) {
        self.see(generation, ctx);
    }
}

impl Handler<Relive> for Peer {
    type Result = ();

    fn handle(&mut self, Relive(life): Relive, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        self.link.relive(life, now, &mut self.effects);
        self.carry(ctx);
    }
}

impl Handler<Convey> for Peer {
    type Result = ();

    fn handle(&mut self, Convey(packet): Convey, ctx: &mut Context<Self>) {
        self.queue(&packet, ctx);
    }
}

impl Handler<ConveyAll> for Peer {
    type Result = ();

    fn handle(&mut self, ConveyAll(packets): ConveyAll, ctx: &mut Context<Self>) {
        let is_away = !self.link.is_up() || self.link.is_suspected();
        for packet in &packets {
            if is_away {
                self.relay(packet);
            }
            self.queue(packet, ctx);
        }
    }
}

impl Handler<Restate> for Peer {
    type Result = ();

    fn handle(&mut self, Restate(unsound): Restate, _: &mut Context<Self>) {
        let own = self.link.own_mut();
        (own.formed, own.unsound) = (true, unsound);
    }
}

impl Handler<Closed> for Peer {
    type Result = ();

    fn handle(&mut self, closed: Closed, ctx: &mut Context<Self>) {
        self.close(closed.stream, &closed.why, ctx);
    }
}

impl Handler<Flush> for Peer {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) {
        self.flushing = false;
        self.flush(ctx);
    }
}
