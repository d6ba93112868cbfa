//! A runc with id-mapped mounts, which pods with user namespaces need.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The folder that it is in: this machine's, or one that is fetched; in a guest, which has the
/// tests alone, the one in `LONGSHORE_TEST_NEW_RUNC_DIR`. Where there is none to be had the test fails, since nothing else would show that user namespaces work.
pub(crate) fn with_id_mapped_mounts() -> &'static Path {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(find);
    FOLDER.as_deref().unwrap_or_else(|error| panic!("no runc with id-mapped mounts: {error}"))
}

fn find() -> Result<PathBuf, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fetch-runc.sh");
    if let Some(folder) =
        std::env::var_os("LONGSHORE_TEST_NEW_RUNC_DIR").filter(|_| !Path::new(script).exists())
    {
        return Ok(folder.into());
    }
    let output = Command::new(script).output().map_err(|error| format!("{script}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return Err(format!("{script}: {}", text(&output.stderr)));
    }
    Ok(text(&output.stdout).into())
}
