//! Writes replies in RESP2 or RESP3.
//!
//! A command says what it answers; what that looks like depends on the protocol the connection
//! chose with `HELLO`: RESP2 has no maps, booleans or doubles, and shows them as arrays, integers
//! and strings. See <https://redis.io/docs/reference/protocol-spec/>.

/// Appends replies to a buffer.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    resp3: bool,
}

/// The longest line header: a type byte, twenty digits and a sign, the line's end.
const HEADER_BYTES_MAX: usize = 24;

impl<'a> Reply<'a> {
    /// Replies that go to the end of `out`.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>, resp3: bool) -> Reply<'a> {
        Reply { out, resp3 }
    }

    /// Whether replies are written in RESP3.
    #[inline]
    pub fn resp3(&self) -> bool {
        self.resp3
    }

    /// Changes the protocol from here on.
    pub fn set_resp3(&mut self, resp3: bool) {
        self.resp3 = resp3;
    }

    /// Bytes in the buffer.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Takes back what was written since the buffer had so many bytes.
    pub fn rewind(&mut self, bytes: usize) {
        self.out.truncate(bytes);
        // It was long: the buffer is not kept that long.
        self.out.shrink_to(bytes);
    }

    /// `+OK`.
    #[inline]
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// A simple string. It must not contain a line's end.
    #[inline]
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.contains(['\r', '\n']), "a simple string is one line");
        self.line(b'+', text.as_bytes());
    }

    /// An error, beginning with its code: `ERR syntax error`. Line ends, which text taken from a
    /// request may contain, become spaces.
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }

    /// [`Reply::error`] for text that need not be UTF-8.
    pub fn error_bytes(&mut self, text: &[u8]) {
        self.out.push(b'-');
        let blank = |&byte: &u8| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
        self.out.extend(text.iter().map(blank));
        self.out.extend_from_slice(b"\r\n");
    }

    /// An integer.
    #[inline]
    pub fn int(&mut self, value: i64) {
        match value {
            0 => self.out.extend_from_slice(b":0\r\n"),
            1 => self.out.extend_from_slice(b":1\r\n"),
            _ => self.line(b':', itoa::Buffer::new().format(value).as_bytes()),
        }
    }

    /// How many of something there are, as an integer.
    #[inline]
    pub fn count(&mut self, count: usize) {
        self.int(count as i64);
    }

    /// A string of any bytes.
    #[inline]
    pub fn bulk(&mut self, value: &[u8]) {
        self.out.reserve(value.len() + HEADER_BYTES_MAX + 2);
        self.header(b'$', value.len());
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// A string of any bytes, or nil.
    #[inline]
    pub fn bulk_or_nil(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bulk(value),
            None => self.nil(),
        }
    }

    /// The integer's digits as a string.
    pub fn bulk_int(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Nothing, where a value was asked for.
    #[inline]
    pub fn nil(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Nothing, where an array was asked for.
    pub fn nil_array(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    /// Begins an array of `len` replies.
    #[inline]
    pub fn array(&mut self, len: usize) {
        self.header(b'*', len);
    }

    /// Begins a map of `len` pairs; in RESP2 a flat array.
    pub fn map(&mut self, len: usize) {
        match self.resp3 {
            true => self.header(b'%', len),
            false => self.header(b'*', len * 2),
        }
    }

    /// Begins a set of `len` members; in RESP2 an array.
    pub fn set(&mut self, len: usize) {
        self.header(if self.resp3 { b'~' } else { b'*' }, len);
    }

    /// Begins an out-of-band message of `len` replies; in RESP2 an array.
    pub fn push(&mut self, len: usize) {
        self.header(if self.resp3 { b'>' } else { b'*' }, len);
    }

    /// A truth value; in RESP2 1 or 0.
    pub fn boolean(&mut self, value: bool) {
        match (self.resp3, value) {
            (true, true) => self.out.extend_from_slice(b"#t\r\n"),
            (true, false) => self.out.extend_from_slice(b"#f\r\n"),
            (false, value) => self.int(i64::from(value)),
        }
    }

    /// A floating-point number; in RESP2 a string.
    pub fn double(&mut self, value: f64) {
        let text = match value {
            _ if value.is_nan() => "nan".to_string(),
            f64::INFINITY => "inf".to_string(),
            f64::NEG_INFINITY => "-inf".to_string(),
            _ => value.to_string(),
        };
        match self.resp3 {
            true => self.line(b',', text.as_bytes()),
            false => self.bulk(text.as_bytes()),
        }
    }

    /// A number of any size, as its digits; in RESP2 a string.
    pub fn big_number(&mut self, digits: &str) {
        match self.resp3 {
            true => self.line(b'(', digits.as_bytes()),
            false => self.bulk(digits.as_bytes()),
        }
    }

    /// Text for people, with its format (`txt` or `mkd`); in RESP2 a string.
    pub fn verbatim(&mut self, format: &str, text: &[u8]) {
        debug_assert_eq!(format.len(), 3, "a verbatim format has three letters");
        if !self.resp3 {
            return self.bulk(text);
        }
        self.header(b'=', text.len() + 4);
        self.out.extend_from_slice(format.as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Replies that are encoded already.
    #[inline]
    pub fn raw(&mut self, encoded: &[u8]) {
        self.out.extend_from_slice(encoded);
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.reserve(text.len() + 3);
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Type byte, number, line's end, written backwards into an array so that the buffer grows
    /// once.
    #[inline]
    fn header(&mut self, kind: u8, number: usize) {
        let mut line = [0; HEADER_BYTES_MAX];
        let mut at = line.len() - 2;
        line[at] = b'\r';
        line[at + 1] = b'\n';
        let mut rest = number;
        loop {
            at -= 1;
            line[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        at -= 1;
        line[at] = kind;
        self.out.extend_from_slice(&line[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(resp3: bool, write: impl Fn(&mut Reply<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Reply::new(&mut out, resp3));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn types_look_as_each_protocol_has_them() {
        type Write = fn(&mut Reply<'_>);
        let cases: [(Write, &str, &str); 18] = [
            (|r| r.ok(), "+OK\r\n", "+OK\r\n"),
            (|r| r.simple("PONG"), "+PONG\r\n", "+PONG\r\n"),
            (|r| r.error("ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n"),
            (|r| r.int(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (|r| r.int(1), ":1\r\n", ":1\r\n"),
            (|r| r.bulk(b""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (|r| r.bulk(b"hello world"), "$11\r\nhello world\r\n", "$11\r\nhello world\r\n"),
            (|r| r.nil(), "$-1\r\n", "_\r\n"),
            (|r| r.nil_array(), "*-1\r\n", "_\r\n"),
            (|r| r.array(10), "*10\r\n", "*10\r\n"),
            (|r| r.map(7), "*14\r\n", "%7\r\n"),
            (|r| r.set(0), "*0\r\n", "~0\r\n"),
            (|r| r.push(3), "*3\r\n", ">3\r\n"),
            (|r| r.boolean(true), ":1\r\n", "#t\r\n"),
            (|r| r.double(2.5), "$3\r\n2.5\r\n", ",2.5\r\n"),
            (|r| r.double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
            (|r| r.big_number("12"), "$2\r\n12\r\n", "(12\r\n"),
            (|r| r.verbatim("txt", b"hi"), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
        ];
        for (write, resp2, resp3) in cases {
            assert_eq!(written(false, write), resp2);
            assert_eq!(written(true, write), resp3);
        }
    }

    #[test]
    fn the_longest_header_fits() {
        assert_eq!(written(false, |r| r.array(usize::MAX)), format!("*{}\r\n", usize::MAX));
    }
}
