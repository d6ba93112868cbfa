//! A client's session with a process: what a streaming transport and the domain agree on.
//!
//! The transport (SPDY, WebSocket) makes a [`Session`] of the streams that its client has;
//! the domain copies between them and the process. Neither knows the other. All queues are
//! bounded: who does not read is waited for, and it is the domain that decides for how long.

use std::io::{ErrorKind, IoSlice};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pieces that wait in a queue between transport and domain.
const QUEUE_LEN: usize = 16;

/// The streams of a client, those that it asked for and the process has.
#[derive(Debug)]
pub struct Session {
    /// What the client types.
    pub stdin: Option<Incoming>,
    /// Standard output on the way to the client.
    pub stdout: Option<Outgoing>,
    /// Standard error on the way to the client; none with a terminal.
    pub stderr: Option<Outgoing>,
    /// Sizes of the client's terminal, the newest last.
    pub resizes: Option<mpsc::Receiver<TerminalSize>>,
    /// Cancelled when the client has gone, for whatever reason.
    pub gone: CancellationToken,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// A stream from the client.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Bytes>);

/// Where a transport puts what its client sends. Dropping it is the end of the stream.
#[derive(Clone, Debug)]
pub struct Feed(mpsc::Sender<Bytes>);

/// A stream to the client. Dropping it is the end of the stream (half-close).
#[derive(Debug)]
pub struct Outgoing(mpsc::Sender<Bytes>, CancellationToken);

/// Where a transport takes what its client shall get. It is dropped behind the last piece.
#[derive(Debug)]
pub struct Drain {
    queue: mpsc::Receiver<Bytes>,
    _written: DropGuard,
}

/// The other side of a stream has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What became of a piece that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in the queue.
    Taken,
    /// There is no room; here it is again.
    Full(Bytes),
    /// Nobody reads the stream any more.
    Gone,
}

/// A stream from the client, and where the transport feeds it.
#[must_use]
pub fn incoming() -> (Feed, Incoming) {
    let (sender, receiver) = mpsc::channel(QUEUE_LEN);
    (Feed(sender), Incoming(receiver))
}

/// A stream to the client, and where the transport drains it.
#[must_use]
pub fn outgoing() -> (Outgoing, Drain) {
    let (sender, receiver) = mpsc::channel(QUEUE_LEN);
    let written = CancellationToken::new();
    (Outgoing(sender, written.clone()), Drain { queue: receiver, _written: written.drop_guard() })
}

impl Incoming {
    /// The next piece, never empty; none at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }

    /// The next pieces, all that are there; none at the end.
    pub async fn next_all(&mut self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        self.0.recv_many(&mut pieces, QUEUE_LEN).await;
        pieces
    }
}

/// Writes pieces, all with one call where the kernel takes them.
///
/// # Errors
/// Those of `to`.
pub async fn write_pieces(to: &mut (impl AsyncWrite + Unpin), pieces: &[Bytes]) -> std::io::Result<()> {
    // To write nothing and to be able to write nothing look the same.
    let pieces = pieces.iter().filter(|piece| !piece.is_empty());
    let mut slices: Vec<IoSlice<'_>> = pieces.map(|piece| IoSlice::new(piece)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match to.write_vectored(left).await? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => IoSlice::advance_slices(&mut left, count),
        }
    }
    Ok(())
}

impl Feed {
    /// Hands over a piece, waiting for room.
    ///
    /// # Errors
    /// [`Gone`] when nobody reads the stream any more.
    pub async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        self.0.send(piece).await.map_err(|_| Gone)
    }

    /// Hands over a piece if there is room now.
    #[must_use]
    pub fn offer(&self, piece: Bytes) -> Offered {
        if piece.is_empty() {
            return Offered::Taken;
        }
        match self.0.try_send(piece) {
            Ok(()) => Offered::Taken,
            Err(TrySendError::Full(piece)) => Offered::Full(piece),
            Err(TrySendError::Closed(_)) => Offered::Gone,
        }
    }

    /// Completes when nobody reads the stream any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Outgoing {
    /// Hands over a piece, waiting for room.
    ///
    /// # Errors
    /// [`Gone`] when the client does not take the stream any more.
    pub async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        self.0.send(piece).await.map_err(|_| Gone)
    }

    /// Completes when the client does not take the stream any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// Cancelled when the stream has ended, and the transport has put all of it before whatever
    /// it is given from then on; or when the client does not take it any more.
    #[must_use]
    pub fn written(&self) -> CancellationToken {
        self.1.clone()
    }
}

impl Drain {
    /// The next piece, never empty; none at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.queue.recv().await
    }

    /// The next piece if there is one already.
    pub fn take(&mut self) -> Option<Bytes> {
        self.queue.try_recv().ok()
    }

    /// As [`Drain::next`], for who waits for many at once.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.queue.poll_recv(cx)
    }

    /// Takes no more pieces; those that are in the queue still come, then the end.
    pub fn close(&mut self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn everything_is_written_in_order_however_little_is_taken() {
        let (feed, mut incoming) = incoming();
        let (mut ours, mut theirs) = tokio::io::duplex(777);
        let feeding = async move {
            for number in 0..100_u8 {
                feed.send(vec![number; 50 * usize::from(number)].into()).await.expect("it is read");
            }
        };
        let writing = async move {
            loop {
                match incoming.next_all().await {
                    pieces if pieces.is_empty() => return,
                    pieces => write_pieces(&mut ours, &pieces).await.expect("written"),
                }
            }
        };
        let mut read = Vec::new();
        let (.., count) = tokio::join!(feeding, writing, theirs.read_to_end(&mut read));
        let expected: Vec<u8> =
            (0..100_u8).flat_map(|number| vec![number; 50 * usize::from(number)]).collect();
        assert_eq!(count.expect("read"), expected.len());
        assert!(read == expected);
    }
}
