//! Arbitrary messages for every method of both services, from several clients at once, on a
//! node that works: nothing panics, every call ends, the pods of others are unharmed, and
//! what came of it can be removed.
//!
//! | variable | meaning |
//! |---|---|
//! | `LONGSHORE_FUZZ_SECONDS` | how long; 10 |
//! | `LONGSHORE_FUZZ_SEED` | where to begin; 1 |
//!
//! What is sent follows from the seed, but for the ids of what there is at that moment.

mod messages;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use longshore::proto::cri::RemoveImageRequest;
use messages::{Descriptors, Dictionary, Method};
use tokio::task::{JoinSet, LocalSet};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::harness::images::{BUSYBOX, REGISTRY};
use crate::harness::{Chance, Container, Cri, Node, Server, patient, wait_until};

/// Clients that send.
const CLIENTS: u64 = 4;
/// The deadline that each call has from its client.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long after that its answer may come, at most.
const LATE: Duration = Duration::from_secs(60);
/// Pods that were made by chance are removed when there are more.
const PODS_MAX: usize = 12;
/// How much the server may grow, built for debugging.
const GROWTH_KIB_MAX: u64 = 400 * 1024;
/// How often the words are brought up to date.
const PAUSE: Duration = Duration::from_millis(500);

fn number(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number"))
}

/// Messages as they are on the wire.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    /// Its size alone.
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = from.remaining();
        from.advance(bytes);
        Ok(Some(bytes))
    }
}

/// What is fuzzed with, by all clients.
struct Fuzz {
    descriptors: Descriptors,
    /// For calls that change something: with what may be changed.
    words: RefCell<Dictionary>,
    /// For calls that only look: with what may not, too.
    words_to_look: RefCell<Dictionary>,
    socket: String,
    end: Instant,
    codes: RefCell<BTreeMap<(String, String), u64>>,
}

/// Whether a method changes nothing.
fn only_looks(method: &Method) -> bool {
    let begins =
        ["List", "Stream", "Get", "Version", "Status", "RuntimeConfig", "ImageFsInfo", "ImageStatus"];
    begins.iter().any(|word| method.name.starts_with(word))
        || method.name.ends_with("Status")
        || method.name.ends_with("Stats")
}

impl Fuzz {
    /// Sends one call after the other, on a connection of its own.
    async fn client(self: Rc<Self>, seed: u64, client: u64) {
        let endpoint = Endpoint::from_shared(self.socket.clone()).expect("an address");
        let channel = endpoint.connect_lazy();
        for number in 0.. {
            if Instant::now() > self.end {
                return;
            }
            let mut chance = Chance::of(seed, client, number);
            let method =
                &self.descriptors.methods[chance.below(self.descriptors.methods.len() as u64) as usize];
            let words = if only_looks(method) { &self.words_to_look } else { &self.words };
            let message = self.descriptors.request(method, &mut chance, &words.borrow());
            let what = format!("{} of client {client}, call {number}, seed {seed}", method.name);
            // Some go away before the answer.
            let patience =
                if chance.one_in(20) { Duration::from_millis(chance.below(200)) } else { DEADLINE };
            let answer = tokio::time::timeout(patient(DEADLINE + LATE), async {
                tokio::time::timeout(patience + LATE, call(&channel, method, message, patience)).await
            });
            let code = match answer.await {
                Ok(Ok(code)) => code,
                _ => panic!("{what} has not ended"),
            };
            *self.codes.borrow_mut().entry((method.name.clone(), format!("{code:?}"))).or_default() += 1;
        }
    }
}

/// Makes a call, and takes all that it answers.
async fn call(channel: &Channel, method: &Method, message: Vec<u8>, deadline: Duration) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.expect("a connection");
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    let path: PathAndQuery = method.path.parse().expect("a path");
    let answer = match client.server_streaming(request, path, Raw).await {
        Ok(answer) => answer,
        Err(error) => return judge(method, &error),
    };
    let mut stream = answer.into_inner();
    // Streams of events have no end.
    let begun = Instant::now();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(1), stream.message()).await;
        match next {
            Ok(Ok(Some(_))) if begun.elapsed() < deadline => {}
            Ok(Ok(_)) => return Code::Ok,
            Ok(Err(error)) => return judge(method, &error),
            Err(_) if method.is_stream => return Code::Ok,
            Err(_) => panic!("{} has begun to answer and does not go on", method.name),
        }
    }
}

fn judge(method: &Method, error: &Status) -> Code {
    assert!(!error.message().contains("panicked"), "{}: {error:?}", method.name);
    // An answer has no source: it would be of this end.
    let is_gone = error.code() == Code::Unavailable && std::error::Error::source(error).is_some();
    assert!(!is_gone, "{}: the server is gone: {error:?}", method.name);
    error.code()
}

