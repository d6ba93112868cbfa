//! A pull that nobody waits for any more while its layer is being unpacked.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::archive::{Archive, file};
use super::pair::snapshots_of;
use crate::fixture::{self, Blob, digest};
use crate::node::{LIMIT, Node};
use crate::registry::Registry;

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops_in_the_middle_of_a_layer() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    // Much larger than it comes: most is still to be written when all of it is there.
    let plain = Archive::of([file("zeros", vec![0; 500 << 20])]).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("compresses");
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    let blob = Blob { media_type, data: gzip.finish().expect("compresses"), urls: Vec::new() };
    registry.push("a", "1", &fixture::image(vec![(blob, digest(&plain))]));
    let name = registry.name("a:1");
    {
        let mut pull = Box::pin(node.pull(&name));
        tokio::select! {
            _ = &mut pull => panic!("all was written before anybody looked"),
            () = written(node.path()) => {}
        }
    }
    node.must_have_no_leftovers().await;
    assert_eq!(open_below(&snapshots_of(node.path(), "overlayfs")), Vec::<PathBuf>::new());
    node.pull(&name).await.expect("pulled");
}

/// Waits until something of the file is in a snapshot.
async fn written(node: &Path) {
    let folder = snapshots_of(node, "overlayfs");
    let is_written = || {
        let snapshots = std::fs::read_dir(&folder).ok()?.flatten();
        let files = snapshots.filter_map(|entry| std::fs::metadata(entry.path().join("fs/zeros")).ok());
        files.map(|status| status.len()).max().filter(|length| *length > 0)
    };
    let wait = async {
        while is_written().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("it is unpacked");
}

/// What this process has open below `folder`.
fn open_below(folder: &Path) -> Vec<PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("reads").flatten();
    let paths = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    paths.filter(|path| path.starts_with(folder)).collect()
}
