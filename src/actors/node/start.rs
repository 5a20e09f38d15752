//! How a node starts: its ports, its disk, the cores of its Buckets, its actors, what each of these is
//! told of the others; and at last its doors.

use super::doors::{Door, HTTP_QUEUE, accept_clients, open_all, serve_web};
use super::{Arbiters, Birth, Node};
use crate::actors::archive::{self, Archive};
use crate::actors::book::Book;
use crate::actors::bucket::{self, Bucket};
use crate::actors::coordinator::{self, Coordinator, Kept, Makers, Replicas};
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
use crate::config::{Class, Config, Durability};
use crate::error::{Error, Result};
use crate::ids::{Incarnation, LastSeen, NodeId, PartitionId};
use crate::metrics::LogCounts;
use crate::net::listen::TcpListener;
use crate::partition::bucket as core;
use crate::storage::Directory;
use crate::store::tables::KeyHasher;
use crate::txn::coordinator::{Strength, Survives, Transactions};
use actix::{Actor, Addr, Context};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// How often a node that has no room to start looks for some, and after how many looks it says so
/// again.
const ROOM_EVERY: Duration = Duration::from_secs(1);
const ROOM_TELL: u32 = 30;

/// What all steps know.
struct Plan {
    config: Arc<Config>,
    own: crate::config::Node,
    id: NodeId,
    arbiters: Arbiters,
    birth: Birth,
    setup: Setup,
}

/// What the node knows of its earlier lives, and which life this is.
struct Past {
    /// What is on its disk, where any partition has a log.
    found: Option<Found>,
    /// Its data directory alone, where none has.
    record: Option<Directory>,
    life: Incarnation,
    placement: Arc<Placement>,
}

/// The node's partitions, in the cores of its Buckets.
struct Cores {
    cores: Vec<core::Bucket<Redis>>,
    /// In which of them each partition is.
    placed: Vec<Option<usize>>,
    /// Those that have a log.
    kept: Vec<Kept>,
    unsound: BTreeSet<PartitionId>,
}

/// The actors that hear of each other once all are there.
struct Actors {
    buckets: Vec<Addr<Bucket>>,
    disk: Option<(Addr<Log>, Addr<Archive>)>,
    peers: BTreeMap<NodeId, Addr<Peer>>,
    locks: Addr<LockManager>,
    coordinator: Addr<Coordinator>,
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
    let (doors, mut past) = open_doors_and_disk(&config, &own, birth).await?;
    let plan = Plan { setup: setup(&config, birth), config, own, id, arbiters, birth };

    let topology = Arc::new(Topology::new(past.placement.clone()));
    let cores = plan.place(&mut past, &topology)?;
    let hello = plan.hello(&past, &cores);
    let log_counts = Arc::new(LogCounts::default());
    let (tell_formed, formed) = oneshot::channel();
    let (life, placed) = (past.life, cores.placed.clone());
    let actors = plan.start(past, cores, hello, &topology, log_counts.clone(), tell_formed);

    let book = Book::new(
        id,
        topology,
        actors.buckets.clone(),
        placed,
        actors.peers.clone(),
        actors.coordinator.clone(),
        actors.locks.clone(),
        actors.disk.as_ref().map(|(_, archive)| archive.clone()),
    );
    let connected = plan.setup.connected.clone();
    let refused = Arc::new(AtomicUsize::new(0));
    let metrics = Metrics::new(
        plan.config.clone(),
        plan.own.clone(),
        birth,
        life,
        book.clone(),
        actors.disk.as_ref().map(|_| log_counts),
        connected.clone(),
        refused.clone(),
    );
    plan.wire(&actors, &book);
    let metrics = metrics.start();

    let [clients, peers, web] = doors;
    let limit = plan.setup.clients_max.clone();
    let door = Door { connected: connected.clone(), refused, limit };
    let (ask, asks) = mpsc::channel(HTTP_QUEUE);
    let clients = actix_rt::spawn(accept_clients(clients, book.clone(), door));
    actix_rt::spawn(peer::accept(peers, book.clone()));
    actix_rt::spawn(serve_web(web, ask, plan.config.limits.http_connections));
    actix_rt::spawn(metrics::answer(asks, metrics));
    let log = actors.disk.map(|(log, _)| log);
    Ok(Node { book, connected, clients, log, formed: Some(formed) })
}

