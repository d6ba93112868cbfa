//! Reads from the host what the translation needs, before it runs.

pub mod classes;

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::classes::Classes;
use super::devices::check_permissions;
use super::security::{self, Profile};
use super::selinux::Policy;
use super::{Edits, Features, Host, HostDevice, HostMount, ImageConfig, LocalProfile, paths};
use crate::config::Config;
use crate::config::file::ContainerSection;
use crate::error::{Context, Result, invalid};
use crate::proto::cri::{ContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation};
use crate::sys;
use crate::sys::mountinfo::{self, MountPoint};

/// A seccomp profile of the node has at most this many bytes.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

/// Folders below /dev that are made anew in every container, or are the host's own.
const DEV_SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Options of cgroup v2 that hold for all its mounts: who mounts it without them takes them
/// from the host.
const REPEATED_CGROUP_OPTIONS: [&str; 2] = ["nsdelegate", "memory_recursiveprot"];

/// Facts of one container.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Of `mounts`, in their order.
    pub mounts: Vec<HostMount>,
    /// Volumes that the image declares: host folder and target.
    pub volumes: Vec<(PathBuf, String)>,
    /// Of `devices`, folders unfolded.
    pub devices: Vec<HostDevice>,
    /// All of the host's, for privileged containers.
    pub host_devices: Vec<HostDevice>,
    /// The seccomp profile of the node.
    pub seccomp: Option<LocalProfile>,
    /// What the CDI devices change; gathered by [`crate::cdi`].
    pub edits: Edits,
    /// Its classes; gathered by [`classes`].
    pub classes: Classes,
}

/// What was made on the host for a container before.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// The folder for volumes that the image declares.
    pub volumes_dir: PathBuf,
    /// Where images are mounted, for those of `mounts` that are image volumes.
    pub image_volumes: Vec<Option<PathBuf>>,
    /// Host paths that are missing are not made: nothing is, for who only looks.
    pub leaves_missing: bool,
}

/// Reads the facts of the host.
#[must_use]
pub fn host(restrict_oom_score_adj: bool) -> Host {
    let release = rustix::system::uname();
    let exists = |path: &str| Path::new(path).exists();
    let cgroup_v2 = exists("/sys/fs/cgroup/cgroup.controllers");
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v2_controller = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    Host {
        cgroup_v2,
        capabilities: sys::process::bounding_capabilities(),
        seccomp: exists("/proc/sys/kernel/seccomp/actions_avail"),
        apparmor: sys::apparmor::support(),
        apparmor_profiles: Vec::new(),
        selinux: selinux_is_on().then(|| selinux_policy(Path::new("/"))),
        kernel: kernel_version(&release.release().to_string_lossy()),
        hostname: release.nodename().to_string_lossy().into_owned(),
        user_namespaces: exists("/proc/self/ns/user")
            && std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
                .is_ok_and(|text| text.trim() != "0"),
        swap_controller: if cgroup_v2 {
            swap_on_v2()
        } else {
            exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
        },
        cgroup_mount_options: mountinfo::super_options(Path::new("/sys/fs/cgroup"))
            .into_iter()
            .filter(|option| REPEATED_CGROUP_OPTIONS.contains(&option.as_str()))
            .collect(),
        hugetlb_controller: if cgroup_v2 {
            v2_controller("hugetlb")
        } else {
            exists("/sys/fs/cgroup/hugetlb")
        },
        oom_score_adj: sys::process::oom_score_adj(),
        restrict_oom_score_adj,
    }
}

/// Reads the facts of the host, as a server with `config` takes them.
#[must_use]
pub fn host_for(config: &Config) -> Host {
    let mut host = host(config.restrict_oom_score_adj);
    if !config.file.sandbox.enable_selinux {
        host.selinux = None;
    }
    if config.file.container.disable_apparmor {
        host.apparmor = sys::apparmor::Support::Disabled;
    }
    host.hugetlb_controller &= !config.file.container.disable_hugetlb_controller;
    host
}

