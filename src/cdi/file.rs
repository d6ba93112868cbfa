//! A CDI spec file: its form, and what makes it valid.
//!
//! The Container Device Interface's SPEC.md has the fields. A file says by `cdiVersion`
//! which of them its author knew, and one that uses a younger field, or one that nobody
//! knows, is not valid.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_saphyr::options;

use super::names;

/// The versions that there are, and that files may name.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// Bytes of all annotations of one file or device.
const ANNOTATION_BYTES_MAX: usize = 256 << 10;

/// The hooks of the OCI runtime spec.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A spec file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    /// `vendor.com/class`
    pub(super) kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For every container that gets any of the devices.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

/// What is changed in a container.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) hooks: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// An interface of the host that moves into the container.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

/// A mount.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

/// A hook. What it serialises to is the OCI form.
#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    #[serde(skip_serializing)]
    pub(super) hook_name: String,
    path: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

/// Cache and memory bandwidth. What it serialises to is the OCI form.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID", skip_serializing_if = "String::is_empty")]
    clos_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schemata: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_monitoring: Option<bool>,
    /// These two were there from 0.7.0 to 1.0.0.
    #[serde(rename = "enableCMT", skip_serializing_if = "Option::is_none")]
    enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM", skip_serializing_if = "Option::is_none")]
    enable_mbm: Option<bool>,
}

/// YAML and Go's JSON have `null` for what is not there.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Reads and checks a spec; gives what is wrong with it.
pub(super) fn parse(text: &str, is_json: bool) -> Result<Spec, String> {
    let spec: Spec = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        // As Go's YAML reads them: 0660 is octal.
        let options = options! { legacy_octal_numbers: true, with_snippet: false };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?
    };
    check(&spec)?;
    Ok(spec)
}

fn check(spec: &Spec) -> Result<(), String> {
    check_version(spec)?;
    names::split_kind(&spec.kind).map_err(|wrong| format!("kind {:?}: {wrong}", spec.kind))?;
    check_annotations(&spec.annotations)?;
    check_edits(&spec.container_edits)?;
    if spec.devices.is_empty() {
        return Err("it has no devices".into());
    }
    for (index, device) in spec.devices.iter().enumerate() {
        let name = &device.name;
        let wrong = |wrong: String| format!("device {name:?}: {wrong}");
        names::check_device(name).map_err(wrong)?;
        if spec.devices[..index].iter().any(|other| other.name == *name) {
            return Err(format!("device {name:?} is there twice"));
        }
        check_annotations(&device.annotations).map_err(wrong)?;
        if device.container_edits == Edits::default() {
            return Err(format!("device {name:?} has no containerEdits"));
        }
        check_edits(&device.container_edits).map_err(wrong)?;
    }
    Ok(())
}

/// Whether the version is known, and has all that the spec uses.
fn check_version(spec: &Spec) -> Result<(), String> {
    let version = spec.cdi_version.strip_prefix('v').unwrap_or(&spec.cdi_version);
    let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let Some(own) = place(version) else {
        let (first, last) = (VERSIONS[0], VERSIONS[VERSIONS.len() - 1]);
        return Err(format!(
            "cdiVersion {:?} is not known, those from {first} to {last} are",
            spec.cdi_version
        ));
    };
    for (since, what, is_used) in used(spec) {
        if is_used && place(since).is_some_and(|since| since > own) {
            return Err(format!("cdiVersion is {version}, but {what} needs {since} or later"));
        }
    }
    let all = spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits]);
    let mut rdt = all.filter_map(|edits| edits.intel_rdt.as_ref());
    if place("1.1.0") <= Some(own) && rdt.any(|rdt| rdt.enable_cmt.or(rdt.enable_mbm).is_some()) {
        return Err("enableCMT and enableMBM went with cdiVersion 1.1.0".into());
    }
    Ok(())
}

