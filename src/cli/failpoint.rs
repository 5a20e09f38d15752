//! Where a test has this process die: read of the environment, in builds for such tests only.

use crate::actors::failpoint::Failpoint;
use crate::error::Result;

/// What names the point, as `prepare.logged` or `prepare.logged:3`.
#[cfg(feature = "failpoints")]
const VARIABLE: &str = "QUORATE_FAILPOINT";

/// The point that the environment names, if any.
///
/// # Errors
/// When there is no such point.
#[cfg(feature = "failpoints")]
pub fn armed() -> Result<Failpoint> {
    use crate::error::Error;

    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(Failpoint::default()) };
    let armed = Failpoint::armed(&text.to_string_lossy(), die);
    armed.map_err(|why| Error::Arguments(format!("{VARIABLE}: {why}")))
}

/// None: this build has no points.
#[cfg(not(feature = "failpoints"))]
pub fn armed() -> Result<Failpoint> {
    Ok(Failpoint::default())
}

/// Ends the process as `kill -9` does: at once, with all its threads, and nothing is written that
/// is not with the kernel.
#[cfg(feature = "failpoints")]
fn die() -> ! {
    const SIGKILL: i32 = 9;
    // SAFETY: this is the C library's function, and it takes any two numbers.
    unsafe extern "C" {
        safe fn kill(process: i32, signal: i32) -> i32;
    }
    kill(std::process::id().cast_signed(), SIGKILL);
    std::process::abort()
}
