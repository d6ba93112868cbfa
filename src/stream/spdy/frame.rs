//! Frames on the wire.
//!
//! ```text
//! data     0 stream id:31 | flags:8 length:24 | data
//! control  1 version:15 type:16 | flags:8 length:24 | payload
//! ```
//!
//! The data of a frame is handed out piece by piece as it arrives, as slices of what was
//! read; a frame of 16 MB needs no buffer of that size. Control frames are read whole, under
//! a bound.

use bytes::{Buf, Bytes, BytesMut};

/// The version in control frames; SPDY/3.1 has that of SPDY/3.
const VERSION: u16 = 3;

/// The payload of a control frame; header blocks of streaming clients have some 50 bytes.
pub(super) const CONTROL_BYTES_MAX: usize = 64 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The sender's last frame in this stream.
const FLAG_FIN: u8 = 1;
/// Of SYN_STREAM: the receiver sends nothing in this stream.
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// The setting that says how large windows are at first.
const INITIAL_WINDOW_SIZE: u32 = 7;

/// The window of a connection and of each stream before anybody says anything else.
pub(super) const WINDOW: u32 = 64 << 10;
/// No window grows beyond.
pub(super) const WINDOW_MAX: i64 = 0x7fff_ffff;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Status {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
    FlowControl = 7,
}

/// Why the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// For the client.
    pub(super) goaway: GoAway,
    /// For the log.
    pub(super) what: &'static str,
}

/// What GOAWAY says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum GoAway {
    Ok = 0,
    Protocol = 1,
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A piece of a data frame, not empty unless the frame is.
    Data {
        id: u32,
        piece: Bytes,
        fin: bool,
    },
    /// SYN_STREAM.
    Open {
        id: u32,
        fin: bool,
        unidirectional: bool,
        block: Bytes,
    },
    /// SYN_REPLY.
    Reply {
        id: u32,
        block: Bytes,
    },
    /// HEADERS.
    Headers {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    /// RST_STREAM.
    Reset {
        id: u32,
    },
    /// SETTINGS, the one of them that matters.
    Settings {
        window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// WINDOW_UPDATE; 0 is the connection.
    Window {
        id: u32,
        delta: u32,
    },
}

/// Makes frames of bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder(State);

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    /// Inside a data frame.
    Data { id: u32, left: usize, fin: bool },
    /// Inside a frame that is passed over.
    Skip { left: usize },
}

impl Fault {
    pub(super) fn protocol(what: &'static str) -> Self {
        Self { goaway: GoAway::Protocol, what }
    }
}

impl Decoder {
    /// The next frame (or piece of one) that is in `bytes` as a whole.
    ///
    /// # Errors
    /// Frames that no client may send. The decoder is not to be used after that.
    pub(super) fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, Fault> {
        loop {
            match &mut self.0 {
                State::Head => match self.head(bytes)? {
                    Head::Frame(frame) => return Ok(Some(frame)),
                    Head::Incomplete => return Ok(None),
                    Head::Begun => {}
                },
                State::Data { id, left, fin } => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let piece = bytes.split_to(bytes.len().min(*left)).freeze();
                    *left -= piece.len();
                    let frame = Frame::Data { id: *id, piece, fin: *fin && *left == 0 };
                    if *left == 0 {
                        self.0 = State::Head;
                    }
                    return Ok(Some(frame));
                }
                State::Skip { left } => {
                    let len = bytes.len().min(*left);
                    bytes.advance(len);
                    *left -= len;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.0 = State::Head;
                }
            }
        }
    }

    fn head(&mut self, bytes: &mut BytesMut) -> Result<Head, Fault> {
        let Some((first, second)) = words(bytes) else { return Ok(Head::Incomplete) };
        let flags = (second >> 24) as u8;
        let len = (second & 0x00ff_ffff) as usize;
        if first >> 31 == 0 {
            bytes.advance(8);
            if first == 0 {
                return Err(Fault::protocol("data of stream 0"));
            }
            let fin = flags & FLAG_FIN != 0;
            if len == 0 {
                return Ok(Head::Frame(Frame::Data { id: first, piece: Bytes::new(), fin }));
            }
            self.0 = State::Data { id: first, left: len, fin };
            return Ok(Head::Begun);
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(Fault::protocol("a frame of another version"));
        }
        let kind = first as u16;
        if !matches!(kind, SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE) {
            bytes.advance(8);
            self.0 = State::Skip { left: len };
            return Ok(Head::Begun);
        }
        if len > CONTROL_BYTES_MAX {
            return Err(Fault::protocol("a control frame that is too long"));
        }
        if bytes.len() < 8 + len {
            return Ok(Head::Incomplete);
        }
        bytes.advance(8);
        let payload = bytes.split_to(len).freeze();
        control(kind, flags, payload).map(Head::Frame)
    }
}

