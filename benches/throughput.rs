//! Log lines from one container, beside containerd's own plugin on the same containerd, in
//! turn: `cargo bench --bench throughput`.
//!
//! The container copies a file of numbered lines to its output. The time runs from
//! StartContainer until EXITED and until the log holds everything. Each log is read
//! afterwards: every line is there, once, in order. Processor time is that of the servers:
//! longshore with its keeper and containerd, and containerd with its plugin; not that of
//! the shim, which is the same for both.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[allow(dead_code)] // the other benches use the rest
mod output;

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use harness::{Beside, Cri, Node, Server};
use output::{MEGA, lines_of, processor_s};

/// Bytes of a line, and of all.
const CASES: [(usize, usize); 3] = [(100, 300 * MEGA), (20, 100 * MEGA), (8 << 10, 600 * MEGA)];
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return Ok(());
    }
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let beside = Beside::start(&node).await;
    println!("containerd {}; MB/s, processor seconds for a gigabyte", node.containerd_version());
    println!("{:24} {:>18} {:>18} {:>15}", "", "longshore", "built-in", "ratios");
    let file = node.place().path("lines");
    let (own, containerd) = (beside.longshore(), node.containerd().pid());
    // The keeper is there from then on.
    std::fs::write(&file, "a line\n")?;
    let warm_up = Bench { cri: beside.cri(), pids: Vec::new(), file: &file, lines: b"a line\n" };
    warm_up.run().await?;
    Bench { cri: node.cri(), ..warm_up }.run().await?;
    for (line_bytes, bytes) in CASES {
        let lines = lines_of(bytes, line_bytes);
        std::fs::write(&file, &lines)?;
        for _ in 0..ROUNDS {
            let pids = vec![own.pid(), own.keeper_pid(), containerd];
            let ours = Bench { cri: beside.cri(), pids, file: &file, lines: &lines }.run().await?;
            let pids = vec![containerd];
            let theirs = Bench { cri: node.cri(), pids, file: &file, lines: &lines }.run().await?;
            println!(
                "{:24} {:9.1} {:8.2} {:9.1} {:8.2} {:7.2} {:7.2}",
                format!("{} MB of {line_bytes}-byte lines", bytes / MEGA),
                ours.rate,
                ours.processor_s,
                theirs.rate,
                theirs.processor_s,
                ours.rate / theirs.rate,
                ours.processor_s / theirs.processor_s,
            );
        }
    }
    println!("all lines are in the logs, in order");
    drop(beside);
    Ok(())
}

/// A container's output on one server.
struct Bench<'a> {
    cri: &'a Cri,
    pids: Vec<u32>,
    file: &'a Path,
    lines: &'a [u8],
}

struct Figures {
    /// Megabytes a second.
    rate: f64,
    /// For a gigabyte.
    processor_s: f64,
}

impl Bench<'_> {
    async fn run(&self) -> anyhow::Result<Figures> {
        let pod = self.cri.pod("throughput").run().await?;
        let container = pod.container("c").command(["cat", "/lines"]).mount(self.file, "/lines");
        let container = container.create().await?;
        let (begun, before) = (Instant::now(), self.processor_s()?);
        container.start().await?;
        container.wait_exited().await;
        let taken = begun.elapsed().as_secs_f64();
        let processor_s = self.processor_s()? - before;
        check(&std::fs::read(container.log_path())?, self.lines)?;
        std::fs::remove_file(container.log_path())?;
        pod.stop().await?;
        pod.remove().await?;
        let megabytes = self.lines.len() as f64 / 1e6;
        Ok(Figures { rate: megabytes / taken, processor_s: processor_s * 1e3 / megabytes })
    }

    fn processor_s(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| processor_s(*pid)).sum()
    }
}

/// Whether the entries of a log are these lines.
fn check(log: &[u8], mut lines: &[u8]) -> anyhow::Result<()> {
    let tag = b" stdout F ";
    for (number, entry) in log.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let start = entry.windows(tag.len()).position(|part| part == tag);
        let content = &entry[start.map_or(0, |start| start + tag.len())..];
        ensure!(lines.starts_with(content), "entry {number} is out of order");
        lines = &lines[content.len()..];
    }
    ensure!(lines.is_empty(), "{} bytes are missing", lines.len());
    Ok(())
}
