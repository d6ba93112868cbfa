//! What pods and containers use (area STA).

use std::path::Path;

use longshore::proto::cri::{
    ContainerStats, ContainerStatsFilter, CpuUsage, NetworkInterfaceUsage, PodSandboxStatsFilter, UInt64Value,
};
use tonic::Code;

use super::{UNKNOWN, code, is_plugin_before, now_ns};
use crate::harness::procfs::cgroup_number;
use crate::harness::{CgroupDriver, Container, Node, Pod, wait_for, wait_until};

/// How far a figure of an idle container may be from the kernel's at another moment.
const MEMORY_TOLERANCE: u64 = 4 << 20;
/// A container that has much of its own memory in use.
const EAT: &str = "x=$(head -c 20000000 /dev/zero | tr '\\0' a); echo eaten; while :; do sleep 1; done";
/// How much that is at least.
const EATEN: u64 = 20_000_000;

/// The anonymous memory of a cgroup.
const RSS: [&str; 2] = ["memory.stat total_rss", "memory.stat anon"];

/// Waits until the kernel counts what a container of [`EAT`] has: it does so now and then.
async fn wait_eaten(container: &Container, cgroup: &str) {
    container.wait_log("eaten").await;
    wait_until("the memory to be counted", async || cgroup_number(cgroup, &RSS) >= EATEN).await;
}

fn of(value: Option<UInt64Value>) -> u64 {
    value.expect("a value").value
}

/// The cgroup of a pod, and of a container in it.
fn cgroup(pod: &Pod) -> String {
    pod.config.linux.clone().expect("linux").cgroup_parent
}

fn cgroup_of(pod: &Pod, container: &Container) -> String {
    CgroupDriver::from_env().of_container(&cgroup(pod), &container.id)
}

/// Nanoseconds of cpu that a cgroup had so far.
fn cpu_ns(cgroup: &str) -> u64 {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        cgroup_number(cgroup, &["cpu.stat usage_usec"]) * 1000
    } else {
        cgroup_number(cgroup, &["cpuacct.usage"])
    }
}

/// The list's entry of a container, once its rate is known: older plugins have none at first.
async fn with_rate(node: &Node, id: &str) -> ContainerStats {
    wait_for("a rate", async || {
        let filter = ContainerStatsFilter { id: id.to_owned(), ..Default::default() };
        let list = node.list_container_stats(Some(filter)).await.expect("a list");
        let stats = list.into_iter().next().expect("the container");
        let cpu = stats.cpu.expect("cpu");
        cpu.usage_nano_cores.is_some_and(|rate| rate.value > 0).then_some(stats)
    })
    .await
}

