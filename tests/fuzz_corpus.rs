//! The fuzz targets' corpus, and every cut and every broken byte of it, without a fuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).expect("the target's corpus");
    let inputs = files.map(|file| fs::read(file.expect("a file").path()).expect("an input"));
    let inputs: Vec<Vec<u8>> = inputs.collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Runs a check over the corpus, over each input cut short anywhere, and with each byte changed.
fn run(target: &str, check: fn(&[u8])) {
    for input in corpus(target) {
        for end in 0..=input.len() {
            check(&input[..end]);
        }
        for at in 0..input.len() {
            for change in [0x01, 0x20, 0x80, 0xff] {
                let mut broken = input.clone();
                broken[at] ^= change;
                check(&broken);
            }
        }
    }
}

#[test]
fn requests_hold() {
    run("requests", checks::requests);
}

#[test]
fn replies_hold() {
    run("replies", checks::replies);
}

#[test]
fn frames_hold() {
    run("frames", checks::frames);
}
