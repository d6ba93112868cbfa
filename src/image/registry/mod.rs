//! Registries: what a tag points at, and the content behind a digest.
//!
//! The OCI distribution protocol, as much of it as pulling needs. A registry's servers
//! ([`hosts`]) are asked one after the other until one gives what is wanted, and again
//! where that may help ([`tries`], IMG-26); a failure of all names each with its reason.
//! Whatever has a digest is checked against it: here for what is held in memory, by
//! containerd for layers. Who asks ([`credentials`]) is told to a server that wants to
//! know it ([`auth`]), and to nobody else.
//!
//! ```text
//! resolve, small, open ─▶ tries ─▶ server ─▶ auth ─▶ client ─▶ trust, proxy
//!                                   hosts     token   body
//! ```

mod auth;
mod body;
mod cause;
mod challenge;
mod client;
mod credentials;
mod hosts;
mod proxy;
mod token;
mod tries;
mod trust;
mod words;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode, Uri};
use tokio::sync::OnceCell;
use tracing::debug;

use auth::{Authorizer, Tokens};
use body::Answer;
pub(super) use body::Body;
pub(super) use cause::Cause;
use client::{Ask, Client, Clients};
pub(super) use credentials::{Credentials, Secret};
use hosts::Endpoint;
pub(super) use tries::{REFUSED, Tries, UNAVAILABLE, with_context};
use words::refusal;

use super::digest;
use super::document::{MANIFEST_BYTES_MAX, refuse_schema_1};
use super::progress::Progress;
use super::reference::{Object, Reference};
use crate::config::{Config, ImportedRegistries, Proxies};
use crate::containerd::Descriptor;
use crate::error::{Result, invalid};
use crate::flow::{self, lock};

/// What we ask a registry's manifests to be.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// How often one request answers a challenge.
const CHALLENGES_MAX: usize = 2;
/// How long a server may be silent in the middle of a body: then another connection is
/// made for the rest. Before its first byte it may fetch the content itself, which takes
/// as long as it takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to answer where pulls have no limit.
const ANSWER_MAX: Duration = Duration::from_secs(3600);
/// The most servers that are remembered not to speak TLS.
const PLAIN_MAX: usize = 1024;

/// All registries.
pub(super) struct Registry {
    folders: Vec<PathBuf>,
    imported: Arc<ImportedRegistries>,
    proxies: Proxies,
    limits: Limits,
    clients: OnceCell<Arc<Clients>>,
    tokens: Tokens,
    /// Origins that were found not to speak TLS.
    plain: Arc<Mutex<HashSet<String>>>,
}

/// How long a server may be silent.
#[derive(Clone, Copy)]
struct Limits {
    answer: Duration,
    body: Duration,
}

impl Limits {
    fn new(progress_limit: Option<Duration>) -> Limits {
        let answer = progress_limit.unwrap_or(ANSWER_MAX);
        Limits { answer, body: SILENCE_MAX.min(answer / 2) }
    }
}

/// One repository for one pull, and the servers that may have it.
pub(super) struct Repository {
    domain: String,
    path: String,
    endpoints: Vec<(Endpoint, Client)>,
    /// For content that the image says is elsewhere.
    others: Client,
    auth: Authorizer,
    limits: Limits,
    plain: Arc<Mutex<HashSet<String>>>,
    progress: Arc<Progress>,
}

impl Registry {
    pub(super) fn new(config: &Config) -> Registry {
        Registry {
            folders: config.registry_dirs(),
            imported: Arc::new(config.imported.clone()),
            proxies: config.proxies.clone(),
            limits: Limits::new(config.pull_progress_limit()),
            clients: OnceCell::new(),
            tokens: Tokens::default(),
            plain: Arc::default(),
        }
    }