/// What the processors of the machine can give, with room for a reading that is late.
fn rate_max() -> u64 {
    2_000_000_000 * std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// STA-03 … STA-07.
#[tokio::test]
async fn memory_and_cpu_are_those_of_the_kernel() {
    let node = Node::start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let limit = 256 << 20;
    let container = pod.container("eats").labels([("is", "fed")]).sh(EAT);
    let container = container.config(|config| {
        config.annotations.insert("note".into(), "x".into());
    });
    let container = container.resources(|resources| resources.memory_limit_in_bytes = limit as i64);
    let container = container.run().await.expect("it runs");
    let path = cgroup_of(&pod, &container);
    wait_eaten(&container, &path).await;

    let (before, begun) = (cpu_ns(&path), now_ns());
    let stats = node.container_stats(&container.id).await.expect("stats");
    let (after, ended) = (cpu_ns(&path), now_ns());
    let cpu = stats.cpu.expect("cpu");
    assert!((before..=after).contains(&of(cpu.usage_core_nano_seconds)), "{cpu:?}: {before}, {after}");
    assert!((begun..=ended).contains(&cpu.timestamp), "{cpu:?}");

    let memory = stats.memory.expect("memory");
    assert!((begun..=ended).contains(&memory.timestamp), "{memory:?}");
    let usage = cgroup_number(&path, &["memory.current", "memory.usage_in_bytes"]);
    assert!(of(memory.usage_bytes).abs_diff(usage) < MEMORY_TOLERANCE, "{memory:?}: {usage}");
    let rss = cgroup_number(&path, &RSS);
    assert!(of(memory.rss_bytes).abs_diff(rss) < MEMORY_TOLERANCE, "{memory:?}: {rss}");
    assert!(of(memory.rss_bytes) >= EATEN && of(memory.working_set_bytes) >= EATEN, "{memory:?}");
    assert!(of(memory.working_set_bytes) <= of(memory.usage_bytes), "{memory:?}");
    assert_eq!(of(memory.available_bytes) + of(memory.working_set_bytes), limit, "{memory:?}");
    assert!(of(memory.page_faults) >= EATEN / 4096 / 512, "{memory:?}");
    assert!(memory.major_page_faults.is_some());

    let attributes = stats.attributes.expect("attributes");
    assert_eq!(attributes.id, container.id);
    assert_eq!(attributes.metadata, container.config.metadata);
    assert_eq!(attributes.labels, container.config.labels);
    assert_eq!(attributes.annotations, container.config.annotations);
    node.remove_all().await;
    node.finish().await;
}

/// STA-04.
#[tokio::test]
async fn a_busy_container_has_a_rate_and_an_idle_one_hardly_any() {
    let node = Node::start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let idle = pod.container("idle").forever().run().await.expect("it runs");
    let busy = pod.container("busy").sh("while :; do :; done").run().await.expect("it runs");
    let rate = |stats: &ContainerStats| of(stats.cpu.as_ref().expect("cpu").usage_nano_cores);
    let busy = rate(&with_rate(&node, &busy.id).await);
    assert!((1_000_000..rate_max()).contains(&busy), "{busy}");
    let list = node.list_container_stats(None).await.expect("a list");
    let found = list.iter().find(|stats| stats.attributes.as_ref().is_some_and(|one| one.id == idle.id));
    let cpu: &CpuUsage = found.and_then(|stats| stats.cpu.as_ref()).expect("cpu");
    assert!(cpu.usage_nano_cores.is_none_or(|idle| idle.value < busy), "{cpu:?}");
    node.remove_all().await;
    node.finish().await;
}

/// STA-01.
#[tokio::test]
async fn containers_that_do_not_run_are_listed_without_cpu_and_memory() {
    let node = Node::start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let created = pod.container("created").create().await.expect("a container");
    let exited = pod.container("exited").command(["true"]).run().await.expect("a container");
    exited.wait_exited().await;
    let running = pod.container("running").forever().run().await.expect("it runs");
    let list = node.list_container_stats(None).await.expect("a list");
    assert_eq!(list.len(), 3);
    for stats in list {
        let attributes = stats.attributes.expect("attributes");
        let is_running = attributes.id == running.id;
        assert!([&created, &exited, &running].iter().any(|container| container.id == attributes.id));
        assert_eq!((stats.cpu.is_some(), stats.memory.is_some()), (is_running, is_running), "{attributes:?}");
        let layer = stats.writable_layer.expect("a layer");
        let root = layer.fs_id.expect("a file system").mountpoint;
        assert!(Path::new(&root).is_dir(), "{root:?}");
    }
    // The plugin gives an error for those.
    if !node.is_built_in() {
        let stats = node.container_stats(&created.id).await.expect("stats");
        assert_eq!((stats.cpu, stats.memory), (None, None));
    }
    node.remove_all().await;
    node.finish().await;
}

/// STA-02.
#[tokio::test]
async fn container_stats_are_filtered_by_id_pod_and_labels() {
    let node = Node::start().await;
    let pod = node.pod("one").run().await.expect("a pod");
    let other = node.pod("two").run().await.expect("a pod");
    let a = pod.container("a").labels([("app", "web")]).forever().run().await.expect("it runs");
    pod.container("b").forever().run().await.expect("it runs");
    other.container("c").labels([("app", "web"), ("x", "y")]).forever().run().await.expect("it runs");
    let found = async |filter: Option<ContainerStatsFilter>| {
        let list = node.list_container_stats(filter).await.expect("a list");
        let attributes = list.into_iter().map(|stats| stats.attributes.expect("attributes"));
        let mut names: Vec<String> = attributes.map(|one| one.metadata.expect("metadata").name).collect();
        names.sort();
        names
    };
    let filter = ContainerStatsFilter::default;
    let labels = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let none = Vec::<&str>::new();
    assert_eq!(found(None).await, ["a", "b", "c"]);
    assert_eq!(found(Some(filter())).await, ["a", "b", "c"]);
    assert_eq!(found(Some(ContainerStatsFilter { id: a.id[..13].into(), ..filter() })).await, ["a"]);
    assert_eq!(found(Some(ContainerStatsFilter { id: UNKNOWN.into(), ..filter() })).await, none);
    let in_pod = ContainerStatsFilter { pod_sandbox_id: pod.id[..13].into(), ..filter() };
    assert_eq!(found(Some(in_pod.clone())).await, ["a", "b"]);
    let web = ContainerStatsFilter { label_selector: labels("app", "web"), ..filter() };
    assert_eq!(found(Some(web.clone())).await, ["a", "c"]);
    let both = ContainerStatsFilter { label_selector: web.label_selector, ..in_pod };
    assert_eq!(found(Some(both)).await, ["a"]);
    let other = ContainerStatsFilter { label_selector: labels("app", "db"), ..filter() };
    assert_eq!(found(Some(other)).await, none);
    node.remove_all().await;
    node.finish().await;
}

/// ERR-03.
#[tokio::test]
async fn stats_of_what_does_not_exist_are_not_found() {
    let node = Node::start().await;
    assert_eq!(code(node.container_stats(UNKNOWN).await), Code::NotFound);
    if !is_plugin_before(&node, 1, 7) {
        assert_eq!(code(node.pod_stats(UNKNOWN).await), Code::NotFound);
    }
    assert!(node.list_container_stats(None).await.expect("a list").is_empty());
    node.finish().await;
}

/// STA-10.
#[tokio::test]
async fn what_a_container_writes_is_seen_after_a_while() {
    let node = Node::start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let script =
        "mkdir /d && cd /d && touch 1 2 3 && head -c 5000000 /dev/zero >big && echo written; sleep 1000";
    let container = pod.container("writes").sh(script).run().await.expect("it runs");
    container.wait_log("written").await;
    let layer = wait_for("the size of the layer", async || {
        let stats = node.container_stats(&container.id).await.expect("stats");
        let layer = stats.writable_layer.expect("a layer");
        layer.used_bytes.is_some_and(|used| used.value >= 5_000_000).then_some(layer)
    })
    .await;
    assert!(of(layer.used_bytes) < 6_000_000, "{layer:?}");
    assert!((5..20).contains(&of(layer.inodes_used)), "{layer:?}");
    let root = layer.fs_id.expect("a file system").mountpoint;
    assert!(Path::new(&root).starts_with(node.containerd().root()), "{root}");
    assert!(layer.timestamp > 0 && layer.timestamp <= now_ns(), "{}", layer.timestamp);
    node.remove_all().await;
    node.finish().await;
}

/// STA-13.
#[tokio::test]
async fn a_pod_uses_what_its_containers_use_and_more() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let pod = node.pod("a").labels([("app", "web")]).annotations([("note", "x")]).run().await.expect("a pod");
    let eats = pod.container("eats").sh(EAT).run().await.expect("it runs");
    let idle = pod.container("idle").forever().run().await.expect("it runs");
    let path = cgroup(&pod);
    wait_eaten(&eats, &path).await;
    let before = cpu_ns(&path);
    let stats = node.pod_stats(&pod.id).await.expect("stats");
    let after = cpu_ns(&path);
    let attributes = stats.attributes.expect("attributes");
    assert_eq!((attributes.id, attributes.metadata), (pod.id.clone(), pod.config.metadata.clone()));
    assert_eq!((attributes.labels, attributes.annotations), {
        let config = pod.config.clone();
        (config.labels, config.annotations)
    });
    let linux = stats.linux.expect("linux");
    let cpu = linux.cpu.expect("cpu");
    assert!((before..=after).contains(&of(cpu.usage_core_nano_seconds)), "{cpu:?}: {before}, {after}");
    let memory = linux.memory.expect("memory");
    let usage = cgroup_number(&path, &["memory.current", "memory.usage_in_bytes"]);
    assert!(of(memory.usage_bytes).abs_diff(usage) < MEMORY_TOLERANCE, "{memory:?}: {usage}");
    assert!(of(memory.rss_bytes) >= EATEN, "{memory:?}");
    let mut ids: Vec<String> =
        linux.containers.iter().map(|one| one.attributes.clone().expect("attributes").id).collect();
    let mut want = [eats.id.clone(), idle.id.clone()];
    ids.sort();
    want.sort();
    assert_eq!(ids, want);
    assert!(linux.containers.iter().all(|one| one.memory.is_some()));
    // Of each container a shell and a sleep, which is another one from time to time.
    let processes = of(linux.process.expect("processes").process_count);
    assert!((2..=4).contains(&processes), "{processes}");
    node.remove_all().await;
    node.finish().await;
}

