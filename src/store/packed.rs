//! The *packed* form of a small collection: its elements one after another in one slice of bytes.
//!
//! ```text
//! 0            2
//! | number of  | entry | entry |  ..  | entry |
//! | entries    |
//! ```
//!
//! An entry holds one element between two equal **marks**, which say what lies between them:
//!
//! ```text
//! first byte      entry                                       element
//! 00              | 00 |                                      the empty string
//! 01 ..= 7f       | n  | n bytes | n |                        n bytes
//! 80 ..= e3       | 80 + i |                                  the integer i, from 0 to 99
//! f0 ..= f3       | m  | length | bytes | length | m |        128 bytes or more
//! f4 ..= fb       | m  | integer | m |                        any other integer
//! fc              | fc | eight bytes | fc |                   a score that is no integer
//! ```
//!
//! The length takes 1 to 4 bytes, the integer 1 to 8 (its sign extended); the mark says how many.
//! Numbers are little-endian. The marks from e4 to ef and from fd on are free. So a collection
//! takes two bytes more than its elements, and two for each of them (below 128 bytes).
//!
//! - **One form**: bytes that read as an integer are stored as one, and every number takes as few
//!   bytes as it can. So equal elements are equal entries, and a lookup compares what is stored
//!   with what it would store, without formatting.
//! - **Both ends**: lists are popped at both ends and sorted sets are read backwards. Without the
//!   second mark, reaching the last element takes a walk over all entries, each step of which waits
//!   for the one before. It costs one byte an element below 128 bytes, as the length behind each
//!   entry of a listpack does. But it is the same code read from the other end, and an entry of
//!   one byte needs no second mark: it is its own.
//! - **Pairs**: a hash is keys and values in turn, a sorted set members and scores, by score and
//!   then by member.
//! - **Scores** are integers where that loses nothing (-0.0 would lose its sign), else the eight
//!   bytes of the `f64` as they are. Bytes whose order is that of the numbers would gain nothing,
//!   since the place of a score is found by a walk; and they would part -0.0 from 0.0, which are
//!   one score.
//!
//! [`Packed`] reads and [`PackedMut`] edits. All positions are found by a walk, so both are for
//! collections of some hundred elements; they work, slowly, with [`ENTRIES_MAX`]. Bytes that
//! come from elsewhere go through [`check`] first, or its like for a set, a hash or a sorted set. A
//! reader of bytes that would be refused answers nonsense, but comes to an end and does not panic.
//!
//! A small set of integers has a tighter form: [`intset`].

mod entry;
pub mod intset;

use crate::store::number::parse_int;
pub use entry::{DIGITS_MAX, Digits, ELEMENT_BYTES_MAX, Element};
use entry::{Form, entry, entry_end, entry_start};
use std::fmt;
use std::ops::Range;

/// The most entries of a packed collection; a pair is two.
pub const ENTRIES_MAX: usize = u16::MAX as usize;
/// Bytes of the number of entries.
const HEADER: usize = 2;

