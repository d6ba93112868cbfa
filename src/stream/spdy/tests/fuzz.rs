//! Random conversations: whatever a client sends, the connection ends when the client does,
//! and nothing panics. `LONGSHORE_FUZZ_SECONDS` says for how long.

use std::time::{Duration, Instant};

use super::*;

const SECONDS: u64 = 2;

/// A small generator, so that a seed is all that is needed to see a conversation again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What a client might send: mostly right, then some bytes of it changed.
fn conversation(random: &mut Random) -> Vec<u8> {
    let (mut wire, mut packer, mut next_id) = (Vec::new(), ClientPacker::new(), 1);
    for _ in 0..random.below(40) {
        let id = 1 + 2 * random.below(6) as u32;
        let flags = if random.below(4) == 0 { 1 } else { 0 };
        match random.below(10) {
            0..3 => {
                open(&mut wire, next_id, flags, &packer.block(&[("streamtype", "data"), ("port", "80")]));
                next_id += 2;
            }
            3..7 => {
                let len = random.below(3000);
                frame::data(&mut wire, id, len, flags == 1);
                wire.extend(random.bytes(len));
            }
            7 => frame::window(&mut wire, id - 1 + random.below(2) as u32, random.next() as u32),
            8 => frame::reset(&mut wire, id, frame::Status::Cancel),
            _ => {
                let len = random.below(40);
                control_frame(&mut wire, random.below(12) as u16, flags, &random.bytes(len));
            }
        }
    }
    if !wire.is_empty() {
        for _ in 0..random.below(4) {
            let at = random.below(wire.len());
            match random.below(3) {
                0 => wire[at] = random.next() as u8,
                1 => wire.truncate(at.max(1)),
                _ => {
                    let len = random.below(20);
                    let noise = random.bytes(len);
                    wire.splice(at..at, noise);
                }
            }
        }
    }
    wire
}

/// One conversation to its end.
async fn converse(wire: Vec<u8>) {
    let limits = Limits { streams_max: 4, buffered_bytes_max: 5000, ..Limits::default() };
    let (client, mut connection) = connect(limits);
    let gone = connection.handle().gone();
    let server = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(mut stream) = connection.accept().await {
            tasks.spawn(async move {
                while let Some(piece) = stream.incoming.next().await {
                    if stream.id % 3 == 0 {
                        stream.control.reset();
                    } else if stream.outgoing.send(piece).await.is_err() {
                        break;
                    }
                }
            });
        }
        tasks.join_all().await;
    });
    let (mut read, mut write) = tokio::io::split(client.io);
    let reader = async {
        let mut answers = Vec::new();
        let _ = read.read_to_end(&mut answers).await;
        answers
    };
    let writer = async {
        let _ = write.write_all(&wire).await;
        let _ = write.shutdown().await;
    };
    let (answers, ()) = tokio::join!(reader, writer);
    gone.cancelled().await;
    server.await.expect("the server");
    // What we say is always frames.
    let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::from(answers.as_slice()));
    while decoder.next(&mut bytes).expect("frames").is_some() {}
}

#[test]
fn whatever_a_client_sends_its_connection_ends_with_it() {
    let seconds = std::env::var("LONGSHORE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let first = 0x5eed_0000_0000_0001_u64;
    let mut seed = first;
    // Many on one paused clock: what waits for time does not cost any.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    while Instant::now() < end {
        let wire = conversation(&mut Random(seed));
        runtime.block_on(async {
            let result = tokio::time::timeout(Duration::from_secs(24 * 60 * 60), converse(wire)).await;
            assert!(result.is_ok(), "the conversation of seed {seed:#x} does not end");
        });
        seed = seed.wrapping_add(0x9e37_79b9);
    }
    assert!(seed != first);
}
