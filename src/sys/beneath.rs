//! Files below a root that is not to be trusted: that of an image or a container.
//!
//! Every link is resolved as a process with that root would see it, `..` included, so
//! that no link of an image reads the host's file (OCI-06). Only regular files are
//! read: opening a FIFO could block, opening a device could do anything.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Result, exhausted, precondition};

/// How often a path is looked up anew. The kernel gives up on a `..` when anything is
/// renamed or mounted at the same moment, wherever that is.
const ATTEMPTS: usize = 64;

/// The content of the file at `path` below `root`, which has at most `bytes_max`
/// bytes; none if there is no such file. Blocks.
///
/// # Errors
/// FailedPrecondition for what is no regular file, ResourceExhausted for one that is
/// larger, else the kernel's reason.
pub fn read(root: &Path, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
    let what = || format!("open {path:?} below the root");
    let Some(found) = open(root, path, OFlags::PATH)? else { return Ok(None) };
    // Looked at before it is opened in earnest.
    let status = rustix::fs::fstat(&found).context(what)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(precondition(format!("{path:?} below the root is not a regular file")));
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).context(what)?;
    let mut data = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut data).context(|| format!("read {path:?} below the root"))?;
    if data.len() > bytes_max {
        return Err(exhausted(format!("{path:?} below the root has more than {bytes_max} bytes")));
    }
    Ok(Some(data))
}

/// Opens the folder at `path` below `root`; none if there is no such folder. Blocks.
///
/// # Errors
/// The kernel's reason.
pub fn open_folder(root: &Path, path: &str) -> Result<Option<OwnedFd>> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// The real path, as this process sees it, of the folder at `path` below `root`; none if
/// there is no such folder. It holds for as long as nobody changes what is below the
/// root: for a root that is mounted read-only. Blocks.
///
/// # Errors
/// The kernel's reason.
pub fn folder_path(root: &Path, path: &str) -> Result<Option<PathBuf>> {
    let Some(folder) = open(root, path, OFlags::PATH | OFlags::DIRECTORY)? else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
    std::fs::read_link(link).map(Some).context(|| format!("the real path of {path:?} below the root"))
}

fn open(root: &Path, path: &str, flags: OFlags) -> Result<Option<OwnedFd>> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, root, folder, Mode::empty()).context(|| format!("open the root {root:?}"))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match lookup(&root, path, flags, resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        other => other.map(Some).context(|| format!("open {path:?} below the root")),
    }
}

/// Opens what is at `path` below the folder `root`, which is what the path says: it has no
/// link and no mount point in it, and does not leave the root. An empty path is the root.
///
/// # Errors
/// LOOP for a link, XDEV for what leads out; else the kernel's reason.
pub fn open_exactly(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    lookup(root, if path.is_empty() { b"." } else { path }, flags, resolve)
}

/// Where the link at `path` below the folder `root` leads; none if there is no link. Links
/// on the way are followed, but not out of the root.
///
/// # Errors
/// NOTDIR, LOOP, NAMETOOLONG.
pub fn link_target(root: impl AsFd, path: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let found = match lookup(root, path, OFlags::PATH | OFlags::NOFOLLOW, resolve) {
        Err(Errno::NOENT | Errno::XDEV) => return Ok(None),
        other => other?,
    };
    match rustix::fs::readlinkat(found, "", Vec::new()) {
        // The kernel's two ways to say that it is something else.
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        other => other.map(|target| Some(target.into_bytes())),
    }
}

fn lookup(
    root: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut attempt = 1;
    loop {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_below_the_root() {
        let root = tempfile::tempdir().expect("folder");
        let path = root.path();
        fs::create_dir(path.join("etc")).expect("folder");
        fs::write(path.join("etc/real"), "inner").expect("file");
        for (name, to) in
            [("up", "../../../../etc/passwd"), ("absolute", "/etc/passwd"), ("good", "/../etc/real")]
        {
            symlink(to, path.join("etc").join(name)).expect("link");
        }
        assert_eq!(read(path, "etc/up", 10_000), Ok(None));
        assert_eq!(read(path, "etc/absolute", 10_000), Ok(None));
        assert_eq!(read(path, "/etc/good", 5), Ok(Some(b"inner".to_vec())));
        assert_eq!(read(path, "/../etc/good", 5), Ok(Some(b"inner".to_vec())));
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let root = tempfile::tempdir().expect("folder");
        let path = root.path();
        fs::write(path.join("large"), "123456").expect("file");
        rustix::fs::mkfifoat(CWD, path.join("fifo"), Mode::RUSR).expect("fifo");
        symlink("loop", path.join("loop")).expect("link");
        let kind = |name| read(path, name, 5).map_err(|error| error.kind());
        assert_eq!(kind("large"), Err(Kind::ResourceExhausted));
        assert_eq!(kind("fifo"), Err(Kind::FailedPrecondition));
        assert_eq!(kind("."), Err(Kind::FailedPrecondition));
        assert_eq!(kind("loop"), Err(Kind::Unknown));
        assert_eq!(kind("large/below"), Ok(None));
    }

    #[test]
    fn folders_are_found_inside_and_never_outside() {
        let dir = tempfile::tempdir().expect("folder");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("inside")).expect("folder");
        fs::create_dir(dir.path().join("outside")).expect("folder");
        fs::write(root.join("file"), "").expect("file");
        symlink("../../outside", root.join("up")).expect("link");
        symlink("/inside", root.join("absolute")).expect("link");
        let open = |path: &str| open_folder(&root, path).map(|found| found.is_some());
        assert_eq!((open("/absolute"), open("inside")), (Ok(true), Ok(true)));
        assert_eq!((open("/up"), open("/nothing"), open("/file")), (Ok(false), Ok(false), Ok(false)));
        let real = |path: &str| folder_path(&root, path);
        let inside = Ok(Some(root.canonicalize().expect("real").join("inside")));
        assert_eq!((real("absolute"), real("/../inside/.")), (inside.clone(), inside));
        assert_eq!((real("up"), real("file"), real("nothing")), (Ok(None), Ok(None), Ok(None)));
    }

    #[test]
    fn exact_paths_have_no_links_and_do_not_leave_the_root() {
        let dir = tempfile::tempdir().expect("folder");
        fs::create_dir_all(dir.path().join("root/inside")).expect("folder");
        fs::create_dir(dir.path().join("outside")).expect("folder");
        let root = fs::File::open(dir.path().join("root")).expect("folder");
        for (name, to) in [("in", "inside"), ("up", "../outside"), ("absolute", "/"), ("inside/back", "..")] {
            symlink(to, dir.path().join("root").join(name)).expect("link");
        }
        let open = |path: &str| open_exactly(&root, path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY);
        open("").expect("the root");
        open("inside").expect("inside");
        for (path, want) in [
            ("in", Errno::LOOP),
            ("up", Errno::LOOP),
            ("inside/back/inside", Errno::LOOP),
            ("..", Errno::XDEV),
            ("inside/../..", Errno::XDEV),
            ("/", Errno::XDEV),
            ("nothing", Errno::NOENT),
        ] {
            assert_eq!(open(path).map(drop), Err(want), "{path}");
        }
        let target =
            |path: &str| link_target(&root, path.as_bytes()).map(|target| target.map(String::from_utf8));
        assert_eq!(target("up"), Ok(Some(Ok("../outside".to_owned()))));
        assert_eq!(target("inside/back/in"), Ok(Some(Ok("inside".to_owned()))));
        for path in ["inside", "nothing", "up/x", "absolute/bin", "in/../up/x"] {
            assert_eq!(target(path), Ok(None), "{path}");
        }
    }
}
