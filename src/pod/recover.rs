//! What happens on a start: everything is known again (area REC).
//!
//! Records are the truth about what exists, containerd's tasks about what runs, status
//! files about the past. A pod whose making was cut off is rolled back; folders, leases,
//! snapshots and FIFOs that belong to nothing are removed. Nothing is removed unless the
//! lists were read completely.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, info, warn};

use super::Pods;
use super::settle::{Held, may_run};
use crate::container::{failed, remove_folder, user_of};
use crate::containerd::{ContainerRecord, Process, ProcessStatus};
use crate::error::Result;
use crate::events::Step;
use crate::flow::{Disk, on_disk};
use crate::ids::{ContainerId, is_id};
use crate::image::is_unfinished_remapping;
use crate::io::fifo::Fifos;
use crate::leftovers::{self, RemovedBy};
use crate::network::netns;
use crate::proto::cri::ContainerState;
use crate::spec::annotations::{KIND_CONTAINER, KIND_LABEL, KIND_SANDBOX};
use crate::state::container::{Status, UNKNOWN_CODE, now};
use crate::state::record::{self, CREATING_LABEL, LEASE_LABEL};
use crate::state::{Container, Pod, checkpoint, pod};
use crate::trace;

/// How long containerd may take to give up the calls of a server that was killed.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// A container from its record, and what is to be put right with it.
struct Loaded<'a> {
    container: Arc<Container>,
    /// The state by its status file, and by its task where that has got further.
    state: ContainerState,
    /// Only the task knows that it was started.
    is_news: bool,
    task: Option<&'a Process>,
    held: Held,
}

impl Pods {
    /// Loads everything, and gives the ids of all pods and containers that had a record.
    ///
    /// # Errors
    /// When containerd's lists could not be read; then nothing was changed.
    pub(super) async fn recover(&self) -> Result<HashSet<String>> {
        let containerd = &self.containers.containerd;
        let of_kind = |kind: &str| [format!("labels.\"{KIND_LABEL}\"=={kind}")];
        let (sandboxes, containers) = (
            containerd.list_containers(&of_kind(KIND_SANDBOX)).await?,
            containerd.list_containers(&of_kind(KIND_CONTAINER)).await?,
        );
        // Before a shim is asked for anything.
        let mut held = self.hold_execs(&containers).await;
        let tasks = self.known_tasks().await?;
        self.containers.images.load().await?;

        let mut cut_off = Vec::new();
        for record in &sandboxes {
            if let Some(pod) = self.load_pod(record, tasks.get(&record.id)).await
                && record.labels.get(CREATING_LABEL).is_some_and(|value| value == "true")
            {
                cut_off.push(pod);
            }
        }
        let mut loaded = Vec::new();
        for record in &containers {
            let held = held.remove(&record.id).unwrap_or_default();
            loaded.extend(self.load_container(record, tasks.get(&record.id), held).await);
        }
        // Once all are known: who is told of one's end sees the whole pod.
        for pod in self.containers.store.pods() {
            if tasks.get(pod.id.as_str()).is_some_and(|task| task.status == ProcessStatus::Unknown) {
                tokio::spawn(self.clone().settle_pod(pod));
            }
        }
        for loaded in loaded {
            self.settle(loaded).await;
        }
        self.containers.remove_failed().await;
        self.reserve_names();
        self.tell_what_was_missed();
        let known: HashSet<String> =
            sandboxes.iter().chain(&containers).map(|record| record.id.clone()).collect();
        // What is still held for a pod goes before what shows that it was longshore's.
        match self.held_for_unknown().await {
            Ok(held) => self.remove_orphans(&known.union(&held).cloned().collect()).await,
            Err(error) => warn!(%error, "what is left of pods is not known, and stays for now"),
        }
        self.roll_back(cut_off);
        let (pods, containers) =
            (self.containers.store.pods().len(), self.containers.store.containers().len());
        info!(pods, containers, "recovered");
        Ok(known)
    }

