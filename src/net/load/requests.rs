//! Requests encoded once and patched in place.
//!
//! A request differs from the one before only in the digits of its keys. So each kind is encoded
//! once as a template that knows where its digits lie, and the next batch is the last one with new
//! digits. Only a mix of kinds copies templates into the batch, a few nanoseconds a request.
//! Encoding afresh would cost as much as a fast server needs to answer.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Digits in a key.
const KEY_DIGITS: usize = 12;

/// What every key begins with.
const KEY_PREFIX: &[u8] = b"key:";

/// Bytes of the shortest key: its beginning and its digits. A longer one begins with more of it.
pub const KEY_SIZE_MIN: usize = KEY_PREFIX.len() + KEY_DIGITS;

/// As many keys as there are digits for.
pub const KEYS_MAX: u64 = 10u64.pow(KEY_DIGITS as u32);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// GET of one key.
    Get,
    /// SET of one key.
    Set,
    /// MSET of several keys, which lie in different partitions as often as chance has it.
    MultiPut,
    /// MGET of several keys.
    MultiGet,
}

/// Requests by kind, in the order of [`Kind::ALL`].
pub type ByKind<T> = [T; Kind::ALL.len()];

impl Kind {
    /// Every kind, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Get, Self::Set, Self::MultiPut, Self::MultiGet];

    /// The kind's name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::MultiPut => "multiput",
            Self::MultiGet => "multiget",
        }
    }
}

/// Kinds and their weights, written `get:90,set:10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(Kind, u32)>);

impl Mix {
    /// Requests of one kind only.
    pub fn only(kind: Kind) -> Self {
        Self(vec![(kind, 1)])
    }

    /// Whether requests of this kind are sent.
    pub fn has(&self, kind: Kind) -> bool {
        self.0.iter().any(|&(other, _)| other == kind)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (kind, weight)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{}:{weight}", kind.name())?;
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix: Vec<(Kind, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once(':').unwrap_or((part, "1"));
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim()) else {
                return Err(format!(
                    "no kind '{name}'; there are {}",
                    Kind::ALL.map(Kind::name).join(", ")
                ));
            };
            let weight: u16 = weight
                .trim()
                .parse()
                .map_err(|_| format!("the weight of '{name}' is a number from 0 to 65535"))?;
            if mix.iter().any(|&(other, _)| other == kind) {
                return Err(format!("'{name}' appears twice"));
            }
            if weight > 0 {
                mix.push((kind, u32::from(weight)));
            }
        }
        if mix.is_empty() {
            return Err("every weight is 0".to_owned());
        }
        Ok(Self(mix))
    }
}

/// What is asked, apart from how many ask and for how long.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The kinds of requests and their shares.
    pub mix: Mix,
    /// Keys are drawn uniformly from this many.
    pub keys: u64,
    /// Bytes of every key, at least [`KEY_SIZE_MIN`].
    pub key_size: usize,
    /// Bytes of every value written.
    pub value_size: usize,
    /// Keys in a multiput or multiget.
    pub multi: usize,
    /// Requests sent in one write, before any of their replies is awaited.
    pub pipeline: u32,
    /// How many replicas each write is to be on before the next: a WAIT for them follows the
    /// requests, in the same write, and is not counted as one. 0 asks for none.
    pub wait: u32,
}

/// xorshift64*: one multiplication a draw, far cheaper than what a draw is used for, and the same
/// run of numbers for the same seed on every machine.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice for one stream of requests; streams of one seed differ.
    pub fn new(seed: u64, stream: u64) -> Self {
        // splitmix64's finisher, because neighbouring seeds must not begin alike.
        let mut mixed = seed ^ stream.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // xorshift never leaves 0.
        Self((mixed ^ (mixed >> 31)).max(1))
    }

    /// A number below `bound`, by the high bits of a product instead of a division.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(drawn) * u128::from(bound)) >> 64) as u64
    }
}

/// Where the next key comes from.
#[derive(Debug)]
enum Keys {
    /// Any of the first n, without end.
    Uniform(u64),
    /// Each of these once.
    Ascending(Range<u64>),
}

