//! An element of a packed collection, and the entry that holds it.
//!
//! What an entry looks like is told where the collection is ([`super`]); this is all there is to
//! it: marks, widths, and how an entry is measured from either end.

use crate::store::number::parse_int;
use std::cmp::Ordering;

/// The longest element: Redis's limit for a string.
pub const ELEMENT_BYTES_MAX: usize = 512 << 20;
/// The most bytes of an integer as text.
pub const DIGITS_MAX: usize = 20;

/// The longest element whose mark is its length.
const SHORT_MAX: usize = 0x7f;
/// The mark of the integer 0.
const SMALL: u8 = 0x80;
/// The greatest integer that a mark holds.
const SMALL_MAX: i64 = 99;
/// The mark of that integer.
const SMALL_LAST: u8 = SMALL + SMALL_MAX as u8;
/// The mark of an element whose length takes one byte.
const LONG: u8 = 0xf0;
/// The mark of an element whose length takes four bytes.
const LONG_LAST: u8 = 0xf3;
/// The mark of an integer that takes one byte.
const INTEGER: u8 = 0xf4;
/// The mark of an integer that takes eight bytes.
const INTEGER_LAST: u8 = 0xfb;
/// The mark of a score that is no integer.
const FLOAT: u8 = 0xfc;

/// The greatest magnitude of a score that is stored as an integer: up to there an `f64` holds
/// every integer, so there is one way to write each.
const INTEGER_SCORE_MAX: u64 = 1 << f64::MANTISSA_DIGITS;

/// An element of a packed collection, in the form in which it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Element<'a>(pub(super) Form<'a>);

/// Room for an integer as text: what [`Element::bytes`] writes to.
pub type Digits = [u8; DIGITS_MAX];

/// What an element is stored as. The order is only good for sorting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Form<'a> {
    /// Bytes that do not read as an integer.
    Bytes(&'a [u8]),
    Integer(i64),
    /// The bits of an `f64` that is no integer.
    Float(u64),
}

impl<'a> Element<'a> {
    /// The element with these bytes.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Element<'a> {
        match parse_int(bytes) {
            Some(integer) => Element(Form::Integer(integer)),
            None => Element(Form::Bytes(bytes)),
        }
    }

    /// The element whose bytes are this integer as text.
    #[inline]
    pub fn from_integer(integer: i64) -> Element<'static> {
        Element(Form::Integer(integer))
    }

    /// The element that stands for a score, the second of a pair.
    ///
    /// # Panics
    /// When the score is not a number.
    pub fn from_score(score: f64) -> Element<'static> {
        assert!(!score.is_nan(), "a score is a number");
        let integer = score as i64;
        let whole = integer.unsigned_abs() <= INTEGER_SCORE_MAX
            && (integer as f64).to_bits() == score.to_bits();
        Element(if whole { Form::Integer(integer) } else { Form::Float(score.to_bits()) })
    }

    /// The integer as which the element's bytes read, if they do.
    #[inline]
    pub fn integer(self) -> Option<i64> {
        match self.0 {
            Form::Integer(integer) => Some(integer),
            Form::Bytes(_) | Form::Float(_) => None,
        }
    }

    /// The score that the element stands for. Bytes stand for none.
    #[inline]
    pub fn score(self) -> Option<f64> {
        match self.0 {
            Form::Integer(integer) => Some(integer as f64),
            Form::Float(bits) => Some(f64::from_bits(bits)),
            Form::Bytes(_) => None,
        }
    }

    /// The element's bytes. Those of an integer are written to `digits`; a score that is no integer
    /// has none.
    #[inline]
    pub fn bytes<'b>(self, digits: &'b mut Digits) -> &'b [u8]
    where
        'a: 'b,
    {
        match self.0 {
            Form::Bytes(bytes) => bytes,
            Form::Integer(integer) => format_int(integer, digits),
            Form::Float(_) => &[],
        }
    }

    /// How many bytes the element has.
    #[inline]
    pub fn byte_len(self) -> usize {
        self.bytes(&mut [0; DIGITS_MAX]).len()
    }

    /// Appends the element's bytes.
    pub fn append_to(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes(&mut [0; DIGITS_MAX]));
    }

    /// The element's bytes, copied.
    pub fn to_vec(self) -> Vec<u8> {
        self.bytes(&mut [0; DIGITS_MAX]).to_vec()
    }

    /// The order of the elements' bytes. It is that of texts, so integers are formatted for it:
    /// 10 is before 9.
    pub fn cmp_bytes(self, other: Element<'_>) -> Ordering {
        let (mut ours, mut theirs) = ([0; DIGITS_MAX], [0; DIGITS_MAX]);
        self.bytes(&mut ours).cmp(other.bytes(&mut theirs))
    }
}

impl<'a> From<&'a [u8]> for Element<'a> {
    fn from(bytes: &'a [u8]) -> Element<'a> {
        Element::new(bytes)
    }
}

