//! Header blocks: pairs of names and values, packed by zlib with the dictionary of SPDY/3.
//!
//! Each direction of a connection is one zlib stream; every block is a part of it, flushed.
//! So every block must be unpacked, also that of a stream which is refused. The client's are
//! inflated under a bound. Ours all say "no headers": a SYN_REPLY is all that we send, and
//! its block is written by hand as a stored block, which costs no deflater per connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{ADLER32, DICTIONARY};
use super::frame::Fault;

/// Where unpacking starts; most blocks of streaming clients are smaller.
const UNPACKED_BYTES: usize = 512;

/// Headers of a block; streaming clients send three. Each is compared with those before it.
const HEADERS_MAX: usize = 64;

/// The start of a zlib stream with a dictionary: deflate with a window of 32 KiB.
const ZLIB_HEAD: [u8; 2] = [0x78, 0xbb];

/// A stored deflate block of 4 zero bytes ("no headers"), and the empty one that flushes it.
const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Headers of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

/// Why a block gives no headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The connection's zlib stream is lost.
    Connection(Fault),
    /// Only this block is wrong.
    Stream,
}

/// The client's zlib stream.
pub(super) struct Unpacker {
    inflate: Decompress,
    unpacked: Vec<u8>,
    bytes_max: usize,
}

/// Our zlib stream.
#[derive(Debug, Default)]
pub(super) struct Packer {
    has_begun: bool,
}

impl Headers {
    /// The (first) value of a header by its name in lower case (STM-14).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Parses an unpacked block: a count, then names and values with their lengths.
    fn parse(block: &[u8]) -> Option<Self> {
        let mut rest = block;
        let count = length(&mut rest)?;
        // Each takes eight bytes at least.
        if count > HEADERS_MAX.min(rest.len() / 8) {
            return None;
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
            let is_known = headers.iter().any(|(known, _)| *known == name);
            if name.is_empty() || is_known || name.chars().any(char::is_uppercase) {
                return None;
            }
            // Several values stand in one, with NUL between them.
            let first = value.split('\0').next().unwrap_or_default();
            headers.push((name, first.to_owned()));
        }
        Some(Self(headers))
    }
}

fn length(rest: &mut &[u8]) -> Option<usize> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*head)).ok()
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let len = length(rest)?;
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(String::from_utf8_lossy(head).into_owned())
}

impl Unpacker {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { inflate: Decompress::new(true), unpacked: Vec::new(), bytes_max }
    }

    /// The headers of a block.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, Bad> {
        self.unpack(block).map_err(Bad::Connection)?;
        Headers::parse(&self.unpacked).ok_or(Bad::Stream)
    }

    fn unpack(&mut self, block: &[u8]) -> Result<(), Fault> {
        self.unpacked.clear();
        let mut rest = block;
        loop {
            // One byte over the bound shows that there is more.
            let room = (self.bytes_max + 1).saturating_sub(self.unpacked.len());
            self.unpacked.reserve(room.min(UNPACKED_BYTES));
            let before = self.inflate.total_in();
            let result = self.inflate.decompress_vec(rest, &mut self.unpacked, FlushDecompress::Sync);
            let used = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(used..).unwrap_or_default();
            match result {
                Err(error) if error.needs_dictionary() == Some(ADLER32) => {
                    self.inflate
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| Fault::protocol("the header dictionary is refused"))?;
                }
                Err(_) => return Err(Fault::protocol("a header block that cannot be unpacked")),
                Ok(Status::StreamEnd) => return Err(Fault::protocol("the end of the header stream")),
                Ok(Status::Ok | Status::BufError) => {
                    if self.unpacked.len() > self.bytes_max {
                        return Err(Fault::protocol("too many headers"));
                    }
                    if self.unpacked.len() < self.unpacked.capacity() {
                        // It wants more input, not more room.
                        return if rest.is_empty() {
                            Ok(())
                        } else {
                            Err(Fault::protocol("a header block that cannot be unpacked"))
                        };
                    }
                }
            }
        }
    }
}

impl Packer {
    /// Appends the block of no headers.
    pub(super) fn no_headers(&mut self, out: &mut Vec<u8>) {
        if !self.has_begun {
            self.has_begun = true;
            out.extend_from_slice(&ZLIB_HEAD);
            out.extend_from_slice(&ADLER32.to_be_bytes());
        }
        out.extend_from_slice(&NO_HEADERS);
    }

