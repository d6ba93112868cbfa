//! A container that containerd has: its requests as they were recorded, its spec as it was
//! made, and the ids that it was made with. Whoever made it: the records of containerd's own
//! plugin have the same form.

use std::path::PathBuf;

use serde_json::Value;

use super::node::{Ids, Node};
use super::read::Requests;
use crate::containerd::ContainerRecord;
use crate::error::{Context, Result, invalid, not_found};
use crate::proto::cri::{ContainerConfig, PodSandboxConfig};
use crate::spec::selinux::Labels;
use crate::spec::{self, Spec};
use crate::state::record::{self, CONTAINER_EXTENSION, SANDBOX_EXTENSION};

/// A container or pod as it is recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its id.
    pub id: String,
    /// The requests.
    pub requests: Requests,
    /// What the server had made.
    pub ids: Ids,
    /// The spec, as it was made.
    pub spec: Vec<u8>,
}

impl Node {
    /// The container or pod with the id `id`, or the only one whose id begins with it.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for the beginning of several ids; FailedPrecondition for a
    /// record that is none of the CRI.
    pub async fn recorded(&mut self, id: &str) -> Result<Recorded> {
        let record = self.find(id).await?;
        let spec = spec::parse(&record.spec, &record.id)?;
        let mut recorded = if record.extensions.contains_key(CONTAINER_EXTENSION) {
            self.container_of(&record, &spec).await?
        } else if record.extensions.contains_key(SANDBOX_EXTENSION) {
            self.pod_of(&record, &spec)?
        } else {
            return Err(invalid(format!("{id:?} is neither a container nor a pod of the CRI")));
        };
        recorded.spec = record.spec;
        Ok(recorded)
    }

    async fn find(&self, id: &str) -> Result<ContainerRecord> {
        if !id.bytes().all(|c| c.is_ascii_alphanumeric()) || id.is_empty() {
            return Err(invalid(format!("{id:?} is neither a file nor an id")));
        }
        match self.containerd.container(id).await {
            Err(error) if error.is_not_found() => {}
            other => return other,
        }
        let mut found = self.containerd.list_containers(&[]).await?;
        found.retain(|record| record.id.starts_with(id));
        match (found.pop(), found.pop()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(invalid(format!("several ids begin with {id:?}"))),
            (None, _) => {
                let namespace = &self.config.file.containerd.namespace;
                Err(not_found(format!(
                    "there is no file and no container {id:?} (containerd's namespace {namespace:?})"
                )))
            }
        }
    }

    async fn container_of(&mut self, record: &ContainerRecord, spec: &Spec) -> Result<Recorded> {
        let metadata = record::container_metadata(record)?;
        let pod = self.containerd.container(&metadata.sandbox_id).await.context(|| "its pod sandbox")?;
        let sandbox = record::sandbox_metadata(&pod)?;
        let pause_spec = spec::parse(&pod.spec, &pod.id)?;
        self.use_folders_of(spec, &metadata.sandbox_id);
        // The record of a container that was made knows the pids better than the tasks do now.
        let ids = Ids {
            pod: metadata.sandbox_id.clone(),
            container: metadata.id.clone(),
            netns: PathBuf::from(&sandbox.netns_path),
            pause_pid: pid_of(spec, "network").unwrap_or(0),
            target_pid: pid_of(spec, "pid").unwrap_or(0),
            labels: Some((labels(&pause_spec), labels(spec))),
            sources: bind_sources(spec),
        };
        let requests = requests(sandbox.config, sandbox.runtime_handler, Some(metadata.config));
        Ok(Recorded { id: metadata.id, requests, ids, spec: Vec::new() })
    }

    fn pod_of(&mut self, record: &ContainerRecord, spec: &Spec) -> Result<Recorded> {
        let metadata = record::sandbox_metadata(record)?;
        self.use_folders_of(spec, &metadata.id);
        let ids = Ids {
            pod: metadata.id.clone(),
            netns: PathBuf::from(&metadata.netns_path),
            labels: Some((labels(spec), Labels::default())),
            ..Ids::unknown(&self.config)
        };
        let requests = requests(metadata.config, metadata.runtime_handler, None);
        Ok(Recorded { id: metadata.id, requests, ids, spec: Vec::new() })
    }

    /// Takes the folders of the server that made a spec, which need not be this one's.
    fn use_folders_of(&mut self, spec: &Spec, pod: &str) {
        let folder = |target: &str, end: &str| {
            let mount = spec.mounts.iter().find(|mount| mount.destination == target)?;
            mount.source.strip_suffix(end)?.strip_suffix(pod)?.strip_suffix("/sandboxes/").map(PathBuf::from)
        };
        let (root, state) = (folder("/etc/resolv.conf", "/resolv.conf"), folder("/dev/shm", "/shm"));
        let file = &mut self.config.file;
        let mut other = Vec::new();
        for (key, found, known) in [("root", root, &mut file.root), ("state", state, &mut file.state)] {
            if let Some(found) = found.filter(|found| found != known) {
                other.push(format!("{key} is {} there", found.display()));
                *known = found;
            }
        }
        if !other.is_empty() {
            self.say(format!(
                "made by a server with other folders, which are used here, too: {}",
                other.join(", ")
            ));
        }
    }
}

fn requests(pod: PodSandboxConfig, handler: String, container: Option<ContainerConfig>) -> Requests {
    let shows_pod = container.is_none();
    Requests { pod, handler, containers: container.into_iter().collect(), shows_pod, ..Requests::default() }
}

fn labels(spec: &Spec) -> Labels {
    let process = spec.process.as_ref().map(|process| process.selinux_label.clone());
    let mount = spec.linux.as_ref().map(|linux| linux.mount_label.clone());
    Labels { process: process.unwrap_or_default(), mount: mount.unwrap_or_default() }
}

/// The process whose namespace is joined: of `/proc/PID/ns/…`.
fn pid_of(spec: &Spec, kind: &str) -> Option<u32> {
    let namespaces = &spec.linux.as_ref()?.namespaces;
    let namespace = namespaces.iter().find(|namespace| namespace.kind == kind)?;
    namespace.path.strip_prefix("/proc/")?.split('/').next()?.parse().ok()
}

/// The sources of bind mounts by target.
fn bind_sources(spec: &Spec) -> Vec<(String, PathBuf)> {
    let binds = spec.mounts.iter().filter(|mount| mount.kind == "bind");
    binds.map(|mount| (mount.destination.clone(), PathBuf::from(&mount.source))).collect()
}

/// A spec as a value.
pub(super) fn value(spec: &[u8]) -> Result<Value> {
    serde_json::from_slice(spec).map_err(|error| invalid(format!("the OCI spec: {error}")))
}
