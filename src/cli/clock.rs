//! The two clocks of the machine: everything below gets them handed in.

use crate::ids::{Millis, Now};

/// Counts from the boot of the machine, at one pace, the time included in which it is suspended.
/// `CLOCK_MONOTONIC`, which Rust's `Instant` reads, stands still meanwhile on Linux: what is counted
/// by it, a leader's lease for one, would outlive the suspension.
#[cfg(target_os = "linux")]
const STEADY: libc::clockid_t = libc::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const STEADY: libc::clockid_t = libc::CLOCK_MONOTONIC;

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "this is where wall time is handed in from")]
pub fn wall_clock() -> Millis {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Millis(now.map_or(0, |since| since.as_millis() as u64))
}

/// Both clocks.
pub fn clocks() -> Now {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that it is given, and to nothing else.
    let failed = unsafe { libc::clock_gettime(STEADY, &raw mut time) };
    assert_eq!(failed, 0, "the kernel has a clock that counts from its boot");
    let mono = time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000;
    Now { wall: wall_clock(), mono }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_clock_goes_forward_in_milliseconds() {
        let (begun, first) = (tokio::time::Instant::now(), clocks().mono);
        while clocks().mono < first + 3 {
            std::thread::yield_now();
        }
        assert!(begun.elapsed().as_micros() >= 2_000);
    }
}
