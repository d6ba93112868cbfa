//! The log file of a container: opened for appending, written in whole entries.
//!
//! A reader of the file never sees half an entry for longer than a system call takes:
//! one `write` carries many whole ones (LOG-09), and when the disk takes only a part
//! before it is full, what stands there of the torn entry is cut off again. Where that
//! is impossible, the next successful write ends the torn line first (LOG-10).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Context, Result};

/// An open log file.
pub(super) struct LogFile {
    file: File,
    /// Whether the file ends in the middle of an entry.
    is_torn: bool,
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
    /// missing (CTR-17, LOG-16).
    ///
    /// # Errors
    /// Those of the file system, naming the path.
    pub(super) fn open(path: &Path) -> Result<LogFile> {
        // Non-blocking: were it a FIFO, neither this nor a write may wait for a reader.
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
        let opened = options.open(path).or_else(|error| match (error.kind(), path.parent()) {
            (ErrorKind::NotFound, Some(parent)) => {
                DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
                options.open(path)
            }
            _ => Err(error),
        });
        let file = opened.context(|| format!("open log file {path:?}"))?;
        Ok(LogFile { file, is_torn: false })
    }

    /// Appends `entries`, which are whole.
    ///
    /// # Errors
    /// What was lost; the file ends with an entry, or knows that it does not.
    pub(super) fn write(&mut self, entries: &[u8]) -> Result<(), Loss> {
        if self.is_torn {
            match write_all(&mut self.file, b"\n") {
                Ok(()) => self.is_torn = false,
                Err((_, error)) => return Err(Loss::of(entries, error)),
            }
        }
        let Err((done, error)) = write_all(&mut self.file, entries) else { return Ok(()) };
        let whole = memchr::memrchr(b'\n', &entries[..done]).map_or(0, |at| at + 1);
        if done > whole {
            self.is_torn = self.cut_off((done - whole) as u64).is_none();
        }
        Err(Loss::of(&entries[whole..], error))
    }

    /// Removes the last `bytes` of the file if they are what this wrote last.
    fn cut_off(&mut self, bytes: u64) -> Option<()> {
        let end = self.file.stream_position().ok()?;
        let is_end = self.file.metadata().ok()?.len() == end;
        let keep = end.checked_sub(bytes).filter(|_| is_end)?;
        self.file.set_len(keep).ok()
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
