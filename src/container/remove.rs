//! RemoveContainer.

use std::sync::Arc;

use tracing::info;

use super::Containers;
use super::files::remove_folder;
use crate::error::{Error, Result, precondition};
use crate::flow;
use crate::proto::cri::PodSandboxConfig;
use crate::spec::resources::cgroups_path;
use crate::state::Container;
use crate::sys;
use crate::trace;

impl Containers {
    /// Removes a container, killing it first if it runs (CTR-40). Unknown ids are fine; a
    /// second removal joins the first (CTR-41). The log file stays (CTR-42).
    ///
    /// # Errors
    /// FailedPrecondition during a start; what could not be removed, and then a later
    /// call goes on where this one stopped.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let container = match self.store.container(id) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if container.status().starting {
            return Err(is_starting(&container));
        }
        let this = self.clone();
        self.flow.detach(async move { this.remove_container(&container).await }).await
    }

    /// Removes a container; the caller runs detached.
    pub(crate) async fn remove_container(&self, container: &Arc<Container>) -> Result<()> {
        let _operation = trace::wait(trace::OTHERS, container.operation.lock()).await;
        if self.store.container(container.id.as_str()).is_err() {
            return Ok(()); // another call was faster
        }
        // A start that has marked itself waits for the operation that is held here.
        container.mark(|status| {
            if status.starting {
                return Err(is_starting(container));
            }
            status.removing = true;
            Ok(())
        })?;
        let removed = self.take_down(container).await;
        match removed {
            Ok(()) => {
                self.store.remove_container(container);
                self.creating.forget(&container.metadata.name);
                self.tell_removed(container);
                info!(container = %container.id, "container removed");
                Ok(())
            }
            Err(error) => {
                container.mark(|status| {
                    status.removing = false;
                    Ok(())
                })?;
                Err(error.context(format!("remove container {}", container.id)))
            }
        }
    }

    async fn take_down(&self, container: &Arc<Container>) -> Result<()> {
        let id = container.id.as_str();
        self.stop_container(container, 0).await?;
        self.discard_task(id).await?;
        if let Ok(pod) = self.store.pod(container.pod_id.as_str()) {
            self.remove_left_cgroup(&pod.config, id).await;
        }
        self.close_output(container).await;
        let snapshotter = self.snapshotter_of(id).await?;
        self.containerd.delete_container(id).await?;
        if let Some(snapshotter) = snapshotter {
            self.containerd.remove_snapshot(&snapshotter, id).await?;
        }
        remove_folder(&self.paths.container_state(&container.id)).await?;
        remove_folder(&self.paths.container_root(&container.id)).await
    }

    /// Removes what an OCI runtime that was cut off may have left of the cgroup of an ended
    /// task: it has forgotten the container then, and deletes nothing.
    pub async fn remove_left_cgroup(&self, pod: &PodSandboxConfig, id: &str) {
        let parent = pod.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let path = cgroups_path(parent, id);
        let removed = flow::blocking(move || {
            sys::cgroup::remove_left(&path);
            Ok(())
        });
        // It cannot fail.
        let _ = removed.await;
    }

    /// The snapshotter as recorded; none when containerd has no such container any more
    /// (CTR-43): then the one that the pod's handler has now.
    async fn snapshotter_of(&self, id: &str) -> Result<Option<String>> {
        match self.containerd.container(id).await {
            Ok(record) => Ok(Some(record.snapshotter).filter(|name| !name.is_empty())),
            Err(error) if error.is_not_found() => {
                let pod =
                    self.store.container(id).and_then(|container| self.store.pod(container.pod_id.as_str()));
                let handler = pod.ok().and_then(|pod| self.config.handler(pod.handler_name()));
                Ok(Some(handler.unwrap_or_else(|| self.config.default_handler()).snapshotter.clone()))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_starting(container: &Container) -> Error {
    precondition(format!("container {} is being started", container.id))
}
