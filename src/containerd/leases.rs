//! Leases: what is made under one is not garbage collected while it exists.

use std::collections::HashMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::leases_client::LeasesClient;

use super::wire::Wire;
use super::{Containerd, MESSAGE_BYTES_MAX};
use crate::error::{Kind, Result};

/// A lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Id.
    pub id: String,
    /// Labels.
    pub labels: HashMap<String, String>,
}

impl Containerd {
    fn leases(&self) -> LeasesClient<Wire> {
        LeasesClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes the lease `id`; one that exists is fine.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn create_lease(&self, id: &str, labels: HashMap<String, String>) -> Result<()> {
        let request = api::CreateRequest { id: id.into(), labels };
        match self.unary("Leases.Create", self.leases().create(request)).await {
            Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes a lease; one that is gone is fine. `sync` waits for the garbage collector.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        let request = api::DeleteRequest { id: id.into(), sync };
        match self.unary("Leases.Delete", self.leases().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts an existing snapshot under the lease, too. Whether it exists is not looked
    /// at: ask afterwards.
    ///
    /// # Errors
    /// NotFound without the lease.
    pub async fn lease_snapshot(&self, id: &str, snapshotter: &str, key: &str) -> Result<()> {
        let resource = api::Resource { id: key.into(), r#type: format!("snapshots/{snapshotter}") };
        let request = api::AddResourceRequest { id: id.into(), resource: Some(resource) };
        self.unary("Leases.AddResource", self.leases().add_resource(request)).await
    }

    /// All leases.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn list_leases(&self) -> Result<Vec<Lease>> {
        let answer = self.unary("Leases.List", self.leases().list(api::ListRequest::default())).await?;
        Ok(answer.leases.into_iter().map(|lease| Lease { id: lease.id, labels: lease.labels }).collect())
    }

    /// The snapshots that the lease holds: snapshotter and key.
    ///
    /// # Errors
    /// NotFound without the lease.
    pub async fn leased_snapshots(&self, id: &str) -> Result<Vec<(String, String)>> {
        let request = api::ListResourcesRequest { id: id.into() };
        let answer = self.unary("Leases.ListResources", self.leases().list_resources(request)).await?;
        let snapshots = answer.resources.into_iter().filter_map(|resource| {
            let snapshotter = resource.r#type.strip_prefix("snapshots/")?.to_owned();
            Some((snapshotter, resource.id))
        });
        Ok(snapshots.collect())
    }
}
