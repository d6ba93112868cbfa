//! The harness itself: that it would see what a server leaves behind.

use std::path::Path;

use crate::harness::Node;

#[tokio::test]
async fn everything_that_a_pod_has_is_found_while_it_is_there() {
    let node = Node::start().await;
    assert_eq!(node.leftovers().await, [""; 0]);
    let pod = node.pod("left").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("a container");
    let found = node.leftovers().await;
    for kind in [
        "namespace pin ",
        "interface ",
        "address ",
        "CNI cache ",
        "shim ",
        "mount ",
        "cgroup ",
        "runc state ",
        "folder ",
        "container ",
        "task ",
        "snapshot ",
    ] {
        assert!(found.iter().any(|left| left.starts_with(kind)), "no {kind}in {found:#?}");
    }
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn a_node_that_is_dropped_is_gone() {
    let node = Node::start().await;
    let pod = node.pod("dropped").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    // Empty for a zombie, too: it waits for a parent that is not ours.
    let command = format!("/proc/{}/cmdline", container.info().await["pid"]);
    let runs = || std::fs::read(&command).is_ok_and(|command| !command.is_empty());
    assert!(runs());
    let folder = node.place().folder().to_owned();
    let bridge = Path::new("/sys/class/net").join(node.place().bridge());
    let cgroups = node.place().cgroup_folders();
    assert!(folder.exists() && bridge.exists() && !cgroups.is_empty());
    drop(node);
    assert!(!runs());
    assert!(!folder.exists() && !bridge.exists());
    assert!(cgroups.iter().all(|cgroup| !cgroup.exists()));
}
