//! Container records: identity, labels, spec, and the CRI metadata in an extension.

use std::collections::HashMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::containers_client::ContainersClient;
use prost_types::{Any, FieldMask};

use super::wire::{Wire, leased};
use super::{Containerd, MESSAGE_BYTES_MAX, nanoseconds};
use crate::error::{Result, internal};

/// Type URL of an OCI runtime spec as JSON (COX-11).
pub const SPEC_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A container record.
#[derive(Clone, Debug, Default)]
pub struct ContainerRecord {
    /// Id.
    pub id: String,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Name of the image.
    pub image: String,
    /// Name of the shim.
    pub runtime: String,
    /// Options of the shim.
    pub runtime_options: Option<Any>,
    /// The OCI spec, JSON.
    pub spec: Vec<u8>,
    /// Snapshotter of the root file system.
    pub snapshotter: String,
    /// Key of the root file system's snapshot.
    pub snapshot_key: String,
    /// Extensions by key.
    pub extensions: HashMap<String, Any>,
    /// Nanoseconds since the epoch; set by containerd.
    pub created_at: i64,
}

/// What of a record is changed.
#[derive(Clone, Debug, Default)]
pub struct ContainerUpdate {
    /// The new spec, JSON.
    pub spec: Option<Vec<u8>>,
    /// Extensions that are set.
    pub extensions: HashMap<String, Any>,
    /// All labels from now on.
    pub labels: Option<HashMap<String, String>>,
}

impl Containerd {
    fn containers(&self) -> ContainersClient<Wire> {
        ContainersClient::new(self.wire.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Stores a new record and gives its time of creation, in nanoseconds.
    ///
    /// # Errors
    /// AlreadyExists if the id is taken.
    pub async fn create_container(&self, record: ContainerRecord, lease: Option<&str>) -> Result<i64> {
        let request = api::CreateContainerRequest { container: Some(record.into()) };
        let answer =
            self.unary("Containers.Create", self.containers().create(leased(request, lease))).await?;
        Ok(nanoseconds(answer.container.and_then(|container| container.created_at)))
    }

    /// The record of `id`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn container(&self, id: &str) -> Result<ContainerRecord> {
        let request = api::GetContainerRequest { id: id.to_owned() };
        let answer = self.unary("Containers.Get", self.containers().get(request)).await?;
        answer.container.map(ContainerRecord::from).ok_or_else(|| internal("containerd gave no container"))
    }

    /// All records that match one of `filters`, which are containerd's filter expressions.
    ///
    /// The streaming form is used: the unary one fails when the list is larger than a message.
    ///
    /// # Errors
    /// Those of containerd; a partial list is an error.
    pub async fn list_containers(&self, filters: &[String]) -> Result<Vec<ContainerRecord>> {
        let mut list = Vec::new();
        self.each_container(filters, |record| list.push(record)).await?;
        Ok(list)
    }

    /// As [`Containerd::list_containers`], but each record goes to `each` as it comes.
    ///
    /// # Errors
    /// Those of containerd; a partial list is an error.
    pub async fn each_container(
        &self,
        filters: &[String],
        mut each: impl FnMut(ContainerRecord),
    ) -> Result<()> {
        let request = api::ListContainersRequest { filters: filters.to_vec() };
        let mut stream = self.unary("Containers.ListStream", self.containers().list_stream(request)).await?;
        loop {
            let next = tokio::time::timeout(self.call_timeout, stream.message())
                .await
                .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the list stopped half-way")));
            match next.map_err(|status| super::error::from_status("Containers.ListStream", &status))? {
                Some(message) => message.container.map(ContainerRecord::from).into_iter().for_each(&mut each),
                None => return Ok(()),
            }
        }
    }

    /// Changes the named parts of a record.
    ///
    /// # Errors
    /// NotFound.
    pub async fn update_container(&self, id: &str, update: ContainerUpdate) -> Result<()> {
        let mut paths = Vec::new();
        paths.extend(update.spec.is_some().then(|| "spec".to_owned()));
        paths.extend(update.extensions.keys().map(|key| format!("extensions.{key}")));
        paths.extend(update.labels.is_some().then(|| "labels".to_owned()));
        let container = api::Container {
            id: id.to_owned(),
            spec: update.spec.map(spec_any),
            extensions: update.extensions,
            labels: update.labels.unwrap_or_default(),
            ..Default::default()
        };
        let request = api::UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask { paths }),
        };
        self.unary("Containers.Update", self.containers().update(request)).await.map(drop)
    }

    /// Deletes a record; one that is gone already is fine.
    ///
    /// # Errors
    /// FailedPrecondition while a task exists.
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let request = api::DeleteContainerRequest { id: id.to_owned() };
        match self.unary("Containers.Delete", self.containers().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn spec_any(json: Vec<u8>) -> Any {
    Any { type_url: SPEC_TYPE_URL.to_owned(), value: json }
}

impl From<ContainerRecord> for api::Container {
    fn from(from: ContainerRecord) -> Self {
        Self {
            id: from.id,
            labels: from.labels,
            image: from.image,
            runtime: Some(api::container::Runtime { name: from.runtime, options: from.runtime_options }),
            spec: Some(spec_any(from.spec)),
            snapshotter: from.snapshotter,
            snapshot_key: from.snapshot_key,
            extensions: from.extensions,
            ..Default::default()
        }
    }
}

impl From<api::Container> for ContainerRecord {
    fn from(from: api::Container) -> Self {
        let (runtime, runtime_options) =
            from.runtime.map(|runtime| (runtime.name, runtime.options)).unwrap_or_default();
        Self {
            id: from.id,
            labels: from.labels,
            image: from.image,
            runtime,
            runtime_options,
            spec: from.spec.map(|any| any.value).unwrap_or_default(),
            snapshotter: from.snapshotter,
            snapshot_key: from.snapshot_key,
            extensions: from.extensions,
            created_at: nanoseconds(from.created_at),
        }
    }
}
