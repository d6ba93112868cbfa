//! `longshore explain` and `longshore diff` beside a server: what is shown is what is made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_client::services::v1::GetContainerRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use longshore::proto::cri::{ImageSpec, Int64Value, NamespaceMode, SecurityProfile};
use longshore::spec::{Spec, to_json};
use serde_json::Value;
use tonic::Request;

use crate::harness::{Container, ContainerBuilder, Node, Pod, Server, images};

/// Runs the program, which must end well, and gives what it printed.
fn longshore(node: &Node, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(arguments).args(["--config"]).arg(node.longshore().config_file());
    let output = command.output().expect("longshore starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The container, with the image that the others have by default, as the kubelet names it.
async fn with_image(node: &Node, container: ContainerBuilder) -> ContainerBuilder {
    let id = node.ensure_image(images::BUSYBOX).await.expect("an image");
    let user_specified_image = images::BUSYBOX.to_owned();
    container.config(|config| {
        config.image = Some(ImageSpec { image: id, user_specified_image, ..ImageSpec::default() });
    })
}

/// What `explain` says of a request.
fn explain(node: &Node, container: &ContainerBuilder) -> Value {
    let request = container.request();
    let (config, pod) = (request.config.expect("a config"), request.sandbox_config.expect("a pod"));
    let write = |name: &str, text: String| -> PathBuf {
        let path = node.place().path(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let config = write("container.json", serde_json::to_string(&config).expect("JSON"));
    let pod = write("pod.json", serde_json::to_string(&pod).expect("JSON"));
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let text = longshore(node, &["explain", &path(&config), &path(&pod), "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

/// The JSON of a spec that `explain` gave, as the server writes it.
fn spec_of(explained: &Value) -> String {
    let spec: Spec = serde_json::from_value(explained["spec"].clone()).expect("a spec");
    String::from_utf8(to_json(&spec)).expect("UTF-8")
}

async fn record(node: &Node, id: &str) -> String {
    let mut client = ContainersClient::new(node.containerd().channel());
    let mut request = Request::new(GetContainerRequest { id: id.to_owned() });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a header"));
    let record = client.get(request).await.expect("a record").into_inner().container.expect("a record");
    String::from_utf8(record.spec.expect("a spec").value).expect("UTF-8")
}

/// Words in the places of what the server has made up.
fn masked(mut spec: String, pod: &Pod, container: Option<&Container>) -> String {
    if let Some(container) = container {
        spec = spec.replace(&container.id, "CONTAINER-ID");
    }
    spec = spec.replace(&pod.id, "POD-ID");
    let mut mask = |start: &str, is_part: fn(char) -> bool, word: &mut dyn FnMut() -> String| {
        let mut from = 0;
        while let Some(found) = spec[from..].find(start).map(|at| from + at + start.len()) {
            let end = spec[found..].find(|c| !is_part(c)).map_or(spec.len(), |at| found + at);
            if end == found {
                from = found;
                continue;
            }
            let word = word();
            spec.replace_range(found..end, &word);
            from = found + word.len();
        }
    };
    mask("\"/proc/", |c| c.is_ascii_digit(), &mut || "0".into());
    mask("/cni-", |c| c.is_ascii_hexdigit() || c == '-', &mut || "UUID".into());
    let mut count = 0;
    mask("/volumes/", |c| c.is_ascii_hexdigit(), &mut || {
        count += 1;
        format!("VOLUME-{}", count - 1)
    });
    spec
}

fn requests(pod: &Pod, folder: &Path) -> Vec<ContainerBuilder> {
    let plain = || pod.container("plain").forever();
    vec![
        plain(),
        pod.container("rich")
            .forever()
            .env("A", "1")
            .mount(folder, "/data")
            .resources(|limits| {
                (limits.cpu_shares, limits.cpu_quota, limits.cpu_period) = (512, 50_000, 100_000);
                limits.memory_limit_in_bytes = 64 << 20;
                limits.oom_score_adj = 500;
            })
            .security(|context| {
                context.run_as_user = Some(Int64Value { value: 1000 });
                context.supplemental_groups = vec![7];
                context.readonly_rootfs = true;
                context.no_new_privs = true;
                context.masked_paths = vec!["/proc/kcore".into()];
                context.seccomp = Some(SecurityProfile::default());
            }),
        pod.container("shared").forever().tty().security(|context| {
            context.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
        }),
    ]
}

/// The spec of `explain` and the one that the server then makes are the same to the byte, but
/// for ids; with the ids, `diff` finds nothing. So for pods on their own network and on the
/// host's.
#[tokio::test]
async fn what_is_explained_is_made() {
    let node = Node::with(Server::Longshore).start().await;
    let folder = node.place().path("data");
    std::fs::create_dir(&folder).expect("a folder");
    for (name, builder) in [("own", node.pod("own")), ("host", node.pod("host").host_network())] {
        let pod = builder.run().await.expect("a pod");
        for request in requests(&pod, &folder) {
            let request = with_image(&node, request).await;
            let explained = explain(&node, &request);
            let container = request.run().await.expect("a container");
            let made = record(&node, &container.id).await;
            let shown = spec_of(&explained["containers"][0]);
            assert_eq!(masked(made, &pod, Some(&container)), shown, "{name}");
            let pause = masked(record(&node, &pod.id).await, &pod, None);
            assert_eq!(pause, spec_of(&explained["pod"]), "pause of {name}");
            for id in [&container.id, &pod.id] {
                let said = longshore(&node, &["diff", id]);
                assert!(said.contains("to the byte"), "{said}");
            }
            let by_id: Value =
                serde_json::from_str(&longshore(&node, &["explain", &container.id[..20], "--json"]))
                    .expect("JSON");
            assert_eq!(spec_of(&by_id["containers"][0]), record(&node, &container.id).await);
            container.remove().await.expect("removed");
        }
        pod.stop().await.expect("stopped");
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// The calls of containerd that a server has logged since `from`, of those calls of the CRI.
fn logged(node: &Node, from: usize, cri: &[&str]) -> Vec<String> {
    let log = node.longshore().log();
    let lines = log[from..].lines().filter(|line| line.contains("containerd") && line.contains("elapsed_us"));
    let lines = lines.filter(|line| cri.iter().any(|name| line.contains(name)));
    let call = |line: &str| {
        // The call of the CRI stands before it.
        let rest = line.rsplit_once("call=")?.1;
        Some(rest.trim_start_matches('"').split(['"', ' ']).next()?.to_owned())
    };
    lines.filter_map(call).collect()
}

/// The calls of `explain` are those that the server makes: all of them, and step by step.
fn assert_calls(explained: &Value, cri: &[&str], is_first: bool, made: &[String]) {
    let calls = explained["calls"].as_array().expect("calls");
    let wanted: Vec<(u64, &str)> = calls
        .iter()
        .filter(|call| call["whom"] == "containerd" && cri.iter().any(|name| call["cri"] == *name))
        .filter(|call| is_first || call["once"] != true)
        .map(|call| (call["step"].as_u64().expect("a step"), call["call"].as_str().expect("a name")))
        .collect();
    let count = |list: Vec<&str>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        list.into_iter().for_each(|call| *counts.entry(call.to_owned()).or_default() += 1);
        counts
    };
    let counts = count(wanted.iter().map(|(_, call)| *call).collect());
    assert_eq!(count(made.iter().map(String::as_str).collect()), counts, "{made:?}");
    // A call of the same name in an earlier step is taken first.
    let mut left = wanted;
    let steps: Vec<u64> = made
        .iter()
        .map(|call| {
            let place = left.iter().position(|(_, wanted)| wanted == call).expect("counted");
            left.remove(place).0
        })
        .collect();
    assert!(steps.is_sorted(), "{made:?} in the steps {steps:?}");
}

/// The list of calls is not one that was written down once: it is what the server does, also
/// the first time.
#[tokio::test]
async fn the_calls_that_are_explained_are_made() {
    let node = Node::with(Server::Longshore).start().await;
    for is_first in [true, false] {
        let name = if is_first { "first" } else { "second" };
        let from = node.longshore().log().len();
        let pod = node.pod(name).run().await.expect("a pod");
        let made = logged(&node, from, &["RunPodSandbox"]);
        let request = with_image(&node, pod.container("c").forever()).await;
        let explained = explain(&node, &request);
        // The pause image is imported the first time.
        if !is_first {
            assert_calls(&explained["pod"], &["RunPodSandbox"], is_first, &made);
        }
        let from = node.longshore().log().len();
        request.run().await.expect("a container");
        let calls = ["CreateContainer", "StartContainer"];
        let made = logged(&node, from, &calls);
        assert_calls(&explained["containers"][0], &calls, is_first, &made);
    }
    node.remove_all().await;
    node.finish().await;
}

/// A manifest becomes the requests of the kubelet, with what is not known said.
#[tokio::test]
async fn a_manifest_is_explained_without_a_containerd() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let manifest = file(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n  containers:\n  - name: main\n    image: web:1\n    env: [{name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n    resources: {limits: {cpu: 500m, memory: 64Mi}}\n",
    );
    let image = file("image.json", r#"{"config":{"User":"33","Entrypoint":["/web"],"Env":["PATH=/bin"]}}"#);
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["explain", &manifest, "--image-config", &image, "--containerd", "/no/such/socket"])
        .args(["--config", &file("longshore.toml", "")])
        .output()
        .expect("longshore starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, wrong) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{wrong}");
    for part in [
        "secret s/k is not known",
        "uid: 33",
        "quota: 50000",
        "container linux.resources.cpu_quota",
        "image Entrypoint[0]",
        "container linux.resources.oom_score_adj",
        "/kubepods/podPOD-UID/CONTAINER-ID",
        "Tasks.Create",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}

/// Containers of containerd's own plugin are compared with what longshore would make of their
/// requests: what differs is what docs/differences.md says.
#[tokio::test]
async fn a_container_of_the_plugin_is_compared() {
    let node = Node::with(Server::BuiltIn).start().await;
    let pod = node.pod("theirs").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let socket = node.containerd().socket();
    let config = node.place().path("diff.toml");
    std::fs::write(&config, "").expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["diff", &container.id, "--json", "--containerd"])
        .arg(&socket)
        .arg("--config")
        .arg(&config)
        .output()
        .expect("longshore starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let compared: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let differences = compared["differences"].as_array().expect("a list");
    let places: Vec<&str> = differences.iter().filter_map(|one| one["pointer"].as_str()).collect();
    assert!(places.iter().all(|place| ["/ociVersion"].contains(place)), "{compared:#}");
    node.remove_all().await;
    node.finish().await;
}
