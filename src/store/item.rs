//! An item: a stored key with its value, in one allocation.
//!
//! ```text
//! 0        4          8       12                 12 or 20     + key
//! | flags, | value's  | access | expiry, 8 bytes, | key        | value      | room to |
//! | key    | length   | clock  | if the item has  |            |            | grow    |
//! | length |          |        | one              |            |            |         |
//! ```
//!
//! A million small items live or die by their overhead: a `HashMap<Bytes, Bytes>` pays 100 bytes a
//! key for pointers, lengths and the allocator's rounding; this pays 12, so that a key of 16 bytes
//! with a value of 64 takes 96. One allocation is also one cache miss instead of three.
//!
//! The allocation's size is a function of the lengths alone ([`class`]), so it need not be stored,
//! and it grows in steps of a fraction of itself, so a value built by repeated appends is copied a
//! constant number of times an octet on average.
//!
//! All unsafe code about an item's memory is in this file. An [`Item`] or [`ItemRef`] points to an
//! allocation whose header tells the truth about it, and every access goes through the raw pointer
//! that the allocator gave, never through a reference to the header: a reference could not reach
//! the bytes behind it.

use crate::ids::Millis;
use crate::store::value::{ENCODING_BITS, Encoding, Value};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;

/// The longest key.
pub const KEY_BYTES_MAX: usize = (1 << 24) - 1;
/// The longest value, as in Redis: a bitfield's integer that begins at the last bit of 512 MiB goes
/// on behind it.
pub const VALUE_BYTES_MAX: usize = (512 << 20) + 8;

/// Where the value's length lies.
const VALUE_LEN: usize = 4;
/// Where the access clock lies: seconds since the Unix epoch, until 2106.
const CLOCK: usize = 8;
/// Where the expiry lies in an item that has one; the key in others.
const BODY: usize = 12;
/// Bytes of an expiry.
const EXPIRY: usize = size_of::<u64>();

/// The first word's bits of the key's length; those above are flags.
const KEY_LEN: u32 = KEY_BYTES_MAX as u32;
/// Flag: the item has an expiry.
const VOLATILE: u32 = 1 << 24;
/// Where the number of the value's [`Encoding`] begins. The two bits before it are for an item that
/// has metadata of its own, between expiry and key, and for one whose value is a pointer to a large
/// one with its counter of bytes. There are no such items yet.
const ENCODING_SHIFT: u32 = 27;

const _: () = assert!(ENCODING_SHIFT + ENCODING_BITS == u32::BITS);

const _: () = assert!(size_of::<Option<Item>>() == size_of::<usize>());

/// The size of the allocation that holds `len` bytes.
///
/// Up to 4 KiB these are the size classes of mimalloc and jemalloc (four to a doubling, at least
/// 16 bytes apart), so what is rounded up here costs nothing there and [`Item::bytes`] is what an
/// item takes. Above there are eight to a doubling.
#[inline]
pub(super) fn class(len: usize) -> usize {
    if len <= 128 {
        return len.next_multiple_of(16);
    }
    let octave = 1 << (len - 1).ilog2();
    let steps = if len <= 4096 { 4 } else { 8 };
    len.next_multiple_of(octave / steps)
}

/// What an item's header says: the shape of its allocation, and the value's encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    key: usize,
    value: usize,
    volatile: bool,
    encoding: Encoding,
}

impl Shape {
    fn new(key: &[u8], value: usize, volatile: bool) -> Shape {
        assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
        assert!(value <= VALUE_BYTES_MAX, "a value of {value} bytes");
        Shape { key: key.len(), value, volatile, encoding: Encoding::Plain }
    }

    #[inline]
    fn with_value(self, value: usize, encoding: Encoding) -> Shape {
        assert!(value <= VALUE_BYTES_MAX, "a value of {value} bytes");
        Shape { value, encoding, ..self }
    }

    #[inline]
    fn key_at(self) -> usize {
        if self.volatile { BODY + EXPIRY } else { BODY }
    }

