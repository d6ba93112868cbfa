//! A disk that takes its time: one that hangs, until it does not, and one that is slow. A disk
//! is a file system of the test's own, which is frozen once or again and again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use longshore::admin::{self, Overview, client};
use longshore::proto::cri::ContainerState;

use crate::harness::{Container, Node, Place, PodBuilder, Server, patient, procfs, wait_until};

/// More calls that write than there are threads for it.
const WRITERS: usize = 80;
/// The folder of the disk in the place.
const DISK: &str = "disk";

fn make_disk(place: &Place) {
    let (image, disk) = (place.path("image"), place.path(DISK));
    std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a file");
    std::fs::create_dir(&disk).expect("a folder");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status();
    assert!(made.expect("mke2fs").success());
    // Takes a loop device, which goes with the mount.
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk).status();
    assert!(mounted.expect("mount").success());
}

/// A disk that hangs, or is slow, until this is dropped, or the tests end in whatever way.
struct Hung(Child);

impl Hung {
    fn disk(folder: &Path) -> Hung {
        // Not even `sync` ends on a disk that nobody lets go.
        Hung::by("fsfreeze --freeze \"$0\" && echo hangs && read -r _; fsfreeze --unfreeze \"$0\"", folder)
    }

    /// Who writes waits for the next of the moments in which it does not hang.
    fn again_and_again(folder: &Path) -> Hung {
        let script = "echo hangs\n\
            while fsfreeze --freeze \"$0\" && { timeout 0.2 cat; [ $? -eq 124 ]; }; do\n\
                fsfreeze --unfreeze \"$0\"; sleep 0.02\n\
            done\nfsfreeze --unfreeze \"$0\"";
        Hung::by(script, folder)
    }

    fn by(script: &str, folder: &Path) -> Hung {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("a shell");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "hangs\n");
        Hung(child)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What has to be answered whatever a disk does.
async fn assert_it_serves(node: &Node, container: &Container) {
    assert!(node.condition("RuntimeReady").await.expect("a status"));
    node.pods().await.expect("pods");
    node.containers().await.expect("containers");
    container.status().await.expect("a status");
    node.list_images().await.expect("images");
    node.container_stats(&container.id).await.expect("figures");
    node.list_pod_stats(None).await.expect("figures");
    assert_eq!(container.sh("echo inside").await, "inside");
}

/// The root hangs under more calls than there are threads for disks: they wait, nothing else
/// does. When it is back they are done, and the end of a container meanwhile is known.
#[tokio::test]
async fn a_root_that_hangs_holds_up_what_writes_there_and_nothing_else() {
    let config = "root = \"{folder}/disk/l\"\n";
    let node = Node::with(Server::Longshore).config(config).before(make_disk).start().await;
    let gate = node.place().path("gate");
    std::fs::create_dir(&gate).expect("a folder");
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let script = "until [ -e /gate/go ]; do usleep 20000; done; exit 9";
    let ending = pod.container("ending").sh(script).mount(&gate, "/gate").run().await.expect("it runs");
    let process = format!("/proc/{}", ending.info().await["pid"].as_u64().expect("a pid"));

    let hung = Hung::disk(&node.place().path(DISK));
    let (new_pod, pod_of_many) = (node.pod("b"), &pod);
    let starting = tokio::spawn(async move { new_pod.run().await });
    let creations: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(pod_of_many.container(&format!("many-{number}")).forever().create()))
        .collect();
    std::fs::write(gate.join("go"), "").expect("a file");
    wait_until("the end of a process", async || !Path::new(&process).exists()).await;
    for _ in 0..3 {
        assert_it_serves(&node, &container).await;
    }
    assert!(!starting.is_finished() && creations.iter().all(|creation| !creation.is_finished()));

    drop(hung);
    let new_pod = starting.await.expect("no panic").expect("a pod");
    for created in join_all(creations).await {
        created.expect("no panic").expect("created");
    }
    assert_eq!(ending.wait_exited().await.exit_code, 9);
    let listed = node.containers().await.expect("containers");
    assert_eq!(listed.len(), 2 + WRITERS);
    new_pod.remove().await.expect("removed");
    node.longshore().kill().await;
    node.longshore().start().await;
    let status = ending.status().await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::ContainerExited as i32, 9));
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// Volumes of many pods hang, as those of a server that is gone: other pods come and go.
#[tokio::test]
async fn volumes_that_hang_hold_up_no_other_pod() {
    let node = Node::with(Server::Longshore).before(make_disk).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");

    let hung = Hung::disk(&node.place().path(DISK));
    let creations: Vec<_> = (0..WRITERS)
        .map(|number| {
            // It is made where it is missing, as far as the disk lets anyone.
            let volume = node.place().path(DISK).join(format!("volume-{number}"));
            tokio::spawn(pod.container(&format!("many-{number}")).forever().mount(volume, "/v").create())
        })
        .collect();
    let (_, state) = node.longshore().folders();
    wait_until("calls that wait", async || {
        let now: Overview = client::get(&admin::socket(&state), "/v1/ps").await.expect("an overview");
        let calls = now.calls.expect("they are recorded");
        calls.iter().filter(|call| call.method == "CreateContainer").count() == WRITERS
    })
    .await;
    assert_it_serves(&node, &container).await;
    let other = node.pod("b").run().await.expect("a pod");
    let brief = other.container("brief").sh("exit 3").run().await.expect("it runs");
    assert_eq!(brief.wait_exited().await.exit_code, 3);
    other.remove().await.expect("removed");
    assert!(creations.iter().all(|creation| !creation.is_finished()));

    drop(hung);
    for created in join_all(creations).await {
        created.expect("no panic").expect("created");
    }
    pod.remove().await.expect("removed");
    node.finish().await;
}

