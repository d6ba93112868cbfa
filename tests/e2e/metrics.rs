//! Metrics where longshore has more than containerd's plugin, or has them another way.

use longshore::proto::cri::{Metric, PodSandboxMetrics, StreamPodSandboxMetricsRequest};

use crate::harness::{Container, Node, Server, procfs, wait_for, wait_until};

async fn node() -> Node {
    Node::with(Server::Longshore).start().await
}

fn of_container<'a>(list: &'a [PodSandboxMetrics], container: &Container) -> Option<&'a [Metric]> {
    let mut all = list.iter().flat_map(|pod| &pod.container_metrics);
    all.find(|one| one.container_id == container.id).map(|one| one.metrics.as_slice())
}

fn values(metrics: &[Metric], name: &str) -> Vec<u64> {
    metrics
        .iter()
        .filter(|metric| metric.name == name)
        .map(|metric| metric.value.expect("a value").value)
        .collect()
}

/// STA-20 … STA-22: disks, processes, limits, times.
#[tokio::test]
async fn what_the_plugin_gets_wrong_is_right() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let script = "head -c 3000000 /dev/zero >/big; nc -l -p 9 & echo ready; sleep 1000 & wait";
    let container = pod.container("c").sh(script).resources(|resources| resources.cpu_quota = 50_000);
    let container = container.run().await.expect("it runs");
    container.wait_log("ready").await;
    let metrics = wait_for("the size of the layer", async || {
        let list = node.pod_metrics().await.expect("metrics");
        let metrics = of_container(&list, &container).expect("the container").to_vec();
        let written = values(&metrics, "container_fs_usage_bytes");
        let has_socket = values(&metrics, "container_sockets") == [1];
        (written.first().is_some_and(|bytes| *bytes >= 3_000_000) && has_socket).then_some(metrics)
    })
    .await;
    let one = |name: &str| {
        let found = values(&metrics, name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0]
    };
    assert!(one("container_fs_usage_bytes") < 4_000_000);
    let root = rustix::fs::statvfs(node.containerd().root()).expect("the disk of containerd");
    assert_eq!(one("container_fs_limit_bytes"), root.f_blocks * root.f_frsize);
    assert_eq!(one("container_fs_inodes_total"), root.f_files);
    assert!(one("container_fs_inodes_free") <= root.f_files);
    // A shell, a server, a sleep.
    assert_eq!(one("container_processes"), 3);
    assert_eq!(one("container_threads"), 3);
    let limit = container.sh("ulimit -n").await;
    assert_eq!(one("container_ulimits_soft").to_string(), limit);
    assert_eq!(one("container_spec_cpu_quota"), 50_000);
    let started = container.status().await.expect("a status").started_at;
    assert_eq!(
        one("container_start_time_seconds"),
        u64::try_from(started).expect("after 1970") / 1_000_000_000
    );
    assert_eq!(values(&metrics, "container_memory_failures_total").len(), 4);
    // Of now, but for what is counted by a walk.
    for metric in &metrics {
        assert_eq!(metric.timestamp == 0, metric.name != "container_fs_usage_bytes", "{metric:?}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// STA-11: what cannot be had of one container is missing there alone. The plugin leaves out
/// the whole pod of one that is not running.
#[tokio::test]
async fn a_bad_container_spoils_nothing() {
    let config = format!(
        "[runtime.handlers.vm]\ntype = \"io.containerd.vm.v2\"\npath = {:?}\n",
        crate::stats::node_shim()
    );
    let node = Node::with(Server::Longshore).config(&config).start().await;
    let vm = node.pod("vm").handler("vm").run().await.expect("a pod");
    let here = node.pod("here").run().await.expect("a pod");
    let host = node.pod("host").host_network().run().await.expect("a pod");
    let stuck = vm.container("stuck").forever().run().await.expect("it runs");
    let created = here.container("created").forever().create().await.expect("created");
    let exited = here.container("exited").command(["true"]).run().await.expect("it runs");
    exited.wait_exited().await;
    let runs = here.container("runs").forever().run().await.expect("it runs");

    let shims: Vec<_> = procfs::processes()
        .into_iter()
        .filter(|one| one.program().starts_with("containerd-shim") && one.arguments.contains(&vm.id))
        .filter_map(|shim| rustix::process::Pid::from_raw(i32::try_from(shim.pid).expect("a pid")))
        .collect();
    assert!(!shims.is_empty());
    let signal = |signal| {
        shims.iter().for_each(|shim| rustix::process::kill_process(*shim, signal).expect("a signal is sent"));
    };
    let has_memory = async |container: &Container| {
        let list = node.pod_metrics().await.expect("metrics");
        assert_eq!(list.len(), 3);
        of_container(&list, container)
            .map(|metrics| !values(metrics, "container_memory_usage_bytes").is_empty())
    };
    signal(rustix::process::Signal::STOP);
    assert_eq!(has_memory(&stuck).await, Some(false));
    assert_eq!(has_memory(&runs).await, Some(true));
    assert_eq!((has_memory(&created).await, has_memory(&exited).await), (None, None));
    signal(rustix::process::Signal::CONT);
    wait_until("the answer of the shim", async || has_memory(&stuck).await == Some(true)).await;

    // A network namespace that is gone, and a pod that never had one.
    let netns = here.info().await["runtimeSpec"]["linux"]["namespaces"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["type"] == "network"))
        .and_then(|one| one["path"].as_str().map(str::to_owned))
        .expect("a network namespace");
    rustix::mount::unmount(&netns, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    let list = node.pod_metrics().await.expect("metrics");
    let counts: Vec<(bool, usize)> = [&vm, &here, &host]
        .iter()
        .map(|pod| list.iter().find(|one| one.pod_sandbox_id == pod.id).expect("each pod"))
        .map(|pod| (pod.metrics.is_empty(), pod.container_metrics.len()))
        .collect();
    assert_eq!(counts, [(false, 1), (true, 1), (true, 0)]);
    node.remove_all().await;
    node.finish().await;
}

/// STR-01, STR-02.
#[tokio::test]
async fn the_stream_has_what_the_list_has() {
    let node = node().await;
    let mut runtime = node.runtime();
    let mut none = runtime
        .stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {})
        .await
        .expect("a stream")
        .into_inner();
    assert!(none.message().await.expect("an end").is_none());
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let mut stream = runtime
        .stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {})
        .await
        .expect("a stream")
        .into_inner();
    let message = stream.message().await.expect("a message").expect("a message");
    let of_stream = of_container(&message.pod_sandbox_metrics, &container).expect("the container");
    let list = node.pod_metrics().await.expect("metrics");
    let names = |metrics: &[Metric]| -> std::collections::BTreeSet<String> {
        metrics.iter().map(|metric| metric.name.clone()).collect()
    };
    let of_list = of_container(&list, &container).expect("the container");
    assert!(names(of_stream).is_subset(&names(of_list)) && of_stream.len() > 30, "{}", of_stream.len());
    assert!(stream.message().await.expect("an end").is_none());
    node.remove_all().await;
    node.finish().await;
}
