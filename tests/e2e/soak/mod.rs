//! Hours of a node in a minute or an hour: what kubelets do, at random, on many pods, while
//! everything around the server fails at random, too. Nothing is lost, nothing wrong is
//! told, nothing is left, and the server does not grow.
//!
//! ```text
//! worker 0 … n   each is a kubelet for some pods of its own: it wants them, does one thing
//!                after another to them, and after an error looks and tries again (work.rs)
//! fault          kills or stops something that all pods share (faults.rs); what belongs to
//!                one pod (shim, pause, process, task) is killed by the pod's worker (harm.rs)
//! audit          compares, while nobody works, what the server says with what the workers
//!                know, containerd, the kernel and CNI (audit.rs)
//! figures        counts, and measures memory and descriptors (figures.rs)
//! ```
//! All of it goes in rounds: in each the workers begin together, do some steps, and mostly a
//! fault meets them. What is done, what fails and how long after the beginning of the round
//! follows from the seed alone, and takes nothing from states or times: what two runs of one
//! seed do differently is at most what happens within a round, which is a few seconds. Until
//! half of the time is over server and keeper are killed, too; then they live to the end, so
//! that what a life loses adds up to something that is seen.
//!
//! That it can fail, and fails again by the same seed, is tried with a fault that nobody
//! repairs (planted.rs).
//!
//! `LONGSHORE_SOAK_SECONDS` says how long (20), `LONGSHORE_SOAK_PODS` how many pods at most
//! (6), `LONGSHORE_SOAK_SEED` what chance begins with, `LONGSHORE_SOAK_ROUND` a round that comes
//! again and again, and `LONGSHORE_SOAK_LOGS` a folder for the logs. `make soak` is an hour
//! with 99 pods.

mod audit;
mod faults;
mod figures;
mod harm;
mod model;
mod planted;
mod steps;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faults::Faults;
use figures::{Figures, Op};
use futures_util::FutureExt;
use futures_util::future::join_all;
use longshore::proto::cri::ContainerEventType;
use tokio::task::{JoinSet, LocalSet};
use tonic::Status;
use work::Worker;

use crate::harness::images::{BUSYBOX, Image};
use crate::harness::{Builder, Node, Server, cni, has_crun, wait_until};

/// How often a worker tries again what failed while something was disturbed.
const RETRY: Duration = Duration::from_millis(300);
/// Seconds between two comparisons of the server: the end waits for two of them.
const COMPARE_S: u32 = 10;
/// Pods of one worker, about.
const PODS_OF_WORKER: u64 = 9;
/// Rounds from one comparison to the next.
const ROUNDS_OF_AUDIT: u64 = 2;
/// Rounds from here on, those after the half of the time, spare server and keeper.
const SPARING_FROM: u64 = 1_000_000;
/// Images that each worker pulls and removes.
const IMAGES: u64 = 3;

/// What is to be done.
#[derive(Clone)]
struct Plan {
    seed: u64,
    length: Duration,
    workers: u64,
    /// Pods of each worker.
    slots: u64,
    /// The round that all rounds are.
    only_round: Option<u64>,
    /// The uid of a pod whose address CNI does not free, though it says so.
    kept_address: Option<String>,
}

impl Plan {
    fn from_env() -> Plan {
        let number = |variable: &str| {
            let text = std::env::var(variable).ok().filter(|text| !text.is_empty());
            text.map(|text| {
                text.parse::<u64>().unwrap_or_else(|_| panic!("{variable}={text:?} is no number"))
            })
        };
        let pods = number("LONGSHORE_SOAK_PODS").unwrap_or(6);
        let workers = pods.div_ceil(PODS_OF_WORKER).max(2);
        let mut random = [0; 4];
        getrandom::fill(&mut random).expect("randomness");
        Plan {
            seed: number("LONGSHORE_SOAK_SEED").unwrap_or_else(|| u32::from_ne_bytes(random).into()),
            length: Duration::from_secs(number("LONGSHORE_SOAK_SECONDS").unwrap_or(20)),
            workers,
            slots: pods.div_ceil(workers),
            only_round: number("LONGSHORE_SOAK_ROUND"),
            kept_address: None,
        }
    }

