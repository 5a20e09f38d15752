//! Metrics: asks every actor of the node once a second, and answers those who ask the node.

use crate::actors::book::Book;
use crate::actors::bucket::{self, Inform, Meet, Move, PartitionReport};
use crate::actors::coordinator;
use crate::actors::lock_manager::CountWaiting;
use crate::actors::node::Birth;
use crate::cluster::barrier::Standing;
use crate::cluster::slots::Ring;
use crate::command::facts::{
    Calls, ClassFacts, Facts, LogFacts, NodeFacts, PartitionFacts, TableFacts,
};
use crate::command::spec;
use crate::config::{Class, Config, Node};
use crate::ids::{Incarnation, NodeId, PartitionId, TableIndex};
use crate::metrics::{Counters, LogCounts, LogUsage, Sample, Series, Snapshot, prometheus};
use crate::net::http::{Ask, Health, Unserved};
use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{
    Actor, Addr, AsyncContext, Context, Handler, Message, ResponseActFuture, ResponseFuture,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the node is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// The actor.
#[derive(Debug)]
pub struct Metrics {
    config: Arc<Config>,
    own: Node,
    birth: Birth,
    life: Incarnation,
    book: Arc<Book>,
    disk: Disk,
    connected: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    latest: Snapshot,
    /// What clients see of it, and who cannot be reached.
    told: Shown,
    /// The most bytes that the tables ever took, as far as was looked.
    peak: u64,
    /// What was counted when clients last asked to forget.
    before: Before,
    /// What the latest second brought.
    pace: Pace,
    series: Series,
}

/// Figures that are counted without end, as they were when they were to be forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    expired: u64,
    hits: u64,
    misses: u64,
    refused: u64,
}

impl Before {
    fn of(snapshot: &Snapshot) -> Before {
        let &Snapshot { expired, hits, misses, refused, .. } = snapshot;
        Before { expired, hits, misses, refused }
    }
}

/// What the node's log has counted, if it has one. The log itself is not asked: its disk may hang.
pub type Disk = Option<Arc<LogCounts>>;

/// What a second brought.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    commands: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// What a look at the node brings beside its snapshot.
#[derive(Clone, Debug, Default)]
struct Shown {
    /// Counted since clients last asked to forget.
    counted: Counters,
    /// What became of each command's requests since then.
    calls: BTreeMap<String, Calls>,
    /// Error replies since then, by their first word.
    errors: BTreeMap<String, u64>,
    /// Clients that a pause holds back.
    blocked: u64,
    met: BTreeSet<NodeId>,
    /// Keys that clients watch, in the partitions that this node leads.
    watched: u64,
    unreachable: BTreeSet<NodeId>,
    /// Linked nodes that do not answer.
    suspected: BTreeSet<NodeId>,
    /// The partitions held, by number.
    partitions: Vec<PartitionReport>,
    /// The latest changes of leaders, oldest first.
    moves: Vec<Move>,
    log: Option<LogUsage>,
}

/// Look at the node now, for a client that asks for figures.
#[derive(Message)]
#[rtype(result = "Option<Arc<Facts>>")]
pub struct Refresh;

/// Count from zero again what clients ask to forget.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Forget;

/// A question over HTTP.
#[derive(Message)]
#[rtype(result = "()")]
struct Asked(Ask);

/// Look at the whole node now.
#[derive(Message)]
#[rtype(result = "Option<(Snapshot, Shown, Standing)>")]
struct Look;

impl Metrics {
    /// The metrics of the node `own`.
    #[allow(clippy::too_many_arguments, reason = "one for each part of it")]
    pub fn new(
        config: Arc<Config>,
        own: Node,
        birth: Birth,
        life: Incarnation,
        book: Arc<Book>,
        disk: Disk,
        connected: Arc<AtomicUsize>,
        refused: Arc<AtomicUsize>,
    ) -> Metrics {
        let (latest, told, series) = (Snapshot::default(), Shown::default(), Series::default());
        let (before, pace) = (Before::default(), Pace::default());
        Metrics {
            config,
            own,
            birth,
            life,
            book,
            disk,
            connected,
            refused,
            latest,
            told,
            peak: 0,
            before,
            pace,
            series,
        }
    }

