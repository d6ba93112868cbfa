//! The admin socket: what goes on inside, for who debugs a node.
//!
//! HTTP on a Unix socket in the state folder, for root alone; answers are JSON. Nothing
//! here changes anything, and no secret passes here.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/pulls` | the pulls that run: a list of [`crate::image::PullState`] |

pub mod client;
mod figures;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
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

use crate::image::Images;

/// The most clients at a time; a further one waits.
const CLIENTS_MAX: usize = 16;
/// How long a client may take to say what it wants.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may stay.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
/// The pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the socket of the server with the state folder `state` is.
#[must_use]
pub fn socket(state: &Path) -> PathBuf {
    state.join("admin.sock")
}

/// What is shown.
#[derive(Clone)]
pub struct Admin {
    images: Images,
}

impl Admin {
    /// Shows what `images` does.
    #[must_use]
    pub fn new(images: Images) -> Admin {
        Admin { images }
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
            let answer = self.answer(request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
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

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        match (path, method) {
            ("/v1/pulls", &Method::GET) => json(&self.images.running_pulls()),
            ("/v1/pulls", _) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "nothing is shown here"),
        }
    }
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
