//! The path of a log, and ReopenContainerLog.

use std::path::Path;

use super::Containers;
use crate::error::{Result, invalid, precondition};
use crate::spec::paths;

/// The path of a container's log: `file` in the pod's log folder; empty without one of them
/// (CTR-07).
///
/// # Errors
/// InvalidArgument for a path that leads out of the folder, and for a folder that is not
/// absolute.
pub(super) fn path(folder: &str, file: &str) -> Result<String> {
    if folder.is_empty() || file.is_empty() {
        return Ok(String::new());
    }
    let (root, path) = (paths::clean(folder), paths::join(folder, file));
    if !root.starts_with('/') || path == root || !Path::new(&path).starts_with(&root) {
        return Err(invalid(format!("log path {file:?} is not in the pod's log folder {folder:?}")));
    }
    Ok(path)
}

impl Containers {
    /// Switches to a new file at the log path: every later entry goes there (LOG-13).
    ///
    /// # Errors
    /// NotFound; FailedPrecondition unless the container runs, and then no file is made
    /// (LOG-12).
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.store.container(id)?;
        container.require_running()?;
        if container.metadata.log_path.is_empty() {
            return Err(precondition(format!("container {} has no log file", container.id)));
        }
        self.keeper.reopen(container.id.as_str()).await.map_err(|error| error.context("reopen the log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_in_the_folder_of_its_pod() {
        for (folder, file, want) in [
            ("/logs/p", "c/0.log", "/logs/p/c/0.log"),
            ("/logs//x/../p/", "/c//b/../0.log", "/logs/p/c/0.log"),
            ("/", "0.log", "/0.log"),
            ("", "0.log", ""),
            ("/logs/p", "", ""),
        ] {
            assert_eq!(path(folder, file).as_deref(), Ok(want), "{folder:?} {file:?}");
        }
        for (folder, file) in [
            ("/logs/p", "../q/0.log"),
            ("/logs/p", "c/../../p2/0.log"),
            ("/logs/p", "."),
            ("/logs/p", ".."),
            ("logs/p", "0.log"),
            ("../logs", "0.log"),
        ] {
            assert!(path(folder, file).is_err(), "{folder:?} {file:?}");
        }
    }
}
