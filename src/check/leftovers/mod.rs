//! What belongs to no pod: on disk, in containerd, in the kernel.
//!
//! [`World`] holds what there is, side by side; the comparison (`compare`) looks from the things
//! to the records, which were read last: what a pod in the making has got already is then never
//! taken for left. While a server runs, only what is found twice counts.
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
//! | `task`, `shim` | of no record | nobody; a shim that containerd has lost: server |
//! | `network-namespace` | pinned, of no record | nobody |
//! | `cni-attachment` | in libcni's cache, of no record | server with `cni.gc`, else nobody |

mod compare;
mod gather;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use compare::{Look, is_in};
pub(super) use gather::gather;

use super::finding::{Finding, Left, RemovedBy, counted};
use crate::network::survey::Attached;

const SUBJECT: &str = "leftovers";

/// What there is.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// Whose: of the configuration.
    place: Place,
    server_runs: bool,
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
}

#[derive(Clone, Debug, Default)]
struct InContainerd {
    records: Vec<Record>,
    /// Ids of the records of all other namespaces.
    ids_elsewhere: BTreeSet<String>,
    /// Network namespaces that records of any namespace name.
    netns: BTreeSet<PathBuf>,
    /// Id of each task.
    tasks: BTreeSet<String>,
    /// Leases of pods, with our label.
    pod_leases: BTreeSet<String>,
    /// Leases of pulls and the like.
    image_leases: BTreeSet<String>,
    /// Snapshots under leases of pods: lease, snapshotter, key.
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
struct Thing {
    left: Left,
    why: String,
    advice: String,
}

impl World {
    /// Pods of the namespace of which this longshore has nothing.
    pub(super) fn foreign_pods(&self) -> Vec<String> {
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
    fn names(&self) -> BTreeSet<(&'static str, String)> {
        self.things().into_iter().map(|thing| (thing.left.kind, thing.left.name)).collect()
    }

    fn things(&self) -> Vec<Thing> {
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
}

pub(super) fn compare(world: &World) -> Vec<Finding> {
    if world.containerd.is_none() {
        return Vec::new();
    }
    let mut things = world.things();
    if let Some(seen) = &world.seen_before {
        things.retain(|thing| seen.contains(&(thing.left.kind, thing.left.name.clone())));
    }
    if things.is_empty() {
        return vec![Finding::ok(SUBJECT, summary(world))];
    }
    things.into_iter().map(|thing| told(thing, world.server_runs)).collect()
}

fn summary(world: &World) -> String {
    let records =
        world.containerd.as_ref().map(|containerd| containerd.records.as_slice()).unwrap_or_default();
    let count = |kind: Kind| records.iter().filter(|record| record.kind == kind).count();
    let (pods, containers) = (counted(count(Kind::Pod), "pod"), counted(count(Kind::Container), "container"));
    format!("none: everything belongs to one of {pods} and {containers} in {}", world.place.namespace)
}

/// What the server or the kubelet removes is no problem before it runs; while it runs, it has
/// not removed it.
fn told(thing: Thing, server_runs: bool) -> Finding {
    let Thing { left, why, advice } = thing;
    let whose = if left.ours { "" } else { ", of longshore or another CRI server" };
    let what = format!("{} {}{whose}: {why}", left.kind, left.name);
    let advice = match left.removed_by {
        RemovedBy::Server => "the server removes it at its next start".to_owned(),
        RemovedBy::Kubelet => "the kubelet removes it, as soon as it asks the server".to_owned(),
        RemovedBy::Nobody => format!("nobody removes it by himself: {advice}"),
    };
    let stays = left.removed_by == RemovedBy::Nobody || left.removed_by == RemovedBy::Server && server_runs;
    let finding = match left.ours && stays {
        true => Finding::problem(SUBJECT, what, &advice),
        false => Finding::note(SUBJECT, what, &advice),
    };
    finding.of_leftover(left)
}

/// Whether a pin has the form that longshore and containerd's plugin give it: `cni-` and the
/// text form of a UUID.
fn is_pin(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(id) = name.strip_prefix("cni-") else { return false };
    let lengths: Vec<usize> = id.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && id.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit())
}
