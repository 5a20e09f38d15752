//! Listening sockets and the streams between nodes and clients: the one place that names them.

use std::io;

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
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
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

/// Connects to `host:port`.
///
/// # Errors
/// As the operating system tells them.
pub async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
