//! The index: from a member to the leaf that has it.
//!
//! It is an extendible hash table of small segments, as the table of keys is, with four bytes a
//! member:
//!
//! ```text
//!             depth top bits             low 16 bits, the tag
//!   hash =  | 0 1 1 ..     ..    | .. .. |
//!               |                   |
//!   directory   v                   |  top bits of it, 12 at first: the tag of the cell
//!   | . | . | . | ..   |            v
//!     |   \____________ | ..      cell: | tag, 12 | leaf, 20 |
//!     |________________ | ..
//!                        segment: cells [tag|leaf][      ][tag|leaf] .. up to 256
//! ```
//!
//! - A cell does not say where in the leaf the member is. So entries that move within a leaf do not
//!   concern the index, and equal cells are interchangeable: to note that a member moved to another
//!   leaf, any cell with its tag and its old leaf will do.
//! - A member's place in its segment is given by the tag alone, so resizing a segment and merging
//!   two of them touch the cells only. To split one, the hashes of its members are needed. Each is
//!   looked for in its leaf by its print, which is the top byte of the tag.
//! - Segments grow by an eighth to a quarter, not twofold, so at least two thirds of the cells are
//!   in use, or one third after removals. Small segments that were split are merged again.
//! - A leaf whose number needs more bits takes them from the tags, segment by segment.

use super::leaf::ScoredMember;
use super::slab::Rows;
use super::tree::Tree;
use crate::store::item::class;
use crate::store::table::{Cursor, PREFIX_BITS, TAG_BITS, prefetch};
use crate::store::tables::KeyHasher;
use smallvec::SmallVec;

/// Bits of a cell's tag while leaf numbers are small enough.
const CELL_TAG_BITS: u32 = 12;
/// The fewest bits of a cell's tag: two to the power of 28 leaves are more than 500 GB.
const CELL_TAG_BITS_MIN: u32 = 4;
/// A cell without a member: its leaf number is never given.
const EMPTY: u32 = u32::MAX;
/// Cells of the smallest segment.
const CELLS_MIN: usize = 16;
/// The directory has at most so many entries for each segment; past that, segments grow instead.
const DIRECTORY_SLACK: usize = 8;
/// How far ahead of the leaf looked at a split prefetches prints.
const PRINTS_AHEAD: usize = 4;

/// Hashes of a leaf's members; mostly of one.
type Hashes = SmallVec<[u64; 4]>;

/// The byte of a member's hash that is kept beside it in the leaf.
#[inline]
pub(super) fn print(hash: u64) -> u8 {
    (hash as u16 >> 8) as u8
}

/// The least hash with this prefix of [`PREFIX_BITS`].
#[inline]
fn hash_from(prefix: u64) -> u64 {
    prefix << (64 - PREFIX_BITS)
}

/// Members by hash: which leaf has them.
pub(super) struct Index {
    hasher: KeyHasher,
    /// For each value of the hash's top `depth` bits the segment of its members.
    directory: Vec<u32>,
    depth: u32,
    segments: Rows<IndexSegment>,
    /// How many segments there are of each depth.
    depths: [u32; PREFIX_BITS as usize + 1],
    /// Cells of all segments.
    cells: usize,
    /// Cells of a segment that had rather split than grow.
    cells_split: usize,
}

impl Index {
    pub(super) fn new(hasher: KeyHasher, cells_split: usize) -> Index {
        let mut segments = Rows::default();
        segments.push(IndexSegment::with_room(0, 0, 0, CELL_TAG_BITS));
        let mut depths = [0; PREFIX_BITS as usize + 1];
        depths[0] = 1;
        Index {
            hasher,
            directory: vec![0],
            depth: 0,
            segments,
            depths,
            cells: CELLS_MIN,
            cells_split,
        }
    }

    /// The member's hash.
    #[inline]
    pub(super) fn hash(&self, member: &[u8]) -> u64 {
        self.hasher.hash(member)
    }

