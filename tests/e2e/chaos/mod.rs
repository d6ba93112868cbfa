//! Every step of every call that changes something is cut off: by SIGKILL, by an error, by
//! errors from there on, so that what is to be undone fails, too. Then the server is there
//! again, and a kubelet does what a kubelet does: looks, stops, removes, tries again. The
//! retry works, the state is right, nothing is left over.
//!
//! The steps are the points of `longshore::points`, which a build with debug assertions
//! has. `LONGSHORE_TEST_CHAOS`: `all` tries each of them (`make chaos`); a number, as many
//! of each call and kind as that (1), chosen by `LONGSHORE_TEST_SEED`.

mod calls;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::AssertUnwindSafe;

use calls::Call;
use futures_util::FutureExt;

use crate::harness::{Node, Server, tail, wait_until};

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The process ends by SIGKILL.
    Kill,
    /// The step fails.
    Fail,
    /// The step fails, and all after it while the call runs: those of its undo, too.
    FailOn,
}

const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Fail, Fault::FailOn];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "kill",
            Fault::Fail => "fail",
            Fault::FailOn => "fail on",
        })
    }
}

/// Which points are tried.
#[derive(Clone, Copy)]
enum Choice {
    All,
    /// So many of each call and kind.
    Some(usize),
}

impl Choice {
    fn from_env() -> Choice {
        match std::env::var("LONGSHORE_TEST_CHAOS").as_deref() {
            Ok("all") => Choice::All,
            Ok(text) => Choice::Some(text.parse().expect("LONGSHORE_TEST_CHAOS is `all` or a number")),
            Err(_) => Choice::Some(1),
        }
    }

    /// Points of those up to `last`.
    fn of(self, last: u32, seed: &mut u64) -> BTreeSet<u32> {
        match self {
            Choice::All => (1..=last).collect(),
            Choice::Some(number) => (0..number).map(|_| 1 + below(seed, u64::from(last)) as u32).collect(),
        }
    }
}

/// Knuth's generator; its high bits are the good ones.
fn below(seed: &mut u64, end: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % end
}

fn seed() -> u64 {
    let given = std::env::var("LONGSHORE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("randomness");
        u64::from(u32::from_ne_bytes(bytes))
    })
}

/// Tries the points of `call`, and prints a line for it.
async fn sweep(call: Call) {
    let (choice, seed) = (Choice::from_env(), seed());
    let mut chance = seed;
    let mut node = start(call).await;
    let points = count(&node, call).await;
    assert!(points.len() > 1, "{call:?} has no points to speak of: {points:?}");
    let mut failures = Vec::new();
    let mut tried = Vec::new();
    for fault in FAULTS {
        let chosen = choice.of(points.len() as u32, &mut chance);
        for number in &chosen {
            let tried = AssertUnwindSafe(try_point(&node, call, fault, *number)).catch_unwind().await;
            if let Err(panic) = tried {
                // Those of this run: what is done at the same time comes in any order.
                let passed = std::fs::read_to_string(node.place().path("points.log")).unwrap_or_default();
                let step = passed.lines().nth(*number as usize - 1).unwrap_or("a point that was not reached");
                let why = panic.downcast_ref::<String>().map_or("see above", String::as_str);
                failures.push(format!("{call:?}, {fault} at {step}: {why}"));
                eprintln!("---- {call:?}, {fault} at {step}; the end of longshore's log");
                eprintln!("{}", tail(&node.longshore().log(), 60));
                // Nobody knows what it is like by now.
                drop(node);
                node = start(call).await;
            }
        }
        tried.push(format!("{fault} {}", chosen.len()));
    }
    let outcome = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("chaos {:28} {:3} points; {}; {outcome}", format!("{call:?}"), points.len(), tried.join(", "));
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    node.finish().await;
}

async fn start(call: Call) -> Node {
    let node = Node::with(Server::Longshore).start().await;
    call.provide(&node).await;
    node
}

/// The points of a call that goes well.
async fn count(node: &Node, call: Call) -> Vec<String> {
    let scene = call.prepare(node).await;
    order(node, "fail 0 0");
    call.act(node, &scene).await.expect("nothing is in its way");
    let points = withdraw(node);
    call.recover(node, scene).await;
    clean_up(node).await;
    points
}

