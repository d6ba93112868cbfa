//! Containers: made, started, shown, removed.

use std::collections::BTreeMap;

use longshore::proto::cri::{ContainerState, Mount};
use tonic::Code;

use super::{UNKNOWN, code, now_ns};
use crate::harness::{Node, images};

/// CTR-06, CTR-18, CTR-19.
#[tokio::test]
async fn a_container_is_created_then_running_then_exited() {
    let node = Node::start().await;
    let pod = node.pod("life").run().await.expect("a pod");
    let before = now_ns();
    let container = pod.container("c").forever().create().await.expect("a container");
    let created = container.status().await.expect("a status");
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!((before..=now_ns()).contains(&created.created_at), "{created:?}");
    assert_eq!((created.started_at, created.finished_at, created.exit_code), (0, 0, 0));
    assert_eq!((created.id.len(), &created.id), (64, &container.id));
    assert_eq!(created.metadata, container.config.metadata);

    container.start().await.expect("started");
    let running = container.status().await.expect("a status");
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= created.created_at && running.started_at <= now_ns(), "{running:?}");
    assert_eq!((running.created_at, running.finished_at), (created.created_at, 0));

    container.stop(10).await.expect("stopped");
    let exited = container.status().await.expect("a status");
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert_eq!((exited.created_at, exited.started_at), (created.created_at, running.started_at));
    assert!(exited.finished_at >= exited.started_at && exited.finished_at <= now_ns(), "{exited:?}");
    let listed = node.containers().await.expect("a list");
    assert_eq!((listed.len(), listed[0].state()), (1, ContainerState::ContainerExited));
    assert_eq!((&listed[0].pod_sandbox_id, listed[0].created_at), (&pod.id, created.created_at));

    container.remove().await.expect("removed");
    assert!(node.containers().await.expect("a list").is_empty());
    assert_eq!(code(container.status().await), Code::NotFound);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-01, CTR-03, CTR-09.
#[tokio::test]
async fn a_wrong_request_makes_no_container() {
    let node = Node::start().await;
    let pod = node.pod("wrong").run().await.expect("a pod");
    let missing = pod.container("image").image("registry.test/no-such:1").create().await;
    missing.expect_err("an image that is not there");
    assert!(node.image("registry.test/no-such:1").await.expect("asked").is_none());
    let nameless = pod.container("name").config(|config| config.metadata = None).create().await;
    nameless.expect_err("no metadata");
    let mut request = pod.container("pod").image(images::BUSYBOX).request();
    request.pod_sandbox_id = UNKNOWN.to_owned();
    assert_eq!(code(node.runtime().create_container(request).await), Code::NotFound);
    assert!(node.containers().await.expect("a list").is_empty());
    node.remove_all().await;
    node.finish().await;
}

/// NAM-01, NAM-02, NAM-03, CTR-47.
#[tokio::test]
async fn a_name_is_taken_until_its_container_is_removed() {
    let node = Node::start().await;
    let pod = node.pod("names").run().await.expect("a pod");
    let first = pod.container("c").forever().run().await.expect("a container");
    pod.container("c").create().await.expect_err("a twin");
    pod.container("c").attempt(1).create().await.expect("the next attempt");
    first.stop(0).await.expect("stopped");
    pod.container("c").create().await.expect_err("a twin of one that ended");
    assert_eq!(node.containers().await.expect("a list").len(), 2);
    first.remove().await.expect("removed");
    pod.container("c").create().await.expect("the name is free");
    // Another pod's containers have other names.
    let other = node.pod("names").run().await.expect("a pod");
    other.container("c").create().await.expect("a container");
    node.remove_all().await;
    node.finish().await;
}