impl Form<'_> {
    /// The mark at both ends of the entry.
    #[inline]
    pub(super) fn mark(self) -> u8 {
        match self {
            Form::Bytes(bytes) => match length_width(bytes.len()) {
                0 => bytes.len() as u8,
                width => LONG + (width - 1) as u8,
            },
            Form::Integer(integer) => match integer_width(integer) {
                0 => SMALL + integer as u8,
                width => INTEGER + (width - 1) as u8,
            },
            Form::Float(_) => FLOAT,
        }
    }

    /// Bytes of the entry.
    #[inline]
    pub(super) fn size(self) -> usize {
        match self {
            Form::Bytes([]) => 1,
            Form::Bytes(bytes) => 2 + 2 * length_width(bytes.len()) + bytes.len(),
            Form::Integer(integer) => match integer_width(integer) {
                0 => 1,
                width => 2 + width,
            },
            Form::Float(_) => 2 + size_of::<u64>(),
        }
    }

    /// Writes the entry, which takes all of `out`.
    pub(super) fn write(self, out: &mut [u8]) {
        assert!(out.len() == self.size(), "an entry is given the room it takes");
        let (mark, last) = (self.mark(), out.len() - 1);
        out[0] = mark;
        out[last] = mark;
        match self {
            Form::Bytes(bytes) => {
                let width = length_width(bytes.len());
                let length = (bytes.len() as u64).to_le_bytes();
                out[1..1 + width].copy_from_slice(&length[..width]);
                out[1 + width..][..bytes.len()].copy_from_slice(bytes);
                if width > 0 {
                    out[last - width..last].copy_from_slice(&length[..width]);
                }
            }
            Form::Integer(integer) => {
                let width = integer_width(integer);
                out[1..1 + width].copy_from_slice(&integer.to_le_bytes()[..width]);
            }
            Form::Float(bits) => out[1..last].copy_from_slice(&bits.to_le_bytes()),
        }
    }
}

/// Bytes of a length: none where it is the mark.
#[inline]
fn length_width(len: usize) -> usize {
    if len <= SHORT_MAX { 0 } else { (usize::BITS - len.leading_zeros()).div_ceil(8) as usize }
}

/// Bytes of an integer: none where it is in the mark.
#[inline]
fn integer_width(integer: i64) -> usize {
    if (0..=SMALL_MAX).contains(&integer) {
        return 0;
    }
    // One bit more than those of the magnitude, for the sign.
    let magnitude = integer ^ (integer >> 63);
    (i64::BITS + 1 - magnitude.leading_zeros()).div_ceil(8) as usize
}

/// The length that these bytes hold, at most eight.
#[inline]
fn read_length(field: &[u8]) -> usize {
    field.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte))
}

/// The integer that these bytes hold, at most eight; the last has its sign.
#[inline]
pub(super) fn read_integer(field: &[u8]) -> i64 {
    let sign = field.last().map_or(0, |&last| i64::from(last as i8 >> 7));
    field.iter().rev().fold(sign, |integer, &byte| integer << 8 | i64::from(byte))
}

/// The integer as text.
fn format_int(integer: i64, digits: &mut Digits) -> &[u8] {
    let mut magnitude = integer.unsigned_abs();
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (magnitude % 10) as u8;
        magnitude /= 10;
        if magnitude == 0 {
            break;
        }
    }
    if integer < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    &digits[at..]
}

const CUT: &str = "an entry goes on beyond the end";

/// How far the last byte of an entry is from its first. `length` reads a length of so many bytes.
#[inline(always)]
fn span(mark: u8, length: impl FnOnce(usize) -> Option<usize>) -> Result<usize, &'static str> {
    Ok(match mark {
        0 | SMALL..=SMALL_LAST => 0,
        1..SMALL => 1 + usize::from(mark),
        LONG..=LONG_LAST => {
            let width = usize::from(mark - LONG) + 1;
            length(width).and_then(|len| len.checked_add(1 + 2 * width)).ok_or(CUT)?
        }
        INTEGER..=INTEGER_LAST => 1 + usize::from(mark - INTEGER) + 1,
        FLOAT => 1 + size_of::<u64>(),
        _ => return Err("a mark that means nothing"),
    })
}

/// Where the entry that begins at `at` ends. Its second mark and length are not looked at.
#[inline]
pub(super) fn entry_end(bytes: &[u8], at: usize) -> Result<usize, &'static str> {
    let &mark = bytes.get(at).ok_or("fewer entries than their number says")?;
    let span = span(mark, |width| bytes.get(at + 1..at + 1 + width).map(read_length))?;
    if span < bytes.len() - at { Ok(at + span + 1) } else { Err(CUT) }
}

/// Where the entry begins that ends at `end`. One whose ends differ is not found.
#[inline]
pub(super) fn entry_start(bytes: &[u8], end: usize) -> Option<usize> {
    let last = end.checked_sub(1)?;
    let &mark = bytes.get(last)?;
    let length = |width| bytes.get(last.checked_sub(width)?..last).map(read_length);
    let at = last.checked_sub(span(mark, length).ok()?)?;
    (bytes[at] == mark && entry_end(bytes, at) == Ok(end)).then_some(at)
}

/// What the entry holds that begins at `at` and ends at `end`, as [`entry_end`] says.
#[inline]
pub(super) fn entry(bytes: &[u8], at: usize, end: usize) -> Form<'_> {
    // An entry of one byte has nothing between its marks.
    let inner = bytes.get(at + 1..end - 1).unwrap_or_default();
    match bytes[at] {
        0..SMALL => Form::Bytes(inner),
        mark @ SMALL..=SMALL_LAST => Form::Integer(i64::from(mark - SMALL)),
        mark @ LONG..=LONG_LAST => {
            let width = usize::from(mark - LONG) + 1;
            Form::Bytes(&inner[width..inner.len() - width])
        }
        INTEGER..=INTEGER_LAST => Form::Integer(read_integer(inner)),
        _ => Form::Float(read_integer(inner) as u64),
    }
}
