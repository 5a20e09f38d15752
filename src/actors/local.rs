//! What the Sessions of one arbiter share with its Bucket: plain values of one thread.
//!
//! Among them is the register of the arbiter's clients. Commands about all clients of a node ask
//! every Bucket, each of which looks into its own register ([`Local::ask`]).

use crate::actors::book::Book;
use crate::actors::bucket::{self, Ask, Bucket};
use crate::actors::metrics::Metrics;
use crate::actors::submission::{Slot, SubmissionQueue};
use crate::batch::{Batch, OpCode, Replies};
use crate::cluster::barrier::Standing;
use crate::cluster::slots::Atlas;
use crate::command::argv::Argv;
use crate::command::client::{Client, ClientInfo};
use crate::command::facts::{Calls, Facts};
use crate::command::latency::{Events, Slow, SlowLog, Spike};
use crate::command::node_query::{NodeAnswer, Question, Selection};
use crate::command::settings::Settings;
use crate::command::spec::{self, FAST, Spec, WRITE};
use crate::command::transaction::Queue;
use crate::config::Limits;
use crate::ids::{Millis, Now, PartitionId};
use crate::metrics::Counters;
use crate::store::tables::KeyHasher;
use actix::Addr;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::Instant;

/// Kinds of errors that are told apart; the others are only counted.
const ERROR_KINDS_MAX: usize = 128;

/// Commands that a monitor may be behind before it is given up.
pub const MONITOR_QUEUE: usize = 16 << 10;

/// What a node's arbiters are given to set themselves up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the slots of each table lie.
    pub atlas: Atlas,
    /// What places keys in their tables.
    pub hasher: KeyHasher,
    /// What clients may do.
    pub limits: Limits,
    /// The wall clock and the monotonic one.
    pub clock: fn() -> Now,
    /// What they said when the node began.
    pub begun: Now,
    /// Clients connected to the node.
    pub connected: Arc<AtomicUsize>,
    /// How many there may be.
    pub clients_max: Arc<AtomicUsize>,
    /// Entries that the node's slow logs ever had: numbers them.
    pub slow: Arc<AtomicU64>,
    /// Bytes of the node's tables, as its Buckets last looked.
    pub table_bytes: Arc<AtomicUsize>,
}

impl Setup {
    /// The time to measure by how long something has lasted: the wall clock as the node began, and
    /// the monotonic one from there on. It is never set.
    pub fn steady(&self) -> Millis {
        self.steady_at((self.clock)().mono)
    }

    /// The same at this reading of the monotonic clock.
    #[inline]
    pub fn steady_at(&self, mono: u64) -> Millis {
        let Now { wall, mono: begun } = self.begun;
        Millis(wall.0.saturating_add(mono.saturating_sub(begun)))
    }
}

/// What a monitor is told: a line a command.
pub type Feed = mpsc::Sender<Arc<[u8]>>;

/// The shared values of one arbiter.
#[derive(Debug)]
pub struct Local {
    /// Who serves what.
    pub book: Arc<Book>,
    /// What it was set up with.
    pub setup: Setup,
    /// What its Sessions counted.
    pub counters: RefCell<Counters>,
    /// Batches of its Sessions for its Bucket.
    pub submissions: SubmissionQueue,
    /// Its Bucket.
    pub bucket: Addr<Bucket>,
    /// Its Bucket among the destinations of the book.
    own: usize,
    /// [`Setup::steady`], when it was last looked at.
    now: Cell<Millis>,
    /// Whom to ask for figures of the whole node.
    pub metrics: RefCell<Option<Addr<Metrics>>>,
    standing: RefCell<Standing>,
    facts: RefCell<Arc<Facts>>,
    retiring: Cell<bool>,
    clients: RefCell<BTreeMap<u64, Rc<Entry>>>,
    /// What the counters were when they were last to be forgotten.
    forgotten: Cell<Counters>,
    /// What became of commands on data, by code, and of all others.
    data_calls: RefCell<Vec<Calls>>,
    calls: RefCell<BTreeMap<Named, Calls>>,
    /// Error replies by their first word.
    errors: RefCell<BTreeMap<String, u64>>,
    /// Sessions that a pause holds back.
    blocked: Cell<u64>,
    /// A moment and the microseconds since the Unix epoch at it.
    anchor: Cell<(Instant, u64)>,
    pause: Cell<Option<Pause>>,
    /// When it was last said that a client speaks HTTP.
    http_warned: Cell<Option<Millis>>,
    paused: RefCell<Vec<Waker>>,
    monitors: RefCell<Vec<(u64, Feed)>>,
    slow: RefCell<SlowLog>,
    events: RefCell<Events>,
    thresholds: Cell<Thresholds>,
    /// Counts the changes of settings.
    changes: Cell<u64>,
    routes: RefCell<Routes>,
}