fn bytes(usage: &NetworkInterfaceUsage) -> (u64, u64) {
    (of(usage.rx_bytes), of(usage.tx_bytes))
}

/// STA-14.
#[tokio::test]
async fn the_traffic_of_a_pod_is_counted_in_its_namespace() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let pod = node.pod("a").run().await.expect("a pod");
    let peer = node.pod("b").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let usage = async || {
        let stats = node.pod_stats(&pod.id).await.expect("stats");
        let network = stats.linux.expect("linux").network.expect("a network");
        let default = network.default_interface.clone().expect("a default interface");
        assert_eq!(default.name, "eth0");
        // Older plugins list the others only, and do not tell the time.
        let is_listed = network.interfaces.contains(&default) && network.timestamp > 0;
        assert!(is_listed || is_plugin_before(&node, 2, 3), "{network:?}");
        assert!(network.interfaces.iter().all(|interface| interface.name != "lo"));
        bytes(&default)
    };
    let (rx, tx) = usage().await;
    container.sh(&format!("ping -c 5 -s 1000 -i 0.1 -w 20 {}", peer.ip().await)).await;
    let kernel = async |file: &str| -> u64 {
        let text = container.sh(&format!("cat /sys/class/net/eth0/statistics/{file}")).await;
        text.parse().expect("a number")
    };
    let before = (kernel("rx_bytes").await, kernel("tx_bytes").await);
    let now = usage().await;
    let after = (kernel("rx_bytes").await, kernel("tx_bytes").await);
    assert!(now.0 >= rx + 5000 && now.1 >= tx + 5000, "{now:?} after {rx}, {tx}");
    assert!((before.0..=after.0).contains(&now.0), "{now:?}: {before:?}, {after:?}");
    assert!((before.1..=after.1).contains(&now.1), "{now:?}: {before:?}, {after:?}");
    node.remove_all().await;
    node.finish().await;
}

