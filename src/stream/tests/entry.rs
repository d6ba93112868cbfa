//! Random bytes at the door: requests that are right, or nearly, what follows their upgrade,
//! and garbage. Whatever comes, it is answered or closed in time, and leaves nothing behind.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Leaves, Random, Wire, fuzz};
use crate::cdi::Cdi;
use crate::config::{Config, Overrides};
use crate::container::{self, Containers};
use crate::containerd::Containerd;
use crate::image::Images;
use crate::io::{Keeper, KeeperOptions};
use crate::network::Network;
use crate::pod::Pods;
use crate::proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::state::Paths;
use crate::stream::server::Client;
use crate::stream::{Inner, Limits, Request, Streaming, spdy, websocket};

/// Silence that ends a session.
const IDLE: Duration = Duration::from_secs(60);

/// A client's connection.
#[derive(Debug)]
struct Visit {
    wire: Wire,
    listens: bool,
    leaves: Leaves,
    /// The server is stopped after so many seconds.
    stops_after: Option<u64>,
}

/// What tokens there are, by the URL's first part; each is good for what it says.
const KINDS: [&str; 3] = ["exec", "attach", "portforward"];

impl Visit {
    fn any(random: &mut Random) -> Visit {
        let mut wire = head(random);
        if random.once_in(3) {
            random.spoil(&mut wire);
        }
        wire.extend(match random.below(4) {
            0 => websocket::tests::fuzz::wire(random, false),
            1 => websocket::tests::fuzz::wire(random, true),
            _ => spdy::tests::fuzz::wire(random),
        });
        if random.once_in(16) {
            let len = random.below(2000);
            wire = random.bytes(len);
        }
        Visit {
            wire: Wire(wire),
            listens: !random.once_in(4),
            leaves: Leaves::any(random),
            stops_after: random.once_in(8).then(|| random.below(100) as u64),
        }
    }
}

/// The head of a request.
fn head(random: &mut Random) -> Vec<u8> {
    let kind = random.pick(&KINDS);
    let token = if random.once_in(8) { random.pick(&KINDS) } else { kind };
    let method = random.pick(&["GET", "GET", "POST", "POST", "PUT", "HEAD", "PRI"]);
    let path = match random.below(12) {
        0 => "/".to_owned(),
        1 => format!("/{kind}/"),
        2 => format!("/{kind}/{}", "x".repeat(random.pick(&[10, 5000, 40_000]))),
        3 => format!("//{kind}/../%00/{token}?x=/{kind}/{token}"),
        _ => format!("/{kind}/{token}"),
    };
    let version = random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""]);
    let mut lines = vec![format!("{method} {path} {version}"), "Host: node".to_owned()];
    let is_spdy = random.once_in(2);
    if !random.once_in(10) {
        lines.push(format!("Connection: {}", random.pick(&["Upgrade", "keep-alive, upgrade", "close", ""])));
        lines.push(format!("Upgrade: {}", if is_spdy { "SPDY/3.1" } else { "websocket" }));
    }
    let protocols = [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "v3.channel.k8s.io, v2.channel.k8s.io",
        "channel.k8s.io",
        "portforward.k8s.io",
        "SPDY/3.1+portforward.k8s.io",
        "",
        ",,, ,",
    ];
    for _ in 0..random.below(3) {
        let name = if is_spdy { "X-Stream-Protocol-Version" } else { "Sec-WebSocket-Protocol" };
        lines.push(format!("{name}: {}", random.pick(&protocols)));
    }
    if !is_spdy && !random.once_in(8) {
        lines.push("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        lines.push(format!("Sec-WebSocket-Version: {}", random.pick(&["13", "13", "13", "8", ""])));
    }
    match random.below(12) {
        0 => lines.push(format!("X-Long: {}", "y".repeat(random.pick(&[100, 31_000, 33_000])))),
        1 => lines.extend((0..random.pick(&[10, 70, 2000])).map(|number| format!("X-{number}: z"))),
        2 => lines.push("Content-Length: 100000".to_owned()),
        3 => lines.push("Transfer-Encoding: chunked".to_owned()),
        4 => lines.push("Expect: 100-continue".to_owned()),
        _ => {}
    }
    // The end may not come.
    let end = random.pick(&["\r\n\r\n", "\r\n\r\n", "\r\n\r\n", "\n\n", "\r\n", ""]);
    format!("{}{end}", lines.join("\r\n")).into_bytes()
}