/// Where each partition's operations go, as of an epoch of the topology.
#[derive(Debug)]
struct Routes {
    epoch: u64,
    of: Vec<u16>,
}

/// What the Sessions of an arbiter counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Since the node started.
    pub counters: Counters,
    /// The same, since the figures were last to be forgotten.
    pub counted: Counters,
    /// What became of each command's requests since then.
    pub calls: Vec<(&'static Spec, Calls)>,
    /// Error replies since then, by their first word.
    pub errors: BTreeMap<String, u64>,
    /// Sessions that live.
    pub sessions: usize,
    /// Sessions that a pause holds back.
    pub blocked: u64,
}

/// A row of the command table, told from others by its place.
#[derive(Clone, Copy, Debug)]
struct Named(&'static Spec);

impl Named {
    fn place(self) -> usize {
        std::ptr::from_ref(self.0).addr()
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Named) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Named {}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Named) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Named {
    fn cmp(&self, other: &Named) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

/// For so long a client that speaks HTTP is not logged again.
const HTTP_WARNING_MS: u64 = 60_000;

/// What commands wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    until: Millis,
    writes_only: bool,
}

impl Pause {
    /// Both pauses: until the later end, and as strict as the stricter of them.
    fn and(self, other: Pause) -> Pause {
        Pause {
            until: self.until.max(other.until),
            writes_only: self.writes_only && other.writes_only,
        }
    }
}

/// From what on a round is slow, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Thresholds {
    slow: Option<u64>,
    slow_len: usize,
    spike: Option<u64>,
    idle: Duration,
    memory: usize,
}

/// A client in the register.
#[derive(Debug)]
pub struct Entry {
    /// What the client shows of itself.
    pub info: RefCell<ClientInfo>,
    /// Since when it has left replies unread.
    pub unread_since: Cell<Option<Millis>>,
    /// Whether its Session waits for it, rather than it for its replies.
    pub is_awaited: Cell<bool>,
    /// Raised when its Session is to end.
    pub signal: Signal,
    /// Where its Bucket's replies come.
    pub slot: Rc<Slot>,
}