    /// Loads everything for who only looks: nothing is opened, put right or removed, and what
    /// another server is busy with is as it is at this moment.
    ///
    /// # Errors
    /// When containerd's lists could not be read.
    pub async fn load_for_looking(&self) -> Result<()> {
        let containerd = &self.containers.containerd;
        let of_kind = |kind: &str| [format!("labels.\"{KIND_LABEL}\"=={kind}")];
        let sandboxes = containerd.list_containers(&of_kind(KIND_SANDBOX)).await?;
        let containers = containerd.list_containers(&of_kind(KIND_CONTAINER)).await?;
        let tasks = self.known_tasks().await?;
        self.containers.images.load_for_looking().await?;
        for record in &sandboxes {
            self.read_pod(record, tasks.get(&record.id)).await;
        }
        for record in &containers {
            self.load_container(record, tasks.get(&record.id), Held::default()).await;
        }
        self.containers.learn_features().await;
        self.recovery.send_replace(super::Recovery::Done);
        Ok(())
    }

    /// Ids of no record for which a network, a task or a shim is there still: a later round
    /// removes all of theirs, in order.
    async fn held_for_unknown(&self) -> Result<HashSet<String>> {
        let parts = &self.containers;
        let world = leftovers::look(&parts.config, Some(&parts.containerd), leftovers::From::Within).await?;
        let things = world.things().into_iter().filter(|thing| {
            let is_held = matches!(thing.left.kind, "cni-attachment" | "network-namespace" | "task" | "shim");
            is_held && thing.left.removed_by == RemovedBy::Server && parts.store.pod(&thing.id).is_err()
        });
        Ok(things.map(|thing| thing.id).collect())
    }

    /// A pod from its record: READY exactly if pause runs (REC-04). One that was cut off is
    /// not, whatever of it runs: it has no network, and is about to be rolled back.
    pub(super) async fn load_pod(
        &self,
        record: &ContainerRecord,
        task: Option<&Process>,
    ) -> Option<Arc<Pod>> {
        let pod = self.read_pod(record, task).await?;
        if task.is_some_and(|task| !may_run(task)) {
            let (this, id) = (self.clone(), record.id.clone());
            tokio::spawn(async move {
                if let Err(error) = this.containers.discard_task(&id).await {
                    warn!(pod = id, %error, "the task of a stopped pause was not deleted");
                }
            });
        }
        Some(pod)
    }

    /// A pod as its record and task tell of it.
    async fn read_pod(&self, record: &ContainerRecord, task: Option<&Process>) -> Option<Arc<Pod>> {
        let metadata = match record::sandbox_metadata(record) {
            Ok(metadata) => metadata,
            Err(error) => {
                warn!(pod = record.id, %error, "a pod sandbox could not be loaded");
                return None;
            }
        };
        let running = task.filter(|task| may_run(task));
        // After a reboot, or a stop before the last end of the server (SBX-50).
        let network_gone = running.is_none() && !netns::is_alive(Path::new(&metadata.netns_path)).await;
        let is_cut_off = record.labels.get(CREATING_LABEL).is_some_and(|value| value == "true");
        let status = pod::Status {
            ready: running.is_some() && !is_cut_off,
            pid: running.map_or(0, |task| task.pid),
            network_gone,
            stopped: false,
        };
        let was_stopped = task.is_none() && network_gone;
        let pod = Arc::new(Pod::new(metadata, record.created_at, status));
        // Nobody has heard of one that was cut off.
        if !is_cut_off {
            pod.told.known(if was_stopped { Step::Stopped } else { Step::Started });
        }
        match record::updated_resources(record) {
            Ok(updated) => pod.set_updated_resources(updated),
            Err(error) => warn!(pod = record.id, %error, "the updated resources of a pod are not known"),
        }
        self.containers.store.add_pod(pod.clone());
        Some(pod)
    }

