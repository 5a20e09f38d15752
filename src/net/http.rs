//! HTTP: how a node is, for people, load balancers and Prometheus.
//!
//! The handlers know no actor: they put an [`Ask`] into a queue and await its answer.
//!
//! A client is a stranger: connections are counted, one that does not say what it wants is
//! closed, and sooner if another one needs its place. (`axum::serve` has no such limits, so the
//! connections are hyper's.)

use crate::metrics::{Sample, csv};
use crate::net::listen::{Acceptor, TcpListener};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

/// Connections at a time. They are for people and their tools, not for load.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a connection may take to send a request's head, its idle time before it included.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long accepting rests when there is nothing to accept with.
const PAUSE: Duration = Duration::from_millis(100);

/// What those beyond the limit are told.
const CROWDED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 32\r\nconnection: close\r\n\r\n{\"error\":\"too many connections\"}";

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
    /// It is formed, and cannot serve these partitions.
    Unserved(Vec<Unserved>),
}

/// A partition that a node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unserved {
    /// The partition.
    pub partition: u16,
    /// What is missing, in words.
    pub why: String,
}

/// Serves until `stop` is ready, so many connections at a time.
///
/// # Errors
/// None so far: what befalls one connection is no matter of the others.
pub async fn serve(
    listener: TcpListener,
    asks: mpsc::Sender<Ask>,
    connections_max: usize,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/series", get(series))
        .fallback(nothing)
        .method_not_allowed_fallback(only_get)
        .with_state(asks);
    serve_within(listener, router, HEAD_MAX, connections_max, stop).await;
    Ok(())
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    head_max: Duration,
    connections_max: usize,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let mut listener = Acceptor::new(listener, CROWDED);
    let mut connections = JoinSet::new();
    let mut places: VecDeque<Place> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(Some((stream, _))) => stream,
            Ok(None) => continue,
            Err(error) => {
                log::warn!(target: "http", "cannot accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        places.retain(|place| !place.task.is_finished());
        if places.len() >= connections_max {
            let idle = places.iter().position(|place| !place.is_busy.load(Ordering::Relaxed));
            match idle.and_then(|oldest| places.remove(oldest)) {
                Some(oldest) => oldest.task.abort(),
                None => {
                    listener.turn_away(stream);
                    continue;
                }
            }
        }
        let is_busy = Arc::new(AtomicBool::new(false));
        let (router, busy) = (TowerToHyperService::new(router.clone()), is_busy.clone());
        let service = service_fn(move |request| {
            busy.store(true, Ordering::Relaxed);
            let (response, busy) = (router.call(request), busy.clone());
            async move {
                let response = response.await;
                busy.store(false, Ordering::Relaxed);
                response
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_max)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let task = connections.spawn(async move {
            if let Err(error) = connection.await {
                log::debug!(target: "http", "a connection ended: {error}");
            }
        });
        places.push_back(Place { task, is_busy });
    }
}

/// A connection, in the order of their coming.
struct Place {
    task: AbortHandle,
    /// A request of it is being answered.
    is_busy: Arc<AtomicBool>,
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
        Some(Health::Unserved(partitions)) => {
            let body = json!({ "status": "unserved", "partitions": partitions });
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

async fn only_get() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": "use GET" }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// Runs `client` against a server whose node answers as `node` does.
    fn with_node<F: Future<Output = ()>>(
        mut node: impl FnMut(Ask),
        client: impl FnOnce(SocketAddr) -> F,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let (asks, mut asked) = mpsc::channel(1);
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = serve(listener, asks, CONNECTIONS_MAX, async {
                let _ = stopped.await;
            });
            let answering = async {
                while let Some(ask) = asked.recv().await {
                    node(ask);
                }
            };
            let client = async {
                client(address).await;
                drop(stop);
            };
            // All three end, or the test does not: a stopped server keeps no way to ask.
            let (served, (), ()) = tokio::join!(serving, answering, client);
            served.expect("served until it was stopped");
        });
    }

    /// The status and the body of a request's response, over a connection of its own.
    async fn request(address: SocketAddr, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("reads");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        let line = head.lines().next().unwrap_or_default();
        (line.trim_start_matches("HTTP/1.1 ").to_owned(), body.to_owned())
    }

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        request(address, "GET", path).await
    }

    fn pair(status: &str, body: &str) -> (String, String) {
        (status.to_owned(), body.to_owned())
    }

    #[test]
    fn health_names_who_is_missing_until_the_node_serves() {
        let mut waiting = true;
        let node = |ask| {
            let Ask::Health(reply) = ask else { return };
            let health = if waiting { Health::Waiting(vec![2, 3]) } else { Health::Ready };
            waiting = false;
            let _ = reply.send(health);
        };
        with_node(node, async |address| {
            let missing = r#"{"for":[2,3],"status":"waiting"}"#;
            assert_eq!(get(address, "/health").await, pair("503 Service Unavailable", missing));
            assert_eq!(get(address, "/health").await, pair("200 OK", r#"{"status":"ready"}"#));
        });
    }

    #[test]
    fn figures_are_passed_on() {
        let node = |ask| match ask {
            Ask::Health(_) => {}
            Ask::Status(reply) => drop(reply.send(json!({ "node": 2 }))),
            Ask::Metrics(reply) => drop(reply.send("quorate_up 1\n".to_owned())),
            Ask::Series(reply) => {
                drop(reply.send(vec![Sample { time: 9, reads: 7, ..Sample::default() }]));
            }
        };
        with_node(node, async |address| {
            assert_eq!(get(address, "/status").await, pair("200 OK", r#"{"node":2}"#));
            assert_eq!(get(address, "/metrics").await, pair("200 OK", "quorate_up 1\n"));
            let rows = "time,reads,writes,transactions,operations,errors\n9,7,0,0,0,0\n";
            assert_eq!(get(address, "/series?format=csv").await, pair("200 OK", rows));
            for path in ["/series", "/series?format=json"] {
                let (status, body) = get(address, path).await;
                let samples: Value = serde_json::from_str(&body).expect("JSON");
                assert_eq!(status, "200 OK");
                assert_eq!((&samples[0]["time"], &samples[0]["reads"]), (&json!(9), &json!(7)));
            }
        });
    }

    #[test]
    fn who_does_not_say_what_it_wants_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let client = async {
                let mut stream = TcpStream::connect(address).await.expect("connects");
                stream.write_all(b"GET /health HTTP/1.1\r\nhost:").await.expect("writes");
                let mut response = Vec::new();
                // Ends only when the server closes.
                let _ = stream.read_to_end(&mut response).await;
                response
            };
            let router = Router::new().fallback(nothing);
            let head_max = Duration::from_millis(50);
            let serving =
                serve_within(listener, router, head_max, CONNECTIONS_MAX, std::future::pending());
            let response = tokio::select! {
                response = client => response,
                () = serving => panic!("it was not told to stop"),
            };
            assert!(!response.starts_with(b"HTTP/1.1 2"), "{response:?}");
        });
    }

    #[test]
    fn there_is_a_limit_to_connections_that_are_being_answered() {
        // This node answers no client, so one that asks stays.
        let mut waiting = Vec::new();
        let (told, mut asked) = mpsc::unbounded_channel();
        with_node(
            |ask| {
                waiting.push(ask);
                let _ = told.send(());
            },
            async |address| {
                let mut busy = Vec::new();
                for _ in 0..CONNECTIONS_MAX {
                    let mut stream = TcpStream::connect(address).await.expect("connects");
                    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
                    stream.write_all(request).await.expect("writes");
                    asked.recv().await.expect("the node is asked");
                    busy.push(stream);
                }
                let crowded =
                    pair("503 Service Unavailable", r#"{"error":"too many connections"}"#);
                assert_eq!(get(address, "/nothing").await, crowded);
                drop(busy);
                // Places are free again once their ends are noticed.
                while get(address, "/nothing").await == crowded {
                    tokio::task::yield_now().await;
                }
            },
        );
    }

    #[test]
    fn silent_connections_give_way() {
        let node = |ask| {
            if let Ask::Health(reply) = ask {
                let _ = reply.send(Health::Ready);
            }
        };
        with_node(node, async |address| {
            let mut silent = Vec::new();
            for _ in 0..2 * CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.expect("connects"));
            }
            let ready = pair("200 OK", r#"{"status":"ready"}"#);
            assert_eq!(get(address, "/health").await, ready);
            // The oldest have gone.
            let mut piece = [0; 1];
            assert_eq!(silent[0].read(&mut piece).await.expect("an end"), 0);
        });
    }

    #[test]
    fn health_names_the_partitions_that_are_not_served() {
        let node = |ask| {
            let Ask::Health(reply) = ask else { return };
            let why = "it has no leader".to_owned();
            let _ = reply.send(Health::Unserved(vec![Unserved { partition: 4, why }]));
        };
        with_node(node, async |address| {
            let body = concat!(
                r#"{"partitions":[{"partition":4,"why":"it has no leader"}],"#,
                r#""status":"unserved"}"#
            );
            assert_eq!(get(address, "/health").await, pair("503 Service Unavailable", body));
        });
    }

    #[test]
    fn what_is_not_served_is_said_in_json() {
        // This node drops every ask, as one that is stopping does.
        with_node(drop, async |address| {
            for path in ["/health", "/status", "/metrics", "/series"] {
                let silent = r#"{"error":"the node does not answer"}"#;
                assert_eq!(get(address, path).await, pair("503 Service Unavailable", silent));
            }
            let nothing = r#"{"error":"nothing at /x: try /health, /status, /metrics or /series"}"#;
            assert_eq!(get(address, "/x?y").await, pair("404 Not Found", nothing));
            let posted = request(address, "POST", "/health").await;
            assert_eq!(posted, pair("405 Method Not Allowed", r#"{"error":"use GET"}"#));
        });
        let node = |ask| {
            if let Ask::Series(reply) = ask {
                drop(reply.send(Vec::new()));
            }
        };
        with_node(node, async |address| {
            let format = r#"{"error":"no format 'x': json or csv"}"#;
            assert_eq!(get(address, "/series?format=x").await, pair("400 Bad Request", format));
        });
    }
}
