//! 300 MB of 100-byte log lines from one container, beside containerd's own plugin on the
//! same containerd, in turn: `cargo bench --bench throughput`.
//!
//! The container copies a file of numbered lines to its output. The time runs from
//! StartContainer until EXITED and until the log holds everything. Each log is read
//! afterwards: every line is there, once, in order.

#[allow(dead_code, unused_imports)] // made for the tests, which use all of it
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[allow(dead_code)] // the other benches use the rest
mod output;

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use harness::{Beside, Cri, Node, Server};
use output::{MEGA, numbered_lines};

const BYTES: usize = 300 * MEGA;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo test` tries benches as tests.
    if std::env::args().any(|flag| flag == "--test") {
        return Ok(());
    }
    let node = Node::with(Server::BuiltIn).cni(harness::cni::usual()).start().await;
    let beside = Beside::start(&node).await;
    let lines = numbered_lines(BYTES);
    let file = node.place().path("lines");
    std::fs::write(&file, &lines)?;
    println!("containerd {}, {} MB, MB/s", node.containerd_version(), BYTES / MEGA);
    println!("{:>10} {:>10} {:>7}", "longshore", "built-in", "ratio");
    for _ in 0..ROUNDS {
        let ours = one_container(beside.cri(), &file, &lines).await?;
        let theirs = one_container(node.cri(), &file, &lines).await?;
        println!("{ours:10.1} {theirs:10.1} {:7.2}", ours / theirs);
    }
    println!("all lines are in the logs, in order");
    drop(beside);
    Ok(())
}

/// Megabytes of output a second.
async fn one_container(cri: &Cri, file: &Path, lines: &[u8]) -> anyhow::Result<f64> {
    let pod = cri.pod("throughput").run().await?;
    let container = pod.container("c").command(["cat", "/lines"]).mount(file, "/lines").create().await?;
    let begun = Instant::now();
    container.start().await?;
    container.wait_exited().await;
    let taken = begun.elapsed().as_secs_f64();
    let log = std::fs::read(container.log_path())?;
    check(&log, lines)?;
    std::fs::remove_file(container.log_path())?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(lines.len() as f64 / 1e6 / taken)
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
