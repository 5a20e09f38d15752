//! Listening sockets and the streams between nodes and clients: the one place that names them.

use futures::FutureExt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use tokio::net::TcpSocket;

pub use std::net::{SocketAddr, TcpStream as LooseStream};
pub use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
pub use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted. The usual 128 overflows when a few hundred clients
/// connect at once, and the one left over hangs for its whole retransmission time.
const BACKLOG: u32 = 4096;

/// Listens on `host:port`.
///
/// # Errors
/// When the host has no address here, or the port is taken.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A restarted node must not wait for the kernel to forget its old connections.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let mut addresses = tokio::net::lookup_host((host, port)).await?;
    let no_host = || io::Error::new(io::ErrorKind::NotFound, "no such host");
    bind(addresses.next().ok_or_else(no_host)?)
}

/// Takes what comes to a listener, also when the process has no file descriptor left: then one that
/// was kept for that is used to tell the newcomer, who would wait for ever else.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    /// Nothing but a descriptor.
    spare: Option<TcpSocket>,
    /// What those are told for whom there is no room.
    full: &'static [u8],
}

impl Acceptor {
    /// Accepts at `listener`, and says `full` to those for whom there is no descriptor.
    pub fn new(listener: TcpListener, full: &'static [u8]) -> Acceptor {
        Acceptor { listener, spare: spare(), full }
    }

    /// The next stream; none: one was turned away, for want of a descriptor.
    ///
    /// # Errors
    /// As the operating system tells them.
    pub async fn accept(&mut self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        if self.spare.is_none() {
            self.spare = spare();
        }
        match self.listener.accept().await {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if is_exhausted(&error) && self.spare.take().is_some() => {
                if let Some(Ok((stream, _))) = self.listener.accept().now_or_never() {
                    self.turn_away(stream);
                    return Ok(None);
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells a stream that there is no room for it, and closes it.
    pub fn turn_away(&self, stream: TcpStream) {
        let Ok(mut stream) = stream.into_std() else { return };
        // A client that cannot take even this is told by the closing.
        let _ = stream.write(self.full);
        let _ = stream.shutdown(Shutdown::Write);
        // Closing with something unread would take the answer back.
        let _ = stream.read(&mut [0; 4096]);
    }
}

fn spare() -> Option<TcpSocket> {
    TcpSocket::new_v4().ok()
}

/// Whether an error says that the process or the machine has no file descriptor left.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// "Too many open files", in the process and in the whole system: the same numbers on all Unixes.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// Connects to `host:port`.
///
/// # Errors
/// As the operating system tells them.
pub async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
