//! `DUMP` and `RESTORE`: a value as bytes that say what they are.
//!
//! A payload is laid out as Redis's: the type, the value, the version of the layout in two bytes,
//! and a CRC-64 over all of it (Jones's polynomial, least bit first). So a string that one of the
//! two has dumped the other can restore; what only Redis has is refused as bad data. Integers are
//! written in binary as Redis does; long strings are read compressed and written plain.
//!
//! `RESTORE` also takes a type of our own: a value as it is encoded here ([`encoded`]). So a backup
//! brings back what Redis's layout leaves out.

use super::Call;
use super::spec::{
    ANSWERS_VALUES, CommandGroup, DANGEROUS, DENYOOM, Doc, GOES_THROUGH, KEY, READONLY, STRETCHES,
    Spec, Split, WRITE, data,
};
use super::{NOT_AN_INTEGER, SYNTAX};
use crate::batch::Args;
use crate::ids::Millis;
use crate::store::number::parse_int;
use crate::store::tables::Expires;
use crate::store::value::{Encoding, ValueBuf};

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    let complexity = "O(N) with N the length of the value";
    Doc { group: CommandGroup::Generic, since, complexity, summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "dump", arity: 2, flags: READONLY | ANSWERS_VALUES, keys: KEY, run: data(68, dump, Split::Single),
        doc: doc("2.6.0", "Serialises a key's value, with a version and a checksum.", "key") },
    Spec { name: "restore", arity: -4, flags: WRITE | DENYOOM | DANGEROUS | STRETCHES | GOES_THROUGH, keys: KEY, run: data(69, restore, Split::Single),
        doc: doc("2.6.0", "Makes a key of a serialised value.",
            "key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]") },
];

/// The longest value that is restored: as long as one that comes as an argument may be. A payload of a
/// few megabytes can tell of many times as much, which is made in one turn of every replica.
const RESTORED_BYTES_MAX: usize = 64 << 20;

/// The version of the layout that is written; those up to it are read.
const VERSION: u16 = 10;
/// Version and checksum.
const FOOTER_BYTES: usize = 10;
/// The type of strings.
const STRING: u8 = 0;
/// A type that Redis does not have: the number of an encoding follows, and the content.
const ENCODED: u8 = 0xf0;

/// Lengths, by their first byte: six bits, fourteen bits, 32 or 64 bits, or a number that says how
/// the string is encoded.
const LENGTH_14: u8 = 0x40;
const LENGTH_32: u8 = 0x80;
const LENGTH_64: u8 = 0x81;
const ENCODED_INT8: u8 = 0xc0;
const ENCODED_INT16: u8 = 0xc1;
const ENCODED_INT32: u8 = 0xc2;
const ENCODED_LZF: u8 = 0xc3;

/// The remainders of all bytes; table `n` tells what a byte does that `n` more bytes follow.
static CRC64: [[u64; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ 0x95ac_9329_ac4b_c9b5 } else { rest >> 1 };
            bit += 1;
        }
        tables[0][byte] = rest;
        byte += 1;
    }
    let mut behind = 1;
    while behind < 8 {
        let mut byte = 0;
        while byte < 256 {
            let rest = tables[behind - 1][byte];
            tables[behind][byte] = rest >> 8 ^ tables[0][(rest & 0xff) as usize];
            byte += 1;
        }
        behind += 1;
    }
    tables
};

