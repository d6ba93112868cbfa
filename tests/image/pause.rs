//! The pause image.

use longshore::image::{Images, PAUSE_REFERENCE};

use crate::fixture;
use crate::node::Node;
use crate::registry::Registry;

#[tokio::test]
async fn the_built_in_image_is_imported_once_and_pinned() {
    let Some(node) = Node::start().await else { return };
    let (first, second) = tokio::join!(node.images.pause(&node.flow), node.images.pause(&node.flow));
    let (first, second) = (first.expect("imported"), second.expect("imported"));
    assert_eq!(first.id, second.id);
    assert!(first.pinned);
    assert_eq!(first.to_cri().repo_tags, [PAUSE_REFERENCE]);
    assert_eq!(first.config.entrypoint, ["/pause"]);
    let mut names = vec![PAUSE_REFERENCE.to_owned(), first.id.clone()];
    names.sort();
    assert_eq!(node.ctr_list(&["images", "ls", "-q"]), names);
    node.collect_garbage().await;
    assert_eq!(node.ctr_list(&["content", "ls", "-q"]).len(), 3);
    let chain_id = node.images.unpacked(&first, "overlayfs", None).await.expect("unpacked");
    node.containerd.snapshot("overlayfs", &chain_id).await.expect("there");
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn the_built_in_image_comes_back_when_any_of_it_is_missing() {
    let Some(node) = Node::start().await else { return };
    let image = node.images.pause(&node.flow).await.expect("imported");
    let all = node.ctr_list(&["content", "ls", "-q"]);
    for digest in &all {
        node.containerd.delete_content(digest).await.expect("deleted");
        // As a new process finds it.
        let images = Images::new(node.containerd.clone(), &node.config);
        images.load().await.expect("loaded");
        assert!(images.find(PAUSE_REFERENCE).is_none(), "{digest}");
        assert_eq!(images.pause(&node.flow).await.expect("imported").id, image.id);
        assert_eq!(node.ctr_list(&["content", "ls", "-q"]), all);
    }
    node.images.remove(PAUSE_REFERENCE).await.expect("removed");
    assert!(node.ctr_list(&["content", "ls", "-q"]).is_empty());
    assert_eq!(node.images.pause(&node.flow).await.expect("imported").id, image.id);
}

#[tokio::test]
async fn a_configured_image_takes_its_place() {
    let Some(registry) = Registry::start() else { return };
    let settings = format!("[sandbox]\nimage = \"{}\"", registry.name("pause:3"));
    let Some(node) = Node::with(&settings).await else { return };
    let error = node.images.pause(&node.flow).await.expect_err("not there yet");
    assert!(error.message().contains(&registry.name("pause:3")), "{error}");
    let image = fixture::unique();
    registry.push("pause", "3", &image);
    let found = node.images.pause(&node.flow).await.expect("pulled");
    assert_eq!((found.id.clone(), found.pinned), (image.id(), true));
    assert!(node.images.find(PAUSE_REFERENCE).is_none());
}
