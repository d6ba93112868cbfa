//! UpdateContainerResources, UpdatePodSandboxResources.

use longshore::proto::cri::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use tonic::Code;

use super::{UNKNOWN, code, is_plugin_before};
use crate::harness::{Container, Node};

fn is_v1() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What is in a file of a container's cgroup.
async fn in_cgroup(container: &Container, v1: &str, v2: &str) -> String {
    let pid = container.info().await["pid"].as_u64().expect("it runs");
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    let controller = if is_v1() { v1.split('.').next().unwrap_or_default() } else { "" };
    let path = lines.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let found = fields.nth(1).is_some_and(|names| names.split(',').any(|name| name == controller));
        fields.next().filter(|_| found)
    });
    let path = path.expect("a cgroup");
    let file = if is_v1() {
        format!("/sys/fs/cgroup/{controller}{path}/{v1}")
    } else {
        format!("/sys/fs/cgroup{path}/{v2}")
    };
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

async fn memory_limit(container: &Container) -> String {
    in_cgroup(container, "memory.limit_in_bytes", "memory.max").await
}

fn limits(memory: i64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_period: if quota == 0 { 0 } else { 100_000 },
        ..Default::default()
    }
}

async fn shown(container: &Container) -> LinuxContainerResources {
    let status = container.status().await.expect("a status");
    status.resources.and_then(|resources| resources.linux).expect("resources")
}

/// RES-01, RES-03, RES-04.
#[tokio::test]
async fn limits_change_before_the_start_and_while_it_runs() {
    let node = Node::start().await;
    let pod = node.pod("limits").run().await.expect("a pod");
    let container = pod
        .container("c")
        .forever()
        .resources(|resources| *resources = limits(64 << 20, 50_000))
        .create()
        .await
        .expect("a container");
    container.update(limits(96 << 20, 0)).await.expect("updated");
    assert_eq!(
        (shown(&container).await.memory_limit_in_bytes, shown(&container).await.cpu_quota),
        (96 << 20, 50_000)
    );
    container.start().await.expect("started");
    assert_eq!(memory_limit(&container).await, (96 << 20).to_string());
    for memory in [128 << 20, 48 << 20] {
        container.update(limits(memory, 0)).await.expect("updated");
        assert_eq!(memory_limit(&container).await, memory.to_string());
        assert_eq!(shown(&container).await.memory_limit_in_bytes, memory);
    }
    container.update(limits(0, 25_000)).await.expect("updated");
    let quota = in_cgroup(&container, "cpu.cfs_quota_us", "cpu.max").await;
    assert_eq!(quota.split(' ').next(), Some("25000"));
    assert_eq!(memory_limit(&container).await, (48 << 20).to_string());
    container.stop(0).await.expect("stopped");
    container.update(limits(80 << 20, 0)).await.expect("nothing to do");
    container.remove().await.expect("removed");
    assert_eq!(code(container.update(limits(1 << 20, 0)).await), Code::NotFound);
    node.remove_all().await;
    node.finish().await;
}

/// RES-02, RES-05.
#[tokio::test]
async fn a_refused_update_changes_nothing() {
    let node = Node::start().await;
    let pod = node.pod("refused").run().await.expect("a pod");
    let container = pod
        .container("c")
        // What is in a file system of memory cannot be taken back.
        .sh("head -c 24000000 /dev/zero >/dev/shm/full; echo full; sleep 1000")
        .resources(|resources| *resources = limits(64 << 20, 50_000))
        .run()
        .await
        .expect("a container");
    container.wait_log("full").await;
    // Of cgroup v2 the kernel kills instead.
    let wrong = if is_v1() {
        limits(8 << 20, 25_000)
    } else {
        LinuxContainerResources { cpuset_cpus: "99999".into(), ..limits(0, 25_000) }
    };
    container.update(wrong).await.expect_err("the kernel does not");
    let unified = [("memory.nothing".to_owned(), "1".to_owned())].into();
    let wrong = LinuxContainerResources { unified, ..limits(0, 25_000) };
    container.update(wrong).await.expect_err("there is no such file");
    let quota = in_cgroup(&container, "cpu.cfs_quota_us", "cpu.max").await;
    assert_eq!(quota.split(' ').next(), Some("50000"));
    assert_eq!(memory_limit(&container).await, (64 << 20).to_string());
    let now = shown(&container).await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_quota), (64 << 20, 50_000));
    assert!(now.unified.is_empty(), "{now:?}");
    let spec = container.info().await["runtimeSpec"]["linux"]["resources"].clone();
    assert_eq!((&spec["memory"]["limit"], &spec["cpu"]["quota"]), (&(64 << 20).into(), &50_000.into()));
    assert!(spec["unified"].is_null(), "{spec}");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-57.
#[tokio::test]
async fn resources_of_a_pod_are_remembered() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 2) {
        node.finish().await;
        return;
    }
    let pod = node.pod("remember").run().await.expect("a pod");
    let update = async |id: &str, shares| {
        let of = |shares| Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() });
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead: of(2 * shares),
            resources: of(shares),
        };
        node.runtime().update_pod_sandbox_resources(request).await.map(drop)
    };
    assert_eq!(code(update(UNKNOWN, 7).await), Code::NotFound);
    let info = pod.info().await;
    assert!(info["resources"].is_null() && info["overhead"].is_null());
    for shares in [512, 1024] {
        update(&pod.id, shares).await.expect("updated");
        let info = pod.info().await;
        assert_eq!(info["resources"]["linux"]["cpu_shares"], shares);
        assert_eq!(info["overhead"]["linux"]["cpu_shares"], 2 * shares);
    }
    node.remove_all().await;
    node.finish().await;
}
