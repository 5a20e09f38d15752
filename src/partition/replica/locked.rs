//! Which keys intents lock, by hash.

use crate::store::tables::KeyHasher;
use crate::txn::share::Claims;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

/// What intents lock, to tell at once of most operations that no intent is in their way.
/// Looked up by hash only: no order of it is ever seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Locked {
    /// How many intents lock everything.
    whole: usize,
    /// How many claims there are on keys with this hash.
    keys: HashMap<u64, usize, foldhash::fast::FixedState>,
}

impl Locked {
    pub(super) fn lock(&mut self, claims: Claims<'_>, hasher: KeyHasher) {
        for claim in claims.iter() {
            match claim.key {
                None => self.whole += 1,
                Some((_, key)) => *self.keys.entry(hasher.hash(key)).or_default() += 1,
            }
        }
    }

    pub(super) fn unlock(&mut self, claims: Claims<'_>, hasher: KeyHasher) {
        for claim in claims.iter() {
            let Some((_, key)) = claim.key else {
                self.whole -= 1;
                continue;
            };
            if let Entry::Occupied(mut count) = self.keys.entry(hasher.hash(key)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// Whether an intent may lock the key.
    pub(super) fn may_lock(&self, hash: u64) -> bool {
        self.whole > 0 || !self.keys.is_empty() && self.keys.contains_key(&hash)
    }
}
