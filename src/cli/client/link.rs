//! The client's connection: requests out, whole replies in, one at a time.

use crate::net::resp::{ReplyError, ReplyReader, Value, encode_request};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no reply.
#[derive(Debug)]
pub(in crate::cli) enum LinkError {
    /// No process listens there.
    Connect(String, io::Error),
    /// The server closed the connection. Whether the command took effect is not known.
    Closed,
    /// The connection broke. Whether the command took effect is not known.
    Broken(io::Error),
    /// What came is no reply.
    NoReply(ReplyError),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Connect(address, error) => {
                write!(f, "Could not connect to {address}: {}", bare(error))
            }
            LinkError::Closed => f.write_str("Error: Server closed the connection"),
            LinkError::Broken(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    f.write_str("Error: no answer in time")
                }
                _ => write!(f, "Error: {}", bare(error)),
            },
            LinkError::NoReply(error) => write!(f, "Error: Protocol error, {error}"),
        }
    }
}

/// The system's words for an error, without its number.
fn bare(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// A connection that is there or not.
#[derive(Debug)]
pub(in crate::cli) struct Link {
    host: String,
    port: u16,
    stream: Option<TcpStream>,
    /// How long the server may be silent; for ever, if this is not said.
    patience: Option<Duration>,
    /// What came and has not been returned.
    input: Vec<u8>,
    reader: ReplyReader,
}

impl Link {
    /// A link to a server; nothing is connected yet.
    pub(in crate::cli) fn new(host: String, port: u16) -> Link {
        let (input, reader) = (Vec::new(), ReplyReader::new());
        Link { host, port, stream: None, patience: None, input, reader }
    }

    /// The same, to a server that may be silent for so long and not longer.
    pub(in crate::cli) fn with_patience(self, patience: Duration) -> Link {
        Link { patience: Some(patience), ..self }
    }

    /// The server's address, as people write it.
    pub(in crate::cli) fn address(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether a connection is there that the server has not closed meanwhile.
    pub(in crate::cli) fn is_alive(&mut self) -> bool {
        let Some(stream) = &self.stream else { return false };
        let mut byte = [0];
        // A peek that would have to wait says that all is well.
        let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut byte));
        let alive = match peeked {
            Ok(seen) => seen > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        let alive = stream.set_nonblocking(false).is_ok() && alive;
        if !alive {
            self.stream = None;
        }
        alive
    }

    /// Connects, in place of any connection before.
    pub(in crate::cli) fn connect(&mut self) -> Result<(), LinkError> {
        self.stream = None;
        self.input.clear();
        self.reader = ReplyReader::new();
        let dialled = dial(&self.host, self.port).and_then(|stream| {
            stream.set_read_timeout(self.patience)?;
            stream.set_write_timeout(self.patience)?;
            Ok(stream)
        });
        let stream = dialled.map_err(|error| LinkError::Connect(self.address(), error))?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends a command.
    pub(in crate::cli) fn send(&mut self, words: &[Vec<u8>]) -> Result<(), LinkError> {
        let mut request = Vec::new();
        encode_request(words, &mut request);
        let Some(stream) = &mut self.stream else { return Err(LinkError::Closed) };
        let sent = stream.write_all(&request);
        self.live(sent)
    }

    /// Waits for the next reply, or news that was not asked for.
    pub(in crate::cli) fn receive(&mut self) -> Result<Value, LinkError> {
        loop {
            let whole = self.reader.next(&self.input);
            if let Some(length) = whole.map_err(|error| self.nonsense(error))? {
                let parsed = Value::parse(&self.input[..length]);
                self.input.drain(..length);
                return match parsed {
                    Ok(Some((value, _))) => Ok(value),
                    Ok(None) => Err(self.nonsense(ReplyError::Short)),
                    Err(error) => Err(self.nonsense(error)),
                };
            }
            let Some(stream) = &mut self.stream else { return Err(LinkError::Closed) };
            let mut piece = [0; 16 << 10];
            let read = match stream.read(&mut piece) {
                // This process was stopped, as by Ctrl-Z, and goes on (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read,
            };
            match self.live(read)? {
                0 => {
                    self.stream = None;
                    return Err(LinkError::Closed);
                }
                length => self.input.extend_from_slice(&piece[..length]),
            }
        }
    }

    /// A connection is over with its first error.
    fn live<T>(&mut self, result: io::Result<T>) -> Result<T, LinkError> {
        result.map_err(|error| {
            self.stream = None;
            match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
                _ => LinkError::Broken(error),
            }
        })
    }

    fn nonsense(&mut self, error: ReplyError) -> LinkError {
        self.stream = None;
        LinkError::NoReply(error)
    }
}

fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
