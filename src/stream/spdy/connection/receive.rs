//! What a client sends.

use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::{End, Phase, Task};
use crate::io::session;
use crate::stream::spdy::frame::{self, Fault, Frame, Status, WINDOW, WINDOW_MAX};
use crate::stream::spdy::header::{Bad, Headers};
use crate::stream::spdy::open::Open;
use crate::stream::spdy::{Control, Stream};

/// What is read at once from a client that sends little.
pub(super) const READ_BYTES_MIN: usize = 8 << 10;

/// What is read at once from one that sends much.
const READ_BYTES_MAX: usize = 128 << 10;

/// While this many bytes of answers wait to be written, no more questions are read.
const ANSWERS_BYTES_MAX: usize = 64 << 10;

/// The window that all streams of the client have together. It is as good as none: each
/// stream has its own bound.
const CONNECTION_WINDOW: u32 = 1 << 30;

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Task<T> {
    /// Reads once and handles what is there. Tells whether there was anything.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.client_has_ended || self.is_stalled() || self.control.len() > ANSWERS_BYTES_MAX {
            return Ok(false);
        }
        // What was left when a stream had no room.
        self.handle_frames()?;
        if self.stalled.is_some() {
            return Ok(true);
        }
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare < self.read_bytes / 4 {
            self.bytes.reserve(self.read_bytes);
        }
        let read = match pin!(self.io.read_buf(&mut self.bytes)).poll(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(read) => read,
        };
        match read {
            Ok(0) if self.phase != Phase::Open => {
                self.client_has_ended = true;
                return Ok(false);
            }
            Ok(0) | Err(_) => return Err(End::Gone),
            Ok(_) => {}
        }
        if self.bytes.len() == self.bytes.capacity() {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        match self.phase {
            Phase::Open => self.active = Instant::now(),
            Phase::Closing => {}
            Phase::Leaving => {
                self.bytes.clear();
                return Ok(true);
            }
        }
        self.handle_frames()?;
        Ok(true)
    }

    fn is_stalled(&mut self) -> bool {
        let Some((id, _)) = self.stalled else { return false };
        let held = self.streams.get(&id).map_or(0, |stream| stream.inlet.held());
        if held <= self.limits.buffered_bytes_max {
            let fullest = self.fullest();
            if fullest != Some(id) {
                self.stalled = fullest.map(|id| (id, Instant::now()));
            }
        }
        self.stalled.is_some()
    }

    /// The stream in which most waits, if what waits in all together is too much.
    fn fullest(&self) -> Option<u32> {
        // A few streams cannot hold so much: that is known without a look at them.
        let held_max = self.limits.all_buffered_bytes_max;
        if self.streams.len() <= held_max / (2 * self.limits.buffered_bytes_max).max(1) {
            return None;
        }
        let held = self.streams.iter().map(|(id, stream)| (stream.inlet.held(), *id));
        let is_too_much = held.clone().map(|(held, _)| held).sum::<usize>() > held_max;
        held.max().filter(|_| is_too_much).map(|(_, id)| id)
    }

    fn handle_frames(&mut self) -> Result<(), Fault> {
        while self.stalled.is_none()
            && let Some(frame) = self.decoder.next(&mut self.bytes)?
        {
            self.handle(frame)?;
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame) -> Result<(), Fault> {
        match frame {
            Frame::Data { id, piece, fin } => self.data(id, piece, fin),
            Frame::Open { id, fin, unidirectional, block } => {
                let headers = self.unpacker.headers(&block);
                return self.opened(id, fin, unidirectional, headers);
            }
            Frame::Headers { id, fin, block } => {
                self.unpack(&block)?;
                if fin {
                    self.ended(id);
                }
            }
            // We open no streams, so there is nothing to reply to.
            Frame::Reply { block, .. } => self.unpack(&block)?,
            Frame::Reset { id } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.reset_by_client();
                    self.reap(id);
                }
            }
            Frame::Settings { window } => {
                if let Some(window) = window {
                    self.window = Some(i64::from(window).min(WINDOW_MAX));
                    self.line_up_all();
                }
            }
            // Our own would have even ids.
            Frame::Ping { id } if id % 2 == 1 => frame::ping(&mut self.control, id),
            Frame::Ping { .. } => {}
            Frame::GoAway => self.client_goes = true,
            Frame::Window { id: 0, delta } => {
                let window = *self.connection_window.get_or_insert(i64::from(WINDOW));
                self.used -= i64::from(delta);
                if window - self.used > WINDOW_MAX {
                    return Err(Fault::protocol("a window that is too large"));
                }
                self.line_up_all();
            }
            Frame::Window { id, delta } => self.window_of(id, delta),
        }
        Ok(())
    }

    /// Keeps the zlib stream in step.
    fn unpack(&mut self, block: &[u8]) -> Result<(), Fault> {
        match self.unpacker.headers(block) {
            Err(Bad::Connection(fault)) => Err(fault),
            Ok(_) | Err(Bad::Stream) => Ok(()),
        }
    }

    fn data(&mut self, id: u32, piece: Bytes, fin: bool) {
        let len = piece.len();
        let Some(stream) = self.streams.get_mut(&id) else {
            // Of a stream that is over there may be data on the way.
            if id > self.last_id || id.is_multiple_of(2) {
                frame::reset(&mut self.control, id, Status::InvalidStream);
            }
            return self.credit_connection(len);
        };
        let was_waiting = stream.inlet.waiting() > 0;
        let taken = stream.inlet.push(piece);
        if fin {
            stream.end();
        }
        let waiting = stream.inlet.waiting();
        if waiting > 0 && !was_waiting {
            stream.signal.note();
        }
        if stream.inlet.held() > self.limits.buffered_bytes_max {
            self.stalled = Some((id, Instant::now()));
        } else if waiting > 0
            && let Some(fullest) = self.fullest()
        {
            self.stalled = Some((fullest, Instant::now()));
        }
        self.credit(id, taken);
        if fin {
            self.reap(id);
        }
    }

    fn ended(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.end();
            self.reap(id);
        }
    }

    fn opened(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Result<Headers, Bad>,
    ) -> Result<(), Fault> {
        if id.is_multiple_of(2) {
            return Err(Fault::protocol("a stream with an even id"));
        }
        if id < self.last_id {
            return Err(Fault::protocol("a stream with an id that is lower than one before"));
        }
        let is_new = id > self.last_id;
        self.last_id = id;
        let headers = match headers {
            Err(Bad::Connection(fault)) => return Err(fault),
            Ok(headers) if is_new => headers,
            Ok(_) | Err(Bad::Stream) => {
                self.give_up(id, Status::Protocol);
                return Ok(());
            }
        };
        let room = self.streams.len() < self.limits.streams_max;
        let Some(accepted) = self.accepted.as_ref().filter(|_| room) else {
            frame::reset(&mut self.control, id, Status::Refused);
            return Ok(());
        };
        let (feed, incoming) = session::incoming();
        let (outgoing, drain) = session::outgoing();
        let over = self.held.gone.child_token();
        let control = Control { id, resets: self.resets_sender.downgrade(), over: over.clone() };
        if accepted.try_send(Stream { id, headers, incoming, outgoing, control }).is_err() {
            frame::reset(&mut self.control, id, Status::Refused);
            return Ok(());
        }
        let drain = Some(drain).filter(|_| !unidirectional);
        let mut stream = Open::new(feed, drain, self.ready.signal(id), over);
        // The queue wants to be looked at once to be heard of.
        stream.signal.note();
        if fin {
            stream.end();
        }
        self.streams.insert(id, stream);
        if !unidirectional {
            let block_len = self.packer.no_headers_len();
            frame::reply(&mut self.control, id, block_len);
            self.packer.no_headers(&mut self.control);
        }
        if !std::mem::replace(&mut self.has_greeted, true) {
            let window = self.stream_window();
            frame::settings(&mut self.control, window);
            frame::window(&mut self.control, 0, CONNECTION_WINDOW - WINDOW);
        }
        self.reap(id);
        Ok(())
    }

    fn window_of(&mut self, id: u32, delta: u32) {
        let is_first = self.window.is_none();
        let window = *self.window.get_or_insert(i64::from(WINDOW));
        if is_first {
            self.line_up_all();
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.used -= i64::from(delta);
        if window - stream.used > WINDOW_MAX {
            self.give_up(id, Status::FlowControl);
        } else {
            self.line_up(id);
        }
    }

    /// The window of the client's streams: what waits here at most.
    fn stream_window(&self) -> u32 {
        u32::try_from(self.limits.buffered_bytes_max).unwrap_or(u32::MAX).clamp(WINDOW, CONNECTION_WINDOW)
    }

    /// So many bytes of a stream have gone on.
    pub(super) fn credit(&mut self, id: u32, len: usize) {
        let threshold = self.stream_window() / 2;
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.has_ended
        {
            stream.credit += len;
            if stream.credit >= threshold as usize {
                frame::window(&mut self.control, id, stream.credit as u32);
                stream.credit = 0;
            }
        }
        self.credit_connection(len);
    }

    fn credit_connection(&mut self, len: usize) {
        self.credit += len;
        if self.credit >= CONNECTION_WINDOW as usize / 4 {
            frame::window(&mut self.control, 0, self.credit as u32);
            self.credit = 0;
        }
    }
}
