//! `longshore check` and `longshore doctor` on nodes: what fits, what does not, what is left.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use containerd_client::services::v1::Container as Record;
use serde_json::Value;

use crate::harness::{LIMIT, Node, Server, patient, wait_until};

/// A secret that no output may have.
const SECRET: &str = "hunter2";

/// A server that compares only at its start.
const STARTS_ONLY: &str = "[server]\nreconcile_period_s = 0\n";

/// What a command said.
struct Said {
    code: i32,
    report: Value,
}

impl Said {
    fn of(output: &Output) -> Said {
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text);
        let complaint = String::from_utf8_lossy(&output.stderr);
        let report = report.unwrap_or_else(|error| panic!("{error}: {text}\n{complaint}"));
        Said { code: output.status.code().expect("an exit"), report }
    }

    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list")
    }

    fn problems(&self) -> Vec<&Value> {
        self.findings().iter().filter(|finding| finding["verdict"] == "problem").collect()
    }

    /// The finding about `subject` that says all of this.
    fn says(&self, subject: &str, verdict: &str, parts: &[&str]) -> &Value {
        let says = |finding: &&Value| {
            let what = finding["what"].as_str().expect("a text");
            finding["subject"] == subject
                && finding["verdict"] == verdict
                && parts.iter().all(|part| what.contains(part))
        };
        let found = self.findings().iter().find(says);
        found.unwrap_or_else(|| panic!("no {verdict} of {subject} with {parts:?}: {:#}", self.report))
    }

    /// What is left: kind, whether it is ours, who removes it.
    fn left(&self) -> BTreeSet<(String, bool, String)> {
        let left = self.findings().iter().filter_map(|finding| finding.get("leftover"));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        left.map(|left| (text(&left["kind"]), left["ours"] == true, text(&left["removed_by"]))).collect()
    }
}

fn longshore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longshore")).args(arguments).output().expect("longshore starts")
}

/// Runs a command on a node's configuration.
fn on(node: &Node, command: &str, flags: &[&str]) -> Said {
    let config = node.longshore().config_file();
    let config = config.to_str().expect("UTF-8");
    Said::of(&longshore(&[&[command, "--json", "--config", config], flags].concat()))
}

fn of_ours<const N: usize>(kinds: [(&str, &str); N]) -> BTreeSet<(String, bool, String)> {
    kinds.into_iter().map(|(kind, removed_by)| (kind.to_owned(), true, removed_by.to_owned())).collect()
}

/// Nothing is wrong with a node that is as it should be: before the start, and while pods run.
#[tokio::test]
async fn a_clean_node_has_no_problem() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    let said = on(&node, "doctor", &[]);
    assert!(said.code == 0 && said.problems().is_empty(), "{:#}", said.report);
    let version = node.containerd_version().to_string();
    said.says("containerd", "ok", &[&version, "answers at"]);
    said.says("containerd", "ok", &["has what is needed", "leases", "events"]);
    said.says("containerd", "ok", &["snapshotter overlayfs answers"]);
    said.says("cni", "ok", &["10-test.conflist", &node.place().name(), "bridge"]);
    said.says("cni", "ok", &["plugin host-local", "versions up to"]);
    said.says("runtimes", "ok", &["handler runc (default): shim", "containerd-shim-runc-v2"]);
    said.says("server", "ok", &["answers at"]);
    said.says("keeper", "ok", &["the same program as this one"]);
    said.says("keeper", "ok", &["has 1 container, 1 with open output"]);
    said.says("leftovers", "ok", &["1 pod and 1 container"]);
    assert_eq!((&said.report["format"], &said.report["command"]), (&1.into(), &"doctor".into()));

    let config = node.longshore().config_file();
    let text = longshore(&["doctor", "--config", config.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("\nkeeper\n  ok ") && !text.contains('\x1b'), "{text}");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");

    node.longshore().terminate().await;
    let said = on(&node, "check", &[]);
    assert!(said.code == 0 && said.problems().is_empty(), "{:#}", said.report);
    said.says("server", "ok", &["is free"]);
    let said = on(&node, "doctor", &[]);
    assert_eq!(said.code, 1);
    said.says("server", "problem", &["no server answers"]);
    node.longshore().start().await;
    node.finish().await;
}

