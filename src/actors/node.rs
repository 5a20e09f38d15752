//! A node: its actors, placed and wired, and its listening sockets.

use crate::actors::archive::{self, Archive};
use crate::actors::book::Book;
use crate::actors::bucket::{self, Bucket};
use crate::actors::coordinator::{self, Coordinator, Makers, Replicas};
use crate::actors::failpoint::Failpoint;
use crate::actors::local::Setup;
use crate::actors::lock_manager::{self, LockManager};
use crate::actors::log::{self as disk, Log, Stop};
use crate::actors::metrics::{self, Metrics};
use crate::actors::peer::{self, Peer};
use crate::actors::recovery::{self, Found, is_logged};
use crate::cluster::barrier::{Barrier, Hello, PROTOCOL_VERSION};
use crate::cluster::link::Link;
use crate::cluster::slots::{Atlas, Ring};
use crate::cluster::topology::{Placement, Topology};
use crate::command::Redis;
use crate::config::{Class, Config, Durability, Service};
use crate::error::{Error, Listen, Result};
use crate::ids::{Incarnation, LastSeen, Millis, NodeId, Now, PartitionId};
use crate::metrics::{LogCounts, Usage};
use crate::net::http;
use crate::net::listen::{Acceptor, TcpListener, listen};
use crate::partition::bucket as core;
use crate::storage::Directory;
use crate::store::tables::KeyHasher;
use crate::txn::coordinator::{Strength, Survives, Transactions};
use actix::{Actor, Addr, Context};
use actix_rt::ArbiterHandle;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// How long a stopping node waits for its clients' last replies to be taken.
const RETIRE_MAX: Duration = Duration::from_secs(5);

/// How long a stopping node tries to hand over what it leads, and how often it looks.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
const HAND_OVER_LOOK: Duration = Duration::from_millis(5);

/// How often a node that has no room to start looks for some, and after how many looks it says so
/// again.
const ROOM_EVERY: Duration = Duration::from_secs(1);
const ROOM_TELL: u32 = 30;

/// Questions over HTTP that may wait.
const HTTP_QUEUE: usize = 64;

/// Streams to the port for other nodes that have not said yet who they are.
pub const STRANGERS_MAX: usize = 16;

/// What clients beyond the limit are told.
const CROWDED: &[u8] = b"-ERR max number of clients reached\r\n";

/// Where a node's actors live.
#[derive(Clone, Debug)]
pub enum Arbiters {
    /// All on the current arbiter.
    Here,
    /// A Bucket on each of these; Log and Archive on one of their own; everything else on the
    /// current one, which is the first of the Buckets'.
    On {
        /// For the Buckets.
        buckets: Vec<ArbiterHandle>,
        /// For the Log.
        log: ArbiterHandle,
        /// For the Archive.
        archive: ArbiterHandle,
    },
}

/// What a node is born with, beside its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// The wall clock and the monotonic one.
    pub clock: fn() -> Now,
    /// What the process takes of the machine, where that can be told.
    pub usage: fn() -> Option<Usage>,
    /// When it was born.
    pub started: Millis,
    /// Which boot of the machine this is.
    pub boot: fn() -> String,
    /// Stops the process because the node cannot go on, for a reason.
    pub stop: Stop,
    /// Where a test has it die.
    pub failpoint: Failpoint,
}

/// A node that runs.
#[derive(Debug)]
pub struct Node {
    book: Arc<Book>,
    connected: Arc<AtomicUsize>,
    clients: JoinHandle<()>,
    log: Option<Addr<Log>>,
    formed: Option<oneshot::Receiver<()>>,
}

