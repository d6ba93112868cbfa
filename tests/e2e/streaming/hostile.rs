//! Clients of the streaming server that mean no good: whatever they do, others are served,
//! the server stays small, and its log does not grow with them.
//!
//! `LONGSHORE_HOSTILE_CONNECTIONS`: connections with garbage; 300.

use std::time::Duration;

use longshore::proto::cri::ExecRequest;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::{Client, STDOUT, fifo_sets};
use crate::harness::{Container, LIMIT, Longshore, Node, Server, wait_until};

/// What the server may grow by, whatever comes.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// More than the server keeps of clients that say nothing.
const SILENT: usize = 1100;
/// How long a client that trickles waits between two bytes.
const TRICKLE: Duration = Duration::from_millis(100);

async fn url(container: &Container, script: &str) -> Result<String, Status> {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    Ok(container.cri.runtime().exec(request).await?.into_inner().url)
}

/// The address and the path of a URL.
fn parts(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("a URL");
    rest.split_at(rest.find('/').expect("a path"))
}

/// Says `head` and gives what is answered until the connection ends.
async fn say(address: &str, head: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // It may be closed before all is said.
    let _ = stream.write_all(head).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

/// A request to upgrade, with further header lines.
fn upgrade(path: &str, to: &str, more: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n{more}\r\n")
        .into_bytes()
}

/// Somebody else is served.
async fn is_served(container: &Container) {
    let url = url(container, "echo served").await.expect("a URL");
    assert_eq!(Client::open(&url).await.end().await.stdout, "served\n");
}

/// Lines of the log that tell of such clients to who does not look closely.
fn told(longshore: &Longshore) -> usize {
    let is_told = |line: &&str| line.contains("WARN") && line.contains("streaming");
    longshore.log().lines().filter(is_told).count()
}

/// STM-02, STM-03, STM-06, STM-09, STM-22.
#[tokio::test]
async fn what_is_no_request_for_a_session_is_answered_and_closed() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("requests").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let first = url(&container, "true").await.expect("a URL");
    let (address, path) = parts(&first);
    let token = path.rsplit('/').next().expect("a token");
    let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for (head, wanted) in [
        (upgrade("/exec/none", "SPDY/3.1", v4), "404"),
        (upgrade("/", "SPDY/3.1", v4), "404"),
        (format!("PUT {path} HTTP/1.1\r\nHost: n\r\n\r\n").into_bytes(), "405"),
        (upgrade(path, "SPDY/3.1", &format!("X-Long: {}\r\n", "x".repeat(40_000))), "431"),
        (upgrade(path, "SPDY/3.1", &(0..100).map(|n| format!("X-{n}: x\r\n")).collect::<String>()), "431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".to_vec(), "400"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec(), "400"),
    ] {
        let answer = say(address, &head).await;
        assert_eq!(status(&answer), wanted, "{answer:?} to {:?}", String::from_utf8_lossy(&head));
    }
    // A token of another kind is spent by that.
    assert_eq!(status(&say(address, &upgrade(&format!("/attach/{token}"), "SPDY/3.1", v4)).await), "404");
    assert_eq!(status(&say(address, &upgrade(path, "SPDY/3.1", v4)).await), "404");
    // With a token that is good once.
    let websocket = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    for (to, more, wanted) in [
        ("h2c", String::new(), "400"),
        ("SPDY/3.1", String::new(), "400"),
        ("SPDY/3.1", "X-Stream-Protocol-Version: v9\r\n".to_owned(), "403"),
        ("websocket", format!("{websocket}Sec-WebSocket-Protocol: v9\r\n"), "403"),
        ("websocket", String::new(), "400"),
    ] {
        let url = url(&container, "touch /tmp/ran").await.expect("a URL");
        let (address, path) = parts(&url);
        let answer = say(address, &upgrade(path, to, &more)).await;
        assert_eq!(status(&answer), wanted, "{answer:?} to {to} {more:?}");
        assert_eq!(status(&say(address, &upgrade(path, "SPDY/3.1", v4)).await), "404", "it is used");
    }
    assert_eq!(container.sh("ls /tmp").await, "", "nothing has run");
    is_served(&container).await;
    node.remove_all().await;
    node.finish().await;
}

