//! The command line and the process: flags, configuration, signals, socket (area SVC).

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{LIMIT, Node, Server, patient, wait_until};

fn longshore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longshore")).args(arguments).output().expect("longshore starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_default_configuration_passes_its_own_check() {
    let default = longshore(&["config", "default"]);
    assert!(default.status.success());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("longshore.toml");
    std::fs::write(&file, &default.stdout).expect("a file");
    let checked = longshore(&["config", "check", file.to_str().expect("UTF-8")]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

/// An error names file, line and key.
#[test]
fn a_wrong_configuration_is_refused_with_file_line_and_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wrong.toml");
    let path = file.to_str().expect("UTF-8");
    for (content, line, key) in [
        ("version = 1\n[cni]\nconf_dri = \"/x\"\n", "3", "conf_dri"),
        ("version = 1\n\n[log]\nlevel = \"loud\"\n", "4", "level"),
        ("version = 1\n[sandbox]\nshm_bytes = \"many\"\n", "3", "shm_bytes"),
        ("version = 1\n[runtime]\ndefault = \"none\"\n", "3", "default"),
        ("version = 7\n", "1", "version"),
        ("version = 1\n[cni\n", "2", ""),
    ] {
        std::fs::write(&file, content).expect("a file");
        for command in [["config", "check", path], ["serve", "--config", path]] {
            let output = longshore(&command);
            let said = text(&output.stderr);
            assert!(!output.status.success(), "{content}");
            for part in [path, line, key] {
                assert!(said.contains(part), "{command:?}: {content:?}: no {part:?} in {said}");
            }
        }
    }
    let missing = longshore(&["serve", "--config", "/no/such/file.toml"]);
    assert!(!missing.status.success());
    assert!(text(&missing.stderr).contains("/no/such/file.toml"), "{}", text(&missing.stderr));
}

/// OCI-39: only cgroup v2 can be given away; there a test of `vm` shows that it is.
#[test]
fn writable_cgroups_are_refused_on_cgroup_v1() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let config = format!(
        "root = {:?}\nstate = {:?}\n[server]\nlisten = {:?}\n[containerd]\naddress = \"/no/such/socket\"\n\
         [runtime]\ndefault = \"writable\"\n[runtime.handlers.writable]\ncgroup_writable = true\n",
        at("root"),
        at("state"),
        at("socket")
    );
    let file = at("longshore.toml");
    std::fs::write(&file, config).expect("a file");
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    let output = longshore(&["serve", "--config", file.to_str().expect("UTF-8")]);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("runtime.handlers.writable.cgroup_writable: this host has cgroup v1"), "{said}");
}

/// `longshore version` with and without a server.
#[tokio::test]
async fn version_tells_client_server_and_containerd() {
    let alone = longshore(&["version", "--listen", "/no/such/socket"]);
    let said = text(&alone.stdout);
    assert!(alone.status.success() && said.contains("not reachable at /no/such/socket"), "{said}");
    let node = Node::with(Server::Longshore).start().await;
    let socket = node.socket().to_str().expect("UTF-8").to_owned();
    let said = text(&longshore(&["version", "--listen", &socket]).stdout);
    let version = node.containerd_version().to_string();
    for part in [env!("CARGO_PKG_VERSION"), &socket, &version] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    node.finish().await;
}

/// A pull is listed as long as it runs, and nothing of it stays.
#[tokio::test]
async fn running_pulls_are_listed() {
    let node = Node::with(Server::Longshore).start().await;
    let (_, state) = node.longshore().folders();
    let pulls = |flags: &[&str]| {
        let state = state.to_str().expect("UTF-8");
        let listed = longshore(&[&["images", "pulls", "--state", state], flags].concat());
        assert!(listed.status.success(), "{}", text(&listed.stderr));
        text(&listed.stdout)
    };
    assert_eq!(pulls(&[]), "no image is being pulled\n");
    // A registry that takes connections and says nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let reference = format!("{}/a:1", registry.local_addr().expect("an address"));
    {
        let mut pull = Box::pin(node.pull(&reference));
        tokio::select! {
            pulled = &mut pull => panic!("nobody answers: {pulled:?}"),
            () = wait_until("the pull to be listed", async || pulls(&[]).contains(&reference)) => {}
        }
        let listed: serde_json::Value = serde_json::from_str(&pulls(&["--json"])).expect("JSON");
        let (name, bytes) = (&listed[0]["reference"], &listed[0]["received_bytes"]);
        assert_eq!((name.as_str(), bytes.as_u64()), (Some(reference.as_str()), Some(0)));
    }
    wait_until("the pull to end", async || pulls(&[]).contains("no image")).await;
    let elsewhere = longshore(&["images", "pulls", "--state", "/no/such/folder"]);
    assert!(!elsewhere.status.success() && text(&elsewhere.stderr).contains("no server answers"));
    node.finish().await;
}

