//! The serving loop: what was gathered leaves, is waited for, and is answered.
//!
//! A [`Flight`](crate::batch::flight::Flight) decides what may leave and which reply is the next; here
//! it leaves, one batch at a destination, and transactions that start together are begun with one
//! message. Replies leave in order, in one write if that does not keep the client waiting.

use super::outcome::{landed, stopping};
use super::transaction::{conclude, conclude_exec};
use super::{Gathered, READ_BYTES, Session, redirect};
use crate::actors::bucket::{Answer, Execute, Outcome, Serve};
use crate::actors::coordinator::{Begin, Start};
use crate::actors::submission::{Served, Submitted};
use crate::batch::flight::{KEEP_BYTES_MAX, known_as, op_keys};
use crate::batch::machine::{Machine, Scope};
use crate::batch::{Batch, Replies};
use crate::command::Redis;
use crate::command::plan::PieceLayout;
use crate::command::reply::Reply;
use crate::command::spec::Spec;
use crate::command::transaction::{Counts, Script, Step};
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{Ended, Granule, Work};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
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

/// The keys that a transaction names.
fn work_keys(work: &Work, hasher: KeyHasher, keys: &mut Vec<u64>) {
    for (_, share) in &work.shares {
        share.batch.iter().for_each(|op| op_keys::<Redis>(&op, hasher, keys));
        for claim in &share.claims {
            if let Granule::Key(table, key) = &claim.granule {
                keys.push(known_as(hasher, *table, key));
            }
        }
    }
}

/// Where replies go.
pub(super) enum Sink<'a> {
    /// To the client.
    Client,
    /// Here, each with its place in the order.
    Kept(&'a mut dyn FnMut(usize, &[u8])),
}

/// Where a batch is that is away of a destination.
#[derive(Default)]
pub(super) enum Away {
    /// With the Bucket of this arbiter, if that is the destination and any is away.
    #[default]
    Here,
    /// Asked of another arbiter or node, and since when.
    Asked(oneshot::Receiver<Outcome>, Instant),
    /// Some of it met a node that does not lead, and is asked of others; and how long the batch
    /// itself took.
    Redirected(Redirected, Duration),
}

type Redirected = Pin<Box<dyn Future<Output = io::Result<(Batch, Replies)>>>>;

/// A transaction that is under way.
pub(super) struct Begun {
    number: u32,
    spread: Finished,
    at: Instant,
    ended: oneshot::Receiver<Ended>,
}

/// What is left of a [`Spread`] without its work.
struct Finished {
    finish: Finish,
    spec: &'static Spec,
    said: Vec<Vec<u8>>,
    resp3: bool,
}

impl Gathered {
    /// All that is served together is there.
    #[inline]
    fn seal(&mut self, hasher: KeyHasher) {
        let Gathered { flight, spreads } = self;
        flight.seal::<Redis>(hasher, |number, keys| {
            if let Some(spread) = &spreads[number] {
                work_keys(&spread.work, hasher, keys);
            }
        });
    }
}

