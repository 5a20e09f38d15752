//! A Session: one client's connection, as a task on a Bucket's arbiter.
//!
//! All that one read brought is parsed where it lies, grouped by who serves it, and sent as one
//! message to each; their replies leave in one write, in the order of the requests. A command over
//! several partitions waits for the replies of those before it and holds back those after it, so
//! a connection's commands take effect in the order it sent them.

mod order;
mod redirect;

use crate::actors::bucket::{Answer, Execute, Failure, Outcome, Serve};
use crate::actors::coordinator::Begin;
use crate::actors::local::{Entry, Local};
use crate::actors::tray::{Laid, Served};
use crate::command::client::{Client, Then};
use crate::command::latency;
use crate::command::order::Order;
use crate::command::plan::{self, Layout, Place, Plan};
use crate::command::reply::Reply;
use crate::command::scan::Walk;
use crate::command::spec::{self, ADMIN, Control, LOADING, NO_AUTH, NO_MULTI, Run, Spec, WRITE};
use crate::command::transaction::{Exec, Queue, Script, Step, read_versions};
use crate::command::words::{Phrase, Words};
use crate::command::{self, Redis, refusal_text};
use crate::engine::barrier::Standing;
use crate::engine::batch::{Batch, Replies};
use crate::engine::machine::{Access, Machine};
use crate::engine::protocol::{Ended, Refusal, Watched, Work};
use crate::ids::{NodeId, PartitionId};
use crate::net::listen::{SocketAddr, TcpStream};
use crate::net::resp::{Limits, Requests};
use smallvec::SmallVec;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Bytes of requests that are gathered before they are served.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Room for what a read brings, at first and at least.
const READ_BYTES: usize = 16 << 10;

/// A reply buffer that has grown beyond this is given back.
const KEEP_BYTES_MAX: usize = 1 << 20;

/// In [`Session::order`]: the Session answers itself.
const OWN: u16 = MUTE - 1;

/// In [`Session::order`], as a bit: the client does not want the reply.
const MUTE: u16 = 1 << 15;

