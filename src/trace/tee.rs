//! A body of a gRPC call that is looked at while it passes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// A message of gRPC has its length in front.
const HEAD_BYTES: usize = 5;

/// Gives the first message of `body` to `look`, once and only if it comes in whole; a long
/// one may be cut at `bytes_max`, and is then given as far as it goes.
pub fn tee(body: Body, bytes_max: usize, look: impl FnOnce(&[u8]) + Send + 'static) -> Body {
    Body::new(Tee { body, seen: Vec::new(), bytes: 0, bytes_max, look: Some(Box::new(look)) })
}

/// Looks at a message.
type Looker = Box<dyn FnOnce(&[u8]) + Send>;

struct Tee {
    body: Body,
    seen: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    look: Option<Looker>,
}

impl Tee {
    fn saw(&mut self, data: &Bytes) {
        if self.look.is_none() {
            return;
        }
        self.bytes += data.len();
        self.seen.push(data.clone());
        let message = self.message_bytes();
        if message.is_some_and(|message| self.bytes >= message) || self.bytes >= self.bytes_max {
            self.finish();
        }
    }

    /// The length of the first message with its head.
    fn message_bytes(&self) -> Option<usize> {
        let mut head = self.seen.iter().flat_map(|data| data.iter()).skip(1);
        let mut length = [0; 4];
        for byte in &mut length {
            *byte = *head.next()?;
        }
        Some(HEAD_BYTES + u32::from_be_bytes(length) as usize)
    }

    fn finish(&mut self) {
        let end = self.message_bytes().unwrap_or(0);
        let (seen, Some(look)) = (std::mem::take(&mut self.seen), self.look.take()) else { return };
        let message = |data: &[u8]| match data[..end.min(data.len())].split_at_checked(HEAD_BYTES) {
            // A compressed one is not ours to read.
            Some((head, rest)) if head[0] == 0 => look(rest),
            _ => {}
        };
        match seen.as_slice() {
            [one] => message(one),
            more => message(&more.concat()),
        }
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let data = data.clone();
            self.saw(&data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt, StreamBody};
    use tokio_stream::iter;

    use super::*;

    /// What is seen of parts, and what passes.
    async fn seen(parts: &[&'static [u8]], bytes_max: usize) -> (Option<Vec<u8>>, Vec<u8>) {
        let found = Arc::new(Mutex::new(None));
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part)))).collect();
        let keep = found.clone();
        let body = tee(Body::new(StreamBody::new(iter(frames))), bytes_max, move |data| {
            *keep.lock().expect("no panic") = Some(data.to_vec());
        });
        let passed = body.collect().await.expect("it passes").to_bytes().to_vec();
        let found = found.lock().expect("no panic").take();
        (found, passed)
    }

    #[tokio::test]
    async fn the_first_message_is_seen_however_it_comes() {
        let whole: &[u8] = b"\0\0\0\0\x02ab\0\0\0\0\x01c";
        assert_eq!(seen(&[&whole[..7]], 100).await, (Some(b"ab".to_vec()), whole[..7].to_vec()));
        assert_eq!(seen(&[&whole[..3], &whole[3..6], &whole[6..7]], 100).await.0, Some(b"ab".to_vec()));
        let (first, passed) = seen(&[&whole[..7], &whole[7..]], 100).await;
        assert_eq!((first, passed), (Some(b"ab".to_vec()), whole.to_vec()));
        // Cut, compressed, broken off, none.
        assert_eq!(seen(&[&whole[..6], &whole[6..]], 6).await.0, Some(b"a".to_vec()));
        assert_eq!(seen(&[b"\x01\0\0\0\x01a"], 100).await.0, None);
        assert_eq!(seen(&[&whole[..6]], 100).await.0, None);
        assert_eq!(seen(&[], 100).await.0, None);
    }
}
