//! Reads replies out of what a server sent.
//!
//! [`ReplyReader`] only finds where a reply ends, which is all that a load generator needs;
//! [`Value::parse`] then takes a whole reply apart. Both know RESP2 and RESP3.

use crate::command::reply::Reply;
use crate::store::number::parse_int;
use std::fmt;

/// How deep a reply may be nested.
const DEPTH_MAX: usize = 64;

/// The longest string and the most elements of a reply that is believed.
const LENGTH_MAX: i64 = 1 << 32;

/// Bytes of a server that are no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// No reply begins with this byte.
    Type(u8),
    /// A length or a number that is none.
    Number,
    /// Nested too deep.
    Depth,
    /// It ends before it should.
    Short,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyError::Type(byte) => write!(f, "no reply begins with {:?}", *byte as char),
            ReplyError::Number => f.write_str("a length or number in the reply is none"),
            ReplyError::Depth => f.write_str("the reply is nested too deep"),
            ReplyError::Short => f.write_str("the reply is cut short"),
        }
    }
}

impl std::error::Error for ReplyError {}

/// The first line of a reply or of an element.
enum Head<'a> {
    /// All of it: type byte and text.
    Line(u8, &'a [u8]),
    /// A string of so many bytes follows (`$`, `=`, `!`).
    Str(u8, usize),
    /// So many elements follow (`*`, `~`, `>`), or pairs of them (`%`).
    Elements(u8, usize),
    /// So many pairs follow, and then the reply that they are about.
    Attribute(usize),
    /// RESP2's nil.
    Nil,
}

/// The head at `at`, and where what follows it begins; nothing if its line has not arrived.
fn read_head(buf: &[u8], at: usize) -> Result<Option<(Head<'_>, usize)>, ReplyError> {
    let Some(rest) = buf.get(at..) else { return Ok(None) };
    let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    let [kind, text @ ..] = line else { return Err(ReplyError::Type(b'\n')) };
    let length = || match parse_int(text) {
        Some(length) if (-1..=LENGTH_MAX).contains(&length) => Ok(length),
        _ => Err(ReplyError::Number),
    };
    let head = match kind {
        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Head::Line(*kind, text),
        b'$' | b'=' | b'!' => match length()? {
            -1 => Head::Nil,
            length => Head::Str(*kind, length as usize),
        },
        b'*' | b'~' | b'>' | b'%' => match length()? {
            -1 => Head::Nil,
            count => Head::Elements(*kind, count as usize),
        },
        b'|' => Head::Attribute(length()?.max(0) as usize),
        other => return Err(ReplyError::Type(*other)),
    };
    Ok(Some((head, at + end + 1)))
}

/// Finds where replies end in a stream, without taking them apart. What has been looked at of an
/// unfinished reply is not looked at again.
#[derive(Clone, Debug)]
pub struct ReplyReader {
    /// Up to where the reply is known. May lie beyond the buffer, behind a long string.
    at: usize,
    /// How many replies it still takes to make the whole one: nesting only adds to them.
    lacking: usize,
}

impl Default for ReplyReader {
    fn default() -> ReplyReader {
        ReplyReader { at: 0, lacking: 1 }
    }
}

impl ReplyReader {
    /// A reader at the beginning of a reply.
    pub fn new() -> ReplyReader {
        ReplyReader::default()
    }

    /// The length of the reply that `buf` begins with; nothing if it has not arrived as a whole.
    /// After that `buf` must begin with the same bytes, and after a length with those behind it.
    pub fn next(&mut self, buf: &[u8]) -> Result<Option<usize>, ReplyError> {
        while self.lacking > 0 {
            let Some((head, after)) = read_head(buf, self.at)? else { return Ok(None) };
            self.at = after;
            self.lacking -= 1;
            match head {
                Head::Line(..) | Head::Nil => {}
                Head::Str(_, length) => self.at += length + 2,
                Head::Elements(b'%', pairs) => self.lacking += pairs * 2,
                Head::Elements(_, count) => self.lacking += count,
                Head::Attribute(pairs) => self.lacking += pairs * 2 + 1,
            }
        }
        if self.at > buf.len() {
            return Ok(None);
        }
        let length = self.at;
        *self = ReplyReader::new();
        Ok(Some(length))
    }
}