/// STM-04.
#[tokio::test]
async fn tokens_that_nobody_uses_do_not_pile_up() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("tokens").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let mut last = String::new();
    let refused = loop {
        match url(&container, "echo used").await {
            Ok(url) => last = url,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    // Those that wait are good.
    assert_eq!(Client::open(&last).await.end().await.stdout, "used\n");
    is_served(&container).await;
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn garbage_and_silence_hold_up_nobody_and_cost_nothing() {
    let limit = getrlimit(Resource::Nofile);
    let may_have_many = limit.maximum.is_none_or(|maximum| maximum > 4 * SILENT as u64);
    if may_have_many {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("it may be raised");
    }
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("garbage").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    is_served(&container).await;
    let before = node.longshore().rss_kib();
    let first = url(&container, "true").await.expect("a URL");
    let address = parts(&first).0.to_owned();

    let variable = std::env::var("LONGSHORE_HOSTILE_CONNECTIONS");
    let count: usize = variable.map_or(300, |text| text.parse().expect("a number"));
    let mut garbage = JoinSet::new();
    for number in 0..count {
        if garbage.len() >= 100 {
            garbage.join_next().await.expect("some run").expect("no panic");
        }
        let address = address.clone();
        garbage.spawn(async move {
            let noise: Vec<u8> = (0..2000).map(|at| (at * 31 + number * 7 + at / 13) as u8).collect();
            say(&address, &noise).await;
        });
    }
    garbage.join_all().await;
    is_served(&container).await;

    // Those who come with a byte now and then are cut off, also when they never stop.
    let mut slow = JoinSet::new();
    for _ in 0..20 {
        let stream = TcpStream::connect(&address).await.expect("it listens");
        slow.spawn(async move {
            let (mut read, mut write) = stream.into_split();
            let trickle = async {
                let _ = write.write_all(b"GET /exec/x HTTP/1.1\r\nX-Slow: ").await;
                while write.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(TRICKLE).await;
                }
            };
            let mut answer = [0; 100];
            tokio::select! {
                () = trickle => {}
                _ = read.read(&mut answer) => {}
            }
        });
    }
    is_served(&container).await;
    if may_have_many {
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            silent.push(TcpStream::connect(&address).await.expect("it listens"));
        }
        is_served(&container).await;
    }
    tokio::time::timeout(LIMIT, slow.join_all()).await.expect("they are cut off");

    let grown_kib = node.longshore().rss_kib().saturating_sub(before);
    assert!(grown_kib < GROWTH_KIB_MAX, "{grown_kib} KiB more");
    let lines = told(node.longshore());
    assert!((1..10).contains(&lines), "{lines} lines of {count} clients");
    node.remove_all().await;
    node.finish().await;
}

/// STM-13, STM-05, EXE-16.
#[tokio::test]
async fn who_upgrades_and_does_nothing_is_let_go_and_who_reads_nothing_costs_little() {
    let node = Node::with(Server::Longshore).config("[stream]\ncreation_timeout_s = 1").start().await;
    let pod = node.pod("idle").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    is_served(&container).await;
    let before = node.longshore().rss_kib();
    let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let mut sessions = JoinSet::new();
    for _ in 0..50 {
        let url = url(&container, "touch /tmp/ran").await.expect("a URL");
        sessions.spawn(async move {
            let (address, path) = parts(&url);
            let answer = say(address, &upgrade(path, "SPDY/3.1", v4)).await;
            assert_eq!(status(&answer), "101", "{answer:?}");
        });
    }
    is_served(&container).await;
    sessions.join_all().await;
    assert_eq!(container.sh("ls /tmp").await, "", "nothing has run");

    let mut deaf = Vec::new();
    for number in 0..5 {
        let script = format!("echo up; head -c 200000000 /dev/zero; echo over >/tmp/{number}");
        let mut client = Client::open(&url(&container, &script).await.expect("a URL")).await;
        client.sees(STDOUT, "up").await;
        deaf.push(client);
    }
    is_served(&container).await;
    let grown_kib = node.longshore().rss_kib().saturating_sub(before);
    assert!(grown_kib < GROWTH_KIB_MAX, "{grown_kib} KiB more");
    drop(deaf);
    wait_until("the processes have ended", async || container.sh("ls /tmp | wc -l").await == "5").await;
    wait_until("nothing is left", async || fifo_sets(node.longshore(), &container) == 1).await;
    node.remove_all().await;
    node.finish().await;
}
