//! The admin socket: what goes on inside, for who debugs a node.
//!
//! HTTP on a Unix socket in the state folder, for root alone; answers are JSON. Nothing
//! here changes anything, and no secret passes here.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/pulls` | the pulls that run: a list of [`crate::image::PullState`] |
//! | `GET /v1/ps` | what there is and what goes on: an [`Overview`] |
//! | `GET /v1/calls` | the calls that run: a list of [`crate::trace::Story`] |
//! | `GET /v1/trace?after=N` | calls that have ended after number N: a line of JSON each, some at a time; with `&wait` not before there is one |
//! | `GET /v1/trace/figures` | how full the record is: [`crate::trace::Figures`] |

pub mod client;
mod figures;
mod overview;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use figures::figures;
pub use overview::{CallLine, ContainerLine, Overview, PodLine};

use crate::pod::Pods;
use crate::trace::{self, Recorder};

/// The most clients at a time; a further one waits.
const CLIENTS_MAX: usize = 16;
/// How long a client may take to say what it wants.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may stay.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
/// The pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The header of an answer with calls: the number to go on with.
const NEXT: HeaderName = HeaderName::from_static("x-longshore-next");
/// So many bytes of calls are in one answer.
const ANSWER_BYTES: usize = 1 << 20;
/// How long a client waits for a call to end.
const NEWS_LIMIT: Duration = Duration::from_secs(20);
/// What is said where nothing is recorded.
const NOT_RECORDED: &str =
    "calls are not recorded: [trace] enabled is false in the configuration of this server";

/// Where the socket of the server with the state folder `state` is.
#[must_use]
pub fn socket(state: &Path) -> PathBuf {
    state.join("admin.sock")
}

/// What is shown.
#[derive(Clone)]
pub struct Admin {
    pods: Pods,
}

impl Admin {
    /// Shows what is done with `pods`, their containers and images.
    #[must_use]
    pub fn new(pods: Pods) -> Admin {
        Admin { pods }
    }

    /// Serves until `stop`. Clients that are still there then are cut off.
    pub async fn serve(self, listener: UnixListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let client = async {
                // The semaphore is never closed.
                let place = places.clone().acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                client = client => client,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (admin, stop) = (self.clone(), stop.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = admin.client(stream) => {}
                            () = stop.cancelled() => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a connection to the admin socket failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn client(self, stream: UnixStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.answer(request.method(), request.uri()).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(CLIENT_LIMIT, served).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a client of the admin socket"),
            Err(_) => debug!("a client of the admin socket stayed too long"),
        }
    }

    /// Answers one question.
    pub(crate) async fn answer(&self, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
        let path = uri.path();
        if !["/v1/pulls", "/v1/ps", "/v1/calls", "/v1/trace", "/v1/trace/figures"].contains(&path) {
            return text(StatusCode::NOT_FOUND, "nothing is shown here");
        }
        if method != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match path {
            "/v1/pulls" => return json(&self.pods.containers.images.running_pulls()),
            "/v1/ps" => return json(&overview::overview(&self.pods)),
            _ => {}
        }
        let Some(recorder) = trace::recorder() else {
            return text(StatusCode::NOT_FOUND, NOT_RECORDED);
        };
        match path {
            "/v1/calls" => json(&recorder.running()),
            "/v1/trace/figures" => json(&recorder.figures()),
            _ => calls(recorder, uri.query().unwrap_or_default()).await,
        }
    }
}

/// Calls that have ended, as lines.
async fn calls(recorder: &Recorder, query: &str) -> Response<Full<Bytes>> {
    let mut after = 0;
    let mut waits = false;
    for part in query.split('&') {
        match part.split_once('=') {
            Some(("after", number)) => match number.parse() {
                Ok(number) => after = number,
                Err(_) => return text(StatusCode::BAD_REQUEST, "after is not a number"),
            },
            None if part == "wait" => waits = true,
            _ => {}
        }
    }
    if waits {
        // Without news there is an answer, too: it has no lines.
        let _ = tokio::time::timeout(NEWS_LIMIT, recorder.news(after)).await;
    }
    let (lines, next) = recorder.after(after, ANSWER_BYTES);
    let mut body = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        body.extend_from_slice(&line);
        body.push(b'\n');
    }
    let mut response = with_type(Response::new(Full::new(body.into())), "application/jsonl");
    response.headers_mut().insert(NEXT, next.into());
    response
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(Response::new(Full::new(body.into())), "application/json"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(format!("{words}\n").into()));
    *response.status_mut() = status;
    with_type(response, "text/plain")
}

fn with_type(mut response: Response<Full<Bytes>>, kind: &'static str) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
