//! How streams and connections end.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_reset_of_the_client_ends_both_directions_of_that_stream_only() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    let mut other = client.stream(3, &mut connection).await;
    client.data(1, b"last words", false).await;
    client.control(3, 0, &[1, 5]).await;
    stream.control.over().cancelled().await;
    stream.outgoing.closed().await;
    assert_eq!(stream.incoming.next().await, Some(Bytes::from_static(b"last words")));
    assert_eq!(stream.incoming.next().await, None);
    assert!(stream.outgoing.send(Bytes::from_static(b"x")).await.is_err());
    assert!(!other.control.over().is_cancelled());
    client.data(3, b"in", false).await;
    assert_eq!(other.incoming.next().await, Some(Bytes::from_static(b"in")));
    other.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    assert_eq!(client.frame().await, data(3, b"out", false));
}

#[tokio::test]
async fn our_reset_comes_after_what_was_sent_and_leaves_others_alone() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    let other = client.stream(3, &mut connection).await;
    for _ in 0..3 {
        stream.outgoing.send(Bytes::from_static(b"words")).await.expect("sent");
    }
    stream.control.reset();
    assert_eq!(stream.incoming.next().await, None);
    for _ in 0..3 {
        assert_eq!(client.frame().await, data(1, b"words", false));
    }
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 1 }));
    assert!(stream.outgoing.send(Bytes::from_static(b"x")).await.is_err());
    // What is on the way to a stream that was reset is no mistake of the client.
    client.data(1, b"late", true).await;
    other.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    assert_eq!(client.frame().await, data(3, b"out", false));
    stream.control.reset();
    client.ping(1).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
}

#[tokio::test]
async fn a_stream_that_has_ended_our_way_can_still_be_reset() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    drop(stream.outgoing);
    assert_eq!(client.frame().await, data(1, b"", true));
    stream.control.reset();
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 1 }));
}

#[tokio::test]
async fn close_writes_everything_that_was_sent_before() {
    let (mut client, mut connection) = connect(Limits::default());
    let one = client.stream(1, &mut connection).await;
    let two = client.stream(3, &mut connection).await;
    let piece = Bytes::from(pattern(60_000));
    for _ in 0..16 {
        one.outgoing.send(piece.clone()).await.expect("sent");
    }
    two.outgoing.send(Bytes::from_static(b"status")).await.expect("sent");
    drop(two.outgoing);
    let handle = connection.handle();
    let closer = tokio::spawn(async move { handle.close().await });
    let (mut received, mut status, mut ends) = (0, Vec::new(), 0);
    loop {
        match client.frame().await.expect("a frame") {
            Frame::Data { id: 1, piece, fin } => {
                received += piece.len();
                ends += u32::from(fin);
            }
            Frame::Data { id: 3, piece, fin } => {
                status.extend_from_slice(&piece);
                ends += u32::from(fin);
            }
            Frame::GoAway => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((received, status.as_slice(), ends), (16 * 60_000, b"status".as_slice(), 2));
    assert_eq!(client.frame().await, None);
    closer.await.expect("closed");
    assert!(one.outgoing.send(piece).await.is_err());
    assert!(one.control.over().is_cancelled());
    assert!(connection.accept().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn close_gives_up_a_client_that_takes_nothing() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    for _ in 0..16 {
        stream.outgoing.send(Bytes::from(pattern(60_000))).await.expect("sent");
    }
    connection.handle().close().await;
    assert!(connection.handle().gone().is_cancelled());
    drop(client);
}

#[tokio::test]
async fn a_connection_that_nobody_holds_is_closed() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    let handle = connection.handle();
    drop(connection);
    // A new stream has nobody to serve it.
    client.open(3, &[]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 3 }));
    stream.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    drop(handle);
    assert_eq!(client.frame().await, data(1, b"out", false));
    assert_eq!(client.frame().await, data(1, b"", true));
    assert_eq!(client.frame().await, Some(Frame::GoAway));
    assert_eq!(client.frame().await, None);
}

#[tokio::test]
async fn what_a_client_sent_before_it_went_is_still_there() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    let gone = connection.handle().gone();
    for number in 0..50 {
        client.data(1, &[number; 10], false).await;
    }
    drop(client);
    gone.cancelled().await;
    assert!(stream.control.over().is_cancelled());
    let mut received = Vec::new();
    while let Some(piece) = stream.incoming.next().await {
        received.extend_from_slice(&piece);
    }
    assert_eq!(received.len(), 500);
    assert!(stream.outgoing.send(Bytes::from_static(b"x")).await.is_err());
    assert!(connection.accept().await.is_none());
}

#[tokio::test]
async fn after_goaway_of_the_client_its_streams_are_finished() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    client.control(7, 0, &[0, 0]).await;
    client.data(1, b"", true).await;
    stream.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    drop(stream.outgoing);
    assert_eq!(client.frame().await, data(1, b"out", false));
    assert_eq!(client.frame().await, data(1, b"", true));
    assert_eq!(client.frame().await, Some(Frame::GoAway));
    assert!(connection.accept().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_and_any_byte_keeps_it() {
    let idle = Duration::from_secs(60);
    let (mut client, mut connection) = connect(Limits { idle, ..Limits::default() });
    let stream = client.stream(1, &mut connection).await;
    let gone = connection.handle().gone();
    for number in 0..5 {
        tokio::time::advance(idle * 3 / 4).await;
        if number % 2 == 0 {
            client.data(1, b"", false).await;
            client.ping(1).await;
        } else {
            stream.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
        }
        assert!(client.frame().await.is_some());
        assert!(!gone.is_cancelled());
    }
    let start = tokio::time::Instant::now();
    assert_eq!(client.frame().await, Some(Frame::GoAway));
    assert!(start.elapsed() >= idle);
    assert_eq!(client.frame().await, None);
    assert!(gone.is_cancelled());
}

#[tokio::test]
async fn a_broken_protocol_ends_the_connection_with_goaway() {
    let mut too_long = Vec::new();
    control_frame(&mut too_long, 1, 0, &[0; 70_000]);
    let mut no_block = Vec::new();
    open(&mut no_block, 1, 0, b"no zlib");
    let mut even = Vec::new();
    open(&mut even, 2, 0, &ClientPacker::new().block(&[]));
    let mut lower = Vec::new();
    let mut packer = ClientPacker::new();
    open(&mut lower, 5, 0, &packer.block(&[]));
    open(&mut lower, 3, 0, &packer.block(&[]));
    let mut window = Vec::new();
    control_frame(&mut window, 9, 0, &[0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    let bomb = ClientPacker::new().pack(&[0; 100_000]);
    let mut headers = Vec::new();
    open(&mut headers, 1, 0, &bomb);
    let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let version = vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    for wire in [too_long, no_block, even, lower, window, headers, version] {
        let (mut client, mut connection) = connect(Limits::default());
        client.write(&wire).await;
        let mut last = None;
        while let Some(frame) = client.frame().await {
            last = Some(frame);
        }
        assert_eq!(last, Some(Frame::GoAway), "{wire:?}");
        drop(client);
        connection.handle().gone().cancelled().await;
        while connection.accept().await.is_some() {}
    }
    // What looks like data of a stream that is not there is answered, and no more.
    let (mut client, connection) = connect(Limits::default());
    client.write(&http).await;
    drop(client);
    connection.handle().gone().cancelled().await;
}