impl Keys {
    fn draw(&mut self, dice: &mut Dice) -> u64 {
        match self {
            Self::Uniform(keys) => dice.below(*keys),
            Self::Ascending(range) => {
                let key = range.start;
                range.start += 1;
                key
            }
        }
    }
}

/// One kind's encoded request and where the digits of its keys begin.
#[derive(Debug)]
struct Template {
    kind: Kind,
    /// The share of draws that fall on this kind or an earlier one, out of `Requests::weights`.
    up_to: u64,
    bytes: Vec<u8>,
    digits: Vec<usize>,
}

impl Template {
    fn new(kind: Kind, up_to: u64, workload: &Workload) -> Self {
        let (name, keys, valued) = match kind {
            Kind::Get => ("GET", 1, false),
            Kind::Set => ("SET", 1, true),
            Kind::MultiPut => ("MSET", workload.multi, true),
            Kind::MultiGet => ("MGET", workload.multi, false),
        };
        let words = 1 + keys * if valued { 2 } else { 1 };
        let mut bytes = format!("*{words}\r\n${}\r\n{name}\r\n", name.len()).into_bytes();
        let mut digits = Vec::with_capacity(keys);
        for _ in 0..keys {
            bytes.extend_from_slice(format!("${}\r\n", workload.key_size).as_bytes());
            let prefix = KEY_PREFIX.iter().cycle().take(workload.key_size - KEY_DIGITS);
            bytes.extend(prefix);
            digits.push(bytes.len());
            bytes.extend_from_slice(&[b'0'; KEY_DIGITS]);
            bytes.extend_from_slice(b"\r\n");
            if valued {
                bytes.extend_from_slice(format!("${}\r\n", workload.value_size).as_bytes());
                bytes.resize(bytes.len() + workload.value_size, b'v');
                bytes.extend_from_slice(b"\r\n");
            }
        }
        Self { kind, up_to, bytes, digits }
    }
}

/// What goes out in one write.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The encoded requests.
    pub bytes: &'a [u8],
    /// How many of each kind they are.
    pub kinds: ByKind<u32>,
    /// How many replies they have: one each, and one of WAIT.
    pub replies: u32,
}

/// An endless, or for a prefill a finite, supply of encoded requests.
#[derive(Debug)]
pub struct Requests {
    templates: Vec<Template>,
    weights: u64,
    keys: Keys,
    dice: Dice,
    pipeline: u32,
    /// How many digits of a key ever differ from 0, made even: digits are written in pairs.
    digits: usize,
    /// What follows each batch, encoded: nothing, or WAIT.
    trailer: Vec<u8>,
    /// The last batch; with a single kind and no WAIT it always holds a whole pipeline of requests.
    bytes: Vec<u8>,
}

impl Requests {
    /// Requests drawn from the workload's mix and keys.
    pub fn drawn(workload: &Workload, dice: Dice) -> Self {
        Self::new(workload, Keys::Uniform(workload.keys), dice)
    }

    /// One SET for each of the keys, in order.
    pub fn filling(workload: &Workload, keys: Range<u64>) -> Self {
        let sets = Workload { mix: Mix::only(Kind::Set), ..workload.clone() };
        Self::new(&sets, Keys::Ascending(keys), Dice::new(0, 0))
    }

    fn new(workload: &Workload, keys: Keys, dice: Dice) -> Self {
        assert!((1..=KEYS_MAX).contains(&workload.keys), "a key has {KEY_DIGITS} digits");
        assert!(workload.key_size >= KEY_SIZE_MIN, "a key has {KEY_SIZE_MIN} bytes at least");
        let mut weights = 0;
        let mut templates = Vec::new();
        for &(kind, weight) in &workload.mix.0 {
            weights += u64::from(weight);
            templates.push(Template::new(kind, weights, workload));
        }
        let trailer = match workload.wait.to_string() {
            _ if workload.wait == 0 => Vec::new(),
            count => {
                format!("*3\r\n$4\r\nWAIT\r\n${}\r\n{count}\r\n$1\r\n0\r\n", count.len()).into()
            }
        };
        let bytes = match templates.as_slice() {
            [only] if trailer.is_empty() => only.bytes.repeat(workload.pipeline as usize),
            _ => Vec::new(),
        };
        let digits = (workload.keys - 1).checked_ilog10().map_or(1, |log| log as usize + 1);
        let digits = digits.next_multiple_of(2);
        let pipeline = workload.pipeline;
        Self { templates, weights, keys, dice, pipeline, digits, trailer, bytes }
    }

