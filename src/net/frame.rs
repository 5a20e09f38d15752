//! Frames between nodes: a length of four bytes, little-endian, then as many bytes of MessagePack.
//!
//! Frames are appended to one buffer and leave in one write; what arrives is cut into frames
//! without copying.

use crate::net::packet::{self, Packet};
use std::fmt;

/// Bytes of one frame at most: the longest value, its key and what is around them.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

const LENGTH_BYTES: usize = 4;

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
    let Some((length, after)) = buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let Some(frame) = after.get(..length) else { return Ok(None) };
    let packet = packet::decode(frame).map_err(FrameError::Garbled)?;
    buffer.drain(..LENGTH_BYTES + length);
    Ok(Some(packet))
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
    use crate::engine::barrier::Hello;
    use crate::ids::{Incarnation, LastSeen, NodeId};

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
        };
        vec![Packet::Hello(hello), Packet::Ready, Packet::Ping(3)]
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
}
