//! The layers of an image with the owners of a pod's user namespace (SBX-27), for
//! snapshotters whose mounts cannot be id-mapped.
//!
//! ```text
//! layers of the image ◀─ snapshot with shifted owners ◀─ root file systems of containers
//!                        named for image and mappings: shared by all that have both
//! ```
//! It is made once, under the lease of the pod that was first, and held by that and by
//! whatever is built on it: when neither is there any more, containerd's collector takes it.
//! The name is that of containerd's own clients, 2.1 and later, so that each uses what the
//! other has made.

use serde_json::{Value, json};
use tracing::debug;

use super::{Image, Images, digest};
use crate::containerd::Mount;
use crate::error::{Context, Kind, Result};
use crate::flow::{Disk, on_disk};
use crate::ids::random_hex;
use crate::sys::mount::{mount_all, private_namespace};
use crate::sys::owners;
use crate::sys::userns::{IdMap, IdMaps};

/// How the keys of snapshots begin whose owners are being shifted.
const UNFINISHED: &str = "longshore-remap-";

/// The name of the snapshot of `image` with the owners of `maps`.
#[must_use]
pub fn remapped_name(image: &Image, maps: &IdMaps) -> String {
    name_of(&image.chain_id, maps)
}

/// Whether a snapshot is one whose making was cut off.
#[must_use]
pub fn is_unfinished_remapping(key: &str) -> bool {
    key.starts_with(UNFINISHED)
}

fn name_of(chain_id: &str, maps: &IdMaps) -> String {
    let list = |map: IdMap| -> Value {
        json!([{ "containerID": map.container_id, "hostID": map.host_id, "size": map.length }])
    };
    // The order of the keys is part of the name: no map of serde's keeps it.
    let text = format!(
        r#"{{"Parent":{},"IDMap":{{"UidMap":{},"GidMap":{}}}}}"#,
        json!(chain_id),
        list(maps.uids),
        list(maps.gids)
    );
    digest::of(text.as_bytes())
}

impl Images {
    /// Makes sure that the snapshot of `image` with the owners of `maps` is there, and puts
    /// it under the lease. The image is unpacked for `snapshotter` if it is not.
    ///
    /// # Errors
    /// FailedPrecondition for missing layers, and for a file of an owner that is not mapped;
    /// else what containerd or the file system met; never NotFound (ERR-12).
    pub async fn remap(&self, image: &Image, snapshotter: &str, maps: &IdMaps, lease: &str) -> Result<()> {
        let name = remapped_name(image, maps);
        let containerd = &self.0.containerd;
        let _turn = self.0.snapshots.lock(format!("owners of {name}")).await;
        let made = async {
            containerd.lease_snapshot(lease, snapshotter, &name).await?;
            match containerd.snapshot(snapshotter, &name).await {
                Err(error) if error.is_not_found() => {}
                other => return other.map(drop),
            }
            let parent = self.unpacked(image, snapshotter, Some(lease)).await?;
            let key = format!("{UNFINISHED}{}", random_hex::<16>());
            debug!(image = image.id, uids = %maps.uids, gids = %maps.gids, key, "shifting the owners of an image");
            let shifted = self.shift_and_commit(snapshotter, &key, &parent, &name, maps, lease).await;
            if shifted.is_err()
                && let Err(error) = containerd.remove_snapshot(snapshotter, &key).await
            {
                tracing::warn!(key, %error, "a snapshot was left that did not get its owners");
            }
            shifted
        };
        made.await
            .map_err(
                |error| {
                    if error.is_not_found() { error.with_kind(Kind::FailedPrecondition) } else { error }
                },
            )
            .context(|| format!("owners of image {} for a user namespace", image.id))
    }

    async fn shift_and_commit(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        name: &str,
        maps: &IdMaps,
        lease: &str,
    ) -> Result<()> {
        let containerd = &self.0.containerd;
        let mounts =
            containerd.prepare_snapshot(snapshotter, key, parent, Default::default(), Some(lease)).await?;
        let (place, maps) = (self.0.settings.state.clone(), *maps);
        on_disk(Disk::Images, move || shift_owners(&mounts, &place, &maps)).await?;
        match containerd.commit_snapshot(snapshotter, name, key, Default::default(), Some(lease)).await {
            // Another client of containerd was faster.
            Err(error) if error.kind() == Kind::AlreadyExists => {
                containerd.remove_snapshot(snapshotter, key).await
            }
            other => other,
        }
    }
}

fn shift_owners(mounts: &[Mount], place: &std::path::Path, maps: &IdMaps) -> Result<()> {
    private_namespace(|| {
        mount_all(mounts, place)?;
        owners::shift(place, maps)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 2.3 names them: the SHA-256 of the JSON that it makes of them.
    #[test]
    fn a_name_is_that_of_containerds_clients() {
        let uids = IdMap::new(0, 100_000, 65536).expect("a mapping");
        let gids = IdMap { host_id: 200_000, ..uids };
        let text = concat!(
            r#"{"Parent":"sha256:aa","IDMap":{"#,
            r#""UidMap":[{"containerID":0,"hostID":100000,"size":65536}],"#,
            r#""GidMap":[{"containerID":0,"hostID":200000,"size":65536}]}}"#
        );
        let name = name_of("sha256:aa", &IdMaps { uids, gids });
        assert_eq!(name, digest::of(text.as_bytes()));
        assert_ne!(name, name_of("sha256:aa", &IdMaps { uids, gids: uids }));
        assert!(!is_unfinished_remapping(&name) && is_unfinished_remapping("longshore-remap-00"));
    }
}
