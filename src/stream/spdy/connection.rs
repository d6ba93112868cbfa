//! The task of a connection.
//!
//! One task reads, writes and owns all state; no frame takes a lock or changes threads. Each
//! turn it looks at what woke it, writes a batch and reads a buffer.
//!
//! - Reading: data goes as slices of the read buffer to the queue of its stream. What has no
//!   room there waits, up to a bound ([`Limits::buffered_bytes_max`]); then nothing is read
//!   until there is room, since clients built on moby/spdystream know no windows and TCP is
//!   the only brake. A stream that keeps others waiting like this is reset after a while
//!   ([`Limits::stuck`]).
//! - Writing: streams that have something stand in line; each gives a share per turn.
//! - Windows: those of the client bind us once it has told one. Ours are told with the first
//!   reply, not before: some clients lose what comes right behind the upgrade's answer.

mod receive;
mod send;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::batch::Batch;
use super::frame::{self, Decoder, Fault, GoAway};
use super::header::{Packer, Unpacker};
use super::open::Open;
use super::{Connection, Limits, Stream};
use crate::stream::handle::{self, Held};
use crate::stream::ready::Ready;

/// A client that is left before it has got everything, and does not take the goodbye for this
/// long, is given up.
const CLOSE_IDLE: Duration = Duration::from_secs(30);

/// After the last byte the connection stays open for this long: closing it with data of the
/// client unread would make the kernel throw away what the client has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// What a client sent before it went still finds its reader, if that takes it in this time.
const DELIVER: Duration = Duration::from_secs(30);

/// Serves a client on a connection that was upgraded to SPDY/3.1. The connection has a task
/// of its own, which ends with it; it ends also when all its handles are dropped.
pub fn serve<T>(io: T, limits: Limits) -> Connection
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (handle, held) = handle::handle();
    let (accepted, streams) = mpsc::channel(limits.streams_max.max(1));
    tokio::spawn(Task::new(io, limits, held, accepted).run());
    Connection { streams, handle }
}

struct Task<T> {
    io: T,
    limits: Limits,
    held: Held,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    phase: Phase,
    /// When a byte has moved last, and the look at it.
    active: Instant,
    idle: Pin<Box<Sleep>>,

    streams: HashMap<u32, Open>,
    last_id: u32,
    /// None when no more streams are taken.
    accepted: Option<mpsc::Sender<Stream>>,
    /// Streams that somebody here wants to reset.
    resets: mpsc::UnboundedReceiver<u32>,
    resets_sender: mpsc::UnboundedSender<u32>,
    ready: Ready,
    noted: Vec<u32>,

    bytes: BytesMut,
    read_bytes: usize,
    decoder: Decoder,
    unpacker: Unpacker,
    /// The stream that has no room for more, since when, and the look at that.
    stalled: Option<(u32, Instant)>,
    stuck: Option<Pin<Box<Sleep>>>,
    /// What was sent before the goodbye is to be written as well.
    is_owed: bool,
    client_has_ended: bool,
    client_goes: bool,
    /// Our windows are told.
    has_greeted: bool,

    line: VecDeque<u32>,
    control: Vec<u8>,
    packer: Packer,
    batch: Batch,
    is_flushed: bool,
    /// The client's window for a new stream; none until it has told any.
    window: Option<i64>,
    /// The client's window for all streams, and what of it is used.
    connection_window: Option<i64>,
    used: i64,
    credit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// What was sent is being written; nothing new is taken.
    Closing,
    /// Only GOAWAY and the flush are left.
    Leaving,
}

