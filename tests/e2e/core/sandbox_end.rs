//! Pods: how they end.

use longshore::proto::cri::{ContainerState, PodSandboxState};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Node, wait_until};

/// SBX-37, SBX-40, SBX-50.
#[tokio::test]
async fn stop_is_idempotent() {
    let node = Node::start().await;
    let pod = node.pod("stop").run().await.expect("a pod");
    for _ in 0..3 {
        pod.stop().await.expect("stopped");
        let status = pod.status().await.expect("a status");
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap_or_default().ip, "");
    }
    let other = node.pod("together").run().await.expect("a pod");
    let (first, second, third) = tokio::join!(other.stop(), other.stop(), other.stop());
    for stopped in [first, second, third] {
        stopped.expect("stopped");
    }
    assert_eq!(other.status().await.expect("a status").state(), PodSandboxState::SandboxNotready);
    node.remove_all().await;
    node.finish().await;
}

/// SBX-44, NAM-02, ERR-02.
#[tokio::test]
async fn remove_is_idempotent_and_needs_no_stop() {
    let node = Node::start().await;
    let pod = node.pod("remove").run().await.expect("a pod");
    pod.container("running").forever().run().await.expect("a container");
    pod.container("created").forever().create().await.expect("a container");
    pod.remove().await.expect("removed");
    pod.remove().await.expect("removed again");
    assert!(node.pods().await.expect("a list").is_empty());
    assert!(node.containers().await.expect("a list").is_empty());
    node.finish().await;
}

/// SBX-38, SBX-39: killed, whatever their stop signal does.
#[tokio::test]
async fn stop_kills_the_containers_of_the_pod() {
    let node = Node::start().await;
    let pod = node.pod("stop").run().await.expect("a pod");
    let patient = pod.container("patient").sh("trap '' TERM; while :; do sleep 1; done").run().await;
    let patient = patient.expect("a container");
    let created = pod.container("created").forever().create().await.expect("a container");
    pod.stop().await.expect("stopped");
    let status = patient.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    created.start().await.expect_err("its pod is stopped");
    // The plugin of 2.x creates it, and refuses to start it.
    let late = pod.container("late").create().await;
    assert!(late.is_err() || node.is_built_in());
    // What is in a stopped pod can be removed bit by bit.
    patient.remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SBX-49.
#[tokio::test]
async fn a_pod_whose_pause_ends_is_not_ready_and_its_containers_go_on() {
    let node = Node::start().await;
    let pod = node.pod("pause").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let pid = pod.info().await["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    kill_process(pid.and_then(Pid::from_raw).expect("a pid"), Signal::KILL).expect("killed");
    wait_until("NOTREADY", async || {
        pod.status().await.expect("a status").state() == PodSandboxState::SandboxNotready
    })
    .await;
    assert_eq!(container.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    pod.stop().await.expect("stopped");
    assert_eq!(container.status().await.expect("a status").state(), ContainerState::ContainerExited);
    pod.remove().await.expect("removed");
    if node.is_built_in() {
        return; // the plugin of 2.x loses the shim (SBX-47)
    }
    node.finish().await;
}
