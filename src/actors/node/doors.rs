//! A node's ports, for clients, for the other nodes and for HTTP; and which clients are let in.

use crate::actors::book::Book;
use crate::actors::bucket;
use crate::config::{Config, Service};
use crate::error::{Error, Listen, Result};
use crate::net::http;
use crate::net::listen::{Acceptor, TcpListener, listen};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// What clients beyond the limit are told.
const CROWDED: &[u8] = b"-ERR max number of clients reached\r\n";

/// Questions over HTTP that may wait.
pub(super) const HTTP_QUEUE: usize = 64;

/// Opens the ports for clients, for the other nodes and for HTTP.
pub(super) async fn open_all(
    config: &Config,
    node: &crate::config::Node,
) -> Result<[TcpListener; 3]> {
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
pub(super) struct Door {
    pub(super) connected: Arc<AtomicUsize>,
    pub(super) refused: Arc<AtomicUsize>,
    pub(super) limit: Arc<AtomicUsize>,
}

/// Accepts clients and gives them to the Buckets in turn.
pub(super) async fn accept_clients(listener: TcpListener, book: Arc<Book>, door: Door) {
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

pub(super) async fn serve_web(
    listener: TcpListener,
    ask: mpsc::Sender<http::Ask>,
    connections_max: usize,
) {
    let stop = std::future::pending();
    if let Err(error) = http::serve(listener, ask, connections_max, stop).await {
        log::error!(target: "http", "stopped serving: {error}");
    }
}
