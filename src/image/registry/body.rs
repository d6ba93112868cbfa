//! Bodies of answers, read with bounds.
//!
//! No body is read beyond the size that it was announced with, and none is waited for
//! longer than a server may be silent. What comes counts for the pull's progress.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};

use super::cause::Cause;
use super::client::{innermost, unless_stalled};
use crate::image::progress::OpenRequest;

/// A good answer.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) stall_limit: Duration,
    /// Keeps the request counted as open as long as its body is read.
    pub(super) open: OpenRequest,
}

/// A body of a known size that is being read.
pub(in crate::image) struct Body {
    incoming: Incoming,
    /// Where in the whole its first byte belongs.
    offset: u64,
    left: u64,
    stall_limit: Duration,
    open: OpenRequest,
}

impl Answer {
    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// What the server says about the size.
    pub(super) fn size(&self) -> Option<u64> {
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The body, which must be the rest of `size` bytes from `offset` on; a server that
    /// does not know of ranges sends them all.
    pub(super) fn body(self, offset: u64, size: u64) -> Result<Body, Cause> {
        let offset = if self.response.status() == StatusCode::PARTIAL_CONTENT {
            let range = self.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            match range.and_then(content_range) {
                Some((start, total)) if start == offset && total.is_none_or(|total| total == size) => offset,
                _ => return Err(Cause::Corrupt("sends another range than was asked for".into())),
            }
        } else {
            0
        };
        let left = size.saturating_sub(offset);
        if let Some(other) = self.size().filter(|other| *other != left) {
            return Err(Cause::Corrupt(format!("sends {other} bytes instead of {left}")));
        }
        let Answer { response, stall_limit, open } = self;
        Ok(Body { incoming: response.into_body(), offset, left, stall_limit, open })
    }

    /// The whole body, whatever its size below `bytes_max`.
    pub(super) async fn collect(self, bytes_max: usize) -> Result<Vec<u8>, Cause> {
        let data = collect(self.response.into_body(), bytes_max, self.stall_limit).await?;
        self.open.progress().received(data.len() as u64);
        Ok(data)
    }
}

/// First byte and whole size of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

impl Body {
    /// Where in the whole the next byte belongs that [`Body::chunk`] gives.
    pub(in crate::image) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes; none at the end.
    pub(in crate::image) async fn chunk(&mut self) -> Result<Option<Bytes>, Cause> {
        while let Some(data) = next(&mut self.incoming, self.stall_limit).await? {
            let length = data.len() as u64;
            if length > self.left {
                return Err(Cause::Corrupt("sends more bytes than it should".into()));
            }
            self.left -= length;
            self.offset += length;
            if length > 0 {
                self.open.progress().received(length);
                return Ok(Some(data));
            }
        }
        if self.left > 0 {
            return Err(Cause::Broken(format!("broke off {} bytes before the end", self.left)));
        }
        Ok(None)
    }
}

async fn next(incoming: &mut Incoming, limit: Duration) -> Result<Option<Bytes>, Cause> {
    loop {
        let Some(frame) = unless_stalled(limit, incoming.frame()).await? else { return Ok(None) };
        let frame = frame.map_err(|error| Cause::Broken(format!("broke off: {}", innermost(&error))))?;
        // Trailers say nothing to us.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// A whole body of at most `bytes_max` bytes.
pub(super) async fn collect(
    mut incoming: Incoming,
    bytes_max: usize,
    stall_limit: Duration,
) -> Result<Vec<u8>, Cause> {
    let mut data = Vec::new();
    while let Some(chunk) = next(&mut incoming, stall_limit).await? {
        if data.len() + chunk.len() > bytes_max {
            return Err(Cause::Failed(format!("sends more than {bytes_max} bytes")));
        }
        data.extend_from_slice(&chunk);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["", "bytes", "bytes */10", "items 1-2/3", "bytes 1-2", "bytes x-2/3", "bytes 1-2/x"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
