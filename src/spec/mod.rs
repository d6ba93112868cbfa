//! The translation: CRI config + image config + handler + facts of the host → OCI spec.
//!
//! Pure: values in, values out (design D7). What must be read from the host is read
//! before, in [`gather`]. Each file opens with its table of CRI fields and OCI fields.

mod accounts;
pub mod annotations;
pub mod apparmor;
mod container;
pub mod devices;
pub mod gather;
mod image;
pub mod mounts;
pub mod namespaces;
pub mod oci;
mod pause;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod security;
pub mod user;

pub use accounts::Accounts;
pub use container::{ContainerInput, container};
pub use devices::HostDevice;
pub use image::ImageConfig;
pub use mounts::{HostMount, PodFiles};
pub use namespaces::Modes;
pub use oci::Spec;
pub use pause::{PauseInput, pause, pause_seccomp, sysctls_need_network};

use crate::config::Handler;
use crate::error::{Error, Result, precondition};
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
