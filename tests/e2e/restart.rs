//! The server is stopped, killed, comes back; so does containerd (area REC).

use std::path::{Path, PathBuf};

use longshore::proto::cri::{ContainerState, ContainerStatus, PodSandboxStatus};

use crate::harness::{Cri, Node, Server, procfs, wait_for, wait_until};

async fn node() -> Node {
    Node::with(Server::Longshore).start().await
}

/// A shell that waits until the file exists.
fn until(file: &str) -> String {
    format!("until [ -e {file} ]; do usleep 20000; done")
}

/// The pid of a container's process on the node.
async fn pid(container: &crate::harness::Container) -> u64 {
    container.info().await["pid"].as_u64().expect("a pid")
}

async fn wait_until_gone(pid: u64) {
    wait_until("the end of the process", async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    })
    .await;
}

/// Everything that the lists and states say.
async fn everything(cri: &Cri) -> (Vec<PodSandboxStatus>, Vec<ContainerStatus>) {
    let mut pods = Vec::new();
    for pod in cri.pods().await.expect("pods") {
        pods.extend(cri.pod_status(&pod.id, false).await.expect("an answer").status);
    }
    let mut containers = Vec::new();
    for container in cri.containers().await.expect("containers") {
        containers.extend(cri.container_status(&container.id, false).await.expect("an answer").status);
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    (pods, containers)
}

/// REC-05, REC-12. containerd's own plugin loses both.
#[tokio::test]
async fn what_ends_while_the_server_is_down_keeps_its_exit_code_and_last_lines() {
    let node = node().await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let script = format!("{}; echo the last line; exit 7", until("/gate/go"));
    let container = pod.container("a").sh(&script).mount(&gate, "/gate").run().await.expect("it runs");
    let process = pid(&container).await;

    node.longshore().kill().await;
    std::fs::write(gate.join("go"), "").expect("a file");
    wait_until_gone(process).await;
    node.longshore().start().await;

    let status = container.wait_exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.finished_at >= status.started_at && status.started_at > 0, "{status:?}");
    container.wait_log("the last line").await;
    assert_eq!(container.log_entries().await.len(), 1);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-05, REC-12, SVC-36: neither the container nor its log notices.
#[tokio::test]
async fn a_running_container_and_its_log_go_on_through_a_kill() {
    let node = node().await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let script = format!("for i in 0 1 2; do {}; echo line $i; done; exec sleep 1000", until("/gate/$i"));
    let container = pod.container("a").sh(&script).mount(&gate, "/gate").run().await.expect("it runs");
    let before = container.status().await.expect("a status");
    let say = |line: usize| std::fs::write(gate.join(line.to_string()), "").expect("a file");
    say(0);
    container.wait_log("line 0").await;
    node.longshore().kill().await;
    say(1); // while no server is there
    container.wait_log("line 1").await;
    node.longshore().start().await;
    say(2);
    container.wait_log("line 2").await;
    let lines: Vec<String> = container.log_entries().await.iter().map(|entry| entry.text()).collect();
    assert_eq!(lines, ["line 0", "line 1", "line 2"]);
    assert_eq!(container.status().await.expect("a status"), before);
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-03 … REC-09.
#[tokio::test]
async fn a_restart_finds_everything_as_it_was() {
    let node = node().await;
    let pod =
        node.pod("a").labels([("tier", "front")]).annotations([("note", "x")]).run().await.expect("a pod");
    let stopped = node.pod("stopped").run().await.expect("a pod");
    stopped.stop().await.expect("stopped");
    let host = node.pod("host").host_network().run().await.expect("a pod");
    let created = pod.container("created").forever().create().await.expect("created");
    pod.container("running").forever().run().await.expect("runs");
    pod.container("exited").sh("exit 3").run().await.expect("runs").wait_exited().await;
    let failed = pod.container("failed").command(["/no/such/program"]).create().await.expect("created");
    failed.start().await.expect_err("there is no such program");

    let before = everything(&node).await;
    assert_eq!((before.0.len(), before.1.len()), (3, 4));
    for clean in [true, false] {
        if clean {
            node.longshore().terminate().await;
        } else {
            node.longshore().kill().await;
        }
        node.longshore().start().await;
        let after = everything(&node).await;
        assert_eq!(after, before, "after a clean stop: {clean}");
    }
    // What was only created can still be started.
    created.start().await.expect("it starts");
    for pod in [pod, stopped, host] {
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// NAM-07: the names are reserved again.
#[tokio::test]
async fn a_name_stays_taken_through_a_restart() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    node.longshore().kill().await;
    node.longshore().start().await;
    let error = node.pod("a").uid(&pod.config.metadata.clone().expect("metadata").uid).run().await;
    let error = error.expect_err("the name is taken");
    assert!(error.message().contains(&pod.id), "{error:?}");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-16, D5: a pod that was cut off while its network was made is rolled back.
#[tokio::test]
async fn a_pod_that_was_cut_off_is_rolled_back() {
    // After bridge and portmap: by then there are an address and a link to lose.
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {folder}/reached\n\
                  until [ -e {folder}/gone-on ]; do sleep 0.05; done\ncat >/dev/null\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"{network}.99/24\"}]}'\n";
    let mut list = crate::harness::cni::bridge();
    list["plugins"].as_array_mut().expect("a list").push(serde_json::json!({ "type": "gate" }));
    let node = Node::with(Server::Longshore).cni(list).plugin("gate", script).start().await;
    let running = {
        let pod = node.pod("a");
        tokio::spawn(async move { pod.run().await.map(drop) })
    };
    let reached = node.place().path("reached");
    wait_until("the plugin", async || reached.exists()).await;
    // The pause container is made meanwhile.
    wait_until("the pause container", async || {
        node.place().processes().iter().any(|running| running.program().contains("containerd-shim"))
    })
    .await;
    node.longshore().kill().await;
    running.await.expect("no panic").expect_err("the server is gone");
    let plugins = || {
        let below = node.place().text("");
        let is_gate = |word: &String| word.starts_with(&below) && word.ends_with("/gate");
        procfs::processes().iter().filter(|running| running.arguments.iter().any(is_gate)).count()
    };
    // Its child is it for a moment.
    assert!(plugins() > 0, "the plugin goes on");
    node.longshore().start().await;
    wait_until("the end of the cut-off pod", async || {
        let pods = node.pods().await.expect("pods");
        // Its pause runs, but it has no network.
        assert!(pods.iter().all(|pod| pod.state == 1), "READY: {pods:?}");
        pods.is_empty()
    })
    .await;
    // What it took after DEL nobody would give back.
    assert_eq!(plugins(), 0, "the plugin was ended");
    std::fs::write(node.place().path("gone-on"), "").expect("a file");
    // The kubelet's next attempt.
    let pod = node.pod("a").run().await.expect("a pod");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-15: folders of nothing known go; what is no pod's or container's stays.
#[tokio::test]
async fn folders_of_nothing_known_are_removed_at_the_start() {
    let node = node().await;
    let (root, state) = node.longshore().folders();
    let id = "0123456789abcdef".repeat(4);
    node.longshore().kill().await;
    let ours = [root.join("containers").join(&id), state.join("sandboxes").join(&id)];
    for folder in &ours {
        std::fs::create_dir_all(folder.join("inside")).expect("a folder");
    }
    let other = root.join("containers/not-an-id");
    std::fs::create_dir_all(&other).expect("a folder");
    node.longshore().start().await;
    assert!(ours.iter().all(|folder| !folder.exists()));
    assert!(other.exists());
    std::fs::remove_dir(&other).expect("removed");
    node.finish().await;
}

/// REC-10: a container whose status file is broken can be removed, no more.
#[tokio::test]
async fn a_container_without_a_readable_status_is_unknown_and_can_be_removed() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("a").forever().run().await.expect("it runs");
    node.longshore().kill().await;
    let file = node.longshore().folders().0.join("containers").join(&container.id).join("status");
    std::fs::write(&file, "{").expect("a file");
    node.longshore().start().await;
    let status = container.status().await.expect("a status");
    assert_eq!(status.state, ContainerState::ContainerUnknown as i32, "{status:?}");
    container.exec(["true"]).await.expect_err("not known to run");
    container.stop(0).await.expect("stopped");
    container.remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SVC-13, SVC-14, SVC-37, REC-17 … REC-19: containerd goes away and comes back.
#[tokio::test]
async fn containerd_may_go_away_and_come_back() {
    let node = node().await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let stays = pod.container("stays").sh("echo one; exec sleep 1000").run().await.expect("it runs");
    let script = format!("{}; exit 5", until("/gate/go"));
    let ends = pod.container("ends").sh(&script).mount(&gate, "/gate").run().await.expect("it runs");
    let process = pid(&ends).await;

    node.containerd().kill().await;
    wait_until("RuntimeReady=false", async || !node.condition("RuntimeReady").await.expect("an answer"))
        .await;
    let status = node.status(false).await.expect("an answer").status.expect("a status");
    let runtime =
        status.conditions.iter().find(|condition| condition.r#type == "RuntimeReady").expect("listed");
    assert_eq!(runtime.reason, "ContainerdUnavailable");
    assert!(
        runtime.message.contains("c.sock") || runtime.message.contains("containerd"),
        "{}",
        runtime.message
    );
    node.version().await.expect("Version answers");
    // Lists and states are known still.
    assert_eq!(node.pods().await.expect("pods").len(), 1);
    let error = node.pod("b").run().await.expect_err("no containerd");
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
    std::fs::write(gate.join("go"), "").expect("a file");
    wait_until_gone(process).await;

    node.containerd().start().await;
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    let ended = ends.wait_exited().await;
    // From 1.7 on containerd itself forgets tasks that ended while it was down.
    let forgets = (node.containerd_version().major, node.containerd_version().minor) >= (1, 7);
    let expected = if forgets { (255, "Unknown") } else { (5, "Error") };
    assert_eq!((ended.exit_code, ended.reason.as_str()), expected);
    assert_eq!(stays.sh("echo inside").await, "inside");
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// SVC-37: without containerd the server waits, says so, and works once it is there.
#[tokio::test]
async fn a_start_before_containerd_waits_for_it() {
    let node = Node::with(Server::Longshore).containerd_absent().start().await;
    assert!(!node.condition("RuntimeReady").await.expect("an answer"));
    let error = node.pods().await.expect_err("not known yet");
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}"); // SVC-07
    node.containerd().start().await;
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    node.pod("a").run().await.expect("a pod").remove().await.expect("removed");
    node.finish().await;
}

/// REC-20: after a reboot nothing runs and the volatile folders are gone.
#[tokio::test]
async fn after_a_reboot_everything_is_stopped_and_can_be_removed() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("a").forever().run().await.expect("it runs");
    node.longshore().kill().await;
    crash(&node).await;
    node.containerd().start().await;
    node.longshore().start().await;
    let status = container.status().await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::ContainerExited as i32, 255), "{status:?}");
    assert_eq!(status.reason, "Unknown");
    assert_eq!(pod.status().await.expect("a status").state, 1, "NOTREADY");
    pod.stop().await.expect("stopped"); // REC-21
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Takes away what a reboot takes away: processes, mounts, the volatile folders.
pub(crate) async fn crash(node: &Node) {
    node.containerd().kill().await;
    let place = node.place();
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    };
    wait_for("the end of all processes", async || {
        for group in place.cgroup_folders() {
            kill_below(&group, &kill);
        }
        let left = place.processes();
        left.iter().for_each(|running| kill(running.pid));
        left.is_empty().then_some(())
    })
    .await;
    let (_, state) = node.longshore().folders();
    for group in place.cgroup_folders() {
        // The kernel lets go of what was killed a moment later.
        wait_until("empty cgroups", async || remove_groups(&group).is_ok()).await;
    }
    for folder in [state, node.longshore().netns_dir(), place.path("cs"), place.path("runc")] {
        longshore::sys::mount::unmount_below(&folder).expect("unmounted");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("removed");
        }
    }
}

fn groups_in(group: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove_groups(group: &Path) -> std::io::Result<()> {
    groups_in(group).iter().try_for_each(|below| remove_groups(below))?;
    std::fs::remove_dir(group)
}

fn kill_below(group: &Path, kill: &impl Fn(u32)) {
    let pids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|line| line.parse().ok()).for_each(kill);
    groups_in(group).iter().for_each(|below| kill_below(below, kill));
}
