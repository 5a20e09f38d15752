//! A leaf: some entries in order, column by column, in one allocation.
//!
//! ```text
//! | scores, 8 each | prints, 1 each | lengths, 1 each | members, one after the other | room |
//! ```
//!
//! A *print* is a byte of the member's hash. To find a member among the hundred of a leaf is to
//! compare a hundred prints, which a processor does some dozens at a time, and about one member.
//! Where a member begins is the sum of the lengths before it, which is as quick.
//!
//! A member longer than [`INLINE_MAX`] is stored apart ([`Longs`]); its length here is
//! [`LONG`] and its number lies where its bytes would.

use super::slab::Slab;
use crate::store::item::class;
use crate::store::table::prefetch;
use std::cmp::Ordering;
use std::ops::Range;

/// No leaf.
pub(super) const NONE: u32 = u32::MAX;
/// The longest member that lies in a leaf: a leaf holds a dozen of them at least.
pub(super) const INLINE_MAX: usize = 254;
/// The length that stands for a member stored apart.
const LONG: u8 = u8::MAX;
/// Bytes of such a member's number.
const NUMBER: usize = size_of::<u32>();
/// So many entries that each went on from the one before are entries that come in order.
const RUN: u16 = 4;
/// Bytes of an entry besides its member.
const COLUMNS: usize = 10;

const _: () = assert!(INLINE_MAX < LONG as usize);

/// Members too long for a leaf, by number.
#[derive(Default)]
pub(super) struct Longs {
    members: Slab<Box<[u8]>>,
    /// What they take together.
    heap: usize,
}

impl Longs {
    /// The memory held.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.members.bytes() + self.heap
    }

    fn remove(&mut self, number: u32) {
        self.heap -= self.members.remove(number).len();
    }

    /// Drops the last of them; `false` when there are none.
    pub(super) fn pop(&mut self) -> bool {
        let member = self.members.pop();
        self.heap -= member.as_ref().map_or(0, |member| member.len());
        member.is_some()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.members.used()
    }
}

/// A place in the order of entries: between those before it and the others.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a> {
    pub(super) score: f64,
    pub(super) tie: Tie<'a>,
}

/// Which entries of a cut's score are before it.
#[derive(Clone, Copy)]
pub(super) enum Tie<'a> {
    /// None.
    None,
    /// All.
    All,
    /// Those with a lesser member.
    Below(&'a [u8]),
    /// Those with a lesser member, or this one.
    UpTo(&'a [u8]),
}

impl<'a> Cut<'a> {
    /// Where this entry is or would be.
    #[inline]
    pub(super) fn at(score: f64, member: &'a [u8]) -> Cut<'a> {
        Cut { score, tie: Tie::Below(member) }
    }
}

/// An entry of a sorted set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredMember<'a> {
    /// What is unique.
    pub member: &'a [u8],
    /// What it is ordered by, then by member. Minus zero keeps its sign and is equal to zero.
    pub score: f64,
}

impl ScoredMember<'_> {
    /// The order of a sorted set.
    pub(super) fn order(&self, other: &ScoredMember<'_>) -> Ordering {
        let scores = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        scores.then_with(|| self.member.cmp(other.member))
    }
}

// A head is a third of a byte a member.
const _: () = assert!(size_of::<Leaf>() == 40);

/// Some entries in order, with links to the leaves on both sides.
pub(super) struct Leaf {
    columns: Vec<u8>,
    len: u32,
    /// Where the last entry was put, and how many before it each went on from the one before.
    latest: u16,
    run: u16,
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Default for Leaf {
    fn default() -> Leaf {
        Leaf { columns: Vec::new(), len: 0, latest: 0, run: 0, prev: NONE, next: NONE }
    }
}

impl Leaf {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The same entries with other links.
    pub(super) fn linked(self, prev: u32, next: u32) -> Leaf {
        Leaf { prev, next, ..self }
    }

    /// Bytes in use.
    #[inline]
    pub(super) fn used(&self) -> usize {
        self.columns.len()
    }

    /// What the allocation takes.
    #[inline]
    pub(super) fn heap(&self) -> usize {
        self.columns.capacity()
    }

    /// Bytes that a member takes in a leaf.
    #[inline]
    pub(super) fn entry_bytes(member: &[u8]) -> usize {
        COLUMNS + if member.len() > INLINE_MAX { NUMBER } else { member.len() }
    }

