//! `longshore explain`: what `serve` would do, shown and not done.
//!
//! ```text
//! read.rs      files ─▶ requests of the CRI            manifest/  a Pod of Kubernetes ─▶ the same
//! node.rs      the node, looked at ─▶ facts.rs         everything that decides a spec
//! facts.rs     ─▶ the translation of crate::spec ─▶ the spec
//! origins.rs   one fact changed, the translation asked again ─▶ where each field comes from
//! calls.rs     the calls of containerd and CNI in order
//! recorded.rs  the requests, ids and spec of a container that containerd has ─▶ diff.rs
//! text.rs      for people; as JSON without it
//! ```
//! The spec is the one that the server would make, since the same functions make it.

pub mod calls;
pub mod diff;
mod facts;
mod leaves;
pub mod manifest;
mod node;
mod origins;
pub mod read;
mod recorded;
mod source;
mod text;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

pub use calls::Call;
pub use facts::{ContainerFacts, Facts, ImageFacts, NodeFacts, PodFacts, Subject};
pub use node::{Ids, ImageFiles, Node};
pub use origins::{Origin, explained};
pub use source::{Source, line};
pub use text::text;

use crate::error::{Context, Result};
use crate::pod::choose_handler;
use crate::spec::{Modes, Spec, gather};
use read::Requests;

/// What `serve` would do.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// What could not be looked at, and what would be made on the node.
    pub said: Vec<String>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Explained>,
    /// Its containers.
    pub containers: Vec<Explained>,
}

/// The calls and the spec of a pod or container.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// What it is.
    pub name: String,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// The spec.
    pub spec: Spec,
    /// Where its fields come from, by JSON pointer.
    #[serde(serialize_with = "by_pointer")]
    pub origins: Vec<Origin>,
}

fn by_pointer<S: Serializer>(origins: &[Origin], to: S) -> Result<S::Ok, S::Error> {
    let map: BTreeMap<&str, &[Source]> =
        origins.iter().map(|origin| (origin.pointer.as_str(), origin.sources.as_slice())).collect();
    map.serialize(to)
}

impl Explanation {
    fn parts(&self) -> impl Iterator<Item = &Explained> {
        self.pod.iter().chain(&self.containers)
    }
}

/// Explains requests: the pod, and each of the containers in it.
///
/// # Errors
/// What the server would refuse; what cannot be known of an image.
pub async fn explain(node: &mut Node, requests: &Requests, ids: &Ids) -> Result<Explanation> {
    for said in &requests.said {
        node.say(said.clone());
    }
    let handler = choose_handler(&node.config, &requests.pod, &requests.handler)?;
    let modes = Modes::of_pod(&requests.pod).context(|| "pod sandbox")?;
    let facts = node.pod(ids, &requests.pod, &handler).await.context(|| "pod sandbox")?;
    let mut explanation = Explanation { said: Vec::new(), pod: None, containers: Vec::new() };
    if requests.shows_pod {
        let networks = if modes.host_network() { Vec::new() } else { node.networks(&handler).await };
        let (spec, origins) = explained(&facts).context(|| "pod sandbox")?;
        let metadata = requests.pod.metadata.clone().unwrap_or_default();
        explanation.pod = Some(Explained {
            name: format!("pod {}/{}", metadata.namespace, metadata.name),
            calls: calls::of_pod(&requests.pod, modes, &handler, &facts.image.name, &networks),
            spec,
            origins,
        });
    }
    for config in &requests.containers {
        let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
        let what = || format!("container {name:?}");
        let mut config = config.clone();
        if requests.is_kubelets {
            let image = node.image_of(&config).await.context(what)?;
            if manifest::give_image_user(&mut config, &image) {
                node.say(format!("{}: the kubelet asks for the user of the image (run_as_user)", what()));
            }
        }
        // The kubelet's own are there by the time that it asks.
        let mounts = config.mounts.iter().filter(|mount| mount.image.is_none() && !requests.is_kubelets);
        let paths = mounts.map(|mount| mount.host_path.clone());
        let missing: Vec<String> = paths.filter(|path| gather::is_missing(path)).collect();
        for path in &missing {
            node.say(format!("{}: {path:?} is missing and would be made", what()));
        }
        let config = &config;
        let facts = node.container(ids, &facts, config).await.context(what)?;
        let (spec, origins) = explained(&facts).context(what)?;
        explanation.containers.push(Explained {
            name: format!("container {name}"),
            calls: calls::of_container(config, &facts.image.name, modes.user.is_some(), &missing),
            spec,
            origins,
        });
    }
    explanation.said.clone_from(&node.said);
    Ok(explanation)
}
