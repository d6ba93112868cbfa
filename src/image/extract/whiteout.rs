//! Whiteouts: entries that say what of the layers below is gone.
//!
//! `.wh.NAME` hides NAME, `.wh..wh..opq` all of its folder. In the upper folder of an
//! overlay they become what overlayfs takes for that: a device 0/0, and an attribute of
//! the folder. In a folder with everything in it the files are removed.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, XattrFlags};

use super::apply::Place;
use super::entry::{gid, uid};
use super::name::shown;
use super::remove::{clear, remove};
use super::tar::Entry;
use super::tree::{Folder, Tree};
use super::{At, Result, unsupported};
use crate::error::unknown;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The attribute of a folder that hides all below.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// The most files of a layer whose paths are kept in mind, with 16 bytes each.
const MADE_MAX: usize = 8_000_000;

/// How whiteouts are written.
pub(super) enum Whiteouts {
    /// For overlayfs.
    Hiding,
    /// By removing files. What came with the layer itself stays where a folder is emptied.
    Removing(Made),
}

/// The paths that a layer made.
pub(super) struct Made {
    /// Two hashes of each, with keys that nobody knows: no two paths meet in both.
    paths: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Whiteouts {
    pub(super) fn removing() -> Whiteouts {
        let keys = (RandomState::new(), RandomState::new());
        Whiteouts::Removing(Made { paths: HashSet::new(), keys })
    }

    /// Does what `entry` says if it is a whiteout; else says false.
    ///
    /// # Errors
    /// A whiteout that names nothing; the kernel's reason.
    pub(super) fn take(&self, tree: &mut Tree<'_>, place: Place<'_>, entry: &Entry) -> Result<bool> {
        let Some(hidden) = place.base.strip_prefix(PREFIX) else { return Ok(false) };
        let what = || format!("white out {}", shown(place.name));
        let folder = place.folder;
        if place.base == OPAQUE {
            match self {
                Whiteouts::Hiding => {
                    rustix::fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty()).at(what)?;
                }
                Whiteouts::Removing(made) => {
                    tree.forget();
                    clear(tree.root().as_fd(), folder.path(), |path| made.contains(path))?;
                }
            }
            return Ok(true);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(unknown(format!("{}: it names nothing", what())).into());
        }
        match self {
            Whiteouts::Hiding => {
                let device = FileType::CharacterDevice;
                rustix::fs::mknodat(folder, hidden, device, Mode::empty(), 0).at(what)?;
                let (uid, gid) = (uid(entry), gid(entry));
                rustix::fs::chownat(folder, hidden, uid, gid, AtFlags::SYMLINK_NOFOLLOW).at(what)?;
            }
            Whiteouts::Removing(_) => {
                tree.forget();
                remove(folder.as_fd(), hidden)?;
            }
        }
        Ok(true)
    }

    /// Keeps in mind that the layer made `base` in `folder`.
    ///
    /// # Errors
    /// Unsupported for more files than memory is for.
    pub(super) fn made(&mut self, folder: &Folder, base: &[u8]) -> Result<()> {
        let Whiteouts::Removing(made) = self else { return Ok(()) };
        made.paths.insert(made.hashes(&folder.path_of(base)));
        if made.paths.len() > MADE_MAX {
            return Err(unsupported("a layer with millions of files"));
        }
        Ok(())
    }
}

impl Made {
    fn hashes(&self, path: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(path), self.keys.1.hash_one(path))
    }

    fn contains(&self, path: &[u8]) -> bool {
        self.paths.contains(&self.hashes(path))
    }
}
