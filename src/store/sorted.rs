//! A sorted set in its large form: members with scores, in order, found by member, score or rank.
//!
//! ```text
//!   member -- hash --> index:  segments of cells  | tag, 12 bits | leaf, 20 bits |
//!                                                                      |
//!                      tree:   inner nodes with counts                 |
//!                     | 0     | (2.5,"")  | (7,"bo") |  separators     |
//!                     | 93    | 110       | 87       |  entries below  |
//!                     | leaf  | leaf      | leaf     |                 |
//!                        |        |           |                        v
//!                        v        v           v
//!      leaf <--> leaf <--> leaf: | scores, 8 each | prints, 1 | lengths, 1 | members .. | room |
//! ```
//!
//! The order is that of (score, member bytes). Entries lie in the leaves of a counted B+tree
//! ([`tree`]), so a rank is a sum of counts on one way down, and an entry is found by its rank on
//! another. A hash index ([`index`]) leads from a member to its leaf, where it is found by a byte of
//! its hash ([`leaf`]).
//!
//! - **Little memory**: all of an entry is in its leaf: score, print, length, member. That is 10
//!   bytes besides the member. An index cell is 4, of which two thirds to six sevenths are in use. A
//!   leaf of up to 4 KiB is as large as its content, rounded to the allocator's size classes, and
//!   what rounding leaves unused is shared with its neighbours. With scores by chance a member of 16
//!   bytes takes 17.8 bytes more, one of 32 bytes 19.2, one of 64 bytes 21.9; after much coming and
//!   going one of 16 bytes takes 18.9 ([`SortedSet::bytes`]).
//! - **No arena**: members in an arena would need a reference each from the leaf, whose unused cells
//!   cost too, an arena to be compacted, and one more cache miss for each comparison. Here removing
//!   an entry closes the gap in its leaf at once.
//! - **No pause**: a leaf splits at 4 KiB, an index segment at 256 cells, and nothing whose length is
//!   that of the set is ever copied, save the index's directory, four bytes a hundred members.
//!   [`SortedSet::remove_ranks`] and [`Remains::shrink_by`] work in steps.
//! - **Moves**: the index knows leaves, not places in them. A score that changes within a leaf
//!   concerns neither tree nor index. When a leaf is split, half its members are noted anew, which is
//!   one for each insertion on average; the cache misses for these overlap.
//! - **Order**: a leaf that is filled in order is not split in the middle but where the next entry
//!   would be, so a set filled in order, of scores or of members with one score, has full leaves.
//!
//! # Limits
//!
//! The index has room for 2^28 leaves, which are more than 500 GB, and for 2^32 members longer than
//! 254 bytes, which are more than that too.

mod index;
mod leaf;
mod slab;
mod tree;

use crate::store::tables::KeyHasher;
use index::{Index, print};
pub use leaf::ScoredMember;
use leaf::{Cut, Tie};
use std::iter::FusedIterator;
use std::ops::{Bound, Range};
use tree::{Spot, Tree};

/// Where leaves, nodes and segments of the index split.
#[derive(Clone, Copy, Debug)]
struct TreeShape {
    /// Bytes of a leaf in use.
    leaf_bytes: usize,
    /// Children of an inner node.
    fanout: usize,
    /// Cells of a segment.
    cells_split: usize,
}

/// What was measured best. Larger leaves take less memory and more time.
const SHAPE: TreeShape = TreeShape { leaf_bytes: 4096, fanout: 64, cells_split: 256 };

/// How many members' worth of work it is to free a node or an index segment.
const PIECE_MEMBERS: usize = 32;

/// A sorted set.
///
/// Scores are not NaN. Minus zero equals zero; which of the two a member has is kept.
pub struct SortedSet {
    tree: Tree,
    index: Index,
}

impl SortedSet {
    /// A set without members. The hasher's seed is to be kept from clients, who could make members
    /// that collide.
    pub fn new(hasher: KeyHasher) -> SortedSet {
        SortedSet::with_shape(hasher, SHAPE)
    }

