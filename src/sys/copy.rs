//! Copies of folder trees, with everything that belongs to their files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Context, Result, invalid};

/// How deep a copied tree may be.
const DEPTH_MAX: usize = 255;
/// Extended attributes have at most this size.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// The label of the copy is the container's, not the image's.
const SELINUX_XATTR: &[u8] = b"security.selinux";

/// Copies what is in the folder `from` into the folder `to`, with owners, modes, times,
/// extended attributes, links and device nodes; `to` gets the attributes of `from`.
///
/// # Errors
/// Those of the file system, naming the path; InvalidArgument for a tree too deep.
pub fn copy_tree(from: &OwnedFd, to: &Path) -> Result<()> {
    let base = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    // Through the descriptor's own entry: `.` makes the link be followed.
    let base = base.join(".");
    let mut copied = HashMap::new();
    copy_folder(&base, to, &mut copied, 0)
}

/// Copies by (device, inode), so that hard links stay links.
type Copied = HashMap<(u64, u64), PathBuf>;

fn copy_folder(from: &Path, to: &Path, copied: &mut Copied, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(invalid(format!("{from:?} is deeper than {DEPTH_MAX} folders")));
    }
    for entry in std::fs::read_dir(from).context(|| format!("read folder {from:?}"))? {
        let name = entry.context(|| format!("read folder {from:?}"))?.file_name();
        copy_entry(&from.join(&name), &to.join(&name), copied, depth)?;
    }
    // Last: making entries changes the times of their folder.
    copy_attributes(from, to)
}

fn copy_entry(from: &Path, to: &Path, copied: &mut Copied, depth: usize) -> Result<()> {
    let what = || format!("copy {from:?}");
    let metadata = std::fs::symlink_metadata(from).context(what)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        std::fs::create_dir(to).context(what)?;
        return copy_folder(from, to, copied, depth + 1);
    }
    if metadata.nlink() > 1 {
        let first = copied.entry((metadata.dev(), metadata.ino())).or_insert_with(|| to.to_owned());
        if first != to {
            return std::fs::hard_link(first, to).context(what);
        }
    }
    if kind.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(from).context(what)?, to).context(what)?;
    } else if kind.is_file() {
        std::fs::copy(from, to).context(what)?;
    } else if kind.is_socket() {
        return Ok(()); // nobody listens on a copy
    } else {
        let node = if kind.is_char_device() {
            FileType::CharacterDevice
        } else if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            FileType::Fifo
        };
        rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(metadata.mode() & 0o7777), metadata.rdev())
            .context(what)?;
    }
    copy_attributes(from, to)
}

fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("attributes of {to:?}");
    // A folder opened by its descriptor is named with a trailing "."; that is followed.
    let metadata = std::fs::symlink_metadata(from).context(what)?;
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid())).context(what)?;
    copy_xattrs(from, to).context(what)?;
    if !metadata.file_type().is_symlink() {
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(metadata.mode() & 0o7777))
            .context(what)?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).context(what)
}

fn copy_xattrs(from: &Path, to: &Path) -> Result<()> {
    let mut names = vec![0u8; XATTR_BYTES_MAX];
    let length = match rustix::fs::llistxattr(from, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = Vec::new();
    for name in
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != SELINUX_XATTR)
    {
        value.resize(XATTR_BYTES_MAX, 0);
        let name = OsStr::from_bytes(name);
        let bytes = rustix::fs::lgetxattr(from, name, value.as_mut_slice())?;
        match rustix::fs::lsetxattr(to, name, &value[..bytes], rustix::fs::XattrFlags::empty()) {
            Err(Errno::NOTSUP) => {} // the other file system has none
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::beneath::open_folder;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_copy_has_owners_modes_and_links() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).expect("made");
        std::fs::create_dir(&to).expect("made");
        std::fs::write(from.join("sub/file"), "text").expect("written");
        std::fs::hard_link(from.join("sub/file"), from.join("again")).expect("a link");
        symlink("sub/file", from.join("link")).expect("a link");
        std::fs::set_permissions(from.join("sub/file"), std::fs::Permissions::from_mode(0o4711))
            .expect("mode");
        std::os::unix::fs::chown(from.join("sub"), Some(1234), Some(4321)).expect("owner (needs root)");
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o1770)).expect("mode");
        let folder = open_folder(&from, "/").expect("opens").expect("exists");
        copy_tree(&folder, &to).expect("copies");

        let of = |path: &str| std::fs::symlink_metadata(to.join(path)).expect("copied");
        assert_eq!(std::fs::read_to_string(to.join("link")).expect("reads"), "text");
        assert_eq!((of("sub").uid(), of("sub").gid()), (1234, 4321));
        assert_eq!(of("sub/file").mode() & 0o7777, 0o4711);
        assert_eq!(of("again").ino(), of("sub/file").ino());
        assert_eq!(of(".").mode() & 0o7777, 0o1770);
    }
}
