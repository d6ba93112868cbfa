//! Bytes from asynchronous code to a thread that extracts.

use std::io::{self, Read};

use hyper::body::Bytes;
use tokio::sync::mpsc;

use crate::error::canceled;

/// How many pieces wait.
const PIECES: usize = 2;

/// Takes the bytes of a layer. It is kept until the extraction has ended: dropped before, it
/// makes that fail, also while there are bytes left, which may be many once decompressed.
pub(in crate::image) struct Feed(mpsc::Sender<Option<Bytes>>);

/// Gives them, as they come.
pub(in crate::image) struct Fed {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    has_ended: bool,
}

/// A way from one to the other, with room for a few pieces.
pub(in crate::image) fn feed() -> (Feed, Fed) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Feed(sender), Fed { pieces, piece: Bytes::new(), has_ended: false })
}

impl Feed {
    /// Hands on a piece, when there is room. False if nobody takes it: the extraction has
    /// failed.
    pub(in crate::image) async fn send(&self, piece: Bytes) -> bool {
        self.0.send(Some(piece)).await.is_ok()
    }

    /// Says that that was all.
    pub(in crate::image) async fn end(&self) {
        // Whoever does not take it has failed, and says so itself.
        let _ = self.0.send(None).await;
    }
}

impl Read for Fed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.has_ended {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.has_ended = true,
                None => break,
            }
        }
        if self.pieces.is_closed() {
            return Err(io::Error::other(canceled("nobody waits for the layer any more")));
        }
        let length = self.piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
