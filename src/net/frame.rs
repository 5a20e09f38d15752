//! Frames between nodes: a length of four bytes, little-endian, then as many bytes of MessagePack.
//!
//! Frames are appended to one buffer and leave in one write; what arrives is cut into frames
//! without copying.

use crate::net::packet::{self, Packet};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// Bytes of one frame at most: the longest value, its key and what is around them.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

const LENGTH_BYTES: usize = 4;

/// Bytes of a packet that leave at once where others may go between its pieces.
pub const PIECE_BYTES: usize = 256 << 10;

/// Bytes of a packet that comes in pieces, and of all such packets that a stream has brought in part.
pub const PIECES_BYTES_MAX: usize = 3 << 30;

/// Packets that leave in pieces, so that what else is said waits for one piece at most.
///
/// Batches and replies have each a piece in its turn: a long one does not hold up a short one. What
/// has to arrive in order has one turn for all of it.
#[derive(Debug, Default)]
pub struct Outgoing {
    packets: VecDeque<Parcel>,
    ordered: VecDeque<Parcel>,
    /// The ordered ones were the last to have a piece sent.
    ordered_had_turn: bool,
    next: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Parcel {
    number: u64,
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Takes a packet of so many bytes at most.
    ///
    /// # Errors
    /// When it is longer.
    pub fn push(&mut self, packet: &Packet, max: usize) -> Result<(), FrameError> {
        let parcel = self.parcel(packet, max)?;
        self.packets.push_back(parcel);
        Ok(())
    }

    /// Takes a packet that is to arrive after those taken so before. While there are any
    /// ([`Outgoing::is_in_order`]), whatever is to arrive after them has to come here too.
    ///
    /// # Errors
    /// When it is longer than [`FRAME_BYTES_MAX`].
    pub fn push_in_order(&mut self, packet: &Packet) -> Result<(), FrameError> {
        let parcel = self.parcel(packet, FRAME_BYTES_MAX)?;
        self.ordered.push_back(parcel);
        Ok(())
    }

    /// The same for a packet that is the last frame in `out`, which begins at `begun`.
    pub fn move_in_order(&mut self, out: &mut Vec<u8>, begun: usize) {
        let bytes = out.split_off(begun + LENGTH_BYTES);
        out.truncate(begun);
        let parcel = self.encoded(bytes);
        self.ordered.push_back(parcel);
    }

    /// Whether packets wait that are to arrive in order.
    pub fn is_in_order(&self) -> bool {
        !self.ordered.is_empty()
    }

    fn parcel(&mut self, packet: &Packet, max: usize) -> Result<Parcel, FrameError> {
        let mut bytes = Vec::new();
        packet::encode(packet, &mut bytes).map_err(FrameError::Garbled)?;
        if bytes.len() > max {
            return Err(FrameError::TooLong(bytes.len()));
        }
        Ok(self.encoded(bytes))
    }

    fn encoded(&mut self, bytes: Vec<u8>) -> Parcel {
        self.waiting += bytes.len();
        let number = self.next;
        self.next += 1;
        Parcel { number, bytes, sent: 0 }
    }

    /// Appends the next piece as a frame. False when nothing is left to be sent.
    ///
    /// # Errors
    /// When the piece cannot be encoded.
    pub fn pop(&mut self, out: &mut Vec<u8>) -> Result<bool, FrameError> {
        let in_order =
            !self.ordered.is_empty() && (self.packets.is_empty() || !self.ordered_had_turn);
        self.ordered_had_turn = in_order;
        let queue = if in_order { &mut self.ordered } else { &mut self.packets };
        let Some(mut parcel) = queue.pop_front() else { return Ok(false) };
        let end = parcel.bytes.len().min(parcel.sent + PIECE_BYTES);
        let bytes = serde_bytes::ByteBuf::from(&parcel.bytes[parcel.sent..end]);
        let last = end == parcel.bytes.len();
        self.waiting -= bytes.len();
        push(&Packet::Piece { number: parcel.number, bytes, last }, out)?;
        parcel.sent = end;
        match (last, in_order) {
            (true, _) => {}
            (false, true) => self.ordered.push_front(parcel),
            (false, false) => self.packets.push_back(parcel),
        }
        Ok(true)
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// Packets that have come in part.
#[derive(Debug, Default)]
pub struct Incoming {
    packets: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Incoming {
    /// Takes a piece. Returns the packet whose last one it is.
    ///
    /// # Errors
    /// When there is too much, or what has come is no packet: the stream is to be closed.
    pub fn take(
        &mut self,
        number: u64,
        piece: &[u8],
        last: bool,
    ) -> Result<Option<Packet>, FrameError> {
        self.bytes += piece.len();
        if self.bytes > PIECES_BYTES_MAX {
            return Err(FrameError::TooLong(self.bytes));
        }
        let bytes = self.packets.entry(number).or_default();
        bytes.extend_from_slice(piece);
        if !last {
            return Ok(None);
        }
        let bytes = self.packets.remove(&number).unwrap_or_default();
        self.bytes -= bytes.len();
        match packet::decode(&bytes).map_err(FrameError::Garbled)? {
            packet if may_come_in_pieces(&packet) => Ok(Some(packet)),
            _ => Err(FrameError::Garbled("it does not come in pieces".into())),
        }
    }
}

/// Introductions, and what keeps a link alive, come whole.
fn may_come_in_pieces(packet: &Packet) -> bool {
    matches!(
        packet,
        Packet::Execute { .. }
            | Packet::Executed { .. }
            | Packet::Raft(_)
            | Packet::Partition(..)
            | Packet::Coordinator(_)
    )
}

/// Why a stream of frames cannot be read on.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A frame is longer than [`FRAME_BYTES_MAX`].
    TooLong(usize),
    /// A frame is no packet.
    Garbled(String),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong(bytes) => {
                write!(f, "a frame of {bytes} bytes, where {FRAME_BYTES_MAX} are allowed")
            }
            FrameError::Garbled(why) => write!(f, "a frame that is no packet: {why}"),
        }
    }
}

/// Appends a packet as a frame.
///
/// # Errors
/// When the packet is longer than a frame may be; `out` is as before then.
pub fn push(packet: &Packet, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    if let Err(error) = packet::encode(packet, out) {
        out.truncate(start);
        return Err(FrameError::Garbled(error));
    }
    let length = out.len() - start - LENGTH_BYTES;
    if length > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(FrameError::TooLong(length));
    }
    out[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Takes the packets of all whole frames at the front of `buffer`, and removes them from it.
///
/// # Errors
/// At the first frame that is too long or no packet: the stream is to be closed.
pub fn take(buffer: &mut Vec<u8>, packets: &mut Vec<Packet>) -> Result<(), FrameError> {
    let mut rest = buffer.as_slice();
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        packets.push(packet::decode(frame).map_err(FrameError::Garbled)?);
        rest = after;
    }
    let taken = buffer.len() - rest.len();
    buffer.drain(..taken);
    Ok(())
}

/// Takes the first packet, if its frame is whole.
///
/// # Errors
/// As [`take`].
pub fn first(buffer: &mut Vec<u8>) -> Result<Option<Packet>, FrameError> {
    let Some((packet, bytes)) = peek(buffer)? else { return Ok(None) };
    buffer.drain(..bytes);
    Ok(Some(packet))
}

/// Reads the first packet, if its frame is whole, and tells how many bytes the frame has. They stay
/// in the buffer.
///
/// # Errors
/// As [`take`].
pub fn peek(buffer: &[u8]) -> Result<Option<(Packet, usize)>, FrameError> {
    let Some((length, after)) = buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let Some(frame) = after.get(..length) else { return Ok(None) };
    let packet = packet::decode(frame).map_err(FrameError::Garbled)?;
    Ok(Some((packet, LENGTH_BYTES + length)))
}

/// How many bytes the frame at the front of `buffer` still lacks, as far as that can be told.
pub fn missing(buffer: &[u8]) -> usize {
    match buffer.split_first_chunk::<LENGTH_BYTES>() {
        Some((length, rest)) => {
            let length = (u32::from_le_bytes(*length) as usize).min(FRAME_BYTES_MAX);
            length.saturating_sub(rest.len())
        }
        None => LENGTH_BYTES - buffer.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Replies;
    use crate::cluster::barrier::Hello;
    use crate::ids::{Incarnation, LastSeen, NodeId, PartitionId};

    fn packets() -> Vec<Packet> {
        let hello = Hello {
            version: 1,
            cluster: "c".into(),
            node: NodeId(2),
            life: Incarnation(7),
            digest: 9,
            unsound: Vec::new(),
            formed: false,
            seen: LastSeen { life: Incarnation(8), generation: 2 },
            nonce: 0,
        };
        vec![Packet::Hello(hello), Packet::Ready, Packet::Pong(3)]
    }

    #[test]
    fn packets_survive_every_split_of_the_stream() {
        let mut stream = Vec::new();
        packets().iter().for_each(|packet| push(packet, &mut stream).unwrap());
        for split in 0..=stream.len() {
            let (mut buffer, mut taken) = (stream[..split].to_vec(), Vec::new());
            take(&mut buffer, &mut taken).unwrap();
            assert!(split == stream.len() || missing(&buffer) > 0 || taken.len() == 3);
            buffer.extend_from_slice(&stream[split..]);
            take(&mut buffer, &mut taken).unwrap();
            assert_eq!(taken, packets());
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn garbage_and_giants_are_refused() {
        let mut garbage = b"\x03\0\0\0abc".to_vec();
        assert!(matches!(take(&mut garbage, &mut Vec::new()), Err(FrameError::Garbled(_))));
        let mut giant = u32::MAX.to_le_bytes().to_vec();
        let refused = take(&mut giant, &mut Vec::new());
        assert_eq!(refused, Err(FrameError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn damaged_frames_never_panic() {
        let mut stream = Vec::new();
        packets().iter().for_each(|packet| push(packet, &mut stream).unwrap());
        for at in 0..stream.len() {
            for flip in [0x01, 0x40, 0xff] {
                let mut damaged = stream.clone();
                damaged[at] ^= flip;
                let _ = take(&mut damaged, &mut Vec::new());
            }
        }
    }

    fn executed(id: u64, bytes: usize) -> Packet {
        let mut replies = Replies::default();
        replies.push(&vec![id as u8; bytes]);
        Packet::Executed { id, replies }
    }

    #[test]
    fn a_long_packet_leaves_in_pieces_and_holds_nothing_up() {
        let long = executed(1, 5 * PIECE_BYTES);
        let short = executed(2, PIECE_BYTES + 1);
        let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
        outgoing.push(&long, PIECES_BYTES_MAX).unwrap();
        outgoing.push(&short, PIECES_BYTES_MAX).unwrap();
        let (mut came, mut pieces) = (Vec::new(), 0);
        loop {
            let waiting = outgoing.waiting();
            let mut out = Vec::new();
            if !outgoing.pop(&mut out).unwrap() {
                break;
            }
            assert!(out.len() < PIECE_BYTES + 64, "one piece at a time");
            assert!(outgoing.waiting() < waiting);
            let mut packets = Vec::new();
            take(&mut out, &mut packets).unwrap();
            let [Packet::Piece { number, bytes, last }] = &packets[..] else { panic!("a piece") };
            came.extend(incoming.take(*number, bytes, *last).unwrap());
            pieces += 1;
        }
        assert_eq!(came, [short, long], "the shorter one is there first");
        assert_eq!((outgoing.waiting(), pieces), (0, 8));
    }

    #[test]
    fn what_is_in_order_arrives_so_beside_the_rest() {
        let raft = |bytes: usize| Packet::Raft(vec![(PartitionId(0), vec![7; bytes].into())]);
        let (long, short, reply) = (raft(6 * PIECE_BYTES), raft(1), executed(1, PIECE_BYTES));
        let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
        outgoing.push_in_order(&long).unwrap();
        let mut frames = Vec::new();
        push(&Packet::Ready, &mut frames).unwrap();
        let begun = frames.len();
        push(&short, &mut frames).unwrap();
        outgoing.move_in_order(&mut frames, begun);
        assert_eq!(frames.len(), begun, "what was there before stays");
        outgoing.push(&reply, PIECES_BYTES_MAX).unwrap();
        assert!(outgoing.is_in_order());
        let (mut out, mut packets, mut came) = (Vec::new(), Vec::new(), Vec::new());
        while outgoing.pop(&mut out).unwrap() {
            take(&mut out, &mut packets).unwrap();
            for packet in packets.drain(..) {
                let Packet::Piece { number, bytes, last } = packet else { panic!("a piece") };
                came.extend(incoming.take(number, &bytes, last).unwrap());
            }
        }
        assert_eq!(came, [reply, long, short]);
        assert!(!outgoing.is_in_order());
    }

    #[test]
    fn what_comes_in_pieces_is_bounded_and_no_other_packet() {
        let long = executed(1, 100);
        let refused = Outgoing::default().push(&long, 99);
        assert!(matches!(refused, Err(FrameError::TooLong(bytes)) if bytes > 99));
        let mut bytes = Vec::new();
        packet::encode(&Packet::Ready, &mut bytes).unwrap();
        let garbled = Incoming::default().take(0, &bytes, true);
        assert!(matches!(garbled, Err(FrameError::Garbled(_))));
    }
}
