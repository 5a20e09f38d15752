//! Requests gathered together with transactions among them: as many under way at once as may be.
//!
//! A [`Pipeline`] tells which may start. Operations of one partition travel as ever, one batch at
//! a destination, and those that may start while it is away leave with the next one; transactions
//! that start together are begun with one message. Replies leave in order, in one write if that
//! does not keep the client waiting.

use super::pipeline::Pipeline;
use super::round::landed;
use super::transaction::{conclude, conclude_exec};
use super::{Gathered, MUTE, OWN, SPREAD, Session};
use crate::actors::bucket::{Answer, Execute, Serve};
use crate::actors::coordinator::{Begin, Start};
use crate::actors::local::{Entry as Register, Local};
use crate::actors::submission::{Served, Submitted};
use crate::batch::machine::{Machine, Scope};
use crate::batch::{Batch, Op, Part, Replies};
use crate::command::Redis;
use crate::command::plan::PieceLayout;
use crate::command::reply::Reply;
use crate::command::spec::Spec;
use crate::command::transaction::{Counts, Script, Step};
use crate::ids::TableIndex;
use crate::store::tables::Access;
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{Ended, Granule, Work};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// Transactions of one connection that are gathered together, and so under way, at most.
pub(super) const TRANSACTIONS_MAX: usize = 128;

/// While so many bytes of replies wait for those before them, only the request that they wait for
/// goes on.
pub(super) const HELD_BYTES_MAX: usize = 1 << 20;

/// Replies that may leave wait for others until they are so many bytes, or so long.
const WRITE_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(1);

/// A transaction that was gathered.
pub(super) struct Spread {
    pub work: Work,
    pub finish: Finish,
    pub spec: &'static Spec,
    /// For the slow log.
    pub said: Vec<Vec<u8>>,
    pub resp3: bool,
}

/// How its replies become one.
pub(super) enum Finish {
    /// Those to one command.
    One(PieceLayout),
    /// Those of an `EXEC`.
    Exec(Script),
}

impl Finish {
    fn reply(&self, ended: Ended, reply: &mut Reply<'_>) {
        match self {
            Finish::One(layout) => {
                conclude(ended, reply, |replies, reply| layout.merge(&replies, reply));
            }
            Finish::Exec(script) => conclude_exec(ended, reply, |replies, reply| {
                reply.array(script.steps.len());
                let mut counts = Counts::default();
                script.steps.iter().for_each(|step| step.merge(&replies, &mut counts, reply));
            }),
        }
    }
}

/// Whether an `EXEC` touches nothing but keys: neither what others do to them since a `WATCH`, nor
/// whole tables, nor the connection itself.
pub(super) fn suits_exec(work: &Work, script: &Script) -> bool {
    let keys_only =
        |batch: &Batch| batch.heads().all(|head| Redis::scope(head.code) == Scope::Keys);
    !work.shares.is_empty()
        && !script.steps.iter().any(|step| matches!(step, Step::Later(..)))
        && work.shares.iter().all(|(_, share)| share.watched.is_empty() && keys_only(&share.batch))
        && keys_only(&work.script)
}

/// A key as the [`Pipeline`] knows it.
fn known_as(hasher: KeyHasher, table: TableIndex, key: &[u8]) -> u64 {
    hasher.hash(key).wrapping_add(table.index() as u64)
}

fn op_claims(op: &Op<'_>, hasher: KeyHasher, claims: &mut Vec<(u64, Access)>) {
    let access = Redis::access(op.head.code);
    Redis::keys(op, &mut |table, key| claims.push((known_as(hasher, table, key), access)));
}

fn work_claims(work: &Work, hasher: KeyHasher, claims: &mut Vec<(u64, Access)>) {
    for (_, share) in &work.shares {
        share.batch.iter().for_each(|op| op_claims(&op, hasher, claims));
        for claim in &share.claims {
            if let Granule::Key(table, key) = &claim.granule {
                claims.push((known_as(hasher, *table, key), claim.access));
            }
        }
    }
}

/// What one destination does of it.
#[derive(Default)]
struct Lane {
    gathered: Batch,
    /// Requests that may leave, in their order.
    queue: BTreeSet<u32>,
    /// Those that are away.
    sent: Vec<u32>,
    away: Option<Away>,
}

type Away = Pin<Box<dyn Future<Output = io::Result<Back>>>>;

/// A batch that came back.
struct Back {
    batch: Batch,
    replies: Replies,
    took: Duration,
}

/// One request, by its place in the order.
struct Request {
    source: Source,
    mute: bool,
    reply: Option<SmallVec<[u8; 24]>>,
}

#[derive(Clone, Copy)]
enum Source {
    Own,
    /// A destination, and which of its operations.
    Op(u16, u32),
    Spread(u32),
}

/// A transaction that is under way.
struct Begun {
    request: u32,
    spread: u32,
    at: Instant,
    ended: oneshot::Receiver<Ended>,
}

/// What has come about.
enum Event {
    Back(usize, Back),
    Ended(Begun, Ended),
}

