//! containerd hangs, is slow, answers errors, is replaced, is upgraded (areas REC, ERR, SVC).

use std::path::Path;
use std::time::Duration;

use longshore::proto::cri::ListImagesRequest;
use rustix::process::Signal;
use tonic::Code;

use crate::harness::{Node, Proxy, Server, fetched_containerd, procfs, wait_until};

/// A node whose server reaches containerd by a proxy.
pub(super) async fn proxied(config: &str) -> (Node, Proxy) {
    let mut proxy = None;
    let builder = Node::with(Server::Longshore).config(Proxy::CONFIG).config(config);
    let node = builder.before(|place| proxy = Some(Proxy::before(place))).start().await;
    (node, proxy.expect("made before the server"))
}

/// SIGSTOP: calls end with their limit and say of which call; the lists are known still; what
/// was begun can be removed once it answers.
#[tokio::test]
async fn a_containerd_that_hangs_costs_a_limit_and_nothing_else() {
    let config = "[containerd]\ncall_timeout_s = 1\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    node.containerd().signal(Signal::STOP);
    let error = node.pod("b").run().await.expect_err("containerd hangs");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(error.message().contains("containerd"), "{error:?}");
    let error = container.stop(0).await.expect_err("containerd hangs");
    assert!(error.message().contains(&container.id), "{error:?}");
    assert_eq!(node.containers().await.expect("known").len(), 1);
    node.version().await.expect("Version answers");
    node.containerd().signal(Signal::CONT);
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    container.stop(0).await.expect("stopped");
    // What the kubelet does with a pod that is not ready.
    for left in node.pods().await.expect("pods").iter().filter(|left| left.id != pod.id) {
        node.stop_pod(&left.id).await.expect("stopped");
        node.remove_pod(&left.id).await.expect("removed");
    }
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Each call takes a while: slow, and right.
#[tokio::test]
async fn a_slow_containerd_is_waited_for() {
    let (node, proxy) = proxied("").await;
    proxy.delay(Duration::from_millis(150));
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").sh("echo hello; exit 4").run().await.expect("it runs");
    assert_eq!(container.wait_exited().await.exit_code, 4);
    container.wait_log("hello").await;
    container.remove().await.expect("removed");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// What containerd answers is told, with the call and the pod or container that it was for.
#[tokio::test]
async fn errors_of_containerd_are_told_and_a_retry_works() {
    let (node, proxy) = proxied("").await;
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("an image");
    for (call, code, told) in [
        ("Leases/Create", Code::Unavailable, Code::Unavailable),
        ("Containers/Create", Code::ResourceExhausted, Code::ResourceExhausted),
        ("Snapshots/Prepare", Code::Unknown, Code::Unknown),
        ("Tasks/Create", Code::Unknown, Code::Unknown),
        // Internal is what a bug of longshore's own would be.
        ("Tasks/Start", Code::Internal, Code::Unknown),
    ] {
        proxy.fail(call, code, "the cook is ashore");
        let error = node.pod("a").run().await.expect_err("it fails");
        assert_eq!(error.code(), told, "{call}: {error:?}");
        assert!(error.message().contains("the cook is ashore"), "{call}: {error:?}");
        assert!(error.message().contains("run pod sandbox \"a_"), "{call}: {error:?}");
        proxy.heal();
        assert!(node.pods().await.expect("pods").is_empty(), "{call}");
        node.assert_nothing_left(call).await;
    }
    let pod = node.pod("a").run().await.expect("a pod");
    for call in ["Containers/Create", "Snapshots/Prepare"] {
        proxy.fail(call, Code::Unknown, "the cook is ashore");
        let error = pod.container("c").forever().create().await.expect_err("it fails");
        assert!(error.message().contains("create container \"c_"), "{call}: {error:?}");
        proxy.heal();
    }
    let container = pod.container("c").forever().create().await.expect("created");
    proxy.fail("Tasks/Create", Code::Unknown, "the cook is ashore");
    let error = container.start().await.expect_err("it fails");
    assert!(error.message().contains(&container.id), "{error:?}");
    proxy.heal();
    let status = container.status().await.expect("a status");
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    let second = pod.container("c").attempt(1).forever().run().await.expect("it runs");
    // What cannot be removed now is there still, and can be later.
    proxy.fail("Containers/Delete", Code::Unknown, "the cook is ashore");
    let error = second.remove().await.expect_err("it fails");
    assert!(error.message().contains(&second.id), "{error:?}");
    assert_eq!(node.containers().await.expect("containers").len(), 2);
    proxy.heal();
    second.remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Connections are cut and the socket is another one: longshore comes back by itself, and
/// finds what ended meanwhile.
#[tokio::test]
async fn a_socket_that_is_replaced_is_found_again() {
    let (node, proxy) = proxied("").await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    for _ in 0..3 {
        proxy.replace();
        wait_until("a pod", async || node.pod("b").run().await.is_ok()).await;
        for second in node.pods().await.expect("pods").iter().filter(|second| second.id != pod.id) {
            node.remove_pod(&second.id).await.expect("removed");
        }
    }
    // From between two connections.
    proxy.hide_events();
    node.containerd().behind().end_task(&container.id).await;
    proxy.heal();
    proxy.replace();
    container.wait_exited().await;
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// The event stream stands, and says nothing: what ends is found by looking, with its code.
#[tokio::test]
async fn ends_that_no_event_tells_are_found() {
    let (node, proxy) = proxied("[server]\nreconcile_period_s = 1\n").await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let script = "until [ -e /gate/go ]; do usleep 20000; done; echo the last line; exit 6";
    let container = pod.container("c").sh(script).mount(&gate, "/gate").run().await.expect("it runs");
    proxy.hide_events();
    std::fs::write(gate.join("go"), "").expect("a file");
    let status = container.wait_exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
    container.wait_log("the last line").await;
    let pause = pod.info().await["pid"].as_i64().expect("a pid");
    let pause = rustix::process::Pid::from_raw(i32::try_from(pause).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pause, Signal::KILL).expect("killed");
    wait_until("NOTREADY", async || pod.status().await.expect("a status").state == 1).await;
    assert!(node.longshore().log().contains("the end of a container was missed"));
    let images = async || {
        let list = node.images().list_images(ListImagesRequest::default()).await.expect("a list");
        list.into_inner().images.iter().filter(|image| !image.pinned).count()
    };
    assert_eq!(images().await, 1);
    let behind = node.containerd().behind();
    for name in behind.images().await.into_iter().filter(|name| !name.contains("pause")) {
        behind.delete_image(&name).await;
    }
    wait_until("a list without it", async || images().await == 0).await;
    proxy.heal();
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// containerd 1.7 becomes 2.x under pods that run: nothing of them changes, and both old and
/// new ones can be used and removed.
#[tokio::test]
async fn containerd_is_upgraded_under_running_pods() {
    let (old, new) = (fetched_containerd("trixie"), fetched_containerd("sid"));
    let node = Node::with(Server::Longshore).containerd_absent().start().await;
    let version = node.containerd().start_other(&old).await;
    assert_eq!((version.major, version.minor), (1, 7));
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    node.wait_until_network_ready().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").sh("echo one; exec sleep 1000").run().await.expect("it runs");
    container.wait_log("one").await;
    let before = (pod.status().await.expect("a status"), container.status().await.expect("a status"));
    node.containerd().terminate().await;
    let version = node.containerd().start_other(&new).await;
    assert!(version.major >= 2, "{version}");
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    let said = node.status(true).await.expect("an answer").info;
    let told = node.version().await.expect("an answer").runtime_version;
    assert!(told.contains(&version.major.to_string()), "{told} {said:?}");
    let after = (pod.status().await.expect("a status"), container.status().await.expect("a status"));
    assert_eq!(after, before);
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.container("second").forever().run().await.expect("a container in the old pod");
    let fresh = node.pod("fresh").run().await.expect("a pod");
    fresh.container("c").forever().run().await.expect("it runs");
    for pod in [pod, fresh] {
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// containerd was killed between the folder of a snapshot and its record, and gives that number
/// to the next one.
#[tokio::test]
async fn a_snapshot_that_a_killed_containerd_left_is_not_in_the_way() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    let folder = node.containerd().root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let entries = std::fs::read_dir(&folder).expect("a folder").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let last = numbers.max().expect("there are snapshots");
    node.containerd().kill().await;
    // Numbers of snapshots that have gone are not given again: it is one of these.
    let left: Vec<_> = (1..20).map(|more| folder.join((last + more).to_string()).join("fs/left")).collect();
    left.iter().for_each(|left| std::fs::create_dir_all(left).expect("a folder"));
    node.containerd().start().await;
    wait_until("RuntimeReady", async || node.condition("RuntimeReady").await.expect("an answer")).await;
    for name in ["d", "e"] {
        let container = pod.container(name).forever().run().await.expect("it runs");
        assert_eq!(container.sh("ls -d /left /bin 2>/dev/null; true").await, "/bin");
    }
    assert!(left.iter().filter(|left| left.exists()).count() <= left.len() - 2, "two were in the way");
    left.iter().filter_map(|left| left.parent()?.parent()).for_each(|left| {
        if left.join("fs/left").exists() {
            std::fs::remove_dir_all(left).expect("removed");
        }
    });
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-18: a container of a shim that neither containerd nor the OCI runtime knows, and that the
/// latter has left frozen. It does not outlive the pod, and the pod goes at the first attempt.
#[tokio::test]
async fn a_container_that_containerd_has_lost_ends_with_its_pod() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let mark = format!("{}-work", node.place().name());
    let container = pod.container("c").sh(&format!(": {mark}; sleep 1000; :")).run().await.expect("it runs");
    let is_it = |running: &procfs::Running| running.arguments.iter().any(|it| it.contains(&mark));
    let process = || procfs::processes().into_iter().find(is_it);
    wait_until("its process", async || process().is_some()).await;
    let table = std::fs::read_to_string(format!("/proc/{}/cgroup", process().expect("it runs").pid));
    let freezer =
        table.expect("cgroups").lines().find_map(|line| Some(line.split_once(":freezer:/")?.1.to_owned()));
    // Version 2 kills what is frozen.
    if let Some(path) = freezer {
        let file = Path::new("/sys/fs/cgroup/freezer").join(path).join("freezer.state");
        std::fs::write(file, "FROZEN").expect("frozen");
    }
    node.containerd().kill().await;
    // As containerd does with what a shim does not know.
    let bundle = node.place().path("cs/io.containerd.runtime.v2.task/k8s.io").join(&container.id);
    let rootfs = bundle.join("rootfs");
    rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH).expect("it is mounted");
    std::fs::remove_dir_all(&bundle).expect("removed");
    std::fs::remove_dir_all(node.place().path("runc/k8s.io").join(&container.id)).expect("removed");
    node.containerd().start().await;
    container.wait_exited().await;
    container.remove().await.expect("removed");
    assert!(process().is_some(), "nobody has ended it");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    assert!(process().is_none(), "it has outlived its pod");
    node.finish().await;
}
