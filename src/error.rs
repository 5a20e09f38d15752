//! What can go wrong, sorted by who must act.
//!
//! What a client did wrong is not here: it is a reply in Redis's words, made where it is found.

use crate::ids::NodeId;
use std::{fmt, io};

/// The crate's error.
#[derive(Debug)]
pub enum Error {
    /// The operator: `cluster.yaml` says something impossible. The text names file, line and field.
    Config(String),
    /// The operator: the command line says something impossible.
    Arguments(String),
    /// The operator: a port cannot be listened on.
    Listen(Listen),
    /// The operator: the machine refuses something else; the text says what was tried.
    Io(String, io::Error),
}

/// A port that cannot be listened on.
#[derive(Debug)]
pub struct Listen {
    /// The node that wants it.
    pub node: NodeId,
    /// What for: `client`, `peer` or `http`.
    pub service: &'static str,
    /// The host it binds to.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What the machine said.
    pub cause: io::Error,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The process's exit code: 2 when what it was given is wrong, 1 when the machine is in the
    /// way.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Arguments(_) => 2,
            Error::Listen(_) | Error::Io(..) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(problem) | Error::Arguments(problem) => f.write_str(problem),
            Error::Listen(listen) => listen.fmt(f),
            Error::Io(tried, cause) => write!(f, "{tried}: {cause}"),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listen { node, service, host, port, cause } = self;
        match cause.kind() {
            io::ErrorKind::AddrInUse => write!(f, "port {port} is taken (node {node}, {service})"),
            _ => write!(f, "cannot listen on {host}:{port} (node {node}, {service}): {cause}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Listen(Listen { cause, .. }) | Error::Io(_, cause) => Some(cause),
            Error::Config(_) | Error::Arguments(_) => None,
        }
    }
}