    /// Notes a second's snapshot and tells the Sessions.
    fn note(&mut self, snapshot: Snapshot, told: Shown) {
        self.peak = snapshot.table_bytes.max(self.peak);
        let now = (self.birth.clock)().wall;
        let sample = Sample::between(now.0 / 1000, &self.latest, &snapshot);
        self.series.push(sample);
        let (old, new) = (&self.latest.counters, &snapshot.counters);
        self.pace = Pace {
            commands: new.commands() - old.commands(),
            bytes_in: new.bytes_in - old.bytes_in,
            bytes_out: new.bytes_out - old.bytes_out,
        };
        self.latest = snapshot;
        self.told = told;
        let facts = Arc::new(self.facts(&self.latest, &self.told));
        self.book.buckets.iter().for_each(|bucket| bucket.do_send(Inform(facts.clone())));
    }

    fn facts(&self, snapshot: &Snapshot, told: &Shown) -> Facts {
        let usage = (self.birth.usage)();
        let (before, pace) = (&self.before, &self.pace);
        let (counters, tables) = (&told.counted, &snapshot.tables);
        let tables = (0..).zip(tables).filter(|(_, (keys, _))| *keys > 0);
        let tables = tables.map(|(index, &(keys, volatile))| TableFacts { index, keys, volatile });
        Facts {
            now: (self.birth.clock)().wall,
            started_at: self.birth.started,
            run_id: format!("{:08x}{:032x}", self.own.id.0, self.life.0),
            node: self.own.id.0,
            nodes: self.config.nodes().len(),
            os: std::env::consts::OS.to_owned() + " " + std::env::consts::ARCH,
            process_id: std::process::id(),
            port: self.own.client,
            config_file: self
                .config
                .file
                .as_ref()
                .map(|file| file.display().to_string())
                .unwrap_or_default(),
            clients_connected: snapshot.connected,
            memory_tables: snapshot.table_bytes,
            memory_peak: snapshot.table_bytes.max(self.peak),
            connections_total: counters.connections_opened,
            connections_rejected: snapshot.refused - before.refused,
            commands_total: counters.commands(),
            commands_per_second: pace.commands,
            bytes_per_second: (pace.bytes_in, pace.bytes_out),
            memory_resident: usage.map(|usage| usage.resident),
            cpu_seconds: usage.map(|usage| (usage.kernel_seconds, usage.own_seconds)),
            expired_total: Some(snapshot.expired.saturating_sub(before.expired)),
            hits_total: Some(snapshot.hits.saturating_sub(before.hits)),
            misses_total: Some(snapshot.misses.saturating_sub(before.misses)),
            clients_blocked: told.blocked,
            keys_watched: told.watched,
            errors: told.errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect(),
            input_bytes: Some(counters.bytes_in),
            output_bytes: Some(counters.bytes_out),
            errors_total: Some(counters.errors),
            tables: tables.collect(),
            cluster: self.cluster(&told.unreachable),
            partitions: self.partitions(),
            classes: self.classes(),
            log: told.log.as_ref().map(|log| LogFacts {
                segments: log.segments,
                bytes: log.bytes,
                syncs: log.syncs,
                batches: log.batches,
                appended: log.appended,
            }),
            led_and_held: (
                told.partitions.iter().filter(|one| one.role == "leader").count(),
                told.partitions.len(),
            ),
            calls: told.calls.iter().map(|(name, calls)| (name.clone(), *calls)).collect(),
            transactions: (snapshot.commits, snapshot.aborts, snapshot.wounds),
            lock_waiting: snapshot.waiting,
            ..Facts::default()
        }
    }

