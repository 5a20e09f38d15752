//! The tree: entries in order, counted.
//!
//! A B+tree whose inner nodes have, for each child, the number of entries below it. Leaves and nodes
//! are limited by bytes and by children; those that have become small are merged with a neighbour
//! under the same node if there is one with room, else they stay small.
//!
//! Between two children lies a *separator*: a score and a prefix of a member, at most the least
//! entry of the child behind it and greater than any before it. It is as short as can be (Bayer and
//! Unterauer 1977): only between entries of one score it has bytes of a member at all. It need not
//! be an entry that is there, so removing entries does not change separators.

use super::TreeShape;
use super::index::{Index, print};
use super::leaf::{Cut, Leaf, Longs, NONE, ScoredMember, Tie};
use super::slab::Slab;
use smallvec::SmallVec;
use std::ops::Range;

/// A way from the root to a leaf: nodes, and which child of each.
type Path = SmallVec<[TreeStep; 8]>;

#[derive(Clone, Copy)]
pub(super) struct TreeStep {
    node: u32,
    child: usize,
}

/// Where an entry lies; valid until the tree is changed.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub(super) leaf: u32,
    pub(super) at: usize,
}

/// A leaf gives a neighbour no less than this part of what leaves may have, so that it seldom does.
const SHARE_MIN: usize = 64;

/// Entries in order.
pub(super) struct Tree {
    pub(super) leaves: Slab<Leaf>,
    inners: Slab<Inner>,
    pub(super) longs: Longs,
    /// A leaf when the height is 0, else an inner node.
    root: u32,
    height: u32,
    len: usize,
    /// What leaves and inner nodes have allocated.
    heap: usize,
    shape: TreeShape,
}

impl Tree {
    pub(super) fn new(shape: TreeShape) -> Tree {
        let mut leaves = Slab::default();
        let root = leaves.insert(Leaf::default());
        let inners = Slab::default();
        Tree { leaves, inners, longs: Longs::default(), root, height: 0, len: 0, heap: 0, shape }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The memory held.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.leaves.bytes() + self.inners.bytes() + self.longs.bytes() + self.heap
    }

    /// The leaf in which the cut lies, and how many entries are before that leaf.
    ///
    /// For an entry that is there it is the leaf that has it, and for one that is not it is the
    /// leaf to put it in.
    fn leaf_of(&self, cut: &Cut<'_>) -> (u32, usize) {
        let (mut node, mut before) = (self.root, 0);
        for _ in 0..self.height {
            let inner = &self.inners[node];
            let child = inner.child(cut);
            before += inner.counts[..child].iter().sum::<usize>();
            node = inner.nodes[child];
        }
        (node, before)
    }

    /// How many entries are before the cut.
    pub(super) fn rank(&self, cut: &Cut<'_>) -> usize {
        let (leaf, before) = self.leaf_of(cut);
        before + self.leaves[leaf].cut(cut, &self.longs)
    }

    /// How many entries are before one that is there.
    pub(super) fn rank_at(&self, spot: Spot, entry: &ScoredMember<'_>) -> usize {
        let (leaf, before) = self.leaf_of(&Cut::at(entry.score, entry.member));
        debug_assert_eq!(leaf, spot.leaf);
        before + spot.at
    }

    /// The way to the leaf in which the cut lies.
    fn path_to(&self, cut: &Cut<'_>) -> (Path, u32) {
        let (mut path, mut node) = (Path::new(), self.root);
        for _ in 0..self.height {
            let inner = &self.inners[node];
            let child = inner.child(cut);
            path.push(TreeStep { node, child });
            node = inner.nodes[child];
        }
        (path, node)
    }

    /// The way to the entry before which there are `rank`, which is less than the length.
    fn path_to_rank(&self, rank: usize) -> (Path, Spot) {
        let (mut path, mut node, mut at) = (Path::new(), self.root, rank);
        for _ in 0..self.height {
            let inner = &self.inners[node];
            let mut child = 0;
            while at >= inner.counts[child] {
                at -= inner.counts[child];
                child += 1;
            }
            path.push(TreeStep { node, child });
            node = inner.nodes[child];
        }
        (path, Spot { leaf: node, at })
    }

    /// The entry before which there are `rank`.
    pub(super) fn select(&self, rank: usize) -> Option<Spot> {
        (rank < self.len).then(|| self.path_to_rank(rank).1)
    }

