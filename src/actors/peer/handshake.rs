//! Introductions, on both sides: dialling a node and saying who this one is, and receiving who dials.
//!
//! A dialler is a stranger until it has introduced itself in time as a node of the cluster; there are
//! [`STRANGERS_MAX`] of them at a time. What becomes of an introduction the link decides.

use super::{Address, Introduced, Peer};
use crate::actors::book::Book;
use crate::cluster::barrier::Hello;
use crate::cluster::link::{Complaints, DialFailure, Greeting};
use crate::net::frame;
use crate::net::listen::{Acceptor, TcpListener, TcpStream, dial};
use crate::net::packet::Packet;
use actix::{Context, Handler};
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// How long a stranger may take to introduce itself.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Bytes of an introduction at most: a node that dials is a stranger until then.
pub(super) const HELLO_BYTES_MAX: usize = 64 << 10;

/// Streams of strangers at a time: the oldest gives way.
const STRANGERS_MAX: usize = 64;

/// A number that a stranger cannot foresee.
pub(super) fn nonce() -> u64 {
    // The keys of the standard library's hasher come from the system's random numbers.
    RandomState::new().build_hasher().finish()
}

/// Dials a node and introduces this one. How long that may take the link decides.
pub(super) async fn introduce(
    address: Address,
    hello: Hello,
) -> Result<(TcpStream, Hello, Vec<u8>), DialFailure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => DialFailure::NobodyListens,
        io::ErrorKind::InvalidData => {
            let Address { host, port } = &address;
            DialFailure::Garbled(format!("{host}:{port}"), error.to_string())
        }
        _ => DialFailure::Unreachable(error.to_string()),
    };
    let mut stream = dial(&address.host, address.port).await.map_err(failed)?;
    greet(&mut stream, &Packet::Hello(hello)).await.map_err(failed)?;
    match listen_to(&mut stream).await.map_err(failed)? {
        (Packet::Hello(hello), rest) => Ok((stream, hello, rest)),
        (Packet::Refused, _) => Err(DialFailure::Refused),
        _ => Err(failed(garbled("it does not introduce itself"))),
    }
}

fn garbled(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn greet(stream: &mut TcpStream, packet: &Packet) -> io::Result<()> {
    let mut out = Vec::new();
    frame::push(packet, &mut out).map_err(|error| io::Error::other(error.to_string()))?;
    tokio::io::AsyncWriteExt::write_all(stream, &out).await
}

/// Reads the first packet of a stream.
async fn listen_to(stream: &mut TcpStream) -> io::Result<(Packet, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut packets = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if frame::missing(&buffer) > HELLO_BYTES_MAX {
            return Err(garbled("its introduction is too long"));
        }
        // One frame at a time: what follows the introduction is not for here.
        let whole = frame::first(&mut buffer).map_err(|error| garbled(&error.to_string()))?;
        packets.extend(whole);
        if let Some(packet) = packets.pop() {
            return Ok((packet, buffer));
        }
    }
}

/// Takes the streams that others dial. A dialler is a stranger until it has introduced itself in time
/// as a node of the cluster, and even then it has to be proven: see [`crate::cluster::link`].
pub async fn accept(listener: TcpListener, book: Arc<Book>) {
    let epoch = Instant::now();
    let mut listener = Acceptor::new(listener, b"");
    let mut complaints = Complaints::default();
    let mut strangers: JoinSet<Result<(), String>> = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    let mut complain = |why: String| {
        if let Some(line) = complaints.note(why, epoch.elapsed().as_millis() as u64) {
            log::warn!(target: "peer", "{line}");
        }
    };
    loop {
        let accepted = tokio::select! {
            Some(met) = strangers.join_next() => {
                if let Ok(Err(why)) = met {
                    complain(why);
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                complain("no file descriptor left for a node".into());
                continue;
            }
            Err(error) => {
                complain(format!("cannot accept a node: {error}"));
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        order.retain(|stranger| !stranger.is_finished());
        if order.len() >= STRANGERS_MAX
            && let Some(oldest) = order.pop_front()
        {
            oldest.abort();
        }
        let received = receive(stream, from.to_string(), book.clone());
        order.push_back(strangers.spawn_local(received));
    }
}

/// Receives a stream that was dialled: a node introduces itself, anything else is shown out.
async fn receive(mut stream: TcpStream, from: String, book: Arc<Book>) -> Result<(), String> {
    let refused = |why: &str| Err(format!("refused {from}: {why}"));
    match timeout(HANDSHAKE_MAX, listen_to(&mut stream)).await {
        Ok(Ok((Packet::Hello(hello), rest))) => match book.peers.get(&hello.node) {
            Some(peer) => {
                peer.do_send(Introduced { hello, from, stream, rest });
                Ok(())
            }
            None => {
                turn_out(stream).await;
                refused(&format!(
                    "node {} is not in the cluster file of node {}",
                    hello.node, book.node
                ))
            }
        },
        Ok(Ok(_)) => refused("it does not introduce itself"),
        Ok(Err(error)) => refused(&error.to_string()),
        Err(_) => refused("it does not introduce itself in time"),
    }
}

/// Tells a stranger that it is refused, and nothing else.
async fn turn_out(mut stream: TcpStream) {
    // It may have gone already.
    let _ = timeout(HANDSHAKE_MAX, greet(&mut stream, &Packet::Refused)).await;
}

/// Tells a node that it has been started again since, or was before and does not know it.
async fn tell(mut stream: TcpStream, own: Hello) {
    let _ = timeout(HANDSHAKE_MAX, greet(&mut stream, &Packet::Hello(own))).await;
}

impl Handler<Introduced> for Peer {
    type Result = ();

    fn handle(&mut self, introduced: Introduced, ctx: &mut Context<Self>) {
        let Introduced { hello, from, stream, rest } = introduced;
        let (id, now) = (self.next_stream + 1, self.now_ms());
        match self.link.introduced(id, hello, &from, now, &mut self.effects) {
            Greeting::Keep(own) => {
                if let Err(error) = stream.set_nodelay(true) {
                    log::debug!(target: "peer", "node {}: {error}", self.other);
                }
                self.open(stream, rest, ctx);
                self.queue_on(id, &Packet::Hello(own), ctx);
            }
            Greeting::Tell(own) => drop(actix_rt::spawn(tell(stream, own))),
            Greeting::LetGo => drop(stream),
            Greeting::Refuse => drop(actix_rt::spawn(turn_out(stream))),
        }
        self.carry(ctx);
    }
}
