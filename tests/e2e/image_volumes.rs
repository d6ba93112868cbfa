//! Image volumes: what longshore shows beside [`super::core`], and what becomes of them when
//! something is cut off (OCI-37, OCI-38, area REC).

use std::path::PathBuf;

use longshore::proto::cri::{ContainerState, Mount};
use longshore::sys::{mount, mountinfo};
use tonic::Code;

use crate::harness::images::{Image, Layer};
use crate::harness::{Node, Pod, Server, image_mount};

fn volume() -> Image {
    let lower = Layer::default().folder("sub", 0o755).file("sub/inner", 0o644, b"inner\n");
    let upper = Layer::default()
        .file("greeting", 0o644, b"hello\n")
        .symbolic_link("absolute", "/sub")
        .symbolic_link("up", "../../../../../../../../../sub")
        .symbolic_link("host", "../../../../../../../../../usr")
        .symbolic_link("process", "/proc/self/root");
    Image::empty().layer(lower).layer(upper)
}

/// A node with the image; gives its id.
async fn node() -> (Node, String) {
    with_volume(Node::with(Server::Longshore).start().await).await
}

async fn with_volume(node: Node) -> (Node, String) {
    let reference = node.registry().push("volume:1", &volume());
    let id = node.pull(&reference).await.expect("pulled");
    (node, id)
}

/// Where images are mounted for a pod.
fn places(node: &Node, pod: &Pod) -> Vec<PathBuf> {
    let folder = node.longshore().folders().1.join("image-volumes").join(&pod.id);
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn place(node: &Node, pod: &Pod) -> PathBuf {
    let mut places = places(node, pod);
    assert_eq!(places.len(), 1, "{places:?}");
    places.remove(0)
}

fn is_mounted(place: &std::path::Path) -> bool {
    mountinfo::is_mount_point(place).expect("the mount table")
}

/// What there is of image volumes on the machine and in containerd.
async fn left(node: &Node) -> Vec<String> {
    let mut left = node.leftovers().await;
    left.retain(|text| text.contains("image-volumes"));
    left
}

/// OCI-38: links are those of the image, and none leads out of it.
#[tokio::test]
async fn links_in_a_sub_path_stay_in_the_image() {
    let (node, id) = node().await;
    let sub = |path: &str| Mount { image_sub_path: path.into(), ..image_mount(&id, "/volume") };
    let pod = node.pod("a").run().await.expect("a pod");
    for (index, path) in ["absolute", "up", "sub/../up/.", "../../../../sub", "/sub"].iter().enumerate() {
        let container = pod.container(&format!("c{index}")).mount_as(sub(path)).forever().run().await;
        assert_eq!(container.expect("it runs").sh("cat /volume/inner").await, "inner", "{path}");
    }
    for path in ["host", "../../../../../../usr", "process", "host/bin", "greeting"] {
        let error = pod.container("bad").mount_as(sub(path)).create().await.expect_err("it leads nowhere");
        assert_eq!(error.code(), Code::FailedPrecondition, "{path}: {error:?}");
        assert!(error.message().starts_with("ImageVolumeMountFailed: "), "{error:?}"); // ERR-09
        assert!(error.message().contains(path) && error.message().contains("/volume"), "{error:?}");
    }
    node.remove_all().await;
    assert_eq!(left(&node).await, [""; 0]);
    node.finish().await;
}

/// ERR-09, ERR-12, ERR-13, OCI-37.
#[tokio::test]
async fn errors_begin_with_the_word_that_the_kubelet_reads() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let good = image_mount(&id, "/volume");
    for (mount, code) in [
        (Mount { readonly: false, ..good.clone() }, Code::InvalidArgument),
        (Mount { host_path: "/srv".into(), ..good.clone() }, Code::InvalidArgument),
        (Mount { propagation: 2, ..good.clone() }, Code::InvalidArgument),
        (Mount { uid_mappings: vec![Default::default()], ..good.clone() }, Code::InvalidArgument),
        (image_mount("registry.test/not-there:1", "/volume"), Code::FailedPrecondition),
        (Mount { image_sub_path: "not-there".into(), ..good.clone() }, Code::FailedPrecondition),
    ] {
        let error = pod.container("bad").mount_as(mount.clone()).create().await.expect_err("refused");
        assert_eq!(error.code(), code, "{mount:?}: {error:?}");
        assert!(error.message().starts_with("ImageVolumeMountFailed: "), "{error:?}");
        assert!(error.message().contains("\"/volume\""), "{error:?}");
    }
    let only = Mount { recursive_read_only: true, ..good };
    let done = pod.container("rro").mount_as(only).forever().run().await;
    let able =
        node.status(false).await.expect("a status").runtime_handlers.iter().any(|handler| {
            handler.features.as_ref().is_some_and(|features| features.recursive_read_only_mounts)
        });
    match done {
        Ok(container) => assert_eq!(container.sh("cat /volume/greeting").await, "hello"),
        Err(error) => {
            assert!(error.message().starts_with("RROUnsupported: ") && !able, "{error:?}");
        }
    }
    node.remove_all().await;
    node.finish().await;
}