impl Session {
    /// Serves what was gathered.
    pub(super) async fn fly(&mut self, mut sink: Sink<'_>) -> io::Result<()> {
        if self.gathered.flight.is_empty() {
            return Ok(());
        }
        self.gathered.seal(self.local.setup.hasher);
        loop {
            match &mut sink {
                Sink::Client => self.gathered.flight.collect_into(&mut self.out),
                Sink::Kept(keep) => {
                    self.gathered.flight.collect(|place, reply, _| keep(place, reply));
                }
            }
            if self.gathered.flight.is_over() {
                break;
            }
            // What has just left may be what others waited for.
            self.start();
            if self.out.len() >= WRITE_BYTES {
                self.write_collected().await?;
                continue;
            }
            let is_left = match self.out.is_empty() {
                true => poll_fn(|context| self.poll(context)).await?,
                false => match timeout(PATIENCE, poll_fn(|context| self.poll(context))).await {
                    Ok(is_left) => is_left?,
                    Err(_) => {
                        self.write_collected().await?;
                        continue;
                    }
                },
            };
            if is_left {
                // It takes long: the sockets are looked at before it is asked for again.
                tokio::task::yield_now().await;
            }
        }
        // Written out: a future less in every round.
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            self.write(&out).await?;
            self.out = out;
            self.out.clear();
        }
        self.recycle();
        Ok(())
    }

    /// Begins the transactions and sends the batches that may start.
    #[inline]
    fn start(&mut self) {
        let begun = self.gathered.flight.start();
        if !begun.is_empty() {
            self.begin(begun);
        }
        for lane in 0..self.away.len() {
            let Some((batch, replies)) = self.gathered.flight.send(lane) else { continue };
            if self.local.is_own(lane) {
                let slot = self.entry.slot.clone();
                if self.local.submissions.submit(Submitted { batch, replies, slot }) {
                    self.local.bucket.do_send(Serve);
                }
                continue;
            }
            let (answer, outcome) = oneshot::channel();
            let answer = Answer::Session(answer);
            self.local.book.execute(lane, Execute { batch, replies, answer });
            self.away[lane] = Away::Asked(outcome, Instant::now());
        }
    }

    fn begin(&mut self, numbers: Vec<u32>) {
        let at = Instant::now();
        let mut starts = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Some(spread) = self.gathered.spreads[number as usize].take() else { continue };
            let Spread { work, finish, spec, said, resp3 } = spread;
            let spread = Finished { finish, spec, said, resp3 };
            let (told, ended) = oneshot::channel();
            starts.push(Start { work, ended: told });
            self.begun.push(Begun { number, spread, at, ended });
        }
        self.local.counters.borrow_mut().transactions += starts.len() as u64;
        self.local.book.coordinator.do_send(Begin(starts));
    }

    /// Ready when something has come that lets others go on; then, whether something was left.
    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(lane) = self.gathered.flight.awaited() {
            return self.poll_lane(lane, context);
        }
        self.poll_all(context)
    }

    fn poll_all(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let (mut is_left, mut has_come) = (false, false);
        for lane in 0..self.away.len() {
            if let Poll::Ready(left) = self.poll_lane(lane, context) {
                is_left |= left?;
                has_come = true;
            }
        }
        let mut index = 0;
        while let Some(begun) = self.begun.get_mut(index) {
            match Pin::new(&mut begun.ended).poll(context) {
                Poll::Pending => index += 1,
                Poll::Ready(ended) => {
                    let ended = ended.map_err(|_| stopping())?;
                    let begun = self.begun.swap_remove(index);
                    self.end(begun, ended);
                    has_come = true;
                }
            }
        }
        match has_come {
            true => Poll::Ready(Ok(is_left)),
            false => Poll::Pending,
        }
    }

    /// Whether the batch that is away of a lane is back; then, whether something of it was left.
    #[inline]
    fn poll_lane(&mut self, lane: usize, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if matches!(self.away[lane], Away::Here) {
            if !self.gathered.flight.is_away(lane) {
                return Poll::Pending;
            }
            let Poll::Ready(served) = self.entry.slot.poll(context) else { return Poll::Pending };
            let Served { batch, replies, took } = served;
            if replies.not_leader.is_empty() {
                return Poll::Ready(Ok(self.land(lane, batch, replies, took)));
            }
            self.redirect(lane, batch, replies, took);
        }
        self.poll_elsewhere(lane, context)
    }

    fn poll_elsewhere(&mut self, lane: usize, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let (back, took) = match &mut self.away[lane] {
                Away::Here => return Poll::Pending,
                Away::Asked(outcome, since) => match Pin::new(outcome).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(outcome) => (landed(outcome), since.elapsed()),
                },
                Away::Redirected(redirected, took) => match redirected.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(settled) => (settled, *took),
                },
            };
            let (batch, replies) = back?;
            if replies.not_leader.is_empty() {
                self.away[lane] = Away::Here;
                return Poll::Ready(Ok(self.land(lane, batch, replies, took)));
            }
            self.redirect(lane, batch, replies, took);
        }
    }

    /// Asks others for what met a node that does not lead.
    fn redirect(&mut self, lane: usize, batch: Batch, replies: Replies, took: Duration) {
        let redirected = redirect::settle(batch, replies, self.local.clone());
        self.away[lane] = Away::Redirected(Box::pin(redirected), took);
    }

    /// A batch is back. Whether something of it was left.
    #[inline]
    fn land(&mut self, lane: usize, batch: Batch, replies: Replies, took: Duration) -> bool {
        self.note_batch(&batch, &replies, took);
        self.gathered.flight.take_back(lane, batch, replies)
    }

    fn end(&mut self, begun: Begun, ended: Ended) {
        let Begun { number, spread: Finished { finish, spec, said, resp3 }, at, .. } = begun;
        let mut reply = Vec::new();
        finish.reply(ended, &mut Reply::new(&mut reply, resp3));
        self.local.note_reply(Some(spec), &reply);
        self.note_said(spec, said, at);
        self.gathered.flight.end(number, reply);
    }

    async fn write_collected(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.write(&out).await?;
        self.out = out;
        self.out.clear();
        Ok(())
    }

    /// Forgets what was gathered; buffers that have grown large are given back.
    pub(super) fn recycle(&mut self) {
        self.gathered.flight.clear();
        self.gathered.spreads.clear();
        if self.out.capacity() > KEEP_BYTES_MAX {
            self.out = Vec::new();
        }
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES_MAX {
            self.input = Vec::with_capacity(READ_BYTES);
        }
    }
}
