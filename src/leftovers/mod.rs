//! What belongs to no pod: on disk, in containerd, in the kernel.
//!
//! [`World`] holds what there is, side by side; the comparison (`compare`) looks from the things
//! to the records, which were read last: what a pod in the making has got already is then never
//! taken for left. While a server runs, only what is found twice counts. `longshore doctor` tells
//! of what is left, the server (`pod/reconcile`) removes what is its own.
//!
//! A look is cheap: containerd is asked for its lists, and for more only where something seems
//! to be left.
//!
//! What has an id of 64 digits is longshore's or of another CRI server, since all of them
//! name alike. It is *ours* only with evidence: a folder of ours, a lease with our label, the
//! keeper, or a place that is this configuration's alone. Else it is said that it may be
//! another's, and things of other namespaces or of other forms are not told at all.
//!
//! | kind | what | removed by |
//! |---|---|---|
//! | `folder`, `image-volumes` | below root and state, of no record | server |
//! | `mount` | below root and state, of no record | server |
//! | `fifo` | of a process that is gone | server |
//! | `log` | output that the keeper has, of no record | server |
//! | `lease`, `snapshot` | with our label, of no record | server |
//! | `pod` | its making was cut off | server |
//! | `container` | without its pod, or without its status file | kubelet |
//! | `record` | that cannot be read | nobody |
//! | `shim` | that containerd has lost | server |
//! | `task`, `shim` | of no record | server, if ours and it reconciles; else nobody |
//! | `network-namespace` | pinned, of no record | the same |
//! | `cni-attachment` | in libcni's cache, of no record | the same; also with `cni.gc` |

mod compare;
mod gather;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use compare::{Look, is_in};
pub use gather::{gather, look};
use serde::Serialize;

use crate::containerd::ProcessStatus;
use crate::network::survey::Attached;

/// Something that belongs to no pod any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// `folder`, `mount`, `network-namespace`, …
    pub kind: &'static str,
    /// Its path or id.
    pub name: String,
    /// Whether it is known to be longshore's; else it may be another CRI server's.
    pub ours: bool,
    /// Who removes it.
    pub removed_by: RemovedBy,
}

/// Who removes what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RemovedBy {
    /// The server, at its next start, or before where it reconciles.
    Server,
    /// The kubelet, which finds it in the lists of the CRI.
    Kubelet,
    /// Nobody by himself.
    Nobody,
}

/// From where is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// No server runs.
    Alone,
    /// Beside a server that runs: what it is about to make is not known.
    Beside,
    /// By the server, who leaves out what it is about to make.
    Within,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Whose: of the configuration.
    place: Place,
    server_runs: bool,
    /// Whether it is that server who looks.
    is_within: bool,
    /// What containerd has; `None` where it does not answer.
    containerd: Option<InContainerd>,
    host: OnHost,
    /// While a server runs: what was found at a first look.
    seen_before: Option<BTreeSet<(&'static str, String)>>,
}

/// Where longshore is at home.
#[derive(Clone, Debug, Default)]
struct Place {
    namespace: String,
    netns_dir: PathBuf,
    /// Whether nobody else has that folder.
    has_own_netns_dir: bool,
    has_own_cache: bool,
    collects_garbage: bool,
    /// Whether a server that runs removes what is left, without a start.
    reconciles: bool,
}

#[derive(Clone, Debug, Default)]
struct InContainerd {
    records: Vec<Record>,
    /// Ids of the records of all other namespaces.
    ids_elsewhere: BTreeSet<String>,
    /// Network namespaces that records of any namespace name.
    netns: BTreeSet<PathBuf>,
    /// Each task, by its id.
    tasks: BTreeMap<String, ProcessStatus>,
    /// All leases whose id is that of a pod.
    leases: BTreeSet<String>,
    /// Leases of pods, with our label.
    pod_leases: BTreeSet<String>,
    /// Leases of pulls and the like.
    image_leases: BTreeSet<String>,
    /// Snapshots under leases of pods that no record has: lease, snapshotter, key.
    snapshots: Vec<(String, String, String)>,
}

/// A record of the namespace.
#[derive(Clone, Debug, Default)]
struct Record {
    id: String,
    kind: Kind,
    /// The pod of a container.
    pod: String,
    /// How people call it.
    title: String,
    netns: PathBuf,
    is_creating: bool,
    /// Why its metadata cannot be read.
    wrong: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Pod,
    Container,
    /// Neither: another client's.
    #[default]
    Other,
}

#[derive(Clone, Debug, Default)]
struct OnHost {
    /// Folders of pods and containers below root and state: path and id.
    folders: Vec<(PathBuf, String)>,
    /// Folders of image volumes, by pod.
    image_volumes: Vec<(PathBuf, String)>,
    /// Containers whose status file says that they have ended.
    ended: BTreeSet<String>,
    /// Containers with a status file.
    with_status: BTreeSet<String>,
    /// Mounts below root and state, with the id in their path.
    mounts: Vec<(PathBuf, Option<String>)>,
    /// FIFOs: folder, container, process.
    fifos: Vec<(PathBuf, String, String)>,
    /// Pinned network namespaces of the form that CRI servers give them.
    pins: Vec<PathBuf>,
    attachments: Vec<Attached>,
    /// Shims of this containerd and namespace: process and id.
    shims: Vec<(u32, String)>,
    /// Containers that the keeper has.
    kept: BTreeSet<String>,
}