/// Why the task stops at once.
enum End {
    /// The client is gone.
    Gone,
    Fault(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Task<T> {
    fn new(io: T, limits: Limits, held: Held, accepted: mpsc::Sender<Stream>) -> Self {
        let (resets_sender, resets) = mpsc::unbounded_channel();
        Self {
            batch: Batch::new(!io.is_write_vectored()),
            io,
            closing: Box::pin(held.closing.clone().cancelled_owned()),
            held,
            phase: Phase::Open,
            active: Instant::now(),
            idle: Box::pin(sleep(limits.idle)),
            streams: HashMap::new(),
            last_id: 0,
            accepted: Some(accepted),
            resets,
            resets_sender,
            ready: Ready::default(),
            noted: Vec::new(),
            bytes: BytesMut::new(),
            read_bytes: receive::READ_BYTES_MIN,
            decoder: Decoder::default(),
            unpacker: Unpacker::new(limits.header_bytes_max),
            limits,
            stalled: None,
            stuck: None,
            is_owed: false,
            client_has_ended: false,
            client_goes: false,
            has_greeted: false,
            line: VecDeque::new(),
            control: Vec::new(),
            packer: Packer::default(),
            is_flushed: true,
            window: None,
            connection_window: None,
            used: 0,
            credit: 0,
        }
    }

    async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        self.accepted = None;
        self.held.gone.cancel();
        self.streams.retain(|_, stream| {
            stream.drain = None;
            stream.end();
            !stream.is_over()
        });
        if self.phase == Phase::Leaving && !self.client_has_ended {
            let _ = timeout(LINGER, self.linger()).await;
        }
        let Self { io, mut streams, ready, .. } = self;
        drop(io);
        let deliver = std::future::poll_fn(|cx| {
            ready.register(cx);
            streams.retain(|_, stream| {
                stream.signal.clear();
                stream.inlet.poll(&mut stream.signal.context());
                !stream.is_over()
            });
            if streams.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = timeout(DELIVER, deliver).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ready.register(cx);
        loop {
            match self.turn(cx) {
                Ok(true) => {}
                // What was read may want an answer.
                Ok(false) if self.batch.is_empty() && !(self.control.is_empty() && self.line.is_empty()) => {}
                Ok(false) => break,
                Err(End::Gone) => return Poll::Ready(()),
                Err(End::Fault(fault)) => {
                    tracing::debug!(what = fault.what, "a SPDY client broke the protocol");
                    self.leave(fault.goaway);
                    self.held.gone.cancel();
                }
            }
        }
        let is_written = self.batch.is_empty() && self.control.is_empty() && self.is_flushed;
        if self.phase == Phase::Leaving && is_written && Pin::new(&mut self.io).poll_shutdown(cx).is_ready() {
            return Poll::Ready(());
        }
        self.look_at_stuck(cx);
        if self.look_at_idle(cx).is_pending() {
            return Poll::Pending;
        }
        if self.phase != Phase::Open {
            return Poll::Ready(());
        }
        self.leave(GoAway::Ok);
        self.held.gone.cancel();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One look at everything. Tells whether another one is worth it.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.phase == Phase::Open {
            let is_done = self.client_goes && self.streams.is_empty();
            if is_done || self.closing.as_mut().poll(cx).is_ready() {
                self.close();
            }
        }
        while let Poll::Ready(Some(id)) = self.resets.poll_recv(cx) {
            self.reset(id);
        }
        self.look_at_streams();
        let wrote = self.write(cx)?;
        if self.phase == Phase::Closing && self.streams.values().all(|stream| stream.drain.is_none()) {
            self.is_owed = true;
            self.leave(GoAway::Ok);
            return Ok(true);
        }
        let read = self.read(cx)?;
        Ok(wrote || read)
    }

    /// Everything that was sent is to be written, and then GOAWAY.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.accepted = None;
        self.stalled = None;
        for stream in self.streams.values_mut() {
            stream.inlet.discard();
            if let Some(drain) = &mut stream.drain {
                drain.close();
            }
            stream.signal.note();
        }
        self.stay_a_moment();
    }

    /// GOAWAY is to be written, and nothing else any more.
    fn leave(&mut self, status: GoAway) {
        if self.phase == Phase::Leaving {
            return;
        }
        self.phase = Phase::Leaving;
        self.accepted = None;
        self.stalled = None;
        self.bytes = BytesMut::new();
        // What waits for its reader is handed over in the end.
        self.streams.retain(|_, stream| {
            stream.drain = None;
            stream.pending = None;
            stream.end();
            !stream.is_over()
        });
        frame::goaway(&mut self.control, self.last_id, status);
        self.stay_a_moment();
    }

    fn stay_a_moment(&mut self) {
        self.active = Instant::now();
        let end = self.active + self.idle_max();
        self.idle.as_mut().reset(end);
    }

    fn idle_max(&self) -> Duration {
        match self.phase {
            Phase::Leaving if !self.is_owed => CLOSE_IDLE.min(self.limits.idle),
            // It may have stopped to read for a while, and is to get the rest.
            _ => self.limits.idle,
        }
    }

    /// Ready when nothing has moved for too long. The timer is looked at when it goes off
    /// only, not with each frame.
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

    /// Resets the stream that has taken nothing for too long while others wait behind it.
    fn look_at_stuck(&mut self, cx: &mut Context<'_>) {
        let (Some(stuck), Some((id, since))) = (self.limits.stuck, self.stalled) else { return };
        let look = self.stuck.get_or_insert_with(|| Box::pin(sleep_until(since + stuck)));
        while look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if since + stuck > now {
                look.as_mut().reset(since + stuck);
                continue;
            }
            let others_wait =
                self.streams.iter().any(|(other, stream)| *other != id && stream.inlet.is_open());
            if !others_wait {
                look.as_mut().reset(now + stuck);
                continue;
            }
            tracing::debug!(id, "a stream that nobody reads is reset");
            self.stuck = None;
            self.give_up(id, frame::Status::FlowControl);
            cx.waker().wake_by_ref();
            return;
        }
    }

    async fn linger(&mut self) {
        let mut scratch = [0; 4096];
        while self.io.read(&mut scratch).await.is_ok_and(|len| len > 0) {}
    }
}
