//! What is done with images that are there.

use std::os::unix::fs::symlink;

use longshore::containerd::{Event, SnapshotKind};
use longshore::error::Kind;

use crate::fixture::{self, Packing};
use crate::node::{LIMIT, Node};
use crate::registry::Registry;

#[tokio::test]
async fn removal_by_any_name_takes_all_names_content_and_snapshots() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    registry.push("b", "2", &image);
    let digest = registry.name(&format!("a@{}", image.manifest.digest()));
    for given in [registry.name("b:2"), digest, image.id(), image.id()[7..19].to_owned()] {
        node.pull(&registry.name("a:1")).await.expect("pulled");
        node.pull(&registry.name("b:2")).await.expect("pulled");
        // Two at once are fine, and so is one more.
        let (first, second) = tokio::join!(node.images.remove(&given), node.images.remove(&given));
        first.and(second).expect("removed");
        node.images.remove(&given).await.expect("nothing to remove");
        assert!(node.images.find(&registry.name("a:1")).is_none());
        assert!(node.images.list().is_empty());
        assert!(node.ctr_list(&["images", "ls", "-q"]).is_empty());
        assert!(node.ctr_list(&["content", "ls", "-q"]).is_empty(), "the last deletion waits");
        assert!(node.snapshots().await.is_empty());
    }
}

#[tokio::test]
async fn a_snapshot_that_a_container_uses_survives_the_removal() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    registry.push("a", "1", &fixture::unique());
    let id = node.pull(&registry.name("a:1")).await.expect("pulled");
    let chain_id = node.images.find(&id).expect("listed").chain_id.clone();
    node.containerd.create_lease("pod", Default::default()).await.expect("lease");
    let container = node.containerd.prepare_snapshot(
        "overlayfs",
        "container",
        &chain_id,
        Default::default(),
        Some("pod"),
    );
    container.await.expect("a container's root");
    node.images.remove(&id).await.expect("removed");
    assert!(node.snapshots().await.contains(&chain_id));
    node.containerd.delete_lease("pod", true).await.expect("collected");
    assert!(node.snapshots().await.is_empty());
}

#[tokio::test]
async fn images_of_other_clients_are_seen_and_managed() {
    let (Some(mut node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let name = registry.name("a:1");
    // Nothing but the events tells longshore.
    let pull = node.ctr(&["images", "pull", "--plain-http", &name]);
    assert!(pull.contains(&name));
    follow(&mut node, |node| node.images.find(&name).is_some_and(|image| image.references.len() == 2)).await;
    let record = node.containerd.image(&name).await.expect("recorded");
    assert_eq!(record.labels.get("io.cri-containerd.image").map(String::as_str), Some("managed"));
    node.ctr(&["images", "tag", &name, "example.com/other:2"]);
    follow(&mut node, |node| node.images.find("example.com/other:2").is_some()).await;
    node.ctr(&["images", "rm", &name, "example.com/other:2"]);
    follow(&mut node, |node| node.images.find(&name).is_none()).await;
    // The record under the id holds the image, as with the built-in plugin.
    let id = image.id();
    follow(&mut node, |node| node.images.find(&id).expect("by id").to_cri().repo_tags.is_empty()).await;
    node.ctr(&["images", "rm", &id]);
    follow(&mut node, |node| node.images.list().is_empty()).await;
}

async fn follow(node: &mut Node, is_so: impl Fn(&Node) -> bool) {
    let follow = async {
        while !is_so(node) {
            if let Some(Event::Image { name }) = node.events.recv().await {
                node.images.refresh(&name).await.expect("refreshed");
            }
        }
    };
    tokio::time::timeout(LIMIT, follow).await.expect("the event comes");
}

#[tokio::test]
async fn an_imported_image_is_loaded_and_unpacked_on_demand() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let (name, file) = (registry.name("a:1"), node.path().join("image.tar"));
    let file = file.to_str().expect("UTF-8");
    node.ctr_in("peer", &["images", "pull", "--plain-http", &name]).expect("ctr pulls");
    node.ctr_in("peer", &["images", "export", file, &name]).expect("ctr exports");
    node.ctr(&["images", "import", "--no-unpack", file]);
    node.images.load().await.expect("loaded");
    let found = node.images.find(&name).expect("listed");
    assert_eq!(found.id, image.id());
    assert!(node.snapshots().await.is_empty());
    // Callers at the same time share the work.
    let unpacked = || node.images.unpacked(&found, "overlayfs", None);
    let (first, second) = tokio::join!(unpacked(), unpacked());
    assert_eq!((first.as_ref(), second.as_ref()), (Ok(&found.chain_id), Ok(&found.chain_id)));
    node.must_have_no_leftovers().await;
    node.collect_garbage().await;
    assert_eq!(node.snapshots().await.len(), 2, "the config holds them");
}

#[tokio::test]
async fn a_removed_snapshot_is_unpacked_again() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    registry.push("a", "1", &fixture::unique());
    let id = node.pull(&registry.name("a:1")).await.expect("pulled");
    let image = node.images.find(&id).expect("listed");
    for key in node.snapshots().await.iter().rev() {
        if *key == image.chain_id {
            node.containerd.remove_snapshot("overlayfs", key).await.expect("removed");
        }
    }
    node.images.load().await.expect("loaded");
    assert!(node.images.find(&id).is_some(), "its layers are there");
    node.containerd.create_lease("pod", Default::default()).await.expect("lease");
    assert_eq!(node.images.unpacked(&image, "overlayfs", Some("pod")).await, Ok(image.chain_id.clone()));
    let kind = node.containerd.snapshot("overlayfs", &image.chain_id).await.expect("there").kind;
    assert_eq!(kind, SnapshotKind::Committed);
    let leased = node.containerd.leased_snapshots("pod").await.expect("lease");
    assert_eq!(leased, [("overlayfs".to_owned(), image.chain_id.clone())]);
}

