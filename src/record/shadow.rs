//! What a server tells of its node, beside what longshore would tell of it.
//!
//! ```text
//! server ◀── questions ──▶ longshore in this process ─▶ containerd, status files, cgroups
//!    └────── answers ─▶ compare ◀─ answers ┘
//! ```
//! longshore is no second server here: it has no socket, no keeper and no lock, it reads
//! containerd's records as it does at a start, and changes nothing. Both are asked the same
//! questions, which only look. Between two answers the node goes on, so a difference counts
//! when two looks one after the other have it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use serde_json::{Value as Json, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::codec::{to_json, to_wire};
use super::format::Keep;
use super::replay::compare::{Side, differences, normal, place};
use super::replay::target::Target;
use super::replay::{Difference, merged};
use crate::app;
use crate::config::Config;
use crate::proto::schema::SCHEMA;
use crate::telemetry::meters::name_of;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What is compared.
#[derive(Clone, Debug)]
pub struct Request {
    /// The socket of the server that the node has.
    pub reference: PathBuf,
    /// The configuration that longshore would have.
    pub config: Config,
}

/// What was found in a look.
#[derive(Debug, Default, Serialize)]
pub struct Look {
    /// Questions that both were asked.
    pub questions: usize,
    /// Pods, containers and images that there are.
    pub objects: Objects,
    /// What differs, and stays so.
    pub differences: Vec<Found>,
    /// What differed once: the node went on between two answers.
    pub passing: usize,
}

/// How many things there are.
#[derive(Debug, Default, Serialize)]
pub struct Objects {
    /// Pod sandboxes.
    pub pods: usize,
    /// Containers.
    pub containers: usize,
    /// Images.
    pub images: usize,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The method.
    pub method: String,
    /// Whom it was asked about; empty for all.
    pub object: String,
    /// Where the answers differ.
    pub path: String,
    /// What the node's server answers.
    pub reference: Json,
    /// What longshore would answer.
    pub candidate: Json,
}

impl Found {
    /// What it is about: the same in another look has the same.
    #[must_use]
    pub fn key(&self) -> (String, String, String) {
        (self.method.clone(), self.object.clone(), self.path.clone())
    }

    /// What such differences have in common, whatever they are about.
    #[must_use]
    pub fn place(&self) -> (String, String) {
        (self.method.clone(), place(&self.path))
    }
}

/// Asks both, and once more where they differ.
///
/// # Errors
/// The node's server, or containerd, does not answer.
pub async fn look(request: &Request) -> anyhow::Result<Look> {
    let mut first = ask_both(request).await?;
    if first.differences.is_empty() {
        return Ok(first);
    }
    let second = ask_both(request).await?;
    let again: BTreeSet<_> = second.differences.iter().map(Found::key).collect();
    let all = first.differences.len();
    first.differences.retain(|found| again.contains(&found.key()));
    first.passing = all - first.differences.len();
    Ok(first)
}

async fn ask_both(request: &Request) -> anyhow::Result<Look> {
    let reference = Target::connect(&request.reference).await?;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let candidate = candidate(&request.config, stop).await?;
    let mut look = Look::default();
    let mut both = Both { reference, candidate, look: &mut look };
    both.ask("Status", "", json!({})).await?;
    both.ask("RuntimeConfig", "", json!({})).await?;
    both.ask("ImageFsInfo", "", json!({})).await?;
    let pods = both.ask("ListPodSandbox", "", json!({})).await?;
    let containers = both.ask("ListContainers", "", json!({})).await?;
    let images = both.ask("ListImages", "", json!({})).await?;
    let (pods, containers, images) =
        (ids(&pods, "items"), ids(&containers, "containers"), ids(&images, "images"));
    for id in &pods {
        both.ask("PodSandboxStatus", id, json!({ "pod_sandbox_id": id })).await?;
    }
    for id in &containers {
        both.ask("ContainerStatus", id, json!({ "container_id": id })).await?;
    }
    for id in &images {
        both.ask("ImageStatus", id, json!({ "image": { "image": id } })).await?;
    }
    both.ask("ListContainerStats", "", json!({})).await?;
    both.ask("ListPodSandboxStats", "", json!({})).await?;
    look.objects = Objects { pods: pods.len(), containers: containers.len(), images: images.len() };
    Ok(look)
}

