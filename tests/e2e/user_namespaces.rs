//! User namespaces: what longshore shows beside [`super::core`]: which handlers have them,
//! what becomes of pins and snapshots, restarts.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Info, Kind, ListSnapshotsRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use containerd_client::types::v1::Status;

use longshore::proto::cri::{IdMapping, Mount, MountPropagation, NamespaceMode};
use longshore::sys::netns;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use tonic::{Code, Request};

use crate::harness::images::{Image, Layer};
use crate::harness::{Node, Pod, Server, id_mappings, wait_until};

const UID: u32 = 1_000_000;
const GID: u32 = 2_000_000;

/// A snapshotter without id-mapped mounts, in every containerd.
const NATIVE: &str = "[runtime.handlers.native]\nsnapshotter = \"native\"\n[runtime.handlers.native.options]\nRoot = \"{folder}/runc\"\n";

async fn node() -> Node {
    Node::with(Server::Longshore).id_mapping_runc().config(NATIVE).start().await
}

fn user_pin(node: &Node, pod: &Pod) -> PathBuf {
    node.longshore().folders().1.join("sandboxes").join(&pod.id).join("pinned-namespaces/user")
}

async fn snapshots(node: &Node, snapshotter: &str) -> Vec<Info> {
    let request =
        in_namespace(ListSnapshotsRequest { snapshotter: snapshotter.into(), ..Default::default() });
    let mut list = Vec::new();
    let answer = SnapshotsClient::new(node.containerd().channel()).list(request).await;
    let mut stream = answer.expect("snapshots are listed").into_inner();
    while let Some(message) = stream.message().await.expect("snapshots are listed") {
        list.extend(message.info);
    }
    list
}

/// Lets containerd's collector run to its end.
async fn collect(node: &Node) {
    let mut leases = LeasesClient::new(node.containerd().channel());
    let id = "collect".to_owned();
    let create = CreateRequest { id: id.clone(), ..Default::default() };
    leases.create(in_namespace(create)).await.expect("a lease");
    leases.delete(in_namespace(DeleteRequest { id, sync: true })).await.expect("collected");
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a namespace"));
    request
}

/// SBX-28, OCI-31: what is mounted on the host's `/sys` in a container stays there, also
/// where the container's mounts are shared.
#[tokio::test]
async fn the_hosts_sys_has_the_cgroups_on_it_where_mounts_are_shared() {
    let node = node().await;
    let shared = node.place().path("shared");
    std::fs::create_dir(&shared).expect("a folder");
    mount("tmpfs", &shared, "tmpfs", MountFlags::empty(), None).expect("a mount");
    mount_change(&shared, MountPropagationFlags::SHARED).expect("a shared mount");
    let pod = node.pod("a").user_namespace(UID, GID).host_network().run().await.expect("a pod");
    let asked = Mount {
        host_path: shared.display().to_string(),
        container_path: "/shared".into(),
        propagation: MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    };
    let container = pod.container("c").mount_as(asked).forever().run().await.expect("a container");
    let on = "grep -c ' /sys/fs/cgroup ' /proc/self/mountinfo";
    assert_ne!(container.sh(on).await, "0");
    container.sh("ls /sys/class/net/lo/mtu").await;
    node.remove_all().await;
    unmount(&shared, UnmountFlags::DETACH).expect("unmounted");
    node.finish().await;
}

