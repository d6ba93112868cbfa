//! One look at what a cgroup uses, and its form in the CRI.
//!
//! | CRI | from | rule |
//! |---|---|---|
//! | `cpu.usage_core_nano_seconds` | total of all its processes | STA-03 |
//! | `cpu.usage_nano_cores` | the rate ([`super::rate`]); unset where there is none | STA-04 |
//! | `memory.working_set_bytes` | usage − inactive file pages, at least 0 | STA-05 |
//! | `memory.available_bytes` | limit − working set, at least 0; unset without a limit | STA-06 |
//! | `memory.usage_bytes`, `rss_bytes`, `page_faults`, `major_page_faults` | as counted | STA-07 |
//! | `swap.swap_usage_bytes`, `swap_available_bytes` | as counted; limit − usage | STA-09 |
//! | `psi` of cpu, memory, io | where the kernel has it | STA-08 |

use super::value;
use crate::proto::cri;

/// Limits above this are the kernel's "none", rounded to pages.
const LIMIT_MAX: u64 = 1 << 62;

/// What a cgroup uses. What its kernel or controllers do not tell is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) cpu: Option<Cpu>,
    pub(super) memory: Option<Memory>,
    pub(super) swap: Option<Swap>,
    pub(super) io: Option<cri::PsiStats>,
    pub(super) pids: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    pub(super) usage_ns: u64,
    pub(super) psi: Option<cri::PsiStats>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Memory {
    pub(super) usage: u64,
    pub(super) inactive_file: u64,
    pub(super) rss: u64,
    pub(super) page_faults: u64,
    pub(super) major_page_faults: u64,
    pub(super) limit: Option<u64>,
    pub(super) psi: Option<cri::PsiStats>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Swap {
    pub(super) usage: u64,
    pub(super) limit: Option<u64>,
}

/// A limit, unless it stands for none.
pub(super) fn limit(bytes: u64) -> Option<u64> {
    (bytes <= LIMIT_MAX).then_some(bytes)
}

impl Reading {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        *self == Reading::default()
    }

    /// Takes `other` in: for a pod that is the sum of its containers. Limits and pressure do
    /// not add up.
    pub(super) fn add(&mut self, other: &Reading) {
        if let Some(from) = &other.cpu {
            let to = self.cpu.get_or_insert_default();
            to.usage_ns = to.usage_ns.saturating_add(from.usage_ns);
            to.psi = None;
        }
        if let Some(from) = &other.memory {
            let to = self.memory.get_or_insert_default();
            for (to, from) in [
                (&mut to.usage, from.usage),
                (&mut to.inactive_file, from.inactive_file),
                (&mut to.rss, from.rss),
                (&mut to.page_faults, from.page_faults),
                (&mut to.major_page_faults, from.major_page_faults),
            ] {
                *to = to.saturating_add(from);
            }
            (to.limit, to.psi) = (None, None);
        }
        self.io = None;
    }

    /// The cpu part.
    pub(super) fn cpu(&self, timestamp: i64, nano_cores: Option<u64>) -> Option<cri::CpuUsage> {
        self.cpu.as_ref().map(|cpu| cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(cpu.usage_ns),
            usage_nano_cores: nano_cores.and_then(value),
            psi: cpu.psi,
        })
    }

    /// The memory part.
    pub(super) fn memory(&self, timestamp: i64) -> Option<cri::MemoryUsage> {
        self.memory.as_ref().map(|memory| {
            let working_set = memory.usage.saturating_sub(memory.inactive_file);
            cri::MemoryUsage {
                timestamp,
                working_set_bytes: value(working_set),
                available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(working_set))),
                usage_bytes: value(memory.usage),
                rss_bytes: value(memory.rss),
                page_faults: value(memory.page_faults),
                major_page_faults: value(memory.major_page_faults),
                psi: memory.psi,
            }
        })
    }

    /// The swap part.
    pub(super) fn swap(&self, timestamp: i64) -> Option<cri::SwapUsage> {
        self.swap.map(|swap| cri::SwapUsage {
            timestamp,
            swap_available_bytes: swap.limit.and_then(|limit| value(limit.saturating_sub(swap.usage))),
            swap_usage_bytes: value(swap.usage),
        })
    }

    /// The part of input and output.
    pub(super) fn io(&self, timestamp: i64) -> Option<cri::IoUsage> {
        self.io.map(|psi| cri::IoUsage { timestamp, psi: Some(psi) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(usage: u64, inactive_file: u64, limit: Option<u64>) -> cri::MemoryUsage {
        let memory = Memory { usage, inactive_file, limit, ..Memory::default() };
        Reading { memory: Some(memory), ..Reading::default() }.memory(7).expect("memory")
    }

    #[test]
    fn the_working_set_is_never_below_nothing_and_neither_is_what_is_left() {
        let usual = memory(100, 30, Some(90));
        assert_eq!((usual.working_set_bytes, usual.available_bytes), (value(70), value(20)));
        assert_eq!(memory(30, 100, None).working_set_bytes, value(0));
        assert_eq!(memory(100, 0, Some(90)).available_bytes, value(0));
        assert_eq!(memory(100, 0, None).available_bytes, None);
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(limit(9_223_372_036_854_771_712), None);
        assert_eq!(limit(u64::MAX), None);
        assert_eq!(limit(1 << 62), Some(1 << 62));
        assert_eq!(limit(0), Some(0));
    }

    #[test]
    fn a_sum_has_no_limits_and_no_pressure() {
        let one = Reading {
            cpu: Some(Cpu { usage_ns: 5, psi: Some(cri::PsiStats::default()) }),
            memory: Some(Memory { usage: 10, inactive_file: 4, limit: Some(20), ..Memory::default() }),
            ..Reading::default()
        };
        let mut sum = one.clone();
        sum.add(&one);
        sum.add(&Reading::default());
        assert_eq!(sum.cpu, Some(Cpu { usage_ns: 10, psi: None }));
        assert_eq!(sum.memory, Some(Memory { usage: 20, inactive_file: 8, ..Memory::default() }));
        assert!(!sum.is_empty() && Reading::default().is_empty());
    }
}
