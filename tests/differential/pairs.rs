//! A pod with its containers on both servers, and the comparison of everything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use longshore::proto::cri::{
    ContainerConfig, RunPodSandboxRequest, StartContainerRequest, UpdateContainerResourcesRequest,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::allowed::{self, Case};
use crate::containers::{container, tame};
use crate::harness::{Version, wait_until};
use crate::normal::{Found, Words, compare};
use crate::pods::{pod, resources};
use crate::random::Random;
use crate::sides::{Side, process};
use crate::world::World;

/// Failures of one kind that are shown.
const SHOWN_MAX: usize = 12;
/// Characters of a value that are shown.
const VALUE_MAX: usize = 1000;

/// Both servers.
pub(crate) struct Pair {
    pub(crate) ours: Side,
    pub(crate) theirs: Side,
    pub(crate) version: Version,
}

/// What came of some pods.
#[derive(Default)]
pub(crate) struct Report {
    calls: BTreeMap<String, usize>,
    /// Ids of allowed differences that were seen, and how often.
    seen: BTreeMap<&'static str, usize>,
    failures: Vec<Failure>,
}

struct Failure {
    call: &'static str,
    name: String,
    request: Value,
    found: Found,
}

impl Report {
    pub(crate) fn and(mut self, other: Report) -> Report {
        for (call, count) in other.calls {
            *self.calls.entry(call).or_default() += count;
        }
        for (id, count) in other.seen {
            *self.seen.entry(id).or_default() += count;
        }
        self.failures.extend(other.failures);
        self
    }

    /// What was done, and which differences were met.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for (call, count) in &self.calls {
            write!(text, "\n  {call}: {count}").expect("text");
        }
        text.push_str("\n  allowed:");
        for (id, count) in &self.seen {
            write!(text, " {id} ({count})").expect("text");
        }
        text
    }

    /// All that is not allowed, shortly, and some of it with the request; empty for none.
    pub(crate) fn failures(&self, seed: u64) -> String {
        let mut text = String::new();
        let mut paths: BTreeMap<(&str, String), usize> = BTreeMap::new();
        for failure in &self.failures {
            let path = failure.found.path.replace(|c: char| c.is_ascii_digit(), "");
            *paths.entry((failure.call, path)).or_default() += 1;
        }
        for ((call, path), count) in &paths {
            writeln!(text, "{count} × {call} {path}").expect("text");
        }
        let mut printed: BTreeMap<String, usize> = BTreeMap::new();
        for Failure { call, name, request, found } in &self.failures {
            // A few of each kind tell more than many of one.
            let count = printed.entry(format!("{call} {}", found.path)).or_default();
            *count += 1;
            if *count > SHOWN_MAX {
                continue;
            }
            let short = |value: &Value| value.to_string().chars().take(VALUE_MAX).collect::<String>();
            let (ours, theirs) = (short(&found.ours), short(&found.theirs));
            writeln!(
                text,
                "---- {name} of seed {seed}, {call}: {}\nlongshore: {ours}\nplugin:    {theirs}",
                found.path
            )
            .expect("text");
            if *count <= 2 {
                writeln!(text, "request: {request}").expect("text");
            }
        }
        text
    }
}

/// The request that two answers are about.
struct Asked<'a> {
    call: &'static str,
    name: String,
    request: Value,
    version: &'a Version,
}

impl Asked<'_> {
    fn compare(&self, ours: &Value, theirs: &Value, report: &mut Report) {
        let mut found = Vec::new();
        compare("", ours, theirs, &mut found);
        for found in found {
            let case = Case { call: self.call, request: &self.request, found: &found, version: self.version };
            match allowed::ALL.iter().find(|allowed| (allowed.applies)(&case)) {
                Some(allowed) => *report.seen.entry(allowed.id).or_default() += 1,
                None => report.failures.push(Failure {
                    call: self.call,
                    name: self.name.clone(),
                    request: self.request.clone(),
                    found,
                }),
            }
        }
    }

    /// Whether both went well; compares how they went.
    fn both<T>(
        &self,
        ours: Result<T, Status>,
        theirs: Result<T, Status>,
        report: &mut Report,
    ) -> (Option<T>, Option<T>) {
        let text = |result: &Result<T, Status>| match result {
            Ok(_) => "Ok".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        let code = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
        let (a, b) = (text(&ours), text(&theirs));
        *report.calls.entry(format!("{} {} / {}", self.call, code(&a), code(&b))).or_default() += 1;
        if code(&a) != code(&b) {
            self.compare(&json!({ "code": a }), &json!({ "code": b }), report);
        }
        (ours.ok(), theirs.ok())
    }
}

