//! The diff service: applies a layer to a snapshot.

use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::diff_client::DiffClient;

use super::wire::leased;
use super::{Containerd, Descriptor, Mount, mounts_to};
use crate::error::{Result, internal};

impl Containerd {
    /// Unpacks the layer `layer` into `mounts` and gives the descriptor of the plain tar,
    /// whose digest is the layer's diff id.
    ///
    /// # Errors
    /// What the unpacking met; DeadlineExceeded after `limit`.
    pub async fn apply_layer(
        &self,
        layer: Descriptor,
        mounts: &[Mount],
        limit: Duration,
        lease: Option<&str>,
    ) -> Result<Descriptor> {
        let request =
            api::ApplyRequest { diff: Some(layer.into()), mounts: mounts_to(mounts), ..Default::default() };
        let mut client = DiffClient::new(self.wire.clone());
        let answer = self.unary_within(limit, "Diff.Apply", client.apply(leased(request, lease))).await?;
        answer.applied.map(Descriptor::from).ok_or_else(|| internal("containerd gave no diff"))
    }
}
