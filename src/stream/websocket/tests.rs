//! A client of the same WebSocket library on the other end of a pipe.

pub(in crate::stream) mod fuzz;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::*;

type Client = WebSocketStream<DuplexStream>;

const EXEC: [(u8, Direction); 5] = [
    (0, Direction::Incoming),
    (1, Direction::Outgoing),
    (2, Direction::Outgoing),
    (3, Direction::Outgoing),
    (4, Direction::Incoming),
];

fn named(name: &str) -> ChannelProtocol {
    ChannelProtocol::named(name).expect("a protocol")
}

async fn connect(
    protocol: ChannelProtocol,
    channels: &[(u8, Direction)],
    limits: Limits,
) -> (Client, Channels) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let served = serve_channels(ours, protocol, channels, limits).await;
    (WebSocketStream::from_raw_socket(theirs, Role::Client, Some(WebSocketConfig::default())).await, served)
}

async fn message(client: &mut Client) -> Message {
    client.next().await.expect("a message").expect("a good message")
}

fn binary(bytes: &'static [u8]) -> Message {
    Message::Binary(Bytes::from_static(bytes))
}

#[test]
fn only_the_known_protocols_have_a_name() {
    for name in ["", "channel.k8s.io", "v4.channel.k8s.io"] {
        assert_eq!(named(name), ChannelProtocol { base64: false, close_signal: false, greets: true });
    }
    for name in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        assert_eq!(named(name), ChannelProtocol { base64: true, close_signal: false, greets: true });
    }
    assert!(named("v5.channel.k8s.io").close_signal);
    assert_eq!(ChannelProtocol::named("v3.channel.k8s.io"), None);
}

#[tokio::test]
async fn binary_messages_carry_the_channel_in_their_first_byte() {
    let (mut client, mut served) = connect(named("v4.channel.k8s.io"), &EXEC, Limits::default()).await;
    assert_eq!(message(&mut client).await, binary(b"\x01"));
    client.send(binary(b"\x00ls\n")).await.expect("sent");
    // Empty, of no channel, of one that is ours, of nothing.
    for other in [b"\x00".as_slice(), b"\x09x", b"\x01x", b""] {
        client.send(binary(other)).await.expect("sent");
    }
    client.send(binary(b"\x04{}")).await.expect("sent");
    let mut stdin = served.incoming(0).expect("stdin");
    assert_eq!(stdin.next().await, Some(Bytes::from_static(b"ls\n")));
    assert_eq!(served.incoming(4).expect("resizes").next().await, Some(Bytes::from_static(b"{}")));
    assert!(served.incoming(1).is_none());
    let stderr = served.outgoing(2).expect("stderr");
    stderr.send(Bytes::from_static(b"no\n")).await.expect("sent");
    assert_eq!(message(&mut client).await, binary(b"\x02no\n"));
}

#[tokio::test]
async fn text_messages_carry_base64() {
    let protocol = named("v4.base64.channel.k8s.io");
    let (mut client, mut served) = connect(protocol, &EXEC, Limits::default()).await;
    assert_eq!(message(&mut client).await, Message::text("1"));
    client.send(Message::text("0!!")).await.expect("sent");
    client.send(Message::text("0bHMK")).await.expect("sent");
    assert_eq!(served.incoming(0).expect("stdin").next().await, Some(Bytes::from_static(b"ls\n")));
    let stdout = served.outgoing(1).expect("stdout");
    stdout.send(Bytes::from_static(b"\xff")).await.expect("sent");
    assert_eq!(message(&mut client).await, Message::text("1/w=="));
}

#[tokio::test]
async fn ports_are_not_greeted() {
    let ports = [(0, Direction::Both), (1, Direction::Outgoing)];
    let (mut client, mut served) = connect(named("").silent(), &ports, Limits::default()).await;
    let data = served.outgoing(0).expect("data");
    data.send(Bytes::from_static(b"\x50\x00")).await.expect("sent");
    assert_eq!(message(&mut client).await, binary(b"\x00\x50\x00"));
    client.send(binary(b"\x00GET")).await.expect("sent");
    assert_eq!(served.incoming(0).expect("data").next().await, Some(Bytes::from_static(b"GET")));
}

