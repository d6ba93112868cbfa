//! ContainerStats, ListContainerStats, StreamContainerStats (STA-01, STA-02).
//!
//! A container that does not run is there with its attributes and its writable layer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::sampler::{Sample, Source, Subject};
use super::{Stats, selects, value};
use crate::config::Handler;
use crate::error::{Result, internal};
use crate::proto::cri;
use crate::state::container::now;
use crate::state::{Container, Pod};

impl Stats {
    /// What a container uses.
    ///
    /// # Errors
    /// NotFound (ERR-03).
    pub async fn container(&self, id: &str) -> Result<cri::ContainerStats> {
        let container = self.0.pods.containers.store.container(id)?;
        let found = self.of_containers(vec![container]).await;
        found.into_iter().next().ok_or_else(|| internal("a bug in longshore: no figures of a container"))
    }

    /// What the containers use that match all parts of `filter`, ordered by id.
    pub async fn containers(&self, filter: Option<&cri::ContainerStatsFilter>) -> Vec<cri::ContainerStats> {
        let mut containers = self.0.pods.containers.store.containers();
        containers.retain(|container| filter.is_none_or(|filter| matches(container, filter)));
        let mut list = self.of_containers(containers).await;
        self.forget_gone();
        // Those that were removed meanwhile (STA-11).
        let store = &self.0.pods.containers.store;
        list.retain(|stats| {
            stats.attributes.as_ref().is_some_and(|attributes| store.container(&attributes.id).is_ok())
        });
        list
    }

    async fn of_containers(&self, containers: Vec<Arc<Container>>) -> Vec<cri::ContainerStats> {
        let subjects = containers.iter().filter_map(|container| self.subject(container)).collect();
        let (samples, ()) =
            tokio::join!(self.0.sampler.samples(subjects), self.look_at_writable(&containers));
        containers
            .iter()
            .map(|container| self.container_stats(container, samples.get(container.id.as_str())))
            .collect()
    }

    /// Where a container is counted; none unless it runs.
    pub(super) fn subject(&self, container: &Container) -> Option<Subject> {
        let status = container.status();
        if status.state() != cri::ContainerState::ContainerRunning {
            return None;
        }
        let source = match self.handler(container) {
            Some(handler) if is_counted_here(handler) && status.pid != 0 => Source::Process(status.pid),
            _ => Source::Task,
        };
        Some(Subject { id: container.id.to_string(), source })
    }

    /// Sees to it that the sizes of what the containers wrote are known.
    pub(super) async fn look_at_writable(&self, containers: &[Arc<Container>]) {
        let mut by_snapshotter: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for container in containers {
            by_snapshotter.entry(self.snapshotter(container)).or_default().push(container.id.as_str());
        }
        let images = &self.0.pods.containers.images;
        let looks = by_snapshotter.iter().map(|(snapshotter, ids)| images.look_at_writable(snapshotter, ids));
        futures_util::future::join_all(looks).await;
    }

    /// The answer for a container.
    pub(super) fn container_stats(
        &self,
        container: &Container,
        sample: Option<&Sample>,
    ) -> cri::ContainerStats {
        let config = &container.metadata.config;
        let mut stats = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: container.id.to_string(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            writable_layer: Some(self.writable_layer(container)),
            ..Default::default()
        };
        if let Some(Sample { reading, timestamp, nano_cores }) = sample {
            stats.cpu = reading.cpu(*timestamp, *nano_cores);
            stats.memory = reading.memory(*timestamp);
            stats.swap = reading.swap(*timestamp);
            stats.io = reading.io(*timestamp);
        }
        stats
    }

    /// What a container wrote, at the last look. A size that is not known yet is not there.
    fn writable_layer(&self, container: &Container) -> cri::FilesystemUsage {
        let snapshotter = self.snapshotter(container);
        let last = self.0.pods.containers.images.writable_usage(snapshotter, container.id.as_str());
        cri::FilesystemUsage {
            timestamp: last.map_or_else(now, |last| last.timestamp),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: self.root(snapshotter) }),
            used_bytes: last.and_then(|last| value(last.usage.bytes)),
            inodes_used: last.and_then(|last| value(last.usage.inodes)),
        }
    }

    pub(super) fn snapshotter(&self, container: &Container) -> &str {
        let default = self.0.pods.containers.config.file.image.snapshotter.as_str();
        self.handler(container).map_or(default, |handler| handler.snapshotter.as_str())
    }

    /// The handler of a container's pod; none if it is not configured any more.
    fn handler(&self, container: &Container) -> Option<&Handler> {
        let pod = self.0.pods.containers.store.pod(container.pod_id.as_str()).ok()?;
        self.handler_of(&pod)
    }

    /// The handler of a pod; none if it is not configured any more.
    pub(super) fn handler_of(&self, pod: &Pod) -> Option<&Handler> {
        self.0.pods.containers.config.handler(&pod.handler)
    }
}

/// Whether the containers of a handler are cgroups of this host: those of runc's shim are.
pub(super) fn is_counted_here(handler: &Handler) -> bool {
    handler.binary.is_some()
}

/// Containers by pod, as a pod's answer needs them.
pub(super) fn by_pod(containers: Vec<Arc<Container>>) -> HashMap<String, Vec<Arc<Container>>> {
    let mut pods: HashMap<String, Vec<Arc<Container>>> = HashMap::new();
    for container in containers {
        pods.entry(container.pod_id.to_string()).or_default().push(container);
    }
    pods
}

fn matches(container: &Container, filter: &cri::ContainerStatsFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.pod_id.as_str().starts_with(&filter.pod_sandbox_id)
        && selects(&filter.label_selector, &container.metadata.config.labels)
}
