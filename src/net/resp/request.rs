//! Reads requests out of what a client sent.
//!
//! A request is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\na\r\n`) or, for people with
//! telnet, a line of words. It is read in place: the words are slices of the connection's buffer.
//! A request that has not arrived as a whole is taken up again where its bytes ended, so neither a
//! deep pipeline nor a huge MSET in small pieces is looked at twice.

use crate::command::argv::{Argv, ArgvBuf, Span};
use crate::store::number::parse_int;
use std::fmt;

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest word.
    pub word_bytes: usize,
    /// The most words a request.
    pub argv: usize,
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
            argv: 1 << 20,
            line_bytes: 64 << 10,
            request_bytes: 1 << 30,
        }
    }
}

/// Why a client's bytes are no requests. It is answered, and the connection closed: where the next
/// request would begin cannot be known.
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
    /// Argv that the request still lacks; 0 between requests.
    missing: usize,
    /// The length of the word that is being read, once it is known.
    word: Option<usize>,
    /// The words read so far.
    spans: Vec<Span>,
    /// The words of a line, free of quotes.
    line: ArgvBuf,
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
    ) -> Result<Option<Argv<'a>>, ProtocolError> {
        loop {
            if self.missing == 0 {
                let Some(&first) = buf.get(self.at) else { return Ok(None) };
                if first != b'*' {
                    if !self.read_line(buf, limits)? {
                        return Ok(None);
                    }
                    if self.line.argv().is_empty() {
                        continue;
                    }
                    return Ok(Some(self.line.argv()));
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
            return Ok(Some(Argv::new(&buf[start..self.at], &self.spans)));
        }
    }

    /// Reads `*N\r\n`; false if its line has not arrived. N below 1 asks for nothing.
    #[inline]
    fn begin(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        let count = match buf.get(self.at..) {
            // Most requests have few words: a digit, known at a glance.
            Some(&[b'*', digit @ b'0'..=b'9', b'\r', _, ..]) => {
                self.at += 4;
                i64::from(digit - b'0')
            }
            _ => match self.read_number(buf, limits, ProtocolError::MultibulkLine)? {
                Some(count) => count.ok_or(ProtocolError::MultibulkLength)?,
                None => return Ok(false),
            },
        };
        if count > limits.argv as i64 {
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
        let start = self.start;
        while self.missing > 0 {
            let (at, length) = match (self.word, buf.get(self.at..)) {
                (Some(length), _) => (self.at, length),
                // Most words are short: a digit or two, known at a glance.
                (None, Some(&[b'$', a @ b'0'..=b'9', b'\r', _, ..])) => {
                    (self.at + 4, usize::from(a - b'0'))
                }
                (None, Some(&[b'$', a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, ..])) => {
                    (self.at + 5, usize::from(a - b'0') * 10 + usize::from(b - b'0'))
                }
                _ => match self.read_word_length(buf, limits)? {
                    Some(length) => (self.at, length),
                    None => return Ok(false),
                },
            };
            if length > limits.word_bytes {
                return Err(ProtocolError::BulkLength);
            }
            let end = at + length;
            if end - start + 2 > limits.request_bytes {
                return Err(ProtocolError::RequestLength);
            }
            // What ends a word is not looked at, only passed over, as in Redis.
            if end + 2 > buf.len() {
                self.at = at;
                self.word = Some(length);
                return Ok(false);
            }
            self.spans.push(Span { start: (at - start) as u32, end: (end - start) as u32 });
            self.at = end + 2;
            self.word = None;
            self.missing -= 1;
        }
        Ok(true)
    }

    /// Reads `$N\r\n`; nothing if its line has not arrived.
    #[cold]
    fn read_word_length(
        &mut self,
        buf: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, ProtocolError> {
        let line_start = self.at;
        let number = self.read_number(buf, limits, ProtocolError::BulkLine)?;
        let Some(number) = number else { return Ok(None) };
        match buf[line_start] {
            b'$' => {}
            got => return Err(ProtocolError::Dollar(got)),
        }
        let length = number.ok_or(ProtocolError::BulkLength)?;
        usize::try_from(length).map(Some).map_err(|_| ProtocolError::BulkLength)
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
            // However it came, as below.
            return if end - self.at > limits.line_bytes { Err(endless) } else { Ok(None) };
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
        // However it came: what is served must not depend on how the stream was cut into reads.
        if from + found - self.at > limits.line_bytes {
            return Err(ProtocolError::InlineLine);
        }
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
pub fn split_line(line: &[u8], argv: &mut ArgvBuf) -> Option<()> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let mut rest = line;
    let mut word = Vec::new();
    loop {
        let begin = rest.iter().position(|byte| !is_space(*byte));
        let Some(begin) = begin else { return Some(()) };
        rest = &rest[begin..];
        word.clear();
        loop {
            match *rest {
                [] => break,
                [b'"', ref quoted @ ..] => rest = double_quoted(quoted, &mut word)?,
                [b'\'', ref quoted @ ..] => rest = single_quoted(quoted, &mut word)?,
                [byte, ..] if is_space(byte) => break,
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
        argv.push(&word);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::resp::encode_request;
    use proptest::prelude::*;

    type Request = Vec<Vec<u8>>;

    /// Reads as a session does: a chunk a read, dropping what is done now and then.
    fn read(chunks: &[&[u8]], limits: &Limits) -> (Vec<Request>, Option<ProtocolError>) {
        let (mut requests, mut buf, mut got) = (Requests::new(), Vec::new(), Vec::new());
        for (turn, chunk) in chunks.iter().enumerate() {
            buf.extend_from_slice(chunk);
            loop {
                match requests.next(&buf, limits) {
                    Ok(Some(argv)) => got.push(argv.from(0).map(<[u8]>::to_vec).collect()),
                    Ok(None) => break,
                    Err(error) => return (got, Some(error)),
                }
            }
            assert!(requests.needs(buf.len()) > buf.len());
            if turn % 2 == 0 {
                buf.drain(..requests.done());
                requests.dropped(requests.done());
            }
        }
        (got, None)
    }

    fn whole(bytes: &[u8]) -> (Vec<Request>, Option<ProtocolError>) {
        read(&[bytes], &Limits::default())
    }

    fn requests(lines: &[&[&str]]) -> Vec<Request> {
        let argv = |line: &&[&str]| line.iter().map(|word| word.as_bytes().to_vec()).collect();
        lines.iter().map(argv).collect()
    }

    const PIPELINE: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\nPING\r\n*0\r\n*-1\r\n\n  \r\n\
        set  'a b'\t\"\\x41\\n\"\r\n*1\r\n$0\r\n\r\n*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$13\r\n*1\r\n$4\r\nPING\n\r\necho x\n";

    #[test]
    fn a_pipeline_is_read_however_it_is_cut_in_two_or_three() {
        let expected = requests(&[
            &["GET", "a"],
            &["PING"],
            &["set", "a b", "A\n"],
            &[""],
            &["SET", "\r\n", "*1\r\n$4\r\nPING\n"],
            &["echo", "x"],
        ]);
        assert_eq!(whole(PIPELINE), (expected.clone(), None));
        let limits = Limits::default();
        for first in 0..=PIPELINE.len() {
            for second in first..=PIPELINE.len() {
                let chunks = [&PIPELINE[..first], &PIPELINE[first..second], &PIPELINE[second..]];
                assert_eq!(read(&chunks, &limits), (expected.clone(), None), "{first} {second}");
            }
        }
    }

    proptest! {
        #[test]
        fn chunks_read_as_the_whole(
            requests in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..150), 1..6), 1..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut bytes = Vec::new();
            for request in &requests {
                encode_request(request, &mut bytes);
            }
            let (got, error) = in_chunks(&bytes, &cuts);
            prop_assert_eq!(error, None);
            prop_assert_eq!(got, requests);
        }

        #[test]
        fn nonsense_is_the_same_nonsense_in_chunks(
            bytes in prop::collection::vec(
                prop::sample::select(b"*$0123-\r\n\r\n\r\n\"'\\ ax\0".to_vec()), 0..80),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            prop_assert_eq!(in_chunks(&bytes, &cuts), whole(&bytes));
        }
    }

    fn in_chunks(
        bytes: &[u8],
        cuts: &[prop::sample::Index],
    ) -> (Vec<Request>, Option<ProtocolError>) {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut start = 0;
        let chunk = |end| &bytes[std::mem::replace(&mut start, end)..end];
        let chunks: Vec<&[u8]> = ends.into_iter().map(chunk).collect();
        read(&chunks, &Limits::default())
    }

    #[test]
    fn malformed_requests_are_named_in_redis_words() {
        let cases: [(&[u8], &str); 20] = [
            (b"*x\r\n", "invalid multibulk length"),
            (b"*\r\n", "invalid multibulk length"),
            (b"*01\r\n", "invalid multibulk length"),
            (b"*+1\r\n", "invalid multibulk length"),
            (b"*1 \r\n", "invalid multibulk length"),
            (b"*1048577\r\n", "invalid multibulk length"),
            (b"*99999999999999999999\r\n", "invalid multibulk length"),
            (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
            (b"*1\r\n*1\r\n", "expected '$', got '*'"),
            (b"*1\r\n\r\n", "expected '$', got '\r'"),
            (b"*1\r\n\0\r\n", "expected '$', got '"),
            (b"*1\r\n$x\r\n", "invalid bulk length"),
            (b"*1\r\n$\r\n", "invalid bulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$01\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"set \"a\r\n", "unbalanced quotes in request"),
            (b"set 'a\r\n", "unbalanced quotes in request"),
            (b"set \"a\"b\r\n", "unbalanced quotes in request"),
            (b"set a\"b\"c\r\n", "unbalanced quotes in request"),
        ];
        for (bytes, text) in cases {
            let (got, error) = whole(bytes);
            let error = error.unwrap_or_else(|| panic!("{} passes", bytes.escape_ascii()));
            let expected = format!("ERR Protocol error: {text}");
            assert_eq!(error.reply_text(), expected.as_bytes(), "{}", bytes.escape_ascii());
            assert!(got.is_empty());
        }
    }

    #[test]
    fn lines_without_end_are_given_up() {
        for (begin, text) in [
            ("*1", "too big mbulk count string"),
            ("*1\r\n$1", "too big bulk count string"),
            ("set a ", "too big inline request"),
        ] {
            let enough = [begin.as_bytes(), &[b'1'; 64 << 10][..]].concat();
            let (got, error) = whole(&enough);
            let expected = format!("ERR Protocol error: {text}");
            assert_eq!(error.map(|error| error.to_string()), Some(expected.clone()));
            assert!(got.is_empty());
            let ended = whole(&[&enough[..], b"\r"].concat()).1;
            assert_eq!(ended.map(|error| error.to_string()), Some(expected), "{begin}");
            let less = &enough[..60 << 10];
            assert_eq!(whole(less), (Vec::new(), None), "{begin}");
        }
    }

    #[test]
    fn a_request_as_a_whole_is_bounded() {
        let limits = Limits { request_bytes: 40, ..Limits::default() };
        let fits = b"*2\r\n$10\r\n0123456789\r\n$10\r\n0123456789\r\n";
        assert_eq!(read(&[fits], &Limits { request_bytes: fits.len(), ..limits }).1, None);
        let error = read(&[fits], &Limits { request_bytes: fits.len() - 1, ..limits }).1;
        assert_eq!(error, Some(ProtocolError::RequestLength));
    }

    #[test]
    fn a_long_word_says_how_much_room_it_needs() {
        let mut requests = Requests::new();
        let limits = Limits::default();
        let mut buf = b"*2\r\n$3\r\nGET\r\n$1000\r\nab".to_vec();
        assert!(requests.next(&buf, &limits).unwrap().is_none());
        assert_eq!(requests.done(), 0);
        assert_eq!(requests.needs(buf.len()), buf.len() - 2 + 1002);
        buf.resize(requests.needs(buf.len()), b'x');
        assert_eq!(requests.next(&buf, &limits).unwrap().unwrap().get(1).len(), 1000);
        assert_eq!(requests.done(), buf.len());
    }

    #[test]
    fn an_unfinished_request_is_not_read_again() {
        // Ten thousand words in pieces of one byte would be a thousand million bytes to look at.
        let argv = vec!["0123456789"; 10_000];
        let mut bytes = Vec::new();
        encode_request(&argv, &mut bytes);
        let (mut requests, limits) = (Requests::new(), Limits::default());
        let mut moves = 0;
        for end in 0..bytes.len() {
            let before = requests.at;
            assert!(requests.next(&bytes[..end], &limits).unwrap().is_none());
            assert!(requests.at >= before && requests.start == 0);
            moves += requests.at - before;
        }
        assert_eq!(requests.next(&bytes, &limits).unwrap().unwrap().len(), 10_000);
        assert!(moves <= bytes.len());
    }

    #[test]
    fn what_a_huge_request_took_is_given_back() {
        let mut bytes = Vec::new();
        encode_request(&vec!["x"; 100_000], &mut bytes);
        encode_request(&["ping"], &mut bytes);
        let (mut requests, limits) = (Requests::new(), Limits::default());
        assert_eq!(requests.next(&bytes, &limits).unwrap().unwrap().len(), 100_000);
        assert_eq!(requests.next(&bytes, &limits).unwrap().unwrap().name(), b"ping");
        assert!(requests.spans.capacity() < 2 * SPANS_KEPT);
    }
}
