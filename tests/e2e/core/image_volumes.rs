//! Images that containers have mounted.

use longshore::proto::cri::{Mount, MountPropagation};
use tonic::Code;

use super::is_plugin_before;
use crate::harness::images::{Image, Layer};
use crate::harness::{Node, image_mount};

/// An image of two layers with a few files, and nothing that could be run by itself.
fn volume() -> Image {
    let lower = Layer::default()
        .folder("sub", 0o755)
        .folder("sub/deep", 0o755)
        .file("greeting", 0o644, b"from below\n")
        .file("sub/deep/inner", 0o644, b"inner\n");
    let upper =
        Layer::default().file("greeting", 0o644, b"hello\n").file("run", 0o755, b"#!/bin/sh\necho ran\n");
    Image::empty().layer(lower).layer(upper)
}

/// Pulls the image; gives reference and id.
async fn pulled(node: &Node, name: &str, image: &Image) -> (String, String) {
    let reference = node.registry().push(name, image);
    let id = node.pull(&reference).await.expect("pulled");
    (reference, id)
}

/// How many mounts for image volumes there are on the node.
fn mounts(node: &Node) -> usize {
    let all = longshore::sys::mountinfo::read().expect("the mount table");
    let base = |mount: &longshore::sys::mountinfo::MountPoint| {
        mount.path.starts_with(node.place().folder())
            && mount.path.components().any(|part| part.as_os_str() == "image-volumes")
    };
    all.iter().filter(|mount| base(mount)).count()
}

/// OCI-37: by id as the kubelet does it, and by name; of one layer, of several, of none.
#[tokio::test]
async fn a_container_reads_the_files_of_another_image() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 1) {
        return node.finish().await;
    }
    let (_, id) = pulled(&node, "volume:two", &volume()).await;
    let (single, _) = pulled(&node, "volume:one", &Image::empty().file("single", b"layer\n")).await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").image_volume(&single, "/deep/single");
    let container = container.forever().run().await.expect("it runs");
    assert_eq!(container.sh("cat /volume/greeting /volume/sub/deep/inner").await, "hello\ninner");
    assert_eq!(container.sh("cat /deep/single/single").await, "layer");
    assert_eq!(container.sh("/volume/run").await, "ran");
    for script in ["touch /volume/new", "echo x >/deep/single/single", "rm /volume/sub/deep/inner"] {
        let done = container.exec(["/bin/sh", "-c", script]).await.expect("it runs");
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.exit_code != 0 && text.contains("Read-only file system"), "{script}: {text}");
    }
    let status = container.status().await.expect("a status");
    let told = status.mounts.iter().find(|mount| mount.container_path == "/volume").expect("it is told");
    assert_eq!(told.image.as_ref().map(|image| image.image.as_str()), Some(id.as_str()));
    assert!(told.readonly);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-38.
#[tokio::test]
async fn a_sub_path_is_mounted_instead_of_the_whole_image() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 2) {
        return node.finish().await;
    }
    let (_, id) = pulled(&node, "volume:sub", &volume()).await;
    let sub = |path: &str, inside: &str| Mount { image_sub_path: path.into(), ..image_mount(&id, inside) };
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").mount_as(sub("sub", "/one")).mount_as(sub("sub/deep/", "/two"));
    let container = container.image_volume(&id, "/all").forever().run().await.expect("it runs");
    assert_eq!(
        container.sh("ls /one; ls /two; cat /two/inner /all/greeting").await,
        "deep\ninner\ninner\nhello"
    );
    assert_eq!(mounts(&node), 1);
    let status = container.status().await.expect("a status");
    let told = status.mounts.iter().find(|mount| mount.container_path == "/one").expect("it is told");
    assert_eq!(told.image_sub_path, "sub");
    for path in ["missing", "greeting", "sub/deep/inner", "greeting/below"] {
        let error = pod.container("bad").mount_as(sub(path, "/bad")).create().await.expect_err("no folder");
        assert!(error.message().contains("ImageVolumeMountFailed"), "{error:?}");
        assert_ne!(error.code(), Code::NotFound, "{error:?}"); // ERR-12
    }
    node.remove_all().await;
    node.finish().await;
}