    /// The next batch, of at most `limit` requests; none once nothing is left to ask.
    pub fn next_batch(&mut self, limit: u64) -> Option<Batch<'_>> {
        let mut requests = u64::from(self.pipeline).min(limit);
        if let Keys::Ascending(range) = &self.keys {
            requests = requests.min(range.end - range.start);
        }
        if requests == 0 {
            return None;
        }
        let mut kinds = ByKind::default();
        let length = match self.templates.as_slice() {
            [only] if self.trailer.is_empty() => {
                // The bytes of the last batch are still there: only the digits are new.
                kinds[only.kind as usize] = requests as u32;
                let length = requests as usize * only.bytes.len();
                for request in self.bytes[..length].chunks_exact_mut(only.bytes.len()) {
                    patch(request, only, &mut self.keys, &mut self.dice, self.digits);
                }
                length
            }
            several => {
                self.bytes.clear();
                for _ in 0..requests {
                    let draw = self.dice.below(self.weights);
                    let mut drawn = several.iter().filter(|template| draw < template.up_to);
                    let Some(template) = drawn.next() else {
                        unreachable!("a draw below the sum of the weights falls on some kind")
                    };
                    kinds[template.kind as usize] += 1;
                    let begin = self.bytes.len();
                    self.bytes.extend_from_slice(&template.bytes);
                    let request = &mut self.bytes[begin..];
                    patch(request, template, &mut self.keys, &mut self.dice, self.digits);
                }
                self.bytes.extend_from_slice(&self.trailer);
                self.bytes.len()
            }
        };
        let replies = requests as u32 + u32::from(!self.trailer.is_empty());
        Some(Batch { bytes: &self.bytes[..length], kinds, replies })
    }
}

/// Gives an encoded request new keys.
fn patch(request: &mut [u8], template: &Template, keys: &mut Keys, dice: &mut Dice, digits: usize) {
    for &begin in &template.digits {
        let end = begin + KEY_DIGITS;
        write_digits(&mut request[end - digits..end], keys.draw(dice));
    }
}

