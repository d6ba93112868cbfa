//! All metrics: name, meaning, type, labels, and where the value comes from.
//!
//! The names are cAdvisor's, as containerd's plugin has them, with four groups that it has not
//! and cAdvisor has: the cpu quota, pressure, huge pages, and faults of the whole hierarchy. A metric whose
//! value a kernel or a shim does not tell is described, but not sent.
//!
//! Values are whole numbers, so times are cut to whole seconds (STA-22). A timestamp of 0 says
//! that the value is of now; only what was written to disk is from an earlier look.

use super::super::cgroup::{DeviceIo, HugePages};
use super::super::network::{Interface, Traffic};
use super::figures::Figures;
use crate::proto::cri;
use crate::proto::cri::MetricType::{self, Counter, Gauge};

/// The labels of every metric, in this order; then come its own.
pub(super) const BASE_LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

const NANOSECONDS: u64 = 1_000_000_000;

/// A metric that is taken from a `T`.
pub(super) struct Metric<T: ?Sized + 'static> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    /// Labels of its own.
    pub(super) labels: &'static [&'static str],
    /// Its values: one for each set of its own labels.
    pub(super) read: fn(&T) -> Vec<Value>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    /// One for each of the metric's own labels.
    pub(super) labels: Vec<String>,
    pub(super) number: u64,
    /// Nanoseconds since the epoch; 0 for now.
    pub(super) timestamp: i64,
}

/// Every descriptor.
pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    CONTAINER.iter().map(describe).chain(NETWORK.iter().map(describe)).collect()
}

fn describe<T: ?Sized>(metric: &Metric<T>) -> cri::MetricDescriptor {
    let labels = BASE_LABELS.iter().chain(metric.labels);
    cri::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: labels.map(|label| (*label).to_owned()).collect(),
    }
}

const fn plain<T: ?Sized>(
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    read: fn(&T) -> Vec<Value>,
) -> Metric<T> {
    Metric { name, help, kind, labels: &[], read }
}

impl<T: ?Sized> Metric<T> {
    const fn by(mut self, labels: &'static [&'static str]) -> Metric<T> {
        self.labels = labels;
        self
    }
}

/// The value of a metric without labels of its own.
fn one(number: Option<u64>) -> Vec<Value> {
    number.into_iter().map(|number| labelled([], number)).collect()
}

fn labelled<const N: usize>(labels: [&str; N], number: u64) -> Value {
    Value { labels: labels.map(str::to_owned).to_vec(), number, timestamp: 0 }
}

fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / NANOSECONDS
}

fn seconds_of(nanoseconds: i64) -> Option<u64> {
    u64::try_from(nanoseconds).ok().filter(|time| *time > 0).map(seconds)
}

/// A limit of the CRI, where zero and less stand for none.
fn limit(number: i64) -> Vec<Value> {
    one(u64::try_from(number).ok().filter(|number| *number > 0))
}

type Memory = super::super::reading::Memory;

fn memory(figures: &Figures, of: fn(&Memory) -> u64) -> Vec<Value> {
    one(figures.reading.memory.as_ref().map(of))
}