/// Wakes a Session that waits for its client.
#[derive(Debug, Default)]
pub struct Signal {
    raised: Cell<bool>,
    killed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A Session's place among those of its arbiter, given up when it ends.
#[derive(Debug)]
pub struct Place {
    local: Rc<Local>,
    client: u64,
    /// What the others see of it.
    pub entry: Rc<Entry>,
}

impl Local {
    /// The shared values of an arbiter whose node waits for the others.
    pub fn new(book: Arc<Book>, bucket: Addr<Bucket>, setup: Setup) -> Rc<Local> {
        let own = book.buckets.iter().position(|one| *one == bucket).unwrap_or(usize::MAX);
        let wall = (setup.clock)().wall;
        let now = Cell::new(setup.steady());
        let anchor = Cell::new((Instant::now(), wall.0.saturating_mul(1000)));
        let missing = book.peers.keys().copied().collect();
        let settings = settings(&setup.limits);
        let thresholds = Thresholds::of(&settings, &setup.limits);
        let routes = Routes { epoch: book.topology.epoch(), of: book.routes().collect() };
        Rc::new(Local {
            book,
            setup,
            submissions: SubmissionQueue::default(),
            bucket,
            own,
            now,
            counters: RefCell::default(),
            metrics: RefCell::default(),
            standing: RefCell::new(Standing::Waiting(missing)),
            facts: RefCell::new(Arc::new(Facts { settings, ..Facts::default() })),
            retiring: Cell::new(false),
            clients: RefCell::default(),
            forgotten: Cell::default(),
            data_calls: RefCell::new(vec![Calls::default(); spec::CODES]),
            calls: RefCell::default(),
            errors: RefCell::default(),
            blocked: Cell::default(),
            anchor,
            pause: Cell::default(),
            http_warned: Cell::default(),
            paused: RefCell::default(),
            monitors: RefCell::default(),
            slow: RefCell::default(),
            events: RefCell::default(),
            thresholds: Cell::new(thresholds),
            changes: Cell::new(1),
            routes: RefCell::new(routes),
        })
    }

    /// Looks up in the book where operations go, if the topology has changed.
    #[inline]
    pub fn look_up_routes(&self) {
        let epoch = self.book.topology.epoch();
        let mut routes = self.routes.borrow_mut();
        if routes.epoch != epoch {
            *routes = Routes { epoch, of: self.book.routes().collect() };
        }
    }

    /// The destination of a partition's operations, as it was when it was last looked up.
    #[inline]
    pub fn route(&self, partition: PartitionId) -> u16 {
        self.routes.borrow().of[partition.index()]
    }

    /// Whether a destination is the Bucket of this arbiter.
    #[inline]
    pub fn is_own(&self, destination: usize) -> bool {
        destination == self.own
    }

    /// [`Setup::steady`], at most a tick old: as the Bucket last looked at the clock.
    #[inline]
    pub fn now(&self) -> Millis {
        self.now.get()
    }

    /// The Bucket has looked at the clock.
    #[inline]
    pub fn look_at(&self, now: Millis) {
        self.now.set(now);
    }

    /// The wall clock in microseconds at `moment`. The node's clock tells milliseconds; what is
    /// between them is counted on from the last time the two were compared.
    pub fn micros(&self, moment: Instant) -> u64 {
        let (anchor, micros) = self.anchor.get();
        micros.saturating_add(moment.saturating_duration_since(anchor).as_micros() as u64)
    }

    /// Compares the wall clock with what is counted on from it: it may have been set.
    fn compare(&self, now: Millis) {
        let moment = Instant::now();
        if (self.micros(moment) / 1000).abs_diff(now.0) > 1 {
            self.anchor.set((moment, now.0.saturating_mul(1000)));
        }
    }

    /// Whether the node serves.
    #[inline]
    pub fn serves(&self) -> bool {
        *self.standing.borrow() == Standing::Formed
    }

    /// Whether the node serves, and whom it waits for.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Learns whether the node may serve.
    pub fn stand(&self, standing: Standing) {
        self.standing.replace(standing);
    }

    /// What the node knows to report.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// Learns what the node knows to report. Settings are the arbiter's own.
    pub fn inform(&self, facts: &Facts) {
        let facts = self.with_settings(facts);
        self.facts.replace(Arc::new(facts));
    }

    /// Facts with the arbiter's own settings.
    pub fn with_settings(&self, facts: &Facts) -> Facts {
        Facts { settings: self.facts.borrow().settings.clone(), ..facts.clone() }
    }

