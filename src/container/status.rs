//! ContainerStatus.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Value, json};

use super::Containers;
use crate::containerd::ContainerRecord;
use crate::error::Result;
use crate::image::Image;
use crate::proto::{cri, runc, runtimeoptions};
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
            "runtimeOptions": runtime_options(record.as_ref()),
            "config": container.metadata.config,
            "runtimeSpec": runtime_spec,
        });
        Ok(verbose_info(&info))
    }
}

/// The shim's options as the plugin shows them: by the names of its protobuf fields, without
/// those that are not set.
#[must_use]
pub fn runtime_options(record: Option<&ContainerRecord>) -> Value {
    let Some(any) = record.and_then(|record| record.runtime_options.as_ref()) else { return Value::Null };
    let value = any.value.as_slice();
    let fields = match any.type_url.rsplit('/').next() {
        Some("containerd.runc.v1.Options") => runc::Options::decode(value).ok().map(|options| {
            json!({
                "no_pivot_root": options.no_pivot_root,
                "no_new_keyring": options.no_new_keyring,
                "shim_cgroup": options.shim_cgroup,
                "io_uid": options.io_uid,
                "io_gid": options.io_gid,
                "binary_name": options.binary_name,
                "root": options.root,
                "systemd_cgroup": options.systemd_cgroup,
                "criu_image_path": options.criu_image_path,
                "criu_work_path": options.criu_work_path,
            })
        }),
        Some("runtimeoptions.v1.Options") => runtimeoptions::Options::decode(value).ok().map(|options| {
            json!({
                "type_url": options.type_url,
                "config_path": options.config_path,
                "config_body": STANDARD.encode(options.config_body),
            })
        }),
        _ => None,
    };
    let Some(Value::Object(fields)) = fields else { return Value::Null };
    let is_set = |value: &Value| *value != json!(false) && *value != json!(0) && *value != json!("");
    fields.into_iter().filter(|(_, value)| is_set(value)).collect()
}

/// The info map of a verbose answer: one key, its value JSON text.
#[must_use]
pub fn verbose_info(info: &Value) -> std::collections::BTreeMap<String, String> {
    [("info".to_owned(), info.to_string())].into()
}

/// What the status says of the image: a tag of it, else what was asked for; never
/// empty (CTR-24).
fn image_spec(metadata: &ContainerMetadata, image: Option<&Image>) -> cri::ImageSpec {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::Any;

    fn shown(type_url: &str, value: Vec<u8>) -> Value {
        let options = Some(Any { type_url: type_url.into(), value });
        runtime_options(Some(&ContainerRecord { runtime_options: options, ..Default::default() }))
    }

    #[test]
    fn options_of_shims_are_shown_by_name() {
        let options = runc::Options { root: "/run/x".into(), systemd_cgroup: true, ..Default::default() };
        let want = json!({ "root": "/run/x", "systemd_cgroup": true });
        assert_eq!(shown("containerd.runc.v1.Options", options.encode_to_vec()), want);
        let options = runtimeoptions::Options { config_body: b"a = 1".to_vec(), ..Default::default() };
        assert_eq!(
            shown("runtimeoptions.v1.Options", options.encode_to_vec()),
            json!({ "config_body": "YSA9IDE=" })
        );
        assert_eq!((shown("else", vec![]), runtime_options(None)), (Value::Null, Value::Null));
    }
}