    /// The entry at a spot.
    #[inline]
    pub(super) fn entry(&self, spot: Spot) -> ScoredMember<'_> {
        self.leaves[spot.leaf].entry(spot.at, &self.longs)
    }

    /// Replaces the score of an entry if it stays between the same neighbours of its leaf; returns
    /// whether it does.
    pub(super) fn set_score(&mut self, spot: Spot, entry: ScoredMember<'_>) -> bool {
        let leaf = &self.leaves[spot.leaf];
        let stays = |other: usize, wanted: std::cmp::Ordering| {
            leaf.entry(other, &self.longs).order(&entry) == wanted
        };
        let old = leaf.score(spot.at);
        // At an edge of the leaf the separators limit it: there it may only move inwards.
        let left = if spot.at == 0 {
            entry.score >= old
        } else {
            stays(spot.at - 1, std::cmp::Ordering::Less)
        };
        let right = if spot.at + 1 == leaf.len() {
            entry.score <= old
        } else {
            stays(spot.at + 1, std::cmp::Ordering::Greater)
        };
        if left && right {
            self.leaves[spot.leaf].set_score(spot.at, entry.score);
        }
        left && right
    }

    /// Puts an entry whose member is not there; returns its leaf.
    pub(super) fn insert(&mut self, entry: ScoredMember<'_>, hash: u64, index: &mut Index) -> u32 {
        let cut = Cut::at(entry.score, entry.member);
        let (mut path, mut leaf) = self.path_to(&cut);
        if self.share(&path, leaf, &entry, index) {
            (path, leaf) = self.path_to(&cut);
        }
        // A part of a split leaf may be full still, but then the next split is at its end. An empty
        // leaf has room.
        while self.leaves[leaf].len() > 0
            && self.leaves[leaf].used() + Leaf::entry_bytes(entry.member) > self.shape.leaf_bytes
        {
            self.split(path, leaf, &entry, index);
            (path, leaf) = self.path_to(&cut);
        }
        for step in path {
            self.inners[step.node].counts[step.child] += 1;
        }
        self.len += 1;
        let at = self.leaves[leaf].cut(&cut, &self.longs);
        self.heap -= self.leaves[leaf].heap();
        self.leaves[leaf].insert(at, entry, print(hash), &mut self.longs);
        self.heap += self.leaves[leaf].heap();
        leaf
    }

    /// Gives a neighbour with room some of the entries of a leaf whose allocation would have to grow
    /// for an entry to come; returns whether it has.
    ///
    /// What allocations have to spare is most of what a member takes beyond its columns. So it is
    /// used up, by some byte-moving, before more is asked for; not where entries come in order,
    /// since their leaves are full in the end.
    fn share(
        &mut self,
        path: &Path,
        leaf: u32,
        coming: &ScoredMember<'_>,
        index: &mut Index,
    ) -> bool {
        let giver = &self.leaves[leaf];
        let wanted = Leaf::entry_bytes(coming.member);
        let (Some(&TreeStep { node, child }), true) = (path.last(), giver.room() < wanted) else {
            return false;
        };
        let inner = &self.inners[node];
        let room = |at: Option<usize>| {
            let taker = inner.nodes.get(at?)?;
            Some(self.leaves[*taker].room())
        };
        let (before, behind) = (room(child.checked_sub(1)), room(Some(child + 1)));
        let from_end = behind >= before;
        let Some(room) = before.max(behind) else { return false };
        let (count, bytes) = giver.share(from_end, room);
        if bytes < wanted + self.shape.leaf_bytes / SHARE_MIN
            || giver.in_order(giver.cut(&Cut::at(coming.score, coming.member), &self.longs))
        {
            return false;
        }
        let left = if from_end { child } else { child - 1 };
        let [first, second] = [inner.nodes[left], inner.nodes[left + 1]];
        self.heap -= inner.heap() + self.leaves[first].heap() + self.leaves[second].heap();
        let len = giver.len();
        if from_end {
            index.moved(giver.entries(len - count..len, &self.longs), first, second);
            let mut moving = self.leaves[first].split_off(len - count);
            let taker = &self.leaves[second];
            moving.append(taker);
            self.leaves[second] = moving.linked(taker.prev, taker.next);
        } else {
            index.moved(giver.entries(0..count, &self.longs), second, first);
            let kept = self.leaves[second].split_off(count);
            let moving = std::mem::replace(&mut self.leaves[second], kept);
            self.leaves[first].append(&moving);
            let kept = std::mem::take(&mut self.leaves[second]);
            self.leaves[second] = kept.linked(moving.prev, moving.next);
        }
        let [below, above] = [&self.leaves[first], &self.leaves[second]];
        let inner = &mut self.inners[node];
        let edge = below.entry(below.len() - 1, &self.longs);
        inner.separators[left + 1] = Separator::between(&edge, &above.entry(0, &self.longs));
        inner.counts[left] = below.len();
        inner.counts[left + 1] = above.len();
        self.heap += inner.heap() + below.heap() + above.heap();
        true
    }

    /// Splits a leaf that has no room for an entry to come.
    fn split(&mut self, path: Path, leaf: u32, coming: &ScoredMember<'_>, index: &mut Index) {
        let old = &self.leaves[leaf];
        let len = old.len();
        let at = old.split_at(old.cut(&Cut::at(coming.score, coming.member), &self.longs));
        let (first, last) = (at == 0, at == len);
        if first || last {
            // Only the entry to come is on the other side.
            let edge = old.entry(if last { len - 1 } else { 0 }, &self.longs);
            let separator = if last {
                Separator::between(&edge, coming)
            } else {
                Separator::between(coming, &edge)
            };
            let (prev, next) = if last { (leaf, old.next) } else { (old.prev, leaf) };
            let new = self.leaves.insert(Leaf::default().linked(prev, next));
            self.link(new);
            if last {
                self.divide(path, (leaf, len), separator, (new, 0));
            } else {
                self.divide(path, (new, 0), separator, (leaf, len));
            }
            return;
        }
        self.heap -= old.heap();
        let right = self.leaves[leaf].split_off(at);
        self.heap += self.leaves[leaf].heap() + right.heap();
        let next = self.leaves[leaf].next;
        let new = self.leaves.insert(right.linked(leaf, next));
        self.link(new);
        let right = &self.leaves[new];
        index.moved(right.entries(0..right.len(), &self.longs), leaf, new);
        let edge = self.leaves[leaf].entry(at - 1, &self.longs);
        let separator = Separator::between(&edge, &right.entry(0, &self.longs));
        self.divide(path, (leaf, at), separator, (new, len - at));
    }

    /// Tells a leaf's neighbours of it.
    fn link(&mut self, leaf: u32) {
        let Leaf { prev, next, .. } = self.leaves[leaf];
        if prev != NONE {
            self.leaves[prev].next = leaf;
        }
        if next != NONE {
            self.leaves[next].prev = leaf;
        }
    }

    /// Puts two children, with the numbers of entries below them, where the path has one.
    fn divide(
        &mut self,
        mut path: Path,
        mut left: (u32, usize),
        mut separator: Separator,
        mut right: (u32, usize),
    ) {
        while let Some(TreeStep { node, child }) = path.pop() {
            let inner = &mut self.inners[node];
            self.heap -= inner.heap();
            (inner.nodes[child], inner.counts[child]) = left;
            inner.insert(child + 1, separator, right);
            if inner.nodes.len() <= self.shape.fanout {
                self.heap += inner.heap();
                return;
            }
            // Where children are added at the end, the left part stays nearly full.
            let len = inner.nodes.len();
            let at = if child + 2 == len { len - len / 8 - 1 } else { len / 2 };
            let mut part = inner.split_off(at);
            separator = std::mem::take(&mut part.separators[0]);
            self.heap += inner.heap() + part.heap();
            left = (node, inner.counts.iter().sum());
            let below = part.counts.iter().sum();
            right = (self.inners.insert(part), below);
        }
        let mut root = Inner::default();
        root.insert(0, Separator::default(), left);
        root.insert(1, separator, right);
        self.heap += root.heap();
        self.root = self.inners.insert(root);
        self.height += 1;
    }

    /// Takes an entry that is there out.
    pub(super) fn remove(&mut self, spot: Spot, index: &mut Index) {
        let entry = self.entry(spot);
        let (path, leaf) = self.path_to(&Cut::at(entry.score, entry.member));
        debug_assert_eq!(leaf, spot.leaf);
        self.remove_run(path, leaf, spot.at..spot.at + 1, index);
    }

    /// Takes entries from a rank on out, at most `most` and no more than one leaf has; returns how
    /// many.
    pub(super) fn remove_at(
        &mut self,
        rank: usize,
        most: usize,
        index: &mut Index,
        visit: &mut dyn FnMut(ScoredMember<'_>),
    ) -> usize {
        if rank >= self.len || most == 0 {
            return 0;
        }
        let (path, Spot { leaf, at }) = self.path_to_rank(rank);
        let range = at..self.leaves[leaf].len().min(at + most);
        for entry in self.leaves[leaf].entries(range.clone(), &self.longs) {
            visit(entry);
        }
        let removed = range.len();
        self.remove_run(path, leaf, range, index);
        removed
    }

    fn remove_run(&mut self, path: Path, leaf: u32, range: Range<usize>, index: &mut Index) {
        index.removed(self.leaves[leaf].entries(range.clone(), &self.longs), leaf);
        for step in &path {
            self.inners[step.node].counts[step.child] -= range.len();
        }
        self.len -= range.len();
        self.heap -= self.leaves[leaf].heap();
        self.leaves[leaf].remove(range, &mut self.longs);
        self.heap += self.leaves[leaf].heap();
        self.mend(path, leaf, index);
    }

    /// Removes or merges a leaf that has become empty or small, and then nodes above it.
    fn mend(&mut self, mut path: Path, leaf: u32, index: &mut Index) {
        let Some(TreeStep { node, child }) = path.pop() else { return };
        let used = self.leaves[leaf].used();
        if used == 0 {
            self.unlink(leaf);
        } else if used * 4 < self.shape.leaf_bytes {
            let Some(left) = self.mate(
                node,
                child,
                |tree, node| tree.leaves[node].used(),
                self.shape.leaf_bytes,
            ) else {
                return;
            };
            self.merge_leaves(node, left, index);
        } else {
            return;
        }
        if used == 0 {
            self.drop_child(node, child);
        }
        self.mend_inner(path, node);
    }

    /// Merges or removes an inner node that has lost a child, then those above it.
    fn mend_inner(&mut self, mut path: Path, mut node: u32) {
        while let Some(TreeStep { node: parent, child }) = path.pop() {
            let len = self.inners[node].nodes.len();
            if len == 0 {
                let gone = self.inners.remove(node);
                self.heap -= gone.heap();
                self.drop_child(parent, child);
            } else if len * 4 < self.shape.fanout {
                let children = |tree: &Tree, node| tree.inners[node].nodes.len();
                let Some(left) = self.mate(parent, child, children, self.shape.fanout) else {
                    return;
                };
                self.merge_inners(parent, left);
            } else {
                return;
            }
            node = parent;
        }
        // What is left is the root.
        while self.height > 0 && self.inners[self.root].nodes.len() <= 1 {
            let root = self.inners.remove(self.root);
            self.heap -= root.heap();
            self.height -= 1;
            self.root = match root.nodes.first() {
                Some(&child) => child,
                None => {
                    self.height = 0;
                    self.leaves.insert(Leaf::default())
                }
            };
        }
    }

    /// The left one of two neighbouring children, one of which is `child`, that are at most three
    /// quarters of `limit` together.
    fn mate(
        &self,
        node: u32,
        child: usize,
        size: impl Fn(&Tree, u32) -> usize,
        limit: usize,
    ) -> Option<usize> {
        let nodes = &self.inners[node].nodes;
        let fits = |left: usize| {
            let pair = nodes.get(left..left + 2)?;
            let both = size(self, pair[0]) + size(self, pair[1]);
            (both * 4 <= limit * 3).then_some(left)
        };
        fits(child).or_else(|| fits(child.checked_sub(1)?))
    }

    /// Makes one leaf of a child and the next. The entries of the shorter one move.
    fn merge_leaves(&mut self, node: u32, left: usize, index: &mut Index) {
        let [first, second] = [self.inners[node].nodes[left], self.inners[node].nodes[left + 1]];
        let (kept, lost) = if self.leaves[first].len() >= self.leaves[second].len() {
            (first, second)
        } else {
            (second, first)
        };
        let moving = &self.leaves[lost];
        index.moved(moving.entries(0..moving.len(), &self.longs), lost, kept);
        let (prev, next) = (self.leaves[first].prev, self.leaves[second].next);
        let mut both = std::mem::take(&mut self.leaves[first]);
        let other = std::mem::take(&mut self.leaves[second]);
        self.heap -= both.heap() + other.heap();
        both.append(&other);
        self.heap += both.heap();
        self.leaves[kept] = both.linked(prev, next);
        self.leaves.remove(lost);
        self.link(kept);
        let inner = &mut self.inners[node];
        inner.nodes[left] = kept;
        inner.counts[left] += inner.counts[left + 1];
        self.drop_child(node, left + 1);
    }

    /// Makes one inner node of a child and the next.
    fn merge_inners(&mut self, parent: u32, left: usize) {
        let [first, second] =
            [self.inners[parent].nodes[left], self.inners[parent].nodes[left + 1]];
        let mut other = self.inners.remove(second);
        let above = &mut self.inners[parent];
        self.heap -= above.heap() + other.heap();
        other.separators[0] = std::mem::take(&mut above.separators[left + 1]);
        above.counts[left] += above.counts[left + 1];
        self.heap += above.heap();
        let inner = &mut self.inners[first];
        self.heap -= inner.heap();
        inner.separators.append(&mut other.separators);
        inner.counts.append(&mut other.counts);
        inner.nodes.append(&mut other.nodes);
        self.heap += inner.heap();
        self.drop_child(parent, left + 1);
    }

    /// Forgets a child, whose entries are gone or elsewhere.
    fn drop_child(&mut self, node: u32, child: usize) {
        let inner = &mut self.inners[node];
        self.heap -= inner.heap();
        inner.remove(child);
        self.heap += inner.heap();
    }

    /// Takes an empty leaf out of the chain, and its number back.
    fn unlink(&mut self, leaf: u32) {
        let gone = self.leaves.remove(leaf);
        self.heap -= gone.heap();
        if gone.prev != NONE {
            self.leaves[gone.prev].next = gone.next;
        }
        if gone.next != NONE {
            self.leaves[gone.next].prev = gone.prev;
        }
    }

    /// Frees leaves until about `most` members are freed, for a tree that is given up; returns how
    /// many are left of them.
    pub(super) fn pop_leaves(&mut self, most: usize) -> usize {
        let mut left = most;
        while left > 0 {
            let Some(leaf) = self.leaves.pop() else {
                break;
            };
            self.heap -= leaf.heap();
            self.len -= leaf.len();
            // An empty place is some work too.
            left = left.saturating_sub(leaf.len().max(1));
        }
        left
    }

    /// Frees one inner node, for a tree that is given up; `false` when none is left.
    pub(super) fn pop_inner(&mut self) -> bool {
        let inner = self.inners.pop();
        self.heap -= inner.as_ref().map_or(0, Inner::heap);
        inner.is_some()
    }

    /// Asserts what must hold.
    #[cfg(test)]
    pub(super) fn check(&self, index: &Index) {
        let mut seen = tests::Seen::default();
        self.check_below(self.root, self.height, None, None, index, &mut seen);
        assert_eq!(seen.entries, self.len);
        assert_eq!(seen.heap, self.heap);
        assert_eq!(seen.leaves.len(), self.leaves.used());
        assert_eq!(seen.inners, self.inners.used());
        assert_eq!(seen.longs, self.longs.len());
        let mut prev = NONE;
        for (at, &leaf) in seen.leaves.iter().enumerate() {
            assert_eq!(self.leaves[leaf].prev, prev);
            assert_eq!(self.leaves[leaf].next, *seen.leaves.get(at + 1).unwrap_or(&NONE));
            assert!(self.leaves[leaf].len() > 0 || self.height == 0);
            prev = leaf;
        }
        assert!(self.height == 0 || self.inners[self.root].nodes.len() > 1);
    }

    #[cfg(test)]
    fn check_below(
        &self,
        node: u32,
        height: u32,
        low: Option<&Separator>,
        high: Option<&Separator>,
        index: &Index,
        seen: &mut tests::Seen,
    ) -> usize {
        if height == 0 {
            let leaf = &self.leaves[node];
            leaf.check(&self.longs, |member| print(index.hash(member)));
            for entry in leaf.entries(0..leaf.len(), &self.longs) {
                assert!(low.is_none_or(|low| low.entry().order(&entry).is_le()));
                assert!(high.is_none_or(|high| high.entry().order(&entry).is_gt()));
                seen.longs += usize::from(entry.member.len() > super::leaf::INLINE_MAX);
                let hash = index.hash(entry.member);
                let find = |leaf| {
                    let at = self.leaves[leaf].find(entry.member, print(hash), &self.longs)?;
                    Some((leaf, at))
                };
                let found = index.find(hash, find).unwrap();
                assert_eq!(found.0, node);
                assert_eq!(leaf.member(found.1, &self.longs), entry.member);
            }
            seen.entries += leaf.len();
            seen.heap += leaf.heap();
            seen.leaves.push(node);
            return leaf.len();
        }
        let inner = &self.inners[node];
        seen.inners += 1;
        seen.heap += inner.heap();
        assert!(!inner.nodes.is_empty() && inner.nodes.len() <= self.shape.fanout);
        assert_eq!(inner.nodes.len(), inner.counts.len());
        assert_eq!(inner.nodes.len(), inner.separators.len());
        assert!(inner.separators[0].member.is_empty());
        let mut sum = 0;
        for child in 0..inner.nodes.len() {
            let low = if child == 0 { low } else { inner.separators.get(child) };
            let high = inner.separators.get(child + 1).or(high);
            let below = self.check_below(inner.nodes[child], height - 1, low, high, index, seen);
            assert_eq!(below, inner.counts[child]);
            sum += below;
        }
        sum
    }
}

