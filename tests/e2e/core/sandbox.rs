//! Pods: how they are made, and what is told about them.

use std::collections::BTreeMap;

use longshore::proto::cri::{NamespaceMode, PodSandboxState};

use super::now_ns;
use crate::harness::{CgroupDriver, Node, Server};

/// SBX-01, SBX-15, SVC-30.
#[tokio::test]
async fn a_pod_is_ready_when_the_call_returns() {
    let node = Node::start().await;
    let before = now_ns();
    let pod = node.pod("web").attempt(3).run().await.expect("a pod");
    assert_eq!(pod.id.len(), 64);
    assert!(pod.id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)), "{}", pod.id);
    let status = pod.status().await.expect("a status");
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert!((before..=now_ns()).contains(&status.created_at), "{}", status.created_at);
    assert_eq!(status.metadata, pod.config.metadata);
    let listed = node.pods().await.expect("a list");
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, listed[0].created_at), (&pod.id, status.created_at));
    assert_eq!(
        (listed[0].state(), &listed[0].metadata),
        (PodSandboxState::SandboxReady, &pod.config.metadata)
    );
    node.remove_all().await;
    node.finish().await;
}

/// SBX-13, SBX-14: also what containerd would not take as a label.
#[tokio::test]
async fn labels_and_annotations_come_back_as_given() {
    let node = Node::start().await;
    let long = "x".repeat(5000);
    let labels = [("app", "web"), ("empty", ""), ("io.kubernetes.pod.name", "p"), ("odd/näme", "=,\"'\n")];
    let annotations = [("note", long.as_str()), ("empty", ""), ("json", r#"{"a": [1, "é"]}"#)];
    let pod = node.pod("labels").labels(labels).annotations(annotations).run().await.expect("a pod");
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let status = pod.status().await.expect("a status");
    assert_eq!((status.labels, status.annotations), (text(&labels), text(&annotations)));
    let listed = node.pods().await.expect("a list").remove(0);
    assert_eq!((listed.labels, listed.annotations), (text(&labels), text(&annotations)));
    node.remove_all().await;
    node.finish().await;
}

/// SBX-52: the kubelet makes another pod if they are not what it asked for.
#[tokio::test]
async fn namespace_options_come_back_as_given() {
    let node = Node::start().await;
    for host_network in [false, true] {
        let builder = node.pod("options");
        let builder = if host_network { builder.host_network() } else { builder };
        let pod = builder.run().await.expect("a pod");
        let linux = pod.status().await.expect("a status").linux.expect("linux");
        let options = linux.namespaces.expect("namespaces").options.expect("options");
        let network = if host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        assert_eq!((options.network(), options.pid()), (network, NamespaceMode::Container));
    }
    node.remove_all().await;
    node.finish().await;
}

/// SBX-54, SBX-32.
#[tokio::test]
async fn the_verbose_status_holds_process_spec_and_network() {
    let node = Node::start().await;
    let pod = node.pod("verbose").handler("runc").run().await.expect("a pod");
    let info = pod.info().await;
    let pid = info["pid"].as_u64().expect("a pid");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(info["processStatus"], "running");
    assert_eq!(info["netNamespaceClosed"], false);
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    assert_eq!(
        info["runtimeSpec"]["linux"]["cgroupsPath"],
        CgroupDriver::from_env().cgroups_path(parent, &pod.id)
    );
    assert_eq!(info["config"]["metadata"]["name"], "verbose");
    let address = info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"].as_str();
    assert_eq!(address.map(str::to_owned), Some(pod.ip().await));
    for key in ["image", "snapshotKey", "snapshotter", "runtimeType", "runtimeHandler"] {
        assert!(info.get(key).is_some(), "{key} is missing in {info}");
    }
    assert!(node.pod_status(&pod.id, false).await.expect("a status").info.is_empty());
    node.remove_all().await;
    node.finish().await;
}

/// SBX-01, SBX-11, SVC-31: nothing is made for a request that cannot be served.
#[tokio::test]
async fn a_wrong_request_makes_nothing() {
    let node = Node::start().await;
    let error = node.pod("handler").handler("no-such-handler").run().await.expect_err("no handler");
    assert!(error.message().contains("no-such-handler"), "{error}");
    node.pod("metadata").config(|config| config.metadata = None).run().await.expect_err("no metadata");
    assert!(node.pods().await.expect("a list").is_empty());
    node.finish().await;
}

/// SBX-30: refused by runc, late, when nearly everything is made already; it is undone.
#[tokio::test]
async fn a_pod_that_fails_late_leaves_nothing() {
    let node = Node::start().await;
    let host = node.pod("host").host_network().sysctl("net.ipv4.ip_forward", "1");
    let error = host.run().await.expect_err("a sysctl of the host");
    assert!(error.message().contains("net.ipv4.ip_forward"), "{error}");
    node.pod("wrong").sysctl("kernel.no_such", "1").run().await.expect_err("no such sysctl");
    assert!(node.pods().await.expect("a list").is_empty());
    // The name is free again.
    node.pod("wrong").uid("uid-1").run().await.expect("a pod");
    node.remove_all().await;
    node.finish().await;
}

/// NAM-01, NAM-02, NAM-03.
#[tokio::test]
async fn a_name_is_taken_until_its_pod_is_removed() {
    let node = Node::start().await;
    let first = node.pod("twin").uid("one");
    let pod = first.run().await.expect("a pod");
    first.clone().config(|config| config.hostname = "other".into()).run().await.expect_err("a twin");
    first.clone().run().await.expect_err("a twin, word for word");
    pod.stop().await.expect("stopped");
    first.clone().run().await.expect_err("a twin of a stopped pod");
    assert_eq!(node.pods().await.expect("a list").len(), 1);
    for other in [first.clone().attempt(1), first.clone().uid("two"), first.clone().namespace("other")] {
        other.run().await.expect("another pod");
    }
    assert_eq!(node.pods().await.expect("a list").len(), 4);
    pod.remove().await.expect("removed");
    first.run().await.expect("the name is free");
    node.remove_all().await;
    node.finish().await;
}

/// SVC-34, NAM-01.
#[tokio::test]
async fn pods_are_made_and_removed_at_the_same_time() {
    let node = Node::start().await;
    let builders: Vec<_> = (0..6).map(|number| node.pod(&format!("many-{number}"))).collect();
    let mut running = tokio::task::JoinSet::new();
    for builder in builders {
        running.spawn(async move {
            let pod = builder.run().await.expect("a pod");
            let address = pod.ip().await;
            (pod, address)
        });
    }
    let pods = running.join_all().await;
    let mut addresses: Vec<&String> = pods.iter().map(|(_, address)| address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 6, "{addresses:?}");
    let mut ending = tokio::task::JoinSet::new();
    for (pod, _) in pods {
        ending.spawn(async move {
            pod.stop().await.expect("stopped");
            pod.remove().await.expect("removed");
        });
    }
    ending.join_all().await;
    assert!(node.pods().await.expect("a list").is_empty());
    node.finish().await;
}

/// SBX-09: as low as may be, where this machine lets a score be lowered at all.
#[tokio::test]
async fn pause_is_the_last_to_be_killed_for_memory() {
    let node = Node::start().await;
    let pod = node.pod("score").run().await.expect("a pod");
    let score = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
        text.trim().parse::<i32>().expect("a number")
    };
    let pause = score(&pod.info().await["pid"].to_string());
    let own = score("self");
    assert!(pause == -998 || pause == own.max(-998), "{pause}, our own {own}");
    node.remove_all().await;
    node.finish().await;
}

/// SVC-28, SVC-29.
#[tokio::test]
async fn ids_may_be_given_by_a_unique_prefix() {
    let node = Node::with(Server::from_env()).start().await;
    let pod = node.pod("prefix").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let status = node.pod_status(&pod.id[..13], false).await.expect("by prefix").status.expect("a status");
    assert_eq!(status.id, pod.id);
    let answer = node.container_status(&container.id[..13], false).await.expect("by prefix");
    assert_eq!(answer.status.expect("a status").id, container.id);
    node.pod_status("", false).await.expect_err("no id");
    node.container_status("", false).await.expect_err("no id");
    node.stop_pod(&pod.id[..13]).await.expect("stopped by prefix");
    assert_eq!(pod.status().await.expect("a status").state(), PodSandboxState::SandboxNotready);
    node.remove_pod(&pod.id[..13]).await.expect("removed by prefix");
    assert!(node.pods().await.expect("a list").is_empty());
    node.finish().await;
}
