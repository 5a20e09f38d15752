//! From a key to its slot, and from a slot of a table to its partition.
//!
//! A slot is Redis Cluster's: CRC16/XMODEM of the key modulo 16384, or of the key's *hash tag* if
//! it has one, so that `{user7}.name` and `{user7}.mail` share a slot and clients that place keys
//! by tag find them placed so here
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//!
//! A partition is a contiguous run of slots, and the [`Ring`] cuts the slots into runs whose
//! lengths differ by one at most. Tables of one storage class share partitions; each class has a
//! ring's partitions of its own, one class's numbers behind the other's, and the [`Atlas`] knows
//! which table is where. This hash is never used to place a key *inside* its partition
//! (see [`crate::store::tables::KeyHasher`]): all keys of a partition agree in it, so a table
//! placed by it would be lopsided.

use crate::ids::{PartitionId, Slot, TABLES, TableIndex};
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

/// Where the slots of every table lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atlas {
    ring: Ring,
    /// The first partition of each table's class.
    first: [u16; TABLES],
    classes: u16,
}

impl Atlas {
    /// Gives each storage class the ring's partitions; `class_of` tells the class of a table, of
    /// which there are as many as the highest one says. The partitions of all classes together have
    /// to have numbers.
    pub fn new(ring: Ring, class_of: impl Fn(TableIndex) -> usize) -> Atlas {
        let mut first = [0; TABLES];
        let mut classes = 1;
        for table in TableIndex::all() {
            let class = class_of(table) as u16;
            first[table.index()] = class * ring.partitions;
            classes = classes.max(class + 1);
        }
        Atlas { ring, first, classes }
    }

    /// How the slots are cut, in every class alike.
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// The partition that holds a table's slot.
    #[inline]
    pub fn partition_of(&self, table: TableIndex, slot: Slot) -> PartitionId {
        PartitionId(self.first[table.index()] + self.ring.partition_of(slot).0)
    }

    /// The partition that holds a table's key.
    #[inline]
    pub fn partition_of_key(&self, table: TableIndex, key: &[u8]) -> PartitionId {
        self.partition_of(table, slot_of(key))
    }

    /// The partitions that a table lies in, in order.
    pub fn partitions_of(&self, table: TableIndex) -> Partitions {
        Partitions { first: self.first[table.index()], count: self.ring.partitions }
    }

    /// The partitions of all tables, in order.
    pub fn all(&self) -> Partitions {
        Partitions { first: 0, count: self.classes * self.ring.partitions }
    }

    /// Whether two tables lie in the same partitions: they are of one storage class.
    pub fn lie_together(&self, one: TableIndex, other: TableIndex) -> bool {
        self.first[one.index()] == self.first[other.index()]
    }
}

/// Partitions with consecutive numbers; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions {
    first: u16,
    count: u16,
}

impl Partitions {
    /// How many there are.
    pub fn count(self) -> u16 {
        self.count
    }

    /// The one at a place, counted round and round.
    pub fn at(self, place: u64) -> PartitionId {
        PartitionId(self.first + (place % u64::from(self.count)) as u16)
    }

    /// The first one.
    pub fn first(self) -> PartitionId {
        PartitionId(self.first)
    }

    /// The last one.
    pub fn last(self) -> PartitionId {
        PartitionId(self.first + self.count - 1)
    }

    /// Whether this is one of them.
    pub fn contains(self, partition: PartitionId) -> bool {
        (self.first()..=self.last()).contains(&partition)
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PartitionId> {
        (self.first..self.first + self.count).map(PartitionId)
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
    /// slots of N partitions, or the partitions of the keys; `atlas N KEY CLASS..` tells where the
    /// key lies in the first tables, which are of these classes.
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
                "atlas" => {
                    let ring = Ring::new(args.next_pos().ok_or("how many?")?.parse()?);
                    let key = args.next_pos().ok_or("which key?")?.as_bytes();
                    let mut classes: Vec<usize> = Vec::new();
                    while let Some(class) = args.next_pos() {
                        classes.push(class.parse()?);
                    }
                    let of = |table: TableIndex| classes.get(table.index()).copied();
                    let atlas = Atlas::new(ring, |table| of(table).unwrap_or(0));
                    writeln!(out, "{} partitions", atlas.all().count())?;
                    for table in TableIndex::all().take(classes.len()) {
                        let (own, held) =
                            (atlas.partitions_of(table), atlas.partition_of_key(table, key));
                        assert!(own.contains(held) && own.iter().all(|id| own.contains(id)));
                        let (first, last) = (own.first(), own.last());
                        writeln!(
                            out,
                            "table {table}: {first}-{last}, {key:?} in {held}",
                            key = String::from_utf8_lossy(key)
                        )?;
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
        for script in ["keys", "ring", "atlas"] {
            goldenscript::run(&mut Runner, format!("tests/scripts/slots/{script}")).unwrap();
        }
    }
}
