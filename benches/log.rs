//! How fast the keeper turns output into log files: `cargo bench --bench log [-- FOLDER]`.
//!
//! Lines of 100 bytes go through real FIFOs to a keeper process and from there to log
//! files below FOLDER. It prints what passed in a second, and what the keeper took for
//! it: processor time for a gigabyte of output, and memory at most. Each log is read
//! afterwards: every line is there, once, in order, and times rise.
//!
//! The writers are threads of this process, which share the machine with the keeper.

mod output;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use longshore::io::fifo::{Fifos, Wanted};
use longshore::io::{ContainerIo, Keeper, KeeperOptions};
use output::{LINE_BYTES, MEGA, Process, check, numbered_lines};

/// How long a container may take to drain.
const LIMIT: Duration = Duration::from_secs(600);

/// Who writes what.
struct Case {
    name: &'static str,
    containers: usize,
    /// Of each container: with two the second one is stderr.
    streams: usize,
    /// In one write.
    write_bytes: usize,
    /// All containers and streams together.
    bytes: usize,
}

const CASES: [Case; 5] = [
    // What a shim does: it copies pieces of 32 KiB.
    Case { name: "one stream", containers: 1, streams: 1, write_bytes: 32 << 10, bytes: 300 * MEGA },
    Case { name: "stdout and stderr", containers: 1, streams: 2, write_bytes: 32 << 10, bytes: 300 * MEGA },
    Case { name: "eight containers", containers: 8, streams: 1, write_bytes: 32 << 10, bytes: 304 * MEGA },
    Case { name: "a page a write", containers: 1, streams: 1, write_bytes: 4 << 10, bytes: 300 * MEGA },
    Case { name: "a line a write", containers: 1, streams: 1, write_bytes: LINE_BYTES, bytes: 60 * MEGA },
];

fn main() -> anyhow::Result<()> {
    let folder = output::folder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{:<20}{:>10}{:>12}{:>16}{:>14}", "", "MB", "MB/s", "keeper s/GB", "keeper MiB");
    for case in CASES {
        let figures = runtime.block_on(case.run(&folder));
        let Figures { elapsed, processor_s, memory_kib } =
            figures.with_context(|| format!("case {:?}", case.name))?;
        let megabytes = (case.bytes / MEGA) as f64;
        println!(
            "{:<20}{:>10.0}{:>12.1}{:>16.2}{:>14.1}",
            case.name,
            megabytes,
            megabytes / elapsed.as_secs_f64(),
            processor_s * 1000.0 / megabytes,
            memory_kib as f64 / 1024.0,
        );
    }
    println!("all lines are in the logs, in order");
    Ok(())
}

struct Figures {
    elapsed: Duration,
    processor_s: f64,
    memory_kib: u64,
}

impl Case {
    /// One keeper, its containers, and a look into their logs.
    async fn run(&self, folder: &Path) -> anyhow::Result<Figures> {
        let folder = tempfile::tempdir_in(folder)?;
        let output = Arc::new(numbered_lines(self.bytes / self.containers / self.streams));
        let process = Process::start(folder.path())?;
        let keeper = Keeper::new(output::exe(), folder.path(), KeeperOptions::default());
        let mut writers = Vec::new();
        for number in 0..self.containers {
            let io = self.add(&keeper, folder.path(), &format!("c{number}")).await?;
            for path in [io.stdout, io.stderr].into_iter().flatten() {
                let (output, write_bytes) = (output.clone(), self.write_bytes);
                writers.push(move || write(&path, &output, write_bytes));
            }
        }
        let before = process.processor_s()?;
        let begin = Instant::now();
        let writers: Vec<_> = writers.into_iter().map(std::thread::spawn).collect();
        for number in 0..self.containers {
            ensure!(keeper.drained(&format!("c{number}"), LIMIT).await?, "c{number} does not drain");
        }
        let elapsed = begin.elapsed();
        for writer in writers {
            writer.join().expect("a writer does not panic")?;
        }
        let processor_s = process.processor_s()? - before;
        let memory_kib = process.memory_kib()?;
        for number in 0..self.containers {
            let id = format!("c{number}");
            check(&log(folder.path(), &id), &output, self.streams)?;
            keeper.remove(&id).await?;
        }
        Ok(Figures { elapsed, processor_s, memory_kib })
    }

    async fn add(&self, keeper: &Keeper, folder: &Path, id: &str) -> anyhow::Result<ContainerIo> {
        let wanted = Wanted { stdin: false, stdout: true, stderr: self.streams > 1 };
        let fifos = Fifos::make(folder, id, id, wanted)?;
        let io = ContainerIo {
            id: id.to_owned(),
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            log_path: Some(log(folder, id)),
            line_bytes_max: 16 << 10,
            ..ContainerIo::default()
        };
        keeper.add(io.clone()).await?;
        Ok(io)
    }
}

fn log(folder: &Path, id: &str) -> PathBuf {
    folder.join("pods").join(id).join("0.log")
}

/// Writes into a FIFO as a shim does.
fn write(path: &Path, output: &[u8], write_bytes: usize) -> std::io::Result<()> {
    let mut fifo = File::options().write(true).open(path)?;
    output.chunks(write_bytes).try_for_each(|piece| fifo.write_all(piece))
}