#[tokio::test]
async fn fragments_are_joined_and_pings_between_them_answered() {
    let (mut client, mut served) = connect(named("").silent(), &EXEC, Limits::default()).await;
    let frame = |data: &'static [u8], kind, last| {
        Message::Frame(Frame::message(Bytes::from_static(data), OpCode::Data(kind), last))
    };
    client.send(frame(b"\x00one ", Data::Binary, false)).await.expect("sent");
    client.send(Message::Ping(Bytes::from_static(b"there?"))).await.expect("sent");
    assert_eq!(message(&mut client).await, Message::Pong(Bytes::from_static(b"there?")));
    client.send(frame(b"two", Data::Continue, true)).await.expect("sent");
    assert_eq!(served.incoming(0).expect("stdin").next().await, Some(Bytes::from_static(b"one two")));
}

#[tokio::test]
async fn the_close_signal_ends_one_channel() {
    let (mut client, mut served) = connect(named("v5.channel.k8s.io"), &EXEC, Limits::default()).await;
    message(&mut client).await;
    client.send(binary(b"\x00in")).await.expect("sent");
    client.send(binary(b"\xff\x00")).await.expect("sent");
    let mut stdin = served.incoming(0).expect("stdin");
    assert_eq!(stdin.next().await, Some(Bytes::from_static(b"in")));
    assert_eq!(stdin.next().await, None);
    let stdout = served.outgoing(1).expect("stdout");
    stdout.send(Bytes::from_static(b"out")).await.expect("sent");
    assert_eq!(message(&mut client).await, binary(b"\x01out"));

    // Before v5 it is a channel that nobody knows.
    let (mut client, mut served) = connect(named("v4.channel.k8s.io"), &EXEC, Limits::default()).await;
    client.send(binary(b"\xff\x00")).await.expect("sent");
    client.send(binary(b"\x00in")).await.expect("sent");
    assert_eq!(served.incoming(0).expect("stdin").next().await, Some(Bytes::from_static(b"in")));
}

