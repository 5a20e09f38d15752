//! The one binary: argv -> role -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::keep_freed_memory();
    quorate::cli::run(std::env::args_os().collect())
}