    /// The repository of `reference` for who has `credentials`, with the servers
    /// configured at this moment.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed.
    pub(super) async fn repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: Arc<Progress>,
    ) -> Result<Repository> {
        let clients = self.clients().await?;
        let (folders, imported) = (self.folders.clone(), self.imported.clone());
        let domain = reference.domain().to_owned();
        let (endpoints, others) = flow::blocking(move || {
            let endpoints = hosts::endpoints(&folders, &imported, &domain)?;
            let endpoints = endpoints.into_iter().map(|endpoint| {
                let client = clients.with(&endpoint.trust)?;
                Ok((endpoint, client))
            });
            Ok((endpoints.collect::<Result<_>>()?, clients.with(&Arc::default())?))
        })
        .await?;
        let scope = format!("repository:{}:pull", reference.path());
        Ok(Repository {
            domain: reference.domain().to_owned(),
            path: reference.path().to_owned(),
            endpoints,
            others,
            auth: Authorizer { credentials, scope, tokens: self.tokens.clone() },
            limits: self.limits,
            plain: self.plain.clone(),
            progress,
        })
    }

    /// The folder of `image.registry_config_dirs` in which the configuration of the
    /// registry of `reference` lies, for containerd, which takes one (VER-05). None if
    /// there is no configuration.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed: containerd would go on without
    /// a file that it cannot read.
    pub(super) async fn hosts_dir(&self, reference: &Reference) -> Result<Option<String>> {
        let (folders, imported) = (self.folders.clone(), self.imported.clone());
        let domain = reference.domain().to_owned();
        flow::blocking(move || {
            hosts::endpoints(&folders, &imported, &domain)?;
            let Some(folder) = hosts::folder_of(&folders, &domain) else { return Ok(None) };
            let dir = folder.parent().and_then(std::path::Path::to_str);
            let dir = dir.ok_or_else(|| invalid(format!("{folder:?} is not UTF-8")))?;
            Ok(Some(dir.to_owned()))
        })
        .await
    }

    async fn clients(&self) -> Result<Arc<Clients>> {
        let made = self.clients.get_or_try_init(|| {
            let proxies = self.proxies.clone();
            flow::blocking(move || Ok(Arc::new(Clients::new(&proxies))))
        });
        made.await.cloned()
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
    place: Place<'a>,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    /// One of the repository's own.
    Endpoint(&'a Endpoint, &'a Client),
    /// A URL that the image gives for a layer. It is told nothing about who asks.
    Elsewhere(&'a Uri),
}

impl Repository {
    /// What `reference`, which is of this repository, points at now.
    ///
    /// # Errors
    /// NotFound if every server says so; Unimplemented for Docker's schema 1; see
    /// [`Tries::finish`].
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        // A server that only has content is not asked what a tag means (IMG-24).
        let is_tag = matches!(reference.object(), Object::Tag(_));
        let servers =
            self.endpoints.iter().filter(|(endpoint, _)| endpoint.resolves || (!is_tag && endpoint.pulls));
        let servers = servers.map(|(endpoint, client)| self.server(endpoint, client));
        let mut tries = Tries::new(format!("resolve {reference}"), servers);
        while let Some(server) = tries.next().await {
            match server.resolve(reference.object()).await {
                Ok(descriptor) => {
                    refuse_schema_1(&descriptor.media_type)?;
                    return Ok(descriptor);
                }
                Err(cause) => tries.failed(cause),
            }
        }
        Err(tries.finish())
    }

    /// A document or config, whose size is known to be small, checked against its digest.
    /// What kind it is says the caller: a server's word for its type may be missing.
    ///
    /// # Errors
    /// See [`Tries::finish`].
    pub(super) async fn small(
        &self,
        kind: Kind,
        descriptor: &Descriptor,
        bytes_max: usize,
    ) -> Result<Vec<u8>> {
        let what = match kind {
            Kind::Manifest => "manifest",
            Kind::Blob => "config",
        };
        let mut tries = self.tries(&format!("{what} {}", descriptor.digest), &[]);
        while let Some(server) = tries.next().await {
            match server.small(kind, descriptor, bytes_max).await {
                Ok(data) => return Ok(data),
                Err(cause) => tries.failed(cause),
            }
        }
        Err(tries.finish())
    }

    /// Those who may have the content `what`: the places that the image names for it,
    /// then the servers in the order in which they are configured.
    pub(super) fn tries<'a>(&'a self, what: &str, elsewhere: &'a [Uri]) -> Tries<'a> {
        let elsewhere = elsewhere.iter().map(|uri| Server { repository: self, place: Place::Elsewhere(uri) });
        let own = self.endpoints.iter().filter(|(endpoint, _)| endpoint.pulls);
        let own = own.map(|(endpoint, client)| self.server(endpoint, client));
        let what = format!("fetch {what} of {}/{}", self.domain, self.path);
        Tries::new(what, elsewhere.chain(own))
    }

    fn server<'a>(&'a self, endpoint: &'a Endpoint, client: &'a Client) -> Server<'a> {
        Server { repository: self, place: Place::Endpoint(endpoint, client) }
    }

    /// Progress of the pull that this is for.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// What is asked of a repository.
