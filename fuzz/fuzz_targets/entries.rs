//! Fuzzes entries of a partition's log, as a disk or a leader may give them.

#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::entries(data));
