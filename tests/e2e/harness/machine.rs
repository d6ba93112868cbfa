//! What differs between machines: how fast they are, and who makes their cgroups.

use std::time::Duration;

/// A limit as long as it has to be on this machine: `LONGSHORE_TEST_PATIENCE` times as long.
pub(crate) fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("LONGSHORE_TEST_PATIENCE").unwrap_or_else(|_| "1".into());
    let factor: u32 = factor.parse().unwrap_or_else(|_| panic!("LONGSHORE_TEST_PATIENCE={factor:?}"));
    limit * factor
}

/// Who makes the cgroups of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

impl CgroupDriver {
    /// The one that the environment asks for.
    pub(crate) fn from_env() -> CgroupDriver {
        match std::env::var("LONGSHORE_TEST_CGROUP_DRIVER").as_deref() {
            Ok("systemd") => CgroupDriver::Systemd,
            Ok("cgroupfs" | "") | Err(_) => CgroupDriver::Cgroupfs,
            Ok(other) => panic!("LONGSHORE_TEST_CGROUP_DRIVER={other:?} is neither systemd nor cgroupfs"),
        }
    }

    /// Its name, as configurations have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        }
    }

    /// The cgroup of the node with this name, whose only `-` is behind a `ls`.
    pub(crate) fn of_node(self, node: &str) -> String {
        match self {
            CgroupDriver::Cgroupfs => format!("/{node}"),
            // A slice is below those that its name begins with.
            CgroupDriver::Systemd => format!("/ls.slice/{node}.slice"),
        }
    }

    /// The cgroup of a pod in it, as the kubelet names it.
    pub(crate) fn of_pod(self, node: &str, uid: &str) -> String {
        let parent = self.of_node(node);
        match self {
            CgroupDriver::Cgroupfs => format!("{parent}/{uid}"),
            CgroupDriver::Systemd => format!("{parent}/{node}-{}.slice", uid.replace('-', "_")),
        }
    }

    /// What the OCI spec says of a container's cgroup in that of a pod (SBX-32).
    pub(crate) fn cgroups_path(self, parent: &str, id: &str) -> String {
        match self {
            CgroupDriver::Cgroupfs => format!("{parent}/{id}"),
            CgroupDriver::Systemd => {
                let slice = parent.rsplit('/').next().unwrap_or_default();
                format!("{slice}:cri-containerd:{id}")
            }
        }
    }

    /// Where that cgroup is below the root of the hierarchy (COX-16).
    pub(crate) fn of_container(self, parent: &str, id: &str) -> String {
        match self {
            CgroupDriver::Cgroupfs => format!("{parent}/{id}"),
            CgroupDriver::Systemd => format!("{parent}/cri-containerd-{id}.scope"),
        }
    }
}

/// Whether this machine has crun.
pub(crate) fn has_crun() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("crun").is_file())
}