/// Starts a node. To be called on the arbiter that is to be its first.
///
/// # Errors
/// When one of its ports cannot be listened on.
pub async fn start(
    config: Arc<Config>,
    id: NodeId,
    arbiters: Arbiters,
    birth: Birth,
) -> Result<Node> {
    let Some(own) = config.node(id).cloned() else {
        let known: Vec<String> = config.nodes().iter().map(|node| node.id.to_string()).collect();
        let known = known.join(", ");
        return Err(Error::Config(format!("there is no node {id}; the file has nodes {known}")));
    };
    let mut doors = open_all(&config, &own).await?;

    let partitions = || (0..config.groups()).map(PartitionId);
    let durability: Vec<Durability> =
        partitions().map(|id| config.class_of(id).durability).collect();
    let (boot, clock) = ((birth.boot)(), (birth.clock)().wall);
    let mut found = match durability.iter().any(|durability| is_logged(*durability)) {
        true => match recovery::open(&config, id, &boot, clock) {
            Err(error @ Error::Full(_)) => {
                // No client is to wait at them meanwhile.
                drop(doors);
                let found = open_once_there_is_room(&config, id, birth, error).await?;
                doors = open_all(&config, &own).await?;
                Some(found)
            }
            outcome => Some(outcome?),
        },
        false => None,
    };
    let (record, life) = match &found {
        Some(found) => (None, found.life),
        None => {
            let (record, life) = recovery::open_record(&config, id, &boot, clock)?;
            (Some(record), life)
        }
    };
    let [clients, peers, web] = doors;
    let hasher = KeyHasher::new(config.hash_seed());
    let connected = Arc::new(AtomicUsize::new(0));
    let setup = Setup {
        atlas: Atlas::new(Ring::new(config.partitions()), |table| config.class_of_table(table)),
        hasher,
        limits: config.limits,
        clock: birth.clock,
        begun: (birth.clock)(),
        connected: connected.clone(),
        clients_max: Arc::new(AtomicUsize::new(config.limits.connections)),
        slow: Arc::default(),
        table_bytes: Arc::default(),
    };

    // A disk that knows of no cluster may be in place of one that did. A node without peers need not
    // ask.
    let formed = found.as_ref().is_some_and(|found| found.directory.is_formed());
    let was_ready = found.as_ref().is_some_and(|found| found.directory.is_ready());
    let sleeps = found.is_some() && !formed && config.nodes().len() > 1;
    let placement = match &found {
        Some(found) => found.placement.clone(),
        None => Arc::new(recovery::new_placement(&config)),
    };
    let topology = Arc::new(Topology::new(placement.clone()));
    let placed = placement.over_buckets(id, arbiters.count());
    let (mut cores, mut kept_here) = (Vec::new(), Vec::new());
    for arbiter in 0..arbiters.count() {
        let here = partitions().filter(|id| placed[id.index()] == Some(arbiter));
        let (logged, plain): (Vec<_>, Vec<_>) =
            here.partition(|id| is_logged(durability[id.index()]));
        // Tickets of different Buckets never meet.
        let first_ticket = (arbiter as u64) << 48;
        let lock_wait = setup.limits.lock_wait.as_millis() as u64;
        let mut core =
            core::Bucket::new(id, life, topology.clone(), &plain, hasher, first_ticket, lock_wait);
        for partition in logged {
            let Some(found) = &mut found else { continue };
            core.place(found.partition(&config, partition, id, life, hasher)?);
            let kept = found.kept(partition, arbiter, id);
            if kept.suspects {
                core.suspect(partition);
            }
            kept_here.push(kept);
        }
        if sleeps {
            core.sleep();
        }
        core.backup_bytes_max(config.limits.backup / config.arbiters.max(1));
        core.snapshot_after(recovery::share(
            &config,
            &placement,
            id,
            config.replication.snapshot_after,
        ));
        cores.push(core);
    }
    let unsound: BTreeSet<PartitionId> = cores.iter().flat_map(core::Bucket::unsound).collect();
    let hello = Hello {
        version: PROTOCOL_VERSION,
        cluster: config.cluster().to_owned(),
        node: id,
        life,
        digest: config.digest(&placement.to_string()),
        formed,
        unsound: unsound.iter().copied().collect(),
        seen: LastSeen::default(),
        nonce: 0,
    };
    let directory = record.as_ref().or(found.as_ref().map(|found| &found.directory));
    let last_life = directory.and_then(Directory::last_life);
    let seen: BTreeMap<NodeId, LastSeen> = directory
        .map(|directory| config.nodes().iter().map(|node| (node.id, directory.last_seen(node.id))))
        .into_iter()
        .flatten()
        .collect();
    let buckets = start_buckets(cores, birth, &setup, &arbiters);
    let log_counts = Arc::new(LogCounts::default());
    let (log, archive) = match found {
        Some(found) => {
            found.tell();
            let counts = log_counts.clone();
            let (log, archive) = start_disk(found, &config, hasher, counts, birth, &arbiters);
            (Some(log), Some(archive))
        }
        None => (None, None),
    };
    let others: Vec<NodeId> =
        config.nodes().iter().map(|node| node.id).filter(|node| *node != id).collect();
    let mut links = BTreeMap::new();
    for node in config.nodes().iter().filter(|node| node.id != id) {
        let address = peer::Address { host: node.host.clone(), port: node.peer };
        let queue_max = config.limits.peer_queue;
        let suspect_after = config.replication.election_timeout;
        let hello =
            Hello { seen: seen.get(&node.id).copied().unwrap_or_default(), ..hello.clone() };
        let link =
            Link::new(hello, node.id, suspect_after.as_millis() as u64).remembering(last_life);
        let peer = Peer::new(id, node.id, address, link, queue_max, birth.clock, birth.failpoint);
        links.insert(node.id, peer.start());
    }
    let locks = LockManager::default().start();
    let (tell_formed, formed) = oneshot::channel();
    let lock_wait = setup.limits.lock_wait.as_millis() as u64;
    let mut transactions = Transactions::new(id, life, topology.view(), hasher, lock_wait);
    partitions().for_each(|id| transactions.keep(id, strength(config.class_of(id))));
    let barrier = Barrier::new(hello, others, was_ready);
    let replicas_here = Replicas::new(
        kept_here,
        unsound,
        makers(config.clone(), placement.clone(), id, life, birth.stop, hasher),
    );
    let coordinator = Coordinator::new(
        barrier,
        transactions,
        birth.clock,
        tell_formed,
        replicas_here,
        record,
        birth.stop,
        birth.failpoint,
    );
    let coordinator = coordinator.start();

    let book = Book::new(
        id,
        topology,
        buckets.clone(),
        placed,
        links.clone(),
        coordinator.clone(),
        locks.clone(),
        archive.clone(),
    );
    let refused = Arc::new(AtomicUsize::new(0));
    let disk = log.as_ref().map(|_| log_counts);
    let metrics = Metrics::new(
        config.clone(),
        own,
        birth,
        life,
        book.clone(),
        disk,
        connected.clone(),
        refused.clone(),
    );
    // Mailboxes keep the order, so whatever a Peer brings finds every book in place.
    if let Some(log) = &log {
        log.do_send(disk::Wire(buckets.clone(), archive.clone()));
    }
    if let Some(archive) = &archive {
        archive.do_send(archive::Wire(book.clone()));
    }
    for (number, bucket) in buckets.iter().enumerate() {
        let link =
            |log: &Addr<Log>| disk::Link::new(log.clone(), number, durability.clone(), birth.stop);
        bucket.do_send(bucket::Wire(book.clone(), log.as_ref().map(link)));
    }
    locks.do_send(lock_manager::Wire(book.clone()));
    links.values().for_each(|link| link.do_send(peer::Wire(book.clone(), log.clone())));
    coordinator.do_send(coordinator::Wire(book.clone(), log.clone()));
    let metrics = metrics.start();

    let door = Door { connected: connected.clone(), refused, limit: setup.clients_max.clone() };
    let (ask, asks) = mpsc::channel(HTTP_QUEUE);
    let clients = actix_rt::spawn(accept_clients(clients, book.clone(), door));
    actix_rt::spawn(peer::accept(peers, book.clone()));
    actix_rt::spawn(serve_web(web, ask, config.limits.http_connections));
    actix_rt::spawn(metrics::answer(asks, metrics));
    Ok(Node { book, connected, clients, log, formed: Some(formed) })
}

