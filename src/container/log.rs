//! ReopenContainerLog.

use super::Containers;
use crate::error::{Result, precondition};

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