/// CTR-13.
#[tokio::test]
async fn only_a_created_container_starts() {
    let node = Node::start().await;
    let pod = node.pod("start").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    container.start().await.expect_err("it runs");
    assert_eq!(container.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    container.stop(0).await.expect("stopped");
    container.start().await.expect_err("it ended");
    assert_eq!(container.status().await.expect("a status").exit_code, 137);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-40, CTR-42, ERR-02.
#[tokio::test]
async fn remove_is_idempotent_and_ends_what_runs() {
    let node = Node::start().await;
    let pod = node.pod("remove").run().await.expect("a pod");
    let container = pod.container("c").sh("echo here; sleep 1000").run().await.expect("a container");
    container.wait_log("here").await;
    let created = pod.container("created").create().await.expect("a container");
    for container in [&container, &created] {
        container.remove().await.expect("removed");
        container.remove().await.expect("removed again");
    }
    assert!(node.containers().await.expect("a list").is_empty());
    // The log is the kubelet's to remove.
    assert!(container.log().await.contains("here"));
    node.remove_all().await;
    node.finish().await;
}

/// CTR-12, CTR-28: as given, also a path that is a link.
#[tokio::test]
async fn labels_annotations_mounts_and_log_path_come_back_as_given() {
    let node = Node::start().await;
    let pod = node.pod("given").run().await.expect("a pod");
    let (folder, link) = (node.place().path("volume"), node.place().path("link"));
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(&folder, &link).expect("a link");
    let long = "y".repeat(5000);
    let mount = |host: &std::path::Path, inside: &str, readonly| Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        readonly,
        ..Default::default()
    };
    let container = pod
        .container("c")
        .labels([("hash", ""), ("odd/näme", "x\ny")])
        .config(|config| config.annotations = BTreeMap::from([("count".into(), long.clone())]))
        .mount_as(mount(&link, "/z", false))
        .mount_as(mount(&folder, "/a", true))
        .forever()
        .run()
        .await
        .expect("a container");
    let status = container.status().await.expect("a status");
    assert_eq!(status.labels, container.config.labels);
    assert_eq!(status.annotations, container.config.annotations);
    assert_eq!(status.mounts, container.config.mounts);
    assert_eq!(status.log_path, container.log_path().display().to_string());
    let listed = node.containers().await.expect("a list").remove(0);
    assert_eq!(listed.labels, container.config.labels);
    assert_eq!(listed.annotations, container.config.annotations);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-30, OCI-32.
#[tokio::test]
async fn mounts_are_the_hosts_files_and_may_be_read_only() {
    let node = Node::start().await;
    let pod = node.pod("mounts").run().await.expect("a pod");
    let (folder, link) = (node.place().path("volume"), node.place().path("link"));
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(&folder, &link).expect("a link");
    std::fs::write(folder.join("in"), "from outside").expect("a file");
    let container_path = "/read".to_owned();
    let host_path = folder.display().to_string();
    let read_only = Mount { host_path, container_path, readonly: true, ..Default::default() };
    let container = pod.container("c").forever().mount(&link, "/write").mount_as(read_only).run().await;
    let container = container.expect("a container");
    assert_eq!(container.sh("cat /read/in; echo; cat /write/in").await, "from outside\nfrom outside");
    container.sh("echo from inside > /write/out").await;
    assert_eq!(std::fs::read_to_string(folder.join("out")).expect("a file"), "from inside\n");
    let refused = container.exec(["/bin/sh", "-c", "echo x > /read/out"]).await.expect("it runs");
    assert_ne!(refused.exit_code, 0);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-24, CTR-25, CTR-26.
#[tokio::test]
async fn the_image_of_a_container_is_told_even_when_it_was_removed() {
    let node = Node::start().await;
    let pod = node.pod("image").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let id = node.image(images::BUSYBOX).await.expect("asked").expect("it is there").id;
    let status = container.status().await.expect("a status");
    assert_eq!(status.image.expect("an image").image, images::BUSYBOX);
    assert!(status.image_ref.starts_with("registry.test/busybox@sha256:"), "{}", status.image_ref);
    assert_eq!(node.containers().await.expect("a list")[0].image_ref, id);
    node.remove_image(images::BUSYBOX).await.expect("removed");
    let status = container.status().await.expect("a status");
    assert!(!status.image.expect("an image").image.is_empty());
    assert!(!status.image_ref.is_empty());
    assert_eq!(container.sh("echo still").await, "still");
    node.remove_all().await;
    node.finish().await;
}

/// CTR-29.
#[tokio::test]
async fn the_verbose_status_holds_process_and_spec() {
    let node = Node::start().await;
    let pod = node.pod("verbose").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let info = container.info().await;
    assert_eq!(info["sandboxID"], pod.id);
    let pid = info["pid"].as_u64().expect("a pid");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(info["runtimeSpec"]["annotations"]["io.kubernetes.cri.sandbox-id"], pod.id);
    assert_eq!(info["config"]["metadata"]["name"], "c");
    for key in ["snapshotKey", "snapshotter", "runtimeType"] {
        assert!(info.get(key).is_some(), "{key} is missing in {info}");
    }
    node.remove_all().await;
    node.finish().await;
}
