//! What is done about a deviation. Each repair asks again whether it is one.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::super::Pods;
use super::{Deviation, is_idle};
use crate::container::remove_folder;
use crate::containerd::{ContainerRecord, Exit, ProcessStatus};
use crate::error::{Context, Result, precondition};
use crate::flow::{self, Disk, on_disk};
use crate::leftovers::Thing;
use crate::network::{PodNetwork, netns, survey};
use crate::proto::cri::{ContainerState, NamespaceMode, PodSandboxConfig};
use crate::spec::annotations::{KIND_CONTAINER, KIND_SANDBOX, record_labels};
use crate::state::container::UNKNOWN_CODE;
use crate::state::record::{self, CREATING_LABEL, LEASE_LABEL, SandboxMetadata};
use crate::state::{Container, Pod};
use crate::sys;
use crate::telemetry::METERS;

/// In which order what is left of a pod goes: first what others hold for it, last what shows
/// that it was longshore's, should something before that fail.
const ORDER: [&str; 11] = [
    "cni-attachment",
    "network-namespace",
    "task",
    "shim",
    "snapshot",
    "image-volumes",
    "mount",
    "fifo",
    "folder",
    "log",
    "lease",
];
/// These go only when all before them has gone: DEL needs the namespace, and by the others is
/// known whose the rest was.
const AFTERWARDS: [&str; 4] = ["network-namespace", "folder", "log", "lease"];

const SIGKILL: u32 = 9;

impl Pods {
    /// Repairs one after the other, in an order in which nothing loses what shows whose it is.
    pub(super) async fn repair_all(&self, mut deviations: Vec<Deviation>) {
        let place = |deviation: &Deviation| {
            let kind = deviation.key().0;
            ORDER.iter().position(|one| *one == kind).unwrap_or(ORDER.len())
        };
        deviations.sort_by_key(place);
        // Pods and containers of which something could not be removed.
        let mut kept = BTreeSet::new();
        for deviation in deviations {
            let (kind, name) = deviation.key();
            let of = match &deviation {
                Deviation::Left(thing) => thing.id.clone(),
                _ => String::new(),
            };
            if AFTERWARDS.contains(&kind) && kept.contains(&of) {
                continue;
            }
            let why = deviation.why().to_owned();
            let this = self.clone();
            // A server that stops ends what it has begun.
            let repaired = self.containers.flow.detach(async move { this.repair(deviation).await }).await;
            match repaired {
                Ok(true) => {
                    info!(kind, object = name, cause = why, "repaired");
                    METERS.repaired(kind);
                }
                Ok(false) => {}
                Err(error) => {
                    warn!(kind, object = name, cause = why, %error, "could not be repaired; tried again later");
                    if !of.is_empty() {
                        kept.insert(of);
                    }
                }
            }
        }
    }

    /// Repairs one; false if it is no deviation any more.
    async fn repair(&self, deviation: Deviation) -> Result<bool> {
        match deviation {
            Deviation::Left(thing) => self.remove_left(&thing).await,
            Deviation::Task(id) => self.discard_idle_task(&id).await,
            Deviation::Record(id) => self.put_back_record(&id).await,
            Deviation::Lease(id) => self.put_back_lease(&id).await,
            Deviation::Pin(id) => self.pin_again(&id).await,
            Deviation::Creation(id) => self.undo_creation(&id).await,
        }
    }

    async fn remove_left(&self, thing: &Thing) -> Result<bool> {
        let parts = &self.containers;
        let (kind, name, id) = (thing.left.kind, thing.left.name.as_str(), thing.id.as_str());
        match kind {
            "shim" => return self.end_left_shim(id).await,
            "fifo" => {
                // Only those of an ended container are left while its record is there.
                let has_ended =
                    |container: Arc<Container>| container.state() == ContainerState::ContainerExited;
                if !parts.store.container(id).is_ok_and(has_ended) {
                    return Ok(false);
                }
                return remove_folder(Path::new(name)).await.map(|()| true);
            }
            _ if !id.is_empty() && parts.store.knows(id) => return Ok(false),
            "cni-attachment" => self.detach_left(id, Path::new(name)).await,
            "network-namespace" => netns::remove(Path::new(name)).await,
            "task" => self.end_left_task(id).await,
            "snapshot" => match &thing.snapshotter {
                Some(snapshotter) => parts.containerd.remove_snapshot(snapshotter, name).await,
                None => return Ok(false),
            },
            "image-volumes" => parts.remove_image_volumes(&id.to_owned().into()).await,
            "mount" => {
                let path = name.to_owned();
                flow::blocking(move || {
                    sys::mount::unmount_below(Path::new(&path)).context(|| format!("unmount {path:?}"))
                })
                .await
            }
            "folder" => remove_folder(Path::new(name)).await,
            "log" => parts.keeper.remove(id).await,
            "lease" => parts.containerd.delete_lease(name, false).await,
            _ => return Ok(false),
        }
        .map(|()| true)
    }