/// A borrowed packed collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed<'a> {
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// The collection that these bytes hold. No bytes at all are an empty one.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Packed<'a> {
        Packed { bytes }
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// How many entries there are: two for each pair.
    #[inline]
    pub fn len(self) -> usize {
        self.bytes.first_chunk().map_or(0, |&number| usize::from(u16::from_le_bytes(number)))
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The element at `index`, found from the nearer end.
    pub fn get(self, index: usize) -> Option<Element<'a>> {
        if index >= self.len() {
            return None;
        }
        self.element(self.offset(index)?)
    }

    /// The elements.
    #[inline]
    pub fn iter(self) -> Iter<'a> {
        Iter { bytes: self.bytes, front: HEADER, back: self.bytes.len(), left: self.len() }
    }

    /// The elements at these indexes, as far as there are any.
    pub fn range(self, indexes: Range<usize>) -> Iter<'a> {
        let end = indexes.end.min(self.len());
        let start = indexes.start.min(end);
        let left = end - start;
        let bytes = self.offsets(start..end).unwrap_or(HEADER..HEADER);
        Iter { bytes: self.bytes, front: bytes.start, back: bytes.end, left }
    }

    /// The pairs of a hash.
    #[inline]
    pub fn pairs(self) -> PackedPairs<'a> {
        self.iter().pairs()
    }

    /// The members of a sorted set with their scores.
    #[inline]
    pub fn scores(self) -> Scores<'a> {
        self.iter().scores()
    }

    /// The index of the first entry that holds `element`.
    pub fn find(self, element: Element<'_>) -> Option<usize> {
        self.search(element, 1).map(|(index, _)| index)
    }

    /// The index of the entry that holds this key and the value after it, of a hash; or of a
    /// member, and its score.
    pub fn find_pair(self, key: Element<'_>) -> Option<(usize, Element<'a>)> {
        let (index, end) = self.search(key, 2)?;
        Some((index, self.element(end)?))
    }

    /// The index in a sorted set before which all is less than this member with this score: where
    /// the member stands if it has the score, or would stand.
    ///
    /// Scores are compared as numbers, members with equal ones by their bytes.
    pub fn place(self, score: f64, member: Element<'_>) -> usize {
        let before = |&(theirs, at): &(Element<'_>, f64)| {
            at < score || (at == score && theirs.cmp_bytes(member).is_lt())
        };
        2 * self.scores().take_while(before).count()
    }

    /// The index of the first entry that holds `element`, among those that begin a group of
    /// `stride`, and where it ends.
    #[inline]
    fn search(self, element: Element<'_>, stride: usize) -> Option<(usize, usize)> {
        let mark = element.0.mark();
        let mut at = HEADER;
        for group in 0..self.len() / stride {
            let end = entry_end(self.bytes, at).ok()?;
            if self.bytes[at] == mark && entry(self.bytes, at, end) == element.0 {
                return Some((group * stride, end));
            }
            at = self.skip(end, stride - 1)?;
        }
        None
    }

    /// The element of the entry that begins at `at`.
    #[inline]
    fn element(self, at: usize) -> Option<Element<'a>> {
        let end = entry_end(self.bytes, at).ok()?;
        Some(Element(entry(self.bytes, at, end)))
    }

    /// Where so many entries end that begin at `at`.
    #[inline]
    fn skip(self, at: usize, entries: usize) -> Option<usize> {
        (0..entries).try_fold(at, |at, _| entry_end(self.bytes, at).ok())
    }

    /// Where so many entries begin that end at `end`.
    #[inline]
    fn skip_back(self, end: usize, entries: usize) -> Option<usize> {
        let at = (0..entries).try_fold(end, |end, _| entry_start(self.bytes, end))?;
        (at >= HEADER).then_some(at)
    }

    /// Where the entry at `index` begins, or where the last one ends. Bytes that [`check`] refuses
    /// may have no such place.
    fn offset(self, index: usize) -> Option<usize> {
        let after = self.len().checked_sub(index)?;
        if index <= after {
            self.skip(HEADER, index)
        } else {
            self.skip_back(self.bytes.len(), after)
        }
    }

    /// Where the entries at these indexes lie.
    fn offsets(self, indexes: Range<usize>) -> Option<Range<usize>> {
        let len = self.len();
        assert!(indexes.start <= indexes.end && indexes.end <= len, "entries {indexes:?} of {len}");
        let start = self.offset(indexes.start)?;
        let end = if indexes.len() <= len - indexes.end {
            self.skip(start, indexes.len())?
        } else {
            self.offset(indexes.end)?
        };
        (start <= end).then_some(start..end)
    }
}

impl<'a> IntoIterator for Packed<'a> {
    type Item = Element<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The elements of a packed collection, from both ends.
///
/// It does not promise their number (`ExactSizeIterator`): bytes that [`check`] refuses may have
/// fewer than they say.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    bytes: &'a [u8],
    front: usize,
    back: usize,
    left: usize,
}

impl<'a> Iter<'a> {
    /// The elements two by two: those of a hash, from the index of a key on.
    #[inline]
    pub fn pairs(self) -> PackedPairs<'a> {
        PackedPairs { elements: self }
    }

    /// The elements as members and scores: those of a sorted set, from the index of a member on.
    #[inline]
    pub fn scores(self) -> Scores<'a> {
        Scores { pairs: self.pairs() }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    #[inline]
    fn next(&mut self) -> Option<Element<'a>> {
        self.left = self.left.checked_sub(1)?;
        let at = self.front;
        match entry_end(self.bytes, at) {
            Ok(end) if end <= self.back => {
                self.front = end;
                Some(Element(entry(self.bytes, at, end)))
            }
            _ => {
                self.left = 0;
                None
            }
        }
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

