//! The translation: CRI config + image config + handler + facts of the host → OCI spec.
//!
//! Pure: values in, values out (design D7). What must be read from the host is read
//! before, in [`gather`]. Each file opens with its table of CRI fields and OCI fields.

mod accounts;
pub mod annotations;
pub mod devices;
pub mod gather;
mod image;
pub mod mounts;
pub mod namespaces;
pub mod oci;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod security;
pub mod user;

use std::path::Path;

pub use accounts::Accounts;
pub use devices::HostDevice;
pub use image::ImageConfig;
pub use mounts::{HostMount, PodFiles};
pub use namespaces::Modes;
pub use oci::Spec;

use crate::config::Handler;
use crate::error::{Context, Error, Result, invalid, precondition};
use crate::proto::cri::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    PodSandboxConfig,
};
use oci::{Linux, Process, Resources, Root};
use user::UserRequest;

/// Facts of the host that do not change while the server runs.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// cgroup v2 alone.
    pub cgroup_v2: bool,
    /// Capabilities that the kernel knows and that we may give, as a bit set.
    pub capabilities: u64,
    /// The kernel has seccomp filters.
    pub seccomp: bool,
    /// AppArmor is in force.
    pub apparmor: bool,
    /// Loaded AppArmor profiles; read anew for every container.
    pub apparmor_profiles: Vec<String>,
    /// SELinux is in force.
    pub selinux: bool,
    /// Kernel version.
    pub kernel: (u32, u32),
    /// The node's name.
    pub hostname: String,
    /// Memory and swap can be limited together.
    pub swap_controller: bool,
    /// Huge pages can be limited.
    pub hugetlb_controller: bool,
    /// The server's own OOM score adjustment.
    pub oom_score_adj: i32,
    /// Never ask for one below it.
    pub restrict_oom_score_adj: bool,
}

impl Host {
    fn apparmor_loaded(&self, name: &str) -> bool {
        self.apparmor_profiles.iter().any(|profile| profile == name)
    }
}

/// What the OCI runtime of a handler can (SVC-18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Mount option `rro`.
    pub recursive_read_only: bool,
    /// User namespaces with id-mapped mounts.
    pub user_namespaces: bool,
}

/// A profile of the node, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalProfile {
    /// Its path.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// What decides the spec of a pause container.
#[derive(Clone, Copy, Debug)]
pub struct PauseInput<'a> {
    /// Sandbox id.
    pub id: &'a str,
    /// The pod.
    pub pod: &'a PodSandboxConfig,
    /// The pinned network namespace; none with host network.
    pub netns: Option<&'a Path>,
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
    let modes = Modes::of(context.namespace_options.as_ref())?;
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
    let capabilities = security::capabilities(None, false, host);
    let profile = pause_seccomp(pod, input.unset_seccomp)?;
    let seccomp =
        security::seccomp(&profile, context.privileged, &capabilities.bounding, input.seccomp, host)?;

    let mut spec = base(handler);
    let process = spec.process.get_or_insert_with(Process::default);
    process.args = process::args(&[], &[], image).map_err(|error| error.context("pause image"))?;
    process.env = image.env.clone();
    process.cwd = process::cwd(&ContainerConfig::default(), image);
    process.user = user;
    process.capabilities = Some(capabilities);
    process.no_new_privileges = true;
    process.oom_score_adj = Some(resources::oom_score_adj(PAUSE_OOM_SCORE_ADJ, host));
    spec.root = Some(Root { path: "rootfs".into(), readonly: true });
    if !modes.host_network() {
        spec.hostname = if pod.hostname.is_empty() { host.hostname.clone() } else { pod.hostname.clone() };
    }
    spec.mounts = mounts::of_pause(context.privileged, &input.files.shm, &input.files.resolv_conf);
    spec.annotations.extend(annotations::passed(&pod.annotations, &handler.pod_annotations));
    spec.annotations.extend(annotations::of_pause(input.id, pod, image_name));

    let section = spec.linux.get_or_insert_with(Linux::default);
    section.namespaces = namespaces::of_pause(modes, input.netns);
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

#[allow(deprecated)]
fn text_profiles_of(context: &LinuxContainerSecurityContext) -> (&str, &str) {
    (&context.seccomp_profile_path, &context.apparmor_profile)
}