/// Texts for fields; `containers` and `pods` are ids that may be used.
fn dictionary(node: &str, pods: &[String], containers: &[String]) -> Dictionary {
    let list = |words: &[&str]| words.iter().map(|word| (*word).replace("{node}", node)).collect::<Vec<_>>();
    let strange = list(&[
        "",
        ".",
        "..",
        "/",
        "../../../../fuzz-escape",
        "z", // no digit of an id: the beginning of one names it
        "x y",
        "ü",
        "%s%n",
        "a\0b",
        "\n",
        "LONG 300",
        "LONG 5000",
        "LONG 70000",
        "{}",
        "null",
        "-1",
        "true",
        "sha256:",
        "default",
        "0123456789abcdef",
    ]);
    let with = |words: &[&str], ids: &[String]| {
        let mut all = list(words);
        // Mostly ids that there are.
        (0..3).for_each(|_| all.extend(ids.iter().cloned()));
        all.extend(ids.first().map(|id| id[..12].to_owned()));
        all
    };
    let unknown = "f".repeat(64);
    let ids = ["", "../../etc", "a/b", &unknown];
    let busybox = [
        BUSYBOX,
        BUSYBOX,
        BUSYBOX,
        BUSYBOX,
        "registry.test/nope:1",
        "registry.test/../busybox:1",
        "sha256:0",
        "UPPER",
    ];
    BTreeMap::from([
        ("", strange),
        ("pod_sandbox_id", with(&ids, pods)),
        ("container_id", with(&ids, containers)),
        ("target_id", with(&ids, containers)),
        ("id", with(&ids, containers)),
        ("image", list(&busybox)),
        ("user_specified_image", list(&busybox)),
        ("image_ref", list(&busybox)),
        ("runtime_handler", list(&["", "", "", "", "runc", "nope", "../runc"])),
        ("name", list(&["a", "b", "c", "d", "e", "f", "g", "h"])),
        ("namespace", list(&["default", "default", "kube-system"])),
        ("uid", list(&["u1", "u2", "u3"])),
        ("hostname", list(&["", "h", "host.name"])),
        (
            "log_directory",
            list(&[
                "{node}/logs/fuzz",
                "{node}/logs/fuzz",
                "",
                "../../fuzz-escape",
                "{node}/logs/../fuzz-logs",
            ]),
        ),
        ("log_path", list(&["c.log", "c/0.log", "", "../../../fuzz-escape.log", "a/../../b.log"])),
        (
            "host_path",
            list(&[
                "{node}/fuzz-volume",
                "{node}/fuzz-volume",
                "",
                "../x",
                "/dev/null",
                "{node}/fuzz-volume/../fuzz-other",
            ]),
        ),
        ("container_path", list(&["/data", "/data/x", "", "../../x", "/proc", "/etc/passwd", "/"])),
        ("image_sub_path", list(&["", "bin", "../..", "/etc"])),
        ("cgroup_parent", list(&["", "/{cgroup}/fuzz", "/{cgroup}/fuzz-other"])),
        ("command", list(&["true", "sleep", "/bin/sh", "-c", "exit 3"])),
        ("args", list(&["1", "1000", "-c", "echo hello"])),
        ("cmd", list(&["true", "sleep", "/bin/sh", "-c", "echo hello", "1000", "cat", "/dev/zero"])),
        ("working_dir", list(&["", "/", "/tmp", "relative"])),
        ("run_as_username", list(&["", "root", "guest", "nobody"])),
        ("localhost_ref", list(&["", "{node}/no-profile", "../x"])),
        ("seccomp_profile_path", list(&["", "runtime/default", "unconfined", "localhost/{node}/x"])),
        ("apparmor_profile", list(&["", "unconfined", "runtime/default"])),
        ("server_address", list(&["", REGISTRY])),
        ("pod_cidr", list(&["10.0.0.0/16", "x", ""])),
    ])
}

/// Pods of others, and what they must be like in the end.
struct Unharmed {
    containers: Vec<(Container, longshore::proto::cri::ContainerStatus, serde_json::Value)>,
    pods: Vec<String>,
}

impl Unharmed {
    async fn run(node: &Node) -> Unharmed {
        let mut unharmed = Unharmed { containers: Vec::new(), pods: Vec::new() };
        for name in ["first", "second"] {
            let pod = node.pod(name).run().await.expect("a pod");
            let container = pod.container("c").forever().run().await.expect("a container");
            let status = container.status().await.expect("a status");
            let pid = container.info().await["pid"].clone();
            unharmed.pods.push(pod.id.clone());
            unharmed.containers.push((container, status, pid));
        }
        unharmed
    }

    async fn assert(&self) {
        for (container, status, pid) in &self.containers {
            let now = container.status().await.expect("a status");
            let same = |status: &longshore::proto::cri::ContainerStatus| {
                (status.state, status.started_at, status.labels.clone(), status.resources.clone())
            };
            assert_eq!(same(&now), same(status), "a container of others");
            assert_eq!(&container.info().await["pid"], pid);
            assert_eq!(container.sh("echo inside").await, "inside");
        }
    }
}

