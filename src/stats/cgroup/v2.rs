//! The files of version 2, all in one folder.
//!
//! | | file |
//! |---|---|
//! | cpu | `usage_usec` of `cpu.stat` |
//! | memory | `memory.current`, `memory.max`, `memory.stat`: `inactive_file`, `anon` (as cAdvisor has rss), `pgfault`, `pgmajfault` |
//! | swap | `memory.swap.current`, `memory.swap.max` |
//! | processes | `pids.current` |
//! | pressure | `cpu.pressure`, `memory.pressure`, `io.pressure`; totals in µs |

use std::path::Path;

use super::super::reading::{Cpu, Memory, Reading, Swap, limit};
use super::{entry, number, text};
use crate::proto::cri::{PsiData, PsiStats};

pub(super) fn read(folder: &Path) -> Reading {
    Reading {
        cpu: cpu_ns(folder).map(|usage_ns| Cpu { usage_ns, psi: pressure(folder, "cpu.pressure") }),
        memory: memory(folder),
        swap: number(folder, "memory.swap.current")
            .map(|usage| Swap { usage, limit: number(folder, "memory.swap.max").and_then(limit) }),
        io: pressure(folder, "io.pressure"),
        pids: number(folder, "pids.current"),
    }
}

pub(super) fn cpu_ns(folder: &Path) -> Option<u64> {
    entry(&text(folder, "cpu.stat")?, "usage_usec").map(|microseconds| microseconds.saturating_mul(1000))
}

fn memory(folder: &Path) -> Option<Memory> {
    let usage = number(folder, "memory.current")?;
    let stat = text(folder, "memory.stat")?;
    let count = |key: &str| entry(&stat, key).unwrap_or(0);
    Some(Memory {
        usage,
        inactive_file: count("inactive_file"),
        rss: count("anon"),
        page_faults: count("pgfault"),
        major_page_faults: count("pgmajfault"),
        limit: number(folder, "memory.max").and_then(limit),
        psi: pressure(folder, "memory.pressure"),
    })
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`, which
/// old kernels do not have for the cpu. The file cannot be read where pressure is off.
fn pressure(folder: &Path, file: &str) -> Option<PsiStats> {
    let text = text(folder, file)?;
    let line = |kind: &str| text.lines().find_map(|line| data(line.strip_prefix(kind)?));
    let stats = PsiStats { full: line("full "), some: line("some ") };
    (stats.full.is_some() || stats.some.is_some()).then_some(stats)
}

fn data(fields: &str) -> Option<PsiData> {
    let field = |key: &str| {
        let pairs = fields.split_ascii_whitespace().filter_map(|field| field.split_once('='));
        pairs.into_iter().find_map(|(name, value)| (name == key).then_some(value))
    };
    let average = |key: &str| field(key)?.parse::<f64>().ok();
    Some(PsiData {
        total: field("total")?.parse::<u64>().ok()?.saturating_mul(1000),
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
    })
}
