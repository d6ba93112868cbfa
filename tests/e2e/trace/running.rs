//! What goes on now: `longshore ps` and `longshore top`.

use std::process::{Command, Output};

use longshore::admin::Overview;

use super::stories;
use crate::harness::images::BUSYBOX;
use crate::harness::{Node, Server, wait_for, wait_until};

fn command(node: &Node, name: &str, flags: &[&str]) -> Output {
    let (_, state) = node.longshore().folders();
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args([name, "--state"]).arg(state).args(flags).output().expect("longshore starts")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn overview(node: &Node) -> Overview {
    serde_json::from_str(&text(&command(node, "ps", &["--json"]))).expect("JSON")
}

#[tokio::test]
async fn what_there_is_and_what_runs_is_listed() {
    let node = Node::with(Server::Longshore).start().await;
    node.pull(BUSYBOX).await.expect("pulled");
    let pod = node.pod("web").run().await.expect("a pod");
    let runs = pod.container("app").forever().run().await.expect("it runs");
    let ended = pod.container("init").sh("exit 3").run().await.expect("it runs");
    ended.wait_exited().await;
    let said = text(&command(&node, "ps", &[]));
    let words: Vec<String> =
        said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let has = |parts: &[&str]| words.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    let pid = runs.info().await["pid"].to_string();
    assert!(has(&["default/web", &pod.id[..13], "READY", "1/2", &pod.ip().await]), "{said}");
    assert!(has(&["default/web app", &runs.id[..13], "RUNNING", &pid]), "{said}");
    assert!(has(&["default/web init", "EXITED", "3 Error"]), "{said}");

    // A call that waits for a process, and a pull that waits for a registry.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let reference = format!("{}/a:1", registry.local_addr().expect("an address"));
    tokio::select! {
        ended = runs.exec(["sleep", "1000"]) => panic!("it sleeps: {ended:?}"),
        pulled = node.pull(&reference) => panic!("nobody answers: {pulled:?}"),
        () = wait_until("both calls", async || {
            let now = overview(&node);
            let calls = now.calls.expect("they are recorded");
            let exec = calls.iter().find(|call| call.method == "ExecSync");
            let pull = calls.iter().find(|call| call.method == "PullImage");
            let waits = |call: Option<&longshore::admin::CallLine>, object: &str, stage: &str| {
                call.is_some_and(|call| call.object.contains(object) && call.stage.contains(stage))
            };
            waits(exec, "default/web app", "") && waits(pull, &reference, "registry") && now.pulls.len() == 1
        }) => {}
    }
    // Nobody waits any more: the pull is given up, and told of.
    wait_until("the pull to end", async || overview(&node).pulls.is_empty()).await;
    wait_for("its story", async || {
        let pulls = stories(&node, &["--method", "PullImage"]);
        pulls.iter().find(|pull| pull.about.object == reference).map(|pull| assert_eq!(pull.code, "Canceled"))
    })
    .await;
    let top = text(&command(&node, "top", &["-n", "2", "-d", "0.1"]));
    assert_eq!(top.matches("WAITS FOR").count(), 2, "{top}");
    assert!(top.contains("default/web app") && !top.contains('\x1b'), "{top}");
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn without_a_server_and_without_a_record_it_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["ps", "--state"])
        .arg(folder.path())
        .output()
        .expect("longshore starts");
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no server answers at"));
    let node = Node::with(Server::Longshore).config("[trace]\nenabled = false\n").start().await;
    assert!(text(&command(&node, "ps", &[])).contains("calls are not recorded"));
    assert_eq!(overview(&node).calls, None);
    node.finish().await;
}