/// Keeps something there that may be harmed, tells the clients of it, and removes what has
/// become too much. All of it must be possible, whatever the messages have made.
async fn feed(fuzz: Rc<Fuzz>, cri: Cri, unharmed: Rc<Unharmed>, folder: String, cgroup: String) {
    let mut number = 0;
    while Instant::now() < fuzz.end {
        let is_ours = |id: &String| !unharmed.pods.contains(id);
        let pods: Vec<String> =
            cri.pods().await.expect("pods").into_iter().map(|pod| pod.id).filter(is_ours).collect();
        let containers: Vec<String> = cri
            .containers()
            .await
            .expect("containers")
            .into_iter()
            .filter(|container| is_ours(&container.pod_sandbox_id))
            .map(|container| container.id)
            .collect();
        let fill = |mut words: Dictionary| {
            words.values_mut().flatten().for_each(|word| *word = word.replace("{cgroup}", &cgroup));
            words
        };
        *fuzz.words.borrow_mut() = fill(dictionary(&folder, &pods, &containers));
        let own = unharmed.containers.iter().map(|(container, _, _)| container.id.clone());
        let all_pods: Vec<String> = pods.iter().chain(&unharmed.pods).cloned().collect();
        let all: Vec<String> = containers.iter().cloned().chain(own).collect();
        *fuzz.words_to_look.borrow_mut() = fill(dictionary(&folder, &all_pods, &all));
        if pods.len() > PODS_MAX {
            for id in &pods {
                cri.stop_pod(id).await.unwrap_or_else(|error| panic!("a pod is stopped: {error:?}"));
                cri.remove_pod(id).await.unwrap_or_else(|error| panic!("a pod is removed: {error:?}"));
            }
        } else if pods.len() < 3 {
            number += 1;
            // The messages may be in its way, and take away what it is made with.
            let _ = cri.pull(BUSYBOX).await;
            if let Ok(pod) = cri.pod(&format!("victim-{number}")).run().await {
                let image = pod.container("c").image(BUSYBOX);
                let _ = image.forever().run().await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// ERR, SVC-11.
#[tokio::test]
async fn fuzz_calls() {
    let (seed, seconds) = (number("LONGSHORE_FUZZ_SEED", 1), number("LONGSHORE_FUZZ_SECONDS", 10));
    println!("seed {seed}");
    // Whatever a name says, there is one registry.
    let builder = Node::with(Server::Longshore).before(|place| {
        let hosts = place.path("certs/_default");
        std::fs::create_dir_all(&hosts).expect("a folder");
        let registry = crate::harness::Registry::shared();
        std::fs::write(hosts.join("hosts.toml"), registry.hosts()).expect("a file");
    });
    let node = builder.config("[log]\nlevel = \"info\"\n").start().await;
    node.ensure_image(BUSYBOX).await.expect("an image");
    let unharmed = Rc::new(Unharmed::run(&node).await);
    let (server, before) = (node.longshore().pid(), node.longshore().rss_kib());
    let cgroup = node.place().name();
    let folder = node.place().folder().display().to_string();
    std::fs::create_dir_all(node.place().path("fuzz-volume")).expect("a folder");
    let words = dictionary(&folder, &[], &[]);
    let fuzz = Rc::new(Fuzz {
        descriptors: Descriptors::read(),
        words: RefCell::new(words.clone()),
        words_to_look: RefCell::new(words),
        socket: format!("unix://{}", node.cri().socket().display()),
        end: Instant::now() + Duration::from_secs(seconds),
        codes: RefCell::default(),
    });
    let local = LocalSet::new();
    let sent = local.run_until(async {
        let mut all = JoinSet::new();
        for client in 0..CLIENTS {
            all.spawn_local(fuzz.clone().client(seed, client));
        }
        all.spawn_local(feed(fuzz.clone(), node.cri().clone(), unharmed.clone(), folder, cgroup));
        while let Some(ended) = all.join_next().await {
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
    });
    sent.await;

    let codes = fuzz.codes.take();
    let mut by_method: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((method, code), number) in codes.iter() {
        by_method.entry(method).or_default().push(format!("{code} {number}"));
    }
    by_method.iter().for_each(|(method, codes)| println!("{method:28} {}", codes.join(", ")));
    println!("{} calls", codes.values().sum::<u64>());

    assert_eq!(node.longshore().running_pid(), Some(server));
    assert!(node.longshore().is_alive(), "the server lives");
    let log = node.longshore().log();
    let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
    unharmed.assert().await;
    node.remove_all().await;
    let grown = node.longshore().rss_kib().saturating_sub(before);
    println!("the server has grown by {grown} KiB, to {} at its peak", node.longshore().peak_rss_kib());
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB");
    wait_until("an end of all that was removed", async || {
        node.pods().await.is_ok_and(|pods| pods.is_empty())
    })
    .await;
    for image in node.list_images().await.expect("images") {
        let image = Some(longshore::proto::cri::ImageSpec { image: image.id, ..Default::default() });
        node.images().remove_image(RemoveImageRequest { image }).await.expect("an image is removed");
    }
    node.finish().await;
}
