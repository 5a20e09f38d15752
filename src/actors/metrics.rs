//! Metrics: asks every actor of the node once a second, and answers those who ask the node.

use crate::actors::book::Book;
use crate::actors::bucket::{self, Inform};
use crate::actors::coordinator;
use crate::actors::lock_manager::CountWaiting;
use crate::actors::node::Birth;
use crate::command::facts::{Facts, TableFacts};
use crate::config::{Config, Node};
use crate::engine::barrier::Standing;
use crate::ids::NodeId;
use crate::metrics::{Counters, Sample, Series, Snapshot, prometheus};
use crate::net::http::{Ask, Health};
use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture};
use serde_json::json;
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
    book: Arc<Book>,
    connected: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    latest: Snapshot,
    series: Series,
}

/// A question over HTTP.
#[derive(Message)]
#[rtype(result = "()")]
struct Asked(Ask);

/// Look at the whole node now.
#[derive(Message)]
#[rtype(result = "Option<(Snapshot, Standing)>")]
struct Look;

impl Metrics {
    /// The metrics of the node `own`.
    pub fn new(
        config: Arc<Config>,
        own: Node,
        birth: Birth,
        book: Arc<Book>,
        connected: Arc<AtomicUsize>,
        refused: Arc<AtomicUsize>,
    ) -> Metrics {
        let (latest, series) = (Snapshot::default(), Series::default());
        Metrics { config, own, birth, book, connected, refused, latest, series }
    }

    /// Notes a second's snapshot and tells the Sessions.
    fn note(&mut self, snapshot: Snapshot) {
        let now = (self.birth.clock)();
        let sample = Sample::between(now.0 / 1000, &self.latest, &snapshot);
        self.series.push(sample);
        self.latest = snapshot;
        let facts = Arc::new(self.facts(&sample));
        self.book.buckets.iter().for_each(|bucket| bucket.do_send(Inform(facts.clone())));
    }

    fn facts(&self, sample: &Sample) -> Facts {
        let Snapshot { counters, tables, .. } = &self.latest;
        let tables = (0..).zip(tables).filter(|(_, (keys, _))| *keys > 0);
        let tables = tables.map(|(index, &(keys, volatile))| TableFacts { index, keys, volatile });
        Facts {
            now: (self.birth.clock)(),
            started_at: self.birth.started,
            run_id: format!("{:08x}{:032x}", self.own.id.0, self.birth.life.0),
            node: self.own.id.0,
            nodes: self.config.nodes().len(),
            os: std::env::consts::OS.to_owned() + " " + std::env::consts::ARCH,
            process_id: std::process::id(),
            port: self.own.client,
            clients_max: self.config.limits.connections as u64,
            clients_connected: self.latest.connected,
            memory_tables: self.latest.table_bytes,
            connections_total: counters.connections_opened,
            connections_rejected: self.latest.refused,
            commands_total: counters.commands(),
            commands_per_second: sample.reads + sample.writes + sample.transactions,
            expired_total: Some(self.latest.expired),
            input_bytes: Some(counters.bytes_in),
            output_bytes: Some(counters.bytes_out),
            errors_total: Some(counters.errors),
            tables: tables.collect(),
            ..Facts::default()
        }
    }

    fn status(&self, snapshot: &Snapshot, standing: &Standing) -> serde_json::Value {
        let waiting = match standing {
            Standing::Formed => Vec::new(),
            Standing::Waiting(nodes) => nodes.iter().map(|node| node.0).collect(),
        };
        let led = |node: NodeId| -> Vec<usize> {
            let homes = self.book.homes.iter().enumerate();
            homes.filter(|(_, home)| **home == node).map(|(index, _)| index).collect()
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
            "life": self.birth.life.0,
            "formed": *standing == Standing::Formed,
            "waiting_for": waiting,
            "nodes": nodes.collect::<Vec<_>>(),
            "partitions": self.config.partitions(),
            "now": snapshot,
        })
    }
}

/// Carries questions from HTTP to the actor.
pub async fn answer(mut asks: mpsc::Receiver<Ask>, metrics: Addr<Metrics>) {
    while let Some(ask) = asks.recv().await {
        metrics.do_send(Asked(ask));
    }
}

async fn look(book: Arc<Book>, connected: u64, refused: u64) -> Option<(Snapshot, Standing)> {
    let mut counters = Counters::default();
    let mut snapshot = Snapshot { connected, refused, ..Snapshot::default() };
    snapshot.tables = vec![(0, 0); crate::ids::TABLES];
    for bucket in &book.buckets {
        let report = bucket.send(bucket::Observe).await.ok()?;
        counters.add(&report.counters);
        snapshot.batches += report.core.batches;
        snapshot.operations += report.core.operations;
        snapshot.waits += report.core.waits;
        snapshot.expired += report.core.expired;
        snapshot.table_bytes += report.bytes as u64;
        snapshot.unsettled += report.unsettled as u64;
        for (sum, (items, volatile)) in snapshot.tables.iter_mut().zip(report.tables) {
            sum.0 += items as u64;
            sum.1 += volatile as u64;
        }
    }
    snapshot.counters = counters;
    snapshot.waiting = book.locks.send(CountWaiting).await.ok()? as u64;
    let report = book.coordinator.send(coordinator::Observe).await.ok()?;
    snapshot.active = report.active as u64;
    snapshot.commits = report.counts.commits;
    snapshot.aborts = report.counts.aborts;
    snapshot.wounds = report.counts.wounds;
    Some((snapshot, report.standing))
}

impl Actor for Metrics {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // Until the first second is over the Sessions know what was configured.
        let facts = Arc::new(self.facts(&Sample::default()));
        self.book.buckets.iter().for_each(|bucket| bucket.do_send(Inform(facts.clone())));
        ctx.run_interval(PERIOD, |metrics, ctx| {
            let look = ctx.address().send(Look).into_actor(metrics);
            ctx.spawn(look.map(|looked, metrics, _| {
                if let Ok(Some((snapshot, _))) = looked {
                    metrics.note(snapshot);
                }
            }));
        });
    }
}

impl Handler<Look> for Metrics {
    type Result = ResponseFuture<Option<(Snapshot, Standing)>>;

    fn handle(&mut self, _: Look, _: &mut Context<Self>) -> Self::Result {
        let connected = self.connected.load(Ordering::Relaxed) as u64;
        let refused = self.refused.load(Ordering::Relaxed) as u64;
        Box::pin(look(self.book.clone(), connected, refused))
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
            let Ok(Some((snapshot, standing))) = looked else { return };
            match ask {
                Ask::Health(answer) => {
                    let health = match standing {
                        Standing::Formed => Health::Ready,
                        Standing::Waiting(nodes) => {
                            Health::Waiting(nodes.iter().map(|node| node.0).collect())
                        }
                    };
                    let _ = answer.send(health);
                }
                Ask::Status(answer) => {
                    let _ = answer.send(metrics.status(&snapshot, &standing));
                }
                Ask::Metrics(answer) => {
                    let _ = answer.send(prometheus(&snapshot));
                }
                Ask::Series(_) => {}
            }
        }));
    }
}
