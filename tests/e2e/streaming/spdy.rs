//! A command with the streams of a client that speaks SPDY.

use std::collections::BTreeMap;

use longshore::proto::cri::ExecRequest;
use serde_json::{Value, json};

use super::fifo_sets;
use crate::harness::spdy::{Event, Spdy};
use crate::harness::{Container, LIMIT, Node, Server, wait_until};

/// A client, and what it has seen of each stream.
struct Client {
    spdy: Spdy,
    /// Streams by their kind.
    ids: BTreeMap<&'static str, u32>,
    seen: BTreeMap<u32, Vec<u8>>,
}

impl Client {
    async fn exec(container: &Container, protocol: &str, script: &str, tty: bool) -> Client {
        let request = ExecRequest {
            container_id: container.id.clone(),
            cmd: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let url = container.cri.runtime().exec(request).await.expect("a URL").into_inner().url;
        let mut spdy = Spdy::open(&url, &["v9.channel.k8s.io", protocol]).await.expect("it switches");
        assert_eq!(spdy.protocol, protocol);
        let mut ids = BTreeMap::new();
        // STM-13: in any order.
        for kind in ["stdout", "error", "stdin", if tty { "resize" } else { "stderr" }] {
            let id = spdy.writer.open(&[("streamtype", kind)]).await.expect("a stream");
            ids.insert(kind, id);
        }
        Client { spdy, ids, seen: BTreeMap::new() }
    }

    async fn send(&mut self, kind: &str, text: &str) {
        self.spdy.writer.send(self.ids[kind], text.as_bytes()).await.expect("it takes it");
    }

    fn text(&self, kind: &str) -> String {
        let bytes = self.ids.get(kind).and_then(|id| self.seen.get(id));
        String::from_utf8_lossy(bytes.map_or(&[][..], Vec::as_slice)).into_owned()
    }

    /// Takes what comes; false at the end.
    async fn read(&mut self) -> bool {
        let event = tokio::time::timeout(LIMIT, self.spdy.reader.next()).await;
        match event.expect("something comes in time").expect("the connection is whole") {
            Some(Event::Data { id, piece, .. }) => {
                self.seen.entry(id).or_default().extend_from_slice(&piece);
                true
            }
            Some(Event::Reset { .. }) => true,
            None => false,
        }
    }

    async fn sees(&mut self, kind: &str, text: &str) {
        while !self.text(kind).contains(text) {
            assert!(self.read().await, "{text:?} is not in {:?}: {}", self.text(kind), self.text("error"));
        }
    }

    async fn end(&mut self) {
        while self.read().await {}
    }
}

/// STM-09, STM-10, STM-15 … STM-19.
#[tokio::test]
async fn each_protocol_has_half_close_and_tells_the_end_in_its_own_way() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("protocols").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    for protocol in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"] {
        for code in [0, 42] {
            let script = format!("cat; echo after; echo err >&2; exit {code}");
            let mut client = Client::exec(&container, protocol, &script, false).await;
            client.send("stdin", "some \0 input").await;
            client.sees("stdout", "some \0 input").await;
            // The other direction of this stream, and all other streams, go on.
            client.spdy.writer.finish(client.ids["stdin"]).await.expect("it takes it");
            client.end().await;
            assert_eq!(client.text("stdout"), "some \0 inputafter\n", "{protocol}");
            assert_eq!(client.text("stderr"), "err\n", "{protocol}");
            let error = client.text("error");
            match (protocol, code) {
                ("v4.channel.k8s.io", 0) => {
                    let status: Value = serde_json::from_str(&error).expect("JSON");
                    assert_eq!(status, json!({ "metadata": {}, "status": "Success" }));
                }
                ("v4.channel.k8s.io", _) => {
                    let status: Value = serde_json::from_str(&error).expect("JSON");
                    assert_eq!(status["reason"], "NonZeroExitCode", "{error}");
                    assert_eq!(status["details"]["causes"][0]["message"], "42", "{error}");
                }
                (_, 0) => assert_eq!(error, "", "{protocol}"),
                _ => assert!(error.ends_with("exit code 42"), "{protocol}: {error}"),
            }
        }
    }
    wait_until("nothing is left", async || fifo_sets(node.longshore(), &container) == 1).await;
    node.remove_all().await;
    node.finish().await;
}

/// STM-19, EXE-15.
#[tokio::test]
async fn input_ends_by_itself_while_output_goes_on() {
    const BYTES: usize = 24 << 20;
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("half").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let script = "wc -c; head -c 3000000 /dev/zero";
    let mut client = Client::exec(&container, "v4.channel.k8s.io", script, false).await;
    let id = client.ids["stdin"];
    client.spdy.writer.send(id, &vec![b'x'; BYTES]).await.expect("it takes it");
    client.spdy.writer.finish(id).await.expect("it takes it");
    client.end().await;
    let stdout = &client.seen[&client.ids["stdout"]];
    let count = format!("{BYTES}\n");
    assert!(stdout.starts_with(count.as_bytes()));
    assert_eq!(stdout.len(), count.len() + 3_000_000);
    assert!(client.text("error").contains("Success"), "{}", client.text("error"));

    // A reset ends that direction only, too.
    let mut client = Client::exec(&container, "v4.channel.k8s.io", "cat; echo still; exit 7", false).await;
    client.send("stdin", "before\n").await;
    client.sees("stdout", "before\n").await;
    client.spdy.writer.reset(client.ids["stdin"]).await.expect("it takes it");
    client.end().await;
    assert_eq!(client.text("stdout"), "before\nstill\n");
    assert!(client.text("error").contains("NonZeroExitCode"), "{}", client.text("error"));
    node.remove_all().await;
    node.finish().await;
}

/// STM-12, STM-20, CTR-10.
#[tokio::test]
async fn a_terminal_is_resized() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("terminal").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    for protocol in ["v3.channel.k8s.io", "v4.channel.k8s.io"] {
        let script = "until [ \"$(stty size)\" = \"33 101\" ]; do :; done; read line; echo got $line; exit 3";
        let mut client = Client::exec(&container, protocol, script, true).await;
        client.send("resize", "{\"Width\":1,\"Height\":2}{\"Width\":101,").await;
        client.send("resize", "\"Height\":33}").await;
        client.send("stdin", "word\n").await;
        client.end().await;
        assert!(client.text("stdout").contains("got word\r\n"), "{:?}", client.text("stdout"));
        assert!(client.text("error").contains('3'), "{}", client.text("error"));
    }
    node.remove_all().await;
    node.finish().await;
}
