//! port-forward: pairs of streams to connections inside a pod (STM-27 … STM-35).
//!
//! Over SPDY each connection of the client's is a pair of streams, for data and for an
//! error text, with the same `requestid`. Any number of pairs live and end side by side.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::maybe_done;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::negotiate::{Agreement, Transport};
use super::websocket::{ChannelProtocol, Direction};
use super::{Limits, spdy, websocket};
use crate::error::{Context, Error, Result, deadline, invalid};
use crate::io::session::{self, Incoming, Outgoing};
use crate::pod::Pods;
use crate::proto::cri::PortForwardRequest;

/// Room for a read from the pod when a new buffer is begun.
const BUFFER_BYTES: usize = 256 << 10;
/// A buffer with less room left is not read into any more.
const ROOM_BYTES: usize = 64 << 10;
/// How long the data of one pair may keep those of others waiting.
const STUCK_LIMIT: Duration = Duration::from_secs(30);
/// How long a pod may be silent once its client has ended its direction.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may go on talking then: a client that has gone altogether often says no more than
/// one that has only ended its direction.
const ANSWER_LIMIT: Duration = Duration::from_secs(3600);
/// How long a client may go on once the pod has ended its direction, as in containerd's plugin.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);
/// Streams of a client that wait for their other half; a further one is refused. Those that
/// the client has ended count, too, until their time is over.
const HALVES_MAX: usize = 1000;
/// Connections of a client into the pod; a further one is refused.
const PAIRS_MAX: usize = 500;
/// Channels 0 to 255 are two for each port; 255 itself is no channel in newer protocols.
const WEBSOCKET_PORTS_MAX: usize = 127;

/// Serves a client until it, or the server, has had enough.
pub(super) async fn run<T>(
    pods: &Pods,
    request: PortForwardRequest,
    io: T,
    agreement: Agreement,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let pod = request.pod_sandbox_id;
    let connection = match agreement.transport {
        Transport::Spdy => spdy::serve(io, of_pairs(limits)),
        Transport::SpdyInWebSocket => spdy::serve(websocket::tunnel(io).await, of_pairs(limits)),
        Transport::WebSocket { is_base64 } => {
            let protocol = ChannelProtocol { base64: is_base64, close_signal: false, greets: false };
            return channels(pods, &pod, &request.port, io, protocol, limits, stop).await;
        }
    };
    info!(pod, "ports are forwarded");
    let mut pairs = Pairs {
        pods: pods.clone(),
        pod,
        limits,
        waiting: HashMap::new(),
        running: TaskTracker::new(),
        gone: connection.handle().gone(),
    };
    pairs.serve(connection, stop).await;
    Ok(())
}

/// One connection that nobody reads inside the pod must not hold up the others for ever.
fn of_pairs(limits: Limits) -> spdy::Limits {
    spdy::Limits { stuck: Some(STUCK_LIMIT), streams_max: 2 * PAIRS_MAX, ..limits.spdy() }
}

/// The pairs of a client's connection.
struct Pairs {
    pods: Pods,
    pod: String,
    limits: Limits,
    /// Streams whose other half has not come yet, by request.
    waiting: HashMap<String, (Instant, Half)>,
    running: TaskTracker,
    gone: CancellationToken,
}

/// One stream of a pair.
struct Half {
    is_data: bool,
    port: u16,
    stream: spdy::Stream,
}