    /// How long the next block will be.
    pub(super) fn no_headers_len(&self) -> usize {
        NO_HEADERS.len() + if self.has_begun { 0 } else { ZLIB_HEAD.len() + 4 }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// A client's zlib stream.
    pub(in crate::stream::spdy) struct ClientPacker(Compress);

    impl ClientPacker {
        pub(in crate::stream::spdy) fn new() -> Self {
            let mut deflate = Compress::new(Compression::best(), true);
            deflate.set_dictionary(&DICTIONARY).expect("a dictionary");
            Self(deflate)
        }

        pub(in crate::stream::spdy) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            self.pack(&plain)
        }

        pub(in crate::stream::spdy) fn pack(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut packed = Vec::with_capacity(plain.len() + 1024);
            self.0.compress_vec(plain, &mut packed, FlushCompress::Sync).expect("packed");
            packed
        }
    }

    #[test]
    fn blocks_of_one_stream_are_unpacked_one_after_the_other() {
        let (mut packer, mut unpacker) = (ClientPacker::new(), Unpacker::new(1000));
        for port in ["80", "443", "8080"] {
            let block = packer.block(&[("streamtype", "data"), ("port", port)]);
            let headers = unpacker.headers(&block).expect("headers");
            assert_eq!(headers.get("streamtype"), Some("data"));
            assert_eq!(headers.get("port"), Some(port));
            assert_eq!(headers.get("requestid"), None);
        }
    }

    #[test]
    fn our_blocks_are_one_zlib_stream_of_no_headers() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::new(1000));
        for _ in 0..3 {
            let mut block = Vec::new();
            let len = packer.no_headers_len();
            packer.no_headers(&mut block);
            assert_eq!(block.len(), len);
            assert_eq!(unpacker.headers(&block), Ok(Headers::default()));
            assert_eq!(unpacker.unpacked, [0; 4]);
        }
    }

    #[test]
    fn the_unpacked_size_is_bounded() {
        let bomb = ClientPacker::new().pack(&vec![0; 1 << 20]);
        let mut unpacker = Unpacker::new(4096);
        assert!(matches!(unpacker.headers(&bomb), Err(Bad::Connection(_))));
        assert!(unpacker.unpacked.capacity() < 16 << 10);
        let exact = ClientPacker::new().pack(&[0; 4096]);
        assert_eq!(Unpacker::new(4096).headers(&exact), Ok(Headers::default()));
        let over = ClientPacker::new().pack(&[0; 4097]);
        assert!(matches!(Unpacker::new(4096).headers(&over), Err(Bad::Connection(_))));
    }

    #[test]
    fn wrong_names_are_the_stream_s_fault_only() {
        let (mut packer, mut unpacker) = (ClientPacker::new(), Unpacker::new(1000));
        let wrong: [&[(&str, &str)]; 3] = [&[("Port", "1")], &[("a", "1"), ("a", "2")], &[("", "1")]];
        for headers in wrong {
            assert_eq!(unpacker.headers(&packer.block(headers)), Err(Bad::Stream));
        }
        let good = packer.block(&[("a", "1\u{0}2")]);
        assert_eq!(unpacker.headers(&good).expect("headers").get("a"), Some("1"));
        let names: Vec<String> = (0..=HEADERS_MAX).map(|number| number.to_string()).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert_eq!(unpacker.headers(&packer.block(&many)), Err(Bad::Stream));
        assert!(unpacker.headers(&packer.block(&many[1..])).is_ok());
        // A count that the block has no room for.
        assert_eq!(unpacker.headers(&packer.pack(&[0xff; 8])), Err(Bad::Stream));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_or_grows(blocks in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
            let mut unpacker = Unpacker::new(2000);
            for block in blocks {
                let _ = unpacker.headers(&block);
                prop_assert!(unpacker.unpacked.capacity() <= 8192);
            }
        }

        #[test]
        fn what_a_client_packs_is_what_we_read(
            pairs in proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,40}", 0..8)
        ) {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let block = ClientPacker::new().block(&pairs);
            let headers = Unpacker::new(1 << 16).headers(&block).expect("headers");
            for (name, value) in pairs {
                prop_assert_eq!(headers.get(name), Some(value));
            }
        }
    }
}
