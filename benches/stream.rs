//! exec and port-forward beside containerd's own plugin on the same containerd, in turn:
//! `cargo bench --bench stream`.
//!
//! | what | from | until |
//! |---|---|---|
//! | a round trip | the call of Exec, for `true` | the client has the exit status |
//! | `cat` | the call of Exec | a gigabyte has gone in and come out |
//! | a port | the call of PortForward | a gigabyte has gone to a server in the pod and back |
//! | 200 at once | the calls of Exec, for `true` | all have their exit status |
//!
//! The client speaks SPDY/3.1 and is the same for both; all data is compared with what was
//! sent. Processor time is that of the servers: longshore with its keeper and containerd,
//! and containerd with its plugin. All run on the machine that the client runs on, too.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[allow(dead_code)] // the other benches use the rest
mod output;
mod traffic;

use std::time::{Duration, Instant};

use harness::{Beside, Container, Cri, Node, Pod, Server};
use tokio::task::JoinSet;

/// Round trips of each server, and those before that are not counted.
const TRIPS: usize = 40;
const WARM_UP: usize = 5;
/// Transfers of each server.
const ROUNDS: usize = 3;
/// A gigabyte, in MiB.
const BLOCKS: u64 = 1000;
/// Commands at once.
const AT_ONCE: usize = 200;

/// A server, with a container and a pod of its own.
struct Side {
    name: &'static str,
    pod: Pod,
    container: Container,
    /// Its processes.
    pids: Vec<u32>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return Ok(());
    }
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let beside = Beside::start(&node).await;
    println!("containerd {}", node.containerd_version());
    let mut sides = [Side::start("longshore", beside.cri()).await?, Side::start("built-in", &node).await?];
    let containerd = node.containerd().pid();
    sides[0].pids = vec![beside.longshore().pid(), beside.longshore().keeper_pid(), containerd];
    sides[1].pids = vec![containerd];

    round_trips(&sides).await?;
    at_once(&sides).await;
    transfers("cat", &sides, async |side| traffic::cat(&side.container, BLOCKS).await).await?;
    transfers("a port", &sides, async |side| traffic::forward(&side.pod, BLOCKS).await).await?;
    for side in &sides {
        side.pod.stop().await?;
        side.pod.remove().await?;
    }
    drop(beside);
    Ok(())
}

impl Side {
    async fn start(name: &'static str, cri: &Cri) -> anyhow::Result<Side> {
        let pod = cri.pod("stream").run().await?;
        let container = pod.container("c").forever().run().await?;
        traffic::echo(&pod).await?;
        Ok(Side { name, pod, container, pids: Vec::new() })
    }

    /// Processor time of its processes so far.
    fn processor_s(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| output::processor_s(*pid)).sum()
    }
}

async fn round_trips(sides: &[Side; 2]) -> anyhow::Result<()> {
    let mut times = [const { Vec::new() }; 2];
    for round in 0..WARM_UP + TRIPS {
        // Who goes first changes, too.
        for place in 0..2 {
            let which = (round + place) % 2;
            let begun = Instant::now();
            traffic::exec(&sides[which].container, &["true"]).await?;
            if round >= WARM_UP {
                times[which].push(begun.elapsed());
            }
        }
    }
    let [ours, theirs] = times.map(|mut times: Vec<Duration>| {
        times.sort();
        [50, 95].map(|share| times[times.len() * share / 100].as_secs_f64() * 1e3)
    });
    println!("{:24} {:>18} {:>18} {:>7}", "", sides[0].name, sides[1].name, "ratio");
    let [a, b, c, d] = [ours[0], ours[1], theirs[0], theirs[1]];
    println!("{:24} {a:9.1} {b:8.1} {c:9.1} {d:8.1} {:7.2}", "a round trip, ms", a / c);
    Ok(())
}

/// Many commands at the same time.
async fn at_once(sides: &[Side; 2]) {
    let mut taken = [(0.0, 0); 2];
    for (side, (seconds, failed)) in sides.iter().zip(&mut taken) {
        let begun = Instant::now();
        let mut all = JoinSet::new();
        for _ in 0..AT_ONCE {
            let container = side.container.clone();
            all.spawn(async move { traffic::exec(&container, &["true"]).await });
        }
        for ended in all.join_all().await {
            if let Err(error) = ended {
                eprintln!("{}: {error:#}", side.name);
                *failed += 1;
            }
        }
        *seconds = begun.elapsed().as_secs_f64();
    }
    let [ours, theirs] = taken;
    println!(
        "{:24} {:>9.2} {:>2} fail {:>9.2} {:>2} fail {:7.2}",
        format!("{AT_ONCE} at once, s"),
        ours.0,
        ours.1,
        theirs.0,
        theirs.1,
        ours.0 / theirs.0
    );
}

/// A gigabyte there and back, in turn.
async fn transfers(
    name: &str,
    sides: &[Side; 2],
    transfer: impl AsyncFn(&Side) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        let mut figures = [(0.0, 0.0); 2];
        for (side, (rate, processor_s)) in sides.iter().zip(&mut figures) {
            let (begun, before) = (Instant::now(), side.processor_s()?);
            transfer(side).await?;
            let gigabytes = BLOCKS as f64 * 1.048_576e-3;
            *rate = gigabytes * 1e3 / begun.elapsed().as_secs_f64();
            *processor_s = (side.processor_s()? - before) / gigabytes;
        }
        let [ours, theirs] = figures;
        println!(
            "{:24} {:9.1} {:8.2} {:9.1} {:8.2} {:7.2} {:7.2}",
            format!("{name}, MB/s and s/GB"),
            ours.0,
            ours.1,
            theirs.0,
            theirs.1,
            ours.0 / theirs.0,
            ours.1 / theirs.1
        );
    }
    Ok(())
}
