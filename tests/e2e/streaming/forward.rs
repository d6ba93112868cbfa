//! Ports of a pod for a client, over SPDY and over WebSocket.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use longshore::proto::cri::PortForwardRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::Client as WebSocket;
use crate::harness::spdy::{Event, Spdy};
use crate::harness::{LIMIT, Node, Pod, Server, wait_until};

async fn url(pod: &Pod, ports: &[u16]) -> String {
    let port = ports.iter().copied().map(i32::from).collect();
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port };
    pod.cri.runtime().port_forward(request).await.expect("a URL").into_inner().url
}

/// A server inside the pod that gives back what it gets, and says goodbye at the end of it.
async fn echo(pod: &Pod, address: impl Into<SocketAddr>) -> u16 {
    let listener = pod.listen(address.into()).await.expect("an address inside the pod");
    serve(listener)
}

fn serve(listener: TcpListener) -> u16 {
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.write_all(b"bye").await;
            });
        }
    });
    port
}

/// A client with any number of connections.
struct Client {
    spdy: Spdy,
    requests: usize,
    seen: BTreeMap<u32, Seen>,
}

/// What came on a stream, and how it ended.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    is_finished: bool,
    is_reset: bool,
}

/// The streams of a connection.
#[derive(Clone, Copy)]
struct Pair {
    error: u32,
    data: u32,
}

impl Client {
    async fn open(pod: &Pod) -> Client {
        let url = url(pod, &[]).await;
        let spdy = Spdy::open(&url, &["portforward.k8s.io"]).await.expect("it switches");
        assert_eq!(spdy.protocol, "portforward.k8s.io");
        Client { spdy, requests: 0, seen: BTreeMap::new() }
    }

    /// A connection to a port.
    async fn connect(&mut self, port: u16) -> Pair {
        let (port, request) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let mut stream = async |kind| {
            let headers = [("streamtype", kind), ("port", &*port), ("requestid", &*request)];
            self.spdy.writer.open(&headers).await.expect("a stream")
        };
        Pair { error: stream("error").await, data: stream("data").await }
    }

    async fn send(&mut self, pair: Pair, bytes: &[u8]) {
        self.spdy.writer.send(pair.data, bytes).await.expect("it takes it");
    }

    async fn finish(&mut self, pair: Pair) {
        self.spdy.writer.finish(pair.data).await.expect("it takes it");
    }

    /// Takes what comes until `is_enough` of a stream is there.
    async fn sees(&mut self, id: u32, is_enough: impl Fn(&Seen) -> bool) -> &Seen {
        while !self.seen.get(&id).is_some_and(&is_enough) {
            let event = tokio::time::timeout(LIMIT, self.spdy.reader.next()).await;
            let event = event.expect("something comes in time").expect("the connection is whole");
            match event.expect("the connection goes on") {
                Event::Data { id, piece, fin } => {
                    let seen = self.seen.entry(id).or_default();
                    seen.bytes.extend_from_slice(&piece);
                    seen.is_finished |= fin;
                }
                Event::Reset { id } => self.seen.entry(id).or_default().is_reset = true,
            }
        }
        &self.seen[&id]
    }
}

/// STM-28, STM-31, STM-33.
#[tokio::test]
async fn connections_live_and_end_side_by_side() {
    const CONNECTIONS: usize = 40;
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("pairs").run().await.expect("a pod");
    let ports = [echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await, echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await];
    let mut client = Client::open(&pod).await;
    let mut pairs = Vec::new();
    for number in 0..CONNECTIONS {
        pairs.push(client.connect(ports[number % 2]).await);
    }
    let text = |number: usize, round: usize| format!("{number}/{round};").repeat(1 + 500 * (number % 3));
    for round in 0..3 {
        for (number, pair) in pairs.iter().enumerate() {
            client.send(*pair, text(number, round).as_bytes()).await;
        }
    }
    // The last ones first.
    for (number, pair) in pairs.iter().enumerate().rev() {
        client.finish(*pair).await;
        let expected = [text(number, 0), text(number, 1), text(number, 2), "bye".to_owned()].concat();
        let seen = client.sees(pair.data, |seen| seen.is_finished).await;
        assert!(seen.bytes == expected.as_bytes(), "connection {number} is not what was sent");
        let error = client.sees(pair.error, |seen| seen.is_finished || seen.is_reset).await;
        assert_eq!((&*error.bytes, error.is_reset), (&b""[..], false));
    }
    node.remove_all().await;
    node.finish().await;
}

/// STM-31: the session goes on, and so does what is connected.
#[tokio::test]
async fn a_refused_connection_resets_its_own_pair_only() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("refused").run().await.expect("a pod");
    let port = echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await;
    let nobody = {
        let listener = pod.listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("an address");
        listener.local_addr().expect("bound").port()
    };
    let mut client = Client::open(&pod).await;
    let good = client.connect(port).await;
    client.send(good, b"before").await;
    client.sees(good.data, |seen| seen.bytes == b"before").await;
    for _ in 0..3 {
        let bad = client.connect(nobody).await;
        let error = client.sees(bad.error, |seen| seen.is_finished).await;
        let words = String::from_utf8_lossy(&error.bytes).into_owned();
        assert!(words.contains(&nobody.to_string()) && words.contains("Connection refused"), "{words}");
        client.sees(bad.data, |seen| seen.is_reset).await;
    }
    let none = client.connect(0).await;
    client.sees(none.data, |seen| seen.is_reset).await;
    client.send(good, b", after").await;
    client.finish(good).await;
    let seen = client.sees(good.data, |seen| seen.is_finished).await;
    assert_eq!(String::from_utf8_lossy(&seen.bytes), "before, afterbye");
    node.remove_all().await;
    node.finish().await;
}

