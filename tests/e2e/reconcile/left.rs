//! What is left of pods is removed; what is not known to be longshore's stays.

use std::path::{Path, PathBuf};

use super::{assert_told, node, repairs, wait_for_looks, wait_for_repair};
use crate::harness::{Node, wait_until};

fn gone() -> String {
    "c".repeat(64)
}

fn pin(path: &Path) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, "").expect("a file");
    rustix::mount::mount_bind("/proc/self/ns/net", path).expect("pinned");
}

/// An attachment in libcni's cache, as it was written before an ADD.
fn attachment(node: &Node, network: &str, id: &str, netns: &Path) -> PathBuf {
    let results = node.longshore().cni_cache().join("results");
    std::fs::create_dir_all(&results).expect("a folder");
    let file = results.join(format!("{network}-{id}-eth0"));
    // No plugins: what DEL has to undo is not the question here.
    let config = "eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoibiIsInBsdWdpbnMiOlt7InR5cGUiOiJnYXRlIn1dfQ==";
    let entry = serde_json::json!({
        "kind": "cniCacheV1", "containerId": id, "config": config, "ifName": "eth0",
        "networkName": network, "netns": netns,
        "cniArgs": [["K8S_POD_INFRA_CONTAINER_ID", id]],
    });
    std::fs::write(&file, entry.to_string()).expect("a file");
    file
}

/// REC-15: everything that can be left of a pod, while another one runs.
#[tokio::test]
async fn what_is_left_of_a_pod_goes_and_what_is_of_others_stays() {
    let del =
        "#!/bin/sh\ncat >/dev/null\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS\" >>{folder}/calls\n";
    let node = super::builder().plugin("gate", del).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let ended = pod.container("ended").sh("exit 3").run().await.expect("it runs");
    ended.wait_exited().await;
    let (root, state) = node.longshore().folders();
    let gone = gone();
    let make = |path: &Path| std::fs::create_dir_all(path).expect("a folder");

    // Of longshore's.
    let shm = state.join("sandboxes").join(&gone).join("shm");
    make(&shm);
    rustix::mount::mount("tmpfs", &shm, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mounted");
    let folders = [
        root.join("sandboxes").join(&gone),
        root.join("containers").join(&gone),
        state.join("image-volumes").join(&gone),
    ];
    folders.iter().for_each(|folder| make(folder));
    let fifo = state.join("containers").join(&ended.id).join("io/99");
    make(&fifo);
    let fifo_file = fifo.join(format!("{}-stdout", ended.id));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo_file, rustix::fs::Mode::RWXU).expect("a FIFO");
    let netns = node.longshore().netns_dir().join("cni-00000000-0000-0000-0000-00000000000c");
    pin(&netns);
    let attached = attachment(&node, &node.place().name(), &gone, &netns);
    let behind = node.containerd().behind();
    behind.make_lease(&gone, "longshore.io/pod").await;
    behind.make_snapshot(&pod.id, &gone).await;
    behind.make_lease("longshore-image-1", "any").await;

    // Of others.
    let other = "d".repeat(64);
    let other_netns = node.place().path("elsewhere/cni-00000000-0000-0000-0000-00000000000d");
    pin(&other_netns);
    let blue = node.longshore().netns_dir().join("blue");
    pin(&blue);
    let foreign_attachment = attachment(&node, "podman", "f00", &other_netns);
    behind.make_lease(&other, "somebody/else").await;
    behind.make_lease("tool", "any").await;
    behind.make_snapshot("tool", &"e".repeat(64)).await;
    let foreign_folder = root.join("containers/not-an-id");
    make(&foreign_folder);

    for kind in
        ["folder", "mount", "image-volumes", "network-namespace", "cni-attachment", "lease", "snapshot"]
    {
        // The mount goes with its folder or before it.
        if kind != "mount" {
            wait_for_repair(&node, kind, 1).await;
        }
    }
    wait_until("the end of the rest", async || {
        !shm.exists() && !fifo.exists() && folders.iter().all(|folder| !folder.exists())
    })
    .await;
    wait_until("the end of the pull's lease", async || {
        !behind.leases().await.contains(&"longshore-image-1".to_owned())
    })
    .await;
    assert!(!netns.exists() && !attached.exists() && !behind.has_snapshot(&gone).await);
    assert!(!behind.leases().await.contains(&gone));
    assert_told(&node, &["repaired", "network-namespace", netns.to_str().expect("UTF-8"), "cause="]);
    let calls = std::fs::read_to_string(node.place().path("calls")).expect("a call");
    assert_eq!(calls, format!("DEL {gone} {}\n", netns.display()), "before the namespace went");

    // Nothing else is done, however often is looked.
    let before = repairs(&node).await;
    wait_for_looks(&node, 3).await;
    assert_eq!(repairs(&node).await, before);
    for path in [&other_netns, &blue, &foreign_attachment, &foreign_folder] {
        assert!(path.exists(), "{path:?}");
    }
    assert!(behind.leases().await.contains(&other) && behind.has_snapshot(&"e".repeat(64)).await);
    assert_eq!(container.sh("echo inside").await, "inside");
    assert_eq!(ended.status().await.expect("a status").exit_code, 3);
    pod.remove().await.expect("removed");

    for pin in [&other_netns, &blue] {
        rustix::mount::unmount(pin, rustix::mount::UnmountFlags::empty()).expect("unmounted");
        std::fs::remove_file(pin).expect("removed");
    }
    std::fs::remove_file(&foreign_attachment).expect("removed");
    std::fs::remove_dir(&foreign_folder).expect("removed");
    behind.remove_snapshot(&"e".repeat(64)).await;
    behind.delete_lease(&other).await;
    behind.delete_lease("tool").await;
    node.finish().await;
}