    /// The command that repeats it.
    fn command(&self) -> String {
        let round = self.only_round.map(|round| format!("LONGSHORE_SOAK_ROUND={round} "));
        format!(
            "{}LONGSHORE_SOAK_SEED={} LONGSHORE_SOAK_SECONDS={} LONGSHORE_SOAK_PODS={} make soak",
            round.unwrap_or_default(),
            self.seed,
            self.length.as_secs(),
            self.workers * self.slots
        )
    }
}

/// What all have in common.
struct Stage {
    node: Node,
    plan: Plan,
    has_crun: bool,
    /// What the server may be doing when it is to die there, by name.
    steps: BTreeSet<String>,
    begun: Instant,
    faults: Faults,
    figures: Figures,
    /// The last event of each pod and container, in this life of the server.
    told: std::sync::Mutex<BTreeMap<String, ContainerEventType>>,
    /// The uid of each pod that there was, by its id.
    uids: std::sync::Mutex<BTreeMap<String, String>>,
    /// The round that is under way, or was the last.
    round: AtomicU64,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.plan.length
    }

    /// Makes a call and counts it. Nothing if it failed while it might: where something was
    /// disturbed that it needs.
    async fn call<T>(&self, op: Op, what: &str, call: impl Future<Output = Result<T, Status>>) -> Option<T> {
        let before = self.faults.mark();
        match call.await {
            Ok(answer) => {
                self.figures.done(op);
                Some(answer)
            }
            Err(error) if self.faults.excuse(op, &before, &error) => {
                self.figures.excused(op, error.code());
                tokio::time::sleep(RETRY).await;
                None
            }
            Err(error) => panic!("{op:?} of {what}, undisturbed or not: {error:?}"),
        }
    }

    /// Makes a call again and again, for as long as it may fail.
    async fn done<T>(&self, op: Op, what: &str, mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
        loop {
            if let Some(answer) = self.call(op, what, call()).await {
                return answer;
            }
        }
    }
}

/// The node: a CNI plugin that can be told to fail, and another OCI runtime where there is one.
fn builder<'a>(has_crun: bool) -> Builder<'a> {
    let mut builder = Node::with(Server::Longshore).cni(cni::usual()).plugin("bridge", faults::BRIDGE);
    if std::env::var_os("LONGSHORE_TEST_LOG").is_none() {
        builder = builder.config("[log]\nlevel = \"info\"\n");
    }
    builder = builder.config(&format!("[server]\nreconcile_period_s = {COMPARE_S}\n"));
    if has_crun {
        builder = builder.crun();
    }
    builder
}

/// A pod with a container has lived: what is made once is there by then. Gives the steps that
/// the server has had for it.
async fn warm_up(node: &Node) -> BTreeSet<String> {
    let points = node.place().path("points");
    std::fs::write(&points, "fail 0 0").expect("a file");
    let pod = node.pod("first").run().await.expect("a pod");
    let container = pod.container("c").forever().image_volume(BUSYBOX, "/image").run().await;
    assert_eq!(container.expect("a container").sh("echo inside").await, "inside");
    node.remove_all().await;
    node.assert_nothing_left("before anything").await;
    std::fs::remove_file(&points).expect("it was there");
    faults::steps_of(&std::fs::read_to_string(points.with_extension("log")).expect("steps"))
}

/// CTR, SBX, REC, EVT, LOG: all of it at once.
#[tokio::test]
async fn random_work_with_random_faults() {
    let plan = Plan::from_env();
    if let Err(why) = soak(plan.clone()).await {
        panic!("seed {}, {why}\nagain: {}", plan.seed, plan.command());
    }
}

/// What is wrong is found, told of the pod that it is about, and found again by the same seed.
#[tokio::test]
async fn a_seed_that_fails_fails_again() {
    let plan = planted::plan();
    let uid = plan.kept_address.clone().expect("a pod whose address is kept");
    let (first, second) = tokio::join!(soak(plan.clone()), soak(plan.clone()));
    for why in [first, second] {
        let why = why.expect_err("an address is left");
        assert!(why.contains(&format!("addresses: {uid} ")) && why.contains("should not be there"), "{why}");
    }
}