    /// CNI DEL with what stands in the cache.
    async fn detach_left(&self, id: &str, file: &Path) -> Result<()> {
        let entry = file.to_owned();
        let attached = on_disk(Disk::Cni, move || Ok(survey::netns_in(&entry))).await?;
        let network =
            PodNetwork { id: id.to_owned(), handler: String::new(), netns: attached, config: Arc::default() };
        self.network.detach(&network).await?;
        match file.exists() {
            false => Ok(()),
            true => {
                Err(precondition(format!("nothing is known of the network of {file:?}: remove the file")))
            }
        }
    }

    /// Ends a task that has no record. containerd asks for one first: a pod that is about to be
    /// rolled back, so that the next start ends it should this one not.
    async fn end_left_task(&self, id: &str) -> Result<()> {
        let parts = &self.containers;
        let mut config = PodSandboxConfig::default();
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options.get_or_insert_default().network = NamespaceMode::Node as i32;
        let name = format!("left_{id}");
        let metadata = SandboxMetadata { id: id.to_owned(), name, config, ..SandboxMetadata::default() };
        let handler = parts.config.default_handler();
        let mut labels = record_labels(&Default::default(), &Default::default(), KIND_SANDBOX);
        labels.insert(CREATING_LABEL.to_owned(), "true".to_owned());
        let record = ContainerRecord {
            id: id.to_owned(),
            labels,
            runtime: handler.shim.clone(),
            spec: b"{}".to_vec(),
            snapshotter: handler.snapshotter.clone(),
            snapshot_key: id.to_owned(),
            extensions: record::sandbox_extension(&metadata),
            ..ContainerRecord::default()
        };
        parts.containerd.create_container(record, None).await?;
        parts.discard_task(id).await?;
        // Containers whose pod has lost its record may run: the kubelet ends them.
        match parts.store.containers().iter().any(|container| container.pod_id.as_str() == id) {
            true => parts.containerd.end_lost_shim(id).await?,
            false => drop(parts.containerd.end_empty_shim(id).await?),
        }
        parts.containerd.delete_container(id).await
    }

    /// Ends a shim that containerd has lost, unless its pod runs or is being worked on.
    async fn end_left_shim(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        let pod = parts.store.pod(id).ok();
        let _operation = match &pod {
            Some(pod) if pod.status().ready => return Ok(false),
            Some(pod) => match pod.operation.try_lock() {
                Ok(operation) => Some(operation),
                Err(_) => return Ok(false),
            },
            None if parts.store.knows(id) => return Ok(false),
            None => None,
        };
        parts.containerd.end_lost_shim(id).await.map(|()| true)
    }

    /// Deletes the task of a pod or container that does not run; false if it does, or a call is
    /// busy with it.
    pub(in crate::pod) async fn discard_idle_task(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        if let Ok(container) = parts.store.container(id) {
            let Ok(_operation) = container.operation.try_lock() else { return Ok(false) };
            if !is_idle(&container) || container.is_unsettled() {
                return Ok(false);
            }
            // An answer that is lost is no task that is left, and the next look finds none.
            let discarded = parts.discard_left_task(&container).await;
            parts.close_output(&container).await;
            return discarded.map(|()| true);
        }
        let Ok(pod) = parts.store.pod(id) else { return Ok(false) };
        let Ok(_operation) = pod.operation.try_lock() else { return Ok(false) };
        if pod.status().ready {
            return Ok(false);
        }
        parts.discard_task(id).await.map(|()| true)
    }

