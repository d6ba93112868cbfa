//! Annotations of OCI specs (OCI-46, SBX-34, SBX-36) and labels of container records.
//!
//! | CRI | OCI annotation |
//! |---|---|
//! | sandbox id, name, namespace, uid | `io.kubernetes.cri.sandbox-id`, `-name`, `-namespace`, `-uid` |
//! | container name | `io.kubernetes.cri.container-name` |
//! | `user_specified_image`, else the image's name | `io.kubernetes.cri.image-name` |
//! | log directory (pause only) | `io.kubernetes.cri.sandbox-log-directory` |
//! | resources of the pod (pause only) | `io.kubernetes.cri.sandbox-cpu-period`, `-cpu-quota`, `-cpu-shares`, `-memory` |
//! | pod and container annotations that match the handler's globs | themselves |

use std::collections::{BTreeMap, HashMap};

use crate::glob::Glob;
use crate::proto::cri::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

const PREFIX: &str = "io.kubernetes.cri.";

/// The label that tells sandboxes from containers (COX-04).
pub const KIND_LABEL: &str = "io.cri-containerd.kind";
/// Its value for pause containers.
pub const KIND_SANDBOX: &str = "sandbox";
/// Its value for containers.
pub const KIND_CONTAINER: &str = "container";

/// containerd's limit of a label's key and value together.
const LABEL_BYTES_MAX: usize = 4096;

/// What a pause container's spec says of its pod.
#[must_use]
pub fn of_pause(pod_id: &str, pod: &PodSandboxConfig, image: &str) -> BTreeMap<String, String> {
    let mut all = of_pod(pod_id, pod);
    let mut set = |key: &str, value: String| all.insert(format!("{PREFIX}{key}"), value);
    set("container-type", KIND_SANDBOX.into());
    set("sandbox-log-directory", pod.log_directory.clone());
    set("podsandbox.image-name", image.into());
    all
}

/// What a pause container's spec says of the resources of its pod (SBX-34).
#[must_use]
pub fn of_pod_resources(pod: &PodSandboxConfig) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut set = |key: &str, value: String| all.insert(format!("{PREFIX}{key}"), value);
    if let Some(LinuxContainerResources {
        cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, ..
    }) = pod.linux.as_ref().and_then(|linux| linux.resources.as_ref())
    {
        set("sandbox-cpu-period", cpu_period.to_string());
        set("sandbox-cpu-quota", cpu_quota.to_string());
        set("sandbox-cpu-shares", cpu_shares.to_string());
        set("sandbox-memory", memory_limit_in_bytes.to_string());
    }
    all
}

/// What annotations call a container's image: as its user wrote it, else `name`.
#[must_use]
pub fn image_name<'a>(config: &'a ContainerConfig, name: &'a str) -> &'a str {
    let text = config.image.as_ref().map(|image| image.user_specified_image.as_str());
    text.filter(|text| !text.is_empty()).unwrap_or(name)
}

/// What a container's spec says of itself and its pod.
#[must_use]
pub fn of_container(
    pod_id: &str,
    pod: &PodSandboxConfig,
    container_name: &str,
    image: &str,
) -> BTreeMap<String, String> {
    let mut all = of_pod(pod_id, pod);
    let mut set = |key: &str, value: &str| all.insert(format!("{PREFIX}{key}"), value.to_owned());
    set("container-type", KIND_CONTAINER);
    set("container-name", container_name);
    set("image-name", image);
    all
}

fn of_pod(pod_id: &str, pod: &PodSandboxConfig) -> BTreeMap<String, String> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    [
        ("sandbox-id", pod_id.to_owned()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{PREFIX}{key}"), value))
    .collect()
}

/// The annotations of `from` whose key matches one of the handler's `globs`.
pub fn passed<'a>(
    from: &'a BTreeMap<String, String>,
    globs: &'a [Glob],
) -> impl Iterator<Item = (String, String)> + 'a {
    from.iter()
        .filter(|(key, _)| globs.iter().any(|glob| glob.matches(key)))
        .map(|(key, value)| (key.clone(), value.clone()))
}

/// The labels of a container record: the image's, then the pod's or container's own,
/// then the kind. What containerd would refuse stays out of this copy (SBX-14); the
/// full set is in the metadata extension.
#[must_use]
pub fn record_labels(
    own: &BTreeMap<String, String>,
    image: &BTreeMap<String, String>,
    kind: &str,
) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = image
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .chain(own.iter().map(|(key, value)| (key.as_str(), value.as_str())))
        .filter(|(key, value)| {
            key.len() + value.len() <= LABEL_BYTES_MAX
                && !key.is_empty()
                && !key.starts_with("containerd.io/")
                && !key.starts_with("io.cri-containerd")
        })
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    labels.insert(KIND_LABEL.to_owned(), kind.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_pass_by_the_globs_of_the_handler() {
        let from = ["io.x/a", "io.x.b", "other"].map(|key| (key.to_owned(), String::new())).into();
        let keys = |globs: &[&str]| {
            let globs: Vec<Glob> = globs.iter().filter_map(|glob| Glob::new(glob).ok()).collect();
            passed(&from, &globs).map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(keys(&["io.*"]), ["io.x.b"]);
        assert_eq!(keys(&["io.*/[a-c]", "other"]), ["io.x/a", "other"]);
    }

    #[test]
    fn labels_that_containerd_refuses_stay_out() {
        let own = BTreeMap::from([
            ("app".to_owned(), String::new()),
            ("long".to_owned(), "x".repeat(5000)),
            ("containerd.io/gc.root".to_owned(), "x".to_owned()),
            ("io.cri-containerd.kind".to_owned(), "container".to_owned()),
        ]);
        let image =
            BTreeMap::from([("app".to_owned(), "image".to_owned()), ("v".to_owned(), "1".to_owned())]);
        let labels = record_labels(&own, &image, KIND_SANDBOX);
        let want = [("app", ""), ("v", "1"), (KIND_LABEL, KIND_SANDBOX)];
        assert_eq!(labels, want.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
