//! The spec of a container (area OCI): what the parts say, laid over the handler's base spec.

use serde_json::Value;

use super::oci::{Linux, Mount, Process, Resources, Spec};
use super::user::{self, UserRequest};
use super::{
    Accounts, Features, Host, HostDevice, ImageConfig, Modes, PodFiles, annotations, apparmor, classes,
    defaults, devices, edits, gather, mounts, namespaces, process, resources, security,
};
use crate::config::Handler;
use crate::error::{Result, invalid};
use crate::proto::cri::{
    ContainerConfig, Int64Value, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, PodSandboxConfig,
};

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
    /// containerd's namespace.
    pub namespace: &'a str,
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

/// The Linux parts of a request, empty where they are not given.
struct Asked {
    context: LinuxContainerSecurityContext,
    resources: Option<LinuxContainerResources>,
    pod: LinuxPodSandboxConfig,
    modes: Modes,
}

impl Asked {
    fn of(input: &ContainerInput<'_>) -> Result<Asked> {
        let linux = input.config.linux.clone().unwrap_or_default();
        let context = linux.security_context.unwrap_or_default();
        let pod = input.pod.linux.clone().unwrap_or_default();
        let pod_privileged = pod.security_context.as_ref().is_some_and(|context| context.privileged);
        if context.privileged && !pod_privileged {
            return Err(invalid("a privileged container needs a privileged pod sandbox"));
        }
        let modes = Modes::of_container(input.pod, input.config)?;
        Ok(Asked { context, resources: linux.resources, pod, modes })
    }
}

/// The spec of a container (area OCI).
///
/// # Errors
/// Those of the parts.
pub fn container(input: &ContainerInput<'_>) -> Result<Spec> {
    let ContainerInput { config, pod, handler, .. } = *input;
    let asked = Asked::of(input)?;
    let mut spec = defaults::of_container(handler, cgroups_path(input, &asked))?;
    let seccomp = fill_process(input, &asked, spec.process.get_or_insert_default())?;
    let root = spec.root.get_or_insert_default();
    root.path = "rootfs".into();
    root.readonly |= asked.context.readonly_rootfs;
    let section = spec.linux.get_or_insert_default();
    fill_linux(input, &asked, section)?;
    // A base spec may have a profile of the node's owner for containers that ask for none.
    if seccomp.is_some() || asked.context.privileged {
        section.seccomp = seccomp;
    }
    spec.mounts = mounts_of(input, &asked, std::mem::take(&mut spec.mounts), section)?;
    spec.annotations.extend(annotations::passed(&pod.annotations, &handler.pod_annotations));
    spec.annotations.extend(annotations::passed(&config.annotations, &handler.container_annotations));
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    spec.annotations.extend(annotations::of_container(input.pod_id, pod, name, input.image.1));
    edits::apply(&input.gathered.edits, &mut spec);
    Ok(spec)
}

fn cgroups_path(input: &ContainerInput<'_>, asked: &Asked) -> String {
    match asked.pod.cgroup_parent.as_str() {
        "" => resources::default_cgroups_path(input.handler.cgroup_driver, input.namespace, input.id),
        parent => resources::cgroups_path(parent, input.id),
    }
}

