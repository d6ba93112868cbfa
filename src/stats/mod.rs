//! What pods and containers use: cpu, memory, swap, processes, network, disk (area STA).
//!
//! ```text
//! container.rs ┐          ┌ cgroup/     files of a cgroup, version 1 and 2 ┐
//!              ├ sampler ─┤                                               ├─▶ Reading ─▶ CRI
//! pod.rs       ┘    │     └ metrics.rs  Tasks.Metrics, of VM runtimes     ┘
//!                   └─ rate.rs          cpu per second, from earlier asks
//! network.rs   interfaces of a pod      image::writable   sizes of containers' snapshots
//! prometheus/  all of these again, and more of the cgroups' files, as metrics
//! ```
//! A container of runc's shim is a cgroup of this host, whose files are read directly: a
//! handful of system calls, and no containerd, shim or runtime in between. What runs in a
//! virtual machine is counted in there, which only its shim can ask; containerd passes the
//! question on, each task on its own, so that a shim that hangs costs its own container's
//! figures and nobody else's (STA-11).
//!
//! Nothing runs while nobody asks: no collector, no walk. Everything of one answer is
//! collected concurrently, at most [`READS_MAX`] at once, and what cannot be had of one
//! container is missing there alone.

mod cgroup;
mod container;
mod metrics;
mod network;
mod pod;
mod prometheus;
mod rate;
mod reading;
mod sampler;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::flow::lock;
use crate::pod::Pods;
use crate::proto::cri;
use cgroup::Hierarchies;
use sampler::Sampler;

/// How much is read at once for one answer.
const READS_MAX: usize = 8;

/// The figures of pods and containers. Cheap to clone.
#[derive(Clone)]
pub struct Stats(Arc<Inner>);

struct Inner {
    pods: Pods,
    sampler: Sampler,
    /// Folders of snapshotters, as they were last told.
    roots: Mutex<HashMap<String, PathBuf>>,
}

impl Stats {
    /// The figures of `pods`.
    #[must_use]
    pub fn new(pods: Pods) -> Stats {
        let hierarchies = Hierarchies::of_host();
        let sampler = Sampler::new(hierarchies, pods.containers.containerd.clone());
        Stats(Arc::new(Inner { pods, sampler, roots: Mutex::default() }))
    }

    /// Forgets samples of what is gone.
    fn forget_gone(&self) {
        let store = &self.0.pods.containers.store;
        let (pods, containers) = (store.pods(), store.containers());
        if self.0.sampler.known() <= pods.len() + containers.len() {
            return;
        }
        let pods = pods.iter().map(|pod| pod.id.as_str());
        let alive: HashSet<&str> =
            pods.chain(containers.iter().map(|container| container.id.as_str())).collect();
        self.0.sampler.forget(|id| !alive.contains(id));
    }

    /// The folder of a snapshotter, by which the kubelet finds the disk. It has to exist: one
    /// that does not makes the kubelet's whole list fail (STA-10).
    fn root(&self, snapshotter: &str) -> String {
        let told = self.0.pods.containers.containerd.capabilities().ok();
        let told = told.and_then(|capabilities| capabilities.snapshotter_root(snapshotter));
        let mut roots = lock(&self.0.roots);
        if let Some(told) = told {
            roots.insert(snapshotter.to_owned(), told.into());
        }
        let last_resort = &self.0.pods.containers.config.file.root;
        let root = roots.get(snapshotter).unwrap_or(last_resort);
        let existing = root.ancestors().find(|path| path.exists());
        existing.unwrap_or(Path::new("/")).display().to_string()
    }
}

/// Whether labels have all pairs of a selector.
fn selects(
    selector: &std::collections::BTreeMap<String, String>,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A number as the CRI wraps it.
fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}
