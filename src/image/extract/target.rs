//! Snapshots whose files can be written without mounting them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::containerd::Mount;

/// Options of an overlay that change nothing about what its upper folder must look like.
const OVERLAY_OPTIONS: [&str; 8] = [
    "index=on",
    "index=off",
    "metacopy=off",
    "redirect_dir=off",
    "volatile",
    "xino=off",
    "xino=auto",
    "xino=on",
];
/// The ids of a process that is in no user namespace.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// The folder of a snapshot.
#[derive(Debug)]
pub(in crate::image) struct Target {
    root: OwnedFd,
    kind: Kind,
}

/// What the folder is.
#[derive(Debug)]
pub(super) enum Kind {
    /// All there is: a whiteout removes a file.
    Whole,
    /// The upper folder of an overlay: a whiteout hides what is in the folders below, the
    /// nearest of which comes first.
    Upper { lowers: Vec<PathBuf> },
}

impl Target {
    /// The folder of a snapshot with these mounts. None if it is no such snapshot, or its
    /// folders are not here: containerd then knows better what to do. Blocks.
    pub(in crate::image) fn of(mounts: &[Mount]) -> Option<Target> {
        let [mount] = mounts else { return None };
        // There, devices and whiteouts cannot be made, and containerd goes other ways.
        if !is_outside_user_namespaces() || !mount.target.is_empty() {
            return None;
        }
        let (path, kind) = match mount.kind.as_str() {
            "bind" => (bound(mount)?, Kind::Whole),
            "overlay" => {
                let (upper, lowers) = overlaid(mount)?;
                (upper, Kind::Upper { lowers })
            }
            _ => return None,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
        // Kernels before 5.6 cannot look names up safely.
        crate::sys::beneath::open_exactly(&root, b"", OFlags::PATH).ok()?;
        Some(Target { root, kind })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }
}

/// The source of a plain, writable bind mount.
fn bound(mount: &Mount) -> Option<PathBuf> {
    let mut options = mount.options.iter().map(String::as_str);
    let is_plain = options.all(|option| ["rw", "bind", "rbind"].contains(&option));
    folder(&mount.source).filter(|_| is_plain)
}

/// The upper folder of an overlay, and the lower ones.
fn overlaid(mount: &Mount) -> Option<(PathBuf, Vec<PathBuf>)> {
    let (mut upper, mut lowers) = (None, None);
    for option in &mount.options {
        match option.split_once('=') {
            Some(("upperdir", path)) => upper = folder(path),
            // A colon in a name would be escaped, which containerd does not read.
            Some(("lowerdir", paths)) if !paths.contains('\\') => {
                lowers = paths.split(':').map(folder).collect::<Option<Vec<_>>>();
            }
            Some(("workdir", _)) => {}
            _ if OVERLAY_OPTIONS.contains(&option.as_str()) => {}
            _ => return None,
        }
    }
    Some((upper?, lowers?))
}

/// An absolute path at which there is a folder.
fn folder(path: &str) -> Option<PathBuf> {
    Some(Path::new(path)).filter(|path| path.is_absolute() && path.is_dir()).map(Path::to_owned)
}

fn is_outside_user_namespaces() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(ALL_IDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_with_folders_here_are_targets() {
        let dir = tempfile::tempdir().expect("folder");
        for name in ["upper", "work", "one", "two"] {
            std::fs::create_dir(dir.path().join(name)).expect("folder");
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let of = |kind: &str, source: &str, options: &str| {
            let options = options.replace('@', &format!("{}/", dir.path().display()));
            let options = options.split_whitespace().map(str::to_owned).collect();
            let mount = Mount { kind: kind.into(), source: source.into(), target: String::new(), options };
            Target::of(&[mount]).map(|target| match target.kind {
                Kind::Whole => 0,
                Kind::Upper { lowers } => lowers.len(),
            })
        };
        assert_eq!(of("bind", &path("upper"), "rw rbind"), Some(0));
        let overlay = "index=off workdir=@work upperdir=@upper lowerdir=@one:@two";
        assert_eq!(of("overlay", "overlay", overlay), Some(2));
        assert_eq!(of("overlay", "overlay", "workdir=@work upperdir=@upper lowerdir=@one"), Some(1));
        for (kind, source, options) in [
            ("bind", &path("upper"), "ro rbind"),
            ("bind", &path("none"), "rw rbind"),
            ("bind", &"relative".into(), "rw"),
            ("ext4", &path("upper"), "rw"),
            ("overlay", &"overlay".into(), "lowerdir=@one:@two"),
            ("overlay", &"overlay".into(), "workdir=@work upperdir=@upper"),
            ("overlay", &"overlay".into(), "userxattr workdir=@work upperdir=@upper lowerdir=@one"),
            ("overlay", &"overlay".into(), "workdir=@work upperdir=@upper lowerdir=@none"),
            ("overlay", &"overlay".into(), "workdir=@work upperdir=@upper lowerdir=@one\\:@two"),
        ] {
            assert_eq!(of(kind, source, options), None, "{kind} {source} {options}");
        }
        assert!(Target::of(&[]).is_none());
    }
}
