//! Pods change hands: containerd's own plugin takes over ours, and we its (area COX).

use longshore::proto::cri::{ContainerState, ContainerStatus};

use crate::harness::{Container, Cri, Node, Pod, Server, wait_until};

/// The same pod and container, seen by another server.
fn seen_by(cri: &Cri, pod: &Pod, container: &Container) -> (Pod, Container) {
    (Pod { cri: cri.clone(), ..pod.clone() }, container.through(cri))
}

/// COX-04 … COX-16: containerd, restarted with its plugin, lists, describes and removes
/// the pods that longshore made.
#[tokio::test]
async fn the_plugin_takes_over_our_pods() {
    let node = Node::with(Server::Longshore).plugin_folders().start().await;
    let pod =
        node.pod("a").labels([("tier", "front")]).annotations([("note", "x")]).run().await.expect("a pod");
    let container = pod.container("c").labels([("is", "ours")]).forever().run().await.expect("it runs");
    let exited = pod.container("exited").sh("exit 3").run().await.expect("it runs");
    exited.wait_exited().await;
    let ours = (pod.status().await.expect("a status"), container.status().await.expect("a status"));

    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    let (pod, container) = seen_by(&plugin, &pod, &container);
    let theirs = (pod.status().await.expect("a status"), container.status().await.expect("a status"));
    assert_eq!((theirs.0.state, &theirs.0.metadata), (ours.0.state, &ours.0.metadata));
    assert_eq!((&theirs.0.labels, &theirs.0.annotations), (&ours.0.labels, &ours.0.annotations));
    assert_eq!(theirs.0.network, ours.0.network);
    assert_eq!(theirs.0.created_at, ours.0.created_at);
    assert_eq!((theirs.1.state, theirs.1.started_at), (ours.1.state, ours.1.started_at));
    assert_eq!((&theirs.1.metadata, &theirs.1.labels), (&ours.1.metadata, &ours.1.labels));
    assert_eq!((&theirs.1.image_ref, &theirs.1.log_path), (&ours.1.image_ref, &ours.1.log_path));
    assert_eq!(theirs.1.mounts, ours.1.mounts);
    let exited = exited.through(&plugin).status().await.expect("a status");
    assert_eq!((exited.state, exited.exit_code), (ContainerState::ContainerExited as i32, 3));
    assert_eq!(container.sh("echo inside").await, "inside");
    container.stop(0).await.expect("stopped");
    container.remove().await.expect("removed");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    plugin.remove_all().await;
    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    node.finish().await;
}

/// The other way: a node that changes over to longshore keeps its pods.
#[tokio::test]
async fn we_take_over_the_pods_of_the_plugin() {
    let node = Node::with(Server::Longshore).plugin_folders().start().await;
    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    plugin.wait_until_network_ready().await;
    let pod = plugin.pod("a").labels([("tier", "front")]).run().await.expect("a pod");
    let container = pod.container("c").sh("echo theirs; exec sleep 1000").run().await.expect("it runs");
    container.wait_log("theirs").await;
    let exited = pod.container("exited").sh("exit 3").run().await.expect("it runs");
    exited.wait_exited().await;
    let theirs = (pod.status().await.expect("a status"), container.status().await.expect("a status"));

    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    let (pod, container) = seen_by(node.cri(), &pod, &container);
    let ours = (pod.status().await.expect("a status"), container.status().await.expect("a status"));
    // What one version or another does not tell is told: 1.6 no user and no stop signal, 1.7
    // and 2.x not how the image was named.
    let named = |status: &ContainerStatus| status.image.as_ref().map(|image| image.image.clone());
    assert_eq!(named(&ours.1), named(&theirs.1));
    let told = ContainerStatus {
        image: theirs.1.image.clone(),
        image_id: theirs.1.image_id.clone(),
        user: theirs.1.user.clone(),
        stop_signal: theirs.1.stop_signal,
        ..ours.1.clone()
    };
    assert_eq!((&ours.0, &told), (&theirs.0, &theirs.1));
    let exited = exited.through(node.cri());
    let exited = exited.status().await.expect("a status");
    assert_eq!((exited.state, exited.exit_code), (ContainerState::ContainerExited as i32, 3));
    assert_eq!(container.sh("echo inside").await, "inside");
    // Its network works, and new containers fit in.
    let more = pod.container("more").sh("echo ours; exec sleep 1000").run().await.expect("it runs");
    more.wait_log("ours").await;
    assert_eq!(more.sh("cat /proc/net/fib_trie").await, container.sh("cat /proc/net/fib_trie").await);
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// COX-01, COX-02: two servers of the same pods would fight.
#[tokio::test]
async fn beside_an_active_plugin_the_start_is_refused() {
    let node = Node::with(Server::Longshore).start().await;
    node.longshore().terminate().await;
    node.containerd().restart_with_cri_plugin().await;
    node.longshore().spawn();
    wait_until("the end of longshore", async || !node.longshore().is_alive()).await;
    let log = node.longshore().log();
    for part in ["disabled_plugins", "io.containerd.grpc.v1.cri", "--namespace"] {
        assert!(log.contains(part), "{log}");
    }
    node.longshore().kill().await;
    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    node.finish().await;
}
