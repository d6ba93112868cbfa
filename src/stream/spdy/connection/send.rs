//! What a client gets.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{End, Task};
use crate::stream::spdy::frame::{self, Status};

/// The data of a frame. Clients make a buffer of its size for each frame.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// What a stream gives before it is the next one's turn.
const SHARE_BYTES: usize = 256 << 10;

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Task<T> {
    /// Looks at the streams whose queues have woken the task.
    pub(super) fn look_at_streams(&mut self) {
        let mut noted = std::mem::take(&mut self.noted);
        self.ready.take(&mut noted);
        for id in noted.drain(..) {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.signal.clear();
            if stream.inlet.waiting() > 0 {
                let went = stream.inlet.poll(&mut stream.signal.context());
                self.credit(id, went);
                if self.reap(id) {
                    continue;
                }
            }
            self.line_up(id);
        }
        self.noted = noted;
    }

    /// Writes a batch. Tells whether anything was written.
    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.batch.is_empty() {
            self.fill();
        }
        let mut has_written = false;
        while !self.batch.is_empty() {
            match self.batch.poll_write(&mut self.io, cx) {
                Poll::Pending => return Ok(has_written),
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(_)) => {}
            }
            has_written = true;
            self.is_flushed = false;
            self.active = Instant::now();
        }
        if !has_written && !self.is_flushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.is_flushed = true,
                Poll::Ready(Err(_)) => return Err(End::Gone),
            }
        }
        Ok(has_written)
    }

    fn fill(&mut self) {
        if !self.control.is_empty() {
            let control = &mut self.control;
            self.batch.text(|text| text.append(control));
        }
        while !self.batch.is_full()
            && let Some(id) = self.line.pop_front()
        {
            self.fill_from(id);
        }
    }

    /// Takes a share of what a stream has.
    fn fill_from(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.in_line = false;
        let mut share = SHARE_BYTES;
        loop {
            if share == 0 || self.batch.is_full() {
                return self.line_up(id);
            }
            let Some(drain) = &mut stream.drain else { return };
            let mut piece = match stream.pending.take() {
                Some(piece) => piece,
                None => match drain.poll_next(&mut stream.signal.context()) {
                    Poll::Ready(Some(piece)) => piece,
                    Poll::Pending => return,
                    Poll::Ready(None) if stream.is_resetting => return self.give_up(id, Status::Cancel),
                    Poll::Ready(None) => {
                        stream.drain = None;
                        self.batch.text(|text| frame::data(text, id, 0, true));
                        self.reap(id);
                        return;
                    }
                },
            };
            let room = |window: Option<i64>, used: i64| {
                window.map_or(usize::MAX, |window| usize::try_from(window - used).unwrap_or(0))
            };
            let window = room(self.window, stream.used).min(room(self.connection_window, self.used));
            if window == 0 {
                stream.pending = Some(piece);
                if stream.is_resetting {
                    self.give_up(id, Status::Cancel);
                }
                return;
            }
            let len = piece.len().min(FRAME_BYTES_MAX).min(window).min(share);
            let rest = piece.split_off(len);
            stream.pending = Some(rest).filter(|rest| !rest.is_empty());
            stream.used += len as i64;
            self.used += len as i64;
            share -= len;
            self.batch.text(|text| frame::data(text, id, len, false));
            self.batch.data(piece);
        }
    }

    /// Puts a stream in line for the writer.
    pub(super) fn line_up(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.in_line, true)
        {
            self.line.push_back(id);
        }
    }

    /// Puts all streams in line: a window has grown that may have held them back.
    pub(super) fn line_up_all(&mut self) {
        for (id, stream) in &mut self.streams {
            if !std::mem::replace(&mut stream.in_line, true) {
                self.line.push_back(*id);
            }
        }
    }

    /// Somebody here wants to reset a stream.
    pub(super) fn reset(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.over.cancel();
        let discarded = stream.inlet.discard();
        stream.is_resetting = true;
        let is_sent = match &mut stream.drain {
            Some(drain) => {
                drain.close();
                false
            }
            None => true,
        };
        self.credit(id, discarded);
        if is_sent {
            self.give_up(id, Status::Cancel);
        } else {
            self.line_up(id);
        }
    }

    /// Ends a stream at once, and tells the client.
    pub(super) fn give_up(&mut self, id: u32, status: Status) {
        if let Some(mut stream) = self.streams.remove(&id) {
            stream.over.cancel();
            let discarded = stream.inlet.discard();
            self.credit(id, discarded);
        }
        // Behind what is in the batch already.
        frame::reset(&mut self.control, id, status);
    }

    /// Forgets a stream that has nothing left to do. Tells whether it had.
    pub(super) fn reap(&mut self, id: u32) -> bool {
        let is_over = self.streams.get(&id).is_some_and(super::Open::is_over);
        if is_over {
            self.streams.remove(&id);
        }
        is_over
    }
}
