//! What a key holds: the types of values, and how each is encoded.
//!
//! A value has a **type**, which clients see (`TYPE`), and an **encoding**, the form it has in memory.
//! One number says both ([`Encoding`]). It stands in the header of an item, and before the value
//! wherever one is written down: in a page, in an intent, between nodes. So a value that travels is
//! the same value where it arrives, `OBJECT ENCODING` included.
//!
//! What follows the number is the value's **content**. That of a string is its bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Bytes.
    String,
}

impl ValueType {
    /// Redis's name for it.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::String => "string",
        }
    }
}

/// The type of a value and its encoding, as a number of five bits that is never given another
/// meaning.
///
/// Redis keeps strings in different ways according to how they came to be, and tells which. Here it
/// is kept for the sake of that answer: `Plain`, `Float` and `Raw` are the same bytes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A string that was given as a whole: what it looks like is all there is to tell.
    #[default]
    Plain = 0,
    /// A string that was formatted from a float: not looked at for an integer, even if it reads as
    /// one.
    Float = 1,
    /// A string that was changed in place, or made by a command on bits: it has room to grow.
    Raw = 2,
}

/// Bits of an encoding's number.
pub const ENCODING_BITS: u32 = 5;

impl Encoding {
    /// All of them, by number.
    pub const ALL: [Encoding; 3] = [Encoding::Plain, Encoding::Float, Encoding::Raw];

    /// Its number.
    #[inline]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The encoding with this number, if there is one.
    #[inline]
    pub fn from_number(number: u8) -> Option<Encoding> {
        Encoding::ALL.get(usize::from(number)).copied()
    }

    /// The type of the values that are encoded so.
    pub fn value_type(self) -> ValueType {
        match self {
            Encoding::Plain | Encoding::Float | Encoding::Raw => ValueType::String,
        }
    }
}

const _: () = assert!(Encoding::ALL.len() <= 1 << ENCODING_BITS);

/// A borrowed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string.
    String(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The value of this encoding and content.
    #[inline]
    pub fn new(encoding: Encoding, content: &'a [u8]) -> Value<'a> {
        match encoding {
            Encoding::Plain | Encoding::Float | Encoding::Raw => Value::String(content),
        }
    }

    /// A string's bytes. Commands on strings take a value apart here and nowhere else: with a second
    /// type this is where they learn that it is of the wrong one.
    #[inline]
    pub fn string(self) -> &'a [u8] {
        let Value::String(bytes) = self;
        bytes
    }
}

/// An owned value on its way: encoded, in one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueBuf {
    /// Its type and encoding.
    pub encoding: Encoding,
    /// Its content.
    pub content: Vec<u8>,
}

impl ValueBuf {
    /// A string that is given as a whole.
    pub fn string(bytes: impl Into<Vec<u8>>) -> ValueBuf {
        ValueBuf { encoding: Encoding::Plain, content: bytes.into() }
    }

    /// The value, borrowed.
    pub fn borrow(&self) -> Value<'_> {
        Value::new(self.encoding, &self.content)
    }
}

impl Serialize for ValueBuf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.encoding.number(), serde_bytes::Bytes::new(&self.content)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ValueBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (number, content): (u8, serde_bytes::ByteBuf) = Deserialize::deserialize(deserializer)?;
        let encoding = Encoding::from_number(number)
            .ok_or_else(|| de::Error::custom(format!("a value of unknown encoding {number}")))?;
        Ok(ValueBuf { encoding, content: content.into_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_encoding() {
        for (number, encoding) in (0..).zip(Encoding::ALL) {
            assert_eq!(encoding.number(), number);
            assert_eq!(Encoding::from_number(number), Some(encoding));
        }
        assert_eq!(Encoding::from_number(Encoding::ALL.len() as u8), None);
    }

    #[test]
    fn a_value_arrives_as_it_was_sent() {
        for encoding in Encoding::ALL {
            let sent = ValueBuf { encoding, content: b"12".to_vec() };
            let bytes = rmp_serde::to_vec(&sent).unwrap();
            assert_eq!(rmp_serde::from_slice::<ValueBuf>(&bytes).unwrap(), sent);
        }
        let novel = rmp_serde::to_vec(&(31u8, serde_bytes::Bytes::new(b"12"))).unwrap();
        let refused = rmp_serde::from_slice::<ValueBuf>(&novel).unwrap_err().to_string();
        assert!(refused.contains("unknown encoding 31"), "{refused}");
    }
}
