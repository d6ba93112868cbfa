//! What the server knows and containerd does not, or the other way round.

use std::os::unix::fs::MetadataExt;

use longshore::proto::cri::ContainerState;

use super::{assert_told, node, repairs, wait_for_looks, wait_for_repair};
use crate::harness::{Server, wait_until};

/// `ctr task kill` and `ctr container delete`, of a container: it has ended,
/// the kubelet is told how, and can remove it.
#[tokio::test]
async fn a_container_that_others_ended_and_deleted_has_ended() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let behind = node.containerd().behind();
    behind.end_task(&container.id).await;
    let status = container.wait_exited().await;
    assert_eq!(status.exit_code, 137, "{status:?}");
    behind.take_record(&container.id).await;
    // The record is there again, so that a restart loses nothing.
    wait_for_repair(&node, "lost-record", 1).await;
    assert!(behind.record(&container.id).await.is_some());
    node.longshore().kill().await;
    node.longshore().start().await;
    let again = container.status().await.expect("a status");
    assert_eq!((again.state, again.exit_code), (ContainerState::ContainerExited as i32, 137));
    container.remove().await.expect("removed");
    // The kubelet's next one.
    pod.container("c").attempt(1).forever().run().await.expect("it runs");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// The record alone is gone: containerd could not stop the process any more.
#[tokio::test]
async fn a_running_container_whose_record_was_deleted_is_ended() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let created = pod.container("created").forever().create().await.expect("created");
    let behind = node.containerd().behind();
    behind.take_record(&container.id).await;
    behind.take_record(&created.id).await;
    let status = container.wait_exited().await;
    assert_eq!(status.exit_code, 137, "{status:?}");
    let status = created.wait_exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    wait_for_repair(&node, "lost-record", 2).await;
    assert_told(&node, &["repaired", "lost-record", &container.id, "somebody deleted its record"]);
    container.remove().await.expect("removed");
    created.remove().await.expect("removed");
    pod.container("c").attempt(1).forever().run().await.expect("the next one runs");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// A pod whose record and lease were deleted goes on, also through a restart, and leaves
/// nothing.
#[tokio::test]
async fn a_pod_whose_record_and_lease_were_deleted_goes_on() {
    let node = node().await;
    let pod = node.pod("a").labels([("tier", "front")]).run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let before = pod.status().await.expect("a status");
    let behind = node.containerd().behind();
    behind.take_record(&pod.id).await;
    behind.delete_lease(&pod.id).await;
    wait_for_repair(&node, "lost-record", 1).await;
    wait_for_repair(&node, "lost-lease", 1).await;
    assert!(behind.leases().await.contains(&pod.id));
    node.longshore().kill().await;
    node.longshore().start().await;
    let mut after = pod.status().await.expect("a status");
    // The time of the record is containerd's to give.
    after.created_at = before.created_at;
    assert_eq!(after, before);
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.container("second").forever().run().await.expect("it runs");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Pause, ended and deleted by others: the pod is NOTREADY, its containers go on.
#[tokio::test]
async fn a_pod_whose_pause_others_ended_is_not_ready() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let behind = node.containerd().behind();
    behind.end_task(&pod.id).await;
    wait_until("NOTREADY", async || pod.status().await.expect("a status").state == 1).await;
    behind.take_record(&pod.id).await;
    wait_for_repair(&node, "lost-record", 1).await;
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// What another CRI server's records say is its own business: none is put back, nothing of it
/// is touched.
#[tokio::test]
async fn pods_of_another_server_in_the_namespace_are_left_alone() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let behind = node.containerd().behind();
    // A record in the form of a pod's, of which longshore has no folder.
    let mut record = behind.record(&pod.id).await.expect("a record");
    let theirs = "e".repeat(64);
    record.id.clone_from(&theirs);
    record.snapshot_key.clear();
    for value in record.extensions.values_mut() {
        let text = String::from_utf8(value.value.clone()).expect("JSON").replace(&pod.id, &theirs);
        value.value = text.replace(&node.longshore().netns_dir().display().to_string(), "/run/netns").into();
    }
    behind.put_record(record).await;
    wait_for_looks(&node, 3).await;
    assert!(behind.record(&theirs).await.is_some());
    node.longshore().terminate().await;
    node.longshore().start().await; // where it is loaded, as any pod
    behind.take_record(&theirs).await;
    wait_for_looks(&node, 3).await;
    assert!(behind.record(&theirs).await.is_none());
    assert_eq!(repairs(&node).await.get("lost-record"), None);
    node.remove_pod(&theirs).await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Somebody unmounted the namespace of a pod that runs: it is pinned again, so that the pod's
/// figures, its ports and CNI DEL find it.
#[tokio::test]
async fn a_namespace_that_somebody_unmounted_is_pinned_again() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    let pins = std::fs::read_dir(node.longshore().netns_dir()).expect("a folder");
    let pins: Vec<_> = pins.flatten().map(|pin| pin.path()).collect();
    let [pin] = &pins[..] else { panic!("{pins:?}") };
    for takes_file in [false, true] {
        let before = repairs(&node).await.get("lost-namespace").copied().unwrap_or(0);
        rustix::mount::unmount(pin, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        if takes_file {
            std::fs::remove_file(pin).expect("removed");
        }
        wait_for_repair(&node, "lost-namespace", before + 1).await;
        assert!(longshore::sys::netns::is_alive(pin));
        let namespace =
            |path: &std::path::Path| std::fs::metadata(path).map(|found| found.ino()).expect("there");
        let of_pause = format!("/proc/{}/ns/net", pod.info().await["pid"]);
        assert_eq!(namespace(pin), namespace(of_pause.as_ref()));
    }
    pod.stop().await.expect("stopped");
    assert!(!pin.exists());
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// With 0 nothing is looked at between two starts.
#[tokio::test]
async fn a_period_of_zero_is_none() {
    let config = "[server]\nreconcile_period_s = 0\n";
    let node = crate::harness::Node::with(Server::Longshore).config(config).start().await;
    let (root, _) = node.longshore().folders();
    let folder = root.join("sandboxes").join("c".repeat(64));
    std::fs::create_dir_all(&folder).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    pod.remove().await.expect("removed");
    assert!(folder.exists());
    node.longshore().terminate().await;
    node.longshore().start().await;
    assert!(!folder.exists(), "the start removes it");
    node.finish().await;
}