impl Pair {
    /// Runs pod `number` with up to `count` containers on both, compares, and removes it.
    pub(crate) async fn pod(
        &self,
        random: &mut Random,
        world: &World,
        number: usize,
        count: usize,
    ) -> Report {
        let mut report = Report::default();
        let request = pod(random, world, number);
        let name = format!("pod {number}");
        let asked = |call| Asked {
            call,
            name: name.clone(),
            request: serde_json::to_value(&request).expect("JSON"),
            version: &self.version,
        };
        let (ours, theirs) = tokio::join!(self.ours.run(&request), self.theirs.run(&request));
        let ids = asked("RunPodSandbox").both(ours, theirs, &mut report);
        if let (Some(ours), Some(theirs)) = &ids {
            let mut words = (self.words(&self.ours, ours), self.words(&self.theirs, theirs));
            let statuses = (
                self.ours.pod_status(ours, &mut words.0).await,
                self.theirs.pod_status(theirs, &mut words.1).await,
            );
            asked("PodSandboxStatus").compare(&statuses.0, &statuses.1, &mut report);
            let records =
                (self.ours.record(ours, &words.0).await, self.theirs.record(theirs, &words.1).await);
            asked("pause").compare(&records.0, &records.1, &mut report);
            self.files(ours, theirs, &asked("files"), &mut report);
            let mut place = InPod { pair: self, request: &request, ids: (ours, theirs), words, target: None };
            for index in 0..count {
                place.container(random, world, number * 100 + index, &mut report).await;
            }
        }
        for (side, id) in [(&self.ours, &ids.0), (&self.theirs, &ids.1)] {
            if let Some(id) = id {
                // As the kubelet does it: again, if the machine was too busy.
                wait_until("the stop of a pod", async || side.cri.stop_pod(id).await.is_ok()).await;
                wait_until("the removal of a pod", async || side.cri.remove_pod(id).await.is_ok()).await;
            }
        }
        report
    }

    fn words(&self, side: &Side, pod: &str) -> Words {
        let mut words = Words::default();
        words.add(pod, "{pod}");
        for (folder, meaning) in &side.folders {
            words.add_folder(folder, meaning);
        }
        words.add(&format!("/{}/", side.namespace), "/{namespace}/");
        words
    }

    /// The pod's files.
    fn files(&self, ours: &str, theirs: &str, asked: &Asked<'_>, report: &mut Report) {
        let read = |side: &Side, id: &str| {
            let root = &side.folders.iter().find(|(_, meaning)| *meaning == "{root}").expect("a root").0;
            let file = |name: &str| std::fs::read_to_string(root.join("sandboxes").join(id).join(name)).ok();
            json!({ "hostname": file("hostname"), "hosts": file("hosts"), "resolv.conf": file("resolv.conf") })
        };
        asked.compare(&read(&self.ours, ours), &read(&self.theirs, theirs), report);
    }
}

/// A pod that runs on both.
struct InPod<'a> {
    pair: &'a Pair,
    request: &'a RunPodSandboxRequest,
    ids: (&'a str, &'a str),
    words: (Words, Words),
    /// A container that runs.
    target: Option<(String, String)>,
}

