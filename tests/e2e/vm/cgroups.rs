//! Where cgroups are, and what containers see of them.

use longshore::proto::cri::{CgroupDriver as Told, RuntimeConfigRequest};

use super::{cgroup_of, pause_pid, pid};
use crate::harness::{CgroupDriver, Node, Server};

async fn told_driver(node: &Node) -> Told {
    let answer = node.runtime().runtime_config(RuntimeConfigRequest {}).await.expect("RuntimeConfig");
    answer.into_inner().linux.expect("linux").cgroup_driver()
}

/// SVC-22, SVC-23.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn the_driver_is_told_and_systemd_is_found() {
    let node = Node::start().await;
    let want = match CgroupDriver::from_env() {
        CgroupDriver::Systemd => Told::Systemd,
        CgroupDriver::Cgroupfs => Told::Cgroupfs,
    };
    assert_eq!(told_driver(&node).await, want);
    node.finish().await;
    let node = Node::with(Server::Longshore).config("[runtime]\ncgroup_driver = \"auto\"\n").start().await;
    assert_eq!(told_driver(&node).await, Told::Systemd);
    node.finish().await;
}

/// COX-16, EXE-06: an exec'ed process is in its container's.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn cgroups_have_the_names_that_node_tools_look_for() {
    let node = Node::start().await;
    let pod = node.pod("names").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    let driver = CgroupDriver::from_env();
    let of = |id: &str| format!("/sys/fs/cgroup{}", driver.of_container(parent, id));
    let found = cgroup_of(pid(&container).await);
    assert_eq!(found.display().to_string(), of(&container.id));
    assert_eq!(cgroup_of(pause_pid(&pod).await).display().to_string(), of(&pod.id));
    let before = std::fs::read_to_string(found.join("cgroup.procs")).expect("a list").lines().count();
    container.sh("mkfifo /tmp/wait").await;
    let exec = container.clone();
    let runs = tokio::spawn(async move { exec.exec(["sh", "-c", "touch /tmp/on; cat /tmp/wait"]).await });
    container.sh("until [ -e /tmp/on ]; do usleep 20000; done").await;
    let during = std::fs::read_to_string(found.join("cgroup.procs")).expect("a list").lines().count();
    assert!(during > before, "{before} before, {during} during");
    container.sh("echo > /tmp/wait").await;
    assert_eq!(runs.await.expect("no panic").expect("it runs").exit_code, 0);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-23, OCI-26, OCI-39, OCI-16.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn a_container_sees_its_cgroup_as_the_root_and_may_write_where_it_is_said() {
    let handlers = "[runtime.handlers.writable]\ncgroup_writable = true\n\
                    [runtime.handlers.writable.options]\nRoot = \"{folder}/runc\"\n";
    let node = Node::with(Server::Longshore).config(handlers).start().await;
    let pod = node.pod("plain").run().await.expect("a pod");
    let plain = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(plain.sh("cat /proc/self/cgroup").await, "0::/");
    let own = std::fs::read_link("/proc/self/ns/cgroup").expect("a namespace").display().to_string();
    assert_ne!(plain.sh("readlink /proc/self/ns/cgroup").await, own);
    // The limits that it sees are its own.
    plain.sh("test -e /sys/fs/cgroup/memory.max && test -e /sys/fs/cgroup/cgroup.procs").await;
    let refused = plain.exec(["mkdir", "/sys/fs/cgroup/mine"]).await.expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.exit_code != 0 && said.contains("Read-only"), "{said}");

    let pod = node.pod("writable").handler("writable").run().await.expect("a pod");
    let writable = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(writable.sh("cat /proc/self/cgroup").await, "0::/");
    writable.sh("mkdir /sys/fs/cgroup/mine && echo 5 > /sys/fs/cgroup/mine/cgroup.max.depth").await;
    assert!(cgroup_of(pid(&writable).await).join("mine").is_dir());

    let pod = node.pod("privileged").security(|security| security.privileged = true).run().await;
    let pod = pod.expect("a pod");
    let privileged = pod.container("c").forever().security(|security| security.privileged = true).run().await;
    let privileged = privileged.expect("a container");
    assert_eq!(privileged.sh("readlink /proc/self/ns/cgroup").await, own);
    let seen = privileged.sh("cat /proc/self/cgroup").await;
    assert!(seen.ends_with(&CgroupDriver::from_env().of_container("", &privileged.id)), "{seen}");
    let inside = seen.strip_prefix("0::").expect("cgroup v2");
    privileged.sh(&format!("mkdir /sys/fs/cgroup{inside}/mine")).await;
    assert!(cgroup_of(pid(&privileged).await).join("mine").is_dir());
    node.remove_all().await;
    node.finish().await;
}
