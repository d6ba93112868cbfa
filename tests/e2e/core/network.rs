//! Pod networks as the CRI shows them.

use longshore::proto::cri::PodSandboxState;

use crate::harness::{Node, Server, cni};

/// SBX-50, CNI-18.
#[tokio::test]
async fn a_pod_has_the_address_that_cni_gave() {
    let node = Node::start().await;
    let pod = node.pod("net").run().await.expect("a pod");
    let network = pod.status().await.expect("a status").network.expect("a network");
    assert!(network.ip.starts_with(&format!("{}.", node.place().network())), "{network:?}");
    assert!(network.additional_ips.is_empty(), "{network:?}");
    let container = pod.container("c").forever().run().await.expect("a container");
    let address = container.sh("ip -4 -o addr show dev eth0").await;
    assert!(address.contains(&format!(" {}/24 ", network.ip)), "{address}");
    let other = node.pod("other").run().await.expect("a pod");
    let peer = other.container("c").forever().run().await.expect("a container");
    peer.sh(&format!("ping -c 1 -w 10 {}", network.ip)).await;
    node.remove_all().await;
    node.finish().await;
}

/// CNI-03, CNI-26.
#[tokio::test]
async fn lo_is_up() {
    let node = Node::start().await;
    let pod = node.pod("lo").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    container.sh("ping -c 1 -w 10 127.0.0.1").await;
    node.remove_all().await;
    node.finish().await;
}

/// SBX-21.
#[tokio::test]
async fn a_pod_on_the_hosts_network_has_no_address_of_its_own() {
    let node = Node::start().await;
    let pod = node.pod("host").host_network().run().await.expect("a pod");
    assert_eq!(pod.ip().await, "");
    let container = pod.container("c").forever().run().await.expect("a container");
    for kind in ["net", "uts"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert_eq!(container.sh(&format!("readlink /proc/self/ns/{kind}")).await, host.display().to_string());
    }
    node.remove_all().await;
    node.finish().await;
}

/// SVC-15, CNI-07.
#[tokio::test]
async fn without_cni_only_pods_on_the_hosts_network_run() {
    let node = Node::with(Server::from_env()).no_cni().start().await;
    let status = node.status(false).await.expect("Status").status.expect("a status");
    let network = status.conditions.iter().find(|condition| condition.r#type == "NetworkReady");
    let network = network.expect("a condition");
    assert!(!network.status);
    assert_eq!(network.reason, "NetworkPluginNotReady");
    assert!(!network.message.is_empty());
    node.pod("net").run().await.expect_err("no network");
    let pod = node.pod("host").host_network().run().await.expect("a pod");
    assert_eq!(pod.status().await.expect("a status").state(), PodSandboxState::SandboxReady);
    // The plugin keeps the failed one, and cannot remove it without a network (SBX-43).
    assert!(node.is_built_in() || node.pods().await.expect("a list").len() == 1);
    // A configuration that comes later is seen without a restart.
    let list = node.place().fill(&cni::bridge().to_string());
    cni::write_conf(&cni::conf_dir(node.place()).join("10-late.conflist"), &list);
    node.wait_until_network_ready().await;
    assert!(!node.pod("late").run().await.expect("a pod").ip().await.is_empty());
    node.remove_all().await;
    node.finish().await;
}
