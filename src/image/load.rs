//! From containerd's image records to the table, at start and after every change.
//!
//! Records are made by longshore, by `ctr`, by other clients; each name is looked at
//! alone. A name whose image is whole gets the labels that the built-in plugin gives,
//! and its image a record under its id (IMG-10, IMG-14); one whose image is not leaves
//! the table, with a line in the log (IMG-15).
//!
//! Two looks at one name run one after the other, and every change is followed by a
//! look: the last one always sees the last state.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use tracing::{debug, warn};

use super::tree::{self, Source, Tree};
use super::work::Leases;
use super::{Image, Images, digest};
use crate::containerd::ImageRecord;
use crate::error::{Kind, Result, precondition};

/// Marks an image as one of the CRI's (COX-04).
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// Marks an image that the kubelet must not collect.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// How many names are looked at at the same time.
const PARALLEL: usize = 8;

impl Images {
    /// Reads all image records, and removes the leases of pulls that an earlier process
    /// did not end (REC-15). Also to be called whenever events may have been missed.
    ///
    /// # Errors
    /// Those of containerd for the list itself; one broken image is a line in the log.
    pub async fn load(&self) -> Result<()> {
        let records = self.0.containerd.list_images().await?;
        let mut names = self.0.table.names();
        names.extend(records.into_iter().map(|record| record.name));
        names.sort_unstable();
        names.dedup();
        let looks: Vec<_> = names.iter().map(|name| self.refresh_or_log(name)).collect();
        futures_util::stream::iter(looks).buffer_unordered(PARALLEL).for_each(std::future::ready).await;
        if let Err(error) = self.0.leases.clear(&self.0.containerd).await {
            warn!(%error, "leases of earlier pulls could not be removed");
        }
        Ok(())
    }

    /// Looks at all images, for who changes nothing: no record is labelled or made.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn load_for_looking(&self) -> Result<()> {
        for record in self.0.containerd.list_images().await? {
            match self.read(&record).await {
                _ if Leases::has_record(&record.name) => {}
                Ok((image, is_pinned)) => _ = self.0.table.set(&record.name, image, is_pinned),
                Err(error) => debug!(name = record.name, %error, "not whole on this node"),
            }
        }
        Ok(())
    }

    /// Notices images whose end no event has told, and removes the leases of pulls that have
    /// ended without them; gives how many images there were.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn tend(&self) -> Result<usize> {
        let known = self.0.table.names();
        let records = self.0.containerd.list_images().await?;
        let there: HashSet<&str> = records.iter().map(|record| record.name.as_str()).collect();
        let mut gone = 0;
        for name in known.iter().filter(|name| !there.contains(name.as_str())) {
            // It may have gone just now, as somebody asked for.
            if self.0.table.names().contains(name) {
                self.refresh(name).await?;
                warn!(image = name, "the end of an image was missed");
                gone += 1;
            }
        }
        self.0.leases.clear(&self.0.containerd).await?;
        Ok(gone)
    }

    async fn refresh_or_log(&self, name: &str) {
        if let Err(error) = self.refresh(name).await {
            warn!(name, %error, "an image could not be loaded");
        }
    }

    /// Reads the record `name` again; for image events, and after changes of our own.
    ///
    /// # Errors
    /// Those of a containerd that does not answer. That the image is not whole is none.
    pub async fn refresh(&self, name: &str) -> Result<()> {
        if Leases::has_record(name) {
            return Ok(());
        }
        let _turn = self.0.names.lock(name).await;
        let record = match self.0.containerd.image(name).await {
            Err(error) if error.is_not_found() => {
                self.0.table.unset(name);
                return Ok(());
            }
            record => record?,
        };
        let (image, is_pinned) = match self.read(&record).await {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => {
                return Err(error);
            }
            Err(error) => {
                warn!(name, %error, "the image is not whole on this node and not listed");
                self.0.table.unset(name);
                return Ok(());
            }
        };
        self.manage(&record, &image.id).await?;
        debug!(name, id = image.id, "image");
        self.0.table.set(name, image, is_pinned);
        Ok(())
    }

    async fn read(&self, record: &ImageRecord) -> Result<(Image, bool)> {
        let tree = tree::walk(&self.0.containerd, &Source::Store, &self.0.node, &record.target).await?;
        self.must_be_usable(&tree).await?;
        let is_pinned = self.labels_for(&record.name).contains_key(PINNED.0)
            || record.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
        Ok((Image::new(record.target.clone(), tree), is_pinned))
    }

    /// An image can be started from its snapshot, or from its layers.
    async fn must_be_usable(&self, tree: &Tree) -> Result<()> {
        let chain_id = tree.chain_id();
        for snapshotter in &self.0.settings.snapshotters {
            // An error other than NotFound: a snapshotter that is not there.
            if !chain_id.is_empty() && self.0.containerd.snapshot(snapshotter, chain_id).await.is_ok() {
                return Ok(());
            }
        }
        for layer in &tree.layers {
            if let Err(error) = self.0.containerd.content_info(&layer.digest).await {
                return Err(if error.is_not_found() {
                    precondition(format!("layer {} is neither stored nor unpacked", layer.digest))
                } else {
                    error
                });
            }
        }
        Ok(())
    }

    /// The labels that the record `name` must have.
    pub(super) fn labels_for(&self, name: &str) -> HashMap<String, String> {
        let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let mut labels = HashMap::from([label(MANAGED)]);
        labels.extend(self.0.settings.pinned.contains(name).then(|| label(PINNED)));
        labels
    }

    /// Sets what labels a record lacks, after the record under the image's id was made.
    async fn manage(&self, record: &ImageRecord, id: &str) -> Result<()> {
        let mut missing = self.labels_for(&record.name);
        if missing.iter().all(|(key, value)| record.labels.get(key) == Some(value)) {
            return Ok(());
        }
        if !digest::is_digest(&record.name) {
            let by_id = ImageRecord {
                name: id.to_owned(),
                labels: self.labels_for(id),
                target: record.target.clone(),
            };
            self.0.containerd.put_image(by_id, None).await?;
            // Ids are the only names below which no other name is refreshed.
            Box::pin(self.refresh(id)).await?;
        }
        missing.retain(|key, value| record.labels.get(key) != Some(value));
        match self.0.containerd.label_image(&record.name, missing).await {
            // Deleted meanwhile: its event is on the way.
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes a record with its labels and looks at it.
    ///
    /// # Errors
    /// Those of containerd.
    pub(super) async fn record(&self, record: ImageRecord, lease: &str) -> Result<()> {
        let name = record.name.clone();
        let known = self.0.containerd.image(&name).await;
        let is_same = known.is_ok_and(|known| {
            known.target.digest == record.target.digest
                && record.labels.iter().all(|(key, value)| known.labels.get(key) == Some(value))
        });
        if !is_same {
            self.0.containerd.put_image(record, Some(lease)).await?;
        }
        self.refresh(&name).await
    }
}
