//! Files below a root that is not to be trusted: that of an image or a container.
//!
//! Every link is resolved as a process with that root would see it, `..` included, so
//! that no link of an image reads the host's file (OCI-06). Only regular files are
//! read: opening a FIFO could block, opening a device could do anything.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Result, exhausted, invalid, precondition, unknown};

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

/// Opens the regular file at `path` below the folder `root` for reading and appending, and
/// makes it, with `mode`, and the folders on the way to it (0755) where they are missing.
///
/// Whoever may write below the root leads this nowhere else: no part of `path` is a link,
/// and something else than a regular file is not opened, since that alone does something to
/// a device. Above the root links are followed. Blocks.
///
/// # Errors
/// InvalidArgument for a path that leads out of the root, FailedPrecondition for links,
/// devices and the like; else the kernel's reason.
pub fn append(root: &Path, path: &Path, mode: u32) -> Result<File> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => return Err(invalid(format!("{path:?} leads out of {root:?}"))),
        }
    }
    let Some((base, folders)) = names.split_last() else {
        return Err(invalid(format!("{path:?} names no file in {root:?}")));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open_root = || rustix::fs::openat(CWD, root, flags, Mode::empty());
    let mut folder = match open_root() {
        Err(Errno::NOENT) => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(root);
            made.context(|| format!("make folder {root:?}"))?;
            open_root()
        }
        other => other,
    }
    .context(|| format!("open the folder {root:?}"))?;
    for name in folders {
        folder = enter(&folder, name).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => {
                precondition(format!("{name:?} is a link or a file, not a folder"))
            }
            other => crate::error::Error::from(other).context(format!("folder {name:?}")),
        })?;
    }
    append_in(&folder, base, mode)
}

/// Opens the folder `name` in `folder`, which is made where it is missing.
fn enter(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(folder, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => open(),
        Err(error) => Err(error),
    }
}

fn append_in(folder: &OwnedFd, base: &OsStr, mode: u32) -> Result<File> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat(folder, base, look, Mode::empty()) {
            Ok(found) => {
                // Looked at before it is opened in earnest.
                let status = rustix::fs::fstat(&found)?;
                if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                    return Err(precondition(format!("{base:?} is not a regular file")));
                }
                // Non-blocking: a lease that a container has taken on it is not waited for.
                let mut options = OpenOptions::new();
                options.read(true).append(true).custom_flags(libc::O_NONBLOCK);
                return Ok(options.open(format!("/proc/self/fd/{}", found.as_raw_fd()))?);
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::openat(folder, base, create | OFlags::CLOEXEC, Mode::from_raw_mode(mode)) {
            // Somebody else was faster: looked at anew.
            Err(Errno::EXIST) => {}
            other => return Ok(other?.into()),
        }
    }
    Err(unknown(format!("{base:?} comes and goes")))
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

    #[test]
    fn files_are_appended_to_and_made_and_nothing_else() {
        let dir = tempfile::tempdir().expect("folder");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&outside).expect("folder");
        fs::write(outside.join("file"), "marked").expect("file");
        let write = |path: &str| {
            append(&root, Path::new(path), 0o640)
                .and_then(|mut file| Ok(std::io::Write::write_all(&mut file, b"x")?))
                .map_err(|error| error.kind())
        };
        assert_eq!((write("a/b/0.log"), write("a/./b/0.log"), write("1.log")), (Ok(()), Ok(()), Ok(())));
        assert_eq!(fs::read_to_string(root.join("a/b/0.log")).expect("file"), "xx");
        let mode =
            |path: &str| std::os::unix::fs::MetadataExt::mode(&fs::metadata(root.join(path)).expect("it"));
        assert_eq!((mode("1.log") & 0o777, mode("a/b") & 0o777 & 0o700), (0o640, 0o700));
        for (name, to) in [
            ("up", "../outside"),
            ("file", "../outside/file"),
            ("new", "../outside/new"),
            ("null", "/dev/null"),
        ] {
            symlink(to, root.join(name)).expect("link");
        }
        rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RUSR).expect("fifo");
        for path in ["up/new", "up/a/new", "file", "new", "null", "fifo", "a", "1.log/x"] {
            assert_eq!(write(path), Err(Kind::FailedPrecondition), "{path}");
        }
        for path in ["../outside/new", "a/../../outside/new", "/etc/new", "", "."] {
            assert_eq!(write(path), Err(Kind::InvalidArgument), "{path}");
        }
        let names: Vec<_> =
            fs::read_dir(&outside).expect("folder").map(|it| it.expect("it").file_name()).collect();
        assert_eq!(
            (names, fs::read_to_string(outside.join("file")).expect("file").as_str()),
            (vec!["file".into()], "marked")
        );
    }
}
