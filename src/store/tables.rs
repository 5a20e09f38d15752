//! The tables of one partition: what its operations read and write.
//!
//! [`Tables`] adds two things to a [`Table`]: there are [`TABLES`] of them, each made when first
//! written to, and items *expire*.
//!
//! Time is an argument, and expiry is decided where it can be logged. An operation that writes
//! runs at the stamp in its log entry, the same on every replica, so it may remove what it finds
//! expired: everybody removes it at the same place of the log. An operation that reads is not
//! logged, so it must not change anything: it hides what it finds expired and notes the key
//! ([`Tables::take_expired`]), so that the partition logs a removal ([`Tables::expire`]).
//!
//! An item expires *at* its expiry: it is there at the millisecond before.

mod backup;

use crate::ids::{Millis, TABLES, TableIndex};
use crate::store::item::Item;
pub use crate::store::item::ItemRef;
use crate::store::key_state::{HeldValue, KeyState};
use crate::store::pages::PagedItem;
use crate::store::table::{CellPlace, Purpose, Table};
pub use crate::store::value::{Encoding, ValueBuf};
use crate::store::watches::Watches;
use backup::Backups;
pub use backup::{Begun, PIECE_BYTES};
use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use serde::{Deserialize, Serialize};
use std::hash::Hasher;

/// Whether an operation may change what it touches. `Write` is the greater claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Looks only.
    Read,
    /// May change.
    Write,
}

/// At most so many expired keys are noted at a time; the others are met again.
pub const EXPIRED_NOTED_MAX: usize = 1024;

/// The hash that places a key inside its table: foldhash, seeded.
///
/// It is independent of the hash that chose the partition, on which all keys of a partition agree
/// to some extent. Its seed is the cluster's: the hash of a key travels with an operation, and a
/// scan's cursor is a place in the order of hashes.
#[derive(Clone, Copy, Debug)]
pub struct KeyHasher {
    seed: u64,
    /// Drawn from the seed too: with foldhash's fixed constants a client could make keys that
    /// collide under every seed.
    shared: &'static SharedSeed,
}

impl KeyHasher {
    /// The hash function of this seed. Made once and copied: its few words live as long as the
    /// process.
    pub fn new(seed: u64) -> KeyHasher {
        KeyHasher { seed, shared: Box::leak(Box::new(SharedSeed::from_u64(seed))) }
    }

    /// The key's hash.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, self.shared);
        hasher.write(key);
        hasher.finish()
    }
}

/// How a put treats the expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    /// The item has none.
    Never,
    /// The item keeps the one it has, if any.
    Keep,
    /// The item expires at this moment.
    At(Millis),
}

/// The tables of one partition.
pub struct Tables {
    tables: [Option<Box<Table>>; TABLES],
    hasher: KeyHasher,
    now: Millis,
    /// The second of `now`, as items note when they are used.
    second: u32,
    /// Items removed because their time had come.
    expirations: u64,
    /// Keys that reads looked for and found, and those they did not.
    hits: u64,
    misses: u64,
    access: Access,
    /// Keys that reads have found expired.
    expired: Vec<(TableIndex, Vec<u8>)>,
    watches: Watches,
    /// Tables that were cleared while they were copied.
    retired: Vec<Table>,
    backups: Backups,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let items: usize = TableIndex::all().map(|table| self.len(table)).sum();
        f.debug_struct("Tables").field("items", &items).finish_non_exhaustive()
    }
}

impl Tables {
    /// Empty tables.
    pub fn new(hasher: KeyHasher) -> Tables {
        Tables {
            tables: [const { None }; TABLES],
            hasher,
            now: Millis(0),
            second: 0,
            expirations: 0,
            hits: 0,
            misses: 0,
            access: Access::Write,
            expired: Vec::new(),
            watches: Watches::default(),
            retired: Vec::new(),
            backups: Backups::default(),
        }
    }

