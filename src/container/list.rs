//! ListContainers: from memory (SVC-35).

use super::Containers;
use crate::proto::cri;
use crate::state::Container;

impl Containers {
    /// The containers that match all parts of `filter` (CTR-30).
    #[must_use]
    pub fn list(&self, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let containers = self.store.containers();
        containers
            .iter()
            .filter(|container| filter.is_none_or(|filter| matches(container, filter)))
            .map(|container| self.list_item(container))
            .collect()
    }

    fn list_item(&self, container: &Container) -> cri::Container {
        let metadata = &container.metadata;
        let status = container.status();
        cri::Container {
            id: container.id.to_string(),
            pod_sandbox_id: container.pod_id.to_string(),
            metadata: metadata.config.metadata.clone(),
            // As it was asked for, mostly by its id: which tag that has says ContainerStatus.
            image: metadata.config.image.clone(),
            // Not the repo digest that ContainerStatus gives (CTR-25).
            image_ref: metadata.image_ref.clone(),
            state: status.state() as i32,
            created_at: status.created_at,
            labels: metadata.config.labels.clone(),
            annotations: metadata.config.annotations.clone(),
            image_id: metadata.image_ref.clone(),
        }
    }
}

fn matches(container: &Container, filter: &cri::ContainerFilter) -> bool {
    let labels = &container.metadata.config.labels;
    container.id.as_str().starts_with(&filter.id)
        && container.pod_id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|state| state.state == container.state() as i32)
        && filter.label_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
