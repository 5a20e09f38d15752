//! From a key to its slot and from a slot to its partition.
//!
//! A slot is Redis Cluster's: CRC16/XMODEM of the key modulo 16384, or of the key's *hash tag* if
//! it has one, so that `{user7}.name` and `{user7}.mail` share a slot and clients that place keys
//! by tag find them placed so here
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//!
//! A partition is a contiguous run of slots, and the [`Ring`] cuts the slots into runs whose
//! lengths differ by one at most. This hash is never used to place a key *inside* its partition
//! (see [`crate::engine::tables::KeyHasher`]): all keys of a partition agree in it, so a table
//! placed by it would be lopsided.

use crate::ids::{PartitionId, Slot};
use std::ops::RangeInclusive;

/// How many slots there are.
pub const SLOTS: u16 = 16384;

/// CRC16/XMODEM by tables: the polynomial is 0x1021, nothing is reflected, the start is 0. Table
/// `n` tells what a byte does that `n` more bytes follow.
static CRC16: [[u16; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut behind = 1;
    while behind < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc: u16 = tables[behind - 1][byte];
            tables[behind][byte] = (crc << 8) ^ tables[0][(crc >> 8) as usize];
            byte += 1;
        }
        behind += 1;
    }
    tables
};

/// CRC16/XMODEM, eight bytes a step (Kounavis and Berry 2005, "slicing-by-8"): a byte a step is a
/// chain of loads that each wait for the one before, and was a third of a GET's work.
#[inline]
fn crc16(bytes: &[u8]) -> u16 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut crc = 0u16;
    for &[a, b, c, d, e, f, g, h] in chunks {
        let [high, low] = crc.to_be_bytes();
        let bytes = [a ^ high, b ^ low, c, d, e, f, g, h];
        crc = 0;
        for (behind, byte) in bytes.into_iter().rev().enumerate() {
            crc ^= CRC16[behind][usize::from(byte)];
        }
    }
    rest.iter().fold(crc, |crc, byte| (crc << 8) ^ CRC16[0][usize::from((crc >> 8) as u8 ^ byte)])
}

/// The part of the key that is hashed: what stands between the first `{` and the first `}` after
/// it, or the whole key when there is no such pair or nothing between them.
#[inline]
fn hashed(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else { return key };
    let inner = &key[open + 1..];
    match memchr::memchr(b'}', inner) {
        None | Some(0) => key,
        Some(close) => &inner[..close],
    }
}

/// The key's slot.
#[inline]
pub fn slot_of(key: &[u8]) -> Slot {
    Slot(crc16(hashed(key)) % SLOTS)
}

/// How the slots are cut into partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    partitions: u16,
}

impl Ring {
    /// Cuts the slots into `partitions` runs: at least one, and none empty.
    pub fn new(partitions: u16) -> Ring {
        assert!((1..=SLOTS).contains(&partitions), "1 to {SLOTS} partitions, not {partitions}");
        Ring { partitions }
    }

    /// How many partitions there are.
    #[inline]
    pub fn partitions(self) -> u16 {
        self.partitions
    }

    /// The partition that the slot belongs to.
    #[inline]
    pub fn partition_of(self, slot: Slot) -> PartitionId {
        let partition = u32::from(slot.0) * u32::from(self.partitions) / u32::from(SLOTS);
        PartitionId(partition as u16)
    }

    /// The partition that the key belongs to.
    #[inline]
    pub fn partition_of_key(self, key: &[u8]) -> PartitionId {
        self.partition_of(slot_of(key))
    }

