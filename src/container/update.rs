//! UpdateContainerResources.

use std::sync::Arc;

use tracing::warn;

use super::Containers;
use crate::containerd::{ContainerUpdate, ProcessStatus};
use crate::error::{Result, precondition};
use crate::proto::cri::{ContainerState, LinuxContainerResources};
use crate::spec;
use crate::spec::oci::{Linux, Resources};
use crate::state::Container;
use crate::trace;

/// What an OCI runtime takes for no limit.
const UNLIMITED: i64 = -1;

impl Containers {
    /// Changes the limits of a container: in its spec, and in its cgroup when it runs
    /// (RES-01). Zero fields keep their value (RES-03).
    ///
    /// # Errors
    /// NotFound; FailedPrecondition during removal; the kernel's refusal, and then the old
    /// values stay (RES-02).
    pub async fn update(&self, id: &str, resources: Option<LinuxContainerResources>) -> Result<()> {
        let container = self.store.container(id)?;
        let Some(resources) = resources else { return Ok(()) };
        let this = self.clone();
        self.flow.detach(async move { this.update_container(&container, &resources).await }).await
    }

    async fn update_container(
        &self,
        container: &Arc<Container>,
        asked: &LinuxContainerResources,
    ) -> Result<()> {
        let _operation = trace::wait(trace::OTHERS, container.operation.lock()).await;
        let status = container.status();
        if status.removing {
            return Err(precondition(format!("container {} is being removed", container.id)));
        }
        if !matches!(status.state(), ContainerState::ContainerCreated | ContainerState::ContainerRunning) {
            return Ok(());
        }
        let id = container.id.as_str();
        let record = self.containerd.container(id).await?;
        let mut oci = spec::parse(&record.spec, id)?;
        let limits =
            oci.linux.get_or_insert_with(Linux::default).resources.get_or_insert_with(Resources::default);
        let old = limits.clone();
        let tolerate = self.config.file.container.tolerates_missing_hugetlb();
        spec::resources::apply(asked, limits, &self.host, tolerate)?;
        let new = limits.clone();
        let store = |spec: Vec<u8>| {
            self.containerd.update_container(id, ContainerUpdate { spec: Some(spec), ..Default::default() })
        };
        store(spec::to_json(&oci)).await?;
        if status.state() == ContainerState::ContainerRunning {
            let applied = self.containerd.update_task(id, cgroup_part(&new)?).await;
            match applied {
                Err(error) if !error.is_not_found() && !self.has_exited(id).await => {
                    let error = error.context(format!("update container {id}"));
                    self.put_back(id, &old).await;
                    return Err(match store(record.spec).await {
                        Ok(()) => error,
                        Err(left) => {
                            let text = format!("{error}; the spec was not put back: {left}");
                            crate::error::Error::new(error.kind(), text)
                        }
                    });
                }
                _ => {}
            }
        }
        let oom_score_adj = oci.process.and_then(|process| process.oom_score_adj);
        container
            .change(|status| {
                status.resources = spec::resources::reported(&new, oom_score_adj);
                Ok(())
            })
            .await
    }

    /// Puts back the limits in the cgroup after a refusal. An OCI runtime may have set some of
    /// the new ones before the one that was refused: with systemd, those that systemd sets.
    async fn put_back(&self, id: &str, old: &Resources) {
        let mut old = old.clone();
        // What is not said is left alone by the runtime.
        if let Some(cpu) = &mut old.cpu {
            cpu.quota.get_or_insert(UNLIMITED);
        }
        if let Some(memory) = &mut old.memory {
            memory.limit.get_or_insert(UNLIMITED);
        }
        let put_back = async { self.containerd.update_task(id, cgroup_part(&old)?).await };
        if let Err(error) = put_back.await {
            warn!(container = id, %error, "limits of a refused update may be in force");
        }
    }

    /// Whether the container's process has ended, which the store may learn later.
    async fn has_exited(&self, id: &str) -> bool {
        match self.containerd.process(id, "").await {
            Ok(process) => process.status == ProcessStatus::Stopped,
            Err(error) => error.is_not_found(),
        }
    }
}

/// What the runtime is told: the limits without the device rules, which stay.
fn cgroup_part(limits: &Resources) -> Result<Vec<u8>> {
    let part = Resources { devices: Vec::new(), ..limits.clone() };
    serde_json::to_vec(&part).map_err(|error| crate::error::internal(error.to_string()))
}