#[tokio::test]
async fn an_image_that_is_not_whole_is_not_listed_and_hides_no_other() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let (whole, broken) = (fixture::unique(), fixture::unique());
    registry.push("whole", "1", &whole);
    registry.push("broken", "1", &broken);
    node.pull(&registry.name("whole:1")).await.expect("pulled");
    node.pull(&registry.name("broken:1")).await.expect("pulled");
    let image = node.images.find(&broken.id()).expect("listed");
    node.containerd.delete_content(&broken.layers[0].digest()).await.expect("deleted");
    node.images.load().await.expect("loaded");
    assert_eq!(node.images.list().len(), 2, "its snapshot is there");
    node.containerd.remove_snapshot("overlayfs", &image.chain_id).await.expect("removed");
    node.images.load().await.expect("loaded");
    assert!(node.images.find(&broken.id()).is_none());
    assert_eq!(node.images.find(&whole.id()).map(|image| image.id.clone()), Some(whole.id()));
    // A pod that still has the image in hand is told what is wrong, not "not found".
    node.collect_garbage().await;
    for key in node.snapshots().await {
        let _ = node.containerd.remove_snapshot("overlayfs", &key).await;
    }
    let error = node.images.unpacked(&image, "overlayfs", None).await.expect_err("a layer is missing");
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    // A pull makes it whole again.
    assert_eq!(node.pull(&registry.name("broken:1")).await, Ok(broken.id()));
    assert!(node.images.find(&broken.id()).is_some());
}

#[tokio::test]
async fn leases_of_a_process_that_died_are_removed_at_load() {
    let Some(node) = Node::start().await else { return };
    node.containerd.create_lease("longshore-image-0123", Default::default()).await.expect("lease");
    node.containerd.create_lease("another", Default::default()).await.expect("lease");
    node.images.load().await.expect("loaded");
    assert_eq!(node.ctr_list(&["leases", "ls", "-q"]), ["another"]);
}

#[tokio::test]
async fn pins_of_the_configuration_are_put_on_images_that_are_there() {
    let Some(registry) = Registry::start() else { return };
    let settings = format!("pinned = [\"{}\"]", registry.name("keep"));
    let Some(node) = Node::with(&settings).await else { return };
    let (keep, other) = (fixture::unique(), fixture::unique());
    registry.push("keep", "latest", &keep);
    registry.push("other", "1", &other);
    let name = registry.name("keep:latest");
    node.ctr(&["images", "pull", "--plain-http", &name]);
    node.images.load().await.expect("loaded");
    node.pull(&registry.name("other:1")).await.expect("pulled");
    assert!(node.images.find(&keep.id()).expect("listed").to_cri().pinned);
    assert!(!node.images.find(&other.id()).expect("listed").pinned);
    let record = node.containerd.image(&name).await.expect("recorded");
    assert_eq!(record.labels.get("io.cri-containerd.pinned").map(String::as_str), Some("pinned"));
    // RemoveImage on a pinned one still works.
    node.images.remove(&name).await.expect("removed");
    assert!(node.images.find(&keep.id()).is_none());
    node.pull(&name).await.expect("pulled");
    assert!(node.images.find(&keep.id()).expect("listed").pinned);
}

