//! What is looked at when somebody reads the metrics, and not before.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::meters::Labels;
use crate::sys::usage::Usage;

/// How things stand.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// How many pods are in each state.
    pub pods: Vec<(&'static str, usize)>,
    /// How many containers are in each state.
    pub containers: Vec<(&'static str, usize)>,
    /// Images.
    pub images: usize,
    /// Whether containerd answers.
    pub is_connected: bool,
    /// Subscribers of events.
    pub subscribers: usize,
    /// What the keeper tells; none if there is no keeper, or an older one.
    pub logs: Option<LogTotals>,
    /// The server and the keeper, as far as they are there.
    pub processes: Vec<(&'static str, Usage)>,
}

/// What has become of the output of all containers, since the keeper's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTotals {
    /// Bytes in log files, with what stands before each line.
    pub written_bytes: u64,
    /// Entries that could not be written.
    pub lost_entries: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
}

type Gauges = Family<Labels<1>, Gauge>;
type Seconds = Gauge<f64, AtomicU64>;

/// The metrics of a [`Snapshot`].
pub(super) struct Looked {
    pods: Gauges,
    containers: Gauges,
    images: Gauge,
    connected: Gauge,
    subscribers: Gauge,
    written_bytes: Counter,
    lost_entries: Counter,
    lost_bytes: Counter,
    write_errors: Counter,
    open_fds: Gauges,
    max_fds: Gauges,
    resident_bytes: Gauges,
    cpu_seconds: Family<Labels<1>, Counter<f64, AtomicU64>>,
    start_time: Family<Labels<1>, Seconds>,
}

impl Looked {
    pub(super) fn new(list: &mut Registry) -> Looked {
        let looked = Looked {
            pods: Gauges::default(),
            containers: Gauges::default(),
            images: Gauge::default(),
            connected: Gauge::default(),
            subscribers: Gauge::default(),
            written_bytes: Counter::default(),
            lost_entries: Counter::default(),
            lost_bytes: Counter::default(),
            write_errors: Counter::default(),
            open_fds: Gauges::default(),
            max_fds: Gauges::default(),
            resident_bytes: Gauges::default(),
            cpu_seconds: Family::default(),
            start_time: Family::default(),
        };
        let (bytes, seconds) = (|| Unit::Bytes, || Unit::Seconds);
        list.register("pods", "Pod sandboxes by state", looked.pods.clone());
        list.register("containers", "Containers by state", looked.containers.clone());
        list.register("images", "Images", looked.images.clone());
        list.register("containerd_connected", "Whether containerd answers", looked.connected.clone());
        list.register("event_subscribers", "Subscribers of events", looked.subscribers.clone());
        let help = "Bytes that the log keeper has written into log files";
        list.register_with_unit("log_written", help, bytes(), looked.written_bytes.clone());
        let help = "Log entries that could not be written";
        list.register("log_lost_entries", help, looked.lost_entries.clone());
        let help = "Bytes of the log entries that could not be written";
        list.register_with_unit("log_lost", help, bytes(), looked.lost_bytes.clone());
        list.register("log_write_errors", "Writes into log files that failed", looked.write_errors.clone());
        list.register("process_open_fds", "Open file descriptors", looked.open_fds.clone());
        list.register("process_max_fds", "The limit of open file descriptors", looked.max_fds.clone());
        let help = "Memory in RAM";
        list.register_with_unit("process_resident_memory", help, bytes(), looked.resident_bytes.clone());
        let help = "Time of the processor, in user and system mode";
        list.register_with_unit("process_cpu", help, seconds(), looked.cpu_seconds.clone());
        let help = "When the process was started, since the epoch";
        list.register_with_unit("process_start_time", help, seconds(), looked.start_time.clone());
        let build = Gauges::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        list.register("build_info", "The version of the server: always 1", build);
        looked
    }

    pub(super) fn set(&self, snapshot: &Snapshot) {
        for (gauges, states) in [(&self.pods, &snapshot.pods), (&self.containers, &snapshot.containers)] {
            for (state, count) in states {
                gauges.get_or_create(&[("state", *state)]).set(number(*count as u64));
            }
        }
        self.images.set(number(snapshot.images as u64));
        self.connected.set(snapshot.is_connected.into());
        self.subscribers.set(number(snapshot.subscribers as u64));
        // Without a keeper nothing changes; those of a new one begin at 0 again.
        if let Some(logs) = &snapshot.logs {
            for (counter, value) in [
                (&self.written_bytes, logs.written_bytes),
                (&self.lost_entries, logs.lost_entries),
                (&self.lost_bytes, logs.lost_bytes),
                (&self.write_errors, logs.write_errors),
            ] {
                counter.inner().store(value, Ordering::Relaxed);
            }
        }
        // A process that has ended must not stay.
        self.open_fds.clear();
        self.max_fds.clear();
        self.resident_bytes.clear();
        self.cpu_seconds.clear();
        self.start_time.clear();
        for (process, usage) in &snapshot.processes {
            let labels = [("process", *process)];
            self.open_fds.get_or_create(&labels).set(number(usage.open_fds));
            self.max_fds.get_or_create(&labels).set(number(usage.max_fds));
            self.resident_bytes.get_or_create(&labels).set(number(usage.resident_bytes));
            self.cpu_seconds.get_or_create(&labels).inc_by(usage.cpu_seconds);
            self.start_time.get_or_create(&labels).set(usage.start_time_s);
        }
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
