//! A client that is attached to a container: the server's side.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::frame::{Frames, Piece};
use super::line::Stream;
use super::pipe::InputPipe;
use super::protocol::{self, REQUEST_BYTES_MAX, Request};
use super::session::{Gone, Incoming, Outgoing};
use crate::error::{Result, exhausted, invalid, unavailable};

/// Room for a read when a new buffer is begun.
const BUFFER_BYTES: usize = 256 << 10;
/// A buffer with less room left is not read into any more.
const ROOM_BYTES: usize = 64 << 10;

/// The output of a container as it comes.
pub struct Attached {
    stream: UnixStream,
    input: BytesMut,
    frames: Frames,
}

/// The standard input of a container, which several may write to.
pub struct ContainerInput {
    pub(super) pipe: InputPipe,
    pub(super) closed: CancellationToken,
}

/// Why no more goes into a container's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// The client has sent all.
    Client,
    /// The container does not read any more, or its input was closed by somebody else.
    Container,
}

impl Attached {
    /// Attaches over `stream` to what `request` says.
    ///
    /// # Errors
    /// The keeper's refusal; Unavailable if it hangs up.
    pub(super) async fn begin(stream: std::os::unix::net::UnixStream, request: &Request) -> Result<Attached> {
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        stream.write_all(&protocol::request_line(1, request)?).await.map_err(|_| gone())?;
        let mut attached = Attached { stream, input: BytesMut::new(), frames: Frames::default() };
        let end = loop {
            if let Some(end) = memchr::memchr(b'\n', &attached.input) {
                break end;
            }
            if attached.input.len() > REQUEST_BYTES_MAX {
                return Err(invalid("the log keeper's answer is too long"));
            }
            attached.read().await?;
        };
        let (_, answer) = protocol::read_answer(&attached.input.split_to(end + 1))?;
        answer.map(|_| attached)
    }

    /// Hands all that comes to a client, of the streams that it wants, until the container
    /// has ended, or nobody takes any of it.
    ///
    /// # Errors
    /// ResourceExhausted when the client was too slow; Unavailable when the keeper has gone.
    pub async fn forward(mut self, mut stdout: Option<Outgoing>, mut stderr: Option<Outgoing>) -> Result<()> {
        let mut open = vec![Stream::Stdout, Stream::Stderr];
        loop {
            let Some(piece) = self.next().await? else {
                return if open.is_empty() { Ok(()) } else { Err(gone()) };
            };
            match piece {
                Piece::Output(stream, bytes) => {
                    let to = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                    if let Some(client) = to
                        && client.send(bytes).await == Err(Gone)
                    {
                        *to = None;
                    }
                }
                Piece::End(stream) => {
                    open.retain(|open| *open != stream);
                    let to = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                    *to = None;
                }
                Piece::CutOff(text) => return Err(exhausted(text)),
            }
        }
    }

    /// The next piece; none when the keeper has hung up.
    async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.frames.next(&mut self.input)? {
                return Ok(Some(piece));
            }
            if self.read().await.is_err() {
                return if self.frames.is_between() && self.input.is_empty() {
                    Ok(None)
                } else {
                    Err(gone())
                };
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        if self.input.capacity() - self.input.len() < ROOM_BYTES {
            self.stream.readable().await?;
            self.input.reserve(BUFFER_BYTES);
        }
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(gone()),
            Ok(_) => Ok(()),
        }
    }
}

impl ContainerInput {
    /// Writes all that a client sends.
    pub async fn feed(mut self, mut from: Incoming) -> InputEnd {
        tokio::select! {
            fed = self.pipe.feed(&mut from) => match fed {
                Ok(()) => InputEnd::Client,
                Err(Gone) => InputEnd::Container,
            },
            () = self.closed.cancelled() => InputEnd::Container,
        }
    }
}

fn gone() -> crate::error::Error {
    unavailable("the log keeper has gone: the output goes on, and can be attached to again")
}
