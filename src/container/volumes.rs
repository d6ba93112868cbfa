//! Volumes that an image declares (CTR-08): folders of the container's own, filled with
//! what the image has at that path.

use std::path::{Path, PathBuf};

use crate::containerd::Mount;
use crate::error::{Context, Result};
use crate::flow::{Disk, on_disk};
use crate::sys::userns::IdMaps;
use crate::sys::{beneath, copy, idmap, mount, owners};

/// Fills `volumes` (host folder, path in the image) from the root file system `rootfs`,
/// which is mounted over `place` for the copying alone. In a user namespace the copies are
/// of its owners, so that a container finds them as the image has them.
///
/// # Errors
/// Those of the mounts and copies; the folders are removed with the container's.
pub(super) async fn copy_up(
    place: &Path,
    rootfs: &[Mount],
    volumes: &[(PathBuf, String)],
    maps: Option<IdMaps>,
) -> Result<()> {
    // What is mounted with a mapping has the image's owners; else they are the right ones.
    let has_images_owners = rootfs.iter().any(idmap::is_mapped);
    let rootfs: Vec<Mount> = rootfs.iter().map(idmap::without_mapping).collect();
    let (place, volumes) = (place.to_owned(), volumes.to_vec());
    on_disk(Disk::Root, move || {
        mount::private_namespace(|| {
            mount::mount_all(&rootfs, &place)?;
            for (host, inside) in &volumes {
                let what = || format!("volume {inside:?} of the image");
                let is_copied = fill(host, &place, inside).context(what)?;
                if let Some(maps) = maps.as_ref().filter(|_| has_images_owners || !is_copied) {
                    owners::shift(host, maps).context(what)?;
                }
            }
            Ok(())
        })
    })
    .await
}

/// Makes the folder of a volume, and says whether the image had something for it.
fn fill(host: &Path, rootfs: &Path, inside: &str) -> Result<bool> {
    std::fs::create_dir_all(host).context(|| format!("folder {host:?}"))?;
    match beneath::open_folder(rootfs, inside)? {
        Some(folder) => copy::copy_tree(&folder, host).map(|()| true),
        None => Ok(false),
    }
}