/// What lies between two children.
#[derive(Default)]
struct Separator {
    score: f64,
    member: Box<[u8]>,
}

impl Separator {
    /// The shortest that is greater than one entry and at most the other.
    fn between(below: &ScoredMember<'_>, above: &ScoredMember<'_>) -> Separator {
        let member = if below.score < above.score {
            &[]
        } else {
            let pairs = below.member.iter().zip(above.member);
            let common = pairs.take_while(|(a, b)| a == b).count();
            &above.member[..above.member.len().min(common + 1)]
        };
        Separator { score: above.score, member: member.into() }
    }

    /// Whether the cut lies behind it: all entries before the separator are before the cut.
    #[inline]
    fn is_before(&self, cut: &Cut<'_>) -> bool {
        if self.score != cut.score {
            return self.score < cut.score;
        }
        match cut.tie {
            Tie::None => false,
            Tie::All => true,
            Tie::Below(member) | Tie::UpTo(member) => &*self.member <= member,
        }
    }

    #[cfg(test)]
    fn entry(&self) -> ScoredMember<'_> {
        ScoredMember { member: &self.member, score: self.score }
    }
}

/// A node above leaves or nodes.
#[derive(Default)]
struct Inner {
    /// What lies before each child; before the first, nothing is looked at.
    separators: Vec<Separator>,
    /// The entries below each child.
    counts: Vec<usize>,
    nodes: Vec<u32>,
}