/// SVC-18, SBX-25: nothing is made for a pod that the runtime could not start, or start
/// without what keeps owners apart.
#[tokio::test]
async fn a_handler_without_the_feature_has_no_user_namespaces() {
    // A runc that does not tell of id-mapped mounts, as before 1.2.
    let old = "[runtime.handlers.old]\n[runtime.handlers.old.options]\nRoot = \"{folder}/runc\"\nBinaryName = \"{folder}/old\"\n";
    let node = Node::with(Server::Longshore).id_mapping_runc().config(old).start().await;
    let script = "#!/bin/sh\n[ \"$1\" != features ] || exec echo '{\"mountOptions\":[\"rro\"],\"linux\":{\"namespaces\":[\"user\"]}}'\nexec runc \"$@\"\n";
    let file = node.place().path("old");
    std::fs::write(&file, script).expect("a script");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("a mode");
    node.longshore().terminate().await;
    node.longshore().start().await;

    let status = node.status(false).await.expect("a status");
    let known: Vec<(String, bool)> = status
        .runtime_handlers
        .into_iter()
        .map(|handler| (handler.name, handler.features.unwrap_or_default().user_namespaces))
        .collect();
    assert_eq!(known, [(String::new(), true), ("old".into(), false), ("runc".into(), true)]);
    assert!(status.features.unwrap_or_default().user_namespaces_host_network);

    let error = node.pod("a").handler("old").user_namespace(UID, GID).run().await.expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("\"old\" has no user namespaces with id-mapped mounts"), "{error:?}");
    for (pid, ipc) in [(NamespaceMode::Node, NamespaceMode::Pod), (NamespaceMode::Pod, NamespaceMode::Node)] {
        let pod = node.pod("a").user_namespace(UID, GID).security(|context| {
            let options = context.namespace_options.as_mut().expect("options");
            (options.pid, options.ipc) = (pid as i32, ipc as i32);
        });
        let error = pod.run().await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    assert_eq!(node.leftovers().await, [""; 0]);

    let pod = node.pod("plain").handler("old").run().await.expect("a pod");
    let (uid_mappings, gid_mappings) = id_mappings(UID, GID);
    let host_path = node.place().folder().display().to_string();
    let mount =
        Mount { host_path, container_path: "/m".into(), uid_mappings, gid_mappings, ..Default::default() };
    let error = pod.container("c").mount_as(mount).create().await.expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("no id-mapped mounts"), "{error:?}");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-26, REC-04, REC-12: pods go on, new containers join the same namespaces, and a stop
/// takes the pins away.
#[tokio::test]
async fn a_pod_with_a_user_namespace_survives_a_kill_and_leaves_nothing() {
    let node = node().await;
    let pod = node.pod("a").user_namespace(UID, GID).run().await.expect("a pod");
    let first = pod.container("first").forever().run().await.expect("a container");
    let pin = user_pin(&node, &pod);
    assert!(netns::is_alive(&pin));
    node.longshore().kill().await;
    node.longshore().start().await;
    let second = pod.container("second").forever().run().await.expect("a container");
    for kind in ["user", "net", "ipc"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(first.sh(&link).await, second.sh(&link).await, "{kind}");
    }
    let status = pod.status().await.expect("a status");
    let options = status.linux.unwrap_or_default().namespaces.unwrap_or_default().options.unwrap_or_default();
    let asked = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = asked.and_then(|context| context.namespace_options.as_ref()).expect("options");
    assert_eq!(options.userns_options, asked.userns_options, "SBX-52");
    pod.stop().await.expect("stopped");
    assert!(!netns::is_alive(&pin));
    node.remove_all().await;
    node.finish().await;
}

