//! Disks that are full or read-only. A disk is a small tmpfs of the test's own.

use std::io::Write;
use std::path::Path;

use longshore::proto::cri::ContainerState;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::harness::{Node, Place, Server, wait_until};

/// Root, or state, on a disk.
const ROOT: &str = "root = \"{folder}/disk/l\"\n";
const STATE: &str = "state = \"{folder}/disk/s\"\n";

async fn node(config: &str, options: &'static str) -> Node {
    let disk = move |place: &Place| {
        let disk = place.path("disk");
        std::fs::create_dir(&disk).expect("a folder");
        let options = std::ffi::CString::new(options).expect("text");
        mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), Some(&*options)).expect("mounted");
    };
    let period = "[server]\nreconcile_period_s = 1\n";
    Node::with(Server::Longshore).config(config).config(period).before(disk).start().await
}

/// Fills a disk to its last byte.
fn fill(node: &Node) {
    let mut file = std::fs::File::create(node.place().path("disk/full")).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
}

/// Takes all of a disk's inodes.
fn fill_with_names(node: &Node) {
    let mut names = (0..).map(|number| node.place().path(&format!("disk/full-{number}")));
    while names.next().is_some_and(|name| std::fs::write(name, "").is_ok()) {}
}

/// Makes a folder read-only, or writable again.
fn set_read_only(folder: &Path, is_read_only: bool) {
    if !is_read_only {
        return unmount(folder, UnmountFlags::empty()).expect("unmounted");
    }
    mount_bind(folder, folder).expect("a mount of its own");
    mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY, "").expect("read-only");
}

fn free(node: &Node) {
    let entries = std::fs::read_dir(node.place().path("disk")).expect("a folder").flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("full")) {
        std::fs::remove_file(entry.path()).expect("removed");
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// The root is full: what is new fails and says where; what runs goes on, and an end that could
/// not be stored is stored when there is room, so that a restart knows it.
#[tokio::test]
async fn a_full_root_fails_what_is_new_and_loses_no_exit() {
    let node = node(ROOT, "size=2m").await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let script = "until [ -e /gate/go ]; do usleep 20000; done; exit 9";
    let container = pod.container("c").sh(script).mount(&gate, "/gate").run().await.expect("it runs");
    fill(&node);
    let error = node.pod("b").run().await.expect_err("no room");
    assert!(error.message().contains("No space left on device"), "{error:?}");
    assert!(error.message().contains("run pod sandbox \"b_"), "{error:?}");
    let error = pod.container("d").forever().create().await.expect_err("no room");
    assert!(error.message().contains("No space left on device"), "{error:?}");
    std::fs::write(gate.join("go"), "").expect("a file");
    assert_eq!(container.wait_exited().await.exit_code, 9);
    assert!(node.longshore().log().contains("the exit could not be stored"));
    free(&node);
    wait_until("the status", async || node.longshore().log().contains("its status is stored now")).await;
    node.longshore().kill().await;
    node.longshore().start().await;
    let status = container.status().await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::ContainerExited as i32, 9));
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.container("d").forever().run().await.expect("it runs");
    pod.remove().await.expect("removed");
    assert!(is_empty(&node.place().path("disk/l/sandboxes")));
    node.finish().await;
}

/// A root that became read-only, as file systems do on errors of their disk.
#[tokio::test]
async fn a_read_only_root_is_said_and_removal_works_afterwards() {
    let node = node(ROOT, "size=4m").await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    // The disk itself cannot be: the server has its lock open there.
    let folders = ["sandboxes", "containers"].map(|name| node.place().path("disk/l").join(name));
    folders.iter().for_each(|folder| set_read_only(folder, true));
    for error in [
        node.pod("b").run().await.map(drop).expect_err("read-only"),
        pod.container("d").forever().create().await.map(drop).expect_err("read-only"),
        container.remove().await.expect_err("read-only"),
    ] {
        assert!(error.message().contains("Read-only file system"), "{error:?}");
    }
    assert_eq!(node.pods().await.expect("pods").len(), 1);
    folders.iter().for_each(|folder| set_read_only(folder, false));
    container.remove().await.expect("removed");
    pod.container("c").attempt(1).forever().run().await.expect("it runs");
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// The state folder has no room for a FIFO or a folder more.
#[tokio::test]
async fn a_full_state_fails_starts_and_nothing_else() {
    let node = node(STATE, "size=2m,nr_inodes=64").await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let created = pod.container("d").forever().create().await.expect("created");
    fill_with_names(&node);
    let error = created.start().await.expect_err("no room");
    assert!(error.message().contains("No space left on device"), "{error:?}");
    assert!(error.message().contains(&created.id), "{error:?}");
    let error = node.pod("b").run().await.expect_err("no room");
    assert!(error.message().contains("No space left on device"), "{error:?}");
    assert_eq!(created.status().await.expect("a status").reason, "StartError");
    free(&node);
    assert_eq!(container.sh("echo inside").await, "inside");
    created.remove().await.expect("removed");
    pod.container("d").attempt(1).forever().run().await.expect("it runs");
    node.pod("b").run().await.expect("a pod").remove().await.expect("removed");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}
