//! The task of a connection with channels.
//!
//! Like that of a SPDY connection it is one task that owns all state. A channel has no window
//! and cannot be reset: what nobody takes here waits up to a bound, then nothing is read.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{ChannelProtocol, Channels, Direction, Limits, config};
use crate::io::session::{self, Drain};
use crate::stream::handle::{self, Held};
use crate::stream::inlet::Inlet;
use crate::stream::ready::{Ready, Signal};

/// The channel whose messages tell that another one is closed (v5).
const CLOSE_SIGNAL: u8 = 255;

/// A client that is left before it has got everything, and does not take the goodbye for this
/// long, is given up.
const CLOSE_IDLE: Duration = Duration::from_secs(30);

/// How long the client's own goodbye is waited for.
const LINGER: Duration = Duration::from_secs(5);

/// What a client sent before it went still finds its reader, if that takes it in this time.
const DELIVER: Duration = Duration::from_secs(30);

/// Serves a client on a connection that was upgraded to WebSocket, with these channels. The
/// first message can tell the client that they are there (STM-24). The connection has a task of
/// its own, which ends with it; it ends also when all its handles are dropped.
pub async fn serve_channels<T>(
    io: T,
    protocol: ChannelProtocol,
    channels: &[(u8, Direction)],
    limits: Limits,
) -> Channels
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (handle, held) = handle::handle();
    let socket =
        WebSocketStream::from_raw_socket(io, Role::Server, Some(config(limits.message_bytes_max))).await;
    let mut given = Channels { incoming: BTreeMap::new(), outgoing: BTreeMap::new(), handle };
    let ready = Ready::default();
    let mut open = BTreeMap::new();
    for (number, direction) in channels {
        let signal = ready.signal(u32::from(*number));
        // The queues want to be looked at once to be heard of.
        signal.note();
        let inlet = (*direction != Direction::Outgoing).then(|| {
            let (feed, incoming) = session::incoming();
            given.incoming.insert(*number, incoming);
            Inlet::new(feed)
        });
        let drain = (*direction != Direction::Incoming).then(|| {
            let (outgoing, drain) = session::outgoing();
            given.outgoing.insert(*number, outgoing);
            drain
        });
        open.insert(*number, Channel { inlet, drain, signal });
    }
    let mut task = Task::new(socket, protocol, limits, held, ready, open);
    task.first =
        given.outgoing.keys().next().filter(|_| protocol.greets).map(|number| protocol.message(*number, &[]));
    tokio::spawn(task.run());
    given
}

impl ChannelProtocol {
    /// A message of a channel.
    fn message(self, number: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0'.wrapping_add(number)));
            STANDARD.encode_string(data, &mut text);
            Message::text(text)
        } else {
            let mut message = BytesMut::with_capacity(1 + data.len());
            message.put_u8(number);
            message.extend_from_slice(data);
            Message::Binary(message.freeze())
        }
    }

    /// The channel and the data of a message; none when it has none that we understand.
    fn parse(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        let data = message.split_off(message.len().min(1));
        let number = *message.first()?;
        if self.base64 {
            Some((number.checked_sub(b'0')?, STANDARD.decode(&data).ok()?.into()))
        } else {
            Some((number, data))
        }
    }
}

struct Channel {
    inlet: Option<Inlet>,
    drain: Option<Drain>,
    signal: Signal,
}

struct Task<T> {
    socket: WebSocketStream<T>,
    protocol: ChannelProtocol,
    limits: Limits,
    held: Held,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    phase: Phase,
    active: Instant,
    idle: Pin<Box<Sleep>>,
    channels: BTreeMap<u8, Channel>,
    ready: Ready,
    noted: Vec<u32>,
    first: Option<Message>,
    is_flushed: bool,
    /// The channel that has no room for more.
    stalled: Option<u8>,
    stuck: Option<Pin<Box<Sleep>>>,
    /// What was sent before the goodbye is to be written as well.
    is_owed: bool,
    client_has_ended: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// What was sent is being written; nothing new is taken.
    Closing,
    /// Only the close frame is left.
    Leaving(Option<CloseFrame>),
    /// It is on the way.
    Flushing,
}

