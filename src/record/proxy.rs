//! The proxy between a client of the CRI and its server.
//!
//! HTTP/2 on both sides: paths, headers, messages and trailers pass as they are, so that
//! methods and fields pass that nobody here knows. Each connection has one of its own to the
//! server; a call that its client gives up is given up there, and who reads slowly is waited
//! for by the server alone.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use super::tap;
use super::writer::{Active, Recorder};
use crate::sys::socket::Address;

/// Connections at a time; a further one waits.
const CONNECTIONS_MAX: usize = 256;
/// Calls of a connection at a time; further ones wait.
const CALLS_MAX: u32 = 1024;
/// Headers and trailers: an error's message is among them.
const HEADERS_BYTES_MAX: u32 = 256 << 10;
/// What may be under way of a message before it is taken.
const WINDOW_BYTES: u32 = 1 << 20;
/// After a client that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long calls that were cut off may take to notice.
const CUT_LIMIT: Duration = Duration::from_secs(5);

/// Passes on what comes until `stop`, and waits then for the calls that end by themselves;
/// with `now` for nobody any more.
pub(super) async fn serve(
    listener: UnixListener,
    server: PathBuf,
    recorder: Recorder,
    stop: CancellationToken,
    now: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let client = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            client = client => client,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let link =
                    Link { server: server.clone(), sender: Mutex::default(), recorder: recorder.clone() };
                let stop = stop.clone();
                connections.spawn(async move {
                    connection(stream, Arc::new(link), stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                eprintln!("longshore: a client could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    recorder.is_ending();
    let mut active = recorder.active();
    tokio::select! {
        _ = active.wait_for(|active| active.single == 0) => {}
        () = now.cancelled() => {}
    }
    // What is left are streams that have no end of their own, such as events.
    connections.shutdown().await;
    let _ = tokio::time::timeout(CUT_LIMIT, active.wait_for(|active| *active == Active::default())).await;
}

/// Serves one client.
async fn connection(stream: UnixStream, link: Arc<Link>, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let link = link.clone();
        async move { Ok::<_, Infallible>(link.pass(request).await) }
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    let mut serving = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    // A client that goes away is none of ours.
    drop(served);
}

/// A client's way to the server.
struct Link {
    server: PathBuf,
    /// The connection, once there is one; a new one when it has broken.
    sender: Mutex<Option<SendRequest<Body>>>,
    recorder: Recorder,
}

impl Link {
    async fn pass(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let timeout = request.headers().get("grpc-timeout");
        let timeout = timeout.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (mut running, slot) = self.recorder.call(&path, timeout);
        let messages = self.recorder.messages();
        let request = request.map(|body| Body::new(tap::Request { body, messages, slot }));
        match self.ask(request).await {
            Ok(answer) => {
                let (parts, body) = answer.into_parts();
                let body = tap::Answer::new(body, &parts.headers, self.recorder.messages(), running);
                Response::from_parts(parts, Body::new(body))
            }
            Err(error) => {
                let status = Status::unavailable(format!("longshore record: {error:#}"));
                running.end(status.code(), status.message());
                status.into_http()
            }
        }
    }

    async fn ask(&self, mut request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        // Whatever the client calls the server, a socket has no name.
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() =
            Uri::builder().scheme("http").authority("localhost").path_and_query(path).build()?;
        let mut sender = self.sender().await.with_context(|| format!("{:?} does not answer", self.server))?;
        sender.send_request(request).await.with_context(|| format!("{:?} broke off the call", self.server))
    }

    async fn sender(&self) -> anyhow::Result<SendRequest<Body>> {
        let mut known = self.sender.lock().await;
        if let Some(sender) = known.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let mut sender = connect(&self.server).await?;
        sender.ready().await?;
        *known = Some(sender.clone());
        Ok(sender)
    }
}

async fn connect(server: &Path) -> anyhow::Result<SendRequest<Body>> {
    let stream = UnixStream::connect(Address::of(server)?.path()).await?;
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client
        .timer(TokioTimer::new())
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    let (sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    // It ends when nobody has a sender or an answer of it any more.
    tokio::spawn(connection);
    Ok(sender)
}
