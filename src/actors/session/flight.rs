//! Requests gathered together with transactions among them: as many under way at once as may be.
//!
//! A [`Flight`] decides what may leave; here it leaves, one batch at a destination, and transactions that
//! start together are begun with one message. Replies leave in order, in one write if that does not
//! keep the client waiting.

use super::round::landed;
use super::transaction::{conclude, conclude_exec};
use super::{Gathered, MUTE, OWN, SPREAD, Session};
use crate::actors::bucket::{Answer, Execute, Serve};
use crate::actors::coordinator::{Begin, Start};
use crate::actors::local::{Entry as Register, Local};
use crate::actors::submission::{Served, Submitted};
use crate::batch::flight::{Flight, known_as, op_keys};
use crate::batch::machine::{Machine, Scope};
use crate::batch::{Batch, Replies};
use crate::command::Redis;
use crate::command::plan::PieceLayout;
use crate::command::reply::Reply;
use crate::command::spec::Spec;
use crate::command::transaction::{Counts, Script, Step};
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{Ended, Granule, Work};
use std::collections::BTreeMap;
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

type Away = Pin<Box<dyn Future<Output = io::Result<Back>>>>;

/// A batch that came back.
struct Back {
    batch: Batch,
    replies: Replies,
    took: Duration,
}

/// A transaction that is under way.
struct Begun {
    command: u32,
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

/// Commands that are served together, and what is under way of them.
struct Serving {
    flight: Flight,
    /// The batch that is away of each destination.
    away: Vec<Option<Away>>,
    /// The transactions, by their place in the order.
    spreads: BTreeMap<u32, (Option<Work>, Finished)>,
    begun: Vec<Begun>,
}

/// What is left of a [`Spread`] without its work.
struct Finished {
    finish: Finish,
    spec: &'static Spec,
    said: Vec<Vec<u8>>,
    resp3: bool,
}

impl Serving {
    fn new(gathered: &mut Gathered, hasher: KeyHasher) -> Serving {
        let lanes = gathered.shares.iter_mut().map(|share| std::mem::take(&mut share.batch));
        let mut flight = Flight::new(lanes, HELD_BYTES_MAX);
        let mut own = 0;
        let mut spreads = BTreeMap::new();
        let mut gathered_spreads = gathered.spreads.drain(..);
        let mut keys = Vec::new();
        for (place, turn) in gathered.order.iter().enumerate() {
            let mute = turn & MUTE != 0;
            match turn & !MUTE {
                OWN => {
                    flight.own(gathered.own.get(own), mute);
                    own += 1;
                }
                SPREAD => {
                    let Some(spread) = gathered_spreads.next() else { continue };
                    let Spread { work, finish, spec, said, resp3 } = spread;
                    work_keys(&work, hasher, &mut keys);
                    flight.spread(keys.drain(..), mute);
                    let finished = Finished { finish, spec, said, resp3 };
                    spreads.insert(place as u32, (Some(work), finished));
                }
                lane => flight.op::<Redis>(lane, hasher, mute),
            }
        }
        let away = (0..flight.lanes()).map(|_| None).collect();
        Serving { flight, away, spreads, begun: Vec::new() }
    }

    /// Starts whatever may start.
    fn start(&mut self, local: &Rc<Local>, register: &Rc<Register>) {
        let at = Instant::now();
        let mut starts = Vec::new();
        for command in self.flight.start() {
            let work = self.spreads.get_mut(&command).and_then(|(work, _)| work.take());
            let Some(work) = work else { continue };
            let (told, ended) = oneshot::channel();
            starts.push(Start { work, ended: told });
            self.begun.push(Begun { command, at, ended });
        }
        if !starts.is_empty() {
            local.counters.borrow_mut().transactions += starts.len() as u64;
            local.book.coordinator.do_send(Begin(starts));
        }
        for (lane, away) in self.away.iter_mut().enumerate() {
            if let Some(batch) = self.flight.send(lane) {
                *away = Some(Box::pin(execute(lane, batch, local.clone(), register.clone())));
            }
        }
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
        for (lane, place) in self.away.iter_mut().enumerate() {
            let Some(away) = place else { continue };
            if let Poll::Ready(back) = away.as_mut().poll(context) {
                *place = None;
                events.push(Event::Back(lane, back?));
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

    /// Appends the replies whose turn it is.
    fn collect(&mut self, out: &mut Vec<u8>) {
        self.flight.collect(|_, reply, is_wanted| {
            if is_wanted {
                out.extend_from_slice(reply);
            }
        });
    }
}

/// Has a destination execute a batch.
async fn execute(
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
        let mut serving = Serving::new(&mut self.gathered, self.local.setup.hasher);
        loop {
            serving.start(&self.local, &self.entry);
            serving.collect(&mut self.out);
            if serving.flight.is_over() {
                break;
            }
            if self.out.len() >= WRITE_BYTES {
                self.write_collected().await?;
                continue;
            }
            let events = match self.out.is_empty() {
                true => serving.wait().await?,
                false => match timeout(PATIENCE, serving.wait()).await {
                    Ok(events) => events?,
                    Err(_) => {
                        self.write_collected().await?;
                        continue;
                    }
                },
            };
            let leaves = events.iter().any(Event::leaves);
            for event in events {
                self.take_event(&mut serving, event);
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

    fn take_event(&mut self, serving: &mut Serving, event: Event) {
        match event {
            Event::Back(lane, Back { batch, replies, took }) => {
                serving.flight.take_back(lane, &replies);
                let share = &mut self.gathered.shares[lane];
                (share.batch, share.replies, share.took) = (batch, replies, Some(took));
                self.note_batches();
            }
            Event::Ended(begun, ended) => {
                let Some((_, finished)) = serving.spreads.remove(&begun.command) else { return };
                let Finished { finish, spec, said, resp3 } = finished;
                let mut reply = Vec::new();
                finish.reply(ended, &mut Reply::new(&mut reply, resp3));
                self.local.note_reply(Some(spec), &reply);
                self.note_said(spec, said, begun.at);
                serving.flight.answer(begun.command, &reply);
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
