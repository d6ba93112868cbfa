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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode, Uri};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

pub use figures::figures;
pub use overview::{CallLine, ContainerLine, Overview, PodLine};

use crate::httpd::{self, Answer, Handler, Listener, answer};
use crate::pod::Pods;
use crate::trace::{self, Recorder};

/// How long a client may stay: longer than it may wait for news.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);

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
        let handler: Handler = Arc::new(move |asked| {
            let admin = self.clone();
            Box::pin(async move { admin.answer(asked.uri()).await })
        });
        httpd::serve(Listener::Unix(listener), "admin socket", CLIENT_LIMIT, handler, stop).await;
    }

    /// Answers one question.
    pub(crate) async fn answer(&self, uri: &Uri) -> Answer {
        let path = uri.path();
        match path {
            "/v1/pulls" => return json(&self.pods.containers.images.running_pulls()),
            "/v1/ps" => return json(&overview::overview(&self.pods)),
            "/v1/calls" | "/v1/trace" | "/v1/trace/figures" => {}
            _ => return text(StatusCode::NOT_FOUND, "nothing is shown here"),
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
async fn calls(recorder: &Recorder, query: &str) -> Answer {
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
    let mut response = answer(StatusCode::OK, "application/jsonl", body);
    response.headers_mut().insert(NEXT, next.into());
    response
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, words: &str) -> Answer {
    answer(status, "text/plain", format!("{words}\n"))
}