const DIGIT_PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// Writes a number right-aligned with leading zeros into a field of even length.
fn write_digits(field: &mut [u8], mut number: u64) {
    for pair in field.rchunks_exact_mut(2) {
        pair.copy_from_slice(&DIGIT_PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    debug_assert_eq!(number, 0, "the field is as wide as the largest key");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(mix: &str, keys: u64, pipeline: u32) -> Workload {
        let mix = mix.parse().expect("a valid mix");
        Workload { mix, keys, key_size: 16, value_size: 3, multi: 2, pipeline, wait: 0 }
    }

    fn text(requests: &mut Requests, limit: u64) -> Option<String> {
        let batch = requests.next_batch(limit)?;
        Some(String::from_utf8_lossy(batch.bytes).replace("\r\n", " "))
    }

    #[test]
    fn encodes_each_kind() {
        let one_key = |mix| {
            let workload = workload(mix, 1, 1);
            text(&mut Requests::drawn(&workload, Dice::new(1, 0)), 1)
        };
        let key = "$16 key:000000000000";
        assert_eq!(one_key("get"), Some(format!("*2 $3 GET {key} ")));
        assert_eq!(one_key("set"), Some(format!("*3 $3 SET {key} $3 vvv ")));
        let mset = format!("*5 $4 MSET {key} $3 vvv {key} $3 vvv ");
        assert_eq!(one_key("multiput"), Some(mset));
        assert_eq!(one_key("multiget"), Some(format!("*3 $4 MGET {key} {key} ")));
    }

    #[test]
    fn longer_keys_and_a_wait_behind_the_batch() {
        let workload = Workload { key_size: 21, wait: 10, ..workload("set", 1, 2) };
        let mut requests = Requests::drawn(&workload, Dice::new(1, 0));
        let set = "*3 $3 SET $21 key:key:k000000000000 $3 vvv ";
        let wait = "*3 $4 WAIT $2 10 $1 0 ";
        assert_eq!(text(&mut requests, 1), Some(format!("{set}{wait}")));
        assert_eq!(text(&mut requests, 9), Some(format!("{set}{set}{wait}")));
        assert_eq!(
            requests.next_batch(9).map(|batch| (batch.kinds, batch.replies)),
            Some(([0, 2, 0, 0], 3))
        );
    }

    #[test]
    fn filling_names_every_key_once_and_ends() {
        let mut requests = Requests::filling(&workload("get", 1001, 7), 95..1001);
        let mut keys = Vec::new();
        while let Some(text) = text(&mut requests, u64::MAX) {
            keys.extend(text.split("key:").skip(1).map(|rest| rest[..KEY_DIGITS].to_owned()));
        }
        let expected: Vec<_> = (95..1001).map(|key| format!("{key:012}")).collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_limit_cuts_a_batch_short() {
        for mix in ["set", "get,set"] {
            let mut requests = Requests::drawn(&workload(mix, 10, 8), Dice::new(1, 0));
            let mut asked =
                |limit| requests.next_batch(limit).map(|batch| batch.kinds.iter().sum::<u32>());
            assert_eq!(asked(100), Some(8));
            assert_eq!(asked(3), Some(3));
            assert_eq!(asked(0), None);
            assert_eq!(asked(100), Some(8));
        }
    }

    #[test]
    fn a_seed_repeats_and_streams_differ() {
        let workload = workload("get:2,set:1,multiput:1", KEYS_MAX, 4);
        let run = |seed, stream| {
            let mut requests = Requests::drawn(&workload, Dice::new(seed, stream));
            (0..50).filter_map(|_| text(&mut requests, 9)).collect::<String>()
        };
        assert_eq!(run(7, 0), run(7, 0));
        assert_ne!(run(7, 0), run(7, 1));
        assert_ne!(run(7, 0), run(8, 0));
    }

    #[test]
    fn keys_and_kinds_come_in_their_shares() {
        let workload = workload("get:3,set:1", 10, 16);
        let mut requests = Requests::drawn(&workload, Dice::new(42, 0));
        let mut kinds = ByKind::<u32>::default();
        let mut keys = [0u32; 10];
        for _ in 0..1000 {
            let batch = requests.next_batch(u64::MAX).expect("without end");
            kinds.iter_mut().zip(batch.kinds).for_each(|(sum, more)| *sum += more);
            let text = String::from_utf8_lossy(batch.bytes).into_owned();
            for rest in text.split("key:").skip(1) {
                keys[rest[..KEY_DIGITS].parse::<usize>().expect("digits")] += 1;
            }
        }
        assert_eq!(kinds.iter().sum::<u32>(), 16_000);
        assert!((11_500..12_500).contains(&kinds[Kind::Get as usize]), "{kinds:?}");
        assert!(keys.iter().all(|count| (1_400..1_800).contains(count)), "{keys:?}");
    }

    #[test]
    fn a_mix_is_read_or_refused_with_the_reason() {
        assert_eq!(
            "get:90, set:10".parse::<Mix>().map(|mix| mix.to_string()).as_deref(),
            Ok("get:90,set:10")
        );
        assert_eq!("set".parse::<Mix>(), Ok(Mix::only(Kind::Set)));
        let reason = |text: &str| text.parse::<Mix>().err();
        assert!(reason("got:1").is_some_and(|reason| reason.contains("multiput")));
        assert!(reason("get:x").is_some_and(|reason| reason.contains("weight")));
        assert!(reason("get:1,get:2").is_some_and(|reason| reason.contains("twice")));
        assert!(reason("get:0").is_some());
    }
}
