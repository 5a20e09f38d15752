//! A Peer: the pair of streams to one other node.
//!
//! What becomes of the link is decided in [`crate::cluster::link`]; the Peer carries. Each node dials
//! every other. All that two nodes have to say to each other goes over the stream that the one with
//! the smaller id has dialled: what one turn of the mailbox brought, requests, answers and messages
//! of groups alike, leaves in one write, and the other node wakes up once for it. Snapshots, pings and
//! pongs go over the other stream: nothing waits behind the pieces of a snapshot, and a ping waits
//! behind no batch. When either stream breaks, both are dropped with all that was queued: what a new
//! link carries was said after the old one broke, and nothing said before is repeated.
//!
//! Packets are read from a stream only once the link stands. Until then its reader passes on the
//! words of the handshake and nothing else.

use crate::actors::archive;
use crate::actors::book::Book;
use crate::actors::bucket::{self, Answer, Execute, Failure};
use crate::actors::coordinator;
use crate::actors::dispatch::Dispatch;
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::log::{self as disk, Log};
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::batch::round;
use crate::batch::{Batch, Op, OpCode, Replies};
use crate::cluster::barrier::Hello;
use crate::cluster::link::{
    self, Complaints, DialFailure, Greeting, Link, LinkEffect, StreamId, Word,
};
use crate::command::Redis;
use crate::consensus::is_beat;
use crate::ids::{Elapsed, Incarnation, LastSeen, NodeId, Now, PartitionId};
use crate::net::frame::{
    self, FRAME_BYTES_MAX, FrameError, Incoming, Outgoing, PIECE_BYTES, PIECES_BYTES_MAX,
};
use crate::net::listen::{Acceptor, OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream, dial};
use crate::net::packet::{Extent, Packet, Relayed};
use crate::store::tables::Access;
use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, SpawnHandle};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// How long a stranger may take to introduce itself.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Why a stream ended that its other end closed in order: as a process does that ends, whatever ends
/// it, unless it leaves words unread.
const CLOSED_THERE: &str = "it closed the stream";

/// Bytes of an introduction at most: a node that dials is a stranger until then.
const HELLO_BYTES_MAX: usize = 64 << 10;

/// Bytes of a buffer that a stream keeps when all of it is written.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Pieces of long packets that a stream is given in one turn of the arbiter.
const PIECES_AT_ONCE: usize = 16;

/// Streams of strangers at a time: the oldest gives way.
const STRANGERS_MAX: usize = 64;

/// Why a node is cut off that is of another version, or mistaken.
const UNKNOWN_OPERATIONS: &str = "it sent operations that do not exist";

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

#[derive(Debug)]
struct Stream {
    id: StreamId,
    writer: Rc<OwnedWriteHalf>,
    /// Has the reader pass on packets, once the link stands.
    open: Option<oneshot::Sender<()>>,
    out: Vec<u8>,
    written: usize,
    /// Long batches and replies: their pieces go to `out` once it is written.
    outgoing: Outgoing,
    /// Those that have come in part.
    incoming: Incoming,
    /// The socket is full and will say when it is not, or was given enough for one turn.
    blocked: bool,
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

/// A Bucket answers what the other node asked.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Answered {
    /// The stream that asked.
    pub stream: u64,
    /// The request's id there.
    pub id: u64,
    /// The operations, for their buffers.
    pub batch: Batch,
    /// Their replies.
    pub replies: Replies,
}

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

/// A word of the handshake, while the link does not stand.
#[derive(Message)]
#[rtype(result = "()")]
struct Spoken(StreamId, Packet);

/// Packets that one read brought.
#[derive(Message)]
#[rtype(result = "()")]
struct Inbound {
    stream: u64,
    packets: Vec<Packet>,
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

