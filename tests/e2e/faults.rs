//! What fails, and what is left then: nothing (areas NAM, SBX, CNI, ERR). Here, calls that
//! cannot be met; below, faults of the others, each with what the kubelet sees, a retry that
//! works once the fault is gone, and nothing that is left.

mod behind;
mod containerd;
mod disk;
mod hung_disk;
mod limits;
mod network;
mod processes;
mod start;

use std::time::Duration;

use longshore::proto::cri::{RunPodSandboxRequest, UserNamespace};
use serde_json::json;
use tonic::Code;

use crate::harness::{Node, Server, cni, wait_until};

/// The network list of the tests with a plugin of the test's own at its end.
fn list_with(plugin: &str) -> serde_json::Value {
    let mut list = cni::bridge();
    list["plugins"].as_array_mut().expect("a list").push(json!({ "type": plugin }));
    list
}

/// A CNI plugin that works but waits in ADD until the test lets it go.
const GATE: &str = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {folder}/reached\n\
                    until [ -e {folder}/gone-on ]; do sleep 0.05; done\ncat >/dev/null\n\
                    echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"{network}.99/24\"}]}'\n";

async fn gated() -> Node {
    Node::with(Server::Longshore).cni(list_with("gate")).plugin("gate", GATE).start().await
}

async fn wait_until_reached(node: &Node) {
    let reached = node.place().path("reached");
    wait_until("the plugin", async || reached.exists()).await;
}

fn let_go(node: &Node) {
    std::fs::write(node.place().path("gone-on"), "").expect("a file");
}

/// SBX-04, CNI-12: the plugin's own words, and everything undone.
#[tokio::test]
async fn a_plugin_that_fails_is_quoted_and_leaves_nothing() {
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"out of ropes\",\"details\":\"ask the mate\"}'\nexit 1\n";
    let node = Node::with(Server::Longshore).cni(list_with("broken")).plugin("broken", script).start().await;
    let error = node.pod("a").run().await.expect_err("no network");
    for part in ["broken", "out of ropes", "ask the mate"] {
        assert!(error.message().contains(part), "{error:?}");
    }
    assert!(node.pods().await.expect("pods").is_empty());
    // A pod on the host's network needs no plugin (SVC-15).
    node.pod("host").host_network().run().await.expect("a pod").remove().await.expect("removed");
    node.finish().await;
}

/// SBX-05: what cannot be undone stays visible, and goes once it can.
#[tokio::test]
async fn a_pod_that_cannot_be_undone_stays_listed_until_it_can_be_removed() {
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = DEL ] && [ -e {folder}/better ] && exit 0\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"nothing works\"}'\nexit 1\n";
    let node = Node::with(Server::Longshore).cni(list_with("broken")).plugin("broken", script).start().await;
    node.pod("a").run().await.expect_err("no network");
    let pods = node.pods().await.expect("pods");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].state, 1, "NOTREADY");
    std::fs::write(node.place().path("better"), "").expect("a file");
    node.stop_pod(&pods[0].id).await.expect("stopped");
    node.remove_pod(&pods[0].id).await.expect("removed");
    node.finish().await;
}

/// A pause container that does not start takes the network away again.
#[tokio::test]
async fn a_runtime_that_fails_leaves_nothing() {
    let config = "[runtime.handlers.broken.options]\nBinaryName = \"{folder}/no-such-runtime\"\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    let error = node.pod("a").handler("broken").run().await.expect_err("no runtime");
    assert!(error.message().contains("no-such-runtime"), "{error:?}");
    assert!(node.pods().await.expect("pods").is_empty());
    node.pod("a").run().await.expect("a pod").remove().await.expect("removed");
    node.finish().await;
}

