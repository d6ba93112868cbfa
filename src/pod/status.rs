//! PodSandboxStatus.

use serde_json::{Value, json};

use super::Pods;
use crate::container::{runtime_options, verbose_info};
use crate::error::Result;
use crate::network::netns;
use crate::proto::cri;
use crate::state::Pod;
use crate::state::container::now;
use crate::state::record::UpdatedResources;

impl Pods {
    /// The status of a pod with those of its containers (SBX-53), and with `verbose` the
    /// details that debuggers read.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse> {
        let pod = self.containers.store.pod(id)?;
        let info = if verbose { self.info(&pod).await? } else { Default::default() };
        let containers = self.containers.store.containers_of(&pod);
        Ok(cri::PodSandboxStatusResponse {
            status: Some(pod.cri_status()),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| self.containers.status_of(container))
                .collect(),
            timestamp: now(),
        })
    }

    /// The verbose part (SBX-54).
    async fn info(&self, pod: &Pod) -> Result<std::collections::BTreeMap<String, String>> {
        let containerd = &self.containers.containerd;
        let record = match containerd.container(pod.id.as_str()).await {
            Err(error) if error.is_not_found() => None,
            other => Some(other?),
        };
        let process_status = match containerd.process(pod.id.as_str(), "").await {
            Ok(process) => format!("{:?}", process.status).to_lowercase(),
            Err(error) if error.is_not_found() => "deleted".to_owned(),
            Err(error) => return Err(error),
        };
        let alive = match &pod.netns {
            Some(path) => netns::is_alive(path).await,
            None => false,
        };
        let network = pod.network();
        let text = |of: fn(&crate::containerd::ContainerRecord) -> &String| {
            record.as_ref().map(of).cloned().unwrap_or_default()
        };
        let runtime_spec: Value = record
            .as_ref()
            .and_then(|record| serde_json::from_slice(&record.spec).ok())
            .unwrap_or(Value::Null);
        let metadata: Value = record
            .as_ref()
            .and_then(|record| record.extensions.get(crate::state::record::SANDBOX_EXTENSION))
            .and_then(|extension| serde_json::from_slice::<Value>(&extension.value).ok())
            .map(|mut versioned| versioned["Metadata"].take())
            .unwrap_or(Value::Null);
        let mut info = json!({
            "pid": pod.status().pid,
            "processStatus": process_status,
            "netNamespaceClosed": pod.netns.is_some() && !alive,
            "image": text(|record| &record.image),
            "snapshotKey": text(|record| &record.snapshot_key),
            "snapshotter": text(|record| &record.snapshotter),
            "runtimeHandler": pod.handler,
            "runtimeType": text(|record| &record.runtime),
            "runtimeOptions": runtime_options(record.as_ref()),
            "config": *pod.config,
            "runtimeSpec": runtime_spec,
            "cniResult": network.cni_result,
            "sandboxMetadata": metadata,
        });
        if let Some(UpdatedResources { overhead, resources }) = pod.updated_resources() {
            // As CRI's ContainerResources.
            let linux = |resources| json!(cri::ContainerResources { linux: resources, windows: None });
            info["overhead"] = linux(overhead);
            info["resources"] = linux(resources);
        }
        Ok(verbose_info(&info))
    }
}
