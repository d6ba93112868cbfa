//! Image volumes: images that containers have mounted, read-only (OCI-37, OCI-38).
//!
//! The containers of a pod share one mount of an image, at a place that is a function of
//! both:
//!
//! ```text
//! <state>/image-volumes/<pod id>/<digest>      mount of ─▶ view snapshot ─▶ the image's layers
//!    made first, removed last                              key: that path; held by the pod's lease
//! ```
//!
//! For a user namespace the name of the folder also has the mappings, by which the image is
//! mounted (OCI-34). Nothing else is recorded: after a crash the folder tells the next stop of the pod what
//! there is to take down, and a mount that is there is used. The lease keeps layers and
//! view from containerd's collector also when the image is removed (IMG-42). Folders, keys
//! and lease are those of containerd's own plugin, so that either takes down what the
//! other made (COX-13).
//!
//! Mounting and unmounting exclude each other by pod. A stop makes the pod NOTREADY before
//! it unmounts, and what mounts looks at that while it holds the lock: after a stop
//! nothing is mounted any more.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{debug, info};

use super::Containers;
use super::create::inner;
use crate::containerd::Mount;
use crate::error::{Collected, Context, Error, Kind, Result, precondition};
use crate::flow::{self, Disk, on_disk};
use crate::ids::PodId;
use crate::image::{Image, Images};
use crate::proto::cri;
use crate::spec::mounts::IMAGE_VOLUME_FAILED;
use crate::spec::namespaces;
use crate::state::Pod;
use crate::sys::userns::{IdMap, IdMaps};
use crate::sys::{beneath, idmap, mount, mountinfo};

/// The images of those of `mounts` that are image volumes, in order. Which image it is is
/// also noted there, since its name may lead to another one tomorrow.
///
/// # Errors
/// FailedPrecondition for an image that is not on this node.
pub(super) fn resolve(images: &Images, mounts: &mut [cri::Mount]) -> Result<Vec<Option<Arc<Image>>>> {
    let mut list = Vec::new();
    for given in mounts {
        let Some(asked) = &mut given.image else {
            list.push(None);
            continue;
        };
        let image = images.find(&asked.image).ok_or_else(|| {
            let missing = precondition(format!("image {:?} is not on this node", asked.image));
            failed(&given.container_path, missing)
        })?;
        asked.image_ref.clone_from(&image.id);
        list.push(Some(image));
    }
    Ok(list)
}

/// The error of an image volume as the kubelet wants to read it (ERR-09). What is missing
/// is no object of the call (ERR-12).
fn failed(container_path: &str, error: Error) -> Error {
    inner(error).context(format!("{IMAGE_VOLUME_FAILED}: mount at {container_path:?}"))
}

impl Containers {
    /// Mounts the images of `mounts` for the pod, as far as they are not, and gives the
    /// folders of the host that they, or their sub paths, are at; in order, none for
    /// other mounts. What was mounted stays until the pod is stopped, also when
    /// something fails.
    ///
    /// # Errors
    /// All begin with the word that the kubelet reads (ERR-09). FailedPrecondition for a
    /// sub path that is no folder of the image, for missing layers, and for a pod that is
    /// not READY any more; else what containerd or the mount met.
    pub(super) async fn image_volumes(
        &self,
        pod: &Pod,
        mounts: &[cri::Mount],
        images: &[Option<Arc<Image>>],
        snapshotter: &str,
    ) -> Result<Vec<Option<PathBuf>>> {
        let mut sources = Vec::new();
        for (given, image) in mounts.iter().zip(images) {
            sources.push(match image {
                None => None,
                Some(image) => {
                    let source = self.image_volume(pod, image, snapshotter, given).await;
                    Some(source.map_err(|error| failed(&given.container_path, error))?)
                }
            });
        }
        Ok(sources)
    }

    async fn image_volume(
        &self,
        pod: &Pod,
        image: &Image,
        snapshotter: &str,
        given: &cri::Mount,
    ) -> Result<PathBuf> {
        let sub_path = given.image_sub_path.as_str();
        let maps = match (given.uid_mappings.as_slice(), given.gid_mappings.as_slice()) {
            ([], []) => None,
            (uids, gids) => Some(namespaces::maps(uids, gids)?),
        };
        // Nearly always the image is unpacked for this snapshotter: that is tried first.
        let mounted = match self.mounted(pod, image, snapshotter, &image.chain_id, maps).await {
            Err(error) if error.is_not_found() => {
                let lease = Some(pod.id.as_str());
                let parent = self.images.unpacked(image, snapshotter, lease).await?;
                self.mounted(pod, image, snapshotter, &parent, maps).await?
            }
            other => other?,
        };
        // Resolved here and once: the runtime would follow links to wherever they lead.
        let path = if sub_path.is_empty() { ".".to_owned() } else { sub_path.to_owned() };
        let found = on_disk(Disk::Images, move || beneath::folder_path(&mounted, &path)).await?;
        found.ok_or_else(|| precondition(format!("image {} has no folder {sub_path:?}", image.id)))
    }

