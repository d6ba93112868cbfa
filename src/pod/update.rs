//! UpdatePodSandboxResources.

use std::sync::Arc;

use super::Pods;
use crate::containerd::ContainerUpdate;
use crate::error::Result;
use crate::proto::cri::UpdatePodSandboxResourcesRequest;
use crate::state::Pod;
use crate::state::record::{self, UpdatedResources};
use crate::trace;

impl Pods {
    /// Remembers the resources of a pod, in its record and for its verbose status (SBX-57).
    /// The cgroup of the pod is the kubelet's, who has changed it.
    ///
    /// # Errors
    /// NotFound; those of containerd, and then nothing is changed.
    pub async fn update_resources(&self, request: UpdatePodSandboxResourcesRequest) -> Result<()> {
        let UpdatePodSandboxResourcesRequest { pod_sandbox_id: id, overhead, resources } = request;
        let pod = self.containers.store.pod(&id)?;
        let updated = UpdatedResources { overhead, resources };
        let this = self.clone();
        self.containers.flow.detach(async move { this.update_record(&pod, updated).await }).await
    }

    async fn update_record(&self, pod: &Arc<Pod>, updated: UpdatedResources) -> Result<()> {
        let _operation = trace::wait(trace::OTHERS, pod.operation.lock()).await;
        let update = ContainerUpdate {
            extensions: record::updated_resources_extension(&updated),
            ..ContainerUpdate::default()
        };
        self.containers.containerd.update_container(pod.id.as_str(), update).await?;
        pod.set_updated_resources(Some(updated));
        Ok(())
    }
}
