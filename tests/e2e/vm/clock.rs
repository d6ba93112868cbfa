//! Somebody sets the clock of the node, by an hour and more (areas ERR, LOG). It is the whole
//! machine's: these tests run one after the other, and in the guest alone.

use std::time::Instant;

use longshore::proto::cri::ContainerState;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::harness::{Container, LogEntry, Node, wait_until};

const NS: i64 = 1_000_000_000;

/// A clock that somebody has set; dropped, it is right again.
struct Set {
    step_s: i64,
}

fn step(by_s: i64) {
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + by_s, ..now }).expect("set");
}

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NS + now.tv_nsec
}

impl Set {
    fn clock(step_s: i64) -> Set {
        assert_eq!(rustix::system::uname().nodename(), c"guest", "this sets the machine's clock");
        step(step_s);
        Set { step_s }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        step(-self.step_s);
    }
}

fn at(entry: &LogEntry) -> i64 {
    let time: jiff::Timestamp = entry.time.parse().expect("a time");
    i64::try_from(time.as_nanosecond()).expect("this century")
}

/// No more than the machine has, whatever the clock said between two looks.
async fn assert_cores(node: &Node, container: &Container) {
    let cpu = node.container_stats(&container.id).await.expect("figures").cpu.expect("cpu");
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let used = cpu.usage_nano_cores.expect("a rate").value;
    assert!(used <= cores * NS.unsigned_abs() * 11 / 10, "{used}");
}

/// What runs, ends, waits and is told over a step of `step_s`.
async fn goes_on_over(step_s: i64) {
    let node = Node::start().await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let talks =
        pod.container("talks").sh("while usleep 50000; do echo hello; done").run().await.expect("it runs");
    let script = "until [ -e /gate/go ]; do usleep 100000; done; exit 9";
    let ends = pod.container("ends").sh(script).mount(&gate, "/gate").run().await.expect("it runs");
    talks.wait_log("hello").await;
    assert_cores(&node, &talks).await;

    let begun = Instant::now();
    // Limits are spans of time, not points of the clock.
    let waiting =
        talks.exec_timeout(["sh", "-c", "until [ -e /go ]; do usleep 100000; done; echo done"], 600);
    let waiting = tokio::join!(waiting, async {
        let set = Set::clock(step_s);
        assert_cores(&node, &talks).await;
        talks.sh("touch /go").await;
        set
    });
    let (done, set) = (waiting.0.expect("it was not too long"), waiting.1);
    assert_eq!(done.stdout, b"done\n");

    // Lines have the time that it is.
    let entries = talks.log_entries().await.len();
    wait_until("more lines", async || talks.log_entries().await.len() > entries + 3).await;
    let last = talks.log_entries().await.last().map(at).expect("entries");
    let passed_s = i64::try_from(begun.elapsed().as_secs()).expect("not long") + 1;
    assert!((now_ns() - passed_s * NS..=now_ns()).contains(&last), "{last}");

    // A container that lives over it has not ended before its start.
    std::fs::write(gate.join("go"), "").expect("a file");
    let ended = ends.wait_exited().await;
    assert_eq!(ended.exit_code, 9);
    assert!(ended.finished_at >= ended.started_at && ended.started_at >= ended.created_at, "{ended:?}");

    // A server that starts now takes all for what it is.
    if !node.is_built_in() {
        node.longshore().kill().await;
        node.longshore().start().await;
    }
    assert_eq!(talks.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    assert_eq!(pod.status().await.expect("a status").state, 0, "READY");
    let next = node.pod("b").run().await.expect("a pod");
    let brief = next.container("brief").sh("exit 3").run().await.expect("it runs");
    assert_eq!(brief.wait_exited().await.exit_code, 3);
    talks.stop(0).await.expect("stopped");
    drop(set);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
#[ignore = "sets the machine's clock: make test-vm"]
async fn set_forward() {
    goes_on_over(90_000).await;
}

#[tokio::test]
#[ignore = "sets the machine's clock: make test-vm"]
async fn set_back() {
    goes_on_over(-7200).await;
}
