//! What a keeper sends to who is attached to a container's output.
//!
//! A frame is a byte that says what it is, a length in four bytes, the highest first, and
//! as many bytes:
//!
//! | byte | bytes |
//! |---|---|
//! | 1 | of standard output; none: it has ended |
//! | 2 | of standard error; none: it has ended |
//! | 3 | a text: why the attachment ends before the output does |
//!
//! The connection ends after the container's last stream, or after a text. One that ends
//! elsewhere tells that the keeper has gone.

use bytes::{Buf, Bytes, BytesMut};

use super::line::Stream;
use crate::error::{Result, invalid};

/// A frame's bytes before its content.
pub(super) const HEADER_BYTES: usize = 5;
/// The longest text.
const TEXT_BYTES_MAX: usize = 4096;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const CUT_OFF: u8 = 3;

/// What has been read of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Some bytes of a stream, never empty; a frame may come in several.
    Output(Stream, Bytes),
    /// The end of a stream.
    End(Stream),
    /// The end of the attachment, and why.
    CutOff(String),
}

/// The beginning of a frame of `len` bytes of a stream.
pub(super) fn header(stream: Stream, len: usize) -> [u8; HEADER_BYTES] {
    let kind = match stream {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    };
    head(kind, len)
}

/// A whole frame that ends the attachment.
pub(super) fn cut_off(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
    [&head(CUT_OFF, text.len())[..], text].concat()
}

fn head(kind: u8, len: usize) -> [u8; HEADER_BYTES] {
    // A read of the keeper is far shorter.
    let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    [kind, a, b, c, d]
}

/// Frames that are being read.
#[derive(Default)]
pub(super) struct Frames {
    /// The stream of the frame that has begun, and what is missing of it.
    begun: Option<(Stream, usize)>,
}

impl Frames {
    /// Takes the next piece out of `input`; none as long as there is too little of it.
    ///
    /// # Errors
    /// InvalidArgument for what is no frame.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>> {
        let (stream, len) = match self.begun {
            Some(begun) => begun,
            None => {
                let Some((&[kind, a, b, c, d], rest)) = input.split_first_chunk::<HEADER_BYTES>() else {
                    return Ok(None);
                };
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                let stream = match kind {
                    STDOUT => Stream::Stdout,
                    STDERR => Stream::Stderr,
                    CUT_OFF if len <= TEXT_BYTES_MAX => {
                        let Some(text) = rest.get(..len) else { return Ok(None) };
                        return Ok(Some(Piece::CutOff(String::from_utf8_lossy(text).into_owned())));
                    }
                    _ => return Err(invalid(format!("a frame of kind {kind} and {len} bytes"))),
                };
                input.advance(HEADER_BYTES);
                if len == 0 {
                    return Ok(Some(Piece::End(stream)));
                }
                (stream, len)
            }
        };
        let count = len.min(input.len());
        self.begun = (count < len).then_some((stream, len - count));
        let bytes = input.split_to(count).freeze();
        Ok((!bytes.is_empty()).then_some(Piece::Output(stream, bytes)))
    }

    /// Whether nothing is missing of the last frame.
    pub(super) fn is_between(&self) -> bool {
        self.begun.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streams() -> impl Strategy<Value = Stream> {
        prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
    }

    proptest! {
        #[test]
        fn what_is_sent_in_any_pieces_comes_out_again(
            frames in proptest::collection::vec((streams(), proptest::collection::vec(any::<u8>(), 0..50)), 0..20),
            step in 1..20usize,
        ) {
            let mut sent = Vec::new();
            for (stream, bytes) in &frames {
                sent.extend(header(*stream, bytes.len()));
                sent.extend(bytes);
            }
            sent.extend(cut_off("too slow"));
            let (mut reader, mut input, mut came) = (Frames::default(), BytesMut::new(), Vec::new());
            for piece in sent.chunks(step) {
                input.extend_from_slice(piece);
                while let Some(piece) = reader.next(&mut input).expect("frames") {
                    let is_last = matches!(piece, Piece::CutOff(_));
                    came.push(piece);
                    if is_last {
                        break;
                    }
                }
            }
            prop_assert!(reader.is_between());
            prop_assert_eq!(came.pop(), Some(Piece::CutOff("too slow".into())));
            let content = |of: Stream, pieces: &[Piece]| -> Vec<u8> {
                let bytes = pieces.iter().filter_map(|piece| match piece {
                    Piece::Output(stream, bytes) if *stream == of => Some(bytes.to_vec()),
                    _ => None,
                });
                bytes.flatten().collect()
            };
            for of in [Stream::Stdout, Stream::Stderr] {
                let expected = frames.iter().filter(|(stream, _)| *stream == of);
                let (ends, bytes): (Vec<_>, Vec<_>) = expected.partition(|(_, bytes)| bytes.is_empty());
                let bytes: Vec<u8> = bytes.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
                prop_assert_eq!(content(of, &came), bytes);
                let ended = came.iter().filter(|piece| **piece == Piece::End(of)).count();
                prop_assert_eq!(ended, ends.len());
            }
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let (mut reader, mut input) = (Frames::default(), BytesMut::from(&bytes[..]));
            while let Ok(Some(piece)) = reader.next(&mut input) {
                if matches!(piece, Piece::CutOff(_)) {
                    break;
                }
            }
        }
    }
}
