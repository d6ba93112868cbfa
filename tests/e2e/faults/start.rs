//! Server or containerd end in the middle of StartContainer, of an exec, or of a container's end
//! (areas CTR, EXE, REC).

use std::path::PathBuf;
use std::time::Duration;

use longshore::proto::cri::{ContainerState, LinuxContainerResources};
use tonic::Code;

use super::containerd::proxied;
use crate::harness::{Container, Node, Pod, Server, procfs, wait_until};

/// The server dies, or a step fails, as `text` says. Gives the file that says it.
fn order(node: &Node, text: &str) -> PathBuf {
    let points = node.place().path("points");
    std::fs::write(points.with_extension("new"), text).expect("a file");
    std::fs::rename(points.with_extension("new"), &points).expect("a file");
    points
}

/// The same in a start of this container.
async fn cut_off(node: &Node, text: &str, container: &Container) {
    let points = order(node, text);
    container.start().await.expect_err("it is cut off");
    std::fs::remove_file(points).expect("it was there");
}

/// The server is dead by an order of [`cut_off`].
async fn wait_until_dead(node: &Node) {
    let longshore = node.longshore();
    wait_until("the end of the server", async || !longshore.is_alive()).await;
    longshore.kill().await;
}

/// Processes whose command line holds `text`.
fn running(text: &str) -> usize {
    let holds = |running: &procfs::Running| running.arguments.iter().any(|argument| argument.contains(text));
    procfs::processes().iter().filter(|running| holds(running)).count()
}

/// The process of an exec runs, and its start was answered: a shim makes one start at a time.
async fn wait_until_started(container: &Container, script: &str) {
    wait_until("the exec", async || running(script) > 0).await;
    container.exec(["true"]).await.expect("another exec");
}

async fn state(container: &Container) -> ContainerState {
    container.status().await.expect("a status").state()
}

async fn finish(node: Node, pod: Pod) {
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// REC-06, REC-08: one that is started again would do its work twice.
#[tokio::test]
async fn what_ran_and_ended_around_a_crash_keeps_its_end() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let mark = format!("{}-work", node.place().name());
    let container = pod.container("c").sh(&format!(": {mark}; echo done; exit 7"));
    let container = container.create().await.expect("created");
    cut_off(&node, "kill 1 1 after Tasks.Start", &container).await;
    wait_until_dead(&node).await;
    wait_until("its end", async || running(&mark) == 0).await;
    node.longshore().start().await;
    let status = container.wait_exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    container.wait_log("done").await;
    let before = container.status().await.expect("a status");
    node.longshore().kill().await;
    node.longshore().start().await;
    assert_eq!(container.status().await.expect("a status"), before);
    finish(node, pod).await;
}

/// REC-08: what only the task knew is stored; the task does not live as long.
#[tokio::test]
async fn a_start_that_was_not_recorded_is_recorded_by_the_next_server() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let mark = format!("{}-work", node.place().name());
    let script = format!(": {mark}; until [ -e /gate/go ]; do usleep 20000; done; exit 3");
    let container = pod.container("c").sh(&script).mount(&gate, "/gate");
    let container = container.create().await.expect("created");
    cut_off(&node, "kill 1 1 after Tasks.Start", &container).await;
    wait_until_dead(&node).await;
    node.longshore().start().await;
    let before = container.status().await.expect("a status");
    assert_eq!(before.state(), ContainerState::ContainerRunning);
    node.longshore().kill().await;
    std::fs::write(gate.join("go"), "").expect("a file");
    wait_until("its end", async || running(&mark) == 0).await;
    node.longshore().start().await;
    let status = container.wait_exited().await;
    assert_eq!((status.started_at, status.exit_code), (before.started_at, 3), "{status:?}");
    finish(node, pod).await;
}

/// REC-09: the task is gone, its output is still open.
#[tokio::test]
async fn the_output_of_an_end_that_was_cut_off_is_closed_by_the_next_server() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").sh("echo done; exit 4").create().await.expect("created");
    let points = order(&node, "kill 1 1 after Tasks.Delete");
    // Its answer may come before that.
    let _ = container.start().await;
    wait_until_dead(&node).await;
    std::fs::remove_file(points).expect("it was there");
    let fifos = node.longshore().folders().1.join("containers").join(&container.id).join("io");
    assert!(fifos.exists(), "{fifos:?}");
    node.longshore().start().await;
    wait_until("the end of its output", async || !fifos.exists()).await;
    assert_eq!(container.wait_exited().await.exit_code, 4);
    container.wait_log("done").await;
    finish(node, pod).await;
}

