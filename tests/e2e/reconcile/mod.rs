//! What the server notices and repairs while it runs (area REC): each deviation is made by
//! hand, beside things of others that look alike.

mod left;
mod quiet;
mod tables;

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::{Builder, Node, Server, wait_until};

/// A server that compares every second, and tells what it has counted.
fn builder<'a>() -> Builder<'a> {
    let config = "[server]\nreconcile_period_s = 1\n[metrics]\naddress = \"unix://{folder}/m.sock\"\n";
    Node::with(Server::Longshore).config(config)
}

async fn node() -> Node {
    builder().start().await
}

async fn metrics(node: &Node) -> String {
    let mut stream = UnixStream::connect(node.place().path("m.sock")).await.expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text, and then the end");
    answer
}

/// How many repairs of each kind were counted.
async fn repairs(node: &Node) -> BTreeMap<String, u64> {
    let text = metrics(node).await;
    let samples = text.lines().filter_map(|line| line.strip_prefix("longshore_repairs_total{kind=\""));
    let samples = samples.filter_map(|rest| rest.split_once("\"} "));
    samples.map(|(kind, number)| (kind.to_owned(), number.parse().expect("a number"))).collect()
}

/// How often the server has looked.
async fn looks(node: &Node) -> u64 {
    let sample = "longshore_containerd_call_duration_seconds_count{service=\"Snapshots\",method=\"List\"} ";
    let text = metrics(node).await;
    let value = text.lines().find_map(|line| line.strip_prefix(sample));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Waits until the server has looked so often again.
async fn wait_for_looks(node: &Node, number: u64) {
    let end = looks(node).await + number;
    wait_until("further looks", async || looks(node).await >= end).await;
}

/// Waits until so many repairs of a kind were counted.
async fn wait_for_repair(node: &Node, kind: &str, number: u64) {
    wait_until(&format!("a repair of {kind}"), async || {
        repairs(node).await.get(kind).copied().unwrap_or(0) >= number
    })
    .await;
}

fn assert_told(node: &Node, parts: &[&str]) {
    let log = node.longshore().log();
    let is_told = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(is_told, "no line with {parts:?}:\n{log}");
}
