//! The image store: names for manifests.

use std::collections::HashMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::images_client::ImagesClient;
use prost_types::FieldMask;

use super::wire::{Wire, leased};
use super::{Containerd, Descriptor, MESSAGE_BYTES_MAX};
use crate::error::{Kind, Result, internal};

/// A name in the image store.
#[derive(Clone, Debug, Default)]
pub struct ImageRecord {
    /// Reference, or `sha256:…` of the config.
    pub name: String,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Index or manifest.
    pub target: Descriptor,
}

impl Containerd {
    fn images(&self) -> ImagesClient<Wire> {
        ImagesClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The record of `name`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn image(&self, name: &str) -> Result<ImageRecord> {
        let request = api::GetImageRequest { name: name.into() };
        let answer = self.unary("Images.Get", self.images().get(request)).await?;
        answer.image.map(ImageRecord::from).ok_or_else(|| internal("containerd gave no image"))
    }

    /// All records.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn list_images(&self) -> Result<Vec<ImageRecord>> {
        let answer = self.unary("Images.List", self.images().list(api::ListImagesRequest::default())).await?;
        Ok(answer.images.into_iter().map(ImageRecord::from).collect())
    }

    /// Stores `record`, or moves its name to the new target and sets its labels; labels
    /// of others stay.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn put_image(&self, record: ImageRecord, lease: Option<&str>) -> Result<()> {
        let image = api::Image::from(record);
        let create = api::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match self.unary("Images.Create", self.images().create(leased(create, lease))).await {
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            other => return other.map(drop),
        }
        let paths = std::iter::once("target".to_owned())
            .chain(image.labels.keys().map(|key| format!("labels.{key}")))
            .collect();
        let update = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        };
        self.unary("Images.Update", self.images().update(leased(update, lease))).await.map(drop)
    }

    /// Sets labels of a record; others stay.
    ///
    /// # Errors
    /// NotFound.
    pub async fn label_image(&self, name: &str, labels: HashMap<String, String>) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        // The target is not in the mask and stays; but containerd from 1.7 on dies of a
        // request without one.
        let target = Some(Default::default());
        let image = api::Image { name: name.into(), labels, target, ..Default::default() };
        let request = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        };
        self.unary("Images.Update", self.images().update(request)).await.map(drop)
    }

    /// Deletes a name; one that is gone is fine. `sync` waits for the garbage collector.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn delete_image(&self, name: &str, sync: bool) -> Result<()> {
        let request = api::DeleteImageRequest { name: name.into(), sync, ..Default::default() };
        match self.unary("Images.Delete", self.images().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

impl From<ImageRecord> for api::Image {
    fn from(from: ImageRecord) -> Self {
        Self { name: from.name, labels: from.labels, target: Some(from.target.into()), ..Default::default() }
    }
}

impl From<api::Image> for ImageRecord {
    fn from(from: api::Image) -> Self {
        Self {
            name: from.name,
            labels: from.labels,
            target: from.target.map(Descriptor::from).unwrap_or_default(),
        }
    }
}