/// Whether the kernel has a policy in force, or in permissive mode.
fn selinux_is_on() -> bool {
    const MAGIC: i64 = 0xf97c_ff8c;
    let mounted = "/sys/fs/selinux";
    #[allow(clippy::useless_conversion)] // the field's type is another one elsewhere
    let is_mounted = rustix::fs::statfs(mounted).is_ok_and(|found| i64::from(found.f_type) == MAGIC);
    let is_read_only = || {
        let flags = rustix::fs::statvfs(mounted).map(|found| found.f_flag);
        flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    // Before a policy is loaded, every process is the kernel's.
    let label = || std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    is_mounted && !is_read_only() && label().trim_end_matches(['\0', '\n']) != "kernel"
}

/// The labels for containers of the policy below `root`: of the file that container tools
/// share, else of the policy's own. Empty where there is none.
fn selinux_policy(root: &Path) -> Policy {
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    let own = || {
        let config = read(Path::new("etc/selinux/config"))?;
        let lines = config.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        let kind = lines.filter_map(|line| line.strip_prefix("SELINUXTYPE=")).next()?;
        read(&Path::new("etc/selinux").join(kind.trim_matches('"')).join("contexts/lxc_contexts"))
    };
    let text = read(Path::new("usr/share/containers/selinux/contexts")).or_else(own);
    Policy::parse(&text.unwrap_or_default())
}

/// On v2 the root cgroup has no memory files: the first child that has one tells.
fn swap_on_v2() -> bool {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_matches('/');
    let own = Path::new("/sys/fs/cgroup").join(own);
    let candidates = std::iter::once(own)
        .chain(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    candidates.into_iter().any(|path| path.join("memory.swap.max").exists())
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Reads what `binary features` of an OCI runtime says (SVC-18, SVC-20), and leaves out
/// what the kernel cannot do.
///
/// # Errors
/// When it does not know the sub-command or prints no JSON.
pub fn parse_features(json: &[u8], host: &Host) -> Result<Features> {
    let value: serde_json::Value =
        serde_json::from_slice(json).map_err(|error| invalid(format!("features: {error}")))?;
    let has = |list: &serde_json::Value, name: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|item| item == name))
    };
    // Both came with mount_setattr(2).
    let can_change_mounts = host.kernel >= (5, 12);
    let id_mapped_mounts = value["linux"]["mountExtensions"]["idmap"]["enabled"] == true && can_change_mounts;
    Ok(Features {
        recursive_read_only: has(&value["mountOptions"], "rro") && can_change_mounts,
        id_mapped_mounts,
        user_namespaces: has(&value["linux"]["namespaces"], "user")
            && id_mapped_mounts
            && host.user_namespaces,
        net_devices: value["linux"]["netDevices"]["enabled"] == true,
    })
}

/// The seccomp profile that a container asks for, the configured one where it asks for none.
///
/// # Errors
/// InvalidArgument for a profile of no known form.
pub fn seccomp_profile(
    context: &LinuxContainerSecurityContext,
    text: &str,
    options: &ContainerSection,
) -> Result<Profile> {
    let profile = security::seccomp_profile(context.seccomp.as_ref(), text, context.privileged)?;
    Ok(profile.or_unset(&options.unset_seccomp_profile))
}

/// Reads the facts of one container. May hang on a dead network mount: call it on a
/// blocking thread. Missing host paths of mounts are made (OCI-29), unless `prepared` says
/// otherwise.
///
/// # Errors
/// InvalidArgument for a device that is none; the file system's errors.
pub fn container(
    config: &ContainerConfig,
    image: &ImageConfig,
    prepared: &Prepared,
    options: &ContainerSection,
) -> Result<Gathered> {
    let context = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let mut gathered = Gathered::default();
    for (index, given) in config.mounts.iter().enumerate() {
        gathered.mounts.push(match prepared.image_volumes.get(index) {
            Some(Some(source)) => HostMount { source: source.clone(), ..HostMount::default() },
            _ if prepared.leaves_missing && is_missing(&given.host_path) => {
                HostMount { source: given.host_path.clone().into(), ..HostMount::default() }
            }
            _ => mount(Path::new(&given.host_path), needs_propagation(given))?,
        });
    }
    for given in &config.devices {
        check_permissions(&given.permissions, &given.host_path)?;
        let list = device(&given.host_path, &given.container_path, &given.permissions)?;
        gathered.devices.extend(list);
    }
    if context.privileged {
        gathered.host_devices = host_devices();
    }
    if !options.ignore_image_volumes {
        gathered.volumes = volumes(image, config, &prepared.volumes_dir);
    }
    gathered.seccomp = local_seccomp(&seccomp_profile(&context, security_text(&context), options)?)?;
    Ok(gathered)
}

