//! exec, attach and port-forward, for a client that speaks WebSocket as the API server does,
//! and for one that speaks SPDY as the kubelet and crictl do.

mod attach;
mod exec;
mod forward;
mod hostile;
mod soak;
mod spdy;
mod tls;

use std::collections::BTreeMap;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::{Container, LIMIT, Longshore};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Tells that the channel whose number follows is closed.
const CLOSE: u8 = 255;

/// What a client of exec and attach speaks unless it says otherwise.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// A client at the streaming server.
struct Client {
    socket: WebSocketStream<TcpStream>,
    seen: BTreeMap<u8, Vec<u8>>,
}

/// What a client has seen in the end.
struct End {
    stdout: String,
    stderr: String,
    status: Value,
}

impl Client {
    async fn open(url: &str) -> Client {
        Client::open_with(url, PROTOCOL).await
    }

    async fn open_with(url: &str, protocol: &str) -> Client {
        Client::try_open_with(url, protocol).await.expect("it switches")
    }

    /// One at a server that may not be there.
    async fn try_open(url: &str) -> Result<Client, tungstenite::Error> {
        Client::try_open_with(url, PROTOCOL).await
    }

    async fn try_open_with(url: &str, protocol: &str) -> Result<Client, tungstenite::Error> {
        let address = url.strip_prefix("http://").expect("a URL").split('/').next().expect("an address");
        let mut request = url.replace("http://", "ws://").into_client_request().expect("a URL");
        let protocol = protocol.parse().expect("a header");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let stream = TcpStream::connect(address).await?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Client { socket, seen: BTreeMap::new() })
    }

    async fn send(&mut self, channel: u8, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(channel, bytes.as_ref()).await, "it takes it");
    }

    /// Whether the server is still there to take it.
    async fn try_send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).await.is_ok()
    }

    async fn close(&mut self, channel: u8) {
        self.send(CLOSE, [channel]).await;
    }

    async fn resize(&mut self, width: u16, height: u16) {
        self.send(RESIZE, json!({ "Width": width, "Height": height }).to_string()).await;
    }

    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.seen.get(&channel).map_or(&[][..], Vec::as_slice)).into_owned()
    }

    /// Reads a message; false at the end.
    async fn read(&mut self) -> bool {
        let message = tokio::time::timeout(LIMIT, self.socket.next()).await.expect("something comes in time");
        match message {
            Some(Ok(Message::Binary(bytes))) if bytes.first().is_some_and(|channel| *channel != CLOSE) => {
                self.seen.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
                true
            }
            Some(Ok(Message::Close(_))) | Some(Err(_)) | None => false,
            Some(Ok(_)) => true,
        }
    }

    /// Reads until a channel has brought `text`.
    async fn sees(&mut self, channel: u8, text: &str) {
        while !self.text(channel).contains(text) {
            assert!(self.read().await, "{text:?} is not in {:?}, {}", self.text(channel), self.text(ERROR));
        }
    }

    async fn end(mut self) -> End {
        while self.read().await {}
        let status = self.text(ERROR);
        let status =
            serde_json::from_str(&status).unwrap_or_else(|error| panic!("{error} in the status {status:?}"));
        End { stdout: self.text(STDOUT), stderr: self.text(STDERR), status }
    }
}

impl End {
    fn is_success(&self) -> bool {
        self.status == json!({ "metadata": {}, "status": "Success" })
    }

    /// The exit code, where it is not 0 (STM-16).
    fn exit_code(&self) -> Option<&str> {
        assert_eq!(self.status["reason"], "NonZeroExitCode", "{}", self.status);
        self.status["details"]["causes"][0]["message"].as_str()
    }

    /// Why there is none.
    fn failure(&self) -> &str {
        assert_eq!(self.status["reason"], "InternalError", "{}", self.status);
        self.status["message"].as_str().expect("a text")
    }
}

/// Sets of FIFOs that a container has: one, and one for each exec.
fn fifo_sets(longshore: &Longshore, container: &Container) -> usize {
    let io = longshore.folders().1.join("containers").join(&container.id).join("io");
    std::fs::read_dir(io).map_or(0, |entries| entries.count())
}