/// The length of the first whole reply in `buf`, if there is one.
pub fn skip_reply(buf: &[u8]) -> Result<Option<usize>, ReplyError> {
    ReplyReader::new().next(buf)
}

/// A reply, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+`: a line.
    Simple(String),
    /// `-` or `!`: an error, its code first.
    Error(String),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// Nothing, in any of its spellings.
    Nil,
    /// `*`
    Array(Vec<Value>),
    /// `%`
    Map(Vec<(Value, Value)>),
    /// `~`
    Set(Vec<Value>),
    /// `>`
    Push(Vec<Value>),
    /// `,`
    Double(f64),
    /// `#`
    Bool(bool),
    /// `=`: its format, its text.
    Verbatim(String, Vec<u8>),
    /// `(`: its digits.
    Big(String),
}

impl Value {
    /// The reply that `buf` begins with, and its length; nothing if it has not arrived as a whole.
    /// Attributes are passed over.
    pub fn parse(buf: &[u8]) -> Result<Option<(Value, usize)>, ReplyError> {
        let Some(length) = skip_reply(buf)? else { return Ok(None) };
        let mut at = 0;
        let value = parse_at(&buf[..length], &mut at, DEPTH_MAX)?;
        Ok(Some((value, length)))
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }

    /// Appends it as a server would.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut reply = Reply::new(out, true);
        match self {
            Value::Simple(text) => reply.simple(text),
            Value::Error(text) => reply.error(text),
            Value::Int(value) => reply.int(*value),
            Value::Bulk(bytes) => reply.bulk(bytes),
            Value::Nil => reply.nil(),
            Value::Double(value) => reply.double(*value),
            Value::Bool(value) => reply.boolean(*value),
            Value::Verbatim(format, text) => reply.verbatim(format, text),
            Value::Big(digits) => reply.big_number(digits),
            Value::Array(elements) => {
                reply.array(elements.len());
                elements.iter().for_each(|element| element.encode(out));
            }
            Value::Set(elements) => {
                reply.set(elements.len());
                elements.iter().for_each(|element| element.encode(out));
            }
            Value::Push(elements) => {
                reply.push(elements.len());
                elements.iter().for_each(|element| element.encode(out));
            }
            Value::Map(pairs) => {
                reply.map(pairs.len());
                for (key, value) in pairs {
                    key.encode(out);
                    value.encode(out);
                }
            }
        }
    }
}

fn parse_at(buf: &[u8], at: &mut usize, depth: usize) -> Result<Value, ReplyError> {
    if depth == 0 {
        return Err(ReplyError::Depth);
    }
    let (head, after) = read_head(buf, *at)?.ok_or(ReplyError::Short)?;
    *at = after;
    let element = |at: &mut usize| parse_at(buf, at, depth - 1);
    Ok(match head {
        Head::Nil => Value::Nil,
        Head::Line(kind, text) => parse_line(kind, text)?,
        Head::Str(kind, length) => {
            let bytes = buf.get(*at..*at + length).ok_or(ReplyError::Short)?;
            *at += length + 2;
            match kind {
                b'!' => Value::Error(lossy(bytes)),
                b'=' => match bytes {
                    [a, b, c, b':', text @ ..] => {
                        Value::Verbatim(lossy(&[*a, *b, *c]), text.to_vec())
                    }
                    _ => return Err(ReplyError::Short),
                },
                _ => Value::Bulk(bytes.to_vec()),
            }
        }
        Head::Attribute(pairs) => {
            for _ in 0..pairs * 2 {
                element(at)?;
            }
            element(at)?
        }
        Head::Elements(b'%', pairs) => {
            let mut map = Vec::new();
            for _ in 0..pairs {
                let key = element(at)?;
                map.push((key, element(at)?));
            }
            Value::Map(map)
        }
        Head::Elements(kind, count) => {
            let mut elements = Vec::new();
            for _ in 0..count {
                elements.push(element(at)?);
            }
            match kind {
                b'~' => Value::Set(elements),
                b'>' => Value::Push(elements),
                _ => Value::Array(elements),
            }
        }
    })
}