    /// A container from record, status file and task (REC-05 … REC-10).
    async fn load_container<'a>(
        &self,
        record: &ContainerRecord,
        task: Option<&'a Process>,
        held: Held,
    ) -> Option<Loaded<'a>> {
        let metadata = match record::container_metadata(record) {
            Ok(metadata) => metadata,
            Err(error) => {
                warn!(container = record.id, %error, "a container could not be loaded");
                return None;
            }
        };
        let id: ContainerId = metadata.id.clone().into();
        let dir = self.containers.paths.container_root(&id);
        if failed::is_marked(&dir) {
            self.containers.know_failed(id, record.snapshotter.clone());
            return None;
        }
        let folder = dir.clone();
        let stored = on_disk(Disk::Root, move || checkpoint::read(&folder)).await;
        let (mut status, extra) = match stored {
            Ok(mut file) => {
                let extra = std::mem::take(&mut file.extra);
                (Status::from(file), extra)
            }
            Err(error) => {
                warn!(container = record.id, %error, "the status of a container is not known");
                let status = Status {
                    unknown: true,
                    created_at: record.created_at,
                    exit_code: UNKNOWN_CODE,
                    ..Status::default()
                };
                (status, serde_json::Map::new())
            }
        };
        let known = match (status.state(), task) {
            (ContainerState::ContainerCreated, _) => Step::Created,
            // An end that is stored, but was not shown.
            (ContainerState::ContainerExited, None) => Step::Stopped,
            _ => Step::Started,
        };
        let is_news = status.state() == ContainerState::ContainerCreated && note_start(&mut status, task);
        let state = status.state();
        let container = Container::new(metadata, status, dir, user_of(&record.spec)).with_extra(extra);
        let container = Arc::new(container);
        container.told.known(known);
        self.containers.store.add_container(container.clone());
        Some(Loaded { container, state, is_news, task, held })
    }

    /// Puts right what the last server left: opens the output of what runs, records what has
    /// ended.
    async fn settle(&self, Loaded { container, state, is_news, task, held }: Loaded<'_>) {
        if is_news && let Err(error) = container.change(|_| Ok(())).await {
            warn!(container = %container.id, %error, "the start of a container could not be stored");
        }
        match (state, task) {
            (ContainerState::ContainerRunning, Some(task)) if task.status == ProcessStatus::Unknown => {
                tokio::spawn(self.clone().settle_container(container, held));
            }
            (ContainerState::ContainerCreated, Some(task)) if task.status == ProcessStatus::Unknown => {
                container.mark_unsettled(true);
                tokio::spawn(self.clone().settle_created(container, held));
            }
            (ContainerState::ContainerRunning, task) => self.take_up(container, task, held).await,
            (_, Some(task)) if task.status == ProcessStatus::Unknown => {
                warn!(container = %container.id, "the shim of a container that does not run does not answer");
            }
            (ContainerState::ContainerUnknown, Some(task)) => self.reopen_output(&container, task).await,
            (_, Some(_)) => self.discard_leftover(&container),
            (ContainerState::ContainerExited, None) => self.close_leftover(&container),
            (_, None) => {}
        }
    }

    /// Goes on with a container that was running, as its task is now.
    pub(super) async fn take_up(&self, container: Arc<Container>, task: Option<&Process>, held: Held) {
        let Some(task) = task else { return self.containers.lost(&container).await };
        self.reopen_output(&container, task).await;
        match may_run(task) {
            true => self.remove_execs(&container, held),
            false => self.containers.exited(container, task.exit),
        }
    }

    /// Starts and ends that the last server did not live to tell.
    fn tell_what_was_missed(&self) {
        for pod in self.containers.store.pods() {
            self.containers.tell_pod(&pod);
        }
        for container in self.containers.store.containers() {
            self.containers.tell(&container);
        }
    }

    /// A task that should not be: made but not started (REC-09), or already recorded as ended.
    /// The last server may have waited for the output of the latter when it ended.
    fn discard_leftover(&self, container: &Arc<Container>) {
        let (this, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            if container.state() == ContainerState::ContainerExited {
                this.containers.drain(&container).await;
            }
            // Somebody may be starting or removing it by now, who sees to its task.
            if let Err(error) = this.discard_idle_task(container.id.as_str()).await {
                warn!(container = %container.id, %error, "a left-over task was not deleted");
            }
        });
    }

    /// Output that the last server did not live to close once it had deleted the task.
    fn close_leftover(&self, container: &Arc<Container>) {
        let (this, container) = (self.containers.clone(), container.clone());
        tokio::spawn(async move {
            let fifos = this.paths.container_state(&container.id).join("io");
            let are_left = on_disk(Disk::Root, move || Ok(fifos.try_exists().unwrap_or(true))).await;
            if are_left.unwrap_or(true) {
                this.drain(&container).await;
                this.close_output(&container).await;
            }
        });
    }

    /// The output of a running container: its FIFOs are the task's (COX-09, REC-12).
    async fn reopen_output(&self, container: &Container, task: &Process) {
        let fifos = Fifos::from_task(&task.stdin, &task.stdout, &task.stderr);
        if let Err(error) =
            self.containers.keeper.add(self.containers.output_of(container, &fifos, true)).await
        {
            warn!(container = %container.id, %error, "the output of a running container could not be opened");
        }
    }

    /// Exec processes of the last server (REC-14): their FIFOs are the folders beside the
    /// task's own. Those of ExecSync have lost their caller and are killed; those of
    /// sessions are waited for.
    fn remove_execs(&self, container: &Arc<Container>, held: Held) {
        for (folder, fifos, ends) in held {
            let (this, container) = (self.clone(), container.clone());
            tokio::spawn(async move {
                for exec_id in fifos.keys() {
                    // It is answered when no start is under way any more. From then on the
                    // process must see the end of its input.
                    let _ = this.containers.containerd.process(container.id.as_str(), exec_id).await;
                }
                drop(ends);
                this.remove_exec_folder(&container, &folder, fifos).await;
            });
        }
    }

    async fn remove_exec_folder(
        &self,
        container: &Arc<Container>,
        folder: &Path,
        execs: HashMap<String, Fifos>,
    ) {
        let mut are_gone = true;
        for (exec_id, fifos) in execs {
            self.containers.outlast_session(container, &exec_id, &fifos).await;
            are_gone &= self.containers.end_exec(container, &exec_id, &fifos).await;
        }
        if are_gone && let Err(error) = remove_folder(folder).await {
            warn!(container = %container.id, %error, "the FIFOs of an exec were not removed");
        }
    }

    /// Names again, live objects first: of two with one name the newer live one has it,
    /// and the other can still be removed (NAM-07).
    fn reserve_names(&self) {
        let store = &self.containers.store;
        let mut pods = store.pods();
        pods.sort_by_key(|pod| (!pod.status().ready, std::cmp::Reverse(pod.created_at)));
        for pod in pods {
            if let Err(error) = store.reserve(&pod.name, pod.id.as_str()) {
                warn!(pod = %pod.id, %error, "two pod sandboxes have one name");
            }
        }
        let mut containers = store.containers();
        containers.sort_by_key(|container| {
            let runs = container.state() == ContainerState::ContainerRunning;
            (!runs, std::cmp::Reverse(container.status().created_at))
        });
        for container in containers {
            if let Err(error) = store.reserve(&container.metadata.name, container.id.as_str()) {
                warn!(container = %container.id, %error, "two containers have one name");
            }
        }
    }

    /// Removes pods whose making was cut off, in the background: CNI may take its time.
    /// One that cannot be removed stays listed as NOTREADY.
    fn roll_back(&self, cut_off: Vec<Arc<Pod>>) {
        for pod in cut_off {
            let this = self.clone();
            tokio::spawn(async move {
                info!(pod = %pod.id, name = pod.name, "rolling back a pod sandbox that was cut off");
                let worker = this.clone();
                let id = pod.id.clone();
                let removed = async move {
                    worker.stop(pod.id.as_str()).await?;
                    // containerd may still be giving up what the killed server had asked of
                    // it; until that is over the record must stay.
                    tokio::time::sleep(SETTLE_PAUSE).await;
                    worker.remove(pod.id.as_str()).await
                };
                let span = trace::background("roll back", id.as_str());
                if let Err(error) = removed.instrument(span).await {
                    warn!(pod = %id, %error, "a cut-off pod sandbox could not be rolled back");
                }
            });
        }
    }

    /// What belongs to no record (REC-15).
    async fn remove_orphans(&self, known: &HashSet<String>) {
        let orphans = async |base: PathBuf| {
            let mut names = on_disk(Disk::Root, move || Ok(names_in(&base))).await.unwrap_or_default();
            names.retain(|name| is_id(name) && !known.contains(name));
            names
        };
        for name in orphans(self.containers.paths.image_volumes()).await {
            info!(pod = name, "taking down image volumes of nothing known");
            if let Err(error) = self.containers.remove_image_volumes(&name.into()).await {
                warn!(%error, "image volumes of nothing known could not be taken down");
            }
        }
        for base in self.containers.paths.all() {
            for name in orphans(base.clone()).await {
                info!(folder = ?base.join(&name), "removing a folder of nothing known");
                if let Err(error) = remove_folder(&base.join(&name)).await {
                    warn!(%error, "a folder of nothing known could not be removed");
                }
            }
        }
        match self.containers.keeper.list().await {
            Ok(kept) => {
                for io in kept.into_iter().filter(|io| !known.contains(&io.id)) {
                    if let Err(error) = self.containers.keeper.remove(&io.id).await {
                        warn!(container = io.id, %error, "output of nothing known could not be closed");
                    }
                }
            }
            Err(error) => warn!(%error, "the keeper's list could not be read"),
        }
        if let Err(error) = self.mend_leases(known).await {
            warn!(%error, "leases could not be mended");
        }
    }

    /// Leases of pods that are gone go; pods without a lease get one; snapshots under a
    /// pod's lease whose container was never recorded go, and those of image volumes that
    /// are not mounted any more.
    async fn mend_leases(&self, known: &HashSet<String>) -> Result<()> {
        let containerd = &self.containers.containerd;
        let leases = containerd.list_leases().await?;
        for lease in &leases {
            if lease.labels.contains_key(LEASE_LABEL) && !known.contains(&lease.id) {
                containerd.delete_lease(&lease.id, false).await?;
            }
        }
        for pod in self.containers.store.pods() {
            let id = pod.id.as_str();
            if !leases.iter().any(|lease| lease.id == id) {
                let labels = HashMap::from([(LEASE_LABEL.to_owned(), pod.name.clone())]);
                containerd.create_lease(id, labels).await?;
                continue;
            }
            let leased = containerd.leased_snapshots(id).await?;
            for (snapshotter, key) in &leased {
                if is_id(key) && !known.contains(key) || is_unfinished_remapping(key) {
                    info!(snapshot = key, "removing the snapshot of a container that was never recorded");
                    containerd.remove_snapshot(snapshotter, key).await?;
                }
            }
            self.containers.remove_unmounted_image_volumes(&pod.id, &leased).await?;
        }
        Ok(())
    }
}

pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Notes that a container was started, if its task says so: the server ended between the start
/// and its record (REC-08). Of a process that has ended the start is not known: it is given the
/// time of its end.
pub(super) fn note_start(status: &mut Status, task: Option<&Process>) -> bool {
    let Some(task) = task else { return false };
    match task.status {
        ProcessStatus::Unknown | ProcessStatus::Created => return false,
        ProcessStatus::Stopped => {
            status.started_at = if task.exit.at > 0 { task.exit.at } else { now() };
        }
        _ => {
            status.pid = task.pid;
            status.started_at = started_at(task.pid);
        }
    }
    true
}

/// When a process started, as its /proc entry has it; now if it is gone.
fn started_at(pid: u32) -> i64 {
    std::fs::metadata(format!("/proc/{pid}"))
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or_else(now)
}