    /// A record that others deleted is put back, as far as it is known: what it names can then
    /// be stopped and removed, also by a server that is started meanwhile. Its spec is lost.
    /// Pods need it no more once they run; a container is ended, and the kubelet makes another.
    /// Another server's, of which there is no folder here, are its own business.
    async fn put_back_record(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        if let Ok(pod) = parts.store.pod(id) {
            let Ok(_operation) = pod.operation.try_lock() else { return Ok(false) };
            let is_ours = parts.paths.pod_root(&pod.id).exists();
            if !is_ours || parts.store.pod(id).is_err() || self.has_record(id).await? {
                return Ok(false);
            }
            parts.containerd.create_container(self.record_of_pod(&pod), None).await?;
            return Ok(true);
        }
        let Ok(container) = parts.store.container(id) else { return Ok(false) };
        let Ok(_operation) = container.operation.try_lock() else { return Ok(false) };
        let is_ours = parts.paths.container_root(&container.id).exists();
        if !is_ours || parts.store.container(id).is_err() || self.has_record(id).await? {
            return Ok(false);
        }
        parts.containerd.create_container(self.record_of_container(&container), None).await?;
        match container.state() {
            ContainerState::ContainerRunning => {
                warn!(container = id, "ending a container whose record was deleted: its spec is lost");
                container.mark_kill_sent();
                match parts.containerd.kill(id, "", SIGKILL, true).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
            ContainerState::ContainerCreated => {
                let code = u32::try_from(UNKNOWN_CODE).unwrap_or_default();
                container.end(Exit { code, at: 0 }, "Unknown", None).await;
                parts.tell(&container);
            }
            ContainerState::ContainerExited | ContainerState::ContainerUnknown => {}
        }
        Ok(true)
    }

    async fn has_record(&self, id: &str) -> Result<bool> {
        match self.containers.containerd.container(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn record_of_pod(&self, pod: &Pod) -> ContainerRecord {
        let parts = &self.containers;
        let handler = parts.config.handler(pod.handler_name()).unwrap_or(parts.config.default_handler());
        let mut extensions = record::sandbox_extension(&pod.metadata());
        if let Some(updated) = pod.updated_resources() {
            extensions.extend(record::updated_resources_extension(&updated));
        }
        ContainerRecord {
            id: pod.id.to_string(),
            labels: record_labels(&pod.config.labels, &Default::default(), KIND_SANDBOX),
            runtime: handler.shim.clone(),
            runtime_options: handler.options.clone(),
            spec: b"{}".to_vec(),
            snapshotter: handler.snapshotter.clone(),
            snapshot_key: pod.id.to_string(),
            extensions,
            ..ContainerRecord::default()
        }
    }

    fn record_of_container(&self, container: &Container) -> ContainerRecord {
        let parts = &self.containers;
        let pod = parts.store.pod(container.pod_id.as_str()).ok();
        let handler = pod.and_then(|pod| parts.config.handler(pod.handler_name()));
        let handler = handler.unwrap_or(parts.config.default_handler());
        let metadata = &container.metadata;
        ContainerRecord {
            id: container.id.to_string(),
            labels: record_labels(&metadata.config.labels, &Default::default(), KIND_CONTAINER),
            runtime: handler.shim.clone(),
            runtime_options: handler.options.clone(),
            spec: b"{}".to_vec(),
            snapshotter: handler.snapshotter.clone(),
            snapshot_key: container.id.to_string(),
            extensions: record::container_extension(metadata),
            ..ContainerRecord::default()
        }
    }

    async fn put_back_lease(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        let Ok(pod) = parts.store.pod(id) else { return Ok(false) };
        let Ok(_operation) = pod.operation.try_lock() else { return Ok(false) };
        if parts.store.pod(id).is_err() || !parts.paths.pod_root(&pod.id).exists() {
            return Ok(false);
        }
        let labels = HashMap::from([(LEASE_LABEL.to_owned(), pod.name.clone())]);
        parts.containerd.create_lease(id, labels).await.map(|()| true)
    }

    /// The network namespace is pause's still: stats, port-forward and CNI DEL find it by its pin.
    async fn pin_again(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        let Ok(pod) = parts.store.pod(id) else { return Ok(false) };
        let Ok(_operation) = pod.operation.try_lock() else { return Ok(false) };
        let (Some(path), true) = (&pod.netns, pod.status().ready) else { return Ok(false) };
        let runs = async || -> Result<Option<u32>> {
            let process = parts.containerd.process(id, "").await?;
            Ok((process.status == ProcessStatus::Running).then_some(process.pid))
        };
        let Some(pid) = runs().await? else { return Ok(false) };
        netns::pin_again(pid, path).await?;
        // It may have ended in between, and its number be another's (REC-22).
        if runs().await.ok().flatten() == Some(pid) {
            return Ok(true);
        }
        netns::remove(path).await.map(|()| false)
    }

    /// Removes what the caller of a failed creation was never told of.
    async fn undo_creation(&self, id: &str) -> Result<bool> {
        let parts = &self.containers;
        let record = match parts.containerd.container(id).await {
            Ok(record) if !parts.store.knows(id) => record,
            Ok(_) => return Ok(false),
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        if record.labels.contains_key(CREATING_LABEL) {
            let Some(pod) = self.load_pod(&record, None).await else { return Ok(false) };
            self.remove(pod.id.as_str()).await?;
            return Ok(true);
        }
        parts.discard_task(id).await?;
        parts.keeper.remove(id).await?;
        parts.containerd.delete_container(id).await?;
        if !record.snapshotter.is_empty() {
            parts.containerd.remove_snapshot(&record.snapshotter, id).await?;
        }
        let id = id.to_owned().into();
        remove_folder(&parts.paths.container_state(&id)).await?;
        remove_folder(&parts.paths.container_root(&id)).await?;
        Ok(true)
    }
}
