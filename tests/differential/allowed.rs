//! The differences that are meant: the rows of docs/differences.md.

use serde_json::Value;

use crate::harness::Version;
use crate::normal::Found;

/// A place where both differ, with the request.
pub(crate) struct Case<'a> {
    pub(crate) call: &'static str,
    pub(crate) request: &'a Value,
    pub(crate) found: &'a Found,
    pub(crate) version: &'a Version,
}

/// A difference that is meant.
pub(crate) struct Allowed {
    pub(crate) id: &'static str,
    pub(crate) applies: fn(&Case<'_>) -> bool,
}

impl Case<'_> {
    /// Whether the place is in one of `paths`.
    fn is_in(&self, call: &str, paths: &[&str]) -> bool {
        self.call == call && paths.iter().any(|path| self.found.path.starts_with(path))
    }

    /// Whether the place itself is one of `paths`, indices aside.
    fn is(&self, call: &str, path: &str) -> bool {
        self.call == call && self.found.path.replace(|c: char| c.is_ascii_digit(), "") == path
    }

    /// Whether the answers begin so, and ours holds one of `words`.
    fn refused(&self, ours: &str, theirs: &str, words: &[&str]) -> bool {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (a, b) = (text(&self.found.ours), text(&self.found.theirs));
        self.found.path == ".code"
            && a.starts_with(ours)
            && b.starts_with(theirs)
            && (words.is_empty() || words.iter().any(|word| a.contains(word)))
    }

    /// Whether the plugin refuses with one of `words`, and longshore does not.
    fn only_theirs(&self, words: &[&str]) -> bool {
        let theirs = self.found.theirs.as_str().unwrap_or_default();
        self.found.path == ".code"
            && self.found.ours == "Ok"
            && words.iter().any(|word| theirs.contains(word))
    }

    /// Whether a value in the request at `pointer` holds such text.
    fn asks(&self, pointer: &str, is_such: fn(&str) -> bool) -> bool {
        fn any(value: &Value, is_such: fn(&str) -> bool) -> bool {
            match value {
                Value::String(text) => is_such(text),
                Value::Array(list) => list.iter().any(|value| any(value, is_such)),
                Value::Object(map) => map.iter().any(|(key, value)| is_such(key) || any(value, is_such)),
                _ => false,
            }
        }
        self.request.pointer(pointer).is_some_and(|value| any(value, is_such))
    }

    /// Whether the request has a pod with a user namespace.
    fn has_user_namespace(&self) -> bool {
        let options = "/pod/linux/security_context/namespace_options/userns_options/uids";
        self.request.pointer(options).is_some()
    }

    fn is_before(&self, major: u32, minor: u32) -> bool {
        (self.version.major, self.version.minor) < (major, minor)
    }

    fn is_of_capabilities(&self) -> bool {
        self.is_in("container", &[".spec.process.capabilities", ".spec.linux.seccomp"])
            || self.is_in("process", &[".status"])
                && self.found.ours.as_str().is_some_and(|line| line.starts_with("Cap"))
    }
}

const CAPABILITIES: &str = "/container/linux/security_context/capabilities";