impl Pairs {
    async fn serve(&mut self, mut connection: spdy::Connection, stop: &CancellationToken) {
        let handle = connection.handle();
        loop {
            let oldest = self.waiting.values().map(|(since, _)| *since).min();
            let expiry = async {
                match oldest {
                    Some(since) => tokio::time::sleep_until(since + self.limits.creation).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                stream = connection.accept() => match stream {
                    Some(stream) => self.take(stream),
                    None => return,
                },
                () = expiry => self.expire().await,
                () = stop.cancelled() => break,
            }
        }
        handle.close().await;
    }

    /// Puts a new stream to its other half.
    fn take(&mut self, stream: spdy::Stream) {
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        let is_data = match kind {
            "data" => true,
            "error" => false,
            _ => {
                debug!(kind, "a stream of no known type is refused");
                return stream.control.reset();
            }
        };
        let port = stream.headers.get("port").and_then(|text| text.parse().ok()).filter(|port| *port > 0);
        let Some(port) = port else {
            debug!(port = stream.headers.get("port"), "a stream without a port is refused");
            return stream.control.reset();
        };
        let key = match stream.headers.get("requestid") {
            Some(request) => request.to_owned(),
            // Old clients: the data stream comes right after its error stream (STM-29).
            None if is_data => stream.id.saturating_sub(2).to_string(),
            None => stream.id.to_string(),
        };
        let half = Half { is_data, port, stream };
        match self.waiting.remove(&key) {
            None if self.waiting.len() >= HALVES_MAX => {
                debug!(request = key, "a stream is refused: too many wait for their other half");
                half.stream.control.reset();
            }
            None => {
                self.waiting.insert(key, (Instant::now(), half));
            }
            Some((since, other)) if other.is_data == half.is_data || other.port != half.port => {
                debug!(request = key, "a second stream of the same request is refused");
                half.stream.control.reset();
                self.waiting.insert(key, (since, other));
            }
            Some((_, other)) => {
                let (data, error) = if half.is_data { (half, other) } else { (other, half) };
                if self.running.len() >= PAIRS_MAX {
                    debug!(request = key, "a pair is refused: too many connections are forwarded");
                    data.stream.control.reset();
                    return error.stream.control.reset();
                }
                let (pods, pod, gone) = (self.pods.clone(), self.pod.clone(), self.gone.clone());
                self.running.spawn(async move {
                    tokio::select! {
                        () = forward(&pods, &pod, data, error) => {}
                        () = gone.cancelled() => {}
                    }
                });
            }
        }
    }

    /// Gives up on streams that have waited for too long (STM-28).
    async fn expire(&mut self) {
        let limit = self.limits.creation;
        let old: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, (since, _))| since.elapsed() >= limit)
            .map(|(key, _)| key.clone())
            .collect();
        for key in old {
            let Some((_, half)) = self.waiting.remove(&key) else { continue };
            let text = format!("the other stream of request {key} has not come");
            debug!(request = key, "a pair of streams is not complete");
            if half.is_data {
                half.stream.control.reset();
            } else {
                let _ = half.stream.outgoing.send(text.into()).await;
            }
        }
    }
}

/// One connection of a client, to its end. What goes wrong is told on the error stream.
async fn forward(pods: &Pods, pod: &str, data: Half, error: Half) {
    let port = data.port;
    // The client has nothing to say there, and nobody keeps it if it does.
    drop(error.stream.incoming);
    let result = match pods.dial(pod, port).await {
        Ok(socket) => {
            let (incoming, outgoing) = (data.stream.incoming, data.stream.outgoing);
            let over = data.stream.control.over();
            tokio::select! {
                copied = copy(socket, incoming, outgoing) => match copied {
                    Ok(End::Whole) => Ok(()),
                    // Clients give up all of their ports for a text.
                    Ok(End::Silent) => {
                        debug!(port, pod, "{SILENT}");
                        data.stream.control.reset();
                        Ok(())
                    }
                    Err(error) => Err(error).context(|| format!("port {port} of pod sandbox {pod}")),
                },
                // A client that resets its data stream wants nothing more of the pod, which
                // may never end the connection by itself.
                () = over.cancelled() => Ok(()),
            }
        }
        Err(refused) => {
            data.stream.control.reset();
            Err(refused)
        }
    };
    if let Err(why) = result {
        debug!(%why, "a forwarded connection");
        let _ = error.stream.outgoing.send(failure(port, pod, &why).into()).await;
    }
}

/// How a forwarded connection ended.
enum End {
    /// The pod has said its last.
    Whole,
    /// It had time for that after the client's last word, and did not.
    Silent,
}

const SILENT: &str = "the pod came to no end after the client's";

