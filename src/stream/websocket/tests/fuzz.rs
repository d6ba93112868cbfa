//! Random WebSocket clients: whatever they send, their connection ends in time and nothing
//! panics. See [`crate::stream::tests`] for how long.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::stream::spdy;
use crate::stream::tests::{Leaves, Random, Wire, fuzz};

/// Silence that ends a connection.
const IDLE: Duration = Duration::from_secs(60);

/// The most that a connection may take to end after its client's last byte.
const END_LIMIT: Duration = Duration::from_secs(300);

const PORTS: [(u8, Direction); 4] =
    [(0, Direction::Both), (1, Direction::Outgoing), (2, Direction::Both), (3, Direction::Outgoing)];

/// A client and those whom it talks to.
#[derive(Debug)]
struct Conversation {
    wire: Wire,
    protocol: &'static str,
    is_forward: bool,
    listens: bool,
    leaves: Leaves,
    /// By channel: whether somebody reads it.
    reads: u8,
    /// What is sent on each channel.
    sent_bytes: usize,
    stuck: Option<Duration>,
}

impl Conversation {
    fn any(random: &mut Random) -> Conversation {
        let protocol =
            random.pick(&["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "v5.channel.k8s.io"]);
        Conversation {
            wire: Wire(wire(random, protocol.contains("base64"))),
            protocol,
            is_forward: random.once_in(3),
            listens: !random.once_in(4),
            leaves: Leaves::any(random),
            reads: random.next() as u8,
            sent_bytes: random.pick(&[0, 10, 100_000]),
            stuck: random.pick(&[None, Some(Duration::from_secs(30))]),
        }
    }
}

/// What a client might send: mostly right.
pub(in crate::stream) fn wire(random: &mut Random, is_base64: bool) -> Vec<u8> {
    let mut frames = Vec::new();
    for _ in 0..random.below(40) {
        let channel = random.pick(&[0, 0, 0, 1, 2, 4, 4, 7, 255]);
        let data = match random.below(8) {
            0 => Vec::new(),
            1 => vec![random.below(6) as u8],
            2 => b"{\"Width\":80,\"Height\":24}".to_vec(),
            3 => {
                let len = random.pick(&[125, 126, 20_000, 65_535, 65_536]);
                random.bytes(len)
            }
            _ => {
                let len = random.below(200);
                random.bytes(len)
            }
        };
        let payload = if is_base64 && !random.once_in(8) {
            let number = char::from(b'0'.wrapping_add(channel));
            let padded = STANDARD.encode(&data);
            format!("{number}{padded}").into_bytes()
        } else {
            [&[channel], data.as_slice()].concat()
        };
        match random.below(12) {
            // Control frames, and such as there are none.
            0 => {
                let opcode = random.pick(&[8, 9, 9, 10, 3, 11]);
                let len = random.pick(&[0, 1, 2, 125, 126]).min(payload.len());
                frames.push(frame(random, opcode | 0x80, &payload[..len]));
            }
            // In fragments, of which the last may be missing.
            1 => {
                let at = random.below(payload.len() + 1);
                frames.push(frame(random, 2, &payload[..at]));
                frames.extend((0..random.below(20)).map(|_| frame(&mut Random::new(1), 0, b"")));
                if !random.once_in(3) {
                    frames.push(frame(random, 0x80, &payload[at..]));
                }
            }
            2 => frames.push(frame(random, 0x81, &payload)),
            3 => frames.push(frame(random, 0xc2, &payload)),
            // A head that promises more than comes.
            4 if random.once_in(3) => {
                let len = random.pick(&[1_u64 << 20, 16 << 20, (16 << 20) + 1, 1 << 40, u64::MAX]);
                let mut head = vec![0x82, 0xff];
                head.extend(len.to_be_bytes());
                frames.push(head);
            }
            _ => frames.push(frame(random, if is_base64 { 0x81 } else { 0x82 }, &payload)),
        }
    }
    random.shuffle(&mut frames);
    let mut wire = frames.concat();
    random.spoil(&mut wire);
    wire
}

/// A frame with a mask, mostly.
pub(in crate::stream) fn frame(random: &mut Random, first: u8, payload: &[u8]) -> Vec<u8> {
    let is_masked = !random.once_in(100);
    let mut frame = vec![first];
    let bit = if is_masked { 0x80 } else { 0 };
    match payload.len() {
        len @ ..126 => frame.push(bit | len as u8),
        len @ ..65_536 => {
            frame.push(bit | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(bit | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    let mask = if is_masked { random.next().to_be_bytes() } else { [0; 8] };
    if is_masked {
        frame.extend(&mask[..4]);
    }
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

async fn converse(conversation: &Conversation) {
    let limits = Limits {
        idle: IDLE,
        stuck: conversation.stuck,
        message_bytes_max: 100_000,
        buffered_bytes_max: 5000,
    };
    let channels = if conversation.is_forward { &PORTS[..] } else { &EXEC[..] };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let mut served = serve_channels(ours, named(conversation.protocol), channels, limits).await;
    let gone = served.handle().gone();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, _) in channels {
        if let Some(mut incoming) = served.incoming(*number) {
            let (reads, gone) = (conversation.reads >> number & 1 == 1, gone.clone());
            tasks.spawn(async move {
                if !reads {
                    gone.cancelled().await;
                }
                while incoming.next().await.is_some_and(|piece| !piece.is_empty()) {}
            });
        }
        if let Some(outgoing) = served.outgoing(*number) {
            let sent_bytes = conversation.sent_bytes;
            tasks.spawn(async move {
                let piece = Bytes::from(vec![7; sent_bytes]);
                for _ in 0..20 {
                    if outgoing.send(piece.clone()).await.is_err() {
                        return;
                    }
                }
                outgoing.closed().await;
            });
        }
    }
    let client = talk(theirs, &conversation.wire.0, conversation.listens, conversation.leaves);
    tokio::select! {
        () = client => {}
        () = gone.cancelled() => {}
    }
    let ends = tokio::time::timeout(END_LIMIT, gone.cancelled()).await;
    assert!(ends.is_ok(), "the connection does not end");
    drop(served);
    tasks.join_all().await;
}

/// A client: writes `wire`, listens if it does, and leaves. One that stays is there for
/// longer than it can be served.
pub(in crate::stream) async fn talk(io: DuplexStream, wire: &[u8], listens: bool, leaves: Leaves) {
    let (mut read, mut write) = tokio::io::split(io);
    let reader = async {
        if listens {
            let _ = read.read_to_end(&mut Vec::new()).await;
        }
    };
    let writer = async {
        let _ = write.write_all(wire).await;
        if leaves == Leaves::InOrder {
            let _ = write.shutdown().await;
        }
    };
    match leaves {
        Leaves::Suddenly => tokio::select! {
            () = writer => {}
            () = async { reader.await; std::future::pending().await } => {}
        },
        Leaves::InOrder | Leaves::Never => {
            tokio::join!(reader, writer);
            tokio::time::sleep(END_LIMIT).await;
        }
    }
}

#[test]
fn fuzz_websocket() {
    fuzz(Conversation::any, converse);
}

/// SPDY in messages.
#[test]
fn fuzz_tunnel() {
    let make = |random: &mut Random| {
        let plain = spdy::tests::fuzz::wire(random);
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut rest = plain.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(1 + random.below(5000)));
            rest = tail;
            frames.push(frame(random, 0x82, piece));
            if random.once_in(8) {
                let opcode = random.pick(&[0x81, 0x89, 0x8a, 0x88]);
                frames.push(frame(random, opcode, b"xy"));
            }
        }
        random.shuffle(&mut frames);
        let mut wire = frames.concat();
        random.spoil(&mut wire);
        (Wire(wire), !random.once_in(4), Leaves::any(random))
    };
    fuzz(make, async |(wire, listens, leaves)| {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let limits = spdy::Limits { idle: IDLE, buffered_bytes_max: 5000, ..spdy::Limits::default() };
        let mut connection = spdy::serve(tunnel(ours).await, limits);
        let gone = connection.handle().gone();
        let server = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Some(mut stream) = connection.accept().await {
                tasks.spawn(async move {
                    while let Some(piece) = stream.incoming.next().await {
                        if stream.outgoing.send(piece).await.is_err() {
                            break;
                        }
                    }
                });
            }
            tasks.join_all().await;
        });
        tokio::select! {
            () = talk(theirs, &wire.0, *listens, *leaves) => {}
            () = gone.cancelled() => {}
        }
        let ends = tokio::time::timeout(END_LIMIT, gone.cancelled()).await;
        assert!(ends.is_ok(), "the connection does not end");
        server.await.expect("the server");
    });
}
