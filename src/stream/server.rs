//! The HTTP side: connections, paths, tokens, and the upgrade (STM-01 … STM-08).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info, warn};

use super::negotiate::{self, Purpose};
use super::{Request, Streaming, port_forward, remote_command};
use crate::config::file::Stream;
use crate::error::{Context, Result, invalid};

/// Clients at a time; a further one waits.
const CLIENTS_MAX: usize = 1024;
/// How long a client may take to say what it wants.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// The longest request head.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;
/// The pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long sessions may take to say goodbye when the server stops.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A bound address that is not served yet.
pub struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Binds, and gives the beginning of URLs.
    pub(super) async fn bind(section: &Stream) -> Result<(Listener, String)> {
        let tls =
            match (section.tls_cert_file.as_os_str().is_empty(), section.tls_key_file.as_os_str().is_empty())
            {
                (true, _) | (_, true) => None,
                (false, false) => Some(acceptor(section)?),
            };
        let what = || format!("bind the streaming server's address {}:{}", section.address, section.port);
        let listener = TcpListener::bind((section.address.as_str(), section.port)).await.context(what)?;
        let address = listener.local_addr().context(what)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok((Listener { listener, tls }, format!("{scheme}://{address}")))
    }
}

fn acceptor(section: &Stream) -> Result<TlsAcceptor> {
    let (certificate, key) = (&section.tls_cert_file, &section.tls_key_file);
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| invalid(format!("stream.tls_cert_file {certificate:?}: {error}")))?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| invalid(format!("stream.tls_key_file {key:?}: {error}")))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| invalid(format!("stream.tls_cert_file {certificate:?}: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Streaming {
    /// Serves until `stop`; sessions are closed then, the processes behind them go on.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let Listener { listener, tls } = listener;
        let (places, sessions) = (Arc::new(Semaphore::new(CLIENTS_MAX)), TaskTracker::new());
        loop {
            let client = async {
                // The semaphore is never closed.
                let place = places.clone().acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                client = client => client,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let client =
                        Client { streaming: self.clone(), stop: stop.clone(), sessions: sessions.clone() };
                    let tls = tls.clone();
                    tokio::spawn(async move {
                        match tls {
                            None => client.serve(stream).await,
                            Some(tls) => match tokio::time::timeout(HEAD_LIMIT, tls.accept(stream)).await {
                                Ok(Ok(stream)) => client.serve(stream).await,
                                Ok(Err(error)) => debug!(%error, "a streaming client's TLS"),
                                Err(_) => debug!("a streaming client took too long for TLS"),
                            },
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a streaming connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        sessions.close();
        if tokio::time::timeout(END_LIMIT, sessions.wait()).await.is_err() {
            debug!(left = sessions.len(), "streaming sessions were cut off");
        }
    }
}

/// One connection.
#[derive(Clone)]
struct Client {
    streaming: Streaming,
    stop: CancellationToken,
    sessions: TaskTracker,
}

impl Client {
    async fn serve<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, stream: T) {
        let stop = self.stop.clone();
        let service = service_fn(move |request| {
            let answer = self.answer(request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
        builder.max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
        let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::select! {
            served = served => if let Err(error) = served {
                debug!(%error, "a streaming client");
            },
            () = stop.cancelled() => {}
        }
    }

    fn answer(&self, mut request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return refused(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"));
        }
        let path = request.uri().path().to_owned();
        let Some((kind, token)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return refused(text(StatusCode::NOT_FOUND, "there is nothing here"));
        };
        // A token of another kind is spent, too: whoever guesses does not guess twice.
        let wanted = match (kind, self.streaming.0.tokens.take(token)) {
            ("exec", Some(wanted @ Request::Exec(_)))
            | ("attach", Some(wanted @ Request::Attach(_)))
            | ("portforward", Some(wanted @ Request::PortForward(_))) => wanted,
            _ => return refused(text(StatusCode::NOT_FOUND, "the token is unknown, used or expired")),
        };
        let purpose = match wanted {
            Request::PortForward(_) => Purpose::PortForward,
            _ => Purpose::RemoteCommand,
        };
        let (agreement, response) = match negotiate::agree(request.headers(), purpose) {
            Ok(agreed) => agreed,
            Err(response) => return refused(*response),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let client = self.clone();
        let span = tracing::info_span!("stream", kind);
        self.sessions.spawn(
            async move {
                match upgrade.await {
                    Ok(io) => client.run(TokioIo::new(io), agreement, wanted).await,
                    Err(error) => debug!(%error, "a streaming client went away during its upgrade"),
                }
            }
            .instrument(span),
        );
        response.map(|()| Full::default())
    }

    /// Serves an upgraded connection to its end.
    async fn run<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self,
        io: T,
        agreement: negotiate::Agreement,
        wanted: Request,
    ) {
        let Streaming(inner) = &self.streaming;
        let ended = match wanted {
            Request::Exec(request) => {
                remote_command::exec(&inner.pods, request, io, agreement, inner.limits, &self.stop).await
            }
            Request::Attach(request) => {
                remote_command::attach(&inner.pods, request, io, agreement, inner.limits, &self.stop).await
            }
            Request::PortForward(request) => {
                port_forward::run(&inner.pods, request, io, agreement, inner.limits, &self.stop).await
            }
        };
        if let Err(error) = ended {
            info!(%error, "a streaming session failed");
        }
    }
}

fn text(status: StatusCode, words: &str) -> Response<String> {
    let mut response = Response::new(format!("{words}\n"));
    *response.status_mut() = status;
    response
}

fn refused(response: Response<String>) -> Response<Full<Bytes>> {
    debug!(
        status = response.status().as_u16(),
        why = response.body().trim_end(),
        "a streaming client is refused"
    );
    response.map(|body| Full::new(Bytes::from(body)))
}
