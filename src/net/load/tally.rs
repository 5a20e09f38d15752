//! What a load generator has seen: replies by kind, errors, latencies.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::requests::{ByKind, Kind};

/// Latencies are told in microseconds up to this; a slower reply counts as this slow.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// Replies of a stretch of time.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Requests answered, by kind, those answered with an error included.
    pub kinds: ByKind<u64>,
    /// Requests answered with an error.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
    /// From a batch's write to its last reply, one value a batch.
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let Ok(latency) = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3) else {
            unreachable!("the bounds are constants that the histogram accepts")
        };
        Self { kinds: ByKind::default(), errors: 0, first_error: None, latency }
    }
}

impl Tally {
    /// Counts one answered batch.
    pub fn record(&mut self, kinds: ByKind<u32>, latency: Duration) {
        for (sum, more) in self.kinds.iter_mut().zip(kinds) {
            *sum += u64::from(more);
        }
        self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts answers that were errors, and keeps what the very first of all said.
    pub fn record_errors(&mut self, errors: u32, text: Option<String>) {
        self.errors += u64::from(errors);
        self.first_error = self.first_error.take().or(text);
    }

    /// Adds what another has seen.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.kinds.iter_mut().zip(other.kinds) {
            *sum += more;
        }
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        let added = self.latency.add(&other.latency);
        assert!(added.is_ok(), "all tallies' histograms have the same bounds");
    }

    /// Requests answered.
    pub fn operations(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// Requests of one kind answered.
    pub fn of(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize]
    }

    /// The latency in microseconds that a share of the batches did not exceed; 0 without batches.
    pub fn latency_micros(&self, share: f64) -> u64 {
        if self.latency.is_empty() {
            return 0;
        }
        self.latency.value_at_quantile(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up() {
        let mut first = Tally::default();
        first.record([1, 2, 0, 0], Duration::from_micros(100));
        let mut second = Tally::default();
        second.record([0, 0, 4, 0], Duration::from_micros(900));
        second.record_errors(3, Some("ERR no".to_owned()));
        second.record_errors(1, Some("ERR later".to_owned()));
        first.add(&second);
        assert_eq!(first.operations(), 7);
        assert_eq!(first.of(Kind::MultiPut), 4);
        assert_eq!((first.errors, first.first_error.as_deref()), (4, Some("ERR no")));
        assert_eq!((first.latency_micros(0.5), first.latency_micros(1.0)), (100, 900));
    }

    #[test]
    fn nothing_seen_and_hours_waited_are_told_as_numbers() {
        let mut tally = Tally::default();
        assert_eq!(tally.latency_micros(0.99), 0);
        tally.record([1, 0, 0, 0], Duration::from_secs(36_000));
        assert!(tally.latency_micros(1.0) >= LATENCY_MICROS_MAX);
    }
}
