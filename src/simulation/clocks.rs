//! The clocks of nodes: ahead, fast, set, and stopped with their machine.

use super::schedule::Rng;
use crate::ids::{Millis, Now};

/// The clocks of a node. They may be wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// By how many ms its wall clock is ahead.
    pub(super) ahead: i64,
    /// What its monotonic clock says as the world begins.
    begins: u64,
    /// How many ms it stood still with its virtual machine.
    pub(super) stood: u64,
    /// Parts in a thousand that both run fast.
    fast: i64,
}

/// Wall clocks begin about here.
const EPOCH: i64 = 1_700_000_000_000;

impl Clock {
    pub(super) fn drawn(rng: &mut Rng) -> Clock {
        let ahead = [0, 40, 30_000, 3_600_000][rng.roll(4)] - rng.roll(60_000) as i64;
        Clock { ahead, begins: rng.roll(1 << 40) as u64, fast: rng.roll(21) as i64 - 10, stood: 0 }
    }

    /// What it says once so many ms have passed.
    pub(super) fn at(self, passed: u64) -> Now {
        let fast = |passed: u64| passed as i64 * (1_000 + self.fast) / 1_000;
        let wall = EPOCH + fast(passed) + self.ahead;
        let mono = self.begins + fast(passed.saturating_sub(self.stood)) as u64;
        Now { wall: Millis(wall as u64), mono }
    }

    /// The wall clock is set: by a second, by a minute, by a year.
    pub(super) fn set(&mut self, rng: &mut Rng) {
        let most = [1_000, 60_000, 31_536_000_000][rng.roll(3)];
        self.ahead = rng.roll(2 * most) as i64 - most as i64;
    }
}