/// What was mounted is told for good (`image_ref`): the name may lead elsewhere later.
#[tokio::test]
async fn the_status_tells_which_image_is_mounted() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let asked = Mount { image_sub_path: "sub".into(), ..image_mount("registry.test/volume:1", "/volume") };
    let container = pod.container("c").mount_as(asked.clone()).forever().run().await.expect("it runs");
    let mut expected = asked;
    expected.image.get_or_insert_default().image_ref = id;
    assert_eq!(container.status().await.expect("a status").mounts, [expected.clone()]);
    node.longshore().kill().await;
    node.longshore().start().await;
    assert_eq!(container.status().await.expect("a status").mounts, [expected]);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-37, CTR-05: of the handler's snapshotter, for which it is unpacked first; also when
/// the handler has another one by the time of the stop.
#[tokio::test]
async fn an_image_is_mounted_by_the_snapshotter_of_the_handler() {
    let config = "[runtime.handlers.copies]\nsnapshotter = \"native\"\n\
                  [runtime.handlers.copies.options]\nRoot = \"{folder}/runc\"\n";
    let (node, id) = with_volume(Node::with(Server::Longshore).config(config).start().await).await;
    let pod = node.pod("a").handler("copies").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    let script = "cat /volume/greeting /volume/sub/inner; ! touch /volume/new 2>/dev/null";
    assert_eq!(container.sh(script).await, "hello\ninner");
    node.longshore().terminate().await;
    let file = node.longshore().config_file();
    let text = std::fs::read_to_string(&file).expect("a configuration");
    let changed = text.replace("\"native\"", "\"overlayfs\"");
    assert_ne!(changed, text);
    std::fs::write(&file, changed).expect("a file");
    node.longshore().start().await;
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// OCI-37: of creations at the same time one mounts, the others use that.
#[tokio::test]
async fn containers_that_are_made_at_the_same_time_share_one_mount() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("pulled");
    let runs = (0..6).map(|index| {
        let container = pod.container(&format!("c{index}")).image_volume(&id, "/volume");
        container.image_volume("registry.test/volume:1", "/again").forever().run()
    });
    for container in futures_util::future::join_all(runs).await {
        assert_eq!(
            container.expect("it runs").sh("cat /volume/greeting /again/sub/inner").await,
            "hello\ninner"
        );
    }
    let place = place(&node, &pod);
    let all = mountinfo::read().expect("the mount table");
    assert_eq!(all.iter().filter(|mount| mount.path.starts_with(&place)).count(), 1);
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    node.remove_all().await;
    node.finish().await;
}

