//! The spec of a pause container.
//!
//! | CRI (pod) | OCI | rule |
//! |---|---|---|
//! | `run_as_user`, `run_as_group`, `supplemental_groups` | `process.user` | SBX-08 |
//! | – | shares 2, OOM score −998, read-only root | SBX-08, SBX-09 |
//! | `seccomp` | `linux.seccomp` | SBX-10 |
//! | `hostname` | `hostname`, unless the network is the host's | SBX-16 |
//! | `sysctls` | `linux.sysctl`, with two of the configuration's | SBX-30, SBX-31 |
//! | `userns_options` | `linux.uidMappings`, `gidMappings`; no `ping_group_range` | SBX-25, SBX-31 |
//! | `cgroup_parent` | `linux.cgroupsPath` | SBX-32 |

use std::collections::BTreeMap;
use std::path::Path;

use super::oci::{self, Linux, Process, Resources, Root, Spec};
use super::user::{self, UserRequest};
use super::{
    Accounts, Host, ImageConfig, LocalProfile, Modes, PodFiles, annotations, devices, mounts, namespaces,
    process, resources, security,
};
use crate::config::Handler;
use crate::error::{Context, Result};
use crate::proto::cri::{ContainerConfig, LinuxSandboxSecurityContext, PodSandboxConfig};

/// What decides the spec of a pause container.
#[derive(Clone, Copy, Debug)]
pub struct PauseInput<'a> {
    /// Sandbox id.
    pub id: &'a str,
    /// The pod.
    pub pod: &'a PodSandboxConfig,
    /// The pinned network namespace; none with host network.
    pub netns: Option<&'a Path>,
    /// The pinned user namespace that owns it; none without, and with host network.
    pub user_namespace: Option<&'a Path>,
    /// The pause image's config and name.
    pub image: (&'a ImageConfig, &'a str),
    /// Users of the pause image.
    pub accounts: &'a Accounts,
    /// The handler.
    pub handler: &'a Handler,
    /// The host.
    pub host: &'a Host,
    /// The pod's files.
    pub files: &'a PodFiles,
    /// The node's seccomp profile, when one is asked for.
    pub seccomp: Option<&'a LocalProfile>,
    /// `sandbox.unprivileged_ports`, `sandbox.unprivileged_icmp`
    pub unprivileged: (bool, bool),
    /// `container.unset_seccomp_profile`
    pub unset_seccomp: &'a str,
}

/// CPU shares of a pause container (SBX-09).
const PAUSE_SHARES: u64 = 2;
/// OOM score adjustment of a pause container (SBX-09).
const PAUSE_OOM_SCORE_ADJ: i64 = -998;

