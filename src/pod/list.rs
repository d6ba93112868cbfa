//! ListPodSandbox: from memory (SVC-35).

use super::Pods;
use crate::proto::cri;
use crate::state::Pod;

impl Pods {
    /// The pods that match all parts of `filter`; NOTREADY ones included (SBX-55).
    #[must_use]
    pub fn list(&self, filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        self.containers
            .store
            .pods()
            .iter()
            .filter(|pod| filter.is_none_or(|filter| matches(pod, filter)))
            .map(|pod| cri::PodSandbox {
                id: pod.id.to_string(),
                metadata: pod.config.metadata.clone(),
                state: pod.state() as i32,
                created_at: pod.created_at,
                labels: pod.config.labels.clone(),
                annotations: pod.config.annotations.clone(),
                runtime_handler: pod.handler.clone(),
            })
            .collect()
    }
}

fn matches(pod: &Pod, filter: &cri::PodSandboxFilter) -> bool {
    pod.id.as_str().starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|state| state.state == pod.state() as i32)
        && filter.label_selector.iter().all(|(key, value)| pod.config.labels.get(key) == Some(value))
}
