//! What the server says, held against what the workers know, containerd, the kernel, and CNI.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1::ListTasksRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::types::v1::Status as TaskStatus;
use longshore::proto::cri::{ContainerEventType, ContainerState, GetEventsRequest};
use tonic::Request;

use super::Stage;
use super::figures::{Op, descriptors};
use super::model::cgroup_folders;
use super::work::Worker;
use crate::harness::{Node, patient, procfs, stored};

/// How long what ends by itself may differ.
const LIMIT: Duration = Duration::from_secs(60);

/// Compares, while nobody works.
pub(super) async fn run(stage: &Stage, workers: &[Worker]) {
    let end = Instant::now() + patient(LIMIT);
    loop {
        let differences = compare(stage, workers).await;
        if differences.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "what is told and what is differ:\n  {}", differences.join("\n  "));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.figures.done(Op::Audit);
}

/// Sets that must be the same.
fn differ(found: &mut Vec<String>, what: &str, is: &BTreeSet<String>, wanted: &BTreeSet<String>) {
    found.extend(is.difference(wanted).map(|one| format!("{what}: {one} should not be there")));
    found.extend(wanted.difference(is).map(|one| format!("{what}: {one} is missing")));
}

/// What differs; nothing is done to any pod meanwhile.
async fn compare(stage: &Stage, workers: &[Worker]) -> Vec<String> {
    let node = &stage.node;
    let mut found = Vec::new();
    let (mut pods, mut containers, mut networked) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for worker in workers {
        for pod in worker.slots.iter().filter_map(|slot| slot.pod.as_ref()) {
            let uid = pod.pod.config.metadata.clone().unwrap_or_default().uid;
            pods.insert(pod.pod.id.clone(), uid.clone());
            if !pod.wanted.host_network {
                networked.insert(pod.pod.id.clone());
            }
            for known in pod.containers.iter().flatten() {
                containers.insert(known.container.id.clone(), uid.clone());
            }
        }
    }
    stage.figures.pods(pods.len());

    let listed = node.pods().await.expect("pods");
    let ids = listed.iter().map(|pod| pod.id.clone()).collect();
    differ(&mut found, "pods", &ids, &pods.keys().cloned().collect());
    let not_ready = listed.iter().filter(|pod| pod.state != 0);
    found.extend(not_ready.map(|pod| format!("pod {} is not ready", pod.id)));

    let listed = node.containers().await.expect("containers");
    let ids = listed.iter().map(|container| container.id.clone()).collect();
    differ(&mut found, "containers", &ids, &containers.keys().cloned().collect());

    // What runs: by the server, by containerd, by the kernel.
    let roots = node.place().cgroup_folders();
    let has_process = |uid: &str, id: &str| {
        cgroup_folders(&roots, uid, id).iter().any(|folder| {
            std::fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
        })
    };
    let all = pods.iter().chain(&containers);
    let alive = all.filter(|(id, uid)| has_process(uid, id)).map(|(id, _)| id.clone()).collect();
    let running = listed.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
    let running: BTreeSet<String> = running.map(|one| one.id.clone()).chain(pods.keys().cloned()).collect();
    differ(&mut found, "processes", &alive, &running);
    let mut request = Request::new(ListTasksRequest::default());
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a namespace"));
    let tasks = TasksClient::new(node.containerd().channel()).list(request).await;
    let tasks = tasks.expect("tasks are listed").into_inner().tasks;
    let tasks = tasks.iter().filter(|task| task.status() == TaskStatus::Running);
    differ(&mut found, "tasks that run", &tasks.map(|task| task.id.clone()).collect(), &running);

    // What pods have: each one of everything.
    let mut numbers = |what: &str, is: usize, wanted: usize| {
        if is != wanted {
            found.push(format!("{is} {what}, not {wanted}"));
        }
    };
    let place = node.place();
    let shims = place.processes().into_iter().filter(|one| one.program().starts_with("containerd-shim"));
    numbers("shims", shims.count(), pods.len());
    numbers("network namespaces", procfs::names(&node.longshore().netns_dir()).len(), networked.len());
    let ports = Path::new("/sys/class/net").join(place.bridge()).join("brif");
    numbers("interfaces", procfs::names(&ports).len(), networked.len());
    let owners = address_owners(&place.path("cni/ipam"));
    numbers("addresses", owners.len(), networked.len());
    let uids = stage.uids.lock().expect("no panic").clone();
    let named =
        |id: &String| format!("{} ({id})", uids.get(id).map_or("a pod that nobody got", String::as_str));
    let owners = owners.iter().map(named).collect();
    differ(&mut found, "addresses", &owners, &networked.iter().map(named).collect());
    let (root, state) = node.longshore().folders();
    let names = |folder: &Path, kind: &str| -> BTreeSet<String> {
        procfs::names(&folder.join(kind)).into_iter().collect()
    };
    let (pods, containers) = (pods.into_keys().collect(), containers.into_keys().collect());
    differ(&mut found, "folders of pods", &names(&root, "sandboxes"), &pods);
    differ(&mut found, "folders of containers", &names(&root, "containers"), &containers);
    let volatile = names(&state, "sandboxes");
    found.extend(volatile.difference(&pods).map(|id| format!("the volatile folder of {id} is left")));
    let volatile = names(&state, "containers");
    found.extend(volatile.difference(&containers).map(|id| format!("the volatile folder of {id} is left")));
    found
}