impl<'a> DoubleEndedIterator for Iter<'a> {
    #[inline]
    fn next_back(&mut self) -> Option<Element<'a>> {
        self.left = self.left.checked_sub(1)?;
        let end = self.back;
        match entry_start(self.bytes, end) {
            Some(at) if at >= self.front => {
                self.back = at;
                Some(Element(entry(self.bytes, at, end)))
            }
            _ => {
                self.left = 0;
                None
            }
        }
    }
}

/// The pairs of a packed hash, from both ends.
#[derive(Clone, Debug)]
pub struct PackedPairs<'a> {
    elements: Iter<'a>,
}

impl<'a> Iterator for PackedPairs<'a> {
    type Item = (Element<'a>, Element<'a>);

    #[inline]
    fn next(&mut self) -> Option<(Element<'a>, Element<'a>)> {
        let key = self.elements.next()?;
        Some((key, self.elements.next()?))
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.elements.left / 2))
    }
}

impl<'a> DoubleEndedIterator for PackedPairs<'a> {
    #[inline]
    fn next_back(&mut self) -> Option<(Element<'a>, Element<'a>)> {
        let value = self.elements.next_back()?;
        Some((self.elements.next_back()?, value))
    }
}

/// The members of a packed sorted set with their scores, from both ends.
#[derive(Clone, Debug)]
pub struct Scores<'a> {
    pairs: PackedPairs<'a>,
}

/// A pair as member and score. Bytes in place of a score, which [`check_scores`] refuses, are 0.
fn scored<'a>((member, score): (Element<'a>, Element<'a>)) -> (Element<'a>, f64) {
    (member, score.score().unwrap_or_default())
}

impl<'a> Iterator for Scores<'a> {
    type Item = (Element<'a>, f64);

    #[inline]
    fn next(&mut self) -> Option<(Element<'a>, f64)> {
        self.pairs.next().map(scored)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.pairs.size_hint()
    }
}

impl<'a> DoubleEndedIterator for Scores<'a> {
    #[inline]
    fn next_back(&mut self) -> Option<(Element<'a>, f64)> {
        self.pairs.next_back().map(scored)
    }
}

/// Why an edit was not made: there would be more than [`ENTRIES_MAX`] entries, or an element longer
/// than [`ELEMENT_BYTES_MAX`]. The collection is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a packed collection has at most {ENTRIES_MAX} entries of {ELEMENT_BYTES_MAX} bytes"
        )
    }
}

impl std::error::Error for Full {}

