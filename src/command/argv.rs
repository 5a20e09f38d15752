//! A request as the client sent it: the command's name and its arguments.

/// Where a word lies, counted from the request's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub start: u32,
    /// The byte after its last one.
    pub end: u32,
}

/// The words of one request, borrowed from the buffer it was read into.
///
/// Copying it copies two slices; the words themselves stay where the socket put them until an
/// operation is pushed onto a batch.
#[derive(Clone, Copy, Debug)]
pub struct Argv<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Argv<'a> {
    /// Argv that lie at `spans` of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Argv<'a> {
        Argv { bytes, spans }
    }

    /// How many words there are, the command's name included: Redis's `argc`.
    #[inline]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none. A parser never yields such a request.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The word at `index`, the command's name at 0; empty past the last one.
    #[inline]
    pub fn get(&self, index: usize) -> &'a [u8] {
        match self.spans.get(index) {
            Some(span) => &self.bytes[span.start as usize..span.end as usize],
            None => &[],
        }
    }

    /// The command's name.
    #[inline]
    pub fn name(&self) -> &'a [u8] {
        self.get(0)
    }

    /// The words from `first` on: `from(1)` are the arguments.
    #[inline]
    pub fn from(&self, first: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        let spans = self.spans.get(first..).unwrap_or_default();
        spans.iter().map(move |span| &bytes[span.start as usize..span.end as usize])
    }

    /// The words from `first` on as a request of their own, with the same positions in the buffer.
    pub fn tail(&self, first: usize) -> Argv<'a> {
        Argv { bytes: self.bytes, spans: self.spans.get(first..).unwrap_or_default() }
    }

    /// Bytes of all words together.
    pub fn bytes(&self) -> usize {
        self.spans.iter().map(|span| (span.end - span.start) as usize).sum()
    }
}

/// Owned words, for callers that build a request instead of reading one.
#[derive(Clone, Debug, Default)]
pub struct ArgvBuf {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

impl ArgvBuf {
    /// Forgets the words and keeps the buffers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    /// Appends a word.
    pub fn push(&mut self, word: &[u8]) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(word);
        self.spans.push(Span { start, end: self.bytes.len() as u32 });
    }

    /// The words, borrowed.
    pub fn argv(&self) -> Argv<'_> {
        Argv::new(&self.bytes, &self.spans)
    }
}

impl<W: AsRef<[u8]>> FromIterator<W> for ArgvBuf {
    fn from_iter<I: IntoIterator<Item = W>>(argv: I) -> ArgvBuf {
        let mut argv_buf = ArgvBuf::default();
        for word in argv {
            argv_buf.push(word.as_ref());
        }
        argv_buf
    }
}