/// Fills the first process, and gives the filter that it starts with.
fn fill_process(input: &ContainerInput<'_>, asked: &Asked, process: &mut Process) -> Result<Option<Value>> {
    let ContainerInput { config, pod, host, .. } = *input;
    let (image, context) = (input.image.0, &asked.context);
    process.user = user::resolve(
        UserRequest {
            username: &context.run_as_username,
            user: context.run_as_user.as_ref(),
            group: context.run_as_group.as_ref(),
            supplemental_groups: &context.supplemental_groups,
            policy: context.supplemental_groups_policy,
        },
        image,
        input.accounts,
        std::mem::take(&mut process.user),
    )?;
    user::require_mapped(&process.user, asked.modes.user)?;
    let hostname = if pod.hostname.is_empty() { &host.hostname } else { &pod.hostname };
    process.args = process::args(&config.command, &config.args, image)?;
    process.env = process::env(std::mem::take(&mut process.env), config, image, hostname)?;
    process.cwd = process::cwd(&process.cwd, config, image);
    process.terminal = config.tty;
    process.no_new_privileges = context.no_new_privs;
    if let Some(limits) = &asked.resources {
        process.oom_score_adj = Some(resources::oom_score_adj(limits.oom_score_adj, host)?);
    }
    let start = process.capabilities.take().unwrap_or_default();
    let capabilities = security::capabilities(start, context.capabilities.as_ref(), context.privileged, host);
    let profile = apparmor::name(&apparmor::asked(context)?, context.privileged, host)?;
    // As with seccomp, a base spec's stays where none is asked for.
    if !profile.is_empty() || context.privileged {
        process.apparmor_profile = profile;
    }
    let profile = gather::seccomp_profile(context, seccomp_text_of(context), input.options)?;
    let local = input.gathered.seccomp.as_ref();
    let filter = security::seccomp(&profile, context.privileged, &capabilities.bounding, local, host)?;
    process.capabilities = Some(capabilities);
    Ok(filter)
}

#[allow(deprecated)] // older kubelets still send the text form (OCI-19)
fn seccomp_text_of(context: &LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn mounts_of(
    input: &ContainerInput<'_>,
    asked: &Asked,
    start: Vec<Mount>,
    section: &mut Linux,
) -> Result<Vec<Mount>> {
    let context = &asked.context;
    let request = mounts::Request {
        mounts: &input.config.mounts,
        gathered: &input.gathered.mounts,
        volumes: &input.gathered.volumes,
        files: input.files,
        readonly_rootfs: context.readonly_rootfs,
        privileged: context.privileged,
        cgroup_writable: input.handler.cgroup_writable,
        own_cgroup_namespace: section.namespaces.iter().any(|namespace| namespace.kind == "cgroup"),
        features: input.features,
        host_sys: asked.modes.host_sys(),
        host: input.host,
    };
    mounts::of_container(request, start, &mut section.rootfs_propagation)
}

fn fill_linux(input: &ContainerInput<'_>, asked: &Asked, section: &mut Linux) -> Result<()> {
    let (context, host) = (&asked.context, input.host);
    section.namespaces = namespaces::of_container(
        std::mem::take(&mut section.namespaces),
        asked.modes,
        input.pause_pid,
        input.target_pid,
        host.cgroup_v2 && !context.privileged,
    )?;
    section.map_ids(asked.modes.user);
    if context.privileged {
        section.masked_paths.clear();
        section.readonly_paths.clear();
    } else if !input.options.disable_proc_mount {
        section.masked_paths.clone_from(&context.masked_paths);
        section.readonly_paths.clone_from(&context.readonly_paths);
    }
    let limits = section.resources.get_or_insert_with(Resources::default);
    if let Some(wanted) = &asked.resources {
        resources::apply(wanted, limits, host, input.options.tolerates_missing_hugetlb())?;
    }
    add_devices(input, context, section);
    classes::apply(&input.gathered.classes, section);
    Ok(())
}

fn add_devices(input: &ContainerInput<'_>, context: &LinuxContainerSecurityContext, section: &mut Linux) {
    let limits = section.resources.get_or_insert_with(Resources::default);
    let owner = input.options.device_ownership_from_security_context.then(|| {
        let id =
            |value: Option<&Int64Value>| value.and_then(|value| u32::try_from(value.value).ok()).unwrap_or(0);
        (id(context.run_as_user.as_ref()), id(context.run_as_group.as_ref()))
    });
    let asked = &input.gathered.devices;
    section.devices.extend(asked.iter().map(|device| device.node(owner)));
    limits.devices.extend(asked.iter().map(HostDevice::rule));
    if context.privileged && !input.handler.privileged_without_host_devices {
        section.devices.extend(input.gathered.host_devices.iter().map(|device| device.node(None)));
        limits.devices = vec![devices::allow_all()];
    } else if context.privileged && input.handler.all_devices_allowed {
        limits.devices = vec![devices::allow_all()];
    }
}
