//! A Peer: the pair of streams to one other node.
//!
//! Each node dials every other. All that two nodes have to say to each other goes over the stream
//! that the one with the smaller id has dialled: what one turn of the mailbox brought, requests,
//! answers and messages of groups alike, leaves in one write, and whoever hears it wakes up once.
//! Snapshots alone go over the other stream, so that nothing waits behind their pieces. When either
//! stream breaks, both are dropped with all that was queued: what a new link carries was said after
//! the old one broke, and nothing said before is repeated.

use crate::actors::archive;
use crate::actors::book::Book;
use crate::actors::bucket::{self, Answer, Execute, Failure};
use crate::actors::coordinator;
use crate::actors::failpoint::{Failpoint, Point};
use crate::actors::log::{self as disk, Log};
use crate::actors::post::Post;
use crate::command::Redis;
use crate::engine::barrier::Hello;
use crate::engine::batch::{Batch, Part, Replies};
use crate::engine::consensus::is_beat;
use crate::engine::machine::{Machine, too_long};
use crate::engine::protocol::Refusal;
use crate::ids::{Incarnation, LastSeen, NodeId, PartitionId};
use crate::net::frame::{
    self, FRAME_BYTES_MAX, FrameError, Incoming, Outgoing, PIECE_BYTES, PIECES_BYTES_MAX,
};
use crate::net::listen::{OwnedReadHalf, OwnedWriteHalf, TcpStream, dial};
use crate::net::packet::Packet;
use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// How often a node says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A node that was silent for so long is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long dialling and introducing may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// The first and the longest pause between two attempts to dial.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(1_000);

/// Why a stream ended that its other end closed in order: as a process does that ends, whatever ends
/// it, unless it leaves words unread.
const CLOSED_THERE: &str = "it closed the stream";

/// Bytes of an introduction at most: whoever dials is a stranger until then.
const HELLO_BYTES_MAX: usize = 64 << 10;

/// Bytes of a buffer that a stream keeps when all of it is written.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Pieces of long packets that a stream is given in one turn of the arbiter.
const PIECES_AT_ONCE: usize = 16;

/// Complaints remembered so that they are not repeated: strangers may think up any number.
const COMPLAINTS_MAX: usize = 64;

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
    other: NodeId,
    address: Address,
    /// How this node introduces itself.
    hello: Hello,
    /// The last life of this node before this one, if its data directory must know all of them.
    last_life: Option<Incarnation>,
    /// Bytes that may wait for a node that does not read before it is taken for lost.
    queue_max: usize,
    book: Option<Arc<Book>>,
    log: Option<Addr<Log>>,
    dialled: Option<Stream>,
    accepted: Option<Stream>,
    /// How the other introduced itself on the stream dialled, and on the one accepted.
    met: Option<Hello>,
    guest: Option<Hello>,
    up: bool,
    dialling: bool,
    backoff: Duration,
    heard: Instant,
    next_stream: u64,
    next_request: u64,
    pending: BTreeMap<u64, (Batch, Answer)>,
    /// Received, and not passed on yet.
    post: Post,
    flushing: bool,
    /// The life last seen, and whether its end was told.
    life: Option<(Incarnation, bool)>,
    /// The link that stood last was closed by the other side, in order and after its last word.
    closed_there: bool,
    /// What was logged since the link last stood: a node refused every second is told of once.
    complaints: BTreeSet<String>,
    failpoint: Failpoint,
}

#[derive(Debug)]
struct Stream {
    id: u64,
    writer: Rc<OwnedWriteHalf>,
    out: Vec<u8>,
    written: usize,
    /// Long batches and replies: their pieces go to `out` once it is written.
    outgoing: Outgoing,
    /// Those that have come in part.
    incoming: Incoming,
    /// The socket is full and will say when it is not, or was given enough for one turn.
    blocked: bool,
    /// Who is at its other end.
    from: String,
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

/// Send these packets, in this order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConveyAll(pub Vec<Packet>);

/// This node is formed and cannot vouch for its replicas of these partitions: introductions say so
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
    /// The stream, and what was read of it beyond the introduction.
    pub stream: TcpStream,
    /// Bytes after the introduction.
    pub rest: Vec<u8>,
}

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
    /// What came on it was no stream of packets.
    garbled: bool,
}