/// Pods of which there are none: sessions begin, and find no container.
fn no_pods() -> &'static Pods {
    static PODS: OnceLock<(tokio::runtime::Runtime, Pods)> = OnceLock::new();
    let (_, pods) = PODS.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let inside = runtime.enter();
        let (root, state) = ("/proc/none/root", "/proc/none/state");
        let text = format!("root = {root:?}\nstate = {state:?}\n[image]\ncontainerd_config = \"\"\n");
        let config =
            Config::from_text(&text, "test".as_ref(), &Overrides::default()).expect("a configuration");
        let config = Arc::new(config);
        let address = "/proc/none/containerd.sock".as_ref();
        let containerd = Containerd::new(address, "test", Duration::from_secs(1)).expect("not connected");
        let containers = Containers::new(container::Inner {
            images: Images::new(containerd.clone(), &config),
            cdi: Cdi::new(false, &[]),
            keeper: Keeper::new("/proc/none/longshore".into(), state.as_ref(), KeeperOptions::default()),
            store: Default::default(),
            paths: Paths::new(root.as_ref(), state.as_ref()),
            host: Default::default(),
            features: Default::default(),
            flow: Default::default(),
            creating: Default::default(),
            events: Default::default(),
            failed: Default::default(),
            exits: Default::default(),
            deleting: Default::default(),
            starting_execs: Default::default(),
            mounting: Default::default(),
            containerd,
            config: config.clone(),
        });
        let pods = Pods::new(containers, Network::new(&config));
        drop(inside);
        (runtime, pods)
    });
    pods
}

/// A server with a token of each kind.
fn client() -> Client {
    let limits = Limits { idle: IDLE, creation: Duration::from_secs(30) };
    let (tokens, refusals) = Default::default();
    let inner = Inner { pods: no_pods().clone(), tokens, limits, refusals, base: String::new() };
    let streaming = Streaming(Arc::new(inner));
    let container_id = || "c1".to_owned();
    let exec = ExecRequest {
        container_id: container_id(),
        cmd: vec!["sh".into()],
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    let attach =
        AttachRequest { container_id: container_id(), stdout: true, tty: true, ..AttachRequest::default() };
    let forward = PortForwardRequest { pod_sandbox_id: "p1".into(), port: vec![80] };
    let requests = [Request::Exec(exec), Request::Attach(attach), Request::PortForward(forward)];
    for (kind, request) in KINDS.into_iter().zip(requests) {
        streaming.0.tokens.put(kind, request);
    }
    Client { streaming, stop: CancellationToken::new(), sessions: TaskTracker::new() }
}

async fn visit(visit: &Visit) {
    let client = client();
    let (stop, sessions) = (client.stop.clone(), client.sessions.clone());
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let served = async {
        client.receive(ours, None).await;
        sessions.close();
        sessions.wait().await;
    };
    let stops = async {
        if let Some(seconds) = visit.stops_after {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.cancel();
        }
        std::future::pending::<()>().await;
    };
    let talking = websocket::tests::fuzz::talk(theirs, &visit.wire.0, visit.listens, visit.leaves);
    let patient = async {
        talking.await;
        std::future::pending::<()>().await;
    };
    // The server ends by itself, also where the client stays.
    tokio::select! {
        () = served => {}
        () = stops => {}
        () = patient => {}
    }
}

/// STM-07. What is fuzzed below comes through where it is right.
#[tokio::test(start_paused = true)]
async fn a_right_request_is_upgraded_and_a_wrong_one_closed() {
    let head = |kind: &str| {
        format!(
            "POST /{kind}/{kind} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        )
    };
    for (head, wanted, connection) in
        [(head("exec"), "HTTP/1.1 101", "upgrade"), (head("none"), "HTTP/1.1 404", "close")]
    {
        let client = client();
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(client.receive(ours, None));
        theirs.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        // Nobody opens streams, so that the end comes also after an upgrade.
        theirs.read_to_end(&mut answer).await.expect("read");
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.starts_with(&wanted.to_lowercase()), "{answer:?}");
        assert!(answer.contains(&format!("connection: {connection}\r\n")), "{answer:?}");
    }
}

#[test]
fn fuzz_entry() {
    fuzz(Visit::any, visit);
}