/// The metrics of a container.
pub(super) static CONTAINER: &[Metric<Figures>] = &[
    plain(Counter, "container_cpu_usage_seconds_total", "Cpu time used, in seconds.", |figures| {
        one(figures.reading.cpu.as_ref().map(|cpu| seconds(cpu.usage_ns)))
    }),
    plain(Counter, "container_cpu_user_seconds_total", "Cpu time used by programs, in seconds.", |figures| {
        one(figures.details.user_ns.map(seconds))
    }),
    plain(
        Counter,
        "container_cpu_system_seconds_total",
        "Cpu time used by the kernel, in seconds.",
        |figures| one(figures.details.system_ns.map(seconds)),
    ),
    plain(
        Counter,
        "container_cpu_cfs_periods_total",
        "Periods of the cpu quota that have passed.",
        |figures| one(figures.details.throttling.map(|throttling| throttling.periods)),
    ),
    plain(
        Counter,
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the cpu quota was used up.",
        |figures| one(figures.details.throttling.map(|throttling| throttling.throttled_periods)),
    ),
    plain(
        Counter,
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which the cpu quota has kept the container from running, in seconds.",
        |figures| one(figures.details.throttling.map(|throttling| seconds(throttling.throttled_ns))),
    ),
    plain(Gauge, "container_memory_usage_bytes", "Memory in use, with caches, in bytes.", |figures| {
        memory(figures, |memory| memory.usage)
    }),
    plain(
        Gauge,
        "container_memory_working_set_bytes",
        "Memory in use, without caches that could be given up at once, in bytes.",
        |figures| memory(figures, |memory| memory.usage.saturating_sub(memory.inactive_file)),
    ),
    plain(Gauge, "container_memory_rss", "Anonymous memory, in bytes.", |figures| {
        memory(figures, |memory| memory.rss)
    }),
    plain(Gauge, "container_memory_max_usage_bytes", "The most memory ever in use, in bytes.", |figures| {
        one(figures.details.memory.as_ref().and_then(|memory| memory.max_usage))
    }),
    plain(Gauge, "container_memory_cache", "Page cache, in bytes.", |figures| {
        one(figures.details.memory.as_ref().map(|memory| memory.cache))
    }),
    plain(Gauge, "container_memory_mapped_file", "Files that are mapped into memory, in bytes.", |figures| {
        one(figures.details.memory.as_ref().map(|memory| memory.mapped_file))
    }),
    plain(
        Gauge,
        "container_memory_total_active_file_bytes",
        "Page cache that was used lately, in bytes.",
        |figures| one(figures.details.memory.as_ref().map(|memory| memory.active_file)),
    ),
    plain(
        Gauge,
        "container_memory_total_inactive_file_bytes",
        "Page cache that was not used lately, in bytes.",
        |figures| memory(figures, |memory| memory.inactive_file),
    ),
    plain(Gauge, "container_memory_kernel_usage", "Memory of the kernel's own, in bytes.", |figures| {
        one(figures.details.memory.as_ref().and_then(|memory| memory.kernel))
    }),
    plain(Gauge, "container_memory_swap", "Swap in use, in bytes.", |figures| {
        // A kernel without swap counts none.
        one(figures.reading.memory.as_ref().map(|_| figures.reading.swap.map_or(0, |swap| swap.usage)))
    }),
    plain(Gauge, "container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", |figures| {
        huge_pages(figures, |pages| Some(pages.usage))
    })
    .by(&["pagesize"]),
    plain(
        Gauge,
        "container_hugetlb_max_usage_bytes",
        "The most huge pages ever in use, in bytes.",
        |figures| huge_pages(figures, |pages| pages.max_usage),
    )
    .by(&["pagesize"]),
    plain(Counter, "container_memory_failcnt", "How often memory was at its limit.", |figures| {
        one(figures.details.memory.as_ref().and_then(|memory| memory.limit_hits))
    }),
    plain(Counter, "container_memory_failures_total", "Page faults, by type and scope.", faults)
        .by(&["failure_type", "scope"]),
    plain(Counter, "container_oom_events_total", "Processes that were killed for memory.", |figures| {
        one(figures.details.memory.as_ref().and_then(|memory| memory.oom_kills))
    }),
    plain(Gauge, "container_fs_usage_bytes", "Bytes that the container wrote to its layer.", written)
        .by(&["device"]),
    plain(
        Gauge,
        "container_fs_limit_bytes",
        "Size of the disk that the container writes to, in bytes.",
        |figures| file_system(figures, |disk| disk.bytes),
    )
    .by(&["device"]),
    plain(
        Gauge,
        "container_fs_inodes_total",
        "Inodes of the disk that the container writes to.",
        |figures| file_system(figures, |disk| disk.inodes),
    )
    .by(&["device"]),
    plain(
        Gauge,
        "container_fs_inodes_free",
        "Free inodes of the disk that the container writes to.",
        |figures| file_system(figures, |disk| disk.inodes_free),
    )
    .by(&["device"]),
    plain(Counter, "container_fs_reads_bytes_total", "Bytes read from a device.", |figures| {
        disks(figures, |disk| disk.bytes.get("Read"))
    })
    .by(&["device"]),
    plain(Counter, "container_fs_reads_total", "Reads from a device.", |figures| {
        disks(figures, |disk| disk.operations.get("Read"))
    })
    .by(&["device"]),
    plain(Counter, "container_fs_writes_bytes_total", "Bytes written to a device.", |figures| {
        disks(figures, |disk| disk.bytes.get("Write"))
    })
    .by(&["device"]),
    plain(Counter, "container_fs_writes_total", "Writes to a device.", |figures| {
        disks(figures, |disk| disk.operations.get("Write"))
    })
    .by(&["device"]),
    plain(
        Counter,
        "container_blkio_device_usage_total",
        "Bytes to and from a device, by operation.",
        operations,
    )
    .by(&["device", "major", "minor", "operation"]),
    plain(Gauge, "container_processes", "Processes in the container.", |figures| {
        one(figures.processes.map(|processes| processes.count))
    }),
    plain(Gauge, "container_threads", "Threads in the container.", |figures| one(figures.reading.pids)),
    plain(
        Gauge,
        "container_threads_max",
        "The most threads that the container may have; 0 for no limit.",
        |figures| one(figures.details.threads_max),
    ),
    plain(Gauge, "container_file_descriptors", "Open files of all processes.", |figures| {
        one(figures.processes.and_then(|processes| processes.descriptors).map(|(files, _)| files))
    }),
    plain(Gauge, "container_sockets", "Open sockets of all processes.", |figures| {
        one(figures.processes.and_then(|processes| processes.descriptors).map(|(_, sockets)| sockets))
    }),
    plain(
        Gauge,
        "container_ulimits_soft",
        "Soft limits of the container's first process.",
        |figures: &Figures| {
            let open_files = figures.processes.and_then(|processes| processes.open_files_max);
            open_files.map(|most| labelled(["max_open_files"], most)).into_iter().collect()
        },
    )
    .by(&["ulimit"]),
    plain(
        Gauge,
        "container_last_seen",
        "When the container was last seen, in seconds since 1970.",
        |figures| one(seconds_of(figures.seen_at)),
    ),
    plain(
        Gauge,
        "container_start_time_seconds",
        "When the container started, in seconds since 1970.",
        |figures| one(seconds_of(figures.started_at)),
    ),
    plain(Gauge, "container_spec_cpu_period", "The period of the cpu quota, in microseconds.", |figures| {
        limit(figures.limits.cpu_period)
    }),
    plain(Gauge, "container_spec_cpu_quota", "Cpu time in each period, in microseconds.", |figures| {
        limit(figures.limits.cpu_quota)
    }),
    plain(Gauge, "container_spec_cpu_shares", "The share of cpu time beside other containers.", |figures| {
        limit(figures.limits.cpu_shares)
    }),
    plain(Gauge, "container_spec_memory_limit_bytes", "The limit of memory, in bytes.", |figures| {
        limit(figures.limits.memory_limit_in_bytes)
    }),
    plain(
        Gauge,
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is given up last when it is short, in bytes.",
        |figures| one(figures.details.memory.as_ref().and_then(|memory| memory.reservation)),
    ),
    plain(
        Gauge,
        "container_spec_memory_swap_limit_bytes",
        "The limit of memory and swap together, in bytes.",
        |figures| limit(figures.limits.memory_swap_limit_in_bytes),
    ),
    plain(
        Counter,
        "container_pressure_cpu_waiting_seconds_total",
        "Time for which something waited for the cpu, in seconds.",
        |figures| some(cpu_pressure(figures)),
    ),
    plain(
        Counter,
        "container_pressure_cpu_stalled_seconds_total",
        "Time for which everything waited for the cpu, in seconds.",
        |figures| full(cpu_pressure(figures)),
    ),
    plain(
        Counter,
        "container_pressure_memory_waiting_seconds_total",
        "Time for which something waited for memory, in seconds.",
        |figures| some(memory_pressure(figures)),
    ),
    plain(
        Counter,
        "container_pressure_memory_stalled_seconds_total",
        "Time for which everything waited for memory, in seconds.",
        |figures| full(memory_pressure(figures)),
    ),
    plain(
        Counter,
        "container_pressure_io_waiting_seconds_total",
        "Time for which something waited for disks, in seconds.",
        |figures| some(figures.reading.io),
    ),
    plain(
        Counter,
        "container_pressure_io_stalled_seconds_total",
        "Time for which everything waited for disks, in seconds.",
        |figures| full(figures.reading.io),
    ),
];

