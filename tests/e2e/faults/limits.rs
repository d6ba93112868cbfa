//! The server has no file descriptors left, or may start no process (areas ERR, SVC).

use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::harness::{Node, Server, procfs, wait_until};

fn limit_files(pid: u32, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    prlimit(Some(pid), Resource::Nofile, limit).expect("it is root's")
}

/// Without descriptors calls fail and say so; the server lives, and goes on when it has some.
#[tokio::test]
async fn a_server_without_descriptors_fails_calls_and_recovers() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let pid = node.longshore().pid();
    let open = procfs::names(std::path::Path::new(&format!("/proc/{pid}/fd"))).len() as u64;
    // Those that it has stay open.
    let before = limit_files(pid, Rlimit { current: Some(open), ..getrlimit(Resource::Nofile) });
    let error = node.pod("b").run().await.expect_err("no descriptor");
    assert!(error.message().contains("Too many open files"), "{error:?}");
    assert_eq!(
        node.pods().await.expect("the connection is open").iter().filter(|one| one.state == 0).count(),
        1
    );
    // Who comes now waits, and is served later.
    let late = crate::harness::Cri::new(&node.place().path("l.sock"), node.place());
    let (version, ()) = tokio::join!(late.version(), async {
        let refused = "a client of the CRI could not be accepted";
        wait_until("a refusal", async || node.longshore().log().contains(refused)).await;
        limit_files(pid, before);
    });
    version.expect("it was worth the wait");
    for left in node.pods().await.expect("pods").iter().filter(|left| left.id != pod.id) {
        node.remove_pod(&left.id).await.expect("removed");
    }
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// A pids cgroup of the test's own, with the server in it.
struct Pids(PathBuf);

impl Pids {
    fn with(pid: u32, name: &str) -> Option<Pids> {
        let root = procfs::cgroup_roots().into_iter().find(|root| {
            root.join("pids.max").exists()
                || root.ends_with("pids")
                || root.join("cgroup.controllers").exists()
        })?;
        let folder = root.join(format!("{name}-server"));
        std::fs::create_dir(&folder).ok()?;
        let group = Pids(folder);
        let is_usable = group.0.join("pids.max").exists();
        (is_usable && std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).is_ok()).then_some(group)
    }

    fn limit(&self, text: &str) {
        std::fs::write(self.0.join("pids.max"), text).expect("a limit");
    }

    fn now(&self) -> u64 {
        let text = std::fs::read_to_string(self.0.join("pids.current")).expect("a number");
        text.trim().parse().expect("a number")
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        let parent = self.0.parent().map(|parent| parent.join("cgroup.procs"));
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = parent.as_ref().map(|parent| std::fs::write(parent, pid));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// No process more can be started: a pod needs CNI plugins, which cannot be; it is said, and
/// the server goes on when they can.
#[tokio::test]
async fn a_server_that_may_start_no_process_fails_pods_and_recovers() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let Some(group) = Pids::with(node.longshore().pid(), &node.place().name()) else {
        println!("skipped: no pids cgroup can be made here");
        pod.remove().await.expect("removed");
        return node.finish().await;
    };
    group.limit(&group.now().to_string());
    let error = node.pod("b").run().await.expect_err("no process");
    assert!(error.message().contains("Resource temporarily unavailable"), "{error:?}");
    assert_eq!(container.sh("echo inside").await, "inside", "that is the shim's process");
    assert!(node.longshore().is_alive());
    group.limit("max");
    for left in node.pods().await.expect("pods").iter().filter(|left| left.id != pod.id) {
        node.remove_pod(&left.id).await.expect("removed");
    }
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.remove().await.expect("removed");
    drop(group);
    node.finish().await;
}
