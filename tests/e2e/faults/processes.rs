//! Shims, pause containers and OCI runtimes that are gone (areas REC, SBX, CTR).

use std::os::unix::fs::PermissionsExt;

use longshore::proto::cri::ContainerState;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Node, Server, has_crun, procfs, wait_until};

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("a signal is sent");
}

fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

/// The shims that serve `id`.
fn shims(node: &Node, id: &str) -> Vec<u32> {
    let processes = node.place().processes().into_iter();
    let shims = processes.filter(|running| running.program().starts_with("containerd-shim"));
    let of_it = shims.filter(|shim| shim.arguments.iter().any(|argument| argument == id));
    of_it.map(|shim| shim.pid).collect()
}

/// A shim dies, and with it everything that it served.
#[tokio::test]
async fn a_shim_that_is_killed_ends_its_pod_and_leaves_nothing() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let other = node.pod("other").run().await.expect("a pod");
    let spared = other.container("c").forever().run().await.expect("it runs");
    let shims = shims(&node, &pod.id);
    assert_eq!(shims.len(), 1, "{shims:?}");
    kill(shims[0]);
    wait_until("NOTREADY", async || pod.status().await.expect("a status").state == 1).await;
    let status = container.wait_exited().await;
    assert_ne!(status.exit_code, 0, "{status:?}");
    assert_eq!(spared.sh("echo inside").await, "inside");
    let error = pod.container("d").forever().create().await.expect_err("the pod is not ready");
    assert!(error.message().contains(&pod.id), "{error:?}");
    pod.stop().await.expect("stopped");
    // The kubelet's next pod of that name, one attempt on, while the old one is there still.
    let next = node.pod("a").run().await.expect("a pod");
    next.container("c").forever().run().await.expect("it runs");
    for pod in [pod, next, other] {
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// Only pause dies: the containers go on, and no shim is left when the pod goes (containerd's
/// own plugin leaves one each time).
#[tokio::test]
async fn a_pause_container_that_is_killed_leaves_no_shim() {
    let node = Node::with(Server::Longshore).start().await;
    for round in 0..3 {
        let pod = node.pod("a").run().await.expect("a pod");
        let container = pod.container("c").forever().run().await.expect("it runs");
        let pid = pod.info().await["pid"].as_u64().expect("a pid");
        kill(u32::try_from(pid).expect("a pid"));
        wait_until("NOTREADY", async || pod.status().await.expect("a status").state == 1).await;
        assert_eq!(container.sh("echo inside").await, "inside");
        let status = container.status().await.expect("a status");
        assert_eq!(status.state, ContainerState::ContainerRunning as i32);
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
        node.assert_nothing_left(&format!("in round {round}")).await;
    }
    node.finish().await;
}

/// An OCI runtime's deletion was cut off behind its own work, as when containerd dies: where
/// that is crun, the shim's deletion fails from then on. Container and pod go all the same.
#[tokio::test]
async fn tasks_that_crun_has_forgotten_go_with_their_pods() {
    if !has_crun() {
        eprintln!("skipped: crun is not installed");
        return;
    }
    let node = Node::with(Server::Longshore).crun().start().await;
    let pod = node.pod("a").handler("crun").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let spared = pod.container("d").forever().run().await.expect("it runs");
    let other = node.pod("pause").handler("crun").run().await.expect("a pod");
    let mut ends = Vec::new();
    for (id, info) in [(&container.id, container.info().await), (&other.id, other.info().await)] {
        ends.push((id.clone(), u32::try_from(info["pid"].as_u64().expect("a pid")).expect("a pid")));
    }
    node.longshore().kill().await;
    for (id, pid) in &ends {
        kill(*pid);
        wait_until("its end", async || !procfs::processes().iter().any(|running| running.pid == *pid)).await;
        std::fs::remove_dir_all(node.place().path("crun/k8s.io").join(id)).expect("what crun knows of it");
    }
    node.longshore().start().await;
    assert_eq!(container.wait_exited().await.exit_code, 137);
    container.remove().await.expect("removed");
    wait_until("NOTREADY", async || other.status().await.expect("a status").state == 1).await;
    assert_eq!(spared.sh("echo inside").await, "inside");
    pod.container("c").attempt(1).forever().run().await.expect("it runs");
    for pod in [pod, other] {
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// A shim that containerd has lost, and that answers nothing any more, goes with its pod.
#[tokio::test]
async fn a_lost_shim_that_hangs_does_not_hold_up_the_end_of_its_pod() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let pause = pod.info().await["pid"].as_u64().expect("a pid");
    let hung = shims(&node, &pod.id)[0];
    node.containerd().kill().await;
    send(hung, Signal::STOP);
    kill(u32::try_from(pause).expect("a pid"));
    // Its task is gone, as of one that hangs at its own end; and by its bundle containerd
    // would find it again.
    std::fs::remove_dir_all(node.place().path("runc/k8s.io").join(&pod.id)).expect("its state");
    let bundles = node.place().path("cs/io.containerd.runtime.v2.task");
    for namespace in procfs::names(&bundles) {
        let bundle = bundles.join(namespace).join(&pod.id);
        longshore::sys::mount::unmount_below(&bundle).expect("unmounted");
        std::fs::remove_dir_all(&bundle).expect("a bundle");
    }
    node.containerd().start().await;
    wait_until("NOTREADY", async || pod.status().await.is_ok_and(|status| status.state == 1)).await;
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    assert_eq!(shims(&node, &pod.id), Vec::<u32>::new());
    node.finish().await;
}

/// The OCI runtime's program goes and comes back while pods run.
#[tokio::test]
async fn a_runtime_that_is_gone_is_named_and_works_when_it_is_back() {
    let config = "[runtime.handlers.other]\ntype = \"io.containerd.runc.v2\"\n\
                  [runtime.handlers.other.options]\nBinaryName = \"{folder}/other-runc\"\nRoot = \"{folder}/runc\"\n";
    let runc = |place: &crate::harness::Place| {
        let script = "#!/bin/sh\nexec runc \"$@\"\n";
        std::fs::write(place.path("other-runc"), script).expect("a script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place.path("other-runc"), mode).expect("permissions");
    };
    let node = Node::with(Server::Longshore).config(config).before(runc).start().await;
    let pod = node.pod("a").handler("other").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let (at, away) = (node.place().path("other-runc"), node.place().path("away"));
    std::fs::rename(&at, &away).expect("moved");

    let error = node.pod("b").handler("other").run().await.expect_err("no runtime");
    assert!(error.message().contains("other-runc"), "{error:?}");
    let created = pod.container("d").forever().create().await.expect("it needs no runtime");
    let error = created.start().await.expect_err("no runtime");
    assert!(error.message().contains("other-runc") && error.message().contains(&created.id), "{error:?}");
    // Nobody can be killed without it; it is said, and nothing is forgotten.
    let stopped = container.stop(0).await;
    if let Err(error) = &stopped {
        assert!(error.message().contains(&container.id), "{error:?}");
        assert_eq!(node.containers().await.expect("containers").len(), 2);
    }
    std::fs::rename(&away, &at).expect("moved back");
    container.stop(0).await.expect("stopped");
    pod.container("d").attempt(1).forever().run().await.expect("it runs");
    node.pod("b").handler("other").run().await.expect("a pod").remove().await.expect("removed");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}
