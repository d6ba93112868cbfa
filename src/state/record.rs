//! The metadata in containerd's container records, in the built-in plugin's own JSON
//! (COX-05 … COX-07). Keys that we do not know are kept when a record is written again.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::containerd::{Any, ContainerRecord};
use crate::error::{Result, precondition};
use crate::proto::cri::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

/// Extension key of a pod's metadata.
pub const SANDBOX_EXTENSION: &str = "io.cri-containerd.sandbox.metadata";
/// Extension key of a container's metadata.
pub const CONTAINER_EXTENSION: &str = "io.cri-containerd.container.metadata";
/// Label of a pod whose making has not ended: a key of our own. A record that still has
/// it after a restart is rolled back (design D5).
pub const CREATING_LABEL: &str = "longshore.io/creating";
/// Label of a pod's lease: tells ours from others'.
pub const LEASE_LABEL: &str = "longshore.io/pod";

/// Extension key of what UpdatePodSandboxResources said of a pod. The plugin has it in the
/// record of containerd's sandbox store, under this key and in this form.
const UPDATED_RESOURCES: &str = "updated-resources";
const UPDATED_RESOURCES_TYPE: &str = "io.containerd.cri.v1/UpdatedResources";

const SANDBOX_TYPE: &str = "github.com/containerd/cri/pkg/store/sandbox/Metadata";
const CONTAINER_TYPE: &str = "github.com/containerd/cri/pkg/store/container/Metadata";
const VERSION: &str = "v1";

/// A pod's metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxMetadata {
    /// Sandbox id.
    #[serde(rename = "ID")]
    pub id: String,
    /// `name_namespace_uid_attempt`
    #[serde(rename = "Name")]
    pub name: String,
    /// The request.
    #[serde(rename = "Config", deserialize_with = "null_is_default")]
    pub config: PodSandboxConfig,
    /// The pinned network namespace; empty with host network.
    #[serde(rename = "NetNSPath")]
    pub netns_path: String,
    /// The pod's first address.
    #[serde(rename = "IP")]
    pub ip: String,
    /// The others.
    #[serde(rename = "AdditionalIPs")]
    pub additional_ips: Option<Vec<String>>,
    /// As asked for; empty for the default one.
    #[serde(rename = "RuntimeHandler")]
    pub runtime_handler: String,
    /// What CNI answered, in go-cni's form.
    #[serde(rename = "CNIResult")]
    pub cni_result: Value,
    /// SELinux label of the processes.
    #[serde(rename = "ProcessLabel")]
    pub process_label: String,
    /// Keys of others.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A container's metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMetadata {
    /// Container id.
    #[serde(rename = "ID")]
    pub id: String,
    /// `container_pod_namespace_uid_attempt`
    #[serde(rename = "Name")]
    pub name: String,
    /// Its pod.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// The request.
    #[serde(rename = "Config", deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// Id of the image.
    #[serde(rename = "ImageRef")]
    pub image_ref: String,
    /// Full path of the log; empty for none.
    #[serde(rename = "LogPath")]
    pub log_path: String,
    /// Stop signal by config or image; empty for SIGTERM.
    #[serde(rename = "StopSignal")]
    pub stop_signal: String,
    /// SELinux label of the processes.
    #[serde(rename = "ProcessLabel")]
    pub process_label: String,
    /// Keys of others.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Resources of a pod as they were updated last (SBX-57).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdatedResources {
    /// What the sandbox itself needs.
    pub overhead: Option<LinuxContainerResources>,
    /// What its containers may use together.
    pub resources: Option<LinuxContainerResources>,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    #[serde(rename = "Version")]
    version: String,
    #[serde(rename = "Metadata")]
    metadata: T,
}

/// The extension of a pod's record.
#[must_use]
pub fn sandbox_extension(metadata: &SandboxMetadata) -> HashMap<String, Any> {
    extension(SANDBOX_EXTENSION, SANDBOX_TYPE, metadata)
}

/// The extension of a container's record.
#[must_use]
pub fn container_extension(metadata: &ContainerMetadata) -> HashMap<String, Any> {
    extension(CONTAINER_EXTENSION, CONTAINER_TYPE, metadata)
}

/// The extension of updated resources.
#[must_use]
pub fn updated_resources_extension(updated: &UpdatedResources) -> HashMap<String, Any> {
    let value = serde_json::to_vec(updated).expect("resources have text keys only");
    let any = Any { type_url: UPDATED_RESOURCES_TYPE.to_owned(), value };
    HashMap::from([(UPDATED_RESOURCES.to_owned(), any)])
}

/// The updated resources of a pod's record; none where they were never updated.
///
/// # Errors
/// FailedPrecondition when they cannot be read.
pub fn updated_resources(record: &ContainerRecord) -> Result<Option<UpdatedResources>> {
    let Some(any) = record.extensions.get(UPDATED_RESOURCES) else { return Ok(None) };
    serde_json::from_slice(&any.value).map(Some).map_err(|error| {
        precondition(format!("container record {}: extension {UPDATED_RESOURCES:?}: {error}", record.id))
    })
}

