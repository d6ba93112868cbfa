//! A disk that is full.

use longshore::error::Kind;

use crate::fixture::{self, Packing};
use crate::node::Node;
use crate::registry::Registry;

/// The space that containerd has: enough for its own files and a small image.
const DISK_BYTES: usize = 6 << 20;

#[tokio::test]
async fn an_image_that_does_not_fit_leaves_nothing_and_another_one_fits() {
    let (Some(node), Some(registry)) = (Node::with_disk(DISK_BYTES).await, Registry::start()) else { return };
    let zeros = fixture::layer(Packing::Gzip, |folder| {
        std::fs::write(folder.join("zeros"), vec![0; 2 * DISK_BYTES]).expect("file");
    });
    // One does not fit as it comes, the other only unpacked.
    registry.push("content", "1", &fixture::image(vec![fixture::random(2 * DISK_BYTES)]));
    registry.push("snapshot", "1", &fixture::image(vec![fixture::file("a", "b"), zeros]));
    registry.push("small", "1", &fixture::unique());
    for repository in ["content", "snapshot", "content", "snapshot"] {
        let error = node.pull(&registry.name(&format!("{repository}:1"))).await.expect_err(repository);
        assert!(matches!(error.kind(), Kind::ResourceExhausted | Kind::Unknown), "{error:?}");
        assert!(error.message().to_lowercase().contains("no space left on device"), "{error}");
    }
    // What is left over must not need a collection that nobody asks for.
    let small = registry.name("small:1");
    node.pull(&small).await.expect("fits");
    node.images.remove(&small).await.expect("removed");
    node.must_have_no_image().await;
}
