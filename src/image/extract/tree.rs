//! The folders of a target: found by their names, made where they are missing.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::name::shown;
use super::resolve::resolve;
use super::{At, Result};
use crate::sys::beneath::open_exactly;

/// How many folders stay open. An archive goes through its folders in order.
const KNOWN_MAX: usize = 16;
/// Extended attributes, and the list of their names, have at most this size.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// How a folder is opened in which something will be made.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

/// An open folder of the target.
pub(super) struct Folder {
    fd: OwnedFd,
    /// Its path below the root, without links.
    path: Vec<u8>,
}

/// The folders of a target.
pub(super) struct Tree<'a> {
    root: Rc<Folder>,
    /// Folders of the layers below, the nearest first, whose attributes new folders get.
    lowers: &'a [PathBuf],
    known: VecDeque<Known>,
}

/// A name and the folder that it means.
struct Known {
    name: Vec<u8>,
    folder: Rc<Folder>,
    /// Whether there are links in the name.
    by_links: bool,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Folder {
    /// The folder at `path`, which is open.
    pub(super) fn new(fd: OwnedFd, path: Vec<u8>) -> Folder {
        Folder { fd, path }
    }

    /// The path of what is called `base` in it.
    pub(super) fn path_of(&self, base: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { base.to_vec() } else { [&self.path, &b"/"[..], base].concat() }
    }

    /// Its own path.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Opens the folder `base` in it.
    ///
    /// # Errors
    /// NOTDIR or LOOP if it is something else; the kernel's reason.
    pub(super) fn open(&self, base: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_exactly(&self.fd, base, FOLDER)
    }
}

impl<'a> Tree<'a> {
    /// # Errors
    /// Those of the descriptor.
    pub(super) fn new(root: BorrowedFd<'_>, lowers: &'a [PathBuf]) -> Result<Tree<'a>> {
        let fd = root.try_clone_to_owned().at(|| "open the root".into())?;
        Ok(Tree { root: Rc::new(Folder::new(fd, Vec::new())), lowers, known: VecDeque::new() })
    }

    /// The root.
    pub(super) fn root(&self) -> &Rc<Folder> {
        &self.root
    }

    /// The folder that `name` means. What is missing of it is made, with the attributes
    /// that it has in the layers below.
    ///
    /// # Errors
    /// A file where a folder should be; the kernel's reason.
    pub(super) fn folder(&mut self, name: &[u8]) -> Result<Rc<Folder>> {
        let plain = name.strip_prefix(b"/").unwrap_or(name);
        if plain.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(known) = self.known.iter().find(|known| known.name == name) {
            return Ok(known.folder.clone());
        }
        // Mostly it is there, and there is no link in its name.
        let (fd, path) = match self.root.open(plain) {
            Ok(fd) => (fd, plain.to_vec()),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                let path = resolve(self.root.as_fd(), name)?;
                if path.is_empty() {
                    return Ok(self.root.clone());
                }
                (self.make(&path)?, path)
            }
            Err(error) => return Err(error).at(|| format!("open {}", shown(name))),
        };
        let by_links = path != plain;
        let folder = Rc::new(Folder::new(fd, path));
        self.know(name, &folder, by_links);
        Ok(folder)
    }

    /// Remembers a folder that was just made, or merged, by its name.
    pub(super) fn remember(&mut self, name: &[u8], folder: &Rc<Folder>) {
        let plain = name.strip_prefix(b"/").unwrap_or(name);
        self.known.retain(|known| known.name != name);
        self.know(name, folder, folder.path != plain);
    }

    fn know(&mut self, name: &[u8], folder: &Rc<Folder>, by_links: bool) {
        self.known.truncate(KNOWN_MAX - 1);
        self.known.push_front(Known { name: name.to_vec(), folder: folder.clone(), by_links });
    }

    /// Forgets what names mean, after something was removed that may be a part of them.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// The same, after a link was made. A name without links goes through folders that
    /// exist: no link can come in between.
    pub(super) fn forget_links(&mut self) {
        self.known.retain(|known| !known.by_links);
    }

    /// Makes what is missing of `path`, which has no links in it.
    fn make(&self, path: &[u8]) -> Result<OwnedFd> {
        let mut at = Rc::clone(&self.root);
        for base in path.split(|byte| *byte == b'/') {
            let path = at.path_of(base);
            let fd = match at.open(base) {
                Err(Errno::NOENT) => self.make_one(&at, base, &path)?,
                other => other.at(|| format!("open the folder {}", shown(&path)))?,
            };
            at = Rc::new(Folder::new(fd, path));
        }
        let folder = Rc::into_inner(at).map(|folder| folder.fd);
        folder.ok_or_else(|| crate::error::internal("an empty path was to be made").into())
    }

    fn make_one(&self, parent: &Folder, base: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let what = || format!("make the folder {}", shown(path));
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(parent, base, mode).at(what)?;
        let made = parent.open(base).at(what)?;
        rustix::fs::fchmod(&made, mode).at(what)?;
        for lower in self.lowers {
            match in_lower(lower, path)? {
                None => {}
                Some((status, lower)) if is_folder(&status) => {
                    inherit(&status, &lower, &made).at(|| format!("attributes of {}", shown(path)))?;
                    break;
                }
                Some(_) => break,
            }
        }
        Ok(made)
    }
}

/// What is at `path` in the folder of a layer below; none if nothing is.
fn in_lower(lower: &PathBuf, path: &[u8]) -> Result<Option<(Stat, OwnedFd)>> {
    let what = || format!("look at {} in a layer below", shown(path));
    let root = match rustix::fs::openat(CWD, lower, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.at(what)?,
    };
    let path = resolve(root.as_fd(), &[b"/", path].concat())?;
    let found = match open_exactly(&root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.at(what)?,
    };
    let status = rustix::fs::fstat(&found).at(what)?;
    if !is_folder(&status) {
        return Ok(Some((status, found)));
    }
    Ok(Some((status, open_exactly(&root, &path, FOLDER).at(what)?)))
}

fn is_folder(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::Directory
}

/// Gives a new folder the attributes of the one that it lies over.
fn inherit(status: &Stat, from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    #[allow(clippy::cast_possible_wrap)] // below 10^9
    let times = Timestamps {
        last_access: time(status.st_atime as _, status.st_atime_nsec as _),
        last_modification: time(status.st_mtime as _, status.st_mtime_nsec as _),
    };
    rustix::fs::futimens(to, &times)?;
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = Vec::new();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    for name in names.filter(|name| !name.starts_with(b"trusted.")) {
        value.resize(XATTR_BYTES_MAX, 0);
        let length = match rustix::fs::fgetxattr(from, name, value.as_mut_slice()) {
            Err(Errno::NOTSUP | Errno::NODATA) => continue,
            other => other?,
        };
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::CREATE) {
            Err(Errno::NOTSUP | Errno::NODATA | Errno::EXIST) => {}
            other => other?,
        }
    }
    Ok(())
}
