//! What a server must not leave behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, ListContainersRequest, ListContentRequest, ListRequest,
    ListStatusesRequest, ListTasksRequest,
};
use tonic::Request;

use super::containerd::Containerd;
use super::place::Place;
use super::{PAUSE, patient, procfs};

/// How long what was removed may take to vanish: shims end, and interfaces go, a little
/// later than the calls.
const LIMIT: Duration = Duration::from_secs(15);

/// Fails with everything that `look` still finds after a while.
pub(crate) async fn assert_none(when: &str, mut look: impl AsyncFnMut() -> Vec<String>) {
    let end = Instant::now() + patient(LIMIT);
    loop {
        let found = look().await;
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind {when}:\n  {}", found.join("\n  "));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where a server leaves its traces.
pub(crate) struct Traces<'a> {
    pub(crate) place: &'a Place,
    /// Its root and state.
    pub(crate) folders: (PathBuf, PathBuf),
    pub(crate) netns: PathBuf,
    pub(crate) cni_cache: PathBuf,
}

impl Traces<'_> {
    /// What a pod leaves on the machine, looked for while the server runs.
    pub(crate) fn on_the_machine(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut all = |what: &str, names: Vec<String>| {
            found.extend(names.into_iter().map(|name| format!("{what} {name}")));
        };
        all("namespace pin", procfs::names(&self.netns));
        let ports = Path::new("/sys/class/net").join(self.place.bridge()).join("brif");
        all("interface", procfs::names(&ports));
        all("address", self.leases());
        let results = self.place.cni_results(&self.cni_cache.join("results")).into_iter();
        all("CNI cache", results.map(|file| file.display().to_string()).collect());
        all("shim", self.shims());
        all("mount", self.mounts());
        all("cgroup", self.cgroups());
        all("runc state", procfs::names(&self.place.path("runc/k8s.io")));
        let (root, state) = &self.folders;
        for folder in [root, state] {
            for kind in ["sandboxes", "containers", "image-volumes"] {
                let names = procfs::names(&folder.join(kind));
                all(&format!("folder {}/{kind}", folder.display()), names);
            }
        }
        found
    }

    /// What is there without the server: of a keeper, too.
    pub(crate) fn of_the_server(&self) -> Vec<String> {
        let mut found = self.on_the_machine();
        let servers = self.place.processes().into_iter().filter(|process| process.program() == "longshore");
        found.extend(servers.map(|process| format!("process {} {:?}", process.pid, process.arguments)));
        let sockets = procfs::names(&self.folders.1).into_iter().filter(|name| name.ends_with(".sock"));
        found.extend(sockets.map(|name| format!("socket {name}")));
        found
    }

    /// What is there at the very end.
    pub(crate) fn at_the_end(&self) -> Vec<String> {
        let mut found = self.of_the_server();
        let processes = self.place.processes().into_iter();
        found.extend(processes.map(|process| format!("process {} {:?}", process.pid, process.arguments)));
        found
    }

    /// Addresses of host-local.
    fn leases(&self) -> Vec<String> {
        let networks = procfs::names(&self.place.path("cni/ipam"));
        let leases =
            networks.iter().flat_map(|network| procfs::names(&self.place.path("cni/ipam").join(network)));
        leases.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    fn shims(&self) -> Vec<String> {
        let shims = self.place.processes().into_iter();
        let shims = shims.filter(|process| process.program().starts_with("containerd-shim"));
        shims.map(|shim| format!("{} {:?}", shim.pid, shim.arguments)).collect()
    }

    /// Mounts in the place, save those that are there for all pods, and disks of the test.
    fn mounts(&self) -> Vec<String> {
        let mounts = procfs::mounts_below(self.place.folder()).into_iter();
        let disk = self.place.path("disk");
        mounts
            .filter(|point| *point != self.netns && *point != disk)
            .map(|point| point.display().to_string())
            .collect()
    }

    /// Cgroups of containers: the pods' own are the kubelet's to remove, here the place's.
    fn cgroups(&self) -> Vec<String> {
        let roots = self.place.cgroup_folders().into_iter();
        let inner = roots.flat_map(|root| {
            let mut folders = procfs::folders_below(&root);
            folders
                .retain(|folder| folder.strip_prefix(&root).is_ok_and(|rest| rest.components().count() > 1));
            folders
        });
        inner.map(|folder| folder.display().to_string()).collect()
    }
}

/// What containerd still has in the CRI's namespace: everything but images.
pub(crate) async fn in_containerd(containerd: &Containerd) -> Vec<String> {
    let mut found = Vec::new();
    let channel = containerd.channel();
    let mut client = ContainersClient::new(channel.clone());
    let containers = client.list(in_namespace(ListContainersRequest::default())).await;
    let containers = containers.expect("containers are listed").into_inner().containers;
    found.extend(containers.into_iter().map(|container| format!("container {}", container.id)));
    let mut client = TasksClient::new(channel.clone());
    let tasks = client.list(in_namespace(ListTasksRequest::default())).await;
    let tasks = tasks.expect("tasks are listed").into_inner().tasks;
    found.extend(tasks.into_iter().map(|task| format!("task {}", task.id)));
    let mut client = LeasesClient::new(channel.clone());
    let leases = client.list(in_namespace(ListRequest::default())).await;
    let leases = leases.expect("leases are listed").into_inner().leases;
    found.extend(leases.into_iter().map(|lease| format!("lease {}", lease.id)));
    for snapshotter in ["overlayfs", "native"] {
        let request = ListSnapshotsRequest { snapshotter: snapshotter.into(), ..Default::default() };
        let snapshots = SnapshotsClient::new(channel.clone()).list(in_namespace(request)).await;
        let mut snapshots = snapshots.expect("snapshots are listed").into_inner();
        while let Some(message) = snapshots.message().await.expect("snapshots are listed") {
            let open = message.info.into_iter().filter(|snapshot| snapshot.kind != Kind::Committed as i32);
            found.extend(open.map(|snapshot| format!("snapshot {}", snapshot.name)));
        }
    }
    found
}

/// Everything of images in containerd, after a collection.
pub(crate) async fn stored(containerd: &Containerd) -> BTreeSet<String> {
    let channel = containerd.channel();
    let mut leases = LeasesClient::new(channel.clone());
    let id = "collect".to_owned();
    let made = leases.create(in_namespace(CreateRequest { id: id.clone(), ..Default::default() })).await;
    made.expect("a lease");
    let collected = leases.delete(in_namespace(DeleteRequest { id, sync: true })).await;
    collected.expect("a collection");

    let mut found = BTreeSet::new();
    let list = leases.list(in_namespace(ListRequest::default())).await.expect("leases").into_inner();
    found.extend(list.leases.into_iter().map(|lease| format!("lease {}", lease.id)));
    let mut content = ContentClient::new(channel.clone());
    let list = content.list_statuses(in_namespace(ListStatusesRequest::default())).await;
    let list = list.expect("ingests").into_inner().statuses;
    found.extend(list.into_iter().map(|status| format!("ingest {}", status.r#ref)));
    let list = content.list(in_namespace(ListContentRequest::default())).await;
    let mut list = list.expect("content").into_inner();
    while let Some(message) = list.message().await.expect("content") {
        found.extend(message.info.into_iter().map(|info| format!("content {}", info.digest)));
    }
    let request = ListSnapshotsRequest { snapshotter: "overlayfs".into(), ..Default::default() };
    let mut list =
        SnapshotsClient::new(channel).list(in_namespace(request)).await.expect("snapshots").into_inner();
    while let Some(message) = list.message().await.expect("snapshots") {
        found.extend(message.info.into_iter().map(|info| format!("snapshot {}", info.name)));
    }
    found
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a namespace"));
    request
}
