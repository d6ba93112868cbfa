//! One containerd, several clients: what longshore pulls, ctr uses, and the other way.

use crate::fixture::{self, Image, Packing};
use crate::node::Node;
use crate::proxy::Proxy;
use crate::registry::Registry;

/// A layer of a packing, with a file that says which.
fn packed(packing: Packing, name: &str) -> (fixture::Blob, String) {
    fixture::layer(packing, |folder| std::fs::write(folder.join(name), name).expect("file"))
}

/// An image with a layer of every packing.
fn of_all_packings() -> Image {
    fixture::image(vec![
        packed(Packing::Plain, "plain"),
        packed(Packing::Gzip, "gzip"),
        packed(Packing::Zstd, "zstd"),
        // No other test has this one, and it is more than one block.
        fixture::random_as(Packing::Zstd, 300_000),
    ])
}

#[tokio::test]
async fn every_packing_and_both_families_of_types_unpack_as_with_ctr() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    // Docker's type for zstd is younger than containerd 1.6.
    let docker = fixture::image(vec![packed(Packing::Plain, "plain"), fixture::random(1000)]).into_docker();
    for (repository, image) in [("oci", of_all_packings()), ("docker", docker)] {
        registry.push(repository, "1", &image);
        let name = registry.name(&format!("{repository}:1"));
        let id = node.pull(&name).await.expect(repository);
        assert_eq!(id, image.id());
        let found = node.images.find(&id).expect("listed");
        let record = node.containerd.image(&name).await.expect("recorded");
        assert_eq!(record.target.media_type, image.manifest.media_type);
        let ours = node.snapshots().await;
        assert!(ours.contains(&found.chain_id));
        node.ctr_in("peer", &["images", "pull", "--plain-http", &name]).expect("ctr pulls");
        let theirs = node.client_of("peer").list_snapshots("overlayfs").await.expect("snapshots");
        assert_eq!(ours, theirs.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>());
        node.images.remove(&id).await.expect("removed");
        node.ctr_in("peer", &["images", "rm", "--sync", &name]).expect("removed");
    }
    node.must_have_no_image().await;
}

// ctr is waited for while the proxy works.
#[tokio::test(flavor = "multi_thread")]
async fn what_ctr_pulled_is_not_fetched_again_and_keeps_its_labels() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = of_all_packings();
    registry.push("a", "1", &image);
    let proxy = Proxy::start(&registry.address).await;
    let name = proxy.name("a:1");
    node.ctr(&["images", "pull", "--plain-http", &name]);
    node.ctr(&["images", "label", &name, "example.com/owner=someone"]);
    let blobs = proxy.count("/blobs/");
    assert!(blobs >= 5, "ctr fetched config and layers");
    assert_eq!(node.pull(&name).await, Ok(image.id()));
    assert_eq!(proxy.count("/blobs/"), blobs);
    let labels = node.containerd.image(&name).await.expect("recorded").labels;
    assert_eq!(labels.get("example.com/owner").map(String::as_str), Some("someone"), "{labels:?}");
    assert_eq!(labels.get("io.cri-containerd.image").map(String::as_str), Some("managed"), "{labels:?}");
}

// ctr is waited for while the proxy works.
#[tokio::test(flavor = "multi_thread")]
async fn what_longshore_pulled_is_whole_for_ctr() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = of_all_packings();
    registry.push("a", "1", &image);
    let proxy = Proxy::start(&registry.address).await;
    let name = proxy.name("a:1");
    assert_eq!(node.pull(&name).await, Ok(image.id()));
    let blobs = proxy.count("/blobs/");
    node.ctr(&["images", "pull", "--plain-http", &name]);
    assert_eq!(proxy.count("/blobs/"), blobs, "ctr finds all of it");
    let check = node.ctr(&["images", "check", &format!("name=={name}")]);
    assert!(check.contains("complete (5/5)"), "{check}");
    // Exported, removed and imported it is the same image.
    let file = node.path().join("image.tar");
    let file = file.to_str().expect("UTF-8");
    node.ctr(&["images", "export", file, &name]);
    node.images.remove(&name).await.expect("removed");
    node.must_have_no_image().await;
    node.ctr(&["images", "import", file]);
    node.images.load().await.expect("loaded");
    let found = node.images.find(&name).expect("listed");
    assert_eq!(found.id, image.id());
    assert_eq!(node.images.unpacked(&found, "overlayfs", None).await.as_ref(), Ok(&found.chain_id));
    // And so it is when all of it is there when it is pulled.
    assert_eq!(node.pull(&name).await, Ok(image.id()));
    assert_eq!(proxy.count("/blobs/"), blobs);
}

#[tokio::test]
async fn an_image_that_ctr_took_away_is_pulled_anew() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = of_all_packings();
    registry.push("a", "1", &image);
    let name = registry.name("a:1");
    let id = node.pull(&name).await.expect("pulled");
    let names: Vec<String> = node.ctr_list(&["images", "ls", "-q"]);
    let mut remove = vec!["images", "rm", "--sync"];
    remove.extend(names.iter().map(String::as_str));
    node.ctr(&remove);
    assert_eq!(node.content(), Default::default());
    // Told or not told of it, a pull brings it back.
    assert_eq!(node.pull(&name).await.as_ref(), Ok(&id));
    node.ctr(&remove);
    for name in &names {
        node.images.refresh(name).await.expect("refreshed");
    }
    assert!(node.images.list().is_empty());
    assert_eq!(node.pull(&name).await, Ok(id));
    assert_eq!(node.content(), image.digests());
}