/// Write what was queued since the mailbox was last empty.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

impl Peer {
    /// The Peer of node `other`.
    pub fn new(
        other: NodeId,
        address: Address,
        hello: Hello,
        last_life: Option<Incarnation>,
        queue_max: usize,
        failpoint: Failpoint,
    ) -> Peer {
        Peer {
            other,
            address,
            hello,
            last_life,
            queue_max,
            book: None,
            log: None,
            dialled: None,
            accepted: None,
            met: None,
            guest: None,
            up: false,
            dialling: false,
            backoff: BACKOFF_MIN,
            heard: Instant::now(),
            next_stream: 0,
            next_request: 0,
            pending: BTreeMap::new(),
            post: Post::default(),
            flushing: false,
            life: None,
            closed_there: false,
            complaints: BTreeSet::new(),
            failpoint,
        }
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() >= COMPLAINTS_MAX {
            self.complaints.clear();
        }
        if self.complaints.insert(complaint.clone()) {
            log::warn!(target: "peer", "{complaint}");
        }
    }

    /// Ends the link because of what came on one of its streams. Nobody is lost by it before the
    /// link stood, but the reason is told all the same.
    fn cut_off(&mut self, stream: u64, why: &str, ctx: &mut Context<Self>) {
        let from = [&self.dialled, &self.accepted]
            .into_iter()
            .flatten()
            .find(|known| known.id == stream)
            .map(|known| known.from.clone());
        if let Some(from) = from.filter(|_| !self.up) {
            self.complain(format!("cut off {from}, for node {}: {why}", self.other));
        }
        self.go_down(why, ctx);
    }

    fn dial(&mut self, ctx: &mut Context<Self>) {
        if self.dialling || self.dialled.is_some() {
            return;
        }
        self.dialling = true;
        let attempt = introduce(self.address.clone(), self.hello.clone()).into_actor(self);
        ctx.spawn(attempt.map(|result, peer, ctx| {
            peer.dialling = false;
            match result {
                Ok((stream, hello, rest)) => peer.on_dialled(stream, hello, rest, ctx),
                Err(error) => peer.on_dial_failed(error, ctx),
            }
        }));
    }

    fn on_dialled(
        &mut self,
        stream: TcpStream,
        hello: Hello,
        rest: Vec<u8>,
        ctx: &mut Context<Self>,
    ) {
        let judged = self.hello.judge(&hello).and_then(|()| match hello.node == self.other {
            true => Ok(()),
            false => Err(format!("node {} answers in place of node {}", hello.node, self.other)),
        });
        if let Err(why) = judged {
            self.complain(format!("refused node {}: {why}", self.other));
            self.retry(ctx);
            return;
        }
        if self.is_outlived(&hello) {
            if let Some(book) = &self.book {
                book.coordinator.do_send(coordinator::Outlived(self.other, hello.seen));
            }
            self.retry(ctx);
            return;
        }
        self.backoff = BACKOFF_MIN;
        self.met = Some(hello);
        self.dialled = Some(self.open(stream, rest, ctx));
        self.heard = Instant::now();
        self.come_up(ctx);
    }

