//! The server's own metrics, as Prometheus reads them.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

use crate::harness::images::BUSYBOX;
use crate::harness::{Node, Server, wait_for, wait_until};

const AT_A_SOCKET: &str = "[metrics]\naddress = \"unix://{folder}/m.sock\"\n";
/// What is logged when metrics are served.
const SERVING: &str = "serving metrics";

/// Asks for the metrics, and gives the answer's text.
async fn scrape(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text, and then the end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body.to_owned()
}

async fn scrape_socket(path: &Path) -> String {
    scrape(UnixStream::connect(path).await.expect("it listens")).await
}

/// The value of a sample; 0 for one that is not there yet.
fn value(text: &str, sample: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Metrics of docs/metrics.md that are not in `text`, and the other way round.
fn unlike_the_document(text: &str) -> (Vec<String>, Vec<String>) {
    let document = include_str!("../../docs/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `longshore_")?.split_once('`'));
    let listed: BTreeSet<String> = rows.map(|(name, _)| format!("longshore_{name}")).collect();
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let end = |kind: &str| if kind == "counter" { "_total" } else { "" };
    let served: BTreeSet<String> = typed.map(|(name, kind)| format!("{name}{}", end(kind))).collect();
    assert!(served.len() > 20, "{text}");
    (listed.difference(&served).cloned().collect(), served.difference(&listed).cloned().collect())
}

#[tokio::test]
async fn what_a_pod_costs_is_counted() {
    let node = Node::with(Server::Longshore).config(AT_A_SOCKET).start().await;
    let socket = node.place().path("m.sock");
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let before = scrape_socket(&socket).await;
    assert_eq!(value(&before, "longshore_cri_call_duration_seconds_count{method=\"RunPodSandbox\"}"), 0.0);
    assert_eq!(value(&before, "longshore_containerd_connected"), 1.0);

    let name = "not-to-be-told";
    let pod = node.pod(name).run().await.expect("a pod");
    let container = pod.container("inner-not-to-be-told").sh("echo hello; sleep 1000");
    let container = container.run().await.expect("it runs");
    container.wait_log("hello").await;
    let refused = node.pod_status("nothing", false).await.expect_err("there is none");
    assert_eq!(refused.code(), Code::NotFound);
    let refused = node.pod("b").handler("none").run().await.expect_err("there is no such handler");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = node.pull("registry.test/no-such-image:1").await.expect_err("there is none");
    assert_eq!(refused.code(), Code::NotFound);
    // A call that its client gives up: it waits for the end of a command.
    tokio::select! {
        ended = container.exec(["sleep", "1000"]) => panic!("it ended: {ended:?}"),
        () = wait_until("the call", async || {
            value(&scrape_socket(&socket).await, "longshore_cri_calls_running") == 1.0
        }) => {}
    }
    let given_up = "longshore_cri_call_errors_total{method=\"ExecSync\",code=\"Canceled\"}";
    let text = wait_for("the end of the given up call", async || {
        let text = scrape_socket(&socket).await;
        (value(&text, given_up) == 1.0).then_some(text)
    })
    .await;

    // There are no labels yet of what never happened.
    let never = [
        "longshore_cni_plugin_errors_total",
        "longshore_pod_start_stage_errors_total",
        "longshore_repairs_total",
    ];
    assert_eq!(unlike_the_document(&text), (never.map(str::to_owned).to_vec(), Vec::new()));
    let exactly = [
        ("longshore_cri_call_duration_seconds_count{method=\"RunPodSandbox\"}", 2.0),
        ("longshore_cri_call_errors_total{method=\"RunPodSandbox\",code=\"InvalidArgument\"}", 1.0),
        ("longshore_cri_call_errors_total{method=\"PodSandboxStatus\",code=\"NotFound\"}", 1.0),
        ("longshore_cri_call_errors_total{method=\"PullImage\",code=\"NotFound\"}", 1.0),
        ("longshore_cri_calls_running", 0.0),
        ("longshore_containerd_call_duration_seconds_count{service=\"Tasks\",method=\"Create\"}", 2.0),
        ("longshore_cni_plugin_duration_seconds_count{plugin=\"bridge\",command=\"ADD\"}", 1.0),
        ("longshore_image_pull_duration_seconds_count{}", 2.0),
        ("longshore_image_pull_errors_total{code=\"NotFound\"}", 1.0),
        ("longshore_image_pulls_running", 0.0),
        ("longshore_pods{state=\"ready\"}", 1.0),
        ("longshore_pods{state=\"notready\"}", 0.0),
        ("longshore_containers{state=\"running\"}", 1.0),
        ("longshore_log_lost_entries_total", 0.0),
    ];
    for (sample, want) in exactly {
        assert_eq!(value(&text, sample), want, "{sample} in\n{text}");
    }
    for stage in
        ["image", "spec", "record", "netns", "files", "snapshot", "cni", "pause_create", "pause_start"]
    {
        let sample = format!("longshore_pod_start_stage_duration_seconds_count{{stage=\"{stage}\"}}");
        assert_eq!(value(&text, &sample), 1.0, "{sample}");
    }
    let images = node.list_images().await.expect("a list").len();
    assert_eq!(value(&text, "longshore_images"), images as f64);
    let log_bytes = container.log().await.len() as f64;
    assert_eq!(value(&text, "longshore_log_written_bytes_total"), log_bytes);
    assert!(value(&text, "longshore_image_pull_received_bytes_total") > 100_000.0);
    for process in ["server", "keeper"] {
        assert!(value(&text, &format!("longshore_process_open_fds{{process=\"{process}\"}}")) > 3.0);
        let memory = format!("longshore_process_resident_memory_bytes{{process=\"{process}\"}}");
        assert!(value(&text, &memory) > 1_000_000.0, "{text}");
    }
    for secret in [name, "inner-", pod.id.as_str(), container.id.as_str(), BUSYBOX, "no-such-image", "sha256"]
    {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }

    // A log that cannot be written to is told.
    std::fs::remove_file(container.log_path()).expect("removed");
    wait_until("lost output", async || {
        // The file is looked for once a second.
        container.sh("echo lost >/proc/1/fd/1").await;
        value(&scrape_socket(&socket).await, "longshore_log_lost_entries_total") >= 1.0
    })
    .await;

    pod.stop().await.expect("stopped");
    let text = scrape_socket(&socket).await;
    assert_eq!(value(&text, "longshore_pods{state=\"notready\"}"), 1.0);
    assert_eq!(value(&text, "longshore_containers{state=\"exited\"}"), 1.0);
    assert_eq!(
        value(&text, "longshore_cni_plugin_duration_seconds_count{plugin=\"bridge\",command=\"DEL\"}"),
        1.0
    );
    node.remove_all().await;
    node.longshore().terminate().await;
    assert!(!socket.exists());
    node.longshore().start().await;
    node.finish().await;
}

