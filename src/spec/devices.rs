//! Devices of a container.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | `devices` (host path resolved; a folder means all below it) | `linux.devices`, a rule in `resources.devices` | OCI-40 |
//! | `privileged`, unless the handler says otherwise | all host devices, everything allowed | OCI-16 |

use super::oci::{Device, DeviceRule};
use crate::error::{Result, invalid};

/// A device node on the host, as it goes into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Path in the container.
    pub path: String,
    /// `c`, `b` or `p`
    pub kind: char,
    /// Number.
    pub major: i64,
    /// Number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What the cgroup allows: of `r`, `w`, `m`.
    pub permissions: String,
}

impl HostDevice {
    /// The node in the container; `owner` replaces the host's owner where it is not 0.
    #[must_use]
    pub fn node(&self, owner: Option<(u32, u32)>) -> Device {
        let (uid, gid) = owner.unwrap_or_default();
        Device {
            path: self.path.clone(),
            kind: self.kind.to_string(),
            major: self.major,
            minor: self.minor,
            file_mode: Some(self.mode),
            uid: Some(if uid == 0 { self.uid } else { uid }),
            gid: Some(if gid == 0 { self.gid } else { gid }),
        }
    }

    /// The rule of the device cgroup.
    #[must_use]
    pub fn rule(&self) -> DeviceRule {
        DeviceRule {
            allow: true,
            kind: self.kind.to_string(),
            major: Some(self.major),
            minor: Some(self.minor),
            access: self.permissions.clone(),
        }
    }
}

/// Everything is forbidden first.
#[must_use]
pub fn deny_all() -> DeviceRule {
    DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() }
}

/// Everything is allowed (privileged).
#[must_use]
pub fn allow_all() -> DeviceRule {
    DeviceRule { allow: true, access: "rwm".into(), ..DeviceRule::default() }
}

/// Checks the permissions of a device.
///
/// # Errors
/// InvalidArgument for letters other than `r`, `w`, `m`, or none.
pub fn check_permissions(permissions: &str, path: &str) -> Result<()> {
    if permissions.is_empty() || !permissions.bytes().all(|c| b"rwm".contains(&c)) {
        return Err(invalid(format!(
            "device {path:?}: permissions {permissions:?} are not made of r, w and m"
        )));
    }
    Ok(())
}
