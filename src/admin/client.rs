//! A client of the admin socket, for the command line.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{NEWS_LIMIT, NEXT};
use crate::sys::socket::Address;

/// How long the server may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What the server at `socket` shows under `path`.
///
/// # Errors
/// No server, no answer in time, an answer that is no success or cannot be read.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let (_, answer) = in_time(socket, path).await?;
    serde_json::from_slice(&answer).with_context(|| format!("the answer of {socket:?} to {path}"))
}

/// The calls that ended after number `after`, as lines of JSON, and the number to go on with;
/// none may mean that there are no more. With `waits` an answer takes until there is one.
///
/// # Errors
/// As for [`get`].
pub async fn calls(socket: &Path, after: u64, waits: bool) -> anyhow::Result<(Bytes, u64)> {
    let path = format!("/v1/trace?after={after}{}", if waits { "&wait" } else { "" });
    let (headers, lines) = in_time(socket, &path).await?;
    let next = headers.get(NEXT).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok((lines, next.with_context(|| format!("the answer of {socket:?} says not how to go on"))?))
}

async fn in_time(socket: &Path, path: &str) -> anyhow::Result<(HeaderMap, Bytes)> {
    // A server that has nothing new lets its client wait.
    let limit = LIMIT + NEWS_LIMIT;
    let answer = tokio::time::timeout(limit, ask(socket, path)).await;
    answer.with_context(|| format!("no answer at {socket:?} within {} s", limit.as_secs()))?
}

async fn ask(socket: &Path, path: &str) -> anyhow::Result<(HeaderMap, Bytes)> {
    let address = Address::of(socket)?;
    let stream = UnixStream::connect(address.path()).await.with_context(|| {
        format!("no server answers at {socket:?} (is it running, and this its state folder?)")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    if !status.is_success() {
        bail!("{socket:?} answers {status}: {}", String::from_utf8_lossy(&body).trim_end());
    }
    Ok((headers, body))
}