    #[inline]
    fn value_at(self) -> usize {
        self.key_at() + self.key
    }

    #[inline]
    fn end(self) -> usize {
        self.value_at() + self.value
    }

    #[inline]
    fn bytes(self) -> usize {
        class(self.end())
    }

    fn layout(self) -> Layout {
        // SAFETY: the alignment is a power of two, and the limits of keys and values keep the size
        // far below isize::MAX.
        unsafe { Layout::from_size_align_unchecked(self.bytes(), align_of::<u32>()) }
    }
}

/// The encoding that a header's first word tells.
#[inline]
fn encoding_of(first: u32) -> Encoding {
    Encoding::from_number((first >> ENCODING_SHIFT) as u8).unwrap_or_default()
}

/// A borrowed item.
#[derive(Clone, Copy)]
pub struct ItemRef<'a> {
    raw: NonNull<u8>,
    item: PhantomData<&'a Item>,
}

impl<'a> ItemRef<'a> {
    /// Borrows the item that `raw` points to.
    ///
    /// # Safety
    /// `raw` is the pointer of a live [`Item`] that is not changed or dropped during `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<u8>) -> ItemRef<'a> {
        ItemRef { raw, item: PhantomData }
    }

    #[inline]
    fn shape(self) -> Shape {
        // SAFETY: the allocation begins with two aligned words that are always initialised.
        let (first, value) = unsafe {
            (self.raw.cast::<u32>().read(), self.raw.add(VALUE_LEN).cast::<u32>().read())
        };
        Shape {
            key: (first & KEY_LEN) as usize,
            value: value as usize,
            volatile: first & VOLATILE != 0,
            encoding: encoding_of(first),
        }
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        let shape = self.shape();
        // SAFETY: the header says that so many initialised bytes lie there, unchanged during 'a.
        unsafe { slice::from_raw_parts(self.raw.add(shape.key_at()).as_ptr(), shape.key) }
    }

    /// The value.
    #[inline]
    pub fn value(&self) -> Value<'a> {
        Value::new(self.encoding(), self.content())
    }

    /// The value's content, as it is encoded.
    #[inline]
    pub fn content(&self) -> &'a [u8] {
        let shape = self.shape();
        // SAFETY: the header says that so many initialised bytes lie there, unchanged during 'a.
        unsafe { slice::from_raw_parts(self.raw.add(shape.value_at()).as_ptr(), shape.value) }
    }

    /// When the item expires, if ever.
    #[inline]
    pub fn expires(&self) -> Option<Millis> {
        if !self.shape().volatile {
            return None;
        }
        // SAFETY: the header says that an expiry lies there; it is not aligned.
        Some(Millis(unsafe { self.raw.add(BODY).cast::<u64>().read_unaligned() }))
    }

    /// The value's type and encoding.
    #[inline]
    pub fn encoding(&self) -> Encoding {
        self.shape().encoding
    }

    /// The second in which the item was last used.
    #[inline]
    pub fn used(&self) -> u32 {
        // SAFETY: the clock's word is aligned as the allocation is, and always initialised.
        unsafe { self.raw.add(CLOCK).cast::<u32>().read() }
    }

    /// Whether the item is expired at `now`: its last moment is the one before its expiry.
    #[inline]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires().is_some_and(|expires| expires <= now)
    }

    /// The size of the item's allocation.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.shape().bytes()
    }
}

/// A key with its value: owns one allocation, is itself one pointer.
pub struct Item {
    raw: NonNull<u8>,
}

// SAFETY: an item owns its memory and does not share it.
unsafe impl Send for Item {}

impl Item {
    /// An item.
    pub fn new(key: &[u8], value: &[u8], expires: Option<Millis>) -> Item {
        let mut item = Item::unfilled(key, value.len(), expires);
        item.fill(0, value);
        item
    }

    /// An item whose value is `len` zeros, to be edited.
    pub fn zeroed(key: &[u8], len: usize, expires: Option<Millis>) -> Item {
        let mut item = Item::unfilled(key, len, expires);
        item.zero(0);
        item.set_encoding(Encoding::Raw);
        item
    }