/// The pod's sysctls and the two that make ports and ping free (SBX-30, SBX-31).
fn sysctls(
    asked: &std::collections::BTreeMap<String, String>,
    modes: Modes,
    (ports, icmp): (bool, bool),
) -> std::collections::BTreeMap<String, String> {
    let mut all = asked.clone();
    if !modes.host_network() {
        if ports {
            all.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert_with(|| "0".into());
        }
        if icmp {
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

/// What decides the spec of a container.
#[derive(Clone, Copy, Debug)]
pub struct ContainerInput<'a> {
    /// Container id.
    pub id: &'a str,
    /// The container.
    pub config: &'a ContainerConfig,
    /// Id of its pod sandbox.
    pub pod_id: &'a str,
    /// The pod as it was made (CTR-02).
    pub pod: &'a PodSandboxConfig,
    /// The pid of pause.
    pub pause_pid: u32,
    /// The pid of the container whose pid namespace is joined (TARGET).
    pub target_pid: Option<u32>,
    /// The image's config, and the name for annotations.
    pub image: (&'a ImageConfig, &'a str),
    /// Users of the image.
    pub accounts: &'a Accounts,
    /// The pod's handler.
    pub handler: &'a Handler,
    /// What its runtime can.
    pub features: Features,
    /// The host.
    pub host: &'a Host,
    /// The pod's files.
    pub files: &'a PodFiles,
    /// What was gathered for this container.
    pub gathered: &'a gather::Gathered,
    /// Options of the configuration.
    pub options: &'a crate::config::file::ContainerSection,
}

/// The spec of a container (area OCI).
///
/// # Errors
/// Those of the parts.
pub fn container(input: &ContainerInput<'_>) -> Result<Spec> {
    let ContainerInput { config, pod, handler, host, gathered, .. } = *input;
    let empty = LinuxContainerSecurityContext::default();
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.as_ref().unwrap_or(&empty);
    let pod_linux = pod.linux.clone().unwrap_or_default();
    let pod_context = pod_linux.security_context.unwrap_or_default();
    if context.privileged && !pod_context.privileged {
        return Err(invalid("a privileged container needs a privileged pod sandbox"));
    }
    let modes = Modes::of(context.namespace_options.as_ref())?;
    let (image, image_name) = input.image;
    let user = user::resolve(
        UserRequest {
            username: &context.run_as_username,
            user: context.run_as_user.as_ref(),
            group: context.run_as_group.as_ref(),
            supplemental_groups: &context.supplemental_groups,
            policy: context.supplemental_groups_policy,
        },
        image,
        input.accounts,
    )?;
    let capabilities = security::capabilities(context.capabilities.as_ref(), context.privileged, host);
    let (seccomp_text, apparmor_text) = text_profiles_of(context);
    let seccomp_profile = gather::seccomp_profile(context, seccomp_text, input.options)?;
    let apparmor_profile = security::profile("AppArmor", context.apparmor.as_ref(), apparmor_text)?;
    let seccomp = security::seccomp(
        &seccomp_profile,
        context.privileged,
        &capabilities.bounding,
        gathered.seccomp.as_ref(),
        host,
    )?;
    let hostname = if pod.hostname.is_empty() { &host.hostname } else { &pod.hostname };
    let (mounts, propagation) = mounts::of_container(mounts::Request {
        mounts: &config.mounts,
        gathered: &gathered.mounts,
        volumes: &gathered.volumes,
        files: input.files,
        readonly_rootfs: context.readonly_rootfs,
        privileged: context.privileged,
        cgroup_writable: handler.cgroup_writable,
        features: input.features,
    })?;

    let mut spec = base(handler);
    let process = spec.process.get_or_insert_with(Process::default);
    process.args = process::args(&config.command, &config.args, image)?;
    process.env = process::env(config, image, hostname)?;
    process.cwd = process::cwd(config, image);
    process.terminal = config.tty;
    process.user = user;
    process.capabilities = Some(capabilities);
    process.no_new_privileges = context.no_new_privs;
    process.apparmor_profile = security::apparmor(&apparmor_profile, context.privileged, host)?;
    spec.root = Some(Root { path: "rootfs".into(), readonly: context.readonly_rootfs });
    spec.mounts = mounts;
    spec.annotations.extend(annotations::passed(&pod.annotations, &handler.pod_annotations));
    spec.annotations.extend(annotations::passed(&config.annotations, &handler.container_annotations));
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    spec.annotations.extend(annotations::of_container(input.pod_id, pod, name, image_name));

    let section = spec.linux.get_or_insert_with(Linux::default);
    section.namespaces = namespaces::of_container(
        modes,
        input.pause_pid,
        input.target_pid,
        host.cgroup_v2 && !context.privileged,
    )?;
    section.cgroups_path = resources::cgroups_path(&pod_linux.cgroup_parent, input.id);
    section.rootfs_propagation = propagation;
    if context.privileged {
        section.masked_paths.clear();
        section.readonly_paths.clear();
    } else if !input.options.disable_proc_mount {
        section.masked_paths.clone_from(&context.masked_paths);
        section.readonly_paths.clone_from(&context.readonly_paths);
    } else if handler.base_spec.is_none() {
        section.masked_paths = texts(&PAUSE_MASKED);
        section.readonly_paths = texts(&PAUSE_READONLY);
    }
    // A base spec may have a profile of the node's owner for containers that ask for none.
    if seccomp.is_some() || context.privileged {
        section.seccomp = seccomp;
    }
    let limits = section.resources.get_or_insert_with(Resources::default);
    limits.devices = vec![devices::deny_all()];
    if let Some(asked) = &linux.resources {
        resources::apply(asked, limits, host, input.options.tolerates_missing_hugetlb())?;
        process_of(&mut spec.process).oom_score_adj =
            Some(resources::oom_score_adj(asked.oom_score_adj, host));
    }
    add_devices(input, context, spec.linux.get_or_insert_with(Linux::default));
    Ok(spec)
}

fn process_of(process: &mut Option<Process>) -> &mut Process {
    process.get_or_insert_with(Process::default)
}

fn add_devices(input: &ContainerInput<'_>, context: &LinuxContainerSecurityContext, section: &mut Linux) {
    let limits = section.resources.get_or_insert_with(Resources::default);
    let owner = input.options.device_ownership_from_security_context.then(|| {
        let id = |value: Option<&crate::proto::cri::Int64Value>| {
            value.and_then(|value| u32::try_from(value.value).ok()).unwrap_or(0)
        };
        (id(context.run_as_user.as_ref()), id(context.run_as_group.as_ref()))
    });
    let asked = &input.gathered.devices;
    section.devices.extend(asked.iter().map(|device| device.node(owner)));
    limits.devices.extend(asked.iter().map(HostDevice::rule));
    if context.privileged && !input.handler.privileged_without_host_devices {
        let known: Vec<String> = section.devices.iter().map(|device| device.path.clone()).collect();
        let host = input.gathered.host_devices.iter().filter(|device| !known.contains(&device.path));
        section.devices.extend(host.map(|device| device.node(None)));
        limits.devices = vec![devices::allow_all()];
    } else if context.privileged && input.handler.all_devices_allowed {
        limits.devices = vec![devices::allow_all()];
    }
}

/// The spec that values are laid over: the handler's base spec, or nothing.
fn base(handler: &Handler) -> Spec {
    let mut spec = handler
        .base_spec
        .as_ref()
        .and_then(|base| serde_json::from_value::<Spec>(base.clone()).ok())
        .unwrap_or_default();
    if spec.oci_version.is_empty() {
        spec.oci_version = oci::OCI_VERSION.to_owned();
    }
    spec
}

/// Parses the OCI spec of a container record.
///
/// # Errors
/// FailedPrecondition when it is none.
pub fn parse(json: &[u8], id: &str) -> Result<Spec> {
    serde_json::from_slice(json)
        .map_err(|error| precondition(format!("the OCI spec of {id} cannot be read: {error}")))
}

/// The JSON of a spec.
#[must_use]
pub fn to_json(spec: &Spec) -> Vec<u8> {
    serde_json::to_vec(spec).expect("a spec has text keys only")
}

/// Refuses what a pod or container asks for that is not built and must not be ignored.
///
/// # Errors
/// Unimplemented, naming the field.
pub fn refuse_unbuilt(config: &ContainerConfig) -> Result<()> {
    let unbuilt =
        |what: &str| Err(Error::new(crate::error::Kind::Unimplemented, format!("{what} are not served yet")));
    if !config.cdi_devices.is_empty() || config.annotations.keys().any(|key| key.starts_with("cdi.k8s.io/")) {
        return unbuilt("CDI devices");
    }
    let classes = ["blockio.resources.beta.kubernetes.io/", "rdt.resources.beta.kubernetes.io/"];
    if config.annotations.keys().any(|key| classes.iter().any(|class| key.starts_with(class))) {
        return unbuilt("block I/O and RDT classes");
    }
    Ok(())
}

/// Whether a container joins another's pid namespace, and whose.
#[must_use]
pub fn pid_target(config: &ContainerConfig) -> Option<&str> {
    let options = config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()?;
    (options.pid == NamespaceMode::Target as i32).then_some(options.target_id.as_str())
}

#[cfg(test)]
mod tests;
