//! Mounts whose files show other owners: id-mapped mounts (Linux 5.12; layers of an overlay
//! 5.19).
//!
//! What is mounted for a pod with a user namespace shows the owners of an image as that
//! pod's, without a change on disk. An overlay cannot be mapped itself, but its layers can:
//! the folder that they share is mapped, and the overlay is made of what is below that. All
//! of it happens in a mount namespace that goes away; what leaves it is one mount, detached,
//! which is then attached to its place. No step of the way is ever seen by others, or left.
//!
//! All functions block.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::mount::{Mount, common_folder, mount_all, private_namespace};
use super::userns::{self, IdMaps, Wanted};
use crate::error::{Context, Result, unimplemented};

/// Mounts `mounts` at `target`, which exists, with the ids of what is mounted mapped.
///
/// # Errors
/// Unimplemented for more than one mount, and where kernel or file system have no id-mapped
/// mounts; else the kernel's reason.
pub fn mount_mapped(mounts: &[Mount], target: &Path, maps: &IdMaps) -> Result<()> {
    let [mount] = mounts else {
        return Err(unimplemented(format!("{} mounts over one another cannot be id-mapped", mounts.len())));
    };
    let user = userns::create(maps, Wanted::User)?.user;
    let made = private_namespace(|| detached(&without_mapping(mount), target, &user))?;
    attach(&made, target).context(|| format!("mount at {target:?}"))
}

/// A mount without the mapping that a snapshotter may have given it.
#[must_use]
pub fn without_mapping(mount: &Mount) -> Mount {
    let mut mount = mount.clone();
    mount.options.retain(|option| !is_mapping(option));
    mount
}

/// Whether a snapshotter wants the mount id-mapped: what is on disk has the image's owners.
#[must_use]
pub fn is_mapped(mount: &Mount) -> bool {
    mount.options.iter().any(|option| is_mapping(option))
}

fn is_mapping(option: &str) -> bool {
    option.starts_with("uidmap=") || option.starts_with("gidmap=")
}

/// Makes the mount at `place` in this mount namespace, which is to end, and takes it off.
fn detached(mount: &Mount, place: &Path, user: &OwnedFd) -> Result<OwnedFd> {
    let layers = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    match layers.filter(|_| mount.kind == "overlay") {
        Some(layers) => {
            let mount = over_mapped_layers(mount, layers, place, user)?;
            mount_all(&[mount], place)?;
            take(place)
        }
        None => {
            mount_all(std::slice::from_ref(mount), place)?;
            let made = take(place)?;
            map(&made, user).context(|| format!("map the ids of {:?}", mount.source))?;
            Ok(made)
        }
    }
}

/// The overlay `mount` with its layers seen through a mapped mount, which is put at `place`.
fn over_mapped_layers(mount: &Mount, layers: &str, place: &Path, user: &OwnedFd) -> Result<Mount> {
    let what = || "map the ids of the layers";
    // A backslash escapes a colon within a path: too rare to take apart.
    let base = common_folder(layers.split(':')).filter(|base| !layers.contains('\\') && base != "/");
    let base = base.ok_or_else(|| unimplemented("layers without a folder in common")).context(what)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let shared = rustix::mount::open_tree(CWD, base.as_str(), flags).context(what)?;
    map(&shared, user).context(what)?;
    attach(&shared, place).context(what)?;
    let mapped: Vec<String> = layers
        .split(':')
        .filter_map(|layer| layer.strip_prefix(&base))
        .map(|layer| place.join(layer).to_string_lossy().into_owned())
        .collect();
    let mapped = format!("lowerdir={}", mapped.join(":"));
    let mut mount = mount.clone();
    for option in &mut mount.options {
        if option.starts_with("lowerdir=") {
            option.clone_from(&mapped);
        }
    }
    Ok(mount)
}

/// A copy of the mount at `place`, attached to nothing and nobody's peer.
fn take(place: &Path) -> Result<OwnedFd> {
    rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context(|| "part a mount from its peers")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, place, flags).context(|| "take a mount off its place")
}

fn attach(mount: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// `struct mount_attr` of the kernel.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Maps the ids of a detached mount.
fn map(mount: &OwnedFd, user: &OwnedFd) -> Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        user_namespace: u64::try_from(user.as_fd().as_raw_fd()).unwrap_or_default(),
        ..MountAttributes::default()
    };
    // SAFETY: the path is an empty C string and the structure the kernel's; both live
    // through the call, which reads them. The descriptors are open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => {
            Err(unimplemented("this kernel has no id-mapped mounts of its file system"))
        }
        _ => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mount::unmount_all;
    use crate::sys::userns::IdMap;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, chown};

    fn bind(source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn a_folder_and_an_overlay_show_mapped_owners_and_stay_as_they_are() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let root = tempfile::tempdir().expect("a folder");
        let (place, long) = (root.path().join("place"), "x".repeat(60));
        fs::create_dir(&place).expect("a folder");
        let layers: Vec<_> = (0..80).map(|layer| root.path().join(format!("{long}/{layer}/fs"))).collect();
        for (number, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer).expect("a folder");
            fs::write(layer.join(format!("file-{number}")), "").expect("a file");
            chown(layer.join(format!("file-{number}")), Some(7), Some(8)).expect("an owner");
        }
        let maps = IdMaps {
            uids: IdMap::new(0, 1_000_000, 100).expect("a mapping"),
            gids: IdMap::new(0, 2_000_000, 100).expect("a mapping"),
        };
        let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).expect("a file");
        let lower: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec!["ro".into(), format!("lowerdir={}", lower.join(":")), "uidmap=0:1:1".into()],
            ..Mount::default()
        };
        assert!(is_mapped(&overlay) && !is_mapped(&without_mapping(&overlay)));
        for (mount, file) in [(bind(&layers[3], &["rbind", "ro"]), 3), (overlay, 79)] {
            mount_mapped(std::slice::from_ref(&mount), &place, &maps).expect("mounts");
            let file = format!("file-{file}");
            assert_eq!(owner(&place.join(&file)), (1_000_007, 2_000_008), "{}", mount.kind);
            assert!(fs::write(place.join(file), "x").is_err(), "read-only");
            unmount_all(&place).expect("unmounts");
            assert_eq!(fs::read_dir(&place).expect("a folder").count(), 0, "one mount, and no other");
        }
        assert_eq!(owner(&layers[3].join("file-3")), (7, 8));
    }

    #[test]
    fn what_cannot_be_mapped_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let place = tempfile::tempdir().expect("a folder");
        let map = IdMap::new(0, 1_000_000, 100).expect("a mapping");
        let maps = IdMaps { uids: map, gids: map };
        let error = mount_mapped(&[bind(Path::new("/proc"), &["bind"])], place.path(), &maps);
        let error = error.expect_err("/proc has no mapped mounts");
        assert!(error.message().contains("no id-mapped mounts"), "{error}");
        assert!(!place.path().join("self").exists());
    }
}