    /// The nodes as clients that know Redis Cluster see them.
    fn cluster(&self, unreachable: &BTreeSet<NodeId>) -> Vec<NodeFacts> {
        let ring = Ring::new(self.config.partitions());
        let slots = |node: NodeId| {
            let all = (0..self.config.partitions()).map(PartitionId);
            let led = all.filter(move |id| self.book.leader(*id) == node);
            let mut runs: Vec<(u16, u16)> = Vec::new();
            for slots in led.map(|id| ring.slots_of(id)) {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 == *slots.start() => *last = *slots.end(),
                    _ => runs.push((*slots.start(), *slots.end())),
                }
            }
            runs
        };
        let facts = |node: &Node| NodeFacts {
            node: node.id.0,
            name: format!("{:016x}{:024x}", self.config.hash_seed(), node.id.0),
            host: node.host.clone(),
            port: node.client,
            peer_port: node.peer,
            linked: !unreachable.contains(&node.id),
            slots: slots(node.id),
        };
        self.config.nodes().iter().map(facts).collect()
    }

    fn partitions(&self) -> Vec<PartitionFacts> {
        let ring = Ring::new(self.config.partitions());
        let facts = |id: PartitionId| {
            let (slots, leader) = (ring.slots_of(id), self.book.leader(id));
            let others =
                self.book.topology.placement().replicas(id).iter().filter(|node| **node != leader);
            PartitionFacts {
                slots: (*slots.start(), *slots.end()),
                leader: leader.0,
                followers: others.map(|node| node.0).collect(),
            }
        };
        (0..self.config.partitions()).map(PartitionId).map(facts).collect()
    }

    fn classes(&self) -> Vec<ClassFacts> {
        let facts = |(number, class): (usize, &Class)| ClassFacts {
            tables: TableIndex::all()
                .filter(|table| self.config.class_of_table(*table) == number)
                .map(|table| table.index() as u8)
                .collect(),
            replicas: usize::from(class.replicas),
            durability: class.durability.name(),
        };
        self.config.classes().iter().enumerate().map(facts).collect()
    }

    /// The partitions that this node cannot serve to any client.
    fn unserved(&self, told: &Shown) -> Vec<Unserved> {
        let why = |id: PartitionId| why_unserved(id, &self.book, told);
        let all = (0..self.config.groups()).map(PartitionId);
        all.filter_map(|id| Some(Unserved { partition: id.0, why: why(id)? })).collect()
    }

    fn status(&self, snapshot: &Snapshot, told: &Shown, standing: &Standing) -> serde_json::Value {
        let waiting = match standing {
            Standing::Formed => Vec::new(),
            Standing::Waiting(nodes) => nodes.iter().map(|node| node.0).collect(),
        };
        let led = |node: NodeId| -> Vec<usize> {
            let all = (0..self.config.groups()).map(PartitionId);
            all.filter(|id| self.book.leader(*id) == node).map(PartitionId::index).collect()
        };
        let nodes = self.config.nodes().iter().map(|node| {
            json!({
                "id": node.id.0,
                "host": node.host,
                "client": node.client,
                "peer": node.peer,
                "http": node.http,
                "leads": led(node.id),
            })
        });
        json!({
            "cluster": self.config.cluster(),
            "node": self.own.id.0,
            "life": self.life.0,
            "formed": *standing == Standing::Formed,
            "waiting_for": waiting,
            "nodes": nodes.collect::<Vec<_>>(),
            "partitions": self.config.partitions(),
            "tables": self.classes().iter().map(|class| json!({
                "tables": class.tables,
                "replicas": class.replicas,
                "durability": class.durability,
            })).collect::<Vec<_>>(),
            "replicas": told.partitions,
            "moves": told.moves,
            "log": told.log.as_ref().map(|log| json!({
                "segments": log.segments,
                "bytes": log.bytes,
                "written": log.written,
                "syncs": log.syncs,
                "batches": log.batches,
                "appended": log.appended,
                "copied": log.copied,
            })),
            "unreachable": told.unreachable.iter().map(|node| node.0).collect::<Vec<_>>(),
            "suspected": told.suspected.iter().map(|node| node.0).collect::<Vec<_>>(),
            "now": snapshot,
        })
    }
}

