use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::error::unknown;
use crate::sys::usage::Usage;
use crate::telemetry::snapshot::LogTotals;

/// What the text says of a sample.
fn sample<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// Meters of which every one has counted something.
fn all() -> (Meters, Snapshot) {
    let meters = Meters::default();
    meters.cri_call("Version").end(Code::NotFound);
    meters.containerd_call("Tasks.Create").end(Code::Unknown);
    meters.cni_plugin("bridge", "ADD").end_as(Some(Kind::DeadlineExceeded));
    meters.stages.begin([("stage", "netns")]).end_as(Some(Kind::Unknown));
    meters.pull().end_as(Some(Kind::NotFound));
    meters.pull_received(7);
    meters.events_lost(3);
    meters.repaired("exit");
    let usage = Usage { open_fds: 10, max_fds: 1024, resident_bytes: 4096, ..Default::default() };
    let snapshot = Snapshot {
        pods: vec![("ready", 2), ("notready", 0)],
        containers: vec![("running", 5)],
        images: 4,
        is_connected: true,
        subscribers: 1,
        logs: Some(LogTotals { written_bytes: 100, lost_entries: 2, lost_bytes: 20, write_errors: 1 }),
        processes: vec![("server", usage), ("keeper", usage)],
    };
    (meters, snapshot)
}

#[test]
fn calls_are_timed_and_failures_counted_by_code() {
    let (meters, snapshot) = all();
    meters.cri_call("RunPodSandbox").end(Code::Ok);
    drop(meters.cri_call("RunPodSandbox"));
    let waiting = meters.containerd_call("Tasks.Wait");
    let text = meters.text(&snapshot);
    for (name, value) in [
        ("longshore_cri_call_duration_seconds_count{method=\"Version\"}", "1"),
        ("longshore_cri_call_duration_seconds_count{method=\"RunPodSandbox\"}", "2"),
        ("longshore_cri_call_errors_total{method=\"Version\",code=\"NotFound\"}", "1"),
        ("longshore_cri_call_errors_total{method=\"RunPodSandbox\",code=\"Canceled\"}", "1"),
        ("longshore_cri_calls_running", "0"),
        ("longshore_containerd_calls_running", "1"),
        ("longshore_containerd_call_errors_total{service=\"Tasks\",method=\"Create\",code=\"Unknown\"}", "1"),
        ("longshore_cni_plugin_duration_seconds_count{plugin=\"bridge\",command=\"ADD\"}", "1"),
        ("longshore_image_pull_received_bytes_total", "7"),
        ("longshore_image_pull_duration_seconds_count{}", "1"),
        ("longshore_image_pull_errors_total{code=\"NotFound\"}", "1"),
        ("longshore_events_lost_total", "3"),
        ("longshore_repairs_total{kind=\"exit\"}", "1"),
        ("longshore_pods{state=\"ready\"}", "2"),
        ("longshore_log_written_bytes_total", "100"),
        ("longshore_process_open_fds{process=\"keeper\"}", "10"),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name} in\n{text}");
    }
    assert!(!text.contains("code=\"OK\""), "{text}");
    assert!(text.ends_with("# EOF\n"));
    drop(waiting);
}

#[tokio::test]
async fn stages_count_what_they_give_on() {
    let meters = Meters::default();
    assert_eq!(meters.pod_stage("netns", async { Ok(7) }).await, Ok(7));
    assert!(meters.pod_stage("network", async { Err::<(), _>(unknown("no")) }).await.is_err());
    let text = meters.text(&Snapshot::default());
    let count = |name: &str| sample(&text, name);
    assert_eq!(count("longshore_pod_start_stage_duration_seconds_count{stage=\"netns\"}"), Some("1"));
    let failed = "longshore_pod_start_stage_errors_total{stage=\"network\",code=\"Unknown\"}";
    assert_eq!(count(failed), Some("1"), "{text}");
}

#[test]
fn what_is_gone_is_not_shown_any_more_and_what_a_dead_keeper_counted_stays() {
    let (meters, snapshot) = all();
    assert!(meters.text(&snapshot).contains("process=\"keeper\""));
    let text = meters.text(&Snapshot { logs: None, processes: Vec::new(), ..snapshot });
    assert!(!text.contains("process=\""), "{text}");
    assert_eq!(sample(&text, "longshore_log_lost_bytes_total"), Some("20"));
}

#[test]
fn plugins_have_few_labels_whatever_they_are_called() {
    let meters = Meters::default();
    for number in 0..3 * PLUGINS_MAX {
        meters.cni_plugin(&format!("p{number}"), "ADD").end(Code::Ok);
    }
    let text = meters.text(&Snapshot::default());
    let count = text.matches("longshore_cni_plugin_duration_seconds_count{").count();
    assert_eq!(count, PLUGINS_MAX + 1);
    let others = (2 * PLUGINS_MAX).to_string();
    let name = "longshore_cni_plugin_duration_seconds_count{plugin=\"other\",command=\"ADD\"}";
    assert_eq!(sample(&text, name), Some(others.as_str()));
}

#[test]
fn every_code_has_a_name() {
    let names: BTreeSet<_> = (0..=16).map(|code| name_of(Code::from_i32(code))).collect();
    assert_eq!(names.len(), 17);
}

/// Types and labels of the metrics by name, of the text that Prometheus reads.
fn served(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut metrics: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').expect("a type");
            let end = if kind == "counter" { "_total" } else { "" };
            metrics.insert(format!("{name}{end}"), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a value"));
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |it| it.0);
            let labels =
                labels.split(',').filter_map(|label| label.split_once('=')).map(|it| it.0.to_owned());
            let known = &mut metrics.get_mut(name).expect("a type before the samples").1;
            known.extend(labels.filter(|label| label != "le"));
        }
    }
    metrics
}

/// The table of docs/metrics.md is what there is.
#[test]
fn the_document_lists_every_metric() {
    let (meters, snapshot) = all();
    let mut served = served(&meters.text(&snapshot));
    let document = include_str!("../../../docs/metrics.md");
    for line in document.lines().filter(|line| line.starts_with("| `longshore_")) {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let mut cell = || cells.next().expect("four cells").to_owned();
        let (name, kind, labels, meaning) = (cell(), cell(), cell(), cell());
        let name = name.trim_matches('`').to_owned();
        let (served_kind, served_labels) =
            served.remove(&name).unwrap_or_else(|| panic!("{name} is not served"));
        assert_eq!(kind, served_kind, "{name}");
        let labels: BTreeSet<String> = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|it| !it.is_empty())
            .collect();
        assert_eq!(labels, served_labels, "{name}");
        assert!(meaning.len() > 10, "{name}: {meaning:?}");
    }
    assert!(served.is_empty(), "not in docs/metrics.md: {served:?}");
}