#[tokio::test]
async fn users_are_those_of_the_image_and_never_the_hosts() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let good = fixture::layer(Packing::Gzip, |folder| {
        std::fs::create_dir(folder.join("etc")).expect("folder");
        std::fs::write(folder.join("etc/passwd"), "root:x:0:0::/:\nweb:x:1000:33::/:\n").expect("file");
        std::fs::write(folder.join("etc/group"), "www:x:33:\nextra:x:50000:web\n").expect("file");
    });
    let evil = fixture::layer(Packing::Gzip, |folder| {
        std::fs::create_dir(folder.join("etc")).expect("folder");
        symlink("../../../../../../etc/passwd", folder.join("etc/passwd")).expect("link");
        symlink("/etc/group", folder.join("etc/group")).expect("link");
    });
    let fifo = fixture::layer(Packing::Gzip, |folder| {
        std::fs::create_dir(folder.join("etc")).expect("folder");
        let path = folder.join("etc/passwd");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).expect("fifo");
    });
    let of = async |repository: &str, layers: Vec<_>| {
        registry.push(repository, "1", &fixture::image(layers));
        let id = node.pull(&registry.name(&format!("{repository}:1"))).await.expect("pulled");
        let image = node.images.find(&id).expect("listed");
        node.images.accounts(&image, "overlayfs").await
    };
    // One layer is a bind mount, two are an overlay.
    for (repository, layers) in
        [("one", vec![good.clone()]), ("two", vec![good.clone(), fixture::file("etc/hello", "")])]
    {
        let accounts = of(repository, layers).await.expect("readable");
        assert_eq!(accounts.lookup_user("web"), Some((1000, 33)));
        assert_eq!(accounts.groups_of_user("web"), [50000]);
    }
    let accounts = of("none", vec![fixture::file("a", "b")]).await.expect("no files are no users");
    assert_eq!(accounts.lookup_user("root"), None);
    // A link to a host's file is a link to itself, below the root.
    let evil = of("evil", vec![evil]).await;
    assert!(evil.as_ref().map_or(true, |accounts| accounts.lookup_user("root").is_none()), "{evil:?}");
    of("fifo", vec![fifo]).await.expect_err("not a regular file, and no waiting");
    // The last name of a link counts.
    let aside = fixture::layer(Packing::Gzip, |folder| {
        std::fs::create_dir_all(folder.join("etc")).expect("folder");
        std::fs::create_dir_all(folder.join("usr")).expect("folder");
        std::fs::write(folder.join("usr/passwd"), "inner:x:7:8::/:\n").expect("file");
        symlink("../../../../usr/passwd", folder.join("etc/passwd")).expect("link");
    });
    let accounts = of("aside", vec![aside]).await.expect("readable");
    assert_eq!(accounts.lookup_user("inner"), Some((7, 8)));
    node.must_have_no_leftovers().await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(node.path().to_str().expect("UTF-8")), "nothing is mounted");
}

#[tokio::test]
async fn the_file_system_of_images_is_told_with_and_without_any() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let usage = node.images.fs_info().await.expect("measured").remove(0);
    assert_eq!((usage.used_bytes, usage.inodes_used), (0, 0));
    assert!(usage.timestamp > 0);
    assert!(usage.mountpoint.ends_with("io.containerd.snapshotter.v1.overlayfs"), "{}", usage.mountpoint);
    registry.push("a", "1", &fixture::image(vec![fixture::random(200_000)]));
    node.pull(&registry.name("a:1")).await.expect("pulled");
    // A new process knows nothing yet: its first answer has the layers.
    let images = longshore::image::Images::new(node.containerd.clone(), &node.config);
    let usage = images.fs_info().await.expect("measured").remove(0);
    assert!(usage.used_bytes >= 200_000 && usage.inodes_used >= 2, "{usage:?}");
    // A container's part follows in the background.
    let images = longshore::image::Images::new(node.containerd.clone(), &node.config);
    let root = [("containerd.io/gc.root".to_owned(), "1970-01-01T00:00:00Z".to_owned())].into();
    let writable = node.containerd.prepare_snapshot("overlayfs", "c", "", root, None);
    let place = std::path::PathBuf::from(&writable.await.expect("prepared")[0].source);
    std::fs::write(place.join("large"), vec![1; 3_000_000]).expect("file");
    let wait = async {
        while images.fs_info().await.expect("measured")[0].used_bytes < 3_000_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("measured in the background");
}
