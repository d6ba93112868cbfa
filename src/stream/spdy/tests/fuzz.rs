//! Random conversations: whatever a client sends, its connection ends in time, nothing panics,
//! and what it gets are frames. See [`crate::stream::tests`] for how long.

use std::time::Duration;

use super::*;
use crate::stream::tests::{Leaves, Random, Wire, fuzz};

/// Silence that ends a connection.
const IDLE: Duration = Duration::from_secs(60);

/// The most that a connection may take to end after its client's last byte: silence, the
/// goodbye, and a stream before that which nobody reads.
const END_LIMIT: Duration = Duration::from_secs(300);

/// A client and those whom it talks to.
#[derive(Debug)]
struct Conversation {
    wire: Wire,
    /// What is written at once, again and again.
    cuts: Vec<usize>,
    /// The client reads what it gets.
    listens: bool,
    leaves: Leaves,
    /// What is done with streams, by their number.
    manners: Vec<Manner>,
    /// So many streams are taken, then the connection is closed.
    accepted_max: usize,
    stuck: Option<Duration>,
}

/// What is done with a stream here.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Echo,
    Read,
    Flood,
    Hold,
    Reset,
    DropIncoming,
    DropOutgoing,
    Drop,
}

const MANNERS: [Manner; 8] = [
    Manner::Echo,
    Manner::Read,
    Manner::Flood,
    Manner::Hold,
    Manner::Reset,
    Manner::DropIncoming,
    Manner::DropOutgoing,
    Manner::Drop,
];

impl Conversation {
    fn any(random: &mut Random) -> Conversation {
        Conversation {
            wire: Wire(wire(random)),
            cuts: (0..1 + random.below(4)).map(|_| random.pick(&[1, 3, 8, 100, 5000, 100_000])).collect(),
            listens: !random.once_in(4),
            leaves: Leaves::any(random),
            manners: (0..4).map(|_| random.pick(&MANNERS)).collect(),
            accepted_max: random.pick(&[3, 1000, 1000]),
            stuck: random.pick(&[None, Some(Duration::from_secs(30))]),
        }
    }
}

/// What a client might send: mostly right.
pub(in crate::stream) fn wire(random: &mut Random) -> Vec<u8> {
    let (mut frames, mut packer, mut next_id) = (Vec::new(), ClientPacker::new(), 1);
    for _ in 0..random.below(40) {
        let mut frame = Vec::new();
        let id = 1 + 2 * random.below(6) as u32;
        let flags = random.pick(&[0, 0, 0, 1, 2, 3]);
        match random.below(16) {
            0..4 => {
                open(&mut frame, next_id, flags, &block(random, &mut packer));
                next_id += 2;
            }
            4..8 => {
                let len = random.pick(&[0, 1, 10, 3000, 40_000]);
                frame::data(&mut frame, id, len, flags & 1 == 1);
                frame.extend(random.bytes(len));
            }
            8 => {
                // Many small ones.
                for _ in 0..random.below(300) {
                    let len = random.below(2);
                    frame::data(&mut frame, id, len, false);
                    frame.extend(random.bytes(len));
                }
            }
            9 => {
                let delta = random.pick(&[0, 1, 70_000, 0x7fff_ffff, 0xffff_ffff]);
                frame::window(&mut frame, random.pick(&[0, id]), delta);
            }
            10 => frame::reset(&mut frame, id, frame::Status::Cancel),
            11 => frame::ping(&mut frame, random.next() as u32),
            12 => {
                let window = random.pick(&[0, 1, 65_536, 0x7fff_ffff, 0xffff_ffff]);
                frame::settings(&mut frame, window);
            }
            13 if random.once_in(4) => frame::goaway(&mut frame, id, frame::GoAway::Ok),
            // A head that promises more than comes.
            14 => {
                let head = [random.pick(&[0u8, 0x80]), 3, 0, random.next() as u8, flags, 0xff, 0xff, 0xff];
                frame.extend(head);
            }
            _ => {
                let len = random.below(40);
                control_frame(&mut frame, random.below(12) as u16, flags, &random.bytes(len));
            }
        }
        frames.push(frame);
    }
    random.shuffle(&mut frames);
    let mut wire = frames.concat();
    random.spoil(&mut wire);
    wire
}

/// A header block: as it should be, or one that unpacks to much, or to nothing.
fn block(random: &mut Random, packer: &mut ClientPacker) -> Vec<u8> {
    let kind = random.pick(&["data", "error", "stdin", "stdout", "stderr", "resize", ""]);
    let request = random.below(4).to_string();
    let names: Vec<String> = (0..1000).map(|number| format!("n{number}")).collect();
    match random.below(12) {
        0 => packer.pack(&vec![0; random.pick(&[100, 16 << 10, 1 << 20])]),
        1 => packer.pack(&[&u32::MAX.to_be_bytes()[..], &random.bytes(30)].concat()),
        2 => {
            let count = random.pick(&[64, 65, 1000]);
            let pairs: Vec<(&str, &str)> = names.iter().take(count).map(|name| (name.as_str(), "")).collect();
            packer.block(&pairs)
        }
        // Of another zlib stream.
        3 => ClientPacker::new().block(&[("streamtype", kind)]),
        4 => {
            let len = random.below(60);
            random.bytes(len)
        }
        5 => packer.block(&[("streamtype", kind), ("streamtype", kind)]),
        _ => packer.block(&[("streamtype", kind), ("port", "80"), ("requestid", &request)]),
    }
}

