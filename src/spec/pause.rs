//! The spec of a pause container.
//!
//! | CRI (pod) | OCI | rule |
//! |---|---|---|
//! | `run_as_user`, `run_as_group`, `supplemental_groups` | `process.user` | SBX-08 |
//! | – | shares 2, OOM score −998, read-only root | SBX-08, SBX-09 |
//! | `seccomp` | `linux.seccomp` | SBX-10 |
//! | `hostname` | `hostname`; refused where the network is the host's | SBX-16 |
//! | `sysctls` | `linux.sysctl`, with two of the configuration's | SBX-30, SBX-31 |
//! | `userns_options` | `linux.uidMappings`, `gidMappings`; no `ping_group_range` | SBX-25, SBX-31 |
//! | `cgroup_parent` | `linux.cgroupsPath` | SBX-32 |
//! | – | the rest as containerd's default spec has it | |

use std::collections::BTreeMap;
use std::path::Path;

use super::oci::{self, Linux, Resources, Root, Spec, User};
use super::user::{self, UserRequest};
use super::{
    Accounts, Host, ImageConfig, LocalProfile, Modes, PodFiles, annotations, defaults, mounts, namespaces,
    process, resources, security,
};
use crate::config::Handler;
use crate::error::{Context, Result, invalid};
use crate::proto::cri::{
    ContainerConfig, LinuxSandboxSecurityContext, PodSandboxConfig, SupplementalGroupsPolicy,
};

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
    /// The handler. Its base spec is for containers alone.
    pub handler: &'a Handler,
    /// containerd's namespace.
    pub namespace: &'a str,
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
    // A pause container runs nothing of its image's users: their groups are not asked for.
    let user = user::resolve(
        UserRequest {
            username: "",
            user: context.run_as_user.as_ref(),
            group: context.run_as_group.as_ref(),
            supplemental_groups: &context.supplemental_groups,
            policy: pause_policy(context)?,
        },
        image,
        input.accounts,
        User::default(),
    )
    .context(|| "pod sandbox")?;
    user::require_mapped(&user, modes.user).context(|| "pod sandbox")?;
    let hostname = pod.hostname.clone();
    if modes.host_network() && !hostname.is_empty() {
        return Err(invalid(format!("the hostname {hostname:?} is given to a pod with the host's network")));
    }

    let mut spec = defaults::spec(match linux.cgroup_parent.as_str() {
        "" => resources::default_cgroups_path(handler.cgroup_driver, input.namespace, input.id),
        parent => resources::cgroups_path(parent, input.id),
    });
    let process = spec.process.get_or_insert_default();
    let bounding = process.capabilities.clone().unwrap_or_default().bounding;
    let profile = pause_seccomp(pod, input.unset_seccomp)?;
    let seccomp = security::seccomp(&profile, context.privileged, &bounding, input.seccomp, host)?;
    process.args = process::args(&[], &[], image).map_err(|error| error.context("pause image"))?;
    process.env = process::overlay(Vec::new(), image.env.clone());
    process.cwd = process::cwd("", &ContainerConfig::default(), image);
    process.user = user;
    process.no_new_privileges = true;
    process.oom_score_adj = Some(resources::oom_score_adj(PAUSE_OOM_SCORE_ADJ, host)?);
    spec.root = Some(Root { path: "rootfs".into(), readonly: true });
    spec.hostname = hostname;
    spec.mounts =
        mounts::of_pause(context.privileged, modes.host_sys(), &input.files.shm, &input.files.resolv_conf);
    spec.annotations = annotations::of_pod_resources(pod);
    spec.annotations.extend(annotations::passed(&pod.annotations, &handler.pod_annotations));
    spec.annotations.extend(annotations::of_pause(input.id, pod, image_name));

    let section = spec.linux.get_or_insert_with(Linux::default);
    section.namespaces = namespaces::of_pause(
        std::mem::take(&mut section.namespaces),
        modes,
        input.netns,
        input.user_namespace,
    );
    section.map_ids(modes.user);
    section.sysctl = sysctls(&linux.sysctls, modes, input.unprivileged);
    section.seccomp = seccomp;
    let limits = section.resources.get_or_insert_with(Resources::default);
    limits.cpu.get_or_insert_with(oci::Cpu::default).shares = Some(PAUSE_SHARES);
    Ok(spec)
}

/// The policy of pause's groups: that of the image's is never asked.
///
/// # Errors
/// InvalidArgument for a policy that is not known.
fn pause_policy(context: &LinuxSandboxSecurityContext) -> Result<i32> {
    let policy = context.supplemental_groups_policy;
    SupplementalGroupsPolicy::try_from(policy)
        .map_err(|_| invalid(format!("supplemental groups policy {policy} is not known")))?;
    Ok(SupplementalGroupsPolicy::Strict as i32)
}

/// The seccomp profile that a pod sandbox asks for, the configured one where it asks for
/// none (SBX-10).
///
/// # Errors
/// InvalidArgument for a profile of no known form.
pub fn pause_seccomp(pod: &PodSandboxConfig, unset: &str) -> Result<security::Profile> {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let profile = context.map_or(Ok(security::Profile::Unset), |context| {
        let (given, text) = (context.seccomp.as_ref(), text_profile_of(context));
        security::seccomp_profile(given, text, context.privileged)
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
