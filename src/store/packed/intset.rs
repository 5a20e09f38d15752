//! A set of integers: in order, all in the same number of bytes.
//!
//! ```text
//! 0       1
//! | width | integer | integer |  ..  | integer |
//! ```
//!
//! The width is 2, 4 or 8: bytes of each integer, which is little-endian. How many there are follows
//! from the length of the whole.
//!
//! Integers are found by binary search. The set begins with the least width; an integer that does
//! not fit widens all. They never narrow again: else a set could be rewritten back and forth by one
//! client that adds and removes an integer. This is Redis's intset, with one byte in place of its
//! header of eight.

use super::entry::read_integer;
use super::open;
use std::cmp::Ordering;
use std::ops::Range;

/// Where the integers begin.
const HEADER: usize = 1;
/// The width of an empty set.
const WIDTH_MIN: usize = size_of::<i16>();

/// Bytes of each integer of a set that has this one.
fn width_of(integer: i64) -> usize {
    if i16::try_from(integer).is_ok() {
        size_of::<i16>()
    } else if i32::try_from(integer).is_ok() {
        size_of::<i32>()
    } else {
        size_of::<i64>()
    }
}

/// A borrowed set of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntSet<'a> {
    /// 2, 4 or 8.
    width: usize,
    /// A multiple of the width.
    integers: &'a [u8],
}

impl<'a> IntSet<'a> {
    /// The set that these bytes hold. No bytes at all are an empty one, and so are bytes that begin
    /// with no width.
    pub fn new(bytes: &'a [u8]) -> IntSet<'a> {
        match bytes {
            [width @ (2 | 4 | 8), integers @ ..] => {
                let width = usize::from(*width);
                let whole = integers.len() - integers.len() % width;
                IntSet { width, integers: &integers[..whole] }
            }
            _ => IntSet { width: WIDTH_MIN, integers: &[] },
        }
    }

    /// How many integers there are.
    #[inline]
    pub fn len(self) -> usize {
        self.integers.len() / self.width
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.integers.is_empty()
    }

    /// Bytes of each integer.
    #[inline]
    pub fn width(self) -> usize {
        self.width
    }

    /// The integer at `index` in their order.
    #[inline]
    pub fn get(self, index: usize) -> Option<i64> {
        (index < self.len())
            .then(|| read_integer(&self.integers[index * self.width..][..self.width]))
    }

    /// The integers in their order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = i64> + ExactSizeIterator + 'a {
        self.integers.chunks_exact(self.width).map(read_integer)
    }

    /// The index of an integer, or that at which it would stand.
    pub fn find(self, integer: i64) -> Result<usize, usize> {
        let Range { mut start, mut end } = 0..self.len();
        while start < end {
            let middle = start + (end - start) / 2;
            let Some(found) = self.get(middle) else { break };
            match found.cmp(&integer) {
                Ordering::Less => start = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => end = middle,
            }
        }
        Err(start)
    }

    /// Whether the set has an integer.
    #[inline]
    pub fn contains(self, integer: i64) -> bool {
        self.find(integer).is_ok()
    }
}

/// A set of integers that is edited in place, one move of the bytes behind the place an edit.
#[derive(Debug)]
pub struct IntSetMut<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> IntSetMut<'a> {
    /// The set that these bytes hold. No bytes at all become an empty one, and so do bytes that
    /// begin with no width.
    pub fn new(bytes: &'a mut Vec<u8>) -> IntSetMut<'a> {
        let set = IntSet::new(bytes);
        let (width, len) = (set.width, HEADER + set.integers.len());
        bytes.resize(len, 0);
        bytes[0] = width as u8;
        IntSetMut { bytes }
    }

    /// The set, to be read.
    #[inline]
    pub fn as_ref(&self) -> IntSet<'_> {
        IntSet::new(self.bytes)
    }

    /// Adds an integer. Returns whether it is new.
    pub fn insert(&mut self, integer: i64) -> bool {
        let set = self.as_ref();
        let (width, needed) = (set.width, width_of(integer));
        if needed > width {
            self.widen(needed, integer);
            return true;
        }
        let Err(index) = set.find(integer) else { return false };
        let at = HEADER + index * width;
        let room = open(self.bytes, at..at, width);
        room.copy_from_slice(&integer.to_le_bytes()[..width]);
        true
    }

    /// Removes an integer. Returns whether it was there.
    pub fn remove(&mut self, integer: i64) -> bool {
        let Ok(index) = self.as_ref().find(integer) else { return false };
        self.remove_range(index..index + 1);
        true
    }

    /// Removes the integers at these indexes.
    ///
    /// # Panics
    /// When the range ends after the last integer or before it begins.
    pub fn remove_range(&mut self, indexes: Range<usize>) {
        let set = self.as_ref();
        let (width, len) = (set.width, set.len());
        assert!(
            indexes.start <= indexes.end && indexes.end <= len,
            "integers {indexes:?} of {len}"
        );
        open(self.bytes, HEADER + indexes.start * width..HEADER + indexes.end * width, 0);
    }

    /// Gives all integers more bytes, and adds one that needs them: it is the least of all, or the
    /// greatest.
    fn widen(&mut self, width: usize, integer: i64) {
        let (old, len) = (self.as_ref().width, self.as_ref().len());
        let first = usize::from(integer < 0);
        self.bytes.resize(HEADER + (len + 1) * width, 0);
        let write = |index: usize, integer: i64, bytes: &mut [u8]| {
            bytes[HEADER + index * width..][..width]
                .copy_from_slice(&integer.to_le_bytes()[..width]);
        };
        // From the last on, so that each is read before its bytes are another's.
        for index in (0..len).rev() {
            let moved = read_integer(&self.bytes[HEADER + index * old..][..old]);
            write(index + first, moved, self.bytes);
        }
        write(if integer < 0 { 0 } else { len }, integer, self.bytes);
        self.bytes[0] = width as u8;
    }
}

/// Says whether these bytes are a set of integers. They may be wider than needed.
pub fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let [width, integers @ ..] = bytes else { return Err("no width") };
    if !matches!(width, 2 | 4 | 8) {
        return Err("a width that is none");
    }
    if !integers.len().is_multiple_of(usize::from(*width)) {
        return Err("an integer that goes on beyond the end");
    }
    let set = IntSet::new(bytes);
    if set.iter().zip(set.iter().skip(1)).all(|(integer, next)| integer < next) {
        Ok(())
    } else {
        Err("integers out of order")
    }
}