/// REC-09: it never ran, and has no end.
#[tokio::test]
async fn what_was_never_started_stays_created() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().create().await.expect("created");
    cut_off(&node, "kill 1 1 after Tasks.Create", &container).await;
    wait_until_dead(&node).await;
    node.longshore().start().await;
    wait_until("the end of its task", async || !node.containerd().behind().has_task(&container.id).await)
        .await;
    let other = pod.container("d").sh("exit 0").run().await.expect("it runs");
    other.wait_exited().await; // events have come by then
    assert_eq!(state(&container).await, ContainerState::ContainerCreated);
    container.start().await.expect("it starts");
    assert_eq!(state(&container).await, ContainerState::ContainerRunning);
    finish(node, pod).await;
}

/// CTR-15, REC-18: the start succeeded, its answer was lost with containerd. Nobody is told that
/// the container has stopped while its process runs, and it does not run for long.
#[tokio::test]
async fn a_start_that_failed_without_containerd_leaves_nothing_running() {
    let (node, proxy) = proxied("").await;
    let pod = node.pod("a").run().await.expect("a pod");
    let mark = |number: u32| format!("{}-{number}", node.place().name());
    let script = |number| format!(": {}; sleep 1000; :", mark(number));
    let mut containers = Vec::new();
    for (number, name) in ["b", "c"].iter().enumerate() {
        let container = pod.container(name).sh(&script(number as u32)).create().await.expect("created");
        proxy.fail("Tasks/Get", Code::Unavailable, "ashore");
        cut_off(&node, "fail 1 1 after Tasks.Start", &container).await;
        let status = container.status().await.expect("a status");
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128));
        wait_until("its process", async || running(&mark(number as u32)) > 0).await;
        let error = container.stop(0).await.expect_err("its process runs");
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        pod.stop().await.expect_err("its process runs");
        assert_eq!(pod.status().await.expect("a status").state, 0, "its network and pause are there");
        proxy.heal();
        containers.push(container);
        if number == 0 {
            containers[0].stop(0).await.expect("stopped");
            assert_eq!(running(&mark(0)), 0, "it was told to have stopped");
        }
    }
    // The other is ended by the comparison after a reconnect.
    node.containerd().kill().await;
    node.containerd().start().await;
    wait_until("the end of what runs", async || running(&mark(1)) == 0).await;
    assert_eq!(containers[1].status().await.expect("a status").exit_code, 128);
    finish(node, pod).await;
}

/// CTR-41: a removal that waits for another call, and a start that comes meanwhile.
#[tokio::test]
async fn a_removal_and_a_start_do_not_wait_for_each_other() {
    let (node, proxy) = proxied("").await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().create().await.expect("created");
    proxy.delay(Duration::from_millis(700));
    let short = Duration::from_millis(200);
    let limits = LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let (updated, removed, started) = tokio::join!(
        container.update(limits),
        async {
            tokio::time::sleep(short).await;
            container.remove().await
        },
        async {
            tokio::time::sleep(short * 2).await;
            container.start().await
        },
    );
    updated.expect("updated");
    // Which of the two comes first is not said, but the other one is refused.
    assert!(removed.is_ok() != started.is_ok(), "{removed:?} {started:?}");
    proxy.heal();
    container.remove().await.expect("removed");
    finish(node, pod).await;
}

/// EXE-07, EXE-09: the limit of an ExecSync holds while containerd is restarted, and its process
/// goes.
#[tokio::test]
async fn an_exec_through_a_restart_of_containerd_leaves_no_process() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let mark = format!("{}-exec", node.place().name());
    let script = format!(": {mark}; sleep 1000; :");
    let io = node.longshore().folders().1.join("containers").join(&container.id).join("io");
    let entries = || std::fs::read_dir(&io).expect("a folder").count();
    let before = entries();

    // Restarted while it runs: its end is seen all the same.
    let quick = format!(": {mark}-quick; until [ -e /tmp/go ]; do usleep 20000; done; exit 5");
    let (answer, ()) = tokio::join!(container.exec_timeout(["sh", "-c", &quick], 60), async {
        wait_until_started(&container, &quick).await;
        node.containerd().kill().await;
        node.containerd().start().await;
        wait_until("containerd", async || container.exec(["touch", "/tmp/go"]).await.is_ok()).await;
    });
    assert_eq!(answer.expect("an answer").exit_code, 5);

    // Its limit ends while containerd is away.
    let (answer, ()) = tokio::join!(container.exec_timeout(["sh", "-c", &script], 10), async {
        wait_until_started(&container, &script).await;
        node.containerd().kill().await;
        wait_until("the loss of containerd", async || {
            let during = entries();
            let probe = container.exec(["true"]).await.expect_err("containerd is away");
            probe.code() == Code::Unavailable && entries() == during
        })
        .await;
    });
    assert_eq!(answer.expect_err("too long").code(), Code::DeadlineExceeded);
    assert!(running(&script) > 0, "nobody could kill it yet");
    node.containerd().start().await;
    wait_until("its end", async || running(&script) == 0).await;
    wait_until("the end of its FIFOs", async || entries() == before).await;
    finish(node, pod).await;
}
