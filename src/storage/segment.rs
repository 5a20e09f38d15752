//! A segment of the log: its header, and the batches behind it.
//!
//! ```text
//! 0     header: magic, format, crc, number, where the segment before it ends, whose log
//! 4096  batch: magic | crc | version, count | length | offset | segment | synced | oldest | records
//!       batch ...
//!       zeros: the end, so far
//! ```
//! A batch is what was appended by one write, and it is read back whole or not at all: its checksum
//! covers everything in it, its own place included, so that what an earlier use of a recycled file
//! left behind never reads as a record, wherever it lies.
//!
//! Each batch says up to where its segment had been synced when it was written (`synced`). That is
//! what tells damage from a torn tail, see `recovery`.

use super::record::array;
use crate::ids::NodeId;
use std::path::{Path, PathBuf};

/// Where a segment's first batch starts. The header has a block of its own, which no later write
/// touches.
pub(super) const FIRST_BATCH: u64 = 4096;

/// Bytes of a batch before its records.
pub(super) const BATCH_HEADER: usize = 48;

/// Zeros that are written behind each batch: where the next batch's header will be there is none.
pub(super) const END: usize = BATCH_HEADER;

/// The most bytes that a batch takes; places in a segment are `u32`.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 30;

/// A batch takes no more records once it has so many bytes. So one is never longer than this and a
/// single record together, and what was taken for it in memory is soon given back.
pub(super) const BATCH_BYTES_WANTED: usize = 16 << 20;

/// The version of everything below `log/`.
const FORMAT: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"QUORLOG\n";
const BATCH_MAGIC: [u8; 4] = *b"\xb5Qb\x1e";

/// What a segment's first block says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u32,
    /// Where the segment before this one ends, all of it synced; 0 in a log's first segment.
    pub(super) previous_end: u64,
    pub(super) node: NodeId,
    pub(super) cluster: String,
}

/// Why a header is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// It was never written, or damaged.
    Damaged(&'static str),
    /// A newer version wrote it.
    Format(u32),
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let cluster = self.cluster.as_bytes();
        assert!(cluster.len() <= 256, "a cluster's name is short");
        let mut block = Vec::with_capacity(FIRST_BATCH as usize);
        block.extend_from_slice(&SEGMENT_MAGIC);
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(&FORMAT.to_le_bytes());
        block.extend_from_slice(&u64::from(self.number).to_le_bytes());
        block.extend_from_slice(&self.previous_end.to_le_bytes());
        block.extend_from_slice(&self.node.0.to_le_bytes());
        block.extend_from_slice(&(cluster.len() as u16).to_le_bytes());
        block.extend_from_slice(cluster);
        block.resize(FIRST_BATCH as usize, 0);
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub(super) fn decode(block: &[u8]) -> Result<Header, BadHeader> {
        use BadHeader::Damaged;
        if block.len() < FIRST_BATCH as usize {
            return Err(Damaged("it ends within its header"));
        }
        let block = &block[..FIRST_BATCH as usize];
        if block[..8] != SEGMENT_MAGIC {
            return Err(Damaged("it does not start as a segment does"));
        }
        // The checksum before the format: a flipped bit is no newer version.
        if crc32fast::hash(&block[12..]) != u32::from_le_bytes(array(block, 8)) {
            return Err(Damaged("the checksum of its header is wrong"));
        }
        let format = u32::from_le_bytes(array(block, 12));
        if format != FORMAT {
            return Err(BadHeader::Format(format));
        }
        let length = usize::from(u16::from_le_bytes(array(block, 34)));
        let cluster = block.get(36..36 + length).and_then(|name| std::str::from_utf8(name).ok());
        let number = u32::try_from(u64::from_le_bytes(array(block, 16)));
        let (Some(cluster), Ok(number)) = (cluster, number) else {
            return Err(Damaged("its header makes no sense"));
        };
        Ok(Header {
            number,
            previous_end: u64::from_le_bytes(array(block, 24)),
            node: NodeId(u16::from_le_bytes(array(block, 32))),
            cluster: cluster.to_owned(),
        })
    }
}