async fn try_point(node: &Node, call: Call, fault: Fault, number: u32) {
    let scene = call.prepare(node).await;
    order(
        node,
        &match fault {
            Fault::Kill => format!("kill {number} {number}"),
            Fault::Fail => format!("fail {number} {number}"),
            Fault::FailOn => format!("fail {number} {}", u32::MAX),
        },
    );
    let done = call.act(node, &scene).await;
    withdraw(node);
    match fault {
        // In this run it may have had fewer points, as when nothing had to be waited for.
        Fault::Kill if node.version().await.is_err() => {
            wait_until("the end of the server", async || !node.longshore().is_alive()).await;
            node.longshore().kill().await;
            node.longshore().start().await;
        }
        Fault::Kill => done.expect("nothing was in its way"),
        // What could not be undone and is not listed goes with the next start.
        Fault::FailOn => {
            node.longshore().kill().await;
            node.longshore().start().await;
        }
        Fault::Fail => {}
    }
    call.recover(node, scene).await;
    clean_up(node).await;
}

/// Says what shall happen at which points from now on.
fn order(node: &Node, text: &str) {
    let file = node.place().path("points");
    let _ = std::fs::remove_file(file.with_extension("log"));
    // In place at once: half an order would be none.
    std::fs::write(file.with_extension("new"), text).expect("a file");
    std::fs::rename(file.with_extension("new"), &file).expect("a file");
}

/// Takes the order back, and gives the points that were passed.
fn withdraw(node: &Node) -> Vec<String> {
    std::fs::remove_file(node.place().path("points")).expect("it was there");
    let log = std::fs::read_to_string(node.place().path("points.log")).expect("a call has points");
    log.lines().map(str::to_owned).collect()
}

/// As the kubelet removes a node's pods; nothing may be left of them.
async fn clean_up(node: &Node) {
    node.remove_all().await;
    assert_eq!(node.containers().await.expect("containers"), []);
    node.assert_nothing_left("of a call that was cut off").await;
}

/// A creation whose last step fails, and with it all of its undo that needs containerd; says
/// what is left then.
async fn abandoned(node: &Node) -> Vec<String> {
    let call = Call::CreateContainer;
    // Of the first one on a node more is to be done.
    count(node, call).await;
    let points = count(node, call).await;
    let scene = call.prepare(node).await;
    order(node, &format!("fail {} {}", points.len(), u32::MAX));
    call.act(node, &scene).await.expect_err("its last step fails");
    withdraw(node);
    assert_eq!(node.containers().await.expect("containers"), []);
    left_of_containers(node).await
}

async fn left_of_containers(node: &Node) -> Vec<String> {
    let pod = node.pods().await.expect("pods").remove(0).id;
    let mut left = node.leftovers().await;
    left.retain(|it| (it.starts_with("container ") || it.starts_with("snapshot ")) && !it.contains(&pod));
    left
}

/// What could not be undone of a container goes when containerd comes back: it is no pod's to
/// be removed with.
#[tokio::test]
async fn a_failed_creation_is_undone_when_containerd_comes_back() {
    let node = start(Call::CreateContainer).await;
    assert_ne!(abandoned(&node).await, Vec::<String>::new());
    node.containerd().kill().await;
    node.containerd().start().await;
    wait_until("the end of what was left", async || left_of_containers(&node).await.is_empty()).await;
    clean_up(&node).await;
    node.finish().await;
}

/// Nor is it there again after the next start.
#[tokio::test]
async fn a_failed_creation_does_not_come_back_with_the_server() {
    let node = start(Call::CreateContainer).await;
    assert_ne!(abandoned(&node).await, Vec::<String>::new());
    node.longshore().kill().await;
    node.longshore().start().await;
    wait_until("the end of what was left", async || left_of_containers(&node).await.is_empty()).await;
    assert_eq!(node.containers().await.expect("containers"), []);
    clean_up(&node).await;
    node.finish().await;
}

macro_rules! sweeps {
    ($($name:ident: $call:ident,)+) => {
        $(
            /// REC-15, REC-16, SBX-04, SBX-05.
            #[tokio::test]
            async fn $name() {
                sweep(Call::$call).await;
            }
        )+
    };
}

sweeps! {
    run_pod_sandbox: RunPodSandbox,
    create_container: CreateContainer,
    start_container: StartContainer,
    stop_container: StopContainer,
    remove_container: RemoveContainer,
    stop_pod_sandbox: StopPodSandbox,
    remove_pod_sandbox: RemovePodSandbox,
    pull_image: PullImage,
    remove_image: RemoveImage,
    exec_sync: ExecSync,
    update_container_resources: UpdateContainerResources,
}
