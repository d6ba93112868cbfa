//! What inotify tells of directories that may come later.
//!
//! ```text
//! /var/run/cdi:   /  ── "var" ──▶  /var  ── "run" ──▶  /var/run  ── "cdi" ──▶  the directory
//!                 each watched for the one name that leads on         watched for all names
//! ```
//! The kernel queues an event before the call that changed something returns. Who reads
//! the queue first and looks then never sees less than what was there when he came.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::cache::is_spec_name;

/// Bytes of inotify events that are read at once.
const EVENT_BYTES: usize = 16 << 10;

/// The watches of some directories.
pub(super) struct Watches {
    directories: Vec<PathBuf>,
    on: HashMap<i32, Watched>,
}

/// What one watch is for.
#[derive(Default)]
struct Watched {
    /// A directory of specs is here.
    specs: Option<PathBuf>,
    /// Names in it that lead to one.
    names: Vec<OsString>,
}

impl Watches {
    pub(super) fn new(directories: &[PathBuf]) -> Watches {
        Watches { directories: directories.to_owned(), on: HashMap::new() }
    }

    /// Watches what stands at the paths now. Gives false where the system has no more
    /// watches to give.
    pub(super) fn arm(&mut self, inotify: &AsyncFd<OwnedFd>) -> bool {
        let mut on: HashMap<i32, Watched> = HashMap::new();
        let mut is_whole = true;
        for directory in &self.directories {
            // From the root on: what appears after the look at its parent is told by that.
            let mut ancestors: Vec<&Path> = directory.ancestors().collect();
            ancestors.reverse();
            for (index, path) in ancestors.iter().enumerate() {
                let mut events = WatchFlags::ONLYDIR
                    | WatchFlags::CREATE
                    | WatchFlags::MOVE
                    | WatchFlags::DELETE
                    | WatchFlags::DELETE_SELF
                    | WatchFlags::MOVE_SELF;
                let next = ancestors.get(index + 1).and_then(|next| next.file_name());
                if next.is_none() {
                    events |= WatchFlags::CLOSE_WRITE;
                }
                // One directory can be both, at the end of one path and on the way of another.
                match inotify::add_watch(inotify, *path, events | WatchFlags::MASK_ADD) {
                    Ok(watch) => {
                        let watched = on.entry(watch).or_default();
                        match next {
                            Some(name) => watched.names.push(name.to_owned()),
                            None => watched.specs = Some(directory.clone()),
                        }
                    }
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => break,
                    Err(_) => is_whole = false,
                }
            }
        }
        for gone in self.on.keys().filter(|watch| !on.contains_key(watch)) {
            let _ = inotify::remove_watch(inotify, *gone);
        }
        self.on = on;
        is_whole
    }

    /// Reads all events that there are, and says whether the specs may have changed.
    pub(super) fn read(&self, inotify: &AsyncFd<OwnedFd>) -> bool {
        let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        let mut has_changed = false;
        while let Ok(event) = events.next() {
            let kind = event.events();
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            has_changed |= kind.contains(ReadFlags::QUEUE_OVERFLOW)
                || self.on.get(&event.wd()).is_some_and(|watched| watched.is_touched(kind, name));
        }
        has_changed
    }
}

impl Watched {
    fn is_touched(&self, kind: ReadFlags, name: Option<&OsStr>) -> bool {
        let Some(name) = name else { return true };
        if self.names.iter().any(|own| own == name) {
            return true;
        }
        let Some(directory) = &self.specs else { return false };
        if !is_spec_name(Path::new(name)) {
            return false;
        }
        if !kind.contains(ReadFlags::CREATE) {
            return true;
        }
        // Links are whole at once; a file is not, the end of its writing will be told.
        let found = std::fs::symlink_metadata(directory.join(name));
        found.is_ok_and(|found| found.is_symlink() || (found.is_file() && found.nlink() > 1))
    }
}
