//! Container logs, in the CRI's format.

use tonic::Code;

use super::{UNKNOWN, code};
use crate::harness::{Container, LogEntry, Node, Pod};

/// Runs a script to its end.
async fn run(pod: &Pod, name: &str, script: &str) -> Container {
    let container = pod.container(name).sh(script).run().await.expect("a container");
    container.wait_exited().await;
    container
}

fn texts(entries: &[LogEntry], stream: &str) -> Vec<String> {
    entries.iter().filter(|entry| entry.stream == stream).map(LogEntry::text).collect()
}

/// LOG-01, LOG-02, LOG-03, LOG-08.
#[tokio::test]
async fn each_line_is_an_entry_with_time_stream_and_tag() {
    let node = Node::start().await;
    let pod = node.pod("lines").run().await.expect("a pod");
    let container = run(&pod, "c", "echo one; echo two >&2; echo; printf 'a\\000b\\377 \\n'").await;
    let entries = container.log_entries().await;
    assert_eq!(texts(&entries, "stderr"), ["two"]);
    let output: Vec<&LogEntry> = entries.iter().filter(|entry| entry.stream == "stdout").collect();
    assert_eq!(output[0].text(), "one");
    assert!(output[1].content.is_empty());
    assert_eq!(output[2].content, b"a\0b\xff ");
    for entry in &entries {
        assert_eq!(entry.tag, "F");
        let time: jiff::Timestamp = entry.time.parse().expect("a time");
        assert!(time <= jiff::Timestamp::now(), "{time}");
        assert!(entry.time.contains('.'), "{} has no fraction", entry.time);
    }
    node.remove_all().await;
    node.finish().await;
}

/// LOG-04, LOG-05, LOG-06, LOG-07.
#[tokio::test]
async fn long_and_unfinished_lines_are_tagged_p() {
    let node = Node::start().await;
    let pod = node.pod("long").run().await.expect("a pod");
    const MAX: usize = 16 << 10;
    let entries = async |name: &str, script: &str| {
        let entries = run(&pod, name, script).await.log_entries().await;
        entries.into_iter().map(|entry| (entry.tag.clone(), entry.content.len())).collect::<Vec<_>>()
    };
    let tags = |tags: &[(&str, usize)]| -> Vec<(String, usize)> {
        tags.iter().map(|(tag, length)| ((*tag).to_owned(), *length)).collect()
    };
    let zeros = |count: usize| format!("head -c {count} /dev/zero | tr '\\000' x");
    let long = entries("long", &format!("{}; echo", zeros(2 * MAX + 100))).await;
    assert_eq!(long, tags(&[("P", MAX), ("P", MAX), ("F", 100)]));
    let exact = entries("exact", &format!("{}; echo", zeros(MAX))).await;
    assert_eq!(exact, tags(&[("F", MAX)]));
    let unfinished = entries("unfinished", "echo full; printf rest").await;
    assert_eq!(unfinished, tags(&[("F", 4), ("P", 4)]));
    let returns = entries("returns", "printf 'a\\rb\\r\\n'").await;
    assert_eq!(returns, tags(&[("F", 3)]));
    node.remove_all().await;
    node.finish().await;
}

/// LOG-07, CTR-10.
#[tokio::test]
async fn a_terminals_output_is_all_stdout() {
    let node = Node::start().await;
    let pod = node.pod("tty").run().await.expect("a pod");
    let container =
        pod.container("c").tty().sh("test -t 0 && test -t 1 && echo one; echo two >&2").run().await;
    let container = container.expect("a container");
    container.wait_exited().await;
    assert_eq!(texts(&container.log_entries().await, "stdout"), ["one", "two"]);
    node.remove_all().await;
    node.finish().await;
}

/// CTR-46, LOG-09.
#[tokio::test]
async fn the_log_is_complete_when_the_container_is_exited() {
    let node = Node::start().await;
    let pod = node.pod("complete").run().await.expect("a pod");
    let script = "i=0; while [ $i -lt 5000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let entries = run(&pod, "c", script).await.log_entries().await;
    for (stream, word) in [("stdout", "out"), ("stderr", "err")] {
        let expected: Vec<String> = (0..5000).map(|number| format!("{word} {number}")).collect();
        assert_eq!(texts(&entries, stream), expected);
    }
    node.remove_all().await;
    node.finish().await;
}

/// LOG-19, CTR-07, CTR-17.
#[tokio::test]
async fn a_silent_container_has_an_empty_log_and_one_without_path_none() {
    let node = Node::start().await;
    let pod = node.pod("silent").run().await.expect("a pod");
    let silent = run(&pod, "silent", "true").await;
    assert_eq!(std::fs::metadata(silent.log_path()).expect("a log").len(), 0);
    let pathless = pod.container("pathless").config(|config| config.log_path.clear());
    let pathless = pathless.sh("head -c 300000 /dev/zero").run().await.expect("a container");
    let status = pathless.wait_exited().await;
    assert_eq!((status.exit_code, status.log_path.as_str()), (0, ""));
    let elsewhere = node.pod("none").log_dir("").run().await.expect("a pod");
    let container = run(&elsewhere, "c", "head -c 300000 /dev/zero").await;
    assert_eq!(container.status().await.expect("a status").exit_code, 0);
    node.remove_all().await;
    node.finish().await;
}

/// LOG-13, LOG-16.
#[tokio::test]
async fn after_reopen_the_new_file_grows_and_the_old_one_never() {
    let node = Node::start().await;
    let pod = node.pod("rotate").run().await.expect("a pod");
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("line 5\n").await;
    let old = container.log_path().with_extension("old");
    std::fs::rename(container.log_path(), &old).expect("renamed");
    container.reopen_log().await.expect("reopened");
    assert!(container.log_path().exists());
    let before = std::fs::read(&old).expect("the old log");
    container.wait_log("line ").await;
    // A second time, without a rename: it just goes on.
    container.reopen_log().await.expect("reopened");
    let last = container.log_entries().await.len();
    crate::harness::wait_until("more lines", async || container.log_entries().await.len() > last + 5).await;
    container.stop(0).await.expect("stopped");
    assert_eq!(std::fs::read(&old).expect("the old log"), before);
    // No line is lost or twice.
    let mut all = LogEntry::parse_all(&before);
    all.extend(container.log_entries().await);
    let expected: Vec<String> = (0..all.len()).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&all, "stdout"), expected);
    node.remove_all().await;
    node.finish().await;
}

/// LOG-12.
#[tokio::test]
async fn reopen_is_for_running_containers() {
    let node = Node::start().await;
    let pod = node.pod("reopen").run().await.expect("a pod");
    let created = pod.container("created").create().await.expect("a container");
    created.reopen_log().await.expect_err("it does not run");
    let exited = run(&pod, "exited", "echo x").await;
    std::fs::remove_file(exited.log_path()).expect("removed");
    exited.reopen_log().await.expect_err("it ended");
    for container in [&created, &exited] {
        assert!(!container.log_path().exists(), "a log was made");
    }
    let request = longshore::proto::cri::ReopenContainerLogRequest { container_id: UNKNOWN.into() };
    assert_eq!(code(node.runtime().reopen_container_log(request).await), Code::NotFound);
    node.remove_all().await;
    node.finish().await;
}
