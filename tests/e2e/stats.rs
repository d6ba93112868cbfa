//! Figures of pods and containers where longshore has more than containerd's plugin, or has
//! them another way; and both for the same containers.

use longshore::proto::cri::{
    ContainerState, ContainerStats, CpuUsage, LinuxPodSandboxStats, MemoryUsage, StreamContainerStatsRequest,
    StreamPodSandboxStatsRequest, UInt64Value,
};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::harness::{Cri, Node, Server, procfs, wait_for, wait_until};

async fn node() -> Node {
    Node::with(Server::Longshore).start().await
}

fn of(value: Option<UInt64Value>) -> u64 {
    value.expect("a value").value
}

/// Above what the processors of this machine can give, with room for a late reading.
fn rate_max() -> u64 {
    2_000_000_000 * std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

async fn linux(cri: &Cri, id: &str) -> LinuxPodSandboxStats {
    cri.pod_stats(id).await.expect("stats").linux.expect("linux")
}

/// STA-04: a rate at the first ask of all, also after a restart.
#[tokio::test]
async fn the_first_answer_has_a_rate() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let busy = pod.container("busy").sh("while :; do :; done").run().await.expect("it runs");
    for restarted in [false, true] {
        if restarted {
            node.longshore().kill().await;
            node.longshore().start().await;
        }
        let stats = node.container_stats(&busy.id).await.expect("stats");
        let rate = of(stats.cpu.expect("cpu").usage_nano_cores);
        assert!((1_000_000..rate_max()).contains(&rate), "{rate}, restarted: {restarted}");
    }
    let cpu = linux(&node, &pod.id).await.cpu.expect("cpu");
    assert!((1_000_000..rate_max()).contains(&of(cpu.usage_nano_cores)), "{cpu:?}");
    node.remove_all().await;
    node.finish().await;
}

/// STA-12, STA-13: pods without a cgroup of their own are the sum of what is in them; without
/// a limit nothing is available.
#[tokio::test]
async fn a_pod_without_a_cgroup_parent_has_figures() {
    let node = node().await;
    let pod = node.pod("a").cgroup_parent("").run().await.expect("a pod");
    let container = pod.container("c").sh("while :; do :; done").run().await.expect("it runs");
    let inside = node.container_stats(&container.id).await.expect("stats");
    let stats = linux(&node, &pod.id).await;
    let (memory, inner) = (stats.memory.expect("memory"), inside.memory.expect("memory"));
    assert!(of(memory.usage_bytes) > 0 && inner.available_bytes.is_none(), "{memory:?} {inner:?}");
    let (cpu, inner) = (stats.cpu.expect("cpu"), inside.cpu.expect("cpu"));
    assert!(of(cpu.usage_core_nano_seconds) > of(inner.usage_core_nano_seconds), "{cpu:?} {inner:?}");
    assert_eq!(of(stats.process.expect("processes").process_count), 1);
    pod.stop().await.expect("stopped");
    let error = node.pod_stats(&pod.id).await.expect_err("not ready");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(node.list_pod_stats(None).await.expect("a list").is_empty());
    node.remove_all().await;
    node.finish().await;
}

/// STR-01, STR-02.
#[tokio::test]
async fn streams_have_what_lists_have() {
    let node = node().await;
    let mut runtime = node.runtime();
    let mut none = runtime
        .stream_container_stats(StreamContainerStatsRequest::default())
        .await
        .expect("a stream")
        .into_inner();
    assert!(none.message().await.expect("an end").is_none());
    let pod = node.pod("a").run().await.expect("a pod");
    pod.container("one").forever().run().await.expect("it runs");
    pod.container("two").create().await.expect("a container");

    let id = |stats: &ContainerStats| stats.attributes.clone().expect("attributes").id;
    let list: Vec<String> = node.list_container_stats(None).await.expect("a list").iter().map(id).collect();
    let request = StreamContainerStatsRequest::default();
    let mut stream = runtime.stream_container_stats(request).await.expect("a stream").into_inner();
    let message = stream.message().await.expect("a message").expect("a message");
    assert_eq!(message.container_stats.iter().map(id).collect::<Vec<_>>(), list);
    assert!(stream.message().await.expect("an end").is_none());

    let request = StreamPodSandboxStatsRequest::default();
    let mut stream = runtime.stream_pod_sandbox_stats(request).await.expect("a stream").into_inner();
    let message = stream.message().await.expect("a message").expect("a message");
    let [one] = message.pod_sandbox_stats.as_slice() else { panic!("one pod: {message:?}") };
    assert_eq!(one.attributes.clone().expect("attributes").id, pod.id);
    assert!(stream.message().await.expect("an end").is_none());
    node.remove_all().await;
    node.finish().await;
}

