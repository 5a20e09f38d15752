//! Keys that clients watch, and whether they have changed since.
//!
//! A watched key has a version, which every change of it raises: one that is deleted and created
//! again has changed, one that expires too. A watcher remembers the version it was told and shows
//! it when it wants to commit. Versions are never given twice, not even over lives of the node, so
//! a watch that was forgotten (after [`WATCH_MAX_MS`], or because another node leads the partition
//! now) counts as changed and never as unchanged.
//!
//! Keys are known by their hash. Two keys with one hash share a version, and a change of either
//! counts for both.
//!
//! Watchers are counted: a key is forgotten with its last watcher. The word of one that leaves may
//! be lost with a link or a node, so a key is forgotten with time as well. A full registry takes no
//! further key: those who watch already are not harmed by those who come.

use crate::ids::{Incarnation, Millis, TableIndex};
use std::collections::BTreeMap;

/// How long a key is watched after a client last asked for it.
pub const WATCH_MAX_MS: u64 = 10 * 60 * 1000;

/// Keys that can be watched at a time in a partition.
pub const WATCHED_MAX: usize = 1 << 16;

/// Memory of a watched key: its entry, and its part of the map's nodes.
const WATCHED_BYTES: usize = 80;

/// The watched keys of one partition.
#[derive(Debug, Default)]
pub struct Watches {
    keys: BTreeMap<(TableIndex, u64), WatchEntry>,
    next: u64,
}

#[derive(Debug)]
struct WatchEntry {
    version: u64,
    /// The first version of this registration. A watcher with an earlier one is not counted here.
    first: u64,
    asked: Millis,
    watchers: u32,
    /// The version tells of an item that had expired: that it goes is no further change.
    expired: bool,
}

impl Watches {
    /// No watched keys. Versions begin where no earlier life of the node has been.
    pub fn new(life: Incarnation) -> Watches {
        Watches { next: life.0 << 20, ..Watches::default() }
    }

    /// Whether no key is watched.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys are watched.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it takes no key that is not watched already.
    pub fn is_full(&self) -> bool {
        self.keys.len() >= WATCHED_MAX
    }

    /// The memory that they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.keys.len() * WATCHED_BYTES
    }

    /// Adds a watcher of a key and tells the key's version. `expired`: what the key holds has
    /// expired, and is not removed yet.
    pub fn watch(&mut self, table: TableIndex, hash: u64, expired: bool, now: Millis) -> u64 {
        let next = self.next + 1;
        let watched = self.keys.entry((table, hash)).or_insert_with(|| {
            self.next = next;
            WatchEntry { version: next, first: next, asked: now, watchers: 0, expired }
        });
        if expired && !watched.expired {
            // Those who watch it since before have lost it.
            self.next = next;
            watched.version = next;
            watched.expired = true;
        }
        watched.asked = now;
        watched.watchers = watched.watchers.saturating_add(1);
        watched.version
    }

    /// A watcher that was told `version` leaves.
    pub fn unwatch(&mut self, table: TableIndex, hash: u64, version: u64) {
        let Some(watched) = self.keys.get_mut(&(table, hash)) else { return };
        if version < watched.first {
            return;
        }
        watched.watchers = watched.watchers.saturating_sub(1);
        if watched.watchers == 0 {
            self.keys.remove(&(table, hash));
        }
    }

    /// The version of a key, if it is watched.
    pub fn version(&self, table: TableIndex, hash: u64) -> Option<u64> {
        Some(self.keys.get(&(table, hash))?.version)
    }

    /// Whether a key's version tells that what it held had expired.
    pub fn knows_expired(&self, table: TableIndex, hash: u64) -> bool {
        self.keys.get(&(table, hash)).is_some_and(|watched| watched.expired)
    }

    /// A key has changed.
    pub fn touch(&mut self, table: TableIndex, hash: u64) {
        if let Some(watched) = self.keys.get_mut(&(table, hash)) {
            self.next += 1;
            watched.version = self.next;
            watched.expired = false;
        }
    }

    /// What a key held is removed. If its watchers knew that it had expired, nothing has changed
    /// for them.
    pub fn remove(&mut self, table: TableIndex, hash: u64) {
        match self.keys.get_mut(&(table, hash)) {
            Some(watched) if watched.expired => watched.expired = false,
            _ => self.touch(table, hash),
        }
    }

    /// The hashes of a table's keys that are watched.
    pub fn watched(&self, table: TableIndex) -> Vec<u64> {
        self.keys.range((table, 0)..=(table, u64::MAX)).map(|((_, hash), _)| *hash).collect()
    }

    /// Forgets keys that no client has asked for in a long time.
    pub fn expire(&mut self, now: Millis) {
        self.keys.retain(|_, watched| watched.asked.0.saturating_add(WATCH_MAX_MS) > now.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: fn() -> TableIndex = TableIndex::default;

    #[test]
    fn a_change_raises_the_version_and_nothing_lowers_it() {
        let mut watches = Watches::new(Incarnation(3));
        let first = watches.watch(TABLE(), 1, false, Millis(1));
        assert_eq!(watches.watch(TABLE(), 1, false, Millis(2)), first);
        watches.touch(TABLE(), 2);
        assert_eq!(watches.version(TABLE(), 1), Some(first));
        watches.touch(TABLE(), 1);
        assert!(watches.version(TABLE(), 1) > Some(first));
        watches.expire(Millis(2 + WATCH_MAX_MS));
        assert!(watches.is_empty());
        assert!(watches.watch(TABLE(), 1, false, Millis(9)) > first + 1);
    }

    #[test]
    fn a_later_life_gives_other_versions() {
        let version = |life| Watches::new(Incarnation(life)).watch(TABLE(), 1, false, Millis(0));
        assert!(version(1_000_001) > version(1_000_000) + 100_000);
    }

    #[test]
    fn a_key_is_forgotten_with_its_last_watcher() {
        let mut watches = Watches::new(Incarnation(0));
        let first = watches.watch(TABLE(), 1, false, Millis(0));
        watches.touch(TABLE(), 1);
        let second = watches.watch(TABLE(), 1, false, Millis(0));
        assert!(second > first && watches.bytes() > 0);
        watches.unwatch(TABLE(), 1, first);
        assert_eq!(watches.version(TABLE(), 1), Some(second));
        watches.unwatch(TABLE(), 1, second);
        assert!(watches.is_empty() && watches.bytes() == 0);
    }

    #[test]
    fn a_watcher_of_long_ago_takes_no_other_along() {
        let mut watches = Watches::new(Incarnation(0));
        let old = watches.watch(TABLE(), 1, false, Millis(0));
        watches.expire(Millis(WATCH_MAX_MS));
        let new = watches.watch(TABLE(), 1, false, Millis(WATCH_MAX_MS));
        watches.unwatch(TABLE(), 1, old);
        assert_eq!(watches.version(TABLE(), 1), Some(new));
    }

    #[test]
    fn what_had_expired_for_its_watcher_goes_without_a_change() {
        let mut watches = Watches::new(Incarnation(0));
        let alive = watches.watch(TABLE(), 1, false, Millis(0));
        let expired = watches.watch(TABLE(), 1, true, Millis(0));
        assert!(expired > alive, "a watcher from before has lost it");
        watches.remove(TABLE(), 1);
        assert_eq!(watches.version(TABLE(), 1), Some(expired));
        watches.remove(TABLE(), 1);
        assert!(watches.version(TABLE(), 1) > Some(expired), "made again, and removed");
    }
}
