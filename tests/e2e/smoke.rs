//! One pod through its whole life: if this fails, look no further.

use crate::harness::Node;

#[tokio::test]
async fn a_pod_runs_a_container_and_nothing_is_left() {
    let node = Node::start().await;
    let pod = node.pod("smoke").run().await.expect("a pod");
    let container = pod.container("busybox").sh("echo hello; sleep 1000").run().await.expect("a container");
    container.wait_log("hello").await;
    assert_eq!(container.sh("echo inside").await, "inside");
    assert!(pod.ip().await.starts_with(&node.place().network()));
    container.stop(0).await.expect("stopped");
    container.remove().await.expect("removed");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}
