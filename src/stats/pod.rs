//! PodSandboxStats, ListPodSandboxStats, StreamPodSandboxStats (STA-12 … STA-14).
//!
//! Cpu and memory are those of the pod's cgroup, so with pause and, where the shim is in
//! there, with the shim. A pod without a `cgroup_parent` has none of its own: it is the sum
//! of pause and its containers, where containerd's plugin fails. Processes are those of the
//! containers, as in the plugin.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use tracing::debug;

use super::container::{by_pod, is_counted_here};
use super::sampler::{Sample, Source, Subject};
use super::{READS_MAX, Stats, network, selects, value};
use crate::error::{Result, unavailable};
use crate::proto::cri;
use crate::state::container::now;
use crate::state::{Container, Pod};

impl Stats {
    /// What a pod uses, and each of its containers.
    ///
    /// # Errors
    /// NotFound (ERR-03); Unavailable unless it is READY.
    pub async fn pod(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let pod = self.0.pods.containers.store.pod(id)?;
        let containers = self.0.pods.containers.store.containers_of(&pod);
        let found = self.of_pods(vec![pod], containers).await;
        found.into_iter().next().ok_or_else(|| unavailable(format!("pod sandbox {id} is not ready")))
    }

    /// What the READY pods use that match all parts of `filter`, ordered by id.
    pub async fn pods(&self, filter: Option<&cri::PodSandboxStatsFilter>) -> Vec<cri::PodSandboxStats> {
        let store = &self.0.pods.containers.store;
        let mut pods = store.pods();
        pods.retain(|pod| filter.is_none_or(|filter| matches(pod, filter)));
        let list = self.of_pods(pods, store.containers()).await;
        self.forget_gone();
        list
    }

    async fn of_pods(
        &self,
        mut pods: Vec<Arc<Pod>>,
        containers: Vec<Arc<Container>>,
    ) -> Vec<cri::PodSandboxStats> {
        pods.retain(|pod| pod.status().ready);
        let mut containers = by_pod(containers);
        let pods: Vec<(Arc<Pod>, Vec<Arc<Container>>)> = pods
            .into_iter()
            .map(|pod| {
                let inside = containers.remove(pod.id.as_str()).unwrap_or_default();
                (pod, inside)
            })
            .collect();
        let all: Vec<Arc<Container>> = pods.iter().flat_map(|(_, inside)| inside).cloned().collect();
        let mut subjects: Vec<Subject> = pods.iter().map(|(pod, _)| self.pod_subject(pod)).collect();
        subjects.extend(all.iter().filter_map(|container| self.subject(container)));
        let (samples, networks, ()) = tokio::join!(
            self.0.sampler.samples(subjects),
            networks(pods.iter().map(|(pod, _)| pod.clone()).collect()),
            self.look_at_writable(&all),
        );
        pods.iter()
            // One that ended meanwhile would show what is left of it.
            .filter(|(pod, _)| pod.status().ready)
            .map(|(pod, inside)| {
                let network = networks.get(pod.id.as_str()).cloned();
                self.pod_stats(pod, inside, &samples, network)
            })
            .collect()
    }

    /// Where a pod is counted, or its pause container where it is a sum.
    fn pod_subject(&self, pod: &Pod) -> Subject {
        let source = match cgroup_parent(pod) {
            Some(parent) => Source::Parent(parent.to_owned()),
            None => match (self.handler_of(pod), pod.status().pid) {
                (Some(handler), pid) if is_counted_here(handler) && pid != 0 => Source::Process(pid),
                _ => Source::Task,
            },
        };
        Subject { id: pod.id.to_string(), source }
    }

    fn pod_stats(
        &self,
        pod: &Pod,
        containers: &[Arc<Container>],
        samples: &HashMap<String, Sample>,
        network: Option<cri::NetworkUsage>,
    ) -> cri::PodSandboxStats {
        let inside = || containers.iter().filter_map(|container| samples.get(container.id.as_str()));
        let own = samples.get(pod.id.as_str()).cloned();
        let sample = if cgroup_parent(pod).is_some() { own } else { sum(own, inside()) };
        let timestamp = sample.as_ref().map_or_else(now, |sample| sample.timestamp);
        let mut linux = cri::LinuxPodSandboxStats {
            network,
            process: Some(cri::ProcessUsage {
                timestamp,
                process_count: value(inside().filter_map(|sample| sample.reading.pids).sum()),
            }),
            containers: containers
                .iter()
                .map(|container| self.container_stats(container, samples.get(container.id.as_str())))
                .collect(),
            ..Default::default()
        };
        if let Some(Sample { reading, timestamp, nano_cores }) = sample {
            linux.cpu = reading.cpu(timestamp, nano_cores);
            linux.memory = reading.memory(timestamp);
            linux.io = reading.io(timestamp);
        }
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: pod.id.to_string(),
                metadata: pod.config.metadata.clone(),
                labels: pod.config.labels.clone(),
                annotations: pod.config.annotations.clone(),
            }),
            linux: Some(linux),
            windows: None,
        }
    }
}

/// The interfaces of the pods that have a network of their own, by pod.
async fn networks(pods: Vec<Arc<Pod>>) -> HashMap<String, cri::NetworkUsage> {
    let reads = pods.into_iter().map(|pod| async move {
        let path = pod.netns.as_deref()?;
        match network::usage(path, pod.status().pid).await {
            Ok(usage) => Some((pod.id.to_string(), usage)),
            Err(error) => {
                debug!(pod = %pod.id, %error, "no figures of a pod's network");
                None
            }
        }
    });
    let found: Vec<_> = futures_util::stream::iter(reads).buffer_unordered(READS_MAX).collect().await;
    found.into_iter().flatten().collect()
}

fn cgroup_parent(pod: &Pod) -> Option<&str> {
    let parent = pod.config.linux.as_ref()?.cgroup_parent.as_str();
    (!parent.is_empty()).then_some(parent)
}

/// Pause and the containers together, as of the earliest.
fn sum<'a>(own: Option<Sample>, containers: impl Iterator<Item = &'a Sample>) -> Option<Sample> {
    own.into_iter().chain(containers.cloned()).reduce(|mut sum, one| {
        sum.reading.add(&one.reading);
        sum.timestamp = sum.timestamp.min(one.timestamp);
        sum.nano_cores = match (sum.nano_cores, one.nano_cores) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        sum
    })
}

fn matches(pod: &Pod, filter: &cri::PodSandboxStatsFilter) -> bool {
    pod.id.as_str().starts_with(&filter.id) && selects(&filter.label_selector, &pod.config.labels)
}

#[cfg(test)]
mod tests {
    use super::super::reading::{Cpu, Reading};
    use super::*;

    fn sample(usage_ns: u64, timestamp: i64, nano_cores: Option<u64>) -> Sample {
        let cpu = Some(Cpu { usage_ns, psi: None });
        Sample { reading: Reading { cpu, ..Reading::default() }, timestamp, nano_cores }
    }

    #[test]
    fn a_pod_without_a_cgroup_is_the_sum() {
        let containers = [sample(10, 5, Some(1)), sample(20, 7, None)];
        let all = sum(Some(sample(1, 6, Some(2))), containers.iter()).expect("a sum");
        let cpu = all.reading.cpu.expect("cpu");
        assert_eq!((cpu.usage_ns, all.timestamp, all.nano_cores), (31, 5, Some(3)));
        assert!(sum(None, [].iter()).is_none());
    }
}