    /// What its Sessions counted.
    pub fn tally(&self) -> Tally {
        let counters = *self.counters.borrow();
        let known = |calls: &Calls| *calls != Calls::default();
        let data = self.data_calls.borrow();
        let data = (0..).zip(data.iter()).filter(|(_, calls)| known(calls));
        let data = data.filter_map(|(code, calls)| Some((spec::by_code(OpCode(code))?.0, *calls)));
        let others = self.calls.borrow();
        Tally {
            counters,
            counted: counters.since(&self.forgotten.get()),
            calls: data.chain(others.iter().map(|(named, calls)| (named.0, *calls))).collect(),
            errors: self.errors.borrow().clone(),
            sessions: self.clients.borrow().len(),
            blocked: self.blocked.get(),
        }
    }

    /// Notes something of a command.
    #[inline]
    fn note(&self, spec: &'static Spec, note: impl Fn(&mut Calls)) {
        let code = spec.data().map(|data| usize::from(data.code.0));
        match code.and_then(|code| self.data_calls.borrow_mut().get_mut(code).map(&note)) {
            Some(()) => {}
            None => note(self.calls.borrow_mut().entry(Named(spec)).or_default()),
        }
    }

    /// A command is served.
    #[inline]
    pub fn count_call(&self, spec: &'static Spec) {
        self.note(spec, |calls| calls.calls += 1);
    }

    /// A command is not begun.
    pub fn reject(&self, spec: &'static Spec) {
        self.note(spec, |calls| calls.rejected += 1);
    }

    /// A command took so long.
    pub fn spend(&self, spec: &'static Spec, took: Duration) {
        self.note(spec, |calls| calls.nanos += took.as_nanos() as u64);
    }

    /// Counts a reply if it is an error; that of the command, if it came to one.
    #[inline]
    pub fn note_reply(&self, spec: Option<&'static Spec>, reply: &[u8]) {
        if reply.first() == Some(&b'-') {
            self.note_error(reply);
            if let Some(spec) = spec {
                self.note(spec, |calls| calls.failed += 1);
            }
        }
    }

    #[cold]
    fn note_error(&self, reply: &[u8]) {
        self.counters.borrow_mut().errors += 1;
        let kind = reply[1..].split(|byte| matches!(byte, b' ' | b'\r')).next();
        let kind = String::from_utf8_lossy(kind.unwrap_or_default());
        let mut errors = self.errors.borrow_mut();
        if let Some(count) = errors.get_mut(kind.as_ref()) {
            *count += 1;
        } else if errors.len() < ERROR_KINDS_MAX {
            errors.insert(kind.into_owned(), 1);
        }
    }

    /// Notes what became of a batch, as far as it is answered. Its time is shared out evenly among
    /// its operations: a look at the clock for each would cost more than many of them.
    pub fn note_batch(&self, took: Duration, batch: &Batch, replies: &Replies) {
        let each = took.as_nanos() as u64 / replies.len().max(1) as u64;
        let mut start = 0;
        let mut calls = self.data_calls.borrow_mut();
        for (head, &end) in batch.heads().zip(&replies.ends) {
            if let Some(calls) = calls.get_mut(usize::from(head.code.0)) {
                calls.nanos += each;
                let reply = replies.bytes.get(start..end as usize).unwrap_or_default();
                if reply.first() == Some(&b'-') {
                    calls.failed += 1;
                    self.note_error(reply);
                }
            }
            start = end as usize;
        }
    }

    /// Gives a new Session its place.
    pub fn enter(self: &Rc<Local>, client: &Client) -> Place {
        let entry = Rc::new(Entry {
            info: RefCell::new(client.info()),
            unread_since: Cell::new(None),
            is_awaited: Cell::new(false),
            signal: Signal::default(),
            slot: Rc::default(),
        });
        if self.retiring.get() {
            entry.signal.raise();
        }
        self.clients.borrow_mut().insert(client.id, entry.clone());
        Place { local: self.clone(), client: client.id, entry }
    }

    /// Lets every Session end once it has answered what it has read.
    pub fn retire(&self) {
        self.retiring.set(true);
        self.pause.set(None);
        self.resume();
        self.clients.borrow().values().for_each(|entry| entry.signal.raise());
    }

