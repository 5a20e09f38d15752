//! HTTP: how a node is, for people, load balancers and Prometheus.
//!
//! The handlers know no actor: they put an [`Ask`] into a queue and await its answer.

use crate::metrics::{Sample, csv};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::future::Future;
use std::io;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// What a request wants to know.
#[derive(Debug)]
pub enum Ask {
    /// May the node serve? Whom does it wait for?
    Health(oneshot::Sender<Health>),
    /// What is it doing?
    Status(oneshot::Sender<Value>),
    /// Its metrics in Prometheus's text format.
    Metrics(oneshot::Sender<String>),
    /// Its throughput, second by second.
    Series(oneshot::Sender<Vec<Sample>>),
}

/// A node's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Ready,
    /// It waits for these nodes.
    Waiting(Vec<u16>),
}

/// Serves until `stop` is ready.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    asks: mpsc::Sender<Ask>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/series", get(series))
        .fallback(nothing)
        .with_state(asks);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

type Asks = State<mpsc::Sender<Ask>>;

/// Asks the node. None when it is stopping, or too many wait already.
async fn answer<T>(asks: &Asks, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    asks.try_send(ask(sender)).ok()?;
    receiver.await.ok()
}

fn unavailable() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "the node does not answer" })))
        .into_response()
}

async fn health(asks: Asks) -> Response {
    match answer(&asks, Ask::Health).await {
        Some(Health::Ready) => Json(json!({ "status": "ready" })).into_response(),
        Some(Health::Waiting(nodes)) => {
            let body = json!({ "status": "waiting", "for": nodes });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
        None => unavailable(),
    }
}

async fn status(asks: Asks) -> Response {
    answer(&asks, Ask::Status).await.map_or_else(unavailable, |status| Json(status).into_response())
}

async fn metrics(asks: Asks) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let text = answer(&asks, Ask::Metrics).await;
    text.map_or_else(unavailable, |text| (kind, text).into_response())
}

#[derive(Deserialize)]
struct Format {
    format: Option<String>,
}

async fn series(asks: Asks, Query(Format { format }): Query<Format>) -> Response {
    let Some(samples) = answer(&asks, Ask::Series).await else { return unavailable() };
    match format.as_deref() {
        None | Some("json") => Json(samples).into_response(),
        Some("csv") => ([(header::CONTENT_TYPE, "text/csv")], csv(&samples)).into_response(),
        Some(other) => {
            let error = format!("no format '{other}': json or csv");
            (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
        }
    }
}

async fn nothing(uri: Uri) -> Response {
    let error = format!("nothing at {}: try /health, /status, /metrics or /series", uri.path());
    (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response()
}
