//! Where things are on disk (COX-09): the built-in plugin's layout below two folders.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Context, Result, already_exists};
use crate::ids::{ContainerId, PodId};
use crate::proto::cri::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use crate::spec::{self, PodFiles};

/// The shm of the host.
const HOST_SHM: &str = "/dev/shm";

/// How long a server that was killed may need to let go of its root: its threads end once the
/// disk has answered them that the next server has waited for, too.
const CLAIM_LIMIT: Duration = Duration::from_secs(3);
/// How often that is looked at.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

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

    /// Makes the folders, for root alone: there are copies of images' files with their
    /// owners and modes, set-user-id programs and devices among them. Holds the root until the
    /// file is dropped: two servers with one root would roll back each other's pods. Blocks: on
    /// a disk that hangs, and for some seconds while another server holds it.
    ///
    /// # Errors
    /// AlreadyExists if another server holds it all that time, else the file system's.
    pub fn claim(&self) -> Result<File> {
        for folder in self.all().into_iter().chain([self.image_volumes()]) {
            std::fs::create_dir_all(&folder).context(|| format!("make folder {folder:?}"))?;
            let closed = std::fs::set_permissions(&folder, Permissions::from_mode(0o700));
            closed.context(|| format!("permissions of {folder:?}"))?;
        }
        let path = self.lock_file();
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.context(|| format!("open lock file {path:?}"))?;
        let end = Instant::now() + CLAIM_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                    std::thread::sleep(CLAIM_PAUSE);
                }
                Err(Errno::WOULDBLOCK) => {
                    let folder = &self.root;
                    return Err(already_exists(format!(
                        "another server uses the folder {folder:?} (--root)"
                    )));
                }
                Err(error) => return Err(error).context(|| format!("lock {path:?}")),
            }
        }
    }

    /// The folder that survives a reboot.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that a server holds locked.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
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

    /// What the pause container of a pod mounts of the pod's own files.
    #[must_use]
    pub fn pause_files(&self, id: &PodId, pod: &PodSandboxConfig) -> PodFiles {
        PodFiles {
            resolv_conf: self.pod_root(id).join("resolv.conf"),
            shm: if pod_has_host_ipc(pod) { HOST_SHM.into() } else { self.pod_state(id).join("shm") },
            ..PodFiles::default()
        }
    }

    /// The pod's own files, as a container mounts them. Which shm it has says the container,
    /// as it does with containerd's plugin: the host's, or the pod's where it has one.
    #[must_use]
    pub fn pod_files(&self, id: &PodId, pod: &PodSandboxConfig, config: &ContainerConfig) -> PodFiles {
        let root = self.pod_root(id);
        let shm = match (spec::asks_for_host_ipc(config), pod_has_host_ipc(pod)) {
            (true, _) => HOST_SHM.into(),
            (false, true) => PathBuf::new(),
            (false, false) => self.pod_state(id).join("shm"),
        };
        PodFiles {
            hostname: root.join("hostname"),
            hosts: root.join("hosts"),
            resolv_conf: root.join("resolv.conf"),
            shm,
        }
    }

    /// The pinned user namespace of a pod that has one and a network.
    #[must_use]
    pub fn pod_user_namespace(&self, id: &PodId) -> PathBuf {
        self.pod_state(id).join("pinned-namespaces/user")
    }

    /// Status and volumes of a container.
    #[must_use]
    pub fn container_root(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// Mounts of images that pods have as volumes, by pod.
    #[must_use]
    pub fn image_volumes(&self) -> PathBuf {
        self.state.join("image-volumes")
    }

    /// Those of a pod, by the digest of the image.
    #[must_use]
    pub fn pod_image_volumes(&self, id: &PodId) -> PathBuf {
        self.image_volumes().join(id.as_str())
    }

    /// FIFOs of a container.
    #[must_use]
    pub fn container_state(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }
}

/// Whether a pod uses the host's IPC.
fn pod_has_host_ipc(pod: &PodSandboxConfig) -> bool {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    options.is_some_and(|options| options.ipc == NamespaceMode::Node as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_root_has_one_server_at_a_time() {
        let dir = tempfile::tempdir().expect("folder");
        let paths = Paths::new(&dir.path().join("root"), &dir.path().join("state"));
        let held = paths.claim().expect("free");
        let error = paths.claim().expect_err("held");
        assert_eq!(error.kind(), Kind::AlreadyExists);
        drop(held);
        paths.claim().expect("free again");
    }

    /// What containers have put there is nothing for other users of the host.
    #[test]
    fn the_folders_of_pods_are_for_root_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let paths = Paths::new(&dir.path().join("root"), &dir.path().join("state"));
        std::fs::create_dir_all(dir.path().join("root/containers")).expect("one of before");
        paths.claim().expect("free");
        for folder in paths.all().into_iter().chain([paths.image_volumes()]) {
            let mode = std::fs::metadata(&folder).expect("a folder").permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{folder:?}");
        }
    }
}
