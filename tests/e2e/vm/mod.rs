//! What only a node with cgroup v2 alone, systemd as PID 1 and AppArmor in force can show:
//! `make test-vm` runs this in a guest, with each cgroup driver.
//!
//! `apparmor` takes the default profile away and changes what the whole node has: nothing
//! else may run beside its tests, nor they beside each other. The same is true of `clock`.

mod apparmor;
mod cgroups;
mod clock;
mod resources;
mod service;
mod stats;

use std::path::PathBuf;

use crate::harness::{Container, Pod};

/// The cgroup of a process, as the host sees it.
fn cgroup_of(pid: u64) -> PathBuf {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    let path = line.trim_end().strip_prefix("0::/").unwrap_or_else(|| panic!("not cgroup v2 alone: {line}"));
    PathBuf::from("/sys/fs/cgroup").join(path)
}

/// The pid of a container's first process on the node.
async fn pid(container: &Container) -> u64 {
    container.info().await["pid"].as_u64().expect("a pid")
}

/// The pid of pause on the node.
async fn pause_pid(pod: &Pod) -> u64 {
    pod.info().await["pid"].as_u64().expect("a pid")
}