/// The connection is over.
struct Over;

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Task<T> {
    fn new(
        socket: WebSocketStream<T>,
        protocol: ChannelProtocol,
        limits: Limits,
        held: Held,
        ready: Ready,
        channels: BTreeMap<u8, Channel>,
    ) -> Self {
        Self {
            socket,
            protocol,
            closing: Box::pin(held.closing.clone().cancelled_owned()),
            held,
            phase: Phase::Open,
            active: Instant::now(),
            idle: Box::pin(sleep(limits.idle)),
            limits,
            channels,
            ready,
            noted: Vec::new(),
            first: None,
            is_flushed: true,
            stalled: None,
            stuck: None,
            is_owed: false,
            client_has_ended: false,
        }
    }

    async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        for channel in self.channels.values_mut() {
            channel.drain = None;
            if let Some(inlet) = &mut channel.inlet {
                inlet.end();
            }
        }
        self.held.gone.cancel();
        let Self { socket, mut channels, ready, phase, .. } = self;
        if phase == Phase::Flushing {
            let _ = timeout(LINGER, linger(socket)).await;
        } else {
            drop(socket);
        }
        let deliver = std::future::poll_fn(|cx| {
            ready.register(cx);
            channels.retain(|_, channel| {
                channel.signal.clear();
                channel.inlet.as_mut().is_some_and(|inlet| {
                    inlet.poll(&mut channel.signal.context());
                    inlet.waiting() > 0
                })
            });
            if channels.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = timeout(DELIVER, deliver).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ready.register(cx);
        loop {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Over) => return Poll::Ready(()),
            }
        }
        if self.look_at_stuck(cx).is_ready() {
            self.leave(CloseCode::Policy, "a channel that is not read holds up the others");
            cx.waker().wake_by_ref();
        }
        if self.look_at_idle(cx).is_pending() {
            return Poll::Pending;
        }
        if self.phase != Phase::Open {
            return Poll::Ready(());
        }
        self.leave(CloseCode::Away, "idle");
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One look at everything. Tells whether another one is worth it.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        if self.phase == Phase::Open && self.closing.as_mut().poll(cx).is_ready() {
            self.close();
        }
        let mut noted = std::mem::take(&mut self.noted);
        self.ready.take(&mut noted);
        let wrote = self.write(&mut noted, cx);
        self.noted = noted;
        let wrote = wrote?;
        let read = self.read(cx)?;
        Ok(wrote || read)
    }

    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.stalled = None;
        for channel in self.channels.values_mut() {
            if let Some(inlet) = &mut channel.inlet {
                inlet.discard();
            }
            if let Some(drain) = &mut channel.drain {
                drain.close();
            }
            channel.signal.note();
        }
        self.stay_a_moment();
    }

    fn leave(&mut self, code: CloseCode, reason: &'static str) {
        if matches!(self.phase, Phase::Open | Phase::Closing) {
            self.phase = Phase::Leaving(Some(CloseFrame { code, reason: reason.into() }));
            self.stalled = None;
            for channel in self.channels.values_mut() {
                channel.drain = None;
            }
            self.stay_a_moment();
        }
    }

    fn stay_a_moment(&mut self) {
        self.active = Instant::now();
        let end = self.active + self.idle_max();
        self.idle.as_mut().reset(end);
    }

    fn idle_max(&self) -> Duration {
        match self.phase {
            Phase::Leaving(_) | Phase::Flushing if !self.is_owed => CLOSE_IDLE.min(self.limits.idle),
            // It may have stopped to read for a while, and is to get the rest.
            _ => self.limits.idle,
        }
    }

    /// Ready when nothing has moved for too long.
    fn look_at_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let end = self.active + self.idle_max();
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Ready when a channel has taken nothing for too long while others wait behind it.
    fn look_at_stuck(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(stuck), Some(number)) = (self.limits.stuck, self.stalled) else {
            self.stuck = None;
            return Poll::Pending;
        };
        let others_wait = self
            .channels
            .iter()
            .any(|(other, channel)| *other != number && channel.inlet.as_ref().is_some_and(Inlet::is_open));
        if !others_wait {
            return Poll::Pending;
        }
        self.stuck.get_or_insert_with(|| Box::pin(sleep(stuck))).as_mut().poll(cx)
    }

    /// Writes what the channels that were noted have. Tells whether there was anything.
    fn write(&mut self, noted: &mut Vec<u32>, cx: &mut Context<'_>) -> Result<bool, Over> {
        let mut has_written = false;
        while self.is_ready(cx)? {
            if let Some(message) = self.first.take() {
                self.send(message)?;
                has_written = true;
                continue;
            }
            let Some(number) = noted.pop() else { break };
            has_written |= self.write_channel(number as u8, cx)?;
        }
        // Without room for messages the channels still want to be read.
        for number in &*noted {
            self.look_at_inlet(*number as u8);
        }
        if self.phase == Phase::Closing
            && noted.is_empty()
            && self.channels.values().all(|channel| channel.drain.is_none())
        {
            self.is_owed = true;
            self.phase = Phase::Leaving(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
        }
        if matches!(self.phase, Phase::Leaving(_))
            && self.is_ready(cx)?
            && let Phase::Leaving(frame) = std::mem::replace(&mut self.phase, Phase::Flushing)
        {
            // A client that has closed itself needs no close of ours.
            let _ = self.send(Message::Close(frame));
        }
        if !self.is_flushed || self.phase == Phase::Flushing {
            match Pin::new(&mut self.socket).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.is_flushed = true;
                    if self.phase == Phase::Flushing {
                        return Err(Over);
                    }
                    self.active = Instant::now();
                }
                Poll::Ready(Err(_)) => return Err(Over),
            }
        }
        Ok(has_written)
    }

    fn is_ready(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        match Pin::new(&mut self.socket).poll_ready(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(_)) => Err(Over),
        }
    }

    fn send(&mut self, message: Message) -> Result<(), Over> {
        self.is_flushed = false;
        self.active = Instant::now();
        Pin::new(&mut self.socket).start_send(message).map_err(|_| Over)
    }

    /// Writes what a channel has.
    fn write_channel(&mut self, number: u8, cx: &mut Context<'_>) -> Result<bool, Over> {
        self.look_at_inlet(number);
        let mut has_written = false;
        loop {
            if has_written && !self.is_ready(cx)? {
                // It is to be looked at again.
                if let Some(channel) = self.channels.get(&number) {
                    channel.signal.note();
                }
                return Ok(true);
            }
            let Some(channel) = self.channels.get_mut(&number) else { return Ok(has_written) };
            let Some(drain) = &mut channel.drain else { return Ok(has_written) };
            match drain.poll_next(&mut channel.signal.context()) {
                Poll::Pending => return Ok(has_written),
                Poll::Ready(None) => channel.drain = None,
                Poll::Ready(Some(piece)) => {
                    let message = self.protocol.message(number, &piece);
                    self.send(message)?;
                    has_written = true;
                }
            }
        }
    }

    fn look_at_inlet(&mut self, number: u8) {
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.signal.clear();
            if let Some(inlet) = &mut channel.inlet
                && inlet.waiting() > 0
            {
                inlet.poll(&mut channel.signal.context());
            }
        }
    }

    /// Reads a message. Tells whether there was one.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        if let Some(number) = self.stalled {
            let inlet = self.channels.get(&number).and_then(|channel| channel.inlet.as_ref());
            if inlet.is_some_and(|inlet| inlet.held() > self.limits.buffered_bytes_max) {
                return Ok(false);
            }
            self.stalled = None;
            self.stuck = None;
        }
        if self.client_has_ended {
            return Ok(false);
        }
        let message = match Pin::new(&mut self.socket).poll_next(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Some(Ok(message))) => message,
            Poll::Ready(Some(Err(error))) => return self.broken(&error),
            Poll::Ready(None) => return Err(Over),
        };
        if self.phase == Phase::Open {
            self.active = Instant::now();
        }
        match message {
            Message::Binary(data) => self.received(data),
            Message::Text(text) => self.received(text.into()),
            Message::Close(_) => {
                // The answer is written by what reads; what waits here is delivered in the end.
                self.is_flushed = false;
                for channel in self.channels.values_mut() {
                    channel.drain = None;
                }
            }
            // The answer to a ping is written by what reads, too.
            _ => self.is_flushed = false,
        }
        Ok(true)
    }

    /// A client that breaks the protocol is told so; one that is gone is not.
    fn broken(&mut self, error: &Error) -> Result<bool, Over> {
        self.client_has_ended = true;
        let (code, reason) = match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => (CloseCode::Size, "message too long"),
            Error::Utf8(_) => (CloseCode::Invalid, "not UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return Err(Over),
            Error::Protocol(_) | Error::Capacity(_) => (CloseCode::Protocol, "protocol error"),
            _ => return Err(Over),
        };
        tracing::debug!(%error, "a WebSocket client broke the protocol");
        self.leave(code, reason);
        Ok(true)
    }

    /// A message with data. What is for no channel that was asked for is passed over (STM-25).
    fn received(&mut self, message: Bytes) {
        let Some((number, data)) = self.protocol.parse(message) else { return };
        if self.protocol.close_signal && number == CLOSE_SIGNAL {
            let closed = data.first().and_then(|number| self.channels.get_mut(number));
            if let Some(inlet) = closed.and_then(|channel| channel.inlet.as_mut()) {
                inlet.end();
            }
            return;
        }
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let Some(inlet) = &mut channel.inlet else { return };
        inlet.push(data);
        if inlet.waiting() > 0 {
            channel.signal.note();
        }
        if inlet.held() > self.limits.buffered_bytes_max {
            self.stalled = Some(number);
        }
    }
}

/// Reads until the client has closed, so that nothing that it has not read yet is thrown away.
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<T>) {
    let mut io = socket.into_inner();
    let mut scratch = [0; 4096];
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut io).await;
    while io.read(&mut scratch).await.is_ok_and(|len| len > 0) {}
}