/// OCI-37, ERR-09.
#[tokio::test]
async fn what_is_no_image_volume_is_refused() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 1) {
        return node.finish().await;
    }
    let (_, id) = pulled(&node, "volume:bad", &volume()).await;
    let pod = node.pod("a").run().await.expect("a pod");
    let good = image_mount(&id, "/bad");
    let mut bad = vec![
        Mount { readonly: false, ..good.clone() },
        Mount { host_path: "/srv".into(), ..good.clone() },
        image_mount("registry.test/not-there:1", "/bad"),
        image_mount("", "/bad"),
    ];
    if !node.is_built_in() {
        bad.push(Mount { propagation: MountPropagation::PropagationHostToContainer as i32, ..good });
    }
    for mount in bad {
        let error = pod.container("bad").mount_as(mount.clone()).create().await.expect_err("refused");
        let word = is_plugin_before(&node, 2, 2) || error.message().contains("ImageVolumeMountFailed");
        assert!(word, "{mount:?}: {error:?}");
        assert!(node.is_built_in() || error.code() != Code::NotFound, "{error:?}"); // ERR-12
    }
    assert_eq!((mounts(&node), node.containers().await.expect("a list").len()), (0, 0));
    node.remove_all().await;
    node.finish().await;
}

/// OCI-37.
#[tokio::test]
async fn the_containers_of_a_pod_share_the_mount_until_the_pod_is_stopped() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 1) {
        return node.finish().await;
    }
    let (_, id) = pulled(&node, "volume:shared", &volume()).await;
    let (pod, other) = (node.pod("a").run().await.expect("a pod"), node.pod("b").run().await.expect("a pod"));
    let mut containers = Vec::new();
    for (pod, name) in [(&pod, "one"), (&pod, "two"), (&other, "three")] {
        let container = pod.container(name).image_volume(&id, "/volume").forever().run().await;
        containers.push(container.expect("it runs"));
    }
    assert_eq!(mounts(&node), 2);
    for container in &containers {
        assert_eq!(container.sh("cat /volume/greeting").await, "hello");
    }
    // The kubelet makes a container anew; the volume is still there.
    containers[0].stop(0).await.expect("stopped");
    containers[0].remove().await.expect("removed");
    containers[1].stop(0).await.expect("stopped");
    containers[1].remove().await.expect("removed");
    assert_eq!(mounts(&node), 2);
    let again = pod.container("one").attempt(1).image_volume(&id, "/volume").forever().run().await;
    assert_eq!(again.expect("it runs").sh("cat /volume/greeting").await, "hello");
    pod.stop().await.expect("stopped");
    assert_eq!(mounts(&node), 1);
    other.stop().await.expect("stopped");
    assert_eq!(mounts(&node), 0);
    node.remove_all().await;
    node.finish().await;
}

/// IMG-42, OCI-37.
#[tokio::test]
async fn an_image_that_is_mounted_can_be_removed_and_stays_readable() {
    let node = Node::start().await;
    if is_plugin_before(&node, 2, 1) {
        return node.finish().await;
    }
    let (reference, id) = pulled(&node, "volume:removed", &volume()).await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    assert_eq!(container.sh("cat /volume/greeting").await, "hello");
    node.remove_image(&id).await.expect("removed");
    assert!(node.image(&reference).await.expect("asked").is_none());
    // Also what the kernel has not looked at before.
    assert_eq!(container.sh("cat /volume/sub/deep/inner; /volume/run").await, "inner\nran");
    // A container that comes later needs the image again, and gets it.
    node.pull(&reference).await.expect("pulled");
    let second = pod.container("d").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    assert_eq!(second.sh("cat /volume/sub/deep/inner").await, "inner");
    node.remove_all().await;
    node.finish().await;
}
