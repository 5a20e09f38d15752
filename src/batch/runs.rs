//! Consecutive operations as a log's entry and a prepared share hold them.
//!
//! ```text
//! | arguments, 4 | operations, 4 | ends | heads | argument bytes |      numbers are little-endian
//! ```
//!
//! It is the layout of a [`Batch`]: ends and heads are copied when it is read, and the arguments are
//! used where they lie.

use super::{Batch, END_BYTES, HEAD_BYTES, Laid, Layout};
use crate::store::pages::Damaged;

/// Bytes before the ends.
pub const RUNS_BYTES: usize = 8;

/// Single operations as an entry holds them.
#[derive(Clone, Copy, Debug)]
pub struct Runs<'a> {
    ends: &'a [u8],
    heads: &'a [u8],
    data: &'a [u8],
    /// Where the section begins in its entry.
    at: usize,
}

impl<'a> Runs<'a> {
    /// Those of a section's content; the section begins at `at` of its entry.
    pub fn read(content: &'a [u8], at: usize) -> Option<Runs<'a>> {
        let (args, rest) = content.split_first_chunk::<4>()?;
        let (ops, rest) = rest.split_first_chunk::<4>()?;
        let ends = (u32::from_le_bytes(*args) as usize).checked_mul(END_BYTES)?;
        let heads = (u32::from_le_bytes(*ops) as usize).checked_mul(HEAD_BYTES)?;
        let (ends, rest) = rest.split_at_checked(ends)?;
        let (heads, data) = rest.split_at_checked(heads)?;
        Some(Runs { ends, heads, data, at })
    }

    /// The operations, laid out in recycled buffers.
    ///
    /// # Errors
    /// When they are not what was written.
    pub fn lay_out(&self, layout: &'a mut Layout) -> Result<Laid<'a>, Damaged> {
        let laid = layout.read(self.data, self.ends, self.heads);
        laid.map_err(|what| Damaged::new(self.at, what))
    }

    /// The operations as a batch of their own.
    ///
    /// # Errors
    /// In a few words, when they are not what was written.
    pub fn to_batch(&self) -> Result<Batch, &'static str> {
        Batch::read(self.data, self.ends, self.heads)
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.heads.len() / HEAD_BYTES
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }
}
