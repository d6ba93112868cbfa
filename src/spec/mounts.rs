//! Mounts of a container.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | – | proc, /dev, devpts, shm, mqueue, sysfs, or those of a base spec; cgroup | OCI-26 |
//! | `mounts` | bind mounts in place of a default with the same target; `/dev` drops the defaults below it | OCI-27 |
//! | order | by depth of the target, as given within a depth | OCI-28 |
//! | `host_path` | a link is resolved, what is missing made as a folder (done by gather) | OCI-29, OCI-30 |
//! | `propagation` | `rprivate`, `rslave`, `rshared`; the host's mount must allow it | OCI-31 |
//! | `readonly`, `recursive_read_only` | `ro`, `rro` | OCI-32 |
//! | – | the pod's hostname, hosts, resolv.conf and shm where no mount has their target | OCI-36 |
//! | `image`, `image_sub_path` | a bind mount of where the image is mounted, which is gathered; read-only and private alone | OCI-37, OCI-38 |
//! | `uid_mappings`, `gid_mappings` | `uidMappings`, `gidMappings` of the bind mount; an image is mounted with them before | OCI-34 |
//! | – | in a user namespace with the host's network, `/sys` is the host's | SBX-28 |
//! | `mount_options` | options of the bind mount, on top of all others | OCI-35 |

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::namespaces;
use super::oci::{IdMapping, Mount};
use super::paths::{clean, depth};
use super::{Features, Host};
use crate::error::{Context, Error, Kind, Result, invalid, precondition};
use crate::proto::cri::{self, MountPropagation};
use crate::sys::userns::IdMap;

/// What the kubelet looks for at the beginning of a message (ERR-09).
pub const IMAGE_VOLUME_FAILED: &str = "ImageVolumeMountFailed";
/// The same, of recursive read-only mounts.
pub const RRO_UNSUPPORTED: &str = "RROUnsupported";
/// What `mount_options` may hold: what takes something away from what is mounted.
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];
const NO_ID_MAPPED_MOUNTS: &str = "the runtime handler has no id-mapped mounts";
const SHM: &str = "/dev/shm";

/// A CRI mount's source on the host, as gathered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostMount {
    /// The host path, resolved if it is a link; of an image volume, where that is mounted.
    pub source: PathBuf,
    /// The mount point that it is on, for the error.
    pub mount_point: PathBuf,
    /// Whether that mount is shared.
    pub shared: bool,
    /// Whether that mount is a slave of another.
    pub slave: bool,
}