/// Containers that are no cgroups of this host, as longshore sees it by their handler, are
/// counted by their shim.
#[tokio::test]
async fn what_a_vm_runtime_counts_comes_through_containerd() {
    let shim = node_shim();
    let config = format!("[runtime.handlers.vm]\ntype = \"io.containerd.vm.v2\"\npath = {shim:?}\n");
    let node = Node::with(Server::Longshore).config(&config).start().await;
    let pod = node.pod("a").handler("vm").run().await.expect("a pod");
    let here = node.pod("b").run().await.expect("a pod");
    let script = "while :; do :; done";
    let busy = pod.container("busy").sh(script).run().await.expect("it runs");
    let other = here.container("busy").sh(script).run().await.expect("it runs");
    let list = node.list_container_stats(None).await.expect("a list");
    assert_eq!(list.len(), 2);
    for stats in list {
        let id = stats.attributes.expect("attributes").id;
        let (cpu, memory) = (stats.cpu.expect("cpu"), stats.memory.expect("memory"));
        assert!(of(cpu.usage_core_nano_seconds) > 0 && of(memory.working_set_bytes) > 0, "{id}: {memory:?}");
        assert!((1_000_000..rate_max()).contains(&of(cpu.usage_nano_cores)), "{id}: {cpu:?}");
        assert!(id == busy.id || id == other.id);
    }
    let stats = linux(&node, &pod.id).await;
    assert_eq!(of(stats.process.expect("processes").process_count), 1);
    assert_eq!(stats.network.expect("a network").default_interface.expect("an interface").name, "eth0");
    node.remove_all().await;
    node.finish().await;
}

/// STA-11: a shim that does not answer costs the figures of its own containers.
#[tokio::test]
async fn a_shim_that_hangs_hides_nobody() {
    let config = format!("[runtime.handlers.vm]\ntype = \"io.containerd.vm.v2\"\npath = {:?}\n", node_shim());
    let node = Node::with(Server::Longshore).config(&config).start().await;
    let pod = node.pod("a").handler("vm").run().await.expect("a pod");
    let here = node.pod("b").run().await.expect("a pod");
    let stuck = pod.container("c").forever().run().await.expect("it runs");
    let other = here.container("c").forever().run().await.expect("it runs");
    let shims = procfs::processes().into_iter().filter(|process| {
        process.program().starts_with("containerd-shim") && process.arguments.contains(&pod.id)
    });
    let shims: Vec<Pid> =
        shims.map(|shim| Pid::from_raw(i32::try_from(shim.pid).expect("a pid")).expect("a pid")).collect();
    assert!(!shims.is_empty());
    let signal =
        |signal| shims.iter().for_each(|shim| kill_process(*shim, signal).expect("a signal is sent"));
    let has_figures = async || {
        let list = node.list_container_stats(None).await.expect("a list");
        let of = |id: &str| {
            let mut found = list.iter().filter(|one| one.attributes.as_ref().is_some_and(|one| one.id == id));
            found.next().expect("the container").memory.is_some()
        };
        (of(&stuck.id), of(&other.id))
    };
    signal(Signal::STOP);
    assert_eq!(has_figures().await, (false, true));
    assert_eq!(node.list_pod_stats(None).await.expect("a list").len(), 2);
    signal(Signal::CONT);
    wait_until("the answer of the shim", async || has_figures().await == (true, true)).await;
    node.remove_all().await;
    node.finish().await;
}

/// Containers that are cgroups of this host are counted without containerd.
#[tokio::test]
async fn figures_are_told_while_containerd_is_away() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let before = node.container_stats(&container.id).await.expect("stats");
    node.containerd().kill().await;
    let stats = node.container_stats(&container.id).await.expect("stats");
    let (a, b) = (before.cpu.expect("cpu"), stats.cpu.expect("cpu"));
    assert!(of(a.usage_core_nano_seconds) <= of(b.usage_core_nano_seconds), "{a:?} {b:?}");
    let (a, b) = (before.writable_layer.expect("a layer"), stats.writable_layer.expect("a layer"));
    assert_eq!(a.fs_id, b.fs_id);
    assert!(linux(&node, &pod.id).await.network.is_some());
    node.containerd().start().await;
    wait_until("containerd", async || node.condition("RuntimeReady").await.unwrap_or(false)).await;
    node.remove_all().await;
    node.finish().await;
}