fn extension<T: Serialize>(key: &str, type_url: &str, metadata: T) -> HashMap<String, Any> {
    let versioned = Versioned { version: VERSION.to_owned(), metadata };
    let value = serde_json::to_vec(&versioned).expect("metadata has text keys only");
    HashMap::from([(key.to_owned(), Any { type_url: type_url.to_owned(), value })])
}

/// The metadata of a pod's record.
///
/// # Errors
/// FailedPrecondition when it is missing or of another version.
pub fn sandbox_metadata(record: &ContainerRecord) -> Result<SandboxMetadata> {
    metadata(record, SANDBOX_EXTENSION)
}

/// The metadata of a container's record.
///
/// # Errors
/// FailedPrecondition when it is missing or of another version.
pub fn container_metadata(record: &ContainerRecord) -> Result<ContainerMetadata> {
    metadata(record, CONTAINER_EXTENSION)
}

fn metadata<T: DeserializeOwned>(record: &ContainerRecord, key: &str) -> Result<T> {
    let id = &record.id;
    let any = record
        .extensions
        .get(key)
        .ok_or_else(|| precondition(format!("container record {id}: no extension {key:?}")))?;
    let versioned: Versioned<T> = serde_json::from_slice(&any.value)
        .map_err(|error| precondition(format!("container record {id}: extension {key:?}: {error}")))?;
    if versioned.version != VERSION {
        let version = versioned.version;
        return Err(precondition(format!(
            "container record {id}: metadata version {version:?} is not known"
        )));
    }
    Ok(versioned.metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_others_are_kept() {
        let json = r#"{"Version":"v1","Metadata":{"ID":"a","Name":"n","Config":{"hostname":"h"},"NetNSPath":"","IP":"","AdditionalIPs":null,"RuntimeHandler":"","CNIResult":null,"ProcessLabel":"","Later":{"x":1}}}"#;
        let any = Any { type_url: SANDBOX_TYPE.into(), value: json.into() };
        let record = ContainerRecord {
            id: "a".into(),
            extensions: HashMap::from([(SANDBOX_EXTENSION.to_owned(), any)]),
            ..Default::default()
        };
        let metadata = sandbox_metadata(&record).expect("reads");
        assert_eq!(metadata.config.hostname, "h");
        let again = sandbox_extension(&metadata).remove(SANDBOX_EXTENSION).expect("written");
        assert_eq!(
            serde_json::from_slice::<Value>(&again.value).expect("JSON"),
            serde_json::from_str::<Value>(json).expect("JSON")
        );
    }

    /// What containerd's own plugin wrote, of three versions: read, written again, the same.
    #[test]
    fn records_of_the_builtin_plugin_survive_a_round_trip() {
        fn round_trip<T: DeserializeOwned + Serialize>(version: &str, name: &str, key: &str) -> T {
            let path =
                format!("{}/tests/data/records/{version}/{name}.record.json", env!("CARGO_MANIFEST_DIR"));
            let record: Value =
                serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("JSON");
            let versioned = record["Extensions"][key]["value"].clone();
            let read: Versioned<T> = serde_json::from_value(versioned.clone()).expect("reads");
            assert_eq!(serde_json::to_value(&read).expect("writes"), versioned, "{version} {name}");
            read.metadata
        }
        for version in ["1.6.20", "1.7.24", "2.3.4"] {
            let pod: SandboxMetadata = round_trip(version, "sandbox", SANDBOX_EXTENSION);
            assert_eq!(pod.config.metadata.as_ref().map(|metadata| metadata.attempt), Some(1));
            assert!(pod.ip.starts_with("10.88.") && pod.cni_result["Interfaces"]["eth0"].is_object());
            for name in ["created", "running", "exited"] {
                let container: ContainerMetadata = round_trip(version, name, CONTAINER_EXTENSION);
                assert_eq!(container.sandbox_id, pod.id);
            }
        }
    }

    /// SBX-57.
    #[test]
    fn updated_resources_have_the_plugins_form() {
        let updated = UpdatedResources {
            overhead: None,
            resources: Some(LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        };
        let mut record = ContainerRecord { id: "a".into(), ..Default::default() };
        assert_eq!(updated_resources(&record), Ok(None));
        record.extensions = updated_resources_extension(&updated);
        let any = &record.extensions[UPDATED_RESOURCES];
        assert_eq!(any.value, br#"{"Overhead":null,"Resources":{"cpu_shares":512}}"#);
        assert_eq!(updated_resources(&record), Ok(Some(updated)));
    }

    #[test]
    fn a_record_without_metadata_is_told_apart() {
        let record = ContainerRecord { id: "a".into(), ..Default::default() };
        assert!(sandbox_metadata(&record).is_err_and(|error| error.message().contains("no extension")));
    }
}
