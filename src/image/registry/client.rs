//! HTTP for registries: requests over http/1.1, with bounds.
//!
//! Redirects are followed by ourselves, a few times only: a request to another place
//! carries nothing that was meant for the registry, and a redirect from https to plain
//! http is only followed to content whose digest is known. What a failure says never
//! holds a query or the user part of a URL (IMG-19): storage services put signatures
//! there.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, PROXY_AUTHORIZATION, RANGE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::Service;
use tracing::Instrument;

use super::cause::Cause;
use super::proxy::{Dialer, Rules};
use super::trust::{System, Trust};
use super::words::printable;
use crate::config::Proxies;
use crate::error::Result;
use crate::flow::lock;
use crate::trace;

/// How long a server may take to accept a connection, where nothing else is configured.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to agree on TLS after that.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
const POOL_LIMIT: Duration = Duration::from_secs(30);
/// The most unused connections to one server.
const POOL_MAX: usize = 4;
/// The most clients that are kept: one for each way to trust a server.
const CLIENTS_MAX: usize = 32;
/// The most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// How much is read from a connection at once; many pulls have many of them.
const READ_BYTES: usize = 128 << 10;

/// All clients.
pub(super) struct Clients {
    system: System,
    rules: Rules,
    by_trust: Mutex<HashMap<Arc<Trust>, Client>>,
}

impl Clients {
    /// Clients that trust the system's authorities and use `proxies`. Blocks.
    pub(super) fn new(proxies: &Proxies) -> Clients {
        Clients { system: System::load(), rules: Rules::new(proxies), by_trust: Mutex::default() }
    }

    /// The client for servers with `trust`; its connections are kept from pull to pull.
    ///
    /// # Errors
    /// InvalidArgument for certificates that are none.
    pub(super) fn with(&self, trust: &Arc<Trust>) -> Result<Client> {
        if let Some(client) = lock(&self.by_trust).get(trust) {
            return Ok(client.clone());
        }
        let connect_limit = trust.connect_limit.unwrap_or(CONNECT_LIMIT);
        let dialer = Dialer::new(self.rules.clone(), connect_limit);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(self.system.tls(trust)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(dialer);
        let connector = Patient { connector, limit: connect_limit + HANDSHAKE_LIMIT };
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_LIMIT)
            .pool_max_idle_per_host(POOL_MAX)
            .pool_timer(TokioTimer::new())
            .http1_read_buf_exact_size(READ_BYTES)
            .build(connector);
        let client = Client { http, rules: self.rules.clone() };
        let mut by_trust = lock(&self.by_trust);
        if by_trust.len() >= CLIENTS_MAX {
            // Certificates were exchanged so often: what is in use lives on.
            by_trust.clear();
        }
        by_trust.insert(trust.clone(), client.clone());
        Ok(client)
    }
}

/// A client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: hyper_util::client::legacy::Client<Patient, Full<Bytes>>,
    rules: Rules,
}

/// Makes connections, and does not wait for ever for the other side's part of TLS.
#[derive(Clone)]
struct Patient {
    connector: HttpsConnector<Dialer>,
    limit: Duration,
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Service<Uri> for Patient {
    type Response = <HttpsConnector<Dialer> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let connected = tokio::time::timeout(self.limit, self.connector.call(destination));
        Box::pin(async move { connected.await.unwrap_or_else(|_| Err(no_handshake().into())) })
    }
}

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// What is meant for this very server: it goes nowhere else.
    pub(super) headers: &'a HeaderMap,
    pub(super) authorization: Option<&'a HeaderValue>,
    /// Media types; empty for any.
    pub(super) accept: &'static str,
    /// The first byte that is wanted.
    pub(super) offset: u64,
    /// A form to be sent; such a request is not redirected.
    pub(super) form: Option<String>,
    /// Whether the answer is checked against a digest that is known beforehand.
    pub(super) is_verified: bool,
    /// How long nothing may come.
    pub(super) stall_limit: Duration,
}

/// An answer, whatever it says.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    /// Whether it came from another place than was asked.
    pub(super) is_elsewhere: bool,
}

