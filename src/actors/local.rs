//! What the Sessions of one arbiter share with its Bucket: plain values of one thread.
//!
//! Among them is the register of the arbiter's clients. Commands about all clients of a node ask
//! every Bucket, each of which looks into its own register ([`Local::ask`]). This file has what the
//! arbiter knows of its node, and its settings; what it keeps of its clients stands in files of its
//! own.

mod clients;
mod monitors;
mod pause;
mod slow;
mod tally;

pub use self::clients::{Entry, Place, Signal};
pub use self::monitors::{Feed, MONITOR_QUEUE};
pub use self::tally::Tally;

use self::clients::Clients;
use self::monitors::Monitors;
use self::pause::{Pause, Pauses};
use self::slow::SlowRounds;
use self::tally::Tallies;

use crate::actors::book::Book;
use crate::actors::bucket::Bucket;
use crate::actors::metrics::Metrics;
use crate::actors::submission::SubmissionQueue;
use crate::cluster::barrier::Standing;
use crate::cluster::slots::Atlas;
use crate::command::client::Client;
use crate::command::facts::Facts;
use crate::command::node_query::{NodeAnswer, Question};
use crate::command::settings::Settings;
use crate::config::Limits;
use crate::ids::{Millis, Now, PartitionId};
use crate::metrics::Counters;
use crate::store::tables::KeyHasher;
use actix::Addr;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

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
    clients: Clients,
    tallies: Tallies,
    /// A moment and the microseconds since the Unix epoch at it.
    anchor: Cell<(Instant, u64)>,
    pauses: Pauses,
    /// When it was last said that a client speaks HTTP.
    http_warned: Cell<Option<Millis>>,
    monitors: Monitors,
    slow: SlowRounds,
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

/// For so long a client that speaks HTTP is not logged again.
const HTTP_WARNING_MS: u64 = 60_000;

/// From what on a round is slow, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Thresholds {
    slow: Option<u64>,
    slow_len: usize,
    spike: Option<u64>,
    idle: Duration,
    memory: usize,
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
            clients: Clients::default(),
            tallies: Tallies::default(),
            anchor,
            pauses: Pauses::default(),
            http_warned: Cell::default(),
            monitors: Monitors::default(),
            slow: SlowRounds::default(),
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

    /// Answers a question about the arbiter's clients.
    pub fn ask(&self, question: Question) -> NodeAnswer {
        match question {
            Question::Clients => NodeAnswer::Clients(self.clients.shown()),
            Question::Kill(selection) => NodeAnswer::Count(self.clients.kill(&selection)),
            Question::Pause { until, writes_only } => {
                self.pauses.begin(Pause { until, writes_only }, self.setup.steady());
                NodeAnswer::Done
            }
            Question::Unpause => {
                self.pauses.end();
                NodeAnswer::Done
            }
            Question::Slow => NodeAnswer::Slow(self.slow.rounds.borrow().entries()),
            Question::ForgetSlow => {
                self.slow.rounds.borrow_mut().clear();
                NodeAnswer::Done
            }
            Question::Spikes => NodeAnswer::Spikes(self.slow.events.borrow().all()),
            Question::ForgetSpikes(events) => {
                NodeAnswer::Count(self.slow.events.borrow_mut().forget(&events))
            }
            Question::Configure(approved) => {
                self.configure(&approved);
                NodeAnswer::Done
            }
            Question::ForgetCounts => {
                self.tallies.forget(*self.counters.borrow());
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
            self.slow.rounds.borrow_mut().clear();
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

    /// Regular upkeep: pauses end, and clients that are quiet or do not read are let go.
    pub fn tick(&self, wall: Millis) {
        self.compare(wall);
        let now = self.setup.steady();
        self.look_at(now);
        self.pauses.pass(now);
        let idle = self.thresholds.get().idle.as_millis() as u64;
        let unread = self.setup.limits.unread.as_millis() as u64;
        self.clients.let_go(now, idle, unread);
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
