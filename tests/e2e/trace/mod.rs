//! `longshore trace`: what calls caused, as the running server tells it.

mod failures;
mod filters;
mod running;

use std::process::{Command, Output};

use longshore::admin;
use longshore::proto::cri::{AuthConfig, PullImageRequest};
use longshore::trace::{Figures, Step, Story};

use crate::harness::images::BUSYBOX;
use crate::harness::{Node, Server, wait_for, wait_until};

/// Runs `longshore trace` for the server of a node.
pub(crate) fn trace(node: &Node, flags: &[&str]) -> Output {
    let (_, state) = node.longshore().folders();
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(["trace", "--state"]).arg(state).args(flags).output().expect("longshore starts")
}

/// What it prints; it must end well.
pub(crate) fn traced(node: &Node, flags: &[&str]) -> String {
    let output = trace(node, flags);
    assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The calls that it tells of.
fn stories(node: &Node, flags: &[&str]) -> Vec<Story> {
    let text = traced(node, &[flags, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).expect("a story")).collect()
}

/// The calls of one method, once there are so many: a call's story is whole some moments after
/// its answer.
async fn of_method(node: &Node, method: &str, count: usize) -> Vec<Story> {
    wait_for(method, async || Some(stories(node, &["--method", method])).filter(|found| found.len() >= count))
        .await
}

fn find<'a>(story: &'a Story, kind: &str, name: &str) -> &'a Step {
    let found = story.steps.iter().find(|step| step.kind == kind && step.name == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in {story:#?}"))
}

/// The end of a step.
fn end(step: &Step) -> u64 {
    step.at_us + step.us.expect("it has ended")
}

#[tokio::test]
async fn a_pods_life_is_told_in_named_stages() {
    let node = Node::with(Server::Longshore).start().await;
    node.pull(BUSYBOX).await.expect("pulled");
    let mut pods = Vec::new();
    for number in 0..5 {
        pods.push(node.pod(&format!("pod-{number}")).run().await.expect("a pod"));
    }
    let container = pods[0].container("inner").forever().create().await.expect("created");
    container.start().await.expect("started");
    assert_eq!(container.sh("echo said").await.trim(), "said");
    container.stop(0).await.expect("stopped");

    let runs = of_method(&node, "RunPodSandbox", 5).await;
    // What is in none of the named steps is at most a twentieth of the time.
    let mut shares: Vec<u64> =
        runs.iter().map(|run| run.accounted_us() * 100 / run.us.expect("answered").max(1)).collect();
    shares.sort_unstable();
    assert!(
        shares[2] >= 95,
        "accounted for: {shares:?} percent\n{}",
        traced(&node, &["--method", "RunPodSandbox"])
    );
    let run = &runs[0];
    assert_eq!((run.about.pod.as_str(), run.about.pod_id.as_str()), ("default/pod-0", pods[0].id.as_str()));
    assert_eq!((run.code.as_str(), run.left_out), ("OK", 0));
    for stage in
        ["image", "spec", "record", "netns", "files", "snapshot", "cni", "pause_create", "pause_start"]
    {
        find(run, "stage", stage);
    }
    let task = find(run, "containerd", "Tasks.Create");
    assert_eq!(task.args, format!("id={}", pods[0].id));
    let add = find(run, "cni", "ADD bridge");
    let note = |key: &str| add.notes.iter().find(|(name, _)| name == key).expect("a note").1.as_str();
    assert!(note("args").contains("CNI_IFNAME=eth0") && note("args").contains("K8S_POD_NAME=pod-0"));
    assert!(note("stdin").contains("\"ipam\"") && note("result").contains("\"ips\""));
    find(run, "mount", "tmpfs");
    find(run, "file", "write the CNI cache");
    find(run, "namespace", "make network");
    // At the same time.
    let (network, pause) = (find(run, "stage", "cni"), find(run, "stage", "pause_create"));
    assert!(network.at_us < end(pause) && pause.at_us < end(network), "{run:#?}");
    // What was done for a stage lies below it.
    assert_eq!(run.steps[task.parent as usize - 1].name, "pause_create");
    assert!(run.request.contains("\"name\":\"pod-0\""), "{}", run.request);

    let create = &of_method(&node, "CreateContainer", 1).await[0];
    assert_eq!((create.about.pod.as_str(), create.about.container.as_str()), ("default/pod-0", "inner"));
    assert_eq!(create.about.container_id, container.id);
    find(create, "containerd", "Containers.Create");
    find(create, "file", "write the status");
    let start = &of_method(&node, "StartContainer", 1).await[0];
    assert_eq!((start.about.pod.as_str(), start.about.container.as_str()), ("default/pod-0", "inner"));
    find(start, "keeper", "add");
    find(start, "containerd", "Tasks.Start");
    let pull = &of_method(&node, "PullImage", 1).await[0];
    assert_eq!(pull.about.object, BUSYBOX);
    find(pull, "stage", "resolve");
    assert!(pull.steps.iter().any(|step| step.kind == "registry"), "{pull:#?}");
    let exit = &of_method(&node, "[exit]", 1).await[0];
    assert_eq!((exit.about.container.as_str(), exit.about.pod.as_str()), ("inner", "default/pod-0"));
    find(exit, "containerd", "Tasks.Delete");
    find(&of_method(&node, "[recover]", 1).await[0], "containerd", "Containers.ListStream");

    // As text, and as a timeline.
    let text = traced(&node, &["--method", "RunPodSandbox", "-n", "1"]);
    assert!(text.contains("RunPodSandbox default/pod-4") && text.contains("cni ADD bridge"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    assert!(traced(&node, &["--color", "always"]).contains("\x1b["));
    assert!(traced(&node, &["--brief"]).lines().count() >= 9);
    let timeline: serde_json::Value =
        serde_json::from_str(&traced(&node, &["--perfetto"])).expect("one JSON document");
    let events = timeline["traceEvents"].as_array().expect("a list");
    assert!(events.iter().any(|event| event["name"] == "cni ADD bridge" && event["ph"] == "X"));
    node.remove_all().await;
    node.finish().await;
}

/// Design D18: values of environment variables, credentials and what execs say are in no
/// story, nor in the log.
#[tokio::test]
async fn no_secret_is_told() {
    const SECRET: &str = "hunter2-and-more";
    let mut list = crate::harness::cni::bridge();
    list["plugins"][0]["etcdPassword"] = SECRET.into();
    let node = Node::with(Server::Longshore).cni(list).start().await;
    let annotation = ("kubectl.kubernetes.io/last-applied-configuration", SECRET);
    let pod = node.pod("a").annotations([annotation]).run().await.expect("a pod");
    let auth = AuthConfig {
        username: "user".into(),
        password: SECRET.into(),
        registry_token: SECRET.into(),
        ..Default::default()
    };
    let image = longshore::proto::cri::ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    let request = PullImageRequest { image: Some(image), auth: Some(auth), sandbox_config: None };
    node.images().pull_image(request).await.expect("pulled");
    let container = pod.container("c").env("TOKEN", SECRET).forever().run().await.expect("it runs");
    assert_eq!(container.sh("echo $TOKEN").await.trim(), SECRET);
    of_method(&node, "ExecSync", 1).await;
    let everything =
        traced(&node, &["--json", "--all", "-n", "0"]) + &traced(&node, &["-v", "--all", "-n", "0"]);
    assert!(!everything.contains(SECRET), "{everything}");
    for told in ["\"TOKEN\"", "<masked>", "ADD bridge", "last-applied-configuration", "etcdPassword"] {
        assert!(everything.contains(told), "{told}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// Ten thousand calls, many of which fail, leave the record as large as it may be.
#[tokio::test]
async fn the_record_never_outgrows_its_bound() {
    let node = Node::with(Server::Longshore).config("[trace]\nbytes_max = 262144\n").start().await;
    let pod = node.pod("kept").run().await.expect("a pod");
    let socket = admin::socket(&node.longshore().folders().1);
    let figures = async || {
        let figures: Figures = admin::client::get(&socket, "/v1/trace/figures").await.expect("figures");
        assert!(figures.bytes <= figures.bytes_max && figures.bytes_max == 262_144, "{figures:?}");
        figures
    };
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..10 {
        let cri = node.cri().clone();
        workers.spawn(async move {
            for number in 0..1000 {
                match (worker + number) % 3 {
                    0 => drop(cri.version().await.expect("it answers")),
                    1 => drop(cri.pods().await.expect("a list")),
                    _ => drop(cri.pod_status("nothing", false).await.expect_err("there is none")),
                }
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.expect("no worker fails");
        figures().await;
    }
    wait_until("all calls to end", async || figures().await.running == 0).await;
    assert!(figures().await.dropped > 8000);
    // Calls that only look have not pushed out what changed something.
    assert_eq!(stories(&node, &["--method", "RunPodSandbox"])[0].about.pod_id, pod.id);
    node.remove_all().await;
    node.finish().await;
}
