//! Snapshots: the root file systems.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::snapshots as api;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use tracing::info;

use super::wire::{Wire, leased};
use super::{Containerd, MESSAGE_BYTES_MAX, Mount, mounts_from};
use crate::error::{Error, Result, internal};

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Read-only view of a committed one.
    View,
    /// Writable.
    Active,
    /// A layer.
    Committed,
    /// containerd does not say.
    Unknown,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// Name or key.
    pub name: String,
    /// Name of the parent; empty for none.
    pub parent: String,
    /// What it is for.
    pub kind: SnapshotKind,
    /// Labels.
    pub labels: HashMap<String, String>,
}

/// What a snapshot takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Containerd {
    fn snapshots(&self) -> SnapshotsClient<Wire> {
        SnapshotsClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes a writable snapshot `key` on top of `parent` (empty for none).
    ///
    /// # Errors
    /// NotFound without the parent; AlreadyExists.
    pub async fn prepare_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>> {
        let request = api::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        let ask = async || {
            let request = leased(request.clone(), lease);
            self.unary("Snapshots.Prepare", self.snapshots().prepare(request)).await
        };
        let answer = match ask().await {
            Err(error) if was_in_the_way(&error) => ask().await?,
            answer => answer?,
        };
        Ok(mounts_from(answer.mounts))
    }

    /// Makes a read-only view `key` of `parent`.
    ///
    /// # Errors
    /// NotFound without the parent; AlreadyExists.
    pub async fn view_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>> {
        let request = api::ViewSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            labels: HashMap::new(),
        };
        let ask = async || {
            let request = leased(request.clone(), lease);
            self.unary("Snapshots.View", self.snapshots().view(request)).await
        };
        let answer = match ask().await {
            Err(error) if was_in_the_way(&error) => ask().await?,
            answer => answer?,
        };
        Ok(mounts_from(answer.mounts))
    }

    /// The mounts of an active snapshot or view.
    ///
    /// # Errors
    /// NotFound.
    pub async fn snapshot_mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let request = api::MountsRequest { snapshotter: snapshotter.into(), key: key.into() };
        Ok(mounts_from(self.unary("Snapshots.Mounts", self.snapshots().mounts(request)).await?.mounts))
    }

    /// Turns the active snapshot `key` into the layer `name`.
    ///
    /// # Errors
    /// AlreadyExists if the layer is there.
    pub async fn commit_snapshot(
        &self,
        snapshotter: &str,
        name: &str,
        key: &str,
        labels: HashMap<String, String>,
        lease: Option<&str>,
    ) -> Result<()> {
        let request = api::CommitSnapshotRequest {
            snapshotter: snapshotter.into(),
            name: name.into(),
            key: key.into(),
            labels,
        };
        self.unary("Snapshots.Commit", self.snapshots().commit(leased(request, lease))).await.map(drop)
    }

    /// Removes a snapshot; one that is gone is fine.
    ///
    /// # Errors
    /// FailedPrecondition while others build on it.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        let request = api::RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        match self.unary("Snapshots.Remove", self.snapshots().remove(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// NotFound.
    pub async fn snapshot(&self, snapshotter: &str, key: &str) -> Result<SnapshotInfo> {
        let request = api::StatSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let answer = self.unary("Snapshots.Stat", self.snapshots().stat(request)).await?;
        answer.info.map(SnapshotInfo::from).ok_or_else(|| internal("containerd gave no snapshot"))
    }

    /// All snapshots of a snapshotter.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn list_snapshots(&self, snapshotter: &str) -> Result<Vec<SnapshotInfo>> {
        let request = api::ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: Vec::new() };
        let mut stream = self.unary("Snapshots.List", self.snapshots().list(request)).await?;
        let mut list = Vec::new();
        loop {
            let next = tokio::time::timeout(self.call_timeout, stream.message())
                .await
                .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the list stopped half-way")));
            match next.map_err(|status| super::error::from_status("Snapshots.List", &status))? {
                Some(message) => list.extend(message.info.into_iter().map(SnapshotInfo::from)),
                None => return Ok(list),
            }
        }
    }

    /// What a snapshot takes on disk, without its parents. A walk for active ones.
    ///
    /// # Errors
    /// NotFound.
    pub async fn snapshot_usage(&self, snapshotter: &str, key: &str) -> Result<SnapshotUsage> {
        let request = api::UsageRequest { snapshotter: snapshotter.into(), key: key.into() };
        let limit = self.call_timeout.max(Duration::from_secs(60));
        let answer = self.unary_within(limit, "Snapshots.Usage", self.snapshots().usage(request)).await?;
        Ok(SnapshotUsage {
            bytes: u64::try_from(answer.size).unwrap_or(0),
            inodes: u64::try_from(answer.inodes).unwrap_or(0),
        })
    }
}

impl From<api::Info> for SnapshotInfo {
    fn from(from: api::Info) -> Self {
        let kind = match from.kind() {
            api::Kind::View => SnapshotKind::View,
            api::Kind::Active => SnapshotKind::Active,
            api::Kind::Committed => SnapshotKind::Committed,
            api::Kind::Unknown => SnapshotKind::Unknown,
        };
        Self { name: from.name, parent: from.parent, kind, labels: from.labels }
    }
}

/// Whether a snapshot could not be made because its folder was there already. A containerd that
/// is killed between folder and record leaves one, and gives its number to the next snapshot.
/// That one fails, and takes the folder away; the one after it succeeds.
fn was_in_the_way(error: &Error) -> bool {
    let text = error.message();
    let was = text.contains("failed to rename") && text.contains("file exists");
    if was {
        info!(%error, "a snapshot was in the way that a killed containerd has left; asking again");
    }
    was
}
