//! HTTP for registries: GET and HEAD over http/1.1, with bounds.
//!
//! Redirects are followed by ourselves, a few times only: a request to another host
//! carries nothing that was meant for the registry, and a redirect from https to plain
//! http is only followed to content whose digest is known. No wait for a byte is
//! longer than the idle limit (IMG-31), no body is read beyond the size that it was
//! announced with. What a failure says never holds a query or the user part of a URL
//! (IMG-19): storage services put signatures there.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tracing::{debug, warn};

use crate::error::{Result, internal};

/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long an unused connection is kept.
const POOL_LIMIT: Duration = Duration::from_secs(30);
/// The most unused connections to one server.
const POOL_MAX: usize = 4;
/// The most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// The most bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 4096;
/// The most characters of a server's own words that an error repeats.
const WORDS_MAX: usize = 256;
/// How long an error's body is waited for.
const ERROR_LIMIT: Duration = Duration::from_secs(5);

/// Why a server did not give what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) enum Cause {
    /// There is no connection to it (IMG-38).
    Unreachable(String),
    /// It does not have it.
    NotFound,
    /// It wants to know who asks; the scheme that it proposes.
    Unauthorized(String),
    /// It answered something else, or broke off.
    Failed(String),
    /// What it sent is not what was asked for (IMG-28).
    Corrupt(String),
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    idle_limit: Option<Duration>,
}

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// Media types; empty for any.
    pub(super) accept: &'a str,
    /// Whether the answer is checked against a digest that is known beforehand.
    pub(super) is_verified: bool,
}

/// A good answer.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    body: Incoming,
    idle_limit: Option<Duration>,
}

/// A body of a known size that is being read.
pub(in crate::image) struct Body {
    incoming: Incoming,
    left: u64,
    idle_limit: Option<Duration>,
}

impl Client {
    /// A client that trusts the system's certificate authorities. Blocks.
    ///
    /// # Errors
    /// Internal if TLS cannot be set up.
    pub(super) fn new(idle_limit: Option<Duration>) -> Result<Client> {
        let mut roots = RootCertStore::empty();
        let loaded = rustls_native_certs::load_native_certs();
        let (added, ignored) = roots.add_parsable_certificates(loaded.certs);
        for error in &loaded.errors {
            warn!(%error, "certificate authorities of the system could not be read");
        }
        debug!(added, ignored, "certificate authorities");
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| internal(format!("set up TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(30)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_LIMIT)
            .pool_max_idle_per_host(POOL_MAX)
            .build(connector);
        Ok(Client { http, idle_limit })
    }

    /// Asks, follows redirects, and gives the answer if it is a good one.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Cause> {
        let mut uri = ask.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::builder()
                .method(ask.method.clone())
                .uri(uri.clone())
                .header(USER_AGENT, concat!("longshore/", env!("CARGO_PKG_VERSION")));
            if !ask.accept.is_empty() && uri.authority() == ask.uri.authority() {
                request = request.header(ACCEPT, ask.accept);
            }
            let request = request
                .body(Empty::new())
                .map_err(|error| Cause::Failed(format!("the request cannot be made: {error}")))?;
            debug_assert!(!request.headers().contains_key(HOST), "hyper sets it for each host");
            let response =
                idle(self.idle_limit, self.http.request(request)).await?.map_err(|error| explain(&error))?;
            let status = response.status();
            if status.is_success() {
                let (parts, body) = response.into_parts();
                return Ok(Answer { headers: parts.headers, body, idle_limit: self.idle_limit });
            }
            if !is_redirect(status) {
                return Err(refusal(status, response).await);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve(&uri, location)).ok_or_else(|| {
                Cause::Failed(format!("answered {status} without a place that can be followed"))
            })?;
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !ask.is_verified {
                return Err(Cause::Failed("redirects from https to plain http".into()));
            }
            uri = next;
        }
        Err(Cause::Failed(format!("redirects more than {REDIRECTS_MAX} times")))
    }
}

