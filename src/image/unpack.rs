//! Layers become snapshots.
//!
//! ```text
//! for each layer, lowest first:   Prepare on the layer below ── exists ──▶ next layer
//!                                    │ new
//!                                    ▼
//!                     wait for its download ─▶ apply ─▶ check the diff id ─▶ Commit
//! ```
//!
//! Prepare names the snapshot that will come of it (`containerd.io/snapshot.ref`), so
//! that a layer which is there, or which a remote snapshotter brings by itself, is
//! neither fetched nor unpacked: downloads begin at the first layer that is missing,
//! and go on in parallel while the layers before are unpacked (IMG-29). Two images with
//! the same layer, or two callers with the same image, unpack it once: the second waits
//! and finds it.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, oneshot};
use tracing::{Instrument, debug};

use super::digest::is_digest;
use super::extract::Failure;
use super::fetch::Fetch;
use super::progress::LayerState;
use super::tree::{self, Source, Tree};
use super::work::Work;
use super::{Image, Images, apply, content};
use crate::config::Unpacking;
use crate::containerd::{Descriptor, Mount};
use crate::error::{Context, Error, Kind, Result, precondition, unknown};
use crate::ids::random_hex;
use crate::trace;

/// How often a layer is prepared anew when what was there a moment ago is gone.
const ATTEMPTS: usize = 3;
/// The most bytes of a label, key and value together, that containerd takes.
const LABEL_BYTES_MAX: usize = 4096;
/// Labels that snapshotters read have keys that begin so.
const SNAPSHOT_LABEL: &str = "containerd.io/snapshot/";

/// One image that is being unpacked.
pub(super) struct Unpack<'a> {
    pub(super) images: &'a Images,
    pub(super) work: &'a Work,
    pub(super) tree: &'a Tree,
    pub(super) snapshotter: &'a str,
    /// The image's name, which remote snapshotters want to know (IMG-37).
    pub(super) name: &'a str,
    /// Where missing layers come from; none if they must be there.
    pub(super) fetch: Option<Fetch<'a>>,
}

/// Why a layer was not unpacked.
enum Stop {
    /// The layer below is gone: start again from the lowest (CTR-05).
    ParentGone(Error),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

impl Images {
    /// Makes sure that the image's snapshot is there for `snapshotter`, unpacking it on
    /// demand (CTR-05), and gives its name, empty for an image without layers. With a
    /// `lease` the snapshot also belongs to that one.
    ///
    /// # Errors
    /// FailedPrecondition when layers are missing; never NotFound (ERR-12).
    pub async fn unpacked(&self, image: &Image, snapshotter: &str, lease: Option<&str>) -> Result<String> {
        let chain_id = &image.chain_id;
        if chain_id.is_empty() {
            return Ok(String::new());
        }
        let what = || format!("unpack image {} for {snapshotter}", image.id);
        if let Some(lease) = lease {
            self.0
                .containerd
                .lease_snapshot(lease, snapshotter, chain_id)
                .await
                .context(what)
                .map_err(inner)?;
        }
        match self.0.containerd.snapshot(snapshotter, chain_id).await {
            Ok(_) => return Ok(chain_id.clone()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).context(what),
        }
        let work = self.0.leases.begin(&self.0.containerd).await.context(what)?;
        let result = async {
            let tree = tree::walk(&self.0.containerd, &Source::Store, &self.0.node, &image.target).await?;
            let name = image.references.iter().find(|name| !is_digest(name)).unwrap_or(&image.id);
            let unpack = Unpack { images: self, work: &work, tree: &tree, snapshotter, name, fetch: None };
            unpack.run().await
        };
        let result = result.await.context(what).map_err(inner);
        work.end(&result).await;
        result.map(|()| chain_id.clone())
    }
}

/// What is missing here is no object that the kubelet asked for.
fn inner(error: Error) -> Error {
    if error.is_not_found() { error.with_kind(Kind::FailedPrecondition) } else { error }
}

impl Unpack<'_> {
    /// Fetches what is missing and unpacks it.
    ///
    /// # Errors
    /// Those of the registry and of containerd; FailedPrecondition for a missing layer
    /// that cannot be fetched; Unknown for a layer that is not what the config says.
    pub(super) async fn run(&self) -> Result<()> {
        if self.tree.chain_id().is_empty() {
            return Ok(());
        }
        let mut attempt = 1;
        while !self.is_there(self.tree.chain_id()).await? {
            match self.layers().await {
                Ok(()) => break,
                Err(Stop::ParentGone(error)) if attempt < ATTEMPTS => debug!(%error, attempt, "unpack again"),
                Err(Stop::ParentGone(error) | Stop::Failed(error)) => return Err(error),
            }
            attempt += 1;
        }
        // The config holds the snapshots from here on.
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let labels = HashMap::from([(key, self.tree.chain_id().to_owned())]);
        content::label(&self.images.0.containerd, &self.tree.config.digest, labels, None).await
    }

