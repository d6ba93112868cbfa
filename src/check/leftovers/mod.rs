//! What belongs to no pod: on disk, in containerd, in the kernel.
//!
//! [`World`] holds what there is, side by side; the comparison looks from the things to the
//! records, which were read last: what a pod in the making has got already is then never
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

mod gather;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(super) use gather::gather;

use super::finding::{Finding, Left, RemovedBy, counted};
use crate::ids::is_id;
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

/// The comparison.
struct Look<'a> {
    world: &'a World,
    containerd: &'a InContainerd,
    known: BTreeMap<&'a str, &'a Record>,
    claimed: BTreeSet<&'a str>,
}

impl Look<'_> {
    fn thing(&self, kind: &'static str, name: String, id: &str, removed_by: RemovedBy, why: &str) -> Thing {
        let ours = self.claimed.contains(id);
        Thing { left: Left { kind, name, ours, removed_by }, why: why.to_owned(), advice: String::new() }
    }

    fn is_known(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// Pods and containers that are not whole.
    fn of_records(&self) -> Vec<Thing> {
        let namespace = &self.world.place.namespace;
        let mut things = Vec::new();
        for record in &self.containerd.records {
            let id = &record.id;
            let title = format!("{id} ({})", record.title);
            match record.kind {
                Kind::Other => {}
                _ if record.wrong.is_some() => {
                    let wrong = record.wrong.as_deref().unwrap_or_default();
                    let why = format!("its record cannot be read, so that no server lists it: {wrong}");
                    let mut thing = self.thing("record", id.clone(), id, RemovedBy::Nobody, &why);
                    thing.advice = format!(
                        "`ctr -n {namespace} tasks rm -f {id}; ctr -n {namespace} containers rm {id}`"
                    );
                    things.push(thing);
                }
                Kind::Pod if record.is_creating && !self.world.server_runs => {
                    let why = "its making was cut off";
                    things.push(self.thing("pod", title, id, RemovedBy::Server, why));
                }
                Kind::Container if !self.is_known(&record.pod) => {
                    let why = format!("its pod {} is gone", record.pod);
                    things.push(self.thing("container", title, id, RemovedBy::Kubelet, &why));
                }
                Kind::Container
                    if self.claimed.contains(id.as_str()) && !self.world.host.with_status.contains(id) =>
                {
                    let why = "its status file is missing: its state is not known any more";
                    things.push(self.thing("container", title, id, RemovedBy::Kubelet, why));
                }
                _ => {}
            }
        }
        things
    }

    /// Tasks, leases and snapshots.
    fn of_containerd(&self) -> Vec<Thing> {
        let namespace = &self.world.place.namespace;
        let mut things = Vec::new();
        for id in self.containerd.tasks.iter().filter(|id| is_id(id) && !self.is_known(id)) {
            let why = "its processes may run, and there is no record of it";
            let mut thing = self.thing("task", id.clone(), id, RemovedBy::Nobody, why);
            thing.advice = format!("`ctr -n {namespace} tasks rm -f {id}`");
            things.push(thing);
        }
        for id in self.containerd.pod_leases.iter().filter(|id| !self.is_known(id)) {
            let held = self.containerd.snapshots.iter().filter(|(lease, ..)| lease == id).count();
            let why = format!("its pod is gone; it keeps {} from being collected", counted(held, "snapshot"));
            things.push(self.thing("lease", id.clone(), id, RemovedBy::Server, &why));
        }
        // What a server that runs is busy with is not left.
        if self.world.server_runs {
            return things;
        }
        for id in &self.containerd.image_leases {
            let left = Left { kind: "lease", name: id.clone(), ours: true, removed_by: RemovedBy::Server };
            let why = "of a pull that was cut off; it ends by itself after a day".to_owned();
            things.push(Thing { left, why, advice: String::new() });
        }
        for (lease, snapshotter, key) in &self.containerd.snapshots {
            if self.is_known(lease) && is_id(key) && !self.is_known(key) {
                let why = format!("in {snapshotter}, of a container of pod {lease} that was never recorded");
                things.push(self.thing("snapshot", key.clone(), lease, RemovedBy::Server, &why));
            }
        }
        things
    }

    /// Folders, FIFOs, and what the keeper has.
    fn of_folders(&self) -> Vec<Thing> {
        let host = &self.world.host;
        let gone = "there is no record of it in containerd";
        let mut things = Vec::new();
        let kinds = [("folder", &host.folders), ("image-volumes", &host.image_volumes)];
        for (kind, folders) in kinds {
            for (path, id) in folders.iter().filter(|(_, id)| !self.is_known(id)) {
                things.push(self.thing(kind, shown(path), id, RemovedBy::Server, gone));
            }
        }
        for id in host.kept.iter().filter(|id| !self.is_known(id)) {
            let why = "the keeper has its output open, and there is no record of it";
            things.push(self.thing("log", id.clone(), id, RemovedBy::Server, why));
        }
        for (folder, container, process) in &host.fifos {
            let has_task = self.containerd.tasks.contains(container);
            let ended = host.ended.contains(container) && !has_task && !host.kept.contains(container);
            let cut_off = process != container && !self.world.server_runs;
            if self.is_known(container) && (ended || cut_off) {
                let why = match process == container {
                    true => format!("of container {container}, which has ended"),
                    false => format!("of exec {process} in container {container}, whose server is gone"),
                };
                things.push(self.thing("fifo", shown(folder), container, RemovedBy::Server, &why));
            }
        }
        things
    }

    /// Mounts, shims, network namespaces and their attachments.
    fn of_kernel(&self) -> Vec<Thing> {
        let mut things = Vec::new();
        for (path, id) in &self.world.host.mounts {
            let why = "it is in longshore's folder, and its pod is gone";
            match id {
                Some(id) if self.is_known(id) => {}
                // The plugin may have its pins in the folder that longshore took over.
                None if self.containerd.netns.contains(path) => {}
                Some(id) => things.push(self.thing("mount", shown(path), id, RemovedBy::Server, why)),
                None => {
                    let why = "it is in longshore's folder, where longshore mounts nothing";
                    let mut thing = self.thing("mount", shown(path), "", RemovedBy::Nobody, why);
                    thing.advice = format!("`umount {}`, if nobody needs it", shown(path));
                    things.push(thing);
                }
            }
        }
        things.extend(self.of_shims());
        things.extend(self.of_networks());
        things
    }

    fn of_shims(&self) -> Vec<Thing> {
        let mut things = Vec::new();
        for (pid, id) in &self.world.host.shims {
            let name = format!("{pid} (id {id})");
            match self.known.get(id.as_str()) {
                None if is_id(id) => {
                    let why = "its containerd has no record of it";
                    let mut thing = self.thing("shim", name, id, RemovedBy::Nobody, why);
                    thing.advice =
                        format!("look at its children first (`pstree -p {pid}`), then `kill {pid}`");
                    things.push(thing);
                }
                // It serves the containers of its pod, too.
                Some(record) if record.kind == Kind::Pod && !self.serves_a_task(id) => {
                    let why = "containerd has lost it: none of its pod's containers has a task";
                    things.push(self.thing("shim", name, id, RemovedBy::Server, why));
                }
                _ => {}
            }
        }
        things
    }

    fn serves_a_task(&self, pod: &str) -> bool {
        let is_of =
            |task: &String| task == pod || self.known.get(task.as_str()).is_some_and(|r| r.pod == pod);
        self.containerd.tasks.iter().any(is_of)
    }

    fn of_networks(&self) -> Vec<Thing> {
        let (place, host) = (&self.world.place, &self.world.host);
        let mut things = Vec::new();
        for path in host.pins.iter().filter(|path| !self.containerd.netns.contains(*path)) {
            let owner = host.attachments.iter().find(|attached| attached.netns == **path);
            let ours = place.has_own_netns_dir
                || owner.is_some_and(|attached| self.claimed.contains(attached.id.as_str()));
            let of = owner.map(|attached| format!(" (it was pod {}'s)", attached.id)).unwrap_or_default();
            let left =
                Left { kind: "network-namespace", name: shown(path), ours, removed_by: RemovedBy::Nobody };
            let why = format!("no pod of any namespace in this containerd has it{of}");
            let advice = format!("`umount {0} && rm {0}`", shown(path));
            things.push(Thing { left, why, advice });
        }
        for attached in &host.attachments {
            let id = attached.id.as_str();
            if self.is_known(id) || self.containerd.ids_elsewhere.contains(id) {
                continue;
            }
            let is_here = is_in(&attached.netns, &place.netns_dir);
            let ours = self.claimed.contains(id) || is_here && place.has_own_netns_dir;
            // Other programs have attachments in the same folder.
            if !ours && !(attached.is_pod && is_here && is_pin(&attached.netns)) {
                continue;
            }
            let removed_by = if place.collects_garbage && !host.pins.contains(&attached.netns) {
                RemovedBy::Server
            } else {
                RemovedBy::Nobody
            };
            let left = Left { kind: "cni-attachment", name: shown(&attached.file), ours, removed_by };
            let why = format!("pod {id} is gone; its addresses are not given back");
            let advice = "with cni.gc = true, and without the network namespace, the server's next start has the \
                          plugins give back what it holds";
            things.push(Thing { left, why, advice: advice.to_owned() });
        }
        things
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn is_in(path: &Path, folder: &Path) -> bool {
    path.parent() == Some(folder)
}

/// Whether a pin has the form that longshore and containerd's plugin give it: `cni-` and the
/// text form of a UUID.
fn is_pin(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(id) = name.strip_prefix("cni-") else { return false };
    let lengths: Vec<usize> = id.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && id.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit())
}