impl Event {
    /// Whether something was left, to be asked for again.
    fn leaves(&self) -> bool {
        match self {
            Event::Back(_, back) => {
                back.replies.len() < back.batch.len() || !back.replies.left.is_empty()
            }
            Event::Ended(..) => false,
        }
    }
}

struct Flight {
    pipeline: Pipeline,
    requests: Vec<Request>,
    lanes: Vec<Lane>,
    spreads: Vec<(Option<Work>, Finished)>,
    begun: Vec<Begun>,
    /// The request whose reply is the next to leave.
    turn: usize,
    /// Bytes of replies that wait for those before them.
    held: usize,
}

/// What is left of a [`Spread`] without its work.
struct Finished {
    finish: Finish,
    spec: &'static Spec,
    said: Vec<Vec<u8>>,
    resp3: bool,
}

impl Flight {
    fn new(gathered: &mut Gathered, hasher: KeyHasher) -> Flight {
        let take = |share: &mut super::Share| Lane {
            gathered: std::mem::take(&mut share.batch),
            ..Lane::default()
        };
        let lanes: Vec<Lane> = gathered.shares.iter_mut().map(take).collect();
        let mut next = vec![0; lanes.len()];
        let (mut own, mut spread) = (0, 0);
        let mut pipeline = Pipeline::default();
        let mut requests = Vec::with_capacity(gathered.order.len());
        let mut claims = Vec::new();
        for turn in &gathered.order {
            let mute = turn & MUTE != 0;
            let mut reply = None;
            let source = match turn & !MUTE {
                OWN => {
                    reply = Some(SmallVec::from_slice(gathered.own.get(own)));
                    own += 1;
                    pipeline.push(None, []);
                    Source::Own
                }
                SPREAD => {
                    work_claims(&gathered.spreads[spread].work, hasher, &mut claims);
                    pipeline.push(None, claims.drain(..));
                    spread += 1;
                    Source::Spread(spread as u32 - 1)
                }
                lane => {
                    let place = &mut next[usize::from(lane)];
                    let op = lanes[usize::from(lane)].gathered.op(*place);
                    match Redis::scope(op.head.code) {
                        Scope::Keys => {
                            op_claims(&op, hasher, &mut claims);
                            pipeline.push(Some(lane), claims.drain(..));
                        }
                        Scope::Partition | Scope::Glance => {
                            pipeline.push_alone(Some(lane));
                        }
                    }
                    *place += 1;
                    Source::Op(lane, *place as u32 - 1)
                }
            };
            requests.push(Request { source, mute, reply });
        }
        let part = |spread: Spread| {
            let Spread { work, finish, spec, said, resp3 } = spread;
            (Some(work), Finished { finish, spec, said, resp3 })
        };
        let spreads = gathered.spreads.drain(..).map(part).collect();
        Flight { pipeline, requests, lanes, spreads, begun: Vec::new(), turn: 0, held: 0 }
    }

    /// Starts whatever may start.
    fn start(&mut self, local: &Rc<Local>, register: &Rc<Register>) {
        let mut starts = Vec::new();
        let at = Instant::now();
        while let Some(request) = self.pipeline.next() {
            if self.is_full() && request as usize != self.turn {
                break;
            }
            self.pipeline.start(request);
            match self.requests[request as usize].source {
                Source::Own => self.pipeline.end(request),
                Source::Op(lane, _) => {
                    self.lanes[usize::from(lane)].queue.insert(request);
                }
                Source::Spread(spread) => {
                    let Some(work) = self.spreads[spread as usize].0.take() else { continue };
                    let (told, ended) = oneshot::channel();
                    starts.push(Start { work, ended: told });
                    self.begun.push(Begun { request, spread, at, ended });
                }
            }
        }
        if !starts.is_empty() {
            local.counters.borrow_mut().transactions += starts.len() as u64;
            local.book.coordinator.do_send(Begin(starts));
        }
        for lane in 0..self.lanes.len() {
            self.send(lane, local, register);
        }
    }

    /// Too much waits for what is before it.
    fn is_full(&self) -> bool {
        self.held > HELD_BYTES_MAX
    }

    /// Sends a destination what may leave, unless a batch is there.
    fn send(&mut self, number: usize, local: &Rc<Local>, register: &Rc<Register>) {
        let is_full = self.is_full();
        let lane = &mut self.lanes[number];
        if lane.away.is_some() || lane.queue.is_empty() {
            return;
        }
        lane.sent.clear();
        if !is_full {
            lane.sent.extend(&lane.queue);
            lane.queue.clear();
        } else if lane.queue.remove(&(self.turn as u32)) {
            lane.sent.push(self.turn as u32);
        } else {
            return;
        }
        let mut batch = Batch::new();
        for request in &lane.sent {
            if let Source::Op(_, op) = self.requests[*request as usize].source {
                batch.push_op(&lane.gathered.op(op as usize));
            }
        }
        lane.away = Some(Box::pin(away(number, batch, local.clone(), register.clone())));
    }

