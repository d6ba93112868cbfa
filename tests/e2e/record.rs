//! `longshore record` and `longshore replay`: the traffic of a client as the kubelet is one,
//! recorded on one node, and played to others.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use longshore::proto::cri;
use longshore::proto::cri::{AuthConfig, ContainerEventType, ImageSpec, PullImageRequest};
use serde_json::Value;
use tonic::Code;

use crate::harness::images::BUSYBOX;
use crate::harness::{
    Cri, Events, Longshore, Node, Process, Server, command, patient, prefer_newest_containerd, procfs,
    wait_until,
};

/// What every secret has in it.
const MARK: &str = "x7secretq";

/// A recorder in front of a node's server.
struct Recording {
    process: Process,
    /// A client through it.
    cri: Cri,
    file: PathBuf,
}

impl Recording {
    async fn start(node: &Node, name: &str) -> Recording {
        let (file, listen) = (node.place().path(&format!("{name}.jsonl")), node.place().path(name));
        let mut record = command(Longshore::program());
        record.arg("record").arg(&file).arg("--server").arg(node.socket());
        record.arg("--listen").arg(format!("unix://{}", listen.display()));
        let process = Process::start("longshore record", record, &node.place().path(&format!("{name}.log")));
        let cri = Cri::new(&listen, node.place());
        wait_until("the recorder", async || listen.exists()).await;
        cri.wait_until_answers().await;
        Recording { process, cri, file }
    }

    /// Ends it; gives its file.
    async fn end(self) -> PathBuf {
        let status = self.process.terminate(patient(Duration::from_secs(20))).await;
        assert!(status.success(), "the recorder ends with {status}");
        self.file
    }
}

/// The lines of a record.
fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a record");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The calls of a method.
fn calls<'a>(lines: &'a [Value], method: &str) -> Vec<&'a Value> {
    lines.iter().map(|line| &line["call"]).filter(|call| call["method"] == method).collect()
}

/// Plays a record to a node's server; gives its exit code, and its report.
async fn replay(file: &Path, from: &Node, to: &Node, flags: &[&str]) -> (Option<i32>, Value) {
    let (code, text, errors) = run_replay(file, from, to, &[&["--json"], flags].concat()).await;
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    (code, report)
}

async fn run_replay(file: &Path, from: &Node, to: &Node, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut replay = command(Longshore::program());
    replay.arg("replay").arg(file).arg("--to").arg(to.socket()).args(flags);
    // Folders of pods, and parents of cgroups.
    replay.arg("--replace").arg(format!("{}={}", from.place().name(), to.place().name()));
    replay.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = tokio::task::spawn_blocking(move || replay.output().expect("it starts")).await;
    let done = done.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

/// What the kubelet asks for, in a life of a node of a few seconds.
async fn session(cri: &Cri) {
    cri.status(false).await.expect("a status");
    cri.runtime().runtime_config(cri::RuntimeConfigRequest {}).await.expect("a configuration");
    assert!(cri.image(BUSYBOX).await.expect("an answer").is_none());
    let auth =
        AuthConfig { username: "user".into(), password: format!("{MARK}-password"), ..Default::default() };
    let image = ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    let pull = PullImageRequest { image: Some(image), auth: Some(auth), ..Default::default() };
    cri.images().pull_image(pull).await.expect("an image");
    cri.image(BUSYBOX).await.expect("an answer").expect("an image");

    // Two pods at a time.
    let (a, b) = (cri.pod("a").labels([("tier", "front")]), cri.pod("b"));
    let (a, b) = tokio::join!(a.run(), b.run());
    let (a, b) = (a.expect("a pod"), b.expect("a pod"));
    let container = a.container("c").env("TOKEN", &format!("{MARK}-environment")).labels([("is", "c")]);
    let container = container.forever().run().await.expect("it runs");
    container.status().await.expect("a status");
    cri.container_status(&container.id, true).await.expect("a verbose status");
    a.status().await.expect("a status");
    let done = container.exec(["sh", "-c", "echo $TOKEN; exit 3"]).await.expect("an answer");
    assert_eq!(done.exit_code, 3);
    let ended = b.container("ended").sh("exit 4").run().await.expect("it runs");
    assert_eq!(ended.wait_exited().await.exit_code, 4);
    cri.pods().await.expect("pods");
    cri.containers().await.expect("containers");
    cri.container_stats(&container.id).await.expect("figures");
    cri.list_container_stats(None).await.expect("figures");
    cri.list_pod_stats(None).await.expect("figures");
    let mut list = cri
        .runtime()
        .stream_containers(cri::StreamContainersRequest::default())
        .await
        .expect("a list")
        .into_inner();
    while list.message().await.expect("a part").is_some() {}
    container
        .update(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() })
        .await
        .expect("updated");
    container.reopen_log().await.expect("reopened");

    // What fails.
    let missing = cri.container_status("no-such-container", false).await.expect_err("there is none");
    assert_eq!(missing.code(), Code::NotFound);
    a.container("bad").image("registry.test/not-there:1").create().await.expect_err("no image");
    cri.pull("registry.test/not-there:1").await.expect_err("no image");

    container.stop(10).await.expect("stopped");
    container.status().await.expect("a status");
    container.remove().await.expect("removed");
    for pod in [&a, &b] {
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
    }
    cri.pods().await.expect("pods");
    cri.list_images().await.expect("images");
    cri.images().image_fs_info(cri::ImageFsInfoRequest {}).await.expect("a file system");
}

