//! ContainerStatus.

use serde_json::{Value, json};

use super::Containers;
use crate::error::Result;
use crate::image::Image;
use crate::proto::cri;
use crate::spec;
use crate::spec::process::cri_signal;
use crate::state::Container;
use crate::state::record::ContainerMetadata;

impl Containers {
    /// The status of a container, and with `verbose` the details that debuggers read.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse> {
        let container = self.store.container(id)?;
        let info = if verbose { self.info(&container).await? } else { Default::default() };
        Ok(cri::ContainerStatusResponse { status: Some(self.status_of(&container)), info })
    }

    /// The status message of a container, from memory.
    #[must_use]
    pub fn status_of(&self, container: &Container) -> cri::ContainerStatus {
        let metadata = &container.metadata;
        let config = &metadata.config;
        let status = container.status();
        let image = self.images.find(&metadata.image_ref);
        let digest = image.as_ref().and_then(|image| image.repo_digests().into_iter().next());
        cri::ContainerStatus {
            id: container.id.to_string(),
            metadata: config.metadata.clone(),
            state: status.state() as i32,
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: if status.unknown { crate::state::container::UNKNOWN_CODE } else { status.exit_code },
            image: Some(image_spec(metadata, image.as_deref())),
            image_ref: digest.unwrap_or_else(|| metadata.image_ref.clone()),
            reason: status.shown_reason(),
            message: status.message.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: metadata.log_path.clone(),
            resources: Some(cri::ContainerResources { linux: Some(status.resources), windows: None }),
            image_id: metadata.image_ref.clone(),
            user: Some(cri::ContainerUser {
                linux: Some(cri::LinuxContainerUser {
                    uid: container.user.uid.into(),
                    gid: container.user.gid.into(),
                    supplemental_groups: container
                        .user
                        .additional_gids
                        .iter()
                        .map(|gid| (*gid).into())
                        .collect(),
                }),
            }),
            stop_signal: match config.stop_signal() {
                cri::Signal::RuntimeDefault => cri_signal(&metadata.stop_signal),
                asked => asked,
            } as i32,
        }
    }

    /// The verbose part (CTR-29).
    async fn info(&self, container: &Container) -> Result<std::collections::BTreeMap<String, String>> {
        let record = match self.containerd.container(container.id.as_str()).await {
            Err(error) if error.is_not_found() => None,
            other => Some(other?),
        };
        let status = container.status();
        let runtime_spec: Value = record
            .as_ref()
            .and_then(|record| serde_json::from_slice(&record.spec).ok())
            .unwrap_or(Value::Null);
        let info = json!({
            "sandboxID": container.pod_id.as_str(),
            "pid": status.pid,
            "removing": status.removing,
            "snapshotKey": record.as_ref().map(|record| record.snapshot_key.as_str()).unwrap_or_default(),
            "snapshotter": record.as_ref().map(|record| record.snapshotter.as_str()).unwrap_or_default(),
            "runtimeType": record.as_ref().map(|record| record.runtime.as_str()).unwrap_or_default(),
            "runtimeOptions": Value::Null,
            "config": container.metadata.config,
            "runtimeSpec": runtime_spec,
        });
        Ok(verbose_info(&info))
    }
}

/// The info map of a verbose answer: one key, its value JSON text.
#[must_use]
pub fn verbose_info(info: &Value) -> std::collections::BTreeMap<String, String> {
    [("info".to_owned(), info.to_string())].into()
}

/// What status and list say of the image: a tag of it, else what was asked for; never
/// empty (CTR-24).
pub(super) fn image_spec(metadata: &ContainerMetadata, image: Option<&Image>) -> cri::ImageSpec {
    let asked = metadata.config.image.clone().unwrap_or_default();
    let tag = image.and_then(|image| image.repo_tags().into_iter().next());
    let name = tag.or_else(|| Some(asked.user_specified_image.clone()).filter(|text| !text.is_empty()));
    cri::ImageSpec { image: name.unwrap_or_else(|| asked.image.clone()), ..asked }
}

/// The user that a record's spec gives the first process.
#[must_use]
pub fn user_of(record_spec: &[u8]) -> spec::oci::User {
    let spec: Option<spec::Spec> = serde_json::from_slice(record_spec).ok();
    spec.and_then(|spec| spec.process).map(|process| process.user).unwrap_or_default()
}
