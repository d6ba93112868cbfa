//! Owners of a whole tree, shifted from those that an image has to those of a pod's user
//! namespace: for root file systems that cannot be mounted id-mapped.
//!
//! What a change of owner takes away with it is put back: the set-user-id and set-group-id
//! bits, and file capabilities, which then count for root of that namespace. On an overlay
//! each file is copied up; names that were one file stay one.
//!
//! Blocks. Nobody else may change the tree meanwhile.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::userns::IdMaps;
use crate::error::{Context, Result, invalid, precondition};

/// How deep a tree may be: a folder on each level is open.
const DEPTH_MAX: usize = 255;
/// The xattr of file capabilities.
const CAPABILITIES: &CStr = c"security.capability";
/// Bits that a change of owner clears.
const SET_ID_BITS: u32 = 0o6000;

/// Shifts the owners of `root` and of everything below it.
///
/// # Errors
/// FailedPrecondition for an owner that `maps` does not have, naming the file;
/// InvalidArgument for a tree too deep; those of the file system.
pub fn shift(root: &Path, maps: &IdMaps) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, root, flags, Mode::empty()).context(|| format!("open {root:?}"))?;
    let mut shift = Shift { maps, root: &folder, links: HashMap::new() };
    shift.folder(&folder, Path::new(""), 0)
}

struct Shift<'a> {
    maps: &'a IdMaps,
    root: &'a OwnedFd,
    /// Files of several names, by (device, inode) as they were: the name that came first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Shift<'_> {
    fn folder(&mut self, folder: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        let what = || format!("owners of {path:?}");
        if depth > DEPTH_MAX {
            return Err(invalid(format!("{path:?} is deeper than {DEPTH_MAX} folders")));
        }
        let status = rustix::fs::fstat(folder).context(what)?;
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(folder).context(what)? {
            let name = entry.context(what)?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        let mut is_changed = false;
        for name in names {
            is_changed |= self.entry(folder, &name, path, depth)?;
        }
        let (uid, gid) = self.mapped(&status, path)?;
        rustix::fs::fchown(folder, Some(uid), Some(gid)).context(what)?;
        if is_changed {
            rustix::fs::futimens(folder, &times(&status)).context(what)?;
        }
        Ok(())
    }

    /// One entry of a folder; says whether the folder itself was written to.
    fn entry(&mut self, folder: &OwnedFd, name: &CStr, path: &Path, depth: usize) -> Result<bool> {
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let what = || format!("owner of {path:?}");
        let status = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(folder, name, flags, Mode::empty()).context(what)?;
            return self.folder(&inner, &path, depth + 1).map(|()| false);
        }
        if status.st_nlink > 1 {
            let key = (status.st_dev, status.st_ino);
            if let Some(first) = self.links.get(&key) {
                let first_now =
                    rustix::fs::statat(self.root, first, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
                if (first_now.st_dev, first_now.st_ino) == key {
                    return Ok(false); // done by its other name
                }
                // The other name was copied up to a file of its own: this one joins it.
                if self.link_again(first, folder, name) {
                    return Ok(true);
                }
            } else {
                self.links.insert(key, path.clone());
            }
        }
        let (uid, gid) = self.mapped(&status, &path)?;
        let capabilities = if kind == FileType::RegularFile { capabilities(folder, name)? } else { None };
        rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        if kind != FileType::Symlink && status.st_mode & SET_ID_BITS != 0 {
            let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
            rustix::fs::chmodat(folder, name, mode, AtFlags::empty()).context(what)?;
        }
        if let Some(value) = capabilities.and_then(|value| self.of_the_namespace(&value)) {
            set_capabilities(folder, name, &value).context(|| format!("capabilities of {path:?}"))?;
        }
        Ok(false)
    }

    fn mapped(&self, status: &Stat, path: &Path) -> Result<(Uid, Gid)> {
        let (uid, gid) = (status.st_uid, status.st_gid);
        let (host_uid, host_gid) = self.maps.to_host(uid, gid).ok_or_else(|| {
            let path = Path::new("/").join(path);
            precondition(format!("{path:?} is of {uid}:{gid}, which the user namespace does not have"))
        })?;
        Ok((Uid::from_raw(host_uid), Gid::from_raw(host_gid)))
    }

    /// Makes `name` a further name of what is at `first`; false if that is not possible.
    fn link_again(&self, first: &Path, folder: &OwnedFd, name: &CStr) -> bool {
        let temporary = format!(".link-{}", crate::ids::random_hex::<16>());
        if rustix::fs::linkat(self.root, first, folder, &temporary, AtFlags::empty()).is_err() {
            return false;
        }
        let renamed = rustix::fs::renameat(folder, &temporary, folder, name);
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::empty());
        }
        renamed.is_ok()
    }

    /// File capabilities that count for root of the namespace: those of the image count for
    /// root of whoever has mounted it. None for what is no capability.
    fn of_the_namespace(&self, value: &[u8]) -> Option<Vec<u8>> {
        const REVISION_MASK: u32 = 0xff00_0000;
        const REVISIONS: [(u32, usize); 2] = [(0x0200_0000, 20), (0x0300_0000, 24)];
        let word = |at: usize| value.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let head = word(0)?;
        let (revision, _) =
            REVISIONS.into_iter().find(|known| *known == (head & REVISION_MASK, value.len()))?;
        let root = if revision == REVISIONS[1].0 { word(20)? } else { 0 };
        let mut mapped = (head & !REVISION_MASK | REVISIONS[1].0).to_le_bytes().to_vec();
        mapped.extend_from_slice(&value[4..20]);
        mapped.extend(self.maps.uids.to_host(root)?.to_le_bytes());
        Some(mapped)
    }
}

