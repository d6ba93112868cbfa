//! From things to records: what has none, why it counts as left, and who removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{InContainerd, Kind, Left, Record, RemovedBy, Thing, World, is_pin};
use crate::ids::is_id;

/// The comparison.
pub(super) struct Look<'a> {
    pub(super) world: &'a World,
    pub(super) containerd: &'a InContainerd,
    /// The records of the namespace, by id.
    pub(super) known: BTreeMap<&'a str, &'a Record>,
    /// Ids of which something shows that they are longshore's.
    pub(super) claimed: BTreeSet<&'a str>,
}

impl Look<'_> {
    fn thing(&self, kind: &'static str, name: String, id: &str, removed_by: RemovedBy, why: &str) -> Thing {
        let ours = self.claimed.contains(id);
        let left = Left { kind, name, ours, removed_by };
        Thing { left, id: id.to_owned(), snapshotter: None, why: why.to_owned(), advice: String::new() }
    }

    /// Who removes what a start does not: a server that reconciles, where it is its own.
    fn remover(&self, ours: bool) -> RemovedBy {
        if ours && self.world.place.reconciles { RemovedBy::Server } else { RemovedBy::Nobody }
    }

    fn is_known(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// Pods and containers that are not whole.
    pub(super) fn of_records(&self) -> Vec<Thing> {
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
    pub(super) fn of_containerd(&self) -> Vec<Thing> {
        let namespace = &self.world.place.namespace;
        let mut things = Vec::new();
        for id in self.containerd.tasks.keys().filter(|id| is_id(id) && !self.is_known(id)) {
            let why = "its processes may run, and there is no record of it";
            let removed_by = self.remover(self.claimed.contains(id.as_str()));
            let mut thing = self.thing("task", id.clone(), id, removed_by, why);
            thing.advice = format!("`ctr -n {namespace} tasks rm -f {id}`");
            things.push(thing);
        }
        for id in self.containerd.pod_leases.iter().filter(|id| !self.is_known(id)) {
            let why = "its pod is gone; what it holds is never collected";
            things.push(self.thing("lease", id.clone(), id, RemovedBy::Server, why));
        }
        // What a server that runs is busy with is not left, and only it knows what that is.
        if self.world.server_runs && !self.world.is_within {
            return things;
        }
        for (lease, snapshotter, key) in &self.containerd.snapshots {
            if self.is_known(lease) && !self.is_known(key) {
                let why = format!("in {snapshotter}, of a container of pod {lease} that was never recorded");
                let mut thing = self.thing("snapshot", key.clone(), lease, RemovedBy::Server, &why);
                thing.id.clone_from(key);
                thing.snapshotter = Some(snapshotter.clone());
                things.push(thing);
            }
        }
        // Of these it takes care itself.
        if self.world.is_within {
            return things;
        }
        for id in &self.containerd.image_leases {
            let why = "of a pull that was cut off; it ends by itself after a day";
            let mut thing = self.thing("lease", id.clone(), "", RemovedBy::Server, why);
            thing.left.ours = true;
            things.push(thing);
        }
        things
    }

    /// Folders, FIFOs, and what the keeper has.
    pub(super) fn of_folders(&self) -> Vec<Thing> {
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
            let has_task = self.containerd.tasks.contains_key(container);
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
    pub(super) fn of_kernel(&self) -> Vec<Thing> {
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
                    let removed_by = self.remover(self.claimed.contains(id.as_str()));
                    let mut thing = self.thing("shim", name, id, removed_by, why);
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
        self.containerd.tasks.keys().any(is_of)
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
                Left { kind: "network-namespace", name: shown(path), ours, removed_by: self.remover(ours) };
            let id = owner.map(|attached| attached.id.clone()).unwrap_or_default();
            let why = format!("no pod of any namespace in this containerd has it{of}");
            let advice = format!("`umount {0} && rm {0}`", shown(path));
            things.push(Thing { left, id, snapshotter: None, why, advice });
        }
        for attached in &host.attachments {
            let id = attached.id.as_str();
            if self.is_known(id) || self.containerd.ids_elsewhere.contains(id) {
                continue;
            }
            let is_here = is_in(&attached.netns, &place.netns_dir);
            let ours = self.claimed.contains(id) || is_here && place.has_own_netns_dir;
            // Other programs have attachments in the same folder.
            let is_like_ours = attached.is_pod && is_here && is_pin(&attached.netns);
            if !ours && !is_like_ours {
                continue;
            }
            let removed_by = if place.collects_garbage && !host.pins.contains(&attached.netns) {
                RemovedBy::Server
            } else {
                self.remover(ours)
            };
            let left = Left { kind: "cni-attachment", name: shown(&attached.file), ours, removed_by };
            let why = format!("pod {id} is gone; its addresses are not given back");
            let advice = "with cni.gc = true, and without the network namespace, the server's next start has the \
                          plugins give back what it holds";
            things.push(Thing { left, id: id.to_owned(), snapshotter: None, why, advice: advice.to_owned() });
        }
        things
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn is_in(path: &Path, folder: &Path) -> bool {
    path.parent() == Some(folder)
}
