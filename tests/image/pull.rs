//! Pulls that succeed.

use std::collections::BTreeMap;

use crate::fixture::{self, PLATFORM, Packing};
use crate::node::Node;
use crate::proxy::Proxy;
use crate::registry::Registry;

#[tokio::test]
async fn a_pulled_tag_has_three_names_and_is_found_by_all() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a/b", "1", &image);
    let name = registry.name("a/b:1");
    let id = node.pull(&name).await.expect("pulled");
    assert_eq!(id, image.id());
    let by_digest = registry.name(&format!("a/b@{}", image.manifest.digest()));
    let mut names = vec![name.clone(), by_digest.clone(), id.clone()];
    names.sort();
    assert_eq!(node.ctr_list(&["images", "ls", "-q"]), names);
    for name in &names {
        let record = node.containerd.image(name).await.expect("recorded");
        assert_eq!(record.labels.get("io.cri-containerd.image").map(String::as_str), Some("managed"));
        assert!(!record.labels.contains_key("io.cri-containerd.pinned"));
    }
    for text in [&name, &by_digest, &id, &id[7..], &id[7..20]] {
        assert_eq!(node.images.find(text).expect(text).id, id);
    }
    let shown = node.images.find(&id).expect("listed").to_cri();
    let bytes: usize =
        image.layers.iter().chain([&image.manifest, &image.config]).map(|blob| blob.data.len()).sum();
    assert_eq!((shown.repo_tags, shown.repo_digests), (vec![name], vec![by_digest]));
    assert_eq!((shown.size, shown.uid.map(|uid| uid.value)), (bytes as u64, Some(1000)));
    let spec = shown.spec.expect("told");
    assert_eq!(
        (spec.image, spec.annotations["org.opencontainers.image.vendor"].as_str()),
        (id.clone(), "a test")
    );
    let info = node.images.verbose_info(&node.images.find(&id).expect("listed")).await.expect("readable");
    assert!(info.contains(&format!("\"chainID\":\"{}\"", node.images.find(&id).expect("listed").chain_id)));
    assert!(info.contains("\"Cmd\":[\"/bin/sh\"]"), "{info}");
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn content_is_labelled_as_by_containerds_own_client() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let (own, other) = (fixture::unique(), fixture::image_for("s390x", Default::default(), vec![]));
    let index = fixture::index(&[("linux/s390x", &other), (&format!("linux/{PLATFORM}"), &own)]);
    registry.push_index("a", "1", &index, &[&own, &other]);
    let name = registry.name("a:1");
    node.pull(&name).await.expect("pulled");
    node.ctr_in("peer", &["images", "pull", "--plain-http", &name]).expect("ctr pulls");
    let peer = node.client_of("peer");
    for blob in own.layers.iter().chain([&own.config, &own.manifest, &index]) {
        let sorted =
            |info: longshore::containerd::ContentInfo| info.labels.into_iter().collect::<BTreeMap<_, _>>();
        let ours = sorted(node.containerd.content_info(&blob.digest()).await.expect("there"));
        let theirs = sorted(peer.content_info(&blob.digest()).await.expect("there"));
        assert_eq!(ours, theirs, "{}", blob.media_type);
        assert!(ours.contains_key("containerd.io/distribution.source.127.0.0.1"), "{ours:?}");
    }
    let (ours, theirs) = (node.snapshots().await, peer.list_snapshots("overlayfs").await.expect("snapshots"));
    assert_eq!(ours, theirs.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_collector_keeps_a_pulled_image() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let id = node.pull(&registry.name("a:1")).await.expect("pulled");
    node.collect_garbage().await;
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        node.containerd.content_info(&blob.digest()).await.expect("kept");
    }
    let chain_id = &node.images.find(&id).expect("listed").chain_id;
    assert!(node.snapshots().await.contains(chain_id));
}

