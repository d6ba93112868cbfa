//! What the kernel tells about processes, mounts and cgroups.

use std::path::{Path, PathBuf};

/// A process and its command line.
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) arguments: Vec<String>,
}

impl Running {
    /// The name of its program.
    pub(crate) fn program(&self) -> &str {
        let first = self.arguments.first().map(String::as_str).unwrap_or_default();
        first.rsplit('/').next().unwrap_or_default()
    }
}

/// All processes with a command line.
pub(crate) fn processes() -> Vec<Running> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let arguments =
                line.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
            let arguments: Vec<String> = arguments.filter(|text| !text.is_empty()).collect();
            (!arguments.is_empty()).then_some(Running { pid, arguments })
        })
        .collect()
}

/// A line of /proc/PID/status, in KiB.
pub(crate) fn status_kib(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("process {pid} tells no {key}: it is gone"))
}

/// Whether a thread of this process has a capability, by its number.
pub(crate) fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    set >> number & 1 == 1
}

/// Mount points at or below `folder`, the innermost last.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mut points = mount_points(|point, _| Path::new(point).starts_with(folder));
    points.sort();
    points
}

/// The roots of all cgroup hierarchies.
pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    mount_points(|_, kind| kind == "cgroup" || kind == "cgroup2")
}

/// A number in the cgroup at `path`, in the first of `files` that there is in any hierarchy:
/// a file name, or a file name and the key of its line.
pub(crate) fn cgroup_number(path: &str, files: &[&str]) -> u64 {
    let read = |root: &PathBuf, file: &str| {
        let (name, key) = file.split_once(' ').unwrap_or((file, ""));
        let text = std::fs::read_to_string(root.join(path.trim_start_matches('/')).join(name)).ok()?;
        let value = if key.is_empty() {
            Some(text.trim())
        } else {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        };
        value.map(|value| value.parse().expect("a number"))
    };
    let roots = cgroup_roots();
    let mut found = files.iter().filter_map(|file| roots.iter().find_map(|root| read(root, file)));
    found.next().unwrap_or_else(|| panic!("none of {files:?} in cgroup {path}"))
}

fn mount_points(wanted: impl Fn(&str, &str) -> bool) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let parse = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        wanted(&point, file_system.split(' ').next()?).then(|| PathBuf::from(point))
    };
    table.lines().filter_map(parse).collect()
}

/// Names in a folder; none if it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// All folders below a folder, the innermost last.
pub(crate) fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
