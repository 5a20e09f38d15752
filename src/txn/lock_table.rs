//! The locks on a partition's keys: their holders, and whether a request waits.
//!
//! The lock manager only orders the requests that wait. Most keys have none, so an operation asks
//! [`LockTable::is_empty`] first and looks no further.

use crate::ids::{TableIndex, TxnId};
use crate::store::tables::Access;
use crate::txn::protocol::{Claim, Granule, Holder};
use hashbrown::{Equivalent, HashMap};
use smallvec::SmallVec;
use std::hash::{Hash, Hasher};

/// The lock on one granule.
#[derive(Debug, Default)]
pub struct KeyLock {
    holders: SmallVec<[Holder; 1]>,
    /// Requests for it that wait at the lock manager.
    waiting: u32,
    /// Whether the lock manager knows of the granule, and so is told of every change.
    told: bool,
}

/// What the lock manager must hear of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Nothing: it does not know the granule.
    Quietly,
    /// That the holder is gone.
    Contended,
    /// That the holder is gone and no request waits: it may forget the granule.
    LastOfContended,
}

/// All locks of a partition. Looked up by key only: no order of it is ever seen.
#[derive(Debug, Default)]
pub struct LockTable {
    locks: HashMap<GranuleKey, KeyLock, foldhash::fast::FixedState>,
    /// Requests that wait for the whole partition, and holders of it.
    whole_waiting: u32,
    whole_held: u32,
    /// Locks that the lock manager does not know of.
    untold: usize,
}

/// A granule as a hash key that a borrowed key can be compared with.
#[derive(Debug, PartialEq, Eq)]
struct GranuleKey(Granule);

#[derive(PartialEq, Eq)]
struct GranuleRef<'a>(TableIndex, &'a [u8]);

impl Hash for GranuleKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Granule::Whole => state.write_u8(u8::MAX),
            Granule::Key(table, key) => GranuleRef(*table, key).hash(state),
        }
    }
}

impl Hash for GranuleRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(u8::from(self.0));
        state.write(self.1);
    }
}

impl Equivalent<GranuleKey> for GranuleRef<'_> {
    fn equivalent(&self, place: &GranuleKey) -> bool {
        matches!(&place.0, Granule::Key(table, key) if *table == self.0 && **key == *self.1)
    }
}

impl LockTable {
    /// Whether no key is locked or waited for.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Whether a single operation on this key has to wait.
    pub fn blocks(&self, table: TableIndex, key: &[u8], access: Access) -> bool {
        self.whole_waiting > 0
            || self.whole_held > 0
            || self.locks.get(&GranuleRef(table, key)).is_some_and(|lock| lock.blocks(None, access))
    }

    /// Whether the claim of `owner` has to wait.
    pub fn conflicts(&self, owner: Option<TxnId>, claim: &Claim) -> bool {
        if claim.granule == Granule::Whole {
            return self.locks.values().any(|lock| lock.blocks(owner, claim.access));
        }
        let key = self.lock(&claim.granule);
        let whole = self.whole_waiting > 0 || self.whole_held > 0;
        whole || key.is_some_and(|lock| lock.blocks(owner, claim.access))
    }

    /// Sets a lock that was found free or was granted.
    pub fn hold(&mut self, claim: &Claim, txn: TxnId, age: crate::ids::Age) {
        if claim.granule == Granule::Whole {
            self.whole_held += 1;
        }
        let lock = self.locks.entry(GranuleKey(claim.granule.clone())).or_insert_with(|| {
            self.untold += 1;
            KeyLock::default()
        });
        lock.holders.push(Holder { txn, age, access: claim.access });
    }

    /// Whether the transaction holds the granule.
    pub fn holds(&self, granule: &Granule, txn: TxnId) -> bool {
        self.lock(granule).is_some_and(|lock| lock.holders.iter().any(|held| held.txn == txn))
    }

    /// Takes a transaction's lock away.
    pub fn release(&mut self, granule: &Granule, txn: TxnId) -> Released {
        let Some(lock) = self.lock_mut(granule) else { return Released::Quietly };
        let before = lock.holders.len();
        lock.holders.retain(|holder| holder.txn != txn);
        let released = lock.holders.len() < before;
        let told = lock.told;
        let calm = lock.holders.is_empty() && lock.waiting == 0;
        if *granule == Granule::Whole && released {
            self.whole_held -= 1;
        }
        if calm {
            self.unmark(granule);
        }
        match (told, calm) {
            (false, _) => Released::Quietly,
            (true, false) => Released::Contended,
            (true, true) => Released::LastOfContended,
        }
    }

