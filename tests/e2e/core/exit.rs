//! How containers end, and what is told of it.

use longshore::proto::cri::ContainerState;

use crate::harness::Node;

const EXITED: ContainerState = ContainerState::ContainerExited;

/// CTR-20, CTR-23.
#[tokio::test]
async fn the_exit_code_and_its_reason_are_told() {
    let node = Node::start().await;
    let pod = node.pod("exit").run().await.expect("a pod");
    for (name, script, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("high", "exit 255", 255, "Error"),
        ("term", "kill -TERM $$", 143, "Error"),
        ("kill", "kill -KILL $$", 137, "Error"),
    ] {
        // Its own first process takes no signals that it does not handle; a child does.
        let script = format!("sh -c '{script}'; exit $?");
        let container = pod.container(name).sh(&script).run().await.expect("a container");
        let status = container.wait_exited().await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
        assert!(status.message.is_empty(), "{}", status.message);
        assert!(status.started_at > 0 && status.finished_at > 0, "{status:?}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// CTR-14: however quick it is.
#[tokio::test]
async fn a_container_that_ends_at_once_is_seen_to_end() {
    let node = Node::start().await;
    let pod = node.pod("instant").run().await.expect("a pod");
    for attempt in 0..8 {
        let container = pod.container("c").attempt(attempt).command(["true"]).run().await;
        let status = container.expect("a container").wait_exited().await;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        // The plugin takes its own time for the start, the shim's for the end.
        assert!(status.started_at <= status.finished_at || node.is_built_in(), "{status:?}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// CTR-21.
#[tokio::test]
async fn a_container_that_is_killed_for_memory_is_told_as_such() {
    let node = Node::start().await;
    let pod = node.pod("memory").run().await.expect("a pod");
    let container = pod.container("eater").command(["tail", "/dev/zero"]);
    let container = container.resources(|resources| resources.memory_limit_in_bytes = 32 << 20).run().await;
    let status = container.expect("a container").wait_exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.remove_all().await;
    node.finish().await;
}

/// CTR-15, CTR-16.
#[tokio::test]
async fn a_container_that_cannot_start_is_exited_with_the_reason() {
    let node = Node::start().await;
    let pod = node.pod("start").run().await.expect("a pod");
    let container = pod.container("c").command(["no-such-program"]).create().await.expect("a container");
    let error = container.start().await.expect_err("no such program");
    assert!(error.message().contains("\"no-such-program\": executable file not found in $PATH"), "{error}");
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (EXITED, 128));
    assert_eq!((status.reason.as_str(), status.started_at), ("StartError", 0));
    assert!(status.finished_at >= status.created_at, "{status:?}");
    assert!(status.message.contains("no-such-program"), "{}", status.message);
    container.start().await.expect_err("it ended");
    container.stop(0).await.expect("nothing to stop");
    container.remove().await.expect("removed");
    node.remove_all().await;
    node.finish().await;
}

/// CTR-17: a failure of the start as any other.
#[tokio::test]
async fn a_log_that_cannot_be_opened_fails_the_start() {
    let node = Node::start().await;
    let pod = node.pod("log").run().await.expect("a pod");
    let container = pod.container("c").forever().create().await.expect("a container");
    std::fs::create_dir_all(container.log_path()).expect("a folder in the way");
    let error = container.start().await.expect_err("no log");
    assert!(error.message().contains(&container.log_path().display().to_string()), "{error}");
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.reason.as_str()), (EXITED, "StartError"));
    node.remove_all().await;
    node.finish().await;
}

/// CTR-44, CTR-45: the end of one is not the end of another.
#[tokio::test]
async fn one_container_ends_and_the_others_go_on() {
    let node = Node::start().await;
    let pod = node.pod("others").run().await.expect("a pod");
    let stays = pod.container("stays").forever().run().await.expect("a container");
    let goes = pod.container("goes").command(["true"]).run().await.expect("a container");
    let first = goes.wait_exited().await;
    assert_eq!(stays.exec(["/bin/sh", "-c", "exit 3"]).await.expect("it runs").exit_code, 3);
    assert_eq!(stays.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    let again = goes.status().await.expect("a status");
    assert_eq!(again.finished_at, first.finished_at);
    node.remove_all().await;
    node.finish().await;
}
