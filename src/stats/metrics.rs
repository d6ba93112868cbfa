//! What containerd tells of a task, as a reading: the way to the figures of VM runtimes.

use super::reading::{Cpu, Memory, Reading, Swap, limit};
use crate::containerd::TaskFigures;
use crate::proto::cgroups::{v1, v2};
use crate::proto::cri::{PsiData, PsiStats};

impl From<TaskFigures> for Reading {
    fn from(from: TaskFigures) -> Reading {
        match from {
            TaskFigures::V1(metrics) => of_v1(metrics),
            TaskFigures::V2(metrics) => of_v2(*metrics),
        }
    }
}

fn of_v1(metrics: v1::Metrics) -> Reading {
    let cpu = metrics.cpu.and_then(|cpu| cpu.usage);
    let memory = metrics.memory.and_then(|memory| Some((memory.usage?, memory)));
    // Its swap entry is memory and swap together.
    let swap = memory.as_ref().and_then(|(usage, memory)| {
        let both = memory.swap?;
        let limits = told_limit(both.limit).zip(told_limit(usage.limit));
        Some(Swap {
            usage: both.usage.saturating_sub(usage.usage),
            limit: limits.map(|(both, memory)| both.saturating_sub(memory)),
        })
    });
    Reading {
        cpu: cpu.map(|usage| Cpu { usage_ns: usage.total, psi: None }),
        memory: memory.map(|(usage, memory)| Memory {
            usage: usage.usage,
            inactive_file: memory.total_inactive_file,
            rss: memory.total_rss,
            page_faults: memory.total_pg_fault,
            major_page_faults: memory.total_pg_maj_fault,
            limit: told_limit(usage.limit),
            psi: None,
        }),
        swap,
        io: None,
        pids: metrics.pids.map(|pids| pids.current),
    }
}

fn of_v2(metrics: v2::Metrics) -> Reading {
    let swap = metrics.memory.as_ref().map(|memory| Swap {
        usage: memory.swap_usage,
        // Zero is what a shim sends that does not know it.
        limit: told_limit(memory.swap_limit),
    });
    Reading {
        cpu: metrics.cpu.map(|cpu| Cpu {
            usage_ns: cpu.usage_usec.saturating_mul(1000),
            psi: cpu.psi.and_then(pressure),
        }),
        memory: metrics.memory.map(|memory| Memory {
            usage: memory.usage,
            inactive_file: memory.inactive_file,
            rss: memory.anon,
            page_faults: memory.pgfault,
            major_page_faults: memory.pgmajfault,
            limit: told_limit(memory.usage_limit),
            psi: memory.psi.and_then(pressure),
        }),
        swap,
        io: metrics.io.and_then(|io| io.psi).and_then(pressure),
        pids: metrics.pids.map(|pids| pids.current),
    }
}

/// A limit in a message, where zero is one that was not told.
fn told_limit(bytes: u64) -> Option<u64> {
    limit(bytes).filter(|bytes| *bytes > 0)
}

fn pressure(psi: v2::PsiStats) -> Option<PsiStats> {
    let data = |data: v2::PsiData| PsiData {
        total: data.total.saturating_mul(1000),
        avg10: data.avg10,
        avg60: data.avg60,
        avg300: data.avg300,
    };
    let stats = PsiStats { full: psi.full.map(data), some: psi.some.map(data) };
    (stats.full.is_some() || stats.some.is_some()).then_some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_has_swap_and_memory_in_one() {
        let metrics = v1::Metrics {
            pids: Some(v1::PidsStat { current: 3 }),
            cpu: Some(v1::CpuStat { usage: Some(v1::CpuUsage { total: 12 }) }),
            memory: Some(v1::MemoryStat {
                total_rss: 5,
                total_pg_fault: 6,
                total_pg_maj_fault: 7,
                total_inactive_file: 8,
                usage: Some(v1::MemoryEntry { limit: 100, usage: 40 }),
                swap: Some(v1::MemoryEntry { limit: 130, usage: 50 }),
            }),
            memory_oom_control: None,
        };
        let reading = Reading::from(TaskFigures::V1(metrics));
        let memory = Memory {
            usage: 40,
            inactive_file: 8,
            rss: 5,
            page_faults: 6,
            major_page_faults: 7,
            limit: Some(100),
            psi: None,
        };
        assert_eq!(reading.memory, Some(memory));
        assert_eq!(reading.swap, Some(Swap { usage: 10, limit: Some(30) }));
        assert_eq!((reading.cpu.map(|cpu| cpu.usage_ns), reading.pids), (Some(12), Some(3)));
    }

    #[test]
    fn version_2_counts_in_microseconds_and_what_is_not_told_is_no_limit() {
        let psi = v2::PsiStats {
            some: Some(v2::PsiData { avg10: 1.5, avg60: 0.0, avg300: 0.0, total: 2 }),
            full: None,
        };
        let metrics = v2::Metrics {
            cpu: Some(v2::CpuStat { usage_usec: 7, psi: Some(psi) }),
            memory: Some(v2::MemoryStat { anon: 1, usage: 9, usage_limit: u64::MAX, ..Default::default() }),
            io: Some(v2::IoStat { psi: Some(v2::PsiStats::default()) }),
            ..Default::default()
        };
        let reading = Reading::from(TaskFigures::V2(Box::new(metrics)));
        let cpu = reading.cpu.expect("cpu");
        let some = cpu.psi.expect("pressure").some.expect("some");
        assert_eq!((cpu.usage_ns, some.total, some.avg10), (7000, 2000, 1.5));
        let memory = reading.memory.expect("memory");
        assert_eq!((memory.usage, memory.rss, memory.limit), (9, 1, None));
        assert_eq!(reading.swap, Some(Swap { usage: 0, limit: None }));
        assert_eq!((reading.io, reading.pids), (None, None));
    }
}
