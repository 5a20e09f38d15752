//! One stream to the other node: the buffers of what leaves, and the task that reads what comes.
//!
//! A long packet leaves in pieces, each of them once all else is written. Packets are read from a stream
//! only once the link stands. Until then its reader passes on the words of the handshake and nothing
//! else.

use super::handshake::HELLO_BYTES_MAX;
use super::inbound::{Inbound, Spoken};
use super::{Closed, Peer};
use crate::cluster::link::StreamId;
use crate::consensus::is_beat;
use crate::ids::PartitionId;
use crate::net::frame::{
    self, FRAME_BYTES_MAX, FrameError, Incoming, Outgoing, PIECE_BYTES, PIECES_BYTES_MAX,
};
use crate::net::listen::{OwnedReadHalf, OwnedWriteHalf};
use crate::net::packet::Packet;
use actix::Addr;
use std::io;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

/// Why a stream ended that its other end closed in order: as a process does that ends, whatever ends
/// it, unless it leaves words unread.
pub(super) const CLOSED_THERE: &str = "it closed the stream";

/// Bytes of a buffer that a stream keeps when all of it is written.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Pieces of long packets that a stream is given in one turn of the arbiter.
const PIECES_AT_ONCE: usize = 16;

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) writer: Rc<OwnedWriteHalf>,
    /// Has the reader pass on packets, once the link stands.
    pub(super) open: Option<oneshot::Sender<()>>,
    pub(super) out: Vec<u8>,
    pub(super) written: usize,
    /// Long batches and replies: their pieces go to `out` once it is written.
    pub(super) outgoing: Outgoing,
    /// Those that have come in part.
    pub(super) incoming: Incoming,
    /// The socket is full and will say when it is not, or was given enough for one turn.
    pub(super) blocked: bool,
}

impl Stream {
    /// Queues a packet. A long one leaves in pieces, and once one does whose place matters,
    /// everything follows it that comes later to the same actors: only beats may overtake it.
    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), FrameError> {
        let follows = self.outgoing.is_in_order();
        match packet {
            Packet::Execute { batch, .. } if batch.bytes() > PIECE_BYTES => {
                // Its entry of the log has to fit a frame.
                self.outgoing.push(packet, FRAME_BYTES_MAX)
            }
            Packet::Executed { replies, .. } if replies.bytes.len() > PIECE_BYTES => {
                self.outgoing.push(packet, PIECES_BYTES_MAX)
            }
            Packet::Raft(messages) if follows || is_long(messages) => {
                let (beats, rest): (Vec<_>, Vec<_>) =
                    messages.iter().cloned().partition(|(_, message)| is_beat(message));
                if !beats.is_empty() {
                    frame::push(&Packet::Raft(beats), &mut self.out)?;
                }
                match rest.is_empty() {
                    true => Ok(()),
                    false => self.outgoing.push_in_order(&Packet::Raft(rest)),
                }
            }
            Packet::Partition(..) | Packet::Coordinator(_) if follows => {
                self.outgoing.push_in_order(packet)
            }
            Packet::Partition(..) | Packet::Coordinator(_) => {
                let begun = self.out.len();
                frame::push(packet, &mut self.out)?;
                if self.out.len() - begun > PIECE_BYTES {
                    self.outgoing.move_in_order(&mut self.out, begun);
                }
                Ok(())
            }
            packet => frame::push(packet, &mut self.out),
        }
    }

    /// Gives up the room of what is written, once that is most of it: a stream that is never
    /// quite empty must not keep all that it has ever carried.
    fn give_up_written(&mut self) {
        if self.written > self.out.len() / 2 {
            self.out.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes what is queued; tells whether all of it is gone. A piece of what is long is queued
    /// when nothing else is, so that whatever is said meanwhile waits for one piece at most.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        for _ in 0..PIECES_AT_ONCE {
            if !self.write_out()? {
                return Ok(false);
            }
            let more = self.outgoing.pop(&mut self.out);
            if !more.map_err(|error| io::Error::other(error.to_string()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_out(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match self.writer.try_write(&self.out[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.give_up_written();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        self.out.shrink_to(BUFFER_BYTES_KEPT);
        Ok(true)
    }
}

fn is_long(messages: &[(PartitionId, serde_bytes::ByteBuf)]) -> bool {
    messages.iter().map(|(_, message)| message.len()).sum::<usize>() > PIECE_BYTES
}

/// Reads a stream to its end and passes its packets on, one message a read. Waiting for the Peer
/// to take them pushes back on the sender.
pub(super) async fn read(
    mut reader: OwnedReadHalf,
    mut buffer: Vec<u8>,
    stream: StreamId,
    opened: oneshot::Receiver<()>,
    peer: Addr<Peer>,
) {
    if let Err(error) = shake_hands(&mut reader, &mut buffer, stream, opened, &peer).await {
        peer.do_send(Closed { stream, why: error });
        return;
    }
    let why = loop {
        let mut packets = Vec::new();
        let taken = frame::take(&mut buffer, &mut packets);
        if !packets.is_empty() && peer.send(Inbound { stream, packets }).await.is_err() {
            return;
        }
        if let Err(error) = taken {
            break error.to_string();
        }
        if buffer.is_empty() {
            buffer.shrink_to(BUFFER_BYTES_KEPT);
        }
        buffer.reserve(frame::missing(&buffer).clamp(16 << 10, 1 << 20));
        match reader.read_buf(&mut buffer).await {
            Ok(0) => break CLOSED_THERE.into(),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    peer.do_send(Closed { stream, why });
}

/// Passes on the words of the handshake until the link stands. What comes after them is not read
/// before that, and only a node of the cluster is listened to for longer than a word.
async fn shake_hands(
    reader: &mut OwnedReadHalf,
    buffer: &mut Vec<u8>,
    stream: StreamId,
    mut opened: oneshot::Receiver<()>,
    peer: &Addr<Peer>,
) -> Result<(), String> {
    let replaced = |_| CLOSED_THERE.to_owned();
    loop {
        let is_word = frame::missing(buffer) <= HELLO_BYTES_MAX;
        match frame::peek(buffer) {
            Ok(Some((packet @ (Packet::Claim(_) | Packet::Yours(..)), bytes))) => {
                buffer.drain(..bytes);
                if peer.send(Spoken(stream, packet)).await.is_err() {
                    return Err(CLOSED_THERE.into());
                }
                continue;
            }
            Ok(Some((Packet::Hello(_), _))) => return Err("it introduced itself twice".into()),
            Ok(Some(_)) => return opened.await.map_err(replaced),
            Ok(None) if !is_word => return opened.await.map_err(replaced),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        buffer.reserve(4 << 10);
        tokio::select! {
            biased;
            told = &mut opened => return told.map_err(replaced),
            read = reader.read_buf(buffer) => match read {
                Ok(0) => return Err(CLOSED_THERE.into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
        }
    }
}