/// The metrics of a pod: its interfaces.
pub(super) static NETWORK: &[Metric<[Interface]>] = &[
    plain(Counter, "container_network_receive_bytes_total", "Bytes received.", |all: &[Interface]| {
        each(all, |interface| received(interface).bytes)
    })
    .by(&["interface"]),
    plain(Counter, "container_network_receive_packets_total", "Packets received.", |all: &[Interface]| {
        each(all, |interface| received(interface).packets)
    })
    .by(&["interface"]),
    plain(
        Counter,
        "container_network_receive_packets_dropped_total",
        "Received packets dropped.",
        |all: &[Interface]| each(all, |interface| received(interface).dropped),
    )
    .by(&["interface"]),
    plain(
        Counter,
        "container_network_receive_errors_total",
        "Errors while receiving.",
        |all: &[Interface]| each(all, |interface| received(interface).errors),
    )
    .by(&["interface"]),
    plain(Counter, "container_network_transmit_bytes_total", "Bytes sent.", |all: &[Interface]| {
        each(all, |interface| sent(interface).bytes)
    })
    .by(&["interface"]),
    plain(Counter, "container_network_transmit_packets_total", "Packets sent.", |all: &[Interface]| {
        each(all, |interface| sent(interface).packets)
    })
    .by(&["interface"]),
    plain(
        Counter,
        "container_network_transmit_packets_dropped_total",
        "Packets dropped before sending.",
        |all| each(all, |interface| sent(interface).dropped),
    )
    .by(&["interface"]),
    plain(
        Counter,
        "container_network_transmit_errors_total",
        "Errors while sending.",
        |all: &[Interface]| each(all, |interface| sent(interface).errors),
    )
    .by(&["interface"]),
];

