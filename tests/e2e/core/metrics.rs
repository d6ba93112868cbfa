//! Metrics of pods and containers (STA-17 … STA-22).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use longshore::proto::cri::{Metric, MetricType, PodSandboxMetrics};

use super::{is_plugin_before, now_ns};
use crate::harness::procfs::cgroup_number;
use crate::harness::{CgroupDriver, Container, Node, Pod, wait_for};

/// The labels that every metric has.
const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
/// What containerd's plugin describes: name, and labels after the base.
const NAMES: [(&str, &[&str]); 49] = [
    ("container_blkio_device_usage_total", &["device", "major", "minor", "operation"]),
    ("container_cpu_cfs_periods_total", &[]),
    ("container_cpu_cfs_throttled_periods_total", &[]),
    ("container_cpu_cfs_throttled_seconds_total", &[]),
    ("container_cpu_system_seconds_total", &[]),
    ("container_cpu_usage_seconds_total", &[]),
    ("container_cpu_user_seconds_total", &[]),
    ("container_file_descriptors", &[]),
    ("container_fs_inodes_free", &["device"]),
    ("container_fs_inodes_total", &["device"]),
    ("container_fs_limit_bytes", &["device"]),
    ("container_fs_reads_bytes_total", &["device"]),
    ("container_fs_reads_total", &["device"]),
    ("container_fs_usage_bytes", &["device"]),
    ("container_fs_writes_bytes_total", &["device"]),
    ("container_fs_writes_total", &["device"]),
    ("container_last_seen", &[]),
    ("container_memory_cache", &[]),
    ("container_memory_failcnt", &[]),
    ("container_memory_failures_total", &["failure_type", "scope"]),
    ("container_memory_kernel_usage", &[]),
    ("container_memory_mapped_file", &[]),
    ("container_memory_max_usage_bytes", &[]),
    ("container_memory_rss", &[]),
    ("container_memory_swap", &[]),
    ("container_memory_total_active_file_bytes", &[]),
    ("container_memory_total_inactive_file_bytes", &[]),
    ("container_memory_usage_bytes", &[]),
    ("container_memory_working_set_bytes", &[]),
    ("container_network_receive_bytes_total", &["interface"]),
    ("container_network_receive_errors_total", &["interface"]),
    ("container_network_receive_packets_dropped_total", &["interface"]),
    ("container_network_receive_packets_total", &["interface"]),
    ("container_network_transmit_bytes_total", &["interface"]),
    ("container_network_transmit_errors_total", &["interface"]),
    ("container_network_transmit_packets_dropped_total", &["interface"]),
    ("container_network_transmit_packets_total", &["interface"]),
    ("container_oom_events_total", &[]),
    ("container_processes", &[]),
    ("container_sockets", &[]),
    ("container_spec_cpu_period", &[]),
    ("container_spec_cpu_shares", &[]),
    ("container_spec_memory_limit_bytes", &[]),
    ("container_spec_memory_reservation_limit_bytes", &[]),
    ("container_spec_memory_swap_limit_bytes", &[]),
    ("container_start_time_seconds", &[]),
    ("container_threads", &[]),
    ("container_threads_max", &[]),
    ("container_ulimits_soft", &["ulimit"]),
];
/// What every running container has, with its type.
const ALWAYS: [(&str, MetricType); 22] = [
    ("container_cpu_cfs_periods_total", MetricType::Counter),
    ("container_cpu_system_seconds_total", MetricType::Counter),
    ("container_cpu_usage_seconds_total", MetricType::Counter),
    ("container_cpu_user_seconds_total", MetricType::Counter),
    ("container_file_descriptors", MetricType::Gauge),
    ("container_fs_inodes_free", MetricType::Gauge),
    ("container_fs_inodes_total", MetricType::Gauge),
    ("container_fs_limit_bytes", MetricType::Gauge),
    ("container_last_seen", MetricType::Gauge),
    ("container_memory_cache", MetricType::Gauge),
    ("container_memory_failcnt", MetricType::Counter),
    ("container_memory_failures_total", MetricType::Counter),
    ("container_memory_mapped_file", MetricType::Gauge),
    ("container_memory_rss", MetricType::Gauge),
    ("container_memory_usage_bytes", MetricType::Gauge),
    ("container_memory_working_set_bytes", MetricType::Gauge),
    ("container_oom_events_total", MetricType::Counter),
    ("container_processes", MetricType::Gauge),
    ("container_sockets", MetricType::Gauge),
    ("container_spec_memory_limit_bytes", MetricType::Gauge),
    ("container_start_time_seconds", MetricType::Gauge),
    ("container_threads_max", MetricType::Gauge),
];
/// How the names of those begin that not every machine, or not every container has.
const SOMETIMES: [&str; 6] = [
    "container_blkio_device_usage",
    "container_fs_reads",
    "container_fs_writes",
    "container_hugetlb",
    "container_pressure",
    "container_spec_memory_reservation",
];
/// How far memory of an idle container may be between two moments.
const MEMORY_TOLERANCE: u64 = 4 << 20;

