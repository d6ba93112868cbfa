//! Streams and their data.

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn a_stream_has_its_headers_and_a_reply_before_anything_else() {
    let (mut client, mut connection) = connect(Limits::default());
    client.open(1, &[("streamtype", "stdout"), ("requestid", "7")]).await;
    let stream = connection.accept().await.expect("a stream");
    assert_eq!((stream.id, stream.headers.get("streamtype")), (1, Some("stdout")));
    assert_eq!(stream.headers.get("requestid"), Some("7"));
    stream.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    drop(stream.outgoing);
    assert!(matches!(client.frame().await, Some(Frame::Reply { id: 1, .. })));
    assert_eq!(client.frame().await, data(1, b"out", false));
    assert_eq!(client.frame().await, data(1, b"", true));
}

#[tokio::test]
async fn nothing_is_sent_before_the_client_has_opened_a_stream() {
    let (mut client, _connection) = connect(Limits::default());
    client.ping(1).await;
    assert_eq!(client.any_frame().await, Some(Frame::Ping { id: 1 }));
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    client.data(1, b"in", true).await;
    assert_eq!(stream.incoming.next().await, Some(Bytes::from_static(b"in")));
    assert_eq!(stream.incoming.next().await, None);
    stream.outgoing.send(Bytes::from_static(b"still")).await.expect("sent");
    assert_eq!(client.frame().await, data(1, b"still", false));

    let mut other = client.stream(3, &mut connection).await;
    drop(other.outgoing);
    assert_eq!(client.frame().await, data(3, b"", true));
    client.data(3, b"more", false).await;
    assert_eq!(other.incoming.next().await, Some(Bytes::from_static(b"more")));
}

#[tokio::test]
async fn much_data_goes_both_ways_at_once() {
    const LEN: usize = 5 << 20;
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    let expected = pattern(LEN);
    let echo = tokio::spawn(async move {
        while let Some(piece) = stream.incoming.next().await {
            stream.outgoing.send(piece).await.expect("sent");
        }
    });
    let (read, mut write) = tokio::io::split(client.io);
    let wire = pattern(LEN);
    let writer = tokio::spawn(async move {
        for piece in wire.chunks(40_000) {
            let mut frame = Vec::new();
            frame::data(&mut frame, 1, piece.len(), false);
            frame.extend_from_slice(piece);
            write.write_all(&frame).await.expect("written");
        }
        let mut fin = Vec::new();
        frame::data(&mut fin, 1, 0, true);
        write.write_all(&fin).await.expect("written");
        write
    });
    let (mut read, mut decoder, mut bytes, mut received) =
        (read, Decoder::default(), client.bytes, Vec::new());
    'all: loop {
        while let Some(frame) = decoder.next(&mut bytes).expect("frames") {
            if let Frame::Data { piece, fin, .. } = frame {
                received.extend_from_slice(&piece);
                if fin {
                    break 'all;
                }
            }
        }
        assert!(read.read_buf(&mut bytes).await.expect("read") > 0);
    }
    assert!(received == expected);
    echo.await.expect("the echo");
    writer.await.expect("the writer");
}

#[tokio::test]
async fn many_streams_run_side_by_side() {
    const STREAMS: u32 = 100;
    let (mut client, mut connection) = connect(Limits::default());
    let echo = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let mut stream = connection.accept().await.expect("a stream");
            tasks.spawn(async move {
                while let Some(piece) = stream.incoming.next().await {
                    stream.outgoing.send(piece).await.expect("sent");
                }
            });
        }
        tasks.join_all().await;
        connection
    });
    for number in 0..STREAMS {
        client.open(2 * number + 1, &[("port", "80")]).await;
    }
    for number in 0..STREAMS {
        client.data(2 * number + 1, &number.to_be_bytes(), true).await;
    }
    let (mut replies, mut ends, mut received) = (0, 0, std::collections::BTreeMap::<u32, Vec<u8>>::new());
    while ends < STREAMS {
        match client.frame().await.expect("a frame") {
            Frame::Reply { .. } => replies += 1,
            Frame::Data { id, piece, fin } => {
                received.entry(id).or_default().extend_from_slice(&piece);
                ends += u32::from(fin);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(replies, STREAMS);
    for number in 0..STREAMS {
        assert_eq!(received[&(2 * number + 1)], number.to_be_bytes());
    }
    echo.await.expect("the echo");
}

#[tokio::test]
async fn pings_of_the_client_are_answered() {
    let (mut client, _connection) = connect(Limits::default());
    client.ping(2).await;
    client.ping(1).await;
    client.ping(3).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 3 }));
}