/// longshore as it would be now.
async fn candidate(config: &Config, stop: CancellationToken) -> anyhow::Result<Target> {
    let mut config = config.clone();
    // An address that is surely free, for streams that nobody asks for.
    config.file.stream.address = "127.0.0.1".to_owned();
    config.file.stream.port = 0;
    let cri = app::looking(Arc::new(config), stop.clone()).await?;
    let (ours, theirs) = UnixStream::pair()?;
    // With the end of its clients a server would end, and cut them off.
    let clients = stream::iter([Ok::<_, std::io::Error>(theirs)]).chain(stream::pending());
    let server = tonic::transport::Server::builder()
        .add_service(cri.runtime_server())
        .add_service(cri.image_server())
        .serve_with_incoming_shutdown(clients, stop.cancelled_owned());
    tokio::spawn(server);
    Target::within(ours).await
}

struct Both<'a> {
    reference: Target,
    candidate: Target,
    look: &'a mut Look,
}

impl Both<'_> {
    /// Asks both; gives the answer of the node's server.
    async fn ask(&mut self, method: &str, object: &str, request: Json) -> anyhow::Result<Json> {
        let known = SCHEMA.methods.get(method).with_context(|| format!("no method {method}"))?;
        let encoded = to_wire(&known.input, &request)?;
        let asked = async |target: &Target| {
            let answer = async {
                let mut stream = target.call(known, encoded.clone(), None).await?;
                let mut parts = Vec::new();
                while let Some(message) = stream.message().await? {
                    parts.extend(to_json(&known.output, &message, Keep::default()));
                }
                Ok(merged(&parts))
            };
            let late = || Err(Status::deadline_exceeded(format!("no answer within {} s", LIMIT.as_secs())));
            tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| late())
        };
        let (reference, candidate) = (asked(&self.reference).await, asked(&self.candidate).await);
        self.look.questions += 1;
        let found = match (&reference, &candidate) {
            (Ok(reference), Ok(candidate)) => {
                let of = |answer| normal(&known.output, answer, &Side::Shared);
                differences(&of(reference), &of(candidate))
            }
            (Err(a), Err(b)) if a.code() == b.code() => Vec::new(),
            (a, b) => {
                let (recorded, replayed) = (code(a), code(b));
                vec![Difference { path: "code".into(), recorded, replayed }]
            }
        };
        self.look.differences.extend(found.into_iter().map(|it| Found {
            method: method.to_owned(),
            object: object.to_owned(),
            path: it.path,
            reference: it.recorded,
            candidate: it.replayed,
        }));
        match reference {
            Err(status) if status.code() == Code::Unavailable && object.is_empty() => {
                Err(anyhow::anyhow!("{method}: {}", status.message()))
            }
            other => Ok(other.unwrap_or_default()),
        }
    }
}

fn code(answer: &Result<Json, Status>) -> Json {
    match answer {
        Ok(_) => "OK".into(),
        Err(status) => format!("{}: {}", name_of(status.code()), status.message()).into(),
    }
}

fn ids(list: &Json, field: &str) -> Vec<String> {
    let items = list.get(field).and_then(Json::as_array).into_iter().flatten();
    items.filter_map(|item| item.get("id")?.as_str().map(str::to_owned)).collect()
}

/// Differences over several looks, each told once.
#[derive(Debug, Default)]
pub struct Watch {
    known: BTreeMap<(String, String, String), usize>,
    looks: usize,
}

impl Watch {
    /// Those that are new with this look.
    pub fn new_in<'a>(&mut self, look: &'a Look) -> Vec<&'a Found> {
        self.looks += 1;
        let looks = self.looks;
        look.differences.iter().filter(|found| self.known.insert(found.key(), looks).is_none()).collect()
    }

    /// How many looks there were.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.looks
    }

    /// How many differences there were in all.
    #[must_use]
    pub fn differences(&self) -> usize {
        self.known.len()
    }
}

/// Where the built-in plugin keeps its files of containers, below containerd's folders.
#[must_use]
pub fn plugin_folders() -> (&'static Path, &'static Path) {
    (
        Path::new("/var/lib/containerd/io.containerd.grpc.v1.cri"),
        Path::new("/run/containerd/io.containerd.grpc.v1.cri"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_once() {
        let found = |path: &str| Found {
            method: "ContainerStatus".into(),
            object: "c1".into(),
            path: path.into(),
            reference: 1.into(),
            candidate: 2.into(),
        };
        let look = |paths: &[&str]| Look {
            differences: paths.iter().map(|path| found(path)).collect(),
            ..Look::default()
        };
        let mut watch = Watch::default();
        assert_eq!(watch.new_in(&look(&["a", "b"])).len(), 2);
        assert_eq!(watch.new_in(&look(&["b", "c"])), [&found("c")]);
        assert_eq!((watch.looks(), watch.differences()), (2, 3));
    }
}
