//! The stamps of a partition: the clock that expiry goes by.
//!
//! A leader stamps every entry of its log with a moment, and evaluates every read at one. A stamp is
//! a hybrid logical clock's (Kulkarni et al. 2014), with a bound that theirs has not: wall clocks are
//! wrong at times, by an hour or by a year, and a key with `PX 500` is to be gone after about half a
//! second all the same. So stamps are made of durations, and the wall clock only steers them:
//!
//! - A stamp never falls, also under another leader.
//! - Stamps go on with real time, as the leader's monotonic clock counts it, from wherever they are.
//! - They approach the leader's wall clock, ahead or behind, by at most one part in [`SLEW_PART`] of
//!   real time. A clock that is set thus changes a time to live by a tenth at most.
//! - A follower counts on from the stamps that it applies, by its own monotonic clock. It goes on
//!   from there if it comes to lead.
//! - A process that has not heard of a leader since it started cannot know how much time has passed
//!   since the last stamp. If it comes to lead, it asks the other replicas, and goes on from what
//!   any of them has counted. Where none has, as after a loss of power everywhere, it takes the word
//!   of its wall clock, once: the time without a leader counts for every key.

use crate::ids::{Millis, Now};
use crate::rules::{Rule, kept};

/// Stamps run at most one part in so many slower or faster than real time.
pub const SLEW_PART: u64 = 10;

/// Over so much time that part is taken, in ms: stamps move by a tenth of it at once at most.
const WINDOW_MS: u64 = 1_000;

/// A stamp, and when it was the present one.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    stamp: Millis,
    mono: u64,
}

impl Anchor {
    /// The stamp at `mono`, if stamps run at the pace of real time but for one part in `slower`.
    fn at(self, mono: u64, slower: Option<u64>) -> Millis {
        let elapsed = mono.saturating_sub(self.mono);
        let lost = slower.map_or(0, |part| elapsed / part);
        Millis(self.stamp.0.saturating_add(elapsed - lost))
    }
}

/// The stamps of one partition, as its replica on this node gives them out or follows them.
#[derive(Debug, Default)]
pub struct Stamps {
    /// The latest that was given out, and for which moment.
    latest: Millis,
    looked: Now,
    /// None: how much time has passed since the latest stamp cannot be known here.
    anchor: Option<Anchor>,
}

impl Stamps {
    /// The stamp for what the leader does at `now`. `applied` is the latest stamp of its log.
    #[inline]
    pub fn next(&mut self, now: Now, applied: Millis) -> Millis {
        if now != self.looked || applied > self.latest {
            self.advance(now, applied);
        }
        self.latest
    }

    fn advance(&mut self, now: Now, applied: Millis) {
        self.looked = now;
        self.latest = self.latest.max(applied);
        if !kept(Rule::StampJumpsAreBounded) {
            self.latest = self.latest.max(now.wall);
        }
        let Some(anchor) = self.anchor else {
            self.latest = self.latest.max(now.wall);
            self.anchor = Some(Anchor { stamp: self.latest, mono: now.mono });
            return;
        };
        let elapsed = now.mono.saturating_sub(anchor.mono);
        let slack = elapsed.min(WINDOW_MS) / SLEW_PART;
        let steady = match kept(Rule::StampsKeepPace) {
            true => anchor.at(now.mono, None),
            false => anchor.stamp,
        };
        let most = Millis(steady.0.saturating_add(slack));
        let least = Millis(steady.0.saturating_sub(slack));
        self.latest = self.latest.max(now.wall.clamp(least, most));
        if elapsed >= WINDOW_MS || self.latest > most {
            self.anchor = Some(Anchor { stamp: self.latest, mono: now.mono });
        }
    }

    /// A follower has applied an entry with this stamp at `mono`. It may be an old one: whatever it
    /// says, stamps have gone on since the one before, at the slowest pace there is.
    pub fn follow(&mut self, applied: Millis, mono: u64) {
        let least = self.anchor.map(|anchor| anchor.at(mono, Some(SLEW_PART)));
        self.anchor = Some(Anchor { stamp: applied.max(least.unwrap_or_default()), mono });
    }

    /// A stamp and when it was the present one; none if how much time has passed since the latest
    /// cannot be known here.
    pub fn known(&self) -> Option<(Millis, u64)> {
        self.anchor.map(|anchor| (anchor.stamp, anchor.mono))
    }