    /// Keys that clients watch; to be set anew when a life of the node begins.
    pub fn watches_mut(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// The same, to look at.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Adds a watcher of the key and tells the key's version; none if too many keys are watched.
    pub fn watch(&mut self, table: TableIndex, hash: u64, key: &[u8]) -> Option<u64> {
        if self.watches.is_full() && self.watches.version(table, hash).is_none() {
            return None;
        }
        let expired = self.is_expired(table, hash, key, self.now);
        Some(self.watches.watch(table, hash, expired, self.now))
    }

    /// Whether the key is what it was when its watcher was told `version`: not written to since,
    /// and not expired at `now` unless it was so then.
    pub fn is_unchanged(
        &self,
        (table, key): (TableIndex, &[u8]),
        version: u64,
        now: Millis,
    ) -> bool {
        let hash = self.hasher.hash(key);
        self.watches.version(table, hash) == Some(version)
            && !self.has_expired_unseen((table, key), now)
    }

    /// Whether a watched key's item is there, and has expired by `now` without its watchers
    /// knowing it.
    pub fn has_expired_unseen(&self, (table, key): (TableIndex, &[u8]), now: Millis) -> bool {
        let hash = self.hasher.hash(key);
        self.is_expired(table, hash, key, now) && !self.watches.knows_expired(table, hash)
    }

    /// Whether the key's item is there, and expired at `now`.
    fn is_expired(&self, table: TableIndex, hash: u64, key: &[u8], now: Millis) -> bool {
        let Some(items) = self.table(table) else { return false };
        items.find(hash, key).is_some_and(|place| items.at(place).is_expired(now))
    }

    /// Notes that the key changes, for those who watch it.
    #[inline]
    pub fn touch(&mut self, table: TableIndex, hash: u64) {
        if !self.watches.is_empty() {
            self.watches.touch(table, hash);
        }
    }

    /// The hash that places the keys.
    #[inline]
    pub fn hasher(&self) -> KeyHasher {
        self.hasher
    }

    /// Sets the moment and the access of the operation about to run.
    #[inline]
    pub fn begin(&mut self, now: Millis, access: Access) {
        self.now = now;
        self.second = (now.0 / 1000) as u32;
        self.access = access;
    }

    /// The moment of the operation that runs.
    #[inline]
    pub fn now(&self) -> Millis {
        self.now
    }

    #[inline]
    fn table(&self, table: TableIndex) -> Option<&Table> {
        self.tables[table.index()].as_deref()
    }

    /// The key's table and place, if it is there and not expired; removes or notes it if it is.
    #[inline]
    fn live(
        &mut self,
        table: TableIndex,
        hash: u64,
        key: &[u8],
    ) -> Option<(&mut Table, CellPlace)> {
        let reads = u64::from(self.access == Access::Read);
        let found = self.tables[table.index()].as_deref_mut().and_then(|items| {
            let place = items.find(hash, key)?;
            Some((items, place))
        });
        let Some((items, place)) = found else {
            self.misses += reads;
            return None;
        };
        if !items.at(place).is_expired(self.now) {
            self.hits += reads;
            return Some((items, place));
        }
        self.misses += reads;
        match self.access {
            Access::Write => {
                self.expirations += 1;
                drop(items.remove(place));
                if !self.watches.is_empty() {
                    self.watches.remove(table, hash);
                }
            }
            Access::Read => note(&mut self.expired, table, key),
        }
        None
    }

    /// As [`Tables::live`], for those who change what they find.
    #[inline]
    fn live_mut(
        &mut self,
        table: TableIndex,
        hash: u64,
        key: &[u8],
    ) -> Option<(&mut Table, CellPlace)> {
        assert!(self.access == Access::Write, "an operation that reads does not write");
        self.live(table, hash, key)
    }

    /// Puts an item whose key is not there.
    #[inline]
    fn insert(&mut self, table: TableIndex, hash: u64, item: Item) -> (&mut Table, CellPlace) {
        let items = self.tables[table.index()].get_or_insert_default();
        let hasher = self.hasher;
        let place = items.insert(hash, item, |key| hasher.hash(key));
        items.use_at(place, self.second);
        (items, place)
    }

    /// What the key holds. It is used now: the moment of the last use is the one thing that reads
    /// change, each replica for itself.
    #[inline]
    pub fn get(&mut self, table: TableIndex, hash: u64, key: &[u8]) -> Option<ItemRef<'_>> {
        let second = self.second;
        let (items, place) = self.live(table, hash, key)?;
        items.use_at(place, second);
        Some(items.at(place))
    }

