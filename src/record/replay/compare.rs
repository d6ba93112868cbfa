//! Two answers beside each other: what must be equal, once ids are translated and what no two
//! servers have in common is left out.
//!
//! | left out | |
//! |---|---|
//! | times | only whether they are set |
//! | addresses, mount points, URLs, figures | only whether they are there |
//! | what servers know of a container only after a while: writable layer, cores in use | wholly |
//! | server's name and version, verbose `info`, messages for people | wholly |
//! | metrics and their descriptors | but for their names |
//! | pods and containers from before, images that the record does not pull | wholly, of lists |
//!
//! Lists whose members have a name or id have no order.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::plan::Ids;
use crate::proto::schema::{Kind, SCHEMA, Type};
use crate::trace::mask::MASKED;

/// A figure of two servers that look at the same things.
const FIGURE: &str = "<figure>";
/// Figures of two moments differ: by so much, or by less than half, says nothing.
const FIGURE_SLACK: u64 = 16 << 20;

/// Where two answers differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The way to the field.
    pub path: String,
    /// What the record has there; nothing where it has no such field.
    pub recorded: Json,
    /// What the target answered.
    pub replayed: Json,
}

/// Whose answer it is, and what it knows.
pub(in crate::record) enum Side<'a> {
    /// The record's, with pods and containers from before it.
    Record(&'a Ids, &'a BTreeSet<String>),
    /// The target's, with pods and containers from before the replay.
    Target(&'a Ids, &'a BTreeSet<String>),
    /// One of two servers that look at the same things: ids, times and addresses are the same.
    Shared,
}

impl Side<'_> {
    /// Figures are compared, roughly.
    fn is_shared(&self) -> bool {
        matches!(self, Side::Shared)
    }

    /// A text as the target would have it.
    fn text(&self, text: &str) -> String {
        match self {
            Side::Record(ids, _) => ids.of(text).unwrap_or(text).to_owned(),
            Side::Target(..) | Side::Shared => text.to_owned(),
        }
    }

    /// Whether the member of a list with this id is none of the record's business.
    fn is_foreign(&self, kind: &Type, id: &str) -> bool {
        let is_image = kind.name == ".runtime.v1.Image";
        match self {
            Side::Record(ids, _) if is_image => ids.of(id).is_none(),
            Side::Target(ids, _) if is_image => !ids.has(id),
            Side::Record(_, before) | Side::Target(_, before) => before.contains(id),
            Side::Shared => false,
        }
    }
}

/// A message of the type `name`, with everything left out that need not be equal.
pub(in crate::record) fn normal(name: &str, message: &Json, side: &Side<'_>) -> Json {
    match SCHEMA.messages.get(name) {
        Some(kind) => normal_message(kind, message, side),
        None => message.clone(),
    }
}

fn normal_message(kind: &Type, message: &Json, side: &Side<'_>) -> Json {
    let Json::Object(object) = message else { return message.clone() };
    match kind.name.trim_start_matches(".runtime.v1.") {
        "UInt64Value" if side.is_shared() => {
            return Json::Object(
                [(FIGURE.to_owned(), object.get("value").cloned().unwrap_or(0.into()))].into_iter().collect(),
            );
        }
        "UInt64Value" | "PsiStats" => return "<figure>".into(),
        "Metric" | "MetricDescriptor" => return object.get("name").cloned().unwrap_or_default(),
        _ => {}
    }
    let mut left = Map::new();
    for (name, value) in object {
        let field = kind.fields.values().find(|field| field.name == *name);
        // What the schema does not know is told by numbers, which say nothing.
        let Some(field) = field else { continue };
        let value = match (kind.name.trim_start_matches(".runtime.v1."), name.as_str()) {
            (_, "info") | ("VersionResponse", "runtime_name" | "runtime_version") => continue,
            (_, "timestamp") => "<time>".into(),
            (_, "writable_layer" | "usage_nano_cores") => continue,
            ("RuntimeCondition", "reason" | "message") | ("ContainerStatus", "message") => continue,
            (_, "created_at" | "started_at" | "finished_at") if !side.is_shared() => "<time>".into(),
            (_, "ip") if !side.is_shared() => "<address>".into(),
            (_, "mountpoint") if !side.is_shared() => "<path>".into(),
            (_, "url") => "<url>".into(),
            (_, "repo_tags" | "repo_digests") => sorted(value),
            _ => match (SCHEMA.inner(field), value) {
                (Some(inner), Json::Array(list)) => members(inner, list, side),
                (Some(inner), value) if !inner.is_map_entry => normal_message(inner, value, side),
                _ => normal_value(&field.kind, value, side),
            },
        };
        left.insert(name.clone(), value);
    }
    Json::Object(left)
}