/// The metrics of one container; the plugin has none in the moment of its start.
async fn of_container(node: &Node, pod: &Pod, container: &Container) -> Vec<Metric> {
    wait_for("the metrics of the container", async || {
        let list = node.pod_metrics().await.expect("metrics");
        let pod = list.into_iter().find(|one| one.pod_sandbox_id == pod.id)?;
        let found = pod.container_metrics.into_iter().find(|one| one.container_id == container.id)?;
        Some(found.metrics).filter(|metrics| has_disk(metrics))
    })
    .await
}

fn has_disk(metrics: &[Metric]) -> bool {
    metrics.iter().any(|metric| metric.name == "container_fs_usage_bytes")
}

/// The value of a metric with these labels after the base.
fn number(metrics: &[Metric], name: &str, labels: &[&str]) -> u64 {
    let mut found =
        metrics.iter().filter(|metric| metric.name == name && metric.label_values[BASE.len()..] == *labels);
    let metric = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    metric.value.expect("a value").value
}

/// STA-17: every metric is described, with that many labels, and none comes twice.
fn check_form(list: &[PodSandboxMetrics], described: &BTreeMap<String, Vec<String>>) {
    let all = list.iter().flat_map(|pod| {
        pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|container| &container.metrics))
    });
    let mut seen = HashSet::new();
    for metric in all {
        let labels = described.get(&metric.name).unwrap_or_else(|| panic!("{} is described", metric.name));
        assert_eq!(labels.len(), metric.label_values.len(), "{metric:?}");
        assert!(metric.value.is_some(), "{metric:?}");
        assert!(seen.insert((&metric.name, &metric.label_values)), "twice: {metric:?}");
    }
}

async fn described(node: &Node) -> BTreeMap<String, Vec<String>> {
    let list = node.metric_descriptors().await.expect("descriptors");
    list.into_iter().map(|descriptor| (descriptor.name, descriptor.label_keys)).collect()
}

/// STA-17 … STA-21.
#[tokio::test]
async fn metrics_have_the_names_and_labels_that_dashboards_know() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 3) {
        return node.finish().await;
    }
    let described = described(&node).await;
    let want = NAMES.iter().map(|(name, own)| {
        let labels = BASE.iter().chain(*own).map(|label| (*label).to_owned()).collect::<Vec<_>>();
        ((*name).to_owned(), labels)
    });
    let want: BTreeMap<String, Vec<String>> = want.collect();
    for (name, labels) in &want {
        assert_eq!(described.get(name), Some(labels), "{name}");
    }
    // The list above is all that the plugin has.
    if node.is_built_in() {
        assert_eq!(described.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    }
    assert!(node.pod_metrics().await.expect("metrics").is_empty());

    let pod = node.pod("a").namespace("somewhere").run().await.expect("a pod");
    let stopped = node.pod("stopped").run().await.expect("a pod");
    stopped.stop().await.expect("stopped");
    let container = pod.container("c").forever();
    let container = container.resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.memory_swap_limit_in_bytes = 64 << 20;
        resources.cpu_shares = 1024;
        resources.cpu_period = 100_000;
        resources.cpu_quota = 50_000;
    });
    let container = container.run().await.expect("it runs");
    let metrics = of_container(&node, &pod, &container).await;
    // The image is what the user wrote, not the id that the kubelet made of it.
    let image = container.config.image.clone().expect("an image").user_specified_image;
    let base = ["a", "somewhere", "c", container.id.as_str(), image.as_str()];
    let mut kinds = BTreeMap::new();
    for metric in &metrics {
        assert_eq!(metric.label_values[..BASE.len()], base, "{metric:?}");
        kinds.insert(metric.name.as_str(), metric.metric_type());
    }
    for (name, kind) in ALWAYS {
        assert_eq!(kinds.get(name), Some(&kind), "{name}");
    }
    let list = node.pod_metrics().await.expect("metrics");
    check_form(&list, &described);
    let [of_pod] = list.as_slice() else { panic!("one pod: {list:?}") };
    assert_eq!(of_pod.pod_sandbox_id, pod.id);
    let interfaces: BTreeSet<&str> = of_pod
        .metrics
        .iter()
        .map(|metric| {
            assert_eq!(metric.label_values[..BASE.len()], ["a", "somewhere", "", pod.id.as_str(), ""]);
            assert_eq!(metric.metric_type(), MetricType::Counter);
            metric.label_values[BASE.len()].as_str()
        })
        .collect();
    assert!(interfaces.contains("eth0") && !interfaces.contains("lo"), "{interfaces:?}");
    let counters: BTreeSet<&str> = of_pod.metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(counters.len(), 8, "{counters:?}");
    // What is described is sent, where the kernel and the disk have it.
    let sent = |name: &str| kinds.contains_key(name) || counters.contains(name);
    let missing: Vec<&String> = described
        .keys()
        .filter(|name| !sent(name) && !SOMETIMES.iter().any(|some| name.starts_with(some)))
        .collect();
    assert!(missing.is_empty() || node.is_built_in(), "{missing:?}");
    node.remove_all().await;
    node.finish().await;
}