    /// The memory held.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.cells * size_of::<u32>()
            + self.segments.bytes()
            + self.directory.capacity() * size_of::<u32>()
    }

    #[inline]
    fn entry(&self, hash: u64) -> usize {
        // In two steps, since none of 64 bits cannot be had by one shift.
        ((hash >> (64 - PREFIX_BITS)) >> (PREFIX_BITS - self.depth)) as usize
    }

    #[inline]
    fn route(&self, hash: u64) -> usize {
        self.directory[self.entry(hash)] as usize
    }

    /// What `look` finds in one of the leaves that may have a member of this hash.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, look: impl FnMut(u32) -> Option<T>) -> Option<T> {
        self.segments[self.route(hash)].find(hash as u16, look)
    }

    /// Notes a member that was put into a leaf.
    pub(super) fn insert(&mut self, hash: u64, leaf: u32, tree: &Tree) {
        let mut at = self.route(hash);
        while self.segments[at].is_full() {
            let segment = &self.segments[at];
            let may_split = segment.depth < self.depth
                || segment.depth < PREFIX_BITS
                    && self.directory.len() * 2 <= self.segments.len() * DIRECTORY_SLACK;
            if segment.cells.len() >= self.cells_split && may_split {
                self.split(at, (hash, leaf), tree);
                at = self.route(hash);
            } else {
                let capacity = segment.cells.len();
                self.resize(at, class(4 * capacity + 4) / 4);
            }
        }
        self.segments[at].insert(hash as u16, leaf);
    }

    /// Notes that some members moved from one leaf to another.
    pub(super) fn moved<'a>(
        &mut self,
        entries: impl Iterator<Item = ScoredMember<'a>>,
        from: u32,
        to: u32,
    ) {
        for hash in self.hashes(entries) {
            let segment = self.route(hash);
            self.segments[segment].replace(hash as u16, from, to);
        }
    }

    /// Forgets some members of a leaf.
    pub(super) fn removed<'a>(
        &mut self,
        entries: impl Iterator<Item = ScoredMember<'a>>,
        leaf: u32,
    ) {
        for hash in self.hashes(entries) {
            self.removed_one(hash, leaf);
        }
    }

    /// The hashes of some members, whose cells are about to be looked for: all misses at once.
    fn hashes<'a>(&self, entries: impl Iterator<Item = ScoredMember<'a>>) -> Hashes {
        let hashes: Hashes = entries.map(|entry| self.hash(entry.member)).collect();
        if hashes.len() > 1 {
            for &hash in &hashes {
                prefetch((&raw const self.segments[self.route(hash)]).cast());
            }
            for &hash in &hashes {
                self.segments[self.route(hash)].prefetch_home(hash as u16);
            }
        }
        hashes
    }

    fn removed_one(&mut self, hash: u64, leaf: u32) {
        let at = self.route(hash);
        let segment = &mut self.segments[at];
        let found = segment.position(hash as u16, leaf);
        let Some(cell) = found else { unreachable!("a member is missing from the index") };
        segment.remove(cell);
        let (len, capacity) = (segment.len as usize, segment.cells.len());
        if capacity > CELLS_MIN && len * 3 < capacity {
            self.resize(at, IndexSegment::room(len + len / 4));
        }
        if len * 8 < self.cells_split && self.depth > 0 {
            self.merge(at);
        }
    }

    fn resize(&mut self, at: usize, capacity: usize) {
        let segment = &mut self.segments[at];
        self.cells -= segment.cells.len();
        segment.rebuild(capacity, segment.tag_bits);
        self.cells += segment.cells.len();
    }

    /// Splits a segment by the next bit of the hash. `newcomer` is in its leaf and not yet here.
    fn split(&mut self, left: usize, newcomer: (u64, u32), tree: &Tree) {
        let right = self.segments.len();
        let IndexSegment { depth, prefix, .. } = self.segments[left];
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|&segment| [segment; 2]).collect();
            self.depth += 1;
        }
        let half: u32 = 1 << (PREFIX_BITS - depth - 1);
        self.point(prefix | half, depth + 1, right);

        let old = std::mem::replace(&mut self.segments[left], IndexSegment::nothing());
        self.cells -= old.cells.len();
        let mut parts = [Vec::new(), Vec::new()];
        let mut met = false;
        for (leaf, hash) in self.members(tree, &old) {
            // Once: a member with the same hash may be there by right.
            if (hash, leaf) == newcomer && !std::mem::replace(&mut met, true) {
                continue;
            }
            parts[usize::from(hash & hash_from(half.into()) != 0)].push((hash as u16, leaf));
        }
        debug_assert_eq!(parts[0].len() + parts[1].len(), old.len as usize);
        let room = old.tag_bits;
        for (part, at) in parts.iter().zip([left, right]) {
            let prefix = if at == left { prefix } else { prefix | half };
            let mut segment = IndexSegment::with_room(part.len() + 1, prefix, depth + 1, room);
            self.cells += segment.cells.len();
            for &(tag, leaf) in part {
                segment.insert(tag, leaf);
            }
            if at == left {
                self.segments[left] = segment;
            } else {
                self.segments.push(segment);
            }
        }
        self.depths[depth as usize] -= 1;
        self.depths[depth as usize + 1] += 2;
    }

    /// Makes one segment of this one and its buddy, the other half of a split, if both are small.
    fn merge(&mut self, at: usize) {
        let IndexSegment { depth, prefix, len, .. } = self.segments[at];
        if depth == 0 {
            return;
        }
        let half = 1 << (PREFIX_BITS - depth);
        let buddy = self.route(hash_from((prefix ^ half).into()));
        let other = &self.segments[buddy];
        if other.depth != depth || (len + other.len) as usize * 4 > self.cells_split {
            return;
        }
        let prefix = prefix & !half;
        let tag_bits = self.segments[at].tag_bits.min(other.tag_bits);
        let both = (len + other.len) as usize;
        let mut merged = IndexSegment::with_room(both + both / 4, prefix, depth - 1, tag_bits);
        for part in [at, buddy] {
            let part = &self.segments[part];
            self.cells -= part.cells.len();
            for &cell in part.cells.iter().filter(|&&cell| cell != EMPTY) {
                merged.insert(part.tag(cell), part.leaf(cell));
            }
        }
        self.cells += merged.cells.len();
        // The lower place is kept: the last segment, which moves to the other, is not it.
        let (kept, freed) = (at.min(buddy), at.max(buddy));
        self.segments[kept] = merged;
        self.point(prefix, depth - 1, kept);
        self.segments.swap_remove(freed);
        if freed < self.segments.len() {
            let IndexSegment { prefix, depth, .. } = self.segments[freed];
            self.point(prefix, depth, freed);
        }
        self.depths[depth as usize] -= 2;
        self.depths[depth as usize - 1] += 1;
        while self.depth > 0 && self.depths[self.depth as usize] == 0 {
            self.directory = self.directory.iter().step_by(2).copied().collect();
            self.depth -= 1;
        }
    }

    /// Points the directory's entries of a prefix to a segment.
    fn point(&mut self, prefix: u32, depth: u32, segment: usize) {
        let first = self.entry(hash_from(prefix.into()));
        self.directory[first..first + (1 << (self.depth - depth))].fill(segment as u32);
    }

    /// The members of a segment by leaf and hash, found in three passes, so that the misses of each
    /// overlap: heads of leaves, prints, members.
    fn members(&self, tree: &Tree, segment: &IndexSegment) -> Vec<(u32, u64)> {
        let mut cells: Vec<u32> = segment.cells_from(0).collect();
        // Equal cells stand for as many members of one leaf, which one look finds.
        cells.sort_unstable();
        cells.dedup();
        for &cell in &cells {
            prefetch((&raw const tree.leaves[segment.leaf(cell)]).cast());
        }
        let mut candidates = Vec::with_capacity(cells.len() * 2);
        for (at, &cell) in cells.iter().enumerate() {
            if let Some(&ahead) = cells.get(at + PRINTS_AHEAD) {
                let prints = tree.leaves[segment.leaf(ahead)].prints_address();
                prefetch(prints);
                prefetch(prints.wrapping_add(64));
                prefetch(prints.wrapping_add(128));
            }
            let leaf = &tree.leaves[segment.leaf(cell)];
            let (print, mask) = segment.print(cell);
            leaf.each_print(print, mask, |at| {
                let offset = leaf.offset(at);
                prefetch(leaf.body_address(offset));
                candidates.push((cell, at, offset));
            });
        }
        let mut members = Vec::with_capacity(cells.len());
        for (cell, at, offset) in candidates {
            let leaf = segment.leaf(cell);
            let hash = self.hash(tree.leaves[leaf].member_from(at, offset, &tree.longs));
            if segment.means(cell, hash) {
                members.push((leaf, hash));
            }
        }
        members
    }

    /// Visits the members that a cell and its equals stand for.
    fn each_member<'a>(
        &self,
        tree: &'a Tree,
        segment: &IndexSegment,
        cell: u32,
        mut visit: impl FnMut(ScoredMember<'a>),
    ) {
        let leaf = &tree.leaves[segment.leaf(cell)];
        let (print, mask) = segment.print(cell);
        leaf.each_print(print, mask, |at| {
            let entry = leaf.entry(at, &tree.longs);
            if segment.means(cell, self.hash(entry.member)) {
                visit(entry);
            }
        });
    }

    /// Visits members from `cursor` on (0 = start) until at least `budget` were visited; returns the
    /// next cursor, 0 at the end. The cursor says that what lies in segments before the one around its
    /// prefix was visited, and in that one each member with a lesser tag.
    pub(super) fn scan<'a>(
        &'a self,
        tree: &'a Tree,
        cursor: u64,
        budget: usize,
        visit: &mut dyn FnMut(ScoredMember<'a>),
    ) -> u64 {
        let mut left = budget.max(1);
        let Cursor { mut prefix, mut depth, mut tag } = Cursor::decode(cursor);
        loop {
            let segment = &self.segments[self.route(hash_from(prefix))];
            // When the cursor is about a part of the segment, nothing is known of the whole.
            if segment.depth < depth {
                tag = 0;
            }
            let first = tag & !(u16::MAX >> segment.tag_bits);
            let mut cells: Vec<u32> = segment.cells_from(first).collect();
            // By tag, then by leaf.
            cells.sort_unstable();
            let mut last = None;
            for equal in cells.chunk_by(|a, b| a == b) {
                let tag = segment.tag(equal[0]);
                if left == 0 && last != Some(tag) {
                    let prefix = segment.prefix.into();
                    return Cursor { prefix, depth: segment.depth, tag }.encode();
                }
                self.each_member(tree, segment, equal[0], &mut *visit);
                left = left.saturating_sub(equal.len());
                last = Some(tag);
            }
            // Nothing is known of the next segment.
            prefix = u64::from(segment.prefix) + (1 << (PREFIX_BITS - segment.depth));
            (depth, tag) = (PREFIX_BITS, 0);
            if prefix == 1 << PREFIX_BITS {
                return 0;
            }
            left = left.saturating_sub(usize::from(cells.is_empty()));
            if left == 0 {
                return Cursor { prefix, depth, tag }.encode();
            }
        }
    }

    /// Gives one segment's memory back, for an index that is given up; `false` when none is left.
    pub(super) fn pop(&mut self) -> bool {
        self.directory = Vec::new();
        let segment = self.segments.pop();
        self.cells -= segment.as_ref().map_or(0, |segment| segment.cells.len());
        segment.is_some()
    }

    /// Gives all tags so few bits, as if there were many leaves.
    #[cfg(test)]
    pub(super) fn narrow_tags(&mut self, bits: u32) {
        for at in 0..self.segments.len() {
            let capacity = self.segments[at].cells.len();
            self.segments[at].rebuild(capacity, bits);
        }
    }

    /// Asserts what must hold; returns the number of members.
    #[cfg(test)]
    pub(super) fn check(&self, tree: &Tree) -> usize {
        assert_eq!(self.directory.len(), 1 << self.depth);
        let (mut len, mut cells, mut covered) = (0, 0, 0);
        let mut depths = [0; PREFIX_BITS as usize + 1];
        for (at, segment) in self.segments.iter().enumerate() {
            depths[segment.depth as usize] += 1;
            let run = 1 << (self.depth - segment.depth);
            let first = self.entry(hash_from(segment.prefix.into()));
            assert!(self.directory[first..first + run].iter().all(|&entry| entry as usize == at));
            covered += run;
            cells += segment.cells.len();
            len += segment.check();
            let mut cells: Vec<u32> = segment.cells.to_vec();
            cells.retain(|&cell| cell != EMPTY);
            cells.sort_unstable();
            for equal in cells.chunk_by(|a, b| a == b) {
                let mut found = 0;
                self.each_member(tree, segment, equal[0], |_| found += 1);
                assert_eq!(found, equal.len());
            }
        }
        assert_eq!(covered, self.directory.len());
        assert_eq!(cells, self.cells);
        assert_eq!(depths, self.depths);
        len
    }
}

