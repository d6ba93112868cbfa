//! A command with a client's streams.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use longshore::proto::cri::ExecRequest;
use tokio_tungstenite::tungstenite::Message;
use tonic::{Code, Status};

use super::{Client, ERROR, STDIN, STDOUT, fifo_sets};
use crate::harness::{Container, Node, Server, wait_until};

pub(super) async fn url(container: &Container, script: &str, tty: bool) -> Result<String, Status> {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    Ok(container.cri.runtime().exec(request).await?.into_inner().url)
}

async fn exec(container: &Container, script: &str, tty: bool) -> Client {
    Client::open(&url(container, script, tty).await.expect("a URL")).await
}

/// EXE-15, STM-16, STM-18, EXE-07, EXE-08.
#[tokio::test]
async fn a_command_has_its_clients_streams_and_tells_its_end() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("exec").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let mut client = exec(&container, "cat; echo err >&2; exit 42", false).await;
    client.send(STDIN, "some \0 input").await;
    client.sees(STDOUT, "some \0 input").await;
    client.close(STDIN).await;
    let end = client.end().await;
    assert_eq!((&*end.stdout, &*end.stderr, end.exit_code()), ("some \0 input", "err\n", Some("42")));
    // Without input to wait for.
    let end = exec(&container, "echo out", false).await.end().await;
    assert!(end.is_success() && end.stdout == "out\n", "{}", end.status);

    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: vec!["/no/such/program".into()],
        stdout: true,
        ..ExecRequest::default()
    };
    let url = container.cri.runtime().exec(request).await.expect("a URL").into_inner().url;
    let end = Client::open(&url).await.end().await;
    assert!(end.failure().contains("no such file or directory"), "{}", end.failure());
    wait_until("nothing is left", async || fifo_sets(node.longshore(), &container) == 1).await;
    assert_eq!(container.log().await, "");
    node.remove_all().await;
    node.finish().await;
}

/// STM-18: clients take the status for the end of everything, also those that read slowly.
#[tokio::test]
async fn the_status_comes_behind_all_output() {
    const BYTES: usize = 6_000_000;
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("last").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let script = format!("head -c {BYTES} /dev/zero; exit 3");
        let url = url(&container, &script, false).await.expect("a URL");
        let mut client = Client::open_with(&url, protocol).await;
        // Until the process has ended, or waits for the client.
        let begun = std::time::Instant::now();
        wait_until("a full way", async || {
            fifo_sets(node.longshore(), &container) == 1 || begun.elapsed() > Duration::from_secs(3)
        })
        .await;
        while client.text(ERROR).is_empty() {
            assert!(client.read().await, "the status comes");
        }
        assert_eq!(client.seen[&STDOUT].len(), BYTES, "all of it has come before the status");
        assert_eq!(client.end().await.exit_code(), Some("3"));
    }
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn much_goes_in_and_out_at_the_same_time() {
    const BYTES: usize = 24 << 20;
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("much").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let client = exec(&container, "cat", false).await;
    let (mut to, mut from) = client.socket.split();
    let byte = |at: usize| (at % 251) as u8;
    let sending = tokio::spawn(async move {
        let all: Vec<u8> = (0..BYTES).map(byte).collect();
        for piece in all.chunks(100_000) {
            let message = [&[STDIN], piece].concat();
            to.send(Message::binary(message)).await.expect("it takes it");
        }
        to.send(Message::binary(vec![super::CLOSE, STDIN])).await.expect("it takes it");
    });
    let mut count = 0;
    let mut status = Vec::new();
    while let Some(Ok(message)) = from.next().await {
        let Message::Binary(bytes) = message else { continue };
        match bytes.split_first() {
            Some((&STDOUT, piece)) => {
                assert!(piece.iter().enumerate().all(|(at, seen)| *seen == byte(count + at)));
                count += piece.len();
            }
            Some((&ERROR, piece)) => status.extend_from_slice(piece),
            _ => {}
        }
    }
    sending.await.expect("no panic");
    assert_eq!(count, BYTES);
    assert!(String::from_utf8_lossy(&status).contains("Success"));
    node.remove_all().await;
    node.finish().await;
}

/// STM-20, STM-21, CTR-10.
#[tokio::test]
async fn a_terminal_has_the_size_that_came_last_also_before_the_process() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("terminal").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let script = "until [ \"$(stty size)\" = \"33 101\" ]; do :; done; echo sized; \
                  read line; echo got $line $TERM; exit 3";
    let mut client = exec(&container, script, true).await;
    for width in 1..=101 {
        client.resize(width, 33).await;
    }
    client.sees(STDOUT, "sized").await;
    client.send(STDIN, "word\n").await;
    let end = client.end().await;
    assert!(end.stdout.contains("got word xterm\r\n"), "{:?}", end.stdout);
    assert_eq!(end.exit_code(), Some("3"));
    node.remove_all().await;
    node.finish().await;
}

/// EXE-16: without a terminal the process goes on; with one it is hung up.
#[tokio::test]
async fn a_client_that_goes_leaves_the_process_to_its_end() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("gone").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let script = "echo up; cat; head -c 4000000 /dev/zero; echo went >/tmp/went";
    let mut client = exec(&container, script, false).await;
    client.sees(STDOUT, "up").await;
    drop(client);
    wait_until("the process has ended", async || container.sh("cat /tmp/went || true").await == "went").await;
    let mut client = exec(&container, "echo up; exec sleep 31415", true).await;
    client.sees(STDOUT, "up").await;
    drop(client);
    wait_until("the hang-up", async || {
        container.sh("ps -o args | grep -c '^sleep 31415' || true").await == "0"
    })
    .await;
    wait_until("nothing is left", async || fifo_sets(node.longshore(), &container) == 1).await;
    node.remove_all().await;
    node.finish().await;
}

/// EXE-05, EXE-01.
#[tokio::test]
async fn a_child_that_holds_the_output_does_not_hold_the_client() {
    let node = Node::with(Server::Longshore).config("[container]\nexec_drain_timeout_s = 1").start().await;
    let pod = node.pod("child").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let end = exec(&container, "sleep 1000 & echo parent", false).await.end().await;
    assert!(end.is_success() && end.stdout == "parent\n", "{}", end.status);
    let late = url(&container, "echo never", false).await.expect("a URL");
    container.stop(0).await.expect("stopped");
    let end = Client::open(&late).await.end().await;
    assert!(end.failure().contains("CONTAINER_EXITED"), "EXE-12: {}", end.failure());
    assert_eq!(url(&container, "true", false).await.expect_err("ended").code(), Code::FailedPrecondition);
    node.remove_all().await;
    node.finish().await;
}

/// REC-14, STM-08.
#[tokio::test]
async fn a_server_that_ends_leaves_the_process_to_the_next_one() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("restart").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    for is_clean in [true, false] {
        let script = "rm -f /tmp/over; echo up; cat; head -c 4000000 /dev/zero; echo over >/tmp/over";
        let mut client = exec(&container, script, false).await;
        client.sees(STDOUT, "up").await;
        if is_clean {
            let ((), end) = tokio::join!(node.longshore().terminate(), client.end());
            assert!(end.failure().contains("the server is stopping"), "{}", end.failure());
        } else {
            node.longshore().kill().await;
        }
        node.longshore().start().await;
        wait_until("the process has ended", async || {
            container.sh("cat /tmp/over 2>/dev/null || true").await == "over"
        })
        .await;
        wait_until("nothing is left", async || fifo_sets(node.longshore(), &container) == 1).await;
    }
    node.remove_all().await;
    node.finish().await;
}