/// What younger versions brought: since when, what, and whether the spec uses it.
fn used(spec: &Spec) -> [(&'static str, &'static str, bool); 10] {
    let edits = || spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits]);
    let rdt = || edits().filter_map(|edits| edits.intel_rdt.as_ref());
    let class = spec.kind.split_once('/').map_or("", |(_, class)| class);
    let starts_with_digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
    [
        (
            "0.4.0",
            "the type of a mount",
            edits().any(|e| e.mounts.iter().any(|mount| !mount.kind.is_empty())),
        ),
        ("0.5.0", "a device name that begins with a digit", spec.devices.iter().any(starts_with_digit)),
        (
            "0.5.0",
            "hostPath of a device node",
            edits().any(|e| e.device_nodes.iter().any(|node| !node.host_path.is_empty())),
        ),
        (
            "0.6.0",
            "annotations",
            !spec.annotations.is_empty() || spec.devices.iter().any(|device| !device.annotations.is_empty()),
        ),
        ("0.6.0", "a dot in the class", class.contains('.')),
        ("0.7.0", "intelRdt", rdt().next().is_some()),
        ("0.7.0", "additionalGids", edits().any(|e| !e.additional_gids.is_empty())),
        ("1.1.0", "schemata of intelRdt", rdt().any(|rdt| rdt.schemata.is_some())),
        ("1.1.0", "enableMonitoring of intelRdt", rdt().any(|rdt| rdt.enable_monitoring == Some(true))),
        ("1.1.0", "netDevices", edits().any(|e| !e.net_devices.is_empty())),
    ]
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ANNOTATION_BYTES_MAX {
        return Err(format!("annotations have {bytes} bytes, more than {ANNOTATION_BYTES_MAX}"));
    }
    match annotations.keys().find(|key| !is_annotation_key(key)) {
        Some(key) => Err(format!("annotation {key:?} is no name with an optional domain in front")),
        None => Ok(()),
    }
}

/// Kubernetes' form of the keys: `[domain/]name`.
fn is_annotation_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let is_framed = |text: &str, length_max: usize, others: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= length_max
            && ends(text.chars().next())
            && ends(text.chars().next_back())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    let is_domain = |domain: &str| {
        domain.len() <= 253 && domain.split('.').all(|label| is_framed(label, domain.len(), "-"))
    };
    is_framed(name, 63, "-_.") && domain.is_none_or(is_domain)
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    check_env(&edits.env)?;
    for DeviceNode { path, kind, permissions, .. } in &edits.device_nodes {
        if path.is_empty() {
            return Err("a device node has no path".into());
        }
        if !["", "b", "c", "u", "p"].contains(&kind.as_str()) {
            return Err(format!("device node {path:?}: type {kind:?} is not b, c, u or p"));
        }
        if permissions != "none" && !permissions.bytes().all(|c| b"rwm".contains(&c)) {
            return Err(format!(
                "device node {path:?}: permissions {permissions:?} are not made of r, w and m"
            ));
        }
    }
    for Hook { hook_name, path, env, timeout, .. } in &edits.hooks {
        if !HOOKS.contains(&hook_name.as_str()) {
            return Err(format!("hook {hook_name:?} is not known"));
        }
        if path.is_empty() {
            return Err(format!("hook {hook_name:?} has no path"));
        }
        if timeout.is_some_and(|timeout| timeout <= 0) {
            return Err(format!("hook {hook_name:?}: the timeout must be greater than 0"));
        }
        check_env(env).map_err(|wrong| format!("hook {hook_name:?}: {wrong}"))?;
    }
    for mount in &edits.mounts {
        if mount.host_path.is_empty() || mount.container_path.is_empty() {
            return Err("a mount needs hostPath and containerPath".into());
        }
    }
    if let Some(IntelRdt { clos_id: id, .. }) = &edits.intel_rdt
        && id != "/"
        && (id.len() >= 4096 || id == "." || id == ".." || id.contains(['/', '\n']))
    {
        return Err(format!("closID {id:?} cannot be the name of a folder"));
    }
    check_net_devices(&edits.net_devices)
}

fn check_env(env: &[String]) -> Result<(), String> {
    match env.iter().find(|variable| variable.find('=').is_none_or(|place| place == 0)) {
        // The value may be a secret.
        Some(wrong) => {
            let name = wrong.split('=').next().unwrap_or_default();
            Err(format!("the variable {name:?} is not NAME=VALUE"))
        }
        None => Ok(()),
    }
}

fn check_net_devices(devices: &[NetDevice]) -> Result<(), String> {
    for (index, device) in devices.iter().enumerate() {
        let NetDevice { host_interface_name, name } = device;
        if host_interface_name.is_empty() || name.is_empty() {
            return Err("a network device needs hostInterfaceName and name".into());
        }
        let same =
            |other: &NetDevice| other.host_interface_name == *host_interface_name || other.name == *name;
        if devices[..index].iter().any(same) {
            return Err(format!("network device {host_interface_name:?} ({name:?}) is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
