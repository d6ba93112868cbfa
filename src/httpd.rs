//! A small HTTP server for programs and people that look: the admin socket, metrics, the page.
//!
//! There is no password: on a Unix socket its permissions say who may read, at an address
//! everybody who reaches it.
//!
//! Each client gets one answer, within a limit, and only reads. Of too many at a
//! time the one that has been there for the longest has to go, so that nobody can keep others
//! out by doing nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The most clients at a time.
const CLIENTS_MAX: usize = 32;
/// How long a client may stay where answers come at once.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(10);
/// The longest request head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client asked, without a body.
pub type Asked = Request<()>;
/// What it gets.
pub type Answer = Response<Full<Bytes>>;
/// Answers GET and HEAD; for HEAD the body is left out by the server.
pub type Handler = Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Where a server listens.
pub enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// At an address.
    Tcp(TcpListener),
}

/// Serves until `stop`; `what` names it in the log. A client may stay for `limit`, from its
/// connection to the last byte of its answer.
pub async fn serve(
    listener: Listener,
    what: &'static str,
    limit: Duration,
    handler: Handler,
    stop: CancellationToken,
) {
    let mut clients = Clients::default();
    loop {
        let accepted = async {
            Ok::<_, std::io::Error>(match &listener {
                Listener::Unix(listener) => {
                    let (stream, _) = listener.accept().await?;
                    tokio::spawn(client(stream, what, limit, handler.clone())).abort_handle()
                }
                Listener::Tcp(listener) => {
                    let (stream, _) = listener.accept().await?;
                    tokio::spawn(client(stream, what, limit, handler.clone())).abort_handle()
                }
            })
        };
        match stop.run_until_cancelled(accepted).await {
            None => return,
            Some(Ok(client)) => clients.add(client),
            Some(Err(error)) => {
                warn!(%error, "a client of the {what} could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Those that are served, in the order in which they came. Dropping it ends them.
#[derive(Default)]
struct Clients(VecDeque<AbortHandle>);

impl Clients {
    fn add(&mut self, new: AbortHandle) {
        self.0.retain(|client| !client.is_finished());
        if self.0.len() >= CLIENTS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            debug!("a client has to go for another");
            oldest.abort();
        }
        self.0.push_back(new);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn client(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    what: &'static str,
    limit: Duration,
    handler: Handler,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            Ok::<_, Infallible>(match *request.method() {
                Method::GET | Method::HEAD => handler(request.map(drop)).await,
                _ => {
                    let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
                    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                    refused
                }
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(HEAD_BYTES_MAX).header_read_timeout(None);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limit, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client of the {what}"),
        Err(_) => debug!("a client of the {what} stayed too long"),
    }
}

/// An answer of a media type.
pub fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// A server that runs until the guard is dropped, and its address.
    async fn server() -> (std::net::SocketAddr, tokio_util::sync::DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let handler: Handler = Arc::new(|asked| {
            Box::pin(async move { answer(StatusCode::OK, "text/plain", asked.uri().path().to_owned()) })
        });
        tokio::spawn(serve(Listener::Tcp(listener), "test", CLIENT_LIMIT, handler, stop.clone()));
        (address, stop.drop_guard())
    }

    async fn ask(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and then the end");
        answer
    }

    async fn get(address: std::net::SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        ask(&mut stream, &format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn only_reading_is_served() {
        let (address, _running) = server().await;
        let answer = get(address, "GET /a").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\n/a"), "{answer}");
        let head = get(address, "HEAD /a").await;
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(get(address, "POST /a").await.starts_with("HTTP/1.1 405"));
        let long = format!("GET /{} ", "x".repeat(2 * HEAD_BYTES_MAX));
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let _ = stream.write_all(long.as_bytes()).await;
        let mut end = Vec::new();
        let _ = stream.read_to_end(&mut end).await;
        assert!(!String::from_utf8_lossy(&end).contains("200"));
    }

    #[tokio::test]
    async fn who_does_nothing_cannot_keep_others_out() {
        let (address, _running) = server().await;
        let mut silent = Vec::new();
        for _ in 0..2 * CLIENTS_MAX {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        assert!(get(address, "GET /a").await.starts_with("HTTP/1.1 200"));
        // The first had to go; the last is still served.
        assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
        let last = silent.last_mut().expect("some");
        assert!(ask(last, "GET /a HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200"));
    }

    #[tokio::test]
    async fn a_client_that_takes_too_long_is_cut_off() {
        let (one, mut other) = tokio::io::duplex(64);
        let handler: Handler = Arc::new(|_| Box::pin(std::future::pending()));
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        other.write_all(b"GET /a HTTP/1.1\r\n\r\n").await.expect("it is sent");
        client(one, "test", CLIENT_LIMIT, handler).await;
        assert!(begun.elapsed() >= CLIENT_LIMIT);
    }
}
