//! What the recorder of calls costs: two servers, one with it and one without, in turn.
//!
//! Each round runs a pod with a container up and down on either, and asks either for lists,
//! so that both see the same machine. The table gives the median time of a start and of a
//! list, and what the server itself took of the processor for each: the difference of the
//! latter is the cost, since a start's time is mostly that of others, and varies by more.
//!
//! `ROUNDS=100 cargo bench --bench trace` for more rounds than the usual 40.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use harness::{Node, Server};

/// Rounds that are not counted.
const WARM_UP: usize = 3;
/// Lists in a round.
const LISTS: u32 = 200;

/// What one server took.
#[derive(Default)]
struct Taken {
    starts: Vec<Duration>,
    lists: Vec<Duration>,
    start_cpu: Duration,
    list_cpu: Duration,
}

#[tokio::main]
async fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    // `cargo bench` passes its own flags, `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return;
    }
    let off = Node::with(Server::Longshore).config("[log]\nlevel = \"info\"\n[trace]\nenabled = false\n");
    let on = Node::with(Server::Longshore).config("[log]\nlevel = \"info\"\n");
    let nodes = [off.start().await, on.start().await];
    for node in &nodes {
        node.ensure_image(harness::images::BUSYBOX).await.expect("the image is pulled");
    }
    let mut taken = [Taken::default(), Taken::default()];
    for round in 0..WARM_UP + rounds {
        // Who goes first changes, too.
        for place in 0..2 {
            let which = (round + place) % 2;
            let one = life(&nodes[which]).await;
            if round >= WARM_UP {
                taken[which].add(one);
            }
        }
    }
    println!("containerd {}, {rounds} rounds", nodes[0].containerd_version());
    println!("{:28} {:>12} {:>12} {:>10}", "", "off", "on", "cost");
    let line = |name: &str, of: &dyn Fn(&Taken) -> f64, unit: &str| {
        let [off, on] = [0, 1].map(|which| of(&taken[which]));
        println!("{name:28} {off:9.2} {unit} {on:9.2} {unit} {:7.2} {unit}", on - off);
    };
    let count = rounds as f64;
    line("pod and container up, median", &|it| median(&it.starts) * 1e3, "ms");
    line("  processor of the server", &|it| it.start_cpu.as_secs_f64() * 1e3 / count, "ms");
    line("a list of pods, median", &|it| median(&it.lists) * 1e6, "µs");
    line("  processor of the server", &|it| it.list_cpu.as_secs_f64() * 1e6 / count / f64::from(LISTS), "µs");
    let start = median(&taken[0].starts);
    let cost = (taken[1].start_cpu.as_secs_f64() - taken[0].start_cpu.as_secs_f64()) / count;
    println!("share of a start: {:.2} %", cost / start * 100.0);
    for (name, node) in ["off", "on"].iter().zip(&nodes) {
        println!("memory of the server, {name}: {} KiB", node.rss_kib());
    }
}

impl Taken {
    fn add(&mut self, one: Taken) {
        self.starts.extend(one.starts);
        self.lists.extend(one.lists);
        self.start_cpu += one.start_cpu;
        self.list_cpu += one.list_cpu;
    }
}

/// One pod up, lists, and the pod down.
async fn life(node: &Node) -> Taken {
    let mut taken = Taken::default();
    let (before, begun) = (cpu(node), Instant::now());
    let pod = node.pod("bench").run().await.expect("a pod");
    let container = pod.container("busybox").command(["sleep", "1000"]).create().await.expect("created");
    container.start().await.expect("started");
    taken.starts.push(begun.elapsed());
    taken.start_cpu = cpu(node).saturating_sub(before);
    let before = cpu(node);
    for _ in 0..LISTS {
        let begun = Instant::now();
        node.pods().await.expect("a list");
        taken.lists.push(begun.elapsed());
    }
    taken.list_cpu = cpu(node).saturating_sub(before);
    node.remove_all().await;
    taken
}

/// What the server has taken of the processor, all its threads together, to the nanosecond.
fn cpu(node: &Node) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.longshore().pid())).expect("it runs");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn median(times: &[Duration]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
