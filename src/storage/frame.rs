//! The bytes of the write that a log is about to make: whole blocks, from memory that starts where
//! a block may.
//!
//! Past the page cache a disk takes nothing less. A batch that starts within a block is therefore
//! written with what lies before it in that block, which stays here from the write before, and with
//! zeros up to the end of its last block.

use super::disk::BLOCK;

/// A buffer that has grown larger does not stay so.
const KEPT_MAX: usize = 4 << 20;

/// The buffer.
#[derive(Debug, Default)]
pub(super) struct Frame {
    bytes: Vec<u8>,
    /// Where in `bytes` the first block starts.
    start: usize,
    /// Where in `bytes` the last batch ends, zeros left out.
    end: usize,
}

impl Frame {
    /// Starts a write at `offset` of a file, with room for so many bytes. Unless that is where a
    /// block starts, the write before ended just there.
    pub(super) fn begin(&mut self, offset: u64, room: usize) -> &mut Vec<u8> {
        let tail = offset as usize % BLOCK;
        assert!(tail <= self.end - self.start, "a write follows the one before");
        let before = self.end - tail..self.end;
        let needed = (tail + room).next_multiple_of(BLOCK);
        if self.bytes.capacity() < needed + BLOCK {
            let mut larger: Vec<u8> = Vec::with_capacity((needed + BLOCK).next_power_of_two());
            // Where it cannot be told, a direct write is refused, and made through the cache.
            let aligned = larger.as_ptr().align_offset(BLOCK);
            self.start = if aligned < BLOCK { aligned } else { 0 };
            larger.resize(self.start, 0);
            larger.extend_from_slice(&self.bytes[before]);
            self.bytes = larger;
        } else {
            self.bytes.copy_within(before, self.start);
            self.bytes.truncate(self.start + tail);
        }
        &mut self.bytes
    }

    /// The bytes that it keeps.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives memory back that a long batch took.
    pub(super) fn shrink(&mut self) {
        if self.bytes.capacity() > KEPT_MAX {
            // The block that the next batch may start in.
            let tail =
                self.bytes[self.end.saturating_sub(BLOCK).max(self.start)..self.end].to_vec();
            (self.start, self.end) = (0, tail.len());
            self.bytes = tail;
        }
    }

    /// What is to be written once the batch is there and `zeros` behind it: whole blocks, for the
    /// offset of the first one.
    pub(super) fn end(&mut self, zeros: usize) -> &[u8] {
        self.end = self.bytes.len();
        let length = (self.end + zeros - self.start).next_multiple_of(BLOCK);
        self.bytes.resize(self.start + length, 0);
        &self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Writes of any size, one behind the other, are blocks that start where blocks may, and a
        /// file of them holds just what was asked for.
        #[test]
        fn blocks_add_up_to_what_was_written(sizes in prop::collection::vec(1usize..20_000, 1..30)) {
            let (mut frame, mut file, mut asked) = (Frame::default(), Vec::new(), Vec::new());
            for (number, size) in sizes.into_iter().enumerate() {
                let batch = vec![number as u8 + 1; size];
                let offset = asked.len();
                frame.begin(offset as u64, size + 48).extend_from_slice(&batch);
                let blocks = frame.end(48);
                prop_assert_eq!((blocks.as_ptr().addr() % BLOCK, blocks.len() % BLOCK), (0, 0));
                let from = offset / BLOCK * BLOCK;
                prop_assert!(from + blocks.len() < offset + size + 48 + BLOCK, "no block too many");
                file.resize(from, 0);
                file.extend_from_slice(blocks);
                asked.extend_from_slice(&batch);
                let zeros = &file[asked.len()..];
                prop_assert!(zeros.len() >= 48 && zeros.iter().all(|byte| *byte == 0));
            }
            prop_assert!(file.starts_with(&asked));
        }
    }
}
