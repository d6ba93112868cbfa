//! One server of a repository: requests to it, and what is made of its answers.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode, Uri};
use hyper::body::Incoming;
use tracing::debug;

use super::Repository;
use super::auth::Asked;
use super::body::{Answer, Body};
use super::cause::Cause;
use super::client::{Ask, Client};
use super::hosts::Endpoint;
use super::words::refusal;
use crate::containerd::Descriptor;
use crate::image::digest;
use crate::image::document::MANIFEST_BYTES_MAX;
use crate::image::reference::Object;

/// What we ask a registry's manifests to be.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// How often one request answers a challenge.
const CHALLENGES_MAX: usize = 2;

/// Where in a repository content lies.
#[derive(Clone, Copy, Debug)]
pub(in crate::image) enum Kind {
    /// Indexes and manifests.
    Manifest,
    /// Configs and layers.
    Blob,
}

/// A server that content is fetched from.
#[derive(Clone, Copy)]
pub(in crate::image) struct Server<'a> {
    pub(super) repository: &'a Repository,
    pub(super) place: Place<'a>,
}

/// Where it is asked.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// One of the repository's own.
    Endpoint(&'a Endpoint, &'a Client),
    /// A URL that the image gives for a layer. It is told nothing about who asks.
    Elsewhere(&'a Uri),
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
    pub(in crate::image) async fn open(self, descriptor: &Descriptor, offset: u64) -> Result<Body, Cause> {
        self.content(Kind::Blob, descriptor, offset).await
    }

    async fn content(self, kind: Kind, descriptor: &Descriptor, offset: u64) -> Result<Body, Cause> {
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        let name = &descriptor.digest;
        let wanted = Wanted { method: Method::GET, kind, name, offset, is_verified: true };
        self.ask(&wanted).await?.body(offset, size)
    }

    pub(super) async fn small(
        self,
        kind: Kind,
        descriptor: &Descriptor,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Cause> {
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

    pub(super) async fn resolve(self, object: &Object) -> Result<Descriptor, Cause> {
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
    ) -> Result<http::Response<Incoming>, Cause> {
        let Repository { auth, limits, .. } = self.repository;
        let uri = self.uri(wanted, endpoint, origin)?;
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
            let asked = Asked { endpoint, client, headers: &headers, is_plain, limit: limits.answer };
            said = Some(auth.answer(&asked, said.as_ref()).await?);
        }
        Err(auth.refused(endpoint))
    }

    fn uri(self, wanted: &Wanted<'_>, endpoint: &Endpoint, origin: &str) -> Result<Uri, Cause> {
        let kind = match wanted.kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
        };
        let mut url = format!("{origin}{}/{}/{kind}/{}", endpoint.root, self.repository.path, wanted.name);
        if endpoint.is_mirror_of(&self.repository.domain) {
            url.push_str("?ns=");
            url.push_str(&self.repository.domain.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D"));
        }
        url.parse().map_err(|_| Cause::Failed(format!("{url:?} is not a URL")))
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
    pub(super) fn place(self) -> String {
        match self.place {
            Place::Endpoint(endpoint, _) => self.repository.origin(endpoint),
            Place::Elsewhere(uri) => {
                let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
                format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
            }
        }
    }

    /// `text` without what is secret in it.
    pub(super) fn masked(self, text: String) -> String {
        self.repository.auth.credentials.masked(text)
    }
}

/// What is sent along to places that nothing is configured for.
static EMPTY: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);

/// The media type without its parameters; empty for none.
fn media_type(answer: Option<&Answer>) -> String {
    let header = answer.and_then(|answer| answer.headers().get(CONTENT_TYPE));
    let header = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_owned()
}
