//! The dashboard (deploy/grafana-dashboard.json) draws metrics that there are, and all of
//! them but those that are left out on purpose. Which there are says docs/metrics.md; that
//! the code has exactly these, and a running server serves them, other tests say
//! (src/telemetry/meters/tests.rs, tests/e2e/telemetry.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// Metrics that the dashboard does not draw: it says more how long the plugins run, and a
/// plugin that hangs is killed.
const NOT_DRAWN: [&str; 1] = ["longshore_cni_plugins_running"];

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["instance", "le"];

/// A metric of docs/metrics.md.
struct Metric {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

fn metrics() -> Vec<Metric> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `longshore_"));
    let metrics: Vec<Metric> = rows
        .map(|row| {
            let cells: Vec<String> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
            let labels = cells[3].split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect();
            Metric { name: cells[1].clone(), kind: cells[2].clone(), labels }
        })
        .collect();
    assert!(metrics.len() > 20, "{} metrics", metrics.len());
    metrics
}

/// Names of samples, with the metric that each belongs to.
fn samples(metrics: &[Metric]) -> BTreeMap<String, &Metric> {
    let mut samples = BTreeMap::new();
    for metric in metrics {
        let ends: &[&str] = if metric.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        samples.extend(ends.iter().map(|end| (format!("{}{end}", metric.name), metric)));
    }
    samples
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// All values under `key`, however deep.
fn found<'a>(value: &'a Value, key: &str, to: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                match inner.as_str() {
                    Some(text) if name == key => to.push(text),
                    _ => found(inner, key, to),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| found(inner, key, to)),
        _ => {}
    }
}

/// The words of an expression that are names.
fn names(expression: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    expression
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

/// The labels that an expression selects or sums by.
fn labels_in(expression: &str) -> BTreeSet<&str> {
    let mut labels = BTreeSet::new();
    for (begin, end) in [("by (", ')'), ("{", '}')] {
        for part in expression.split(begin).skip(1) {
            let inside = part.split(end).next().unwrap_or_default();
            labels
                .extend(inside.split(',').map(|one| one.split(['=', '!']).next().unwrap_or_default().trim()));
        }
    }
    labels
}

#[test]
fn the_dashboard_draws_what_there_is_and_leaves_nothing_out_by_mistake() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).expect("JSON");
    let all = metrics();
    let samples = samples(&all);
    let mut expressions = Vec::new();
    found(&dashboard["panels"], "expr", &mut expressions);
    assert!(expressions.len() > 30, "{} expressions", expressions.len());
    let mut drawn = BTreeSet::new();
    for expression in expressions {
        let metrics: Vec<&Metric> = names(expression)
            .into_iter()
            .filter(|name| name.starts_with("longshore_"))
            .map(|name| *samples.get(name).unwrap_or_else(|| panic!("{name} is not served: {expression}")))
            .collect();
        assert!(!metrics.is_empty(), "{expression}");
        for label in labels_in(expression) {
            let is_there = metrics.iter().all(|metric| metric.labels.contains(label));
            assert!(is_there || ADDED.contains(&label), "{label:?}: {expression}");
        }
        // A counter is of use only by how it grows.
        for Metric { name, .. } in metrics.iter().filter(|metric| metric.kind == "counter") {
            let grows =
                ["rate(", "increase("].iter().any(|call| expression.contains(&format!("{call}{name}")));
            assert!(grows, "{expression}");
        }
        drawn.extend(metrics.iter().map(|metric| metric.name.as_str()));
    }
    let all: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
    let left_out: BTreeSet<&str> = all.difference(&drawn).copied().collect();
    assert_eq!(left_out, BTreeSet::from(NOT_DRAWN));
}

#[test]
fn panels_are_whole_and_have_names_of_their_own() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        let place = &panel["gridPos"];
        assert!(places.insert((place["y"].as_u64(), place["x"].as_u64())), "{panel}");
        let (x, w) = (place["x"].as_u64().expect("a place"), place["w"].as_u64().expect("a width"));
        assert!(x + w <= 24, "{panel}");
        if panel["type"] != "row" {
            assert!(panel["title"].is_string() && panel["description"].is_string(), "{panel}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: Vec<_> = variables.iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "instance"]);
}