    fn with_shape(hasher: KeyHasher, shape: TreeShape) -> SortedSet {
        SortedSet { tree: Tree::new(shape), index: Index::new(hasher, shape.cells_split) }
    }

    /// How many members there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory held.
    #[inline]
    pub fn bytes(&self) -> usize {
        size_of::<SortedSet>() + self.tree.bytes() + self.index.bytes()
    }

    /// Where the member is.
    #[inline]
    fn find(&self, hash: u64, member: &[u8]) -> Option<Spot> {
        self.index.find(hash, |leaf| {
            let at = self.tree.leaves[leaf].find(member, print(hash), &self.tree.longs)?;
            Some(Spot { leaf, at })
        })
    }

    /// Gives a member a score, and returns the one that it had. One that had an equal score keeps it
    /// with its sign.
    pub fn insert(&mut self, member: &[u8], score: f64) -> Option<f64> {
        debug_assert!(!score.is_nan(), "NaN has no place in an order");
        let hash = self.index.hash(member);
        let mut old = None;
        if let Some(spot) = self.find(hash, member) {
            let before = self.tree.leaves[spot.leaf].score(spot.at);
            if before == score || self.tree.set_score(spot, ScoredMember { member, score }) {
                return Some(before);
            }
            self.tree.remove(spot, &mut self.index);
            old = Some(before);
        }
        let leaf = self.tree.insert(ScoredMember { member, score }, hash, &mut self.index);
        self.index.insert(hash, leaf, &self.tree);
        old
    }

    /// Takes a member out, and returns the score that it had.
    pub fn remove(&mut self, member: &[u8]) -> Option<f64> {
        let spot = self.find(self.index.hash(member), member)?;
        let score = self.tree.leaves[spot.leaf].score(spot.at);
        self.tree.remove(spot, &mut self.index);
        Some(score)
    }

