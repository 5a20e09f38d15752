//! Reads requests out of what a client sent.
//!
//! A request is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\na\r\n`) or, for people with
//! telnet, a line of words. It is read in place: the words are slices of the connection's buffer.
//! A request that has not arrived as a whole is taken up again where its bytes ended, so neither a
//! deep pipeline nor a huge MSET in small pieces is looked at twice.

use crate::command::number::parse_int;
use crate::command::words::{Phrase, Span, Words};
use std::fmt;

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest word.
    pub word_bytes: usize,
    /// The most words a request.
    pub words: usize,
    /// The longest line: a request typed as words, or a length.
    pub line_bytes: usize,
    /// The longest request. Positions in a request and in a batch are 32 bits wide, so it must be
    /// well below 4 GiB.
    pub request_bytes: usize,
}

impl Default for Limits {
    /// Redis's own: `proto-max-bulk-len`, a million words, `PROTO_INLINE_MAX_SIZE`, and
    /// `client-query-buffer-limit`.
    fn default() -> Limits {
        Limits {
            word_bytes: 512 << 20,
            words: 1 << 20,
            line_bytes: 64 << 10,
            request_bytes: 1 << 30,
        }
    }
}

/// Why a client's bytes are no requests. It is answered, and the connection closed: where the next
/// request would begin is anybody's guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number behind `*` is none, or too great.
    MultibulkLength,
    /// The number behind `$` is none, or too great.
    BulkLength,
    /// A word that begins with something other than `$`.
    Dollar(u8),
    /// The line behind `*` does not end.
    MultibulkLine,
    /// The line behind `$` does not end.
    BulkLine,
    /// A line of words does not end.
    InlineLine,
    /// A line of words with a quotation that does not end.
    Quotes,
    /// The request as a whole is too long.
    RequestLength,
}

impl ProtocolError {
    /// The error reply's text, after `ERR ` in Redis's words. A byte that is no text is in it as it
    /// came, hence bytes.
    pub fn reply_text(self) -> Vec<u8> {
        let text = match self {
            ProtocolError::MultibulkLength => "invalid multibulk length",
            ProtocolError::BulkLength => "invalid bulk length",
            ProtocolError::MultibulkLine => "too big mbulk count string",
            ProtocolError::BulkLine => "too big bulk count string",
            ProtocolError::InlineLine => "too big inline request",
            ProtocolError::Quotes => "unbalanced quotes in request",
            ProtocolError::RequestLength => "too big request",
            ProtocolError::Dollar(got) => {
                let mut text = b"ERR Protocol error: expected '$', got '".to_vec();
                // Redis formats it as C does: a NUL ends the text.
                if got != 0 {
                    text.extend([got, b'\'']);
                }
                return text;
            }
        };
        format!("ERR Protocol error: {text}").into_bytes()
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.reply_text()))
    }
}

impl std::error::Error for ProtocolError {}

/// The requests of one connection.
///
/// The caller owns the buffer: it appends what the socket brought, takes requests until there is
/// none, drops [`Requests::done`] bytes from the front and says so with [`Requests::dropped`].
#[derive(Debug, Default)]
pub struct Requests {
    /// Where the request begins that is being read.
    start: usize,
    /// Up to where the buffer is understood. Lies within the request that is being read.
    at: usize,
    /// Up to where the line at `at` has been searched for its end.
    searched: usize,
    /// Words that the request still lacks; 0 between requests.
    missing: usize,
    /// The length of the word that is being read, once it is known.
    word: Option<usize>,
    /// The words read so far.
    spans: Vec<Span>,
    /// The words of a line, free of quotes.
    line: Phrase,
}

/// Spans kept for the next request; those of a huge one are given back.
const SPANS_KEPT: usize = 1024;

impl Requests {
    /// The requests of a connection that has just been made.
    pub fn new() -> Requests {
        Requests::default()
    }

    /// How many bytes from the buffer's front belong to requests that have been returned.
    #[inline]
    pub fn done(&self) -> usize {
        self.start
    }

