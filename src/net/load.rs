//! A load generator for anything that speaks RESP: closed loops of pre-encoded requests.
//!
//! Each connection sends a batch of requests in one write, waits until all its replies are there
//! and sends the next. One thread serves all connections through epoll; encoding
//! ([`requests`]) and skipping replies ([`replies`]) cost a few dozen nanoseconds a request, so
//! that the server, not the generator, is what gets measured. Where generator and server share
//! cores, every cycle saved here is one the server can use.
//!
//! A closed loop flatters a server that stalls: while it stalls no connection asks, and a second without
//! service counts as one slow reply a connection, not as the thousands that would have been asked
//! in it. So read the latencies together with the replies of each second.
//!
//! The load is the same for the same seed: one seed gives each thread one sequence of requests.
//! Which connection carries which depends on who answers first.

// A generator stands outside every node and measures real time, so it may read the real clock.
#![allow(clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use replies::{NotResp, Replies};
use requests::{Dice, Requests, Workload};
use tally::Tally;
use worker::{Connection, Report, Worker};

pub mod replies;
pub mod requests;
pub mod tally;
mod worker;

/// A server that takes longer to accept or to answer is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests a write while filling, at least: filling is not measured, so it may hurry.
const FILL_PIPELINE_MIN: u32 = 64;

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Asks for this long.
    Elapsed(Duration),
    /// Asks this often.
    Requests(u64),
}

/// Who asks whom for what.
#[derive(Clone, Debug)]
pub struct Load {
    /// The servers as `host:port`; connections are dealt to them in turn.
    pub targets: Vec<String>,
    /// Connections.
    pub clients: usize,
    /// Threads that share the connections.
    pub threads: usize,
    /// What is asked.
    pub workload: Workload,
    /// How long the load runs before anything is counted.
    pub warmup: Duration,
    /// When it ends, counted from the end of the warm-up.
    pub until: Until,
    /// What all draws follow from.
    pub seed: u64,
}

/// What a load came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the end of the warm-up to the last reply.
    pub elapsed: Duration,
    /// Everything answered in it.
    pub tally: Tally,
}

