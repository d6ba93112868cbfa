//! `longshore diff`: the spec of a container as it was made, beside the one that would be made
//! of the same requests now.
//!
//! The container may be longshore's, of an older version or another configuration, or one of
//! containerd's own plugin. Places are compared by what they mean, as [`super::leaves`] has
//! them; that only an order differs is said apart.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::leaves::Leaves;
use super::node::Node;
use super::origins::Origin;
use super::recorded::value;
use super::source::{Source, line};
use super::{Explained, explain};
use crate::error::Result;
use crate::spec;

/// What differs.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Where: a JSON pointer, in the spec that has it.
    pub pointer: String,
    /// As it was made; none where it was not.
    pub made: Option<Value>,
    /// As it would be made now; none where it would not.
    pub now: Option<Value>,
    /// Where that comes from.
    pub sources: Vec<Source>,
}

/// Two specs side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The container's or pod's id.
    pub id: String,
    /// What could not be looked at.
    pub said: Vec<String>,
    /// What differs, in the order of the spec.
    pub differences: Vec<Difference>,
    /// The JSON of both is the same, to the byte.
    pub is_identical: bool,
}

/// Compares the spec of a container or pod with the one that would be made now.
///
/// # Errors
/// Those of [`Node::recorded`] and [`explain`].
pub async fn diff(node: &mut Node, id: &str) -> Result<Comparison> {
    let recorded = node.recorded(id).await?;
    let explanation = explain(node, &recorded.requests, &recorded.ids).await?;
    let explained = explanation.containers.first().or(explanation.pod.as_ref());
    let Some(Explained { spec, origins, .. }) = explained else {
        return Err(crate::error::internal("a record without a request"));
    };
    let now = spec::to_json(spec);
    let differences = differences(&value(&recorded.spec)?, &value(&now)?, origins);
    let is_identical = now == recorded.spec;
    Ok(Comparison { id: recorded.id, said: explanation.said, differences, is_identical })
}

/// What differs between two specs.
#[must_use]
pub fn differences(made: &Value, now: &Value, origins: &[Origin]) -> Vec<Difference> {
    let (made, now) = (Leaves::of(made), Leaves::of(now));
    let mut found = Vec::new();
    let mut done = BTreeSet::new();
    for leaf in now.iter().chain(made.iter()) {
        let (before, after) = (made.get(&leaf.key), now.get(&leaf.key));
        if before == after || !done.insert(leaf.key.as_str()) {
            continue;
        }
        let origin = origins.iter().find(|origin| after.is_some() && origin.pointer == leaf.pointer);
        found.push(Difference {
            pointer: leaf.pointer.clone(),
            made: before.cloned(),
            now: after.cloned(),
            sources: origin.map(|origin| origin.sources.clone()).unwrap_or_default(),
        });
    }
    found
}

impl Comparison {
    /// The text for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, here and below.
        for said in &self.said {
            let _ = writeln!(text, "note: {said}");
        }
        let id = &self.id;
        let _ = match (self.differences.len(), self.is_identical) {
            (0, true) => writeln!(text, "{id}: the spec is the one that would be made now, to the byte"),
            (0, false) => writeln!(
                text,
                "{id}: the spec says what the one that would be made now says, in another order or form"
            ),
            (count, _) => {
                let word = if count == 1 { "difference" } else { "differences" };
                writeln!(text, "{id}: {count} {word} (- as it was made, + as it would be made now)")
            }
        };
        let shown = |value: &Value| {
            let text = value.to_string();
            if text.chars().count() > 200 {
                text.chars().take(200).chain("…".chars()).collect()
            } else {
                text
            }
        };
        for Difference { pointer, made, now, sources } in &self.differences {
            let _ = writeln!(text, "{pointer}");
            if let Some(made) = made {
                let _ = writeln!(text, "  - {}", shown(made));
            }
            if let Some(now) = now {
                let _ = writeln!(text, "  + {}  # {}", shown(now), line(sources));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_are_compared_by_what_they_mean() {
        let made =
            json!({"process": {"env": ["A=1", "B=2"]}, "mounts": [{"destination": "/a", "options": ["ro"]}]});
        let now =
            json!({"process": {"env": ["B=2", "A=3"]}, "mounts": [{"destination": "/a", "options": ["rw"]}]});
        let origins = [Origin {
            pointer: "/process/env/1".into(),
            value: "A=3".into(),
            sources: vec![Source::Container("envs[A]".into())],
        }];
        let found: Vec<(String, Option<Value>, Option<Value>)> = differences(&made, &now, &origins)
            .into_iter()
            .map(|difference| (difference.pointer, difference.made, difference.now))
            .collect();
        assert_eq!(
            found,
            [
                ("/mounts/0/options/0".into(), None, Some(json!("rw"))),
                ("/process/env/1".into(), Some(json!("A=1")), Some(json!("A=3"))),
                ("/mounts/0/options/0".into(), Some(json!("ro")), None),
            ]
        );
        assert_eq!(differences(&made, &now, &origins)[1].sources, origins[0].sources);
        assert!(differences(&now, &now, &origins).is_empty());
    }
}