/// The shim of runc that belongs to the containerd under test.
pub(crate) fn node_shim() -> String {
    let given = std::env::var_os("LONGSHORE_TEST_CONTAINERD").map(std::path::PathBuf::from);
    let own =
        given.map(|path| if path.is_dir() { path } else { path.parent().expect("a folder").to_owned() });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut shims = own.into_iter().chain(std::env::split_paths(&path));
    let found =
        shims.find_map(|folder| Some(folder.join("containerd-shim-runc-v2")).filter(|shim| shim.is_file()));
    found.expect("a shim").display().to_string()
}

/// How far memory of an idle container may be between two moments.
const MEMORY_TOLERANCE: u64 = 4 << 20;

/// The same container and pod, told by longshore and then by containerd's plugin: counters
/// do not go backwards from one to the other, and what stands still is equal.
#[tokio::test]
async fn the_plugin_tells_the_same() {
    let node = Node::with(Server::Longshore).plugin_folders().start().await;
    let pod =
        node.pod("a").labels([("tier", "front")]).annotations([("note", "x")]).run().await.expect("a pod");
    // It keeps what it ate, and does nothing any more.
    let script = "head -c 3000000 /dev/zero >/big; mkfifo /f; x=$(head -c 5000000 /dev/zero | tr '\\0' a); \
                  echo ready; read y </f";
    let container = pod.container("c").labels([("is", "ours")]).sh(script);
    let container = container.resources(|resources| resources.memory_limit_in_bytes = 128 << 20);
    let container = container.run().await.expect("it runs");
    container.wait_log("ready").await;
    let known = async |cri: &Cri| {
        wait_for("the size of the layer", async || {
            let list = cri.list_container_stats(None).await.expect("a list");
            let stats = list.into_iter().next().expect("the container");
            let used = stats.writable_layer.as_ref()?.used_bytes?.value;
            (used >= 3_000_000).then_some(stats)
        })
        .await
    };
    let ours = known(&node).await;
    let our_pod = linux(&node, &pod.id).await;
    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    let theirs = known(&plugin).await;

    assert_eq!(ours.attributes, theirs.attributes);
    let (a, b) = (ours.writable_layer.expect("a layer"), theirs.writable_layer.expect("a layer"));
    assert_eq!((a.fs_id, a.used_bytes, a.inodes_used), (b.fs_id, b.used_bytes, b.inodes_used));
    let memory = |ours: Option<MemoryUsage>, theirs: Option<MemoryUsage>| {
        let (a, b) = (ours.expect("memory"), theirs.expect("memory"));
        for (what, a, b) in [
            ("usage", a.usage_bytes, b.usage_bytes),
            ("working set", a.working_set_bytes, b.working_set_bytes),
            ("rss", a.rss_bytes, b.rss_bytes),
        ] {
            assert!(of(a).abs_diff(of(b)) < MEMORY_TOLERANCE, "{what}: {a:?}, {b:?}");
        }
        assert!(of(a.page_faults) <= of(b.page_faults), "{a:?} {b:?}");
        assert_eq!(a.major_page_faults, b.major_page_faults);
        (a, b)
    };
    let (a, b) = memory(ours.memory, theirs.memory);
    assert!(of(a.available_bytes).abs_diff(of(b.available_bytes)) < MEMORY_TOLERANCE, "{a:?} {b:?}");
    let cpu = |ours: Option<CpuUsage>, theirs: Option<CpuUsage>| {
        let (a, b) = (ours.expect("cpu"), theirs.expect("cpu"));
        assert!(of(a.usage_core_nano_seconds) <= of(b.usage_core_nano_seconds), "{a:?} {b:?}");
        assert!(a.timestamp < b.timestamp);
    };
    cpu(ours.cpu, theirs.cpu);

    let version = node.containerd_version();
    if (version.major, version.minor) >= (1, 7) {
        let their_pod = linux(&plugin, &pod.id).await;
        memory(our_pod.memory, their_pod.memory);
        cpu(our_pod.cpu, their_pod.cpu);
        let count = |stats: &LinuxPodSandboxStats| stats.process.expect("processes").process_count;
        assert_eq!(count(&our_pod), count(&their_pod));
        let (a, b) = (our_pod.network.expect("a network"), their_pod.network.expect("a network"));
        let (a, b) = (a.default_interface.expect("eth0"), b.default_interface.expect("eth0"));
        assert_eq!((&a.name, a.rx_errors, a.tx_errors), (&b.name, b.rx_errors, b.tx_errors));
        assert!(of(a.rx_bytes) <= of(b.rx_bytes) && of(a.tx_bytes) <= of(b.tx_bytes), "{a:?} {b:?}");
    }
    let through = container.through(&plugin);
    assert_eq!(through.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    plugin.remove_all().await;
    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    node.finish().await;
}