/// One thing, and why it counts as left.
#[derive(Clone, Debug)]
pub struct Thing {
    /// What it is.
    pub left: Left,
    /// Id of the pod or container that it was of; empty where that is not known.
    pub id: String,
    /// That of a snapshot.
    pub snapshotter: Option<String>,
    /// Why nobody needs it.
    pub why: String,
    /// What to do about it where nobody does it by himself.
    pub advice: String,
}

impl World {
    /// Pods of the namespace of which this longshore has nothing.
    #[must_use]
    pub fn foreign_pods(&self) -> Vec<String> {
        let Some(containerd) = &self.containerd else { return Vec::new() };
        let claimed = self.claimed();
        let pods = containerd.records.iter().filter(|record| record.kind == Kind::Pod);
        pods.filter(|pod| !claimed.contains(pod.id.as_str())).map(|pod| pod.title.clone()).collect()
    }

    /// Ids of which longshore has something that nobody else would have.
    fn claimed(&self) -> BTreeSet<&str> {
        let host = &self.host;
        let folders = host.folders.iter().chain(&host.image_volumes).map(|(_, id)| id.as_str());
        let mut claimed: BTreeSet<&str> = folders.chain(host.kept.iter().map(String::as_str)).collect();
        let Some(containerd) = &self.containerd else { return claimed };
        claimed.extend(containerd.pod_leases.iter().map(String::as_str));
        for record in &containerd.records {
            let is_here = self.place.has_own_netns_dir && is_in(&record.netns, &self.place.netns_dir);
            if record.is_creating || is_here {
                claimed.insert(&record.id);
            }
        }
        let of_pods = containerd.records.iter().filter(|record| claimed.contains(record.pod.as_str()));
        let of_pods: Vec<&str> = of_pods.map(|record| record.id.as_str()).collect();
        claimed.extend(of_pods);
        if self.place.has_own_cache {
            claimed.extend(host.attachments.iter().map(|attached| attached.id.as_str()));
        }
        claimed
    }

    /// Names of all that is left now, to be compared with a second look.
    #[must_use]
    pub fn names(&self) -> BTreeSet<(&'static str, String)> {
        self.all_things().into_iter().map(|thing| (thing.left.kind, thing.left.name)).collect()
    }

    /// All that is left; while a server runs, what was found twice.
    #[must_use]
    pub fn things(&self) -> Vec<Thing> {
        let mut things = self.all_things();
        if let Some(seen) = &self.seen_before {
            things.retain(|thing| seen.contains(&(thing.left.kind, thing.left.name.clone())));
        }
        things
    }

    fn all_things(&self) -> Vec<Thing> {
        let Some(containerd) = &self.containerd else { return Vec::new() };
        let known: BTreeMap<&str, &Record> =
            containerd.records.iter().map(|record| (record.id.as_str(), record)).collect();
        let look = Look { world: self, containerd, known, claimed: self.claimed() };
        let mut things = look.of_records();
        things.extend(look.of_containerd());
        things.extend(look.of_folders());
        things.extend(look.of_kernel());
        things
    }

    /// Whether containerd answered: else nothing is known to be left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.containerd.is_some()
    }

    /// Whether a server runs, and whether it removes what is left without a start.
    #[must_use]
    pub fn server(&self) -> (bool, bool) {
        (self.server_runs, self.place.reconciles)
    }

    /// The namespace, and how many pods and containers it has.
    #[must_use]
    pub fn count(&self) -> (&str, usize, usize) {
        let records = self.containerd.as_ref().map(|known| known.records.as_slice()).unwrap_or_default();
        let count = |kind: Kind| records.iter().filter(|record| record.kind == kind).count();
        (&self.place.namespace, count(Kind::Pod), count(Kind::Container))
    }

    /// The state of a task; none if containerd has no such task.
    #[must_use]
    pub fn task(&self, id: &str) -> Option<ProcessStatus> {
        self.containerd.as_ref()?.tasks.get(id).copied()
    }

    /// Whether containerd has a record of it.
    #[must_use]
    pub fn has_record(&self, id: &str) -> bool {
        self.containerd.as_ref().is_some_and(|known| known.records.iter().any(|record| record.id == id))
    }

    /// Whether there is a lease of that id, whoever made it.
    #[must_use]
    pub fn has_lease(&self, id: &str) -> bool {
        self.containerd.as_ref().is_some_and(|known| known.leases.contains(id))
    }

    /// Ids of the records that are longshore's: pods whose making has not ended, and
    /// containers.
    #[must_use]
    pub fn own_creations(&self) -> Vec<&str> {
        let claimed = self.claimed();
        let is_own = |record: &&Record| match record.kind {
            _ if record.wrong.is_some() => false,
            Kind::Pod => record.is_creating,
            Kind::Container => claimed.contains(record.pod.as_str()),
            Kind::Other => false,
        };
        let records = self.containerd.iter().flat_map(|known| &known.records);
        records.filter(is_own).map(|record| record.id.as_str()).collect()
    }
}

/// Whether a pin has the form that longshore and containerd's plugin give it: `cni-` and the
/// text form of a UUID.
fn is_pin(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(id) = name.strip_prefix("cni-") else { return false };
    let lengths: Vec<usize> = id.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && id.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit())
}
