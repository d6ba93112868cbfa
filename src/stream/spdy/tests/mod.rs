//! A small client of its own on the other end of a pipe.

mod bounds;
mod ends;
pub(in crate::stream) mod fuzz;
mod streams;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::frame::tests::{control_frame, open};
use super::frame::{self, Decoder, Frame};
use super::header::Unpacker;
use super::header::tests::ClientPacker;
use super::{Connection, Limits, Stream, serve};

/// What fits into the pipe.
const PIPE_BYTES: usize = 64 << 10;

/// A client.
struct Client {
    io: DuplexStream,
    packer: ClientPacker,
    decoder: Decoder,
    bytes: BytesMut,
}

/// A client, and the server's side of its connection.
fn connect(limits: Limits) -> (Client, Connection) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    (Client::new(theirs), serve(ours, limits))
}

impl Client {
    fn new(io: DuplexStream) -> Self {
        Self { io, packer: ClientPacker::new(), decoder: Decoder::default(), bytes: BytesMut::new() }
    }

    async fn write(&mut self, wire: &[u8]) {
        self.io.write_all(wire).await.expect("written");
    }

    async fn control(&mut self, kind: u16, flags: u8, words: &[u32]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let mut wire = Vec::new();
        control_frame(&mut wire, kind, flags, &payload);
        self.write(&wire).await;
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut wire = Vec::new();
        open(&mut wire, id, 0, &self.packer.block(headers));
        self.write(&wire).await;
    }

    async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        let mut wire = Vec::new();
        frame::data(&mut wire, id, data.len(), fin);
        wire.extend_from_slice(data);
        self.write(&wire).await;
    }

    async fn window(&mut self, id: u32, delta: u32) {
        self.control(9, 0, &[id, delta]).await;
    }

    async fn ping(&mut self, id: u32) {
        self.control(6, 0, &[id]).await;
    }

    /// The next frame; none at the end of the connection.
    async fn any_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.bytes).expect("frames as they should be") {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.bytes).await.expect("read") == 0 {
                assert!(self.bytes.is_empty(), "the end is between frames");
                return None;
            }
        }
    }

    /// As [`Client::any_frame`], without what tells windows.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            match self.any_frame().await {
                Some(Frame::Settings { .. } | Frame::Window { .. }) => {}
                frame => return frame,
            }
        }
    }

    /// Opens a stream and has its reply.
    async fn stream(&mut self, id: u32, connection: &mut Connection) -> Stream {
        self.open(id, &[("streamtype", "data")]).await;
        let stream = connection.accept().await.expect("a stream");
        assert_eq!(stream.id, id);
        assert!(matches!(self.frame().await, Some(Frame::Reply { id: to, .. }) if to == id));
        stream
    }
}

/// Bytes that differ along their way.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn data(id: u32, piece: &'static [u8], fin: bool) -> Option<Frame> {
    Some(Frame::Data { id, piece: Bytes::from_static(piece), fin })
}