    /// The first `count` bytes of the buffer were dropped: at most [`Requests::done`].
    pub fn dropped(&mut self, count: usize) {
        assert!(count <= self.start, "a request that is being read keeps its bytes");
        self.start -= count;
        self.at -= count;
        self.searched = self.searched.saturating_sub(count);
    }

    /// How long the buffer must be at least before more can be read: its length and a byte, or
    /// the end of a long word whose beginning is there. To be asked when there was no request.
    #[inline]
    pub fn needs(&self, buffered: usize) -> usize {
        let word_end = self.word.map_or(0, |length| self.at + length + 2);
        word_end.max(buffered + 1)
    }

    /// The next request in `buf`, which holds what it held at the last call and what came since;
    /// nothing if it has not arrived as a whole.
    ///
    /// After an error the connection is to be closed.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        buf: &'a [u8],
        limits: &Limits,
    ) -> Result<Option<Words<'a>>, ProtocolError> {
        loop {
            if self.missing == 0 {
                let Some(&first) = buf.get(self.at) else { return Ok(None) };
                if first != b'*' {
                    if !self.read_line(buf, limits)? {
                        return Ok(None);
                    }
                    if self.line.words().is_empty() {
                        continue;
                    }
                    return Ok(Some(self.line.words()));
                }
                if !self.begin(buf, limits)? {
                    return Ok(None);
                }
                if self.missing == 0 {
                    continue;
                }
            }
            if !self.read_words(buf, limits)? {
                return Ok(None);
            }
            let start = std::mem::replace(&mut self.start, self.at);
            return Ok(Some(Words::new(&buf[start..self.at], &self.spans)));
        }
    }

    /// Reads `*N\r\n`; false if its line has not arrived. N below 1 asks for nothing.
    #[inline]
    fn begin(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        let Some(count) = self.read_number(buf, limits, ProtocolError::MultibulkLine)? else {
            return Ok(false);
        };
        let count = count.ok_or(ProtocolError::MultibulkLength)?;
        if count > limits.words as i64 {
            return Err(ProtocolError::MultibulkLength);
        }
        self.missing = count.max(0) as usize;
        self.spans.clear();
        if self.spans.capacity() > SPANS_KEPT {
            self.spans.shrink_to(SPANS_KEPT);
        }
        if self.missing == 0 {
            self.start = self.at;
        }
        Ok(true)
    }

    /// Reads the words that the request lacks; false if they have not all arrived.
    #[inline]
    fn read_words(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        while self.missing > 0 {
            let length = match self.word {
                Some(length) => length,
                None => match self.read_word_length(buf, limits)? {
                    Some(length) => length,
                    None => return Ok(false),
                },
            };
            // What ends a word is not looked at, only passed over, as in Redis.
            let end = self.at + length;
            if end + 2 > buf.len() {
                self.word = Some(length);
                return Ok(false);
            }
            let span =
                Span { start: (self.at - self.start) as u32, end: (end - self.start) as u32 };
            self.spans.push(span);
            self.at = end + 2;
            self.word = None;
            self.missing -= 1;
        }
        Ok(true)
    }

    /// Reads `$N\r\n`; nothing if its line has not arrived.
    #[inline]
    fn read_word_length(
        &mut self,
        buf: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, ProtocolError> {
        let length = match buf.get(self.at..) {
            // Most words are short: a digit or two, known at a glance.
            Some(&[b'$', a @ b'0'..=b'9', b'\r', _, ..]) => {
                self.at += 4;
                usize::from(a - b'0')
            }
            Some(&[b'$', a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, ..]) => {
                self.at += 5;
                usize::from(a - b'0') * 10 + usize::from(b - b'0')
            }
            _ => {
                let line_start = self.at;
                let number = self.read_number(buf, limits, ProtocolError::BulkLine)?;
                let Some(number) = number else { return Ok(None) };
                match buf[line_start] {
                    b'$' => {}
                    got => return Err(ProtocolError::Dollar(got)),
                }
                let length = number.ok_or(ProtocolError::BulkLength)?;
                usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?
            }
        };
        if length > limits.word_bytes {
            return Err(ProtocolError::BulkLength);
        }
        if self.at - self.start + length + 2 > limits.request_bytes {
            return Err(ProtocolError::RequestLength);
        }
        Ok(Some(length))
    }

    /// Reads a line that is a type byte and a number: nothing if it has not arrived, nothing
    /// inside if it is no number.
    #[inline]
    fn read_number(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        endless: ProtocolError,
    ) -> Result<Option<Option<i64>>, ProtocolError> {
        let from = self.searched.max(self.at);
        let rest = &buf[from.min(buf.len())..];
        let Some(found) = memchr::memchr(b'\r', rest) else {
            self.searched = buf.len();
            return if buf.len() - self.at > limits.line_bytes { Err(endless) } else { Ok(None) };
        };
        let end = from + found;
        if end + 2 > buf.len() {
            self.searched = end;
            return Ok(None);
        }
        // An empty line has no type byte; what is wrong with it is for the caller to say.
        let number = buf.get(self.at + 1..end).and_then(parse_int);
        self.at = end + 2;
        Ok(Some(number))
    }

    /// Reads a line of words; false if it has not arrived.
    fn read_line(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        let from = self.searched.max(self.at);
        let Some(found) = memchr::memchr(b'\n', &buf[from..]) else {
            self.searched = buf.len();
            let endless = buf.len() - self.at > limits.line_bytes;
            return if endless { Err(ProtocolError::InlineLine) } else { Ok(false) };
        };
        let line = &buf[self.at..from + found];
        self.at = from + found + 1;
        self.start = self.at;
        self.line.clear();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        split_line(line, &mut self.line).ok_or(ProtocolError::Quotes)?;
        Ok(true)
    }
}

