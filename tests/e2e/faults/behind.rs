//! Snapshots and images that somebody deletes behind the server's back; for containers, tasks
//! and records see `reconcile`.

use longshore::proto::cri::ListImagesRequest;
use tonic::Code;

use crate::harness::images::BUSYBOX;
use crate::harness::{Node, Server, wait_until};

/// The root file system of a container is gone: its start says so, and it can be removed.
#[tokio::test]
async fn a_container_without_its_snapshot_fails_and_goes() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let created = pod.container("c").forever().create().await.expect("created");
    let running = pod.container("d").forever().run().await.expect("it runs");
    let behind = node.containerd().behind();
    behind.remove_snapshot(&created.id).await;
    let error = created.start().await.expect_err("no root file system");
    // NotFound would read as: the container is gone (ERR-12).
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains(&created.id), "{error:?}");
    behind.remove_snapshot(&running.id).await;
    running.stop(1).await.expect("stopped");
    for container in [created, running] {
        container.remove().await.expect("removed");
    }
    pod.container("c").attempt(1).forever().run().await.expect("it runs");
    behind.remove_snapshot(&pod.id).await;
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// An image is gone: it leaves the list, what runs goes on, and the next pull brings it back.
#[tokio::test]
async fn an_image_that_was_deleted_is_pulled_again() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let running = pod.container("c").forever().run().await.expect("it runs");
    let image = running.config.image.clone().expect("an image").image;
    let behind = node.containerd().behind();
    let names = behind.images().await.into_iter().filter(|name| *name == image || name.contains("busybox"));
    for name in names {
        behind.delete_image(&name).await;
    }
    wait_until("a list without it", async || {
        let list = node.images().list_images(ListImagesRequest::default()).await.expect("a list");
        !list.into_inner().images.iter().any(|one| one.id == image)
    })
    .await;
    let error = pod.container("d").image(&image).forever().create().await.expect_err("no image");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains(&image), "{error:?}");
    assert_eq!(running.sh("echo inside").await, "inside");
    node.pull(BUSYBOX).await.expect("pulled");
    pod.container("d").image(&image).forever().run().await.expect("it runs");
    pod.remove().await.expect("removed");
    node.finish().await;
}