impl Arbiters {
    fn count(&self) -> usize {
        match self {
            Arbiters::Here => 1,
            Arbiters::On { buckets, .. } => buckets.len(),
        }
    }
}

/// Makes replicas of other generations of a node's partitions.
fn makers(
    config: Arc<Config>,
    placement: Arc<Placement>,
    node: NodeId,
    life: Incarnation,
    stop: Stop,
    hasher: KeyHasher,
) -> Makers {
    let (setting, placed) = (config.clone(), placement.clone());
    Makers {
        newborn: Box::new(move |id, generation| {
            let partition =
                recovery::newborn(&config, &placement, id, node, generation, life, hasher);
            partition.map_err(|error| stop(&error.to_string())).ok()
        }),
        setup: Box::new(move |id, generation| {
            recovery::setup(&setting, &placed, id, node, generation, life, hasher)
        }),
    }
}

/// How strongly partitions of a class keep what they are given.
fn strength(class: Class) -> Strength {
    let survives = match class.durability {
        Durability::None => Survives::Nothing,
        Durability::Interval => Survives::Process,
        Durability::Sync => Survives::Power,
    };
    Strength { copies: class.replicas, survives }
}

fn start_buckets(
    cores: Vec<core::Bucket<Redis>>,
    birth: Birth,
    setup: &Setup,
    arbiters: &Arbiters,
) -> Vec<Addr<Bucket>> {
    let start = |(index, core)| {
        let setup = setup.clone();
        let bucket =
            move |_: &mut Context<Bucket>| Bucket::new(core, birth.clock, setup, birth.failpoint);
        match arbiters {
            Arbiters::On { buckets, .. } if index > 0 => {
                Bucket::start_in_arbiter(&buckets[index], bucket)
            }
            _ => Bucket::create(bucket),
        }
    };
    cores.into_iter().enumerate().map(start).collect()
}

