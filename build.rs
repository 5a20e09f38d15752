//! Tells the binary which commit it is built from, where that can be known.

#![allow(clippy::disallowed_macros, reason = "this is how cargo is told")]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A repository above these sources (they were unpacked into somebody's project) is not theirs.
    let own = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| own);
    println!("cargo:rustc-env=QUORATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // The commit is part of the version that `--version` tells, so a new one builds the crate again.
    // `HEAD` says which branch that is of, its log has a new line whenever the commit changes.
    // Git knows where these lie; in a linked worktree it is not below `.git`. Cargo takes a file
    // that is missing for one that has changed and would build the whole crate every time.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file]).filter(|_| own);
        if let Some(path) = path.filter(|path| Path::new(path).is_file()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}

/// What git says, or `None` where there is no git or it has nothing to say.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
