//! RemovePodSandbox.

use std::sync::Arc;

use tracing::info;

use super::Pods;
use crate::container::remove_folder;
use crate::error::{Collected, Result, precondition};
use crate::network::netns;
use crate::state::Pod;
use crate::trace;

impl Pods {
    /// Removes a pod with all its containers, stopping it first (SBX-44). Unknown ids are
    /// fine.
    ///
    /// # Errors
    /// What could not be removed; the pod then stays listed and a later call goes on.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let pod = match self.containers.store.pod(id) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let this = self.clone();
        self.containers.flow.detach(async move { this.remove_pod(&pod).await }).await
    }

    /// Removes a pod; the caller runs detached.
    pub(super) async fn remove_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let _operation = trace::wait(trace::OTHERS, pod.operation.lock()).await;
        if self.containers.store.pod(pod.id.as_str()).is_err() {
            return Ok(()); // another call was faster
        }
        self.stop_pod(pod).await?;
        let removed = self.clear(pod).await;
        removed.map_err(|error| error.context(format!("remove pod sandbox {}", pod.id)))?;
        self.containers.store.remove_pod(pod);
        self.running.forget(&pod.name);
        self.containers.tell_pod_removed(pod);
        info!(pod = %pod.id, name = pod.name, "pod sandbox removed");
        Ok(())
    }

    /// Everything that a stopped pod still has; its record goes last, so that after a
    /// crash in between the pod is still known.
    async fn clear(&self, pod: &Arc<Pod>) -> Result<()> {
        let containers = self.containers.store.containers_of(pod);
        let mut errors = Collected::default();
        for container in &containers {
            errors.push(self.containers.remove_container(container).await);
        }
        errors.finish()?;
        if let Some(path) = &pod.netns
            && netns::is_alive(path).await
        {
            return Err(precondition(format!("the network namespace {path:?} still exists"))); // SBX-45
        }
        let containerd = &self.containers.containerd;
        let id = pod.id.as_str();
        self.containers.discard_task(id).await?;
        for ended in containerd.end_empty_shim(id).await?.iter().map(String::as_str).chain([id]) {
            self.containers.remove_left_cgroup(&pod.config, ended).await;
        }
        let snapshotter = match containerd.container(id).await {
            Ok(record) => record.snapshotter,
            Err(error) if error.is_not_found() => self
                .containers
                .config
                .handler(pod.handler_name())
                .unwrap_or_else(|| self.containers.config.default_handler())
                .snapshotter
                .clone(),
            Err(error) => return Err(error),
        };
        remove_folder(&self.containers.paths.pod_state(&pod.id)).await?;
        remove_folder(&self.containers.paths.pod_root(&pod.id)).await?;
        containerd.remove_snapshot(&snapshotter, id).await?;
        containerd.delete_lease(id, false).await?;
        containerd.delete_container(id).await
    }
}
