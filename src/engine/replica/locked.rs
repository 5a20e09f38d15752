//! Which keys intents lock, by hash.

use crate::engine::protocol::{Claim, Granule};
use crate::engine::tables::KeyHasher;
use std::collections::BTreeMap;

/// What intents lock, to tell at once of most operations that no intent is in their way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Locked {
    /// How many intents lock everything.
    whole: usize,
    /// How many claims there are on keys with this hash.
    keys: BTreeMap<u64, usize>,
}

impl Locked {
    pub(super) fn lock(&mut self, claims: &[Claim], hasher: KeyHasher) {
        for claim in claims {
            match &claim.granule {
                Granule::Whole => self.whole += 1,
                Granule::Key(_, key) => *self.keys.entry(hasher.hash(key)).or_default() += 1,
            }
        }
    }

    pub(super) fn unlock(&mut self, claims: &[Claim], hasher: KeyHasher) {
        for claim in claims {
            let Granule::Key(_, key) = &claim.granule else {
                self.whole -= 1;
                continue;
            };
            let hash = hasher.hash(key);
            let left = self.keys.get_mut(&hash).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                self.keys.remove(&hash);
            }
        }
    }

    /// Whether an intent may lock the key.
    pub(super) fn may_lock(&self, hash: u64) -> bool {
        self.whole > 0 || self.keys.contains_key(&hash)
    }
}