#[tokio::test]
async fn an_image_pulled_by_digest_has_no_tag() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    // The digest counts, whatever the tag.
    let id = node.pull(&registry.name(&format!("a:nope@{}", image.manifest.digest()))).await.expect("pulled");
    let shown = node.images.find(&id).expect("listed").to_cri();
    assert!(shown.repo_tags.is_empty());
    assert_eq!(shown.repo_digests, [registry.name(&format!("a@{}", image.manifest.digest()))]);
    assert_eq!(node.ctr_list(&["images", "ls", "-q"]).len(), 2);
}

#[tokio::test]
async fn one_image_under_two_tags_has_one_id() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    registry.push("b/c", "2", &image);
    let first = node.pull(&registry.name("a:1")).await.expect("pulled");
    let second = node.pull(&registry.name("b/c:2")).await.expect("pulled");
    assert_eq!(first, second);
    assert_eq!(node.images.list().len(), 1);
    let shown = node.images.find(&first).expect("listed").to_cri();
    assert_eq!((shown.repo_tags.len(), shown.repo_digests.len()), (2, 2));
    let labels = node.containerd.content_info(&image.config.digest()).await.expect("there").labels;
    assert_eq!(labels.get("containerd.io/distribution.source.127.0.0.1").map(String::as_str), Some("a,b/c"));
}

#[tokio::test]
async fn a_tag_that_moved_is_resolved_anew() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let (old, new) = (fixture::unique(), fixture::unique());
    let name = registry.name("a:1");
    registry.push("a", "1", &old);
    assert_eq!(node.pull(&name).await.expect("pulled"), old.id());
    assert_eq!(node.pull(&name).await.expect("pulled again"), old.id());
    registry.push("a", "1", &new);
    assert_eq!(node.pull(&name).await.expect("pulled"), new.id());
    assert_eq!(node.images.find(&name).expect("listed").id, new.id());
    let shown = node.images.find(&old.id()).expect("still there").to_cri();
    assert!(shown.repo_tags.is_empty() && shown.repo_digests.len() == 1, "{shown:?}");
}

#[tokio::test]
async fn the_manifest_of_this_platform_is_taken() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let own = fixture::unique();
    let other = fixture::image_for("s390x", Default::default(), vec![fixture::file("a", "other")]);
    let index = fixture::index(&[
        ("linux/s390x", &other),
        (&format!("windows/{PLATFORM}"), &other),
        (&format!("linux/{PLATFORM}"), &own),
        ("unknown/unknown", &other),
    ]);
    registry.push_index("a", "1", &index, &[&own, &other]);
    assert_eq!(node.pull(&registry.name("a:1")).await.expect("pulled"), own.id());
    node.containerd.content_info(&other.manifest.digest()).await.expect_err("not fetched");
    let bytes: usize =
        own.layers.iter().chain([&own.manifest, &own.config, &index]).map(|blob| blob.data.len()).sum();
    assert_eq!(node.images.find(&own.id()).expect("listed").size, bytes as u64);
}

#[tokio::test]
async fn layers_of_every_packing_and_images_without_any_are_unpacked() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let plain =
        fixture::layer(Packing::Plain, |folder| std::fs::write(folder.join("plain"), "1").expect("file"));
    let gzip = fixture::file("gzip", "2");
    // The same layer twice is one blob and two snapshots.
    let image = fixture::image(vec![plain, gzip.clone(), gzip]);
    registry.push("a", "1", &image);
    node.pull(&registry.name("a:1")).await.expect("pulled");
    assert_eq!(node.snapshots().await.len(), 3);
    let empty = fixture::image(vec![]);
    registry.push("empty", "1", &empty);
    let id = node.pull(&registry.name("empty:1")).await.expect("pulled");
    let empty = node.images.find(&id).expect("listed");
    assert_eq!(node.images.unpacked(&empty, "overlayfs", None).await.as_deref(), Ok(""));
}