/// A small hash table with linear probing, placed by the tag alone.
///
/// A cell's *home* is the tag's share of the capacity. It lies there or in the run of cells in use
/// that begins there, wrapped round at the end. At least a seventh of the cells is empty, so every
/// probe ends.
struct IndexSegment {
    cells: Box<[u32]>,
    /// How many are in use.
    len: u32,
    /// How many of the hash's top bits all members here share.
    depth: u32,
    /// These bits, followed by zeros, of [`PREFIX_BITS`].
    prefix: u32,
    /// Bits of a cell's tag; the others are the leaf's.
    tag_bits: u32,
}

const _: () = assert!(size_of::<IndexSegment>() == 32);

impl IndexSegment {
    fn nothing() -> IndexSegment {
        IndexSegment { cells: Box::default(), len: 0, depth: 0, prefix: 0, tag_bits: CELL_TAG_BITS }
    }

    /// The number of cells for so many members: an allocator's size class.
    fn room(len: usize) -> usize {
        (class((len + len / 6 + 2) * 4) / 4).max(CELLS_MIN)
    }

    fn with_room(len: usize, prefix: u32, depth: u32, tag_bits: u32) -> IndexSegment {
        let cells = vec![EMPTY; IndexSegment::room(len)].into();
        IndexSegment { cells, len: 0, depth, prefix, tag_bits }
    }