    /// The score of a member.
    #[inline]
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        let spot = self.find(self.index.hash(member), member)?;
        Some(self.tree.leaves[spot.leaf].score(spot.at))
    }

    /// How many entries are before a member's, and its score.
    pub fn rank(&self, member: &[u8]) -> Option<(usize, f64)> {
        let spot = self.find(self.index.hash(member), member)?;
        let score = self.tree.leaves[spot.leaf].score(spot.at);
        Some((self.tree.rank_at(spot, &ScoredMember { member, score }), score))
    }

    /// How many entries are behind a member's, and its score.
    pub fn reverse_rank(&self, member: &[u8]) -> Option<(usize, f64)> {
        self.rank(member).map(|(rank, score)| (self.len() - 1 - rank, score))
    }

    /// The entry before which there are `rank`. With a rank by chance it is one by chance, each as
    /// likely as the others.
    pub fn select(&self, rank: usize) -> Option<ScoredMember<'_>> {
        self.tree.select(rank).map(|spot| self.tree.entry(spot))
    }

    /// The ranks of the entries with such scores. Their number is the range's length.
    pub fn ranks_by_score(&self, min: Bound<f64>, max: Bound<f64>) -> Range<usize> {
        let rank = |score, tie| self.tree.rank(&Cut { score, tie });
        let start = match min {
            Bound::Unbounded => 0,
            Bound::Included(score) => rank(score, Tie::None),
            Bound::Excluded(score) => rank(score, Tie::All),
        };
        let end = match max {
            Bound::Unbounded => self.len(),
            Bound::Included(score) => rank(score, Tie::All),
            Bound::Excluded(score) => rank(score, Tie::None),
        };
        start..end.max(start)
    }

    /// The ranks of the entries with such members, if all scores are the same. Else it is a range of
    /// some entries, as in Redis, here of those with the least score.
    pub fn ranks_by_member(&self, min: Bound<&[u8]>, max: Bound<&[u8]>) -> Range<usize> {
        let Some(ScoredMember { score, .. }) = self.select(0) else { return 0..0 };
        let rank = |tie| self.tree.rank(&Cut { score, tie });
        let start = match min {
            Bound::Unbounded => 0,
            Bound::Included(member) => rank(Tie::Below(member)),
            Bound::Excluded(member) => rank(Tie::UpTo(member)),
        };
        let end = match max {
            Bound::Unbounded => self.len(),
            Bound::Included(member) => rank(Tie::UpTo(member)),
            Bound::Excluded(member) => rank(Tie::Below(member)),
        };
        start..end.max(start)
    }

    /// The entries of a range of ranks, from both ends. Ranks past the end are left out.
    ///
    /// An offset or a limit is arithmetic on the range: no entry outside it is looked at.
    pub fn range(&self, ranks: Range<usize>) -> Entries<'_> {
        let end = ranks.end.min(self.len());
        let ranks = ranks.start.min(end)..end;
        Entries { tree: &self.tree, ranks, front: None, back: None }
    }

    /// All entries in order.
    pub fn iter(&self) -> Entries<'_> {
        self.range(0..self.len())
    }

    /// Takes the first entry out.
    pub fn pop_min(&mut self) -> Option<(Vec<u8>, f64)> {
        self.pop(0)
    }

    /// Takes the last entry out.
    pub fn pop_max(&mut self) -> Option<(Vec<u8>, f64)> {
        self.pop(self.len().checked_sub(1)?)
    }

    fn pop(&mut self, rank: usize) -> Option<(Vec<u8>, f64)> {
        let mut popped = None;
        self.tree.remove_at(rank, 1, &mut self.index, &mut |entry| {
            popped = Some((entry.member.to_vec(), entry.score));
        });
        popped
    }

    /// Takes entries of a range of ranks out, from its start on and at most `most`; visits each
    /// before and returns their number.
    ///
    /// A long range is removed in steps: after each, what is left of it has the same start and as
    /// many fewer ranks. A step of 500 takes some tenths of a millisecond.
    pub fn remove_ranks(
        &mut self,
        ranks: Range<usize>,
        most: usize,
        mut visit: impl FnMut(ScoredMember<'_>),
    ) -> usize {
        let wanted = ranks.len().min(most);
        let mut removed = 0;
        while removed < wanted {
            let left = wanted - removed;
            match self.tree.remove_at(ranks.start, left, &mut self.index, &mut visit) {
                0 => break,
                some => removed += some,
            }
        }
        removed
    }

    /// Visits entries in no order to speak of from `cursor` on (0 = start), until at least `budget`
    /// were visited; returns the next cursor, 0 at the end.
    ///
    /// A cursor survives every change: a member that is there throughout is visited at least once,
    /// whatever its scores are meanwhile. Any number will do as a cursor; one that was never returned
    /// starts somewhere. Cursors are less than two to the power of 48.
    ///
    /// It goes by hash, since a member whose score changes would move past a cursor in the order of
    /// scores. The order is that of (top bits of the hash, low bits); within a segment of the index,
    /// whatever its size, entries are visited by tag. Where the segment around the cursor was split,
    /// its parts are visited from that tag on and from the beginning; where it was merged, from the
    /// beginning. So while a set grows and shrinks between any two steps, a scan by small steps need
    /// not come to its end.
    pub fn scan<'a>(
        &'a self,
        cursor: u64,
        budget: usize,
        mut visit: impl FnMut(ScoredMember<'a>),
    ) -> u64 {
        self.index.scan(&self.tree, cursor, budget, &mut visit)
    }

    /// The set as something to be freed in steps. Dropping it frees it at once, which takes some
    /// milliseconds for each million members.
    pub fn dismantle(self) -> Remains {
        Remains { tree: self.tree, index: self.index }
    }

    /// Asserts what must hold.
    #[cfg(test)]
    fn check(&self) {
        self.tree.check(&self.index);
        assert_eq!(self.index.check(&self.tree), self.len());
    }
}

/// The entries of a range of ranks.
pub struct Entries<'a> {
    tree: &'a Tree,
    /// What is left.
    ranks: Range<usize>,
    /// The next from either end, once it was looked for.
    front: Option<Place>,
    back: Option<Place>,
}

