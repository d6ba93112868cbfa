//! What was done, what failed as it may, and what server and keeper needed for it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::Code;

use super::Stage;
use super::faults::Fault;

/// Between two measurements.
const PAUSE: Duration = Duration::from_secs(5);
/// What the server and the keeper may have in RAM, built for debugging, whatever they did.
const SERVER_KIB_MAX: u64 = 300 * 1024;
const KEEPER_KIB_MAX: u64 = 100 * 1024;

/// Calls, and what else is done to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Op {
    RunPod,
    StopPod,
    RemovePod,
    PodStatus,
    ListPods,
    Create,
    Start,
    Stop,
    Remove,
    Status,
    ListContainers,
    Exec,
    Reopen,
    Stats,
    Update,
    Pull,
    RemoveImage,
    ImageStatus,
    GiveUp,
    Audit,
    KillProcess,
    KillShim,
    KillPause,
    DeleteTask,
    Memory,
}

/// A process at a time.
#[derive(Clone, Copy)]
struct Sample {
    /// Seconds since the beginning.
    at: f64,
    pid: u32,
    rss_kib: u64,
    descriptors: usize,
    threads: u64,
}

/// Counts and measurements.
#[derive(Default)]
pub(super) struct Figures {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    done: BTreeMap<Op, u64>,
    excused: BTreeMap<(String, Op), u64>,
    faults: BTreeMap<String, Vec<Duration>>,
    notes: BTreeMap<String, u64>,
    server: Vec<Sample>,
    keeper: Vec<Sample>,
    pods: Vec<usize>,
}

impl Figures {
    pub(super) fn done(&self, op: Op) {
        *self.lock().done.entry(op).or_default() += 1;
    }

    pub(super) fn excused(&self, op: Op, code: Code) {
        *self.lock().excused.entry((format!("{code:?}"), op)).or_default() += 1;
    }

    /// A fault, and how long it was until the node was well again.
    pub(super) fn fault(&self, fault: Fault, lasted: Duration) {
        self.lock().faults.entry(format!("{fault:?}")).or_default().push(lasted);
    }

    /// Counts something else that is worth to be told.
    pub(super) fn note(&self, what: &str) {
        *self.lock().notes.entry(what.to_owned()).or_default() += 1;
    }

    pub(super) fn pods(&self, number: usize) {
        self.lock().pods.push(number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().expect("no panic while counting")
    }

    /// All of it as text.
    pub(super) fn table(&self) -> String {
        self.lock().to_string()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "=== done")?;
        for (op, number) in &self.done {
            writeln!(f, "{:24} {number:8}", format!("{op:?}"))?;
        }
        writeln!(f, "=== faults")?;
        for (fault, lasted) in &self.faults {
            let (sum, most) = (lasted.iter().sum::<Duration>(), lasted.iter().max().copied());
            let (sum, most) = (sum.as_secs_f64(), most.unwrap_or_default().as_secs_f64());
            writeln!(f, "{fault:24} {:8}, {sum:6.1} s, the longest {most:4.1} s", lasted.len())?;
        }
        writeln!(f, "=== errors while something was disturbed")?;
        for ((code, op), number) in &self.excused {
            writeln!(f, "{:24} {number:8}", format!("{code} {op:?}"))?;
        }
        for (what, number) in &self.notes {
            writeln!(f, "{what}: {number}")?;
        }
        let (least, most) = (self.pods.iter().min().unwrap_or(&0), self.pods.iter().max().unwrap_or(&0));
        writeln!(f, "=== {least} to {most} pods, in {} comparisons", self.pods.len())?;
        for (name, samples) in [("server", &self.server), ("keeper", &self.keeper)] {
            f.write_str(&life(name, samples))?;
        }
        Ok(())
    }
}

/// What a process needed at the beginning, after a sixth of the time, in the middle and at
/// the end, and how fast its last life grew.
fn life(name: &str, samples: &[Sample]) -> String {
    let mut text = String::new();
    let Some(last) = samples.last() else { return text };
    let at = |part: f64| samples.iter().find(|sample| sample.at >= last.at * part).unwrap_or(last);
    for (when, sample) in [("start", &samples[0]), ("1/6", at(1.0 / 6.0)), ("1/2", at(0.5)), ("end", last)] {
        let _ = writeln!(
            text,
            "{name} {when:6} {:7.0} s: {:7} KiB, {:4} descriptors, {:3} threads",
            sample.at, sample.rss_kib, sample.descriptors, sample.threads
        );
    }
    let most = samples.iter().map(|sample| sample.rss_kib).max().unwrap_or(0);
    let lives = samples.windows(2).filter(|pair| pair[0].pid != pair[1].pid).count() + 1;
    let own: Vec<&Sample> = samples.iter().filter(|sample| sample.pid == last.pid).collect();
    // What is made at the beginning of a life is no slope.
    let own = &own[own.len() / 5..];
    let _ = writeln!(
        text,
        "{name}: {lives} lives, at most {most} KiB; the last, {:.0} s measured: {:+.0} KiB an hour",
        last.at - own[0].at,
        slope(own) * 3600.0
    );
    text
}

/// KiB a second: the line with the least squares.
fn slope(samples: &[&Sample]) -> f64 {
    let number = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(|sample| of(sample)).sum::<f64>() / number;
    let (at, rss) = (mean(|sample| sample.at), mean(|sample| sample.rss_kib as f64));
    let both: f64 = samples.iter().map(|s| (s.at - at) * (s.rss_kib as f64 - rss)).sum();
    let square: f64 = samples.iter().map(|s| (s.at - at).powi(2)).sum();
    if square > 0.0 { both / square } else { 0.0 }
}

fn measure(pid: u32, at: f64) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = descriptors(pid)?;
    Some(Sample { at, pid, rss_kib: number("VmRSS:")?, descriptors, threads: number("Threads:")? })
}

/// How many descriptors a process has open.
pub(super) fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Measures server and keeper again and again; none may become huge.
pub(super) async fn sample(stage: Arc<Stage>) {
    loop {
        let at = stage.begun.elapsed().as_secs_f64();
        // While one of them is killed there is nothing to be measured.
        if stage.faults.spares_server() {
            let longshore = stage.node.longshore();
            let server = longshore.running_pid().and_then(|pid| measure(pid, at));
            let keeper = longshore.find_keeper().and_then(|pid| measure(pid, at));
            let mut counts = stage.figures.lock();
            counts.server.extend(server);
            counts.keeper.extend(keeper);
            drop(counts);
            assert!(server.is_none_or(|sample| sample.rss_kib < SERVER_KIB_MAX), "the server is huge");
            assert!(keeper.is_none_or(|sample| sample.rss_kib < KEEPER_KIB_MAX), "the keeper is huge");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
