//! Rows that never move: a vector in chunks, and a slab of numbered places on top of it.
//!
//! A plain vector of a few million rows is copied as a whole when it grows. This one adds a chunk.

use std::ops::{Index, IndexMut};

/// Rows of a chunk. Only the first chunk has fewer while it grows.
const CHUNK: usize = 256;

/// A vector whose growth copies at most one chunk.
pub(super) struct Rows<T> {
    chunks: Vec<Vec<T>>,
    len: usize,
    /// Rows there is memory for.
    room: usize,
}

impl<T> Default for Rows<T> {
    fn default() -> Rows<T> {
        Rows { chunks: Vec::new(), len: 0, room: 0 }
    }
}

impl<T> Rows<T> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The memory held, what rows own elsewhere not included.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.room * size_of::<T>() + self.chunks.capacity() * size_of::<Vec<T>>()
    }

    pub(super) fn push(&mut self, row: T) {
        if self.len.is_multiple_of(CHUNK) {
            // The first chunk grows by itself: most sets are small.
            let room = if self.len == 0 { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
            self.room += room;
        }
        if let Some(chunk) = self.chunks.last_mut() {
            let before = chunk.capacity();
            if chunk.len() == before {
                chunk.reserve_exact((CHUNK - before).min(before.max(4)));
            }
            chunk.push(row);
            self.room += chunk.capacity() - before;
            self.len += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let row = self.chunks.last_mut()?.pop()?;
        self.len -= 1;
        if self.len.is_multiple_of(CHUNK) {
            self.room -= self.chunks.pop().map_or(0, |chunk| chunk.capacity());
            // The directory of chunks follows when it is mostly empty.
            if self.chunks.len() * 4 < self.chunks.capacity() {
                self.chunks.shrink_to(self.chunks.len() * 2);
            }
        }
        Some(row)
    }

    /// Takes a row out, and puts the last one in its place.
    pub(super) fn swap_remove(&mut self, at: usize) -> Option<T> {
        let last = self.pop()?;
        if at == self.len { Some(last) } else { Some(std::mem::replace(&mut self[at], last)) }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Index<usize> for Rows<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.chunks[at / CHUNK][at % CHUNK]
    }
}

impl<T> IndexMut<usize> for Rows<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.chunks[at / CHUNK][at % CHUNK]
    }
}

/// Rows with numbers that are given again after their row was removed.
pub(super) struct Slab<T> {
    rows: Rows<T>,
    free: Rows<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { rows: Rows::default(), free: Rows::default() }
    }
}

impl<T: Default> Slab<T> {
    /// The memory held, what rows own elsewhere not included.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.free.bytes()
    }

    /// Stores a row and returns its number.
    pub(super) fn insert(&mut self, row: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self[number] = row;
            return number;
        }
        // 2^32 rows of this module take more memory than a machine has.
        assert!(self.rows.len() < u32::MAX as usize, "a slab has no more numbers");
        self.rows.push(row);
        (self.rows.len() - 1) as u32
    }

    /// Takes the row of a number out. The number may be given again.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let row = std::mem::take(&mut self[number]);
        if number as usize + 1 == self.rows.len() {
            self.rows.pop();
        } else {
            self.free.push(number);
        }
        if self.free.len() == self.rows.len() {
            *self = Slab::default();
        }
        row
    }

    /// Takes the last place out, used or free. Numbers mean nothing afterwards: it is for a slab
    /// that is given up bit by bit.
    pub(super) fn pop(&mut self) -> Option<T> {
        self.free = Rows::default();
        self.rows.pop()
    }

    /// How many numbers are in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.rows.len() - self.free.len()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: u32) -> &T {
        &self.rows[number as usize]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.rows[number as usize]
    }
}