/// What runc hides and protects by default: for pause, which nobody configures, and for
/// containers where `container.disable_proc_mount` says so.
const PAUSE_MASKED: [&str; 11] = [
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
const PAUSE_READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The paths that are hidden and protected where nobody says otherwise.
pub(super) fn usual_paths() -> (Vec<String>, Vec<String>) {
    (texts(&PAUSE_MASKED), texts(&PAUSE_READONLY))
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// The spec of a pause container (SBX-08 … SBX-10, SBX-20 … SBX-36).
///
/// # Errors
/// Those of the parts: a user that is not there, a namespace mode that makes no sense, …
pub fn pause(input: &PauseInput<'_>) -> Result<Spec> {
    let PauseInput { pod, handler, host, .. } = *input;
    let empty = LinuxSandboxSecurityContext::default();
    let linux = pod.linux.clone().unwrap_or_default();
    let context = linux.security_context.as_ref().unwrap_or(&empty);
    let modes = Modes::of_pod(pod)?;
    let (image, image_name) = input.image;
    let user = user::resolve(
        UserRequest {
            username: "",
            user: context.run_as_user.as_ref(),
            group: context.run_as_group.as_ref(),
            supplemental_groups: &context.supplemental_groups,
            policy: context.supplemental_groups_policy,
        },
        image,
        input.accounts,
    )
    .context(|| "pod sandbox")?;
    user::require_mapped(&user, modes.user).context(|| "pod sandbox")?;
    let capabilities = security::capabilities(None, None, false, host);
    let profile = pause_seccomp(pod, input.unset_seccomp)?;
    let seccomp =
        security::seccomp(&profile, context.privileged, &capabilities.bounding, input.seccomp, host)?;

    // A base spec is about containers.
    let mut spec = super::empty();
    let process = spec.process.get_or_insert_with(Process::default);
    process.args = process::args(&[], &[], image).map_err(|error| error.context("pause image"))?;
    process.env = image.env.clone();
    process.cwd = process::cwd(&ContainerConfig::default(), image, "");
    process.user = user;
    process.capabilities = Some(capabilities);
    process.no_new_privileges = true;
    process.oom_score_adj = Some(resources::oom_score_adj(PAUSE_OOM_SCORE_ADJ, host));
    spec.root = Some(Root { path: "rootfs".into(), readonly: true });
    if !modes.host_network() {
        spec.hostname = if pod.hostname.is_empty() { host.hostname.clone() } else { pod.hostname.clone() };
    }
    spec.mounts =
        mounts::of_pause(context.privileged, modes.host_sys(), &input.files.shm, &input.files.resolv_conf);
    spec.annotations.extend(annotations::passed(&pod.annotations, &handler.pod_annotations));
    spec.annotations.extend(annotations::of_pause(input.id, pod, image_name));

    let section = spec.linux.get_or_insert_with(Linux::default);
    section.namespaces = namespaces::of_pause(modes, input.netns, input.user_namespace);
    section.map_ids(modes.user);
    section.cgroups_path = resources::cgroups_path(&linux.cgroup_parent, input.id);
    section.sysctl = sysctls(&linux.sysctls, modes, input.unprivileged);
    section.masked_paths = texts(&PAUSE_MASKED);
    section.readonly_paths = texts(&PAUSE_READONLY);
    section.seccomp = seccomp;
    let limits = section.resources.get_or_insert_with(Resources::default);
    limits.devices = vec![devices::deny_all()];
    limits.cpu.get_or_insert_with(oci::Cpu::default).shares = Some(PAUSE_SHARES);
    Ok(spec)
}

/// The seccomp profile that a pod sandbox asks for, the configured one where it asks for
/// none (SBX-10).
///
/// # Errors
/// InvalidArgument for a profile of no known form.
pub fn pause_seccomp(pod: &PodSandboxConfig, unset: &str) -> Result<security::Profile> {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let profile = context.map_or(Ok(security::Profile::Unset), |context| {
        security::profile("seccomp", context.seccomp.as_ref(), text_profile_of(context))
    });
    Ok(profile?.or_unset(unset))
}

#[allow(deprecated)] // older kubelets still send the text form (OCI-19)
fn text_profile_of(context: &LinuxSandboxSecurityContext) -> &str {
    &context.seccomp_profile_path
}

/// The pod's sysctls and the two that make ports and ping free (SBX-30, SBX-31).
fn sysctls(
    asked: &BTreeMap<String, String>,
    modes: Modes,
    (ports, icmp): (bool, bool),
) -> BTreeMap<String, String> {
    let mut all = asked.clone();
    if !modes.host_network() {
        if ports {
            all.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert_with(|| "0".into());
        }
        // The range has groups that a user namespace does not map.
        if icmp && modes.user.is_none() {
            all.entry("net.ipv4.ping_group_range".into()).or_insert_with(|| "0 2147483647".into());
        }
    }
    all
}

/// Whether the pod's own sysctls may touch the network, which must then be there first:
/// a sysctl of an interface does not exist before the interface, and a plugin may set
/// the same one.
#[must_use]
pub fn sysctls_need_network(pod: &PodSandboxConfig) -> bool {
    let own = |key: &String| {
        let key = key.replace('/', ".");
        key.starts_with("net.")
            && key != "net.ipv4.ip_unprivileged_port_start"
            && key != "net.ipv4.ping_group_range"
    };
    pod.linux.as_ref().is_some_and(|linux| linux.sysctls.keys().any(own))
}
