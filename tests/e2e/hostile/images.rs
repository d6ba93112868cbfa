//! Images: configs and files that lead out of the root file system, and a layer that is much
//! larger than it looks.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{MARK, Outside};
use crate::harness::images::{Blob, Entry, FILE, Image, Layer, Packed};
use crate::harness::{Node, Server};

/// OCI-06, CTR-08: links and `..` of an image are those of its own root.
#[tokio::test]
async fn an_image_sees_and_changes_nothing_of_the_host() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let up = |name: &str| format!("../../../../../../../..{}", outside.path(name));
    let layer = || {
        let layer = Layer::default().symbolic_link("out", &outside.text()).symbolic_link("up", &up(""));
        layer.symbolic_link("process", "/proc/self/root")
    };
    let pod = node.pod("a").run().await.expect("a pod");
    let volumes = [
        json!({ "/out": {}, "/up/v": {} }),
        json!({ "/process/v": {} }),
        json!({ up("w"): {} }),
        json!({ "/out/empty": {} }),
    ];
    let mut started = 0;
    for (number, volumes) in volumes.into_iter().enumerate() {
        let image = Image::busybox().layer(layer()).with("WorkingDir", json!("/up/work"));
        let image = image.with("Volumes", volumes.clone());
        let name = format!("hostile-config-{number}:1");
        let id = node.pull(&node.registry().push(&name, &image)).await.expect("pulled");
        // The OCI runtime may refuse a target; what it makes, it makes inside.
        let container = pod.container(&format!("c{number}")).image(&id).forever();
        let container = container.create().await.expect("created");
        if container.start().await.is_ok() {
            started += 1;
            let inside = format!("echo x > /out/file; mkdir -p {0}; echo x > {0}/new", outside.text());
            container.exec(["/bin/sh", "-c", &inside]).await.expect("it runs");
        }
        container.remove().await.expect("removed");
        outside.assert_untouched(&format!("volumes {volumes}"));
    }
    assert!(started > 1, "{started} have run");

    // Mounts of the kubelet's, at places that are links in the image.
    let volume = node.place().path("volume");
    std::fs::create_dir(&volume).expect("a folder");
    let image = Image::busybox().layer(layer());
    let id = node.pull(&node.registry().push("hostile-mounts:1", &image)).await.expect("pulled");
    for (number, inside) in ["/out/mount", "/up/mount", "/out/../../mount"].iter().enumerate() {
        let container = pod.container(&format!("m{number}")).image(&id).mount(&volume, inside).forever();
        let container = container.create().await.expect("created");
        if container.start().await.is_ok() {
            container.sh(&format!("echo {number} > {inside}/{number}")).await;
            assert!(volume.join(number.to_string()).exists(), "{inside}");
        }
        container.remove().await.expect("removed");
        outside.assert_untouched(inside);
    }
    node.remove_all().await;
    node.finish().await;
}

/// OCI-05, OCI-06: users are looked up in the image, not in the file that its link leads to.
#[tokio::test]
async fn users_are_those_of_the_image() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let pod = node.pod("a").run().await.expect("a pod");
    let user = MARK.split(':').nth(1).expect("a name");
    assert_eq!(user, "marked");
    for (number, to) in
        [outside.path("file"), format!("../../../../../../../..{}", outside.path("file"))].iter().enumerate()
    {
        let busybox = Image::busybox().layer(Layer::default().symbolic_link("etc/passwd", to));
        let image = busybox.layer(Layer::default().symbolic_link("etc/group", "/proc/self/mounts"));
        let name = format!("hostile-users-{number}:1");
        let id = node.pull(&node.registry().push(&name, &image)).await.expect("pulled");
        let container = pod.container("c").image(&id).forever();
        let error = container.security(|context| context.run_as_username = user.into()).create().await;
        let error = error.expect_err("the image has no such user");
        assert!(error.message().contains(user) && error.message().contains("passwd"), "{error:?}");
    }
    outside.assert_untouched("links in place of passwd");
    node.remove_all().await;
    node.finish().await;
}

/// What the layer has, unpacked; a thousandth of it packed.
const BOMB_BYTES: u64 = 256 << 20;
/// What the server may grow by meanwhile.
const GROWTH_KIB: u64 = 24 << 10;

fn bomb() -> (Packed, usize) {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let mut plain = Sha256::new();
    let mut write = |bytes: &[u8]| {
        plain.update(bytes);
        packed.write_all(bytes).expect("a buffer");
    };
    let length = usize::try_from(BOMB_BYTES).expect("it fits");
    write(&Entry { path: "zeros", mode: 0o644, kind: FILE, ..Entry::default() }.header(length));
    let block = vec![0; 1 << 20];
    (0..BOMB_BYTES >> 20).for_each(|_| write(&block));
    write(&[0; 1024]);
    let hex: String = plain.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let packed = packed.finish().expect("a buffer");
    let bytes = packed.len();
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", packed);
    (Packed::new(&json!({}), vec![layer], &[&format!("sha256:{hex}")]), bytes)
}

/// IMG-08: what a layer is when unpacked is the disk's to bound; the server's memory does not
/// grow with it.
#[tokio::test]
async fn a_layer_of_zeros_needs_no_memory() {
    let node = Node::with(Server::Longshore).start().await;
    node.ensure_image(crate::harness::images::BUSYBOX).await.expect("an image");
    let (image, packed) = bomb();
    assert!(packed as u64 * 500 < BOMB_BYTES, "{packed} bytes");
    let name = node.registry().push_packed("hostile-zeros:1", &image);
    let before = node.longshore().peak_rss_kib();
    let id = node.pull(&name).await.expect("pulled");
    let grown = node.longshore().peak_rss_kib() - before;
    println!("{grown} KiB for {} MiB from {} KiB", BOMB_BYTES >> 20, packed >> 10);
    assert!(grown < GROWTH_KIB, "{grown} KiB");
    assert_eq!(node.image(&id).await.expect("asked").expect("it is there").size, image_size(&image));
    node.remove_image(&id).await.expect("removed");
    node.finish().await;
}

/// What the image takes up as it is stored, which is what the CRI shows.
fn image_size(image: &Packed) -> u64 {
    let blobs = image.layers.iter().chain([&image.manifest, &image.config]);
    blobs.map(|blob| blob.data.len() as u64).sum()
}
