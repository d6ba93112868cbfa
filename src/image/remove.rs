//! RemoveImage: all names of an image go, whichever was given (IMG-41).
//!
//! containerd's collector takes content and snapshots once nothing holds them; what a
//! container still runs on stays until it is gone (IMG-42).

use tracing::info;

use super::Images;
use super::digest::is_digest;
use crate::error::{Context, Result};

impl Images {
    /// Removes the image that `text` names; one that is not there is fine (IMG-40). The
    /// last deletion waits for containerd's collector.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn remove(&self, text: &str) -> Result<()> {
        let Some(image) = self.find(text) else { return Ok(()) };
        let mut names = image.references.clone();
        // The id goes last: as long as anything fails, the image is still found by it.
        names.sort_by_key(|name| is_digest(name));
        for (index, name) in names.iter().enumerate() {
            let is_last = index + 1 == names.len();
            self.remove_name(name, is_last)
                .await
                .context(|| format!("remove image {} ({name})", image.id))?;
        }
        info!(id = image.id, "removed an image");
        Ok(())
    }

    async fn remove_name(&self, name: &str, sync: bool) -> Result<()> {
        let deleted = self.0.containerd.delete_image(name, sync).await;
        self.refresh(name).await?;
        // A collection that takes longer than a call may fails the call, not the deletion.
        match deleted {
            Err(_) if !self.0.table.names().iter().any(|known| known == name) => Ok(()),
            other => other,
        }
    }
}