/// The differences of a report: method and place.
fn differences(report: &Value) -> Vec<(String, String)> {
    let different = report["different"].as_array().expect("a list");
    let each = different.iter().flat_map(|call| {
        let method = call["method"].as_str().expect("a method").to_owned();
        let paths = call["differences"].as_array().expect("a list").iter();
        paths.map(move |it| (method.clone(), it["path"].as_str().expect("a path").to_owned()))
    });
    each.collect()
}

/// The whole way: recorded on one node, the same on another one, at its pace and as fast as
/// possible; without a secret in it. What is changed in the record is found.
#[tokio::test]
async fn a_record_is_the_same_on_another_node_and_holds_no_secret() {
    let node = Node::with(Server::Longshore).start().await;
    let recording = Recording::start(&node, "r").await;
    let cri = recording.cri.clone();
    let mut events = Events::of(&cri).subscribed().await;
    session(&cri).await;
    let gone = events.next().await.container_id;
    events.up_to(&gone, ContainerEventType::ContainerDeletedEvent).await;
    let file = recording.end().await;
    node.assert_nothing_left("with all pods removed").await;

    let text = std::fs::read_to_string(&file).expect("a record");
    assert!(!text.contains(MARK), "a secret is in {file:?}");
    assert_eq!(file.metadata().expect("a file").mode() & 0o777, 0o600);
    let found = lines(&file);
    assert_eq!(found[0]["header"]["version"], 1);
    let calls_end = found.last().expect("lines")["end"]["calls"].as_u64().expect("a number");
    assert_eq!(calls_end, found.iter().filter(|line| line.get("call").is_some()).count() as u64);
    let create = calls(&found, "CreateContainer")[0];
    assert_eq!(create["request"]["config"]["envs"][0]["key"], "TOKEN");
    assert_eq!(create["request"]["config"]["envs"][0]["value"], "<masked>");
    assert_eq!(calls(&found, "PullImage")[0]["request"]["auth"]["password"], "<masked>");
    assert_eq!(calls(&found, "GetContainerEvents")[0]["cut"], "end");
    assert!(calls(&found, "GetContainerEvents")[0]["parts"].as_u64().expect("a number") >= 12);

    let other = Node::with(Server::Longshore).start().await;
    let (code, report) = replay(&file, &node, &other, &["--as-fast-as-possible"]).await;
    assert_eq!(code, Some(0), "{}", serde_json::to_string_pretty(&report).expect("JSON"));
    assert_eq!(report["calls"]["different"], 0);
    assert_eq!(report["calls"]["recorded"].as_u64(), Some(calls_end));
    assert_eq!(report["left"], Value::Array(Vec::new()));
    let notes = report["notes"].to_string();
    assert!(notes.contains("1 pulls had credentials") && notes.contains("variables are masked"), "{notes}");
    let methods = report["methods"].as_object().expect("methods");
    assert_eq!(methods["RunPodSandbox"]["calls"], 2);
    assert!(methods["RunPodSandbox"]["replayed"]["p50_us"].as_u64() > Some(0));
    // For people, and at another pace.
    other.remove_image(BUSYBOX).await.expect("removed");
    let (code, told, errors) = run_replay(&file, &node, &other, &["--speed", "2"]).await;
    println!("{told}");
    assert_eq!(code, Some(0), "{told}{errors}");
    assert!(told.contains(", 2 times as fast\n") && told.contains("\nSAME: "), "{told}");
    other.finish().await;

    // As if the record were of a server that answers otherwise.
    let other = Node::with(Server::Longshore).start().await;
    let changed = file.with_extension("changed");
    let text = text.replace("\"exit_code\":4", "\"exit_code\":5").replace("\"NotFound\"", "\"Internal\"");
    std::fs::write(&changed, text).expect("a file");
    let (code, report) = replay(&changed, &node, &other, &["--as-fast-as-possible"]).await;
    assert_eq!(code, Some(1));
    let found = differences(&report);
    let has = |method: &str, path: &str| found.contains(&(method.to_owned(), path.to_owned()));
    assert!(has("ContainerStatus", "status.exit_code"), "{found:?}");
    assert!(has("ContainerStatus", "code"), "{found:?}");
    other.finish().await;
    node.finish().await;
}

