//! Gives memory that a burst took back to the operating system, once the burst is over.
//!
//! What a thread frees its allocator keeps for what comes next, and looks at again only when the
//! thread allocates: a node at rest would keep it for ever.

/// How often it is looked whether a thread is calm, in ms; and when memory is scarce.
const LOOK_EVERY_MS: u64 = 5_000;
const LOOK_EVERY_SCARCE_MS: u64 = 1_000;

/// A thread that has done no more since the last look is calm.
const CALM_WORK: u64 = 500;

/// Whether it is the moment to give memory back.
#[derive(Debug, Default)]
pub struct Calm {
    looked: u64,
    work: u64,
    /// There was work since memory was given back.
    owes: bool,
}

impl Calm {
    /// Whether it is time to look.
    pub fn is_due(&self, mono: u64, scarce: bool) -> bool {
        let every = if scarce { LOOK_EVERY_SCARCE_MS } else { LOOK_EVERY_MS };
        mono >= self.looked + every
    }

    /// Looks: `work` counts what the thread has ever done. Tells whether memory is to be given back:
    /// once after each burst, or at every look where it is scarce.
    pub fn look(&mut self, mono: u64, work: u64, scarce: bool) -> bool {
        let done = work.saturating_sub(self.work);
        (self.looked, self.work) = (mono, work);
        self.owes |= done > 0;
        let gives = self.owes && (scarce || done <= CALM_WORK);
        self.owes &= !gives;
        gives
    }
}

/// Gives back what this thread's allocator keeps and has no use for.
pub fn give_back() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: a function of the allocator that is linked in; it may be called at any time, and
    // concerns memory that is free.
    unsafe { mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_a_burst() {
        let mut calm = Calm::default();
        assert!(!calm.is_due(LOOK_EVERY_MS - 1, false) && calm.is_due(LOOK_EVERY_MS, false));
        assert!(!calm.look(5_000, 0, false), "nothing was done");
        assert!(!calm.look(10_000, 100_000, false), "the burst goes on");
        assert!(calm.look(15_000, 100_010, false), "a trickle is calm");
        assert!(!calm.look(20_000, 100_010, false), "nothing more was done");
        assert!(calm.is_due(21_000, true) && !calm.is_due(20_999, true));
        assert!(calm.look(21_000, 200_000, true), "it is scarce");
    }
}
