//! What there is, and what goes on now: for `longshore ps` and `longshore top`.

use serde::{Deserialize, Serialize};

use crate::image::PullState;
use crate::pod::Pods;
use crate::proto::cri::ContainerState;
use crate::state::container::now;
use crate::trace::{self, Story};

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// The pods, by name.
    pub pods: Vec<PodLine>,
    /// The containers, by pod and name.
    pub containers: Vec<ContainerLine>,
    /// The pulls that run.
    pub pulls: Vec<PullState>,
    /// The calls and sessions that run, the oldest first; none where calls are not recorded.
    pub calls: Option<Vec<CallLine>>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLine {
    /// `namespace/name`
    pub name: String,
    /// Its id.
    pub id: String,
    /// READY or NOTREADY.
    pub state: String,
    /// Since it was made.
    pub age_us: u64,
    /// Running containers, and all.
    pub running: usize,
    /// See there.
    pub containers: usize,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLine {
    /// Its pod: `namespace/name`.
    pub pod: String,
    /// Its pod's id.
    pub pod_id: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// CREATED, RUNNING, EXITED or UNKNOWN.
    pub state: String,
    /// Since it came to that state.
    pub age_us: u64,
    /// How often it was made before.
    pub attempt: u32,
    /// Its process while it runs, else 0.
    pub pid: u32,
    /// How it ended, for people; empty while it runs.
    pub end: String,
}

/// A call that runs, or a session of exec, attach or port-forward.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLine {
    /// For `longshore trace`.
    pub id: String,
    /// The method; in brackets what is no call of the CRI.
    pub method: String,
    /// What it is about.
    pub object: String,
    /// Since it came.
    pub age_us: u64,
    /// What it waits for now; empty where it is between two steps.
    pub stage: String,
    /// Since when.
    pub stage_us: u64,
    /// Nobody waits for its answer any more.
    pub is_client_gone: bool,
}

/// Looks at everything.
pub(super) fn overview(pods: &Pods) -> Overview {
    let parts = &pods.containers;
    let now = now();
    let since = |then: i64| u64::try_from(now.saturating_sub(then) / 1000).unwrap_or(0);
    let mut found = Overview {
        pulls: parts.images.running_pulls(),
        calls: trace::recorder().map(|recorder| {
            let wall = u64::try_from(now / 1000).unwrap_or(0);
            recorder.running().iter().map(|story| CallLine::of(story, wall)).collect()
        }),
        ..Overview::default()
    };
    for pod in parts.store.pods() {
        let containers = parts.store.containers_of(&pod);
        found.pods.push(PodLine {
            name: pod.kubernetes_name(),
            id: pod.id.to_string(),
            state: if pod.status().ready { "READY".into() } else { "NOTREADY".into() },
            age_us: since(pod.created_at),
            running: containers.iter().filter(|it| it.state() == ContainerState::ContainerRunning).count(),
            containers: containers.len(),
            addresses: pod.network().ips.iter().map(ToString::to_string).collect(),
        });
        for container in containers {
            let status = container.status();
            let metadata = container.metadata.config.metadata.clone().unwrap_or_default();
            let at = [status.finished_at, status.started_at, status.created_at];
            let end = match status.finished_at {
                0 => String::new(),
                _ => format!("{} {}", status.exit_code, status.shown_reason()),
            };
            found.containers.push(ContainerLine {
                pod: pod.kubernetes_name(),
                pod_id: pod.id.to_string(),
                name: metadata.name,
                id: container.id.to_string(),
                state: status.state_name().trim_start_matches("CONTAINER_").to_owned(),
                age_us: since(at.into_iter().find(|time| *time != 0).unwrap_or(now)),
                attempt: metadata.attempt,
                pid: status.pid,
                end,
            });
        }
    }
    found.pods.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    found.containers.sort_by(|a, b| (&a.pod, &a.name, a.attempt).cmp(&(&b.pod, &b.name, b.attempt)));
    found
}

impl CallLine {
    fn of(story: &Story, now_us: u64) -> CallLine {
        let about = &story.about;
        let age_us = now_us.saturating_sub(story.at_us);
        let object = match (about.pod.as_str(), about.container.as_str()) {
            ("", _) => about.object.clone(),
            (pod, "") => pod.to_owned(),
            (pod, container) => format!("{pod} {container}"),
        };
        let present = story.present();
        let stage = present.map(|step| match step.kind.as_str() {
            "stage" => step.name.clone(),
            "wait" => format!("wait for {}", step.name),
            kind => format!("{kind} {} {}", step.name, step.args).trim_end().to_owned(),
        });
        CallLine {
            id: story.id.clone(),
            method: story.method.clone(),
            object,
            age_us,
            stage: stage.unwrap_or_default(),
            stage_us: present.map_or(0, |step| age_us.saturating_sub(step.at_us)),
            is_client_gone: story.code == "Canceled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{About, Step};

    #[test]
    fn a_call_says_what_it_waits_for_and_since_when() {
        let step = |kind: &str, name: &str, us| Step {
            kind: kind.into(),
            name: name.into(),
            args: "id=a".into(),
            at_us: 100,
            us,
            ..Step::default()
        };
        let mut story = Story {
            id: "00000a".into(),
            method: "StartContainer".into(),
            at_us: 1_000_000,
            about: About { pod: "default/web-0".into(), container: "app".into(), ..About::default() },
            steps: vec![step("containerd", "Tasks.Create", None), step("file", "write", Some(5))],
            ..Story::default()
        };
        let line = CallLine::of(&story, 1_002_000);
        assert_eq!((line.object.as_str(), line.age_us), ("default/web-0 app", 2000));
        assert_eq!((line.stage.as_str(), line.stage_us), ("containerd Tasks.Create id=a", 1900));
        story.steps[0].us = Some(1);
        story.code = "Canceled".into();
        let line = CallLine::of(&story, 1_002_000);
        assert_eq!((line.stage.as_str(), line.stage_us, line.is_client_gone), ("", 0, true));
    }
}
