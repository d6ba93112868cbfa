//! docker-registry, with images written straight into its storage.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::certificate::Pair;
use crate::fixture::{Blob, Image};
use crate::tokens::{ISSUER, SERVICE, Tokens};

pub(crate) struct Registry {
    /// `127.0.0.1:port`
    pub(crate) address: String,
    daemon: Child,
    folder: TempDir,
}

/// A user whom a registry with [`Access::Password`] knows.
pub(crate) const USER: &str = "ada";
pub(crate) const PASSWORD: &str = "correct-horse-battery";
/// The line of that user, with the password under bcrypt.
const HTPASSWD: &str = "ada:$2y$04$abcdefghijklmnopqrstuupOWRSKKNe562z1DsLEArFuJDHVyRIMa\n";

/// How a registry is set up.
#[derive(Default)]
pub(crate) struct Settings {
    /// It speaks TLS, with this certificate.
    pub(crate) tls: Option<Pair>,
    /// Clients must have a certificate of this authority.
    pub(crate) clients: Option<PathBuf>,
    pub(crate) access: Access,
}

/// Whom a registry serves.
#[derive(Default)]
pub(crate) enum Access {
    #[default]
    Everyone,
    /// [`USER`] with [`PASSWORD`], by basic authentication.
    Password,
    /// Who has a token of the server at `realm`, signed by one of the `bundle`.
    Token { realm: String, bundle: PathBuf },
}

impl Access {
    /// Who has a token of `tokens`.
    pub(crate) fn of(tokens: &Tokens) -> Access {
        Access::Token { realm: tokens.realm(), bundle: tokens.bundle() }
    }
}

impl Settings {
    /// The configuration of a registry that has `folder`.
    fn configuration(&self, folder: &Path) -> String {
        let root = folder.display();
        let mut text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n\
             http:\n  addr: 127.0.0.1:0\n  secret: x\n"
        );
        if let Some(Pair { certificate, key }) = &self.tls {
            let (certificate, key) = (certificate.display(), key.display());
            text.push_str(&format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"));
        }
        if let Some(clients) = &self.clients {
            text.push_str(&format!("    clientcas:\n      - {}\n", clients.display()));
        }
        match &self.access {
            Access::Everyone => {}
            Access::Password => {
                std::fs::write(folder.join("htpasswd"), HTPASSWD).expect("file");
                text.push_str(&format!(
                    "auth:\n  htpasswd:\n    realm: a realm\n    path: {root}/htpasswd\n"
                ));
            }
            Access::Token { realm, bundle } => text.push_str(&format!(
                "auth:\n  token:\n    realm: {realm}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
                 rootcertbundle: {}\n",
                bundle.display()
            )),
        }
        text
    }
}

impl Registry {
    /// Starts one; none, after saying so, where it is not installed.
    pub(crate) fn start() -> Option<Registry> {
        Registry::with(&Settings::default())
    }

    /// Starts one that is set up in some way.
    pub(crate) fn with(settings: &Settings) -> Option<Registry> {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config.yml");
        let config = settings.configuration(folder.path());
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
