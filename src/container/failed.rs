//! Containers whose creation failed and could not be undone: containerd was gone.
//!
//! What has a record is a container, and listed after the next start. One that its client was
//! told to have failed must not come back: its folder is marked, and all of it is removed when
//! containerd answers again, also by the next server.

use std::path::Path;

use tracing::{info, warn};

use super::Containers;
use super::files::remove_folder;
use crate::error::{Context, Result};
use crate::flow::{Disk, lock, on_disk};
use crate::ids::ContainerId;

/// The file that marks a folder.
const MARK: &str = "failed-creation";

/// Whether the container with the folder `root` is to be removed.
pub(crate) fn is_marked(root: &Path) -> bool {
    root.join(MARK).exists()
}

impl Containers {
    /// What a creation has left is to be removed by [`Containers::remove_failed`]: to be said
    /// before its client is told that it has failed.
    pub(super) async fn leave_failed(&self, id: ContainerId, snapshotter: String) -> Result<()> {
        let root = self.paths.container_root(&id);
        self.know_failed(id, snapshotter);
        on_disk(Disk::Root, move || {
            std::fs::create_dir_all(&root)
                .and_then(|()| std::fs::write(root.join(MARK), ""))
                .context(|| format!("mark {root:?}"))
        })
        .await
    }

    /// The next start has found its mark.
    pub(crate) fn know_failed(&self, id: ContainerId, snapshotter: String) {
        lock(&self.failed).insert(id, snapshotter);
    }

    /// Removes what failed creations have left, now that containerd answers. What cannot be
    /// removed is tried again when it answers the next time.
    pub(crate) async fn remove_failed(&self) {
        let all: Vec<_> =
            lock(&self.failed).iter().map(|(id, snapshotter)| (id.clone(), snapshotter.clone())).collect();
        for (id, snapshotter) in all {
            let removed = async {
                self.containerd.delete_container(id.as_str()).await?;
                self.containerd.remove_snapshot(&snapshotter, id.as_str()).await?;
                remove_folder(&self.paths.container_state(&id)).await?;
                remove_folder(&self.paths.container_root(&id)).await
            };
            match removed.await {
                Ok(()) => {
                    info!(container = %id, "what a failed creation had left is removed");
                    lock(&self.failed).remove(&id);
                }
                Err(error) => warn!(container = %id, %error, "a failed creation cannot be undone yet"),
            }
        }
    }
}