/// Opens the ports, then what is on the disk. The ports come first: a node that cannot listen has
/// begun no life.
async fn open_doors_and_disk(
    config: &Config,
    own: &crate::config::Node,
    birth: Birth,
) -> Result<([TcpListener; 3], Past)> {
    let mut doors = open_all(config, own).await?;
    let (boot, clock) = ((birth.boot)(), (birth.clock)().wall);
    let mut partitions = (0..config.groups()).map(PartitionId);
    if !partitions.any(|id| is_logged(config.class_of(id).durability)) {
        let (record, life) = recovery::open_record(config, own.id, &boot, clock)?;
        let placement = Arc::new(recovery::new_placement(config));
        return Ok((doors, Past { found: None, record: Some(record), life, placement }));
    }
    let found = match recovery::open(config, own.id, &boot, clock) {
        Err(error @ Error::Full(_)) => {
            // No client is to wait at them meanwhile.
            drop(doors);
            let found = open_once_there_is_room(config, own.id, birth, error).await?;
            doors = open_all(config, own).await?;
            found
        }
        outcome => outcome?,
    };
    let (life, placement) = (found.life, found.placement.clone());
    Ok((doors, Past { found: Some(found), record: None, life, placement }))
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

/// What the node's arbiters are given.
fn setup(config: &Config, birth: Birth) -> Setup {
    Setup {
        atlas: Atlas::new(Ring::new(config.partitions()), |table| config.class_of_table(table)),
        hasher: KeyHasher::new(config.hash_seed()),
        limits: config.limits,
        clock: birth.clock,
        begun: (birth.clock)(),
        connected: Arc::new(AtomicUsize::new(0)),
        clients_max: Arc::new(AtomicUsize::new(config.limits.connections)),
        slow: Arc::default(),
        table_bytes: Arc::default(),
    }
}

impl Past {
    fn directory(&self) -> Option<&Directory> {
        self.record.as_ref().or(self.found.as_ref().map(|found| &found.directory))
    }

    /// Whether the node's disk knows of a cluster. A disk that knows of none may be in place of one
    /// that did.
    fn is_formed(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.directory.is_formed())
    }

    fn was_ready(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.directory.is_ready())
    }
}