    /// Whether a member more would take the last of the empty cells that probing needs.
    #[inline]
    fn is_full(&self) -> bool {
        (self.len as usize + 1) * 7 > self.cells.len() * 6
    }

    /// The tag of a cell in use, followed by zeros.
    #[inline]
    fn tag(&self, cell: u32) -> u16 {
        ((cell >> (32 - self.tag_bits)) << (TAG_BITS - self.tag_bits)) as u16
    }

    /// The leaf of a cell in use.
    #[inline]
    fn leaf(&self, cell: u32) -> u32 {
        cell & (u32::MAX >> self.tag_bits)
    }

    /// Whether a leaf's number fits beside the tags. The last number of all is the empty cell's.
    #[inline]
    fn takes(&self, leaf: u32) -> bool {
        leaf < u32::MAX >> self.tag_bits
    }

    /// The cell of a leaf that [`IndexSegment::takes`].
    #[inline]
    fn cell(&self, tag: u16, leaf: u32) -> u32 {
        (u32::from(tag) << 16) & !(u32::MAX >> self.tag_bits) | leaf
    }

    /// Where a search for a tag begins.
    #[inline]
    fn home(&self, tag: u16) -> usize {
        let tag = tag & !(u16::MAX >> self.tag_bits);
        (usize::from(tag) * self.cells.len()) >> TAG_BITS
    }