/// The plugin answers otherwise only where docs/differences.md and docs/status.md say so.
#[tokio::test]
async fn a_record_is_played_to_the_plugin() {
    prefer_newest_containerd();
    let node = Node::with(Server::Longshore).start().await;
    let recording = Recording::start(&node, "r").await;
    session(&recording.cri).await;
    let file = recording.end().await;
    let plugin = Node::with(Server::BuiltIn).start().await;
    let (code, report) = replay(&file, &node, &plugin, &["--as-fast-as-possible"]).await;
    let text = serde_json::to_string_pretty(&report).expect("JSON");
    assert_eq!(report["calls"]["not_played"], 0, "{text}");
    let unexplained: Vec<_> =
        differences(&report).into_iter().filter(|it| !is_explained(&it.0, &it.1)).collect();
    assert!(unexplained.is_empty(), "{unexplained:?} in {text}");
    assert_eq!(code, Some(i32::from(report["calls"]["different"] != 0)), "{text}");
    // What passes by is waited for, also beside what stays.
    assert!(report["calls"]["same"].as_u64() > Some(15), "{text}");
    plugin.finish().await;
    node.finish().await;
}

/// What the plugin does otherwise: fields that are younger than it, and what docs/status.md
/// says of figures and docs/differences.md of images and errors.
fn is_explained(method: &str, path: &str) -> bool {
    const PATHS: [&str; 13] = [
        "features",
        "runtime_handlers",
        "user_specified_image",
        "image_id",
        "stop_signal",
        "user",
        "containers_statuses",
        "timestamp",
        "available_bytes",
        "swap",
        "interfaces",
        "spec",
        "pinned",
    ];
    let is_condition = path.contains("ContainerdHasNoDeprecationWarnings");
    let is_code = path == "code" && (method.starts_with("Stream") || method == "CreateContainer");
    is_condition || is_code || PATHS.iter().any(|name| path.split('.').any(|part| part == *name))
}

/// A target on which nothing can be made: what depends on it is not played, and told.
#[tokio::test]
async fn what_needs_a_thing_that_could_not_be_made_is_not_played() {
    let node = Node::with(Server::Longshore).start().await;
    let recording = Recording::start(&node, "r").await;
    let pod = recording.cri.pod("a").run().await.expect("a pod");
    pod.status().await.expect("a status");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let file = recording.end().await;
    container.through(node.cri()).stop(0).await.expect("stopped");
    node.remove_all().await;

    let bare = Node::with(Server::Longshore).no_cni().start().await;
    let (code, text, errors) = run_replay(&file, &node, &bare, &["--as-fast-as-possible"]).await;
    println!("{text}");
    assert_eq!(code, Some(1), "{text}{errors}");
    assert!(text.contains("RunPodSandbox differs:\n  code: \"OK\" → \""), "{text}");
    assert!(text.contains("made, which failed: "), "{text}");
    assert!(text.contains("\nDIFFERENT: "), "{text}");
    bare.finish().await;

    // What the record leaves stays, and is told; or is removed.
    let other = Node::with(Server::Longshore).start().await;
    let (code, report) = replay(&file, &node, &other, &["--as-fast-as-possible"]).await;
    assert_eq!(code, Some(0), "{report}");
    let pods = other.pods().await.expect("pods");
    assert_eq!(report["left"], serde_json::json!([pods[0].id]));
    other.remove_all().await;
    let (code, report) = replay(&file, &node, &other, &["--as-fast-as-possible", "--clean"]).await;
    assert_eq!(code, Some(0), "{report}");
    other.finish().await;
    node.finish().await;

    let missing = std::process::Command::new(Longshore::program())
        .args(["replay", "/no/such/file", "--to", "/no/such/socket"])
        .output()
        .expect("it starts");
    assert_eq!(missing.status.code(), Some(2));
}

