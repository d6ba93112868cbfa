//! What specs start from: containerd's default spec, or the base spec of a handler
//! (OCI-48). The parts are laid over it.
//!
//! | part | default | with a base spec |
//! |---|---|---|
//! | `process` | 14 capabilities, `/`; no limits, no filter | the base's |
//! | `mounts` | proc, /dev, devpts, shm, mqueue, sysfs (OCI-26) | the base's, without /run |
//! | `linux.namespaces` | pid, ipc, uts, mount, network | the base's |
//! | `linux.resources.devices` | everything is forbidden | the base's |
//! | `linux.cgroupsPath` | given | given, whatever the base says |
//!
//! A pause container knows no base spec.

use serde_json::Value;

use super::oci::{self, Capabilities, Linux, Namespace, Process, Resources, Root, Spec};
use super::{devices, mounts, paths, security};
use crate::config::Handler;
use crate::error::{Result, precondition};

/// What is hidden and protected where nobody says what to: in pause containers.
pub(super) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];
pub(super) const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];

pub(super) fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// containerd's default spec, in the cgroup `cgroups_path`.
pub(super) fn spec(cgroups_path: String) -> Spec {
    let set = texts(&security::DEFAULT_CAPABILITIES);
    let namespace = |kind: &&str| Namespace { kind: (*kind).to_owned(), path: String::new() };
    Spec {
        oci_version: oci::OCI_VERSION.to_owned(),
        process: Some(Process {
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: set.clone(),
                effective: set.clone(),
                permitted: set,
                ..Capabilities::default()
            }),
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: false }),
        mounts: mounts::defaults(),
        linux: Some(Linux {
            cgroups_path,
            namespaces: NAMESPACES.iter().map(namespace).collect(),
            resources: Some(Resources { devices: vec![devices::deny_all()], ..Resources::default() }),
            masked_paths: texts(&MASKED),
            readonly_paths: texts(&READONLY),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// What a container of `handler` starts from.
///
/// # Errors
/// Those of [`base`].
pub(super) fn of_container(handler: &Handler, cgroups_path: String) -> Result<Spec> {
    let Some(mut spec) = base(handler)? else { return Ok(spec(cgroups_path)) };
    if spec.oci_version.is_empty() {
        spec.oci_version = oci::OCI_VERSION.to_owned();
    }
    spec.mounts.retain(|mount| paths::clean(&mount.destination) != "/run");
    spec.linux.get_or_insert_default().cgroups_path = cgroups_path;
    let process = spec.process.get_or_insert_default();
    // Whether there is a terminal says the request alone: streams are opened by it.
    process.terminal = false;
    process.capabilities.get_or_insert_default();
    Ok(spec)
}

/// The base spec of a handler, if it has one. `null` is as good as nothing, which is what
/// programs in Go write for it.
///
/// # Errors
/// FailedPrecondition for one that is no OCI spec.
pub fn base(handler: &Handler) -> Result<Option<Spec>> {
    let Some(base) = &handler.base_spec else { return Ok(None) };
    let spec = serde_json::from_value(without_nulls(base.clone())).map_err(|error| {
        precondition(format!("the base spec of runtime handler {:?} is none: {error}", handler.name))
    })?;
    Ok(Some(spec))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