    /// What the key holds, for those who look without using it.
    #[inline]
    pub fn peek(&mut self, table: TableIndex, hash: u64, key: &[u8]) -> Option<ItemRef<'_>> {
        let (items, place) = self.live(table, hash, key)?;
        Some(items.at(place))
    }

    /// How many bytes the key's value has, 0 if there is none: nothing is used, noted or removed.
    #[inline]
    pub fn value_bytes(&self, table: TableIndex, hash: u64, key: &[u8]) -> usize {
        let Some(items) = self.table(table) else { return 0 };
        items.find(hash, key).map_or(0, |place| items.at(place).content().len())
    }

    /// Sets the second in which the key was last used.
    pub fn set_used(&mut self, table: TableIndex, hash: u64, key: &[u8], second: u32) {
        if let Some((items, place)) = self.live(table, hash, key) {
            items.use_at(place, second);
        }
    }

    /// Exchanges two tables. A watched key changes if there is something under its name in either.
    pub fn swap(&mut self, one: TableIndex, other: TableIndex) {
        assert!(self.access == Access::Write, "an operation that reads does not write");
        for table in [one, other] {
            // As in Redis, what is there in either has changed in both.
            for hash in self.watches.watched(table) {
                if one != other && (self.holds(one, hash) || self.holds(other, hash)) {
                    self.watches.touch(table, hash);
                }
            }
        }
        self.tables.swap(one.index(), other.index());
    }

    /// Whether a table has an item whose key has this hash.
    fn holds(&self, table: TableIndex, hash: u64) -> bool {
        let is_it = |key: &[u8]| self.hasher.hash(key) == hash;
        self.table(table).is_some_and(|items| items.holds(hash, is_it))
    }

    /// How many items were removed because their time had come.
    #[inline]
    pub fn expirations(&self) -> u64 {
        self.expirations
    }

    /// Keys that operations which only read have found.
    #[inline]
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Keys that they looked for and did not find.
    #[inline]
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Gives the key a value.
    #[inline]
    pub fn put(
        &mut self,
        table: TableIndex,
        hash: u64,
        key: &[u8],
        value: &[u8],
        expires: Expires,
    ) {
        self.touch(table, hash);
        let fresh = match expires {
            Expires::Never | Expires::Keep => None,
            Expires::At(moment) => Some(moment),
        };
        let second = self.second;
        let Some((items, place)) = self.live_mut(table, hash, key) else {
            self.insert(table, hash, Item::new(key, value, fresh));
            return;
        };
        items.edit(place, |item| {
            let expires = match expires {
                Expires::Keep => item.as_ref().expires(),
                Expires::Never | Expires::At(_) => fresh,
            };
            item.set(value, expires);
        });
        items.use_at(place, second);
    }

    /// Says how the key's value is encoded, where it is not as it was given.
    pub fn set_encoding(&mut self, table: TableIndex, hash: u64, key: &[u8], encoding: Encoding) {
        if let Some((items, place)) = self.live_mut(table, hash, key) {
            items.edit(place, |item| item.set_encoding(encoding));
        }
    }

    /// Appends to the key's value, made if absent; keeps the expiry; returns the new length.
    pub fn append(&mut self, table: TableIndex, hash: u64, key: &[u8], suffix: &[u8]) -> usize {
        self.touch(table, hash);
        let Some((items, place)) = self.live_mut(table, hash, key) else {
            self.insert(table, hash, Item::new(key, suffix, None));
            return suffix.len();
        };
        items.edit(place, |item| item.append(suffix))
    }

    /// The key's value, made if absent and cut or extended with zeros to `len` bytes, to be
    /// written to; keeps the expiry.
    pub fn value_mut(&mut self, table: TableIndex, hash: u64, key: &[u8], len: usize) -> &mut [u8] {
        self.touch(table, hash);
        let place = match self.live_mut(table, hash, key) {
            None => self.insert(table, hash, Item::zeroed(key, len, None)).1,
            Some((items, place)) => {
                items.edit(place, |item| item.resize(len));
                place
            }
        };
        match &mut self.tables[table.index()] {
            Some(items) => items.value_mut(place),
            None => &mut [],
        }
    }

    /// Replaces the key's expiry; false if the key is absent.
    pub fn set_expiry(
        &mut self,
        table: TableIndex,
        hash: u64,
        key: &[u8],
        expires: Option<Millis>,
    ) -> bool {
        let Some((items, place)) = self.live_mut(table, hash, key) else { return false };
        items.edit(place, |item| item.set_expires(expires));
        self.touch(table, hash);
        true
    }

    /// Moves the key's expiry, if it has one, from the time of one clock to that of another: it is
    /// as far from `to` as it was from `from`. That is no change.
    pub fn rebase(&mut self, table: TableIndex, key: &[u8], from: Millis, to: Millis) {
        let hash = self.hasher.hash(key);
        let Some(items) = self.tables[table.index()].as_deref_mut() else { return };
        let Some(place) = items.find(hash, key) else { return };
        if let Some(expires) = items.at(place).expires() {
            let moved = expires.0.saturating_add(to.0).saturating_sub(from.0);
            let moved = Millis(moved).min(Millis::LATEST);
            items.edit(place, |item| item.set_expires(Some(moved)));
        }
    }

    /// Removes the key; false if it was absent.
    pub fn remove(&mut self, table: TableIndex, hash: u64, key: &[u8]) -> bool {
        let Some((items, place)) = self.live_mut(table, hash, key) else { return false };
        drop(items.remove(place));
        self.touch(table, hash);
        true
    }

    /// Removes all keys of the table.
    pub fn clear(&mut self, table: TableIndex) {
        assert!(self.access == Access::Write, "an operation that reads does not write");
        for hash in self.watches.watched(table) {
            if self.holds(table, hash) {
                self.watches.remove(table, hash);
            }
        }
        let cleared = self.tables[table.index()].take();
        self.retired.extend(cleared.filter(|table| table.is_copied()).map(|table| *table));
    }

    /// How many items the table holds, those included that are expired and not removed yet.
    #[inline]
    pub fn len(&self, table: TableIndex) -> usize {
        self.table(table).map_or(0, Table::len)
    }

    /// How many of them have an expiry.
    #[inline]
    pub fn volatile(&self, table: TableIndex) -> usize {
        self.table(table).map_or(0, Table::volatile)
    }

    /// The memory held by all tables: items as allocated, what finds them, and watched keys.
    pub fn bytes(&self) -> usize {
        self.held().map(Table::bytes).sum::<usize>() + self.watches.bytes()
    }

    /// All tables in memory.
    fn held(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().flatten().map(Box::as_ref).chain(&self.retired)
    }

    /// Begins a snapshot of what the tables hold now. One that is under way is given up.
    pub fn begin_snapshot(&mut self) {
        self.begin_copy(Purpose::Snapshot);
    }

    fn begin_copy(&mut self, purpose: Purpose) {
        self.abandon_copy(purpose);
        for (index, table) in TableIndex::all().zip(&mut self.tables) {
            if let Some(table) = table {
                table.begin_copy(purpose, index);
            }
        }
    }

    /// Appends some of the snapshot to `out`, as blocks of [`crate::partition::snapshot`]; false once
    /// it is complete. `budget` is the bytes to append, which are exceeded by no more than a part
    /// of a table or a single large item.
    pub fn snapshot_step(&mut self, out: &mut Vec<u8>, budget: usize) -> bool {
        self.copy_some(Purpose::Snapshot, out, budget)
    }

    fn copy_some(&mut self, purpose: Purpose, out: &mut Vec<u8>, budget: usize) -> bool {
        let hasher = self.hasher;
        let full = out.len().saturating_add(budget.max(1));
        let tables = self.tables.iter_mut().flatten().map(Box::as_mut);
        let mut tables = tables.chain(&mut self.retired);
        let more = tables.any(|table| table.copy_some(purpose, out, full, |key| hasher.hash(key)));
        self.retired.retain(Table::is_copied);
        more
    }

    /// Gives up the snapshot, if one is under way.
    pub fn abandon_snapshot(&mut self) {
        self.abandon_copy(Purpose::Snapshot);
    }

    fn abandon_copy(&mut self, purpose: Purpose) {
        let tables = self.tables.iter_mut().flatten().map(Box::as_mut);
        tables.chain(&mut self.retired).for_each(|table| table.abandon_copy(purpose));
        self.retired.retain(Table::is_copied);
    }

    /// Bytes that a snapshot has had to copy ahead of its steps: it falls behind the writes.
    pub fn snapshot_backlog(&self) -> usize {
        self.held().map(|table| table.copied_ahead(Purpose::Snapshot)).sum()
    }

    /// Makes room for so many items in a table that holds none.
    pub fn reserve(&mut self, table: TableIndex, items: usize) {
        assert!(self.len(table) == 0, "room is made before anything moves in");
        if items > 0 {
            self.tables[table.index()] = Some(Box::new(Table::with_room(items)));
        }
    }

    /// Puts an item as a snapshot holds it, expired or not; false if its key is there.
    pub fn restore(&mut self, item: &PagedItem<'_>) -> bool {
        let &PagedItem { table, key, encoding, content, expires, used } = item;
        let hasher = self.hasher;
        let hash = hasher.hash(key);
        let items = self.tables[table.index()].get_or_insert_default();
        if items.find(hash, key).is_some() {
            return false;
        }
        let mut item = Item::new(key, content, expires);
        item.set_encoding(encoding);
        let place = items.insert(hash, item, |key| hasher.hash(key));
        items.use_at(place, used);
        true
    }

    /// Visits all items of a table, expired ones too, in no order that means anything.
    pub fn for_each(&self, table: TableIndex, visit: &mut dyn FnMut(ItemRef<'_>)) {
        if let Some(items) = self.table(table) {
            items.scan(0, usize::MAX, visit);
        }
    }

    /// Whether reads have found expired items since [`Tables::take_expired`].
    #[inline]
    pub fn has_expired(&self) -> bool {
        !self.expired.is_empty()
    }

    /// The keys that reads have found expired, each once, in order.
    pub fn take_expired(&mut self) -> Vec<(TableIndex, Vec<u8>)> {
        let mut expired = std::mem::take(&mut self.expired);
        expired.sort_unstable();
        expired.dedup();
        expired
    }

    /// Forgets what earlier reads have found expired: [`Tables::take_expired`] tells of later ones.
    #[inline]
    pub fn forget_expired(&mut self) {
        self.expired.clear();
    }

    /// Whether the key is there and was expired at `then`.
    pub fn was_expired(&self, table: TableIndex, key: &[u8], then: Millis) -> bool {
        let Some(items) = self.table(table) else { return false };
        let place = items.find(self.hasher.hash(key), key);
        place.is_some_and(|place| items.at(place).is_expired(then))
    }

    /// Removes the key if it is expired at `now`; whether it was.
    pub fn expire(&mut self, table: TableIndex, key: &[u8], now: Millis) -> bool {
        let hash = self.hasher.hash(key);
        let Some(items) = self.tables[table.index()].as_deref_mut() else { return false };
        let Some(place) = items.find(hash, key) else { return false };
        let expired = items.at(place).is_expired(now);
        if expired {
            self.expirations += 1;
            drop(items.remove(place));
            self.watches.remove(table, hash);
        }
        expired
    }

    /// The key's state as of [`Tables::begin`].
    pub fn image(&mut self, table: TableIndex, key: &[u8]) -> KeyState {
        let hash = self.hasher.hash(key);
        let held = self.peek(table, hash, key).map(|item| HeldValue {
            value: ValueBuf { encoding: item.encoding(), content: item.content().to_vec() },
            expires: item.expires(),
        });
        KeyState { table, key: key.to_vec(), held }
    }

    /// Gives the key the state of the image, whatever it was. It counts as changed, even by its own
    /// image.
    pub fn install(&mut self, image: KeyState) {
        let KeyState { table, key, held } = image;
        let hash = self.hasher.hash(&key);
        self.touch(table, hash);
        let found = self.table(table).and_then(|items| items.find(hash, &key));
        match (held, found, &mut self.tables[table.index()]) {
            (Some(held), Some(place), Some(items)) => {
                items.edit(place, |item| {
                    item.set(&held.value.content, held.expires);
                    item.set_encoding(held.value.encoding);
                });
                items.use_at(place, self.second);
            }
            (None, Some(place), Some(items)) => drop(items.remove(place)),
            (Some(held), _, _) => {
                let mut item = Item::new(&key, &held.value.content, held.expires);
                item.set_encoding(held.value.encoding);
                self.insert(table, hash, item);
            }
            (None, _, _) => {}
        }
    }

    /// Prefetches where a search for the hash begins.
    #[inline]
    pub fn prefetch_slot(&self, table: TableIndex, hash: u64) {
        if let Some(items) = self.table(table) {
            items.prefetch_slot(hash);
        }
    }

    /// Prefetches the item that the hash most likely stands for; best some keys after
    /// [`Tables::prefetch_slot`].
    #[inline]
    pub fn prefetch_item(&self, table: TableIndex, hash: u64) {
        if let Some(items) = self.table(table) {
            items.prefetch_item(hash);
        }
    }

    /// Visits items from `cursor` (0 = start) until at least `budget` cells were examined; returns
    /// the next cursor, 0 at the end. What is there throughout a whole scan is visited at least
    /// once, whatever grows or shrinks meanwhile. Expired items are passed over.
    ///
    /// A cursor is less than 2 to the power of [`crate::store::table::CURSOR_BITS`], and means
    /// the same on every replica. Any number will do: one that was never returned starts
    /// somewhere.
    pub fn scan(
        &self,
        table: TableIndex,
        cursor: u64,
        budget: usize,
        visit: &mut dyn FnMut(ItemRef<'_>),
    ) -> u64 {
        let Some(items) = self.table(table) else { return 0 };
        items.scan(cursor, budget, &mut |item| {
            if !item.is_expired(self.now) {
                visit(item);
            }
        })
    }

    /// Some item that is not expired, chosen by `dice` (64 random bits), each about as likely as
    /// the others.
    pub fn pick(&self, table: TableIndex, dice: u64) -> Option<ItemRef<'_>> {
        self.table(table)?.pick(dice, |item| !item.is_expired(self.now))
    }

    /// As [`Tables::scan`], but notes what is expired for [`Tables::take_expired`]: a step of
    /// active expiry.
    pub fn sweep(&mut self, table: TableIndex, cursor: u64, budget: usize) -> u64 {
        let Some(items) = self.tables[table.index()].as_deref() else { return 0 };
        if items.volatile() == 0 {
            return 0;
        }
        items.scan(cursor, budget, &mut |item| {
            if item.is_expired(self.now) {
                note(&mut self.expired, table, item.key());
            }
        })
    }
}

/// Notes an expired key if there is room.
#[cold]
fn note(expired: &mut Vec<(TableIndex, Vec<u8>)>, table: TableIndex, key: &[u8]) {
    if expired.len() < EXPIRED_NOTED_MAX {
        expired.push((table, key.to_vec()));
    }
}

#[cfg(test)]
mod tests;