/// The pod of each address that is given away.
fn address_owners(ipam: &Path) -> Vec<String> {
    let networks = procfs::names(ipam).into_iter().map(|network| ipam.join(network));
    let files = networks.flat_map(|folder| {
        let addresses = procfs::names(&folder).into_iter();
        addresses.filter(|name| name.parse::<IpAddr>().is_ok()).map(move |name| folder.join(name))
    });
    // Who has it stands in the first line.
    files
        .map(|file| std::fs::read_to_string(file).unwrap_or_default())
        .map(|text| text.lines().next().unwrap_or_default().to_owned())
        .collect()
}

/// What is there besides pods, before and after.
pub(super) struct Kept {
    files: BTreeSet<PathBuf>,
    stored: BTreeSet<String>,
    server_descriptors: usize,
    keeper_descriptors: usize,
}

/// Descriptors may differ by what connections happen to be open.
const DESCRIPTORS: usize = 12;

impl Kept {
    pub(super) async fn of(node: &Node) -> Kept {
        let (root, state) = node.longshore().folders();
        let mut files = BTreeSet::new();
        for folder in [root, state] {
            files.extend(procfs::folders_below(&folder));
            let folders = procfs::folders_below(&folder).into_iter().chain([folder]);
            files
                .extend(folders.flat_map(|folder| {
                    procfs::names(&folder).into_iter().map(move |name| folder.join(name))
                }));
        }
        Kept {
            files,
            stored: stored(node.containerd()).await,
            server_descriptors: descriptors(node.longshore().pid()).unwrap_or(0),
            keeper_descriptors: node.longshore().find_keeper().and_then(descriptors).unwrap_or(0),
        }
    }

    /// Nothing may have been added, by the end.
    pub(super) async fn assert_same(&self, node: &Node) {
        for image in node.list_images().await.expect("images") {
            if image.repo_tags.iter().any(|tag| tag.contains("/soak-")) {
                node.remove_image(&image.id).await.expect("removed");
            }
        }
        let end = Instant::now() + patient(LIMIT);
        loop {
            let now = Kept::of(node).await;
            let mut more: Vec<String> =
                now.files.difference(&self.files).map(|path| format!("file {}", path.display())).collect();
            more.extend(now.stored.difference(&self.stored).cloned());
            for (whose, is, was) in [
                ("server", now.server_descriptors, self.server_descriptors),
                ("keeper", now.keeper_descriptors, self.keeper_descriptors),
            ] {
                if is > was + DESCRIPTORS {
                    more.push(format!("{is} descriptors of the {whose}, not {was}"));
                }
            }
            if more.is_empty() {
                println!(
                    "=== left: nothing; descriptors of the server {} (before: {}), of the keeper {} ({})",
                    now.server_descriptors,
                    self.server_descriptors,
                    now.keeper_descriptors,
                    self.keeper_descriptors
                );
                return;
            }
            assert!(Instant::now() < end, "left behind:\n  {}", more.join("\n  "));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// With all pods removed every one that events told of is told to be deleted.
pub(super) async fn assert_told_to_the_end(stage: &Stage) {
    let end = Instant::now() + patient(LIMIT);
    loop {
        let told = stage.told.lock().expect("no panic").clone();
        let open = told.iter().filter(|(_, kind)| **kind != ContainerEventType::ContainerDeletedEvent);
        let open: Vec<_> = open.collect();
        if open.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "nobody told of their end: {open:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Subscribes to events as long as there is a server; in each of its lives, each is told
/// once and in order.
pub(super) async fn watch_events(stage: Arc<Stage>) {
    loop {
        let stream = stage.node.runtime().get_container_events(GetEventsRequest {}).await;
        let Ok(mut stream) = stream.map(tonic::Response::into_inner) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        stage.told.lock().expect("no panic").clear();
        loop {
            match stream.message().await {
                Ok(Some(event)) => {
                    let (id, kind) = (event.container_id.clone(), event.container_event_type());
                    let last = stage.told.lock().expect("no panic").insert(id, kind);
                    assert!(last.is_none_or(|last| last < kind), "{kind:?} after {last:?}: {event:?}");
                    stage.figures.note(&format!("events {kind:?}"));
                    if kind == ContainerEventType::ContainerDeletedEvent {
                        let gone = !event.containers_statuses.iter().any(|one| one.id == event.container_id);
                        assert!(gone, "deleted, and shown: {event:?}");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    assert_ne!(error.code(), tonic::Code::ResourceExhausted, "{error:?}");
                    break;
                }
            }
        }
    }
}