    /// Gives up what need not wait for the node any more, while that is suspected or lost.
    fn give_up(&mut self) {
        let Some(book) = self.book.clone() else { return };
        let other = self.other;
        let settled = |batch: &Batch| is_settled(batch, other, &book);
        for (_, (batch, answer)) in self.pending.extract_if(.., |_, (batch, _)| settled(batch)) {
            fail(answer, batch, Failure::Unknown(other));
        }
        // Of writes it is known when they are final, and that is soon.
        let only_reads = |batch: &Batch| batch.heads().all(|head| reads(head.code));
        let settled = |batch: &Batch| only_reads(batch) && settled(batch);
        for (batch, answer) in self.adrift.extract_if(.., |(batch, _)| settled(batch)) {
            fail(answer, batch, Failure::Unknown(other));
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

    fn receive(&mut self, stream: StreamId, packet: Packet, ctx: &mut Context<Self>) {
        let Some(book) = self.book.clone() else { return };
        let extent =
            Extent { from: self.other, placement: book.topology.placement(), nodes: &self.nodes };
        if let Err(why) = packet.check(&extent) {
            return self.close(stream, &why, ctx);
        }
        match packet {
            Packet::Execute { id, batch } => self.on_execute(stream, id, batch, &book, ctx),
            Packet::Executed { id, replies } => {
                if let Some((batch, answer)) = self.pending.remove(&id) {
                    if replies.len() > batch.len() {
                        fail(answer, batch, Failure::Unknown(self.other));
                        self.close(stream, "it answers what was not asked", ctx);
                        return;
                    }
                    give(answer, batch, replies);
                }
            }
            Packet::Piece { number, bytes, last } => {
                let Some(known) = self.stream_mut(stream) else { return };
                match known.incoming.take(number, &bytes, last) {
                    Ok(Some(packet)) => self.receive(stream, packet, ctx),
                    Ok(None) => {}
                    Err(error) => self.close(stream, &error.to_string(), ctx),
                }
            }
            // A message for a partition that is not here would come straight back.
            Packet::Partition(_, message) if !message.is_known::<Redis>() => {
                self.close(stream, UNKNOWN_OPERATIONS, ctx);
            }
            Packet::Partition(to, message) => self.dispatch.to_partition_here(&book, to, message),
            Packet::Raft(messages) => self.on_raft(messages, &book),
            Packet::Leads(partition, node, term) => book.hear_of_leader(partition, node, term),
            Packet::Replicas(generations) => {
                let latest = generations.iter().map(|(_, generation)| *generation).max();
                self.see(latest.unwrap_or_default(), ctx);
                for bucket in &book.buckets {
                    bucket.do_send(bucket::Reborn(self.other, generations.clone()));
                }
            }
            Packet::Verified(partitions) => {
                book.coordinator.do_send(coordinator::Verified(self.other, partitions));
            }
            Packet::Transfer(transfer) => {
                if let Some(archive) = &book.archive {
                    archive.do_send(archive::Carried(self.other, transfer));
                }
            }
            Packet::Coordinator(message) => self.dispatch.to_coordinator(&book, book.node, message),
            Packet::Relay(to, relayed) => match book.peers.get(&to) {
                // Not asked to be relayed again, so it goes no further than one node.
                Some(peer) => peer.do_send(Convey(relayed.into())),
                None => self.close(stream, "it wants this node told by itself", ctx),
            },
            Packet::Ready => {
                if let Some(life) = self.link.life() {
                    book.coordinator.do_send(coordinator::NodeReady(self.other, life));
                }
            }
            Packet::Claim(nonce) => self.hear(stream, Word::Claim(nonce), ctx),
            Packet::Yours(nonce, yours) => self.hear(stream, Word::Yours(nonce, yours), ctx),
            Packet::Ping { number, seen } => self.hear(stream, Word::Ping { number, seen }, ctx),
            Packet::Pong(number) => self.hear(stream, Word::Pong(number), ctx),
            Packet::Hello(_) => self.close(stream, "it introduced itself twice", ctx),
            Packet::Refused => self.close(stream, "it refuses this node", ctx),
        }
    }

    fn hear(&mut self, stream: StreamId, word: Word, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        if !self.link.hear(stream, word, now, &mut self.effects) {
            self.close(stream, "it says what has no place there", ctx);
        }
        self.carry(ctx);
    }

    /// Passes on the messages of the commit protocol that were received.
    fn deliver(&mut self) {
        if let Some(book) = &self.book {
            self.dispatch.send(book);
        }
    }

    /// The replies to operations that cannot even be sent: another node may lead a partition with
    /// copies soon.
    fn unreachable(&self, batch: &Batch) -> Replies {
        let mut replies = Replies::default();
        for (index, head) in batch.heads().enumerate() {
            match self.book.as_ref().is_some_and(|book| book.is_replicated(head.partition)) {
                true => replies.not_leader.push(index as u32),
                false => {
                    let refusal = Refusal::Unreachable(self.other);
                    Redis::refuse(&refusal, &mut replies.bytes);
                }
            }
            replies.end();
        }
        replies
    }

    /// Gives each Bucket the messages for its partitions.
    fn on_raft(&mut self, messages: Vec<(PartitionId, serde_bytes::ByteBuf)>, book: &Arc<Book>) {
        let mut shares: SmallVec<[Vec<(PartitionId, Bytes)>; 4]> =
            book.buckets.iter().map(|_| Vec::new()).collect();
        for (partition, message) in messages {
            if let Some(bucket) = book.placed.get(partition.index()).copied().flatten() {
                shares[bucket].push((partition, message.into_vec().into()));
            }
        }
        for (bucket, messages) in book.buckets.iter().zip(shares) {
            if !messages.is_empty() {
                bucket.do_send(bucket::Raft { from: self.other, messages });
            }
        }
    }

    /// Answers a request that it was not executed.
    fn turn_away(&mut self, id: u64, count: usize, ctx: &mut Context<Self>) {
        let mut replies = Replies { not_leader: (0..count as u32).collect(), ..Replies::default() };
        (0..count).for_each(|_| replies.end());
        self.queue(&Packet::Executed { id, replies }, ctx);
    }

    fn on_execute(
        &mut self,
        stream: u64,
        id: u64,
        batch: Batch,
        book: &Arc<Book>,
        ctx: &mut Context<Self>,
    ) {
        if !Redis::knows_all(batch.heads()) {
            self.close(stream, UNKNOWN_OPERATIONS, ctx);
            return;
        }
        let placed =
            |head: crate::batch::OpHead| book.placed.get(head.partition.index()).copied().flatten();
        let first = batch.heads().next().and_then(placed);
        let together = batch.heads().all(|head| placed(head) == first);
        let now = (self.clock)();
        let left_ms = self.link.serves_until().saturating_sub(self.elapsed.at(now));
        if left_ms == 0 {
            // The other node may have given it up: it is not executed, and so may be asked again.
            return self.turn_away(id, batch.len(), ctx);
        }
        let answer = Answer::Peer { peer: ctx.address(), stream, id, until: now.plus(left_ms) };
        if together {
            let bucket = &book.buckets[first.unwrap_or(0)];
            bucket.do_send(Execute { batch, replies: Replies::default(), answer });
        } else {
            actix_rt::spawn(split(batch, answer, book.clone()));
        }
    }
}

/// Whether a batch that node `other` was asked for need not wait for it any more: whatever it writes
/// is led elsewhere by now, so what `other` proposed of it before is in the log of its successors or
/// nowhere. A partition without copies has no other node to ask.
fn is_settled(batch: &Batch, other: NodeId, book: &Book) -> bool {
    batch.heads().all(|head| {
        let elsewhere = book.leader(head.partition) != other;
        book.is_replicated(head.partition) && (reads(head.code) || elsewhere)
    })
}

fn reads(code: OpCode) -> bool {
    Redis::access(code) == Access::Read
}

/// A number that a stranger cannot foresee.
fn nonce() -> u64 {
    // The keys of the standard library's hasher come from the system's random numbers.
    RandomState::new().build_hasher().finish()
}

fn is_long(messages: &[(PartitionId, serde_bytes::ByteBuf)]) -> bool {
    messages.iter().map(|(_, message)| message.len()).sum::<usize>() > PIECE_BYTES
}

/// Serves a batch whose partitions lie with several Buckets of this node.
async fn split(batch: Batch, answer: Answer, book: Arc<Book>) {
    let place =
        |op: &Op<'_>| book.placed.get(op.head.partition.index()).copied().flatten().unwrap_or(0);
    let mut waiting = Vec::new();
    for (bucket, share) in round::spread(&batch, place) {
        let (told, outcome) = oneshot::channel();
        let answer = Answer::Session(told);
        book.buckets[bucket].do_send(Execute { batch: share, replies: Replies::default(), answer });
        waiting.push((bucket, outcome));
    }
    let mut done: BTreeMap<usize, Replies> = BTreeMap::new();
    for (bucket, outcome) in waiting {
        // Without an answer the node is stopping, and its stream with it.
        let Ok(Ok((_, replies))) = outcome.await else { return };
        done.insert(bucket, replies);
    }
    let replies = round::gather::<Redis>(&batch, place, &done);
    give(answer, batch, replies);
}

fn give(answer: Answer, batch: Batch, replies: Replies) {
    match answer {
        // A Session that is gone needs no answer.
        Answer::Session(session) => drop(session.send(Ok((batch, replies)))),
        Answer::Peer { peer, stream, id, .. } => {
            peer.do_send(Answered { stream, id, batch, replies });
        }
    }
}

fn fail(answer: Answer, batch: Batch, failure: Failure) {
    if let Answer::Session(session) = answer {
        drop(session.send(Err((batch, failure))));
    }
}

impl Stream {
    /// Queues a packet. A long one leaves in pieces, and once one does whose place matters,
    /// everything follows it that comes later to the same actors: only beats may overtake it.
    fn push(&mut self, packet: &Packet) -> Result<(), FrameError> {
        let follows = self.outgoing.is_in_order();
        match packet {
            Packet::Execute { batch, .. } if batch.bytes() > PIECE_BYTES => {
                // Its entry of the log has to fit a frame.
                self.outgoing.push(packet, FRAME_BYTES_MAX)
            }
            Packet::Executed { replies, .. } if replies.bytes.len() > PIECE_BYTES => {
                self.outgoing.push(packet, PIECES_BYTES_MAX)
            }
            Packet::Raft(messages) if follows || is_long(messages) => {
                let (beats, rest): (Vec<_>, Vec<_>) =
                    messages.iter().cloned().partition(|(_, message)| is_beat(message));
                if !beats.is_empty() {
                    frame::push(&Packet::Raft(beats), &mut self.out)?;
                }
                match rest.is_empty() {
                    true => Ok(()),
                    false => self.outgoing.push_in_order(&Packet::Raft(rest)),
                }
            }
            Packet::Partition(..) | Packet::Coordinator(_) if follows => {
                self.outgoing.push_in_order(packet)
            }
            Packet::Partition(..) | Packet::Coordinator(_) => {
                let begun = self.out.len();
                frame::push(packet, &mut self.out)?;
                if self.out.len() - begun > PIECE_BYTES {
                    self.outgoing.move_in_order(&mut self.out, begun);
                }
                Ok(())
            }
            packet => frame::push(packet, &mut self.out),
        }
    }

    /// Gives up the room of what is written, once that is most of it: a stream that is never
    /// quite empty must not keep all that it has ever carried.
    fn give_up_written(&mut self) {
        if self.written > self.out.len() / 2 {
            self.out.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes what is queued; tells whether all of it is gone. A piece of what is long is queued
    /// when nothing else is, so that whatever is said meanwhile waits for one piece at most.
    fn write(&mut self) -> io::Result<bool> {
        for _ in 0..PIECES_AT_ONCE {
            if !self.write_out()? {
                return Ok(false);
            }
            let more = self.outgoing.pop(&mut self.out);
            if !more.map_err(|error| io::Error::other(error.to_string()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_out(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match self.writer.try_write(&self.out[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.give_up_written();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        self.out.shrink_to(BUFFER_BYTES_KEPT);
        Ok(true)
    }
}

/// Dials a node and introduces this one. How long that may take the link decides.
async fn introduce(
    address: Address,
    hello: Hello,
) -> Result<(TcpStream, Hello, Vec<u8>), DialFailure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => DialFailure::NobodyListens,
        io::ErrorKind::InvalidData => {
            let Address { host, port } = &address;
            DialFailure::Garbled(format!("{host}:{port}"), error.to_string())
        }
        _ => DialFailure::Unreachable(error.to_string()),
    };
    let mut stream = dial(&address.host, address.port).await.map_err(failed)?;
    greet(&mut stream, &Packet::Hello(hello)).await.map_err(failed)?;
    match listen_to(&mut stream).await.map_err(failed)? {
        (Packet::Hello(hello), rest) => Ok((stream, hello, rest)),
        (Packet::Refused, _) => Err(DialFailure::Refused),
        _ => Err(failed(garbled("it does not introduce itself"))),
    }
}

fn garbled(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn greet(stream: &mut TcpStream, packet: &Packet) -> io::Result<()> {
    let mut out = Vec::new();
    frame::push(packet, &mut out).map_err(|error| io::Error::other(error.to_string()))?;
    tokio::io::AsyncWriteExt::write_all(stream, &out).await
}

/// Reads the first packet of a stream.
async fn listen_to(stream: &mut TcpStream) -> io::Result<(Packet, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut packets = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if frame::missing(&buffer) > HELLO_BYTES_MAX {
            return Err(garbled("its introduction is too long"));
        }
        // One frame at a time: what follows the introduction is not for here.
        let whole = frame::first(&mut buffer).map_err(|error| garbled(&error.to_string()))?;
        packets.extend(whole);
        if let Some(packet) = packets.pop() {
            return Ok((packet, buffer));
        }
    }
}

/// Takes the streams that others dial. A dialler is a stranger until it has introduced itself in time
/// as a node of the cluster, and even then it has to be proven: see [`crate::cluster::link`].
pub async fn accept(listener: TcpListener, book: Arc<Book>) {
    let epoch = Instant::now();
    let mut listener = Acceptor::new(listener, b"");
    let mut complaints = Complaints::default();
    let mut strangers: JoinSet<Result<(), String>> = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            Some(met) = strangers.join_next() => {
                if let Ok(Err(why)) = met
                    && let Some(line) = complaints.note(why, epoch.elapsed().as_millis() as u64)
                {
                    log::warn!(target: "peer", "{line}");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                log::warn!(target: "peer", "no file descriptor left for a node");
                continue;
            }
            Err(error) => {
                log::warn!(target: "peer", "cannot accept a node: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        order.retain(|stranger| !stranger.is_finished());
        if order.len() >= STRANGERS_MAX
            && let Some(oldest) = order.pop_front()
        {
            oldest.abort();
        }
        let received = receive(stream, from.to_string(), book.clone());
        order.push_back(strangers.spawn_local(received));
    }
}

/// Receives a stream that was dialled: a node introduces itself, anything else is shown out.
async fn receive(mut stream: TcpStream, from: String, book: Arc<Book>) -> Result<(), String> {
    let refused = |why: &str| Err(format!("refused {from}: {why}"));
    match timeout(HANDSHAKE_MAX, listen_to(&mut stream)).await {
        Ok(Ok((Packet::Hello(hello), rest))) => match book.peers.get(&hello.node) {
            Some(peer) => {
                peer.do_send(Introduced { hello, from, stream, rest });
                Ok(())
            }
            None => {
                turn_out(stream).await;
                refused(&format!(
                    "node {} is not in the cluster file of node {}",
                    hello.node, book.node
                ))
            }
        },
        Ok(Ok(_)) => refused("it does not introduce itself"),
        Ok(Err(error)) => refused(&error.to_string()),
        Err(_) => refused("it does not introduce itself in time"),
    }
}

/// Tells a stranger that it is refused, and nothing else.
async fn turn_out(mut stream: TcpStream) {
    // It may have gone already.
    let _ = timeout(HANDSHAKE_MAX, greet(&mut stream, &Packet::Refused)).await;
}

/// Tells a node that it has been started again since, or was before and does not know it.
async fn tell(mut stream: TcpStream, own: Hello) {
    let _ = timeout(HANDSHAKE_MAX, greet(&mut stream, &Packet::Hello(own))).await;
}

/// Reads a stream to its end and passes its packets on, one message a read. Waiting for the Peer
/// to take them pushes back on the sender.
async fn read(
    mut reader: OwnedReadHalf,
    mut buffer: Vec<u8>,
    stream: StreamId,
    opened: oneshot::Receiver<()>,
    peer: Addr<Peer>,
) {
    if let Err(error) = shake_hands(&mut reader, &mut buffer, stream, opened, &peer).await {
        peer.do_send(Closed { stream, why: error });
        return;
    }
    let why = loop {
        let mut packets = Vec::new();
        let taken = frame::take(&mut buffer, &mut packets);
        if !packets.is_empty() && peer.send(Inbound { stream, packets }).await.is_err() {
            return;
        }
        if let Err(error) = taken {
            break error.to_string();
        }
        if buffer.is_empty() {
            buffer.shrink_to(BUFFER_BYTES_KEPT);
        }
        buffer.reserve(frame::missing(&buffer).clamp(16 << 10, 1 << 20));
        match reader.read_buf(&mut buffer).await {
            Ok(0) => break CLOSED_THERE.into(),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    peer.do_send(Closed { stream, why });
}

/// Passes on the words of the handshake until the link stands. What comes after them is not read
/// before that, and only a node of the cluster is listened to for longer than a word.
async fn shake_hands(
    reader: &mut OwnedReadHalf,
    buffer: &mut Vec<u8>,
    stream: StreamId,
    mut opened: oneshot::Receiver<()>,
    peer: &Addr<Peer>,
) -> Result<(), String> {
    let replaced = |_| CLOSED_THERE.to_owned();
    loop {
        let is_word = frame::missing(buffer) <= HELLO_BYTES_MAX;
        match frame::peek(buffer) {
            Ok(Some((packet @ (Packet::Claim(_) | Packet::Yours(..)), bytes))) => {
                buffer.drain(..bytes);
                if peer.send(Spoken(stream, packet)).await.is_err() {
                    return Err(CLOSED_THERE.into());
                }
                continue;
            }
            Ok(Some((Packet::Hello(_), _))) => return Err("it introduced itself twice".into()),
            Ok(Some(_)) => return opened.await.map_err(replaced),
            Ok(None) if !is_word => return opened.await.map_err(replaced),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        buffer.reserve(4 << 10);
        tokio::select! {
            biased;
            told = &mut opened => return told.map_err(replaced),
            read = reader.read_buf(buffer) => match read {
                Ok(0) => return Err(CLOSED_THERE.into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
        }
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

impl Handler<Execute> for Peer {
    type Result = ();

    fn handle(&mut self, execute: Execute, ctx: &mut Context<Self>) {
        let Execute { batch, answer, .. } = execute;
        let replicated =
            |book: &Arc<Book>| batch.heads().all(|head| book.is_replicated(head.partition));
        let is_up = self.link.is_up();
        if !is_up || self.link.is_suspected() && self.book.as_ref().is_some_and(replicated) {
            let replies = self.unreachable(&batch);
            give(answer, batch, replies);
            return;
        }
        self.next_request += 1;
        let id = self.next_request;
        let packet = Packet::Execute { id, batch };
        let queued = self.queue(&packet, ctx);
        let Packet::Execute { batch, .. } = packet else { return };
        if !queued {
            fail(answer, batch, Failure::Refused(Refusal::TooLong));
        } else if self.link.is_up() {
            self.pending.insert(id, (batch, answer));
        } else {
            // Cut off by this very packet, which may have left in part: not whole, so not executed.
            let replies = self.unreachable(&batch);
            give(answer, batch, replies);
        }
    }
}

impl Handler<Answered> for Peer {
    type Result = ();

    fn handle(&mut self, answered: Answered, ctx: &mut Context<Self>) {
        let Answered { stream, id, replies, .. } = answered;
        // What cannot be told was executed all the same: the other node must not take it for refused.
        if self.link.has(stream) && !self.queue(&Packet::Executed { id, replies }, ctx) {
            self.close(stream, "its replies are too long to be told", ctx);
        }
    }
}

impl Handler<Introduced> for Peer {
    type Result = ();

    fn handle(&mut self, introduced: Introduced, ctx: &mut Context<Self>) {
        let Introduced { hello, from, stream, rest } = introduced;
        let (id, now) = (self.next_stream + 1, self.now_ms());
        match self.link.introduced(id, hello, &from, now, &mut self.effects) {
            Greeting::Keep(own) => {
                if let Err(error) = stream.set_nodelay(true) {
                    log::debug!(target: "peer", "node {}: {error}", self.other);
                }
                self.open(stream, rest, ctx);
                self.queue_on(id, &Packet::Hello(own), ctx);
            }
            Greeting::Tell(own) => drop(actix_rt::spawn(tell(stream, own))),
            Greeting::LetGo => drop(stream),
            Greeting::Refuse => drop(actix_rt::spawn(turn_out(stream))),
        }
        self.carry(ctx);
    }
}

impl Handler<Spoken> for Peer {
    type Result = ();

    fn handle(&mut self, Spoken(stream, word): Spoken, ctx: &mut Context<Self>) {
        if self.link.has(stream) {
            self.receive(stream, word, ctx);
        }
    }
}

impl Handler<Inbound> for Peer {
    type Result = ();

    fn handle(&mut self, inbound: Inbound, ctx: &mut Context<Self>) {
        let Inbound { stream, packets } = inbound;
        for packet in packets {
            if !self.link.has(stream) {
                break;
            }
            let now = self.now_ms();
            self.link.heard(now);
            // What goes to the same actors as these keeps its place among them.
            if !matches!(packet, Packet::Partition(..) | Packet::Coordinator(_)) {
                self.deliver();
            }
            self.receive(stream, packet, ctx);
        }
        self.deliver();
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