impl Plan {
    fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        (0..self.config.groups()).map(PartitionId)
    }

    fn lock_wait(&self) -> u64 {
        self.setup.limits.lock_wait.as_millis() as u64
    }

    /// Places the node's partitions: those with a log as they were found on its disk.
    fn place(&self, past: &mut Past, topology: &Arc<Topology>) -> Result<Cores> {
        let placed = past.placement.over_buckets(self.id, self.arbiters.count());
        let (mut cores, mut kept) = (Vec::new(), Vec::new());
        for number in 0..self.arbiters.count() {
            let here = self.partitions().filter(|id| placed[id.index()] == Some(number));
            cores.push(self.core(number, here, past, topology, &mut kept)?);
        }
        let unsound = cores.iter().flat_map(core::Bucket::unsound).collect();
        Ok(Cores { cores, placed, kept, unsound })
    }

    /// One Bucket's core with its partitions.
    fn core(
        &self,
        number: usize,
        here: impl Iterator<Item = PartitionId>,
        past: &mut Past,
        topology: &Arc<Topology>,
        kept_here: &mut Vec<Kept>,
    ) -> Result<core::Bucket<Redis>> {
        let (config, hasher) = (&self.config, self.setup.hasher);
        let (logged, plain): (Vec<_>, Vec<_>) =
            here.partition(|id| is_logged(config.class_of(*id).durability));
        // Tickets of different Buckets never meet.
        let first_ticket = (number as u64) << 48;
        let (id, life, wait) = (self.id, past.life, self.lock_wait());
        let mut core =
            core::Bucket::new(id, life, topology.clone(), &plain, hasher, first_ticket, wait);
        for partition in logged {
            let Some(found) = &mut past.found else { continue };
            core.place(found.partition(config, partition, id, life, hasher)?);
            let kept = found.kept(partition, number, id);
            if kept.suspects {
                core.suspect(partition);
            }
            kept_here.push(kept);
        }
        // A node without peers need not ask whether its disk is the one that it had.
        if past.found.is_some() && !past.is_formed() && config.nodes().len() > 1 {
            core.sleep();
        }
        core.backup_bytes_max(config.limits.backup / config.arbiters.max(1));
        let snapshot_after = config.replication.snapshot_after;
        core.snapshot_after(recovery::share(config, &past.placement, id, snapshot_after));
        Ok(core)
    }

    /// How the node introduces itself, but for what it has seen of the other one.
    fn hello(&self, past: &Past, cores: &Cores) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            cluster: self.config.cluster().to_owned(),
            node: self.id,
            life: past.life,
            digest: self.config.digest(&past.placement.to_string()),
            formed: past.is_formed(),
            unsound: cores.unsound.iter().copied().collect(),
            seen: LastSeen::default(),
            nonce: 0,
        }
    }

    /// Starts the actors. None of them knows of the others yet.
    fn start(
        &self,
        past: Past,
        cores: Cores,
        hello: Hello,
        topology: &Topology,
        log_counts: Arc<LogCounts>,
        tell_formed: oneshot::Sender<()>,
    ) -> Actors {
        let was_ready = past.was_ready();
        let last_life = past.directory().and_then(Directory::last_life);
        let seen = self.last_seen(past.directory());
        let Past { found, record, life, placement } = past;
        let Cores { cores, kept, unsound, .. } = cores;
        let buckets = self.start_buckets(cores);
        let disk = found.map(|found| {
            found.tell();
            self.start_disk(found, log_counts)
        });
        let peers = self.start_peers(&hello, &seen, last_life);
        let locks = LockManager::default().start();
        let mut transactions =
            Transactions::new(self.id, life, topology.view(), self.setup.hasher, self.lock_wait());
        self.partitions().for_each(|id| transactions.keep(id, strength(self.config.class_of(id))));
        let coordinator = Coordinator::new(
            Barrier::new(hello, peers.keys().copied(), was_ready),
            transactions,
            self.birth.clock,
            tell_formed,
            Replicas::new(kept, unsound, self.makers(placement, life)),
            record,
            self.birth.stop,
            self.birth.failpoint,
        );
        Actors { buckets, disk, peers, locks, coordinator: coordinator.start() }
    }

    /// What the directory remembers of each node.
    fn last_seen(&self, directory: Option<&Directory>) -> BTreeMap<NodeId, LastSeen> {
        let Some(directory) = directory else { return BTreeMap::new() };
        let nodes = self.config.nodes().iter().map(|node| node.id);
        nodes.map(|node| (node, directory.last_seen(node))).collect()
    }

    fn start_buckets(&self, cores: Vec<core::Bucket<Redis>>) -> Vec<Addr<Bucket>> {
        let birth = self.birth;
        let start = |(index, core)| {
            let setup = self.setup.clone();
            let bucket = move |_: &mut Context<Bucket>| {
                Bucket::new(core, birth.clock, setup, birth.failpoint)
            };
            match &self.arbiters {
                Arbiters::On { buckets, .. } if index > 0 => {
                    Bucket::start_in_arbiter(&buckets[index], bucket)
                }
                _ => Bucket::create(bucket),
            }
        };
        cores.into_iter().enumerate().map(start).collect()
    }

    /// Starts the actors that write to the disk.
    fn start_disk(&self, found: Found, counts: Arc<LogCounts>) -> (Addr<Log>, Addr<Archive>) {
        let Found { directory, log, snapshots, .. } = found;
        let replication = &self.config.replication;
        let log_bytes_max = replication.snapshot_after + replication.retain;
        let (Birth { stop, failpoint, .. }, hasher) = (self.birth, self.setup.hasher);
        let log = move |_: &mut Context<Log>| {
            Log::new(log, directory, log_bytes_max, counts, stop, failpoint)
        };
        let archive =
            move |_: &mut Context<Archive>| Archive::new(snapshots, hasher, stop, failpoint);
        match &self.arbiters {
            Arbiters::On { log: log_on, archive: archive_on, .. } => {
                (Log::start_in_arbiter(log_on, log), Archive::start_in_arbiter(archive_on, archive))
            }
            Arbiters::Here => (Log::create(log), Archive::create(archive)),
        }
    }

    /// Starts a Peer for each of the other nodes.
    fn start_peers(
        &self,
        hello: &Hello,
        seen: &BTreeMap<NodeId, LastSeen>,
        last_life: Option<Incarnation>,
    ) -> BTreeMap<NodeId, Addr<Peer>> {
        let (config, birth) = (&self.config, self.birth);
        let suspect_after = config.replication.election_timeout.as_millis() as u64;
        let others = config.nodes().iter().filter(|node| node.id != self.id);
        let start = |node: &crate::config::Node| {
            let address = peer::Address { host: node.host.clone(), port: node.peer };
            let seen = seen.get(&node.id).copied().unwrap_or_default();
            let hello = Hello { seen, ..hello.clone() };
            let link = Link::new(hello, node.id, suspect_after).remembering(last_life);
            let queue_max = config.limits.peer_queue;
            let peer =
                Peer::new(self.id, node.id, address, link, queue_max, birth.clock, birth.failpoint);
            (node.id, peer.start())
        };
        others.map(start).collect()
    }

    /// Makes replicas of other generations of the node's partitions.
    fn makers(&self, placement: Arc<Placement>, life: Incarnation) -> Makers {
        let (node, stop, hasher): (_, Stop, _) = (self.id, self.birth.stop, self.setup.hasher);
        let (config, setting) = (self.config.clone(), self.config.clone());
        let placed = placement.clone();
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

    /// Tells each actor of the others. Mailboxes keep the order, so whatever a Peer brings finds every
    /// book in place.
    fn wire(&self, actors: &Actors, book: &Arc<Book>) {
        let Actors { buckets, disk, peers, locks, coordinator } = actors;
        let log = disk.as_ref().map(|(log, _)| log);
        let archive = disk.as_ref().map(|(_, archive)| archive);
        if let Some(log) = log {
            log.do_send(disk::Wire(buckets.clone(), archive.cloned()));
        }
        if let Some(archive) = archive {
            archive.do_send(archive::Wire(book.clone()));
        }
        let durability: Vec<Durability> =
            self.partitions().map(|id| self.config.class_of(id).durability).collect();
        for (number, bucket) in buckets.iter().enumerate() {
            let link = |log: &Addr<Log>| {
                disk::Link::new(log.clone(), number, durability.clone(), self.birth.stop)
            };
            bucket.do_send(bucket::Wire(book.clone(), log.map(link)));
        }
        locks.do_send(lock_manager::Wire(book.clone()));
        peers.values().for_each(|peer| peer.do_send(peer::Wire(book.clone(), log.cloned())));
        coordinator.do_send(coordinator::Wire(book.clone(), log.cloned()));
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