fn normal_value(kind: &Kind, value: &Json, side: &Side<'_>) -> Json {
    match value {
        Json::String(text) if *kind == Kind::Text => side.text(text).into(),
        Json::Array(list) => list.iter().map(|value| normal_value(kind, value, side)).collect(),
        other => other.clone(),
    }
}

fn sorted(value: &Json) -> Json {
    let mut texts: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    texts.sort_unstable();
    texts.into()
}

/// A list of messages; by what names them, where something does.
fn members(kind: &Type, list: &[Json], side: &Side<'_>) -> Json {
    if list.iter().all(|member| identity(kind, member).is_some()) && !list.is_empty() {
        let mut named = Map::new();
        for member in list {
            let id = identity(kind, member).unwrap_or_default();
            if side.is_foreign(kind, id) {
                continue;
            }
            // A name twice is no name, but then both sides should have it.
            let (mut name, mut again) = (side.text(id), 1);
            while named.contains_key(&name) {
                again += 1;
                name = format!("{}#{again}", side.text(id));
            }
            named.insert(name, normal_message(kind, member, side));
        }
        return Json::Object(named);
    }
    let mut plain: Vec<Json> = list.iter().map(|member| normal_message(kind, member, side)).collect();
    if kind.name.ends_with("Metric") || kind.name.ends_with("MetricDescriptor") {
        plain.sort_by_key(Json::to_string);
        plain.dedup();
    }
    plain.into()
}

fn identity<'a>(kind: &Type, member: &'a Json) -> Option<&'a str> {
    if kind.name == ".runtime.v1.RuntimeHandler" {
        // The default one has no name.
        return Some(member.get("name").and_then(Json::as_str).unwrap_or("(default)"));
    }
    let attributes = member.get("attributes").and_then(|attributes| attributes.get("id"));
    let named = ["id", "container_id", "pod_sandbox_id", "type"].iter().find_map(|key| member.get(*key));
    attributes.or(named).and_then(Json::as_str)
}

/// Where two messages of [`normal`] differ.
pub(in crate::record) fn differences(recorded: &Json, replayed: &Json) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", recorded, replayed, &mut found);
    found
}

fn compare(path: &str, recorded: &Json, replayed: &Json, found: &mut Vec<Difference>) {
    match (recorded, replayed) {
        // What is masked, nobody knows.
        (Json::String(text), other) if text == MASKED && !other.is_null() => {}
        (Json::Object(a), Json::Object(b)) if figure(a).is_some() && figure(b).is_some() => {
            let (a, b) = (figure(a).unwrap_or(0), figure(b).unwrap_or(0));
            if a.abs_diff(b) > FIGURE_SLACK && a.abs_diff(b) > a.max(b) / 2 {
                found.push(Difference { path: path.to_owned(), recorded: a.into(), replayed: b.into() });
            }
        }
        (Json::Object(a), Json::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let nothing = Json::Null;
                let (a, b) = (a.get(name).unwrap_or(&nothing), b.get(name).unwrap_or(&nothing));
                compare(&below(path, name), a, b, found);
            }
        }
        (Json::Array(a), Json::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{index}]"), a, b, found);
            }
        }
        // A list of which all is left out, or which is empty, is not sent.
        (Json::Object(map), Json::Null) | (Json::Null, Json::Object(map)) if map.is_empty() => {}
        (a, b) if a == b => {}
        (a, b) => found.push(Difference { path: path.to_owned(), recorded: a.clone(), replayed: b.clone() }),
    }
}

fn figure(map: &Map<String, Json>) -> Option<u64> {
    map.get(FIGURE)?.as_u64()
}

/// Names that are no names of fields are told in brackets, ids by their beginning.
fn below(path: &str, name: &str) -> String {
    let is_field = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.len() < 40;
    let dot = if path.is_empty() { "" } else { "." };
    match is_field {
        true => format!("{path}{dot}{name}"),
        false => format!("{path}[{}]", name.get(..13).filter(|_| name.len() == 64).unwrap_or(name)),
    }
}

