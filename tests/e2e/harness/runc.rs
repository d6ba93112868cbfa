//! A runc with id-mapped mounts, which pods with user namespaces need.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::fetched::fetched;

/// The folder that it is in: this machine's, or one that is fetched; in a guest, which has the
/// tests alone, the one in `LONGSHORE_TEST_NEW_RUNC_DIR`. Where there is none to be had the test
/// fails, since nothing else would show that user namespaces work.
pub(crate) fn with_id_mapped_mounts() -> &'static Path {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(find);
    FOLDER.as_deref().unwrap_or_else(|error| panic!("no runc with id-mapped mounts: {error}"))
}

fn find() -> Result<PathBuf, String> {
    match std::env::var_os("LONGSHORE_TEST_NEW_RUNC_DIR") {
        Some(folder) if !Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).exists() => {
            Ok(folder.into())
        }
        _ => fetched("runc", &[]),
    }
}