    fn on_dial_failed(&mut self, error: DialError, ctx: &mut Context<Self>) {
        match error {
            DialError::Io(error) => {
                // Nobody listens where it listened: the process is gone, not merely slow. Its
                // streams were read to their end before this attempt.
                let gone = error.kind() == io::ErrorKind::ConnectionRefused;
                if let Some((life, told @ false)) = &mut self.life
                    && gone
                {
                    *told = true;
                    let life = *life;
                    // Had it dialled again, it would live.
                    self.tell_down(Some(life), self.closed_there && self.accepted.is_none());
                }
                let pause = self.backoff.as_millis();
                log::debug!(target: "peer", "node {}: {error}, retrying in {pause} ms", self.other);
            }
            DialError::Garbled(why) => {
                let Address { host, port } = &self.address;
                self.complain(format!("cut off {host}:{port}, for node {}: {why}", self.other));
            }
            DialError::Refused(why) => {
                self.complain(format!("node {} refuses this node: {why}", self.other));
            }
        }
        self.retry(ctx);
    }

    fn retry(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(self.backoff, |peer, ctx| peer.dial(ctx));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    fn open(&mut self, stream: TcpStream, rest: Vec<u8>, ctx: &mut Context<Self>) -> Stream {
        self.next_stream += 1;
        let id = self.next_stream;
        let from = name_of(&stream);
        let (reader, writer) = stream.into_split();
        actix_rt::spawn(read(reader, rest, id, ctx.address()));
        Stream {
            id,
            writer: Rc::new(writer),
            out: Vec::new(),
            written: 0,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            blocked: false,
            from,
        }
    }

    /// The link stands once both streams do, to one and the same life of the other node.
    fn come_up(&mut self, _: &mut Context<Self>) {
        let (Some(met), Some(guest)) = (&self.met, &self.guest) else { return };
        if self.up || met.life != guest.life {
            return;
        }
        // What is said at the other's own address is its own.
        let hello = Hello { seen: met.seen, ..met.latest(guest) };
        self.see(LastSeen { life: hello.life, generation: 0 });
        self.up = true;
        self.life = Some((hello.life, false));
        self.complaints.clear();
        log::info!(target: "peer", "linked with node {}", self.other);
        if let Some(book) = &self.book {
            for bucket in &book.buckets {
                bucket.do_send(bucket::NodeUp(hello.clone()));
            }
            book.coordinator.do_send(coordinator::NodeUp(hello));
        }
    }

    /// Whether the other node has seen a life of this one that its data directory does not know.
    fn is_outlived(&self, hello: &Hello) -> bool {
        let (seen, own) = (hello.seen.life, self.hello.life);
        seen > own || seen < own && self.last_life.is_some_and(|last| seen > last)
    }

    /// Remembers what was seen of the other node, before anything is made of it.
    fn see(&mut self, seen: LastSeen) {
        let seen = self.hello.seen.and(seen);
        if seen != self.hello.seen {
            self.hello.seen = seen;
            if let Some(log) = &self.log {
                log.do_send(disk::Seen(self.other, seen));
            }
        }
    }

    fn go_down(&mut self, why: &str, ctx: &mut Context<Self>) {
        self.dialled = None;
        self.accepted = None;
        self.met = None;
        self.guest = None;
        if std::mem::take(&mut self.up) {
            let pause = self.backoff.as_millis();
            log::warn!(target: "peer", "lost node {}: {why}, retrying in {pause} ms", self.other);
            for (_, (batch, answer)) in std::mem::take(&mut self.pending) {
                fail(answer, batch, Failure::Unknown(self.other));
            }
            self.closed_there = why == CLOSED_THERE;
            self.tell_down(None, false);
        }
        self.retry(ctx);
    }

    fn tell_down(&self, ended: Option<Incarnation>, dead: bool) {
        if let Some(book) = &self.book {
            for bucket in &book.buckets {
                bucket.do_send(bucket::NodeDown { node: self.other, ended, dead });
            }
            book.coordinator.do_send(coordinator::NodeDown(self.other));
        }
    }

    /// Queues a packet on one of the streams. False when it fits no frame; a packet for a node that
    /// is not there is as good as sent.
    fn queue(&mut self, packet: &Packet, ctx: &mut Context<Self>) -> bool {
        let dialled = match packet {
            // Both streams are heard of.
            Packet::Ping(_) => true,
            Packet::Pong(_) => false,
            Packet::Transfer(_) => self.other < self.hello.node,
            _ => self.hello.node < self.other,
        };
        let stream = if dialled { &mut self.dialled } else { &mut self.accepted };
        let Some(stream) = stream else { return true };
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
            self.cut_off(id, &why, ctx);
        } else if !self.flushing {
            self.flushing = true;
            ctx.address().do_send(Flush);
        }
        true
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        for dialled in [true, false] {
            let stream = if dialled { &mut self.dialled } else { &mut self.accepted };
            let Some(stream) = stream.as_mut().filter(|stream| !stream.blocked) else { continue };
            match stream.write() {
                Ok(true) => {}
                Ok(false) => {
                    stream.blocked = true;
                    let (id, writer) = (stream.id, stream.writer.clone());
                    let writable = async move {
                        // There may be room: the arbiter's other tasks go first all the same.
                        tokio::task::yield_now().await;
                        writer.writable().await
                    };
                    let writable = writable.into_actor(self);
                    ctx.spawn(writable.map(move |result, peer, ctx| match result {
                        Ok(()) => peer.unblock(id, ctx),
                        Err(error) => peer.on_closed(id, &error.to_string(), false, ctx),
                    }));
                }
                Err(error) => {
                    let id = stream.id;
                    self.on_closed(id, &error.to_string(), false, ctx);
                }
            }
        }
        self.failpoint.strike();
    }