/// REC-16, D5: neither namespaces nor snapshots are left of a pod that was cut off.
#[tokio::test]
async fn a_pod_with_a_user_namespace_that_was_cut_off_is_rolled_back() {
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {folder}/reached\n\
                  until [ -e {folder}/gone-on ]; do sleep 0.05; done\ncat >/dev/null\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"{network}.99/24\"}]}'\n";
    let mut list = crate::harness::cni::bridge();
    list["plugins"].as_array_mut().expect("a list").push(serde_json::json!({ "type": "gate" }));
    let node = Node::with(Server::Longshore).id_mapping_runc().cni(list).plugin("gate", script);
    let node = node.config(NATIVE).start().await;
    let builder = node.pod("a").handler("native").user_namespace(UID, GID);
    let running = {
        let builder = builder.clone();
        tokio::spawn(async move { builder.run().await.map(drop) })
    };
    let reached = node.place().path("reached");
    wait_until("the plugin", async || reached.exists()).await;
    // The pause container is made meanwhile.
    wait_until("the pause container", async || {
        let tasks =
            TasksClient::new(node.containerd().channel()).list(in_namespace(Default::default())).await;
        let tasks = tasks.expect("tasks are listed").into_inner().tasks;
        tasks.iter().any(|task| task.status() == Status::Running)
    })
    .await;
    node.longshore().kill().await;
    running.await.expect("no panic").expect_err("the server is gone");
    std::fs::write(node.place().path("gone-on"), "").expect("a file");
    node.longshore().start().await;
    wait_until("the end of the cut-off pod", async || node.pods().await.expect("pods").is_empty()).await;
    let pod = builder.run().await.expect("the kubelet's next attempt");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SBX-27: where mounts cannot be id-mapped the owners are changed on disk, once for all
/// who have image and mappings in common, and for no longer than somebody has.
#[tokio::test]
async fn owners_on_disk_are_shifted_once_and_for_as_long_as_they_are_used() {
    let node = node().await;
    let layer = Layer::default().file_of((1000, 1001), "home", 0o4755, b"home");
    let image = Image::busybox().layer(layer);
    let id = node.pull(&node.registry().push("shifted:1", &image)).await.expect("pulled");
    let pods = futures_util::future::join_all(["a", "b"].map(async |name| {
        node.pod(name).handler("native").user_namespace(UID, GID).run().await.expect("a pod")
    }))
    .await;
    let base = snapshots(&node, "native").await.len();
    let containers = futures_util::future::join_all((0..6).map(async |number: usize| {
        let container = pods[number % 2].container(&format!("c{number}")).image(&id).forever();
        container.run().await.expect("a container")
    }))
    .await;
    for container in &containers {
        assert_eq!(container.sh("stat -c %u:%g:%a /home /bin/busybox").await, "1000:1001:4755\n0:0:755");
    }
    let list = snapshots(&node, "native").await;
    // The image's two layers, its shifted one, and the containers' own.
    assert_eq!(list.len(), base + 2 + 1 + 6, "{list:?}");
    let parents: Vec<&str> = containers
        .iter()
        .map(|container| {
            let own = list.iter().find(|snapshot| snapshot.name == container.id).expect("a snapshot");
            own.parent.as_str()
        })
        .collect();
    assert!(
        parents.iter().all(|parent| *parent == parents[0] && parent.starts_with("sha256:")),
        "{parents:?}"
    );
    let shifted = parents[0].to_owned();
    // A third pod finds it.
    let third = node.pod("c").handler("native").user_namespace(UID, GID).run().await.expect("a pod");
    third.container("c").image(&id).forever().run().await.expect("a container");
    pods[0].remove().await.expect("removed");
    pods[1].remove().await.expect("removed");
    let is_there = async || snapshots(&node, "native").await.iter().any(|snapshot| snapshot.name == shifted);
    collect(&node).await;
    assert!(is_there().await, "the third pod uses it");
    third.remove().await.expect("removed");
    collect(&node).await;
    assert!(!is_there().await, "nobody uses it");
    let list = snapshots(&node, "native").await;
    assert!(list.iter().all(|snapshot| snapshot.kind() == Kind::Committed), "{list:?}");
    node.finish().await;
}

/// SBX-27: a file of an owner that the pod does not have is named, and nothing is left.
#[tokio::test]
async fn an_image_with_owners_that_are_not_mapped_is_refused() {
    let node = node().await;
    let image = Image::busybox().layer(Layer::default().file_of((70_000, 0), "far", 0o644, b"far"));
    let id = node.pull(&node.registry().push("far:1", &image)).await.expect("pulled");
    let pod = node.pod("a").handler("native").user_namespace(UID, GID).run().await.expect("a pod");
    let error = pod.container("c").image(&id).create().await.expect_err("not mapped");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("\"/far\" is of 70000:0"), "{error:?}");
    let list = snapshots(&node, "native").await;
    assert!(!list.iter().any(|snapshot| snapshot.name.starts_with("longshore-remap-")), "{list:?}");
    // More ids, and it is there.
    let wide = node.pod("b").handler("native").user_namespace(UID, GID).security(|context| {
        let user = context.namespace_options.as_mut().expect("options").userns_options.as_mut();
        let map = IdMapping { host_id: UID, container_id: 0, length: 100_000 };
        let user = user.expect("options");
        (user.uids, user.gids) = (vec![map], vec![map]);
    });
    let wide = wide.run().await.expect("a pod");
    let container = wide.container("c").image(&id).forever().run().await.expect("a container");
    assert_eq!(container.sh("stat -c %u:%g /far").await, "70000:0");
    node.remove_all().await;
    node.finish().await;
}