/// A plugin that fails: what shows that the pod was longshore's stays until it works.
#[tokio::test]
async fn what_cannot_be_removed_yet_is_tried_again() {
    let del = "#!/bin/sh\ncat >/dev/null\n[ -e {folder}/better ] && exit 0\n\
               echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"not today\"}'\nexit 1\n";
    let node = super::builder().plugin("gate", del).start().await;
    let (root, _) = node.longshore().folders();
    let folder = root.join("sandboxes").join(gone());
    std::fs::create_dir_all(&folder).expect("a folder");
    let netns = node.longshore().netns_dir().join("cni-00000000-0000-0000-0000-00000000000c");
    pin(&netns);
    let attached = attachment(&node, &node.place().name(), &gone(), &netns);
    wait_until("an attempt", async || node.longshore().log().contains("not today")).await;
    wait_for_looks(&node, 2).await;
    assert!(attached.exists() && folder.exists() && netns.exists());
    std::fs::write(node.place().path("better"), "").expect("a file");
    wait_until("the end of all", async || !attached.exists() && !folder.exists() && !netns.exists()).await;
    node.finish().await;
}

/// A container that was recorded, but of which nobody was told: its creation failed when
/// containerd was away, for example.
#[tokio::test]
async fn a_container_that_nobody_was_told_of_goes() {
    let node = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let behind = node.containerd().behind();
    let mut record = behind.record(&container.id).await.expect("a record");
    let left = "b".repeat(64);
    record.id.clone_from(&left);
    record.snapshot_key.clone_from(&left);
    for value in record.extensions.values_mut() {
        let text = String::from_utf8(value.value.clone()).expect("JSON");
        value.value = text.replace(&container.id, &left).into_bytes();
    }
    let (root, state) = node.longshore().folders();
    let folders = [root.join("containers").join(&left), state.join("containers").join(&left)];
    folders.iter().for_each(|folder| std::fs::create_dir_all(folder).expect("a folder"));
    behind.make_snapshot(&pod.id, &left).await;
    behind.put_record(record).await;
    wait_for_repair(&node, "creation", 1).await;
    assert!(behind.record(&left).await.is_none() && !behind.has_snapshot(&left).await);
    assert!(folders.iter().all(|folder| !folder.exists()));
    assert_eq!(node.containers().await.expect("containers").len(), 1);
    assert_eq!(container.sh("echo inside").await, "inside");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// A pod of which the server knows nothing any more, but which runs: its record was deleted
/// while no server was there. Nobody's folders but longshore's own say whose it was.
#[tokio::test]
async fn a_pod_of_no_record_is_ended_with_its_shim_and_network() {
    let node = super::builder().plugin_folders().start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    node.longshore().kill().await;
    let behind = node.containerd().behind();
    behind.take_record(&pod.id).await;
    node.longshore().start().await;
    assert!(node.pods().await.expect("pods").is_empty());
    for kind in ["task", "cni-attachment", "network-namespace", "lease"] {
        wait_for_repair(&node, kind, 1).await;
    }
    node.assert_nothing_left("of a pod without a record").await;
    node.finish().await;
}