/// A path without the names in brackets: where such differences are.
pub(in crate::record) fn place(path: &str) -> String {
    let mut depth = 0;
    let mut place = String::new();
    for c in path.chars() {
        depth += i32::from(c == '[');
        if depth == 0 {
            place.push(c);
        }
        depth -= i32::from(c == ']');
    }
    place
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compared(name: &str, recorded: Json, replayed: Json) -> Vec<(String, Json, Json)> {
        let mut ids = Ids::default();
        ids.made("r-pod", "t-pod");
        ids.made("r-two", "t-two");
        ids.made("sha256:r", "sha256:t");
        let (before, there) = (["r-old".to_owned()].into(), ["t-old".to_owned()].into());
        let name = format!(".runtime.v1.{name}");
        let recorded = normal(&name, &recorded, &Side::Record(&ids, &before));
        let replayed = normal(&name, &replayed, &Side::Target(&ids, &there));
        let found = differences(&recorded, &replayed);
        found.into_iter().map(|found| (found.path, found.recorded, found.replayed)).collect()
    }

    #[test]
    fn ids_times_and_addresses_may_differ_and_states_may_not() {
        let status = |id: &str, ip: &str, at: u64, state: &str| {
            json!({"status": {"id": id, "network": {"ip": ip}, "created_at": at, "state": state,
                   "labels": {"a": "b"}}, "info": {"x": id}})
        };
        let same = compared(
            "PodSandboxStatusResponse",
            status("r-pod", "10.0.0.1", 1, "SANDBOX_READY"),
            status("t-pod", "10.9.9.9", 2, "SANDBOX_READY"),
        );
        assert_eq!(same, []);
        let other = compared(
            "PodSandboxStatusResponse",
            status("r-pod", "10.0.0.1", 1, "SANDBOX_READY"),
            status("t-two", "10.0.0.1", 1, "SANDBOX_NOTREADY"),
        );
        assert_eq!(
            other,
            [
                ("status.id".into(), json!("t-pod"), json!("t-two")),
                ("status.state".into(), json!("SANDBOX_READY"), json!("SANDBOX_NOTREADY")),
            ]
        );
    }

    #[test]
    fn lists_have_no_order_and_what_was_there_before_is_not_in_them() {
        let list = |ids: &[&str]| {
            let items: Vec<Json> = ids.iter().map(|id| json!({"id": id})).collect();
            json!({ "items": items })
        };
        let name = "ListPodSandboxResponse";
        assert_eq!(
            compared(name, list(&["r-pod", "r-two", "r-old"]), list(&["t-two", "t-pod", "t-old"])),
            []
        );
        assert_eq!(compared(name, list(&["r-old"]), json!({})), []);
        let missing = compared(name, list(&["r-pod"]), list(&["t-two"]));
        assert_eq!(missing.len(), 2);
        assert_eq!(missing[0], ("items[t-pod]".into(), json!({"id": "t-pod"}), json!(null)));
        let images = |id: &str, others: &str| json!({"images": [{"id": id, "repo_tags": ["b", "a"], "size": 7}, {"id": others}]});
        assert_eq!(compared("ListImagesResponse", images("sha256:r", "x"), images("sha256:t", "y")), []);
    }

    #[test]
    fn figures_must_be_there_and_need_not_be_equal() {
        let stats = |memory: Json| json!({"stats": {"attributes": {"id": "same"}, "memory": {"timestamp": 4, "usage_bytes": memory}}});
        let name = "ContainerStatsResponse";
        assert_eq!(compared(name, stats(json!({"value": 7})), stats(json!({}))), []);
        let absent =
            compared(name, stats(json!({"value": 7})), json!({"stats": {"attributes": {"id": "same"}}}));
        assert_eq!(absent[0].0, "stats.memory");
        let metrics = |names: &[&str]| {
            let metrics: Vec<Json> = names.iter().map(|name| json!({"name": name, "timestamp": 3})).collect();
            json!({"pod_metrics": [{"pod_sandbox_id": "same", "metrics": metrics}]})
        };
        let name = "ListPodSandboxMetricsResponse";
        assert_eq!(compared(name, metrics(&["b", "a", "b"]), metrics(&["a", "b"])), []);
    }

    #[test]
    fn what_is_masked_is_not_compared() {
        let name = "ExecSyncResponse";
        assert_eq!(compared(name, json!({"stdout": MASKED}), json!({"stdout": "hello"})), []);
        assert_eq!(compared(name, json!({"stdout": MASKED}), json!({})).len(), 1);
        assert_eq!(compared(name, json!({"stdout": "a"}), json!({"stdout": "b"})).len(), 1);
    }

    #[test]
    fn places_have_no_names() {
        assert_eq!(place("items[t-pod].labels[a.b/c].x"), "items.labels.x");
    }
}
