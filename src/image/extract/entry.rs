//! One file of a layer: made anew, with its owner, attributes, mode and times.

use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::apply::{Apply, Place};
use super::name::{clean, shown, split};
use super::resolve::resolve;
use super::tar::{self, Entry, Piece, Reader};
use super::tree::Folder;
use super::{At, Result, unsupported};
use crate::error::unknown;
use crate::sys::beneath::open_exactly;

/// What a new file or folder is until it has its owner and mode.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::XUSR);

/// Something that was made.
enum Made {
    /// A file or folder, which is open.
    Open(OwnedFd),
    /// A link, a device, a FIFO.
    Closed,
}

/// The owner of an entry; none for the id that means none to the kernel.
pub(super) fn uid(entry: &Entry) -> Option<Uid> {
    Some(entry.uid).filter(|uid| *uid != u32::MAX).map(Uid::from_raw)
}

/// The group, in the same way.
pub(super) fn gid(entry: &Entry) -> Option<Gid> {
    Some(entry.gid).filter(|gid| *gid != u32::MAX).map(Gid::from_raw)
}

impl Apply<'_> {
    /// Makes `entry` at `place`, in place of what is there.
    ///
    /// # Errors
    /// See [`super::extract`].
    pub(super) fn create(
        &mut self,
        reader: &mut Reader<impl BufRead>,
        place: Place<'_>,
        entry: &Entry,
    ) -> Result<()> {
        let made = match entry.kind {
            tar::REGULAR => self.file(reader, place, entry)?,
            tar::FOLDER => self.make_folder(place)?,
            tar::SYMLINK => {
                self.replacing(place, |_| rustix::fs::symlinkat(&*entry.link, place.folder, place.base))?;
                self.tree.forget_links();
                Made::Closed
            }
            tar::HARD_LINK => self.hard_link(place, entry)?,
            tar::CHARACTER_DEVICE => self.node(place, entry, FileType::CharacterDevice)?,
            tar::BLOCK_DEVICE => self.node(place, entry, FileType::BlockDevice)?,
            tar::FIFO => self.node(place, entry, FileType::Fifo)?,
            // Its records count for nothing, but its name is in the way.
            tar::GLOBAL => return self.remove(place),
            kind => {
                let (kind, name) = (kind.escape_ascii(), shown(place.name));
                return Err(unknown(format!("{name} in a layer is of the unknown type \"{kind}\"")).into());
            }
        };
        match &made {
            Made::Open(fd) => set_attributes(fd.as_fd(), place, entry)?,
            Made::Closed => set_attributes_by_name(place, entry)?,
        }
        if let (Made::Open(fd), tar::FOLDER) = (made, entry.kind) {
            let folder = Folder::new(fd, place.folder.path_of(place.base));
            self.tree.remember(place.name, &Rc::new(folder));
        }
        Ok(())
    }

    fn file(&mut self, reader: &mut Reader<impl BufRead>, place: Place<'_>, entry: &Entry) -> Result<Made> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.replacing(place, |_| rustix::fs::openat(place.folder, place.base, flags, PRIVATE))?;
        let mut file = File::from(fd);
        let what = || format!("write {}", shown(place.name));
        let mut end_of_hole = None;
        for piece in &entry.pieces {
            match *piece {
                Piece::Data(length) => {
                    reader.data(length, |block| file.write_all(block).at(what))?;
                    end_of_hole = None;
                }
                Piece::Hole(length) => {
                    let length = i64::try_from(length).map_err(|_| unknown(what()))?;
                    end_of_hole = Some(file.seek(SeekFrom::Current(length)).at(what)?);
                }
            }
        }
        if let Some(length) = end_of_hole {
            file.set_len(length).at(what)?;
        }
        reader.must_be_read()?;
        Ok(Made::Open(file.into()))
    }

    /// A folder that is there stays, with what is in it.
    fn make_folder(&mut self, place: Place<'_>) -> Result<Made> {
        let make = || rustix::fs::mkdirat(place.folder, place.base, PRIVATE);
        let what = || format!("make the folder {}", shown(place.name));
        match make() {
            Err(Errno::EXIST) => match place.folder.open(place.base) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.remove(place)?;
                    make().at(what)?;
                }
                other => return other.map(Made::Open).at(what),
            },
            other => other.at(what)?,
        }
        place.folder.open(place.base).map(Made::Open).at(what)
    }

    /// A hard link to what the name means by now, which has to be in this layer; a link
    /// to a link is one to the link itself.
    fn hard_link(&mut self, place: Place<'_>, entry: &Entry) -> Result<Made> {
        let what = || format!("link {} to {}", shown(place.name), shown(&entry.link));
        let link = |apply: &Self| -> Result<rustix::io::Result<()>> {
            let root = apply.tree.root();
            let (folder, base) = split(&entry.link);
            let target = [b"/", &resolve(root.as_fd(), folder)?[..], b"/", base].concat();
            let target = clean(&target);
            let (folder, base) = split(&target[1..]);
            if base.is_empty() {
                return Ok(Err(Errno::PERM)); // the root, a folder
            }
            let folder = open_exactly(root, folder, OFlags::PATH | OFlags::DIRECTORY).at(what)?;
            Ok(rustix::fs::linkat(folder, base, place.folder, place.base, AtFlags::empty()))
        };
        match link(self)? {
            Err(Errno::EXIST) => {
                self.remove(place)?;
                link(self)?.at(what)?;
            }
            other => other.at(what)?,
        }
        Ok(Made::Closed)
    }

    fn node(&mut self, place: Place<'_>, entry: &Entry, kind: FileType) -> Result<Made> {
        let device = match kind {
            FileType::Fifo => 0,
            _ => device(entry)?,
        };
        let mode = Mode::from_raw_mode(entry.mode);
        self.replacing(place, |_| rustix::fs::mknodat(place.folder, place.base, kind, mode, device))?;
        Ok(Made::Closed)
    }
}