/// The pod's own files, bound into every container.
#[derive(Clone, Debug, Default)]
pub struct PodFiles {
    /// `/etc/hostname`
    pub hostname: PathBuf,
    /// `/etc/hosts`
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`
    pub resolv_conf: PathBuf,
    /// `/dev/shm`: the pod's, or the host's with host IPC.
    pub shm: PathBuf,
}

/// The parts of a request that decide about mounts.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `mounts`
    pub mounts: &'a [cri::Mount],
    /// The same, gathered.
    pub gathered: &'a [HostMount],
    /// Volumes that the image declares: host folder and target.
    pub volumes: &'a [(PathBuf, String)],
    /// The pod's files.
    pub files: &'a PodFiles,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// Privileged container.
    pub privileged: bool,
    /// The handler lets containers write to their cgroup.
    pub cgroup_writable: bool,
    /// The container has a cgroup namespace.
    pub own_cgroup_namespace: bool,
    /// What the handler's runtime can.
    pub features: Features,
    /// `/sys` is the host's.
    pub host_sys: bool,
    /// The host.
    pub host: &'a Host,
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    }
}

/// What every container has without a base spec.
pub(super) fn defaults() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(SHM, "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

/// Makes file systems of `kind` writable: where a privileged container has them.
pub(super) fn make_writable(mounts: &mut [Mount], kind: &str) {
    let options = mounts.iter_mut().filter(|mount| mount.kind == kind).flat_map(|mount| &mut mount.options);
    options.filter(|option| *option == "ro").for_each(|option| "rw".clone_into(option));
}

/// Puts the host's `/sys` in place of one of the container's own (SBX-28): all of it, and
/// read-only also for privileged containers. As a slave, or in a container with a shared
/// root file system what is mounted on it (the cgroups) would cover the host's own, where
/// the runtime still looks for its sources.
fn use_host_sys(list: &mut [Mount]) {
    for given in list.iter_mut().filter(|given| given.destination == "/sys") {
        *given = mount("/sys", "bind", "/sys", &["rbind", "rro", "rslave", "nosuid", "nodev", "noexec"]);
    }
}

/// The mounts of a pause container: the defaults, the pod's shm and resolv.conf.
#[must_use]
pub fn of_pause(privileged: bool, host_sys: bool, shm: &Path, resolv_conf: &Path) -> Vec<Mount> {
    let mut list = defaults();
    list.retain(|mount| mount.destination != SHM);
    if privileged {
        make_writable(&mut list, "sysfs");
    }
    if host_sys {
        use_host_sys(&mut list);
    }
    // The flags are needed in user namespaces and do no harm elsewhere.
    let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
    list.push(mount(SHM, "bind", &shm.to_string_lossy(), &options));
    list.push(mount("/etc/resolv.conf", "bind", &resolv_conf.to_string_lossy(), &options));
    list
}

/// Lays the mounts of a container over those that it starts from, and raises the
/// propagation of its root (empty: the runtime's own) to what they need.
///
/// # Errors
/// InvalidArgument for contradictions; FailedPrecondition where the host's mount does not
/// allow the propagation; Unimplemented for what is not built.
pub fn of_container(request: Request<'_>, start: Vec<Mount>, root: &mut String) -> Result<Vec<Mount>> {
    let mut binds = Vec::new();
    for (given, host) in request.mounts.iter().zip(request.gathered) {
        binds.push(bind(given, host, request.features, root)?);
    }
    let asked: HashSet<String> = binds.iter().map(|mount| clean(&mount.destination)).collect();
    let mut add = |target: &str, source: &Path, access: &str| {
        if !asked.contains(&clean(target)) && !source.as_os_str().is_empty() {
            binds.push(mount(target, "bind", &source.to_string_lossy(), &["rbind", "rprivate", access]));
        }
    };
    let files = request.files;
    let access = if request.readonly_rootfs { "ro" } else { "rw" };
    add("/etc/hostname", &files.hostname, access);
    add("/etc/hosts", &files.hosts, access);
    add("/etc/resolv.conf", &files.resolv_conf, access);
    add(SHM, &files.shm, "rw");
    for (source, target) in request.volumes {
        add(target, source, "rw");
    }
    binds.sort_by_key(|mount| depth(&mount.destination));

    let mut list = start;
    list.push(cgroup(&request));
    let taken: HashSet<String> = binds.iter().map(|mount| clean(&mount.destination)).collect();
    list.retain(|mount| {
        let target = clean(&mount.destination);
        !(taken.contains(&target) || taken.contains("/dev") && target.starts_with("/dev/"))
    });
    if request.privileged {
        make_writable(&mut list, "sysfs");
        make_writable(&mut list, "cgroup");
    }
    if request.host_sys {
        use_host_sys(&mut list);
    }
    list.extend(binds);
    Ok(list)
}

/// The cgroup file system. In the host's cgroup namespace it is the host's one mount seen
/// again, and what is not repeated of its options would be taken from the host.
fn cgroup(request: &Request<'_>) -> Mount {
    let access = if request.cgroup_writable { "rw" } else { "ro" };
    let mut cgroup =
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]);
    if !request.own_cgroup_namespace {
        cgroup.options.extend(request.host.cgroup_mount_options.iter().cloned());
    }
    cgroup
}

/// One CRI mount; raises the propagation of the root to what it needs.
fn bind(given: &cri::Mount, host: &HostMount, features: Features, root: &mut String) -> Result<Mount> {
    let source = host.source.to_string_lossy();
    let on = host.mount_point.display();
    let propagation = match MountPropagation::try_from(given.propagation) {
        Ok(MountPropagation::PropagationBidirectional) => {
            if !host.shared {
                return Err(precondition(format!(
                    "mount {source:?}: it is on {on}, which is not a shared mount (bidirectional propagation)"
                )));
            }
            "rshared".clone_into(root);
            "rshared"
        }
        Ok(MountPropagation::PropagationHostToContainer) => {
            if !host.shared && !host.slave {
                return Err(precondition(format!(
                    "mount {source:?}: it is on {on}, which is neither a shared nor a slave mount (host to container propagation)"
                )));
            }
            if root != "rshared" {
                "rslave".clone_into(root);
            }
            "rslave"
        }
        // Unknown values count as private (OCI-31).
        Ok(MountPropagation::PropagationPrivate) | Err(_) => "rprivate",
    };
    let access = match (given.readonly, given.recursive_read_only) {
        (true, false) => "ro",
        (false, false) => "rw",
        (false, true) => {
            return Err(invalid(format!("mount {source:?}: recursive_read_only without readonly")));
        }
        (true, true) if !features.recursive_read_only => {
            // The text must begin with the word (ERR-09).
            return Err(Error::new(
                Kind::Unknown,
                format!(
                    "{RRO_UNSUPPORTED}: the runtime handler has no recursive read-only mounts (mount {source:?})"
                ),
            ));
        }
        (true, true) if given.propagation != MountPropagation::PropagationPrivate as i32 => {
            return Err(invalid(format!("mount {source:?}: recursive_read_only needs private propagation")));
        }
        (true, true) => "rro",
    };
    let mut bind = mount(&given.container_path, "bind", &source, &["rbind", propagation, access]);
    for option in &given.mount_options {
        if !bind.options.contains(option) {
            bind.options.push(option.clone());
        }
    }
    // An image has been mounted with them.
    if given.image.is_none() && has_mappings(given) {
        if !features.id_mapped_mounts {
            return Err(precondition(format!("mount {source:?}: {NO_ID_MAPPED_MOUNTS}")));
        }
        bind.uid_mappings = mappings(&given.uid_mappings);
        bind.gid_mappings = mappings(&given.gid_mappings);
    }
    Ok(bind)
}

fn has_mappings(given: &cri::Mount) -> bool {
    !given.uid_mappings.is_empty() || !given.gid_mappings.is_empty()
}

fn mappings(list: &[cri::IdMapping]) -> Vec<IdMapping> {
    let of = |one: &cri::IdMapping| IdMapping {
        container_id: one.container_id,
        host_id: one.host_id,
        size: one.length,
    };
    list.iter().map(of).collect()
}

/// Refuses id mappings of a mount that cannot be meant, or not be made (OCI-34).
fn check_mappings(given: &cri::Mount, features: Features) -> Result<()> {
    if !has_mappings(given) {
        return Ok(());
    }
    if given.image.is_some() {
        return namespaces::maps(&given.uid_mappings, &given.gid_mappings).map(drop);
    }
    for (what, list) in [("uid_mappings", &given.uid_mappings), ("gid_mappings", &given.gid_mappings)] {
        if list.is_empty() {
            return Err(invalid(format!("{what} are missing: a mount is mapped by both or by neither")));
        }
        for one in list {
            IdMap::new(one.container_id, one.host_id, one.length).context(|| what)?;
        }
    }
    if !features.id_mapped_mounts {
        return Err(precondition(NO_ID_MAPPED_MOUNTS));
    }
    Ok(())
}

/// Refuses what a mount asks for that is not built or contradicts itself, before anything
/// is made.
///
/// # Errors
/// InvalidArgument for mounts without a target or source, for image volumes that are more
/// than read-only and private, and for id mappings that are none; FailedPrecondition for id
/// mappings where the runtime has none; Unimplemented.
pub fn check(mounts: &[cri::Mount], features: Features) -> Result<()> {
    for given in mounts {
        let target = given.container_path.as_str();
        if target.is_empty() {
            return Err(invalid(format!("mount of {:?}: no container_path", given.host_path)));
        }
        let word = if given.image.is_some() { format!("{IMAGE_VOLUME_FAILED}: ") } else { String::new() };
        if let Err(wrong) = check_source(given) {
            return Err(invalid(format!("{word}mount at {target:?}: {wrong}")));
        }
        check_mappings(given, features).context(|| format!("{word}mount at {target:?}"))?;
        if let Some(option) =
            given.mount_options.iter().find(|option| !MOUNT_OPTIONS.contains(&option.as_str()))
        {
            let known = MOUNT_OPTIONS.join(", ");
            return Err(invalid(format!(
                "{word}mount at {target:?}: mount option {option:?} is not one of {known}"
            )));
        }
    }
    Ok(())
}

/// Whether a mount says well what is mounted; else what is wrong with it.
fn check_source(given: &cri::Mount) -> Result<(), String> {
    let Some(image) = &given.image else {
        return match given.host_path.as_str() {
            _ if !given.image_sub_path.is_empty() => Err("image_sub_path without an image".into()),
            "" => Err("no host_path".into()),
            path if !Path::new(path).is_absolute() => Err(format!("host_path {path:?} is not absolute")),
            _ => Ok(()),
        };
    };
    if image.image.is_empty() {
        return Err("no image is named".into());
    }
    if !given.host_path.is_empty() {
        return Err(format!("an image and the host_path {:?} are given", given.host_path));
    }
    if !given.readonly {
        return Err("an image can only be mounted readonly".into());
    }
    if given.propagation != MountPropagation::PropagationPrivate as i32 {
        return Err("an image can only be mounted with private propagation".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
