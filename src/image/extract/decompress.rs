//! From a layer's bytes to its plain archive, by two threads of their own.
//!
//! ```text
//! input ─▶ decompress ─▶ digest ─▶ Plain (a BufRead) ─▶ whoever reads the archive
//!              ▲                     │
//!              └── empty blocks ◀────┘
//! ```
//!
//! A fixed number of blocks goes round, so that memory is bounded, and the slowest of the
//! three alone decides how long it takes. Who stops reading drops [`Plain`]; the threads
//! then end with their next block, or when the input does. They hold nothing but memory.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{At, Failure, Packing, Result, unsupported};
use crate::error::{Context, internal};
use crate::ids::hex;

/// Bytes of a block.
const BLOCK_BYTES: usize = 128 << 10;
/// How many blocks go round.
const BLOCKS: usize = 6;
/// Bytes that are read of the input at once.
const INPUT_BYTES: usize = 64 << 10;
/// The largest window of a zstd frame is 2 to the power of this: what `zstd --ultra -20`
/// makes, and four times what RFC 8878 asks of every decoder. It is memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What frames that are skipped begin with; the low four bits are free.
const ZSTD_SKIPPED_MAGIC: u32 = 0x184d_2a50;
/// How many bytes are looked at.
const MAGIC_BYTES: u64 = 10;

/// A part of the plain archive; empty at its end.
struct Block {
    bytes: Vec<u8>,
    length: usize,
}

/// What the digest's thread hands on.
enum Message {
    Block(Block),
    End(Digested),
}

/// The whole of a plain archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Digested {
    /// Its digest.
    pub(super) digest: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// The plain archive of a layer.
pub(super) struct Plain {
    blocks: Receiver<Result<Message>>,
    empty: Sender<Block>,
    block: Option<Block>,
    position: usize,
    end: Option<Digested>,
}

impl Plain {
    /// Begins to decompress `input`.
    ///
    /// # Errors
    /// ResourceExhausted if there can be no more threads.
    pub(super) fn start(input: impl Read + Send + 'static, packing: Packing) -> Result<Plain> {
        let (empty, empties) = channel();
        for _ in 0..BLOCKS {
            // The receiver is in the next line but one.
            let _ = empty.send(Block { bytes: vec![0; BLOCK_BYTES], length: 0 });
        }
        let (full, filled) = sync_channel(BLOCKS);
        let (digested, blocks) = sync_channel(BLOCKS);
        spawn("layer-unpack", move || {
            if let Err(error) = decompress(input, packing, &empties, &full) {
                // Without a receiver nobody wants to know.
                let _ = full.send(Err(error));
            }
        })?;
        spawn("layer-digest", move || digest(&filled, &digested))?;
        Ok(Plain { blocks, empty, block: None, position: 0, end: None })
    }

    /// What was read, once all of it was.
    ///
    /// # Errors
    /// Internal if it was not.
    pub(super) fn finish(self) -> Result<Digested> {
        self.end.ok_or_else(|| internal("a layer was not read to its end").into())
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Plain {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let is_used = self.block.as_ref().is_none_or(|block| self.position == block.length);
        if is_used && self.end.is_none() {
            if let Some(block) = self.block.take() {
                // Without a receiver there are no more blocks to come.
                let _ = self.empty.send(block);
            }
            self.position = 0;
            let lost = || Err(internal("the thread that unpacks a layer is gone").into());
            match self.blocks.recv().unwrap_or_else(|_| lost()).map_err(io::Error::other)? {
                Message::Block(block) => self.block = Some(block),
                Message::End(end) => self.end = Some(end),
            }
        }
        Ok(self.block.as_ref().map_or(&[], |block| &block.bytes[self.position..block.length]))
    }

    fn consume(&mut self, length: usize) {
        self.position += length;
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).at(|| format!("start the thread {name}"))
}

/// Decompresses until the end, or until nobody takes it any more.
fn decompress(
    input: impl Read,
    packing: Packing,
    empties: &Receiver<Block>,
    full: &SyncSender<Result<Block>>,
) -> Result<()> {
    let mut plain = Decoder::new(input, packing)?;
    while let Ok(mut block) = empties.recv() {
        block.length = 0;
        while block.length < block.bytes.len() {
            match plain.read(&mut block.bytes[block.length..]) {
                Ok(0) => break,
                Ok(length) => block.length += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain.judge(error)),
            }
        }
        let is_end = block.length == 0;
        if full.send(Ok(block)).is_err() || is_end {
            break;
        }
    }
    Ok(())
}

fn digest(filled: &Receiver<Result<Block>>, digested: &SyncSender<Result<Message>>) {
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    for block in filled {
        let message = block.map(|block| {
            if block.length == 0 {
                let digest = format!("sha256:{}", hex(&digest.clone().finalize()));
                return Message::End(Digested { digest, bytes });
            }
            digest.update(&block.bytes[..block.length]);
            bytes += block.length as u64;
            Message::Block(block)
        });
        if digested.send(message).is_err() {
            return;
        }
    }
}

type Input<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

enum Decoder<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
}

impl<R: Read> Decoder<R> {
    fn new(mut input: R, packing: Packing) -> Result<Decoder<R>> {
        let mut magic = Vec::new();
        if packing == Packing::Detected {
            input.by_ref().take(MAGIC_BYTES).read_to_end(&mut magic)?;
        }
        let is_gzip = magic.starts_with(&GZIP_MAGIC);
        let is_zstd = is_zstd(&magic);
        let input = BufReader::with_capacity(INPUT_BYTES, io::Cursor::new(magic).chain(input));
        if is_gzip {
            return Ok(Decoder::Gzip(Box::new(MultiGzDecoder::new(input))));
        }
        if is_zstd {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(input).context(|| "prepare to decompress zstd")?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).context(|| "prepare to decompress zstd")?;
            return Ok(Decoder::Zstd(decoder));
        }
        Ok(Decoder::Plain(input))
    }

    /// What an error means. What ours does not decompress, containerd's may: igzip or
    /// pigz, where they are installed, take other things for damage than we do.
    fn judge(&self, error: io::Error) -> Failure {
        match (self, Failure::of_input(error)) {
            (_, Ok(failure)) => failure,
            (Decoder::Plain(_), Err(error)) => error.into(),
            (Decoder::Gzip(_), Err(error)) => unsupported(format!("decompress gzip: {error}")),
            (Decoder::Zstd(_), Err(error)) => unsupported(format!("decompress zstd: {error}")),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(input) => input.read(buffer),
            Decoder::Gzip(input) => input.read(buffer),
            Decoder::Zstd(input) => input.read(buffer),
        }
    }
}

fn is_zstd(magic: &[u8]) -> bool {
    if magic.starts_with(&ZSTD_MAGIC) {
        return true;
    }
    // A frame that is skipped has a length behind its magic.
    let first = magic.first_chunk::<8>().map(|[a, b, c, d, ..]| u32::from_le_bytes([*a, *b, *c, *d]));
    first.is_some_and(|first| first & !0xf == ZSTD_SKIPPED_MAGIC)
}
