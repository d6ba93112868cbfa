//! A call and what it caused, as it is kept and as it travels: one line of JSON a call.

use serde::{Deserialize, Serialize};

/// A call, from its arrival to the end of all that it caused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Story {
    /// The call's own id: six hexadecimal digits.
    pub id: String,
    /// The id that its error carries, which equal failures of one object share; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure: String,
    /// The CRI's method; in brackets what the server did by itself.
    pub method: String,
    /// When it came: microseconds since the epoch.
    pub at_us: u64,
    /// When it was answered, from its arrival on; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub us: Option<u64>,
    /// The gRPC code of the answer; empty while it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The message of an error.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// What it is about.
    #[serde(flatten)]
    pub about: About,
    /// The request as JSON; secrets stand as `<masked>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// What was done, in the order in which it began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Steps that there was no room for.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u32,
}

/// What a call is about, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// What the request names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// `namespace/name`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The pod's id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_id: String,
    /// The container's name in its pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The container's id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
}

/// Something that was done for a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// For which step: its place in the list, counted from 1; 0 is the call itself.
    #[serde(skip_serializing_if = "is_zero")]
    pub parent: u32,
    /// stage, containerd, cni, keeper, file, …
    pub kind: String,
    /// Which.
    pub name: String,
    /// On what: `key=value …`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub args: String,
    /// When it began, from the call's arrival on.
    pub at_us: u64,
    /// How long it took; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub us: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Longer texts: what a plugin read and wrote.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Story {
    /// The end of everything: of the answer, and of what went on after it.
    #[must_use]
    pub fn end_us(&self) -> u64 {
        let steps = self.steps.iter().map(|step| step.at_us + step.us.unwrap_or(0));
        steps.chain(self.us).max().unwrap_or(0)
    }

    /// Whether the client got an error, or none of it any more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        !self.code.is_empty() && self.code != "OK"
    }

    /// How much of the time up to the answer belongs to a step, in microseconds.
    #[must_use]
    pub fn accounted_us(&self) -> u64 {
        let end = self.us.unwrap_or_else(|| self.end_us());
        let mut spans: Vec<(u64, u64)> = self
            .steps
            .iter()
            .map(|step| (step.at_us.min(end), (step.at_us + step.us.unwrap_or(end)).min(end)))
            .collect();
        spans.sort_unstable();
        let (mut sum, mut until) = (0, 0);
        for (from, to) in spans {
            sum += to.saturating_sub(from.max(until));
            until = until.max(to);
        }
        sum
    }

    /// The step that goes on now, and since when: the innermost of those that began last.
    #[must_use]
    pub fn present(&self) -> Option<&Step> {
        self.steps.iter().rev().find(|step| step.us.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(at_us: u64, us: u64) -> Step {
        Step { at_us, us: Some(us), ..Step::default() }
    }

    #[test]
    fn time_is_counted_once_however_many_steps_share_it() {
        let steps = vec![step(10, 20), step(15, 5), step(25, 15), step(90, 100)];
        let story = Story { us: Some(100), steps, ..Story::default() };
        assert_eq!(story.accounted_us(), 30 + 10);
        assert_eq!(story.end_us(), 190);
    }

    #[test]
    fn what_is_empty_is_left_out_and_read_as_empty() {
        let story = Story { id: "00000a".into(), method: "Version".into(), ..Story::default() };
        let json = serde_json::to_string(&story).expect("it serialises");
        assert_eq!(json, r#"{"id":"00000a","method":"Version","at_us":0}"#);
        assert_eq!(serde_json::from_str::<Story>(&json).expect("it parses"), story);
    }
}