    /// Notes that a request waits for these claims. Returns the holders that the lock manager has
    /// to be told of with it.
    pub fn wait(&mut self, claims: &[Claim]) -> Vec<(Granule, Holder)> {
        let mut news = Vec::new();
        for claim in claims {
            let lock = self.locks.entry(GranuleKey(claim.granule.clone())).or_insert_with(|| {
                self.untold += 1;
                KeyLock::default()
            });
            lock.waiting += 1;
            self.untold -= lock.tell(&claim.granule, &mut news);
            if claim.granule == Granule::Whole {
                self.whole_waiting += 1;
            }
        }
        if self.untold > 0 && (self.whole_waiting > 0 || self.whole_held > 0) {
            // A whole partition waits for the holders of all keys, so all are told of.
            let mut untold: Vec<&GranuleKey> =
                self.locks.iter().filter(|(_, lock)| !lock.told).map(|(place, _)| place).collect();
            untold.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            let untold: Vec<Granule> = untold.into_iter().map(|place| place.0.clone()).collect();
            for granule in untold {
                if let Some(lock) = self.locks.get_mut(&GranuleKey(granule.clone())) {
                    self.untold -= lock.tell(&granule, &mut news);
                }
            }
        }
        news
    }

    /// Notes that a request no longer waits. Returns the granules that the lock manager is to
    /// forget, in order.
    pub fn waited(&mut self, claims: &[Claim]) -> Vec<Granule> {
        for claim in claims {
            if let Some(lock) = self.lock_mut(&claim.granule) {
                lock.waiting -= 1;
            }
            if claim.granule == Granule::Whole {
                self.whole_waiting -= 1;
            }
        }
        self.settle(claims.iter().map(|claim| &claim.granule))
    }

    /// Granules that are no longer contended, among those given (or all, once no request wants the
    /// whole partition any more).
    fn settle<'a>(&mut self, granules: impl Iterator<Item = &'a Granule>) -> Vec<Granule> {
        if self.whole_waiting > 0 {
            return Vec::new();
        }
        let mut whole = false;
        let mut calm: Vec<Granule> = Vec::new();
        for granule in granules {
            whole |= *granule == Granule::Whole;
            if self.lock(granule).is_some_and(|lock| lock.told && lock.waiting == 0) {
                calm.push(granule.clone());
            }
        }
        if whole {
            let told = self.locks.iter().filter(|(_, lock)| lock.told && lock.waiting == 0);
            calm = told.map(|(place, _)| place.0.clone()).collect();
        }
        // A request that waits for a key waits for the holder of the whole partition too.
        let held = self.whole_held > 0;
        calm.retain(|granule| !(held && *granule == Granule::Whole));
        calm.sort_unstable();
        for granule in &calm {
            if let Some(lock) = self.lock_mut(granule) {
                let told = std::mem::replace(&mut lock.told, false);
                let unheld = lock.holders.is_empty();
                self.untold += usize::from(told);
                if unheld {
                    self.unmark(granule);
                }
            }
        }
        calm
    }

    fn lock(&self, granule: &Granule) -> Option<&KeyLock> {
        match granule {
            Granule::Whole => self.locks.get(&GranuleKey(Granule::Whole)),
            Granule::Key(table, key) => self.locks.get(&GranuleRef(*table, key)),
        }
    }

    fn lock_mut(&mut self, granule: &Granule) -> Option<&mut KeyLock> {
        match granule {
            Granule::Whole => self.locks.get_mut(&GranuleKey(Granule::Whole)),
            Granule::Key(table, key) => self.locks.get_mut(&GranuleRef(*table, key)),
        }
    }

    fn unmark(&mut self, granule: &Granule) {
        let gone = match granule {
            Granule::Whole => self.locks.remove(&GranuleKey(Granule::Whole)),
            Granule::Key(table, key) => self.locks.remove(&GranuleRef(*table, key)),
        };
        self.untold -= usize::from(gone.is_some_and(|lock| !lock.told));
    }
}

impl KeyLock {
    fn blocks(&self, owner: Option<TxnId>, access: Access) -> bool {
        self.waiting > 0
            || self.holders.iter().any(|holder| {
                Some(holder.txn) != owner
                    && (access == Access::Write || holder.access == Access::Write)
            })
    }

    /// Adds the holders to what the lock manager is told; returns how many locks it did not know.
    fn tell(&mut self, granule: &Granule, news: &mut Vec<(Granule, Holder)>) -> usize {
        if self.told {
            return 0;
        }
        self.told = true;
        news.extend(self.holders.iter().map(|holder| (granule.clone(), *holder)));
        1
    }
}