enum Head {
    Frame(Frame),
    Begun,
    Incomplete,
}

fn words(bytes: &[u8]) -> Option<(u32, u32)> {
    let (head, _) = bytes.split_first_chunk::<8>()?;
    let value = u64::from_be_bytes(*head);
    Some(((value >> 32) as u32, value as u32))
}

fn control(kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, Fault> {
    let short = Fault::protocol("a control frame that is too short");
    let mut word = || if payload.len() < 4 { Err(short) } else { Ok(payload.get_u32()) };
    let id_mask = 0x7fff_ffff;
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        SYN_STREAM => {
            let id = word()? & id_mask;
            let _associated = word()?;
            // Priority and slot.
            if payload.len() < 2 {
                return Err(short);
            }
            payload.advance(2);
            let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
            Frame::Open { id, fin, unidirectional, block: payload }
        }
        SYN_REPLY => Frame::Reply { id: word()? & id_mask, block: payload },
        HEADERS => Frame::Headers { id: word()? & id_mask, fin, block: payload },
        RST_STREAM => {
            let id = word()? & id_mask;
            let _status = word()?;
            Frame::Reset { id }
        }
        SETTINGS => {
            let count = word()? as usize;
            if payload.len() / 8 < count {
                return Err(short);
            }
            let mut window = None;
            for _ in 0..count {
                let (id, value) = (payload.get_u32() & 0x00ff_ffff, payload.get_u32());
                if id == INITIAL_WINDOW_SIZE {
                    window = Some(value);
                }
            }
            Frame::Settings { window }
        }
        PING => Frame::Ping { id: word()? },
        GOAWAY => Frame::GoAway,
        // WINDOW_UPDATE, the only kind that is left.
        _ => Frame::Window { id: word()? & id_mask, delta: word()? & id_mask },
    })
}

/// Appends the head of a data frame.
pub(super) fn data(out: &mut Vec<u8>, id: u32, len: usize, is_last: bool) {
    let flags = if is_last { u32::from(FLAG_FIN) << 24 } else { 0 };
    words_to(out, &[id, flags | len as u32]);
}

/// Appends the head and the id of a SYN_REPLY whose header block has this length.
pub(super) fn reply(out: &mut Vec<u8>, id: u32, block_len: usize) {
    words_to(out, &[control_word(SYN_REPLY), 4 + block_len as u32, id]);
}

/// Appends a RST_STREAM.
pub(super) fn reset(out: &mut Vec<u8>, id: u32, status: Status) {
    words_to(out, &[control_word(RST_STREAM), 8, id, status as u32]);
}

/// Appends a PING.
pub(super) fn ping(out: &mut Vec<u8>, id: u32) {
    words_to(out, &[control_word(PING), 4, id]);
}

/// Appends a GOAWAY.
pub(super) fn goaway(out: &mut Vec<u8>, last_id: u32, status: GoAway) {
    words_to(out, &[control_word(GOAWAY), 8, last_id, status as u32]);
}

/// Appends a WINDOW_UPDATE.
pub(super) fn window(out: &mut Vec<u8>, id: u32, delta: u32) {
    words_to(out, &[control_word(WINDOW_UPDATE), 8, id, delta]);
}

/// Appends SETTINGS that tell the window of new streams.
pub(super) fn settings(out: &mut Vec<u8>, window: u32) {
    words_to(out, &[control_word(SETTINGS), 12, 1, INITIAL_WINDOW_SIZE, window]);
}

fn control_word(kind: u16) -> u32 {
    1 << 31 | u32::from(VERSION) << 16 | u32::from(kind)
}