/// Why a load could not be run to its end.
#[derive(Debug)]
pub enum LoadError {
    /// No connection to this target.
    Unreachable(String, io::Error),
    /// The target answers, but with this error, before any load.
    NotReady(String, String),
    /// A connection broke, or was closed by the target.
    Lost(String, io::Error),
    /// The target stopped answering.
    Silent(String),
    /// The target's bytes are not replies.
    NotResp(String, NotResp),
    /// The target sent more replies than it was asked for.
    Unasked(String),
    /// Keys could not be written beforehand: how many, and what the first answer said.
    NotFilled(u64, String),
    /// The generator's own machine refused something.
    Machine(io::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(target, error) => write!(f, "cannot reach {target}: {error}"),
            Self::NotReady(target, answer) => write!(f, "{target} is not ready: {answer}"),
            Self::Lost(target, error) => write!(f, "lost the connection to {target}: {error}"),
            Self::Silent(target) => {
                write!(f, "{target} has not answered for {} s", PATIENCE.as_secs())
            }
            Self::NotResp(target, error) => write!(f, "cannot read {target}'s replies: {error}"),
            Self::Unasked(target) => write!(f, "{target} sent more replies than requests"),
            Self::NotFilled(errors, first) => {
                write!(
                    f,
                    "{errors} keys could not be written beforehand, the first because: {first}"
                )
            }
            Self::Machine(error) => write!(f, "cannot run the generator: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl Load {
    /// Asks every target one question, so that a target that is down or still loading is told
    /// apart from a slow one before anything is measured.
    pub fn probe(&self) -> Result<(), LoadError> {
        self.targets.iter().try_for_each(|target| probe(target))
    }

    /// Writes every key once.
    pub fn fill(&self) -> Result<Outcome, LoadError> {
        let pipeline = self.workload.pipeline.max(FILL_PIPELINE_MIN);
        let workload = Workload { pipeline, ..self.workload.clone() };
        let supply = self.shares(workload.keys).map(|keys| Requests::filling(&workload, keys));
        let until = Until::Requests(workload.keys);
        let outcome =
            self.drive(supply.collect(), Duration::ZERO, until, |_, _| ControlFlow::Continue(()))?;
        match &outcome.tally.first_error {
            Some(error) => Err(LoadError::NotFilled(outcome.tally.errors, error.clone())),
            None => Ok(outcome),
        }
    }

    /// Runs the load and tells each whole second's replies as it ends; seconds count from 1. A
    /// break ends the load early.
    pub fn run(
        &self,
        on_second: impl FnMut(u64, &Tally) -> ControlFlow<()>,
    ) -> Result<Outcome, LoadError> {
        let dice = (0..self.threads as u64).map(|thread| Dice::new(self.seed, thread));
        let supply = dice.map(|dice| Requests::drawn(&self.workload, dice));
        self.drive(supply.collect(), self.warmup, self.until, on_second)
    }

    /// Deals a total to the threads, as evenly as it goes.
    fn shares(&self, total: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let threads = self.threads as u64;
        let bound =
            move |thread| (u128::from(total) * u128::from(thread) / u128::from(threads)) as u64;
        (0..threads).map(move |thread| bound(thread)..bound(thread + 1))
    }

    fn drive(
        &self,
        supply: Vec<Requests>,
        warmup: Duration,
        until: Until,
        mut on_second: impl FnMut(u64, &Tally) -> ControlFlow<()>,
    ) -> Result<Outcome, LoadError> {
        assert!(self.threads >= 1 && self.clients >= self.threads, "each thread has a connection");
        let mut connections: Vec<Vec<Connection>> = Vec::new();
        connections.resize_with(self.threads, Vec::new);
        for client in 0..self.clients {
            let target = &self.targets[client % self.targets.len()];
            connections[client % self.threads].push(connect(target)?);
        }
        // Counted from here, so that connecting is not measured.
        let origin = Instant::now() + warmup;
        let end = match until {
            Until::Elapsed(duration) => Some(origin + duration),
            Until::Requests(_) => None,
        };
        let requests = match until {
            Until::Elapsed(_) => None,
            Until::Requests(total) => Some(total),
        };
        let give_up = AtomicBool::new(false);
        let (reports, inbox) = mpsc::channel();
        thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut shares = self.shares(requests.unwrap_or_default());
            for (supply, connections) in supply.into_iter().zip(connections) {
                let left = shares.next().filter(|_| requests.is_some()).map(|s| s.end - s.start);
                let reports = reports.clone();
                let worker = Worker::new(connections, supply, origin, end, left, reports, &give_up)
                    .map_err(LoadError::Machine)?;
                let builder = thread::Builder::new().name("load".to_owned());
                let spawned = builder.spawn_scoped(scope, || {
                    let done = worker.run();
                    if done.is_err() {
                        give_up.store(true, Ordering::Relaxed);
                    }
                    done
                });
                // Dropping out of here would wait for the threads that already run.
                threads.push(spawned.map_err(|error| {
                    give_up.store(true, Ordering::Relaxed);
                    LoadError::Machine(error)
                })?);
            }
            // The inbox ends when the last worker is gone.
            drop(reports);
            let tally = collect(&inbox, self.threads, |second, tally| {
                if on_second(second, tally).is_break() {
                    give_up.store(true, Ordering::Relaxed);
                }
            });
            let mut last_reply = origin;
            for thread in threads {
                match thread.join() {
                    Ok(done) => last_reply = last_reply.max(done?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(Outcome { elapsed: last_reply - origin, tally })
        })
    }
}

/// Adds up the workers' seconds; a second is told once every worker has reported it.
fn collect(
    inbox: &mpsc::Receiver<Report>,
    workers: usize,
    mut on_second: impl FnMut(u64, &Tally),
) -> Tally {
    let mut total = Tally::default();
    let mut open: BTreeMap<u64, (usize, Tally)> = BTreeMap::new();
    for report in inbox {
        total.add(&report.tally);
        if !report.whole {
            continue;
        }
        let (reported, tally) = open.entry(report.second).or_default();
        *reported += 1;
        tally.add(&report.tally);
        if *reported == workers {
            on_second(report.second, tally);
            open.remove(&report.second);
        }
    }
    total
}

fn connect(target: &str) -> Result<Connection, LoadError> {
    let socket = dial(target).and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(mio::net::TcpStream::from_std(socket))
    });
    match socket {
        Ok(socket) => Ok(Connection::new(target.to_owned(), socket)),
        Err(error) => Err(LoadError::Unreachable(target.to_owned(), error)),
    }
}

fn dial(target: &str) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn probe(target: &str) -> Result<(), LoadError> {
    let mut socket =
        dial(target).map_err(|error| LoadError::Unreachable(target.to_owned(), error))?;
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LoadError::Silent(target.to_owned()),
        _ => LoadError::Lost(target.to_owned(), error),
    };
    socket.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
    // A question about a key, because a server that is not ready may still answer PING.
    socket.write_all(b"*2\r\n$6\r\nEXISTS\r\n$16\r\nkey:000000000000\r\n").map_err(lost)?;
    let mut replies = Replies::default();
    let mut buffer = [0; 1024];
    loop {
        let read = match socket.read(&mut buffer) {
            // This process was stopped, as by Ctrl-Z, and goes on (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(lost)?,
        };
        if read == 0 {
            return Err(lost(closed()));
        }
        let scanned = replies
            .scan(&buffer[..read])
            .map_err(|error| LoadError::NotResp(target.to_owned(), error))?;
        if let Some(error) = replies.take_first_error() {
            return Err(LoadError::NotReady(target.to_owned(), error));
        }
        if scanned.replies > 0 {
            return Ok(());
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")
}

#[cfg(test)]
mod tests;