impl Inner {
    /// The child in which the cut lies.
    #[inline]
    fn child(&self, cut: &Cut<'_>) -> usize {
        match self.separators.get(1..) {
            Some(separators) => separators.partition_point(|separator| separator.is_before(cut)),
            None => 0,
        }
    }

    /// What it has allocated.
    fn heap(&self) -> usize {
        let members: usize = self.separators.iter().map(|separator| separator.member.len()).sum();
        members
            + self.separators.capacity() * size_of::<Separator>()
            + self.counts.capacity() * size_of::<usize>()
            + self.nodes.capacity() * size_of::<u32>()
    }

    fn insert(&mut self, at: usize, separator: Separator, child: (u32, usize)) {
        self.separators.insert(at, separator);
        self.counts.insert(at, child.1);
        self.nodes.insert(at, child.0);
    }

    fn remove(&mut self, at: usize) {
        self.separators.remove(at);
        self.counts.remove(at);
        self.nodes.remove(at);
        // The first child's is not looked at, and so takes no memory.
        if let Some(first) = self.separators.first_mut() {
            *first = Separator::default();
        }
    }

    fn split_off(&mut self, at: usize) -> Inner {
        Inner {
            separators: self.separators.split_off(at),
            counts: self.counts.split_off(at),
            nodes: self.nodes.split_off(at),
        }
    }
}

#[cfg(test)]
mod tests {
    /// What a walk over the tree counts.
    #[derive(Default)]
    pub(super) struct Seen {
        pub(super) entries: usize,
        pub(super) heap: usize,
        pub(super) leaves: Vec<u32>,
        pub(super) inners: usize,
        pub(super) longs: usize,
    }
}