/// Takes a stream as it is to be taken, to its end.
async fn take(mut stream: Stream, manner: Manner) {
    let over = stream.control.over();
    match manner {
        Manner::Echo => {
            while let Some(piece) = stream.incoming.next().await {
                if stream.outgoing.send(piece).await.is_err() {
                    return;
                }
            }
        }
        Manner::Read => while stream.incoming.next().await.is_some() {},
        Manner::Flood => {
            for _ in 0..50 {
                if stream.outgoing.send(Bytes::from_static(&[7; 20_000])).await.is_err() {
                    return;
                }
            }
        }
        Manner::Hold => over.cancelled().await,
        Manner::Reset => stream.control.reset(),
        Manner::DropIncoming => {
            drop(stream.incoming);
            stream.outgoing.closed().await;
        }
        Manner::DropOutgoing => {
            drop(stream.outgoing);
            while stream.incoming.next().await.is_some() {}
        }
        Manner::Drop => {}
    }
}

async fn converse(conversation: &Conversation) {
    let limits = Limits {
        streams_max: 4,
        buffered_bytes_max: 5000,
        idle: IDLE,
        stuck: conversation.stuck,
        ..Limits::default()
    };
    let (client, mut connection) = connect(limits);
    let gone = connection.handle().gone();
    let (manners, accepted_max) = (conversation.manners.clone(), conversation.accepted_max);
    let server = tokio::spawn(async move {
        let (mut tasks, mut accepted) = (tokio::task::JoinSet::new(), 0);
        while accepted < accepted_max
            && let Some(stream) = connection.accept().await
        {
            tasks.spawn(take(stream, manners[accepted % manners.len()]));
            accepted += 1;
        }
        connection.handle().close().await;
        tasks.join_all().await;
    });
    let (mut read, mut write) = tokio::io::split(client.io);
    let (leaving, left) = tokio::sync::oneshot::channel::<()>();
    let reader = async move {
        let mut answers = Vec::new();
        if conversation.listens {
            tokio::select! {
                _ = read.read_to_end(&mut answers) => {}
                _ = left => {}
            }
        } else {
            let _ = left.await;
        }
        answers
    };
    let writer = async move {
        let mut rest = conversation.wire.0.as_slice();
        let mut cuts = conversation.cuts.iter().cycle();
        while !rest.is_empty()
            && let Some(cut) = cuts.next()
        {
            let (piece, tail) = rest.split_at(rest.len().min(*cut));
            rest = tail;
            // A connection that has ended takes no more.
            tokio::select! {
                written = write.write_all(piece) => if written.is_err() { break },
                () = gone.cancelled() => break,
            }
        }
        let held = match conversation.leaves {
            Leaves::InOrder => {
                let _ = write.shutdown().await;
                Some((leaving, write))
            }
            Leaves::Suddenly => {
                drop((leaving, write));
                None
            }
            Leaves::Never => Some((leaving, write)),
        };
        let ends = tokio::time::timeout(END_LIMIT, gone.cancelled()).await;
        assert!(ends.is_ok(), "the connection does not end");
        drop(held);
    };
    let (answers, ()) = tokio::join!(reader, writer);
    server.await.expect("the server");
    // What we say is always frames.
    let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::from(answers.as_slice()));
    while decoder.next(&mut bytes).expect("frames").is_some() {}
}

#[test]
fn fuzz_spdy() {
    fuzz(Conversation::any, converse);
}

/// The decoder alone, with its input in pieces of any size.
#[test]
fn fuzz_spdy_frames() {
    fuzz(
        |random| {
            let cuts: Vec<usize> = (0..3).map(|_| 1 + random.below(200)).collect();
            (Wire(wire(random)), cuts)
        },
        async |(wire, cuts)| {
            let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::new());
            let (mut unpacker, mut rest, mut cuts) =
                (Unpacker::new(16 << 10), &wire.0[..], cuts.iter().cycle());
            while !rest.is_empty()
                && let Some(cut) = cuts.next()
            {
                let (piece, tail) = rest.split_at(rest.len().min(*cut));
                rest = tail;
                bytes.extend_from_slice(piece);
                loop {
                    let frame = match decoder.next(&mut bytes) {
                        Ok(Some(frame)) => frame,
                        Ok(None) => break,
                        Err(_) => return,
                    };
                    if let Frame::Open { block, .. } | Frame::Headers { block, .. } = frame {
                        let _ = unpacker.headers(&block);
                    }
                }
                assert!(bytes.len() < frame::CONTROL_BYTES_MAX + 8 + 200, "{} bytes are kept", bytes.len());
            }
        },
    );
}