/// Copies in both directions; either may end first (STM-33). Once the pod has said its last, the
/// client has a moment for what it was sending: it cannot know of that end before the pair's.
/// Once the client has said its last, the pod may go on as long as it has something to say.
async fn copy(socket: TcpStream, mut incoming: Incoming, outgoing: Outgoing) -> Result<End> {
    let (mut from_pod, mut to_pod) = socket.into_split();
    let (client_has_ended, answer_end) = (CancellationToken::new(), OnceLock::new());
    let up = async {
        let sent = loop {
            match incoming.next_all().await {
                pieces if pieces.is_empty() => break to_pod.shutdown().await,
                pieces => {
                    if let Err(error) = session::write_pieces(&mut to_pod, &pieces).await {
                        break Err(error);
                    }
                }
            }
        };
        client_has_ended.cancel();
        // A pod that does not read any more may still have something to say.
        match sent {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::NotConnected) => Ok(()),
            other => other,
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            if buffer.capacity() - buffer.len() < ROOM_BYTES {
                buffer.reserve(BUFFER_BYTES);
            }
            let late = async {
                client_has_ended.cancelled().await;
                let end = *answer_end.get_or_init(|| Instant::now() + ANSWER_LIMIT);
                tokio::time::sleep_until(end.min(Instant::now() + SILENCE_LIMIT)).await;
            };
            let read = tokio::select! {
                biased;
                () = late => return Ok::<_, std::io::Error>(End::Silent),
                read = from_pod.read_buf(&mut buffer) => read?,
            };
            if read == 0 || outgoing.send(buffer.split().freeze()).await.is_err() {
                drop(outgoing);
                return Ok(End::Whole);
            }
        }
    };
    let mut up = pin!(maybe_done(up));
    let mut down = pin!(down);
    let received = std::future::poll_fn(|cx| {
        let _ = up.as_mut().poll(cx);
        down.as_mut().poll(cx)
    });
    let end = received.await?;
    let _ = tokio::time::timeout(LAST_WORDS_LIMIT, up.as_mut()).await;
    up.take_output().unwrap_or(Ok(()))?;
    Ok(end)
}

/// Forwards the ports of the request over WebSocket channels: of the port at `n`, data are
/// on channel 2n and an error text on 2n + 1 (STM-34).
async fn channels<T>(
    pods: &Pods,
    pod: &str,
    ports: &[i32],
    io: T,
    protocol: ChannelProtocol,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ports: Vec<u16> = ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    if ports.is_empty() || ports.len() > WEBSOCKET_PORTS_MAX {
        return Err(invalid(format!("{} ports cannot be forwarded over WebSocket channels", ports.len())));
    }
    let numbers = (0u8..).step_by(2).take(ports.len());
    let wanted: Vec<(u8, Direction)> =
        numbers.clone().flat_map(|data| [(data, Direction::Both), (data + 1, Direction::Outgoing)]).collect();
    let mut all = websocket::serve_channels(io, protocol, &wanted, limits.websocket()).await;
    let handle = all.handle();
    info!(pod, "ports are forwarded");
    let mut running = JoinSet::new();
    for (data, port) in numbers.zip(ports) {
        let streams = (all.incoming(data), all.outgoing(data), all.outgoing(data + 1));
        let (Some(incoming), Some(outgoing), Some(error)) = streams else { continue };
        let (pods, pod) = (pods.clone(), pod.to_owned());
        running.spawn(async move {
            let number = Bytes::copy_from_slice(&port.to_le_bytes());
            if outgoing.send(number.clone()).await.is_err() || error.send(number).await.is_err() {
                return;
            }
            let copied = async { copy(pods.dial(&pod, port).await?, incoming, outgoing).await };
            let why = match copied.await {
                Ok(End::Whole) => return,
                // The channels of a port have no other end than a text.
                Ok(End::Silent) => deadline(SILENT),
                Err(why) => why,
            };
            debug!(%why, port, "a forwarded connection");
            let _ = error.send(failure(port, &pod, &why).into()).await;
        });
    }
    let gone = handle.gone();
    let ended = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        () = gone.cancelled() => {}
        () = stop.cancelled() => {}
    }
    handle.close().await;
    Ok(())
}

/// What a client's user reads.
fn failure(port: u16, pod: &str, why: &Error) -> String {
    format!("error forwarding port {port} to pod {pod}: {why}")
}
