//! Containers log, rotate, are attached to and exec'ed while the server is killed and comes
//! back, again and again: every line is in the files once, and nothing is left.
//!
//! `LONGSHORE_TEST_SOAK_SECONDS` says how long (20), `LONGSHORE_TEST_SOAK_KILL_SECONDS` how
//! long a server lives (4).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use longshore::proto::cri::AttachRequest;

use super::{Client, STDERR, STDIN, STDOUT, exec, fifo_sets};
use crate::harness::{Container, LogEntry, Node, Server, wait_until};

const CONTAINERS: usize = 3;
/// What a line has after its number.
const REST: &str = "the quick brown fox jumps over the lazy dog and runs on for a while";
/// Between two rotations of a log.
const ROTATION: Duration = Duration::from_millis(700);
/// Between two tries where the server is away.
const PAUSE: Duration = Duration::from_millis(20);

fn seconds(variable: &str, default: u64) -> Duration {
    let text = std::env::var(variable).ok();
    Duration::from_secs(text.map_or(default, |text| text.parse().expect("seconds")))
}

/// What was done.
#[derive(Default)]
struct Done {
    lines: AtomicUsize,
    rotations: AtomicUsize,
    attached: AtomicUsize,
    execs: AtomicUsize,
    cut_off: AtomicUsize,
}

fn count(counter: &AtomicUsize, number: usize) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// The next numbers of a container's streams.
#[derive(Default)]
struct Account {
    next: [usize; 2],
}

impl Account {
    /// Takes what a log holds: each line must be the one that follows.
    fn take(&mut self, log: &Path, done: &Done) {
        for entry in LogEntry::parse_all(&std::fs::read(log).expect("a log")) {
            let stream = usize::from(entry.stream == "stderr");
            let expected = format!("{}{} {REST}", ["o", "e"][stream], self.next[stream]);
            assert!(entry.tag == "F" && entry.text() == expected, "{expected:?} follows, not {entry:?}");
            self.next[stream] += 1;
            count(&done.lines, 1);
        }
    }
}

/// Writes on both streams until the gate says stop, and then how many lines there were.
fn script() -> String {
    format!(
        "i=0; until [ -e /gate/stop ]; do n=0; while [ $n -lt 100 ]; do echo o$i {REST}; \
         echo e$i {REST} >&2; i=$((i+1)); n=$((n+1)); done; usleep 30000; done; echo $i >/gate/$NAME"
    )
}

/// Renames the log and has it reopened, as the kubelet does (LOG-16). Where the server ends
/// in between the question is asked again: to rename it back, as the kubelet would, can hit
/// the file that was just made.
async fn rotate(container: &Container, stop: &AtomicBool, done: &Done) -> Account {
    let mut account = Account::default();
    let (log, old) = (container.log_path(), container.log_path().with_extension("old"));
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(ROTATION).await;
        std::fs::rename(log, &old).expect("renamed");
        wait_until("the reopening of a log", async || container.reopen_log().await.is_ok()).await;
        account.take(&old, done);
        std::fs::remove_file(&old).expect("removed");
        count(&done.rotations, 1);
    }
    account
}

/// Attaches again and again: what is seen has no gap.
async fn attach(container: &Container, stop: &AtomicBool, done: &Done) {
    while !stop.load(Ordering::Relaxed) {
        let request = AttachRequest {
            container_id: container.id.clone(),
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let answer = container.cri.runtime().attach(request).await;
        let Ok(url) = answer.map(|answer| answer.into_inner().url) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(mut client) = Client::try_open(&url).await else { continue };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) && client.read().await {}
        for (channel, prefix) in [(STDOUT, 'o'), (STDERR, 'e')] {
            let text = client.text(channel);
            let whole: Vec<&str> =
                text.split_inclusive('\n').skip(1).filter(|line| line.ends_with('\n')).collect();
            let number = |line: &str| -> usize {
                let number =
                    line.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(&format!(" {REST}\n")));
                number
                    .and_then(|number| number.parse().ok())
                    .unwrap_or_else(|| panic!("a whole line, not {line:?}"))
            };
            for pair in whole.windows(2) {
                assert_eq!(number(pair[0]) + 1, number(pair[1]), "what is attached to has a gap");
            }
        }
        count(&done.attached, usize::from(!client.text(STDOUT).is_empty()));
    }
}

