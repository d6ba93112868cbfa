//! The translation: CRI config + image config + handler + facts of the host → OCI spec.
//!
//! Pure: values in, values out (design D7). What must be read from the host is read
//! before, in [`gather`]. Each file opens with its table of CRI fields and OCI fields.

mod accounts;
pub mod annotations;
pub mod apparmor;
pub mod classes;
mod container;
mod defaults;
pub mod devices;
pub mod edits;
pub mod gather;
mod image;
pub mod mounts;
pub mod namespaces;
pub mod oci;
pub mod paths;
mod pause;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod security;
pub mod selinux;
pub mod user;

pub use accounts::Accounts;
pub use container::{ContainerInput, container};
pub use defaults::base;
pub use devices::HostDevice;
pub use edits::Edits;
pub use image::ImageConfig;
pub use mounts::{HostMount, PodFiles};
pub use namespaces::Modes;
pub use oci::Spec;
pub use pause::{PauseInput, pause, pause_seccomp, sysctls_need_network};

use crate::error::{Result, precondition};
use crate::proto::cri::{ContainerConfig, NamespaceMode};
use crate::sys::apparmor::Support;

/// Facts of the host that do not change while the server runs.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// cgroup v2 alone.
    pub cgroup_v2: bool,
    /// Capabilities that the kernel knows and that we may give, as a bit set.
    pub capabilities: u64,
    /// The kernel has seccomp filters.
    pub seccomp: bool,
    /// Whether AppArmor is in force.
    pub apparmor: Support,
    /// Loaded AppArmor profiles; read anew for every container.
    pub apparmor_profiles: Vec<String>,
    /// The labels of SELinux's policy, where SELinux is in force and not switched off.
    pub selinux: Option<selinux::Policy>,
    /// Kernel version.
    pub kernel: (u32, u32),
    /// The node's name.
    pub hostname: String,
    /// User namespaces can be made.
    pub user_namespaces: bool,
    /// Memory and swap can be limited together.
    pub swap_controller: bool,
    /// Options of the mounted cgroup v2 that must be repeated where it is mounted again.
    pub cgroup_mount_options: Vec<String>,
    /// Huge pages can be limited.
    pub hugetlb_controller: bool,
    /// The server's own OOM score adjustment.
    pub oom_score_adj: i32,
    /// Never ask for one below it.
    pub restrict_oom_score_adj: bool,
}

/// What the OCI runtime of a handler can (SVC-18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Mount option `rro`.
    pub recursive_read_only: bool,
    /// Mounts with id mappings.
    pub id_mapped_mounts: bool,
    /// User namespaces, with id-mapped mounts.
    pub user_namespaces: bool,
    /// Network devices of the host that move into a container.
    pub net_devices: bool,
}

/// A profile of the node, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalProfile {
    /// Its path.
    pub path: String,
    /// Its text.
    pub text: String,
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

/// Whether a container joins another's pid namespace, and whose.
#[must_use]
pub fn pid_target(config: &ContainerConfig) -> Option<&str> {
    let options = config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()?;
    (options.pid == NamespaceMode::Target as i32).then_some(options.target_id.as_str())
}

/// Whether a container asks for the host's IPC.
#[must_use]
pub fn asks_for_host_ipc(config: &ContainerConfig) -> bool {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    options.is_some_and(|options| options.ipc == NamespaceMode::Node as i32)
}

#[cfg(test)]
mod tests;