/// Eight bytes a step, as the CRC16 of slots is worked out (`cluster/slots.rs`).
fn crc64(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let crc = chunks.iter().fold(0, |crc: u64, chunk| {
        let mixed = (crc ^ u64::from_le_bytes(*chunk)).to_le_bytes();
        let behind = CRC64.iter().rev().zip(mixed);
        behind.fold(0, |crc, (table, byte)| crc ^ table[usize::from(byte)])
    });
    rest.iter().fold(crc, |crc, byte| CRC64[0][usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

/// The value's payload.
fn serialise(value: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(value.len() + FOOTER_BYTES + 6);
    payload.push(STRING);
    match parse_int(value).filter(|_| value.len() <= 11).map(i32::try_from) {
        Some(Ok(number)) => {
            let bytes = number.to_le_bytes();
            let (code, width) = match number {
                -0x80..=0x7f => (ENCODED_INT8, 1),
                -0x8000..=0x7fff => (ENCODED_INT16, 2),
                _ => (ENCODED_INT32, 4),
            };
            payload.push(code);
            payload.extend_from_slice(&bytes[..width]);
        }
        _ => {
            match value.len() {
                length @ 0..0x40 => payload.push(length as u8),
                length @ 0x40..0x4000 => {
                    payload.extend_from_slice(&[LENGTH_14 | (length >> 8) as u8, length as u8]);
                }
                // Values are far shorter than 32 bits can tell.
                length => {
                    payload.push(LENGTH_32);
                    payload.extend_from_slice(&(length as u32).to_be_bytes());
                }
            }
            payload.extend_from_slice(value);
        }
    }
    end_payload(&mut payload);
    payload
}

/// A value as it is encoded here, as a payload for `RESTORE`. Redis does not know the type.
pub fn encoded(encoding: Encoding, content: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(content.len() + FOOTER_BYTES + 2);
    payload.extend_from_slice(&[ENCODED, encoding.number()]);
    payload.extend_from_slice(content);
    end_payload(&mut payload);
    payload
}

fn end_payload(payload: &mut Vec<u8>) {
    payload.extend_from_slice(&VERSION.to_le_bytes());
    let crc = crc64(payload);
    payload.extend_from_slice(&crc.to_le_bytes());
}

/// What is wrong with a payload.
const BAD_FOOTER: &str = "ERR DUMP payload version or checksum are wrong";
const BAD_DATA: &str = "ERR Bad data format";

/// The value of a payload.
fn deserialise(payload: &[u8]) -> Result<ValueBuf, &'static str> {
    let (summed, crc) = payload.split_last_chunk::<8>().ok_or(BAD_FOOTER)?;
    let (body, version) = summed.split_last_chunk::<2>().ok_or(BAD_FOOTER)?;
    if u16::from_le_bytes(*version) > VERSION || u64::from_le_bytes(*crc) != crc64(summed) {
        return Err(BAD_FOOTER);
    }
    let mut reader = Reader(body);
    let value = match reader.byte() {
        Some(STRING) => reader.string().map(ValueBuf::string),
        Some(ENCODED) => reader
            .byte()
            .and_then(Encoding::from_number)
            .map(|encoding| ValueBuf { encoding, content: reader.0.to_vec() }),
        _ => None,
    };
    value.ok_or(BAD_DATA)
}

/// How long `RESTORE` makes its key's value if that is more than its payload; 0 if it is not, or that
/// is not to be.
pub(super) fn reach(args: Args<'_>) -> usize {
    let mut reader = Reader(args.get(2));
    let mut unpacked = || {
        let is_packed = reader.byte()? == STRING && reader.byte()? == ENCODED_LZF;
        is_packed.then_some(())?;
        reader.any_length()?;
        reader.any_length()
    };
    unpacked().filter(|length| *length <= RESTORED_BYTES_MAX).unwrap_or(0)
}

/// What is left of a payload's body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn any_length(&mut self) -> Option<usize> {
        let first = self.byte()?;
        self.length(first)
    }

    fn length(&mut self, first: u8) -> Option<usize> {
        match first {
            0..LENGTH_14 => Some(usize::from(first)),
            LENGTH_14..LENGTH_32 => {
                Some(usize::from(first & !LENGTH_14) << 8 | usize::from(self.byte()?))
            }
            LENGTH_32 => usize::try_from(u32::from_be_bytes(self.array()?)).ok(),
            LENGTH_64 => usize::try_from(u64::from_be_bytes(self.array()?)).ok(),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        let number = |number: i32| Some(number.to_string().into_bytes());
        match self.byte()? {
            ENCODED_INT8 => number(i8::from_le_bytes(self.array()?).into()),
            ENCODED_INT16 => number(i16::from_le_bytes(self.array()?).into()),
            ENCODED_INT32 => number(i32::from_le_bytes(self.array()?)),
            ENCODED_LZF => {
                let (packed, length) = (self.any_length()?, self.any_length()?);
                unpack(self.bytes(packed)?, length)
            }
            first => {
                let length = self.length(first)?;
                self.bytes(length).map(<[u8]>::to_vec)
            }
        }
    }
}

/// Undoes LZF (Lehmann's): runs of literal bytes, and references to bytes up to 8 KiB back.
fn unpack(mut packed: &[u8], length: usize) -> Option<Vec<u8>> {
    if length > RESTORED_BYTES_MAX {
        return None;
    }
    let mut value = Vec::new();
    while let Some((&control, rest)) = packed.split_first() {
        packed = rest;
        let control = usize::from(control);
        if control < 32 {
            let (literal, rest) = packed.split_at_checked(control + 1)?;
            value.extend_from_slice(literal);
            packed = rest;
        } else {
            let mut run = control >> 5;
            if run == 7 {
                let (&more, rest) = packed.split_first()?;
                run += usize::from(more);
                packed = rest;
            }
            let (&low, rest) = packed.split_first()?;
            packed = rest;
            let back = ((control & 31) << 8 | usize::from(low)) + 1;
            let start = value.len().checked_sub(back)?;
            // The run may reach into what it writes: then it repeats what there is.
            let end = value.len() + run + 2;
            while value.len() < end {
                let more = (value.len() - start).min(end - value.len());
                value.extend_from_within(start..start + more);
            }
        }
        if value.len() > length {
            return None;
        }
    }
    (value.len() == length).then_some(value)
}

fn dump(call: &mut Call<'_>) {
    let payload = call.get().map(|item| serialise(item.value().string()));
    call.reply.bulk_or_nil(payload.as_deref());
}

/// The options of `RESTORE`.
#[derive(Default)]
struct RestoreOptions {
    replace: bool,
    absolute: bool,
    idle: Option<u64>,
    freq: bool,
}

fn options(call: &Call<'_>) -> Result<RestoreOptions, &'static str> {
    let args = call.args;
    let mut options = RestoreOptions::default();
    let mut at = 3;
    while at < args.len() {
        let is = |name: &[u8]| args.get(at).eq_ignore_ascii_case(name);
        let more = at + 1 < args.len();
        match () {
            () if is(b"replace") => options.replace = true,
            () if is(b"absttl") => options.absolute = true,
            () if is(b"idletime") && more && !options.freq => {
                let idle = parse_int(args.get(at + 1)).ok_or(NOT_AN_INTEGER)?;
                let error = "ERR Invalid IDLETIME value, must be >= 0";
                options.idle = Some(u64::try_from(idle).map_err(|_| error)?);
                at += 1;
            }
            () if is(b"freq") && more && options.idle.is_none() => {
                let freq = parse_int(args.get(at + 1)).ok_or(NOT_AN_INTEGER)?;
                if !(0..=255).contains(&freq) {
                    return Err("ERR Invalid FREQ value, must be >= 0 and <= 255");
                }
                options.freq = true;
                at += 1;
            }
            () => return Err(SYNTAX),
        }
        at += 1;
    }
    Ok(options)
}

fn restore(call: &mut Call<'_>) {
    let options = match options(call) {
        Ok(options) => options,
        Err(error) => return call.reply.error(error),
    };
    if !options.replace && call.get().is_some() {
        return call.reply.error("BUSYKEY Target key name already exists.");
    }
    let Some(ttl) = parse_int(call.args.get(1)) else { return call.reply.error(NOT_AN_INTEGER) };
    let Ok(ttl) = u64::try_from(ttl) else {
        return call.reply.error("ERR Invalid TTL value, must be >= 0");
    };
    let base = if options.absolute { 0 } else { call.now.0 };
    let expires = match ttl.saturating_add(base) {
        _ if ttl == 0 => Expires::Never,
        moment if moment <= Millis::LATEST.0 => Expires::At(Millis(moment)),
        _ => return call.reply.error("ERR invalid expire time in 'restore' command"),
    };
    let value = match deserialise(call.args.get(2)) {
        Ok(value) => value,
        Err(error) => return call.reply.error(error),
    };
    match expires {
        Expires::At(moment) if moment <= call.now => drop(call.remove()),
        expires => call.put(&value.content, expires),
    }
    if value.encoding != Encoding::Plain {
        let key = call.args.get(0);
        call.tables.set_encoding(call.table, call.hash, key, value.encoding);
    }
    if let Some(idle) = options.idle {
        let used = (call.now.0 / 1000).saturating_sub(idle) as u32;
        call.tables.set_used(call.table, call.hash, call.args.get(0), used);
    }
    call.reply.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_redis_uses() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        let by_byte = |bytes: &[u8]| {
            let step = |crc, byte: &u8| CRC64[0][usize::from(crc as u8 ^ byte)] ^ crc >> 8;
            bytes.iter().fold(0u64, step)
        };
        let bytes: Vec<u8> = (0..100u8).map(|n| n.wrapping_mul(151)).collect();
        (0..100).for_each(|end| assert_eq!(crc64(&bytes[..end]), by_byte(&bytes[..end])));
    }

    #[test]
    fn values_survive() {
        let mut values: Vec<Vec<u8>> = [0, 1, 63, 64, 0x3fff, 0x4000, 100_000]
            .into_iter()
            .map(|length| (0..length).map(|at| at as u8).collect())
            .collect();
        let texts =
            ["0", "-1", "127", "128", "-32768", "32768", "2147483648", "-2147483648", "007"];
        values.extend(texts.iter().map(|text| text.as_bytes().to_vec()));
        for value in values {
            assert_eq!(deserialise(&serialise(&value)), Ok(ValueBuf::string(value.clone())));
            for encoding in Encoding::ALL {
                let own = ValueBuf { encoding, content: value.clone() };
                assert_eq!(deserialise(&encoded(encoding, &value)), Ok(own));
            }
        }
    }

    #[test]
    fn what_redis_compresses_is_read() {
        // DUMP of a hundred letters a by redis-server 7.0.15, without its checksum.
        let payload = b"\x00\xc3\x09\x40\x64\x01\x61\x61\xe0\x57\x00\x01\x61\x61\x0a\x00";
        let whole = [payload.as_slice(), &crc64(payload).to_le_bytes()].concat();
        assert_eq!(deserialise(&whole), Ok(ValueBuf::string(vec![b'a'; 100])));
        let without = [payload.as_slice(), &[0; 8]].concat();
        assert_eq!(deserialise(&without), Err(BAD_FOOTER), "a sum of 0 is a sum");
        // A run that repeats three bytes, and one that lies behind it.
        let packed = [&[2, b'a', b'b', b'c', 0xe0, 2, 2][..], &[0x40, 8]].concat();
        let value: Vec<u8> = b"abc".iter().copied().cycle().take(14).chain(*b"cabc").collect();
        assert_eq!(unpack(&packed, 18), Some(value));
    }

    /// A payload that tells of a value of `length` bytes.
    fn packed(length: u32) -> Vec<u8> {
        let mut payload = vec![STRING, ENCODED_LZF, 3, LENGTH_32];
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&[1, b'a', b'b']);
        end_payload(&mut payload);
        payload
    }

    #[test]
    fn what_a_payload_unpacks_to_is_foreseen_and_bounded() {
        use crate::batch::Batch;
        let reach_of = |payload: &[u8]| {
            let mut batch = Batch::new();
            let head = crate::batch::OpHead {
                code: crate::batch::OpCode(69),
                partition: crate::ids::PartitionId(0),
                table: crate::ids::TableIndex::default(),
                resp3: false,
                hash: 0,
            };
            batch.push(head, [b"key".as_slice(), b"0", payload]);
            reach(batch.op(0).args)
        };
        assert_eq!(reach_of(&packed(RESTORED_BYTES_MAX as u32)), RESTORED_BYTES_MAX);
        assert_eq!(reach_of(&packed(RESTORED_BYTES_MAX as u32 + 1)), 0);
        assert_eq!(deserialise(&packed(RESTORED_BYTES_MAX as u32 + 1)), Err(BAD_DATA));
        assert_eq!(deserialise(&packed(3)), Err(BAD_DATA), "it does not hold what it tells of");
        assert_eq!(reach_of(&serialise(&[b'x'; 100])), 0, "it is no longer than its payload");
        assert_eq!([reach_of(b""), reach_of(b"\0\xc3")], [0, 0]);
    }

    #[test]
    fn damage_is_noticed() {
        let payload = serialise(b"some value that is long enough");
        for at in 0..payload.len() * 8 {
            let mut damaged = payload.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(deserialise(&damaged).is_err(), "bit {at}");
        }
        for length in 0..payload.len() {
            assert!(deserialise(&payload[..length]).is_err(), "{length} bytes");
        }
    }
}
