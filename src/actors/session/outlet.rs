//! What a client has been answered and has not taken yet.
//!
//! A client may write its whole pipeline before it reads a reply, so a Session that waits until
//! each reply is taken would wait for ever: it reads on, and what the socket does not take is kept
//! here. It leaves whenever the Session's task runs and the socket takes more, whatever the Session
//! itself waits for.

use crate::actors::local::{Entry, Local};
use crate::net::listen::OwnedWriteHalf;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Replies are kept in pieces of at least so many bytes, so that small ones cost no piece each.
const PIECE_BYTES: usize = 16 << 10;

/// A connection's replies on their way.
pub(super) struct Outlet {
    stream: OwnedWriteHalf,
    entry: Rc<Entry>,
    local: Rc<Local>,
    pieces: RefCell<VecDeque<Vec<u8>>>,
    /// How much of the first piece the socket has taken.
    begun: Cell<usize>,
    /// Bytes that the socket has not taken.
    unsent: Cell<usize>,
    /// Bytes that it has taken of what was kept here.
    taken: Cell<u64>,
    failed: Cell<Option<io::ErrorKind>>,
}

impl Outlet {
    pub(super) fn new(stream: OwnedWriteHalf, entry: Rc<Entry>, local: Rc<Local>) -> Outlet {
        Outlet {
            stream,
            entry,
            local,
            pieces: RefCell::default(),
            begun: Cell::default(),
            unsent: Cell::default(),
            taken: Cell::default(),
            failed: Cell::default(),
        }
    }

    /// Bytes that wait for the client to read.
    #[inline]
    pub(super) fn unsent(&self) -> usize {
        self.unsent.get()
    }

    /// Bytes that had to wait and were taken, since the connection began.
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Sends, and keeps what the socket does not take now.
    ///
    /// # Errors
    /// Those of the socket, also of what was kept before.
    pub(super) fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(kind) = self.failed.get() {
            return Err(kind.into());
        }
        while self.unsent.get() == 0 && !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !bytes.is_empty() {
            self.keep(bytes);
        }
        Ok(())
    }

    #[cold]
    fn keep(&self, bytes: &[u8]) {
        if self.unsent.get() == 0 {
            self.entry.unread_since.set(Some(self.local.setup.steady()));
        }
        self.unsent.set(self.unsent.get() + bytes.len());
        let mut pieces = self.pieces.borrow_mut();
        match pieces.back_mut().filter(|last| last.len() + bytes.len() <= PIECE_BYTES) {
            Some(last) => last.extend_from_slice(bytes),
            None => {
                let mut piece = Vec::with_capacity(bytes.len().max(PIECE_BYTES));
                piece.extend_from_slice(bytes);
                pieces.push_back(piece);
            }
        }
    }

    /// Sends what is kept, as far as the socket takes it. Pending while something is left; a
    /// socket that failed is shown to who sends next.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        while self.unsent.get() > 0 {
            let written = match self.stream.as_ref().poll_write_ready(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) => self.write_some(),
            };
            match written {
                Ok(()) => self.entry.unread_since.set(Some(self.local.setup.steady())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.failed.set(Some(error.kind()));
                    self.pieces.borrow_mut().clear();
                    self.unsent.set(0);
                }
            }
        }
        self.entry.unread_since.set(None);
        Poll::Ready(())
    }

    /// Writes some of the first piece.
    fn write_some(&self) -> io::Result<()> {
        let mut pieces = self.pieces.borrow_mut();
        let Some(first) = pieces.front() else { return Ok(()) };
        let begun = self.begun.get();
        let written = self.stream.try_write(&first[begun..])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unsent.set(self.unsent.get() - written);
        self.taken.set(self.taken.get() + written as u64);
        if begun + written < first.len() {
            self.begun.set(begun + written);
        } else {
            self.begun.set(0);
            pieces.pop_front();
        }
        Ok(())
    }

    /// Runs a future; what is kept here leaves meanwhile.
    pub(super) async fn alongside<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let polled = future.as_mut().poll(context);
            if polled.is_pending() && self.unsent.get() > 0 {
                let _ = self.poll(context);
            }
            polled
        })
        .await
    }
}