/// STA-18 … STA-22: the kernel's own figures.
#[tokio::test]
async fn metrics_are_those_of_the_kernel() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 3) {
        return node.finish().await;
    }
    let pod = node.pod("a").run().await.expect("a pod");
    let peer = node.pod("b").run().await.expect("a pod");
    let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' a); i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; \
                  echo ready; mkfifo /f; read y </f";
    let container = pod.container("c").sh(script).resources(|resources| {
        resources.memory_limit_in_bytes = 256 << 20;
        resources.cpu_shares = 512;
        resources.cpu_period = 50_000;
        resources.cpu_quota = 40_000;
    });
    let container = container.run().await.expect("it runs");
    container.wait_log("ready").await;
    container.sh(&format!("ping -c 3 -s 1000 -i 0.1 -w 20 {}", peer.ip().await)).await;
    let parent = pod.config.linux.clone().expect("linux").cgroup_parent;
    let path = CgroupDriver::from_env().of_container(&parent, &container.id);
    let kernel = |files: &[&str]| cgroup_number(&path, files);

    let cpu = || kernel(&["cpuacct.usage", "cpu.stat usage_usec"]);
    let per_second = if kernel_is_v2() { 1_000_000 } else { 1_000_000_000 };
    let before = cpu() / per_second;
    let metrics = of_container(&node, &pod, &container).await;
    let after = cpu() / per_second;
    let get = |name: &str| number(&metrics, name, &[]);
    let used = get("container_cpu_usage_seconds_total");
    assert!((before..=after).contains(&used), "{used}: {before}, {after}");
    let parts = get("container_cpu_user_seconds_total") + get("container_cpu_system_seconds_total");
    assert!(parts <= used + 1 && parts + 2 >= used, "{parts} of {used}");
    let periods = kernel(&["cpu.stat nr_periods"]);
    assert!(get("container_cpu_cfs_periods_total").abs_diff(periods) <= 2, "{periods}");
    let throttled = kernel(&["cpu.stat nr_throttled"]);
    assert_eq!(get("container_cpu_cfs_throttled_periods_total"), throttled);
    for (name, files) in [
        ("container_memory_usage_bytes", ["memory.usage_in_bytes", "memory.current"]),
        ("container_memory_rss", ["memory.stat total_rss", "memory.stat anon"]),
        ("container_memory_cache", ["memory.stat total_cache", "memory.stat file"]),
        ("container_memory_mapped_file", ["memory.stat total_mapped_file", "memory.stat file_mapped"]),
        (
            "container_memory_total_active_file_bytes",
            ["memory.stat total_active_file", "memory.stat active_file"],
        ),
        (
            "container_memory_total_inactive_file_bytes",
            ["memory.stat total_inactive_file", "memory.stat inactive_file"],
        ),
    ] {
        let (told, want) = (get(name), kernel(&files));
        assert!(told.abs_diff(want) < MEMORY_TOLERANCE, "{name}: {told}, {want}");
    }
    assert!(get("container_memory_rss") >= 20_000_000);
    let (usage, set) = (get("container_memory_usage_bytes"), get("container_memory_working_set_bytes"));
    let inactive = get("container_memory_total_inactive_file_bytes");
    assert_eq!(set, usage - inactive);
    let faults = number(&metrics, "container_memory_failures_total", &["pgfault", "container"]);
    let want = kernel(&["memory.stat pgfault"]);
    assert!(faults <= want && faults > 0, "{faults}, {want}");
    assert_eq!(get("container_oom_events_total"), 0);
    assert_eq!(get("container_memory_failcnt"), 0);

    assert_eq!(get("container_spec_memory_limit_bytes"), 256 << 20);
    assert_eq!(get("container_spec_cpu_shares"), 512);
    assert_eq!(get("container_spec_cpu_period"), 50_000);
    // The plugin counts threads as processes; here each has one.
    assert_eq!(get("container_processes"), kernel(&["pids.current"]));
    let files = container.sh("ls /proc/1/fd | wc -l").await;
    assert_eq!(get("container_file_descriptors").to_string(), files);
    let seen = get("container_last_seen");
    assert!(seen.abs_diff(now_ns() as u64 / 1_000_000_000) < 120, "{seen}");

    let list = node.pod_metrics().await.expect("metrics");
    let of_pod = list.into_iter().find(|one| one.pod_sandbox_id == pod.id).expect("the pod").metrics;
    for (name, file) in [
        ("container_network_receive_packets_total", "rx_packets"),
        ("container_network_transmit_packets_total", "tx_packets"),
        ("container_network_receive_bytes_total", "rx_bytes"),
        ("container_network_transmit_packets_dropped_total", "tx_dropped"),
    ] {
        let told = number(&of_pod, name, &["eth0"]);
        let text = container.sh(&format!("cat /sys/class/net/eth0/statistics/{file}")).await;
        let want: u64 = text.parse().expect("a number");
        // The bridge may say something in between.
        assert!(told <= want && want - told < 5000, "{name}: {told}, {want}");
    }
    node.remove_all().await;
    node.finish().await;
}

fn kernel_is_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