impl Client {
    /// Asks and follows redirects.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Answered, Cause> {
        let mut uri = ask.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let is_elsewhere = origin(&uri) != origin(&ask.uri);
            let request = self.request(ask, &uri, is_elsewhere)?;
            // The query may be a signature that gives access.
            let span = tracing::debug_span!(
                "registry",
                name = ask.method.as_str(),
                host = uri.authority().map(http::uri::Authority::as_str),
                path = uri.path(),
                status = tracing::field::Empty,
            );
            let answered = unless_stalled(ask.stall_limit, self.http.request(request));
            let answered = answered.instrument(span.clone()).await;
            let response = match answered.map(|answer| answer.map_err(|error| explain(&error))) {
                Ok(Ok(response)) => response,
                Ok(Err(cause)) | Err(cause) => {
                    let cause = self.through_proxy(cause, &uri);
                    trace::failed(&span, cause.text());
                    return Err(cause);
                }
            };
            let status = response.status();
            span.record("status", status.as_u16());
            if !is_redirect(status) {
                return Ok(Answered { response, is_elsewhere });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve(&uri, location)).ok_or_else(|| {
                Cause::Failed(format!("answered {status} without a place that can be followed"))
            })?;
            if ask.form.is_some() {
                return Err(Cause::Failed(format!("answered {status} to a request with credentials")));
            }
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !ask.is_verified {
                return Err(Cause::Failed("redirects from https to plain http".into()));
            }
            uri = next;
        }
        Err(Cause::Failed(format!("redirects more than {REDIRECTS_MAX} times")))
    }

    /// Names the proxy that could not be reached, or reached nobody: the variables that it
    /// comes from are easily forgotten.
    fn through_proxy(&self, cause: Cause, uri: &Uri) -> Cause {
        match (cause, self.rules.name_of(uri)) {
            (Cause::Unreachable(text), Some(proxy)) => Cause::Unreachable(format!("proxy {proxy}: {text}")),
            (cause, _) => cause,
        }
    }

    fn request(&self, ask: &Ask<'_>, uri: &Uri, is_elsewhere: bool) -> Result<Request<Full<Bytes>>, Cause> {
        let mut request = Request::builder().method(ask.method.clone()).uri(uri.clone());
        let headers = request.headers_mut().ok_or_else(|| Cause::Failed("is not a URL".into()))?;
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("longshore/", env!("CARGO_PKG_VERSION"))));
        if ask.offset > 0 {
            headers.insert(RANGE, HeaderValue::try_from(format!("bytes={}-", ask.offset)).expect("digits"));
        }
        // Where a manifest is elsewhere, that place chooses its form by this one, too.
        if !ask.accept.is_empty() {
            headers.insert(ACCEPT, HeaderValue::from_static(ask.accept));
        }
        if !is_elsewhere {
            if let Some(authorization) = ask.authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            for (name, value) in ask.headers {
                // Credentials of the pull go before those of the configuration.
                if name != AUTHORIZATION || ask.authorization.is_none() {
                    headers.append(name, value.clone());
                }
            }
        }
        if let Some(authorization) = self.rules.authorization(uri) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        if ask.form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        let body = ask.form.clone().map_or_else(Full::default, |form| Full::new(form.into()));
        request.body(body).map_err(|error| Cause::Failed(format!("the request cannot be made: {error}")))
    }
}

fn no_handshake() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer to the handshake")
}

/// Waits for `work` as long as a server may be silent.
pub(super) async fn unless_stalled<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Cause> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Cause::Broken(format!("sent nothing for {} s", limit.as_secs_f32())))
}

fn origin(uri: &Uri) -> (Option<&str>, Option<&str>) {
    (uri.scheme_str(), uri.authority().map(|authority| authority.as_str()))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where `location` leads from `base`, without credentials.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    // A relative place may hold a URL in its query.
    let is_absolute = location.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']));
    let text = if is_absolute {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else if location.starts_with('?') {
        format!("{scheme}://{}{}{location}", base.authority()?, base.path())
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

/// What an error of the connection means.
fn explain(error: &hyper_util::client::legacy::Error) -> Cause {
    if let Some(tls) = tls_error(error) {
        let text = format!("TLS: {tls}");
        return match tls {
            rustls::Error::InvalidMessage(_) => Cause::NotTls(text),
            _ => Cause::Failed(text),
        };
    }
    let text = innermost(error);
    // An error of the connection itself is wrapped in one of the connector's: here the
    // other side hung up on TLS, or waits for more, and may not have understood it.
    let is_handshake = error.source().is_some_and(|source| source.is::<std::io::Error>());
    if error.is_connect() && is_handshake {
        return Cause::NotTls(format!("TLS: {text}"));
    }
    if error.is_connect() { Cause::Unreachable(text) } else { Cause::Broken(text) }
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

/// The first cause of an error, in words.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
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
            ("/route?to=https://cdn.example/x", Some("https://r.io:5000/route?to=https://cdn.example/x")),
            ("?z", Some("https://r.io:5000/v2/a/blobs/x?z")),
            ("https://user:password@cdn.example/x", None),
            ("file:///etc/passwd", None),
            ("ftp://x/y", None),
            ("http://", None),
            ("/with space", None),
        ] {
            assert_eq!(resolve(&base, location).map(|uri| uri.to_string()).as_deref(), want, "{location}");
        }
    }
}
