//! Gives a tree of files an SELinux label (OCI-33).
//!
//! The tree may belong to a container that changes it meanwhile: below the root, names are
//! taken in their folder's descriptor, and no link is followed. What is on the host for
//! everybody is never relabelled: the host would not be usable any more.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Result, exhausted, precondition};

/// The attribute that holds a file's label.
pub const LABEL: &str = "security.selinux";
/// How deeply folders may be nested.
const DEPTH_MAX: usize = 512;
/// The longest label.
const LABEL_BYTES_MAX: usize = 4096;

/// What is everybody's.
const FORBIDDEN: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Labels `root`, whose path has no links in it, and all below; the root itself last. A root
/// that has the label already is taken as done, but for files in it that have another.
/// Files that vanish meanwhile and file systems without labels are passed over. Blocks.
///
/// # Errors
/// FailedPrecondition for the host's own folders; the system's.
pub fn tree(root: &Path, attribute: &str, label: &str) -> Result<()> {
    if FORBIDDEN.iter().any(|path| Path::new(path) == root) {
        return Err(precondition(format!("{root:?} is the host's own and is not relabelled")));
    }
    let what = || format!("relabel {root:?}");
    let work = Work {
        attribute,
        label: label.as_bytes(),
        only_others: has(root.as_os_str(), attribute, label.as_bytes()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, root, flags, Mode::empty()) {
        Ok(folder) => work.below(folder).context(what)?,
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(error).context(what),
    }
    work.label(root.as_os_str()).context(what)
}

struct Work<'a> {
    attribute: &'a str,
    label: &'a [u8],
    only_others: bool,
}

/// A folder that is being gone through.
struct Folder {
    fd: OwnedFd,
    rest: std::vec::IntoIter<(CString, FileType)>,
}

impl Folder {
    fn open(fd: OwnedFd) -> rustix::io::Result<Folder> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            if ![c".", c".."].contains(&entry.file_name()) {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        Ok(Folder { fd, rest: entries.into_iter() })
    }

    /// The path of `name` in this folder, whatever happens to the folder's own path.
    fn path(&self, name: &CStr) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        path
    }

    fn enter(&self, name: &CStr) -> rustix::io::Result<Option<Folder>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Folder::open(fd).map(Some),
            // Gone, or something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Work<'_> {
    fn below(&self, root: OwnedFd) -> Result<()> {
        let mut folders = vec![Folder::open(root)?];
        while let Some(folder) = folders.last_mut() {
            let Some((name, kind)) = folder.rest.next() else {
                folders.pop();
                continue;
            };
            self.label(OsStr::from_bytes(&folder.path(&name)))?;
            // Some file systems do not tell what an entry is.
            if matches!(kind, FileType::Directory | FileType::Unknown)
                && let Some(inner) = folder.enter(&name)?
            {
                if folders.len() == DEPTH_MAX {
                    return Err(exhausted(format!("folders are nested more than {DEPTH_MAX} deep")));
                }
                folders.push(inner);
            }
        }
        Ok(())
    }

    fn label(&self, path: &OsStr) -> rustix::io::Result<()> {
        if self.only_others && has(path, self.attribute, self.label) {
            return Ok(());
        }
        loop {
            return match rustix::fs::lsetxattr(path, self.attribute, self.label, XattrFlags::empty()) {
                Err(Errno::INTR) => continue,
                Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(()),
                other => other,
            };
        }
    }
}

/// Whether the file has this label; the kernel may end it by a NUL.
fn has(path: &OsStr, attribute: &str, label: &[u8]) -> bool {
    let mut value = vec![0; LABEL_BYTES_MAX];
    match rustix::fs::lgetxattr(path, attribute, &mut value[..]) {
        Ok(length) => value[..length].strip_suffix(b"\0").unwrap_or(&value[..length]) == label,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Every file system of ours has it, on files of every kind.
    const ATTRIBUTE: &str = "trusted.longshore.label";

    fn label_of(path: &Path) -> Option<String> {
        let mut value = [0; 100];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    }

    fn set(path: &Path, label: &str) {
        rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()).expect("as root");
    }

    #[test]
    fn a_tree_is_labelled_whole_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        std::fs::create_dir_all(root.join("a/b")).expect("folders");
        std::fs::create_dir(&outside).expect("a folder");
        let file = root.join(OsStr::from_bytes(b"a/b/n\xffme"));
        std::fs::write(&file, "x").expect("a file");
        symlink(&outside, root.join("a/link")).expect("a link");
        tree(&root, ATTRIBUTE, "one").expect("relabelled");
        for path in [root.clone(), root.join("a"), root.join("a/b"), file.clone(), root.join("a/link")] {
            assert_eq!(label_of(&path).as_deref(), Some("one"), "{path:?}");
        }
        assert_eq!(label_of(&outside), None);
        tree(&file, ATTRIBUTE, "two").expect("a single file");
        assert_eq!(label_of(&file).as_deref(), Some("two"));
        // A root that has it: only what is different changes.
        tree(&root, ATTRIBUTE, "one").expect("relabelled");
        assert_eq!(label_of(&file).as_deref(), Some("one"));
    }

    /// An end by NUL is no other label, and is left as it is.
    #[test]
    fn a_root_that_is_done_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("f");
        std::fs::write(&file, "x").expect("a file");
        set(folder.path(), "one\0");
        set(&file, "one\0");
        tree(folder.path(), ATTRIBUTE, "one").expect("nothing to do");
        assert_eq!(label_of(&file).as_deref(), Some("one\0"));
    }

    #[test]
    fn the_hosts_own_folders_are_never_relabelled() {
        for path in ["/", "/etc", "/usr", "/home", "/var/lib", "/etc/"] {
            let error = tree(Path::new(path), ATTRIBUTE, "one").expect_err(path);
            assert!(error.message().contains("is not relabelled"), "{error}");
        }
        let missing = tree(Path::new("/no/such/file"), ATTRIBUTE, "one").expect_err("missing");
        assert!(missing.message().contains("/no/such/file"), "{missing}");
    }

    /// OCI-33: a file system without labels is no error.
    #[test]
    fn what_cannot_be_labelled_is_passed_over() {
        tree(Path::new("/proc/self/attr"), ATTRIBUTE, "one").expect("ENOTSUP does not count");
    }

    #[test]
    fn nesting_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut inner =
            rustix::fs::openat(CWD, folder.path(), OFlags::DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..=DEPTH_MAX {
            rustix::fs::mkdirat(&inner, "d", Mode::RWXU).expect("a folder");
            inner = rustix::fs::openat(&inner, "d", OFlags::DIRECTORY, Mode::empty()).expect("open");
        }
        let error = tree(folder.path(), ATTRIBUTE, "one").expect_err("too deep");
        assert!(error.message().contains("nested"), "{error}");
    }
}
