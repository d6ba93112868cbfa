//! Removing what a layer replaces or deletes, however deep it is, with two descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::name::shown;
use super::{At, Result};
use crate::error::unknown;
use crate::sys::beneath::open_exactly;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

/// Removes `base` in `folder` with everything that is in it, and follows no link. What is
/// not there is fine.
///
/// # Errors
/// The kernel's reason.
pub(super) fn remove(folder: BorrowedFd<'_>, base: &[u8]) -> Result<()> {
    let what = || format!("remove {}", shown(base));
    if remove_one(folder, base).at(what)? {
        return Ok(());
    }
    // Folders that have something in them, each in the one before.
    let mut path = vec![base.to_vec()];
    while !path.is_empty() {
        // Opened by its path, so that a deep tree does not need a descriptor a level.
        let open = open_exactly(folder, &path.join(&b"/"[..]), FOLDER).at(what)?;
        match first_full(&open).at(what)? {
            Some(full) => path.push(full),
            None => {
                let (parent, base) = path.split_at(path.len() - 1);
                let parent = open_exactly(folder, &parent.join(&b"/"[..]), FOLDER).at(what)?;
                if !remove_one(parent.as_fd(), &base[0]).at(what)? {
                    return Err(unknown(format!("{}: somebody else writes into it", what())).into());
                }
                path.pop();
            }
        }
    }
    Ok(())
}

/// Removes what is in `folder`, until there is a folder with something in it.
fn first_full(folder: &OwnedFd) -> rustix::io::Result<Option<Vec<u8>>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !remove_one(folder.as_fd(), name)? {
            return Ok(Some(name.to_vec()));
        }
    }
    Ok(None)
}

/// Removes a file or an empty folder. False if it is a folder that is not empty.
fn remove_one(folder: BorrowedFd<'_>, base: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(folder, base, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // POSIX says PERM for a folder, Linux ISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(folder, base, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what is below the folder `path` of `root`, but for what `keeps` says of its
/// path. What is in a folder that is removed goes with it; what is in one that is kept is
/// asked about.
///
/// # Errors
/// The kernel's reason.
pub(super) fn clear(root: BorrowedFd<'_>, path: &[u8], keeps: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut pending = vec![path.to_vec()];
    while let Some(path) = pending.pop() {
        let what = || format!("clear {}", shown(&path));
        let folder = match open_exactly(root, &path, FOLDER) {
            // A file system need not say in a list what is a folder.
            Err(Errno::NOTDIR | Errno::LOOP) => continue,
            other => other.at(what)?,
        };
        for entry in Dir::read_from(&folder).at(what)? {
            let entry = entry.at(what)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let inner = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
            if !keeps(&inner) {
                remove(folder.as_fd(), name)?;
            } else if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                pending.push(inner);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn trees_go_whole_and_what_links_lead_to_stays() {
        let dir = tempfile::tempdir().expect("folder");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("folder");
        fs::write(outside.join("file"), "stays").expect("file");
        let root = dir.path().join("root");
        let mut deep = root.join("tree");
        for level in 0..600 {
            deep.push(if level % 3 == 0 { "x" } else { "yz" });
        }
        fs::create_dir_all(&deep).expect("folders");
        for i in 0..50 {
            fs::create_dir_all(root.join(format!("tree/wide/{i}/inner"))).expect("folder");
            fs::write(root.join(format!("tree/wide/{i}/file")), "").expect("file");
        }
        symlink(&outside, deep.join("link")).expect("link");
        symlink(&outside, root.join("link")).expect("link");
        let open = fs::File::open(&root).expect("opens");
        for name in ["tree", "link", "nothing"] {
            remove(open.as_fd(), name.as_bytes()).expect("removed");
        }
        assert_eq!(fs::read_dir(&root).expect("reads").count(), 0);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("reads"), "stays");
    }

    #[test]
    fn clearing_keeps_what_it_is_told_to() {
        let dir = tempfile::tempdir().expect("folder");
        for folder in ["a/kept/inner", "a/gone/kept"] {
            fs::create_dir_all(dir.path().join(folder)).expect("folder");
        }
        for file in ["a/kept/inner/1", "a/kept/2", "a/3", "4"] {
            fs::write(dir.path().join(file), "").expect("file");
        }
        let root = fs::File::open(dir.path()).expect("opens");
        let kept = [&b"a/kept"[..], b"a/kept/2", b"a/gone/kept"];
        clear(root.as_fd(), b"a", |path| kept.contains(&path)).expect("cleared");
        let list = |path: &str| {
            let names = fs::read_dir(dir.path().join(path)).expect("reads").flatten();
            let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(
            (list(""), list("a"), list("a/kept")),
            (vec!["4".into(), "a".into()], vec!["kept".into()], vec!["2".into()])
        );
    }
}
