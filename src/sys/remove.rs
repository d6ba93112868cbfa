//! Removing folders that containers have filled.
//!
//! What is in them is a stranger's: links are not followed, and a tree may be deeper than a
//! thread's stack, a process's descriptors or a path's length allow. So nothing here grows
//! with the depth: what has something in it is moved up to the top, one level below which
//! everything is removed.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::ids::random_hex;

/// Removes `path` with everything that is in it. Blocks.
///
/// # Errors
/// NotFound if it is not there; the kernel's reason.
pub fn tree(path: &Path) -> std::io::Result<()> {
    if remove_one(CWD, path, Gone::IsAnError)? {
        return Ok(());
    }
    let top = open(CWD, path)?;
    // An entry that is moved up while the folder is read may be missed: read again.
    while clear(&top)? {}
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes what is in the folder, the contents of its folders moved up; false if there was
/// nothing.
fn clear(top: &OwnedFd) -> rustix::io::Result<bool> {
    let mut had_some = false;
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dots(name.to_bytes()) {
            continue;
        }
        had_some = true;
        while !remove_one(top, name, Gone::IsFine)? {
            let inner = open(top, name)?;
            for entry in Dir::read_from(&inner)? {
                let entry = entry?;
                let name = entry.file_name();
                if !is_dots(name.to_bytes()) && !remove_one(&inner, name, Gone::IsFine)? {
                    rustix::fs::renameat(&inner, name, top, random_hex::<16>())?;
                }
            }
        }
    }
    Ok(had_some)
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn open(folder: impl std::os::fd::AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// What is to be said of something that is not there.
#[derive(Clone, Copy, PartialEq)]
enum Gone {
    IsFine,
    IsAnError,
}

/// Removes a file or an empty folder. False if it is a folder with something in it.
fn remove_one(
    folder: impl std::os::fd::AsFd + Copy,
    name: impl Arg + Copy,
    gone: Gone,
) -> rustix::io::Result<bool> {
    for flags in [AtFlags::empty(), AtFlags::REMOVEDIR] {
        match rustix::fs::unlinkat(folder, name, flags) {
            Ok(()) => return Ok(true),
            Err(Errno::NOENT) if gone == Gone::IsFine => return Ok(true),
            // POSIX says PERM for a folder, Linux ISDIR.
            Err(Errno::ISDIR | Errno::PERM) if flags.is_empty() => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if !flags.is_empty() => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;

    /// Folders in one another, without a path that long; gives the innermost.
    fn chain(from: &Path, depth: usize) -> OwnedFd {
        let mut folder = open(CWD, from).expect("a folder");
        for _ in 0..depth {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).expect("made");
            folder = open(&folder, "d").expect("a folder");
        }
        folder
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().expect("folder");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for folder in [&outside, &root.join("a/b/c"), &root.join("empty")] {
            std::fs::create_dir_all(folder).expect("folder");
        }
        std::fs::write(outside.join("file"), "marked").expect("file");
        for name in ["link", "a/link", "a/b/c/link"] {
            symlink(&outside, root.join(name)).expect("link");
            std::fs::write(root.join(name).with_file_name("file"), "x").expect("file");
        }
        tree(&root).expect("removed");
        assert!(!root.exists());
        assert_eq!(std::fs::read_to_string(outside.join("file")).expect("file"), "marked");
        assert_eq!(tree(&root).map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        // A link in the folder's own place is what is removed.
        symlink(&outside, &root).expect("link");
        tree(&root).expect("removed");
        assert!(outside.join("file").exists() && std::fs::symlink_metadata(&root).is_err());
    }

    /// A container can make it: one mkdir and one chdir a level.
    #[test]
    fn a_tree_may_be_deeper_than_any_stack() {
        let dir = tempfile::tempdir().expect("folder");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("folder");
        let inner = chain(&root, 30_000);
        rustix::fs::symlinkat("/etc", &inner, "link").expect("link");
        drop(inner);
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let removing = small.spawn({
            let root = root.clone();
            move || tree(&root)
        });
        removing.expect("a thread").join().expect("it has room").expect("removed");
        assert!(!root.exists());
    }

    #[test]
    fn a_wide_tree_goes_as_well() {
        let dir = tempfile::tempdir().expect("folder");
        let root = dir.path().join("root");
        for number in 0..300 {
            let folder = root.join(format!("{}/{number}/x/y", number % 7));
            std::fs::create_dir_all(&folder).expect("folder");
            (0..5).for_each(|name| std::fs::write(folder.join(name.to_string()), "x").expect("file"));
        }
        tree(&root).expect("removed");
        assert!(!root.exists());
    }
}
