//! Frames on their way to the wire, several with each call of the kernel.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;

/// A batch takes no more when it has this much.
const BATCH_BYTES: usize = 512 << 10;

/// Pieces that the kernel gets with one call.
const SLICES_MAX: usize = 64;

/// Data below this size is copied beside its frame's head; a slice of its own costs more.
const COPY_BELOW: usize = 1 << 10;

/// Frames that are written with one call where possible. Heads and control frames stand in
/// one buffer that is used again and again; data stays where it is.
#[derive(Debug, Default)]
pub(super) struct Batch {
    text: Vec<u8>,
    parts: Vec<Part>,
    /// The first part that is not written, and how much of it is.
    part: usize,
    offset: usize,
    bytes: usize,
    /// The connection takes one slice at a time: everything is copied into one.
    one_slice: bool,
}

#[derive(Debug)]
enum Part {
    Text { start: usize, end: usize },
    Data(Bytes),
}

impl Batch {
    pub(super) fn new(one_slice: bool) -> Self {
        Self { one_slice, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.parts.len() >= SLICES_MAX
    }

    /// Appends what `write` writes.
    pub(super) fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len();
        write(&mut self.text);
        let end = self.text.len();
        self.bytes += end - start;
        match self.parts.last_mut() {
            Some(Part::Text { end: last, .. }) => *last = end,
            _ if end > start => self.parts.push(Part::Text { start, end }),
            _ => {}
        }
    }

    /// Appends data.
    pub(super) fn data(&mut self, piece: Bytes) {
        if piece.len() < COPY_BELOW || self.one_slice {
            self.text(|text| text.extend_from_slice(&piece));
        } else {
            self.bytes += piece.len();
            self.parts.push(Part::Data(piece));
        }
    }

    /// Writes what there is, as much as the connection takes. Returns how much that was.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut offset = self.offset;
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts[self.part..]) {
            *slice = IoSlice::new(&part.bytes(&self.text)[offset..]);
            offset = 0;
            count += 1;
        }
        let written = std::task::ready!(Pin::new(io).poll_write_vectored(cx, &slices[..count]))?;
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, written: usize) {
        let mut left = written + self.offset;
        while let Some(part) = self.parts.get(self.part) {
            let len = part.bytes(&self.text).len();
            if left < len {
                self.offset = left;
                return;
            }
            left -= len;
            self.part += 1;
        }
        self.text.clear();
        self.parts.clear();
        (self.part, self.offset, self.bytes) = (0, 0, 0);
    }
}

impl Part {
    fn bytes<'a>(&'a self, text: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Text { start, end } => &text[*start..*end],
            Self::Data(data) => data,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn everything_is_written_once_and_in_order_however_little_is_taken() {
        for one_slice in [false, true] {
            let mut batch = Batch::new(one_slice);
            let mut expected = Vec::new();
            for number in 0..20_u8 {
                batch.text(|text| text.extend_from_slice(&[number; 8]));
                expected.extend_from_slice(&[number; 8]);
                let piece = vec![number; 300 * usize::from(number)];
                expected.extend_from_slice(&piece);
                batch.data(piece.into());
            }
            let (mut ours, mut theirs) = tokio::io::duplex(777);
            let reader = tokio::spawn(async move {
                let mut read = Vec::new();
                theirs.read_to_end(&mut read).await.expect("read");
                read
            });
            while !batch.is_empty() {
                let written = std::future::poll_fn(|cx| batch.poll_write(&mut ours, cx)).await;
                assert!(written.expect("written") > 0);
            }
            drop(ours);
            assert_eq!(reader.await.expect("a reader"), expected);
        }
    }
}
