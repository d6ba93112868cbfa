//! ExecSync.

use std::path::Path;

use longshore::proto::cri::{ContainerState, Int64Value};
use tonic::Code;

use super::code;
use crate::harness::{Node, wait_until};

/// EXE-02, CTR-45.
#[tokio::test]
async fn the_answer_has_code_and_both_streams() {
    let node = Node::start().await;
    let pod = node.pod("exec").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let done = container.exec(["/bin/sh", "-c", "echo out; echo err >&2; exit 42"]).await.expect("it runs");
    assert_eq!(done.exit_code, 42);
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let binary = container.exec(["printf", "\\000\\377x"]).await.expect("it runs");
    assert_eq!((binary.exit_code, binary.stdout.as_slice()), (0, &b"\0\xffx"[..]));
    let killed = container.exec(["/bin/sh", "-c", "kill -KILL $$"]).await.expect("it runs");
    assert_eq!(killed.exit_code, 137);
    assert_eq!(container.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    // Nothing of it is in the container's log.
    assert_eq!(container.log().await, "");
    node.remove_all().await;
    node.finish().await;
}

/// EXE-06.
#[tokio::test]
async fn the_process_is_like_the_containers_and_has_no_input() {
    let node = Node::start().await;
    let pod = node.pod("like").run().await.expect("a pod");
    let container = pod.container("c").forever().env("KEY", "value");
    let container = container.security(|security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.no_new_privs = true;
    });
    let container = container.config(|config| config.working_dir = "/tmp".into());
    let container = container.run().await.expect("a container");
    assert_eq!(container.sh("id -u; pwd; echo $KEY").await, "1000\n/tmp\nvalue");
    assert_eq!(container.sh("grep NoNewPrivs /proc/self/status").await, "NoNewPrivs:\t1");
    let pid = container.info().await["pid"].as_u64().expect("a pid");
    for kind in ["net", "pid", "mnt", "uts", "ipc"] {
        let own = container.sh(&format!("readlink /proc/self/ns/{kind}")).await;
        // Seen from outside: a process may be kept from looking at those of another.
        let first = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_eq!(Path::new(&own), first);
    }
    assert_eq!(container.sh("cat; echo end").await, "end");
    node.remove_all().await;
    node.finish().await;
}

/// EXE-04, EXE-09, ERR-04.
#[tokio::test]
async fn a_process_that_takes_too_long_is_killed() {
    let node = Node::start().await;
    let pod = node.pod("timeout").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let late = container.exec_timeout(["sleep", "27182"], 1).await;
    assert_eq!(code(late), Code::DeadlineExceeded);
    // The reaping may be a moment later than the answer.
    wait_until("the end of the process", async || {
        container.sh("ps -o args | grep -c '^sleep 27182' || true").await == "0"
    })
    .await;
    let in_time = container.exec_timeout(["true"], 60).await.expect("it runs");
    assert_eq!(in_time.exit_code, 0);
    node.remove_all().await;
    node.finish().await;
}

/// EXE-07, SVC-34.
#[tokio::test]
async fn many_at_a_time_each_get_their_own_output() {
    let node = Node::start().await;
    let pod = node.pod("many").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let mut running = tokio::task::JoinSet::new();
    for number in 0..8 {
        let container = container.clone();
        running.spawn(async move {
            let script =
                format!("i=0; while [ $i -lt 100 ]; do echo {number}; i=$((i+1)); done; exit {number}");
            let done = container.exec(["/bin/sh", "-c", &script]).await.expect("it runs");
            assert_eq!(done.exit_code, number);
            assert_eq!(String::from_utf8(done.stdout).expect("text"), format!("{number}\n").repeat(100));
        });
    }
    running.join_all().await;
    node.remove_all().await;
    node.finish().await;
}

/// EXE-01, EXE-08.
#[tokio::test]
async fn what_cannot_run_is_an_error() {
    let node = Node::start().await;
    let pod = node.pod("errors").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let error = container.exec(["no-such-program"]).await.expect_err("no such program");
    assert!(error.message().contains("\"no-such-program\": executable file not found in $PATH"), "{error}");
    container.exec([""; 0]).await.expect_err("no command");
    assert_eq!(container.sh("echo fine").await, "fine");
    let created = pod.container("created").create().await.expect("a container");
    created.exec(["true"]).await.expect_err("it does not run");
    container.stop(0).await.expect("stopped");
    container.exec(["true"]).await.expect_err("it ended");
    node.remove_all().await;
    node.finish().await;
}