/// SVC-02: a stale socket is replaced, a living one and what is no socket never.
#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_never() {
    let node = Node::with(Server::Longshore).start().await;
    node.longshore().kill().await;
    assert!(node.socket().exists(), "a killed server leaves its socket");
    node.longshore().start().await;
    let second = second_server(&node, node.socket());
    assert!(second.contains("another server"), "{second}");
    node.version().await.expect("the first one goes on");
    let file = node.place().path("no-socket");
    std::fs::write(&file, "precious").expect("a file");
    let second = second_server(&node, &file);
    assert!(second.contains("is not a socket"), "{second}");
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), "precious");
    node.finish().await;
}

/// Starts a server with folders of its own at `socket`; gives what it says when it ends.
fn second_server(node: &Node, socket: &Path) -> String {
    let own = |name: &str| node.place().path("second").join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["serve", "--namespace", "second", "--listen"])
        .arg(socket)
        .arg("--containerd")
        .arg(node.containerd().socket())
        .arg("--root")
        .arg(own("root"))
        .arg("--state")
        .arg(own("state"))
        .output()
        .expect("longshore starts");
    assert!(!output.status.success());
    text(&output.stderr) + &text(&output.stdout)
}

/// Two servers with one root would roll back each other's pods.
#[tokio::test]
async fn a_root_has_one_server() {
    let node = Node::with(Server::Longshore).start().await;
    let (root, state) = node.longshore().folders();
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["serve", "--listen"])
        .arg(node.place().path("other.sock"))
        .arg("--root")
        .arg(&root)
        .arg("--state")
        .arg(&state)
        .output()
        .expect("longshore starts");
    let said = text(&output.stderr) + &text(&output.stdout);
    assert!(!output.status.success() && said.contains(root.to_str().expect("UTF-8")), "{said}");
    node.finish().await;
}

/// SIGHUP: the log level changes, a broken configuration changes nothing.
#[tokio::test]
async fn sighup_reloads_the_log_level() {
    let node = Node::with(Server::Longshore).config("[log]\nlevel = \"info\"\n").start().await;
    let file = node.longshore().config_file();
    let before = std::fs::read_to_string(&file).expect("a file");
    std::fs::write(&file, before.replace("\"info\"", "\"debug\"")).expect("a file");
    assert!(!node.longshore().log().contains("DEBUG"));
    node.longshore().hup();
    wait_until("a debug line", async || {
        node.version().await.expect("an answer");
        node.longshore().log().contains("DEBUG")
    })
    .await;
    std::fs::write(&file, "version = 9").expect("a file");
    node.longshore().hup();
    wait_until("a warning", async || node.longshore().log().contains("the configuration was not reloaded"))
        .await;
    node.version().await.expect("it goes on");
    node.finish().await;
}

/// Type=notify: READY once the socket serves, STOPPING at the end.
#[tokio::test]
async fn the_service_manager_is_told_when_it_is_ready() {
    let node = Node::with(Server::Longshore).start().await;
    let folder = node.place().path("notify");
    std::fs::create_dir(&folder).expect("a folder");
    let manager = tokio::net::UnixDatagram::bind(folder.join("n.sock")).expect("a socket");
    let own = |name: &str| folder.join(name);
    let socket = own("l.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["serve", "--namespace", "notify", "--listen"])
        .arg(&socket)
        .arg("--containerd")
        .arg(node.containerd().socket())
        .arg("--root")
        .arg(own("root"))
        .arg("--state")
        .arg(own("state"))
        .env("NOTIFY_SOCKET", folder.join("n.sock"))
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(own("log")).expect("a file"))
        .spawn()
        .expect("longshore starts");
    let mut told = Vec::new();
    let mut message = [0; 1000];
    for want in ["READY=1", "STOPPING=1"] {
        let received = tokio::time::timeout(patient(LIMIT), manager.recv(&mut message)).await;
        let log = || std::fs::read_to_string(own("log")).unwrap_or_default();
        let length = received.unwrap_or_else(|_| panic!("no {want}:\n{}", log())).expect("a message");
        told.push(text(&message[..length]).trim().to_owned());
        assert!(told.iter().any(|line| line.contains(want)), "{told:?}");
        if want == "READY=1" {
            assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        }
    }
    assert!(child.wait().expect("an end").success());
    node.finish().await;
}
