//! A limit of how fast containers log, from the configuration to the keeper.

use longshore::proto::cri::ContainerState;

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
