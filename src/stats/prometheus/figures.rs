//! Everything that the metrics of one container are made of.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::super::Stats;
use super::super::cgroup::{Details, DeviceIo};
use super::super::reading::Reading;
use super::super::sampler::Subject;
use crate::flow;
use crate::proto::cri::LinuxContainerResources;
use crate::state::Container;
use crate::state::container::now;

/// How many open files of one container are looked at. One that has more is not told of: the
/// look takes a system call for each.
const DESCRIPTORS_MAX: u64 = 100_000;

/// What is known of a running container. What could not be read is not there.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) reading: Reading,
    pub(super) details: Details,
    /// What went to and from disks, each with its name.
    pub(super) disks: Vec<(String, DeviceIo)>,
    pub(super) processes: Option<Processes>,
    pub(super) file_system: Option<FileSystem>,
    pub(super) written: Option<Written>,
    /// Its limits, as they are in force.
    pub(super) limits: LinuxContainerResources,
    /// Nanoseconds since the epoch.
    pub(super) started_at: i64,
    /// Nanoseconds since the epoch.
    pub(super) seen_at: i64,
}

/// The processes of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Processes {
    pub(super) count: u64,
    /// Open files, and the sockets among them.
    pub(super) descriptors: Option<(u64, u64)>,
    /// The soft limit of open files of the first process.
    pub(super) open_files_max: Option<u64>,
}

/// The disk that containers write to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FileSystem {
    pub(super) device: String,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// What a container wrote, at the last look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) timestamp: i64,
}

impl Stats {
    /// What there is to know of a running container.
    pub(super) async fn figures(
        &self,
        container: &Arc<Container>,
        subject: Subject,
        file_system: Option<FileSystem>,
    ) -> Figures {
        let status = container.status();
        let snapshotter = self.snapshotter(container);
        let written = self.0.pods.containers.images.writable_usage(snapshotter, container.id.as_str());
        let known = Figures {
            file_system,
            written: written.map(|last| Written { bytes: last.usage.bytes, timestamp: last.timestamp }),
            limits: status.resources,
            started_at: status.started_at,
            seen_at: now(),
            ..Figures::default()
        };
        let Some(cgroup) = self.0.sampler.cgroup(&subject).await else {
            let reading = self.0.sampler.told(&subject.id).await.unwrap_or_default();
            return Figures { reading, ..known };
        };
        let read = flow::blocking(move || {
            let (reading, details) = (cgroup.read(), cgroup.details());
            let processes = (!details.processes.is_empty())
                .then(|| Processes::of(Path::new("/proc"), &details.processes, status.pid));
            let named = |disk: &DeviceIo| (device_name(disk.major, disk.minor), disk.clone());
            Ok((reading, details.disks.iter().map(named).collect(), processes, details))
        });
        match read.await {
            Ok((reading, disks, processes, details)) => {
                Figures { reading, details, disks, processes, ..known }
            }
            Err(_) => known,
        }
    }

    /// The disks of the containers' snapshotters, by snapshotter.
    pub(super) async fn file_systems(&self, containers: &[Arc<Container>]) -> HashMap<String, FileSystem> {
        let mut roots = HashMap::new();
        for container in containers {
            let snapshotter = self.snapshotter(container);
            if !roots.contains_key(snapshotter) {
                roots.insert(snapshotter.to_owned(), self.root(snapshotter));
            }
        }
        let read = flow::blocking(move || {
            let disks = roots.into_iter().filter_map(|(name, root)| Some((name, FileSystem::at(&root)?)));
            Ok(disks.collect())
        });
        read.await.unwrap_or_default()
    }
}

impl FileSystem {
    fn at(path: &str) -> Option<FileSystem> {
        let found = rustix::fs::statvfs(path).ok()?;
        let device = std::fs::metadata(path).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        // One that is on no disk of its own (tmpfs, btrfs) has no name.
        let device = block_device(major, minor).unwrap_or_else(|| "/".to_owned());
        Some(FileSystem {
            device,
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }
}

impl Processes {
    /// Of the processes `pids`, of which `first` is the container's own; `proc` is where the
    /// kernel shows them.
    fn of(proc: &Path, pids: &[u32], first: u32) -> Processes {
        let mut descriptors = Some((0, 0));
        for pid in pids {
            // One that has ended meanwhile has none.
            let entries = std::fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten();
            for entry in entries {
                descriptors = descriptors.filter(|(files, _)| *files < DESCRIPTORS_MAX);
                let Some((files, sockets)) = &mut descriptors else { break };
                *files += 1;
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                *sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
        let limits = std::fs::read_to_string(proc.join(format!("{first}/limits"))).unwrap_or_default();
        // A count beyond what can be counted is what another reader would call wrong.
        let count = u64::try_from(pids.len()).unwrap_or(u64::MAX);
        Processes { count, descriptors, open_files_max: open_files_max(&limits) }
    }
}

/// Of the line `Max open files  soft  hard  files`; none without a limit.
fn open_files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The name of a block device, or its numbers where it has none.
fn device_name(major: u32, minor: u32) -> String {
    block_device(major, minor).unwrap_or_else(|| format!("{major}:{minor}"))
}

fn block_device(major: u32, minor: u32) -> Option<String> {
    let facts = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    facts.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_sockets_are_counted() {
        let proc = tempfile::tempdir().expect("a folder");
        for pid in ["7", "8"] {
            let open = proc.path().join(pid).join("fd");
            std::fs::create_dir_all(&open).expect("a folder");
            for (number, target) in [("0", "/dev/null"), ("3", "socket:[12345]"), ("4", "pipe:[1]")] {
                std::os::unix::fs::symlink(target, open.join(number)).expect("a link");
            }
        }
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax processes  1  2  processes\n\
                      Max open files            1024                 524288               files\n";
        std::fs::write(proc.path().join("7/limits"), limits).expect("a file");
        let found = Processes::of(proc.path(), &[7, 8, 9], 7);
        let want = Processes { count: 3, descriptors: Some((6, 2)), open_files_max: Some(1024) };
        assert_eq!(found, want);
        assert_eq!(open_files_max("Max open files unlimited unlimited files\n"), None);
    }

    #[test]
    fn devices_without_a_name_show_their_numbers() {
        assert_eq!(device_name(4095, 7), "4095:7");
    }

    #[test]
    fn a_file_system_is_that_of_its_folder() {
        let found = FileSystem::at("/").expect("the root");
        assert!(found.bytes > 0 && !found.device.is_empty(), "{found:?}");
        assert!(found.inodes >= found.inodes_free, "{found:?}");
        assert_eq!(FileSystem::at("/there/is/none"), None);
    }
}