/// A packed collection that is edited in place, one move of the bytes behind the place an edit.
///
/// It is meant for bytes that [`check`] accepts. What edits make of others is nonsense, but bounded
/// and without a panic of its own.
#[derive(Debug)]
pub struct PackedMut<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> PackedMut<'a> {
    /// The collection that these bytes hold. No bytes at all become an empty one.
    pub fn new(bytes: &'a mut Vec<u8>) -> PackedMut<'a> {
        if bytes.len() < HEADER {
            bytes.clear();
            bytes.resize(HEADER, 0);
        }
        PackedMut { bytes }
    }

    /// The collection, to be read.
    #[inline]
    pub fn as_ref(&self) -> Packed<'_> {
        Packed::new(self.bytes)
    }

    /// Adds an element after the last.
    pub fn push_back(&mut self, element: Element<'_>) -> Result<(), Full> {
        let end = self.bytes.len();
        self.put(end..end, 0, &[element])
    }

    /// Adds an element before the first.
    pub fn push_front(&mut self, element: Element<'_>) -> Result<(), Full> {
        self.put(HEADER..HEADER, 0, &[element])
    }

    /// Adds an element before the one at `index`, or after the last.
    ///
    /// # Panics
    /// When the index is greater than the number of entries.
    pub fn insert(&mut self, index: usize, element: Element<'_>) -> Result<(), Full> {
        self.insert_all(index, &[element])
    }

    /// Adds elements, as [`PackedMut::insert`] adds one, with one move: a pair of a hash or a
    /// sorted set. Either all are added or none.
    ///
    /// # Panics
    /// When the index is greater than the number of entries.
    pub fn insert_all(&mut self, index: usize, elements: &[Element<'_>]) -> Result<(), Full> {
        match self.as_ref().offsets(index..index) {
            Some(bytes) => self.put(bytes, 0, elements),
            None => Ok(()),
        }
    }

    /// Puts an element in the place of another.
    ///
    /// # Panics
    /// When there is no element at `index`.
    pub fn replace(&mut self, index: usize, element: Element<'_>) -> Result<(), Full> {
        match self.as_ref().offsets(index..index + 1) {
            Some(bytes) => self.put(bytes, 1, &[element]),
            None => Ok(()),
        }
    }

    /// Removes an element.
    ///
    /// # Panics
    /// When there is no element at `index`.
    pub fn remove(&mut self, index: usize) {
        self.remove_range(index..index + 1);
    }

    /// Removes the elements at these indexes.
    ///
    /// # Panics
    /// When the range ends after the last element or before it begins.
    pub fn remove_range(&mut self, indexes: Range<usize>) {
        let number = indexes.len();
        if let Some(bytes) = self.as_ref().offsets(indexes) {
            open(self.bytes, bytes, 0);
            self.count(number, 0);
        }
    }

    /// Sets the value of a key of a hash. Returns whether the key is new.
    pub fn set_pair(&mut self, key: Element<'_>, value: Element<'_>) -> Result<bool, Full> {
        match self.as_ref().find_pair(key) {
            Some((index, _)) => self.replace(index + 1, value).map(|()| false),
            None => {
                let end = self.bytes.len();
                self.put(end..end, 0, &[key, value]).map(|()| true)
            }
        }
    }

    /// Removes a key of a hash, or a member of a sorted set. Returns whether it was there.
    pub fn remove_pair(&mut self, key: Element<'_>) -> bool {
        let Some((index, _)) = self.as_ref().find_pair(key) else { return false };
        self.remove_range(index..index + 2);
        true
    }

    /// Sets the score of a member of a sorted set. Returns the score it had.
    ///
    /// A member that goes to another place is removed and added: two moves of bytes.
    ///
    /// # Panics
    /// When the score is not a number.
    pub fn set_score(&mut self, member: Element<'_>, score: f64) -> Result<Option<f64>, Full> {
        let pair = [member, Element::from_score(score)];
        let mut place = self.as_ref().place(score, member);
        let Some((index, old)) = self.as_ref().find_pair(member) else {
            return self.insert_all(place, &pair).map(|()| None);
        };
        let old = old.score();
        if place == index || place == index + 2 {
            self.replace(index + 1, pair[1])?;
        } else {
            if place > index {
                // The member's own pair is before the place.
                place -= 2;
            }
            self.remove_range(index..index + 2);
            self.insert_all(place, &pair)?;
        }
        Ok(old)
    }

    /// Puts `elements` in the place of the `removed` entries that lie at `range`.
    fn put(
        &mut self,
        range: Range<usize>,
        removed: usize,
        elements: &[Element<'_>],
    ) -> Result<(), Full> {
        let len = self.as_ref().len();
        let too_long = |element: &Element<'_>| match element.0 {
            Form::Bytes(bytes) => bytes.len() > ELEMENT_BYTES_MAX,
            Form::Integer(_) | Form::Float(_) => false,
        };
        let added = elements.len();
        if len.saturating_sub(removed) + added > ENTRIES_MAX || elements.iter().any(too_long) {
            return Err(Full);
        }
        let room = elements.iter().map(|element| element.0.size()).sum();
        let mut room = open(self.bytes, range, room);
        for Element(form) in elements {
            let (entry, rest) = room.split_at_mut(form.size());
            form.write(entry);
            room = rest;
        }
        self.count(removed, added);
        Ok(())
    }

    /// Corrects the number of entries.
    fn count(&mut self, removed: usize, added: usize) {
        let number = self.as_ref().len().saturating_sub(removed) + added;
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        self.bytes[..HEADER].copy_from_slice(&number.to_le_bytes());
    }
}