/// STA-12, STA-14.
#[tokio::test]
async fn pods_are_filtered_and_those_that_are_not_ready_left_out() {
    let node = Node::start().await;
    if is_plugin_before(&node, 1, 7) {
        return node.finish().await;
    }
    let web = node.pod("web").labels([("app", "web")]).run().await.expect("a pod");
    let host = node.pod("host").host_network().run().await.expect("a pod");
    let stopped = node.pod("stopped").labels([("app", "web")]).run().await.expect("a pod");
    stopped.stop().await.expect("stopped");
    assert_ne!(code(node.pod_stats(&stopped.id).await), Code::Ok);
    let found = async |filter: Option<PodSandboxStatsFilter>| {
        let list = node.list_pod_stats(filter).await.expect("a list");
        let attributes = list.into_iter().map(|stats| stats.attributes.expect("attributes"));
        let mut names: Vec<String> = attributes.map(|one| one.metadata.expect("metadata").name).collect();
        names.sort();
        names
    };
    let filter = PodSandboxStatsFilter::default;
    assert_eq!(found(None).await, ["host", "web"]);
    assert_eq!(found(Some(PodSandboxStatsFilter { id: web.id[..13].into(), ..filter() })).await, ["web"]);
    let labels = [("app".to_owned(), "web".to_owned())].into();
    assert_eq!(found(Some(PodSandboxStatsFilter { label_selector: labels, ..filter() })).await, ["web"]);
    let none = PodSandboxStatsFilter { id: UNKNOWN.into(), ..filter() };
    assert_eq!(found(Some(none)).await, Vec::<&str>::new());
    let stats = node.pod_stats(&host.id).await.expect("stats");
    assert_eq!(stats.linux.expect("linux").network, None);
    node.remove_all().await;
    node.finish().await;
}
