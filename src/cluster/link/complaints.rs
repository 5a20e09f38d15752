//! What an operator is told about strangers and nodes that are refused: which complaints are logged.
//!
//! A stranger decides what it is complained about, and how often. So a complaint is logged once
//! ([`REMEMBERED_MAX`] of them are remembered, the oldest is forgotten first), and no more than
//! [`AT_ONCE_MAX`] are logged at once and one a second after that. The others are counted, and the
//! next complaint that is logged tells how many there were. When a link stands again, what was
//! complained about before is news if it comes back.

use std::collections::VecDeque;

/// Complaints that are logged at once.
const AT_ONCE_MAX: u64 = 32;

/// How long it takes until there is room for another complaint, in ms.
const ROOM_MS: u64 = 1_000;

/// Complaints that are remembered, so as not to be logged twice.
const REMEMBERED_MAX: usize = 64;

/// Which complaints are logged.
#[derive(Debug, Default)]
pub struct Complaints {
    /// Those logged last, oldest first.
    remembered: VecDeque<String>,
    /// Logged, and not made up for by time.
    logged: u64,
    since_ms: u64,
    kept_back: u64,
}

impl Complaints {
    /// Takes a complaint. Returns the line to log, unless it was logged before or there is no room.
    pub fn note(&mut self, complaint: String, now_ms: u64) -> Option<String> {
        if self.remembered.contains(&complaint) {
            return None;
        }
        let passed = now_ms.saturating_sub(self.since_ms) / ROOM_MS;
        self.since_ms += passed * ROOM_MS;
        self.logged = self.logged.saturating_sub(passed);
        if self.logged >= AT_ONCE_MAX {
            self.kept_back += 1;
            return None;
        }
        self.logged += 1;
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.pop_front();
        }
        self.remembered.push_back(complaint.clone());
        match std::mem::take(&mut self.kept_back) {
            0 => Some(complaint),
            more => Some(format!("{complaint} (and {more} others were refused before)")),
        }
    }

    /// What was complained about is over: it is logged again if it comes back.
    pub fn forget(&mut self) {
        self.remembered.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_have_a_bound_and_the_rest_is_counted() {
        let mut complaints = Complaints::default();
        let lines = (0..1_000).filter_map(|n| complaints.note(format!("stranger {n}"), 5_000));
        assert_eq!(lines.count() as u64, AT_ONCE_MAX);
        let line = complaints.note("the last".into(), 9_000);
        assert!(line.is_some_and(|line| line.starts_with("the last (and 968 others")));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut complaints = Complaints::default();
        for n in 0..1_000 {
            assert!(complaints.note(format!("stranger {n}"), n * ROOM_MS).is_some());
        }
        assert_eq!(complaints.remembered.len(), REMEMBERED_MAX);
        assert!(complaints.note("stranger 999".into(), 2_000_000).is_none());
        assert!(complaints.note("stranger 0".into(), 2_000_000).is_some());
    }
}