#[tokio::test]
async fn close_writes_everything_that_was_sent_before() {
    let (mut client, mut served) = connect(named("").silent(), &EXEC, Limits::default()).await;
    let stdout = served.outgoing(1).expect("stdout");
    for _ in 0..16 {
        stdout.send(Bytes::from(vec![7; 50_000])).await.expect("sent");
    }
    let handle = served.handle();
    let closer = tokio::spawn(async move { handle.close().await });
    for _ in 0..16 {
        assert_eq!(message(&mut client).await.len(), 50_001);
    }
    let Message::Close(Some(frame)) = message(&mut client).await else { panic!("no close") };
    assert_eq!(frame.code, CloseCode::Normal);
    assert!(client.next().await.is_none());
    closer.await.expect("closed");
    assert!(stdout.send(Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn a_close_of_the_client_is_answered_and_ends_everything_after_its_data() {
    let (mut client, mut served) = connect(named("").silent(), &EXEC, Limits::default()).await;
    let gone = served.handle().gone();
    for _ in 0..40 {
        client.send(Message::Binary(vec![0; 21].into())).await.expect("sent");
    }
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    client.send(Message::Close(Some(frame.clone()))).await.expect("sent");
    assert_eq!(message(&mut client).await, Message::Close(Some(frame)));
    assert!(client.next().await.is_none());
    gone.cancelled().await;
    let (mut stdin, mut received) = (served.incoming(0).expect("stdin"), 0);
    while let Some(piece) = stdin.next().await {
        received += piece.len();
    }
    assert_eq!(received, 40 * 20);
    assert!(served.outgoing(1).expect("stdout").send(Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn a_client_that_vanishes_is_gone() {
    let (client, served) = connect(named(""), &EXEC, Limits::default()).await;
    drop(client);
    served.handle().gone().cancelled().await;
}

#[tokio::test]
async fn a_connection_that_nobody_holds_is_closed() {
    let (mut client, served) = connect(named("").silent(), &EXEC, Limits::default()).await;
    drop(served);
    assert!(matches!(message(&mut client).await, Message::Close(_)));
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_connection() {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let (mut client, served) = connect(named("").silent(), &EXEC, limits).await;
    client.send(Message::Binary(vec![0; 1001].into())).await.expect("sent");
    let Message::Close(Some(frame)) = message(&mut client).await else { panic!("no close") };
    assert_eq!(frame.code, CloseCode::Size);
    served.handle().gone().cancelled().await;
}

#[tokio::test]
async fn frames_without_a_mask_are_refused() {
    let (ours, mut theirs) = tokio::io::duplex(1000);
    let served = serve_channels(ours, named("").silent(), &EXEC, Limits::default()).await;
    theirs.write_all(&[0x82, 2, 0, b'x']).await.expect("written");
    let mut answer = Vec::new();
    theirs.read_to_end(&mut answer).await.expect("read");
    assert_eq!(answer[0], 0x88);
    assert_eq!(answer[2..4], 1002_u16.to_be_bytes());
    drop(theirs);
    served.handle().gone().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_and_a_ping_keeps_it() {
    let idle = Duration::from_secs(60);
    let limits = Limits { idle, ..Limits::default() };
    let (mut client, served) = connect(named("").silent(), &EXEC, limits).await;
    for _ in 0..3 {
        tokio::time::advance(idle * 3 / 4).await;
        client.send(Message::Ping(Bytes::new())).await.expect("sent");
        assert!(matches!(message(&mut client).await, Message::Pong(_)));
    }
    let start = tokio::time::Instant::now();
    assert!(matches!(message(&mut client).await, Message::Close(_)));
    assert!(start.elapsed() >= idle);
    drop(client);
    served.handle().gone().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_nobody_reads_does_not_hold_up_the_others_for_ever() {
    let stuck = Duration::from_secs(30);
    let limits = Limits { stuck: Some(stuck), buffered_bytes_max: 100_000, ..Limits::default() };
    let ports = [(0, Direction::Both), (2, Direction::Both)];
    let (mut client, mut served) = connect(named("").silent(), &ports, limits).await;
    let start = tokio::time::Instant::now();
    let writer = tokio::spawn(async move {
        for _ in 0..40 {
            if client.send(Message::Binary(vec![0; 20_000].into())).await.is_err() {
                break;
            }
        }
        client
    });
    served.handle().gone().cancelled().await;
    assert!(start.elapsed() >= stuck);
    assert_eq!(served.incoming(2).expect("the other").next().await, None);
    writer.await.expect("the writer");
}

#[tokio::test(start_paused = true)]
async fn a_channel_alone_may_wait_as_long_as_it_likes() {
    let limits =
        Limits { stuck: Some(Duration::from_secs(30)), buffered_bytes_max: 100_000, ..Limits::default() };
    let ports = [(0, Direction::Both), (1, Direction::Outgoing)];
    let (mut client, mut served) = connect(named("").silent(), &ports, limits).await;
    let writer = tokio::spawn(async move {
        for _ in 0..40 {
            client.send(Message::Binary(vec![0; 20_001].into())).await.expect("sent");
        }
        client
    });
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let (mut data, mut received) = (served.incoming(0).expect("data"), 0);
    while received < 800_000 {
        received += data.next().await.expect("a piece").len();
    }
    writer.await.expect("the writer");
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let mut seed = 0x5eed_u64;
    for _ in 0..300 {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let served = serve_channels(ours, named("v5.channel.k8s.io"), &EXEC, Limits::default()).await;
        let garbage: Vec<u8> = (0..200)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        let (mut read, mut write) = tokio::io::split(theirs);
        let _ = write.write_all(&garbage).await;
        let _ = write.shutdown().await;
        let _ = read.read_to_end(&mut Vec::new()).await;
        served.handle().gone().cancelled().await;
    }
}

#[tokio::test]
async fn a_tunnel_carries_spdy() {
    use crate::stream::spdy;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let mut connection = spdy::serve(tunnel(ours).await, spdy::Limits::default());
    let mut client =
        WebSocketStream::from_raw_socket(theirs, Role::Client, Some(WebSocketConfig::default())).await;
    // A PING in two messages, with what means nothing between them.
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    client.send(Message::Binary(Bytes::copy_from_slice(&ping[..5]))).await.expect("sent");
    client.send(Message::Ping(Bytes::new())).await.expect("sent");
    client.send(Message::text("text")).await.expect("sent");
    client.send(Message::Binary(Bytes::copy_from_slice(&ping[5..]))).await.expect("sent");
    loop {
        match message(&mut client).await {
            Message::Pong(_) => {}
            Message::Binary(answer) => {
                assert_eq!(answer.as_ref(), ping);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let handle = connection.handle();
    let closer = tokio::spawn(async move { handle.close().await });
    assert!(matches!(message(&mut client).await, Message::Binary(_)));
    assert!(matches!(message(&mut client).await, Message::Close(_)));
    closer.await.expect("closed");
    assert!(connection.accept().await.is_none());
}
