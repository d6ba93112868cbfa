//! Bounds: streams, buffers, answers.

use std::time::Duration;

use super::*;

const STUCK: Duration = Duration::from_secs(30);

fn tight() -> Limits {
    Limits { buffered_bytes_max: 100_000, stuck: Some(STUCK), ..Limits::default() }
}

#[tokio::test]
async fn more_streams_than_the_bound_are_refused_until_there_is_room() {
    let (mut client, mut connection) = connect(Limits { streams_max: 2, ..Limits::default() });
    let one = client.stream(1, &mut connection).await;
    let _two = client.stream(3, &mut connection).await;
    client.open(5, &[]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 5 }));
    client.data(1, b"", true).await;
    drop(one.outgoing);
    assert_eq!(client.frame().await, data(1, b"", true));
    client.stream(7, &mut connection).await;
}

#[tokio::test]
async fn wrong_headers_and_unknown_streams_are_answered_for_that_stream_only() {
    let (mut client, mut connection) = connect(Limits::default());
    client.open(1, &[("Upper", "case")]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 1 }));
    client.data(9, b"of no stream", false).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 9 }));
    let mut stream = client.stream(3, &mut connection).await;
    // The same id again.
    client.open(3, &[]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 3 }));
    assert_eq!(stream.incoming.next().await, None);
    client.stream(5, &mut connection).await;
}

#[tokio::test]
async fn a_window_that_overflows_resets_its_stream() {
    let (mut client, mut connection) = connect(Limits::default());
    let _stream = client.stream(1, &mut connection).await;
    client.window(1, 0x7fff_ffff).await;
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 1 }));
    client.stream(3, &mut connection).await;
}

/// Writes more to stream 1 than there is room for.
async fn fill(client: &mut Client) {
    for _ in 0..40 {
        client.data(1, &[7; 20_000], false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_does_not_hold_up_the_others_for_ever() {
    let (mut client, mut connection) = connect(tight());
    let mut stuck = client.stream(1, &mut connection).await;
    let mut other = client.stream(3, &mut connection).await;
    let start = tokio::time::Instant::now();
    let writer = tokio::spawn(async move {
        fill(&mut client).await;
        client.data(3, b"at last", false).await;
        client
    });
    assert_eq!(other.incoming.next().await, Some(Bytes::from_static(b"at last")));
    assert!(start.elapsed() >= STUCK);
    let mut client = writer.await.expect("the writer");
    assert_eq!(client.frame().await, Some(Frame::Reset { id: 1 }));
    assert!(stuck.control.over().is_cancelled());
    // What its queue had is there, and not much more.
    let mut received = 0;
    while let Some(piece) = stuck.incoming.next().await {
        received += piece.len();
    }
    assert!(received < 800_000);
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_all_streams_together_has_a_bound() {
    const STREAMS: u32 = 40;
    const PIECES: u32 = 40;
    let limits = Limits { all_buffered_bytes_max: 1_000_000, stuck: None, ..tight() };
    let (mut client, mut connection) = connect(limits);
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(client.stream(1 + 2 * number, &mut connection).await);
    }
    let (written, seen) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        for _ in 0..PIECES {
            for number in 0..STREAMS {
                client.data(1 + 2 * number, &[7; 4000], false).await;
                written.send_modify(|bytes| *bytes += 4000);
            }
        }
        client
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    // In the queues, in what waits, and on the way; less than each may have by itself.
    let queued = (STREAMS * 17 * 4000) as usize;
    let bytes = *seen.borrow();
    assert!((1_000_000..queued + 1_500_000).contains(&bytes), "{bytes}");
    // Whoever reads lets all go on.
    let mut readers = tokio::task::JoinSet::new();
    for mut stream in streams {
        readers.spawn(async move {
            let mut received = 0;
            while received < 4000 * PIECES as usize {
                received += stream.incoming.next().await.expect("a piece").len();
            }
        });
    }
    readers.join_all().await;
    writer.await.expect("the writer");
}

#[tokio::test(start_paused = true)]
async fn a_stream_alone_may_wait_as_long_as_it_likes() {
    let (mut client, mut connection) = connect(tight());
    let mut slow = client.stream(1, &mut connection).await;
    let ended = client.stream(3, &mut connection).await;
    client.data(3, b"", true).await;
    let writer = tokio::spawn(async move {
        fill(&mut client).await;
        client.data(1, b"", true).await;
        client
    });
    tokio::time::sleep(STUCK * 20).await;
    let mut received = 0;
    while let Some(piece) = slow.incoming.next().await {
        received += piece.len();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(received, 800_000);
    assert!(!ended.control.over().is_cancelled());
    writer.await.expect("the writer");
}

#[tokio::test]
async fn what_we_send_goes_on_while_a_stream_is_not_read() {
    let (mut client, mut connection) = connect(tight());
    let stuck = client.stream(1, &mut connection).await;
    let (mut read, mut write) = tokio::io::split(client.io);
    let writer = tokio::spawn(async move {
        let mut wire = Vec::new();
        frame::data(&mut wire, 1, 1 << 20, false);
        wire.resize(wire.len() + (1 << 20), 7);
        let _ = write.write_all(&wire).await;
    });
    stuck.outgoing.send(Bytes::from_static(b"out")).await.expect("sent");
    let mut received = Vec::new();
    while !received.windows(3).any(|bytes| bytes == b"out") {
        assert!(read.read_buf(&mut received).await.expect("read") > 0);
    }
    connection.handle().close().await;
    drop(read);
    writer.await.expect("the writer");
}

#[tokio::test]
async fn a_client_that_asks_and_does_not_listen_is_not_read_any_more() {
    let (mut client, _connection) = connect(Limits::default());
    let mut wire = Vec::new();
    for _ in 0..1000 {
        frame::ping(&mut wire, 1);
    }
    // In the pipe there and back, in the server's buffers: what is beyond makes the client wait.
    let mut written = 0;
    loop {
        // From where the last frame was cut.
        let write = client.io.write(&wire[written % 12..]);
        match futures_util::future::select(std::pin::pin!(write), std::pin::pin!(quiet())).await {
            futures_util::future::Either::Left((len, _)) => written += len.expect("written"),
            futures_util::future::Either::Right(_) => break,
        }
        assert!(written < 2 << 20, "answers pile up");
    }
    let mut read = 0;
    while read + 12 * 1000 < written {
        assert_eq!(client.frame().await, Some(Frame::Ping { id: 1 }));
        read += 12;
    }
}

/// Completes when the other tasks have had their turns.
async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