/// The samples of calls to containerd, as a text that is the same exactly if there was none.
fn containerd_calls(text: &str) -> Vec<String> {
    let is_count = |line: &&str| line.starts_with("longshore_containerd_call_duration_seconds_count");
    text.lines().filter(is_count).map(str::to_owned).collect()
}

/// SVC-35: lists, states and figures are told from memory and from the kernel's files.
#[tokio::test]
async fn who_looks_at_pods_does_not_trouble_containerd() {
    const CONTAINERS_OF_POD: usize = 167;
    const CONTAINERS: usize = 3 * CONTAINERS_OF_POD;
    // Nor does the server compare meanwhile.
    let alone = "[server]\nreconcile_period_s = 0\n";
    let node = Node::with(Server::Longshore).config(AT_A_SOCKET).config(alone).start().await;
    let socket = node.place().path("m.sock");
    for number in 0..3 {
        let pod = node.pod(&format!("pod-{number}")).run().await.expect("a pod");
        pod.container("runs").forever().run().await.expect("it runs");
        let over = pod.container("over").sh("exit 3").run().await.expect("it runs");
        over.wait_exited().await;
        pod.container("created").create().await.expect("created");
        let more = (3..CONTAINERS_OF_POD).map(|number| {
            let container = pod.container(&format!("more-{number}"));
            async move { container.create().await.expect("created") }
        });
        let more: Vec<_> = futures_util::stream::iter(more).buffer_unordered(8).collect().await;
        assert_eq!(more.len(), CONTAINERS_OF_POD - 3);
    }
    let look = async || {
        let (pods, containers) =
            (node.pods().await.expect("pods"), node.containers().await.expect("containers"));
        assert_eq!((pods.len(), containers.len()), (3, CONTAINERS));
        for pod in pods {
            node.pod_status(&pod.id, false).await.expect("a status");
        }
        for container in containers {
            node.container_status(&container.id, false).await.expect("a status");
        }
        assert_eq!(node.list_pod_stats(None).await.expect("figures").len(), 3);
        let figures = node.list_container_stats(None).await.expect("figures");
        assert!(figures.len() >= 3, "{}", figures.len());
        node.pod_metrics().await.expect("metrics");
        node.list_images().await.expect("images");
    };
    // What the containers have written is measured by containerd, at most every ten seconds.
    let usage = "longshore_containerd_call_duration_seconds_count{service=\"Snapshots\"";
    let counted = async || {
        let calls = containerd_calls(&scrape_socket(&socket).await);
        calls.into_iter().filter(|call| !call.starts_with(usage)).collect::<Vec<_>>()
    };
    look().await;
    let before = counted().await;
    assert!(!before.is_empty());
    for _ in 0..2 {
        look().await;
    }
    assert_eq!(counted().await, before);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_fails_is_counted_with_its_pod() {
    let script = "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\n\
                  echo '{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"no\"}'\nexit 1\n";
    let list = serde_json::json!({
        "cniVersion": "0.4.0", "name": "{name}", "plugins": [{ "type": "refuses" }],
    });
    let node = Node::with(Server::Longshore).config(AT_A_SOCKET).cni(list).plugin("refuses", script);
    let node = node.start().await;
    node.pod("a").run().await.expect_err("it has no network");
    let text = scrape_socket(&node.place().path("m.sock")).await;
    for sample in [
        "longshore_cni_plugin_errors_total{plugin=\"refuses\",command=\"ADD\",code=\"Unknown\"}",
        "longshore_pod_start_stage_errors_total{stage=\"cni\",code=\"Unknown\"}",
        "longshore_cri_call_errors_total{method=\"RunPodSandbox\",code=\"Unknown\"}",
    ] {
        assert_eq!(value(&text, sample), 1.0, "{sample} in\n{text}");
    }
    assert_eq!(value(&text, "longshore_pods{state=\"notready\"}"), 0.0);
    node.finish().await;
}

#[tokio::test]
async fn an_address_is_served_too() {
    let node = Node::with(Server::Longshore).config("[metrics]\naddress = \"127.0.0.1:0\"\n").start().await;
    let log = node.longshore().log();
    let line = log.lines().find(|line| line.contains(SERVING)).expect("a line");
    let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let stream = TcpStream::connect(address.expect("an address")).await.expect("it listens");
    assert!(value(&scrape(stream).await, "longshore_containerd_connected") == 1.0);
    assert!(!log.contains("whoever reaches this address"));
    node.finish().await;
}

#[tokio::test]
async fn nothing_is_served_by_default() {
    let node = Node::with(Server::Longshore).start().await;
    assert!(!node.longshore().log().contains(SERVING));
    node.finish().await;
}