/// Runs commands with streams and without. What the end of a server cuts off has no status;
/// what has one must be right.
async fn execute(container: &Container, stop: &AtomicBool, done: &Done) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(answer) = container.exec(["/bin/sh", "-c", "echo there; exit 7"]).await {
            assert_eq!((answer.exit_code, &*answer.stdout), (7, &b"there\n"[..]));
            count(&done.execs, 1);
        } else {
            count(&done.cut_off, 1);
            tokio::time::sleep(PAUSE).await;
        }
        let Ok(url) = exec::url(container, "cat; exit 3", false).await else { continue };
        let Ok(mut client) = Client::try_open(&url).await else { continue };
        if client.try_send(STDIN, b"through").await && client.try_send(super::CLOSE, &[STDIN]).await {
            while client.read().await {}
        }
        match serde_json::from_str(&client.text(super::ERROR)) {
            Ok(status) => {
                let end = super::End { stdout: client.text(STDOUT), stderr: client.text(STDERR), status };
                // A server that ends in order says so.
                if end.status["reason"] == "NonZeroExitCode" {
                    assert_eq!((&*end.stdout, end.exit_code()), ("through", Some("3")));
                    count(&done.execs, 1);
                }
            }
            Err(_) => count(&done.cut_off, 1),
        }
    }
}

/// Kills the server, or ends it in order each third time, and starts it again.
async fn restart(node: &Node, stop: &AtomicBool) -> usize {
    let life = seconds("LONGSHORE_TEST_SOAK_KILL_SECONDS", 4);
    let end = Instant::now() + seconds("LONGSHORE_TEST_SOAK_SECONDS", 20);
    let mut restarts = 0;
    while Instant::now() < end {
        tokio::time::sleep(life).await;
        if restarts % 3 == 2 {
            node.longshore().terminate().await;
        } else {
            node.longshore().kill().await;
        }
        node.longshore().start().await;
        restarts += 1;
    }
    stop.store(true, Ordering::Relaxed);
    restarts
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// LOG-11, LOG-13, LOG-14, EXE-07, EXE-16, REC-05, REC-12.
#[tokio::test]
async fn no_line_is_lost_and_nothing_left_however_often_the_server_is_killed() {
    let node = Node::with(Server::Longshore).start().await;
    let gate: PathBuf = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("soak").run().await.expect("a pod");
    let mut containers = Vec::new();
    for number in 0..CONTAINERS {
        let name = format!("c{number}");
        let container = pod.container(&name).env("NAME", &name).mount(&gate, "/gate").sh(&script());
        containers.push(container.run().await.expect("a container"));
    }
    let keeper = node.longshore().keeper_pid();
    let descriptors_before = descriptors(keeper);
    let (stop, done) = (AtomicBool::new(false), Done::default());
    let (restarts, accounts, _, _) = tokio::join!(
        restart(&node, &stop),
        futures_util::future::join_all(containers.iter().map(|container| rotate(container, &stop, &done))),
        futures_util::future::join_all(containers.iter().map(|container| attach(container, &stop, &done))),
        futures_util::future::join_all(containers.iter().map(|container| execute(container, &stop, &done))),
    );
    // Nothing of execs and clients stays with running containers.
    assert_eq!(node.longshore().keeper_pid(), keeper, "the keeper outlives all servers");
    wait_until("the end of all execs", async || {
        containers.iter().all(|container| fifo_sets(node.longshore(), container) == 1)
    })
    .await;
    wait_until("the closing of descriptors", async || descriptors(keeper) <= descriptors_before).await;
    std::fs::write(gate.join("stop"), "").expect("a file");
    for (container, mut account) in containers.iter().zip(accounts) {
        assert_eq!(container.wait_exited().await.exit_code, 0);
        account.take(container.log_path(), &done);
        let name = &container.config.metadata.as_ref().expect("metadata").name;
        let said = std::fs::read_to_string(gate.join(name)).expect("its number");
        assert_eq!(account.next, [said.trim().parse::<usize>().expect("a number"); 2], "lines of {name}");
    }
    eprintln!(
        "{restarts} restarts: {:?} lines in {:?} rotations, {:?} attached, {:?} execs and {:?} cut off",
        done.lines, done.rotations, done.attached, done.execs, done.cut_off
    );
    node.remove_all().await;
    node.finish().await;
}
