//! Quorate: a distributed hash table that speaks the Redis protocol and commits across nodes.
//!
//! Decisions are plain synchronous code: in [`store`], [`batch`], [`txn`], [`consensus`], [`partition`],
//! [`cluster`] and [`command`]. Mailboxes are in [`actors`], bytes in [`net`] and [`storage`].
//! ARCHITECTURE.md is the map.

#![cfg_attr(test, allow(clippy::disallowed_macros, reason = "a test may print what it has found"))]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Has the allocator keep freed memory for some seconds before the operating system gets it back, and
/// the operating system keep it then.
///
/// The buffers of a replicated write are large and live for milliseconds. With the default of one
/// second a busy node returned their pages and had them cleared for it again: a starved one spent up
/// to half of its samples on that.
///
/// The allocator asks for huge pages. With those Linux gives memory that was returned back to the
/// process, as soon as it looks at what lies around it: an idle node grew by half of what a burst had
/// taken.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc's `mi_option_t`, versions 2 and 3.
    const PURGE_DELAY: std::ffi::c_int = 15;
    const PURGE_DELAY_MS: std::ffi::c_long = 30_000;
    unsafe extern "C" {
        fn mi_option_set_default(option: std::ffi::c_int, value: std::ffi::c_long);
    }
    // SAFETY: a function of the allocator that is linked in; it may be called at any time, and
    // only stores the number. What the environment says of the option stands.
    unsafe { mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) }
    // Where there is no such thing it is refused, and nothing is amiss.
    // SAFETY: sets an attribute of this process, and touches no memory.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0)
    };
}

pub mod actors;
pub mod batch;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
pub mod consensus;
pub mod error;
pub mod ids;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod partition;
pub mod rules;
pub mod storage;
pub mod store;
pub mod txn;

#[cfg(test)]
mod script;
#[cfg(test)]
mod simulation;