/// NAM-04: who asks again for what is being made waits for that, and gets it.
#[tokio::test]
async fn a_retry_joins_the_call_that_still_runs() {
    let node = gated().await;
    let pod = node.pod("a");
    let request = pod.request();
    let ask = |request: RunPodSandboxRequest| {
        let mut runtime = node.runtime();
        tokio::spawn(async move { runtime.run_pod_sandbox(request).await })
    };
    let first = ask(request.clone());
    wait_until_reached(&node).await;
    // The kubelet's deadline: the client goes away, the work goes on.
    first.abort();
    let second = ask(request.clone());
    let third = ask(request.clone());
    let mut other = request.clone();
    other.config.as_mut().expect("a config").hostname = "other".into();
    let error = ask(other).await.expect("no panic").expect_err("another request by that name");
    assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    assert!(!second.is_finished() && !third.is_finished());
    let_go(&node);
    let id = second.await.expect("no panic").expect("a pod").into_inner().pod_sandbox_id;
    assert_eq!(third.await.expect("no panic").expect("the same").into_inner().pod_sandbox_id, id);
    assert_eq!(node.pods().await.expect("pods").len(), 1);
    node.remove_all().await;
    node.finish().await;
}

/// SBX-03: a client that goes away neither stops nor breaks what it began.
#[tokio::test]
async fn a_pod_whose_client_went_away_is_finished() {
    let node = gated().await;
    let running = {
        let pod = node.pod("a");
        tokio::spawn(async move { pod.run().await.map(drop) })
    };
    wait_until_reached(&node).await;
    running.abort();
    let_go(&node);
    wait_until("the pod", async || {
        node.pods().await.expect("pods").iter().any(|pod| pod.state == 0 && !pod.id.is_empty())
    })
    .await;
    node.remove_all().await;
    node.finish().await;
}

