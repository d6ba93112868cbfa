//! The image service.

use longshore::proto::cri::{ImageSpec, ImageStatusRequest};
use serde_json::json;

use crate::harness::{Node, images};

/// IMG-03, IMG-05, IMG-06, IMG-08.
#[tokio::test]
async fn a_pulled_image_is_found_under_all_its_names() {
    let node = Node::start().await;
    assert!(node.image(images::BUSYBOX).await.expect("asked").is_none());
    let id = node.pull(images::BUSYBOX).await.expect("pulled");
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let image = node.image(images::BUSYBOX).await.expect("asked").expect("it is there");
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [images::BUSYBOX]);
    assert_eq!(image.repo_digests.len(), 1);
    assert!(image.size > 0);
    let hex = id.strip_prefix("sha256:").expect("a digest");
    for name in [&id, hex, &hex[..12], &image.repo_digests[0]] {
        let found = node.image(name).await.expect("asked");
        assert_eq!(found.map(|image| image.id), Some(id.clone()), "{name}");
    }
    for name in ["registry.test/busybox:2", "registry.test/busybox", "busybox:1"] {
        assert!(node.image(name).await.expect("asked").is_none(), "{name}");
    }
    node.finish().await;
}

/// IMG-03, IMG-07, IMG-12.
#[tokio::test]
async fn an_image_of_two_names_is_listed_once() {
    let node = Node::start().await;
    let image = images::Image::busybox().file("etc/two", b"names");
    let (one, two) = (node.registry().push("names:1", &image), node.registry().push("names:2", &image));
    let other = node.registry().push("names:3", &image.clone().file("etc/three", b"other"));
    let id = node.pull(&one).await.expect("pulled");
    assert_eq!(node.pull(&two).await.expect("pulled"), id);
    assert_ne!(node.pull(&other).await.expect("pulled"), id);
    let listed = node.list_images().await.expect("a list");
    let ours: Vec<_> = listed.iter().filter(|image| image.id == id).collect();
    assert_eq!((listed.len(), ours.len()), (2, 1));
    let mut tags = ours[0].repo_tags.clone();
    tags.sort();
    assert_eq!(tags, [one, two]);
    node.finish().await;
}

/// IMG-07: by digest it has no tag.
#[tokio::test]
async fn an_image_can_be_pulled_by_digest() {
    let node = Node::start().await;
    let image = images::Image::busybox().file("etc/digest", b"x");
    let digest = image.pack().manifest.digest;
    node.registry().push("digest:1", &image);
    let name = format!("registry.test/digest@{digest}");
    let id = node.pull(&name).await.expect("pulled");
    let found = node.image(&name).await.expect("asked").expect("it is there");
    assert_eq!(found.id, id);
    assert!(found.repo_tags.is_empty(), "{:?}", found.repo_tags);
    assert_eq!(found.repo_digests, [name]);
    node.finish().await;
}

/// IMG-40, IMG-41, IMG-12.
#[tokio::test]
async fn an_image_is_removed_with_all_its_names() {
    let node = Node::start().await;
    let image = images::Image::busybox().file("etc/remove", b"x");
    let (one, two) = (node.registry().push("remove:1", &image), node.registry().push("remove:2", &image));
    for name in [Some(&one), None] {
        let id = node.pull(&one).await.expect("pulled");
        node.pull(&two).await.expect("pulled");
        node.remove_image(name.unwrap_or(&id)).await.expect("removed");
        node.remove_image(name.unwrap_or(&id)).await.expect("removed again");
        for name in [&one, &two, &id] {
            assert!(node.image(name).await.expect("asked").is_none(), "{name}");
        }
        assert!(node.list_images().await.expect("a list").is_empty());
    }
    node.finish().await;
}

/// IMG-35.
#[tokio::test]
async fn a_tag_that_moved_is_another_image() {
    let node = Node::start().await;
    let image = images::Image::busybox();
    let tag = node.registry().push("moved:1", &image.clone().file("etc/v", b"1"));
    let first = node.pull(&tag).await.expect("pulled");
    node.registry().push("moved:1", &image.file("etc/v", b"2"));
    let second = node.pull(&tag).await.expect("pulled");
    assert_ne!(first, second);
    let found = node.image(&tag).await.expect("asked").expect("it is there");
    assert_eq!(found.id, second);
    let pod = node.pod("moved").run().await.expect("a pod");
    let container = pod.container("c").image(&tag).forever().run().await.expect("a container");
    assert_eq!(container.sh("cat /etc/v").await, "2");
    node.remove_all().await;
    node.finish().await;
}

/// IMG-09.
#[tokio::test]
async fn the_user_of_an_image_is_told() {
    let node = Node::start().await;
    for (tag, user, uid, name) in [
        ("user:none", "", None, ""),
        ("user:name", "guest:extra", None, "guest"),
        ("user:id", "1234:5", Some(1234), ""),
        ("user:zero", "0", Some(0), ""),
    ] {
        let image = images::Image::busybox().with("User", json!(user));
        let reference = node.registry().push(tag, &image);
        node.pull(&reference).await.expect("pulled");
        let found = node.image(&reference).await.expect("asked").expect("it is there");
        assert_eq!((found.uid.map(|uid| uid.value), found.username.as_str()), (uid, name), "{tag}");
    }
    node.finish().await;
}

/// IMG-02, IMG-26, IMG-28, CTR-09.
#[tokio::test]
async fn what_cannot_be_pulled_is_an_error_and_leaves_nothing() {
    let node = Node::start().await;
    node.pull("registry.test/no-such:1").await.expect_err("no such image");
    node.pull("registry.test/UPPER:1").await.expect_err("no reference");
    let image = images::Image::busybox().file("etc/broken", b"as it should be");
    let packed = image.pack();
    let broken = node.registry().push("broken:1", &image);
    let layer = node.registry().blob_file(&packed.layers[1].digest);
    let size = std::fs::metadata(&layer).expect("a layer").len();
    std::fs::write(&layer, vec![0; usize::try_from(size).expect("small")]).expect("broken");
    node.pull(&broken).await.expect_err("a layer that is another");
    assert!(node.image(&broken).await.expect("asked").is_none());
    assert!(node.list_images().await.expect("a list").is_empty());
    node.finish().await;
}

/// IMG-11.
#[tokio::test]
async fn the_verbose_status_holds_the_configuration() {
    let node = Node::start().await;
    node.pull(images::BUSYBOX).await.expect("pulled");
    let image = ImageSpec { image: images::BUSYBOX.into(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(image), verbose: true };
    let answer = node.images().image_status(request).await.expect("a status").into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
    assert!(info["chainID"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{info}");
    assert_eq!(info["imageSpec"]["config"]["Cmd"], json!(["/bin/sh"]));
    node.finish().await;
}

/// IMG-42.
#[tokio::test]
async fn an_image_in_use_can_be_removed_and_pulled_again() {
    let node = Node::start().await;
    let pod = node.pod("used").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    node.remove_image(images::BUSYBOX).await.expect("removed");
    assert!(node.image(images::BUSYBOX).await.expect("asked").is_none());
    assert_eq!(container.sh("cat /etc/hostname").await, "used");
    node.pull(images::BUSYBOX).await.expect("pulled");
    let second = pod.container("d").forever().run().await.expect("a container");
    assert_eq!(second.sh("echo new").await, "new");
    node.remove_all().await;
    node.finish().await;
}