#[tokio::test]
async fn frames_that_say_nothing_to_us_are_passed_over() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    // A no-op, a credential, settings of no interest, a reply to nothing, headers.
    client.control(5, 0, &[]).await;
    client.control(10, 0, &[1, 2, 3]).await;
    client.control(4, 0, &[1, 4, 100]).await;
    for kind in [2, 8] {
        let mut payload = 1_u32.to_be_bytes().to_vec();
        payload.extend(client.packer.block(&[("late", "header")]));
        let mut wire = Vec::new();
        control_frame(&mut wire, kind, 0, &payload);
        client.write(&wire).await;
    }
    // The compression is still in step.
    client.open(3, &[("late", "header")]).await;
    let other = connection.accept().await.expect("a stream");
    assert_eq!(other.headers.get("late"), Some("header"));
    client.data(1, b"x", false).await;
    assert_eq!(stream.incoming.next().await, Some(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn headers_can_end_a_stream() {
    let (mut client, mut connection) = connect(Limits::default());
    let mut stream = client.stream(1, &mut connection).await;
    let mut payload = 1_u32.to_be_bytes().to_vec();
    payload.extend(client.packer.block(&[]));
    let mut wire = Vec::new();
    control_frame(&mut wire, 8, 1, &payload);
    client.write(&wire).await;
    assert_eq!(stream.incoming.next().await, None);
    client.open(3, &[]).await;
    assert!(connection.accept().await.is_some());
}

#[tokio::test]
async fn a_stream_can_be_one_way() {
    let (mut client, mut connection) = connect(Limits::default());
    let block = client.packer.block(&[]);
    let mut wire = Vec::new();
    open(&mut wire, 1, 2, &block);
    client.write(&wire).await;
    client.data(1, b"in", true).await;
    let mut stream = connection.accept().await.expect("a stream");
    assert_eq!(stream.incoming.next().await, Some(Bytes::from_static(b"in")));
    assert!(stream.outgoing.send(Bytes::from_static(b"out")).await.is_err());
    client.ping(1).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
}

#[tokio::test]
async fn windows_bind_once_the_client_has_told_one() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    client.control(4, 0, &[1, 7, 10]).await;
    client.ping(1).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
    stream.outgoing.send(Bytes::from_static(b"0123456789abcdefghij!")).await.expect("sent");
    drop(stream.outgoing);
    assert_eq!(client.frame().await, data(1, b"0123456789", false));
    client.ping(3).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 3 }));
    client.window(1, 10).await;
    assert_eq!(client.frame().await, data(1, b"abcdefghij", false));
    client.window(1, 10).await;
    assert_eq!(client.frame().await, data(1, b"!", false));
    assert_eq!(client.frame().await, data(1, b"", true));
}

#[tokio::test]
async fn the_window_of_the_connection_binds_all_streams_together() {
    let (mut client, mut connection) = connect(Limits::default());
    let (one, two) = (client.stream(1, &mut connection).await, client.stream(3, &mut connection).await);
    client.window(0, 10).await;
    client.ping(1).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
    let piece = Bytes::from(pattern(40_000));
    one.outgoing.send(piece.clone()).await.expect("sent");
    two.outgoing.send(piece.clone()).await.expect("sent");
    let mut received = 0;
    while received < (64 << 10) + 10 {
        let Some(Frame::Data { piece, .. }) = client.frame().await else { panic!("no data") };
        received += piece.len();
    }
    client.ping(3).await;
    assert_eq!(client.frame().await, Some(Frame::Ping { id: 3 }));
    client.window(0, 100_000).await;
    while received < 80_000 {
        let Some(Frame::Data { piece, .. }) = client.frame().await else { panic!("no data") };
        received += piece.len();
    }
}

#[tokio::test]
async fn what_was_consumed_is_told() {
    let limits = Limits { buffered_bytes_max: 100_000, ..Limits::default() };
    let (mut client, mut connection) = connect(limits);
    client.open(1, &[]).await;
    let mut stream = connection.accept().await.expect("a stream");
    let reader = tokio::spawn(async move { while stream.incoming.next().await.is_some() {} });
    for _ in 0..10 {
        client.data(1, &[0; 20_000], false).await;
    }
    assert!(matches!(client.any_frame().await, Some(Frame::Reply { id: 1, .. })));
    assert_eq!(client.any_frame().await, Some(Frame::Settings { window: Some(100_000) }));
    assert!(matches!(client.any_frame().await, Some(Frame::Window { id: 0, .. })));
    let mut told = 0;
    while told < 150_000 {
        let Some(Frame::Window { id: 1, delta }) = client.any_frame().await else { panic!("no window") };
        told += delta;
    }
    drop(client);
    reader.await.expect("the reader");
}

#[tokio::test]
async fn data_that_nobody_reads_is_passed_over_and_told_as_consumed() {
    let (mut client, mut connection) = connect(Limits::default());
    let stream = client.stream(1, &mut connection).await;
    drop(stream.incoming);
    for _ in 0..100 {
        client.data(1, &[0; 50_000], false).await;
    }
    assert!(matches!(client.any_frame().await, Some(Frame::Settings { .. })));
    assert!(matches!(client.any_frame().await, Some(Frame::Window { id: 0, .. })));
    assert!(matches!(client.any_frame().await, Some(Frame::Window { id: 1, .. })));
    stream.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    assert_eq!(client.frame().await, data(1, b"out", false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn data_arrives_whole_however_the_bytes_are_cut(
        pieces in proptest::collection::vec(0_usize..40_000, 1..12),
        cuts in proptest::collection::vec(1_usize..9_000, 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, mut connection) = connect(Limits::default());
            let mut wire = Vec::new();
            open(&mut wire, 1, 0, &client.packer.block(&[("port", "80")]));
            let mut expected = Vec::new();
            for (number, len) in pieces.iter().enumerate() {
                let piece = pattern(len + number).split_off(number);
                frame::data(&mut wire, 1, piece.len(), number + 1 == pieces.len());
                wire.extend_from_slice(&piece);
                expected.extend(piece);
            }
            let writer = tokio::spawn(async move {
                let (mut rest, mut cuts) = (wire.as_slice(), cuts.iter().cycle());
                while !rest.is_empty() {
                    let (piece, tail) = rest.split_at(rest.len().min(*cuts.next().expect("a cut")));
                    client.write(piece).await;
                    rest = tail;
                    tokio::task::yield_now().await;
                }
                client
            });
            let mut stream = connection.accept().await.expect("a stream");
            let mut received = Vec::new();
            while let Some(piece) = stream.incoming.next().await {
                received.extend_from_slice(&piece);
            }
            assert!(received == expected);
            writer.await.expect("the writer");
        });
    }
}
