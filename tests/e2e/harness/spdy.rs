//! A client of a streaming server that speaks SPDY/3.1, as kubectl and crictl do.
//!
//! It knows no windows, as the clients that are built on moby/spdystream: TCP alone holds
//! either side back. Its header blocks are not compressed, which zlib allows, and it has
//! no use for those of the server.

use std::io::{Error, ErrorKind, Result};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The data of a frame, at most.
pub(crate) const FRAME_BYTES: usize = 64 << 10;
/// Room for a read.
const READ_BYTES: usize = 512 << 10;
/// The longest head of an answer.
const HEAD_BYTES_MAX: usize = 8 << 10;

const SYN_STREAM: u32 = 0x8003_0001;
const RST_STREAM: u32 = 0x8003_0003;
const FLAG_FIN: u32 = 1 << 24;
const LENGTH: u32 = 0x00ff_ffff;
/// CANCEL.
const CANCEL: u32 = 5;
/// The start of a zlib stream with the dictionary of SPDY/3, which its checksum names.
const ZLIB_HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
/// The empty block that flushes those before it.
const ZLIB_FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// A connection that was upgraded.
pub(crate) struct Spdy {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// What the server has chosen of the protocols.
    pub(crate) protocol: String,
}

/// What the server sends.
pub(crate) struct Reader {
    io: OwnedReadHalf,
    bytes: BytesMut,
    /// Stream, rest and last of the data frame that is being read.
    data: Option<(u32, usize, bool)>,
}

/// What the server gets.
pub(crate) struct Writer {
    io: OwnedWriteHalf,
    last_id: Option<u32>,
}

/// Something of a stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// A piece of data, and whether nothing follows.
    Data { id: u32, piece: Bytes, fin: bool },
    /// The stream is over.
    Reset { id: u32 },
}

impl Spdy {
    /// Connects to the address of a URL and upgrades, with these protocols to choose from.
    pub(crate) async fn open(url: &str, protocols: &[&str]) -> Result<Spdy> {
        let wrong = |what: String| Error::new(ErrorKind::InvalidData, what);
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong(format!("no URL of ours: {url}")))?;
        let (address, path) =
            rest.split_once('/').ok_or_else(|| wrong(format!("a URL without path: {url}")))?;
        let mut io = TcpStream::connect(address).await?;
        io.set_nodelay(true)?;
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {}\r\nContent-Length: 0\r\n\r\n",
            protocols.join(", ")
        );
        io.write_all(request.as_bytes()).await?;
        let mut bytes = BytesMut::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if bytes.len() > HEAD_BYTES_MAX || io.read_buf(&mut bytes).await? == 0 {
                return Err(wrong(format!("no answer: {}", String::from_utf8_lossy(&bytes))));
            }
        };
        let head = String::from_utf8_lossy(&bytes.split_to(end)).into_owned();
        if !head.starts_with("HTTP/1.1 101") {
            return Err(wrong(head));
        }
        let chosen = head.lines().filter_map(|line| line.split_once(':'));
        let mut chosen = chosen.filter(|(name, _)| name.eq_ignore_ascii_case("x-stream-protocol-version"));
        let protocol = chosen.next().map_or("", |(_, value)| value.trim()).to_owned();
        let (reader, writer) = io.into_split();
        let reader = Reader { io: reader, bytes, data: None };
        Ok(Spdy { reader, writer: Writer { io: writer, last_id: None }, protocol })
    }
}

impl Reader {
    /// What comes next of any stream; none at the end of the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parse() {
                return Ok(Some(event));
            }
            self.bytes.reserve(READ_BYTES);
            if self.io.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn parse(&mut self) -> Option<Event> {
        loop {
            if let Some((id, left, is_last)) = self.data {
                if self.bytes.is_empty() && left > 0 {
                    return None;
                }
                let piece = self.bytes.split_to(left.min(self.bytes.len())).freeze();
                let left = left - piece.len();
                self.data = Some((id, left, is_last)).filter(|_| left > 0);
                return Some(Event::Data { id, fin: is_last && left == 0, piece });
            }
            let (first, second) = (self.word(0)?, self.word(4)?);
            let len = (second & LENGTH) as usize;
            if first >> 31 == 0 {
                self.bytes.advance(8);
                self.data = Some((first, len, second & FLAG_FIN != 0));
                continue;
            }
            if self.bytes.len() < 8 + len {
                return None;
            }
            let id = self.word(8);
            self.bytes.advance(8 + len);
            if first == RST_STREAM {
                return id.map(|id| Event::Reset { id });
            }
        }
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_be_bytes)
    }
}

impl Writer {
    /// Opens a stream with these headers. Does not wait for the reply.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut block = Vec::new();
        put_len(&mut block, headers.len());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            put_len(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = if self.last_id.is_none() { ZLIB_HEAD.to_vec() } else { Vec::new() };
        let len = u16::try_from(block.len()).map_err(Error::other)?;
        packed.push(0);
        packed.extend_from_slice(&len.to_le_bytes());
        packed.extend_from_slice(&(!len).to_le_bytes());
        packed.extend_from_slice(&block);
        packed.extend_from_slice(&ZLIB_FLUSH);
        let id = self.last_id.map_or(1, |last| last + 2);
        self.last_id = Some(id);
        let mut frame = words(&[SYN_STREAM, 10 + packed.len() as u32, id, 0]);
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&packed);
        self.io.write_all(&frame).await?;
        Ok(id)
    }

    /// Sends data of a stream.
    pub(crate) async fn send(&mut self, id: u32, data: &[u8]) -> Result<()> {
        self.send_frames(&frames(id, data)).await
    }

    /// Sends what [`frames`] has made.
    pub(crate) async fn send_frames(&mut self, frames: &[u8]) -> Result<()> {
        self.io.write_all(frames).await
    }

    /// Ends our direction of a stream.
    pub(crate) async fn finish(&mut self, id: u32) -> Result<()> {
        self.io.write_all(&words(&[id, FLAG_FIN])).await
    }

    /// Ends a stream in both directions.
    pub(crate) async fn reset(&mut self, id: u32) -> Result<()> {
        self.io.write_all(&words(&[RST_STREAM, 8, id, CANCEL])).await
    }
}

/// Data of a stream as frames.
pub(crate) fn frames(id: u32, data: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    for piece in data.chunks(FRAME_BYTES) {
        frames.extend_from_slice(&words(&[id, piece.len() as u32]));
        frames.extend_from_slice(piece);
    }
    frames
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn put_len(block: &mut Vec<u8>, len: usize) {
    block.extend_from_slice(&(len as u32).to_be_bytes());
}