/// Serves a client until it leaves.
pub async fn serve(stream: TcpStream, id: u64, local: Rc<Local>) {
    local.counters.borrow_mut().connections_opened += 1;
    let address = |address: io::Result<SocketAddr>| {
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    let now = (local.setup.clock)();
    let client = Client::new(id, address(stream.peer_addr()), address(stream.local_addr()), now);
    let place = local.enter(&client);
    let mut session = Session::new(stream, client, local.clone(), place.entry.clone());
    if let Err(error) = session.run().await {
        log::debug!(target: "session", "client {id}: {error}");
    }
}

struct Session {
    stream: TcpStream,
    state: State,
    local: Rc<Local>,
    /// What others see of it.
    entry: Rc<Entry>,
    /// What the node's clients ask, for one that monitors them.
    feed: Option<mpsc::Receiver<Arc<[u8]>>>,
    /// A command that waits for a pause to end.
    held: Phrase,
    /// The command that waits for all before it, for the slow log.
    said: Vec<Vec<u8>>,
    /// Whether its client does not want its reply.
    mute: bool,
    /// Which of the arbiter's settings it knows.
    settings: u64,
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

/// What a connection is in the midst of.
struct State {
    client: Client,
    /// Whether the client may have changed in more than what every request changes.
    redraw: bool,
    /// Commands since `MULTI`.
    queue: Option<Queue>,
    watched: Vec<(PartitionId, Watched)>,
}

#[derive(Default)]
struct Share {
    batch: Batch,
    replies: Replies,
    /// Replies that were taken already.
    taken: usize,
    /// How long the batch took, from when it was answered until that is noted.
    took: Option<Duration>,
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
    /// `WATCH`: its keys and how their versions are asked for.
    Watch(Vec<Vec<u8>>, Plan),
    /// `EXEC`, of a queue and what it watches.
    Exec(Work, Script),
    /// A step after the other.
    Walk(Walk),
    /// A command about the whole node.
    Order(Order),
    /// A command that is held until a pause is over.
    Held,
    /// The connection ends with them.
    Close,
}

impl Session {
    fn new(stream: TcpStream, client: Client, local: Rc<Local>, entry: Rc<Entry>) -> Session {
        let limits = order::limits(&local);
        let shares = (0..local.book.destinations()).map(|_| Share::default()).collect();
        Session {
            stream,
            state: State { client, redraw: false, queue: None, watched: Vec::new() },
            local,
            entry,
            feed: None,
            held: Phrase::default(),
            said: Vec::new(),
            mute: false,
            settings: 0,
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

    async fn run(&mut self) -> io::Result<()> {
        while self.fill().await? {
            loop {
                if self.entry.signal.is_killed() {
                    return Ok(());
                }
                let next = self.gather();
                self.flush().await?;
                match next {
                    Next::Flush => continue,
                    Next::Read => break,
                    _ => {}
                }
                let begun = Instant::now();
                match next {
                    Next::Flush | Next::Read => {}
                    Next::Spread(work, layout) => {
                        self.spread(work, layout).await?;
                        self.note_said(begun);
                    }
                    Next::Each(batches, layout) => {
                        self.each(batches, layout).await?;
                        self.note_said(begun);
                    }
                    Next::Order(order) => {
                        self.order(order).await?;
                        self.note_said(begun);
                    }
                    Next::Watch(keys, plan) => self.watch(keys, plan).await?,
                    Next::Exec(work, script) => {
                        self.exec(work, script).await?;
                        self.note_said(begun);
                    }
                    Next::Walk(walk) => {
                        self.walk(walk).await?;
                        self.note_said(begun);
                    }
                    Next::Held => self.wait_for_pause().await?,
                    Next::Close => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Reads what the client sent. False when it has closed, or the Session is to end.
    async fn fill(&mut self) -> io::Result<bool> {
        self.show();
        if self.feed.is_some() {
            self.pass_on().await?;
        }
        let lacking = self.requests.needs(self.input.len()) - self.input.len();
        self.input.reserve(lacking.clamp(READ_BYTES / 2, GATHER_BYTES_MAX));
        let Session { stream, input, entry, .. } = self;
        entry.is_awaited.set(true);
        let read = poll_fn(|context| {
            if entry.signal.poll(context) {
                return Poll::Ready(Ok(0));
            }
            let mut room = ReadBuf::uninit(input.spare_capacity_mut());
            match Pin::new(&mut *stream).poll_read(context, &mut room) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(room.filled().len())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        entry.is_awaited.set(false);
        let read = read?;
        // SAFETY: poll_read has filled so many bytes of the spare capacity.
        unsafe { input.set_len(input.len() + read) };
        self.local.counters.borrow_mut().bytes_in += read as u64;
        Ok(read > 0)
    }

    /// Takes requests from the input, as many as can be served together.
    fn gather(&mut self) -> Next {
        let mut next = Next::Read;
        let mut bytes = 0;
        let pipeline = self.local.setup.limits.pipeline;
        let held = std::mem::take(&mut self.held);
        let mut held = Some(held.words()).filter(|words| !words.is_empty());
        loop {
            let words = match held.take().map_or_else(
                || self.requests.next(&self.input, &self.limits),
                |words| Ok(Some(words)),
            ) {
                Ok(Some(words)) => words,
                Ok(None) => break,
                Err(error) => {
                    Reply::new(&mut self.own.bytes, false).error_bytes(&error.reply_text());
                    answered(&self.local, None, &mut self.own, &mut self.order);
                    next = Next::Close;
                    break;
                }
            };
            bytes += words.bytes();
            self.state.client.begin_answer();
            let request = request(
                words,
                &mut self.state,
                &self.local,
                &mut self.shares,
                &mut self.order,
                &mut self.own,
            );
            if let Some(Next::Held) = request {
                self.held = words.from(0).collect();
                next = Next::Held;
                break;
            }
            self.mute = self.state.client.holds_answer();
            if let Some(waits) = request {
                self.said = latency::clip(words.from(0).collect::<Vec<_>>().into_iter());
                next = waits;
                break;
            }
            if self.mute
                && let Some(last) = self.order.last_mut()
            {
                *last |= MUTE;
            }
            if self.order.len() >= pipeline || bytes >= GATHER_BYTES_MAX {
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
            self.note_batches();
            if self.one_share_answers_all() {
                let share = usize::from(self.order[0]);
                let replies = std::mem::take(&mut self.shares[share].replies);
                self.write(&replies.bytes).await?;
                self.shares[share].replies = replies;
                break;
            }
            while let Some(&turn) = self.order.get(place) {
                let wanted = turn & MUTE == 0;
                if turn & !MUTE == OWN {
                    if wanted {
                        self.out.extend_from_slice(self.own.get(own));
                    }
                    own += 1;
                } else {
                    let share = &mut self.shares[usize::from(turn & !MUTE)];
                    if share.taken == share.replies.len() {
                        break;
                    }
                    if wanted {
                        self.out.extend_from_slice(share.replies.get(share.taken));
                    }
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
        let mut laid = None;
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
            let batch = std::mem::take(&mut share.batch);
            let replies = std::mem::take(&mut share.replies);
            if self.local.is_own(destination) {
                laid = Some(destination);
                let slot = self.entry.slot.clone();
                if self.local.tray.lay(Laid { batch, replies, slot }) {
                    self.local.bucket.do_send(Serve);
                }
                continue;
            }
            let (answer, outcome) = oneshot::channel();
            let answer = Answer::Session(answer);
            self.local.book.execute(destination, Execute { batch, replies, answer });
            waiting.push((destination, outcome));
        }
        if !waiting.is_empty() {
            self.take(waiting).await?;
        }
        if let Some(destination) = laid {
            let slot = &self.entry.slot;
            let served: Served = poll_fn(|context| slot.poll(context)).await;
            let share = &mut self.shares[destination];
            (share.batch, share.replies) = (served.batch, served.replies);
            share.took = Some(served.took);
        }
        self.settle().await
    }

    /// Asks again for what was asked of a node that does not lead it.
    async fn settle(&mut self) -> io::Result<()> {
        for share in &mut self.shares {
            if !share.replies.misplaced.is_empty() {
                let replies = std::mem::take(&mut share.replies);
                share.replies = redirect::settle(&share.batch, replies, &self.local).await?;
            }
        }
        Ok(())
    }

    /// Takes the answers of other arbiters and nodes.
    async fn take(
        &mut self,
        waiting: SmallVec<[(usize, oneshot::Receiver<Outcome>); 4]>,
    ) -> io::Result<()> {
        let begun = Instant::now();
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
            share.took = Some(begun.elapsed());
        }
        Ok(())
    }

    fn one_share_answers_all(&self) -> bool {
        let first = self.order[0];
        first != OWN
            && self.own.is_empty()
            && self.order.iter().all(|turn| turn & MUTE == 0)
            && self.shares[usize::from(first)].taken == 0
            && self.shares[usize::from(first)].replies.len() == self.order.len()
    }

    fn recycle(&mut self) {
        self.order.clear();
        self.own.clear();
        for share in &mut self.shares {
            (share.taken, share.took) = (0, None);
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

    /// Has the Coordinator run a transaction.
    async fn coordinate(&mut self, work: Work) -> io::Result<Ended> {
        self.local.counters.borrow_mut().transactions += 1;
        let (told, ended) = oneshot::channel();
        self.local.book.coordinator.do_send(Begin { work, ended: told });
        ended.await.map_err(|_| io::Error::other("the node is stopping"))
    }

    /// Runs a command over several partitions.
    async fn spread(&mut self, work: Work, layout: Layout) -> io::Result<()> {
        let ended = self.coordinate(work).await?;
        let resp3 = self.state.client.resp3;
        conclude(ended, &mut Reply::new(&mut self.out, resp3), |replies, reply| {
            layout.merge(&replies, reply);
        });
        self.write_out().await
    }

    /// Executes a transaction.
    async fn exec(&mut self, work: Work, script: Script) -> io::Result<()> {
        self.state.redraw = true;
        let ended = match work.shares.is_empty() {
            true => Ended::Done(Vec::new()),
            false => self.coordinate(work).await?,
        };
        if ended == Ended::Refused(Refusal::Full) {
            let reason = refusal_text(&Refusal::Full);
            let text = format!("EXECABORT Transaction discarded because of: {reason}");
            Reply::new(&mut self.out, self.state.client.resp3).error(&text);
            return self.write_out().await;
        }
        let mut out = std::mem::take(&mut self.out);
        if let Ended::Done(replies) = ended {
            Reply::new(&mut out, self.state.client.resp3).array(script.steps.len());
            for step in &script.steps {
                step.merge(&replies, &mut Reply::new(&mut out, self.state.client.resp3));
                if let Step::Later(spec, phrase) = step {
                    self.serve_later(spec, phrase.words(), &mut out).await?;
                }
            }
        } else {
            conclude(ended, &mut Reply::new(&mut out, self.state.client.resp3), |_, _| {});
        }
        self.out = out;
        self.write_out().await
    }

    /// Serves a command of a transaction that has no part in its work.
    async fn serve_later(
        &mut self,
        spec: &'static Spec,
        words: Words<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let local = self.local.clone();
        let client = &mut self.state.client;
        let place = place(client, &local);
        let mut reply = Reply::new(out, client.resp3);
        match plan::plan(spec, words, &place) {
            Plan::Session(run) => {
                run(client, &local.facts(), words, &mut reply);
            }
            Plan::Node(run) => {
                let order = run(client, &local.facts(), words, &mut reply);
                if let Some(order) = order {
                    return self.carry_out(order, out).await;
                }
            }
            Plan::One(head) => {
                let destination = local.book.route(head.partition);
                self.shares[destination].batch.push(head, words.from(1));
                self.ask().await?;
                out.extend_from_slice(self.shares[destination].replies.get(0));
                self.recycle();
            }
            Plan::Each { batches, layout } => return self.ask_each(batches, layout, out).await,
            Plan::Walk(walk) => return self.ask_in_turn(walk, out).await,
            Plan::Refused(error) => reply.error(&error),
            // What locks is part of the work.
            Plan::Spread { .. } => reply.error("ERR syntax error"),
        }
        Ok(())
    }

    /// Asks for the versions of keys and remembers them for the next `EXEC`.
    async fn watch(&mut self, keys: Vec<Vec<u8>>, plan: Plan) -> io::Result<()> {
        let mut told = Vec::new();
        match plan {
            Plan::One(head) => {
                // Another node may lead by the time it is answered.
                let destination = self.local.book.route(head.partition);
                let keys = keys.iter().map(Vec::as_slice);
                self.shares[destination].batch.push(head, keys);
                self.ask().await?;
                told.extend_from_slice(self.shares[destination].replies.get(0));
            }
            Plan::Spread { work, layout } => {
                let ended = self.coordinate(work).await?;
                conclude(ended, &mut Reply::new(&mut told, false), |replies, reply| {
                    layout.merge(&replies, reply);
                });
            }
            _ => {}
        }
        match read_versions(&told).filter(|versions| versions.len() == keys.len()) {
            Some(versions) => {
                let table = self.state.client.table;
                let atlas = &self.local.setup.atlas;
                for (key, version) in keys.into_iter().zip(versions) {
                    let partition = atlas.partition_of_key(table, &key);
                    self.state.watched.push((partition, Watched { table, key, version }));
                }
                Reply::new(&mut self.out, false).ok();
            }
            None => self.out.append(&mut told),
        }
        self.write_out().await
    }

    async fn write_out(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.local.note_reply(self.state.client.last, &out);
        if !self.mute {
            self.write(&out).await?;
        }
        self.out = out;
        self.out.clear();
        self.recycle();
        Ok(())
    }

    /// Runs a command that looks at every partition, each at its own moment.
    async fn each(&mut self, batches: Vec<(PartitionId, Batch)>, layout: Layout) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        self.ask_each(batches, layout, &mut out).await?;
        self.out = out;
        self.write_out().await
    }

    async fn ask_each(
        &mut self,
        batches: Vec<(PartitionId, Batch)>,
        layout: Layout,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
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
        layout.merge(&replies, &mut Reply::new(out, self.state.client.resp3));
        self.recycle();
        Ok(())
    }

    /// Runs a command that goes from one partition to the other.
    async fn walk(&mut self, mut walk: Walk) -> io::Result<()> {
        self.go_through(&mut walk).await?;
        let pages = walk.take_pages();
        let mut out = std::mem::take(&mut self.out);
        walk.finish(&mut Reply::new(&mut out, self.state.client.resp3));
        self.admit(out.len() + pages.iter().map(Vec::len).sum::<usize>())?;
        self.out = out;
        self.write_out().await?;
        let mute = self.mute;
        for page in pages.into_iter().filter(|_| !mute) {
            self.write(&page).await?;
            // A reader that keeps up must not keep this thread from everybody else.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Runs a command that goes from one partition to the other, inside an `EXEC`.
    async fn ask_in_turn(&mut self, mut walk: Walk, out: &mut Vec<u8>) -> io::Result<()> {
        self.go_through(&mut walk).await?;
        walk.finish(&mut Reply::new(out, self.state.client.resp3));
        Ok(())
    }

    /// Asks one partition after the other. Others are served between two steps.
    async fn go_through(&mut self, walk: &mut Walk) -> io::Result<()> {
        self.walks += 1;
        let seed =
            [self.local.facts().now.0, self.state.client.id, self.walks].map(u64::to_le_bytes);
        walk.throw(self.local.setup.hasher.hash(seed.as_flattened()));
        let mut batch = Batch::new();
        while let Some(partition) = walk.step(&mut batch) {
            let destination = self.local.book.route(partition);
            batch.iter().for_each(|op| self.shares[destination].batch.push_op(&op));
            batch.clear();
            self.ask().await?;
            walk.take(self.shares[destination].replies.get(0));
            self.recycle();
            // Tasks that keep waking each other are run dozens of times before anybody looks at
            // the sockets; one that yields waits for that look.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Whether a reply of so many bytes may be written.
    fn admit(&self, bytes: usize) -> io::Result<()> {
        let max = self.local.setup.limits.output_buffer;
        if bytes > max {
            let (id, address) = (self.state.client.id, &self.state.client.address);
            log::warn!(
                target: "session",
                "closing client {id} at {address}: its replies take {bytes} bytes, where {max} are \
                 allowed"
            );
            return Err(io::Error::other("its replies are too long"));
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.admit(bytes.len())?;
        self.local.counters.borrow_mut().bytes_out += bytes.len() as u64;
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.try_write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.state.client.output_bytes = bytes.len() - written;
                    self.wait_for_reader().await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.state.client.output_bytes = 0;
        Ok(())
    }
}

/// Takes one request: onto its destination's batch, or answered here. Returns what has to wait
/// until everything before it is answered.
#[inline]
fn request(
    words: Words<'_>,
    state: &mut State,
    local: &Local,
    shares: &mut [Share],
    order: &mut Vec<u16>,
    own: &mut Replies,
) -> Option<Next> {
    let mut reply = Reply::new(&mut own.bytes, state.client.resp3);
    let Some(spec) = command::resolve(words, &mut reply) else {
        spec::lookup(words.name()).into_iter().for_each(|spec| local.reject(spec));
        state.queue.as_mut().into_iter().for_each(Queue::spoil);
        if command::is_exec(words) {
            state.queue = None;
            state.watched.clear();
        }
        return answered(local, None, own, order);
    };
    if local.holds(spec) {
        return Some(Next::Held);
    }
    state.client.last = Some(spec);
    if local.is_watched() && spec.flags & (ADMIN | NO_AUTH) == 0 {
        local.show(&state.client, words);
    }
    let loading = spec.flags & LOADING != 0 && spec.data().is_none();
    if !loading && !local.serves() {
        reply.error(&waiting(local));
        local.reject(spec);
        state.queue.as_mut().into_iter().for_each(Queue::spoil);
        return answered(local, None, own, order);
    }
    local.count_call(spec);
    if state.queue.is_some() && waits_for_exec(spec) {
        enqueue(spec, words, state, local, &mut reply);
        return answered(local, Some(spec), own, order);
    }
    if let Run::Control(control) = spec.run {
        let next = control_transaction(control, spec, words, state, local, &mut reply);
        return match next {
            Some(next) => Some(next),
            None => answered(local, Some(spec), own, order),
        };
    }
    let client = &mut state.client;
    let place = place(client, local);
    let one = match plan::route_one(spec, words, &place) {
        Some(head) => head,
        None => match plan::plan(spec, words, &place) {
            Plan::One(head) => head,
            Plan::Spread { work, layout } => {
                if let Some(refused) = order::refuse_spread(words, local) {
                    reply.error(&refused);
                    return answered(local, Some(spec), own, order);
                }
                return Some(Next::Spread(work, layout));
            }
            Plan::Each { batches, layout } => return Some(Next::Each(batches, layout)),
            Plan::Walk(walk) => return Some(Next::Walk(walk)),
            Plan::Session(run) => {
                local.counters.borrow_mut().others += 1;
                state.redraw = true;
                let begun = Instant::now();
                client.micros = local.micros(begun);
                let then = run(client, &local.facts(), words, &mut reply);
                local.spend(spec, begun.elapsed());
                answered(local, Some(spec), own, order);
                if then == Then::Reset {
                    state.queue = None;
                    state.watched.clear();
                }
                return (then == Then::Close).then_some(Next::Close);
            }
            Plan::Node(run) => {
                local.counters.borrow_mut().others += 1;
                state.redraw = true;
                // Rare and about the node's clock: a pause ends when it says.
                client.active_at = (local.setup.clock)();
                return match run(client, &local.facts(), words, &mut reply) {
                    Some(order) => Some(Next::Order(order)),
                    None => answered(local, Some(spec), own, order),
                };
            }
            Plan::Refused(error) => {
                reply.error(&error);
                return answered(local, Some(spec), own, order);
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

/// Where the client's commands are asked.
fn place<'a>(client: &Client, local: &'a Local) -> Place<'a> {
    Place {
        atlas: &local.setup.atlas,
        hasher: local.setup.hasher,
        table: client.table,
        resp3: client.resp3,
        key_bytes_max: local.setup.limits.key,
    }
}

/// Whether a command is queued between `MULTI` and `EXEC` rather than served at once.
fn waits_for_exec(spec: &Spec) -> bool {
    let now = matches!(spec.run, Run::Control(_)) && !spec.run_is_unwatch();
    !now && !spec.ends_all()
}

/// Queues a command, or says why not.
fn enqueue(
    spec: &'static Spec,
    words: Words<'_>,
    state: &mut State,
    local: &Local,
    reply: &mut Reply<'_>,
) {
    let Some(queue) = &mut state.queue else { return };
    let key_max = local.setup.limits.key;
    let mut keys = spec.keys.positions(words.len()).map(|at| words.get(at).len());
    let queued = if spec.flags & NO_MULTI != 0 {
        Err("ERR Command not allowed inside a transaction".to_owned())
    } else if order::grows_when_full(spec, words, state.client.table, local) {
        Err(refusal_text(&Refusal::Full))
    } else if keys.any(|length| length > key_max) {
        Err(format!("ERR key is longer than {key_max} bytes"))
    } else {
        queue.push(spec, words, local.setup.limits.transaction)
    };
    match queued {
        Ok(()) => reply.simple("QUEUED"),
        Err(error) => {
            queue.spoil();
            reply.error(&error);
        }
    }
}

/// Begins or ends the connection's transaction. Returns what has to wait for earlier replies; what
/// is answered at once is answered.
fn control_transaction(
    control: Control,
    spec: &Spec,
    words: Words<'_>,
    state: &mut State,
    local: &Local,
    reply: &mut Reply<'_>,
) -> Option<Next> {
    let place = place(&state.client, local);
    match control {
        Control::Multi if state.queue.is_some() => reply.error("ERR MULTI calls can not be nested"),
        Control::Multi => {
            state.queue = Some(Queue::default());
            reply.ok();
        }
        Control::Discard if state.queue.is_none() => reply.error("ERR DISCARD without MULTI"),
        Control::Discard => {
            state.queue = None;
            state.watched.clear();
            reply.ok();
        }
        Control::Unwatch => {
            state.watched.clear();
            reply.ok();
        }
        Control::Watch(_) if state.queue.is_some() => {
            reply.error("ERR WATCH inside MULTI is not allowed");
        }
        Control::Watch(_) => match command::plan::plan(spec, words, &place) {
            Plan::Refused(error) => reply.error(&error),
            plan => return Some(Next::Watch(words.from(1).map(<[u8]>::to_vec).collect(), plan)),
        },
        Control::Exec => {
            let Some(queue) = state.queue.take() else {
                reply.error("ERR EXEC without MULTI");
                return None;
            };
            let watched = std::mem::take(&mut state.watched);
            state.client.micros = local.micros(Instant::now());
            match queue.plan(&state.client, &local.facts(), &watched, &place) {
                Exec::Work(work, script) => return Some(Next::Exec(work, script)),
                Exec::Refused(error) => reply.error(&error),
            }
        }
    }
    None
}

/// Tells the client how its transaction ended.
fn conclude(ended: Ended, reply: &mut Reply<'_>, done: impl FnOnce(Vec<Replies>, &mut Reply<'_>)) {
    match ended {
        Ended::Done(replies) => done(replies, reply),
        Ended::Changed => reply.nil_array(),
        Ended::Refused(refusal) => {
            let mut out = Vec::new();
            Redis::refuse(&refusal, &mut out);
            reply.raw(&out);
        }
        Ended::Unknown(_) => {
            let mut out = Vec::new();
            unknown(None, &mut out);
            reply.raw(&out);
        }
    }
}

/// Ends a reply that the Session gave itself; `spec` if it is that of a command that was begun.
fn answered(
    local: &Local,
    spec: Option<&'static Spec>,
    own: &mut Replies,
    order: &mut Vec<u16>,
) -> Option<Next> {
    own.end();
    local.note_reply(spec, own.get(own.len() - 1));
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
