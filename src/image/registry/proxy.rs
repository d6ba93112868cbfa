//! Connections to registries: directly, or through the proxies of the environment.
//!
//! The rules are those of every Go program (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`), so
//! that a proxy that is set for containerd's unit works for ours: a plain request goes
//! to the proxy whole, for TLS the proxy is asked for a tunnel, and this machine itself
//! is never asked for through one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::hosts::is_loopback;
use crate::config::Proxies;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which proxy serves which destination.
#[derive(Clone)]
pub(super) struct Rules(Arc<Matcher>);

impl Rules {
    pub(super) fn new(proxies: &Proxies) -> Rules {
        let Proxies { http, https, none } = proxies;
        let matcher = Matcher::builder().http(http.as_str()).https(https.as_str()).no(none.as_str());
        Rules(Arc::new(matcher.build()))
    }

    /// The proxy for `destination` and what is said to it.
    fn of(&self, destination: &Uri) -> Option<(Uri, Option<HeaderValue>)> {
        if destination.authority().is_none_or(|authority| is_loopback(authority.as_str())) {
            return None;
        }
        let proxy = self.0.intercept(destination)?;
        Some((proxy.uri().clone(), proxy.basic_auth().cloned()))
    }

    /// The proxy for `destination` as it may be told: without what is said to it.
    pub(super) fn name_of(&self, destination: &Uri) -> Option<String> {
        let (proxy, _) = self.of(destination)?;
        let port = proxy.port_u16().map_or_else(String::new, |port| format!(":{port}"));
        Some(format!("{}://{}{port}", proxy.scheme_str().unwrap_or("http"), proxy.host()?))
    }

    /// Our credentials for the proxy that a plain request to `destination` goes to.
    pub(super) fn authorization(&self, destination: &Uri) -> Option<HeaderValue> {
        if destination.scheme_str() != Some("http") {
            return None;
        }
        let (_, mut header) = self.of(destination)?;
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        header
    }
}

/// Makes the connections.
#[derive(Clone)]
pub(super) struct Dialer {
    tcp: HttpConnector,
    rules: Rules,
}

impl Dialer {
    pub(super) fn new(rules: Rules, connect_limit: Duration) -> Dialer {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(connect_limit));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        Dialer { tcp, rules }
    }
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let proxy = self.rules.of(&destination);
        Box::pin(async move {
            let Some((proxy, authorization)) = proxy else {
                return Ok(Stream { io: tcp.call(destination).await?, is_proxied: false });
            };
            if proxy.scheme_str() != Some("http") {
                return Err("a proxy that is not spoken to by plain http is not supported".into());
            }
            if destination.scheme_str() == Some("http") {
                return Ok(Stream { io: tcp.call(proxy).await?, is_proxied: true });
            }
            let mut tunnel = Tunnel::new(proxy, tcp);
            if let Some(authorization) = authorization {
                tunnel = tunnel.with_auth(authorization);
            }
            Ok(Stream { io: tunnel.call(destination).await?, is_proxied: false })
        })
    }
}

/// A connection.
pub(super) struct Stream {
    io: TokioIo<TcpStream>,
    /// Whether requests must name their destination in full.
    is_proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_and_this_machine_is_never_proxied() {
        let rules = Rules::new(&Proxies {
            http: "http://user:secret@p.example:3128".into(),
            https: "http://q.example:3129".into(),
            none: "inside.example,10.0.0.0/8".into(),
        });
        let proxy = |url: &str| rules.of(&url.parse().expect("URL")).map(|(uri, _)| uri.to_string());
        assert_eq!(proxy("https://r.io/v2/").as_deref(), Some("http://q.example:3129/"));
        assert_eq!(proxy("http://r.io/v2/").as_deref(), Some("http://p.example:3128/"));
        for direct in
            ["https://r.inside.example/", "http://10.1.2.3:5000/", "http://localhost:5000/", "http://[::1]/"]
        {
            assert_eq!(proxy(direct), None, "{direct}");
        }
        let header = rules.authorization(&"http://r.io/".parse().expect("URL")).expect("credentials");
        assert_eq!((header.is_sensitive(), header.as_bytes()), (true, &b"Basic dXNlcjpzZWNyZXQ="[..]));
        assert_eq!(rules.authorization(&"https://r.io/".parse().expect("URL")), None);
        assert!(Rules::new(&Proxies::default()).of(&"https://r.io/".parse().expect("URL")).is_none());
    }
}