    /// Prefetches the cell at which a search for a tag begins.
    #[inline]
    fn prefetch_home(&self, tag: u16) {
        prefetch((&raw const self.cells[self.home(tag)]).cast());
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.cells.len() { 0 } else { at + 1 }
    }

    #[inline]
    fn find<T>(&self, tag: u16, mut look: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let mut at = self.home(tag);
        let wanted = tag & !(u16::MAX >> self.tag_bits);
        loop {
            let cell = self.cells[at];
            if cell == EMPTY {
                return None;
            }
            if self.tag(cell) == wanted
                && let Some(found) = look(self.leaf(cell))
            {
                return Some(found);
            }
            at = self.after(at);
        }
    }

    /// The cells in use with at least this tag.
    fn cells_from(&self, tag: u16) -> impl Iterator<Item = u32> {
        self.cells.iter().copied().filter(move |&cell| cell != EMPTY && self.tag(cell) >= tag)
    }

    /// The print of a cell's member, and which bits of it are known.
    fn print(&self, cell: u32) -> (u8, u8) {
        let known = !(u16::MAX >> self.tag_bits);
        (print(self.tag(cell).into()), print(known.into()))
    }

    /// Whether a cell may stand for a member of its leaf with this hash.
    fn means(&self, cell: u32, hash: u64) -> bool {
        let differing = (hash >> (64 - PREFIX_BITS)) as u32 ^ self.prefix;
        let known = !(u16::MAX >> self.tag_bits);
        differing >> (PREFIX_BITS - self.depth) == 0 && hash as u16 & known == self.tag(cell)
    }

