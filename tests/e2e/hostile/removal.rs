//! What containers leave in folders of ours, to be removed: links, and trees that are deeper
//! than a stack.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use serde_json::json;

use super::Outside;
use crate::harness::images::Image;
use crate::harness::{Container, Node, Server, procfs};

/// Deeper than recursion, descriptors and paths reach.
const DEPTH: usize = 30_000;

async fn node() -> (Node, String) {
    let node = Node::with(Server::Longshore).start().await;
    let image = Image::busybox().with("Volumes", json!({ "/volume": {} }));
    let reference = node.registry().push("hostile-volume:1", &image);
    let id = node.pull(&reference).await.expect("pulled");
    (node, id)
}

/// The folder behind the only volume of a container.
fn volume(node: &Node, container: &Container) -> PathBuf {
    let volumes = node.longshore().folders().0.join("containers").join(&container.id).join("volumes");
    let names = procfs::names(&volumes);
    assert_eq!(names.len(), 1, "{names:?}");
    volumes.join(&names[0])
}

/// CTR-40: links are removed, not what they lead to.
#[tokio::test]
async fn links_that_a_container_leaves_lead_a_removal_nowhere() {
    let (node, image) = node().await;
    let outside = Outside::new(&node);
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image(&image).forever().run().await.expect("it runs");
    let script = "cd /volume; ln -s OUT link; mkdir -p a/b; ln -s OUT/file a/b/f; ln -s OUT/empty a/b/d";
    container.sh(&script.replace("OUT", &outside.text())).await;
    assert!(std::fs::symlink_metadata(volume(&node, &container).join("a/b/f")).is_ok());
    container.remove().await.expect("removed");
    outside.assert_untouched("a volume with links");

    // Also in place of a folder of ours.
    let container = pod.container("d").image(&image).forever().create().await.expect("created");
    let (root, state) = node.longshore().folders();
    for base in [root, state] {
        let folder = base.join("containers").join(&container.id);
        std::fs::rename(&folder, node.place().path("aside")).expect("moved");
        std::fs::remove_dir_all(node.place().path("aside")).expect("removed");
        symlink(&outside.folder, &folder).expect("a link");
    }
    container.remove().await.expect("removed");
    outside.assert_untouched("a folder that has become a link");
    node.remove_all().await;
    node.finish().await;
}

/// Makes folders in one another, as a container can: without a path that long.
fn make_deep(from: &Path) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = rustix::fs::openat(CWD, from, flags, Mode::empty()).expect("a folder");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&folder, "d", Mode::RWXU).expect("made");
        folder = rustix::fs::openat(&folder, "d", flags, Mode::empty()).expect("a folder");
    }
}

/// CTR-40: a volume that no recursion gets to the end of.
#[tokio::test]
async fn a_tree_that_is_too_deep_for_a_stack_is_removed() {
    let (node, image) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image(&image).forever().run().await.expect("it runs");
    make_deep(&volume(&node, &container));
    let pid = node.longshore().pid();
    container.remove().await.expect("removed");
    assert!(node.longshore().is_alive() && node.longshore().pid() == pid);
    node.remove_all().await;
    node.finish().await;
}

/// Copies of images' files have their modes, set-user-id bits and devices: no other user of
/// the host gets there. The sockets are for root, and for the group of the CRI's own.
#[tokio::test]
async fn folders_and_sockets_are_closed_to_other_users() {
    let (node, image) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image(&image).forever().run().await.expect("it runs");
    container.sh("cp /bin/busybox /volume/su; chmod 4755 /volume/su; mknod -m 666 /volume/disk b 7 0").await;
    let (root, state) = node.longshore().folders();
    let mode = |path: &Path| {
        let found = std::fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert_eq!(found.uid(), 0, "{path:?}");
        found.permissions().mode() & 0o7777
    };
    for folder in ["sandboxes", "containers"] {
        assert_eq!((mode(&root.join(folder)), mode(&state.join(folder))), (0o700, 0o700), "{folder}");
    }
    assert_eq!(mode(&state.join("image-volumes")), 0o700);
    for socket in ["admin.sock", "keeper.sock"] {
        assert_eq!(mode(&state.join(socket)) & 0o077, 0, "{socket}");
    }
    assert_eq!(mode(node.socket()), 0o660);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-29: what is missing is made; what is there keeps its mode.
#[tokio::test]
async fn only_what_is_made_gets_a_mode() {
    let node = Node::with(Server::Longshore).start().await;
    let there = node.place().path("there");
    std::fs::create_dir(&there).expect("a folder");
    std::fs::set_permissions(&there, PermissionsExt::from_mode(0o700)).expect("permissions");
    symlink(&there, node.place().path("link")).expect("a link");
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever();
    let container = container.mount(node.place().path("link"), "/a").mount(there.join("new/er"), "/b");
    container.create().await.expect("created");
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
    assert_eq!((mode(&there), mode(&there.join("new")), mode(&there.join("new/er"))), (0o700, 0o755, 0o755));
    node.remove_all().await;
    node.finish().await;
}
