//! docker-registry, with images written straight into its storage.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::fixture::{Blob, Image};

/// The one who may pull from a registry that asks.
pub(crate) const USER: &str = "ann";
pub(crate) const PASSWORD: &str = "hunter2-hunter2";
/// The password as htpasswd stores it.
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuM6LdIRFtSO2kPdsnQR8QqPt6tFqthsy";

/// Whom a registry serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Everybody,
    User,
}

pub(crate) struct Registry {
    /// `127.0.0.1:port`
    pub(crate) address: String,
    daemon: Child,
    folder: TempDir,
}

impl Registry {
    /// Starts one; none, after saying so, where it is not installed.
    pub(crate) fn start() -> Option<Registry> {
        Registry::run(None, Access::Everybody)
    }

    /// Starts one that serves [`USER`] alone.
    pub(crate) fn with_login() -> Option<Registry> {
        Registry::run(None, Access::User)
    }

    /// Starts one that speaks TLS, with a file of its certificate and one of its key.
    pub(crate) fn with(tls: Option<(&Path, &Path)>) -> Option<Registry> {
        Registry::run(tls, Access::Everybody)
    }

    fn run(tls: Option<(&Path, &Path)>, access: Access) -> Option<Registry> {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config.yml");
        let root = folder.path().display();
        let tls = tls.map(|(certificate, key)| {
            format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display())
        });
        let tls = tls.unwrap_or_default();
        let login = match access {
            Access::Everybody => String::new(),
            Access::User => {
                write(&folder.path().join("htpasswd"), format!("{USER}:{PASSWORD_HASH}\n").as_bytes());
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n")
            }
        };
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\nhttp:\n  addr: 127.0.0.1:0\n  secret: x\n{tls}{login}"
        );
        std::fs::write(&file, config).expect("file");
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut daemon) = started else {
            eprintln!("skipped: no docker-registry");
            return None;
        };
        let mut lines = BufReader::new(daemon.stderr.take().expect("piped")).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split([',', '"']).next()?.to_owned())
        });
        // The rest of its log must go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Registry { address: address.expect("the registry tells its address"), daemon, folder })
    }

    /// The name of a repository's tag here.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Puts an image under `repository:tag`.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.add(repository, image);
        self.tag(repository, tag, &image.manifest);
    }

    /// Puts an index with its images under `repository:tag`.
    pub(crate) fn push_index(&self, repository: &str, tag: &str, index: &Blob, images: &[&Image]) {
        for image in images {
            self.add(repository, image);
        }
        self.revision(repository, index);
        self.tag(repository, tag, index);
    }

    fn add(&self, repository: &str, image: &Image) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(blob);
            let hex = hex(&blob.digest());
            self.link(&format!("repositories/{repository}/_layers/sha256/{hex}/link"), &blob.digest());
        }
        self.revision(repository, &image.manifest);
    }

    fn revision(&self, repository: &str, manifest: &Blob) {
        self.blob(manifest);
        let digest = manifest.digest();
        let link = format!("repositories/{repository}/_manifests/revisions/sha256/{}/link", hex(&digest));
        self.link(&link, &digest);
    }

    /// Moves a tag.
    pub(crate) fn tag(&self, repository: &str, tag: &str, manifest: &Blob) {
        let folder = format!("repositories/{repository}/_manifests/tags/{tag}");
        let digest = manifest.digest();
        self.link(&format!("{folder}/current/link"), &digest);
        self.link(&format!("{folder}/index/sha256/{}/link", hex(&digest)), &digest);
    }

    fn blob(&self, blob: &Blob) {
        write(&self.blob_file(&blob.digest()), &blob.data);
    }

    /// The file behind a digest, for a test that breaks it.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.data().join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    fn link(&self, path: &str, digest: &str) {
        write(&self.data().join(path), digest.as_bytes());
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data/docker/registry/v2")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn hex(digest: &str) -> String {
    digest.strip_prefix("sha256:").expect("sha256").to_owned()
}

fn write(path: &Path, data: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
    std::fs::write(path, data).expect("file");
}
