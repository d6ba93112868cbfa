//! The HTTP side: connections, paths, tokens, and the upgrade (STM-01 … STM-08).
//!
//! Whoever reaches the address may connect, so nothing that is done before a token was shown
//! may be without a bound: the time until then, the bytes, and the connections. When there
//! are too many, the one that has said nothing for the longest time has to go, not the one
//! that comes: a client that knows what it wants says so at once.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, info};

use super::negotiate::{self, Purpose};
use super::refusals::{Refusals, Why, shortened};
use super::{Request, Streaming, certificate, port_forward, remote_command};
use crate::config::file::Stream;
use crate::error::{Context, Result};
use crate::trace;

/// Clients at a time that have not said what they want.
const STRANGERS_MAX: usize = 1024;
/// How long a client may take to say what it wants, and to take the answer.
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
        let tls = certificate::acceptor(section)?;
        let what = || format!("bind the streaming server's address {}:{}", section.address, section.port);
        let listener = TcpListener::bind((section.address.as_str(), section.port)).await.context(what)?;
        let address = listener.local_addr().context(what)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok((Listener { listener, tls }, format!("{scheme}://{address}")))
    }
}

impl Streaming {
    /// Serves until `stop`; sessions are closed then, the processes behind them go on.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let Listener { listener, tls } = listener;
        let client = Client { streaming: self.clone(), stop: stop.clone(), sessions: TaskTracker::new() };
        let refusals = &self.0.refusals;
        tokio::join!(refusals.tell(&stop), async {
            let mut strangers = Strangers::default();
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        let task = tokio::spawn(client.clone().receive(stream, tls.clone()));
                        if strangers.is_too_many_with(task.abort_handle()) {
                            refusals.count(Why::Crowded, &"it said nothing when others came");
                        }
                    }
                    Err(error) => {
                        refusals.count(Why::NotAccepted, &error);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        client.sessions.close();
        if tokio::time::timeout(END_LIMIT, client.sessions.wait()).await.is_err() {
            debug!(left = client.sessions.len(), "streaming sessions were cut off");
        }
    }
}

/// The tasks of clients that have not said what they want, in the order in which they came.
#[derive(Default)]
struct Strangers(VecDeque<AbortHandle>);

impl Strangers {
    /// Takes a new one in. Tells whether the oldest had to go for it.
    fn is_too_many_with(&mut self, new: AbortHandle) -> bool {
        while self.0.front().is_some_and(AbortHandle::is_finished) {
            self.0.pop_front();
        }
        if self.0.len() >= STRANGERS_MAX {
            self.0.retain(|task| !task.is_finished());
        }
        let oldest = if self.0.len() >= STRANGERS_MAX { self.0.pop_front() } else { None };
        self.0.push_back(new);
        oldest.map(|oldest| oldest.abort()).is_some()
    }
}

/// One connection.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) streaming: Streaming,
    pub(super) stop: CancellationToken,
    pub(super) sessions: TaskTracker,
}

impl Client {
    /// Serves a connection until its session begins, or until it is clear that there is none.
    pub(super) async fn receive<T>(self, stream: T, tls: Option<TlsAcceptor>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let served = async {
            match tls {
                None => self.serve(stream).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => self.serve(stream).await,
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        self.refusals().count(Why::Garbage, &error);
                    }
                    Err(error) => debug!(%error, "a streaming client has gone"),
                },
            }
        };
        let limited = tokio::time::timeout(HEAD_LIMIT, served);
        if let Some(Err(_)) = self.stop.run_until_cancelled(limited).await {
            self.refusals().count(Why::Slow, &"it did not say in time what it wants");
        }
    }

    async fn serve<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, stream: T) {
        let client = self.clone();
        let service = service_fn(move |request| {
            let answer = client.answer(request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX).max_header_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
        // The time limit is not the library's, which ends with the head.
        builder.header_read_timeout(None);
        match builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
            Err(error) if error.is_parse() => self.refusals().count(Why::Garbage, &error),
            Err(error) => debug!(%error, "a streaming client has gone"),
            Ok(()) => {}
        }
    }

    fn refusals(&self) -> &Refusals {
        &self.streaming.0.refusals
    }

    fn answer(&self, mut request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return self.refused(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"));
        }
        let path = request.uri().path().to_owned();
        let Some((kind, token)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return self.refused(text(StatusCode::NOT_FOUND, "there is nothing here"));
        };
        // A token of another kind is spent, too: whoever guesses does not guess twice.
        let wanted = match (kind, self.streaming.0.tokens.take(token)) {
            ("exec", Some(wanted @ Request::Exec(_)))
            | ("attach", Some(wanted @ Request::Attach(_)))
            | ("portforward", Some(wanted @ Request::PortForward(_))) => wanted,
            _ => return self.refused(text(StatusCode::NOT_FOUND, "the token is unknown, used or expired")),
        };
        let purpose = match wanted {
            Request::PortForward(_) => Purpose::PortForward,
            _ => Purpose::RemoteCommand,
        };
        let (agreement, response) = match negotiate::agree(request.headers(), purpose) {
            Ok(agreed) => agreed,
            Err(response) => return self.refused(*response),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let client = self.clone();
        let span = tracing::info_span!("stream", kind, object = wanted.object());
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

    fn refused(&self, response: Response<String>) -> Response<Full<Bytes>> {
        let why = format!("{}: {}", response.status().as_u16(), response.body().trim_end());
        self.refusals().count(Why::Refused, &why);
        let mut response = response.map(|body| Full::new(Bytes::from(body)));
        // One request only: nobody can ask on without taking the answers.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// Serves an upgraded connection to its end.
    async fn run<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self,
        io: T,
        agreement: negotiate::Agreement,
        wanted: Request,
    ) {
        let Streaming(inner) = &self.streaming;
        inner.pods.containers.tell_of_object(wanted.object());
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
            let _ = trace::answered(&Span::current(), "Unknown", Some(&shortened(&error)));
            info!(error = shortened(&error), "a streaming session failed");
        }
    }
}

fn text(status: StatusCode, words: &str) -> Response<String> {
    let mut response = Response::new(format!("{words}\n"));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_said_nothing_for_the_longest_time_has_to_go() {
        let mut strangers = Strangers::default();
        let ended = tokio::spawn(async {});
        assert!(!strangers.is_too_many_with(ended.abort_handle()));
        ended.await.expect("it has ended");
        let tasks: Vec<_> = (0..=STRANGERS_MAX).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        let crowded: Vec<usize> = (0..=STRANGERS_MAX)
            .filter(|number| strangers.is_too_many_with(tasks[*number].abort_handle()))
            .collect();
        // One that has ended takes no place.
        assert_eq!(crowded, [STRANGERS_MAX]);
        assert_eq!(strangers.0.len(), STRANGERS_MAX);
        let mut tasks = tasks.into_iter();
        assert!(tasks.next().expect("the first").await.is_err_and(|error| error.is_cancelled()));
        assert!(tasks.all(|task| !task.is_finished()));
    }
}
