//! What a role writes to its standard output and its standard error.
//!
//! Both may be closed or full at any moment. A closed pipe is no error: its reader has what it
//! wanted (`quorate --role admin status | head`), so the role ends as it would have ended. A full
//! disk is one: what was asked for is not there. `println!` and its kin panic in both cases, so
//! clippy.toml forbids them.

use std::io::{self, Write};
use std::process::ExitCode;

/// What failed when the standard output takes no more.
pub(super) const NOT_WRITTEN: &str = "cannot write the output";

/// Writes text to the standard output, whole.
///
/// # Errors
/// When the output takes no more, a closed pipe excepted.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if !is_closed(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The same of a line.
///
/// # Errors
/// As for [`print()`].
pub(super) fn print_line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Tells the operator something on the standard error. One that is closed or full cannot be told
/// of, so the text is lost.
pub(super) fn tell(text: &str) {
    // One write a line: lines of several processes do not mix.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Tells why a role could not do what it was asked, under the program's name.
pub(super) fn complain(problem: &str) {
    tell(&format!("quorate: {problem}"));
}

/// Ends a role whose own writes failed: quietly if the reader went away, which the exit code
/// calls `closed`.
pub(super) fn failed(error: &io::Error, closed: ExitCode) -> ExitCode {
    if is_closed(error) {
        return closed;
    }
    complain(&format!("{NOT_WRITTEN}: {error}"));
    ExitCode::FAILURE
}

/// Whether the reader of an output has gone away.
pub(super) fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