/// A plugin that is missing or cannot run, a kubelet with another driver, a port in use.
#[tokio::test]
async fn what_does_not_fit_is_a_problem_with_what_to_do() {
    let image = "[sandbox]\nimage = \"r.invalid/pause:1\"\n";
    let node = Node::with(Server::Longshore).config(image).start().await;
    let bin = node.place().path("cni/bin");
    std::fs::rename(bin.join("bridge"), bin.join("bridge.off")).expect("renamed");
    let said = on(&node, "doctor", &[]);
    assert_eq!(said.code, 1);
    let missing = said.says("cni", "problem", &["plugin bridge is in none of", bin.to_str().expect("UTF-8")]);
    assert!(missing["advice"].as_str().expect("advice").contains("cni.bin_dirs"), "{missing}");
    said.says("runtimes", "note", &["r.invalid/pause:1", "is not there"]);
    std::fs::write(bin.join("bridge"), "").expect("a file");
    on(&node, "doctor", &[]).says("cni", "problem", &["bridge", "cannot be executed"]);
    std::fs::rename(bin.join("bridge.off"), bin.join("bridge")).expect("renamed");

    let conf = node.place().path("cni/conf/00-broken.conflist");
    std::fs::write(&conf, "{").expect("a file");
    on(&node, "doctor", &[]).says("cni", "problem", &["00-broken.conflist"]);
    std::fs::remove_file(&conf).expect("removed");

    let configured = node.longshore().config_file();
    let configured = std::fs::read_to_string(configured).expect("a file");
    let (own, other) = match configured.contains("cgroup_driver = \"cgroupfs\"") {
        true => ("cgroupfs", "systemd"),
        false => ("systemd", "cgroupfs"),
    };
    let kubelet = node.place().path("kubelet.yaml");
    for (driver, verdict, says) in [(own, "ok", "as the kubelet's"), (other, "problem", "the kubelet's is")] {
        let text = format!("kind: KubeletConfiguration\ncgroupDriver: {driver}\n");
        std::fs::write(&kubelet, text).expect("a file");
        let said = on(&node, "check", &["--kubelet-config", kubelet.to_str().expect("UTF-8")]);
        said.says("cgroups", verdict, &[&format!("driver {own}"), says]);
    }
    let said = on(&node, "doctor", &["--root", node.place().path("other").to_str().expect("UTF-8")]);
    said.says("server", "ok", &["answers at"]);
    node.finish().await;
}

/// Two servers of one root are told, by whom holds it.
#[tokio::test]
async fn another_server_of_the_same_root_is_found() {
    let node = Node::with(Server::Longshore).start().await;
    let said = on(&node, "check", &["--listen", node.place().path("second.sock").to_str().expect("UTF-8")]);
    let pid = node.longshore().pid().to_string();
    said.says("server", "problem", &["longshore", &pid, "holds the root"]);
    assert_eq!(said.code, 1);
    node.finish().await;
}

/// A containerd that is away, or that takes connections and says nothing, costs seconds.
#[tokio::test]
async fn a_containerd_that_does_not_answer_is_said_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let _silent = std::os::unix::net::UnixListener::bind(at("silent.sock")).expect("a socket");
    for (socket, says) in [("none.sock", "No such file"), ("silent.sock", "no answer within")] {
        let flags = ["--root", &at("root"), "--state", &at("state"), "--containerd", &at(socket)];
        let arguments: Vec<String> =
            ["check", "--json"].iter().chain(&flags).map(ToString::to_string).collect();
        let asked = tokio::task::spawn_blocking(move || {
            longshore(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let output = tokio::time::timeout(patient(LIMIT), asked).await.expect("in time").expect("no panic");
        let said = Said::of(&output);
        assert_eq!(said.code, 1);
        said.says("containerd", "problem", &["does not answer at", says]);
        let unchecked = said.report["unchecked"].to_string();
        assert!(unchecked.contains("leftovers"), "{unchecked}");
        // Nothing was made.
        assert!(!Path::new(&at("root")).exists() && !Path::new(&at("state")).exists());
    }
}

/// What others wrote into files is not repeated where it can be a secret.
#[test]
fn secrets_are_not_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(at(name).parent().expect("a folder")).expect("a folder");
        std::fs::write(at(name), text).expect("a file");
    };
    write(
        "certs/a.io/hosts.toml",
        &format!("server = \"https://u:{SECRET}@a.io\"\n[host.\"ftp://u:{SECRET}@m\"]\n"),
    );
    write("certs/b.io/hosts.toml", &format!("[host.\"https://m\".header]\nauthorization = \"{SECRET}\nx\n"));
    write("certs/c.io/hosts.toml", &format!("[host.\"https://m\"]\nheader = \"{SECRET}\"\n"));
    write(
        "containerd.toml",
        &format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.x.auth]\npassword = [\"{SECRET}\"]\n"
        ),
    );
    write("kubelet.yaml", &format!("cgroupDriver: [\"{SECRET}\"\n"));
    let config = format!(
        "root = {:?}\nstate = {:?}\n[containerd]\naddress = \"/no/such/socket\"\n\
         [image]\nregistry_config_dirs = [{:?}]\ncontainerd_config = {:?}\n",
        at("root"),
        at("state"),
        at("certs"),
        at("containerd.toml")
    );
    write("l.toml", &config);
    let (config, kubelet) = (at("l.toml"), at("kubelet.yaml"));
    let files =
        ["--config", config.to_str().expect("UTF-8"), "--kubelet-config", kubelet.to_str().expect("UTF-8")];
    for flags in [&["check", "--json"][..], &["doctor"]] {
        let output = longshore(&[flags, &files].concat());
        assert_eq!(output.status.code(), Some(1));
        for said in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(said);
            assert!(!said.contains(SECRET), "{said}");
        }
        let said = String::from_utf8_lossy(&output.stdout);
        for part in ["a.io/hosts.toml", "b.io/hosts.toml: line ", "c.io/hosts.toml", "containerd.toml"] {
            assert!(said.contains(part), "no {part}: {said}");
        }
    }
}

