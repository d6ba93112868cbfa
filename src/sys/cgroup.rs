//! Cgroups that nobody else is left to remove.

use std::path::{Component, Path};

use super::mountinfo;

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