    /// Where the columns lie that a look-up reads first, for a prefetch.
    #[inline]
    pub(super) fn prints_address(&self) -> *const u8 {
        self.columns.as_ptr().wrapping_add(8 * self.len())
    }

    /// Where the bytes at an offset lie, for a prefetch.
    #[inline]
    pub(super) fn body_address(&self, offset: usize) -> *const u8 {
        self.columns.as_ptr().wrapping_add(offset)
    }

    #[inline]
    fn scores(&self) -> &[[u8; 8]] {
        self.columns[..8 * self.len()].as_chunks().0
    }

    #[inline]
    fn prints(&self) -> &[u8] {
        &self.columns[8 * self.len()..9 * self.len()]
    }

    #[inline]
    fn lengths(&self) -> &[u8] {
        &self.columns[9 * self.len()..10 * self.len()]
    }

    /// The score of an entry.
    #[inline]
    pub(super) fn score(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.scores()[at])
    }

    /// Replaces the score of an entry, whose place stays the same.
    pub(super) fn set_score(&mut self, at: usize, score: f64) {
        self.columns[8 * at..8 * at + 8].copy_from_slice(&score.to_le_bytes());
    }

    /// Bytes here of a member with this length.
    #[inline]
    fn stride(length: u8) -> usize {
        if length == LONG { NUMBER } else { usize::from(length) }
    }

    /// Bytes here of a member.
    #[inline]
    pub(super) fn stride_at(&self, at: usize) -> usize {
        Leaf::stride(self.lengths()[at])
    }

    /// Where the member of an entry begins.
    #[inline]
    pub(super) fn offset(&self, at: usize) -> usize {
        let before = self.lengths()[..at].iter();
        // In 32 bits, which the compiler makes vector instructions of.
        let sum: u32 = before.map(|&length| Leaf::stride(length) as u32).sum();
        COLUMNS * self.len() + sum as usize
    }

