use std::collections::HashSet;

use super::*;
use crate::stats::cgroup::Details;
use crate::stats::prometheus::figures::{FileSystem, Written};

fn values(figures: &Figures, name: &str) -> Vec<(Vec<String>, u64)> {
    let metric = CONTAINER.iter().find(|metric| metric.name == name).expect("a metric");
    (metric.read)(figures).into_iter().map(|value| (value.labels, value.number)).collect()
}

fn number(figures: &Figures, name: &str) -> Option<u64> {
    values(figures, name).first().map(|(_, number)| *number)
}

/// STA-17.
#[test]
fn every_metric_is_described_once() {
    let descriptors = descriptors();
    let names: HashSet<&str> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
    assert_eq!(names.len(), descriptors.len());
    for descriptor in &descriptors {
        let base = &descriptor.label_keys[..BASE_LABELS.len()];
        assert_eq!(base, BASE_LABELS, "{}", descriptor.name);
        let is_total = descriptor.name.ends_with("_total");
        let counters = ["container_memory_failcnt", "container_fs_inodes_total"];
        let metric = CONTAINER.iter().find(|metric| metric.name == descriptor.name);
        let kind = metric.map_or(Counter, |metric| metric.kind);
        assert!(
            (kind == Counter) == is_total || counters.contains(&descriptor.name.as_str()),
            "{}",
            descriptor.name
        );
    }
}

#[test]
fn what_is_not_known_is_not_sent() {
    let sent: Vec<&str> = CONTAINER
        .iter()
        .filter(|metric| !(metric.read)(&Figures::default()).is_empty())
        .map(|metric| metric.name)
        .collect();
    assert!(sent.is_empty(), "{sent:?}");
    assert!(NETWORK.iter().all(|metric| (metric.read)(&[]).is_empty()));
}

/// STA-22.
#[test]
fn times_are_whole_seconds() {
    let figures = Figures {
        details: Details { user_ns: Some(2_999_999_999), ..Details::default() },
        started_at: 1_700_000_000_123_456_789,
        ..Figures::default()
    };
    assert_eq!(number(&figures, "container_cpu_user_seconds_total"), Some(2));
    assert_eq!(number(&figures, "container_start_time_seconds"), Some(1_700_000_000));
}

#[test]
fn no_limit_is_no_value() {
    let mut figures = Figures::default();
    figures.limits.cpu_quota = -1;
    figures.limits.cpu_shares = 102;
    assert_eq!(number(&figures, "container_spec_cpu_quota"), None);
    assert_eq!(number(&figures, "container_spec_cpu_shares"), Some(102));
}

#[test]
fn what_was_written_has_the_time_of_the_look() {
    let disk = FileSystem { device: "/dev/vda".into(), bytes: 100, inodes: 10, inodes_free: 5 };
    let figures = Figures {
        file_system: Some(disk),
        written: Some(Written { bytes: 7, timestamp: 42 }),
        ..Figures::default()
    };
    let value = Value { labels: vec!["/dev/vda".into()], number: 7, timestamp: 42 };
    assert_eq!(written(&figures), [value]);
    assert_eq!(number(&figures, "container_fs_inodes_free"), Some(5));
}

#[test]
fn operations_are_counted_for_each_device() {
    let table = |reads, writes| [("Read".to_owned(), reads), ("Write".to_owned(), writes)].into();
    let disk = DeviceIo { major: 254, minor: 0, bytes: table(1, 2), operations: table(3, 4) };
    let figures = Figures { disks: vec![("/dev/vda".into(), disk)], ..Figures::default() };
    let device = || vec!["/dev/vda".to_owned()];
    assert_eq!(values(&figures, "container_fs_reads_bytes_total"), [(device(), 1)]);
    assert_eq!(values(&figures, "container_fs_writes_total"), [(device(), 4)]);
    let operation = |name: &str| ["/dev/vda", "254", "0", name].map(str::to_owned).to_vec();
    assert_eq!(
        values(&figures, "container_blkio_device_usage_total"),
        [(operation("Read"), 1), (operation("Write"), 2)]
    );
}
