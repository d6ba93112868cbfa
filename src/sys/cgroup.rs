//! Cgroups that nobody else is left to remove, and whose a process is in.

use std::path::{Component, Path};

use super::mountinfo;

/// Characters of the ids of pods and containers.
const ID_CHARS: usize = 64;

/// Removes the cgroup of an ended container from every hierarchy, where an OCI runtime that
/// was cut off has left it. `path` is that of its OCI spec, in the notation of cgroupfs; what
/// is in systemd's is systemd's own to remove. One that is in use stays, and one that is gone
/// is fine.
pub fn remove_left(path: &str) {
    let below = Path::new(path.trim_start_matches('/'));
    let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if path.contains(':') || !is_plain || below.as_os_str().is_empty() {
        return;
    }
    for hierarchy in mountinfo::cgroups().unwrap_or_default() {
        // Refused where there are processes or further cgroups.
        let _ = std::fs::remove_dir(hierarchy.path.join(below));
    }
}

/// Lets the cgroup of a process go on that an OCI runtime has frozen and not thawed, because it was
/// killed in between: nothing of version 1 can be killed while it is frozen.
pub fn thaw(pid: u32) {
    const FREEZER: &str = "freezer";
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // `7:freezer:/a/b`
    let path = table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == FREEZER).then_some(path)
    });
    let Some(path) = path else { return };
    let hierarchies = mountinfo::cgroups().unwrap_or_default().into_iter();
    for hierarchy in hierarchies.filter(|it| it.controllers.iter().any(|name| name == FREEZER)) {
        let folder = hierarchy.path.join(path.trim_start_matches('/'));
        // It may just have ended.
        let _ = std::fs::write(folder.join("freezer.state"), "THAWED");
    }
}

/// The container whose cgroup a process is in, whatever it has made below.
#[must_use]
pub fn container_of(pid: u32) -> Option<String> {
    container_in(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The last part of a path that is an id, also as systemd names it: `cri-containerd-ID.scope`.
fn container_in(table: &str) -> Option<String> {
    let id = |part: &str| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit('-').next()?;
        (id.len() == ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
    };
    table.lines().flat_map(|line| line.rsplit('/')).find_map(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_of_a_cgroup_is_found_in_both_notations() {
        let id = "0123456789abcdef".repeat(4);
        let found = |path: &str| container_in(&format!("12:pids:/\n0::{path}\n"));
        assert_eq!(found(&format!("/kubepods/burstable/pod1-2/{id}")).as_ref(), Some(&id));
        assert_eq!(found(&format!("/{id}/init.scope")).as_ref(), Some(&id));
        assert_eq!(found(&format!("/kubepods.slice/cri-containerd-{id}.scope")).as_ref(), Some(&id));
        assert_eq!(found("/user.slice/session-1.scope"), None);
    }
}