/// Follows a plan.
///
/// # Errors
/// What was wrong before the end of its time. What is left after it is a panic.
async fn soak(plan: Plan) -> Result<(), String> {
    println!("seed {}: {} workers with {} pods each", plan.seed, plan.workers, plan.slots);
    let has_crun = has_crun();
    let node = builder(has_crun).start().await;
    node.ensure_image(BUSYBOX).await.expect("an image");
    for worker in 0..plan.workers {
        for number in 0..IMAGES {
            let image = Image::empty().file("base", b"the same").file("own", worker.to_string().as_bytes());
            let image = image.file("more", format!("{worker} {number}").as_bytes());
            node.registry().push(&format!("soak-{worker}-{number}:1"), &image);
        }
    }
    let steps = warm_up(&node).await;
    let before = audit::Kept::of(&node).await;
    if let Some(uid) = &plan.kept_address {
        std::fs::write(node.place().path("cni-keeps"), uid).expect("a file");
    }

    let stage = Arc::new(Stage {
        node,
        plan,
        has_crun,
        steps,
        begun: Instant::now(),
        faults: Faults::default(),
        figures: Figures::default(),
        told: std::sync::Mutex::default(),
        uids: std::sync::Mutex::default(),
        round: AtomicU64::new(0),
    });
    let mut workers: Vec<_> = (0..stage.plan.workers).map(|number| Worker::new(number, &stage)).collect();
    let ended = LocalSet::new().run_until(run(&stage, &mut workers)).await;
    keep_logs(&stage);
    if let Err(why) = ended {
        println!("{}", stage.figures.table());
        return Err(format!("round {}: {why}", stage.round.load(Ordering::Relaxed)));
    }
    drop(workers);
    let stage = Arc::into_inner(stage).expect("nobody works any more");
    finish(stage, before).await;
    Ok(())
}

/// All at the same time, until the time is over or something is wrong.
async fn run(stage: &Arc<Stage>, workers: &mut [Worker]) -> Result<(), String> {
    let mut beside = JoinSet::new();
    beside.spawn_local(figures::sample(stage.clone()));
    beside.spawn_local(audit::watch_events(stage.clone()));
    let work = async {
        rounds(stage, workers).await;
        remove_all(stage).await;
    };
    let ended = tokio::select! {
        done = AssertUnwindSafe(work).catch_unwind() => done,
        Some(ended) = beside.join_next() => Err(ended.expect_err("it goes on by itself").into_panic()),
    };
    beside.shutdown().await;
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

/// Work and faults in each, and a comparison now and then and at the end.
async fn rounds(stage: &Stage, workers: &mut [Worker]) {
    for number in 0.. {
        if stage.is_over() {
            break;
        }
        let spares = stage.begun.elapsed() * 2 > stage.plan.length;
        let round = stage.plan.only_round.unwrap_or(number + if spares { SPARING_FROM } else { 0 });
        stage.round.store(round, Ordering::Relaxed);
        let work = join_all(workers.iter_mut().map(|worker| worker.round(round)));
        tokio::join!(Box::pin(work), Box::pin(faults::of_round(stage, round)));
        stage.figures.note("rounds");
        if number % ROUNDS_OF_AUDIT == ROUNDS_OF_AUDIT - 1 {
            audit::run(stage, workers).await;
        }
    }
    audit::run(stage, workers).await;
}

async fn remove_all(stage: &Stage) {
    stage.node.remove_all().await;
    // A pod that never had a network goes also where CNI's DEL fails: what that left is
    // removed by the comparisons.
    wait_until("an end of what comparisons remove", async || {
        let left = stage.node.leftovers().await;
        !left.iter().any(|it| it.starts_with("CNI cache") || it.starts_with("address"))
    })
    .await;
    audit::assert_told_to_the_end(stage).await;
}

fn keep_logs(stage: &Stage) {
    let Some(folder) = std::env::var_os("LONGSHORE_SOAK_LOGS") else { return };
    let _ = std::fs::create_dir_all(&folder);
    for (name, log) in
        [("longshore.log", stage.node.longshore().log()), ("containerd.log", stage.node.containerd().log())]
    {
        let _ = std::fs::write(std::path::Path::new(&folder).join(name), log);
    }
}

/// Everything is removed; nothing is left.
async fn finish(stage: Stage, before: audit::Kept) {
    let Stage { node, figures, plan, .. } = stage;
    let report = async {
        node.assert_nothing_left("with all pods removed").await;
        before.assert_same(&node).await;
        node.finish().await;
    };
    println!("{}", figures.table());
    println!("seed {}; again: {}", plan.seed, plan.command());
    report.await;
}