/// Why a node cannot serve a partition, if it cannot: its leader is not known or is out of reach, or
/// this node leads it and a majority is out of reach.
fn why_unserved(id: PartitionId, book: &Book, told: &Shown) -> Option<String> {
    let is_lost = |node: NodeId| {
        node != book.node && (!told.met.contains(&node) || told.unreachable.contains(&node))
    };
    let is_away = |node: NodeId| is_lost(node) || told.suspected.contains(&node);
    let here = told.partitions.iter().find(|one| one.id == id.0);
    let leader = match here {
        Some(here) => here.leader.map(NodeId),
        None => Some(book.leader(id)),
    };
    match (leader, here) {
        (None, _) => Some("it has no leader".into()),
        (Some(leader), Some(here)) if leader == book.node => {
            let near = here.voters.iter().filter(|node| !is_away(NodeId(**node))).count();
            let majority = here.voters.len() / 2 + 1;
            match here.serves {
                _ if near < majority => {
                    let voters = here.voters.len();
                    Some(format!("{near} of its {voters} replicas are in reach, {majority} needed"))
                }
                false => Some("its leader does not serve yet".into()),
                true => None,
            }
        }
        (Some(leader), _) if is_lost(leader) => {
            Some(format!("its leader, node {leader}, cannot be reached"))
        }
        (Some(leader), _) if is_away(leader) => {
            Some(format!("its leader, node {leader}, does not answer"))
        }
        (Some(_), _) => None,
    }
}

/// Carries questions from HTTP to the actor.
pub async fn answer(mut asks: mpsc::Receiver<Ask>, metrics: Addr<Metrics>) {
    while let Some(ask) = asks.recv().await {
        metrics.do_send(Asked(ask));
    }
}

type Looked = Option<(Snapshot, Shown, Standing)>;

async fn look(book: Arc<Book>, disk: Disk, connected: u64, refused: u64) -> Looked {
    let mut told = Shown::default();
    let mut counters = Counters::default();
    let mut snapshot = Snapshot { connected, refused, ..Snapshot::default() };
    snapshot.tables = vec![(0, 0); crate::ids::TABLES];
    for bucket in &book.buckets {
        let report = bucket.send(bucket::Observe).await.ok()?;
        let tally = report.tally;
        counters.add(&tally.counters);
        told.counted.add(&tally.counted);
        for (row, calls) in tally.calls {
            told.calls.entry(spec::full_name(row)).or_default().add(&calls);
        }
        for (kind, count) in tally.errors {
            *told.errors.entry(kind).or_default() += count;
        }
        told.blocked += tally.blocked;
        told.met.extend(report.met);
        told.unreachable.extend(report.unreachable);
        told.suspected.extend(report.suspected);
        told.partitions.extend(report.partitions);
        told.moves.extend(report.moves);
        snapshot.batches += report.core.batches;
        snapshot.operations += report.core.operations;
        snapshot.waits += report.core.waits;
        snapshot.expired += report.core.expired;
        snapshot.hits += report.core.hits;
        snapshot.misses += report.core.misses;
        snapshot.table_bytes += report.bytes as u64;
        snapshot.unsettled += report.unsettled as u64;
        told.watched += report.watched as u64;
        for (sum, (items, volatile)) in snapshot.tables.iter_mut().zip(report.tables) {
            sum.0 += items as u64;
            sum.1 += volatile as u64;
        }
    }
    told.partitions.sort_unstable_by_key(|one| one.id);
    told.moves.sort_by_key(|one| one.at_ms);
    told.log = disk.as_deref().map(LogCounts::usage);
    let log = told.log.unwrap_or_default();
    snapshot.counters = counters;
    (snapshot.log_syncs, snapshot.log_batches) = (log.syncs, log.batches);
    snapshot.log_bytes = log.appended;
    snapshot.lines_dropped = crate::logging::dropped();
    snapshot.waiting = book.locks.send(CountWaiting).await.ok()? as u64;
    let report = book.coordinator.send(coordinator::Observe).await.ok()?;
    snapshot.active = report.active as u64;
    snapshot.commits = report.counts.commits;
    snapshot.aborts = report.counts.aborts;
    snapshot.wounds = report.counts.wounds;
    Some((snapshot, told, report.standing))
}