/// A configuration that cannot be used is the one problem there is; wrong flags are none.
#[test]
fn a_wrong_configuration_is_told_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("l.toml");
    std::fs::write(&file, "version = 1\n[log]\nlevel = \"loud\"\n").expect("a file");
    let said = Said::of(&longshore(&["check", "--json", "--config", file.to_str().expect("UTF-8")]));
    assert_eq!((said.code, said.findings().len()), (1, 1));
    said.says("configuration", "problem", &["l.toml:3: log.level"]);
    assert_eq!(longshore(&["check", "--no-such-flag"]).status.code(), Some(2));
}

/// A pod whose record somebody deleted: all of it is found, as ours, and all of it goes when
/// the record is back.
#[tokio::test]
async fn what_a_lost_pod_leaves_is_found() {
    let node = Node::with(Server::Longshore).config(STARTS_ONLY).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    node.longshore().terminate().await;
    let record = node.containerd().behind().take_record(&pod.id).await;
    let said = on(&node, "check", &[]);
    let want = of_ours([
        ("task", "nobody"),
        ("shim", "nobody"),
        ("network-namespace", "nobody"),
        ("cni-attachment", "nobody"),
        ("lease", "server"),
        ("folder", "server"),
        ("mount", "server"),
        ("container", "kubelet"),
    ]);
    assert_eq!(said.left(), want, "{:#}", said.report);
    assert_eq!(said.code, 1);
    let task = said.says("leftovers", "problem", &["task", &pod.id]);
    assert!(task["advice"].as_str().expect("advice").contains("tasks rm"), "{task}");

    node.containerd().behind().put_record(record).await;
    let (root, _) = node.longshore().folders();
    let status = root.join("containers").join(&container.id).join("status");
    std::fs::rename(&status, node.place().path("status")).expect("moved");
    let said = on(&node, "check", &[]);
    assert_eq!(said.left(), of_ours([("container", "kubelet")]), "{:#}", said.report);
    assert_eq!(said.code, 0, "it goes by itself");
    std::fs::rename(node.place().path("status"), &status).expect("moved back");
    node.longshore().start().await;
    let said = on(&node, "doctor", &[]);
    assert!(said.left().is_empty() && said.code == 0, "{:#}", said.report);
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Things of no pod, made by hand: what is said to go with the next start does, and nothing
/// else.
#[tokio::test]
async fn what_is_made_by_hand_is_found_and_the_next_start_removes_what_it_should() {
    let node = Node::with(Server::Longshore).config(STARTS_ONLY).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    node.longshore().terminate().await;
    let (root, state) = node.longshore().folders();
    let (gone, broken) = ("c".repeat(64), "d".repeat(64));
    let make = |path: &Path| std::fs::create_dir_all(path).expect("a folder");
    let shm = state.join("sandboxes").join(&gone).join("shm");
    make(&shm);
    make(&root.join("sandboxes").join(&gone));
    make(&root.join("containers").join(&broken));
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &shm, "tmpfs", flags, None).expect("mounted");
    make(&node.longshore().netns_dir());
    let pin = node.longshore().netns_dir().join("cni-00000000-0000-0000-0000-00000000000c");
    std::fs::write(&pin, "").expect("a file");
    rustix::mount::mount_bind("/proc/self/ns/net", &pin).expect("pinned");
    let results = node.longshore().cni_cache().join("results");
    make(&results);
    let attachment = results.join(format!("{}-{gone}-eth0", node.place().name()));
    let entry = serde_json::json!({
        "kind": "cniCacheV1", "containerId": gone, "config": "e30=", "ifName": "eth0",
        "networkName": node.place().name(), "netns": pin,
        "cniArgs": [["K8S_POD_INFRA_CONTAINER_ID", gone]],
    });
    std::fs::write(&attachment, entry.to_string()).expect("a file");
    let labels = [("io.cri-containerd.kind".to_owned(), "container".to_owned())];
    let runtime = containerd_client::services::v1::container::Runtime {
        name: "io.containerd.runc.v2".into(),
        options: None,
    };
    let record = Record {
        id: broken.clone(),
        labels: labels.into(),
        runtime: Some(runtime),
        spec: Some(prost_types::Any { type_url: "x".into(), value: b"{}".to_vec() }),
        ..Record::default()
    };
    node.containerd().behind().put_record(record).await;
    let exec = state.join("containers").join(&container.id).join("io/99");
    make(&exec);
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mkfifoat(rustix::fs::CWD, exec.join("exec-stdout"), mode).expect("a FIFO");
    node.containerd().behind().make_lease(&gone, "longshore.io/pod").await;
    node.containerd().behind().make_lease("longshore-image-1", "any").await;
    node.containerd().behind().make_snapshot(&pod.id, &gone).await;

    let stays = [("record", "nobody"), ("network-namespace", "nobody"), ("cni-attachment", "nobody")];
    let goes = ["folder", "mount", "fifo", "lease", "snapshot"].map(|kind| (kind, "server"));
    let said = on(&node, "check", &[]);
    assert_eq!(said.left(), &of_ours(stays) | &of_ours(goes), "{:#}", said.report);
    for name in [gone.as_str(), "longshore-image-1"] {
        said.says("leftovers", "note", &["lease", name]);
    }
    node.longshore().start().await;
    // Those of execs are removed beside the calls.
    wait_until("the FIFO to go", async || !exec.exists()).await;
    let said = on(&node, "doctor", &[]);
    assert_eq!(said.left(), of_ours(stays), "{:#}", said.report);
    assert!(!shm.exists() && attachment.exists() && pin.exists());

    rustix::mount::unmount(&pin, rustix::mount::UnmountFlags::empty()).expect("unmounted");
    std::fs::remove_file(&pin).expect("removed");
    std::fs::remove_file(&attachment).expect("removed");
    node.containerd().behind().take_record(&broken).await;
    // The folder of the record that could not be read is of nothing known from now on.
    let said = on(&node, "doctor", &[]);
    assert_eq!(said.left(), of_ours([("folder", "server")]), "{:#}", said.report);
    assert_eq!(said.code, 1, "the server that runs does not remove it");
    node.longshore().terminate().await;
    node.longshore().start().await;
    let said = on(&node, "doctor", &[]);
    assert!(said.left().is_empty() && said.code == 0, "{:#}", said.report);
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// The pods of containerd's own plugin are a conflict, and never ours.
#[tokio::test]
async fn pods_of_the_plugin_are_a_conflict_and_not_ours() {
    let node = Node::with(Server::Longshore).start().await;
    node.longshore().terminate().await;
    let plugin = node.containerd().restart_with_cri_plugin().await;
    plugin.wait_until_network_ready().await;
    let pod = plugin.pod("theirs").run().await.expect("a pod");
    pod.container("c").forever().run().await.expect("it runs");
    let said = on(&node, "check", &[]);
    assert_eq!(said.code, 1);
    let conflict = said.says("conflicts", "problem", &["own CRI plugin is active", "refuses to start"]);
    assert!(conflict["advice"].as_str().expect("advice").contains("disabled_plugins"), "{conflict}");
    said.says("conflicts", "problem", &["1 pod", "not made by this longshore", "/theirs"]);
    assert!(said.left().is_empty(), "{:#}", said.report);
    // Beside it, in another namespace, all is well.
    let said = on(&node, "check", &["--namespace", "try"]);
    assert!(said.code == 0 && said.left().is_empty(), "{:#}", said.report);
    said.says("conflicts", "ok", &["works in try beside it"]);
    plugin.remove_all().await;
    node.containerd().terminate().await;
    node.containerd().start().await;
    node.longshore().start().await;
    wait_until("the server", async || node.version().await.is_ok()).await;
    node.finish().await;
}
