//! Volumes that an image declares (CTR-08): folders of the container's own, filled with
//! what the image has at that path.

use std::path::{Path, PathBuf};

use crate::containerd::Mount;
use crate::error::{Context, Result};
use crate::flow;
use crate::sys::{beneath, copy, mount};

/// Fills `volumes` (host folder, path in the image) from the root file system `rootfs`,
/// which is mounted over `place` for the copying alone.
///
/// # Errors
/// Those of the mounts and copies; the folders are removed with the container's.
pub(super) async fn copy_up(place: &Path, rootfs: &[Mount], volumes: &[(PathBuf, String)]) -> Result<()> {
    let (place, rootfs, volumes) = (place.to_owned(), rootfs.to_vec(), volumes.to_vec());
    flow::blocking(move || {
        mount::private_namespace(|| {
            mount::mount_all(&rootfs, &place)?;
            for (host, inside) in &volumes {
                fill(host, &place, inside).context(|| format!("volume {inside:?} of the image"))?;
            }
            Ok(())
        })
    })
    .await
}

fn fill(host: &Path, rootfs: &Path, inside: &str) -> Result<()> {
    std::fs::create_dir_all(host).context(|| format!("folder {host:?}"))?;
    match beneath::open_folder(rootfs, inside)? {
        Some(folder) => copy::copy_tree(&folder, host),
        None => Ok(()), // the image has nothing there
    }
}
