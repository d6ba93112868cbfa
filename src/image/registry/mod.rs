//! Registries: what a tag points at, and the content behind a digest.
//!
//! The OCI distribution protocol, as much of it as pulling needs. A registry's servers
//! ([`hosts`]) are asked one after the other until one gives what is wanted (IMG-26);
//! a failure of all names each with its reason. Whatever has a digest is checked
//! against it: here for what is held in memory, by containerd for layers.
//!
//! Credentials are not given to any server yet: one that asks for them is named in the
//! error.

mod client;
mod credentials;
mod hosts;

use std::path::PathBuf;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Uri};
use tokio::sync::OnceCell;
use tracing::debug;

use client::{Answer, Ask, Client};
pub(super) use client::{Body, Cause};
pub(super) use credentials::{Credentials, Secret};
use hosts::Endpoint;

use super::digest;
use super::document::{MANIFEST_BYTES_MAX, refuse_schema_1};
use super::reference::{Object, Reference};
use crate::config::Config;
use crate::containerd::Descriptor;
use crate::error::{self, Error, Result, not_found, precondition, unimplemented, unknown};
use crate::flow;

/// What we ask a registry's manifests to be.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// The kubelet takes a message that begins so for the reason of a waiting pod (ERR-08).
pub(super) const UNAVAILABLE: &str = "RegistryUnavailable: ";
/// The same for an image that someone who judges images refused.
pub(super) const REFUSED: &str = "SignatureValidationFailed: ";

/// All registries.
pub(super) struct Registry {
    folders: Vec<PathBuf>,
    idle_limit: Option<Duration>,
    client: OnceCell<Client>,
}

/// One repository, and the servers that may have it.
pub(super) struct Repository {
    client: Client,
    domain: String,
    path: String,
    endpoints: Vec<Endpoint>,
}

impl Registry {
    pub(super) fn new(config: &Config) -> Registry {
        let idle_s = config.file.image.pull_progress_timeout_s;
        Registry {
            folders: config.file.image.registry_config_dirs.clone(),
            idle_limit: (idle_s > 0).then(|| Duration::from_secs(idle_s)),
            client: OnceCell::new(),
        }
    }

    /// The repository of `reference`, with the servers configured at this moment.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed.
    pub(super) async fn repository(&self, reference: &Reference) -> Result<Repository> {
        let idle_limit = self.idle_limit;
        let client = self.client.get_or_try_init(|| flow::blocking(move || Client::new(idle_limit))).await?;
        let (folders, domain) = (self.folders.clone(), reference.domain().to_owned());
        let endpoints = flow::blocking(move || hosts::endpoints(&folders, &domain)).await?;
        Ok(Repository {
            client: client.clone(),
            domain: reference.domain().to_owned(),
            path: reference.path().to_owned(),
            endpoints,
        })
    }
}

impl Registry {
    /// The folder of `image.registry_config_dirs` in which the configuration of the
    /// registry of `reference` lies, for containerd, which takes one (VER-05). None if
    /// there is no configuration.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed: containerd would go on without
    /// a file that it cannot read.
    pub(super) async fn hosts_dir(&self, reference: &Reference) -> Result<Option<String>> {
        let (folders, domain) = (self.folders.clone(), reference.domain().to_owned());
        flow::blocking(move || {
            match hosts::endpoints(&folders, &domain) {
                // containerd can more.
                Err(error) if error.kind() == error::Kind::Unimplemented => {}
                checked => drop(checked?),
            }
            let Some(folder) = hosts::folder_of(&folders, &domain) else { return Ok(None) };
            let dir = folder.parent().and_then(std::path::Path::to_str);
            let dir = dir.ok_or_else(|| error::invalid(format!("{folder:?} is not UTF-8")))?;
            Ok(Some(dir.to_owned()))
        })
        .await
    }
}

/// Where in a repository content lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Indexes and manifests.
    Manifest,
    /// Configs and layers.
    Blob,
}

/// A server that content is fetched from.
#[derive(Clone, Copy)]
pub(super) struct Server<'a> {
    repository: &'a Repository,
    endpoint: &'a Endpoint,
}