/// ERR: what cannot be is refused before anything is taken.
#[tokio::test]
async fn bad_requests_are_refused_with_the_right_code() {
    let node = Node::with(Server::Longshore).start().await;
    let code = async |pod: crate::harness::PodBuilder| pod.run().await.expect_err("refused").code();
    let pod = |name: &str| node.pod(name);
    assert_eq!(code(pod("a").config(|config| config.metadata = None)).await, Code::InvalidArgument);
    assert_eq!(code(pod("a").handler("unknown")).await, Code::InvalidArgument);
    let mapped = |context: &mut longshore::proto::cri::LinuxSandboxSecurityContext| {
        let options = context.namespace_options.get_or_insert_default();
        options.userns_options = Some(UserNamespace { mode: 3, ..UserNamespace::default() });
    };
    assert_eq!(code(pod("a").security(mapped)).await, Code::InvalidArgument);
    let empty = node.runtime().run_pod_sandbox(RunPodSandboxRequest::default()).await;
    assert_eq!(empty.expect_err("no config").code(), Code::InvalidArgument);

    let pod = node.pod("real").run().await.expect("a pod");
    let code =
        async |container: crate::harness::ContainerBuilder| container.create().await.expect_err("refused");
    let missing = code(pod.container("a").config(|config| {
        config.image.get_or_insert_default().image = format!("sha256:{}", "0".repeat(64));
    }));
    let missing = missing.await;
    assert_ne!(missing.code(), Code::NotFound, "reads as: the pod is gone (ERR-12): {missing:?}");
    let relative = code(pod.container("a").mount("relative", "/x")).await;
    assert_eq!(relative.code(), Code::InvalidArgument, "{relative:?}");
    let device = code(pod.container("a").config(|config| config.cdi_devices.push(Default::default()))).await;
    assert_eq!(device.code(), Code::InvalidArgument, "{device:?}");
    let unknown = "f".repeat(64);
    let status = node.container_status(&unknown, false).await;
    assert_eq!(status.expect_err("unknown").code(), Code::NotFound);
    let exec = longshore::proto::cri::ExecRequest { container_id: unknown, ..Default::default() };
    assert_eq!(
        node.runtime().exec(exec.clone()).await.expect_err("no streams").code(),
        Code::InvalidArgument
    );
    let exec = longshore::proto::cri::ExecRequest { cmd: vec!["true".into()], stdout: true, ..exec };
    assert_eq!(node.runtime().exec(exec).await.expect_err("unknown").code(), Code::NotFound);
    let checkpoint = node
        .runtime()
        .checkpoint_container(longshore::proto::cri::CheckpointContainerRequest::default())
        .await;
    assert_eq!(checkpoint.expect_err("not built").code(), Code::Unimplemented);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// LOG-: the log folder is not there: the start fails, says so, and nothing is left.
#[tokio::test]
async fn a_log_that_cannot_be_opened_fails_the_start() {
    let node = Node::with(Server::Longshore).start().await;
    let file = node.place().path("file");
    std::fs::write(&file, "").expect("a file");
    let pod = node.pod("a").log_dir(file.join("below").to_str().expect("UTF-8")).run().await;
    // Either is fine: the folder is made with the pod, or with its first log.
    if let Ok(pod) = pod {
        let started = pod.container("a").forever().run().await;
        let error = started.expect_err("no log");
        assert!(error.message().contains("below"), "{error:?}");
        pod.remove().await.expect("removed");
    }
    assert!(node.containers().await.expect("containers").is_empty());
    node.remove_all().await;
    node.finish().await;
}

/// CNI-05 … CNI-08, SVC-15: configurations come, break and go while the server runs.
#[tokio::test]
async fn the_network_configuration_is_read_while_the_server_runs() {
    let node = Node::with(Server::Longshore).no_cni().start().await;
    assert!(!node.condition("NetworkReady").await.expect("an answer"));
    let error = node.pod("a").run().await.expect_err("no network");
    assert!(error.message().contains("cni"), "{error:?}");
    let file = cni::conf_dir(node.place()).join("10-late.conflist");
    cni::write_conf(&file, &node.place().fill(&cni::bridge().to_string()));
    node.wait_until_network_ready().await;
    let pod = node.pod("a").run().await.expect("a pod");
    std::fs::remove_file(&file).expect("removed");
    wait_until("NetworkReady=false", async || !node.condition("NetworkReady").await.expect("an answer"))
        .await;
    // What was added with it is deleted with it, from the cache.
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Work that was begun when SIGTERM came is ended (SVC-36).
#[tokio::test]
async fn sigterm_lets_a_running_call_end() {
    let node = gated().await;
    let running = {
        let pod = node.pod("a");
        tokio::spawn(async move { pod.run().await.map(|pod| pod.id) })
    };
    wait_until_reached(&node).await;
    let terminated = node.longshore().terminate();
    let released = async {
        tokio::time::sleep(Duration::from_millis(100)).await; // the signal first, as far as one can
        let_go(&node);
    };
    tokio::join!(terminated, released);
    let id = running.await.expect("no panic").expect("the pod is made");
    node.longshore().start().await;
    let pods = node.pods().await.expect("pods");
    assert_eq!((pods.len(), pods[0].id.as_str(), pods[0].state), (1, id.as_str(), 0));
    node.remove_all().await;
    node.finish().await;
}

/// What an OCI runtime that was killed in the middle leaves of a cgroup goes with the container
/// and the pod.
#[tokio::test]
async fn cgroups_that_nobody_knows_any_more_are_removed() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let place = node.place();
    let of = |id: &str| -> Vec<std::path::PathBuf> {
        let parents = place.cgroup_folders().into_iter();
        parents.map(|parent| parent.join("uid-0").join(id)).collect()
    };
    container.stop(0).await.expect("stopped");
    wait_until("the end of its cgroups", async || of(&container.id).iter().all(|path| !path.exists())).await;
    let left = of(&container.id);
    assert!(!left.is_empty());
    left.iter().for_each(|path| std::fs::create_dir(path).expect("a cgroup"));
    container.remove().await.expect("removed");
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
    pod.stop().await.expect("stopped");
    let left = of(&pod.id);
    wait_until("the end of its cgroups", async || left.iter().all(|path| !path.exists())).await;
    left.iter().for_each(|path| std::fs::create_dir(path).expect("a cgroup"));
    pod.remove().await.expect("removed");
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
    node.finish().await;
}