fn received(interface: &Interface) -> Traffic {
    interface.received
}

fn sent(interface: &Interface) -> Traffic {
    interface.sent
}

fn each(interfaces: &[Interface], counter: fn(&Interface) -> Option<u64>) -> Vec<Value> {
    let value = |interface: &Interface| Some(labelled([&interface.name], counter(interface)?));
    interfaces.iter().filter_map(value).collect()
}

/// By type, of the container's own cgroup and with those below.
fn faults(figures: &Figures) -> Vec<Value> {
    let own = figures.details.memory.as_ref().map(|memory| memory.own_faults);
    let all = figures.reading.memory.as_ref().map(|memory| (memory.page_faults, memory.major_page_faults));
    let scopes = [("container", own), ("hierarchy", all)];
    let told = scopes.into_iter().filter_map(|(scope, counts)| Some((scope, counts?)));
    told.flat_map(|(scope, (faults, major))| {
        [labelled(["pgfault", scope], faults), labelled(["pgmajfault", scope], major)]
    })
    .collect()
}

fn huge_pages(figures: &Figures, of: fn(&HugePages) -> Option<u64>) -> Vec<Value> {
    let value = |pages: &HugePages| Some(labelled([&pages.size], of(pages)?));
    figures.details.huge_pages.iter().filter_map(value).collect()
}

fn file_system(figures: &Figures, of: fn(&super::figures::FileSystem) -> u64) -> Vec<Value> {
    figures.file_system.iter().map(|disk| labelled([&disk.device], of(disk))).collect()
}

/// As of the last look: a walk through what a container wrote takes long.
fn written(figures: &Figures) -> Vec<Value> {
    let Some((disk, written)) = figures.file_system.as_ref().zip(figures.written) else { return Vec::new() };
    vec![Value { timestamp: written.timestamp, ..labelled([&disk.device], written.bytes) }]
}

fn disks(figures: &Figures, of: fn(&DeviceIo) -> Option<&u64>) -> Vec<Value> {
    let value = |(name, disk): &(String, DeviceIo)| Some(labelled([name], *of(disk)?));
    figures.disks.iter().filter_map(value).collect()
}

fn operations(figures: &Figures) -> Vec<Value> {
    let of_disk = |(name, disk): &(String, DeviceIo)| {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        let value = |(operation, bytes): (&String, &u64)| labelled([name, &major, &minor, operation], *bytes);
        disk.bytes.iter().map(value).collect::<Vec<Value>>()
    };
    figures.disks.iter().flat_map(of_disk).collect()
}

fn cpu_pressure(figures: &Figures) -> Option<cri::PsiStats> {
    figures.reading.cpu.as_ref()?.psi
}

fn memory_pressure(figures: &Figures) -> Option<cri::PsiStats> {
    figures.reading.memory.as_ref()?.psi
}

fn some(psi: Option<cri::PsiStats>) -> Vec<Value> {
    one(psi.and_then(|psi| psi.some).map(|data| seconds(data.total)))
}

fn full(psi: Option<cri::PsiStats>) -> Vec<Value> {
    one(psi.and_then(|psi| psi.full).map(|data| seconds(data.total)))
}

#[cfg(test)]
mod tests;