/// Where an entry lies, and where its member begins in the leaf.
#[derive(Clone, Copy)]
struct Place {
    spot: Spot,
    offset: usize,
}

impl<'a> Entries<'a> {
    fn place(&self, rank: usize) -> Option<Place> {
        let spot = self.tree.select(rank)?;
        Some(Place { spot, offset: self.tree.leaves[spot.leaf].offset(spot.at) })
    }

    fn entry(&self, place: Place) -> ScoredMember<'a> {
        let Spot { leaf, at } = place.spot;
        let leaf = &self.tree.leaves[leaf];
        let member = leaf.member_from(at, place.offset, &self.tree.longs);
        ScoredMember { member, score: leaf.score(at) }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = ScoredMember<'a>;

    fn next(&mut self) -> Option<ScoredMember<'a>> {
        if self.ranks.is_empty() {
            return None;
        }
        let place = match self.front {
            Some(place) => place,
            None => self.place(self.ranks.start)?,
        };
        self.ranks.start += 1;
        if !self.ranks.is_empty() {
            let Place { spot: Spot { leaf: number, at }, offset } = place;
            let leaf = &self.tree.leaves[number];
            self.front = Some(if at + 1 < leaf.len() {
                let spot = Spot { leaf: number, at: at + 1 };
                Place { spot, offset: offset + leaf.stride_at(at) }
            } else {
                let spot = Spot { leaf: leaf.next, at: 0 };
                Place { spot, offset: self.tree.leaves[leaf.next].offset(0) }
            });
        }
        Some(self.entry(place))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.ranks.len(), Some(self.ranks.len()))
    }

    fn nth(&mut self, skipped: usize) -> Option<ScoredMember<'a>> {
        if skipped > 0 {
            self.ranks.start = self.ranks.start.saturating_add(skipped).min(self.ranks.end);
            self.front = None;
        }
        self.next()
    }
}

impl<'a> DoubleEndedIterator for Entries<'a> {
    fn next_back(&mut self) -> Option<ScoredMember<'a>> {
        if self.ranks.is_empty() {
            return None;
        }
        let place = match self.back {
            Some(place) => place,
            None => self.place(self.ranks.end - 1)?,
        };
        self.ranks.end -= 1;
        if !self.ranks.is_empty() {
            let Place { spot: Spot { leaf: number, at }, offset } = place;
            let leaf = &self.tree.leaves[number];
            self.back = Some(if at > 0 {
                let spot = Spot { leaf: number, at: at - 1 };
                Place { spot, offset: offset - leaf.stride_at(at - 1) }
            } else {
                let before = &self.tree.leaves[leaf.prev];
                let at = before.len() - 1;
                Place { spot: Spot { leaf: leaf.prev, at }, offset: before.offset(at) }
            });
        }
        Some(self.entry(place))
    }

    fn nth_back(&mut self, skipped: usize) -> Option<ScoredMember<'a>> {
        if skipped > 0 {
            self.ranks.end = self.ranks.end.saturating_sub(skipped).max(self.ranks.start);
            self.back = None;
        }
        self.next_back()
    }
}

impl ExactSizeIterator for Entries<'_> {}
impl FusedIterator for Entries<'_> {}

/// A sorted set that is being freed.
pub struct Remains {
    tree: Tree,
    index: Index,
}

impl Remains {
    /// Frees what about so many members take; returns whether nothing is left.
    pub fn shrink_by(&mut self, members: usize) -> bool {
        let mut left = self.tree.pop_leaves(members.max(1));
        while left > 0 {
            left = if self.tree.longs.pop() {
                left - 1
            } else if self.index.pop() || self.tree.pop_inner() {
                left.saturating_sub(PIECE_MEMBERS)
            } else {
                return true;
            };
        }
        false
    }

    /// The memory held.
    pub fn bytes(&self) -> usize {
        size_of::<Remains>() + self.tree.bytes() + self.index.bytes()
    }
}

#[cfg(test)]
mod tests;
