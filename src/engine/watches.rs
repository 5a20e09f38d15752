//! Keys that clients watch, and whether they have changed since.
//!
//! A watched key has a version, which every change of it raises: one that is deleted and created
//! again has changed, one that expires too. A watcher remembers the version it was told and shows
//! it when it wants to commit. Versions are never given twice, not even over lives of the node, so
//! a watch that was forgotten (after [`WATCH_MAX_MS`], or because the partition is served by
//! somebody else now) counts as changed and never as unchanged. Nobody has to say that he stops
//! watching.

use crate::ids::{Incarnation, Millis, TableIndex};
use std::collections::BTreeMap;

/// How long a key is watched after somebody last asked for it.
pub const WATCH_MAX_MS: u64 = 10 * 60 * 1000;

/// Keys that can be watched at a time in a partition; the ones asked for longest ago make room.
const WATCHED_MAX: usize = 1 << 16;

/// The watched keys of one partition.
#[derive(Debug, Default)]
pub struct Watches {
    tables: BTreeMap<TableIndex, BTreeMap<Vec<u8>, Watched>>,
    count: usize,
    next: u64,
}

#[derive(Debug)]
struct Watched {
    version: u64,
    asked: Millis,
}

impl Watches {
    /// No watched keys. Versions begin where no earlier life of the node has been.
    pub fn new(life: Incarnation) -> Watches {
        Watches { next: life.0 << 20, ..Watches::default() }
    }

    /// Whether no key is watched.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Watches a key and tells its version.
    pub fn watch(&mut self, table: TableIndex, key: &[u8], now: Millis) -> u64 {
        if self.count >= WATCHED_MAX {
            self.forget_half();
        }
        let keys = self.tables.entry(table).or_default();
        if let Some(watched) = keys.get_mut(key) {
            watched.asked = now;
            return watched.version;
        }
        self.next += 1;
        keys.insert(key.to_vec(), Watched { version: self.next, asked: now });
        self.count += 1;
        self.next
    }

    /// The version of a key, if it is watched.
    pub fn version(&self, table: TableIndex, key: &[u8]) -> Option<u64> {
        Some(self.tables.get(&table)?.get(key)?.version)
    }

    /// A key has changed.
    pub fn touch(&mut self, table: TableIndex, key: &[u8]) {
        let keys = self.tables.get_mut(&table);
        if let Some(watched) = keys.and_then(|keys| keys.get_mut(key)) {
            self.next += 1;
            watched.version = self.next;
        }
    }

    /// The keys of a table that are watched.
    pub fn watched(&self, table: TableIndex) -> Vec<Vec<u8>> {
        self.tables.get(&table).map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
    }

    /// Forgets keys that nobody has asked for in a long time.
    pub fn expire(&mut self, now: Millis) {
        self.retain(|watched| watched.asked.0.saturating_add(WATCH_MAX_MS) > now.0);
    }

    fn forget_half(&mut self) {
        let mut asked: Vec<Millis> =
            self.tables.values().flat_map(|keys| keys.values()).map(|key| key.asked).collect();
        asked.sort_unstable();
        let middle = asked.get(asked.len() / 2).copied().unwrap_or_default();
        self.retain(|watched| watched.asked > middle);
    }

    fn retain(&mut self, keep: impl Fn(&Watched) -> bool) {
        for keys in self.tables.values_mut() {
            keys.retain(|_, watched| keep(watched));
        }
        self.tables.retain(|_, keys| !keys.is_empty());
        self.count = self.tables.values().map(BTreeMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: fn() -> TableIndex = TableIndex::default;

    #[test]
    fn a_change_raises_the_version_and_nothing_lowers_it() {
        let mut watches = Watches::new(Incarnation(3));
        let first = watches.watch(TABLE(), b"a", Millis(1));
        assert_eq!(watches.watch(TABLE(), b"a", Millis(2)), first);
        watches.touch(TABLE(), b"b");
        assert_eq!(watches.version(TABLE(), b"a"), Some(first));
        watches.touch(TABLE(), b"a");
        assert!(watches.version(TABLE(), b"a") > Some(first));
        watches.expire(Millis(2 + WATCH_MAX_MS));
        assert!(watches.is_empty());
        assert!(watches.watch(TABLE(), b"a", Millis(9)) > first + 1);
    }

    #[test]
    fn a_later_life_gives_other_versions() {
        let version = |life| Watches::new(Incarnation(life)).watch(TABLE(), b"a", Millis(0));
        assert!(version(1_000_001) > version(1_000_000) + 100_000);
    }

    #[test]
    fn too_many_keys_push_out_the_oldest() {
        let mut watches = Watches::new(Incarnation(0));
        for key in 0..=WATCHED_MAX as u64 {
            watches.watch(TABLE(), &key.to_le_bytes(), Millis(key));
        }
        assert!(watches.count <= WATCHED_MAX);
        assert_eq!(watches.version(TABLE(), &0u64.to_le_bytes()), None);
        assert!(watches.version(TABLE(), &(WATCHED_MAX as u64).to_le_bytes()).is_some());
    }
}
