//! The files of version 1, a hierarchy for each controller.
//!
//! | | file |
//! |---|---|
//! | cpu | `cpuacct.usage`, ns |
//! | memory | `memory.usage_in_bytes`, `memory.limit_in_bytes`, `memory.stat`: the `total_` lines, which count the cgroups below |
//! | swap | `total_swap` of `memory.stat`; its limit is what `memory.memsw.limit_in_bytes` is above memory's |
//! | processes | `pids.current` |
//!
//! There is no pressure in version 1.

use std::path::{Path, PathBuf};

use super::super::reading::{Cpu, Memory, Reading, Swap, limit};
use super::{V1, entry, number, text};

pub(super) fn read(folders: &V1<PathBuf>) -> Reading {
    let cpu = folders.cpuacct.as_deref().and_then(cpu_ns);
    let memory = folders.memory.as_deref().and_then(memory);
    let (memory, swap) = memory.unzip();
    Reading {
        cpu: cpu.map(|usage_ns| Cpu { usage_ns, psi: None }),
        memory,
        swap: swap.flatten(),
        io: None,
        pids: folders.pids.as_deref().and_then(|folder| number(folder, "pids.current")),
    }
}

pub(super) fn cpu_ns(folder: &Path) -> Option<u64> {
    number(folder, "cpuacct.usage")
}

fn memory(folder: &Path) -> Option<(Memory, Option<Swap>)> {
    let usage = number(folder, "memory.usage_in_bytes")?;
    let stat = text(folder, "memory.stat")?;
    let total = |key: &str| entry(&stat, key).unwrap_or(0);
    let memory_limit = number(folder, "memory.limit_in_bytes").and_then(limit);
    // Without swap accounting neither the line nor the file is there.
    let swap = entry(&stat, "total_swap").map(|usage| {
        let both_limit = number(folder, "memory.memsw.limit_in_bytes").and_then(limit);
        let limit = both_limit.zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory));
        Swap { usage, limit }
    });
    let memory = Memory {
        usage,
        inactive_file: total("total_inactive_file"),
        rss: total("total_rss"),
        page_faults: total("total_pgfault"),
        major_page_faults: total("total_pgmajfault"),
        limit: memory_limit,
        psi: None,
    };
    Some((memory, swap))
}
