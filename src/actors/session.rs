//! A Session: one client's connection, as a task on a Bucket's arbiter.
//!
//! All that one read brought is parsed where it lies, grouped by who serves it, and sent as one
//! message to each; their replies leave in one write, in the order of the requests. A command over
//! several partitions waits for the replies of those before it and holds back those after it, so
//! a connection's commands take effect in the order it sent them.

use crate::actors::bucket::{Answer, Execute, Failure, Outcome};
use crate::actors::coordinator::Begin;
use crate::actors::local::{Local, Signal};
use crate::command::client::{Client, Then};
use crate::command::plan::{self, Layout, Place, Plan};
use crate::command::reply::Reply;
use crate::command::scan::Walk;
use crate::command::spec::{LOADING, WRITE};
use crate::command::words::Words;
use crate::command::{self, Redis};
use crate::engine::barrier::Standing;
use crate::engine::batch::{Batch, Replies};
use crate::engine::machine::{Access, Machine};
use crate::engine::protocol::{Ended, Work};
use crate::ids::{NodeId, PartitionId};
use crate::net::listen::{SocketAddr, TcpStream};
use crate::net::resp::{Limits, Requests};
use smallvec::SmallVec;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

/// Requests and bytes of requests that are gathered before they are served.
const GATHER_REQUESTS_MAX: usize = 4096;
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Room for what a read brings, at first and at least.
const READ_BYTES: usize = 16 << 10;

/// A reply buffer that has grown beyond this is given back.
const KEEP_BYTES_MAX: usize = 1 << 20;

/// In [`Session::order`]: the Session answers itself.
const OWN: u16 = u16::MAX;

