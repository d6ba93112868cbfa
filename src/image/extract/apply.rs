//! Goes through an archive and makes of each entry what containerd's applier makes of it.

use std::io::BufRead;
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, Timestamps};
use rustix::io::Errno;

use super::name::{clean, shown, split};
use super::remove::remove;
use super::resolve::resolve;
use super::tar::{self, Entry, Reader};
use super::target::{Kind, Target};
use super::tree::{Folder, Tree};
use super::whiteout::Whiteouts;
use super::{At, Result, unsupported};
use crate::points;

/// The most bytes that the names of folders take which wait for their times. Real images
/// need a hundredth.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// A layer that is being applied.
pub(super) struct Apply<'a> {
    pub(super) tree: Tree<'a>,
    whiteouts: Whiteouts,
    /// Folders by their names, and the times that they get when all is made in them.
    waiting: Vec<(Vec<u8>, Timestamps)>,
    waiting_bytes: usize,
}

/// Where something is made: a name in an open folder.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) folder: &'a Rc<Folder>,
    pub(super) base: &'a [u8],
    /// The whole name, for messages and the folders that are known.
    pub(super) name: &'a [u8],
}

/// Applies the archive to the target.
///
/// # Errors
/// See [`super::extract`].
pub(super) fn apply(reader: &mut Reader<impl BufRead>, target: &Target) -> Result<()> {
    let (lowers, whiteouts) = match target.kind() {
        Kind::Whole => (&[][..], Whiteouts::removing()),
        Kind::Upper { lowers } => (&lowers[..], Whiteouts::Hiding),
    };
    let tree = Tree::new(target.root(), lowers)?;
    let mut apply = Apply { tree, whiteouts, waiting: Vec::new(), waiting_bytes: 0 };
    while let Some(entry) = reader.next()? {
        points::before("extract an entry")?;
        apply.entry(reader, &entry)?;
    }
    apply.set_waiting_times()?;
    points::after("extract the entries")?;
    Ok(())
}

impl Apply<'_> {
    fn entry(&mut self, reader: &mut Reader<impl BufRead>, entry: &Entry) -> Result<()> {
        let name = clean(&entry.name);
        let (folder, base) = split(&name);
        // The root itself stays as the snapshotter made it.
        if matches!(base, b"" | b"." | b"..") {
            return Ok(());
        }
        let folder = self.tree.folder(folder)?;
        let place = Place { folder: &folder, base, name: &name };
        if self.whiteouts.take(&mut self.tree, place, entry)? {
            return Ok(());
        }
        self.create(reader, place, entry)?;
        if entry.kind == tar::FOLDER {
            self.wait(name.clone(), entry.times.clone())?;
        }
        self.whiteouts.made(&folder, base)
    }

    /// Makes something at `place` by `make`, after what is in its way was removed.
    pub(super) fn replacing<T>(
        &mut self,
        place: Place<'_>,
        mut make: impl FnMut(&mut Self) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match make(self) {
            Err(Errno::EXIST) => {
                self.remove(place)?;
                make(self)
            }
            other => other,
        };
        made.at(|| format!("make {}", shown(place.name)))
    }

    /// Removes what is at `place`, whatever it is.
    pub(super) fn remove(&mut self, place: Place<'_>) -> Result<()> {
        self.tree.forget();
        remove(place.folder.as_fd(), place.base)
    }

    fn wait(&mut self, name: Vec<u8>, times: Timestamps) -> Result<()> {
        self.waiting_bytes += name.len() + size_of::<(Vec<u8>, Timestamps)>();
        if self.waiting_bytes > WAITING_BYTES_MAX {
            return Err(unsupported("a layer with millions of folders"));
        }
        self.waiting.push((name, times));
        Ok(())
    }

    /// Sets the times of the folders, which changed while files were made in them. What a
    /// name means by now counts.
    fn set_waiting_times(&mut self) -> Result<()> {
        for (name, times) in std::mem::take(&mut self.waiting) {
            let what = || format!("set the times of {}", shown(&name));
            let root = self.tree.root();
            let plain = name.strip_prefix(b"/").unwrap_or(&name);
            if let Ok(folder) = root.open(plain) {
                rustix::fs::futimens(&folder, &times).at(what)?;
                continue;
            }
            let path = resolve(root.as_fd(), &name)?;
            let (parent, base) = split(&path);
            if base.is_empty() {
                rustix::fs::futimens(root, &times).at(what)?;
                continue;
            }
            let parent = root.open(parent).at(what)?;
            rustix::fs::utimensat(&parent, base, &times, AtFlags::SYMLINK_NOFOLLOW).at(what)?;
        }
        Ok(())
    }
}
