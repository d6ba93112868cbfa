//! Logs: paths that lead out of the pod's folder, and a container that has that folder mounted
//! and puts links and devices in place of files and folders.

use tonic::Code;

use super::Outside;
use crate::harness::{Node, Pod, Server};

/// How often a victim is started while folders are swapped, and how often its log is opened anew
/// each time.
const STARTS: u32 = 8;
const REOPENS: usize = 25;

/// CTR-17: a log is in the folder of its pod.
#[tokio::test]
async fn a_log_path_leads_nowhere_but_into_the_pods_folder() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let pod = node.pod("a").run().await.expect("a pod");
    for path in ["../../outside/0.log", "c/../../../outside/file", "..", ".", "c/../..", "../../outside"] {
        let created = pod.container("c").config(|config| config.log_path = path.into()).create().await;
        let error = created.expect_err("it leads out");
        assert_eq!(error.code(), Code::InvalidArgument, "{path}: {error:?}");
        assert!(error.message().contains(path), "{error:?}");
    }
    // A path that looks absolute is below the folder all the same.
    let absolute = pod.container("c").config(|config| config.log_path = outside.path("0.log"));
    let absolute = absolute.sh("echo hello").run().await.expect("it runs");
    absolute.wait_exited().await;
    let log = absolute.status().await.expect("a status").log_path;
    assert_eq!(log, format!("{}{}", pod.config.log_directory, outside.path("0.log")));
    assert!(std::fs::read_to_string(log).expect("a log").ends_with("stdout F hello\n"));
    for folder in ["outside", "../../outside", "./x"] {
        let pod = node.pod("b").log_dir(folder).run().await.expect("a pod");
        let error = pod.container("c").forever().create().await.expect_err("a relative folder");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        pod.remove().await.expect("removed");
    }
    outside.assert_untouched("log paths that lead there");
    node.remove_all().await;
    node.finish().await;
}

/// A pod whose containers can have its logs mounted.
async fn pod(node: &Node) -> Pod {
    let pod = node.pod("logs").run().await.expect("a pod");
    std::fs::create_dir_all(&pod.config.log_directory).expect("a folder");
    pod
}

/// LOG-13, CTR-17: what a container has put there is not followed and not opened; its own log
/// goes on.
#[tokio::test]
async fn links_and_devices_in_place_of_a_log_are_refused() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let pod = pod(&node).await;
    let script = "while :; do until [ -e /logs/go ]; do usleep 10000; done; rm /logs/go; echo line; done";
    let container = pod.container("c").mount(&pod.config.log_directory, "/logs").sh(script);
    let container = container.run().await.expect("it runs");
    container.sh("mv /logs/c/0.log /logs/c/old").await;
    for (what, make) in [
        ("a link to a file", format!("ln -s {} /logs/c/0.log", outside.path("file"))),
        ("a link to nothing", format!("ln -s {} /logs/c/0.log", outside.path("new"))),
        ("a device", "mknod /logs/c/0.log c 1 3".to_owned()),
        ("a FIFO", "mkfifo /logs/c/0.log".to_owned()),
        ("a folder", "mkdir /logs/c/0.log".to_owned()),
    ] {
        container.sh(&make).await;
        let error = container.reopen_log().await.expect_err("it is no file");
        assert_eq!(error.code(), Code::FailedPrecondition, "{what}: {error:?}");
        assert!(error.message().contains("c/0.log"), "{what}: {error:?}");
        container.sh("rm -r /logs/c/0.log").await;
    }
    container.sh(&format!("mv /logs/c /logs/moved; ln -s {} /logs/c", outside.text())).await;
    container.reopen_log().await.expect_err("its folder is a link");
    container.sh(&format!("ln -s {} /logs/d", outside.path("empty"))).await;
    let other = pod.container("d").forever().create().await.expect("created");
    let error = other.start().await.expect_err("its folder is a link");
    assert!(error.message().contains("d/0.log"), "{error:?}");
    assert_eq!(other.status().await.expect("a status").reason, "StartError");
    outside.assert_untouched("links in place of logs");

    // All that time the log went on where it was, and the next good file is taken.
    container.sh("rm /logs/c; mv /logs/moved /logs/c; touch /logs/go").await;
    let old = container.log_path().with_file_name("old");
    let is_there = async || std::fs::read_to_string(&old).is_ok_and(|text| text.contains("stdout F line"));
    crate::harness::wait_until("the line in the old file", is_there).await;
    container.reopen_log().await.expect("reopened");
    container.sh("touch /logs/go").await;
    container.wait_log("stdout F line").await;
    node.remove_all().await;
    node.finish().await;
}

/// The pod's own folder, which a container sees that has the folder of all logs mounted.
#[tokio::test]
async fn a_link_in_place_of_the_pods_folder_is_refused_and_one_above_is_the_owners() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let real = node.place().path("disk-of-logs");
    std::fs::create_dir(&real).expect("a folder");
    std::os::unix::fs::symlink(&real, node.place().path("all-logs")).expect("a link");
    let folder = |name: &str| node.place().path("all-logs").join(name).display().to_string();
    let pod = node.pod("a").log_dir(&folder("a")).run().await.expect("a pod");
    let container = pod.container("c").sh("echo hello").run().await.expect("it runs");
    container.wait_exited().await;
    assert!(std::fs::read_to_string(real.join("a/c/0.log")).expect("a log").ends_with(" hello\n"));

    std::os::unix::fs::symlink(&outside.folder, real.join("b")).expect("a link");
    let pod = node.pod("b").log_dir(&folder("b")).run().await.expect("a pod");
    let error = pod.container("c").forever().run().await.expect_err("its folder is a link");
    assert!(error.message().contains("b/c/0.log"), "{error:?}");
    outside.assert_untouched("a link in place of a pod's folder");
    node.remove_all().await;
    node.finish().await;
}

/// Links come and go while containers are started, their logs opened anew, and removed.
#[tokio::test]
async fn swapping_folders_and_files_for_links_never_gets_anything_outside() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let pod = pod(&node).await;
    // Folder and link change places, also when somebody is on his way through; so do files.
    let swap = format!(
        "cd /logs; ln -s {outside} to; mkdir -p v; ln -s {outside}/new file; touch /logs/begun
         while :; do
           rm -rf w; mv -T v w; mv -T to v; mv -T v to; mv -T w v
           for n in 0 1 2 3 4 5 6 7; do
             cp -P file v/$n.log; ln -s {outside}/file v/x; mv -f v/x v/$n.log; rm -f v/$n.log
           done
         done 2>/dev/null",
        outside = outside.text()
    );
    let attacker = pod.container("attacker").mount(&pod.config.log_directory, "/logs").sh(&swap);
    let attacker = attacker.run().await.expect("it runs");
    let begun = std::path::Path::new(&pod.config.log_directory).join("begun");
    crate::harness::wait_until("the swapping", async || begun.exists()).await;
    let (mut started, mut reopened) = (0, 0);
    for attempt in 0..STARTS {
        let victim = pod.container("v").attempt(attempt).sh("while :; do echo secret; usleep 5000; done");
        let victim = victim.create().await.expect("created");
        if victim.start().await.is_ok() {
            started += 1;
            for _ in 0..REOPENS {
                reopened += usize::from(victim.reopen_log().await.is_ok());
            }
        }
        victim.remove().await.expect("removed");
    }
    println!("{started} of {STARTS} started, {reopened} logs opened anew");
    attacker.stop(0).await.expect("stopped");
    outside.assert_untouched("swapped folders");
    node.remove_all().await;
    outside.assert_untouched("the removal");
    node.finish().await;
}