    /// Answers a question about the arbiter's clients.
    pub fn ask(&self, question: Question) -> NodeAnswer {
        match question {
            Question::Clients => {
                let clients = self.clients.borrow();
                let living = clients.values().filter(|entry| !entry.signal.is_killed());
                NodeAnswer::Clients(living.map(|entry| entry.info.borrow().clone()).collect())
            }
            Question::Kill(selection) => {
                // Whom a command before this one killed is gone, though the Session may not know yet.
                let clients = self.clients.borrow();
                let living = clients.values().filter(|entry| !entry.signal.is_killed());
                let meant = living.filter(|entry| selection.takes(&entry.info.borrow()));
                NodeAnswer::Count(meant.map(|entry| entry.signal.kill()).count() as u64)
            }
            Question::Pause { until, writes_only } => {
                let now = self.setup.steady();
                let pause = Pause { until, writes_only };
                let before = self.pause.get().filter(|pause| pause.until > now);
                self.pause.set(Some(before.map_or(pause, |before| before.and(pause))));
                NodeAnswer::Done
            }
            Question::Unpause => {
                self.pause.set(None);
                self.resume();
                NodeAnswer::Done
            }
            Question::Slow => NodeAnswer::Slow(self.slow.borrow().entries()),
            Question::ForgetSlow => {
                self.slow.borrow_mut().clear();
                NodeAnswer::Done
            }
            Question::Spikes => NodeAnswer::Spikes(self.events.borrow().all()),
            Question::ForgetSpikes(events) => {
                NodeAnswer::Count(self.events.borrow_mut().forget(&events))
            }
            Question::Configure(approved) => {
                self.configure(&approved);
                NodeAnswer::Done
            }
            Question::ForgetCounts => {
                self.forgotten.set(*self.counters.borrow());
                self.data_calls.borrow_mut().fill(Calls::default());
                self.calls.borrow_mut().clear();
                self.errors.borrow_mut().clear();
                NodeAnswer::Done
            }
            // The Bucket's own affair.
            Question::Expire(_) | Question::Lead(..) | Question::Snapshot => NodeAnswer::Done,
        }
    }

