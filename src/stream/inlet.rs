//! The way of a stream's data from the wire to who reads it here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::io::session::{Feed, Gone, Offered};

/// Pieces below this size are copied: a slice keeps the whole buffer alive that it was read
/// into, and who is not read could hold a hundred of them with a hundred bytes.
const COPY_BELOW: usize = 16 << 10;

/// What a piece takes besides its bytes: who sends them one by one fills memory with that.
const PIECE_BYTES: usize = 64;

/// One stream's way in. What the reader's queue has no room for waits here; the owner looks
/// at [`Inlet::held`] and stops reading from the wire when it is too much.
pub(super) struct Inlet {
    /// None when the stream has ended or nobody reads it.
    feed: Option<Feed>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// The first piece on its way into the queue, and how long it is.
    handing: Option<(Handing, usize)>,
    /// No more will come.
    ended: bool,
}

type Handing = Pin<Box<dyn Future<Output = Result<(), Gone>> + Send>>;

impl Inlet {
    pub(super) fn new(feed: Feed) -> Self {
        Self { feed: Some(feed), waiting: VecDeque::new(), waiting_bytes: 0, handing: None, ended: false }
    }

    /// Takes a piece from the wire. Returns how many bytes need no room here any more:
    /// all of it, when it went on or nobody wants it, or nothing.
    pub(super) fn push(&mut self, piece: Bytes) -> usize {
        let Some(feed) = self.feed.as_ref().filter(|_| !self.ended) else { return piece.len() };
        let len = piece.len();
        if len == 0 {
            return 0;
        }
        let piece = if len < COPY_BELOW { Bytes::copy_from_slice(&piece) } else { piece };
        if self.waiting_bytes > 0 {
            self.wait(piece);
            return 0;
        }
        match feed.offer(piece) {
            Offered::Taken => len,
            Offered::Full(piece) => {
                self.wait(piece);
                0
            }
            Offered::Gone => {
                self.feed = None;
                len
            }
        }
    }

    /// The stream ends after what has been pushed.
    pub(super) fn end(&mut self) {
        self.ended = true;
        if self.waiting_bytes == 0 {
            self.feed = None;
        }
    }

    /// The stream ends now. Returns how many bytes nobody will get.
    pub(super) fn discard(&mut self) -> usize {
        self.ended = true;
        self.feed = None;
        self.handing = None;
        self.waiting.clear();
        std::mem::take(&mut self.waiting_bytes)
    }

    /// Hands on what waits, as far as there is room. Returns how many bytes went. When some
    /// are left, the context's waker is called when there is room.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> usize {
        let before = self.waiting_bytes;
        while let Some(feed) = self.feed.as_ref() {
            if self.handing.is_none() {
                let Some(piece) = self.waiting.pop_front() else { break };
                let (feed, len) = (feed.clone(), piece.len());
                self.handing = Some((Box::pin(async move { feed.send(piece).await }), len));
            }
            let Some((handing, len)) = self.handing.as_mut() else { break };
            match handing.as_mut().poll(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) => {
                    self.waiting_bytes -= *len;
                    self.handing = None;
                }
                Poll::Ready(Err(Gone)) => {
                    self.handing = None;
                    self.waiting.clear();
                    self.waiting_bytes = 0;
                    self.feed = None;
                }
            }
        }
        if self.ended && self.waiting_bytes == 0 {
            self.feed = None;
        }
        before - self.waiting_bytes
    }

    /// Bytes that wait for room.
    pub(super) fn waiting(&self) -> usize {
        self.waiting_bytes
    }

    /// Memory that what waits takes.
    pub(super) fn held(&self) -> usize {
        self.waiting_bytes + self.waiting.len() * PIECE_BYTES
    }

    /// More may come.
    pub(super) fn is_open(&self) -> bool {
        !self.ended
    }

    fn wait(&mut self, piece: Bytes) {
        self.waiting_bytes += piece.len();
        self.waiting.push_back(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::session;

    #[tokio::test]
    async fn what_waits_keeps_its_order_and_comes_before_the_end() {
        let (feed, mut incoming) = session::incoming();
        let mut inlet = Inlet::new(feed);
        let mut taken = 0;
        for number in 0..100_u8 {
            taken += inlet.push(Bytes::from(vec![number; 10]));
        }
        assert_eq!(taken + inlet.waiting(), 1000);
        assert!(inlet.waiting() > 0);
        inlet.end();
        let mut received = Vec::new();
        let reader = async {
            while let Some(piece) = incoming.next().await {
                received.push(piece[0]);
            }
        };
        let writer = std::future::poll_fn(|cx| {
            inlet.poll(cx);
            if inlet.waiting() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(reader, writer);
        assert_eq!(received, (0..100).collect::<Vec<u8>>());
    }

    #[tokio::test]
    async fn data_that_nobody_reads_is_passed_over() {
        let (feed, incoming) = session::incoming();
        let mut inlet = Inlet::new(feed);
        for _ in 0..20 {
            inlet.push(Bytes::from(vec![1; 20_000]));
        }
        drop(incoming);
        assert!(inlet.waiting() > 0);
        let went = std::future::poll_fn(|cx| Poll::Ready(inlet.poll(cx))).await;
        assert!(went > 0);
        assert_eq!(inlet.waiting(), 0);
        assert_eq!(inlet.push(Bytes::from_static(b"more")), 4);
    }

    /// Pieces without bytes once waited like others, without end.
    #[test]
    fn pieces_without_bytes_take_no_room_and_small_ones_more_than_their_bytes() {
        let (feed, _incoming) = session::incoming();
        let mut inlet = Inlet::new(feed);
        for _ in 0..100 {
            inlet.push(Bytes::from_static(b"x"));
        }
        let held = inlet.held();
        assert!(held >= inlet.waiting() * PIECE_BYTES);
        for _ in 0..1000 {
            inlet.push(Bytes::new());
        }
        assert_eq!((inlet.held(), inlet.waiting.len()), (held, inlet.waiting()));
    }

    #[test]
    fn small_pieces_do_not_keep_their_buffer() {
        let (feed, _incoming) = session::incoming();
        let mut inlet = Inlet::new(feed);
        let buffer = Bytes::from(vec![0; 100_000]);
        for at in 0..100 {
            inlet.push(buffer.slice(at..at + 100));
        }
        assert!(buffer.is_unique());
    }
}