fn times(status: &Stat) -> Timestamps {
    let nanoseconds = |value: u64| i64::try_from(value).unwrap_or_default();
    Timestamps {
        last_access: Timespec { tv_sec: status.st_atime, tv_nsec: nanoseconds(status.st_atime_nsec) },
        last_modification: Timespec { tv_sec: status.st_mtime, tv_nsec: nanoseconds(status.st_mtime_nsec) },
    }
}

/// The path of an entry by the descriptor of its folder: for calls that take no descriptor.
fn by_descriptor(folder: &OwnedFd, name: &CStr) -> PathBuf {
    let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()));
    folder.join(OsStr::from_bytes(name.to_bytes()))
}

fn capabilities(folder: &OwnedFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64];
    match rustix::fs::lgetxattr(by_descriptor(folder, name), CAPABILITIES, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error).context(|| format!("capabilities of {name:?}")),
    }
}

fn set_capabilities(folder: &OwnedFd, name: &CStr, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(by_descriptor(folder, name), CAPABILITIES, value, XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::sys::mount::{Mount, mount_all, private_namespace};
    use crate::sys::userns::IdMap;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    /// cap_net_raw+ep, as an image has it.
    const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn maps() -> IdMaps {
        IdMaps {
            uids: IdMap::new(0, 1_000_000, 1000).expect("a mapping"),
            gids: IdMap::new(0, 2_000_000, 1000).expect("a mapping"),
        }
    }

    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("skipped: not root");
        }
        is_root
    }

    /// An image: a program with another owner's bits, one with capabilities and two names, a
    /// link that leads out.
    fn fill(root: &Path) {
        fs::create_dir_all(root.join("bin/deep")).expect("a folder");
        for name in ["bin/su", "bin/ping"] {
            fs::write(root.join(name), name).expect("a file");
        }
        chown(root.join("bin/su"), Some(5), Some(6)).expect("an owner");
        fs::set_permissions(root.join("bin/su"), Permissions::from_mode(0o6755)).expect("a mode");
        rustix::fs::setxattr(root.join("bin/ping"), CAPABILITIES, &NET_RAW, XattrFlags::empty())
            .expect("an xattr");
        fs::hard_link(root.join("bin/ping"), root.join("bin/deep/again")).expect("a link");
        symlink("/etc/passwd", root.join("out")).expect("a link");
        let old = Timestamps {
            last_access: Timespec { tv_sec: 1000, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: 2000, tv_nsec: 5 },
        };
        rustix::fs::utimensat(CWD, root.join("bin/deep"), &old, AtFlags::empty()).expect("times");
    }

    fn check(root: &Path) {
        let of = |name: &str| fs::symlink_metadata(root.join(name)).expect("it is there");
        let owner = |name: &str| (of(name).uid(), of(name).gid());
        for name in [".", "bin", "bin/deep", "bin/ping", "bin/deep/again", "out"] {
            assert_eq!(owner(name), (1_000_000, 2_000_000), "{name}");
        }
        assert_eq!((owner("bin/su"), of("bin/su").mode() & 0o7777), ((1_000_005, 2_000_006), 0o6755));
        assert_eq!(of("bin/ping").ino(), of("bin/deep/again").ino(), "one file still");
        assert_eq!((of("bin/deep").mtime(), of("bin/deep").mtime_nsec()), (2000, 5));
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(root.join("bin/ping"), CAPABILITIES, &mut value[..]).expect("kept");
        assert_eq!(
            (length, &value[..4], &value[20..24]),
            (24, &[1, 0, 0, 3][..], &1_000_000u32.to_le_bytes()[..])
        );
    }

    #[test]
    fn owners_are_shifted_and_what_belongs_to_a_file_is_kept() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().expect("a folder");
        fill(root.path());
        let host = fs::metadata("/etc/passwd").expect("a file").uid();
        shift(root.path(), &maps()).expect("shifts");
        check(root.path());
        assert_eq!(fs::metadata("/etc/passwd").expect("a file").uid(), host, "no link was followed");
    }

    #[test]
    fn on_an_overlay_the_layers_stay_as_they_are() {
        if !is_root() {
            return;
        }
        let base = tempfile::tempdir().expect("a folder");
        let path = |name: &str| base.path().join(name);
        for name in ["lower", "upper", "work", "place"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        fill(&path("lower"));
        let text = |name: &str| path(name).display().to_string();
        let mount = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", text("lower")),
                format!("upperdir={}", text("upper")),
                format!("workdir={}", text("work")),
            ],
            ..Mount::default()
        };
        private_namespace(|| {
            mount_all(&[mount], &path("place"))?;
            shift(&path("place"), &maps())?;
            check(&path("place"));
            Ok(())
        })
        .expect("shifts");
        let lower = fs::metadata(path("lower/bin/su")).expect("it is there");
        assert_eq!((lower.uid(), lower.gid(), lower.mode() & 0o7777), (5, 6, 0o6755));
    }

    #[test]
    fn an_owner_that_is_not_mapped_is_named() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("home")).expect("a folder");
        fs::write(root.path().join("home/far"), "").expect("a file");
        chown(root.path().join("home/far"), Some(1000), Some(0)).expect("an owner");
        let error = shift(root.path(), &maps()).expect_err("not mapped");
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.message().contains("\"/home/far\" is of 1000:0"), "{error}");
    }
}
