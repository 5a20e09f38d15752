//! Skipping RESP replies as fast as they come, across whatever pieces the socket delivers.
//!
//! A load generator wants to know how many replies have arrived and which of them are errors, not
//! what they say. So nothing is parsed into values: a reply is a count of *values still owed*. An
//! array of n elements pays one value and owes n more, however deep it nests, and the reply is
//! over when nothing is owed. That is why no stack is needed and every byte may be the last of a
//! read.

use std::fmt;

use memchr::memchr;

/// Of an error reply, this much is kept for the reader.
const ERROR_TEXT_BYTES_MAX: usize = 256;

/// What one piece of input completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Replies whose last byte was in this piece.
    pub replies: u32,
    /// Error values in this piece, those inside arrays included.
    pub errors: u32,
}

/// Input that is not RESP2: the connection cannot be understood any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotResp {
    /// The byte that cannot stand where it stands.
    pub byte: u8,
}

impl fmt::Display for NotResp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte '{}' does not belong in a RESP2 reply", self.byte.escape_ascii())
    }
}

/// Where the scan stands between two bytes.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The next byte is a value's type.
    Type,
    /// In a simple string or an integer: over at the line's end.
    Line,
    /// In an error's text.
    Error,
    /// In the length of a bulk string or an array.
    Length { of: Sized, negative: bool, length: u64 },
    /// In a bulk string's bytes and its CRLF: this many to skip.
    Skip(u64),
}

#[derive(Clone, Copy, Debug)]
enum Sized {
    Bulk,
    Array,
}

/// The replies of one connection.
#[derive(Debug)]
pub struct Replies {
    state: State,
    /// Values that the reply at hand still owes; 0 between two replies.
    owed: u64,
    /// The error text being read.
    error: Vec<u8>,
    first_error: Option<String>,
}

impl Default for Replies {
    fn default() -> Self {
        Self { state: State::Type, owed: 0, error: Vec::new(), first_error: None }
    }
}

impl Replies {
    /// Takes the next piece of input, of any length.
    pub fn scan(&mut self, mut input: &[u8]) -> Result<Scanned, NotResp> {
        let mut scanned = Scanned::default();
        while let Some(&byte) = input.first() {
            match self.state {
                State::Type => {
                    // A new reply owes the value that begins here.
                    self.owed = self.owed.max(1);
                    self.state = match byte {
                        b'+' | b':' => State::Line,
                        b'-' => State::Error,
                        b'$' => State::Length { of: Sized::Bulk, negative: false, length: 0 },
                        b'*' => State::Length { of: Sized::Array, negative: false, length: 0 },
                        _ => return Err(NotResp { byte }),
                    };
                    input = &input[1..];
                }
                State::Line => match memchr(b'\n', input) {
                    Some(end) => {
                        input = &input[end + 1..];
                        self.value_over(0, &mut scanned);
                    }
                    None => break,
                },
                State::Error => {
                    let end = memchr(b'\n', input);
                    self.keep_error_text(&input[..end.unwrap_or(input.len())]);
                    let Some(end) = end else { break };
                    input = &input[end + 1..];
                    self.error_over(&mut scanned);
                }
                State::Length { of, negative, length } => {
                    input = &input[1..];
                    match byte {
                        b'0'..=b'9' => {
                            let length = length
                                .checked_mul(10)
                                .and_then(|tens| tens.checked_add(u64::from(byte - b'0')))
                                .ok_or(NotResp { byte })?;
                            self.state = State::Length { of, negative, length };
                        }
                        b'-' => self.state = State::Length { of, negative: true, length },
                        b'\r' => {}
                        b'\n' => match of {
                            _ if negative => self.value_over(0, &mut scanned),
                            Sized::Bulk => self.state = State::Skip(length.saturating_add(2)),
                            Sized::Array => self.value_over(length, &mut scanned),
                        },
                        _ => return Err(NotResp { byte }),
                    }
                }
                State::Skip(left) => {
                    // The compared minimum fits both types, whatever the platform's usize.
                    let skipped = left.min(input.len() as u64);
                    input = &input[skipped as usize..];
                    if skipped == left {
                        self.value_over(0, &mut scanned);
                    } else {
                        self.state = State::Skip(left - skipped);
                    }
                }
            }
        }
        Ok(scanned)
    }

    /// The text of the first error seen, once.
    pub fn take_first_error(&mut self) -> Option<String> {
        self.first_error.take()
    }

    fn value_over(&mut self, elements: u64, scanned: &mut Scanned) {
        self.state = State::Type;
        self.owed = (self.owed - 1).saturating_add(elements);
        if self.owed == 0 {
            scanned.replies += 1;
        }
    }

    fn keep_error_text(&mut self, piece: &[u8]) {
        let room = ERROR_TEXT_BYTES_MAX - self.error.len();
        self.error.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn error_over(&mut self, scanned: &mut Scanned) {
        scanned.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(String::from_utf8_lossy(&self.error).trim_end().to_owned());
        }
        self.error.clear();
        self.value_over(0, scanned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of reply once, nested and empty ones too.
    const REPLIES: &[u8] =
        b"+OK\r\n:42\r\n$5\r\nhe\r\no\r\n$-1\r\n$0\r\n\r\n-ERR no\r\n*0\r\n*-1\r\n\
        *2\r\n*2\r\n:1\r\n$1\r\n$\r\n+x\r\n*1\r\n-LATE too\r\n";
    const COUNT: Scanned = Scanned { replies: 10, errors: 2 };

    #[test]
    fn counts_replies_and_errors() {
        let mut replies = Replies::default();
        assert_eq!(replies.scan(REPLIES), Ok(COUNT));
        assert_eq!(replies.take_first_error().as_deref(), Some("ERR no"));
    }

    #[test]
    fn any_split_counts_the_same() {
        for first in 0..REPLIES.len() {
            for second in first..REPLIES.len() {
                let mut replies = Replies::default();
                let mut total = Scanned::default();
                for piece in [&REPLIES[..first], &REPLIES[first..second], &REPLIES[second..]] {
                    let scanned = replies.scan(piece).expect("valid replies");
                    total.replies += scanned.replies;
                    total.errors += scanned.errors;
                }
                assert_eq!(total, COUNT, "split at {first} and {second}");
                assert_eq!(replies.take_first_error().as_deref(), Some("ERR no"));
            }
        }
    }

    #[test]
    fn a_reply_counts_with_its_last_byte() {
        let mut replies = Replies::default();
        let reply = b"*2\r\n$3\r\nabc\r\n:7\r\n";
        let (last, rest) = reply.split_last().expect("not empty");
        assert_eq!(replies.scan(rest), Ok(Scanned::default()));
        assert_eq!(replies.scan(&[*last]), Ok(Scanned { replies: 1, errors: 0 }));
    }

    #[test]
    fn refuses_what_is_not_resp() {
        assert_eq!(Replies::default().scan(b"HTTP/1.1"), Err(NotResp { byte: b'H' }));
        assert_eq!(Replies::default().scan(b"$1x"), Err(NotResp { byte: b'x' }));
        assert!(Replies::default().scan(b"$99999999999999999999\r\n").is_err());
    }

    #[test]
    fn keeps_only_the_beginning_of_a_long_error() {
        let mut replies = Replies::default();
        let long = [b"-".as_slice(), &[b'e'; 1000], b"\r\n"].concat();
        assert_eq!(replies.scan(&long), Ok(Scanned { replies: 1, errors: 1 }));
        assert_eq!(replies.take_first_error().map(|text| text.len()), Some(ERROR_TEXT_BYTES_MAX));
    }
}