#[tokio::test]
async fn an_image_of_many_layers_is_pulled_in_parallel_and_unpacked_in_order() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let layers = (0..20).map(|i| fixture::file("same", &i.to_string())).collect();
    let image = fixture::image(layers);
    registry.push("a", "1", &image);
    let id = node.pull(&registry.name("a:1")).await.expect("pulled");
    let chain_id = node.images.find(&id).expect("listed").chain_id.clone();
    let mounts = node.containerd.view_snapshot("overlayfs", "view", &chain_id, None).await.expect("view");
    let place = node.path().join("view");
    std::fs::create_dir(&place).expect("folder");
    let content = longshore::sys::mount::private_namespace(|| {
        longshore::sys::mount::mount_all(&mounts, &place)?;
        Ok(std::fs::read_to_string(place.join("same"))?)
    });
    assert_eq!(content.as_deref(), Ok("19"));
}

#[tokio::test]
async fn callers_of_one_reference_share_a_pull_and_it_outlives_the_first() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let layer = image.layers[0].digest();
    let gate = Proxy::that_stops(&registry.address, &format!("blobs/{layer}"), 100).await;
    let name = format!("{}/a:1", gate.address);
    let mut second = Box::pin(node.pull(&name));
    {
        let mut first = Box::pin(node.pull(&name));
        tokio::select! {
            _ = &mut first => panic!("the gate is closed"),
            _ = &mut second => panic!("the gate is closed"),
            () = gate.reached() => {}
        }
    }
    gate.open();
    assert_eq!(second.await, Ok(image.id()));
    assert_eq!(gate.count("HEAD"), 1);
    assert_eq!(gate.count(&layer), 1);
}

#[tokio::test]
async fn two_images_with_a_layer_in_common_fetch_it_once() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let base = fixture::random(1000);
    let layer = base.0.digest();
    for tag in ["1", "2"] {
        registry.push("a", tag, &fixture::image(vec![base.clone(), fixture::file("tag", tag)]));
    }
    let gate = Proxy::that_stops(&registry.address, &format!("blobs/{layer}"), 100).await;
    let (first, second) = (format!("{}/a:1", gate.address), format!("{}/a:2", gate.address));
    let (first, second, ()) = tokio::join!(node.pull(&first), node.pull(&second), async {
        gate.reached().await;
        gate.open();
    });
    assert_ne!(first.expect("pulled"), second.expect("pulled"));
    assert_eq!(gate.count(&layer), 1);
    assert_eq!(node.snapshots().await.len(), 3);
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_whom_it_stands_for() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let gate = Proxy::start(&registry.address).await;
    // Nobody answers at the first mirror; the upstream is not asked at all.
    let hosts = format!(
        "server = \"https://upstream.invalid\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
        gate.address
    );
    node.configure_registry("registry.example:5000", &hosts);
    let id = node.pull("registry.example:5000/a:1").await.expect("pulled");
    assert_eq!(id, image.id());
    assert!(gate.count("?ns=registry.example%3A5000 ") >= 4, "HEAD, manifest, config and layers");
    let shown = node.images.find(&id).expect("listed").to_cri();
    assert_eq!(shown.repo_tags, ["registry.example:5000/a:1"]);
}

#[tokio::test]
async fn a_mirror_that_only_has_content_is_not_asked_what_a_tag_means() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let gate = Proxy::start(&registry.address).await;
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        registry.address, gate.address
    );
    node.configure_registry("registry.example:5000", &hosts);
    assert_eq!(node.pull("registry.example:5000/a:1").await, Ok(image.id()));
    assert_eq!((gate.count("HEAD"), gate.count("/manifests/1")), (0, 0));
    assert_eq!(gate.count("/blobs/"), 3);
}

#[tokio::test]
async fn a_pull_for_another_snapshotter_unpacks_there_too() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let name = registry.name("a:1");
    let id = node.pull(&name).await.expect("pulled");
    assert_eq!(node.pull_for(&name, "native").await, Ok(id.clone()));
    let chain_id = &node.images.find(&id).expect("listed").chain_id;
    node.containerd.snapshot("native", chain_id).await.expect("unpacked");
    node.collect_garbage().await;
    node.containerd.snapshot("native", chain_id).await.expect("kept");
    node.containerd.snapshot("overlayfs", chain_id).await.expect("kept");
    assert_eq!(node.images.list().len(), 1);
}
