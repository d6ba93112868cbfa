//! A limit of how fast containers log, from the configuration to the keeper.

use longshore::proto::cri::{ContainerState, NamespaceMode};

use crate::harness::{Node, Server};

/// Much more than goes through in the time of a test.
const BYTES: usize = 4_000_000;

#[tokio::test]
async fn a_container_that_logs_too_fast_is_held_up_and_can_be_stopped() {
    let settings = "[container]\nlog_bytes_per_second_max = 1024";
    let node = Node::with(Server::Longshore).config(settings).start().await;
    let pod = node.pod("limit").run().await.expect("a pod");
    let script = format!("yes held-up | head -c {BYTES}");
    let container = pod.container("c").sh(&script).run().await.expect("a container");
    container.wait_log("held-up").await;
    let status = container.status().await.expect("a status");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    // It waits in the middle of its output, and does not hold up its end.
    container.stop(0).await.expect("stopped");
    container.wait_exited().await;
    let entries = container.log_entries().await;
    assert!(entries.iter().rev().skip(1).all(|entry| entry.text() == "held-up"));
    assert!((1..BYTES / "held-up\n".len()).contains(&entries.len()), "{} entries", entries.len());
    node.remove_all().await;
    node.finish().await;
}

/// What a container has left in its pipes when it ends is not lost with its task: a shim gives
/// up what it has not passed on 2 s after it was asked to delete.
#[tokio::test]
async fn a_slow_log_gets_all_that_a_container_wrote() {
    // More than the FIFO holds, less than that and the pipe behind the shim.
    const LINES: usize = 18_000;
    let settings = "[container]\nlog_bytes_per_second_max = 4096";
    let node = Node::with(Server::Longshore).config(settings).start().await;
    for namespace in [NamespaceMode::Container, NamespaceMode::Pod] {
        let pod = node.pod("slow").run().await.expect("a pod");
        let script = format!("yes held-up | head -n {LINES}; echo the end");
        let container = pod.container("c").sh(&script).security(|context| {
            context.namespace_options.get_or_insert_default().pid = namespace as i32;
        });
        let container = container.run().await.expect("a container");
        container.wait_exited().await;
        let entries = container.log_entries().await;
        assert_eq!(entries.last().map(|entry| entry.text()).as_deref(), Some("the end"));
        assert_eq!(entries.len(), LINES + 1);
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}