/// Starts the actors that write to the disk.
fn start_disk(
    found: Found,
    config: &Config,
    hasher: KeyHasher,
    counts: Arc<LogCounts>,
    birth: Birth,
    arbiters: &Arbiters,
) -> (Addr<Log>, Addr<Archive>) {
    let Found { directory, log, snapshots, .. } = found;
    let log_bytes_max = config.replication.snapshot_after + config.replication.retain;
    let Birth { stop, failpoint, .. } = birth;
    let log = move |_: &mut Context<Log>| {
        Log::new(log, directory, log_bytes_max, counts, stop, failpoint)
    };
    let archive = move |_: &mut Context<Archive>| Archive::new(snapshots, hasher, stop, failpoint);
    match arbiters {
        Arbiters::On { log: log_on, archive: archive_on, .. } => {
            (Log::start_in_arbiter(log_on, log), Archive::start_in_arbiter(archive_on, archive))
        }
        Arbiters::Here => (Log::create(log), Archive::create(archive)),
    }
}

/// Reads what is on the disk as soon as there is room for what has to be written for that.
async fn open_once_there_is_room(
    config: &Config,
    id: NodeId,
    birth: Birth,
    mut error: Error,
) -> Result<Found> {
    for tries in 0_u32.. {
        if tries.is_multiple_of(ROOM_TELL) {
            log::warn!(target: "node", "{error}; waiting for room");
        }
        sleep(ROOM_EVERY).await;
        match recovery::open(config, id, &(birth.boot)(), (birth.clock)().wall) {
            Err(again @ Error::Full(_)) => error = again,
            outcome => return outcome,
        }
    }
    Err(error)
}

