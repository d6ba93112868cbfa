//! Layers unpacked by ourselves, while they come in, instead of by containerd's Diff.Apply.
//!
//! What comes out is what containerd's own applier (its pkg/archive) makes, entry by
//! entry, its peculiarities included, so that the snapshots of a node do not depend on
//! who made them; `tests/image/extract/` compares the two. Three threads share the work:
//! one decompresses, one takes the digest, one writes.
//!
//! ```text
//! input ─▶ decompress ─▶ digest ─▶ tar ─▶ apply ─▶ entry      files and their attributes
//!          (decompress)            (tar)    │ └──▶ whiteout   what is no longer there
//!                                           ▼
//!                                  tree ─▶ resolve            a name's folder, beneath the root
//! ```
//!
//! The archive is a stranger's, and the process is root. A path is opened beneath the
//! target's folder and without following a link ([`crate::sys::beneath`]); links in names
//! are resolved by [`resolve`], which only reads them. Everything is then made by its last
//! name in a folder that is open, and that name is never followed. Memory is bounded
//! everywhere; disk space is not, as with containerd.
//!
//! What cannot be done exactly, or not here, is [`Failure::Unsupported`]: the caller then
//! lets containerd try it on a fresh snapshot.

mod apply;
mod decompress;
mod entry;
mod feed;
mod name;
pub(in crate::image) mod pick;
mod remove;
mod resolve;
mod tar;
mod target;
mod tree;
mod whiteout;

use std::fmt;
use std::io::{self, Read};

use rustix::io::Errno;

use crate::error::{Error, Kind};
use decompress::{Digested, Plain};
pub(super) use feed::{Feed, feed};
pub(super) use target::Target;

/// How a layer is packed, as far as its media type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// A plain archive.
    Plain,
    /// Compressed; the first bytes say how, and whether at all.
    Detected,
}

impl Packing {
    /// The packing of a media type; none if it is not that of a layer, or of one that
    /// needs more than decompressing, such as an encrypted one.
    pub(super) fn of(media_type: &str) -> Option<Packing> {
        let (base, ending) =
            media_type.split_once('+').map_or((media_type, None), |(base, ending)| (base, Some(ending)));
        match (base, ending) {
            (
                "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar",
                None,
            ) => Some(Packing::Plain),
            (
                "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar",
                Some("gzip" | "zstd"),
            )
            // Docker's plain type was also given to compressed layers.
            | (
                "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                None,
            ) => Some(Packing::Detected),
            _ => None,
        }
    }
}

/// A layer that was extracted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extracted {
    /// The digest of the plain archive.
    pub(super) diff_id: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// Why a layer was not extracted. The target is then half-made.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not done here; containerd may do it.
    Unsupported(String),
    /// It went wrong, and would anywhere.
    Failed(Error),
}

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Unpacks the layer `input` into `target`. Blocks.
///
/// # Errors
/// See [`Failure`]; ResourceExhausted when the disk is full. An error of `input` that is
/// made of an [`Error`] comes back as that one.
pub(super) fn extract(
    input: impl Read + Send + 'static,
    packing: Packing,
    target: &Target,
) -> Result<Extracted> {
    let mut reader = tar::Reader::new(Plain::start(input, packing)?);
    apply::apply(&mut reader, target)?;
    reader.drain()?;
    let Digested { digest, bytes } = reader.into_inner().finish()?;
    Ok(Extracted { diff_id: digest, bytes })
}

impl Failure {
    /// The failure that an input gave by way of an I/O error.
    ///
    /// # Errors
    /// The I/O error, if it is just that.
    fn of_input(error: io::Error) -> Result<Failure, io::Error> {
        error.downcast::<Failure>().or_else(|error| error.downcast::<Error>().map(Failure::Failed))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unsupported(what) => f.write_str(what),
            Failure::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Failed(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::of_input(error).unwrap_or_else(|error| Failure::Failed(error.into()))
    }
}

fn unsupported(what: impl Into<String>) -> Failure {
    Failure::Unsupported(what.into())
}

/// Says what a system call was for.
trait At<T> {
    /// Puts `what()` in front of the error.
    ///
    /// # Errors
    /// Unsupported for what is not allowed to us or not there in this kernel or file system;
    /// ResourceExhausted for a full disk.
    fn at(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            let errno = Errno::from_io_error(&error);
            let error = Error::from(error).context(what());
            match errno {
                Some(
                    Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN,
                ) => Failure::Failed(error.with_kind(Kind::ResourceExhausted)),
                Some(Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::NOSYS | Errno::XDEV) => {
                    Failure::Unsupported(error.message().to_owned())
                }
                _ => Failure::Failed(error),
            }
        })
    }
}

#[cfg(test)]
mod tests;
