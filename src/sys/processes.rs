//! The processes of this machine, by their command lines.

use std::path::Path;

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command line.
    pub arguments: Vec<String>,
}

impl Process {
    /// The name of its program.
    #[must_use]
    pub fn program(&self) -> &str {
        let path = self.arguments.first().map(String::as_str).unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// The value of a flag, as Go's programs take it: `-name value`, `--name=value`. The last
    /// one counts.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut found = None;
        for (place, argument) in self.arguments.iter().enumerate().skip(1) {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                continue;
            };
            match flag.split_once('=') {
                Some((key, value)) if key == name => found = Some(value),
                None if flag == name => found = self.arguments.get(place + 1).map(String::as_str),
                _ => {}
            }
        }
        found
    }
}

/// All of them but the kernel's. Blocks.
#[must_use]
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = arguments(&line);
        (!arguments.is_empty()).then_some(Process { pid, arguments })
    });
    read.collect()
}

/// Those whose environment has `name` with this value. Blocks.
#[must_use]
pub fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let wanted = format!("{name}={value}");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(has_it).collect()
}

/// The leaders of a process's group and of its session, `None` if it has ended. 0 is one that
/// this pid namespace does not show, as if a container's first process did not begin a session.
/// Blocks.
#[must_use]
pub fn group_and_session(pid: u32) -> Option<(u32, u32)> {
    // A name is of any bytes.
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    group_and_session_in(&String::from_utf8_lossy(&stat))
}

/// `7 (a name (of) any form) S parent group session …`.
fn group_and_session_in(stat: &str) -> Option<(u32, u32)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn arguments(line: &[u8]) -> Vec<String> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    if line.is_empty() {
        return Vec::new();
    }
    line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Who holds a lock (flock) on `path`: a process id. Nothing is locked for it. Blocks.
#[must_use]
pub fn lock_holder(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let path = path.canonicalize().ok()?;
    let inode = std::fs::metadata(&path).ok()?.ino();
    let holders = holders_in(&std::fs::read_to_string("/proc/locks").ok()?, inode);
    // The table's device is another one than that of the file on some file systems.
    holders.into_iter().find(|pid| has_open(*pid, &path))
}

/// Processes that hold a lock on a file of that number: `1: FLOCK  ADVISORY  WRITE 4711
/// 00:2f:815 0 EOF`.
fn holders_in(table: &str, inode: u64) -> Vec<u32> {
    let ending = format!(":{inode}");
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.ends_with(&ending);
        if is_it { fields.get(4)?.parse().ok() } else { None }
    };
    table.lines().filter_map(holder).collect()
}

fn has_open(pid: u32, path: &Path) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|open| open == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(line: &str) -> Process {
        Process { pid: 1, arguments: line.split(' ').map(str::to_owned).collect() }
    }

    #[test]
    fn flags_are_read_in_all_forms() {
        let shim = process("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id a --address=/c.sock");
        assert_eq!(shim.program(), "containerd-shim-runc-v2");
        assert_eq!(shim.flag("namespace"), Some("k8s.io"));
        assert_eq!(shim.flag("address"), Some("/c.sock"));
        assert_eq!(shim.flag("i"), None);
        assert_eq!(process("kubelet --config /a --config=/b --x").flag("config"), Some("/b"));
        assert_eq!(process("kubelet --x").flag("x"), None);
    }

    #[test]
    fn command_lines_are_cut_at_zeros() {
        assert_eq!(arguments(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert!(arguments(b"").is_empty());
        assert!(all().iter().any(|process| process.pid == std::process::id()));
    }

    #[test]
    fn groups_and_sessions_are_told_even_where_their_leaders_are_not_shown() {
        assert_eq!(group_and_session_in("7 (a) S 0 (b) R 1 7 5 0 -1 4194304"), Some((7, 5)));
        assert_eq!(group_and_session_in("1 (sh) S 0 0 0 0 -1 4194560"), Some((0, 0)));
        assert_eq!(group_and_session_in("1 (sh"), None);
        use std::os::unix::process::CommandExt;
        let mut child = std::process::Command::new("sleep").arg("9").process_group(0).spawn().expect("sleep");
        let found = group_and_session(child.id());
        child.kill().expect("killed");
        child.wait().expect("a status");
        let session = group_and_session(std::process::id()).map(|(_, session)| session);
        assert_eq!(found, Some((child.id(), session.expect("a session"))));
        assert_eq!(group_and_session(child.id()), None);
    }

    #[test]
    fn the_holder_of_a_lock_is_found_without_touching_it() {
        let table = "1: POSIX  ADVISORY  WRITE 5 00:2f:815 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 6 00:2f:815 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4711 00:2f:815 0 EOF\n";
        assert_eq!(holders_in(table, 815), [4711]);
        assert!(holders_in(table, 15).is_empty());
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(lock_holder(file.path()), None);
        rustix::fs::flock(file.as_file(), rustix::fs::FlockOperation::LockExclusive).expect("locked");
        assert_eq!(lock_holder(file.path()), Some(std::process::id()));
    }
}