impl Repository {
    /// What `reference`, which is of this repository, points at now.
    ///
    /// # Errors
    /// NotFound if every server says so; Unimplemented for Docker's schema 1; see
    /// [`Failures::finish`].
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let mut failures = Failures::new(format!("resolve {reference}"));
        for server in self.servers() {
            // A server that only has content is not asked what a tag means (IMG-24).
            if !server.endpoint.resolves && matches!(reference.object(), Object::Tag(_)) {
                continue;
            }
            match server.resolve(reference.object()).await {
                Ok(descriptor) => {
                    refuse_schema_1(&descriptor.media_type)?;
                    return Ok(descriptor);
                }
                Err(cause) => failures.add(server, cause),
            }
        }
        Err(failures.finish())
    }

    /// A document or config, whose size is known to be small, checked against its digest.
    /// What kind it is says the caller: a server's word for its type may be missing.
    ///
    /// # Errors
    /// See [`Failures::finish`].
    pub(super) async fn small(
        &self,
        kind: Kind,
        descriptor: &Descriptor,
        bytes_max: usize,
    ) -> Result<Vec<u8>> {
        let mut failures = Failures::new(format!("fetch {}", descriptor.digest));
        for server in self.servers() {
            match server.small(kind, descriptor, bytes_max).await {
                Ok(data) => return Ok(data),
                Err(cause) => failures.add(server, cause),
            }
        }
        Err(failures.finish())
    }

    /// The servers that content comes from, in the order in which they are asked.
    pub(super) fn servers(&self) -> impl Iterator<Item = Server<'_>> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.pulls)
            .map(|endpoint| Server { repository: self, endpoint })
    }
}

impl Server<'_> {
    /// Opens content of the size that `descriptor` says.
    pub(super) async fn open(self, kind: Kind, descriptor: &Descriptor) -> Result<Body, Cause> {
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        self.ask(Method::GET, kind, &descriptor.digest, true).await?.body(size)
    }

    async fn small(self, kind: Kind, descriptor: &Descriptor, bytes_max: usize) -> Result<Vec<u8>, Cause> {
        let mut body = self.open(kind, descriptor).await?;
        let mut data = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            if data.len() + chunk.len() > bytes_max {
                return Err(Cause::Corrupt(format!("sends more than {bytes_max} bytes")));
            }
            data.extend_from_slice(&chunk);
        }
        if !digest::matches(&descriptor.digest, &data) {
            return Err(Cause::Corrupt(format!("sends something else than {}", descriptor.digest)));
        }
        Ok(data)
    }

    async fn resolve(self, object: &Object) -> Result<Descriptor, Cause> {
        let (name, wanted) = match object {
            Object::Tag(tag) => (tag.as_str(), None),
            Object::Digest(digest) => (digest.as_str(), Some(digest.clone())),
        };
        // HEAD costs nothing where pulls are counted.
        let head = self.ask(Method::HEAD, Kind::Manifest, name, wanted.is_some()).await?;
        let said = head.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        let said = said.filter(|said| digest::is_digest(said)).map(str::to_owned);
        let (digest, size, media_type) = match (wanted.clone().or(said), head.size()) {
            (Some(digest), Some(size)) if size > 0 => (digest, size, media_type(&head)),
            _ => {
                let whole = self.ask(Method::GET, Kind::Manifest, name, wanted.is_some()).await?;
                let media_type = media_type(&whole);
                let data = whole.collect(MANIFEST_BYTES_MAX).await?;
                let digest = match wanted {
                    Some(wanted) if digest::matches(&wanted, &data) => wanted,
                    Some(wanted) => {
                        return Err(Cause::Corrupt(format!("sends something else than {wanted}")));
                    }
                    None => digest::of(&data),
                };
                (digest, data.len() as u64, media_type)
            }
        };
        if size > MANIFEST_BYTES_MAX as u64 {
            return Err(Cause::Failed(format!(
                "has a manifest of {size} bytes, more than {MANIFEST_BYTES_MAX}"
            )));
        }
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        Ok(Descriptor { media_type, digest, size, ..Default::default() })
    }

    async fn ask(self, method: Method, kind: Kind, name: &str, is_verified: bool) -> Result<Answer, Cause> {
        let Server { repository, endpoint } = self;
        let (kind, accept) = match kind {
            Kind::Manifest => ("manifests", MANIFEST_TYPES),
            Kind::Blob => ("blobs", ""),
        };
        let mut url = format!("{}{}/{}/{kind}/{name}", endpoint.origin, endpoint.root, repository.path);
        if endpoint.is_mirror_of(&repository.domain) {
            url.push_str("?ns=");
            url.push_str(&repository.domain.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D"));
        }
        let uri: Uri = url.parse().map_err(|_| Cause::Failed(format!("{url:?} is not a URL")))?;
        debug!(%method, %uri, "registry");
        repository.client.ask(Ask { method, uri, accept, is_verified }).await
    }
}

