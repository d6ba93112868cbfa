//! Of all calls those that are wanted, and as they come.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use longshore::trace::Story;

use super::{of_method, stories, traced};
use crate::harness::{Node, Server};

#[tokio::test]
async fn calls_are_chosen_by_what_they_are_about() {
    let node = Node::with(Server::Longshore).start().await;
    let one = node.pod("one").namespace("prod").run().await.expect("a pod");
    let two = node.pod("two").run().await.expect("a pod");
    node.pods().await.expect("a list");
    node.pod_status("nothing", false).await.expect_err("there is none");
    two.stop().await.expect("stopped");
    of_method(&node, "StopPodSandbox", 1).await;
    of_method(&node, "PodSandboxStatus", 1).await;
    let methods = |flags: &[&str]| -> Vec<(String, String)> {
        let found = stories(&node, flags).into_iter();
        found.map(|story| (story.method, story.about.pod)).collect()
    };
    let of = |method: &str, pod: &str| (method.to_owned(), pod.to_owned());
    assert_eq!(methods(&["--pod", "one"]), [of("RunPodSandbox", "prod/one")]);
    assert_eq!(methods(&["--pod", "prod/one"]), methods(&["--pod", &one.id[..13]]));
    assert_eq!(methods(&["--namespace", "prod"]), methods(&["--pod", "one"]));
    let both = [of("RunPodSandbox", "default/two"), of("StopPodSandbox", "default/two")];
    assert_eq!(methods(&["--namespace", "default"]), both);
    assert_eq!(methods(&["--method", "stoppodsandbox"]), both[1..]);
    assert!(methods(&["--errors"]).contains(&of("PodSandboxStatus", "")));
    assert!(methods(&["--slower-than", "600s"]).is_empty());
    assert!(!methods(&[]).iter().any(|(method, _)| method == "ListPodSandbox"));
    assert!(methods(&["--all"]).iter().any(|(method, _)| method == "ListPodSandbox"));
    assert_eq!(methods(&["-n", "1", "--namespace", "default"]), both[1..]);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn calls_are_followed_as_they_end() {
    let node = Node::with(Server::Longshore).start().await;
    let (_, state) = node.longshore().folders();
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(["trace", "-f", "-n", "1", "--all", "--json", "--state"]).arg(state).stdout(Stdio::piped());
    let mut follower = command.spawn().expect("longshore starts");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let stories = lines.map(|line| serde_json::from_str::<Story>(&line.expect("a line")).expect("a story"));
    let seen = tokio::task::spawn_blocking(move || {
        let mut stories = stories;
        // The first is one that had ended before, which says that it follows.
        let first = stories.next().expect("one that was before").method;
        (first, stories)
    });
    let (first, mut stories) = seen.await.expect("no panic");
    assert_ne!(first, "RunPodSandbox");
    let pod = node.pod("followed").run().await.expect("a pod");
    let found = tokio::task::spawn_blocking(move || stories.find(|story| story.method == "RunPodSandbox"));
    assert_eq!(found.await.expect("no panic").expect("it is told").about.pod_id, pod.id);
    follower.kill().expect("killed");
    follower.wait().expect("it ends");
    assert!(traced(&node, &["--pod", "followed"]).contains("RunPodSandbox default/followed"));
    node.remove_all().await;
    node.finish().await;
}
