//! The log file of a container: opened for appending, written in whole entries.
//!
//! A reader of the file never sees half an entry for longer than a system call takes:
//! one `write` carries many whole ones (LOG-09), and when the disk takes only a part
//! before it is full, what stands there of the torn entry is cut off again. Where that
//! is impossible, the next successful write ends the torn line first (LOG-10). So it does
//! with what a keeper that was killed in the middle of a write has left at the end.
//!
//! A file that somebody has removed could be written to all the same, and would take room
//! that nobody sees. It is not; what comes is lost until the log is opened again, which the
//! kubelet asks for when it misses the file (LOG-16). To make it anew by itself would leave
//! files behind of pods that are being removed.
//!
//! A container that has its log's folder mounted may put there what it likes, and this is
//! root on the host: from the pod's log folder on no link is followed, and nothing but a
//! regular file is opened ([`beneath::append`]). Where the folder itself is, the kubelet says;
//! above it the node's owner may have links.

use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result, invalid};
use crate::sys::beneath;

/// How often a file that is written to is looked for, in nanoseconds.
const LOOK_PAUSE: u64 = 1_000_000_000;

/// An open log file.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    end: End,
    is_removed: bool,
    /// When it is looked for again, in nanoseconds since the epoch.
    next_look: u64,
}

/// How the file ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// To be looked at before the first write, and not when it is opened: the file may
    /// still be written to then, through the descriptor that this one replaces.
    Unknown,
    /// With a whole entry, or it is empty.
    Whole,
    /// In the middle of one.
    Torn,
}

/// What a failed write has cost.
#[derive(Debug)]
pub(super) struct Loss {
    /// Entries that are not in the file.
    pub(super) entries: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Why.
    pub(super) error: std::io::Error,
}

impl LogFile {
    /// Opens `path` for appending; makes it (mode 0640) and its directory (0755) when
    /// missing (CTR-17, LOG-16). It is in the folder `root`, if one is given: from there on
    /// no link is followed, else from its own folder on.
    ///
    /// # Errors
    /// Those of [`beneath::append`], naming the path.
    pub(super) fn open(path: &Path, root: Option<&Path>) -> Result<LogFile> {
        let what = || format!("open log file {path:?}");
        let root = root.or(path.parent()).unwrap_or(path);
        let above = root.parent().unwrap_or(Path::new("/"));
        let below = path.strip_prefix(above).ok().filter(|_| path.starts_with(root));
        let below = below.ok_or_else(|| invalid(format!("it is not in {root:?}"))).context(what)?;
        let file = beneath::append(above, below, 0o640).context(what)?;
        Ok(LogFile { path: path.to_owned(), file, end: End::Unknown, is_removed: false, next_look: 0 })
    }

    /// One that the program before had open at `path`.
    pub(super) fn inherit(fd: OwnedFd, path: &Path) -> LogFile {
        LogFile { path: path.to_owned(), file: fd.into(), end: End::Unknown, is_removed: false, next_look: 0 }
    }

    /// Appends `entries`, which are whole, at the time `now`, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// What was lost; the file ends with an entry, or knows that it does not.
    pub(super) fn write(&mut self, entries: &[u8], now: u64) -> Result<(), Loss> {
        // Also after a clock that was set back.
        if now >= self.next_look || self.next_look - now > LOOK_PAUSE {
            self.next_look = now.saturating_add(LOOK_PAUSE);
            self.is_removed = self.is_removed();
        }
        if self.is_removed {
            let error = std::io::Error::new(ErrorKind::NotFound, "the log file was removed");
            return Err(Loss::of(entries, error));
        }
        if self.end == End::Unknown {
            self.end = self.look();
        }
        if self.end == End::Torn {
            match write_all(&mut self.file, b"\n") {
                Ok(()) => self.end = End::Whole,
                Err((_, error)) => return Err(Loss::of(entries, error)),
            }
        }
        let Err((done, error)) = write_all(&mut self.file, entries) else { return Ok(()) };
        let whole = memchr::memrchr(b'\n', &entries[..done]).map_or(0, |at| at + 1);
        if done > whole && self.cut_off((done - whole) as u64).is_none() {
            self.end = End::Torn;
        }
        Err(Loss::of(&entries[whole..], error))
    }

    /// What is at the end of the file, which nobody else writes to.
    fn look(&self) -> End {
        let mut last = [0];
        // Whatever is not a file, or cannot be read, has no end to be mended.
        let length = self.file.metadata().ok().filter(|metadata| metadata.is_file()).map(|file| file.len());
        let at = length.and_then(|length| length.checked_sub(1));
        match at.map(|at| self.file.read_exact_at(&mut last, at)) {
            Some(Ok(())) if last != *b"\n" => End::Torn,
            _ => End::Whole,
        }
    }

