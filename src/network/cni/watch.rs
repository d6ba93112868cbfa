//! A directory of network configurations, loaded and kept up to date (CNI-06 to CNI-08).
//!
//! inotify tells of most changes at once: a file closed after writing, renamed, linked or
//! removed, and the directory itself (or a symlink in its place) exchanged, for which its
//! parent is watched. That a file was created tells nothing yet, it may be half written.
//! What inotify cannot see (a changed target of a symlink, another node's change on a
//! network file system, too few watches) is found by looking every few seconds. A
//! difference found so must hold still for one more look before it is loaded.
//!
//! The directory may vanish and come back. It is created at the start only: whoever
//! replaces it must not find an empty one in the way.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::config::{self, Network, conf_files};
use crate::flow;
use crate::sys;

/// How often to look for what inotify does not tell.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// The most entries that are compared in a look.
const ENTRIES_MAX: usize = 4096;

/// Bytes of inotify events that are read at once.
const EVENT_BYTES: usize = 16 << 10;

/// One directory of configurations, with what was loaded from it last.
pub(crate) struct ConfDir {
    /// The runtime handler whose pods it is for; empty for all others'.
    pub(crate) handler: String,
    pub(crate) directory: PathBuf,
    /// The most networks taken from it; 0 means all.
    pub(crate) max: usize,
    /// Held while loading, so that an older state never replaces a newer one.
    loading: Mutex<()>,
    loaded: watch::Sender<Arc<Loaded>>,
}

/// What a directory held when it was read.
pub(crate) struct Loaded {
    /// The networks, or why there are none.
    pub(crate) networks: Result<Arc<[Network]>, String>,
    /// The networks of the last load that went well, for removals (CNI-06).
    pub(crate) last_good: Option<Arc<[Network]>>,
    seen: Fingerprint,
}

/// What tells whether files have changed: name, device, inode, size, time of change.
type Fingerprint = Vec<(OsString, Option<(u64, u64, u64, i64, i64)>)>;

impl ConfDir {
    /// Loads `directory` for the pods of `handler`.
    pub(crate) fn new(handler: &str, directory: &Path, max: usize) -> ConfDir {
        let nothing = Loaded { networks: Err(String::new()), last_good: None, seen: Vec::new() };
        let this = ConfDir {
            handler: handler.to_owned(),
            directory: directory.to_owned(),
            max,
            loading: Mutex::new(()),
            loaded: watch::channel(Arc::new(nothing)).0,
        };
        this.reload();
        this
    }

    /// What was loaded last.
    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        self.loaded.borrow().clone()
    }

    /// Loads the directory anew. Reads files: not for async threads.
    pub(crate) fn reload(&self) {
        let _turn = flow::lock(&self.loading);
        let seen = fingerprint(&self.directory);
        let mut networks = config::load(&self.directory, self.max)
            .map(Arc::<[Network]>::from)
            .map_err(|error| error.message().to_owned());
        let before = self.loaded();
        let is_same = match (&before.networks, &networks) {
            (Ok(old), Ok(new)) => old.iter().map(Network::content).eq(new.iter().map(Network::content)),
            (Err(old), Err(new)) => old == new,
            _ => false,
        };
        if is_same {
            networks.clone_from(&before.networks);
        } else {
            self.tell(&networks);
        }
        let last_good = networks.as_ref().ok().or(before.last_good.as_ref()).cloned();
        self.loaded.send_replace(Arc::new(Loaded { networks, last_good, seen }));
    }

    fn tell(&self, networks: &Result<Arc<[Network]>, String>) {
        let (handler, directory) = (&self.handler, &self.directory);
        match networks {
            Ok(networks) => {
                let names: Vec<_> = networks.iter().map(|network| network.list.name.as_str()).collect();
                info!(handler, ?directory, networks = names.join(","), "CNI configuration loaded");
            }
            Err(error) => warn!(handler, ?directory, error, "no CNI configuration"),
        }
    }

    /// Keeps the loaded state up to date until `stop`.
    pub(crate) async fn watch(self: Arc<ConfDir>, stop: CancellationToken) {
        let this = self.clone();
        let begun = flow::blocking(move || {
            this.create_directory();
            let mut eyes = Eyes::open();
            eyes.arm(&this.directory);
            if fingerprint(&this.directory) != this.loaded().seen {
                this.reload();
            }
            Ok(eyes)
        });
        let mut turn = begun.await.map(|eyes| (eyes, None));
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            let (mut eyes, pending) = match turn {
                Ok(turn) => turn,
                Err(error) => {
                    warn!(%error, directory = ?self.directory, "the CNI configuration is not watched any more");
                    return;
                }
            };
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = eyes.change(&self.directory) => Some(change),
                _ = look.tick() => None,
            };
            let this = self.clone();
            turn = flow::blocking(move || {
                eyes.arm(&this.directory);
                let pending = this.turn(change, pending);
                Ok((eyes, pending))
            })
            .await;
        }
    }

    /// Loads if `change` demands it, or if a look finds what the look before found as
    /// well (`pending`). Gives what the next look is compared with.
    fn turn(&self, change: Option<Change>, pending: Option<Fingerprint>) -> Option<Fingerprint> {
        match change {
            Some(Change::Content) => self.reload(),
            Some(Change::Created(names)) => {
                // Links are whole at once; a file is not, its end of writing will be told.
                let is_link = |name: &OsString| {
                    let found = std::fs::symlink_metadata(self.directory.join(name));
                    found.is_ok_and(|found| found.is_symlink() || (found.is_file() && found.nlink() > 1))
                };
                if !names.iter().any(is_link) {
                    return pending;
                }
                self.reload();
            }
            None => {
                let seen = fingerprint(&self.directory);
                if seen == self.loaded().seen {
                    return None;
                }
                if pending.as_ref() != Some(&seen) {
                    return Some(seen);
                }
                debug!(directory = ?self.directory, "a change was found without an event");
                self.reload();
            }
        }
        None
    }

    /// The parents may be read by all: other tools' files are there too.
    fn create_directory(&self) {
        let create = |mode, path| std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        if let Err(error) = create(0o755, parent).and_then(|()| create(0o700, &self.directory)) {
            warn!(%error, directory = ?self.directory, "the CNI configuration directory cannot be created");
        }
    }

    /// Waits until what is loaded satisfies `condition`.
    #[cfg(test)]
    pub(crate) async fn wait_for(&self, condition: impl Fn(&Loaded) -> bool) {
        self.loaded.subscribe().wait_for(|loaded| condition(loaded)).await.expect("the sender lives");
    }
}

