//! The root file systems of containers: snapshots of images.

use std::collections::HashMap;

use super::Containers;
use super::create::inner;
use crate::containerd::{IdMapping, Mount};
use crate::error::{Result, precondition};
use crate::image::{Image, remapped_name};
use crate::sys::userns::IdMaps;

/// Labels by which a snapshotter maps ids.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// How often a snapshot with shifted owners may be collected just when it is to be used.
const COLLECTED_MAX: usize = 3;

impl Containers {
    /// The writable snapshot `key` of `image`, held by the lease of the pod `pod_id`, for a
    /// user namespace with those mappings (SBX-27).
    ///
    /// # Errors
    /// FailedPrecondition when layers are missing, and where snapshotter or image cannot be
    /// used with the mappings.
    pub(crate) async fn snapshot(
        &self,
        key: &str,
        image: &Image,
        snapshotter: &str,
        pod_id: &str,
        maps: Option<&IdMaps>,
    ) -> Result<Vec<Mount>> {
        let Some(maps) = maps else {
            return self.of_layers(key, image, snapshotter, pod_id, HashMap::new()).await;
        };
        match self.containerd.capabilities()?.id_mapping_of(snapshotter) {
            IdMapping::Mounted => self.of_layers(key, image, snapshotter, pod_id, mapping_labels(maps)).await,
            IdMapping::Absent => self.of_shifted_layers(key, image, snapshotter, pod_id, maps).await,
            IdMapping::Refused => Err(precondition(format!(
                "the snapshotter {snapshotter:?} has no id-mapped mounts on this kernel, which the user namespace needs; with slow_chown in its configuration, files get other owners instead"
            ))),
        }
    }

    async fn of_layers(
        &self,
        key: &str,
        image: &Image,
        snapshotter: &str,
        pod_id: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>> {
        let lease = Some(pod_id);
        let prepare = |parent: String| {
            let labels = labels.clone();
            async move { self.containerd.prepare_snapshot(snapshotter, key, &parent, labels, lease).await }
        };
        // Nearly always the image is unpacked for this snapshotter: that is tried first.
        match prepare(image.chain_id.clone()).await {
            Err(error) if error.is_not_found() => {}
            other => return other,
        }
        let parent = self.images.unpacked(image, snapshotter, lease).await?;
        prepare(parent).await.map_err(inner)
    }

    async fn of_shifted_layers(
        &self,
        key: &str,
        image: &Image,
        snapshotter: &str,
        pod_id: &str,
        maps: &IdMaps,
    ) -> Result<Vec<Mount>> {
        let parent = remapped_name(image, maps);
        let prepare = || {
            let labels = mapping_labels(maps);
            self.containerd.prepare_snapshot(snapshotter, key, &parent, labels, Some(pod_id))
        };
        for _ in 0..COLLECTED_MAX {
            match prepare().await {
                Err(error) if error.is_not_found() => {}
                other => return other,
            }
            self.images.remap(image, snapshotter, maps, pod_id).await?;
        }
        prepare().await.map_err(inner)
    }
}

fn mapping_labels(maps: &IdMaps) -> HashMap<String, String> {
    HashMap::from([
        (UID_MAPPING.to_owned(), maps.uids.to_string()),
        (GID_MAPPING.to_owned(), maps.gids.to_string()),
    ])
}
