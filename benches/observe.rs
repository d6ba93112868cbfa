//! What it costs to watch a node full of pods, beside containerd's own plugin on the same
//! containerd: `PODS=200 cargo bench --bench observe`.
//!
//! The pods run on one server, are watched, and are removed, then the same on the other, so
//! that what a server does for its pods by itself counts for it alone. Processor time is that
//! of the servers: longshore with its keeper and containerd, and containerd with its plugin;
//! not that of shims. Pairs are the two lists that the kubelet asks for together.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[allow(dead_code)] // the other benches use the rest
mod output;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::{Beside, Cri, Node, Server};
use tokio::task::JoinSet;

/// Pods, unless the environment says otherwise, and how many are made or removed at once.
const PODS: usize = 200;
const AT_A_TIME: usize = 8;
/// Pairs that are not counted, and those that are.
const WARM_UP: u32 = 2;
const RELISTS: u32 = 100;
const STATS: u32 = 15;
/// Between two pairs of stats: a rate needs some time.
const STATS_PAUSE: Duration = Duration::from_secs(2);
/// How long a server is left alone, before it is measured and while it is.
const SETTLE: Duration = Duration::from_secs(15);
/// Longer than the pause between two of the server's own looks at what there is.
const IDLE: Duration = Duration::from_secs(330);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return Ok(());
    }
    let pods = std::env::var("PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(PODS);
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let beside = Beside::start(&node).await;
    let containerd = node.containerd().pid();
    println!("containerd {}, {pods} pods of one container", node.containerd_version());

    fill(beside.cri(), pods).await?;
    let own = [beside.longshore().pid(), beside.longshore().keeper_pid()];
    let ours = watch(beside.cri(), &own, containerd, pods).await?;
    for (name, pid) in [("server", own[0]), ("keeper", own[1])] {
        println!("longshore, {name}: {}", Memory::of(pid)?);
    }
    beside.cri().remove_all().await;

    fill(node.cri(), pods).await?;
    let theirs = watch(node.cri(), &[], containerd, pods).await?;
    println!("built-in, containerd with its plugin: {}", Memory::of(containerd)?);
    node.remove_all().await;

    println!("{:34} {:>18} {:>18} {:>12}", "", "longshore", "built-in", "ratios");
    println!(
        "{:34} {:>9} {:>8} {:>9} {:>8}",
        "milliseconds of a pair", "processor", "time", "processor", "time"
    );
    for (name, ours, theirs) in [("relist", ours.relist, theirs.relist), ("stats", ours.stats, theirs.stats)]
    {
        println!(
            "{name:34} {:9.2} {:8.1} {:9.2} {:8.1} {:6.2} {:6.2}",
            ours.processor_ms,
            ours.elapsed_ms,
            theirs.processor_ms,
            theirs.elapsed_ms,
            ours.processor_ms / theirs.processor_ms,
            ours.elapsed_ms / theirs.elapsed_ms
        );
    }
    println!("{:34} {:9.3} {:8} {:9}", "% of a processor, idle, without", ours.idle_alone, "", "-");
    println!("{:34} {:9.3} {:8} {:9.3}", "the same with containerd", ours.idle, "", theirs.idle);
    drop(beside);
    node.finish().await;
    Ok(())
}

/// Runs pods, each with a container.
async fn fill(cri: &Cri, pods: usize) -> anyhow::Result<()> {
    cri.ensure_image(harness::images::BUSYBOX).await?;
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..AT_A_TIME {
        let cri = cri.clone();
        workers.spawn(async move {
            for number in (worker..pods).step_by(AT_A_TIME) {
                let pod = cri.pod(&format!("pod-{number}")).labels([("app", "bench")]).run().await?;
                pod.container("main").forever().run().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    println!("{pods} pods after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// What a pair of calls takes.
#[derive(Clone, Copy)]
struct Pair {
    processor_ms: f64,
    elapsed_ms: f64,
}

/// What was seen of a server.
struct Watched {
    relist: Pair,
    stats: Pair,
    /// Percent of a processor while nobody asks: with containerd, and without.
    idle: f64,
    idle_alone: f64,
}

async fn watch(cri: &Cri, own: &[u32], containerd: u32, pods: usize) -> anyhow::Result<Watched> {
    let all: Vec<u32> = own.iter().copied().chain([containerd]).collect();
    tokio::time::sleep(SETTLE).await;
    // Threads end in so long a time: they are in the sum of ticks alone.
    let sum = |pids: &[u32]| pids.iter().map(|pid| output::processor_s(*pid)).sum::<anyhow::Result<f64>>();
    let (begun, before, before_own) = (Instant::now(), sum(&all)?, sum(own)?);
    tokio::time::sleep(IDLE).await;
    let percent = |seconds: f64| seconds / begun.elapsed().as_secs_f64() * 100.0;
    let (idle, idle_alone) = (percent(sum(&all)? - before), percent(sum(own)? - before_own));

    let relist = async || {
        let listed = (cri.pods().await?.len(), cri.containers().await?.len());
        ensure!(listed == (pods, pods), "{listed:?} are listed");
        Ok(())
    };
    let stats = async || {
        let (of_pods, of_containers) =
            (cri.list_pod_stats(None).await?, cri.list_container_stats(None).await?);
        ensure!((of_pods.len(), of_containers.len()) == (pods, pods), "some have no figures");
        let whole = of_containers.iter().all(|stats| stats.cpu.is_some() && stats.memory.is_some());
        ensure!(whole, "a container has no figures");
        Ok(())
    };
    let relist = pair(&all, RELISTS, Duration::ZERO, relist).await?;
    let stats = pair(&all, STATS, STATS_PAUSE, stats).await?;
    Ok(Watched { relist, stats, idle, idle_alone })
}

/// The mean of so many calls of `ask`.
async fn pair(
    pids: &[u32],
    count: u32,
    pause: Duration,
    ask: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<Pair> {
    let (mut elapsed, mut processor) = (Duration::ZERO, 0);
    for round in 0..WARM_UP + count {
        let (begun, before) = (Instant::now(), processor_ns(pids)?);
        ask().await?;
        if round >= WARM_UP {
            elapsed += begun.elapsed();
            processor += processor_ns(pids)? - before;
        }
        tokio::time::sleep(pause).await;
    }
    let each = |ms: f64| ms / f64::from(count);
    Ok(Pair { processor_ms: each(processor as f64 / 1e6), elapsed_ms: each(elapsed.as_secs_f64() * 1e3) })
}

/// Processor time of processes so far, to the nanosecond; that of threads that have ended is
/// missing.
fn processor_ns(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end just now.
            let Ok(line) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let spent = line.split(' ').next().context("an empty schedstat")?;
            sum += spent.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Memory of a process, in KiB.
struct Memory {
    resident: u64,
    /// What it has to itself, and its share of what several have.
    proportional: u64,
    /// Not backed by a file.
    anonymous: u64,
}

impl Memory {
    fn of(pid: u32) -> anyhow::Result<Memory> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let of = |key: &str| -> anyhow::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).context("an odd smaps_rollup")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Memory { resident: of("Rss:")?, proportional: of("Pss:")?, anonymous: of("Anonymous:")? })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Memory { resident, proportional, anonymous } = self;
        write!(
            f,
            "{resident} KiB resident, {proportional} proportional, {anonymous} anonymous, with all pods"
        )
    }
}