impl Actor for Metrics {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // Until the first second is over the Sessions know what was configured.
        let facts = self.facts(&Snapshot::default(), &Shown::default());
        let facts = Arc::new(facts);
        for bucket in &self.book.buckets {
            bucket.do_send(Inform(facts.clone()));
            bucket.do_send(Meet(ctx.address()));
        }
        ctx.run_interval(PERIOD, |metrics, ctx| {
            let look = ctx.address().send(Look).into_actor(metrics);
            ctx.spawn(look.map(|looked, metrics, _| {
                if let Ok(Some((snapshot, told, _))) = looked {
                    metrics.note(snapshot, told);
                }
            }));
        });
    }
}

impl Handler<Look> for Metrics {
    type Result = ResponseFuture<Looked>;

    fn handle(&mut self, _: Look, _: &mut Context<Self>) -> Self::Result {
        let connected = self.connected.load(Ordering::Relaxed) as u64;
        let refused = self.refused.load(Ordering::Relaxed) as u64;
        Box::pin(look(self.book.clone(), self.disk.clone(), connected, refused))
    }
}

impl Handler<Refresh> for Metrics {
    type Result = ResponseActFuture<Self, Option<Arc<Facts>>>;

    fn handle(&mut self, _: Refresh, ctx: &mut Context<Self>) -> Self::Result {
        let look = ctx.address().send(Look).into_actor(self);
        Box::pin(look.map(|looked, metrics, _| {
            let (snapshot, told, _) = looked.ok()??;
            metrics.peak = snapshot.table_bytes.max(metrics.peak);
            Some(Arc::new(metrics.facts(&snapshot, &told)))
        }))
    }
}

impl Handler<Forget> for Metrics {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Forget, ctx: &mut Context<Self>) -> Self::Result {
        let look = ctx.address().send(Look).into_actor(self);
        Box::pin(look.map(|looked, metrics, _| {
            if let Ok(Some((snapshot, ..))) = looked {
                metrics.before = Before::of(&snapshot);
            }
        }))
    }
}

impl Handler<Asked> for Metrics {
    type Result = ();

    fn handle(&mut self, Asked(ask): Asked, ctx: &mut Context<Self>) {
        if let Ask::Series(answer) = ask {
            // Who asked may have gone: here and below nothing is lost then.
            let _ = answer.send(self.series.samples());
            return;
        }
        let look = ctx.address().send(Look).into_actor(self);
        ctx.spawn(look.map(|looked, metrics, _| {
            let Ok(Some((snapshot, told, standing))) = looked else { return };
            match ask {
                Ask::Health(answer) => {
                    let health = match standing {
                        Standing::Formed => match metrics.unserved(&told) {
                            unserved if unserved.is_empty() => Health::Ready,
                            unserved => Health::Unserved(unserved),
                        },
                        Standing::Waiting(nodes) => {
                            Health::Waiting(nodes.iter().map(|node| node.0).collect())
                        }
                    };
                    let _ = answer.send(health);
                }
                Ask::Status(answer) => {
                    let _ = answer.send(metrics.status(&snapshot, &told, &standing));
                }
                Ask::Metrics(answer) => {
                    let _ = answer.send(prometheus(&snapshot));
                }
                Ask::Series(_) => {}
            }
        }));
    }
}