/// The node's seccomp profile, if one is asked for.
///
/// # Errors
/// FailedPrecondition for one that is missing or unreadable.
pub fn local_seccomp(profile: &Profile) -> Result<Option<LocalProfile>> {
    let Profile::Localhost(path) = profile else { return Ok(None) };
    let what = || format!("seccomp profile {path:?}");
    if !Path::new(path).is_absolute() {
        return Err(invalid(format!("{}: not an absolute path", what())));
    }
    // A device or a FIFO would have no end.
    if !std::fs::metadata(path).context(what)?.is_file() {
        return Err(invalid(format!("{}: not a regular file", what())));
    }
    let mut text = String::new();
    let file = File::open(path).context(what)?;
    file.take(PROFILE_BYTES_MAX + 1).read_to_string(&mut text).context(what)?;
    if text.len() as u64 > PROFILE_BYTES_MAX {
        return Err(invalid(format!("{}: larger than {PROFILE_BYTES_MAX} bytes", what())));
    }
    Ok(Some(LocalProfile { path: path.clone(), text }))
}

#[allow(deprecated)] // older kubelets still send the text form (OCI-19)
fn security_text(context: &LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

/// Whether the host's mount must be looked at; unknown values count as private (OCI-31).
fn needs_propagation(given: &Mount) -> bool {
    let asked = MountPropagation::try_from(given.propagation);
    asked.is_ok_and(|propagation| propagation != MountPropagation::PropagationPrivate)
}

/// Whether the host path of a mount is not there, and would be made.
#[must_use]
pub fn is_missing(path: &str) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn mount(path: &Path, with_propagation: bool) -> Result<HostMount> {
    let what = || format!("mount of {path:?}");
    match std::fs::metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Not changed by its name once it is there: who may write to the folder that it is
            // in could have put a link in its place.
            DirBuilder::new().recursive(true).mode(0o755).create(path).context(what)?;
        }
        Err(error) => return Err(error).context(what),
    }
    let source = resolved(path).context(what)?;
    if !with_propagation {
        return Ok(HostMount { source, ..HostMount::default() });
    }
    let real = source.canonicalize().context(what)?;
    let MountPoint { path: mount_point, shared, slave } = mountinfo::containing(&mountinfo::read()?, &real);
    Ok(HostMount { source, mount_point, shared, slave })
}

/// A path of the host as a spec names it: where it leads if it is a link itself, else as
/// it is given.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    if std::fs::symlink_metadata(path)?.is_symlink() { path.canonicalize() } else { Ok(path.to_owned()) }
}

/// One device, or all below a folder (OCI-40).
fn device(host_path: &str, container_path: &str, permissions: &str) -> Result<Vec<HostDevice>> {
    let what = || format!("device {host_path:?}");
    let source = resolved(Path::new(host_path)).context(what)?;
    let target = if container_path.is_empty() { &*source.to_string_lossy() } else { container_path };
    if std::fs::metadata(&source).context(what)?.is_dir() {
        let mut list = Vec::new();
        walk(&source, target, permissions, &mut list);
        return Ok(list);
    }
    match node(&source, target, permissions) {
        Some(device) => Ok(vec![device]),
        None => Err(invalid(format!("{}: it is not a device node", what()))),
    }
}

fn host_devices() -> Vec<HostDevice> {
    let mut list = Vec::new();
    walk(Path::new("/dev"), "/dev", "rwm", &mut list);
    list
}

/// Adds the devices below `folder` as they are below `target`, sorted by name, bounded in
/// depth; what cannot be read is passed over: devices come and go. Consoles are the
/// runtime's own to make, and a FIFO is none of the host's devices.
fn walk(folder: &Path, target: &str, permissions: &str, found: &mut Vec<HostDevice>) {
    fn go(folder: &Path, target: &str, permissions: &str, depth: usize, found: &mut Vec<HostDevice>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            let (path, name) = (entry.path(), entry.file_name());
            let target = paths::join(target, &name.to_string_lossy());
            if kind.is_dir() {
                if depth > 0 && !DEV_SKIPPED.iter().any(|skipped| name == *skipped) {
                    go(&path, &target, permissions, depth - 1, found);
                }
            } else if name != "console" {
                found.extend(node(&path, &target, permissions).filter(|device| device.kind != 'p'));
            }
        }
    }
    go(folder, target, permissions, 8, found);
}

