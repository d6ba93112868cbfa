//! Every lifecycle call beside containerd's own plugin, on the same containerd, in turn.
//!
//! One private containerd has its CRI plugin enabled; longshore uses another namespace of
//! it. Each round runs one pod with one container through its whole life on one server,
//! then on the other, so that both see the same machine. The table gives milliseconds and
//! the ratio of the medians. Then a hundred pods on either, ten at a time, and what the servers
//! have taken of memory and CPU.
//!
//! `ROUNDS=50 cargo bench --bench lifecycle` for more rounds than the usual 30.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use harness::{Beside, Cri, Node, Server};
use tonic::Status;

/// The calls, in the order of a pod's life.
const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];
/// Rounds that are not counted.
const WARM_UP: usize = 3;
/// Pods at a time, and how many there are of them.
const PARALLEL: usize = 10;
const PARALLEL_PODS: usize = 100;

#[tokio::main]
async fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    // `cargo bench` passes its own flags, `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return;
    }
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let beside = Beside::start(&node).await;
    println!("containerd {}, {rounds} rounds, milliseconds", node.containerd_version());
    let servers = [("longshore", beside.cri().clone()), ("built-in", (*node).clone())];
    for (_, cri) in &servers {
        cri.ensure_image(harness::images::BUSYBOX).await.expect("the image is pulled");
    }

    let mut times = [const { Vec::new() }; 2];
    for round in 0..WARM_UP + rounds {
        // Who goes first changes, too.
        for place in 0..2 {
            let which = (round + place) % 2;
            let taken = one_life(&servers[which].1).await.expect("a pod's life");
            if round >= WARM_UP {
                times[which].push(taken);
            }
        }
    }
    print_table(&times);
    for (name, cri) in &servers {
        let begun = Instant::now();
        let mut lives = tokio::task::JoinSet::new();
        for pods in 0..PARALLEL {
            let cri = cri.clone();
            lives.spawn(async move {
                for _ in 0..PARALLEL_PODS / PARALLEL {
                    one_life(&cri).await.unwrap_or_else(|error| panic!("a pod of worker {pods}: {error}"));
                }
            });
        }
        while let Some(done) = lives.join_next().await {
            done.expect("no worker fails");
        }
        let rate = f64::from(u16::try_from(PARALLEL_PODS).unwrap_or(0)) / begun.elapsed().as_secs_f64();
        println!("{name:10} {PARALLEL} at a time: {rate:.1} pods a second, up and down");
    }
    println!(
        "longshore  memory: server {} KiB (peak {}), keeper {} KiB",
        beside.rss_kib(),
        beside.peak_rss_kib(),
        beside.keeper_rss_kib()
    );
    println!("built-in   memory: containerd with its plugin {} KiB", node.rss_kib());
}

/// Runs one pod through its life and gives the time of each call.
async fn one_life(cri: &Cri) -> Result<[Duration; 8], Status> {
    let mut taken = [Duration::ZERO; 8];
    let mut clock = Instant::now();
    let mut lap = |call: usize| {
        taken[call] = clock.elapsed();
        clock = Instant::now();
    };
    let pod = cri.pod("bench").run().await?;
    lap(0);
    let container = pod.container("busybox").command(["sleep", "1000"]).create().await?;
    lap(1);
    container.start().await?;
    lap(2);
    container.exec(["true"]).await?;
    lap(3);
    container.stop(0).await?;
    lap(4);
    container.remove().await?;
    lap(5);
    pod.stop().await?;
    lap(6);
    pod.remove().await?;
    lap(7);
    Ok(taken)
}

fn print_table(times: &[Vec<[Duration; 8]>; 2]) {
    println!("{:18} {:>18} {:>18} {:>7}", "", "longshore", "built-in", "ratio");
    println!("{:18} {:>9} {:>8} {:>9} {:>8}", "call", "median", "p95", "median", "p95");
    let line = |name: &str, of: &dyn Fn(&[Duration; 8]) -> Duration| {
        let [ours, theirs] = [0, 1].map(|which| {
            let mut all: Vec<f64> = times[which].iter().map(|taken| of(taken).as_secs_f64() * 1e3).collect();
            all.sort_by(f64::total_cmp);
            let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
            (at(50), at(95))
        });
        println!(
            "{name:18} {:9.1} {:8.1} {:9.1} {:8.1} {:7.2}",
            ours.0,
            ours.1,
            theirs.0,
            theirs.1,
            ours.0 / theirs.0
        );
    };
    for (index, name) in CALLS.iter().enumerate() {
        line(name, &|taken| taken[index]);
    }
    line("pod up", &|taken| taken[..3].iter().sum());
    line("pod down", &|taken| taken[4..].iter().sum());
}