/// Makes `room` bytes of those at `range`, and returns them to be written.
fn open(bytes: &mut Vec<u8>, range: Range<usize>, room: usize) -> &mut [u8] {
    let Range { start, end } = range;
    let (old, new) = (bytes.len(), bytes.len() - (end - start) + room);
    if new > old {
        bytes.resize(new, 0);
    }
    bytes.copy_within(end..old, start + room);
    bytes.truncate(new);
    &mut bytes[start..start + room]
}

/// Says whether these bytes are a packed list, as edits would have made it.
pub fn check(bytes: &[u8]) -> Result<(), &'static str> {
    check_entries(bytes, |_, form| check_element(form))
}

/// Says whether these bytes are a packed set.
pub fn check_set(bytes: &[u8]) -> Result<(), &'static str> {
    check(bytes)?;
    check_distinct(Packed::new(bytes).iter())
}

/// Says whether these bytes are a packed hash.
pub fn check_pairs(bytes: &[u8]) -> Result<(), &'static str> {
    check(bytes)?;
    check_even(bytes)?;
    check_distinct(Packed::new(bytes).pairs().map(|(key, _)| key))
}

/// Says whether these bytes are a packed sorted set, in order.
pub fn check_scores(bytes: &[u8]) -> Result<(), &'static str> {
    check_entries(bytes, |index, form| {
        if index.is_multiple_of(2) { check_element(form) } else { check_score(form) }
    })?;
    check_even(bytes)?;
    let scores = Packed::new(bytes).scores();
    check_distinct(scores.clone().map(|(member, _)| member))?;
    for ((member, score), (next, above)) in scores.clone().zip(scores.skip(1)) {
        if score > above || (score == above && member.cmp_bytes(next).is_gt()) {
            return Err("members out of order");
        }
    }
    Ok(())
}

/// Checks everything but what the elements are, which `check` does, given the index.
fn check_entries<'a>(
    bytes: &'a [u8],
    check: impl Fn(usize, Form<'a>) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    if bytes.len() < HEADER {
        return Err("no number of entries");
    }
    let mut at = HEADER;
    for index in 0..Packed::new(bytes).len() {
        let end = entry_end(bytes, at)?;
        let form = entry(bytes, at, end);
        if form.mark() != bytes[at] {
            return Err("a number in more bytes than it needs");
        }
        if entry_start(bytes, end) != Some(at) {
            return Err("an entry whose ends differ");
        }
        check(index, form)?;
        at = end;
    }
    if at == bytes.len() { Ok(()) } else { Err("bytes after the last entry") }
}

fn check_even(bytes: &[u8]) -> Result<(), &'static str> {
    let even = Packed::new(bytes).len().is_multiple_of(2);
    if even { Ok(()) } else { Err("half a pair") }
}

/// Checks that no two are equal. It sorts them: comparing each with each would let a peer ask for
/// two thousand million comparisons.
fn check_distinct<'a>(elements: impl Iterator<Item = Element<'a>>) -> Result<(), &'static str> {
    let mut forms: Vec<Form<'_>> = elements.map(|element| element.0).collect();
    forms.sort_unstable();
    let distinct = forms.windows(2).all(|two| two[0] != two[1]);
    if distinct { Ok(()) } else { Err("an element that is there twice") }
}

fn check_element(form: Form<'_>) -> Result<(), &'static str> {
    match form {
        Form::Bytes(bytes) if bytes.len() > ELEMENT_BYTES_MAX => Err("an element that is too long"),
        Form::Bytes(bytes) if parse_int(bytes).is_some() => Err("an integer as text"),
        Form::Float(_) => Err("a score among elements"),
        Form::Bytes(_) | Form::Integer(_) => Ok(()),
    }
}

fn check_score(form: Form<'_>) -> Result<(), &'static str> {
    match Element(form).score() {
        None => Err("bytes in place of a score"),
        Some(score) if score.is_nan() => Err("a score that is not a number"),
        Some(score) if Element::from_score(score).0 != form => {
            Err("a score in the form of another")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