/// The media type without its parameters; empty for none.
fn media_type(answer: &Answer) -> String {
    let header = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Why each server failed that was asked for something.
pub(super) struct Failures {
    what: String,
    list: Vec<(String, Cause)>,
}

impl Failures {
    pub(super) fn new(what: String) -> Failures {
        Failures { what, list: Vec::new() }
    }

    pub(super) fn add(&mut self, server: Server<'_>, cause: Cause) {
        let origin = &server.endpoint.origin;
        debug!(%origin, ?cause, what = self.what, "a registry server failed");
        self.list.push((origin.clone(), cause));
    }

    /// The error that names every server that was asked (IMG-26).
    ///
    /// NotFound if none has it; Unimplemented if one wants credentials; of kind Unknown
    /// and with `RegistryUnavailable` in front if none could be reached (IMG-38).
    pub(super) fn finish(self) -> Error {
        if self.list.is_empty() {
            return precondition(format!("{}: no server is configured for it", self.what));
        }
        let all = |test: fn(&Cause) -> bool| self.list.iter().all(|(_, cause)| test(cause));
        let texts: Vec<String> =
            self.list.iter().map(|(origin, cause)| format!("{origin}: {}", text(cause))).collect();
        let message = format!("{}: {}", self.what, texts.join("; "));
        if all(|cause| matches!(cause, Cause::Unreachable(_))) {
            unknown(format!("{UNAVAILABLE}{message}"))
        } else if all(|cause| *cause == Cause::NotFound) {
            not_found(message)
        } else if self.list.iter().any(|(_, cause)| matches!(cause, Cause::Unauthorized(_))) {
            unimplemented(message)
        } else {
            unknown(message)
        }
    }
}

fn text(cause: &Cause) -> String {
    match cause {
        Cause::Unreachable(text) | Cause::Failed(text) | Cause::Corrupt(text) => text.clone(),
        Cause::NotFound => "not found".into(),
        Cause::Unauthorized(scheme) => {
            format!("asks for credentials ({scheme}), which longshore cannot give yet")
        }
    }
}

/// Adds context to an error and keeps a word that the kubelet looks for in front (ERR-08).
pub(super) fn with_context(error: Error, what: &str) -> Error {
    for word in [UNAVAILABLE, REFUSED] {
        if let Some(rest) = error.message().strip_prefix(word) {
            return Error::new(error::Kind::Unknown, format!("{word}{what}: {rest}"));
        }
    }
    error.context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(causes: &[Cause]) -> Error {
        let list = causes.iter().enumerate().map(|(i, cause)| (format!("https://{i}"), cause.clone()));
        Failures { what: "resolve r.io/a:1".into(), list: list.collect() }.finish()
    }

    #[test]
    fn a_failure_of_all_servers_names_them_all_and_says_what_it_is() {
        let refused = Cause::Unreachable("Connection refused".into());
        let error = failed(&[refused.clone(), refused.clone()]);
        assert_eq!(error.kind(), error::Kind::Unknown);
        assert_eq!(
            error.message(),
            "RegistryUnavailable: resolve r.io/a:1: https://0: Connection refused; https://1: Connection refused"
        );
        assert_eq!(
            with_context(error, "pull image \"a\"").message(),
            "RegistryUnavailable: pull image \"a\": resolve r.io/a:1: https://0: Connection refused; \
             https://1: Connection refused"
        );
        assert_eq!(failed(&[Cause::NotFound, Cause::NotFound]).kind(), error::Kind::NotFound);
        let mixed = failed(&[refused, Cause::NotFound]);
        assert_eq!(mixed.kind(), error::Kind::Unknown);
        assert!(!mixed.message().contains("RegistryUnavailable"));
        let denied = failed(&[Cause::NotFound, Cause::Unauthorized("Bearer".into())]);
        assert_eq!(denied.kind(), error::Kind::Unimplemented);
        assert!(denied.message().contains("https://1: asks for credentials (Bearer)"), "{denied}");
    }
}