fn node(path: &Path, container_path: &str, permissions: &str) -> Option<HostDevice> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        'c'
    } else if kind.is_block_device() {
        'b'
    } else if kind.is_fifo() {
        'p'
    } else {
        return None;
    };
    Some(HostDevice {
        path: container_path.to_owned(),
        kind,
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

/// A folder for each volume that the image declares and no CRI mount covers (CTR-08).
fn volumes(image: &ImageConfig, config: &ContainerConfig, dir: &Path) -> Vec<(PathBuf, String)> {
    let taken: HashSet<String> =
        config.mounts.iter().map(|mount| paths::clean(&mount.container_path)).collect();
    let mut list: Vec<(PathBuf, String)> = image
        .volumes
        .iter()
        .filter(|target| !target.is_empty() && !taken.contains(&paths::clean(target)))
        .map(|target| {
            // A relative path is taken from the root.
            let target = if target.starts_with('/') { target.clone() } else { paths::join("/", target) };
            (dir.join(crate::ids::random_hex::<16>()), target)
        })
        .collect();
    list.sort_by(|a, b| a.1.cmp(&b.1));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shared file goes before that of the policy in use.
    #[test]
    fn the_selinux_policy_is_found_where_the_host_has_it() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        assert_eq!(selinux_policy(root.path()), Policy::default());
        write("etc/selinux/config", "# SELINUXTYPE=old\nSELINUX=enforcing\nSELINUXTYPE=targeted\n");
        write("etc/selinux/targeted/contexts/lxc_contexts", "process = \"u:r:a:s0\"\n");
        assert_eq!(selinux_policy(root.path()).process, "u:r:a:s0");
        write("usr/share/containers/selinux/contexts", "process = \"u:r:b:s0\"\n");
        assert_eq!(selinux_policy(root.path()).process, "u:r:b:s0");
    }

    #[test]
    fn a_missing_host_path_is_made() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b");
        let found = mount(&path, false).expect("made");
        assert!(path.is_dir());
        assert_eq!(found.source, path);
    }

    #[test]
    fn a_symlink_is_resolved() {
        let dir = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).expect("a link");
        let found = mount(&dir.path().join("link"), true).expect("resolved");
        assert_eq!(found.source, Path::new("/usr"));
        // A link on the way is the kernel's to follow.
        let below = dir.path().join("link/bin");
        assert_eq!(mount(&below, false).expect("there").source, below);
    }

    #[test]
    fn devices_are_read_and_others_refused() {
        let null = device("/dev/null", "/dev/mine", "rw").expect("a device");
        assert_eq!((null[0].kind, null[0].major, null[0].minor), ('c', 1, 3));
        assert_eq!(null[0].path, "/dev/mine");
        assert!(device("/etc/passwd", "", "r").is_err());
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("pts")).expect("a folder");
        for name in ["b", "a", "pts/c"] {
            let (path, mode) = (dir.path().join(name), rustix::fs::Mode::RUSR);
            rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("a FIFO");
        }
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("zero")).expect("a link");
        let folder = dir.path().to_string_lossy();
        assert_eq!(device(&folder, "/dev/x", "r"), Ok(vec![]));
        let fifo = device(&format!("{folder}/a"), "", "r").expect("a FIFO by name");
        assert_eq!((fifo[0].kind, fifo[0].path.as_str()), ('p', format!("{folder}/a").as_str()));
        let zero = device(&format!("{folder}/zero"), "", "r").expect("a link");
        assert_eq!(zero[0].path, "/dev/zero");
        assert!(
            device("/dev/there-is-none", "", "r")
                .is_err_and(|error| error.message().contains("there-is-none"))
        );
    }

    /// SVC-18.
    #[test]
    fn features_are_read_from_runc() {
        let host = |kernel, user_namespaces| Host { kernel, user_namespaces, ..Host::default() };
        let new = host((6, 1), true);
        let json = br#"{"mountOptions":["ro","rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let all = Features {
            recursive_read_only: true,
            id_mapped_mounts: true,
            user_namespaces: true,
            net_devices: false,
        };
        assert_eq!(parse_features(json, &new), Ok(all));
        assert_eq!(parse_features(json, &host((5, 11), true)), Ok(Features::default()));
        let none = Features { user_namespaces: false, ..all };
        assert_eq!(parse_features(json, &host((6, 1), false)), Ok(none));
        let old = br#"{"mountOptions":["rro"],"linux":{"namespaces":["user"]}}"#;
        let old = parse_features(old, &new).expect("features");
        assert!(old.recursive_read_only && !old.user_namespaces && !old.id_mapped_mounts);
        assert_eq!(parse_features(b"{}", &new), Ok(Features::default()));
        let net = br#"{"linux":{"netDevices":{"enabled":true}}}"#;
        assert_eq!(parse_features(net, &new), Ok(Features { net_devices: true, ..Features::default() }));
        assert!(parse_features(b"unknown command", &new).is_err());
    }
}