    fn configure(&self, approved: &[(&'static str, String)]) {
        let mut facts = Facts::clone(&self.facts.borrow());
        facts.settings.take(approved);
        let settings = &facts.settings;
        let thresholds = Thresholds::of(settings, &self.setup.limits);
        self.thresholds.set(thresholds);
        self.setup.clients_max.store(settings.size("maxclients"), Ordering::Relaxed);
        if thresholds.slow_len == 0 {
            self.slow.borrow_mut().clear();
        }
        self.facts.replace(Arc::new(facts));
        self.changes.set(self.changes.get() + 1);
    }

    /// How often settings have changed.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Bytes that the node's tables may take; 0 is no limit.
    pub fn memory_max(&self) -> usize {
        self.thresholds.get().memory
    }

    /// Whether the node's tables have reached their limit.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Bytes that the node's tables may grow by.
    #[inline]
    pub fn room(&self) -> usize {
        match self.memory_max() {
            0 => usize::MAX,
            max => max.saturating_sub(self.setup.table_bytes.load(Ordering::Relaxed)),
        }
    }

    /// Whether a command has to wait until a pause is over.
    #[inline]
    pub fn holds(&self, spec: &Spec, queue: Option<&Queue>) -> bool {
        self.pause.get().is_some_and(|pause| {
            let writes =
                spec.flags & WRITE != 0 || spec.executes() && queue.is_some_and(Queue::writes);
            writes || !pause.writes_only
        })
    }

    /// Says in the log that a client speaks HTTP, once in a while.
    pub fn warn_of_http(&self, client: &Client) {
        let now = self.setup.steady();
        let warned = self.http_warned.get();
        if warned.is_none_or(|then| now.0.abs_diff(then.0) >= HTTP_WARNING_MS) {
            self.http_warned.set(Some(now));
            log::warn!(
                target: "session",
                "closing client {} at {}: it sent a line of an HTTP request, as a web page does that \
                 wants commands executed",
                client.id, client.address
            );
        }
    }

    /// A pause holds a Session back, or does no more.
    pub fn block(&self, blocked: bool) {
        let count = self.blocked.get();
        self.blocked.set(if blocked { count + 1 } else { count.saturating_sub(1) });
    }

    /// Whether a pause goes on; if so, `context` is woken when it ends.
    pub fn poll_pause(&self, context: &Context<'_>) -> bool {
        let paused = self.pause.get().is_some();
        if paused {
            self.paused.borrow_mut().push(context.waker().clone());
        }
        paused
    }

    fn resume(&self) {
        self.paused.take().into_iter().for_each(Waker::wake);
    }

    /// Regular upkeep: pauses end, and clients that are quiet or do not read are let go.
    pub fn tick(&self, wall: Millis) {
        self.compare(wall);
        let now = self.setup.steady();
        self.look_at(now);
        if self.pause.get().is_some_and(|pause| pause.until <= now) {
            self.pause.set(None);
            self.resume();
        }
        let idle = self.thresholds.get().idle.as_millis() as u64;
        // When a client was last active is known to a tick.
        let idle_max = idle + bucket::TICK.as_millis() as u64;
        let unread = self.setup.limits.unread.as_millis() as u64;
        let since = |then: Millis| now.0.saturating_sub(then.0);
        for entry in self.clients.borrow().values() {
            let info = entry.info.borrow();
            if entry.unread_since.get().is_some_and(|then| since(then) > unread) {
                log::warn!(
                    target: "session",
                    "closing client {} at {}: it has left replies unread for {unread} ms",
                    info.id, info.address
                );
                entry.signal.kill();
            } else if idle > 0
                && !info.monitor
                && entry.is_awaited.get()
                && entry.unread_since.get().is_none()
                && since(info.active_at) > idle_max
            {
                log::debug!(target: "session", "closing client {}: it is idle", info.id);
                entry.signal.kill();
            }
        }
    }

    /// From now on `feed` is told what clients ask, until its receiver is gone.
    pub fn watch(&self, client: u64, feed: Feed) {
        self.monitors.borrow_mut().push((client, feed));
    }

    /// Whether a client wants to be told what the others ask.
    #[inline]
    pub fn is_watched(&self) -> bool {
        !self.monitors.borrow().is_empty()
    }

    /// Tells the monitors. One that does not keep up is given up.
    pub fn show(&self, client: &Client, argv: Argv<'_>) {
        let now = (self.setup.clock)().wall;
        let (secs, millis) = (now.0 / 1000, now.0 % 1000);
        let begin = format!("+{secs}.{millis:03}000 [{} {}]", client.table, client.address);
        let mut line = begin.into_bytes();
        for word in argv.from(0) {
            line.extend_from_slice(b" \"");
            for &byte in word {
                match byte {
                    b'\\' | b'"' => line.extend_from_slice(&[b'\\', byte]),
                    b'\n' => line.extend_from_slice(b"\\n"),
                    b'\r' => line.extend_from_slice(b"\\r"),
                    b'\t' => line.extend_from_slice(b"\\t"),
                    7 => line.extend_from_slice(b"\\a"),
                    8 => line.extend_from_slice(b"\\b"),
                    b' '..=b'~' => line.push(byte),
                    _ => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                }
            }
            line.push(b'"');
        }
        line.extend_from_slice(b"\r\n");
        let line: Arc<[u8]> = line.into();
        self.monitors.borrow_mut().retain(|(client, feed)| match feed.try_send(line.clone()) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                log::warn!(target: "session", "closing client {client}: it monitors and does not read");
                let selection = Selection { ids: Some(vec![*client]), ..Selection::default() };
                for bucket in &self.book.buckets {
                    bucket.do_send(Ask(Question::Kill(selection.clone())));
                }
                false
            }
        });
    }