impl Answer {
    /// What the server says about the size.
    pub(super) fn size(&self) -> Option<u64> {
        self.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The body, which must have `size` bytes.
    pub(super) fn body(self, size: u64) -> Result<Body, Cause> {
        match self.size() {
            Some(other) if other != size => {
                Err(Cause::Corrupt(format!("sends {other} bytes instead of {size}")))
            }
            _ => Ok(Body { incoming: self.body, left: size, idle_limit: self.idle_limit }),
        }
    }

    /// The whole body, whatever its size below `bytes_max`.
    pub(super) async fn collect(self, bytes_max: usize) -> Result<Vec<u8>, Cause> {
        collect(self.body, bytes_max, self.idle_limit).await
    }
}

impl Body {
    /// The next bytes; none at the end.
    pub(in crate::image) async fn chunk(&mut self) -> Result<Option<Bytes>, Cause> {
        while let Some(data) = next(&mut self.incoming, self.idle_limit).await? {
            let length = data.len() as u64;
            if length > self.left {
                return Err(Cause::Corrupt("sends more bytes than it should".into()));
            }
            self.left -= length;
            if length > 0 {
                return Ok(Some(data));
            }
        }
        if self.left > 0 {
            return Err(Cause::Failed(format!("broke off {} bytes before the end", self.left)));
        }
        Ok(None)
    }
}

async fn next(incoming: &mut Incoming, idle_limit: Option<Duration>) -> Result<Option<Bytes>, Cause> {
    loop {
        let Some(frame) = idle(idle_limit, incoming.frame()).await? else { return Ok(None) };
        let frame = frame.map_err(|error| Cause::Failed(format!("broke off: {}", innermost(&error))))?;
        // Trailers say nothing to us.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

async fn collect(
    mut incoming: Incoming,
    bytes_max: usize,
    limit: Option<Duration>,
) -> Result<Vec<u8>, Cause> {
    let mut data = Vec::new();
    while let Some(chunk) = next(&mut incoming, limit).await? {
        if data.len() + chunk.len() > bytes_max {
            return Err(Cause::Failed(format!("sends more than {bytes_max} bytes")));
        }
        data.extend_from_slice(&chunk);
    }
    Ok(data)
}

async fn idle<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Result<T, Cause> {
    match limit {
        None => Ok(work.await),
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .map_err(|_| Cause::Failed(format!("sent nothing for {} s", limit.as_secs_f32()))),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where `location` leads from `base`, without credentials.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else {
        let folder = &base.path()[..=base.path().rfind('/')?];
        format!("{scheme}://{}{folder}{location}", base.authority()?)
    };
    // A fragment is the client's own.
    let uri: Uri = text.split('#').next()?.parse().ok()?;
    let authority = uri.authority()?.as_str();
    let usable = matches!(uri.scheme_str(), Some("http" | "https")) && !authority.contains('@');
    usable.then_some(uri)
}

/// What an answer that is no success means.
async fn refusal(status: StatusCode, response: http::Response<Incoming>) -> Cause {
    if status == StatusCode::NOT_FOUND {
        return Cause::NotFound;
    }
    if status == StatusCode::UNAUTHORIZED {
        let scheme = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        let scheme = scheme.and_then(|text| text.split_whitespace().next()).unwrap_or_default();
        return Cause::Unauthorized(printable(scheme));
    }
    let body = tokio::time::timeout(ERROR_LIMIT, collect(response.into_body(), ERROR_BYTES_MAX, None));
    let words = match body.await {
        Ok(Ok(data)) => words(&data),
        _ => String::new(),
    };
    Cause::Failed(format!("answered {status}{}{words}", if words.is_empty() { "" } else { ": " }))
}

/// A registry's own words, from the form that the distribution specification gives errors.
fn words(data: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Item {
        code: String,
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(data) else { return String::new() };
    let texts = errors.errors.iter().map(|item| match item.message.as_str() {
        "" => item.code.clone(),
        message => format!("{}: {message}", item.code),
    });
    printable(&texts.collect::<Vec<_>>().join("; "))
}

/// Someone else's text as it may stand in a message of ours.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

/// What an error of the connection means.
fn explain(error: &hyper_util::client::legacy::Error) -> Cause {
    if let Some(tls) = tls_error(error) {
        return Cause::Failed(format!("TLS: {tls}"));
    }
    let text = innermost(error);
    if error.is_connect() { Cause::Unreachable(text) } else { Cause::Failed(text) }
}

/// The error of TLS that is behind another: that one reached the server.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls);
    }
    // An I/O error does not tell what it wraps as its source.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    match wrapped {
        Some(wrapped) => tls_error(wrapped),
        None => error.source().and_then(tls_error),
    }
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    let end = text.find(" (os error ").unwrap_or(text.len());
    printable(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_as_everywhere_and_keep_no_credentials() {
        let base: Uri = "https://r.io:5000/v2/a/blobs/x?ns=y".parse().expect("URL");
        for (location, want) in [
            ("https://cdn.example/x?sig=1#f", Some("https://cdn.example/x?sig=1")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/other", Some("https://r.io:5000/other")),
            ("y", Some("https://r.io:5000/v2/a/blobs/y")),
            ("https://user:password@cdn.example/x", None),
            ("file:///etc/passwd", None),
            ("ftp://x/y", None),
            ("http://", None),
            ("/with space", None),
        ] {
            assert_eq!(resolve(&base, location).map(|uri| uri.to_string()).as_deref(), want, "{location}");
        }
    }

    #[test]
    fn a_registrys_words_are_repeated_with_bounds() {
        assert_eq!(
            words(br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown","detail":{"x":1}},{"code":"B"}]}"#),
            "TOOMANYREQUESTS: slowdown; B"
        );
        assert_eq!(words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(words(long.as_bytes()).len(), WORDS_MAX);
    }
}