fn words_to(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN_STREAM of a client.
    pub(in crate::stream::spdy) fn open(out: &mut Vec<u8>, id: u32, flags: u8, block: &[u8]) {
        let len = u32::from(flags) << 24 | (10 + block.len() as u32);
        words_to(out, &[control_word(SYN_STREAM), len, id, 0]);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(block);
    }

    /// Any control frame.
    pub(in crate::stream::spdy) fn control_frame(out: &mut Vec<u8>, kind: u16, flags: u8, payload: &[u8]) {
        words_to(out, &[control_word(kind), u32::from(flags) << 24 | payload.len() as u32]);
        out.extend_from_slice(payload);
    }

    fn all(bytes: &[u8]) -> Result<Vec<Frame>, Fault> {
        let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::from(bytes));
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next(&mut bytes)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Adjacent pieces of data are one.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        for frame in frames {
            if let (Frame::Data { id, piece, fin }, Some(Frame::Data { id: last, piece: before, fin: ended })) =
                (&frame, joined.last_mut())
                && id == last
                && !*ended
            {
                *before = [before.as_ref(), piece.as_ref()].concat().into();
                *ended = *fin;
            } else {
                joined.push(frame);
            }
        }
        joined
    }

    #[test]
    fn what_we_write_is_what_we_read() {
        let mut wire = Vec::new();
        open(&mut wire, 1, FLAG_FIN, b"block");
        reply(&mut wire, 3, 2);
        wire.extend_from_slice(b"xy");
        reset(&mut wire, 5, Status::Cancel);
        settings(&mut wire, 77);
        ping(&mut wire, 9);
        goaway(&mut wire, 11, GoAway::Ok);
        window(&mut wire, 0, 100);
        data(&mut wire, 1, 3, true);
        wire.extend_from_slice(b"abc");
        data(&mut wire, 3, 0, true);
        let expected = vec![
            Frame::Open { id: 1, fin: true, unidirectional: false, block: Bytes::from_static(b"block") },
            Frame::Reply { id: 3, block: Bytes::from_static(b"xy") },
            Frame::Reset { id: 5 },
            Frame::Settings { window: Some(77) },
            Frame::Ping { id: 9 },
            Frame::GoAway,
            Frame::Window { id: 0, delta: 100 },
            Frame::Data { id: 1, piece: Bytes::from_static(b"abc"), fin: true },
            Frame::Data { id: 3, piece: Bytes::new(), fin: true },
        ];
        assert_eq!(all(&wire), Ok(expected));
    }

    #[test]
    fn unknown_frames_are_passed_over() {
        let mut wire = Vec::new();
        control_frame(&mut wire, 5, 0, b"");
        control_frame(&mut wire, 10, 3, b"a credential");
        control_frame(&mut wire, 999, 255, &[7; 100_000]);
        ping(&mut wire, 1);
        assert_eq!(all(&wire), Ok(vec![Frame::Ping { id: 1 }]));
    }

    #[test]
    fn frames_that_no_client_may_send_are_faults() {
        let frame = |kind, payload: &[u8]| {
            let mut wire = Vec::new();
            control_frame(&mut wire, kind, 0, payload);
            all(&wire)
        };
        for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, HEADERS, WINDOW_UPDATE] {
            assert!(frame(kind, b"123").is_err(), "{kind}");
        }
        assert!(frame(SETTINGS, &[0xff; 12]).is_err());
        assert!(frame(SYN_STREAM, &[0; CONTROL_BYTES_MAX + 1]).is_err());
        assert!(all(&[0x80, 2, 0, 1, 0, 0, 0, 0]).is_err());
        assert!(all(&[0; 8]).is_err());
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            payloads in proptest::collection::vec((0_u16..12, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..200)), 0..8),
            cuts in proptest::collection::vec(1_usize..50, 1..100),
        ) {
            let mut wire = Vec::new();
            for (kind, flags, payload) in &payloads {
                if *kind == 0 {
                    data(&mut wire, 1, payload.len(), flags & 1 == 1);
                    wire.extend_from_slice(payload);
                } else {
                    control_frame(&mut wire, *kind, *flags, payload);
                }
            }
            let (mut decoder, mut bytes, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
            let mut result = Ok(());
            let (mut rest, mut cuts) = (wire.as_slice(), cuts.iter().cycle());
            'pieces: while !rest.is_empty() {
                let (piece, tail) = rest.split_at(rest.len().min(*cuts.next().expect("a cut")));
                rest = tail;
                bytes.extend_from_slice(piece);
                loop {
                    match decoder.next(&mut bytes) {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(fault) => {
                            result = Err(fault);
                            break 'pieces;
                        }
                    }
                }
            }
            match all(&wire) {
                Ok(expected) => {
                    prop_assert_eq!(result, Ok(()));
                    prop_assert_eq!(joined(frames), joined(expected));
                }
                Err(fault) => prop_assert_eq!(result, Err(fault)),
            }
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = all(&garbage);
        }
    }
}