fn parse_line(kind: u8, text: &[u8]) -> Result<Value, ReplyError> {
    Ok(match kind {
        b'+' => Value::Simple(lossy(text)),
        b'-' => Value::Error(lossy(text)),
        b':' => Value::Int(parse_int(text).ok_or(ReplyError::Number)?),
        b'#' => match text {
            b"t" => Value::Bool(true),
            b"f" => Value::Bool(false),
            _ => return Err(ReplyError::Number),
        },
        b',' => Value::Double(lossy(text).parse().map_err(|_| ReplyError::Number)?),
        b'(' => Value::Big(lossy(text)),
        _ => Value::Nil,
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Appends a request of these words.
pub fn encode_request<W: AsRef<[u8]>>(words: &[W], out: &mut Vec<u8>) {
    let mut request = Reply::new(out, false);
    request.array(words.len());
    for word in words {
        request.bulk(word.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let text = "[ -~]{0,12}";
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![
            text.prop_map(Value::Simple),
            text.prop_map(Value::Error),
            any::<i64>().prop_map(Value::Int),
            bytes().prop_map(Value::Bulk),
            Just(Value::Nil),
            (-1e9..1e9).prop_map(Value::Double),
            any::<bool>().prop_map(Value::Bool),
            bytes().prop_map(|text| Value::Verbatim("txt".into(), text)),
            "-?[1-9][0-9]{0,40}".prop_map(Value::Big),
        ];
        leaf.prop_recursive(4, 64, 5, |inner| {
            let many = || prop::collection::vec(inner.clone(), 0..5);
            prop_oneof![
                many().prop_map(Value::Array),
                many().prop_map(Value::Set),
                many().prop_map(Value::Push),
                prop::collection::vec((inner.clone(), inner.clone()), 0..5).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_come_back_as_encoded_however_they_arrive(
            value in values(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut encoded = Vec::new();
            value.encode(&mut encoded);
            let length = encoded.len();
            prop_assert_eq!(Value::parse(&encoded), Ok(Some((value, length))));

            encoded.extend_from_slice(b"+next\r\n");
            let mut arrived: Vec<usize> = cuts.iter().map(|cut| cut.index(length)).collect();
            arrived.sort_unstable();
            let mut reader = ReplyReader::new();
            for end in arrived {
                prop_assert_eq!(reader.next(&encoded[..end]), Ok(None));
            }
            prop_assert_eq!(reader.next(&encoded), Ok(Some(length)));
            prop_assert_eq!(reader.next(&encoded[length..]), Ok(Some(7)));
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(
            prop::sample::select(b"*$:+-%~|=#_,(0123-\r\n".to_vec()), 0..60)
        ) {
            // Whatever it says, it returns.
            let _ = Value::parse(&bytes);
        }
    }

    #[test]
    fn both_protocols_nils_and_attributes() {
        let whole = |bytes: &[u8]| Value::parse(bytes).unwrap().unwrap().0;
        assert_eq!(whole(b"$-1\r\n"), Value::Nil);
        assert_eq!(whole(b"*-1\r\n"), Value::Nil);
        assert_eq!(whole(b"|1\r\n+ttl\r\n:3\r\n:7\r\n"), Value::Int(7));
        assert_eq!(whole(b"!3\r\nERR\r\n"), Value::Error("ERR".into()));
        assert_eq!(whole(b",inf\r\n"), Value::Double(f64::INFINITY));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        assert_eq!(skip_reply(b"hello\r\n"), Err(ReplyError::Type(b'h')));
        assert_eq!(skip_reply(b"$x\r\n"), Err(ReplyError::Number));
        assert_eq!(skip_reply(b"*-2\r\n"), Err(ReplyError::Number));
        let deep = b"*1\r\n".repeat(1000);
        assert_eq!(Value::parse(&[&deep[..], b":1\r\n"].concat()), Err(ReplyError::Depth));
    }
}