/// The recorder is no more in the way than it has to be: what a client gives up is given up at
/// the server, a server may go and come, and methods pass that nobody knows.
#[tokio::test]
async fn the_recorder_passes_on_what_it_does_not_understand() {
    let node = Node::with(Server::Longshore).start().await;
    let recording = Recording::start(&node, "r").await;
    let pod = recording.cri.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let sleep = format!("31415.{}", std::process::id());
    let sleeps = || procfs::processes().iter().any(|process| process.arguments == ["sleep", sleep.as_str()]);
    {
        let mut exec = Box::pin(container.exec(["sleep", &sleep]));
        tokio::select! {
            done = &mut exec => panic!("it sleeps: {done:?}"),
            () = wait_until("the command", async || sleeps()) => {}
        }
    }
    wait_until("the end of the command", async || !sleeps()).await;

    let mut client = tonic::client::Grpc::new(recording.cri.channel());
    client.ready().await.expect("a channel");
    let path = "/runtime.v9.RuntimeService/Unheard".parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<cri::StatusRequest, cri::StatusResponse>::default();
    let error = client.unary(tonic::Request::new(cri::StatusRequest { verbose: true }), path, codec).await;
    assert_eq!(error.expect_err("nobody knows it").code(), Code::Unimplemented);

    node.longshore().kill().await;
    let error = recording.cri.version().await.expect_err("nobody is there");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    node.longshore().start().await;
    recording.cri.wait_until_answers().await;
    recording.cri.remove_all().await;
    let socket = recording.cri.socket().to_owned();
    assert!(socket.metadata().expect("a socket").file_type().is_socket());
    let file = recording.end().await;
    assert!(!socket.exists());

    let found = lines(&file);
    let exec = calls(&found, "ExecSync")[0];
    assert_eq!((&exec["cut"], &exec["code"]), (&Value::from("client"), &Value::from("Canceled")));
    let unheard = calls(&found, "/runtime.v9.RuntimeService/Unheard")[0];
    assert_eq!((&unheard["code"], &unheard["request"]), (&Value::from("Unimplemented"), &Value::Null));
    let unavailable = |call: &&&Value| call["code"] == "Unavailable";
    assert!(calls(&found, "Version").iter().any(|call| unavailable(&call)));
    node.finish().await;
}

/// All files below folders, with their sizes and times of change.
fn files_below(folders: &[PathBuf]) -> Vec<(PathBuf, u64, i64)> {
    let mut found = Vec::new();
    for folder in folders.iter().flat_map(|folder| procfs::folders_below(folder)) {
        for name in procfs::names(&folder) {
            let path = folder.join(name);
            if let Ok(it) =
                path.symlink_metadata().map(|it| (it.len(), it.mtime() * 1_000_000_000 + it.mtime_nsec()))
            {
                found.push((path, it.0, it.1));
            }
        }
    }
    found.sort();
    found
}

/// Beside the plugin: longshore would tell of its pods, containers and images what it tells,
/// and leaves no trace.
#[tokio::test]
async fn longshore_would_tell_of_the_plugins_node_what_the_plugin_tells() {
    prefer_newest_containerd();
    let node = Node::with(Server::BuiltIn).start().await;
    let pod = node.pod("a").labels([("tier", "front")]).run().await.expect("a pod");
    let container = pod.container("c").labels([("is", "c")]).forever().run().await.expect("it runs");
    let ended = pod.container("ended").sh("exit 3").run().await.expect("it runs");
    ended.wait_exited().await;
    pod.container("created").create().await.expect("it is created");
    let stopped = node.pod("b").run().await.expect("a pod");
    stopped.stop().await.expect("stopped");

    let (root, state) = node.containerd().plugin_folders();
    let folders = [root.clone(), state.clone()];
    let before = files_below(&folders);
    let look = async |flags: &[&str]| {
        let mut shadow = command(Longshore::program());
        shadow.args(["shadow", "-n", "1"]).args(flags).arg("--reference").arg(node.socket());
        shadow.arg("--containerd").arg(node.containerd().socket());
        shadow.arg("--root").arg(&root).arg("--state").arg(&state);
        shadow.arg("--cni-conf-dir").arg(crate::harness::cni::conf_dir(node.place()));
        shadow.arg("--cni-bin-dir").arg(crate::harness::cni::bin_dir(node.place()));
        shadow.stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = tokio::task::spawn_blocking(move || shadow.output().expect("it starts")).await;
        let done = done.expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let (code, text, errors) = look(&["--json"]).await;
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    assert_eq!(found["objects"]["pods"], 2, "{text}");
    assert_eq!(found["objects"]["containers"], 3, "{text}");
    assert!(found["questions"].as_u64() >= Some(14), "{text}");
    let different = found["differences"].as_array().expect("a list");
    let unexplained: Vec<&Value> = different
        .iter()
        .filter(|it| !is_explained(it["method"].as_str().unwrap_or(""), it["path"].as_str().unwrap_or("")))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}\n{errors}");
    assert_eq!(code, Some(i32::from(!different.is_empty())));
    assert_eq!(files_below(&folders), before, "something was written");

    // A status that longshore would read otherwise.
    let file = root.join("containers").join(&ended.id).join("status");
    let told = std::fs::read_to_string(&file).expect("a status");
    std::fs::write(&file, told.replace("\"ExitCode\":3", "\"ExitCode\":4")).expect("a file");
    let (code, text, _) = look(&[]).await;
    println!("{text}");
    assert_eq!(code, Some(1));
    assert!(text.contains("status.exit_code: 3 → 4"), "{text}");

    assert_eq!(container.sh("echo inside").await, "inside");
    node.remove_all().await;
    node.finish().await;
}
