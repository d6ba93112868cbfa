//! Programs that this machine need not have, from other Debian suites.

use std::path::PathBuf;
use std::process::Command;

/// What the script `tests/fetch-WHAT.sh` prints: where it is. Or what it says when it fails.
pub(crate) fn fetched(what: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let script = format!("{}/tests/fetch-{what}.sh", env!("CARGO_MANIFEST_DIR"));
    let done =
        Command::new(&script).args(arguments).output().map_err(|error| format!("{script}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match done.status.success() {
        true => Ok(text(&done.stdout).into()),
        false => Err(format!("{script}: {}", text(&done.stderr))),
    }
}