    /// Where there is a cell of this tag and leaf.
    fn position(&self, tag: u16, leaf: u32) -> Option<usize> {
        if !self.takes(leaf) {
            return None;
        }
        let wanted = self.cell(tag, leaf);
        let mut at = self.home(tag);
        while self.cells[at] != EMPTY {
            if self.cells[at] == wanted {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    /// Puts a cell into a segment that is not full.
    fn insert(&mut self, tag: u16, leaf: u32) {
        if !self.takes(leaf) {
            let mut bits = self.tag_bits;
            while bits > CELL_TAG_BITS_MIN && leaf >= u32::MAX >> bits {
                bits -= 1;
            }
            assert!(leaf < u32::MAX >> bits, "more leaves than any machine has memory for");
            self.rebuild(self.cells.len(), bits);
        }
        let cell = self.cell(tag, leaf);
        let mut at = self.home(tag);
        while self.cells[at] != EMPTY {
            at = self.after(at);
        }
        self.cells[at] = cell;
        self.len += 1;
    }

    /// Replaces the leaf of a member of this tag.
    fn replace(&mut self, tag: u16, from: u32, to: u32) {
        // The member was put here with its old leaf, and each of its moves is told once.
        let Some(at) = self.position(tag, from) else {
            unreachable!("a member is missing from the index")
        };
        if self.takes(to) {
            self.cells[at] = self.cell(tag, to);
        } else {
            // The number needs another bit, which rearranges the segment.
            self.remove(at);
            self.insert(tag, to);
        }
    }

    /// Empties a cell.
    fn remove(&mut self, at: usize) {
        self.len -= 1;
        // Each following cell of the run moves into the hole unless its home lies behind it (Knuth
        // 6.4, algorithm R).
        let capacity = self.cells.len();
        let behind =
            |from: usize, to: usize| if to >= from { to - from } else { to + capacity - from };
        let mut hole = at;
        let mut next = self.after(at);
        while self.cells[next] != EMPTY {
            let home = self.home(self.tag(self.cells[next]));
            if behind(home, next) >= behind(hole, next) {
                self.cells[hole] = self.cells[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.cells[hole] = EMPTY;
    }

    /// Moves all to so many cells, with so many bits of their tags.
    fn rebuild(&mut self, capacity: usize, tag_bits: u32) {
        let fresh = vec![EMPTY; capacity].into();
        let old = IndexSegment { cells: std::mem::replace(&mut self.cells, fresh), ..*self };
        self.tag_bits = tag_bits;
        self.len = 0;
        for &cell in old.cells.iter().filter(|&&cell| cell != EMPTY) {
            self.insert(old.tag(cell), old.leaf(cell));
        }
    }

    #[cfg(test)]
    fn check(&self) -> usize {
        let mut len = 0;
        for (at, &cell) in self.cells.iter().enumerate() {
            if cell == EMPTY {
                continue;
            }
            len += 1;
            let mut way = self.home(self.tag(cell));
            while way != at {
                assert!(self.cells[way] != EMPTY, "a gap between a cell and its home");
                way = self.after(way);
            }
        }
        assert_eq!(len, self.len as usize);
        assert!(len * 7 <= self.cells.len() * 6);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_takes_any_leaf_number() {
        let mut segment = IndexSegment::with_room(40, 0, 0, CELL_TAG_BITS);
        let tag = |n: u32| (n * 1637) as u16;
        for n in 0..40 {
            segment.insert(tag(n), n);
        }
        let last = u32::MAX >> CELL_TAG_BITS;
        for (n, to) in [(3, last - 1), (7, last), (8, 1 << 23), (9, (1 << 28) - 2)] {
            segment.replace(tag(n), n, to);
            assert_eq!(segment.check(), 40);
            assert_eq!(segment.find(tag(n), |leaf| (leaf == to).then_some(leaf)), Some(to));
            assert_eq!(segment.position(tag(n), n), None);
        }
        assert_eq!(segment.tag_bits, CELL_TAG_BITS_MIN);
        for n in (0..40).filter(|n| ![3, 7, 8, 9].contains(n)) {
            assert!(segment.position(tag(n), n).is_some(), "{n}");
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for depth in 0..=PREFIX_BITS {
            let prefix = ((1 << PREFIX_BITS) - 1) & !((1 << (PREFIX_BITS - depth)) - 1);
            for tag in [0, 1, u16::MAX] {
                let cursor = Cursor { prefix, depth, tag };
                assert_eq!(Cursor::decode(cursor.encode()), cursor);
                assert!(cursor.encode() < 1 << 48);
            }
        }
    }
}