pub(crate) const ALL: &[Allowed] = &[
    Allowed { id: "oci-version", applies: |case| case.found.path.ends_with(".ociVersion") },
    Allowed { id: "record-sandbox", applies: |case| case.is("container", ".sandbox") },
    Allowed {
        id: "reserved-labels",
        applies: |case| {
            let labels = [".labels.containerd.io/", ".labels.io.cri-containerd"];
            case.is_in("pause", &labels) || case.is_in("container", &labels)
        },
    },
    Allowed {
        id: "refused-labels",
        applies: |case| case.only_theirs(&["key required", "label key and value length"]),
    },
    Allowed {
        id: "ambient-capabilities",
        applies: |case| {
            case.is_of_capabilities()
                && case.asks(&format!("{CAPABILITIES}/add_ambient_capabilities"), |_| true)
        },
    },
    Allowed {
        id: "capability-prefix",
        applies: |case| {
            case.is_of_capabilities()
                && case.asks(CAPABILITIES, |name| name.to_ascii_uppercase().starts_with("CAP_"))
        },
    },
    Allowed {
        id: "pause-groups",
        applies: |case| {
            case.is_in("pause", &[".spec.process.user.additionalGids"])
                && case.request.pointer("/config/linux/security_context/supplemental_groups").is_some()
        },
    },
    Allowed {
        id: "host-sys",
        applies: |case| {
            let node = case
                .request
                .pointer("/pod/linux/security_context/namespace_options/network")
                .or_else(|| case.request.pointer("/config/linux/security_context/namespace_options/network"));
            (case.has_user_namespace()
                || case
                    .request
                    .pointer("/config/linux/security_context/namespace_options/userns_options/uids")
                    .is_some())
                && node.is_some_and(|mode| *mode == 2)
                && (case.is_in("container", &[".spec.mounts"])
                    || case.is_in("pause", &[".spec.mounts"])
                    || case.is_in("process", &[".mounts"]))
        },
    },
    Allowed {
        id: "own-files-mapped",
        applies: |case| {
            let path = case.found.path.as_str();
            let is_mapping = path.ends_with(".uidMappings") || path.ends_with(".gidMappings");
            let ours = case.found.ours.as_str().unwrap_or_default();
            let theirs = case.found.theirs.as_str().unwrap_or_default();
            case.has_user_namespace()
                && (case.call == "container" && is_mapping && case.found.ours.is_null()
                    || case.call == "process" && theirs.replace(",idmapped", "") == ours)
        },
    },
    Allowed { id: "image-sub-path", applies: |case| case.only_theirs(&["path escapes from parent"]) },
    Allowed {
        id: "another-pod-config",
        applies: |case| case.request["another_pod_config"] == true && !case.found.path.contains("code"),
    },
    Allowed { id: "status-image", applies: |case| case.is_in("ContainerStatus", &[".status.image."]) },
    Allowed {
        id: "status-pod",
        applies: |case| {
            case.is("PodSandboxStatus", ".timestamp")
                || case.is("PodSandboxStatus", ".info.runtimeHandler")
                || case.is("PodSandboxStatus", ".status.linux.namespaces.options")
        },
    },
    Allowed {
        id: "status-stop-signal",
        applies: |case| case.is("ContainerStatus", ".status.stop_signal") && case.found.theirs.is_null(),
    },
    Allowed {
        id: "config-sysctls",
        applies: |case| {
            let metadata = ".extensions.io.cri-containerd.sandbox.metadata.value.Metadata.Config.linux.sysctls.net.ipv4.";
            case.found.ours.is_null()
                && (case.is_in("pause", &[metadata])
                    || case.is_in("PodSandboxStatus", &[".info.config.linux.sysctls.net.ipv4."]))
        },
    },
    Allowed {
        id: "config-image-volumes",
        applies: |case| {
            let path = case.found.path.replace(|c: char| c.is_ascii_digit(), "");
            path.contains(".mounts[].")
                && (path.ends_with(".host_path") || path.ends_with(".image.image_ref"))
        },
    },
    Allowed {
        id: "image-volume-views",
        applies: |case| {
            let theirs = case.found.theirs.as_str().and_then(|mount| mount.strip_suffix(" overlay"));
            let ours = case.found.ours.as_str().and_then(|mount| mount.rsplit_once(' '));
            case.is("process", ".mounts[]")
                && case.asks("/container/mounts", |key| key == "image")
                && theirs.is_some()
                && theirs == ours.map(|(mount, _)| mount)
        },
    },
    Allowed {
        id: "user-namespaces",
        applies: |case| {
            let words = ["user namespace", "uid mapping", "gid mapping", "is not mapped"];
            case.refused("InvalidArgument", "Ok", &words)
                || case.only_theirs(&["user namespace config for sandbox"])
        },
    },
    Allowed {
        id: "mount-options",
        applies: |case| {
            case.asks("/container/mounts", |key| key == "mount_options")
                && (case.found.path.contains(".mount_options")
                    || case.is_in("container", &[".spec.mounts"])
                    || case.is_in("process", &[".mounts"])
                    || case.refused("InvalidArgument", "", &["mount option"]))
        },
    },
    Allowed {
        id: "codes-inner",
        applies: |case| {
            let theirs = case.found.theirs.as_str().unwrap_or_default();
            (case.refused("FailedPrecondition", "NotFound", &[])
                || case.refused("InvalidArgument", "NotFound", &[]))
                && ["resolve image", "invalid target container", "image volume"]
                    .iter()
                    .any(|word| theirs.contains(word))
        },
    },
    Allowed {
        id: "codes-order",
        applies: |case| {
            // Of two things that are wrong the two may see another one first.
            case.refused("Unknown", "InvalidArgument", &[])
                && case.asks("/container/labels", |text| text.len() > 4000)
        },
    },
    Allowed { id: "codes-arguments", applies: |case| case.refused("InvalidArgument", "Unknown", &[]) },
    Allowed { id: "codes-state", applies: |case| case.refused("FailedPrecondition", "Unknown", &[]) },
    Allowed {
        id: "namespace-modes",
        applies: |case| case.refused("InvalidArgument", "Ok", &["namespace mode"]),
    },
    Allowed {
        id: "unknown-values",
        applies: |case| case.refused("InvalidArgument", "Ok", &["is not known"]),
    },
    Allowed {
        id: "runtime-values",
        applies: |case| {
            case.refused(
                "InvalidArgument",
                "Ok",
                &["is negative", "is not from -1000 to 1000", "supplemental group"],
            )
        },
    },
    Allowed {
        id: "mount-arguments",
        applies: |case| {
            let words = [
                "is not absolute",
                "no container_path",
                "image_sub_path without an image",
                "permissions",
                "mappings",
            ];
            case.refused("InvalidArgument", "Ok", &words)
        },
    },
    Allowed {
        id: "seccomp-profiles",
        applies: |case| case.refused("InvalidArgument", "Ok", &["seccomp profile"]),
    },
    Allowed {
        id: "apparmor-profiles",
        applies: |case| case.refused("InvalidArgument", "Ok", &["AppArmor profile"]),
    },
    Allowed {
        id: "older-plugins",
        applies: |case| {
            let path = case.found.path.as_str();
            let newer = [".image_ref", ".image_sub_path", ".stop_signal", ".image_id", ".StopSignal"];
            let words = ["stop signal", "has no folder", "image_sub_path"];
            case.is_before(2, 3)
                && (newer.iter().any(|end| path.ends_with(end))
                    || path.contains(".seccomp.")
                    || case.is("container", ".spec.mounts[].source")
                    || case.refused("InvalidArgument", "Ok", &words)
                    || case.refused("FailedPrecondition", "Ok", &words))
        },
    },
];
