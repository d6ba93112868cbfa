//! Calls as a timeline: the JSON of Chrome's trace viewer, which Perfetto reads, too.
//!
//! A call is a process there, and a lane in it a thread: what ran at the same time is side
//! by side, what was done for another step below it.

use serde_json::{Value, json};

use super::story::{Step, Story};

/// Calls on their way to a timeline.
#[derive(Default)]
pub struct Chrome {
    events: Vec<Value>,
    calls: usize,
}

impl Chrome {
    /// Adds a call.
    pub fn add(&mut self, story: &Story) {
        self.calls += 1;
        let pid = self.calls;
        let about = &story.about;
        let object = if about.pod.is_empty() { &about.object } else { &about.pod };
        let name = format!("{} {object} [{}]", story.method, story.id);
        self.events.push(json!({
            "ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name.as_str()},
        }));
        let end = story.end_us();
        let mut args =
            json!({"code": story.code, "pod_id": about.pod_id, "container_id": about.container_id});
        if !story.error.is_empty() {
            args["error"] = story.error.as_str().into();
        }
        self.events.push(event(pid, 0, "cri", &story.method, (story.at_us, end), args));
        for (step, lane) in story.steps.iter().zip(lanes(story, end)) {
            let name =
                if step.kind == "stage" { &step.name } else { &format!("{} {}", step.kind, step.name) };
            let mut args = json!({"args": step.args});
            if !step.error.is_empty() {
                args["error"] = step.error.as_str().into();
            }
            for (key, text) in &step.notes {
                args[key] = text.as_str().into();
            }
            let (from, to) = range(step, end);
            let time = (story.at_us + from, to - from);
            self.events.push(event(pid, lane, &step.kind, name, time, args));
        }
    }

    /// The whole.
    #[must_use]
    pub fn finish(self) -> Value {
        json!({"displayTimeUnit": "ms", "traceEvents": self.events})
    }
}

fn event(pid: usize, lane: usize, kind: &str, name: &str, (at, us): (u64, u64), args: Value) -> Value {
    json!({
        "ph": "X", "pid": pid, "tid": lane, "cat": kind, "name": name, "ts": at, "dur": us, "args": args,
    })
}

fn range(step: &Step, end: u64) -> (u64, u64) {
    (step.at_us, step.us.map_or(end.max(step.at_us), |us| step.at_us + us))
}

/// The lane of each step: that of the step that it was done for, where it lies within all
/// that are there at that time; else the next in which it does.
fn lanes(story: &Story, end: u64) -> Vec<usize> {
    let mut lanes: Vec<Vec<(u64, u64)>> = vec![vec![(0, end)]];
    let mut chosen: Vec<usize> = Vec::with_capacity(story.steps.len());
    for step in &story.steps {
        let (from, to) = range(step, end);
        let fits = |lane: &[(u64, u64)]| {
            lane.iter().all(|&(begin, end)| to <= begin || end <= from || (begin <= from && to <= end))
        };
        let above = (step.parent as usize).checked_sub(1).and_then(|at| chosen.get(at)).copied().unwrap_or(0);
        let lane = (above..lanes.len()).find(|&lane| fits(&lanes[lane])).unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(Vec::new());
        }
        lanes[lane].push((from, to));
        chosen.push(lane);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_at_the_same_time_is_in_other_lanes() {
        let step = |parent, at_us, us| Step { parent, at_us, us: Some(us), ..Step::default() };
        // The second is within the first; the third overlaps; the fourth comes behind.
        let steps = vec![step(0, 0, 10), step(1, 2, 3), step(0, 4, 10), step(3, 5, 5), step(0, 20, 5)];
        let story = Story { us: Some(30), steps, ..Story::default() };
        assert_eq!(lanes(&story, 30), [0, 0, 1, 1, 0]);
    }

    #[test]
    fn every_event_has_what_the_format_wants() {
        let steps = vec![
            Step {
                kind: "cni".into(),
                name: "ADD bridge".into(),
                at_us: 5,
                us: Some(10),
                error: "no".into(),
                notes: vec![("stderr".into(), "boom".into())],
                ..Step::default()
            },
            Step { kind: "stage".into(), name: "open".into(), at_us: 6, ..Step::default() },
        ];
        let story = Story {
            id: "00000a".into(),
            method: "X".into(),
            at_us: 1000,
            us: Some(20),
            steps,
            ..Story::default()
        };
        let mut chrome = Chrome::default();
        chrome.add(&story);
        let whole = chrome.finish();
        let events = whole["traceEvents"].as_array().expect("a list");
        assert_eq!(events.len(), 4);
        for event in &events[1..] {
            assert_eq!(event["ph"], "X");
            for number in ["ts", "dur", "pid", "tid"] {
                assert!(event[number].is_u64(), "{number} in {event}");
            }
            assert!(event["name"].is_string());
        }
        assert_eq!((&events[2]["ts"], &events[2]["args"]["stderr"]), (&json!(1005), &json!("boom")));
        assert_eq!((&events[3]["dur"], &events[3]["name"]), (&json!(14), &json!("open")));
    }
}