    /// Whether the file has no name any more. Where the file system does not count names, that
    /// of the log does.
    fn is_removed(&self) -> bool {
        let Ok(file) = self.file.metadata() else { return false };
        let is_same = |found: std::fs::Metadata| (found.dev(), found.ino()) == (file.dev(), file.ino());
        file.is_file() && file.nlink() == 0 && !std::fs::metadata(&self.path).is_ok_and(is_same)
    }

    /// Removes the last `bytes` of the file if they are what this wrote last.
    fn cut_off(&mut self, bytes: u64) -> Option<()> {
        let end = self.file.stream_position().ok()?;
        let is_end = self.file.metadata().ok()?.len() == end;
        let keep = end.checked_sub(bytes).filter(|_| is_end)?;
        self.file.set_len(keep).ok()
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Loss {
    fn of(entries: &[u8], error: std::io::Error) -> Loss {
        let count = memchr::memchr_iter(b'\n', entries).count();
        Loss { entries: count as u64, bytes: entries.len() as u64, error }
    }
}

/// Writes all of `bytes`, or tells how far it came. A part taken is completed.
fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), (usize, std::io::Error)> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return Err((done, ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).expect("it is there")
    }

    fn append(path: &Path, entries: &str) {
        let mut file = LogFile::open(path, None).expect("opened");
        for entry in entries.split_inclusive('\n') {
            file.write(entry.as_bytes(), 0).expect("written");
        }
    }

    #[test]
    fn an_entry_that_a_killed_keeper_has_torn_is_ended_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        std::fs::write(&path, "whole\nto").expect("written");
        append(&path, "next\nlast\n");
        assert_eq!(read(&path), "whole\nto\nnext\nlast\n");
        // There is nothing to mend in a whole file, nor in an empty one.
        append(&path, "on\n");
        assert_eq!(read(&path), "whole\nto\nnext\nlast\non\n");
        let empty = folder.path().join("1.log");
        append(&empty, "first\n");
        assert_eq!(read(&empty), "first\n");
    }

    #[test]
    fn a_file_that_is_written_to_while_it_is_opened_is_looked_at_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        let mut old = File::create(&path).expect("made");
        old.write_all(b"ha").expect("written");
        let mut new = LogFile::open(&path, None).expect("opened");
        old.write_all(b"lf\n").expect("written");
        new.write(b"next\n", 0).expect("written");
        assert_eq!(read(&path), "half\nnext\n");
    }

    /// LOG-10.
    #[test]
    fn a_file_that_was_removed_is_not_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        let mut file = LogFile::open(&path, None).expect("opened");
        file.write(b"one\n", 5).expect("written");
        std::fs::rename(&path, folder.path().join("1.log")).expect("rotated");
        file.write(b"two\n", 5 + LOOK_PAUSE).expect("it has another name");
        std::fs::remove_file(folder.path().join("1.log")).expect("removed");
        let loss = file.write(b"three\nfour\n", 5 + 2 * LOOK_PAUSE).expect_err("nobody would see it");
        assert_eq!((loss.entries, loss.bytes), (2, 11));
        assert_eq!(loss.error.to_string(), "the log file was removed");
        let mut file = LogFile::open(&path, None).expect("opened");
        file.write(b"five\n", 5).expect("written");
        assert_eq!(read(&path), "five\n");
    }

    #[test]
    fn what_is_not_written_is_counted() {
        let full: OwnedFd = File::options().write(true).open("/dev/full").expect("opened").into();
        let mut file = LogFile::inherit(full, Path::new("/dev/full"));
        let loss = file.write(b"one\ntwo\n", 0).expect_err("it is full");
        assert_eq!((loss.entries, loss.bytes, loss.error.kind()), (2, 8, ErrorKind::StorageFull));
    }

    /// Who may write into the folder of a log leads it nowhere else; above it links are fine.
    #[test]
    fn no_link_is_followed_from_the_log_folder_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("outside")).expect("a folder");
        for (to, name) in [("real", "logs"), ("../outside", "real/pod"), ("../../../outside", "real/good/c")]
        {
            std::fs::create_dir_all(path("real/good")).expect("a folder");
            std::os::unix::fs::symlink(to, path(name)).expect("a link");
        }
        let open = |name: &str, root: &str| LogFile::open(&path(name), Some(&path(root))).map(drop);
        open("logs/good/d/0.log", "logs/good").expect("opened");
        open("logs/0.log", "logs").expect_err("the folder itself");
        open("logs/pod/d/0.log", "logs/pod").expect_err("the pod's folder");
        open("logs/good/c/0.log", "logs/good").expect_err("the container's folder");
        open("outside/0.log", "logs/good").expect_err("another folder");
        let error = LogFile::open(&path("logs/good/c/0.log"), None).map(drop).expect_err("its own folder");
        assert!(error.message().contains("logs/good/c/0.log"), "{error}");
        assert_eq!(std::fs::read_dir(path("outside")).expect("a folder").count(), 0);
    }
}
