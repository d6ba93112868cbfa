//! ListMetricDescriptors, ListPodSandboxMetrics, StreamPodSandboxMetrics (STA-17 … STA-22).
//!
//! What the kubelet serves at `/metrics/cadvisor` when it asks the CRI for it, under the names
//! and with the meanings that cAdvisor has given them. `table.rs` is the list of all metrics,
//! each with the function that takes its values out of the [`Figures`] of a container or the
//! interfaces of a pod; so a metric that is sent is always one that is described.
//!
//! The kubelet gives up its whole page for one name with the same labels twice, and drops a
//! metric with another number of labels than described. Both cannot be here: label values are
//! joined to what their metric declares, and a second value with the same labels is left out.

mod figures;
mod table;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use tracing::debug;

use self::figures::{Figures, FileSystem};
use self::table::{BASE_LABELS, Metric};
use super::container::by_pod;
use super::network::{self, Interface};
use super::sampler::{Source, Subject, TASKS_MAX};
use super::{READS_MAX, Stats, value};
use crate::proto::cri;
use crate::state::{Container, Pod};

impl Stats {
    /// All metrics that there ever are: the same list as long as the server runs.
    #[must_use]
    pub fn metric_descriptors(&self) -> Vec<cri::MetricDescriptor> {
        table::descriptors()
    }

    /// The metrics of READY pods and of the containers that run in them, ordered by id. What
    /// cannot be had of one container is missing there alone.
    pub async fn metrics(&self) -> Vec<cri::PodSandboxMetrics> {
        let store = &self.0.pods.containers.store;
        let mut pods = store.pods();
        pods.retain(|pod| pod.status().ready);
        let mut containers = by_pod(store.containers());
        let inside: Vec<Vec<Arc<Container>>> =
            pods.iter().map(|pod| containers.remove(pod.id.as_str()).unwrap_or_default()).collect();
        let (figures, interfaces) =
            tokio::join!(self.figures_of(inside.concat()), self.interfaces_of(pods.clone()));
        self.forget_gone();
        pods.iter()
            .zip(&inside)
            .filter(|(pod, _)| pod.status().ready)
            .map(|(pod, inside)| {
                let interfaces = interfaces.get(pod.id.as_str()).map(Vec::as_slice).unwrap_or_default();
                pod_metrics(pod, interfaces, inside, &figures)
            })
            .collect()
    }

    /// The figures of those that run, by id.
    async fn figures_of(&self, containers: Vec<Arc<Container>>) -> HashMap<String, Figures> {
        let (disks, ()) = tokio::join!(self.file_systems(&containers), self.look_at_writable(&containers));
        let (mut asked, mut read) = (Vec::new(), Vec::new());
        for container in containers {
            let Some(subject) = self.subject(&container) else { continue };
            let list = if matches!(subject.source, Source::Task) { &mut asked } else { &mut read };
            let disk = disks.get(self.snapshotter(&container)).cloned();
            list.push(self.named_figures(container, subject, disk));
        }
        let asked = futures_util::stream::iter(asked).buffer_unordered(TASKS_MAX).collect::<Vec<_>>();
        let read = futures_util::stream::iter(read).buffer_unordered(READS_MAX).collect::<Vec<_>>();
        let (asked, read) = tokio::join!(asked, read);
        asked.into_iter().chain(read).collect()
    }

    async fn named_figures(
        &self,
        container: Arc<Container>,
        subject: Subject,
        disk: Option<FileSystem>,
    ) -> (String, Figures) {
        (container.id.to_string(), self.figures(&container, subject, disk).await)
    }

    /// The interfaces of the pods that have a network of their own, by id.
    async fn interfaces_of(&self, pods: Vec<Arc<Pod>>) -> HashMap<String, Vec<Interface>> {
        let reads = pods.into_iter().map(|pod| async move {
            let path = pod.netns.as_deref()?;
            match network::interfaces(path, pod.status().pid).await {
                Ok(interfaces) => Some((pod.id.to_string(), interfaces)),
                Err(error) => {
                    debug!(pod = %pod.id, %error, "no figures of a pod's network");
                    None
                }
            }
        });
        let found: Vec<_> = futures_util::stream::iter(reads).buffer_unordered(READS_MAX).collect().await;
        found.into_iter().flatten().collect()
    }
}

fn pod_metrics(
    pod: &Pod,
    interfaces: &[Interface],
    containers: &[Arc<Container>],
    figures: &HashMap<String, Figures>,
) -> cri::PodSandboxMetrics {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    // Container and image are empty: this is the pod's own.
    let labels = |container: &str, id: &str, image: &str| {
        [&metadata.name, &metadata.namespace, container, id, image].map(str::to_owned)
    };
    let of_container = |container: &Arc<Container>| {
        let figures = figures.get(container.id.as_str())?;
        let config = &container.metadata.config;
        let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
        let id = container.id.as_str();
        let labels = labels(name, id, asked_image(config));
        Some(cri::ContainerMetrics {
            container_id: id.to_owned(),
            metrics: metrics(table::CONTAINER, figures, &labels),
        })
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        metrics: metrics(table::NETWORK, interfaces, &labels("", pod.id.as_str(), "")),
        container_metrics: containers.iter().filter_map(of_container).collect(),
    }
}

/// The image as it was asked for.
fn asked_image(config: &cri::ContainerConfig) -> &str {
    let Some(image) = &config.image else { return "" };
    if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }
}

/// All values of `table`, each with the base labels and its own; none twice.
fn metrics<T: ?Sized>(table: &[Metric<T>], from: &T, base: &[String; BASE_LABELS.len()]) -> Vec<cri::Metric> {
    let mut list = Vec::new();
    for metric in table {
        let mut seen = HashSet::new();
        for found in (metric.read)(from) {
            if found.labels.len() != metric.labels.len() || !seen.insert(found.labels.clone()) {
                debug!(metric = metric.name, labels = ?found.labels, "a value was left out");
                continue;
            }
            list.push(cri::Metric {
                name: metric.name.to_owned(),
                timestamp: found.timestamp,
                metric_type: metric.kind as i32,
                label_values: base.iter().cloned().chain(found.labels).collect(),
                value: value(found.number),
            });
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::table::Value;
    use super::*;

    #[test]
    fn no_labels_come_twice_and_none_is_missing() {
        let read = |(): &()| {
            let value = |labels: &[&str], number| Value {
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                number,
                timestamp: 0,
            };
            vec![value(&["a"], 1), value(&["b"], 2), value(&["a"], 3), value(&[], 4)]
        };
        let metric = Metric { name: "m", help: "", kind: cri::MetricType::Gauge, labels: &["device"], read };
        let list = metrics(&[metric], &(), &["pod", "ns", "c", "id", "i"].map(str::to_owned));
        let found: Vec<_> = list
            .iter()
            .map(|metric| (metric.label_values.join(" "), metric.value.map(|v| v.value)))
            .collect();
        let want = [("pod ns c id i a".to_owned(), Some(1)), ("pod ns c id i b".to_owned(), Some(2))];
        assert_eq!(found, want);
        assert!(list.iter().all(|metric| metric.metric_type() == cri::MetricType::Gauge));
    }
}
