//! What went wrong, and how it is found.

use longshore::admin::{self, client};
use longshore::proto::cri::CheckpointContainerRequest;
use longshore::trace::Story;
use tonic::{Code, Status};

use super::{find, of_method, stories, trace, traced};
use crate::harness::{Node, Server, wait_for};

/// A CNI plugin that complains.
const BROKEN: &str = "#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD) echo 'the switch said: port 7 is down' >&2
     echo '{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"no port\"}'; exit 1;;
VERSION) echo '{\"cniVersion\":\"0.4.0\",\"supportedVersions\":[\"0.4.0\"]}';;
esac
";

fn only(plugin: &str) -> serde_json::Value {
    serde_json::json!({ "cniVersion": "0.4.0", "name": "{name}", "plugins": [{ "type": plugin }] })
}

/// The id that an error ends with.
fn id_of(error: &Status) -> String {
    let message = error.message();
    let id = message.rsplit_once(" [trace ").and_then(|(_, end)| end.strip_suffix(']'));
    id.unwrap_or_else(|| panic!("no id at the end of {message:?}")).to_owned()
}

/// ERR-10: the same failure of the same pod has the same text, and so the same id.
#[tokio::test]
async fn the_id_in_an_error_leads_to_the_story() {
    let node = Node::with(Server::Longshore).cni(only("broken")).plugin("broken", BROKEN).start().await;
    let pod = node.pod("unlucky");
    let first = pod.run().await.expect_err("no network");
    let second = pod.run().await.expect_err("no network");
    assert_eq!((first.code(), first.message()), (second.code(), second.message()));
    let id = id_of(&first);
    let text = wait_for("both calls", async || {
        let output = trace(&node, &[&id]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.contains("1 earlier calls").then_some(text)
    })
    .await;
    for part in [
        "RunPodSandbox default/unlucky",
        "Unknown",
        &format!("[trace {id}]"),
        "cni ADD broken",
        "! no port",
        "stderr: the switch said: port 7 is down",
        "undo network",
        "namespace remove network",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!(stories(&node, &[&id, "-n", "0"]).len(), 2);
    let other = node.pod("other").run().await.expect_err("no network");
    assert_ne!(id_of(&other), id);
    // Calls that only look name their stories, too, and those that no handler ever sees.
    let missing = node.pod_status("nothing", false).await.expect_err("there is none");
    wait_for("its story", async || trace(&node, &[&id_of(&missing)]).status.success().then_some(())).await;
    let unbuilt = node.runtime().checkpoint_container(CheckpointContainerRequest::default()).await;
    let unbuilt = unbuilt.expect_err("it is not served");
    assert_eq!(unbuilt.code(), Code::Unimplemented);
    wait_for("its story", async || trace(&node, &[&id_of(&unbuilt)]).status.success().then_some(())).await;
    let unknown = trace(&node, &["ffffff"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no call with the id ffffff is kept"));
    node.finish().await;
}

/// A client that goes away is told of as such, and what its call went on with, too.
#[tokio::test]
async fn a_call_whose_client_went_away_is_told_to_its_end() {
    let slow = "#!/bin/sh
case $CNI_COMMAND in
ADD) while ! test -e {folder}/go; do sleep 0.02; done;;
esac
exec /usr/lib/cni/bridge
";
    let mut list = crate::harness::cni::bridge();
    list["plugins"][0]["type"] = "slow".into();
    let node = Node::with(Server::Longshore).cni(list).plugin("slow", slow).start().await;
    let pod = node.pod("left");
    {
        let mut run = Box::pin(pod.run());
        tokio::select! {
            ended = &mut run => panic!("it waits: {:?}", ended.err()),
            () = crate::harness::wait_until("the plugin to run", async || {
                node.place().path("netns").read_dir().is_ok_and(|mut pins| pins.next().is_some())
            }) => {}
        }
    }
    let (_, state) = node.longshore().folders();
    crate::harness::wait_until("the server to notice", async || {
        let running: Vec<Story> = client::get(&admin::socket(&state), "/v1/calls").await.expect("calls");
        running.iter().any(|call| call.code == "Canceled")
    })
    .await;
    std::fs::write(node.place().path("go"), "").expect("a file");
    let run = &of_method(&node, "RunPodSandbox", 1).await[0];
    assert_eq!((run.code.as_str(), run.about.pod.as_str()), ("Canceled", "default/left"));
    let add = find(run, "cni", "ADD slow");
    assert!(add.at_us + add.us.expect("it ended") > run.us.expect("it was given up"), "{run:#?}");
    find(run, "stage", "pause_start");
    let text = traced(&node, &["--method", "RunPodSandbox"]);
    assert!(text.contains("the client went away; work went on for"), "{text}");
    // The retry gets the result, and says whose.
    let again = pod.run().await.expect("the pod");
    assert_eq!(again.id, run.about.pod_id);
    node.remove_all().await;
    node.finish().await;
}

/// A retry that comes while its call still runs says what it waits for.
#[tokio::test]
async fn a_retry_names_the_call_that_it_joins() {
    let slow = "#!/bin/sh
case $CNI_COMMAND in
ADD) touch {folder}/waits; while ! test -e {folder}/go; do sleep 0.02; done;;
esac
exec /usr/lib/cni/bridge
";
    let mut list = crate::harness::cni::bridge();
    list["plugins"][0]["type"] = "slow".into();
    let node = Node::with(Server::Longshore).cni(list).plugin("slow", slow).start().await;
    let pod = node.pod("twice");
    let (first, second, ()) = tokio::join!(pod.run(), pod.run(), async {
        crate::harness::wait_until("the plugin", async || node.place().path("waits").exists()).await;
        // Both are under way: the record of those that run says so.
        let socket = admin::socket(&node.longshore().folders().1);
        wait_for("both calls", async || {
            let running: Vec<Story> = client::get(&socket, "/v1/calls").await.expect("a list");
            let waits = running.iter().any(|story| story.present().is_some_and(|step| step.kind == "wait"));
            (running.len() == 2 && waits).then_some(())
        })
        .await;
        std::fs::write(node.place().path("go"), "").expect("a file");
    });
    assert_eq!(first.expect("a pod").id, second.expect("the same").id);
    let runs = of_method(&node, "RunPodSandbox", 2).await;
    let waits: Vec<&str> = runs
        .iter()
        .flat_map(|run| &run.steps)
        .filter(|step| step.kind == "wait" && step.name.contains("runs already"))
        .map(|step| step.name.as_str())
        .collect();
    assert_eq!(waits.len(), 1, "{runs:#?}");
    assert!(runs.iter().any(|run| waits[0].contains(&run.id)), "{waits:?}");
    node.remove_all().await;
    node.finish().await;
}

/// Switched off, nothing is recorded, errors name nothing, and the command says why.
#[tokio::test]
async fn a_server_that_does_not_record_says_so() {
    let node = Node::with(Server::Longshore).config("[trace]\nenabled = false\n").start().await;
    let refused = node.pod_status("nothing", false).await.expect_err("there is none");
    assert!(!refused.message().contains("[trace"), "{}", refused.message());
    let output = trace(&node, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("[trace] enabled is false"), "{said}");
    node.finish().await;
}
