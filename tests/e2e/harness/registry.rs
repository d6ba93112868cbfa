//! docker-registry on a free port, with images written straight into its storage.
//!
//! It is shared by the nodes of a test process that live at the same time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tempfile::TempDir;

use super::images::{Blob, Image, Packed, REGISTRY, standard};
use super::process::{Process, command};
use super::{LIMIT, PAUSE, patient};

/// How its folders begin, and the file in there that is locked while it lives.
const PREFIX: &str = "ls-registry-";
const LOCK: &str = "lock";

/// A registry. References name it [`REGISTRY`], whatever its port.
pub(crate) struct Registry {
    address: String,
    // Ended before its folder goes.
    process: Process,
    folder: TempDir,
    // Held for as long as the folder is somebody's.
    _lock: File,
}

impl Registry {
    /// The one of this process, started if there is none now.
    pub(crate) fn shared() -> Arc<Registry> {
        static SHARED: Mutex<Weak<Registry>> = Mutex::new(Weak::new());
        // Who panicked while holding the lock has left no registry.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Registry::start());
        *shared = Arc::downgrade(&started);
        started
    }

    fn start() -> Registry {
        remove_abandoned();
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a folder");
        // It has its name only once it is locked.
        let (early, file) = (folder.path().join("early"), folder.path().join(LOCK));
        let lock = File::create(&early).expect("a lock");
        lock.try_lock().expect("a lock of a new folder");
        std::fs::rename(early, file).expect("a lock");
        let file = folder.path().join("config.yml");
        let data = folder.path().join("data");
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:0\n  secret: x\n",
            data.display()
        );
        std::fs::write(&file, config).expect("a file");
        let mut serve = command("docker-registry");
        serve.arg("serve").arg(&file);
        let mut process = Process::start("docker-registry", serve, &folder.path().join("log"));
        let end = Instant::now() + patient(LIMIT);
        let address = loop {
            let log = process.log();
            let told = log.split_once("listening on ");
            if let Some(address) = told.and_then(|(_, rest)| rest.split([',', '"', ' ', '\n']).next()) {
                break address.to_owned();
            }
            assert!(process.is_alive() && Instant::now() < end, "docker-registry does not serve:\n{log}");
            std::thread::sleep(PAUSE);
        };
        let registry = Registry { address, process, folder, _lock: lock };
        for (name, image) in standard() {
            registry.push(name, &image);
        }
        registry
    }

    /// `127.0.0.1:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What its hosts.toml has to say. A table of hosts is there for containerd 1.6, which
    /// does not do without.
    pub(crate) fn hosts(&self) -> String {
        let url = format!("http://{}", self.address);
        format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n")
    }

    /// Its id as a process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed: a line for each request that it has answered, among others.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Puts an image under `repository:tag`; gives its reference.
    pub(crate) fn push(&self, name: &str, image: &Image) -> String {
        self.push_packed(name, &image.pack())
    }

    /// Puts an image that is packed already under `repository:tag`; gives its reference.
    pub(crate) fn push_packed(&self, name: &str, image: &Packed) -> String {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(blob);
            let link = format!("repositories/{repository}/_layers/{}/link", path_of(&blob.digest));
            self.link(&link, &blob.digest);
        }
        self.blob(&image.manifest);
        let digest = &image.manifest.digest;
        let manifests = format!("repositories/{repository}/_manifests");
        self.link(&format!("{manifests}/revisions/{}/link", path_of(digest)), digest);
        self.link(&format!("{manifests}/tags/{tag}/index/{}/link", path_of(digest)), digest);
        self.link(&format!("{manifests}/tags/{tag}/current/link"), digest);
        format!("{REGISTRY}/{name}")
    }

    /// The file behind a digest, for a test that breaks it.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        self.data().join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    fn blob(&self, blob: &Blob) {
        let file = self.blob_file(&blob.digest);
        if !file.exists() {
            write(&file, &blob.data);
        }
    }

    fn link(&self, path: &str, digest: &str) {
        write(&self.data().join(path), digest.as_bytes());
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data/docker/registry/v2")
    }
}

/// Removes the folders of test processes that were killed.
fn remove_abandoned() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let is_registry = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // One without a lock is just being made.
        let lock = File::open(entry.path().join(LOCK));
        if is_registry && lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn path_of(digest: &str) -> String {
    digest.replace(':', "/")
}

/// Replaces a file at once: the registry may be reading.
fn write(path: &Path, data: &[u8]) {
    let folder = path.parent().expect("a folder");
    std::fs::create_dir_all(folder).expect("a folder");
    let file = tempfile::NamedTempFile::new_in(folder).expect("a file");
    std::fs::write(file.path(), data).expect("a file");
    file.persist(path).expect("a file");
}