    async fn layers(&self) -> Result<(), Stop> {
        let (start, started) = oneshot::channel();
        let arrived: Vec<Notify> = self.tree.layers.iter().map(|_| Notify::new()).collect();
        let download = async {
            // Without a start nothing is missing.
            let Ok(first) = started.await else { return Ok(()) };
            let Some(fetch) = self.fetch else { return Ok(()) };
            let layers = self.tree.layers.iter().zip(&arrived).skip(first);
            let downloads: Vec<_> = layers.map(|(layer, arrived)| announced(fetch, layer, arrived)).collect();
            futures_util::stream::iter(downloads)
                .buffer_unordered(self.images.0.settings.downloads_max)
                .try_for_each(|()| std::future::ready(Ok(())))
                .await
                .map_err(Stop::Failed)
        };
        let unpack = async {
            let mut start = Some(start);
            for (index, arrived) in arrived.iter().enumerate() {
                self.layer(index, &mut start, arrived).await?;
            }
            Ok(())
        };
        tokio::try_join!(download, unpack).map(|((), ())| ())
    }

    async fn layer(
        &self,
        index: usize,
        start: &mut Option<oneshot::Sender<usize>>,
        arrived: &Notify,
    ) -> Result<(), Stop> {
        let Images(inner) = self.images;
        let chain_id = &self.tree.chain_ids[index];
        let _turn = inner.snapshots.lock(format!("{}/{chain_id}", self.snapshotter)).await;
        let labels = self.labels(index);
        let layer = &self.tree.layers[index];
        let Some((key, mounts)) = self.prepare(index, &labels).await? else {
            self.shows(layer, LayerState::Done);
            return Ok(());
        };
        if self.fetch.is_some() {
            if let Some(start) = start.take() {
                // The receiver lives as long as this future.
                let _ = start.send(index);
            }
            trace::wait("the layer to arrive", arrived.notified()).await;
        }
        self.shows(layer, LayerState::Unpacking);
        let diff_id = &self.tree.diff_ids[index];
        let Some((key, applied)) = self.apply(index, &labels, key, mounts).await? else {
            self.shows(layer, LayerState::Done);
            return Ok(());
        };
        if applied != *diff_id {
            return Err(Stop::Failed(unknown(format!(
                "layer {} unpacks to {applied}, its config says {diff_id}",
                layer.digest
            ))));
        }
        let committed = inner.containerd.commit_snapshot(
            self.snapshotter,
            chain_id,
            &key,
            labels,
            Some(self.work.lease()),
        );
        match committed.await {
            Err(error) if error.kind() == Kind::AlreadyExists => {
                inner.containerd.remove_snapshot(self.snapshotter, &key).await?;
            }
            other => other?,
        }
        self.work.committed(self.snapshotter, &key);
        self.shows(layer, LayerState::Done);
        let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), diff_id.clone())]);
        Ok(content::label(&inner.containerd, &layer.digest, labels, None).await?)
    }

    /// Tells the progress of a pull.
    fn shows(&self, layer: &Descriptor, state: LayerState) {
        if let Some(fetch) = self.fetch {
            fetch.repository.progress().layer(&layer.digest, state);
        }
    }

    /// Unpacks a layer into its new snapshot, and gives the key of the one that it is in by
    /// now, and the diff id; none if the layer is there meanwhile.
    async fn apply(
        &self,
        index: usize,
        labels: &HashMap<String, String>,
        mut key: String,
        mut mounts: Vec<Mount>,
    ) -> Result<Option<(String, String)>, Stop> {
        let Images(inner) = self.images;
        let (containerd, layer) = (&inner.containerd, &self.tree.layers[index]);
        let extraction = match inner.settings.unpacking {
            Unpacking::Auto => apply::Extraction::of(layer, &mounts).await?,
            Unpacking::Containerd => None,
        };
        if let Some(extraction) = extraction {
            // The semaphore is never closed.
            let _place = trace::wait("a place among the extractions", inner.extractions.acquire()).await.ok();
            let span = tracing::debug_span!("extract", name = layer.digest);
            match extraction.run(self.work, containerd, layer).instrument(span).await {
                Ok(diff_id) => {
                    debug!(layer = layer.digest, by = "longshore", "unpacked a layer");
                    return Ok(Some((key, diff_id)));
                }
                Err(Failure::Failed(error)) => return Err(Stop::Failed(missing(layer, error))),
                Err(Failure::Unsupported(why)) => {
                    debug!(layer = layer.digest, why, "not extracted here");
                }
            }
            // There may be something in it by now.
            containerd.remove_snapshot(self.snapshotter, &key).await?;
            self.work.committed(self.snapshotter, &key);
            let Some(fresh) = self.prepare(index, labels).await? else { return Ok(None) };
            (key, mounts) = fresh;
        }
        let applied = apply::by_containerd(containerd, self.work, layer, &mounts).await;
        Ok(Some((key, applied.map_err(|error| missing(layer, error))?)))
    }

    /// A new snapshot for a layer: its key and mounts; none if the layer is there, which
    /// the lease then holds.
    async fn prepare(
        &self,
        index: usize,
        labels: &HashMap<String, String>,
    ) -> Result<Option<(String, Vec<Mount>)>, Stop> {
        let containerd = &self.images.0.containerd;
        let (snapshotter, chain_id) = (self.snapshotter, &self.tree.chain_ids[index]);
        let parent =
            index.checked_sub(1).map(|below| self.tree.chain_ids[below].as_str()).unwrap_or_default();
        let mut attempt = 1;
        loop {
            let key = format!("extract-{} {chain_id}", random_hex::<8>());
            self.work.snapshot(snapshotter, &key);
            let prepared = containerd
                .prepare_snapshot(snapshotter, &key, parent, labels.clone(), Some(self.work.lease()))
                .await;
            let error = match prepared {
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(error) => error,
            };
            self.work.committed(snapshotter, &key);
            if error.is_not_found() && !parent.is_empty() {
                return Err(Stop::ParentGone(error));
            }
            if error.kind() != Kind::AlreadyExists {
                return Err(Stop::Failed(error));
            }
            if self.is_there(chain_id).await? {
                return Ok(None);
            }
            // Collected between the two calls.
            if attempt == ATTEMPTS {
                return Err(Stop::Failed(error));
            }
            attempt += 1;
        }
    }

    /// Whether a layer's snapshot is there; the lease then holds it.
    async fn is_there(&self, chain_id: &str) -> Result<bool> {
        let containerd = &self.images.0.containerd;
        // Before the look, so that it stays after it.
        containerd.lease_snapshot(self.work.lease(), self.snapshotter, chain_id).await?;
        match containerd.snapshot(self.snapshotter, chain_id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a snapshotter is told about a layer (IMG-37).
    fn labels(&self, index: usize) -> HashMap<String, String> {
        let layer = &self.tree.layers[index];
        let mut labels: HashMap<String, String> = layer
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with(SNAPSHOT_LABEL))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let key = |name: &str| format!("{SNAPSHOT_LABEL}cri.{name}");
        let layers = key("image-layers");
        let list = digests_within(&self.tree.layers[index..], LABEL_BYTES_MAX - layers.len());
        labels.insert(layers, list);
        labels.insert(key("image-ref"), self.name.to_owned());
        labels.insert(key("manifest-digest"), self.tree.manifest.digest.clone());
        labels.insert(key("layer-digest"), layer.digest.clone());
        labels.retain(|key, value| key.len() + value.len() <= LABEL_BYTES_MAX);
        labels.insert("containerd.io/snapshot.ref".to_owned(), self.tree.chain_ids[index].clone());
        labels
    }
}

/// Fetches one layer and says so.
async fn announced(fetch: Fetch<'_>, layer: &Descriptor, arrived: &Notify) -> Result<()> {
    fetch.layer(layer).await?;
    arrived.notify_one();
    Ok(())
}

/// As many digests as fit in a label, comma-separated.
fn digests_within(layers: &[Descriptor], bytes_max: usize) -> String {
    let mut list = String::new();
    for layer in layers {
        if list.len() + 1 + layer.digest.len() > bytes_max {
            break;
        }
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&layer.digest);
    }
    list
}

fn missing(layer: &Descriptor, error: Error) -> Error {
    if error.is_not_found() {
        return precondition(format!("layer {} is not on this node: pull the image again", layer.digest));
    }
    error.context(format!("layer {}", layer.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_layers_never_outgrows_its_label() {
        let layer = Descriptor { digest: format!("sha256:{:0<64}", "1"), ..Default::default() };
        let layers = vec![layer; 200];
        let list = digests_within(&layers, 1000);
        assert!(list.len() <= 1000 && list.len() > 900);
        assert!(list.split(',').all(|digest| digest.len() == 71));
        assert_eq!(digests_within(&layers[..1], 100).len(), 71);
    }
}