/// The state of all files that can be configurations, and of the folders of plugins.
fn fingerprint(directory: &Path) -> Fingerprint {
    let mut files = conf_files(directory, &["conflist", "conf", "json"]).unwrap_or_default();
    if let Ok(entries) = std::fs::read_dir(directory) {
        for folder in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            if files.len() >= ENTRIES_MAX {
                break;
            }
            files.extend(conf_files(&folder, &["conf"]).unwrap_or_default());
        }
    }
    files.sort_unstable();
    files.truncate(ENTRIES_MAX);
    files
        .into_iter()
        .map(|file| {
            let state = std::fs::metadata(&file).ok();
            let state = state.map(|s| (s.dev(), s.ino(), s.size(), s.mtime(), s.mtime_nsec()));
            (file.into_os_string(), state)
        })
        .collect()
}

/// What inotify told.
enum Change {
    /// Load anew.
    Content,
    /// Files of these names appeared, which may be half written.
    Created(Vec<OsString>),
}

/// inotify's view of a directory and of its name in the parent directory.
struct Eyes {
    /// None where the system has no more watches to give: then there are only the looks.
    inotify: Option<AsyncFd<OwnedFd>>,
    /// The watch, and device and inode of what it is on.
    directory: Option<(i32, (u64, u64))>,
    parent: Option<i32>,
}

impl Eyes {
    fn open() -> Eyes {
        let inotify = sys::inotify::open();
        if let Err(error) = &inotify {
            warn!(%error, "no inotify: changes of the CNI configuration are noticed late");
        }
        Eyes { inotify: inotify.ok(), directory: None, parent: None }
    }

    /// Watches what stands at the path `directory` now.
    fn arm(&mut self, directory: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let found = std::fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()));
        if self.directory.map(|(_, id)| id) != found {
            if let Some((old, _)) = self.directory.take() {
                let _ = inotify::remove_watch(inotify, old);
            }
            let events = WatchFlags::CLOSE_WRITE
                | WatchFlags::CREATE
                | WatchFlags::MOVE
                | WatchFlags::DELETE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            let added = found.and_then(|id| Some((inotify::add_watch(inotify, directory, events).ok()?, id)));
            self.directory = added;
        }
        if self.parent.is_none() {
            let events = WatchFlags::CREATE
                | WatchFlags::MOVE
                | WatchFlags::DELETE
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            let parent = directory.parent().unwrap_or(Path::new("/"));
            self.parent = inotify::add_watch(inotify, parent, events).ok();
        }
    }

    /// Waits for the next change. May be cancelled without losing any.
    async fn change(&mut self, directory: &Path) -> Change {
        loop {
            let Some(inotify) = &self.inotify else { return std::future::pending().await };
            let Ok(mut ready) = inotify.readable().await else {
                return std::future::pending().await;
            };
            ready.clear_ready();
            drop(ready);
            if let Some(change) = self.read(directory.file_name().unwrap_or_default()) {
                return change;
            }
        }
    }

    /// Reads all events that there are. `name` is the directory's in its parent.
    fn read(&mut self, name: &OsStr) -> Option<Change> {
        let inotify = self.inotify.as_ref()?;
        let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        let (mut must_load, mut created) = (false, Vec::new());
        while let Ok(event) = events.next() {
            let (watch, kind) = (Some(event.wd()), event.events());
            let file = event.file_name().map(|file| OsStr::from_bytes(file.to_bytes()));
            if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
                must_load = true;
            } else if watch == self.directory.map(|(watch, _)| watch) {
                if kind.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                    self.directory = None;
                    must_load = true;
                } else if kind.contains(ReadFlags::CREATE) {
                    created.extend(file.map(OsStr::to_owned));
                } else {
                    must_load = true;
                }
            } else if watch == self.parent {
                if kind.intersects(ReadFlags::IGNORED | ReadFlags::MOVE_SELF) {
                    self.parent = None;
                    must_load = true;
                }
                must_load |= file == Some(name);
            }
        }
        match (must_load, created.is_empty()) {
            (true, _) => Some(Change::Content),
            (false, false) => Some(Change::Created(created)),
            (false, true) => None,
        }
    }
}

#[cfg(test)]
mod tests;