    fn unblock(&mut self, id: u64, ctx: &mut Context<Self>) {
        for stream in [&mut self.dialled, &mut self.accepted].into_iter().flatten() {
            stream.blocked &= stream.id != id;
        }
        self.flush(ctx);
    }

    fn stream_mut(&mut self, id: u64) -> Option<&mut Stream> {
        let mut streams = [&mut self.dialled, &mut self.accepted].into_iter().flatten();
        streams.find(|known| known.id == id)
    }

    /// Whether the link still has this stream.
    fn has(&self, id: u64) -> bool {
        [&self.dialled, &self.accepted].into_iter().flatten().any(|known| known.id == id)
    }

    fn on_closed(&mut self, id: u64, why: &str, garbled: bool, ctx: &mut Context<Self>) {
        match self.has(id) {
            true if garbled => self.cut_off(id, why, ctx),
            true => self.go_down(why, ctx),
            false => {}
        }
    }

    fn heartbeat(&mut self, ctx: &mut Context<Self>) {
        if self.dialled.is_none() && self.accepted.is_none() {
            return;
        }
        if self.heard.elapsed() > SILENCE_MAX {
            let why = format!("silent for {} s", SILENCE_MAX.as_secs());
            self.go_down(&why, ctx);
            return;
        }
        self.queue(&Packet::Ping(self.next_request), ctx);
    }