    /// By how much the first stamp of this process is going to be later than what it recovered, in
    /// ms, if that is by the word of its wall clock alone.
    pub fn leap(&self, now: Now, applied: Millis) -> Option<u64> {
        let leaps = self.anchor.is_none() && now.wall > applied && applied > Millis(0);
        leaps.then(|| now.wall.0 - applied.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::broken;

    const YEAR: u64 = 365 * 24 * 3_600_000;
    const START: u64 = 1_700_000_000_000;

    fn at(wall: u64, mono: u64) -> Now {
        Now { wall: Millis(wall), mono }
    }

    /// A leader's stamps over `ms` of real time, with its wall clock so far `ahead` from the moment
    /// that follows the first; by how many ms they have advanced.
    fn advanced(stamps: &mut Stamps, ms: u64, ahead: i64) -> u64 {
        let first = stamps.next(at(START, 7), Millis(0));
        let mut last = first;
        for passed in 1..=ms {
            let wall = (START + passed).saturating_add_signed(ahead);
            let stamp = stamps.next(at(wall, 7 + passed), Millis(0));
            assert!(stamp >= last);
            last = stamp;
        }
        last.0 - first.0
    }

    #[test]
    fn stamps_are_the_time_where_clocks_agree() {
        let mut stamps = Stamps::default();
        assert_eq!(advanced(&mut stamps, 10_000, 0), 10_000);
        assert_eq!(stamps.next(at(START + 10_000, 10_007), Millis(0)).0, START + 10_000);
    }

    #[test]
    fn a_clock_that_is_set_changes_the_pace_by_a_tenth() {
        for ahead in [30_000, YEAR as i64] {
            let fast = advanced(&mut Stamps::default(), 10_000, ahead);
            assert!((10_900..=11_100).contains(&fast), "{fast}");
            let slow = advanced(&mut Stamps::default(), 10_000, -ahead);
            assert!((8_900..=9_100).contains(&slow), "{slow}");
        }
        let jumps = broken(Rule::StampJumpsAreBounded, || {
            advanced(&mut Stamps::default(), 10_000, YEAR as i64)
        });
        assert!(jumps > YEAR);
    }

    #[test]
    fn they_converge() {
        for ahead in [3_000, -3_000] {
            let mut stamps = Stamps::default();
            advanced(&mut stamps, 40_000, ahead);
            let wall = (START + 40_000).saturating_add_signed(ahead);
            assert_eq!(stamps.next(at(wall, 40_007), Millis(0)).0, wall);
        }
    }

    /// The predecessor was 30 s ahead. What it stamped stands, and time goes on from there.
    #[test]
    fn a_fast_predecessor_stops_nothing() {
        let after = || {
            let (mut stamps, fast) = (Stamps::default(), START + 30_000);
            for beat in 0..50 {
                stamps.follow(Millis(fast + beat * 10), 1_000 + beat * 10);
            }
            // A second later it has not been heard of, and this node leads.
            let first = stamps.next(at(START + 1_500, 2_490), Millis(fast + 490));
            let later = stamps.next(at(START + 2_000, 2_990), Millis(fast + 490));
            (first.0 - fast, later.0 - first.0)
        };
        let (first, later) = after();
        assert!((1_390..=1_490).contains(&first), "{first}");
        assert!((449..=500).contains(&later), "{later}");
        // A broken one gives out the same stamp for half a minute.
        assert_eq!(broken(Rule::StampsKeepPace, after).1, 0);
    }

    #[test]
    fn an_idle_hour_counts_and_a_wrong_clock_does_not() {
        let mut stamps = Stamps::default();
        stamps.follow(Millis(START), 1_000);
        let hour = 3_600_000;
        let stamp = stamps.next(at(START + YEAR, 1_000 + hour), Millis(START));
        assert!(stamp.0.abs_diff(START + hour) <= WINDOW_MS / SLEW_PART);
    }

    /// Only the wall clock knows here for how long all nodes were down.
    #[test]
    fn a_process_that_has_heard_of_no_leader_takes_its_clock_for_right() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.leap(at(START + YEAR, 5), Millis(START)), Some(YEAR));
        assert_eq!(stamps.next(at(START + YEAR, 5), Millis(START)).0, START + YEAR);
        assert_eq!(stamps.leap(at(START + YEAR, 5), Millis(START)), None);
        // One whose clock is behind goes on from the last stamp.
        let mut stamps = Stamps::default();
        assert_eq!(stamps.next(at(START - 60_000, 5), Millis(START)).0, START);
        let later = stamps.next(at(START - 59_000, 1_005), Millis(START)).0;
        assert_eq!(later, START + 900);
    }

    /// Entries of the past that a follower catches up on do not set it back.
    #[test]
    fn old_entries_take_nothing_back() {
        let mut stamps = Stamps::default();
        stamps.follow(Millis(START), 1_000);
        stamps.follow(Millis(START + 1), 2_000);
        let stamp = stamps.next(at(START, 2_000), Millis(START + 1));
        assert_eq!(stamp.0, START + 900);
    }
}
