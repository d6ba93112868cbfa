//! StopContainer.

use longshore::proto::cri::{ContainerState, NamespaceOption};
use serde_json::json;

use crate::harness::{Node, images, wait_until};

const EXITED: ContainerState = ContainerState::ContainerExited;

/// CTR-31.
#[tokio::test]
async fn what_does_not_run_is_stopped_already() {
    let node = Node::start().await;
    let pod = node.pod("stop").run().await.expect("a pod");
    let created = pod.container("created").create().await.expect("a container");
    created.stop(10).await.expect("it never ran");
    let exited = pod.container("exited").sh("exit 3").run().await.expect("a container");
    exited.wait_exited().await;
    exited.stop(10).await.expect("it ended");
    assert_eq!(exited.status().await.expect("a status").exit_code, 3);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-32, CTR-33, CTR-36.
#[tokio::test]
async fn a_container_gets_its_grace_and_ends_by_itself() {
    let node = Node::start().await;
    let pod = node.pod("grace").run().await.expect("a pod");
    let script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("ready").await;
    container.stop(60).await.expect("stopped");
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (EXITED, 9, "Error"));
    assert!(container.log().await.contains("bye"));
    node.remove_all().await;
    node.finish().await;
}

/// CTR-32.
#[tokio::test]
async fn a_container_that_ignores_its_signal_is_killed_after_the_grace() {
    let node = Node::start().await;
    let pod = node.pod("ignore").run().await.expect("a pod");
    let script = "trap 'echo no' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("ready").await;
    container.stop(1).await.expect("stopped");
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (EXITED, 137, "Error"));
    assert!(container.log().await.contains("no"), "it got no signal first");
    node.remove_all().await;
    node.finish().await;
}

/// CTR-32.
#[tokio::test]
async fn without_grace_a_container_is_killed_at_once() {
    let node = Node::start().await;
    let pod = node.pod("kill").run().await.expect("a pod");
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("ready").await;
    container.stop(0).await.expect("stopped");
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (EXITED, 137));
    assert!(!container.log().await.contains("bye"));
    node.remove_all().await;
    node.finish().await;
}

/// CTR-33.
#[tokio::test]
async fn the_signal_is_the_images() {
    let node = Node::start().await;
    let image = images::Image::busybox().with("StopSignal", json!("SIGUSR1"));
    let image = node.registry().push("signal:1", &image);
    node.pull(&image).await.expect("pulled");
    let pod = node.pod("signal").run().await.expect("a pod");
    let script = "trap 'exit 4' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = pod.container("c").image(&image).sh(script).run().await.expect("a container");
    container.wait_log("ready").await;
    container.stop(60).await.expect("stopped");
    assert_eq!(container.status().await.expect("a status").exit_code, 4);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-39: also where pids are shared, and the kernel does not do it.
#[tokio::test]
async fn all_processes_of_a_container_end_with_it() {
    let node = Node::start().await;
    let shared = NamespaceOption::default();
    let pod = node.pod("all").security(|security| security.namespace_options = Some(shared));
    let pod = pod.run().await.expect("a pod");
    let watcher = pod.container("watcher").forever().run().await.expect("a container");
    let script = "sleep 31415 & sleep 31415 & echo ready; sleep 31415";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("ready").await;
    let count = async || watcher.sh("ps -o args | grep -c '^sleep 31415' || true").await;
    wait_until("three processes", async || count().await == "3").await;
    container.stop(0).await.expect("stopped");
    container.remove().await.expect("removed");
    wait_until("the end of all of them", async || count().await == "0").await;
    node.remove_all().await;
    node.finish().await;
}
