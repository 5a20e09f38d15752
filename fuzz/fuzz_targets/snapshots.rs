//! Fuzzes snapshots and images, as a disk or a node may give them.

#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::snapshots(data));
