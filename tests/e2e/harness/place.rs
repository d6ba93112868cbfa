//! Where a node of a test lives: a folder, a bridge, a subnet and a cgroup of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::machine::{CgroupDriver, patient};
use super::procfs::{self, Running};
use super::slot::Slot;

/// Programs that a node starts and that name its folder in their command line.
const PROGRAMS: [&str; 5] = ["longshore", "containerd", "containerd-shim", "runc", "crun"];
/// Where the CRI plugin has the files of libcni, and only there.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// How long the processes of a node may take to vanish after SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(10);
/// The longest path of a folder that leaves room for sockets (107 bytes).
const FOLDER_BYTES_MAX: usize = 60;

/// A place; dropping it ends and removes everything that is in it.
pub(crate) struct Place {
    folder: PathBuf,
    slot: Slot,
}

impl Place {
    /// A new one.
    pub(crate) fn new() -> Place {
        assert!(rustix::process::geteuid().is_root(), "the end-to-end tests need root");
        let base = std::env::temp_dir();
        // Sockets are in there.
        let base = if base.as_os_str().len() > FOLDER_BYTES_MAX - 10 { "/tmp".into() } else { base };
        let mut builder = tempfile::Builder::new();
        let folder = builder.prefix("ls-").rand_bytes(6).tempdir_in(base).expect("a folder").keep();
        // Users of user namespaces have to pass.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(&folder, mode).expect("permissions");
        let (slot, left) = Slot::take(&folder);
        let place = Place { folder, slot };
        if let Some(left) = left.filter(|left| is_name(left)) {
            remove(&left, &place.bridge());
        }
        place
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Something in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The name of its bridge.
    pub(crate) fn bridge(&self) -> String {
        format!("lst{}", self.slot.number)
    }

    /// The first three bytes of its addresses.
    pub(crate) fn network(&self) -> String {
        format!("10.200.{}", self.slot.number)
    }

    /// Its name, which no other place ever has: that of its CNI network, too.
    pub(crate) fn name(&self) -> String {
        name(&self.folder)
    }

    /// Files of libcni in `results` that are about its networks: by name, or because they
    /// name a namespace in its folder.
    pub(crate) fn cni_results(&self, results: &Path) -> Vec<PathBuf> {
        cni_results(&self.folder, results)
    }

    /// `text` with what is in braces filled in: folder, name, bridge, network (three bytes of
    /// an address), subnet.
    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{folder}", &self.folder.display().to_string())
            .replace("{name}", &self.name())
            .replace("{bridge}", &self.bridge())
            .replace("{subnet}", &format!("{}.0/24", self.network()))
            .replace("{network}", &self.network())
    }

    /// Folders of its cgroups, one a hierarchy.
    pub(crate) fn cgroup_folders(&self) -> Vec<PathBuf> {
        cgroup_folders(&self.folder)
    }

    /// Processes that name its folder in their command line.
    pub(crate) fn processes(&self) -> Vec<Running> {
        processes(&self.folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.folder, &self.bridge());
        if !self.folder.exists() {
            self.slot.clear();
        }
    }
}

/// Whether this can be the folder of a place.
fn is_name(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    folder.is_absolute() && name.is_some_and(|name| name.starts_with("ls-"))
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn cgroup_folders(folder: &Path) -> Vec<PathBuf> {
    let name = name(folder);
    let both = [CgroupDriver::Cgroupfs, CgroupDriver::Systemd].map(|driver| driver.of_node(&name));
    let both = both.map(|path| path.trim_start_matches('/').to_owned());
    let roots = procfs::cgroup_roots().into_iter();
    let folders = roots.flat_map(|root| both.clone().map(|path| root.join(path)));
    folders.filter(|folder| folder.is_dir()).collect()
}

fn processes(folder: &Path) -> Vec<Running> {
    let below = format!("{}/", folder.display());
    let mut all = procfs::processes();
    all.retain(|process| {
        let program = process.program();
        PROGRAMS.iter().any(|name| program.starts_with(name))
            && process.arguments.iter().any(|argument| argument.contains(&below))
    });
    all
}

fn cni_results(folder: &Path, results: &Path) -> Vec<PathBuf> {
    let (network, below) = (format!("{}-", name(folder)), format!("{}/", folder.display()));
    let mut files = procfs::names(results);
    files.retain(|file| {
        file.starts_with(&network)
            || std::fs::read_to_string(results.join(file)).is_ok_and(|text| text.contains(&below))
    });
    files.into_iter().map(|file| results.join(file)).collect()
}

/// Ends and removes all that is or was in a place: its processes, those in its cgroups,
/// mounts, bridge, sockets, cgroups, files.
fn remove(folder: &Path, bridge: &str) {
    end_processes(folder);
    // The names of shims' sockets are hashes; each bundle knows its own.
    for bundle in procfs::folders_below(&folder.join("cs")) {
        let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            let _ = std::fs::remove_file(socket);
        }
    }
    for point in procfs::mounts_below(folder).iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    if Path::new("/sys/class/net").join(bridge).exists() {
        let _ = Command::new("ip").args(["link", "delete", bridge]).status();
    }
    for file in cni_results(folder, Path::new(CNI_RESULTS)) {
        let _ = std::fs::remove_file(file);
    }
    for cgroup in cgroup_folders(folder) {
        // systemd would keep what it thinks is its own.
        if let Some(slice) = cgroup.file_name().filter(|_| cgroup.extension().is_some()) {
            let _ = Command::new("systemctl").arg("stop").arg(slice).status();
        }
        for inner in procfs::folders_below(&cgroup).iter().rev() {
            let _ = std::fs::remove_dir(inner);
        }
        let _ = std::fs::remove_dir(cgroup);
    }
    if let Err(error) = std::fs::remove_dir_all(folder)
        && folder.exists()
    {
        eprintln!("{}: {error}", folder.display());
    }
}

/// Kills until nobody is left: servers first, that nobody starts anything any more.
fn end_processes(folder: &Path) {
    let end = Instant::now() + patient(END_LIMIT);
    loop {
        let mut pids: Vec<u32> = processes(folder).iter().map(|process| process.pid).collect();
        for cgroup in cgroup_folders(folder) {
            for inner in procfs::folders_below(&cgroup).iter().chain([&cgroup]) {
                let list = std::fs::read_to_string(inner.join("cgroup.procs")).unwrap_or_default();
                pids.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        // Zombies wait for a parent that may not be ours.
        pids.retain(|pid| !is_zombie(*pid));
        if pids.is_empty() {
            return;
        }
        if Instant::now() > end {
            eprintln!("processes of {} do not end: {pids:?}", folder.display());
            return;
        }
        for pid in pids {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(super::PAUSE);
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}