    /// The slots of the partition.
    pub fn slots_of(self, partition: PartitionId) -> RangeInclusive<u16> {
        assert!(partition.0 < self.partitions, "no partition {partition} of {}", self.partitions);
        // The first slot that `partition_of` sends to a partition or to one after it.
        let first = |partition: u32| {
            (partition * u32::from(SLOTS)).div_ceil(u32::from(self.partitions)) as u16
        };
        let partition = u32::from(partition.0);
        first(partition)..=first(partition + 1) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldenscript::Context;
    use std::{error::Error, fmt::Write as _};

    #[test]
    fn crc16_is_xmodem() {
        // The check value of the CRC catalogue and of the Redis Cluster specification.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
        // Bit by bit, as the specification has it.
        let slow = |bytes: &[u8]| {
            bytes.iter().fold(0u16, |crc, byte| {
                (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                    if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
                })
            })
        };
        let mut bytes = Vec::new();
        for n in 0..1000u32 {
            bytes.push((n.wrapping_mul(2_654_435_761) >> 24) as u8);
            assert_eq!(crc16(&bytes), slow(&bytes), "{bytes:?}");
        }
    }

    #[test]
    fn published_vectors() {
        // CLUSTER KEYSLOT in the documentation of Redis.
        assert_eq!(slot_of(b"somekey"), Slot(11058));
        assert_eq!(slot_of(b"foo{hash_tag}"), Slot(2515));
        assert_eq!(slot_of(b"bar{hash_tag}"), Slot(2515));
        assert_eq!(slot_of(b"foo"), Slot(12182));
        assert_eq!(slot_of(b"bar"), Slot(5061));
        assert_eq!(slot_of(b"hello"), Slot(866));
        // The examples of the specification's section on hash tags.
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"{user1000}.followers"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), Slot(crc16(b"foo{}{bar}") % SLOTS));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
    }

    #[test]
    fn partitions_are_runs_of_nearly_one_length() {
        for partitions in (1..=SLOTS).step_by(7).chain([2, 3, 12, 16, 255, 256, 1000, SLOTS]) {
            let ring = Ring::new(partitions);
            let mut next = 0;
            for partition in (0..partitions).map(PartitionId) {
                let slots = ring.slots_of(partition);
                assert_eq!(*slots.start(), next, "{partitions} partitions");
                let least = usize::from(SLOTS / partitions);
                assert!((least..=least + 1).contains(&slots.len()), "{partitions}: {slots:?}");
                assert_eq!(ring.partition_of(Slot(*slots.start())), partition);
                assert_eq!(ring.partition_of(Slot(*slots.end())), partition);
                next = slots.end() + 1;
            }
            assert_eq!(next, SLOTS);
        }
    }

    /// `slot KEY..` tells each key's slot and what was hashed; `ring N [KEY..]` tells the runs of
    /// slots of N partitions, or the partitions of the keys.
    struct Runner;

    impl goldenscript::Runner for Runner {
        type Command = goldenscript::Command;

        fn run(
            &mut self,
            command: &goldenscript::Command,
            _: &Context,
        ) -> Result<String, Box<dyn Error>> {
            let mut out = String::new();
            let mut args = command.consume_args();
            match command.name.as_str() {
                "slot" => {
                    while let Some(key) = args.next_pos() {
                        let tag = String::from_utf8_lossy(hashed(key.as_bytes()));
                        writeln!(out, "{key:?} hashes {tag:?}: {}", slot_of(key.as_bytes()).0)?;
                    }
                }
                "ring" => {
                    let ring = Ring::new(args.next_pos().ok_or("how many?")?.parse()?);
                    let mut keys = false;
                    while let Some(key) = args.next_pos() {
                        keys = true;
                        let partition = ring.partition_of_key(key.as_bytes());
                        let slot = slot_of(key.as_bytes()).0;
                        writeln!(out, "{key:?} slot {slot} partition {partition}")?;
                    }
                    if !keys {
                        for partition in (0..ring.partitions()).map(PartitionId) {
                            let slots = ring.slots_of(partition);
                            let (first, last) = (slots.start(), slots.end());
                            writeln!(out, "{partition}: {first}-{last}, {}", slots.len())?;
                        }
                    }
                }
                name => return Err(format!("no command {name}").into()),
            }
            args.reject_next()?;
            Ok(out)
        }
    }

    #[test]
    fn scripts() {
        for script in ["keys", "ring"] {
            goldenscript::run(&mut Runner, format!("tests/scripts/slots/{script}")).unwrap();
        }
    }
}