    fn receive(&mut self, stream: u64, packet: Packet, ctx: &mut Context<Self>) {
        let Some(book) = self.book.clone() else { return };
        match packet {
            Packet::Execute { id, batch } => self.on_execute(stream, id, batch, &book, ctx),
            Packet::Executed { id, replies } => {
                if let Some((batch, answer)) = self.pending.remove(&id) {
                    if replies.len() > batch.len() {
                        fail(answer, batch, Failure::Unknown(self.other));
                        self.cut_off(stream, "it answers what was not asked", ctx);
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
                    Err(error) => self.cut_off(stream, &error.to_string(), ctx),
                }
            }
            // A message for a partition that is not here would come straight back.
            Packet::Partition(_, message) if !message.is_known::<Redis>() => {
                self.cut_off(stream, UNKNOWN_OPERATIONS, ctx);
            }
            Packet::Partition(to, message) => self.post.to_partition_here(&book, to, message),
            Packet::Raft(messages) => self.on_raft(messages, &book),
            Packet::Leads(partition, node, term) => book.hear_of_leader(partition, node, term),
            Packet::Replicas(generations) => {
                let latest = generations.iter().map(|(_, generation)| *generation).max();
                let generation = latest.unwrap_or_default();
                self.see(LastSeen { generation, ..LastSeen::default() });
                for bucket in &book.buckets {
                    bucket.do_send(bucket::Reborn(self.other, generations.clone()));
                }
            }
            Packet::Vouch(partitions) => {
                book.coordinator.do_send(coordinator::Vouched(self.other, partitions));
            }
            Packet::Transfer(transfer) => {
                if let Some(archive) = &book.archive {
                    archive.do_send(archive::Carried(self.other, transfer));
                }
            }
            Packet::Coordinator(message) => self.post.to_coordinator(&book, book.node, message),
            Packet::Ready => {
                let hello = self.guest.as_ref().or(self.met.as_ref());
                if let Some(hello) = hello {
                    book.coordinator.do_send(coordinator::NodeReady(self.other, hello.life));
                }
            }
            Packet::Ping(number) => {
                self.queue(&Packet::Pong(number), ctx);
            }
            Packet::Pong(_) => {}
            Packet::Hello(_) => self.cut_off(stream, "it introduced itself twice", ctx),
            Packet::Refused(why) => self.cut_off(stream, &why, ctx),
        }
    }

    /// Passes on the messages of the commit protocol that were received.
    fn deliver(&mut self) {
        if let Some(book) = &self.book {
            self.post.send(book);
        }
    }

    /// The replies to operations that cannot even be sent: somebody else may lead a partition with
    /// copies soon.
    fn unreachable(&self, batch: &Batch) -> Replies {
        let mut replies = Replies::default();
        for (index, head) in batch.heads().enumerate() {
            match self.book.as_ref().is_some_and(|book| book.is_replicated(head.partition)) {
                true => replies.misplaced.push(index as u32),
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

    fn on_execute(
        &mut self,
        stream: u64,
        id: u64,
        batch: Batch,
        book: &Arc<Book>,
        ctx: &mut Context<Self>,
    ) {
        if !Redis::knows_all(batch.heads()) {
            self.cut_off(stream, UNKNOWN_OPERATIONS, ctx);
            return;
        }
        let placed = |head: crate::engine::batch::OpHead| {
            book.placed.get(head.partition.index()).copied().flatten()
        };
        let first = batch.heads().next().and_then(placed);
        let together = batch.heads().all(|head| placed(head) == first);
        let answer = Answer::Peer { peer: ctx.address(), stream, id };
        if together {
            let bucket = &book.buckets[first.unwrap_or(0)];
            bucket.do_send(Execute { batch, replies: Replies::default(), answer });
        } else {
            actix_rt::spawn(split(batch, answer, book.clone()));
        }
    }
}

fn is_long(messages: &[(PartitionId, serde_bytes::ByteBuf)]) -> bool {
    messages.iter().map(|(_, message)| message.len()).sum::<usize>() > PIECE_BYTES
}

/// Serves a batch whose partitions lie with several Buckets of this node.
async fn split(batch: Batch, answer: Answer, book: Arc<Book>) {
    let mut shares: BTreeMap<usize, Batch> = BTreeMap::new();
    let place = |op: &crate::engine::batch::Op<'_>| {
        book.placed.get(op.head.partition.index()).copied().flatten().unwrap_or(0)
    };
    for op in batch.iter() {
        shares.entry(place(&op)).or_default().push_op(&op);
    }
    let mut waiting = Vec::new();
    for (bucket, share) in shares {
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
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    // What one Bucket left is asked for again, without what another one has executed.
    let replies = Replies::gather(
        batch.iter().map(|op| {
            let bucket = place(&op);
            let next = next.entry(bucket).or_default();
            *next += 1;
            done.get(&bucket).map_or(Part::Left, |replies| replies.part(*next - 1))
        }),
        |index, reply| Redis::refuse(&too_long::<Redis>(batch.head(index)), reply),
    );
    give(answer, batch, replies);
}

fn give(answer: Answer, batch: Batch, replies: Replies) {
    match answer {
        // A Session that is gone needs no answer.
        Answer::Session(session) => drop(session.send(Ok((batch, replies)))),
        Answer::Peer { peer, stream, id } => peer.do_send(Answered { stream, id, batch, replies }),
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

enum DialError {
    Io(io::Error),
    /// What answers is no node.
    Garbled(String),
    Refused(String),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> DialError {
        DialError::Io(error)
    }
}

/// Dials a node and introduces this one.
async fn introduce(
    address: Address,
    hello: Hello,
) -> Result<(TcpStream, Hello, Vec<u8>), DialError> {
    let handshake = async {
        let mut stream = dial(&address.host, address.port).await?;
        greet(&mut stream, &Packet::Hello(hello)).await?;
        let (packet, rest) = listen_to(&mut stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => DialError::Garbled(error.to_string()),
            _ => DialError::Io(error),
        })?;
        match packet {
            Packet::Hello(hello) => Ok((stream, hello, rest)),
            Packet::Refused(why) => Err(DialError::Refused(why)),
            _ => Err(DialError::Garbled("it does not introduce itself".into())),
        }
    };
    match timeout(HANDSHAKE_MAX, handshake).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Io(io::ErrorKind::TimedOut.into())),
    }
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
        let garbled = |error: &str| io::Error::new(io::ErrorKind::InvalidData, error);
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

/// Receives a stream that somebody dialled: a node introduces itself, anybody else is shown out.
pub async fn receive(mut stream: TcpStream, from: String, book: Arc<Book>) {
    let refuse = |why: String| log::warn!(target: "peer", "refused {from}: {why}");
    match timeout(HANDSHAKE_MAX, listen_to(&mut stream)).await {
        Ok(Ok((Packet::Hello(hello), rest))) => match book.peers.get(&hello.node) {
            Some(peer) => peer.do_send(Introduced { hello, stream, rest }),
            None => {
                let why =
                    format!("node {} is not in the cluster file of node {}", hello.node, book.node);
                refuse(why.clone());
                // It may have gone already.
                let _ = greet(&mut stream, &Packet::Refused(why)).await;
            }
        },
        Ok(Ok(_)) => refuse("it does not introduce itself".into()),
        Ok(Err(error)) => refuse(error.to_string()),
        Err(_) => refuse("it does not introduce itself in time".into()),
    }
}

/// Who is at the other end of a stream.
fn name_of(stream: &TcpStream) -> String {
    stream.peer_addr().map_or_else(|_| "a stream that has ended".into(), |from| from.to_string())
}

/// Reads a stream to its end and passes its packets on, one message a read. Waiting for the Peer
/// to take them pushes back on the sender.
async fn read(mut reader: OwnedReadHalf, mut buffer: Vec<u8>, stream: u64, peer: Addr<Peer>) {
    let mut garbled = false;
    let why = loop {
        let mut packets = Vec::new();
        let taken = frame::take(&mut buffer, &mut packets);
        if !packets.is_empty() && peer.send(Inbound { stream, packets }).await.is_err() {
            return;
        }
        if let Err(error) = taken {
            garbled = true;
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
    peer.do_send(Closed { stream, why, garbled });
}

impl Actor for Peer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(HEARTBEAT, |peer, ctx| peer.heartbeat(ctx));
    }
}

impl Handler<Wire> for Peer {
    type Result = ();

    fn handle(&mut self, wire: Wire, ctx: &mut Context<Self>) {
        (self.book, self.log) = (Some(wire.0), wire.1);
        self.dial(ctx);
    }
}

impl Handler<Seen> for Peer {
    type Result = ();

    fn handle(&mut self, Seen(generation): Seen, _: &mut Context<Self>) {
        self.see(LastSeen { generation, ..LastSeen::default() });
    }
}

impl Handler<Relive> for Peer {
    type Result = ();

    fn handle(&mut self, Relive(life): Relive, ctx: &mut Context<Self>) {
        self.hello.life = life;
        self.go_down("this node goes on in a later life", ctx);
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
        for packet in &packets {
            self.queue(packet, ctx);
        }
    }
}

impl Handler<Restate> for Peer {
    type Result = ();

    fn handle(&mut self, Restate(unsound): Restate, _: &mut Context<Self>) {
        self.hello.formed = true;
        self.hello.unsound = unsound;
    }
}

impl Handler<Execute> for Peer {
    type Result = ();

    fn handle(&mut self, execute: Execute, ctx: &mut Context<Self>) {
        let Execute { batch, answer, .. } = execute;
        if !self.up {
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
        } else if self.up {
            self.pending.insert(id, (batch, answer));
        } else {
            fail(answer, batch, Failure::Unknown(self.other));
        }
    }
}

impl Handler<Answered> for Peer {
    type Result = ();

    fn handle(&mut self, answered: Answered, ctx: &mut Context<Self>) {
        let Answered { stream, id, replies, .. } = answered;
        // What cannot be told was executed all the same: the other node must not take it for refused.
        if self.has(stream) && !self.queue(&Packet::Executed { id, replies }, ctx) {
            self.cut_off(stream, "its replies are too long to be told", ctx);
        }
    }
}

impl Handler<Introduced> for Peer {
    type Result = ();

    fn handle(&mut self, introduced: Introduced, ctx: &mut Context<Self>) {
        let Introduced { hello, mut stream, rest } = introduced;
        let judged = self.hello.judge(&hello);
        if judged.is_ok() && hello.life < self.hello.seen.life {
            // A process that was left over, or a node that has lost its data directory: it is told
            // what it may not be again.
            let own = Packet::Hello(self.hello.clone());
            actix_rt::spawn(async move {
                // It may have gone already.
                let _ = greet(&mut stream, &own).await;
            });
            let (node, life, seen) = (hello.node, hello.life.0, self.hello.seen.life.0);
            self.complain(format!("node {node} has been started again since: {life} < {seen}"));
            return;
        }
        if judged.is_ok() && self.is_outlived(&hello) {
            // Is it? It is asked at its own address.
            self.dial(ctx);
            return;
        }
        if let Err(why) = judged {
            let from = stream.peer_addr().map(|from| format!(" at {}", from.ip()));
            let from = from.unwrap_or_default();
            self.complain(format!("refused node {}{from}: {why}", self.other));
            actix_rt::spawn(async move {
                // It may have gone already.
                let _ = greet(&mut stream, &Packet::Refused(why)).await;
            });
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!(target: "peer", "node {}: {error}", self.other);
        }
        if self.up {
            self.go_down("it dialled again", ctx);
        }
        if self.met.as_ref().is_some_and(|met| met.life != hello.life) {
            self.dialled = None;
            self.met = None;
        }
        let mut accepted = self.open(stream, rest, ctx);
        if let Err(error) = frame::push(&Packet::Hello(self.hello.clone()), &mut accepted.out) {
            log::error!(target: "peer", "cannot introduce this node: {error}");
        }
        self.accepted = Some(accepted);
        self.guest = Some(hello);
        self.heard = Instant::now();
        self.flush(ctx);
        // Whoever dials is there: no need to wait for the next attempt.
        self.backoff = BACKOFF_MIN;
        self.dial(ctx);
        self.come_up(ctx);
    }
}

impl Handler<Inbound> for Peer {
    type Result = ();

    fn handle(&mut self, inbound: Inbound, ctx: &mut Context<Self>) {
        let Inbound { stream, packets } = inbound;
        for packet in packets {
            if !self.has(stream) {
                break;
            }
            self.heard = Instant::now();
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
        self.on_closed(closed.stream, &closed.why, closed.garbled, ctx);
    }
}

impl Handler<Flush> for Peer {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) {
        self.flushing = false;
        self.flush(ctx);
    }
}