/// Splits a line into words as Redis's `sdssplitargs` does: `"…"` with `\n`, `\xff` and the like,
/// `'…'` with only `\'`. A closing quote must be followed by a space. Nothing if a quotation does
/// not end.
pub fn split_line(line: &[u8], words: &mut Phrase) -> Option<()> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let mut rest = line;
    let mut word = Vec::new();
    loop {
        let begin = rest.iter().position(|byte| !is_space(*byte) && *byte != 0);
        let Some(begin) = begin else { return Some(()) };
        rest = &rest[begin..];
        word.clear();
        loop {
            match *rest {
                [] => break,
                [b'"', ref quoted @ ..] => rest = double_quoted(quoted, &mut word)?,
                [b'\'', ref quoted @ ..] => rest = single_quoted(quoted, &mut word)?,
                [byte, ..] if is_space(byte) || byte == 0 => break,
                [byte, ref more @ ..] => {
                    word.push(byte);
                    rest = more;
                    continue;
                }
            }
            // Behind a closing quote: a space, or the end.
            match *rest {
                [] => break,
                [byte, ..] if is_space(byte) => break,
                _ => return None,
            }
        }
        words.push(&word);
    }
}

/// Reads up to the closing quote; what follows it.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let hex = |digit: u8| (digit as char).to_digit(16).map(|digit| digit as u8);
    loop {
        rest = match *rest {
            [] => return None,
            [b'"', ref more @ ..] => return Some(more),
            [b'\\', b'x', high, low, ref more @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex(high)? * 16 + hex(low)?);
                more
            }
            [b'\\', escaped, ref more @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
                more
            }
            [byte, ref more @ ..] => {
                word.push(byte);
                more
            }
        };
    }
}

/// Reads up to the closing quote; what follows it.
fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match *rest {
            [] => return None,
            [b'\'', ref more @ ..] => return Some(more),
            [b'\\', b'\'', ref more @ ..] => {
                word.push(b'\'');
                more
            }
            [byte, ref more @ ..] => {
                word.push(byte);
                more
            }
        };
    }
}