/// A batch as it lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch<'a> {
    pub(super) segment: u32,
    /// Where it starts in its segment.
    pub(super) offset: u64,
    /// How many records it holds.
    pub(super) count: u32,
    /// Everything before this offset of the segment had been synced when the batch was written.
    pub(super) synced: u64,
    /// Segments below this one are not needed: what they held that still counts was copied into
    /// this batch or written before it.
    pub(super) oldest: u32,
    /// The records.
    pub(super) body: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Bytes of the whole batch.
    pub(super) fn bytes(&self) -> u64 {
        (BATCH_HEADER + self.body.len()) as u64
    }

    /// Adds the batch to `frame`.
    pub(super) fn encode(&self, frame: &mut Vec<u8>) {
        assert!(self.offset + self.bytes() <= u64::from(u32::MAX), "a place in a segment is a u32");
        let start = frame.len();
        frame.reserve(BATCH_HEADER + self.body.len());
        frame.extend_from_slice(&BATCH_MAGIC);
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&self.count.to_le_bytes());
        frame.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&self.offset.to_le_bytes());
        frame.extend_from_slice(&u64::from(self.segment).to_le_bytes());
        frame.extend_from_slice(&self.synced.to_le_bytes());
        frame.extend_from_slice(&u64::from(self.oldest).to_le_bytes());
        frame.extend_from_slice(self.body);
        let crc = crc32fast::hash(&frame[start + 8..]);
        frame[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The batch at `offset` of a segment's bytes, if a whole and undamaged one of this segment was
    /// written just there.
    pub(super) fn decode(bytes: &'a [u8], segment: u32, offset: u64) -> Option<Batch<'a>> {
        let bytes = bytes.get(usize::try_from(offset).ok()?..)?;
        if !claims(bytes, segment) || u64::from_le_bytes(array(bytes, 16)) != offset {
            return None;
        }
        let end = BATCH_HEADER + claimed_length(bytes);
        let batch = bytes.get(..end)?;
        let crc = u32::from_le_bytes(array(batch, 4));
        (crc32fast::hash(&batch[8..]) == crc).then_some(Batch {
            segment,
            offset,
            count: u32::from_le_bytes(array(batch, 8)),
            synced: u64::from_le_bytes(array(batch, 32)),
            oldest: u32::try_from(u64::from_le_bytes(array(batch, 40))).ok()?,
            body: &batch[BATCH_HEADER..],
        })
    }
}

/// The batches at or after `from` in a segment's bytes, wherever they start.
pub(super) fn search(bytes: &[u8], segment: u32, from: u64) -> impl Iterator<Item = Batch<'_>> {
    let mut at = from as usize;
    std::iter::from_fn(move || {
        loop {
            let next = at + memchr::memmem::find(bytes.get(at..)?, &BATCH_MAGIC)?;
            at = next + 1;
            if let Some(batch) = Batch::decode(bytes, segment, next as u64) {
                at = next + batch.bytes() as usize;
                return Some(batch);
            }
        }
    })
}

/// How many bytes at `offset`, where no whole batch is, were meant to be one; 0 if nothing was
/// written there.
pub(super) fn remains(bytes: &[u8], segment: u32, offset: u64) -> u64 {
    let bytes = bytes.get(offset as usize..).unwrap_or_default();
    if claims(bytes, segment) {
        return (bytes.len().min(BATCH_HEADER + claimed_length(bytes))) as u64;
    }
    let end = &bytes[..bytes.len().min(END)];
    end.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Whether what starts `bytes` looks like the header of a batch of this segment.
fn claims(bytes: &[u8], segment: u32) -> bool {
    bytes.len() >= BATCH_HEADER
        && bytes[..4] == BATCH_MAGIC
        && u64::from_le_bytes(array(bytes, 24)) == u64::from(segment)
}

fn claimed_length(header: &[u8]) -> usize {
    u32::from_le_bytes(array(header, 12)) as usize
}

/// The file of a segment.
pub(super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}.log"))
}

/// The number of the segment whose file has this name.
pub(super) fn number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
    digits.parse().ok()
}
