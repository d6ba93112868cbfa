//! Which namespaces containers have, and with whom they share them.

use longshore::proto::cri::{NamespaceMode, NamespaceOption};

use crate::harness::{Container, Node, Pod};

/// The namespace of one kind that a container is in.
async fn inside(container: &Container, kind: &str) -> String {
    container.sh(&format!("readlink /proc/self/ns/{kind}")).await
}

fn of_host(kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
    link.display().to_string()
}

async fn pod_with(node: &Node, options: NamespaceOption) -> Pod {
    let pod = node.pod("namespaces").security(|security| security.namespace_options = Some(options));
    pod.run().await.expect("a pod")
}

/// OCI-21, OCI-22, SBX-22.
#[tokio::test]
async fn containers_share_network_ipc_and_uts_but_not_pids() {
    let node = Node::start().await;
    let pod = node.pod("share").run().await.expect("a pod");
    let first = pod.container("first").forever().run().await.expect("a container");
    let second = pod.container("second").forever().run().await.expect("a container");
    for kind in ["net", "ipc", "uts"] {
        let namespace = inside(&first, kind).await;
        assert_eq!(namespace, inside(&second, kind).await, "{kind}");
        assert_ne!(namespace, of_host(kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        let namespace = inside(&first, kind).await;
        assert_ne!(namespace, inside(&second, kind).await, "{kind}");
        assert_ne!(namespace, of_host(kind), "{kind}");
    }
    assert!(first.sh("cat /proc/1/cmdline").await.starts_with("/bin/sh"));
    node.remove_all().await;
    node.finish().await;
}

/// SBX-22, SBX-23: POD is what stands there when nothing is said.
#[tokio::test]
async fn a_pods_containers_can_share_pids_with_pause() {
    let node = Node::start().await;
    let pod = pod_with(&node, NamespaceOption::default()).await;
    let first = pod.container("first").forever().run().await.expect("a container");
    let second = pod.container("second").forever().run().await.expect("a container");
    assert_eq!(inside(&first, "pid").await, inside(&second, "pid").await);
    assert_ne!(inside(&first, "pid").await, of_host("pid"));
    assert_ne!(first.sh("echo $$").await, "1");
    assert!(!first.sh("cat /proc/1/cmdline").await.starts_with("/bin/sh"));
    node.remove_all().await;
    node.finish().await;
}

/// SBX-22.
#[tokio::test]
async fn a_pod_can_have_pids_and_ipc_of_the_host() {
    let node = Node::start().await;
    let host = NamespaceMode::Node as i32;
    let pod = pod_with(&node, NamespaceOption { pid: host, ipc: host, ..Default::default() }).await;
    let container = pod.container("c").forever().run().await.expect("a container");
    for kind in ["pid", "ipc"] {
        assert_eq!(inside(&container, kind).await, of_host(kind), "{kind}");
    }
    assert_ne!(inside(&container, "net").await, of_host("net"));
    node.remove_all().await;
    node.finish().await;
}

/// OCI-22.
#[tokio::test]
async fn a_container_can_join_the_pids_of_another() {
    let node = Node::start().await;
    let pod = node.pod("target").run().await.expect("a pod");
    let target = pod.container("target").forever().run().await.expect("a container");
    let joining = |name: &str, id: &str| {
        let options = NamespaceOption {
            pid: NamespaceMode::Target as i32,
            target_id: id.to_owned(),
            ..Default::default()
        };
        pod.container(name).forever().security(|security| security.namespace_options = Some(options))
    };
    let debug = joining("debug", &target.id).run().await.expect("a container");
    assert_eq!(inside(&debug, "pid").await, inside(&target, "pid").await);
    let other = node.pod("other").run().await.expect("a pod");
    let stranger = other.container("stranger").forever().run().await.expect("a container");
    joining("wrong", &stranger.id).create().await.expect_err("a container of another pod");
    target.stop(0).await.expect("stopped");
    joining("late", &target.id).create().await.expect_err("a container that ended");
    node.remove_all().await;
    node.finish().await;
}
