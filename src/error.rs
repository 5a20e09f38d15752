//! What can go wrong, sorted by who must act.
//!
//! What a client did wrong is not here: it is a reply in Redis's words, made where it is found.

use crate::ids::NodeId;
use std::path::PathBuf;
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
    /// The operator: the disk is full. There is a way on once there is room.
    Full(Full),
    /// The operator: a file holds what was not written there. Nothing is served from it.
    Corrupt(Corrupt),
    /// The operator: the data directory belongs to another node, is in use, or is none. The text
    /// names it and says why.
    Directory(String),
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

/// A disk without room for what must be written.
#[derive(Debug)]
pub struct Full {
    /// The file that had to grow.
    pub file: PathBuf,
    /// By how many bytes.
    pub needed: u64,
    /// What the machine said.
    pub cause: io::Error,
}

/// A file that was damaged after it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The damaged file.
    pub file: PathBuf,
    /// The first byte, counted from the file's start, that cannot be believed.
    pub offset: u64,
    /// What is wrong there.
    pub problem: String,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The process's exit code: 2 when what it was given is wrong, 1 when the machine is in the
    /// way.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Arguments(_) | Error::Directory(_) => 2,
            Error::Listen(_) | Error::Io(..) | Error::Full(_) | Error::Corrupt(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(problem) | Error::Arguments(problem) | Error::Directory(problem) => {
                f.write_str(problem)
            }
            Error::Listen(listen) => listen.fmt(f),
            Error::Io(tried, cause) => write!(f, "{tried}: {cause}"),
            Error::Full(Full { file, needed, cause }) => {
                write!(f, "no room for {needed} more bytes of {}: {cause}", file.display())
            }
            Error::Corrupt(Corrupt { file, offset, problem }) => {
                write!(f, "{} is damaged at byte {offset}: {problem}", file.display())
            }
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
            Error::Listen(Listen { cause, .. })
            | Error::Io(_, cause)
            | Error::Full(Full { cause, .. }) => Some(cause),
            Error::Config(_) | Error::Arguments(_) | Error::Corrupt(_) | Error::Directory(_) => {
                None
            }
        }
    }
}
