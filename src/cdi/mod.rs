//! Devices of vendors: the Container Device Interface (OCI-41, OCI-42).
//!
//! A vendor describes in a file what a container needs for one of its devices: nodes,
//! mounts, variables, hooks. [`Cdi`] knows the files of the configured directories and
//! turns the names that a container asks for into [`Edits`] of its spec.
//!
//! ```text
//! names.rs   CDI_devices, annotations ─▶ names
//! cache.rs   directories ─▶ file.rs: read, checked ─▶ devices     watch.rs: until they change
//! edits.rs   names ─▶ edits of the files used, of the devices, with the host's nodes ─▶ Edits
//! ```
//! The files are read when they change and not when they are needed. A device that a
//! vendor's plugin has just written is there all the same: a lookup first takes what
//! inotify has queued, which is one system call.

mod cache;
mod edits;
mod file;
mod names;
mod watch;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::{Result, precondition};
use crate::flow::{self, lock};
use crate::proto::cri::ContainerConfig;
use crate::spec::Edits;
use crate::sys;
use cache::{Device, Loaded};
use watch::Watches;

/// The devices of the node; a handle that is cheap to clone.
#[derive(Clone)]
pub struct Cdi(Arc<Inner>);

struct Inner {
    directories: Vec<PathBuf>,
    is_enabled: bool,
    /// None where the system has none to give: then every lookup reads the files.
    inotify: Option<AsyncFd<OwnedFd>>,
    state: Mutex<State>,
}

struct State {
    watches: Watches,
    /// Everything that can change is watched.
    is_watched: bool,
    loaded: Arc<Loaded>,
}

impl Cdi {
    /// Reads the spec files of `directories`, the later of which go over the earlier;
    /// without any, and without a watch, where CDI is not enabled. To be called in a tokio
    /// runtime. Files that cannot be used get a line in the log.
    #[must_use]
    pub fn new(is_enabled: bool, directories: &[PathBuf]) -> Cdi {
        let inotify = if is_enabled {
            let opened = sys::inotify::open();
            if let Err(error) = &opened {
                warn!(%error, "no inotify: CDI specs are read for every container that asks for a device");
            }
            opened.ok()
        } else {
            None
        };
        let this = Cdi(Arc::new(Inner {
            directories: directories.to_owned(),
            is_enabled,
            inotify,
            state: Mutex::new(State {
                watches: Watches::new(directories),
                is_watched: false,
                loaded: Arc::default(),
            }),
        }));
        if is_enabled {
            this.current();
        }
        this
    }

    /// Reads the files when they change, until `stop`, so that lookups need not.
    pub async fn watch(self, stop: CancellationToken) {
        let Some(inotify) = &self.0.inotify else { return };
        loop {
            let ready = tokio::select! {
                () = stop.cancelled() => return,
                ready = inotify.readable() => ready,
            };
            match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => {
                    warn!(%error, "CDI specs are read when they are needed from now on");
                    return;
                }
            }
            let this = self.clone();
            let looked = flow::blocking(move || {
                this.current();
                Ok(())
            });
            if let Err(error) = looked.await {
                warn!(%error, "CDI specs could not be read");
            }
        }
    }

    /// The devices that a container asks for, none of them twice.
    ///
    /// # Errors
    /// InvalidArgument for a name that is not qualified; FailedPrecondition for any where
    /// CDI is not enabled.
    pub fn asked(&self, config: &ContainerConfig) -> Result<Vec<String>> {
        let names = names::asked(config)?;
        if !names.is_empty() && !self.0.is_enabled {
            return Err(precondition(format!(
                "CDI devices are asked for ({}), but container.enable_cdi is false",
                names.join(", ")
            )));
        }
        Ok(names)
    }

    /// What `names` change in a spec: for each the edits of its file, once for each file,
    /// then its own. Reads files: not for async threads.
    ///
    /// # Errors
    /// FailedPrecondition naming every device that cannot be resolved, and why; what is
    /// wrong with a device node.
    pub fn edits(&self, names: &[String]) -> Result<Edits> {
        let mut all = Edits::default();
        if names.is_empty() {
            return Ok(all);
        }
        let loaded = self.current();
        let (mut devices, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match loaded.device(name) {
                Ok(device) => devices.push(device),
                Err(why) => missing.push(format!("{name} ({why})")),
            }
        }
        if !missing.is_empty() {
            return Err(precondition(format!("CDI devices cannot be resolved: {}", missing.join(", "))));
        }
        for (index, device) in devices.iter().enumerate() {
            let is_same = |other: &Device| Arc::ptr_eq(&other.spec, &device.spec);
            if !devices[..index].iter().any(is_same) {
                edits::append(&device.spec.container_edits, &mut all)?;
            }
            edits::append(device.edits(), &mut all)?;
        }
        Ok(all)
    }

    /// What the directories hold now.
    fn current(&self) -> Arc<Loaded> {
        let Inner { directories, inotify, state, .. } = &*self.0;
        let mut state = lock(state);
        let State { watches, is_watched, loaded } = &mut *state;
        let has_changed = inotify.as_ref().is_none_or(|inotify| watches.read(inotify));
        if *is_watched && !has_changed {
            return loaded.clone();
        }
        // First the watches: what changes while the files are read is told.
        *is_watched = inotify.as_ref().is_some_and(|inotify| watches.arm(inotify));
        let new = Loaded::read(directories);
        for (path, problem) in &new.problems {
            if loaded.problems.get(path) != Some(problem) {
                warn!(?path, problem, "a CDI spec cannot be used");
            }
        }
        for path in loaded.problems.keys().filter(|path| !new.problems.contains_key(*path)) {
            info!(?path, "the trouble with a CDI spec is over");
        }
        *loaded = Arc::new(new);
        loaded.clone()
    }
}

#[cfg(test)]
mod tests;