    /// An item but for its value, whose bytes the caller writes before anyone looks.
    #[inline]
    fn unfilled(key: &[u8], value: usize, expires: Option<Millis>) -> Item {
        let shape = Shape::new(key, value, expires.is_some());
        let layout = shape.layout();
        // SAFETY: the layout's size is not 0: a header is never empty.
        let Some(raw) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        let mut item = Item { raw };
        // SAFETY: header and key lie within the allocation, which is new and ours; the clock's
        // word is aligned as the allocation is.
        unsafe {
            raw.add(CLOCK).cast::<u32>().write(0);
            ptr::copy_nonoverlapping(key.as_ptr(), raw.add(shape.key_at()).as_ptr(), key.len());
        }
        item.write_shape(shape);
        if let Some(expires) = expires {
            item.write_expiry(expires);
        }
        item
    }

    /// Borrows the item.
    #[inline]
    pub fn as_ref(&self) -> ItemRef<'_> {
        // SAFETY: the item is live, and borrowed for as long.
        unsafe { ItemRef::from_raw(self.raw) }
    }

    /// The size of the item's allocation.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.as_ref().bytes()
    }

    /// The value, to be written to.
    #[inline]
    pub fn value_mut(&mut self) -> &mut [u8] {
        // SAFETY: the item is live, and borrowed alone for as long.
        unsafe { Item::value_of(self.raw) }
    }

    /// The value of the item that `raw` points to, to be written to.
    ///
    /// # Safety
    /// `raw` is the pointer of a live item that no other code looks at, changes or drops during
    /// `'a`.
    #[inline]
    pub(super) unsafe fn value_of<'a>(raw: NonNull<u8>) -> &'a mut [u8] {
        // SAFETY: the caller has said that the item is live and unshared; its header says that so
        // many initialised bytes lie there.
        unsafe {
            let shape = ItemRef::from_raw(raw).shape();
            slice::from_raw_parts_mut(raw.add(shape.value_at()).as_ptr(), shape.value)
        }
    }

    /// Sets the second in which the item that `raw` points to was last used.
    ///
    /// # Safety
    /// `raw` is the pointer of a live item that no other code looks at, changes or drops meanwhile.
    #[inline]
    pub(super) unsafe fn use_at(raw: NonNull<u8>, second: u32) {
        // SAFETY: the caller has said that the item is live and unshared; its clock's word is
        // aligned as the allocation is.
        unsafe { raw.add(CLOCK).cast::<u32>().write(second) }
    }

    /// Replaces value and expiry; the value is given as a whole.
    #[inline]
    pub fn set(&mut self, value: &[u8], expires: Option<Millis>) {
        let old = self.as_ref().shape();
        let new =
            Shape { volatile: expires.is_some(), ..old.with_value(value.len(), Encoding::Plain) };
        if old.volatile != new.volatile || old.bytes() != new.bytes() {
            // A new allocation rather than a longer one, which would copy the old value.
            let item = Item::new(self.as_ref().key(), value, expires);
            *self = item;
            return;
        }
        self.write_shape(new);
        self.fill(0, value);
        if let Some(expires) = expires {
            self.write_expiry(expires);
        }
    }

    /// Appends to the value and returns its new length.
    pub fn append(&mut self, suffix: &[u8]) -> usize {
        let old = self.as_ref().shape();
        let new = old.with_value(old.value + suffix.len(), Encoding::Raw);
        self.reallocate(old, new);
        self.write_shape(new);
        self.fill(old.value, suffix);
        new.value
    }

    /// Cuts the value to `len` bytes or extends it with zeros.
    pub fn resize(&mut self, len: usize) {
        let old = self.as_ref().shape();
        let new = old.with_value(len, Encoding::Raw);
        self.reallocate(old, new);
        self.write_shape(new);
        if len > old.value {
            self.zero(old.value);
        }
    }

    /// Replaces the expiry.
    pub fn set_expires(&mut self, expires: Option<Millis>) {
        let old = self.as_ref().shape();
        let new = Shape { volatile: expires.is_some(), ..old };
        if old.volatile != new.volatile {
            // The body moves while the allocation has the greater of the two sizes.
            if new.volatile {
                self.reallocate(old, new);
            }
            // SAFETY: key and value lie within the allocation before and after; the ranges
            // overlap, as `copy` allows.
            unsafe {
                let body = self.raw.add(old.key_at());
                ptr::copy(
                    body.as_ptr(),
                    self.raw.add(new.key_at()).as_ptr(),
                    old.end() - old.key_at(),
                );
            }
            if old.volatile {
                self.reallocate(old, new);
            }
            self.write_shape(new);
        }
        if let Some(expires) = expires {
            self.write_expiry(expires);
        }
    }

    /// Says how the value is encoded, if it is not as it was given.
    #[inline]
    pub fn set_encoding(&mut self, encoding: Encoding) {
        let shape = Shape { encoding, ..self.as_ref().shape() };
        self.write_shape(shape);
    }

    /// Gives the allocation the size of another shape, keeping its bytes up to the lesser size.
    /// The header is still that of `old`.
    fn reallocate(&mut self, old: Shape, new: Shape) {
        let (from, to) = (old.layout(), new.layout());
        if from == to {
            return;
        }
        // SAFETY: the allocation was made with the layout of `old`; the new size is neither 0 nor
        // too great, as in `Shape::layout`.
        let raw = unsafe { realloc(self.raw.as_ptr(), from, to.size()) };
        let Some(raw) = NonNull::new(raw) else { handle_alloc_error(to) };
        self.raw = raw;
    }

    /// Writes lengths and flags. The caller has made the allocation fit.
    #[inline]
    fn write_shape(&mut self, shape: Shape) {
        let volatile = if shape.volatile { VOLATILE } else { 0 };
        let flags = volatile | u32::from(shape.encoding.number()) << ENCODING_SHIFT;
        // SAFETY: the allocation begins with two aligned words, and it is ours alone.
        unsafe {
            self.raw.cast::<u32>().write(shape.key as u32 | flags);
            self.raw.add(VALUE_LEN).cast::<u32>().write(shape.value as u32);
        }
    }

    /// Writes the expiry of an item whose header says that it has one.
    #[inline]
    fn write_expiry(&mut self, expires: Millis) {
        debug_assert!(self.as_ref().shape().volatile);
        // SAFETY: the header says that there is room for an expiry; it is not aligned.
        unsafe { self.raw.add(BODY).cast::<u64>().write_unaligned(expires.0) };
    }

    /// Writes `bytes` into the value, whose length has been written, from `at` to its end.
    #[inline]
    fn fill(&mut self, at: usize, bytes: &[u8]) {
        let shape = self.as_ref().shape();
        assert!(at + bytes.len() == shape.value, "a value is filled to its end");
        // SAFETY: the range was just seen to lie within the value, which lies within the
        // allocation; `bytes` is borrowed and so lies elsewhere.
        unsafe {
            let to = self.raw.add(shape.value_at() + at);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len());
        }
    }

    /// Writes zeros into the value, whose length has been written, from `at` to its end.
    fn zero(&mut self, at: usize) {
        let shape = self.as_ref().shape();
        assert!(at <= shape.value, "a value is filled to its end");
        // SAFETY: the range was just seen to lie within the value, which lies within the
        // allocation.
        unsafe { self.raw.add(shape.value_at() + at).write_bytes(0, shape.value - at) };
    }

    /// Gives up the item for the pointer that owns it.
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<u8> {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }

    /// The item that [`Item::into_raw`] gave up.
    ///
    /// # Safety
    /// `raw` comes from `into_raw`, and no other item is made of it.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<u8>) -> Item {
        Item { raw }
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        let layout = self.as_ref().shape().layout();
        // SAFETY: the allocation was made, or last reallocated, with this layout.
        unsafe { dealloc(self.raw.as_ptr(), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_item_wastes_little() {
        let item = Item::new(&[b'k'; 16], &[b'v'; 64], None);
        assert_eq!(item.bytes(), 96);
        let item = Item::new(&[b'k'; 16], &[b'v'; 64], Some(Millis(1)));
        assert_eq!(item.bytes(), 112);
    }

    #[test]
    fn classes_cover_and_grow_by_a_fraction() {
        let mut last = 0;
        for len in (1..70_000).chain((1..200).map(|n| n * 5_000_000)) {
            let class = class(len);
            assert!(class >= len && class.is_multiple_of(16), "{len}: {class}");
            assert!(class >= last);
            assert!(class - len < 16 || (class - len) * 4 < len, "{len}: {class}");
            last = class;
        }
    }

    #[test]
    fn everything_survives_every_change() {
        let mut item = Item::new(b"key", b"", None);
        let mut value = Vec::new();
        let check = |item: &Item, value: &[u8], expires| {
            assert_eq!(item.as_ref().key(), b"key");
            assert_eq!(item.as_ref().content(), value);
            assert_eq!(item.as_ref().expires(), expires);
        };
        // Miri takes its time.
        let steps = if cfg!(miri) { 40 } else { 400 };
        for n in 0..steps {
            let suffix = vec![n as u8; n as usize % 97];
            value.extend_from_slice(&suffix);
            assert_eq!(item.append(&suffix), value.len());
            let expires = (n % 3 == 0).then_some(Millis(u64::MAX - n));
            item.set_expires(expires);
            check(&item, &value, expires);
            if n % 10 == 9 {
                value.truncate(value.len() / 2);
                item.resize(value.len());
                check(&item, &value, expires);
                value.resize(value.len() + 300, 0);
                item.resize(value.len());
                check(&item, &value, expires);
                item.value_mut().fill(n as u8);
                value.fill(n as u8);
                check(&item, &value, expires);
            }
            if n % 50 == 49 {
                value = vec![b'x'; n as usize];
                item.set(&value, Some(Millis(n)));
                check(&item, &value, Some(Millis(n)));
                value.push(b'y');
                item.set(&value, None);
                check(&item, &value, None);
            }
        }
        let empty = Item::new(b"", b"", None);
        assert_eq!((empty.as_ref().key(), empty.as_ref().content()), (&b""[..], &b""[..]));
        let zeros = Item::zeroed(b"k", 1000, None);
        assert_eq!(zeros.as_ref().content(), [0; 1000]);
    }

    #[test]
    fn a_value_tells_how_it_is_encoded() {
        let mut item = Item::new(b"key", b"1", None);
        assert_eq!(item.as_ref().encoding(), Encoding::Plain);
        item.append(b"");
        assert_eq!(item.as_ref().encoding(), Encoding::Raw);
        for expires in [Some(Millis(7)), None] {
            item.set_expires(expires);
            assert_eq!(item.as_ref().encoding(), Encoding::Raw);
        }
        for value in [&b"2"[..], &[b'v'; 100]] {
            item.set_encoding(Encoding::Float);
            assert_eq!(item.as_ref().encoding(), Encoding::Float);
            item.set(value, None);
            assert_eq!(
                (item.as_ref().encoding(), item.as_ref().content()),
                (Encoding::Plain, value)
            );
        }
        item.resize(3);
        assert_eq!(item.as_ref().encoding(), Encoding::Raw);
        assert_eq!(Item::zeroed(b"key", 1, None).as_ref().encoding(), Encoding::Raw);
    }

    #[test]
    fn appending_reallocates_seldom() {
        let mut item = Item::new(b"key", b"", None);
        let mut classes = 0;
        let mut bytes = item.bytes();
        while item.append(&[b'v'; 100]) < 10_000_000 {
            if item.bytes() != bytes {
                bytes = item.bytes();
                classes += 1;
            }
        }
        // Eight for each doubling from 4 KiB to 10 MB, and the few below.
        assert!(classes < 8 * 12 + 30, "{classes}");
    }
}
