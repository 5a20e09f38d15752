//! One thread's event loop over its share of the connections.
//!
//! Sockets are registered once for reading and writing, and their events are edges: an edge comes
//! when bytes arrive or room returns, so a socket costs one read and one write a batch and no
//! change of registration. A read that does not fill the buffer has emptied the socket, whatever
//! arrives later is a new edge.

use std::io::{self, Read, Write};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::replies::Replies;
use super::requests::{ByKind, Requests};
use super::tally::Tally;
use super::{LoadError, PATIENCE, closed};

/// Seconds end within this, whether or not anything arrives.
const TICK: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 64 * 1024;
const EVENTS_MAX: usize = 256;
const SECOND: Duration = Duration::from_secs(1);

/// One second of one worker.
#[derive(Debug)]
pub(super) struct Report {
    /// Which second, counted from 1.
    pub(super) second: u64,
    /// Whether it lasted to its end.
    pub(super) whole: bool,
    pub(super) tally: Tally,
}

/// A client: it has at most one batch under way.
#[derive(Debug)]
pub(super) struct Connection {
    target: String,
    socket: TcpStream,
    replies: Replies,
    /// Replies that the batch under way still lacks.
    awaited: u32,
    /// Error replies of the batch under way.
    errors: u32,
    kinds: ByKind<u32>,
    sent_at: Option<Instant>,
    /// The end of a batch for which the socket had no room yet.
    unsent: Vec<u8>,
}

impl Connection {
    pub(super) fn new(target: String, socket: TcpStream) -> Self {
        Self {
            target,
            socket,
            replies: Replies::default(),
            awaited: 0,
            errors: 0,
            kinds: ByKind::default(),
            sent_at: None,
            unsent: Vec::new(),
        }
    }

    fn lost(&self, error: io::Error) -> LoadError {
        LoadError::Lost(self.target.clone(), error)
    }
}

/// A thread's share of the load.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    poll: Poll,
    connections: Vec<Connection>,
    requests: Requests,
    /// What comes before is warm-up.
    origin: Instant,
    end: Option<Instant>,
    /// Requests still to send, if their number is what ends the load.
    left: Option<u64>,
    reports: mpsc::Sender<Report>,
    give_up: &'a AtomicBool,
    buffer: Vec<u8>,
    /// Connections with a batch under way.
    busy: usize,
    second: u64,
    second_ends: Instant,
    tally: Tally,
    last_reply: Instant,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        mut connections: Vec<Connection>,
        requests: Requests,
        origin: Instant,
        end: Option<Instant>,
        left: Option<u64>,
        reports: mpsc::Sender<Report>,
        give_up: &'a AtomicBool,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, connection) in connections.iter_mut().enumerate() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut connection.socket, Token(index), interest)?;
        }
        Ok(Self {
            poll,
            connections,
            requests,
            origin,
            end,
            left,
            reports,
            give_up,
            buffer: vec![0; READ_BYTES],
            busy: 0,
            second: 1,
            second_ends: origin + SECOND,
            tally: Tally::default(),
            last_reply: origin,
        })
    }

    /// Runs to the end and returns the moment of the last reply.
    pub(super) fn run(mut self) -> Result<Instant, LoadError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut quiet = Duration::ZERO;
        let now = Instant::now();
        for index in 0..self.connections.len() {
            self.send(index, now)?;
        }
        while self.busy > 0 && !self.give_up.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(LoadError::Machine(error));
                }
                _ => {}
            }
            if events.is_empty() {
                self.close_seconds(Instant::now());
                quiet += TICK;
                if quiet >= PATIENCE {
                    return Err(LoadError::Silent(self.silent_target()));
                }
                continue;
            }
            quiet = Duration::ZERO;
            for event in &events {
                let Token(index) = event.token();
                if event.is_writable() && !self.connections[index].unsent.is_empty() {
                    self.send_rest(index)?;
                }
                if event.is_readable() {
                    self.receive(index)?;
                }
            }
        }
        self.report(false);
        Ok(self.last_reply)
    }

    /// Sends the next batch, unless the load is over.
    fn send(&mut self, index: usize, now: Instant) -> Result<(), LoadError> {
        let over = self.end.is_some_and(|end| now >= end);
        let warm = now >= self.origin;
        let limit = self.left.filter(|_| warm).unwrap_or(u64::MAX);
        let batch = if over { None } else { self.requests.next_batch(limit) };
        let Some(batch) = batch else {
            self.busy -= usize::from(self.connections[index].sent_at.take().is_some());
            return Ok(());
        };
        let connection = &mut self.connections[index];
        self.busy += usize::from(connection.sent_at.replace(now).is_none());
        connection.kinds = batch.kinds;
        connection.awaited = batch.replies;
        if warm && let Some(left) = &mut self.left {
            *left -= u64::from(batch.kinds.iter().sum::<u32>());
        }
        let sent = write(&mut connection.socket, batch.bytes);
        let sent = sent.map_err(|error| connection.lost(error))?;
        connection.unsent.extend_from_slice(&batch.bytes[sent..]);
        Ok(())
    }

    fn send_rest(&mut self, index: usize) -> Result<(), LoadError> {
        let connection = &mut self.connections[index];
        let sent = write(&mut connection.socket, &connection.unsent);
        let sent = sent.map_err(|error| connection.lost(error))?;
        connection.unsent.drain(..sent);
        Ok(())
    }

    /// Reads what is there; when it completes the batch, counts it and sends the next.
    fn receive(&mut self, index: usize) -> Result<(), LoadError> {
        loop {
            let connection = &mut self.connections[index];
            let read = match connection.socket.read(&mut self.buffer) {
                Ok(0) => return Err(connection.lost(closed())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(connection.lost(error)),
            };
            let scanned = connection
                .replies
                .scan(&self.buffer[..read])
                .map_err(|error| LoadError::NotResp(connection.target.clone(), error))?;
            let Some(awaited) = connection.awaited.checked_sub(scanned.replies) else {
                return Err(LoadError::Unasked(connection.target.clone()));
            };
            connection.awaited = awaited;
            connection.errors += scanned.errors;
            if scanned.replies > 0 && awaited == 0 {
                // One look at the clock ends this batch and begins the next.
                let now = Instant::now();
                self.count(index, now);
                self.send(index, now)?;
            }
            if read < READ_BYTES {
                return Ok(());
            }
        }
    }

    fn count(&mut self, index: usize, now: Instant) {
        self.close_seconds(now);
        let connection = &mut self.connections[index];
        let Some(sent_at) = connection.sent_at else {
            unreachable!("replies are awaited only after sending")
        };
        let errors = mem::take(&mut connection.errors);
        if now < self.origin {
            return;
        }
        self.last_reply = now;
        self.tally.record(connection.kinds, now - sent_at);
        if errors > 0 {
            let text = connection.replies.take_first_error();
            self.tally.record_errors(errors, text);
        }
    }

    fn close_seconds(&mut self, now: Instant) {
        while now >= self.second_ends {
            self.report(true);
            self.second += 1;
            self.second_ends += SECOND;
        }
    }

    fn report(&mut self, whole: bool) {
        let tally = mem::take(&mut self.tally);
        // A collector that is gone has no use for the report either.
        let _ = self.reports.send(Report { second: self.second, whole, tally });
    }

    fn silent_target(&self) -> String {
        let mut waiting = self.connections.iter().filter(|connection| connection.awaited > 0);
        waiting.next().map_or_else(|| "the server".to_owned(), |first| first.target.clone())
    }
}

/// Writes as much as the socket takes now.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(some) => written += some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