/// Opens the ports for clients, for the other nodes and for HTTP.
async fn open_all(config: &Config, node: &crate::config::Node) -> Result<[TcpListener; 3]> {
    Ok([
        open(config, node, Service::Client).await?,
        open(config, node, Service::Peer).await?,
        open(config, node, Service::Http).await?,
    ])
}

async fn open(
    config: &Config,
    node: &crate::config::Node,
    service: Service,
) -> Result<TcpListener> {
    let (host, port) = config.bind(node, service);
    listen(&host, port).await.map_err(|cause| {
        Error::Listen(Listen { node: node.id, service: service.name(), host, port, cause })
    })
}

/// How many clients there are, and may be.
struct Door {
    connected: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    limit: Arc<AtomicUsize>,
}

/// Accepts clients and gives them to the Buckets in turn.
async fn accept_clients(listener: TcpListener, book: Arc<Book>, door: Door) {
    let mut listener = Acceptor::new(listener, CROWDED);
    let mut next: u64 = 0;
    loop {
        let stream = match listener.accept().await {
            Ok(Some((stream, _))) => stream,
            Ok(None) => {
                door.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Err(error) => {
                log::warn!(target: "session", "cannot accept a client: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if door.connected.fetch_add(1, Ordering::Relaxed) >= door.limit.load(Ordering::Relaxed) {
            door.connected.fetch_sub(1, Ordering::Relaxed);
            door.refused.fetch_add(1, Ordering::Relaxed);
            listener.turn_away(stream);
            continue;
        }
        let handed = stream.set_nodelay(true).and_then(|()| stream.into_std());
        match handed {
            Ok(stream) => {
                let bucket = &book.buckets[next as usize % book.buckets.len()];
                next += 1;
                bucket.do_send(bucket::Connect { stream, client: next });
            }
            Err(error) => {
                door.connected.fetch_sub(1, Ordering::Relaxed);
                log::debug!(target: "session", "a client left at once: {error}");
            }
        }
    }
}

async fn serve_web(listener: TcpListener, ask: mpsc::Sender<http::Ask>, connections_max: usize) {
    let stop = std::future::pending();
    if let Err(error) = http::serve(listener, ask, connections_max, stop).await {
        log::error!(target: "http", "stopped serving: {error}");
    }
}

impl Node {
    /// Tells once the node serves. To be taken once.
    pub fn take_formed(&mut self) -> Option<oneshot::Receiver<()>> {
        self.formed.take()
    }

    /// Stops: takes no more clients, hands over what it leads if other nodes go on, lets every
    /// Session answer what it has read, closes.
    ///
    /// Its peers may dial it to the end: a port without a listener tells them that the process is gone.
    pub async fn stop(self, others_go_on: bool) {
        self.clients.abort();
        if others_go_on {
            self.hand_over().await;
        }
        self.book.buckets.iter().for_each(|bucket| bucket.do_send(bucket::Retire));
        let begun = Instant::now();
        while self.connected.load(Ordering::Relaxed) > 0 && begun.elapsed() < RETIRE_MAX {
            sleep(Duration::from_millis(5)).await;
        }
        if let Some(log) = &self.log {
            // An actor that is gone has nothing to write.
            let _ = log.send(disk::Finish).await;
        }
    }

    /// Has the partitions led here led elsewhere, as far as that takes no longer than
    /// [`HAND_OVER_MAX`].
    async fn hand_over(&self) {
        let begun = Instant::now();
        let mut first = None;
        loop {
            let mut left = 0;
            for bucket in &self.book.buckets {
                left += bucket.send(bucket::HandOver).await.unwrap_or_default();
            }
            let first = *first.get_or_insert(left);
            if left == 0 || begun.elapsed() >= HAND_OVER_MAX {
                if first > 0 {
                    let (moved, took) = (first - left.min(first), begun.elapsed().as_millis());
                    log::info!(target: "node", "handed over {moved} of {first} partitions in {took} ms");
                }
                return;
            }
            sleep(HAND_OVER_LOOK).await;
        }
    }
}