impl InPod<'_> {
    async fn container(&mut self, random: &mut Random, world: &World, number: usize, report: &mut Report) {
        let pod = self.request.config.clone().unwrap_or_default();
        let mut config = container(random, world, &pod, number, self.target.is_some());
        let starts = random.chance(35);
        if starts && random.chance(75) {
            tame(&mut config);
        }
        let update = random.maybe(20, resources);
        // A client that says something else of the pod than what it is.
        let mut sandbox = pod.clone();
        let is_other = random.chance(2);
        if is_other {
            sandbox.hostname = "other".into();
            sandbox.log_directory = "{logs}/other".into();
            sandbox.metadata.get_or_insert_default().uid = "other".into();
        }
        // Older plugins end with their containerd where there is none.
        let may_lack = (self.pair.version.major, self.pair.version.minor) >= (2, 3);
        let sandbox = random.maybe(99, |_| &sandbox).or((!may_lack).then_some(&sandbox));
        let (ours, theirs) = (&self.pair.ours, &self.pair.theirs);
        let target =
            |of: fn(&(String, String)) -> &String| self.target.as_ref().map(|both| of(both).as_str());
        let asked = |call| self.asked(call, &config, is_other, number);
        let results = tokio::join!(
            ours.create(self.ids.0, sandbox, &config, target(|both| &both.0)),
            theirs.create(self.ids.1, sandbox, &config, target(|both| &both.1)),
        );
        let (a, b) = asked("CreateContainer").both(results.0, results.1, report);
        let (Some(a), Some(b)) = (a, b) else { return };
        let mut words = self.words.clone();
        words.0.add(&a, "{id}");
        words.1.add(&b, "{id}");
        if let Some(target) = &self.target {
            words.0.add(&target.0, "{target}");
            words.1.add(&target.1, "{target}");
        }
        let records = (ours.record(&a, &words.0).await, theirs.record(&b, &words.1).await);
        asked("container").compare(&records.0, &records.1, report);
        let (status, other) =
            (ours.container_status(&a, &words.0).await, theirs.container_status(&b, &words.1).await);
        asked("ContainerStatus").compare(&status.0, &other.0, report);
        if let Some(update) = update.as_ref().filter(|_| !starts) {
            self.update(update, (&a, &b), None, &words, number, report).await;
        }
        if !starts {
            return;
        }
        let start = |side: &Side, id: &str| {
            let mut client = side.cri.runtime();
            let request = StartContainerRequest { container_id: id.to_owned() };
            async move { client.start_container(request).await.map(drop) }
        };
        let results = tokio::join!(start(ours, &a), start(theirs, &b));
        let (Some(()), Some(())) = asked("StartContainer").both(results.0, results.1, report) else {
            // The text of the failure is each server's own.
            let ended = |mut status: Value| {
                if let Some(message) = status.pointer_mut("/status/message") {
                    *message = (*message != "").into();
                }
                status
            };
            let statuses =
                (ours.container_status(&a, &words.0).await.0, theirs.container_status(&b, &words.1).await.0);
            asked("ContainerStatus").compare(&ended(statuses.0), &ended(statuses.1), report);
            return;
        };
        let (status, other) =
            (ours.container_status(&a, &words.0).await, theirs.container_status(&b, &words.1).await);
        if let (Some(ours), Some(theirs)) =
            (process(status.1, &words.0).await, process(other.1, &words.1).await)
        {
            asked("process").compare(&ours, &theirs, report);
            if self.target.is_none() {
                self.words.0.add_pid(&status.1.into(), "{target}");
                self.words.1.add_pid(&other.1.into(), "{target}");
                self.target = Some((a.clone(), b.clone()));
            }
        }
        if let Some(update) = &update {
            self.update(update, (&a, &b), Some((status.1, other.1)), &words, number, report).await;
        }
    }

    fn asked(
        &self,
        call: &'static str,
        config: &ContainerConfig,
        is_other: bool,
        number: usize,
    ) -> Asked<'_> {
        let request = json!({
            "handler": self.request.runtime_handler, "pod": self.request.config, "container": config,
            "another_pod_config": is_other,
        });
        Asked { call, name: format!("container {number}"), request, version: &self.pair.version }
    }

    async fn update(
        &self,
        update: &longshore::proto::cri::LinuxContainerResources,
        (a, b): (&String, &String),
        pids: Option<(u32, u32)>,
        words: &(Words, Words),
        number: usize,
        report: &mut Report,
    ) {
        let (ours, theirs) = (&self.pair.ours, &self.pair.theirs);
        let send = |side: &Side, id: &String| {
            let mut client = side.cri.runtime();
            let request = UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(update.clone()),
                ..Default::default()
            };
            async move { client.update_container_resources(request).await.map(drop) }
        };
        let asked = Asked {
            call: "UpdateContainerResources",
            name: format!("container {number}"),
            request: json!({ "update": update }),
            version: &self.pair.version,
        };
        let results = tokio::join!(send(ours, a), send(theirs, b));
        // What ends by itself may have ended on one side only.
        let runs = |pid: u32| Path::new(&format!("/proc/{pid}/root/.")).exists();
        if pids.is_some_and(|(a, b)| !runs(a) || !runs(b)) {
            return;
        }
        if let (Some(()), Some(())) = asked.both(results.0, results.1, report) {
            let records = (ours.record(a, &words.0).await, theirs.record(b, &words.1).await);
            let limits = |record: &Value| record["spec"]["linux"]["resources"].clone();
            asked.compare(&limits(&records.0), &limits(&records.1), report);
            let statuses =
                (ours.container_status(a, &words.0).await.0, theirs.container_status(b, &words.1).await.0);
            let limits = |status: &Value| status["status"]["resources"].clone();
            asked.compare(&limits(&statuses.0), &limits(&statuses.1), report);
        }
    }
}
