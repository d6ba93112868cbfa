//! What processes take of processors and memory, each with all that it starts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};

/// How often memory is looked at.
const PERIOD: Duration = Duration::from_millis(200);
/// Ticks of a second, the same for every program.
const TICKS: f64 = 100.0;

/// What a process took between start and stop.
#[derive(Clone, Copy, Default)]
pub(crate) struct Taken {
    /// Processor time, with that of the processes that it started.
    pub(crate) processor_s: f64,
    /// The most memory at any one time. What processes that it started had is added as far
    /// as it was seen: they are looked at a few times a second.
    pub(crate) peak_kib: u64,
}

/// A running measurement.
pub(crate) struct Meter {
    pids: Arc<[u32]>,
    before: Vec<f64>,
    stop: mpsc::Sender<()>,
    sampler: JoinHandle<Vec<u64>>,
}

impl Meter {
    /// Starts one of these processes.
    pub(crate) fn start(pids: &[u32]) -> anyhow::Result<Meter> {
        let pids: Arc<[u32]> = pids.into();
        for pid in &*pids {
            // 5: the peak begins anew.
            std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset a peak")?;
        }
        let before = processor_s(&pids);
        let (stop, stopped) = mpsc::channel();
        let sampled = pids.clone();
        let sampler = std::thread::spawn(move || {
            let mut peaks = vec![0; sampled.len()];
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let table = Table::read();
                for (peak, pid) in peaks.iter_mut().zip(&*sampled) {
                    let family = table.family(*pid).into_iter();
                    let sum: u64 = family.filter_map(|process| status_kib(process.pid, "VmRSS:")).sum();
                    *peak = sum.max(*peak);
                }
            }
            peaks
        });
        Ok(Meter { pids, before, stop, sampler })
    }

    /// Ends it; the figures are in the order of the processes.
    pub(crate) fn stop(self) -> anyhow::Result<Vec<Taken>> {
        let after = processor_s(&self.pids);
        drop(self.stop);
        let peaks = self.sampler.join().map_err(|_| anyhow!("the sampler panicked"))?;
        let taken = self.pids.iter().zip(self.before).zip(after).zip(peaks);
        taken
            .map(|(((pid, before), after), sampled)| {
                let own = status_kib(*pid, "VmHWM:").with_context(|| format!("process {pid} is gone"))?;
                Ok(Taken { processor_s: after - before, peak_kib: own.max(sampled) })
            })
            .collect()
    }
}

fn processor_s(pids: &[u32]) -> Vec<f64> {
    let table = Table::read();
    let ticks = |pid| table.family(pid).iter().map(|process| process.ticks).sum::<u64>();
    pids.iter().map(|pid| ticks(*pid) as f64 / TICKS).collect()
}

struct Process {
    pid: u32,
    parent: u32,
    /// Of itself and of the children that it has waited for.
    ticks: u64,
}

/// All processes of one moment.
struct Table(HashMap<u32, Process>);

impl Table {
    fn read() -> Table {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Table(pids.filter_map(|pid| Some((pid, Process::read(pid)?))).collect())
    }

    /// A process and its descendants.
    fn family(&self, pid: u32) -> Vec<&Process> {
        let parent = |pid: &u32| self.0.get(pid).map(|process| process.parent);
        let belongs = |process: &&Process| {
            std::iter::successors(Some(process.pid), parent).any(|ancestor| ancestor == pid)
        };
        self.0.values().filter(belongs).collect()
    }
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, which may hold anything, is in parentheses.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::parse::<u64>);
        let parent = fields.nth(1)?.ok()?;
        let ticks = fields.skip(9).take(4).map_while(Result::ok).sum();
        Some(Process { pid, parent: u32::try_from(parent).ok()?, ticks })
    }
}

fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
