//! Where things are on disk (COX-09): the built-in plugin's layout below two folders.

use std::path::{Path, PathBuf};

use crate::ids::{ContainerId, PodId};

/// The two folders.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// `root` survives a reboot, `state` does not.
    #[must_use]
    pub fn new(root: &Path, state: &Path) -> Paths {
        Paths { root: root.to_owned(), state: state.to_owned() }
    }

    /// The volatile folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The four folders of pods and containers: persistent, then volatile.
    #[must_use]
    pub fn all(&self) -> [PathBuf; 4] {
        [
            self.root.join("sandboxes"),
            self.root.join("containers"),
            self.state.join("sandboxes"),
            self.state.join("containers"),
        ]
    }

    /// hostname, hosts, resolv.conf of a pod.
    #[must_use]
    pub fn pod_root(&self, id: &PodId) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// shm of a pod.
    #[must_use]
    pub fn pod_state(&self, id: &PodId) -> PathBuf {
        self.state.join("sandboxes").join(id.as_str())
    }

    /// Status and volumes of a container.
    #[must_use]
    pub fn container_root(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// FIFOs of a container.
    #[must_use]
    pub fn container_state(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }
}
