//! A group's time: ticks out of a monotonic clock, and election timeouts out of a seed.
//!
//! The raft crate counts ticks. After a pause of the process (a stopped virtual machine, SIGSTOP,
//! a long stall) a timer would deliver all the ticks that were missed at once, and a burst of ticks
//! is an election for no other reason than the pause. So two ticks are at least a tick's time
//! apart, and a pause counts as one.

use raft::StateRole;

/// When the next tick is due.
pub struct Ticks {
    every: u64,
    last: u64,
    count: usize,
}

impl Ticks {
    /// A tick every `every` ms, the first one after `mono`.
    pub fn new(every: u64, mono: u64) -> Ticks {
        Ticks { every, last: mono, count: 0 }
    }

    /// Whether a tick is due at `mono`; if so, it is counted.
    ///
    /// Within one tick's time the beat is kept, so that a timer that is a little early or late does
    /// not lose ticks; hence `n` ticks take more than `n - 2` ticks' time.
    pub fn due(&mut self, mono: u64) -> bool {
        let passed = mono.saturating_sub(self.last);
        if passed < self.every {
            return false;
        }
        self.last = if passed < 2 * self.every { self.last + self.every } else { mono };
        self.count = self.count.wrapping_add(1);
        true
    }

    /// How many ticks there were.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// The election timeouts of one replica.
///
/// The raft crate draws them from the dice of the thread, which no seed reaches. Ours are put in
/// their place after every call into the crate, and drawn anew when term or role changed: as often
/// as the crate would. And where the crate leaves it to chance whether two replicas stand at the
/// same moment and split the votes, each of ours draws from numbers that the others never draw.
pub struct Timeouts {
    dice: Dice,
    /// The shortest, in ticks; all are less than twice that.
    ticks: usize,
    place: usize,
    places: usize,
    drawn: usize,
    at: Option<(u64, StateRole)>,
}

impl Timeouts {
    /// Timeouts from `ticks` to twice that, out of `seed`, for the replica in this place of so many.
    pub fn new(seed: u64, ticks: usize, place: usize, places: usize) -> Timeouts {
        let places = places.clamp(1, ticks);
        Timeouts { dice: Dice(seed), ticks, place: place % places, places, drawn: ticks, at: None }
    }

    /// The timeout in ticks for this term and role.
    pub fn at(&mut self, standing: (u64, StateRole)) -> usize {
        if self.at != Some(standing) {
            self.at = Some(standing);
            let turns = (self.ticks / self.places) as u64;
            let turn = (self.dice.next() % turns) as usize;
            self.drawn = self.ticks + turn * self.places + self.place;
        }
        self.drawn
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