    /// Notes how long a command took, or a batch of them that this one began, if it was long.
    #[inline]
    pub fn note_round(
        &self,
        took: Duration,
        spec: Option<&Spec>,
        client: &Client,
        said: impl FnOnce() -> Vec<Vec<u8>>,
    ) {
        let thresholds = self.thresholds.get();
        let micros = took.as_micros() as u64;
        let reaches = |threshold: Option<u64>| threshold.is_some_and(|least| micros >= least);
        if !reaches(thresholds.slow) && !reaches(thresholds.spike) {
            return;
        }
        let now = (self.setup.clock)().wall;
        if reaches(thresholds.spike) {
            let fast = spec.is_some_and(|spec| spec.flags & FAST != 0);
            let event = if fast { "fast-command" } else { "command" };
            let spike = Spike { second: now.0 / 1000, ms: micros / 1000 };
            self.events.borrow_mut().note(event, spike);
        }
        if reaches(thresholds.slow) && thresholds.slow_len > 0 {
            let entry = Slow {
                id: self.setup.slow.fetch_add(1, Ordering::Relaxed),
                at: now,
                micros,
                argv: said(),
                address: client.address.to_string(),
                name: client.name.clone(),
            };
            self.slow.borrow_mut().push(entry, thresholds.slow_len);
        }
    }
}

impl Thresholds {
    fn of(settings: &Settings, limits: &Limits) -> Thresholds {
        let slow = settings.number("slowlog-log-slower-than");
        let spike = settings.number("latency-monitor-threshold");
        let idle = Duration::from_secs(settings.size("timeout") as u64);
        // cluster.yaml may say it to the millisecond.
        let idle = if idle.as_secs() == limits.idle.as_millis().div_ceil(1000) as u64 {
            limits.idle
        } else {
            idle
        };
        Thresholds {
            slow: u64::try_from(slow).ok(),
            slow_len: settings.size("slowlog-max-len"),
            spike: (spike > 0).then_some(spike as u64 * 1000),
            idle,
            memory: settings.size("maxmemory"),
        }
    }
}

/// The settings that a node begins with.
fn settings(limits: &Limits) -> Settings {
    let mut settings = Settings::default();
    settings.begin("maxclients", limits.connections.to_string());
    settings.limit_clients(limits.connections_max);
    settings.begin("maxmemory", limits.memory.to_string());
    settings.begin("proto-max-bulk-len", limits.value.to_string());
    settings.begin("client-query-buffer-limit", limits.query_buffer.to_string());
    settings.begin("timeout", limits.idle.as_millis().div_ceil(1000).to_string());
    settings
}

impl Signal {
    /// Raises the signal, once and for good: the Session ends once it has answered what it has
    /// read.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The Session ends at once, whatever it is doing.
    pub fn kill(&self) {
        self.killed.set(true);
        self.raise();
    }

    /// Whether the Session is to end at once.
    #[inline]
    pub fn is_killed(&self) -> bool {
        self.killed.get()
    }

    /// Whether it is raised; if not, `context` is woken when it is.
    #[inline]
    pub fn poll(&self, context: &Context<'_>) -> bool {
        if self.raised.get() {
            return true;
        }
        self.wake_on_raise(context);
        false
    }

    /// Whether the Session is to end at once; if not, `context` is woken when it is.
    #[inline]
    pub fn poll_kill(&self, context: &Context<'_>) -> bool {
        if self.killed.get() {
            return true;
        }
        self.wake_on_raise(context);
        false
    }

    fn wake_on_raise(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.local.clients.borrow_mut().remove(&self.client);
        self.local.monitors.borrow_mut().retain(|(client, _)| *client != self.client);
        self.local.setup.connected.fetch_sub(1, Ordering::Relaxed);
    }
}
