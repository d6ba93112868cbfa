//! Cgroups as folders: where they are, and what their files say.
//!
//! The folder of a container is found by its process, `/proc/PID/cgroup`, not by what the
//! OCI spec asked for: the driver writes it its own way, and without a parent the runtime
//! chooses. The path is cut at the part that has the container's id in its name, as the
//! last part of every driver's path has: a process that moved itself into a cgroup below
//! (systemd does) still counts as all of its container, and a process that is not the
//! container's (the id was given to another one) is not found at all. That of a pod is its
//! `cgroup_parent`.

mod details;
mod v1;
mod v2;

use std::path::{Component, Path, PathBuf};

pub(super) use details::{Details, DeviceIo, HugePages};

use super::reading::Reading;
use crate::sys::mountinfo::{self, CgroupMount};

/// The hierarchies of the host: version 1 with those controllers that are read, or 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hierarchies {
    V1(Box<V1<CgroupMount>>),
    V2(CgroupMount),
}

/// Something for each controller of version 1 that is read; each may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct V1<T> {
    pub(super) cpuacct: Option<T>,
    pub(super) cpu: Option<T>,
    pub(super) memory: Option<T>,
    pub(super) pids: Option<T>,
    pub(super) blkio: Option<T>,
    pub(super) hugetlb: Option<T>,
}

/// A cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    V1(V1<PathBuf>),
    V2(PathBuf),
}

impl Hierarchies {
    /// Those of this host; none if no cgroups are mounted.
    pub(super) fn of_host() -> Option<Hierarchies> {
        Hierarchies::of(mountinfo::cgroups().ok()?)
    }

    /// A host that has version 1 and 2 has its controllers with version 1.
    fn of(mounts: Vec<CgroupMount>) -> Option<Hierarchies> {
        let with = |controller: &str| {
            let mut found = mounts.iter().filter(|mount| mount.controllers.iter().any(|c| c == controller));
            // A hierarchy may be mounted several times, in parts, too.
            let whole = found.clone().find(|mount| mount.root == Path::new("/"));
            whole.or_else(|| found.next()).cloned()
        };
        let v1 = V1 {
            cpuacct: with("cpuacct"),
            cpu: with("cpu"),
            memory: with("memory"),
            pids: with("pids"),
            blkio: with("blkio"),
            hugetlb: with("hugetlb"),
        };
        if v1 != V1::default() {
            return Some(Hierarchies::V1(Box::new(v1)));
        }
        mounts.into_iter().find(|mount| mount.is_unified).map(Hierarchies::V2)
    }

    /// The cgroup of the container `id`, whose process has this `/proc/PID/cgroup`.
    pub(super) fn of_container(&self, table: &str, id: &str) -> Option<Cgroup> {
        let path = |controller: &str| cut(path_in(table, controller)?, id);
        match self {
            Hierarchies::V1(mounts) => {
                let folder = |mount: &Option<CgroupMount>, controller: &str| {
                    folder(mount.as_ref()?, &path(controller)?)
                };
                let folders = V1 {
                    cpuacct: folder(&mounts.cpuacct, "cpuacct"),
                    cpu: folder(&mounts.cpu, "cpu"),
                    memory: folder(&mounts.memory, "memory"),
                    pids: folder(&mounts.pids, "pids"),
                    blkio: folder(&mounts.blkio, "blkio"),
                    hugetlb: folder(&mounts.hugetlb, "hugetlb"),
                };
                (folders != V1::default()).then_some(Cgroup::V1(folders))
            }
            Hierarchies::V2(mount) => folder(mount, &path("")?).map(Cgroup::V2),
        }
    }

    /// The cgroup of a pod, as its `cgroup_parent` says: a path, or the name of a slice.
    pub(super) fn of_pod(&self, parent: &str) -> Option<Cgroup> {
        let path = slice(parent).unwrap_or_else(|| parent.to_owned());
        let path = Path::new("/").join(path);
        match self {
            Hierarchies::V1(mounts) => {
                let folder = |mount: &Option<CgroupMount>| folder(mount.as_ref()?, &path);
                Some(Cgroup::V1(V1 {
                    cpuacct: folder(&mounts.cpuacct),
                    cpu: folder(&mounts.cpu),
                    memory: folder(&mounts.memory),
                    pids: folder(&mounts.pids),
                    blkio: folder(&mounts.blkio),
                    hugetlb: folder(&mounts.hugetlb),
                }))
            }
            Hierarchies::V2(mount) => folder(mount, &path).map(Cgroup::V2),
        }
    }
}

impl Cgroup {
    /// What it uses; empty when it is gone.
    pub(super) fn read(&self) -> Reading {
        match self {
            Cgroup::V1(folders) => v1::read(folders),
            Cgroup::V2(folder) => v2::read(folder),
        }
    }

    /// Its cpu time alone.
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        match self {
            Cgroup::V1(folders) => v1::cpu_ns(folders.cpuacct.as_deref()?),
            Cgroup::V2(folder) => v2::cpu_ns(folder),
        }
    }
}

/// The path for a controller in `/proc/PID/cgroup`: `number:controller,controller:path`; an
/// empty one for version 2.
fn path_in<'a>(table: &'a str, controller: &str) -> Option<&'a str> {
    table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The path up to the part that names the container.
fn cut(path: &str, id: &str) -> Option<PathBuf> {
    let mut kept = PathBuf::from("/");
    for part in path.split('/').filter(|part| !part.is_empty()) {
        // The kernel shows so what lies outside of our own cgroup namespace.
        if part == ".." {
            return None;
        }
        kept.push(part);
        if part.contains(id) {
            return Some(kept);
        }
    }
    None
}

/// Where systemd has a slice: each part of its name is one below the former.
fn slice(parent: &str) -> Option<String> {
    let name = parent.trim_end_matches('/').rsplit('/').next()?.strip_suffix(".slice")?;
    if name == "-" {
        return Some("/".to_owned());
    }
    let mut path = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push_str(&format!("/{}.slice", &name[..end]));
    }
    Some(path)
}

fn folder(mount: &CgroupMount, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(&mount.root).ok()?;
    // A parent that a client has named leads nowhere but to cgroups.
    let is_below = rest.components().all(|part| matches!(part, Component::Normal(_)));
    is_below.then(|| mount.path.join(rest))
}

/// A file's number; none for `max` as well.
fn number(folder: &Path, file: &str) -> Option<u64> {
    text(folder, file)?.trim().parse().ok()
}

fn text(folder: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(file)).ok()
}

/// The value of a line `key value`.
fn entry(table: &str, key: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
