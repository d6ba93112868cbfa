//! A client of the admin socket, for the command line.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

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
    let answer = tokio::time::timeout(LIMIT, ask(socket, path)).await;
    let answer =
        answer.with_context(|| format!("no answer at {socket:?} within {} s", LIMIT.as_secs()))??;
    serde_json::from_slice(&answer).with_context(|| format!("the answer of {socket:?} to {path}"))
}

async fn ask(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let address = Address::of(socket)?;
    let stream = UnixStream::connect(address.path()).await.with_context(|| {
        format!("no server answers at {socket:?} (is it running, and this its state folder?)")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    if !status.is_success() {
        bail!("{socket:?} answers {status}: {}", String::from_utf8_lossy(&body).trim_end());
    }
    Ok(body)
}