    /// Where the image is mounted for the pod. NotFound if it is not unpacked.
    async fn mounted(
        &self,
        pod: &Pod,
        image: &Image,
        snapshotter: &str,
        chain_id: &str,
        maps: Option<IdMaps>,
    ) -> Result<PathBuf> {
        let place = self.place(&pod.id, image, maps);
        let key = place.to_string_lossy().into_owned();
        let _turn = self.mounting.lock(pod.id.as_str()).await;
        pod.require_ready()?;
        let known = {
            let place = place.clone();
            flow::blocking(move || find(&place)).await?
        };
        if known {
            return Ok(place);
        }
        let lease = Some(pod.id.as_str());
        let mounts = match self.containerd.view_snapshot(snapshotter, &key, chain_id, lease).await {
            // Left by a server that was killed before the mount, or the mount is gone.
            Err(error) if error.kind() == Kind::AlreadyExists => {
                self.containerd.lease_snapshot(pod.id.as_str(), snapshotter, &key).await?;
                self.containerd.snapshot_mounts(snapshotter, &key).await?
            }
            other => other?,
        };
        debug!(pod = %pod.id, image = image.id, ?place, "mounting an image volume");
        let target = place.clone();
        flow::blocking(move || mount_at(mounts, &target, maps)).await?;
        Ok(place)
    }

    /// `<state>/image-volumes/<pod id>/<digest>`, the digest without its algorithm, and behind
    /// it the mappings.
    fn place(&self, pod: &PodId, image: &Image, maps: Option<IdMaps>) -> PathBuf {
        let digest = image.target_digest();
        let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
        // No colons: they part the layers of an overlay.
        let text = |map: IdMap| format!("-{}.{}.{}", map.container_id, map.host_id, map.length);
        let maps = maps.map(|maps| text(maps.uids) + &text(maps.gids)).unwrap_or_default();
        self.paths.pod_image_volumes(pod).join(format!("{digits}{maps}"))
    }

    /// Takes down the image volumes of a pod, which is stopped or not known at all:
    /// mounts, snapshots, folders. Nothing there is fine.
    ///
    /// # Errors
    /// What could not be taken down; a later call goes on from there.
    pub async fn remove_image_volumes(&self, pod: &PodId) -> Result<()> {
        let _turn = self.mounting.lock(pod.as_str()).await;
        let folder = self.paths.pod_image_volumes(pod);
        let places = {
            let folder = folder.clone();
            flow::blocking(move || unmount_in(&folder)).await?
        };
        let Some(mut folders) = places else { return Ok(()) };
        folders.push(folder);
        let mut errors = Collected::default();
        for (snapshotter, key) in self.image_volume_snapshots(pod).await? {
            errors.push(self.containerd.remove_snapshot(&snapshotter, &key).await);
        }
        errors.finish()?;
        flow::blocking(move || remove_empty(&folders)).await
    }

    /// The view snapshots of a pod's image volumes. The lease tells the snapshotter, too:
    /// by now the handler may have another one.
    async fn image_volume_snapshots(&self, pod: &PodId) -> Result<Vec<(String, String)>> {
        let folder = self.paths.pod_image_volumes(pod);
        let mut list = match self.containerd.leased_snapshots(pod.as_str()).await {
            // Then nothing holds them, and the collector takes them.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        list.retain(|(_, key)| Path::new(key).parent() == Some(folder.as_path()));
        Ok(list)
    }

    /// Removes the view snapshots of a pod whose mounts are gone, after a reboot or a
    /// crash. `leased` are the snapshots under the pod's lease.
    ///
    /// # Errors
    /// Those of containerd and of the mount table.
    pub async fn remove_unmounted_image_volumes(
        &self,
        pod: &PodId,
        leased: &[(String, String)],
    ) -> Result<()> {
        let folder = self.paths.pod_image_volumes(pod);
        for (snapshotter, key) in leased {
            let place = PathBuf::from(key);
            if place.parent() != Some(folder.as_path()) {
                continue;
            }
            if flow::blocking(move || mountinfo::is_mount_point(&place)).await? {
                continue;
            }
            info!(snapshot = key, "removing the snapshot of an image volume that is not mounted");
            self.containerd.remove_snapshot(snapshotter, key).await?;
        }
        Ok(())
    }
}

/// Makes the folder, and says whether the image is mounted there. A mount of another
/// server, or one that was cut off half-way, is read-only from here on.
fn find(place: &Path) -> Result<bool> {
    std::fs::create_dir_all(place).context(|| format!("folder {place:?}"))?;
    let known = mountinfo::is_mount_point(place)?;
    if known {
        mount::set_read_only(place)?;
    }
    Ok(known)
}

/// A view is read-only by itself; a snapshotter that forgets it is helped.
fn mount_at(mounts: Vec<Mount>, place: &Path, maps: Option<IdMaps>) -> Result<()> {
    let read_only = |mut mount: Mount| {
        mount.options.push("ro".to_owned());
        mount
    };
    let mounts: Vec<Mount> = mounts.into_iter().map(read_only).collect();
    match maps {
        None => mount::mount_all(&mounts, place),
        Some(maps) => idmap::mount_mapped(&mounts, place, &maps),
    }
}

/// Unmounts everything below a pod's folder, and gives what folders are in it; none if
/// there is no such folder.
fn unmount_in(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    // The mount table has no links.
    let folder = match folder.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("resolve {folder:?}"))?,
    };
    mount::unmount_below(&folder)?;
    let entries = std::fs::read_dir(&folder).context(|| format!("list {folder:?}"))?;
    let entries = entries.map(|entry| entry.map(|entry| entry.path()));
    entries.collect::<std::io::Result<_>>().map(Some).context(|| format!("list {folder:?}"))
}

/// Removes empty folders. Not with what is inside: should something be mounted there
/// still, that is not to be touched.
fn remove_empty(folders: &[PathBuf]) -> Result<()> {
    let mut errors = Collected::default();
    for folder in folders {
        errors.push(match std::fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("remove folder {folder:?}")),
        });
    }
    errors.finish()
}