/// The logs of a pod hang: it can be seen and entered, others' logs go on, and no line is lost.
#[tokio::test]
async fn a_log_that_hangs_holds_up_its_container_and_loses_nothing() {
    let node = Node::with(Server::Longshore).before(make_disk).start().await;
    let logs = node.place().path(DISK).join("logs");
    let pod = node.pod("a").log_dir(&logs.display().to_string()).run().await.expect("a pod");
    let count = "n=0; while usleep 2000; do n=$((n + 1)); echo line $n; done";
    let container = pod.container("c").sh(count).run().await.expect("it runs");
    let other =
        node.pod("b").run().await.expect("a pod").container("c").sh(count).run().await.expect("it runs");
    container.wait_log("line 10").await;

    let hung = Hung::disk(&node.place().path(DISK));
    let lines = other.log_entries().await.len();
    wait_until("lines of the other", async || other.log_entries().await.len() > lines + 50).await;
    assert_it_serves(&node, &container).await;
    other.reopen_log().await.expect("reopened");
    drop(hung);

    container.stop(0).await.expect("stopped");
    let entries = container.log_entries().await;
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.text(), format!("line {}", index + 1));
    }
    assert!(entries.len() > 50, "{}", entries.len());
    node.remove_all().await;
    node.finish().await;
}

/// Whether a thread of a process waits for a disk.
fn waits_for_a_disk(pid: u32) -> bool {
    let threads = procfs::names(Path::new(&format!("/proc/{pid}/task"))).into_iter();
    let mut states =
        threads.map(|thread| std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")));
    states.any(|status| status.is_ok_and(|status| status.contains("State:\tD")))
}

/// A server dies while its root hangs: it is not gone before that answers, and the next one
/// waits for it. Then it goes on with what there is.
#[tokio::test]
async fn the_next_server_takes_over_a_root_that_hangs() {
    let config = "root = \"{folder}/disk/l\"\n";
    let node = Node::with(Server::Longshore).config(config).before(make_disk).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");

    let hung = Hung::disk(&node.place().path(DISK));
    let (new_pod, created) = (node.pod("b"), pod.container("cut-off").forever());
    let starting = tokio::spawn(async move { new_pod.run().await });
    let creating = tokio::spawn(async move { created.create().await });
    let longshore = node.longshore();
    wait_until("a write that waits", async || waits_for_a_disk(longshore.pid())).await;
    let mut dying = longshore.kill_and_leave();
    longshore.spawn();
    wait_until("a server that waits", async || waits_for_a_disk(longshore.pid())).await;
    assert!(dying.is_alive(), "what waits for a disk cannot be killed");

    drop(hung);
    dying.wait(patient(Duration::from_secs(60))).await.expect("it has ended");
    starting.await.expect("no panic").expect_err("nobody answers any more");
    creating.await.expect("no panic").expect_err("nobody answers any more");
    wait_until("a server that serves", async || node.version().await.is_ok()).await;
    assert_it_serves(&node, &container).await;
    node.pod("b").attempt(1).run().await.expect("a pod");
    pod.container("cut-off").attempt(1).forever().run().await.expect("it runs");
    node.remove_all().await;
    node.finish().await;
}

/// On a slow root everything takes longer, and nothing fails.
#[tokio::test]
async fn on_a_root_that_is_slow_everything_is_done() {
    let config = "root = \"{folder}/disk/l\"\n";
    let node = Node::with(Server::Longshore).config(config).before(make_disk).start().await;
    let slow = Hung::again_and_again(&node.place().path(DISK));
    let pods: Vec<_> = (0..6).map(|number| node.pod(&format!("p{number}"))).collect();
    let pods = join_all(pods.iter().map(PodBuilder::run)).await;
    for (number, pod) in pods.into_iter().enumerate() {
        let pod = pod.expect("a pod");
        let brief = pod.container("brief").sh(&format!("echo said; exit {number}")).run().await;
        let container = pod.container("c").forever().run().await.expect("it runs");
        assert_it_serves(&node, &container).await;
        let brief = brief.expect("it runs");
        assert_eq!(brief.wait_exited().await.exit_code, number as i32);
        assert_eq!(brief.log_entries().await.len(), 1);
        container.stop(0).await.expect("stopped");
        container.remove().await.expect("removed");
    }
    node.longshore().terminate().await;
    node.longshore().start().await;
    let listed = node.containers().await.expect("containers");
    assert!(listed.len() == 6 && listed.iter().all(|one| one.state() == ContainerState::ContainerExited));
    node.remove_all().await;
    drop(slow);
    node.finish().await;
}