    /// Waits until something has come about.
    async fn wait(&mut self) -> io::Result<Vec<Event>> {
        poll_fn(|context| {
            let mut events = Vec::new();
            self.poll(context, &mut events)?;
            match events.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(Ok(events)),
            }
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>, events: &mut Vec<Event>) -> io::Result<()> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let Some(away) = &mut lane.away else { continue };
            if let Poll::Ready(back) = away.as_mut().poll(context) {
                lane.away = None;
                events.push(Event::Back(number, back?));
            }
        }
        let mut index = 0;
        while let Some(begun) = self.begun.get_mut(index) {
            match Pin::new(&mut begun.ended).poll(context) {
                Poll::Pending => index += 1,
                Poll::Ready(ended) => {
                    let ended = ended.map_err(|_| io::Error::other("the node is stopping"))?;
                    events.push(Event::Ended(self.begun.swap_remove(index), ended));
                }
            }
        }
        Ok(())
    }

    /// Takes the replies of a destination; what it left is asked for again.
    fn take_back(&mut self, number: usize, replies: &Replies) {
        let sent = std::mem::take(&mut self.lanes[number].sent);
        for (index, request) in sent.iter().enumerate() {
            match replies.part(index) {
                Part::Answered(reply) => self.answer(*request, reply),
                Part::NotLeader | Part::Left => {
                    self.lanes[number].queue.insert(*request);
                }
            }
        }
        self.lanes[number].sent = sent;
    }

    fn answer(&mut self, request: u32, reply: &[u8]) {
        self.held += reply.len();
        self.requests[request as usize].reply = Some(SmallVec::from_slice(reply));
        self.pipeline.end(request);
    }

    /// Appends the replies whose turn it is.
    fn collect(&mut self, out: &mut Vec<u8>) {
        while let Some(request) = self.requests.get_mut(self.turn) {
            let Some(reply) = request.reply.take() else { return };
            if !matches!(request.source, Source::Own) {
                self.held -= reply.len();
            }
            if !request.mute {
                out.extend_from_slice(&reply);
            }
            self.turn += 1;
        }
    }

    fn is_over(&self) -> bool {
        self.turn == self.requests.len()
    }
}

/// Has a destination execute a batch.
async fn away(
    destination: usize,
    batch: Batch,
    local: Rc<Local>,
    register: Rc<Register>,
) -> io::Result<Back> {
    let replies = Replies::default();
    let begun = Instant::now();
    let (batch, replies, took) = if local.is_own(destination) {
        let slot = register.slot.clone();
        if local.submissions.submit(Submitted { batch, replies, slot }) {
            local.bucket.do_send(Serve);
        }
        let served: Served = poll_fn(|context| register.slot.poll(context)).await;
        (served.batch, served.replies, served.took)
    } else {
        let (answer, outcome) = oneshot::channel();
        let answer = Answer::Session(answer);
        local.book.execute(destination, Execute { batch, replies, answer });
        let (batch, replies) = landed(outcome.await)?;
        (batch, replies, begun.elapsed())
    };
    let replies = match replies.not_leader.is_empty() {
        true => replies,
        false => super::redirect::settle(&batch, replies, &local).await?,
    };
    Ok(Back { batch, replies, took })
}

impl Session {
    /// Serves what was gathered, transactions among it.
    pub(super) async fn fly(&mut self) -> io::Result<()> {
        let mut flight = Flight::new(&mut self.gathered, self.local.setup.hasher);
        loop {
            flight.start(&self.local, &self.entry);
            flight.collect(&mut self.out);
            if flight.is_over() {
                break;
            }
            if self.out.len() >= WRITE_BYTES {
                self.write_collected().await?;
                continue;
            }
            let events = match self.out.is_empty() {
                true => flight.wait().await?,
                false => match timeout(PATIENCE, flight.wait()).await {
                    Ok(events) => events?,
                    Err(_) => {
                        self.write_collected().await?;
                        continue;
                    }
                },
            };
            let leaves = events.iter().any(Event::leaves);
            for event in events {
                self.take_event(&mut flight, event);
            }
            if leaves {
                // It takes long: the sockets are looked at before it is asked for again.
                tokio::task::yield_now().await;
            }
        }
        self.write_collected().await?;
        self.recycle();
        Ok(())
    }

    fn take_event(&mut self, flight: &mut Flight, event: Event) {
        match event {
            Event::Back(lane, Back { batch, replies, took }) => {
                flight.take_back(lane, &replies);
                let share = &mut self.gathered.shares[lane];
                (share.batch, share.replies, share.took) = (batch, replies, Some(took));
                self.note_batches();
            }
            Event::Ended(begun, ended) => {
                let Finished { finish, spec, said, resp3 } =
                    &mut flight.spreads[begun.spread as usize].1;
                let mut reply = Vec::new();
                finish.reply(ended, &mut Reply::new(&mut reply, *resp3));
                self.local.note_reply(Some(spec), &reply);
                self.note_said(spec, std::mem::take(said), begun.at);
                flight.answer(begun.request, &reply);
            }
        }
    }

    async fn write_collected(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.write(&out).await?;
        self.out = out;
        self.out.clear();
        Ok(())
    }
}