struct Wanted<'a> {
    method: Method,
    kind: Kind,
    /// Tag or digest.
    name: &'a str,
    /// The first byte.
    offset: u64,
    /// Whether the answer is checked against a digest.
    is_verified: bool,
}

impl<'a> Server<'a> {
    /// Opens a blob of the size that `descriptor` says at byte `offset`; a server that
    /// does not know of ranges begins at 0.
    pub(super) async fn open(self, descriptor: &Descriptor, offset: u64) -> Result<Body, Cause> {
        self.content(Kind::Blob, descriptor, offset).await
    }

    async fn content(self, kind: Kind, descriptor: &Descriptor, offset: u64) -> Result<Body, Cause> {
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        let name = &descriptor.digest;
        let wanted = Wanted { method: Method::GET, kind, name, offset, is_verified: true };
        self.ask(&wanted).await?.body(offset, size)
    }

    async fn small(self, kind: Kind, descriptor: &Descriptor, bytes_max: usize) -> Result<Vec<u8>, Cause> {
        let mut body = self.content(kind, descriptor, 0).await?;
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
        let ask =
            |method| Wanted { method, kind: Kind::Manifest, name, offset: 0, is_verified: wanted.is_some() };
        // HEAD costs nothing where pulls are counted; but not every server knows it.
        let head = match self.ask(&ask(Method::HEAD)).await {
            Ok(head) => Some(head),
            Err(Cause::Failed(_)) => None,
            Err(cause) => return Err(cause),
        };
        let said = head.as_ref().and_then(|head| head.headers().get("docker-content-digest"));
        let said = said.and_then(|value| value.to_str().ok()).filter(|said| digest::is_digest(said));
        let said = wanted.clone().or(said.map(str::to_owned));
        let (digest, size, media_type) = match (said, head.as_ref().and_then(Answer::size)) {
            (Some(digest), Some(size)) if size > 0 => (digest, size, media_type(head.as_ref())),
            _ => {
                let whole = self.ask(&ask(Method::GET)).await?;
                let media_type = media_type(Some(&whole));
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

    /// A good answer to what is wanted.
    async fn ask(self, wanted: &Wanted<'_>) -> Result<Answer, Cause> {
        let Server { repository, place } = self;
        let open = repository.progress.request();
        let response = match place {
            Place::Elsewhere(uri) => {
                let ask = self.request(wanted, uri.clone(), &EMPTY);
                repository.others.send(&ask).await?.response
            }
            Place::Endpoint(endpoint, client) => {
                let origin = repository.origin(endpoint);
                match self.authorized(wanted, endpoint, client, &origin).await {
                    Err(Cause::NotTls(_)) if endpoint.falls_back && origin == endpoint.origin => {
                        repository.remember_plain(endpoint);
                        let origin = repository.origin(endpoint);
                        self.authorized(wanted, endpoint, client, &origin).await?
                    }
                    Err(Cause::NotTls(text)) => return Err(Cause::Broken(text)),
                    answered => answered?,
                }
            }
        };
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        Ok(Answer { response, stall_limit: repository.limits.body, open })
    }

    /// Asks, and says who asks where that is wanted.
    async fn authorized(
        self,
        wanted: &Wanted<'_>,
        endpoint: &Endpoint,
        client: &Client,
        origin: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, Cause> {
        let Repository { auth, limits, .. } = self.repository;
        let uri = self.repository.uri(wanted, endpoint, origin)?;
        debug!(method = %wanted.method, %uri, offset = wanted.offset, "registry");
        let mut said = auth.known(endpoint);
        for challenges in 0.. {
            let mut ask = self.request(wanted, uri.clone(), &endpoint.headers);
            ask.authorization = said.as_ref();
            let answered = client.send(&ask).await?;
            if answered.response.status() != StatusCode::UNAUTHORIZED || answered.is_elsewhere {
                return Ok(answered.response);
            }
            if challenges == CHALLENGES_MAX {
                break;
            }
            let headers = answered.response.headers().clone();
            // Its connection is free for the next request.
            drop(answered);
            let is_plain = origin.starts_with("http://");
            let asked = auth::Asked { endpoint, client, headers: &headers, is_plain, limit: limits.answer };
            said = Some(auth.answer(&asked, said.as_ref()).await?);
        }
        Err(auth.refused(endpoint))
    }

    fn request<'b>(&self, wanted: &Wanted<'_>, uri: Uri, headers: &'b HeaderMap) -> Ask<'b> {
        Ask {
            method: wanted.method.clone(),
            uri,
            headers,
            authorization: None,
            accept: match wanted.kind {
                Kind::Manifest => MANIFEST_TYPES,
                Kind::Blob => "",
            },
            offset: wanted.offset,
            form: None,
            is_verified: wanted.is_verified,
            stall_limit: self.repository.limits.answer,
        }
    }

    /// Where it is, for messages.
    fn place(self) -> String {
        match self.place {
            Place::Endpoint(endpoint, _) => self.repository.origin(endpoint),
            Place::Elsewhere(uri) => {
                let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
                format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
            }
        }
    }

    /// `text` without what is secret in it.
    fn masked(self, text: String) -> String {
        self.repository.auth.credentials.masked(text)
    }
}

/// What is sent along to places that nothing is configured for.
static EMPTY: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);

impl Repository {
    /// Scheme and host of a server, as far as it is known how it speaks.
    fn origin(&self, endpoint: &Endpoint) -> String {
        if endpoint.falls_back && lock(&self.plain).contains(&endpoint.origin) {
            return endpoint.origin.replacen("https://", "http://", 1);
        }
        endpoint.origin.clone()
    }

    fn remember_plain(&self, endpoint: &Endpoint) {
        let mut plain = lock(&self.plain);
        if plain.len() >= PLAIN_MAX {
            plain.clear();
        }
        plain.insert(endpoint.origin.clone());
    }

    fn uri(&self, wanted: &Wanted<'_>, endpoint: &Endpoint, origin: &str) -> Result<Uri, Cause> {
        let kind = match wanted.kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
        };
        let mut url = format!("{origin}{}/{}/{kind}/{}", endpoint.root, self.path, wanted.name);
        if endpoint.is_mirror_of(&self.domain) {
            url.push_str("?ns=");
            url.push_str(&self.domain.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D"));
        }
        url.parse().map_err(|_| Cause::Failed(format!("{url:?} is not a URL")))
    }
}

/// The media type without its parameters; empty for none.
fn media_type(answer: Option<&Answer>) -> String {
    let header = answer.and_then(|answer| answer.headers().get(CONTENT_TYPE));
    let header = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_owned()
}