/// A container that cannot be made leaves no more than the stop of its pod takes away.
#[tokio::test]
async fn a_failed_creation_leaves_nothing_that_the_stop_does_not_clean() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let bad = Mount { image_sub_path: "missing".into(), ..image_mount(&id, "/bad") };
    pod.container("c").image_volume(&id, "/volume").mount_as(bad).create().await.expect_err("no such folder");
    let device = longshore::proto::cri::Device { host_path: "/no/such/device".into(), ..Default::default() };
    let container = pod.container("d").image_volume(&id, "/volume");
    container.config(|config| config.devices.push(device)).create().await.expect_err("no such device");
    assert!(node.containers().await.expect("a list").is_empty());
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Whoever comes first, after the stop nothing is mounted.
#[tokio::test]
async fn a_stop_and_creations_at_the_same_time_leave_nothing_mounted() {
    let (node, id) = node().await;
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("pulled");
    for round in 0..4 {
        let pod = node.pod(&format!("a{round}")).run().await.expect("a pod");
        let creations = (0..3)
            .map(|index| pod.container(&format!("c{index}")).image_volume(&id, "/volume").forever().create());
        let (stopped, _) = tokio::join!(pod.stop(), futures_util::future::join_all(creations));
        stopped.expect("stopped");
        assert_eq!(left(&node).await, [""; 0]);
        let late = pod.container("late").image_volume(&id, "/volume").create().await;
        assert_eq!(late.expect_err("stopped").code(), Code::FailedPrecondition);
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// REC-01: the next server knows the mount, uses it, and takes it down with the pod.
#[tokio::test]
async fn a_restart_keeps_the_mount_and_the_stop_takes_it_down() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    let place = place(&node, &pod);
    for kill in [true, false] {
        if kill {
            node.longshore().kill().await;
        } else {
            node.longshore().terminate().await;
        }
        node.longshore().start().await;
        assert!(is_mounted(&place));
        assert_eq!(container.sh("cat /volume/greeting").await, "hello");
        let name = format!("after-{kill}");
        let more = pod.container(&name).image_volume(&id, "/volume").forever().run().await.expect("it runs");
        assert_eq!(more.sh("cat /volume/greeting").await, "hello");
        assert_eq!(places(&node, &pod), [place.as_path()]);
    }
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// A server that is killed between the snapshot and the mount, or a mount that somebody
/// took away: the next container gets it again.
#[tokio::test]
async fn a_mount_that_is_gone_is_made_again() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let create = async |name: &str| {
        let container = pod.container(name).image_volume(&id, "/volume").forever().run().await;
        assert_eq!(container.expect("it runs").sh("cat /volume/greeting").await, "hello");
    };
    create("one").await;
    let place = place(&node, &pod);
    // While the server runs: the snapshot is still there.
    mount::unmount_all(&place).expect("unmounted");
    create("two").await;
    assert!(is_mounted(&place));
    // While it does not: the start tidies up.
    node.longshore().kill().await;
    mount::unmount_all(&place).expect("unmounted");
    node.longshore().start().await;
    assert!(!left(&node).await.iter().any(|text| text.starts_with("snapshot ")));
    create("three").await;
    assert!(is_mounted(&place));
    // And without anything mounted a stop works as well.
    mount::unmount_all(&place).expect("unmounted");
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-15: image volumes of a pod that nobody knows are taken down at the start, and no
/// file of theirs is touched.
#[tokio::test]
async fn image_volumes_of_nothing_known_are_taken_down_at_the_start() {
    let (node, _) = node().await;
    let state = node.longshore().folders().1;
    node.longshore().kill().await;
    let place = state.join("image-volumes").join("0123456789abcdef".repeat(4)).join("0a1b");
    let source = node.place().path("precious");
    std::fs::create_dir_all(&place).expect("a folder");
    std::fs::create_dir(&source).expect("a folder");
    std::fs::write(source.join("file"), "").expect("a file");
    let bind = mount::Mount {
        kind: "bind".into(),
        source: source.display().to_string(),
        options: vec!["bind".into()],
        ..Default::default()
    };
    mount::mount_all(&[bind], &place).expect("mounted");
    node.longshore().start().await;
    assert!(!place.exists() && !is_mounted(&place));
    assert!(source.join("file").exists());
    node.finish().await;
}

/// REC-20: after a reboot the mounts are gone, and nothing of them stays.
#[tokio::test]
async fn after_a_reboot_nothing_stays_of_image_volumes() {
    let (node, id) = node().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    node.longshore().kill().await;
    crate::restart::crash(&node).await;
    node.containerd().start().await;
    node.longshore().start().await;
    let status = container.status().await.expect("a status");
    assert_eq!(status.state, ContainerState::ContainerExited as i32);
    assert_eq!(left(&node).await, [""; 0]);
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    // The kubelet makes a new pod.
    let pod = node.pod("a").attempt(1).run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    assert_eq!(container.sh("cat /volume/greeting").await, "hello");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Whether containerd's plugin has image volumes; says so where not.
fn plugin_has_them(node: &Node) -> bool {
    let version = node.containerd_version();
    let has = (version.major, version.minor) >= (2, 1);
    if !has {
        eprintln!("skipped: the plugin of containerd {version} has no image volumes");
    }
    has
}

/// COX-13: mounts of the plugin are used and taken down.
#[tokio::test]
async fn we_take_over_image_volumes_of_the_plugin() {
    let node = Node::with(Server::Longshore).plugin_folders().start().await;
    if !plugin_has_them(&node) {
        return node.finish().await;
    }
    let (node, id) = with_volume(node).await;
    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    plugin.wait_until_network_ready().await;
    let pod = plugin.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    let theirs = places(&node, &pod);
    assert_eq!(theirs.len(), 1);

    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    let pod = Pod { cri: node.cri().clone(), ..pod };
    let container = container.through(node.cri());
    assert_eq!(container.sh("cat /volume/greeting").await, "hello");
    let more = pod.container("more").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    assert_eq!(more.sh("cat /volume/greeting; ! touch /volume/new 2>/dev/null").await, "hello");
    assert_eq!(places(&node, &pod), theirs);
    pod.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// COX-13: and the other way.
#[tokio::test]
async fn the_plugin_takes_over_our_image_volumes() {
    let node = Node::with(Server::Longshore).plugin_folders().start().await;
    if !plugin_has_them(&node) {
        return node.finish().await;
    }
    let (node, id) = with_volume(node).await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    let ours = places(&node, &pod);
    assert_eq!(ours.len(), 1);

    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    let container = container.through(&plugin);
    assert_eq!(container.sh("cat /volume/greeting").await, "hello");
    let seen = Pod { cri: plugin.clone(), ..pod.clone() };
    let more = seen.container("more").image_volume(&id, "/volume").forever().run().await.expect("it runs");
    assert_eq!(more.sh("cat /volume/greeting").await, "hello");
    assert_eq!(places(&node, &pod), ours);
    seen.stop().await.expect("stopped");
    assert_eq!(left(&node).await, [""; 0]);
    seen.remove().await.expect("removed");
    plugin.remove_all().await;
    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    node.finish().await;
}