    /// The member of an entry that begins at `offset`.
    #[inline]
    pub(super) fn member_from<'a>(
        &'a self,
        at: usize,
        offset: usize,
        longs: &'a Longs,
    ) -> &'a [u8] {
        let length = self.lengths()[at];
        let body = &self.columns[offset..offset + Leaf::stride(length)];
        match body.first_chunk() {
            Some(&number) if length == LONG => &longs.members[u32::from_le_bytes(number)],
            _ => body,
        }
    }

    /// The member of an entry.
    #[inline]
    pub(super) fn member<'a>(&'a self, at: usize, longs: &'a Longs) -> &'a [u8] {
        self.member_from(at, self.offset(at), longs)
    }

    /// An entry.
    #[inline]
    pub(super) fn entry<'a>(&'a self, at: usize, longs: &'a Longs) -> ScoredMember<'a> {
        ScoredMember { member: self.member(at, longs), score: self.score(at) }
    }

    /// Some entries.
    pub(super) fn entries<'a>(
        &'a self,
        range: Range<usize>,
        longs: &'a Longs,
    ) -> impl Iterator<Item = ScoredMember<'a>> {
        let mut offset = self.offset(range.start);
        range.map(move |at| {
            let member = self.member_from(at, offset, longs);
            offset += self.stride_at(at);
            ScoredMember { member, score: self.score(at) }
        })
    }

    /// The first entry from `from` on whose print has these bits under the mask.
    #[inline]
    fn next_print(&self, from: usize, print: u8, mask: u8) -> Option<usize> {
        /// Prints compared at a time.
        const LANES: usize = 32;
        let prints = &self.prints()[from..];
        let (blocks, rest) = prints.as_chunks::<LANES>();
        for (block, prints) in blocks.iter().enumerate() {
            let hit = prints.iter().fold(false, |hit, &other| hit | ((other ^ print) & mask == 0));
            if hit {
                let at = prints.iter().position(|&other| (other ^ print) & mask == 0)?;
                return Some(from + block * LANES + at);
            }
        }
        let at = rest.iter().position(|&other| (other ^ print) & mask == 0)?;
        Some(from + blocks.len() * LANES + at)
    }

    /// Where a member is.
    #[inline]
    pub(super) fn find(&self, member: &[u8], print: u8, longs: &Longs) -> Option<usize> {
        let mut from = 0;
        while let Some(at) = self.next_print(from, print, u8::MAX) {
            if self.member(at, longs) == member {
                return Some(at);
            }
            from = at + 1;
        }
        None
    }

    /// Visits the places of the entries whose print has these bits under the mask.
    pub(super) fn each_print(&self, print: u8, mask: u8, mut visit: impl FnMut(usize)) {
        let mut from = 0;
        while let Some(at) = self.next_print(from, print, mask) {
            visit(at);
            from = at + 1;
        }
    }

    /// How many entries are before the cut.
    pub(super) fn cut(&self, cut: &Cut<'_>, longs: &Longs) -> usize {
        let scores = self.scores();
        // All misses at once, rather than those of the search one by one.
        for line in scores.chunks(64 / size_of::<f64>()) {
            prefetch(line.as_ptr().cast());
        }
        let below = scores.partition_point(|&score| f64::from_le_bytes(score) < cut.score);
        if matches!(cut.tie, Tie::None) {
            return below;
        }
        let (mut low, mut high) = (
            below,
            below
                + scores[below..].partition_point(|&score| f64::from_le_bytes(score) <= cut.score),
        );
        let before = |at: usize| match cut.tie {
            Tie::None => false,
            Tie::All => true,
            Tie::Below(member) => self.member(at, longs) < member,
            Tie::UpTo(member) => self.member(at, longs) <= member,
        };
        if matches!(cut.tie, Tie::All) {
            return high;
        }
        while low < high {
            let middle = low.midpoint(high);
            if before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Makes the allocation fit `len` bytes to come.
    fn reserve(&mut self, len: usize) {
        if len > self.columns.capacity() {
            self.columns.reserve_exact(class(len) - self.columns.len());
        }
    }

    /// Gives memory back when much is unused.
    fn shrink(&mut self) {
        let len = self.columns.len();
        if class(len + len / 8) < self.columns.capacity() {
            self.columns.shrink_to(class(len));
        }
    }

    /// Puts an entry at a place. A long member is stored in `longs`.
    pub(super) fn insert(
        &mut self,
        at: usize,
        entry: ScoredMember<'_>,
        print: u8,
        longs: &mut Longs,
    ) {
        if entry.member.len() <= INLINE_MAX {
            self.insert_body(at, entry.score, print, entry.member.len() as u8, entry.member);
        } else {
            let number = longs.members.insert(entry.member.into());
            longs.heap += entry.member.len();
            self.insert_body(at, entry.score, print, LONG, &number.to_le_bytes());
        }
    }

    fn insert_body(&mut self, at: usize, score: f64, print: u8, length: u8, body: &[u8]) {
        let (len, used, offset) = (self.len(), self.used(), self.offset(at));
        self.reserve(used + COLUMNS + body.len());
        self.columns.resize(used + COLUMNS + body.len(), 0);
        // From the end, so that nothing is overwritten before it is moved.
        self.columns.copy_within(offset..used, offset + COLUMNS + body.len());
        self.columns.copy_within(9 * len + at..offset, 9 * len + at + COLUMNS);
        self.columns.copy_within(8 * len + at..9 * len + at, 8 * len + at + 9);
        self.columns.copy_within(8 * at..8 * len + at, 8 * at + 8);
        self.len += 1;
        self.run = if self.goes_on(at) { self.run.saturating_add(1) } else { 0 };
        self.latest = at as u16;
        self.columns[8 * at..8 * at + 8].copy_from_slice(&score.to_le_bytes());
        self.columns[8 * (len + 1) + at] = print;
        self.columns[9 * (len + 1) + at] = length;
        self.columns[offset + COLUMNS..offset + COLUMNS + body.len()].copy_from_slice(body);
    }

    /// Takes some entries out, and their long members out of `longs`.
    pub(super) fn remove(&mut self, range: Range<usize>, longs: &mut Longs) {
        let mut offset = self.offset(range.start);
        for at in range.clone() {
            if self.lengths()[at] == LONG
                && let Some(&number) = self.columns[offset..].first_chunk()
            {
                longs.remove(u32::from_le_bytes(number));
            }
            offset += self.stride_at(at);
        }
        self.cut_out(range);
        self.shrink();
    }

    /// Takes the bytes of some entries out.
    fn cut_out(&mut self, range: Range<usize>) {
        let (len, start, end) = (self.len(), range.start, range.end);
        let (body_start, body_end) = (self.offset(start), self.offset(end));
        // The four gaps, one in each column; what lies between them moves down.
        let gaps = [
            8 * start..8 * end,
            8 * len + start..8 * len + end,
            9 * len + start..9 * len + end,
            body_start..body_end,
            self.used()..self.used(),
        ];
        let mut to = gaps[0].start;
        for pair in gaps.windows(2) {
            let kept = pair[0].end..pair[1].start;
            self.columns.copy_within(kept.clone(), to);
            to += kept.len();
        }
        self.columns.truncate(to);
        self.len -= range.len() as u32;
    }

    /// Whether an entry at a place would be a neighbour of the last one put here.
    #[inline]
    fn goes_on(&self, at: usize) -> bool {
        at == usize::from(self.latest) || at == usize::from(self.latest) + 1
    }

    /// Whether entries come in order, and one at a place would go on from them.
    #[inline]
    pub(super) fn in_order(&self, coming: usize) -> bool {
        self.run >= RUN && self.goes_on(coming)
    }

    /// What more the allocation has room for.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.heap() - self.used()
    }

    /// How many entries, from the start or from the end, take half of `room` or a little more, but
    /// no more than all of it; and their bytes. One at least is left.
    pub(super) fn share(&self, from_end: bool, room: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        while 2 * bytes < room && count + 1 < self.len() {
            let at = if from_end { self.len() - 1 - count } else { count };
            let entry = COLUMNS + self.stride_at(at);
            if bytes + entry > room {
                break;
            }
            (count, bytes) = (count + 1, bytes + entry);
        }
        (count, bytes)
    }

    /// Where to split the leaf for an entry that would be put at a place: there, if entries come in
    /// order, upwards or downwards; else near the middle by bytes.
    ///
    /// A set that is filled in order has full leaves then, and so has one with many members of each
    /// score that come in order. One part may be without entries; the middle leaves some on both
    /// sides, if there are two.
    pub(super) fn split_at(&self, coming: usize) -> usize {
        if self.len() == 1 || self.in_order(coming) {
            return coming;
        }
        let mut bytes = 0;
        for (at, &length) in self.lengths().iter().enumerate() {
            bytes += COLUMNS + Leaf::stride(length);
            if 2 * bytes >= self.used() {
                return (at + 1).min(self.len() - 1);
            }
        }
        0
    }

    /// Splits the entries from a place on off. The links are not touched.
    pub(super) fn split_off(&mut self, at: usize) -> Leaf {
        let mut right = Leaf::default();
        right.columns.reserve_exact(class(self.used() - COLUMNS * at));
        right.append_range(self, at..self.len());
        right.shrink();
        self.cut_out(at..self.len());
        self.shrink();
        right
    }

    /// Appends the entries of another leaf, which is to be forgotten.
    pub(super) fn append(&mut self, other: &Leaf) {
        let mut both = Leaf { prev: self.prev, next: self.next, ..Leaf::default() };
        both.columns.reserve_exact(class(self.used() + other.used()));
        let (left, right) = (self.len(), other.len());
        both.columns.extend_from_slice(&self.columns[..8 * left]);
        both.columns.extend_from_slice(&other.columns[..8 * right]);
        both.columns.extend_from_slice(self.prints());
        both.columns.extend_from_slice(other.prints());
        both.columns.extend_from_slice(self.lengths());
        both.columns.extend_from_slice(other.lengths());
        both.columns.extend_from_slice(&self.columns[COLUMNS * left..]);
        both.columns.extend_from_slice(&other.columns[COLUMNS * right..]);
        both.len = self.len + other.len;
        *self = both;
    }

    /// Fills an empty leaf with some entries of another.
    fn append_range(&mut self, other: &Leaf, range: Range<usize>) {
        let body = other.offset(range.start)..other.offset(range.end);
        self.columns.extend_from_slice(&other.columns[8 * range.start..8 * range.end]);
        self.columns.extend_from_slice(&other.prints()[range.clone()]);
        self.columns.extend_from_slice(&other.lengths()[range.clone()]);
        self.columns.extend_from_slice(&other.columns[body]);
        self.len = range.len() as u32;
    }

    /// Asserts what must hold of the leaf by itself.
    #[cfg(test)]
    pub(super) fn check(&self, longs: &Longs, print: impl Fn(&[u8]) -> u8) {
        assert_eq!(self.offset(self.len()), self.used());
        for at in 0..self.len() {
            assert_eq!(self.prints()[at], print(self.member(at, longs)));
            assert_eq!(self.lengths()[at] == LONG, self.member(at, longs).len() > INLINE_MAX);
        }
        for at in 1..self.len() {
            assert!(self.entry(at - 1, longs).order(&self.entry(at, longs)).is_lt());
        }
    }
}