/// Serves a client until it leaves.
pub async fn serve(stream: TcpStream, id: u64, local: Rc<Local>) {
    let place = local.enter(id);
    local.counters.borrow_mut().connections_opened += 1;
    let address = |address: io::Result<SocketAddr>| {
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    let facts = local.facts();
    let client =
        Client::new(id, address(stream.peer_addr()), address(stream.local_addr()), facts.now);
    let mut session = Session::new(stream, client, local.clone());
    if let Err(error) = session.run(&place.signal).await {
        log::debug!(target: "session", "client {id}: {error}");
    }
}

struct Session {
    stream: TcpStream,
    client: Client,
    local: Rc<Local>,
    limits: Limits,
    input: Vec<u8>,
    requests: Requests,
    /// What each destination of the book is asked now.
    shares: Vec<Share>,
    /// Whose reply comes next: a destination, or [`OWN`].
    order: Vec<u16>,
    own: Replies,
    out: Vec<u8>,
    /// Walks so far: no two throw the same dice.
    walks: u64,
}

#[derive(Default)]
struct Share {
    batch: Batch,
    replies: Replies,
    /// Replies that were taken already.
    taken: usize,
}

/// What comes after the requests gathered.
enum Next {
    /// Serve them and go on with what is left of the input.
    Flush,
    /// The input holds no further request.
    Read,
    /// A command that waits for them.
    Spread(Work, Layout),
    /// The same, without locks: each partition at its own moment.
    Each(Vec<(PartitionId, Batch)>, Layout),
    /// A step after the other.
    Walk(Walk),
    /// The connection ends with them.
    Close,
}

impl Session {
    fn new(stream: TcpStream, client: Client, local: Rc<Local>) -> Session {
        let limits = &local.setup.limits;
        let limits = Limits {
            word_bytes: limits.value,
            words: limits.arguments,
            line_bytes: limits.inline,
            ..Limits::default()
        };
        let shares = (0..local.book.destinations()).map(|_| Share::default()).collect();
        Session {
            stream,
            client,
            local,
            limits,
            input: Vec::with_capacity(READ_BYTES),
            requests: Requests::new(),
            shares,
            order: Vec::new(),
            own: Replies::default(),
            out: Vec::new(),
            walks: 0,
        }
    }

    async fn run(&mut self, signal: &Signal) -> io::Result<()> {
        while self.fill(signal).await? {
            loop {
                let next = self.gather();
                self.flush().await?;
                match next {
                    Next::Flush => {}
                    Next::Read => break,
                    Next::Spread(work, layout) => self.spread(work, layout).await?,
                    Next::Each(batches, layout) => self.each(batches, layout).await?,
                    Next::Walk(walk) => self.walk(walk).await?,
                    Next::Close => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Reads what the client sent. False when it has closed, or the Session is to end.
    async fn fill(&mut self, signal: &Signal) -> io::Result<bool> {
        let lacking = self.requests.needs(self.input.len()) - self.input.len();
        self.input.reserve(lacking.clamp(READ_BYTES / 2, GATHER_BYTES_MAX));
        let Session { stream, input, .. } = self;
        let read = poll_fn(|context| {
            if signal.poll(context) {
                return Poll::Ready(Ok(0));
            }
            let mut room = ReadBuf::uninit(input.spare_capacity_mut());
            match Pin::new(&mut *stream).poll_read(context, &mut room) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(room.filled().len())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        // SAFETY: poll_read has filled so many bytes of the spare capacity.
        unsafe { input.set_len(input.len() + read) };
        self.local.counters.borrow_mut().bytes_in += read as u64;
        Ok(read > 0)
    }

    /// Takes requests from the input, as many as can be served together.
    fn gather(&mut self) -> Next {
        let mut next = Next::Read;
        let mut bytes = 0;
        loop {
            let words = match self.requests.next(&self.input, &self.limits) {
                Ok(Some(words)) => words,
                Ok(None) => break,
                Err(error) => {
                    Reply::new(&mut self.own.bytes, false).error_bytes(&error.reply_text());
                    self.own.end();
                    self.order.push(OWN);
                    next = Next::Close;
                    break;
                }
            };
            bytes += words.bytes();
            let request = request(
                words,
                &mut self.client,
                &self.local,
                &mut self.shares,
                &mut self.order,
                &mut self.own,
            );
            if let Some(waits) = request {
                next = waits;
                break;
            }
            if self.order.len() >= GATHER_REQUESTS_MAX || bytes >= GATHER_BYTES_MAX {
                next = Next::Flush;
                break;
            }
        }
        let done = self.requests.done();
        self.input.drain(..done);
        self.requests.dropped(done);
        next
    }

    /// Serves what was gathered: one message to each destination, one write of the replies.
    async fn flush(&mut self) -> io::Result<()> {
        if self.order.is_empty() {
            return Ok(());
        }
        let (mut place, mut own) = (0, 0);
        while place < self.order.len() {
            self.ask().await?;
            if self.one_share_answers_all() {
                let share = usize::from(self.order[0]);
                let replies = std::mem::take(&mut self.shares[share].replies);
                self.write(&replies.bytes).await?;
                self.shares[share].replies = replies;
                break;
            }
            while let Some(&turn) = self.order.get(place) {
                if turn == OWN {
                    self.out.extend_from_slice(self.own.get(own));
                    own += 1;
                } else {
                    let share = &mut self.shares[usize::from(turn)];
                    if share.taken == share.replies.len() {
                        break;
                    }
                    self.out.extend_from_slice(share.replies.get(share.taken));
                    share.taken += 1;
                }
                place += 1;
            }
            let out = std::mem::take(&mut self.out);
            self.write(&out).await?;
            self.out = out;
            self.out.clear();
        }
        self.recycle();
        Ok(())
    }

    /// Sends every share that has unanswered operations, and takes the answers.
    async fn ask(&mut self) -> io::Result<()> {
        let mut waiting: SmallVec<[(usize, oneshot::Receiver<Outcome>); 4]> = SmallVec::new();
        for (destination, share) in self.shares.iter_mut().enumerate() {
            if share.batch.is_empty() || share.taken < share.replies.len() {
                continue;
            }
            if share.taken > 0 {
                // The first part was answered and taken: the rest is asked for again.
                let mut rest = Batch::new();
                (share.taken..share.batch.len())
                    .for_each(|index| rest.push_op(&share.batch.op(index)));
                share.batch = rest;
                share.taken = 0;
                share.replies.clear();
                if share.batch.is_empty() {
                    continue;
                }
            }
            let (answer, outcome) = oneshot::channel();
            let batch = std::mem::take(&mut share.batch);
            let replies = std::mem::take(&mut share.replies);
            let answer = Answer::Session(answer);
            self.local.book.execute(destination, Execute { batch, replies, answer });
            waiting.push((destination, outcome));
        }
        for (destination, outcome) in waiting {
            let share = &mut self.shares[destination];
            match outcome.await {
                Ok(Ok((batch, replies))) => (share.batch, share.replies) = (batch, replies),
                Ok(Err((batch, failure))) => {
                    share.replies = failed(&batch, &failure);
                    share.batch = batch;
                }
                Err(_) => return Err(io::Error::other("the node is stopping")),
            }
        }
        Ok(())
    }

    fn one_share_answers_all(&self) -> bool {
        let first = self.order[0];
        first != OWN
            && self.own.is_empty()
            && self.shares[usize::from(first)].taken == 0
            && self.shares[usize::from(first)].replies.len() == self.order.len()
    }

    fn recycle(&mut self) {
        self.order.clear();
        self.own.clear();
        for share in &mut self.shares {
            share.taken = 0;
            share.batch.clear();
            share.replies.clear();
            if share.replies.bytes.capacity() > KEEP_BYTES_MAX {
                share.replies = Replies::default();
            }
            if share.batch.capacity() > KEEP_BYTES_MAX {
                share.batch = Batch::new();
            }
        }
        if self.out.capacity() > KEEP_BYTES_MAX {
            self.out = Vec::new();
        }
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES_MAX {
            self.input = Vec::with_capacity(READ_BYTES);
        }
    }

    /// Runs a transaction over several partitions.
    async fn spread(&mut self, work: Work, layout: Layout) -> io::Result<()> {
        self.local.counters.borrow_mut().transactions += 1;
        let (told, ended) = oneshot::channel();
        self.local.book.coordinator.do_send(Begin { work, ended: told });
        let mut out = std::mem::take(&mut self.out);
        match ended.await {
            Ok(Ended::Done(replies)) => {
                layout.merge(&replies, &mut Reply::new(&mut out, self.client.resp3));
            }
            Ok(Ended::Refused(refusal)) => Redis::refuse(&refusal, &mut out),
            Ok(Ended::Unknown(_)) => unknown(None, &mut out),
            Err(_) => return Err(io::Error::other("the node is stopping")),
        }
        self.write(&out).await?;
        out.clear();
        self.out = out;
        self.recycle();
        Ok(())
    }

    /// Asks every partition, each at its own moment.
    async fn each(&mut self, batches: Vec<(PartitionId, Batch)>, layout: Layout) -> io::Result<()> {
        let destinations: Vec<usize> =
            batches.iter().map(|(partition, _)| self.local.book.route(*partition)).collect();
        for ((_, batch), &destination) in batches.iter().zip(&destinations) {
            batch.iter().for_each(|op| self.shares[destination].batch.push_op(&op));
        }
        let mut replies: Vec<Replies> = batches.iter().map(|_| Replies::default()).collect();
        let mut place = 0;
        while place < batches.len() {
            self.ask().await?;
            while place < batches.len() {
                let share = &mut self.shares[destinations[place]];
                if share.taken == share.replies.len() {
                    break;
                }
                replies[place].push(share.replies.get(share.taken));
                share.taken += 1;
                place += 1;
            }
        }
        let mut out = std::mem::take(&mut self.out);
        layout.merge(&replies, &mut Reply::new(&mut out, self.client.resp3));
        self.write(&out).await?;
        out.clear();
        self.out = out;
        self.recycle();
        Ok(())
    }

    /// Asks one partition after the other. Others are served between two steps.
    async fn walk(&mut self, mut walk: Walk) -> io::Result<()> {
        self.walks += 1;
        let seed = [self.local.facts().now.0, self.client.id, self.walks].map(u64::to_le_bytes);
        walk.throw(self.local.setup.hasher.hash(seed.as_flattened()));
        let mut batch = Batch::new();
        while let Some(partition) = walk.step(&mut batch) {
            let destination = self.local.book.route(partition);
            batch.iter().for_each(|op| self.shares[destination].batch.push_op(&op));
            batch.clear();
            self.ask().await?;
            walk.take(self.shares[destination].replies.get(0));
            self.recycle();
        }
        let mut out = std::mem::take(&mut self.out);
        walk.finish(&mut Reply::new(&mut out, self.client.resp3));
        self.write(&out).await?;
        out.clear();
        self.out = out;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.local.counters.borrow_mut().bytes_out += bytes.len() as u64;
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.try_write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Takes one request: onto its destination's batch, or answered here. Returns what has to wait
/// until everything before it is answered.
#[inline]
fn request(
    words: Words<'_>,
    client: &mut Client,
    local: &Local,
    shares: &mut [Share],
    order: &mut Vec<u16>,
    own: &mut Replies,
) -> Option<Next> {
    let mut reply = Reply::new(&mut own.bytes, client.resp3);
    let Some(spec) = command::resolve(words, &mut reply) else {
        local.counters.borrow_mut().errors += 1;
        return answered(own, order);
    };
    if spec.flags & LOADING == 0 && !local.serves() {
        reply.error(&waiting(local));
        return answered(own, order);
    }
    let place = Place {
        ring: &local.setup.ring,
        hasher: local.setup.hasher,
        table: client.table,
        resp3: client.resp3,
        key_bytes_max: local.setup.limits.key,
    };
    let one = match plan::route_one(spec, words, &place) {
        Some(head) => head,
        None => match plan::plan(spec, words, &place) {
            Plan::One(head) => head,
            Plan::Spread { work, layout } => return Some(Next::Spread(work, layout)),
            Plan::Each { batches, layout } => return Some(Next::Each(batches, layout)),
            Plan::Walk(walk) => return Some(Next::Walk(walk)),
            Plan::Session(run) => {
                local.counters.borrow_mut().others += 1;
                let then = run(client, &local.facts(), words, &mut reply);
                own.end();
                order.push(OWN);
                return (then == Then::Close).then_some(Next::Close);
            }
            Plan::Refused(error) => {
                reply.error(&error);
                local.counters.borrow_mut().errors += 1;
                return answered(own, order);
            }
        },
    };
    let destination = local.book.route(one.partition);
    shares[destination].batch.push(one, words.from(1));
    order.push(destination as u16);
    let mut counters = local.counters.borrow_mut();
    match spec.flags & WRITE != 0 {
        true => counters.writes += 1,
        false => counters.reads += 1,
    }
    None
}

fn answered(own: &mut Replies, order: &mut Vec<u16>) -> Option<Next> {
    own.end();
    order.push(OWN);
    None
}

fn waiting(local: &Local) -> String {
    match local.standing() {
        Standing::Waiting(missing) => {
            let missing: Vec<String> = missing.iter().map(NodeId::to_string).collect();
            format!("LOADING waiting for nodes {}", missing.join(", "))
        }
        Standing::Formed => "LOADING starting".into(),
    }
}

/// The replies to operations that a destination did not answer.
fn failed(batch: &Batch, failure: &Failure) -> Replies {
    let mut replies = Replies::default();
    for head in batch.heads() {
        match failure {
            Failure::Refused(refusal) => Redis::refuse(refusal, &mut replies.bytes),
            Failure::Unknown(node) => {
                unknown(Some((*node, Redis::access(head.code))), &mut replies.bytes);
            }
        }
        replies.end();
    }
    replies
}

/// Says what can be said of operations that were under way when a node was lost.
fn unknown(lost: Option<(NodeId, Access)>, out: &mut Vec<u8>) {
    let mut reply = Reply::new(out, false);
    match lost {
        Some((node, Access::Read)) => {
            reply.error(&format!("TRYAGAIN node {node} was lost before it answered"));
        }
        Some((node, Access::Write)) => reply.error(&format!(
            "UNKNOWN node {node} was lost with the write under way: it may have been applied"
        )),
        None => reply.error(
            "UNKNOWN a node was lost with the transaction under way: it was applied whole or not \
             at all",
        ),
    }
}