/// A device's number as the kernel takes it: 12 bits of the major one, 20 of the minor.
fn device(entry: &Entry) -> Result<u64> {
    let part = |number: i64| u32::try_from(number).ok();
    let (Some(major), Some(minor)) = (part(entry.major), part(entry.minor)) else {
        // Not the same in all versions of containerd.
        return Err(unsupported(format!("the device number {}:{}", entry.major, entry.minor)));
    };
    Ok(rustix::fs::makedev(major & 0xfff, minor & 0xf_ffff))
}

/// In this order: a new owner takes set-id bits and capabilities away.
fn set_attributes(fd: BorrowedFd<'_>, place: Place<'_>, entry: &Entry) -> Result<()> {
    let what = |which: &str| format!("set the {which} of {}", shown(place.name));
    rustix::fs::fchown(fd, uid(entry), gid(entry)).at(|| what("owner"))?;
    for (name, value) in &entry.xattrs {
        set_xattr(name, || rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()), true)
            .at(|| what(&format!("attribute {}", shown(name))))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).at(|| what("mode"))?;
    rustix::fs::futimens(fd, &entry.times).at(|| what("times"))
}

/// The same for what must not be opened, or cannot.
fn set_attributes_by_name(place: Place<'_>, entry: &Entry) -> Result<()> {
    let what = |which: &str| format!("set the {which} of {}", shown(place.name));
    let (folder, base) = (place.folder, place.base);
    // Stands for the file itself, whatever it is, and opens nothing.
    let found = open_exactly(folder, base, OFlags::PATH | OFlags::NOFOLLOW).at(|| what("attributes"))?;
    let kind = rustix::fs::fstat(&found).at(|| what("attributes"))?.st_mode;
    let kind = FileType::from_raw_mode(kind);
    rustix::fs::chownat(folder, base, uid(entry), gid(entry), AtFlags::SYMLINK_NOFOLLOW)
        .at(|| what("owner"))?;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    for (name, value) in &entry.xattrs {
        let may_be_user = matches!(kind, FileType::RegularFile | FileType::Directory);
        set_xattr(name, || rustix::fs::setxattr(&path, name, value, XattrFlags::empty()), may_be_user)
            .at(|| what(&format!("attribute {}", shown(name))))?;
    }
    if kind != FileType::Symlink {
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .at(|| what("mode"))?;
    }
    rustix::fs::utimensat(folder, base, &entry.times, AtFlags::SYMLINK_NOFOLLOW).at(|| what("times"))
}

/// Sets an extended attribute. Those that are for administrators only, and those that the
/// file system does not have, are left out.
fn set_xattr(
    name: &[u8],
    set: impl FnOnce() -> rustix::io::Result<()>,
    may_be_user: bool,
) -> rustix::io::Result<()> {
    if name.starts_with(b"trusted.") {
        return Ok(());
    }
    match set() {
        Err(Errno::NOTSUP) => Ok(()),
        // Only files and folders have attributes of users.
        Err(Errno::PERM) if name.starts_with(b"user.") && !may_be_user => Ok(()),
        other => other,
    }
}