/// STM-32: 127.0.0.1, else ::1; the pod's, or the host's.
#[tokio::test]
async fn both_families_of_the_pods_own_localhost_are_reached() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("own").run().await.expect("a pod");
    let hosts = node.pod("hosts").host_network().run().await.expect("a pod");
    let port = echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await;
    let hosts_port = echo(&hosts, (Ipv4Addr::LOCALHOST, 0)).await;
    let mut reached = vec![(&pod, port), (&hosts, hosts_port)];
    match pod.listen((Ipv6Addr::LOCALHOST, 0).into()).await {
        Ok(listener) => reached.push((&pod, serve(listener))),
        Err(error) => eprintln!("skipped: there is no ::1 in the pod: {error}"),
    }
    for (pod, port) in reached {
        let mut client = Client::open(pod).await;
        let pair = client.connect(port).await;
        client.send(pair, b"hello").await;
        client.finish(pair).await;
        let seen = client.sees(pair.data, |seen| seen.is_finished).await;
        assert_eq!(String::from_utf8_lossy(&seen.bytes), "hellobye");
    }
    // What listens on the host's localhost is not the pod's.
    let mut client = Client::open(&pod).await;
    let pair = client.connect(hosts_port).await;
    let error = client.sees(pair.error, |seen| seen.is_finished).await;
    assert!(String::from_utf8_lossy(&error.bytes).contains("refused"));
    node.remove_all().await;
    node.finish().await;
}

/// The channels of a port begin with its number, little endian (STM-34).
#[tokio::test]
async fn web_socket_channels_are_ports() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("channels").run().await.expect("a pod");
    let port = echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await;
    let nobody = {
        let listener = pod.listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("an address");
        listener.local_addr().expect("bound").port()
    };
    let url = url(&pod, &[port, nobody]).await;
    let mut client = WebSocket::open_with(&url, "v4.channel.k8s.io").await;
    client.send(0, "hello").await;
    let begins = |channel: u8, port: u16, client: &WebSocket| {
        client.seen.get(&channel).is_some_and(|bytes| bytes.starts_with(&port.to_le_bytes()))
    };
    client.sees(0, "hello").await;
    client.sees(3, "Connection refused").await;
    assert!(begins(0, port, &client) && begins(3, nobody, &client));
    while !(begins(1, port, &client) && begins(2, nobody, &client)) {
        assert!(client.read().await, "a channel does not begin with its port");
    }
    client.send(0, " again").await;
    client.sees(0, "hello again").await;
    drop(client);
    node.remove_all().await;
    node.finish().await;
}

/// A client that goes ends its connections inside the pod.
#[tokio::test]
async fn connections_end_with_their_client() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("gone").run().await.expect("a pod");
    let listener = pod.listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("an address");
    let port = listener.local_addr().expect("bound").port();
    let mut client = Client::open(&pod).await;
    let pair = client.connect(port).await;
    client.send(pair, b"hello").await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    drop(client);
    wait_until("the end", async || {
        let mut bytes = [0; 64];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut bytes).await;
        matches!(read, Ok(0) | Err(_))
    })
    .await;
    node.remove_all().await;
    node.finish().await;
}

/// STM-33: the pod ends a connection first, as servers do with one that is idle. Clients wait for
/// the end of the pair before they close what they have of it.
#[tokio::test]
async fn a_connection_that_the_pod_ends_is_over_for_its_client() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("first").run().await.expect("a pod");
    let listener = pod.listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("an address");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"goodbye").await.expect("it takes it");
        }
    });
    let mut client = Client::open(&pod).await;
    for _ in 0..2 {
        let pair = client.connect(port).await;
        let data = client.sees(pair.data, |seen| seen.is_finished).await;
        assert_eq!(data.bytes, b"goodbye");
        let error = client.sees(pair.error, |seen| seen.is_finished).await;
        assert_eq!(String::from_utf8_lossy(&error.bytes), "");
    }
    let mut channels = WebSocket::open_with(&url(&pod, &[port]).await, "v4.channel.k8s.io").await;
    channels.sees(0, "goodbye").await;
    while channels.read().await {}
    node.remove_all().await;
    node.finish().await;
}

/// STM-33: a client that has ended its direction, and a pod that does not care. After a minute
/// their connection ends, and no other: kubectl gives up all of its ports for an error text.
#[tokio::test]
async fn a_pod_that_is_silent_after_its_clients_end_ends_that_connection_only() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("silent").run().await.expect("a pod");
    let port = echo(&pod, (Ipv4Addr::LOCALHOST, 0)).await;
    let listener = pod.listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("an address");
    let silent = listener.local_addr().expect("bound").port();
    let mut client = Client::open(&pod).await;
    let other = client.connect(port).await;
    client.send(other, b"before").await;
    let pair = client.connect(silent).await;
    client.finish(pair).await;
    let (_stream, _) = listener.accept().await.expect("a connection");
    // Longer than the pod may be silent.
    tokio::time::sleep(Duration::from_secs(62)).await;
    client.sees(pair.data, |seen| seen.is_reset).await;
    let error = client.sees(pair.error, |seen| seen.is_finished || seen.is_reset).await;
    assert_eq!(String::from_utf8_lossy(&error.bytes), "");
    client.send(other, b", after").await;
    client.finish(other).await;
    let seen = client.sees(other.data, |seen| seen.is_finished).await;
    assert_eq!(String::from_utf8_lossy(&seen.bytes), "before, afterbye");
    node.remove_all().await;
    node.finish().await;
}
