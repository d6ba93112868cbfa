//! This process: capabilities and OOM score.

use std::path::Path;

/// Bits of the kernel's capability sets.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// The effective capabilities of this process as a bit set.
#[must_use]
pub fn effective_capabilities() -> u64 {
    status_mask("CapEff:")
}

/// The bounding set of this process: what it may give to others (OCI-13).
#[must_use]
pub fn bounding_capabilities() -> u64 {
    status_mask("CapBnd:")
}

/// Whether this process may lower OOM scores.
#[must_use]
pub fn has_cap_sys_resource() -> bool {
    effective_capabilities() & (1 << CAP_SYS_RESOURCE) != 0
}

/// Whether this process may administrate the system.
#[must_use]
pub fn has_cap_sys_admin() -> bool {
    effective_capabilities() & (1 << CAP_SYS_ADMIN) != 0
}

/// The OOM score adjustment of this process, 0 if it cannot be read.
#[must_use]
pub fn oom_score_adj() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn status_mask(field: &str) -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix(field))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}

/// The children of a process that live. Reads all of /proc: for what happens seldom.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let child = |entry: std::fs::DirEntry| {
        let status = status_in(&entry.path())?;
        let is_it = parent_in(&status) == Some(pid) && !status.contains("\nState:\tZ");
        if is_it { entry.file_name().to_str()?.parse().ok() } else { None }
    };
    entries.filter_map(child).collect()
}

/// The parent of a process.
#[must_use]
pub fn parent_of(pid: u32) -> Option<u32> {
    parent_in(&status_in(Path::new(&format!("/proc/{pid}")))?)
}

/// A process's status, whose name is of any bytes.
fn status_in(folder: &Path) -> Option<String> {
    let status = std::fs::read(folder.join("status")).ok()?;
    Some(String::from_utf8_lossy(&status).into_owned())
}

fn parent_in(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Sends SIGKILL.
///
/// # Errors
/// The kernel's reason.
pub fn kill(pid: u32) -> crate::error::Result<()> {
    use crate::error::Context;
    let target = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let target = target.ok_or_else(|| crate::error::invalid(format!("{pid} is no process id")))?;
    let killed = rustix::process::kill_process(target, rustix::process::Signal::KILL);
    killed.context(|| format!("kill process {pid}"))
}
